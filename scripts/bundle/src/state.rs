//! `state/<account>.yml`: names, hashes and versions; never a secret, never a code. `state/README.md` describes it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::outcome::{Failure, OTHER, PRECONDITION};
use super::platform::{Cas, Platform, is_sha256};
use super::root;

const FORMAT: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    format: u32,
    pub platform: Platform,
    pub cas: Cas,
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
    pub volume_version: u32,
    pub secret_version: u32,
    /// A roll-forward that was begun; recorded before CAS is changed.
    pub pending: Option<Pending>,
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
            volume_version: 1,
            secret_version: 1,
            pending: None,
        }
    }

    /// The command that finishes a roll-forward that was begun.
    pub fn finishing(&self, account: &str) -> Option<String> {
        let pending = self.pending.as_ref()?;
        let how = match pending.undo {
            true => " --undo",
            false if pending.secret_version == self.secret_version => " --keep-secret",
            false => "",
        };
        Some(format!("./scripts/roll_forward.rs{}{how}", option(account)))
    }

    /// The login an authenticator shows: from the second secret on with its number, so that two entries can be told apart.
    pub fn label(&self) -> String {
        label(&self.login, self.secret_version)
    }
}

impl State {
    /// What no script ever wrote. These values become arguments and versions to count on.
    fn implausible(&self) -> Option<&'static str> {
        let counts = |version: u32| (1..=1_000_000).contains(&version);
        let plain = |text: &str| !text.starts_with(['-', '@']) && !text.chars().any(char::is_control);
        let name = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
        let pending = self.pending.as_ref().is_none_or(|pending| {
            pending.uploads_done <= 3
                && matches!(pending.volume_version.checked_sub(self.volume_version), Some(1 | 2))
                && (pending.secret_version == self.secret_version
                    || Some(pending.secret_version) == self.secret_version.checked_add(1))
        });
        [
            (counts(self.volume_version) && counts(self.secret_version), "its versions are impossible"),
            (is_sha256(&self.mrenclave), "its mrenclave is none"),
            (plain(&self.namespace) && self.namespace.chars().all(name), "its namespace is no session name"),
            (
                [&self.image, &self.image_id, &self.cas.address].into_iter().all(|text| plain(text)),
                "its image or CAS is none",
            ),
            (pending, "its roll-forward is impossible"),
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
    match (1..=64).contains(&name.len()) && name.chars().all(valid) && !name.starts_with('-') {
        true => Ok(name.to_owned()),
        false => Err("1 to 64 letters, digits, '_' or, not first, '-'".to_owned()),
    }
}

/// What a command needs to be about this account: nothing, for the default one.
pub fn option(account: &str) -> String {
    if account == "default" { String::new() } else { format!(" --account {account}") }
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
    made.map_err(Failure::because(PRECONDITION, format!("cannot make the volume's directory '{}'", path.display())))?;
    Ok((path, !is_there))
}

/// Where the program leaves the QR code of the account's current secret, until it is delivered. It goes by the volume, too:
/// what a roll-forward that keeps the secret leaves there is nobody's until it is complete.
pub fn issuing_directory(root: &Path, state: &State) -> PathBuf {
    let (secret, volume) = (state.secret_version, state.volume_version);
    root.join("state/issuing").join(format!("{}-{secret}-{volume}", state.namespace.replace('/', "+")))
}

/// The bundle's root and the state of an account that must exist.
pub fn existing(named_root: Option<&Path>, account: &str) -> Result<(PathBuf, StateFile, State), Failure> {
    let create = format!("./scripts/create.rs{}", option(account));
    let root = root::find(named_root, &file_of(account), Some(&create))?;
    let (file, state) = read(&root, account)?;
    let message = format!("the state of account '{account}' vanished");
    let state = state.ok_or_else(|| Failure::new(PRECONDITION, message).hint(&create))?;
    Ok((root, file, state))
}

/// Reads the account's state; `None` if there is none. A damaged file is an error, never a fresh start.
pub fn read(root: &Path, account: &str) -> Result<(StateFile, Option<State>), Failure> {
    let path = root.join(file_of(account));
    let refuse = |cause: &str| Failure::new(PRECONDITION, format!("state file '{}' {cause}", path.display()));
    let unreadable = |e: io::Error| refuse(&format!("cannot be read: {e}"));
    // What lies there must be ours: no link to somewhere else, no pipe to wait for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((StateFile { path, content: None }, None)),
        Err(e) => return Err(unreadable(e)),
    };
    let found = file.metadata().map_err(unreadable)?;
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(refuse(&format!("belongs to another user (uid {})", found.uid())));
    }
    if !found.is_file() || found.mode() & 0o022 != 0 {
        return Err(refuse("is no file that only you can write"));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(unreadable)?;
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    match serde_yaml::from_slice::<Version>(&content) {
        Ok(Version { format: FORMAT }) => {}
        Ok(Version { format }) => return Err(refuse(&format!("has format {format}; this script knows {FORMAT}"))),
        Err(_) => return Err(refuse("is damaged or not ours")),
    }
    let state: State = serde_yaml::from_slice(&content).map_err(|e| refuse(&format!("is damaged: {e}")))?;
    if let Some(what) = state.implausible() {
        return Err(refuse(&format!("is damaged: {what}")));
    }
    Ok((StateFile { path, content: Some(content) }, Some(state)))
}

impl StateFile {
    /// Replaces the file as a whole: temporary file, fsync, re-check that nobody else changed it, rename, fsync of the
    /// directory. The lock is held only here, never at a prompt.
    pub fn write(&mut self, state: &State) -> Result<(), Failure> {
        let failed = |path: &Path| {
            let message = format!("state file '{}' cannot be written", path.display());
            move |e: io::Error| Failure::new(OTHER, format!("{message}: {e}"))
        };
        let directory = self.path.parent().unwrap_or(Path::new(".")).to_owned();
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed(&self.path))?;
        // A checkout brings the directory along, open to all.
        let mode = fs::metadata(&directory).map_err(failed(&self.path))?.mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(&directory, Permissions::from_mode(mode & 0o700)).map_err(failed(&self.path))?;
        }
        let lock = OpenOptions::new().append(true).create(true).mode(0o600).open(self.path.with_extension("lock"));
        let lock = lock.map_err(failed(&self.path))?;
        lock.lock().map_err(failed(&self.path))?;

        let found = match fs::read(&self.path) {
            Ok(content) => Some(content),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed(&self.path)(e)),
        };
        if found != self.content {
            let message =
                format!("state file '{}' was changed by another run; run the same command again", self.path.display());
            return Err(Failure::new(OTHER, message));
        }

        let text =
            serde_yaml::to_string(state).map_err(Failure::because(OTHER, "the state cannot be expressed in YAML"))?;
        let text = format!("# Written by the scripts; described in state/README.md. Holds no secret.\n{text}");
        // `tempfile` makes it 0600.
        let mut file = tempfile::NamedTempFile::new_in(&directory).map_err(failed(&self.path))?;
        file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed(&self.path))?;
        file.persist(&self.path).map_err(|e| failed(&self.path)(e.error))?;
        File::open(&directory).and_then(|directory| directory.sync_all()).map_err(failed(&self.path))?;
        self.content = Some(text.into_bytes());
        Ok(())
    }
}
