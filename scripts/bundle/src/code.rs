//! One-time codes: asked for last, at the terminal, or read from a file; never an argument, never shown.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::child::Finished;
use super::outcome::{Failure, OTHER, REFUSED, USAGE, at_prompt, check_interrupted, is_interactive, step};
use super::platform::Tools;

/// A time step, in seconds (RFC 6238 section 4.1).
const STEP: u64 = 30;
/// How often a person may try.
const TRIES: usize = 3;

/// Six digits that a start may present once.
pub struct Code(String);

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Code(..)")
    }
}

impl Code {
    /// `session/service@code`, for the environment of the one process that needs it.
    pub fn config_id(&self, service: &str) -> String {
        format!("{service}@{}", self.0)
    }

    fn parse(text: &str) -> Result<Code, Failure> {
        let text = text.trim_ascii();
        match text.len() == 6 && text.bytes().all(|c| c.is_ascii_digit()) {
            true => Ok(Code(text.to_owned())),
            false => Err(Failure::new(USAGE, "a code is exactly six digits")),
        }
    }
}

/// Where codes come from: a person, or a file.
pub enum Source {
    Person,
    /// `-`: standard input.
    File(PathBuf),
}

impl Source {
    /// Fails early, before anything is prepared, if there is neither; `otherwise` says which option to give then.
    pub fn new(file: Option<&Path>, otherwise: &str) -> Result<Source, Failure> {
        match file {
            // Not opened yet: it may be a pipe.
            Some(path) if path != Path::new("-") && !path.exists() => {
                Err(Failure::new(USAGE, format!("there is no '{}' to read a code from", path.display())))
            }
            Some(path) => Ok(Source::File(path.to_owned())),
            None if is_interactive() => Ok(Source::Person),
            None => Err(Failure::new(
                USAGE,
                format!("a code is needed and there is no terminal to ask on: give {otherwise}"),
            )),
        }
    }
}

/// A presentation of codes to CAS.
pub struct Presentation<'a> {
    pub source: &'a Source,
    /// Whose code it is.
    pub prompt: String,
    /// How long a start took, when there was no code yet.
    pub takes: Duration,
    /// The time step of a code that was spent already: the authenticator may still show it.
    pub spent: Option<u64>,
    /// What somebody must know who presses Ctrl-C.
    pub remains: String,
    pub tools: &'a Tools,
    pub namespace: &'a str,
}

impl Presentation<'_> {
    /// Asks for a code and starts something with it; a person may try again if the code was refused. Returns how the start
    /// ended - not refused because of its code - and the time step in which the code was entered.
    pub fn make(self, start: &mut dyn FnMut(&Code) -> Result<Finished, Failure>) -> Result<(Finished, u64), Failure> {
        let mut spent = self.spent;
        for tries_left in (0..TRIES).rev() {
            let code = match self.source {
                Source::Person => {
                    self.wait_for_a_useful_code(spent).map_err(|failure| failure.leaving(&self.remains))?;
                    let prompt = format!("{} (changes in {} s)", self.prompt, seconds_left());
                    let asked =
                        at_prompt(&self.remains, "", || dialoguer::Password::new().with_prompt(prompt).interact());
                    let typed = asked.map_err(|dialoguer::Error::IO(cause)| match cause.kind() {
                        io::ErrorKind::Interrupted => Failure::interrupted().leaving(&self.remains),
                        _ => Failure::new(OTHER, format!("no code was entered: {cause}")),
                    })?;
                    match Code::parse(&typed) {
                        Err(failure) if tries_left == 0 => return Err(failure),
                        Err(_) => {
                            step("a code is exactly six digits");
                            continue;
                        }
                        Ok(code) => code,
                    }
                }
                // A pipe may be waited for.
                Source::File(path) => at_prompt(&self.remains, "", || read(path))?,
            };
            let entered = current_step();
            let finished = start(&code)?;
            let Some(advice) = advice(&finished, entered) else { return Ok((finished, entered)) };
            let mut refusal = format!("{advice}: {}", finished.reason());
            if finished.reason().contains(USED)
                && let Some((at, service)) = self.tools.last_code_spent(self.namespace)?
            {
                let (hours, minutes, seconds) = (at / 3600 % 24, at / 60 % 60, at % 60);
                let ago = match since_1970().as_secs().saturating_sub(at) {
                    ago if ago < 3600 => String::new(),
                    ago => format!(", {} h ago", ago / 3600),
                };
                refusal += &format!(" (last spent at {hours:02}:{minutes:02}:{seconds:02} UTC{ago} by '{service}')");
            }
            let may_retry =
                matches!(self.source, Source::Person) && tries_left > 0 && !finished.reason().contains(BACK_OFF);
            if !may_retry {
                return Err(Failure::new(REFUSED, refusal));
            }
            step(refusal);
            if finished.reason().contains(USED) {
                spent = Some(entered);
            }
        }
        Err(Failure::new(REFUSED, "no code was accepted"))
    }

    /// A code that was spent, or that will change before a start has used it, is not worth asking for.
    fn wait_for_a_useful_code(&self, spent: Option<u64>) -> Result<(), Failure> {
        if spent == Some(current_step()) {
            step(format!("the code shown now was used already: waiting {} s for the next one", seconds_left()));
            return wait_for_next_step();
        }
        let left = seconds_left();
        if is_enough(left, self.takes) {
            return Ok(());
        }
        let question = format!(
            "The code changes in {left} s, the start takes about {} s. Wait for the next code?",
            self.takes.as_secs() + 1
        );
        let asked =
            at_prompt(&self.remains, "", || dialoguer::Confirm::new().with_prompt(question).default(true).interact());
        match asked {
            Ok(true) => wait_for_next_step(),
            Ok(false) => Ok(()),
            Err(dialoguer::Error::IO(cause)) if cause.kind() == io::ErrorKind::Interrupted => {
                Err(Failure::interrupted())
            }
            Err(cause) => Err(Failure::new(OTHER, format!("no answer: {cause}"))),
        }
    }
}

const USED: &str = "One-time Password was already used";
const INVALID: &str = "One-time Password is invalid";
/// The simulator's, which slows guessing down.
const BACK_OFF: &str = "Too many wrong One-time Passwords";

/// Whether a start was refused because of its code.
pub fn is_refused(finished: &Finished) -> bool {
    let reason = finished.reason();
    [USED, INVALID, BACK_OFF].iter().any(|text| reason.contains(text))
}

/// What to tell whose code was refused; `None` if it was not.
fn advice(finished: &Finished, entered: u64) -> Option<&'static str> {
    let reason = finished.reason();
    if reason.contains(USED) {
        Some("that code was used already, by you or somebody else: wait for the next one")
    } else if reason.contains(INVALID) && current_step() != entered {
        Some("that code is wrong, or it changed before CAS saw it: enter the next one as soon as it appears")
    } else if reason.contains(INVALID) {
        Some("that code is wrong: is it this account's entry, and is the clock of the authenticator right?")
    } else if reason.contains(BACK_OFF) {
        Some("too many wrong codes were given")
    } else {
        None
    }
}

fn read(path: &Path) -> Result<Code, Failure> {
    let mut text = String::new();
    // More than any code, so that a wrong file is seen to be wrong without being read whole.
    let read = match path == Path::new("-") {
        true => io::stdin().take(64).read_to_string(&mut text),
        false => File::open(path).and_then(|file| file.take(64).read_to_string(&mut text)),
    };
    read.map_err(Failure::because(USAGE, format!("no code can be read from '{}'", path.display())))?;
    Code::parse(&text)
}

fn since_1970() -> Duration {
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
fn is_enough(left: u64, takes: Duration) -> bool {
    Duration::from_secs(left) >= takes + Duration::from_secs(2)
}

#[test]
fn a_code_is_waited_for_if_it_changes_before_a_start_has_used_it_and_two_seconds_more() {
    assert!(!is_enough(1, Duration::ZERO));
    assert!(!is_enough(4, Duration::from_millis(2_001)));
    assert!(is_enough(4, Duration::from_secs(2)));
    assert!(is_enough(2, Duration::ZERO));
}

fn wait_for_next_step() -> Result<(), Failure> {
    let now = current_step();
    while current_step() == now {
        sleep(Duration::from_millis(100));
        check_interrupted()?;
    }
    Ok(())
}
