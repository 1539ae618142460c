//! `scone-run PROGRAM`: the simulated SCONE runtime. It measures the program, asks CAS for the configuration that
//! `SCONE_CONFIG_ID` names, opens the volumes and runs the program with that configuration alone.
//!
//! Software only: whoever is root on the host can read and change everything. What it simulates is who gets what, when.
#![cfg_attr(not(test), warn(clippy::too_many_lines))]

mod injection;
mod mount;

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use clap::builder::{PathBufValueParser, TypedValueParser};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, getpid, getrlimit, set_dumpable_behavior, setrlimit};

use mount::{Mount, seal_all};
use scone_protocol::connection::{self, Address, Connection};
use scone_protocol::{Configuration, Secret, unhex};
use scone_run::failure::{self, Failure};
use scone_run::files::{self, Selection};
use scone_run::program::Program;
use scone_run::root::{self, Image};
use scone_run::supervise::{self, Signals};
use scone_run::sys;

const WARNING: &str = "[SCONE|WARN] scone-run: Application runs in SGX simulation mode. Its memory can be read by the \
                       untrusted system! This is not secure! (scone-sim: software only)";

/// The simulated SCONE runtime: measures PROGRAM, attests to CAS, opens sealed volumes, runs it. Software only.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Environment:
  SCONE_HASH=1       print the measurement (mrenclave) and do not run
  SCONE_CONFIG_ID    session/service[@code]; unset: PROGRAM runs unprotected, CAS is not asked
  SCONE_SERVICE_ACCESS_TOKEN
                     what the session demands as service_access_token, if it does
  SCONE_CAS_ADDR     host[:port] of CAS; default cas:18765
  SCONE_SIM_CAS_KEY  the key CAS must have, as `scone-sim` prints it
  SCONE_SIM_EVIDENCE_KEY
                     what CAS knows its user's runtimes by: `scone-sim evidence-key`

Examples:
  docker run --rm -e SCONE_HASH=1 IMAGE
  SCONE_HASH=1 scone-run --rootfs image /bin/otpqr
  SCONE_CONFIG_ID=ns/otpqr/otpqr scone-run --rootfs image --bind out:/out \\
      --bind volume:/.sealed/root/single_run /bin/otpqr
  SCONE_HASH=1 scone-run --rootfs image --fs-dir /usr --fs-dir /lib --fs-dir /lib64 --fs-dir /app \\
      /usr/bin/python3"
)]
struct Args {
    /// Run on a host, not in a container: DIR, an unpacked image, becomes the program's root
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// With --rootfs: show the host's directory HOSTDIR at PATH, writable
    #[arg(long, value_name = "HOSTDIR:PATH", value_parser = parse_bind, requires = "rootfs")]
    bind: Vec<(PathBuf, PathBuf)>,
    /// Measure, beside PROGRAM, all files below DIR, an absolute path of the image (`/`: the whole image). PROGRAM may then be
    /// dynamically linked. May be given more than once. Natively the program sees nothing else of the image
    #[arg(long, value_name = "DIR", value_parser = PathBufValueParser::new().try_map(files::directory))]
    fs_dir: Vec<PathBuf>,
    /// With --fs-dir: have something mounted at PATH, which is then not measured; that it may be counts. Natively nothing is
    /// executed from it, and where nothing is bound there, it is an empty directory in memory. May be given more than once
    #[arg(long, value_name = "PATH", requires = "fs_dir", value_parser = PathBufValueParser::new().try_map(files::directory))]
    mount_point: Vec<PathBuf>,
    /// The program as the image has it. Its arguments count if it runs unprotected, or where the policy takes them (@@N)
    #[arg(value_name = "PROGRAM", trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

fn parse_bind(text: &str) -> Result<(PathBuf, PathBuf), String> {
    // At the last colon: a path in an image can be chosen without colons, the host's cannot.
    match text.rsplit_once(':') {
        Some((host, path)) if !host.is_empty() && path.starts_with('/') => Ok((host.into(), path.into())),
        _ => Err("expected HOSTDIR:PATH, PATH being absolute".to_owned()),
    }
}

/// What the caller asks to be run: `session/service[@code]`, and where CAS is.
struct ConfigId {
    text: String,
    address: Address,
}

impl ConfigId {
    fn from_environment() -> Result<Option<ConfigId>, Failure> {
        let Some(text) = env::var_os("SCONE_CONFIG_ID") else { return Ok(None) };
        let invalid = |what: &str| Failure::while_starting(format!("{what} is unusable"), vec![]);
        let text = text.into_string().map_err(|_| invalid("SCONE_CONFIG_ID"))?;
        let address = match env::var_os("SCONE_CAS_ADDR") {
            None => Address::parse("cas"),
            Some(address) => address.to_str().and_then(Address::parse),
        };
        Ok(Some(ConfigId { text, address: address.ok_or_else(|| invalid("SCONE_CAS_ADDR"))? }))
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let config_id = match ConfigId::from_environment() {
        Ok(config_id) => config_id,
        Err(failure) => return report(&failure, None),
    };
    match run(args, config_id.as_ref()) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => report(&failure, config_id.as_ref()),
    }
}

fn report(failure: &Failure, config_id: Option<&ConfigId>) -> ExitCode {
    let mut text = format!("{failure}\n");
    if let Some(ConfigId { text: id, address }) = config_id {
        // With the code, as on SCONE: whoever keeps this line must mask it.
        let (host, id) = (failure::one_line(&address.host), failure::one_line(id));
        text += &format!("Note: Connecting to CAS at {host} (port {}) using service ID {id}\n", address.port);
    }
    match io::stderr().write_all(text.as_bytes()) {
        // If standard error is gone, only the exit status is left to tell of the failure.
        Ok(()) | Err(_) => ExitCode::from(failure::EXIT_STATUS),
    }
}

fn run(args: Args, config_id: Option<&ConfigId>) -> Result<u8, Failure> {
    prevent_core_dumps().map_err(starting("Preventing core dumps failed"))?;
    sys::close_other_descriptors_on_exec().map_err(starting("Closing the caller's files failed"))?;
    let [program_path, arguments @ ..] = &args.command[..] else {
        return Err(Failure::while_starting("No program was named", vec![]));
    };
    if env::var_os("SCONE_HASH").is_some_and(|value| value == "1") {
        let (_, program) = load(&args, program_path.as_ref(), false)?;
        writeln!(io::stdout(), "{}", program.mrenclave).map_err(starting("Printing the measurement failed"))?;
        return Ok(0);
    }
    // A program does not run where the warning cannot be given.
    writeln!(io::stderr(), "{WARNING}").map_err(starting("Writing to standard error failed"))?;

    let signals = Signals::block().map_err(starting("Taking over signals failed"))?;
    if args.rootfs.is_some() {
        root::unshare().map_err(starting("Leaving the host's namespaces failed"))?;
        if let Some(status) = supervise::become_init(&signals).map_err(starting("Becoming an init failed"))? {
            return Ok(status);
        }
    } else if getpid() != Pid::INIT {
        let hint = "it must be the first process of a container, or be given --rootfs on a host".to_owned();
        return Err(Failure::while_starting("Not alone in a PID namespace", vec![hint]));
    }
    // Keys and code are neither in a core dump nor in a /proc that the program can read.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(starting("Protecting the runtime's memory failed"))?;
    let (image, program) = load(&args, program_path.as_ref(), true)?;

    match config_id {
        Some(config_id) => run_protected(&program, image, config_id, arguments, &signals),
        None => {
            if let Some(image) = image {
                image.enter(&[], &[]).map_err(starting("Making the program's root failed"))?;
            }
            let mut command = program.command(program_path);
            command.args(arguments);
            supervised(command, &signals, &mut || Ok(()))
        }
    }
}

/// Opens the image, if there is one, and measures the program. `to_run`: what is measured of more than one file is copied, where
/// there is an image to copy it from, and the copy takes the image's place.
fn load(args: &Args, path: &Path, to_run: bool) -> Result<(Option<Image>, Program), Failure> {
    let image = args.rootfs.as_deref().map(|rootfs| Image::open(rootfs, &args.bind)).transpose();
    let mut image = image.map_err(starting("Opening the image failed"))?;
    let loading = "Loading the program failed";
    if args.fs_dir.is_empty() {
        let root = image.as_ref().map(|image| &image.directory);
        let program = Program::open(root, path).map_err(starting(loading))?;
        return Ok((image, program));
    }
    let selection = Selection::new(args.fs_dir.clone(), args.mount_point.clone());
    // The sealed sides of the volumes are never measured.
    let unnamed = |path: &&PathBuf| !path.starts_with("/.sealed") && !selection.is_mount_point(path);
    if let Some(path) = args.bind.iter().map(|(_, path)| path).find(unnamed) {
        let cause = format!("'{}' is bound, and is no --mount-point", path.display());
        return Err(Failure::while_starting(loading, vec![cause]));
    }
    image = image.map(|image| image.with_scratch(&args.mount_point));
    let program = match &mut image {
        Some(image) if to_run => {
            let root = image.replace().map_err(starting("Making the program's root failed"))?;
            Program::with_files(&root, path, &selection, Some(&image.directory))
        }
        Some(image) => Program::with_files(&image.directory, path, &selection, None),
        None => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = openat(CWD, "/", flags, Mode::empty()).map_err(starting("Opening the image failed"))?;
            Program::with_files(&root, path, &selection, None)
        }
    };
    Ok((image, program.map_err(starting(loading))?))
}

/// For the program, too, which cannot lift the limit. With 0 the kernel would still hand a dump to a program that `core_pattern`
/// names; with 1 it makes none.
fn prevent_core_dumps() -> io::Result<()> {
    let limit = Some(getrlimit(Resource::Core).maximum.map_or(1, |maximum| maximum.min(1)));
    Ok(setrlimit(Resource::Core, Rlimit { current: limit, maximum: limit })?)
}

fn run_protected(
    program: &Program,
    image: Option<Image>,
    config_id: &ConfigId,
    host_arguments: &[OsString],
    signals: &Signals,
) -> Result<u8, Failure> {
    let (service, code) = connection::config_id_parts(&config_id.text);
    let attestation = |error: connection::Error| Failure::attestation(error.causes());
    let evidence_key = key("SCONE_SIM_EVIDENCE_KEY")?.ok_or_else(|| {
        let hint = "SCONE_SIM_EVIDENCE_KEY is not set: `scone-sim evidence-key` prints it".to_owned();
        Failure::while_starting("No evidence can be made", vec![hint])
    })?;
    let cas_key = key("SCONE_SIM_CAS_KEY")?;
    let cas = Connection::connect(&config_id.address, cas_key, Secret::new(evidence_key)).map_err(attestation)?;
    let mut cas = cas.with_access_token(access_token()?);
    let configuration =
        cas.configure(service, code, &program.mrenclave, program.signer.as_ref()).map_err(attestation)?;
    refuse_unusable_paths(&configuration)?;
    let command = command_line(&configuration, host_arguments)?;
    let files = injection::files(&configuration, image.as_ref())?;

    let in_container = image.is_none();
    match image {
        Some(image) => {
            let volumes: Vec<&Path> = configuration.volumes.iter().map(|grant| Path::new(&grant.path)).collect();
            image.enter(&volumes, &files).map_err(starting("Making the program's root failed"))?;
        }
        None => {
            for (path, content, mode) in &files {
                injection::inject(path, content, *mode).map_err(|cause| {
                    Failure::while_starting(format!("Injecting {} failed", path.display()), vec![cause])
                })?;
            }
        }
    }
    let open = |grant| Mount::open(grant, in_container, &mut cas).transpose();
    let mut mounts = configuration.volumes.iter().filter_map(open).collect::<Result<Vec<_>, _>>()?;

    let command = program_command(program, &configuration, &command)?;
    supervised(command, signals, &mut || seal_all(&mut mounts, &mut cas))
}

/// The program, as the configuration has it run: with nothing of the caller's but what the policy asks for.
fn program_command(program: &Program, configuration: &Configuration, words: &[OsString]) -> Result<Command, Failure> {
    let [argv0, arguments @ ..] = words else {
        return Err(Failure::while_starting("CAS sent no command", vec![]));
    };
    let directory = configuration.pwd.as_deref().unwrap_or("/");
    if !Path::new(directory).is_dir() {
        let cause = format!("the working directory '{directory}' does not exist");
        return Err(Failure::while_starting("The program cannot start", vec![cause]));
    }
    let mut command = program.command(argv0);
    command.args(arguments).current_dir(directory).env_clear();
    command.envs(configuration.environment.iter().map(|(name, value)| (name, value.expose())));
    // The caller's variables, where the policy asks for them; one the caller lacks is empty (reference/scone.md section 2.12).
    command.envs(configuration.host_environment.iter().map(|name| (name, env::var_os(name).unwrap_or_default())));
    Ok(command)
}

/// The program's arguments, with the caller's in the places that the policy leaves to them.
fn command_line(configuration: &Configuration, host: &[OsString]) -> Result<Vec<OsString>, Failure> {
    let mut command: Vec<OsString> = configuration.command.iter().map(OsString::from).collect();
    for &(at, position) in &configuration.host_arguments {
        let argument = position.checked_sub(1).and_then(|index| host.get(index));
        match (command.get_mut(at), argument) {
            (Some(word), Some(argument)) => word.clone_from(argument),
            _ => {
                let cause =
                    format!("the session's command takes argument {position} of the caller's, who gave {}", host.len());
                return Err(Failure::while_starting("An argument is missing", vec![cause]));
            }
        }
    }
    Ok(command)
}

fn access_token() -> Result<Option<String>, Failure> {
    let Some(token) = env::var_os("SCONE_SERVICE_ACCESS_TOKEN") else { return Ok(None) };
    let unusable = |_| Failure::while_starting("SCONE_SERVICE_ACCESS_TOKEN is unusable: it is not UTF-8", vec![]);
    token.into_string().map_err(unusable).map(Some)
}

/// Runs the program to its end. What it left unsynced is sealed before its exit status is believed.
fn supervised(
    command: Command,
    signals: &Signals,
    seal: &mut dyn FnMut() -> Result<(), Failure>,
) -> Result<u8, Failure> {
    if let Some(status) = signals.stop_requested().map_err(starting("Reading signals failed"))? {
        return Ok(status);
    }
    let status = supervise::run(command, signals, seal).map_err(|error| match error {
        supervise::Error::Sync(failure) => failure,
        supervise::Error::System(what, error) => {
            Failure::while_running(format!("Cannot {what}"), vec![error.to_string()])
        }
    })?;
    seal()?;
    Ok(status)
}

fn starting<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::while_starting(what, vec![error.to_string()])
}

fn key(name: &str) -> Result<Option<String>, Failure> {
    let Some(key) = env::var_os(name) else { return Ok(None) };
    let key = key.into_string().ok().filter(|key| unhex(key).is_some_and(|key| key.len() == 32));
    let unusable =
        || Failure::while_starting(format!("{name} is unusable: 64 lower-case hex digits are expected"), vec![]);
    key.map(Some).ok_or_else(unusable)
}

/// Refuses paths of volumes and injected files that are not absolute and plain, or that lie within one another.
fn refuse_unusable_paths(configuration: &Configuration) -> Result<(), Failure> {
    let volumes = configuration.volumes.iter().map(|grant| &grant.path);
    let files = configuration.injection_files.iter().map(|file| &file.path);
    let paths: Vec<&Path> = volumes.chain(files).map(Path::new).collect();
    let plain = |path: &Path| {
        let mut parts = path.components();
        parts.next() == Some(Component::RootDir)
            && parts.as_path() != Path::new("")
            && parts.all(|part| matches!(part, Component::Normal(_)))
    };
    for (index, path) in paths.iter().enumerate() {
        let nested = paths.iter().enumerate().any(|(other, outer)| other != index && path.starts_with(outer));
        if nested || !plain(path) {
            let cause = format!("'{}' cannot be the path of a volume or an injected file", path.display());
            return Err(Failure::while_starting("The session's paths are unusable", vec![cause]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use scone_protocol::VolumeGrant;

    use super::*;

    #[test]
    fn volumes_have_plain_absolute_paths_and_do_not_lie_in_one_another() {
        let usable = |paths: &[&str]| {
            let grant = |path: &&str| VolumeGrant { path: path.to_string(), ..VolumeGrant::default() };
            let volumes = paths.iter().map(grant).collect();
            refuse_unusable_paths(&Configuration { volumes, ..Configuration::default() }).is_ok()
        };
        for bad in [&["/"][..], &["v"], &["/a/../b"], &["/a", "/a"], &["/a/b", "/a"]] {
            assert!(!usable(bad), "{bad:?}");
        }
        assert!(usable(&["/a", "/ab/c"]));
    }

    #[test]
    fn the_callers_arguments_go_where_the_policy_says_and_nowhere_else() {
        let configuration = |host_arguments| Configuration {
            command: ["prog", "", "-x", ""].map(str::to_owned).to_vec(),
            host_arguments,
            ..Configuration::default()
        };
        let host = ["a".into(), "@@1".into(), "c".into()];
        for beyond in [(1, 4), (1, 0), (4, 1)] {
            assert!(command_line(&configuration(vec![beyond]), &host).is_err());
        }
        assert_eq!(command_line(&configuration(vec![(1, 2), (3, 1)]), &host).unwrap(), ["prog", "@@1", "-x", "a"]);
        assert_eq!(command_line(&configuration(vec![]), &host).unwrap(), ["prog", "", "-x", ""]);
    }

    #[test]
    fn a_bind_is_a_directory_and_an_absolute_path() {
        for bad in ["", "/host", ":/path", "/host:path"] {
            assert!(parse_bind(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_bind("/ho:st:/path"), Ok(("/ho:st".into(), "/path".into())));
    }
}
