//! The audit log: what it tells, what it never tells, and who notices when it was tampered with.

mod world;

use std::fs;

use scone_protocol::{SetTag, unhex};
use world::{ANOTHER, MRENCLAVE, NOW, World, code};

const RESET: &str = "ns/otpqr-reset/otpqr";

#[test]
fn the_log_tells_who_did_what_when_and_why_not() {
    let mut world = World::with_policies();
    let now = code(&world.secret(), NOW);
    let wrong = if now == "000000" { "000001" } else { "000000" };
    for (brought, mrenclave) in [
        (None, MRENCLAVE),
        (Some("12345"), MRENCLAVE),
        (Some(wrong), MRENCLAVE),
        (Some(&now), ANOTHER),
        (Some(&now), MRENCLAVE),
    ] {
        world.configure(RESET, brought, mrenclave).unwrap_err();
    }
    world.configure("ns/otpqr/nothing", None, MRENCLAVE).unwrap_err();
    world.configure("ns/nothing/otpqr", None, MRENCLAVE).unwrap_err();
    world.scone_as("mallory", &["cas", "attest", &world.client, "-c", &world.key]).succeeds();
    world.scone_as("mallory", &["session", "read", "ns/otpqr"]).fails(1, "");
    world.scone(&["session", "read", "ns/otpqr"]).succeeds();
    world.crash_and_restart();
    let grant = world.configure("ns/otpqr/check", None, MRENCLAVE).unwrap().volumes.remove(0);
    let key = unhex(grant.key.expose()).unwrap();
    let tag = "11".repeat(16);
    let set = |old, key: &[u8]| world.connect().set_tag(SetTag::new("ns/otpqr", "single_run_1", old, &tag, key));
    set(None, &[0; 32]).unwrap_err();
    set(Some("22"), &key).unwrap_err();
    set(None, &key).unwrap();
    let hash = world.scone(&["session", "verify", &world.render("namespace", "1", None)]).succeeds();
    let second = world.scone(&["session", "create", &world.render("namespace", "1", Some(hash.trim()))]).succeeds();
    world.scone(&["session", "create", &world.render("namespace", "1", Some(ANOTHER))]).fails(1, "409 Conflict");
    world.scone(&["session", "list"]).succeeds();
    world.exit_and_restart();

    let log = world.scone_sim(&["log"]);
    let lines: Vec<String> =
        log.succeeds().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let short = |user: &str| world.scone_as(user, &["self", "show-key-hash"]).succeeds()[..12].to_owned();
    let (alice, mallory) = (short("alice"), short("mallory"));
    let step = NOW / 30;
    let told = [
        "CAS started - - - accepted".to_owned(),
        format!("session created ns {alice} - accepted: "),
        format!("session created ns/otpqr {alice} - accepted: "),
        format!("session created ns/otpqr-reset {alice} - accepted: "),
        "service attested ns/otpqr/otpqr - aaaaaaaaaaaa accepted".to_owned(),
        format!("code checked {RESET} - aaaaaaaaaaaa refused: no code"),
        format!("service attested {RESET} - aaaaaaaaaaaa refused: the code"),
        format!("code checked {RESET} - aaaaaaaaaaaa refused: not six digits"),
        format!("service attested {RESET} - aaaaaaaaaaaa refused: the code"),
        format!("code checked {RESET} - aaaaaaaaaaaa refused: wrong code"),
        format!("service attested {RESET} - aaaaaaaaaaaa refused: the code"),
        format!("code checked {RESET} - bbbbbbbbbbbb accepted: time step {step}"),
        format!("service attested {RESET} - bbbbbbbbbbbb refused: unexpected mrenclave"),
        format!("code checked {RESET} - aaaaaaaaaaaa refused: code already used"),
        format!("service attested {RESET} - aaaaaaaaaaaa refused: the code"),
        "service attested ns/otpqr/nothing - aaaaaaaaaaaa refused: unknown service".to_owned(),
        "service attested ns/nothing/otpqr - aaaaaaaaaaaa refused: unknown session".to_owned(),
        format!("session read ns/otpqr {mallory} - refused: permission denied"),
        format!("session read ns/otpqr {alice} - accepted"),
        "CAS started - - - accepted".to_owned(),
        "service attested ns/otpqr/check - aaaaaaaaaaaa accepted".to_owned(),
        "volume FSPF tag updated ns/otpqr/single_run_1 - - refused: unknown volume or wrong key".to_owned(),
        "volume FSPF tag updated ns/otpqr/single_run_1 - - refused: stale tag".to_owned(),
        format!("volume FSPF tag updated ns/otpqr/single_run_1 - - accepted: {tag}"),
        format!("session read ns {alice} - accepted"),
        format!("session updated ns {alice} - accepted: {second}").trim().to_owned(),
        format!("session updated ns {alice} - refused: The given predecessor is not the active session's hash"),
        "CAS exited - - - accepted".to_owned(),
        "CAS started - - - accepted".to_owned(),
    ];
    assert_eq!(lines[0], "ENTRY TIME EVENT SUBJECT WHO MEASUREMENT OUTCOME");
    assert_eq!(lines.len(), told.len() + 1, "{}", lines.join("\n"));
    for ((line, told), entry) in lines[1..].iter().zip(&told).zip(1..) {
        assert!(line.starts_with(&format!("{entry} 2027-01-15T08:00:00Z {told}")), "{line}\n{told}");
    }
    assert!(log.error().contains("29 entries, each follows from the one before"), "{}", log.error());
    assert!(!log.succeeds().contains('\u{1b}'), "no colour");
}

#[test]
fn no_code_and_no_secret_is_in_the_log_nor_in_any_other_file_but_the_database() {
    let world = World::with_policies();
    let secret = world.secret();
    let (right, next) = (code(&secret, NOW), code(&secret, NOW + 30));
    let wrong = "987654";
    world.configure(RESET, Some(wrong), MRENCLAVE).unwrap_err();
    world.configure(RESET, Some(&right), MRENCLAVE).unwrap();
    world.configure(RESET, Some(&right), MRENCLAVE).unwrap_err();
    world.configure(RESET, Some(&format!("{next} ")), MRENCLAVE).unwrap_err();
    // A code in the wrong place.
    world.configure(&format!("{RESET}@{next}"), None, MRENCLAVE).unwrap_err();
    world.configure(RESET, Some(&next), &next).unwrap_err();

    let log = world.scone_sim(&["log"]).succeeds() + &world.scone_sim(&["log", "--json"]).succeeds();
    let mut texts = vec![("the log".into(), log)];
    for file in fs::read_dir(world.data()).unwrap().map(Result::unwrap) {
        if !file.file_name().to_str().unwrap().starts_with("cas.db") {
            texts.push((file.file_name(), fs::read_to_string(file.path()).unwrap()));
        }
    }
    for (name, text) in texts {
        for confidential in [&secret, &right, &next, wrong] {
            // Hashes are long enough to hold six digits by chance: only whole words count.
            let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
            assert!(!words.any(|word| word == confidential), "{name:?}");
        }
    }
}

#[test]
fn an_exported_log_is_compared_with_its_cas_and_the_exit_code_says_what_is_wrong() {
    let mut world = World::with_policies();
    let export = world.scone_sim(&["log", "--json"]).succeeds();
    let verify = |text: &str, options: &[&str]| {
        let file = world.file("log.json", text);
        world.scone(&[&["cas", "verify-audit-log", &file], options].concat())
    };
    let without = |line: usize| {
        let kept = export.lines().enumerate().filter(|(i, _)| *i != line);
        kept.map(|(_, line)| format!("{line}\n")).collect::<String>()
    };
    let last = export.lines().count() - 1;
    verify("no log", &[]).fails(20, "line 1 is not an entry");
    verify(&export.replacen("accepted", "refused", 1), &[]).fails(20, "broken at entry 1");
    verify(&without(1), &[]).fails(17, "broken at entry 2");
    verify(&without(0), &[]).fails(15, "starts with entry 2: older ones are missing");
    verify(&without(last - 1), &[]).fails(14, "ends with entry 3: more recent ones are missing");
    let other = World::unattested();
    let others = other.scone_sim(&["log", "--json"]).succeeds();
    verify(&others, &[]).fails(19, &other.key);
    let with_its_key = ["--cas", &other.client, "--cas-key-hash", &other.key];
    verify(&others, &with_its_key).succeeds();
    verify(&others, &with_its_key[2..]).fails(1, "--cas");

    // What is printed is the log if asked for, and nothing else; the verdict is on standard error, as SCONE's.
    let right = verify(&export, &[]);
    assert_eq!(right.succeeds(), "");
    assert!(right.error().starts_with("4 entries, the last one's hash is "), "{}", right.error());
    assert_eq!(verify(&export, &["--print-log"]).succeeds(), world.scone_sim(&["log"]).succeeds());

    // CAS goes on: what was the whole is the start, and right as that. Parts are told by the hashes around them.
    world.scone(&["session", "read", "ns"]).succeeds();
    verify(&export, &[]).fails(14, "more recent ones are missing");
    let hash = |line: &str| line.rsplit_once("\"hash\":\"").unwrap().1[..64].to_owned();
    let lines: Vec<&str> = export.lines().collect();
    verify(&export, &["--last", &hash(lines[last - 1])]).succeeds();
    verify(&export, &["--last", &hash(lines[0])]).fails(14, "more recent ones are missing");
    let rest = lines[1..].join("\n");
    verify(&rest, &["--last", &hash(lines[last - 1]), "--predecessor", &hash(lines[0])]).succeeds();
    verify(&rest, &["--last", &hash(lines[last - 1])]).fails(15, "older ones are missing");

    let file = world.file("log.json", &export);
    world.process.kill().unwrap();
    world.process.wait().unwrap();
    world
        .scone(&["cas", "verify-audit-log", &file])
        .fails(16, "whether CAS was rolled back is not known: Cannot talk to CAS");
}

#[test]
fn a_log_tampered_with_in_the_database_is_printed_and_refused() {
    let world = World::with_policies();
    let database = rusqlite::Connection::open(world.data().join("cas.db")).unwrap();
    database.execute("UPDATE audit SET outcome = 'accepted' WHERE sequence = 3", []).unwrap();
    let broken = world.scone_sim(&["log"]);
    assert_eq!(broken.0.status.code(), Some(1));
    assert!(broken.error().contains("the audit log is broken at entry 3"), "{}", broken.error());
}
