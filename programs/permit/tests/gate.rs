//! The gate as whoever starts it sees it: exit codes, whole standard error, nothing on standard output but a code.

// The manifest does not name this file: SCONE's cross compiler gets the one without the other (Dockerfile.otpqr).
#![cfg(feature = "gate")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// RFC 6238, appendix B.
const SECRET: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";

struct World(PathBuf);

impl World {
    fn new(test: &str) -> World {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        World(root)
    }

    /// The gate with the environment that a policy gives it.
    fn gate(&self, starts: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gate"));
        command.env_clear().env("GATE_SECRET", SECRET).env("PERMIT_STARTS", starts);
        command.env("PERMIT_FILE", self.0.join("start"));
        command
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

#[track_caller]
fn refuses(command: &mut Command, code: i32, message: &str) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), stdout.len()), (Some(code), 0), "{stderr}");
    assert_eq!(stderr, format!("gate: error: {message}\n"));
    assert!(!stderr.contains(SECRET));
}

/// The current time step, when so much of it is left that what follows is within it.
fn step() -> u64 {
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        if now % 30 < 20 {
            return now / 30;
        }
        sleep(Duration::from_millis(100));
    }
}

#[test]
fn what_the_policy_lacks_is_named_and_takes_nothing() {
    let world = World::new("environment");
    refuses(world.gate("1").arg("--now"), 2, "unknown arguments; 'gate --help' says what there is");
    refuses(world.gate("1").env_remove("GATE_SECRET"), 11, "GATE_SECRET is not set");
    refuses(world.gate("1").env("GATE_SECRET", "1"), 11, "GATE_SECRET is not base32");
    refuses(world.gate("1").env("GATE_SECRET", "GEZDGNBVGY3TQOJQ"), 11, "GATE_SECRET is shorter than 128 bits");
    refuses(&mut world.gate("0"), 11, "PERMIT_STARTS is not a number from 1 to 1000000");
    refuses(world.gate("1").env_remove("PERMIT_FILE"), 11, "PERMIT_FILE is not set");
    // Without a limit nothing is dispensed, rather than without end.
    let unlimited = "PERMIT_STARTS is not set";
    refuses(world.gate("1").env_remove("PERMIT_STARTS"), 11, unlimited);
    refuses(world.gate("1").env_remove("PERMIT_STARTS").env_remove("PERMIT_FILE"), 11, unlimited);
    refuses(world.gate("1").arg("--left").env_remove("PERMIT_STARTS"), 11, unlimited);
    assert!(world.files().is_empty());
}

#[test]
fn a_start_is_one_code_and_each_time_step_has_one() {
    let world = World::new("starts");
    let step = step();
    // As if one had been dispensed in it.
    fs::write(world.0.join(format!("step-{step}")), "").unwrap();
    let Output { status, stdout, stderr } = world.gate("2").output().unwrap();
    assert_eq!((status.code(), stdout.len()), (Some(10), 0));
    assert!(String::from_utf8(stderr)
        .unwrap()
        .starts_with("gate: error: a start was granted in this time step: try again in "));
    assert_eq!(world.files(), [format!("step-{step}")], "no start is lost");
    fs::rename(world.0.join(format!("step-{step}")), world.0.join(format!("step-{}", step - 1))).unwrap();

    let Output { status, stdout, stderr } = world.gate("2").output().unwrap();
    assert_eq!((status.code(), String::from_utf8(stderr).unwrap().as_str()), (Some(0), "gate: start 1 of 2\n"));
    let code = totp_rs::TOTP::new(totp_rs::Algorithm::SHA1, 6, 0, 30, b"12345678901234567890".to_vec()).unwrap();
    assert_eq!(String::from_utf8(stdout).unwrap(), code.generate(step * 30) + "\n");
    // What has passed is not remembered here.
    assert_eq!(world.files(), ["start".to_owned(), format!("step-{step}")]);

    // Anybody may ask how many are left, who has no secret, too: none is taken by that.
    let left = |starts| {
        let Output { status, stdout, stderr } =
            world.gate(starts).env_remove("GATE_SECRET").arg("--left").output().unwrap();
        assert_eq!((status.code(), stderr.len()), (Some(0), 0));
        String::from_utf8(stdout).unwrap()
    };
    assert_eq!((left("2"), left("1")), ("1 of 2 starts are left\n".into(), "0 of 1 starts are left\n".into()));
    assert_eq!(world.files(), ["start".to_owned(), format!("step-{step}")]);

    fs::write(world.0.join("start.2"), "").unwrap();
    assert_eq!((left("2"), left("3")), ("0 of 2 starts are left\n".into(), "1 of 3 starts are left\n".into()));
    refuses(&mut world.gate("2"), 10, "all 2 starts are taken");
    refuses(&mut world.gate("1"), 10, "the one start is taken");
}

#[test]
fn what_is_granted_is_what_was_asked_for_and_is_noted_durably() {
    let world = World::new("grants");
    let grants = world.0.join("grants");
    fs::create_dir(&grants).unwrap();
    let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let digest = format!("sha256:{hex}");
    let approver = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gate"));
        command
            .env_clear()
            .env("PERMIT_GRANTS", &grants)
            .env("PERMIT_APPROVER", "bob")
            .env("PERMIT_SERVICE", "n/p/service")
            .env("PERMIT_TERM", "1");
        command.arg("--grant").args(arguments);
        command
    };
    for (bad, why) in [
        (["0", "60", "-"], "STARTS is not a number from 1 to 1000000"),
        (["1000001", "60", "-"], "STARTS is not a number from 1 to 1000000"),
        (["1 ", "60", "-"], "STARTS is not a number from 1 to 1000000"),
        (["1", "0", "-"], "SECONDS is not a number from 1 to 2678400"),
        (["1", "2678401", "-"], "SECONDS is not a number from 1 to 2678400"),
        (["1", "60", ""], "DIGEST is neither 'sha256:' and 64 hex digits nor '-'"),
        (["1", "60", hex], "DIGEST is neither 'sha256:' and 64 hex digits nor '-'"),
        (["1", "60", &digest.to_uppercase()], "DIGEST is neither 'sha256:' and 64 hex digits nor '-'"),
        (["1", "60", &digest[..70]], "DIGEST is neither 'sha256:' and 64 hex digits nor '-'"),
    ] {
        refuses(&mut approver(&bad), 2, why);
    }
    refuses(&mut approver(&["1", "60"]), 2, "unknown arguments; 'gate --help' says what there is");
    let asked = ["2", "60", "-"];
    refuses(approver(&asked).env_remove("PERMIT_GRANTS"), 11, "PERMIT_GRANTS is not set");
    refuses(
        approver(&asked).env("PERMIT_GRANTS", "grants"),
        11,
        "PERMIT_GRANTS is not the absolute path of a directory",
    );
    refuses(approver(&asked).env_remove("PERMIT_APPROVER"), 11, "PERMIT_APPROVER is not set");
    refuses(approver(&asked).env("PERMIT_APPROVER", "bob carol"), 11, "PERMIT_APPROVER is no name");
    refuses(approver(&asked).env("PERMIT_SERVICE", ""), 11, "PERMIT_SERVICE is no name");
    refuses(approver(&asked).env_remove("PERMIT_TERM"), 11, "PERMIT_TERM is not set");
    assert_eq!(fs::read_dir(&grants).unwrap().count(), 0);

    // The gate needs one, and is told whose count.
    let gate = || {
        let mut command = world.gate("2");
        command
            .env("PERMIT_GRANTS", &grants)
            .env("PERMIT_APPROVERS", "carol bob")
            .env("PERMIT_SERVICE", "n/p/service")
            .env("PERMIT_TERM", "1");
        command
    };
    refuses(gate().env_remove("PERMIT_APPROVERS"), 11, "PERMIT_APPROVERS is not set");
    refuses(gate().env("PERMIT_APPROVERS", " "), 11, "PERMIT_APPROVERS names nobody");
    refuses(gate().env_remove("PERMIT_SERVICE"), 11, "PERMIT_SERVICE is not set");
    refuses(gate().env_remove("PERMIT_TERM"), 11, "PERMIT_TERM is not set");
    refuses(gate().env_remove("PERMIT_GRANTS"), 11, "PERMIT_GRANTS is not set");
    refuses(gate().env_remove("PERMIT_FILE"), 11, "PERMIT_FILE is not set");
    refuses(&mut gate(), 10, "nobody has granted it");

    let granted = approver(&asked).output().unwrap();
    let said = String::from_utf8(granted.stdout).unwrap();
    assert!(
        said.starts_with("2 starts until 2") && said.ends_with("Z by 'bob' (grant 1) of 'n/p/service'\n"),
        "{said}"
    );
    // Of a program's arguments the gate knows nothing.
    let said = String::from_utf8(approver(&["1", "60", &digest]).output().unwrap().stdout).unwrap();
    assert!(said.ends_with(&format!("(grant 2) of 'n/p/service' for {digest}\n")), "{said}");
    let other = gate().env("PERMIT_SERVICE", "n/p/other").output().unwrap();
    let other = String::from_utf8(other.stderr).unwrap();
    assert_eq!(other, "gate: error: no grant is good for it: 2 for something else, 0 expired, 0 used up\n");

    // One that is over is noted by a start that is refused: it stays so, whatever becomes of the clock.
    let over = |until: u64| fs::write(grants.join("3"), format!("9 {until} bob n/p/service 1 -\n")).unwrap();
    let alone = |command: &mut Command| {
        refuses(command, 10, "no grant is good for it: 0 for something else, 1 expired, 0 used up")
    };
    let [first, second] = [1, 2].map(|number| fs::read(grants.join(number.to_string())).unwrap());
    [1, 2].iter().for_each(|number| fs::remove_file(grants.join(number.to_string())).unwrap());
    over(1);
    alone(&mut gate());
    over(u64::MAX);
    alone(&mut gate());
    fs::write(grants.join("1"), first).unwrap();
    fs::write(grants.join("2"), second).unwrap();

    step();
    let started = gate().output().unwrap();
    assert_eq!(String::from_utf8(started.stderr).unwrap(), "gate: start 1 of 2, start 1 of 2 of grant 1 by 'bob'\n");
    assert_eq!(String::from_utf8(started.stdout).unwrap().len(), 7);
    let left = String::from_utf8(gate().arg("--left").output().unwrap().stdout).unwrap();
    let lines: Vec<&str> = left.lines().collect();
    assert_eq!(lines[0], "1 of 2 starts are left");
    assert!(lines[1].starts_with("granted: 1 of 2 starts until ") && lines[1].ends_with("of 'n/p/service'"), "{left}");
    assert!(lines[2].starts_with("granted: 1 of 1 start until ") && lines[2].ends_with(&digest), "{left}");
    let void = gate().env("PERMIT_APPROVERS", "carol").arg("--left").output().unwrap();
    let void = String::from_utf8(void.stdout).unwrap();
    assert!(void.lines().skip(1).all(|line| line.starts_with("void: 0 of ")), "{void}");
}
