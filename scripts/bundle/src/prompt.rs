//! Questions on the terminal. Whatever ends or suspends the run meanwhile leaves the terminal as it was: with its echo, and
//! without what must not stay on it.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};

use crate::failure::{Concern, Exit, Failure};
use crate::interrupt;

/// dialoguer hides it while it waits for yes or no.
const SHOW_CURSOR: &str = "\x1b[?25h";

/// The question that the run waits at.
static WAITING: Mutex<Option<Waiting>> = Mutex::new(None);

#[derive(Debug, thiserror::Error)]
enum PromptError {
    #[error("no answer: {0}")]
    Unanswered(io::Error),
}

impl Concern for PromptError {
    fn exit(&self) -> Exit {
        Exit::Other
    }
}

/// Asks for a line that is not shown as it is typed. `remains` is what a person who presses Ctrl-C has to know.
pub fn ask_hidden(question: &str, remains: &str) -> Result<String, Failure> {
    let waiting = Waiting::at_the_terminal(Echo::Off, format!("{question}: "), "", remains)?;
    let password = dialoguer::Password::new().with_prompt(question).allow_empty_password(true).report(false);
    waiting.wait(|| password.interact().map_err(|dialoguer::Error::IO(cause)| cause))
}

/// Asks a question that is answered by yes or no.
pub fn confirm(question: &str, default: bool, remains: &str) -> Result<bool, Failure> {
    let waiting = Waiting::at_the_terminal(Echo::On, format!("{question} "), SHOW_CURSOR, remains)?;
    let confirm = dialoguer::Confirm::new().with_prompt(question).default(default).wait_for_newline(true);
    waiting.wait(|| confirm.interact().map_err(|dialoguer::Error::IO(cause)| cause))
}

/// Shows something, and waits for Enter; then `hide` takes it away again. (The end of input, which dialoguer takes for an empty
/// line, is no Enter.)
pub fn pause(show: String, hide: &'static str, remains: &str) -> Result<(), Failure> {
    let waiting = Waiting::at_the_terminal(Echo::NewLine, show.clone(), hide, remains)?;
    waiting.wait(|| {
        io::stderr().write_all(show.as_bytes())?;
        match io::stdin().lock().skip_until(b'\n')? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    })
}

/// Waits for something that cannot be broken off and is not the terminal: a file that may be a pipe.
pub fn wait_for<T>(remains: &str, read: impl FnOnce() -> T) -> Result<T, Failure> {
    Waiting { modes: None, show: String::new(), hide: "", remains: remains.to_owned() }.wait(|| Ok(read()))
}

/// Whether there is a person to ask.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Ends the run if it waits at a question: a read from the terminal cannot be broken off, and nothing is held meanwhile.
pub fn exit_if_waiting() {
    if let Some(waiting) = &*current() {
        // If the terminal cannot be put back, there is nobody left to tell but by the message below.
        let _ = waiting.hide();
        let _ = writeln!(io::stderr());
        std::process::exit(Failure::interrupted().if_interrupted(&waiting.remains).print().into());
    }
}

/// The run is about to be suspended: the terminal is its user's again.
pub fn leave() {
    if let Some(waiting) = &*current() {
        let _ = waiting.hide();
    }
}

/// The run goes on after it was suspended: whoever had the terminal meanwhile has set its modes.
pub fn come_back() {
    if let Some(waiting) = &*current() {
        let _ = waiting.show_again();
    }
}

fn current() -> MutexGuard<'static, Option<Waiting>> {
    WAITING.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What the terminal shows of what is typed.
#[derive(PartialEq)]
enum Echo {
    On,
    NewLine,
    Off,
}

struct Waiting {
    /// The terminal's modes, before the question and while it is asked.
    modes: Option<(Termios, Termios)>,
    /// What asks the question again after the run was suspended.
    show: String,
    /// What takes it away; empty: it may stay.
    hide: &'static str,
    remains: String,
}

impl Waiting {
    fn at_the_terminal(echo: Echo, show: String, hide: &'static str, remains: &str) -> Result<Waiting, Failure> {
        let before = termios::tcgetattr(io::stdin()).map_err(|cause| PromptError::Unanswered(cause.into()))?;
        let mut meanwhile = before.clone();
        meanwhile.local_modes.set(LocalModes::ECHO, echo == Echo::On);
        meanwhile.local_modes.set(LocalModes::ECHONL, echo == Echo::NewLine);
        Ok(Waiting { modes: Some((before, meanwhile)), show, hide, remains: remains.to_owned() })
    }

    fn wait<T>(self, read: impl FnOnce() -> io::Result<T>) -> Result<T, Failure> {
        let mut waiting = current();
        // From here on an interruption ends the run; one that came before does so here.
        let check = |remains: &str| interrupt::check().map_err(|failure| failure.if_interrupted(remains));
        check(&self.remains)?;
        let (ready, remains) = (self.set_modes(), self.remains.clone());
        *waiting = Some(self);
        drop(waiting);
        let read = ready.and_then(|()| read());
        // dialoguer reads a Ctrl-C itself and raises the signal; the thread that answers it may come later than we do.
        if read.as_ref().is_err_and(|cause| cause.kind() == io::ErrorKind::Interrupted) {
            interrupt::interrupt();
        }
        let hidden = current().take().map_or(Ok(()), |waiting| waiting.hide());
        // It may have come just before the answer.
        check(&remains)?;
        hidden.and(read).map_err(|cause| PromptError::Unanswered(cause).into())
    }

    fn set_modes(&self) -> io::Result<()> {
        match &self.modes {
            // What was typed before there was a question does not answer it.
            Some((_, meanwhile)) => Ok(termios::tcsetattr(io::stdin(), OptionalActions::Flush, meanwhile)?),
            None => Ok(()),
        }
    }

    fn show_again(&self) -> io::Result<()> {
        self.set_modes()?;
        io::stderr().write_all(self.show.as_bytes())
    }

    fn hide(&self) -> io::Result<()> {
        let restored = match &self.modes {
            Some((before, _)) => termios::tcsetattr(io::stdin(), OptionalActions::Now, before),
            None => Ok(()),
        };
        io::stderr().write_all(self.hide.as_bytes())?;
        Ok(restored?)
    }
}
