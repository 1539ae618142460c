//! A roll-forward's steps: the three uploads, back as long as the old codes live, or all anew on a CAS that was wiped. What a
//! session may hold meanwhile stands here too, for doctor asks.

use std::time::Duration;

use crate::account::Account;
use crate::cas::Cas;
use crate::code::{Presentation, Source};
use crate::failure::{Concern, Exit, Failure};
use crate::hint;
use crate::issue::{Output, discard};
use crate::policy::{Held, Versions, adopt, compare, render, unconfirmed, upload, upload_each};
use crate::prompt;
use crate::session::Session;
use crate::state::{Approval, Lock, Pending, State};
use crate::step;

#[derive(Debug, thiserror::Error)]
enum RotationError {
    #[error("this cannot be undone once it is done, and there is no terminal to ask on: give '--yes'")]
    NobodyToAsk,
    #[error("a roll-forward with a new secret was begun: finish it first")]
    AnotherBegun,
    #[error("session 2 has switched already: the roll-forward can only be completed")]
    Switched,
    #[error("CAS cannot be asked what it holds: {reason}")]
    NoAnswer { reason: String },
    #[error("CAS was not wiped, but restored: it holds session '{held}', but not '{lost}'")]
    Restored { held: String, lost: String },
    #[error("CAS was not wiped: it holds session '{held}'")]
    NotWiped { held: String },
    #[error("not confirmed; nothing was changed")]
    NotConfirmed,
}

impl Concern for RotationError {
    fn exit(&self) -> Exit {
        match self {
            RotationError::NobodyToAsk => Exit::Usage,
            _ => Exit::Precondition,
        }
    }
}

/// Fails early if it is to be asked before the old codes die, and there is nobody to ask. `yes`: nobody is to be asked.
pub fn check_somebody_confirms(yes: bool) -> Result<(), Failure> {
    if yes || prompt::is_interactive() { Ok(()) } else { Err(RotationError::NobodyToAsk.into()) }
}

impl Pending {
    fn keeps_secret(&self, state: &State) -> bool {
        self.secret_version == state.secret_version
    }

    /// Whether it took over from one that was to keep the secret: session 2 may be on the volume between.
    fn takes_over(&self, state: &State) -> bool {
        self.volume_version > state.volume_version + 1
    }

    /// What both sessions are about in the end.
    fn new_versions(&self) -> Versions {
        Versions::only(self.volume_version, self.secret_version)
    }

    /// What session 1 declares in between: all that is old or new. Its services are still on the old.
    fn both_versions(&self, state: &State) -> Versions {
        let (volume, secret) = (state.volume_version, state.secret_version);
        Versions {
            volume,
            secret,
            declared_volumes: (volume..=self.volume_version).collect(),
            declared_secrets: (secret..=self.secret_version).collect(),
        }
    }
}

/// What a session may be about. While a roll-forward is under way that is what it was about before, what the roll-forward makes
/// of it in between, and in the end. (The namespace is about none of it.)
pub fn expected(state: &State) -> Vec<(&'static str, Versions)> {
    let old = Versions::current(state);
    let Some(pending) = &state.pending else { return vec![("as it should be", old)] };
    let mut expected = vec![
        ("as it was before the roll-forward", old),
        ("with the new declared beside the old", pending.both_versions(state)),
        ("as the roll-forward leaves it", pending.new_versions()),
    ];
    if pending.takes_over(state) {
        let (volume_version, secret_version) = (state.volume_version + 1, state.secret_version);
        let given_up = Pending { volume_version, secret_version, ..pending.clone() };
        expected.push(("with the volume that was begun beside the old", given_up.both_versions(state)));
        expected.push(("on the volume that was begun", given_up.new_versions()));
    }
    expected
}

/// A roll-forward of an account.
pub struct Rotation {
    pub account: Account,
    /// Nobody is asked.
    pub yes: bool,
}

impl Rotation {
    /// Begins one, or goes on with one that was begun. With `code` the secret stays, and only the volume is new.
    pub fn forward(&mut self, code: Option<&Source>) -> Result<String, Failure> {
        self.account.check_cas()?;
        // One of our own that was cut off is gone on with.
        unconfirmed(&self.account)?;
        let keep_secret = code.is_some();
        let image = self.account.check_image();
        if self.account.state.pending.is_none() || keep_secret {
            image?
        } else {
            notice(image)
        }
        let is_keeping = |state: &State| state.pending.as_ref().is_some_and(|to| !to.undo && to.keeps_secret(state));
        let abandons = !keep_secret && is_keeping(&self.account.state);
        if abandons {
            self.abandon_keeping()?;
        }
        let mut to = match self.account.state.pending.clone() {
            Some(Pending { undo: true, .. }) => return self.undo(),
            Some(pending) if keep_secret && !pending.keeps_secret(&self.account.state) => {
                // Unless it is under way.
                self.account.lock()?;
                return Err(Failure::from(RotationError::AnotherBegun).hints(self.finishing()));
            }
            Some(pending) => {
                step("continuing the roll-forward that was begun");
                pending
            }
            None => Pending {
                volume_version: self.account.state.volume_version + 1,
                secret_version: self.account.state.secret_version + u32::from(!keep_secret),
                uploads_done: 0,
                undo: false,
            },
        };
        self.check_templates(&to)?;
        // Also about one that was cut off, as long as it can be undone.
        if to.uploads_done < 2 && !abandons {
            self.confirm(self.question(keep_secret))?;
        }
        let lock = self.account.lock()?.passed_on()?;
        if self.account.state.pending.is_none() {
            // Recorded before CAS is changed.
            self.record(&lock, Some(&to))?;
        }
        self.carry_out(lock, &mut to, code).map_err(|failure| self.part_way(failure))
    }

    fn check_templates(&self, to: &Pending) -> Result<(), Failure> {
        render(&self.account, &Session::Otpqr, &to.both_versions(&self.account.state))?;
        render(&self.account, &Session::Reset, &to.new_versions()).map(drop)
    }

    fn question(&self, keep_secret: bool) -> String {
        let (issuer, login) = (&self.account.state.issuer, self.account.state.label());
        if keep_secret {
            format!("The volume of '{issuer}', '{login}' is replaced; its codes stay valid. Go on?")
        } else {
            format!("All codes of '{issuer}', '{login}' stop working at once. Go on?")
        }
    }

    /// The command that finishes what was begun.
    fn finishing(&self) -> Option<String> {
        self.account.state.finishing(&self.account.name)
    }

    /// The command that takes back what was begun, as long as that can be.
    fn undoing(&self) -> Option<String> {
        let begun = self.account.state.pending.as_ref()?;
        let can_be = begun.uploads_done < 2 && !begun.takes_over(&self.account.state);
        let command = " --undo   # takes it back, if the old codes still live";
        can_be.then(|| self.account.script("roll_forward", command))
    }

    fn part_way(&self, failure: Failure) -> Failure {
        match self.finishing() {
            Some(command) => failure.part_way(format!("{command}   # goes on"), self.undoing()),
            None => failure,
        }
    }

    /// A roll-forward that keeps the secret cannot be finished without a code. Without one it becomes one with a new secret -
    /// and with another volume, since the marker of the one that was begun may be taken. First what CAS holds has to be known.
    fn abandon_keeping(&mut self) -> Result<(), Failure> {
        let Some(mut to) = self.account.state.pending.clone() else { return Ok(()) };
        let (both, new) = (to.both_versions(&self.account.state), to.new_versions());
        self.confirm(format!(
            "Abandon the unfinished --keep-secret run? All codes of '{}', '{}' stop working.",
            self.account.state.issuer,
            self.account.state.label()
        ))?;
        self.prepare(&to)?;
        let lock = self.account.lock()?.passed_on()?;
        let reached =
            self.upload(&lock, &mut to, 0, &Session::Otpqr, &both, "finding out how far the one that was begun got");
        let switching = "switching session 2 to the volume begun";
        reached
            .and_then(|()| self.upload(&lock, &mut to, 1, &Session::Reset, &new, switching))
            .map_err(|failure| self.part_way(failure))?;
        // Killed just before it recorded its end.
        if compare(&self.account, &Session::Otpqr, &new)? == Held::Same {
            self.switch_programs(&lock, &to, &new)?;
            self.upload(&lock, &mut to, 2, &Session::Otpqr, &new, "the interrupted run had finished")?;
            return self.finish(&lock, &to);
        }
        let volume_version = self.account.state.volume_version + 2;
        let secret_version = self.account.state.secret_version + 1;
        self.record(&lock, Some(&Pending { volume_version, secret_version, uploads_done: 0, undo: false }))
    }

    /// The intention `to` is recorded; from here on a failure is one part-way.
    fn carry_out(&mut self, lock: Lock, to: &mut Pending, code: Option<&Source>) -> Result<String, Failure> {
        let old_label = self.account.state.label();
        let (both, new) = (to.both_versions(&self.account.state), to.new_versions());
        let switching = match code {
            Some(_) => "switching session 2 to the new volume",
            None if Session::dependent(&self.account.state).is_empty() => {
                "switching: from here on the old codes are dead"
            }
            None => "switching session 2, and then the programs",
        };
        if to.uploads_done == 0 && (!self.account.state.programs.is_empty() || !self.account.state.approvals.is_empty())
        {
            // Of a run of protect.rs, or of approve.rs, that was cut off.
            let current = Versions::current(&self.account.state);
            adopt(&mut self.account, &Session::Otpqr, &current);
        }
        self.upload(&lock, to, 0, &Session::Otpqr, &both, "declaring the new beside the old")?;
        self.upload(&lock, to, 1, &Session::Reset, &new, switching)?;
        let are_all_switched = self.switch_programs(&lock, to, &new)?;
        let lock = match code {
            None => lock,
            Some(source) => {
                // A person is asked.
                drop(lock);
                self.take_marker(source, to)?;
                self.account.lock()?.passed_on()?
            }
        };
        self.upload(&lock, to, 2, &Session::Otpqr, &new, "dropping the old")?;
        if !are_all_switched {
            step("from here on the old codes are dead");
        }
        self.finish(&lock, to)?;
        Ok(match code {
            Some(_) => {
                format!("rolled forward: account '{}' has a new volume; its codes stay valid", self.account.name)
            }
            None => self.report(&old_label, "every code of the old secret is refused"),
        })
    }

    /// One of the three uploads, if it was not yet recorded: recorded when CAS has answered, recognised if it had happened.
    fn upload(
        &mut self,
        lock: &Lock,
        to: &mut Pending,
        number: usize,
        session: &Session,
        versions: &Versions,
        doing: &str,
    ) -> Result<(), Failure> {
        // The last is repeated in any case: what the state says is believed only as far as CAS confirms it.
        if number < to.uploads_done.min(2) {
            return Ok(());
        }
        step(doing);
        let uploaded = upload(&mut self.account, session, versions);
        let is_refused = uploaded.as_ref().is_err_and(Failure::is_refusal);
        if number == 0 && is_refused && !to.takes_over(&self.account.state) {
            // CAS said no, and holds what it held: nothing was begun.
            self.record(lock, None)?;
        }
        uploaded?;
        to.uploads_done = number + 1;
        self.record(lock, Some(to))
    }

    /// What asks for codes of the old secret asks for those of the new one. (After session 2, so that it alone tells whether there is
    /// a way back; and again until the last upload is done: what is so already is left alone.)
    /// Whether all are.
    fn switch_programs(&mut self, lock: &Lock, to: &Pending, new: &Versions) -> Result<bool, Failure> {
        if to.keeps_secret(&self.account.state) {
            return Ok(true);
        }
        let dependent = Session::dependent(&self.account.state);
        let current = Versions::current(&self.account.state);
        let mut are_all_switched = true;
        for session in &dependent {
            step(format!("switching '{}'", session.name(&self.account)));
            adopt(&mut self.account, session, &current);
            match upload(&mut self.account, session, new) {
                Ok(_) => {}
                // What CAS does not take must not keep old codes alive elsewhere. Here they die with the last upload: CAS then finds
                // nothing where the session imports the old secret from.
                Err(failure) if failure.is_refusal() || failure.is_part_way() => {
                    self.leave(session, failure);
                    are_all_switched = false;
                }
                Err(failure) => return Err(failure),
            }
            self.account.record(lock)?;
        }
        if !dependent.is_empty() && are_all_switched {
            step("from here on the old codes are dead");
        }
        Ok(are_all_switched)
    }

    /// The program that a session is about is left as it is: nobody can start it until it is protected again.
    fn leave(&mut self, session: &Session, failure: Failure) {
        if let Session::Approval(owner) = session {
            step(format!("starts of '{owner}' cannot be granted: {}", failure.into_finding().0));
            return;
        }
        let Some(name) = session.program() else { return };
        step(format!("'{name}' cannot be started until it is protected again: {}", failure.into_finding().0));
        if let Some(program) = self.account.state.programs.get_mut(name) {
            program.pending = true;
        }
    }

    fn record(&mut self, lock: &Lock, pending: Option<&Pending>) -> Result<(), Failure> {
        self.account.state.pending = pending.cloned();
        self.account.record(lock)
    }

    /// What was begun is what the account is about from now on.
    fn finish(&mut self, lock: &Lock, to: &Pending) -> Result<(), Failure> {
        discard(&self.account, lock)?;
        let state = &mut self.account.state;
        (state.volume_version, state.secret_version) = (to.volume_version, to.secret_version);
        self.record(lock, None)
    }

    /// The new volume's first start is session 2's, against a code: it takes the once-marker, so that session 1, which asks for
    /// none, issues nothing when it is moved to the new volume. The QR code that comes with it is destroyed: nobody asked for it.
    fn take_marker(&self, source: &Source, to: &Pending) -> Result<(), Failure> {
        let state = &self.account.state;
        let presentation = Presentation {
            account: &self.account,
            source,
            prompt: format!("Code for '{}', '{}'", state.issuer, state.label()),
            // Nothing could be started before to measure it.
            start_takes: Duration::from_secs(2),
            spent: None,
            remains: "run the same command again to go on, or, without a code, one without '--keep-secret'".to_owned(),
        };
        let service = format!("{}/otpqr-reset/otpqr", state.namespace);
        let doing = "starting the confidential program on the new volume";
        let (output, _) = Output::issue_with_code(presentation, &service, doing, || self.prepare(to))?;
        step(format!("the QR code that came with it is not needed: {}", output.destroy()?));
        Ok(())
    }

    /// Where the program may write, on the volume begun. A QR code that a run which was cut off left there is destroyed.
    fn prepare(&self, to: &Pending) -> Result<Output<'_>, Failure> {
        let prepare = || Output::prepare(&self.account, to.volume_version);
        let output = prepare()?;
        if !output.is_complete() {
            return Ok(output);
        }
        step(format!("the QR code that the last run left is not needed: {}", output.destroy()?));
        prepare()
    }

    /// Back to the old alone, which is possible until session 2 has switched.
    pub fn undo(&mut self) -> Result<String, Failure> {
        self.account.check_cas()?;
        let Some(mut to) = self.account.state.pending.clone() else {
            return Ok(format!("nothing to undo: no roll-forward of account '{}' was begun", self.account.name));
        };
        unconfirmed(&self.account)?;
        notice(self.account.check_image());
        let lock = self.account.lock()?.passed_on()?;
        let state = &self.account.state;
        let (both, new) = (to.both_versions(state), to.new_versions());
        let has_switched = to.uploads_done >= 2
            || to.takes_over(state)
            || compare(&self.account, &Session::Reset, &new)? == Held::Same;
        if has_switched {
            let failure = Failure::from(RotationError::Switched).hints(self.finishing());
            return Err(if to.keeps_secret(state) {
                failure.hint(self.account.script("roll_forward", "   # without a code: new secret"))
            } else {
                failure
            });
        }
        if !to.undo {
            // Session 1 is brought to where its hash is known; then the intention is turned round.
            self.upload(&lock, &mut to, 0, &Session::Otpqr, &both, "finding out how far it got")?;
            to.undo = true;
            self.record(&lock, Some(&to))?;
        }
        step("dropping what was declared beside the old");
        let old = Versions::current(&self.account.state);
        upload(&mut self.account, &Session::Otpqr, &old)?;
        self.record(&lock, None)?;
        Ok(format!("undone: account '{}' is as it was; its codes stay valid", self.account.name))
    }

    /// CAS holds nothing of this account any more: everything is uploaded as if for the first time, with a new secret and a new
    /// volume, since CAS has lost the old ones.
    pub fn start_anew(&mut self) -> Result<String, Failure> {
        // The simulated one may be back on other ports.
        let simulated = self.account.tools.start_simulated_cas()?;
        let address = simulated.as_ref().unwrap_or(&self.account.state.cas).address.clone();
        notice(self.account.check_image());
        let old_label = self.account.state.label();
        // Asked before the command line trusts that CAS, and can ask it what it holds.
        self.confirm(format!("Trust the CAS at '{address}', and upload account '{}' anew to it?", self.account.name))?;
        let cas = self.account.tools.attest(&address, simulated, None, &self.account.state.attestation)?;
        self.account.state.cas = if self.account.tools.simulator.is_some() {
            cas
        } else {
            // Where programs find it was said.
            let State { cas: Cas { enclave_address, network, .. }, .. } = self.account.state.clone();
            Cas { enclave_address, network, ..cas }
        };
        let lock = self.account.lock()?.passed_on()?;
        self.check_wiped()?;
        discard(&self.account, &lock)?;
        let state = &mut self.account.state;
        (state.volume_version, state.secret_version) = (state.volume_version + 1, state.secret_version + 1);
        Session::all(state).into_iter().for_each(|session| session.forget(state));
        // Each is uploaded again when it is needed: what it is about was lost, too.
        state.approvals.clear();
        for program in state.programs.values_mut() {
            // Its secrets are lost as well, and so is what its volumes were sealed with.
            (program.volume_version, program.pending) = (program.volume_version + 1, !program.removed);
        }
        // From here on `create` can finish it, too.
        self.record(&lock, None)?;
        let create = self.account.script("create", "   # goes on");
        upload_each(&mut self.account, &lock, &Session::OF_ACCOUNT, &create)
            .map_err(|failure| failure.part_way(create, None))?;
        let mut report = self.report(&old_label, "CAS has lost the old ones");
        for (name, program) in self.account.state.programs.iter().filter(|(_, program)| !program.removed) {
            let given = program.secrets.iter().filter(|(_, from)| from.is_given());
            let given: String = given.map(|(secret, from)| format!(" --secret {secret}={}", from.file())).collect();
            let protect = self.account.script("protect", &format!(" {name}{given}"));
            report += &format!("\nprotect again, with new secrets: {}", hint::pasteable(&protect));
        }
        Ok(report)
    }

    /// Makes sure that CAS holds no session of the account.
    fn check_wiped(&self) -> Result<(), Failure> {
        let state = &self.account.state;
        let (mut held, mut lost) = (None, None);
        for session in Session::all(state) {
            match compare(&self.account, &session, &Versions::current(state))? {
                // What was never uploaded was not lost.
                Held::Nothing => lost = lost.or(session.known(state).0.map(|_| session.name(&self.account))),
                Held::Unknown(reason) => return Err(RotationError::NoAnswer { reason }.into()),
                Held::Same | Held::Different | Held::Replaced => held = held.or(Some(session.name(&self.account))),
            }
        }
        match (held, lost) {
            // The last upload was recorded: CAS was put back to when it held less. (Else `create` was cut off, and goes on.)
            (Some(held), Some(lost)) if state.reset_hash.is_some() => {
                Err(Failure::from(RotationError::Restored { held, lost }).hints(self.account.begin_anew()))
            }
            (Some(held), _) => {
                Err(Failure::from(RotationError::NotWiped { held }).hint(self.account.script("create", "")))
            }
            (None, _) => Ok(()),
        }
    }

    fn confirm(&self, question: String) -> Result<(), Failure> {
        if self.yes || prompt::confirm(&question, false, "nothing was changed")? {
            return Ok(());
        }
        Err(RotationError::NotConfirmed.into())
    }

    fn report(&self, old_label: &str, why: &str) -> String {
        let next = hint::pasteable(&self.account.script("gen_qr", ""));
        let (name, issuer, label) = (&self.account.name, &self.account.state.issuer, self.account.state.label());
        let granted = self.account.state.approvals.values().map(|Approval { account, program, .. }| {
            let void = hint::script("protect", account, &format!(" {program} --void-grants"));
            format!("\nwhat it granted of '{program}' stays granted, unless: {}", hint::pasteable(&void))
        });
        format!(
            "rolled forward: account '{name}' has a new secret and a new volume; {why}\n\
             delete from the authenticators: '{issuer}', '{old_label}'\n\
             next: {next}   # its entry will be '{issuer}', '{label}'{}",
            granted.collect::<String>()
        )
    }
}

/// What starts no program does not need the right one, and has to be finished before `create` can take a new one in.
fn notice(image: Result<(), Failure>) {
    if let Err(failure) = image {
        let (what, mend) = failure.into_finding();
        step(mend.map_or(what.clone(), |mend| format!("{what}; afterwards: {}", hint::pasteable(&mend))));
    }
}
