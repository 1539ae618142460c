//! The `scone` command line (`reference/scone.md` section 4): what each command prints, refuses and exits with. What CAS decides
//! is in `cas.rs`.

mod world;

use std::fs;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use scone_protocol::hex;
use scone_sim::tls::Identity;
use world::{MRENCLAVE, Outcome, TESTING, World};

const HASH: &str = "64 lower-case hex digits";

#[track_caller]
fn is_hash_alone(output: &str) {
    let hash = output.strip_suffix('\n').expect(HASH);
    assert!(hash.len() == 64 && hash.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')), "{HASH}: {output}");
}

// session

#[test]
fn a_hash_stands_alone_on_standard_output() {
    let world = World::new();
    let file = world.file("s.yml", "name: s\nversion: 0.3\n");
    let created = world.scone(&["session", "create", &file]);
    is_hash_alone(&created.succeeds());
    assert_eq!(created.error(), "");
    let verified = world.scone(&["session", "verify", &file]);
    assert_eq!((verified.succeeds(), verified.error()), (created.succeeds(), String::new()));
    let updated =
        world.scone(&["session", "update", &world.file("t.yml", "name: s\nversion: 0.3\nvolumes: [{name: v}]\n")]);
    is_hash_alone(&updated.succeeds());
    assert_ne!(updated.succeeds(), created.succeeds());
}

#[test]
fn what_a_file_lacks_is_said_with_its_name_and_place() {
    let world = World::unattested();
    world.scone(&["session", "check", "/nowhere.yml"]).fails(
        1,
        "Error: Parsing session from session template file '/nowhere.yml' failed\nCaused by: No such file or directory",
    );
    let file = world.file("s.yml", "name: s\nversion: 0.3\ncolour: red\n");
    world.scone(&["session", "check", &file]).fails(1, "unknown field `colour`");
    world.scone(&["session", "check", &file]).fails(1, "at line 3 column 1");
    let file = world.file("s.yml", "version: 0.3\nname:\n  $SESSION\n");
    let why = "Caused by: name: Value for variable $SESSION is missing at line 3 column 3\n";
    world.scone(&["session", "check", &file]).fails(1, why);
    let attested = World::new();
    let parsing = format!(
        "Error: Creating session failed\nCaused by: Parsing session from session template file '{file}' failed\n{why}"
    );
    assert_eq!(attested.scone(&["session", "create", &file]).error(), parsing);
    // Filled in, the file has other lines: those that were written are meant, or none.
    let file = world.file("s.yml", "name: $A\nversion: 0.3\n\n# Why\ncolour: red\n");
    world.scone(&["session", "check", &file, "-e", "A=x"]).fails(1, "`creator` at line 5 column 1\n");
    let sized = "name: $A\nversion: 0.3\n\n# Why\nsecrets: [{name: s, kind: binary, size: $B}, {}]\n";
    let sized = world.scone(&["session", "check", &world.file("s.yml", sized), "-e", "A=x", "-e", "B=2"]);
    sized.fails(1, "secrets[0].size: invalid type: string \"2\", expected usize\n");
    let bomb = format!("name: $A\na: &a {}\nb: [{}]\n", "x".repeat(50_000), vec!["*a"; 60_000].join(","));
    let bomb = world.file("bomb.yml", &bomb);
    world.scone(&["session", "check", &bomb, "-e", "A=x"]).fails(1, "too large once its aliases are expanded");
}

/// The example of SCONE's tutorial, in the order in which SCONE prints it.
#[test]
fn a_session_is_read_back_as_it_was_written_and_with_the_defaults_that_scone_writes_out() {
    let world = World::new();
    let written = "version: 0.3.10
name: s
security: {attestation: {mode: none}}
services:
  - name: p
    command: ./p 'a b' \"it's\" $$SCONE::x:hex$$ @@1 ''
    environment: {SCONE_MODE: auto}
    pwd: /
  - {name: q, command: [/q, 'both \" and ''']}
secrets:
  - {name: x, kind: binary, size: 20}
  - {name: y, kind: ascii, value: z}
  - {name: k, kind: private-key, key_type: P-384}
  - {name: i, size: 20, import: {session: o, secret: i}}
";
    let hash = world.scone(&["session", "create", &world.file("s.yml", written)]).succeeds();
    let read = world.scone(&["session", "read", "s"]).succeeds();
    let (shown, creator) = read.split_once("creator: |\n").unwrap();
    assert_eq!(
        shown,
        "version: 0.3.10
name: s
predecessor: null
services:
- name: p
  environment:
    SCONE_MODE: auto
  command: ./p 'a b' \"it's\" $$SCONE::x:hex$$ @@1 ''
  pwd: /
  persistency: None
- name: q
  command:
  - /q
  - both \" and '
  persistency: None
secrets:
- name: x
  kind: binary
- name: y
  kind: ascii
  value: z
- name: k
  kind: private-key
  key_type: P-384
- name: i
  size: 20
  import:
    session: o
    secret: i
access_policy:
  read:
  - CREATOR
  update:
  - CREATOR
security:
  attestation:
    mode: none
"
    );
    assert!(creator.starts_with("  -----BEGIN CERTIFICATE-----\n"));
    assert_eq!(world.scone(&["session", "verify", &world.file("read.yml", &read)]).succeeds(), hash);
}

#[test]
fn variables_come_from_options_before_the_environment() {
    let world = World::unattested();
    let file = world.file("s.yml", "name: $CARGO_PKG_NAME\nversion: 0.3\npredecessor: $P\n");
    world.scone(&["session", "check", &file, "-e", "P=~"]).fails(1, "$CARGO_PKG_NAME is missing");
    world.scone(&["session", "check", &file, "-e", "P"]).fails(1, "-e is not VAR=VALUE");
    let check = |more: &[&str]| world.scone(&[&["session", "check", &file, "-e", "P=~"], more].concat()).succeeds();
    let from_environment = check(&["--use-env"]);
    assert!(from_environment.contains("name: scone-sim\n") && from_environment.contains("predecessor: null\n"));
    assert!(check(&["--use-env", "-e", "CARGO_PKG_NAME=given"]).contains("name: given\n"));
    // Filled in first, renamed then.
    assert!(check(&["-e", "CARGO_PKG_NAME=given", "--name", "named"]).contains("name: named\n"));
}

#[test]
fn check_prints_the_session_and_nothing_else() {
    let world = World::unattested();
    let file = world.file("s.yml", "version: 0.3\nname: s\n");
    let checked = world.scone(&["session", "check", "--fail-on-warning", &file]);
    let expected = "version: '0.3'\nname: s\npredecessor: null\nservices: []\naccess_policy:\n  read:\n  - CREATOR\n  update:\n  - CREATOR\n";
    assert_eq!((checked.succeeds().as_str(), checked.error().as_str()), (expected, ""));
}

#[test]
fn calculate_hash_needs_to_know_a_creator_that_the_session_speaks_of() {
    let world = World::unattested();
    let file = world.file("s.yml", "name: s\nversion: 0.3\n");
    let calculate = ["session", "calculate-hash", &file];
    world.scone(&calculate).fails(1, "Error: Cannot calculate session hash! The session, explicitly or through");
    is_hash_alone(&world.scone(&[&calculate[..], &["--with-self-as-creator", "tls"]].concat()).succeeds());
    let bob = Identity::generate("bob").unwrap();
    let as_bob = ["--with-self-as-creator", "tls", "--identity", &world.file("bob.pem", &bob.certificate_pem)];
    let bobs = world.scone(&[&calculate[..], &as_bob].concat()).succeeds();
    let with_creator = format!("name: s\nversion: 0.3\ncreator: {}\n", serde_json::json!(bob.certificate_pem));
    let with_creator = world.file("created.yml", &with_creator);
    assert_eq!(world.scone(&["session", "calculate-hash", &with_creator]).succeeds(), bobs);
    let file = world.file("s.yml", "name: s\nversion: 0.3\naccess_policy: {read: ANY, update: NONE}\n");
    is_hash_alone(&world.scone(&["session", "calculate-hash", &file]).succeeds());
}

#[test]
fn only_a_session_that_is_not_found_exits_with_2() {
    let world = World::new();
    world.scone_as("bob", &["cas", "attest", &world.client, "-c", &world.key]).succeeds();
    world.scone(&["session", "create", &world.file("s.yml", "name: s\nversion: 0.3\n")]).succeeds();
    world.scone(&["session", "read", "other"]).fails(2, "Caused by: Session 'other' does not exist");
    world.scone(&["session", "verify", &world.file("o.yml", "name: other\nversion: 0.3\n")]).fails(2, "does not exist");
    world.scone_as("bob", &["session", "read", "s"]).fails(1, "403 Forbidden");
    world.scone(&["session", "read"]).fails(1, "required");
    world.scone(&["session", "read", "--cas", "nobody.invalid", "s"]).fails(1, "was not attested yet");
    world.scone(&["session", "read", "s", "--unknown"]).fails(1, "unexpected argument '--unknown'");
    world.scone(&["session", "delete", "s"]).fails(1, "unrecognized subcommand 'delete'");
}

#[test]
fn another_identity_is_taken_from_a_file() {
    let world = World::new();
    let bob = Identity::generate("bob").unwrap();
    let identity = world.file("bob.pem", &bob.to_pem());
    let file = world.file("s.yml", "name: s\nversion: 0.3\n");
    let broken = world.file("broken.pem", "PRIVATE");
    let refused = world.scone(&["session", "create", "--identity", &broken, &file]);
    refused.fails(1, "Cannot use '");
    assert!(!refused.error().contains("PRIVATE"));
    world.scone(&["session", "create", "--identity", &identity, &file]).succeeds();
    world.scone(&["session", "read", "s"]).fails(1, "403 Forbidden");
    let read = world.scone(&["session", "read", "--identity", &identity, "s"]).succeeds();
    assert!(read.contains(bob.certificate_pem.lines().nth(1).unwrap()));
    world.scone(&["session", "verify", &file]).fails(1, "403 Forbidden");
    is_hash_alone(&world.scone(&["session", "verify", "--identity", &identity, &file]).succeeds());
}

#[test]
fn list_is_of_what_one_may_read_below_a_name() {
    let world = World::new();
    for name in ["a", "ab", "a/b", "a/b/c"] {
        world.scone(&["session", "create", &world.file("s.yml", &format!("name: {name}\nversion: 0.3\n"))]).succeeds();
    }
    assert_eq!(world.scone(&["session", "list", "nothing"]).succeeds(), "");
    assert_eq!(world.scone(&["session", "list", "a/b"]).succeeds(), "a/b\na/b/c\n");
    for path in ["a", "a/"] {
        assert_eq!(world.scone(&["session", "list", path]).succeeds(), "a\na/b\na/b/c\n");
    }
    assert_eq!(world.scone(&["session", "list"]).succeeds(), "a\na/b\na/b/c\nab\n");
}

// cas

#[test]
fn the_first_attested_cas_is_the_default_until_another_is_chosen() {
    let world = World::new();
    let other = World::unattested();
    world.scone(&["cas", "set-default", &other.client]).fails(1, "was not attested yet");
    world.scone(&[&["cas", "attest", &other.client, "-GCS"], &TESTING[..]].concat()).succeeds();
    let list = |default: &World, further: &World| {
        let mut lines =
            [(default, "*"), (further, " ")].map(|(cas, mark)| format!("{mark} {0}: https://{0}/\n", cas.client));
        lines.sort_by_key(|line| line[2..].to_owned());
        lines.concat()
    };
    assert_eq!(world.scone(&["cas", "list"]).succeeds(), list(&world, &other));
    assert_eq!(world.scone(&["cas", "set-default", &other.client]).succeeds(), "");
    assert_eq!(world.scone(&["cas", "list"]).succeeds(), list(&other, &world));
    let shown = |args: &[&str]| world.scone(&[&["cas", "show-identification"], args].concat()).succeeds();
    for spelling in ["-c", "--cas-key-hash"] {
        assert_eq!(shown(&[spelling, &world.client]), format!("{}\n", world.key));
    }
    let certificate = world.scone(&["cas", "show-certificate", &world.client]).succeeds();
    for spelling in ["-C", "--cas-certificate", "-T", "--certificate-chain"] {
        assert_eq!(shown(&[spelling, &world.client]), certificate);
    }
    assert_eq!(shown(&[&world.client]), certificate);
    assert_ne!(shown(&[]), certificate, "the default one's");
    let certificate = world.file("cas.pem", &certificate);
    assert_eq!(world.scone(&["cert", "show-key-hash", &certificate]).succeeds(), format!("{}\n", world.key));
    let version = concat!("scone-sim ", env!("CARGO_PKG_VERSION"), "\n");
    for args in [&["cas", "version"][..], &["cas", "version", "-c", &world.client], &["version"]] {
        assert_eq!(world.scone(args).succeeds(), version);
    }
    world.scone(&["cas", "version", "--cas", "nobody.invalid"]).fails(1, "was not attested yet");
}

/// As the documents attest a public CAS, which runs in debug mode, and one in production.
#[test]
fn a_cas_is_attested_as_scones_documents_do_it_as_far_as_software_can_be() {
    let world = World::unattested();
    let attest = |args: &[&str]| world.scone(&[&["cas", "attest", &world.client], args].concat());
    let nothing_known = "Error: Error during attestation of CAS\nCaused by: The CAS is software: as one in debug mode it cannot protect secrets";
    let [debug, ignore_signer, trust_any] = TESTING;
    for tolerant in [&[][..], &["-GCS"], &[trust_any], &[ignore_signer, trust_any]] {
        attest(tolerant).fails(1, nothing_known);
    }
    attest(&[debug, trust_any]).fails(1, "--only_for_testing-ignore-signer");
    let too_little =
        "Caused by: With --only_for_testing-ignore-signer, --mrenclave or --only_for_testing-trust-any is needed";
    attest(&[debug, ignore_signer]).fails(1, too_little);
    let mismatch = attest(&[MRENCLAVE, "-GCS", debug, ignore_signer]);
    mismatch.fails(1, "Error: Error during attestation of CAS\nCaused by: Enclave hash does not match expectation:\n");
    let shown = mismatch.error().trim_end().rsplit_once('\n').unwrap().1.to_owned();
    is_hash_alone(&format!("{shown}\n"));
    attest(&["--mrenclave", &shown]).fails(1, nothing_known);
    let signed = ["--mrsigner", MRENCLAVE, "--isvprodid", "41316", "--isvsvn", "5"];
    attest(&[&["-CS"], &signed[..]].concat()).fails(1, "Caused by: The CAS is software, which nobody signs");
    for at in [2, 4] {
        let incomplete = [&signed[..at], &signed[at + 2..]].concat();
        attest(&incomplete).fails(1, "required arguments were not provided");
    }
    // Of SCONE's own CAS a version may be asked for alone.
    attest(&["--isvsvn", "42"])
        .fails(1, "Caused by: The CAS is software, which nobody signs\nCaused by: Expected ISVSVN 42\n");
    attest(&[&[ignore_signer], &signed[..]].concat()).fails(1, "cannot be used with");
    assert_eq!(world.scone(&["cas", "list"]).succeeds(), "", "none was taken for trustworthy");

    for trusting in [
        &[debug, ignore_signer, trust_any, "-G", "-C", "-S"][..],
        &[MRENCLAVE, "--mrenclave", &shown, "-GCS", debug, ignore_signer],
        &["-c", &world.key],
        &["-c", &world.key, "--mrenclave", &shown.to_uppercase()],
    ] {
        assert!(attest(trusting).succeeds().starts_with(&format!("CAS {} at ", world.client)));
    }
}

#[test]
fn a_cas_that_does_not_answer_is_tried_as_often_as_told() {
    let world = World::unattested();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let attest = ["cas", "attest", &nobody, "-c", MRENCLAVE];
    let tried = |args: &[&str], variable: Option<&str>| {
        let mut command = world.command("alice", &[&attest[..], args].concat());
        Outcome(command.envs(variable.map(|value| ("SCONE_CLI_RETRIES", value))).output().unwrap())
    };
    let why = |retries: &str| {
        format!(
            "Caused by: Cannot talk to CAS at 'https://{nobody}/'\nCaused by: Connection refused (os error 111) (retries: {retries})\n"
        )
    };
    for retries in ["0", "2"] {
        tried(&["--retries", retries], Some("1")).fails(1, &why(retries));
    }
    tried(&[], Some("1")).fails(1, &why("1"));
    tried(&[], None).fails(1, &why("3"));
    world.scone(&["cas", "attest", &nobody, "-c", MRENCLAVE, "--retries", "x"]).fails(1, "retries");
    world.scone(&["cas", "attest", "no address", "-c", MRENCLAVE]).fails(1, "is not a CAS's address");
}

// self, cert, configuration

#[test]
fn who_one_is_can_be_shown_in_all_forms() {
    let world = World::unattested();
    let hash = world.scone(&["self", "show-key-hash"]).succeeds();
    is_hash_alone(&hash);
    let certificate = world.scone(&["self", "show-certificate"]).succeeds();
    let signer = world.scone(&["self", "show-session-signing-key"]).succeeds();
    assert!(signer.starts_with("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA"), "Ed25519, RFC 8410");
    assert_eq!(world.scone(&["self", "show"]).succeeds(), format!("key hash: {hash}{certificate}{signer}"));
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let of_certificate = hex(ring::digest::digest(&ring::digest::SHA256, &der).as_ref());
    assert_eq!(world.scone(&["self", "show-certificate-hash"]).succeeds(), of_certificate + "\n");
    world.scone(&["cert", "show-key-hash", "/nowhere"]).fails(1, "Cannot use '/nowhere'");
    world.scone(&["cert", "show-key-hash", &world.file("x.pem", "x")]).fails(1, "it is not a certificate in PEM");
    let file = world.file("self.pem", &certificate);
    assert_eq!(world.scone(&["cert", "show-key-hash", &file]).succeeds(), hash);
    assert!(!certificate.contains("PRIVATE") && !signer.contains("PRIVATE"));
}

#[test]
fn the_configuration_is_where_it_is_said_to_be() {
    let world = World::unattested();
    let elsewhere = world.home.path().join("else/where.json");
    let at = ["--config", elsewhere.to_str().unwrap()];
    let hash = world.scone(&["self", "show-key-hash"]).succeeds();
    assert!(!elsewhere.exists());
    // The option beats SCONE_CLI_CONFIG, which the tests set for each user.
    let other = world.scone(&[&at[..], &["self", "show-key-hash"]].concat()).succeeds();
    assert_ne!(other, hash);
    assert!(elsewhere.exists());
    fs::write(&elsewhere, "{}").unwrap();
    world.scone(&[&at[..], &["self", "show"]].concat()).fails(1, "was not written by this version of scone-sim");
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "{}");
}

#[test]
fn what_needs_hardware_is_not_simulated_and_says_so() {
    let world = World::unattested();
    for (args, name) in [
        (&["session", "encrypt", "s.yml"][..], "session encrypt"),
        (&["cas", "provision", "x"], "cas provision"),
        (&["cas", "attest-audit-log"], "cas attest-audit-log"),
        (&["fspf", "create", "fspf.pb"], "fspf"),
        (&["las", "show"], "las"),
        (&["signer", "sign", "--sconify", "p"], "--sconify"),
        (&["signer", "sign", "--tcs=8", "p"], "--tcs"),
        (&["signer", "sign", "-M", "20M", "p"], "-M"),
        (&["signer", "sign", "p"], "SCONE's built-in debug key: give a key with --key"),
        (&["cargo", "build", "--release"], "cargo"),
        (&["cas", "attest", "cas", "-s", MRENCLAVE], "-s"),
        (&["cas", "show-identification", "-s"], "-s"),
        (&["cas", "show-identification", "-S"], "-S"),
        (&["cas", "show-identification", "--session-encryption-key"], "--session-encryption-key"),
        (&["cas", "get-audit-log-checkpoints"], "cas get-audit-log-checkpoints"),
        (&["session", "read", "s", "--cas-key", "x"], "--cas-key"),
        (&["-o", "out", "session", "list"], "-o"),
        (&["help-markdown"], "help-markdown"),
        (&["session", "create", "@arguments"], "argument file @arguments"),
        (&["session", "list", "--cas", "@"], "argument file @"),
    ] {
        world.scone(args).fails(1, &format!("Error: not simulated: {name}\n"));
    }
    // What SCONE does not have either is another error.
    world.scone(&["sign"]).fails(1, "unrecognized subcommand 'sign'");
    world.scone(&["session", "create", "--nonsense", "x"]).fails(1, "unexpected argument '--nonsense'");
    world.scone(&["session", "create", "-S", "x"]).fails(1, "unexpected argument '-S'");
}
