#!/usr/bin/env -S sh -uc 'o=--;[ -d "${0%/*}/bundle" ]||o=-b$(realpath "$OTPQR_ROOT")/scripts;exec rust-script "$o" "$0" "$@"'
//! Says what is true of an account: compares state, CAS, policies, program, volume, clock and host.
//!
//! Why: in a bad night the first question is what is wrong, and the second which command mends it. It answers both, one line a
//! finding.
//! Limits: it changes nothing - but its start of the service `check` initialises a volume that was never used, and on the
//! simulator leaves a line in the audit log.
//!
//! ```cargo
//! [package]
//! version = "0.1.0"
//! edition = "2024"
//!
//! [dependencies]
//! # Not found? The script was copied: say where the bundle is: export OTPQR_ROOT=/path/to/the/checkout
//! bundle = { path = "bundle" }
//! clap = { version = "=4.6.7", features = ["derive"] }
//! serde_json = "=1.0.154"
//! thiserror = "=2.0.21"
//! ```

use std::process::ExitCode;

use bundle::account::{self, Account, Found};
use bundle::checks;
use bundle::failure::{Concern, Exit, Failure};
use bundle::finding::{Finding, Verdict};
use bundle::platform::Platform;
use bundle::session::Session;
use bundle::state::{Lock, State};
use bundle::{Report, interrupt, step};
use clap::Parser;

/// Say what is true of an account, and which command mends what is wrong
#[derive(Debug, Parser)]
#[command(
    name = "doctor",
    bin_name = "./scripts/doctor.rs",
    version,
    after_help = "\
Each line: RESULT CHECK FINDING -> COMMAND. The result is 'ok', 'wrong' or '?' (could not be found out); the command mends it.
What is wrong comes first, then what could not be found out; in the JSON, too.

Exit codes:
  0 all is well   2 usage   3 something is wrong or could not be found out, the report says what   130 interrupted   1 anything else

Examples:
  ./scripts/doctor.rs
  ./scripts/doctor.rs --account signing
  ./scripts/doctor.rs --json | jq '.[] | select(.result == \"wrong\")'"
)]
struct Args {
    #[command(flatten)]
    account: account::Named,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum DoctorError {
    #[error("the report cannot be written as JSON: {0}")]
    NoJson(serde_json::Error),
}

impl Concern for DoctorError {
    fn exit(&self) -> Exit {
        Exit::Other
    }
}

fn main() -> ExitCode {
    bundle::fresh!("doctor.rs");
    bundle::run(doctor)
}

fn doctor(args: &Args) -> Result<Report, Failure> {
    let mut findings = examine(&args.account);
    findings.sort_by_key(|finding| finding.result);
    interrupt::check()?;
    let text = if args.json {
        serde_json::to_string_pretty(&findings).map_err(DoctorError::NoJson)?
    } else {
        findings.iter().map(Finding::line).collect::<Vec<_>>().join("\n")
    };
    let all_is_well = findings.iter().all(Finding::is_ok);
    Ok(Report { text, exit: if all_is_well { 0 } else { Exit::Precondition as u8 } })
}

/// Everything, in the order in which the one rests on the other. What rests on something wrong is not looked at.
fn examine(options: &account::Named) -> Vec<Finding> {
    let mut findings = checks::host();
    match Account::read(options).and_then(|found| found.check_templates().map(|()| found)) {
        Ok(found) => findings.extend(examine_account(found)),
        Err(failure) => findings.push(Finding::refused("state", failure)),
    }
    findings
}

fn examine_account(found: Found) -> Vec<Finding> {
    // What is found belongs together.
    let (alone, another_run) = match found.lock() {
        Ok(lock) => (Some(lock), None),
        Err(another_run) => (None, Some(another_run)),
    };
    let mut findings = checks::files(&found);
    findings.extend(checks::pending(&found));
    match found.with_tools() {
        Ok(mut account) => findings.extend(with_tools(&mut account, alone)),
        Err(failure) => findings.push(Finding::refused("tools", failure)),
    }
    if let Some(another_run) = another_run {
        // It may explain whatever is wrong, so nothing is mended beside it.
        findings.iter_mut().for_each(|finding| finding.mend = None);
        findings.push(Finding::unknown("runs", another_run.into_finding().0));
    }
    findings
}

/// `alone`: no other run is at work, and the program may be started.
fn with_tools(account: &mut Account, alone: Option<Lock>) -> Vec<Finding> {
    let State { platform, image, .. } = &account.state;
    let tools = Finding::ok("tools", format!("'scone' and the engine are those of platform '{platform}'"));
    let image = match account.check_image() {
        Ok(()) => Finding::ok("image", format!("'{image}' is the program that the state names")),
        Err(failure) => Finding::refused("image", failure),
    };
    let alone = alone.filter(|_| image.is_ok());
    let mut findings = vec![tools, image];
    findings.extend(checks::programs(account));
    findings.extend(at_cas(account, alone));
    findings
}

/// What is found out by asking CAS. One that does not answer lets `scone` wait for long, so it is asked no second time.
#[derive(Default)]
struct Answers {
    findings: Vec<Finding>,
    silent: bool,
}

impl Answers {
    fn look(&mut self, check: &'static str, at: &str, look: impl FnOnce() -> Result<Finding, Failure>) {
        // After Ctrl-C there is nobody who waits for the report.
        let finding = if self.silent || interrupt::is_interrupted() {
            Finding::unknown(check, format!("{at}: not looked at, since CAS could not be asked"))
        } else {
            look().unwrap_or_else(|failure| Finding::refused(check, failure))
        };
        self.silent |= finding.result == Verdict::Unknown;
        self.findings.push(finding);
    }
}

/// What CAS says, and what rests on it. `alone`: the image is the right one, and no other run is at work.
fn at_cas(account: &mut Account, alone: Option<Lock>) -> Vec<Finding> {
    let mut answers = Answers::default();
    step("asking CAS what it holds");
    answers.look("CAS", "CAS", || checks::cas(account));
    if answers.findings.iter().any(|finding| finding.result == Verdict::Wrong) {
        return answers.findings;
    }
    let (mut otpqr, mut ask_for_codes) = (None, Vec::new());
    for session in Session::all(&account.state) {
        answers.look("policies", &format!("'{}'", session.name(account)), || {
            let (finding, versions) = checks::policy(account, &session)?;
            match session {
                Session::Otpqr => otpqr = versions,
                Session::Reset | Session::Person(_) | Session::Approval(_) => ask_for_codes.push(versions),
                _ => {}
            }
            Ok(finding)
        });
    }
    if account.state.pending.is_some() {
        let secrets: Option<Vec<u32>> = ask_for_codes.into_iter().map(|held| Some(held?.secret)).collect();
        let is_old = |secret: &u32| *secret == account.state.secret_version;
        answers.findings.push(match secrets.as_deref() {
            Some(secrets) if secrets.iter().all(is_old) => Finding::ok("codes", "the current codes still work"),
            Some(secrets) if secrets.iter().any(is_old) => {
                let finding = "the old codes are dead for some, but programs still take them";
                Finding::wrong("codes", finding, account.state.finishing(&account.name))
            }
            Some(_) => Finding::ok("codes", "session 2 has switched: the old codes are dead"),
            None => Finding::unknown("codes", "which codes live: session 2, or a program's, does not say"),
        });
    }
    answers.findings.extend(checks::weakened(account));
    // SCONE's does not tell the time.
    if account.state.platform != Platform::Scone {
        answers.look("clock", "CAS's clock", || checks::cas_clock(account));
    }
    // Where nothing of it has changed.
    for (name, program) in account.state.programs.iter().filter(|(_, program)| !program.removed && !program.pending) {
        if let Some(permit) = &program.permit {
            let at = format!("'{name}'");
            answers.look("starts", &at, || checks::starts(account, name, program, permit));
        }
    }
    if alone.is_some() {
        // The start takes it for itself.
        drop(alone);
        answers.look("volume", "the volume", || checks::volume(account, otpqr));
    }
    answers.findings
}
