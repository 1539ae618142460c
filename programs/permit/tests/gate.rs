//! The gate as whoever starts it sees it: exit codes, whole standard error, nothing on standard output but a code.

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
