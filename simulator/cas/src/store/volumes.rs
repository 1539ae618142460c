//! Keys and tags of volumes.

use rusqlite::{Connection, OptionalExtension, params};

use super::StoreError;

/// A volume as it is kept.
pub struct StoredVolume {
    /// 32 bytes.
    pub key: Vec<u8>,
    /// The tag of its current state; `None`: never initialised.
    pub tag: Option<String>,
}

/// A volume's key and tag; `None`: there never was one.
pub fn volume(tx: &Connection, session: &str, name: &str) -> Result<Option<StoredVolume>, StoreError> {
    Ok(tx
        .prepare_cached("SELECT key, tag FROM volume WHERE session = ?1 AND name = ?2")?
        .query_row([session, name], |row| Ok(StoredVolume { key: row.get(0)?, tag: row.get(1)? }))
        .optional()?)
}

/// Moves a volume's tag, if it is `old` now.
pub fn move_tag(tx: &Connection, session: &str, name: &str, old: Option<&str>, new: &str) -> Result<bool, StoreError> {
    let moved = tx
        .prepare_cached("UPDATE volume SET tag = ?4 WHERE session = ?1 AND name = ?2 AND tag IS ?3")?
        .execute(params![session, name, old, new])?;
    Ok(moved == 1)
}
