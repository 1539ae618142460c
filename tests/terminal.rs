//! The scripts at a terminal: a real pseudo-terminal, a person who types.

mod support;

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rexpect::process::WaitStatus;
use rexpect::session::{PtySession, spawn_command};

use support::{Bundle, Platform, User, docker_is_there, phone, repository, run};

/// A wait for ever would hide a hang; this is no assertion of speed.
const PATIENCE: Option<u64> = Some(60_000);

fn at_a_terminal(mut command: Command) -> PtySession {
    command.stdin(Stdio::inherit());
    spawn_command(command, PATIENCE).expect("a pseudo-terminal")
}

/// What it still printed, and its exit code.
fn end(mut session: PtySession) -> (String, i32) {
    let rest = session.exp_eof().expect("the end of the output");
    match session.process().wait().expect("the end of the process") {
        WaitStatus::Exited(_, code) => (rest, code),
        other => panic!("{other:?} after:\n{rest}"),
    }
}

fn bundle() -> Bundle {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle
}

/// Types a code at the prompt that names `whose`. Near the end of a time step the script offers to wait: a person accepts.
fn enter(session: &mut PtySession, whose: &str, code: impl Fn() -> String) {
    let asked = session.exp_regex(&format!("{whose} \\(changes in|Wait for the next code")).expect("the prompt").1;
    if asked.starts_with("Wait") {
        session.send("y").and_then(|_| session.flush()).expect("typing");
        session.exp_string(&format!("{whose} (changes in")).expect("the prompt");
    }
    session.send_line(&code()).expect("typing");
    session.exp_string("[hidden]").expect("the prompt, redrawn without the code");
}

/// The account's entry, as the host's clock has it: the script's idea of time is the host's, so the bundle's must be, too.
fn bundle_with_the_hosts_clock() -> Bundle {
    let bundle = Bundle::new("bundle", Platform::SimNative, User::Caller, false);
    bundle.install(scripts!());
    bundle
}

#[test]
fn the_code_is_asked_for_last_and_not_shown() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let code = account.code_at(bundle.now());
    let add_auth = bundle.script_command("add_auth", &["--no-confirm", "--keep", "--output", "second.svg"]);
    let mut session = at_a_terminal(add_auth);
    session.exp_string("checking program and volume").expect("the check");
    enter(&mut session, "Code for SCONE OTP, alice", || code.clone());
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
    assert!(!rest.contains(&code), "{rest}");
    assert_eq!(bundle.scan("second.svg").secret, account.secret);
}

#[test]
fn a_code_that_is_about_to_change_is_not_asked_for_unless_one_insists() {
    let bundle = bundle_with_the_hosts_clock();
    let account = bundle.enrol("default");
    // The prompt has to come in the last two seconds of a time step. A busy machine may miss them: it starts earlier then.
    let mut early = 2;
    let mut session = loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_millis() as u64;
        sleep(Duration::from_millis(30_000 - (now + early * 1000) % 30_000));
        let add_auth = bundle.script_command("add_auth", &["--no-confirm", "--keep", "--output", "second.svg"]);
        let mut session = at_a_terminal(add_auth);
        let prompts = "Code for SCONE OTP, alice|The code changes in [12] s, the start takes about [0-9]+ s.";
        if session.exp_regex(prompts).expect("a prompt").1.starts_with("The code") {
            break session;
        }
        session.send_control('c').expect("typing");
        assert_eq!(end(session).1, 130);
        early = early % 5 + 1;
    };
    session.exp_string("Wait for the next code?").expect("the offer");
    session.send_line("").expect("typing");
    // Asked when the next one is there, with nearly all its time left.
    let left = session.exp_regex("Code for SCONE OTP, alice \\(changes in (29|30) s\\)").expect("the prompt").1;
    session.send_line(&account.code_at(bundle.now())).expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{left}{rest}");
}

#[test]
fn a_wrong_code_may_be_tried_again_twice() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let right = account.code_at(bundle.now());
    let wrong = if right == "000000" { "000001" } else { "000000" };
    let add_auth = || bundle.script_command("add_auth", &["--no-confirm", "--keep", "--output", "second.svg"]);
    let mut session = at_a_terminal(add_auth());
    enter(&mut session, "Code for SCONE OTP, alice", || "12345".to_owned());
    session.exp_string("exactly six digits").expect("advice");
    for _ in 0..2 {
        enter(&mut session, "Code for SCONE OTP, alice", || wrong.to_owned());
    }
    let (rest, exit) = end(session);
    assert_eq!(exit, 5, "{rest}");
    assert!(!bundle.root.join("second.svg").exists());

    let mut session = at_a_terminal(add_auth());
    enter(&mut session, "Code for SCONE OTP, alice", || wrong.to_owned());
    session.exp_string("that code is wrong").expect("advice");
    enter(&mut session, "Code for SCONE OTP, alice", || right.clone());
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
}

#[test]
fn ctrl_c_at_the_prompt_for_a_code_leaves_nothing_behind_and_spends_nothing() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let before = fs::read(bundle.state_file("default")).expect("the state");
    let mut session = at_a_terminal(bundle.script_command("add_auth", &["--output", "second.svg"]));
    session.exp_regex("Code for SCONE OTP, alice|Wait for the next code").expect("the prompt");
    session.send_control('c').expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 130, "{rest}");
    let names = fs::read_dir(&bundle.root).expect("the root").map(|entry| entry.expect("an entry").file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains("second.svg")).collect();
    assert_eq!(left, [""; 0]);
    assert_eq!(before, fs::read(bundle.state_file("default")).expect("the state"));
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
}

#[test]
fn an_enrolment_is_confirmed_by_a_first_code_and_the_picture_destroyed() {
    let bundle = bundle_with_the_hosts_clock();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let mut session = at_a_terminal(bundle.script_command("gen_qr", &[]));
    session.exp_string("the QR code of 'SCONE OTP', 'alice' is in").expect("where it is");
    // A wrong code is no confirmation.
    enter(&mut session, "Code that the new entry SCONE OTP, alice shows", || "000000".to_owned());
    session.exp_string("that code is wrong").expect("advice");
    let account = bundle.scan("qrcode.svg");
    let code = || account.code_at(bundle.now());
    enter(&mut session, "Code that the new entry SCONE OTP, alice shows", code);
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
    assert!(rest.contains("enrolled and confirmed") && rest.contains("destroyed"), "{rest}");
    assert!(!bundle.root.join("qrcode.svg").exists());
    // The code of the confirmation is spent.
    let reused = bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]);
    reused.expect(5);
}

#[test]
fn a_second_authenticators_first_code_is_the_one_after_the_code_that_allowed_it() {
    let bundle = bundle_with_the_hosts_clock();
    let account = bundle.enrol("default");
    let code = || account.code_at(bundle.now());
    let mut session = at_a_terminal(bundle.script_command("add_auth", &[]));
    let spent = Cell::new(String::new());
    enter(&mut session, "Code for SCONE OTP, alice", || {
        spent.replace(code());
        code()
    });
    let spent = spent.into_inner();
    // Asked for only when there is one that CAS can accept.
    session.exp_regex("the code shown now was used already: waiting [0-9]+ s for the next one").expect("why it waits");
    enter(&mut session, "Code that the new entry SCONE OTP, alice shows", || {
        assert_ne!(code(), spent, "it did not wait");
        code()
    });
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
    assert!(rest.contains("enrolled and confirmed"), "{rest}");
}

#[test]
fn ctrl_c_before_the_confirmation_says_where_the_picture_is() {
    let bundle = bundle_with_the_hosts_clock();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let mut session = at_a_terminal(bundle.script_command("gen_qr", &[]));
    session.exp_regex("Code that the new entry|Wait for the next code").expect("the prompt");
    session.send_control('c').expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 130, "{rest}");
    assert!(rest.contains("the QR code is still there: shred -n 3 -z -u '"), "{rest}");
    bundle.scan("qrcode.svg");
}

#[test]
fn a_qr_code_on_the_terminal_is_in_no_file_and_gone_afterwards() {
    let bundle = bundle_with_the_hosts_clock();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    // A pipe is no terminal: refused before anything is spent.
    bundle.gen_qr(&["--terminal"]).expect(2).saying("'--terminal' needs a terminal");

    let mut stty = bundle.command("sh");
    let script = bundle.root.join("scripts/gen_qr");
    stty.args(["-c", &format!("stty rows 60 cols 120; exec '{}' --terminal --no-confirm", script.display())]);
    let mut session = at_a_terminal(stty);
    session.exp_string("\x1b[?1049h").expect("the alternate screen");
    let drawn = session.exp_string("Scan it, then press Enter").expect("the prompt");
    // The session hands out bytes as characters.
    let drawn = String::from_utf8(drawn.chars().map(|byte| byte as u8).collect()).expect("UTF-8");
    let account = phone::scan(&as_svg(&drawn)).expect("a QR code that a phone can read");
    assert_eq!(account.login, "alice");
    let names = fs::read_dir(&bundle.root).expect("the root").map(|entry| entry.expect("an entry").file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains("svg")).collect();
    assert_eq!(left, [""; 0], "the picture is in a file");
    session.send_line("").expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
    assert!(rest.contains("\x1b[?1049l"), "{rest}");
    assert!(!rest.contains(&account.secret));
}

/// What a terminal shows of half blocks, as a picture: black on white.
fn as_svg(drawn: &str) -> String {
    let mut path = String::new();
    let lines: Vec<&str> = drawn.lines().filter(|line| line.contains("\x1b[38;5;16;48;5;231m")).collect();
    let (mut width, mut height) = (0, 0);
    for (row, line) in lines.iter().enumerate() {
        let cells =
            line.split("231m").nth(1).and_then(|rest| rest.split('\x1b').next()).expect("a line of the drawing");
        for (x, cell) in cells.chars().enumerate() {
            let (upper, lower) = (matches!(cell, '█' | '▀'), matches!(cell, '█' | '▄'));
            for (y, _) in [(2 * row, upper), (2 * row + 1, lower)].into_iter().filter(|(_, dark)| *dark) {
                path.push_str(&format!("M{x} {y}h1v1h-1z"));
            }
            width = width.max(x + 1);
        }
        height = 2 * (row + 1);
    }
    let (w, h) = (8 * width, 8 * height);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {width} {height}\">\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/><path d=\"{path}\"/></svg>"
    )
}

#[test]
fn rolling_forward_asks_first_and_takes_no_for_an_answer() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    for (answer, exit) in [("n", 3), ("\r", 3)] {
        let mut session = at_a_terminal(bundle.script_command("roll_forward", &[]));
        session.exp_string("'SCONE OTP', 'alice' stop working at once").expect("the prompt");
        session.send(answer).and_then(|_| session.flush()).expect("typing");
        let (rest, found) = end(session);
        assert_eq!(found, exit, "{rest}");
        assert!(rest.contains("nothing was changed"), "{rest}");
    }
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);

    let mut session = at_a_terminal(bundle.script_command("roll_forward", &[]));
    session.exp_string("stop working at once").expect("the prompt");
    session.send("y").and_then(|_| session.flush()).expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
    bundle.add_auth(&account.code_at(bundle.now() + 30), &["--output", "third.svg"]).expect(5);
}

fn interrupted_start(platform: Platform) {
    let bundle = Bundle::of_test(platform, User::Caller);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", platform.name()]).expect(0);
    let mut cas = bundle.hold_cas();
    let mut shell = bundle.command("sh");
    let script = bundle.root.join("scripts/gen_qr").display().to_string().replace('\'', r"'\''");
    // The terminal's echo of Ctrl-C says that it was delivered.
    shell.args(["-c", &format!("stty echo; exec '{script}' --no-confirm")]);
    let mut session = at_a_terminal(shell);
    session.exp_string("starting the confidential program").expect("the start");
    cas.wait();
    session.send_control('c').expect("typing");
    session.exp_string("^C").expect("the echo");
    drop(cas);
    let (rest, exit) = end(session);
    assert_eq!(exit, 130, "{rest}");
    assert!(rest.contains("gen_qr: error: interrupted; run the same command again to go on"), "{rest}");
    assert!(!bundle.root.join("qrcode.svg").exists());
    let left: Vec<_> = fs::read_dir(bundle.root.join("state/issuing")).expect("where it is issued").collect();
    assert!(left.is_empty(), "{left:?}");

    bundle.gen_qr(&[]).expect(0);
    bundle.scan("qrcode.svg");
}

#[test]
fn ctrl_c_during_a_start_leaves_nothing_behind_and_the_same_command_goes_on() {
    interrupted_start(Platform::SimNative);
    if docker_is_there() {
        interrupted_start(Platform::Sim);
    }
}

#[test]
fn the_demonstration_cleans_up_after_ctrl_c() {
    let own = std::env::current_exe().expect("the test's path");
    let demo = own.ancestors().nth(2).expect("the target directory").join("examples/demo");
    assert!(demo.exists(), "'cargo test' builds it, 'cargo test --test' does not: cargo build --example demo");
    let mut command = Command::new(demo);
    command.args(["--platform", "sim-native"]).current_dir(repository());
    let mut session = at_a_terminal(command);
    session.exp_string("OTPQR_ROOT='").expect("where it works");
    let root = session.exp_string("'").expect("where it works");
    assert!(Path::new(&root).exists());
    session.exp_string("3. The QR code, once").expect("the middle of it");
    session.send_control('c').expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 1, "{rest}");
    assert!(rest.contains("interrupted; everything is cleaned up"), "{rest}");
    assert!(!Path::new(&root).exists());
}

/// Presses Ctrl-C after `prompt` has appeared; returns what was printed afterwards. The cursor is visible again.
fn break_off(command: Command, prompt: &str) -> String {
    let mut session = at_a_terminal(command);
    session.exp_string(prompt).expect("the prompt");
    session.send_control('c').expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 130, "{rest}");
    assert!(rest.contains("interrupted; "), "{rest}");
    assert!(rest.rfind("\x1b[?25h") > rest.rfind("\x1b[?25l"), "the cursor is lost: {rest}");
    rest
}

#[test]
fn ctrl_c_at_the_question_before_a_roll_forward_changes_nothing() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let before = fs::read(bundle.state_file("default")).expect("the state");
    break_off(bundle.script_command("roll_forward", &[]), "stop working at once. Go on?");
    assert_eq!(before, fs::read(bundle.state_file("default")).expect("the state"));
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
}

#[test]
fn ctrl_c_while_the_picture_waits_to_be_scanned_says_where_it_is() {
    let bundle = bundle();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let rest = break_off(bundle.script_command("gen_qr", &["--no-confirm"]), "Scan it, then press Enter");
    assert!(rest.contains("the QR code is still there: shred -n 3 -z -u 'qrcode.svg'"), "{rest}");
    bundle.scan("qrcode.svg");
}

#[test]
fn ctrl_c_while_the_qr_code_is_on_the_terminal_takes_it_away() {
    let bundle = bundle();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let mut shell = bundle.command("sh");
    let script = bundle.root.join("scripts/gen_qr").display().to_string().replace('\'', r"'\''");
    shell.args(["-c", &format!("stty rows 60 cols 120; exec '{script}' --terminal --no-confirm")]);
    let rest = break_off(shell, "Scan it, then press Enter");
    assert!(rest.contains("\x1b[?1049l"), "the alternate screen is still there: {rest}");
    assert!(rest.contains("if it was not scanned, roll forward"), "{rest}");
}

#[test]
fn where_a_file_system_makes_shredding_weak_that_is_said() {
    let memory = Path::new("/dev/shm");
    let bundle = bundle();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let Ok(directory) = tempfile::tempdir_in(memory) else {
        eprintln!("SKIPPED: there is no /dev/shm");
        return;
    };
    let output = directory.path().join("alice.svg");
    let command = bundle.script_command("gen_qr", &["--no-confirm", "--output", output.to_str().expect("a name")]);
    let mut session = at_a_terminal(command);
    session.exp_string("Scan it, then press Enter").expect("the prompt");
    session.send_line("").expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
    assert!(rest.contains("destroyed, as far as the file system lets it: tmpfs"), "{rest}");
    assert!(!output.exists());
}

#[test]
fn a_terminal_too_small_for_the_qr_code_is_refused_before_it_is_issued() {
    let bundle = bundle();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let mut shell = bundle.command("sh");
    let script = bundle.root.join("scripts/gen_qr").display().to_string().replace('\'', r"'\''");
    shell.args(["-c", &format!("stty rows 24 cols 80; exec '{script}' --terminal --no-confirm")]);
    let (said, exit) = end(at_a_terminal(shell));
    assert_eq!(exit, 2, "{said}");
    assert!(said.contains("the terminal cannot show the QR code: it needs 57 columns and 31 rows"), "{said}");
    assert!(said.contains("hint: ./scripts/gen_qr.rs   # writes a file instead"), "{said}");
    bundle.gen_qr(&[]).expect(0);
}

#[test]
fn ctrl_c_does_not_break_the_destruction_of_the_picture_off() {
    let bundle = bundle();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let tools = bundle.root.join("tools");
    fs::create_dir(&tools).expect("a directory");
    let pipe = bundle.root.join("go-on");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let shred = which::which("shred").expect("shred");
    let waits = format!("#!/bin/sh\necho shredding >/dev/tty\nread go_on <go-on\nexec '{}' \"$@\"\n", shred.display());
    fs::write(tools.join("shred"), waits).expect("a stand-in");
    fs::set_permissions(tools.join("shred"), fs::Permissions::from_mode(0o755)).expect("permissions");

    let mut shell = bundle.command("sh");
    let script = bundle.root.join("scripts/gen_qr").display().to_string().replace('\'', r"'\''");
    let path = format!("PATH=\"$PWD/tools:$PATH\" exec '{script}' --no-confirm");
    // The terminal's echo of Ctrl-C says that it was delivered.
    shell.args(["-c", &format!("stty echo; {path}")]);
    let mut session = at_a_terminal(shell);
    session.exp_string("Scan it, then press Enter").expect("the prompt");
    session.send_line("").expect("typing");
    session.exp_string("shredding").expect("the destruction");
    session.send_control('c').expect("typing");
    session.exp_string("^C").expect("the echo");
    fs::write(pipe, "go on\n").expect("a word");
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
    assert!(rest.contains("QR code: destroyed"), "{rest}");
    assert!(!bundle.root.join("qrcode.svg").exists());
}

#[test]
fn a_roll_forward_that_was_cut_off_asks_again_as_long_as_the_old_codes_live() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    // No policy can be made: the intention alone is recorded.
    let mut cut_off = bundle.script_command("roll_forward", &["--yes"]);
    cut_off.env("TMPDIR", "nowhere");
    run(cut_off).expect(4);
    let mut session = at_a_terminal(bundle.script_command("roll_forward", &[]));
    session.exp_string("stop working at once. Go on?").expect("the prompt");
    session.send("n").and_then(|_| session.flush()).expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 3, "{rest}");
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
}
