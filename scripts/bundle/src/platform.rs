//! The three platforms, and all that differs between them, in one table.

use std::cell::OnceCell;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::Cli;
use crate::failure::{Concern, Exit, Failure};
use crate::tool::{Finished, Tool};
use crate::{hint, step};

#[derive(Debug, thiserror::Error)]
enum PlatformError {
    #[error("'{tool}', which platform '{platform}' needs, was not found")]
    NotFound { tool: &'static str, platform: &'static str },
    #[error("'{tool}' cannot be executed: the file system it is on is mounted 'noexec'")]
    NoExec { tool: String },
    #[error("the 'scone' found does not say which version it is: {reason}")]
    NoVersion { reason: String },
    #[error("the 'scone' found says it is '{version}', but the platform is '{platform}'")]
    Another { version: String, platform: &'static str },
}

impl Concern for PlatformError {
    fn exit(&self) -> Exit {
        Exit::Precondition
    }
}

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
pub(crate) struct Facts {
    pub name: &'static str,
    /// The image `create` uses unless told: a tag, or natively a directory below the root.
    pub image: &'static str,
    pub simulator: bool,
    /// Starts the program: `docker`, or natively the runtime itself.
    pub engine: &'static str,
    pub engine_missing: &'static str,
    /// Makes the image.
    pub image_missing: &'static str,
    /// What `docker run` needs on this platform alone.
    pub docker: &'static [&'static str],
    /// What docker is told besides, measuring and starting alike, of programs that are not signed for production.
    pub debugging: &'static [&'static str],
    /// What the entry of a container becomes, with the program as its argument; empty: the program itself.
    pub runtime: &'static [&'static str],
    /// What stands before a volume's path where the host's side is mounted: nothing on SCONE, whose file shield works on the very
    /// path the program sees; the simulator keeps the sealed side apart.
    pub sealed: &'static str,
}

const SCONE: Facts = Facts {
    name: "scone",
    image: "otpqr:scone",
    simulator: false,
    engine: "docker",
    engine_missing: "apt-get install docker.io",
    image_missing: "make scone SIGNING_KEY=../key.pem",
    // SCONE_MODE=hw: without SGX the program must not start at all. The LAS address is the caller's, if set.
    docker: &["-e=SCONE_MODE=hw", "-e=SCONE_LAS_ADDR"],
    // SCONE 6 starts programs for production unless it is told otherwise. Heap and stack are those they were built with.
    debugging: &["-e=SCONE_PRODUCTION=0"],
    runtime: &[],
    sealed: "",
};
const SIM: Facts = Facts {
    name: "sim",
    image: "otpqr:sim",
    simulator: true,
    engine: "docker",
    engine_missing: "./scripts/create.rs --platform sim-native --account native   # without docker",
    image_missing: "make image",
    docker: &["--network=host", "--read-only", "-e=SCONE_SIM_CAS_KEY"],
    debugging: &[],
    runtime: &["/scone-run"],
    sealed: "/.sealed",
};
const SIM_NATIVE: Facts = Facts {
    name: "sim-native",
    image: "simulator/bin/rootfs",
    simulator: true,
    engine: "scone-run",
    engine_missing: "make sim",
    image_missing: "make sim",
    docker: &[],
    debugging: &[],
    runtime: &[],
    sealed: "/.sealed",
};

/// The programs of the host that a platform needs.
pub struct Tools {
    pub(crate) facts: &'static Facts,
    pub(crate) root: PathBuf,
    /// SCONE's command line, or the simulator's.
    pub(crate) cli: Cli,
    pub(crate) engine: Tool,
    /// What the engine says of itself, once it was asked.
    pub(crate) engine_info: OnceCell<Value>,
    /// `scone-sim`; `None` on SCONE.
    pub(crate) simulator: Option<Tool>,
    /// The policies tolerate programs that are not signed for production: these are measured and started as such.
    pub is_for_debugging: bool,
    /// The engine's network in which SCONE's CAS is found, if that was said.
    pub network: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
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

    /// Finds the tools, and makes sure that the `scone` found is this platform's: a policy meant for SCONE must not end up in
    /// the simulator, nor the other way round. `account`: whom hints are about; `scone`: where SCONE's command line is, if that was
    /// said.
    pub fn tools(self, root: &Path, account: &str, scone: Option<&Path>) -> Result<Tools, Failure> {
        let facts = self.facts();
        let bundled = root.join("simulator/bin");
        let first = facts.simulator.then_some(bundled.as_path());
        let find = |tool, hint: &str| {
            Tool::find(tool, first).ok_or_else(|| match first.map(|bundled| bundled.join(tool)) {
                Some(built) if fs::metadata(&built).is_ok_and(|file| file.mode() & 0o111 != 0) => not_executed(&built),
                _ => Failure::from(PlatformError::NotFound { tool, platform: facts.name }).hint(hint),
            })
        };
        let option = hint::account(account);
        let rehearse = format!("./scripts/create.rs --platform sim{option}   # software only: a rehearsal");
        let hint = if facts.simulator { "make sim" } else { &rehearse };
        let cli = if facts.simulator {
            Cli::Program(find("scone", hint)?)
        } else {
            let missing = || {
                let missing = PlatformError::NotFound { tool: "scone", platform: facts.name };
                let pull = format!("docker pull {}   # or name the program: --scone PATH", Cli::image());
                Failure::from(missing).hint(pull).hint(hint)
            };
            Cli::find(scone, Tool::find(facts.engine, None))?.ok_or_else(missing)?
        };
        let version = ["--version".into()];
        if let Cli::Program(tool) = &cli {
            check_version(facts, &tool.run(&version, &[])?)?;
        }
        let simulator = facts.simulator.then(|| find("scone-sim", hint)).transpose()?;
        // Once a run, whatever the number of accounts.
        static SAID: Once = Once::new();
        if facts.simulator {
            SAID.call_once(|| {
                step(format!("platform '{}' is software only: a rehearsal that protects nobody from root", facts.name))
            });
        }
        let engine = find(facts.engine, facts.engine_missing)?;
        let (root, engine_info) = (root.to_owned(), OnceCell::new());
        let (is_for_debugging, network) = (false, None);
        let tools = Tools { facts, root, cli, engine, engine_info, simulator, is_for_debugging, network };
        if let Cli::Image(_) = &tools.cli {
            check_version(facts, &tools.scone(&version, None)?)?;
        }
        Ok(tools)
    }
}

/// Makes sure that the command line is this platform's, and says so if nobody supports it any more.
fn check_version(facts: &Facts, said: &Finished) -> Result<(), Failure> {
    let version = said.stdout.trim();
    if !said.success() || version.is_empty() {
        return Err(PlatformError::NoVersion { reason: said.reason() }.into());
    }
    if version.starts_with("scone-sim") != facts.simulator {
        return Err(PlatformError::Another { version: version.to_owned(), platform: facts.name }.into());
    }
    let major = version.split_whitespace().next_back().and_then(|number| number.split('.').next()?.parse::<u32>().ok());
    if major.is_some_and(|major| major < SUPPORTED) && !facts.simulator {
        static SAID: Once = Once::new();
        SAID.call_once(|| step(format!("'{version}' is out of support since 2025-10-31; SCONE 6.0 and newer are not")));
    }
    Ok(())
}

/// The oldest version of SCONE that is supported (reference/scone.md 10).
const SUPPORTED: u32 = 6;

/// What is marked as a program, and yet is none here.
fn not_executed(tool: &Path) -> Failure {
    let tool = tool.display().to_string();
    let mounted = format!("$(findmnt --noheadings --output TARGET --target {})", hint::quoted(&tool));
    Failure::from(PlatformError::NoExec { tool }).hint(format!("sudo mount -o remount,exec \"{mounted}\""))
}
