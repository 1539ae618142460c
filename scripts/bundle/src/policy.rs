//! The policies: rendered from `templates/`, uploaded with the `scone` command line, compared with what CAS holds.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::account::Account;
use crate::cli::is_not_found;
use crate::container::is_sha256;
use crate::failure::{Concern, Exit, Failure};
use crate::program;
use crate::session::{NONE, Session, approval_name};
use crate::state::{Lock, Program, Secret, State, Version, label};
use crate::step;
use crate::tool::Finished;

#[derive(Debug, thiserror::Error)]
enum PolicyError {
    #[error("template '{template}' cannot be read: {cause}")]
    NotRead { template: String, cause: io::Error },
    #[error("template '{template}' cannot be rendered: {cause}")]
    NotRendered { template: String, cause: handlebars::RenderError },
    #[error("the policy cannot be written to a temporary file: {0}")]
    NoFile(io::Error),
    #[error("there is no program '{program}'")]
    NoProgram { program: String },
    #[error("secret '{secret}' of program '{program}' came from a file and is in CAS alone: give it again")]
    NotAtHand { program: String, secret: String },
    #[error("'scone session {subcommand}' did not print the hash of '{session}'")]
    NoHash { subcommand: &'static str, session: String },
    #[error("'scone session read' did not print session '{session}': {cause}")]
    NotShown { session: String, cause: serde_yaml::Error },
    #[error("CAS did not accept session '{session}': {reason}")]
    NotTaken { session: String, reason: String, exit: Exit },
    #[error("CAS at '{cas}' no longer holds session '{session}': it was wiped or restored")]
    Lost { cas: String, session: String },
    #[error("session '{session}' is somebody else's version, or the state is an older copy")]
    Replaced { session: String },
    #[error("CAS cannot be asked about session '{session}': {reason}")]
    NoAnswer { session: String, reason: String },
}

impl Concern for PolicyError {
    fn exit(&self) -> Exit {
        match self {
            PolicyError::NotTaken { exit, .. } => *exit,
            PolicyError::Replaced { .. } => Exit::Refused,
            PolicyError::NoHash { .. } | PolicyError::NotShown { .. } => Exit::Other,
            _ => Exit::Precondition,
        }
    }
}

/// What the services of a session use, and what the session declares: the two differ while a roll-forward is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions {
    pub volume: u32,
    pub secret: u32,
    pub declared_volumes: Vec<u32>,
    pub declared_secrets: Vec<u32>,
}

impl Versions {
    pub fn only(volume: u32, secret: u32) -> Versions {
        Versions { volume, secret, declared_volumes: vec![volume], declared_secrets: vec![secret] }
    }

    /// What the account is about as long as nothing is under way.
    pub fn current(state: &State) -> Versions {
        Versions::only(state.volume_version, state.secret_version)
    }
}

/// What a policy can tolerate of a host's or a program's weaknesses (reference/scone.md 2.10), but for what only Azure's attestation knows.
const TOLERABLE: [&str; 8] = [
    DEBUG_MODE,
    "hyperthreading",
    "insecure-igpu",
    "software-hardening-needed",
    "aepic-leak",
    "insecure-configuration",
    "outdated-tcb",
    "local-attestation-trust-cas-tcb",
];

/// Everything can be read in such an enclave.
pub const DEBUG_MODE: &str = "debug-mode";

/// Takes away what was given before.
const NOTHING: &str = "none";

/// What the policies let pass.
#[derive(Debug, clap::Args)]
pub struct Tolerance {
    /// Tolerate a weakness of the hosts or of the program: 'hyperthreading', 'outdated-tcb', …; 'none' takes back what was
    /// tolerated. 'debug-mode' is for tests: everything in such an enclave can be read
    #[arg(long, value_name = "WEAKNESS", value_parser = tolerable, help_heading = TOLERANCE)]
    tolerate: Vec<String>,
    /// Ignore one of Intel's advisories about the hosts: 'INTEL-SA-00161'; 'none' takes back what was ignored
    #[arg(long, value_name = "ADVISORY", value_parser = advisory, help_heading = TOLERANCE)]
    ignore_advisory: Vec<String>,
}

const TOLERANCE: &str = "What the policies let pass (recorded; given anew, all are replaced)";

impl Tolerance {
    /// Whether programs are let pass that are not signed for production; `before`: what was tolerated until now.
    pub fn is_for_debugging(&self, before: Option<&State>) -> bool {
        let has = |what: &String| what == DEBUG_MODE;
        if self.tolerate.is_empty() {
            return before.is_some_and(|state| state.tolerate.iter().any(has));
        }
        self.tolerate.iter().any(has)
    }

    /// Makes an account tolerate just that; what is not given stays.
    pub fn apply(&self, state: &mut State) {
        let before = (state.tolerate.clone(), state.ignore_advisories.clone());
        for (given, known) in
            [(&self.tolerate, &mut state.tolerate), (&self.ignore_advisory, &mut state.ignore_advisories)]
        {
            if !given.is_empty() {
                *known = given.iter().filter(|what| *what != NOTHING).cloned().collect();
            }
        }
        if (&before.0, &before.1) == (&state.tolerate, &state.ignore_advisories) {
            return;
        }
        // What everybody may start lies where the files' secrets do, which are in CAS alone.
        let has_given = |program: &&mut Program| program.secrets.values().any(|from| from.is_given());
        let open = state.programs.values_mut().filter(|program| !program.removed && !program.open.is_empty());
        open.filter(has_given).for_each(|program| program.pending = true);
    }
}

/// What the policies of an account let pass, if anything.
pub fn tolerated(state: &State) -> Option<String> {
    let all: Vec<&str> = state.tolerate.iter().chain(&state.ignore_advisories).map(String::as_str).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// What create.rs is told to have just this tolerated, and ignored.
pub fn options(tolerate: &BTreeSet<String>, ignore_advisories: &BTreeSet<String>) -> String {
    let tolerate = tolerate.iter().map(|what| format!(" --tolerate {what}"));
    tolerate.chain(ignore_advisories.iter().map(|what| format!(" --ignore-advisory {what}"))).collect()
}

/// Whether policies can tolerate what is called so.
pub fn is_weakness(name: &str) -> bool {
    TOLERABLE.contains(&name)
}

/// Checks a `--tolerate`.
pub fn tolerable(text: &str) -> Result<String, String> {
    if is_weakness(text) || text == NOTHING {
        return Ok(text.to_owned());
    }
    Err(format!("must be one of {}, or '{NOTHING}'", TOLERABLE.join(", ")))
}

/// Checks an `--ignore-advisory`.
pub fn advisory(text: &str) -> Result<String, String> {
    let number = text.strip_prefix("INTEL-SA-").filter(|number| number.bytes().all(|c| c.is_ascii_digit()));
    if number.is_some_and(|number| number.len() == 5) || text == NOTHING {
        return Ok(text.to_owned());
    }
    Err(format!("must be INTEL-SA- and five digits, or '{NOTHING}'"))
}

/// Checks an issuer or a login. A colon separates the two in a Key URI; a `$` would be taken for a variable by `scone`.
pub fn label_part(text: &str) -> Result<String, &'static str> {
    let is_trimmed = text.trim() == text && !text.is_empty();
    if !is_trimmed || text.contains([':', '$']) || text.chars().any(char::is_control) {
        return Err("must not be empty, hold ':' or '$' or a control character, nor begin or end with a space");
    }
    if text.chars().any(deceives) {
        return Err("must not hold invisible characters, nor such as change the direction of text");
    }
    Ok(text.to_owned())
}

/// Whether a character makes people see something else than what is there, on a terminal or in an authenticator: breaks, marks
/// of direction, tags, and what is blank without being a space. Also what Unicode sets aside to be no character at all, which
/// policies cannot hold. (The joiners U+200C and U+200D are part of how names are written.)
pub fn deceives(c: char) -> bool {
    let is_no_character = matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    is_no_character
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Makes sure that a session's policy can be rendered whole: what came from a file is in CAS alone.
pub fn at_hand(account: &Account, session: &Session) -> Result<(), Failure> {
    let Session::Program(program) = session else { return Ok(()) };
    // One that was removed has none in its policy.
    let there = account.state.programs.get(program).filter(|program| !program.removed);
    let given = there.into_iter().flat_map(|program| &program.secrets).filter(|(_, from)| from.is_given());
    let missing: Vec<(&String, &Secret)> =
        given.filter(|(secret, _)| !account.given.contains_key(&(program.clone(), (*secret).clone()))).collect();
    let Some((secret, _)) = missing.first() else { return Ok(()) };
    let options: String = missing.iter().map(|(secret, from)| format!(" --secret {secret}={}", from.file())).collect();
    let again = account.script("protect", &format!(" {program}{options}"));
    let (program, secret) = (program.clone(), (*secret).clone());
    Err(Failure::from(PolicyError::NotAtHand { program, secret }).hint(again))
}

/// Renders a session's policy as it is uploaded next. Strict: a value the template names and we do not give is an error.
pub fn render(account: &Account, session: &Session, versions: &Versions) -> Result<String, Failure> {
    render_after(session.known(&account.state).0.unwrap_or(NONE), account, session, versions)
}

fn render_after(
    predecessor: &str,
    account: &Account,
    session: &Session,
    versions: &Versions,
) -> Result<String, Failure> {
    let state = &account.state;
    let path = account.root.join("templates").join(session.template());
    let shown = || path.display().to_string();
    let template = fs::read_to_string(&path).map_err(|cause| PolicyError::NotRead { template: shown(), cause })?;
    let mut handlebars = handlebars::Handlebars::new();
    handlebars.set_strict_mode(true);
    // Every value stands between double quotes; JSON's escapes are valid there in YAML too.
    handlebars.register_escape_fn(|value| {
        let quoted = Value::from(value).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    });
    let there = || state.programs.iter().filter(|(_, program)| !program.removed);
    let mut values = json!({
        "namespace": state.namespace,
        "language": state.language,
        "predecessor": predecessor,
        "mrenclave": state.mrenclave,
        "issuer": state.issuer,
        "login": label(&state.login, versions.secret),
        "volume_version": versions.volume,
        "secret_version": versions.secret,
        "volume_versions": versions.declared_volumes,
        "secret_versions": versions.declared_secrets,
        "person": account.name,
        "tolerate": state.tolerate,
        "ignore_advisories": state.ignore_advisories,
        "programs": there().filter(|(_, program)| !program.is_without_code()).map(|(name, _)| name).collect::<Vec<_>>(),
        "permits": there().filter_map(|(name, program)| of_permit(account, name, program)).collect::<Vec<_>>(),
        "approvals": state.approvals.keys().map(|owner| Session::Approval(owner.clone()).name(account)).collect::<Vec<_>>(),
    });
    if let Some(name) = session.program() {
        values["program"] = name.into();
        values["own"] = of_program(account, name)?;
    }
    if let Session::Approval(owner) = session {
        values["own"] = of_approval(account, owner)?;
    }
    let rendered = handlebars.render_template(&template, &values);
    Ok(rendered.map_err(|cause| PolicyError::NotRendered { template: shown(), cause })?)
}

/// What the policies of a program say of it.
fn of_program(account: &Account, name: &str) -> Result<Value, Failure> {
    let unknown = || PolicyError::NoProgram { program: name.to_owned() };
    let program = account.state.programs.get(name).ok_or_else(unknown)?;
    let secrets = program.secrets.iter().map(|(secret, from)| {
        let value = account.given.get(&(name.to_owned(), secret.clone())).map_or(&[][..], Vec::as_slice);
        let (kind, format, value) = match from {
            Secret::Drawn => ("", ":hex", String::new()),
            Secret::P256 => ("", ":pkcs8:pem", String::new()),
            Secret::Text => ("ascii", "", String::from_utf8_lossy(value).into_owned()),
            Secret::Base64 => ("binary", ":base64", value.iter().map(|byte| format!("{byte:02x}")).collect()),
        };
        let (drawn, key) = (*from == Secret::Drawn, *from == Secret::P256);
        json!({ "name": secret, "kind": kind, "format": format, "drawn": drawn, "key": key, "value": value })
    });
    let secrets: Vec<Value> = secrets.collect();
    let volumes = program.volumes.iter().enumerate();
    let starts = program.permit.as_ref().map(|_| program.starts_volume_name());
    let volumes = volumes.map(|(index, path)| {
        let name = program.volume_name(index);
        json!({ "name": name, "path": path, "has_starts": starts.as_ref() == Some(&name) })
    });
    let (has_gate, needs_approval) = (program.gate().is_some(), program.needs_approval());
    let approvers = program.permit.iter().flat_map(|permit| &permit.approvers);
    let owner = Session::Program(name.to_owned()).name(account);
    Ok(json!({
        "mrenclave": program.mrenclave,
        "command": program.command,
        "open": program.open,
        "environment": program.environment,
        "has_environment": !(program.environment.is_empty() && secrets.is_empty()),
        "pwd": program.pwd,
        "secrets": secrets,
        "volumes": volumes.collect::<Vec<_>>(),
        "has_secrets": has_gate || !program.secrets.is_empty(),
        "has_volumes": has_gate || !program.volumes.is_empty(),
        "removed": program.removed,
        "asks_for_code": !program.removed && !program.is_without_code(),
        "imports": has_gate || !program.is_without_code() || !program.secrets.is_empty(),
        "gate": of_permit(account, name, program).filter(|_| has_gate),
        "grants": needs_approval.then(|| program.grants_volume_name()),
        "looks_at_grants": needs_approval && !has_gate,
        "approve_sessions": approvers.map(|(name, of)| approval_name(&owner, name, of)).collect::<Vec<_>>(),
    }))
}

/// What they say of how often it may be started, and who says so.
fn of_permit(account: &Account, name: &str, program: &Program) -> Option<Value> {
    let permit = program.permit.as_ref()?;
    Some(json!({
        "program": name,
        "mrenclave": permit.mrenclave,
        "starts": permit.starts.map(|starts| starts.to_string()),
        "volume": program.starts_volume_name(),
        "grants": program.needs_approval().then(|| program.grants_volume_name()),
        "approvers": program.approvers().join(" "),
        "service": program::service(account, name),
        "term": permit.term.to_string(),
    }))
}

/// What the policy says by which starts of somebody's program are granted.
fn of_approval(account: &Account, owner: &str) -> Result<Value, Failure> {
    let unknown = || PolicyError::NoProgram { program: owner.to_owned() };
    let approval = account.state.approvals.get(owner).ok_or_else(unknown)?;
    Ok(json!({
        "session": Session::Approval(owner.to_owned()).name(account),
        "owner": owner,
        "service": format!("{owner}/{}/program", approval.account),
        "mrenclave": approval.mrenclave,
        "grants": format!("grants_{}", approval.volume_version),
        "term": approval.term.to_string(),
    }))
}

/// `scone session SUBCOMMAND` on a policy's text, or on a session's name.
fn run(account: &Account, subcommand: &str, what: OsString) -> Result<Finished, Failure> {
    let cas = format!("--cas={}", account.state.cas.address);
    let file = Path::new(&what).is_absolute().then(|| PathBuf::from(&what));
    account.tools.scone(&["session".into(), subcommand.into(), cas.into(), what], file.as_deref())
}

/// The same on a policy's text: the hash it prints, or what it says.
fn run_on(
    account: &Account,
    session: &Session,
    subcommand: &'static str,
    text: &str,
) -> Result<Result<String, Finished>, Failure> {
    // 0600, and removed at the end of this.
    let file = write(text).map_err(PolicyError::NoFile)?;
    let finished = run(account, subcommand, file.path().into())?;
    if !finished.success() {
        return Ok(Err(finished));
    }
    let hash = finished.stdout.trim();
    if !is_sha256(hash) {
        return Err(PolicyError::NoHash { subcommand, session: session.name(account) }.into());
    }
    Ok(Ok(hash.to_owned()))
}

/// Held as long as it is needed: it may hold secrets from files, so what a killed run left is destroyed by the next one.
fn write(text: &str) -> io::Result<NamedTempFile> {
    for left in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        let is_ours = left.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())
            && left.metadata().is_ok_and(|found| found.is_file() && found.uid() == geteuid().as_raw());
        if is_ours && File::open(left.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            // Another run may remove the same one.
            let _ = fs::remove_file(left.path());
        }
    }
    loop {
        let mut file = tempfile::Builder::new().prefix(PREFIX).suffix(".yml").tempfile()?;
        // Another run may have taken it for one that was left.
        if file.as_file().try_lock().is_ok() && file.path().exists() {
            file.write_all(text.as_bytes())?;
            return Ok(file);
        }
    }
}

const PREFIX: &str = "otpqr-policy-";

/// What a session's active version replaced, as CAS shows it.
enum Shown {
    Predecessor(String),
    /// There is no such session.
    Nothing,
    /// CAS did not answer.
    Unknown(String),
}

fn show(account: &Account, session: &Session) -> Result<Shown, Failure> {
    #[derive(Deserialize)]
    struct Head {
        predecessor: Option<String>,
    }
    let finished = run(account, "read", session.name(account).into())?;
    Ok(match finished.code {
        Some(0) => {
            let head = serde_yaml::from_str::<Head>(&finished.stdout);
            let head = head.map_err(|cause| PolicyError::NotShown { session: session.name(account), cause })?;
            Shown::Predecessor(head.predecessor.unwrap_or_else(|| NONE.to_owned()))
        }
        _ if is_not_found(&finished) => Shown::Nothing,
        _ => Shown::Unknown(finished.reason()),
    })
}

/// What CAS holds, compared with what the state says it should hold.
#[derive(Debug, PartialEq, Eq)]
pub enum Held {
    Same,
    Different,
    /// Whatever is in it, it is no version that we uploaded: somebody else did, or the state is an older copy.
    Replaced,
    Nothing,
    /// CAS did not answer.
    Unknown(String),
}

/// Compares without changing anything.
pub fn compare(account: &Account, session: &Session, versions: &Versions) -> Result<Held, Failure> {
    let (held, _) = look(account, session, versions)?;
    if held != Held::Different {
        return Ok(held);
    }
    // It may be that CAS did not answer any more.
    Ok(match show(account, session)? {
        Shown::Unknown(reason) => Held::Unknown(reason),
        _ => held,
    })
}

/// What CAS holds; if it is what is wanted, also which version that is.
///
/// The content alone does not tell: whoever has the identity key can replace a session and put the old one back. But they cannot
/// take its history back. Ours is the version that was confirmed, or one over it: of a run that was cut off after the upload but
/// before it could record the hash. A CAS whose hashes do not cover the predecessor is compared by the predecessor it shows.
fn look(account: &Account, session: &Session, versions: &Versions) -> Result<(Held, Option<Version>), Failure> {
    let predecessor = match show(account, session)? {
        Shown::Predecessor(predecessor) => predecessor,
        Shown::Nothing => return Ok((Held::Nothing, None)),
        Shown::Unknown(reason) => return Ok((Held::Unknown(reason), None)),
    };
    let (known, before) = session.known(&account.state);
    let is_next = predecessor == known.unwrap_or(NONE);
    if !is_next && before.is_some_and(|before| before != predecessor) {
        return Ok((Held::Replaced, None));
    }
    if let Err(failure) = at_hand(account, session) {
        // Its text cannot be compared, but nobody can have taken its history back.
        return match (known, before) {
            (Some(hash), Some(before)) if before == predecessor && !is_pending(account, session) => {
                Ok((Held::Same, Some(Version { hash: hash.to_owned(), predecessor })))
            }
            _ => Err(failure),
        };
    }
    // With the predecessor that CAS shows it is what was uploaded, whether or not the hash covers it.
    let text = render_after(&predecessor, account, session, versions)?;
    let Ok(hash) = run_on(account, session, "verify", &text)? else { return Ok((Held::Different, None)) };
    let is_ours = match known {
        Some(known) if known == hash => before.is_none_or(|before| before == predecessor),
        _ => is_next,
    };
    Ok(if is_ours { (Held::Same, Some(Version { hash, predecessor })) } else { (Held::Replaced, None) })
}

fn is_pending(account: &Account, session: &Session) -> bool {
    session.program().and_then(|program| account.state.programs.get(program)).is_some_and(|program| program.pending)
}

/// The first session that was uploaded once more since CAS last confirmed it, as by a run that was cut off. One that nobody but
/// others can have uploaded is an error. What a state of format 1 does not tell is not asked.
pub fn unconfirmed(account: &Account) -> Result<Option<Session>, Failure> {
    for session in Session::all(&account.state) {
        let (Some(hash), Some(before)) = session.known(&account.state) else { continue };
        match show(account, &session)? {
            Shown::Predecessor(predecessor) if predecessor == before => {}
            Shown::Predecessor(predecessor) => {
                // Unless another run of ours explains it, at work now or since the state was read.
                account.lock()?;
                return if predecessor == hash { Ok(Some(session)) } else { Err(replaced(account, &session)) };
            }
            Shown::Nothing | Shown::Unknown(_) => {}
        }
    }
    Ok(None)
}

fn replaced(account: &Account, session: &Session) -> Failure {
    let session = session.name(account);
    Failure::from(PolicyError::Replaced { session }).hints(account.begin_anew())
}

/// Makes CAS hold this policy, and has the state say so (to be recorded); returns whether anything had to change. The upload
/// names the predecessor that the state holds, so that CAS refuses to overwrite what another run uploaded.
pub fn upload(account: &mut Account, session: &Session, versions: &Versions) -> Result<bool, Failure> {
    let known = session.known(&account.state).0.map(str::to_owned);
    if known.is_some() && is_there(account, session, versions)? {
        return Ok(false);
    }
    at_hand(account, session)?;
    let text = render(account, session, versions)?;
    let refusal = match run_on(account, session, "create", &text)? {
        Ok(hash) => {
            let predecessor = known.unwrap_or_else(|| NONE.to_owned());
            session.confirm(&mut account.state, Some(Version { hash, predecessor }));
            return Ok(true);
        }
        Err(refusal) => refusal,
    };
    if is_there(account, session, versions)? {
        return Ok(false);
    }
    Err(explain(account, session, refusal)?)
}

/// Makes CAS hold the policies of what the account is about now. Returns whether anything had to change.
pub fn upload_all(account: &mut Account, lock: &Lock) -> Result<bool, Failure> {
    let sessions = Session::all(&account.state);
    let again = account.script("create", "   # goes on once that is mended");
    upload_each(account, lock, &sessions, &again)
}

/// Makes CAS hold these policies, in this order. Each is recorded as soon as CAS has answered. `again` goes on where this stopped.
/// Returns whether anything had to change.
pub fn upload_each(account: &mut Account, lock: &Lock, sessions: &[Session], again: &str) -> Result<bool, Failure> {
    let versions = Versions::current(&account.state);
    let mut has_changed = false;
    for session in sessions {
        step(format!("policy '{}'", session.name(account)));
        let uploaded = upload(account, session, &versions).and_then(|changed| {
            has_changed |= changed;
            account.record(lock)
        });
        uploaded.map_err(|failure| if has_changed { failure.part_way(again.to_owned(), None) } else { failure })?;
    }
    Ok(has_changed)
}

/// Whether CAS holds this policy already. Then the state says so, too.
fn is_there(account: &mut Account, session: &Session, versions: &Versions) -> Result<bool, Failure> {
    match look(account, session, versions)? {
        (Held::Replaced, _) => Err(replaced(account, session)),
        (_, None) => Ok(false),
        (_, version) => {
            session.confirm(&mut account.state, version);
            Ok(true)
        }
    }
}

/// If CAS holds just this policy, of a run that was cut off before it could record that, has the state say so. Whatever else CAS
/// holds, or if it does not answer, nothing becomes of it: the next upload says why.
pub fn adopt(account: &mut Account, session: &Session, versions: &Versions) {
    if let Ok((Held::Same, version)) = look(account, session, versions) {
        session.confirm(&mut account.state, version);
    }
}

/// Why an upload was refused.
fn explain(account: &Account, session: &Session, refusal: Finished) -> Result<Failure, Failure> {
    let reason = refusal.reason();
    let (state, session_name) = (&account.state, session.name(account));
    let is_part_way = state.pending.as_ref().is_some_and(|pending| pending.uploads_done > 0);
    let exit = match show(account, session)? {
        Shown::Nothing if session.known(state).0.is_some() => {
            let lost = PolicyError::Lost { cas: state.cas.address.clone(), session: session_name };
            return Ok(Failure::from(lost)
                .hint(account.script("roll_forward", " --cas-wiped   # new secret, new volume, new sessions")));
        }
        // CAS itself failed, or has too much to do, which is no refusal.
        _ if ["5", "429"].iter().any(|status| refusal.stderr.contains(&format!("HTTP error status code {status}"))) => {
            let failed = PolicyError::NoAnswer { session: session_name, reason };
            return Ok(Failure::from(failed).hints(account.remedy(&refusal.stderr)));
        }
        _ if is_part_way => Exit::PartWay,
        Shown::Unknown(_) => return Ok(PolicyError::NoAnswer { session: session_name, reason }.into()),
        _ => Exit::Refused,
    };
    // Somebody else replaced it, or the state is an older copy: what CAS holds now is not for us to overwrite.
    let is_replaced = reason.contains("predecessor");
    let failure = Failure::from(PolicyError::NotTaken { session: session_name, reason, exit });
    Ok(if is_replaced { failure.hints(account.begin_anew()) } else { failure })
}
