//! The service of SCONE's demonstration of one-time passwords (programs/calculator): Python, with a and b in the policy and x from
//! its caller. The demonstration's own session file, as it is printed there, but for the session's name and the measurement.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::program::Program;
use crate::support::{Outcome, Platform, docker_is_there, image, phone, repository, run, works};

const SESSION: &str = include_str!("../simulator/cas/tests/session/2fa-demo.yml");
const MEASUREMENT: &str = "032491dba2e7ec27f793a478ab556c26b87111b11657c93f5554a1a2975567e5";
/// What the session file holds, in the authenticator of whoever may calculate.
const ENTRY: &str =
    "otpauth://totp/Demo:alice?secret=BASE32SECRET3232BASE32SECRET3232&issuer=Demo&algorithm=SHA1&digits=6&period=30";

/// This host's Python with what the service imports, and the service.
fn unpacked_image(at: &Path) -> PathBuf {
    let ask = |script: &str| {
        let mut python = Command::new("python3");
        // Without what a site adds.
        python.args(["-I", "-S", "-c", script]);
        run(python).expect(0).stdout
    };
    let python = PathBuf::from(ask("import os, sys; print(os.path.realpath(sys.executable))").trim());
    // Some is imported only when the arguments are looked at, or found wanting.
    let imported = "
import argparse, sys
parser = argparse.ArgumentParser()
parser.add_argument('-x', type=int)
for x in '1', 'one':
    try:
        parser.parse_args(['-x', x])
    except SystemExit:
        pass
[print(module.__file__) for module in sys.modules.values() if getattr(module, '__file__', 0)]";
    image::add(at, &[&python.display().to_string()]);
    for file in ask(imported).lines() {
        image::add_file(at, Path::new(file));
    }
    fs::create_dir(at.join("app")).expect("a directory");
    fs::copy(repository().join("programs/calculator/my_service.py"), at.join("app/my_service.py"))
        .expect("the service");
    image::readable(at);
    python
}

fn calculator(platform: Platform) -> Program {
    Program::new("calculator", platform, &["--fs-dir", "/"], unpacked_image)
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

fn python_is_there() -> bool {
    works("python3", &["-c", "import argparse"], "apt-get install python3")
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
