//! Programs whose start needs a code: protect and start, from the image as a user has it to the program's exit code.

use std::fs;

use crate::support::image::{self, Tag};
use crate::support::{Bundle, Outcome, Platform, User, docker_is_there, phone, run_with_input};

/// A program that says what it was given. `$1` is the caller's.
const SERVICE: &str = r#"
case $1 in
  echo) cat ;;
  tell) echo "SECRET has ${#SECRET} digits, GIVEN is $GIVEN, MODE is $MODE, HOME is $HOME, in $PWD" ;;
  count) n=$(cat /data/n 2>/dev/null || echo 0); n=$((n + 1)); echo $n >/data/n; echo $n ;;
  complain) echo 'all is lost' >&2; exit 7 ;;
  *) echo "what is '$1'?" >&2; exit 2 ;;
esac
"#;

/// A bundle with an account, and an image of a shell.
struct Shell {
    bundle: Bundle,
    alice: phone::Account,
    /// As protect is told.
    image: String,
    _tag: Option<Tag>,
}

impl Shell {
    fn new(platform: Platform) -> Shell {
        let bundle = Bundle::of_test(platform, User::Caller);
        bundle.install(scripts!());
        let directory = bundle.root.join("image");
        fs::create_dir(&directory).expect("a directory");
        image::shell(&directory, SERVICE);
        let changes = ["ENV MODE=careful", "ENV PATH=/bin", "WORKDIR /app", r#"ENTRYPOINT ["sh", "service.sh"]"#];
        let tag = (platform == Platform::Sim).then(|| Tag::import(&directory, "shell", &changes));
        let image = tag.as_ref().map_or_else(|| directory.display().to_string(), |tag| tag.0.clone());
        let alice = bundle.enrol("default");
        Shell { bundle, alice, image, _tag: tag }
    }

    /// Natively, what an image says has to be said.
    fn protect(&self, options: &[&str]) -> Outcome {
        let native = ["--command", "sh /app/service.sh", "--env", "MODE=careful"];
        let native: &[&str] = if self.bundle.platform == Platform::SimNative { &native } else { &[] };
        self.bundle.script("protect", &[&["shell", "--image", &self.image], native, options].concat())
    }

    /// Starts it with the current code; the next start is in the next time step.
    fn start(&self, options: &[&str], input: &str) -> Outcome {
        fs::write(self.bundle.root.join("code.txt"), self.alice.code_at(self.bundle.now())).expect("a file");
        let options = [&["shell", "--otp-file", "code.txt"], options].concat();
        let outcome = run_with_input(self.bundle.script_command("start", &options), input);
        self.bundle.wait(30);
        outcome
    }
}

fn a_program_runs_as_its_policy_says_and_its_streams_are_its_callers(platform: Platform) {
    let shell = Shell::new(platform);
    shell.bundle.script("start", &["shell", "--otp-file", "code.txt"]).expect(2);
    let given = shell.bundle.root.join("given.txt");
    fs::write(&given, "it's \"given\": #1\n").expect("a file");
    let given = format!("GIVEN={}", given.display());
    let protected =
        shell.protect(&["--args", "1", "--secret", "SECRET=drawn", "--secret", &given, "--volume", "/data"]);
    let protected = protected.expect(0);
    assert!(protected.stdout.starts_with("protected: 'shell'"), "{protected:?}");

    let told = shell.start(&["--", "tell"], "").expect(0);
    let directory = if platform == Platform::Sim { "/app" } else { "/" };
    let expected =
        format!("SECRET has 64 digits, GIVEN is it's \"given\": #1, MODE is careful, HOME is , in {directory}\n");
    assert_eq!(told.stdout, expected);
    assert_eq!(shell.start(&["--", "echo"], "one\ntwo\n").expect(0).stdout, "one\ntwo\n");
    let complained = shell.start(&["--", "complain"], "").expect(7);
    assert!(complained.stderr.ends_with("all is lost\n"), "{complained:?}");
    for n in 1..=2 {
        assert_eq!(shell.start(&["--", "count"], "").expect(0).stdout, format!("{n}\n"));
    }
}

#[test]
fn natively_a_program_runs_as_its_policy_says_and_its_streams_are_its_callers() {
    a_program_runs_as_its_policy_says_and_its_streams_are_its_callers(Platform::SimNative);
}

#[test]
fn in_a_container_a_program_runs_as_its_policy_says_and_its_streams_are_its_callers() {
    if docker_is_there() {
        a_program_runs_as_its_policy_says_and_its_streams_are_its_callers(Platform::Sim);
    }
}
