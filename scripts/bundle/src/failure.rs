//! How a run fails: its exit code, its message, and commands that help. Each concern has an error type with all its messages
//! ([`Concern`]); here they become what is printed, in one place.

use std::error::Error;
use std::io::{self, Write};

use crate::hint;

/// The exit codes of all scripts. 0 is "done, or already so".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Other = 1,
    /// Wrong usage; clap's, too.
    Usage = 2,
    /// Something is missing; nothing was changed.
    Precondition = 3,
    /// Stopped part-way; the state says where.
    PartWay = 4,
    /// CAS, the volume or the once-marker said no.
    Refused = 5,
    Interrupted = 130,
}

/// The errors of one concern. A message is a lower-case sentence with its object quoted and its cause after a colon.
pub trait Concern: Error {
    fn exit(&self) -> Exit;
}

/// Why a run stops.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
    hints: Vec<String>,
}

impl<E: Concern> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { exit: error.exit(), message: error.to_string(), hints: Vec::new() }
    }
}

/// Somebody pressed Ctrl-C, or told the run to terminate.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; {remains}")]
struct Interrupted<'a> {
    remains: &'a str,
}

impl Concern for Interrupted<'_> {
    fn exit(&self) -> Exit {
        Exit::Interrupted
    }
}

impl Failure {
    /// Somebody pressed Ctrl-C, or told the run to terminate.
    pub fn interrupted() -> Failure {
        Interrupted { remains: "run the same command again to go on" }.into()
    }

    /// Adds a command that helps.
    pub fn hint(mut self, command: impl Into<String>) -> Failure {
        self.hints.push(command.into());
        self
    }

    /// Adds commands that help, at most two.
    pub fn hints(mut self, commands: impl IntoIterator<Item = String>) -> Failure {
        self.hints.extend(commands);
        self
    }

    /// Says first what the failure means for the user. After an interruption, that is all there is to say.
    pub fn meaning(self, meaning: impl Concern) -> Failure {
        match self.exit {
            Exit::Interrupted => self.if_interrupted(&meaning.to_string()),
            _ => Failure { exit: meaning.exit(), message: format!("{meaning}: {}", self.message), hints: self.hints },
        }
    }

    /// What somebody who interrupts the run has to know. Any other failure stays as it is.
    pub fn if_interrupted(self, remains: &str) -> Failure {
        match self.exit {
            Exit::Interrupted => Failure { message: Interrupted { remains }.to_string(), ..self },
            _ => self,
        }
    }

    /// The run has changed something already, so a missing precondition leaves it part-way: `on` goes on, `back` goes back.
    pub fn part_way(self, on: String, back: Option<String>) -> Failure {
        match self.exit {
            Exit::Precondition | Exit::Other => Failure { exit: Exit::PartWay, ..self }.hint(on).hints(back),
            _ => self,
        }
    }

    /// Whether CAS said no, rather than nothing or something unexpected.
    pub fn is_refusal(&self) -> bool {
        self.exit == Exit::Refused
    }

    /// Whether it stopped the run part-way.
    pub fn is_part_way(&self) -> bool {
        self.exit == Exit::PartWay
    }

    /// For a report: what is wrong, and the first command that helps.
    pub fn into_finding(self) -> (String, Option<String>) {
        (self.message, self.hints.into_iter().next())
    }

    /// The one place where errors are printed. Returns the exit code.
    pub fn print(&self) -> u8 {
        // Not eprintln!, which panics when standard error is closed: the exit code must survive that.
        let mut text = format!("{}: error: {}\n", crate::script(), self.message);
        text.extend(self.hints.iter().map(|command| format!("hint: {}\n", hint::pasteable(command))));
        let _ = io::stderr().write_all(text.as_bytes());
        self.exit as u8
    }
}
