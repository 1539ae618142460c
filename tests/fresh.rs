//! A script never runs code that differs from its sources, whatever their modification times say: rust-script looks at the
//! script's alone. A copy of the scripts and their library is changed, and the next start prints the changed text.
//!
//! One test with one change after the other, since each costs a compilation of the library.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::support::{repository, rust_script_is_there};

/// What `gen_qr`, or rather the library, says without a terminal.
const SAID: &str = "a code is needed and there is no terminal";
const COMPILES: &str =
    "gen_qr: its source or the library changed: compiling it anew (new dependencies are downloaded)\n";

/// A copy of `gen_qr` and the library.
struct Checkout {
    root: PathBuf,
}

impl Checkout {
    /// Always at the same path: rust-script keeps a project for each path it has seen.
    fn copy() -> Checkout {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fresh");
        match fs::remove_dir_all(&place) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => panic!("{}: {cause}", place.display()),
            _ => fs::create_dir_all(place.join("one/scripts")).unwrap(),
        }
        let checkout = Checkout { root: place.join("one") };
        succeeds(
            Command::new("cp")
                .arg("-r")
                .args(["gen_qr.rs", "bundle"].map(|part| repository().join("scripts").join(part)))
                .arg(checkout.path("scripts")),
        );
        checkout.seed_lock();
        checkout
    }

    fn moved(self, name: &str) -> Checkout {
        let root = self.root.with_file_name(name);
        fs::rename(self.root, &root).unwrap();
        let checkout = Checkout { root };
        checkout.seed_lock();
        checkout
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// A command in the checkout, without what cargo set for this test.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy();
            if (name.starts_with("CARGO_") && name != "CARGO_HOME") || name.starts_with("OTPQR_") {
                command.env_remove(&*name);
            }
        }
        // One text of the library changes from one compilation to the next.
        command.env("CARGO_INCREMENTAL", "1");
        command
    }

    /// rust-script's project for the script, in its cache.
    fn project(&self) -> PathBuf {
        let project = self.command("rust-script").args(["--package", "./scripts/gen_qr.rs"]).output().unwrap();
        assert!(project.status.success(), "{}", String::from_utf8_lossy(&project.stderr));
        PathBuf::from(String::from_utf8(project.stdout).unwrap().trim())
    }

    /// As `make warm` does: with the versions that were tested, and without asking a registry for newer ones.
    fn seed_lock(&self) {
        let project = self.project();
        fs::create_dir_all(&project).unwrap();
        fs::copy(repository().join("Cargo.lock"), project.join("Cargo.lock")).unwrap();
    }

    fn gen_qr(&self) -> Command {
        self.command("./scripts/gen_qr.rs")
    }

    /// Changes `old` to `new` in the one file below `scripts` that holds it; `time` is then its modification time.
    fn change(&self, old: &str, new: &str, time: Option<&str>) {
        let found = Command::new("grep").args(["-rlF", old]).arg(self.path("scripts")).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        let file = found.trim();
        let text = fs::read_to_string(file).unwrap_or_else(|cause| panic!("'{old}' in '{file}': {cause}"));
        fs::write(file, text.replace(old, new)).unwrap();
        if let Some(time) = time {
            succeeds(Command::new("touch").args(["-d", time, file]));
        }
    }
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that the run says `said` and, before that, whether the script was compiled anew.
fn refuses(output: &Output, compiles: bool, said: &str) {
    let stderr = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let rest = if compiles { stderr.strip_prefix(COMPILES) } else { Some(stderr.as_str()) };
    assert!(rest.is_some_and(|rest| rest.starts_with(&format!("gen_qr: error: {said}"))), "{stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_script_never_runs_what_its_sources_do_not_say() {
    if !rust_script_is_there() {
        return;
    }
    let checkout = Checkout::copy();
    let start = |checkout: &Checkout| checkout.gen_qr().output().unwrap();

    // An earlier run of this test may have left it out of date; from now on nothing is said and nothing restarted.
    let first = checkout.gen_qr().arg("--version").output().unwrap();
    assert!(first.status.success(), "{}", stderr(&first));
    let second = checkout.gen_qr().arg("--version").env("PATH", without_cargo()).output().unwrap();
    assert_eq!((second.status.code(), stderr(&second)), (Some(0), String::new()));
    assert_eq!(second.stdout, first.stdout);
    refuses(&start(&checkout), false, SAID);

    // The library changed: six at once.
    checkout.change(SAID, "changed: one", None);
    let six: Vec<Child> = (0..6).map(|_| checkout.gen_qr().spawn().unwrap()).collect();
    for output in six.into_iter().map(|child| child.wait_with_output().unwrap()) {
        let compiled = stderr(&output).starts_with(COMPILES);
        refuses(&output, compiled, "changed: one");
    }
    refuses(&start(&checkout), false, "changed: one");

    // Changed, but older than what was compiled: neither rust-script nor cargo notices that.
    checkout.change("\"changed: one", "\"changed: two", Some("2000-01-01"));
    refused_where_nothing_can_be_compiled(&checkout);
    // The variable of a parent's restart, inherited, counts neither as this one's attempt nor as its digest.
    let mut leftover = checkout.gen_qr();
    leftover.env("OTPQR_SOURCE_DIGEST", "0").env("OTPQR_SCRIPT_DIGEST", "0").env("OTPQR_COMPILED_ANEW", "1 2");
    refuses(&leftover.output().unwrap(), true, "changed: two");
    refuses(&start(&checkout), false, "changed: two");

    // The script likewise; its arguments arrive.
    checkout.change("/// Have the account's QR code issued - once, ever", "/// Three", Some("2000-01-01"));
    let help = checkout.gen_qr().arg("--help").output().unwrap();
    assert_eq!((help.status.code(), stderr(&help).as_str()), (Some(0), COMPILES));
    assert!(help.stdout.starts_with(b"Three\n"), "{}", String::from_utf8_lossy(&help.stdout));

    // The clock was ahead.
    checkout.change("\"changed: two", "\"changed: four", Some("2099-01-01"));
    refuses(&start(&checkout), true, "changed: four");
    refuses(&start(&checkout), false, "changed: four");

    // To rust-script a moved checkout is another project, and what is in its cache for that path is out of date.
    let checkout = checkout.moved("other");
    checkout.change("\"changed: four", "\"changed: five", Some("2001-01-01"));
    let output = start(&checkout);
    let compiled = stderr(&output).starts_with(COMPILES);
    refuses(&output, compiled, "changed: five");

    // Without the library there is nothing to compare with.
    fs::rename(checkout.path("scripts/bundle"), checkout.path("bundle")).unwrap();
    let mut command = checkout.command("rust-script");
    let output =
        command.arg("--base-path").arg(checkout.path("./scripts")).arg("./scripts/gen_qr.rs").output().unwrap();
    let expected =
        format!("gen_qr: error: cannot compare the program with the library in '{}", checkout.root.display());
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with(&expected), "{}", stderr(&output));
    assert!(stderr(&output).ends_with("\nhint: export OTPQR_ROOT=/path/to/the/checkout\n"), "{}", stderr(&output));
}

/// A PATH on which nothing compiles.
fn without_cargo() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fresh/path");
    if !directory.exists() {
        fs::create_dir(&directory).unwrap();
        for program in ["sh", "realpath", "rust-script"] {
            std::os::unix::fs::symlink(which::which(program).unwrap(), directory.join(program)).unwrap();
        }
    }
    directory
}

/// Rather than run old code, a stale script ends: where cargo is missing, and where the cache cannot be written.
fn refused_where_nothing_can_be_compiled(checkout: &Checkout) {
    let ends = |command: &mut Command| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let cause = stderr(&output).strip_prefix(COMPILES).map(str::to_owned);
        assert!(
            cause.is_some_and(|cause| !cause.is_empty() && !cause.contains("gen_qr: error: changed: one")),
            "{output:?}"
        );
        assert!(output.stdout.is_empty());
    };
    ends(checkout.gen_qr().env("PATH", without_cargo()));

    let project = checkout.project();
    let (id, cache) = (project.file_name().unwrap(), project.ancestors().nth(2).unwrap());
    let program = format!("binaries/release/gen_qr_{}", id.to_str().unwrap());
    // Started past rust-script, which alone knows where the sources are.
    let output = checkout.command(cache.join(&program).to_str().unwrap()).output().unwrap();
    let error = "gen_qr: error: this program was compiled by rust-script but not started by it";
    assert!(stderr(&output).starts_with(error), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(1));
    // As if it had been compiled anew twice already.
    let twice = "OTPQR_COMPILED_ANEW=\"$$ 2\" exec ./scripts/gen_qr.rs";
    let output = checkout.command("sh").args(["-c", twice]).output().unwrap();
    let error = "gen_qr: error: compiled anew, the program still differs from ";
    assert!(stderr(&output).starts_with(error), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(1));

    // As much of the cache as a warm start needs.
    let copy = tempfile::tempdir().unwrap();
    for part in [Path::new("projects").join(id), PathBuf::from(&program)] {
        let directory = copy.path().join("rust-script").join(part.parent().unwrap());
        fs::create_dir_all(&directory).unwrap();
        succeeds(Command::new("cp").arg("-r").arg(cache.join(part)).arg(directory));
    }
    succeeds(Command::new("chmod").arg("-R").arg("a-w").arg(copy.path()));
    // Root could write all the same, but not without capabilities.
    let ordinary = !rustix::process::geteuid().is_root();
    let mut command = checkout.command(if ordinary { "./scripts/gen_qr.rs" } else { "setpriv" });
    if !ordinary {
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--", "./scripts/gen_qr.rs"]);
    }
    ends(command.env("XDG_CACHE_HOME", copy.path()));
    succeeds(Command::new("chmod").arg("-R").arg("u+w").arg(copy.path()));
}
