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
//! tempfile = "=3.27.0"
//! ```

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use serde::Serialize;

use bundle::child::Tool;
use bundle::outcome::{Failure, OTHER, PRECONDITION, check_interrupted, conclude, here, quoted, step};
use bundle::platform::{Platform, Start, Tools};
use bundle::policy::{Held, Session, Versions, compare};
use bundle::state::State;
use bundle::{root, state};

/// Say what is true of an account, and which command mends what is wrong
#[derive(Debug, Parser)]
#[command(
    name = "doctor",
    bin_name = "./scripts/doctor.rs",
    version,
    after_help = "\
Each line: 'ok', 'wrong' or '?' (could not be found out) · what was looked at · what was found · the command that mends it.
What is wrong comes first, then what could not be found out; in the JSON, too.

Exit codes:
  0 all is well   2 usage   3 something is wrong or could not be found out, the report says what   130 interrupted   1 anything else

Examples:
  ./scripts/doctor.rs
  ./scripts/doctor.rs --account signing
  ./scripts/doctor.rs --json | jq '.[] | select(.result == \"wrong\")'"
)]
struct Args {
    /// The account
    #[arg(long, default_value = "default", value_parser = state::account_name)]
    account: String,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// The bundle's directory [default: OTPQR_ROOT, the script's parent, the current directory]
    #[arg(long)]
    root: Option<PathBuf>,
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
    let args = Args::parse();
    let mut all_is_well = true;
    let code = conclude("doctor", || {
        let mut findings = examine(&args);
        findings.sort_by_key(|finding| finding.result);
        all_is_well = findings.iter().all(Finding::is_ok);
        check_interrupted()?;
        match args.json {
            true => serde_json::to_string_pretty(&findings).map_err(Failure::because(OTHER, "no JSON")),
            false => Ok(findings.iter().map(Finding::line).collect::<Vec<_>>().join("\n")),
        }
    });
    if code == ExitCode::SUCCESS && !all_is_well { ExitCode::from(PRECONDITION) } else { code }
}

impl Finding {
    fn ok(check: &'static str, finding: impl Into<String>) -> Finding {
        Finding { result: Verdict::Ok, check, finding: finding.into(), mend: None }
    }

    fn wrong(check: &'static str, finding: impl Into<String>, mend: impl Into<Option<String>>) -> Finding {
        let mend: Option<String> = mend.into();
        let mend = mend.map(|commands| commands.split(" && ").map(here).collect::<Vec<_>>().join(" && "));
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
fn examine(args: &Args) -> Vec<Finding> {
    let mut findings = host();
    let (root, state) = match account(args) {
        Ok(found) => found,
        Err(failure) => {
            findings.push(Finding::refused("state", failure));
            return findings;
        }
    };
    findings.extend(files(args, &root, &state));
    findings.extend(pending(args, &state));
    let tools = match state.platform.tools(&root, &args.account) {
        Ok(tools) => tools,
        Err(failure) => {
            findings.push(Finding::refused("tools", failure));
            return findings;
        }
    };
    findings.push(Finding::ok("tools", format!("'scone' and the engine are those of platform '{}'", state.platform)));
    let image = match tools.check_image(&state.image, &state.image_id, &state.mrenclave) {
        Ok(()) => Finding::ok("image", format!("'{}' is the program that the state names", state.image)),
        Err(failure) => Finding::refused("image", failure),
    };
    let can_start = image.is_ok();
    findings.push(image);
    findings.extend(Account { args, root, state, tools }.at_cas(can_start));
    findings
}

fn account(args: &Args) -> Result<(PathBuf, State), Failure> {
    let (root, _, state) = state::existing(args.root.as_deref(), &args.account)?;
    let root = root::find(Some(&root), Path::new("templates"), None)?;
    Ok((root, state))
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
            let own = std::env::var("LOGNAME").or_else(|_| std::env::var("USER")).unwrap_or_default();
            names.retain(|name| *name != own);
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
fn files(args: &Args, root: &Path, state: &State) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, most) in [(root.join("state"), 0o700), (root.join(state::file_of(&args.account)), 0o600)] {
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
    let mut places = vec![root.to_owned()];
    places.extend(std::env::current_dir().ok().filter(|here| here != root));
    for place in places {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            let path = entry.path();
            if is_qr_code(&path) {
                let finding = format!("a QR code lies about: '{}'", path.display());
                findings.push(Finding::wrong("files", finding, format!("shred -n 3 -z -u {}", quoted(path.display()))));
            }
        }
    }
    if is_qr_code(&state::issuing_directory(root, state).join("qrcode.svg")) {
        let finding = "a run was cut off: the QR code it had issued waits";
        findings.push(Finding::wrong("files", finding, format!("./scripts/gen_qr.rs{}", state::option(&args.account))));
    }
    findings
}

/// As otpqr draws them.
fn is_qr_code(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "svg")
        && fs::read_to_string(path).is_ok_and(|svg| svg.contains("shape-rendering=\"crispEdges\""))
}

fn pending(args: &Args, state: &State) -> Option<Finding> {
    let pending = state.pending.as_ref()?;
    let what = match (pending.undo, pending.uploads_done) {
        (true, _) => "is being undone; the old codes live",
        (false, 0 | 1) => "was cut off; whether the old codes live, the policies say",
        (false, _) => "was cut off after it had switched",
    };
    let finding = format!("a roll-forward {what} ({} of 3 uploads confirmed)", pending.uploads_done);
    Some(Finding::wrong("pending", finding, state.finishing(&args.account)))
}

/// An account whose state could be read and whose tools are there.
struct Account<'a> {
    args: &'a Args,
    root: PathBuf,
    state: State,
    tools: Tools,
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
        let finding = match self.silent || check_interrupted().is_err() {
            true => Finding::unknown(check, format!("{at}: not looked at, since CAS could not be asked")),
            false => look().unwrap_or_else(|failure| Finding::refused(check, failure)),
        };
        self.silent |= finding.result == Verdict::Unknown;
        self.findings.push(finding);
    }
}

impl Account<'_> {
    /// What CAS says, and what rests on it. `can_start`: the image is the right one.
    fn at_cas(&self, can_start: bool) -> Vec<Finding> {
        let mut answers = Answers::default();
        step("asking CAS what it holds");
        answers.look("CAS", "CAS", || self.cas());
        if answers.findings.iter().any(|finding| finding.result == Verdict::Wrong) {
            return answers.findings;
        }
        let mut held = [None, None, None];
        for (session, held) in [Session::Namespace, Session::Otpqr, Session::Reset].into_iter().zip(&mut held) {
            answers.look("policies", &format!("'{}'", session.name(&self.state)), || {
                let (finding, versions) = self.policy(session)?;
                *held = versions;
                Ok(finding)
            });
        }
        let [_, otpqr, reset] = held;
        if self.state.pending.is_some() {
            answers.findings.push(match reset {
                Some(versions) if versions.secret == self.state.secret_version => {
                    Finding::ok("codes", "the codes in use live")
                }
                Some(_) => Finding::ok("codes", "session 2 has switched: the old codes are dead"),
                None => Finding::unknown("codes", "which codes live: session 2 does not say"),
            });
        }
        // SCONE's does not tell the time.
        if self.state.platform != Platform::Scone {
            answers.look("clock", "CAS's clock", || self.cas_clock());
        }
        if can_start {
            answers.look("volume", "the volume", || self.volume(otpqr));
        }
        answers.findings
    }

    /// Whether it is the CAS that was pinned, and answers.
    fn cas(&self) -> Result<Finding, Failure> {
        self.tools.check_cas(&self.state.cas)?;
        let address = &self.state.cas.address;
        let args = ["session", "read", &format!("--cas={address}"), &self.state.namespace].map(Into::into);
        let answer = self.tools.scone.run(&args, &[])?;
        Ok(match answer.code {
            // 2: there is no such session, which is an answer.
            Some(0 | 2) => Finding::ok("CAS", format!("'{address}' is there, and the one that was pinned")),
            _ => Finding::unknown("CAS", format!("'{address}' cannot be asked: {}", answer.reason())),
        })
    }

    /// Whether CAS holds what the state says it does - or, while a roll-forward is under way, one of the things that it makes
    /// CAS hold. With what the session then is about, if it is one of these.
    fn policy(&self, session: Session) -> Result<(Finding, Option<Versions>), Failure> {
        let (state, name) = (&self.state, session.name(&self.state));
        let option = state::option(&self.args.account);
        for (what, versions) in expected(state) {
            match compare(&self.tools, &self.root, session, state, &versions)? {
                Held::Same => {
                    let finding = Finding::ok("policies", format!("CAS holds '{name}' {what}"));
                    return Ok((finding, Some(versions)));
                }
                Held::Different => {}
                Held::Nothing => {
                    let mend = match state.reset_hash {
                        // It never got that far.
                        None => format!("./scripts/create.rs{option}"),
                        Some(_) => format!("./scripts/roll_forward.rs{option} --cas-wiped"),
                    };
                    return Ok((Finding::wrong("policies", format!("CAS holds no '{name}'"), mend), None));
                }
                Held::Unknown(reason) => {
                    return Ok((Finding::unknown("policies", format!("'{name}': {reason}")), None));
                }
            }
        }
        let create = format!("./scripts/create.rs{option}");
        let mend = match state.finishing(&self.args.account) {
            None => create,
            // `create` leaves an account alone until what was begun is ended.
            Some(finishing) => format!("{finishing} && {create}"),
        };
        Ok((Finding::wrong("policies", format!("CAS holds another '{name}'"), mend), None))
    }

    /// Whether CAS's clock, which just told when it was asked, goes with this host's.
    fn cas_clock(&self) -> Result<Finding, Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let Some(at) = self.tools.last_cas_time()? else {
            return Ok(Finding::unknown("clock", "CAS's clock: its log is empty"));
        };
        let off = at.abs_diff(now);
        if off <= 30 {
            return Ok(Finding::ok("clock", "CAS's clock goes with this host's"));
        }
        let finding = format!("CAS's clock is {off} s off this host's: codes are refused");
        // Started without '--clock' it takes the host's.
        let simulator = Tool::find("scone-sim", Some(&self.root.join("simulator/bin")));
        let mend = simulator
            .map(|tool| quoted(tool.path.display()))
            .map(|simulator| format!("{simulator} down && {simulator} up"));
        Ok(Finding::wrong("clock", finding, mend))
    }

    /// The service `check` starts only if program and volume are right. `otpqr`: what the session it belongs to is about. If
    /// that is not known, the volume it opens is not either: another one, opened on this one's files, would be damaged.
    fn volume(&self, otpqr: Option<Versions>) -> Result<Finding, Failure> {
        let Some(versions) = otpqr else {
            return Ok(Finding::unknown("volume", "not opened: session 1, which has it, is not as it should be"));
        };
        step("starting the program's service 'check'");
        let (volume, made) = state::volume_directory(&self.root, &self.args.account, versions.volume)?;
        let output = tempfile::tempdir().map_err(Failure::because(OTHER, "no temporary directory"))?;
        let finished = self.tools.start(&Start {
            config_id: &format!("{}/otpqr/check", self.state.namespace),
            cas: &self.state.cas,
            image_id: &self.state.image_id,
            directories: Some((&volume, output.path())),
        })?;
        // Looking leaves no empty directory where one that was moved away is to be moved back to.
        if made {
            let _ = fs::remove_dir(&volume);
        }
        let reason = finished.reason();
        let is_about_volume = finished.stderr.contains("[SCONE|FATAL]")
            && [
                "suspected replay attack",
                "file system protection file",
                "Verification of file chunk",
                "is not part of this volume",
            ]
            .iter()
            .any(|text| reason.contains(text));
        let keep = format!(
            "./scripts/roll_forward.rs{} --keep-secret   # without the authenticator: no --keep-secret",
            state::option(&self.args.account)
        );
        let finishing = self.state.finishing(&self.args.account);
        Ok(match (&self.state.pending, finishing) {
            _ if finished.success() => Finding::ok("volume", "it is the one CAS knows, in its latest state"),
            // It says nothing about the volume, so it is no reason to give that up.
            _ if !is_about_volume => Finding::unknown("volume", format!("not opened: {reason}")),
            (Some(pending), Some(undo)) if pending.undo => {
                Finding::wrong("volume", reason, format!("{undo} && {keep}"))
            }
            // What was begun replaces it.
            (_, Some(finishing)) => Finding::wrong("volume", reason, finishing),
            (_, None) => Finding::wrong("volume", reason, keep),
        })
    }
}

/// What a session may be about. While a roll-forward is under way that is what it was about before, what `roll_forward` makes
/// of it in between, and in the end. (The namespace is about none of it.)
fn expected(state: &State) -> Vec<(&'static str, Versions)> {
    let (volume, secret) = (state.volume_version, state.secret_version);
    let old = Versions::only(volume, secret);
    let Some(pending) = &state.pending else { return vec![("as it should be", old)] };
    let beside = |last: u32| Versions {
        volume,
        secret,
        declared_volumes: (volume..=last).collect(),
        declared_secrets: (secret..=pending.secret_version).collect(),
    };
    let mut expected = vec![
        ("as it was before the roll-forward", old),
        ("with the new declared beside the old", beside(pending.volume_version)),
        ("as the roll-forward leaves it", Versions::only(pending.volume_version, pending.secret_version)),
    ];
    // It took over from one that was to keep the secret.
    if pending.volume_version > volume + 1 {
        let kept = Versions { declared_secrets: vec![secret], ..beside(volume + 1) };
        expected.push(("with the volume that was begun beside the old", kept));
        expected.push(("on the volume that was begun", Versions::only(volume + 1, secret)));
    }
    expected
}
