//! The image, its measurement, and the start of its program: in a container, or natively by the runtime.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::account::Account;
use crate::cas::Cas;
use crate::code::since_1970;
use crate::engine;
use crate::failure::{Concern, Exit, Failure};
use crate::handover::{Handover, give};
use crate::interrupt;
use crate::platform::Tools;
use crate::refusal::UNSIGNED;
use crate::state::State;
use crate::step;
use crate::tool::{Finished, Running, Streams, Tool};

/// Where otpqr sees its volume and its output.
pub(crate) const VOLUME: &str = "/root/single_run";
pub(crate) const OUTPUT: &str = "/out";
/// Reads what only the program may know from a FIFO.
const ENTRY: &str = "/entry";
const FIFO: &str = "/environment";
/// Where a program may write, in memory; podman mounts something there in any case.
pub(crate) const SCRATCH: [&str; 3] = ["/run", "/tmp", "/var/tmp"];

#[derive(Debug, thiserror::Error)]
enum ImageError {
    #[error("the image directory '{directory}' is not there")]
    NoDirectory { directory: String },
    #[error("docker has no image '{image}': {reason}")]
    NoImage { image: String, reason: String },
    #[error("the image '{id}' cannot be measured: {reason}")]
    NotMeasured { id: String, reason: String },
    #[error("the image '{id}' did not print a measurement: its '{program}' is not a SCONE program")]
    NoMeasurement { id: String, program: String },
}

impl Concern for ImageError {
    fn exit(&self) -> Exit {
        Exit::Precondition
    }
}

/// The program that a container, or the runtime, is to run.
#[derive(Clone, Copy)]
pub struct Executable<'a> {
    pub path: &'a str,
    /// All files of the image are measured with it, except at these paths, where something is mounted; `None`: it is one static
    /// file.
    pub files: Option<&'a [String]>,
}

/// Ours: one static file, in an image that has nothing else.
pub const OTPQR: Executable = Executable { path: "/bin/otpqr", files: None };

/// The gate: one static file in the same image.
pub const GATE: Executable = Executable { path: "/bin/gate", files: None };

/// Where the gate, or a program that counts its starts, sees its volume, and that with what was granted.
pub(crate) const BUDGET: &str = "/permit";
pub(crate) const GRANTS: &str = "/grants";

impl Executable<'_> {
    /// What the runtime is told.
    fn arguments(&self) -> Vec<String> {
        let selection = self.files.map(|mounted| {
            let mounted = mounted.iter().map(String::as_str).chain(SCRATCH).chain([FIFO]);
            ["--fs-dir=/".to_owned()].into_iter().chain(mounted.map(|path| format!("--mount-point={path}")))
        });
        selection.into_iter().flatten().chain([self.path.to_owned()]).collect()
    }
}

/// A start of a service of one of our policies.
pub struct Start<'a> {
    pub cas: &'a Cas,
    pub image_id: &'a str,
    pub executable: Executable<'a>,
    /// What the caller adds to the policy's command.
    pub arguments: &'a [OsString],
    /// The host's sides of the volumes, and where the program sees them.
    pub volumes: &'a [(PathBuf, String)],
    pub mounts: &'a [Mount],
    /// By what the container is found again.
    pub label: Option<String>,
    /// Of the engine, for this start alone.
    pub options: &'a [OsString],
}

impl<'a> Start<'a> {
    /// Of otpqr, with nothing mounted.
    pub fn of(account: &'a Account) -> Start<'a> {
        let State { cas, image_id, .. } = &account.state;
        let executable = OTPQR;
        Start { cas, image_id, executable, arguments: &[], volumes: &[], mounts: &[], label: None, options: &[] }
    }
}

/// A directory of the host that the program sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub host: PathBuf,
    pub inside: String,
    pub is_readonly: bool,
}

impl Tools {
    pub(crate) fn runs_containers(&self) -> bool {
        self.engine.name == "docker"
    }

    /// What the engine calls otpqr's image: an ID that no later build can take over. Natively the directory.
    pub fn image_id(&self, image: &str) -> Result<String, Failure> {
        if self.runs_containers() {
            self.check_engine()?;
        }
        self.id_of(image).map_err(|failure| failure.hint(self.facts.image_missing))
    }

    /// The same of any image.
    pub(crate) fn id_of(&self, image: &str) -> Result<String, Failure> {
        if !self.runs_containers() {
            let directory = self.root.join(image);
            let id = directory.canonicalize().ok().and_then(|path| path.into_os_string().into_string().ok());
            let id = id.filter(|path| !path.contains(char::is_control));
            let missing = ImageError::NoDirectory { directory: directory.display().to_string() };
            return id.ok_or_else(|| missing.into());
        }
        self.check_engine()?;
        let args = ["image", "inspect", "--format", "{{.Id}}", image].map(OsString::from);
        let finished = self.engine.run(&args, &[])?;
        if finished.success() {
            return Ok(finished.stdout.trim().to_owned());
        }
        let missing = ImageError::NoImage { image: image.to_owned(), reason: finished.reason() };
        Err(missing.into())
    }

    /// The measurement (mrenclave) of a program in the image: 64 hex digits or an error, for a program that was not sconified
    /// ignores `SCONE_HASH`, simply runs, and what it prints must not pass for a measurement.
    pub fn measure(&self, image_id: &str, executable: Executable) -> Result<String, Failure> {
        let args: Vec<OsString> = if self.runs_containers() {
            self.measuring(image_id, executable, &[])?
        } else {
            let rootfs = ["--rootfs", image_id].map(str::to_owned);
            rootfs.into_iter().chain(executable.arguments()).map(OsString::from).collect()
        };
        let finished = self.engine.run(&args, &[("SCONE_HASH", "1")])?;
        let id = image_id.to_owned();
        if !finished.success() {
            let unsigned = finished.stderr.contains(UNSIGNED);
            let signing = unsigned.then(|| format!("{}   # signs it for production", self.facts.image_missing));
            return Err(Failure::from(ImageError::NotMeasured { id, reason: finished.reason() }).hints(signing));
        }
        if finished.stderr.contains("runs in SGX debug mode") && !self.is_for_debugging {
            step(format!(
                "'{}' says that it runs in debug mode: CAS refuses it, unless it is signed for production",
                executable.path
            ));
        }
        // Not trimmed: a carriage return would say that more than the measurement was printed, on a terminal.
        let measurement = finished.stdout.strip_suffix('\n').unwrap_or(&finished.stdout);
        if !is_sha256(measurement) {
            return Err(ImageError::NoMeasurement { id, program: executable.path.to_owned() }.into());
        }
        Ok(measurement.to_owned())
    }

    /// What changes a program's measurement or its start, and so is the same when it is measured and when it is started. What it was
    /// signed with is in the program: nothing is said of that.
    fn settings(&self) -> &'static [&'static str] {
        if self.is_for_debugging { self.facts.debugging } else { &[] }
    }

    /// What docker is told to have a program in a container print its measurement.
    fn measuring(&self, image_id: &str, executable: Executable, more: &[&str]) -> Result<Vec<OsString>, Failure> {
        let fixed = ["run", "--rm", "--log-driver=none", "--network=none", "-e=SCONE_HASH"];
        let mut args: Vec<String> =
            fixed.iter().chain(self.settings()).chain(more).map(|&word| word.to_owned()).collect();
        if executable.files.is_some() {
            // As it is started: what its user cannot read is measured as that.
            args.extend(["--cap-drop=ALL", "--userns=host", "--security-opt=no-new-privileges"].map(str::to_owned));
            args.push(format!("--user={}", self.user_in_container()?));
            args.extend(self.of_podman()?);
        }
        let (program, rest) = self.in_container(executable);
        args.extend([format!("--entrypoint={program}"), image_id.to_owned()].into_iter().chain(rest));
        Ok(args.into_iter().map(OsString::from).collect())
    }

    /// Whether a program prints its measurement when it is asked for it, as SCONE programs do. Any other one simply runs: so it
    /// gets no argument, no input, no network, no mount and no capability, and is ended if it does not end by itself.
    pub(crate) fn is_scone_program(
        &self,
        image_id: &str,
        executable: Executable,
        patience: Duration,
    ) -> Result<bool, Failure> {
        let name = format!("otpqr-measuring-{}-{:x}", std::process::id(), since_1970().subsec_nanos());
        let named = format!("--name={name}");
        let args = self.measuring(image_id, executable, &[&named])?;
        let finished = limited(&self.engine, &args, &name, patience)?;
        let printed = finished.stdout.strip_suffix('\n').unwrap_or(&finished.stdout);
        // One that is not signed for production may say just that: when it is measured, that is told.
        let is_unsigned = finished.stderr.contains(UNSIGNED);
        Ok(is_unsigned || (finished.success() && is_sha256(printed)))
    }

    /// What a container runs first, the entry apart, and with what.
    fn in_container(&self, executable: Executable) -> (String, Vec<String>) {
        let mut words = self.facts.runtime.iter().copied().map(str::to_owned).collect::<Vec<_>>();
        if words.is_empty() {
            words.push(executable.path.to_owned());
        } else {
            words.extend(executable.arguments());
        }
        (words.remove(0), words)
    }

    /// Whether what this ID names is there.
    pub(crate) fn has_image(&self, id: &str) -> Result<bool, Failure> {
        if !self.runs_containers() {
            return Ok(Path::new(id).is_dir());
        }
        self.check_engine()?;
        Ok(self.engine.run(&["image", "inspect", "--format", "{{.Id}}", id].map(OsString::from), &[])?.success())
    }

    /// Whether otpqr's image is still the one with this ID and measurement.
    pub fn is_same_image(&self, image: &str, id: &str, mrenclave: &str) -> Result<bool, Failure> {
        let found = self.image_id(image)?;
        // An ID stands for its content; a directory does not.
        Ok(found == id && (self.runs_containers() || self.measure(id, OTPQR)? == mrenclave))
    }

    /// Gets a start ready, so that little is left to do once a code is there: a container is started, and its entry waits to be
    /// told what to run. Docker keeps no log of it: SCONE's runtime prints the code there.
    pub fn get_ready<'a>(&'a self, start: &Start<'a>, streams: Option<Streams>) -> Result<Ready<'a>, Failure> {
        let evidence_key = self.evidence_key()?;
        let how = if self.runs_containers() {
            let handover = Handover::prepare(&self.root)?;
            let (args, public) = (self.docker_run(start, &handover)?, public(start.cas));
            let container = self.engine.start_apart(&args, &public, streams)?;
            let reached = handover.reach(&container).and_then(|fifo| interrupt::check().map(|()| fifo));
            match reached {
                Ok(fifo) => How::InContainer(Box::new(container), fifo),
                // The entry, which reads nothing, ends by itself.
                Err(failure) => {
                    container.finish_through()?;
                    return Err(failure);
                }
            }
        } else {
            How::Natively(self.native_run(start), streams)
        };
        Ok(Ready { engine: &self.engine, cas: start.cas, evidence_key, how })
    }

    /// Whether a container that writes its output here still runs. Natively the account's lock tells, which the program holds, too.
    pub(crate) fn is_written(&self, output: &Path) -> Result<bool, Failure> {
        if !self.runs_containers() {
            return Ok(false);
        }
        Ok(!self.containers(&label(output), "{{.ID}}")?.is_empty())
    }

    /// The containers that run with this label, in this format.
    pub fn containers(&self, label: &str, format: &str) -> Result<Vec<String>, Failure> {
        let (filter, format) = (format!("--filter=label={label}"), format!("--format={format}"));
        let finished = self.engine.run_through(&["ps", &filter, &format].map(OsString::from))?;
        if !finished.success() {
            return Err(engine::no_answer(finished.reason()));
        }
        Ok(finished.stdout.lines().map(str::to_owned).collect())
    }

    fn docker_run(&self, start: &Start, handover: &Handover) -> Result<Vec<OsString>, Failure> {
        let fixed = ["run", "--rm", "--log-driver=none", "--cap-drop=ALL", "--security-opt=no-new-privileges"];
        let mut args: Vec<OsString> = fixed.map(OsString::from).into();
        args.push("-e=SCONE_CAS_ADDR".into());
        // To an engine that remaps users, what is mounted would belong to nobody.
        args.push("--userns=host".into());
        args.push(format!("--user={}", self.user_in_container()?).into());
        if !self.facts.simulator {
            args.extend(devices(Path::new("/dev")).into_iter().map(OsString::from));
        }
        args.extend(self.facts.docker.iter().chain(self.settings()).map(OsString::from));
        args.extend(start.cas.network.iter().map(|network| format!("--network={network}").into()));
        for (host, inside) in start.volumes {
            if !self.facts.sealed.is_empty() {
                // Only one user runs anything in the container, and podman does not know docker's `uid=`.
                args.push(format!("--tmpfs={inside}:mode=1777").into());
            }
            args.push(mount(host, &format!("{}{inside}", self.facts.sealed), false));
        }
        if start.executable.files.is_some() && !self.facts.runtime.is_empty() {
            args.extend(SCRATCH.map(|path| format!("--tmpfs={path}:mode=1777").into()));
            args.extend(self.of_podman()?.map(OsString::from));
        }
        args.extend(start.mounts.iter().map(|each| mount(&each.host, &each.inside, each.is_readonly)));
        args.extend(start.label.iter().map(|label| format!("--label={label}").into()));
        args.extend(start.options.iter().cloned());
        args.extend([mount(&handover.fifo(), FIFO, false), format!("--entrypoint={ENTRY}").into()]);
        args.extend([start.image_id, FIFO].map(OsString::from));
        let (program, rest) = self.in_container(start.executable);
        args.extend([program].into_iter().chain(rest).map(OsString::from));
        args.extend(start.arguments.iter().cloned());
        Ok(args)
    }

    fn native_run(&self, start: &Start) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--rootfs".into(), start.image_id.into()];
        let sealed = |inside: &str| format!("{}{inside}", self.facts.sealed);
        let volumes = start.volumes.iter().map(|(host, inside)| (host, sealed(inside)));
        let mounts = start.mounts.iter().map(|each| (&each.host, each.inside.clone()));
        for (host, inside) in volumes.chain(mounts) {
            args.push("--bind".into());
            args.push([host.as_os_str(), ":".as_ref(), inside.as_ref()].into_iter().collect());
        }
        args.extend(start.executable.arguments().into_iter().map(OsString::from));
        args.extend(start.arguments.iter().cloned());
        args
    }
}

/// Has a container's program print its measurement, and ends it, by its name, if it runs longer.
fn limited(engine: &Tool, args: &[OsString], name: &str, patience: Duration) -> Result<Finished, Failure> {
    let running = engine.start_apart(args, &[("SCONE_HASH", "1")], None)?;
    let started = Instant::now();
    while !running.has_ended() && started.elapsed() < patience && !interrupt::is_interrupted() {
        sleep(Duration::from_millis(20));
    }
    if !running.has_ended() {
        // Docker's client may not pass a signal on, and a program need not heed it.
        engine.run_through(&["rm", "--force", name].map(OsString::from))?;
        let _ = running.signal(Signal::KILL);
    }
    interrupt::check().and_then(|()| running.finish_through())
}

/// A prepared start. Dropping it ends the waiting container.
pub struct Ready<'a> {
    engine: &'a Tool,
    cas: &'a Cas,
    evidence_key: Option<String>,
    how: How<'a>,
}

enum How<'a> {
    /// With these arguments of the runtime.
    Natively(Vec<OsString>, Option<Streams>),
    /// By the entry at the other end of a FIFO; `None`: the container has ended.
    InContainer(Box<Running<'a>>, Option<File>),
}

impl<'a> Ready<'a> {
    /// Whether the container ended before it could be told what to run: [`Ready::go`] says how.
    pub fn has_ended(&self) -> bool {
        matches!(&self.how, How::InContainer(_, None))
    }

    /// Starts `session/service[@code]`, and waits for its end.
    pub fn go(self, config_id: &str) -> Result<Finished, Failure> {
        self.hand_over(config_id)?.finish()
    }

    /// Starts `session/service[@code]`. The code reaches a container through the FIFO, and the runtime on this host in its
    /// environment.
    pub fn hand_over(self, config_id: &str) -> Result<Running<'a>, Failure> {
        let mut private = vec![("SCONE_CONFIG_ID", config_id)];
        private.extend(self.evidence_key.iter().map(|key| ("SCONE_SIM_EVIDENCE_KEY", key.as_str())));
        match self.how {
            How::Natively(args, streams) => {
                let environment = [&public(self.cas)[..], &private].concat();
                match streams {
                    None => self.engine.start(&args, &environment),
                    Some(streams) => self.engine.start_with(&args, &environment, streams),
                }
            }
            How::InContainer(container, fifo) => match give(fifo, &private) {
                Ok(()) => Ok(*container),
                // Whatever becomes of that, the container's end is waited for.
                Err(failure) => container.finish().and(Err(failure)),
            },
        }
    }
}

/// What a program's environment has that everybody may know.
fn public(cas: &Cas) -> [(&str, &str); 2] {
    [("SCONE_CAS_ADDR", &cas.enclave_address), ("SCONE_SIM_CAS_KEY", &cas.key)]
}

/// By what a container is found again. (Docker and podman do not agree on how a filter for a path is quoted.)
pub(crate) fn label(output: &Path) -> String {
    format!("otpqr.output={}", output.file_name().unwrap_or_default().display())
}

/// `--mount` reads its value as CSV, so a path with a comma or a quote in it has to be quoted. (`-v` would re-create a directory
/// that somebody deleted, as root.)
pub(crate) fn mount(host: &Path, inside: &str, is_readonly: bool) -> OsString {
    let source = [b"src=", host.as_os_str().as_bytes()].concat();
    let quoted: Vec<u8> =
        source.iter().flat_map(|&byte| if byte == b'"' { vec![b'"', b'"'] } else { vec![byte] }).collect();
    let readonly: &[u8] = if is_readonly { b",readonly" } else { b"" };
    let argument = [b"--mount=type=bind,\"", quoted.as_slice(), b"\",dst=", inside.as_bytes(), readonly].concat();
    OsString::from_vec(argument)
}

/// Checks an `--image` before it becomes an argument.
pub fn image_name(text: &str) -> Result<String, String> {
    let is_valid = !text.is_empty() && !text.starts_with(['-', '@']) && !text.chars().any(char::is_control);
    if is_valid { Ok(text.to_owned()) } else { Err("not an image".to_owned()) }
}

/// SGX's devices, as docker is told: the kernel's own, or one of the drivers before it, and the one for DCAP's provisioning if it is
/// there; with the groups that may use them, for a container has its user's first group alone. If none is, docker says so.
pub fn devices(dev: &Path) -> Vec<String> {
    let there = |names: &[&'static str]| names.iter().find(|name| dev.join(name).exists()).copied();
    let enclave = there(&["sgx_enclave", "sgx/enclave", "sgx/sgx_enclave", "sgx", "isgx"]).unwrap_or("sgx_enclave");
    let found = [Some(enclave), there(&["sgx_provision", "sgx/provision"])];
    let options = found.into_iter().flatten().flat_map(|name| {
        let group =
            fs::metadata(dev.join(name)).ok().filter(|found| found.mode() & 0o007 == 0).map(|found| found.gid());
        let group = group.map(|gid| format!("--group-add={gid}"));
        [format!("--device=/dev/{name}")].into_iter().chain(group)
    });
    options.collect()
}

#[test]
fn the_device_is_the_kernel_s_or_an_older_driver_s() {
    use std::os::unix::fs::PermissionsExt;
    let dev = tempfile::tempdir().unwrap();
    let has = |name: &str| {
        let path = dev.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
        devices(dev.path()).join(" ")
    };
    assert_eq!(devices(dev.path()), ["--device=/dev/sgx_enclave"]);
    assert_eq!(has("isgx"), "--device=/dev/isgx");
    assert_eq!(has("sgx/enclave"), "--device=/dev/sgx/enclave");
    assert_eq!(has("sgx/provision"), "--device=/dev/sgx/enclave --device=/dev/sgx/provision");
    assert_eq!(has("sgx_enclave"), "--device=/dev/sgx_enclave --device=/dev/sgx/provision");
    assert_eq!(has("sgx_provision"), "--device=/dev/sgx_enclave --device=/dev/sgx_provision");
    // As systemd sets it up.
    let enclave = dev.path().join("sgx_enclave");
    fs::set_permissions(&enclave, fs::Permissions::from_mode(0o660)).unwrap();
    let group = fs::metadata(&enclave).unwrap().gid();
    let expected = format!("--device=/dev/sgx_enclave --group-add={group} --device=/dev/sgx_provision");
    assert_eq!(devices(dev.path()).join(" "), expected);
}

/// Whether a text is a SHA-256 as SCONE writes it.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// The engine is env(1) here, so that its container is a process, and the container's name a file to be removed.
#[test]
fn a_program_that_does_not_end_by_itself_is_ended_when_it_is_asked_for_its_measurement() {
    let directory = tempfile::tempdir().unwrap();
    let container = directory.path().join("container");
    std::fs::write(&container, "").unwrap();
    let engine = Tool::find("env", None).unwrap();
    let limited = |args: [&str; 2], patience| {
        limited(&engine, &args.map(OsString::from), container.to_str().unwrap(), patience).unwrap()
    };
    let long = Duration::from_secs(100);
    assert_eq!(limited(["printenv", "SCONE_HASH"], long).stdout, "1\n");
    assert!(container.exists());
    let started = Instant::now();
    assert_eq!(limited(["sleep", "100"], Duration::from_millis(50)).code, None);
    assert!(!container.exists() && started.elapsed() < long);
}

#[test]
fn a_path_with_a_comma_or_a_quote_is_one_field_of_docker_s_csv() {
    let argument = mount(Path::new("/a, \"b\""), "/out", false);
    assert_eq!(argument, r#"--mount=type=bind,"src=/a, ""b""",dst=/out"#);
}
