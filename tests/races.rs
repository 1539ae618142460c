//! Scripts at the same time on one account, and scripts that are killed alone while the program they started goes on. A script
//! says that another run is at work and does not wait for it; whatever was issued reaches its user, once.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use crate::support::attacker::Line;
use crate::support::watched::{RENAME, Watched, running};
use crate::support::{Bundle, Platform, User, docker_is_there, phone, run, run_with_input, strace_is_there};

const AT_WORK: &str = "error: another run, or a program that it started, is at work on state file";
const CHANGED: &str = "was changed by another run; run the same command again";

fn enrolled() -> (Watched, phone::Account) {
    Watched::enrolled(Platform::SimNative, scripts!())
}

/// The QR code that otpqr reserves, and then fills, before a script delivers it.
fn reserved(bundle: &Bundle) -> PathBuf {
    bundle.root.join(format!("state/issuing/{}-1-1/qrcode.svg", bundle.known("default", &["namespace"])))
}

/// The pictures in a directory.
fn pictures(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "svg")).count()
}

/// A run of `gen_qr` whose program has reserved its output, and waits for CAS to hear that the once-marker is taken.
struct Issuing<'a> {
    bundle: &'a Bundle,
    /// CAS's own address.
    cas: String,
    script: Child,
    go_on: mpsc::Sender<()>,
    line: Line,
}

impl Issuing<'_> {
    fn of(bundle: &Bundle) -> Issuing<'_> {
        let (has_come, come) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let (cas, output) = (bundle.known("default", &["cas", "enclave_address"]), reserved(bundle));
        let line = Line::hold(
            cas.clone(),
            move || output.exists(),
            move || {
                has_come.send(()).expect("the test");
                may_go_on.recv().expect("the test");
            },
        );
        // The scripts see CAS at the address where the attacker listens.
        move_cas(bundle, &cas, &line.address);
        let mut command = bundle.script_command("gen_qr", &["--no-confirm"]);
        let script = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a start");
        come.recv().expect("the program's word that the marker is taken");
        Issuing { bundle, cas, script, go_on, line }
    }

    fn kill_script(&mut self) {
        self.script.kill().expect("a kill");
        self.script.wait().expect("an end");
    }

    /// Lets the program finish.
    fn go_on(self) {
        self.go_on.send(()).expect("the line");
        let line = self.line.address.clone();
        self.line.end();
        move_cas(self.bundle, &line, &self.cas);
    }
}

/// Has CAS's tool and the account name another port for the enclaves.
fn move_cas(bundle: &Bundle, from: &str, to: &str) {
    let [from, to] = [from, to].map(|address| address.split(':').next_back().expect("a port"));
    for file in [bundle.state_file("default"), bundle.root.join("data/scone-sim/endpoints.json")] {
        let text = fs::read_to_string(&file).expect("a file");
        assert!(text.contains(from), "{text}");
        fs::write(&file, text.replace(from, to)).expect("a file");
    }
}

// --- A script that is killed alone

#[test]
fn a_script_killed_alone_and_run_again_at_once_leaves_the_qr_code_to_the_program_that_still_runs() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let mut issuing = Issuing::of(&bundle);
    issuing.kill_script();
    bundle.gen_qr(&[]).expect(3).saying(AT_WORK);
    // Nor is the volume that it has open replaced.
    bundle.script("roll_forward", &["--yes"]).expect(3).saying(AT_WORK);
    issuing.go_on();
    bundle.all_ended("default");
    bundle.gen_qr(&[]).expect(0);
    bundle.scan("qrcode.svg");
    bundle.gen_qr(&["--output", "again.svg"]).expect(5).saying("issued already");
}

/// A container goes on when the script and docker's client are killed.
#[test]
fn a_container_that_was_left_running_is_seen_and_what_it_writes_is_delivered() {
    if !docker_is_there() {
        return;
    }
    for with_client in [false, true] {
        let bundle = Bundle::of_test(Platform::Sim, User::Caller);
        bundle.install(scripts!());
        bundle.script("create", &["--platform", "sim"]).expect(0);
        let mut issuing = Issuing::of(&bundle);
        let script = issuing.script.id().to_string();
        let clients = Command::new("pgrep").args(["--parent", &script]).output().expect("pgrep").stdout;
        issuing.kill_script();
        for client in String::from_utf8(clients).expect("process ids").lines().filter(|_| with_client) {
            assert!(Command::new("kill").args(["-9", client]).status().expect("kill").success());
        }
        bundle.gen_qr(&[]).expect(4).saying("a container that was left running may still write to");
        assert!(reserved(&bundle).exists());

        let filter = format!("--filter=label=otpqr.output={}-1-1", bundle.known("default", &["namespace"]));
        let container = run(docker(&["ps", "--quiet", &filter])).expect(0).stdout;
        issuing.go_on();
        run(docker(&["wait", container.trim()]));
        bundle.gen_qr(&[]).expect(0);
        bundle.scan("qrcode.svg");
        bundle.gen_qr(&["--output", "again.svg"]).expect(5).saying("issued already");
    }
}

fn docker(args: &[&str]) -> Command {
    let mut docker = Command::new("docker");
    docker.args(args);
    docker
}

/// At every call of the kernel by which the QR code gets to its place, or leaves the one where it was.
#[test]
fn killed_while_it_is_delivered_the_qr_code_is_delivered_by_the_next_run_and_is_in_one_file() {
    if !strace_is_there() {
        return;
    }
    let (bundle, _) = enrolled();
    fs::remove_file(bundle.root.join("default.svg")).expect("deletion");
    bundle.script("roll_forward", &["--yes"]).expect(0);
    let calls = format!("{RENAME},link,linkat,unlink,unlinkat,rmdir");
    let args = ["--no-confirm", "--output", "one.svg"];
    let killed = bundle.kill_at_each(&calls, "gen_qr", &args, String::new, |_| {
        let again = bundle.gen_qr(&["--output", "two.svg"]);
        assert!(matches!(again.code, Some(0 | 5)), "{again:?}");
        assert_eq!(pictures(&bundle.root), 1, "{again:?}");
        for output in ["one.svg", "two.svg"].map(|name| bundle.root.join(name)).iter().filter(|path| path.exists()) {
            fs::remove_file(output).expect("deletion");
        }
        bundle.script("roll_forward", &["--yes"]).expect(0);
    });
    assert!(killed >= 1, "{killed}");
}

#[test]
fn killed_while_it_is_copied_to_another_file_system_the_next_run_says_where_another_copy_may_be() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    let elsewhere = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let device = |path: &Path| fs::metadata(path).expect("a directory").dev();
    assert_ne!(device(&bundle.root), device(elsewhere.path()), "/dev/shm is to be a file system of its own");
    bundle.script("create", &["--platform", "sim-native"]).expect(0);

    // What destroys the original comes after the copy.
    let tools = bundle.root.join("tools");
    fs::create_dir(&tools).expect("a directory");
    fs::write(tools.join("shred"), "#!/bin/sh\nkill -9 $PPID\n").expect("a stand-in");
    assert!(Command::new("chmod").arg("755").arg(tools.join("shred")).status().expect("chmod").success());
    let first = elsewhere.path().join("first.svg").display().to_string();
    let mut gen_qr = bundle.script_command("gen_qr", &["--no-confirm", "--output", &first]);
    let path = std::env::var_os("PATH").expect("PATH");
    let path = std::iter::once(tools).chain(std::env::split_paths(&path));
    gen_qr.env("PATH", std::env::join_paths(path).expect("PATH"));
    assert_eq!(run(gen_qr).code, None);
    bundle.all_ended("default");

    let said = format!("a run was cut off while it delivered this QR code: '{first}' may hold it, too");
    bundle.gen_qr(&["--output", "second.svg"]).expect(0).saying(&said);
    assert_eq!(fs::read(&first).expect("the first"), fs::read(bundle.root.join("second.svg")).expect("the second"));
    // Without the kill there is nothing to report.
    bundle.script("roll_forward", &["--yes"]).expect(0);
    let third = elsewhere.path().join("third.svg").display().to_string();
    bundle.gen_qr(&["--output", &third]).expect(0);
    assert!(!bundle.written().into_keys().any(|path| path.to_string_lossy().contains("issuing")));
}

// --- Scripts at the same time

#[test]
fn of_runs_at_once_on_one_account_none_corrupts_what_another_did() {
    let (bundle, mut account) = enrolled();
    for round in 0..4 {
        let scripts =
            [("create", &[][..]), ("roll_forward", &["--yes"]), ("roll_forward", &["--yes"]), ("create", &[])];
        let started = scripts.map(|(script, args)| {
            let mut command = bundle.script_command(script, args);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a start")
        });
        let ended = started.map(|child| child.wait_with_output().expect("an end"));
        for output in ended {
            let stderr = String::from_utf8(output.stderr).expect("UTF-8 output");
            let explained = [AT_WORK, CHANGED, "was begun but not finished"];
            let understood = output.status.success() || explained.iter().any(|words| stderr.contains(words));
            assert!(understood, "round {round}: {:?}\n{stderr}", output.status.code());
        }
        // The next run can go on.
        if bundle.known("default", &["pending"]) != "null" {
            bundle.script("roll_forward", &["--yes"]).expect(0);
        }
        assert!(bundle.script("create", &[]).expect(0).stdout.starts_with("already created"));
        if bundle.accepts(&account) {
            bundle.goes_on_with(&account);
        } else {
            account = bundle.enrol_anew();
        }
    }
}

#[test]
fn a_create_that_was_overtaken_by_another_leaves_its_account_and_volumes_alone() {
    let (bundle, _) = enrolled();
    fs::remove_file(bundle.state_file("default")).expect("deletion");
    fs::remove_dir_all(bundle.root.join("state/volumes")).expect("deletion");
    let create = ["--platform", "sim-native"];
    let deed = running("./create --platform sim-native && ./gen_qr --no-confirm --output ../new.svg");
    bundle.script_with("before", 2, &deed, "create", &create, "").expect(1).saying(CHANGED);
    bundle.scan("new.svg");
    bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("issued already");
}

/// Before each of its calls another run replaces the state that it has read.
#[test]
fn gen_qr_beside_a_roll_forward_opens_no_volume_but_the_one_the_state_names() {
    let (bundle, _) = enrolled();
    fs::remove_file(bundle.root.join("default.svg")).expect("deletion");
    bundle.script("roll_forward", &["--yes"]).expect(0);
    let (mut refused, mut issued) = (0, 0);
    for number in 1.. {
        let deed = running("./roll_forward --yes; echo \"ended: $?\"");
        fs::write(bundle.bin.join("beside"), "").expect("a file");
        let outcome =
            bundle.script_with("before", number, &deed, "gen_qr", &["--no-confirm", "--output", "new.svg"], "");
        let beside = fs::read_to_string(bundle.bin.join("beside")).expect("what was done");
        if beside.contains("ended: 0") {
            outcome.expect(1).saying(CHANGED);
            refused += 1;
            // The new QR code is issued to whoever asks now, on its own volume.
            bundle.gen_qr(&["--output", "new.svg"]).expect(0);
        } else {
            assert!(beside.is_empty() || beside.contains(AT_WORK), "{beside}");
            outcome.expect(0);
            issued += 1;
        }
        let label = format!("alice #{}", bundle.known("default", &["secret_version"]));
        assert_eq!(bundle.scan("new.svg").login, label, "before call {number}");
        bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("issued already");
        fs::remove_file(bundle.root.join("new.svg")).expect("deletion");
        bundle.script("roll_forward", &["--yes"]).expect(0);
        if beside.is_empty() {
            break;
        }
    }
    assert!(refused >= 3 && issued >= 2, "{refused} refused, {issued} issued");
}

#[test]
fn create_beside_a_roll_forward_is_told_of_it_and_gives_nothing_up() {
    let (bundle, _) = enrolled();
    let understood = |code: i32, stderr: &str| {
        assert!(!stderr.contains("hint: ") && !stderr.contains("begun"), "{stderr}");
        code == 0 || stderr.contains(AT_WORK) || stderr.contains(CHANGED)
    };
    // Each in the middle of the other.
    for (outer, inner) in [(("create", &[][..]), "./roll_forward --yes"), (("roll_forward", &["--yes"]), "./create")] {
        let mut refused = 0;
        for number in 1.. {
            fs::write(bundle.bin.join("beside"), "").expect("a file");
            let deed = running(&format!("{inner}; echo \"ended: $?\""));
            let outcome = bundle.script_with("before", number, &deed, outer.0, outer.1, "");
            let beside = fs::read_to_string(bundle.bin.join("beside")).expect("what was done");
            assert!(understood(outcome.code.expect("an exit code"), &outcome.stderr), "{outcome:?}");
            let well = beside.is_empty() || beside.contains("ended: 0");
            assert!(understood(if well { 0 } else { 1 }, &beside), "{beside}");
            refused += usize::from(outcome.code != Some(0)) + usize::from(!well);
            assert_eq!(bundle.known("default", &["pending"]), "null");
            assert!(bundle.script("create", &[]).expect(0).stdout.starts_with("already created"));
            if beside.is_empty() {
                break;
            }
        }
        assert!(refused > 4, "{refused}");
    }
    bundle.enrol_anew();
}

#[test]
fn gen_qr_and_add_auth_in_the_middle_of_a_roll_forward_neither_stop_nor_spoil_it() {
    let (bundle, mut account) = enrolled();
    fs::remove_file(bundle.root.join("default.svg")).expect("deletion");
    let mut refused = 0;
    for number in 1.. {
        bundle.wait(30);
        let code = account.code_at(bundle.now());
        let deed = running(&format!(
            "./gen_qr --no-confirm --output ../one.svg; echo \"ended: $?\"; \
             echo {code} | ./add_auth --no-confirm --otp-file - --output ../two.svg; echo \"ended: $?\""
        ));
        fs::write(bundle.bin.join("beside"), "").expect("a file");
        bundle.script_with("after", number, &deed, "roll_forward", &["--yes"], "").expect(0);
        let beside = fs::read_to_string(bundle.bin.join("beside")).expect("what was done");
        // What is issued meanwhile is issued for a code, while the old ones are valid, and holds that code's secret.
        assert!(!bundle.root.join("one.svg").exists(), "after call {number}: {beside}");
        let issued = bundle.root.join("two.svg").exists();
        if !beside.is_empty() {
            let ended = |code: u8| beside.matches(&format!("ended: {code}\n")).count();
            let expected = if beside.contains(AT_WORK) { (false, 0, 0, 2) } else { (true, 1, 1, 0) };
            assert_eq!((issued, ended(0), ended(5), ended(3)), expected, "after call {number}: {beside}");
            refused += usize::from(!issued);
        }
        if issued {
            assert_eq!(bundle.scan("two.svg").secret, account.secret, "after call {number}");
            fs::remove_file(bundle.root.join("two.svg")).expect("deletion");
        }
        assert!(!bundle.accepts(&account));
        // The clock stands still, and who else is logged in is not up to us.
        let report = bundle.script("doctor", &[]).text();
        let wrong =
            report.lines().find(|line| line.starts_with("wrong") && !line.contains("clock") && !line.contains("users"));
        assert_eq!(wrong, None, "after call {number}: {report}");
        account = bundle.enrol_anew();
        if beside.is_empty() {
            assert!(refused > 3 && number - 1 > refused, "{refused} of {} were refused", number - 1);
            break;
        }
    }
    bundle.goes_on_with(&account);
}

#[test]
fn a_roll_forward_while_a_first_code_is_waited_for_is_said_and_the_new_secret_not_given_up() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let pipe = bundle.root.join("code");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let mut gen_qr = bundle.script_command("gen_qr", &["--confirm-file", "code"]);
    let script = gen_qr.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a start");
    // The pipe opens when the script waits for the code.
    let mut code = fs::OpenOptions::new().write(true).open(&pipe).expect("the pipe");
    let account = bundle.scan("qrcode.svg");
    // Nothing is held while a code is waited for.
    bundle.script("roll_forward", &["--yes"]).expect(0);
    code.write_all(account.code_at(bundle.now()).as_bytes()).expect("a code");
    drop(code);
    let ended = script.wait_with_output().expect("an end");
    let stderr = String::from_utf8(ended.stderr).expect("UTF-8 output");
    assert_eq!(ended.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains(CHANGED), "{stderr}");
    assert!(!stderr.contains("hint: ./scripts/roll_forward.rs"), "{stderr}");
}

#[test]
fn add_auth_that_waited_for_a_code_during_a_roll_forward_spends_none() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    let account = bundle.enrol("default");
    let pipe = bundle.root.join("code");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let mut add_auth = bundle.script_command("add_auth", &["--no-confirm", "--otp-file", "code"]);
    let script = add_auth.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a start");
    let mut typed = fs::OpenOptions::new().write(true).open(&pipe).expect("the pipe");
    let keep = bundle.script_command("roll_forward", &["--yes", "--keep-secret", "--otp-file", "-"]);
    run_with_input(keep, &account.code_at(bundle.now())).expect(0);
    bundle.wait(30);
    let code = account.code_at(bundle.now());
    typed.write_all(code.as_bytes()).expect("a code");
    drop(typed);
    let ended = script.wait_with_output().expect("an end");
    let stderr = String::from_utf8(ended.stderr).expect("UTF-8 output");
    assert_eq!(ended.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(CHANGED), "{stderr}");
    bundle.add_auth(&code, &[]).expect(0);
}

#[test]
fn doctor_beside_another_run_says_so_and_names_no_command() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle.enrol("default");
    // Something that it would otherwise mend.
    fs::set_permissions(bundle.state_file("default"), std::os::unix::fs::PermissionsExt::from_mode(0o640))
        .expect("permissions");
    let alone = bundle.script("doctor", &[]).stdout;
    assert!(alone.contains(" -> chmod 600 "), "{alone}");
    let lock = fs::File::open(bundle.state_file("default").with_extension("lock")).expect("the lock");
    lock.lock().expect("the lock");
    let beside = bundle.script("doctor", &[]).stdout;
    assert!(
        beside.contains("?     runs      another run, or a program that it started, is at work on state file"),
        "{beside}"
    );
    assert!(beside.contains("wrong state     ") && !beside.contains(" -> chmod"), "{beside}");
    assert!(!beside.contains("volume    "), "{beside}");
}

/// Ended after the engine was asked for a container and before that was told what to run.
#[test]
fn a_run_that_ends_before_it_hands_over_what_to_run_starts_nothing_and_the_next_removes_what_it_left() {
    if !docker_is_there() {
        return;
    }
    let (bundle, account) = Watched::enrolled(Platform::Sim, scripts!());
    let left = || {
        let names = fs::read_dir(bundle.root.join("state")).expect("the state").map(|entry| entry.expect("an entry"));
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with(".starting-")).count()
    };
    let add_auth = ["--no-confirm", "--otp-file", "-", "--output", "second.svg"];
    bundle.script_with("before", 0, "", "add_auth", &add_auth, &account.code_at(bundle.now())).expect(0);
    assert_eq!(left(), 0);
    fs::remove_file(bundle.root.join("second.svg")).expect("deletion");
    let calls = bundle.calls();
    let start = calls.iter().rposition(|call| call.contains(" /environment ")).expect("a start") + 1;

    bundle.wait(30);
    let code = account.code_at(bundle.now());
    // Told to terminate meanwhile, the script waits until the container is up, which then ends at once.
    let told = "kill -TERM $PPID";
    bundle.script_with("before", start, told, "add_auth", &add_auth, &code).expect(130);
    let mut containers = Command::new("docker");
    containers.args(["ps", "--all", "--quiet", "--filter"]);
    containers.arg(format!("label=otpqr.output={}-1-1", bundle.known("default", &["namespace"])));
    assert_eq!((left(), run(containers).expect(0).stdout.as_str()), (0, ""));

    // The container comes up all the same, and ends when nobody tells it what to run. (Reading waits for that.)
    let ended = bundle.bin.join("ended");
    assert!(Command::new("mkfifo").arg(&ended).status().expect("mkfifo").success());
    let killed = "kill -9 $PPID; exec >/dev/null 2>&1; trap 'echo $? >\"$bin/ended\"' EXIT";
    assert_eq!(bundle.script_with("before", start, killed, "add_auth", &add_auth, &code).code, None);
    assert_eq!(fs::read_to_string(&ended).expect("how it ended"), "125\n");
    assert_eq!(left(), 1);
    // The code was not spent.
    bundle.add_auth(&code, &["--output", "second.svg"]).expect(0);
    assert_eq!((left(), bundle.scan("second.svg").secret), (0, account.secret));
}
