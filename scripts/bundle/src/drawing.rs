//! A QR code on a terminal: read from otpqr's picture, drawn in half blocks.

use std::io;

/// How many bytes a QR code of version 1, 2, … holds with error correction M (ISO/IEC 18004, table 7).
const CAPACITY: [usize; 20] =
    [14, 26, 42, 62, 84, 106, 122, 152, 180, 213, 251, 287, 331, 362, 412, 450, 504, 560, 624, 666];

/// The most modules a side that the QR code can have, quiet zone included. It may have fewer: digits take less room.
pub fn largest_size(issuer: &str, login: &str) -> usize {
    let encoded = |text: &str| -> usize {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        text.bytes().map(|byte| if plain(byte) { 1 } else { 3 }).sum()
    };
    let fixed = "otpauth://totp/:?secret=&issuer=&algorithm=SHA1&digits=6&period=30".len();
    // 20 bytes in base32.
    let length = fixed + 2 * encoded(issuer) + encoded(login) + 32;
    let version = 1 + CAPACITY.iter().take_while(|&&capacity| capacity < length).count();
    17 + 4 * version + 2 * 4
}

/// Whether the terminal can show a QR code of so many modules a side, quiet zone included.
pub fn check_room(size: usize) -> Result<(), String> {
    let (columns, rows) = (size, size.div_ceil(2) + 2);
    let terminal = rustix::termios::tcgetwinsize(io::stdout()).map_err(|cause| cause.to_string())?;
    let has_room = usize::from(terminal.ws_col) >= columns && usize::from(terminal.ws_row) >= rows;
    if has_room { Ok(()) } else { Err(format!("it needs {columns} columns and {rows} rows")) }
}

/// The QR code as otpqr draws it: dark runs in rows, quiet zone included.
pub struct Modules {
    pub size: usize,
    dark: Vec<bool>,
}

impl Modules {
    /// Reads `viewBox="0 0 SIZE SIZE"` and the path `M<x> <y>h<run>v1h-<run>z…`; `None` if it is anything else.
    pub fn of(svg: &str) -> Option<Modules> {
        let size: usize = svg.split_once("viewBox=\"0 0 ")?.1.split_once(' ')?.0.parse().ok()?;
        if size > 200 {
            return None;
        }
        let path = svg.split_once(" d=\"")?.1.split_once('"')?.0;
        let mut dark = vec![false; size * size];
        for run in path.split('z').filter(|run| !run.is_empty()) {
            let (x, rest) = run.strip_prefix('M')?.split_once(' ')?;
            let (y, rest) = rest.split_once('h')?;
            let (length, _) = rest.split_once("v1h-")?;
            let (x, y, length): (usize, usize, usize) = (x.parse().ok()?, y.parse().ok()?, length.parse().ok()?);
            dark.get_mut(y * size + x..(y * size + x).checked_add(length)?)?.fill(true);
        }
        Some(Modules { size, dark })
    }

    /// Two rows a line, black on white whatever the terminal's colours are.
    pub fn draw(&self) -> String {
        let mut drawing = String::new();
        for y in (0..self.size).step_by(2) {
            drawing.push_str("\x1b[38;5;16;48;5;231m");
            for x in 0..self.size {
                let upper = self.dark[y * self.size + x];
                let lower = self.dark.get((y + 1) * self.size + x).copied().unwrap_or(false);
                drawing.push(match (upper, lower) {
                    (true, true) => '█',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (false, false) => ' ',
                });
            }
            drawing.push_str("\x1b[0m\r\n");
        }
        drawing
    }
}
