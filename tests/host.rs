//! What a host may lack. None of it is a refusal: the exit code says whether something was changed, the message what is missing,
//! and the hint helps.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use crate::support::{Bundle, Mounted, Outcome, Platform, SmallDisk, User, repository, root_has, run, strace_is_there};

/// A bundle with an account whose QR code was not issued.
fn created() -> Bundle {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    bundle
}

/// `gen_qr` behind a program that takes something away from it.
fn gen_qr_behind(bundle: &Bundle, program: &str, args: &[&str]) -> Outcome {
    let mut command: Command = bundle.command(program);
    command.args(args).arg(bundle.root.join("scripts/gen_qr")).arg("--no-confirm");
    run(command)
}

/// The only hint.
fn hint(outcome: &Outcome) -> &str {
    let hints: Vec<_> = outcome.stderr.lines().filter_map(|line| line.strip_prefix("hint: ")).collect();
    let [hint] = hints.as_slice() else { panic!("not one hint: {}", outcome.stderr) };
    hint
}

/// Does what a hint says, as root.
fn follow(bundle: &Bundle, hint: &str) -> Outcome {
    let mut shell = bundle.command("sh");
    shell.args(["-c", hint.strip_prefix("sudo ").unwrap_or(hint)]);
    run(shell)
}

#[test]
fn without_user_namespaces() {
    let bundle = created();
    // The limit belongs to a namespace: in a new one it disturbs nobody.
    let switched_off = |then: &str| {
        let script = format!("echo 0 >/proc/sys/user/max_user_namespaces && {then} exec \"$@\"");
        gen_qr_behind(&bundle, "unshare", &["-Ur", "sh", "-c", &script, "sh"])
    };
    let lacking = switched_off("").expect(3).saying(
        "gen_qr: error: this host cannot run the program: Leaving the host's namespaces failed: cannot create a user namespace",
    );
    assert_eq!(hint(&lacking), "sudo sysctl --write user.max_user_namespaces=15000   # allows user namespaces");
    let followed = hint(&lacking).strip_prefix("sudo ").and_then(|hint| hint.split_once('#')).expect("a command").0;
    switched_off(&format!("{followed} >&2 &&")).expect(0);
}

#[test]
fn with_user_namespaces_forbidden_by_no_setting() {
    if !strace_is_there() {
        return;
    }
    let bundle = created();
    let forbidden = strace(&bundle, "unshare:error=EPERM").expect(3).saying("cannot create a user namespace");
    assert_eq!(
        hint(&forbidden),
        "./scripts/create.rs --platform sim --account container   # runs in containers instead"
    );
}

#[test]
fn without_seccomp() {
    if !strace_is_there() {
        return;
    }
    let bundle = created();
    let lacking = strace(&bundle, "seccomp:error=ENOSYS").expect(3).saying(
        "gen_qr: error: this host cannot run the program: scone-run: Cannot start the program: this system has no seccomp",
    );
    assert_eq!(hint(&lacking), "uname -r   # Linux 5.11 or newer is needed, with seccomp");
    bundle.gen_qr(&[]).expect(0);
}

/// `gen_qr` on a kernel that answers a system call with this error.
fn strace(bundle: &Bundle, inject: &str) -> Outcome {
    let inject = format!("inject={inject}");
    gen_qr_behind(bundle, "strace", &["-f", "-qq", "-o", "/dev/null", "-e", &inject])
}

/// At each place where it can be noticed: before the program runs, when it reserves its output, when it takes the marker.
#[test]
fn with_the_disk_full() {
    if !root_has(&["mount"]) {
        return;
    }
    let bundle = created();
    let disk = SmallDisk::below(&bundle.root.join("state"));
    let mut codes = Vec::new();
    for pages in 0.. {
        disk.fill(pages);
        let full = bundle.gen_qr(&[]);
        disk.empty();
        codes.push(full.code);
        if full.code == Some(0) {
            break;
        }
        let full = full.saying("No space left on device");
        assert!(full.stderr.contains("\nhint: df -h '"), "{}", full.stderr);
    }
    codes.dedup();
    assert_eq!(codes, [Some(3), Some(4), Some(0)]);
    drop(disk);
}

#[test]
fn with_the_disk_of_cas_full() {
    if !root_has(&["mount"]) {
        return;
    }
    let bundle = created();
    bundle.scone_sim(["down"]).expect(0);
    let disk = SmallDisk::below(&bundle.root.join("data"));
    bundle.scone_sim(["up"]).expect(0);
    disk.fill(0);
    let full = bundle.gen_qr(&[]).expect(3).saying("gen_qr: error: CAS itself cannot work: CAS failed, see its log");
    assert!(follow(&bundle, hint(&full)).expect(0).stdout.contains("full"));
    // The intention is recorded, so it is stopped part-way.
    bundle.script("roll_forward", &["--yes"]).expect(4).saying("CAS failed, see its log").saying("hint: tail -n 3 ");
    disk.empty();
    bundle.script("roll_forward", &["--yes"]).expect(0);
    bundle.gen_qr(&[]).expect(0);
    bundle.scone_sim(["down"]).expect(0);
    drop(disk);
}

/// As drvfs and vboxsf are.
#[test]
fn with_a_file_system_that_ignores_permissions() {
    if !root_has(&["bindfs"]) {
        return;
    }
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    let create = || bundle.script("create", &["--platform", "sim-native"]);
    let state = Mounted::ignoring_permissions(&bundle.root.join("state"));
    create().expect(3).saying("/state' cannot be made private: its file system ignores permissions");
    let log = bundle.scone_sim(["log"]).expect(0);
    assert!(!log.stdout.contains("session"), "{}", log.stdout);
    assert!(bundle.written().values().all(Vec::is_empty), "{:?}", bundle.written());
    drop(state);
    create().expect(0);

    let elsewhere = bundle.root.join("elsewhere");
    let output = Mounted::ignoring_permissions(&elsewhere);
    bundle.gen_qr(&["--output", "elsewhere/alice.svg"]).expect(4).saying("the QR code waits in ").saying(
        "cannot be delivered to 'elsewhere/alice.svg': its file system ignores permissions, so others could read it",
    );
    assert_eq!(fs::read_dir(&elsewhere).expect("the directory").count(), 0);
    drop(output);
    bundle.gen_qr(&[]).expect(0);
}

#[test]
fn with_a_file_system_that_executes_nothing() {
    if !root_has(&["mount", "findmnt"]) {
        return;
    }
    let bundle = created();
    let simulator = Mounted::in_memory(&bundle.root.join("simulator"), "noexec");
    let lacking =
        bundle.gen_qr(&[]).expect(3).saying("/scone' cannot be executed: the file system it is on is mounted");
    follow(&bundle, hint(&lacking)).expect(0);
    bundle.gen_qr(&[]).expect(0);
    drop(simulator);
}

/// As on Fedora without `glibc-static`.
#[test]
fn without_a_c_library_that_can_be_linked_statically() {
    if !root_has(&["unshare", "make", "cc"]) {
        return;
    }
    let script = "mount --bind /dev/null \"$(cc -print-file-name=libc.a)\" && exec make --no-print-directory sim";
    let mut make = Command::new("unshare");
    make.args(["--mount", "sh", "-c", script]).current_dir(repository());
    run(make).expect(2).saying("cc links no static program: dnf install gcc glibc-static (Fedora, RHEL)");
}

#[test]
fn with_a_path_that_cannot_be_written_down() {
    let bundle = created();
    for (name, shown) in [(&b"two\nlines"[..], r#"two\nlines""#), (b"not \xff UTF-8", r#"not \xFF UTF-8""#)] {
        let moved = bundle.root.with_file_name(OsStr::from_bytes(name));
        fs::rename(&bundle.root, &moved).expect("a move");
        let mut create = Command::new(moved.join("scripts/create"));
        create.args(["--platform", "sim-native"]).current_dir(&moved).env("OTPQR_ROOT", &moved);
        let refused = run(create).expect(3);
        fs::rename(&moved, &bundle.root).expect("a move back");
        let refused =
            refused.saying(&format!("{shown} cannot be used: it is not UTF-8 or has control characters; move"));
        assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    }
}
