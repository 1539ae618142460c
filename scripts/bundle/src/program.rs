//! A start of a protected program: what it needs, its run as if its caller had started it, or as a service that goes on alone.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IsTerminal, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
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
    #[error("the policy of program '{program}' takes {takes} arguments of its caller's, not {given}")]
    Arguments { program: String, takes: usize, given: usize },
    #[error("program '{program}' has nothing that starts without a code")]
    NothingOpen { program: String },
    #[error("what was measured of image '{image}', for program '{program}', is not there any more")]
    AnotherImage { program: String, image: String },
    #[error("the policy of program '{program}' has nothing of this host's mounted at '{path}'")]
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
    #[error("what runs cannot be found out: {0}")]
    NotKnown(io::Error),
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
            NotStopped { .. } | EndedAtOnce { .. } => Exit::Other,
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
        (Some(host), Some(inside)) if is_bind && inside.starts_with('/') && !inside.contains([':', '"']) => {
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
        Ok(launch)
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
        let start = self.start(&options, label(self.account, self.name, "program"));
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
        let finished = self.present(source, &get_ready, &mut |(relay, ready): (Relay, Ready), code| {
            let running = ready.hand_over(&self.config_id(code))?;
            relay.run(running, code, &mut forward)
        })?;
        if finished.stderr.is_empty() && finished.code.is_some_and(|code| (0..=255).contains(&code)) {
            return Ok(finished.code.map_or(1, |code| code as u8));
        }
        Err(self.explain(&finished))
    }

    /// Starts it as a service, which goes on when this ends. What it prints goes to `log`.
    pub fn detach(&self, source: Option<&Source>, log: &Path) -> Result<Service, Failure> {
        let tools = &self.account.tools;
        let log = Log::open(log)?;
        let (options, container) = self.container(&[]);
        let start = self.start(&options, label(self.account, self.name, "service"));
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
            let running = ready.hand_over(&self.config_id(code))?;
            step("waiting whether it goes on running");
            let handed_over = Instant::now();
            while handed_over.elapsed() < SETTLED && !running.has_ended() && !interrupt::is_interrupted() {
                sleep(Duration::from_millis(20));
            }
            if running.has_ended() {
                let ended = running.finish_through()?;
                return Ok(Finished { stderr: log.rest(masking)?, ..ended });
            }
            service = running.id();
            Ok(Finished { code: Some(0), stdout: String::new(), stderr: String::new() })
        })?;
        match service {
            Some(_) if tools.runs_containers() => Ok(Service::Container(container)),
            Some(process) => {
                Process::record(self.account, self.name, process)?;
                Ok(Service::Process(process))
            }
            None if finished.stderr.contains("[SCONE|FATAL]") => Err(self.explain(&finished)),
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
            let protect = account.script("protect", &format!(" {program} --mount-point {path}"));
            return Err(Failure::from(ProgramError::NoMountPoint { program, path }).hint(protect));
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
fn label(account: &Account, name: &str, what: &str) -> String {
    format!("otpqr.{what}={}/{name}/{}", account.state.namespace, account.name)
}

/// The service that runs, if there is one.
pub fn running(account: &Account, name: &str) -> Result<Option<Service>, Failure> {
    if account.tools.runs_containers() {
        let found = account.tools.containers(&label(account, name, "service"))?;
        return Ok(found.into_iter().next().map(Service::Container));
    }
    Ok(Process::find(account, name).map_err(ProgramError::NotKnown)?.map(|process| Service::Process(process.id)))
}

/// Ends the service, if it runs. Whether it did.
pub fn stop(account: &Account, name: &str) -> Result<bool, Failure> {
    let not_stopped = |reason: String| ProgramError::NotStopped { program: name.to_owned(), reason };
    if account.tools.runs_containers() {
        let found = account.tools.containers(&label(account, name, "service"))?;
        for container in &found {
            let grace = format!("--time={}", GRACE.as_secs());
            let stopped = account.tools.engine.run_through(&["stop", &grace, container].map(OsString::from))?;
            if !stopped.success() {
                return Err(not_stopped(stopped.reason()).into());
            }
        }
        return Ok(!found.is_empty());
    }
    let found = Process::find(account, name).map_err(ProgramError::NotKnown)?;
    let Some(process) = found else { return Ok(false) };
    process.end().map_err(|cause| not_stopped(cause.to_string()))?;
    Ok(true)
}

/// A service on this host. A file names it, and when it was started: its number may be another's by now.
struct Process {
    file: PathBuf,
    id: u32,
    handle: std::os::fd::OwnedFd,
}

impl Process {
    fn file(account: &Account, name: &str) -> PathBuf {
        account.root.join("state/running").join(format!("{}.{name}", account.name))
    }

    fn record(account: &Account, name: &str, id: u32) -> Result<(), Failure> {
        let file = Process::file(account, name);
        let record = || -> io::Result<()> {
            let directory = file.parent().unwrap_or(Path::new("."));
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            fs::write(&file, format!("{id} {}\n", started(id)?))
        };
        Ok(record().map_err(|cause| ProgramError::NotMade { directory: file.display().to_string(), cause })?)
    }

    fn find(account: &Account, name: &str) -> io::Result<Option<Process>> {
        let file = Process::file(account, name);
        let text = match fs::read_to_string(&file) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let named = text.trim_end().split_once(' ');
        let named = named.and_then(|(id, when)| Some((id.parse::<u32>().ok()?, when.parse::<u64>().ok()?)));
        let Some((id, when)) = named else { return Ok(None) };
        let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) else { return Ok(None) };
        // From here on the handle means one process; then it is seen whether that is the one.
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) if started(id).is_ok_and(|found| found == when) => Ok(Some(Process { file, id, handle })),
            _ => Ok(None),
        }
    }

    fn end(self) -> io::Result<()> {
        for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, GRACE)] {
            pidfd_send_signal(&self.handle, signal)?;
            let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: 0 };
            if poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&patience))? > 0 {
                return fs::remove_file(self.file);
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// When a process was started, in clock ticks since the host was (proc_pid_stat(5), field 22).
fn started(id: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The program's name, in parentheses, may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let started = fields.split_whitespace().nth(19).and_then(|field| field.parse().ok());
    started.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Where a service's output goes. Only its user can read it, and the code is masked.
struct Log {
    path: PathBuf,
    file: File,
    /// What it held before.
    length: u64,
}

impl Log {
    fn open(path: &Path) -> Result<Log, Failure> {
        let failed = |cause| ProgramError::NoLog { file: path.display().to_string(), cause };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = options.custom_flags(flags.bits() as i32).open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() || is_open_to_others(found.mode()) {
            return Err(ProgramError::LogOpen { file: path.display().to_string() }.into());
        }
        Ok(Log { path: path.to_owned(), file, length: found.len() })
    }

    /// Streams that end in the log, and what masks the code on the way: it ends when they do.
    fn streams(&self) -> Result<(Streams, Running<'static>), Failure> {
        static SED: std::sync::OnceLock<Option<Tool>> = std::sync::OnceLock::new();
        let sed = SED.get_or_init(|| Tool::find("sed", None)).as_ref().ok_or(ProgramError::NoSed)?;
        let made = || -> io::Result<(Streams, Streams)> {
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
        let args = ["--unbuffered", "s/@[0-9]\\{6\\}/@******/g"].map(OsString::from);
        Ok((streams, sed.start_with(&args, &[], masking)?))
    }

    /// What was said since, once whoever said it has ended.
    fn rest(&self, masking: Running) -> Result<String, Failure> {
        masking.finish_through()?;
        let failed = |cause| ProgramError::NoLog { file: self.path.display().to_string(), cause };
        let mut said = Vec::new();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.length)).and_then(|_| file.read_to_end(&mut said)).map_err(failed)?;
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

    #[test]
    fn a_process_is_known_by_when_it_was_started() {
        let own = started(std::process::id()).unwrap();
        assert_eq!(started(std::process::id()).unwrap(), own);
        assert!(started(u32::MAX).is_err());
    }
}
