//! From the QR code to an authenticator that is known to work: the picture is shown or delivered, CAS accepts a first code of
//! the new entry, and the picture is destroyed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser};

use crate::account::Account;
use crate::code::{Presentation, Source};
use crate::container::Start;
use crate::drawing::{AWAY, Modules, check_terminal, largest_size};
use crate::failure::{Concern, Exit, Failure};
use crate::hint;
use crate::interrupt;
use crate::issue::{Output, check_destination, destroy};
use crate::prompt::{self, is_interactive};
use crate::step;
use crate::tool::Finished;

#[derive(Debug, thiserror::Error)]
enum EnrolmentError {
    #[error("'--terminal' needs a terminal: the QR code must end up in no file or pipe")]
    NoTerminal,
    #[error("it cannot be drawn")]
    NotDrawn,
    #[error("{remains}")]
    Kept { remains: String },
    #[error("the QR code was issued, but no code of it was confirmed{kept}")]
    NotConfirmed { kept: String },
    #[error("{reason}")]
    NotStarted { reason: String },
}

impl Concern for EnrolmentError {
    fn exit(&self) -> Exit {
        match self {
            EnrolmentError::NoTerminal => Exit::Usage,
            EnrolmentError::Kept { .. } | EnrolmentError::NotConfirmed { .. } => Exit::PartWay,
            EnrolmentError::NotDrawn | EnrolmentError::NotStarted { .. } => Exit::Other,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where the QR code (SVG) is written
    #[arg(long, default_value = "qrcode.svg", value_parser = PathBufValueParser::new().try_map(not_a_stream))]
    output: PathBuf,
    /// Show the QR code on the terminal and write no file
    #[arg(long, conflicts_with_all = ["keep", "output"])]
    terminal: bool,
    /// Keep the QR code once it was scanned
    #[arg(long)]
    keep: bool,
    /// Do not ask for a first code of the new entry
    #[arg(long)]
    no_confirm: bool,
    /// Read that first code from FILE instead of asking; '-' is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "no_confirm")]
    confirm_file: Option<PathBuf>,
}

impl Options {
    /// Where the first code of the new entry comes from, if one is wanted. Refuses what can be refused before anything is spent.
    pub fn confirmation(&self) -> Result<Option<Source>, Failure> {
        if self.terminal && !is_interactive() {
            return Err(EnrolmentError::NoTerminal.into());
        }
        if self.no_confirm {
            return Ok(None);
        }
        Source::new(self.confirm_file.as_deref(), "'--confirm-file FILE' or '--no-confirm'").map(Some)
    }

    /// Prepares for the QR code to be issued, which can be done only once: also that it can be shown or delivered.
    pub fn prepare<'a>(&self, account: &'a Account) -> Result<Output<'a>, Failure> {
        let state = &account.state;
        match self.file() {
            Some(file) => check_destination(account, file)?,
            None => check_terminal(account, largest_size(&state.issuer, &state.label()))?,
        }
        Output::prepare(account, state.volume_version)
    }

    /// Where the QR code is delivered; `None`: it is shown.
    fn file(&self) -> Option<&Path> {
        (!self.terminal).then_some(self.output.as_path())
    }
}

/// An account whose QR code was issued just now.
pub struct Enrolment<'a> {
    pub account: &'a Account,
    pub options: &'a Options,
    /// Where the first code of the new entry comes from; `None`: it is not asked for.
    pub confirmation: Option<&'a Source>,
    /// How long the start took.
    pub start_took: Duration,
    /// The time step of the code it cost.
    pub spent: Option<u64>,
}

impl Enrolment<'_> {
    /// Takes the QR code to its user. Returns what to report.
    pub fn conclude(&self, output: Output) -> Result<String, Failure> {
        let (issuer, login) = (&self.account.state.issuer, self.account.state.label());
        let outcome = if self.confirmation.is_some() { "enrolled and confirmed" } else { "issued, not confirmed" };
        let fate = match self.options.file() {
            None => {
                self.show(output)?;
                let destroyed = Output::prepare(self.account, self.account.state.volume_version)?.destroy()?;
                self.confirm(None)?;
                format!("it was shown on the terminal; what the program wrote is {destroyed}")
            }
            Some(file) => self.hand_over(output, file)?,
        };
        Ok(format!("{outcome}: '{issuer}', '{login}'\nQR code: {fate}"))
    }

    /// Delivers the QR code to a file, and destroys that once it was scanned.
    fn hand_over(&self, output: Output, file: &Path) -> Result<String, Failure> {
        let (issuer, login) = (&self.account.state.issuer, self.account.state.label());
        output.deliver(file)?;
        step(format!("the QR code of '{issuer}', '{login}' is in '{}'", file.display()));
        interrupt::check().map_err(|failure| failure.if_interrupted(&remains(file)))?;
        self.confirm(Some(file))?;
        let is_seen = self.confirmation.is_some() || is_interactive();
        if self.options.keep || !is_seen {
            return Ok(format!("once it is scanned, destroy it: {}", hint::shred(file)));
        }
        if self.confirmation.is_none() {
            let show = "Scan it, then press Enter: the picture is destroyed ".to_owned();
            let kept = remains(file);
            let scanned = prompt::pause(show, "", &kept);
            scanned.map_err(|failure| failure.meaning(EnrolmentError::Kept { remains: kept.clone() }))?;
        }
        destroy(file)
    }

    /// Has CAS accept a code of the new entry, if that is wanted: then the authenticator is known to work.
    fn confirm(&self, file: Option<&Path>) -> Result<(), Failure> {
        let Some(source) = self.confirmation else { return Ok(()) };
        step("a first code of the new entry shows that it works; CAS accepts no code twice, so this one is spent");
        let account = self.account;
        let service = format!("{}/otpqr-reset/confirm", account.state.namespace);
        let presentation = Presentation {
            account,
            source,
            prompt: format!("Code shown for '{}', '{}'", account.state.issuer, account.state.label()),
            start_takes: self.start_took,
            spent: self.spent,
            remains: file.map_or_else(|| "the entry is not confirmed".to_owned(), remains),
        };
        let not_started = |finished: &Finished| {
            let reason = finished.reason();
            Failure::from(EnrolmentError::NotStarted { reason }).hints(account.remedy(&finished.stderr))
        };
        let start = Start::of(account);
        let get_ready = || {
            let ready = account.tools.get_ready(&start, None)?;
            if ready.has_ended() {
                return Err(not_started(&ready.go(&service)?));
            }
            Ok(ready)
        };
        let presented = presentation.make(&get_ready, &mut |ready, code| ready.go(&code.config_id(&service)));
        let confirmed =
            presented.and_then(|(finished, _)| if finished.success() { Ok(()) } else { Err(not_started(&finished)) });
        confirmed.map_err(|failure| {
            let kept = file.map_or_else(String::new, |file| format!("; the QR code is still in '{}'", file.display()));
            let failure = failure
                .meaning(EnrolmentError::NotConfirmed { kept })
                .hint(account.script("add_auth", " --output another.svg   # if the entry works after all"));
            match account.lock() {
                Ok(_) => failure.hint(account.script("roll_forward", "   # if it was not scanned")),
                // That explains it, and is no reason to give the secret up.
                Err(another_run) => {
                    step(another_run.into_finding().0);
                    failure
                }
            }
        })
    }

    /// Shows the QR code until its user says that it was scanned. Up to then it is kept, so that it can be shown again.
    fn show(&self, output: Output) -> Result<(), Failure> {
        let kept = output.waiting("run the same command again");
        let svg = output.read();
        // Nothing is held while a person is asked.
        drop(output);
        let show = || {
            let picture = Modules::of(&svg?).ok_or(EnrolmentError::NotDrawn)?;
            check_terminal(self.account, picture.size)?;
            let show = picture.draw("Scan it, then press Enter (Ctrl-C keeps it)");
            prompt::pause(show, AWAY, &kept)
        };
        let shown: Result<_, Failure> = show();
        shown.map_err(|failure| failure.meaning(EnrolmentError::Kept { remains: kept.clone() }))
    }
}

/// Checks an `--output`. Programs take `-` for standard output, also the one that is to destroy the picture.
fn not_a_stream(output: PathBuf) -> Result<PathBuf, &'static str> {
    let refused = "a QR code must end up in no stream; the file of that name is './-'";
    if output == Path::new("-") { Err(refused) } else { Ok(output) }
}

fn remains(file: &Path) -> String {
    format!("the QR code is still there; once it is scanned: {}", hint::shred(file))
}
