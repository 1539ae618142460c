//! From the QR code to an authenticator that is known to work: the picture is shown or delivered, a first code of the new
//! entry is accepted by CAS, and the picture is destroyed.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::code::{Presentation, Source};
use super::outcome::{Failure, OTHER, PART_WAY, USAGE, at_prompt, check_interrupted, is_interactive, step};
use super::platform::{Start, Tools};
use super::qr_code::{Output, destroy, shred_command};
use super::state::{self, State};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where the QR code (SVG) is written
    #[arg(long, default_value = "qrcode.svg")]
    output: PathBuf,
    /// Show the QR code on the terminal and write no file
    #[arg(long, conflicts_with_all = ["keep", "output"])]
    terminal: bool,
    /// Keep the QR code once it was scanned
    #[arg(long)]
    keep: bool,
    /// Do not ask for a first code of the new entry
    #[arg(long)]
    no_confirm: bool,
    /// Read that first code from FILE instead of asking; '-' is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "no_confirm")]
    confirm_file: Option<PathBuf>,
}

impl Options {
    /// What can be refused before anything is spent.
    pub fn check(&self) -> Result<Option<Source>, Failure> {
        if self.terminal && !(io::stdout().is_terminal() && is_interactive()) {
            return Err(Failure::new(
                USAGE,
                "'--terminal' needs a terminal: the QR code must end up in no file or pipe",
            ));
        }
        match self.no_confirm {
            true => Ok(None),
            false => Source::new(self.confirm_file.as_deref(), "'--confirm-file FILE' or '--no-confirm'").map(Some),
        }
    }

    /// Prepares for the QR code to be issued, which can be done only once: also that the terminal can show it.
    pub fn prepare(&self, root: &Path, account: &str, state: &State) -> Result<Output, Failure> {
        if !self.terminal {
            return Output::prepare(root, account, state, Some(&self.output));
        }
        room_for(largest_size(&state.issuer, &state.label())).map_err(|why| {
            let option = state::option(account);
            Failure::new(USAGE, format!("the terminal cannot show the QR code: {why}"))
                .hint(format!("./scripts/{}.rs{option}   # writes a file instead", crate::outcome::script()))
        })?;
        Output::prepare(root, account, state, None)
    }
}

/// An account whose QR code was issued just now.
pub struct Enrolment<'a> {
    pub account: &'a str,
    pub state: &'a State,
    pub tools: &'a Tools,
    pub options: &'a Options,
    pub source: Option<&'a Source>,
    /// How long the start took.
    pub takes: Duration,
    /// The time step of the code it cost.
    pub spent: Option<u64>,
}

impl Enrolment<'_> {
    /// Takes the QR code to its user. Returns what to report.
    pub fn conclude(&self, output: Output) -> Result<String, Failure> {
        let (issuer, login) = (&self.state.issuer, self.state.label());
        let file = (!self.options.terminal).then_some(self.options.output.as_path());
        let shown = match file {
            None => self.show(output)?,
            Some(path) => {
                output.deliver(path)?;
                step(format!("the QR code of '{issuer}', '{login}' is in '{}'", path.display()));
                check_interrupted().map_err(|failure| failure.leaving(&remains(path)))?;
                String::new()
            }
        };
        let confirmed = match self.source {
            Some(source) => {
                self.confirm(source, file)?;
                "enrolled and confirmed"
            }
            None => "issued, not confirmed",
        };
        if self.source.is_none()
            && is_interactive()
            && !self.options.keep
            && let Some(path) = file
        {
            wait_for_enter("Scan it, then press Enter: the picture is destroyed", &remains(path), "")?;
        }
        let scanned = self.source.is_some() || is_interactive();
        let fate = match file {
            None => format!("it was shown on the terminal only; what the program wrote is {shown}"),
            Some(path) if scanned && !self.options.keep => destroy(path)?,
            Some(path) => format!("once it is scanned, destroy it: {}", shred_command(path)),
        };
        Ok(format!("{confirmed}: '{issuer}', '{login}'\nQR code: {fate}"))
    }

    /// Has CAS accept a code of the new entry: then the authenticator is known to work.
    fn confirm(&self, source: &Source, file: Option<&Path>) -> Result<(), Failure> {
        step("a first code of the new entry shows that it works; CAS accepts no code twice, so this one is spent");
        let service = format!("{}/otpqr-reset/confirm", self.state.namespace);
        let presentation = Presentation {
            source,
            prompt: format!("Code that the new entry {}, {} shows", self.state.issuer, self.state.label()),
            takes: self.takes,
            spent: self.spent,
            remains: file.map_or_else(|| "the entry is not confirmed".to_owned(), remains),
            tools: self.tools,
            namespace: &self.state.namespace,
        };
        let unconfirmed = |failure: Failure| {
            let option = state::option(self.account);
            let kept = file.map_or_else(String::new, |path| format!("; the QR code is still in '{}'", path.display()));
            failure
                .in_front(format!("the QR code was issued, but no code of it was confirmed{kept}"), PART_WAY)
                .hint(format!("./scripts/add_auth.rs{option} --output another.svg   # if the entry works after all"))
                .hint(format!("./scripts/roll_forward.rs{option}   # if it was not scanned"))
        };
        let presented = presentation.make(&mut |code| {
            let (config_id, cas) = (code.config_id(&service), &self.state.cas);
            self.tools.start(&Start { config_id: &config_id, cas, image_id: &self.state.image_id, directories: None })
        });
        let (finished, _) = presented.map_err(unconfirmed)?;
        match finished.success() {
            true => Ok(()),
            false => Err(unconfirmed(Failure::new(OTHER, finished.reason()))),
        }
    }

    /// Shows the QR code on the alternate screen, from which it is gone afterwards. The file is destroyed first; how far
    /// that goes is returned.
    fn show(&self, output: Output) -> Result<String, Failure> {
        let svg = output.read()?;
        let drawn = Modules::of(&svg).ok_or("it cannot be drawn".to_owned());
        let drawn = drawn.and_then(|modules| room_for(modules.size).map(|()| modules.draw()));
        let drawing = drawn.map_err(|why| Failure::new(PART_WAY, output.waiting(why)))?;
        check_interrupted().map_err(|failure| failure.leaving(&output.waiting("run the same command again")))?;
        let destroyed = output.destroy()?;
        let mut screen = io::stdout();
        let shown = write!(screen, "{ALTERNATE}{drawing}").and_then(|()| screen.flush());
        let prompt = "Scan it, then press Enter: it is not shown again";
        let asked = wait_for_enter(prompt, "if it was not scanned, roll forward", BACK);
        let hidden = write!(screen, "{BACK}").and_then(|()| screen.flush());
        asked?;
        shown.and(hidden).map_err(Failure::because(OTHER, "the terminal cannot be written to"))?;
        Ok(destroyed)
    }
}

/// Whether the terminal can show a QR code of so many modules a side, quiet zone included.
fn room_for(size: usize) -> Result<(), String> {
    let (columns, rows) = (size, size.div_ceil(2) + 2);
    let terminal = rustix::termios::tcgetwinsize(io::stdout()).map_err(|cause| cause.to_string())?;
    match usize::from(terminal.ws_col) >= columns && usize::from(terminal.ws_row) >= rows {
        true => Ok(()),
        false => Err(format!("it needs {columns} columns and {rows} rows")),
    }
}

/// How many bytes a QR code of version 1, 2, … holds with error correction M (ISO/IEC 18004, table 7).
const CAPACITY: [usize; 20] =
    [14, 26, 42, 62, 84, 106, 122, 152, 180, 213, 251, 287, 331, 362, 412, 450, 504, 560, 624, 666];

/// The most modules a side that the QR code can have, quiet zone included. It may have fewer: digits take less room.
fn largest_size(issuer: &str, login: &str) -> usize {
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

fn remains(path: &Path) -> String {
    format!("the QR code is still there; once it is scanned: {}", shred_command(path))
}

/// To the terminal's alternate screen, and back.
const ALTERNATE: &str = "\x1b[?1049h\x1b[H";
const BACK: &str = "\x1b[?1049l";

fn wait_for_enter(prompt: &str, remains: &str, hide: &'static str) -> Result<(), Failure> {
    let asked = write!(io::stderr(), "{prompt} ");
    let read = asked.and_then(|()| at_prompt(remains, hide, || io::stdin().read_line(&mut String::new())));
    read.map(drop).map_err(Failure::because(OTHER, "nothing can be read from the terminal"))
}

/// The QR code as otpqr draws it: dark runs in rows, quiet zone included.
struct Modules {
    size: usize,
    dark: Vec<bool>,
}

impl Modules {
    /// Reads `viewBox="0 0 SIZE SIZE"` and the path `M<x> <y>h<run>v1h-<run>z…`; `None` if it is anything else.
    fn of(svg: &str) -> Option<Modules> {
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
    fn draw(&self) -> String {
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
