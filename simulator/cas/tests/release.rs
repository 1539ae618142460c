//! What a service gets of its session when it starts: the words, files, volumes and secrets that CAS releases, and to whom.

use std::collections::BTreeMap;
use std::fs;

use rcgen::KeyPair;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use scone_protocol::signature::SignerIdentity;
use scone_protocol::{Configuration, End, InjectionFile, UpdatePolicy, access_proof, hex, proves_access, unhex};
use scone_sim::cas::{Access, Cas, Claim};
use scone_sim::clock::Clock;
use scone_sim::session::decode_shared_secret;
use scone_sim::tls::{self, Client, Identity};
use tempfile::TempDir;
use totp_rs::{Algorithm, TOTP};

const MRENCLAVE: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const OTHER: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

/// A CAS in this process, with a clock that stands where it is put.
struct Rig {
    home: TempDir,
    cas: Cas,
    alice: Client,
    /// The active hashes, by name.
    hashes: BTreeMap<String, String>,
}

impl Rig {
    fn new() -> Rig {
        let home = tempfile::tempdir().unwrap();
        let clock = home.path().join("clock");
        fs::write(&clock, NOW.to_string()).unwrap();
        let cas = Cas::open(home.path(), Clock::File(clock)).unwrap();
        Rig { home, cas, alice: client("alice"), hashes: BTreeMap::new() }
    }

    fn at(&self, now: u64) {
        fs::write(self.home.path().join("clock"), now.to_string()).unwrap();
    }

    /// Creates or replaces a session, and gives its hash.
    fn put(&mut self, name: &str, lines: &str) -> String {
        let predecessor = self.hashes.get(name).map_or("~", String::as_str);
        let text = format!("name: {name}\nversion: '0.3.10'\npredecessor: {predecessor}\n{lines}");
        let (hash, _) =
            self.cas.upload(&text, Some(&self.alice)).unwrap().unwrap_or_else(|why| panic!("{why}\n{text}"));
        self.hashes.insert(name.to_owned(), hash.clone());
        hash
    }

    /// A session whose service `s` prints these placeholders, as variables A, B, …
    fn put_showing(&mut self, name: &str, placeholders: &[&str], lines: &str) -> String {
        let variables =
            placeholders.iter().zip('A'..).map(|(text, name)| format!("{name}: \"{text}\"")).collect::<Vec<_>>();
        let service = format!("command: /p\n    environment: {{{}}}", variables.join(", "));
        self.put(name, &format!("{}{lines}", service_with(&service)))
    }

    fn ask(&self, service: &str) -> Result<Configuration, Vec<String>> {
        self.claim(&Claim {
            service,
            code: None,
            mrenclave: MRENCLAVE,
            signer: None,
            vouched: true,
            access: Access::default(),
        })
    }

    /// Service `a/s` with a code and, perhaps, a proof that its token is known.
    fn start(&self, code: &str, proof: Option<&str>) -> Result<Configuration, Vec<String>> {
        let (code, access) = (Some(code), Access { proof, ..Access::default() });
        self.claim(&Claim { service: "a/s", code, mrenclave: MRENCLAVE, signer: None, vouched: true, access })
    }

    fn claim(&self, claim: &Claim<'_>) -> Result<Configuration, Vec<String>> {
        self.cas.configure(claim).unwrap()
    }

    #[track_caller]
    fn refuses(&self, service: &str, why: &str) {
        let causes = self.ask(service).expect_err("a refusal");
        assert!(causes.last().unwrap().contains(why), "{causes:?}");
    }

    /// The variables of service `s`, in order.
    #[track_caller]
    fn shown(&self, session: &str) -> Vec<String> {
        let configuration = self.ask(&format!("{session}/s")).unwrap();
        configuration.environment.values().map(|value| value.expose().to_owned()).collect()
    }
}

fn client(name: &str) -> Client {
    let identity = Identity::generate(name).unwrap();
    Client { key_hash: identity.key_hash.clone(), certificate: identity.certificate_pem.clone() }
}

/// The code of a shared secret that the clock stands at.
fn code_of(secret: &str) -> String {
    TOTP::new_unchecked(Algorithm::SHA1, 6, 0, 30, decode_shared_secret(secret).unwrap()).generate(NOW)
}

fn content(file: &InjectionFile) -> &str {
    file.content.as_ref().unwrap().expose()
}

fn service_with(lines: &str) -> String {
    format!("services:\n  - name: s\n    attestation: {{mrenclave: {MRENCLAVE}}}\n    {lines}\n")
}

// Words

#[test]
fn the_callers_arguments_and_variables_are_left_to_the_runtime() {
    let mut rig = Rig::new();
    rig.put(
        "a",
        &(service_with("command: /p @@2 $$SCONE::s$$ @@1\n    environment:\n      A: x\n      \\@\\@B: ignored")
            + "secrets: [{name: s, kind: ascii, value: '@@3'}]\n"),
    );
    let configuration = rig.ask("a/s").unwrap();
    // A secret that looks like one is none.
    assert_eq!(configuration.command, ["/p", "", "@@3", ""]);
    assert_eq!(configuration.host_arguments, [(1, 2), (3, 1)]);
    assert_eq!(configuration.host_environment, ["B"]);
    assert_eq!(configuration.environment.keys().collect::<Vec<_>>(), ["A"]);
}

#[test]
fn the_session_of_scones_demo_starts_with_a_code_and_leaves_one_argument_to_the_caller() {
    let rig = Rig::new();
    let text = include_str!("session/2fa-demo.yml");
    rig.cas.upload(text, Some(&rig.alice)).unwrap().unwrap();
    let code = code_of("BASE32SECRET3232BASE32SECRET3232");
    let mrenclave = "032491dba2e7ec27f793a478ab556c26b87111b11657c93f5554a1a2975567e5";
    let claim = Claim {
        service: "my_session_1234/service",
        code: None,
        mrenclave,
        signer: None,
        vouched: true,
        access: Access::default(),
    };
    assert_eq!(rig.claim(&claim).unwrap_err()[1], "An One-time Password is required to access this session");
    let configuration = rig.claim(&Claim { code: Some(&code), ..claim }).unwrap();
    assert_eq!(configuration.command, ["python3", "my_service.py", "-a", "4", "-b", "12", "-x", ""]);
    assert_eq!(configuration.host_arguments, [(7, 1)]);
    assert_eq!(configuration.pwd.as_deref(), Some("/app"));
    assert_eq!(configuration.environment.len(), 3);
}

#[test]
fn a_service_without_a_command_uses_up_no_code() {
    let mut rig = Rig::new();
    let secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY";
    let security = format!("security: {{attestation: {{one_time_password_shared_secret: {secret}}}}}\n");
    rig.put("a", &(service_with("pwd: /") + &security));
    let code = code_of(secret);
    assert_eq!(rig.start(&code, None).unwrap_err()[1], "Service 's' has no command");
    rig.put("a", &(service_with("command: /p") + &security));
    assert_eq!(rig.start(&code, None).unwrap().command, ["/p"]);
}

#[test]
fn a_services_own_code_secret_beats_the_sessions() {
    let mut rig = Rig::new();
    let (own, sessions) = ("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "JJBFGV2ZGNCFARKIKBFTGUCYKBNFKVQK");
    rig.put(
        "a",
        &(service_with(&format!("command: /p\n    one_time_password_shared_secret: {own}"))
            + &format!("security: {{attestation: {{one_time_password_shared_secret: {sessions}}}}}\n")),
    );
    let start = |secret| rig.start(&code_of(secret), None);
    assert_eq!(start(sessions).unwrap_err()[1], "The given One-time Password is invalid. Please try again.");
    start(own).unwrap();
}

/// A session whose service `s` has this attestation, and who asks for it with this measurement and this signature.
fn judged(attestation: &str) -> impl Fn(&str, Option<&SignerIdentity>) -> Result<(), Vec<String>> + use<> {
    let mut rig = Rig::new();
    rig.put("a", &service_with("command: /p").replace(&format!("{{mrenclave: {MRENCLAVE}}}"), attestation));
    move |mrenclave, signer| {
        let access = Access::default();
        rig.claim(&Claim { service: "a/s", code: None, mrenclave, signer, vouched: true, access }).map(drop)
    }
}

/// As [`SIGNER`] demands.
fn signed() -> SignerIdentity {
    SignerIdentity { mrsigner: OTHER.into(), isvprodid: 6, isvsvn: 3 }
}

const SIGNER: &str =
    "signer: {mrsigner: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb, isvprodid: 6}";

#[test]
fn any_variant_of_the_attestation_will_do() {
    let third = "cc".repeat(32);
    let ask = judged(&format!("[{{mrenclave: [{OTHER}, {third}]}}, {{mrenclave: {MRENCLAVE}}}, {{{SIGNER}}}]"));
    ask(&"dd".repeat(32), None).unwrap_err();
    for mrenclave in [MRENCLAVE, OTHER, &third] {
        ask(mrenclave, None).unwrap();
    }
    ask(&"dd".repeat(32), Some(&signed())).unwrap();
}

#[test]
fn a_measurement_and_a_signer_in_one_variant_must_both_be_met() {
    let ask = judged(&format!("{{mrenclave: {MRENCLAVE}, {SIGNER}}}"));
    ask(MRENCLAVE, None).unwrap_err();
    ask(OTHER, Some(&signed())).unwrap_err();
    ask(MRENCLAVE, Some(&signed())).unwrap();
}

#[test]
fn a_signer_is_met_by_its_key_its_product_and_the_versions_it_admits_so_that_a_downgrade_is_refused() {
    let judge = |versions: &str, signer: SignerIdentity| {
        let signer_is = SIGNER.replace('}', &format!("{versions}}}"));
        judged(&format!("{{{signer_is}}}"))(OTHER, Some(&signer)).map_err(|mut causes| causes.pop().unwrap())
    };
    let version = |isvsvn| SignerIdentity { isvsvn, ..signed() };
    assert_eq!(
        judge("", SignerIdentity { mrsigner: MRENCLAVE.into(), ..signed() }).unwrap_err(),
        format!("  Unexpected enclave signer (MRSIGNER, {MRENCLAVE}) - Expected {OTHER}")
    );
    assert_eq!(
        judge("", SignerIdentity { isvprodid: 7, ..signed() }).unwrap_err(),
        "  Unexpected enclave product (ISVPRODID, 7) - Expected 6"
    );
    for (versions, refused, expected) in [
        (", isvsvn: 3", &[2, 4][..], "3"),
        (", isvsvn_min: 3", &[0, 2], "3 to 65535"),
        (", isvsvn_max: 3", &[4, 65535], "0 to 3"),
        (", isvsvn_min: 2, isvsvn_max: 3", &[1, 4], "2 to 3"),
        ("", &[], ""),
    ] {
        for &isvsvn in refused {
            let unexpected = format!("  Unexpected enclave security version (ISVSVN, {isvsvn}) - Expected {expected}");
            assert_eq!(judge(versions, version(isvsvn)).unwrap_err(), unexpected, "{versions}");
        }
        judge(versions, version(3)).unwrap();
    }
    judge(", isvsvn_min: 2, isvsvn_max: 3", version(2)).unwrap();
}

/// One measurement, and one or two beside a signer, are as documented (`reference/scone.md` section 5.4). What is said of a signer, and
/// how deeper causes are nested, are our own.
#[test]
fn a_refusal_nests_what_is_not_met_as_scone_does() {
    let (got, third) = ("dd".repeat(32), "cc".repeat(32));
    let none = "None of the required enclave properties are met by the enclave";
    let not_all = "Not all of the required enclave properties are met by the enclave";
    let unexpected = |want: &str| format!("Unexpected enclave measurement (MRENCLAVE, {got}) - Expected {want}");
    let unsigned = format!("The enclave is not signed - Expected MRSIGNER {OTHER}");
    let (first, second) = (unexpected(&third), unexpected(MRENCLAVE));
    let signed = signed();
    for (signer, attestation, lines) in [
        (None, format!("{{mrenclave: {MRENCLAVE}}}"), format!("  {none}\n  {none}\n  {second}")),
        (
            None,
            format!("{{mrenclave: [{third}, {MRENCLAVE}]}}"),
            format!("  {none}\n  {none}\n  Error 1 of 2: {first}\n  Error 2 of 2: {second}"),
        ),
        (
            Some(&signed),
            format!("{{mrenclave: {MRENCLAVE}, {SIGNER}}}"),
            format!("  {none}\n  {not_all}\n  {none}\n  {second}"),
        ),
        (
            Some(&signed),
            format!("{{mrenclave: [{third}, {MRENCLAVE}], {SIGNER}}}"),
            format!("  {none}\n  {not_all}\n  {none}\n  Error 1 of 2: {first}\n  Error 2 of 2: {second}"),
        ),
        (None, format!("{{{SIGNER}}}"), format!("  {none}\n  {unsigned}")),
        (
            None,
            format!("[{{mrenclave: {third}, {SIGNER}}}, {{mrenclave: {MRENCLAVE}}}]"),
            format!(
                "  {none}\n  Error 1 of 2: {not_all}\n    Error 1 of 2: {none}\n      {first}\n    \
                 Error 2 of 2: {unsigned}\n  Error 2 of 2: {none}\n    {second}"
            ),
        ),
    ] {
        let causes = judged(&attestation)(&got, signer).unwrap_err();
        let expected = "CAS sent an attestation/configuration error: DCAP quote verification failed\nFailed to verify DCAP \
                        report\nThe program enclave is not trustworthy\n";
        assert_eq!(causes.join("\n"), format!("{expected}{lines}"), "{attestation}");
    }
}

#[test]
fn without_attestation_anybody_may_start_the_service() {
    let mut rig = Rig::new();
    let any = |rig: &Rig| {
        rig.claim(&Claim {
            service: "a/s",
            code: None,
            mrenclave: OTHER,
            signer: None,
            vouched: true,
            access: Access::default(),
        })
    };
    rig.put("a", &service_with("command: /p"));
    assert!(any(&rig).is_err());
    rig.put("a", &(service_with("command: /p") + "security: {attestation: {mode: none}}\n"));
    any(&rig).unwrap();
}

#[test]
fn an_access_token_is_proven_by_both_ends_and_told_by_none() {
    let mut rig = Rig::new();
    rig.put("a", &(service_with("command: /p") + "security: {service_access_token: j765WyMWTKksiqWbBuuc}\n"));
    rig.refuses("a/s", "A service access token is required");
    let (exporter, nonce) = ([7; 32], "nonce");
    let claim = |proof: &str, exporter| {
        let access = Access { proof: Some(proof), exporter, nonce };
        rig.claim(&Claim { service: "a/s", code: None, mrenclave: MRENCLAVE, signer: None, vouched: true, access })
    };
    let wrong = access_proof(End::Runtime, "another", &exporter, nonce);
    let right = access_proof(End::Runtime, "j765WyMWTKksiqWbBuuc", &exporter, nonce);
    for (proof, exporter) in [(&wrong, exporter), (&right, [8; 32]), (&String::new(), exporter)] {
        assert_eq!(claim(proof, exporter).unwrap_err().last().unwrap(), "The given service access token is invalid");
    }
    let configuration = claim(&right, exporter).unwrap();
    let proof = configuration.access_proof.unwrap();
    assert!(proves_access(&proof, End::Cas, "j765WyMWTKksiqWbBuuc", &exporter, nonce));
    // Who has to know nothing is told nothing.
    rig.put("b", &service_with("command: /p"));
    assert_eq!(rig.ask("b/s").unwrap().access_proof, None);
}

/// The text of a placeholder is in the policy for its readers, so it must not open the service.
#[test]
fn an_access_token_by_reference_is_the_secrets_value() {
    let mut rig = Rig::new();
    let token = "security: {service_access_token: \"t-$$SCONE::token$$\"}\n";
    let service = service_with("command: /p");
    rig.put("owner", "secrets: [{name: token, kind: ascii, value: correct-horse, export: {session: b}}]\n");
    rig.put("a", &format!("{service}{token}secrets: [{{name: token, kind: ascii, value: correct-horse}}]\n"));
    rig.put("b", &format!("{service}{token}secrets: [{{name: token, import: {{session: owner, secret: token}}}}]\n"));
    for service in ["a/s", "b/s"] {
        let claim = |token: &str| {
            let proof = access_proof(End::Runtime, token, &[0; 32], "");
            let access = Access { proof: Some(&proof), ..Access::default() };
            rig.claim(&Claim { service, code: None, mrenclave: MRENCLAVE, signer: None, vouched: true, access })
        };
        for wrong in ["t-$$SCONE::token$$", "$$SCONE::token$$", "correct-horse", "t-", ""] {
            assert_eq!(claim(wrong).unwrap_err().last().unwrap(), "The given service access token is invalid");
        }
        claim("t-correct-horse").unwrap();
    }
}

#[test]
fn who_lacks_the_access_token_cannot_use_up_codes() {
    let mut rig = Rig::new();
    rig.put(
        "a",
        &(service_with("command: /p")
            + "security:\n  service_access_token: token\n  attestation: {one_time_password_shared_secret: GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ}\n"),
    );
    let code = code_of("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
    let proof = access_proof(End::Runtime, "token", &[0; 32], "");
    assert!(rig.start(&code, None).is_err());
    rig.start(&code, Some(&proof)).unwrap();
}

#[test]
fn an_access_token_where_none_is_demanded_is_refused_before_the_code_is_looked_at() {
    let mut rig = Rig::new();
    rig.put(
        "a",
        &(service_with("command: /p")
            + "security: {attestation: {one_time_password_shared_secret: GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ}}\n"),
    );
    let code = code_of("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
    let proof = access_proof(End::Runtime, "token", &[0; 32], "");
    let refused = rig.start(&code, Some(&proof)).unwrap_err();
    assert_eq!(refused.last().unwrap(), "A service access token was given, and this session has none");
    rig.start(&code, None).unwrap();
}

#[test]
fn what_cannot_start_uses_up_no_code() {
    let mut rig = Rig::new();
    let security = "security: {attestation: {one_time_password_shared_secret: GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ}}\n";
    let code = code_of("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
    // Nobody is trusted, and the answer would not fit in a frame once control characters are escaped.
    rig.put("b", "secrets: [{name: v, kind: config-fragment, value: [], export: {session: a}}]\n");
    let nobody = "services: [{name: s, command: /p, attestation: $$SCONE::v$$}]\nsecrets: [{name: v, import: {session: b, secret: v}}]\n";
    let controls = format!("secrets: [{{name: c, kind: config-fragment, value: \"{}\"}}]\n", "\\a".repeat(50_000));
    let long = service_with("command: [/p, $$SCONE::c$$, $$SCONE::c$$, $$SCONE::c$$, $$SCONE::c$$]") + &controls;
    // Linux takes neither.
    let no_name = service_with("command: $$SCONE::c$$") + "secrets: [{name: c, kind: config-fragment, value: ''}]\n";
    let too_long = |size: usize| {
        let secret = format!("secrets: [{{name: c, kind: ascii, value: {}}}]\n", "x".repeat(size));
        service_with("command: /p\n    environment: {V: $$SCONE::c$$}") + &secret
    };
    for (policy, why) in [
        (nobody, "accepts no program"),
        (&long, "The configuration is larger than"),
        (&no_name, "The program's name is empty"),
        (&too_long(131_070), "A variable is longer than Linux allows, 131071 bytes"),
    ] {
        rig.put("a", &format!("{policy}{security}"));
        for _ in 0..2 {
            let causes = rig.start(&code, None).unwrap_err();
            assert!(causes.last().unwrap().contains(why), "{causes:?}");
        }
    }
    rig.put("a", &(too_long(131_069) + security));
    rig.start(&code, None).unwrap();
    let again = rig.start(&code, None).unwrap_err();
    assert!(again.last().unwrap().contains("already"), "the code was good, and is used up now");
}

#[test]
fn everybody_may_read_what_is_exported_to_the_public_and_nothing_else() {
    let mut rig = Rig::new();
    let read = |rig: &Rig, secret: Option<&str>| rig.cas.public_values("a", secret).unwrap();
    assert!(read(&rig, None).is_empty(), "no session");
    let secrets = |public: bool| {
        format!(
            "secrets: [{{name: key, kind: private-key}}, {{name: crt, kind: x509, private_key: key, export_public: {public}}}, {{name: hidden, kind: ascii}}, {{name: b, kind: binary, value: 00ff, export_public: {public}}}]\n"
        )
    };
    rig.put("a", &secrets(false));
    for secret in [None, Some("crt"), Some("hidden"), Some("nobody")] {
        assert!(read(&rig, secret).is_empty(), "{secret:?}");
    }
    rig.put("a", &secrets(true));
    for secret in ["key", "hidden", "nobody"] {
        assert!(read(&rig, Some(secret)).is_empty(), "{secret}");
    }
    let values = read(&rig, None);
    assert_eq!(values.keys().collect::<Vec<_>>(), ["b", "crt"]);
    assert_eq!(values["b"], "00ff");
    CertificateDer::from_pem_slice(values["crt"].as_bytes()).unwrap();
    assert!(!values["crt"].contains("PRIVATE"));
    assert_eq!(read(&rig, Some("crt")).into_iter().collect::<Vec<_>>(), [("crt".into(), values["crt"].clone())]);

    // A certificate whose issuer is not granted any more cannot be made; the others are there all the same.
    let ours = "secrets: [{name: key, kind: private-key}, {name: ca, kind: x509-ca, import: {session: b, secret: ca}}, {name: crt, kind: x509, private_key: key, issuer: ca, export_public: true}, {name: b, kind: binary, value: 00ff, export_public: true}]\n";
    rig.put("a", ours);
    assert_eq!(read(&rig, None).keys().collect::<Vec<_>>(), ["b"]);

    let many: Vec<_> =
        (0..33).map(|n| format!("{{name: s{n}, kind: binary, size: 4096, export_public: true}}")).collect();
    rig.put("a", &format!("secrets: [{}]\n", many.join(", ")));
    assert!(read(&rig, None).is_empty(), "too large");
    assert_eq!(read(&rig, Some("s0"))["s0"].len(), 8192);
}

// Files and volumes

#[test]
fn a_file_of_the_image_may_hold_the_secrets_that_its_image_provides_in_all_their_forms() {
    let mut rig = Rig::new();
    let session = |image: &str| {
        format!(
            "{}images: [{{name: i, injection_files: [{image}]}}]
secrets:
  - {{name: a, kind: ascii, value: x}}
  - {{name: b, kind: binary, value: 00ff}}
  - {{name: gone, import: {{session: nobody, secret: s}}}}
  - {{name: key, kind: private-key}}
  - {{name: crt, kind: x509, private_key: key}}
",
            service_with("command: /p\n    image_name: i")
        )
    };
    let provided = |rig: &Rig| {
        let configuration = rig.ask("a/s").unwrap();
        configuration.secrets.into_iter().map(|(name, value)| (name, unhex(value.expose()).unwrap())).collect()
    };
    // With the content in the policy, CAS fills it in.
    rig.put("a", &session("{path: /f, content: x}"));
    assert_eq!(provided(&rig), BTreeMap::new());
    rig.put("a", &session("/f], provide_secrets: ["));
    assert_eq!(provided(&rig), BTreeMap::new());
    rig.put("a", &session("/f], provide_secrets: [a"));
    assert_eq!(provided(&rig), BTreeMap::from([("a".to_owned(), b"x".to_vec())]));
    rig.put("a", &session("{path: /f, permission: 0o400}, {path: /g, content: '$$SCONE::a$$'}"));
    let configuration = rig.ask("a/s").unwrap();
    let [f, g] = &configuration.injection_files[..] else { panic!() };
    assert!(f.content.is_none() && f.mode == 0o400 && content(g) == hex(b"x") && g.mode == 0o700);
    let forms: BTreeMap<String, Vec<u8>> = provided(&rig);
    assert_eq!((&forms["b"], &forms["b:hex"], &forms["b.hex"]), (&vec![0, 255], &b"00ff".to_vec(), &b"00ff".to_vec()));
    assert_eq!((&forms["b:base64"], &forms["b:base32nopad"]), (&b"AP8=".to_vec(), &b"AD7Q".to_vec()));
    assert!(forms["crt"].starts_with(b"-----BEGIN CERTIFICATE-----") && forms["crt:privatekey"] == forms["key:pem"]);
    assert!(forms.keys().all(|name| !name.starts_with("gone")));
    // A secret declared by the whole name comes before a deprecated format.
    let two = session("/f").replace("name: a, kind", "name: b.hex, kind");
    rig.put("a", &two);
    assert_eq!(provided(&rig)["b.hex"], b"x");
}

#[test]
fn an_injected_file_holds_secrets_in_whatever_form() {
    let mut rig = Rig::new();
    let service = service_with("command: /p\n    image_name: i");
    let file = |content: &str| {
        format!(
            "{service}secrets: [{{name: b, kind: binary, value: 00ff}}, {{name: a, kind: ascii, value: 'x\"y'}}]\nimages:\n  - name: i\n    injection_files:\n      - {{path: /etc/c, content: \"{content}\", permission: 0o640}}\n"
        )
    };
    // What is asked for is short, what it becomes is not.
    let large = format!(
        "{service}secrets: [{{name: b, kind: binary, size: 4096}}]\nimages: [{{name: i, injection_files: {{path: /f, content: '{}'}}}}]\n",
        "$$SCONE::b:hex$$".repeat(40)
    );
    rig.put("a", &large);
    rig.refuses("a/s", "The configuration is larger than");
    rig.put("a", &file("b=$$SCONE::b$$ h=$$SCONE::b:hex$$ j=$$SCONE::a|escape(json)$$"));
    let configuration = rig.ask("a/s").unwrap();
    let [file] = &configuration.injection_files[..] else { panic!("one file") };
    assert_eq!((file.path.as_str(), file.mode), ("/etc/c", 0o640));
    assert_eq!(unhex(content(file)).unwrap(), b"b=\x00\xff h=00ff j=x\\\"y");
}

#[test]
fn an_export_says_how_much_an_import_may_do_with_a_volume() {
    let mut rig = Rig::new();
    let exporting = |policy: &str, alias: &str| {
        format!("volumes: [{{name: v, export: [{{to: {{session: b}}, update_policy: {policy}{alias}}}]}}]\n")
    };
    let importing = |policy: &str, volume: &str| {
        service_with("command: /p\n    image_name: i")
            + &format!(
                "volumes: [{{name: w, import: {{session: a, volume: {volume}}}}}]\nimages: [{{name: i, volumes: [{{name: w, path: /w, update_policy: {policy}}}]}}]\n"
            )
    };
    use UpdatePolicy::*;
    for (exported, used, granted) in [
        ("rollback_protected", "no_rollback_protection", None),
        ("rollback_protected", "rollback_protected", Some(RollbackProtected)),
        ("rollback_protected", "ephemeral", Some(Ephemeral)),
        ("ephemeral", "no_rollback_protection", Some(Ephemeral)),
        ("ephemeral", "rollback_protected", Some(Ephemeral)),
        ("no_rollback_protection", "no_rollback_protection", Some(NoRollbackProtection)),
        ("no_rollback_protection", "rollback_protected", Some(RollbackProtected)),
    ] {
        rig.put("a", &exporting(exported, ""));
        rig.put("b", &importing(used, "v"));
        match granted {
            None => rig.refuses("b/s", "does not allow volume 'v' the update policy it is used with"),
            Some(policy) => assert_eq!(rig.ask("b/s").unwrap().volumes[0].update_policy, policy),
        }
    }
    // By its alias, and by no other name.
    rig.put("a", &exporting("rollback_protected", ", volume_alias: input"));
    rig.refuses("b/s", "does not export volume 'v' to 'b'");
    rig.put("b", &importing("rollback_protected", "input"));
    let grant = &rig.ask("b/s").unwrap().volumes[0];
    assert_eq!((grant.session.as_str(), grant.name.as_str(), grant.path.as_str()), ("a", "v", "/w"));
}

// Secrets

#[test]
fn formats_are_rfc_4648s() {
    let mut rig = Rig::new();
    rig.put_showing(
        "a",
        &[
            "$$SCONE::b:hex$$",
            "$$SCONE::b:base32$$",
            "$$SCONE::b:base32nopad$$",
            "$$SCONE::b:base64$$",
            "$$SCONE::u:base64url$$",
            "<$$SCONE::t$$>",
        ],
        "secrets: [{name: b, kind: binary, value: 666f6f62}, {name: u, kind: binary, value: FBFF}, {name: t, kind: ascii, value: 'a b'}]\n",
    );
    assert_eq!(rig.shown("a"), ["666f6f62", "MZXW6YQ=", "MZXW6YQ", "Zm9vYg==", "-_8=", "<a b>"]);
}

#[test]
fn a_secret_goes_to_the_sessions_and_namespaces_it_is_exported_to() {
    let mut rig = Rig::new();
    let import = "secrets: [{name: s, import: {session: owner, secret: s}}]\n";
    for name in ["owner", "ns", "ns/deep", "nse", "one"] {
        rig.put(name, "");
    }
    for name in ["ns", "ns/deep", "ns/deep/er", "nse", "one", "one/nested"] {
        rig.put_showing(name, &["$$SCONE::s$$"], import);
        rig.refuses(&format!("{name}/s"), "does not export secret 's'");
    }
    rig.put("owner", "secrets: [{name: s, kind: ascii, value: x, export: [{namespace: ns}, {session: one}]}]\n");
    for name in ["ns", "ns/deep", "ns/deep/er", "one"] {
        assert_eq!(rig.shown(name), ["x"]);
    }
    for name in ["nse", "one/nested"] {
        rig.refuses(&format!("{name}/s"), "does not export secret 's'");
    }
}

#[test]
fn a_pinned_session_is_the_pinned_version_or_none() {
    let mut rig = Rig::new();
    let owner = |to: &str| format!("secrets: [{{name: s, kind: ascii, value: x, export: {{session: b{to}}}}}]\n");
    let first = rig.put("a", &owner(""));
    let import =
        |pin: &str| format!("secrets: [{{name: s, import: {{session: a, session_hash: {pin}, secret: s}}}}]\n");
    rig.put_showing("b", &["$$SCONE::s$$"], &import(OTHER));
    rig.refuses("b/s", "Session 'a' is not the version that its import names");
    rig.put_showing("b", &["$$SCONE::s$$"], &import(&first));
    assert_eq!(rig.shown("b"), ["x"]);
    rig.put("a", &(owner("") + "volumes: [{name: v}]\n"));
    rig.refuses("b/s", "is not the version");

    let unpinned = "secrets: [{name: s, import: {session: a, secret: s}}]\n";
    let importer = rig.put_showing("b", &["$$SCONE::s$$"], unpinned);
    rig.put("a", &owner(&format!(", session_hash: {OTHER}")));
    rig.refuses("b/s", "does not export");
    rig.put("a", &owner(&format!(", session_hash: {importer}")));
    assert_eq!(rig.shown("b"), ["x"]);
}

#[test]
fn a_drawn_secret_survives_an_update_as_its_kind_says() {
    let mut rig = Rig::new();
    let secrets = |rest: &str| {
        format!(
            "secrets: [{{name: a, kind: ascii}}, {{name: b, kind: binary}}, {{name: k, kind: private-key, migrate: true}}, {{name: l, kind: private-key}}, {{name: c, kind: x509, private_key: k}}]\n{rest}"
        )
    };
    let all = ["$$SCONE::a$$", "$$SCONE::b:hex$$", "$$SCONE::k$$", "$$SCONE::l$$", "$$SCONE::c$$"];
    rig.put_showing("a", &all, &secrets(""));
    let first = rig.shown("a");
    assert_eq!(rig.shown("a"), first, "one start after the other");
    rig.put_showing("a", &all, &secrets("volumes: [{name: v}]\n"));
    let second = rig.shown("a");
    let kept: Vec<bool> = first.iter().zip(&second).map(|(a, b)| a == b).collect();
    assert_eq!(kept, [true, true, true, false, false]);
    // `migrate` counts only if both the old and the new session have it.
    rig.put_showing("a", &all, &secrets("").replace("key, migrate: true", "key"));
    rig.put_showing("a", &all, &secrets(""));
    assert_ne!(rig.shown("a")[2], second[2]);
    // So does the size.
    rig.put_showing("a", &all, &secrets("").replace("kind: binary", "kind: binary, size: 21"));
    assert_ne!(rig.shown("a")[1], second[1]);
}

#[test]
fn a_private_key_is_of_its_type_and_comes_as_pem_or_der() {
    let mut rig = Rig::new();
    for (key_type, algorithm) in [
        ("P-256", &rcgen::PKCS_ECDSA_P256_SHA256),
        ("P-384", &rcgen::PKCS_ECDSA_P384_SHA384),
        ("Ed25519", &rcgen::PKCS_ED25519),
    ] {
        let lines = format!("secrets: [{{name: k, kind: private-key, key_type: {key_type}}}]\n");
        rig.put_showing("a", &["$$SCONE::k$$", "$$SCONE::k:pkcs8:pem$$"], &lines);
        let shown = rig.shown("a");
        assert_eq!(shown[0], shown[1]);
        assert!(KeyPair::from_pem(&shown[0]).unwrap().is_compatible(algorithm), "{key_type}");
    }
    let given = KeyPair::generate().unwrap();
    let pem = given.serialize_pem().replace('\n', "\\n");
    let lines = format!(
        "secrets: [{{name: k, kind: private-key, value: \"{pem}\"}}]\nimages: [{{name: i, injection_files: [{{path: /k, content: '$$SCONE::k:der$$'}}]}}]\n"
    );
    rig.put("a", &(service_with("command: /p\n    image_name: i") + &lines));
    let file = &rig.ask("a/s").unwrap().injection_files[0];
    assert_eq!(content(file), hex(given.serialized_der()));
}

/// Where it is imported, its type is not known before the service starts.
#[test]
fn a_private_key_of_a_type_that_is_not_simulated_is_given_as_it_is_but_signs_no_certificate() {
    let mut rig = Rig::new();
    let pem = include_str!("session/p521.pem");
    let key =
        format!("{{name: k, kind: private-key, value: \"{}\", export: {{session: b}}}}", pem.replace('\n', "\\n"));
    rig.put_showing("a", &["$$SCONE::k:pkcs8:pem$$"], &format!("secrets: [{key}]\n"));
    let import = "secrets: [{name: k, import: {session: a, secret: k}}, {name: c, kind: x509, private_key: k}]\n";
    rig.put_showing("b", &["$$SCONE::c$$"], import);
    let refusal = "Secret 'c' needs a private key of a type that is not simulated";
    assert_eq!(rig.ask("b/s").unwrap_err().last().unwrap(), refusal);
    assert_eq!(rig.shown("a"), [pem]);
}

#[test]
fn a_public_key_is_that_of_its_private_key_and_may_be_had_without_it() {
    let mut rig = Rig::new();
    rig.put_showing("b", &["$$SCONE::p$$"], "secrets: [{name: p, import: {session: a, secret: p}}]\n");
    let secrets = |exported: &str| {
        format!(
            "secrets: [{{name: k, kind: private-key, key_type: P-384}}, {{name: p, kind: public-key, private_key: k{exported}}}]
images: [{{name: i, injection_files: [{{path: /p, content: '$$SCONE::p:spki:der$$'}}]}}]
"
        )
    };
    let service =
        "command: /p\n    image_name: i\n    environment: {A: $$SCONE::k$$, B: $$SCONE::p$$, C: $$SCONE::p:spki:pem$$}";
    rig.put("a", &(service_with(service) + &secrets("")));
    rig.refuses("b/s", "Session 'a' does not export secret 'p' to 'b'");
    assert!(rig.cas.public_values("a", None).unwrap().is_empty());
    rig.put("a", &(service_with(service) + &secrets(", export: {session: b}, export_public: true")));
    let shown = rig.shown("a");
    let key = PrivateKeyDer::from_pem_slice(shown[0].as_bytes()).unwrap();
    let key =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, key.secret_der(), &SystemRandom::new()).unwrap();
    let spki = SubjectPublicKeyInfoDer::from_pem_slice(shown[1].as_bytes()).unwrap();
    assert!(spki.ends_with(key.public_key().as_ref()));
    assert_eq!(shown[1], shown[2]);
    assert_eq!(content(&rig.ask("a/s").unwrap().injection_files[0]), hex(&spki));
    assert_eq!(rig.shown("b"), [shown[1].clone()]);
    assert_eq!(rig.cas.public_values("a", Some("p")).unwrap()["p"], shown[1]);

    // One that is given is what it is.
    let given = shown[1].replace('\n', "\\n");
    rig.put_showing("a", &["$$SCONE::p$$"], &format!("secrets: [{{name: p, kind: public-key, value: \"{given}\"}}]\n"));
    assert_eq!(rig.shown("a"), [shown[1].clone()]);
}

const TOKEN: &str = "secrets:
  - {name: key, kind: private-key, key_type: P-384, migrate: true}
  - {name: public, kind: public-key, private_key: key}
  - {name: team, kind: ascii, value: blue}
  - name: token
    kind: jwt
    signer: key
    alg: ES384
    validity: {for: 24h}
    export: {session: b}
    export_public: true
    payload: {program: $$SCONE::self::software_identity$$, team: $$SCONE::team$$, text: 'team $$SCONE::team$$'}
";

#[test]
fn a_jwt_says_which_program_was_attested_and_is_made_for_each_start() {
    let mut rig = Rig::new();
    rig.put_showing("a", &["$$SCONE::token$$"], &format!("{TOKEN}security: {{attestation: {{mode: none}}}}\n"));
    rig.refuses("a/s", "A JWT names the program's identity, but no program was attested");
    let pem = include_str!("session/p521.pem").replace('\n', "\\n");
    let other = format!(
        "secrets: [{{name: key, kind: private-key, value: \"{pem}\"}}, {{name: token, kind: jwt, signer: key, alg: ES384, validity: {{for: 1h}}}}]\n"
    );
    rig.put_showing("a", &["$$SCONE::token$$"], &other);
    rig.refuses("a/s", "The signer of JWT 'token' is no P-384 key");
    rig.put_showing("a", &["$$SCONE::token$$", "$$SCONE::public$$"], TOKEN);
    assert!(rig.cas.public_values("a", None).unwrap().is_empty(), "nobody is attested who reads what is public");

    let shown = rig.shown("a");
    let spki = SubjectPublicKeyInfoDer::from_pem_slice(shown[1].as_bytes()).unwrap();
    let point = &spki[spki.len() - 97..];
    let claims = |token: &str| -> serde_json::Value {
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let decode = |part: &str| data_encoding::BASE64URL_NOPAD.decode(part.as_bytes()).unwrap();
        let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point);
        assert!(key.verify(&[signed.as_bytes(), b"x"].concat(), &decode(signature)).is_err());
        key.verify(signed.as_bytes(), &decode(signature)).unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        assert_eq!(decode(header), br#"{"alg":"ES384","typ":"JWT"}"#);
        serde_json::from_slice(&decode(claims)).unwrap()
    };
    assert_eq!(
        claims(&shown[0]),
        serde_json::json!({
            "program": MRENCLAVE, "team": "blue", "text": "team $$SCONE::team$$", "iat": NOW, "nbf": NOW, "exp": NOW + DAY
        })
    );
    rig.at(NOW + 1);
    assert_eq!(claims(&rig.shown("a")[0])["iat"], NOW + 1);
    // Of the program that asks, whoever declares the token.
    let import = "secrets: [{name: token, import: {session: a, secret: token}}]\n";
    let lines = service_with("command: /p $$SCONE::token$$").replace(MRENCLAVE, OTHER);
    rig.put("b", &format!("{lines}{import}"));
    rig.refuses("b/s", "Unexpected enclave measurement");
    let claim =
        Claim { service: "b/s", code: None, mrenclave: OTHER, signer: None, vouched: true, access: Access::default() };
    assert_eq!(claims(&rig.claim(&claim).unwrap().command[1])["program"], OTHER);
}

/// Each session knows half of the circle.
#[test]
fn secrets_that_are_made_of_one_another_are_refused() {
    let mut rig = Rig::new();
    let half = |other: &str| {
        format!(
            "secrets:
  - {{name: k, kind: private-key, key_type: P-384}}
  - {{name: above, kind: x509-ca, import: {{session: {other}, secret: ca}}}}
  - {{name: ca, kind: x509-ca, private_key: k, issuer: above, export: {{session: {other}}}}}
  - {{name: inner, import: {{session: {other}, secret: token}}}}
  - {{name: token, kind: jwt, signer: k, alg: ES384, validity: {{for: 1h}}, payload: {{inner: $$SCONE::inner$$}}, export: {{session: {other}}}}}
"
        )
    };
    for shown in ["$$SCONE::ca$$", "$$SCONE::token$$"] {
        rig.put_showing("b", &[shown], &half("a"));
        rig.put_showing("a", &[shown], &half("b"));
        rig.refuses("a/s", "is made of too many others, or of itself");
    }
}

/// Each certificate asks twice for the next, so without a memory the last would be asked for 2^24 times. Anybody may ask.
#[test]
fn a_secret_that_many_others_need_is_made_once() {
    let mut rig = Rig::new();
    let pem = serde_json::json!(rig.alice.certificate);
    let mut secrets = "secrets:\n".to_owned();
    for n in 0..24 {
        let issuer = format!("private_key: i{n}, issuer: i{n}, export_public: true");
        secrets += &format!("  - {{name: c{n}, kind: x509-ca, value: {pem}, {issuer}, export: {{session: a}}}}\n");
        secrets += &format!("  - {{name: i{n}, import: {{session: a, secret: c{}}}}}\n", n + 1);
    }
    secrets += &format!("  - {{name: c24, kind: x509-ca, value: {pem}, export: {{session: a}}}}\n");
    rig.put("a", &secrets);
    assert_eq!(rig.cas.public_values("a", Some("c0")).unwrap()["c0"], rig.alice.certificate);
    rig.put_showing("a", &["$$SCONE::c0:chain$$"], &secrets);
    assert_eq!(rig.shown("a")[0], rig.alice.certificate.repeat(24));
}

#[test]
fn what_is_made_for_one_answer_is_limited_in_number_and_size() {
    let mut rig = Rig::new();
    let token = |n: usize, payload: &str| {
        format!(
            "  - {{name: t{n}, kind: jwt, signer: k, alg: ES384, validity: {{for: 1h}}, export_public: true, payload: {{{payload}}}}}\n"
        )
    };
    let nested =
        |n: usize| token(n, &(0..60).map(|c| format!("c{c}: $$SCONE::t{}$$", n - 1)).collect::<Vec<_>>().join(", "));
    let tokens = [token(0, ""), nested(1), nested(2), nested(3)].concat();
    let key = "secrets:\n  - {name: k, kind: private-key, key_type: P-384}\n";
    rig.put_showing("a", &["$$SCONE::t3$$"], &format!("{key}{tokens}"));
    rig.refuses("a/s", "The configuration is larger than 262144 bytes");
    assert_eq!(rig.cas.public_values("a", None).unwrap().into_keys().collect::<Vec<_>>(), ["t0", "t1"]);

    // Short texts that become long ones, in whichever place.
    let binary = "secrets: [{name: b, kind: binary, size: 4096}]\n";
    let words = service_with(&format!("command: [/p{}]", ", $$SCONE::b:hex$$".repeat(40)));
    let variables: Vec<_> = (0..40).map(|n| format!("V{n}: $$SCONE::b:hex$$")).collect();
    let variables = service_with(&format!("command: /p\n    environment: {{{}}}", variables.join(", ")));
    let image = service_with("command: /p\n    image_name: i") + "images: [{name: i, injection_files: [/f]}]\n";
    let names: Vec<_> = (0..250).map(|n| format!("{{name: {}{n}, kind: binary}}", "n".repeat(120))).collect();
    for policy in [words + binary, variables + binary, format!("{image}secrets: [{}]\n", names.join(", "))] {
        rig.put("a", &policy);
        rig.refuses("a/s", "The configuration is larger than 262144 bytes");
    }
    let all: Vec<_> = (0..513).map(|n| format!("{{name: s{n}, kind: binary, size: 1}}")).collect();
    let (last, most) = all.split_last().unwrap();
    rig.put("a", &format!("{image}secrets: [{}, {last}]\n", most.join(", ")));
    rig.refuses("a/s", "More than 512 secrets are needed");
    // Signatures take longer; what is not there takes its time, too.
    let tokens: String = (0..65).map(|n| token(n, "")).collect();
    rig.put("a", &format!("{image}{key}{tokens}"));
    rig.refuses("a/s", "More than 64 certificates and tokens have to be signed");
    assert_eq!(rig.cas.public_values("a", None).unwrap().len(), 64);
    // Nor are all sessions looked at that a policy names, whatever they are.
    let sessions: Vec<_> = (0..40).map(|n| format!("{{name: s{n}, import: {{session: b{n}, secret: s}}}}")).collect();
    for n in 0..40 {
        rig.put(
            &format!("b{n}"),
            &format!("secrets: [{{name: other, kind: ascii, value: {}}}]\n", "x".repeat(130_000)),
        );
    }
    rig.put("a", &format!("{image}secrets: [{}]\n", sessions.join(", ")));
    rig.refuses("a/s", "or more than 4194304 bytes of them and their sessions");
    rig.put("a", &format!("{image}secrets: [{}]\n", most.join(", ")));
    rig.ask("a/s").unwrap();
}

/// Whoever can make CAS fail over one session stops everybody's `list`.
#[test]
fn a_certificate_that_cannot_be_made_harms_nobody_else() {
    let mut rig = Rig::new();
    // What writes ASN.1 panics at this issuer's name: an object identifier that begins with 4.
    let mut der = CertificateDer::from_pem_slice(rig.alice.certificate.as_bytes()).unwrap().to_vec();
    let common_name = der.windows(3).rposition(|oid| oid == [0x55, 4, 3]).expect("2.5.4.3");
    der[common_name] = 0xaa;
    let issuer = |der: &[u8]| {
        let pem = serde_json::json!(tls::pem(tls::CERTIFICATE, der));
        format!(
            "access_policy: {{read: [$$SCONE::crt$$]}}\nsecrets:\n  - {{name: key, kind: private-key}}\n  - {{name: ca, kind: x509-ca, value: {pem}, private_key: key}}\n  - {{name: crt, kind: x509, private_key: key, issuer: ca}}\n"
        )
    };
    rig.put_showing("a", &["$$SCONE::crt$$"], &issuer(&der));
    rig.refuses("a/s", "A certificate cannot be made: its issuer's name is not understood");
    rig.put("b", "");
    assert_eq!(rig.cas.list(Some(&rig.alice)).unwrap(), ["b"]);
}

#[test]
fn an_import_of_another_kind_than_is_needed_harms_nobody_else() {
    let mut rig = Rig::new();
    let secrets = |session: &str| {
        format!(
            "secrets:
  - {{name: key, kind: private-key}}
  - {{name: other, kind: x509, private_key: key, export: {{session: {session}}}}}
  - {{name: i, import: {{session: {session}, secret: other}}}}
  - {{name: crt, kind: x509, private_key: i}}
  - {{name: ca, kind: x509-ca, private_key: key, issuer: i}}
"
        )
    };
    rig.put("a", &format!("access_policy: {{read: [$$SCONE::crt$$]}}\n{}", secrets("a")));
    rig.put("b", "");
    assert_eq!(rig.cas.list(Some(&rig.alice)).unwrap(), ["b"]);
    for (shown, why) in [("crt", "What certificate 'crt' has for a key is none"), ("ca", "'i' cannot sign")] {
        rig.put_showing(shown, &[&format!("$$SCONE::{shown}$$")], &secrets(shown));
        rig.refuses(&format!("{shown}/s"), why);
    }
}

const PKI: &str = "secrets:
  - {name: ca_key, kind: private-key, migrate: true}
  - {name: ca, kind: x509-ca, private_key: ca_key, common_name: Root}
  - {name: mid, kind: x509-ca, private_key: ca_key, issuer: ca}
  - {name: key, kind: private-key, key_type: P-384, export: {session: b}}
  - {name: crt, kind: x509, private_key: key, issuer: mid, endpoint: server, valid_for: 90 days, san: ['dns:db.example', 'ip:10.0.0.1'], export: [{session: b}, {session: c}]}
";

#[test]
fn a_certificate_is_one_that_tls_takes_for_its_names_and_its_time() {
    let mut rig = Rig::new();
    rig.put_showing(
        "a",
        &["$$SCONE::crt$$", "$$SCONE::crt:chain$$", "$$SCONE::crt:privatekey$$", "$$SCONE::key$$"],
        PKI,
    );
    let shown = rig.shown("a");
    assert_eq!(shown[2], shown[3]);
    PrivateKeyDer::from_pem_slice(shown[2].as_bytes()).unwrap();
    let certificate = CertificateDer::from_pem_slice(shown[0].as_bytes()).unwrap();
    let chain: Vec<_> = CertificateDer::pem_slice_iter(shown[1].as_bytes()).map(Result::unwrap).collect();
    let [mid, root] = &chain[..] else { panic!("an intermediate and a root") };

    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
    let check = |name: &'static str, at: u64| {
        let name = ServerName::try_from(name).unwrap();
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at));
        let chain = [mid.clone()];
        use rustls::client::danger::ServerCertVerifier;
        verifier.verify_server_cert(&certificate, &chain, &name, &[], at)
    };
    assert!(check("other.example", NOW).is_err());
    assert!(check("db.example", NOW + 91 * DAY).is_err());
    assert!(check("db.example", NOW - DAY).is_err());
    check("db.example", NOW).unwrap();
    check("10.0.0.1", NOW + 89 * DAY).unwrap();
}

#[test]
fn deprecated_formats_mean_what_they_did() {
    let mut rig = Rig::new();
    let show = ["$$SCONE::crt.crt$$", "$$SCONE::crt.key$$", "$$SCONE::crt.chain$$", "$$SCONE::crt:chain$$"];
    rig.put_showing("a", &show, PKI);
    let shown = rig.shown("a");
    let certificates = |pem: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
    };
    PrivateKeyDer::from_pem_slice(shown[1].as_bytes()).unwrap();
    let [mid, root] = &certificates(&shown[3])[..] else { panic!("an intermediate and a root") };
    assert_eq!(certificates(&shown[2]), [root.clone(), mid.clone(), certificates(&shown[0]).remove(0)]);

    let two = "secrets: [{name: b, kind: binary, value: 00ff}, {name: b.hex, kind: ascii, value: its own}]\n";
    rig.put_showing("b", &["$$SCONE::b:hex$$", "$$SCONE::b.hex$$"], two);
    assert_eq!(rig.shown("b"), ["00ff", "its own"]);
    rig.put_showing("b", &["$$SCONE::b.hex$$"], "secrets: [{name: b, kind: binary, value: 00ff}]\n");
    assert_eq!(rig.shown("b"), ["00ff"]);
}

#[test]
fn a_certificate_is_made_anew_before_it_ends() {
    let mut rig = Rig::new();
    rig.put_showing("a", &["$$SCONE::crt$$", "$$SCONE::ca$$", "$$SCONE::key$$"], PKI);
    let first = rig.shown("a");
    rig.at(NOW + 59 * DAY);
    assert_eq!(rig.shown("a"), first);
    rig.at(NOW + 61 * DAY);
    let later = rig.shown("a");
    assert_ne!(later[0], first[0]);
    assert_eq!(later[1..], first[1..], "what does not end stays");
}

#[test]
fn an_imported_certificate_brings_its_key_only_if_that_is_exported_too() {
    let mut rig = Rig::new();
    rig.put_showing("a", &["$$SCONE::crt$$"], PKI);
    let import = "secrets: [{name: x, kind: x509, import: {session: a, secret: crt}}]\n";
    rig.put_showing("c", &["$$SCONE::x:privatekey$$"], import);
    rig.refuses("c/s", "Secret 'x' does not have the format it is asked for");
    rig.put_showing("c", &["$$SCONE::x$$"], import);
    assert_eq!(rig.shown("c"), rig.shown("a"));
    rig.put_showing("b", &["$$SCONE::x:privatekey$$", "$$SCONE::x$$"], import);
    let shown = rig.shown("b");
    let certificate = CertificateDer::from_pem_slice(shown[1].as_bytes()).unwrap();
    let spki = ParsedCertificate::try_from(&certificate).unwrap().subject_public_key_info();
    let key = KeyPair::from_pem(&shown[0]).unwrap();
    assert_eq!(spki.as_ref(), rcgen::PublicKeyData::subject_public_key_info(&key));
}

#[test]
fn a_certificate_in_the_access_policy_admits_its_key() {
    let rig = Rig::new();
    let (bob, mallory) = (client("bob"), client("mallory"));
    let pem = bob.certificate.replace('\n', "\n      ");
    let text = format!("name: a\nversion: 0.3\naccess_policy:\n  read:\n    - |\n      {pem}\n  update: NONE\n");
    rig.cas.upload(&text, Some(&rig.alice)).unwrap().unwrap();
    for other in [Some(&mallory), Some(&rig.alice), None] {
        assert!(rig.cas.read("a", None, other).unwrap().is_err());
    }
    assert!(rig.cas.read("a", None, Some(&bob)).unwrap().is_ok());
    // Nobody may update it, its creator neither.
    let again = text.replace("version: 0.3", "version: 0.3.1");
    assert!(rig.cas.upload(&again, Some(&rig.alice)).unwrap().is_err());
}

#[test]
fn a_secret_in_the_access_policy_admits_who_its_value_names_now() {
    let mut rig = Rig::new();
    let (bob, mallory) = (client("bob"), client("mallory"));
    let may_read = |rig: &Rig, who: Option<&Client>| rig.cas.read("a", None, who).unwrap().is_ok();
    let whose = |hash: &str| format!("secrets: [{{name: who, kind: ascii, value: {hash}, export: {{session: a}}}}]\n");
    let policy = "access_policy: {read: [$$SCONE::who$$]}\nsecrets: [{name: who, import: {session: b, secret: who}}]\n";
    rig.put("a", policy);
    // Nobody has it, it is another session's, it is no name of anybody; ANY and NONE are the policy's own to say.
    for value in [None, Some("whatever"), Some("ANY"), Some("NONE")] {
        if let Some(value) = value {
            rig.put("b", &whose(value));
        }
        for who in [Some(&bob), Some(&rig.alice), None] {
            assert!(!may_read(&rig, who), "{value:?}");
        }
    }
    rig.put("b", &whose(&bob.key_hash));
    assert!(!may_read(&rig, Some(&mallory)) && !may_read(&rig, Some(&rig.alice)) && !may_read(&rig, None));
    assert!(may_read(&rig, Some(&bob)));
    assert_eq!(rig.cas.list(Some(&bob)).unwrap(), ["a"]);
    rig.put("b", &whose("CREATOR"));
    assert!(!may_read(&rig, Some(&bob)) && may_read(&rig, Some(&rig.alice)));

    // A certificate stands for its key.
    let pem = bob.certificate.replace('\n', "\n      ");
    rig.put(
        "a",
        &format!("access_policy: {{update: [$$SCONE::who$$]}}\nsecrets:\n  - name: who\n    kind: x509\n    value: |\n      {pem}\n"),
    );
    let nested = |name: &str| format!("name: a/{name}\nversion: '0.3'\n");
    let next = format!("name: a\nversion: '0.3'\npredecessor: {}\n", rig.hashes["a"]);
    for who in [&mallory, &rig.alice] {
        assert!(rig.cas.upload(&nested("n"), Some(who)).unwrap().is_err());
        assert!(rig.cas.upload(&next, Some(who)).unwrap().is_err());
    }
    assert!(rig.cas.upload(&nested("n"), Some(&bob)).unwrap().is_ok());
    assert!(rig.cas.upload(&next, Some(&bob)).unwrap().is_ok());
}

#[test]
fn another_session_may_decide_what_a_service_must_show() {
    const CODES: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";
    let mut rig = Rig::new();
    let share = |security: &str, variants: &str| {
        let fragment = |name, value| {
            format!("  - {{name: {name}, kind: config-fragment, value: {value}, export: {{session: a}}}}\n")
        };
        format!("secrets:\n{}{}", fragment("security", security), fragment("variants", variants))
    };
    rig.put("b", &share("{}", "[]"));
    rig.put(
        "a",
        &format!(
            "security: $$SCONE::security$$
services:
  - name: s
    command: /p
    attestation: [{{mrenclave: {OTHER}}}, $$SCONE::variants$$]
secrets:
  - {{name: security, import: {{session: b, secret: security}}}}
  - {{name: variants, import: {{session: b, secret: variants}}}}
  - {{name: codes, kind: ascii, value: {CODES}}}
"
        ),
    );
    let start = |rig: &Rig, code: Option<&str>, mrenclave: &str| {
        rig.claim(&Claim { service: "a/s", code, mrenclave, signer: None, vouched: true, access: Access::default() })
    };
    let last = |answer: Result<Configuration, Vec<String>>| answer.unwrap_err().pop().unwrap();
    assert!(last(start(&rig, None, MRENCLAVE)).contains("Unexpected enclave measurement"));
    start(&rig, None, OTHER).unwrap();
    rig.put("b", &share("{}", &format!("{{mrenclave: [{MRENCLAVE}]}}")));
    start(&rig, None, MRENCLAVE).unwrap();
    start(&rig, None, OTHER).unwrap();

    // A placeholder in what is imported means a secret of the session that imports it.
    let codes = "{attestation: {one_time_password_shared_secret: $$SCONE::codes$$}}";
    let code = code_of(CODES);
    for (security, variants) in [
        ("{attestation: {one_time_password_shared_secret: $$SCONE::other$$}}", "[]"),
        ("{attestation: $$SCONE::security$$}", "[]"),
        ("{attestation: {tolerate: [everything-else]}}", "[]"),
        ("{service_access_token: ''}", "[]"),
        ("none", "[]"),
        (codes, "[everything-else]"),
        (codes, "{mrenclave: everything-else}"),
        (codes, "{signer: {mrsigner: everything-else}}"),
    ] {
        rig.put("b", &share(security, variants));
        let causes = start(&rig, Some(&code), OTHER).unwrap_err();
        assert!(causes[1].starts_with("What placeholders stand for in the session's 's"), "{causes:?}");
        assert!(!causes.concat().contains("everything-else"), "it may be a secret: {causes:?}");
    }
    rig.put("b", "");
    assert_eq!(last(start(&rig, Some(&code), OTHER)), "Session 'b' does not export secret 'security' to 'a'");
    rig.put("b", &share(codes, "[]"));
    assert_eq!(last(start(&rig, None, OTHER)), "An One-time Password is required to access this session");
    // None of the refusals has used it up.
    start(&rig, Some(&code), OTHER).unwrap();
    rig.put("b", &share("{attestation: {mode: none}}", "[]"));
    start(&rig, None, MRENCLAVE).unwrap();
}

#[test]
fn a_fragment_of_another_session_may_say_who_may_what() {
    let mut rig = Rig::new();
    let (bob, mallory) = (client("bob"), client("mallory"));
    let share = |policy: &str| {
        format!("secrets: [{{name: who, kind: config-fragment, value: {policy}, export: {{session: a}}}}]\n")
    };
    let may_read = |rig: &Rig, who: Option<&Client>| rig.cas.read("a", None, who).unwrap().is_ok();
    let may_create = |rig: &Rig, who: &Client, name: &str| {
        rig.cas.upload(&format!("name: a/{name}\nversion: '0.3'\n"), Some(who)).unwrap().is_ok()
    };
    rig.put("b", &share("{read: [CREATOR]}"));
    rig.put("a", "access_policy: $$SCONE::who$$\nsecrets: [{name: who, import: {session: b, secret: who}}]\n");
    assert!(!may_read(&rig, Some(&bob)) && !may_create(&rig, &bob, "n"));
    assert!(may_read(&rig, Some(&rig.alice)));
    // Nothing that is known, two that exclude one another, a name of nobody: then nobody.
    for policy in ["{read: [{signer: PEM}]}", "{read: [ANY, CREATOR2]}", "{read: NONE}", "{raed: [ANY]}", "ANYBODY"] {
        rig.put("b", &share(policy));
        for who in [Some(&bob), Some(&rig.alice), None] {
            assert!(!may_read(&rig, who), "{policy}");
        }
    }
    rig.put("b", &share(&format!("{{read: ANY, update: [{}]}}", bob.key_hash)));
    assert!(may_read(&rig, None) && !may_create(&rig, &mallory, "n") && !may_create(&rig, &rig.alice, "n"));
    assert!(may_create(&rig, &bob, "n"), "as may update");
    rig.put("b", &share(&format!("[CREATOR, {}]", bob.key_hash)));
    assert!(!may_read(&rig, None) && !may_read(&rig, Some(&mallory)));
    assert!(may_read(&rig, Some(&bob)) && may_read(&rig, Some(&rig.alice)) && may_create(&rig, &rig.alice, "m"));
}

#[test]
fn an_earlier_version_is_read_by_name_and_hash_as_the_active_ones_policy_grants() {
    let mut rig = Rig::new();
    let mallory = client("mallory");
    let open = rig.put("a", "access_policy: {read: ANY}\n");
    let other = rig.put("b", "volumes: [{name: v}]\n");
    assert!(rig.cas.read("a", Some(&open), Some(&mallory)).unwrap().is_ok());
    rig.put("a", "access_policy: {read: CREATOR}\n");
    assert!(rig.cas.read("a", Some(&open), Some(&mallory)).unwrap().is_err());
    assert!(rig.cas.read("a", Some(&other), Some(&rig.alice)).unwrap().is_err());
    let earlier = rig.cas.read("a", Some(&open), Some(&rig.alice)).unwrap().ok().unwrap();
    assert!(earlier.hash == open && earlier.text.contains("- ANY\n"), "{}", earlier.text);
}
