//! The audit log: what CAS did and refused, each entry chained to the one before by its hash, written in the transaction
//! that does what it records. Never a code or a secret.
//!
//! An export is JSON, one entry a line, and ends with a seal: a line with CAS's signature over the last entry's hash. Whoever
//! can write CAS's database can rewrite the log and seal it; an older export then shows that CAS lacks its entries.

mod chain;
mod export;
mod parts;
mod refusals;
mod table;

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OptionalExtension, Row, params};
use scone_protocol::{hex, unhex};
use serde::{Deserialize, Serialize};

use crate::session::{is_component, is_free_name, is_session_name};
pub use chain::{Chain, Flaw};
pub use export::{Checkpoint, Export, write_entry, write_seal};
pub use parts::{PART, checkpoint, for_each, forget, last, write_part};
pub use table::Table;

/// The hash before the first entry.
pub(crate) const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What happened: SCONE's events (`reference/scone.md` section 4.6), the check of a code, and the reading of a tag.
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
    /// A volume's tag was told to an opening that cannot seal, or not.
    VolumeTagRead,
    /// There were more refusals than the log has room for.
    RefusalsLeftOut,
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
            Event::VolumeTagRead => "volume FSPF tag read",
            Event::RefusalsLeftOut => "refusals left out",
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
    /// The key hash of the client that asked, or those of who signed what it brought, with commas in between; empty if no key was
    /// shown, as by a runtime, which is known by its measurement.
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

/// Appends an entry - unless it is a refusal, and there were so many that no room is left (`refusals`).
pub fn append(tx: &Connection, time: u64, record: &Record<'_>) -> rusqlite::Result<()> {
    let time = time as i64;
    if record.outcome.starts_with("refused") && !refusals::take_room(tx, time)? {
        return Ok(());
    }
    let last: Option<((i64, String), i64)> = tx
        .prepare_cached("SELECT sequence, hash, left_out FROM audit, refusals ORDER BY sequence DESC LIMIT 1")?
        .query_row([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))
        .optional()?;
    let (mut before, left_out) = last.unwrap_or(((0, GENESIS.to_owned()), 0));
    if left_out > 0 {
        let (event, outcome) = (Event::RefusalsLeftOut, format!("refused: {left_out} more"));
        let counted = Record { event, subject: "", who: "", measurement: "", outcome: &outcome };
        before = write(tx, before, time, &counted)?;
        tx.execute("UPDATE refusals SET left_out = 0", [])?;
    }
    write(tx, before, time, record).map(drop)
}

/// Writes the entry after the one with this place and hash; gives its own. What cannot be a name, a key hash or a measurement is not written down: it may hold what a peer mistook
/// for one.
fn write(
    tx: &Connection,
    (before, previous): (i64, String),
    time: i64,
    record: &Record<'_>,
) -> rusqlite::Result<(i64, String)> {
    let named = |text: &str, fits: bool, otherwise: &str| {
        if text.is_empty() || fits { text.to_owned() } else { otherwise.to_owned() }
    };
    let is_hash = |text: &str| unhex(text).is_some_and(|bytes| bytes.len() == 32);
    let mut entry = Entry {
        sequence: before + 1,
        time,
        event: record.event.text().to_owned(),
        subject: named(record.subject, is_subject(record.subject), "(not a name)"),
        who: named(record.who, record.who.split(',').all(is_hash), "(not a key hash)"),
        measurement: named(record.measurement, is_hash(record.measurement), "(not a measurement)"),
        outcome: record.outcome.to_owned(),
        previous,
        hash: String::new(),
    };
    entry.hash = entry.digest();
    let Entry { sequence, time, event, subject, who, measurement, outcome, previous, hash } = entry;
    tx.prepare_cached(&format!("INSERT INTO audit ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"))?
        .execute(params![sequence, time, event, subject, who, measurement, outcome, previous, hash])?;
    Ok((sequence, hash))
}

/// A volume as [`Record::subject`]. A name that is no component of a session's stands in quotes, so that it cannot be mistaken
/// for a volume of another session.
pub fn volume_subject(session: &str, volume: &str) -> String {
    if is_component(volume) { format!("{session}/{volume}") } else { format!("{session}/\"{volume}\"") }
}

fn is_subject(subject: &str) -> bool {
    match subject.split_once("/\"") {
        None => is_session_name(subject),
        Some((session, volume)) => is_session_name(session) && volume.strip_suffix('"').is_some_and(is_free_name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Identity;

    const READ: Record<'_> =
        Record { event: Event::SessionRead, subject: "ns/a", who: "", measurement: "", outcome: "accepted" };

    fn read(db: &Connection) -> Vec<Entry> {
        let mut statement = db.prepare(&format!("SELECT {COLUMNS} FROM audit ORDER BY sequence")).unwrap();
        statement.query_map([], Entry::from_row).unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn check_chain(entries: &[Entry]) -> Result<(), Flaw> {
        let mut chain = Chain::default();
        entries.iter().try_for_each(|entry| chain.follow(entry))?;
        chain.from_entry(1).map(drop)
    }

    fn entries(events: u64) -> Vec<Entry> {
        let mut db = Connection::open_in_memory().unwrap();
        db.execute_batch(crate::store::TABLES).unwrap();
        let tx = db.transaction().unwrap();
        for time in 0..events {
            append(&tx, time, &READ).unwrap();
        }
        tx.commit().unwrap();
        read(&db)
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
            let mut chain = Chain::default();
            for entry in entries {
                chain.follow(entry).unwrap();
                write_entry(entry, &mut text).unwrap();
            }
            write_seal(&chain, cas, &mut text).unwrap();
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
            let export = Export::read(text.as_bytes(), &cas.key_hash, |_| ())?;
            let end = export.end.0;
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
        let mut table = Table::default();
        entries.iter().for_each(|entry| table.fit(entry));
        let rows: String = entries.iter().map(|entry| table.row(entry)).collect();
        assert_eq!(
            table.header() + &rows,
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
        let [entry] = &read(&tx)[..] else { panic!("one entry") };
        assert_eq!(entry.subject, "(not a name)");
        assert_eq!(entry.who, "(not a key hash)");
        assert_eq!(entry.measurement, "(not a measurement)");
    }

    #[test]
    fn a_volumes_name_is_written_down_and_cannot_pass_for_another_sessions_volume() {
        let mut db = Connection::open_in_memory().unwrap();
        db.execute_batch(crate::store::TABLES).unwrap();
        let tx = db.transaction().unwrap();
        let long = "x".repeat(513);
        for volume in ["line\nbreak", &long, "v", "data:v1", "otpqr/v"] {
            append(&tx, 1, &Record { subject: &volume_subject("ns", volume), ..READ }).unwrap();
        }
        let subjects = read(&tx).into_iter().map(|entry| entry.subject).collect::<Vec<_>>();
        assert_eq!(subjects, ["(not a name)", "(not a name)", "ns/v", "ns/\"data:v1\"", "ns/\"otpqr/v\""]);
    }
}
