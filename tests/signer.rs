//! The signer (programs/signer) as CAS gives it its key: whoever signs needs a code, whoever verifies needs nothing. What it
//! signs, and what it refuses to, its own tests say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::program::Program;
use crate::support::{Platform, docker_is_there, phone, repository, run, works};

/// CAS draws the key. Who may sign has this secret in an authenticator; anybody may have the public key.
const POLICY: &str = r#"
name: signing
version: "0.3.10"
predecessor: PREDECESSOR
services:
  - name: sign
    image_name: signer
    command: [/bin/signer, sign, "@@1"]
    pwd: /
    attestation: [mrenclave: [MEASUREMENT]]
    environment: {SIGNER_KEY: "$$SCONE::signing_key:pkcs8:pem$$"}
    one_time_password_shared_secret: BASE32SECRET3232BASE32SECRET3232
  - name: public
    image_name: signer
    command: /bin/signer public
    pwd: /
    attestation: [mrenclave: [MEASUREMENT]]
    environment: {SIGNER_KEY: "$$SCONE::signing_key:pkcs8:pem$$"}
images: [{name: signer}]
secrets: [{name: signing_key, kind: private-key, key_type: P-256, migrate: true}]
security: {attestation: {mode: hardware}}
"#;
const ENTRY: &str = "otpauth://totp/Signer:alice?secret=BASE32SECRET3232BASE32SECRET3232&issuer=Signer&algorithm=SHA1&digits=6&period=30";

fn image(at: &Path) -> PathBuf {
    let built = repository().join("programs/bin/signer");
    assert!(built.exists(), "the signer is not built: make programs");
    fs::create_dir_all(at.join("bin")).expect("a directory");
    fs::copy(built, at.join("bin/signer")).expect("the signer");
    fs::create_dir(at.join("in")).expect("a directory");
    PathBuf::from("/bin/signer")
}

/// As anybody verifies: with openssl, the file, the signature as it was printed, and the public key.
fn verifies(directory: &Path, file: &str, signature: &str, public_key: &str) -> bool {
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
    let mut signer = Program::new("signer", platform, &[], image);
    let files = signer.bundle.root.join("files");
    fs::create_dir(&files).expect("a directory");
    fs::write(files.join("release.tar"), "what is released").expect("a file");
    fs::write(files.join("altered.tar"), "what is released!").expect("a file");
    signer.bind = Some((files.clone(), "/in"));
    let policy = POLICY.replace("MEASUREMENT", &signer.measurement());
    let first = signer.upload(&policy.replace("PREDECESSOR", "~"));

    let alice = phone::parse_key_uri(ENTRY).expect("an entry");
    let signature = signer.starts_with_a_code_alone("signing/sign", &["/in/release.tar"], &alice);

    // A key that the caller brings is not the policy's.
    let public = |environment: &[(&str, &str)]| signer.start("signing/public", &[], environment).expect(0).stdout;
    let public_key = public(&[("SIGNER_KEY", "mine")]);
    assert!(!verifies(&files, "altered.tar", &signature, &public_key));
    assert!(verifies(&files, "release.tar", &signature, &public_key));

    // Nobody but the program has the key: not who reads the policy, not who starts it without CAS.
    let read = signer.bundle.scone(["session", "read", "signing"]).expect(0).stdout;
    assert!(read.contains("signing_key") && !read.contains("PRIVATE KEY"), "{read}");
    signer.start_unprotected(&["sign", "/in/release.tar"], &[]).expect(11).saying("SIGNER_KEY is not set");

    // The key survives an update.
    signer.upload(&policy.replace("PREDECESSOR", &first).replace("pwd: /\n", "pwd: /bin\n"));
    assert_eq!(public(&[]), public_key);
    let service = format!("signing/sign@{}", alice.code_at(signer.bundle.now()));
    let again = signer.start(&service, &["/in/release.tar"], &[]).expect(0).stdout;
    assert!(verifies(&files, "release.tar", &again, &public_key));
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
