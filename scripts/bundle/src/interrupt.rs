//! Ctrl-C, and the prompts at which it must leave the terminal as it was.

use std::io::{self, IsTerminal, Write};
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{self, OptionalActions, QueueSelector, Termios};

use crate::failure::{Concern, Exit, Failure};

/// Set once Ctrl-C was pressed or the run was told to terminate.
static STOP: AtomicBool = AtomicBool::new(false);

/// How to leave while the run waits for something that cannot be broken off: a person, or a file that is a pipe.
static PROMPT: Mutex<Option<Prompt>> = Mutex::new(None);

struct Prompt {
    /// The terminal as it was before; echo may be off meanwhile.
    terminal: Option<Termios>,
    /// What takes away what was shown.
    hide: &'static str,
    /// What somebody who presses Ctrl-C has to know.
    remains: String,
}

#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error("no answer: {0}")]
    Unanswered(io::Error),
    #[error("nothing can be read from the terminal: {0}")]
    Unreadable(io::Error),
}

impl Concern for PromptError {
    fn exit(&self) -> Exit {
        Exit::Other
    }
}

/// From now on Ctrl-C, SIGTERM and SIGHUP end the run tidily.
pub fn handle() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(interrupt)
}

/// What Ctrl-C does. Children get it from the terminal, too; they end, we see it and clean up. A read from the terminal
/// cannot be broken off like that; but at a prompt nothing is held, so the run just ends.
fn interrupt() {
    STOP.store(true, Ordering::SeqCst);
    let prompt = PROMPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(Prompt { terminal, hide, remains }) = &*prompt {
        // If the terminal cannot be put back, there is nobody left to tell but by the message below.
        if let Some(before) = terminal {
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
        show_cursor();
        let _ = writeln!(io::stderr(), "{hide}");
        process::exit(Failure::interrupted().if_interrupted(remains).print().into());
    }
}

/// Fails once the run was interrupted. Asked between steps, so that a step is finished, and what it leaves behind is recorded
/// or removed, before the script ends.
pub fn check() -> Result<(), Failure> {
    if is_interrupted() { Err(Failure::interrupted()) } else { Ok(()) }
}

/// Whether Ctrl-C was pressed or the run was told to terminate.
pub fn is_interrupted() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// Whether there is a person to ask.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Waits for an answer. `remains` is what somebody who presses Ctrl-C has to know, `hide` takes away what was shown.
pub fn at_prompt<T>(remains: &str, hide: &'static str, ask: impl FnOnce() -> T) -> T {
    let set = |prompt| *PROMPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = prompt;
    set(Some(Prompt { terminal: termios::tcgetattr(io::stdin()).ok(), hide, remains: remains.to_owned() }));
    // What was typed before there was a question does not answer it.
    let _ = termios::tcflush(io::stdin(), QueueSelector::IFlush);
    let answer = ask();
    set(None);
    show_cursor();
    answer
}

/// Asks a question that is answered by yes or no.
pub fn confirm(question: String, default: bool, remains: &str) -> Result<bool, Failure> {
    let asked = at_prompt(remains, "", || dialoguer::Confirm::new().with_prompt(question).default(default).interact());
    asked.map_err(|error| answer_failed(error, remains, PromptError::Unanswered))
}

/// What became of a question that was not answered.
pub fn answer_failed<E: Concern>(error: dialoguer::Error, remains: &str, or: impl FnOnce(io::Error) -> E) -> Failure {
    let dialoguer::Error::IO(cause) = error;
    match cause.kind() {
        io::ErrorKind::Interrupted => Failure::interrupted().if_interrupted(remains),
        _ => or(cause).into(),
    }
}

/// Waits until Enter is pressed.
pub fn wait_for_enter(prompt: &str, remains: &str, hide: &'static str) -> Result<(), Failure> {
    let asked = write!(io::stderr(), "{prompt} ");
    let read = asked.and_then(|()| at_prompt(remains, hide, || io::stdin().read_line(&mut String::new())));
    read.map_err(PromptError::Unreadable)?;
    Ok(())
}

/// A question hides the cursor, and one that is broken off does not show it again.
fn show_cursor() {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\x1b[?25h");
    }
}
