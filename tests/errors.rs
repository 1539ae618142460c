//! The catalogue of errors: every message of every script as an operator sees it, with the whole of standard error, the exit
//! code, nothing on standard output, and hints that can be pasted. What varies is shown as ROOT, NAMESPACE, CAS, ENCLAVE, HASH.
//! The last test finds the messages in the sources and fails if one is neither here nor exempt, with a reason.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::support::{
    Bundle, Outcome, Platform, SmallDisk, User, copy, image, is_root, repository, run, run_with_input,
};

/// Wraps a tool: runs the test's deed before it or, if the deed calls `exit`, instead of it.
const TOOL: &str = r#"#!/bin/sh
bin=${0%/*} name=${0##*/}
[ ! -f "$bin/instead-of-$name" ] || . "$bin/instead-of-$name"
exec "$bin/genuine/$name" "$@"
"#;

/// What SCONE's runtime prints around a cause.
const FATAL: &str = "echo '[SCONE|FATAL] init.c:302: Could not initialize enclave state: Attestation failed' >&2; \
                     echo '  Caused by: @' >&2; exit 134";

/// The deed that makes the upload of this number fail.
fn upload_fails(number: usize) -> String {
    format!(
        "case \"$1 $2\" in 'session create') echo >>\"$bin/uploads\"; \
         [ $(wc -l <\"$bin/uploads\") -ne {number} ] || {{ rm \"$bin/uploads\"; exit 1; }} ;; esac"
    )
}

struct Host {
    bundle: Bundle,
    bin: PathBuf,
}

impl std::ops::Deref for Host {
    type Target = Bundle;

    fn deref(&self) -> &Bundle {
        &self.bundle
    }
}

impl Host {
    fn new() -> Host {
        let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
        bundle.install(scripts!());
        let bin = bundle.root.join("simulator/bin");
        fs::create_dir(bin.join("genuine")).expect("a directory");
        fs::write(bin.join("tool"), TOOL).expect("a script");
        let executable = Permissions::from_mode(0o755);
        fs::set_permissions(bin.join("tool"), executable).expect("permissions");
        fs::rename(bin.join("scone-sim"), bin.join("genuine/scone-sim")).expect("a move");
        symlink("scone-sim", bin.join("genuine/scone")).expect("a link");
        symlink("../rootfs/scone-run", bin.join("genuine/scone-run")).expect("a link");
        for name in ["scone", "scone-run"] {
            fs::remove_file(bin.join(name)).expect("deletion");
        }
        for name in ["scone", "scone-run", "scone-sim"] {
            // A process that another test starts at the same time may inherit the file we wrote, open: it is then "busy".
            // A copy is not.
            copy(&bin.join("tool"), &bin.join(name));
        }
        for name in ["create", "gen_qr", "add_auth", "roll_forward", "protect", "start", "approve"] {
            symlink(name, bundle.root.join("scripts").join(format!("{name}.rs"))).expect("a link");
        }
        Host { bundle, bin }
    }

    /// With the account `signing`.
    fn with_account() -> Host {
        let host = Host::new();
        host.script("create", &["--platform", "sim-native", "--account", "signing"]).expect(0);
        host
    }

    /// Runs a script for the account `signing`.
    fn signing(&self, script: &str, args: &[&str]) -> Outcome {
        self.script(script, &[&["--account", "signing"], args].concat())
    }

    fn gen_qr(&self) -> Outcome {
        self.signing("gen_qr", &["--no-confirm"])
    }

    fn add_auth(&self, code: &str) -> Outcome {
        let args = ["--account", "signing", "--no-confirm", "--otp-file", "-", "--output", "second.svg"];
        run_with_input(self.script_command("add_auth", &args), code)
    }

    /// Runs `then` while a tool is wrapped in this deed.
    fn instead_of<T>(&self, tool: &str, shell: &str, then: impl FnOnce() -> T) -> T {
        let file = self.bin.join(format!("instead-of-{tool}"));
        fs::write(&file, shell).expect("a deed");
        let result = then();
        fs::remove_file(file).expect("deletion");
        result
    }

    /// Runs `then` while something is moved away.
    fn without<T>(&self, path: &str, then: impl FnOnce() -> T) -> T {
        let (path, aside) = (self.root.join(path), self.root.join("aside"));
        fs::rename(&path, &aside).expect("a move");
        let result = then();
        if path.exists() {
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.expect("deletion");
        }
        fs::rename(&aside, &path).expect("a move back");
        result
    }

    /// Asserts exit code and whole standard error; tries each hint.
    #[track_caller]
    fn says(&self, outcome: Outcome, code: i32, expected: &str) {
        let found = self.normalised(&outcome.stderr);
        assert_eq!(outcome.code, Some(code), "{found}");
        assert_eq!(outcome.stdout, "", "nothing on standard output when something fails");
        assert_eq!(found, expected, "\n-- found:\n{found}\n-- expected:\n{expected}");
        for hint in outcome.stderr.lines().filter_map(|line| line.strip_prefix("hint: ")) {
            self.can_be_pasted(hint);
        }
    }

    fn normalised(&self, text: &str) -> String {
        let root = self.root.display().to_string();
        let mut text = text.replace(&root, "ROOT").replace(&root.replace('"', "\\\""), "ROOT");
        text = text.replace(&root.replace('\'', r"'\''"), "ROOT");
        if self.state_file("signing").is_file()
            && let Ok(state) = fs::read_to_string(self.state_file("signing"))
        {
            let known = |key: &str| state.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::to_owned);
            for (key, name) in [("namespace: ", "NAMESPACE"), ("address: ", "CAS"), ("enclave_address: ", "ENCLAVE")] {
                if let Some(value) = known(key) {
                    text = text.replace(&value, name);
                }
            }
        }
        // The random part of `tempfile`'s names.
        if let Some((before, after)) = text.split_once("/otpqr-policy-") {
            text = format!("{before}/otpqr-policy-RANDOM{}", &after[6..]);
        }
        if let Some((before, after)) = text.split_once("/.tmp") {
            text = format!("{before}/.tmpRANDOM{}", &after[6..]);
        }
        let words = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
        let hash = |word: &str| word.len() >= 64 && word[..64].bytes().all(|c| c.is_ascii_hexdigit());
        words.map(|word| if hash(word) { format!("HASH{}", &word[64..]) } else { word.to_owned() }).collect()
    }

    /// A hint is a command, its reason behind a `#`.
    #[track_caller]
    fn can_be_pasted(&self, hint: &str) {
        let command = hint.split_once('#').map_or(hint, |(command, _)| command).trim();
        let mut shell = self.command("sh");
        match command.strip_prefix("make ") {
            Some(target) => shell.current_dir(repository()).args(["-c", &format!("make --dry-run {target}")]),
            // Tried in a test of its own.
            None if command.starts_with("mv ") => return,
            // Not every host has the tool that a hint names.
            None if ["apt-get", "docker"]
                .iter()
                .any(|tool| command.starts_with(tool) && which::which(tool).is_err()) =>
            {
                return;
            }
            None if command.starts_with("(cd ") => return,
            None => shell.args(["-c", &format!("{command} --help")]),
        };
        run(shell).expect(0);
    }
}

#[test]
fn wrong_usage() {
    let host = Host::with_account();
    host.says(
        host.signing("gen_qr", &[]),
        2,
        "\
gen_qr: error: a code is needed and there is no terminal to ask on: give '--confirm-file FILE' or '--no-confirm'
",
    );
    host.says(
        host.signing("gen_qr", &["--terminal"]),
        2,
        "\
gen_qr: error: '--terminal' needs a terminal: the QR code must end up in no file or pipe
",
    );
    host.says(
        host.signing("add_auth", &["--no-confirm"]),
        2,
        "\
add_auth: error: a code is needed and there is no terminal to ask on: give '--otp-file FILE' ('-': standard input)
",
    );
    host.says(
        host.add_auth("12345"),
        2,
        "\
add_auth: platform 'sim-native' is software only: a rehearsal that protects nobody from root
add_auth: checking program and volume
add_auth: error: a code is exactly six digits
",
    );
    host.says(
        host.signing("add_auth", &["--no-confirm", "--otp-file", "code"]),
        2,
        "\
add_auth: error: there is no 'code' to read a code from
",
    );
    host.says(
        host.signing("add_auth", &["--no-confirm", "--otp-file", "state"]),
        2,
        "\
add_auth: platform 'sim-native' is software only: a rehearsal that protects nobody from root
add_auth: checking program and volume
add_auth: error: no code can be read from 'state': Is a directory (os error 21)
",
    );
    let mut add_auth = host.script_command("add_auth", &["--otp-file", "-", "--confirm-file", "-"]);
    add_auth.args(["--account", "signing"]);
    host.says(
        run(add_auth),
        2,
        "\
add_auth: error: standard input holds one code: '--otp-file' and '--confirm-file' cannot both be '-'
",
    );
    host.says(
        host.signing("roll_forward", &[]),
        2,
        "\
roll_forward: error: this cannot be undone once it is done, and there is no terminal to ask on: give '--yes'
",
    );
    host.says(
        host.signing("roll_forward", &["--yes", "--keep-secret"]),
        2,
        "\
roll_forward: error: a code is needed and there is no terminal to ask on: give '--otp-file FILE' ('-': standard input)
",
    );
    host.says(
        host.script("create", &["--platform", "sim-native", "--cas", "cas.example.com"]),
        2,
        "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: attesting CAS
create: error: '--cas', '--programs-cas', '--network' and how CAS is attested are for SCONE: the simulator's is found by itself
",
    );
    let mut create = host.script_command("create", &["--platform", "sim-native"]);
    create.env("LOGNAME", "a:b");
    host.says(run(create), 2, "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: error: the login name cannot be used, give '--login NAME': must not be empty, hold ':' or '$' or a control character, nor begin or end with a space
");
    let mut create = host.script_command("create", &["--platform", "sim-native"]);
    // Nor does the account database know it, without 'id'.
    create.env_remove("LOGNAME").env_remove("USER").env("PATH", host.root.join("nothing"));
    host.says(
        run(create),
        2,
        "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: error: the login name is not known: give '--login NAME'
",
    );
    host.says(
        host.script("create", &["--platform", "sim-native", "--issuer", &"x".repeat(1_200)]),
        2,
        "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: error: issuer and login are too long for a QR code
",
    );
}

#[test]
fn a_result_that_cannot_be_told() {
    let host = Host::with_account();
    let mut create = host.command("sh");
    create.args(["-c", "scripts/create --account signing >/dev/full"]);
    host.says(
        run(create),
        1,
        "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: attesting CAS
create: policy 'NAMESPACE'
create: policy 'NAMESPACE/otpqr'
create: policy 'NAMESPACE/otpqr-reset'
create: error: done, but it cannot be reported on standard output: No space left on device (os error 28)
",
    );
}

#[test]
fn no_bundle_or_no_account_or_another() {
    let host = Host::with_account();
    host.says(
        host.script("create", &["--root", "nowhere"]),
        3,
        "\
create: error: there is no 'templates' in 'nowhere'; '--root' or OTPQR_ROOT says where the bundle is
",
    );
    host.says(
        host.script("gen_qr", &["--no-confirm", "--account", "none"]),
        3,
        "\
gen_qr: error: there is no 'state/none.yml' in 'ROOT'; '--root' or OTPQR_ROOT says where the bundle is
hint: ./scripts/create.rs --account none
",
    );
    for (args, expected) in [
        (
            ["--platform", "sim"],
            "\
create: error: account 'signing' has platform 'sim-native', not 'sim'; '--account' names another account
",
        ),
        (
            ["--cas", "cas.example.com"],
            "\
create: error: account 'signing' has CAS 'CAS', not 'cas.example.com'; '--account' names another account
",
        ),
        (
            ["--issuer", "another"],
            "\
create: error: account 'signing' has issuer 'SCONE OTP', not 'another'; '--account' names another account
",
        ),
        (
            ["--login", "bob"],
            "\
create: error: account 'signing' has login 'alice', not 'bob'; '--account' names another account
",
        ),
    ] {
        host.says(host.signing("create", &args), 3, expected);
    }
}

#[test]
fn a_tool_that_is_missing_or_not_what_it_should_be() {
    let host = Host::with_account();
    let empty_path = || {
        let mut gen_qr = host.script_command("gen_qr", &["--account", "signing", "--no-confirm"]);
        gen_qr.env("PATH", "");
        run(gen_qr)
    };
    host.without("simulator/bin/scone", || {
        host.says(
            empty_path(),
            3,
            "\
gen_qr: error: 'scone', which platform 'sim-native' needs, was not found
hint: make sim
",
        )
    });
    host.without("simulator/bin/scone-sim", || {
        host.says(
            empty_path(),
            3,
            "\
gen_qr: error: 'scone-sim', which platform 'sim-native' needs, was not found
hint: make sim
",
        )
    });
    host.without("simulator/bin/scone-run", || {
        host.says(
            empty_path(),
            3,
            "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: 'scone-run', which platform 'sim-native' needs, was not found
hint: make sim
",
        )
    });
    host.without("simulator/bin/scone", || {
        fs::write(host.bin.join("no-program"), "\0").expect("a file");
        fs::set_permissions(host.bin.join("no-program"), Permissions::from_mode(0o755)).expect("permissions");
        copy(&host.bin.join("no-program"), &host.bin.join("scone"));
        host.says(
            host.gen_qr(),
            3,
            "\
gen_qr: error: 'scone' (ROOT/simulator/bin/scone) could not be started: Exec format error (os error 8)
",
        );
    });
    host.instead_of("scone", "echo scone 5.9.0; exit", || {
        host.says(
            host.gen_qr(),
            3,
            "\
gen_qr: error: the 'scone' found says it is 'scone 5.9.0', but the platform is 'sim-native'
",
        )
    });
}

#[test]
fn a_cas_that_is_not_there_or_not_the_one() {
    let host = Host::with_account();
    let status = "case $1 in status) @ ;; esac";
    host.instead_of("scone-sim", &status.replace('@', "exit 0"), || {
        host.says(
            host.gen_qr(),
            1,
            "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: 'scone-sim' did not print 'client'
",
        )
    });
    let another = "printf 'client: a:1\\nenclave: a:2\\nkey: c\\n'; exit";
    host.instead_of("scone-sim", &status.replace('@', another), || {
        host.says(
            host.gen_qr(),
            3,
            "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: the CAS at 'a:1' is not the one this account was created on
hint: ./scripts/roll_forward.rs --account signing --cas-wiped   # if it was set up anew
",
        )
    });
    let up = "case $1 in up) printf 'client: a:1\\nenclave: a:2\\nkey: c\\n'; exit ;; esac";
    host.instead_of("scone-sim", up, || {
        host.says(
            host.script("create", &["--platform", "sim-native", "--account", "other"]),
            3,
            "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: attesting CAS
create: error: CAS at 'a:1' cannot be attested: failed to lookup address information: Name or service not known (retries: 3)
",
        );
        host.says(
            host.signing("create", &[]),
            3,
            "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: attesting CAS
create: error: the CAS at 'a:1' is not the one this account was created on
hint: ./scripts/roll_forward.rs --account signing --cas-wiped   # if it was set up anew
",
        );
    });
    host.without("data/scone-sim/cli", || {
        host.says(
            host.gen_qr(),
            3,
            "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: 'scone' does not know the CAS at 'CAS': Attest it first: scone cas attest CAS -c CAS_KEY_HASH
hint: ./scripts/create.rs --account signing   # attests it
",
        )
    });
    let fails = "case $1 in up) echo 'scone-sim: error: port 8081 is taken' >&2; exit 1 ;; esac";
    host.instead_of("scone-sim", fails, || {
        host.says(
            host.signing("create", &[]),
            3,
            "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: attesting CAS
create: error: the simulated CAS cannot be started: port 8081 is taken
",
        )
    });
    let fails = "case $1 in evidence-key) echo 'scone-sim: error: it is damaged' >&2; exit 1 ;; esac";
    host.instead_of("scone-sim", fails, || {
        host.says(
            host.gen_qr(),
            3,
            "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: the simulated CAS's evidence key cannot be read: it is damaged
",
        )
    });
    // No more of its log is read than what is asked about.
    let whole = "case \"$*\" in 'log --json --last '*) ;; log*) exit 1 ;; esac";
    host.instead_of("scone-sim", whole, || {
        let report = host.signing("doctor", &[]).stdout;
        assert!(report.contains("wrong clock     CAS's clock is "), "{report}");
    });
    let clock = host.root.join("clock").display().to_string();
    host.scone_sim(["down"]).expect(0);
    host.says(
        host.gen_qr(),
        3,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: the simulated CAS is not running: no CAS is running on 'ROOT/data/scone-sim'
hint: 'ROOT/simulator/bin/scone-sim' up
",
    );
    host.scone_sim(["up", "--clock", &clock]).expect(0);
}

#[test]
fn an_image_that_is_missing_or_was_built_anew_or_holds_no_scone_program() {
    let host = Host::with_account();
    host.says(
        host.signing("create", &["--image", "nowhere"]),
        3,
        "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: error: the image directory 'ROOT/nowhere' is not there
hint: make sim
",
    );
    host.instead_of("scone-run", "echo no such program >&2; exit 1", || {
        host.says(
            host.signing("create", &[]),
            3,
            "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: error: the image 'ROOT/simulator/bin/rootfs' cannot be measured: no such program
",
        );
        host.says(
            host.gen_qr(),
            3,
            "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: the image 'ROOT/simulator/bin/rootfs' cannot be measured: no such program
",
        );
    });
    host.instead_of("scone-run", "echo hello; exit", || {
        host.says(
            host.signing("create", &[]),
            3,
            "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: error: the image 'ROOT/simulator/bin/rootfs' did not print a measurement: its '/bin/otpqr' is not a SCONE program
",
        )
    });
    host.instead_of("scone-run", "printf %064d\\\\n 0; exit", || {
        host.says(
            host.gen_qr(),
            3,
            "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: image 'simulator/bin/rootfs' is not the one in the policies: it was rebuilt
hint: ./scripts/create.rs --account signing   # updates the policies
",
        );
        host.says(
            host.add_auth("123456"),
            3,
            "\
add_auth: platform 'sim-native' is software only: a rehearsal that protects nobody from root
add_auth: error: image 'simulator/bin/rootfs' is not the one in the policies: it was rebuilt
hint: ./scripts/create.rs --account signing   # updates the policies
",
        );
        host.says(
            host.signing("roll_forward", &["--yes"]),
            3,
            "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: error: image 'simulator/bin/rootfs' is not the one in the policies: it was rebuilt
hint: ./scripts/create.rs --account signing   # updates the policies
",
        );
    });
}

#[test]
fn state_that_is_damaged_or_somebody_elses_or_cannot_be_written() {
    let host = Host::with_account();
    let file = host.state_file("signing");
    let genuine = fs::read_to_string(&file).expect("the state");
    for (content, expected) in [
        (
            "\0",
            "\
gen_qr: error: state file 'ROOT/state/signing.yml' is damaged or not ours
",
        ),
        (
            "format: 6\n",
            "\
gen_qr: error: state file 'ROOT/state/signing.yml' has format 6; this script knows 5
",
        ),
        (
            "format: 1\nplatform: sim\n",
            "\
gen_qr: error: state file 'ROOT/state/signing.yml' is damaged: missing field `cas`
",
        ),
    ] {
        fs::write(&file, content).expect("damage");
        host.says(host.gen_qr(), 3, expected);
        host.says(host.signing("create", &[]), 3, &expected.replace("gen_qr:", "create:"));
    }
    fs::write(&file, &genuine).expect("repair");
    host.without("state/signing.yml", || {
        fs::create_dir(&file).expect("a directory");
        host.says(
            host.gen_qr(),
            3,
            "\
gen_qr: error: state file 'ROOT/state/signing.yml' must be a regular file that only you can write
",
        );
    });
    host.without("state/signing.yml", || {
        symlink("../aside", &file).expect("a link");
        host.says(
            host.gen_qr(),
            3,
            "\
gen_qr: error: state file 'ROOT/state/signing.yml' cannot be read: Too many levels of symbolic links (os error 40)
",
        );
    });
    if is_root() {
        chown(&file, Some(1), None).expect("another owner");
        host.says(
            host.gen_qr(),
            3,
            "\
gen_qr: error: state file 'ROOT/state/signing.yml' belongs to another user (uid 1)
",
        );
        chown(&file, Some(0), None).expect("the owner");
    }
    host.without("state/signing.lock", || {
        fs::create_dir(host.root.join("state/signing.lock")).expect("a directory");
        host.says(
            host.signing("roll_forward", &["--yes"]),
            3,
            "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: error: state file 'ROOT/state/signing.yml' cannot be written: Is a directory (os error 21)
",
        );
    });
    let lock = File::open(file.with_extension("lock")).expect("the lock");
    lock.lock().expect("the lock");
    host.says(
        host.gen_qr(),
        3,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: another run, or a program that it started, is at work on state file 'ROOT/state/signing.yml': wait until it has ended
",
    );
    drop(lock);
    let meanwhile = "case $2 in show-identification) echo '# changed' >>\"$bin/../../state/signing.yml\" ;; esac";
    host.instead_of("scone", meanwhile, || {
        host.says(
            host.signing("roll_forward", &["--yes"]),
            1,
            "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: error: state file 'ROOT/state/signing.yml' was changed by another run; run the same command again
",
        )
    });
}

#[test]
fn a_disk_that_is_full_once_something_was_uploaded() {
    if !is_root() {
        eprintln!("SKIPPED: only root can mount a small disk");
        return;
    }
    let host = Host::with_account();
    let disk = SmallDisk::below(&host.root.join("state"));
    fs::remove_file(host.state_file("signing")).expect("the loss");
    let create = || host.signing("create", &["--platform", "sim-native"]);
    let fill = "case \"$1 $2\" in 'session create') cat /dev/zero >\"$bin/../../state/filler\" 2>/dev/null ;; esac";
    host.instead_of("scone", fill, || {
        host.says(
            create(),
            4,
            "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: attesting CAS
create: policy 'NAMESPACE'
create: error: state file 'ROOT/state/signing.yml' cannot be written: No space left on device (os error 28) at path \"ROOT/state/.tmpRANDOM\"
hint: ./scripts/create.rs --account signing   # goes on once that is mended
",
        )
    });
    disk.empty();
    create().expect(0);
    drop(disk);
}

#[test]
fn a_policy_that_cannot_be_made_or_that_cas_does_not_take() {
    let host = Host::with_account();
    host.without("templates/otpqr.yml", || {
        host.says(
            host.signing("create", &[]),
            3,
            "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: attesting CAS
create: policy 'NAMESPACE'
create: policy 'NAMESPACE/otpqr'
create: error: template 'ROOT/templates/otpqr.yml' cannot be read: No such file or directory (os error 2)
",
        )
    });
    let mut create = host.script_command("create", &["--account", "signing"]);
    create.env("TMPDIR", "nowhere");
    host.says(run(create), 3, "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: attesting CAS
create: policy 'NAMESPACE'
create: error: the policy cannot be written to a temporary file: No such file or directory (os error 2) at path \"ROOT/nowhere/otpqr-policy-RANDOM.yml\"
");
    let session = "case \"$1 $2\" in 'session verify') @; esac";
    host.instead_of("scone", &session.replace('@', "echo no hash; exit"), || {
        host.says(
            host.signing("create", &[]),
            1,
            "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: attesting CAS
create: policy 'NAMESPACE'
create: error: 'scone session verify' did not print the hash of 'NAMESPACE'
",
        );
    });
    host.instead_of("scone", "case \"$1 $2\" in 'session read') echo a word; exit; esac", || {
        host.says(
            host.gen_qr(),
            1,
            "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: 'scone session read' did not print session 'NAMESPACE': invalid type: string \"a word\", expected struct Head
",
        );
    });
    let refuses = "case \"$1 $2\" in 'session read') echo name: n; echo 'Caused by: no route' >&2; exit @ ;; session*) echo 'Error: Session creation failed' >&2; echo 'Caused by: The predecessor is not the current session' >&2; exit 1 ;; esac";
    host.instead_of("scone", &refuses.replace('@', "0"), || {
        host.says(
            host.signing("create", &[]),
            5,
            "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: attesting CAS
create: policy 'NAMESPACE'
create: error: CAS did not accept session 'NAMESPACE': The predecessor is not the current session
hint: mv 'ROOT/state/signing.yml' 'ROOT/state/signing.behind'   # if there is no newer copy of it: gives the account up
hint: ./scripts/create.rs --account signing --platform sim-native --issuer='SCONE OTP' --login='alice'   # then: a new secret
",
        )
    });
    host.instead_of("scone", &refuses.replace('@', "1"), || {
        host.says(
            host.signing("create", &[]),
            3,
            "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: attesting CAS
create: policy 'NAMESPACE'
create: error: CAS cannot be asked about session 'NAMESPACE': The predecessor is not the current session
",
        )
    });
    host.instead_of("scone", &refuses.replace('@', "2"), || {
        host.says(
            host.signing("create", &[]),
            3,
            "\
create: platform 'sim-native' is software only: a rehearsal that protects nobody from root
create: measuring image 'simulator/bin/rootfs'
create: attesting CAS
create: policy 'NAMESPACE'
create: error: CAS at 'CAS' no longer holds session 'NAMESPACE': it was wiped or restored
hint: ./scripts/roll_forward.rs --account signing --cas-wiped   # new secret, new volume, new sessions
",
        )
    });

    host.says(
        host.signing("roll_forward", &["--yes", "--cas-wiped"]),
        3,
        "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: error: CAS was not wiped: it holds session 'NAMESPACE'
hint: ./scripts/create.rs --account signing
",
    );
    let restored = "case \"$1 $2 $4\" in 'session verify '*|'session read '*otpqr-reset) exit 2 ;; esac";
    host.instead_of("scone", restored, || {
        host.says(
            host.signing("roll_forward", &["--yes", "--cas-wiped"]),
            3,
            "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: error: CAS was not wiped, but restored: it holds session 'NAMESPACE', but not 'NAMESPACE/otpqr-reset'
hint: mv 'ROOT/state/signing.yml' 'ROOT/state/signing.behind'   # if there is no newer copy of it: gives the account up
hint: ./scripts/create.rs --account signing --platform sim-native --issuer='SCONE OTP' --login='alice'   # then: a new secret
",
        )
    });
    host.instead_of("scone", &refuses.replace('@', "1"), || {
        host.says(
            host.signing("roll_forward", &["--yes", "--cas-wiped"]),
            3,
            "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: error: CAS cannot be asked what it holds: no route
",
        );
        host.says(
            host.signing("roll_forward", &["--yes"]),
            4,
            "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: declaring the new beside the old
roll_forward: error: CAS cannot be asked about session 'NAMESPACE/otpqr': The predecessor is not the current session
hint: ./scripts/roll_forward.rs --account signing   # goes on
hint: ./scripts/roll_forward.rs --account signing --undo   # takes it back, if the old codes still live
",
        );
    });
    host.says(
        host.signing("create", &[]),
        3,
        "\
create: error: a roll-forward of account 'signing' was begun but not finished
hint: ./scripts/roll_forward.rs --account signing
",
    );
    host.says(
        host.signing("roll_forward", &["--yes", "--keep-secret", "--otp-file", "-"]),
        3,
        "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: error: a roll-forward with a new secret was begun: finish it first
hint: ./scripts/roll_forward.rs --account signing
",
    );
    // Cut off after the second upload.
    let third = upload_fails(3);
    host.instead_of("scone", &third, || {
        host.says(
            host.signing("roll_forward", &["--yes"]),
            4,
            "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: continuing the roll-forward that was begun
roll_forward: declaring the new beside the old
roll_forward: switching: from here on the old codes are dead
roll_forward: dropping the old
roll_forward: error: CAS did not accept session 'NAMESPACE/otpqr': it ended with status 1 and said nothing
",
        )
    });
    host.says(
        host.signing("roll_forward", &["--undo"]),
        3,
        "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: error: session 2 has switched already: the roll-forward can only be completed
hint: ./scripts/roll_forward.rs --account signing
",
    );
    let second = upload_fails(2);
    host.signing("roll_forward", &["--yes"]).expect(0);
    host.instead_of("scone", &second, || {
        let keep =
            host.script_command("roll_forward", &["--account", "signing", "--yes", "--keep-secret", "--otp-file", "-"]);
        host.says(
            run(keep),
            4,
            "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: declaring the new beside the old
roll_forward: switching session 2 to the new volume
roll_forward: error: CAS did not accept session 'NAMESPACE/otpqr-reset': it ended with status 1 and said nothing
",
        );
    });
    host.says(
        host.signing("create", &[]),
        3,
        "\
create: error: a roll-forward of account 'signing' was begun but not finished
hint: ./scripts/roll_forward.rs --account signing --keep-secret
",
    );
    host.says(
        host.signing("roll_forward", &["--yes", "--keep-secret", "--otp-file", "/dev/null"]),
        2,
        "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: continuing the roll-forward that was begun
roll_forward: switching session 2 to the new volume
roll_forward: error: a code is exactly six digits
",
    );
    host.says(
        host.signing("roll_forward", &["--undo"]),
        3,
        "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: error: session 2 has switched already: the roll-forward can only be completed
hint: ./scripts/roll_forward.rs --account signing --keep-secret
hint: ./scripts/roll_forward.rs --account signing   # without a code: new secret
",
    );
    // Abandoned, and then refused by CAS: the state still says that session 2 uses the volume that was begun.
    host.instead_of("scone", &upload_fails(1), || {
        host.says(
            host.signing("roll_forward", &["--yes"]),
            5,
            "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: continuing the roll-forward that was begun
roll_forward: declaring the new beside the old
roll_forward: error: CAS did not accept session 'NAMESPACE/otpqr': it ended with status 1 and said nothing
",
        )
    });
    let report = host.signing("doctor", &[]).stdout;
    for line in [
        "otpqr' with the volume that was begun beside the old\n",
        "otpqr-reset' on the volume that was begun\n",
        "ok    codes     the current codes still work\n",
    ] {
        assert!(report.contains(line), "{report}");
    }
    host.signing("roll_forward", &["--yes"]).expect(0);
}

/// The hints abandon the account and start it afresh. Pasted one after the other, that is what they do.
#[test]
fn a_state_that_is_behind_what_cas_holds() {
    let host = Host::with_account();
    let state = host.state_file("signing");
    let older = fs::read(&state).expect("the state");
    host.signing("roll_forward", &["--yes"]).expect(0);
    fs::write(&state, older).expect("an older state");
    let behind = "\
hint: mv 'ROOT/state/signing.yml' 'ROOT/state/signing.behind'   # if there is no newer copy of it: gives the account up
hint: ./scripts/create.rs --account signing --platform sim-native --issuer='SCONE OTP' --login='alice'   # then: a new secret
";
    let refused = "session 'NAMESPACE/otpqr' is somebody else's version, or the state is an older copy";
    let rehearsal = "platform 'sim-native' is software only: a rehearsal that protects nobody from root";
    host.says(
        host.signing("roll_forward", &["--yes"]),
        5,
        &format!("roll_forward: {rehearsal}\nroll_forward: error: {refused}\n{behind}"),
    );
    let created = host.signing("create", &[]);
    let hints: Vec<String> =
        created.stderr.lines().filter_map(|line| line.strip_prefix("hint: ")).map(str::to_owned).collect();
    assert_eq!(hints.len(), 2);
    for hint in hints {
        let mut shell = host.command("sh");
        shell.args(["-c", &hint]);
        run(shell).expect(0);
    }
    host.gen_qr().expect(0);
}

#[test]
fn a_session_that_was_uploaded_once_more() {
    let host = Host::with_account();
    let namespace = host.known("signing", &["namespace"]);
    let policy = host.scone(["session", "read", &namespace]).expect(0).stdout.replace("predecessor: null\n", "");
    fs::write(host.root.join("again.yml"), policy).expect("a policy");
    host.scone(["session", "update", "again.yml"]).expect(0);
    host.says(
        host.gen_qr(),
        3,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: session 'NAMESPACE' was uploaded after CAS last confirmed it
hint: ./scripts/create.rs --account signing   # if that was your run: ends it
",
    );
    host.signing("create", &[]).expect(0);
    host.gen_qr().expect(0);
}

#[test]
fn an_output_that_cannot_be_made() {
    let host = Host::with_account();
    let output = |path: &str| host.signing("gen_qr", &["--no-confirm", "--output", path]);
    host.says(
        output("nowhere/qrcode.svg"),
        3,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: nothing can be written beside output 'nowhere/qrcode.svg': No such file or directory (os error 2)
",
    );
    host.says(
        output(".."),
        3,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: output '..' is not a file name
",
    );
    fs::write(host.root.join("taken.svg"), "").expect("a file");
    host.says(
        output("taken.svg"),
        3,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: output 'taken.svg' exists already
hint: ./scripts/gen_qr.rs --account signing --output another.svg
",
    );
    let directory = host.root.join(format!("state/issuing/{}-1-1", host.known("signing", &["namespace"])));
    fs::create_dir_all(&directory).expect("a directory");
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("permissions");
    host.says(
        output("qrcode.svg"),
        3,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: error: cannot prepare 'ROOT/state/issuing/NAMESPACE-1-1': it must be a directory that only you can open
",
    );
    fs::set_permissions(&directory, Permissions::from_mode(0o700)).expect("permissions");
    fs::write(host.root.join("state/volumes"), "").expect("a file");
    host.says(
        output("qrcode.svg"),
        3,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: cannot make the volume's directory 'ROOT/state/volumes/signing/single_run_1': Not a directory (os error 20)
",
    );
}

#[test]
fn a_start_that_ends_without_a_qr_code() {
    let host = Host::with_account();
    let ends = |how: &str| {
        let deed = format!("[ -n \"$SCONE_HASH\" ] || {{ {how}; }}");
        host.instead_of("scone-run", &deed, || host.gen_qr())
    };
    host.says(
        ends(&FATAL.replace('@', "The FSPF tag is not fresh - suspected replay attack")),
        5,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: the volume was refused: The FSPF tag is not fresh - suspected replay attack
hint: ./scripts/roll_forward.rs --account signing --keep-secret   # if it cannot be put back: codes stay valid
hint: ./scripts/roll_forward.rs --account signing   # and there is no authenticator: new secret, kills the old codes
",
    );
    host.says(
        ends(&FATAL.replace('@', "Failed to establish an encrypted channel to CAS")),
        3,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: CAS cannot be reached: Failed to establish an encrypted channel to CAS
",
    );
    host.says(
        ends(&FATAL.replace('@', "Unexpected enclave measurement")),
        5,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: the program is not the one in the policies: Unexpected enclave measurement
hint: ./scripts/create.rs --account signing   # updates the policies
",
    );
    host.says(
        ends(&FATAL.replace('@', "Attestation failed")),
        5,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: the start was refused: Attestation failed
",
    );
    host.says(
        ends("echo 'otpqr: error: exists' >&2; exit 10"),
        5,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: the QR code was issued already, and is issued only once
hint: ./scripts/add_auth.rs --account signing       # with a code: the same secret for another authenticator
hint: ./scripts/roll_forward.rs --account signing   # without: new secret, kills the old codes
",
    );
    host.says(
        ends("echo 'otpqr: error: OTP_SECRET is not set' >&2; exit 11"),
        1,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: the policy does not fit the program: otpqr: error: OTP_SECRET is not set
",
    );
    host.says(
        ends("echo 'otpqr: error: /out/qrcode.svg exists' >&2; exit 12"),
        3,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: the program cannot write its output: otpqr: error: /out/qrcode.svg exists
",
    );
    host.says(
        ends("exit 125"),
        3,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: the program could not be started: it ended with status 125 and said nothing
",
    );
    host.says(
        ends("exit 0"),
        4,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: the program ended without a QR code: it ended with status 0 and said nothing
hint: ./scripts/gen_qr.rs --account signing   # once more: it says so if the once-marker is taken
",
    );
    host.says(
        ends("kill -9 $$"),
        4,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: the program ended without a QR code: it was ended by a signal
hint: ./scripts/gen_qr.rs --account signing   # once more: it says so if the once-marker is taken
",
    );
    host.says(
        ends(&FATAL.replace('@', "the volume is in use by another program")),
        3,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: another start is running: the volume is in use by another program
",
    );
    let out = "for arg; do case $arg in *:/out) out=${arg%:/out} ;; esac; done";
    host.says(
        ends(&format!("{out}; echo '<svg' >\"$out/qrcode.svg\"; exit 0")),
        4,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: the program started, but left an incomplete QR code: it ended with status 0 and said nothing
hint: ./scripts/gen_qr.rs --account signing   # once more: it says so if the once-marker is taken
",
    );
    let taken = format!("{out}; echo '</svg>' >\"$out/qrcode.svg\"; : >qrcode.svg; exit 0");
    host.says(
        ends(&taken),
        4,
        "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: the QR code waits in 'ROOT/state/issuing/NAMESPACE-1-1/qrcode.svg'; it cannot be delivered to 'qrcode.svg': File exists (os error 17)
",
    );
    // Session 2 needs no marker: the secret is not given up for it.
    let killed = "case $SCONE_CONFIG_ID in *@*) kill -9 $$ ;; esac";
    host.instead_of("scone-run", killed, || {
        let args = ["--account", "signing", "--yes", "--keep-secret", "--otp-file", "-"];
        host.says(
            run_with_input(host.script_command("roll_forward", &args), "123456"),
            4,
            "\
roll_forward: platform 'sim-native' is software only: a rehearsal that protects nobody from root
roll_forward: declaring the new beside the old
roll_forward: switching session 2 to the new volume
roll_forward: starting the confidential program on the new volume
roll_forward: error: the program ended without a QR code: it was ended by a signal
hint: ./scripts/roll_forward.rs --account signing --keep-secret   # once more: it says so if the once-marker is taken
",
        );
    });
}

/// Interrupted when the program has done its work: nothing is lost, and the script says where it is.
#[test]
fn an_interrupted_run_says_what_it_leaves() {
    let host = Host::with_account();
    // It ends only when the interrupted script passes the signal on.
    let interrupts = "trap 'kill $!; exit 0' TERM; kill -INT $PPID; sleep 1000 & wait";
    let starts = format!("[ -n \"$SCONE_HASH\" ] || {{ \"$bin/genuine/$name\" \"$@\"; {interrupts}; }}");
    host.instead_of("scone-run", &starts, || {
        host.says(
            host.gen_qr(),
            130,
            "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: starting the confidential program
gen_qr: error: interrupted; the QR code waits in 'ROOT/state/issuing/NAMESPACE-1-1/qrcode.svg'; run the same command again
",
        );
    });
    assert!(!host.root.join("qrcode.svg").exists());
    fs::write(host.root.join("first-code"), "123456").expect("a code");
    let confirms = format!("case $SCONE_CONFIG_ID in */confirm@*) {interrupts} ;; esac");
    host.instead_of("scone-run", &confirms, || {
        host.says(
            host.signing("gen_qr", &["--confirm-file", "first-code"]),
            130,
            "\
gen_qr: platform 'sim-native' is software only: a rehearsal that protects nobody from root
gen_qr: the QR code of 'SCONE OTP', 'alice' is in 'qrcode.svg'
gen_qr: a first code of the new entry shows that it works; CAS accepts no code twice, so this one is spent
gen_qr: error: interrupted; the QR code was issued, but no code of it was confirmed; the QR code is still in 'qrcode.svg'
hint: ./scripts/add_auth.rs --account signing --output another.svg   # if the entry works after all
hint: ./scripts/roll_forward.rs --account signing   # if it was not scanned
",
        );
    });
    host.scan("qrcode.svg");
}

#[test]
fn a_code_that_is_refused() {
    let host = Host::with_account();
    host.signing("gen_qr", &["--no-confirm", "--output", "first.svg"]).expect(0);
    let account = host.scan("first.svg");
    let code = account.code_at(host.now());
    let wrong = if code == "000000" { "000001" } else { "000000" };
    let words = |words: &str| {
        let deed = format!("case $SCONE_CONFIG_ID in *@*) {} ;; esac", FATAL.replace('@', words));
        host.instead_of("scone-run", &deed, || host.add_auth("123456"))
    };
    host.says(words("A One-time Password was already used within this time-step."), 5, "\
add_auth: platform 'sim-native' is software only: a rehearsal that protects nobody from root
add_auth: checking program and volume
add_auth: starting the confidential program
add_auth: error: that code was used already, by you or somebody else: wait for the next one: A One-time Password was already used within this time-step.
");
    host.says(words("Too many wrong One-time Passwords were given. Please try again in 30 seconds."), 5, "\
add_auth: platform 'sim-native' is software only: a rehearsal that protects nobody from root
add_auth: checking program and volume
add_auth: starting the confidential program
add_auth: error: too many wrong codes were given: Too many wrong One-time Passwords were given. Please try again in 30 seconds.
");

    fs::write(host.root.join("wrong"), wrong).expect("a code");
    let confirm = |output: &str| {
        let args = ["--account", "signing", "--otp-file", "-", "--confirm-file", "wrong", "--output", output];
        run_with_input(host.script_command("add_auth", &args), &account.code_at(host.now()))
    };
    host.says(confirm("second.svg"), 4, "\
add_auth: platform 'sim-native' is software only: a rehearsal that protects nobody from root
add_auth: checking program and volume
add_auth: starting the confidential program
add_auth: the QR code of 'SCONE OTP', 'alice' is in 'second.svg'
add_auth: a first code of the new entry shows that it works; CAS accepts no code twice, so this one is spent
add_auth: error: the QR code was issued, but no code of it was confirmed; the QR code is still in 'second.svg': that code is wrong; check that it is this account's entry and that the authenticator's clock is right: The given One-time Password is invalid. Please try again.
hint: ./scripts/add_auth.rs --account signing --output another.svg   # if the entry works after all
hint: ./scripts/roll_forward.rs --account signing   # if it was not scanned
");
    host.wait(60);
    let unfit = "case $SCONE_CONFIG_ID in */confirm@*) echo 'otpqr: error: no such option' >&2; exit 2 ;; esac";
    host.instead_of("scone-run", unfit, || host.says(confirm("third.svg"), 4, "\
add_auth: platform 'sim-native' is software only: a rehearsal that protects nobody from root
add_auth: checking program and volume
add_auth: starting the confidential program
add_auth: the QR code of 'SCONE OTP', 'alice' is in 'third.svg'
add_auth: a first code of the new entry shows that it works; CAS accepts no code twice, so this one is spent
add_auth: error: the QR code was issued, but no code of it was confirmed; the QR code is still in 'third.svg': otpqr: error: no such option
hint: ./scripts/add_auth.rs --account signing --output another.svg   # if the entry works after all
hint: ./scripts/roll_forward.rs --account signing   # if it was not scanned
"));

    // The code is right, and the picture cannot be destroyed.
    host.wait(60);
    let path = host.root.join("path");
    fs::create_dir(&path).expect("a directory");
    symlink(which::which("false").expect("false"), path.join("shred")).expect("a link");
    fs::write(host.root.join("right"), account.code_at(host.now() + 30)).expect("a code");
    let args = ["--account", "signing", "--otp-file", "-", "--confirm-file", "right", "--output", "fourth.svg"];
    let mut add_auth = host.script_command("add_auth", &args);
    let found = std::env::var_os("PATH").expect("PATH");
    add_auth
        .env("PATH", std::env::join_paths(std::iter::once(path).chain(std::env::split_paths(&found))).expect("PATH"));
    host.says(
        run_with_input(add_auth, &account.code_at(host.now())),
        4,
        "\
add_auth: platform 'sim-native' is software only: a rehearsal that protects nobody from root
add_auth: checking program and volume
add_auth: starting the confidential program
add_auth: the QR code of 'SCONE OTP', 'alice' is in 'fourth.svg'
add_auth: a first code of the new entry shows that it works; CAS accepts no code twice, so this one is spent
add_auth: error: the QR code in 'fourth.svg' cannot be destroyed: it ended with status 1 and said nothing
",
    );
}

/// A host that begins with nothing but a script and gets one thing after the other: the script always says what is missing next.
#[test]
fn a_script_on_another_host_says_what_is_missing() {
    let host = Host::new();
    let (desk, path) = (host.root.join("runbook/pasted"), host.root.join("path"));
    for directory in [&desk, &path] {
        fs::create_dir_all(directory).expect("a directory");
    }
    // Hints are pasted in the root.
    for place in ["create.rs", "runbook/pasted/create.rs"] {
        symlink(host.root.join("scripts/create"), host.root.join(place)).expect("a link");
    }
    let script = |name: &str, root: Option<&Path>| {
        let mut command = host.script_command(name, &[]);
        command.current_dir(&desk).env("PATH", &path).env_remove("OTPQR_ROOT").env("RUST_SCRIPT_BASE_PATH", &desk);
        command.envs(root.map(|root| ("OTPQR_ROOT", root)));
        command
    };
    let tool = |name: &str, answers: &str| {
        fs::write(host.root.join(name), format!("#!/bin/sh\n{answers}\n")).expect("a tool");
        fs::set_permissions(host.root.join(name), Permissions::from_mode(0o755)).expect("permissions");
        copy(&host.root.join(name), &path.join(name));
    };
    let root = Some(host.root.as_path());

    // OTPQR_ROOT
    host.says(
        run(script("create", None)),
        3,
        "\
create: error: there is no 'templates' in 'ROOT/runbook/pasted/..' or 'ROOT/runbook/pasted'; '--root' or OTPQR_ROOT says where the bundle is
",
    );
    let open = |mode| fs::set_permissions(&host.root, Permissions::from_mode(mode)).expect("permissions");
    open(0o777);
    let mut create = script("create", None);
    create.current_dir(&host.root);
    host.says(
        run(create),
        3,
        "\
create: error: the current directory 'ROOT' is not yours alone
hint: ./runbook/pasted/create.rs --root .   # if you trust it
",
    );
    open(0o755);
    // scone, docker
    host.says(
        run(script("create", root)),
        3,
        "\
create: error: 'scone', which platform 'scone' needs, was not found
hint: docker pull registry.scontain.com/sconecuratedimages/sconecli   # or name the program: --scone PATH
hint: ./create.rs --platform sim   # software only: a rehearsal
",
    );
    let scone = "case \"$1 $2\" in '--version ') echo scone 6.0.7 ;; 'cas show-identification') echo key ;; session*) printf %064d\\\\n 0 ;; esac";
    tool("scone", scone);
    host.says(
        run(script("create", root)),
        3,
        "\
create: error: 'docker', which platform 'scone' needs, was not found
hint: apt-get install docker.io
",
    );
    // The image
    tool("docker", "[ $1 != info ] || { echo '{}'; exit; }; echo 'Error: No such image: otpqr:scone' >&2; exit 1");
    host.says(
        run(script("create", root)),
        3,
        "\
create: error: docker has no image 'otpqr:scone': Error: No such image: otpqr:scone
hint: (cd 'ROOT' && make scone SIGNING_KEY=../key.pem)
",
    );
    let docker = "case $1 in info) echo {} ;; image) echo sha256:1 ;; *) printf %064d\\\\n 0 ;; esac";
    tool("docker", docker);
    // The address of CAS
    host.says(
        run(script("create", root)),
        2,
        "\
create: measuring image 'otpqr:scone'
create: attesting CAS
create: error: on platform 'scone' the CAS must be named: '--cas ADDRESS'
",
    );
    let mut create = script("create", root);
    create.args(["--cas", "cas.example.com"]);
    tool("docker", "echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock.' >&2; exit 1");
    host.says(
        run(create),
        3,
        "\
create: error: docker does not answer: Cannot connect to the Docker daemon at unix:///var/run/docker.sock.
hint: docker version   # says whether the engine runs, and whether you may use it
",
    );
    tool("docker", docker);
    let mut create = script("create", root);
    create.args(["--cas", "cas.example.com"]);
    assert_eq!(run(create).code, Some(0));
    // The identity of the command line, which attested the CAS
    tool("scone", &scone.replace("echo key", "echo 'Error: unknown CAS' >&2; exit 1"));
    let mut gen_qr = script("gen_qr", root);
    gen_qr.arg("--no-confirm");
    host.says(
        run(gen_qr),
        3,
        "\
gen_qr: error: 'scone' does not know the CAS at 'cas.example.com': Error: unknown CAS
hint: ./create.rs   # attests it
",
    );
}

#[test]
fn a_program_that_cannot_be_protected() {
    let host = Host::with_account();
    let image = host.root.join("image");
    fs::create_dir(&image).expect("a directory");
    image::shell(&image, "");
    let protect = |options: &[&str]| host.signing("protect", &[&["shell"], options].concat());
    let image = ["--image", "image", "--command", "/bin/sh /app/service.sh"];
    let step = "protect: platform 'sim-native' is software only: a rehearsal that protects nobody from root\n";
    let refused = |options: &[&str], code, why: &str| host.says(protect(options), code, &format!("{step}{why}\n"));
    refused(&[], 2, "protect: error: program 'shell' is not known yet: give '--image IMAGE'");
    refused(&image[..2], 3, "protect: error: image 'image' names no program: give '--command'");
    refused(&["--image", "no-such"], 3, "protect: error: the image directory 'ROOT/no-such' is not there");
    let with = |options: &[&'static str]| [&image[..2], options].concat();
    refused(&with(&["--command", "python3 x.py"]), 3, "protect: error: there is no program 'python3' in image 'image'");
    refused(
        &with(&["--command", "/bin/sh @@2"]),
        2,
        "protect: error: the command's places for arguments must be whole words, '@@1' to '@@N', each once",
    );
    refused(
        &with(&["--command", "/bin/sh @@1", "--args", "2"]),
        2,
        "protect: error: '--args' and '@@N' in '--command' say the same: give one of them",
    );
    refused(
        &with(&["--command", "/bin/sh", "--open", "/bin/sh @@1"]),
        2,
        "protect: error: what '--open' starts takes no arguments: '@@N' has no place in it",
    );
    refused(
        &with(&["--command", "/bin/sh", "--mount-point", "/usr/local"]),
        2,
        "protect: error: programs are looked for in '/usr/local': nothing of the host's can be mounted there",
    );
    refused(
        &with(&["--command", "/bin/sh", "--env", "HOME=$HOME"]),
        2,
        "protect: error: '$HOME' has a '$' or a control character in it, which no policy can carry over",
    );
    refused(
        &with(&["--command", "/bin/sh", "--volume", "/data", "--volume", "/data/more"]),
        2,
        "protect: error: '/data/more' cannot be a volume or mount point beside another that it lies in, or that is the same",
    );
    refused(
        &with(&["--command", "/bin/sh", "--secret", "KEY=no-such"]),
        3,
        "protect: error: secret 'KEY' cannot be read from 'no-such': No such file or directory (os error 2)",
    );
    fs::write(host.root.join("empty"), "").expect("a file");
    refused(
        &with(&["--command", "/bin/sh", "--secret", "KEY=empty"]),
        2,
        "protect: error: secret 'KEY' in 'empty' is empty, or longer than 4096 bytes",
    );
    fs::write(host.root.join("lines"), "two\nlines\n").expect("a file");
    refused(
        &with(&["--command", "/bin/sh", "--secret", "KEY=lines"]),
        2,
        "protect: error: secret 'KEY' in 'lines' is no line of printable ASCII without '$': 'base64:lines' has the program find it in base64",
    );

    let args = [&image[..], &["--args", "1", "--secret", "KEY=base64:lines"]].concat();
    protect(&args).expect(0);
    refused(
        &["--secret", "KEY=drawn"],
        2,
        "protect: error: secret 'KEY' comes from elsewhere already; '--remove' gives the program up, with all its secrets",
    );
    refused(
        &["--volume", "/data"],
        3,
        "\
protect: making image 'image' ready
protect: measuring the program
protect: error: secret 'KEY' of program 'shell' came from a file and is in CAS alone: give it again
hint: ./scripts/protect.rs --account signing shell --secret KEY=base64:FILE",
    );
    host.says(
        protect(&["--remove"]),
        2,
        "protect: error: this cannot be undone once it is done, and there is no terminal to ask on: give '--yes'\n",
    );
    protect(&[&image[..], &["--secret", "KEY=base64:lines", "--starts", "2"]].concat()).expect(0);
    refused(
        &["--starts", "3", "--counts-itself"],
        2,
        "protect: error: a gate counts the starts of 'shell' already, and goes on: leave out '--counts-itself'",
    );
    let begun = host.instead_of("scone", &upload_fails(2), || host.signing("roll_forward", &["--yes"]));
    assert_eq!(begun.code, Some(4), "{begun:?}");
    refused(
        &[],
        3,
        "\
protect: error: a roll-forward of account 'signing' was begun but not finished
hint: ./scripts/roll_forward.rs --account signing",
    );
}

#[test]
fn a_program_that_cannot_be_started() {
    let host = Host::with_account();
    let image = host.root.join("image");
    fs::create_dir(&image).expect("a directory");
    image::shell(&image, "exit $1");
    host.gen_qr().expect(0);
    let alice = host.scan(
        &fs::read_dir(&host.root)
            .expect("the root")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .find(|name| name.ends_with(".svg"))
            .expect("the QR code"),
    );
    let start = |options: &[&str], arguments: &[&str]| {
        let code = alice.code_at(host.now());
        let command = ["--account", "signing", "shell", "--otp-file", "-"];
        let outcome =
            run_with_input(host.script_command("start", &[&command, options, &["--"], arguments].concat()), &code);
        host.wait(30);
        outcome
    };
    let step = "start: platform 'sim-native' is software only: a rehearsal that protects nobody from root\n";
    let warning = "[SCONE|WARN] scone-run: Application runs in SGX simulation mode. Its memory can be read by the untrusted system! This is not secure! (scone-sim: software only)\n";
    let refused = |options: &[&str], arguments: &[&str], code, why: &str| {
        host.says(start(options, arguments), code, &format!("{step}{why}\n"));
    };
    refused(
        &[],
        &["0"],
        3,
        "start: error: account 'signing' has no program 'shell'\nhint: ./scripts/protect.rs --account signing shell --image IMAGE",
    );
    let command = ["--image", "image", "--command", "/bin/sh /app/service.sh @@1", "--volume", "/data"];
    let command = [&command[..], &["--mount-point", "/in"]].concat();
    host.signing("protect", &[&["shell"], &command[..]].concat()).expect(0);
    // A roll-forward
    let begun = host.instead_of("scone", &upload_fails(2), || host.signing("roll_forward", &["--yes"]));
    assert_eq!(begun.code, Some(4), "{begun:?}");
    refused(
        &[],
        &["0"],
        3,
        "\
start: error: a roll-forward of account 'signing' was begun but not finished: old codes may still start its programs
hint: ./scripts/roll_forward.rs --account signing",
    );
    host.signing("roll_forward", &["--undo"]).expect(0);
    refused(
        &[],
        &[],
        2,
        "start: error: the policy of program 'shell' takes 1 of its caller's arguments, and 0 were given",
    );
    let publish = ["--publish", "80:8080"];
    refused(
        &publish,
        &["0"],
        2,
        "start: error: on platform 'sim-native' the program is on this host's network: '80:8080' cannot move its port",
    );
    let mount = |mount: &'static str| ["--mount", mount];
    refused(
        &mount("type=bind,src=image,dst=/app"),
        &["0"],
        2,
        "\
start: error: nothing of this host's may be mounted at '/app': it is no '--mount-point' that program 'shell' was protected with",
    );
    refused(
        &mount("type=bind,src=no-such,dst=/in"),
        &["0"],
        3,
        "start: error: 'no-such' is no directory that can be mounted",
    );
    refused(
        &mount("type=bind,src=image,dst=/in,readonly"),
        &["0"],
        2,
        "start: error: on platform 'sim-native' a mount cannot be read-only: leave 'readonly' out",
    );
    host.says(
        host.signing("start", &["shell", "--open"]),
        2,
        &format!("{step}start: error: program 'shell' has nothing that starts without a code\n"),
    );
    // The log
    let detach = ["--detach", "--log", "service.log"];
    File::create(host.root.join("service.log")).expect("a log");
    fs::set_permissions(host.root.join("service.log"), Permissions::from_mode(0o644)).expect("permissions");
    refused(&detach, &["0"], 3, "start: error: the log 'service.log' must be a file that only you can read");
    fs::remove_file(host.root.join("service.log")).expect("deletion");
    refused(
        &["--detach", "--log", "no-such/log"],
        &["0"],
        3,
        "start: error: the log 'no-such/log' cannot be used: No such file or directory (os error 2)",
    );
    refused(
        &detach,
        &["7"],
        1,
        "\
start: waiting whether it goes on running
start: error: the program ended at once, with status 7: see the log 'service.log'",
    );
    // The volume
    let volume = "state/volumes/signing/programs/shell/volume_0_1";
    let removed = host.without(volume, || start(&[], &["0"]));
    let found = removed.stderr.replace(&first_manifest(&host.root.join(volume)), "MANIFEST");
    host.says(
        Outcome { stderr: found, ..removed },
        5,
        &format!(
            "\
{step}{warning}start: error: a volume was refused: Opening volume volume_0_1 failed: file system protection file was removed: MANIFEST (volume /data)
hint: ./scripts/protect.rs --account signing shell --new-volumes   # if it cannot be put back: what was in it is lost
"
        ),
    );
    // The image
    let service = host.root.join("image/app/service.sh");
    fs::write(&service, "exit 0").expect("a change");
    refused(
        &[],
        &["0"],
        3,
        "\
start: error: what was measured of image 'image', for program 'shell', is not there any more
hint: ./scripts/protect.rs --account signing shell   # updates the policies",
    );
    fs::write(&service, "exit $1").expect("the program");
    // A run of protect that was cut off
    // One that CAS refused changed nothing.
    let no = host.instead_of("scone", &upload_fails(1), || host.signing("protect", &["shell", "--env", "A=b"]));
    assert_eq!(no.code, Some(5), "{no:?}");
    start(&[], &["0"]).expect(0);
    let open = ["shell", "--open", "/bin/sh /app/service.sh 0", "--env", "A=b"];
    let cut_off = host.instead_of("scone", &upload_fails(2), || host.signing("protect", &open));
    assert_ne!(cut_off.code, Some(0), "{cut_off:?}");
    refused(
        &[],
        &["0"],
        3,
        "\
start: error: CAS may not hold what the state says of program 'shell': a run of 'protect' was cut off
hint: ./scripts/protect.rs --account signing shell   # goes on",
    );
}

#[test]
fn a_grant_that_cannot_be_made_and_a_start_that_nobody_granted() {
    let host = Host::with_account();
    let image = host.root.join("image");
    fs::create_dir(&image).expect("a directory");
    image::shell(&image, "");
    fs::write(host.root.join("code"), "123456").expect("a file");
    let refused = |script: &str, account: &str, options: &[&str], code, why: &str| {
        let step =
            format!("{script}: platform 'sim-native' is software only: a rehearsal that protects nobody from root\n");
        let outcome = host.script(script, &[&["--account", account, "shell"], options].concat());
        host.says(outcome, code, &format!("{step}{why}\n"));
    };
    let image = ["--image", "image", "--command", "/bin/sh /app/service.sh"];
    refused(
        "protect",
        "signing",
        &[&image[..], &["--counts-itself"]].concat(),
        2,
        "protect: error: nothing says how often 'shell' may be started: give '--starts N' or '--needs-approval ACCOUNT'",
    );
    refused(
        "protect",
        "signing",
        &[&image[..], &["--void-grants"]].concat(),
        2,
        "protect: error: nobody grants starts of 'shell': there is nothing that '--void-grants' could void",
    );
    refused(
        "protect",
        "signing",
        &[&image[..], &["--needs-approval", "signing"]].concat(),
        2,
        "protect: error: nobody approves their own start: name another account than 'signing', or give '--without-code'",
    );
    refused(
        "protect",
        "signing",
        &[&image[..], &["--needs-approval", "bob"]].concat(),
        3,
        "\
protect: error: there is no account 'bob' to approve anything
hint: ./scripts/create.rs --account bob",
    );
    host.signing("protect", &[&["shell"], &image[..]].concat()).expect(0);
    host.script("create", &["--platform", "sim-native", "--account", "bob"]).expect(0);
    let grant = ["--of", "signing", "--starts", "1", "--for", "10m", "--otp-file", "code"];
    refused(
        "approve",
        "bob",
        &grant,
        3,
        "\
approve: error: a start of 'shell' takes no grant: it was not protected with '--needs-approval'
hint: ./scripts/protect.rs --account signing shell --needs-approval ACCOUNT",
    );
    host.signing("protect", &["shell", "--needs-approval", "bob"]).expect(0);
    refused("approve", "signing", &grant, 3, "approve: error: account 'signing' is not asked for starts of 'shell'");
    host.script("create", &["--platform", "sim-native", "--account", "carol"]).expect(0);
    refused(
        "approve",
        "carol",
        &grant,
        3,
        "\
approve: error: account 'carol' is not asked for starts of 'shell'
hint: ./scripts/protect.rs --account signing shell --needs-approval bob --needs-approval carol   # asks it, too",
    );
    refused(
        "approve",
        "bob",
        &[&grant[..], &["--", "x"]].concat(),
        2,
        "approve: error: a gate stands before 'shell', which does not see its arguments: leave them out, the program alone is granted",
    );
    refused(
        "start",
        "signing",
        &["--otp-file", "code"],
        5,
        "\
start: asking whether a start of 'shell' is granted
start: error: no start of 'shell' is granted
hint: ./scripts/approve.rs --account bob shell --of signing --starts 1 --for 10m",
    );
    host.signing("protect", &["shell", "--needs-approval", "signing", "--without-code"]).expect(0);
    let outcome = host.signing("start", &["shell", "--otp-file", "code"]);
    host.says(outcome, 2, "start: error: what was granted starts it, without a code: leave out '--otp-file'\n");
}

/// Here CAS's clock is another than the gate's, which is the host's.
#[test]
fn a_start_that_a_gate_does_not_grant() {
    let host = Host::with_account();
    let image = host.root.join("image");
    fs::create_dir(&image).expect("a directory");
    image::shell(&image, "");
    host.gen_qr().expect(0);
    let svg = fs::read_dir(&host.root).expect("the root").map(|entry| entry.expect("an entry").file_name());
    let svg = svg.map(|name| name.into_string().expect("a name")).find(|name| name.ends_with(".svg"));
    let alice = host.scan(&svg.expect("the QR code"));
    let command = ["shell", "--image", "image", "--command", "/bin/sh /app/service.sh", "--starts", "1"];
    host.signing("protect", &command).expect(0);
    let start = || {
        let start = host.script_command("start", &["--account", "signing", "shell", "--otp-file", "-"]);
        let outcome = run_with_input(start, &alice.code_at(host.now()));
        host.wait(30);
        outcome
    };
    let step = "start: platform 'sim-native' is software only: a rehearsal that protects nobody from root\n";
    let warning = "[SCONE|WARN] scone-run: Application runs in SGX simulation mode. Its memory can be read by the untrusted system! This is not secure! (scone-sim: software only)\n";
    host.says(
        start(),
        4,
        &format!(
            "\
{step}start: gate: start 1 of 1
{warning}start: error: a start was taken, and its code not accepted: The given One-time Password is invalid. Please try again.
"
        ),
    );
    host.says(
        start(),
        5,
        &format!(
            "\
{step}start: error: no start is granted: the one start is taken
hint: ./scripts/protect.rs --account signing shell --starts 2   # grants one more
"
        ),
    );
}

/// The name of the manifest in a sealed volume.
fn first_manifest(volume: &Path) -> String {
    let entries = fs::read_dir(volume).expect("the volume").map(|entry| entry.expect("an entry").file_name());
    let names = entries.map(|name| name.into_string().expect("a name"));
    names.into_iter().find(|name| name.ends_with(".manifest")).expect("a manifest")
}

#[test]
fn the_state_of_another_user() {
    if !is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    let bundle = Bundle::of_test(Platform::SimNative, User::Ordinary);
    bundle.install(scripts!());
    fs::create_dir(bundle.root.join("state")).expect("a directory");
    fs::set_permissions(bundle.root.join("state"), Permissions::from_mode(0o700)).expect("permissions");
    let refused = bundle.gen_qr(&[]).expect(3);
    let expected = "\
gen_qr: error: 'state/default.yml' cannot be looked for in 'ROOT': Permission denied (os error 13)
";
    assert_eq!(refused.stderr.replace(&bundle.root.display().to_string(), "ROOT"), expected);
}

#[test]
fn no_message_is_missing_here() {
    let catalogue = fs::read_to_string(repository().join(file!())).expect("this file");
    let (catalogue, _) = catalogue.split_once("\n// --- Exempt").expect("the catalogue, then the exemptions");
    let lines: Vec<&str> = catalogue.lines().collect();
    let is_here = |message: &str| lines.iter().any(|line| fits(line, message));
    let mut found = BTreeSet::new();
    for directory in ["scripts", "scripts/bundle/src"] {
        for entry in fs::read_dir(repository().join(directory)).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                found.extend(messages(&fs::read_to_string(path).expect("a source")));
            }
        }
    }
    assert!(found.len() > 60, "{found:#?}");
    let exempt: BTreeSet<_> = EXEMPT.iter().map(|(message, _)| (*message).to_owned()).collect();
    let missing: Vec<_> = found.iter().filter(|message| !is_here(message) && !exempt.contains(*message)).collect();
    assert!(missing.is_empty(), "neither in the catalogue nor exempt: {missing:#?}");
    let stale: Vec<_> = exempt.iter().filter(|message| !found.contains(*message) || is_here(message)).collect();
    assert!(stale.is_empty(), "exempt without need: {stale:#?}");
}

/// Whether a line holds a message, in which anything may take the place of what is in braces.
fn fits(mut line: &str, message: &str) -> bool {
    message.split('{').enumerate().all(|(number, part)| {
        let fixed = if number == 0 { part } else { part.split_once('}').map_or("", |(_, fixed)| fixed) };
        match line.find(fixed) {
            Some(at) => {
                line = &line[at + fixed.len()..];
                true
            }
            None => false,
        }
    })
}

/// The texts of errors and hints in a source: those of errors are in `#[error("…")]`, a hint gives its reason after a `#`.
fn messages(source: &str) -> BTreeSet<String> {
    // Of a long one rustfmt puts the text on a line of its own.
    let errors =
        source.split("#[error(").skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
    // A text that only passes another message on is in the catalogue under that message.
    let errors =
        errors.filter(|message| !(message.starts_with('{') && message.ends_with('}') && !message.contains(' ')));
    let code = source.lines().filter(|line| !line.trim().starts_with("//"));
    let hints = code.flat_map(|line| line.split('"')).filter(|text| text.contains("   # "));
    errors.chain(hints).map(str::to_owned).collect()
}

// --- Exempt: what no test can bring about here, and why.
const EXEMPT: &[(&str, &str)] = &[
    ("template '{template}' cannot be rendered: {cause}", "tests/doctor.rs"),
    (" --keep-secret   # without the authenticator: no --keep-secret", "tests/doctor.rs"),
    ("             next: {next}   # its entry will be '{issuer}', '{label}'{}", "no error; tests/flow.rs"),
    ("./scripts/create.rs --platform sim-native --account native   # without docker", "tests/scone_platform.rs"),
    ("./scripts/create.rs --platform sim{option}   # software only: a rehearsal", "tests/scone_platform.rs"),
    (
        "docker is rootless here: its containers are on a network of their own and cannot reach the simulated CAS",
        "tests/engines.rs",
    ),
    ("./scripts/create.rs --platform sim --account container   # runs in containers instead", "tests/host.rs"),
    ("CAS itself cannot work: {reason}", "tests/host.rs"),
    (
        "nothing can be made in '{directory}' for a container: {cause}",
        "a file system without FIFOs keeps no permissions either",
    ),
    ("cannot hand over to the container what it is to run: {0}", "the FIFO is opened where it was made"),
    ("'{directory}' cannot be made private: its file system ignores permissions; choose another one", "tests/host.rs"),
    ("the path {place:?} cannot be used: it is not UTF-8 or has control characters; move the bundle", "tests/host.rs"),
    ("'{tool}' cannot be executed: the file system it is on is mounted 'noexec'", "tests/host.rs"),
    ("df -h {}   # what is full", "tests/host.rs"),
    ("the program is not signed for production: {reason}", "tests/scone_platform/contract.yml"),
    ("the 'scone' found does not say which version it is: {reason}", "tests/scone_platform/contract.yml"),
    (
        "'{directory}' is no directory of its own for the identity of SCONE's command line: set SCONE_CLI_CONFIG",
        "tests/scone_platform.rs",
    ),
    ("ls -l /dev/sgx_enclave   # is it there, and yours to use?", "tests/scone_platform/contract.yml"),
    (
        "docker network ls   # LAS is in one of them? create.rs --network names it. Else: SCONE_LAS_ADDR",
        "tests/scone_platform/contract.yml",
    ),
    ("sudo sysctl --write {name}={allows}   # allows user namespaces", "tests/host.rs"),
    ("tail -n 3 {log}   # says why", "tests/host.rs"),
    ("this host cannot run the program: {reason}", "tests/host.rs"),
    ("whether the grant was noted is not known: {reason}", "tests/grants.rs"),
    ("of the {starts} starts of '{program}' none is left", "tests/grants.rs"),
    ("'{argument}' is no file in what is mounted there", "tests/grants.rs"),
    ("accounts '{account}' and '{owner}' are not with the same CAS", "tests/scone_platform/programs.rs"),
    (
        "account '{account}' is not with this account's CAS: it cannot approve anything here",
        "tests/scone_platform/programs.rs",
    ),
    (
        "the gate cannot grant a start: {reason}",
        "what it lacks comes from the policy, and the runtime sees first to its volume",
    ),
    ("uname -r   # Linux 5.11 or newer is needed, with seccomp", "tests/host.rs"),
    ("./scripts/{}.rs --root .   # if you trust it", "it is above, as a script says it that was pasted elsewhere"),
    ("{options}   # {besides}if Intel says the same: these words can be forged", "tests/scone_platform.rs"),
    ("{options}   # for tests: such an enclave can be read", "tests/scone_platform.rs"),
    ("{}   # signs ours for production; another: protect.rs --signing-key", "tests/scone_platform/contract.yml"),
    ("{}   # signs it for production", "tests/scone_platform/contract.yml"),
    ("there is no program '{path}', which {said_by} names as SCONE's command line", "tests/scone_platform.rs"),
    ("'{directory}', for the identity of SCONE's command line, cannot be made: {cause}", "the user's home directory"),
    ("the home directory is not known: set HOME or SCONE_CLI_CONFIG", "the shell sets it"),
    ("{options}   # once the program is signed for production", "tests/scone_platform.rs"),
    ("   # once it is scanned", "tests/doctor.rs"),
    ("   # writes a file instead", "tests/terminal.rs"),
    ("this program was compiled by rust-script but not started by it, so it may be out of date", "tests/fresh.rs"),
    ("cannot compare the program with its source '{script}': {cause}", "rust-script has just read it"),
    ("cannot compare the program with the library in '{library}': '{source_file}': {cause}", "tests/fresh.rs"),
    ("compiled anew, the program still differs from '{script}' or the library in '{library}'", "tests/fresh.rs"),
    ("cannot start rust-script to compile the program anew: {0}", "rust-script started it"),
    ("LC_ALL=C.UTF-8 {again}   # if this is a block: \\u{2584}", "tests/terminal.rs"),
    ("stty cols {columns} rows {rows}   # if it is at least so large", "tests/terminal.rs"),
    ("it cannot be drawn", "tests/terminal.rs"),
    ("the terminal cannot show the QR code: TERM is '{term}'", "tests/terminal.rs"),
    ("the terminal cannot show the QR code: it does not say how large it is: {cause}", "it is a terminal"),
    ("the terminal cannot show the QR code: that takes a UTF-8 locale, and {locale}", "tests/terminal.rs"),
    ("the terminal cannot show the QR code: that takes {needed}, and it reports {found}", "tests/terminal.rs"),
    ("'{volumes}' cannot be moved: {cause}", "it is moved within a directory of ours"),
    ("cannot handle Ctrl-C: {0}", "the kernel would have to refuse a signal handler"),
    ("cannot read '{file}': {cause}", "the file was just seen to be whole"),
    ("the report cannot be written as JSON: {0}", "it consists of strings"),
    ("no answer: {0}", "tests/terminal.rs"),
    ("no code was entered", "tests/terminal.rs"),
    ("no code was accepted", "the last try says why it was refused"),
    ("cannot draw a random name for the namespace: {0}", "a host without /dev/urandom"),
    ("not confirmed; nothing was changed", "tests/terminal.rs"),
    (
        "that code is wrong, or it changed before CAS saw it: enter the next one as soon as it appears: {reason}",
        "a time step would have to end while the program starts",
    ),
    ("the program was not started", "no code is presented without a start"),
    ("the state's lock cannot be passed on: {0}", "the kernel would have to refuse a flag of an open file"),
    ("the state cannot be expressed in YAML: {0}", "it consists of strings and numbers"),
    ("the state of account '{name}' vanished", "between two system calls"),
    (
        "a container that was left running may still write to '{directory}': wait until it has ended",
        "tests/scone_platform.rs",
    ),
    ("'sed', which masks the code in the log, was not found", "a host without sed"),
    ("a volume is in use: {reason}", "between the look at it and the start"),
    (
        "a volume of program '{program}' is in use: it runs already, or what a killed run of 'start' left still does",
        "tests/programs.rs",
    ),
    ("another start of '{program}' as a service is under way", "tests/programs.rs"),
    ("the program ran, and was broken off: {reason}", "tests/programs.rs"),
    ("cannot make the directory '{directory}': {cause}", "it is made below state/, which was just written to"),
    ("docker did not describe image '{image}': {reason}", "docker has just said its ID"),
    ("image '{image}' cannot be made ready: {reason}", "the engine would have to refuse to make a container"),
    ("image '{image}' has '{path}' already, which has to be ours", "tests/programs.rs"),
    (
        "image '{image}' has the volume '{path}', which would be an unprotected directory of docker's: '--volume {path}' makes a sealed one",
        "tests/programs.rs",
    ),
    ("image '{image}' has {what}, which no policy can carry over: make one without", "tests/programs.rs"),
    (" {name}   # measures the new one", "tests/programs.rs"),
    ("program '{program}' cannot be stopped: {reason}", "the engine, or the kernel, would have to refuse"),
    ("the program's streams broke: {0}", "the kernel would have to refuse to wait for them"),
    ("the program's streams cannot be made: {0}", "a process without room for another file"),
    (
        "on platform '{platform}' the whole image is measured, and nothing is converted: leave '{option}' out",
        "tests/scone_platform/programs.rs",
    ),
    (
        "'{program}' is a SCONE program already and is not converted: leave '--fs-dir', '--sconify-with' and '--signing-key' out",
        "tests/scone_platform/programs.rs",
    ),
    (
        "'{path}' cannot be passed to SCONE's tool: a path must be of letters, digits and '/._+@-' alone",
        "tests/scone_platform/programs.rs",
    ),
    (
        "'{program}' is not an ELF program: on platform 'scone' the command begins with its interpreter",
        "tests/scone_platform/programs.rs",
    ),
    (
        "'{program}' is static and was not built for SCONE: SCONE's tool converts no static program",
        "tests/scone_platform/programs.rs",
    ),
    (
        "'{program}' is not position-independent: SCONE may pass over the files that are measured with it",
        "tests/scone_platform/programs.rs",
    ),
    ("'{program}' cannot be looked at: {cause}", "tests/scone_platform/programs.rs"),
    (
        "'{program}' has to be converted for SCONE, and CAS gives nothing to what is not signed: give '--signing-key FILE'",
        "tests/scone_platform/programs.rs",
    ),
    ("the signing key '{file}' cannot be used: {cause}", "tests/scone_platform/programs.rs"),
    ("openssl genrsa -3 -out signing-key.pem 3072   # makes one; keep it secret", "tests/scone_platform/programs.rs"),
    ("image '{image}' was not converted by '{with}': {reason}", "tests/scone_platform/programs.rs"),
    ("'--open' starts '{open}', but the program that is measured is '{program}'", "tests/scone_platform/programs.rs"),
    ("docker pull {with}   # if it is not here: SCONE grants access", "tests/scone_platform/programs.rs"),
    (
        "scone cargo build --release --target=x86_64-scone-linux-musl   # as in Dockerfile.otpqr",
        "tests/scone_platform/programs.rs",
    ),
];
