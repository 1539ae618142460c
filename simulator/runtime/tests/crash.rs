//! Cut off anywhere, a volume opens with the last state whose fsync returned, or a newer one: never older, never stuck. The
//! runtime and its program are killed at each call of a sync, so is the real CAS, and power is cut after each operation on the
//! disk. `strace` does the killing and the recording; without it these tests are skipped, and with `REQUIRE_DOCKER=1` they fail.

#[path = "support/counter.rs"]
mod counter;
mod support;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use counter::{Host, text, tools_are_there};
use rustix::process::{Pid, Signal, kill_process};
use scone_protocol::{Secret, VolumeGrant, hex};
use scone_run::volume::Volume;

impl Host {
    fn count(&self, before: &[&str]) -> Output {
        self.runtime(before).env("SCONE_CONFIG_ID", "crash/count").output().unwrap()
    }

    /// The number in the volume. Opens the volume, so it must open; and all of a state is there, or nothing of it.
    #[track_caller]
    fn counted(&self) -> u32 {
        let output = self.runtime(&[]).env("SCONE_CONFIG_ID", "crash/counted").output().unwrap();
        assert!(output.status.success(), "stuck: {}", text(&output.stderr));
        let said = text(&output.stdout);
        let number = said.split(' ').next().unwrap().parse().unwrap_or(0);
        let expected = if number == 0 { " \n".to_owned() } else { format!("{number} is-{number} number\n") };
        assert_eq!(said, expected, "half a state");
        number
    }

    /// The number in the volume, which was `before` before the run that was cut off.
    #[track_caller]
    fn counted_on(&self, before: u32) -> u32 {
        let lines = fs::read_to_string(self.path("out/acknowledged")).unwrap_or_default();
        let acknowledged = lines.lines().last().map_or(0, |line| line.parse().unwrap()).max(before);
        let counted = self.counted();
        assert!(counted >= acknowledged, "{counted} is older than {acknowledged}");
        assert!(counted <= acknowledged + 1, "{counted} was never written after {acknowledged}");
        counted
    }
}

#[test]
fn a_runtime_or_program_killed_at_any_call_of_a_sync_loses_nothing_that_was_acknowledged() {
    if !tools_are_there() {
        return;
    }
    let host = Host::new();
    let (mut killed, mut counted) = (0, 0);
    // What is sent goes by writev.
    for call in ["write", "fdatasync", "fsync", "renameat", "flock", "unlinkat", "writev"] {
        let before = killed;
        for when in 1.. {
            let inject = format!("inject={call}:signal=SIGKILL:when={when}");
            let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
            let ended = host.count(&strace);
            counted = host.counted_on(counted);
            if ended.status.success() {
                break;
            }
            assert_killed(&ended);
            killed += 1;
        }
        assert!(killed > before, "a sync does no {call}");
    }
    assert!(killed > 20, "killed {killed} times only");
}

/// Killed, and not stopped by itself: that would be a finding, and no end to the trying.
#[track_caller]
fn assert_killed(ended: &Output) {
    assert_ne!(ended.status.code(), Some(134), "{}", text(&ended.stderr));
}

#[test]
fn a_kernel_that_does_not_know_wait_killable_recv_holds_a_sync_as_well() {
    if !tools_are_there() {
        return;
    }
    let host = Host::new();
    let (mut killed, mut counted) = (0, 0);
    for when in 1.. {
        let (trace, inject) = (host.path("trace"), format!("inject=writev:signal=SIGKILL:when={when}"));
        let strace =
            ["strace", "-f", "-qq", "-o", trace.to_str().unwrap(), "-e", "trace=seccomp,writev", "-e", &inject];
        // What such a kernel answers.
        let ended = host.count(&[&strace[..], &["-e", "inject=seccomp:error=EINVAL:when=1"]].concat());
        counted = host.counted_on(counted);
        if ended.status.success() {
            let trace = fs::read_to_string(&trace).unwrap();
            let filters: Vec<&str> = trace.lines().filter(|line| line.contains("SECCOMP_SET_MODE_FILTER")).collect();
            let [refused, installed] = filters[..] else { panic!("{trace}") };
            assert!(refused.contains("WAIT_KILLABLE_RECV") && refused.contains("EINVAL"), "{refused}");
            assert!(!installed.contains("WAIT_KILLABLE_RECV") && !installed.contains("= -1"), "{installed}");
            break;
        }
        assert_killed(&ended);
        killed += 1;
    }
    assert!(killed > 4, "killed {killed} times only");
}

#[test]
fn a_cas_killed_at_any_write_of_a_tag_loses_nothing_that_was_acknowledged() {
    if !tools_are_there() {
        return;
    }
    let mut host = Host::new();
    let front = front(host.cas.enclave.clone());
    let (mut killed, mut went_on, mut counted) = (0, 0, 0);
    for call in ["pwrite64", "fdatasync"] {
        for when in 1.. {
            let (mut strace, _attached) = attach(&host.cas.process, call, when);
            let mut count = host.runtime(&[]);
            count.env("SCONE_CAS_ADDR", &front).env("SCONE_CONFIG_ID", "crash/count");
            let count = count.stderr(Stdio::piped()).spawn().unwrap();
            let (sender, ended) = mpsc::channel();
            let waiting = thread::spawn(move || sender.send(count.wait_with_output().unwrap()).unwrap());
            // A killed CAS is started again, as whoever runs it would; the runtime may be waiting for that.
            let mut was_missed = false;
            let output = loop {
                if host.cas.process.try_wait().unwrap().is_some() {
                    was_missed = true;
                    host.cas.serve_again();
                }
                match ended.recv_timeout(Duration::from_millis(5)) {
                    Err(_) => continue,
                    Ok(output) => break output,
                }
            };
            waiting.join().unwrap();
            strace.kill().unwrap();
            strace.wait().unwrap();
            // One that was killed unnoticed, as the run ended or after it, shows that in how it ends.
            let was_killed = was_missed || {
                // It may be gone already.
                let _ = kill_process(Pid::from_child(&host.cas.process), Signal::TERM);
                let ended = host.cas.process.wait().unwrap();
                host.cas.serve_again();
                ended.signal() == Some(Signal::KILL.as_raw())
            };
            assert!(
                was_killed || output.status.success(),
                "the runtime failed though CAS was not killed: {}",
                text(&output.stderr)
            );
            counted = host.counted_on(counted);
            if !was_killed {
                break;
            }
            killed += 1;
            went_on += u32::from(was_missed && output.status.success());
        }
    }
    assert!(killed > 4 && went_on > 2, "killed {killed} times only, and {went_on} went on");
}

/// Where connections to this CAS are taken at once, and led on when it is there. The runtime gives up on a CAS that refuses them
/// after a few seconds, which a machine may need to start it again.
fn front(cas: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let lead = |from: &TcpStream, to: &TcpStream| {
        // Either end may be killed.
        let _ = io::copy(&mut &*from, &mut &*to);
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    };
    thread::spawn(move || {
        for runtime in listener.incoming() {
            let (runtime, cas) = (runtime.unwrap(), cas.clone());
            thread::spawn(move || {
                let cas = loop {
                    match TcpStream::connect(&cas) {
                        Ok(cas) => break cas,
                        Err(_) => thread::sleep(Duration::from_millis(5)),
                    }
                };
                thread::scope(|scope| {
                    scope.spawn(|| lead(&cas, &runtime));
                    lead(&runtime, &cas);
                });
            });
        }
    });
    address
}

/// What a thief of copies can do: nothing with one of the two, and with both what nobody on this host can tell from the past.
#[test]
fn an_older_copy_of_cas_is_refused_and_only_one_of_cas_and_volume_together_is_not() {
    if !tools_are_there() {
        return;
    }
    let mut host = Host::new();
    let copy = |from: PathBuf, to: PathBuf| {
        let copied = Command::new("cp").arg("-aT").arg(from).arg(to).status().unwrap();
        assert!(copied.success());
    };
    assert!(host.count(&[]).status.success());
    host.cas.process.kill().unwrap();
    copy(host.path("cas"), host.path("older cas"));
    copy(host.path("volume"), host.path("older volume"));
    host.cas.serve_again();
    assert!(host.count(&[]).status.success());
    assert_eq!(host.counted(), 4);

    host.cas.process.kill().unwrap();
    fs::rename(host.path("cas"), host.path("newer cas")).unwrap();
    copy(host.path("older cas"), host.path("cas"));
    host.cas.serve_again();
    let refused = host.count(&[]);
    assert_eq!(refused.status.code(), Some(134));
    let error = text(&refused.stderr);
    assert!(error.contains("Caused by: The FSPF tag is not fresh - suspected replay attack"), "{error}");

    fs::rename(host.path("volume"), host.path("newer volume")).unwrap();
    copy(host.path("older volume"), host.path("volume"));
    assert_eq!(host.counted(), 2, "documented: nothing on this host remembers more");
}

/// A strace on a running process, once it has taken hold of it; it kills at that call.
fn attach(process: &Child, call: &str, when: u32) -> (Child, BufReader<ChildStderr>) {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    strace.args(["-e", &format!("inject={call}:signal=SIGKILL:when={when}"), "-p", &process.id().to_string()]);
    let mut strace = strace.stderr(Stdio::piped()).spawn().unwrap();
    let mut words = BufReader::new(strace.stderr.take().unwrap());
    let mut line = String::new();
    words.read_line(&mut line).unwrap();
    assert!(line.contains("attached"), "{line}");
    (strace, words)
}

// ---- power ------------------------------------------------------------------------------------------------------------

/// What was done to the sealed directory, and when CAS was asked to take a tag.
#[derive(Debug, Clone)]
enum Operation {
    Create(String),
    Write(String, Vec<u8>),
    SyncFile(String),
    Rename(String, String),
    Delete(String),
    SyncDirectory,
    Asked(String),
}

/// A disk that may lose power.
#[derive(Default)]
struct Disk {
    /// Content, and how much of it is safe.
    files: Vec<(Vec<u8>, usize)>,
    names: BTreeMap<String, usize>,
    /// The names at the last sync of the directory, and what became of names since: the file they name, or none.
    safe_names: BTreeMap<String, usize>,
    pending: Vec<(String, Option<usize>)>,
}

impl Disk {
    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Create(name) => {
                self.files.push(Default::default());
                self.name(name, Some(self.files.len() - 1));
            }
            Operation::Rename(from, to) => {
                let file = self.names[from];
                self.name(from, None);
                self.name(to, Some(file));
            }
            Operation::Delete(name) => self.name(name, None),
            Operation::Write(name, bytes) => self.files[self.names[name]].0.extend(bytes),
            Operation::SyncFile(name) => {
                let file = &mut self.files[self.names[name]];
                file.1 = file.0.len();
            }
            Operation::SyncDirectory => {
                self.safe_names = self.names.clone();
                self.pending.clear();
            }
            Operation::Asked(_) => {}
        }
    }

    fn name(&mut self, name: &str, file: Option<usize>) {
        set(&mut self.names, name, file);
        // Drafts are never looked at.
        if !name.ends_with(".tmp") {
            self.pending.push((name.to_owned(), file));
        }
    }

    /// The directories that may be found when power is back: of what became of names since the last sync a file system may
    /// have kept any part (of very many: all or nothing); of a file, what was synced.
    fn after_power_loss(&self) -> Vec<BTreeMap<String, Vec<u8>>> {
        let count = self.pending.len();
        let kept: Vec<Vec<bool>> = match count {
            0..=8 => (0..1u32 << count).map(|bits| (0..count).map(|index| bits >> index & 1 == 1).collect()).collect(),
            _ => vec![vec![false; count], vec![true; count]],
        };
        let found = kept.iter().map(|kept| {
            let mut names = self.safe_names.clone();
            for ((name, file), _) in self.pending.iter().zip(kept).filter(|(_, kept)| **kept) {
                set(&mut names, name, *file);
            }
            let synced = |file: usize| self.files[file].0[..self.files[file].1].to_vec();
            names.into_iter().map(|(name, file)| (name, synced(file))).collect()
        });
        found.collect()
    }
}

fn set(names: &mut BTreeMap<String, usize>, name: &str, file: Option<usize>) {
    match file {
        Some(file) => names.insert(name.to_owned(), file),
        None => names.remove(name),
    };
}

/// Reads what `strace -y -xx` recorded of the process that seals into `directory`.
fn parse(trace: &str, directory: &str) -> Vec<Operation> {
    let decode =
        |text: &str| -> Vec<u8> { text.split("\\x").skip(1).map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect() };
    let mut operations = Vec::new();
    for line in trace.lines() {
        // PID, call(FD<PATH>, "TEXT", …) = RESULT; all text in hex.
        let Some((call, rest)) = line.split_once(' ').and_then(|(_, line)| line.trim_start().split_once('(')) else {
            continue;
        };
        let Some((path, rest)) = rest.split_once('<').and_then(|(_, rest)| rest.split_once('>')) else { continue };
        let path = text(&decode(path));
        let texts: Vec<Vec<u8>> = rest.split('"').skip(1).step_by(2).map(decode).collect();
        let names: Vec<String> = texts.iter().map(|name| text(name)).collect();
        assert!(!rest.contains("unfinished") && !rest.contains("\"..."), "{line}");
        if call == "write" && names[0].starts_with("tag ") {
            operations.push(Operation::Asked(names[0][4..].trim().to_owned()));
        }
        let Some(file) = path.strip_prefix(directory) else { continue };
        let file = file.trim_start_matches('/').to_owned();
        operations.push(match call {
            "openat" if rest.contains("O_CREAT") => Operation::Create(names[0].clone()),
            "openat" => continue,
            "write" => Operation::Write(file, texts[0].clone()),
            "fdatasync" => Operation::SyncFile(file),
            "fsync" if file.is_empty() => Operation::SyncDirectory,
            "renameat" => Operation::Rename(names[0].clone(), names[1].clone()),
            "unlinkat" => Operation::Delete(names[0].clone()),
            _ => panic!("a sealed directory is not written like this: {line}"),
        });
    }
    operations
}

fn open(sealed: &Path, plain: &Path, tag: Option<&str>) -> Volume {
    let grant = VolumeGrant {
        session: "s".into(),
        name: "v".into(),
        path: "/v".into(),
        key: Secret::new(hex(&[7; 32])),
        tag: tag.map(str::to_owned),
        ..VolumeGrant::default()
    };
    Volume::open(sealed, plain, &grant).unwrap_or_else(|error| panic!("stuck: {error}"))
}

const STATES: u32 = 4;
const DIRECTORIES: &str = "SEAL_INTO";

/// Seals the empty volume, one of so many files that later changes are listed for themselves, and these.
#[test]
#[ignore = "run by the next test, recorded"]
fn seal_a_few_states() {
    let Some(directory) = std::env::var_os(DIRECTORIES).map(PathBuf::from) else { return };
    let plain = directory.join("plain");
    let mut volume = open(&directory.join("sealed"), &plain, None);
    let mut seal = || {
        let set_tag = &mut |_: Option<&str>, new: &str| {
            std::io::stdout().write_all(format!("tag {new}\n").as_bytes()).unwrap();
            Ok(())
        };
        volume.seal(set_tag).unwrap();
    };
    seal();
    for file in 0..70 {
        fs::write(plain.join(format!("file {file}")), file.to_string()).unwrap();
    }
    for state in 1..STATES {
        fs::write(plain.join("state"), state.to_string()).unwrap();
        fs::write(plain.join(format!("file {state}")), "changed").unwrap();
        seal();
    }
}

#[test]
fn power_lost_at_any_moment_loses_nothing_that_was_acknowledged() {
    if !tools_are_there() {
        return;
    }
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    for name in ["sealed", "plain"] {
        fs::create_dir(directory.path().join(name)).unwrap();
    }
    let trace = directory.path().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-y", "-xx", "-s", "10000000", "-o"]).arg(&trace);
    let calls =
        "trace=openat,write,pwrite64,writev,fsync,fdatasync,sync_file_range,syncfs,ftruncate,/^(rename|unlink|link).*";
    strace.args(["-e", calls]).arg(std::env::current_exe().unwrap());
    strace.args(["--exact", "seal_a_few_states", "--ignored", "--nocapture", "--test-threads=1"]);
    let recorded = strace.env(DIRECTORIES, directory.path()).output().unwrap();
    assert!(recorded.status.success(), "{}", text(&recorded.stderr));
    let operations = parse(&fs::read_to_string(&trace).unwrap(), directory.path().join("sealed").to_str().unwrap());

    let mut disk = Disk::default();
    // The tags that CAS may hold, with the state that each names.
    let mut held: Vec<(Option<String>, u32)> = vec![(None, 0)];
    let (mut states, mut tried) = (0, HashSet::new());
    for operation in &operations {
        disk.apply(operation);
        match operation {
            Operation::Asked(tag) => {
                held.push((Some(tag.clone()), states));
                states += 1;
            }
            // CAS has answered.
            _ => drop(held.drain(..held.len() - 1)),
        }
        for found in disk.after_power_loss() {
            for (tag, state) in &held {
                if !tried.insert((found.clone(), tag.clone())) {
                    continue;
                }
                let (sealed, plain) =
                    (tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
                for (name, content) in &found {
                    fs::write(sealed.path().join(name), content).unwrap();
                }
                drop(open(sealed.path(), plain.path(), tag.as_deref()));
                let state_found = fs::read_to_string(plain.path().join("state")).unwrap_or("0".to_owned());
                assert_eq!(state_found, state.to_string(), "after {operation:?}");
            }
        }
    }
    assert_eq!(states, STATES);
    assert!(tried.len() > 150, "tried {} only", tried.len());
}
