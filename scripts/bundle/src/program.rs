//! A start of a protected program: what it needs, its run as if its caller had started it, or as a service that goes on alone.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::account::Account;
use crate::code::{self, Code, Presentation, Source};
use crate::container::{Executable, Mount, Ready, Start};
use crate::failure::{Concern, Exit, Failure};
use crate::interrupt;
use crate::refusal::Answer;
use crate::relay::{Input, Relay, at_terminal};
use crate::state::{self, Program, is_open_to_others};
use crate::step;
use crate::tool::{Finished, Running, Streams, Tool};

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
    #[error(
        "nothing of this host's may be mounted at '{path}': it is no '--mount-point' that program '{program}' was protected with"
    )]
    NoMountPoint { program: String, path: String },
    #[error("'{directory}' is no directory that can be mounted")]
    NoDirectory { directory: String },
    #[error("on platform '{platform}' a mount cannot be read-only: leave 'readonly' out")]
    NoReadonly { platform: &'static str },
    #[error("on platform '{platform}' the program is on this host's network: '{publish}' cannot move its port")]
    NotMoved { platform: &'static str, publish: String },
    #[error("cannot make the directory '{directory}': {cause}")]
    NotMade { directory: String, cause: io::Error },
    #[error("the log '{file}' cannot be used: {cause}")]
    NoLog { file: String, cause: io::Error },
    #[error("the log '{file}' must be a file that only you can read")]
    LogOpen { file: String },
    #[error("'sed', which masks the code in the log, was not found")]
    NoSed,
    #[error("program '{program}' cannot be stopped: {reason}")]
    NotStopped { program: String, reason: String },
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
    #[error("another start of '{program}' as a service is under way")]
    Starting { program: String },
    #[error("the program ended at once, with status {status}: see the log '{log}'")]
    EndedAtOnce { status: String, log: String },
}

impl Concern for ProgramError {
    fn exit(&self) -> Exit {
        use ProgramError::*;
        match self {
            Arguments { .. } | NothingOpen { .. } | NoMountPoint { .. } | NoReadonly { .. } | NotMoved { .. } => {
                Exit::Usage
            }
            Refused { .. } | AnotherProgram { .. } | Volume { .. } => Exit::Refused,
            NotStopped { .. } | EndedAtOnce { .. } | BrokenOff { .. } => Exit::Other,
            _ => Exit::Precondition,
        }
    }
}

/// Which program, and what its caller gives it.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The program, as protect.rs named it
    #[arg(value_parser = state::program_name)]
    pub program: String,
    /// What the policy leaves to the caller, in the places it says
    #[arg(last = true, value_name = "ARG")]
    pub arguments: Vec<OsString>,
    /// Have the program see a directory of this host at one of its mount points: type=bind,src=DIR,dst=PATH[,readonly]
    #[arg(long, value_name = "MOUNT", value_parser = parse_mount)]
    pub mount: Vec<Mount>,
    /// Reach a port of the program's from outside, as docker has it: [[IP:]PORT:]PORT
    #[arg(long, value_name = "PORTS", value_parser = parse_publish)]
    pub publish: Vec<Publish>,
}

/// A port of a container's that the host has.
#[derive(Debug, Clone)]
pub struct Publish {
    text: String,
    is_same: bool,
}

/// A `--mount` as docker has it, of a directory.
fn parse_mount(text: &str) -> Result<Mount, String> {
    let (mut host, mut inside, mut is_readonly, mut is_bind) = (None, None, false, false);
    for field in fields(text) {
        match field.split_once('=').unwrap_or((&field, "")) {
            ("type", "bind") => is_bind = true,
            ("src" | "source", path) => host = Some(PathBuf::from(path)),
            ("dst" | "destination" | "target", path) => inside = Some(path.to_owned()),
            ("readonly" | "ro", "" | "true" | "1") => is_readonly = true,
            _ => return Err(format!("'{field}' is not taken")),
        }
    }
    match (host, inside) {
        (Some(host), Some(inside)) if is_bind && inside.starts_with('/') => {
            // As protect.rs has it: without what a path can do without.
            let inside = Path::new(&inside).components().collect::<PathBuf>().to_string_lossy().into_owned();
            Ok(Mount { host, inside, is_readonly })
        }
        _ => Err("must be type=bind,src=DIR,dst=PATH, PATH being absolute".to_owned()),
    }
}

/// The fields of CSV, which docker reads a `--mount` as: one with a comma in it is in quotes.
fn fields(text: &str) -> Vec<String> {
    let (mut fields, mut is_quoted) = (vec![String::new()], false);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match (c, fields.last_mut()) {
            ('"', Some(field)) if is_quoted && characters.next_if_eq(&'"').is_some() => field.push('"'),
            ('"', _) => is_quoted = !is_quoted,
            (',', _) if !is_quoted => fields.push(String::new()),
            (c, Some(field)) => field.push(c),
            (_, None) => {}
        }
    }
    fields
}

fn parse_publish(text: &str) -> Result<Publish, String> {
    let plain = text.strip_suffix("/tcp").or(text.strip_suffix("/udp")).unwrap_or(text);
    let ports: Vec<&str> = plain.rsplitn(3, ':').collect();
    let is_port = |text: &&str| text.parse::<u16>().is_ok_and(|port| port != 0);
    if !ports.iter().take(2).all(is_port) || text.starts_with('-') {
        return Err("must be [[IP:]PORT:]PORT".to_owned());
    }
    Ok(Publish { text: text.to_owned(), is_same: ports.len() < 3 && ports.first() == ports.last() })
}

/// How long a service must have run to count as started, if nothing says that it did.
const SETTLED: Duration = Duration::from_secs(3);
/// How long a service may take to end, until it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// A start, with everything it needs.
pub struct Launch<'a> {
    account: &'a Account,
    name: &'a str,
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

/// A service that was started.
pub enum Service {
    Container(String),
    Process(u32),
}

/// Starts what was got ready, with a code if there is one, and tells how it ended.
type Go<'a, R> = &'a mut dyn FnMut(R, Option<&Code>) -> Result<Finished, Failure>;

impl<'a> Launch<'a> {
    /// Makes sure that nothing stands in the way. `is_open`: of what starts without a code.
    pub fn prepare(account: &'a mut Account, options: &'a Options, is_open: bool) -> Result<Launch<'a>, Failure> {
        let name = options.program.as_str();
        check_program(account, options, is_open)?;
        let (mounts, publish) = check_surroundings(account, options)?;
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
    fn check_again(&self) -> Result<(), Failure> {
        self.account.check_unchanged()?;
        self.check_volumes()
    }

    fn start<'b>(&'b self, options: &'b [OsString], label: String) -> Start<'b> {
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
            label: Some(label),
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
    fn container(&self, more: &[&str]) -> (Vec<OsString>, String) {
        let container = format!("otpqr-{}-{}-{:x}", self.name, std::process::id(), code::since_1970().subsec_nanos());
        let options = more.iter().map(OsString::from).chain([format!("--name={container}").into()]);
        (options.chain(self.publish.iter().cloned()).collect(), container)
    }

    /// Gets it ready, has `go` start it - with a code, unless it is open - and returns how it ended.
    fn present<R>(
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

    fn config_id(&self, code: Option<&Code>) -> String {
        code.map_or_else(|| self.service(), |code| code.config_id(&self.service()))
    }

    /// Runs it as if its caller had started it. Returns its exit code.
    pub fn run(&self, source: Option<&Source>) -> Result<u8, Failure> {
        let tools = &self.account.tools;
        let input = if source.is_some_and(Source::is_standard_input) { Input::Nothing } else { Input::Callers };
        let has_terminal = at_terminal() && input == Input::Callers;
        let (options, container) =
            self.container(if has_terminal { &["--interactive", "--tty"] } else { &["--interactive"] });
        let start = self.start(&options, label(self.account, self.name));
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

    /// Starts it as a service, which goes on when this ends. What it prints goes to `log`.
    pub fn detach(&self, source: Option<&Source>, log: &Path) -> Result<Service, Failure> {
        let tools = &self.account.tools;
        let log = Log::open(log)?;
        let (options, container) = self.container(&[]);
        let start = self.start(&options, label(self.account, self.name));
        let get_ready = || {
            let (streams, masking) = log.streams()?;
            let ready = tools.get_ready(&start, Some(streams))?;
            if !ready.has_ended() {
                return Ok((masking, ready));
            }
            let ended = ready.hand_over("")?.finish_through()?;
            Err(self.explain(&Finished { stderr: log.rest(masking)?, ..ended }))
        };
        let mut service = None;
        let finished = self.present(source, &get_ready, &mut |(masking, ready): (_, Ready), code| {
            self.check_again()?;
            let mut record = Record::open(self.account, self.name)?;
            let starting = || ProgramError::Starting { program: self.name.to_owned() };
            let Held::Free = record.hold()? else { return Err(starting().into()) };
            if tools.runs_containers() {
                record.write(&container)?;
            }
            let running = ready.hand_over(&self.config_id(code))?;
            let process = running.id().filter(|_| !tools.runs_containers());
            if let Some(process) = process {
                record.write(&process.to_string())?;
            }
            step("waiting whether it goes on running");
            let handed_over = Instant::now();
            while handed_over.elapsed() < SETTLED && !running.has_ended() && !interrupt::is_interrupted() {
                sleep(Duration::from_millis(20));
            }
            if running.has_ended() {
                let ended = running.finish_through()?;
                let said = log.rest(masking)?;
                let gave_up = ended.code == Some(134) && said.contains("[SCONE|FATAL]");
                return Ok(Finished { stderr: if gave_up { said } else { String::new() }, ..ended });
            }
            service = Some(process.map_or_else(|| Service::Container(container.clone()), Service::Process));
            Ok(Finished { code: Some(0), stdout: String::new(), stderr: String::new() })
        })?;
        match service {
            Some(service) => Ok(service),
            None if Answer::is_of_start(&finished) => Err(self.explain(&finished)),
            None => {
                let status = finished.code.map_or("of a signal".to_owned(), |code| code.to_string());
                Err(ProgramError::EndedAtOnce { status, log: log.path.display().to_string() }.into())
            }
        }
    }

    /// Why it was not started, or could not go on.
    fn explain(&self, finished: &Finished) -> Failure {
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

/// What the program is to see of this host, and be reached by.
fn check_surroundings(account: &Account, options: &Options) -> Result<(Vec<Mount>, Vec<OsString>), Failure> {
    let platform = account.tools.facts.name;
    let program = known(account, &options.program)?;
    let mut mounts = Vec::new();
    for mount in &options.mount {
        if !program.mount_points.contains(&mount.inside) {
            let (program, path) = (options.program.clone(), mount.inside.clone());
            return Err(ProgramError::NoMountPoint { program, path }.into());
        }
        let unusable = || ProgramError::NoDirectory { directory: mount.host.display().to_string() };
        let host = mount.host.canonicalize().ok().filter(|path| path.is_dir()).ok_or_else(unusable)?;
        if mount.is_readonly && !account.tools.runs_containers() {
            return Err(ProgramError::NoReadonly { platform }.into());
        }
        mounts.push(Mount { host, ..mount.clone() });
    }
    let mut publish = Vec::new();
    for port in &options.publish {
        if account.tools.simulator.is_none() {
            publish.push(format!("--publish={}", port.text).into());
        } else if !port.is_same {
            return Err(ProgramError::NotMoved { platform, publish: port.text.clone() }.into());
        }
    }
    Ok((mounts, publish))
}

/// By what a program's containers are found.
fn label(account: &Account, name: &str) -> String {
    format!("otpqr.program={}/{name}/{}", account.state.namespace, account.name)
}

/// The service that runs, if there is one.
pub fn running(account: &Account, name: &str) -> Result<Option<Service>, Failure> {
    let mut record = Record::open(account, name)?;
    let found = record.read()?;
    if account.tools.runs_containers() {
        let running = account.tools.containers(&label(account, name), "{{.Names}}")?;
        return Ok(running.contains(&found).then_some(Service::Container(found)));
    }
    // The service holds it, too.
    Ok(match record.hold()? {
        Held::Free => None,
        Held::ByAnother => found.parse().ok().map(Service::Process),
    })
}

/// Ends the service, if it runs. Whether it did.
pub fn stop(account: &Account, name: &str) -> Result<bool, Failure> {
    let not_stopped = |reason: String| ProgramError::NotStopped { program: name.to_owned(), reason };
    match running(account, name)? {
        None => Ok(false),
        Some(Service::Container(container)) => {
            let grace = format!("--time={}", GRACE.as_secs());
            let stopped = account.tools.engine.run_through(&["stop", &grace, &container].map(OsString::from))?;
            if stopped.success() { Ok(true) } else { Err(not_stopped(stopped.reason()).into()) }
        }
        Some(Service::Process(process)) => {
            end(process).map_err(|cause| not_stopped(cause.to_string()))?;
            Ok(true)
        }
    }
}

/// Has a process end that holds a service's record, or has ended meanwhile.
fn end(process: u32) -> io::Result<()> {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        handle => handle?,
    };
    for signal in [Signal::TERM, Signal::KILL] {
        pidfd_send_signal(&handle, signal)?;
        let patience = Timespec { tv_sec: GRACE.as_secs() as i64, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&patience))? > 0 {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// What service runs: a container's name, or a process. Whoever starts one holds the record, and so does a process on this host as
/// long as it runs: the number in it may be another's by then.
struct Record {
    path: PathBuf,
    file: File,
}

enum Held {
    Free,
    ByAnother,
}

impl Record {
    fn open(account: &Account, name: &str) -> Result<Record, Failure> {
        let directory = account.root.join("state/running");
        let path = directory.join(format!("{}.{name}", account.name));
        let open = || -> io::Result<File> {
            DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            options.custom_flags(OFlags::NOFOLLOW.bits() as i32).open(&path)
        };
        match open() {
            Ok(file) => Ok(Record { path, file }),
            Err(cause) => Err(ProgramError::NotMade { directory: path.display().to_string(), cause }.into()),
        }
    }

    fn failed(&self, cause: io::Error) -> Failure {
        ProgramError::NotMade { directory: self.path.display().to_string(), cause }.into()
    }

    /// Takes it, and has the programs that are started from now on hold it, too.
    fn hold(&mut self) -> Result<Held, Failure> {
        match self.file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(Held::ByAnother),
            Err(TryLockError::Error(cause)) => return Err(self.failed(cause)),
            Ok(()) => {}
        }
        fcntl_setfd(&self.file, FdFlags::empty()).map_err(|cause| self.failed(cause.into()))?;
        Ok(Held::Free)
    }

    fn read(&mut self) -> Result<String, Failure> {
        let mut text = String::new();
        self.file.read_to_string(&mut text).map_err(|cause| self.failed(cause))?;
        Ok(text.trim_end().to_owned())
    }

    fn write(&mut self, service: &str) -> Result<(), Failure> {
        let write = || -> io::Result<()> {
            self.file.set_len(0)?;
            (&self.file).seek(SeekFrom::Start(0))?;
            (&self.file).write_all(format!("{service}\n").as_bytes())
        };
        write().map_err(|cause| self.failed(cause))
    }
}

/// Where a service's output goes. Only its user can read it, and the code is masked.
struct Log {
    path: PathBuf,
    file: File,
    /// What it held before the last start.
    length: Cell<u64>,
}

impl Log {
    fn open(path: &Path) -> Result<Log, Failure> {
        let failed = |cause| ProgramError::NoLog { file: path.display().to_string(), cause };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = options.custom_flags(flags.bits() as i32).open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let is_ours = found.uid() == rustix::process::geteuid().as_raw();
        if !found.is_file() || !is_ours || is_open_to_others(found.mode()) {
            return Err(ProgramError::LogOpen { file: path.display().to_string() }.into());
        }
        Ok(Log { path: path.to_owned(), file, length: Cell::new(found.len()) })
    }

    /// Streams that end in the log, and what masks the code on the way: it ends when they do.
    fn streams(&self) -> Result<(Streams, Running<'static>), Failure> {
        static SED: std::sync::OnceLock<Option<Tool>> = std::sync::OnceLock::new();
        let sed = SED.get_or_init(|| Tool::find("sed", None)).as_ref().ok_or(ProgramError::NoSed)?;
        let made = || -> io::Result<(Streams, Streams)> {
            self.length.set(self.file.metadata()?.len());
            let null = || File::open("/dev/null");
            let (said, says) = io::pipe()?;
            let says = File::from(std::os::fd::OwnedFd::from(says));
            let masking = Streams {
                stdin: std::os::fd::OwnedFd::from(said).into(),
                stdout: self.file.try_clone()?,
                stderr: self.file.try_clone()?,
                is_apart: true,
            };
            Ok((Streams { stdin: null()?, stdout: says.try_clone()?, stderr: says, is_apart: true }, masking))
        };
        let failed = |cause| ProgramError::NoLog { file: self.path.display().to_string(), cause };
        let (streams, masking) = made().map_err(failed)?;
        let args = ["-u", "s/@[0-9]\\{6\\}/@******/g"].map(OsString::from);
        Ok((streams, sed.start_with(&args, &[], masking)?))
    }

    /// What was said since, once whoever said it has ended.
    fn rest(&self, masking: Running) -> Result<String, Failure> {
        masking.finish_through()?;
        let failed = |cause| ProgramError::NoLog { file: self.path.display().to_string(), cause };
        let mut said = Vec::new();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.length.get())).and_then(|_| file.read_to_end(&mut said)).map_err(failed)?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_a_directory_and_a_path_as_docker_has_them() {
        for bad in [
            "",
            "src=/a,dst=/b",
            "type=tmpfs,dst=/b",
            "type=bind,src=/a",
            "type=bind,src=/a,dst=b",
            "type=bind,src=/a,dst=/b,x",
        ] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
        let mount = |is_readonly| Mount { host: "/a".into(), inside: "/b".to_owned(), is_readonly };
        assert_eq!(parse_mount("type=bind,source=/a,target=/b,readonly"), Ok(mount(true)));
        assert_eq!(parse_mount("type=bind,src=/a,dst=/b"), Ok(mount(false)));
        let odd = Mount { host: "/it's \"a\", b".into(), ..mount(false) };
        assert_eq!(parse_mount(r#"type=bind,"src=/it's ""a"", b",dst=/b"#), Ok(odd));
    }

    #[test]
    fn a_published_port_is_a_port_and_where_it_is_to_be_reached() {
        for bad in ["", "http", "0", "1:70000", "a:1", "--privileged", "1:2:"] {
            assert!(parse_publish(bad).is_err(), "{bad}");
        }
        let is_same = |text| parse_publish(text).map(|publish| publish.is_same);
        assert_eq!(is_same("8080"), Ok(true));
        assert_eq!(is_same("8080:8080/tcp"), Ok(true));
        assert_eq!(is_same("80:8080"), Ok(false));
        assert_eq!(is_same("127.0.0.1:8080:8080"), Ok(false));
    }
}
