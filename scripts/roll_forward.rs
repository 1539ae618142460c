#!/usr/bin/env -S sh -uc 'o=--;[ -d "${0%/*}/bundle" ]||o=-b$(realpath "$OTPQR_ROOT")/scripts;exec rust-script "$o" "$0" "$@"'
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
//! # Not found? The script was copied: say where the bundle is: export OTPQR_ROOT=/path/to/the/checkout
//! bundle = { path = "bundle" }
//! clap = { version = "=4.6.7", features = ["derive"] }
//! dialoguer = { version = "=0.12.0", default-features = false, features = ["password"] }
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use bundle::code::{Presentation, Source};
use bundle::outcome::{Failure, OTHER, PRECONDITION, USAGE, at_prompt, conclude, here, is_interactive, step};
use bundle::platform::Tools;
use bundle::policy::{Held, Session, Versions, compare, render, upload};
use bundle::qr_code::Output;
use bundle::state::{Pending, State, StateFile};
use bundle::{code, root, state};

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
    conclude("roll_forward", || roll_forward(&args))
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
