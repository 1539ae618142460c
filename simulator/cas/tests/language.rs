//! The session language: what is refused and why, what the normal form is, what the hash covers. What a service gets of it is
//! in `release.rs`.

use std::fs;
use std::path::Path;

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use scone_sim::session::{
    Creator, Endpoint, KeyType, Kind, MAX_TEXT, NOT_SIMULATED, Rule, Session, VALUES_NOT_SIMULATED,
};
use scone_sim::tls::{self, Identity};

const MRENCLAVE: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const OTHER: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// A session with these further lines.
fn session(lines: &str) -> String {
    format!("name: ns/a\nversion: \"0.3.10\"\n{lines}")
}

/// A session with one service that has these further lines.
fn service(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    session(&format!("services:\n  - name: s\n    attestation: {{mrenclave: {MRENCLAVE}}}\n{lines}"))
}

fn who(entry: &str) -> Rule {
    Rule::Who(entry.to_owned())
}

#[track_caller]
fn refused(text: &str, why: &str) {
    let shown: String = text.chars().take(1000).collect();
    let error = Session::parse(text).expect_err(&shown).to_string();
    assert!(error.contains(why), "{error}\n{shown}");
}

#[track_caller]
fn accepted(text: &str) -> Session {
    Session::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn an_unknown_key_is_named_with_its_place() {
    refused(&session("colour: red\n"), "unknown field `colour`");
    refused(&session("colour: red\n"), "line 3 column 1");
    refused(&service("command: /p\nenvironments: {}\n"), "services[0]: unknown field `environments`");
    refused(&session("access_policy: {raed: [ANY]}\n"), "access_policy: unknown field `raed`");
    // A file with a fragment is written anew before it is understood: then a place would be another file's.
    let fragment = "secrets: [{name: f, kind: config-fragment, value: [1, 2]}]\ncolour: red\n";
    let error = Session::parse(&session(fragment)).unwrap_err().to_string();
    assert!(error.starts_with("unknown field `colour`, expected ") && !error.contains("line"), "{error}");
}

#[test]
fn a_key_given_twice_is_refused() {
    refused(&session("name: other\n"), "duplicate");
    refused(&service("command: /p\nenvironment:\n  A: 1\n  A: 2\n"), "duplicate");
}

#[test]
fn a_documented_key_that_is_not_served_says_so() {
    for key in NOT_SIMULATED {
        let (lists, last) =
            key.rsplit_once('.').map_or((Vec::new(), *key), |(path, last)| (path.split('.').collect(), last));
        // Inside lists and outside of them.
        for open in ["[{", "{"] {
            let close = if open == "[{" { "}]" } else { "}" };
            let mut value = format!("{last}: x");
            for list in lists.iter().rev() {
                value = format!("{list}: {open}{value}{close}");
            }
            refused(&session(&format!("{value}\n")), "not simulated: ");
            refused(&session(&format!("{value}\n")), last);
        }
    }
    for (key, value) in VALUES_NOT_SIMULATED {
        let (path, last) = key.rsplit_once('.').unwrap();
        let inner = path.rsplit('.').fold(format!("{last}: {value}"), |inner, key| format!("{key}: {{{inner}}}"));
        refused(&session(&format!("{inner}\n")), "not simulated: ");
        refused(&session(&format!("{inner}\n")), value);
    }
    refused("name: /\nversion: '0.3.10'\n", "not simulated: name: the root namespace");
}

/// A session with a service `s`, whose attestation is `attestation`, and these secrets.
fn delegating(attestation: &str, security: &str, secrets: &str) -> String {
    session(&format!(
        "services: [{{name: s, command: /p, attestation: {attestation}}}]\nsecurity: {security}\nsecrets:\n{secrets}"
    ))
}

#[test]
fn secrets_may_stand_for_any_part_of_what_a_service_must_show() {
    let fragment = |name: &str, value: &str| format!("  - {{name: {name}, kind: config-fragment, value: {value}}}\n");
    let text = |name: &str, value: &str| format!("  - {{name: {name}, kind: ascii, value: '{value}'}}\n");
    let measured = fragment("m", &format!("[{MRENCLAVE}, {OTHER}]"));
    for (attestation, security, secrets, why) in [
        ("[$$SCONE::x$$]", "", &measured, "services[0].attestation: no secret 'x' is declared"),
        ("{mrenclave: $$SCONE::m:hex$$}", "", &measured, "config-fragment and does not have that format"),
        ("{mrenclave: 'a$$SCONE::m$$'}", "", &measured, "neither a value nor one placeholder that stands for text"),
        ("{mrenclave: $$SCONE::m|escape(json)$$}", "", &measured, "neither a value nor one placeholder"),
        ("$$SCONE::b$$", "", &"  - {name: b, kind: binary}\n".into(), "neither a value nor one placeholder"),
        ("$$SCONE::m$$", "", &measured, "services[0].attestation: with the values of its placeholders: "),
        ("$$SCONE::v$$", "", &fragment("v", "{mrsinger: x}"), "unknown field `mrsinger`"),
        ("$$SCONE::v$$", "", &fragment("v", "{mrenclave: abc}"), "a mrenclave is not 64 hex digits"),
        ("$$SCONE::v$$", "", &fragment("v", "[]"), "at least one attestation variant is needed"),
        ("$$SCONE::v$$", "", &fragment("v", "'$$SCONE::v$$'"), "its placeholders stand for one another"),
        (
            "[]",
            "$$SCONE::v$$",
            &fragment("v", "{attestation: {mode: maa}}"),
            "not simulated: security.attestation.mode",
        ),
        ("[]", "$$SCONE::v$$", &fragment("v", "{attestation: {certificates: [x]}}"), "attestation.certificates"),
        ("[]", "{attestation: $$SCONE::v$$}", &fragment("v", "{tolerate: [all]}"), "'all' is not known"),
        ("[]", "{attestation: {mode: $$SCONE::v$$}}", &text("v", "hardware"), "at least one attestation variant"),
        ("[]", "{singleton_enclaves: $$SCONE::v$$}", &text("v", "true"), "not simulated: security.singleton_enclaves"),
        (
            "[]",
            "{attestation: {trusted_scone_qe_pubkeys: [$$SCONE::m$$]}}",
            &measured,
            "not simulated: security.attestation.trusted_scone_qe_pubkeys[0]: a placeholder",
        ),
        // A list that is written in a list stays one.
        ("[[{mrenclave: x}]]", "", &measured, "attestation"),
        // No program could meet these, and CAS's answers would tell them.
        ("{mrenclave: $$SCONE::b:hex$$}", "", &"  - {name: b, kind: binary, size: 32}\n".into(), "that somebody wrote"),
        ("{mrenclave: $$SCONE::a$$}", "", &"  - {name: a, kind: ascii}\n".into(), "that somebody wrote"),
        ("$$SCONE::k$$", "", &"  - {name: k, kind: private-key}\n".into(), "that somebody wrote"),
    ] {
        refused(&delegating(attestation, security, secrets), why);
    }

    let all = delegating(
        &format!(
            "[{{mrenclave: [$$SCONE::m$$], signer: {{mrsigner: {OTHER}, isvprodid: $$SCONE::n$$}}}}, $$SCONE::v$$]"
        ),
        "{attestation: {mode: $$SCONE::mode$$, tolerate: [debug-mode, $$SCONE::t$$], ignore_advisories: $$SCONE::i$$}}",
        &[
            measured,
            text("n", "6"),
            fragment("v", &format!("{{signer: {{mrsigner: {OTHER}, isvprodid: 213, isvsvn_min: 13}}}}")),
            text("mode", "hardware"),
            fragment("t", "[outdated-tcb, hyperthreading]"),
            fragment("i", "'*'"),
        ]
        .concat(),
    );
    // Placeholders stand for placeholders, but not without end.
    let steps = |steps: usize| {
        let step = |n: usize| fragment(&format!("v{n}"), &format!("'$$SCONE::v{}$$'", n + 1));
        let last = fragment(&format!("v{steps}"), &format!("{{mrenclave: {MRENCLAVE}}}"));
        delegating("$$SCONE::v1$$", "", &((1..steps).map(step).collect::<String>() + &last))
    };
    accepted(&steps(8));
    refused(&steps(9), "its placeholders stand for one another");
    // What is kept, hashed and read back are the placeholders.
    let session = accepted(&all);
    let read = session.to_yaml().unwrap();
    assert!(read.contains("mrenclave:\n    - $$SCONE::m$$\n") && read.contains("isvprodid: $$SCONE::n$$\n"), "{read}");
    assert!(accepted(&read) == session);
    // Of an import nothing is known yet.
    let imported = "  - {name: x, import: {session: y, secret: x}}\n";
    for (attestation, security) in [("$$SCONE::x$$", "$$SCONE::x$$"), ("[]", "{attestation: $$SCONE::x$$}")] {
        accepted(&delegating(attestation, security, imported));
    }
}

#[test]
fn every_row_of_the_documentation_names_tests_that_exist() {
    let page = include_str!("../../../docs/session-language.md");
    for key in NOT_SIMULATED {
        let last = key.rsplit('.').next().unwrap_or(key);
        assert!(
            page.contains(&format!("`{last}`")),
            "docs/session-language.md does not say that {key} is not simulated"
        );
    }
    for (key, value) in VALUES_NOT_SIMULATED {
        assert!(page.contains(&format!("`{value}`")), "docs/session-language.md does not speak of {value} ({key})");
    }
    let crates =
        [Path::new(env!("CARGO_MANIFEST_DIR")).to_owned(), Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime")];
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| key"));
    let mut named = 0;
    for row in rows {
        let tests = row.trim_end_matches('|').rsplit('|').next().unwrap();
        assert!(tests.contains('`'), "no test is named in: {row}");
        for test in tests.split('`').skip(1).step_by(2) {
            let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("'{test}' is not FILE::TEST"));
            let sources = crates.iter().map(|path| path.join("tests").join(file).with_extension("rs"));
            let text = sources.filter_map(|path| fs::read_to_string(path).ok()).collect::<String>();
            assert!(text.contains(&format!("#[test]\nfn {name}()")), "there is no test {test}");
            named += 1;
        }
    }
    assert!(named > 30);
}

/// The other way round: what the page says is not simulated is refused as that, not as unknown.
#[test]
fn what_the_documentation_says_is_not_simulated_is_known_to_be_documented() {
    let page = include_str!("../../../docs/session-language.md");
    let values = VALUES_NOT_SIMULATED.iter().map(|(_, value)| *value);
    let known: Vec<&str> = NOT_SIMULATED.iter().filter_map(|key| key.rsplit('.').next()).chain(values).collect();
    let mut named = 0;
    for row in page.lines().filter(|line| line.starts_with("| ") && line.contains("| not simulated |")) {
        for word in row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2) {
            let is_key = word.bytes().all(|c| c.is_ascii_lowercase() || c == b'_' || c == b'-');
            // What holds the keys is named in brackets.
            if is_key && word != "attestation" {
                assert!(known.contains(&word), "'{word}' would be refused as unknown");
                named += 1;
            }
        }
    }
    assert!(named > 15, "{named}");
}

#[test]
fn versions_0_3_to_0_3_12_are_served() {
    refused("name: a\n", "version: absent");
    refused("name: a\ndigest: x\n", "not simulated: version: absent");
    refused("name: a\nversion: 0.2\ndigest: x\n", "not simulated: version: 0.2");
    refused("name: a\nversion: 0.30\n", "not simulated: version: 0.30");
    for version in ["0.1", "0.2", "0.4", "0.3.13", "0.3.", "0.3.01", "0.30", "0.3.x", "1", "0.3.10.0"] {
        refused(&format!("name: a\nversion: '{version}'\n"), "not simulated: version");
    }
    for version in ["0.3", "0.3.0", "0.3.8", "0.3.10", "0.3.12"] {
        assert_eq!(accepted(&format!("name: a\nversion: {version}\n")).version, version);
    }
}

#[test]
fn names_are_made_of_unreserved_characters() {
    let long = "x".repeat(129);
    for name in ["''", "a//b", "/a", "a/", "'a b'", "a@b", "ä", ".", "a/../b", &long] {
        refused(&format!("name: {name}\nversion: 0.3\n"), "name");
    }
    accepted("name: A-z_0.9~/b\nversion: 0.3\n");
}

#[test]
fn no_predecessor_is_spelled_in_four_ways() {
    refused(&session("predecessor: 1234\n"), "predecessor: not a session hash");
    for spelling in
        ["", "predecessor: ~\n", "predecessor: null\n", "predecessor:\n", "predecessor: ''\n", "predecessor: '~'\n"]
    {
        assert_eq!(accepted(&session(spelling)).predecessor, None, "{spelling}");
    }
    let with = accepted(&session(&format!("predecessor: {MRENCLAVE}\n")));
    assert_eq!(with.predecessor.as_deref(), Some(MRENCLAVE));
}

#[test]
fn who_may_what_is_the_creator_unless_said() {
    for who in ["[ANY, CREATOR]", "[NONE, CREATOR]", "[everybody]", "[any]"] {
        refused(&session(&format!("access_policy: {{read: {who}}}\n")), "access_policy.read");
    }
    let secrets = "secrets: [{name: a, kind: ascii}, {name: b, kind: binary}]\n";
    for (who, why) in [
        ("[$$SCONE::nobody$$]", "access_policy.update: no secret 'nobody' is declared"),
        ("[x$$SCONE::a$$]", "access_policy.update: not one placeholder without format"),
        ("[$$SCONE::a|escape(json)$$]", "access_policy.update: not one placeholder without format"),
        ("[$$SCONE::b:hex$$]", "access_policy.update: not one placeholder without format"),
        ("[$$SCONE::b$$]", "access_policy.update: 'b' is binary, not ascii or a certificate"),
    ] {
        refused(&session(&format!("access_policy: {{update: {who}}}\n{secrets}")), why);
    }
    refused(&session("access_policy: everybody\n"), "access_policy: invalid type");
    refused(&session("access_policy: $$SCONE::nobody$$\n"), "access_policy.read: no secret 'nobody' is declared");
    let policy = format!("access_policy: {{read: ANY, update: $$SCONE::a$$}}\n{secrets}");
    assert!(accepted(&session(&policy)).refers_to_creator());
    let policy = accepted(&session(&format!("access_policy: {{update: [{OTHER}]}}\n"))).access_policy;
    assert_eq!(
        (policy.read, policy.update.clone(), policy.create_sessions),
        (vec![who("CREATOR")], vec![who(OTHER)], policy.update)
    );
}

/// The key of RFC 8410, section 10.1.
const SIGNER: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

#[test]
fn a_signer_is_an_ed25519_or_p384_key() {
    let signed_by =
        |pem: &str| session(&format!("access_policy: {{update: {{signer: {}}}}}\n", serde_json::json!(pem)));
    let of_type = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    let private = of_type(&rcgen::PKCS_ED25519).serialize_pem();
    for (what, pem) in [
        ("RSA", include_str!("session/rsa.pem")),
        ("P-256", &of_type(&rcgen::PKCS_ECDSA_P256_SHA256).public_key_pem()),
        ("the private key", &private),
        ("two keys", &SIGNER.repeat(2)),
        ("a letter is missing", &SIGNER.replace("MCow", "MCo")),
        ("another length", &SIGNER.replace("xZuE=", "x")),
        ("another object identifier", &SIGNER.replace("K2VwAyEA", "K2VxAyEA")),
        ("no end", SIGNER.trim_end().trim_end_matches('-')),
        ("no PEM", "PEM"),
        ("nothing", ""),
    ] {
        let error = Session::parse(&signed_by(pem)).expect_err(what).to_string();
        let why = "access_policy.update: signer: not an Ed25519 or P-384 public key (SPKI in PEM) at line 3 column ";
        assert!(error.starts_with(why), "{what}: {error}");
    }
    refused(&session("access_policy: {update: {signer: $$SCONE::x$$}}\n"), "a placeholder is not resolved here");

    accepted(&signed_by(&of_type(&rcgen::PKCS_ECDSA_P384_SHA384).public_key_pem()));
    let plain = accepted(&signed_by(SIGNER));
    let again = accepted(&plain.to_yaml().unwrap());
    assert!(again == plain && again.to_yaml().unwrap().contains("- signer: |\n      -----BEGIN PUBLIC KEY-----\n"));
    for spelling in [SIGNER.trim().to_owned(), SIGNER.replace('\n', " "), SIGNER.replace('\n', "\r\n  ")] {
        assert_eq!(accepted(&signed_by(&spelling)).hash(), plain.hash(), "{spelling}");
    }
}

#[test]
fn rules_of_several_are_for_update_and_create_sessions_and_can_be_met() {
    let with = |policy: &str| session(&format!("access_policy: {{{policy}}}\n"));
    let key = serde_json::json!(SIGNER).to_string();
    let client = Identity::generate("alice").unwrap();
    let certificate = serde_json::json!(client.certificate_pem).to_string();
    for (policy, why) in [
        ("read: [{signer: KEY}]", "access_policy: read and list_sessions take neither signers nor require- rules"),
        ("read: {require-all: [CREATOR]}", "a request to read is not signed"),
        ("list_sessions: [CREATOR, {signer: KEY}]", "take neither signers nor require- rules"),
        (
            "update: {require-at-least-3: [CREATOR, {signer: KEY}]}",
            "require-at-least-3 has 2 rules, and can never be met",
        ),
        (
            "update: {require-at-least-2: [{signer: KEY}, CREATOR, {signer: KEY}]}",
            "require-at-least-2 has the same rule twice: who meets it would count for two",
        ),
        // A certificate and the hash of its key are the same rule, and what CAS keeps must be readable.
        (
            "update: {require-at-least-1: [CERTIFICATE, HASH]}",
            "access_policy.update: require-at-least-1 has the same rule twice",
        ),
        ("update: {require-at-least-1: []}", "require-at-least-1 has 0 rules"),
        ("update: {require-all: }", "require-all has 0 rules"),
        ("update: {require-at-least-0: [CREATOR]}", "unknown field `require-at-least-0`"),
        ("update: {require-at-least-01: [CREATOR]}", "unknown field `require-at-least-01`"),
        ("update: {require-at-least-+1: [CREATOR]}", "unknown field `require-at-least-+1`"),
        ("update: {require-at-least-N: [CREATOR]}", "unknown field `require-at-least-N`"),
        ("update: {require-at-least-: [CREATOR]}", "unknown field `require-at-least-`"),
        ("update: {require-any: [CREATOR]}", "expected one of `signer`, `require-all`, `require-at-least-N`"),
        ("update: {signer: KEY, require-all: [CREATOR]}", "`require-all` stands beside another key"),
        ("update: [{}]", "access_policy.update"),
        ("update: {require-all: [ANY]}", "access_policy.update: ANY must stand alone"),
        ("update: {require-all: [{require-all: [NONE]}]}", "access_policy.update: NONE must stand alone"),
        ("update: {require-all: [somebody]}", "'somebody' is not CREATOR, ANY, NONE or a key hash"),
        ("update: {require-all: [$$SCONE::x$$]}", "no secret 'x' is declared"),
        (
            "update: CREATOR}\ncreator: {require-all: [CREATOR]",
            "creator: unknown field `require-all`, expected `signer`",
        ),
    ] {
        let policy = policy.replace("KEY", &key).replace("CERTIFICATE", &certificate).replace("HASH", &client.key_hash);
        refused(&with(&policy), why);
    }
    let nested = |depth: usize| {
        let (open, close) = ("{require-all: ".repeat(depth), "}".repeat(depth));
        with(&format!("update: {open}{{signer: {key}}}{close}"))
    };
    refused(&nested(15), "access_policy.update: more than 14 require- rules within one another");
    let deepest = accepted(&nested(14));
    assert!(accepted(&deepest.to_yaml().unwrap()) == deepest);
}

#[test]
fn whether_a_rule_speaks_of_the_creator_counts_however_deep_it_is() {
    let speaks = |rule: &str| {
        let policy =
            format!("access_policy: {{read: NONE, update: {{require-all: [{{require-at-least-1: [{rule}]}}]}}}}\n");
        accepted(&session(&(policy + "secrets: [{name: s, kind: ascii}]\n"))).refers_to_creator()
    };
    assert!(!speaks(OTHER) && speaks("CREATOR") && speaks("$$SCONE::s$$"));
}

#[test]
fn a_fragment_of_the_policy_may_be_the_access_policy() {
    let with = |value: &str| {
        session(&format!(
            "access_policy: $$SCONE::f$$\nsecrets:\n  - {{name: f, kind: config-fragment, {value}}}\n  - {{name: a, kind: ascii}}\n"
        ))
    };
    refused(&with("size: 20"), "secrets[0].size: not for a secret of kind config-fragment");
    refused(&with("export: {session: b}"), "secrets[0].value: missing");
    for (policy, why) in [
        ("{read: [$$SCONE::a$$]}", "a placeholder in it is not simulated"),
        ("{read: [{signer: PEM}]}", "signer: not an Ed25519 or P-384 public key"),
        ("{read: {require-all: [CREATOR]}}", "a request to read is not signed"),
        ("{update: {require-at-least-2: [CREATOR]}}", "require-at-least-2 has 1 rules"),
        ("7", "invalid type: integer `7`"),
        ("{update: [CREATER]}", "access_policy.update: 'CREATER' is not CREATOR, ANY, NONE or a key hash"),
        ("[ANY, CREATOR]", "access_policy.read: ANY must stand alone"),
        ("CREATER", "'CREATER' is not CREATOR"),
        ("{require-any: [CREATOR]}", "unknown field `require-any`"),
    ] {
        let refusal = "access_policy.read: the config-fragment 'f' is no access policy: ";
        refused(&with(&format!("value: {policy}")), refusal);
        refused(&with(&format!("value: {policy}")), why);
    }
    let code = "security: {attestation: {one_time_password_shared_secret: $$SCONE::f$$}}\n";
    refused(&(with("value: CREATOR") + code), "one_time_password_shared_secret: not base32");

    let written = accepted(&with("value: {read: [ANY], update: CREATOR}"));
    assert_eq!(written.secrets[0].value.as_deref(), Some(r#"{"read":["ANY"],"update":"CREATOR"}"#));
    assert!(accepted(&written.to_yaml().unwrap()) == written && written.refers_to_creator());
    // A rule alone, as `update` takes it.
    accepted(&with("value: {require-all: [CREATOR]}"));
    let alone = "access_policy: $$SCONE::f$$\nsecrets: {name: f, kind: config-fragment, value: [NONE]}\n";
    assert_eq!(accepted(&session(alone)).secrets[0].value.as_deref(), Some(r#"["NONE"]"#));
}

#[test]
fn a_certificate_in_the_access_policy_stands_for_its_key() {
    refused(&session("access_policy: {read: ['-----BEGIN CERTIFICATE-----']}\n"), "a certificate is damaged");
    let bob = Identity::generate("bob").unwrap();
    let pem = bob.certificate_pem.replace('\n', "\n        ");
    let text = session(&format!("access_policy:\n  read:\n    - CREATOR\n    - |\n        {pem}\n"));
    assert_eq!(accepted(&text).access_policy.read, [who("CREATOR"), who(&bob.key_hash)]);
    let within = |certificate: &str| {
        session(&format!("access_policy: {{update: {{require-all: [{}]}}}}\n", serde_json::json!(certificate)))
    };
    refused(&within("-----BEGIN CERTIFICATE-----"), "access_policy.update: a certificate is damaged");
    let update = accepted(&within(&bob.certificate_pem)).access_policy.update;
    assert_eq!(update, [Rule::All(vec![who(&bob.key_hash)])]);
}

#[test]
fn a_service_needs_an_attestation_unless_the_session_switches_it_off() {
    let bare = "services: [{name: s, command: /p}]\n";
    refused(&session(bare), "at least one attestation variant");
    refused(&session("services: [{name: s, command: /p, attestation: []}]\n"), "at least one attestation variant");
    refused(
        &session("services: [{name: s, command: /p, attestation: [{mrenclave: []}]}]\n"),
        "neither mrenclave nor signer",
    );
    refused(&session("services: [{name: s, command: /p, attestation: [{mrenclave: abc}]}]\n"), "64 hex digits");
    let off = accepted(&session(&format!("{bare}security: {{attestation: {{mode: none}}}}\n")));
    assert!(!off.security.given().unwrap().judges_evidence());
}

#[test]
fn attestation_is_one_or_a_list_and_has_an_old_spelling() {
    let measured = |lines: &str| {
        let text = session(&format!("services:\n  - name: s\n    command: /p\n    {lines}\n"));
        let variants = accepted(&text).services[0].attestation.clone();
        variants.iter().flat_map(|variant| variant.given().unwrap().mrenclave.clone()).collect::<Vec<_>>()
    };
    assert_eq!(measured(&format!("attestation: {{mrenclave: {MRENCLAVE}}}")), [MRENCLAVE]);
    assert_eq!(measured(&format!("attestation: {{mrenclave: [{MRENCLAVE}, {OTHER}]}}")), [MRENCLAVE, OTHER]);
    assert_eq!(
        measured(&format!("attestation: [{{mrenclave: {OTHER}}}, {{mrenclave: [{MRENCLAVE}]}}]")),
        [OTHER, MRENCLAVE]
    );
    assert_eq!(measured(&format!("mrenclaves: [{OTHER}, {MRENCLAVE}]")), [OTHER, MRENCLAVE]);
    assert_eq!(measured(&format!("mrenclaves: [{}]", OTHER.to_uppercase())), [OTHER]);
}

#[test]
fn a_signer_is_whole_and_says_one_thing_about_versions() {
    let with = |variant: &str| session(&format!("services: [{{name: s, command: /p, attestation: {variant}}}]\n"));
    let signer = |more: &str| with(&format!("{{signer: {{mrsigner: {OTHER}{more}}}}}"));
    refused(&signer(""), "isvprodid");
    refused(&signer(", isvprodid: 1, isvsvn: 65536"), "isvsvn");
    refused(&signer(", isvprodid: 1, isvsvn: 2, isvsvn_min: 1"), "exclude one another");
    refused(&signer(", isvprodid: 1, isvsvn: 2, isvsvn_max: 3"), "exclude one another");
    refused(&signer(", isvprodid: 1, isvsvn_min: 5, isvsvn_max: 2"), "isvsvn_min is above isvsvn_max");
    refused(&signer(", isvprodid: 1, version: 2"), "unknown field `version`");
    refused(&with("{signer: {mrsigner: abc, isvprodid: 1}}"), "a mrsigner is not 64 hex digits");
    for versions in ["", ", isvsvn: 2", ", isvsvn_min: 1, isvsvn_max: 3"] {
        let text = signer(&format!(", isvprodid: 1{versions}"));
        let session = accepted(&text);
        let again = accepted(&session.to_yaml().unwrap());
        assert_eq!(again.hash(), session.hash());
    }
}

#[test]
fn a_signers_numbers_may_be_text_as_a_variable_leaves_them() {
    let signer = |numbers: &str| {
        session(&format!(
            "services: [{{name: s, command: /p, attestation: {{signer: {{mrsigner: {OTHER}, {numbers}}}}}}}]\n"
        ))
    };
    for bad in ["''", "'1.0'", "'+1'", "'65536'", "'0x1'", "65536"] {
        refused(&signer(&format!("isvprodid: {bad}")), "expected a number from 0 to 65535");
    }
    for bad in ["-1", "1.5", "[1]"] {
        refused(&signer(&format!("isvprodid: {bad}")), "signer.isvprodid: invalid type");
    }
    let (text, number) =
        (accepted(&signer("isvprodid: '1', isvsvn: '02'")), accepted(&signer("isvprodid: 1, isvsvn: 2")));
    assert!(text.to_yaml().unwrap().contains("isvprodid: 1\n"), "the normal form is a number");
    assert_eq!(text.hash(), number.hash());
}

#[test]
fn a_command_is_text_or_a_list() {
    refused(&service("command: ['', x]\n"), "services[0].command: the program's name is empty");
    refused(&service("command: \"/p 'a\"\n"), "not closed");
    assert_eq!(accepted(&service("command: /p 'a b' \"c\"\n")).services[0].command, ["/p", "a b", "c"]);
    assert_eq!(accepted(&service("command: [/p, 'a b', '']\n")).services[0].command, ["/p", "a b", ""]);
    for none in ["pwd: /\n", "command: ''\n", "command: []\n"] {
        assert!(accepted(&service(none)).services[0].command.is_empty());
    }
}

#[test]
fn the_callers_arguments_are_whole_words_each_once() {
    refused(&service("command: /p @@0\n"), "counted from 1");
    refused(&service("command: /p @@99999\n"), "not that many");
    refused(&service("command: /p @@1 @@1\n"), "stands twice");
    refused(&service("command: '@@1 x'\n"), "the program's name");
    refused(&service("command: /p --x=@@1\n"), "not simulated: services[0].command: @@ inside a word");
    refused(&service("command: [/p, '@@x']\n"), "not simulated");
    assert_eq!(accepted(&service("command: /p @@2 '@@1'\n")).services[0].command, ["/p", "@@2", "@@1"]);
}

#[test]
fn the_callers_variables_are_named_by_the_policy() {
    refused(&service("command: /p\nenvironment: {'\\@\\@': x}\n"), "not a variable's name");
    refused(&service("command: /p\nenvironment: {'\\@\\@A': x, A: y}\n"), "both the caller's and the policy's");
    accepted(&service("command: /p\nenvironment:\n  \\@\\@HOME: ignored\n"));
}

#[test]
fn the_environment_is_text_as_it_is_written() {
    refused(&service("command: /p\nenvironment: {A: ~}\n"), "services[0]: environment.A: the variable has no value");
    refused(&service("command: /p\nenvironment: {A: [1]}\n"), "environment.A");
    refused(&service("command: /p\nenvironment: {'A=B': x}\n"), "not a variable's name");
    let session = accepted(&service("command: /p\nenvironment: {A: 010, B: 1.50, C: TRUE, D: ''}\n"));
    let values: Vec<_> = session.services[0].environment.values().map(String::as_str).collect();
    assert_eq!(values, ["010", "1.50", "TRUE", ""]);
}

#[test]
fn placeholders_name_declared_secrets_in_formats_they_have() {
    let with = |placeholder: &str| {
        service(&format!("command: /p\nenvironment: {{A: '{placeholder}'}}\n"))
            + "secrets: [{name: b, kind: binary}, {name: a, kind: ascii}]\n"
    };
    refused(&with("$$SCONE::nobody$$"), "no secret 'nobody'");
    refused(&with("$$SCONE::a:hex$$"), "'a' is ascii and does not have that format");
    refused(&with("$$SCONE::b:pem$$"), "'b' is binary and does not have that format");
    for binary in ["$$SCONE::b$$", "$$SCONE::b:bin$$"] {
        refused(&with(binary), "'b' is in binary form here");
    }
    refused(&with("$$SCONE::nobody.hex$$"), "no secret 'nobody'");
    refused(&with("$$SCONE::a.hex$$"), "'a' is ascii and does not have that format");
    refused(&with("$$SCONE::b.crt$$"), "'b' is binary and does not have that format");
    refused(&with("$$SCONE::b.base64$$"), "no secret 'b.base64'");
    accepted(&with("$$SCONE::b.hex$$"));
    refused(&with("$$SCONE::a"), "not closed");
    refused(&with("$$SCONE::a|escape(xml)$$"), "unknown encoding");
    accepted(&with("x $$SCONE::a|escape(json)$$ $$SCONE::b:base64url$$"));
}

#[test]
fn a_shared_secret_has_at_least_128_bits() {
    let with = |secret: &str| {
        session(&format!(
            "security: {{attestation: {{one_time_password_shared_secret: '{secret}'}}}}\nsecrets: [{{name: short, kind: binary, size: 15}}, {{name: long, kind: binary, size: 16}}, {{name: drawn, kind: ascii}}, {{name: own, kind: ascii, value: JJBFGV2ZGNCFARKIKBFTGUCYKBNFKVQK}}]\n"
        ))
    };
    for weak in ["", "JJBFGV2ZGNCFARKIKBFTGUCY", "jjbfgv2zgncfarkikbftgucykbnfkvqk", "not base32 0189"] {
        refused(&with(weak), "one_time_password_shared_secret");
    }
    refused(&with("$$SCONE::short:base32nopad$$"), "shorter than 16 bytes");
    refused(&with("$$SCONE::long:hex$$"), "needs :base32nopad");
    refused(&with("$$SCONE::drawn$$"), "128 bits");
    refused(&with("A$$SCONE::own$$"), "neither base32 nor one placeholder");
    // 128, 160 and 256 bits: the lengths that are in use (section 3.2).
    for strong in [
        "GEZDGNBVGY3TQOJQGEZDGNBVGY",
        "JJBFGV2ZGNCFARKIKBFTGUCYKBNFKVQK",
        "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZA====",
        "$$SCONE::long:base32nopad$$",
        "$$SCONE::own$$",
    ] {
        accepted(&with(strong));
    }
}

#[test]
fn secrets_are_drawn_given_or_imported() {
    for (secret, why) in [
        ("{name: s}", "kind: missing"),
        ("{name: s, kind: binary, size: 0}", "size"),
        ("{name: s, kind: binary, size: 4097}", "size"),
        ("{name: s, kind: binary, value: xyz}", "not hex"),
        ("{name: s, kind: binary, value: 'aabb', size: 3}", "size"),
        ("{name: s, kind: ascii, value: 'ä'}", "printable"),
        ("{name: s, kind: ascii, value: x, import: {session: a, secret: b}}", "neither value nor export"),
        ("{name: s, import: {session: a, secret: b}, export: {session: c}}", "neither value nor export"),
        ("{name: s, kind: ascii, export: {session: '/session=x,session_hash=y'}}", "not a session's name"),
        ("{name: s, kind: ascii, export: '/session=x'}", "not simulated: secrets[0].export: the one-line form"),
        ("{name: s, kind: ascii, export: {session: x, namespace: y}}", "either session"),
        ("{name: s, kind: ascii, export: {namespace: y, session_hash: x}}", "either session"),
        ("{name: s, kind: ascii, export: {session: x, session_hash: y}}", "session_hash"),
        ("{name: s, kind: ascii, migrate: true}", "secrets[0].migrate: not for a secret of kind ascii"),
        ("{name: s, kind: binary, private_key: k}", "not for a secret of kind binary"),
        ("{name: s, kind: x509, import: {session: a, secret: b}, common_name: c}", "not for an imported secret"),
    ] {
        refused(&session(&format!("secrets: [{secret}]\n")), why);
    }
    refused(&session("secrets: [{name: s, kind: ascii}, {name: s, kind: binary}]\n"), "declared twice");
    let long = "x".repeat(5000);
    let text = session(&format!("secrets: [{{name: s, kind: ascii, value: {long}}}]\n"));
    assert_eq!(accepted(&text).secrets[0].size, Some(5000), "only what is drawn is short");
    let session = accepted(&session("secrets: [{name: s, kind: ascii}, {name: t, kind: binary, value: aabb}]\n"));
    assert_eq!(session.secrets.iter().map(|s| s.size).collect::<Vec<_>>(), [Some(20), Some(2)]);
}

#[test]
fn a_private_key_has_a_type_and_may_migrate() {
    for (key, why) in [
        ("{name: k, kind: private-key, key_type: DSA}", "key_type"),
        ("{name: k, kind: private-key, key_type: RSA-2048}", "not simulated: secrets[0].key_type: drawing an RSA key"),
        ("{name: k, kind: private-key, key_type: RSA-3072}", "not simulated"),
        ("{name: k, kind: private-key, size: 32}", "not for a secret of kind private-key"),
        ("{name: k, kind: private-key, value: abc}", "not a PKCS#8 private key in PEM"),
    ] {
        refused(&session(&format!("secrets: [{key}]\n")), why);
    }
    let keys = accepted(&session(
        "secrets: [{name: k, kind: private-key}, {name: l, kind: private-key, key_type: Ed25519, migrate: true}]\n",
    ));
    assert!(!keys.to_yaml().unwrap().contains("P-256"), "what holds without being said is not read back");
    let secrets = keys.secrets;
    assert_eq!((secrets[0].key_type, secrets[0].migrate), (Some(KeyType::P256), false));
    assert_eq!((secrets[1].key_type, secrets[1].migrate), (Some(KeyType::Ed25519), true));
}

#[test]
fn a_private_key_that_is_given_may_be_of_any_type_but_signs_no_certificate_then() {
    let pem = include_str!("session/p521.pem").replace('\n', "\\n");
    let certificate = Identity::generate("given").unwrap().certificate_pem.replace('\n', "\\n");
    let with = |more: &str| session(&format!("secrets: [{{name: k, kind: private-key, value: \"{pem}\"}}, {more}]\n"));
    let why = "a certificate with a key of the type of 'k'";
    refused(
        &session(&format!("secrets: [{{name: k, kind: private-key, value: \"{certificate}\"}}]\n")),
        "not a PKCS#8",
    );
    refused(&with("{name: c, kind: x509, private_key: k}"), &format!("not simulated: secrets[1]: making {why}"));
    let ca = format!("{{name: ca, kind: x509-ca, private_key: k, value: \"{certificate}\"}}");
    let below = format!("{ca}, {{name: l, kind: private-key}}, {{name: c, kind: x509, private_key: l, issuer: ca}}");
    refused(&with(&below), &format!("not simulated: secrets[3]: making {why}"));
    accepted(&with(&ca));
}

#[test]
fn a_certificate_needs_a_key_and_perhaps_an_issuer() {
    let with = |certificate: &str| {
        session(&format!(
            "secrets: [{{name: k, kind: private-key}}, {{name: ca, kind: x509-ca, private_key: k}}, {certificate}]\n"
        ))
    };
    for (certificate, why) in [
        ("{name: c, kind: x509}", "private_key: missing"),
        ("{name: c, kind: x509, private_key: ca}", "no private-key 'ca' is declared"),
        ("{name: c, kind: x509, private_key: k, issuer: k}", "no x509-ca 'k' is declared"),
        ("{name: c, kind: x509-ca, private_key: k, issuer: c}", "in a chain"),
        ("{name: c, kind: x509-ca, private_key: k, endpoint: server}", "not for a secret of kind x509-ca"),
        ("{name: c, kind: x509, private_key: k, endpoint: both}", "endpoint"),
        ("{name: c, kind: x509, private_key: k, san: 'example.com'}", "neither dns:NAME nor ip:ADDRESS"),
        ("{name: c, kind: x509, private_key: k, san: 'ip:1.2.3'}", "neither dns:NAME nor ip:ADDRESS"),
        ("{name: c, kind: x509, private_key: k, endpoint: client, dns: a.example}", "a client has no DNS name"),
        ("{name: c, kind: x509, private_key: k, valid_for: soon}", "not a duration"),
        ("{name: c, kind: x509, private_key: k, valid_for: 0d}", "not a duration"),
        ("{name: c, kind: x509, private_key: k, valid_for: 99999999 years}", "not a duration"),
        ("{name: c, kind: x509, value: abc}", "not a certificate in PEM"),
    ] {
        refused(&with(certificate), why);
    }
    let whole = "{name: c, kind: x509, private_key: k, issuer: ca, common_name: C, endpoint: server, dns: [a.example], san: ['ip:::1'], valid_for: 90 days}";
    let session = accepted(&with(whole));
    assert_eq!(session.secrets[2].san, ["ip:::1", "dns:a.example"]);
    assert_eq!((session.secrets[2].kind, session.secrets[2].endpoint), (Some(Kind::X509), Some(Endpoint::Server)));
    for (spelled, seconds) in [("90 days", 7_776_000), ("59d", 5_097_600), ("1 year", 31_557_600), ("1h 5m", 3_900)] {
        let text = with(&whole.replace("90 days", spelled));
        assert_eq!(accepted(&text).secrets[2].lifetime(), Some(seconds), "{spelled}");
    }
    let identity = Identity::generate("given").unwrap();
    let certificate = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap();
    let pem = tls::pem(tls::CERTIFICATE, &certificate).replace('\n', "\\n");
    accepted(&with(&format!("{{name: c, kind: x509, value: \"{pem}\"}}")));
}

#[test]
fn volumes_are_mounted_by_images() {
    let image = |image: &str| session(&format!("volumes: [{{name: v}}]\nimages: [{image}]\n"));
    refused(&image("{name: i, volumes: [{name: w, path: /x}]}"), "no volume 'w'");
    for path in ["x", "/", "/a/../b", "/a//b"] {
        refused(&image(&format!("{{name: i, volumes: [{{name: v, path: {path}}}]}}")), "path");
    }
    refused(&image("{name: i, volumes: [{name: v, path: /x}, {name: v, path: /x}]}"), "used twice");
    refused(&service("command: /p\nimage_name: i\n"), "no image 'i'");
    accepted(&image("{name: i, volumes: {name: v, path: /x/y}}"));
}

#[test]
fn a_volume_is_used_and_exported_with_an_update_policy() {
    let mount = |policy: &str| {
        session(&format!(
            "volumes: [{{name: v}}]\nimages: [{{name: i, volumes: [{{name: v, path: /x, update_policy: {policy}}}]}}]\n"
        ))
    };
    refused(&mount("rollback_protected_reinitializable"), "update_policy");
    for policy in ["rollback_protected", "ephemeral", "no_rollback_protection"] {
        accepted(&mount(policy));
    }
    let export = |export: &str| session(&format!("volumes: [{{name: v, export: {export}}}]\n"));
    refused(&export("{session: a, volume_alias: w}"), "either session, or to");
    refused(&export("{session: a, update_policy: ephemeral}"), "either session, or to");
    refused(&export("{session: a, to: {session: b}}"), "either session, or to");
    refused(&export("{to: {session: a}, volume_alias: ''}"), "volume_alias: not a volume's name");
    refused(&export("{to: {session: a, session_hash: x}}"), "session_hash");
    refused(&export("/session=a"), "not simulated: volumes[0].export: the one-line form");
    // Written out or not, it is the same session.
    let short = accepted(&export("{session: a}"));
    assert_eq!(accepted(&export("[{to: {session: a}, update_policy: rollback_protected}]")).hash(), short.hash());
    let long = accepted(&export(&format!(
        "{{to: {{session: ../a, session_hash: {OTHER}}}, volume_alias: w, update_policy: ephemeral}}"
    )));
    assert_ne!(long.hash(), short.hash());
    assert!(accepted(&long.to_yaml().unwrap()) == long);
}

#[test]
fn an_injected_file_is_the_images_or_has_its_content_in_the_policy() {
    let file = |file: &str| {
        session(&format!(
            "secrets: [{{name: b, kind: binary}}]\nvolumes: [{{name: v}}]\nimages: [{{name: i, volumes: [{{name: v, path: /v}}], injection_files: [{file}]}}]\n"
        ))
    };
    refused(&file("etc/my.cnf"), "images[0].injection_files[0].path: not an absolute path");
    refused(&file("{content: x}"), "missing field `path`");
    refused(&file("{path: /a, contents: x}"), "unknown field `contents`");
    refused(&file("/a], provide_secrets: [c"), "images[0].provide_secrets: no secret 'c' is declared");
    let image = accepted(&file("/etc/my.cnf], provide_secrets: [b"));
    assert!(image.images[0].has_templates() && accepted(&image.to_yaml().unwrap()) == image);
    let provided = |secrets: &str| {
        let lines = format!(
            "images:\n  - name: i\n    injection_files: [/f]\n    provide_secrets: {secrets}\nsecrets: [{{name: b, kind: binary}}]\n"
        );
        accepted(&session(&lines)).images[0].provide_secrets.clone()
    };
    assert_eq!((provided("b"), provided("")), (Some(vec!["b".to_owned()]), Some(Vec::new())), "left empty: none");
    let spelled_out = accepted(&file("{path: /etc/my.cnf, permission: 0o700}], provide_secrets: [b"));
    assert_eq!(spelled_out.hash(), image.hash());
    assert_ne!(accepted(&file("/etc/my.cnf")).hash(), image.hash());
    refused(&file("{path: etc, content: x}"), "not an absolute path");
    refused(&file("{path: /v/f, content: x}"), "not simulated: images[0].injection_files[0].path: a file in a volume");
    refused(&file("{path: /a, content: x}, {path: /a/b, content: x}"), "used twice");
    // The first may be the one below, and another may stand between them in the order of letters.
    refused(&file("/a/b, /a-b, /a"), "images[0].injection_files[0].path: used twice");
    refused(&file("/a, /b, /a"), "images[0].injection_files[2].path: used twice");
    accepted(&file("/a, /a-b, /ab"));
    refused(&file("{path: /a, content: '$$SCONE::c$$'}"), "no secret 'c'");
    for permission in ["700", "0o1000", "0o888", "rw", "0o"] {
        refused(&file(&format!("{{path: /a, content: x, permission: {permission}}}")), "permission");
    }
    let session = accepted(&file("{path: /a, content: '$$SCONE::b$$'}, {path: /b, content: '', permission: 0o100}"));
    let modes: Vec<_> = session.images[0].injection_files.iter().map(|file| file.mode()).collect();
    assert_eq!(modes, [Some(0o700), Some(0o100)]);
    assert!(accepted(&session.to_yaml().unwrap()) == session);
}

#[test]
fn references_may_be_relative() {
    let export = |reference: &str| session(&format!("volumes: [{{name: v, export: {{session: {reference}}}}}]\n"));
    refused(&export("../../../x"), "above the root");
    assert_eq!(accepted(&export("../b")).volumes[0].export[0].to.session, "ns/b");
    assert_eq!(accepted(&export("./b")).volumes[0].export[0].to.session, "ns/a/b");
    assert_eq!(accepted(&export("b")).volumes[0].export[0].to.session, "b");
}

#[test]
fn what_is_tolerated_must_be_known() {
    refused(&session("security: {attestation: {tolerate: [everything]}}\n"), "'everything' is not known");
    accepted(&session("security: {attestation: {tolerate: [debug-mode], ignore_advisories: '*'}}\n"));
}

#[test]
fn a_salt_changes_the_hash_and_a_namespace_may_be_pinned() {
    refused(&session("salt: abc\n"), "salt: not 16 bytes in hex");
    refused(&session(&format!("salt: {MRENCLAVE}\n")), "salt: not 16 bytes in hex");
    refused(&session("namespace_hash: abc\n"), "namespace_hash: not a session hash");
    refused(
        &session(&format!("namespace_hash: {MRENCLAVE}\npredecessor: {MRENCLAVE}\n")),
        "predecessor and namespace_hash exclude one another",
    );
    let alone = format!("name: a\nversion: '0.3'\nnamespace_hash: {MRENCLAVE}\n");
    refused(&alone, "not simulated: namespace_hash: of the root namespace");
    let salted = accepted(&session("salt: fa9af327a1100a32fcd1a07e929ec271\n"));
    assert_ne!(salted.hash(), accepted(&session("")).hash());
    assert!(accepted(&salted.to_yaml().unwrap()) == salted);
    assert_ne!(accepted(&session(&format!("namespace_hash: {MRENCLAVE}\n"))).hash(), accepted(&session("")).hash());
}

#[test]
fn singletons_and_access_tokens_are_part_of_the_session() {
    refused(&session("security: {singleton_enclaves: perhaps}\n"), "singleton_enclaves");
    refused(&session("security: {service_access_token: ''}\n"), "service_access_token: empty");
    let plain = accepted(&session(""));
    assert_eq!(accepted(&session("security: {singleton_enclaves: false}\n")).hash(), plain.hash());
    for other in ["singleton_enclaves: true", "service_access_token: j765WyMWTKksiqWbBuuc"] {
        assert_ne!(accepted(&session(&format!("security: {{{other}}}\n"))).hash(), plain.hash());
    }
}

#[test]
fn a_session_that_is_too_long_too_deep_or_blows_up_is_refused() {
    refused(&session(&format!("# {}\n", "x".repeat(300_000))), "longer than");
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    refused(&session(&format!("a: {}\n", deep(40))), "nested deeper than 32 levels");
    // The parser would take its time over these.
    for open in ["[", "{a: ", "- [", "a: {"] {
        refused(&open.repeat(MAX_TEXT / 4 - 10), "more than 256 brackets are open at line 1 column ");
    }
    refused(&"- ".repeat(MAX_TEXT / 2 - 10), "nested deeper");
    refused(&"? ".repeat(MAX_TEXT / 2 - 10), "expected a text as key");
    // Few bytes that would become many: by doubling, by one long text, by one long list.
    let many = |alias: &str| format!("[{}]", vec![format!("[{}]", vec![alias; 1_000].join(",")); 60].join(","));
    for bomb in [
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n".to_owned(),
        format!("a: &a {}\nb: {}\n", "x".repeat(50_000), many("*a")),
        format!("a: &a [{}]\nb: {}\n", vec!["1"; 1_000].join(","), many("*a")),
    ] {
        assert!(bomb.len() < MAX_TEXT);
        let error = Session::parse(&bomb).unwrap_err().to_string();
        assert!(error.contains("aliases are expanded") || error.contains("repetition limit"), "{error}");
    }
    // Many look-ups among many are few bytes, too: a list is no longer than anybody needs.
    let entries = |entries: usize| session(&format!("a: [{}]\n", vec!["1"; entries].join(",")));
    refused(&entries(1025), "more than 1024 entries in a list or mapping");
    refused(&entries(1024), "unknown field `a`");
    let variables: Vec<_> = (0..1025).map(|n| format!("V{n}: x")).collect();
    let environment = format!("command: /p\nenvironment: {{{}}}\n", variables.join(", "));
    refused(&service(&environment), "more than 1024 entries in a list or mapping");
    refused(&service(&format!("command: {}\n", "w ".repeat(1025))), "services[0].command: more than 1024 words");
    // So do fragments that stand for one another, also if each is of another service.
    let fragment = |n: usize, value: &str| {
        let values = (0..20).map(|key| format!("{key}: {value}")).collect::<Vec<_>>().join(", ");
        format!("  - {{name: f{n}, kind: config-fragment, value: {{{values}}}}}\n")
    };
    let fragments = (0..5).map(|n| fragment(n, &format!("$$SCONE::f{}$$", n + 1))).collect::<String>();
    let bomb = fragments + &fragment(5, "debug-mode");
    refused(
        &delegating("[]", "{attestation: {mode: none, tolerate: [$$SCONE::f0$$]}}", &bomb),
        "security: too large once its placeholders are resolved",
    );
    let long =
        |n: usize| format!("  - {{name: l{n}, kind: config-fragment, value: [{}]}}\n", ["debug-mode"; 600].join(", "));
    refused(
        &delegating("[]", "{attestation: {tolerate: [$$SCONE::l0$$, $$SCONE::l1$$]}}", &(long(0) + &long(1))),
        "security: more than 1024 entries in a list",
    );
    let large = format!("  - {{name: f, kind: config-fragment, value: [{}]}}\n", [MRENCLAVE; 1_000].join(", "));
    let service = |n: usize| format!("  - {{name: s{n}, command: /p, attestation: {{mrenclave: $$SCONE::f$$}}}}\n");
    let services =
        |count| session(&format!("services:\n{}secrets:\n{large}", (0..count).map(service).collect::<String>()));
    accepted(&services(50));
    refused(&services(100), "attestation: too large once its placeholders are resolved");
    // Long keys and blanks are as much work as long texts, and depth adds up.
    for value in [format!("{{\"{}\": 1}}", "k".repeat(2_000)), format!("[{}]", " ".repeat(2_000))] {
        let value = format!("  - {{name: f, kind: config-fragment, value: '{value}'}}\n");
        let attestation = format!("[{}]", ["$$SCONE::f$$"; 1_000].join(", "));
        refused(&delegating(&attestation, "", &value), "attestation: too large once its placeholders are resolved");
    }
    let nested = |n: usize| {
        let (open, close) = ("{\"a\":".repeat(20), "}".repeat(20));
        format!("  - {{name: d{n}, kind: config-fragment, value: '{open}\"$$SCONE::d{}$$\"{close}'}}\n", n + 1)
    };
    let deep = nested(0) + &nested(1) + "  - {name: d2, kind: config-fragment, value: x}\n";
    refused(&delegating("[$$SCONE::d0$$]", "", &deep), "attestation: nested deeper than 32 levels");
    refused("a: &a [*a]\n", "");
    // Without aliases any text of that length can be read, however dense.
    let hundred = format!("[{}]", vec!["1"; 100].join(","));
    let dense = session(&format!("a: [{}]\n", vec![format!("[{}]", vec![hundred; 12].join(",")); 100].join(",")));
    assert!(dense.len() > MAX_TEXT * 9 / 10 && dense.len() < MAX_TEXT);
    refused(&dense, "unknown field `a`");
}

#[test]
fn an_alias_stands_for_what_it_names() {
    let text = "services:\n  - {name: s, command: /p, environment: &e {A: x}, attestation: &v {mrenclave: 'M'}}\n  - {name: t, command: /p, environment: *e, attestation: *v}\n".replace('M', MRENCLAVE);
    let session = accepted(&session(&text));
    assert_eq!(session.services[1].environment["A"], "x");
}

#[test]
fn what_is_no_yaml_is_refused_with_line_and_column() {
    refused(&session("services: [\n"), "line 4 column 1");
    refused(&session("name: again\n"), "duplicate key 'name' at line 3 column 1");
    refused(&session("a: !tag x\n"), "line 3 column 4");
    refused(&session("? [a]\n: b\n"), "invalid type: sequence, expected a text as key at line 3 column 3");
    refused(&session("--- {}\n"), "");
    refused("", "");
    refused("just a text", "");
}

#[test]
fn the_session_file_of_scones_demo_is_accepted_as_it_stands() {
    let text = include_str!("session/2fa-demo.yml");
    refused(&text.replace("BASE32SECRET3232BASE32SECRET3232", "BASE32SECRET3232"), "128 bits");
    let session = accepted(text);
    assert_eq!(session.services[0].command, ["python3", "my_service.py", "-a", "4", "-b", "12", "-x", "@@1"]);
    assert!(accepted(&session.to_yaml().unwrap()) == session);
}

#[test]
fn an_error_repeats_no_value_of_a_secret() {
    let secret = "GEZDGNBVGY3TQOJ1";
    for text in [
        session(&format!("secrets: [{{name: s, kind: binary, value: {secret}}}]\n")),
        session(&format!("security: {{attestation: {{one_time_password_shared_secret: {secret}}}}}\n")),
    ] {
        assert!(!Session::parse(&text).unwrap_err().to_string().contains(secret));
        assert!(!format!("{:?}", Session::parse(&text)).contains(secret));
    }
}

#[test]
fn the_hash_changes_with_everything_but_spelling() {
    let plain = accepted(&service("command: /p\n"));
    for other in [
        "command: /q\n".to_owned(),
        "command: /p\npwd: /\n".to_owned(),
        "command: /p\nenvironment: {A: b}\n".to_owned(),
        format!("command: /p\none_time_password_shared_secret: {}\n", "GEZDGNBVGY3TQOJQGEZDGNBVGY"),
    ] {
        assert_ne!(accepted(&service(&other)).hash(), plain.hash(), "{other}");
    }
    let mut created = plain.clone();
    created.creator = Some(Creator::Certificate("PEM".into()));
    assert_ne!(created.hash(), plain.hash());
    let [second, third] =
        [MRENCLAVE, OTHER].map(|hash| accepted(&(service("command: /p\n") + &format!("predecessor: {hash}\n"))));
    assert!(second.hash() != plain.hash() && third.hash() != second.hash());

    let spelled_otherwise = service("command: [/p]\n") + "predecessor: ~\naccess_policy: {read: CREATOR}\nvolumes:\n";
    assert_eq!(accepted(&spelled_otherwise).hash(), plain.hash());
    assert_eq!(plain.hash().len(), 64);
}

/// Databases and policies hold hashes.
#[test]
fn a_session_has_the_hash_that_it_had_in_every_version_of_the_simulator() {
    let session = accepted(&session("access_policy: {read: [ANY], update: [NONE]}\n"));
    assert_eq!(session.hash(), "34e7250f0529cb7bb20de2856f0f373fa1ebd2fa6717e42f446a0904d884d953");
}

#[test]
fn what_is_read_back_is_the_same_session() {
    let session = accepted(
        &(service("command: /p 'a b'\nimage_name: i\nenvironment: {A: '$$SCONE::b:hex$$', B: '010', C: 'yes: no'}\n")
            + "images: [{name: i, volumes: [{name: v, path: /v}]}]\nvolumes: [{name: v, export: {session: ../b}}]\n"
            + "secrets: [{name: b, kind: binary}, {name: c, import: {session: x, secret: y}}]\n"),
    );
    let again = accepted(&session.to_yaml().unwrap());
    assert!(again == session);
    assert_eq!(again.hash(), session.hash());
}
