//! Questions on the terminal. Whatever ends or suspends the run meanwhile leaves the terminal as it was: with its echo, and
//! without what must not stay on it.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};

use crate::failure::{Concern, Exit, Failure};
use crate::interrupt;

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

/// A question to the person at the terminal.
pub struct Prompt<'a> {
    /// What is written to ask it.
    pub show: String,
    /// What takes that away again; empty: it may stay.
    pub hide: &'static str,
    /// Whether the answer can be seen as it is typed.
    pub echo: bool,
    /// What a person who presses Ctrl-C has to know.
    pub remains: &'a str,
}

impl Prompt<'_> {
    /// Asks, and waits for a line.
    pub fn ask(self) -> Result<String, Failure> {
        let before = termios::tcgetattr(io::stdin()).map_err(|cause| PromptError::Unanswered(cause.into()))?;
        let mut meanwhile = before.clone();
        if !self.echo {
            meanwhile.local_modes -= LocalModes::ECHO;
            // The end of the line stays visible.
            meanwhile.local_modes |= LocalModes::ECHONL;
        }
        let Prompt { show, hide, remains, .. } = self;
        let waiting = Waiting { modes: Some((before, meanwhile)), show, hide, remains: remains.to_owned() };
        let mut line = Vec::new();
        match waiting.wait(|| io::stdin().lock().read_until(b'\n', &mut line))? {
            Ok(0) => Err(PromptError::Unanswered(io::ErrorKind::UnexpectedEof.into()).into()),
            Ok(_) => Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()),
            Err(cause) => Err(PromptError::Unanswered(cause).into()),
        }
    }
}

/// Asks a question that is answered by yes or no.
pub fn confirm(question: &str, default: bool, remains: &str) -> Result<bool, Failure> {
    let choice = if default { "[Y/n]" } else { "[y/N]" };
    loop {
        let prompt = Prompt { show: format!("{question} {choice} "), hide: "", echo: true, remains };
        match prompt.ask()?.trim().to_lowercase().as_str() {
            "" => return Ok(default),
            "y" | "yes" => return Ok(true),
            "n" | "no" => return Ok(false),
            _ => {}
        }
    }
}

/// Waits for something that cannot be broken off and is not the terminal: a file that may be a pipe.
pub fn wait_for<T>(remains: &str, read: impl FnOnce() -> T) -> Result<T, Failure> {
    Waiting { modes: None, show: String::new(), hide: "", remains: remains.to_owned() }.wait(read)
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
        let _ = waiting.show();
    }
}

fn current() -> MutexGuard<'static, Option<Waiting>> {
    WAITING.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct Waiting {
    /// The terminal's modes, before the question and while it is asked.
    modes: Option<(Termios, Termios)>,
    show: String,
    hide: &'static str,
    remains: String,
}

impl Waiting {
    fn wait<T>(self, read: impl FnOnce() -> T) -> Result<T, Failure> {
        let mut waiting = current();
        // From here on an interruption ends the run; one that came before does so here.
        let check = |remains: &str| interrupt::check().map_err(|failure| failure.if_interrupted(remains));
        check(&self.remains)?;
        let (shown, remains) = (self.show(), self.remains.clone());
        *waiting = Some(self);
        drop(waiting);
        let read = shown.map(|()| read());
        let hidden = current().take().map_or(Ok(()), |waiting| waiting.hide());
        // It may have come just before the answer.
        check(&remains)?;
        hidden.and(read).map_err(|cause| PromptError::Unanswered(cause).into())
    }

    fn show(&self) -> io::Result<()> {
        if let Some((_, meanwhile)) = &self.modes {
            // What was typed before there was a question does not answer it.
            termios::tcsetattr(io::stdin(), OptionalActions::Flush, meanwhile)?;
        }
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
