//! From a code to the first byte that the program prints, by `start.rs`, beside what the start of the same program costs without all
//! this: `docker run`, or its mere execution. Where the runtime's part of it goes, `make bench-run` says stage by stage.

#[path = "../tests/support/mod.rs"]
#[macro_use]
mod support;

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use support::image::{self, Tag};
use support::{Bundle, Platform, User, docker_is_there};

const ROUNDS: usize = 21;
/// Of files, in the image.
const MEGABYTES: usize = 20;

fn main() {
    println!(
        "{:<12} {:>10} {:>14} {:>16} {:>7} {:>14}",
        "ms, p50", "MB", "without all", "code to main", "ratio", "start to end"
    );
    measure(Platform::SimNative);
    if docker_is_there() {
        measure(Platform::Sim);
    }
}

fn measure(platform: Platform) {
    let bundle = Bundle::new("bundle", platform, User::Caller, true);
    bundle.install(scripts!());
    let alice = bundle.enrol("default");
    let directory = bundle.root.join("image");
    fs::create_dir(&directory).expect("a directory");
    image::shell(&directory, "echo main");
    fs::write(directory.join("app/data"), vec![7; MEGABYTES << 20]).expect("data");
    let tag = (platform == Platform::Sim).then(|| Tag::import(&directory, "bench", &[]));
    let name = tag.as_ref().map_or_else(|| directory.display().to_string(), |tag| tag.0.clone());
    bundle.script("protect", &["program", "--image", &name, "--command", "/bin/sh /app/service.sh"]).expect(0);

    let code = bundle.root.join("code");
    mknodat(CWD, &code, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
    let without = || {
        let mut command = Command::new(if platform == Platform::Sim { "docker" } else { "/bin/sh" });
        match &tag {
            Some(tag) => command.args(["run", "--rm", "--log-driver=none", &tag.0, "/bin/sh", "/app/service.sh"]),
            None => command.arg(directory.join("app/service.sh")),
        };
        command
    };
    let (mut plain, mut with_code, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    // Measured in turn, so that whatever else the machine does befalls both.
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        plain.push(first_byte(spawn(without()), begun));
        let begun = Instant::now();
        let child = spawn(bundle.script_command("start", &["program", "--otp-file", "code"]));
        // Opens when the script reads it: everything was checked by then, and a container is up.
        let mut fifo = OpenOptions::new().write(true).open(&code).expect("the FIFO");
        let typed = Instant::now();
        fifo.write_all(alice.code_at(bundle.now()).as_bytes()).expect("typing");
        drop(fifo);
        with_code.push(first_byte(child, typed));
        whole.push(begun.elapsed());
        bundle.wait(30);
    }
    let (plain, with_code, whole) = (middle(plain), middle(with_code), middle(whole));
    let megabytes = size(&directory) as f64 / 1e6;
    let ratio = with_code / plain;
    println!("{:<12} {megabytes:>10.1} {plain:>14.1} {with_code:>16.1} {ratio:>7.2} {whole:>14.1}", platform.name());
}

fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a child")
}

/// How long until the child prints something. Waits for its end, too.
fn first_byte(mut child: Child, begun: Instant) -> Duration {
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0]).expect("what it prints");
    let took = begun.elapsed();
    assert!(child.wait().expect("its end").success());
    took
}

fn size(directory: &Path) -> u64 {
    let mut command = Command::new("du");
    command.args(["--bytes", "--summarize"]).arg(directory);
    let printed = support::run(command).expect(0).stdout;
    printed.split_whitespace().next().and_then(|size| size.parse().ok()).expect("a size")
}

/// In milliseconds.
fn middle(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}
