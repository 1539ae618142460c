//! One CAS per data directory: `cas` serves in the foreground, `up`, `down` and `status` handle one in the background.
//!
//! `cas.pid` is locked by the CAS that serves and holds its process id: the lock, which no crash leaves behind, tells whether
//! one is alive, and waiting for the lock is waiting for its end. `endpoints.json` says where it serves and outlives it, so
//! that the ports stay the same. `turn.lock` is held while one is started, stopped or looked at. `cas.log` is its standard
//! error. The database is described in `store`.

mod background;
mod error;
mod serve;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rusqlite::Connection;
use scone_protocol::Secret;
use serde::{Deserialize, Serialize};

use crate::audit::{self, Chain};
use crate::cas::DATABASE;
use crate::store::{self, Store, StoreError};
use crate::tls::Identity;
pub use background::{adopt, detach, down, status, up};
pub use error::DaemonError;
pub use serve::serve;

const PID_FILE: &str = "cas.pid";
const ENDPOINTS: &str = "endpoints.json";
const TURN: &str = "turn.lock";
const LOG: &str = "cas.log";

/// SCONE's port of the client API.
pub const CLIENT_PORT: u16 = 8081;

/// SCONE's port of the enclave API.
pub const ENCLAVE_PORT: u16 = 18765;

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory.
    pub data: PathBuf,
    /// The port of the client API; 0: any free one; `None`: as last time, else [`CLIENT_PORT`] if it is free, else any.
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

/// `$XDG_DATA_HOME/scone-sim`, else `~/.local/share/scone-sim`. Where nobody has set `HOME`, the account database knows it.
pub fn default_data() -> Result<PathBuf, DaemonError> {
    let absolute = |path: Option<PathBuf>| path.filter(|path| path.is_absolute());
    let chosen = absolute(std::env::var_os("XDG_DATA_HOME").map(PathBuf::from));
    let home = || absolute(std::env::var_os("HOME").map(PathBuf::from)).or_else(|| absolute(home_of_account()));
    let base = chosen.or_else(|| Some(home()?.join(".local/share")));
    Ok(base.ok_or(DaemonError::NoHome)?.join("scone-sim"))
}

/// A static program cannot ask the C library: what that loads to find out is of another one, and may crash it.
fn home_of_account() -> Option<PathBuf> {
    let user = rustix::process::geteuid().as_raw().to_string();
    let asked = Command::new("getent").args(["passwd", &user]).stdin(Stdio::null()).output().ok()?;
    let entry = String::from_utf8(asked.stdout).ok()?;
    entry.trim_end().split(':').nth(5).map(PathBuf::from)
}

/// Prints the audit log, or its last entries, for people or as an export, and checks that each entry follows from the one before.
pub fn print_log(data: &Path, json: bool, last: Option<u32>, out: &mut impl Write) -> Result<(), DaemonError> {
    let database = database(data)?;
    let newest = audit::last(&database)?;
    let first = last.map_or(1, |last| (newest - i64::from(last) + 1).max(1));
    let cannot_print = |source| DaemonError::System { what: "cannot print the log", source };
    let mut table = audit::Table::default();
    if !json {
        audit::for_each::<StoreError>(&database, data, first, |entry| {
            table.fit(entry);
            Ok(())
        })?;
        out.write_all(table.header().as_bytes()).map_err(cannot_print)?;
    }
    let (mut chain, mut flaw) = (Chain::default(), None);
    audit::for_each(&database, data, first, |entry| {
        // What is wrong is printed, too.
        flaw = flaw.take().or(chain.follow(entry).err());
        let printed = if json { audit::write_entry(entry, out) } else { out.write_all(table.row(entry).as_bytes()) };
        printed.map_err(cannot_print)
    })?;
    if json {
        audit::write_seal(&chain, &identity(&database)?, out).map_err(cannot_print)?;
    }
    out.flush().map_err(cannot_print)?;
    if let Some(flaw) = flaw {
        return Err(flaw.into());
    }
    let (hash, count) = (chain.from_entry(first)?, chain.count);
    eprintln!("scone-sim: {count} entries, each follows from the one before; the last one's hash is {hash}");
    Ok(())
}

/// What runtimes make evidence with.
pub fn evidence_key(data: &Path) -> Result<Secret, DaemonError> {
    Ok(identity(&database(data)?)?.evidence_key()?)
}

/// CAS's memory, to look only.
fn database(data: &Path) -> Result<Connection, DaemonError> {
    let path = data.join(DATABASE);
    if !path.exists() {
        return Err(DaemonError::File { path, source: io::ErrorKind::NotFound.into() });
    }
    Ok(Store::open_read_only(&path)?)
}

fn identity(database: &Connection) -> Result<Identity, DaemonError> {
    let pem = store::identity(database, || Err(StoreError::Damaged("CAS has no key".into())))?;
    Ok(Identity::from_pem(&pem)?)
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
