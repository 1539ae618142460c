//! Policies as a whole: the keys there are, a placeholder in each place, and what people publish for SCONE.

use std::collections::{BTreeMap, BTreeSet};

use scone_sim::session::{NOT_SIMULATED, Session};
use yaml_serde::{Mapping, Value};

/// A policy that holds every key that is served.
const EVERYTHING: &str = include_str!("../../fuzz/seeds/session/everything.yml");

const PLACEHOLDER: &str = "$$SCONE::nothing$$";

fn everything() -> Value {
    let session = Session::parse(EVERYTHING).unwrap();
    assert!(Session::parse(&session.to_yaml().unwrap()).unwrap() == session);
    yaml_serde::from_str(EVERYTHING).unwrap()
}

fn refusal(session: &Value) -> String {
    let text = yaml_serde::to_string(session).unwrap();
    Session::parse(&text).map(|_| text).expect_err("a policy is accepted").to_string()
}

/// The way to each value of a policy.
fn places(value: &Value) -> Vec<Vec<Value>> {
    let inner: Vec<(Value, &Value)> = match value {
        Value::Mapping(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Sequence(list) => list.iter().enumerate().map(|(at, value)| (at.into(), value)).collect(),
        _ => Vec::new(),
    };
    let below = inner
        .iter()
        .flat_map(|(step, value)| places(value).into_iter().map(move |rest| [vec![step.clone()], rest].concat()));
    std::iter::once(Vec::new()).chain(below).collect()
}

fn at<'a>(session: &'a mut Value, place: &[Value]) -> &'a mut Value {
    place.iter().fold(session, |value, step| match step.as_u64() {
        Some(at) => value.get_mut(at as usize).unwrap(),
        None => value.get_mut(step).unwrap(),
    })
}

/// Asks the parser itself, by a key that it cannot know, which keys each mapping may have.
#[test]
fn the_policy_that_holds_everything_holds_every_key_that_is_served() {
    let session = everything();
    let (mut served, mut held) = (BTreeMap::new(), BTreeMap::<String, BTreeSet<String>>::new());
    for place in places(&session) {
        let mut changed = session.clone();
        let Value::Mapping(mapping) = at(&mut changed, &place) else { continue };
        // Rules of an access policy may be within one another.
        let path = place.iter().filter_map(Value::as_str).filter(|step| !step.starts_with("require-"));
        let path = path.collect::<Vec<_>>().join(".");
        if path == "services.environment" || path == "secrets.payload" {
            continue;
        }
        let keys = mapping.keys().map(|key| key.as_str().unwrap().replace("at-least-1", "at-least-N"));
        held.entry(path.clone()).or_default().extend(keys);
        mapping.insert("colour".into(), "red".into());
        let said = refusal(&changed);
        let (_, known) =
            said.split_once("unknown field `colour`, expected ").unwrap_or_else(|| panic!("{path}: {said}"));
        served.insert(path, known.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>());
    }
    assert_eq!(held, served);
}

/// A placeholder that nothing resolves is an error wherever it stands: taken literally, its text, which every reader of the
/// policy knows, would be a token, a name or a key.
#[test]
fn an_unresolvable_placeholder_is_refused_in_every_place() {
    #[track_caller]
    fn refused(session: &Value) {
        let said = refusal(session);
        let reasons = [
            "a placeholder is not resolved here",
            "not simulated: ",
            "no secret 'nothing' is declared",
            // In place of the whole map.
            "environment: invalid type",
        ];
        assert!(reasons.iter().any(|reason| said.contains(reason)), "{said}");
    }
    let session = everything();
    for place in places(&session) {
        let mut changed = session.clone();
        if let Value::Mapping(mapping) = at(&mut changed, &place) {
            mapping.insert(PLACEHOLDER.into(), "x".into());
            refused(&changed);
        }
        *at(&mut changed, &place) = PLACEHOLDER.into();
        refused(&changed);
    }
    for path in NOT_SIMULATED {
        let mapping = |inner, key: &str| Mapping::from_iter([(key.into(), inner)]).into();
        let said = refusal(&path.rsplit('.').fold(PLACEHOLDER.into(), mapping));
        assert!(said.contains("not simulated: "), "{said}");
    }
}

/// In another spelling it is no placeholder, but as a token its text would be known to every reader of the policy all the same.
#[test]
fn what_nearly_is_a_placeholder_is_no_access_token() {
    let token = [Value::from("security"), Value::from("service_access_token")];
    let mut session = everything();
    for nearly in ["$$scone::text$$", "$$CAS::text$$", "$$SCONE:text$$", "a$$b"] {
        *at(&mut session, &token) = nearly.into();
        let said = refusal(&session);
        assert!(said.contains("security.service_access_token: '$$' stands in no placeholder"), "{said}");
    }
    *at(&mut session, &token) = "a$b".into();
    Session::parse(&yaml_serde::to_string(&session).unwrap()).unwrap();
}

/// What CAS says of a policy.
enum Verdict {
    /// It is the same as this one.
    Same(&'static str),
    Accepted,
    Refused(&'static str),
}
use Verdict::{Accepted, Refused, Same};

/// Traits of policies that people publish for SCONE, and what its documentation says of each. `PROGRAM` is all that a service
/// needs.
const CASES: &[(&str, &str, Verdict)] = &[
    (
        "a variable needs a value",
        "services: [{PROGRAM, environment: {A: }}]",
        Refused("environment.A: the variable has no value"),
    ),
    ("unless it is the caller's", r"services: [{PROGRAM, environment: {\@\@HOME: }}]", Accepted),
    (
        "which the policy may leave empty in any way",
        r"services: [{PROGRAM, environment: {\@\@HOME: ~}}]",
        Same(r"services: [{PROGRAM, environment: {\@\@HOME: ''}}]"),
    ),
    ("an image has a name", "images: [{name: ''}]", Refused("images[0].name: not a name")),
    ("that cannot control a terminal", "images: [{name: \"a\\e[2J\"}]", Refused("images[0].name: not a name")),
    (
        "but may be a container image's",
        "services: [{PROGRAM, image_name: registry.example/app:1}]\nimages: [{name: registry.example/app:1}]",
        Accepted,
    ),
    (
        "an image that a service names must be declared",
        "services: [{PROGRAM, image_name: elsewhere}]",
        Refused("no image 'elsewhere' is declared"),
    ),
    ("a volume's name is one line", "volumes: [{name: \"data\\n\"}]", Refused("volumes[0].name: not a name")),
    (
        "and otherwise any",
        "volumes: [{name: 'data:v1'}]\nimages: [{name: i, volumes: [{name: 'data:v1', path: /v}]}]",
        Accepted,
    ),
    ("also of another session's", "volumes: [{name: v, import: {session: t, volume: 'data:v1'}}]", Accepted),
    ("or for it", "volumes: [{name: v, export: {to: {session: t}, volume_alias: 'data:v1'}}]", Accepted),
    (
        "a directory is said plainly",
        "services: [{PROGRAM, pwd: /srv/../app}]",
        Refused("services[0].pwd: not an absolute path"),
    ),
    ("but may end in a slash", "services: [{PROGRAM, pwd: /srv/app/}]", Same("services: [{PROGRAM, pwd: /srv/app}]")),
    ("the root is one", "services: [{PROGRAM, pwd: /}]", Accepted),
    (
        "a volume's directory may, too",
        "volumes: [{name: v}]\nimages: [{name: i, volumes: [{name: v, path: /v/}]}]",
        Same("volumes: [{name: v}]\nimages: [{name: i, volumes: [{name: v, path: /v}]}]"),
    ),
    (
        "which makes it no other",
        "volumes: [{name: v}]\nimages: [{name: i, volumes: [{name: v, path: /v/}, {name: v, path: /v}]}]",
        Refused("used twice"),
    ),
    (
        "a file does not",
        "images: [{name: i, injection_files: [{path: /f/, content: x}]}]",
        Refused("not an absolute path"),
    ),
    (
        "all advisories may be ignored without debug mode, which changes nothing for enclaves in production mode",
        "security: {attestation: {tolerate: [outdated-tcb], ignore_advisories: '*'}}",
        Accepted,
    ),
    (
        "a key hash as SCONE prints it",
        "access_policy: {create_sessions: [4Kq2Zw8uRtYpA7sDfGhJkL3xCvBnM5eWxSnYrTgVbHnJmKu6P]}",
        Accepted,
    ),
    (
        "a word is none",
        "access_policy: {read: [EVERYBODY]}",
        Refused("'EVERYBODY' is not CREATOR, ANY, NONE or a key hash"),
    ),
    (
        "nor is the simulator's with a digit missing",
        "access_policy: {read: [aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa]}",
        Refused("or a key hash"),
    ),
    (
        "the namespace that the session is in",
        "secrets: [{name: a, kind: ascii, export: {namespace: ..}}]",
        Same("secrets: [{name: a, kind: ascii, export: {namespace: ns}}]"),
    ),
    (
        "the one that it is",
        "secrets: [{name: a, kind: ascii, export: {namespace: .}}]",
        Same("secrets: [{name: a, kind: ascii, export: {namespace: ns/a}}]"),
    ),
    (
        "the root namespace",
        "secrets: [{name: a, kind: ascii, export: {namespace: /}}]",
        Refused("not simulated: secrets[0].export[0].namespace: the root namespace"),
    ),
    (
        "by a relative path",
        "secrets: [{name: a, kind: ascii, export: {namespace: ../..}}]",
        Refused("not simulated: secrets[0].export[0].namespace: the root namespace"),
    ),
    (
        "and what would be above it",
        "secrets: [{name: a, kind: ascii, export: {namespace: ../../..}}]",
        Refused("leads above the root"),
    ),
    (
        "Microsoft's attestation service",
        "security: {attestation: {mode: hardware, url: 'https://maa.example'}}",
        Refused("not simulated: security.attestation.url"),
    ),
    ("an empty address of it is none", "security: {attestation: {mode: hardware, url: }}", Same("")),
    (
        "a session that is signed by something else than a key",
        "creator:\n  signer: PEM",
        Refused("signer: not an Ed25519 or P-384 public key"),
    ),
    (
        "a documented key is named, whatever tags are in its value",
        "secret_config:\n  store_in: !cas",
        Refused("not simulated: secret_config"),
    ),
    ("no other tag is taken", "services:\n  - !ours {PROGRAM}", Refused("at line 4 column 5")),
    (
        "volumes not encrypted",
        "volumes: [{name: v, files: authenticated-only}]",
        Refused("not simulated: volumes[0].files"),
    ),
    ("or encrypted, which they are", "volumes: [{name: v, files: encrypted}]", Same("volumes: [{name: v}]")),
    (
        "a private key for the public",
        "secrets: [{name: a, kind: private-key, export_public: true}]",
        Refused("not simulated: secrets[0].export_public"),
    ),
    (
        "another session's secret",
        "secrets: [{name: a, import: {session: b, secret: a}, export_public: true}]",
        Refused("secrets[0]: an imported secret has neither value nor export"),
    ),
    ("one's own may be", "secrets: [{name: a, kind: ascii, export_public: true}]", Accepted),
    (
        "or not, which they are not",
        "secrets: [{name: a, kind: ascii, export_public: false}]",
        Same("secrets: [{name: a, kind: ascii}]"),
    ),
    ("enclaves of CAS's own host", "security: {attestation: {must_be_sgx_local: true}}", Accepted),
    ("which may share CAS's trust", "security: {attestation: {tolerate: [local-attestation-trust-cas-tcb]}}", Accepted),
    (
        "a quoting enclave of one's own",
        "security: {attestation: {trusted_scone_qe_pubkeys: [E37F149AE30896E314A2859874C5A9C7803FB3187B99F5D08E526B1C0396507C]}}",
        Accepted,
    ),
    (
        "that has no such key",
        "security: {attestation: {trusted_scone_qe_pubkeys: [E37F]}}",
        Refused("trusted_scone_qe_pubkeys: a key is not 64 hex digits"),
    ),
    ("or of any", "security: {attestation: {must_be_sgx_local: false}}", Same("")),
    (
        "an old key with another value than the one SCONE shows",
        "services: [{PROGRAM, persistency: All}]",
        Refused("not simulated: services[0].persistency"),
    ),
    ("or with that", "services: [{PROGRAM, persistency: None}]", Same("services: [{PROGRAM}]")),
    (
        "the minor version restricts nothing: codes came with 0.3.8",
        "security: {attestation: {one_time_password_shared_secret: GEZDGNBVGY3TQOJQGEZDGNBVGY}}",
        Accepted,
    ),
    (
        "a variable within a variable",
        "secrets: [{name: a, kind: ascii, value: $$SCONE::b$$}, {name: b, kind: ascii}]",
        Refused("secrets[0].value: a placeholder is not resolved here"),
    ),
    (
        "what CAS knows of the program",
        "services: [{PROGRAM, environment: {A: '$$SCONE::self::software_identity$$'}}]",
        Refused("not simulated: services[0].environment.A: the placeholder $$SCONE::self::software_identity$$"),
    ),
    ("which a JWT may say", "secrets: [JWT, KEY]", Accepted),
    ("a JWT that nobody signs", "secrets: [JWT]", Refused("secrets[0].signer: no private-key 'k' is declared")),
    (
        "or a key of another type",
        "secrets: [JWT, {name: k, kind: private-key}]",
        Refused("secrets[0].signer: ES384 needs a key of type P-384"),
    ),
    (
        "a claim of another type",
        "secrets: [{name: j, kind: jwt, signer: k, alg: ES384, validity: {for: 24h}, payload: {n: 1}}, KEY]",
        Refused("secrets[0].payload.n: not a text"),
    ),
    (
        "one that CAS makes",
        "secrets: [{name: j, kind: jwt, signer: k, alg: ES384, validity: {for: 24h}, payload: {exp: x}}, KEY]",
        Refused("secrets[0].payload.exp: made by CAS"),
    ),
    (
        "one of a secret that is not there",
        "secrets: [{name: j, kind: jwt, signer: k, alg: ES384, validity: {for: 24h}, payload: {n: $$SCONE::x$$}}, KEY]",
        Refused("secrets[0].payload.n: no secret 'x' is declared"),
    ),
    (
        "a JWT that never ends",
        "secrets: [{name: j, kind: jwt, signer: k, alg: ES384}, KEY]",
        Refused("secrets[0].validity: missing"),
    ),
    (
        "with another algorithm",
        "secrets: [{name: j, kind: jwt, signer: k, alg: none, validity: {for: 24h}}, KEY]",
        Refused("unknown variant `none`, expected `ES384`"),
    ),
    (
        "a public key of a private one",
        "secrets: [{name: p, kind: public-key, private_key: k, export_public: true}, KEY]",
        Accepted,
    ),
    (
        "of none",
        "secrets: [{name: p, kind: public-key}]",
        Refused("secrets[0]: a public key has either value or private_key"),
    ),
    (
        "or of what is none",
        "secrets: [{name: p, kind: public-key, value: PEM}]",
        Refused("secrets[0].value: not a public key in PEM (SubjectPublicKeyInfo)"),
    ),
];

#[test]
fn policies_as_people_write_them_get_the_verdict_that_scones_documentation_gives() {
    let parse = |lines: &str| {
        let jwt = "{name: j, kind: jwt, signer: k, alg: ES384, validity: {for: 24h}, payload: {m: $$SCONE::self::software_identity$$}}";
        let key = "{name: k, kind: private-key, key_type: P-384}";
        let lines = lines.replace("JWT", jwt).replace("KEY", key);
        let program = format!("name: s, command: /p, attestation: {{mrenclave: {}}}", "a".repeat(64));
        Session::parse(&format!("name: ns/a\nversion: '0.3.5'\n{}\n", lines.replace("PROGRAM", &program)))
    };
    for (case, lines, verdict) in CASES {
        match (parse(lines), verdict) {
            (Ok(_), Accepted) => {}
            (Ok(session), Same(other)) => assert_eq!(session.hash(), parse(other).unwrap().hash(), "{case}"),
            (Err(error), Refused(why)) => assert!(error.to_string().contains(why), "{case}: {error}"),
            (Ok(_), Refused(why)) => panic!("{case}: accepted, not refused: {why}"),
            (Err(error), _) => panic!("{case}: {error}"),
        }
    }
}
