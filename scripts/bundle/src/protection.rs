//! What protect.rs makes of a program: its record in the state, from the image and from what was asked for.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::account::Account;
use crate::container::{self, BUDGET, Executable, GATE, GRANTS, SCRATCH};
use crate::failure::{Concern, Exit, Failure};
use crate::image::{Made, UserImage};
use crate::policy::{self, Versions};
use crate::program;
use crate::sconify;
use crate::session::Session;
use crate::state::{
    self, PERMIT, PERMIT_APPROVERS, PERMIT_FILE, PERMIT_GRANTS, PERMIT_SERVICE, PERMIT_STARTS, PERMIT_TERM,
};
use crate::state::{Permit, Program, Secret};
use crate::{hint, step};

#[derive(Debug, thiserror::Error)]
enum ProtectionError {
    #[error("'{what}' has a '$' or a control character in it, which no policy can carry over")]
    NotExpressible { what: String },
    #[error("the command's places for arguments must be whole words, '@@1' to '@@N', each once")]
    Places,
    #[error("'--args' and '@@N' in '--command' say the same: give one of them")]
    TwoWays,
    #[error("secret '{secret}' cannot be read from '{file}': {cause}")]
    NotRead { secret: String, file: String, cause: io::Error },
    #[error("secret '{secret}' in '{file}' is empty, or longer than 4096 bytes")]
    Length { secret: String, file: String },
    #[error(
        "secret '{secret}' in '{file}' is no line of printable ASCII without '$': 'base64:{file}' has the program find it in base64"
    )]
    NoText { secret: String, file: String },
    #[error("secret '{secret}' comes from elsewhere already; '--remove' gives the program up, with all its secrets")]
    AnotherKind { secret: String },
    #[error("'{path}' cannot be a volume or mount point beside another that it lies in, or that is the same")]
    Nested { path: String },
    #[error("what '--open' starts takes no arguments: '@@N' has no place in it")]
    OpenTakesNone,
    #[error("programs are looked for in '{path}': nothing of the host's can be mounted there")]
    OnPath { path: String },
    #[error("'--open' starts '{open}', but the program that is measured is '{program}'")]
    AnotherProgram { open: String, program: String },
    #[error("a gate counts the starts of '{program}' already, and goes on: leave out '--counts-itself'")]
    AnotherCount { program: String },
    #[error("nothing says how often '{program}' may be started: give '--starts N' or '--needs-approval ACCOUNT'")]
    NothingToCount { program: String },
    #[error("nobody grants starts of '{program}': there is nothing that '--void-grants' could void")]
    NothingToVoid { program: String },
    #[error("nobody approves their own start: name another account than '{account}', or give '--without-code'")]
    OwnApproval { account: String },
    #[error("account '{account}' is not with this account's CAS: it cannot approve anything here")]
    AnotherCas { account: String },
    #[error("there is no account '{account}' to approve anything")]
    NoApprover { account: String },
    #[error("program '{program}' is not known yet: give '--image IMAGE'")]
    NoImage { program: String },
}

impl Concern for ProtectionError {
    fn exit(&self) -> Exit {
        match self {
            ProtectionError::NotRead { .. }
            | ProtectionError::NoApprover { .. }
            | ProtectionError::AnotherCas { .. } => Exit::Precondition,
            _ => Exit::Usage,
        }
    }
}

/// No variable of a program may be longer, in bytes.
const LONGEST: usize = 4096;

/// What is asked for. With an image, the program is described anew; without, what is given changes and the rest stays. Secrets,
/// volumes, mount points, the number of starts and who grants them stay in any case.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The image, as docker names it; on sim-native a directory, the image unpacked
    #[arg(long, value_parser = container::image_name)]
    pub image: Option<String>,
    /// The program and its arguments, as a shell reads them; '@@1' is the caller's first argument [default: the image's]
    #[arg(long, value_name = "COMMAND", value_parser = words)]
    pub command: Option<Words>,
    /// How many arguments of the caller's follow the command
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=64))]
    pub args: Option<u8>,
    /// Set a variable of the program's environment
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// A secret, in the variable NAME: the line in FILE; with 'base64:FILE' any file, in base64; with 'drawn' 64 hex digits, with
    /// 'p256' a private key in PEM, which CAS draws
    #[arg(long, value_name = "NAME=FILE|drawn|p256", value_parser = variable)]
    pub secret: Vec<(String, String)>,
    /// A directory whose files are sealed when they are on disk, and cannot be put back to an earlier state
    #[arg(long, value_name = "PATH", value_parser = volume)]
    pub volume: Vec<String>,
    /// Where whoever starts it may have a directory of the host seen, which is not measured
    #[arg(long, value_name = "PATH", value_parser = volume)]
    pub mount_point: Vec<String>,
    /// What everybody may start with 'start.rs NAME --open', without a code; with the same secrets and volumes
    #[arg(long, value_name = "COMMAND", value_parser = words)]
    pub open: Option<Words>,
    /// How often it may be started in all, by whoever has codes: a gate, which takes the code, counts. It stays; a higher number
    /// grants more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub starts: Option<u32>,
    /// A start takes a grant besides the code: ACCOUNT's, made with approve.rs and a code of theirs. Give it once for each who may;
    /// they replace those that were named before, and what was granted before is void
    #[arg(long, value_name = "ACCOUNT", value_parser = state::account_name)]
    pub needs_approval: Vec<String>,
    /// With --needs-approval: a start takes the grant alone, as many as it grants for the one code; ACCOUNT may be this one
    #[arg(long, requires = "needs_approval")]
    pub without_code: bool,
    /// What was granted until now is void
    #[arg(long)]
    pub void_grants: bool,
    /// With --starts or --needs-approval: the program counts by itself (programs/permit), as the signer does, and only what it does
    /// its work for
    #[arg(long)]
    pub counts_itself: bool,
    /// Begin with empty volumes: what is in the old ones is lost
    #[arg(long)]
    pub new_volumes: bool,
    #[command(flatten)]
    pub sconify: sconify::Conversion,
}

/// A command.
#[derive(Debug, Clone)]
pub struct Words(Vec<String>);

fn words(text: &str) -> Result<Words, String> {
    let words = shell_words::split(text).map_err(|cause| cause.to_string())?;
    if words.is_empty() { Err("is empty".to_owned()) } else { Ok(Words(words)) }
}

fn variable(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=…")?;
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    if name.starts_with("otp_secret_") || name == "start_secret" {
        return Err("'otp_secret_…' and 'start_secret' are what policies call the codes' secrets");
    }
    if PERMIT.contains(&name) {
        return Err("how often a program may be started is said with '--starts' and '--needs-approval'");
    }
    if name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit()) {
        Ok((name.to_owned(), value.to_owned()))
    } else {
        Err("a variable's name is letters, digits and '_', and begins with no digit")
    }
}

fn volume(text: &str) -> Result<String, &'static str> {
    let path = Path::new(text);
    let mut parts = path.components();
    let is_plain = parts.next() == Some(Component::RootDir)
        && parts.as_path() != Path::new("")
        && parts.all(|part| matches!(part, Component::Normal(_)));
    // What every root has of its own.
    let is_taken = ["/proc", "/sys", "/dev", "/.sealed", "/environment", "/entry", "/scone-run"];
    if is_plain && !text.contains([':', ',', '"']) && !is_taken.iter().any(|taken| path.starts_with(taken)) {
        Ok(path.components().collect::<PathBuf>().to_string_lossy().into_owned())
    } else {
        Err("must be an absolute path below '/', without '..' and ':', and not what every root has of its own")
    }
}

/// What the program is from now on: measured, and its image made ready. Files that hold secrets are read into the account.
pub fn describe(account: &mut Account, name: &str, options: &Options) -> Result<Program, Failure> {
    options.sconify.check(&account.tools)?;
    let known = account.state.programs.get(name).filter(|program| !program.removed).cloned();
    let recorded = known.as_ref().map(|program| program.image.clone());
    let image = options.image.clone().or(recorded);
    let image = image.ok_or_else(|| ProtectionError::NoImage { program: name.to_owned() })?;
    let permit = permit(account, name, options, known.as_ref())?;
    let counting = permit.as_ref().filter(|permit| permit.counts_itself);
    let budget = counting.map(|_| BUDGET.to_owned());
    let volumes = [&options.volume[..], budget.as_slice()].concat();
    let volumes = with_more(known.as_ref().map(|program| &program.volumes), &volumes);
    let mount_points = with_more(known.as_ref().map(|program| &program.mount_points), &options.mount_point);
    let grants = counting.filter(|permit| !permit.approvers.is_empty()).map(|_| GRANTS.to_owned());
    let mounted = [&volumes[..], &mount_points, grants.as_slice()].concat();
    check_nested(&[&mounted[..], &SCRATCH.map(str::to_owned)].concat())?;
    let user = UserImage::look(&account.tools, &image, &volumes)?;

    // With an image that was named, everything is taken from there.
    let before = known.clone().filter(|_| options.image.is_none());
    let (mut environment, pwd) = match &before {
        Some(program) => (program.environment.clone(), program.pwd.clone()),
        None => (user.environment.iter().cloned().collect(), user.pwd.clone()),
    };
    environment.extend(options.env.iter().cloned());
    environment.retain(|variable, _| !PERMIT.contains(&variable.as_str()));
    environment.extend(counting.into_iter().flat_map(|permit| counted(account, name, permit)));
    let command = match (&options.command, &before) {
        (Some(Words(words)), _) => with_program(account, &user, words)?,
        (None, Some(program)) => program.command.clone(),
        (None, None) => with_program(account, &user, &user.command)?,
    };
    let command = with_places(command, options.args)?;
    let open = match (&options.open, &before) {
        (Some(Words(words)), _) => with_program(account, &user, words)?,
        (None, Some(program)) => program.open.clone(),
        (None, None) => Vec::new(),
    };
    if open.iter().any(|word| word.contains("@@")) {
        return Err(ProtectionError::OpenTakesNone.into());
    }
    if let Some(path) = user.on_path(&mounted) {
        return Err(ProtectionError::OnPath { path }.into());
    }
    if let (Some(open), Some(program)) = (open.first(), command.first())
        && open != program
    {
        let (open, program) = (open.clone(), program.clone());
        return Err(ProtectionError::AnotherProgram { open, program }.into());
    }
    let secrets = take_secrets(account, name, options, known.as_ref())?;
    environment.retain(|variable, _| !secrets.contains_key(variable));
    let texts = command.iter().chain(&open).chain(environment.values()).chain(&mounted).chain([&pwd]);
    if let Some(what) = texts.into_iter().find(|text| text.contains('$') || text.contains(char::is_control)) {
        return Err(ProtectionError::NotExpressible { what: what.clone() }.into());
    }

    step(format!("making image '{image}' ready"));
    let request = sconify::Request::new(name, &command[0], &mount_points, &options.sconify, before.as_ref())?;
    let Made { image_id, made_of, sconified } =
        user.made_ready(account, &tag(account, name), &request, known.as_ref())?;
    step("measuring the program");
    let executable = Executable { path: &command[0], files: Some(&mounted) };
    let mrenclave = account.tools.measure(&image_id, executable)?;
    let remembered = account.state.programs.get(name);
    let volume_version = remembered.map_or(1, |program| program.volume_version) + u32::from(options.new_volumes);
    let (own, person) = remembered.map_or((None, None), |program| (program.own.clone(), program.person.clone()));
    let (removed, pending) = (false, remembered.is_some_and(|program| program.pending));
    Ok(Program {
        image,
        image_id,
        made_of,
        mrenclave,
        command,
        open,
        environment,
        pwd,
        secrets,
        volumes,
        volume_version,
        mount_points,
        sconified,
        permit,
        removed,
        pending,
        own,
        person,
    })
}

/// Records what the program is to be, and has CAS hold that. Returns whether anything had to change.
pub fn carry_out(
    account: &mut Account,
    name: &str,
    before: Option<&Program>,
    mut after: Program,
) -> Result<bool, Failure> {
    let lock = account.lock()?.passed_on()?;
    let [own, person] = Session::of_program(name);
    let was_pending = before.is_some_and(|before| before.pending);
    let is_given = account.given.keys().any(|(program, _)| program == name);
    let own_changes = is_given || before.is_none_or(|before| owned(before) != owned(&after));
    let changes = own_changes || before != Some(&after);
    if was_pending {
        // What a run that was cut off had uploaded is found while it is still known what that was.
        let current = Versions::current(&account.state);
        for session in [&own, &person, &Session::Otpqr] {
            policy::adopt(account, session, &current);
        }
        let adopted = &account.state.programs[name];
        (after.own, after.person) = (adopted.own.clone(), adopted.person.clone());
    }
    after.pending |= changes;
    account.state.programs.insert(name.to_owned(), after);
    if own_changes {
        policy::at_hand(account, &own)?;
    }
    if changes {
        // Before the first upload: a run that is cut off must not leave sessions behind that nobody knows.
        account.record(&lock)?;
    }
    // What a run that was cut off left is not known.
    let own = (own_changes || was_pending || !changes).then_some(own);
    let (sessions, option) = if account.state.programs[name].removed {
        // Whoever may start it loses that first.
        ([Some(person), own, Some(Session::Otpqr)], " --remove")
    } else {
        // Refused, nothing was changed. Session 1 exports the code's secret: then it can be started.
        ([own, Some(person), Some(Session::Otpqr)], "")
    };
    let sessions: Vec<Session> = sessions.into_iter().flatten().collect();
    let again = account.script("protect", &format!(" {name}{option}   # goes on once that is mended"));
    let uploaded = policy::upload_each(account, &lock, &sessions, &again);
    let versions = |program: &Program| (program.own.clone(), program.person.clone());
    let has_begun = versions(&account.state.programs[name]) != before.map_or((None, None), versions);
    if uploaded.as_ref().is_err_and(Failure::is_refusal) && !has_begun && !was_pending {
        // CAS said no, and holds what it held.
        match before {
            Some(before) => {
                account.tools.tag(&before.image_id, &tag(account, name))?;
                account.state.programs.insert(name.to_owned(), before.clone())
            }
            None => account.state.programs.remove(name),
        };
        account.record(&lock)?;
    }
    let has_changed = uploaded?;
    if let Some(program) = account.state.programs.get_mut(name).filter(|program| program.pending) {
        program.pending = false;
        account.record(&lock)?;
    }
    Ok(has_changed)
}

/// What keeps a program's image from being pruned.
pub fn tag(account: &Account, name: &str) -> String {
    format!("otpqr-program:{}.{name}", account.state.namespace.replace(['/', '~'], "-"))
}

/// What of a program its own session says. (The other one can be rendered at any time.)
fn owned(program: &Program) -> impl PartialEq + '_ {
    let open =
        (!program.open.is_empty()).then_some((&program.open, &program.mrenclave, &program.environment, &program.pwd));
    let permit = program.permit.as_ref().map(|permit| (permit.counts_itself, &permit.approvers));
    (&program.secrets, &program.volumes, program.volume_version, program.removed, open, permit)
}

/// How often it may be started, and who says so. Who counts stays who does.
fn permit(
    account: &Account,
    name: &str,
    options: &Options,
    known: Option<&Program>,
) -> Result<Option<Permit>, Failure> {
    let starts_known = known.and_then(Program::starts);
    let starts = options.starts.or(starts_known);
    let before = known.and_then(|program| program.permit.as_ref());
    let (approvers, without_code) = match (options.needs_approval.as_slice(), before) {
        ([], Some(before)) => (before.approvers.clone(), before.without_code),
        (named, _) => {
            (named.iter().map(|name| approver(account, name)).collect::<Result<_, _>>()?, options.without_code)
        }
    };
    if approvers.contains_key(&account.name) && !without_code {
        return Err(ProtectionError::OwnApproval { account: account.name.clone() }.into());
    }
    if options.void_grants && approvers.is_empty() {
        return Err(ProtectionError::NothingToVoid { program: name.to_owned() }.into());
    }
    let is_limited = starts.is_some() || !approvers.is_empty();
    let counts_itself = match before {
        Some(before) if options.counts_itself && !before.counts_itself => {
            return Err(ProtectionError::AnotherCount { program: name.to_owned() }.into());
        }
        Some(before) => before.counts_itself,
        None => options.counts_itself || starts_known.is_some(),
    };
    if !is_limited {
        let unlimited = ProtectionError::NothingToCount { program: name.to_owned() };
        return if options.counts_itself { Err(unlimited.into()) } else { Ok(None) };
    }
    if let (Some(before), Some(now)) = (starts_known, starts)
        && now < before
    {
        step(format!("fewer starts than before, which were {before} in all: what is taken stays taken"));
    }
    let image_id = account.state.image_id.clone();
    let mrenclave = account.tools.measure(&image_id, GATE)?;
    let terms = before.map_or(0, |before| before.term);
    let is_new_term = before.is_none_or(|before| before.approvers != approvers) || options.void_grants;
    let term = if is_new_term { terms + 1 } else { terms };
    Ok(Some(Permit { image_id, mrenclave, starts, counts_itself, approvers, term, without_code }))
}

/// An account that is to grant starts, and its namespace.
fn approver(account: &Account, name: &str) -> Result<(String, String), Failure> {
    let state = state::read(&account.root, name)?.1.ok_or_else(|| {
        let missing = ProtectionError::NoApprover { account: name.to_owned() };
        Failure::from(missing).hint(hint::script("create", name, ""))
    })?;
    if (&state.cas.key, state.platform) != (&account.state.cas.key, account.state.platform) {
        return Err(ProtectionError::AnotherCas { account: name.to_owned() }.into());
    }
    Ok((name.to_owned(), state.namespace))
}

/// What a program that counts its starts is told.
fn counted(account: &Account, name: &str, permit: &Permit) -> Vec<(String, String)> {
    let mut told = vec![(PERMIT_FILE, format!("{BUDGET}/start"))];
    told.extend(permit.starts.map(|starts| (PERMIT_STARTS, starts.to_string())));
    if !permit.approvers.is_empty() {
        let approvers = permit.approvers.keys().cloned().collect::<Vec<_>>().join(" ");
        told.extend([
            (PERMIT_GRANTS, GRANTS.to_owned()),
            (PERMIT_APPROVERS, approvers),
            (PERMIT_SERVICE, program::service(account, name)),
            (PERMIT_TERM, permit.term.to_string()),
        ]);
    }
    told.into_iter().map(|(variable, value)| (variable.to_owned(), value)).collect()
}

fn with_program(account: &Account, image: &UserImage, words: &[String]) -> Result<Vec<String>, Failure> {
    let program = image.find(account, words.first())?;
    Ok([program].into_iter().chain(words.iter().skip(1).cloned()).collect())
}

/// The command with its places for the caller's arguments.
fn with_places(mut command: Vec<String>, more: Option<u8>) -> Result<Vec<String>, Failure> {
    let places = command.iter().filter(|word| word.contains("@@"));
    let mut numbers: Vec<Option<usize>> = places.map(|place| place.strip_prefix("@@")?.parse().ok()).collect();
    numbers.sort();
    if !numbers.iter().copied().eq((1..=numbers.len()).map(Some)) {
        return Err(ProtectionError::Places.into());
    }
    match more {
        Some(more) if !numbers.is_empty() && usize::from(more) != numbers.len() => Err(ProtectionError::TwoWays.into()),
        Some(more) if numbers.is_empty() => {
            command.extend((1..=more).map(|number| format!("@@{number}")));
            Ok(command)
        }
        _ => Ok(command),
    }
}

fn with_more(known: Option<&Vec<String>>, more: &[String]) -> Vec<String> {
    let mut all = known.cloned().unwrap_or_default();
    for path in more {
        if !all.contains(path) {
            all.push(path.clone());
        }
    }
    all
}

fn check_nested(volumes: &[String]) -> Result<(), Failure> {
    for (index, inner) in volumes.iter().enumerate() {
        let nested =
            volumes.iter().enumerate().any(|(other, outer)| other != index && Path::new(inner).starts_with(outer));
        if nested {
            return Err(ProtectionError::Nested { path: inner.clone() }.into());
        }
    }
    Ok(())
}

/// The program's secrets. Those in files are read; nothing but CAS keeps them.
fn take_secrets(
    account: &mut Account,
    name: &str,
    options: &Options,
    known: Option<&Program>,
) -> Result<BTreeMap<String, Secret>, Failure> {
    let mut secrets = known.map_or_else(BTreeMap::new, |program| program.secrets.clone());
    for (secret, from) in &options.secret {
        let (kind, file) = match (from.as_str(), from.strip_prefix("base64:")) {
            ("drawn", _) => (Secret::Drawn, None),
            ("p256", _) => (Secret::P256, None),
            (_, Some(file)) => (Secret::Base64, Some(file)),
            // What is known to be in base64 need not be called that again.
            (file, None) if secrets.get(secret) == Some(&Secret::Base64) => (Secret::Base64, Some(file)),
            (file, None) => (Secret::Text, Some(file)),
        };
        if secrets.get(secret).is_some_and(|known| *known != kind) {
            return Err(ProtectionError::AnotherKind { secret: secret.clone() }.into());
        }
        if let Some(file) = file {
            let value = read(secret, file, kind)?;
            account.given.insert((name.to_owned(), secret.clone()), value);
        }
        secrets.insert(secret.clone(), kind);
    }
    Ok(secrets)
}

fn read(secret: &str, file: &str, kind: Secret) -> Result<Vec<u8>, Failure> {
    let (secret, file) = (secret.to_owned(), file.to_owned());
    let mut value = match fs::read(&file) {
        Ok(value) => value,
        Err(cause) => return Err(ProtectionError::NotRead { secret, file, cause }.into()),
    };
    // As an editor leaves it.
    if kind == Secret::Text && value.ends_with(b"\n") {
        value.pop();
    }
    if value.is_empty() || value.len() > LONGEST {
        return Err(ProtectionError::Length { secret, file }.into());
    }
    if kind == Secret::Text {
        // `scone` takes what follows a '$' for a variable.
        if value.iter().any(|&byte| !(b' '..=b'~').contains(&byte) || byte == b'$') {
            return Err(ProtectionError::NoText { secret, file }.into());
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_places_are_whole_words_counted_from_one() {
        let places = |command: &str, more| {
            with_places(words(command).unwrap().0, more)
                .map(|words| words.join(" "))
                .map_err(|failure| failure.into_finding().0)
        };
        for bad in ["/p @@0", "/p @@2", "/p @@1 @@1", "/p --x=@@1", "/p @@x"] {
            assert!(places(bad, None).is_err(), "{bad}");
        }
        assert!(places("/p @@1", Some(2)).is_err());
        assert_eq!(places("/p @@2 -x @@1", None).unwrap(), "/p @@2 -x @@1");
        assert_eq!(places("/p sign", Some(2)).unwrap(), "/p sign @@1 @@2");
        assert_eq!(places("/p", Some(0)).unwrap(), "/p");
    }

    #[test]
    fn a_volume_is_a_plain_path_and_none_lies_in_another() {
        for bad in ["", "data", "/", "/a/../b", "/a:b", "/a,b", "/proc/x", "/environment"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        assert_eq!(volume("/data/"), Ok("/data".to_owned()));
        assert!(check_nested(&["/a/b".to_owned(), "/a".to_owned()]).is_err());
        assert!(check_nested(&["/a".to_owned(), "/ab".to_owned()]).is_ok());
    }

    #[test]
    fn a_variable_has_a_name() {
        for bad in ["", "A", "=b", "1A=b", "A-B=c", r"\@\@A=b"] {
            assert!(variable(bad).is_err(), "{bad}");
        }
        assert!(variable("otp_secret_2=drawn").is_err());
        assert_eq!(variable("_A1=b=c"), Ok(("_A1".to_owned(), "b=c".to_owned())));
    }
}
