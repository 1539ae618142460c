//! Whether what runs is what the sources say.
//!
//! rust-script compiles a script anew when the script's modification time says so. It does not look at the library, and neither
//! rust-script nor cargo notices files that arrive with older times (`rsync -a`, `tar`, `cp -p`). So each script compares its own
//! text, and a digest of the library, with what it was compiled from, and has itself compiled anew when they differ.
//!
//! Limits: pinned crates from the registry are cargo's business. Only a start by rust-script is checked: `make bin` and the tests
//! build with cargo, and their programs run without their sources.

mod digest;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use self::digest::digest;
use crate::failure::{Concern, Exit, Failure};
use crate::hint;
use crate::step;

/// Cargo recompiles the library (build.rs), and with it the script, when this changes.
const SOURCE_DIGEST: &str = "OTPQR_SOURCE_DIGEST";
/// Cargo recompiles the script (see the macro) when this changes. It is apart from the library's, so that the second script that
/// is out of date finds the library compiled.
const SCRIPT_DIGEST: &str = "OTPQR_SCRIPT_DIGEST";
/// `PID ATTEMPT`. The process stays the same through every exec, so a value left in the environment belongs to another one.
const ATTEMPT: &str = "OTPQR_COMPILED_ANEW";
/// The second attempt sets digests that cargo cannot have seen before.
const ATTEMPTS: u32 = 2;

/// The first statement of a script's `main`, with the script's own file name. It expands in the script's crate: there
/// `RUST_SCRIPT_PATH` tells rust-script's build from cargo's, and the digest makes cargo compile that crate anew.
#[macro_export]
macro_rules! fresh {
    ($file:literal) => {
        if option_env!("RUST_SCRIPT_PATH").is_some() {
            $crate::fresh::check($file, include_str!($file), option_env!("OTPQR_SCRIPT_DIGEST"));
        }
    };
}

/// Why it cannot be told whether the program is out of date, or why it stays so.
#[derive(Debug, thiserror::Error)]
enum FreshError {
    #[error("this program was compiled by rust-script but not started by it, so it may be out of date")]
    NotByRustScript,
    #[error("cannot compare the program with its source '{script}': {cause}")]
    NoScript { script: String, cause: io::Error },
    #[error("cannot compare the program with the library in '{library}': '{source_file}': {cause}")]
    NoLibrary { library: String, source_file: String, cause: io::Error },
    #[error("compiled anew, the program still differs from '{script}' or the library in '{library}'")]
    StillDifferent { script: String, library: String },
    #[error("cannot start rust-script to compile the program anew: {0}")]
    NotStarted(io::Error),
}

impl Concern for FreshError {
    fn exit(&self) -> Exit {
        Exit::Other
    }
}

/// Returns if the script is what its sources say. Otherwise it is compiled anew and started in place of this process, or the
/// process ends with exit code 1: old code never runs. `_digest` only makes the script's crate depend on the variable.
pub fn check(file: &str, compiled: &str, _digest: Option<&str>) {
    let script = file.strip_suffix(".rs").unwrap_or(file);
    crate::SCRIPT.get_or_init(|| script.to_owned());
    if let Err(failure) = check_or_restart(script, compiled) {
        process::exit(failure.print().into());
    }
}

fn check_or_restart(script: &str, compiled: &str) -> Result<(), Failure> {
    let place = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let (Some(path), Some(base)) = (place("RUST_SCRIPT_PATH"), place("RUST_SCRIPT_BASE_PATH")) else {
        return Err(Failure::from(FreshError::NotByRustScript).hint(format!("./scripts/{script}.rs")));
    };
    let library = base.join("bundle");
    let shown = |path: &Path| path.display().to_string();
    let text = fs::read(&path).map_err(|cause| FreshError::NoScript { script: shown(&path), cause })?;
    let now = digest(&library).map_err(|(source, cause)| {
        let error = FreshError::NoLibrary { library: shown(&library), source_file: shown(&source), cause };
        Failure::from(error).hint("export OTPQR_ROOT=/path/to/the/checkout")
    })?;
    if text == compiled.as_bytes() && now == env!("BUNDLE_DIGEST") {
        return Ok(());
    }
    let attempt = attempt();
    if attempt > ATTEMPTS {
        let error = FreshError::StillDifferent { script: shown(&path), library: shown(&library) };
        let command = format!("rust-script --clear-cache --force {} --version", hint::path(&path));
        return Err(Failure::from(error).hint(command));
    }
    step("its source or the library changed: compiling it anew (new dependencies are downloaded)");
    let cause = restart(&base, &path, &now, &digest_of_text(&text), attempt);
    Err(Failure::from(FreshError::NotStarted(cause)).hint("make rust-script"))
}

/// The digest of a script.
fn digest_of_text(text: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(text);
    format!("{:016x}", hasher.finish())
}

/// Which attempt of this very process the next one is.
fn attempt() -> u32 {
    let last = env::var(ATTEMPT).unwrap_or_default();
    let mine = last.split_once(' ').filter(|(process, _)| *process == process::id().to_string());
    mine.and_then(|(_, attempt)| attempt.parse().ok()).map_or(1, |last: u32| last.saturating_add(1))
}

/// Only returns if it fails. The script is named as it was called, since rust-script's cache goes by that.
fn restart(base: &Path, path: &Path, library: &str, text: &str, attempt: u32) -> io::Error {
    let mut arguments = env::args_os();
    let called: OsString = arguments.next().filter(|name| !name.is_empty()).unwrap_or_else(|| path.into());
    let unique = if attempt == 1 { String::new() } else { format!("-{}", process::id()) };
    Command::new("rust-script")
        .args(["--force", "--base-path"])
        .args([base.as_os_str(), "--".as_ref(), &called])
        .args(arguments)
        .env(SOURCE_DIGEST, format!("{library}{unique}"))
        .env(SCRIPT_DIGEST, format!("{text}{unique}"))
        .env(ATTEMPT, format!("{} {attempt}", process::id()))
        .exec()
}
