//! The audit log: what CAS did and refused, each entry chained to the one before by its hash, written in the transaction
//! that does what it records. Never a code or a secret. Whoever can write the database can cut the log's end off or write it
//! anew: keep the last hash elsewhere to notice.

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OptionalExtension, Row, params};
use scone_run::protocol::{hex, unhex};
use serde::{Deserialize, Serialize};

use crate::session::is_session_name;

/// The hash before the first entry.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What happened. But for the codes, SCONE's events (`reference/scone.md` section 4.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// CAS began to serve.
    CasStarted,
    /// CAS was told to stop.
    CasExited,
    /// A session was uploaded under a new name, or refused.
    SessionCreated,
    /// A session was uploaded to replace another, or refused.
    SessionUpdated,
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
            Event::SessionCreated => "session created",
            Event::SessionUpdated => "session updated",
            Event::SessionRead => "session read",
            Event::CodeChecked => "code checked",
            Event::ServiceAttested => "service attested",
            Event::VolumeTagUpdated => "volume FSPF tag updated",
        }
    }
}

/// What is to be written down.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// What happened.
    pub event: Event,
    /// To which session, service or volume; empty if to CAS.
    pub subject: &'a str,
    /// The key hash of who asked; empty if nobody showed a key: a runtime is known by its measurement.
    pub who: &'a str,
    /// The measurement a runtime showed; empty if none was asked for.
    pub measurement: &'a str,
    /// `accepted`, or the true reason of the refusal, which the peer may not have been told.
    pub outcome: &'a str,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// 1, 2, 3, …
    pub sequence: i64,
    /// Seconds since the epoch.
    pub time: i64,
    /// [`Record::event`]
    pub event: String,
    /// [`Record::subject`]
    pub subject: String,
    /// [`Record::who`]
    pub who: String,
    /// [`Record::measurement`]
    pub measurement: String,
    /// [`Record::outcome`]
    pub outcome: String,
    /// The hash of the entry before.
    pub previous: String,
    /// The hash of all of the above.
    pub hash: String,
}

impl Entry {
    fn digest(&self) -> String {
        let mut hash = Context::new(&SHA256);
        hash.update(b"scone-sim audit 2\0");
        hash.update(&self.sequence.to_be_bytes());
        hash.update(&self.time.to_be_bytes());
        for field in [&self.event, &self.subject, &self.who, &self.measurement, &self.outcome, &self.previous] {
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
            who: row.get(4)?,
            measurement: row.get(5)?,
            outcome: row.get(6)?,
            previous: row.get(7)?,
            hash: row.get(8)?,
        })
    }
}

const COLUMNS: &str = "sequence, time, event, subject, who, measurement, outcome, previous, hash";

/// Appends an entry. What cannot be a name, a key hash or a measurement is not written down: it may hold what a peer mistook
/// for one.
pub fn append(tx: &Connection, time: u64, record: &Record<'_>) -> rusqlite::Result<()> {
    let last: Option<(i64, String)> = tx
        .prepare_cached("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (sequence, previous) = last.map_or((1, GENESIS.to_owned()), |(sequence, hash)| (sequence + 1, hash));
    let named = |text: &str, fits: bool, otherwise: &str| {
        if text.is_empty() || fits { text.to_owned() } else { otherwise.to_owned() }
    };
    let is_hash = |text| unhex(text).is_some_and(|bytes| bytes.len() == 32);
    let mut entry = Entry {
        sequence,
        time: time as i64,
        event: record.event.text().to_owned(),
        subject: named(record.subject, is_session_name(record.subject), "(not a name)"),
        who: named(record.who, is_hash(record.who), "(not a key hash)"),
        measurement: named(record.measurement, is_hash(record.measurement), "(not a measurement)"),
        outcome: record.outcome.to_owned(),
        previous,
        hash: String::new(),
    };
    entry.hash = entry.digest();
    let Entry { sequence, time, event, subject, who, measurement, outcome, previous, hash } = entry;
    tx.prepare_cached(&format!("INSERT INTO audit ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"))?
        .execute(params![sequence, time, event, subject, who, measurement, outcome, previous, hash])?;
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

    const READ: Record<'_> =
        Record { event: Event::SessionRead, subject: "ns/a", who: "", measurement: "", outcome: "accepted" };

    fn entries(events: u64) -> Vec<Entry> {
        let mut db = Connection::open_in_memory().unwrap();
        db.execute_batch(crate::store::TABLES).unwrap();
        let tx = db.transaction().unwrap();
        for time in 0..events {
            append(&tx, time, &READ).unwrap();
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
        let claim = Record { subject: "ns/a/service@123456", who: "123456", measurement: "123456", ..READ };
        append(&tx, 1, &claim).unwrap();
        let [entry] = &read(&tx).unwrap()[..] else { panic!("one entry") };
        assert_eq!(entry.subject, "(not a name)");
        assert_eq!(entry.who, "(not a key hash)");
        assert_eq!(entry.measurement, "(not a measurement)");
    }
}
