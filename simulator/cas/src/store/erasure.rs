//! What `secure_delete` leaves: older pages in the write-ahead log.

use std::time::Duration;

use rusqlite::Connection;

use super::PATIENCE;

/// Moves what is in the write-ahead log to the database and empties it. Whether that was done: not while somebody reads an older
/// state, who is not waited for, since everybody else would wait with us.
pub(super) fn empty_write_ahead_log(connection: &Connection) -> rusqlite::Result<bool> {
    connection.busy_timeout(Duration::ZERO)?;
    let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    connection.busy_timeout(PATIENCE)?;
    busy.map(|busy| !busy)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::store::{Store, StoreError};

    /// The files beside and behind the database that hold `needle`.
    fn holding(directory: &Path, needle: &[u8]) -> Vec<PathBuf> {
        let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|file| fs::read(file).unwrap().windows(needle.len()).any(|part| part == needle)).collect()
    }

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("cas.db")).unwrap();
        (directory, store)
    }

    fn keep(tx: &Connection) -> Result<(), StoreError> {
        tx.execute("INSERT INTO secret VALUES ('s', 'n', 'ascii', CAST('dropped!' AS BLOB))", [])?;
        Ok(())
    }

    fn drop_it(tx: &Connection) -> Result<(), StoreError> {
        tx.execute("DELETE FROM secret", [])?;
        Ok(())
    }

    #[test]
    fn what_was_deleted_before_a_crash_is_erased_at_the_next_start() {
        let (directory, store) = store();
        store.write(keep).unwrap();
        store.write(drop_it).unwrap();
        // What a crash at this point leaves.
        let crashed = tempfile::tempdir().unwrap();
        for name in ["cas.db", "cas.db-wal", "cas.head"] {
            fs::copy(directory.path().join(name), crashed.path().join(name)).unwrap();
        }
        assert_eq!(holding(crashed.path(), b"dropped!"), [crashed.path().join("cas.db-wal")]);
        let _store = Store::open(&crashed.path().join("cas.db")).unwrap();
        assert!(holding(crashed.path(), b"dropped!").is_empty());
    }

    /// SQLite moves rows from page to page, to keep its tree balanced.
    #[test]
    fn of_many_secrets_each_dropped_one_is_erased() {
        let (directory, store) = store();
        let value = |number: u32| format!("<secret {number:04}{}>", "x".repeat(number as usize * 37 % 500));
        let keep = |tx: &Connection| -> Result<(), StoreError> {
            for number in (0..1000).map(|number| number * 617 % 1000) {
                let name = format!("{}", number * 331 % 1000);
                tx.execute("INSERT INTO secret VALUES ('s', ?1, 'binary', CAST(?2 AS BLOB))", [name, value(number)])?;
            }
            Ok(())
        };
        store.write(keep).unwrap();
        for number in (0..1000).filter(|number| number % 3 != 0) {
            let drop_it = |tx: &Connection| -> Result<(), StoreError> {
                tx.execute("DELETE FROM secret WHERE value = CAST(?1 AS BLOB)", [value(number)])?;
                Ok(())
            };
            store.write(drop_it).unwrap();
        }
        store.erase_deleted();
        let mut found = BTreeSet::new();
        for file in fs::read_dir(directory.path()).unwrap() {
            let content = String::from_utf8_lossy(&fs::read(file.unwrap().path()).unwrap()).into_owned();
            found.extend(content.split("<secret ").skip(1).map(|rest| rest[..4].parse::<u32>().unwrap()));
        }
        assert_eq!(found, (0..1000).filter(|number| number % 3 == 0).collect());
    }

    #[test]
    fn what_was_deleted_while_somebody_reads_is_erased_after_that() {
        let (directory, store) = store();
        store.write(keep).unwrap();
        let reader = Store::open_read_only(&directory.path().join("cas.db")).unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM secret").unwrap();
        store.write(drop_it).unwrap();
        store.erase_deleted();
        assert!(!holding(directory.path(), b"dropped!").is_empty(), "the reader still sees it");
        reader.execute_batch("COMMIT").unwrap();
        store.write(|_| Ok::<_, StoreError>(())).unwrap();
        assert!(holding(directory.path(), b"dropped!").is_empty());
    }
}
