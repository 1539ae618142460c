//! Programs whose start needs a code: protect and start, from the image as a user has it to the program's exit code.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rexpect::session::{PtySession, spawn_command};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::support::image::{self, Tag};
use crate::support::watched::Watched;
use crate::support::{Bundle, Outcome, Platform, User, copy, docker_is_there, phone, run, run_with_input};

/// A program that does what its caller's first argument says.
const SERVICE: &str = r#"
case $1 in
  echo) cat ;;
  tell) echo "SECRET has ${#SECRET} digits, GIVEN is $GIVEN, MODE is $MODE, HOME is $HOME, in $PWD" ;;
  secret) echo "$SECRET" ;;
  count) n=$(cat /data/n 2>/dev/null || echo 0); n=$((n + 1)); echo $n >/data/n; echo $n ;;
  complain) echo 'all is lost' >&2; exit 7 ;;
  scratch) echo x >/tmp/x && cat /tmp/x && ! echo y >/app/y ;;
  pretend) echo '[SCONE|FATAL] x: Could not initialize enclave state: Attestation failed' >&2
    echo '  Caused by: One-time Password was already used' >&2; exit $GIVES_UP ;;
  last) echo x >/data/n; echo ready; read -r line; echo finished ;;
  leave) echo 'left' >/out/left ;;
  terminal) [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && stty size; read -r line; echo "you said $line"; exit 9 ;;
  resized) trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.1; done ;;
  wait) for signal in INT TERM USR1; do trap "echo got $signal; exit 3" $signal; done; echo ready; while :; do sleep 0.1; done ;;
  serve) echo "serving @123456" >&2; trap 'echo ended; exit 0' TERM; while :; do sleep 0.1; done ;;
  *) echo "what is '$1'?" >&2; exit 2 ;;
esac
"#;

/// What the image says of itself; natively it has to be said.
const CHANGES: [&str; 4] = ["ENV MODE=careful", "ENV PATH=/bin", "WORKDIR /app", r#"ENTRYPOINT ["sh", "service.sh"]"#];
const NATIVELY: [&str; 4] = ["--command", "sh /app/service.sh", "--env", "MODE=careful"];

/// A bundle with an account, and an image of a shell.
struct Shell {
    bundle: Bundle,
    alice: phone::Account,
    image: Image,
}

/// An image as protect is told.
struct Image {
    name: String,
    directory: PathBuf,
    tag: Option<Tag>,
}

fn make_image(bundle: &Bundle) -> Image {
    let directory = bundle.root.join("image");
    fs::create_dir(&directory).expect("a directory");
    image::shell(&directory, SERVICE);
    let tag = (bundle.platform == Platform::Sim).then(|| Tag::import(&directory, "shell", &CHANGES));
    let name = tag.as_ref().map_or_else(|| directory.display().to_string(), |tag| tag.0.clone());
    Image { name, directory, tag }
}

impl Shell {
    fn new(platform: Platform) -> Shell {
        let bundle = Bundle::of_test(platform, User::Caller);
        bundle.install(scripts!());
        let (alice, image) = (bundle.enrol("default"), make_image(&bundle));
        Shell { bundle, alice, image }
    }

    /// With a program that takes one argument.
    fn protected(platform: Platform, options: &[&str]) -> Shell {
        let shell = Shell::new(platform);
        shell.protect(&[&["--args", "1"], options].concat()).expect(0);
        shell
    }

    fn protect(&self, options: &[&str]) -> Outcome {
        let native: &[&str] = if self.bundle.platform == Platform::SimNative { &NATIVELY } else { &[] };
        self.bundle.script("protect", &[&["shell", "--image", &self.image.name], native, options].concat())
    }

    fn code(&self) -> String {
        self.alice.code_at(self.bundle.now())
    }

    /// `start` with this code, and with what comes on standard input.
    fn start_with(&self, code: &str, options: &[&str], input: &str) -> Outcome {
        fs::write(self.bundle.root.join("code.txt"), code).expect("a file");
        let options = [&["shell", "--otp-file", "code.txt"], options].concat();
        run_with_input(self.bundle.script_command("start", &options), input)
    }

    /// The same with the current code; the next start is in the next time step.
    fn start(&self, options: &[&str]) -> Outcome {
        let outcome = self.start_with(&self.code(), options, "");
        self.bundle.wait(30);
        outcome
    }

    /// Started at a terminal, by a person who types the code.
    fn at_a_terminal(&self, options: &[&str]) -> PtySession {
        let mut start = self.bundle.script_command("start", &[&["shell"], options].concat());
        start.stdin(Stdio::inherit()).env("TERM", "xterm-256color");
        at_prompt(spawn_command(start, PATIENCE).expect("a pseudo-terminal"))
    }

    /// Where its volume is sealed.
    fn volume(&self) -> PathBuf {
        let version = self.bundle.state("default")["programs"]["shell"]["volume_version"].as_u64().expect("a version");
        self.bundle.root.join(format!("state/volumes/default/programs/shell/volume_0_{version}"))
    }
}

/// So that a hang is seen as one; not an assertion about speed.
const PATIENCE: Option<u64> = Some(60_000);

/// Waits for the prompt for a code. Near the end of a time step the script offers to wait, which is accepted.
fn at_prompt(mut session: PtySession) -> PtySession {
    loop {
        let asked = session.exp_regex("to start 'shell' \\(changes in|Wait for the next code").expect("the prompt").1;
        if !asked.starts_with("Wait") {
            session.exp_string("s): ").expect("the prompt");
            return session;
        }
        session.send_line("").expect("typing");
    }
}

fn in_a_container(test: fn(Platform)) {
    if docker_is_there() {
        test(Platform::Sim);
    }
}

#[test]
fn natively_a_program_runs_as_its_policy_says_and_its_streams_are_its_callers() {
    runs_as_its_policy_says(Platform::SimNative);
}

#[test]
fn in_a_container_a_program_runs_as_its_policy_says_and_its_streams_are_its_callers() {
    in_a_container(runs_as_its_policy_says);
}

fn runs_as_its_policy_says(platform: Platform) {
    let shell = Shell::new(platform);
    let unknown = shell.start_with("123456", &["--", "tell"], "").expect(3);
    unknown.saying("start: error: account 'default' has no program 'shell'");
    let given = shell.bundle.root.join("given.txt");
    fs::write(&given, "it's \"given\": #1\n").expect("a file");
    let given = format!("GIVEN={}", given.display());
    let options =
        ["--args", "1", "--secret", "SECRET=drawn", "--secret", &given, "--volume", "/data", "--mount-point", "/out"];
    let protected = shell.protect(&options).expect(0);
    assert!(protected.stdout.starts_with("protected: 'shell'"), "{protected:?}");
    let again = shell.protect(&options).expect(0);
    assert!(again.stdout.starts_with("already protected: 'shell'"), "{again:?}");

    let told = shell.start(&["--", "tell"]).expect(0);
    let directory = if platform == Platform::Sim { "/app" } else { "/" };
    let expected =
        format!("SECRET has 64 digits, GIVEN is it's \"given\": #1, MODE is careful, HOME is , in {directory}\n");
    assert_eq!(told.stdout, expected);
    let echoed = shell.start_with(&shell.code(), &["--", "echo"], "one\ntwo\n").expect(0);
    assert_eq!(echoed.stdout, "one\ntwo\n");
    shell.bundle.wait(30);
    let complained = shell.start(&["--", "complain"]);
    assert_eq!((complained.code, complained.stdout.as_str()), (Some(7), ""), "{complained:?}");
    assert!(complained.stderr.ends_with("all is lost\n"), "{complained:?}");
    for n in 1..=2 {
        assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, format!("{n}\n"));
    }
    // What it writes elsewhere than to a volume is in memory, if it can.
    let scratch = shell.start(&["--", "scratch"]).expect(0);
    assert_eq!(scratch.stdout, "x\n");
    assert!(scratch.stderr.contains("/app/y: Read-only file system"), "{scratch:?}");
    // The code's own input is no program's.
    let from_stdin = ["shell", "--otp-file", "-", "--", "echo"];
    let echoed = run_with_input(shell.bundle.script_command("start", &from_stdin), &format!("{}\n", shell.code()));
    assert_eq!(echoed.expect(0).stdout, "");
    shell.bundle.wait(30);
    shell.bundle.make_directory("out");
    let out = shell.bundle.root.join("out").display().to_string().replace('"', "\"\"");
    let mount = format!("type=bind,\"src={out}\",dst=/out");
    let elsewhere = mount.replace("dst=/out", "dst=/app/out");
    shell
        .start(&["--mount", &elsewhere, "--", "leave"])
        .expect(2)
        .saying("nothing of this host's may be mounted at '/app/out'");
    shell.start(&["--mount", &mount, "--", "leave"]).expect(0);
    assert_eq!(fs::read_to_string(shell.bundle.root.join("out/left")).expect("what it left"), "left\n");

    // The state holds neither secret nor code, and no state or log of the engine's does.
    let written = shell.bundle.written();
    assert!(written.values().all(|content| find(content, b"it's \"given\"").is_none()));
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

#[test]
fn natively_a_program_has_its_callers_terminal() {
    has_its_callers_terminal(Platform::SimNative);
}

#[test]
fn in_a_container_a_program_has_its_callers_terminal() {
    in_a_container(has_its_callers_terminal);
}

fn has_its_callers_terminal(platform: Platform) {
    let shell = Shell::protected(platform, &[]);
    // A first code that is wrong: the container that waited is gone, and another one waits.
    let mut command = shell.bundle.command("sh");
    let start = shell.bundle.root.join("scripts/start").display().to_string().replace('\'', r"'\''");
    command
        .args(["-c", &format!("stty echo rows 41 cols 97; '{start}' shell -- terminal; echo \"ended: $?\"; stty -a")]);
    command.stdin(Stdio::inherit()).env("TERM", "xterm-256color");
    let mut session = at_prompt(spawn_command(command, PATIENCE).expect("a pseudo-terminal"));
    let code = shell.code();
    let wrong = if code == "000000" { "000001" } else { "000000" };
    session.send_line(wrong).expect("typing");
    session.exp_string("that code is wrong").expect("the refusal");
    let mut session = at_prompt(session);
    session.send_line(&code).expect("typing");
    let before = session.exp_string("41 97\r\n").expect("the terminal's size");
    assert!(!before.contains(&code) && !before.contains("FATAL"), "{before}");
    session.send_line("hello").expect("typing");
    session.exp_string("you said hello\r\n").expect("the program's answer");
    session.exp_string("ended: 9").expect("its exit code");
    // The terminal is what it was.
    let modes = session.exp_eof().expect("the modes");
    let has = |mode: &&str| modes.split_whitespace().any(|word| word == *mode);
    assert!(["icanon", "echo", "isig", "opost"].iter().all(has), "{modes}");
    shell.bundle.wait(30);

    // Ctrl-C is the program's, and so is the window's size.
    let mut session = shell.at_a_terminal(&["--", "wait"]);
    session.send_line(&shell.code()).expect("typing");
    session.exp_string("ready").expect("the program");
    session.send_control('c').expect("typing");
    session.exp_string("got INT").expect("the program");
    assert_eq!(ended(session), 3);
    shell.bundle.wait(30);

    let mut session = shell.at_a_terminal(&["--", "resized"]);
    session.send_line(&shell.code()).expect("typing");
    session.exp_string("ready").expect("the program");
    let terminal = session.process().get_file_handle().expect("its terminal");
    let size = Winsize { ws_row: 13, ws_col: 57, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("another size");
    session.exp_string("13 57").expect("the new size");
    assert_eq!(ended(session), 0);
}

fn ended(mut session: PtySession) -> i32 {
    let rest = session.exp_eof().expect("the end of the output");
    match session.process().wait().expect("the end of the process") {
        rexpect::process::WaitStatus::Exited(_, code) => code,
        other => panic!("{other:?} after:\n{rest}"),
    }
}

/// `start`, with its standard output for us to read.
fn started(shell: &Shell, options: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    fs::write(shell.bundle.root.join("code.txt"), shell.code()).expect("a file");
    let options = [&["shell", "--otp-file", "code.txt"], options].concat();
    let mut start = shell.bundle.script_command("start", &options);
    start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start.spawn().expect("start");
    let out = BufReader::new(child.stdout.take().expect("a pipe"));
    (child, out)
}

#[test]
fn natively_a_program_gets_its_callers_signals() {
    gets_its_callers_signals(Platform::SimNative);
}

#[test]
fn in_a_container_a_program_gets_its_callers_signals() {
    in_a_container(gets_its_callers_signals);
}

fn gets_its_callers_signals(platform: Platform) {
    let shell = Shell::protected(platform, &[]);
    for (signal, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT"), (Signal::USR1, "USR1")] {
        let (mut child, mut out) = started(&shell, &["--", "wait"]);
        let mut line = String::new();
        out.read_line(&mut line).expect("a line");
        if line != "ready\n" {
            let mut said = String::new();
            child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("what it said");
            panic!("{line:?}\n{said}");
        }
        // Meanwhile nothing shows the code: not the engine's configuration, not the script's arguments.
        let code = fs::read_to_string(shell.bundle.root.join("code.txt")).expect("the code");
        let mut shown = vec![fs::read(format!("/proc/{}/cmdline", child.id())).expect("its arguments")];
        if platform == Platform::Sim {
            let label = format!("otpqr.program={}/shell/default", shell.bundle.known("default", &["namespace"]));
            let mut inspect = Command::new("sh");
            inspect
                .args(["-c", &format!("docker inspect $(docker ps --all --quiet --no-trunc --filter label={label})")]);
            let inspected = run(inspect).expect(0).stdout;
            assert!(inspected.contains("/environment"), "{inspected}");
            shown.push(inspected.into_bytes());
        }
        assert!(shown.iter().all(|text| find(text, code.as_bytes()).is_none()));

        kill_process(Pid::from_child(&child), signal).expect("a signal");
        let mut rest = String::new();
        out.read_to_string(&mut rest).expect("the rest");
        assert_eq!((rest, child.wait().expect("its end").code()), (format!("got {name}\n"), Some(3)));
        shell.bundle.wait(30);
    }
}

#[test]
fn natively_a_program_starts_with_the_account_s_code_and_nothing_else() {
    starts_with_a_code_alone(Platform::SimNative);
}

#[test]
fn in_a_container_a_program_starts_with_the_account_s_code_and_nothing_else() {
    in_a_container(starts_with_a_code_alone);
}

/// The refusal matrix, with what may be changed about a program.
fn starts_with_a_code_alone(platform: Platform) {
    let shell = Shell::protected(platform, &["--volume", "/data"]);
    let bob = shell.bundle.enrol("bob");
    let platform_name = platform.name();
    let row = |what: &str, became: &str| println!("| {platform_name:<10} | {what:<17} | {became} |");
    let now = shell.bundle.now();
    let count = |shell: &Shell, code: &str| shell.start_with(code, &["--", "count"], "");

    let right = shell.code();
    let wrong = if right == "000000" { "000001" } else { "000000" };
    for (what, code) in
        [("wrong", wrong), ("another account's", &bob.code_at(now)), ("late", &shell.alice.code_at(now - 60))]
    {
        count(&shell, code).expect(5).saying("One-time Password is invalid");
        row(what, "refused: One-time Password is invalid");
    }
    shell.bundle.script("start", &["shell", "--", "count"]).expect(2).saying("a code is needed");
    row("no code", "refused: a code is needed");
    for (what, arguments, given) in [("one argument less", &[][..], 0), ("one argument more", &["count", "count"], 2)] {
        let refused = shell.start_with(&right, &[&["--"], arguments].concat(), "").expect(2);
        let reason = format!("the policy of program 'shell' takes 1 of its caller's arguments, and {given} were given");
        row(what, &format!("refused: {reason}"));
        refused.saying(&reason);
    }
    assert_eq!(count(&shell, &right).expect(0).stdout, "1\n");
    row("right", "started");
    count(&shell, &right).expect(5).saying("that code was used already");
    row("used", "refused: One-time Password was already used");
    shell.bundle.wait(30);

    let (volume, copy_of) = (shell.volume(), shell.bundle.root.join("copy"));
    copy(&volume, &copy_of);
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "2\n");
    let current = shell.bundle.root.join("current");
    fs::rename(&volume, &current).expect("moving");
    shell.start(&["--", "count"]).expect(5).saying("a volume was refused: ").saying("was removed");
    row("volume deleted", "refused: file system protection file was removed");
    assert!(!volume.exists(), "an empty directory in its place");
    fs::rename(&copy_of, &volume).expect("moving");
    let restored = shell.start(&["--", "count"]).expect(5);
    restored.saying("suspected replay attack").saying("hint: ").saying("protect.rs shell --new-volumes");
    row("volume restored", "refused: The FSPF tag is not fresh - suspected replay attack");
    fs::remove_dir_all(&volume).expect("deletion");
    fs::rename(&current, &volume).expect("moving");
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "3\n");

    // Another image under the same name, or a changed file of it.
    let service = shell.image.directory.join("app/service.sh");
    fs::write(&service, SERVICE.replace("*)", "steal) echo \"$SECRET\" ;;\n  *)")).expect("a change");
    if platform == Platform::SimNative {
        let refused = shell.start(&["--", "count"]).expect(3);
        refused.saying("what was measured of image").saying("is not there any more");
        row("changed file", "refused: what was measured is not there any more");
        fs::write(&service, SERVICE).expect("the service");
    } else {
        // What was measured is run by its ID, whatever the name is now.
        shell.image.tag.as_ref().expect("a tag").replace(&shell.image.directory, &CHANGES);
        shell.start(&["--", "steal"]).code.filter(|code| *code == 2).expect("the program that was measured");
        let doctor = shell.bundle.script("doctor", &[]).stdout;
        assert!(doctor.contains("was rebuilt; the one that was measured is started -> "), "{doctor}");
        row("other image", "not taken: what was measured is run by its ID");
        let altered =
            shell.bundle.state("default")["programs"]["shell"]["image_id"].as_str().expect("an ID").to_owned();
        let mut inspect = Command::new("docker");
        inspect.args(["image", "inspect", "--format", "{{.Id}}", &shell.image.name]);
        let other = run(inspect).expect(0).stdout.trim().to_owned();
        let state = shell.bundle.state_file("default");
        let text = fs::read_to_string(&state).expect("the state");
        fs::write(&state, text.replace(&altered, &other)).expect("another ID");
        let refused = shell.start(&["--", "count"]).expect(3);
        refused.saying("the program could not be started");
        row("image without entry", "refused: it is not started");
        fs::write(&state, text).expect("the state");
    }
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "4\n");
}

#[test]
fn natively_a_service_goes_on_when_its_caller_has_ended() {
    goes_on_alone(Platform::SimNative);
}

#[test]
fn in_a_container_a_service_goes_on_when_its_caller_has_ended() {
    in_a_container(goes_on_alone);
}

fn goes_on_alone(platform: Platform) {
    let shell = Shell::protected(platform, &[]);
    let log = shell.bundle.root.join("service.log");
    let detach = ["--detach", "--log", "service.log", "--json", "--", "serve"];
    let stop = || shell.bundle.script("start", &["shell", "--stop"]);
    assert_eq!(stop().expect(0).stdout, "'shell' does not run as a service\n");
    let refused = shell.start_with("000000", &detach, "");
    if refused.code != Some(0) {
        refused.expect(5).saying("that code is wrong");
        // Masked, and nobody else's to read.
        let said = fs::read_to_string(&log).expect("the log");
        assert!(said.contains("@******") && !said.contains("000000"), "{said}");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&log.metadata().expect("the log").permissions());
    assert_eq!(mode & 0o777, 0o600);

    // Another one, that waits for its code meanwhile. (A pipe opens when both ends are there.)
    let pipe = shell.bundle.root.join("other-code");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let other = ["shell", "--otp-file", "other-code", "--detach", "--log", "other.log", "--", "serve"];
    let mut other = shell.bundle.script_command("start", &other);
    let other = other.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
    let mut other_code = fs::OpenOptions::new().write(true).open(pipe).expect("the script asks for the code");

    let started = shell.start(&detach).expect(0);
    let (key, value) = if platform == Platform::Sim { ("container", "otpqr-shell-") } else { ("pid", "") };
    let told: serde_json::Value = serde_json::from_str(&started.stdout).expect("JSON");
    let id = &told[key];
    assert!(id.to_string().trim_matches('"').starts_with(value), "{told}");
    let said = fs::read_to_string(&log).expect("the log");
    assert!(said.contains("serving @******"), "{said}");
    // Nobody is asked for a code for what runs already.
    let again = shell
        .bundle
        .script("start", &["shell", "--otp-file", "code.txt", "--detach", "--log", "service.log", "--", "serve"]);
    assert!(again.expect(0).stdout.starts_with("already running: 'shell', "));
    // Nor does a second one come beside it, and no code is spent on that.
    let code = shell.code();
    std::io::Write::write_all(&mut other_code, code.as_bytes()).expect("the code");
    drop(other_code);
    let other = other.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&other.stderr);
    assert_eq!((other.status.code(), other.stdout.as_slice()), (Some(3), &b""[..]), "{said}");
    assert!(said.contains("another start of 'shell' as a service is under way"), "{said}");
    assert!(shell.start_with(&code, &["--", "tell"], "").expect(0).stdout.starts_with("SECRET has 0 digits"));
    shell.bundle.wait(30);
    // Whoever changes it meanwhile is told that it runs as it was.
    let updated = shell.protect(&["--args", "1", "--env", "LATER=1"]).expect(0);
    assert!(updated.stdout.contains("\nit still runs as it was started: "), "{updated:?}");

    assert_eq!(stop().expect(0).stdout, "stopped: 'shell'; it takes a code to start it again\n");
    // What masks the log on its way may be a moment behind.
    let stopped = Instant::now();
    while !fs::read_to_string(&log).expect("the log").ends_with("ended\n") {
        assert!(stopped.elapsed() < Duration::from_secs(60), "its last words are not in the log");
        sleep(Duration::from_millis(20));
    }
    assert_eq!(stop().expect(0).stdout, "'shell' does not run as a service\n");

    // One that ends at once was not started as a service.
    let ended = shell.start(&["--detach", "--log", "service.log", "--", "complain"]).expect(1);
    ended.saying("the program ended at once, with status 7: see the log 'service.log'");
    // A log that others can read is none.
    fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("permissions");
    let open = shell.start(&["--detach", "--log", "service.log", "--", "serve"]).expect(3);
    open.saying("the log 'service.log' must be a file that only you can read");
}

#[test]
fn natively_a_roll_forward_switches_programs_and_their_secrets_stay() {
    is_switched_by_a_roll_forward(Platform::SimNative);
}

#[test]
fn in_a_container_a_roll_forward_switches_programs_and_their_secrets_stay() {
    in_a_container(is_switched_by_a_roll_forward);
}

fn is_switched_by_a_roll_forward(platform: Platform) {
    let shell = Shell::protected(platform, &["--secret", "SECRET=drawn", "--volume", "/data"]);
    let secret = shell.start(&["--", "secret"]).expect(0).stdout;
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "1\n");
    shell.bundle.script("roll_forward", &["--yes"]).expect(0);
    shell.start(&["--", "count"]).expect(5).saying("One-time Password is invalid");
    shell.bundle.gen_qr(&["--output", "new.svg"]).expect(0);
    let alice = shell.bundle.scan("new.svg");
    let shell = Shell { alice, ..shell };
    assert_eq!(shell.start(&["--", "secret"]).expect(0).stdout, secret);
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "2\n");
}

/// A bundle whose tools are watched, with a protected shell that owns a secret.
fn watched() -> (Watched, phone::Account, Image) {
    let (bundle, alice) = Watched::enrolled(Platform::SimNative, scripts!());
    let image = make_image(&bundle);
    (bundle, alice, image)
}

fn start_of(bundle: &Bundle, alice: &phone::Account, argument: &str) -> Outcome {
    let code = alice.code_at(bundle.now());
    let options = ["shell", "--otp-file", "-", "--", argument];
    let outcome = run_with_input(bundle.script_command("start", &options), &code);
    bundle.wait(30);
    outcome
}

#[test]
fn a_roll_forward_killed_at_any_moment_is_completed_and_no_program_takes_old_codes_afterwards() {
    let (bundle, alice, image) = watched();
    let protect = ["shell", "--image", &image.name, "--command", "sh /app/service.sh @@1", "--secret", "SECRET=drawn"];
    bundle.script("protect", &protect).expect(0);
    let secret = start_of(&bundle, &alice, "secret").expect(0).stdout;
    let mut alice = alice;
    bundle.kill_everywhere("roll_forward", &["--yes"], String::new, |which, _| {
        bundle.script("roll_forward", &["--yes"]).expect(0);
        let refused = start_of(&bundle, &alice, "secret");
        assert_eq!(refused.code, Some(5), "{which}: {refused:?}");
        let svg = bundle.root.join("next.svg");
        let _ = fs::remove_file(&svg);
        bundle.gen_qr(&["--output", "next.svg"]).expect(0);
        alice = bundle.scan("next.svg");
        assert_eq!(start_of(&bundle, &alice, "secret").expect(0).stdout, secret, "{which}");
    });
}

#[test]
fn a_protect_killed_at_any_moment_is_completed_by_the_next_run() {
    let (bundle, alice, image) = watched();
    let protect = |mode: usize| {
        let mode = format!("MODE={mode}");
        let command =
            ["--image", &image.name, "--command", "sh /app/service.sh @@1", "--open", "sh /app/service.sh tell"];
        let command = command.map(str::to_owned);
        let more = ["--secret", "SECRET=drawn", "--volume", "/data", "--env", &mode].map(str::to_owned);
        [&["shell".to_owned()][..], &command, &more].concat()
    };
    let mut secret = None;
    for (mode, is_first) in [(0, true), (1, false)] {
        let args = protect(mode);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut kills = 0;
        // The first time every kill leaves a program that was never there; later it is an update.
        bundle.kill_everywhere("protect", &args, String::new, |which, uploads| {
            kills += 1;
            let early = start_of(&bundle, &alice, "secret");
            if early.code != Some(0) {
                assert_eq!(early.code, Some(3), "{which}, after {uploads} uploads: {early:?}");
            }
        });
        assert!(kills >= 3, "{kills} kills");
        let told = start_of(&bundle, &alice, "secret").expect(0).stdout;
        assert_eq!(*secret.get_or_insert(told.clone()), told, "mode {mode}, first: {is_first}");
        assert!(start_of(&bundle, &alice, "tell").expect(0).stdout.contains(&format!("MODE is {mode},")));
    }
}

#[test]
fn what_cannot_be_carried_over_is_refused_by_name() {
    if !docker_is_there() {
        return;
    }
    let shell = Shell::new(Platform::Sim);
    let plain = Tag::import(&shell.image.directory, "plain", &[]);
    let protect = |image: &str, options: &[&str]| {
        shell.bundle.script("protect", &[&["shell", "--image", image], options].concat())
    };
    for (changes, reason) in [
        (&["HEALTHCHECK CMD /bin/true"][..], "a HEALTHCHECK, which no policy can carry over"),
        (&["STOPSIGNAL SIGQUIT"], "the STOPSIGNAL SIGQUIT, which no policy can carry over"),
        (&["USER 1000"], "the USER 1000, which no policy can carry over"),
        (&["ONBUILD RUN true"], "ONBUILD steps, which no policy can carry over"),
        (&["VOLUME /data"], "has the volume '/data', which would be an unprotected directory of docker's"),
        (&["ENV PATH=/bin"], "names no program"),
        (&[r#"CMD ["python3"]"#], "there is no program 'python3' in image"),
        (&[r#"CMD ["/app/service.sh"]"#], "is no 64-bit x86 ELF program"),
        (&["ENV PRICE=5$", r#"CMD ["/bin/sh"]"#], "'5$' has a '$' or a control character in it"),
    ] {
        let tag = plain.with(changes);
        let refused = protect(&tag.0, &[]);
        assert!(matches!(refused.code, Some(2 | 3)) && refused.stderr.contains(reason), "{changes:?}: {refused:?}");
        assert_eq!(shell.bundle.known("default", &["programs"]), "{}", "{changes:?}");
    }
    fs::write(shell.image.directory.join("entry"), "").expect("a file");
    let taken = Tag::import(&shell.image.directory, "taken", &[r#"CMD ["/bin/sh"]"#]);
    protect(&taken.0, &[]).expect(3).saying("has '/entry' already, which has to be ours");
    // Nothing is left of what was only looked at.
    let mut left = Command::new("docker");
    left.args(["ps", "--all", "--quiet", "--filter", &format!("ancestor={}", taken.0)]);
    assert_eq!(run(left).expect(0).stdout, "");

    // A volume takes the place of the engine's.
    let tag = plain.with(&["VOLUME /data", r#"CMD ["sh", "/app/service.sh", "count"]"#, "ENV PATH=/bin"]);
    protect(&tag.0, &["--volume", "/data"]).expect(0);
    let count = || shell.start(&[]).expect(0).stdout;
    assert_eq!((count(), count()), ("1\n".to_owned(), "2\n".to_owned()));
}

#[test]
fn an_image_that_was_rebuilt_is_measured_again_and_keeps_secret_and_volume() {
    let shell = Shell::protected(Platform::SimNative, &["--secret", "SECRET=drawn", "--volume", "/data"]);
    let secret = shell.start(&["--", "secret"]).expect(0).stdout;
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "1\n");
    let service = shell.image.directory.join("app/service.sh");
    fs::write(&service, SERVICE.replace("*)", "new) echo new ;;\n  *)")).expect("another version");
    shell.start(&["--", "new"]).expect(3).saying("protect.rs shell   # updates the policies");
    let doctor = shell.bundle.script("doctor", &[]);
    assert!(doctor.stdout.contains("wrong program   what was measured of image"), "{}", doctor.stdout);

    let updated = shell.bundle.script("protect", &["shell"]).expect(0);
    assert!(updated.stdout.starts_with("updated: 'shell'"), "{updated:?}");
    assert_eq!(shell.start(&["--", "new"]).expect(0).stdout, "new\n");
    assert_eq!(shell.start(&["--", "secret"]).expect(0).stdout, secret);
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "2\n");
    let doctor = shell.bundle.script("doctor", &[]);
    assert!(doctor.stdout.contains("ok    program   'shell'"), "{}", doctor.stdout);
    assert!(doctor.stdout.contains("shell/default' as it should be"), "{}", doctor.stdout);
}

#[test]
fn a_secret_from_a_file_is_in_cas_alone_and_is_asked_for_again_only_where_it_is_needed() {
    let shell = Shell::new(Platform::SimNative);
    let file = shell.bundle.root.join("given.txt");
    let protect = |options: &[&str]| shell.bundle.script("protect", &[&["shell"], options].concat());
    let image = ["--image", &shell.image.name, "--command", "sh /app/service.sh @@1", "--secret", "GIVEN=given.txt"];
    for (content, reason) in
        [("", "is empty"), ("two\nlines\n", "is no line of printable ASCII"), ("5$\n", "is no line")]
    {
        fs::write(&file, content).expect("a file");
        protect(&image).expect(2).saying("secret 'GIVEN' in 'given.txt'").saying(reason);
    }
    fs::write(&file, "first\n").expect("a file");
    protect(&image).expect(0);
    fs::remove_file(&file).expect("deletion");
    let given = |expected: &str| {
        let told = shell.start(&["--", "tell"]).expect(0).stdout;
        assert!(told.contains(&format!("GIVEN is {expected},")), "{told}");
    };
    given("first");
    // What does not touch the secrets needs no file: another environment, a rebuilt image, a roll-forward's policies.
    protect(&["--env", "MODE=other"]).expect(0);
    given("first");
    let more = protect(&["--volume", "/data"]).expect(3);
    more.saying("secret 'GIVEN' of program 'shell' came from a file and is in CAS alone: give it again");
    given("first");
    fs::write(&file, "second\n").expect("a file");
    protect(&["--secret", "GIVEN=given.txt", "--volume", "/data"]).expect(0);
    given("second");
    protect(&["--secret", "GIVEN=drawn"]).expect(2).saying("secret 'GIVEN' comes from elsewhere already");
    fs::write(&file, "two\nlines\n").expect("a file");
    protect(&["--secret", "LINES=base64:given.txt"]).expect(3).saying("give it again");
    // Who gives it up needs nothing of it.
    protect(&["--remove", "--yes"]).expect(0);
}

#[test]
fn a_program_that_was_removed_starts_for_nobody_and_its_secret_is_gone() {
    let shell = Shell::protected(Platform::SimNative, &["--secret", "SECRET=drawn", "--volume", "/data"]);
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "1\n");
    let secret = shell.start(&["--", "secret"]).expect(0).stdout;
    let remove = |more: &[&str]| shell.bundle.script("protect", &[&["shell", "--remove"], more].concat());
    remove(&[]).expect(2).saying("give '--yes'");
    let removed = remove(&["--yes"]).expect(0);
    assert_eq!(removed.stdout, "removed: nobody can start 'shell' any more; its secrets are gone\n");
    shell.start(&["--", "secret"]).expect(3).saying("account 'default' has no program 'shell'");
    remove(&["--yes"]).expect(3).saying("has no program 'shell'");
    let namespace = shell.bundle.known("default", &["namespace"]);
    for session in ["shell", "shell/default"] {
        let read = shell.bundle.scone(["session", "read", &format!("{namespace}/{session}")]).expect(0).stdout;
        assert!(!read.contains("SECRET") && !read.contains("mrenclave"), "{read}");
    }
    let doctor = shell.bundle.script("doctor", &[]);
    assert!(!doctor.stdout.contains("wrong policies"), "{}", doctor.stdout);

    // It may come back, with another secret and an empty volume.
    let back = shell.protect(&["--args", "1", "--secret", "SECRET=drawn", "--volume", "/data"]).expect(0);
    assert!(back.stdout.starts_with("protected: 'shell'"), "{back:?}");
    assert_ne!(shell.start(&["--", "secret"]).expect(0).stdout, secret);
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "1\n");
}

#[test]
fn a_wiped_cas_has_lost_the_programs_secrets_and_says_how_to_protect_them_again() {
    let shell = Shell::protected(Platform::SimNative, &["--secret", "SECRET=drawn", "--volume", "/data"]);
    let secret = shell.start(&["--", "secret"]).expect(0).stdout;
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "1\n");
    shell.bundle.wipe_cas();
    shell.start(&["--", "secret"]).expect(3).saying("is not the one this account was created on");
    let anew = shell.bundle.script("roll_forward", &["--cas-wiped", "--yes"]).expect(0);
    assert!(
        anew.stdout.contains("protect again, with new secrets: ") && anew.stdout.contains("protect.rs shell\n"),
        "{anew:?}"
    );
    shell.start(&["--", "secret"]).expect(3).saying("a run of 'protect' was cut off");
    shell.bundle.script("protect", &["shell"]).expect(0);
    shell.bundle.gen_qr(&["--output", "new.svg"]).expect(0);
    let shell = Shell { alice: shell.bundle.scan("new.svg"), ..shell };
    assert_ne!(shell.start(&["--", "secret"]).expect(0).stdout, secret);
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "1\n");
}

#[test]
fn a_volume_is_one_program_s_at_a_time() {
    let shell = Shell::protected(Platform::SimNative, &["--volume", "/data"]);
    let (mut child, mut out) = started(&shell, &["--", "wait"]);
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    shell.bundle.wait(30);
    shell.start(&["--", "count"]).expect(3).saying("a volume of program 'shell' is in use: ");
    assert!(!shell.start(&["--", "count"]).stderr.contains("scone-run"), "nothing was started");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("a signal");
    assert_eq!(child.wait().expect("its end").code(), Some(3));
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "1\n");
}

#[test]
fn what_a_killed_start_left_running_is_said_before_a_code_is_spent() {
    let shell = Shell::protected(Platform::SimNative, &["--volume", "/data"]);
    let (mut child, mut out) = started(&shell, &["--", "wait"]);
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    kill_process(Pid::from_child(&child), Signal::KILL).expect("a kill");
    child.wait().expect("its end");
    shell.bundle.wait(30);
    let code = shell.code();
    shell.start_with(&code, &["--", "count"], "").expect(3).saying("what a killed run of 'start' left still does");
    // Its runtime is the one that holds the volume's lock.
    let mut holder = Command::new("sh");
    let volume = fs::metadata(shell.volume()).expect("the volume");
    let inode = std::os::unix::fs::MetadataExt::ino(&volume);
    holder.args(["-c", &format!("sed -n 's/.* FLOCK .* WRITE \\([0-9]*\\) .*:{inode} .*/\\1/p' /proc/locks")]);
    let holder: i32 = run(holder).expect(0).stdout.trim().parse().expect("a process");
    kill_process(Pid::from_raw(holder).expect("a process"), Signal::KILL).expect("its end");
    loop {
        let started = shell.start_with(&code, &["--", "count"], "");
        // The kernel takes a moment.
        if started.code != Some(3) {
            assert_eq!(started.expect(0).stdout, "1\n");
            break;
        }
    }
}

#[test]
fn what_a_program_says_is_not_taken_for_the_runtime_s_word() {
    for (gives_up, code) in [("0", 0), ("7", 7)] {
        let shell = Shell::protected(Platform::SimNative, &["--env", &format!("GIVES_UP={gives_up}")]);
        let pretended = shell.start(&["--", "pretend"]);
        assert_eq!(pretended.code, Some(code), "{pretended:?}");
        assert!(pretended.stderr.ends_with("  Caused by: One-time Password was already used\n"), "{pretended:?}");
        // What a caller has set does not make it measure instead of run.
        let mut start = shell.bundle.script_command("start", &["shell", "--otp-file", "-", "--", "echo"]);
        let told = run_with_input(
            {
                start.env("SCONE_HASH", "1");
                start
            },
            &shell.code(),
        );
        assert_eq!(told.expect(0).stdout, "");
    }
}

#[test]
fn a_program_that_ran_and_could_not_be_sealed_was_started_and_that_is_said() {
    let shell = Shell::protected(Platform::SimNative, &["--volume", "/data"]);
    fs::write(shell.bundle.root.join("code.txt"), shell.code()).expect("a file");
    let mut start = shell.bundle.script_command("start", &["shell", "--otp-file", "code.txt", "--", "last"]);
    start.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start.spawn().expect("start");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    shell.bundle.scone_sim(["down"]).expect(0);
    drop(child.stdin.take());
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("what it said");
    assert_eq!(child.wait().expect("its end").code(), Some(1), "{said}");
    assert!(said.contains("start: error: the program ran, and was broken off: "), "{said}");
    let clock = shell.bundle.root.join("clock").display().to_string();
    shell.bundle.scone_sim(["up", "--clock", &clock]).expect(0);
}

#[test]
fn what_changes_while_a_code_is_asked_for_is_found_before_it_is_spent() {
    let shell = Shell::protected(Platform::SimNative, &["--volume", "/data"]);
    let mut session = shell.at_a_terminal(&["--", "count"]);
    shell.bundle.script("protect", &["shell", "--new-volumes", "--yes"]).expect(0);
    let code = shell.code();
    session.send_line(&code).expect("typing");
    session.exp_string("was changed by another run; run the same command again").expect("the refusal");
    assert_eq!(ended(session), 1);
    assert_eq!(shell.start_with(&code, &["--", "count"], "").expect(0).stdout, "1\n");
}

#[test]
fn a_mount_point_hides_nothing_that_would_be_measured() {
    let shell = Shell::new(Platform::SimNative);
    let hidden = shell.protect(&["--args", "1", "--mount-point", "/app"]).expect(3);
    hidden.saying("'/app' has files in the image, which something mounted there would hide");
    assert_eq!(shell.bundle.known("default", &["programs"]), "{}");
}

#[test]
fn a_service_whose_start_was_killed_is_known_all_the_same() {
    let shell = Shell::protected(Platform::SimNative, &[]);
    fs::write(shell.bundle.root.join("code.txt"), shell.code()).expect("a file");
    let options = ["shell", "--otp-file", "code.txt", "--detach", "--log", "service.log", "--", "serve"];
    let mut start = shell.bundle.script_command("start", &options);
    let mut child = start.stderr(Stdio::piped()).spawn().expect("start");
    let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("waiting whether it goes on running") {
        line.clear();
        assert_ne!(said.read_line(&mut line).expect("a line"), 0, "it ended");
    }
    kill_process(Pid::from_child(&child), Signal::KILL).expect("a kill");
    child.wait().expect("its end");
    let stop = || shell.bundle.script("start", &["shell", "--stop"]).expect(0).stdout;
    assert_eq!(stop(), "stopped: 'shell'; it takes a code to start it again\n");
    assert_eq!(stop(), "'shell' does not run as a service\n");
}

#[test]
fn a_protect_that_was_cut_off_keeps_no_old_codes_alive() {
    let (bundle, alice, image) = watched();
    let protect = ["shell", "--image", &image.name, "--command", "sh /app/service.sh @@1", "--secret", "SECRET=drawn"];
    // Recorded, and nothing uploaded.
    let killed = bundle.script_with("moment", 2, "kill -9 $PPID; exit 1", "protect", &protect, "");
    assert_eq!(killed.code, None, "{killed:?}");
    assert!(bundle.known("default", &["programs", "shell", "pending"]) == "true", "it was recorded");
    let forward = bundle.script("roll_forward", &["--yes"]).expect(0);
    assert!(forward.stderr.contains("'shell' cannot be started until it is protected again: "), "{forward:?}");
    start_of(&bundle, &alice, "secret").expect(3).saying("a run of 'protect' was cut off");
    bundle.script("protect", &protect).expect(0);
    start_of(&bundle, &alice, "secret").expect(5).saying("One-time Password is invalid");
    bundle.gen_qr(&["--output", "new.svg"]).expect(0);
    start_of(&bundle, &bundle.scan("new.svg"), "secret").expect(0);
}

#[test]
fn after_a_protect_that_was_cut_off_one_may_roll_forward_and_go_on_with_something_else() {
    let (bundle, alice, image) = watched();
    let mut alice = alice;
    let protect = |mode: &str| {
        let command = ["shell", "--image", &image.name, "--command", "sh /app/service.sh @@1"].map(str::to_owned);
        let more = ["--open", "sh /app/service.sh tell", "--secret", "SECRET=drawn", "--env", mode].map(str::to_owned);
        [&command[..], &more].concat()
    };
    let (cut_off, other) = (protect("MODE=cut-off"), protect("MODE=other"));
    let cut_off: Vec<&str> = cut_off.iter().map(String::as_str).collect();
    let other: Vec<&str> = other.iter().map(String::as_str).collect();
    let mut secret = None;
    bundle.kill_everywhere("protect", &cut_off, String::new, |which, uploads| {
        if uploads % 2 == 0 {
            let forward = bundle.script("roll_forward", &["--yes"]);
            assert_eq!(forward.code, Some(0), "{which}: {forward:?}");
            let refused = start_of(&bundle, &alice, "secret");
            assert!(matches!(refused.code, Some(3 | 5)), "{which}: {refused:?}");
            let _ = fs::remove_file(bundle.root.join("next.svg"));
            bundle.gen_qr(&["--output", "next.svg"]).expect(0);
            alice = bundle.scan("next.svg");
        }
        let protected = bundle.script("protect", &other);
        assert_eq!(protected.code, Some(0), "{which}: {protected:?}");
        let told = start_of(&bundle, &alice, "secret").expect(0).stdout;
        assert_eq!(*secret.get_or_insert(told.clone()), told, "{which}");
        assert!(start_of(&bundle, &alice, "tell").expect(0).stdout.contains("MODE is other,"), "{which}");
    });
}

#[test]
fn a_removal_that_was_cut_off_is_completed_also_after_a_roll_forward() {
    let (bundle, _alice, image) = watched();
    let protect = ["shell", "--image", &image.name, "--command", "sh /app/service.sh @@1", "--secret", "SECRET=drawn"];
    bundle.script("protect", &protect).expect(0);
    let remove = ["shell", "--remove", "--yes"];
    let mut with_roll_forward = false;
    bundle.kill_everywhere("protect", &remove, String::new, |which, _| {
        with_roll_forward = !with_roll_forward;
        if with_roll_forward {
            let forward = bundle.script("roll_forward", &["--yes"]);
            assert_eq!(forward.code, Some(0), "{which}: {forward:?}");
        }
        let removed = bundle.script("protect", &remove);
        // Cut off after its end, there is nothing to remove any more.
        assert!(matches!(removed.code, Some(0 | 3)), "{which}: {removed:?}");
        let namespace = bundle.known("default", &["namespace"]);
        let read = bundle.scone(["session", "read", &format!("{namespace}/shell/default")]).expect(0).stdout;
        assert!(!read.contains("mrenclave"), "{which}: {read}");
        bundle.script("protect", &protect).expect(0);
    });
}

#[test]
fn that_old_codes_are_dead_is_said_when_they_are_for_programs_too() {
    let (bundle, _alice, image) = watched();
    let protect = ["shell", "--image", &image.name, "--command", "sh /app/service.sh @@1"];
    bundle.script("protect", &protect).expect(0);
    let mut seen = 0;
    bundle.kill_everywhere("roll_forward", &["--yes"], String::new, |which, uploads| {
        let doctor = bundle.script("doctor", &[]).stdout;
        // Session 1, session 2, the program's.
        let (expected, mend) = match uploads {
            0 if bundle.known("default", &["pending"]) == "null" => ("ok    policies", false),
            0 | 1 => ("ok    codes     the current codes still work", false),
            2 => ("wrong codes     the old codes are dead for some, but programs still take them -> ", true),
            _ => ("ok    codes     session 2 has switched: the old codes are dead", false),
        };
        assert!(doctor.contains(expected), "{which}, {uploads} uploads:\n{doctor}");
        seen += usize::from(mend);
        bundle.script("roll_forward", &["--yes"]).expect(0);
    });
    assert!(seen > 0, "never killed between session 2 and the program's");
}

#[test]
fn a_secret_that_a_killed_run_left_in_a_temporary_file_is_destroyed_by_the_next_run() {
    let (bundle, _alice, image) = watched();
    fs::write(bundle.root.join("given.txt"), "a-secret-of-mine\n").expect("a file");
    let left = || {
        let entries =
            fs::read_dir(bundle.root.join("tmp")).expect("temporary files").map(|entry| entry.expect("an entry"));
        let texts = entries.map(|entry| fs::read(entry.path()).unwrap_or_default());
        texts.filter(|text| find(text, b"a-secret-of-mine").is_some()).count()
    };
    let protect =
        ["shell", "--image", &image.name, "--command", "sh /app/service.sh @@1", "--secret", "GIVEN=given.txt"];
    // Killed while its command line reads the policy.
    for call in 1.. {
        let killed = bundle.script_with("before", call, "kill -9 $PPID; exit 1", "protect", &protect, "");
        assert_eq!(killed.code, None, "there is no such call: {killed:?}");
        if left() == 1 {
            break;
        }
    }
    bundle.script("doctor", &[]);
    assert_eq!(left(), 0);
    bundle.script("protect", &protect).expect(0);
    assert_eq!(left(), 0);
}

#[test]
fn a_damaged_volume_is_replaced_by_an_empty_one() {
    let shell = Shell::protected(Platform::SimNative, &["--volume", "/data"]);
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "1\n");
    fs::remove_dir_all(shell.volume()).expect("deletion");
    shell.start(&["--", "count"]).expect(5).saying("a volume was refused");
    let anew = |more: &[&str]| shell.bundle.script("protect", &[&["shell", "--new-volumes"], more].concat());
    anew(&[]).expect(2).saying("give '--yes'");
    anew(&["--yes"]).expect(0);
    assert_eq!(shell.start(&["--", "count"]).expect(0).stdout, "1\n");
}

#[test]
fn what_everybody_may_start_needs_no_code_and_is_nothing_else() {
    let shell = Shell::protected(Platform::SimNative, &["--open", "sh /app/service.sh tell"]);
    let open = |more: &[&str]| shell.bundle.script("start", &[&["shell", "--open"], more].concat());
    open(&["--", "secret"]).expect(2).saying("takes 0 of its caller's arguments, and 1 were given");
    assert!(open(&[]).expect(0).stdout.starts_with("SECRET has 0 digits"));
    let other = Shell::protected(Platform::SimNative, &[]);
    let refused = other.bundle.script("start", &["shell", "--open"]).expect(2);
    refused.saying("program 'shell' has nothing that starts without a code");
}

#[test]
fn ports_and_mounts_that_a_platform_cannot_have_are_refused_before_a_code_is_asked_for() {
    let shell = Shell::protected(Platform::SimNative, &["--mount-point", "/out"]);
    let code = shell.code();
    for (options, exit, reason) in [
        (["--publish", "80:8080"], 2, "the program is on this host's network: '80:8080' cannot move its port"),
        (["--mount", "type=bind,src=no-such,dst=/out"], 3, "'no-such' is no directory that can be mounted"),
        (["--mount", "type=bind,src=.,dst=/out,readonly"], 2, "a mount cannot be read-only"),
        (["--mount", "type=tmpfs,dst=/out"], 2, "'type=tmpfs' is not taken"),
    ] {
        shell.start_with(&code, &[&options[..], &["--", "tell"]].concat(), "").expect(exit).saying(reason);
    }
    shell.start_with(&code, &["--publish", "8080:8080", "--", "tell"], "").expect(0);
}

#[test]
fn a_program_s_name_is_none_that_every_account_has() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    for name in ["otpqr", "otpqr-reset", "device.phone", "a/b", "-x", ""] {
        bundle.script("protect", &["--image", "x", "--", name]).expect(2);
    }
    assert!(!Path::new(&bundle.root).join("state").exists());
}
