//! The QR code's way from the program to a file: never overwriting, never in a stream, never lost.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::account::Account;
use crate::code::Presentation;
use crate::container::{self, Mount, Start};
use crate::failure::{Concern, Exit, Failure};
use crate::refusal::Answer;
use crate::state::{self, Lock};
use crate::step;
use crate::tool::{Finished, Tool};

#[derive(Debug, thiserror::Error)]
enum IssueError {
    #[error("output '{output}' is not a file name")]
    NoFileName { output: String },
    #[error("nothing can be written beside output '{output}': {cause}")]
    NotWritable { output: String, cause: io::Error },
    #[error("output '{output}' exists already")]
    Exists { output: String },
    #[error("cannot prepare '{directory}': {cause}")]
    NotPrepared { directory: String, cause: io::Error },
    #[error("cannot prepare '{directory}': it must be a directory that only you can open")]
    NotPrivate { directory: String },
    #[error("a container that was left running may still write to '{directory}': wait until it has ended")]
    StillRuns { directory: String },
    #[error("cannot read '{file}': {cause}")]
    Unreadable { file: String, cause: io::Error },
    #[error("the QR code waits in '{file}'; it cannot be delivered to '{output}': {cause}")]
    NotDelivered { file: String, output: String, cause: io::Error },
    #[error("the QR code in '{file}' cannot be destroyed: {cause}")]
    NotDestroyed { file: String, cause: String },
    #[error("the program started, but left an incomplete QR code: {reason}")]
    Incomplete { reason: String },
    #[error("the volume was refused: {reason}")]
    Volume { reason: String },
    #[error("CAS cannot be reached: {reason}")]
    NoChannel { reason: String },
    #[error("CAS itself cannot work: {reason}")]
    CasFailed { reason: String },
    #[error("another start is running: {reason}")]
    AnotherStart { reason: String },
    #[error("the program is not the one in the policies: {reason}")]
    AnotherProgram { reason: String },
    #[error("the program is not signed for production: {reason}")]
    Unsigned { reason: String },
    #[error("the start was refused: {reason}")]
    Refused { reason: String },
    #[error("the QR code was issued already, and is issued only once")]
    IssuedAlready,
    #[error("the policy does not fit the program: {reason}")]
    Policy { reason: String },
    #[error("the program cannot write its output: {reason}")]
    Output { reason: String },
    #[error("the program could not be started: {reason}")]
    NotStarted { reason: String },
    #[error("this host cannot run the program: {reason}")]
    Host { reason: String },
    #[error("the program ended without a QR code: {reason}")]
    NoQrCode { reason: String },
    #[error("the program was not started")]
    NeverStarted,
}

impl Concern for IssueError {
    fn exit(&self) -> Exit {
        use IssueError::*;
        match self {
            NoFileName { .. } | NotWritable { .. } | Exists { .. } => Exit::Precondition,
            NotPrepared { .. } | NotPrivate { .. } => Exit::Precondition,
            NoChannel { .. } | CasFailed { .. } | AnotherStart { .. } => Exit::Precondition,
            Output { .. } | NotStarted { .. } | Host { .. } | Unsigned { .. } => Exit::Precondition,
            Volume { .. } | AnotherProgram { .. } | Refused { .. } | IssuedAlready => Exit::Refused,
            StillRuns { .. } | NotDelivered { .. } | NotDestroyed { .. } => Exit::PartWay,
            Incomplete { .. } | NoQrCode { .. } => Exit::PartWay,
            Unreadable { .. } | Policy { .. } | NeverStarted => Exit::Other,
        }
    }
}

/// What the program writes.
const PICTURE: &str = "qrcode.svg";

/// Where the QR code is to be, and the directory that is mounted for the program to write into: `state/issuing/…`, named after
/// the secret it shows. So what a run that was cut off left there is found by the next one, wherever that is to deliver it, and
/// never taken for another account's.
pub struct Output<'a> {
    account: &'a Account,
    /// The version of the volume that the program opens.
    volume: u32,
    directory: PathBuf,
    /// Held until the QR code is delivered: the program opens the volume that the state names, and two runs must not take each
    /// other's file for a leftover.
    _lock: Lock,
}

impl<'a> Output<'a> {
    /// Makes ready for a QR code of the account's secret, issued on this version of its volume.
    pub fn prepare(account: &'a Account, volume: u32) -> Result<Output<'a>, Failure> {
        Output::prepare_in(account, volume, state::issuing_directory(&account.root, &account.state, volume))
    }

    /// Makes ready for a start that issues nothing, aside from where a QR code may wait. What a container mounts lies below
    /// `state/`: an engine may see no temporary directory, and what a killed run leaves is found by the next one.
    pub fn prepare_aside(account: &'a Account, volume: u32) -> Result<Output<'a>, Failure> {
        // Its name tells containers of different bundles apart.
        let name = format!("{}.doctor", account.state.namespace.replace('/', "+"));
        Output::prepare_in(account, volume, account.root.join("state/issuing").join(name))
    }

    fn prepare_in(account: &'a Account, volume: u32, directory: PathBuf) -> Result<Output<'a>, Failure> {
        let mut lock = account.lock()?;
        if !account.tools.runs_containers() {
            lock = lock.passed_on()?;
        }
        make_private(&directory)?;
        let output = Output { account, volume, directory, _lock: lock };
        // Before looking at what it writes: then that changes no more.
        if account.tools.is_written(&output.directory)? {
            return Err(output.still_runs());
        }
        if output.is_complete() {
            if let Ok(copy) = fs::read_link(output.note()) {
                let copy = copy.display();
                step(format!("a run was cut off while it delivered this QR code: '{copy}' may hold it, too"));
            }
            return Ok(output);
        }
        // What a killed program had reserved and not filled: nothing can be read from it, and the marker is taken.
        for left in [output.written(), output.note()] {
            if let Err(cause) = fs::remove_file(left)
                && cause.kind() != io::ErrorKind::NotFound
            {
                let directory = output.directory.display().to_string();
                return Err(IssueError::NotPrepared { directory, cause }.into());
            }
        }
        Ok(output)
    }

    /// Starts `session/service[@code]` with the account's volume, to write here.
    pub fn start(&self, config_id: &str) -> Result<Finished, Failure> {
        let account = self.account;
        let (volume, is_new) = account.volume_directory(self.volume)?;
        let volumes = [(volume, container::VOLUME.to_owned())];
        let inside = container::OUTPUT.to_owned();
        let start = Start {
            volumes: &volumes,
            mounts: &[Mount { host: self.directory.clone(), inside, is_readonly: false }],
            label: Some(container::label(&self.directory)),
            ..Start::of(account)
        };
        let started = account.tools.get_ready(&start, None).and_then(|ready| ready.go(config_id));
        // If it is still empty, it would stand in the way of one that is moved back.
        if is_new {
            let [(volume, _)] = &volumes;
            let _ = fs::remove_dir(volume);
        }
        started.map_err(|failure| {
            if self.is_complete() {
                failure.if_interrupted(&self.waiting("run the same command again"))
            } else {
                failure
            }
        })
    }

    /// Has the QR code issued by a service that asks for no code.
    pub fn issue(&self, service: &str) -> Result<(), Failure> {
        let finished = self.start(service)?;
        if self.is_complete() { Ok(()) } else { Err(self.explain(&finished)) }
    }

    /// Has the service `check` started, which starts only if program and volume are right.
    pub fn check(&self) -> Result<(), Failure> {
        let finished = self.start(&format!("{}/otpqr/check", self.account.state.namespace))?;
        if finished.success() { Ok(()) } else { Err(self.explain(&finished)) }
    }

    /// Has it issued by a service that asks for a code. While a person is asked, nothing is held and nothing lies about. Returns
    /// the time step of the code it cost, too.
    pub fn issue_with_code(
        presentation: Presentation,
        service: &str,
        doing: &str,
        prepare: impl Fn() -> Result<Output<'a>, Failure>,
    ) -> Result<(Output<'a>, u64), Failure> {
        let mut issued = None;
        let (finished, spent) = presentation.make(&|| Ok(()), &mut |(), code| {
            let output = prepare()?;
            step(doing);
            let finished = output.start(&code.config_id(service))?;
            if !Answer::of(&finished).is_about_code() {
                issued = Some(output);
            }
            Ok(finished)
        })?;
        let output = issued.ok_or(IssueError::NeverStarted)?;
        if output.is_complete() { Ok((output, spent)) } else { Err(output.explain(&finished)) }
    }

    /// What somebody has to know while the QR code is where the program left it.
    pub fn waiting(&self, why: &str) -> String {
        format!("the QR code waits in '{}'; {why}", self.written().display())
    }

    fn written(&self) -> PathBuf {
        self.directory.join(PICTURE)
    }

    /// Whether the program wrote a whole QR code - now, or in an earlier run that was cut off before it could deliver.
    pub fn is_complete(&self) -> bool {
        fs::read(self.written()).is_ok_and(|svg| svg.ends_with(b"</svg>\n"))
    }

    /// Brings the QR code to its place; fails rather than replace anything.
    pub fn deliver(self, to: &Path) -> Result<(), Failure> {
        let written = self.written();
        let failed = |cause| {
            let (file, output) = (written.display().to_string(), to.display().to_string());
            IssueError::NotDelivered { file, output, cause }
        };
        match renameat_with(CWD, &written, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(failed(Errno::EXIST.into()).into()),
            // To another file system, or on one that may replace, it is copied.
            Err(_) => {
                let note = self.note();
                // It may be an earlier run's, which was reported.
                let _ = fs::remove_file(&note);
                let noted = std::path::absolute(to).and_then(|to| symlink(to, &note));
                if let Err(cause) = noted.and_then(|()| copy(&written, to)) {
                    let _ = fs::remove_file(&note);
                    return Err(failed(cause).into());
                }
                destroy(&written).map(drop)
            }
        }
    }

    /// Where the QR code is copied to, as a link: killed before the original is destroyed, the next run says that there are two.
    fn note(&self) -> PathBuf {
        self.directory.join("copied-to")
    }

    /// The QR code itself, for the terminal.
    pub fn read(&self) -> Result<String, Failure> {
        let written = self.written();
        let file = written.display().to_string();
        Ok(fs::read_to_string(&written).map_err(|cause| IssueError::Unreadable { file, cause })?)
    }

    /// Destroys the QR code where the program left it; says how far that goes.
    pub fn destroy(self) -> Result<String, Failure> {
        destroy(&self.written())
    }

    /// Why a start issued no QR code. Whether the once-marker is taken, only the next start says: until then nothing is given up.
    fn explain(&self, finished: &Finished) -> Failure {
        let (account, answer, reason) = (self.account, Answer::of(finished), finished.reason());
        if !answer.is_refusal() && self.may_be_written() {
            return self.still_runs();
        }
        let helps = account.remedy(&finished.stderr);
        let again = account.again() + "   # once more: it says so if the once-marker is taken";
        if self.written().exists() && !answer.is_refusal() {
            return Failure::from(IssueError::Incomplete { reason: finished.whole_reason() }).hints(helps).hint(again);
        }
        match answer {
            Answer::Volume => Failure::from(IssueError::Volume { reason })
                .hint(account.script("roll_forward", " --keep-secret   # if it cannot be put back: codes stay valid"))
                .hint(
                    account
                        .script("roll_forward", "   # and there is no authenticator: new secret, kills the old codes"),
                ),
            Answer::NoChannelToCas => IssueError::NoChannel { reason }.into(),
            Answer::CasFailed => Failure::from(IssueError::CasFailed { reason }).hints(helps),
            Answer::VolumeInUse => IssueError::AnotherStart { reason }.into(),
            Answer::Measurement => Failure::from(IssueError::AnotherProgram { reason })
                .hint(account.script("create", "   # updates the policies")),
            Answer::Unsigned => Failure::from(IssueError::Unsigned { reason }).hints(helps),
            Answer::Refused | Answer::CodeUsed | Answer::CodeInvalid | Answer::TooManyCodes => {
                Failure::from(IssueError::Refused { reason }).hints(helps)
            }
            Answer::MarkerPresent => Failure::from(IssueError::IssuedAlready)
                .hint(account.script("add_auth", "       # with a code: the same secret for another authenticator"))
                .hint(account.script("roll_forward", "   # without: new secret, kills the old codes")),
            Answer::Environment => IssueError::Policy { reason }.into(),
            Answer::Output => Failure::from(IssueError::Output { reason }).hints(helps),
            Answer::NotStarted => Failure::from(IssueError::NotStarted { reason }).hints(helps),
            Answer::Host => Failure::from(IssueError::Host { reason: finished.whole_reason() }).hints(helps),
            Answer::Ended => Failure::from(IssueError::NoQrCode { reason }).hints(helps).hint(again),
        }
    }

    /// Whether a container may still write here: one goes on when its client was killed. If the engine does not say, it may.
    fn may_be_written(&self) -> bool {
        self.account.tools.is_written(&self.directory).unwrap_or(true)
    }

    fn still_runs(&self) -> Failure {
        let directory = self.directory.display().to_string();
        Failure::from(IssueError::StillRuns { directory })
            .hint(format!("docker ps --filter label={}", container::label(&self.directory)))
    }
}

/// Nothing stays behind of a start that issued nothing. What was issued stays for the next run, until it is delivered.
impl Drop for Output<'_> {
    fn drop(&mut self) {
        // In this order: what nobody writes to changes no more. What cannot be removed now is removed by the next run.
        if self.written().exists() && !self.may_be_written() && !self.is_complete() {
            let _ = fs::remove_file(self.written());
        }
        if !self.written().exists() {
            let _ = fs::remove_file(self.note());
        }
        // Only if it is empty.
        let _ = fs::remove_dir(&self.directory);
    }
}

/// Destroys the QR code that a run which was cut off left of the account's secret and volume, before they are given up: nobody
/// would look for it any more.
pub fn discard(account: &Account, _lock: &Lock) -> Result<(), Failure> {
    let directory = state::issuing_directory(&account.root, &account.state, account.state.volume_version);
    let written = directory.join(PICTURE);
    if written.exists() {
        step(format!("the QR code that a run left in '{}' is not needed: {}", written.display(), destroy(&written)?));
    }
    // It may never have been.
    let _ = fs::remove_dir_all(&directory);
    Ok(())
}

/// Checks that the QR code can be brought to a file. Repeated when it counts; here to refuse early.
pub fn check_destination(account: &Account, to: &Path) -> Result<(), Failure> {
    let output = || to.display().to_string();
    if to.file_name().is_none() {
        return Err(IssueError::NoFileName { output: output() }.into());
    }
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let writable = rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK);
    writable.map_err(|cause| IssueError::NotWritable { output: output(), cause: cause.into() })?;
    if to.symlink_metadata().is_ok() {
        let other = account.script(crate::script(), " --output another.svg");
        return Err(Failure::from(IssueError::Exists { output: output() }).hint(other));
    }
    Ok(())
}

/// Makes the directory for the program to write into.
fn make_private(directory: &Path) -> Result<(), IssueError> {
    let shown = || directory.display().to_string();
    let failed = |cause| IssueError::NotPrepared { directory: shown(), cause };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let found = directory.symlink_metadata().map_err(failed)?;
    let is_ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0;
    if is_ours { Ok(()) } else { Err(IssueError::NotPrivate { directory: shown() }) }
}

fn copy(written: &Path, to: &Path) -> io::Result<()> {
    let svg = fs::read(written)?;
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    let copied = file.metadata().and_then(|made| {
        if state::is_open_to_others(made.mode()) {
            Err(io::Error::other("its file system ignores permissions, so others could read it"))
        } else {
            file.write_all(&svg).and_then(|()| file.sync_all())
        }
    });
    if copied.is_err() {
        fs::remove_file(to)?;
    }
    copied
}

/// File systems on which overwriting a file need not overwrite its content: magic numbers of statfs(2), and why.
const WEAK: &[(i64, &str)] = &[
    (0x0102_1994, "tmpfs: what was swapped out may remain"),
    (0x9123_683e, "btrfs writes elsewhere: old blocks may remain"),
    (0x2fc1_2fc1, "ZFS writes elsewhere: old blocks may remain"),
    (0x794c_7630, "an overlay: what lies below decides"),
    (0x6573_5546, "an overlay: what lies below decides"),
    (0xca45_1a4e, "bcachefs writes elsewhere: old blocks may remain"),
    (0x6969, "NFS: the server decides"),
    (0xff53_4d42, "SMB: the server decides"),
    (0xfe53_4d42, "SMB: the server decides"),
    (0xf2f5_2010, "F2FS writes elsewhere: old blocks may remain"),
];

/// Destroys the picture, and says how far that goes.
pub fn destroy(path: &Path) -> Result<String, Failure> {
    let failed = |cause: String| IssueError::NotDestroyed { file: path.display().to_string(), cause };
    let kind = rustix::fs::statfs(path).map_err(|cause| failed(cause.to_string()))?.f_type;
    let Some(shred) = Tool::find("shred", None) else {
        fs::remove_file(path).map_err(|cause| failed(cause.to_string()))?;
        return Ok("removed, not overwritten: 'shred' was not found".to_owned());
    };
    let args = ["-n", "3", "-z", "-u", "--"].map(Into::into).into_iter().chain([path.into()]);
    let finished = shred.run_through(&args.collect::<Vec<_>>())?;
    if !finished.success() {
        return Err(failed(finished.reason()).into());
    }
    Ok(match WEAK.iter().find(|(magic, _)| *magic == kind) {
        None => "destroyed (what a flash drive or a backup kept aside is beyond reach)".to_owned(),
        Some((_, weak)) => format!("destroyed, as far as the file system lets it: {weak}"),
    })
}
