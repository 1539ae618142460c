//! How a run ends: one exit code, one way to print an error, and what Ctrl-C does.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use rustix::termios::{self, OptionalActions, QueueSelector, Termios};

/// 0 is "done, or already so"; 2, wrong usage, is shared with clap.
pub const OTHER: u8 = 1;
pub const USAGE: u8 = 2;
/// Something is missing; nothing was changed.
pub const PRECONDITION: u8 = 3;
/// Stopped part-way; the state says where.
pub const PART_WAY: u8 = 4;
/// CAS, the volume or the once-marker said no.
pub const REFUSED: u8 = 5;
const INTERRUPTED: u8 = 130;

/// Why a run stops: a lower-case sentence with its object quoted and its cause after a colon, and commands that help.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    hints: Vec<String>,
}

impl Failure {
    pub fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), hints: Vec::new() }
    }

    /// For `map_err`: the sentence so far, then the cause.
    pub fn because<E: std::fmt::Display>(code: u8, message: impl Into<String>) -> impl FnOnce(E) -> Failure {
        let message = message.into();
        move |cause| Failure::new(code, format!("{message}: {cause}"))
    }

    /// Puts what it means before what happened. An interruption stays one, and what it means is all there is to say.
    pub fn in_front(self, meaning: String, code: u8) -> Failure {
        match self.code {
            INTERRUPTED => self.leaving(&meaning),
            _ => Failure { code, message: format!("{meaning}: {}", self.message), hints: self.hints },
        }
    }

    /// What is missing or wrong is found too late for nothing to have changed. The commands that go on, or back.
    pub fn part_way(self, on: String, back: Option<String>) -> Failure {
        match self.code {
            PRECONDITION | OTHER => back.into_iter().fold(Failure { code: PART_WAY, ..self }.hint(on), Failure::hint),
            _ => self,
        }
    }

    /// What somebody must know who interrupted the run; nothing, if it failed.
    pub fn leaving(self, remains: &str) -> Failure {
        match self.code {
            INTERRUPTED => Failure { message: format!("interrupted; {remains}"), ..self },
            _ => self,
        }
    }

    /// Somebody pressed Ctrl-C, or told the run to terminate.
    pub fn interrupted() -> Failure {
        Failure::new(INTERRUPTED, "interrupted; run the same command again to go on")
    }

    /// The one place where errors are printed. Returns the exit code.
    pub fn print(&self) -> u8 {
        // Not eprintln!, which panics when standard error is closed: the exit code must survive that.
        let mut text = format!("{}: error: {}\n", crate::outcome::script(), self.message);
        text.extend(self.hints.iter().map(|hint| format!("hint: {}\n", here(hint))));
        let _ = io::stderr().write_all(text.as_bytes());
        self.code
    }

    /// For a report: what is wrong, and the first command that helps.
    pub fn into_finding(self) -> (String, Option<String>) {
        (self.message, self.hints.into_iter().next())
    }

    /// Whether CAS said no, rather than nothing or something unexpected.
    pub fn is_refusal(&self) -> bool {
        self.code == REFUSED
    }

    /// Adds a command that helps.
    pub fn hint(mut self, command: impl Into<String>) -> Failure {
        self.hints.push(command.into());
        self
    }
}

/// The name of the script that runs: it stands before everything that is said.
static SCRIPT: OnceLock<&'static str> = OnceLock::new();

pub fn script() -> &'static str {
    SCRIPT.get().copied().unwrap_or_default()
}

/// The bundle, once it was found, and whether it was named by `--root`.
static BUNDLE: OnceLock<(PathBuf, bool)> = OnceLock::new();

/// To be told by who finds the bundle.
pub fn found_bundle(root: &Path, named: bool) {
    BUNDLE.get_or_init(|| (root.to_owned(), named));
}

/// A command of the bundle as it can be pasted here: `./scripts/x.rs` lies where this script does, wherever that is, and
/// is about the same bundle.
pub fn here(command: &str) -> String {
    let (root, named) = BUNDLE.get().map_or((None, false), |(root, named)| (Some(root), *named));
    if ["make ", "docker build "].iter().any(|tool| command.starts_with(tool)) {
        return match root {
            Some(root) if env::current_dir().ok().as_ref() != Some(root) => {
                format!("(cd {} && {command})", quoted(root.display()))
            }
            _ => command.to_owned(),
        };
    }
    let Some((name, rest)) = command.strip_prefix("./scripts/").and_then(|command| command.split_once(".rs")) else {
        return command.to_owned();
    };
    // rust-script says where the script is; what is compiled is found, and named, as it was called.
    let own = PathBuf::from(env::args_os().next().unwrap_or_default());
    let script = match env::var_os("RUST_SCRIPT_BASE_PATH") {
        Some(directory) => Path::new(&directory).join(name).with_extension("rs"),
        None => own.with_file_name(name).with_extension(own.extension().unwrap_or_default()),
    };
    let script = match env::current_dir().ok().and_then(|here| script.strip_prefix(here).ok().map(Path::to_owned)) {
        Some(below) => Path::new(".").join(below),
        None => script,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    let script = match script.to_str() {
        Some(script) if script.chars().all(plain) => script.to_owned(),
        _ => quoted(script.display()),
    };
    match root {
        Some(root) if named => format!("{script} --root {}{rest}", quoted(root.display())),
        _ => format!("{script}{rest}"),
    }
}

/// For a shell.
pub fn quoted(text: impl std::fmt::Display) -> String {
    format!("'{}'", text.to_string().replace('\'', r"'\''"))
}

static STOP: AtomicBool = AtomicBool::new(false);

/// While something is waited for that cannot be broken off - a person, a file that is a pipe: how to leave.
static PROMPT: Mutex<Option<Prompt>> = Mutex::new(None);

struct Prompt {
    /// The terminal as it was before; echo may be off meanwhile.
    terminal: Option<Termios>,
    /// What takes away what was shown.
    hide: &'static str,
    /// What somebody must know who presses Ctrl-C.
    remains: String,
}

/// What Ctrl-C does. Children get it from the terminal, too; they end, we see it and clean up. A read from the terminal
/// cannot be broken off like that; but at a prompt nothing is held, so the run just ends.
fn interrupt() {
    STOP.store(true, Ordering::SeqCst);
    let prompt = PROMPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(Prompt { terminal, hide, remains }) = &*prompt {
        // If the terminal cannot be put back, there is nobody left to tell but by the message below.
        if let Some(before) = terminal {
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
        show_cursor();
        let _ = writeln!(io::stderr(), "{hide}");
        process::exit(Failure::new(INTERRUPTED, format!("interrupted; {remains}")).print().into());
    }
}

/// Waits for an answer. `remains` is what somebody must know who presses Ctrl-C, `hide` takes away what was shown.
pub fn at_prompt<T>(remains: &str, hide: &'static str, ask: impl FnOnce() -> T) -> T {
    let set = |prompt| *PROMPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = prompt;
    set(Some(Prompt { terminal: termios::tcgetattr(io::stdin()).ok(), hide, remains: remains.to_owned() }));
    // What was typed before there was a question is no answer to it.
    let _ = termios::tcflush(io::stdin(), QueueSelector::IFlush);
    let answer = ask();
    set(None);
    show_cursor();
    answer
}

/// A question hides the cursor, and one that is broken off does not show it again.
fn show_cursor() {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\x1b[?25h");
    }
}

/// Whether there is a person to ask.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Fails once Ctrl-C was pressed (or the run was told to terminate). Asked between steps, so that a step is finished,
/// and what it leaves behind is recorded or removed, before the script ends.
pub fn check_interrupted() -> Result<(), Failure> {
    match is_interrupted() {
        true => Err(Failure::interrupted()),
        false => Ok(()),
    }
}

pub fn is_interrupted() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// Says what is being done: on standard error, since it is no result.
pub fn step(what: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{}: {what}", crate::outcome::script());
}

/// Runs the script and turns its outcome into an exit code. What was done comes back as text and is printed last: when
/// something fails, standard output stays empty.
pub fn conclude(script: &'static str, run: impl FnOnce() -> Result<String, Failure>) -> ExitCode {
    SCRIPT.get_or_init(|| script);
    let handled = ctrlc::set_handler(interrupt).map_err(Failure::because(OTHER, "cannot handle Ctrl-C"));
    let reported = handled.and_then(|()| run()).and_then(|report| {
        let written = writeln!(io::stdout(), "{report}").and_then(|()| io::stdout().flush());
        written.map_err(Failure::because(OTHER, "it is done, but cannot be reported on standard output"))
    });
    match reported {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.print()),
    }
}
