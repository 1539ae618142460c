//! Signed sessions and governance: whose signatures CAS wants for which upload, and how people and programs sign.

mod world;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::thread;

use rcgen::{KeyPair, SigningKey};
use scone_sim::cas::Cas;
use scone_sim::clock::Clock;
use scone_sim::session::Session;
use scone_sim::signing::{MAX_SIGNED, SessionSigner, Signed};
use scone_sim::tls::{Client, Identity};
use serde_json::{Value, json};
use tempfile::TempDir;
use world::{Outcome, World};

/// A CAS in this process.
struct Rig {
    _home: TempDir,
    cas: Cas,
    alice: Client,
}

impl Rig {
    fn new() -> Rig {
        let home = tempfile::tempdir().unwrap();
        let cas = Cas::open(home.path(), Clock::System).unwrap();
        Rig { _home: home, cas, alice: client("alice") }
    }

    /// Uploads as this client, and gives the hash or the refusal's words.
    fn upload_as(&self, client: Option<&Client>, text: &str) -> Result<String, String> {
        let answer = self.cas.upload(text, client).unwrap();
        answer.map(|(hash, _)| hash).map_err(|refusal| refusal.to_string())
    }

    /// By a client without a certificate: what is signed needs none.
    fn upload(&self, text: &str) -> Result<String, String> {
        self.upload_as(None, text)
    }

    /// A session `s` with this access policy, created by alice.
    fn with_policy(&self, policy: &str) -> String {
        self.upload_as(Some(&self.alice), &session("s", "~", policy)).unwrap()
    }

    /// Whether a next version of `s` is taken that these signed. It keeps the policy.
    fn takes(&self, policy: &str, predecessor: &mut String, signers: &[&KeyPair]) -> bool {
        match self.upload(&signed(&session("s", predecessor, policy), signers)) {
            Ok(hash) => {
                *predecessor = hash;
                true
            }
            Err(refusal) => {
                assert_eq!(refusal, "Permission denied: the access policy of session 's' does not grant it");
                false
            }
        }
    }
}

fn client(name: &str) -> Client {
    let identity = Identity::generate(name).unwrap();
    Client { key_hash: identity.key_hash.clone(), certificate: identity.certificate_pem.clone() }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap()
}

fn signer(key: &KeyPair) -> SessionSigner {
    SessionSigner::from_pem(&key.public_key_pem()).unwrap()
}

/// As an entry of an access policy.
fn entry(key: &KeyPair) -> String {
    json!({ "signer": signer(key) }).to_string()
}

fn session(name: &str, predecessor: &str, policy: &str) -> String {
    format!("name: {name}\nversion: '0.3.10'\npredecessor: {predecessor}\naccess_policy: {{read: ANY, {policy}}}\n")
}

fn signed(text: &str, signers: &[&KeyPair]) -> String {
    let mut signed = Signed::unsigned(Session::parse(text).unwrap());
    for key in signers {
        let signature = key.sign(signed.message().as_bytes()).unwrap();
        signed.add(signer(key), &signature).unwrap();
    }
    signed.to_json().unwrap()
}

/// With another value at this place.
fn altered(signed: &str, pointer: &str, value: Value) -> String {
    let mut file: Value = serde_json::from_str(signed).unwrap();
    *file.pointer_mut(pointer).unwrap() = value;
    file.to_string()
}

const DENIED: &str = "Permission denied: the access policy of session 's' does not grant it";

// Whose signatures CAS wants

#[test]
fn a_session_is_replaced_only_by_one_that_its_signer_signed() {
    let rig = Rig::new();
    let (owner, other) = (key(), key());
    let policy = format!("update: {}", entry(&owner));
    let first = rig.with_policy(&policy);
    let second = session("s", &first, &policy);
    let by_owner = signed(&second, &[&owner]);

    assert_eq!(rig.upload_as(Some(&rig.alice), &second).unwrap_err(), DENIED, "not signed, by its creator");
    assert_eq!(rig.upload(&second).unwrap_err(), "A client certificate is required");
    assert_eq!(rig.upload(&signed(&second, &[&other])).unwrap_err(), DENIED);
    let wrong = "Session is not valid: signatures[0]: not the signer's signature over this session";
    let owners = json!(signer(&owner));
    let by_other = altered(&signed(&second, &[&other]), "/signatures/0/signer", owners);
    assert_eq!(rig.upload(&by_other).unwrap_err(), wrong, "the other's signature in the owner's name");
    let another = session("s", &first, &format!("{policy}, create_sessions: NONE"));
    let over_another = altered(&by_owner, "/session", json!(another));
    assert_eq!(rig.upload(&over_another).unwrap_err(), wrong, "the owner's signature over another session");
    let elsewhere = altered(&by_owner, "/session", json!(session("t", "~", &policy)));
    assert_eq!(rig.upload(&elsewhere).unwrap_err(), wrong);

    let hash = rig.upload(&by_owner).unwrap();
    assert_eq!(hash, Session::parse(&second).unwrap().hash());
    // Who uploads it does not matter.
    let third = signed(&session("s", &hash, &policy), &[&other, &owner]);
    rig.upload_as(Some(&client("mallory")), &third).unwrap();
}

#[test]
fn a_signed_version_that_was_replaced_cannot_be_brought_back() {
    let rig = Rig::new();
    let owner = key();
    let policy = format!("update: {}", entry(&owner));
    let first = signed(&session("s", "~", &policy), &[&owner]);
    let one = rig.upload(&first).unwrap();
    let second = signed(&session("s", &one, &policy), &[&owner]);
    let two = rig.upload(&second).unwrap();
    let third = signed(&session("s", &two, &policy), &[&owner]);
    rig.upload(&third).unwrap();
    assert_eq!(rig.upload(&first).unwrap_err(), "Session already exists, please specify predecessor hash");
    for old in [&second, &third] {
        assert_eq!(rig.upload(old).unwrap_err(), "The given predecessor is not the active session's hash");
    }
}

/// Two of three who vote, and both who may object.
fn voters_and_vetoes(voters: [&KeyPair; 3], vetoes: [&KeyPair; 2]) -> String {
    let [voters, vetoes] =
        [&voters[..], &vetoes].map(|keys| keys.iter().map(|key| entry(key)).collect::<Vec<_>>().join(", "));
    format!("{{require-all: [{{require-at-least-2: [{voters}]}}, {{require-all: [{vetoes}]}}]}}")
}

#[test]
fn an_update_needs_two_of_three_voters_and_both_veto_members() {
    let rig = Rig::new();
    let ([a, b, c], [x, y], outsider) = ([key(), key(), key()], [key(), key()], key());
    let policy = format!("update: {}", voters_and_vetoes([&a, &b, &c], [&x, &y]));
    let mut active = rig.with_policy(&policy);
    for too_few in
        [&[&a, &x, &y][..], &[&a, &b, &x], &[&a, &b, &c, &y], &[&a, &b, &c], &[&x, &y], &[&a, &outsider, &x, &y]]
    {
        assert!(!rig.takes(&policy, &mut active, too_few));
    }
    assert!(rig.takes(&policy, &mut active, &[&c, &y, &a, &x]));
    assert!(rig.takes(&policy, &mut active, &[&outsider, &a, &b, &c, &x, &y]));
}

#[test]
fn the_owner_overrules_all_others() {
    let rig = Rig::new();
    let (owner, [a, b, c], [x, y]) = (key(), [key(), key(), key()], [key(), key()]);
    let others = voters_and_vetoes([&a, &b, &c], [&x, &y]);
    let policy = format!("update: {{require-at-least-1: [{}, {others}]}}", entry(&owner));
    let mut active = rig.with_policy(&policy);
    assert!(!rig.takes(&policy, &mut active, &[&a, &b, &c, &x]));
    assert!(!rig.takes(&policy, &mut active, &[&a, &x, &y]));
    assert!(rig.takes(&policy, &mut active, &[&owner]));
    assert!(rig.takes(&policy, &mut active, &[&a, &b, &x, &y]));
}

#[test]
fn signatures_and_certificates_are_not_added_up() {
    let rig = Rig::new();
    let owner = key();
    let bob = client("bob");
    for (policy, needs) in [
        (format!("update: {{require-all: [{}, {}]}}", entry(&owner), bob.key_hash), "both, which nobody can show"),
        (format!("update: [{}]", bob.key_hash), "bob's certificate"),
    ] {
        let name = format!("s{}", needs.len());
        let first = rig.upload_as(Some(&rig.alice), &session(&name, "~", &policy)).unwrap();
        let next = signed(&session(&name, &first, &policy), &[&owner]);
        assert!(rig.upload_as(Some(&bob), &next).unwrap_err().starts_with("Permission denied"), "{needs}");
    }
    let policy = format!("update: {{require-at-least-1: [{}, {}]}}", entry(&owner), bob.key_hash);
    let first = rig.with_policy(&policy);
    let second = session("s", &first, &policy);
    assert_eq!(rig.upload_as(Some(&rig.alice), &second).unwrap_err(), DENIED);
    let second = rig.upload_as(Some(&bob), &second).unwrap();
    rig.upload(&signed(&session("s", &second, &policy), &[&owner])).unwrap();
}

#[test]
fn the_creator_of_a_signed_session_is_one_of_its_signers_and_no_client() {
    let rig = Rig::new();
    let (owner, other) = (key(), key());
    let created_by =
        |creator: Value, hash: &str| session("s", hash, "update: CREATOR") + &format!("creator: {creator}\n");
    let by = |key: &KeyPair, hash: &str| created_by(json!({ "signer": signer(key) }), hash);
    let certificate = created_by(json!(rig.alice.certificate), "~");
    for (text, key) in [(&certificate, &owner), (&by(&other, "~"), &owner)] {
        let refusal = rig.upload_as(Some(&rig.alice), &signed(text, &[key])).unwrap_err();
        assert_eq!(refusal, "The session names another creator");
    }
    let unsigned = rig.upload_as(Some(&rig.alice), &by(&owner, "~")).unwrap_err();
    assert_eq!(unsigned, "The session names another creator");
    let nobody = rig.upload(&signed(&session("s", "~", "update: CREATOR"), &[&owner])).unwrap_err();
    assert!(nobody.starts_with("Session is not valid: creator: missing: the access policy refers to it"), "{nobody}");

    let first = rig.upload_as(Some(&rig.alice), &signed(&by(&owner, "~"), &[&other, &owner])).unwrap();
    let next = by(&owner, &first);
    let without_creator = session("s", &first, "update: CREATOR");
    assert_eq!(rig.upload_as(Some(&rig.alice), &without_creator).unwrap_err(), DENIED, "who uploaded it");
    assert_eq!(rig.upload(&signed(&next, &[&other])).unwrap_err(), DENIED, "who signed it, too");
    rig.upload(&signed(&next, &[&owner])).unwrap();
}

#[test]
fn a_client_with_the_signers_key_is_not_the_signer() {
    let rig = Rig::new();
    let owner = key();
    let policy = "update: NONE".to_owned();
    let text = session("s", "~", &policy).replace("read: ANY", "read: CREATOR")
        + &format!("creator: {}\n", json!({ "signer": signer(&owner) }));
    rig.upload(&signed(&text, &[&owner])).unwrap();
    let same_key = Client { key_hash: signer(&owner).key_hash(), certificate: String::new() };
    for reader in [&same_key, &rig.alice] {
        assert!(rig.cas.read("s", None, Some(reader)).unwrap().is_err(), "reading is not signed");
    }
}

#[test]
fn who_may_create_below_a_session_may_be_a_signer() {
    let rig = Rig::new();
    let (owner, other) = (key(), key());
    rig.with_policy(&format!("update: NONE, create_sessions: {}", entry(&owner)));
    let below = session("s/below", "~", "update: NONE");
    assert_eq!(rig.upload_as(Some(&rig.alice), &below).unwrap_err(), DENIED);
    assert_eq!(rig.upload(&signed(&below, &[&other])).unwrap_err(), DENIED);
    rig.upload(&signed(&below, &[&owner])).unwrap();
}

#[test]
fn a_placeholder_in_a_rule_is_one_of_those_that_are_counted() {
    let rig = Rig::new();
    let (a, b, c) = (key(), key(), key());
    let secrets = "secrets: [{name: who, import: {session: members, secret: who}}]\n";
    let members = |value: &str, predecessor: &str| {
        let secret = format!("{{name: who, kind: config-fragment, value: {value}, export: {{session: s}}}}");
        let text = format!("name: members\nversion: '0.3.10'\npredecessor: {predecessor}\nsecrets: [{secret}]\n");
        rig.upload_as(Some(&rig.alice), &text).unwrap()
    };
    // A placeholder may speak of the creator, so the session has to name one.
    let policy = format!("update: {{require-all: [$$SCONE::who$$, {}]}}", entry(&a));
    let creator = format!("creator: {}\n", entry(&a));
    let mut active = rig.upload(&signed(&(session("s", "~", &policy) + secrets + &creator), &[&a])).unwrap();
    let mut takes = |signers: &[&KeyPair]| {
        let next = session("s", &active, &policy) + secrets + &creator;
        let answer = rig.upload(&signed(&next, signers));
        answer.map(|hash| active = hash).is_ok()
    };
    assert!(!takes(&[&a]) && !takes(&[&a, &b]), "there is no such session yet: that rule is not met by leaving it out");
    let first = members("ANY", "~");
    assert!(!takes(&[&a]), "ANY stands alone or for nothing");
    let second = members("{update: {require-at-least-0: [CREATOR]}}", &first);
    assert!(!takes(&[&a]));
    let third = members(&format!("[{}, {}]", entry(&b), entry(&c)), &second);
    assert!(!takes(&[&a]) && !takes(&[&b, &c]));
    assert!(takes(&[&a, &b]) && takes(&[&a, &c]), "any of what it stands for");
    members(&format!("{{update: {{require-all: [{}, {}]}}}}", entry(&b), entry(&c)), &third);
    assert!(!takes(&[&a, &b]) && takes(&[&a, &b, &c]));
}

#[test]
fn who_may_list_a_namespace_need_not_be_who_may_read_it() {
    let rig = Rig::new();
    let (bob, carol, mallory) = (client("bob"), client("carol"), client("mallory"));
    let create = |name: &str, policy: &str| {
        let text = format!("name: {name}\nversion: '0.3.10'\naccess_policy: {{{policy}}}\n");
        rig.upload_as(Some(&rig.alice), &text).unwrap()
    };
    let policy = format!(
        "read: NONE, update: NONE, create_sessions: [CREATOR, {}], list_sessions: [{}]",
        carol.key_hash, bob.key_hash
    );
    create("s", &policy);
    create("s/below", "read: NONE");
    create("s/below/deep", "read: NONE");
    let listed = |who: &Client| rig.cas.list(Some(who)).unwrap();
    assert!(listed(&mallory).is_empty() && rig.cas.list(None).unwrap().is_empty());
    assert_eq!(listed(&bob), ["s/below"]);
    assert_eq!(listed(&carol), ["s/below"], "whoever may create them");
    assert!(rig.cas.read("s/below", None, Some(&bob)).unwrap().is_err(), "their names, not what they say");
    // As who may read the session above, unless that says otherwise.
    create("open", "read: ANY, update: NONE, create_sessions: CREATOR");
    create("open/below", "read: NONE");
    assert_eq!(listed(&mallory), ["open", "open/below"]);
}

// The file

#[test]
fn a_signed_session_holds_signatures_and_nothing_else() {
    let (owner, other) = (key(), key());
    let text = session("s", "~", "update: NONE");
    let good = signed(&text, &[&owner]);
    let file: Value = serde_json::from_str(&good).unwrap();
    let with = |key: &str, value: Value| {
        let mut file = file.clone();
        file[key] = value;
        file.to_string()
    };
    let signature = &file["signatures"][0];
    let many = |count: usize| {
        let keys: Vec<KeyPair> = (0..count).map(|_| key()).collect();
        keys.iter().fold(json!([]), |mut all, key| {
            let one: Value = serde_json::from_str(&signed(&text, &[key])).unwrap();
            all.as_array_mut().unwrap().push(one["signatures"][0].clone());
            all
        })
    };
    for (text, why) in [
        (with("colour", json!("red")), "signed session: unknown field `colour`"),
        (with("signatures", json!([])), "signatures: none"),
        (with("signatures", json!([signature, signature])), "signatures[1]: this signer signed already"),
        (with("signatures", many(17)), "signatures[16]: more than 16"),
        (with("session", json!("name: s\n")), "version: absent"),
        (with("session", json!({ "name": "s" })), "signed session: invalid type: map"),
        (json!({ "session": text }).to_string(), "signed session: missing field `signatures`"),
        (json!({ "signatures": [signature] }).to_string(), "signed session: missing field `session`"),
        (altered(&good, "/signatures/0/signature", json!("?")), "signatures[0]: not the signer's signature"),
        (altered(&good, "/signatures/0/signer", json!(signer(&other))), "signatures[0]: not the signer's signature"),
        (altered(&good, "/signatures/0/signer", json!("PEM")), "signer: not an Ed25519 or P-384 public key"),
    ] {
        let error = Signed::parse(&text).err().expect(why).to_string();
        assert!(error.contains(why), "{error}\n{text}");
    }
    assert!(Signed::parse(&with("signatures", many(16))).is_ok());
    // JSON is YAML: a session that is not signed may be written so.
    let plain = Signed::parse(r#"{"name": "s", "version": "0.3.10"}"#).unwrap();
    assert!(!plain.is_signed());
    assert_eq!(
        Signed::parse(&good).unwrap().message(),
        Signed::parse(&text).unwrap().message(),
        "spelling is not signed"
    );
}

// The command line

#[track_caller]
fn sign(world: &World, user: &str, file: &str) -> String {
    let out = world.scone_as(user, &["session", "sign", file]).succeeds();
    world.file(&format!("{user}.json"), &out)
}

#[test]
fn the_command_line_signs_with_a_key_of_its_own_and_its_commands_take_what_is_signed() {
    let world = World::new();
    let bobs = world.scone_as("bob", &["self", "show-session-signing-key"]).succeeds();
    world.scone_as("bob", &["cas", "attest", &world.client, "-c", &world.key]).succeeds();
    let policy = |lines: &str| world.file("s.yml", &format!("name: $NAME\nversion: 0.3\n{lines}"));
    let unsigned = policy("access_policy: {read: ANY}\n");
    world.scone(&["session", "sign", &unsigned]).fails(1, "Value for variable $NAME is missing");
    let signed = world.scone(&["session", "sign", &unsigned, "-e", "NAME=s"]).succeeds();
    let by_name = world.scone(&["session", "sign", &unsigned, "-e", "NAME=s", "sign-with-cli-identity"]).succeeds();
    assert_eq!(by_name, signed, "Ed25519 draws nothing");
    let signed = world.file("signed.json", &signed);

    let hash = world.scone(&["session", "calculate-hash", &signed]).succeeds();
    let as_signer = ["session", "calculate-hash", &unsigned, "-e", "NAME=s", "--with-self-as-creator", "signer"];
    assert_eq!(world.scone(&as_signer).succeeds(), hash);
    for command in [&["check"][..], &["calculate-hash"], &["create"], &["update"], &["verify"], &["sign"]] {
        let renamed = world.scone(&[&["session"], command, &[&signed, "--name", "t"]].concat());
        renamed.fails(1, "Caused by: it is signed, and cannot be given another name\n");
    }
    let checked = world.scone(&["session", "check", &signed, "-e", "NAME=t", "--use-env"]).succeeds();
    assert!(checked.starts_with("version: '0.3'\nname: s\n") && checked.contains("creator:\n  signer: |\n"));

    // Bob may upload what alice signed; it stays hers.
    assert_eq!(world.scone_as("bob", &["session", "create", &signed]).succeeds(), hash);
    assert_eq!(world.scone_as("bob", &["session", "verify", &signed]).succeeds(), hash);
    let read_back = world.file("read.yml", &world.scone(&["session", "read", "s"]).succeeds());
    assert_eq!(world.scone(&["session", "calculate-hash", &read_back]).succeeds(), hash);

    world
        .scone(&["session", "update", &signed])
        .fails(1, "Write the active session's hash into its file as 'predecessor'");
    let next = policy(&format!("access_policy: {{read: ANY}}\npredecessor: {hash}"));
    world.scone(&["session", "update", &next, "-e", "NAME=s"]).fails(1, "403 Forbidden");
    let named = world.file("named.yml", &fs::read_to_string(&next).unwrap().replace("$NAME", "s"));
    world.scone_as("bob", &["session", "update", &sign(&world, "bob", &named)]).fails(1, "403 Forbidden");
    let second = world.scone_as("bob", &["session", "update", &sign(&world, "alice", &named)]).succeeds();
    assert_ne!(second, hash);
    world.scone(&["session", "verify", &signed]).fails(1, "The active session is another one");

    // A client as creator is what CAS takes from clients alone.
    world.scone(&["session", "create", &policy(""), "-e", "NAME=t"]).succeeds();
    let clients = world.file("clients.yml", &world.scone(&["session", "read", "t"]).succeeds());
    world.scone(&["session", "sign", &clients]).fails(1, "leave `creator` out");

    // A second signature: the creator stays, and nobody signs twice.
    world
        .scone(&["session", "sign", &signed])
        .fails(1, "Signing session failed\nCaused by: signatures[1]: this signer signed");
    let both = sign(&world, "bob", &signed);
    let both: Value = serde_json::from_str(&fs::read_to_string(both).unwrap()).unwrap();
    assert_eq!(both["signatures"][1]["signer"], json!(bobs));
    assert!(!both["session"].as_str().unwrap().contains(bobs.lines().nth(1).unwrap()));
}

#[test]
fn the_parties_sign_one_after_another_until_the_policy_is_met() {
    let world = World::new();
    let parties = ["voter1", "voter2", "voter3", "veto_member1", "veto_member2"];
    let keys = parties.map(|party| {
        let key = world.scone_as(party, &["self", "show-session-signing-key"]).succeeds();
        format!("{party}={key}")
    });
    let with_keys = |command: &[&str], predecessor: &str| {
        let text = format!(
            "
name: shared
version: 0.3.10
predecessor: {predecessor}
access_policy:
  read: ANY
  update:
    require-all:
      - require-at-least-2:
          - signer: $voter1
          - signer: $voter2
          - signer: $voter3
      - require-all:
          - signer: $veto_member1
          - signer: $veto_member2
"
        );
        let file = world.file("shared.yml", &text);
        let variables: Vec<&str> = keys.iter().flat_map(|key| ["-e", key]).collect();
        world.scone_as(parties[0], &[&["session"], command, &[&file], &variables].concat()).succeeds()
    };
    let hash = world.scone(&["session", "create", &world.file("first.json", &with_keys(&["sign"], "~"))]).succeeds();
    assert_eq!(with_keys(&["calculate-hash"], "~"), hash);

    let mut file = world.file("next.json", &with_keys(&["sign"], &hash));
    for party in &parties[2..] {
        world.scone(&["session", "update", &file]).fails(1, "403 Forbidden");
        file = sign(&world, party, &file);
    }
    let second = world.scone(&["session", "update", &file]).succeeds();
    assert_eq!(world.scone(&["session", "verify", &file]).succeeds(), second);
}

#[test]
fn the_signing_key_is_made_once_and_nothing_else_of_the_configuration_changes() {
    let world = World::new();
    let path = world.home.path().join("alice/config.json");
    let before: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(before.get("session_signing_key"), None, "as earlier versions wrote it");
    let show = || world.scone(&["self", "show-session-signing-key"]).succeeds();
    let shown: BTreeSet<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(show)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(shown.len(), 1);
    let mut after: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let key = after.as_object_mut().unwrap().remove("session_signing_key").unwrap();
    assert!(key.as_str().unwrap().starts_with("-----BEGIN PRIVATE KEY-----\n"));
    assert_eq!(after, before);

    after["session_signing_key"] = json!("PRIVATE");
    fs::write(&path, after.to_string()).unwrap();
    let damaged = world.scone(&["self", "show-session-signing-key"]);
    damaged.fails(1, "Cannot use this user's session signing key");
    assert!(!damaged.error().contains("PRIVATE"));
}

#[test]
fn the_log_names_all_who_signed_and_is_verified() {
    let world = World::new();
    let text = world.file("s.yml", "name: s\nversion: 0.3\naccess_policy: {read: ANY, update: NONE}\n");
    let by_both = sign(&world, "bob", &sign(&world, "alice", &text));
    world.scone(&["session", "create", &by_both]).succeeds();
    world.scone(&["session", "create", &by_both]).fails(1, "403 Forbidden");
    let hash = |user: &str| {
        let pem = world.scone_as(user, &["self", "show-session-signing-key"]).succeeds();
        SessionSigner::from_pem(&pem).unwrap().key_hash()
    };
    let (alice, bob) = (hash("alice"), hash("bob"));
    let log = world.scone_sim(&["log", "--json"]).succeeds();
    let entries: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (entry, outcome) in [(&entries[1], "accepted: "), (&entries[2], "refused: Permission denied")] {
        assert_eq!(entry["who"], json!(format!("{alice},{bob}")));
        assert!(entry["outcome"].as_str().unwrap().starts_with(outcome));
    }
    let table = world.scone_sim(&["log"]).succeeds();
    assert!(table.contains(&format!("  {},{}  ", &alice[..12], &bob[..12])), "{table}");
    world.scone(&["cas", "verify-audit-log", &world.file("log.jsonl", &log)]).succeeds();
}

#[test]
fn a_signed_session_may_be_twice_as_long_as_its_text_and_no_longer() {
    let world = World::new();
    // JSON escapes each of them.
    let quotes = "\"".repeat(200_000);
    let text = format!("name: s\nversion: 0.3\nsecrets: [{{name: a, kind: config-fragment, value: 'x{quotes}'}}]\n");
    let text = world.file("s.yml", &text);
    let signed = sign(&world, "alice", &text);
    assert!(fs::metadata(&signed).unwrap().len() > 400_000);
    world.scone(&["session", "create", &signed]).succeeds();
    let long = world.file("long.json", &format!("{{\"session\": \"{}\"}}", "x".repeat(MAX_SIGNED)));
    world.scone(&["session", "create", &long]).fails(1, "the session is longer than");
}

// Other programs' keys

fn openssl_is_there() -> bool {
    let there = Command::new("openssl").arg("version").output().is_ok_and(|output| output.status.success());
    assert!(there || std::env::var_os("CI").is_none(), "'openssl' does not work here: apt-get install openssl");
    if !there {
        eprintln!("SKIPPED: 'openssl' does not work here: apt-get install openssl");
    }
    there
}

/// Runs a command that reads this, and gives what it prints.
fn fed(mut command: Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program");
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[track_caller]
fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(arguments);
    let output = fed(command, input);
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// A new key of this type: the files with the private and the public one.
fn generate(world: &World, name: &str, algorithm: &[&str]) -> (String, String) {
    let private = openssl(&[&["genpkey"], algorithm].concat(), b"");
    let public = openssl(&["pkey", "-pubout"], &private);
    let file = |what: &str, pem: Vec<u8>| world.file(&format!("{name}.{what}"), &String::from_utf8(pem).unwrap());
    (file("key", private), file("pub", public))
}

const P384: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];

#[test]
fn openssl_signs_with_a_p384_key_in_a_pipeline() {
    if !openssl_is_there() {
        return;
    }
    let world = World::new();
    let (private, public) = generate(&world, "p384", P384);
    let (_, others) = generate(&world, "other", P384);
    let file = world.file("s.yml", "name: s\nversion: 0.3\naccess_policy: {read: ANY}\n");
    let message = |more: &[&str]| {
        let arguments = [&["session", "sign", &file, "generate-message-to-be-signed"], more].concat();
        Outcome(world.command("alice", &arguments).output().unwrap())
    };
    message(&[]).fails(1, "The session does not name its creator yet: give the public key of its signer");
    let rsa = world.file("rsa.pem", include_str!("session/rsa.pem"));
    message(&[&rsa]).fails(1, "signer: not an Ed25519 or P-384 public key");
    let signature = openssl(&["dgst", "-sha384", "-sign", &private], message(&[&public]).succeeds().as_bytes());

    let add = |signer: &str, more: &[&str], input: &[u8]| {
        let arguments = [&["session", "sign", &file, "add-signature", signer], more].concat();
        Outcome(fed(world.command("alice", &arguments), input))
    };
    let wrong = "signatures[0]: not the signer's signature over this session";
    add(&others, &[], &signature).fails(1, wrong);
    add(&public, &[], b"").fails(1, wrong);
    add(&public, &[], &[&signature[..], b"\n"].concat()).fails(1, wrong);
    add(&public, &["not base64"], b"").fails(1, "The signature is not base64");
    let signed = add(&public, &[], &signature).succeeds();
    assert_eq!(add(&public, &[&data_encoding::BASE64.encode(&signature)], b"").succeeds(), signed);
    let signed = world.file("signed.json", &signed);
    let hash = world.scone(&["session", "calculate-hash", &signed]).succeeds();
    assert_eq!(world.scone(&["session", "create", &signed]).succeeds(), hash);
    // It is the creator: this user's own key is another one.
    let next = world.file("next.yml", &format!("name: s\nversion: 0.3\npredecessor: {hash}"));
    world.scone(&["session", "update", &sign(&world, "alice", &next)]).fails(1, "403 Forbidden");

    // As SCONE's documentation has it, in a shell.
    let scone = format!("{}/scone", world.home.path().display());
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_scone-sim"), &scone).unwrap();
    let pipeline = format!(
        "{scone} session sign {next} generate-message-to-be-signed {public} | openssl dgst -sha384 -sign {private} | {scone} session sign {next} add-signature {public}"
    );
    let piped = Command::new("sh")
        .args(["-ec", &pipeline])
        .env("SCONE_CLI_CONFIG", world.home.path().join("alice/config.json"))
        .output()
        .unwrap();
    world.scone(&["session", "update", &world.file("piped.json", &Outcome(piped).succeeds())]).succeeds();
}

#[test]
fn openssl_signs_with_an_ed25519_key() {
    if !openssl_is_there() {
        return;
    }
    let world = World::new();
    let (private, public) = generate(&world, "ed25519", &["-algorithm", "ED25519"]);
    let signed = sign(&world, "alice", &world.file("s.yml", "name: s\nversion: 0.3\n"));
    // Beside another signature: the creator is there, and needs not be told.
    let message = world.scone(&["session", "sign", &signed, "generate-message-to-be-signed"]).succeeds();
    let message = world.file("message", &message);
    let signature = openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", &private, "-in", &message], b"");
    let add = ["session", "sign", &signed, "add-signature", &public];
    let both = Outcome(fed(world.command("alice", &add), &signature)).succeeds();
    assert_eq!(Signed::parse(&both).unwrap().signatures.len(), 2);
    let both = world.file("both.json", &both);
    let again = Outcome(fed(world.command("alice", &["session", "sign", &both, "add-signature", &public]), &signature));
    again.fails(1, "signatures[2]: this signer signed already");
    world.scone(&["session", "create", &both]).succeeds();
}

#[test]
fn the_message_to_be_signed_is_kept_from_terminals() {
    let world = World::unattested();
    let file = world.file("s.yml", "name: s\nversion: 0.3\naccess_policy: {read: ANY, update: NONE}\n");
    let scone = format!("{}/scone", world.home.path().display());
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_scone-sim"), &scone).unwrap();
    let at_terminal = |more: &str| {
        let command = format!("{scone} session sign {file} generate-message-to-be-signed {more}");
        Command::new("script").args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).output().unwrap()
    };
    let refused = at_terminal("");
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&refused.stdout)
            .contains("standard output is a terminal: send it elsewhere, or use -f")
    );
    let forced = at_terminal("--force");
    assert!(forced.status.success());
    assert!(String::from_utf8_lossy(&forced.stdout).contains("scone-sim session signature 1\0"));
}
