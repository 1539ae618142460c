//! `doctor` says what is true: nothing is wrong where nothing is, and for everything that can be wrong there is a line with
//! the command that mends it. The tests run that command and look whether the line is gone. `who` and `timedatectl` are
//! stand-ins, since what this host's say is not up to us.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::attacker::{delete_files, put_back};
use crate::support::{Bundle, Outcome, Platform, User, copy, docker_is_there, phone, run};
use serde_json::Value;

/// A picture of the kind that otpqr draws, though of one module.
const PICTURE: &str = "<svg viewBox=\"0 0 3 3\">\n<path stroke=\"#000\" d=\"M1 1.5h1\"/>\n</svg>\n";

/// Wraps `scone` and `scone-run`: records each call, and runs a deed before or after the call that the test names.
const WATCHED: &str = r#"#!/bin/sh
bin=${0%/*} name=${0##*/}
case "$name $1 ${SCONE_HASH:-}" in
  'scone session '*) what=$2 ;;
  'scone-run --rootfs ') what=start ;;
  *) what=other ;;
esac
echo "$what" >>"$bin/calls"
call="$what $(grep -c -x "$what" "$bin/calls")"
deed() { [ "$(cat "$bin/when" 2>/dev/null)" != "$1 $call" ] || . "$bin/deed"; }
deed before
"$bin/genuine/$name" "$@"
code=$?
deed after
exit $code
"#;

/// What it does to the script.
const KILL: &str = "kill -9 $PPID; exit 1";

struct Patient(Bundle);

impl Patient {
    fn new() -> Patient {
        // With the host's clock, since doctor also compares CAS's with it.
        Patient::of(Bundle::new("it's a \"bundle\", really", Platform::SimNative, User::Caller, false))
    }

    fn of(bundle: Bundle) -> Patient {
        bundle.install(scripts!());
        for (name, _) in scripts!() {
            // As a mend calls it.
            symlink(name, bundle.root.join(format!("scripts/{name}.rs"))).expect("a link");
        }
        fs::create_dir(bundle.root.join("host")).expect("a directory");
        let patient = Patient(bundle);
        patient.host_says("who", "alice tty1 2026-01-01 00:00");
        patient.host_says("timedatectl", "yes");
        patient
    }

    /// With the account `default`.
    fn created() -> Patient {
        let patient = Patient::new();
        patient.0.script("create", &["--platform", "sim-native"]).expect(0);
        patient
    }

    fn host_says(&self, tool: &str, text: &str) {
        // `printf` of nothing prints nothing.
        let text = if text.is_empty() { String::new() } else { format!("{text}\\n") };
        write_program(&self.0.root.join("host").join(tool), &format!("#!/bin/sh\nprintf '{text}'\n"));
    }

    /// From now on each call of a tool is recorded.
    fn watch(&self) {
        let bin = self.0.root.join("simulator/bin");
        fs::create_dir(bin.join("genuine")).expect("a directory");
        for (name, program) in [("scone", "../scone-sim"), ("scone-run", "../rootfs/scone-run")] {
            fs::remove_file(bin.join(name)).expect("deletion");
            symlink(program, bin.join("genuine").join(name)).expect("a link");
            write_program(&bin.join(name), WATCHED);
        }
    }

    /// Runs a script; at this call (`before read 1`) `deed` is done. Also returns what was called.
    fn script_with(&self, when: &str, deed: &str, script: &str, args: &[&str]) -> (Outcome, Vec<String>) {
        let bin = self.0.root.join("simulator/bin");
        fs::write(bin.join("calls"), "").expect("a list");
        fs::write(bin.join("deed"), deed).expect("a deed");
        fs::write(bin.join("when"), when).expect("a time");
        let outcome = run(self.command(script, args));
        fs::remove_file(bin.join("when")).expect("deletion");
        let calls = fs::read_to_string(bin.join("calls")).expect("the list");
        (outcome, calls.lines().map(str::to_owned).collect())
    }

    /// Kills a script at this call.
    #[track_caller]
    fn cut_off(&self, when: &str, script: &str, args: &[&str]) {
        let (outcome, _) = self.script_with(when, KILL, script, args);
        assert_eq!(outcome.code, None, "{}", outcome.text());
        self.0.all_ended("default");
    }

    /// Enrols the account, and has the code at hand that answers when `--keep-secret` asks for one.
    fn enrol(&self) -> phone::Account {
        self.0.gen_qr(&["--output", "state/alice.svg"]).expect(0);
        let account = self.0.scan("state/alice.svg");
        fs::write(self.0.root.join("code"), account.code_at(self.0.now())).expect("a code");
        account
    }

    fn command(&self, script: &str, args: &[&str]) -> std::process::Command {
        let mut command = self.0.script_command(script, args);
        let path = std::env::var("PATH").expect("a PATH");
        command.env("PATH", format!("{}:{path}", self.0.root.join("host").display()));
        command
    }

    fn doctor(&self, args: &[&str]) -> Outcome {
        run(self.command("doctor", args))
    }

    /// The lines about what is wrong, each with the command that mends it.
    #[track_caller]
    fn wrong(&self) -> Vec<(String, Option<String>)> {
        let report = self.doctor(&[]);
        assert_eq!(report.code, Some(3), "{}", report.text());
        let wrong = report.stdout.lines().filter(|line| line.starts_with("wrong"));
        wrong
            .map(|line| match line.split_once(" -> ") {
                Some((line, mend)) => (line.to_owned(), Some(mend.to_owned())),
                None => (line.to_owned(), None),
            })
            .collect()
    }

    /// Asserts that exactly one thing is wrong: the line begins with `line` and the command that mends it, which is returned,
    /// with `mend`.
    #[track_caller]
    fn suffers_from(&self, line: &str, mend: &str) -> String {
        let wrong = self.wrong();
        let [(found_line, Some(found_mend))] = wrong.as_slice() else { panic!("not one thing to mend: {wrong:?}") };
        assert!(found_line.starts_with(line), "{found_line}");
        assert!(found_mend.starts_with(mend), "{found_mend}");
        found_mend.clone()
    }

    /// Pastes the command that mends, as it stands, into a shell. Only what a person would be asked is answered by options.
    #[track_caller]
    fn mended_by(&self, mend: &str) {
        let answered = mend
            .replace("roll_forward.rs", "roll_forward.rs --yes")
            .replace("--keep-secret", "--keep-secret --otp-file code")
            .replace("gen_qr.rs", "gen_qr.rs --no-confirm --output state/alice.svg");
        let mut shell = self.0.command("sh");
        shell.args(["-c", &answered]);
        run(shell).expect(0);
        self.is_well();
    }

    #[track_caller]
    fn is_well(&self) {
        let report = self.doctor(&[]).expect(0).stdout;
        assert!(report.lines().all(|line| line.starts_with("ok ")), "{report}");
    }

    /// Asserts that the report has this line; returns the report.
    #[track_caller]
    fn says(&self, line: &str) -> String {
        let report = self.doctor(&[]).stdout;
        assert!(report.lines().any(|found| found.starts_with(line)), "'{line}' is not in:\n{report}");
        report
    }

    fn namespace(&self) -> String {
        self.0.known("default", &["namespace"])
    }

    fn change(&self, path: &str, from: &str, to: &str) {
        let path = self.0.root.join(path);
        let text = fs::read_to_string(&path).expect("a file");
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).expect("a file");
    }
}

/// A process that another test starts at the same time may inherit the file we wrote, open: it is then "busy". A copy is not.
fn write_program(path: &Path, text: &str) {
    let written = path.with_extension("written");
    fs::write(&written, text).expect("a program");
    fs::set_permissions(&written, Permissions::from_mode(0o755)).expect("permissions");
    if path.exists() {
        fs::remove_file(path).expect("deletion");
    }
    copy(&written, path);
}

#[test]
fn an_account_that_is_not_there_is_the_finding() {
    let patient = Patient::new();
    patient.suffers_from("wrong state     there is no 'state/default.yml'", "./scripts/create.rs");
}

#[test]
fn a_healthy_account_has_nothing_wrong_also_after_it_was_enrolled() {
    let patient = Patient::created();
    patient.is_well();
    patient.enrol();
    patient.is_well();
    // What may take a while is announced.
    let report = patient.doctor(&[]).expect(0);
    report.saying("doctor: asking CAS what it holds\n").saying("doctor: starting the program's service 'check'\n");
    // doctor changes nothing.
    patient.0.gen_qr(&["--output", "again.svg"]).expect(5);
}

#[test]
fn in_a_container_a_healthy_account_is_well_and_a_damaged_one_is_mended() {
    if !docker_is_there() {
        return;
    }
    let patient = Patient::of(Bundle::new("it's a \"bundle\", really", Platform::Sim, User::Caller, false));
    patient.0.script("create", &["--platform", "sim"]).expect(0);
    patient.is_well();
    patient.enrol();
    patient.is_well();
    delete_files(&patient.0.volume("default"));
    let mend = patient.suffers_from("wrong volume    file system protection file was removed", "./scripts/");
    patient.mended_by(&mend);
    patient.0.gen_qr(&["--output", "again.svg"]).expect(5);
}

#[test]
fn what_is_wrong_with_the_host_is_said() {
    let patient = Patient::created();
    patient.host_says("who", "mallory pts/0 2026-01-01 00:00");
    let wrong = patient.wrong();
    let [(line, None)] = wrong.as_slice() else { panic!("{wrong:?}") };
    assert!(line.starts_with("wrong users     also logged in: mallory"), "{line}");
    // Without an entry for anybody, not even alice is logged in.
    patient.host_says("who", "");
    patient.says("?     users     who else is logged in: ");
    patient.host_says("who", "alice tty1 2026-01-01 00:00");
    patient.host_says("timedatectl", "no");
    patient.suffers_from("wrong clock     the kernel's clock is not synchronised", "timedatectl set-ntp true");
    patient.host_says("timedatectl", "");
    // What could not be found out does not count as well.
    let report = patient.doctor(&[]);
    assert_eq!(report.code, Some(3));
    patient.says("?     clock     ");
}

#[test]
fn what_is_wrong_comes_first_and_then_what_is_not_known() {
    let patient = Patient::created();
    patient.host_says("timedatectl", "");
    fs::write(patient.0.root.join("left.svg"), PICTURE).expect("a picture");
    let report = patient.doctor(&[]).stdout;
    let results: Vec<&str> = report.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(results[..3], ["wrong", "?", "ok"], "{report}");
    assert!(results[3..].iter().all(|result| *result == "ok"), "{report}");
    let findings: Vec<Value> = serde_json::from_str(&patient.doctor(&["--json"]).stdout).expect("JSON");
    let results: Vec<_> = findings.iter().map(|finding| finding["result"].as_str().expect("a result")).collect();
    assert_eq!(results[..3], ["wrong", "unknown", "ok"]);
}

#[test]
fn what_is_wrong_with_the_state_is_said() {
    let patient = Patient::created();
    let file = patient.0.state_file("default");
    for (path, mode, mend) in
        [(file.clone(), 0o644, "chmod 600 '"), (patient.0.root.join("state"), 0o755, "chmod 700 '")]
    {
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("permissions");
        let mend = patient.suffers_from("wrong state     ", mend);
        patient.mended_by(&mend);
    }
    fs::write(patient.0.root.join("it's left.svg"), PICTURE).expect("a picture");
    // A picture of somebody else's.
    fs::write(patient.0.root.join("plan.svg"), PICTURE.replace("#000", "#00f")).expect("a picture");
    let mend = patient.suffers_from("wrong files     a QR code was left in", "shred -n 3 -z -u '");
    patient.mended_by(&mend);

    fs::write(&file, "format: 1\nplat").expect("damage");
    let report = patient.doctor(&[]);
    assert_eq!(report.code, Some(3));
    patient.says("wrong state     state file '");
    assert!(report.stdout.contains("default.yml' is damaged"), "{}", report.stdout);
}

#[test]
fn a_qr_code_that_waits_to_be_delivered_is_said() {
    let patient = Patient::created();
    patient.watch();
    patient.cut_off("after start 1", "gen_qr", &["--no-confirm", "--output", "state/alice.svg"]);
    let mend = patient.suffers_from("wrong files     a run was cut off: the QR code", "./scripts/gen_qr.rs");
    patient.mended_by(&mend);
    patient.0.scan("state/alice.svg");
}

#[test]
fn what_is_wrong_with_cas_and_image_is_said() {
    let patient = Patient::created();
    patient.0.scone_sim(["down"]).expect(0);
    let mend = patient.suffers_from("wrong CAS       the simulated CAS is not running", "'");
    // What depends on something that is wrong is not checked.
    let checks = |report: Outcome| -> Vec<String> {
        report.stdout.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
    };
    let looked_at = checks(patient.doctor(&[]));
    assert!(!looked_at.iter().any(|check| check == "policies" || check == "volume"), "{looked_at:?}");
    patient.mended_by(&mend);

    let program = patient.0.root.join("simulator/bin/rootfs/bin/otpqr");
    let genuine = fs::read(&program).expect("the program");
    fs::write(&program, [&genuine[..], b"\0"].concat()).expect("another program");
    let mend = patient.suffers_from(
        "wrong image     image 'simulator/bin/rootfs' is not the one in the policies",
        "./scripts/create.rs",
    );
    let looked_at = checks(patient.doctor(&[]));
    assert!(!looked_at.iter().any(|check| check == "volume"), "{looked_at:?}");
    patient.mended_by(&mend);
}

#[test]
fn a_cas_that_does_not_answer_is_asked_no_second_time() {
    let patient = Patient::created();
    patient.watch();
    let down = "\"$bin/scone-sim\" down >&2";
    let silent = |report: &Outcome, lines: &[&str]| {
        assert_eq!(report.code, Some(3), "{}", report.text());
        let unknown: Vec<&str> = report.stdout.lines().filter(|line| !line.starts_with("ok ")).collect();
        assert_eq!(unknown.len(), lines.len(), "{unknown:?}");
        assert!(unknown.iter().zip(lines).all(|(found, line)| found.starts_with(line)), "{unknown:?}");
    };
    let asked = |calls: &[String]| calls.iter().filter(|call| *call != "other").cloned().collect::<Vec<_>>();

    let (report, calls) = patient.script_with("before read 1", down, "doctor", &[]);
    let policies = ["?     policies  '"; 3];
    silent(&report, &[&["?     CAS       '127.0.0.1:"], &policies[..], &["?     clock", "?     volume"]].concat());
    assert_eq!(asked(&calls), ["read"]);

    patient.0.scone_sim(["up"]).expect(0);
    let (report, calls) = patient.script_with("after verify 1", down, "doctor", &[]);
    silent(&report, &[&policies[..2], &["?     clock", "?     volume"]].concat());
    assert_eq!(asked(&calls), ["read", "read", "verify", "read"]);

    // That it does not answer is not that it says no.
    patient.0.scone_sim(["up"]).expect(0);
    let (report, calls) = patient.script_with("before verify 1", down, "doctor", &[]);
    silent(&report, &[&policies[..], &["?     clock", "?     volume"]].concat());
    assert_eq!(asked(&calls), ["read", "read", "verify", "read"]);

    patient.0.scone_sim(["up"]).expect(0);
    patient.is_well();
}

#[test]
fn interrupted_it_asks_nothing_more_and_reports_nothing() {
    let patient = Patient::created();
    patient.watch();
    let (report, calls) = patient.script_with("before verify 1", "kill -INT $PPID", "doctor", &[]);
    report.expect(130).saying("doctor: error: interrupted");
    // It may have made one more call before it noticed.
    assert!(calls.iter().filter(|call| *call == "verify").count() < 3, "{calls:?}");
}

#[test]
fn what_is_wrong_with_policies_and_volume_is_said() {
    let patient = Patient::created();
    patient.watch();
    patient.change("templates/namespace.yml", "create_sessions: [CREATOR]", "create_sessions: [ANY]");
    let mend = patient.suffers_from("wrong policies  CAS holds another 'otpqr-", "./scripts/create.rs");
    patient.mended_by(&mend);

    // As a CAS that was wiped but kept its key would answer.
    let namespace = patient.namespace();
    patient.change("state/default.yml", &namespace, "otpqr-00000000000000000000");
    let wrong = patient.wrong();
    let sessions = ["", "/otpqr", "/otpqr-reset"].map(|name| format!("otpqr-00000000000000000000{name}"));
    assert_eq!(wrong.len(), 3, "{wrong:?}");
    for ((line, mend), session) in wrong.iter().zip(sessions) {
        assert_eq!(line, &format!("wrong policies  CAS holds no '{session}'"));
        assert_eq!(mend.as_deref(), Some("./scripts/roll_forward.rs --cas-wiped"));
    }
    patient.says("?     volume    not opened: session 1");
    patient.mended_by("./scripts/roll_forward.rs --cas-wiped");
}

#[test]
fn an_account_that_was_not_created_to_the_end_is_created_to_the_end() {
    let patient = Patient::new();
    patient.watch();
    patient.cut_off("before create 2", "create", &["--platform", "sim-native"]);
    let wrong = patient.wrong();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    for (line, mend) in &wrong {
        assert!(line.starts_with("wrong policies  CAS holds no 'otpqr-"), "{line}");
        assert_eq!(mend.as_deref(), Some("./scripts/create.rs"));
    }
    patient.mended_by("./scripts/create.rs");
}

#[test]
fn a_program_that_was_not_yet_uploaded_does_not_cost_the_volume() {
    let patient = Patient::created();
    patient.enrol();
    patient.watch();
    let program = patient.0.root.join("simulator/bin/rootfs/bin/otpqr");
    let genuine = fs::read(&program).expect("the program");
    fs::write(&program, [&genuine[..], b"\0"].concat()).expect("another program");
    // The state has the new one; CAS still holds the other.
    patient.cut_off("before create 1", "create", &[]);
    let report = patient.says("ok    image     'simulator/bin/rootfs' is the program that the state names");
    assert!(!report.contains("roll_forward"), "{report}");
    let wrong = patient.wrong();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    for (line, mend) in &wrong {
        assert!(line.starts_with("wrong policies  CAS holds another 'otpqr-"), "{line}");
        assert_eq!(mend.as_deref(), Some("./scripts/create.rs"));
    }
    patient.mended_by("./scripts/create.rs");
    patient.0.gen_qr(&["--output", "again.svg"]).expect(5);
}

#[test]
fn a_volume_that_is_damaged_is_said_and_replaced() {
    let patient = Patient::created();
    // A volume that was never used must be empty.
    let volume = patient.0.root.join("state/volumes/default/single_run_1");
    fs::create_dir_all(&volume).expect("a directory");
    fs::write(volume.join("left"), "").expect("a file");
    patient.suffers_from("wrong volume    'left ", "./scripts/roll_forward.rs --keep-secret");
    fs::remove_file(volume.join("left")).expect("deletion");
    patient.is_well();

    let account = patient.enrol();
    let older = patient.0.root.join("older");
    let damage_and_mend = |damage: &dyn Fn(&Path), line: &str| {
        let volume = patient.0.volume("default");
        damage(&volume);
        let mend = patient.suffers_from(line, "./scripts/roll_forward.rs --keep-secret");
        (volume, mend)
    };
    let (_, mend) = damage_and_mend(&delete_files, "wrong volume    file system protection file was removed");
    // The secret is kept, and so is the once-marker.
    patient.mended_by(&mend);
    patient.0.gen_qr(&["--output", "again.svg"]).expect(5);
    assert_eq!(patient.0.known("default", &["secret_version"]), "1");

    // Without the authenticator, as the hint says.
    patient.0.script("roll_forward", &["--yes"]).expect(0);
    patient.is_well();
    copy(&patient.0.volume("default"), &older);
    patient.0.gen_qr(&["--output", "state/new.svg"]).expect(0);
    assert_ne!(patient.0.scan("state/new.svg").secret, account.secret);
    damage_and_mend(&|volume| put_back(&older, volume), "wrong volume    The FSPF tag is not fresh");
    patient.0.script("roll_forward", &["--yes"]).expect(0);
    patient.is_well();
    let alter = |volume: &Path| {
        for entry in fs::read_dir(volume).expect("the volume") {
            let path = entry.expect("an entry").path();
            let mut bytes = fs::read(&path).expect("a file");
            if let Some(byte) = bytes.last_mut() {
                *byte ^= 1;
            }
            fs::write(path, bytes).expect("alteration");
        }
    };
    damage_and_mend(&alter, "wrong volume    Verification of file chunk");
    patient.0.script("roll_forward", &["--yes"]).expect(0);
    patient.is_well();
}

#[test]
fn a_start_that_says_nothing_about_the_volume_does_not_cost_it() {
    let patient = Patient::created();
    patient.watch();
    // Between measuring and starting: CAS refuses it.
    let tamper = "printf x >>\"$bin/rootfs/bin/otpqr\"";
    let (report, _) = patient.script_with("before start 1", tamper, "doctor", &[]);
    assert!(
        report.stdout.starts_with("?     volume    not opened: Unexpected enclave measurement"),
        "{}",
        report.text()
    );
    assert!(!report.stdout.contains("->"), "{}", report.stdout);
    patient.suffers_from("wrong image     ", "./scripts/create.rs");
}

#[test]
fn a_roll_forward_that_was_not_even_begun_at_cas_is_told() {
    let patient = Patient::created();
    // A policy that cannot be rendered is noticed before anything is begun.
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
    patient.says("ok    codes     the current codes still work");
    let namespace = patient.namespace();
    for session in ["otpqr", "otpqr-reset"] {
        patient.says(&format!("ok    policies  CAS holds '{namespace}/{session}' as it was before"));
    }

    patient.0.script("roll_forward", &["--undo"]).expect(0);
    patient.is_well();
}

#[test]
fn a_roll_forward_that_was_cut_off_is_told_with_what_holds_and_finished() {
    let patient = Patient::created();
    patient.is_well();
    patient.watch();
    const BEFORE: &str = "as it was before the roll-forward";
    const BETWEEN: &str = "with the new declared beside the old";
    const AFTER: &str = "as the roll-forward leaves it";
    const LIVE: &str = "the current codes still work";
    const DEAD: &str = "session 2 has switched: the old codes are dead";
    let rounds = [
        ("after create 1", BETWEEN, BEFORE, LIVE),
        ("after create 2", BETWEEN, AFTER, DEAD),
        ("after create 3", AFTER, AFTER, DEAD),
    ];
    for (when, otpqr, reset, codes) in rounds {
        patient.cut_off(when, "roll_forward", &["--yes"]);
        let mend = patient.suffers_from("wrong pending   a roll-forward was cut off", "./scripts/roll_forward.rs");
        let namespace = patient.namespace();
        patient.says(&format!("ok    policies  CAS holds '{namespace}/otpqr' {otpqr}"));
        patient.says(&format!("ok    policies  CAS holds '{namespace}/otpqr-reset' {reset}"));
        patient.says(&format!("ok    codes     {codes}"));
        // The volume that was checked is the one in use, also after everything is done.
        patient.mended_by(&mend);
    }
}

#[test]
fn while_a_roll_forward_is_pending_another_policy_is_not_taken_for_its_doing() {
    let patient = Patient::created();
    patient.watch();
    patient.cut_off("before create 2", "roll_forward", &["--yes"]);
    patient.change("templates/otpqr.yml", "pwd: /\n", "pwd: /root\n");
    patient.change("templates/otpqr-reset.yml", "pwd: /\n", "pwd: /root\n");
    patient.change("templates/namespace.yml", "create_sessions: [CREATOR]", "create_sessions: [ANY]");
    let wrong = patient.wrong();
    assert_eq!(wrong.len(), 4, "{wrong:?}");
    let namespace = patient.namespace();
    for ((line, mend), name) in wrong[1..].iter().zip(["", "/otpqr", "/otpqr-reset"]) {
        assert_eq!(line, &format!("wrong policies  CAS holds another '{namespace}{name}'"));
        assert_eq!(mend.as_deref(), Some("./scripts/roll_forward.rs && ./scripts/create.rs"));
    }
    // Which codes are valid and which volume is in use can only be said of known sessions.
    patient.says("?     codes     ");
    patient.says("?     volume    not opened: session 1");
    patient.mended_by("./scripts/roll_forward.rs && ./scripts/create.rs");
}

#[test]
fn while_a_roll_forward_is_pending_a_damaged_volume_is_replaced_by_ending_it() {
    let patient = Patient::created();
    patient.enrol();
    patient.watch();
    patient.cut_off("after create 1", "roll_forward", &["--yes"]);
    delete_files(&patient.0.volume("default"));
    patient.cut_off("before create 1", "roll_forward", &["--undo"]);
    let wrong = patient.wrong();
    let [(line, mend), (volume, both)] = wrong.as_slice() else { panic!("{wrong:?}") };
    assert!(line.starts_with("wrong pending   a roll-forward is being undone; the old codes live"), "{line}");
    assert_eq!(mend.as_deref(), Some("./scripts/roll_forward.rs --undo"));
    assert!(volume.starts_with("wrong volume    file system protection file was removed"), "{volume}");
    patient.says("ok    codes     the current codes still work");
    patient.mended_by(both.as_deref().expect("a mend"));
    patient.0.gen_qr(&["--output", "again.svg"]).expect(5);

    delete_files(&patient.0.volume("default"));
    patient.cut_off("after create 1", "roll_forward", &["--yes"]);
    let wrong = patient.wrong();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(wrong.iter().all(|(_, mend)| mend.as_deref() == Some("./scripts/roll_forward.rs")), "{wrong:?}");
    patient.mended_by("./scripts/roll_forward.rs");
}

#[test]
fn a_roll_forward_that_keeps_the_secret_goes_on_as_one() {
    let patient = Patient::created();
    patient.enrol();
    patient.watch();
    patient.cut_off("after create 2", "roll_forward", &["--yes", "--keep-secret", "--otp-file", "code"]);
    let mend = patient.suffers_from("wrong pending   ", "./scripts/roll_forward.rs --keep-secret");
    patient.says("ok    codes     the current codes still work");
    patient.mended_by(&mend);
    assert_eq!(patient.0.known("default", &["secret_version"]), "1");
}

#[test]
fn an_undo_that_was_cut_off_is_told_and_finished() {
    let patient = Patient::created();
    patient.watch();
    patient.cut_off("after create 1", "roll_forward", &["--yes"]);
    patient.cut_off("before create 1", "roll_forward", &["--undo"]);
    let mend = patient.suffers_from(
        "wrong pending   a roll-forward is being undone; the old codes live",
        "./scripts/roll_forward.rs --undo",
    );
    patient.says("ok    codes     the current codes still work");
    patient.mended_by(&mend);
    assert_eq!(patient.0.known("default", &["volume_version"]), "1");
}

#[test]
fn the_report_is_json_on_demand() {
    let patient = Patient::created();
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
fn a_cas_whose_clock_is_wrong_is_found_out_and_restarted_with_the_hosts() {
    let patient = Patient::of(Bundle::of_test(Platform::SimNative, User::Caller));
    patient.0.script("create", &["--platform", "sim-native"]).expect(0);
    let mend = patient.suffers_from("wrong clock     CAS's clock is ", "'");
    patient.mended_by(&mend);
}

#[test]
fn a_volume_that_was_moved_away_can_be_moved_back_after_one_has_looked() {
    let patient = Patient::new();
    patient.0.script("create", &["--platform", "sim-native"]).expect(0);
    patient.0.gen_qr(&["--output", "state/alice.svg"]).expect(0);
    let (volume, elsewhere) = (patient.0.volume("default"), patient.0.root.join("elsewhere"));
    fs::rename(&volume, &elsewhere).expect("a move");
    assert!(patient.doctor(&[]).stdout.contains("wrong volume    file system protection file was removed"));
    patient.0.gen_qr(&["--output", "again.svg"]).expect(5);
    assert!(!volume.exists(), "an empty directory stands in the way");
    fs::rename(&elsewhere, &volume).expect("a move back");
    patient.is_well();
}

#[test]
fn what_it_leaves_when_it_is_killed_the_next_run_takes_away() {
    let patient = Patient::created();
    patient.watch();
    let directory = format!("{}.doctor", patient.0.known("default", &["namespace"]));
    let left = |directory: &str| -> Vec<_> {
        let entries = fs::read_dir(patient.0.root.join(directory)).expect("a directory");
        entries.map(|entry| entry.expect("an entry").file_name()).collect()
    };
    for when in ["before start 1", "after start 1"] {
        patient.cut_off(when, "doctor", &[]);
        assert_eq!((left("tmp").len(), left("state/issuing")), (0, vec![directory.clone().into()]), "{when}");
    }
    // The program was killed, too, having just made its file.
    fs::write(patient.0.root.join("state/issuing").join(&directory).join("qrcode.svg"), "").expect("a file");
    patient.is_well();
    assert_eq!(left("state/issuing").len(), 0);
}
