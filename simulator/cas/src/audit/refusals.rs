//! Refusals are what anybody can cause, as often as they like: the log has room for a thousand of them at once, and for one more
//! each minute. How many were left out is said by an entry before the next one that is written.

use rusqlite::Connection;

/// How many there is room for at once.
const ROOM: i64 = 1000;

/// The time in which there is room for one more, in seconds.
const RECOVERY: i64 = 60;

/// Whether there is room for a refusal at this time; if not, it is counted.
pub(super) fn take_room(tx: &Connection, now: i64) -> rusqlite::Result<bool> {
    // When all the room will be free again.
    let free_at: i64 = tx.prepare_cached("SELECT free_at FROM refusals")?.query_row([], |row| row.get(0))?;
    let latest = now.saturating_add(ROOM * RECOVERY);
    // A clock that was set back must not leave less room than none.
    let free_at = free_at.clamp(now, latest);
    let taken = free_at.saturating_add(RECOVERY);
    let has_room = taken <= latest;
    let (free_at, left_out) = if has_room { (taken, 0) } else { (free_at, 1) };
    tx.prepare_cached("UPDATE refusals SET free_at = ?1, left_out = left_out + ?2")?.execute([free_at, left_out])?;
    Ok(has_room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_refusals_at_once_have_room_and_then_one_a_minute() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(crate::store::TABLES).unwrap();
        let written = |now, count| (0..count).filter(|_| take_room(&db, now).unwrap()).count();
        assert_eq!(written(1_000_000, 1500), 1000);
        let left_out: i64 = db.query_row("SELECT left_out FROM refusals", [], |row| row.get(0)).unwrap();
        assert_eq!(left_out, 500);
        assert_eq!(written(1_000_059, 10), 0);
        assert_eq!(written(1_000_060, 10), 1);
        assert_eq!(written(1_000_060 + 5 * 60, 10), 5);
        // Set back, it takes no longer than from a full log.
        assert_eq!(written(0, 10), 0);
        assert_eq!(written(60, 10), 1);
        assert_eq!(written(i64::MAX - 100_000, 1500), 1000);
    }
}
