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

use serde::{Deserialize, Serialize};

use crate::cas::DATABASE;
use crate::store::{self, Store, StoreError};
use crate::{audit, tls};
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
