//! The scripts at a terminal: a real pseudo-terminal, a person who types.

mod support;

use std::fs;
use std::process::{Command, Stdio};

use rexpect::process::WaitStatus;
use rexpect::session::{PtySession, spawn_command};

use support::{Bundle, Platform, User};

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

#[test]
fn the_code_is_asked_for_last_and_not_shown() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let code = account.code_at(bundle.now());
    let mut session = at_a_terminal(bundle.script_command("add_auth", &["--output", "second.svg"]));
    let before = session.exp_string("Code for SCONE OTP, alice").expect("the prompt");
    assert!(before.contains("checking program and volume"), "{before}");
    session.send_line(&code).expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
    assert!(!rest.contains(&code), "{rest}");
    assert_eq!(bundle.scan("second.svg").secret, account.secret);
}

#[test]
fn ctrl_c_at_the_prompt_for_a_code_leaves_nothing_behind_and_spends_nothing() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let before = fs::read(bundle.state_file("default")).expect("the state");
    let mut session = at_a_terminal(bundle.script_command("add_auth", &["--output", "second.svg"]));
    session.exp_string("Code for SCONE OTP, alice").expect("the prompt");
    session.send_control('c').expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 130, "{rest}");
    let left: Vec<_> =
        fs::read_dir(&bundle.root).expect("the root").map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("second.svg")), "{left:?}");
    assert_eq!(before, fs::read(bundle.state_file("default")).expect("the state"));
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
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
