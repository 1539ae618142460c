//! Each script on its own: copied into an empty directory, with `OTPQR_ROOT` naming the bundle, it builds, prints its help, says
//! what is missing, leaves nothing behind, and takes an account through its life. rust-script builds it, as for a user; for a host
//! without a toolchain, `make bin` does.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::{Bundle, Platform, User, phone, repository, run, run_with_input, rust_script_is_there};

/// Where the copied scripts are, always the same path: rust-script keeps a project for each path it has seen.
fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("alone").join(name)
}

/// What `OTPQR_ROOT` names: the repository's library, templates and simulator, but a state of its own.
fn root() -> PathBuf {
    let root = place("root");
    fs::create_dir_all(root.join("scripts")).unwrap();
    for part in ["scripts/bundle", "templates", "simulator"] {
        match symlink(repository().join(part), root.join(part)) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => panic!("{part}: {cause}"),
            _ => {}
        }
    }
    root
}

/// As `make warm` does: with the versions that were tested, and without asking a registry for newer ones.
fn seed_lock(mut rust_script: Command, script: &Path) {
    let package = rust_script.arg("--base-path").arg(root().join("scripts")).arg("--package").arg(script);
    let package = package.output().unwrap();
    assert!(package.status.success(), "{}", String::from_utf8_lossy(&package.stderr));
    let package = String::from_utf8(package.stdout).unwrap();
    fs::create_dir_all(package.trim()).unwrap();
    fs::copy(repository().join("Cargo.lock"), Path::new(package.trim()).join("Cargo.lock")).unwrap();
}

/// A script, alone in a directory.
struct Alone {
    name: &'static str,
    directory: PathBuf,
}

impl Alone {
    fn copy(name: &'static str) -> Alone {
        let directory = place(name);
        match fs::remove_dir_all(&directory) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => panic!("{}: {cause}", directory.display()),
            _ => fs::create_dir_all(&directory).unwrap(),
        }
        let alone = Alone { name, directory };
        let file = format!("{name}.rs");
        fs::copy(repository().join("scripts").join(&file), alone.directory.join(&file)).unwrap();
        seed_lock(alone.command("rust-script"), Path::new(&alone.script()));
        alone
    }

    fn script(&self) -> String {
        format!("./{}.rs", self.name)
    }

    /// A command in the directory, without what cargo set for this test.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.directory).stdin(Stdio::null()).env("OTPQR_ROOT", root());
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("CARGO_") && name != "CARGO_HOME" {
                command.env_remove(name);
            }
        }
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(&self.script()).args(args).output().unwrap()
    }

    /// Asserts that the script refuses, saying `reason`, and that it made nothing.
    fn refuses(&self, args: &[&str], code: i32, reason: &str) {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{} {args:?}: {stderr}", self.name);
        assert!(stderr.starts_with(&format!("{}: error: ", self.name)) && stderr.contains(reason), "{stderr}");
        assert!(output.stdout.is_empty());
        let found: Vec<_> = fs::read_dir(&self.directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(found, [format!("{}.rs", self.name).as_str()], "{} {args:?} left something behind", self.name);
    }
}

/// Builds the script and reads its help, twice: the second time nothing is left to build.
fn builds_and_helps(name: &'static str) -> Alone {
    let alone = Alone::copy(name);
    let first = alone.run(&["--help"]);
    let (help, stderr) = (String::from_utf8_lossy(&first.stdout), String::from_utf8_lossy(&first.stderr));
    assert!(first.status.success(), "{stderr}");
    assert_eq!(stderr, "", "an operator sees the compiler's warnings at the first start");
    assert!(help.contains(&format!("Usage: ./scripts/{name}.rs ")) && help.contains("\nExamples:\n"), "{help}");

    // What the first line needs; not cargo.
    let without_cargo = tempfile::tempdir().unwrap();
    for program in ["sh", "realpath", "rust-script"] {
        symlink(which::which(program).unwrap(), without_cargo.path().join(program)).unwrap();
    }
    let second = alone.command(&alone.script()).arg("--help").env("PATH", without_cargo.path()).output().unwrap();
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    assert_eq!(second.stdout, first.stdout);
    alone
}

#[test]
fn create_alone_builds_helps_and_names_the_templates_it_lacks() {
    if rust_script_is_there() {
        let create = builds_and_helps("create");
        create.refuses(&["--root", "elsewhere"], 3, "there is no 'templates' in 'elsewhere'");
    }
}

#[test]
fn gen_qr_alone_builds_helps_and_names_the_state_it_lacks() {
    if rust_script_is_there() {
        let gen_qr = builds_and_helps("gen_qr");
        gen_qr.refuses(&[], 2, "give '--confirm-file FILE' or '--no-confirm'");
        gen_qr.refuses(&["--terminal"], 2, "'--terminal' needs a terminal");
        gen_qr.refuses(&["--no-confirm"], 3, "there is no 'state/default.yml' in ");
        // The bundle's own, the only one that is sure to exist.
        let hint = format!("hint: {}/scripts/create.rs --account signing", root().display());
        gen_qr.refuses(&["--no-confirm", "--account", "signing"], 3, &hint);
    }
}

#[test]
fn add_auth_alone_builds_helps_and_names_the_terminal_or_the_state_it_lacks() {
    if rust_script_is_there() {
        let add_auth = builds_and_helps("add_auth");
        add_auth.refuses(&[], 2, "give '--otp-file FILE'");
        add_auth.refuses(&["--otp-file", "-"], 2, "give '--confirm-file FILE' or '--no-confirm'");
        add_auth.refuses(&["--no-confirm", "--otp-file", "-"], 3, "there is no 'state/default.yml' in ");
    }
}

#[test]
fn roll_forward_alone_builds_helps_and_names_the_terminal_or_the_state_it_lacks() {
    if rust_script_is_there() {
        let roll_forward = builds_and_helps("roll_forward");
        roll_forward.refuses(&[], 2, "give '--yes'");
        roll_forward.refuses(&["--yes"], 3, "there is no 'state/default.yml' in ");
    }
}

#[test]
fn doctor_alone_builds_helps_and_names_the_state_it_lacks() {
    if rust_script_is_there() {
        // To doctor, what is missing is a finding and not an error.
        let report = builds_and_helps("doctor").run(&[]);
        let findings = String::from_utf8_lossy(&report.stdout);
        assert_eq!(report.status.code(), Some(3), "{findings}");
        assert!(findings.contains("wrong state     there is no 'state/default.yml' in "), "{findings}");
    }
}

#[test]
fn a_script_that_is_not_told_where_the_bundle_is_cannot_find_the_library_and_makes_nothing() {
    if rust_script_is_there() {
        let directory = place("untold");
        fs::create_dir_all(&directory).unwrap();
        fs::copy(repository().join("scripts/gen_qr.rs"), directory.join("gen_qr.rs")).unwrap();
        let mut command = Command::new("./gen_qr.rs");
        command.arg("--help").current_dir(&directory).env_remove("OTPQR_ROOT");
        let refused = run(command).expect(1);
        assert!(refused.stderr.lines().next().is_some_and(|line| line.contains("OTPQR_ROOT")), "{}", refused.stderr);
        assert!(refused.stderr.contains("failed to get `bundle`"), "{}", refused.stderr);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }
}

/// Asked for the package of a script that it has not seen for a week, rust-script names it and then deletes it.
#[test]
fn make_warm_survives_a_cache_older_than_a_week() {
    if !rust_script_is_there() {
        return;
    }
    let command = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).current_dir(repository()).env_remove("OTPQR_ROOT");
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("CARGO_") && name != "CARGO_HOME" {
                command.env_remove(name);
            }
        }
        command
    };
    let package = run(command("rust-script", &["--package", "./scripts/create.rs"])).expect(0).stdout;
    let package = Path::new(package.trim());
    fs::create_dir_all(package).unwrap();
    run(command("touch", &["-d", "8 days ago", package.to_str().unwrap()])).expect(0);
    let warm = run(command("make", &["warm"])).expect(0);
    assert!(warm.stdout.contains(concat!("create ", env!("CARGO_PKG_VERSION"), "\n")), "{}", warm.text());
    assert!(package.join("Cargo.lock").exists(), "the tested versions");
}

#[test]
fn copied_scripts_take_an_account_through_its_life() {
    if !rust_script_is_there() {
        return;
    }
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    let (root, directory) = (root(), place("life"));
    match fs::remove_dir_all(root.join("state")) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => panic!("{cause}"),
        _ => fs::create_dir_all(&directory).unwrap(),
    }
    let command = |program: &str| {
        let mut command = bundle.command(program);
        command.current_dir(&directory).env("OTPQR_ROOT", &root).env_remove("RUST_SCRIPT_BASE_PATH");
        command
    };
    for name in ["create", "gen_qr", "add_auth", "roll_forward", "doctor"] {
        let file = format!("{name}.rs");
        fs::copy(repository().join("scripts").join(&file), directory.join(&file)).unwrap();
        seed_lock(command("rust-script"), &Path::new(".").join(&file));
    }
    let with = |name: &str, args: &[&str]| {
        let mut command = command(&format!("./{name}.rs"));
        command.args(args);
        command
    };
    run(with("gen_qr", &["--no-confirm", "--account", "life"])).expect(3);
    run(with("create", &["--platform", "sim-native", "--login", "alice", "--account", "life"])).expect(0);
    let svg = directory.join("qrcode.svg");
    let scan = || phone::scan(&fs::read_to_string(&svg).unwrap()).unwrap();
    if svg.exists() {
        fs::remove_file(&svg).unwrap();
    }
    run(with("gen_qr", &["--no-confirm", "--account", "life"])).expect(0);
    let old = scan();
    fs::remove_file(&svg).unwrap();
    let add_auth = || with("add_auth", &["--no-confirm", "--account", "life", "--otp-file", "-"]);
    let code = old.code_at(bundle.now());
    run_with_input(add_auth(), &code).expect(0);
    assert_eq!(scan().secret, old.secret);
    run(with("roll_forward", &["--yes", "--account", "life"])).expect(0);
    fs::remove_file(&svg).unwrap();
    bundle.wait(30);
    run_with_input(add_auth(), &old.code_at(bundle.now())).expect(5);
    run(with("gen_qr", &["--no-confirm", "--account", "life"])).expect(0);
    assert_ne!(scan().secret, old.secret);
    fs::remove_file(&svg).unwrap();
    let report = run(with("doctor", &["--account", "life"]));
    assert!(report.stdout.contains("ok    volume    it is the one CAS knows"), "{}", report.text());
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 5, "nothing but the scripts");
}

#[test]
fn the_scripts_as_binaries_need_nothing_but_the_bundle() {
    let binaries = repository().join("bin");
    assert!(binaries.is_dir(), "the binaries are not built: make bin");
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    let binary = |name: &str| {
        let path = binaries.join(name);
        let linked = run({
            let mut ldd = Command::new("ldd");
            ldd.arg(&path);
            ldd
        });
        assert!(linked.text().contains("statically linked"), "{name}: {}", linked.text());
        let program = fs::read(&path).unwrap();
        let built_at = repository().to_str().unwrap().as_bytes();
        assert!(!program.windows(built_at.len()).any(|part| part == built_at), "{name} names where it was built");
        // Neither the caller's environment nor any program of the host, not even a shell.
        let mut command = Command::new(path);
        command.env_clear().env("OTPQR_ROOT", &bundle.root).env("XDG_DATA_HOME", bundle.root.join("data"));
        command.env("PATH", bundle.root.join("templates")).current_dir(&bundle.root).stdin(Stdio::null());
        command
    };
    let with = |name: &str, args: &[&str]| {
        let mut command = binary(name);
        command.args(args);
        command
    };
    run(with("create", &["--platform", "sim-native", "--login", "alice"])).expect(0);
    run(with("gen_qr", &["--no-confirm"])).expect(0);
    let code = bundle.scan("qrcode.svg").code_at(bundle.now());
    let second = with("add_auth", &["--no-confirm", "--otp-file", "-", "--output", "second.svg"]);
    run_with_input(second, &code).expect(0);
    run(with("roll_forward", &["--yes"])).expect(0);
    // The hint names what is beside this binary, for the same bundle.
    let mut elsewhere = with("gen_qr", &["--no-confirm", "--account", "none", "--root"]);
    elsewhere.arg(&bundle.root);
    let refused = run(elsewhere).expect(3);
    let create = refused.stderr.lines().find_map(|line| line.strip_prefix("hint: ")).expect("a hint");
    let nowhere = tempfile::tempdir().expect("a directory");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{create} --platform sim-native --login bob")]).current_dir(nowhere.path());
    shell.env("XDG_DATA_HOME", bundle.root.join("data"));
    assert!(run(shell).expect(0).stdout.starts_with("created: account 'none' of 'bob'"));
    assert!(bundle.state_file("none").exists());
    let report = run(with("doctor", &[]));
    assert!(report.stdout.contains("ok    policies  CAS holds "), "{}", report.text());
}
