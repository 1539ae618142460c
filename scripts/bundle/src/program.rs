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
use crate::container::{Executable, Mount, Ready, Start};
use crate::failure::{Concern, Exit, Failure};
use crate::refusal::Answer;
use crate::relay::{Input, Relay, at_terminal};
use crate::state::{self, Program};
use crate::tool::{Finished, Running};

#[derive(Debug, thiserror::Error)]
enum ProgramError {
    #[error("account '{account}' has no program '{program}'")]
    Unknown { account: String, program: String },
    #[error("CAS may not hold what the state says of program '{program}': a run of 'protect' was cut off")]
    Pending { program: String },
    #[error("the policy of program '{program}' takes {takes} of its caller's arguments, and {given} were given")]
    Arguments { program: String, takes: usize, given: usize },
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
            Refused { .. } | AnotherProgram { .. } | Volume { .. } => Exit::Refused,
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
        let mut launch = Launch { account, name, program, arguments, mounts, publish, volumes, mounted, made, is_open };
        let directory = state::program_volumes(&account.root, &account.name, name);
        for (index, path) in program.volumes.iter().enumerate() {
            let host = directory.join(program.volume_name(index));
            if !host.exists() {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&host);
                made.map_err(|cause| ProgramError::NotMade { directory: host.display().to_string(), cause })?;
                launch.made.push(host.clone());
            }
            launch.volumes.push((host, path.clone()));
        }
        launch.check_volumes()?;
        Ok(launch)
    }

    /// Makes sure that no other runtime has a volume open: it would say so when the code is spent.
    fn check_volumes(&self) -> Result<(), Failure> {
        for (host, _) in &self.volumes {
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
        Ok(presentation.make(get_ready, &mut |ready, code| go(ready, Some(code)))?.0)
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
    let is_there = account.tools.has_image(image_id)?;
    let executable = Executable { path, files: Some(&mounted) };
    if is_there && (account.tools.runs_containers() || account.tools.measure(image_id, executable)? == *mrenclave) {
        return Ok(());
    }
    let another = ProgramError::AnotherImage { program: name.to_owned(), image: image.clone() };
    Err(Failure::from(another).hint(account.script("protect", &format!(" {name}   # updates the policies"))))
}

/// By what a program's containers are found.
pub(crate) fn label(account: &Account, name: &str) -> String {
    format!("otpqr.program={}/{name}/{}", account.state.namespace, account.name)
}
