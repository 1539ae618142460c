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
//! rustix = { version = "=1.1.6", features = ["fs", "process", "termios"] }
//! serde = { version = "=1.0.229", features = ["derive"] }
//! serde_json = "=1.0.154"
//! thiserror = "=2.0.21"
//! ```

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use bundle::account::{self, Account, Found};
use bundle::drawing::Modules;
use bundle::failure::{Concern, Exit, Failure};
use bundle::hint::{pasteable, quoted, shred};
use bundle::issue::Output;
use bundle::platform::Platform;
use bundle::policy::{Held, Session, Versions, compare};
use bundle::refusal::Answer;
use bundle::rotation;
use bundle::state::{self, Lock, State};
use bundle::tool::{Tool, login_name};
use bundle::{Report, hint, interrupt, step};
use clap::Parser;
use serde::Serialize;

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

/// In the order in which they are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Wrong,
    Unknown,
    Ok,
}

#[derive(Debug, Serialize)]
struct Finding {
    result: Verdict,
    check: &'static str,
    finding: String,
    /// The command that mends it, run by a shell where this script was called; none if that is not a command's to do.
    mend: Option<String>,
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

impl Finding {
    fn ok(check: &'static str, finding: impl Into<String>) -> Finding {
        Finding { result: Verdict::Ok, check, finding: finding.into(), mend: None }
    }

    fn wrong(check: &'static str, finding: impl Into<String>, mend: impl Into<Option<String>>) -> Finding {
        let mend: Option<String> = mend.into();
        let mend = mend.map(|commands| commands.split(" && ").map(pasteable).collect::<Vec<_>>().join(" && "));
        Finding { result: Verdict::Wrong, check, finding: finding.into(), mend }
    }

    fn unknown(check: &'static str, finding: impl Into<String>) -> Finding {
        Finding { result: Verdict::Unknown, check, finding: finding.into(), mend: None }
    }

    /// What a check of another script refuses with is a finding here.
    fn refused(check: &'static str, failure: Failure) -> Finding {
        let (finding, mend) = failure.into_finding();
        Finding::wrong(check, finding, mend)
    }

    fn is_ok(&self) -> bool {
        self.result == Verdict::Ok
    }

    fn line(&self) -> String {
        let result = match self.result {
            Verdict::Ok => "ok",
            Verdict::Wrong => "wrong",
            Verdict::Unknown => "?",
        };
        let mend = self.mend.as_ref().map_or_else(String::new, |command| format!(" -> {command}"));
        format!("{result:<6}{:<10}{}{mend}", self.check, self.finding)
    }
}

/// Everything, in the order in which the one rests on the other. What rests on something wrong is not looked at.
fn examine(options: &account::Named) -> Vec<Finding> {
    let mut findings = host();
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
    let mut findings = files(&found);
    findings.extend(pending(&found));
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
    findings.extend(at_cas(account, alone));
    findings
}

/// Clock, and who else is here. On a host that should be trusted there should be nobody.
fn host() -> Vec<Finding> {
    let clock = match Tool::find("timedatectl", None)
        .map(|tool| tool.run(&["show", "--property=NTPSynchronized", "--value"].map(Into::into), &[]))
    {
        Some(Ok(finished)) if finished.stdout.trim() == "yes" => {
            Finding::ok("clock", "the kernel's clock is synchronised")
        }
        Some(Ok(finished)) if finished.stdout.trim() == "no" => Finding::wrong(
            "clock",
            "the kernel's clock is not synchronised: codes may come too late or too early",
            "timedatectl set-ntp true".to_owned(),
        ),
        _ => Finding::unknown("clock", "whether the clock is synchronised: 'timedatectl' does not say"),
    };
    let me = rustix::process::geteuid().as_raw();
    let users = match Tool::find("who", None).map(|tool| tool.run(&[], &[])) {
        Some(Ok(finished)) if finished.success() => {
            let mut names: Vec<&str> =
                finished.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
            names.sort_unstable();
            names.dedup();
            // Where nobody keeps that book, it is empty: it would name at least us, or whoever it is that runs this.
            let kept = !names.is_empty();
            let own = login_name();
            names.retain(|name| Some(*name) != own.as_deref());
            match names.as_slice() {
                [] if kept => Finding::ok("users", format!("nobody else is logged in (you are uid {me})")),
                [] => Finding::unknown("users", "who else is logged in: 'who' names nobody, not even you"),
                others => {
                    let finding = format!("also logged in: {}; a QR code should not be shown now", others.join(", "));
                    // Sending somebody away is not for a line to paste.
                    Finding::wrong("users", finding, None)
                }
            }
        }
        _ => Finding::unknown("users", "who else is logged in: 'who' does not say"),
    };
    vec![clock, users]
}

/// State's permissions, and QR codes that lie about.
fn files(found: &Found) -> Vec<Finding> {
    let Found { root, name, state, .. } = found;
    let mut findings = Vec::new();
    for (path, most) in [(root.join("state"), 0o700), (root.join(state::file_of(name)), 0o600)] {
        let shown = path.display();
        findings.push(match fs::metadata(&path) {
            Ok(found) if found.mode() & 0o777 & !most == 0 => {
                Finding::ok("state", format!("'{shown}' is private ({:o})", found.mode() & 0o777))
            }
            Ok(found) => Finding::wrong(
                "state",
                format!("'{shown}' is open to others ({:o})", found.mode() & 0o777),
                format!("chmod {most:o} {}", quoted(path.display())),
            ),
            Err(cause) => Finding::unknown("state", format!("the permissions of '{shown}': {cause}")),
        });
    }
    let mut places = vec![root.clone()];
    places.extend(std::env::current_dir().ok().filter(|here| here != root));
    for place in places {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            let path = entry.path();
            if is_qr_code(&path) {
                let finding = format!("a QR code was left in '{}'", path.display());
                findings.push(Finding::wrong("files", finding, shred(&path) + "   # once it is scanned"));
            }
        }
    }
    if is_qr_code(&state::issuing_directory(root, state, state.volume_version).join("qrcode.svg")) {
        let finding = "a run was cut off: the QR code it had issued waits";
        findings.push(Finding::wrong("files", finding, hint::script("gen_qr", name, "")));
    }
    findings
}

/// Whether it is a picture as otpqr draws them.
fn is_qr_code(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "svg")
        && fs::read_to_string(path).is_ok_and(|svg| Modules::of(&svg).is_some())
}

fn pending(found: &Found) -> Option<Finding> {
    let pending = found.state.pending.as_ref()?;
    let what = match (pending.undo, pending.uploads_done) {
        (true, _) => "is being undone; the old codes live",
        (false, 0 | 1) => "was cut off; whether the old codes live, the policies say",
        (false, _) => "was cut off after it had switched",
    };
    let finding = format!("a roll-forward {what} ({} of 3 uploads confirmed)", pending.uploads_done);
    Some(Finding::wrong("pending", finding, found.state.finishing(&found.name)))
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
    answers.look("CAS", "CAS", || cas(account));
    if answers.findings.iter().any(|finding| finding.result == Verdict::Wrong) {
        return answers.findings;
    }
    let mut held = [None, None, None];
    for (session, held) in Session::ALL.into_iter().zip(&mut held) {
        answers.look("policies", &format!("'{}'", session.name(&account.state)), || {
            let (finding, versions) = policy(account, session)?;
            *held = versions;
            Ok(finding)
        });
    }
    let [_, otpqr, reset] = held;
    if account.state.pending.is_some() {
        answers.findings.push(match reset {
            Some(versions) if versions.secret == account.state.secret_version => {
                Finding::ok("codes", "the current codes still work")
            }
            Some(_) => Finding::ok("codes", "session 2 has switched: the old codes are dead"),
            None => Finding::unknown("codes", "which codes live: session 2 does not say"),
        });
    }
    // SCONE's does not tell the time.
    if account.state.platform != Platform::Scone {
        answers.look("clock", "CAS's clock", || cas_clock(account));
    }
    if alone.is_some() {
        // The start takes it for itself.
        drop(alone);
        answers.look("volume", "the volume", || volume(account, otpqr));
    }
    answers.findings
}

/// Whether it is the CAS that was pinned, and answers.
fn cas(account: &mut Account) -> Result<Finding, Failure> {
    account.check_cas()?;
    let address = &account.state.cas.address;
    let args = ["session", "read", &format!("--cas={address}"), &account.state.namespace].map(Into::into);
    let answer = account.tools.scone.run(&args, &[])?;
    Ok(match answer.code {
        // 2: there is no such session, which is an answer.
        Some(0 | 2) => Finding::ok("CAS", format!("'{address}' is there, and the one that was pinned")),
        _ => Finding::unknown("CAS", format!("'{address}' cannot be asked: {}", answer.reason())),
    })
}

/// Whether CAS holds what the state says it does - or, while a roll-forward is under way, one of the things that it makes
/// CAS hold. With what the session then is about, if it is one of these.
fn policy(account: &Account, session: Session) -> Result<(Finding, Option<Versions>), Failure> {
    let (state, name) = (&account.state, session.name(&account.state));
    let mend = || {
        let create = account.script("create", "");
        match state.finishing(&account.name) {
            None => create,
            // `create` leaves an account alone until what was begun is ended.
            Some(finishing) => format!("{finishing} && {create}"),
        }
    };
    for (what, versions) in rotation::expected(state) {
        match compare(account, session, &versions)? {
            Held::Same => {
                let finding = match session.known(state) {
                    (Some(_), None) => Finding::wrong(
                        "policies",
                        format!(
                            "CAS holds '{name}' {what}, but the state, of an older version, does not say since when"
                        ),
                        mend(),
                    ),
                    _ => Finding::ok("policies", format!("CAS holds '{name}' {what}")),
                };
                return Ok((finding, Some(versions)));
            }
            Held::Different => {}
            Held::Replaced => {
                let finding = format!("'{name}' is somebody else's version, or the state is an older copy");
                return Ok((Finding::wrong("policies", finding, mend()), None));
            }
            Held::Nothing => {
                let mend = match state.reset_hash {
                    // It never got that far.
                    None => account.script("create", ""),
                    Some(_) => account.script("roll_forward", " --cas-wiped"),
                };
                return Ok((Finding::wrong("policies", format!("CAS holds no '{name}'"), mend), None));
            }
            Held::Unknown(reason) => {
                return Ok((Finding::unknown("policies", format!("'{name}': {reason}")), None));
            }
        }
    }
    Ok((Finding::wrong("policies", format!("CAS holds another '{name}'"), mend()), None))
}

/// Whether CAS's clock agrees with this host's: its log has just recorded when it was asked.
fn cas_clock(account: &Account) -> Result<Finding, Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let Some(at) = account.tools.last_cas_time()? else {
        return Ok(Finding::unknown("clock", "CAS's clock: its log is empty"));
    };
    let off = at.abs_diff(now);
    if off <= 30 {
        return Ok(Finding::ok("clock", "CAS's clock agrees with this host's"));
    }
    let finding = format!("CAS's clock is {off} s off this host's: codes are refused");
    // Started without '--clock' it takes the host's.
    let simulator = Tool::find("scone-sim", Some(&account.root.join("simulator/bin")));
    let mend = simulator
        .map(|tool| quoted(tool.path.display()))
        .map(|simulator| format!("{simulator} down && {simulator} up"));
    Ok(Finding::wrong("clock", finding, mend))
}

/// The service `check` starts only if program and volume are right. `otpqr`: what the session it belongs to is about. If
/// that is not known, the volume it opens is not either: another one, opened on this one's files, would be damaged.
fn volume(account: &Account, otpqr: Option<Versions>) -> Result<Finding, Failure> {
    let Some(versions) = otpqr else {
        return Ok(Finding::unknown("volume", "not opened: session 1, which has it, is not as it should be"));
    };
    step("starting the program's service 'check'");
    let output = match Output::prepare_aside(account, versions.volume) {
        Ok(output) => output,
        Err(failure) => return Ok(Finding::unknown("volume", format!("not opened: {}", failure.into_finding().0))),
    };
    let finished = output.start(&format!("{}/otpqr/check", account.state.namespace))?;
    let (answer, reason) = (Answer::of(&finished), finished.reason());
    let keep = " --keep-secret   # without the authenticator: no --keep-secret";
    let keep = account.script("roll_forward", keep);
    let finishing = account.state.finishing(&account.name);
    Ok(match (&account.state.pending, finishing) {
        _ if finished.success() => Finding::ok("volume", "it is the one CAS knows, in its latest state"),
        // It says nothing about the volume, so it is no reason to give that up.
        _ if answer != Answer::Volume => {
            let reason = if answer == Answer::Host { finished.whole_reason() } else { reason };
            let mend = account.remedy(&finished.stderr).map(|command| pasteable(&command));
            Finding { mend, ..Finding::unknown("volume", format!("not opened: {reason}")) }
        }
        (Some(pending), Some(undo)) if pending.undo => Finding::wrong("volume", reason, format!("{undo} && {keep}")),
        // What was begun replaces it.
        (_, Some(finishing)) => Finding::wrong("volume", reason, finishing),
        (_, None) => Finding::wrong("volume", reason, keep),
    })
}
