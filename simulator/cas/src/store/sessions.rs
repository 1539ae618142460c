//! Every version of every session, and what becomes of secrets and volumes when a session changes.

use rusqlite::{Connection, OptionalExtension, params};

use super::{StoreError, draw};
use crate::session::{Kind, Session};

/// A session as it is kept.
pub struct Stored {
    /// Its place in the history of its name: 1, 2, 3, …
    pub version: i64,
    /// The session hash.
    pub hash: String,
    /// The key hash of who uploaded it, or those of who signed it, with commas in between.
    pub creator: String,
    /// The policy.
    pub session: Session,
}

/// The active session of that name.
pub fn active(tx: &Connection, name: &str) -> Result<Option<Stored>, StoreError> {
    find(
        tx,
        "SELECT version, hash, creator, content FROM session WHERE name = ?1 ORDER BY version DESC LIMIT 1",
        &[name],
    )
}

/// How long the active session of that name is as it is kept, in bytes; 0 if there is none.
pub fn length(tx: &Connection, name: &str) -> Result<usize, StoreError> {
    let query = "SELECT octet_length(content) FROM session WHERE name = ?1 ORDER BY version DESC LIMIT 1";
    Ok(tx.prepare_cached(query)?.query_row([name], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// The latest version of that name with that hash.
pub fn with_hash(tx: &Connection, name: &str, hash: &str) -> Result<Option<Stored>, StoreError> {
    find(
        tx,
        "SELECT version, hash, creator, content FROM session WHERE name = ?1 AND hash = ?2 ORDER BY version DESC LIMIT 1",
        &[name, hash],
    )
}

fn find(tx: &Connection, query: &str, parameters: &[&str]) -> Result<Option<Stored>, StoreError> {
    let row = tx
        .prepare_cached(query)?
        .query_row(rusqlite::params_from_iter(parameters), |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, String>(3)?))
        })
        .optional()?;
    let Some((version, hash, creator, content)) = row else { return Ok(None) };
    let session =
        serde_json::from_str(&content).map_err(|_| StoreError::Damaged("a session is not readable".into()))?;
    Ok(Some(Stored { version, hash, creator, session }))
}

/// The names of all sessions, in order.
pub fn names(tx: &Connection) -> Result<Vec<String>, StoreError> {
    let mut statement = tx.prepare_cached("SELECT DISTINCT name FROM session ORDER BY name")?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Makes `session` the active one of its name, draws the secrets and volume keys it needs and does not have yet, and erases
/// drawn secrets it no longer declares. Whether it erased any.
pub fn activate(tx: &Connection, stored: &Stored) -> Result<bool, StoreError> {
    let Stored { version, hash, creator, session } = stored;
    let content =
        serde_json::to_string(session).map_err(|_| StoreError::Damaged("a session is not writable".into()))?;
    tx.execute(
        "INSERT INTO session (name, version, hash, creator, content) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![session.name, version, hash, creator, content],
    )?;

    // A drawn secret is kept as long as its session says so (section 2.9); else it is gone for good.
    let mut kept = tx.prepare("SELECT name, kind, length(value) FROM secret WHERE session = ?1")?;
    let drawn: Vec<(String, String, usize)> = kept
        .query_map([&session.name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    let wanted: Vec<(&str, Kind, usize)> = session
        .secrets
        .iter()
        .filter(|secret| secret.import.is_none() && secret.value.is_none())
        .filter_map(|secret| Some((secret.name.as_str(), secret.kind?, secret.size?)))
        .filter(|(_, kind, _)| kind.is_bytes())
        .collect();
    let mut erased = false;
    for (name, label, size) in &drawn {
        if !session.secret(name).is_some_and(|secret| secret.keeps(label, *size)) {
            tx.execute("DELETE FROM secret WHERE session = ?1 AND name = ?2", [&session.name, name])?;
            erased = true;
        }
    }
    for (name, kind, size) in wanted {
        tx.execute(
            "INSERT INTO secret (session, name, kind, value) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
            params![session.name, name, kind.text(), draw(kind, size)?],
        )?;
    }

    // A volume is initialised once: a name that was dropped and comes back resumes.
    for volume in session.volumes.iter().filter(|volume| volume.import.is_none()) {
        tx.execute(
            "INSERT INTO volume (session, name, key, tag) VALUES (?1, ?2, ?3, NULL) ON CONFLICT DO NOTHING",
            params![session.name, volume.name, draw(Kind::Binary, 32)?],
        )?;
    }
    Ok(erased)
}
