//! The log as people read it.

use std::fmt::Write;

use time::OffsetDateTime;

use super::Entry;

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
        // Whatever stands in an entry, it stays on one line and cannot control a terminal.
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
