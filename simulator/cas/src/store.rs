//! CAS's database: one SQLite file. A write is durable before the call that made it returns.
//!
//! Writes that come together share a commit, since a commit costs an fsync and a decision next to nothing: each does its work
//! under the lock, in a savepoint of one open transaction, and a caller with nobody waiting behind it commits for all before
//! it. Meanwhile the next ones gather. No caller returns before its work is committed.
//!
//! `cas.head`, beside the database, holds the place and hash of the last audit entry that was committed. It is written after
//! the commit, so it is never ahead of an honest database, not even after a power cut: a database that lacks that entry was
//! restored from an older copy. Without `cas.head` that could not be told, so CAS does not start on a database that has
//! entries and no head. Whoever restores both files is not noticed here.

mod erasure;
mod head;
mod secrets;
mod sessions;
mod volumes;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};

use head::Head;
pub use secrets::{draw, drawn_secret};
pub use sessions::{Stored, activate, active, length, names, with_hash};
pub use volumes::{StoredVolume, move_tag, volume};

/// The layout's number, in SQLite's `user_version`.
const LAYOUT: i64 = 3;

/// The same tables; the rows of `code` have other names, and are taken over as their secrets are used (`codes`). The number
/// keeps an older program, which would not find them, from accepting codes again.
const TAKEN_OVER: i64 = 2;

/// How long to wait for a database that somebody else has locked.
const PATIENCE: Duration = Duration::from_secs(10);

/// Commits at the latest after this many writes: a steady stream must not put the first one's answer off for ever.
const LARGEST_BATCH: usize = 256;

/// `session` keeps every version, the highest is active. `secret` holds what CAS drew. A row of `volume` is never deleted.
/// `refusals` has one row.
pub(crate) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS identity (pem TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS session (
        name TEXT NOT NULL, version INTEGER NOT NULL, hash TEXT NOT NULL, creator TEXT NOT NULL, content TEXT NOT NULL,
        PRIMARY KEY (name, version)) STRICT;
    CREATE TABLE IF NOT EXISTS secret (
        session TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, value BLOB NOT NULL,
        PRIMARY KEY (session, name)) STRICT;
    CREATE TABLE IF NOT EXISTS volume (
        session TEXT NOT NULL, name TEXT NOT NULL, key BLOB NOT NULL, tag TEXT,
        PRIMARY KEY (session, name)) STRICT;
    CREATE TABLE IF NOT EXISTS code (
        secret TEXT PRIMARY KEY, highest_step INTEGER, failures INTEGER NOT NULL, failed_at INTEGER NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS audit (
        sequence INTEGER PRIMARY KEY, time INTEGER NOT NULL, event TEXT NOT NULL, subject TEXT NOT NULL,
        who TEXT NOT NULL, measurement TEXT NOT NULL, outcome TEXT NOT NULL,
        previous TEXT NOT NULL, hash TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS refusals (free_at INTEGER NOT NULL, left_out INTEGER NOT NULL) STRICT;
    INSERT INTO refusals SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM refusals);
";

/// The database failed, or is not ours.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's word.
    #[error("the database failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// Written by another version.
    #[error("the database has layout {0}, this program knows layout {LAYOUT} only")]
    Layout(i64),
    /// What it holds cannot have been written by us.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// The write, or one that shared its transaction, could not be made durable: none of them happened.
    #[error("the database could not commit: {0}")]
    NotCommitted(String),
    /// It lacks an audit entry that was committed.
    #[error("the database was restored from an older copy: it lacks audit entry {sequence}, which '{}' remembers", head.display())]
    Restored {
        /// The entry's place.
        sequence: i64,
        /// What remembers it.
        head: PathBuf,
    },
    /// The file beside the database was taken away or overwritten.
    #[error("'{}' {what}: whether the database beside it is an older copy cannot be told", path.display())]
    HeadLost {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file beside the database.
    #[error("cannot use '{}': {source}", path.display())]
    Beside {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    NoRandomness,
}

/// The open database.
pub struct Store {
    open: Mutex<Open>,
    /// Callers that wait for the lock.
    waiting: AtomicUsize,
}

/// What the lock protects.
struct Open {
    connection: Connection,
    head: Head,
    batch: Arc<Batch>,
    /// Writes in the batch.
    size: usize,
    /// Whether its transaction was begun.
    begun: bool,
    /// Whether the write-ahead log may hold what was deleted.
    erase: bool,
}

/// Writes that share a commit.
#[derive(Default)]
struct Batch {
    outcome: Mutex<Option<Result<(), String>>>,
    ended: Condvar,
}

impl Store {
    /// Opens the database, making it if it is not there.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let mut connection = connect(path)?;
        let head_path = path.with_extension("head");
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let head = match tx.pragma_query_value(None, "user_version", |row| row.get(0))? {
            // A new database is a new CAS with a key of its own, which nobody takes for the old one. The head comes first: no
            // crash leaves a database without one.
            0 => Head::start(head_path, None)?,
            LAYOUT | TAKEN_OVER => Head::check(head_path, &tx)?,
            other => return Err(StoreError::Layout(other)),
        };
        tx.execute_batch(TABLES)?;
        tx.pragma_update(None, "user_version", LAYOUT)?;
        tx.commit()?;
        let mut open = Open { connection, head, batch: Arc::default(), size: 0, begun: false, erase: true };
        open.erase_deleted();
        Ok(Store { open: Mutex::new(open), waiting: AtomicUsize::new(0) })
    }

    /// Takes the database as it is, whatever its head says, so that CAS starts on it.
    pub fn adopt(path: &Path) -> Result<(), StoreError> {
        let connection = Store::open_read_only(path)?;
        Head::start(path.with_extension("head"), Some(&connection)).map(drop)
    }

    /// Opens the database of a CAS that may be running, to look only.
    pub fn open_read_only(path: &Path) -> Result<Connection, StoreError> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        match connection.pragma_query_value(None, "user_version", |row| row.get(0))? {
            LAYOUT | TAKEN_OVER => Ok(connection),
            other => Err(StoreError::Layout(other)),
        }
    }

    /// Runs `work` alone on the database; what it wrote is durable when this returns `Ok`, and undone if `work` failed.
    pub fn write<T, E: From<StoreError>>(&self, work: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut open = lock(&self.open);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        // A panic undoes this caller's work; the others must not wait for their commit in vain.
        let result = catch_unwind(AssertUnwindSafe(|| open.apply(work)));
        let batch = open.batch.clone();
        open.size += 1;
        if self.waiting.load(Ordering::SeqCst) == 0 || open.size >= LARGEST_BATCH {
            open.commit();
        }
        drop(open);
        let committed = batch.outcome();
        let value = result.unwrap_or_else(|panic| resume_unwind(panic))?;
        committed.map_err(|error| E::from(StoreError::NotCommitted(error)))?;
        Ok(value)
    }

    /// Erases what was deleted from the write-ahead log as well - unless somebody reads an older state: then with the first
    /// commit after that.
    pub fn erase_deleted(&self) {
        let mut open = lock(&self.open);
        open.erase = true;
        if !open.begun {
            open.erase_deleted();
        }
    }
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // What is deleted is overwritten. The write-ahead log keeps it until it is emptied: see `erase_deleted`.
    connection.pragma_update(None, "secure_delete", true)?;
    Ok(connection)
}

impl Open {
    fn apply<T, E: From<StoreError>>(&mut self, work: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
        let database = |error| E::from(StoreError::Database(error));
        if !self.begun {
            self.connection.execute_batch("BEGIN IMMEDIATE").map_err(database)?;
            self.begun = true;
        } else if self.connection.is_autocommit() {
            // A savepoint would begin a transaction of its own, without the others' writes.
            return Err(E::from(StoreError::NotCommitted("the transaction was undone".into())));
        }
        let savepoint = self.connection.savepoint().map_err(database)?;
        let value = work(&savepoint)?;
        savepoint.commit().map_err(database)?;
        Ok(value)
    }

    /// Ends the batch and tells those who wait for it.
    fn commit(&mut self) {
        let outcome = self.try_commit().map_err(|error| error.to_string());
        let batch = std::mem::take(&mut self.batch);
        (self.size, self.begun) = (0, false);
        *lock(&batch.outcome) = Some(outcome);
        batch.ended.notify_all();
    }

    fn try_commit(&mut self) -> Result<(), StoreError> {
        if !self.begun {
            return Ok(());
        }
        // After some errors (a full disk, say) SQLite has undone the whole transaction, the others' writes too: then no
        // transaction is left to commit, and this fails.
        if let Err(error) = self.connection.execute_batch("COMMIT") {
            if !self.connection.is_autocommit() {
                self.connection.execute_batch("ROLLBACK")?;
            }
            return Err(error.into());
        }
        self.head.remember(&self.connection)?;
        self.erase_deleted();
        Ok(())
    }

    /// Empties the write-ahead log, if that is due. The commit that it follows stands whatever comes of this.
    fn erase_deleted(&mut self) {
        if !self.erase {
            return;
        }
        match erasure::empty_write_ahead_log(&self.connection) {
            Ok(emptied) => self.erase = !emptied,
            Err(error) => eprintln!("scone-sim: what was deleted is still in the write-ahead log: {error}"),
        }
    }
}

impl Batch {
    /// Waits for the commit.
    fn outcome(&self) -> Result<(), String> {
        let mut outcome = lock(&self.outcome);
        loop {
            match &*outcome {
                Some(outcome) => return outcome.clone(),
                None => outcome = self.ended.wait(outcome).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Locks, also after a panic: no panic leaves what the locks protect half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CAS's key and certificate; made by `make` at the first start.
pub fn identity<E: From<StoreError>>(tx: &Connection, make: impl FnOnce() -> Result<String, E>) -> Result<String, E> {
    let known = tx.query_row("SELECT pem FROM identity", [], |row| row.get(0)).optional();
    if let Some(pem) = known.map_err(StoreError::from)? {
        return Ok(pem);
    }
    let pem = make()?;
    tx.execute("INSERT INTO identity (pem) VALUES (?1)", [&pem]).map_err(StoreError::from)?;
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("cas.db")).unwrap();
        (directory, store)
    }

    fn insert(tx: &Connection, name: &str) -> Result<(), StoreError> {
        tx.execute("INSERT INTO secret VALUES ('s', ?1, 'ascii', x'00')", [name])?;
        Ok(())
    }

    fn names_in(store: &Store) -> Vec<String> {
        let read = |tx: &Connection| {
            let mut rows = tx.prepare("SELECT name FROM secret ORDER BY name")?;
            Ok::<_, StoreError>(rows.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
        };
        store.write(read).unwrap()
    }

    /// Two writes in one batch: the first is done while the second already waits.
    fn together<T: Send>(
        store: &Store,
        first: impl FnOnce(&Connection) -> Result<(), StoreError> + Send,
        second: impl FnOnce(&Connection) -> Result<T, StoreError> + Send,
    ) -> (Result<(), StoreError>, std::thread::Result<Result<T, StoreError>>) {
        let (begun, wait) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let first = scope.spawn(move || {
                store.write(|tx| {
                    begun.send(()).unwrap();
                    while store.waiting.load(Ordering::SeqCst) == 0 {
                        std::thread::yield_now();
                    }
                    first(tx)
                })
            });
            wait.recv().unwrap();
            let second = scope.spawn(|| store.write(second));
            (first.join().unwrap(), second.join())
        })
    }

    #[test]
    fn writes_that_come_together_share_a_transaction_and_fail_alone() {
        let (_directory, store) = store();
        let failed = |tx: &Connection| {
            insert(tx, "undone")?;
            Err::<(), _>(StoreError::NoRandomness)
        };
        let (first, second) = together(&store, |tx| insert(tx, "kept"), failed);
        assert!(matches!(second, Ok(Err(StoreError::NoRandomness))));
        first.unwrap();
        assert_eq!(names_in(&store), ["kept"]);

        let (first, second) = together(&store, failed, |tx| insert(tx, "kept too"));
        assert!(matches!(first, Err(StoreError::NoRandomness)));
        second.unwrap().unwrap();
        assert_eq!(names_in(&store), ["kept", "kept too"]);
    }

    #[test]
    fn a_write_that_panics_is_undone_and_neither_stops_the_others_nor_the_next() {
        let (_directory, store) = store();
        let (first, second) = together(
            &store,
            |tx| insert(tx, "kept"),
            |tx| -> Result<(), StoreError> {
                insert(tx, "undone")?;
                panic!("as a test")
            },
        );
        assert!(second.is_err());
        first.unwrap();
        assert_eq!(names_in(&store), ["kept"]);
    }

    #[test]
    fn if_sqlite_undoes_the_transaction_nobody_in_it_is_told_that_it_was_committed() {
        let (_directory, store) = store();
        let (first, second) = together(&store, |tx| insert(tx, "lost"), |tx| Ok(tx.execute_batch("ROLLBACK")?));
        assert!(matches!(first, Err(StoreError::NotCommitted(_))), "{first:?}");
        assert!(second.unwrap().is_err());
        assert!(names_in(&store).is_empty());
        store.write(|tx| insert(tx, "kept")).unwrap();
        assert_eq!(names_in(&store), ["kept"]);
    }

    #[test]
    fn a_head_that_is_not_ours_is_an_error_that_names_it() {
        let (directory, store) = store();
        drop(store);
        let head = directory.path().join("cas.head");
        for text in [&b"7"[..], b"x abc\n", b"\xff\n"] {
            std::fs::write(&head, text).unwrap();
            let error = Store::open(&directory.path().join("cas.db")).err().unwrap().to_string();
            assert!(error.contains(head.to_str().unwrap()), "{error}");
        }
    }
}
