//! The log as people read it.

use time::OffsetDateTime;

use super::Entry;

const HEADER: [&str; 7] = ["ENTRY", "TIME", "EVENT", "SUBJECT", "WHO", "MEASUREMENT", "OUTCOME"];

/// A table whose columns are as wide as its entries need: hashes shortened, columns aligned. It is shown the entries first, and
/// makes the rows then, so that nobody has to hold them all.
pub struct Table {
    widths: [usize; 7],
}

impl Default for Table {
    fn default() -> Table {
        Table { widths: HEADER.map(str::len) }
    }
}

impl Table {
    /// Makes room for an entry.
    pub fn fit(&mut self, entry: &Entry) {
        for (width, cell) in self.widths.iter_mut().zip(cells(entry)) {
            *width = (*width).max(cell.chars().count());
        }
    }

    /// The first line.
    pub fn header(&self) -> String {
        self.line(&HEADER.map(str::to_owned))
    }

    /// An entry's line.
    pub fn row(&self, entry: &Entry) -> String {
        self.line(&cells(entry))
    }

    fn line(&self, cells: &[String; 7]) -> String {
        let [aligned @ .., last] = cells;
        let aligned = aligned.iter().zip(self.widths).map(|(cell, width)| format!("{cell:width$}  "));
        aligned.chain([format!("{last}\n")]).collect()
    }
}

fn cells(entry: &Entry) -> [String; 7] {
    let short = |hash: &str| match hash.get(..12) {
        Some(start) if !hash.starts_with('(') => start.to_owned(),
        _ => if hash.is_empty() { "-" } else { hash }.to_owned(),
    };
    let subject = if entry.subject.is_empty() { "-" } else { &entry.subject };
    let (sequence, time) = (entry.sequence.to_string(), utc(entry.time));
    let who = entry.who.split(',').map(short).collect::<Vec<_>>().join(",");
    let measurement = short(&entry.measurement);
    let cells = [&sequence, &time, &entry.event, subject, &who, &measurement, &entry.outcome];
    // Whatever stands in an entry, it stays on one line and cannot control a terminal.
    cells.map(|cell| cell.replace(char::is_control, "\u{fffd}"))
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
