//! A start of a protected program: what it needs, and its run as if its caller had started it.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, IsTerminal};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::account::Account;
use crate::caller::{Options, check_mounts, check_ports};
use crate::code::{self, Code, Presentation, Source};
use crate::container::{BUDGET, Executable, GATE, GRANTS, Mount, Ready, Start};
use crate::failure::{Concern, Exit, Failure};
use crate::permit;
use crate::refusal::Answer;
use crate::relay::{Input, Relay, at_terminal};
use crate::state::{self, Permit, Program};
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
    gate: Option<(&'a Permit, Vec<(PathBuf, String)>)>,
    /// Where something may be mounted.
    mounted: Vec<String>,
    is_open: bool,
    /// Of the host's sides of its volumes: those that it has to itself.
    own: Vec<PathBuf>,
    /// What the gate said of the start that it granted.
    granted: RefCell<Option<String>>,
    _sides: Volumes,
}

/// The host's sides of a program's volumes.
pub(crate) struct Volumes {
    directory: PathBuf,
    /// Made here: empty, they would stand in the way of one that is moved back.
    made: Vec<PathBuf>,
}

impl Volumes {
    pub fn of(account: &Account, program: &str) -> Volumes {
        let directory = state::program_volumes(&account.root, &account.name, program);
        Volumes { directory, made: Vec::new() }
    }

    /// The one of the volume with this name.
    pub fn host(&mut self, name: &str) -> Result<PathBuf, Failure> {
        let host = self.directory.join(name);
        if !host.exists() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&host);
            made.map_err(|cause| ProgramError::NotMade { directory: host.display().to_string(), cause })?;
            self.made.push(host.clone());
        }
        Ok(host)
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for directory in &self.made {
            // Unless something is in it now.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Starts what was got ready, with a code if there is one, and tells how it ended.
pub(crate) type Go<'a, R> = &'a mut dyn FnMut(R, Option<&Code>) -> Result<Finished, Failure>;

impl<'a> Launch<'a> {
    /// Makes sure that nothing stands in the way. `is_open`: of what starts without a code.
    pub fn prepare(account: &'a mut Account, options: &'a Options, is_open: bool) -> Result<Launch<'a>, Failure> {
        let name = options.given.program.as_str();
        check_program(account, name, options.given.arguments.len(), is_open)?;
        let program = known(account, name)?;
        let mounts = check_mounts(account, program, &options.given)?;
        let publish = check_ports(account, &options.publish)?;
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
        let (program, arguments) = (known(account, name)?, options.given.arguments.as_slice());
        let mut sides = Volumes::of(account, name);
        let mut volumes = Vec::new();
        for (index, path) in program.volumes.iter().enumerate() {
            volumes.push((sides.host(&program.volume_name(index))?, path.clone()));
        }
        let mut gate = program.gate().filter(|_| !is_open).map(|gate| (gate, Vec::new()));
        if let Some((_, volumes)) = &mut gate {
            volumes.push((sides.host(&program.starts_volume_name())?, BUDGET.to_owned()));
        }
        let own = volumes.iter().chain(gate.iter().flat_map(|(_, volumes)| volumes));
        let own: Vec<PathBuf> = own.map(|(host, _)| host.clone()).collect();
        check_free(account, name, &own)?;
        if program.needs_approval() && !is_open {
            let grants = (sides.host(&program.grants_volume_name())?, GRANTS.to_owned());
            gate.as_mut().map_or(&mut volumes, |(_, volumes)| volumes).push(grants);
            permit::check_granted(account, name, arguments, &mounts)?;
        }
        let mounted = program.mounted();
        Ok(Launch {
            account,
            name,
            program,
            arguments,
            mounts,
            publish,
            volumes,
            gate,
            mounted,
            is_open,
            own,
            granted: RefCell::default(),
            _sides: sides,
        })
    }

    /// Makes sure, when a code was typed, that everything still is as it was when that was asked for: nothing is held meanwhile.
    pub(crate) fn check_again(&self) -> Result<(), Failure> {
        self.account.check_unchanged()?;
        check_free(self.account, self.name, &self.own)
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
        if self.is_open {
            return format!("{}/{}/open", self.account.state.namespace, self.name);
        }
        service(self.account, self.name)
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
        let state = &self.account.state;
        let presentation = |source| Presentation {
            account: self.account,
            source,
            prompt: format!("Code for '{}', '{}' to start '{}'", state.issuer, state.label(), self.name),
            // What takes time is done by then.
            start_takes: Duration::from_secs(1),
            spent: None,
            remains: "nothing was started and no code was spent".to_owned(),
        };
        let Some((gate, volumes)) = &self.gate else {
            let Some(source) = source else { return go(get_ready()?, None) };
            return Ok(presentation(source).make(get_ready, &mut |ready, code| go(ready, Some(code)))?.0);
        };
        let at_the_gate = Start { image_id: &gate.image_id, executable: GATE, volumes, ..Start::of(self.account) };
        // The program waits, too: the gate's code is good for half a minute.
        let get_ready = || Ok((get_ready()?, self.account.tools.get_ready(&at_the_gate, None)?));
        let service = format!("{}/{}/{}/gate", state.namespace, self.name, self.account.name);
        let mut through = |(program, gate): (R, Ready), config_id: &str| {
            self.check_again()?;
            let dispensed = gate.go(config_id)?;
            if Answer::of(&dispensed).is_about_code() {
                return Ok(dispensed);
            }
            let code = self.dispensed(&dispensed)?;
            let started = go(program, Some(&code))?;
            match Answer::of(&started) {
                answer if answer.is_about_code() => Err(ProgramError::StartLost { reason: started.reason() }.into()),
                _ => Ok(started),
            }
        };
        let Some(source) = source else { return through(get_ready()?, &service) };
        Ok(presentation(source).make(&get_ready, &mut |ready, code| through(ready, &code.config_id(&service)))?.0)
    }

    /// The code that the gate dispensed, or why there is none.
    fn dispensed(&self, finished: &Finished) -> Result<Code, Failure> {
        let said = || finished.reason().trim_start_matches("gate: error: ").to_owned();
        match finished.code {
            _ if Answer::is_of_start(finished) => Err(self.explain(finished)),
            Some(0) => {
                let said = finished.stderr.lines().rev().find_map(|line| line.strip_prefix("gate: "));
                let said = said.unwrap_or("a start is taken");
                step(format!("gate: {said}"));
                self.granted.replace(Some(said.to_owned()));
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

    /// What the gate said of the start that it granted, if there is one.
    pub fn granted(&self) -> Option<String> {
        self.granted.borrow().clone()
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
        explain(self.account, self.name, finished)
    }
}

/// Why a program, or what stands before it, was not started, or could not go on.
pub(crate) fn explain(account: &Account, name: &str, finished: &Finished) -> Failure {
    let reason = finished.whole_reason();
    let protect = |rest: &str| account.script("protect", &format!(" {name}{rest}"));
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
            Failure::from(ProgramError::Refused { reason: finished.reason() }).hints(helps)
        }
        Answer::Host => Failure::from(ProgramError::Host { reason }).hints(helps),
        _ => Failure::from(ProgramError::NotStarted { reason }).hints(helps),
    }
}

/// Makes sure that no other runtime has one of these volumes open: it would say so when the code is spent.
pub(crate) fn check_free<'a>(
    account: &Account,
    name: &str,
    volumes: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<(), Failure> {
    for host in volumes {
        let opened = File::open(host);
        let opened = opened.map_err(|cause| ProgramError::NotMade { directory: host.display().to_string(), cause })?;
        if let Err(TryLockError::WouldBlock) = opened.try_lock() {
            let failure = Failure::from(ProgramError::InUse { program: name.to_owned() });
            if !account.tools.runs_containers() {
                return Err(failure);
            }
            let filter = format!("docker ps --filter label={}", label(account, name));
            return Err(failure.hint(filter));
        }
    }
    Ok(())
}

/// What CAS calls the service that a person starts.
pub(crate) fn service(account: &Account, name: &str) -> String {
    format!("{}/{name}/{}/program", account.state.namespace, account.name)
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

/// Makes sure that CAS holds what the state says of it.
pub(crate) fn check_settled(account: &Account, name: &str) -> Result<(), Failure> {
    if !known(account, name)?.pending {
        return Ok(());
    }
    let protect = account.script("protect", &format!(" {name}   # goes on"));
    Err(Failure::from(ProgramError::Pending { program: name.to_owned() }).hint(protect))
}

/// The same, and that it takes so many arguments.
pub(crate) fn check_program(account: &Account, name: &str, given: usize, is_open: bool) -> Result<(), Failure> {
    check_settled(account, name)?;
    let (name, found) = (name.to_owned(), known(account, name)?);
    if is_open && found.open.is_empty() {
        return Err(ProgramError::NothingOpen { program: name }.into());
    }
    let takes = if is_open { 0 } else { found.arguments() };
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
    if let Some(gate) = program.gate() {
        check_gate(account, name, gate)?;
    }
    if is_measured(account, image_id, Executable { path, files: Some(&mounted) }, mrenclave)? {
        return Ok(());
    }
    Err(another_image(account, name, image))
}

/// The same of the gate that stands before it, or notes what is granted.
pub(crate) fn check_gate(account: &Account, name: &str, gate: &Permit) -> Result<(), Failure> {
    if is_measured(account, &gate.image_id, GATE, &gate.mrenclave)? {
        return Ok(());
    }
    Err(another_image(account, name, &known(account, name)?.image))
}

fn is_measured(account: &Account, image_id: &str, executable: Executable, mrenclave: &str) -> Result<bool, Failure> {
    let tools = &account.tools;
    // An ID stands for its content; a directory does not.
    Ok(tools.has_image(image_id)? && (tools.runs_containers() || tools.measure(image_id, executable)? == mrenclave))
}

fn another_image(account: &Account, name: &str, image: &str) -> Failure {
    let another = ProgramError::AnotherImage { program: name.to_owned(), image: image.to_owned() };
    Failure::from(another).hint(account.script("protect", &format!(" {name}   # updates the policies")))
}

/// By what a program's containers are found.
pub(crate) fn label(account: &Account, name: &str) -> String {
    format!("otpqr.program={}/{name}/{}", account.state.namespace, account.name)
}
