//! One program seals a volume, and any number of others open it `ephemeral` meanwhile: with the real CAS, each in a runtime of
//! its own. None is refused, none hinders the one that seals, and each sees a state that was sealed.

#[path = "support/counter.rs"]
mod counter;
// Each test file uses its own part of it.
#[allow(dead_code)]
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use counter::{Host, text, tools_are_there};
use rustix::process::{Pid, Signal, kill_process};

/// As many as the issue asks for, and so many at once.
const READERS: usize = 300;
const AT_ONCE: usize = 6;

/// A program that counts, and is killed when the test is over.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        // It may have ended, which the tests find out for themselves.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Writer {
    /// Starts it, and waits until it has sealed a number.
    fn start(host: &Host) -> Writer {
        let before = acknowledged(host);
        let mut command = host.runtime(&[]);
        let mut writer =
            Writer(command.env("SCONE_CONFIG_ID", "crash/count-on").stderr(Stdio::piped()).spawn().unwrap());
        while acknowledged(host) == before {
            writer.assert_runs();
            thread::sleep(Duration::from_millis(1));
        }
        writer
    }

    #[track_caller]
    fn assert_runs(&mut self) {
        let Some(status) = self.0.try_wait().unwrap() else { return };
        let mut error = String::new();
        std::io::Read::read_to_string(self.0.stderr.as_mut().unwrap(), &mut error).unwrap();
        panic!("it failed: {status}: {error}");
    }

    fn kill(mut self) {
        self.assert_runs();
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The last number of which the program knows that it is safe.
fn acknowledged(host: &Host) -> u32 {
    let lines = fs::read_to_string(host.path("out/acknowledged")).unwrap_or_default();
    lines.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).next_back().unwrap_or(0)
}

fn reader(host: &Host, volume: &str, before: &[&str]) -> Command {
    let mut command = host.runtime_with(volume, before);
    command.env("SCONE_CONFIG_ID", "readers/counted");
    command
}

/// The number that a program saw beside the one that counts; a state in which number and file name differ was never sealed.
#[track_caller]
fn seen(output: &Output) -> u32 {
    assert!(output.status.success(), "refused: {}", text(&output.stderr));
    let said = text(&output.stdout);
    let number = said.split(' ').next().unwrap().parse().unwrap_or(0);
    assert_eq!(said, format!("{number} is-{number} number\nsync returned\n"), "never sealed");
    number
}

#[track_caller]
fn assert_refused(output: &Output, cause: &str) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(134), "{error}");
    assert!(error.contains(&format!("Caused by: {cause}\n")) && output.stdout.is_empty(), "{error}");
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-aT").arg(from).arg(to).status().unwrap().success());
}

const STALE: &str = "The FSPF tag is not fresh - suspected replay attack";

#[test]
fn three_hundred_readers_beside_a_program_that_seals_all_the_time_are_all_served_and_do_not_hinder_it() {
    if !tools_are_there() {
        return;
    }
    let host = Host::new();
    let mut writer = Writer::start(&host);
    let first = acknowledged(&host);
    let started = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while started.fetch_add(1, Ordering::Relaxed) < READERS {
                    let before = acknowledged(&host);
                    let number = seen(&reader(&host, "volume", &[]).output().unwrap());
                    let after = acknowledged(&host);
                    assert!((before..=after + 1).contains(&number), "{number} is none of {before} to {after}");
                }
            });
        }
    });
    writer.assert_runs();
    let sealed = acknowledged(&host) - first;
    assert!(sealed > READERS as u32 / 10, "sealed {sealed} times only");
    eprintln!("{READERS} readers, {sealed} seals meanwhile");
}

#[test]
fn a_reader_whose_state_is_sealed_over_before_it_has_the_lock_is_served_the_next_one() {
    if !tools_are_there() {
        return;
    }
    let host = Host::new();
    let mut writer = Writer::start(&host);
    let delay = "inject=flock:delay_enter=500000:when=1";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", delay];
    let before = acknowledged(&host);
    let number = seen(&reader(&host, "volume", &strace).output().unwrap());
    assert!(number > before + 5, "nothing was sealed meanwhile");
    writer.assert_runs();
}

#[test]
fn a_second_program_that_would_seal_is_refused_while_readers_come_and_go() {
    if !tools_are_there() {
        return;
    }
    let host = Host::new();
    let second = || host.runtime(&[]).env("SCONE_CONFIG_ID", "crash/counted").output().unwrap();
    let mut writer = Writer::start(&host);
    for _ in 0..5 {
        assert_refused(&second(), "the volume is in use by another program");
        seen(&reader(&host, "volume", &[]).output().unwrap());
        assert_refused(&second(), "the volume is in use by another program");
    }
    writer.assert_runs();
    // Killed, it leaves no lock behind.
    writer.kill();
    let before = acknowledged(&host);
    let number = seen(&reader(&host, "volume", &[]).output().unwrap());
    assert!((before..=before + 1).contains(&number));
    assert!(second().status.success());
}

#[test]
fn an_older_copy_of_the_volume_is_refused_also_beside_the_program_that_seals() {
    if !tools_are_there() {
        return;
    }
    let host = Host::new();
    let count = || assert!(host.runtime(&[]).env("SCONE_CONFIG_ID", "crash/count").status().unwrap().success());
    count();
    copy(&host.path("volume"), &host.path("older"));
    count();
    assert_refused(&reader(&host, "older", &[]).output().unwrap(), STALE);
    let mut writer = Writer::start(&host);
    for _ in 0..3 {
        assert_refused(&reader(&host, "older", &[]).output().unwrap(), STALE);
    }
    writer.assert_runs();
    seen(&reader(&host, "volume", &[]).output().unwrap());
}

#[test]
fn a_reader_deletes_nothing_not_even_what_an_interrupted_seal_left() {
    if !tools_are_there() {
        return;
    }
    let host = Host::new();
    let found = || {
        let names = fs::read_dir(host.path("volume")).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        (names, fs::metadata(host.path("volume")).unwrap().mtime_nsec())
    };
    // Never used: there is nothing to be read, and nothing comes into being.
    let output = reader(&host, "volume", &[]).output().unwrap();
    assert_eq!((text(&output.stdout), found().0.len()), (" \nsync returned\n".to_owned(), 0));

    // Killed before anything is deleted.
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=unlinkat"];
    let kill = ["-e", "inject=unlinkat:signal=SIGKILL:when=3"];
    let killed = host.runtime(&[&strace[..], &kill].concat()).env("SCONE_CONFIG_ID", "crash/count").output().unwrap();
    assert!(!killed.status.success());
    let before = found();
    assert!(before.0.len() > 3, "nothing was left: {before:?}");
    seen(&reader(&host, "volume", &[]).output().unwrap());
    assert_eq!(found(), before);
}

#[test]
fn a_reader_killed_while_it_restores_lets_the_seal_go_on() {
    if !tools_are_there() {
        return;
    }
    let host = Host::new();
    assert!(host.runtime(&[]).env("SCONE_CONFIG_ID", "crash/count").status().unwrap().success());
    // It stops when it has the lock, for longer than a seal waits.
    let strace =
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:delay_exit=60000000"];
    let mut held = reader(&host, "volume", &strace).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let restoring = loop {
        match reading(&host.path("volume")) {
            Some(pid) => break pid,
            None => assert!(held.try_wait().unwrap().is_none(), "it restored nothing"),
        }
    };
    let mut seal = host.runtime(&[]).env("SCONE_CONFIG_ID", "crash/count").stderr(Stdio::piped()).spawn().unwrap();
    // Several times what it takes otherwise.
    thread::sleep(Duration::from_millis(500));
    assert!(seal.try_wait().unwrap().is_none(), "it did not wait");
    seen(&reader(&host, "volume", &[]).output().unwrap());
    let killed = Instant::now();
    kill_process(restoring, Signal::KILL).unwrap();
    // strace would keep the dead from going.
    held.kill().unwrap();
    let sealed = seal.wait_with_output().unwrap();
    assert!(sealed.status.success(), "{}", text(&sealed.stderr));
    assert!(killed.elapsed() < Duration::from_secs(5));
    held.wait().unwrap();
}

/// A process that holds the lock of a reader on a manifest in this directory.
fn reading(volume: &Path) -> Option<Pid> {
    let inodes: Vec<u64> =
        fs::read_dir(volume).unwrap().map(|entry| entry.unwrap().metadata().unwrap().ino()).collect();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    // NUMBER: FLOCK ADVISORY READ PID MAJOR:MINOR:INODE …
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let inode = words.get(5)?.rsplit(':').next()?.parse().ok()?;
        (words[3] == "READ" && inodes.contains(&inode)).then(|| Pid::from_raw(words[4].parse().ok()?))?
    })
}
