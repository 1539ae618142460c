//! A QR code on a terminal: whether that can show it, how it is read from otpqr's picture, drawn in half blocks, and taken away.

use std::{env, io};

use crate::account::Account;
use crate::failure::{Concern, Exit, Failure};
use crate::hint;

#[derive(Debug, thiserror::Error)]
enum DrawingError {
    #[error("the terminal cannot show the QR code: TERM is '{term}'")]
    Dumb { term: String },
    #[error("the terminal cannot show the QR code: that takes a UTF-8 locale, and {locale}")]
    NotUtf8 { locale: String },
    #[error("the terminal cannot show the QR code: it does not say how large it is: {cause}")]
    NoSize { cause: io::Error },
    #[error("the terminal cannot show the QR code: that takes {needed}, and it reports {found}")]
    NoRoom { needed: String, found: String },
}

impl Concern for DrawingError {
    fn exit(&self) -> Exit {
        Exit::Usage
    }
}

/// How many bytes a QR code of version 1, 2, … holds with error correction M (ISO/IEC 18004, table 7).
const CAPACITY: [usize; 40] = [
    14, 26, 42, 62, 84, 106, 122, 152, 180, 213, 251, 287, 331, 362, 412, 450, 504, 560, 624, 666, 711, 779, 857, 911,
    997, 1059, 1125, 1190, 1264, 1370, 1452, 1538, 1628, 1722, 1809, 1911, 1989, 2099, 2213, 2331,
];

/// Whether a QR code can hold the account's Key URI.
pub fn fits(issuer: &str, login: &str) -> bool {
    uri_length(issuer, login) <= CAPACITY[CAPACITY.len() - 1]
}

/// The most modules a side that the QR code can have, quiet zone included. It may have fewer: digits take less room.
pub fn largest_size(issuer: &str, login: &str) -> usize {
    let length = uri_length(issuer, login);
    let version = 1 + CAPACITY.iter().take_while(|&&capacity| capacity < length).count();
    17 + 4 * version + 2 * 4
}

/// The bytes of the Key URI that otpqr writes.
fn uri_length(issuer: &str, login: &str) -> usize {
    let encoded = |text: &str| -> usize {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        text.bytes().map(|byte| if plain(byte) { 1 } else { 3 }).sum()
    };
    let fixed = "otpauth://totp/:?secret=&issuer=&algorithm=SHA1&digits=6&period=30".len();
    // 20 bytes in base32.
    fixed + 2 * encoded(issuer) + encoded(login) + 32
}

/// Makes sure that the terminal can show a QR code of so many modules a side, quiet zone included.
pub fn check_terminal(account: &Account, size: usize) -> Result<(), Failure> {
    let to_a_file = account.script(crate::script(), "   # writes a file instead");
    let refuse = |error, mend: Option<String>| Err(Failure::from(error).hints(mend).hint(to_a_file));
    let term = env::var("TERM").unwrap_or_default();
    if term.is_empty() || term == "dumb" {
        return refuse(DrawingError::Dumb { term }, None);
    }
    if let Some(locale) = locale_without_utf8() {
        let again = hint::pasteable(&account.script(crate::script(), " --terminal"));
        let mend = format!("LC_ALL=C.UTF-8 {again}   # if this is a block: \u{2584}");
        return refuse(DrawingError::NotUtf8 { locale }, Some(mend));
    }
    let terminal = match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(terminal) => terminal,
        Err(cause) => return refuse(DrawingError::NoSize { cause: cause.into() }, None),
    };
    // One row for the question.
    let (columns, rows) = (size, size.div_ceil(2) + 1);
    let (its_columns, its_rows) = (usize::from(terminal.ws_col), usize::from(terminal.ws_row));
    if its_columns >= columns && its_rows >= rows {
        return Ok(());
    }
    // A serial line, say, knows no size.
    let is_known = its_columns > 0 && its_rows > 0;
    let mend = (!is_known).then(|| format!("stty cols {columns} rows {rows}   # if it is at least so large"));
    let (needed, found) = (format!("{columns} columns and {rows} rows"), format!("{its_columns} and {its_rows}"));
    refuse(DrawingError::NoRoom { needed, found }, mend)
}

/// What says that characters beyond ASCII do not reach the terminal as they are; `None`: they do.
fn locale_without_utf8() -> Option<String> {
    let set = |name| Some((name, env::var(name).ok().filter(|value| !value.is_empty())?));
    let Some((name, value)) = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set) else {
        return Some("neither LC_ALL nor LC_CTYPE nor LANG is set".to_owned());
    };
    let is_utf8 = ["utf-8", "utf8"].iter().any(|utf8| value.to_lowercase().contains(utf8));
    (!is_utf8).then(|| format!("{name} is '{value}'"))
}

/// Takes what is drawn away, also where there is no alternate screen, and goes back to the screen before. `ESC [ 2 J`, and
/// `ESC [ J` from the first line on, would put it into the scrollback of GNU screen and of tmux.
pub const AWAY: &str = "\x1b[0m\x1b[H\x1b[2K\x1b[2;1H\x1b[J\x1b[H\x1b[?1049l";

/// The QR code as otpqr draws it: dark runs in rows, quiet zone included.
pub struct Modules {
    pub size: usize,
    dark: Vec<bool>,
}

impl Modules {
    /// More than a QR code has on a side (ISO/IEC 18004: 177 modules and the quiet zone), and no number in it is larger.
    const MOST: usize = 200;

    /// Reads the picture of an image of today, whose rows are stroked, or of an older one, which filled rectangles. `None` if
    /// it is anything else: a QR code that is drawn wrongly cannot be scanned, and is shown only once.
    pub fn of(svg: &str) -> Option<Modules> {
        let (head, path) = svg.split_once("<path ")?;
        let (size, rest) = head.split_once("viewBox=\"0 0 ")?.1.split_once(' ')?;
        if rest.split_once('"')?.0 != size {
            return None;
        }
        let size = number(size)?;
        let path = path.strip_suffix("\"/>\n</svg>\n")?;
        let runs = match path.strip_prefix("stroke=\"#000\" d=\"") {
            Some(strokes) => stroked(strokes)?,
            None => filled(path.strip_prefix("fill=\"#000\" d=\"")?)?,
        };
        let mut dark = vec![false; size * size];
        for (x, y, length) in runs {
            if length == 0 || x + length > size || y >= size {
                return None;
            }
            dark[y * size + x..][..length].fill(true);
        }
        Some(Modules { size, dark })
    }

    /// On the alternate screen, below a question: two rows a line, black on white whatever the terminal's colours are. Nothing is
    /// ever scrolled, and the cursor stays on top: from a window that is made smaller, what is above the cursor goes to the
    /// scrollback.
    pub fn draw(&self, question: &str) -> String {
        let mut drawing = "\x1b[?1049h\x1b[H\x1b[2J\x1b[?7l".to_owned();
        for (line, y) in (0..self.size).step_by(2).enumerate() {
            drawing.push_str(&format!("\x1b[{};1H\x1b[38;5;16;48;5;231m", line + 2));
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
            drawing.push_str("\x1b[0m");
        }
        drawing + "\x1b[?7h\x1b[H" + question + " "
    }
}

/// Column, row and length of a run of dark modules.
type Run = (usize, usize, usize);

/// `M<x> <y>.5h<dark>m<light> 0h<dark>…`, once for each row: its centre line, a module wide.
fn stroked(path: &str) -> Option<Vec<Run>> {
    let mut runs = Vec::new();
    for row in path.strip_prefix('M')?.split('M') {
        let (x, rest) = row.split_once(' ')?;
        let (y, rest) = rest.split_once(".5h")?;
        let (mut x, y) = (number(x)?, number(y)?);
        let mut moves = rest.split('m');
        let mut length = number(moves.next()?)?;
        runs.push((x, y, length));
        for next in moves {
            let (light, dark) = next.split_once(" 0h")?;
            x += length + number(light).filter(|&light| light > 0)?;
            length = number(dark)?;
            runs.push((x, y, length));
        }
    }
    Some(runs)
}

/// `M<x> <y>h<dark>v1h-<dark>z…`: a rectangle for each run.
fn filled(path: &str) -> Option<Vec<Run>> {
    let rectangle = |text: &str| {
        let (x, rest) = text.strip_prefix('M')?.split_once(' ')?;
        let (y, rest) = rest.split_once('h')?;
        let (length, back) = rest.split_once("v1h-")?;
        let run = (number(x)?, number(y)?, number(length)?);
        (length == back).then_some(run)
    };
    path.strip_suffix('z')?.split('z').map(rectangle).collect()
}

/// As otpqr writes it: without a sign or leading zeros, which Rust's own parser takes.
fn number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|number: &usize| *number <= Modules::MOST && number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five modules a side, as otpqr draws its many.
    const HEAD: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"40\" height=\"40\" viewBox=\"0 0 5 5\" \
                        shape-rendering=\"crispEdges\">\n<rect width=\"5\" height=\"5\" fill=\"#fff\"/>\n";
    const STROKED: &str = "M1 0.5h1m1 0h2M0 1.5h5M0 4.5h1m3 0h1";
    const FILLED: &str = "M1 0h1v1h-1zM3 0h2v1h-2zM0 1h5v1h-5zM0 4h1v1h-1zM4 4h1v1h-1z";

    fn svg(paint: &str, path: &str) -> String {
        format!("{HEAD}<path {paint}=\"#000\" d=\"{path}\"/>\n</svg>\n")
    }

    fn drawn(svg: &str) -> Option<String> {
        let Modules { size, dark } = Modules::of(svg)?;
        let cells: String = dark.iter().map(|&dark| if dark { '#' } else { '.' }).collect();
        Some((0..size).map(|y| format!("{}\n", &cells[y * size..][..size])).collect())
    }

    #[test]
    fn a_picture_in_each_form_draws_the_same() {
        let expected = ".#.##\n#####\n.....\n.....\n#...#\n";
        assert_eq!(drawn(&svg("stroke", STROKED)).as_deref(), Some(expected));
        assert_eq!(drawn(&svg("fill", FILLED)).as_deref(), Some(expected));
        let [stroked, filled] =
            [svg("stroke", STROKED), svg("fill", FILLED)].map(|svg| Modules::of(&svg).unwrap().draw("?"));
        assert_eq!(stroked, filled);
        assert!(stroked.contains("\x1b[2;1H\x1b[38;5;16;48;5;231m▄█▄██\x1b[0m"), "{stroked:?}");
    }

    #[test]
    fn a_run_reaches_the_edge_and_no_further() {
        for (paint, path) in [("stroke", "M0 4.5h5"), ("stroke", "M0 4.5h1m3 0h1"), ("fill", "M0 4h5v1h-5z")] {
            assert!(Modules::of(&svg(paint, path)).is_some(), "{path}");
        }
        for (paint, path) in [
            ("stroke", "M0 4.5h6"),
            ("stroke", "M1 3.5h5"),
            ("stroke", "M0 4.5h1m3 0h2"),
            ("stroke", "M0 4.5h1m5 0h1"),
            ("stroke", "M0 5.5h1"),
            ("stroke", "M5 4.5h1"),
            ("fill", "M0 4h6v1h-6z"),
            ("fill", "M1 3h5v1h-5z"),
            ("fill", "M0 5h1v1h-1z"),
            ("fill", "M18446744073709551615 4h1v1h-1z"),
        ] {
            assert!(Modules::of(&svg(paint, path)).is_none(), "{path}");
        }
    }

    #[test]
    fn what_otpqr_never_drew_is_not_read() {
        let paths = "|M|h5|M0 4.5|M0 4.5h|M0 4.5h0|M0 4.5h-1|M0 4.5h+1|M0 4.5h1.5|M0 4.5H1|M0 4h1|M0 4.0h1|M0 4.25h1|\
             M0 .5h1|M0,4.5h1|M 0 4.5h1|M0 4.5 h1|m0 4.5h1|M-0 4.5h1|M0 4.5h1z|M0 4.5h1m|M0 4.5h1m1|\
             M0 4.5h1m1 0|M0 4.5h1m1 0h|M0 4.5h1m1 0h0|M0 4.5h1m-1 0h1|M0 4.5h1m1 1h1|M0 4.5h1m1h1|\
             M0 4.5h1 1|M0 4.5h1M|M0 4.5h1\n| M0 4.5h1|M0 4.5h1m1 0h1v1|M0 4.5h1m0 0h1|M0 4.5h01|M00 4.5h1|\
             M0 4.5h1m01 0h1";
        for path in paths.split('|').chain([FILLED]) {
            assert!(Modules::of(&svg("stroke", path)).is_none(), "{path}");
        }
        let paths = "|z|M0 4h1v1h-1|M0 4h1v1h-1zz|M0 4h1v1h-2z|M0 4h1v2h-1z|M0 4h1v1h1z|M0 4h0v1h-0z|M0 4h+1v1h-+1z|\
             M+0 4h1v1h-1z|M0 4.5h1v1h-1z|M0 4h1v1h-1z M0 3h1v1h-1z|M0 4h1v1h-1Z|M0 4h01v1h-01z";
        for path in paths.split('|').chain([STROKED]) {
            assert!(Modules::of(&svg("fill", path)).is_none(), "{path}");
        }
        let good = svg("stroke", STROKED);
        for (part, instead) in [
            ("0 0 5 5", "0 0 5 6"),
            ("0 0 5 5", "1 1 5 5"),
            ("0 0 5 5", "0 0 +5 +5"),
            ("0 0 5 5", "0 0 201 201"),
            ("viewBox=", "viewbox="),
            ("stroke=", "color="),
            ("#000", "#fff"),
            ("\"/>\n</svg>", "\" stroke-width=\"2\"/>\n</svg>"),
            ("</svg>", "<path d=\"M0 4.5h1\"/>\n</svg>"),
            ("</svg>\n", "</svg>"),
            ("<path ", "<g "),
        ] {
            assert!(good.contains(part), "{part}");
            assert!(Modules::of(&good.replacen(part, instead, 1)).is_none(), "{instead}");
        }
        assert!(Modules::of("").is_none());
        assert!(Modules::of(&good).is_some());
    }
}
