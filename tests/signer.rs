//! The signer (programs/signer) as its README protects it: whoever signs needs a code, whoever verifies needs nothing. What it
//! signs, and what it refuses to, its own tests say.

use std::fs;
use std::process::Command;

use crate::support::program::{by_hand, service_by_hand};
use crate::support::protected::Protected;
use crate::support::{Bundle, Platform, User, copy, docker_is_there, image, run, works};

const PROTECTED: &[&str] = &[
    "--secret",
    "SIGNER_KEY=p256",
    "--command",
    "/bin/signer sign @@1",
    "--open",
    "/bin/signer public",
    "--mount-point",
    "/in",
];

/// The program sees the directory `files` of the caller's.
const SIGN: &[&str] = &["--mount", "type=bind,src=files,dst=/in", "--", "/in/release.tar"];

/// A protected signer, and files to sign.
fn signer(platform: Platform) -> Protected {
    let signer = Protected::new("signer", platform, scripts!(), image::signer);
    let files = signer.bundle.root.join("files");
    fs::create_dir(&files).expect("a directory");
    fs::write(files.join("release.tar"), "what is released").expect("a file");
    fs::write(files.join("altered.tar"), "what is released!").expect("a file");
    signer.protect(PROTECTED).expect(0);
    signer
}

/// The public key, as anybody gets it.
fn public_key(signer: &Protected) -> String {
    signer.start_without_code(&["--open"]).expect(0).stdout
}

/// As anybody verifies: with openssl, the file, the signature as it was printed, and the public key.
fn verifies(signer: &Protected, file: &str, signature: &str, public_key: &str) -> bool {
    let directory = &signer.bundle.root.join("files");
    fs::write(directory.join("signature.b64"), signature).expect("a file");
    fs::write(directory.join("public.pem"), public_key).expect("a file");
    let openssl = |arguments: &[&str]| {
        let mut openssl = Command::new("openssl");
        openssl.current_dir(directory).args(arguments);
        run(openssl)
    };
    openssl(&["base64", "-d", "-A", "-in", "signature.b64", "-out", "signature.der"]).expect(0);
    let verified = openssl(&["dgst", "-sha256", "-verify", "public.pem", "-signature", "signature.der", file]);
    assert!(
        matches!(verified.stdout.trim(), "Verified OK" | "Verification failure" | "Verification Failure"),
        "{verified:?}"
    );
    verified.code == Some(0)
}

fn who_signs_needs_a_code_and_who_verifies_needs_none(platform: Platform) {
    let signer = signer(platform);
    // Where a program's files are, nothing of the caller's is mounted.
    let elsewhere = ["--mount", "type=bind,src=files,dst=/bin", "--", "/bin/release.tar"];
    signer.start_with("123456", &elsewhere).expect(2).saying("nothing of this host's may be mounted at '/bin'");
    let signature = signer.starts_with_a_code_alone(SIGN).stdout;

    // A key that the caller brings is not the policy's.
    let public_key = public_key(&signer);
    let brought = signer.start_by_hand("signer/open", &[], &[("SIGNER_KEY", "mine")]).expect(0).stdout;
    assert_eq!(brought, public_key);
    assert!(!verifies(&signer, "altered.tar", &signature, &public_key));
    assert!(verifies(&signer, "release.tar", &signature, &public_key));

    // What is open is the public key alone.
    signer
        .start_without_code(&["--open", "--", "/in/release.tar"])
        .expect(2)
        .saying("takes 0 of its caller's arguments");
    let more = signer.start_by_hand("signer/open", &["sign", "/in/release.tar"], &[]).expect(0).stdout;
    assert_eq!(more, public_key);

    // Nobody but the program has the key: not who reads policies and state, not who starts it without CAS.
    let namespace = signer.bundle.known("default", &["namespace"]);
    for session in ["signer", "signer/default"] {
        let read = signer.bundle.scone(["session", "read", &format!("{namespace}/{session}")]).expect(0).stdout;
        assert!(read.contains("SIGNER_KEY") && !read.contains("PRIVATE KEY"), "{read}");
    }
    for (path, content) in signer.bundle.written() {
        assert!(!String::from_utf8_lossy(&content).contains("PRIVATE KEY"), "{}", path.display());
    }
    let unprotected = by_hand(&signer.bundle, &image_id(&signer), &["/bin/signer", "sign", "/in/release.tar"], &[]);
    run(unprotected).expect(11).saying("SIGNER_KEY is not set");
}

fn the_key_survives_an_update_and_a_roll_forward(platform: Platform) {
    let mut signer = signer(platform);
    let public_key = public_key(&signer);

    let updated = signer.bundle.script("protect", &["signer", "--env", "MODE=careful"]).expect(0).stdout;
    assert!(updated.starts_with("updated: 'signer'"), "{updated}");
    assert_eq!(self::public_key(&signer), public_key);
    let signature = signer.start(SIGN).expect(0).stdout;
    assert!(verifies(&signer, "release.tar", &signature, &public_key));

    signer.bundle.script("roll_forward", &["--yes"]).expect(0);
    let old = signer.alice.code_at(signer.bundle.now());
    signer.refuses("before roll_forward", &old, "One-time Password is invalid", SIGN);
    signer.bundle.gen_qr(&["--output", "new.svg"]).expect(0);
    signer.alice = signer.bundle.scan("new.svg");
    assert_eq!(self::public_key(&signer), public_key);
    let signature = signer.start(SIGN).expect(0).stdout;
    assert!(!verifies(&signer, "altered.tar", &signature, &public_key));
    assert!(verifies(&signer, "release.tar", &signature, &public_key));
}

/// What a code alone cannot say: how often, whoever has codes.
fn it_signs_as_often_as_it_was_granted_and_not_once_more(platform: Platform) {
    let signer = signer(platform);
    let protect = |options: &[&str]| signer.bundle.script("protect", &[&["signer"], options].concat());
    for bad in ["0", "-1", "1000001", "x"] {
        protect(&["--starts", bad]).expect(2);
    }
    protect(&["--env", "PERMIT_STARTS=9"]).expect(2).saying("is said with '--starts'");
    protect(&["--counts-itself"]).expect(2).saying("--starts");
    assert!(protect(&["--starts", "2", "--counts-itself"]).expect(0).stdout.contains("\n  starts     2 in all\n"));

    // What is not signed is not counted, nor is what takes no code.
    let missing = [&SIGN[..3], &["/in/missing.tar"]].concat();
    signer.start(&missing).expect(12);
    let public_key = public_key(&signer);
    let sealed = signer.bundle.root.join("state/volumes/default/programs/signer");
    let before = signer.bundle.root.join("before");
    let first = signer.start(SIGN).expect(0).saying("signer: start 1 of 2");
    assert!(verifies(&signer, "release.tar", &first.stdout, &public_key));
    copy(&sealed, &before);
    signer.start(SIGN).expect(0).saying("signer: start 2 of 2");
    signer.start(SIGN).expect(10).saying("signer: error: all 2 starts are taken");

    // The volume as it was before the last one.
    let spent = signer.bundle.root.join("spent");
    fs::rename(&sealed, &spent).expect("a move");
    fs::rename(&before, &sealed).expect("a move");
    signer.start(SIGN).expect(5).saying("The FSPF tag is not fresh - suspected replay attack");
    // Nothing in its place.
    fs::rename(&sealed, &before).expect("a move");
    signer.start(SIGN).expect(5).saying("file system protection file was removed");
    let _ = fs::remove_dir_all(&sealed);
    fs::rename(&spent, &sealed).expect("a move");

    // Described anew, it is limited as it was; a higher number is those that were granted and more.
    signer.protect(PROTECTED).expect(0);
    signer.start(SIGN).expect(10).saying("all 2 starts are taken");
    protect(&["--starts", "3"]).expect(0);
    signer.start(SIGN).expect(0).saying("signer: start 3 of 3");
    signer.start(SIGN).expect(10).saying("all 3 starts are taken");
    signer.bundle.script("roll_forward", &["--yes"]).expect(0);
    signer.bundle.gen_qr(&["--output", "new.svg"]).expect(0);
    let alice = signer.bundle.scan("new.svg");
    let code = alice.code_at(signer.bundle.now());
    signer.start_with(&code, SIGN).expect(10).saying("all 3 starts are taken");
    signer.bundle.wait(30);
    // Its owner can begin anew, and is asked.
    protect(&["--new-volumes"]).expect(2).saying("'--yes'");
    protect(&["--new-volumes", "--yes"]).expect(0);
    signer.start_with(&alice.code_at(signer.bundle.now()), SIGN).expect(0).saying("signer: start 1 of 3");
}

/// What the state says of the image that it is started from.
fn image_id(signer: &Protected) -> String {
    let state = signer.bundle.state("default");
    state["programs"]["signer"]["image_id"].as_str().expect("an ID").to_owned()
}

/// The thief has the disk - state, image, volumes - and a CAS; and the codes, for that matter.
fn who_copies_disk_and_state_has_nothing(platform: Platform) {
    let signer = signer(platform);
    let public_key = public_key(&signer);
    let thief = Bundle::of_test(platform, User::Caller);
    thief.install(scripts!());
    copy(&signer.bundle.root.join("state"), &thief.root.join("state"));
    signer.bundle.scone_sim(["down"]).expect(0);

    // The thief's CAS is not the one that was pinned, and does not know the policies.
    let code = signer.alice.code_at(signer.bundle.now());
    thief.script("start", &["signer", "--open"]).expect(3).saying("is not the one this account was created on");
    let service = format!("{}/signer/default/program@{code}", signer.bundle.known("default", &["namespace"]));
    let words = ["/bin/signer", "sha256:0000000000000000000000000000000000000000000000000000000000000000"];
    let start = service_by_hand(&thief, &image_id(&signer), &service, &words, &[]);
    run(start).expect(134).saying("Session or service does not exist");

    // With an account of the thief's own it is a signer with another key.
    thief.enrol("thief");
    let image = signer.bundle.state("default")["programs"]["signer"]["image"].as_str().expect("an image").to_owned();
    thief.script("protect", &[&["signer", "--account", "thief", "--image", &image], PROTECTED].concat()).expect(0);
    let stolen = thief.script("start", &["signer", "--account", "thief", "--open"]).expect(0).stdout;
    assert!(stolen.contains("PUBLIC KEY") && stolen != public_key, "{stolen}");
}

fn openssl_is_there() -> bool {
    works("openssl", &["version"], "apt-get install openssl")
}

#[test]
fn natively_who_signs_needs_a_code_and_who_verifies_needs_none() {
    if openssl_is_there() {
        who_signs_needs_a_code_and_who_verifies_needs_none(Platform::SimNative);
    }
}

#[test]
fn in_a_container_who_signs_needs_a_code_and_who_verifies_needs_none() {
    if openssl_is_there() && docker_is_there() {
        who_signs_needs_a_code_and_who_verifies_needs_none(Platform::Sim);
    }
}

#[test]
fn natively_the_key_survives_an_update_and_a_roll_forward() {
    if openssl_is_there() {
        the_key_survives_an_update_and_a_roll_forward(Platform::SimNative);
    }
}

#[test]
fn in_a_container_the_key_survives_an_update_and_a_roll_forward() {
    if openssl_is_there() && docker_is_there() {
        the_key_survives_an_update_and_a_roll_forward(Platform::Sim);
    }
}

#[test]
fn natively_who_copies_disk_and_state_has_nothing() {
    who_copies_disk_and_state_has_nothing(Platform::SimNative);
}

#[test]
fn in_a_container_who_copies_disk_and_state_has_nothing() {
    if docker_is_there() {
        who_copies_disk_and_state_has_nothing(Platform::Sim);
    }
}

#[test]
fn natively_it_signs_as_often_as_it_was_granted_and_not_once_more() {
    if openssl_is_there() {
        it_signs_as_often_as_it_was_granted_and_not_once_more(Platform::SimNative);
    }
}

#[test]
fn in_a_container_it_signs_as_often_as_it_was_granted_and_not_once_more() {
    if openssl_is_there() && docker_is_there() {
        it_signs_as_often_as_it_was_granted_and_not_once_more(Platform::Sim);
    }
}
