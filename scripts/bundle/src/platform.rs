//! The three platforms, and all that differs between them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::child::{Finished, Tool};
use super::outcome::{Failure, OTHER, PRECONDITION, quoted, step};
use super::state::{self, State};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// SCONE: SGX hardware, the real `scone` command line, SCONE CAS
    Scone,
    /// The simulator, programs in containers. Software only: protects nobody from root
    Sim,
    /// The simulator, programs on this host, without a Docker Engine. Software only
    SimNative,
}

/// One row a platform.
struct Facts {
    name: &'static str,
    /// The image `create` uses unless told: a tag, or natively a directory below the root.
    image: &'static str,
    simulator: bool,
    /// Starts the program: `docker`, or natively the runtime itself.
    engine: &'static str,
    engine_missing: &'static str,
    /// Makes the image.
    image_missing: &'static str,
    /// What `docker run` needs on this platform alone.
    docker: &'static [&'static str],
    /// The volume's path in the container at which the host's side is mounted: SCONE's file shield works on the very path
    /// the program sees; the simulator keeps the sealed side apart.
    sealed: &'static str,
}

const SCONE: Facts = Facts {
    name: "scone",
    image: "otpqr:scone",
    simulator: false,
    engine: "docker",
    engine_missing: "apt-get install docker.io",
    image_missing: "docker build --target scone --file Dockerfile.otpqr --tag otpqr:scone .",
    // SCONE_MODE=hw: without SGX the program must not start at all. The LAS address is the caller's, if set.
    docker: &["--device=/dev/sgx_enclave", "-e=SCONE_MODE=hw", "-e=SCONE_LAS_ADDR"],
    sealed: "/root/single_run",
};
const SIM: Facts = Facts {
    name: "sim",
    image: "otpqr:sim",
    simulator: true,
    engine: "docker",
    engine_missing: "./scripts/create.rs --platform sim-native --account native   # without docker",
    image_missing: "make image",
    docker: &["--network=host", "--read-only", "-e=SCONE_SIM_CAS_KEY"],
    sealed: "/.sealed/root/single_run",
};
const SIM_NATIVE: Facts = Facts {
    name: "sim-native",
    image: "simulator/bin/rootfs",
    simulator: true,
    engine: "scone-run",
    engine_missing: "make sim",
    image_missing: "make sim",
    docker: &[],
    sealed: "/.sealed/root/single_run",
};

const PROGRAM: &str = "/bin/otpqr";
const VOLUME: &str = "/root/single_run";
const OUTPUT: &str = "/out";

/// The CAS an account lives on. On SCONE both addresses are the host's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cas {
    /// Where the `scone` command line finds it.
    pub address: String,
    /// Where programs find it (`SCONE_CAS_ADDR`).
    pub enclave_address: String,
    /// The hash of its key, pinned when it was attested.
    pub key: String,
}

/// A start of a service of one of our policies.
pub struct Start<'a> {
    /// `session/service`, followed by `@code` where one is needed.
    pub config_id: &'a str,
    pub cas: &'a Cas,
    pub image_id: &'a str,
    /// The host's side of the volume, and where the program leaves its output (mounted at `/out`); `None` for a service
    /// that has neither.
    pub directories: Option<(&'a Path, &'a Path)>,
}

/// The programs of the host that this platform needs.
pub struct Tools {
    facts: &'static Facts,
    root: PathBuf,
    account: String,
    pub scone: Tool,
    engine: Tool,
    simulator: Option<Tool>,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.facts().name)
    }
}

impl Platform {
    fn facts(self) -> &'static Facts {
        match self {
            Platform::Scone => &SCONE,
            Platform::Sim => &SIM,
            Platform::SimNative => &SIM_NATIVE,
        }
    }

    pub fn default_image(self) -> &'static str {
        self.facts().image
    }

    /// Finds the tools, and makes sure that the `scone` found is this platform's: a policy meant for SCONE must not end
    /// up in the simulator, nor the other way round.
    pub fn tools(self, root: &Path, account: &str) -> Result<Tools, Failure> {
        let facts = self.facts();
        let bundled = root.join("simulator/bin");
        let first = facts.simulator.then_some(bundled.as_path());
        let find = |name, hint: &str| {
            let message = format!("'{name}', which platform '{}' needs, was not found", facts.name);
            Tool::find(name, first).ok_or_else(|| Failure::new(PRECONDITION, message).hint(hint))
        };
        let rehearse =
            format!("./scripts/create.rs --platform sim{}   # software only: a rehearsal", state::option(account));
        let hint = if facts.simulator { "make sim" } else { &rehearse };
        let scone = find("scone", hint)?;
        let version = scone.run(&["--version".into()], &[])?;
        let version = version.stdout.trim();
        if version.starts_with("scone-sim") != facts.simulator {
            let message = format!("the 'scone' found says it is '{version}', but the platform is '{}'", facts.name);
            return Err(Failure::new(PRECONDITION, message));
        }
        let simulator = facts.simulator.then(|| find("scone-sim", hint)).transpose()?;
        if facts.simulator {
            step(format!("platform '{}' is software only: a rehearsal that protects nobody from root", facts.name));
        }
        let engine = find(facts.engine, facts.engine_missing)?;
        Ok(Tools { facts, root: root.to_owned(), account: account.to_owned(), scone, engine, simulator })
    }
}

impl Tools {
    /// What a command needs to be about the account.
    pub fn option(&self) -> String {
        state::option(&self.account)
    }

    /// The commands that give the account up, whose state and CAS do not go together any more, and begin it anew.
    pub fn begin_anew(&self, state: &State) -> [String; 2] {
        let file = self.root.join(state::file_of(&self.account));
        let (kept, aside) = (quoted(file.display()), quoted(file.with_extension("behind").display()));
        let cas = if self.facts.simulator { String::new() } else { format!(" --cas {}", state.cas.address) };
        let (option, platform) = (self.option(), state.platform);
        let (issuer, login) = (quoted(&state.issuer), quoted(&state.login));
        [
            format!("mv {kept} {aside}   # gives the account up"),
            format!(
                "./scripts/create.rs{option} --platform {platform}{cas} --issuer {issuer} --login {login}   # then: a new secret"
            ),
        ]
    }

    /// The simulator's CAS as it runs; `up` starts it if need be. `None` on SCONE, whose CAS is not ours to start.
    pub fn simulated_cas(&self, up: bool) -> Result<Option<Cas>, Failure> {
        let Some(simulator) = &self.simulator else { return Ok(None) };
        let finished = simulator.run(&[if up { "up" } else { "status" }.into()], &[])?;
        if !finished.success() {
            let program = quoted(simulator.path.display());
            let reason = finished.reason();
            let relayed = finished.stderr.lines().filter_map(|line| line.strip_prefix("hint: scone-sim"));
            return Err(match up {
                true => {
                    let failure = Failure::new(PRECONDITION, format!("the simulated CAS cannot be started: {reason}"));
                    relayed.fold(failure, |failure, hint| failure.hint(format!("{program}{hint}")))
                }
                false => Failure::new(PRECONDITION, format!("the simulated CAS is not running: {reason}"))
                    .hint(format!("{program} up")),
            });
        }
        let field = |name: &str| {
            let value = finished.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value.map(str::to_owned).ok_or_else(|| Failure::new(OTHER, format!("'scone-sim' did not say its '{name}'")))
        };
        Ok(Some(Cas { address: field("client")?, enclave_address: field("enclave")?, key: field("key")? }))
    }

    /// The simulated CAS's audit log, the newest entry first; `None` on SCONE, whose log is not ours to read.
    fn audit_log(&self) -> Result<Option<Vec<serde_json::Value>>, Failure> {
        let Some(simulator) = &self.simulator else { return Ok(None) };
        let log = simulator.run(&["log", "--json"].map(OsString::from), &[])?;
        Ok(Some(log.stdout.lines().rev().filter_map(|line| serde_json::from_str(line).ok()).collect()))
    }

    /// When and by which service a code of this namespace was last spent, in seconds since 1970, where CAS tells.
    pub fn last_code_spent(&self, namespace: &str) -> Result<Option<(u64, String)>, Failure> {
        let spent = |entry: &serde_json::Value| {
            let service = entry["subject"].as_str()?;
            let ours = service.strip_prefix(namespace)?.starts_with('/');
            let accepted = entry["event"] == "code checked" && entry["outcome"].as_str()?.starts_with("accepted");
            (ours && accepted).then_some((entry["time"].as_u64()?, service.to_owned()))
        };
        Ok(self.audit_log()?.iter().flatten().find_map(spent))
    }

    /// CAS's time when it last did something, in seconds since 1970, where CAS tells.
    pub fn last_cas_time(&self) -> Result<Option<u64>, Failure> {
        Ok(self.audit_log()?.iter().flatten().find_map(|entry| entry["time"].as_u64()))
    }

    /// Makes the `scone` command line trust the CAS at `address`: SCONE's by its attestation; the simulated one by its key,
    /// which its own tool has shown on this host.
    pub fn attest(&self, address: &str, simulated: Option<Cas>) -> Result<Cas, Failure> {
        let mut args = vec!["cas".into(), "attest".into(), address.into()];
        if let Some(cas) = &simulated {
            args.extend(["-c".into(), OsString::from(&cas.key)]);
        }
        let attested = self.scone.run(&args, &[])?;
        if !attested.success() {
            let message = format!("CAS at '{address}' cannot be attested: {}", attested.reason());
            return Err(Failure::new(PRECONDITION, message));
        }
        let key = self.cas_key(address)?;
        let address = address.to_owned();
        Ok(simulated.unwrap_or(Cas { address: address.clone(), enclave_address: address, key }))
    }

    /// The hash of the key of the CAS at `address`, as the `scone` command line pinned it when it attested it.
    pub fn cas_key(&self, address: &str) -> Result<String, Failure> {
        let args = ["cas", "show-identification", "-c", address].map(OsString::from);
        let shown = self.scone.run(&args, &[])?;
        let key = shown.stdout.trim().to_owned();
        if !shown.success() || key.is_empty() {
            let message = format!("'scone' does not know the CAS at '{address}': {}", shown.reason());
            return Err(Failure::new(PRECONDITION, message)
                .hint(format!("./scripts/create.rs{}   # attests it", self.option())));
        }
        Ok(key)
    }

    /// Makes sure that the account's CAS is there, and still the one that was pinned.
    pub fn check_cas(&self, cas: &Cas) -> Result<(), Failure> {
        let running = self.simulated_cas(false)?;
        let same = match &running {
            Some(running) => running == cas,
            None => true,
        };
        if !same || self.cas_key(&cas.address)? != cas.key {
            let message = format!("the CAS at '{}' is not the one this account was created on", cas.address);
            let hint = format!("./scripts/roll_forward.rs{} --cas-wiped   # if it was set up anew", self.option());
            return Err(Failure::new(PRECONDITION, message).hint(hint));
        }
        Ok(())
    }

    /// What the engine calls the image: an ID that no later build can take over. Natively the directory.
    pub fn image_id(&self, image: &str) -> Result<String, Failure> {
        if self.engine.name != "docker" {
            let directory = self.root.join(image);
            let id = directory.canonicalize().ok().and_then(|path| path.into_os_string().into_string().ok());
            let message = format!("the image directory '{}' is not there", directory.display());
            return id.ok_or_else(|| Failure::new(PRECONDITION, message).hint(self.facts.image_missing));
        }
        let args = ["image", "inspect", "--format", "{{.Id}}", image].map(OsString::from);
        let finished = self.engine.run(&args, &[])?;
        if !finished.success() {
            let reason = finished.reason();
            return Err(match reason.to_lowercase().contains("no such image") {
                true => Failure::new(PRECONDITION, format!("docker has no image '{image}': {reason}"))
                    .hint(self.facts.image_missing),
                false => Failure::new(PRECONDITION, format!("docker does not answer: {reason}"))
                    .hint("docker version   # says whether the engine runs, and whether you may use it"),
            });
        }
        Ok(finished.stdout.trim().to_owned())
    }

    /// The measurement (mrenclave) of our program in the image: 64 hex digits or an error, for a program that was not
    /// sconified ignores `SCONE_HASH`, simply runs, and what it prints must not pass for a measurement.
    pub fn measure(&self, image_id: &str) -> Result<String, Failure> {
        let environment = [("SCONE_HASH", "1")];
        let finished = match self.engine.name {
            "docker" => {
                let args = ["run", "--rm", "--log-driver=none", "--network=none", "-e=SCONE_HASH", image_id, PROGRAM];
                self.engine.run(&args.map(OsString::from), &environment)?
            }
            _ => self.engine.run(&["--rootfs", image_id, PROGRAM].map(OsString::from), &environment)?,
        };
        // Not trimmed: a carriage return would say that more than the measurement was printed, on a terminal.
        let measurement = finished.stdout.strip_suffix('\n').unwrap_or(&finished.stdout);
        if !finished.success() {
            let message = format!("the image '{image_id}' cannot be measured: {}", finished.reason());
            return Err(Failure::new(PRECONDITION, message));
        }
        if !is_sha256(measurement) {
            let message =
                format!("the image '{image_id}' did not print a measurement: its '{PROGRAM}' is no SCONE program");
            return Err(Failure::new(PRECONDITION, message));
        }
        Ok(measurement.to_owned())
    }

    /// Makes sure that the image is still the one whose measurement is in the policies.
    pub fn check_image(&self, image: &str, id: &str, mrenclave: &str) -> Result<(), Failure> {
        let found = self.image_id(image)?;
        // An ID stands for its content; a directory does not.
        let same = found == id && (self.engine.name == "docker" || self.measure(id)? == mrenclave);
        let message = format!("image '{image}' is not the one in the policies: it was built anew");
        match same {
            true => Ok(()),
            false => Err(Failure::new(PRECONDITION, message)
                .hint(format!("./scripts/create.rs{}   # updates the policies", self.option()))),
        }
    }

    /// Starts the program and waits for its end. The code, if any, travels in the environment, and docker keeps no log of
    /// the container: SCONE's runtime prints the code there.
    pub fn start(&self, start: &Start) -> Result<Finished, Failure> {
        let environment = [
            ("SCONE_CONFIG_ID", start.config_id),
            ("SCONE_CAS_ADDR", &start.cas.enclave_address),
            ("SCONE_SIM_CAS_KEY", &start.cas.key),
        ];
        let mut args: Vec<OsString> = Vec::new();
        if self.engine.name == "docker" {
            let user = rustix::process::geteuid().as_raw();
            let group = rustix::process::getegid().as_raw();
            args.extend(["run", "--rm", "--log-driver=none", "--cap-drop=ALL"].map(OsString::from));
            args.extend(
                ["--security-opt=no-new-privileges", "-e=SCONE_CONFIG_ID", "-e=SCONE_CAS_ADDR"].map(OsString::from),
            );
            args.push(format!("--user={user}:{group}").into());
            args.extend(self.facts.docker.iter().map(OsString::from));
            if let Some((volume, output)) = start.directories {
                if self.facts.sealed != VOLUME {
                    args.push(format!("--tmpfs={VOLUME}:mode=0700,uid={user},gid={group}").into());
                }
                args.extend([mount(volume, self.facts.sealed), mount(output, OUTPUT)]);
            }
            args.push(start.image_id.into());
        } else {
            args.extend(["--rootfs".into(), start.image_id.into()]);
            if let Some((volume, output)) = start.directories {
                for (host, inside) in [(volume, self.facts.sealed), (output, OUTPUT)] {
                    args.push("--bind".into());
                    args.push([host.as_os_str(), ":".as_ref(), inside.as_ref()].into_iter().collect());
                }
            }
        }
        args.push(PROGRAM.into());
        self.engine.run(&args, &environment)
    }
}

/// `--mount` reads its value as CSV, so a path with a comma or a quote in it has to be quoted. (`-v` would re-create a
/// directory that somebody deleted, as root.)
fn mount(host: &Path, inside: &str) -> OsString {
    let source = [b"src=", host.as_os_str().as_bytes()].concat();
    let quoted: Vec<u8> =
        source.iter().flat_map(|&byte| if byte == b'"' { vec![b'"', b'"'] } else { vec![byte] }).collect();
    let argument = [b"--mount=type=bind,\"", quoted.as_slice(), b"\",dst=", inside.as_bytes()].concat();
    OsString::from_vec(argument)
}

pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}
