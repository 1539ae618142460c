//! The service of SCONE's demonstration of one-time passwords (programs/calculator): Python, with a and b in the policy and x from
//! its caller. The demonstration's own session file, as it is printed there, but for the session's name and the measurement.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Bundle, Outcome, Platform, User, docker_is_there, phone, repository, run, works};

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
    let mut libraries = Command::new("ldd");
    libraries.arg(&python);
    let libraries = run(libraries).expect(0).stdout;
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for file in ask(imported).lines().chain(libraries).chain([python.to_str().expect("UTF-8")]) {
        let to = at.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
        fs::copy(file, to).expect("a file of Python's");
    }
    fs::create_dir(at.join("app")).expect("a directory");
    fs::copy(repository().join("programs/calculator/my_service.py"), at.join("app/my_service.py"))
        .expect("the service");
    // In an image, everybody can read what is in it.
    let mut readable = Command::new("chmod");
    readable.args(["-R", "a+rX"]).arg(at);
    run(readable).expect(0);
    python
}

/// The service in an image, and how it is started there.
struct Calculator {
    bundle: Bundle,
    python: PathBuf,
    /// The container engine's name of the image; `None`: it is run natively.
    image: Option<String>,
}

impl Calculator {
    fn on(platform: Platform) -> Calculator {
        let bundle = Bundle::of_test(platform, User::Caller);
        let image = bundle.root.join("image");
        fs::create_dir(&image).expect("a directory");
        let python = unpacked_image(&image);
        let image = (platform == Platform::Sim).then(|| {
            fs::copy(bundle.root.join("simulator/bin/rootfs/scone-run"), image.join("scone-run")).expect("the runtime");
            let name = format!("otpqr-calculator:{}", std::process::id());
            let mut import = Command::new("sh");
            import.args(["-c", &format!("tar -c . | docker import - {name}")]).current_dir(image);
            run(import).expect(0);
            name
        });
        let calculator = Calculator { bundle, python, image };
        let status = calculator.bundle.scone_sim(["status"]).expect(0).stdout;
        let (client, key) = (field(&status, "client"), field(&status, "key"));
        calculator.bundle.scone(["cas", "attest", client, "-c", key]).expect(0);
        calculator
    }

    /// `arguments` are the caller's; the `environment` is, too.
    fn start(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Outcome {
        let mut command = match &self.image {
            None => {
                let mut command = self.bundle.command(self.bundle.root.join("simulator/bin/scone-run"));
                command.arg("--rootfs").arg(self.bundle.root.join("image"));
                command
            }
            Some(image) => {
                let mut command = self.bundle.command("docker");
                command.args(["run", "--rm", "--log-driver=none", "--network=host", "--read-only", "--cap-drop=ALL"]);
                command.args(environment.iter().flat_map(|(name, _)| ["-e", *name]));
                command.args(["--entrypoint=/scone-run", image]);
                command
            }
        };
        command.args(["--fs-dir", "/"]).arg(&self.python).args(arguments).envs(environment.iter().copied());
        run(command)
    }

    fn measurement(&self) -> String {
        self.start(&[("SCONE_HASH", "1")], &[]).expect(0).stdout.trim().to_owned()
    }

    fn upload(&self, session: &str, measurement: &str) {
        let policy = SESSION.replace("my_session_1234", session).replace(MEASUREMENT, measurement);
        let file = self.bundle.root.join("session.yml");
        fs::write(&file, policy).expect("a policy");
        self.bundle.scone(["session", "create", file.to_str().expect("UTF-8")]).expect(0);
    }

    /// Starts the service as somebody who has the code, or none.
    fn calculates(&self, code: &str, arguments: &[&str]) -> Outcome {
        let status = self.bundle.scone_sim(["status"]).expect(0).stdout;
        let evidence_key = self.bundle.scone_sim(["evidence-key"]).expect(0).stdout;
        let config_id = format!("calculator/service{code}");
        let environment = [
            ("SCONE_CONFIG_ID", config_id.as_str()),
            ("SCONE_CAS_ADDR", field(&status, "enclave")),
            ("SCONE_SIM_CAS_KEY", field(&status, "key")),
            ("SCONE_SIM_EVIDENCE_KEY", evidence_key.trim_end()),
            // The caller's, to no avail.
            ("PYTHONINSPECT", "1"),
            ("PYTHONPATH", "/out"),
        ];
        self.start(&environment, arguments)
    }
}

impl Drop for Calculator {
    fn drop(&mut self) {
        if let Some(image) = &self.image {
            let removed = Command::new("docker").args(["image", "rm", "--force", image]).output();
            assert!(removed.is_ok(), "docker image rm");
        }
    }
}

/// Of what `scone-sim status` prints.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.expect("a field of the status")
}

fn a_code_and_x_are_all_that_the_caller_brings(calculator: &Calculator) {
    let measurement = calculator.measurement();
    calculator.upload("calculator", &measurement);
    let alice = phone::parse_key_uri(ENTRY).expect("an entry");
    let code = || format!("@{}", alice.code_at(calculator.bundle.now()));

    calculator.calculates("", &["42"]).expect(134).saying("An One-time Password is required");
    let right = code();
    let wrong = if right == "@000000" { "@000001" } else { "@000000" };
    calculator.calculates(wrong, &["42"]).expect(134).saying("One-time Password is invalid");
    let answer = calculator.calculates(&right, &["42"]).expect(0);
    assert_eq!(answer.stdout, "180\n");
    calculator.calculates(&right, &["42"]).expect(134).saying("One-time Password was already used");

    // a and b are the policy's; a further argument reaches nobody.
    calculator.bundle.wait(30);
    assert_eq!(calculator.calculates(&code(), &["1", "-a", "1000"]).expect(0).stdout, "16\n");
    calculator.bundle.wait(30);
    let words = calculator.calculates(&code(), &["1 -a 1000"]);
    assert!(
        words.code == Some(2) && words.stdout.is_empty() && words.stderr.contains("invalid int value"),
        "{words:?}"
    );
    // SCONE says the same of a missing one, after the code was spent.
    calculator.bundle.wait(30);
    calculator.calculates(&code(), &[]).expect(134).saying("An argument is missing");
}

fn python_is_there() -> bool {
    works("python3", &["-c", "import argparse"], "apt-get install python3")
}

#[test]
fn natively_a_code_starts_it_and_nothing_but_x_is_the_callers() {
    if !python_is_there() {
        return;
    }
    let calculator = Calculator::on(Platform::SimNative);
    a_code_and_x_are_all_that_the_caller_brings(&calculator);

    // A changed service, a changed library, one file more: another program, to which CAS gives nothing.
    let alice = phone::parse_key_uri(ENTRY).expect("an entry");
    let image = calculator.bundle.root.join("image");
    let service = image.join("app/my_service.py");
    let text = fs::read_to_string(&service).expect("the service");
    let refused = |what: &str| {
        calculator.bundle.wait(30);
        let code = format!("@{}", alice.code_at(calculator.bundle.now()));
        let refused = calculator.calculates(&code, &["42"]);
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
    assert_eq!(calculator.calculates(&code, &["42"]).expect(0).stdout, "180\n");
}

#[test]
fn in_a_container_a_code_starts_it_and_nothing_but_x_is_the_callers() {
    if python_is_there() && docker_is_there() {
        a_code_and_x_are_all_that_the_caller_brings(&Calculator::on(Platform::Sim));
    }
}
