//! A CAS in the background: starting it, stopping it, asking where it serves.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, setsid};

use super::serve::lock_pid_file;
use super::{DaemonError, Endpoints, LOG, Options, PID_FILE, make_private_directory, open_private, take_turn};
use crate::SOFTWARE_ONLY;
use crate::cas::DATABASE;
use crate::store::Store;

/// Leaves the terminal's session, so that this process outlives the terminal.
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
    let options = Options { data, clock, ..options.clone() };
    match running(&options.data)? {
        Some(running) => as_asked(running, &options),
        None => start(&options),
    }
}

/// The CAS that runs already, if its ports and its clock are those asked for.
fn as_asked(running: Endpoints, options: &Options) -> Result<Endpoints, DaemonError> {
    let differs = |what| Err(DaemonError::Differs { data: options.data.clone(), what });
    let other = |port: Option<u16>, now| port.is_some_and(|port| port != 0 && port != now);
    if other(options.client_port, running.client_port) || other(options.enclave_port, running.enclave_port) {
        return differs("port");
    }
    if options.clock.is_some() && options.clock != running.clock {
        return differs("clock");
    }
    Ok(running)
}

fn start(options: &Options) -> Result<Endpoints, DaemonError> {
    eprintln!("{SOFTWARE_ONLY}");
    let log_path = options.data.join(LOG);
    let mut log = open_private(&log_path, OpenOptions::new().read(true).append(true).create(true))?;
    let log_error = |source| DaemonError::File { path: log_path.clone(), source };
    let start = log.seek(SeekFrom::End(0)).map_err(log_error)?;
    let child_error = |source| DaemonError::System { what: "cannot start the CAS", source };

    let mut command = serving(options).map_err(child_error)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.try_clone().map_err(log_error)?);
    let mut child = command.spawn().map_err(child_error)?;

    // It prints the three lines when it serves, or ends, which closes the pipe.
    let mut lines = String::new();
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        for _ in 0..3 {
            output.read_line(&mut lines).map_err(child_error)?;
        }
    }
    match running(&options.data)? {
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

/// The command that serves in the background.
fn serving(options: &Options) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0("scone-sim").args(["cas", "--detached", "--data"]).arg(&options.data);
    for (option, port) in [("--client-port", options.client_port), ("--enclave-port", options.enclave_port)] {
        if let Some(port) = port {
            command.args([option, &port.to_string()]);
        }
    }
    if let Some(clock) = &options.clock {
        command.arg("--clock").arg(clock);
    }
    command.current_dir("/");
    Ok(command)
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

/// Takes the database as it is, although `cas.head` is lost or knows a later one.
pub fn adopt(data: &Path) -> Result<(), DaemonError> {
    let database = data.join(DATABASE);
    if !database.exists() {
        return Err(DaemonError::File { path: database, source: io::ErrorKind::NotFound.into() });
    }
    let _turn = take_turn(data)?;
    // Held until it is done: no CAS starts meanwhile.
    let _pid_file = lock_pid_file(data)?;
    Ok(Store::adopt(&database)?)
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
