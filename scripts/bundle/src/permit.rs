//! How often a program may be started, and who says so: what its gate says is left, what a start asks for, and what somebody
//! grants with a code of theirs.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::account::Account;
use crate::caller::{self, Given};
use crate::code::{Presentation, Source};
use crate::container::{BUDGET, GATE, GRANTS, Mount, Start};
use crate::failure::{Concern, Exit, Failure};
use crate::hint::{self, quoted};
use crate::policy::{Held, Versions, compare, upload_each};
use crate::program::{self, Volumes};
use crate::refusal::Answer;
use crate::session::Session;
use crate::state::{Approval, Permit, Program};
use crate::step;
use crate::tool::Finished;

/// No grant lasts longer: 31 days.
const LONGEST: Duration = Duration::from_secs(31 * 24 * 60 * 60);

#[derive(Debug, thiserror::Error)]
enum PermitError {
    #[error("no start of '{program}' is granted{what}")]
    NotGranted { program: String, what: String },
    #[error("'{file}' cannot be read: {cause}")]
    NotRead { file: String, cause: io::Error },
    #[error("a start of '{program}' takes no grant: it was not protected with '--needs-approval'")]
    NeedsNone { program: String },
    #[error("account '{account}' is not asked for starts of '{program}'")]
    NotAsked { account: String, program: String },
    #[error(
        "a gate stands before '{program}', which does not see its arguments: leave them out, the program alone is granted"
    )]
    Arguments { program: String },
    #[error("accounts '{account}' and '{owner}' are not with the same CAS")]
    AnotherCas { account: String, owner: String },
    #[error("a roll-forward of account '{account}' was begun but not finished")]
    RollForwardBegun { account: String },
    #[error("whether the grant was noted is not known: {reason}")]
    MayBeNoted { reason: String },
    #[error("of the {starts} starts of '{program}' none is left")]
    Spent { program: String, starts: u32 },
    #[error("'{argument}' is no file in what is mounted there")]
    NoFile { argument: String },
}

impl Concern for PermitError {
    fn exit(&self) -> Exit {
        use PermitError::*;
        match self {
            Arguments { .. } => Exit::Usage,
            NotGranted { .. } | Spent { .. } => Exit::Refused,
            MayBeNoted { .. } => Exit::PartWay,
            _ => Exit::Precondition,
        }
    }
}

/// What the gate says is left of a program's starts, and what was granted: one line each. It takes no code, and changes nothing.
pub(crate) fn left(account: &Account, name: &str, program: &Program, permit: &Permit) -> Result<Finished, Failure> {
    let mut volumes = Volumes::of(account, name);
    let mut sides = vec![(volumes.host(&program.starts_volume_name())?, BUDGET.to_owned())];
    if program.needs_approval() {
        sides.push((volumes.host(&program.grants_volume_name())?, GRANTS.to_owned()));
    }
    let start = Start { image_id: &permit.image_id, executable: GATE, volumes: &sides, ..Start::of(account) };
    let service = format!("{}/otpqr/left_{name}", account.state.namespace);
    account.tools.get_ready(&start, None)?.go(&service)
}

/// What was granted of a program's starts, and what became of it.
pub fn listed(owner: &mut Account, name: &str) -> Result<String, Failure> {
    let permit = needed(owner, name)?.clone();
    owner.check_cas()?;
    let program = program::known(owner, name)?;
    let finished = left(owner, name, program, &permit)?;
    if !finished.success() {
        return Err(program::explain(owner, name, &finished));
    }
    let said = finished.stdout.trim_end();
    Ok(if said.is_empty() { "nothing was granted".to_owned() } else { said.to_owned() })
}

/// Makes sure that somebody has granted a start, before a code is spent on it. Says what it asks for.
pub(crate) fn check_granted(
    account: &Account,
    name: &str,
    arguments: &[OsString],
    mounts: &[Mount],
) -> Result<(), Failure> {
    let program = program::known(account, name)?;
    let Some(permit) = program.permit.as_ref().filter(|_| program.needs_approval()) else { return Ok(()) };
    let (asked, _) = asked(program, arguments, mounts)?;
    if let Some(asked) = &asked {
        step(format!("it asks for a start for {asked}"));
    }
    step(format!("asking whether a start of '{name}' is granted"));
    let finished = left(account, name, program, permit)?;
    if !finished.success() {
        return Err(program::explain(account, name, &finished));
    }
    if let (Some(starts), true) = (permit.starts, finished.stdout.starts_with("0 ")) {
        let more = account.script("protect", &format!(" {name} --starts {}   # grants one more", starts + 1));
        return Err(Failure::from(PermitError::Spent { program: name.to_owned(), starts }).hint(more));
    }
    let (service, what) =
        (program::service(account, name), asked.as_ref().map_or(String::new(), |d| format!(" for {d}")));
    let good = format!(" of '{service}'{what}");
    if finished.stdout.lines().any(|line| line.starts_with("granted: ") && line.ends_with(&good)) {
        return Ok(());
    }
    let rest: String = mounts.iter().map(|mount| format!(" --mount {}", quoted(caller::option(mount)))).collect();
    let of = if account.name == "default" { String::new() } else { format!(" --of {}", account.name) };
    let words: String = arguments.iter().map(|word| format!(" {}", quoted(word.display()))).collect();
    let words = if asked.is_some() && !words.is_empty() { format!(" --{words}") } else { String::new() };
    let rest = format!(" {name}{of} --starts 1 --for 10m{rest}{words}");
    let hints = program.approvers().into_iter().map(|approver| hint::script("approve", approver, &rest));
    let refusal = Failure::from(PermitError::NotGranted { program: name.to_owned(), what });
    Err(refusal.hints(hints))
}

/// What a start asks for: the digest of the arguments and of the files that they name, as the program computes it
/// (programs/permit), and what each of these files is. `None`: a gate stands before it, which does not see them.
fn asked(
    program: &Program,
    arguments: &[OsString],
    mounts: &[Mount],
) -> Result<(Option<String>, Vec<String>), Failure> {
    if program.gate().is_some() {
        return Ok((None, Vec::new()));
    }
    let (mut digest, mut files) = (Sha256::new(), Vec::new());
    for word in program.command.iter().skip(1) {
        let given =
            word.strip_prefix("@@").and_then(|number| arguments.get(number.parse::<usize>().ok()?.checked_sub(1)?));
        let word = given.map_or(OsStr::new(word), OsString::as_os_str);
        digest.update(format!("{:x}", Sha256::digest(word.as_bytes())));
        if let Some(file) = of_host(program, word, mounts) {
            let content = of_file(&file)?;
            files.push(format!("'{}': sha256:{content}", word.display()));
            digest.update(format!(" {content}"));
        } else if program.mount_points.iter().any(|point| given.is_some() && Path::new(word).starts_with(point)) {
            // Its name alone would be granted.
            return Err(PermitError::NoFile { argument: word.display().to_string() }.into());
        }
        digest.update("\n");
    }
    Ok((Some(format!("sha256:{:x}", digest.finalize())), files))
}

/// The file of this host that an argument names, as far as the program sees it where something is mounted.
fn of_host(program: &Program, word: &OsStr, mounts: &[Mount]) -> Option<PathBuf> {
    let path = Path::new(&program.pwd).join(word);
    if path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    let host = mounts.iter().find_map(|mount| Some(mount.host.join(path.strip_prefix(&mount.inside).ok()?)));
    host.filter(|host| host.is_file())
}

fn of_file(path: &Path) -> Result<String, Failure> {
    let mut digest = Sha256::new();
    let read = File::open(path).and_then(|mut file| io::copy(&mut file, &mut digest));
    read.map_err(|cause| PermitError::NotRead { file: path.display().to_string(), cause })?;
    Ok(format!("{:x}", digest.finalize()))
}

/// How often, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Granted {
    /// How many starts
    #[arg(long, value_name = "K", required_unless_present = "list", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub starts: Option<u32>,
    /// For how long, from now on: '90s', '10m', '8h', '2days'; 31 days at most
    #[arg(long = "for", value_name = "TIME", required_unless_present = "list", value_parser = duration)]
    pub duration: Option<Time>,
}

/// A time, and how it was written.
#[derive(Debug, Clone)]
pub struct Time(Duration, String);

fn duration(text: &str) -> Result<Time, String> {
    let duration = humantime::parse_duration(text).map_err(|cause| cause.to_string())?;
    if (Duration::from_secs(1)..=LONGEST).contains(&duration) && duration.subsec_nanos() == 0 {
        Ok(Time(duration, text.to_owned()))
    } else {
        Err("must be whole seconds, from '1s' to '31days'".to_owned())
    }
}

/// What a program that needs approval says of it.
fn needed<'a>(owner: &'a Account, name: &str) -> Result<&'a Permit, Failure> {
    let program = program::known(owner, name)?;
    let permit = program.permit.as_ref().filter(|_| program.needs_approval());
    permit.ok_or_else(|| {
        let none = PermitError::NeedsNone { program: name.to_owned() };
        Failure::from(none).hint(owner.script("protect", &format!(" {name} --needs-approval ACCOUNT")))
    })
}

/// Grants starts of a program of `owner`'s, against a code of the account's. Returns what was noted.
pub fn grant(
    account: &mut Account,
    owner: &mut Account,
    given: &Given,
    granted: &Granted,
    source: &Source,
) -> Result<String, Failure> {
    let name = given.program.as_str();
    let permit = needed(owner, name)?.clone();
    if permit.approvers.get(&account.name) != Some(&account.state.namespace) {
        let not_asked = PermitError::NotAsked { account: account.name.clone(), program: name.to_owned() };
        let others: String = permit
            .approvers
            .keys()
            .filter(|name| **name != account.name)
            .map(|name| format!(" --needs-approval {name}"))
            .collect();
        if account.name == owner.name && !permit.without_code {
            return Err(not_asked.into());
        }
        let without = if permit.without_code { " --without-code" } else { "" };
        let rest = format!(" {name}{others} --needs-approval {}{without}   # asks it, too", account.name);
        return Err(Failure::from(not_asked).hint(owner.script("protect", &rest)));
    }
    owner.check_cas()?;
    account.check_cas()?;
    if account.state.cas.key != owner.state.cas.key || account.state.platform != owner.state.platform {
        let (account, owner) = (account.name.clone(), owner.name.clone());
        return Err(PermitError::AnotherCas { account, owner }.into());
    }
    if permit.counts_itself {
        program::check_program(owner, name, given.arguments.len(), false)?;
    } else if !(given.arguments.is_empty() && given.mount.is_empty()) {
        return Err(PermitError::Arguments { program: name.to_owned() }.into());
    } else {
        program::check_settled(owner, name)?;
    }
    let program = program::known(owner, name)?;
    let mounts = caller::check_mounts(owner, program, given)?;
    let (asked, files) = asked(program, &given.arguments, &mounts)?;
    if let Some(command) = account.state.finishing(&account.name) {
        let account = account.name.clone();
        return Err(Failure::from(PermitError::RollForwardBegun { account }).hint(command));
    }
    account.check_policies()?;
    program::check_gate(owner, name, &permit)?;
    let session = establish(account, owner, name, &permit)?;

    let mut volumes = Volumes::of(owner, name);
    let side = [(volumes.host(&program::known(owner, name)?.grants_volume_name())?, GRANTS.to_owned())];
    program::check_free(owner, name, side.iter().map(|(host, _)| host))?;
    let starts = granted.starts.unwrap_or(1);
    let (time, within) = granted.duration.clone().map_or_else(Default::default, |Time(time, text)| (time, text));
    let seconds = time.as_secs();
    let digest = asked.as_deref().unwrap_or("-");
    let arguments = [starts.to_string(), seconds.to_string(), digest.to_owned()].map(OsString::from);
    let start = Start {
        image_id: &permit.image_id,
        executable: GATE,
        arguments: &arguments,
        volumes: &side,
        ..Start::of(account)
    };
    let what = asked.as_ref().map_or(String::new(), |digest| format!(" for {digest}"));
    files.into_iter().for_each(step);
    let starts = if starts == 1 { "1 start".to_owned() } else { format!("{starts} starts") };
    step(format!("{starts} of '{name}' of account '{}', within {within}{what}", owner.name));
    let state = &account.state;
    let presentation = Presentation {
        account,
        source,
        prompt: format!("Code for '{}', '{}' to grant that", state.issuer, state.label()),
        start_takes: Duration::from_secs(1),
        spent: None,
        remains: "nothing was granted and no code was spent".to_owned(),
    };
    let get_ready = || account.tools.get_ready(&start, None);
    let service = format!("{session}/approve");
    let (finished, _) = presentation.make(&get_ready, &mut |gate, code| {
        account.check_unchanged()?;
        gate.go(&code.config_id(&service))
    })?;
    match finished.code {
        Some(0) => Ok(finished.stdout.trim_end().to_owned()),
        _ if Answer::is_of_start(&finished) => Err(program::explain(owner, name, &finished)),
        _ => {
            let listed = format!(" {name} --of {} --list", owner.name);
            let failure = Failure::from(PermitError::MayBeNoted { reason: finished.reason() });
            Err(failure.hint(hint::script("approve", "default", &listed)))
        }
    }
}

/// Makes CAS hold the session in which the account grants starts of a program, and session 1 export the code's secret to it.
/// Returns its name.
fn establish(account: &mut Account, owner: &Account, name: &str, permit: &Permit) -> Result<String, Failure> {
    let key = Session::Program(name.to_owned()).name(owner);
    let session = Session::Approval(key.clone()).name(account);
    let known = account.state.approvals.get(&key).and_then(|approval| approval.version.clone());
    let approval = Approval {
        account: owner.name.clone(),
        program: name.to_owned(),
        mrenclave: permit.mrenclave.clone(),
        volume_version: program::known(owner, name)?.volume_version,
        term: permit.term,
        version: known.clone(),
    };
    let is_recorded = approval.version.is_some() && account.state.approvals.get(&key) == Some(&approval);
    // A run may have been cut off between the two.
    if is_recorded && compare(account, &Session::Otpqr, &Versions::current(&account.state))? == Held::Same {
        return Ok(session);
    }
    let lock = account.lock()?.passed_on()?;
    let before = account.state.approvals.clone();
    // Of an account that was begun anew under the same name.
    let is_other = |other: &Approval| (&other.account, &other.program) != (&approval.account, &approval.program);
    let mut approvals: BTreeMap<String, Approval> = before.clone();
    approvals.retain(|_, other| is_other(other));
    approvals.insert(key.clone(), approval);
    account.state.approvals = approvals;
    account.record(&lock)?;
    let again = account.script("create", "   # goes on once that is mended");
    let uploaded = upload_each(account, &lock, &[Session::Approval(key.clone()), Session::Otpqr], &again);
    let is_as_before = account.state.approvals.get(&key).is_some_and(|approval| approval.version == known);
    if uploaded.as_ref().is_err_and(Failure::is_refusal) && is_as_before {
        // CAS said no to the first, and holds what it held.
        account.state.approvals = before;
        account.record(&lock)?;
    }
    uploaded?;
    Ok(session)
}
