//! Where the memory of a secret is kept: one row for all secrets that give the same codes.
//!
//! HMAC hashes a key that is longer than its block and fills a shorter one up with zero bytes (RFC 2104 section 2), so `S`,
//! `S` and a zero byte, and for a long `S` its SHA-1 hash are one key. Rows of layout 2 were named after the secret as it was
//! written; they are taken over when the secret is next used, so that nothing accepted then is forgotten.

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use rusqlite::{Connection, OptionalExtension, params};
use scone_protocol::hex;

use super::Memory;

/// SHA-1's block, in bytes.
const BLOCK: usize = 64;

/// The name of a secret's memory: a hash, so that no further copy of the secret is kept.
pub(super) fn name(secret: &[u8]) -> String {
    hex(digest(&SHA256, &[b"scone-sim code memory 2\0", &block(secret)[..]].concat()).as_ref())
}

/// What HMAC-SHA-1 makes of the secret.
fn block(secret: &[u8]) -> Vec<u8> {
    let mut block = if secret.len() > BLOCK {
        digest(&SHA1_FOR_LEGACY_USE_ONLY, secret).as_ref().to_vec()
    } else {
        secret.to_vec()
    };
    block.resize(BLOCK, 0);
    block
}

/// The name that layout 2 gave to the memory of a secret.
fn name_of_layout_2(secret: &[u8]) -> String {
    hex(digest(&SHA256, &[b"scone-sim code memory 1\0", secret].concat()).as_ref())
}

/// What is remembered of the secret, as far as anything is.
pub(super) fn load(tx: &Connection, secret: &[u8]) -> rusqlite::Result<Memory> {
    let name = name(secret);
    let known = row(tx, &name)?;
    let mut older = Vec::new();
    if known.is_none() {
        // Each spelling that the block tells. Afterwards there is a row, and none of these is looked for again.
        let block = block(secret);
        let end = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        older.extend((end..=BLOCK).map(|length| name_of_layout_2(&block[..length])));
    }
    if secret.len() > BLOCK {
        // The block does not tell this one.
        older.push(name_of_layout_2(secret));
    }
    take_over(tx, &name, known, &older)
}

/// Moves what rows of layout 2 remember to the row with this name.
fn take_over(tx: &Connection, name: &str, known: Option<Memory>, older: &[String]) -> rusqlite::Result<Memory> {
    let mut memory = known.unwrap_or_default();
    let mut found = false;
    for older in older {
        let Some(other) = row(tx, older)? else { continue };
        memory = Memory {
            highest_step: memory.highest_step.max(other.highest_step),
            failures: memory.failures.max(other.failures),
            failed_at: memory.failed_at.max(other.failed_at),
        };
        tx.execute("DELETE FROM code WHERE secret = ?1", [older])?;
        found = true;
    }
    if found {
        tx.execute(
            "INSERT OR REPLACE INTO code (secret, highest_step, failures, failed_at) VALUES (?1, ?2, ?3, ?4)",
            params![name, memory.highest_step, memory.failures, memory.failed_at],
        )?;
    }
    Ok(memory)
}

fn row(tx: &Connection, name: &str) -> rusqlite::Result<Option<Memory>> {
    tx.prepare_cached("SELECT highest_step, failures, failed_at FROM code WHERE secret = ?1")?
        .query_row([name], |row| {
            Ok(Memory { highest_step: row.get(0)?, failures: row.get(1)?, failed_at: row.get(2)? })
        })
        .optional()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::{STEP, Verdict, check};
    use crate::store::{Store, StoreError};

    const STEP_NOW: u64 = 100;

    fn code_of(secret: &[u8], step: u64) -> String {
        totp_rs::TOTP::new_unchecked(totp_rs::Algorithm::SHA1, 6, 0, STEP, secret.to_vec()).generate(step * STEP)
    }

    /// Short with zero bytes after it, as long as the block, and a long one with its hash.
    fn families() -> [Vec<Vec<u8>>; 2] {
        let short = b"12345678901234567890".to_vec();
        let long = vec![7; BLOCK + 1];
        let zeros = |count| [&short[..], &vec![0; count]].concat();
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &long).as_ref().to_vec();
        [
            vec![short.clone(), zeros(1), zeros(4), zeros(BLOCK - 20)],
            vec![long, hash.clone(), [&hash[..], &[0]].concat()],
        ]
    }

    fn used(store: &Store, secret: &[u8], step: u64) -> Verdict {
        let code = code_of(secret, step);
        store.write(|tx| Ok::<_, StoreError>(check(tx, secret, Some(&code), step * STEP)?)).unwrap()
    }

    #[test]
    fn secrets_that_are_one_key_of_hmac_have_one_memory() {
        for family in families() {
            for first in &family {
                let directory = tempfile::tempdir().unwrap();
                let store = Store::open(&directory.path().join("cas.db")).unwrap();
                assert_eq!(used(&store, first, STEP_NOW), Verdict::Accepted { step: STEP_NOW });
                for second in &family {
                    assert_eq!(code_of(first, STEP_NOW), code_of(second, STEP_NOW));
                    assert_eq!(used(&store, second, STEP_NOW), Verdict::AlreadyUsed);
                }
            }
        }
        // Another key's is another's.
        assert_ne!(name(b"12345678901234567890"), name(b"\x0012345678901234567890"));
    }

    #[test]
    fn what_layout_2_remembered_of_any_spelling_is_taken_over() {
        for family in families() {
            for older in &family {
                for newer in &family {
                    // The hash does not tell which long secret an older version knew: that one's memory is found by itself.
                    if older.len() > BLOCK && newer != older {
                        continue;
                    }
                    let directory = tempfile::tempdir().unwrap();
                    let path = directory.path().join("cas.db");
                    let store = Store::open(&path).unwrap();
                    let written = |tx: &Connection| {
                        tx.execute(
                            "INSERT INTO code VALUES (?1, ?2, 6, 1)",
                            params![name_of_layout_2(older), STEP_NOW],
                        )?;
                        tx.pragma_update(None, "user_version", 2)?;
                        Ok::<_, StoreError>(())
                    };
                    store.write(written).unwrap();
                    drop(store);
                    let store = Store::open(&path).unwrap();
                    assert_eq!(used(&store, newer, STEP_NOW), Verdict::AlreadyUsed);
                    assert_eq!(used(&store, newer, STEP_NOW + 1), Verdict::Accepted { step: STEP_NOW + 1 });
                    assert_eq!(used(&store, older, STEP_NOW + 1), Verdict::AlreadyUsed);
                }
            }
        }
    }
}
