//! `state/<account>.yml`: names, hashes and versions; never a secret, never a code. `state/README.md` describes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::{FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use crate::cas::{Attestation, Cas};
use crate::container::{BUDGET, GRANTS, is_sha256};
use crate::failure::{Concern, Exit, Failure};
use crate::hint;
use crate::platform::Platform;
use crate::policy;

/// Since format 2 the predecessors are recorded, since format 3 the programs, since format 4 their gates, since format 5 who grants
/// starts, how CAS was attested, and what the policies tolerate.
const FORMAT: u32 = 5;

/// What older ones lack.
const SINCE_5: &str = "approvals: {}
tolerate: []
ignore_advisories: []
attestation:
  mrenclave: []
  mrsigner: null
  isvprodid: null
  isvsvn: null
  accept_configuration_needed: false
  accept_group_out_of_date: false
  accept_sw_hardening_needed: false
  insecure_test_cas: false
";

/// Where a program that counts its starts finds what they are noted in, how many there are, and who grants them (programs/permit).
pub const PERMIT_FILE: &str = "PERMIT_FILE";
pub const PERMIT_STARTS: &str = "PERMIT_STARTS";
pub const PERMIT_GRANTS: &str = "PERMIT_GRANTS";
pub const PERMIT_APPROVERS: &str = "PERMIT_APPROVERS";
pub const PERMIT_SERVICE: &str = "PERMIT_SERVICE";
pub const PERMIT_TERM: &str = "PERMIT_TERM";
/// All of them.
pub const PERMIT: [&str; 6] =
    [PERMIT_FILE, PERMIT_STARTS, PERMIT_GRANTS, PERMIT_APPROVERS, PERMIT_SERVICE, PERMIT_TERM];

/// No secret and no volume gets a higher number.
pub const LAST_VERSION: u32 = 1_000_000;

#[derive(Debug, thiserror::Error)]
enum StateError {
    #[error("state file '{file}' cannot be read: {cause}")]
    Unreadable { file: String, cause: io::Error },
    #[error("state file '{file}' belongs to another user (uid {uid})")]
    AnotherUser { file: String, uid: u32 },
    #[error("state file '{file}' must be a regular file that only you can write")]
    OpenToOthers { file: String },
    #[error("state file '{file}' has format {found}; this script knows {FORMAT}")]
    Format { file: String, found: u32 },
    #[error("state file '{file}' is damaged or not ours")]
    NotOurs { file: String },
    #[error("state file '{file}' is damaged: {cause}")]
    Damaged { file: String, cause: serde_yaml::Error },
    #[error("state file '{file}' is damaged: {what}")]
    Implausible { file: String, what: &'static str },
    #[error("state file '{file}' cannot be written: {cause}")]
    Unwritable { file: String, cause: io::Error },
    #[error("'{directory}' cannot be made private: its file system ignores permissions; choose another one")]
    NotPrivate { directory: String },
    #[error("state file '{file}' was changed by another run; run the same command again")]
    Changed { file: String },
    #[error("another run, or a program that it started, is at work on state file '{file}': wait until it has ended")]
    Busy { file: String },
    #[error("the state's lock cannot be passed on: {0}")]
    NotPassedOn(io::Error),
    #[error("the state cannot be expressed in YAML: {0}")]
    NoYaml(serde_yaml::Error),
    #[error("cannot make the volume's directory '{directory}': {cause}")]
    NoVolumeDirectory { directory: String, cause: io::Error },
}

impl Concern for StateError {
    fn exit(&self) -> Exit {
        match self {
            StateError::Changed { .. } | StateError::NotPassedOn(_) | StateError::NoYaml(_) => Exit::Other,
            _ => Exit::Precondition,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    format: u32,
    pub platform: Platform,
    pub cas: Cas,
    /// How CAS was attested.
    pub attestation: Attestation,
    /// What of a host's weaknesses the policies tolerate, and which advisories they ignore.
    pub tolerate: BTreeSet<String>,
    pub ignore_advisories: BTreeSet<String>,
    /// As the user names it, and as the engine identifies it.
    pub image: String,
    pub image_id: String,
    pub mrenclave: String,
    pub issuer: String,
    pub login: String,
    pub language: String,
    pub namespace: String,
    /// The hashes of the sessions as CAS last confirmed them; absent: not yet uploaded.
    pub namespace_hash: Option<String>,
    pub otpqr_hash: Option<String>,
    pub reset_hash: Option<String>,
    /// What these versions replaced, as policies say it: a hash, or '~' for nothing; absent: not known.
    pub namespace_predecessor: Option<String>,
    pub otpqr_predecessor: Option<String>,
    pub reset_predecessor: Option<String>,
    pub volume_version: u32,
    pub secret_version: u32,
    /// A roll-forward that was begun; recorded before CAS is changed.
    pub pending: Option<Pending>,
    /// What this account's codes start, by name.
    pub programs: BTreeMap<String, Program>,
    /// The programs of which this account's codes grant starts, by the name of the session that owns them.
    pub approvals: BTreeMap<String, Approval>,
}

/// A program of which an account grants starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The account that the program belongs to, and the program.
    pub account: String,
    pub program: String,
    /// What notes the grants.
    pub mrenclave: String,
    /// V of the volume in which they are noted, and the term.
    pub volume_version: u32,
    pub term: u32,
    /// The version of the session that CAS last confirmed.
    pub version: Option<Version>,
}

/// A program that was put behind the account's codes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// As the user names it, and as the engine identifies what it is run from.
    pub image: String,
    pub image_id: String,
    /// The image, and the account's, that the latter was made of, and how.
    pub made_of: Vec<String>,
    pub mrenclave: String,
    /// The program and its arguments; `@@N` is the caller's N-th.
    pub command: Vec<String>,
    /// What everybody may start, without a code; empty: nothing.
    pub open: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub pwd: String,
    /// By the variable in which the program finds it.
    pub secrets: BTreeMap<String, Secret>,
    /// The paths at which the program sees its volumes.
    pub volumes: Vec<String>,
    pub volume_version: u32,
    /// Where else something of the host's may be mounted.
    pub mount_points: Vec<String>,
    /// How its image was converted for SCONE; absent: it was not.
    pub sconified: Option<Sconified>,
    /// How often it may be started, and who says so; absent: as often as there are codes.
    pub permit: Option<Permit>,
    /// What it owned is given up, and nobody may start it.
    pub removed: bool,
    /// Whether CAS may not hold all this yet.
    pub pending: bool,
    /// The versions of its two sessions that CAS last confirmed.
    pub own: Option<Version>,
    pub person: Option<Version>,
}

/// How often a program may be started, and who says so (programs/permit).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permit {
    /// The account's image, which has the gate, as it was when it was measured, and the gate's measurement.
    pub image_id: String,
    pub mrenclave: String,
    /// How many starts there are in all; absent: as many as are granted.
    pub starts: Option<u32>,
    /// The program counts; otherwise the gate stands before it.
    pub counts_itself: bool,
    /// The accounts of which one must have granted a start, and their namespaces: one that is begun anew under the same name is
    /// another. Empty: nobody.
    pub approvers: BTreeMap<String, String>,
    /// Grants of an earlier term are void: a new one begins when others are named.
    pub term: u32,
    /// What they grant takes no code besides.
    pub without_code: bool,
}

/// How a program that was not built for SCONE became one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sconified {
    /// SCONE's image that converted it.
    pub with: String,
    /// What is measured with it, besides its libraries.
    pub directories: Vec<String>,
    /// The file with the key that signed it for production. The key itself is nowhere here.
    pub signing_key: PathBuf,
}

/// Where a program's secret comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Secret {
    /// CAS draws 32 bytes.
    Drawn,
    /// CAS draws a private key on NIST P-256.
    P256,
    /// A file's one line.
    Text,
    /// Any file, in base64.
    Base64,
}

impl Secret {
    /// How protect.rs is told of it.
    pub fn file(self) -> &'static str {
        match self {
            Secret::Drawn => "drawn",
            Secret::P256 => "p256",
            Secret::Text => "FILE",
            Secret::Base64 => "base64:FILE",
        }
    }

    /// It was read from a file, and is in CAS alone.
    pub fn is_given(self) -> bool {
        matches!(self, Secret::Text | Secret::Base64)
    }
}

/// A version of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    pub hash: String,
    /// What it replaced, as policies say it: a hash, or '~' for nothing.
    pub predecessor: String,
}

impl Program {
    /// How many arguments the caller gives.
    pub fn arguments(&self) -> usize {
        self.command.iter().filter(|word| word.starts_with("@@")).count()
    }

    /// Where something is mounted, or may be.
    pub fn mounted(&self) -> Vec<String> {
        let grants = self.permit.as_ref().filter(|permit| permit.counts_itself && !permit.approvers.is_empty());
        let grants = grants.map(|_| GRANTS.to_owned());
        [&self.volumes[..], &self.mount_points, grants.as_slice()].concat()
    }

    /// How often it may be started in all; `None`: as often as there are codes, or as is granted.
    pub fn starts(&self) -> Option<u32> {
        // Up to format 4 nothing else said so of a program that counts for itself.
        let own = self.environment.get(PERMIT_STARTS).and_then(|starts| starts.parse().ok());
        self.permit.as_ref().and_then(|permit| permit.starts).or(own)
    }

    /// The gate before it, if there is one.
    pub fn gate(&self) -> Option<&Permit> {
        self.permit.as_ref().filter(|permit| !permit.counts_itself)
    }

    /// Whether a start takes a grant.
    pub fn needs_approval(&self) -> bool {
        self.permit.as_ref().is_some_and(|permit| !permit.approvers.is_empty())
    }

    /// Who grants them.
    pub fn approvers(&self) -> Vec<&str> {
        self.permit.iter().flat_map(|permit| permit.approvers.keys().map(String::as_str)).collect()
    }

    /// Whether a start takes no code.
    pub fn is_without_code(&self) -> bool {
        self.permit.as_ref().is_some_and(|permit| permit.without_code)
    }

    /// What CAS calls the volume in which its starts are noted.
    pub fn starts_volume_name(&self) -> String {
        match self.volumes.iter().position(|path| path == BUDGET) {
            Some(index) if self.gate().is_none() => self.volume_name(index),
            _ => format!("starts_{}", self.volume_version),
        }
    }

    /// What CAS calls the volume with what was granted.
    pub fn grants_volume_name(&self) -> String {
        format!("grants_{}", self.volume_version)
    }

    /// What CAS calls a volume.
    pub fn volume_name(&self, index: usize) -> String {
        format!("volume_{index}_{}", self.volume_version)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    pub volume_version: u32,
    pub secret_version: u32,
    /// How many of the uploads CAS has confirmed.
    pub uploads_done: usize,
    /// It is to be undone: decided before the old codes died.
    pub undo: bool,
}

impl State {
    /// What `create` starts from.
    pub fn new(platform: Platform, cas: Cas, issuer: String, login: String, namespace: String) -> State {
        State {
            format: FORMAT,
            platform,
            cas,
            attestation: Attestation::default(),
            tolerate: BTreeSet::new(),
            ignore_advisories: BTreeSet::new(),
            image: String::new(),
            image_id: String::new(),
            mrenclave: String::new(),
            issuer,
            login,
            language: "0.3.10".to_owned(),
            namespace,
            namespace_hash: None,
            otpqr_hash: None,
            reset_hash: None,
            namespace_predecessor: None,
            otpqr_predecessor: None,
            reset_predecessor: None,
            volume_version: 1,
            secret_version: 1,
            pending: None,
            programs: BTreeMap::new(),
            approvals: BTreeMap::new(),
        }
    }

    /// The command that finishes a roll-forward that was begun.
    pub fn finishing(&self, account: &str) -> Option<String> {
        let pending = self.pending.as_ref()?;
        let how = if pending.undo {
            " --undo"
        } else if pending.secret_version == self.secret_version {
            " --keep-secret"
        } else {
            ""
        };
        Some(hint::script("roll_forward", account, how))
    }

    /// The login an authenticator shows: from the second secret on with its number, so that two entries can be told apart.
    pub fn label(&self) -> String {
        label(&self.login, self.secret_version)
    }
}

impl State {
    /// What no script ever wrote. These values become arguments and versions to count on.
    fn implausible(&self) -> Option<&'static str> {
        let counts = |version: u32| (1..=LAST_VERSION).contains(&version);
        let plain = |text: &str| !text.starts_with(['-', '@']) && !text.chars().any(char::is_control);
        let session =
            |text: &str| plain(text) && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._~/".contains(c));
        let pending = self.pending.as_ref().is_none_or(|pending| {
            pending.uploads_done <= 3
                && matches!(pending.volume_version.checked_sub(self.volume_version), Some(1 | 2))
                && (pending.secret_version == self.secret_version
                    || Some(pending.secret_version) == self.secret_version.checked_add(1))
        });
        [
            (
                counts(self.volume_version) && counts(self.secret_version),
                "'volume_version' and 'secret_version' must be from 1 to 1000000",
            ),
            (is_sha256(&self.mrenclave), "'mrenclave' is not 64 hex digits"),
            (session(&self.namespace), "'namespace' is not a session name"),
            (
                [&self.image, &self.image_id, &self.cas.address].into_iter().all(|text| plain(text)),
                "'image', 'image_id' and 'cas.address' must not begin with '-' or '@' nor hold control characters",
            ),
            (
                self.attestation.mrenclave.iter().chain(&self.attestation.mrsigner).all(|hex| is_sha256(hex)),
                "'attestation' has something in it that no script writes",
            ),
            (
                self.tolerate.iter().all(|name| policy::tolerable(name).is_ok())
                    && self.ignore_advisories.iter().all(|name| policy::advisory(name).is_ok()),
                "'tolerate' or 'ignore_advisories' has something in it that no policy may have",
            ),
            (pending, "'pending' does not follow from the versions"),
            (
                self.programs.iter().all(|(name, program)| {
                    program_name(name).is_ok()
                        && is_sha256(&program.mrenclave)
                        && counts(program.volume_version)
                        && [&program.image, &program.image_id]
                            .into_iter()
                            .chain(&program.made_of)
                            .all(|text| plain(text))
                        && program.mounted().iter().all(|path| path.starts_with('/') && plain(path))
                        && program.command.first().is_some_and(|path| path.starts_with('/'))
                        && program.sconified.as_ref().is_none_or(|sconified| plain(&sconified.with))
                        && program.permit.as_ref().is_none_or(|permit| {
                            is_sha256(&permit.mrenclave)
                                && plain(&permit.image_id)
                                && permit.approvers.iter().all(|(account, namespace)| {
                                    account_name(account).is_ok() && session(namespace)
                                })
                                // Something must limit it.
                                && (permit.starts.is_some() || !permit.approvers.is_empty())
                                && (!permit.without_code || !permit.approvers.is_empty())
                        })
                }),
                "'programs' has something in it that no script writes",
            ),
            (
                self.approvals.iter().all(|(owner, approval)| {
                    session(owner)
                        && account_name(&approval.account).is_ok()
                        && program_name(&approval.program).is_ok()
                        && is_sha256(&approval.mrenclave)
                        && counts(approval.volume_version)
                }),
                "'approvals' has something in it that no script writes",
            ),
        ]
        .into_iter()
        .find_map(|(right, what)| (!right).then_some(what))
    }
}

pub fn label(login: &str, secret_version: u32) -> String {
    match secret_version {
        1 => login.to_owned(),
        version => format!("{login} #{version}"),
    }
}

/// An account's state file, as it was when it was read.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    content: Option<Vec<u8>>,
}

/// Checks an `--account` before it becomes a file name.
pub fn account_name(name: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=64).contains(&name.len()) && name.chars().all(valid) && !name.starts_with('-') {
        Ok(name.to_owned())
    } else {
        Err("1 to 64 letters, digits, '_' or, not first, '-'".to_owned())
    }
}

/// Checks a program's name before it becomes a session's, a directory's and a tag's. Some sessions have names of their own.
pub fn program_name(name: &str) -> Result<String, String> {
    if ["otpqr", "otpqr-reset"].contains(&name) || name.starts_with("device.") {
        return Err("is the name of a session that every account has, or may have".to_owned());
    }
    account_name(name)
}

/// Where an account's state lies, seen from the root.
pub fn file_of(account: &str) -> PathBuf {
    Path::new("state").join(format!("{account}.yml"))
}

/// The host's side of the account's volume, and whether it was made here because it was not there: whether it may be empty
/// is for CAS to say.
pub fn volume_directory(root: &Path, account: &str, version: u32) -> Result<(PathBuf, bool), Failure> {
    let path = root.join("state/volumes").join(account).join(format!("single_run_{version}"));
    let is_there = path.exists();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.map_err(|cause| StateError::NoVolumeDirectory { directory: path.display().to_string(), cause })?;
    Ok((path, !is_there))
}

/// Where the host's sides of a program's volumes lie.
pub fn program_volumes(root: &Path, account: &str, program: &str) -> PathBuf {
    root.join("state/volumes").join(account).join("programs").join(program)
}

/// Where the program leaves the QR code of the account's current secret, until it is delivered. It goes by the volume, too:
/// what a roll-forward that keeps the secret leaves there belongs to nobody until that is complete.
pub fn issuing_directory(root: &Path, state: &State, volume_version: u32) -> PathBuf {
    let namespace = state.namespace.replace('/', "+");
    root.join("state/issuing").join(format!("{namespace}-{}-{volume_version}", state.secret_version))
}

/// Reads the account's state; `None` if there is none. A damaged file is an error, never a fresh start.
pub fn read(root: &Path, account: &str) -> Result<(StateFile, Option<State>), Failure> {
    let path = root.join(file_of(account));
    let Some(content) = read_own(&path)? else { return Ok((StateFile { path, content: None }, None)) };
    let file = path.display().to_string();
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    // What an older format lacks. (In this one nothing is optional: a file may have been cut off.)
    let since = match serde_yaml::from_slice::<Format>(&content) {
        Ok(Format { format: 1 | 2 }) => format!("programs: {{}}\n{SINCE_5}"),
        Ok(Format { format: 3 | 4 }) => SINCE_5.to_owned(),
        Ok(Format { format: FORMAT }) => String::new(),
        Ok(Format { format }) => return Err(StateError::Format { file, found: format }.into()),
        Err(_) => return Err(StateError::NotOurs { file }.into()),
    };
    let state = serde_yaml::from_slice(&[&content, since.as_bytes()].concat()).map(with_permits);
    let mut state: State =
        state.and_then(serde_yaml::from_value).map_err(|cause| StateError::Damaged { file: file.clone(), cause })?;
    state.format = FORMAT;
    if let Some(what) = state.implausible() {
        return Err(StateError::Implausible { file, what }.into());
    }
    Ok((StateFile { path, content: Some(content) }, Some(state)))
}

/// Format 4 called a permit a gate, and knew no others.
fn with_permits(mut state: Value) -> Value {
    let of_format_4 = state.get("format").and_then(Value::as_u64) == Some(4);
    let programs = state.get_mut("programs").and_then(Value::as_mapping_mut).filter(|_| of_format_4);
    for program in programs.into_iter().flat_map(|programs| programs.values_mut()) {
        let Some(program) = program.as_mapping_mut() else { continue };
        if let Some(mut permit) = program.remove("gate") {
            if let Some(permit) = permit.as_mapping_mut() {
                permit.insert("counts_itself".into(), false.into());
                permit.insert("approvers".into(), Value::Mapping(serde_yaml::Mapping::new()));
                permit.insert("term".into(), 1.into());
                permit.insert("without_code".into(), false.into());
            }
            program.insert("permit".into(), permit);
        }
    }
    state
}

/// The content of a file that must be ours alone: no link to somewhere else, no pipe to wait for.
fn read_own(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    let file = || path.display().to_string();
    let unreadable = |cause| StateError::Unreadable { file: file(), cause };
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut opened = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path) {
        Ok(opened) => opened,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(unreadable(cause)),
    };
    let found = opened.metadata().map_err(unreadable)?;
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(StateError::AnotherUser { file: file(), uid: found.uid() });
    }
    if !found.is_file() || found.mode() & 0o022 != 0 {
        return Err(StateError::OpenToOthers { file: file() });
    }
    let mut content = Vec::new();
    opened.read_to_end(&mut content).map_err(unreadable)?;
    Ok(Some(content))
}

/// Held while an account is worked on, never at a prompt.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Has the programs that are started from now on hold it, too: killed alone, a script leaves them running, and what they
    /// write or upload is still to come. Not for an engine's: it may leave something running that ends when it likes.
    pub fn passed_on(self) -> Result<Lock, Failure> {
        fcntl_setfd(&self.0, FdFlags::empty()).map_err(|cause| StateError::NotPassedOn(cause.into()))?;
        Ok(self)
    }
}

impl StateFile {
    /// Makes sure that nobody else works on the account, and that what was read of its state still holds.
    pub fn lock(&self) -> Result<Lock, Failure> {
        let file = self.path.display().to_string();
        let failed = |cause| StateError::Unwritable { file: file.clone(), cause };
        DirBuilder::new().recursive(true).mode(0o700).create(self.directory()).map_err(failed)?;
        let lock = OpenOptions::new().append(true).create(true).mode(0o600).open(self.path.with_extension("lock"));
        let lock = lock.map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StateError::Busy { file: file.clone() },
            TryLockError::Error(cause) => failed(cause),
        })?;
        self.check_unchanged()?;
        Ok(Lock(lock))
    }

    /// Makes sure that the file is as it was when it was read, or last written here.
    pub fn check_unchanged(&self) -> Result<(), Failure> {
        let file = self.path.display().to_string();
        let found = match fs::read(&self.path) {
            Ok(content) => Some(content),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(StateError::Unreadable { file, cause }.into()),
        };
        if found == self.content { Ok(()) } else { Err(StateError::Changed { file }.into()) }
    }

    /// Replaces the file as a whole: temporary file, fsync, rename, fsync of the directory.
    pub fn write(&mut self, state: &State, _lock: &Lock) -> Result<(), Failure> {
        let file = self.path.display().to_string();
        let failed = |cause| StateError::Unwritable { file: file.clone(), cause };
        let text = serde_yaml::to_string(state).map_err(StateError::NoYaml)?;
        let text = format!("# Written by the scripts; described in state/README.md. Holds no secret.\n{text}");
        let directory = self.directory();
        // A checkout brings the directory along, open to all.
        let mode = fs::metadata(directory).map_err(failed)?.mode();
        if is_open_to_others(mode) {
            // Some file systems refuse that, others ignore it: what became of it is looked at below.
            let _ = fs::set_permissions(directory, Permissions::from_mode(mode & 0o700));
        }
        // `tempfile` makes it 0600.
        let mut new = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
        for mode in [fs::metadata(directory), new.as_file().metadata()].map(|found| found.map(|found| found.mode())) {
            if is_open_to_others(mode.map_err(failed)?) {
                return Err(StateError::NotPrivate { directory: directory.display().to_string() }.into());
            }
        }
        new.write_all(text.as_bytes()).and_then(|()| new.as_file().sync_all()).map_err(failed)?;
        new.persist(&self.path).map_err(|error| failed(error.error))?;
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        self.content = Some(text.into_bytes());
        Ok(())
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }
}

pub fn is_open_to_others(mode: u32) -> bool {
    mode & 0o077 != 0
}
