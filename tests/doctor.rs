//! `doctor` says what is true: nothing wrong where nothing is wrong, and for everything that can be wrong the line that says so
//! with the command that mends it. `who` and `timedatectl` are stand-ins: what this host's say is not ours to decide.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;
use support::attacker::delete_files;
use support::{Bundle, Outcome, Platform, User, run};

struct Patient(Bundle);

impl Patient {
    fn new() -> Patient {
        // With the host's clock: that CAS's goes with it is looked at, too.
        let bundle = Bundle::new("it's a \"bundle\", really", Platform::SimNative, User::Caller, false);
        bundle.install(scripts!());
        fs::create_dir(bundle.root.join("host")).expect("a directory");
        let patient = Patient(bundle);
        patient.host_says("who", "alice tty1 2026-01-01 00:00");
        patient.host_says("timedatectl", "yes");
        patient
    }

    fn host_says(&self, tool: &str, text: &str) {
        let path = self.0.root.join("host").join(tool);
        fs::write(&path, format!("#!/bin/sh\necho '{text}'\n")).expect("a stand-in");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("permissions");
    }

    fn doctor(&self, args: &[&str]) -> Outcome {
        let mut command = self.0.script_command("doctor", args);
        let path = std::env::var("PATH").expect("a PATH");
        command.env("PATH", format!("{}:{path}", self.0.root.join("host").display()));
        run(command)
    }

    /// Asserts that exactly one thing is wrong: the line begins with `line` and the command that mends it with `mend`.
    #[track_caller]
    fn suffers_from(&self, line: &str, mend: &str) {
        let report = self.doctor(&[]);
        assert_eq!(report.code, Some(3), "{}", report.text());
        let wrong: Vec<&str> = report.stdout.lines().filter(|line| line.starts_with("wrong")).collect();
        let [found] = wrong.as_slice() else { panic!("not one thing is wrong:\n{}", report.stdout) };
        let (found_line, found_mend) = found.split_once(" -> ").expect("a command that mends it");
        assert!(found_line.starts_with(line), "{found}");
        assert!(found_mend.starts_with(mend), "{found}");
    }

    #[track_caller]
    fn is_well(&self) {
        let report = self.doctor(&[]).expect(0).stdout;
        assert!(report.lines().all(|line| line.starts_with("ok ")), "{report}");
    }
}

#[test]
fn an_account_that_is_not_there_is_the_finding() {
    let patient = Patient::new();
    patient.suffers_from("wrong state     there is no 'state/default.yml'", "./scripts/create.rs");
}

#[test]
fn a_healthy_account_has_nothing_wrong_also_after_it_was_enrolled() {
    let patient = Patient::new();
    patient.0.script("create", &["--platform", "sim-native"]).expect(0);
    patient.is_well();
    patient.0.gen_qr(&["--output", "state/alice.svg"]).expect(0);
    patient.is_well();
    // Looking takes nothing away.
    patient.0.gen_qr(&["--output", "again.svg"]).expect(5);
}

#[test]
fn what_is_wrong_with_the_host_is_said() {
    let patient = Patient::new();
    patient.0.script("create", &["--platform", "sim-native"]).expect(0);
    patient.host_says("who", "mallory pts/0 2026-01-01 00:00");
    patient.suffers_from("wrong users     also logged in: mallory", "who");
    patient.host_says("who", "");
    patient.host_says("timedatectl", "no");
    patient.suffers_from("wrong clock     the kernel's clock is not synchronised", "timedatectl set-ntp true");
    patient.host_says("timedatectl", "");
    // What is not known is not well.
    let report = patient.doctor(&[]);
    assert_eq!(report.code, Some(3));
    assert!(report.stdout.contains("?     clock     "), "{}", report.stdout);
}

#[test]
fn what_is_wrong_with_the_state_is_said() {
    let patient = Patient::new();
    patient.0.script("create", &["--platform", "sim-native"]).expect(0);
    let file = patient.0.state_file("default");
    fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("permissions");
    patient.suffers_from("wrong state     ", "chmod 600 '");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("permissions");
    fs::set_permissions(patient.0.root.join("state"), Permissions::from_mode(0o755)).expect("permissions");
    patient.suffers_from("wrong state     ", "chmod 700 '");
    fs::set_permissions(patient.0.root.join("state"), Permissions::from_mode(0o700)).expect("permissions");

    fs::write(patient.0.root.join("left.svg"), "<svg shape-rendering=\"crispEdges\"></svg>\n").expect("a picture");
    patient.suffers_from("wrong files     a QR code lies about:", "shred -n 3 -z -u '");
    fs::remove_file(patient.0.root.join("left.svg")).expect("deletion");
    patient.is_well();

    fs::write(&file, "format: 1\nplat").expect("damage");
    let report = patient.doctor(&[]);
    assert_eq!(report.code, Some(3));
    assert!(report.stdout.contains("default.yml' is damaged"), "{}", report.stdout);
}

#[test]
fn what_is_wrong_with_cas_and_image_is_said() {
    let patient = Patient::new();
    patient.0.script("create", &["--platform", "sim-native"]).expect(0);
    patient.0.scone_sim(["down"]).expect(0);
    patient.suffers_from("wrong CAS       the simulated CAS is not running", "'");
    patient.0.script("create", &["--platform", "sim-native"]).expect(0);

    let program = patient.0.root.join("simulator/bin/rootfs/bin/otpqr");
    let genuine = fs::read(&program).expect("the program");
    fs::write(&program, [&genuine[..], b"\0"].concat()).expect("another program");
    patient.suffers_from(
        "wrong image     image 'simulator/bin/rootfs' is not the one in the policies",
        "./scripts/create.rs",
    );
    fs::write(&program, genuine).expect("the program");
    patient.is_well();
}

#[test]
fn what_is_wrong_with_policies_and_volume_is_said() {
    let patient = Patient::new();
    patient.0.script("create", &["--platform", "sim-native"]).expect(0);
    patient.is_well();
    let template = patient.0.root.join("templates/namespace.yml");
    let genuine = fs::read_to_string(&template).expect("a template");
    fs::write(&template, genuine.replace("create_sessions: [CREATOR]", "create_sessions: [ANY]")).expect("a template");
    patient.suffers_from("wrong policies  CAS holds another 'otpqr-", "./scripts/create.rs");
    fs::write(&template, genuine).expect("a template");

    delete_files(&patient.0.volume("default"));
    patient.suffers_from(
        "wrong volume    file system protection file was removed",
        "./scripts/roll_forward.rs --keep-secret",
    );
    patient.0.script("roll_forward", &["--yes"]).expect(0);
    patient.is_well();
}

#[test]
fn a_roll_forward_that_was_cut_off_is_told_with_what_holds_until_it_is_finished() {
    let patient = Patient::new();
    patient.0.script("create", &["--platform", "sim-native"]).expect(0);
    // A policy that cannot be made is found out before anything is begun.
    let template = patient.0.root.join("templates/otpqr.yml");
    let genuine = fs::read_to_string(&template).expect("a template");
    fs::write(&template, "{{nobody}}").expect("a template");
    patient.0.script("roll_forward", &["--yes"]).expect(3).saying("cannot be rendered");
    fs::write(&template, &genuine).expect("a template");
    patient.is_well();
    // The first upload cannot happen: the intention alone is recorded.
    let mut roll_forward = patient.0.script_command("roll_forward", &["--yes"]);
    roll_forward.env("TMPDIR", "nowhere");
    run(roll_forward).expect(4).saying("hint: ./scripts/roll_forward.rs   # goes on");
    patient.suffers_from("wrong pending   a roll-forward was cut off", "./scripts/roll_forward.rs");
    assert!(patient.doctor(&[]).stdout.contains("ok    codes     the codes in use live"));

    patient.0.script("roll_forward", &["--undo"]).expect(0);
    patient.is_well();
}

#[test]
fn the_report_is_json_on_demand() {
    let patient = Patient::new();
    patient.0.script("create", &["--platform", "sim-native"]).expect(0);
    fs::remove_dir_all(Path::new(&patient.0.root).join("simulator/bin/rootfs")).expect("deletion");
    let report = patient.doctor(&["--json"]);
    assert_eq!(report.code, Some(3));
    let findings: Vec<Value> = serde_json::from_str(&report.stdout).expect("JSON");
    let wrong: Vec<_> = findings.iter().filter(|finding| finding["result"] == "wrong").collect();
    assert!(
        wrong.iter().any(|finding| finding["check"] == "tools" && finding["mend"] == "make sim"),
        "{}",
        report.stdout
    );
}

#[test]
fn a_cas_whose_clock_is_wrong_is_found_out() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let report = bundle.script("doctor", &[]);
    assert_eq!(report.code, Some(3));
    assert!(report.stdout.contains("wrong clock     CAS's clock is "), "{}", report.stdout);
}
