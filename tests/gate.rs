//! Starts that a gate counts (programs/permit), for a program that does not: how many there are, and each way around it. Here CAS's
//! clock is the host's, as the gate's is: so these tests wait for time steps to pass.

use std::cell::{Cell, RefCell};
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use crate::support::image::{self, Tag};
use crate::support::phone::Account;
use crate::support::program::service_by_hand;
use crate::support::{Bundle, Outcome, Platform, User, copy, docker_is_there, run, run_with_input};

const INVALID: &str = "One-time Password is invalid";
const REQUIRED: &str = "An One-time Password is required";

/// A program that says that it was started, and a person whose codes are used once.
struct Counted {
    bundle: Bundle,
    alice: RefCell<Account>,
    _tag: Option<Tag>,
    /// The time step of the last code.
    last: Cell<u64>,
}

impl Counted {
    /// Protected with these options, of which `protect` says this.
    fn new(platform: Platform, options: &[&str], said: &str) -> Counted {
        let bundle = Bundle::new("counted", platform, User::Caller, false);
        bundle.install(scripts!());
        let alice = bundle.enrol("default");
        let directory = bundle.root.join("image");
        fs::create_dir(&directory).expect("a directory");
        image::shell(&directory, "echo started with ${#KEY}");
        let tag = (platform == Platform::Sim).then(|| Tag::import(&directory, "counted", &[]));
        let name = tag.as_ref().map_or_else(|| directory.display().to_string(), |tag| tag.0.clone());
        let protect = ["shell", "--image", &name, "--command", "sh /app/service.sh", "--secret", "KEY=drawn"];
        let report = bundle.script("protect", &[&protect, options].concat()).expect(0).stdout;
        assert!(report.contains(said), "{report}");
        Counted { bundle, alice: RefCell::new(alice), _tag: tag, last: Cell::new(0) }
    }

    /// A code that was not used yet, and that CAS takes: of the time step before, of this one, or of the next. If there is none, a
    /// person would wait; here the secret is rolled forward, of which the gate and its count know nothing.
    fn code(&self) -> String {
        let step = self.bundle.now() / 30;
        let unused = (step - 1..=step + 1).find(|step| *step > self.last.get());
        let unused = unused.unwrap_or_else(|| {
            self.bundle.script("roll_forward", &["--yes"]).expect(0);
            let output = format!("{step}.svg");
            self.bundle.gen_qr(&["--output", &output]).expect(0);
            self.alice.replace(self.bundle.scan(&output));
            self.bundle.now() / 30 - 1
        });
        self.last.set(unused);
        self.alice.borrow().code_at(30 * unused)
    }

    fn start(&self) -> Outcome {
        run_with_input(self.bundle.script_command("start", &["shell", "--otp-file", "-"]), &self.code())
    }

    /// Until the gate can dispense the next code.
    fn next_step(&self) {
        let step = self.bundle.now() / 30;
        while self.bundle.now() / 30 == step {
            sleep(Duration::from_millis(200));
        }
    }

    /// Starts the gate natively as `start` does, without that looking at what is granted before.
    fn gate_by_hand(&self) -> Outcome {
        let bundle = &self.bundle;
        let [namespace, image] = ["namespace", "image_id"].map(|key| bundle.known("default", &[key]));
        let told = service_by_hand(bundle, &image, &format!("{namespace}/shell/default/gate"), &[], &[]);
        let mut gate = bundle.command(bundle.root.join("simulator/bin/scone-run"));
        gate.envs(told.get_envs().filter_map(|(name, value)| Some((name, value?)))).args(["--rootfs", &image]);
        for (volume, inside) in [("starts_1", "permit"), ("grants_1", "grants")] {
            let side = bundle.root.join("state/volumes/default/programs/shell").join(volume);
            fs::create_dir_all(&side).expect("a directory");
            gate.arg("--bind").arg(format!("{}:/.sealed/{inside}", side.display()));
        }
        gate.arg("/bin/gate");
        run(gate)
    }

    /// Starts a service of the person's session without our scripts.
    fn by_hand(&self, service: &str, words: &[&str]) -> Outcome {
        let [namespace, image] = ["namespace", "image_id"].map(|key| self.bundle.known("default", &[key]));
        let config_id = format!("{namespace}/shell/default/{service}");
        run(service_by_hand(&self.bundle, &image, &config_id, words, &[]))
    }
}

fn a_program_starts_as_often_as_it_was_granted_and_not_once_more(platform: Platform) {
    let counted = Counted::new(platform, &["--starts", "2"], "\n  starts     2 in all\n");
    let bundle = &counted.bundle;
    bundle
        .script("protect", &["shell", "--starts", "2", "--counts-itself"])
        .expect(2)
        .saying("a gate counts the starts");

    // As a script of format 4 left it.
    let mut state = bundle.state("default");
    state["format"] = 4.into();
    for since in ["approvals", "tolerate", "ignore_advisories", "attestation"] {
        state.as_mapping_mut().expect("a mapping").remove(since);
    }
    let shell = state["programs"]["shell"].as_mapping_mut().expect("a program");
    let mut gate = shell.remove("permit").expect("a permit");
    for since in ["counts_itself", "approvers", "term", "without_code"] {
        gate.as_mapping_mut().expect("a mapping").remove(since);
    }
    shell.insert("gate".into(), gate);
    fs::write(bundle.state_file("default"), serde_yaml::to_string(&state).expect("YAML")).expect("the state");

    // Doctor asks the gate, whom anybody may ask: that takes no start.
    let doctor = |said: &str| {
        let report = bundle.script("doctor", &[]).stdout;
        assert!(report.lines().any(|line| line.contains(said)), "no '{said}' in {report}");
    };
    doctor("ok    starts    'shell': 2 in all, and none was taken on this host");

    // Two starts in one time step, of which enough is left.
    if bundle.now() % 30 > 15 {
        counted.next_step();
    }
    let first = counted.start().expect(0).saying("gate: start 1 of 2");
    assert_eq!(first.stdout, "started with 64\n");
    let shows_a_code = |text: &str| text.as_bytes().windows(6).any(|digits| digits.iter().all(u8::is_ascii_digit));
    assert!(!shows_a_code(&first.stderr), "{}", first.stderr);
    let volume = bundle.root.join("state/volumes/default/programs/shell/starts_1");
    let kept = bundle.root.join("kept");
    copy(&volume, &kept);
    doctor("ok    starts    'shell': 1 of 2 starts are left");
    // In the same time step the gate's code would be the same one. No start is lost.
    counted.start().expect(5).saying("no start is granted: a start was granted in this time step: try again in");

    // Without the gate: CAS takes no person's code for the program, and none at all is not enough for either.
    for service in ["gate", "program"] {
        counted.by_hand(service, &["/bin/gate"]).expect(134).saying(REQUIRED);
    }
    counted.by_hand(&format!("program@{}", counted.code()), &["/bin/gate"]).expect(134).saying(INVALID);
    // Another program in the gate's place is not attested, and the code is gone.
    let other = counted.by_hand(&format!("gate@{}", counted.code()), &["/bin/otpqr"]).expect(134);
    other.saying("Unexpected enclave measurement");

    counted.next_step();
    counted.start().expect(0).saying("gate: start 2 of 2");
    doctor("wrong starts    'shell': 0 of 2 starts are left -> ./scripts/protect");
    let spent = counted.start().expect(5).saying("no start is granted: all 2 starts are taken");
    spent.saying("hint: ").saying("--starts 3   # grants one more");

    // The volume as it was when there was one more.
    let moved = bundle.root.join("moved");
    fs::rename(&volume, &moved).expect("a move");
    fs::rename(&kept, &volume).expect("a move");
    counted.start().expect(5).saying("suspected replay attack");
    doctor("wrong starts    'shell': The FSPF tag is not fresh - suspected replay attack -> ");
    fs::rename(&volume, &kept).expect("a move");
    fs::rename(&moved, &volume).expect("a move");

    // Described anew, it is limited as it was. A higher number is those that were granted and more.
    bundle.script("protect", &["shell"]).expect(0);
    counted.start().expect(5).saying("all 2 starts are taken");
    bundle
        .script("protect", &["shell", "--starts", "1"])
        .expect(0)
        .saying("fewer starts than before, which were 2 in all");
    counted.start().expect(5).saying("no start is granted: the one start is taken");
    bundle.script("protect", &["shell", "--starts", "3"]).expect(0);
    counted.next_step();
    counted.start().expect(0).saying("gate: start 3 of 3");

    // A service, and what a script is told of its start.
    bundle.script("protect", &["shell", "--starts", "4", "--command", "sh -c 'while :; do :; done'"]).expect(0);
    counted.next_step();
    let detach = ["shell", "--otp-file", "-", "--detach", "--log", "log", "--json"];
    let told = run_with_input(bundle.script_command("start", &detach), &counted.code()).expect(0).stdout;
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    bundle.script("start", &["shell", "--stop"]).expect(0);
    assert_eq!((told["program"].as_str(), told["start"].as_str()), (Some("shell"), Some("start 4 of 4")), "{told}");
}

/// One code grants several starts, and these take no code.
fn one_code_grants_several_starts(platform: Platform) {
    let options = ["--needs-approval", "default", "--without-code"];
    let counted = Counted::new(platform, &options, "\n  approval   a grant of 'default', and no code\n");
    let bundle = &counted.bundle;
    let start = || bundle.script("start", &["shell"]);
    let approve = |options: &[&str]| {
        let options = [&["shell", "--otp-file", "-"], options].concat();
        run_with_input(bundle.script_command("approve", &options), &counted.code())
    };

    let nothing = "no start of 'shell' is granted";
    start().expect(5).saying(nothing).saying("hint: ./scripts/approve.rs shell --starts 1 --for 10m");
    counted.start().expect(2).saying("leave out '--otp-file'");
    let arguments = approve(&["--starts", "1", "--for", "10m", "--", "x"]).expect(2);
    arguments.saying("a gate stands before 'shell', which does not see its arguments");
    // Without our scripts neither the gate dispenses anything, nor does the program start.
    counted.by_hand("program", &["/bin/gate"]).expect(134).saying(REQUIRED);
    counted.by_hand(&format!("program@{}", counted.code()), &["/bin/gate"]).expect(134).saying(INVALID);
    if platform == Platform::SimNative {
        counted.gate_by_hand().expect(10).saying("gate: error: nobody has granted it");
    }

    // Over before it is taken.
    approve(&["--starts", "9", "--for", "1s"]).expect(0);
    while !bundle.script("approve", &["shell", "--list"]).expect(0).stdout.starts_with("expired: 0 of 9 starts until ")
    {
        sleep(Duration::from_millis(200));
    }
    start().expect(5).saying(nothing);

    let granted = approve(&["--starts", "2", "--for", "10m"]).expect(0).stdout;
    assert!(
        granted.starts_with("granted: 2 starts until ") && granted.contains(" by 'default' (grant 2) of '"),
        "{granted}"
    );
    for number in ["1", "2"] {
        counted.next_step();
        let started = start().expect(0).saying(&format!("gate: start {number} of 2 of grant 2 by 'default'"));
        assert_eq!(started.stdout, "started with 64\n");
    }
    counted.next_step();
    start().expect(5).saying(nothing);
    let report = bundle.script("doctor", &[]).stdout;
    assert!(report.contains("ok    starts    'shell': nothing is granted"), "{report}");
}

/// Who has another identity and a CAS to upload policies to: nothing is exported to them.
fn nobody_else_gets_the_secret_that_starts_it_nor_its_volume(platform: Platform) {
    let counted = Counted::new(platform, &["--starts", "2"], "\n  starts     2 in all\n");
    let bundle = &counted.bundle;
    let [namespace, image] = ["namespace", "image_id"].map(|key| bundle.known("default", &[key]));
    let (client, key) = (bundle.known("default", &["cas", "address"]), bundle.known("default", &["cas", "key"]));
    let scone = |args: &[&str]| {
        let mut scone = bundle.command(bundle.root.join("simulator/bin/scone"));
        scone.args(["--config", "thief.json"]).args(args);
        run(scone)
    };
    scone(&["cas", "attest", &client, "-c", &key]).expect(0);
    let session = format!("{namespace}/shell");
    for (what, declared, used) in [
        (
            "secret 'start_secret'",
            format!("secrets: [{{name: s, import: {{session: {session}, secret: start_secret}}}}]"),
            "environment: {S: '$$SCONE::s:hex$$'}",
        ),
        (
            "volume 'starts_1'",
            format!(
                "volumes: [{{name: v, import: {{session: {session}, volume: starts_1}}}}]\nimages: [{{name: i, volumes: [{{name: v, path: /permit}}]}}]"
            ),
            "image_name: i",
        ),
    ] {
        let name = if used.starts_with("image") { "thief-v" } else { "thief-s" };
        let policy = format!(
            "name: {name}\nversion: 0.3.10\nsecurity: {{attestation: {{mode: none}}}}\nservices:\n  - name: s\n    command: /bin/gate --help\n    {used}\n{declared}\n"
        );
        fs::write(bundle.root.join("thief.yml"), policy).expect("a policy");
        scone(&["session", "create", "thief.yml"]).expect(0);
        let stolen = run(service_by_hand(bundle, &image, &format!("{name}/s"), &["/bin/gate"], &[]));
        stolen.expect(134).saying(&format!("Session '{session}' does not export {what} to '{name}'"));
    }
    // Nor may they read what there is, or add to it.
    for args in [&["session", "read", &session][..], &["session", "read", &format!("{session}/default")]] {
        scone(args).expect(1).saying("Permission denied");
    }
    // Who may read it sees no secret.
    let read = bundle.scone(["session", "read", &session]).expect(0).stdout;
    assert!(read.contains("name: start_secret\n  kind: binary\n") && !read.contains("value"), "{read}");
}

#[test]
fn natively_a_program_starts_as_often_as_it_was_granted_and_not_once_more() {
    a_program_starts_as_often_as_it_was_granted_and_not_once_more(Platform::SimNative);
}

#[test]
fn in_a_container_a_program_starts_as_often_as_it_was_granted_and_not_once_more() {
    if docker_is_there() {
        a_program_starts_as_often_as_it_was_granted_and_not_once_more(Platform::Sim);
    }
}

#[test]
fn natively_one_code_grants_several_starts() {
    one_code_grants_several_starts(Platform::SimNative);
}

#[test]
fn in_a_container_one_code_grants_several_starts() {
    if docker_is_there() {
        one_code_grants_several_starts(Platform::Sim);
    }
}

#[test]
fn natively_nobody_else_gets_the_secret_that_starts_it_nor_its_volume() {
    nobody_else_gets_the_secret_that_starts_it_nor_its_volume(Platform::SimNative);
}

#[test]
fn in_a_container_nobody_else_gets_the_secret_that_starts_it_nor_its_volume() {
    if docker_is_there() {
        nobody_else_gets_the_secret_that_starts_it_nor_its_volume(Platform::Sim);
    }
}
