//! The image, its measurement, and the start of its program: in a container, or natively by the runtime.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::cas::Cas;
use crate::engine;
use crate::failure::{Concern, Exit, Failure};
use crate::handover::{Handover, give};
use crate::interrupt;
use crate::platform::Tools;
use crate::tool::{Finished, Running, Tool};

const PROGRAM: &str = "/bin/otpqr";
const VOLUME: &str = "/root/single_run";
const OUTPUT: &str = "/out";
/// Reads what only the program may know from a FIFO.
const ENTRY: &str = "/entry";
const FIFO: &str = "/environment";

#[derive(Debug, thiserror::Error)]
enum ImageError {
    #[error("the image directory '{directory}' is not there")]
    NoDirectory { directory: String },
    #[error("docker has no image '{image}': {reason}")]
    NoImage { image: String, reason: String },
    #[error("the image '{id}' cannot be measured: {reason}")]
    NotMeasured { id: String, reason: String },
    #[error("the image '{id}' did not print a measurement: its '{program}' is not a SCONE program")]
    NoMeasurement { id: String, program: &'static str },
}

impl Concern for ImageError {
    fn exit(&self) -> Exit {
        Exit::Precondition
    }
}

/// A start of a service of one of our policies.
pub struct Start<'a> {
    pub cas: &'a Cas,
    pub image_id: &'a str,
    /// The host's side of the volume, and where the program leaves its output (mounted at `/out`); `None` for a service that
    /// has neither.
    pub directories: Option<(&'a Path, &'a Path)>,
}

impl Tools {
    pub(crate) fn runs_containers(&self) -> bool {
        self.engine.name == "docker"
    }

    /// What the engine calls the image: an ID that no later build can take over. Natively the directory.
    pub fn image_id(&self, image: &str) -> Result<String, Failure> {
        if !self.runs_containers() {
            let directory = self.root.join(image);
            let id = directory.canonicalize().ok().and_then(|path| path.into_os_string().into_string().ok());
            let id = id.filter(|path| !path.contains(char::is_control));
            let missing = ImageError::NoDirectory { directory: directory.display().to_string() };
            return id.ok_or_else(|| Failure::from(missing).hint(self.facts.image_missing));
        }
        self.check_engine()?;
        let args = ["image", "inspect", "--format", "{{.Id}}", image].map(OsString::from);
        let finished = self.engine.run(&args, &[])?;
        if finished.success() {
            return Ok(finished.stdout.trim().to_owned());
        }
        let missing = ImageError::NoImage { image: image.to_owned(), reason: finished.reason() };
        Err(Failure::from(missing).hint(self.facts.image_missing))
    }

    /// The measurement (mrenclave) of our program in the image: 64 hex digits or an error, for a program that was not sconified
    /// ignores `SCONE_HASH`, simply runs, and what it prints must not pass for a measurement.
    pub fn measure(&self, image_id: &str) -> Result<String, Failure> {
        let args: Vec<&str> = if self.runs_containers() {
            vec!["run", "--rm", "--log-driver=none", "--network=none", "-e=SCONE_HASH", image_id, PROGRAM]
        } else {
            vec!["--rootfs", image_id, PROGRAM]
        };
        let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
        let finished = self.engine.run(&args, &[("SCONE_HASH", "1")])?;
        let id = image_id.to_owned();
        if !finished.success() {
            return Err(ImageError::NotMeasured { id, reason: finished.reason() }.into());
        }
        // Not trimmed: a carriage return would say that more than the measurement was printed, on a terminal.
        let measurement = finished.stdout.strip_suffix('\n').unwrap_or(&finished.stdout);
        if !is_sha256(measurement) {
            return Err(ImageError::NoMeasurement { id, program: PROGRAM }.into());
        }
        Ok(measurement.to_owned())
    }

    /// Whether the image is still the one with this ID and measurement.
    pub fn is_same_image(&self, image: &str, id: &str, mrenclave: &str) -> Result<bool, Failure> {
        let found = self.image_id(image)?;
        // An ID stands for its content; a directory does not.
        Ok(found == id && (self.runs_containers() || self.measure(id)? == mrenclave))
    }

    /// Gets a start ready, so that little is left to do once a code is there: a container is started, and its entry waits to be
    /// told what to run. Docker keeps no log of it: SCONE's runtime prints the code there.
    pub fn get_ready<'a>(&'a self, start: &Start<'a>) -> Result<Ready<'a>, Failure> {
        let evidence_key = self.evidence_key()?;
        let how = if self.runs_containers() {
            let handover = Handover::prepare(&self.root)?;
            let container = self.engine.start_apart(&self.docker_run(start, &handover)?, &public(start.cas))?;
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
            How::Natively(self.native_run(start))
        };
        Ok(Ready { engine: &self.engine, cas: start.cas, evidence_key, how })
    }

    /// Whether a container that writes its output here still runs. Natively the account's lock tells, which the program holds, too.
    pub(crate) fn is_written(&self, output: &Path) -> Result<bool, Failure> {
        if !self.runs_containers() {
            return Ok(false);
        }
        let filter = format!("--filter=label={}", label(output));
        let finished = self.engine.run_through(&["ps".into(), "--quiet".into(), filter.into()])?;
        if !finished.success() {
            return Err(engine::no_answer(finished.reason()));
        }
        Ok(!finished.stdout.trim().is_empty())
    }

    fn docker_run(&self, start: &Start, handover: &Handover) -> Result<Vec<OsString>, Failure> {
        let fixed = ["run", "--rm", "--log-driver=none", "--cap-drop=ALL", "--security-opt=no-new-privileges"];
        let mut args: Vec<OsString> = fixed.map(OsString::from).into();
        args.push("-e=SCONE_CAS_ADDR".into());
        // To an engine that remaps users, what is mounted would belong to nobody.
        args.push("--userns=host".into());
        args.push(format!("--user={}", self.user_in_container()?).into());
        args.extend(self.facts.docker.iter().map(OsString::from));
        if let Some((volume, output)) = start.directories {
            if self.facts.sealed != VOLUME {
                // Only one user runs anything in the container, and podman does not know docker's `uid=`.
                args.push(format!("--tmpfs={VOLUME}:mode=1777").into());
            }
            args.extend([mount(volume, self.facts.sealed), mount(output, OUTPUT)]);
            args.push(format!("--label={}", label(output)).into());
        }
        args.extend([mount(&handover.fifo(), FIFO), format!("--entrypoint={ENTRY}").into()]);
        args.extend([start.image_id, FIFO].map(OsString::from));
        args.extend(self.facts.runtime.iter().chain([&PROGRAM]).map(OsString::from));
        Ok(args)
    }

    fn native_run(&self, start: &Start) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--rootfs".into(), start.image_id.into()];
        if let Some((volume, output)) = start.directories {
            for (host, inside) in [(volume, self.facts.sealed), (output, OUTPUT)] {
                args.push("--bind".into());
                args.push([host.as_os_str(), ":".as_ref(), inside.as_ref()].into_iter().collect());
            }
        }
        args.push(PROGRAM.into());
        args
    }
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
    Natively(Vec<OsString>),
    /// By the entry at the other end of a FIFO; `None`: the container has ended.
    InContainer(Box<Running<'a>>, Option<File>),
}

impl Ready<'_> {
    /// Whether the container ended before it could be told what to run: [`Ready::go`] says how.
    pub fn has_ended(&self) -> bool {
        matches!(&self.how, How::InContainer(_, None))
    }

    /// Starts `session/service[@code]`, and waits for its end. The code reaches a container through the FIFO, and the runtime on
    /// this host in its environment.
    pub fn go(self, config_id: &str) -> Result<Finished, Failure> {
        let mut private = vec![("SCONE_CONFIG_ID", config_id)];
        private.extend(self.evidence_key.iter().map(|key| ("SCONE_SIM_EVIDENCE_KEY", key.as_str())));
        match self.how {
            How::Natively(args) => self.engine.run(&args, &[&public(self.cas)[..], &private].concat()),
            How::InContainer(container, fifo) => {
                // Whatever becomes of that, the container's end is waited for.
                let given = give(fifo, &private);
                let finished = container.finish()?;
                given.map(|()| finished)
            }
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
fn mount(host: &Path, inside: &str) -> OsString {
    let source = [b"src=", host.as_os_str().as_bytes()].concat();
    let quoted: Vec<u8> =
        source.iter().flat_map(|&byte| if byte == b'"' { vec![b'"', b'"'] } else { vec![byte] }).collect();
    let argument = [b"--mount=type=bind,\"", quoted.as_slice(), b"\",dst=", inside.as_bytes()].concat();
    OsString::from_vec(argument)
}

/// Checks an `--image` before it becomes an argument.
pub fn image_name(text: &str) -> Result<String, String> {
    let is_valid = !text.is_empty() && !text.starts_with(['-', '@']) && !text.chars().any(char::is_control);
    if is_valid { Ok(text.to_owned()) } else { Err("not an image".to_owned()) }
}

/// Whether a text is a SHA-256 as SCONE writes it.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

#[test]
fn a_path_with_a_comma_or_a_quote_is_one_field_of_docker_s_csv() {
    let argument = mount(Path::new("/a, \"b\""), "/out");
    assert_eq!(argument, r#"--mount=type=bind,"src=/a, ""b""",dst=/out"#);
}
