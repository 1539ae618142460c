//! What docs/threat-model.md says about codes that somebody else sees and no other test shows: what can be done with such a code,
//! and how its owner notices. Also, that `make attacks` shows the attacks it names.

use std::collections::BTreeSet;
use std::fs;

use crate::support::{Bundle, ByHand, Platform, User, repository, run};

fn bundle() -> Bundle {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle
}

/// Whoever sees a code but does not have the volume gets no QR code. The code is spent all the same.
#[test]
fn a_code_that_was_seen_issues_no_qr_code_without_the_volume() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let code = account.code_at(bundle.now());
    let reset = format!("{}/otpqr-reset/otpqr@{code}", bundle.known("default", &["namespace"]));
    let (volume, aside) = (bundle.volume("default"), bundle.root.join("aside"));
    fs::rename(&volume, &aside).expect("the volume, out of reach");
    run(bundle.by_hand(&reset, &ByHand::default())).expect(134).saying("file system protection file was removed");
    assert!(!bundle.issued_by_hand());

    fs::remove_dir_all(&volume).expect("the empty directory");
    fs::rename(&aside, &volume).expect("the volume");
    bundle.add_auth(&code, &["--output", "second.svg"]).expect(5).saying("already used");
    bundle.wait(30);
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
}

/// A code is not bound to a service: root on the host can take one that was typed for a confirmation and, with the volume, have
/// the QR code issued. That is not prevented, but the owner notices: the confirmation is refused.
#[test]
fn a_code_that_was_seen_is_good_once_at_any_service_of_its_secret() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    let code = account.code_at(bundle.now());
    let service = |service: &str| format!("{}/otpqr-reset/{service}@{code}", bundle.known("default", &["namespace"]));
    run(bundle.by_hand(&service("otpqr"), &ByHand::default())).expect(0);
    assert!(bundle.issued_by_hand());
    run(bundle.by_hand(&service("confirm"), &ByHand::default())).expect(134).saying("already used");
}

/// The page lists all attacks: each test of tests/attacks.rs that it names is a line of `make attacks`, and the reverse.
#[test]
fn the_attacks_of_the_threat_model_are_the_ones_that_are_shown() {
    let read = |name: &str| fs::read_to_string(repository().join(name)).expect("a file");
    let (source, model) = (read("tests/attacks.rs"), read("docs/threat-model.md"));
    let mut named: BTreeSet<&str> = BTreeSet::new();
    for name in model.split("tests/attacks.rs::").skip(1) {
        named.insert(name.split('`').next().expect("a name"));
    }
    let tests = source.split("#[test]\nfn ").skip(1);
    let mut shown: BTreeSet<&str> = BTreeSet::new();
    for test in tests {
        let body = test.split("\n}\n").next().expect("a body");
        if ["stopped(bundle, ", "revealed(bundle, ", "report(\n"].into_iter().any(|announces| body.contains(announces))
        {
            shown.insert(test.split('(').next().expect("a name"));
        }
    }
    assert!(named.len() > 10, "{named:?}");
    assert_eq!(named, shown);
}
