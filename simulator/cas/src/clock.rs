//! Where CAS takes the time from. Everything that depends on time is handed a [`Clock`] or the seconds it read.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// A source of time.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The system's.
    System,
    /// A file that holds seconds since the epoch as text, read at each use: for rehearsals and tests.
    File(PathBuf),
}

/// The time could not be told.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// The clock file cannot be read.
    #[error("cannot read the clock file '{}': {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The clock file holds something else.
    #[error("the clock file '{}' does not hold seconds since the epoch", path.display())]
    NotSeconds {
        /// The file.
        path: PathBuf,
    },
    /// The system's clock stands before 1970.
    #[error("the system's clock stands before 1970")]
    BeforeEpoch,
}

impl Clock {
    /// Seconds since the epoch.
    pub fn now(&self) -> Result<u64, ClockError> {
        match self {
            Clock::System => {
                SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).map_err(|_| ClockError::BeforeEpoch)
            }
            Clock::File(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ClockError::Unreadable { path: path.clone(), source })?;
                // The database stores signed 64-bit numbers.
                text.trim()
                    .parse::<u64>()
                    .ok()
                    .filter(|&seconds| i64::try_from(seconds).is_ok())
                    .ok_or_else(|| ClockError::NotSeconds { path: path.clone() })
            }
        }
    }
}
