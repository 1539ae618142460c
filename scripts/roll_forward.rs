#!/usr/bin/env rust-script
//! Authenticator lost or volume damaged: a new secret, a new volume, and the old codes are dead.
//!
//! Why: nobody can produce a code any more, so the right to do this rests on the `scone` command line's identity alone.
//! How: three uploads. First session 1 declares old and new side by side; then session 2 switches to the new, which is the
//! moment the old codes die; last, session 1 switches and drops the old. What is intended is recorded first: cut off
//! anywhere, the same command goes on where it stopped.
//! Limits: whoever holds that identity can do it too.
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
//! handlebars = "=6.4.4"
//! rustix = { version = "=1.1.6", features = ["fs", "process", "termios"] }
//! serde = { version = "=1.0.229", features = ["derive"] }
//! serde_json = "=1.0.154"
//! serde_yaml = { package = "yaml_serde", version = "=0.10.7" }
//! tempfile = "=3.27.0"
//! which = "=8.0.6"
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use code::{Presentation, Source};
use outcome::{Failure, OTHER, PRECONDITION, USAGE, at_prompt, conclude, here, is_interactive, step};
use platform::Tools;
use policy::{Held, Session, Versions, compare, render, upload};
use qr_code::Output;
use state::{Pending, State, StateFile};

const SCRIPT: &str = "roll_forward";

/// Authenticator lost or volume damaged: a new secret, a new volume, and the old codes are dead
#[derive(Debug, Parser)]
#[command(
    name = "roll_forward",
    bin_name = "./scripts/roll_forward.rs",
    version,
    after_help = "\
Exit codes:
  0 rolled forward   2 usage   3 something is missing, nothing changed   4 stopped part-way: run it again
  5 refused by CAS   130 interrupted   1 anything else

Examples:
  ./scripts/roll_forward.rs                              asks before the old codes die
  ./scripts/roll_forward.rs --yes --account signing      does not ask
  ./scripts/roll_forward.rs --keep-secret                volume damaged, authenticator at hand: asks for a code
  ./scripts/roll_forward.rs --undo                       it was cut off, and before the old codes died
  ./scripts/roll_forward.rs --cas-wiped                  CAS lost its sessions
  ./scripts/gen_qr.rs                                    afterwards: the new secret's QR code"
)]
struct Args {
    /// The account
    #[arg(long, default_value = "default", value_parser = state::account_name)]
    account: String,
    /// New volume only: secret and authenticators stay. Asks for a code
    #[arg(long, conflicts_with_all = ["undo", "cas_wiped"])]
    keep_secret: bool,
    /// With --keep-secret: read the code from FILE instead of asking; '-' is standard input
    #[arg(long, value_name = "FILE", requires = "keep_secret")]
    otp_file: Option<PathBuf>,
    /// Undo a roll-forward that was cut off before the old codes died
    #[arg(long, conflicts_with = "cas_wiped")]
    undo: bool,
    /// CAS lost its sessions: upload everything anew, to whatever CAS is there now
    #[arg(long)]
    cas_wiped: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// The bundle's directory [default: OTPQR_ROOT, the script's parent, the current directory]
    #[arg(long)]
    root: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    conclude(|| roll_forward(&args))
}

fn roll_forward(args: &Args) -> Result<String, Failure> {
    if !args.yes && !args.undo && !is_interactive() {
        let message = "this cannot be undone once it is done, and there is no terminal to ask on: give '--yes'";
        return Err(Failure::new(USAGE, message));
    }
    let source = match args.keep_secret {
        true => Some(Source::new(args.otp_file.as_deref(), "'--otp-file FILE' ('-': standard input)")?),
        false => None,
    };
    let (root, file, state) = state::existing(args.root.as_deref(), &args.account)?;
    let root = root::find(Some(&root), Path::new("templates"), None)?;
    let tools = state.platform.tools(&root, &args.account)?;
    let mut run = Run { args, root, tools, file, state };
    match (args.cas_wiped, args.undo) {
        (true, _) => run.start_anew(),
        (_, true) => run.undo(),
        _ => run.forward(source.as_ref()),
    }
}

struct Run<'a> {
    args: &'a Args,
    root: PathBuf,
    tools: Tools,
    file: StateFile,
    state: State,
}

impl Run<'_> {
    fn forward(&mut self, source: Option<&Source>) -> Result<String, Failure> {
        self.tools.check_cas(&self.state.cas)?;
        let keep_secret = self.args.keep_secret;
        let image = self.check_image();
        match self.state.pending.is_none() || keep_secret {
            true => image?,
            false => self.notice(image),
        }
        if !keep_secret && self.state.pending.as_ref().is_some_and(|to| !to.undo && self.keeps_secret(to)) {
            self.leave_keeping()?;
        }
        let mut to = match self.state.pending.clone() {
            Some(Pending { undo: true, .. }) => return self.undo(),
            Some(pending) if keep_secret && !self.keeps_secret(&pending) => {
                let message = "a roll-forward with a new secret was begun and is to be finished first";
                let command = self.state.finishing(&self.args.account);
                return Err(command.into_iter().fold(Failure::new(PRECONDITION, message), Failure::hint));
            }
            Some(pending) => {
                step("going on with a roll-forward that was begun");
                pending
            }
            None => Pending {
                volume_version: self.state.volume_version + 1,
                secret_version: self.state.secret_version + u32::from(!keep_secret),
                uploads_done: 0,
                undo: false,
            },
        };
        render(&self.root, Session::Otpqr, &self.state, &self.both(&to))?;
        render(&self.root, Session::Reset, &self.state, &Versions::only(to.volume_version, to.secret_version))?;
        // Also of one that was cut off, as long as it can be undone.
        if to.uploads_done < 2 {
            let (issuer, login) = (&self.state.issuer, self.state.label());
            self.confirm(match keep_secret {
                true => format!("The volume of '{issuer}', '{login}' is replaced; its codes go on. Go on?"),
                false => format!("All codes of '{issuer}', '{login}' stop working at once. Go on?"),
            })?;
        }
        if self.state.pending.is_none() {
            // Recorded before CAS is changed.
            self.record(Some(&to))?;
        }
        self.carry_out(&mut to, source).map_err(|failure| self.part_way(failure))
    }

    fn check_image(&self) -> Result<(), Failure> {
        self.tools.check_image(&self.state.image, &self.state.image_id, &self.state.mrenclave)
    }

    /// What starts no program does not need the right one, and has to be finished before `create` can take a new one in.
    fn notice(&self, image: Result<(), Failure>) {
        if let Err(failure) = image {
            let (what, mend) = failure.into_finding();
            step(mend.map_or(what.clone(), |mend| format!("{what}; afterwards: {}", here(&mend))));
        }
    }

    fn keeps_secret(&self, to: &Pending) -> bool {
        to.secret_version == self.state.secret_version
    }

    /// Whether it took over from one that was to keep the secret: session 2 may be on the volume between.
    fn takes_over(&self, to: &Pending) -> bool {
        to.volume_version > self.state.volume_version + 1
    }

    /// The command that takes back what was begun, as long as that can be.
    fn undoing(&self) -> Option<String> {
        let begun = self.state.pending.as_ref()?;
        let can_be = begun.uploads_done < 2 && !self.takes_over(begun);
        let option = state::option(&self.args.account);
        can_be
            .then(|| format!("./scripts/roll_forward.rs{option} --undo   # takes it back, if the old codes still live"))
    }

    fn part_way(&self, failure: Failure) -> Failure {
        match self.state.finishing(&self.args.account) {
            Some(command) => failure.part_way(format!("{command}   # goes on"), self.undoing()),
            None => failure,
        }
    }

    /// A roll-forward that keeps the secret cannot be finished without a code. Without one it becomes one with a new secret -
    /// and with another volume, since the marker of the one that was begun may be taken. First what CAS holds has to be known.
    fn leave_keeping(&mut self) -> Result<(), Failure> {
        let Some(mut to) = self.state.pending.clone() else { return Ok(()) };
        let (both, new) = (self.both(&to), Versions::only(to.volume_version, to.secret_version));
        self.confirm(format!(
            "A roll-forward that keeps the secret was begun. Leave it: all codes of '{}', '{}' stop working. Go on?",
            self.state.issuer,
            self.state.label()
        ))?;
        let reached = self.upload(&mut to, 0, Session::Otpqr, &both, "finding out how far the one that was begun got");
        reached
            .and_then(|()| self.upload(&mut to, 1, Session::Reset, &new, "switching session 2 to the volume begun"))
            .map_err(|failure| self.part_way(failure))?;
        self.prepare(&to)?;
        // Killed just before its end: then it is at its end.
        if compare(&self.tools, &self.root, Session::Otpqr, &self.state, &new)? == Held::Same {
            self.upload(&mut to, 2, Session::Otpqr, &new, "it had got to its end")?;
            (self.state.volume_version, self.state.secret_version) = (to.volume_version, to.secret_version);
            return self.record(None);
        }
        let volume_version = self.state.volume_version + 2;
        let secret_version = self.state.secret_version + 1;
        self.record(Some(&Pending { volume_version, secret_version, uploads_done: 0, undo: false }))
    }

    /// The intention `to` is recorded; from here on a failure is one part-way.
    fn carry_out(&mut self, to: &mut Pending, source: Option<&Source>) -> Result<String, Failure> {
        let old = self.state.label();
        let (both, new) = (self.both(to), Versions::only(to.volume_version, to.secret_version));
        let switching = match source {
            Some(_) => "switching session 2 to the new volume",
            None => "switching: from here on the old codes are dead",
        };
        self.upload(to, 0, Session::Otpqr, &both, "declaring the new beside the old")?;
        self.upload(to, 1, Session::Reset, &new, switching)?;
        if let Some(source) = source {
            self.take_marker(source, to)?;
        }
        self.upload(to, 2, Session::Otpqr, &new, "dropping the old")?;
        (self.state.volume_version, self.state.secret_version) = (to.volume_version, to.secret_version);
        self.record(None)?;
        Ok(match source {
            Some(_) => format!("rolled forward: account '{}' has a new volume; its codes go on", self.args.account),
            None => self.report(&old, "every code of the old secret is refused"),
        })
    }

    /// One of the three uploads, if it was not yet recorded: recorded when CAS has answered, recognised if it had happened.
    fn upload(
        &mut self,
        to: &mut Pending,
        number: usize,
        session: Session,
        versions: &Versions,
        what: &str,
    ) -> Result<(), Failure> {
        // The last is repeated in any case: what the state says is believed only as far as CAS confirms it.
        if number < to.uploads_done.min(2) {
            return Ok(());
        }
        step(what);
        let uploaded = upload(&self.tools, &self.root, session, &self.state, versions);
        if number == 0 && !self.takes_over(to) && uploaded.as_ref().is_err_and(Failure::is_refusal) {
            // CAS said no, and holds what it held: nothing was begun.
            self.record(None)?;
        }
        let (hash, _) = uploaded?;
        *session.hash(&mut self.state) = Some(hash);
        to.uploads_done = number + 1;
        self.record(Some(to))
    }

    fn record(&mut self, pending: Option<&Pending>) -> Result<(), Failure> {
        self.state.pending = pending.cloned();
        self.file.write(&self.state)
    }

    /// What session 1 declares in between.
    fn both(&self, to: &Pending) -> Versions {
        let (volume, secret) = (self.state.volume_version, self.state.secret_version);
        let (declared_volumes, declared_secrets) =
            ((volume..=to.volume_version).collect(), (secret..=to.secret_version).collect());
        Versions { volume, secret, declared_volumes, declared_secrets }
    }

    /// The new volume's first start is session 2's, against a code: it takes the once-marker, so that session 1, which asks
    /// for none, issues nothing when it is moved to the new volume. The QR code that comes with it is nobody's: destroyed.
    fn take_marker(&self, source: &Source, to: &Pending) -> Result<(), Failure> {
        let state = self.on_new_volume(to);
        let presentation = Presentation {
            source,
            prompt: format!("Code for {}, {}", state.issuer, state.label()),
            // Nothing could be started before to measure it.
            takes: Duration::from_secs(2),
            spent: None,
            remains: "run the same command again to go on, or, without a code, one without '--keep-secret'".to_owned(),
            tools: &self.tools,
            namespace: &state.namespace,
        };
        let config_id = format!("{}/otpqr-reset/otpqr", state.namespace);
        let mut issued = None;
        let (finished, _) = presentation.make(&mut |code| {
            let output = self.prepare(to)?;
            step("starting the confidential program on the new volume");
            let finished = output.start(&self.tools, &self.root, &state, &code.config_id(&config_id))?;
            if !code::is_refused(&finished) {
                issued = Some(output);
            }
            Ok(finished)
        })?;
        match issued {
            Some(output) if output.is_complete() => {
                step(format!("the QR code that came with it is nobody's: {}", output.destroy()?));
                Ok(())
            }
            Some(output) => Err(output.explain(&finished)),
            None => Err(Failure::new(OTHER, "the program was not started")),
        }
    }

    fn on_new_volume(&self, to: &Pending) -> State {
        let mut state = self.state.clone();
        state.volume_version = to.volume_version;
        state
    }

    /// Where the program may write, on the volume begun. A QR code that a run which was cut off left there is nobody's.
    fn prepare(&self, to: &Pending) -> Result<Output, Failure> {
        let state = self.on_new_volume(to);
        let prepare = || Output::prepare(&self.root, &self.args.account, &state, None);
        let output = prepare()?;
        if !output.is_complete() {
            return Ok(output);
        }
        step(format!("the QR code that the last run left is nobody's: {}", output.destroy()?));
        prepare()
    }

    /// Back to the old alone, which is possible until session 2 has switched.
    fn undo(&mut self) -> Result<String, Failure> {
        self.tools.check_cas(&self.state.cas)?;
        let Some(mut to) = self.state.pending.clone() else {
            return Ok(format!("nothing to undo: no roll-forward of account '{}' was begun", self.args.account));
        };
        self.notice(self.check_image());
        let (both, new) = (self.both(&to), Versions::only(to.volume_version, to.secret_version));
        let switched = to.uploads_done >= 2
            || self.takes_over(&to)
            || compare(&self.tools, &self.root, Session::Reset, &self.state, &new)? == Held::Same;
        if switched {
            let failure = Failure::new(PRECONDITION, "session 2 has switched already: the only way is forward");
            let failure = self.state.finishing(&self.args.account).into_iter().fold(failure, Failure::hint);
            let option = state::option(&self.args.account);
            return Err(match self.keeps_secret(&to) {
                true => failure.hint(format!("./scripts/roll_forward.rs{option}   # without a code: new secret")),
                false => failure,
            });
        }
        if !to.undo {
            // Session 1 is brought to where its hash is known; then the intention is turned round.
            self.upload(&mut to, 0, Session::Otpqr, &both, "finding out how far it got")?;
            to.undo = true;
            self.record(Some(&to))?;
        }
        step("dropping what was declared beside the old");
        let old = Versions::only(self.state.volume_version, self.state.secret_version);
        let (hash, _) = upload(&self.tools, &self.root, Session::Otpqr, &self.state, &old)?;
        self.state.otpqr_hash = Some(hash);
        self.record(None)?;
        Ok(format!("undone: account '{}' is as it was; its codes go on", self.args.account))
    }

    /// CAS holds nothing of this account any more: everything is uploaded as if for the first time, with a new secret and a
    /// new volume, since CAS has lost the old ones.
    fn start_anew(&mut self) -> Result<String, Failure> {
        // The simulated one may be back on other ports.
        let simulated = self.tools.simulated_cas(true)?;
        let address = simulated.as_ref().unwrap_or(&self.state.cas).address.clone();
        self.state.cas = self.tools.attest(&address, simulated)?;
        self.notice(self.check_image());
        let current = Versions::only(self.state.volume_version, self.state.secret_version);
        let (mut held, mut lost) = (None, None);
        for session in [Session::Namespace, Session::Otpqr, Session::Reset] {
            match compare(&self.tools, &self.root, session, &self.state, &current)? {
                Held::Nothing => lost = Some(session.name(&self.state)),
                Held::Unknown(reason) => {
                    return Err(Failure::new(PRECONDITION, format!("CAS cannot be asked what it holds: {reason}")));
                }
                Held::Same | Held::Different => held = held.or(Some(session.name(&self.state))),
            }
        }
        match (held, lost) {
            // The last upload was recorded: CAS was put back to when it held less. (Else `create` was cut off, and goes on.)
            (Some(held), Some(lost)) if self.state.reset_hash.is_some() => {
                let message = format!("CAS was not wiped, but restored: it holds session '{held}' and no '{lost}'");
                let refusal = Failure::new(PRECONDITION, message);
                return Err(self.tools.begin_anew(&self.state).into_iter().fold(refusal, Failure::hint));
            }
            (Some(held), _) => {
                let message = format!("CAS was not wiped: it holds session '{held}'");
                let command = format!("./scripts/create.rs{}", state::option(&self.args.account));
                return Err(Failure::new(PRECONDITION, message).hint(command));
            }
            (None, _) => {}
        }
        let old = self.state.label();
        self.confirm(format!(
            "Upload account '{}' anew to the CAS at '{}'?",
            self.args.account, self.state.cas.address
        ))?;
        (self.state.volume_version, self.state.secret_version) =
            (self.state.volume_version + 1, self.state.secret_version + 1);
        (self.state.namespace_hash, self.state.otpqr_hash, self.state.reset_hash) = (None, None, None);
        // From here on `create` can finish it, too.
        self.record(None)?;
        let new = Versions::only(self.state.volume_version, self.state.secret_version);
        for session in [Session::Namespace, Session::Otpqr, Session::Reset] {
            step(format!("policy '{}'", session.name(&self.state)));
            let (hash, _) = upload(&self.tools, &self.root, session, &self.state, &new)?;
            *session.hash(&mut self.state) = Some(hash);
            self.file.write(&self.state)?;
        }
        Ok(self.report(&old, "CAS has lost the old ones"))
    }

    fn confirm(&self, prompt: String) -> Result<(), Failure> {
        if self.args.yes {
            return Ok(());
        }
        let asked = at_prompt("nothing was changed", "", || {
            dialoguer::Confirm::new().with_prompt(prompt).default(false).interact()
        });
        match asked {
            Ok(true) => Ok(()),
            Err(dialoguer::Error::IO(cause)) if cause.kind() == io::ErrorKind::Interrupted => {
                Err(Failure::interrupted().leaving("nothing was changed"))
            }
            Err(cause) => Err(Failure::new(OTHER, format!("no answer: {cause}"))),
            Ok(false) => Err(Failure::new(PRECONDITION, "not confirmed; nothing was changed")),
        }
    }

    fn report(&self, old: &str, why: &str) -> String {
        let next = here(&format!("./scripts/gen_qr.rs{}", state::option(&self.args.account)));
        let issuer = &self.state.issuer;
        format!(
            "rolled forward: account '{}' has a new secret and a new volume; {why}\n\
             delete from the authenticators: '{issuer}', '{old}'\n\
             next: {next}   # its entry will be '{issuer}', '{}'",
            self.args.account,
            self.state.label(),
        )
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
