//! The audit log: what CAS did and refused, each entry chained to the one before by its hash, written in the transaction
//! that does what it records. Never a code or a secret.
//!
//! Exported, it is one entry a line, JSON, and last a line with CAS's signature over the last entry's hash: a seal. Whoever can
//! write CAS's database can write the log anew, and seal it: who keeps an older export has what to compare with.

use std::fmt::Write as _;
use std::io::{self, Write};

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OptionalExtension, Row, params};
use scone_run::protocol::{hex, unhex};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::session::is_session_name;
use crate::tls::{self, Identity};

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

/// What is wrong with a log. The exit codes are those that SCONE's `verify-audit-log` has (section 4.3); which is for what is
/// an assumption.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Not an export.
    #[error("line {0} is not an entry of an audit log")]
    NotALog(usize),
    /// An entry's content was changed.
    #[error("the audit log is broken at entry {0}: its content is not what its hash was made of")]
    Altered(i64),
    /// Something else stands where this entry should.
    #[error("the audit log is broken at entry {0}: it is missing, or not in its place")]
    Missing(i64),
    /// An entry that follows another one than that before it.
    #[error("the audit log is broken at entry {0}: it does not follow from the one before")]
    Unchained(i64),
    /// No seal.
    #[error("the audit log has no seal: its end is missing")]
    Unsealed,
    /// The seal is not the last entry's.
    #[error("the audit log's seal is that of another end, after entry {0}")]
    OtherEnd(i64),
    /// The signature is wrong.
    #[error("the audit log's seal is not signed with the key that it names")]
    BadSignature,
    /// It is another CAS's log.
    #[error("the audit log was sealed by another CAS, with the key {0}")]
    OtherCas(String),
}

impl Flaw {
    /// The exit code of `scone cas verify-audit-log`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Flaw::NotALog(_) => 10,
            Flaw::Altered(_) => 14,
            Flaw::Missing(_) => 15,
            Flaw::Unchained(_) => 16,
            Flaw::Unsealed => 17,
            Flaw::OtherEnd(_) => 18,
            Flaw::BadSignature => 19,
            Flaw::OtherCas(_) => 20,
        }
    }
}

/// Checks that each entry follows from the one before it; gives the last hash.
pub fn check_chain(entries: &[Entry]) -> Result<&str, Flaw> {
    let mut last = GENESIS;
    for (entry, sequence) in entries.iter().zip(1..) {
        if entry.sequence != sequence {
            return Err(Flaw::Missing(sequence));
        }
        if entry.previous != last {
            return Err(Flaw::Unchained(sequence));
        }
        if entry.hash != entry.digest() {
            return Err(Flaw::Altered(sequence));
        }
        last = &entry.hash;
    }
    Ok(last)
}

/// The last line of an export.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    /// The last entry's place; 0: there is none.
    sealed: i64,
    /// Its hash.
    hash: String,
    /// CAS's certificate, PEM.
    certificate: String,
    /// Its key's signature over the two above, lower-case hex.
    signature: String,
}

impl Seal {
    fn signed(sealed: i64, hash: &str) -> Vec<u8> {
        format!("scone-sim audit seal 1\0{sealed}\0{hash}").into_bytes()
    }
}

/// Writes the export.
pub fn export(entries: &[Entry], cas: &Identity, out: &mut impl Write) -> io::Result<()> {
    for entry in entries {
        serde_json::to_writer(&mut *out, entry)?;
        out.write_all(b"\n")?;
    }
    let (sealed, hash) = entries.last().map_or((0, GENESIS), |entry| (entry.sequence, &entry.hash));
    let signature = cas.sign(&Seal::signed(sealed, hash)).map_err(io::Error::other)?;
    let certificate = cas.certificate_pem.clone();
    serde_json::to_writer(&mut *out, &Seal { sealed, hash: hash.to_owned(), certificate, signature: hex(&signature) })?;
    out.write_all(b"\n")
}

/// What a sound export says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How many entries it has.
    pub entries: i64,
    /// The last one's hash.
    pub hash: String,
}

/// Checks an export: it is whole, nothing in it was changed, and the CAS with the key hash `cas` sealed it.
pub fn verify(export: &str, cas: &str) -> Result<Verified, Flaw> {
    let lines: Vec<&str> = export.lines().collect();
    let (seal, entries) = match lines.split_last() {
        Some((last, entries)) => (serde_json::from_str::<Seal>(last).ok(), entries),
        None => (None, &[][..]),
    };
    // Without its seal, the last line should be an entry, too.
    let entries = if seal.is_some() { entries } else { &lines };
    let read = |(i, line): (usize, &&str)| serde_json::from_str(line).map_err(|_| Flaw::NotALog(i + 1));
    let entries: Vec<Entry> = entries.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    let hash = check_chain(&entries)?;
    let seal = seal.ok_or(Flaw::Unsealed)?;
    let count = entries.last().map_or(0, |entry| entry.sequence);
    if (seal.sealed, seal.hash.as_str()) != (count, hash) {
        return Err(Flaw::OtherEnd(seal.sealed));
    }
    let signature = unhex(&seal.signature).ok_or(Flaw::BadSignature)?;
    let key = tls::signer(&seal.certificate, &Seal::signed(count, hash), &signature).ok_or(Flaw::BadSignature)?;
    if key != cas {
        return Err(Flaw::OtherCas(key));
    }
    Ok(Verified { entries: count, hash: hash.to_owned() })
}

/// The log as a table for people: hashes shortened, columns aligned.
pub fn table(entries: &[Entry]) -> String {
    let short = |hash: &str| match hash.get(..12) {
        Some(start) if !hash.starts_with('(') => start.to_owned(),
        _ => if hash.is_empty() { "-" } else { hash }.to_owned(),
    };
    let row = |entry: &Entry| {
        let subject = if entry.subject.is_empty() { "-" } else { &entry.subject };
        let cells = [&entry.sequence.to_string(), &utc(entry.time), &entry.event, subject];
        let cells = cells.into_iter().map(str::to_owned);
        let cells = cells.chain([short(&entry.who), short(&entry.measurement), entry.outcome.clone()]);
        // Whatever stands in an entry, it stays one line and cannot command a terminal.
        cells.map(|cell| cell.replace(char::is_control, "\u{fffd}")).collect::<Vec<_>>()
    };
    let header = ["ENTRY", "TIME", "EVENT", "SUBJECT", "WHO", "MEASUREMENT", "OUTCOME"].map(str::to_owned).to_vec();
    let rows: Vec<_> = std::iter::once(header).chain(entries.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            write!(text, "{cell:width$}  ").ok();
        }
        text += &row[6];
        text.push('\n');
    }
    text
}

/// ISO 8601, UTC.
fn utc(seconds: i64) -> String {
    match OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(t) => {
            let (year, month, day) = (t.year(), u8::from(t.month()), t.day());
            format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", t.hour(), t.minute(), t.second())
        }
        // A clock file may hold what no calendar does.
        Err(_) => format!("@{seconds}"),
    }
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
            check_chain(&entries).err()
        };
        let fields: [fn(&mut Entry) -> &mut String; 5] =
            [|e| &mut e.event, |e| &mut e.subject, |e| &mut e.who, |e| &mut e.measurement, |e| &mut e.outcome];
        for field in fields {
            assert_eq!(broken(&|e| field(&mut e[2]).push('x')), Some(Flaw::Altered(3)));
        }
        assert_eq!(broken(&|e| e[2].time += 1), Some(Flaw::Altered(3)));
        assert_eq!(broken(&|e| drop(e.remove(1))), Some(Flaw::Missing(2)));
        assert_eq!(broken(&|e| drop(e.remove(0))), Some(Flaw::Missing(1)));
        assert_eq!(broken(&|e| e.swap(3, 4)), Some(Flaw::Missing(4)));
        // Written anew with a right hash, it still does not lead to the next one.
        assert_eq!(
            broken(&|e| {
                e[2].outcome.push('x');
                e[2].hash = e[2].digest();
            }),
            Some(Flaw::Unchained(4))
        );
        assert_eq!(broken(&|_| ()), None);
    }

    #[test]
    fn an_export_is_whole_and_sealed_by_its_cas_or_says_what_is_wrong() {
        let (cas, other) = (Identity::generate("CAS").unwrap(), Identity::generate("CAS").unwrap());
        let whole = entries(3);
        let export_by = |entries: &[Entry], cas: &Identity| {
            let mut text = Vec::new();
            export(entries, cas, &mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        let text = export_by(&whole, &cas);
        let lines: Vec<&str> = text.lines().collect();
        let verdict = |text: &str| verify(text, &cas.key_hash).map_err(|flaw| (flaw.exit_code(), flaw));
        let rewritten = {
            let mut entries = whole.clone();
            entries[2].outcome.push('x');
            entries[2].hash = entries[2].digest();
            entries
        };
        for (text, exit_code, flaw) in [
            ("no log\n".to_owned(), 10, Flaw::NotALog(1)),
            (text.replacen("ns/a", "ns/b", 1), 14, Flaw::Altered(1)),
            ([lines[0], lines[2], lines[3]].join("\n"), 15, Flaw::Missing(2)),
            (export_by(&[&whole[..2], &entries(4)[3..]].concat(), &cas), 15, Flaw::Missing(3)),
            (lines[..2].join("\n"), 17, Flaw::Unsealed),
            (String::new(), 17, Flaw::Unsealed),
            ([lines[0], lines[1], lines[3]].join("\n"), 18, Flaw::OtherEnd(3)),
            // A rewritten end under the old seal, and under the old signature.
            (text.replace(lines[2], &serde_json::to_string(&rewritten[2]).unwrap()), 18, Flaw::OtherEnd(3)),
            (
                text.replace(lines[2], &serde_json::to_string(&rewritten[2]).unwrap())
                    .replace(&whole[2].hash, &rewritten[2].hash),
                19,
                Flaw::BadSignature,
            ),
            (export_by(&whole, &other), 20, Flaw::OtherCas(other.key_hash.clone())),
        ] {
            assert_eq!(verdict(&text), Err((exit_code, flaw)), "{text}");
        }
        assert_eq!(verdict(&text), Ok(Verified { entries: 3, hash: whole[2].hash.clone() }));
        assert_eq!(verdict(&export_by(&[], &cas)), Ok(Verified { entries: 0, hash: GENESIS.to_owned() }));
    }

    #[test]
    fn the_table_is_aligned_and_stays_a_table_whatever_stands_in_an_entry() {
        let mut entries = entries(2);
        entries[0].who = "ab".repeat(32);
        entries[0].time = 1_800_000_000;
        entries[1].time = i64::MAX;
        entries[1].outcome = "refused:\n\u{1b}[2J".into();
        assert_eq!(
            table(&entries),
            "ENTRY  TIME                  EVENT         SUBJECT  WHO           MEASUREMENT  OUTCOME\n\
             1      2027-01-15T08:00:00Z  session read  ns/a     abababababab  -            accepted\n\
             2      @9223372036854775807  session read  ns/a     -             -            refused:\u{fffd}\u{fffd}[2J\n"
        );
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
