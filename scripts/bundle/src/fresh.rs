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
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use self::digest::digest;

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

/// Returns if the script is what its sources say. Otherwise it is compiled anew and started in place of this process, or the
/// process ends with exit code 1: old code never runs. `_digest` only makes the script's crate depend on the variable.
pub fn check(file: &str, compiled: &str, _digest: Option<&str>) {
    let script = file.strip_suffix(".rs").unwrap_or(file);
    if let Err((message, hint)) = check_or_restart(script, compiled) {
        // Not eprintln!, which panics when standard error is closed: the exit code must survive that.
        let _ = io::stderr().write_all(format!("{script}: error: {message}\nhint: {hint}\n").as_bytes());
        process::exit(crate::failure::Exit::Other as i32);
    }
}

/// An error is a message and a hint.
fn check_or_restart(script: &str, compiled: &str) -> Result<(), (String, String)> {
    let place = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let (Some(path), Some(base)) = (place("RUST_SCRIPT_PATH"), place("RUST_SCRIPT_BASE_PATH")) else {
        let message = "this program was compiled by rust-script and is started without it: it may be out of date";
        return Err((message.to_owned(), format!("./scripts/{script}.rs")));
    };
    let library = base.join("bundle");
    let text = fs::read(&path).map_err(|cause| {
        let message = format!("cannot compare the program with its source '{}': {cause}", path.display());
        (message, format!("start it where it lies: ./scripts/{script}.rs"))
    })?;
    let now = digest(&library).map_err(|(source, cause)| {
        let (library, source) = (library.display(), source.display());
        let message = format!("cannot compare the program with the library in '{library}': '{source}': {cause}");
        (message, "export OTPQR_ROOT=/path/to/the/checkout".to_owned())
    })?;
    if text == compiled.as_bytes() && now == env!("BUNDLE_DIGEST") {
        return Ok(());
    }
    let attempt = attempt();
    if attempt > ATTEMPTS {
        let (shown, library) = (path.display(), library.display());
        let message = format!("compiled anew, the program still differs from '{shown}' or the library in '{library}'");
        return Err((message, format!("rust-script --clear-cache --force {} --version", crate::hint::path(&path))));
    }
    let said =
        format!("{script}: its source or the library changed: compiling it anew (new dependencies are downloaded)\n");
    let _ = io::stderr().write_all(said.as_bytes());
    let cause = restart(&base, &path, &now, &digest_of_text(&text), attempt);
    Err((format!("cannot start rust-script to compile the program anew: {cause}"), "make rust-script".to_owned()))
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
