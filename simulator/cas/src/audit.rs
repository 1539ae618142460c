//! The audit log: what CAS did and refused, each entry chained to the one before by its hash, written in the transaction
//! that does what it records. Never a code or a secret.
//!
//! Exported, it is one entry a line, JSON, and last a line with CAS's signature over the last entry's hash: a seal. Whoever can
//! write CAS's database can write the log anew, and seal it: who keeps an older export finds that CAS does not have its entries.

use std::fmt::Write as _;
use std::io::{self, Write};

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OptionalExtension, Row, params};
use scone_protocol::{hex, unhex};
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

/// What is wrong with a log. Meanings and exit codes are those that SCONE documents for `verify-audit-log` (its pages on the
/// audit log and the command line), the most severe first. Its 10, for an entry of a decision that failed, does not occur:
/// here an entry is part of the transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Not an export.
    #[error("line {0} is not an entry of an audit log")]
    NotALog(usize),
    /// An entry's content was changed.
    #[error("the audit log is broken at entry {0}: its content is not what its hash was made of")]
    Altered(i64),
    /// An entry that follows another one than that before it.
    #[error("the audit log is broken at entry {0}: it does not follow from the one before")]
    Unchained(i64),
    /// The seal's signature is wrong.
    #[error("the audit log's seal is not signed with the key that it names")]
    BadSignature,
    /// Neither a seal nor CAS itself vouches for the last entry.
    #[error("nobody vouches for the audit log: entry {0} is not the one that was sealed, nor one that CAS has")]
    Unsealed(i64),
    /// It is another CAS's log.
    #[error("the audit log was sealed by another CAS, with the key {0}")]
    OtherCas(String),
    /// CAS sealed the entry, and does not have it.
    #[error("CAS was rolled back: it sealed entry {0}, and has none or another one in its place")]
    RolledBack(i64),
    /// Something else stands where this entry should.
    #[error("the audit log is broken at entry {0}: it is missing, or not in its place")]
    Missing(i64),
    /// CAS was not heard.
    #[error("whether CAS was rolled back is not known: {0}")]
    Unconfirmed(String),
    /// It starts late.
    #[error("the audit log starts with entry {0}: older ones are missing")]
    StartMissing(i64),
    /// CAS has more.
    #[error("the audit log ends with entry {0}: more recent ones are missing")]
    EndMissing(i64),
}

impl Flaw {
    /// The exit code of `scone cas verify-audit-log`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Flaw::NotALog(_) | Flaw::Altered(_) | Flaw::Unchained(_) | Flaw::BadSignature | Flaw::Unsealed(_) => 20,
            Flaw::OtherCas(_) => 19,
            Flaw::RolledBack(_) => 18,
            Flaw::Missing(_) => 17,
            Flaw::Unconfirmed(_) => 16,
            Flaw::StartMissing(_) => 15,
            Flaw::EndMissing(_) => 14,
        }
    }
}

/// Checks that each entry follows from the one before it, from the first one on; gives the last hash.
pub fn check_chain(entries: &[Entry]) -> Result<&str, Flaw> {
    match first_gap(entries)? {
        Some(missing) => Err(Flaw::Missing(missing)),
        None if entries.first().is_some_and(|entry| entry.sequence != 1) => Err(Flaw::Missing(1)),
        None => Ok(entries.last().map_or(GENESIS, |entry| &entry.hash)),
    }
}

/// The first entry that is missing between two others, if these are what their hashes say.
fn first_gap(entries: &[Entry]) -> Result<Option<i64>, Flaw> {
    let mut gap = None;
    let mut before: Option<&Entry> = None;
    for entry in entries {
        let (expected, previous) =
            before.map_or((entry.sequence, None), |e| (e.sequence.saturating_add(1), Some(&e.hash)));
        if entry.hash != entry.digest() {
            return Err(Flaw::Altered(entry.sequence));
        }
        let follows = match previous {
            Some(previous) => entry.previous == *previous,
            None => entry.sequence != 1 || entry.previous == GENESIS,
        };
        if entry.sequence != expected {
            gap = gap.or(Some(expected));
        } else if !follows {
            return Err(Flaw::Unchained(entry.sequence));
        }
        before = Some(entry);
    }
    Ok(gap)
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

/// An export that was read: each entry is what its hash says.
pub struct Export {
    /// Its entries.
    pub entries: Vec<Entry>,
    /// The last one, again: there is at least one.
    end: Entry,
    /// Whether CAS's signature covers the last one, and with it all that it follows from.
    sealed: bool,
    /// The first entry that is missing between two others.
    gap: Option<i64>,
}

/// What CAS says of its log today.
#[derive(Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The last entry's place.
    pub last: i64,
    /// The hash of the entry at the place that was asked for; `None`: there is no such entry.
    pub hash: Option<String>,
}

/// CAS's word on the entry at this place.
pub fn checkpoint(db: &Connection, sequence: i64) -> rusqlite::Result<Checkpoint> {
    let last = db.query_row("SELECT coalesce(max(sequence), 0) FROM audit", [], |row| row.get(0))?;
    let hash = db.query_row("SELECT hash FROM audit WHERE sequence = ?1", [sequence], |row| row.get(0)).optional()?;
    Ok(Checkpoint { last, hash })
}

impl Export {
    /// Reads an export, and refuses what the CAS with the key hash `cas` cannot have written.
    pub fn read(text: &str, cas: &str) -> Result<Export, Flaw> {
        let lines: Vec<&str> = text.lines().collect();
        let (seal, entries) = match lines.split_last() {
            Some((last, entries)) => (serde_json::from_str::<Seal>(last).ok(), entries),
            None => return Err(Flaw::NotALog(1)),
        };
        // Without its seal, the last line should be an entry, too.
        let entries = if seal.is_some() { entries } else { &lines };
        let read = |(i, line): (usize, &&str)| serde_json::from_str(line).map_err(|_| Flaw::NotALog(i + 1));
        let entries: Vec<Entry> = entries.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        let gap = first_gap(&entries)?;
        let end = entries.last().ok_or(Flaw::NotALog(1))?.clone();
        let mut sealed = false;
        if let Some(seal) = seal {
            let signature = unhex(&seal.signature).ok_or(Flaw::BadSignature)?;
            let key = tls::signer(&seal.certificate, &Seal::signed(seal.sealed, &seal.hash), &signature)
                .ok_or(Flaw::BadSignature)?;
            if key != cas {
                return Err(Flaw::OtherCas(key));
            }
            sealed = (seal.sealed, &seal.hash) == (end.sequence, &end.hash);
        }
        Ok(Export { entries, end, sealed, gap })
    }

    /// Place and hash of its last entry.
    pub fn end(&self) -> (i64, &str) {
        (self.end.sequence, &self.end.hash)
    }

    /// Compares it with what CAS says of its last entry (or why it says nothing). `predecessor` and `last` are the hashes that a
    /// part of a log begins after and ends with; without them it should be the whole.
    pub fn verify(
        &self,
        cas: Result<Checkpoint, String>,
        predecessor: Option<&str>,
        last: Option<&str>,
    ) -> Result<(), Flaw> {
        let end = &self.end;
        let confirmed = cas.as_ref().is_ok_and(|cas| cas.hash.as_ref() == Some(&end.hash));
        if !confirmed && !self.sealed {
            return Err(Flaw::Unsealed(end.sequence));
        }
        if !confirmed && cas.is_ok() {
            return Err(Flaw::RolledBack(end.sequence));
        }
        if let Some(missing) = self.gap {
            return Err(Flaw::Missing(missing));
        }
        let cas = cas.map_err(Flaw::Unconfirmed)?;
        if let Some(start) = self.entries.first().filter(|start| start.previous != predecessor.unwrap_or(GENESIS)) {
            return Err(Flaw::StartMissing(start.sequence));
        }
        if last.map_or(cas.last != end.sequence, |last| last != end.hash) {
            return Err(Flaw::EndMissing(end.sequence));
        }
        Ok(())
    }
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
    fn an_export_is_what_its_cas_has_or_the_worst_of_what_is_wrong_is_said() {
        let (cas, other) = (Identity::generate("CAS").unwrap(), Identity::generate("CAS").unwrap());
        let whole = entries(4);
        let export_by = |entries: &[Entry], cas: &Identity| {
            let mut text = Vec::new();
            export(entries, cas, &mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        let text = export_by(&whole, &cas);
        let lines: Vec<&str> = text.lines().collect();
        let without = |gone: &[usize]| {
            let kept = lines.iter().enumerate().filter(|(i, _)| !gone.contains(i));
            kept.map(|(_, line)| format!("{line}\n")).collect::<String>()
        };
        // Another entry 4, which CAS wrote after it was put back to when it had three.
        let (mut again, mut forged) = (whole.clone(), whole.clone());
        again[3].time += 60;
        again[3].hash = again[3].digest();
        forged[2].outcome.push('x');
        forged[2].hash = forged[2].digest();
        let line = |entry: &Entry| serde_json::to_string(entry).unwrap();

        let judge = |text: &str, has: Option<&[Entry]>, predecessor: Option<&str>, last: Option<&str>| {
            let export = Export::read(text, &cas.key_hash)?;
            let end = export.end().0;
            let hash = |entries: &[Entry]| entries.iter().find(|e| e.sequence == end).map(|e| e.hash.clone());
            let said = has.map(|entries| Checkpoint { last: entries.len() as i64, hash: hash(entries) });
            export.verify(said.ok_or_else(|| "no answer".to_owned()), predecessor, last)
        };
        let grown = entries(5);
        let unconfirmed = || Flaw::Unconfirmed("no answer".into());
        let (all, three) = (Some(&whole[..]), Some(&whole[..3]));
        for (text, has, exit_code, flaw) in [
            ("no log\n".to_owned(), all, 20, Flaw::NotALog(1)),
            (String::new(), all, 20, Flaw::NotALog(1)),
            (export_by(&[], &cas), all, 20, Flaw::NotALog(1)),
            (text.replacen("ns/a", "ns/b", 1), all, 20, Flaw::Altered(1)),
            (text.replace(lines[2], &line(&forged[2])), all, 20, Flaw::Unchained(4)),
            // A rewritten end: under the old seal, and under the old signature.
            (text.replace(lines[3], &line(&again[3])), all, 20, Flaw::Unsealed(4)),
            (
                text.replace(lines[3], &line(&again[3])).replace(&whole[3].hash, &again[3].hash),
                all,
                20,
                Flaw::BadSignature,
            ),
            (without(&[4]), None, 20, Flaw::Unsealed(4)),
            (without(&[3]), None, 20, Flaw::Unsealed(3)),
            (export_by(&whole, &other), all, 19, Flaw::OtherCas(other.key_hash.clone())),
            (text.clone(), three, 18, Flaw::RolledBack(4)),
            (text.clone(), Some(&again), 18, Flaw::RolledBack(4)),
            (without(&[1]), three, 18, Flaw::RolledBack(4)),
            (without(&[1]), all, 17, Flaw::Missing(2)),
            (without(&[1]), None, 17, Flaw::Missing(2)),
            (text.clone(), None, 16, unconfirmed()),
            (without(&[0]), None, 16, unconfirmed()),
            (without(&[0]), Some(&grown), 15, Flaw::StartMissing(2)),
            (text.clone(), Some(&grown), 14, Flaw::EndMissing(4)),
            // Who cut off the end could not keep the seal; CAS knows the entries all the same.
            (without(&[3]), all, 14, Flaw::EndMissing(3)),
            (without(&[3, 4]), all, 14, Flaw::EndMissing(3)),
        ] {
            let judged = judge(&text, has, None, None).map_err(|flaw| (flaw.exit_code(), flaw));
            assert_eq!(judged, Err((exit_code, flaw)), "{text}");
        }
        assert_eq!(judge(&text, all, None, None), Ok(()));
        assert_eq!(judge(&without(&[4]), all, None, None), Ok(()), "CAS vouches for what has no seal");
        // A part of a log that was split, between the hashes it should be between.
        let (before, end) = (whole[1].hash.as_str(), whole[3].hash.as_str());
        let part = without(&[0, 1]);
        assert_eq!(judge(&part, Some(&grown), Some(before), Some(end)), Ok(()));
        assert_eq!(judge(&part, Some(&grown), Some(end), Some(end)), Err(Flaw::StartMissing(3)));
        assert_eq!(judge(&part, Some(&grown), Some(before), Some(before)), Err(Flaw::EndMissing(4)));
        assert_eq!(judge(&part, Some(&grown), Some(before), None), Err(Flaw::EndMissing(4)));
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
