//! The scripts at a terminal: a real pseudo-terminal, a person who types.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rexpect::process::{Signal, WaitStatus};
use rexpect::session::{PtySession, spawn_command};

use crate::support::{
    Bundle, Platform, User, docker_is_there, phone, repository, run, run_with_input, strace_is_there,
};

/// So that a hang is seen as one; not an assertion about speed.
const PATIENCE: Option<u64> = Some(60_000);

fn at_a_terminal(mut command: Command) -> PtySession {
    command.stdin(Stdio::inherit()).env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8");
    spawn_command(command, PATIENCE).expect("a pseudo-terminal")
}

/// The rest of what it printed, and its exit code.
fn end(mut session: PtySession) -> (String, i32) {
    let rest = session.exp_eof().expect("the end of the output");
    match session.process().wait().expect("the end of the process") {
        WaitStatus::Exited(_, code) => (rest, code),
        other => panic!("{other:?} after:\n{rest}"),
    }
}

/// A code that CAS does not accept at this time.
fn wrong_code(bundle: &Bundle, account: &phone::Account) -> String {
    let right: Vec<String> = [0, 30, 60].map(|step| account.code_at(bundle.now() + step - 30)).into();
    (0..).map(|code| format!("{code:06}")).find(|code| !right.contains(code)).expect("a wrong code")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs()
}

/// A shell's command that turns the terminal's echo on, as a person's shell does, and runs a compiled script.
fn in_a_shell(bundle: &Bundle, script: &str, args: &str, afterwards: &str) -> Command {
    let script = bundle.root.join("scripts").join(script).display().to_string().replace('\'', r"'\''");
    let mut shell = bundle.command("sh");
    shell.args([
        "-c",
        &format!("stty echo rows 60 cols 120; trap : INT QUIT; '{script}' {args}; code=$?; {afterwards}; exit $code"),
    ]);
    shell
}

fn bundle() -> Bundle {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle
}

/// Types a code at the prompt that names `whose`. Near the end of a time step the script offers to wait, which is accepted.
fn enter(session: &mut PtySession, whose: &str, code: impl Fn() -> String) {
    wait_for_prompt(session, whose);
    session.send_line(&code()).expect("typing");
    session.exp_string("\r\n").expect("the end of the line");
}

fn wait_for_prompt(session: &mut PtySession, whose: &str) {
    let asked = session.exp_regex(&format!("{whose} \\(changes in|Wait for the next code")).expect("the prompt").1;
    if asked.starts_with("Wait") {
        session.send_line("y").expect("typing");
        session.exp_string(&format!("{whose} (changes in")).expect("the prompt");
    }
}

/// A bundle with the host's clock: the scripts go by the host's, so CAS has to as well.
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
    let started = now();
    let mut session = at_a_terminal(add_auth);
    session.exp_string("checking program and volume").expect("the check");
    let asked = session.exp_regex("Code for 'SCONE OTP', 'alice'|Wait for the next code").expect("the prompt").1;
    if asked.starts_with("Wait") {
        session.send_line("y").expect("typing");
        session.exp_string("Code for 'SCONE OTP', 'alice'").expect("the prompt");
    }
    session.exp_string(" (changes in ").expect("the time left");
    let left: u64 = session.exp_string(" s)").expect("the time left").parse().expect("a number");
    // True at some moment since the start, which on a busy machine may be long ago.
    assert!((started..=now()).any(|at| left == 30 - at % 30), "{left} s left at {}", now());
    session.send_line(&code).expect("typing");
    session.exp_string("\r\n").expect("the end of the line");
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
    assert!(!rest.contains(&code), "{rest}");
    assert_eq!(bundle.scan("second.svg").secret, account.secret);
}

/// `add_auth` at a terminal, at the offer to wait for the next code: that comes in the last two seconds of a time step.
fn about_to_change(bundle: &Bundle) -> PtySession {
    // A busy machine may miss them: it starts earlier then.
    let mut early = 2;
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_millis() as u64;
        sleep(Duration::from_millis(30_000 - (now + early * 1000) % 30_000));
        let add_auth = bundle.script_command("add_auth", &["--no-confirm", "--keep", "--output", "second.svg"]);
        let mut session = at_a_terminal(add_auth);
        let prompts = "Code for 'SCONE OTP', 'alice'|The code changes in [12] s, the start takes about [0-9]+ s.";
        if session.exp_regex(prompts).expect("a prompt").1.starts_with("The code") {
            session.exp_string("Wait for the next code?").expect("the offer");
            return session;
        }
        session.send_control('c').expect("typing");
        assert_eq!(end(session).1, 130);
        early = early % 5 + 1;
    }
}

#[test]
fn a_code_that_is_about_to_change_is_not_asked_for() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let mut session = about_to_change(&bundle);
    session.send_line("").expect("typing");
    // The prompt comes with the next code, when nearly all of its time is left.
    let left = session.exp_regex("Code for 'SCONE OTP', 'alice' \\(changes in (29|30) s\\)").expect("the prompt").1;
    session.send_line(&account.code_at(bundle.now())).expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{left}{rest}");
}

#[test]
fn of_a_code_that_one_insisted_on_and_that_changed_on_its_way_that_is_said() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let wrong = wrong_code(&bundle, &account);
    let mut session = loop {
        let mut session = about_to_change(&bundle);
        session.send_line("n").expect("typing");
        session.exp_string("Code for 'SCONE OTP', 'alice' (changes in").expect("the prompt");
        let mut cas = bundle.hold_cas();
        session.send_line(&wrong).expect("typing");
        cas.wait();
        // Entered in this time step and checked in the next. A busy machine may be in the next already; holding CAS until the
        // one after would take longer than a start waits.
        let (left, step) = (30 - now() % 30, now() / 30);
        if left <= 3 {
            while now() / 30 == step {
                sleep(Duration::from_secs(30 - now() % 30));
            }
            break session;
        }
        drop(cas);
        session.exp_string("that code is wrong").and_then(|_| session.send_control('c')).expect("the refusal");
        assert_eq!(end(session).1, 130);
    };
    session.exp_string("that code is wrong, or it changed before CAS saw it").expect("advice");
    enter(&mut session, "Code for 'SCONE OTP', 'alice'", || account.code_at(bundle.now()));
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
}

#[test]
fn a_wrong_code_may_be_tried_again_twice() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let (right, wrong) = (account.code_at(bundle.now()), wrong_code(&bundle, &account));
    let add_auth = || bundle.script_command("add_auth", &["--no-confirm", "--keep", "--output", "second.svg"]);
    let mut session = at_a_terminal(add_auth());
    // What cannot be a code is no try.
    for malformed in ["12345", "1234567", "12345a", "", "\u{ff11}23456"] {
        enter(&mut session, "Code for 'SCONE OTP', 'alice'", || malformed.to_owned());
        session.exp_string("add_auth: a code is exactly six digits").expect("advice");
    }
    for _ in 0..3 {
        enter(&mut session, "Code for 'SCONE OTP', 'alice'", || wrong.clone());
    }
    let (rest, exit) = end(session);
    assert_eq!(exit, 5, "{rest}");
    assert!(!bundle.root.join("second.svg").exists());

    let mut session = at_a_terminal(add_auth());
    enter(&mut session, "Code for 'SCONE OTP', 'alice'", || wrong.clone());
    session.exp_string("that code is wrong").expect("advice");
    // As authenticators show it.
    enter(&mut session, "Code for 'SCONE OTP', 'alice'", || format!(" {} {}\u{a0}", &right[..3], &right[3..]));
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
}

#[test]
fn the_end_of_input_is_no_code() {
    let bundle = bundle();
    bundle.enrol("default");
    let mut session = at_a_terminal(bundle.script_command("add_auth", &["--no-confirm", "--output", "second.svg"]));
    // It looks like Enter by mistake, so it is asked again - but not for ever.
    for _ in 0..3 {
        wait_for_prompt(&mut session, "Code for 'SCONE OTP', 'alice'");
        session.send_control('d').expect("typing");
    }
    let (rest, exit) = end(session);
    assert_eq!(exit, 2, "{rest}");
    assert!(rest.contains("error: no code was entered"), "{rest}");
}

/// A shell that controls jobs, as a person's does, where the code was asked for.
fn at_the_prompt_for_a_code(bundle: &Bundle) -> PtySession {
    let mut shell = bundle.command("sh");
    let mut session = at_a_terminal({
        shell.arg("-i").env("PS1", "");
        shell
    });
    let script = bundle.root.join("scripts/add_auth").display().to_string().replace('\'', r"'\''");
    let add_auth = format!("stty echo; '{script}' --no-confirm --keep --output second.svg; echo \"ended: $?\"");
    session.send_line(&add_auth).expect("typing");
    loop {
        let asked = session.exp_regex("alice' \\(changes in|Wait for the next code").expect("the prompt").1;
        if !asked.starts_with("Wait") {
            session.exp_string("s): ").expect("the prompt");
            return session;
        }
        session.send_line("").expect("typing");
    }
}

/// Asserts that the shell's terminal is as it is.
fn is_as_before(session: &mut PtySession) {
    session.send_line("stty -a; echo modes'' above").expect("typing");
    let shown = session.exp_string("modes above").expect("the modes");
    assert!(shown.contains(" echo ") && shown.contains(" icanon "), "the terminal is not what it was: {shown}");
}

#[test]
fn suspended_at_the_prompt_for_a_code_the_terminal_echoes_and_back_there_it_does_not() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let mut session = at_the_prompt_for_a_code(&bundle);
    session.send_control('z').expect("typing");
    session.exp_string("Stopped").expect("the shell");
    is_as_before(&mut session);
    session.send_line("fg; echo \"ended: $?\"").expect("typing");
    session
        .exp_string("Code for 'SCONE OTP', 'alice' (changes in")
        .and_then(|_| session.exp_string("s): "))
        .expect("it");
    let code = account.code_at(bundle.now());
    session.send_line(&code).expect("typing");
    let rest = session.exp_string("ended: 0").expect("success");
    assert!(!rest.contains(&code), "the code can be seen: {rest}");
    is_as_before(&mut session);
    session.send_line("exit").expect("typing");
    end(session);
}

#[test]
fn ctrl_backslash_at_the_prompt_for_a_code_leaves_the_terminal_as_it_was() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let mut session = at_the_prompt_for_a_code(&bundle);
    session.send_control('\\').expect("typing");
    let rest = session.exp_string("ended: 130").expect("the end");
    assert!(rest.contains("error: interrupted; nothing was changed and no code was spent"), "{rest}");
    is_as_before(&mut session);
    session.send_line("exit").expect("typing");
    end(session);
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
}

#[test]
fn too_many_wrong_codes_are_not_followed_by_another_try() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    for _ in 0..5 {
        bundle.add_auth(&wrong_code(&bundle, &account), &["--output", "second.svg"]).expect(5);
    }
    let mut session = at_a_terminal(bundle.script_command("add_auth", &["--no-confirm", "--output", "second.svg"]));
    enter(&mut session, "Code for 'SCONE OTP', 'alice'", || account.code_at(bundle.now()));
    let (rest, exit) = end(session);
    assert_eq!(exit, 5, "{rest}");
    assert!(rest.contains("error: too many wrong codes were given: Too many wrong One-time Passwords"), "{rest}");
}

#[test]
fn after_a_code_that_was_used_the_next_is_waited_for_and_ctrl_c_ends_that() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let used = account.code_at(bundle.now());
    bundle.add_auth(&used, &["--output", "second.svg"]).expect(0);
    let mut session = at_a_terminal(bundle.script_command("add_auth", &["--no-confirm", "--output", "third.svg"]));
    enter(&mut session, "Code for 'SCONE OTP', 'alice'", || used.clone());
    session.exp_string("that code was used already").expect("advice");
    // If the next time step has begun meanwhile, the code is asked for at once, but only once.
    let waits = "waiting [0-9]+ s for the next one";
    let then = session.exp_regex(&format!("{waits}|alice \\(changes in|Wait for the next code")).expect("a prompt").1;
    if !then.starts_with("waiting") {
        if then.starts_with("Wait") {
            session.send_line("").expect("typing");
            session.exp_string("alice (changes in").expect("the prompt");
        }
        session.send_line(&used).expect("typing");
        session.exp_regex(waits).expect("why it waits");
    }
    session.send_control('c').expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 130, "{rest}");
    assert!(!rest.contains("Code for"), "{rest}");
}

#[test]
fn ctrl_c_at_the_prompt_for_a_code_leaves_nothing_behind_and_spends_nothing() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let (before, lay_about) = (fs::read(bundle.state_file("default")).expect("the state"), pictures(&bundle));
    let mut session = at_a_terminal(in_a_shell(&bundle, "add_auth", "--output second.svg", "stty -a"));
    session.exp_regex("Code for 'SCONE OTP', 'alice'|Wait for the next code").expect("the prompt");
    session.send_control('c').expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 130, "{rest}");
    assert!(rest.contains("error: interrupted; nothing was changed and no code was spent"), "{rest}");
    assert!(rest.contains(" echo ") && rest.contains(" icanon "), "the terminal is not what it was: {rest}");
    assert_eq!(pictures(&bundle), lay_about);
    assert_eq!(before, fs::read(bundle.state_file("default")).expect("the state"));
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
}

/// Every file that could be a picture, by name or content, wherever the scripts write.
fn pictures(bundle: &Bundle) -> Vec<String> {
    let beside = fs::read_dir(&bundle.root).expect("the root").map(|entry| entry.expect("an entry").path());
    let mut files = bundle.written();
    files.extend(beside.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).expect("a file"))));
    let picture = |path: &Path, content: &[u8]| {
        path.to_string_lossy().contains("svg") || content.windows(4).any(|bytes| bytes == b"<svg")
    };
    files.iter().filter(|(path, content)| picture(path, content)).map(|(path, _)| path.display().to_string()).collect()
}

#[test]
fn an_enrolment_is_confirmed_by_a_first_code_and_the_picture_destroyed() {
    let bundle = bundle_with_the_hosts_clock();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let mut session = at_a_terminal(bundle.script_command("gen_qr", &[]));
    session.exp_string("the QR code of 'SCONE OTP', 'alice' is in").expect("where it is");
    // A wrong code does not confirm.
    enter(&mut session, "Code shown for 'SCONE OTP', 'alice'", || "000000".to_owned());
    session.exp_string("that code is wrong").expect("advice");
    let account = bundle.scan("qrcode.svg");
    let code = || account.code_at(bundle.now());
    enter(&mut session, "Code shown for 'SCONE OTP', 'alice'", code);
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
    assert!(rest.contains("enrolled and confirmed") && rest.contains("destroyed"), "{rest}");
    assert!(!bundle.root.join("qrcode.svg").exists());
    // The code that confirmed is spent.
    let reused = bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]);
    reused.expect(5);
}

/// The containers that a run of this bundle has up and waiting to be told what to run.
fn waiting_containers(bundle: &Bundle) -> Vec<String> {
    let docker = |args: &[&str]| {
        run({
            let mut docker = Command::new("docker");
            docker.args(args);
            docker
        })
    };
    let ids = docker(&["ps", "--quiet", "--filter", "ancestor=otpqr:sim"]).expect(0).stdout;
    let is_ours =
        |id: &&str| docker(&["inspect", id]).stdout.contains(&format!("{}/state/.starting-", bundle.root.display()));
    ids.lines().filter(is_ours).map(str::to_owned).collect()
}

/// The engine's start is not part of the time in which a code is good. A script that ends at the prompt leaves nothing running.
#[test]
fn a_first_code_is_asked_for_when_the_container_is_up_which_ends_with_the_script() {
    if !docker_is_there() {
        return;
    }
    let bundle = Bundle::new("bundle", Platform::Sim, User::Caller, false);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", "sim"]).expect(0);
    let asked = |whose: &str| {
        let mut session = at_a_terminal(bundle.script_command("gen_qr", &[]));
        wait_for_prompt(&mut session, whose);
        let waiting = waiting_containers(&bundle);
        let [container] = waiting.as_slice() else { panic!("{waiting:?}") };
        (session, container.clone())
    };
    let is_gone = |container: &str| {
        let mut wait = Command::new("docker");
        wait.args(["wait", container]);
        // How it ended; or it is gone already.
        let ended = run(wait);
        assert!(ended.stdout == "125\n" || ended.stderr.contains("No such container"), "{ended:?}");
    };

    let (mut session, container) = asked("'alice'");
    session.send_control('c').expect("typing");
    assert_eq!(end(session).1, 130);
    is_gone(&container);

    bundle.script("roll_forward", &["--yes"]).expect(0);
    fs::remove_file(bundle.root.join("qrcode.svg")).expect("deletion");
    let (mut session, container) = asked("'alice #2'");
    session.process_mut().kill(Signal::SIGKILL).expect("a kill");
    is_gone(&container);

    bundle.script("roll_forward", &["--yes"]).expect(0);
    fs::remove_file(bundle.root.join("qrcode.svg")).expect("deletion");
    let (mut session, container) = asked("'alice #3'");
    let account = bundle.scan("qrcode.svg");
    session.send_line(&account.code_at(bundle.now())).expect("typing");
    let (rest, exit) = end(session);
    assert!(exit == 0 && rest.contains("enrolled and confirmed"), "{rest}");
    is_gone(&container);
}

#[test]
fn a_second_authenticators_first_code_is_the_one_after_the_code_that_allowed_it() {
    let bundle = bundle_with_the_hosts_clock();
    let account = bundle.enrol("default");
    let code = || account.code_at(bundle.now());
    let mut session = at_a_terminal(bundle.script_command("add_auth", &[]));
    let spent = Cell::new(String::new());
    enter(&mut session, "Code for 'SCONE OTP', 'alice'", || {
        spent.replace(code());
        code()
    });
    let spent = spent.into_inner();
    // Asked for only when there is one that CAS can accept.
    session.exp_regex("the code shown now was used already: waiting [0-9]+ s for the next one").expect("why it waits");
    enter(&mut session, "Code shown for 'SCONE OTP', 'alice'", || {
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
    session.exp_regex("Code shown for|Wait for the next code").expect("the prompt");
    session.send_control('c').expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 130, "{rest}");
    assert!(rest.contains("the QR code is still there; once it is scanned: shred -n 3 -z -u '"), "{rest}");
    bundle.scan("qrcode.svg");
}

#[test]
fn a_qr_code_on_the_terminal_is_kept_until_it_was_scanned_and_gone_afterwards() {
    let bundle = bundle_with_the_hosts_clock();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    // A pipe is not a terminal: refused before anything is spent.
    bundle.gen_qr(&["--terminal"]).expect(2).saying("'--terminal' needs a terminal");

    // Whoever cannot scan it gets it again.
    let mut session = at_a_terminal(in_a_shell(&bundle, "gen_qr", "--terminal --no-confirm", ":"));
    let first = shown(&mut session);
    session.send_control('c').expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 130, "{rest}");
    assert!(
        rest.contains("interrupted; the QR code waits in '") && rest.contains("run the same command again"),
        "{rest}"
    );
    session = at_a_terminal(in_a_shell(&bundle, "gen_qr", "--terminal --no-confirm", ":"));
    let account = shown(&mut session);
    assert!((first.login, first.secret) == ("alice".to_owned(), account.secret.clone()), "another secret's");
    // Where only its user can read it.
    let kept = pictures(&bundle);
    assert!(kept.len() == 1 && kept[0].contains("/state/issuing/"), "{kept:?}");
    // What is typed meanwhile cannot be seen, so that it scrolls nothing.
    session.send_line("junk").expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
    assert!(rest.contains("\x1b[?1049l") && !rest.contains("junk"), "{rest}");
    assert!(!rest.contains(&account.secret));
    assert_eq!(pictures(&bundle), [""; 0], "the picture is in a file");
}

/// A run that waits for a person holds nothing: what cannot wait goes on beside it.
#[test]
fn a_qr_code_that_is_shown_keeps_no_roll_forward_waiting_and_is_destroyed_by_it() {
    let bundle = bundle();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let mut session = at_a_terminal(in_a_shell(&bundle, "gen_qr", "--terminal --no-confirm", ":"));
    shown(&mut session);
    assert_eq!(pictures(&bundle).len(), 1);
    bundle.script("roll_forward", &["--yes"]).expect(0).saying("is not needed: destroyed");
    assert_eq!(pictures(&bundle), [""; 0]);
    session.send_line("").expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 1, "{rest}");
    assert!(rest.contains("was changed by another run"), "{rest}");
}

/// The account whose QR code is shown.
fn shown(session: &mut PtySession) -> phone::Account {
    session.exp_string("\x1b[?1049h").expect("the alternate screen");
    let drawn = session.exp_string("Scan it, then press Enter (Ctrl-C keeps it)").expect("the prompt");
    // The session returns each byte as a character.
    let drawn = String::from_utf8(drawn.chars().map(|byte| byte as u8).collect()).expect("UTF-8");
    phone::scan(&as_svg(&drawn)).expect("a QR code that a phone can read")
}

/// What a terminal shows of half blocks, as a picture: black on white.
fn as_svg(drawn: &str) -> String {
    let mut path = String::new();
    let (mut width, mut height) = (0, 0);
    for (row, line) in drawn.split("\x1b[38;5;16;48;5;231m").skip(1).enumerate() {
        let cells = line.split('\x1b').next().expect("a line of the drawing");
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
fn a_terminal_shows_the_picture_of_an_older_image_too() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let issued = bundle.root.join("default.svg");
    let svg = fs::read_to_string(&issued).expect("the QR code");
    fs::remove_file(issued).expect("deletion");
    let (head, foot) = (svg.split("<path ").next().expect("a head"), "</svg>\n");
    let size = head.split("viewBox=\"0 0 ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a size");
    let modules = phone::modules(&svg, size.parse().expect("a number")).expect("a picture");
    let issuing = bundle.root.join(format!("state/issuing/{}-1-1", bundle.known("default", &["namespace"])));
    // As if a run had been killed before it showed the picture, which another image's program drew.
    let left = |path: &str| {
        fs::create_dir_all(&issuing).expect("the working directory");
        fs::set_permissions(&issuing, fs::Permissions::from_mode(0o700)).expect("permissions");
        fs::write(issuing.join("qrcode.svg"), format!("{head}{path}\n{foot}")).expect("a killed run's QR code");
    };
    left("<path fill=\"#000\" d=\"M0 0\"/>");
    let (rest, exit) = end(at_a_terminal(in_a_shell(&bundle, "gen_qr", "--terminal --no-confirm", ":")));
    assert_eq!(exit, 4, "{rest}");
    assert!(rest.contains("run the same command again: it cannot be drawn"), "{rest}");
    for path in [as_strokes(&modules), as_rectangles(&modules)] {
        left(&path);

        let mut session = at_a_terminal(in_a_shell(&bundle, "gen_qr", "--terminal --no-confirm", ":"));
        let shown = shown(&mut session);
        assert!((shown.login, shown.secret) == (account.login.clone(), account.secret.clone()), "another account's");
        session.send_line("").expect("typing");
        let (rest, exit) = end(session);
        assert_eq!(exit, 0, "{rest}");
        assert_eq!(pictures(&bundle), [""; 0], "the picture is in a file");
    }
    // The waiting picture was shown: nothing new was issued.
    bundle.gen_qr(&[]).expect(5).saying("issued already");
}

/// The form in which current images draw a QR code: a stroke for each row, interrupted where modules are light.
fn as_strokes(modules: &[Vec<bool>]) -> String {
    let mut path = String::new();
    for (y, row) in modules.iter().enumerate() {
        let mut end = None;
        for (x, length) in dark_runs(row) {
            match end {
                None => path.push_str(&format!("M{x} {y}.5h{length}")),
                Some(end) => path.push_str(&format!("m{} 0h{length}", x - end)),
            }
            end = Some(x + length);
        }
    }
    format!("<path stroke=\"#000\" d=\"{path}\"/>")
}

/// The form in which older images drew it: a rectangle for each run of dark modules.
fn as_rectangles(modules: &[Vec<bool>]) -> String {
    let mut path = String::new();
    for (y, row) in modules.iter().enumerate() {
        for (x, length) in dark_runs(row) {
            path.push_str(&format!("M{x} {y}h{length}v1h-{length}z"));
        }
    }
    format!("<path fill=\"#000\" d=\"{path}\"/>")
}

/// Where they start and how long they are.
fn dark_runs(row: &[bool]) -> Vec<(usize, usize)> {
    let starts = (0..row.len()).filter(|&x| row[x] && (x == 0 || !row[x - 1]));
    starts.map(|x| (x, row[x..].iter().take_while(|&&dark| dark).count())).collect()
}

#[test]
fn rolling_forward_asks_first_and_takes_no_for_an_answer() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    for (answer, exit) in [("n", 3), ("", 3)] {
        let mut session = at_a_terminal(bundle.script_command("roll_forward", &[]));
        session.exp_string("'SCONE OTP', 'alice' stop working at once").expect("the prompt");
        session.send_line(answer).expect("typing");
        let (rest, found) = end(session);
        assert_eq!(found, exit, "{rest}");
        assert!(rest.contains("nothing was changed"), "{rest}");
    }
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);

    let mut session = at_a_terminal(bundle.script_command("roll_forward", &[]));
    session.exp_string("stop working at once").expect("the prompt");
    session.send_line("y").expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
    bundle.add_auth(&account.code_at(bundle.now() + 30), &["--output", "third.svg"]).expect(5);
}

fn interrupted_start(platform: Platform) {
    let bundle = Bundle::of_test(platform, User::Caller);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", platform.name()]).expect(0);
    let mut cas = bundle.hold_cas_at_a_start();
    // The terminal's echo of Ctrl-C says that it was delivered.
    let mut session = at_a_terminal(in_a_shell(&bundle, "gen_qr", "--no-confirm", ":"));
    session.exp_string("starting the confidential program").expect("the start");
    cas.wait();
    session.send_control('c').expect("typing");
    session.exp_string("^C").expect("the echo");
    drop(cas);
    let (rest, exit) = end(session);
    assert_eq!(exit, 130, "{rest}");
    assert!(!bundle.root.join("qrcode.svg").exists());
    let left = fs::read_dir(bundle.root.join("state/issuing")).expect("where it is issued").count();
    // docker passes Ctrl-C on by a request to its daemon; the program may have done its work by then, and the script says so.
    let said = match left {
        0 => "gen_qr: error: interrupted; run the same command again to go on",
        _ => "gen_qr: error: interrupted; the QR code waits in '",
    };
    assert!(rest.contains(said), "{rest}");
    assert!(left == 0 || platform == Platform::Sim, "{rest}");

    let again = bundle.gen_qr(&[]);
    // Ended between the once-marker and the QR code, the program has issued nothing, and will not.
    if platform == Platform::Sim && left == 0 && again.code == Some(5) {
        again.expect(5).saying("issued already");
    } else {
        again.expect(0);
        bundle.scan("qrcode.svg");
    }
}

#[test]
fn ctrl_c_during_a_start_leaves_nothing_unsaid_and_the_same_command_goes_on() {
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

/// Presses Ctrl-C after `prompt` has appeared; returns what was printed afterwards.
fn break_off(command: Command, prompt: &str) -> String {
    let mut session = at_a_terminal(command);
    session.exp_string(prompt).expect("the prompt");
    session.send_control('c').expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 130, "{rest}");
    assert!(rest.contains("interrupted; "), "{rest}");
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
fn ctrl_c_and_ctrl_d_while_the_picture_waits_to_be_scanned_say_where_it_is() {
    let bundle = bundle();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let rest = break_off(bundle.script_command("gen_qr", &["--no-confirm"]), "Scan it, then press Enter");
    assert!(rest.contains("the QR code is still there; once it is scanned: shred -n 3 -z -u 'qrcode.svg'"), "{rest}");
    bundle.scan("qrcode.svg");

    bundle.script("roll_forward", &["--yes"]).expect(0);
    let mut session = at_a_terminal(bundle.script_command("gen_qr", &["--no-confirm", "--output=-x.svg"]));
    session.exp_string("Scan it, then press Enter").expect("the prompt");
    session.send_control('d').expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 4, "{rest}");
    assert!(
        rest.contains("the QR code is still there; once it is scanned: shred -n 3 -z -u './-x.svg': no answer: "),
        "{rest}"
    );
    bundle.scan("-x.svg");

    // Enter has it destroyed, whatever its name begins with.
    bundle.script("roll_forward", &["--yes"]).expect(0);
    let mut session = at_a_terminal(bundle.script_command("gen_qr", &["--no-confirm", "--output=-y.svg"]));
    session.exp_string("Scan it, then press Enter").expect("the prompt");
    session.send_line("").expect("typing");
    let (rest, exit) = end(session);
    assert!(exit == 0 && rest.contains("QR code: destroyed"), "{rest}");
    assert!(!bundle.root.join("-y.svg").exists());
}

#[test]
fn ctrl_c_while_the_qr_code_is_on_the_terminal_takes_it_away() {
    let bundle = bundle();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let command = || in_a_shell(&bundle, "gen_qr", "--terminal --no-confirm", ":");
    for key in ['c', '\\'] {
        let mut session = at_a_terminal(command());
        session.exp_string("Scan it, then press Enter").expect("the prompt");
        session.send_control(key).expect("typing");
        let (rest, exit) = end(session);
        assert_eq!(exit, 130, "{rest}");
        assert!(rest.contains("\x1b[?1049l"), "the alternate screen is still there: {rest}");
        assert!(rest.contains("interrupted; the QR code waits in '"), "{rest}");
    }
    // The end of input does not say that it was scanned.
    let mut session = at_a_terminal(command());
    session.exp_string("Scan it, then press Enter").expect("the prompt");
    session.send_control('d').expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 4, "{rest}");
    assert!(rest.contains("\x1b[?1049l") && rest.contains("run the same command again: no answer: "), "{rest}");
    bundle.gen_qr(&[]).expect(0);
    bundle.scan("qrcode.svg");
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

/// `gen_qr` at a terminal, to its end; the picture is scanned meanwhile.
fn scanned(bundle: &Bundle, command: Command) -> (String, i32) {
    let mut session = at_a_terminal(command);
    session.exp_string("Scan it, then press Enter").expect("the prompt");
    bundle.scan("qrcode.svg");
    session.send_line("").expect("typing");
    end(session)
}

#[test]
fn a_picture_that_is_said_to_be_destroyed_was_overwritten_four_times_the_last_with_zeros() {
    if !strace_is_there() {
        return;
    }
    let bundle = bundle_with_the_hosts_clock();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let (script, trace) = (bundle.script_command("gen_qr", &[]), bundle.root.join("trace"));
    let mut strace = bundle.command("strace");
    strace.args(["-f", "-y", "-qq", "-e", "signal=none", "-e", "trace=write,fdatasync,fsync,unlink,unlinkat", "-o"]);
    strace.arg(&trace).arg(script.get_program()).arg("--no-confirm");
    let (rest, exit) = scanned(&bundle, strace);
    assert_eq!(exit, 0, "{rest}");
    assert!(rest.contains("destroyed"), "{rest}");
    assert!(!bundle.root.join("qrcode.svg").exists());
    let trace = fs::read_to_string(trace).expect("the trace");
    // Under the name it was delivered to: otpqr wrote it under another.
    let calls: Vec<&str> = trace.lines().filter(|call| call.contains("/bundle/qrcode.svg>")).collect();
    let passes = calls.split(|call| call.contains("sync(")).map(<[&str]>::to_vec).collect::<Vec<_>>();
    let written: Vec<&Vec<&str>> =
        passes.iter().filter(|pass| pass.iter().any(|call| call.contains("write("))).collect();
    // A file below a block's size is overwritten in its own length, too, in case the file system keeps it in the inode.
    assert!(written.len() == 4 || written.len() == 8, "{trace}");
    assert!(written[written.len() - 1].iter().all(|call| call.contains(", \"\\0\\0\\0\\0")), "{trace}");
}

#[test]
fn a_picture_that_could_not_be_overwritten_is_not_said_to_be() {
    let bundle = bundle();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let mut command = bundle.script_command("gen_qr", &["--no-confirm"]);
    command.env("PATH", bundle.root.join("nothing"));
    let (rest, exit) = scanned(&bundle, command);
    assert_eq!(exit, 0, "{rest}");
    assert!(rest.contains("QR code: removed, not overwritten: 'shred' was not found"), "{rest}");
    assert_eq!(pictures(&bundle), [""; 0]);

    bundle.script("roll_forward", &["--yes"]).expect(0);
    fs::create_dir(bundle.root.join("failing")).expect("a directory");
    std::os::unix::fs::symlink("/bin/false", bundle.root.join("failing/shred")).expect("a stand-in");
    let mut command = bundle.script_command("gen_qr", &["--no-confirm"]);
    command.env("PATH", bundle.root.join("failing"));
    let (rest, exit) = scanned(&bundle, command);
    assert_eq!(exit, 4, "{rest}");
    assert!(rest.contains("error: the QR code in 'qrcode.svg' cannot be destroyed"), "{rest}");
    bundle.scan("qrcode.svg");
}

/// Asserts that `roll_forward` asks this, and that "no" changes nothing.
fn declined(bundle: &Bundle, args: &[&str], question: &str) {
    let before = fs::read(bundle.state_file("default")).expect("the state");
    let mut session = at_a_terminal(bundle.script_command("roll_forward", args));
    session.exp_string(question).expect("the question");
    session.send_line("n").expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 3, "{rest}");
    assert!(rest.contains("not confirmed; nothing was changed"), "{rest}");
    assert_eq!(before, fs::read(bundle.state_file("default")).expect("the state"));
}

#[test]
fn keeping_the_secret_and_filling_a_wiped_cas_anew_are_asked_about_first() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let replaced = "The volume of 'SCONE OTP', 'alice' is replaced; its codes stay valid. Go on?";
    declined(&bundle, &["--keep-secret"], replaced);
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);

    // One that gets no code stays unfinished; without the authenticator it is abandoned, which is asked about once.
    let keep = bundle.script_command("roll_forward", &["--yes", "--keep-secret", "--otp-file", "-"]);
    run_with_input(keep, &wrong_code(&bundle, &account)).expect(5);
    let abandon = "Abandon the unfinished --keep-secret run? All codes of 'SCONE OTP', 'alice' stop working.";
    declined(&bundle, &[], abandon);
    let mut session = at_a_terminal(bundle.script_command("roll_forward", &[]));
    session.exp_string(abandon).expect("the question");
    session.send_line("y").expect("typing");
    let (rest, exit) = end(session);
    assert_eq!((exit, rest.contains("Go on?")), (0, false), "{rest}");

    bundle.wipe_cas();
    let trusted = || bundle.scone(["cas", "list"]).expect(0).stdout;
    let before = trusted();
    declined(&bundle, &["--cas-wiped"], "Trust the CAS at '");
    assert_eq!(trusted(), before);
}

#[test]
fn a_terminal_that_cannot_show_the_qr_code_is_found_out_before_it_is_issued() {
    let bundle = bundle();
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let script = bundle.root.join("scripts/gen_qr").display().to_string().replace('\'', r"'\''");
    let refused = |prelude: &str, message: &str| {
        let mut shell = bundle.command("sh");
        shell.args(["-c", &format!("stty rows 60 cols 120; {prelude}; exec '{script}' --terminal --no-confirm")]);
        let (said, exit) = end(at_a_terminal(shell));
        assert_eq!(exit, 2, "{said}");
        // As characters, the bytes of the block are others.
        assert!(said.contains(&format!("the terminal cannot show the QR code: {message}")), "{said}");
        assert!(said.contains("hint: ./scripts/gen_qr.rs   # writes a file instead"), "{said}");
        said
    };
    refused("stty rows 24 cols 80", "that takes 57 columns and 30 rows, and it reports 80 and 24");
    refused("stty rows 60 cols 56", "that takes 57 columns and 30 rows, and it reports 56 and 60");
    refused("export TERM=dumb", "TERM is 'dumb'");
    refused("unset TERM", "TERM is ''");
    // The first that is set counts, and none says that it is UTF-8.
    let utf8 = "that takes a UTF-8 locale, and";
    refused("unset LC_ALL LC_CTYPE LANG", &format!("{utf8} neither LC_ALL nor LC_CTYPE nor LANG is set"));
    refused("export LC_ALL=C LC_CTYPE=C.UTF-8 LANG=C.UTF-8", &format!("{utf8} LC_ALL is 'C'"));
    refused("export LC_ALL= LC_CTYPE=POSIX LANG=C.UTF-8", &format!("{utf8} LC_CTYPE is 'POSIX'"));
    let said = refused("unset LC_ALL LC_CTYPE; export LANG=de_DE@euro", &format!("{utf8} LANG is 'de_DE@euro'"));
    assert!(said.contains("hint: LC_ALL=C.UTF-8 ./scripts/gen_qr.rs --terminal   # if this is a block: "), "{said}");
    // A serial line knows no size, and is told.
    let said = refused("stty rows 0 cols 0", "that takes 57 columns and 30 rows, and it reports 0 and 0");
    assert!(said.contains("hint: stty cols 57 rows 30   # if it is at least so large"), "{said}");

    let mut shell = bundle.command("sh");
    let told = "stty cols 57 rows 30; unset LC_ALL; export LC_CTYPE= LANG=de_DE.utf8";
    shell.args(["-c", &format!("{told}; exec '{script}' --terminal --no-confirm")]);
    let mut session = at_a_terminal(shell);
    assert_eq!(shown(&mut session).login, "alice");
    session.send_line("").expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 0, "{rest}");
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
    session.send_line("n").expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 3, "{rest}");
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
}

#[test]
fn what_was_typed_before_the_question_is_no_answer_to_it() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let pipe = bundle.root.join("go-on");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let script = bundle.root.join("scripts/roll_forward").display().to_string().replace('\'', r"'\''");
    let mut shell = bundle.command("sh");
    shell.args(["-c", &format!("stty echo; echo ready; read go_on <go-on; exec '{script}'")]);
    let mut session = at_a_terminal(shell);
    session.exp_string("ready").expect("the shell");
    session.send_line("y").expect("typing");
    session.exp_string("y").expect("the echo");
    fs::write(pipe, "go on\n").expect("a word");
    session.exp_string("stop working at once. Go on?").expect("the prompt");
    session.send_line("n").expect("typing");
    let (rest, exit) = end(session);
    assert_eq!(exit, 3, "{rest}");
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
}
