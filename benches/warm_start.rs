//! What rust-script, the shebang and the look at the sources add to the start of a script that was compiled before (`make warm`),
//! over the very program that rust-script then runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 101;
const SCRIPTS: [&str; 7] = ["create", "gen_qr", "add_auth", "roll_forward", "protect", "start", "doctor"];

fn main() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    println!("{:<14} {:>12} {:>12} {:>9} {:>7}", "ms, p50", "script", "program", "added", "ratio");
    for name in SCRIPTS {
        let source = format!("./scripts/{name}.rs");
        let script = || {
            let mut command = Command::new(&source);
            command.current_dir(repository);
            command
        };
        let compiled = compiled(repository, &source);
        let program = || {
            let mut command = Command::new(&compiled);
            // As rust-script sets them.
            command.env("RUST_SCRIPT_BASE_PATH", repository.join("scripts")).env("RUST_SCRIPT_PATH", &source);
            command.current_dir(repository);
            command
        };
        // Measured in turn, so that whatever else the machine does befalls both.
        let (mut scripts, mut programs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            scripts.push(time(script()));
            programs.push(time(program()));
        }
        let (script, program) = (middle(scripts), middle(programs));
        println!("{name:<14} {script:>12.2} {program:>12.2} {:>9.2} {:>7.1}", script - program, script / program);
    }
}

/// Where rust-script keeps what it compiled of a script.
fn compiled(repository: &Path, source: &str) -> PathBuf {
    let output = Command::new("rust-script").args(["--package", source]).current_dir(repository).output();
    let output = String::from_utf8(output.expect("rust-script: make warm").stdout).expect("UTF-8");
    let package = Path::new(output.trim());
    let id = package.file_name().expect("a name").to_str().expect("UTF-8");
    let name = Path::new(source).file_stem().expect("a name").to_str().expect("UTF-8");
    package.ancestors().nth(2).expect("the cache").join(format!("binaries/release/{name}_{id}"))
}

fn time(mut command: Command) -> Duration {
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let started = Instant::now();
    let status = command.status().expect("a script: make warm");
    let took = started.elapsed();
    assert!(status.success(), "{command:?}");
    took
}

/// In milliseconds.
fn middle(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}
