//! The QR code's way from the program to a file: never overwriting, never in a stream, never lost.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::child::{Finished, Tool};
use super::outcome::{Failure, OTHER, PART_WAY, PRECONDITION, REFUSED, quoted};
use super::platform::{Start, Tools};
use super::state::{self, State, issuing_directory, volume_directory};

/// Where the QR code is to be, and the directory that is mounted for the program to write into: `state/issuing/…`, named
/// after the secret it shows. So what a run that was cut off left there is found by the next one, wherever that is to
/// deliver it, and never taken for another account's.
pub struct Output {
    account: String,
    directory: PathBuf,
    /// Held until the QR code is delivered: two runs must not take each other's file for a leftover.
    _lock: File,
}

impl Output {
    /// Checks that the QR code can be brought to a file, if it is to be. Repeated when it counts; here to refuse early.
    pub fn prepare(root: &Path, account: &str, state: &State, to: Option<&Path>) -> Result<Output, Failure> {
        if let Some(path) = to {
            let shown = path.display();
            if path.file_name().is_none() {
                return Err(Failure::new(PRECONDITION, format!("output '{shown}' is no file name")));
            }
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let writable = rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK);
            writable
                .map_err(Failure::because(PRECONDITION, format!("nothing can be written beside output '{shown}'")))?;
            if path.symlink_metadata().is_ok() {
                let option = state::option(account);
                let other = format!("./scripts/{}.rs{option} --output another.svg", crate::outcome::script());
                return Err(Failure::new(PRECONDITION, format!("output '{shown}' exists already")).hint(other));
            }
        }
        let directory = issuing_directory(root, state);
        let failed =
            |cause: String| Failure::new(PRECONDITION, format!("cannot prepare '{}': {cause}", directory.display()));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(|e| failed(e.to_string()))?;
        let found = directory.symlink_metadata().map_err(|e| failed(e.to_string()))?;
        let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0;
        if !ours {
            return Err(failed("it is not a private directory of ours".to_owned()));
        }
        let lock = File::open(&directory).map_err(|e| failed(e.to_string()))?;
        lock.try_lock().map_err(|_| failed("another run is issuing the same QR code".to_owned()))?;
        let output = Output { account: account.to_owned(), directory: directory.clone(), _lock: lock };
        if !output.is_complete() && output.written().exists() {
            // What a killed program had reserved and not filled: nothing can be read from it, and the marker is taken.
            fs::remove_file(output.written()).map_err(|e| failed(e.to_string()))?;
        }
        Ok(output)
    }

    /// Starts `session/service[@code]` with the account's volume, to write here.
    pub fn start(&self, tools: &Tools, root: &Path, state: &State, config_id: &str) -> Result<Finished, Failure> {
        let (volume, made) = volume_directory(root, &self.account, state.volume_version)?;
        let (cas, image_id) = (&state.cas, state.image_id.as_str());
        let started = tools.start(&Start { config_id, cas, image_id, directories: Some((&volume, &self.directory)) });
        // If it is still empty, it would stand in the way of one that is moved back.
        if made {
            let _ = fs::remove_dir(&volume);
        }
        started.map_err(|failure| match self.is_complete() {
            true => failure.leaving(&self.waiting("run the same command again")),
            false => failure,
        })
    }

    /// What somebody must know while the QR code is where the program left it.
    pub fn waiting(&self, why: impl std::fmt::Display) -> String {
        format!("the QR code waits in '{}'; {why}", self.written().display())
    }

    fn written(&self) -> PathBuf {
        self.directory.join("qrcode.svg")
    }

    /// Whether the program wrote a whole QR code - now, or in an earlier run that was cut off before it could deliver.
    pub fn is_complete(&self) -> bool {
        fs::read(self.written()).is_ok_and(|svg| svg.ends_with(b"</svg>\n"))
    }

    /// Brings the QR code to its place; fails rather than replace anything.
    pub fn deliver(self, to: &Path) -> Result<(), Failure> {
        let written = self.written();
        let failed = |e: io::Error| {
            let why = format!("it cannot be brought to '{}': {e}", to.display());
            Failure::new(PART_WAY, self.waiting(why))
        };
        // A hard link, unlike a rename, never replaces. To another file system, or one without links, it is copied.
        match fs::hard_link(&written, to) {
            Ok(()) => fs::remove_file(&written).map_err(failed),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(failed(e)),
            Err(_) => {
                copy(&written, to).map_err(failed)?;
                destroy(&written).map(drop)
            }
        }
    }

    /// The QR code itself, for the terminal.
    pub fn read(&self) -> Result<String, Failure> {
        let written = self.written();
        fs::read_to_string(&written).map_err(Failure::because(OTHER, format!("cannot read '{}'", written.display())))
    }

    /// Destroys the QR code where the program left it.
    pub fn destroy(self) -> Result<String, Failure> {
        destroy(&self.written())
    }

    /// After a failed start: why, and nothing left behind that is not worth anything.
    pub fn explain(self, finished: &Finished) -> Failure {
        let account = state::option(&self.account);
        let reason = finished.reason();
        let fatal = finished.stderr.contains("[SCONE|FATAL]");
        let volume = [
            "suspected replay attack",
            "file system protection file",
            "Verification of file chunk",
            "is not part of this volume",
        ];
        let unreachable = "Failed to establish an encrypted channel to CAS";
        if self.written().exists() && !fatal {
            return Failure::new(PART_WAY, "the program started, but left an incomplete QR code")
                .hint(format!("./scripts/roll_forward.rs{account}   # the once-marker may be taken"));
        }
        match finished.code {
            _ if fatal && volume.iter().any(|text| reason.contains(text)) => {
                Failure::new(REFUSED, format!("the volume was refused: {reason}"))
                    .hint(format!(
                        "./scripts/roll_forward.rs{account} --keep-secret   # authenticator at hand: codes go on"
                    ))
                    .hint(format!("./scripts/roll_forward.rs{account}   # otherwise: new secret, kills the old codes"))
            }
            _ if fatal && finished.stderr.contains(unreachable) => {
                Failure::new(PRECONDITION, format!("there is no channel to CAS: {reason}"))
            }
            _ if fatal && reason.contains("the volume is in use") => {
                Failure::new(PRECONDITION, format!("another start is at work: {reason}"))
            }
            _ if fatal && reason.contains("Unexpected enclave measurement") => {
                Failure::new(REFUSED, format!("the program is not the one in the policies: {reason}"))
                    .hint(format!("./scripts/create.rs{account}   # updates the policies"))
            }
            _ if fatal => Failure::new(REFUSED, format!("the start was refused: {reason}")),
            Some(10) => Failure::new(REFUSED, "the QR code was issued already, and is issued only once")
                .hint(format!(
                    "./scripts/add_auth.rs{account}       # with a code: the same secret for another authenticator"
                ))
                .hint(format!("./scripts/roll_forward.rs{account}   # without: new secret, kills the old codes")),
            Some(11) => Failure::new(OTHER, format!("the policy does not suit the program: {reason}")),
            Some(12) => Failure::new(PRECONDITION, format!("the program cannot write its output: {reason}")),
            Some(125..=127) => Failure::new(PRECONDITION, format!("the program could not be started: {reason}")),
            _ => Failure::new(PART_WAY, format!("the program ended without a QR code: {reason}"))
                .hint(format!("./scripts/roll_forward.rs{account}   # if the once-marker is taken")),
        }
    }
}

fn copy(written: &Path, to: &Path) -> io::Result<()> {
    let svg = fs::read(written)?;
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    let copied = file.write_all(&svg).and_then(|()| file.sync_all());
    if copied.is_err() {
        fs::remove_file(to)?;
    }
    copied
}

/// Nothing stays behind of a start that issued nothing. What was issued stays for the next run, until it is delivered.
impl Drop for Output {
    fn drop(&mut self) {
        if !self.is_complete() {
            // Both may be gone, or never have been; what cannot be removed now is removed by the next run.
            let _ = fs::remove_file(self.written());
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

/// Destroys the picture, and says how far that goes.
pub fn destroy(path: &Path) -> Result<String, Failure> {
    let failed = |cause: String| {
        let message = format!("the QR code in '{}' cannot be destroyed: {cause}", path.display());
        Failure::new(PART_WAY, message)
    };
    let kind = rustix::fs::statfs(path).map_err(|cause| failed(cause.to_string()))?.f_type;
    let shred = Tool::find("shred", None);
    match &shred {
        Some(shred) => {
            let args = ["-n", "3", "-z", "-u", "--"].map(Into::into).into_iter().chain([path.into()]);
            let finished = shred.run_through(&args.collect::<Vec<_>>())?;
            if !finished.success() {
                return Err(failed(finished.reason()));
            }
        }
        None => fs::remove_file(path).map_err(|cause| failed(cause.to_string()))?,
    }
    // Magic numbers: statfs(2).
    let weak = match kind {
        0x0102_1994 => Some("tmpfs: what was swapped out may remain"),
        0x9123_683e => Some("btrfs writes elsewhere: old blocks may remain"),
        0x2fc1_2fc1 => Some("ZFS writes elsewhere: old blocks may remain"),
        0x794c_7630 | 0x6573_5546 => Some("an overlay: what lies below decides"),
        0xca45_1a4e => Some("bcachefs writes elsewhere: old blocks may remain"),
        0x6969 => Some("NFS: the server decides"),
        0xff53_4d42 | 0xfe53_4d42 => Some("SMB: the server decides"),
        0xf2f5_2010 => Some("F2FS writes elsewhere: old blocks may remain"),
        _ => None,
    };
    Ok(match (shred, weak) {
        (None, _) => "removed, not overwritten: 'shred' was not found".to_owned(),
        (Some(_), None) => "destroyed (what a flash drive or a backup kept aside is beyond reach)".to_owned(),
        (Some(_), Some(weak)) => format!("destroyed, as far as the file system lets it: {weak}"),
    })
}

/// The command that destroys a QR code.
pub fn shred_command(path: &Path) -> String {
    format!("shred -n 3 -z -u {}", quoted(path.display()))
}
