//! The service of SCONE's demonstration of one-time passwords (programs/calculator): Python, with a and b in the policy and x from
//! its caller. First the demonstration's own session file, as it is printed there, but for the session's name and the measurement:
//! it holds its secret in clear and tolerates a program that can be debugged. Then the calculator as it ships, which does neither.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::support::image::{Tag, python_is_there};
use crate::support::program::Program;
use crate::support::protected::Protected;
use crate::support::{Outcome, Platform, docker_is_there, image, phone, run};

const SESSION: &str = include_str!("../simulator/cas/tests/session/2fa-demo.yml");
const MEASUREMENT: &str = "032491dba2e7ec27f793a478ab556c26b87111b11657c93f5554a1a2975567e5";
/// What the session file holds, in the authenticator of whoever may calculate.
const ENTRY: &str =
    "otpauth://totp/Demo:alice?secret=BASE32SECRET3232BASE32SECRET3232&issuer=Demo&algorithm=SHA1&digits=6&period=30";

fn calculator(platform: Platform) -> Program {
    Program::new("calculator", platform, image::calculator)
}

/// Starts the service as somebody who has the code, or none.
fn calculates(calculator: &Program, code: &str, arguments: &[&str]) -> Outcome {
    let environment = [("PYTHONINSPECT", "1"), ("PYTHONPATH", "/out")];
    calculator.start(&format!("calculator/service{code}"), arguments, &environment)
}

fn a_code_and_x_are_all_that_the_caller_brings(calculator: &Program) {
    let policy = SESSION.replace("my_session_1234", "calculator").replace(MEASUREMENT, &calculator.measurement());
    calculator.upload(&policy);
    let alice = phone::parse_key_uri(ENTRY).expect("an entry");
    let code = || format!("@{}", alice.code_at(calculator.bundle.now()));

    assert_eq!(calculator.starts_with_a_code_alone("calculator/service", &["42"], &alice), "180\n");

    // a and b are the policy's; a further argument reaches nobody.
    assert_eq!(calculates(calculator, &code(), &["1", "-a", "1000"]).expect(0).stdout, "16\n");
    calculator.bundle.wait(30);
    let words = calculates(calculator, &code(), &["1 -a 1000"]);
    assert!(
        words.code == Some(2) && words.stdout.is_empty() && words.stderr.contains("invalid int value"),
        "{words:?}"
    );
    // SCONE says the same of a missing one, after the code was spent.
    calculator.bundle.wait(30);
    calculates(calculator, &code(), &[]).expect(134).saying("An argument is missing");
}

#[test]
fn natively_a_code_starts_it_and_nothing_but_x_is_the_callers() {
    if !python_is_there() {
        return;
    }
    let calculator = &calculator(Platform::SimNative);
    a_code_and_x_are_all_that_the_caller_brings(calculator);

    // A changed service, a changed library, one file more: another program, to which CAS gives nothing.
    let alice = phone::parse_key_uri(ENTRY).expect("an entry");
    let image = &calculator.image;
    let service = image.join("app/my_service.py");
    let text = fs::read_to_string(&service).expect("the service");
    let refused = |what: &str| {
        calculator.bundle.wait(30);
        let code = format!("@{}", alice.code_at(calculator.bundle.now()));
        let refused = calculates(calculator, &code, &["42"]);
        assert!(refused.code == Some(134) && refused.stdout.is_empty(), "{what}: {refused:?}");
        refused.saying("Unexpected enclave measurement");
    };
    fs::write(&service, text.replace("a * x + b", "print(a, b)")).expect("a change");
    refused("changed");
    fs::write(&service, &text).expect("the service");
    fs::write(image.join("app/argparse.py"), "import os; os.system('id')\n").expect("a module in front");
    refused("one module more");
    fs::remove_file(image.join("app/argparse.py")).expect("deletion");
    symlink("my_service.py", image.join("app/other.py")).expect("a link");
    refused("one link more");
    fs::remove_file(image.join("app/other.py")).expect("deletion");

    calculator.bundle.wait(30);
    let code = format!("@{}", alice.code_at(calculator.bundle.now()));
    assert_eq!(calculates(calculator, &code, &["42"]).expect(0).stdout, "180\n");
}

#[test]
fn in_a_container_a_code_starts_it_and_nothing_but_x_is_the_callers() {
    if python_is_there() && docker_is_there() {
        a_code_and_x_are_all_that_the_caller_brings(&calculator(Platform::Sim));
    }
}

/// As its README has it.
const COMMAND: &str = "python3 /app/my_service.py -a 4 -b 12 -x @@1";

fn protected(platform: Platform) -> Protected {
    let calculator = Protected::new("calculator", platform, scripts!(), |at| drop(image::calculator(at)));
    calculator.protect(&["--command", COMMAND]).expect(0);
    calculator
}

/// As the README has it, for the platform that knows no image but a directory.
#[test]
fn an_image_of_the_engine_s_that_was_unpacked_is_protected_natively() {
    if !(python_is_there() && docker_is_there()) {
        return;
    }
    let calculator = Protected::new("calculator", Platform::SimNative, scripts!(), |at| {
        let files = at.with_extension("files");
        fs::create_dir(&files).expect("a directory");
        image::calculator(&files);
        let tag = Tag::import(&files, "calculator", &["CMD [\"python3\"]"]);
        let mut unpack = Command::new("sh");
        unpack.args(["-ec", "id=$(docker create \"$0\"); docker export \"$id\" | tar -x; docker rm \"$id\"", &tag.0]);
        unpack.current_dir(at);
        run(unpack).expect(0);
    });
    calculator.protect(&["--command", COMMAND]).expect(0);
    assert_eq!(calculator.start(&["--", "42"]).expect(0).stdout, "180\n");
}

fn as_it_ships_x_is_the_callers_and_nothing_else(platform: Platform) {
    let calculator = protected(platform);

    // The policy has no secret in it, and makes no exception.
    let namespace = calculator.bundle.known("default", &["namespace"]);
    for session in ["otpqr", "calculator", "calculator/default"] {
        let policy = calculator.bundle.scone(["session", "read", &format!("{namespace}/{session}")]).expect(0).stdout;
        assert!(!policy.contains("mode: ") && !policy.contains("tolerate"), "{session}: {policy}");
        assert!(!policy.contains(&calculator.alice.secret), "{session}: {policy}");
    }

    assert_eq!(calculator.starts_with_a_code_alone(&["--", "42"]).stdout, "180\n");

    // Too many arguments, or none: nothing is started, so the code of the last start would still be good.
    let code = calculator.alice.code_at(calculator.bundle.now());
    for arguments in [&["1", "-a", "1000"][..], &[]] {
        let options = [&["--"], arguments].concat();
        calculator.start_with(&code, &options).expect(2).saying("takes 1 of its caller's arguments");
    }
    assert_eq!(calculator.start_with(&code, &["--", "1"]).expect(0).stdout, "16\n");
    calculator.bundle.wait(30);
    // One argument stays one. What the program says of it is the caller's to read, and so is its exit code.
    calculator.start(&["--", "1 -a 1000"]).expect(2).saying("invalid int value");
    // The caller's environment does not reach it, and the policy's command is not the caller's, not even without our scripts.
    let code = calculator.alice.code_at(calculator.bundle.now());
    let service = format!("calculator/default/program@{code}");
    let environment = [("PYTHONINSPECT", "1"), ("PYTHONPATH", "/out")];
    let started = calculator.start_by_hand(&service, &["1", "-a", "1000"], &environment).expect(0);
    assert_eq!(started.stdout, "16\n");
}

#[test]
fn natively_as_it_ships_x_is_the_callers_and_nothing_else() {
    if python_is_there() {
        as_it_ships_x_is_the_callers_and_nothing_else(Platform::SimNative);
    }
}

#[test]
fn in_a_container_as_it_ships_x_is_the_callers_and_nothing_else() {
    if python_is_there() && docker_is_there() {
        as_it_ships_x_is_the_callers_and_nothing_else(Platform::Sim);
    }
}
