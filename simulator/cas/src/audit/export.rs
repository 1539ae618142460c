//! The log as a file that can be checked elsewhere: written, read, compared with its CAS.

use std::io::{self, Write};

use rusqlite::{Connection, OptionalExtension};
use scone_protocol::{hex, unhex};
use serde::{Deserialize, Serialize};

use super::chain::{Flaw, first_gap};
use super::{Entry, GENESIS};
use crate::tls::{self, Identity};

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
