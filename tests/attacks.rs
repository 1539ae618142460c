//! What an attacker with root on the host tries, and what stops it or, where nothing can, what reveals it. Each attack is
//! tried on both platforms. It is refused first; where the genuine state can be restored, that state then works.
//! `make attacks` shows the lines that the tests report.

use std::fs;
use std::os::unix::fs::chown;
use std::process::{Command, Stdio};

use crate::support::attacker::{Line, OtherImage, Stranger, delete_files, holds_a_file, put_back, replay};
use crate::support::{Bundle, ByHand, Outcome, Platform, User, copy, docker_is_there, is_root, run};

/// A user of the host who is not the bundle's.
const ANOTHER: u32 = 64_998;

fn on_each_platform(attack: impl Fn(&Bundle)) {
    for platform in [Platform::SimNative, Platform::Sim] {
        if platform == Platform::Sim && !docker_is_there() {
            continue;
        }
        let bundle = Bundle::of_test(platform, User::Caller);
        bundle.install(scripts!());
        attack(&bundle);
    }
}

/// `session/service` of the account's policies.
fn config_id(bundle: &Bundle, service: &str) -> String {
    format!("{}/{service}", bundle.known("default", &["namespace"]))
}

/// A line of `make attacks`.
fn report(bundle: &Bundle, attack: &str, outcome: &str, words: &str) {
    // On a new line: the test harness leaves its own unfinished.
    println!("\nattack: {attack} ({}) | {outcome} | {words}", bundle.platform.name());
}

fn stopped(bundle: &Bundle, attack: &str, refusal: Outcome) {
    report(bundle, attack, "stopped", &words(&refusal));
}

fn revealed(bundle: &Bundle, attack: &str, refusal: Outcome) {
    report(bundle, attack, "not stopped, but revealed", &words(&refusal));
}

/// The words of a refusal as printed: the script's or the program's error, otherwise the innermost cause.
fn words(refusal: &Outcome) -> String {
    let lines = || refusal.stderr.lines().map(str::trim);
    let error = lines().find(|line| line.contains(": error: "));
    let cause = || lines().filter_map(|line| line.strip_prefix("Caused by: ")).next_back();
    error.or_else(cause).or_else(|| lines().next_back()).expect("a refusal says why").to_owned()
}

// --- The volume, which lies on the attacker's disk

#[test]
fn the_once_marker_is_deleted() {
    on_each_platform(|bundle| {
        bundle.enrol("default");
        let volume = bundle.volume("default");
        let genuine = bundle.root.join("genuine");
        copy(&volume, &genuine);
        let files = Command::new("find").arg(&genuine).args(["-type", "f", "-size", "+0", "-printf", "%P\\n"]).output();
        let files = String::from_utf8(files.expect("find").stdout).expect("names");
        assert!(files.lines().count() >= 2, "{files}");

        // The sealed files' names do not tell which one is the marker, so each is removed in turn.
        let mut refusals = Vec::new();
        for file in files.lines() {
            fs::remove_file(volume.join(file)).expect("deletion");
            let refused = bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("the volume was refused");
            assert!(!bundle.root.join("stolen.svg").exists());
            refusals.push(refused);
            put_back(&genuine, &volume);
        }
        let blob = refusals.into_iter().find(|refused| refused.stderr.contains(".blob"));
        stopped(bundle, "the once-marker is deleted", blob.expect("the marker's own file"));
        bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("issued already");
    });
}

#[test]
fn a_byte_of_the_volume_is_altered() {
    on_each_platform(|bundle| {
        bundle.enrol("default");
        let files = Command::new("find").arg(bundle.volume("default")).args(["-type", "f", "-size", "+0"]).output();
        let mut refusals = Vec::new();
        for file in String::from_utf8(files.expect("find").stdout).expect("names").lines() {
            let genuine = fs::read(file).expect("a file");
            let mut altered = genuine.clone();
            altered[genuine.len() / 2] ^= 1;
            fs::write(file, altered).expect("alteration");
            let refused = bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("the volume was refused");
            fs::write(file, genuine).expect("repair");
            refusals.push(refused);
        }
        let marker = refusals.into_iter().find(|refused| refused.stderr.contains("/once "));
        stopped(bundle, "a byte of the once-marker is altered", marker.expect("the marker's own file"));
        bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("issued already");
    });
}

#[test]
fn the_volumes_files_are_deleted() {
    on_each_platform(|bundle| {
        let account = bundle.enrol("default");
        let volume = bundle.volume("default");
        let genuine = bundle.root.join("genuine");
        copy(&volume, &genuine);

        delete_files(&volume);
        let refused = bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("the volume was refused");
        stopped(bundle, "the volume is emptied", refused);
        fs::remove_dir_all(&volume).expect("deletion");
        let refused = bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("the volume was refused");
        stopped(bundle, "the volume is deleted", refused);
        // As long as the volume is not right, the code is not looked at and so not spent.
        bundle
            .add_auth(&account.code_at(bundle.now()), &["--output", "stolen.svg"])
            .expect(5)
            .saying("the volume was refused");
        assert!(!bundle.root.join("stolen.svg").exists());

        put_back(&genuine, &volume);
        bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
    });
}

#[test]
fn a_destroyed_volume_is_no_obstacle_to_rolling_forward() {
    on_each_platform(|bundle| {
        let old = bundle.enrol("default");
        fs::remove_dir_all(bundle.volume("default")).expect("deletion");
        bundle.gen_qr(&["--output", "new.svg"]).expect(5).saying("hint: ./scripts/roll_forward.rs");
        bundle.script("roll_forward", &["--yes"]).expect(0);
        bundle.gen_qr(&["--output", "new.svg"]).expect(0);
        assert_ne!(bundle.scan("new.svg").secret, old.secret);
    });
}

#[test]
fn an_older_copy_of_the_volume_is_put_back() {
    on_each_platform(|bundle| {
        bundle.script("create", &["--platform", bundle.platform.name()]).expect(0);
        // The service `check` initialises the volume and takes no marker: the best copy an attacker can get.
        run(bundle.by_hand(&config_id(bundle, "otpqr/check"), &ByHand::default())).expect(0);
        let (volume, older) = (bundle.volume("default"), bundle.root.join("older"));
        copy(&volume, &older);
        bundle.gen_qr(&[]).expect(0);
        let genuine = bundle.root.join("genuine");
        copy(&volume, &genuine);

        put_back(&older, &volume);
        let refused = bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("suspected replay attack");
        assert!(!bundle.root.join("stolen.svg").exists());
        stopped(bundle, "an older copy of the volume is put back", refused);

        put_back(&genuine, &volume);
        bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("issued already");
    });
}

#[test]
fn the_volume_of_another_account_takes_its_place() {
    on_each_platform(|bundle| {
        bundle.enrol("default");
        // Another account of the same user, whose once-marker is not taken.
        bundle.script("create", &["--platform", bundle.platform.name(), "--account", "other"]).expect(0);
        let (volume, genuine) = (bundle.volume("default"), bundle.root.join("genuine"));
        let how = ByHand { account: "other", ..ByHand::default() };
        run(bundle.by_hand(&format!("{}/otpqr/check", bundle.known("other", &["namespace"])), &how)).expect(0);
        copy(&volume, &genuine);

        put_back(&bundle.volume("other"), &volume);
        let refused = bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("the volume was refused");
        assert!(!bundle.root.join("stolen.svg").exists());
        stopped(bundle, "the volume is swapped for another account's", refused);

        put_back(&genuine, &volume);
        bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("issued already");
    });
}

#[test]
fn a_volume_file_is_removed_while_otpqr_runs() {
    on_each_platform(|bundle| {
        bundle.script("create", &["--platform", bundle.platform.name()]).expect(0);
        let (volume, watched) = (bundle.volume("default"), bundle.volume("default"));
        let cas = bundle.known("default", &["cas", "enclave_address"]);
        let line = Line::hold(cas, move || holds_a_file(&watched), move || delete_files(&volume));
        let how = ByHand { cas: Some(&line.address), ..ByHand::default() };
        let attack = bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &how);
        let refused = run(attack).expect(134).saying("[SCONE|FATAL]");
        line.end();
        assert!(!bundle.issued_by_hand());
        stopped(bundle, "a volume file is removed while otpqr runs", refused);
        bundle.gen_qr(&[]).expect(5).saying("hint: ./scripts/roll_forward.rs");
    });
}

// --- What lies beside it

#[test]
fn the_scripts_state_is_rolled_back() {
    on_each_platform(|bundle| {
        let old = bundle.enrol("default");
        let (state, older, genuine) =
            (bundle.state_file("default"), bundle.root.join("older"), bundle.root.join("now"));
        copy(&state, &older);
        bundle.script("roll_forward", &["--yes"]).expect(0);
        copy(&state, &genuine);

        // Whatever the state says, the old secret is gone from the policies, and CAS does not return to an earlier version.
        copy(&older, &state);
        let refused = bundle.gen_qr(&["--output", "stolen.svg"]).expect(5);
        stopped(bundle, "the state is rolled back, and the QR code asked for again", refused);
        bundle.add_auth(&old.code_at(bundle.now()), &["--output", "stolen.svg"]).expect(5);
        for script in ["create", "roll_forward"] {
            let args = if script == "create" { &[][..] } else { &["--yes"] };
            let refused = bundle.script(script, args);
            assert!(matches!(refused.code, Some(4 | 5)), "{refused:?}");
            stopped(bundle, &format!("the state is rolled back, and {script} run"), refused);
        }
        assert!(!bundle.root.join("stolen.svg").exists());

        copy(&genuine, &state);
        bundle.gen_qr(&["--output", "new.svg"]).expect(0);
        assert_ne!(bundle.scan("new.svg").secret, old.secret);
    });
}

#[test]
fn the_caller_sets_the_programs_environment() {
    on_each_platform(|bundle| {
        bundle.enrol("default");
        let environment =
            [("OTP_RESET", "TRUE"), ("OTP_SINGLE_USE", "/out/once"), ("OTP_OUTPUT_FILE", "/out/stolen.svg")];
        let attack = ByHand { environment: &environment, ..ByHand::default() };
        let refused = run(bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &attack)).expect(10);
        assert!(!bundle.root.join("by-hand/stolen.svg").exists());
        assert!(!bundle.issued_by_hand());
        stopped(bundle, "the caller sets the program's environment", refused.saying("'/root/single_run/once'"));
    });
}

// --- Other programs, other policies, other people

#[test]
fn another_program_asks_for_the_secret() {
    on_each_platform(|bundle| {
        bundle.script("create", &["--platform", bundle.platform.name()]).expect(0);
        let attack = ByHand { program: "/scone-run", ..ByHand::default() };
        let refused = run(bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &attack)).expect(134);
        let expected = format!(" - Expected {}", bundle.known("default", &["mrenclave"]));
        let refused = refused.saying("Unexpected enclave measurement (MRENCLAVE, ").saying(&expected);
        stopped(bundle, "another program of the image asks for the secret", refused);

        let other = OtherImage::of(bundle);
        let attack = ByHand { image: Some(&other.name), ..ByHand::default() };
        let refused = run(bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &attack)).expect(134);
        stopped(bundle, "another image asks for the secret", refused.saying("Unexpected enclave measurement"));
        assert!(!bundle.issued_by_hand());

        run(bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &ByHand::default())).expect(0);
        assert!(bundle.issued_by_hand());
    });
}

/// Somebody with an account on the host and no other right, who has seen all names in `ps`.
#[test]
fn another_user_of_the_host_starts_the_program() {
    if !is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    let bundle = &Bundle::of_test(Platform::SimNative, User::Ordinary);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let own = tempfile::tempdir().expect("a directory");
    let [output, volume] = ["out", "volume"].map(|name| own.path().join(name));
    for directory in [&output, &volume] {
        fs::create_dir(directory).expect("a directory");
    }
    for directory in [own.path(), &output, &volume] {
        chown(directory, Some(ANOTHER), Some(ANOTHER)).expect("ownership");
    }
    let as_another = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={ANOTHER}"), format!("--regid={ANOTHER}")]).args(["--clear-groups", "--"]);
        command.arg(bundle.root.join("simulator/bin").join(program));
        command
    };
    let start = |key: Option<&str>| {
        let mut command = as_another("scone-run");
        command.arg("--rootfs").arg(bundle.known("default", &["image_id"]));
        command.arg(format!("--bind={}:/out", output.display()));
        command.arg(format!("--bind={}:/.sealed/root/single_run", volume.display()));
        command.arg("/bin/otpqr").env("SCONE_CONFIG_ID", config_id(bundle, "otpqr/otpqr"));
        command.env("SCONE_CAS_ADDR", bundle.known("default", &["cas", "enclave_address"]));
        command.envs(key.map(|key| ("SCONE_SIM_EVIDENCE_KEY", key)));
        run(command).expect(134)
    };

    start(None).saying("SCONE_SIM_EVIDENCE_KEY is not set");
    let made_up = start(Some(&bundle.known("default", &["cas", "key"])));
    stopped(bundle, "another user starts the program", made_up.saying("with this CAS's evidence key"));
    let mut read = as_another("scone-sim");
    read.args(["evidence-key", "--data"]).arg(bundle.root.join("data/scone-sim"));
    stopped(bundle, "another user asks for the evidence key", run(read).expect(1));
    assert!(!holds_a_file(&output));

    bundle.gen_qr(&[]).expect(0);
}

#[test]
fn a_policy_of_somebody_else_imports_the_secret() {
    on_each_platform(|bundle| {
        bundle.enrol("default");
        let stranger = Stranger::to(bundle, "default");
        let (namespace, mrenclave) = (bundle.known("default", &["namespace"]), bundle.known("default", &["mrenclave"]));
        // The very program, without a code: the policy alone would have to stop it.
        let policy = format!(
            "name: thief\n\
             version: \"0.3.10\"\n\
             services:\n\
             \x20 - name: otpqr\n\
             \x20   command: /bin/otpqr\n\
             \x20   pwd: /\n\
             \x20   attestation: [{{mrenclave: [\"{mrenclave}\"]}}]\n\
             \x20   environment:\n\
             \x20     OTP_SECRET: $$SCONE::otp_secret_1:base32nopad$$\n\
             \x20     OTP_ACCOUNT_NAME: a\n\
             \x20     OTP_ACCOUNT_LOGIN: b\n\
             \x20     OTP_OUTPUT_FILE: /out/qrcode.svg\n\
             \x20     OTP_SINGLE_USE: /out/once\n\
             secrets:\n\
             \x20 - name: otp_secret_1\n\
             \x20   kind: binary\n\
             \x20   size: 20\n\
             \x20   import: {{session: {namespace}/otpqr, secret: otp_secret_1}}\n\
             security: {{attestation: {{mode: hardware}}}}\n"
        );
        fs::write(bundle.root.join("thief.yml"), policy).expect("a policy");
        let uploaded = stranger.scone(&["session", "create", "thief.yml"]);
        let refused = match uploaded.code {
            Some(0) => run(bundle.by_hand("thief/otpqr", &ByHand::default())).expect(134),
            _ => uploaded,
        };
        assert!(!bundle.issued_by_hand());
        stopped(bundle, "a policy of somebody else imports the secret", refused);
    });
}

#[test]
fn somebody_else_updates_the_policies() {
    on_each_platform(|bundle| {
        let account = bundle.enrol("default");
        let stranger = Stranger::to(bundle, "default");
        let namespace = bundle.known("default", &["namespace"]);
        let refused = |outcome: Outcome| {
            assert_ne!(outcome.code, Some(0), "{outcome:?}");
            outcome
        };
        let (mut updated, mut read) = (None, None);
        for session in ["", "/otpqr", "/otpqr-reset"] {
            let name = format!("{namespace}{session}");
            // Somebody who has seen the policy, for example on the owner's host.
            fs::write(bundle.root.join("seen.yml"), bundle.scone(["session", "read", &name]).expect(0).stdout)
                .expect("a policy");
            updated = Some(refused(stranger.scone(&["session", "update", "seen.yml"])));
            read = Some(refused(stranger.scone(&["session", "read", &name])));
        }
        stopped(bundle, "another identity updates a policy", updated.expect("a refusal"));
        stopped(bundle, "another identity reads a policy", read.expect("a refusal"));
        // Nor may another identity add sessions to the namespace.
        fs::write(bundle.root.join("beside.yml"), format!("name: {namespace}/mine\nversion: \"0.3.10\"\n"))
            .expect("a policy");
        let added = refused(stranger.scone(&["session", "create", "beside.yml"]));
        stopped(bundle, "another identity adds a policy to the namespace", added);

        assert!(bundle.script("create", &[]).expect(0).stdout.starts_with("already created"));
        bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
    });
}

/// Whoever has the identity key owns the account, and nothing prevents what they do with it. But what they put back is another
/// version of the session, and every script sees that.
#[test]
fn the_thief_of_the_identity_fetches_the_secret_and_puts_the_policy_back() {
    on_each_platform(|bundle| {
        let account = bundle.enrol("default");
        let session = config_id(bundle, "otpqr");
        let policy = bundle.scone(["session", "read", &session]).expect(0).stdout;
        // `update` names the active version as the predecessor by itself.
        let policy = policy.replace("predecessor: null\n", "");
        let upload = |text: &str| {
            fs::write(bundle.root.join("thief.yml"), text).expect("a policy");
            bundle.scone(["session", "update", "thief.yml"]).expect(0);
        };
        let service = "services:
- name: steal
  command: /bin/otpqr
  environment: {OTP_SECRET: '$$SCONE::otp_secret_1:base32nopad$$', OTP_ACCOUNT_NAME: a, OTP_ACCOUNT_LOGIN: b,
    OTP_OUTPUT_FILE: /out/qrcode.svg, OTP_SINGLE_USE: /out/once}
";
        upload(&format!("security: {{attestation: {{mode: none}}}}\n{}", policy.replace("services:\n", service)));
        let other = OtherImage::of(bundle);
        let steal = ByHand { image: Some(&other.name), ..ByHand::default() };
        run(bundle.by_hand(&format!("{session}/steal"), &steal)).expect(0);
        assert_eq!(bundle.scan("by-hand/qrcode.svg").secret, account.secret);
        upload(&policy);

        let another_version = format!("session '{session}' is somebody else's version");
        let refused = bundle.gen_qr(&["--output", "new.svg"]).expect(5).saying(&another_version);
        bundle.add_auth(&account.code_at(bundle.now()), &["--output", "new.svg"]).expect(5).saying(&another_version);
        bundle.script("create", &[]).expect(5).saying(&another_version);
        bundle.script("roll_forward", &["--yes"]).expect(5).saying(&another_version);
        let report = bundle.script("doctor", &[]);
        assert!(
            report.stdout.contains(&format!("wrong policies  '{session}' is somebody else's version")),
            "{report:?}"
        );
        assert_eq!(report.code, Some(3));
        assert!(!bundle.root.join("new.svg").exists());
        revealed(bundle, "the identity is stolen, the policy changed, and put back", refused);
    });
}

/// A stolen first start cannot be prevented, since nobody has an authenticator yet. But it is noticed: the owner's is refused.
#[test]
fn a_first_start_that_was_stolen_is_revealed() {
    on_each_platform(|bundle| {
        bundle.script("create", &["--platform", bundle.platform.name()]).expect(0);
        run(bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &ByHand::default())).expect(0);
        assert!(bundle.issued_by_hand());
        let refused = bundle.gen_qr(&[]).expect(5).saying("issued already").saying("hint: ./scripts/roll_forward.rs");
        revealed(bundle, "the first start is stolen before the owner's", refused);

        // The new secret's first start can be stolen as the old one's.
        fs::remove_file(bundle.root.join("by-hand/qrcode.svg")).expect("deletion");
        bundle.script("roll_forward", &["--yes"]).expect(0);
        run(bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &ByHand::default())).expect(0);
        assert!(bundle.issued_by_hand());
        let refused = bundle.gen_qr(&[]).expect(5).saying("issued already");
        revealed(bundle, "the first start after a roll-forward is stolen", refused);
    });
}

/// Our locks do not bind an attacker: here each start has its own copy of the volume, so that no lock keeps them apart.
#[test]
fn of_many_first_starts_at_once_one_is_issued() {
    on_each_platform(|bundle| {
        bundle.script("create", &["--platform", bundle.platform.name()]).expect(0);
        let config_id = config_id(bundle, "otpqr/otpqr");
        let own = ["0", "1", "2", "3"].map(|start| (format!("out-{start}"), format!("volume-{start}")));
        let outcomes = at_once(own.iter().map(|(out, volume)| {
            bundle.by_hand(&config_id, &ByHand { out, volume: Some(volume), ..ByHand::default() })
        }));
        let issued: Vec<bool> = own.iter().map(|(out, _)| bundle.issued_to(out)).collect();
        assert_eq!(issued.iter().filter(|issued| **issued).count(), 1, "{outcomes:?}");
        for (outcome, issued) in outcomes.into_iter().zip(issued) {
            outcome.expect(if issued { 0 } else { 134 });
        }
        let refused = bundle.gen_qr(&[]).expect(5).saying("hint: ./scripts/roll_forward.rs");
        revealed(bundle, "the first start is raced", refused);
    });
}

#[test]
fn of_many_runs_of_gen_qr_at_once_one_delivers() {
    on_each_platform(|bundle| {
        bundle.script("create", &["--platform", bundle.platform.name()]).expect(0);
        let outcomes = at_once(
            (0..4).map(|run| bundle.script_command("gen_qr", &["--no-confirm", "--output", &format!("{run}.svg")])),
        );
        let issued = (0..4).filter(|run| bundle.root.join(format!("{run}.svg")).exists()).count();
        assert_eq!(issued, 1, "{outcomes:?}");
        bundle.gen_qr(&["--output", "again.svg"]).expect(5).saying("issued already");
    });
}

// --- Codes

#[test]
fn a_start_without_a_code_where_one_is_needed() {
    on_each_platform(|bundle| {
        bundle.enrol("default");
        let reset = config_id(bundle, "otpqr-reset/otpqr");
        let refused = run(bundle.by_hand(&reset, &ByHand::default())).expect(134);
        assert!(!bundle.issued_by_hand());
        let refused = refused.saying("An One-time Password is required to access this session");
        stopped(bundle, "a start without a code", refused);
    });
}

#[test]
fn a_code_is_presented_mistyped_late_or_twice() {
    on_each_platform(|bundle| {
        let account = bundle.enrol("default");
        let code = account.code_at(bundle.now());
        let add_auth = |code: &str| bundle.add_auth(code, &["--output", "stolen.svg"]).expect(5);

        // Two neighbouring digits swapped or, if they are equal, some other wrong code.
        let mut mistyped = code.clone().into_bytes();
        match mistyped.windows(2).position(|pair| pair[0] != pair[1]) {
            Some(at) => mistyped.swap(at, at + 1),
            None => mistyped[0] ^= 1,
        }
        let mistyped = String::from_utf8(mistyped).expect("digits");
        stopped(bundle, "a mistyped code", add_auth(&mistyped).saying("One-time Password is invalid"));

        bundle.add_auth(&code, &["--output", "second.svg"]).expect(0);
        stopped(bundle, "a code that was used", add_auth(&code).saying("already used"));
        bundle.wait(90);
        let late = account.code_at(bundle.now());
        bundle.wait(90);
        stopped(bundle, "a code that was seen and kept", add_auth(&late).saying("One-time Password is invalid"));
        assert!(!bundle.root.join("stolen.svg").exists());

        bundle.add_auth(&account.code_at(bundle.now()), &["--output", "third.svg"]).expect(0);
    });
}

#[test]
fn of_many_starts_with_one_code_one_is_accepted() {
    on_each_platform(|bundle| {
        let account = bundle.enrol("default");
        // The service that has no volume: nothing but the code can tell these starts apart.
        let confirm = config_id(bundle, &format!("otpqr-reset/confirm@{}", account.code_at(bundle.now())));
        let outcomes = at_once((0..4).map(|_| bundle.by_hand(&confirm, &ByHand::default())));
        let (accepted, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|start| start.code == Some(0));
        assert_eq!((accepted.len(), refused.len()), (1, 3), "{refused:?}");
        let mut refused: Vec<_> = refused.into_iter().map(|start| start.expect(134).saying("already used")).collect();
        stopped(bundle, "a code is raced", refused.pop().expect("a loser"));
    });
}

#[test]
fn codes_are_guessed() {
    on_each_platform(|bundle| {
        let account = bundle.enrol("default");
        let near: Vec<String> = (0..3).map(|step| account.code_at(bundle.now() + 30 * step - 30)).collect();
        let wrong = (0..).map(|code| format!("{code:06}")).filter(|code| !near.contains(code));
        let add_auth = |code: &str| bundle.add_auth(code, &["--output", "stolen.svg"]).expect(5);
        for wrong in wrong.take(5) {
            add_auth(&wrong).saying("One-time Password is invalid");
        }
        // From now on even the right code has to wait.
        stopped(bundle, "codes are guessed", add_auth(&near[1]).saying("Too many wrong One-time Passwords"));
        assert!(!bundle.root.join("stolen.svg").exists());
    });
}

#[test]
fn a_code_of_another_account_is_presented() {
    on_each_platform(|bundle| {
        let account = bundle.enrol("default");
        let other = bundle.enrol("other");
        let code = other.code_at(bundle.now());
        let refused = bundle.add_auth(&code, &["--output", "stolen.svg"]).expect(5);
        stopped(bundle, "a code of another account", refused.saying("One-time Password is invalid"));
        assert!(!bundle.root.join("stolen.svg").exists());
        // For its owner it is not spent.
        bundle.add_auth(&code, &["--account", "other", "--output", "second.svg"]).expect(0);
        bundle.add_auth(&account.code_at(bundle.now()), &["--output", "third.svg"]).expect(0);
    });
}

/// CAS consumes a code before it judges the program: a wrong program cannot find out whether a code was right.
#[test]
fn a_code_presented_by_the_wrong_program_is_spent() {
    on_each_platform(|bundle| {
        let account = bundle.enrol("default");
        let code = account.code_at(bundle.now());
        let reset = config_id(bundle, &format!("otpqr-reset/otpqr@{code}"));
        let attack = ByHand { program: "/scone-run", ..ByHand::default() };
        let refused = run(bundle.by_hand(&reset, &attack)).expect(134).saying("Unexpected enclave measurement");
        stopped(bundle, "the wrong program presents a right code", refused);
        bundle.add_auth(&code, &["--output", "second.svg"]).expect(5).saying("already used");
        bundle.wait(30);
        bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
    });
}

// --- The line to CAS

/// The bytes of a genuine start, replayed: they belong to the TLS connection for which they were made. (That the evidence in
/// them is bound to its connection, too, is tested where it can be forged: simulator/cas/tests/cas.rs.)
#[test]
fn recorded_evidence_is_replayed() {
    on_each_platform(|bundle| {
        bundle.script("create", &["--platform", bundle.platform.name()]).expect(0);
        let cas = bundle.known("default", &["cas", "enclave_address"]);
        let line = Line::hold(cas.clone(), || false, || {});
        let how = ByHand { cas: Some(&line.address), ..ByHand::default() };
        run(bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &how)).expect(0);
        let recorded = line.end();
        assert!(recorded.len() > 1000, "{} bytes", recorded.len());
        let attested = || bundle.scone_sim(["log", "--json"]).expect(0).stdout.matches("\"service attested\"").count();
        assert_eq!(attested(), 1);
        replay(&cas, &recorded);
        assert_eq!(attested(), 1);
        report(
            bundle,
            "recorded evidence is replayed",
            "stopped",
            "TLS: CAS hung up, and its log names no second start",
        );
    });
}

/// Starts all, then waits for all.
fn at_once(commands: impl Iterator<Item = Command>) -> Vec<Outcome> {
    let started: Vec<_> = commands
        .map(|mut command| command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a start"))
        .collect();
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8 output");
    let ended = started.into_iter().map(|child| {
        let output = child.wait_with_output().expect("an end");
        Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    });
    ended.collect()
}
