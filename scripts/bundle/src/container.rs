//! The image, its measurement, and the start of its program: in a container, or natively by the runtime.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::cas::Cas;
use crate::failure::{Concern, Exit, Failure};
use crate::platform::Tools;
use crate::tool::Finished;

const PROGRAM: &str = "/bin/otpqr";
const VOLUME: &str = "/root/single_run";
const OUTPUT: &str = "/out";

#[derive(Debug, thiserror::Error)]
enum ImageError {
    #[error("the image directory '{directory}' is not there")]
    NoDirectory { directory: String },
    #[error("docker has no image '{image}': {reason}")]
    NoImage { image: String, reason: String },
    #[error("docker does not answer: {reason}")]
    NoAnswer { reason: String },
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
    /// `session/service`, followed by `@code` where one is needed.
    pub config_id: &'a str,
    pub cas: &'a Cas,
    pub image_id: &'a str,
    /// The host's side of the volume, and where the program leaves its output (mounted at `/out`); `None` for a service that
    /// has neither.
    pub directories: Option<(&'a Path, &'a Path)>,
}

impl Tools {
    pub fn runs_containers(&self) -> bool {
        self.engine.name == "docker"
    }

    /// What the engine calls the image: an ID that no later build can take over. Natively the directory.
    pub fn image_id(&self, image: &str) -> Result<String, Failure> {
        if !self.runs_containers() {
            let directory = self.root.join(image);
            let id = directory.canonicalize().ok().and_then(|path| path.into_os_string().into_string().ok());
            let missing = ImageError::NoDirectory { directory: directory.display().to_string() };
            return id.ok_or_else(|| Failure::from(missing).hint(self.facts.image_missing));
        }
        let args = ["image", "inspect", "--format", "{{.Id}}", image].map(OsString::from);
        let finished = self.engine.run(&args, &[])?;
        if finished.success() {
            return Ok(finished.stdout.trim().to_owned());
        }
        let reason = finished.reason();
        if reason.to_lowercase().contains("no such image") {
            let missing = ImageError::NoImage { image: image.to_owned(), reason };
            return Err(Failure::from(missing).hint(self.facts.image_missing));
        }
        Err(no_answer(reason))
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

    /// Starts the program and waits for its end. The code, if any, travels in the environment, and docker keeps no log of the
    /// container: SCONE's runtime prints the code there.
    pub fn start(&self, start: &Start) -> Result<Finished, Failure> {
        let evidence_key = self.evidence_key()?;
        let mut environment = vec![
            ("SCONE_CONFIG_ID", start.config_id),
            ("SCONE_CAS_ADDR", &start.cas.enclave_address),
            ("SCONE_SIM_CAS_KEY", &start.cas.key),
        ];
        environment.extend(evidence_key.iter().map(|key| ("SCONE_SIM_EVIDENCE_KEY", key.as_str())));
        let mut args = if self.runs_containers() { self.docker_run(start) } else { self.native_run(start) };
        args.push(PROGRAM.into());
        self.engine.run(&args, &environment)
    }

    /// Whether a container that runs has this directory mounted. Natively the account's lock tells, which the program holds, too.
    pub fn has_mounted(&self, directory: &Path) -> Result<bool, Failure> {
        if !self.runs_containers() {
            return Ok(false);
        }
        let filter = [OsStr::new("--filter=volume="), directory.as_os_str()].into_iter().collect();
        let finished = self.engine.run_through(&["ps".into(), "--quiet".into(), filter])?;
        if !finished.success() {
            return Err(no_answer(finished.reason()));
        }
        Ok(!finished.stdout.trim().is_empty())
    }

    fn docker_run(&self, start: &Start) -> Vec<OsString> {
        let user = rustix::process::geteuid().as_raw();
        let group = rustix::process::getegid().as_raw();
        let fixed = ["run", "--rm", "--log-driver=none", "--cap-drop=ALL", "--security-opt=no-new-privileges"];
        let mut args: Vec<OsString> = fixed.map(OsString::from).into();
        args.extend(["-e=SCONE_CONFIG_ID", "-e=SCONE_CAS_ADDR"].map(OsString::from));
        args.push(format!("--user={user}:{group}").into());
        args.extend(self.facts.docker.iter().map(OsString::from));
        if let Some((volume, output)) = start.directories {
            if self.facts.sealed != VOLUME {
                args.push(format!("--tmpfs={VOLUME}:mode=0700,uid={user},gid={group}").into());
            }
            args.extend([mount(volume, self.facts.sealed), mount(output, OUTPUT)]);
        }
        args.push(start.image_id.into());
        args
    }

    fn native_run(&self, start: &Start) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--rootfs".into(), start.image_id.into()];
        if let Some((volume, output)) = start.directories {
            for (host, inside) in [(volume, self.facts.sealed), (output, OUTPUT)] {
                args.push("--bind".into());
                args.push([host.as_os_str(), ":".as_ref(), inside.as_ref()].into_iter().collect());
            }
        }
        args
    }
}

fn no_answer(reason: String) -> Failure {
    Failure::from(ImageError::NoAnswer { reason })
        .hint("docker version   # says whether the engine runs, and whether you may use it")
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
