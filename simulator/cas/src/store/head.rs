//! `cas.head`: what remembers the last audit entry beside the database.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension};

use super::StoreError;

/// The file that remembers the last audit entry.
pub(super) struct Head {
    path: PathBuf,
    file: File,
}

impl Head {
    pub fn open(path: PathBuf) -> Result<Head, StoreError> {
        match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path) {
            Ok(file) => Ok(Head { path, file }),
            Err(source) => Err(StoreError::Head { path, source }),
        }
    }

    fn failed(&self, source: std::io::Error) -> StoreError {
        StoreError::Head { path: self.path.clone(), source }
    }

    pub fn forget(&self) -> Result<(), StoreError> {
        self.file.set_len(0).map_err(|source| self.failed(source))
    }

    /// Refuses a database that lacks the entry.
    pub fn check(&mut self, db: &Connection) -> Result<(), StoreError> {
        let mut text = String::new();
        self.file.read_to_string(&mut text).map_err(|source| self.failed(source))?;
        if text.is_empty() {
            return Ok(());
        }
        let damaged = || StoreError::Damaged(format!("'{}' is not what CAS writes", self.path.display()));
        let (sequence, hash) = text.trim().split_once(' ').ok_or_else(damaged)?;
        let sequence: i64 = sequence.parse().map_err(|_| damaged())?;
        let known: Option<String> =
            db.query_row("SELECT hash FROM audit WHERE sequence = ?1", [sequence], |row| row.get(0)).optional()?;
        match known.as_deref() == Some(hash) {
            true => Ok(()),
            false => Err(StoreError::Restored { sequence, head: self.path.clone() }),
        }
    }

    /// Not synced: after a power cut it may be behind the database, which is harmless, but never ahead of it.
    pub fn remember(&self, db: &Connection) -> Result<(), StoreError> {
        let last: Option<(i64, String)> = db
            .prepare_cached("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((sequence, hash)) = last else { return Ok(()) };
        // Always of the same length: one write replaces the whole.
        let line = format!("{sequence:20} {hash}\n");
        self.file
            .write_all_at(line.as_bytes(), 0)
            .map_err(|source| StoreError::Head { path: self.path.clone(), source })
    }
}
