//! What doctor looks at, one function a check: this host, the files, CAS, the policies, the volume. None changes anything - but
//! the start of the service `check` initialises a volume that was never used.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::account::{Account, Found};
use crate::cli::is_not_found;
use crate::drawing::Modules;
use crate::failure::Failure;
use crate::finding::Finding;
use crate::hint::{pasteable, quoted, shred};
use crate::issue::Output;
use crate::permit;
use crate::policy::{self, DEBUG_MODE, Held, Versions, compare};
use crate::program;
use crate::refusal::Answer;
use crate::rotation;
use crate::session::Session;
use crate::state::{self, Permit, Program};
use crate::tool::{Tool, login_name};
use crate::{hint, step};

/// Clock, and who else is here. On a host that should be trusted there should be nobody.
pub fn host() -> Vec<Finding> {
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
pub fn files(found: &Found) -> Vec<Finding> {
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

/// A roll-forward that was cut off.
pub fn pending(found: &Found) -> Option<Finding> {
    let pending = found.state.pending.as_ref()?;
    let what = match (pending.undo, pending.uploads_done) {
        (true, _) => "is being undone; the old codes live",
        (false, 0 | 1) => "was cut off; whether the old codes live, the policies say",
        (false, _) => "was cut off after it had switched",
    };
    let finding = format!("a roll-forward {what} ({} of 3 uploads confirmed)", pending.uploads_done);
    Some(Finding::wrong("pending", finding, found.state.finishing(&found.name)))
}

/// Whether what was measured of each program is there.
pub fn programs(account: &Account) -> Vec<Finding> {
    let there = account.state.programs.iter().filter(|(_, program)| !program.removed);
    let look = |(name, program): (&String, &Program)| match program::check_image(account, name) {
        _ if program.pending => {
            let protect = account.script("protect", &format!(" {name}"));
            Finding::wrong("program", format!("'{name}': a run of 'protect' was cut off"), protect)
        }
        // In a container the measured one is started, whatever the name means now.
        Ok(()) if account.tools.is_another(&program.image, &program.made_of) => {
            let finding =
                format!("'{name}': image '{}' was rebuilt; the one that was measured is started", program.image);
            Finding::wrong("program", finding, account.script("protect", &format!(" {name}   # measures the new one")))
        }
        Ok(()) => Finding::ok("program", format!("'{name}': image '{}' is the one that was measured", program.image)),
        Err(failure) => Finding::refused("program", failure),
    };
    there.map(look).collect()
}

/// How many starts of a program are left, and who granted some, as the gate says.
pub fn starts(account: &Account, name: &str, program: &Program, permit: &Permit) -> Result<Finding, Failure> {
    let volumes = state::program_volumes(&account.root, &account.name, name);
    let nothing_granted = program.needs_approval().then_some("nothing is granted");
    if ![program.starts_volume_name(), program.grants_volume_name()].iter().any(|volume| volumes.join(volume).exists())
    {
        let starts = permit.starts.map_or("as many as are granted".to_owned(), |starts| format!("{starts} in all"));
        return Ok(Finding::ok("starts", format!("'{name}': {starts}, and none was taken on this host")));
    }
    step(format!("asking how many starts of '{name}' are left"));
    let finished = permit::left(account, name, program, permit)?;
    let reason = finished.reason();
    if !finished.success() {
        return Ok(match Answer::of(&finished) {
            Answer::Volume => {
                let anew = account.script("protect", &format!(" {name} --new-volumes"));
                Finding::wrong("starts", format!("'{name}': {reason}"), anew)
            }
            _ => Finding::unknown("starts", format!("'{name}': {reason}")),
        });
    }
    // What became of the others, approve.rs lists.
    let is_of_now = |line: &&str| line.starts_with("granted: ") || line.ends_with(" starts are left");
    let mut lines: Vec<&str> = finished.stdout.lines().filter(is_of_now).collect();
    if !lines.iter().any(|line| line.starts_with("granted: ")) {
        lines.extend(nothing_granted);
    }
    let said = format!("'{name}': {}", lines.join("; "));
    Ok(match permit.starts {
        Some(starts) if finished.stdout.starts_with("0 ") => {
            let more = format!(" {name} --starts {}   # grants one more", starts + 1);
            Finding::wrong("starts", said, account.script("protect", &more))
        }
        _ => Finding::ok("starts", said),
    })
}

/// Whether it is the CAS that was pinned, and answers.
pub fn cas(account: &mut Account) -> Result<Finding, Failure> {
    account.check_cas()?;
    let address = &account.state.cas.address;
    let args = ["session", "read", &format!("--cas={address}"), &account.state.namespace].map(Into::into);
    let answer = account.tools.scone(&args, None)?;
    // That there is no such session is an answer, too.
    Ok(if answer.success() || is_not_found(&answer) {
        Finding::ok("CAS", format!("'{address}' is there, and the one that was pinned"))
    } else {
        Finding::unknown("CAS", format!("'{address}' cannot be asked: {}", answer.reason()))
    })
}

/// What was weakened: how CAS was attested, and what the policies let pass.
pub fn weakened(account: &Account) -> Vec<Finding> {
    let mut findings = Vec::new();
    let state::State { attestation, tolerate, ignore_advisories, .. } = &account.state;
    findings.extend(attestation.weaknesses().into_iter().map(|what| Finding::wrong("CAS", what.to_owned(), None)));
    if let Some(tolerated) = policy::tolerated(&account.state) {
        let finding = format!("they tolerate: {tolerated}");
        let mut others = tolerate.clone();
        findings.push(if others.remove(DEBUG_MODE) {
            let none = if others.is_empty() { " --tolerate none" } else { "" };
            let options = format!("{none}{}", policy::options(&others, ignore_advisories));
            let mend = account.script("create", &format!("{options}   # once the program is signed for production"));
            let finding = finding + ": whoever runs the program can read everything in it";
            Finding::wrong("policies", finding, mend)
        } else {
            Finding::ok("policies", finding)
        });
    }
    findings
}

/// Whether CAS holds what the state says it does - or, while a roll-forward is under way, one of the things that it makes
/// CAS hold. With what the session then is about, if it is one of these.
pub fn policy(account: &Account, session: &Session) -> Result<(Finding, Option<Versions>), Failure> {
    let (state, name) = (&account.state, session.name(account));
    let mend = || {
        let create = session.uploading(account, "");
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
                let mend = match (&state.reset_hash, session.known(state).0) {
                    // It never got that far.
                    (None, _) => account.script("create", ""),
                    (Some(_), None) if !Session::OF_ACCOUNT.contains(session) => session.uploading(account, ""),
                    (Some(_), _) => account.script("roll_forward", " --cas-wiped"),
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
pub fn cas_clock(account: &Account) -> Result<Finding, Failure> {
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
pub fn volume(account: &Account, otpqr: Option<Versions>) -> Result<Finding, Failure> {
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
