//! One CAS per data directory: `cas` serves in the foreground, `up`, `down` and `status` handle one in the background.
//!
//! `cas.pid` is locked by the CAS that serves and holds its process id: the lock, which no crash leaves behind, tells whether
//! one is alive, and waiting for the lock is waiting for its end. `endpoints.json` says where it serves and outlives it, so
//! that the ports stay. `turn.lock` is held while one is started, stopped or asked for. `cas.log` is its standard error. The database is described in `store`.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit, setsid};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::audit::{self, Event};
use crate::cas::{Cas, CasError, DATABASE};
use crate::clock::Clock;
use crate::store::{self, Store, StoreError};
use crate::{SOFTWARE_ONLY, server, tls};

const PID_FILE: &str = "cas.pid";
const ENDPOINTS: &str = "endpoints.json";
const TURN: &str = "turn.lock";
const LOG: &str = "cas.log";

/// SCONE's port of the client API.
pub const CLIENT_PORT: u16 = 8081;

/// SCONE's port of the enclave API.
pub const ENCLAVE_PORT: u16 = 18765;

/// Why a command about the CAS process failed.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Neither `--data` nor a home.
    #[error("no data directory: neither XDG_DATA_HOME nor HOME is set")]
    NoHome,
    /// The file system.
    #[error("cannot use '{}': {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A port is taken.
    #[error("cannot listen on 127.0.0.1:{port}: {source}")]
    Listen {
        /// Which port.
        port: u16,
        /// The option that changes it.
        option: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Another CAS serves this directory.
    #[error("a CAS is already running on '{}'", .0.display())]
    Running(PathBuf),
    /// One runs, but otherwise than asked for.
    #[error("a CAS is already running on '{}' with another {what}", data.display())]
    Differs {
        /// The data directory.
        data: PathBuf,
        /// `port` or `clock`.
        what: &'static str,
    },
    /// None runs.
    #[error("no CAS is running on '{}'", .0.display())]
    NotRunning(PathBuf),
    /// A file of the directory is not what we write.
    #[error("'{}' is damaged", .0.display())]
    Damaged(PathBuf),
    /// The background process ended before it served, with these words and this exit code.
    #[error("the CAS did not start: {cause}")]
    DidNotStart {
        /// Its error.
        cause: String,
        /// Its hint.
        hint: Option<String>,
        /// Its exit code.
        exit_code: u8,
    },
    /// A system call.
    #[error("{what}: {source}")]
    System {
        /// What failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// CAS itself.
    #[error(transparent)]
    Cas(#[from] CasError),
    /// The audit log does not hold together.
    #[error(transparent)]
    Log(#[from] audit::Flaw),
}

impl From<tls::TlsError> for DaemonError {
    fn from(error: tls::TlsError) -> DaemonError {
        CasError::from(error).into()
    }
}

impl From<StoreError> for DaemonError {
    fn from(error: StoreError) -> DaemonError {
        CasError::from(error).into()
    }
}

impl DaemonError {
    /// The exit code: 2 usage, 3 a precondition is missing, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            DaemonError::Listen { .. }
            | DaemonError::Running(_)
            | DaemonError::Differs { .. }
            | DaemonError::NotRunning(_) => 3,
            DaemonError::DidNotStart { exit_code, .. } => *exit_code,
            DaemonError::NoHome => 2,
            _ => 1,
        }
    }

    /// What to try next.
    pub fn hint(&self) -> Option<String> {
        match self {
            DaemonError::NoHome => Some("scone-sim up --data DIR".into()),
            DaemonError::Listen { option, .. } => Some(format!("scone-sim up {option} 0   # any free port")),
            DaemonError::Running(data) | DaemonError::Differs { data, .. } => {
                Some(format!("scone-sim down --data '{}'", data.display()))
            }
            DaemonError::DidNotStart { hint, .. } => hint.clone(),
            DaemonError::Cas(CasError::Store(StoreError::Restored { head, .. })) => Some(format!(
                "rm '{}'   # go on with the older copy: codes accepted since are good again",
                head.display()
            )),
            DaemonError::Cas(CasError::Store(StoreError::Layout(_))) => Some(
                "start CAS with the version of scone-sim that wrote it, or anew with another --data DIR: what was uploaded, drawn \
                 and remembered here is then not there"
                    .into(),
            ),
            DaemonError::NotRunning(data) => Some(format!("scone-sim up --data '{}'", data.display())),
            _ => None,
        }
    }
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory.
    pub data: PathBuf,
    /// The port of the client API; 0: any free one; `None`: as last time, else [`CLIENT_PORT`].
    pub client_port: Option<u16>,
    /// The port of the enclave API; likewise, else [`ENCLAVE_PORT`].
    pub enclave_port: Option<u16>,
    /// A file to read the time from.
    pub clock: Option<PathBuf>,
}

/// Where a CAS serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoints {
    /// The client API's port.
    pub client_port: u16,
    /// The enclave API's port.
    pub enclave_port: u16,
    /// CAS's key hash.
    pub key: String,
    /// The file it reads the time from.
    pub clock: Option<PathBuf>,
}

impl Endpoints {
    /// The three lines that `up`, `status` and `cas` print.
    pub fn lines(&self) -> String {
        let Endpoints { client_port, enclave_port, key, .. } = self;
        format!("client: 127.0.0.1:{client_port}\nenclave: 127.0.0.1:{enclave_port}\nkey: {key}\n")
    }

    fn load(data: &Path) -> Result<Option<Endpoints>, DaemonError> {
        let path = data.join(ENDPOINTS);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|_| DaemonError::Damaged(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DaemonError::File { path, source }),
        }
    }

    fn save(&self, data: &Path) -> Result<(), DaemonError> {
        let path = data.join(ENDPOINTS);
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(data)?;
            serde_json::to_writer(&mut file, self)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(|source| DaemonError::File { path: path.clone(), source })
    }
}

/// `$XDG_DATA_HOME/scone-sim`, else `~/.local/share/scone-sim`.
pub fn default_data() -> Result<PathBuf, DaemonError> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")?.join(".local/share")));
    Ok(base.ok_or(DaemonError::NoHome)?.join("scone-sim"))
}

/// Serves until told to stop (SIGTERM, SIGINT). `ready` is called with the endpoints once both ports are open.
pub async fn serve(options: &Options, ready: impl FnOnce(&Endpoints) -> io::Result<()>) -> Result<(), DaemonError> {
    let Options { data, clock, .. } = options;
    make_private_directory(data)?;
    let mut pid_file = open_private(&data.join(PID_FILE), OpenOptions::new().read(true).write(true).create(true))?;
    match pid_file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(DaemonError::Running(data.clone())),
        Err(TryLockError::Error(source)) => return Err(DaemonError::File { path: data.join(PID_FILE), source }),
    }
    let mut write_pid = || {
        pid_file.set_len(0)?;
        pid_file.write_all(std::process::id().to_string().as_bytes())
    };
    write_pid().map_err(|source| DaemonError::File { path: data.join(PID_FILE), source })?;

    let before = Endpoints::load(data)?;
    let client_port = options.client_port.or(before.as_ref().map(|e| e.client_port)).unwrap_or(CLIENT_PORT);
    let enclave_port = options.enclave_port.or(before.as_ref().map(|e| e.enclave_port)).unwrap_or(ENCLAVE_PORT);
    let clients = listen(client_port, "--client-port").await?;
    let runtimes = listen(enclave_port, "--enclave-port").await?;

    let time = clock.clone().map_or(Clock::System, Clock::File);
    private_umask();
    allow_connections();
    let cas = Arc::new(Cas::open(data, time)?);
    let identity = cas.identity()?;
    let port = |listener: &tokio::net::TcpListener| {
        let address = listener
            .local_addr()
            .map_err(|source| DaemonError::System { what: "the listener has no address", source })?;
        Ok::<_, DaemonError>(address.port())
    };
    let endpoints = Endpoints {
        client_port: port(&clients)?,
        enclave_port: port(&runtimes)?,
        key: identity.key_hash.clone(),
        clock: clock.clone(),
    };
    endpoints.save(data)?;
    cas.record(Event::CasStarted)?;

    let handler = |kind| signal(kind).map_err(|source| DaemonError::System { what: "cannot wait for signals", source });
    let (mut terminate, mut interrupt) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    ready(&endpoints).map_err(|source| DaemonError::System { what: "cannot say where the CAS serves", source })?;
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        result = server::serve_clients(clients, tls::client_api(&identity)?, cas.clone()) => result,
        result = server::serve_runtimes(runtimes, tls::enclave_api(&identity)?, cas.clone()) => result,
    };
    cas.record(Event::CasExited)?;
    ended.map_err(|source| DaemonError::System { what: "cannot serve", source })
}

async fn listen(port: u16, option: &'static str) -> Result<tokio::net::TcpListener, DaemonError> {
    server::listen(port).await.map_err(|source| DaemonError::Listen { port, option, source })
}

/// Leaves the session of the terminal, so that its end is not this process's.
pub fn detach() -> Result<(), DaemonError> {
    setsid()
        .map(drop)
        .map_err(|error| DaemonError::System { what: "cannot leave the terminal's session", source: error.into() })
}

/// Starts a CAS in the background unless one runs already; answers where it serves.
pub fn up(options: &Options) -> Result<Endpoints, DaemonError> {
    make_private_directory(&options.data)?;
    let data = std::path::absolute(&options.data)
        .map_err(|source| DaemonError::File { path: options.data.clone(), source })?;
    let clock = match &options.clock {
        Some(path) => {
            Some(std::path::absolute(path).map_err(|source| DaemonError::File { path: path.clone(), source })?)
        }
        None => None,
    };
    let _turn = take_turn(&data)?;
    if let Some(running) = running(&data)? {
        let other = |port: Option<u16>, now| port.is_some_and(|port| port != 0 && port != now);
        if other(options.client_port, running.client_port) || other(options.enclave_port, running.enclave_port) {
            return Err(DaemonError::Differs { data, what: "port" });
        }
        if clock.is_some() && clock != running.clock {
            return Err(DaemonError::Differs { data, what: "clock" });
        }
        return Ok(running);
    }

    eprintln!("{SOFTWARE_ONLY}");
    let log_path = data.join(LOG);
    let mut log = open_private(&log_path, OpenOptions::new().read(true).append(true).create(true))?;
    let log_error = |source| DaemonError::File { path: log_path.clone(), source };
    let start = log.seek(SeekFrom::End(0)).map_err(log_error)?;
    let child_error = |source| DaemonError::System { what: "cannot start the CAS", source };

    let mut command = Command::new(std::env::current_exe().map_err(child_error)?);
    command.arg0("scone-sim").args(["cas", "--detached", "--data"]).arg(&data);
    for (option, port) in [("--client-port", options.client_port), ("--enclave-port", options.enclave_port)] {
        if let Some(port) = port {
            command.args([option, &port.to_string()]);
        }
    }
    if let Some(clock) = &clock {
        command.arg("--clock").arg(clock);
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.try_clone().map_err(log_error)?);
    let mut child = command.spawn().map_err(child_error)?;

    // It prints the three lines when it serves, or ends, which closes the pipe.
    let mut lines = String::new();
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        for _ in 0..3 {
            output.read_line(&mut lines).map_err(child_error)?;
        }
    }
    match running(&data)? {
        Some(endpoints) if endpoints.lines() == lines => Ok(endpoints),
        _ => {
            let exit_code = child.wait().map_err(child_error)?.code();
            let mut words = String::new();
            log.seek(SeekFrom::Start(start)).map_err(log_error)?;
            log.read_to_string(&mut words).map_err(log_error)?;
            let said = |prefix| words.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned);
            Err(DaemonError::DidNotStart {
                cause: said("scone-sim: error: ").unwrap_or_else(|| format!("see '{}'", log_path.display())),
                hint: said("hint: "),
                exit_code: exit_code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
            })
        }
    }
}

/// Stops the CAS, if one runs, and waits for its end. Answers whether one ran.
pub fn down(data: &Path) -> Result<bool, DaemonError> {
    if !data.exists() {
        return Ok(false);
    }
    let _turn = take_turn(data)?;
    let path = data.join(PID_FILE);
    let file_error = |source| DaemonError::File { path: path.clone(), source };
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(file_error(source)),
    };
    match file.try_lock_shared() {
        Ok(()) => return Ok(false),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(source)) => return Err(file_error(source)),
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(file_error)?;
    let pid = text.parse().ok().and_then(Pid::from_raw).ok_or_else(|| DaemonError::Damaged(path.clone()))?;
    match kill_process(pid, Signal::TERM) {
        // It may have ended by itself just now.
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(DaemonError::System { what: "cannot stop the CAS", source: error.into() }),
    }
    file.lock_shared().map_err(file_error)?;
    Ok(true)
}

/// Where the CAS serves.
pub fn status(data: &Path) -> Result<Endpoints, DaemonError> {
    let not_running = || DaemonError::NotRunning(data.to_owned());
    if !data.exists() {
        return Err(not_running());
    }
    let _turn = take_turn(data)?;
    running(data)?.ok_or_else(not_running)
}

fn running(data: &Path) -> Result<Option<Endpoints>, DaemonError> {
    let path = data.join(PID_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DaemonError::File { path, source }),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Endpoints::load(data),
        Err(TryLockError::Error(source)) => Err(DaemonError::File { path, source }),
    }
}

/// Prints the audit log, for people or as an export, and checks that each entry follows from the one before.
pub fn print_log(data: &Path, json: bool, out: &mut impl Write) -> Result<(), DaemonError> {
    let path = data.join(DATABASE);
    if !path.exists() {
        return Err(DaemonError::File { path, source: io::ErrorKind::NotFound.into() });
    }
    let database = Store::open_read_only(&path)?;
    let entries = audit::read(&database).map_err(StoreError::from)?;
    let printed = match json {
        false => out.write_all(audit::table(&entries).as_bytes()),
        true => {
            let pem = store::identity(&database, || Err(StoreError::Damaged("CAS has no key".into())))?;
            audit::export(&entries, &tls::Identity::from_pem(&pem)?, out)
        }
    };
    printed
        .and_then(|()| out.flush())
        .map_err(|source| DaemonError::System { what: "cannot print the log", source })?;
    let hash = audit::check_chain(&entries)?;
    eprintln!("scone-sim: {} entries, each follows from the one before; the last one's hash is {hash}", entries.len());
    Ok(())
}

/// Held while looking at the CAS or changing whether it runs: `status` does not meet a CAS that is half started.
fn take_turn(data: &Path) -> Result<File, DaemonError> {
    let file = open_private(&data.join(TURN), OpenOptions::new().write(true).create(true))?;
    file.lock().map_err(|source| DaemonError::File { path: data.join(TURN), source })?;
    Ok(file)
}

/// 0700, made with its parents if it is not there.
fn make_private_directory(path: &Path) -> Result<(), DaemonError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| DaemonError::File { path: path.to_owned(), source })
}

fn open_private(path: &Path, options: &mut OpenOptions) -> Result<File, DaemonError> {
    options.mode(0o600).open(path).map_err(|source| DaemonError::File { path: path.to_owned(), source })
}

/// Both ports' connections may be more files than the usual soft limit has. What cannot be had shows when it is missed.
fn allow_connections() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        eprintln!("scone-sim: cannot raise the limit of open files: {error}");
    }
}

/// SQLite makes its files with the process's umask.
fn private_umask() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}
