//! One-time codes: asked for last, at the terminal, or read from a file; never an argument, never shown.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::account::Account;
use crate::failure::{Concern, Exit, Failure};
use crate::interrupt;
use crate::prompt::{self, is_interactive};
use crate::refusal::Answer;
use crate::step;
use crate::tool::Finished;

/// A time step, in seconds (RFC 6238 section 4.1).
const STEP: u64 = 30;
/// How often a person may try.
const TRIES: usize = 3;
/// No file that holds a code is so long, in bytes.
const LONGEST: u64 = 1024;

#[derive(Debug, thiserror::Error)]
enum CodeError {
    #[error("a code is exactly six digits")]
    Malformed,
    #[error("no code was entered")]
    NotEntered,
    #[error("a code is needed and there is no terminal to ask on: give {otherwise}")]
    NobodyToAsk { otherwise: &'static str },
    #[error("there is no '{file}' to read a code from")]
    NoFile { file: String },
    #[error("standard input holds one code: '--otp-file' and '--confirm-file' cannot both be '-'")]
    OneStandardInput,
    #[error("no code can be read from '{file}': {cause}")]
    Unreadable { file: String, cause: io::Error },
    #[error("that code was used already, by you or somebody else: wait for the next one: {reason}")]
    Used { reason: String },
    #[error("that code is wrong, or it changed before CAS saw it: enter the next one as soon as it appears: {reason}")]
    Late { reason: String },
    #[error(
        "that code is wrong; check that it is this account's entry and that the authenticator's clock is right: {reason}"
    )]
    Wrong { reason: String },
    #[error("too many wrong codes were given: {reason}")]
    TooMany { reason: String },
    #[error("no code was accepted")]
    NoneAccepted,
}

impl Concern for CodeError {
    fn exit(&self) -> Exit {
        use CodeError::*;
        match self {
            Malformed | NotEntered | NobodyToAsk { .. } | NoFile { .. } | OneStandardInput | Unreadable { .. } => {
                Exit::Usage
            }
            Used { .. } | Late { .. } | Wrong { .. } | TooMany { .. } | NoneAccepted => Exit::Refused,
        }
    }
}

/// Six digits that a start may present once.
pub struct Code(String);

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Code(..)")
    }
}

impl Code {
    /// `session/service@code`, for the one process that needs it.
    pub fn config_id(&self, service: &str) -> String {
        format!("{service}@{}", self.0)
    }

    /// A code that a program printed.
    pub fn dispensed(text: &str) -> Result<Code, Failure> {
        Ok(Code::parse(text)?)
    }

    /// Passes over white space, since authenticators show `123 456`, and over the byte order mark that editors put into files.
    fn parse(text: &str) -> Result<Code, CodeError> {
        let code: String = text.chars().filter(|c| !c.is_whitespace() && *c != '\u{feff}').collect();
        let is_code = code.len() == 6 && code.bytes().all(|c| c.is_ascii_digit());
        if is_code { Ok(Code(code)) } else { Err(CodeError::Malformed) }
    }
}

/// Where codes come from: a person, or a file.
#[derive(PartialEq, Eq)]
pub enum Source {
    Person,
    /// `-`: standard input.
    File(PathBuf),
}

impl Source {
    /// Fails early, before anything is prepared, if there is neither; `otherwise` says which option to give then.
    pub fn new(file: Option<&Path>, otherwise: &'static str) -> Result<Source, Failure> {
        match file {
            // Not opened yet: it may be a pipe.
            Some(path) if path != Path::new("-") && !path.exists() => {
                Err(CodeError::NoFile { file: path.display().to_string() }.into())
            }
            Some(path) => Ok(Source::File(path.to_owned())),
            None if is_interactive() => Ok(Source::Person),
            None => Err(CodeError::NobodyToAsk { otherwise }.into()),
        }
    }

    pub fn is_standard_input(&self) -> bool {
        *self == Source::File(PathBuf::from("-"))
    }
}

/// Makes sure that two codes do not come from the same standard input, which holds one.
pub fn check_sources(code: &Source, first: Option<&Source>) -> Result<(), Failure> {
    if code.is_standard_input() && first == Some(code) {
        return Err(CodeError::OneStandardInput.into());
    }
    Ok(())
}

/// A presentation of codes to CAS.
pub struct Presentation<'a> {
    pub account: &'a Account,
    pub source: &'a Source,
    /// Whose code it is.
    pub prompt: String,
    /// How long a start took, when there was no code yet.
    pub start_takes: Duration,
    /// The time step of a code that was spent already: the authenticator may still show it.
    pub spent: Option<u64>,
    /// What somebody who presses Ctrl-C has to know.
    pub remains: String,
}

impl Presentation<'_> {
    /// Gets ready, asks for a code, and starts something with it; a person may try again if the code was refused. Returns how the
    /// start ended - not refused because of its code - and the time step in which the code was entered.
    pub fn make<Ready>(
        self,
        get_ready: &dyn Fn() -> Result<Ready, Failure>,
        start: &mut dyn FnMut(Ready, &Code) -> Result<Finished, Failure>,
    ) -> Result<(Finished, u64), Failure> {
        let mut spent = self.spent;
        for tries_left in (0..TRIES).rev() {
            let ready = get_ready().map_err(|failure| failure.if_interrupted(&self.remains))?;
            let code = match self.source {
                Source::Person => self.ask(spent)?,
                Source::File(path) => prompt::wait_for(&self.remains, || read(path))??,
            };
            let entered = current_step();
            let finished = start(ready, &code)?;
            let answer = Answer::of(&finished);
            if finished.success() || !answer.is_about_code() {
                return Ok((finished, entered));
            }
            let refusal = self.refusal(answer, finished.reason(), entered)?;
            if *self.source != Source::Person || tries_left == 0 || answer == Answer::TooManyCodes {
                return Err(refusal.into());
            }
            step(refusal);
            if answer == Answer::CodeUsed {
                spent = Some(entered);
            }
        }
        Err(CodeError::NoneAccepted.into())
    }

    /// Asks the person, until what is typed can be a code: that is for us to say, and costs no try.
    fn ask(&self, spent: Option<u64>) -> Result<Code, Failure> {
        let mut without = 0;
        // An empty line may be Enter by mistake, or the end of input.
        while without < TRIES {
            self.wait_for_a_useful_code(spent).map_err(|failure| failure.if_interrupted(&self.remains))?;
            let question = format!("{} (changes in {} s)", self.prompt, seconds_left());
            let typed = prompt::ask_hidden(&question, &self.remains)?;
            without = if typed.is_empty() { without + 1 } else { 0 };
            match Code::parse(&typed) {
                Ok(code) => return Ok(code),
                Err(malformed) => step(malformed),
            }
        }
        Err(CodeError::NotEntered.into())
    }

    /// What to tell whose code was refused.
    fn refusal(&self, answer: Answer, reason: String, entered: u64) -> Result<CodeError, Failure> {
        Ok(match answer {
            Answer::CodeUsed => {
                let spent = self.account.tools.last_code_spent(&self.account.state.namespace)?;
                CodeError::Used { reason: reason + &spent.map_or_else(String::new, |(at, by)| when_spent(at, &by)) }
            }
            Answer::CodeInvalid if current_step() != entered => CodeError::Late { reason },
            Answer::CodeInvalid => CodeError::Wrong { reason },
            _ => CodeError::TooMany { reason },
        })
    }

    /// A code that was spent, or that will change before a start has used it, is not worth asking for.
    fn wait_for_a_useful_code(&self, spent: Option<u64>) -> Result<(), Failure> {
        if spent == Some(current_step()) {
            step(format!("the code shown now was used already: waiting {} s for the next one", seconds_left()));
            return wait_for_next_step();
        }
        let left = seconds_left();
        if is_enough(left, self.start_takes) {
            return Ok(());
        }
        let needed = self.start_takes.as_secs() + 1;
        let question =
            format!("The code changes in {left} s, the start takes about {needed} s. Wait for the next code?");
        if prompt::confirm(&question, true, &self.remains)? { wait_for_next_step() } else { Ok(()) }
    }
}

/// When, and by which service, the last code was spent.
fn when_spent(at: u64, service: &str) -> String {
    let (hours, minutes, seconds) = (at / 3600 % 24, at / 60 % 60, at % 60);
    let ago = match since_1970().as_secs().saturating_sub(at) {
        ago if ago < 3600 => String::new(),
        ago => format!(", {} h ago", ago / 3600),
    };
    format!(" (last spent at {hours:02}:{minutes:02}:{seconds:02} UTC{ago} by '{service}')")
}

fn read(path: &Path) -> Result<Code, CodeError> {
    let mut text = Vec::new();
    // More than any code, so that a wrong file is seen to be wrong without being read whole.
    let read = if path == Path::new("-") {
        io::stdin().take(LONGEST).read_to_end(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut text))
    };
    let length = read.map_err(|cause| CodeError::Unreadable { file: path.display().to_string(), cause })?;
    match String::from_utf8(text) {
        Ok(text) if (length as u64) < LONGEST => Code::parse(&text),
        _ => Err(CodeError::Malformed),
    }
}

pub(crate) fn since_1970() -> Duration {
    // A clock before 1970 is as wrong as can be: CAS will say so of the codes.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn current_step() -> u64 {
    since_1970().as_secs() / STEP
}

fn seconds_left() -> u64 {
    STEP - since_1970().as_secs() % STEP
}

/// Whether a code that changes in so many seconds is still good when a start that takes so long presents it.
fn is_enough(left: u64, start_takes: Duration) -> bool {
    Duration::from_secs(left) >= start_takes + Duration::from_secs(2)
}

fn wait_for_next_step() -> Result<(), Failure> {
    let now = current_step();
    while current_step() == now {
        sleep(Duration::from_millis(100));
        interrupt::check()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_six_digits_and_is_never_shown() {
        for malformed in ["", " ", "12345", "1234567", "123 4567", "12a456", "123-456", "123\u{0}456", "１２３４５６"]
        {
            assert!(Code::parse(malformed).is_err(), "{malformed}");
        }
        for spaced in
            ["123 456", " 1 2 3 4 5 6\r\n", "\u{feff}123456", "123\u{a0}456", "123\u{202f}456", "\t123\u{2009}456\n"]
        {
            assert_eq!(Code::parse(spaced).unwrap().0, "123456", "{spaced:?}");
        }
        let code = Code::parse("012345\n").unwrap();
        assert_eq!(code.config_id("n/otpqr"), "n/otpqr@012345");
        assert_eq!(format!("{code:?}"), "Code(..)");
    }

    #[test]
    fn a_code_is_waited_for_if_it_changes_before_a_start_has_used_it_and_two_seconds_more() {
        assert!(!is_enough(1, Duration::ZERO));
        assert!(!is_enough(4, Duration::from_millis(2_001)));
        assert!(is_enough(4, Duration::from_secs(2)));
        assert!(is_enough(2, Duration::ZERO));
    }
}
