#!/usr/bin/env rust-script
//! Has the account's QR code issued - once, ever.
//!
//! Why: whoever scans it can produce the codes; so the confidential program that renders it takes a once-marker, in a volume
//! that cannot be rolled back, before it writes anything.
//! Limits: the host that shows the QR code is trusted while it does. The secret passes through no stream of this script.
//!
//! ```cargo
//! [package]
//! version = "0.1.0"
//! edition = "2024"
//!
//! [dependencies]
//! clap = { version = "=4.6.7", features = ["derive"] }
//! ctrlc = { version = "=3.5.2", features = ["termination"] }
//! dialoguer = { version = "=0.12.0", default-features = false, features = ["password"] }
//! duct = "=1.1.2"
//! rustix = { version = "=1.1.6", features = ["fs", "process", "termios"] }
//! serde = { version = "=1.0.229", features = ["derive"] }
//! serde_json = "=1.0.154"
//! serde_yaml = { package = "yaml_serde", version = "=0.10.7" }
//! tempfile = "=3.27.0"
//! which = "=8.0.6"
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use enrolment::Enrolment;
use outcome::{Failure, conclude, step};

const SCRIPT: &str = "gen_qr";

/// Have the account's QR code issued - once, ever
#[derive(Debug, Parser)]
#[command(
    name = "gen_qr",
    bin_name = "./scripts/gen_qr.rs",
    version,
    after_help = "\
Exit codes:
  0 issued   2 usage   3 something is missing, nothing changed   4 stopped part-way
  5 refused: issued before, or CAS did not trust program or volume   130 interrupted   1 anything else

Examples:
  ./scripts/gen_qr.rs                                    writes qrcode.svg, asks for a first code, destroys the file
  ./scripts/gen_qr.rs --terminal                         shows the QR code here, writes no file
  ./scripts/gen_qr.rs --account signing --output signing.svg --keep
  ./scripts/gen_qr.rs --no-confirm                       without a terminal: writes qrcode.svg and ends
  shred -n 3 -z -u qrcode.svg                            what to do with it once it was scanned"
)]
struct Args {
    /// The account
    #[arg(long, default_value = "default", value_parser = state::account_name)]
    account: String,
    #[command(flatten)]
    enrolment: enrolment::Options,
    /// The bundle's directory [default: OTPQR_ROOT, the script's parent, the current directory]
    #[arg(long)]
    root: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    conclude(|| gen_qr(&args))
}

fn gen_qr(args: &Args) -> Result<String, Failure> {
    let confirmation = args.enrolment.check()?;
    let (root, _, state) = state::existing(args.root.as_deref(), &args.account)?;
    let tools = state.platform.tools(&root, &args.account)?;
    tools.check_cas(&state.cas)?;
    tools.check_image(&state.image, &state.image_id, &state.mrenclave)?;
    let output = args.enrolment.prepare(&root, &args.account, &state)?;
    let started = Instant::now();
    if !output.is_complete() {
        step("starting the confidential program");
        let config_id = format!("{}/otpqr/otpqr", state.namespace);
        let finished = output.start(&tools, &root, &state, &config_id)?;
        if !output.is_complete() {
            return Err(output.explain(&finished));
        }
    }
    let enrolment = Enrolment {
        account: &args.account,
        state: &state,
        tools: &tools,
        options: &args.enrolment,
        source: confirmation.as_ref(),
        takes: started.elapsed(),
        spent: None,
    };
    enrolment.conclude(output)
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

// --- block qr_code
#[allow(dead_code)] // identical in every script; not every script needs all of it
mod qr_code {
    //! The QR code's way from the program to a file: never overwriting, never in a stream, never lost.

    use std::fs::{self, DirBuilder, File};
    use std::io::{self, Write};
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
    use std::path::{Path, PathBuf};

    use rustix::fs::Access;

    use super::child::{Finished, Tool};
    use super::outcome::{Failure, OTHER, PART_WAY, PRECONDITION, REFUSED, quoted};
    use super::platform::{Start, Tools};
    use super::state::{self, State, issuing_directory, volume_directory};

    /// Where the QR code is to be, and the directory that is mounted for the program to write into: `state/issuing/…`, named
    /// after the secret it shows. So what a run that was cut off left there is found by the next one, wherever that is to
    /// deliver it, and never taken for another account's.
    pub struct Output {
        account: String,
        directory: PathBuf,
        /// Held until the QR code is delivered: two runs must not take each other's file for a leftover.
        _lock: File,
    }

    impl Output {
        /// Checks that the QR code can be brought to a file, if it is to be. Repeated when it counts; here to refuse early.
        pub fn prepare(root: &Path, account: &str, state: &State, to: Option<&Path>) -> Result<Output, Failure> {
            if let Some(path) = to {
                let shown = path.display();
                if path.file_name().is_none() {
                    return Err(Failure::new(PRECONDITION, format!("output '{shown}' is no file name")));
                }
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let writable = rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK);
                writable.map_err(Failure::because(
                    PRECONDITION,
                    format!("nothing can be written beside output '{shown}'"),
                ))?;
                if path.symlink_metadata().is_ok() {
                    let option = state::option(account);
                    let other = format!("./scripts/{}.rs{option} --output another.svg", super::SCRIPT);
                    return Err(Failure::new(PRECONDITION, format!("output '{shown}' exists already")).hint(other));
                }
            }
            let directory = issuing_directory(root, state);
            let failed = |cause: String| {
                Failure::new(PRECONDITION, format!("cannot prepare '{}': {cause}", directory.display()))
            };
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(|e| failed(e.to_string()))?;
            let found = directory.symlink_metadata().map_err(|e| failed(e.to_string()))?;
            let ours =
                found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0;
            if !ours {
                return Err(failed("it is not a private directory of ours".to_owned()));
            }
            let lock = File::open(&directory).map_err(|e| failed(e.to_string()))?;
            lock.try_lock().map_err(|_| failed("another run is issuing the same QR code".to_owned()))?;
            let output = Output { account: account.to_owned(), directory: directory.clone(), _lock: lock };
            if !output.is_complete() && output.written().exists() {
                // What a killed program had reserved and not filled: nothing can be read from it, and the marker is taken.
                fs::remove_file(output.written()).map_err(|e| failed(e.to_string()))?;
            }
            Ok(output)
        }

        /// Starts `session/service[@code]` with the account's volume, to write here.
        pub fn start(&self, tools: &Tools, root: &Path, state: &State, config_id: &str) -> Result<Finished, Failure> {
            let (volume, made) = volume_directory(root, &self.account, state.volume_version)?;
            let (cas, image_id) = (&state.cas, state.image_id.as_str());
            let started =
                tools.start(&Start { config_id, cas, image_id, directories: Some((&volume, &self.directory)) });
            // If it is still empty, it would stand in the way of one that is moved back.
            if made {
                let _ = fs::remove_dir(&volume);
            }
            started.map_err(|failure| match self.is_complete() {
                true => failure.leaving(&self.waiting("run the same command again")),
                false => failure,
            })
        }

        /// What somebody must know while the QR code is where the program left it.
        pub fn waiting(&self, why: impl std::fmt::Display) -> String {
            format!("the QR code waits in '{}'; {why}", self.written().display())
        }

        fn written(&self) -> PathBuf {
            self.directory.join("qrcode.svg")
        }

        /// Whether the program wrote a whole QR code - now, or in an earlier run that was cut off before it could deliver.
        pub fn is_complete(&self) -> bool {
            fs::read(self.written()).is_ok_and(|svg| svg.ends_with(b"</svg>\n"))
        }

        /// Brings the QR code to its place; fails rather than replace anything.
        pub fn deliver(self, to: &Path) -> Result<(), Failure> {
            let written = self.written();
            let failed = |e: io::Error| {
                let why = format!("it cannot be brought to '{}': {e}", to.display());
                Failure::new(PART_WAY, self.waiting(why))
            };
            // A hard link, unlike a rename, never replaces. To another file system, or one without links, it is copied.
            match fs::hard_link(&written, to) {
                Ok(()) => fs::remove_file(&written).map_err(failed),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(failed(e)),
                Err(_) => {
                    copy(&written, to).map_err(failed)?;
                    destroy(&written).map(drop)
                }
            }
        }

        /// The QR code itself, for the terminal.
        pub fn read(&self) -> Result<String, Failure> {
            let written = self.written();
            fs::read_to_string(&written)
                .map_err(Failure::because(OTHER, format!("cannot read '{}'", written.display())))
        }

        /// Destroys the QR code where the program left it.
        pub fn destroy(self) -> Result<String, Failure> {
            destroy(&self.written())
        }

        /// After a failed start: why, and nothing left behind that is not worth anything.
        pub fn explain(self, finished: &Finished) -> Failure {
            let account = state::option(&self.account);
            let reason = finished.reason();
            let fatal = finished.stderr.contains("[SCONE|FATAL]");
            let volume = [
                "suspected replay attack",
                "file system protection file",
                "Verification of file chunk",
                "is not part of this volume",
            ];
            let unreachable = "Failed to establish an encrypted channel to CAS";
            if self.written().exists() && !fatal {
                return Failure::new(PART_WAY, "the program started, but left an incomplete QR code")
                    .hint(format!("./scripts/roll_forward.rs{account}   # the once-marker may be taken"));
            }
            match finished.code {
                _ if fatal && volume.iter().any(|text| reason.contains(text)) => {
                    Failure::new(REFUSED, format!("the volume was refused: {reason}"))
                        .hint(format!(
                            "./scripts/roll_forward.rs{account} --keep-secret   # authenticator at hand: codes go on"
                        ))
                        .hint(format!(
                            "./scripts/roll_forward.rs{account}   # otherwise: new secret, kills the old codes"
                        ))
                }
                _ if fatal && finished.stderr.contains(unreachable) => {
                    Failure::new(PRECONDITION, format!("there is no channel to CAS: {reason}"))
                }
                _ if fatal && reason.contains("the volume is in use") => {
                    Failure::new(PRECONDITION, format!("another start is at work: {reason}"))
                }
                _ if fatal && reason.contains("Unexpected enclave measurement") => {
                    Failure::new(REFUSED, format!("the program is not the one in the policies: {reason}"))
                        .hint(format!("./scripts/create.rs{account}   # updates the policies"))
                }
                _ if fatal => Failure::new(REFUSED, format!("the start was refused: {reason}")),
                Some(10) => Failure::new(REFUSED, "the QR code was issued already, and is issued only once")
                    .hint(format!(
                        "./scripts/add_auth.rs{account}       # with a code: the same secret for another authenticator"
                    ))
                    .hint(format!("./scripts/roll_forward.rs{account}   # without: new secret, kills the old codes")),
                Some(11) => Failure::new(OTHER, format!("the policy does not suit the program: {reason}")),
                Some(12) => Failure::new(PRECONDITION, format!("the program cannot write its output: {reason}")),
                Some(125..=127) => Failure::new(PRECONDITION, format!("the program could not be started: {reason}")),
                _ => Failure::new(PART_WAY, format!("the program ended without a QR code: {reason}"))
                    .hint(format!("./scripts/roll_forward.rs{account}   # if the once-marker is taken")),
            }
        }
    }

    fn copy(written: &Path, to: &Path) -> io::Result<()> {
        let svg = fs::read(written)?;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(to)?;
        let copied = file.write_all(&svg).and_then(|()| file.sync_all());
        if copied.is_err() {
            fs::remove_file(to)?;
        }
        copied
    }

    /// Nothing stays behind of a start that issued nothing. What was issued stays for the next run, until it is delivered.
    impl Drop for Output {
        fn drop(&mut self) {
            if !self.is_complete() {
                // Both may be gone, or never have been; what cannot be removed now is removed by the next run.
                let _ = fs::remove_file(self.written());
                let _ = fs::remove_dir(&self.directory);
            }
        }
    }

    /// Destroys the picture, and says how far that goes.
    pub fn destroy(path: &Path) -> Result<String, Failure> {
        let failed = |cause: String| {
            let message = format!("the QR code in '{}' cannot be destroyed: {cause}", path.display());
            Failure::new(PART_WAY, message)
        };
        let kind = rustix::fs::statfs(path).map_err(|cause| failed(cause.to_string()))?.f_type;
        let shred = Tool::find("shred", None);
        match &shred {
            Some(shred) => {
                let args = ["-n", "3", "-z", "-u", "--"].map(Into::into).into_iter().chain([path.into()]);
                let finished = shred.run_through(&args.collect::<Vec<_>>())?;
                if !finished.success() {
                    return Err(failed(finished.reason()));
                }
            }
            None => fs::remove_file(path).map_err(|cause| failed(cause.to_string()))?,
        }
        // Magic numbers: statfs(2).
        let weak = match kind {
            0x0102_1994 => Some("tmpfs: what was swapped out may remain"),
            0x9123_683e => Some("btrfs writes elsewhere: old blocks may remain"),
            0x2fc1_2fc1 => Some("ZFS writes elsewhere: old blocks may remain"),
            0x794c_7630 | 0x6573_5546 => Some("an overlay: what lies below decides"),
            0xca45_1a4e => Some("bcachefs writes elsewhere: old blocks may remain"),
            0x6969 => Some("NFS: the server decides"),
            0xff53_4d42 | 0xfe53_4d42 => Some("SMB: the server decides"),
            0xf2f5_2010 => Some("F2FS writes elsewhere: old blocks may remain"),
            _ => None,
        };
        Ok(match (shred, weak) {
            (None, _) => "removed, not overwritten: 'shred' was not found".to_owned(),
            (Some(_), None) => "destroyed (what a flash drive or a backup kept aside is beyond reach)".to_owned(),
            (Some(_), Some(weak)) => format!("destroyed, as far as the file system lets it: {weak}"),
        })
    }

    /// The command that destroys a QR code.
    pub fn shred_command(path: &Path) -> String {
        format!("shred -n 3 -z -u {}", quoted(path.display()))
    }
}
// --- end qr_code

// --- block code
#[allow(dead_code)] // identical in every script; not every script needs all of it
mod code {
    //! One-time codes: asked for last, at the terminal, or read from a file; never an argument, never shown.

    use std::fmt;
    use std::fs::File;
    use std::io::{self, Read};
    use std::path::{Path, PathBuf};
    use std::thread::sleep;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use super::child::Finished;
    use super::outcome::{Failure, OTHER, REFUSED, USAGE, at_prompt, check_interrupted, is_interactive, step};
    use super::platform::Tools;

    /// A time step, in seconds (RFC 6238 section 4.1).
    const STEP: u64 = 30;
    /// How often a person may try.
    const TRIES: usize = 3;

    /// Six digits that a start may present once.
    pub struct Code(String);

    impl fmt::Debug for Code {
        fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("Code(..)")
        }
    }

    impl Code {
        /// `session/service@code`, for the environment of the one process that needs it.
        pub fn config_id(&self, service: &str) -> String {
            format!("{service}@{}", self.0)
        }

        fn parse(text: &str) -> Result<Code, Failure> {
            let text = text.trim_ascii();
            match text.len() == 6 && text.bytes().all(|c| c.is_ascii_digit()) {
                true => Ok(Code(text.to_owned())),
                false => Err(Failure::new(USAGE, "a code is exactly six digits")),
            }
        }
    }

    /// Where codes come from: a person, or a file.
    pub enum Source {
        Person,
        /// `-`: standard input.
        File(PathBuf),
    }

    impl Source {
        /// Fails early, before anything is prepared, if there is neither; `otherwise` says which option to give then.
        pub fn new(file: Option<&Path>, otherwise: &str) -> Result<Source, Failure> {
            match file {
                // Not opened yet: it may be a pipe.
                Some(path) if path != Path::new("-") && !path.exists() => {
                    Err(Failure::new(USAGE, format!("there is no '{}' to read a code from", path.display())))
                }
                Some(path) => Ok(Source::File(path.to_owned())),
                None if is_interactive() => Ok(Source::Person),
                None => Err(Failure::new(
                    USAGE,
                    format!("a code is needed and there is no terminal to ask on: give {otherwise}"),
                )),
            }
        }
    }

    /// A presentation of codes to CAS.
    pub struct Presentation<'a> {
        pub source: &'a Source,
        /// Whose code it is.
        pub prompt: String,
        /// How long a start took, when there was no code yet.
        pub takes: Duration,
        /// The time step of a code that was spent already: the authenticator may still show it.
        pub spent: Option<u64>,
        /// What somebody must know who presses Ctrl-C.
        pub remains: String,
        pub tools: &'a Tools,
        pub namespace: &'a str,
    }

    impl Presentation<'_> {
        /// Asks for a code and starts something with it; a person may try again if the code was refused. Returns how the start
        /// ended - not refused because of its code - and the time step in which the code was entered.
        pub fn make(
            self,
            start: &mut dyn FnMut(&Code) -> Result<Finished, Failure>,
        ) -> Result<(Finished, u64), Failure> {
            let mut spent = self.spent;
            for tries_left in (0..TRIES).rev() {
                let code = match self.source {
                    Source::Person => {
                        self.wait_for_a_useful_code(spent).map_err(|failure| failure.leaving(&self.remains))?;
                        let prompt = format!("{} (changes in {} s)", self.prompt, seconds_left());
                        let asked =
                            at_prompt(&self.remains, "", || dialoguer::Password::new().with_prompt(prompt).interact());
                        let typed = asked.map_err(|dialoguer::Error::IO(cause)| match cause.kind() {
                            io::ErrorKind::Interrupted => Failure::interrupted().leaving(&self.remains),
                            _ => Failure::new(OTHER, format!("no code was entered: {cause}")),
                        })?;
                        match Code::parse(&typed) {
                            Err(failure) if tries_left == 0 => return Err(failure),
                            Err(_) => {
                                step("a code is exactly six digits");
                                continue;
                            }
                            Ok(code) => code,
                        }
                    }
                    // A pipe may be waited for.
                    Source::File(path) => at_prompt(&self.remains, "", || read(path))?,
                };
                let entered = current_step();
                let finished = start(&code)?;
                let Some(advice) = advice(&finished, entered) else { return Ok((finished, entered)) };
                let mut refusal = format!("{advice}: {}", finished.reason());
                if finished.reason().contains(USED)
                    && let Some((at, service)) = self.tools.last_code_spent(self.namespace)?
                {
                    let (hours, minutes, seconds) = (at / 3600 % 24, at / 60 % 60, at % 60);
                    let ago = match since_1970().as_secs().saturating_sub(at) {
                        ago if ago < 3600 => String::new(),
                        ago => format!(", {} h ago", ago / 3600),
                    };
                    refusal +=
                        &format!(" (last spent at {hours:02}:{minutes:02}:{seconds:02} UTC{ago} by '{service}')");
                }
                let may_retry =
                    matches!(self.source, Source::Person) && tries_left > 0 && !finished.reason().contains(BACK_OFF);
                if !may_retry {
                    return Err(Failure::new(REFUSED, refusal));
                }
                step(refusal);
                if finished.reason().contains(USED) {
                    spent = Some(entered);
                }
            }
            Err(Failure::new(REFUSED, "no code was accepted"))
        }

        /// A code that was spent, or that will change before a start has used it, is not worth asking for.
        fn wait_for_a_useful_code(&self, spent: Option<u64>) -> Result<(), Failure> {
            if spent == Some(current_step()) {
                step(format!("the code shown now was used already: waiting {} s for the next one", seconds_left()));
                return wait_for_next_step();
            }
            let left = seconds_left();
            if is_enough(left, self.takes) {
                return Ok(());
            }
            let question = format!(
                "The code changes in {left} s, the start takes about {} s. Wait for the next code?",
                self.takes.as_secs() + 1
            );
            let asked = at_prompt(&self.remains, "", || {
                dialoguer::Confirm::new().with_prompt(question).default(true).interact()
            });
            match asked {
                Ok(true) => wait_for_next_step(),
                Ok(false) => Ok(()),
                Err(dialoguer::Error::IO(cause)) if cause.kind() == io::ErrorKind::Interrupted => {
                    Err(Failure::interrupted())
                }
                Err(cause) => Err(Failure::new(OTHER, format!("no answer: {cause}"))),
            }
        }
    }

    const USED: &str = "One-time Password was already used";
    const INVALID: &str = "One-time Password is invalid";
    /// The simulator's, which slows guessing down.
    const BACK_OFF: &str = "Too many wrong One-time Passwords";

    /// Whether a start was refused because of its code.
    pub fn is_refused(finished: &Finished) -> bool {
        let reason = finished.reason();
        [USED, INVALID, BACK_OFF].iter().any(|text| reason.contains(text))
    }

    /// What to tell whose code was refused; `None` if it was not.
    fn advice(finished: &Finished, entered: u64) -> Option<&'static str> {
        let reason = finished.reason();
        if reason.contains(USED) {
            Some("that code was used already, by you or somebody else: wait for the next one")
        } else if reason.contains(INVALID) && current_step() != entered {
            Some("that code is wrong, or it changed before CAS saw it: enter the next one as soon as it appears")
        } else if reason.contains(INVALID) {
            Some("that code is wrong: is it this account's entry, and is the clock of the authenticator right?")
        } else if reason.contains(BACK_OFF) {
            Some("too many wrong codes were given")
        } else {
            None
        }
    }

    fn read(path: &Path) -> Result<Code, Failure> {
        let mut text = String::new();
        // More than any code, so that a wrong file is seen to be wrong without being read whole.
        let read = match path == Path::new("-") {
            true => io::stdin().take(64).read_to_string(&mut text),
            false => File::open(path).and_then(|file| file.take(64).read_to_string(&mut text)),
        };
        read.map_err(Failure::because(USAGE, format!("no code can be read from '{}'", path.display())))?;
        Code::parse(&text)
    }

    fn since_1970() -> Duration {
        // A clock before 1970 is as wrong as can be: CAS will say so of the codes.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn current_step() -> u64 {
        since_1970().as_secs() / STEP
    }

    fn seconds_left() -> u64 {
        STEP - since_1970().as_secs() % STEP
    }

    /// Whether a code that changes in so many seconds is still good when a start that takes so long presents it.
    fn is_enough(left: u64, takes: Duration) -> bool {
        Duration::from_secs(left) >= takes + Duration::from_secs(2)
    }

    #[test]
    fn a_code_is_waited_for_if_it_changes_before_a_start_has_used_it_and_two_seconds_more() {
        assert!(!is_enough(1, Duration::ZERO));
        assert!(!is_enough(4, Duration::from_millis(2_001)));
        assert!(is_enough(4, Duration::from_secs(2)));
        assert!(is_enough(2, Duration::ZERO));
    }

    fn wait_for_next_step() -> Result<(), Failure> {
        let now = current_step();
        while current_step() == now {
            sleep(Duration::from_millis(100));
            check_interrupted()?;
        }
        Ok(())
    }
}
// --- end code

// --- block enrolment
#[allow(dead_code)] // identical in every script; not every script needs all of it
mod enrolment {
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
                    .hint(format!("./scripts/{}.rs{option}   # writes a file instead", super::SCRIPT))
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
                let kept =
                    file.map_or_else(String::new, |path| format!("; the QR code is still in '{}'", path.display()));
                failure
                    .in_front(format!("the QR code was issued, but no code of it was confirmed{kept}"), PART_WAY)
                    .hint(format!(
                        "./scripts/add_auth.rs{option} --output another.svg   # if the entry works after all"
                    ))
                    .hint(format!("./scripts/roll_forward.rs{option}   # if it was not scanned"))
            };
            let presented = presentation.make(&mut |code| {
                let (config_id, cas) = (code.config_id(&service), &self.state.cas);
                self.tools.start(&Start {
                    config_id: &config_id,
                    cas,
                    image_id: &self.state.image_id,
                    directories: None,
                })
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
}
// --- end enrolment
