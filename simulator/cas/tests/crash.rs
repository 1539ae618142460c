//! Whatever ends CAS in the middle of an acceptance - `kill -9` at any system call, a failing disk, a power cut at any
//! moment - no code is accepted twice, and no configuration is released whose code is not consumed.
//! strace(1) does the killing and the recording. Without it, or where it may not attach, the tests are skipped, loudly; with
//! `REQUIRE_DOCKER=1`, as in CI, they fail.

mod world;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use scone_protocol::connection::{Address, Connection, Error};
use scone_protocol::{Configuration, Response};
use scone_sim::cas::{Access, Cas, Claim};
use scone_sim::clock::Clock;
use world::{HEADLINE, MRENCLAVE, NOW, World, code, refused};

const SERVICE: &str = "ns/otpqr-reset/otpqr";

/// What changes the database's files.
const DISK: &str = "pwrite64,pwritev,fsync,fdatasync,ftruncate,unlink,rename";

/// What reaches the peer (and wakes CAS's own threads).
const NETWORK: &str = "write,writev,sendto,sendmsg";

/// A CAS that can be put back to where it was, with the code it is going to be asked with.
struct Victim {
    world: World,
    code: String,
}

impl Victim {
    fn new() -> Victim {
        let mut world = World::with_policies();
        let code = code(&world.secret(), NOW);
        stop(&mut world);
        copy(&world.data(), &world.home.path().join("saved"));
        world.crash_and_restart();
        Victim { world, code }
    }

    fn put_back(&mut self) {
        stop(&mut self.world);
        fs::remove_dir_all(self.world.data()).unwrap();
        copy(&self.world.home.path().join("saved"), &self.world.data());
        self.world.crash_and_restart();
    }

    /// Lets strace at the CAS; `None` if that cannot be done here.
    fn strace(&self, options: &[&str]) -> Option<Tracer> {
        let mut command = Command::new("strace");
        command.args(["-f", "-p", &self.world.process.id().to_string()]).args(options);
        let spawned = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut process = match spawned {
            Ok(process) => process,
            Err(error) => return skip(&format!("strace cannot be run: {error}")),
        };
        let mut said = String::new();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        // It says so once it is attached; what is asked of CAS from then on is seen.
        while stderr.read_line(&mut said).unwrap() > 0 {
            if said.contains("attached") {
                return Some(Tracer { process, _stderr: stderr });
            }
        }
        process.wait().unwrap();
        skip(&format!("strace cannot attach: {said}"))
    }

    fn ask(&self) -> Result<Configuration, Vec<String>> {
        let address = Address::parse(&self.world.enclave).unwrap();
        let (key, evidence_key) = (Some(self.world.key.clone()), self.world.evidence_key());
        let mut cas = Connection::connect(&address, key, evidence_key).map_err(Error::causes)?;
        cas.configure(SERVICE, Some(&self.code), MRENCLAVE, None).map_err(Error::causes)
    }

    /// Starts again, and whether the code is accepted then.
    fn accepts_after_restart(&mut self) -> bool {
        self.world.crash_and_restart();
        self.world.scone_sim(&["log"]).succeeds();
        match self.ask() {
            Ok(_) => true,
            Err(causes) => {
                assert!(causes[1].contains("already used"), "{causes:?}");
                false
            }
        }
    }
}

/// Ends with the CAS it is attached to, or when it is dropped.
struct Tracer {
    process: Child,
    /// Kept open: it speaks of every new thread, and would end if nobody listened.
    _stderr: BufReader<ChildStderr>,
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn stop(world: &mut World) {
    world.process.kill().unwrap();
    world.process.wait().unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

fn skip<T>(why: &str) -> Option<T> {
    assert!(std::env::var_os("REQUIRE_DOCKER").is_none(), "{why}");
    eprintln!("SKIPPED: {why}");
    None
}

/// Kills CAS when a thread of it enters the k-th of these calls, for every k. Answers how often the code was still good after
/// the restart, and how often it was consumed for nobody.
fn kill_at_every(calls: &str) -> Option<(u32, u32)> {
    let mut victim = Victim::new();
    let (mut still_good, mut lost) = (0, 0);
    for k in 1.. {
        assert!(k < 100, "the acceptance does not end");
        let inject = format!("inject={calls}:signal=SIGKILL:when={k}");
        let tracer = victim.strace(&["-o", "/dev/null", "-e", &inject])?;
        let released = victim.ask().is_ok();
        let survived = victim.world.process.try_wait().unwrap().is_none();
        drop(tracer);
        let again = victim.accepts_after_restart();
        assert!(!(released && again), "accepted twice, killed at call {k}");
        still_good += u32::from(again);
        lost += u32::from(!again && !released);
        if released && survived {
            return Some((still_good, lost));
        }
        victim.put_back();
    }
    unreachable!("the loop ends above");
}

#[test]
fn killed_at_any_write_or_sync_a_code_is_accepted_at_most_once() {
    let Some((still_good, lost)) = kill_at_every(DISK) else { return };
    assert!(still_good > 0, "it was killed before the commit");
    assert!(lost > 0, "it was killed after the commit, before the answer");
}

#[test]
fn killed_at_any_message_a_code_is_accepted_at_most_once() {
    // Calls are counted by thread, and which thread answers is not ours to say: a kill just before the answer is not certain.
    let Some((still_good, _)) = kill_at_every(NETWORK) else { return };
    assert!(still_good > 0, "it was killed before the request was read");
}

#[test]
fn if_the_disk_fails_to_sync_nothing_is_released_and_nothing_consumed() {
    let victim = Victim::new();
    let Some(tracer) = victim.strace(&["-o", "/dev/null", "-e", "inject=fsync,fdatasync:error=EIO"]) else { return };
    refused(victim.ask(), &["CAS failed, see its log"]);
    drop(tracer);
    victim.ask().unwrap();
    refused(
        victim.ask(),
        &[
            HEADLINE,
            "A One-time Password was already used within this time-step. Please try again in the next time-step",
        ],
    );
}

/// What CAS did, as far as a power cut is concerned.
#[derive(Clone)]
enum Step {
    Write {
        file: String,
        offset: usize,
        data: Vec<u8>,
    },
    Truncate {
        file: String,
        length: usize,
    },
    Sync {
        file: String,
    },
    /// The configuration left CAS.
    Release,
}

type Files = BTreeMap<String, Vec<u8>>;

fn apply(files: &mut Files, step: &Step) {
    match step {
        Step::Write { file, offset, data } => {
            let content = files.entry(file.clone()).or_default();
            content.resize(content.len().max(offset + data.len()), 0);
            content[*offset..offset + data.len()].copy_from_slice(data);
        }
        Step::Truncate { file, length } => files.entry(file.clone()).or_default().resize(*length, 0),
        Step::Sync { .. } | Step::Release => {}
    }
}

/// What may be on the disk after these steps and a power cut: everything synced, and of the rest nothing, everything, one
/// write alone, or all but one.
fn after_power_cut(before: &Files, steps: &[Step]) -> Vec<Files> {
    let mut safe = before.clone();
    let mut pending: Vec<&Step> = Vec::new();
    for step in steps {
        match step {
            Step::Sync { file } => pending.retain(|waiting| match waiting {
                Step::Write { file: written, .. } | Step::Truncate { file: written, .. } if written == file => {
                    apply(&mut safe, waiting);
                    false
                }
                _ => true,
            }),
            Step::Release => {}
            Step::Write { .. } | Step::Truncate { .. } => pending.push(step),
        }
    }
    let reached = |wanted: &dyn Fn(usize) -> bool| {
        let mut files = safe.clone();
        pending.iter().enumerate().filter(|(i, _)| wanted(*i)).for_each(|(_, step)| apply(&mut files, step));
        files
    };
    let mut all = vec![reached(&|_| false), reached(&|_| true)];
    for one in 0..pending.len() {
        all.push(reached(&|i| i == one));
        all.push(reached(&|i| i != one));
    }
    all
}

/// For each moment of a power cut, whether the configuration had been released, and whether CAS accepts the code afterwards
/// (`None`: it does not start).
fn power_cuts(before: &Files, steps: &[Step], code: &str) -> Vec<(bool, Option<bool>)> {
    let mut outcomes = Vec::new();
    for end in 0..=steps.len() {
        let released = steps[..end].iter().any(|step| matches!(step, Step::Release));
        for files in after_power_cut(before, &steps[..end]) {
            let home = tempfile::tempdir().unwrap();
            for (name, content) in &files {
                fs::write(home.path().join(name), content).unwrap();
            }
            fs::write(home.path().join("clock"), NOW.to_string()).unwrap();
            let cas = Cas::open(home.path(), Clock::File(home.path().join("clock"))).ok();
            let claim = Claim {
                service: SERVICE,
                code: Some(code),
                access: Access::default(),
                mrenclave: MRENCLAVE,
                signer: None,
                vouched: true,
            };
            outcomes.push((released, cas.map(|cas| cas.configure(&claim).unwrap().is_ok())));
        }
    }
    outcomes
}

/// `\x61\x62` as strace -xx writes it.
fn bytes(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).map(|digits| u8::from_str_radix(&digits[..2], 16).unwrap()).collect()
}

/// Reads strace's record of the files in `data`; `answer` is the length of the message that releases the configuration.
fn parse(record: &str, data: &Path, answer: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for line in record.lines() {
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        if line.starts_with("<...") {
            panic!("calls overlap, and which came first is not known: {line}");
        }
        let Some((call, rest)) = line.split_once('(') else { continue };
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { continue };
        let path = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path);
        let path = if path.contains("\\x") { String::from_utf8(bytes(path)).unwrap() } else { path.to_owned() };
        let file = Path::new(&path).strip_prefix(data).ok().and_then(Path::to_str).map(str::to_owned);
        let last = arguments.trim_end_matches(')').rsplit(", ").next().unwrap();
        match (call, file) {
            (_, Some(file)) if file == "cas.db-shm" => {}
            ("pwrite64", Some(file)) => {
                let data = bytes(arguments.split('"').nth(1).unwrap());
                assert_eq!(result, data.len().to_string(), "written in full");
                steps.push(Step::Write { file, offset: last.parse().unwrap(), data });
            }
            ("ftruncate", Some(file)) => steps.push(Step::Truncate { file, length: last.parse().unwrap() }),
            ("fsync" | "fdatasync", Some(file)) => steps.push(Step::Sync { file }),
            // CAS may be dead, and the message with its client, before the call has returned: `?`.
            ("write" | "writev" | "sendto" | "sendmsg", None)
                if result == answer.to_string()
                    || (result == "?" && arguments.contains(&format!("iov_len={answer}"))) =>
            {
                steps.push(Step::Release)
            }
            ("write" | "writev" | "sendto" | "sendmsg", None) => {}
            // CAS was killed before strace saw which call it had entered.
            ("???", None) if result.trim() == "?" => {}
            _ => panic!("not understood: {line}"),
        }
    }
    steps
}

#[test]
fn after_a_power_cut_at_any_moment_a_released_configuration_has_its_code_consumed() {
    let victim = Victim::new();
    let record = victim.world.home.path().join("strace");
    let data: PathBuf = victim.world.data();
    let before: Files =
        ["cas.db", "cas.db-wal", "cas.head"].map(|name| (name.to_owned(), fs::read(data.join(name)).unwrap())).into();
    let calls = format!("trace={DISK},{NETWORK}");
    let options = ["-y", "-xx", "-s", "1000000", "-e", "signal=none", "-e", &calls, "-o", record.to_str().unwrap()];
    let Some(mut tracer) = victim.strace(&options) else { return };
    let configuration = victim.ask().unwrap();
    let mut world = victim.world;
    stop(&mut world);
    tracer.process.wait().unwrap();

    // A frame's length and content in one record of TLS 1.3, which adds 5 bytes of header, 1 of type and 16 of tag.
    let frame = 4 + serde_json::to_vec(&Response::Configuration(configuration)).unwrap().len();
    let steps = parse(&fs::read_to_string(&record).unwrap(), &data, frame + 22);
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::Release)).count(), 1, "released once");
    assert!(
        steps.iter().any(|step| matches!(step, Step::Sync { file } if file == "cas.db-wal")),
        "CAS syncs its database"
    );

    let outcomes = power_cuts(&before, &steps, &victim.code);
    assert!(outcomes.iter().all(|(_, accepted)| accepted.is_some()), "it always starts again");
    assert!(!outcomes.contains(&(true, Some(true))), "released, and accepted once more after the power cut");
    assert!(outcomes.contains(&(false, Some(true))), "early enough the code is still good");
    assert!(outcomes.contains(&(true, Some(false))));

    // Without the syncs the very same record would have shown it.
    let unsynced: Vec<Step> = steps.into_iter().filter(|step| !matches!(step, Step::Sync { .. })).collect();
    assert!(power_cuts(&before, &unsynced, &victim.code).contains(&(true, Some(true))));
}
