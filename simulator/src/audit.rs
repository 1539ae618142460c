//! The audit log: what CAS did and refused, each entry chained to the one before by its hash, written in the transaction
//! that does what it records. Never a code or a secret. Whoever can write the database can cut the log's end off or write it
//! anew: keep the last hash elsewhere to notice.

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, Row, Transaction, params};
use scone_run::protocol::hex;

use crate::session::is_session_name;

/// The hash before the first entry.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// CAS began to serve.
    CasStarted,
    /// CAS was told to stop.
    CasExited,
    /// A session was uploaded, or refused.
    SessionUploaded,
    /// A session was read, or refused.
    SessionRead,
    /// A code was asked for.
    CodeChecked,
    /// A service asked for its configuration.
    ServiceAttested,
    /// A volume's tag was moved, or not.
    VolumeTagUpdated,
}

impl Event {
    fn text(self) -> &'static str {
        match self {
            Event::CasStarted => "CAS started",
            Event::CasExited => "CAS exited",
            Event::SessionUploaded => "session uploaded",
            Event::SessionRead => "session read",
            Event::CodeChecked => "code checked",
            Event::ServiceAttested => "service attested",
            Event::VolumeTagUpdated => "volume FSPF tag updated",
        }
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// 1, 2, 3, …
    pub sequence: i64,
    /// Seconds since the epoch.
    pub time: i64,
    /// What happened.
    pub event: String,
    /// To which session, service or volume; empty if to CAS.
    pub subject: String,
    /// `accepted`, or the true reason of the refusal, which the peer may not have been told.
    pub outcome: String,
    /// The hash of the entry before.
    pub previous: String,
    /// The hash of all of the above.
    pub hash: String,
}

impl Entry {
    fn digest(&self) -> String {
        let mut hash = Context::new(&SHA256);
        hash.update(b"scone-sim audit 1\0");
        hash.update(&self.sequence.to_be_bytes());
        hash.update(&self.time.to_be_bytes());
        for field in [&self.event, &self.subject, &self.outcome, &self.previous] {
            hash.update(&(field.len() as u64).to_be_bytes());
            hash.update(field.as_bytes());
        }
        hex(hash.finish().as_ref())
    }

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Entry> {
        Ok(Entry {
            sequence: row.get(0)?,
            time: row.get(1)?,
            event: row.get(2)?,
            subject: row.get(3)?,
            outcome: row.get(4)?,
            previous: row.get(5)?,
            hash: row.get(6)?,
        })
    }
}

const COLUMNS: &str = "sequence, time, event, subject, outcome, previous, hash";

/// Appends an entry. A subject that cannot be a name is not written down: it may hold what a peer mistook for one.
pub fn append(tx: &Transaction<'_>, time: u64, event: Event, subject: &str, outcome: &str) -> rusqlite::Result<()> {
    let mut last = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM audit ORDER BY sequence DESC LIMIT 1"))?;
    let last = last.query_map([], Entry::from_row)?.next().transpose()?;
    let (sequence, previous) = last.map_or((1, GENESIS.to_owned()), |last| (last.sequence + 1, last.hash));
    let subject = if subject.is_empty() || is_session_name(subject) { subject } else { "(not a name)" };
    let mut entry = Entry {
        sequence,
        time: time as i64,
        event: event.text().to_owned(),
        subject: subject.to_owned(),
        outcome: outcome.to_owned(),
        previous,
        hash: String::new(),
    };
    entry.hash = entry.digest();
    tx.prepare_cached(&format!("INSERT INTO audit ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"))?.execute(
        params![entry.sequence, entry.time, entry.event, entry.subject, entry.outcome, entry.previous, entry.hash],
    )?;
    Ok(())
}

/// All entries, oldest first.
pub fn read(db: &Connection) -> rusqlite::Result<Vec<Entry>> {
    db.prepare(&format!("SELECT {COLUMNS} FROM audit ORDER BY sequence"))?.query_map([], Entry::from_row)?.collect()
}

/// The place of the first entry that does not follow from the one before it, if there is one.
pub fn first_break(entries: &[Entry]) -> Option<usize> {
    let mut previous = GENESIS;
    entries.iter().zip(1..).find_map(|(entry, sequence)| {
        let follows = entry.sequence == sequence && entry.previous == previous && entry.hash == entry.digest();
        previous = &entry.hash;
        (!follows).then_some(sequence as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(events: u64) -> Vec<Entry> {
        let mut db = Connection::open_in_memory().unwrap();
        db.execute_batch(crate::store::TABLES).unwrap();
        let tx = db.transaction().unwrap();
        for time in 0..events {
            append(&tx, time, Event::SessionRead, "ns/a", "accepted").unwrap();
        }
        tx.commit().unwrap();
        read(&db).unwrap()
    }

    #[test]
    fn an_entry_altered_removed_or_moved_breaks_the_chain_where_it_was() {
        let whole = entries(5);
        let broken = |change: &dyn Fn(&mut Vec<Entry>)| {
            let mut entries = whole.clone();
            change(&mut entries);
            first_break(&entries)
        };
        assert_eq!(broken(&|e| e[2].outcome = "refused".into()), Some(3));
        assert_eq!(broken(&|e| e[2].time += 1), Some(3));
        assert_eq!(broken(&|e| e[2].subject.push('x')), Some(3));
        assert_eq!(broken(&|e| drop(e.remove(1))), Some(2));
        assert_eq!(broken(&|e| drop(e.remove(0))), Some(1));
        assert_eq!(broken(&|e| e.swap(3, 4)), Some(4));
        assert_eq!(broken(&|_| ()), None);
    }

    #[test]
    fn what_is_no_name_is_not_written_down() {
        let mut db = Connection::open_in_memory().unwrap();
        db.execute_batch(crate::store::TABLES).unwrap();
        let tx = db.transaction().unwrap();
        append(&tx, 1, Event::ServiceAttested, "ns/a/service@123456", "refused").unwrap();
        assert_eq!(read(&tx).unwrap()[0].subject, "(not a name)");
    }
}
