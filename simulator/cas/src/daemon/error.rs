//! Why a command about the CAS process failed, and what to try next.

use std::io;
use std::path::PathBuf;

use crate::audit;
use crate::cas::CasError;
use crate::store::StoreError;
use crate::tls;

/// Why a command about the CAS process failed.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Neither `--data` nor a home.
    #[error("no data directory: neither XDG_DATA_HOME nor HOME is set, and this user has no account")]
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
        /// Whose CAS.
        data: PathBuf,
        /// Which port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// Another CAS serves this directory.
    #[error("a CAS is already running on '{}'", .0.display())]
    Running(PathBuf),
    /// One runs, but with another port or clock than asked for.
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
            DaemonError::NoHome => Some("export XDG_DATA_HOME=\"$PWD\"   # or where else its data are to lie".into()),
            DaemonError::Listen { data, .. } => Some(format!(
                "scone-sim up --data '{}' --client-port 0 --enclave-port 0   # any that are free",
                data.display()
            )),
            DaemonError::Running(data) | DaemonError::Differs { data, .. } => {
                Some(format!("scone-sim down --data '{}'", data.display()))
            }
            DaemonError::DidNotStart { hint, .. } => hint.clone(),
            DaemonError::Cas(CasError::Store(
                StoreError::Restored { head: path, .. } | StoreError::HeadLost { path, .. },
            )) => Some(format!(
                "scone-sim adopt --data '{}'   # go on with it: if it is an older copy, codes accepted since are good again",
                path.parent().unwrap_or(path).display()
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
