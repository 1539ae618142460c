//! A start of a protected program: what it needs, and its run as if its caller had started it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, IsTerminal};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::account::Account;
use crate::caller::{Options, check_surroundings};
use crate::code::{self, Code, Presentation, Source};
use crate::container::{BUDGET, Executable, GATE, Mount, Ready, Start};
use crate::failure::{Concern, Exit, Failure};
use crate::refusal::Answer;
use crate::relay::{Input, Relay, at_terminal};
use crate::state::{self, Gate, Program};
use crate::step;
use crate::tool::{Finished, Running};

#[derive(Debug, thiserror::Error)]
enum ProgramError {
    #[error("account '{account}' has no program '{program}'")]
    Unknown { account: String, program: String },
    #[error("CAS may not hold what the state says of program '{program}': a run of 'protect' was cut off")]
    Pending { program: String },
    #[error("the policy of program '{program}' takes {takes} of its caller's arguments, and {given} were given")]
    Arguments { program: String, takes: usize, given: usize },
    #[error("no start is granted: {reason}")]
    NotGranted { reason: String },
    #[error("the gate cannot grant a start: {reason}")]
    Gate { reason: String },
    #[error("a start was taken, and its code not accepted: {reason}")]
    StartLost { reason: String },
    #[error("program '{program}' has nothing that starts without a code")]
    NothingOpen { program: String },
    #[error("what was measured of image '{image}', for program '{program}', is not there any more")]
    AnotherImage { program: String, image: String },
    #[error("cannot make the directory '{directory}': {cause}")]
    NotMade { directory: String, cause: io::Error },
    #[error("the start was refused: {reason}")]
    Refused { reason: String },
    #[error("the program is not the one in the policies: {reason}")]
    AnotherProgram { reason: String },
    #[error("a volume was refused: {reason}")]
    Volume { reason: String },
    #[error("a volume is in use: {reason}")]
    VolumeInUse { reason: String },
    #[error("CAS cannot be reached: {reason}")]
    NoChannel { reason: String },
    #[error("CAS itself cannot work: {reason}")]
    CasFailed { reason: String },
    #[error("this host cannot run the program: {reason}")]
    Host { reason: String },
    #[error("the program could not be started: {reason}")]
    NotStarted { reason: String },
    #[error("the program ran, and was broken off: {reason}")]
    BrokenOff { reason: String },
    #[error("a roll-forward of account '{account}' was begun but not finished: old codes may still start its programs")]
    RollForwardBegun { account: String },
    #[error(
        "a volume of program '{program}' is in use: it runs already, or what a killed run of 'start' left still does"
    )]
    InUse { program: String },
}

impl Concern for ProgramError {
    fn exit(&self) -> Exit {
        use ProgramError::*;
        match self {
            Arguments { .. } | NothingOpen { .. } => Exit::Usage,
            Refused { .. } | AnotherProgram { .. } | Volume { .. } | NotGranted { .. } => Exit::Refused,
            Gate { .. } => Exit::Other,
            StartLost { .. } => Exit::PartWay,
            BrokenOff { .. } => Exit::Other,
            _ => Exit::Precondition,
        }
    }
}

/// A start, with everything it needs.
pub struct Launch<'a> {
    pub(crate) account: &'a Account,
    pub(crate) name: &'a str,
    program: &'a Program,
    arguments: &'a [OsString],
    mounts: Vec<Mount>,
    publish: Vec<OsString>,
    volumes: Vec<(PathBuf, String)>,
    /// Of the gate before it, if there is one and it is not open.
    gate: Option<(&'a Gate, [(PathBuf, String); 1])>,
    /// Where something may be mounted.
    mounted: Vec<String>,
    /// Made for this start: empty, they would stand in the way of one that is moved back.
    made: Vec<PathBuf>,
    is_open: bool,
}

/// Starts what was got ready, with a code if there is one, and tells how it ended.
pub(crate) type Go<'a, R> = &'a mut dyn FnMut(R, Option<&Code>) -> Result<Finished, Failure>;

impl<'a> Launch<'a> {
    /// Makes sure that nothing stands in the way. `is_open`: of what starts without a code.
    pub fn prepare(account: &'a mut Account, options: &'a Options, is_open: bool) -> Result<Launch<'a>, Failure> {
        let name = options.program.as_str();
        check_program(account, options, is_open)?;
        let (mounts, publish) = check_surroundings(account, known(account, name)?, options)?;
        if let Some(command) = account.state.finishing(&account.name) {
            // Unless it is under way.
            account.lock()?;
            let account = account.name.clone();
            return Err(Failure::from(ProgramError::RollForwardBegun { account }).hint(command));
        }
        account.check_cas()?;
        check_image(account, name)?;
        account.check_policies()?;
        let account: &Account = account;
        let program = known(account, name)?;
        let (volumes, made, mounted) = (Vec::new(), Vec::new(), program.mounted());
        let arguments = &options.arguments;
        let gate = None;
        let mut launch =
            Launch { account, name, program, arguments, mounts, publish, volumes, gate, mounted, made, is_open };
        for (index, path) in program.volumes.iter().enumerate() {
            let host = launch.volume(&program.volume_name(index))?;
            launch.volumes.push((host, path.clone()));
        }
        if let Some(gate) = program.gate.as_ref().filter(|_| !is_open) {
            let host = launch.volume(&program.gate_volume_name())?;
            launch.gate = Some((gate, [(host, BUDGET.to_owned())]));
        }
        launch.check_volumes()?;
        Ok(launch)
    }

    /// The host's side of a volume.
    fn volume(&mut self, name: &str) -> Result<PathBuf, Failure> {
        let host = state::program_volumes(&self.account.root, &self.account.name, self.name).join(name);
        if !host.exists() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&host);
            made.map_err(|cause| ProgramError::NotMade { directory: host.display().to_string(), cause })?;
            self.made.push(host.clone());
        }
        Ok(host)
    }

    /// Makes sure that no other runtime has a volume open: it would say so when the code is spent.
    fn check_volumes(&self) -> Result<(), Failure> {
        for (host, _) in self.volumes.iter().chain(self.gate.iter().flat_map(|(_, volume)| volume)) {
            let opened = File::open(host);
            let opened =
                opened.map_err(|cause| ProgramError::NotMade { directory: host.display().to_string(), cause })?;
            if let Err(TryLockError::WouldBlock) = opened.try_lock() {
                let failure = Failure::from(ProgramError::InUse { program: self.name.to_owned() });
                if !self.account.tools.runs_containers() {
                    return Err(failure);
                }
                let filter = format!("docker ps --filter label={}", label(self.account, self.name));
                return Err(failure.hint(filter));
            }
        }
        Ok(())
    }

    /// Makes sure, when a code was typed, that everything still is as it was when that was asked for: nothing is held meanwhile.
    pub(crate) fn check_again(&self) -> Result<(), Failure> {
        self.account.check_unchanged()?;
        self.check_volumes()
    }

    pub(crate) fn start<'b>(&'b self, options: &'b [OsString]) -> Start<'b> {
        let Account { state, .. } = self.account;
        let command = if self.is_open { &self.program.open } else { &self.program.command };
        let path = command.first().map_or("", String::as_str);
        Start {
            cas: &state.cas,
            image_id: &self.program.image_id,
            executable: Executable { path, files: Some(&self.mounted) },
            arguments: self.arguments,
            volumes: &self.volumes,
            mounts: &self.mounts,
            label: Some(label(self.account, self.name)),
            options,
        }
    }

    /// What CAS calls it.
    fn service(&self) -> String {
        let (namespace, name) = (&self.account.state.namespace, self.name);
        if self.is_open {
            format!("{namespace}/{name}/open")
        } else {
            format!("{namespace}/{name}/{}/program", self.account.name)
        }
    }

    /// What docker is told for this start, and what it then calls the container.
    pub(crate) fn container(&self, more: &[&str]) -> (Vec<OsString>, String) {
        let container = format!("otpqr-{}-{}-{:x}", self.name, std::process::id(), code::since_1970().subsec_nanos());
        let options = more.iter().map(OsString::from).chain([format!("--name={container}").into()]);
        (options.chain(self.publish.iter().cloned()).collect(), container)
    }

    /// Gets it ready, has `go` start it - with a code, unless it is open - and returns how it ended.
    pub(crate) fn present<R>(
        &self,
        source: Option<&Source>,
        get_ready: &dyn Fn() -> Result<R, Failure>,
        go: Go<R>,
    ) -> Result<Finished, Failure> {
        let Some(source) = source else { return go(get_ready()?, None) };
        let state = &self.account.state;
        let presentation = Presentation {
            account: self.account,
            source,
            prompt: format!("Code for '{}', '{}' to start '{}'", state.issuer, state.label(), self.name),
            // What takes time is done by then.
            start_takes: Duration::from_secs(1),
            spent: None,
            remains: "nothing was started and no code was spent".to_owned(),
        };
        let Some((gate, volumes)) = &self.gate else {
            return Ok(presentation.make(get_ready, &mut |ready, code| go(ready, Some(code)))?.0);
        };
        let at_the_gate = Start { image_id: &gate.image_id, executable: GATE, volumes, ..Start::of(self.account) };
        // The program waits, too: the gate's code is good for half a minute.
        let get_ready = || Ok((get_ready()?, self.account.tools.get_ready(&at_the_gate, None)?));
        let service = format!("{}/{}/{}/gate", state.namespace, self.name, self.account.name);
        let finished = presentation.make(&get_ready, &mut |(program, gate), code| {
            self.check_again()?;
            let dispensed = gate.go(&code.config_id(&service))?;
            if Answer::of(&dispensed).is_about_code() {
                return Ok(dispensed);
            }
            let code = self.dispensed(&dispensed)?;
            let started = go(program, Some(&code))?;
            match Answer::of(&started) {
                answer if answer.is_about_code() => Err(ProgramError::StartLost { reason: started.reason() }.into()),
                _ => Ok(started),
            }
        });
        Ok(finished?.0)
    }

    /// The code that the gate dispensed, or why there is none.
    fn dispensed(&self, finished: &Finished) -> Result<Code, Failure> {
        let said = || finished.reason().trim_start_matches("gate: error: ").to_owned();
        match finished.code {
            _ if Answer::is_of_start(finished) => Err(self.explain(finished)),
            Some(0) => {
                step(
                    finished
                        .stderr
                        .lines()
                        .rfind(|line| line.starts_with("gate: "))
                        .unwrap_or("gate: a start is taken"),
                );
                Ok(Code::dispensed(&finished.stdout)?)
            }
            Some(10) => {
                let failure = Failure::from(ProgramError::NotGranted { reason: said() });
                match self.program.starts() {
                    Some(starts) if said().ends_with("taken") => {
                        let more = format!(" {} --starts {}   # grants one more", self.name, starts + 1);
                        Err(failure.hint(self.account.script("protect", &more)))
                    }
                    _ => Err(failure),
                }
            }
            _ => Err(ProgramError::Gate { reason: said() }.into()),
        }
    }

    pub(crate) fn config_id(&self, code: Option<&Code>) -> String {
        code.map_or_else(|| self.service(), |code| code.config_id(&self.service()))
    }

    /// Runs it as if its caller had started it. Returns its exit code.
    pub fn run(&self, source: Option<&Source>) -> Result<u8, Failure> {
        let tools = &self.account.tools;
        let input = if source.is_some_and(Source::is_standard_input) { Input::Nothing } else { Input::Callers };
        let has_terminal = at_terminal() && input == Input::Callers;
        let (options, container) =
            self.container(if has_terminal { &["--interactive", "--tty"] } else { &["--interactive"] });
        let start = self.start(&options);
        let get_ready = || {
            let streams = if tools.runs_containers() { Relay::of_container } else { Relay::natively };
            let (relay, streams) = streams(input)?;
            let ready = tools.get_ready(&start, Some(streams))?;
            if !ready.has_ended() {
                return Ok((relay, ready));
            }
            let ended = ready.hand_over("")?.finish_through()?;
            Err(self.explain(&Finished { stderr: relay.unshown(), ..ended }))
        };
        let mut forward = |program: &Running, signal: Signal| {
            // What the terminal's keys do reaches a program on this host by itself.
            let by_key = [Signal::INT, Signal::QUIT].contains(&signal) && io::stdin().is_terminal();
            if tools.runs_containers() {
                let number = format!("--signal={}", signal.as_raw());
                // If it has ended meanwhile, that was all.
                let _ = tools.engine.run_through(&["kill", &number, &container].map(OsString::from));
            } else if !by_key {
                let _ = program.signal(signal);
            }
        };
        let mut broken_off = None;
        let finished = self.present(source, &get_ready, &mut |(relay, ready): (Relay, Ready), code| {
            self.check_again()?;
            let running = ready.hand_over(&self.config_id(code))?;
            let finished = relay.run(running, code, &mut forward)?;
            if finished.stderr.is_empty() || Answer::is_of_start(&finished) {
                return Ok(finished);
            }
            broken_off = Some(finished.whole_reason());
            Ok(Finished { stderr: String::new(), ..finished })
        })?;
        if let Some(reason) = broken_off {
            return Err(ProgramError::BrokenOff { reason }.into());
        }
        match finished.code.map(u8::try_from) {
            Some(Ok(code)) if finished.stderr.is_empty() => Ok(code),
            _ => Err(self.explain(&finished)),
        }
    }

    /// Why it was not started, or could not go on.
    pub(crate) fn explain(&self, finished: &Finished) -> Failure {
        let (account, reason) = (self.account, finished.whole_reason());
        let protect = |rest: &str| account.script("protect", &format!(" {}{rest}", self.name));
        let helps = account.remedy(&finished.stderr);
        match Answer::of(finished) {
            Answer::Volume => Failure::from(ProgramError::Volume { reason })
                .hint(protect(" --new-volumes   # if it cannot be put back: what was in it is lost")),
            Answer::VolumeInUse => ProgramError::VolumeInUse { reason }.into(),
            Answer::NoChannelToCas => ProgramError::NoChannel { reason: finished.reason() }.into(),
            Answer::CasFailed => Failure::from(ProgramError::CasFailed { reason: finished.reason() }).hints(helps),
            Answer::Measurement => {
                Failure::from(ProgramError::AnotherProgram { reason }).hint(protect("   # updates the policies"))
            }
            Answer::Refused | Answer::CodeUsed | Answer::CodeInvalid | Answer::TooManyCodes => {
                ProgramError::Refused { reason: finished.reason() }.into()
            }
            Answer::Host => Failure::from(ProgramError::Host { reason }).hints(helps),
            _ => Failure::from(ProgramError::NotStarted { reason }).hints(helps),
        }
    }
}

impl Drop for Launch<'_> {
    fn drop(&mut self) {
        for directory in &self.made {
            // Unless something is in it now.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// A program that can be started.
pub fn known<'a>(account: &'a Account, name: &str) -> Result<&'a Program, Failure> {
    let known = account.state.programs.get(name).filter(|program| !program.removed);
    known.ok_or_else(|| {
        let (account_name, program) = (account.name.clone(), name.to_owned());
        Failure::from(ProgramError::Unknown { account: account_name, program })
            .hint(account.script("protect", &format!(" {name} --image IMAGE")))
    })
}

fn check_program(account: &Account, options: &Options, is_open: bool) -> Result<(), Failure> {
    let (name, found) = (options.program.clone(), known(account, &options.program)?);
    if found.pending {
        let protect = account.script("protect", &format!(" {name}   # goes on"));
        return Err(Failure::from(ProgramError::Pending { program: name }).hint(protect));
    }
    if is_open && found.open.is_empty() {
        return Err(ProgramError::NothingOpen { program: name }.into());
    }
    let (takes, given) = (if is_open { 0 } else { found.arguments() }, options.arguments.len());
    if takes != given {
        // SCONE passes over too many, and finds out that one is missing when the code is spent.
        return Err(ProgramError::Arguments { program: name, takes, given }.into());
    }
    Ok(())
}

/// Makes sure that the image is still the one whose measurement is in the policies.
pub fn check_image(account: &Account, name: &str) -> Result<(), Failure> {
    let program = known(account, name)?;
    let (Program { image, image_id, command, mrenclave, .. }, mounted) = (program, program.mounted());
    let path = command.first().map_or("", String::as_str);
    // An ID stands for its content; a directory does not.
    let tools = &account.tools;
    let is_there = |image_id: &str, executable: Executable, mrenclave: &str| -> Result<bool, Failure> {
        let is_there = tools.has_image(image_id)?;
        Ok(is_there && (tools.runs_containers() || tools.measure(image_id, executable)? == mrenclave))
    };
    let gate = program.gate.as_ref();
    let has_gate = gate.map_or(Ok(true), |gate| is_there(&gate.image_id, GATE, &gate.mrenclave))?;
    if has_gate && is_there(image_id, Executable { path, files: Some(&mounted) }, mrenclave)? {
        return Ok(());
    }
    let another = ProgramError::AnotherImage { program: name.to_owned(), image: image.clone() };
    Err(Failure::from(another).hint(account.script("protect", &format!(" {name}   # updates the policies"))))
}

/// By what a program's containers are found.
pub(crate) fn label(account: &Account, name: &str) -> String {
    format!("otpqr.program={}/{name}/{}", account.state.namespace, account.name)
}
