//! The audit log: what it tells, what it never tells, and who notices when it was tampered with.

mod world;

use std::fs;

use scone_protocol::{SetTag, unhex};
use scone_sim::audit::{self, Event, PART, Record};
use scone_sim::cas::{Access, Cas, Claim};
use scone_sim::clock::Clock;
use scone_sim::store::StoreError;
use world::{ANOTHER, MRENCLAVE, NOW, Outcome, World, code, program};

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

/// What CAS would have written in a long time.
fn grow(world: &World, count: i64) {
    let mut database = rusqlite::Connection::open(world.data().join("cas.db")).unwrap();
    let tx = database.transaction().unwrap();
    for _ in 0..count {
        let read = Record { event: Event::SessionRead, subject: "ns", who: "", measurement: "", outcome: "accepted" };
        audit::append(&tx, NOW, &read).unwrap();
    }
    tx.commit().unwrap();
}

/// The files with older entries, oldest first.
fn parts(world: &World) -> Vec<String> {
    let files = fs::read_dir(world.data()).unwrap().map(|file| file.unwrap().path().display().to_string());
    let mut parts: Vec<String> = files.filter(|path| path.ends_with(".jsonl")).collect();
    parts.sort();
    parts
}

#[test]
fn a_long_log_is_kept_in_parts_and_its_chain_goes_through_all_of_them() {
    let mut world = World::with_policies();
    let early = world.file("early.json", &world.scone_sim(&["log", "--json"]).succeeds());
    world.scone_sim(&["down"]).succeeds();
    let older = ["cas.db", "cas.head"].map(|name| (name, fs::read(world.data().join(name)).unwrap()));
    grow(&world, 3 * PART);
    // The one that serves does so each minute.
    Cas::open(&world.data(), Clock::System).unwrap().rotate_log().unwrap();
    world.crash_and_restart();
    let parts = parts(&world);
    assert_eq!(parts.len(), 2, "{parts:?}");
    let database = rusqlite::Connection::open(world.data().join("cas.db")).unwrap();
    let first: i64 = database.query_row("SELECT min(sequence) FROM audit", [], |row| row.get(0)).unwrap();
    assert_eq!(first, 2 * PART + 1);
    let total = 3 * PART + 6;
    let log = world.scone_sim(&["log"]);
    assert!(log.error().contains(&format!("{total} entries, each follows")), "{}", log.error());
    assert_eq!(log.succeeds().lines().count() as i64, total + 1);
    let newest = world.scone_sim(&["log", "--last", "3"]);
    assert!(newest.error().contains("3 entries, each follows"), "{}", newest.error());
    assert!(newest.succeeds().lines().nth(1).unwrap().starts_with(&format!("{}  ", total - 2)));
    assert_eq!(newest.succeeds().lines().count(), 4);
    // More than the database has.
    let more = (PART + 1000).to_string();
    assert_eq!(world.scone_sim(&["log", "--last", &more]).succeeds().lines().count() as i64, PART + 1001);

    // CAS still knows the entries that it has moved, and vouches for each part.
    let verify = |file: &str, options: &[&str]| world.scone(&[&["cas", "verify-audit-log", file], options].concat());
    let hash = |file: &str| {
        let text = fs::read_to_string(file).unwrap();
        text.lines().rev().nth(1).unwrap().rsplit_once("\"hash\":\"").unwrap().1[..64].to_owned()
    };
    let [first, second] = [hash(&parts[0]), hash(&parts[1])];
    verify(&early, &[]).fails(14, "more recent ones are missing");
    verify(&early, &["--last", &hash(&early)]).succeeds();
    verify(&parts[0], &["--last", &first]).succeeds();
    verify(&parts[1], &["--last", &second]).fails(15, "older ones are missing");
    verify(&parts[1], &["--last", &second, "--predecessor", &first]).succeeds();
    let whole = world.file("whole.json", &world.scone_sim(&["log", "--json"]).succeeds());
    verify(&whole, &["--last", &hash(&whole)]).succeeds();

    let genuine = fs::read_to_string(&parts[0]).unwrap();
    fs::write(&parts[0], genuine.replacen("accepted", "refused", 1)).unwrap();
    let broken = world.scone_sim(&["log"]);
    assert_eq!(broken.0.status.code(), Some(1));
    assert!(broken.error().contains("the audit log is broken at entry 1"), "{}", broken.error());
    fs::remove_file(&parts[0]).unwrap();
    let broken = world.scone_sim(&["log"]);
    assert_eq!(broken.0.status.code(), Some(1));
    assert!(broken.error().contains("broken at entry 1: it is missing"), "{}", broken.error());

    // The files say nothing for a database that was put back.
    fs::write(&parts[0], genuine).unwrap();
    world.scone_sim(&["down"]).succeeds();
    drop(database);
    older.into_iter().for_each(|(name, content)| fs::write(world.data().join(name), content).unwrap());
    world.crash_and_restart();
    world.scone(&["cas", "verify-audit-log", &parts[0], "--last", &first]).fails(18, "CAS was rolled back");
}

/// With less memory than the entries would take.
#[test]
fn a_log_of_any_length_is_printed_exported_and_checked_piece_by_piece() {
    let world = World::with_policies();
    grow(&world, 50_000);
    let whole = world.home.path().join("whole.json").display().to_string();
    let limited = |arg0: &str, words: &str| {
        let program = program(arg0);
        let (program, config) = (program.get_program(), world.home.path().join("alice/config.json"));
        let script = format!("ulimit -d 20000 && exec -a {arg0} \"$0\" {words}");
        let mut command = std::process::Command::new("bash");
        command.args(["-c", &script]).arg(program).arg(world.data()).arg(&whole).env("SCONE_CLI_CONFIG", config);
        Outcome(command.output().unwrap()).succeeds();
    };
    limited("scone-sim", "log --data \"$1\" >\"$2\"");
    limited("scone-sim", "log --json --data \"$1\" >\"$2\"");
    limited("scone", "cas verify-audit-log \"$2\"");
}

#[test]
fn refusals_cannot_fill_the_log_and_how_many_were_left_out_is_said() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("clock"), NOW.to_string()).unwrap();
    let cas = Cas::open(home.path(), Clock::File(home.path().join("clock"))).unwrap();
    let claim = Claim {
        service: "a/b/c",
        code: None,
        mrenclave: MRENCLAVE,
        signer: None,
        vouched: false,
        access: Access::default(),
    };
    for _ in 0..1234 {
        cas.configure(&claim).unwrap().unwrap_err();
    }
    cas.record(Event::CasExited).unwrap();
    cas.record(Event::CasStarted).unwrap();
    let database = rusqlite::Connection::open(home.path().join("cas.db")).unwrap();
    let mut told = Vec::new();
    audit::for_each::<StoreError>(&database, home.path(), 1000, |entry| {
        told.push(format!("{} {} {}", entry.sequence, entry.event, entry.outcome));
        Ok(())
    })
    .unwrap();
    assert_eq!(told.len(), 4, "{told:?}");
    assert_eq!(told[1], "1001 refusals left out refused: 234 more");
    assert!(told[2].starts_with("1002 CAS exited accepted"), "{told:?}");
    assert!(told[3].starts_with("1003 CAS started accepted"), "{told:?}");
}
