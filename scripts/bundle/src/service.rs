//! A program as a service: it goes on when whoever started it has ended. One that ended is not started again, since that takes a code.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::account::Account;
use crate::code::Source;
use crate::container::Ready;
use crate::failure::{Concern, Exit, Failure};
use crate::interrupt;
use crate::program::{Launch, label};
use crate::refusal::Answer;
use crate::state::is_open_to_others;
use crate::step;
use crate::tool::{Finished, Running, Streams, Tool};

#[derive(Debug, thiserror::Error)]
enum ServiceError {
    #[error("cannot make the directory '{directory}': {cause}")]
    NotMade { directory: String, cause: io::Error },
    #[error("the log '{file}' cannot be used: {cause}")]
    NoLog { file: String, cause: io::Error },
    #[error("the log '{file}' must be a file that only you can read")]
    LogOpen { file: String },
    #[error("'sed', which masks the code in the log, was not found")]
    NoSed,
    #[error("program '{program}' cannot be stopped: {reason}")]
    NotStopped { program: String, reason: String },
    #[error("another start of '{program}' as a service is under way")]
    Starting { program: String },
    #[error("the program ended at once, with status {status}: see the log '{log}'")]
    EndedAtOnce { status: String, log: String },
}

impl Concern for ServiceError {
    fn exit(&self) -> Exit {
        use ServiceError::*;
        match self {
            NotStopped { .. } | EndedAtOnce { .. } => Exit::Other,
            _ => Exit::Precondition,
        }
    }
}

/// How long a service must have run to count as started, if nothing says that it did.
const SETTLED: Duration = Duration::from_secs(3);
/// How long a service may take to end, until it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// A service that was started.
pub enum Service {
    Container(String),
    Process(u32),
}

impl Launch<'_> {
    /// Starts it as a service, which goes on when this ends. What it prints goes to `log`.
    pub fn detach(&self, source: Option<&Source>, log: &Path) -> Result<Service, Failure> {
        let tools = &self.account.tools;
        let log = Log::open(log)?;
        let (options, container) = self.container(&[]);
        let start = self.start(&options);
        let get_ready = || {
            let (streams, masking) = log.streams()?;
            let ready = tools.get_ready(&start, Some(streams))?;
            if !ready.has_ended() {
                return Ok((masking, ready));
            }
            let ended = ready.hand_over("")?.finish_through()?;
            Err(self.explain(&Finished { stderr: log.rest(masking)?, ..ended }))
        };
        let mut service = None;
        let finished = self.present(source, &get_ready, &mut |(masking, ready): (_, Ready), code| {
            self.check_again()?;
            let mut record = Record::open(self.account, self.name)?;
            let starting = || ServiceError::Starting { program: self.name.to_owned() };
            let Held::Free = record.hold()? else { return Err(starting().into()) };
            // Another may have been started while this code was typed.
            if tools.runs_containers() && running(self.account, self.name)?.is_some() {
                return Err(starting().into());
            }
            record.write(if tools.runs_containers() { &container } else { "" })?;
            let running = ready.hand_over(&self.config_id(code))?;
            let process = running.id().filter(|_| !tools.runs_containers());
            if let Some(process) = process {
                record.write(&process.to_string())?;
            }
            step("waiting whether it goes on running");
            let handed_over = Instant::now();
            while handed_over.elapsed() < SETTLED && !running.has_ended() && !interrupt::is_interrupted() {
                sleep(Duration::from_millis(20));
            }
            if running.has_ended() {
                let ended = running.finish_through()?;
                let said = log.rest(masking)?;
                let gave_up = ended.code == Some(134) && said.contains("[SCONE|FATAL]");
                return Ok(Finished { stderr: if gave_up { said } else { String::new() }, ..ended });
            }
            service = Some(process.map_or_else(|| Service::Container(container.clone()), Service::Process));
            Ok(Finished { code: Some(0), stdout: String::new(), stderr: String::new() })
        })?;
        match service {
            Some(service) => Ok(service),
            None if Answer::is_of_start(&finished) => Err(self.explain(&finished)),
            None => {
                let status = finished.code.map_or("of a signal".to_owned(), |code| code.to_string());
                Err(ServiceError::EndedAtOnce { status, log: log.path.display().to_string() }.into())
            }
        }
    }
}

/// The service that runs, if there is one.
pub fn running(account: &Account, name: &str) -> Result<Option<Service>, Failure> {
    let mut record = Record::open(account, name)?;
    let found = record.read()?;
    if account.tools.runs_containers() {
        let running = account.tools.containers(&label(account, name), "{{.Names}}")?;
        return Ok(running.contains(&found).then_some(Service::Container(found)));
    }
    // The service holds it, too.
    Ok(match record.hold()? {
        Held::Free => None,
        Held::ByAnother => found.parse().ok().map(Service::Process),
    })
}

/// Ends the service, if it runs. Whether it did.
pub fn stop(account: &Account, name: &str) -> Result<bool, Failure> {
    let not_stopped = |reason: String| ServiceError::NotStopped { program: name.to_owned(), reason };
    match running(account, name)? {
        None => Ok(false),
        Some(Service::Container(container)) => {
            let grace = format!("--time={}", GRACE.as_secs());
            let stopped = account.tools.engine.run_through(&["stop", &grace, &container].map(OsString::from))?;
            if stopped.success() { Ok(true) } else { Err(not_stopped(stopped.reason()).into()) }
        }
        Some(Service::Process(process)) => {
            end(process).map_err(|cause| not_stopped(cause.to_string()))?;
            Ok(true)
        }
    }
}

/// Has a process end that holds a service's record, or has ended meanwhile.
fn end(process: u32) -> io::Result<()> {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        handle => handle?,
    };
    for signal in [Signal::TERM, Signal::KILL] {
        pidfd_send_signal(&handle, signal)?;
        let patience = Timespec { tv_sec: GRACE.as_secs() as i64, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&patience))? > 0 {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// What service runs: a container's name, or a process. Whoever starts one holds the record, and so does a process on this host as
/// long as it runs: the number in it may be another's by then.
struct Record {
    path: PathBuf,
    file: File,
}

enum Held {
    Free,
    ByAnother,
}

impl Record {
    fn open(account: &Account, name: &str) -> Result<Record, Failure> {
        let directory = account.root.join("state/running");
        let path = directory.join(format!("{}.{name}", account.name));
        let open = || -> io::Result<File> {
            DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            options.custom_flags(OFlags::NOFOLLOW.bits() as i32).open(&path)
        };
        match open() {
            Ok(file) => Ok(Record { path, file }),
            Err(cause) => Err(ServiceError::NotMade { directory: path.display().to_string(), cause }.into()),
        }
    }

    fn failed(&self, cause: io::Error) -> Failure {
        ServiceError::NotMade { directory: self.path.display().to_string(), cause }.into()
    }

    /// Takes it, and has the programs that are started from now on hold it, too.
    fn hold(&mut self) -> Result<Held, Failure> {
        match self.file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(Held::ByAnother),
            Err(TryLockError::Error(cause)) => return Err(self.failed(cause)),
            Ok(()) => {}
        }
        fcntl_setfd(&self.file, FdFlags::empty()).map_err(|cause| self.failed(cause.into()))?;
        Ok(Held::Free)
    }

    fn read(&mut self) -> Result<String, Failure> {
        let mut text = String::new();
        self.file.read_to_string(&mut text).map_err(|cause| self.failed(cause))?;
        Ok(text.trim_end().to_owned())
    }

    fn write(&mut self, service: &str) -> Result<(), Failure> {
        let write = || -> io::Result<()> {
            self.file.set_len(0)?;
            (&self.file).seek(SeekFrom::Start(0))?;
            (&self.file).write_all(format!("{service}\n").as_bytes())
        };
        write().map_err(|cause| self.failed(cause))
    }
}

/// Where a service's output goes. Only its user can read it, and the code is masked.
struct Log {
    path: PathBuf,
    file: File,
    /// What it held before the last start.
    length: Cell<u64>,
}

impl Log {
    fn open(path: &Path) -> Result<Log, Failure> {
        let failed = |cause| ServiceError::NoLog { file: path.display().to_string(), cause };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = options.custom_flags(flags.bits() as i32).open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let is_ours = found.uid() == rustix::process::geteuid().as_raw();
        if !found.is_file() || !is_ours || is_open_to_others(found.mode()) {
            return Err(ServiceError::LogOpen { file: path.display().to_string() }.into());
        }
        Ok(Log { path: path.to_owned(), file, length: Cell::new(found.len()) })
    }

    /// Streams that end in the log, and what masks the code on the way: it ends when they do.
    fn streams(&self) -> Result<(Streams, Running<'static>), Failure> {
        static SED: std::sync::OnceLock<Option<Tool>> = std::sync::OnceLock::new();
        let sed = SED.get_or_init(|| Tool::find("sed", None)).as_ref().ok_or(ServiceError::NoSed)?;
        let made = || -> io::Result<(Streams, Streams)> {
            self.length.set(self.file.metadata()?.len());
            let null = || File::open("/dev/null");
            let (said, says) = io::pipe()?;
            let says = File::from(std::os::fd::OwnedFd::from(says));
            let masking = Streams {
                stdin: std::os::fd::OwnedFd::from(said).into(),
                stdout: self.file.try_clone()?,
                stderr: self.file.try_clone()?,
                is_apart: true,
            };
            Ok((Streams { stdin: null()?, stdout: says.try_clone()?, stderr: says, is_apart: true }, masking))
        };
        let failed = |cause| ServiceError::NoLog { file: self.path.display().to_string(), cause };
        let (streams, masking) = made().map_err(failed)?;
        let args = ["-u", "s/@[0-9]\\{6\\}/@******/g"].map(OsString::from);
        Ok((streams, sed.start_with(&args, &[], masking)?))
    }

    /// What was said since, once whoever said it has ended.
    fn rest(&self, masking: Running) -> Result<String, Failure> {
        masking.finish_through()?;
        let failed = |cause| ServiceError::NoLog { file: self.path.display().to_string(), cause };
        let mut said = Vec::new();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.length.get())).and_then(|_| file.read_to_end(&mut said)).map_err(failed)?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}
