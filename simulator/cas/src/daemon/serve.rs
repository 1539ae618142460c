//! Serving, until told to stop.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    CLIENT_PORT, DaemonError, ENCLAVE_PORT, Endpoints, Options, PID_FILE, make_private_directory, open_private,
};
use crate::audit::Event;
use crate::cas::Cas;
use crate::clock::Clock;
use crate::{server, tls};

/// Serves until told to stop (SIGTERM, SIGINT). `ready` is called with the endpoints once both ports are open.
pub async fn serve(options: &Options, ready: impl FnOnce(&Endpoints) -> io::Result<()>) -> Result<(), DaemonError> {
    let Options { data, clock, .. } = options;
    make_private_directory(data)?;
    let _pid_file = lock_pid_file(data)?;

    let before = Endpoints::load(data)?;
    let client_port = options.client_port.or(before.as_ref().map(|e| e.client_port));
    let enclave_port = options.enclave_port.or(before.as_ref().map(|e| e.enclave_port));
    let clients = listen(data, client_port, CLIENT_PORT).await?;
    let runtimes = listen(data, enclave_port, ENCLAVE_PORT).await?;

    let time = clock.clone().map_or(Clock::System, Clock::File);
    private_umask();
    prevent_core_dumps()?;
    allow_connections();
    let cas = Arc::new(Cas::open(data, time)?);
    let identity = cas.identity()?;
    let evidence_key = identity.evidence_key()?;
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
        result = rotate_log(cas.clone()) => result,
        result = server::serve_clients(clients, tls::client_api(&identity)?, cas.clone()) => result,
        result = server::serve_runtimes(runtimes, tls::enclave_api(&identity)?, cas.clone(), evidence_key) => result,
    };
    cas.record(Event::CasExited)?;
    ended.map_err(|source| DaemonError::System { what: "cannot serve", source })
}

/// Looks each minute whether the audit log is to be rotated. What fails is tried again.
async fn rotate_log(cas: Arc<Cas>) -> io::Result<()> {
    loop {
        let rotating = cas.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || rotating.rotate_log()).await? {
            eprintln!("scone-sim: cannot rotate the audit log: {error}");
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

/// Locks the file that says which process serves the directory, and writes this process's id to it.
pub(super) fn lock_pid_file(data: &Path) -> Result<File, DaemonError> {
    let mut pid_file = open_private(&data.join(PID_FILE), OpenOptions::new().read(true).write(true).create(true))?;
    match pid_file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(DaemonError::Running(data.to_owned())),
        Err(TryLockError::Error(source)) => return Err(DaemonError::File { path: data.join(PID_FILE), source }),
    }
    let mut write_pid = || {
        pid_file.set_len(0)?;
        pid_file.write_all(std::process::id().to_string().as_bytes())
    };
    write_pid().map_err(|source| DaemonError::File { path: data.join(PID_FILE), source })?;
    Ok(pid_file)
}

/// On the port that was asked for or had before, else on SCONE's own, or any free one if another user's CAS has that.
async fn listen(data: &Path, port: Option<u16>, usual: u16) -> Result<tokio::net::TcpListener, DaemonError> {
    let (port, result) = match port {
        Some(port) => (port, server::listen(port).await),
        None => match server::listen(usual).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => (0, server::listen(0).await),
            result => (usual, result),
        },
    };
    result.map_err(|source| DaemonError::Listen { data: data.to_owned(), port, source })
}

/// The connections of both ports may need more open files than the usual soft limit allows.
fn allow_connections() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        eprintln!("scone-sim: cannot raise the limit of open files: {error}");
    }
}

/// A core dump would keep all secrets. With a limit of 0 the kernel still hands the dump to a program that `core_pattern` names;
/// with 1 it makes none.
fn prevent_core_dumps() -> Result<(), DaemonError> {
    let limit = Some(getrlimit(Resource::Core).maximum.map_or(1, |maximum| maximum.min(1)));
    setrlimit(Resource::Core, Rlimit { current: limit, maximum: limit })
        .map_err(|error| DaemonError::System { what: "cannot prevent core dumps", source: error.into() })
}

/// Keeps others out of the files that SQLite creates: it applies the process's umask.
fn private_umask() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}
