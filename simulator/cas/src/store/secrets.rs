//! What CAS draws.

use ring::rand::{SecureRandom, SystemRandom};
use rusqlite::{Connection, OptionalExtension};

use super::StoreError;
use crate::session::Kind;

/// The value CAS drew for a secret.
pub fn drawn_secret(tx: &Connection, session: &str, name: &str) -> Result<Vec<u8>, StoreError> {
    tx.prepare_cached("SELECT value FROM secret WHERE session = ?1 AND name = ?2")?
        .query_row([session, name], |row| row.get(0))
        .optional()?
        .ok_or_else(|| StoreError::Damaged("a secret is missing".into()))
}

/// Random bytes; for ascii printable ones without the space, each as likely as any other.
pub fn draw(kind: Kind, size: usize) -> Result<Vec<u8>, StoreError> {
    let random = SystemRandom::new();
    let mut value = vec![0; size];
    random.fill(&mut value).map_err(|_| StoreError::NoRandomness)?;
    if kind == Kind::Ascii {
        // 94 printable characters; 188 is their largest multiple below 256, bytes above are drawn again.
        for byte in &mut value {
            while *byte >= 188 {
                random.fill(std::slice::from_mut(byte)).map_err(|_| StoreError::NoRandomness)?;
            }
            *byte = b'!' + *byte % 94;
        }
    }
    Ok(value)
}
