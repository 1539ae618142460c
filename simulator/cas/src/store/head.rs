//! `cas.head`: what remembers the last audit entry beside the database.
//!
//! It is there, and synced, before the database is: where a database has entries and no head, somebody took it away, and
//! whether the database is an older copy cannot be told.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension};

use super::StoreError;
use crate::audit::GENESIS;

/// The file that remembers the last audit entry.
pub(super) struct Head {
    path: PathBuf,
    file: File,
}

impl Head {
    /// The head of a database that is new, or that is taken as it is.
    pub fn start(path: PathBuf, db: Option<&Connection>) -> Result<Head, StoreError> {
        let last = db.map(last_entry).transpose()?.flatten().unwrap_or((0, GENESIS.to_owned()));
        let write = || {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            let line = line(&last);
            file.write_all_at(line.as_bytes(), 0)?;
            file.set_len(line.len() as u64)?;
            file.sync_all()?;
            path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())?;
            Ok(file)
        };
        match write() {
            Ok(file) => Ok(Head { path, file }),
            Err(source) => Err(StoreError::Beside { path, source }),
        }
    }

    /// The head of a database that is not new. Refuses a database that lacks the entry it remembers, and a head that remembers
    /// none.
    pub fn check(path: PathBuf, db: &Connection) -> Result<Head, StoreError> {
        let lost = |what| StoreError::HeadLost { path: path.clone(), what };
        let failed = |source| StoreError::Beside { path: path.clone(), source };
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return missing(path.clone(), db, lost("is missing")),
            Err(source) => return Err(failed(source)),
        };
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        if text.is_empty() {
            return missing(path.clone(), db, lost("is empty"));
        }
        let (sequence, hash) = parse(&text).ok_or_else(|| lost("is damaged"))?;
        let known: Option<String> =
            db.query_row("SELECT hash FROM audit WHERE sequence = ?1", [sequence], |row| row.get(0)).optional()?;
        match (sequence, known.as_deref()) {
            (0, _) if hash == GENESIS => Ok(Head { path, file }),
            (_, Some(known)) if known == hash => Ok(Head { path, file }),
            _ => Err(StoreError::Restored { sequence, head: path }),
        }
    }

    /// Not synced: after a power cut it may be behind the database, which is harmless, but never ahead of it.
    pub fn remember(&self, db: &Connection) -> Result<(), StoreError> {
        let Some(last) = last_entry(db)? else { return Ok(()) };
        // Always of the same length: one write replaces the whole.
        self.file
            .write_all_at(line(&last).as_bytes(), 0)
            .map_err(|source| StoreError::Beside { path: self.path.clone(), source })
    }
}

/// A database without entries has lost nothing.
fn missing(path: PathBuf, db: &Connection, lost: StoreError) -> Result<Head, StoreError> {
    match last_entry(db)? {
        None => Head::start(path, None),
        Some(_) => Err(lost),
    }
}

fn last_entry(db: &Connection) -> rusqlite::Result<Option<(i64, String)>> {
    db.prepare_cached("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

fn line((sequence, hash): &(i64, String)) -> String {
    format!("{sequence:20} {hash}\n")
}

fn parse(text: &[u8]) -> Option<(i64, String)> {
    let (sequence, hash) = std::str::from_utf8(text).ok()?.trim().split_once(' ')?;
    Some((sequence.parse().ok()?, hash.to_owned()))
}
