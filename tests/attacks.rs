//! What an attacker with root on the host tries, and what stops it. Each attack is tried on both platforms; each is first
//! refused, and where there is a way back to the genuine state, that state then works.

mod support;

use std::fs;

use support::attacker::{Line, OtherImage, delete_files, holds_a_file, put_back};
use support::{Bundle, ByHand, Platform, User, copy, docker_is_there, run};

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

#[test]
fn the_volumes_files_are_deleted() {
    on_each_platform(|bundle| {
        let account = bundle.enrol("default");
        let volume = bundle.volume("default");
        let genuine = bundle.root.join("genuine");
        copy(&volume, &genuine);

        delete_files(&volume);
        bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("the volume was refused");
        fs::remove_dir_all(&volume).expect("deletion");
        bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("the volume was refused");
        // The code is not asked for, so it is not spent, while the volume is not right.
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
        // The service `check` initialises the volume and takes no marker: the best an attacker can have.
        run(bundle.by_hand(&config_id(bundle, "otpqr/check"), &ByHand::default())).expect(0);
        let (volume, older) = (bundle.volume("default"), bundle.root.join("older"));
        copy(&volume, &older);
        bundle.gen_qr(&[]).expect(0);
        let genuine = bundle.root.join("genuine");
        copy(&volume, &genuine);

        put_back(&older, &volume);
        bundle.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("suspected replay attack");
        assert!(!bundle.root.join("stolen.svg").exists());

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
        run(attack).expect(134).saying("[SCONE|FATAL]");
        line.end();
        assert!(!bundle.issued_by_hand());
        bundle.gen_qr(&[]).expect(5).saying("hint: ./scripts/roll_forward.rs");
    });
}

#[test]
fn the_caller_sets_the_programs_environment() {
    on_each_platform(|bundle| {
        bundle.enrol("default");
        let environment =
            [("OTP_RESET", "TRUE"), ("OTP_SINGLE_USE", "/out/once"), ("OTP_OUTPUT_FILE", "/out/stolen.svg")];
        let attack = ByHand { environment: &environment, ..ByHand::default() };
        run(bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &attack)).expect(10).saying("'/root/single_run/once'");
        assert!(!bundle.root.join("by-hand/stolen.svg").exists());
        assert!(!bundle.issued_by_hand());
    });
}

#[test]
fn another_program_asks_for_the_secret() {
    on_each_platform(|bundle| {
        bundle.script("create", &["--platform", bundle.platform.name()]).expect(0);
        let attack = ByHand { program: "/scone-run", ..ByHand::default() };
        let refused = run(bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &attack)).expect(134);
        let measured = bundle.known("default", &["mrenclave"]);
        refused.saying("Unexpected enclave measurement (MRENCLAVE, ").saying(&format!(" - Expected {measured}"));

        let other = OtherImage::of(bundle);
        let attack = ByHand { image: Some(&other.name), ..ByHand::default() };
        run(bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &attack))
            .expect(134)
            .saying("Unexpected enclave measurement");
        assert!(!bundle.issued_by_hand());

        run(bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &ByHand::default())).expect(0);
        assert!(bundle.issued_by_hand());
    });
}

#[test]
fn a_start_without_a_code_where_one_is_needed() {
    on_each_platform(|bundle| {
        bundle.enrol("default");
        let reset = config_id(bundle, "otpqr-reset/otpqr");
        run(bundle.by_hand(&reset, &ByHand::default()))
            .expect(134)
            .saying("An One-time Password is required to access this session");
        assert!(!bundle.issued_by_hand());
    });
}

/// A stolen first start cannot be prevented - nobody has an authenticator yet - but it is seen: the owner's is refused.
#[test]
fn a_first_start_that_was_stolen_is_revealed() {
    on_each_platform(|bundle| {
        bundle.script("create", &["--platform", bundle.platform.name()]).expect(0);
        run(bundle.by_hand(&config_id(bundle, "otpqr/otpqr"), &ByHand::default())).expect(0);
        assert!(bundle.issued_by_hand());
        bundle.gen_qr(&[]).expect(5).saying("issued already").saying("hint: ./scripts/roll_forward.rs");
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
        run(bundle.by_hand(&reset, &attack)).expect(134).saying("Unexpected enclave measurement");
        bundle.add_auth(&code, &["--output", "second.svg"]).expect(5).saying("already used");
        bundle.wait(30);
        bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
    });
}
