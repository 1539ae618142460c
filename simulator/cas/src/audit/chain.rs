//! What can be wrong with a log, and whether its entries follow from one another.

use super::{Entry, GENESIS};

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

/// Entries as they come, one after another: of a whole log or of a part of one.
#[derive(Default)]
pub struct Chain {
    /// How many there were.
    pub count: u64,
    /// Place of the first one, and the hash of the entry before it.
    pub start: Option<(i64, String)>,
    /// Place and hash of the last one.
    pub end: Option<(i64, String)>,
    /// The first entry that is missing between two others.
    pub gap: Option<i64>,
}

impl Chain {
    /// Takes the next entry, and refuses one that is not what its hash says, or does not follow from the one before.
    pub fn follow(&mut self, entry: &Entry) -> Result<(), Flaw> {
        if entry.hash != entry.digest() {
            return Err(Flaw::Altered(entry.sequence));
        }
        let follows = match &self.end {
            None => entry.sequence != 1 || entry.previous == GENESIS,
            Some((before, hash)) if entry.sequence == before.saturating_add(1) => entry.previous == *hash,
            Some((before, _)) => {
                self.gap = self.gap.or(Some(before.saturating_add(1)));
                true
            }
        };
        if !follows {
            return Err(Flaw::Unchained(entry.sequence));
        }
        self.start.get_or_insert_with(|| (entry.sequence, entry.previous.clone()));
        self.end = Some((entry.sequence, entry.hash.clone()));
        self.count += 1;
        Ok(())
    }

    /// The last hash, if nothing is missing: neither in between nor before entry `first`.
    pub fn from_entry(&self, first: i64) -> Result<&str, Flaw> {
        match (&self.start, self.gap) {
            (Some((start, _)), _) if *start != first => Err(Flaw::Missing(first)),
            (_, Some(gap)) => Err(Flaw::Missing(gap)),
            _ => Ok(self.end.as_ref().map_or(GENESIS, |(_, hash)| hash)),
        }
    }
}
