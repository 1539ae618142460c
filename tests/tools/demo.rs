//! `make demo`: the whole flow in its own bundle, each step with the command a user would type, its answer, and why that is
//! right. Nothing is faked, and every answer is checked: a wrong one ends the demonstration with an error.

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, ExitCode};

use bundle::interrupt;
use clap::{Parser, ValueEnum};

use support::attacker::{Line, OtherImage, delete_files, holds_a_file, put_back};
use support::image::{self, Tag};
use support::phone::{self, Account};
use support::program::service_by_hand;
use support::{Bundle, ByHand, Outcome, Platform, User, copy, repository, run, run_with_input};

#[derive(Parser)]
struct Args {
    #[arg(long, value_enum, default_value = "sim")]
    platform: PlatformName,
}

#[derive(Clone, Copy, ValueEnum)]
enum PlatformName {
    Sim,
    SimNative,
}

const INTERRUPTED: &str = "interrupted; everything is cleaned up";

/// Why the demonstration ended early.
struct Stopped(String);

type Step<T = ()> = Result<T, Stopped>;

fn main() -> ExitCode {
    let platform = match Args::parse().platform {
        PlatformName::Sim => Platform::Sim,
        PlatformName::SimNative => Platform::SimNative,
    };
    // The children get the signal from the terminal; the bundle is cleaned up when the step returns.
    if let Err(cause) = interrupt::handle() {
        eprintln!("demo: error: cannot handle Ctrl-C: {cause}");
        return ExitCode::FAILURE;
    }
    match demonstrate(platform) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stopped(why)) => {
            eprintln!("\ndemo: error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate(platform: Platform) -> Step {
    let demo = Demo { bundle: Bundle::new("bundle", platform, User::Caller, false) };
    let root = demo.bundle.root.display();
    demo.heading("1. Set-up");
    match platform {
        Platform::Sim => say("Programs run in containers of this host's Docker Engine (--platform sim)."),
        Platform::SimNative => {
            say(
                "No Docker Engine: programs run on this host, in a user and mount namespace of their own (--platform sim-native).",
            );
        }
    }
    say(&format!(
        "State, simulator and output are the demonstration's own and are removed at its end: OTPQR_ROOT='{root}'"
    ));
    say(
        "The simulator is software only: it protects nobody from root. The scripts and policies are the same on SCONE.",
    );

    demo.create()?;
    let copy_before_marker = demo.copy_before_marker()?;
    let first = demo.issue_once()?;
    demo.attack_the_volume(&copy_before_marker)?;
    demo.attack_the_program()?;
    demo.attack_while_running()?;
    demo.add_authenticator(&first)?;
    demo.protect_a_signer(&first)?;
    demo.roll_forward(&first)?;
    demo.bundle_is_gone()
}

struct Demo {
    bundle: Bundle,
}

impl Demo {
    fn create(&self) -> Step {
        self.heading("2. Create the account");
        let platform = ["--platform", self.bundle.platform.name()];
        let created = self.script("create", &platform)?;
        self.right(
            &created,
            0,
            "created",
            "CAS was attested and its key pinned, the program measured, the policies uploaded. CAS drew the secret.",
        )?;
        let hash = self.bundle.known("default", &["otpqr_hash"]);
        let again = self.script("create", &platform)?;
        self.right(&again, 0, "already created", "CAS holds exactly these policies; nothing was uploaded.")?;
        self.must(hash == self.bundle.known("default", &["otpqr_hash"]), "the policy's hash changed")
    }

    /// A start that takes no marker, and the copy of the volume that an attacker makes then.
    fn copy_before_marker(&self) -> Step<std::path::PathBuf> {
        self.heading("   (An attacker prepares: a start without consequences, then a copy of the volume)");
        let checked = self.by_hand("otpqr/check", &ByHand::default())?;
        self.right(
            &checked,
            0,
            "",
            "The service 'check' gets no secret and spends nothing; the volume is initialised.",
        )?;
        let volume = self.bundle.volume("default");
        let kept = self.bundle.root.join("copy-before-marker");
        self.shell(&format!("cp -a '{}' '{}'", volume.display(), kept.display()), || copy(&volume, &kept))?;
        Ok(kept)
    }

    fn issue_once(&self) -> Step<Account> {
        self.heading("3. The QR code, once");
        let output = self.output("qrcode.svg");
        let issued = self.script("gen_qr", &["--no-confirm", "--output", &output])?;
        self.right(&issued, 0, "qrcode.svg", "otpqr took the once-marker, durably, and only then wrote the QR code.")?;
        let account = self.scan(&output, &[&issued])?;
        fs::remove_file(&output).map_err(|cause| Stopped(cause.to_string()))?;
        let again = self.script("gen_qr", &["--no-confirm", "--output", &output])?;
        self.right(
            &again,
            5,
            "issued already",
            "The marker is there; it is in a volume whose current state CAS knows.",
        )?;
        self.must(!Path::new(&output).exists(), "there is an output file")?;
        Ok(account)
    }

    fn attack_the_volume(&self, before_marker: &Path) -> Step {
        let volume = self.bundle.volume("default");
        let good = self.bundle.root.join("copy-after-marker");
        copy(&volume, &good);
        self.heading("4a. Attack: the files of the once-marker's volume are deleted");
        self.shell(&format!("rm -rf '{}'/*", volume.display()), || delete_files(&volume))?;
        self.refused("CAS knows that this volume was initialised: an empty one is not the current state.")?;

        self.heading("4b. Attack: the whole volume directory is deleted");
        self.shell(&format!("rm -rf '{}'", volume.display()), || fs::remove_dir_all(&volume).expect("deletion"))?;
        self.refused("The same: a volume is initialised once, and CAS remembers it.")?;

        self.heading("4c. Attack: the copy from before the marker is put back");
        let command = format!("rm -rf '{0}' && cp -a '{1}' '{0}'", volume.display(), before_marker.display());
        self.shell(&command, || put_back(before_marker, &volume))?;
        self.refused("Every file in it is genuine, but its tag is not the one CAS holds: a roll-back.")?;
        put_back(&good, &volume);
        Ok(())
    }

    fn attack_the_program(&self) -> Step {
        self.heading("4d. Attack: the caller sets otpqr's environment");
        let environment =
            [("OTP_RESET", "TRUE"), ("OTP_SINGLE_USE", "/tmp/once"), ("OTP_OUTPUT_FILE", "/out/stolen.svg")];
        let answer = self.by_hand("otpqr/otpqr", &ByHand { environment: &environment, ..ByHand::default() })?;
        self.right(
            &answer,
            10,
            "once-marker '/root/single_run/once'",
            "Only the policy's environment reaches the program: the caller's is ignored.",
        )?;

        self.heading("4e. Attack: another program of the image under the same policy");
        let answer = self.by_hand("otpqr/otpqr", &ByHand { program: "/scone-run", ..ByHand::default() })?;
        self.right(
            &answer,
            134,
            "Unexpected enclave measurement",
            "The policy names otpqr's measurement (mrenclave); this program has another.",
        )?;

        self.heading("4f. Attack: another image, its otpqr changed by one byte");
        let other = OtherImage::of(&self.bundle);
        let answer = self.by_hand("otpqr/otpqr", &ByHand { image: Some(&other.name), ..ByHand::default() })?;
        self.right(&answer, 134, "Unexpected enclave measurement", "One byte more is another program.")?;
        self.must(!self.bundle.issued_by_hand(), "an attack got a QR code")
    }

    fn attack_while_running(&self) -> Step {
        self.heading("4g. Attack: a volume file is removed while otpqr runs (on a second account)");
        let platform = self.bundle.platform.name();
        let created = self.script("create", &["--platform", platform, "--account", "second", "--login", "bob"])?;
        self.right(&created, 0, "created", "One account per role or task.")?;
        let volume = self.bundle.volume("second");
        let watched = volume.clone();
        let cas = self.bundle.known("second", &["cas", "enclave_address"]);
        // The attacker holds up CAS's answer to the volume's initialisation, so that the program starts after the deed.
        let line = Line::hold(cas, move || holds_a_file(&watched), move || delete_files(&volume));
        let how = ByHand { account: "second", cas: Some(&line.address), ..ByHand::default() };
        let answer = self.by_hand("otpqr/otpqr", &how)?;
        line.end();
        self.right(
            &answer,
            134,
            "FATAL",
            "When otpqr makes the marker durable, the runtime misses what it had opened, and ends the program.",
        )?;
        self.must(!self.bundle.issued_by_hand(), "an attack got a QR code")
    }

    fn add_authenticator(&self, first: &Account) -> Step {
        self.heading("5. A second authenticator, against a code of the first");
        let output = self.output("second-phone.svg");
        let now = self.bundle.now();
        let code = first.code_at(now);
        let wrong = if code == "000000" { "000001" } else { "000000" };
        let answer = self.add_auth(&output, wrong)?;
        self.right(&answer, 5, "One-time Password is invalid", "CAS checks the code before anything else.")?;
        let answer = self.by_hand("otpqr-reset/otpqr", &ByHand::default())?;
        self.right(&answer, 134, "An One-time Password is required", "This policy releases nothing without a code.")?;
        let code = first.code_at(self.bundle.now());
        let issued = self.add_auth(&output, &code)?;
        self.right(
            &issued,
            0,
            "second-phone.svg",
            "A valid code: CAS consumed it, then attested the program, then released the secret.",
        )?;
        let second = self.scan(&output, &[&issued])?;
        self.must(second.secret == first.secret, "the secret is another one")?;
        say("-> The same secret: both authenticators show the same codes.");
        let reused = self.add_auth(&self.output("third-phone.svg"), &code)?;
        self.right(&reused, 5, "already used", "Each code is accepted once - also when an attacker saw it.")
    }

    fn protect_a_signer(&self, first: &Account) -> Step {
        self.heading("6. What it is all for: a program that takes a code to start, here a signer");
        let (image, _tag) = self.signers_image()?;
        let options = ["--mount-point", "/in", "--secret", "SIGNER_KEY=p256", "--open", "/bin/signer public"];
        let command = ["signer", "--image", &image, "--command", "/bin/signer sign @@1"];
        let protected = self.script("protect", &[&command[..], &options].concat())?;
        self.right(
            &protected,
            0,
            "protected: 'signer'",
            "Measured, and put behind the account's codes. CAS drew the key, and gives it to this program alone.",
        )?;

        let files = self.bundle.root.join("files");
        self.shell(&format!("mkdir '{0}' && echo 'what is released' >'{0}/release.txt'", files.display()), || {
            fs::create_dir(&files).expect("a directory");
            fs::write(files.join("release.txt"), "what is released\n").expect("a file");
        })?;
        let sign = ["--mount", &format!("type=bind,src={},dst=/in", files.display()), "--", "/in/release.txt"];
        let refused = self.signs_by_hand()?;
        self.right(
            &refused,
            134,
            "An One-time Password is required",
            "Without a code, and without our scripts: nothing.",
        )?;
        let wrong = if first.code_at(self.bundle.now()) == "000000" { "000001" } else { "000000" };
        let refused = self.start(wrong, &sign)?;
        self.right(&refused, 5, "One-time Password is invalid", "A wrong code: nothing.")?;
        // That of this step may have been spent.
        let code = first.code_at(self.bundle.now() + 30);
        let signed = self.start(&code, &sign)?;
        self.right(&signed, 0, "", "A code of the phone's, one signature.")?;
        let again = self.start(&code, &sign)?;
        self.right(&again, 5, "already used", "The same code again: nothing.")?;
        let public = self.script("start", &["signer", "--open"])?;
        self.right(&public, 0, "PUBLIC KEY", "The public key is everybody's, without a code.")?;
        self.verify(&files, &signed.stdout, &public.stdout)
    }

    /// As `protect` is told of it: a directory, or in the engine a name, which is gone when the tag is dropped.
    fn signers_image(&self) -> Step<(String, Option<Tag>)> {
        let directory = self.bundle.root.join("signer");
        let path = directory.display();
        self.shell(&format!("mkdir -p '{path}/bin' '{path}/in' && cp programs/bin/signer '{path}/bin'"), || {
            fs::create_dir(&directory).expect("a directory");
            image::signer(&directory);
        })?;
        if self.bundle.platform == Platform::SimNative {
            return Ok((path.to_string(), None));
        }
        let tag = Tag(format!("otpqr-demo-signer:{}", std::process::id()));
        println!("$ tar -C '{path}' -c . | docker import - {}", tag.0);
        let mut import = self.bundle.command("sh");
        import.args(["-c", "tar -C \"$0\" -c . | docker import - \"$1\"", &path.to_string(), &tag.0]);
        let imported = self.answered(run(import))?;
        self.right(&imported, 0, "", "A container image as anybody has it; ours needs one file.")?;
        Ok((tag.0.clone(), Some(tag)))
    }

    fn start(&self, code: &str, options: &[&str]) -> Step<Outcome> {
        let command = self.command("start", &[&["signer", "--otp-file", "-"], options].concat());
        println!("(types the code {code})");
        let outcome = run_with_input(command, &format!("{code}\n"));
        self.answered(outcome)
    }

    fn signs_by_hand(&self) -> Step<Outcome> {
        let state = self.bundle.state("default");
        let image = state["programs"]["signer"]["image_id"].as_str().unwrap_or_default();
        let config_id = format!("{}/signer/default/program", self.bundle.known("default", &["namespace"]));
        let words = ["/bin/signer", "/in/release.txt"];
        self.run_by_hand(&config_id, &[], service_by_hand(&self.bundle, image, &config_id, &words, &[]))
    }

    /// As anybody verifies.
    fn verify(&self, files: &Path, signature: &str, public_key: &str) -> Step {
        let openssl = |arguments: &[&str]| {
            println!("$ openssl {}", quoted(arguments));
            let mut openssl = Command::new("openssl");
            openssl.args(arguments).current_dir(files);
            self.answered(run(openssl))
        };
        if which::which("openssl").is_err() {
            say("-> The signature was not verified: there is no openssl here.");
            return Ok(());
        }
        println!("$ cd '{}'   # with the signature in release.b64, the public key in key.pub", files.display());
        for (name, content) in [("release.b64", signature), ("key.pub", public_key), ("altered.txt", "what is not\n")] {
            fs::write(files.join(name), content).map_err(|cause| Stopped(format!("'{name}': {cause}")))?;
        }
        let decoded = openssl(&["base64", "-d", "-A", "-in", "release.b64", "-out", "release.sig"])?;
        self.right(&decoded, 0, "", "")?;
        let verify = ["dgst", "-sha256", "-verify", "key.pub", "-signature", "release.sig"];
        let altered = openssl(&[&verify[..], &["altered.txt"]].concat())?;
        self.right(&altered, 1, "Verification", "Another file: openssl refuses the signature.")?;
        let verified = openssl(&[&verify[..], &["release.txt"]].concat())?;
        self.right(&verified, 0, "Verified OK", "The file that was signed: openssl accepts it.")
    }

    fn roll_forward(&self, first: &Account) -> Step {
        self.heading("7. The authenticator is lost: roll forward");
        let rolled = self.script("roll_forward", &["--yes"])?;
        self.right(
            &rolled,
            0,
            "delete from the authenticators",
            "A new secret, a new volume; the entry to delete is named.",
        )?;
        let answer = self.add_auth(&self.output("old-code.svg"), &first.code_at(self.bundle.now() + 30))?;
        self.right(&answer, 5, "One-time Password is invalid", "A code of the old secret: dead.")?;
        let output = self.output("new.svg");
        let issued = self.script("gen_qr", &["--no-confirm", "--output", &output])?;
        self.right(&issued, 0, "new.svg", "The new secret's QR code, once.")?;
        let new = self.scan(&output, &[&rolled, &issued])?;
        self.must(new.secret != first.secret, "the secret is the old one")?;

        self.heading("   The second account's volume was tampered with (4g): the same way out");
        let output = self.output("second.svg");
        let refused = self.script("gen_qr", &["--no-confirm", "--account", "second", "--output", &output])?;
        self.right(&refused, 5, "roll_forward.rs", "Refused, and the way out is named.")?;
        let rolled = self.script("roll_forward", &["--yes", "--account", "second"])?;
        self.right(&rolled, 0, "rolled forward", "")?;
        let issued = self.script("gen_qr", &["--no-confirm", "--account", "second", "--output", &output])?;
        self.right(&issued, 0, "second.svg", "")?;
        self.scan(&output, &[&rolled, &issued]).map(drop)
    }

    fn bundle_is_gone(self) -> Step {
        self.heading("8. Clean-up");
        let root = self.bundle.root.clone();
        drop(self.bundle);
        if root.exists() {
            return Err(Stopped(format!("'{}' is still there", root.display())));
        }
        say(
            "The simulator is stopped, the demonstration's directory removed. Left behind: what was built (make clean), and the image otpqr:sim.",
        );
        say("Next: the README, and ./scripts/create.rs --help");
        Ok(())
    }

    fn output(&self, name: &str) -> String {
        self.bundle.root.join(name).display().to_string()
    }

    fn heading(&self, text: &str) {
        if std::io::stdout().is_terminal() { println!("\n\x1b[1m== {text}\x1b[0m") } else { println!("\n== {text}") }
    }

    /// Runs a script as its user would: from the repository, by rust-script.
    fn command(&self, script: &str, args: &[&str]) -> Command {
        let program = format!("./scripts/{script}.rs");
        println!("$ {program} {}", quoted(args));
        let mut command = self.bundle.command(program);
        command.args(args).current_dir(repository());
        command
    }

    fn script(&self, script: &str, args: &[&str]) -> Step<Outcome> {
        let outcome = run(self.command(script, args));
        self.answered(outcome)
    }

    fn add_auth(&self, output: &str, code: &str) -> Step<Outcome> {
        let command = self.command("add_auth", &["--no-confirm", "--output", output, "--otp-file", "-"]);
        println!("(types the code {code})");
        let outcome = run_with_input(command, &format!("{code}\n"));
        self.answered(outcome)
    }

    fn by_hand(&self, service: &str, how: &ByHand) -> Step<Outcome> {
        let config_id = format!("{}/{service}", self.bundle.known(how.account, &["namespace"]));
        self.run_by_hand(&config_id, how.environment, self.bundle.by_hand(&config_id, how))
    }

    fn run_by_hand(&self, config_id: &str, environment: &[(&str, &str)], command: Command) -> Step<Outcome> {
        let mut line = format!("SCONE_CONFIG_ID='{config_id}'");
        for (name, value) in environment {
            line.push_str(&format!(" {name}='{value}'"));
        }
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy())
            .collect();
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        println!("$ {line} {}", quoted(&words));
        let outcome = run(command);
        self.answered(outcome)
    }

    fn shell(&self, line: &str, deed: impl FnOnce()) -> Step {
        println!("$ {line}");
        deed();
        self.go_on()
    }

    /// gen_qr refuses, whatever was done to the volume.
    fn refused(&self, why: &str) -> Step {
        let output = self.output("stolen.svg");
        let answer = self.script("gen_qr", &["--no-confirm", "--output", &output])?;
        self.right(&answer, 5, "the volume was refused", why)?;
        self.must(!Path::new(&output).exists(), "there is an output file")
    }

    fn answered(&self, outcome: Outcome) -> Step<Outcome> {
        for line in outcome.stderr.lines().chain(outcome.stdout.lines()) {
            println!("    {line}");
        }
        self.go_on()?;
        match outcome.code {
            // The child noticed Ctrl-C before we did.
            None | Some(130) => Err(Stopped(INTERRUPTED.into())),
            Some(code) => {
                println!("    [exit {code}]");
                Ok(outcome)
            }
        }
    }

    fn go_on(&self) -> Step {
        interrupt::check().map_err(|_| Stopped(INTERRUPTED.into()))
    }

    /// Compares the answer with the right one.
    fn right(&self, outcome: &Outcome, code: i32, text: &str, why: &str) -> Step {
        self.must(outcome.code == Some(code), &format!("that should have ended with {code}"))?;
        self.must(outcome.text().contains(text), &format!("that should have said '{text}'"))?;
        if !why.is_empty() {
            say(&format!("-> {why}"));
        }
        Ok(())
    }

    fn must(&self, right: bool, otherwise: &str) -> Step {
        if right { Ok(()) } else { Err(Stopped(otherwise.to_owned())) }
    }

    /// Reads the QR code with a real decoder; its content may be in no stream.
    fn scan(&self, output: &str, outcomes: &[&Outcome]) -> Step<Account> {
        let svg = fs::read_to_string(output).map_err(|cause| Stopped(format!("'{output}': {cause}")))?;
        let account = phone::scan(&svg).map_err(Stopped)?;
        self.must(outcomes.iter().all(|outcome| !outcome.text().contains(&account.secret)), "the secret was printed")?;
        let code = account.code_at(self.bundle.now());
        say(&format!(
            "-> Scanned from the picture: '{}', '{}', a secret of {} characters; it now shows {code}.",
            account.issuer,
            account.login,
            account.secret.len()
        ));
        Ok(account)
    }
}

fn say(text: &str) {
    println!("{text}");
}

/// Quoted for a shell.
fn quoted(words: &[&str]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,".contains(c);
    let quote = |word: &&str| {
        if !word.is_empty() && word.chars().all(plain) {
            (*word).to_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}
