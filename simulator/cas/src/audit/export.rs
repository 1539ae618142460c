//! The log as a file that can be checked elsewhere: written, read, compared with its CAS.

use std::io::{self, BufRead, Write};

use scone_protocol::{hex, unhex};
use serde::{Deserialize, Serialize};

use super::chain::{Chain, Flaw};
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

/// Writes an entry of an export.
pub fn write_entry(entry: &Entry, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, entry)?;
    out.write_all(b"\n")
}

/// Writes the end of an export whose entries these were.
pub fn write_seal(entries: &Chain, cas: &Identity, out: &mut impl Write) -> io::Result<()> {
    let (sealed, hash) = entries.end.clone().unwrap_or((0, GENESIS.to_owned()));
    let signature = cas.sign(&Seal::signed(sealed, &hash)).map_err(io::Error::other)?;
    let certificate = cas.certificate_pem.clone();
    serde_json::to_writer(&mut *out, &Seal { sealed, hash, certificate, signature: hex(&signature) })?;
    out.write_all(b"\n")
}

/// An export that was read: each entry is what its hash says.
pub struct Export {
    chain: Chain,
    /// Place and hash of its last entry.
    pub end: (i64, String),
    /// Whether CAS's signature covers the last one, and with it all that it follows from.
    sealed: bool,
}

impl Export {
    /// Reads an export line by line, and refuses what the CAS with the key hash `cas` cannot have written. `each` is shown each
    /// entry.
    pub fn read(text: impl BufRead, cas: &str, mut each: impl FnMut(&Entry)) -> Result<Export, Flaw> {
        let (mut chain, mut seal) = (Chain::default(), None);
        for (line, number) in text.lines().zip(1..) {
            let line = line.ok().filter(|_| seal.is_none()).ok_or(Flaw::NotALog(number))?;
            match serde_json::from_str::<Entry>(&line) {
                Ok(entry) => {
                    chain.follow(&entry)?;
                    each(&entry);
                }
                // After it nothing may come.
                Err(_) => seal = Some(serde_json::from_str::<Seal>(&line).map_err(|_| Flaw::NotALog(number))?),
            }
        }
        let end = chain.end.clone().ok_or(Flaw::NotALog(1))?;
        let mut sealed = false;
        if let Some(seal) = seal {
            let signature = unhex(&seal.signature).ok_or(Flaw::BadSignature)?;
            let key = tls::signer(&seal.certificate, &Seal::signed(seal.sealed, &seal.hash), &signature)
                .ok_or(Flaw::BadSignature)?;
            if key != cas {
                return Err(Flaw::OtherCas(key));
            }
            sealed = (seal.sealed, seal.hash) == end;
        }
        Ok(Export { chain, end, sealed })
    }

    /// How many entries it has.
    pub fn count(&self) -> u64 {
        self.chain.count
    }

    /// Compares it with what CAS says of its last entry (or why it says nothing). `predecessor` and `last` are the hashes that a
    /// part of a log begins after and ends with; without them it should be the whole.
    pub fn verify(
        &self,
        cas: Result<Checkpoint, String>,
        predecessor: Option<&str>,
        last: Option<&str>,
    ) -> Result<(), Flaw> {
        let (sequence, hash) = &self.end;
        let confirmed = cas.as_ref().is_ok_and(|cas| cas.hash.as_ref() == Some(hash));
        if !confirmed && !self.sealed {
            return Err(Flaw::Unsealed(*sequence));
        }
        if !confirmed && cas.is_ok() {
            return Err(Flaw::RolledBack(*sequence));
        }
        if let Some(missing) = self.chain.gap {
            return Err(Flaw::Missing(missing));
        }
        let cas = cas.map_err(Flaw::Unconfirmed)?;
        if let Some((start, _)) =
            self.chain.start.as_ref().filter(|(_, before)| before != predecessor.unwrap_or(GENESIS))
        {
            return Err(Flaw::StartMissing(*start));
        }
        if last.map_or(cas.last != *sequence, |last| last != hash) {
            return Err(Flaw::EndMissing(*sequence));
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
