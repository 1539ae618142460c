//! Where the log lies: its newest entries in the database, older ones in files beside it, `audit-FIRST-LAST.jsonl`, each an
//! export with a seal. The chain goes through all of them.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension};

use super::{COLUMNS, Chain, Checkpoint, Entry, write_entry, write_seal};
use crate::store::StoreError;
use crate::tls::Identity;

/// How many entries go into a file. The database keeps at least as many.
pub const PART: i64 = 10_000;

/// Calls `each` with each entry from number `first` on, oldest first. `db` is the database in `directory`.
pub fn for_each<E: From<StoreError>>(
    db: &Connection,
    directory: &Path,
    first: i64,
    mut each: impl FnMut(&Entry) -> Result<(), E>,
) -> Result<(), E> {
    // What is moved to a file meanwhile, the database still shows.
    let state = db.unchecked_transaction().map_err(StoreError::from)?;
    let (kept, _) = range(&state)?.into_inner();
    for (entries, path) in parts(directory)? {
        if *entries.end() < first || *entries.start() >= kept {
            continue;
        }
        let damaged = || StoreError::Damaged(format!("'{}' does not hold what its name says", path.display()));
        let mut lines = lines(&path)?;
        for sequence in entries {
            let line = lines.next().ok_or_else(damaged)?.map_err(|source| beside(&path, source))?;
            let entry: Entry = serde_json::from_str(&line).map_err(|_| damaged())?;
            if sequence >= first {
                each(&entry)?;
            }
        }
    }
    let mut statement = state
        .prepare(&format!("SELECT {COLUMNS} FROM audit WHERE sequence >= ?1 ORDER BY sequence"))
        .map_err(StoreError::from)?;
    let mut rows = statement.query([first]).map_err(StoreError::from)?;
    while let Some(row) = rows.next().map_err(StoreError::from)? {
        each(&Entry::from_row(row).map_err(StoreError::from)?)?;
    }
    Ok(())
}

/// The last entry's number; 0: there is none.
pub fn last(db: &Connection) -> Result<i64, StoreError> {
    Ok(*range(db)?.end())
}

/// CAS's word on the entry at this place.
pub fn checkpoint(db: &Connection, directory: &Path, sequence: i64) -> Result<Checkpoint, StoreError> {
    let (kept, last) = range(db)?.into_inner();
    // Beside a database that was put back, there may be files with entries that it has not got.
    if sequence < kept {
        return Ok(Checkpoint { last, hash: hash_in_part(directory, sequence)? });
    }
    let hash = db.query_row("SELECT hash FROM audit WHERE sequence = ?1", [sequence], |row| row.get(0)).optional()?;
    Ok(Checkpoint { last, hash })
}

fn hash_in_part(directory: &Path, sequence: i64) -> Result<Option<String>, StoreError> {
    let part = parts(directory)?.into_iter().find(|(entries, _)| entries.contains(&sequence));
    let Some((entries, path)) = part else { return Ok(None) };
    let Ok(number) = usize::try_from(sequence - entries.start()) else { return Ok(None) };
    let line = lines(&path)?.nth(number).transpose().map_err(|source| beside(&path, source))?;
    Ok(line.and_then(|line| Some(serde_json::from_str::<Entry>(&line).ok()?.hash)))
}

/// Writes the oldest entries to a file, if there are enough; gives the number of the last one that the database need not keep.
pub fn write_part(db: &Connection, directory: &Path, cas: &Identity) -> Result<Option<i64>, StoreError> {
    let (first, last) = range(db)?.into_inner();
    if last - first + 1 < 2 * PART {
        return Ok(None);
    }
    let end = first + PART - 1;
    let path = directory.join(format!("audit-{first:012}-{end:012}.jsonl"));
    let failed = |source| beside(&path, source);
    let mut file = BufWriter::new(tempfile::NamedTempFile::new_in(directory).map_err(failed)?);
    let (mut chain, mut flaw) = (Chain::default(), None);
    let mut statement = db.prepare(&format!("SELECT {COLUMNS} FROM audit WHERE sequence BETWEEN ?1 AND ?2"))?;
    for entry in statement.query_map([first, end], Entry::from_row)? {
        let entry = entry?;
        flaw = flaw.or(chain.follow(&entry).err());
        write_entry(&entry, &mut file).map_err(failed)?;
    }
    // What was tampered with is neither moved nor sealed.
    if let Some(flaw) = flaw.or(chain.from_entry(first).err()) {
        return Err(StoreError::Damaged(flaw.to_string()));
    }
    write_seal(&chain, cas, &mut file).map_err(failed)?;
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    Ok(Some(end))
}

/// Takes entries up to this one out of the database: they are in a file.
pub fn forget(tx: &Connection, end: i64) -> rusqlite::Result<()> {
    tx.execute("DELETE FROM audit WHERE sequence <= ?1", [end]).map(drop)
}

/// Which entries the database has: from the first to the last.
fn range(db: &Connection) -> Result<RangeInclusive<i64>, StoreError> {
    let query = "SELECT coalesce(min(sequence), 1), coalesce(max(sequence), 0) FROM audit";
    Ok(db.query_row(query, [], |row| Ok(row.get(0)?..=row.get(1)?))?)
}

/// The files, oldest first.
fn parts(directory: &Path) -> Result<Vec<(RangeInclusive<i64>, PathBuf)>, StoreError> {
    let mut parts = Vec::new();
    for entry in fs::read_dir(directory).map_err(|source| beside(directory, source))? {
        let entry = entry.map_err(|source| beside(directory, source))?;
        if let Some(range) = entry.file_name().to_str().and_then(parse) {
            parts.push((range, entry.path()));
        }
    }
    parts.sort_by_key(|(entries, _)| *entries.start());
    Ok(parts)
}

fn parse(name: &str) -> Option<RangeInclusive<i64>> {
    let (first, last) = name.strip_prefix("audit-")?.strip_suffix(".jsonl")?.split_once('-')?;
    Some(first.parse().ok()?..=last.parse().ok()?)
}

fn lines(path: &Path) -> Result<io::Lines<BufReader<File>>, StoreError> {
    Ok(BufReader::new(File::open(path).map_err(|source| beside(path, source))?).lines())
}

fn beside(path: &Path, source: io::Error) -> StoreError {
    StoreError::Beside { path: path.to_owned(), source }
}
