//! The CAS process and the `scone` command line, over real TLS, with the policies of `templates/`.

mod world;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Barrier};

use scone_protocol::connection::Error;
use scone_protocol::{
    EXPORTER_LABEL, Evidence, Hello, ReadTag, Request, Response, Secret, SetTag, VolumeGrant, hex, unhex,
};
use scone_sim::daemon::{CLIENT_PORT, ENCLAVE_PORT};
use scone_sim::session::decode_shared_secret;
use scone_sim::tls::{self, Identity};
use world::{ANOTHER, HEADLINE, MRENCLAVE, NOW, Outcome, TESTING, World, code, program, refused, start};

const UNVOUCHED: &str = "The evidence was not made on this connection with this CAS's evidence key";

// Codes

#[test]
fn the_qr_code_is_issued_again_only_for_a_code_and_for_each_code_once() {
    let mut world = World::with_policies();
    let secret = world.secret();
    let now = code(&secret, NOW);
    let wrong = if now == "000000" { "000001" } else { "000000" };
    let reset = "ns/otpqr-reset/otpqr";

    refused(
        world.configure(reset, None, MRENCLAVE),
        &[HEADLINE, "An One-time Password is required to access this session"],
    );
    for invalid in [wrong, "", "12345", &format!(" {now}")] {
        refused(
            world.configure(reset, Some(invalid), MRENCLAVE),
            &[HEADLINE, "The given One-time Password is invalid. Please try again."],
        );
    }
    let configuration = world.configure(reset, Some(&now), MRENCLAVE).unwrap();
    assert_eq!(configuration.environment["OTP_SECRET"].expose(), secret);
    assert_eq!(configuration.environment["OTP_RESET"].expose(), "TRUE");

    let used = "A One-time Password was already used within this time-step. Please try again in the next time-step";
    refused(world.configure(reset, Some(&now), MRENCLAVE), &[HEADLINE, used]);
    world.crash_and_restart();
    refused(world.configure(reset, Some(&now), MRENCLAVE), &[HEADLINE, used]);
    world.set_clock(NOW - 3600);
    refused(world.configure(reset, Some(&code(&secret, NOW - 3600)), MRENCLAVE), &[HEADLINE, used]);
    world.set_clock(NOW + 30);
    world.configure(reset, Some(&code(&secret, NOW + 30)), MRENCLAVE).unwrap();
}

#[test]
fn of_many_runtimes_with_one_code_one_is_configured() {
    let world = World::with_policies();
    let now = code(&world.secret(), NOW);
    let start = Barrier::new(16);
    let accepted: usize = std::thread::scope(|scope| {
        let race = |_| {
            scope.spawn(|| {
                let mut cas = world.connect();
                start.wait();
                usize::from(cas.configure("ns/otpqr-reset/otpqr", Some(&now), MRENCLAVE, None).is_ok())
            })
        };
        let racers: Vec<_> = (0..16).map(race).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).sum()
    });
    assert_eq!(accepted, 1);
}

#[test]
fn a_code_is_consumed_even_if_the_program_is_not_trusted() {
    let world = World::with_policies();
    let now = code(&world.secret(), NOW);
    let untrusted = world.configure("ns/otpqr-reset/otpqr", Some(&now), ANOTHER).unwrap_err();
    assert_eq!(untrusted[0], "CAS sent an attestation/configuration error: DCAP quote verification failed");
    let again = world.configure("ns/otpqr-reset/otpqr", Some(&now), MRENCLAVE).unwrap_err();
    assert!(again[1].contains("already used"), "{again:?}");
}

#[test]
fn after_five_wrong_codes_only_the_sessions_owner_or_time_helps() {
    let mut world = World::with_policies();
    let right = code(&world.secret(), NOW);
    let wrong = if right == "000000" { "000001" } else { "000000" };
    let reset = "ns/otpqr-reset/otpqr";
    for _ in 0..5 {
        assert!(world.configure(reset, Some(wrong), MRENCLAVE).unwrap_err()[1].contains("is invalid"));
    }
    world.crash_and_restart();
    let wait = "Too many wrong One-time Passwords were given. Please try again in 30 seconds.";
    refused(world.configure(reset, Some(&right), MRENCLAVE), &[HEADLINE, wait]);
    let hash = world.scone(&["session", "verify", &world.render("otpqr-reset", "1", None)]).succeeds();
    let again = world.render("otpqr-reset", "1", Some(hash.trim()));
    world.scone(&["session", "create", &again]).succeeds();
    world.configure(reset, Some(&right), MRENCLAVE).unwrap();
}

// Services

#[test]
fn a_service_gets_what_its_policy_says_and_nothing_else() {
    let world = World::with_policies();
    let check = world.configure("ns/otpqr/check", None, MRENCLAVE).unwrap();
    assert_eq!(check.command, ["/bin/otpqr", "--check"]);
    assert_eq!(check.environment.keys().collect::<Vec<_>>(), ["OTP_OUTPUT_FILE", "OTP_SINGLE_USE"]);

    let configuration = world.configure("ns/otpqr/otpqr", None, MRENCLAVE).unwrap();
    assert_eq!(configuration.command, ["/bin/otpqr"]);
    assert_eq!(configuration.pwd.as_deref(), Some("/"));
    assert_eq!(configuration.environment["OTP_ACCOUNT_NAME"].expose(), "Example");
    assert_eq!(configuration.environment["OTP_SECRET"].expose().len(), 32, "20 bytes in base32");
    let [volume] = &configuration.volumes[..] else { panic!("one volume") };
    assert_eq!((volume.session.as_str(), volume.name.as_str()), ("ns/otpqr", "single_run_1"));
    assert_eq!((volume.path.as_str(), volume.tag.as_deref()), ("/root/single_run", None));
    assert_eq!(unhex(volume.key.expose()).unwrap().len(), 32);
}

#[test]
fn another_program_is_refused_in_scones_words() {
    let world = World::with_policies();
    refused(
        world.configure("ns/otpqr/otpqr", None, ANOTHER),
        &[
            "CAS sent an attestation/configuration error: DCAP quote verification failed",
            "Failed to verify DCAP report",
            "The program enclave is not trustworthy",
            "  None of the required enclave properties are met by the enclave",
            "  None of the required enclave properties are met by the enclave",
            &format!("  Unexpected enclave measurement (MRENCLAVE, {ANOTHER}) - Expected {MRENCLAVE}"),
        ],
    );
}

#[test]
fn unknown_sessions_and_unknown_services_sound_alike() {
    let world = World::with_policies();
    for unknown in ["ns/otpqr/nothing", "ns/nothing/otpqr", "nothing", "", "ns/otpqr/otpqr@123456", "/", "\0/x"] {
        refused(world.configure(unknown, None, MRENCLAVE), &[HEADLINE, "Session or service does not exist"]);
    }
}

/// A runtime's connection, with what CAS said first and the exporter value.
fn dial(world: &World) -> (impl Read + Write, Hello, [u8; 32]) {
    let config = tls::client(&Identity::generate("a runtime").unwrap(), Some(&world.key)).unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), "cas".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(&world.enclave).unwrap());
    let hello: Hello = serde_json::from_slice(&receive(&mut stream)).unwrap();
    let exporter = stream.conn.export_keying_material([0; 32], EXPORTER_LABEL, None).unwrap();
    (stream, hello, exporter)
}

fn ask(stream: &mut (impl Read + Write), request: &Request) -> Response {
    send(stream, &serde_json::to_vec(request).unwrap());
    serde_json::from_slice(&receive(stream)).unwrap()
}

#[test]
fn recorded_evidence_is_refused_on_another_connection() {
    let world = World::with_policies();
    let dial = || dial(&world);
    let ask = |stream: &mut _, evidence: &Evidence| {
        let service = "ns/otpqr/otpqr".to_owned();
        ask(stream, &Request::Configure { service, code: None, access_proof: None, evidence: evidence.clone() })
    };
    let (mut first, hello, exporter) = dial();
    let key = world.evidence_key();
    let evidence = Evidence::new(MRENCLAVE, None, &exporter, &hello.nonce, &key);
    let (mut second, second_hello, _) = dial();
    let mixed = Evidence::new(MRENCLAVE, None, &exporter, &second_hello.nonce, &key);
    for recorded in [&evidence, &mixed] {
        let Response::Refused { causes } = ask(&mut second, recorded) else { panic!("accepted") };
        assert_eq!(causes.last().unwrap(), UNVOUCHED);
    }
    assert!(matches!(ask(&mut first, &evidence), Response::Configuration(_)));
}

/// As a web browser or curl would ask.
#[test]
fn public_values_are_told_to_a_client_without_a_certificate() {
    let world = World::new();
    let session = "name: a\nversion: \"0.3.10\"\nsecrets: [{name: x, kind: ascii, value: '42', export_public: true}, \
                   {name: y, kind: ascii, value: '43'}]\n";
    world.scone(&["session", "create", &world.file("a.yml", session)]).succeeds();
    let ask = |path: &str| {
        let mut config = tls::client(&Identity::generate("nobody").unwrap(), Some(&world.key)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let plain =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let plain = plain.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        config.client_auth_cert_resolver = plain.client_auth_cert_resolver;
        let connection = rustls::ClientConnection::new(Arc::new(config), "cas".try_into().unwrap()).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(&world.client).unwrap());
        let request = format!("GET /v1/{path} HTTP/1.1\r\nhost: cas\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
    };
    assert_eq!(ask("sessions/a").0, "403", "the session itself is its creator's");
    for (path, what) in [
        ("session=a,secret=y", "value 'y' of '/session=a'"),
        ("session=b,secret=x", "value 'x' of '/session=b'"),
        ("session=b", "values of '/session=b'"),
        ("a", "values of '/a'"),
    ] {
        let refusal = format!(
            r#"{{"msg":["Failed to read {what} requested by a public client","Secret does not exist or is not visible for a public client"]}}"#
        );
        assert_eq!(ask(&format!("values/{path}")), ("404".into(), refusal));
    }
    let value = r#"{"expires":null,"kind":"string","renew":null,"value":"42"}"#;
    assert_eq!(ask("values/session=a,secret=x"), ("200".into(), value.into()));
    assert_eq!(ask("values/session=a"), ("200".into(), format!(r#"{{"values":{{"x":{value}}}}}"#)));
}

/// Whoever reaches the port and knows all names: any local user.
#[test]
fn who_makes_up_evidence_learns_nothing_and_spends_nothing() {
    let world = World::with_policies();
    let open = "name: open\nversion: \"0.3.10\"\nservices: [{name: s, command: p, pwd: /}]\n\
                security: {attestation: {mode: none}}\n";
    world.scone(&["session", "create", &world.file("open.yml", open)]).succeeds();
    let code = code(&world.secret(), NOW);
    let headline = "CAS sent an attestation/configuration error: DCAP quote verification failed";
    let refusal = [headline, "Failed to verify DCAP report", UNVOUCHED];
    let ask = |key: &str, service, code| {
        let mut connection = world.connect_with(Secret::new(key.to_owned()));
        connection.configure(service, code, MRENCLAVE, None).map_err(Error::causes)
    };
    for key in ["", &world.key, &"00".repeat(32)] {
        for service in ["ns/otpqr/otpqr", "open/s", "ns/unknown/s"] {
            refused(ask(key, service, None), &refusal);
        }
        // The right code is not consumed, and wrong ones keep nobody waiting.
        refused(ask(key, "ns/otpqr-reset/otpqr", Some(&code)), &refusal);
        for wrong in ["x", "y", "z"] {
            refused(ask(key, "ns/otpqr-reset/otpqr", Some(wrong)), &refusal);
        }
    }
    let issued = world.configure("ns/otpqr-reset/otpqr", Some(&code), MRENCLAVE).unwrap();
    assert_eq!(issued.environment["OTP_SECRET"].expose(), world.secret());
}

#[test]
fn import_and_export_must_agree_when_the_service_starts() {
    let world = World::new();
    world.scone(&["session", "create", &world.render("namespace", "1", None)]).succeeds();
    let reset = world.render("otpqr-reset", "1", None);
    // Nothing to import from yet: that is no reason to refuse the upload.
    world.scone(&["session", "create", &reset]).succeeds();
    let why = |volume_or_secret: &str| {
        format!("Session 'ns/otpqr' does not export {volume_or_secret}_1' to 'ns/otpqr-reset'")
    };
    let causes = world.configure("ns/otpqr-reset/otpqr", Some("123456"), MRENCLAVE).unwrap_err();
    assert_eq!(causes, [HEADLINE, &why("secret 'otp_secret")]);

    let both = world.render("otpqr", "1", None);
    let text = fs::read_to_string(&both).unwrap();
    let other = text.replace("session: \"ns/otpqr-reset\"", "session: \"ns/other\"");
    let hash = world.scone(&["session", "create", &world.file("other.yml", &other)]).succeeds();
    let causes = world.configure("ns/otpqr-reset/otpqr", None, MRENCLAVE).unwrap_err();
    assert_eq!(causes, [HEADLINE, &why("secret 'otp_secret")]);

    let smaller = text.replace("size: 20", "size: 16").replace("predecessor: ~", &format!("predecessor: {hash}"));
    let hash = world.scone(&["session", "create", &world.file("smaller.yml", &smaller)]).succeeds();
    let causes = world.configure("ns/otpqr-reset/otpqr", None, MRENCLAVE).unwrap_err();
    assert!(causes[1].contains("another kind or size"), "{causes:?}");

    world.scone(&["session", "create", &world.render("otpqr", "1", Some(hash.trim()))]).succeeds();
    let causes = world.configure("ns/otpqr-reset/otpqr", None, MRENCLAVE).unwrap_err();
    assert!(causes[1].contains("is required"), "{causes:?}");
}

#[test]
fn rolling_forward_makes_old_codes_dead_and_keeps_what_is_kept() {
    let world = World::with_policies();
    let hash = |template, versions: &str| {
        world.scone(&["session", "verify", &world.render(template, versions, None)]).succeeds().trim().to_owned()
    };
    let old = world.secret();
    let before = world.configure("ns/otpqr/check", None, MRENCLAVE).unwrap();
    // Old and new side by side: the old are what they were.
    let session = world.render("otpqr", "12", Some(&hash("otpqr", "1")));
    world.scone(&["session", "create", &session]).succeeds();
    let code_now = code(&old, NOW);
    world.configure("ns/otpqr-reset/otpqr", Some(&code_now), MRENCLAVE).unwrap();
    let reset = world.render("otpqr-reset", "2", Some(&hash("otpqr-reset", "1")));
    world.scone(&["session", "create", &reset]).succeeds();
    let causes = world.configure("ns/otpqr-reset/otpqr", Some(&code(&old, NOW + 30)), MRENCLAVE).unwrap_err();
    assert!(causes[1].contains("is invalid"), "{causes:?}");
    let new = world.secret();
    assert_ne!(new, old);
    let after = world.configure("ns/otpqr/check", None, MRENCLAVE).unwrap();
    assert_ne!(after.volumes[0].key, before.volumes[0].key);
    world.configure("ns/otpqr-reset/otpqr", Some(&code(&new, NOW)), MRENCLAVE).unwrap();

    // Dropped and declared again: the volume resumes, the secret is another one.
    let session = world.render("otpqr", "2", Some(&hash("otpqr", "12")));
    world.scone(&["session", "create", &session]).succeeds();
    let session = world.render("otpqr", "1", Some(&hash("otpqr", "2")));
    world.scone(&["session", "create", &session]).succeeds();
    let again = world.configure("ns/otpqr/check", None, MRENCLAVE).unwrap();
    assert_eq!(again.volumes[0].key, before.volumes[0].key);
    assert_ne!(world.secret(), old);
}

/// Its bytes are looked for, where they are in full beforehand.
#[test]
fn a_dropped_secret_is_in_no_file_of_the_data_directory() {
    let world = World::with_policies();
    let secret = || decode_shared_secret(&world.secret()).unwrap();
    let holding = |secret: &[u8]| {
        let files = fs::read_dir(world.data()).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file());
        files.filter(|file| fs::read(file).unwrap().windows(secret.len()).any(|part| part == secret)).count()
    };
    let replace = |template: &str, from: &str, to: &str| {
        let hash = world.scone(&["session", "verify", &world.render(template, from, None)]).succeeds();
        world.scone(&["session", "create", &world.render(template, to, Some(hash.trim()))]).succeeds();
    };
    let dropped = secret();
    replace("otpqr", "1", "12");
    replace("otpqr-reset", "1", "2");
    assert_ne!(holding(&dropped), 0);
    // Somebody reads the log meanwhile.
    world.scone_sim(&["log"]).succeeds();
    replace("otpqr", "12", "2");
    assert_ne!(holding(&secret()), 0);
    assert_eq!(holding(&dropped), 0);
}

#[test]
fn a_tag_moves_from_what_it_is_by_who_knows_the_key() {
    let mut world = World::with_policies();
    let key = |world: &World| {
        let configuration = world.configure("ns/otpqr/check", None, MRENCLAVE).unwrap();
        (unhex(configuration.volumes[0].key.expose()).unwrap(), configuration.volumes[0].tag.clone())
    };
    let (k, _) = key(&world);
    let [a, b] = ["11", "22"].map(|digits| digits.repeat(16));
    let set = |world: &World, volume: &str, old: Option<&str>, new: &str, key: &[u8]| {
        world.connect().set_tag(SetTag::new("ns/otpqr", volume, old, new, key)).map_err(Error::causes)
    };
    let stale = ["The FSPF tag is not fresh - suspected replay attack"];
    refused(set(&world, "single_run_1", None, &a, &[0; 32]), &["The volume's key was not proven"]);
    refused(set(&world, "single_run_9", None, &a, &k), &["The volume's key was not proven"]);
    refused(set(&world, "single_run_1", None, "xyz", &k), &["The FSPF tag is not 32 lower-case hex digits"]);
    refused(set(&world, "single_run_1", Some(&b), &a, &k), &stale);
    set(&world, "single_run_1", None, &a, &k).unwrap();
    set(&world, "single_run_1", None, &a, &k).unwrap();
    refused(set(&world, "single_run_1", None, &b, &k), &stale);
    world.crash_and_restart();
    assert_eq!(key(&world).1, Some(a.clone()));
    set(&world, "single_run_1", Some(&a), &b, &k).unwrap();
    refused(set(&world, "single_run_1", Some(&a), &"33".repeat(16), &k), &stale);
    // The session that imports the volume sees the same state.
    let now = code(&world.secret(), NOW);
    assert_eq!(world.configure("ns/otpqr-reset/otpqr", Some(&now), MRENCLAVE).unwrap().volumes[0].tag, Some(b));
}

#[test]
fn a_tag_is_told_to_who_knows_the_key_on_its_own_connection_only() {
    let mut world = World::with_policies();
    let two = "name: two\nversion: \"0.3.10\"\nvolumes: [{name: single_run_1}, {name: w}]\nimages: [{name: i, volumes: \
               [{name: single_run_1, path: /v}, {name: w, path: /w}]}]\n\
               services: [{name: s, image_name: i, command: /p, attestation: [{mrenclave: [MRENCLAVE]}]}]\n";
    let two = world.file("two.yml", &two.replace("MRENCLAVE", MRENCLAVE));
    world.scone(&["session", "create", &two]).succeeds();
    let grant = |world: &World| world.configure("ns/otpqr/check", None, MRENCLAVE).unwrap().volumes.remove(0);
    let (mine, others) = (grant(&world), world.configure("two/s", None, MRENCLAVE).unwrap().volumes);
    let read = |world: &World, grant: &VolumeGrant| world.connect().read_tag(grant).map_err(Error::causes);
    let unproven = ["The volume's key was not proven"];
    let wrong = |key: &VolumeGrant| VolumeGrant { key: key.key.clone(), ..mine.clone() };
    refused(read(&world, &wrong(&VolumeGrant { key: Secret::new(hex(&[0; 32])), ..mine.clone() })), &unproven);
    refused(read(&world, &wrong(&others[0])), &unproven);
    refused(read(&world, &wrong(&others[1])), &unproven);
    refused(read(&world, &VolumeGrant { name: "single_run_9".into(), ..mine.clone() }), &unproven);
    refused(read(&world, &VolumeGrant { session: "two".into(), ..mine.clone() }), &unproven);

    assert_eq!(read(&world, &mine), Ok(None));
    let (tag, key) = ("11".repeat(16), unhex(mine.key.expose()).unwrap());
    world.connect().set_tag(SetTag::new("ns/otpqr", "single_run_1", None, &tag, &key)).unwrap();
    assert_eq!(read(&world, &mine), Ok(Some(tag.clone())));
    world.crash_and_restart();

    // Recorded, it is worth nothing on another connection, nor with that one's nonce; nor is a request to move the tag.
    let ((mut first, hello, exporter), (mut second, second_hello, _)) = (dial(&world), dial(&world));
    let make = |nonce: &str| ReadTag::new("ns/otpqr", "single_run_1", &exporter, nonce, &key);
    let SetTag { session, volume, mac, .. } = SetTag::new("ns/otpqr", "single_run_1", None, &tag, &key);
    for recorded in [make(&hello.nonce), make(&second_hello.nonce), ReadTag { session, volume, mac }] {
        let Response::Refused { causes } = ask(&mut second, &Request::ReadTag(recorded)) else { panic!("told") };
        assert_eq!(causes, unproven);
    }
    let Response::Tag { tag: told } = ask(&mut first, &Request::ReadTag(make(&hello.nonce))) else {
        panic!("not told")
    };
    assert_eq!(told, Some(tag.clone()));
    let log = world.scone_sim(&["log"]).succeeds();
    let told: Vec<_> = log.lines().filter_map(|line| Some(line.split_once("volume FSPF tag read")?.1)).collect();
    let told: Vec<_> = told.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let (no, yes) = ("- - refused: unknown volume or wrong key", format!("ns/otpqr/single_run_1 - - accepted: {tag}"));
    assert_eq!(told.len(), 11);
    assert!(told[..5].iter().chain(&told[7..10]).all(|line| line.ends_with(no)), "{told:?}");
    assert_eq!(told[5], "ns/otpqr/single_run_1 - - accepted: none yet");
    assert_eq!([&told[6], &told[10]], [&yes, &yes]);
}

// Sessions

#[test]
fn a_session_is_replaced_only_by_who_names_the_active_one() {
    let world = World::new();
    let with = |predecessor: &str, volume: &str| {
        world.file(
            "s.yml",
            &format!("name: s\nversion: 0.3\npredecessor: {predecessor}\nvolumes: [{{name: {volume}}}]\n"),
        )
    };
    world.scone(&["session", "update", &with("~", "a")]).fails(2, "Session 's' does not exist");
    world.scone(&["session", "create", &with(MRENCLAVE, "a")]).fails(1, "404 Not Found");
    let first = world.scone(&["session", "create", &with("~", "a")]).succeeds();
    let error = world.scone(&["session", "create", &with("~", "b")]);
    error.fails(1, "Error: Creating session failed\nCaused by: CAS at '");
    error.fails(1, "returned HTTP error status code 400 Bad Request\nCaused by: Session already exists, please specify predecessor hash");
    world.scone(&["session", "create", &with(MRENCLAVE, "b")]).fails(1, "409 Conflict");
    world.scone(&["session", "verify", &with("~", "b")]).fails(1, "another one");
    assert_eq!(world.scone(&["session", "verify", &with("~", "a")]).succeeds(), first);
    assert!(world.scone(&["session", "read", "s"]).succeeds().contains("\npredecessor: null\n"));
    let second = world.scone(&["session", "create", &with(&first, "b")]).succeeds();
    assert_ne!(first, second);
    world.scone(&["session", "update", &with(MRENCLAVE, "c")]).fails(1, "409 Conflict");
    world.scone(&["session", "update", &with("~", "c")]).succeeds();
}

/// So who puts back what was there before leaves another version behind.
#[test]
fn a_version_says_which_one_it_replaced_and_its_hash_covers_that() {
    let world = World::new();
    let with = |predecessor: &str, volume: &str| {
        let text = format!("name: s\nversion: 0.3\npredecessor: {predecessor}\nvolumes: [{{name: {volume}}}]\n");
        world.file(&format!("{volume}-{}.yml", predecessor.trim()), &text)
    };
    let first = world.scone(&["session", "create", &with("~", "a")]).succeeds();
    let second = world.scone(&["session", "create", &with(&first, "b")]).succeeds();
    let third = world.scone(&["session", "update", &with("~", "a")]).succeeds();
    assert!(third != first && third != second);
    let text = world.scone(&["session", "read", "s"]).succeeds();
    assert!(text.contains(&format!("\npredecessor: {second}")), "{text}");
    // What is compared is the version that is active: as it was uploaded, as it is read, or without a predecessor.
    for (predecessor, volume) in [(first.as_str(), "a"), (&third, "a"), ("~", "b")] {
        world.scone(&["session", "verify", &with(predecessor, volume)]).fails(1, "another one");
    }
    for same in [with(&second, "a"), world.file("read.yml", &text), with("~", "a")] {
        assert_eq!(world.scone(&["session", "verify", &same]).succeeds(), third);
    }
    let calculated = world.scone(&["session", "calculate-hash", "--with-self-as-creator", "tls", &with(&second, "a")]);
    assert_eq!(calculated.succeeds(), third);
}

#[test]
fn what_is_read_back_verifies_and_holds_no_drawn_secret() {
    let world = World::with_policies();
    world.scone(&["session", "read", "ns/nothing"]).fails(2, "Session 'ns/nothing' does not exist");
    world.scone(&["session", "read", "no name"]).fails(1, "not a session's name");
    // Sessions cannot be deleted; and a usage error is not "not found".
    world.scone(&["session", "delete", "ns"]).fails(1, "unrecognized subcommand");
    let text = world.scone(&["session", "read", "ns/otpqr"]).succeeds();
    assert!(text.contains("creator: |\n  -----BEGIN CERTIFICATE-----"), "{text}");
    assert!(!text.contains(&world.secret()));
    let original = world.scone(&["session", "verify", &world.render("otpqr", "1", None)]).succeeds();
    let read_back = world.file("read-back.yml", &text);
    assert_eq!(world.scone(&["session", "verify", &read_back]).succeeds(), original);
    assert_eq!(world.scone(&["session", "check", &read_back]).succeeds(), text);
    assert_eq!(world.scone(&["session", "calculate-hash", &read_back]).succeeds(), original);
    assert_eq!(world.scone(&["session", "list"]).succeeds(), "ns\nns/otpqr\nns/otpqr-reset\n");
    assert_eq!(world.scone(&["session", "list", "ns/otpqr"]).succeeds(), "ns/otpqr\n");
}

#[test]
fn another_identity_may_neither_read_nor_replace_nor_create_below() {
    let world = World::with_policies();
    world.scone_as("mallory", &["cas", "attest", &world.client, "-c", &world.key]).succeeds();
    let mallory = |args: &[&str]| world.scone_as("mallory", args);
    let policy = world.render("otpqr", "1", None);
    let hash = world.scone(&["session", "verify", &policy]).succeeds();
    let with_hash = world.render("otpqr", "1", Some(hash.trim()));
    let below = world.file("below.yml", "name: ns/mine\nversion: 0.3\n");
    let orphan = world.file("orphan.yml", "name: nobody/mine\nversion: 0.3\n");
    for args in [
        ["session", "read", "ns/otpqr"],
        ["session", "verify", &policy],
        ["session", "create", &with_hash],
        ["session", "create", &below],
    ] {
        mallory(&args).fails(1, "403 Forbidden");
    }
    mallory(&["session", "create", &orphan]).fails(1, "Parent session 'nobody' does not exist");
    assert_eq!(mallory(&["session", "list"]).succeeds(), "");
    world.scone(&["session", "create", &below]).succeeds();

    // A session with the same text but another creator is another session.
    let text = "version: 0.3\nname: open\naccess_policy: {read: [ANY]}\n";
    mallory(&["session", "create", &world.file("open.yml", text)]).succeeds();
    world.scone(&["session", "verify", &world.file("open.yml", text)]).fails(1, "another one");
    mallory(&["session", "verify", &world.file("open.yml", text)]).succeeds();
}

#[test]
fn a_session_is_created_only_in_the_namespace_whose_hash_it_names() {
    let world = World::new();
    let namespace = world.file("ns.yml", "name: ns\nversion: 0.3\n");
    let hash = world.scone(&["session", "create", &namespace]).succeeds();
    let inner = |hash: &str| world.file("inner.yml", &format!("name: ns/a\nversion: 0.3\nnamespace_hash: {hash}\n"));
    let create = |hash: &str| world.scone(&["session", "create", &inner(hash)]);
    create(&"0".repeat(64)).fails(1, "The given namespace hash is not that of the parent session");
    world.scone(&["session", "read", "ns/a"]).fails(2, "does not exist");
    create(hash.trim()).succeeds();
    // Later versions may not name it any more.
    world
        .scone(&["session", "update", &inner(hash.trim())])
        .fails(1, "predecessor and namespace_hash exclude one another");
}

#[test]
fn a_key_hash_in_the_access_policy_admits_its_owner() {
    let world = World::new();
    world.scone_as("bob", &["cas", "attest", &world.client, "-c", &world.key]).succeeds();
    let bob = world.scone_as("bob", &["self", "show-key-hash"]).succeeds();
    let policy = format!("name: shared\nversion: 0.3\naccess_policy: {{read: [CREATOR, {}]}}\n", bob.trim());
    world.scone(&["session", "create", &world.file("shared.yml", &policy)]).succeeds();
    world.scone_as("bob", &["session", "update", &world.file("shared.yml", &policy)]).fails(1, "403 Forbidden");
    world.scone_as("bob", &["session", "read", "shared"]).succeeds();
}

#[test]
fn a_session_that_names_its_creator_is_taken_from_nobody_else() {
    let world = World::new();
    let own = world.scone(&["self", "show-certificate"]).succeeds();
    let bobs = Identity::generate("bob").unwrap().certificate_pem;
    let by = |creator: &str| {
        let creator = creator.replace('\n', "\n  ");
        world.file("s.yml", &format!("name: s\nversion: 0.3\ncreator: |\n  {creator}\n"))
    };
    world.scone(&["session", "create", &by(&bobs)]).fails(1, "The session names another creator");
    world.scone(&["session", "create", &by(&own)]).succeeds();
}

#[test]
fn verify_compares_the_session_and_not_what_cas_says_its_hash_is() {
    let world = World::with_policies();
    let file = world.render("otpqr-reset", "1", None);
    world.scone(&["session", "verify", &file]).succeeds();
    let database = rusqlite::Connection::open(world.data().join("cas.db")).unwrap();
    let changed = database.execute("UPDATE session SET content = replace(content, 'TRUE', 'FALSE')", []).unwrap();
    assert_eq!(changed, 3);
    world.scone(&["session", "verify", &file]).fails(1, "The active session is another one");
}

#[test]
fn who_may_create_below_a_session_need_not_be_who_may_update_it() {
    let world = World::new();
    world.scone_as("bob", &["cas", "attest", &world.client, "-c", &world.key]).succeeds();
    let bob = world.scone_as("bob", &["self", "show-key-hash"]).succeeds();
    let policy = |update: &str, create: &str| {
        format!(
            "name: shared\nversion: 0.3\naccess_policy: {{read: ANY, update: {update}, create_sessions: {create}}}\n"
        )
    };
    let text = policy(&format!("[CREATOR, {}]", bob.trim()), "CREATOR");
    world.scone(&["session", "create", &world.file("shared.yml", &text)]).succeeds();
    let below = world.file("below.yml", "name: shared/below\nversion: 0.3\n");
    world.scone_as("bob", &["session", "create", &below]).fails(1, "403 Forbidden");
    // Who may update it may grant that to himself, and then is its creator.
    let text = policy("NONE", &format!("[{}]", bob.trim()));
    world.scone_as("bob", &["session", "update", &world.file("shared.yml", &text)]).succeeds();
    world.scone(&["session", "create", &below]).fails(1, "403 Forbidden");
    world.scone_as("bob", &["session", "create", &below]).succeeds();
    world.scone_as("bob", &["session", "update", &world.file("shared.yml", &text)]).fails(1, "403 Forbidden");
}

#[test]
fn variables_of_a_session_file_are_filled_in() {
    let world = World::new();
    let file = world.file(
        "template.yml",
        "name: $NAME\nversion: 0.3\nservices: [{name: s, command: $SIM_COMMAND, attestation: \
         {mrenclave: $M, signer: {mrsigner: $M, isvprodid: $ID}}}]\n",
    );
    let create = ["session", "create", &file, "-e", "NAME=filled", "-e", "ID=22", "-e", &format!("M={MRENCLAVE}")];
    world.scone(&create).fails(1, "Value for variable $SIM_COMMAND is missing at line 3 column 31");
    let all = [&create[..], &["-e", "SIM_COMMAND=/p", "--name", "named"]].concat();
    world.scone(&all).succeeds();
    let session = world.scone(&["session", "read", "named"]).succeeds();
    assert!(session.contains("command: /p\n") && session.contains("isvprodid: 22\n"), "{session}");
    world.scone(&["session", "read", "filled"]).fails(2, "does not exist");
    // The test runner's environment holds this one.
    let file = world.file("environment.yml", "name: $CARGO_PKG_NAME\nversion: 0.3\n");
    world.scone(&["session", "check", &file]).fails(1, "$CARGO_PKG_NAME is missing");
    assert!(world.scone(&["session", "check", "--use-env", &file]).succeeds().contains("name: scone-sim\n"));
}

// The CLI and its CAS

#[test]
fn a_cas_that_was_not_attested_is_refused() {
    let world = World::unattested();
    world.scone(&["session", "read", "x"]).fails(1, "No CAS was attested yet");
    world.scone(&["session", "read", "--cas", &world.client, "x"]).fails(1, "was not attested yet");
    world
        .scone(&["cas", "attest", &world.client])
        .fails(1, "The CAS is software: as one in debug mode it cannot protect secrets");
    world.scone(&["cas", "attest", &world.client, "-c", MRENCLAVE]).fails(1, "does not match expectation");
    world.scone(&["cas", "list"]).succeeds();
    let testing = "--only_for_testing-disable-attestation-verification";
    world.scone(&["session", "read", testing, "--cas", &world.client, "x"]).fails(2, "does not exist");
    let attested = world.scone(&["cas", "attest", &world.client, "-c", &world.key]);
    let version = concat!("Version of attested CAS: scone-sim ", env!("CARGO_PKG_VERSION"));
    assert_eq!(attested.succeeds(), format!("CAS {0} at https://{0}/ is trustworthy\n{version}\n", world.client));
    assert!(attested.error().contains("software only"));
    world.scone(&["session", "read", "x"]).fails(2, "does not exist");
    assert_eq!(world.scone(&["cas", "list"]).succeeds(), format!("* {0}: https://{0}/\n", world.client));
    assert_eq!(world.scone(&["cas", "show-identification", "-c"]).succeeds(), format!("{}\n", world.key));
}

#[test]
fn a_cas_that_has_another_key_than_it_had_is_refused() {
    let mut world = World::new();
    world.process.kill().unwrap();
    world.process.wait().unwrap();
    for file in ["cas.db", "cas.db-wal", "cas.db-shm"] {
        fs::remove_file(world.data().join(file)).unwrap();
    }
    let (process, [_, _, key]) = start(world.home.path(), &[]);
    world.process = process;
    assert_ne!(key, world.key);
    world.scone(&["session", "read", "x"]).fails(1, "another key than when it was attested");
    world.scone(&["cas", "attest", &world.client, TESTING[0], TESTING[1], TESTING[2]]).fails(1, "another key");
    world.scone(&["cas", "attest", &world.client, "-c", &key]).succeeds();
    world.scone(&["session", "read", "x"]).fails(2, "does not exist");
}

#[test]
fn a_configuration_that_is_not_ours_is_left_alone() {
    let world = World::unattested();
    fs::create_dir(world.home.path().join("alice")).unwrap();
    let path = world.home.path().join("alice/config.json");
    for foreign in ["", "{}", "{\"identity\": \"x\"}", "not JSON"] {
        fs::write(&path, foreign).unwrap();
        world.scone(&["self", "show-key-hash"]).fails(1, "was not written by this version");
        assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
    }
    fs::remove_file(&path).unwrap();
    let key = world.scone(&["self", "show-key-hash"]).succeeds();
    assert_eq!(key.trim().len(), 64);
    assert_eq!(world.scone(&["self", "show-key-hash"]).succeeds(), key, "the identity is made once");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_command_line_says_that_it_is_the_simulators() {
    let world = World::unattested();
    let version = world.scone(&["--version"]);
    assert_eq!(version.succeeds(), concat!("scone-sim ", env!("CARGO_PKG_VERSION"), "\n"));
    assert!(version.error().contains("software only"));
}

// The process

#[test]
fn a_second_cas_on_the_same_data_is_refused() {
    let world = World::unattested();
    world.scone_sim(&["cas"]).fails(3, "already running");
    let status = world.scone_sim(&["status"]).succeeds();
    assert_eq!(status, format!("client: {}\nenclave: {}\nkey: {}\n", world.client, world.enclave, world.key));
}

#[test]
fn up_down_and_status_can_be_repeated() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("it's a \"directory\"");
    let scone_sim = |args: &[&str]| Outcome(program("scone-sim").args(args).arg("--data").arg(&data).output().unwrap());
    scone_sim(&["status"]).fails(3, "hint: scone-sim up");
    assert!(!data.exists(), "looking makes nothing");
    assert_eq!(scone_sim(&["down"]).succeeds(), "not running\n");
    let up = scone_sim(&["up", "--client-port", "0", "--enclave-port", "0"]);
    let lines = up.succeeds();
    assert!(up.error().contains("software only"));
    assert_eq!(scone_sim(&["up"]).succeeds(), lines);
    assert_eq!(scone_sim(&["up", "--client-port", "0"]).succeeds(), lines);
    scone_sim(&["up", "--client-port", "1"]).fails(3, "with another port");
    assert_eq!(scone_sim(&["status"]).succeeds(), lines);
    assert_eq!(scone_sim(&["down"]).succeeds(), "stopped\n");
    assert_eq!(scone_sim(&["down"]).succeeds(), "not running\n");
    scone_sim(&["status"]).fails(3, "no CAS is running");
    assert_eq!(scone_sim(&["up"]).succeeds(), lines, "the ports are the same again");
    assert_eq!(scone_sim(&["down"]).succeeds(), "stopped\n");
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    for file in fs::read_dir(&data).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
    }
}

#[test]
fn a_database_of_another_layout_is_left_as_it_is_with_a_hint() {
    let mut world = World::with_policies();
    world.process.kill().unwrap();
    world.process.wait().unwrap();
    let open = || rusqlite::Connection::open(world.data().join("cas.db")).unwrap();
    let layout = || open().pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).unwrap();
    let ours = layout();
    for other in [1, ours + 1] {
        open().pragma_update(None, "user_version", other).unwrap();
        for command in ["up", "log"] {
            let refused = world.scone_sim(&[command]);
            world.scone_sim(&["down"]).succeeds();
            refused
                .fails(1, &format!("the database has layout {other}, this program knows layout {ours} only\nhint: "));
            assert!(refused.error().contains("with another --data DIR"), "{}", refused.error());
        }
        assert_eq!(layout(), other);
    }
}

#[test]
fn a_port_that_is_taken_is_named_with_a_hint_that_helps() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().to_str().unwrap();
    let scone_sim = |args: &[&str]| Outcome(program("scone-sim").args(args).args(["--data", data]).output().unwrap());
    let free = ["up", "--client-port", "0", "--enclave-port", "0"];
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let hint = format!("hint: scone-sim up --data '{data}' --client-port 0 --enclave-port 0   #");
    for (option, other) in [("--client-port", "--enclave-port"), ("--enclave-port", "--client-port")] {
        let up = scone_sim(&["up", option, &port.to_string(), other, "0"]);
        up.fails(3, &format!("cannot listen on 127.0.0.1:{port}: "));
        assert!(up.error().contains(&hint), "{}", up.error());
    }
    // A port that it had before is not left for another one by itself: accounts know CAS by it.
    let ports = scone_sim(&free).succeeds();
    scone_sim(&["down"]).succeeds();
    let client = ports.lines().next().unwrap().strip_prefix("client: ").unwrap();
    let taken = TcpListener::bind(client).unwrap();
    let up = scone_sim(&["up"]);
    up.fails(3, &format!("cannot listen on {client}: "));
    assert!(up.error().contains(&hint), "{}", up.error());
    scone_sim(&free).succeeds();
    scone_sim(&["down"]).succeeds();
    drop(taken);
}

#[test]
fn a_cas_that_aborts_leaves_no_core_dump() {
    let world = World::new();
    let limits = fs::read_to_string(format!("/proc/{}/limits", world.process.id())).unwrap();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    // With 0 a program that core_pattern names would be given one.
    assert_eq!(limit.split_whitespace().collect::<Vec<_>>(), ["1", "1", "bytes"]);
}

/// As two users of one host have them: neither knows of the other.
#[test]
fn where_the_usual_ports_are_taken_free_ones_are_found_and_kept() {
    // If somebody else has them already, all the better.
    let _usual = [CLIENT_PORT, ENCLAVE_PORT].map(|port| TcpListener::bind(("127.0.0.1", port)));
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let each = |args: &[&str]| {
        homes.each_ref().map(|home| {
            Outcome(program("scone-sim").args(args).arg("--data").arg(home.path()).output().unwrap()).succeeds()
        })
    };
    let first = each(&["up"]);
    let lines: BTreeSet<&str> = first.iter().flat_map(|lines| lines.lines()).collect();
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert!(!lines.contains(&*format!("client: 127.0.0.1:{CLIENT_PORT}")), "{lines:?}");
    assert!(!lines.contains(&*format!("enclave: 127.0.0.1:{ENCLAVE_PORT}")), "{lines:?}");
    each(&["down"]);
    assert_eq!(each(&["up"]), first);
    each(&["down"]);
}

#[test]
fn peers_that_say_nothing_do_not_keep_others_waiting() {
    let world = World::with_policies();
    let idle: Vec<TcpStream> = [&world.client, &world.enclave]
        .into_iter()
        .flat_map(|address| (0..50).map(|_| TcpStream::connect(address.as_str()).unwrap()))
        .collect();
    world.scone(&["session", "read", "ns"]).succeeds();
    world.configure("ns/otpqr/check", None, MRENCLAVE).unwrap();
    drop(idle);
}

#[test]
fn oversized_requests_are_refused() {
    let world = World::new();
    let huge = world.file("huge.yml", &format!("# {}\nname: a\nversion: 0.3\n", "x".repeat(300_000)));
    world.scone(&["session", "create", &huge]).fails(1, "longer than");

    let identity = Identity::generate("a runtime").unwrap();
    let config = Arc::new(tls::client(&identity, Some(&world.key)).unwrap());
    let connection = rustls::ClientConnection::new(config, "cas".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(&world.enclave).unwrap());
    receive(&mut stream);
    stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert!(stream.read_exact(&mut [0]).is_err(), "the connection is closed without an answer");
}

fn send(stream: &mut impl Write, body: &[u8]) {
    stream.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream.flush().unwrap();
}

fn receive(stream: &mut impl Read) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body).unwrap();
    body
}
