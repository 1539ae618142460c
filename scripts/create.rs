#!/usr/bin/env rust-script
//! Creates an account: measures the program, writes the policies, uploads them to CAS.
//!
//! Why: from then on CAS, and not the operating system, decides who gets at the account's secret. CAS draws the secret;
//! this script and this host never see it.
//! Limits: the host this runs on is trusted, and whoever holds the `scone` command line's identity owns the account.
//! Run again it compares, uploads only what differs, and says so.
//!
//! ```cargo
//! [package]
//! version = "0.1.0"
//! edition = "2024"
//!
//! [dependencies]
//! clap = { version = "=4.6.7", features = ["derive"] }
//! ctrlc = { version = "=3.5.2", features = ["termination"] }
//! duct = "=1.1.2"
//! handlebars = "=6.4.4"
//! rustix = { version = "=1.1.6", features = ["fs", "process", "termios"] }
//! serde = { version = "=1.0.229", features = ["derive"] }
//! serde_json = "=1.0.154"
//! serde_yaml = { package = "yaml_serde", version = "=0.10.7" }
//! tempfile = "=3.27.0"
//! which = "=8.0.6"
//! ```

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use outcome::{Failure, OTHER, PRECONDITION, USAGE, conclude, here, step};
use platform::{Cas, Platform, Tools};
use policy::{Session, Versions, upload};
use state::{State, StateFile};

const SCRIPT: &str = "create";

/// Create an account: measure the program, write the policies, upload them to CAS
#[derive(Debug, Parser)]
#[command(
    name = "create",
    bin_name = "./scripts/create.rs",
    version,
    after_help = "\
Exit codes:
  0 created, or already so   2 usage   3 something is missing, nothing changed   5 refused by CAS   130 interrupted   1 anything else

Examples:
  ./scripts/create.rs --cas cas.example.com              an account on SCONE
  ./scripts/create.rs --platform sim                     a rehearsal on the simulator: protects nobody from root
  ./scripts/create.rs --platform sim-native              the same without a Docker Engine
  ./scripts/create.rs --platform sim --account signing --issuer 'Example GmbH' --login alice
                                                         one account per role or task"
)]
struct Args {
    /// Where the program runs and which CAS is used. Recorded at the first run
    #[arg(long, value_enum)]
    platform: Option<Platform>,
    /// The SCONE CAS, HOST or HOST:PORT. The simulator's is found by itself
    #[arg(long, value_parser = cas_address)]
    cas: Option<String>,
    /// The account's name: its state is state/ACCOUNT.yml
    #[arg(long, default_value = "default", value_parser = state::account_name)]
    account: String,
    /// Who asks for the code, as the authenticator shows it [default: SCONE OTP]
    #[arg(long, value_parser = policy::label_part)]
    issuer: Option<String>,
    /// Whose code it is, as the authenticator shows it [default: the login name]
    #[arg(long, value_parser = policy::label_part)]
    login: Option<String>,
    /// The image: a tag; on sim-native a directory [default: the platform's own]
    #[arg(long, value_parser = image_name)]
    image: Option<String>,
    /// The bundle's directory [default: OTPQR_ROOT, the script's parent, the current directory]
    #[arg(long)]
    root: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    conclude(|| create(&args))
}

fn create(args: &Args) -> Result<String, Failure> {
    let root = root::find(args.root.as_deref(), Path::new("templates"), None)?;
    let (mut file, known) = state::read(&root, &args.account)?;
    if let Some(state) = &known {
        check_unchanged(args, state)?;
    }
    let platform = known.as_ref().map(|state| state.platform).or(args.platform).unwrap_or(Platform::Scone);
    let tools = platform.tools(&root, &args.account)?;

    let who = match known {
        None => Some(identity(args)?),
        Some(_) => None,
    };
    let known_image = || known.as_ref().map(|state| state.image.clone());
    let image = args.image.clone().or_else(known_image).unwrap_or_else(|| platform.default_image().to_owned());
    let image_id = tools.image_id(&image)?;
    step(format!("measuring image '{image}'"));
    let mrenclave = tools.measure(&image_id)?;
    step("attesting CAS");
    let cas = attest(args, &tools, known.as_ref())?;

    let mut state = match (known, who) {
        (Some(state), _) => state,
        (None, Some((issuer, login))) => first_state(&root, &args.account, platform, cas, issuer, login)?,
        (None, None) => return Err(Failure::new(OTHER, "whose account it is to be is not known")),
    };
    if !state.mrenclave.is_empty() && state.mrenclave != mrenclave {
        step(format!("the program changed: measurement '{}' becomes '{mrenclave}'", state.mrenclave));
    }
    (state.image, state.image_id, state.mrenclave) = (image, image_id, mrenclave);
    // Before the first upload: a run that is cut off must not leave sessions behind whose names nobody knows.
    file.write(&state)?;
    let done = upload_all(&tools, &root, &mut file, &mut state)?;
    Ok(report(args, &state, done))
}

/// An account keeps what it was created with: another issuer, say, would be another entry in the authenticator.
fn check_unchanged(args: &Args, state: &State) -> Result<(), Failure> {
    let differs = |option: &str, given: Option<String>, known: &str| match given {
        Some(given) if given != known => {
            let message = format!("account '{}' has {option} '{known}', not '{given}'", args.account);
            Err(Failure::new(PRECONDITION, format!("{message}; '--account' names another account")))
        }
        _ => Ok(()),
    };
    differs("platform", args.platform.map(|platform| platform.to_string()), &state.platform.to_string())?;
    differs("CAS", args.cas.clone(), &state.cas.address)?;
    differs("issuer", args.issuer.clone(), &state.issuer)?;
    differs("login", args.login.clone(), &state.login)?;
    match state.pending {
        Some(_) => {
            let message = format!("a roll-forward of account '{}' was begun and not finished", args.account);
            let command = state.finishing(&args.account);
            Err(command.into_iter().fold(Failure::new(PRECONDITION, message), Failure::hint))
        }
        None => Ok(()),
    }
}

/// Makes the `scone` command line trust the CAS, before anything is uploaded to it, and pins its key.
fn attest(args: &Args, tools: &Tools, known: Option<&State>) -> Result<Cas, Failure> {
    let known = known.map(|state| &state.cas);
    let simulated = tools.simulated_cas(true)?;
    let address = match (&simulated, &args.cas, known) {
        (Some(_), Some(_), None) => {
            return Err(Failure::new(USAGE, "'--cas' is for SCONE: the simulator's CAS is found by itself"));
        }
        (Some(cas), _, _) => cas.address.clone(),
        (None, Some(address), _) => address.clone(),
        (None, None, Some(cas)) => cas.address.clone(),
        (None, None, None) => {
            return Err(Failure::new(USAGE, "on platform 'scone' the CAS must be named: '--cas ADDRESS'"));
        }
    };
    let cas = tools.attest(&address, simulated)?;
    match known {
        Some(known) if *known != cas => {
            let message = format!("the CAS at '{address}' is not the one account '{}' was created on", args.account);
            let hint = format!(
                "./scripts/roll_forward.rs{} --cas-wiped   # if it was set up anew",
                state::option(&args.account)
            );
            Err(Failure::new(PRECONDITION, message).hint(hint))
        }
        _ => Ok(cas),
    }
}

/// Issuer and login of a new account.
fn identity(args: &Args) -> Result<(String, String), Failure> {
    let issuer = args.issuer.clone().unwrap_or_else(|| "SCONE OTP".to_owned());
    let login = args.login.clone().or_else(|| std::env::var("LOGNAME").or_else(|_| std::env::var("USER")).ok());
    let login = login.ok_or_else(|| Failure::new(USAGE, "whose code it is to be is not known: '--login NAME'"))?;
    let login =
        policy::label_part(&login).map_err(Failure::because(USAGE, "the login name cannot be used: '--login'"))?;
    Ok((issuer, login))
}

fn first_state(
    root: &Path,
    account: &str,
    platform: Platform,
    cas: Cas,
    issuer: String,
    login: String,
) -> Result<State, Failure> {
    let mut random = [0; 10];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random));
    read.map_err(Failure::because(OTHER, "no random name for the namespace"))?;
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let namespace = format!("otpqr-{random}");
    // Volumes of an account whose state was lost are not this one's: its volumes must begin empty.
    let volumes = root.join("state/volumes").join(account);
    if volumes.exists() {
        let aside = volumes.with_file_name(format!("{account}.before-{namespace}"));
        step(format!("volumes of an earlier account '{account}' are moved aside, to '{}'", aside.display()));
        let moved = std::fs::rename(&volumes, &aside);
        moved.map_err(Failure::because(PRECONDITION, format!("'{}' cannot be moved", volumes.display())))?;
    }
    Ok(State::new(platform, cas, issuer, login, namespace))
}

/// Uploads what CAS does not hold yet; each hash is recorded as soon as CAS has answered. Says what was done.
fn upload_all(tools: &Tools, root: &Path, file: &mut StateFile, state: &mut State) -> Result<&'static str, Failure> {
    let is_new = state.reset_hash.is_none();
    let versions = Versions::only(state.volume_version, state.secret_version);
    let mut any = false;
    for session in [Session::Namespace, Session::Otpqr, Session::Reset] {
        step(format!("policy '{}'", session.name(state)));
        let (hash, changed) = upload(tools, root, session, state, &versions)?;
        any |= changed;
        if session.hash(state).replace(hash.clone()) != Some(hash) {
            file.write(state)?;
        }
    }
    Ok(match (any, is_new) {
        (true, true) => "created",
        (true, false) => "updated",
        (false, _) => "already created",
    })
}

fn report(args: &Args, state: &State, done: &str) -> String {
    let next = here(&format!("./scripts/gen_qr.rs{}", state::option(&args.account)));
    format!(
        "{done}: account '{}' of '{}' at '{}'\n  platform   {}\n  CAS        {}\n  namespace  {}\n  mrenclave  {}\nnext: {next}",
        args.account, state.login, state.issuer, state.platform, state.cas.address, state.namespace, state.mrenclave,
    )
}

fn cas_address(text: &str) -> Result<String, String> {
    // `scone` reads an argument that begins with '@' from a file.
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    match text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(valid) {
        true => Ok(text.to_owned()),
        false => Err("HOST or HOST:PORT".to_owned()),
    }
}

fn image_name(text: &str) -> Result<String, String> {
    match text.is_empty() || text.starts_with(['-', '@']) || text.chars().any(char::is_control) {
        true => Err("not an image".to_owned()),
        false => Ok(text.to_owned()),
    }
}

// Below: the blocks. Each is identical in every script that has it; a test compares them, `make blocks` copies a change.

// --- block outcome
#[allow(dead_code)] // identical in every script; not every script needs all of it
mod outcome {
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
                PRECONDITION | OTHER => {
                    back.into_iter().fold(Failure { code: PART_WAY, ..self }.hint(on), Failure::hint)
                }
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
            let mut text = format!("{}: error: {}\n", super::SCRIPT, self.message);
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
        let Some((name, rest)) = command.strip_prefix("./scripts/").and_then(|command| command.split_once(".rs"))
        else {
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
        let _ = writeln!(io::stderr(), "{}: {what}", super::SCRIPT);
    }

    /// Runs the script and turns its outcome into an exit code. What was done comes back as text and is printed last: when
    /// something fails, standard output stays empty.
    pub fn conclude(run: impl FnOnce() -> Result<String, Failure>) -> ExitCode {
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
}
// --- end outcome

// --- block root
#[allow(dead_code)] // identical in every script; not every script needs all of it
mod root {
    //! Where the bundle is. Nothing is ever created in a place that does not already hold what the script needs.

    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};
    use std::{env, fs};

    use super::outcome::{Failure, PRECONDITION, found_bundle};

    /// The first of `--root`, `OTPQR_ROOT`, the script's parent and the current directory that holds `needed`. A place the
    /// user named must hold it: no other is tried then. `absent`: the command that helps if there is none.
    pub fn find(named: Option<&Path>, needed: &Path, absent: Option<&str>) -> Result<PathBuf, Failure> {
        let variable = || env::var_os("OTPQR_ROOT").filter(|value| !value.is_empty()).map(PathBuf::from);
        let chosen = named.map(Path::to_owned).or_else(variable);
        let mut candidates: Vec<(PathBuf, bool)> = chosen.into_iter().map(|place| (place, false)).collect();
        if candidates.is_empty() {
            // rust-script names the directory the script lies in; a compiled binary has no such neighbours.
            let scripts = env::var_os("RUST_SCRIPT_BASE_PATH").filter(|value| !value.is_empty());
            candidates.extend(scripts.map(|scripts| (Path::new(&scripts).join(".."), false)));
            candidates.extend(env::current_dir().ok().map(|here| (here, true)));
        }
        for (place, is_here) in &candidates {
            let Ok(place) = place.canonicalize() else { continue };
            let unseen = format!("'{}' cannot be looked for in '{}'", needed.display(), place.display());
            if !place.join(needed).try_exists().map_err(Failure::because(PRECONDITION, unseen))? {
                continue;
            }
            // A root's templates become policies and its programs are run: nobody else may have laid them out for us where we
            // happen to stand.
            let owner = fs::metadata(&place).map_or(u32::MAX, |found| found.uid());
            let open = fs::metadata(&place).map_or(true, |found| found.mode() & 0o002 != 0);
            if *is_here && (open || (owner != 0 && owner != rustix::process::geteuid().as_raw())) {
                let message = format!("the current directory '{}' is not yours alone", place.display());
                return Err(Failure::new(PRECONDITION, message)
                    .hint(format!("./scripts/{}.rs --root .   # if you trust it", super::SCRIPT)));
            }
            found_bundle(&place, named.is_some());
            return Ok(place);
        }
        // What helps is to be done there all the same.
        if let Some(place) = named {
            found_bundle(place, true);
        }
        let places: Vec<_> = candidates.iter().map(|(place, _)| format!("'{}'", place.display())).collect();
        let (needed, places) = (needed.display(), places.join(" or "));
        let message = format!("there is no '{needed}' in {places}; '--root' or OTPQR_ROOT says where the bundle is");
        Err(absent.into_iter().fold(Failure::new(PRECONDITION, message), Failure::hint))
    }
}
// --- end root

// --- block child
#[allow(dead_code)] // identical in every script; not every script needs all of it
mod child {
    //! Child processes: found with `which`, run with `duct`, never through a shell. duct's own errors would print the whole
    //! argument vector and drop captured standard error, so every run is `unchecked` and judged here.

    use std::ffi::OsString;
    use std::io;
    use std::os::unix::process::CommandExt;
    use std::path::{Path, PathBuf};
    use std::process::Output;
    use std::time::Duration;

    use duct::Expression;
    use duct::unix::HandleExt;
    use rustix::process::Signal;

    use super::outcome::{Failure, PRECONDITION, check_interrupted, is_interrupted};

    /// A program of the host.
    #[derive(Debug)]
    pub struct Tool {
        pub name: &'static str,
        pub path: PathBuf,
    }

    /// What a program printed and how it ended. A code in it is masked.
    #[derive(Debug)]
    pub struct Finished {
        /// `None`: ended by a signal.
        pub code: Option<i32>,
        pub stdout: String,
        pub stderr: String,
    }

    impl Tool {
        /// Looks in `first`, then on `PATH`.
        pub fn find(name: &'static str, first: Option<&Path>) -> Option<Tool> {
            let beside = first.and_then(|dir| which::which_in(dir.join(name), None::<&str>, dir).ok());
            let path = beside.or_else(|| which::which(name).ok())?;
            Some(Tool { name, path })
        }

        /// Runs it to its end - which an interruption brings about.
        pub fn run(&self, args: &[OsString], environment: &[(&str, &str)]) -> Result<Finished, Failure> {
            let output = self.expression(args, environment).start().and_then(|handle| {
                // Ctrl-C reaches the child from the terminal; what was sent to this process alone does not.
                while handle.wait_timeout(Duration::from_millis(100))?.is_none() {
                    if is_interrupted() {
                        handle.send_signal(Signal::TERM.as_raw())?;
                        break;
                    }
                }
                handle.into_output()
            });
            check_interrupted()?;
            self.finished(output)
        }

        /// Runs it to its end even so: the terminal's Ctrl-C does not reach it.
        pub fn run_through(&self, args: &[OsString]) -> Result<Finished, Failure> {
            let apart = self.expression(args, &[]).before_spawn(|command| {
                command.process_group(0);
                Ok(())
            });
            self.finished(apart.run())
        }

        /// `environment` is added to the script's own, from which `SCONE_CONFIG_ID` is taken: the `scone` command line is
        /// itself a SCONE program, and nobody but the one service started here may see a code.
        fn expression(&self, args: &[OsString], environment: &[(&str, &str)]) -> Expression {
            let mut command = duct::cmd(&self.path, args);
            for (name, value) in environment {
                command = command.env(name, value);
            }
            // duct: what is called first is applied last, so this takes away the caller's and not `environment`'s.
            command = command.env_remove("SCONE_CONFIG_ID");
            command.stdin_null().stdout_capture().stderr_capture().unchecked()
        }

        fn finished(&self, output: io::Result<Output>) -> Result<Finished, Failure> {
            let output = output.map_err(|cause| {
                let path = self.path.display();
                Failure::new(PRECONDITION, format!("'{}' ({path}) could not be started: {cause}", self.name))
            })?;
            Ok(Finished {
                code: output.status.code(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: mask(&String::from_utf8_lossy(&output.stderr)),
            })
        }
    }

    impl Finished {
        pub fn success(&self) -> bool {
            self.code == Some(0)
        }

        /// The one line that says why: the innermost `Caused by:`, else the line in which SCONE's runtime or docker begins to
        /// complain (both go on after it), else the last line of standard error.
        pub fn reason(&self) -> String {
            let lines = || {
                let lines = self.stderr.lines().map(str::trim);
                lines.filter(|line| !line.is_empty() && !line.starts_with("hint: "))
            };
            let last = |prefix: &str| lines().filter_map(|line| line.strip_prefix(prefix)).next_back();
            let marked = ["Caused by: ", "[SCONE|FATAL] ", "docker: ", "scone-sim: error: "].into_iter().find_map(last);
            let cause = marked.or_else(|| lines().next_back());
            match (cause, self.code) {
                (Some(cause), _) => cause.to_owned(),
                (None, Some(code)) => format!("it ended with status {code} and said nothing"),
                (None, None) => "it was ended by a signal".to_owned(),
            }
        }
    }

    /// SCONE's runtime prints `… using service ID session/service@code`.
    fn mask(stderr: &str) -> String {
        let masked = stderr.split_inclusive('\n').map(|line| match (line.contains("service ID"), line.find('@')) {
            (true, Some(at)) => format!("{}@******\n", &line[..at]),
            _ => line.to_owned(),
        });
        masked.collect()
    }
}
// --- end child

// --- block platform
#[allow(dead_code)] // identical in every script; not every script needs all of it
mod platform {
    //! The three platforms, and all that differs between them.

    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Serialize};

    use super::child::{Finished, Tool};
    use super::outcome::{Failure, OTHER, PRECONDITION, quoted, step};
    use super::state::{self, State};

    #[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum Platform {
        /// SCONE: SGX hardware, the real `scone` command line, SCONE CAS
        Scone,
        /// The simulator, programs in containers. Software only: protects nobody from root
        Sim,
        /// The simulator, programs on this host, without a Docker Engine. Software only
        SimNative,
    }

    /// One row a platform.
    struct Facts {
        name: &'static str,
        /// The image `create` uses unless told: a tag, or natively a directory below the root.
        image: &'static str,
        simulator: bool,
        /// Starts the program: `docker`, or natively the runtime itself.
        engine: &'static str,
        engine_missing: &'static str,
        /// Makes the image.
        image_missing: &'static str,
        /// What `docker run` needs on this platform alone.
        docker: &'static [&'static str],
        /// The volume's path in the container at which the host's side is mounted: SCONE's file shield works on the very path
        /// the program sees; the simulator keeps the sealed side apart.
        sealed: &'static str,
    }

    const SCONE: Facts = Facts {
        name: "scone",
        image: "otpqr:scone",
        simulator: false,
        engine: "docker",
        engine_missing: "apt-get install docker.io",
        image_missing: "docker build --target scone --file Dockerfile.otpqr --tag otpqr:scone .",
        // SCONE_MODE=hw: without SGX the program must not start at all. The LAS address is the caller's, if set.
        docker: &["--device=/dev/sgx_enclave", "-e=SCONE_MODE=hw", "-e=SCONE_LAS_ADDR"],
        sealed: "/root/single_run",
    };
    const SIM: Facts = Facts {
        name: "sim",
        image: "otpqr:sim",
        simulator: true,
        engine: "docker",
        engine_missing: "./scripts/create.rs --platform sim-native --account native   # without docker",
        image_missing: "make image",
        docker: &["--network=host", "--read-only", "-e=SCONE_SIM_CAS_KEY"],
        sealed: "/.sealed/root/single_run",
    };
    const SIM_NATIVE: Facts = Facts {
        name: "sim-native",
        image: "simulator/bin/rootfs",
        simulator: true,
        engine: "scone-run",
        engine_missing: "make sim",
        image_missing: "make sim",
        docker: &[],
        sealed: "/.sealed/root/single_run",
    };

    const PROGRAM: &str = "/bin/otpqr";
    const VOLUME: &str = "/root/single_run";
    const OUTPUT: &str = "/out";

    /// The CAS an account lives on. On SCONE both addresses are the host's name.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Cas {
        /// Where the `scone` command line finds it.
        pub address: String,
        /// Where programs find it (`SCONE_CAS_ADDR`).
        pub enclave_address: String,
        /// The hash of its key, pinned when it was attested.
        pub key: String,
    }

    /// A start of a service of one of our policies.
    pub struct Start<'a> {
        /// `session/service`, followed by `@code` where one is needed.
        pub config_id: &'a str,
        pub cas: &'a Cas,
        pub image_id: &'a str,
        /// The host's side of the volume, and where the program leaves its output (mounted at `/out`); `None` for a service
        /// that has neither.
        pub directories: Option<(&'a Path, &'a Path)>,
    }

    /// The programs of the host that this platform needs.
    pub struct Tools {
        facts: &'static Facts,
        root: PathBuf,
        account: String,
        pub scone: Tool,
        engine: Tool,
        simulator: Option<Tool>,
    }

    impl std::fmt::Display for Platform {
        fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str(self.facts().name)
        }
    }

    impl Platform {
        fn facts(self) -> &'static Facts {
            match self {
                Platform::Scone => &SCONE,
                Platform::Sim => &SIM,
                Platform::SimNative => &SIM_NATIVE,
            }
        }

        pub fn default_image(self) -> &'static str {
            self.facts().image
        }

        /// Finds the tools, and makes sure that the `scone` found is this platform's: a policy meant for SCONE must not end
        /// up in the simulator, nor the other way round.
        pub fn tools(self, root: &Path, account: &str) -> Result<Tools, Failure> {
            let facts = self.facts();
            let bundled = root.join("simulator/bin");
            let first = facts.simulator.then_some(bundled.as_path());
            let find = |name, hint: &str| {
                let message = format!("'{name}', which platform '{}' needs, was not found", facts.name);
                Tool::find(name, first).ok_or_else(|| Failure::new(PRECONDITION, message).hint(hint))
            };
            let rehearse =
                format!("./scripts/create.rs --platform sim{}   # software only: a rehearsal", state::option(account));
            let hint = if facts.simulator { "make sim" } else { &rehearse };
            let scone = find("scone", hint)?;
            let version = scone.run(&["--version".into()], &[])?;
            let version = version.stdout.trim();
            if version.starts_with("scone-sim") != facts.simulator {
                let message = format!("the 'scone' found says it is '{version}', but the platform is '{}'", facts.name);
                return Err(Failure::new(PRECONDITION, message));
            }
            let simulator = facts.simulator.then(|| find("scone-sim", hint)).transpose()?;
            if facts.simulator {
                step(format!("platform '{}' is software only: a rehearsal that protects nobody from root", facts.name));
            }
            let engine = find(facts.engine, facts.engine_missing)?;
            Ok(Tools { facts, root: root.to_owned(), account: account.to_owned(), scone, engine, simulator })
        }
    }

    impl Tools {
        /// What a command needs to be about the account.
        pub fn option(&self) -> String {
            state::option(&self.account)
        }

        /// The commands that give the account up, whose state and CAS do not go together any more, and begin it anew.
        pub fn begin_anew(&self, state: &State) -> [String; 2] {
            let file = self.root.join(state::file_of(&self.account));
            let (kept, aside) = (quoted(file.display()), quoted(file.with_extension("behind").display()));
            let cas = if self.facts.simulator { String::new() } else { format!(" --cas {}", state.cas.address) };
            let (option, platform) = (self.option(), state.platform);
            let (issuer, login) = (quoted(&state.issuer), quoted(&state.login));
            [
                format!("mv {kept} {aside}   # gives the account up"),
                format!(
                    "./scripts/create.rs{option} --platform {platform}{cas} --issuer {issuer} --login {login}   # then: a new secret"
                ),
            ]
        }

        /// The simulator's CAS as it runs; `up` starts it if need be. `None` on SCONE, whose CAS is not ours to start.
        pub fn simulated_cas(&self, up: bool) -> Result<Option<Cas>, Failure> {
            let Some(simulator) = &self.simulator else { return Ok(None) };
            let finished = simulator.run(&[if up { "up" } else { "status" }.into()], &[])?;
            if !finished.success() {
                let program = quoted(simulator.path.display());
                let reason = finished.reason();
                let relayed = finished.stderr.lines().filter_map(|line| line.strip_prefix("hint: scone-sim"));
                return Err(match up {
                    true => {
                        let failure =
                            Failure::new(PRECONDITION, format!("the simulated CAS cannot be started: {reason}"));
                        relayed.fold(failure, |failure, hint| failure.hint(format!("{program}{hint}")))
                    }
                    false => Failure::new(PRECONDITION, format!("the simulated CAS is not running: {reason}"))
                        .hint(format!("{program} up")),
                });
            }
            let field = |name: &str| {
                let value = finished.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                value
                    .map(str::to_owned)
                    .ok_or_else(|| Failure::new(OTHER, format!("'scone-sim' did not say its '{name}'")))
            };
            Ok(Some(Cas { address: field("client")?, enclave_address: field("enclave")?, key: field("key")? }))
        }

        /// The simulated CAS's audit log, the newest entry first; `None` on SCONE, whose log is not ours to read.
        fn audit_log(&self) -> Result<Option<Vec<serde_json::Value>>, Failure> {
            let Some(simulator) = &self.simulator else { return Ok(None) };
            let log = simulator.run(&["log", "--json"].map(OsString::from), &[])?;
            Ok(Some(log.stdout.lines().rev().filter_map(|line| serde_json::from_str(line).ok()).collect()))
        }

        /// When and by which service a code of this namespace was last spent, in seconds since 1970, where CAS tells.
        pub fn last_code_spent(&self, namespace: &str) -> Result<Option<(u64, String)>, Failure> {
            let spent = |entry: &serde_json::Value| {
                let service = entry["subject"].as_str()?;
                let ours = service.strip_prefix(namespace)?.starts_with('/');
                let accepted = entry["event"] == "code checked" && entry["outcome"].as_str()?.starts_with("accepted");
                (ours && accepted).then_some((entry["time"].as_u64()?, service.to_owned()))
            };
            Ok(self.audit_log()?.iter().flatten().find_map(spent))
        }

        /// CAS's time when it last did something, in seconds since 1970, where CAS tells.
        pub fn last_cas_time(&self) -> Result<Option<u64>, Failure> {
            Ok(self.audit_log()?.iter().flatten().find_map(|entry| entry["time"].as_u64()))
        }

        /// Makes the `scone` command line trust the CAS at `address`: SCONE's by its attestation; the simulated one by its key,
        /// which its own tool has shown on this host.
        pub fn attest(&self, address: &str, simulated: Option<Cas>) -> Result<Cas, Failure> {
            let mut args = vec!["cas".into(), "attest".into(), address.into()];
            if let Some(cas) = &simulated {
                args.extend(["-c".into(), OsString::from(&cas.key)]);
            }
            let attested = self.scone.run(&args, &[])?;
            if !attested.success() {
                let message = format!("CAS at '{address}' cannot be attested: {}", attested.reason());
                return Err(Failure::new(PRECONDITION, message));
            }
            let key = self.cas_key(address)?;
            let address = address.to_owned();
            Ok(simulated.unwrap_or(Cas { address: address.clone(), enclave_address: address, key }))
        }

        /// The hash of the key of the CAS at `address`, as the `scone` command line pinned it when it attested it.
        pub fn cas_key(&self, address: &str) -> Result<String, Failure> {
            let args = ["cas", "show-identification", "-c", address].map(OsString::from);
            let shown = self.scone.run(&args, &[])?;
            let key = shown.stdout.trim().to_owned();
            if !shown.success() || key.is_empty() {
                let message = format!("'scone' does not know the CAS at '{address}': {}", shown.reason());
                return Err(Failure::new(PRECONDITION, message)
                    .hint(format!("./scripts/create.rs{}   # attests it", self.option())));
            }
            Ok(key)
        }

        /// Makes sure that the account's CAS is there, and still the one that was pinned.
        pub fn check_cas(&self, cas: &Cas) -> Result<(), Failure> {
            let running = self.simulated_cas(false)?;
            let same = match &running {
                Some(running) => running == cas,
                None => true,
            };
            if !same || self.cas_key(&cas.address)? != cas.key {
                let message = format!("the CAS at '{}' is not the one this account was created on", cas.address);
                let hint = format!("./scripts/roll_forward.rs{} --cas-wiped   # if it was set up anew", self.option());
                return Err(Failure::new(PRECONDITION, message).hint(hint));
            }
            Ok(())
        }

        /// What the engine calls the image: an ID that no later build can take over. Natively the directory.
        pub fn image_id(&self, image: &str) -> Result<String, Failure> {
            if self.engine.name != "docker" {
                let directory = self.root.join(image);
                let id = directory.canonicalize().ok().and_then(|path| path.into_os_string().into_string().ok());
                let message = format!("the image directory '{}' is not there", directory.display());
                return id.ok_or_else(|| Failure::new(PRECONDITION, message).hint(self.facts.image_missing));
            }
            let args = ["image", "inspect", "--format", "{{.Id}}", image].map(OsString::from);
            let finished = self.engine.run(&args, &[])?;
            if !finished.success() {
                let reason = finished.reason();
                return Err(match reason.to_lowercase().contains("no such image") {
                    true => Failure::new(PRECONDITION, format!("docker has no image '{image}': {reason}"))
                        .hint(self.facts.image_missing),
                    false => Failure::new(PRECONDITION, format!("docker does not answer: {reason}"))
                        .hint("docker version   # says whether the engine runs, and whether you may use it"),
                });
            }
            Ok(finished.stdout.trim().to_owned())
        }

        /// The measurement (mrenclave) of our program in the image: 64 hex digits or an error, for a program that was not
        /// sconified ignores `SCONE_HASH`, simply runs, and what it prints must not pass for a measurement.
        pub fn measure(&self, image_id: &str) -> Result<String, Failure> {
            let environment = [("SCONE_HASH", "1")];
            let finished = match self.engine.name {
                "docker" => {
                    let args =
                        ["run", "--rm", "--log-driver=none", "--network=none", "-e=SCONE_HASH", image_id, PROGRAM];
                    self.engine.run(&args.map(OsString::from), &environment)?
                }
                _ => self.engine.run(&["--rootfs", image_id, PROGRAM].map(OsString::from), &environment)?,
            };
            // Not trimmed: a carriage return would say that more than the measurement was printed, on a terminal.
            let measurement = finished.stdout.strip_suffix('\n').unwrap_or(&finished.stdout);
            if !finished.success() {
                let message = format!("the image '{image_id}' cannot be measured: {}", finished.reason());
                return Err(Failure::new(PRECONDITION, message));
            }
            if !is_sha256(measurement) {
                let message =
                    format!("the image '{image_id}' did not print a measurement: its '{PROGRAM}' is no SCONE program");
                return Err(Failure::new(PRECONDITION, message));
            }
            Ok(measurement.to_owned())
        }

        /// Makes sure that the image is still the one whose measurement is in the policies.
        pub fn check_image(&self, image: &str, id: &str, mrenclave: &str) -> Result<(), Failure> {
            let found = self.image_id(image)?;
            // An ID stands for its content; a directory does not.
            let same = found == id && (self.engine.name == "docker" || self.measure(id)? == mrenclave);
            let message = format!("image '{image}' is not the one in the policies: it was built anew");
            match same {
                true => Ok(()),
                false => Err(Failure::new(PRECONDITION, message)
                    .hint(format!("./scripts/create.rs{}   # updates the policies", self.option()))),
            }
        }

        /// Starts the program and waits for its end. The code, if any, travels in the environment, and docker keeps no log of
        /// the container: SCONE's runtime prints the code there.
        pub fn start(&self, start: &Start) -> Result<Finished, Failure> {
            let environment = [
                ("SCONE_CONFIG_ID", start.config_id),
                ("SCONE_CAS_ADDR", &start.cas.enclave_address),
                ("SCONE_SIM_CAS_KEY", &start.cas.key),
            ];
            let mut args: Vec<OsString> = Vec::new();
            if self.engine.name == "docker" {
                let user = rustix::process::geteuid().as_raw();
                let group = rustix::process::getegid().as_raw();
                args.extend(["run", "--rm", "--log-driver=none", "--cap-drop=ALL"].map(OsString::from));
                args.extend(
                    ["--security-opt=no-new-privileges", "-e=SCONE_CONFIG_ID", "-e=SCONE_CAS_ADDR"].map(OsString::from),
                );
                args.push(format!("--user={user}:{group}").into());
                args.extend(self.facts.docker.iter().map(OsString::from));
                if let Some((volume, output)) = start.directories {
                    if self.facts.sealed != VOLUME {
                        args.push(format!("--tmpfs={VOLUME}:mode=0700,uid={user},gid={group}").into());
                    }
                    args.extend([mount(volume, self.facts.sealed), mount(output, OUTPUT)]);
                }
                args.push(start.image_id.into());
            } else {
                args.extend(["--rootfs".into(), start.image_id.into()]);
                if let Some((volume, output)) = start.directories {
                    for (host, inside) in [(volume, self.facts.sealed), (output, OUTPUT)] {
                        args.push("--bind".into());
                        args.push([host.as_os_str(), ":".as_ref(), inside.as_ref()].into_iter().collect());
                    }
                }
            }
            args.push(PROGRAM.into());
            self.engine.run(&args, &environment)
        }
    }

    /// `--mount` reads its value as CSV, so a path with a comma or a quote in it has to be quoted. (`-v` would re-create a
    /// directory that somebody deleted, as root.)
    fn mount(host: &Path, inside: &str) -> OsString {
        let source = [b"src=", host.as_os_str().as_bytes()].concat();
        let quoted: Vec<u8> =
            source.iter().flat_map(|&byte| if byte == b'"' { vec![b'"', b'"'] } else { vec![byte] }).collect();
        let argument = [b"--mount=type=bind,\"", quoted.as_slice(), b"\",dst=", inside.as_bytes()].concat();
        OsString::from_vec(argument)
    }

    pub fn is_sha256(text: &str) -> bool {
        text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    }
}
// --- end platform

// --- block state
#[allow(dead_code)] // identical in every script; not every script needs all of it
mod state {
    //! `state/<account>.yml`: names, hashes and versions; never a secret, never a code. `state/README.md` describes it.

    use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
    use std::io::{self, Read, Write};
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
    use std::path::{Path, PathBuf};

    use rustix::fs::OFlags;
    use serde::{Deserialize, Serialize};

    use super::outcome::{Failure, OTHER, PRECONDITION};
    use super::platform::{Cas, Platform, is_sha256};
    use super::root;

    const FORMAT: u32 = 1;

    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct State {
        format: u32,
        pub platform: Platform,
        pub cas: Cas,
        /// As the user names it, and as the engine identifies it.
        pub image: String,
        pub image_id: String,
        pub mrenclave: String,
        pub issuer: String,
        pub login: String,
        pub language: String,
        pub namespace: String,
        /// The hashes of the sessions as CAS last confirmed them; absent: not yet uploaded.
        pub namespace_hash: Option<String>,
        pub otpqr_hash: Option<String>,
        pub reset_hash: Option<String>,
        pub volume_version: u32,
        pub secret_version: u32,
        /// A roll-forward that was begun; recorded before CAS is changed.
        pub pending: Option<Pending>,
    }

    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Pending {
        pub volume_version: u32,
        pub secret_version: u32,
        /// How many of the uploads CAS has confirmed.
        pub uploads_done: usize,
        /// It is to be undone: decided before the old codes died.
        pub undo: bool,
    }

    impl State {
        /// What `create` starts from.
        pub fn new(platform: Platform, cas: Cas, issuer: String, login: String, namespace: String) -> State {
            State {
                format: FORMAT,
                platform,
                cas,
                image: String::new(),
                image_id: String::new(),
                mrenclave: String::new(),
                issuer,
                login,
                language: "0.3.10".to_owned(),
                namespace,
                namespace_hash: None,
                otpqr_hash: None,
                reset_hash: None,
                volume_version: 1,
                secret_version: 1,
                pending: None,
            }
        }

        /// The command that finishes a roll-forward that was begun.
        pub fn finishing(&self, account: &str) -> Option<String> {
            let pending = self.pending.as_ref()?;
            let how = match pending.undo {
                true => " --undo",
                false if pending.secret_version == self.secret_version => " --keep-secret",
                false => "",
            };
            Some(format!("./scripts/roll_forward.rs{}{how}", option(account)))
        }

        /// The login an authenticator shows: from the second secret on with its number, so that two entries can be told apart.
        pub fn label(&self) -> String {
            label(&self.login, self.secret_version)
        }
    }

    impl State {
        /// What no script ever wrote. These values become arguments and versions to count on.
        fn implausible(&self) -> Option<&'static str> {
            let counts = |version: u32| (1..=1_000_000).contains(&version);
            let plain = |text: &str| !text.starts_with(['-', '@']) && !text.chars().any(char::is_control);
            let name = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
            let pending = self.pending.as_ref().is_none_or(|pending| {
                pending.uploads_done <= 3
                    && matches!(pending.volume_version.checked_sub(self.volume_version), Some(1 | 2))
                    && (pending.secret_version == self.secret_version
                        || Some(pending.secret_version) == self.secret_version.checked_add(1))
            });
            [
                (counts(self.volume_version) && counts(self.secret_version), "its versions are impossible"),
                (is_sha256(&self.mrenclave), "its mrenclave is none"),
                (plain(&self.namespace) && self.namespace.chars().all(name), "its namespace is no session name"),
                (
                    [&self.image, &self.image_id, &self.cas.address].into_iter().all(|text| plain(text)),
                    "its image or CAS is none",
                ),
                (pending, "its roll-forward is impossible"),
            ]
            .into_iter()
            .find_map(|(right, what)| (!right).then_some(what))
        }
    }

    pub fn label(login: &str, secret_version: u32) -> String {
        match secret_version {
            1 => login.to_owned(),
            version => format!("{login} #{version}"),
        }
    }

    /// An account's state file, as it was when it was read.
    #[derive(Debug)]
    pub struct StateFile {
        path: PathBuf,
        content: Option<Vec<u8>>,
    }

    /// Checks an `--account` before it becomes a file name.
    pub fn account_name(name: &str) -> Result<String, String> {
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        match (1..=64).contains(&name.len()) && name.chars().all(valid) && !name.starts_with('-') {
            true => Ok(name.to_owned()),
            false => Err("1 to 64 letters, digits, '_' or, not first, '-'".to_owned()),
        }
    }

    /// What a command needs to be about this account: nothing, for the default one.
    pub fn option(account: &str) -> String {
        if account == "default" { String::new() } else { format!(" --account {account}") }
    }

    /// Where an account's state lies, seen from the root.
    pub fn file_of(account: &str) -> PathBuf {
        Path::new("state").join(format!("{account}.yml"))
    }

    /// The host's side of the account's volume, and whether it was made here because it was not there: whether it may be empty
    /// is for CAS to say.
    pub fn volume_directory(root: &Path, account: &str, version: u32) -> Result<(PathBuf, bool), Failure> {
        let path = root.join("state/volumes").join(account).join(format!("single_run_{version}"));
        let is_there = path.exists();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(Failure::because(
            PRECONDITION,
            format!("cannot make the volume's directory '{}'", path.display()),
        ))?;
        Ok((path, !is_there))
    }

    /// Where the program leaves the QR code of the account's current secret, until it is delivered. It goes by the volume, too:
    /// what a roll-forward that keeps the secret leaves there is nobody's until it is complete.
    pub fn issuing_directory(root: &Path, state: &State) -> PathBuf {
        let (secret, volume) = (state.secret_version, state.volume_version);
        root.join("state/issuing").join(format!("{}-{secret}-{volume}", state.namespace.replace('/', "+")))
    }

    /// The bundle's root and the state of an account that must exist.
    pub fn existing(named_root: Option<&Path>, account: &str) -> Result<(PathBuf, StateFile, State), Failure> {
        let create = format!("./scripts/create.rs{}", option(account));
        let root = root::find(named_root, &file_of(account), Some(&create))?;
        let (file, state) = read(&root, account)?;
        let message = format!("the state of account '{account}' vanished");
        let state = state.ok_or_else(|| Failure::new(PRECONDITION, message).hint(&create))?;
        Ok((root, file, state))
    }

    /// Reads the account's state; `None` if there is none. A damaged file is an error, never a fresh start.
    pub fn read(root: &Path, account: &str) -> Result<(StateFile, Option<State>), Failure> {
        let path = root.join(file_of(account));
        let refuse = |cause: &str| Failure::new(PRECONDITION, format!("state file '{}' {cause}", path.display()));
        let unreadable = |e: io::Error| refuse(&format!("cannot be read: {e}"));
        // What lies there must be ours: no link to somewhere else, no pipe to wait for.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut file = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((StateFile { path, content: None }, None)),
            Err(e) => return Err(unreadable(e)),
        };
        let found = file.metadata().map_err(unreadable)?;
        if found.uid() != rustix::process::geteuid().as_raw() {
            return Err(refuse(&format!("belongs to another user (uid {})", found.uid())));
        }
        if !found.is_file() || found.mode() & 0o022 != 0 {
            return Err(refuse("is no file that only you can write"));
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(unreadable)?;
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        match serde_yaml::from_slice::<Version>(&content) {
            Ok(Version { format: FORMAT }) => {}
            Ok(Version { format }) => return Err(refuse(&format!("has format {format}; this script knows {FORMAT}"))),
            Err(_) => return Err(refuse("is damaged or not ours")),
        }
        let state: State = serde_yaml::from_slice(&content).map_err(|e| refuse(&format!("is damaged: {e}")))?;
        if let Some(what) = state.implausible() {
            return Err(refuse(&format!("is damaged: {what}")));
        }
        Ok((StateFile { path, content: Some(content) }, Some(state)))
    }

    impl StateFile {
        /// Replaces the file as a whole: temporary file, fsync, re-check that nobody else changed it, rename, fsync of the
        /// directory. The lock is held only here, never at a prompt.
        pub fn write(&mut self, state: &State) -> Result<(), Failure> {
            let failed = |path: &Path| {
                let message = format!("state file '{}' cannot be written", path.display());
                move |e: io::Error| Failure::new(OTHER, format!("{message}: {e}"))
            };
            let directory = self.path.parent().unwrap_or(Path::new(".")).to_owned();
            DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed(&self.path))?;
            // A checkout brings the directory along, open to all.
            let mode = fs::metadata(&directory).map_err(failed(&self.path))?.mode();
            if mode & 0o077 != 0 {
                fs::set_permissions(&directory, Permissions::from_mode(mode & 0o700)).map_err(failed(&self.path))?;
            }
            let lock = OpenOptions::new().append(true).create(true).mode(0o600).open(self.path.with_extension("lock"));
            let lock = lock.map_err(failed(&self.path))?;
            lock.lock().map_err(failed(&self.path))?;

            let found = match fs::read(&self.path) {
                Ok(content) => Some(content),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(failed(&self.path)(e)),
            };
            if found != self.content {
                let message = format!(
                    "state file '{}' was changed by another run; run the same command again",
                    self.path.display()
                );
                return Err(Failure::new(OTHER, message));
            }

            let text = serde_yaml::to_string(state)
                .map_err(Failure::because(OTHER, "the state cannot be expressed in YAML"))?;
            let text = format!("# Written by the scripts; described in state/README.md. Holds no secret.\n{text}");
            // `tempfile` makes it 0600.
            let mut file = tempfile::NamedTempFile::new_in(&directory).map_err(failed(&self.path))?;
            file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed(&self.path))?;
            file.persist(&self.path).map_err(|e| failed(&self.path)(e.error))?;
            File::open(&directory).and_then(|directory| directory.sync_all()).map_err(failed(&self.path))?;
            self.content = Some(text.into_bytes());
            Ok(())
        }
    }
}
// --- end state

// --- block policy
#[allow(dead_code)] // identical in every script; not every script needs all of it
mod policy {
    //! The policies: rendered from `templates/`, uploaded with the `scone` command line.

    use std::ffi::OsString;
    use std::fs;
    use std::io::Write;
    use std::path::Path;

    use serde_json::{Value, json};
    use tempfile::NamedTempFile;

    use super::child::Finished;
    use super::outcome::{Failure, OTHER, PART_WAY, PRECONDITION, REFUSED};
    use super::platform::{Tools, is_sha256};
    use super::state::{State, label};

    /// The three sessions of an account, in the order in which they are first uploaded.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Session {
        Namespace,
        Otpqr,
        Reset,
    }

    impl Session {
        fn template(self) -> &'static str {
            match self {
                Session::Namespace => "namespace.yml",
                Session::Otpqr => "otpqr.yml",
                Session::Reset => "otpqr-reset.yml",
            }
        }

        pub fn name(self, state: &State) -> String {
            match self {
                Session::Namespace => state.namespace.clone(),
                Session::Otpqr => format!("{}/otpqr", state.namespace),
                Session::Reset => format!("{}/otpqr-reset", state.namespace),
            }
        }

        fn known_hash(self, state: &State) -> &Option<String> {
            match self {
                Session::Namespace => &state.namespace_hash,
                Session::Otpqr => &state.otpqr_hash,
                Session::Reset => &state.reset_hash,
            }
        }

        pub fn hash(self, state: &mut State) -> &mut Option<String> {
            match self {
                Session::Namespace => &mut state.namespace_hash,
                Session::Otpqr => &mut state.otpqr_hash,
                Session::Reset => &mut state.reset_hash,
            }
        }
    }

    /// What the services of a session use, and what the session declares: the two differ while a roll-forward is under way.
    pub struct Versions {
        pub volume: u32,
        pub secret: u32,
        pub declared_volumes: Vec<u32>,
        pub declared_secrets: Vec<u32>,
    }

    impl Versions {
        pub fn only(volume: u32, secret: u32) -> Versions {
            Versions { volume, secret, declared_volumes: vec![volume], declared_secrets: vec![secret] }
        }
    }

    /// Checks an issuer or a login. A colon separates the two in a Key URI; a `$` would be taken for a variable by `scone`.
    pub fn label_part(text: &str) -> Result<String, String> {
        match text.trim() == text
            && !text.is_empty()
            && !text.contains([':', '$'])
            && !text.chars().any(char::is_control)
        {
            true => Ok(text.to_owned()),
            false => {
                Err("must not be empty, hold ':' or '$' or a control character, nor begin or end with a space"
                    .to_owned())
            }
        }
    }

    /// Renders a session's policy. Strict: a value the template names and we do not give is an error.
    pub fn render(root: &Path, session: Session, state: &State, versions: &Versions) -> Result<String, Failure> {
        let path = root.join("templates").join(session.template());
        let failed = format!("template '{}' cannot be rendered", path.display());
        let template = fs::read_to_string(&path).map_err(Failure::because(PRECONDITION, failed.as_str()))?;
        let mut handlebars = handlebars::Handlebars::new();
        handlebars.set_strict_mode(true);
        // Every value stands between double quotes; JSON's escapes are valid there in YAML too.
        handlebars.register_escape_fn(|value| {
            let quoted = Value::from(value).to_string();
            quoted[1..quoted.len() - 1].to_owned()
        });
        let values = json!({
            "namespace": state.namespace,
            "language": state.language,
            "predecessor": session.known_hash(state).as_deref().unwrap_or("~"),
            "mrenclave": state.mrenclave,
            "issuer": state.issuer,
            "login": label(&state.login, versions.secret),
            "volume_version": versions.volume,
            "secret_version": versions.secret,
            "volume_versions": versions.declared_volumes,
            "secret_versions": versions.declared_secrets,
        });
        handlebars.render_template(&template, &values).map_err(Failure::because(PRECONDITION, failed))
    }

    /// A policy rendered for one session: what CAS is to hold.
    struct Policy<'a> {
        tools: &'a Tools,
        cas: &'a str,
        session: String,
        /// 0600, and removed when this goes.
        file: NamedTempFile,
    }

    impl<'a> Policy<'a> {
        fn of(
            tools: &'a Tools,
            root: &Path,
            session: Session,
            state: &'a State,
            versions: &Versions,
        ) -> Result<Policy<'a>, Failure> {
            let text = render(root, session, state, versions)?;
            let failed = "the policy cannot be written to a temporary file";
            let mut file = tempfile::Builder::new()
                .prefix("otpqr-policy-")
                .suffix(".yml")
                .tempfile()
                .map_err(Failure::because(OTHER, failed))?;
            file.write_all(text.as_bytes()).map_err(Failure::because(OTHER, failed))?;
            Ok(Policy { tools, cas: &state.cas.address, session: session.name(state), file })
        }

        /// `scone session SUBCOMMAND` on the policy: the hash it prints, or what it says.
        fn scone(&self, subcommand: &str) -> Result<Result<String, Finished>, Failure> {
            let file = self.file.path().into();
            let finished = self.run(subcommand, file)?;
            let hash = finished.stdout.trim();
            match (finished.success(), is_sha256(hash)) {
                (true, true) => Ok(Ok(hash.to_owned())),
                (true, false) => {
                    let message = format!("'scone session {subcommand}' did not print the hash of '{}'", self.session);
                    Err(Failure::new(OTHER, message))
                }
                (false, _) => Ok(Err(finished)),
            }
        }

        fn run(&self, subcommand: &str, what: OsString) -> Result<Finished, Failure> {
            let args = ["session".into(), subcommand.into(), format!("--cas={}", self.cas).into(), what];
            self.tools.scone.run(&args, &[])
        }

        /// Whether CAS has such a session at all; `None`: it does not say.
        fn exists(&self) -> Result<Option<bool>, Failure> {
            Ok(match self.run("read", OsString::from(&self.session))?.code {
                Some(0) => Some(true),
                Some(2) => Some(false),
                _ => None,
            })
        }
    }

    /// What CAS holds, compared with what the state says it should hold.
    #[derive(Debug, PartialEq, Eq)]
    pub enum Held {
        Same,
        Different,
        Nothing,
        /// CAS did not answer.
        Unknown(String),
    }

    /// Compares without changing anything.
    pub fn compare(
        tools: &Tools,
        root: &Path,
        session: Session,
        state: &State,
        versions: &Versions,
    ) -> Result<Held, Failure> {
        let policy = Policy::of(tools, root, session, state, versions)?;
        let refusal = match policy.scone("verify")? {
            Ok(_) => return Ok(Held::Same),
            Err(refusal) => refusal,
        };
        Ok(match policy.exists()? {
            Some(true) => Held::Different,
            Some(false) => Held::Nothing,
            None => Held::Unknown(refusal.reason()),
        })
    }

    /// Makes CAS hold this policy; returns the session's hash and whether anything had to change. The upload names the
    /// predecessor that the state holds, so that CAS refuses to overwrite what another run uploaded. An earlier run that was
    /// cut off after the upload but before it could record the hash is recognised: rendering is deterministic, so CAS then
    /// holds exactly what we would upload.
    pub fn upload(
        tools: &Tools,
        root: &Path,
        session: Session,
        state: &State,
        versions: &Versions,
    ) -> Result<(String, bool), Failure> {
        let known = session.known_hash(state).is_some();
        let part_way = state.pending.as_ref().is_some_and(|pending| pending.uploads_done > 0);
        let policy = Policy::of(tools, root, session, state, versions)?;
        if known && let Ok(hash) = policy.scone("verify")? {
            return Ok((hash, false));
        }
        let refusal = match policy.scone("create")? {
            Ok(hash) => return Ok((hash, true)),
            Err(refusal) => refusal,
        };
        if let Ok(hash) = policy.scone("verify")? {
            return Ok((hash, false));
        }
        let (name, reason) = (&policy.session, refusal.reason());
        let refused = |code| {
            let refused = Failure::new(code, format!("CAS did not take session '{name}': {reason}"));
            // Somebody else replaced it, or the state is an older copy: what CAS holds now is not for us to overwrite.
            match reason.contains("predecessor") {
                true => tools.begin_anew(state).into_iter().fold(refused, Failure::hint),
                false => refused,
            }
        };
        Err(match policy.exists()? {
            Some(false) if known => {
                let message =
                    format!("CAS at '{}' no longer holds session '{name}': it was wiped or restored", policy.cas);
                Failure::new(PRECONDITION, message).hint(format!(
                    "./scripts/roll_forward.rs{} --cas-wiped   # new secret, new volume, new sessions",
                    policy.tools.option()
                ))
            }
            _ if part_way => refused(PART_WAY),
            Some(_) => refused(REFUSED),
            None => Failure::new(PRECONDITION, format!("CAS cannot be asked about session '{name}': {reason}")),
        })
    }
}
// --- end policy
