//! Signed programs: signed with the `scone-signer` that `make sim` built, with keys that openssl made, and judged by that CAS.

#[allow(dead_code)]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ring::digest::{SHA256, digest};
use scone_protocol::{hex, unhex};
use support::{Cas, bin};
use tempfile::TempDir;

/// An image with a static program that says its arguments, two signers' keys, and a CAS.
struct Host {
    directory: TempDir,
    cas: Cas,
}

impl Host {
    /// `None`, and a word about it, where there is no openssl.
    fn new() -> Option<Host> {
        if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
            assert!(std::env::var_os("REQUIRE_DOCKER").is_none_or(|value| value != "1"), "missing: openssl");
            eprintln!("SKIPPED: missing: openssl");
            return None;
        }
        let directory = TempDir::new().unwrap();
        for name in ["image/bin", "cas"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        let cas = Cas::serve(&directory.path().join("cas"));
        let host = Host { directory, cas };
        support::compile_probe(&host.program());
        for key in ["ours", "theirs"] {
            openssl(&["genrsa", "-3", "-out", host.path(key).to_str().unwrap(), "3072"]);
        }
        Some(host)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn program(&self) -> PathBuf {
        self.path("image/bin/probe")
    }

    fn sign(&self, key: &str, options: &[&str]) {
        let mut sign = Command::new(bin().join("scone-signer"));
        let signed =
            sign.arg("sign").arg("--key").arg(self.path(key)).args(options).arg(self.program()).output().unwrap();
        assert!(signed.status.success(), "{}", text(&signed.stderr));
    }

    fn runtime(&self, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scone-run"));
        command.arg("--rootfs").arg(self.path("image")).args(options).arg("/bin/probe").stdin(Stdio::null());
        command
    }

    fn hash(&self) -> String {
        let output = self.runtime(&[]).env("SCONE_HASH", "1").output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim_end().to_owned()
    }

    /// A session whose service `s` has this attestation.
    fn create(&self, session: &str, attestation: &str) {
        self.cas.create_session(&format!(
            "name: {session}\nversion: \"0.3.10\"\nservices:\n  - name: s\n    command: [/bin/probe, arguments]\n    pwd: /\n    \
             attestation: {attestation}\nsecurity: {{attestation: {{mode: hardware}}}}\n"
        ));
    }

    fn start(&self, session: &str, options: &[&str]) -> Output {
        self.start_at(&self.cas.enclave, session, options)
    }

    fn start_at(&self, address: &str, session: &str, options: &[&str]) -> Output {
        let mut command = self.runtime(options);
        command.env("SCONE_CAS_ADDR", address).env("SCONE_SIM_CAS_KEY", &self.cas.key);
        command.env("SCONE_SIM_EVIDENCE_KEY", &self.cas.evidence_key);
        command.env("SCONE_CONFIG_ID", format!("{session}/s")).output().unwrap()
    }

    /// The whole frame. `why`: the lines below the first of those that are nested.
    #[track_caller]
    fn refuses(&self, session: &str, options: &[&str], why: &str) {
        let output = self.start(session, options);
        let (error, port) = (text(&output.stderr), self.cas.enclave.rsplit_once(':').unwrap().1);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(134), ""), "{error}");
        let (_, frame) = error.split_once("(scone-sim: software only)\n").expect("the warning");
        let expected = format!(
            "[SCONE|FATAL] src/process/init.c:302:__scone_prepare_secure_config(): Could not initialize enclave state: \
             Attestation failed\n  Caused by: CAS sent an attestation/configuration error: DCAP quote verification failed\n  \
             Caused by: Failed to verify DCAP report\n  Caused by: The program enclave is not trustworthy\n    \
             Caused by: None of the required enclave properties are met by the enclave\n{why}\
             Note: Connecting to CAS at 127.0.0.1 (port {port}) using service ID {session}/s\n"
        );
        assert_eq!(frame, expected);
    }
}

fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// As Intel defines it, from what openssl says of the key.
fn mrsigner(key: &Path) -> String {
    let printed = openssl(&["rsa", "-noout", "-modulus", "-in", key.to_str().unwrap()]);
    let digits = printed.trim_end().strip_prefix("Modulus=").unwrap().to_ascii_lowercase();
    let mut modulus = unhex(&digits).unwrap();
    modulus.reverse();
    hex(digest(&SHA256, &modulus).as_ref())
}

#[test]
fn a_signed_program_starts_as_its_signers_product_in_a_version_that_is_admitted() {
    let Some(host) = Host::new() else { return };
    let (ours, theirs) = (mrsigner(&host.path("ours")), mrsigner(&host.path("theirs")));
    let signer = |more: &str| format!("signer: {{mrsigner: {ours}, isvprodid: 22{more}}}");
    host.create("ours", &format!("{{{}}}", signer("")));
    host.create("from-2", &format!("{{{}}}", signer(", isvsvn_min: 2")));
    let line = |line: &str| format!("    Caused by: {line}\n");

    let unsigned = format!("The enclave is not signed - Expected MRSIGNER {ours}");
    host.refuses("ours", &[], &line(&unsigned));
    host.sign("theirs", &["--isvprodid", "22", "--isvsvn", "2"]);
    host.refuses("ours", &[], &line(&format!("Unexpected enclave signer (MRSIGNER, {theirs}) - Expected {ours}")));
    host.sign("ours", &["--isvprodid", "23", "--isvsvn", "2"]);
    host.refuses("ours", &[], &line("Unexpected enclave product (ISVPRODID, 23) - Expected 22"));
    host.sign("ours", &["--isvprodid", "22", "--isvsvn", "1"]);
    host.refuses("from-2", &[], &line("Unexpected enclave security version (ISVSVN, 1) - Expected 2 to 65535"));
    host.sign("ours", &["--isvprodid", "22", "--isvsvn", "2"]);

    let (signed, other, third) = (host.hash(), "0".repeat(64), "1".repeat(64));
    let measured = |want: &str| format!("Unexpected enclave measurement (MRENCLAVE, {signed}) - Expected {want}");
    let not_all = "Not all of the required enclave properties are met by the enclave";
    let none = "None of the required enclave properties are met by the enclave";
    host.create("measured", &format!("{{mrenclave: [{other}, {third}], {}}}", signer("")));
    let both = format!("    Error 1 of 2: {}\n    Error 2 of 2: {}\n", measured(&other), measured(&third));
    host.refuses("measured", &[], &[line(not_all), line(none), both].concat());
    host.create("either", &format!("[{{mrenclave: {other}}}, {{{}}}]", signer(", isvsvn_max: 1")));
    let late = "Unexpected enclave security version (ISVSVN, 2) - Expected 0 to 1";
    let measurement = format!("    Error 1 of 2: {none}\n      Caused by: {}\n", measured(&other));
    host.refuses("either", &[], &format!("{measurement}    Error 2 of 2: {late}\n"));
    // Other files could be anybody's.
    host.refuses("ours", &["--fs-dir", "/bin"], &line(&unsigned));

    let log = Command::new(bin().join("scone-sim")).args(["log", "--data"]).arg(host.path("cas")).output().unwrap();
    assert_eq!(text(&log.stdout).matches("refused: not signed as required").count(), 6, "{}", text(&log.stdout));
    assert_eq!(text(&log.stdout).matches("refused: unexpected mrenclave").count(), 1);

    host.create("exactly", &format!("{{mrenclave: [{other}, {signed}], {}}}", signer(", isvsvn: 2")));
    for session in ["ours", "from-2", "exactly"] {
        let output = host.start(session, &[]);
        assert_eq!(text(&output.stdout), "/bin/probe\narguments\n", "{}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn a_program_that_was_changed_since_it_was_signed_is_not_run_and_cas_is_not_asked() {
    let Some(host) = Host::new() else { return };
    let unsigned = fs::read(host.program()).unwrap();
    host.sign("ours", &["--isvsvn", "1"]);
    let signed = fs::read(host.program()).unwrap();
    assert_eq!(signed[..unsigned.len()], unsigned);
    let mark = signed.len() - b"\0scone-sim signed".len();
    let length = mark - 8;
    let version = signed.windows(10).position(|claim| claim == b"\"isvsvn\":1").unwrap() + 9;
    for at in [unsigned.len() / 2, unsigned.len(), version, length - 1, length + 7] {
        let mut changed = signed.clone();
        changed[at] ^= 3;
        fs::write(host.program(), &changed).unwrap();
        // No CAS is there.
        let output = host.start_at("127.0.0.1:1", "s", &[]);
        let error = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(134), ""), "{at}: {error}");
        let frame = "Could not initialize enclave state: Loading the program failed\n  Caused by: '/bin/probe' was changed \
                     since it was signed: put the signed file back\nNote: ";
        assert!(error.contains(frame), "{at}: {error}");
        assert_eq!(host.runtime(&[]).env("SCONE_HASH", "1").output().unwrap().status.code(), Some(134));
    }
    // Without the mark it counts as unsigned.
    host.create("ours", &format!("{{signer: {{mrsigner: {}, isvprodid: 0}}}}", mrsigner(&host.path("ours"))));
    fs::write(host.program(), &signed[..mark]).unwrap();
    assert!(text(&host.start("ours", &[]).stderr).contains("The enclave is not signed"));
    fs::write(host.program(), &signed).unwrap();
    assert_eq!(host.start("ours", &[]).status.code(), Some(0));
}

#[test]
fn a_signature_changes_the_measurement_by_the_settings_signed_alone() {
    let Some(host) = Host::new() else { return };
    let unsigned = host.hash();
    host.sign("ours", &[]);
    let signed = host.hash();
    assert_ne!(signed, unsigned);
    host.sign("theirs", &["--isvprodid", "22", "--isvsvn", "2", "--heap", "65536K", "--stack=2M", "--dlopen=0"]);
    assert_eq!(host.hash(), signed, "who signed it, and as what, is not measured");
    for settings in [&["--heap=100M"][..], &["--stack=4M"], &["--dlopen=2"], &["--production"]] {
        host.sign("ours", settings);
        assert_ne!(host.hash(), signed, "{settings:?}");
    }

    host.sign("ours", &[]);
    let with = |name: &str, value: &str| host.runtime(&[]).env("SCONE_HASH", "1").env(name, value).output().unwrap();
    for (name, value, wanted) in
        [("SCONE_HEAP", "32M", "67108864"), ("SCONE_STACK", "x", "2097152"), ("SCONE_ALLOW_DLOPEN", "1", "0")]
    {
        let output = with(name, value);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(134), ""));
        let why = format!(
            "'/bin/probe' is signed for {name}={wanted}: sign it for another value, or do not set the variable"
        );
        assert!(text(&output.stderr).contains(&why), "{}", text(&output.stderr));
    }
    assert_eq!(text(&with("SCONE_HEAP", "64M").stdout).trim_end(), signed);
}
