//! What the scripts share. A script is a page: its arguments, and a plan whose steps are here.
//!
//! | to read about | see |
//! |---|---|
//! | how a run begins and ends | [`mod@fresh`], [`run`], [`failure`], [`interrupt`], [`prompt`], [`hint`] |
//! | where things lie | [`root`], [`state`], [`account`] |
//! | what is run on this host | [`tool`], [`platform`], [`engine`], [`container`], [`image`], `handover` |
//! | CAS and what it holds | `cli`, [`cas`], [`session`], [`policy`], [`rotation`] |
//! | a start and its answer | [`code`], [`refusal`], [`host`] |
//! | a protected program | [`protection`], [`sconify`], [`program`], [`permit`], [`relay`] |
//! | what doctor looks at and finds | [`checks`], [`finding`] |
//! | the QR code's way to an authenticator | [`issue`], [`enrolment`], [`drawing`] |

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::Parser;

use failure::{Concern, Exit, Failure};

pub mod account;
pub mod caller;
pub mod cas;
pub mod checks;
mod cli;
pub mod code;
pub mod container;
pub mod drawing;
pub mod engine;
pub mod enrolment;
pub mod failure;
pub mod finding;
pub mod fresh;
mod handover;
pub mod hint;
pub mod host;
pub mod image;
pub mod interrupt;
pub mod issue;
pub mod permit;
pub mod platform;
pub mod policy;
pub mod program;
pub mod prompt;
pub mod protection;
pub mod refusal;
pub mod relay;
pub mod root;
pub mod rotation;
pub mod sconify;
pub mod service;
pub mod session;
pub mod state;
pub mod tool;

/// What a run that did not fail has to tell.
pub struct Report {
    /// Empty: nothing.
    pub text: String,
    /// 0 unless what it tells is that something is wrong.
    pub exit: u8,
}

impl From<String> for Report {
    fn from(text: String) -> Report {
        Report { text, exit: 0 }
    }
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("cannot handle Ctrl-C: {0}")]
    Signals(io::Error),
    #[error("done, but it cannot be reported on standard output: {0}")]
    Untold(io::Error),
}

impl Concern for RunError {
    fn exit(&self) -> Exit {
        Exit::Other
    }
}

/// The name of the script that runs. It stands before everything that is said on standard error.
static SCRIPT: OnceLock<String> = OnceLock::new();

/// The name of the script that runs.
pub fn script() -> &'static str {
    SCRIPT.get().map_or("", String::as_str)
}

/// Says what is being done: on standard error, since it is not a result.
pub fn step(what: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{}: {what}", script());
}

/// Runs a script: parses its arguments, carries its plan out, and turns the outcome into an exit code. What was done is printed
/// last, so that standard output stays empty when something fails.
pub fn run<Args: Parser, Told: Into<Report>>(plan: impl FnOnce(&Args) -> Result<Told, Failure>) -> ExitCode {
    SCRIPT.get_or_init(|| Args::command().get_name().to_owned());
    let args = Args::parse();
    let told = interrupt::handle().map_err(|cause| RunError::Signals(cause).into()).and_then(|()| {
        let report: Report = plan(&args)?.into();
        if !report.text.is_empty() {
            let written = writeln!(io::stdout(), "{}", report.text).and_then(|()| io::stdout().flush());
            written.map_err(RunError::Untold)?;
        }
        Ok(report.exit)
    });
    ExitCode::from(told.unwrap_or_else(|failure: Failure| failure.print()))
}
