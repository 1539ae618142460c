//! Each code is accepted once: whoever brings it, however many at a time, through whichever service, whatever the clock does.
//! What a crash leaves is in `crash.rs`; the search of all interleavings in `src/codes.rs`.

mod world;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, RwLock};

use scone_protocol::Configuration;
use scone_sim::cas::{Access, Cas, Claim, DATABASE};
use scone_sim::clock::Clock;
use scone_sim::tls::{Client, Identity};
use tempfile::TempDir;
use world::{HEADLINE, MRENCLAVE, NOW, World, code, refused};

const STEP: u64 = 30;
const CLIENTS: usize = 64;

/// A CAS in this process, its clock, and a secret that two sessions with three services ask codes of.
struct Rig {
    home: TempDir,
    cas: Cas,
    secret: String,
}

const OWNER: &str = "
secrets:
  - {name: otp, kind: binary, size: 20, export: [{session: a}, {session: b}]}
";
const IMPORTER: &str = "
secrets:
  - {name: otp, kind: binary, size: 20, import: {session: owner, secret: otp}}
security: {attestation: {one_time_password_shared_secret: \"$$SCONE::otp:base32nopad$$\"}}
";
const SERVICES: [&str; 3] = ["a/one", "a/two", "b/one"];

impl Rig {
    fn new() -> Rig {
        let home = tempfile::tempdir().unwrap();
        let cas = Cas::open(home.path(), Clock::File(put_clock(&home, NOW))).unwrap();
        let identity = Identity::generate("alice").unwrap();
        let alice = Client { key_hash: identity.key_hash.clone(), certificate: identity.certificate_pem.clone() };
        for (name, services, rest) in
            [("owner", &["show"][..], OWNER), ("a", &["one", "two"], IMPORTER), ("b", &["one"], IMPORTER)]
        {
            let service = |name: &&str| {
                format!(
                    "  - {{name: {name}, command: /p, attestation: [{{mrenclave: [{MRENCLAVE}]}}], \
                     environment: {{S: \"$$SCONE::otp:base32nopad$$\"}}}}\n"
                )
            };
            let services: String = services.iter().map(service).collect();
            let text = format!("name: {name}\nversion: \"0.3.10\"\nservices:\n{services}{rest}");
            cas.upload(&text, Some(&alice)).unwrap().unwrap();
        }
        let shown = configure(&cas, "owner/show", None).unwrap();
        Rig { secret: shown.environment["S"].expose().to_owned(), home, cas }
    }

    fn at(&self, now: u64) {
        put_clock(&self.home, now);
    }

    fn code(&self, step: u64) -> String {
        code(&self.secret, step * STEP)
    }

    /// The rows that codes have left in the database.
    fn remembered(&self) -> i64 {
        let database = rusqlite::Connection::open(self.home.path().join(DATABASE)).unwrap();
        database.query_row("SELECT count(*) FROM code", [], |row| row.get(0)).unwrap()
    }
}

fn put_clock(home: &TempDir, now: u64) -> PathBuf {
    let path = home.path().join("clock");
    fs::write(home.path().join("clock.new"), now.to_string()).unwrap();
    fs::rename(home.path().join("clock.new"), &path).unwrap();
    path
}

fn configure(cas: &Cas, service: &str, code: Option<&str>) -> Result<Configuration, Vec<String>> {
    cas.configure(&Claim {
        service,
        code,
        mrenclave: MRENCLAVE,
        signer: None,
        vouched: true,
        access: Access::default(),
    })
    .unwrap()
}

fn race(rounds: u64) {
    let rig = Rig::new();
    let brought = RwLock::new(String::new());
    let (start, end) = (Barrier::new(CLIENTS + 1), Barrier::new(CLIENTS + 1));
    let over = AtomicBool::new(false);
    let answers = Mutex::new(Vec::new());
    let mut wrong = None;
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (rig, brought, start, end, over, answers) = (&rig, &brought, &start, &end, &over, &answers);
            scope.spawn(move || {
                loop {
                    start.wait();
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    let code = brought.read().unwrap().clone();
                    let answer = configure(&rig.cas, SERVICES[client % SERVICES.len()], Some(&code));
                    answers.lock().unwrap().push(answer.map(drop));
                    end.wait();
                }
            });
        }
        // Who panicked here would leave the clients waiting: what is wrong is said when they are gone.
        wrong = (0..rounds).find_map(|round| {
            rig.at(NOW + round * STEP);
            *brought.write().unwrap() = rig.code(NOW / STEP + round);
            start.wait();
            end.wait();
            let (served, refused): (Vec<_>, Vec<_>) =
                std::mem::take(&mut *answers.lock().unwrap()).into_iter().partition(Result::is_ok);
            let used = |answer: &Result<(), Vec<String>>| answer.as_ref().is_err_and(|c| c[1].contains("already used"));
            let right = served.len() == 1 && refused.len() == CLIENTS - 1 && refused.iter().all(used);
            (!right).then(|| format!("round {round}: {} served; {refused:?}", served.len()))
        });
        over.store(true, Ordering::SeqCst);
        start.wait();
    });
    assert_eq!(wrong, None);
}

#[test]
fn of_64_clients_with_one_code_at_three_services_one_is_served() {
    race(200);
}

/// `make soak`
#[test]
#[ignore = "takes two minutes: make soak"]
fn of_64_clients_with_one_code_at_three_services_one_is_served_ten_thousand_times() {
    race(10_000);
}

#[test]
fn over_tls_of_64_clients_with_one_code_one_is_served_for_each_step_of_the_window() {
    let world = World::with_policies();
    let secret = world.secret();
    for step in [NOW - STEP, NOW, NOW + STEP] {
        let brought = code(&secret, step);
        let start = Barrier::new(CLIENTS);
        let served: usize = std::thread::scope(|scope| {
            let client = |_| {
                scope.spawn(|| {
                    let mut cas = world.connect();
                    start.wait();
                    usize::from(cas.configure("ns/otpqr-reset/otpqr", Some(&brought), MRENCLAVE, None).is_ok())
                })
            };
            let clients: Vec<_> = (0..CLIENTS).map(client).collect();
            clients.into_iter().map(|client| client.join().unwrap()).sum()
        });
        assert_eq!(served, 1, "the step at {step}");
    }
}

#[test]
fn however_the_clock_jumps_no_step_is_accepted_twice_nor_one_before_it() {
    let rig = Rig::new();
    let base = NOW / STEP;
    let mut accepted: Vec<u64> = Vec::new();
    // A fixed sequence that looks random (Knuth's multiplier), so that a failure can be repeated.
    let mut seed: u64 = 1;
    let mut draw = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for turn in 0..1000 {
        // Any second of forty steps that slowly move on, so that edges are met and most codes are old.
        let now = (base + turn / 20) * STEP + draw(40 * STEP);
        rig.at(now);
        let step = now / STEP + draw(5) - 2;
        let service = SERVICES[draw(3) as usize];
        match configure(&rig.cas, service, Some(&rig.code(step))) {
            Ok(_) => {
                assert!(step.abs_diff(now / STEP) <= 1, "step {step} at {now}");
                assert!(accepted.last().is_none_or(|last| *last < step), "step {step} after {accepted:?}");
                accepted.push(step);
            }
            Err(causes) => {
                let fresh = accepted.last().is_none_or(|last| *last < step) && step.abs_diff(now / STEP) <= 1;
                assert!(!fresh || causes[1].starts_with("Too many"), "step {step} at {now}: {causes:?}");
            }
        }
    }
    assert!(accepted.len() > 10, "{accepted:?}");
    assert_eq!(accepted.iter().collect::<BTreeSet<_>>().len(), accepted.len());
}

#[test]
fn across_a_step_edge_a_code_stays_what_it_was() {
    let rig = Rig::new();
    let edge = NOW / STEP + 10;
    let brought = rig.code(edge);
    // A second too early for the window, its first second, after it was used, its last second, a second too late.
    for (now, said) in [
        ((edge - 1) * STEP - 1, Some("invalid")),
        ((edge - 1) * STEP, None),
        (edge * STEP - 1, Some("already used")),
        (edge * STEP, Some("already used")),
        ((edge + 2) * STEP - 1, Some("already used")),
        ((edge + 2) * STEP, Some("invalid")),
    ] {
        rig.at(now);
        match (configure(&rig.cas, "a/one", Some(&brought)), said) {
            (Ok(_), None) => {}
            (Err(causes), Some(said)) => assert!(causes[1].contains(said), "{now}: {causes:?}"),
            (result, _) => panic!("{now}: {:?}", result.map(drop)),
        }
    }
}

#[test]
fn other_spellings_of_the_right_code_are_refused_before_any_look_up() {
    let rig = Rig::new();
    let right = rig.code(NOW / STEP);
    let full_width: String =
        right.bytes().map(|digit| char::from_u32(0xff10 + u32::from(digit - b'0')).unwrap()).collect();
    let spellings = [
        format!(" {right}"),
        format!("{right} "),
        format!("{right}\n"),
        format!("\t{right}"),
        format!("\u{a0}{right}"),
        format!("{} {}", &right[..3], &right[3..]),
        format!("+{right}"),
        format!("-{right}"),
        format!("0{right}"),
        format!("000000{right}"),
        format!("{right}0"),
        format!("{right}\0"),
        format!("\0{right}"),
        format!("{right}{right}"),
        format!("{right}@{right}"),
        right[..5].to_owned(),
        String::new(),
        full_width,
    ];
    // With the memory of codes out of reach, whoever looked there would fail.
    let memory = |rename: &str| {
        let database = rusqlite::Connection::open(rig.home.path().join(DATABASE)).unwrap();
        database.execute_batch(rename).unwrap();
    };
    memory("ALTER TABLE code RENAME TO elsewhere");
    for spelling in &spellings {
        let invalid = "The given One-time Password is invalid. Please try again.";
        refused(configure(&rig.cas, "a/one", Some(spelling)), &[HEADLINE, invalid]);
    }
    memory("ALTER TABLE elsewhere RENAME TO code");
    assert_eq!(rig.remembered(), 0, "no try was counted");
    configure(&rig.cas, "a/one", Some(&right)).unwrap();
    assert_eq!(rig.remembered(), 1);
}

#[test]
fn an_unknown_session_and_an_unknown_service_are_answered_alike_with_any_code() {
    let rig = Rig::new();
    let right = rig.code(NOW / STEP);
    for brought in [None, Some(right.as_str()), Some("000000"), Some("no code")] {
        let session = configure(&rig.cas, "nobody/one", brought).err();
        let service = configure(&rig.cas, "a/nobody", brought).err();
        // The answer on the wire is these causes and nothing else (`Response::Refused`).
        assert_eq!(session, service);
        assert_eq!(session.unwrap()[1], "Session or service does not exist");
    }
    assert_eq!(rig.remembered(), 0);
    configure(&rig.cas, "a/one", Some(&right)).unwrap();
}

#[test]
fn wrong_codes_at_one_service_make_all_wait_until_the_time_is_up() {
    let rig = Rig::new();
    let near: Vec<String> = (NOW / STEP - 1..=NOW / STEP + 1).map(|step| rig.code(step)).collect();
    let wrong = (0..).map(|n| format!("{n:06}")).find(|code| !near.contains(code)).unwrap();
    for turn in 0..5 {
        let causes = configure(&rig.cas, SERVICES[turn % 3], Some(&wrong)).unwrap_err();
        assert!(causes[1].contains("is invalid"), "{causes:?}");
    }
    for service in SERVICES {
        let causes = configure(&rig.cas, service, Some(&near[1])).unwrap_err();
        assert_eq!(causes[1], "Too many wrong One-time Passwords were given. Please try again in 30 seconds.");
    }
    // Time lifts it, too; that waiting tries were not looked at shows in the code still being good.
    rig.at(NOW + 29);
    assert!(configure(&rig.cas, "b/one", Some(&near[1])).unwrap_err()[1].contains("in 1 seconds"));
    rig.at(NOW + 30);
    configure(&rig.cas, "b/one", Some(&near[1])).unwrap();
}

#[test]
fn a_database_restored_from_an_older_copy_is_refused() {
    let mut world = World::with_policies();
    let reset = "ns/otpqr-reset/otpqr";
    let used = code(&world.secret(), NOW);
    // Consistent copies: the process is stopped meanwhile.
    let stop = |world: &mut World| {
        world.process.kill().unwrap();
        world.process.wait().unwrap();
    };
    let files = ["cas.db", "cas.db-wal"];
    stop(&mut world);
    for file in files {
        fs::copy(world.data().join(file), world.home.path().join(file)).unwrap();
    }
    world.crash_and_restart();
    world.configure(reset, Some(&used), MRENCLAVE).unwrap();
    stop(&mut world);
    for file in files {
        fs::copy(world.home.path().join(file), world.data().join(file)).unwrap();
    }
    let head = world.data().join("cas.head");
    let refusal = world.scone_sim(&["up"]);
    world.scone_sim(&["down"]).succeeds();
    refusal.fails(1, "the database was restored from an older copy: it lacks audit entry");
    let hint = format!("hint: scone-sim adopt --data '{}'", world.data().display());
    assert!(refusal.error().contains(&hint), "{}", refusal.error());
    // Taking the file away does not help.
    fs::remove_file(head).unwrap();
    world.scone_sim(&["up"]).fails(1, "whether the database beside it is an older copy cannot be told");

    // Who takes it back all the same has it as it was then: what was accepted since is accepted once more.
    world.scone_sim(&["adopt"]).succeeds();
    world.crash_and_restart();
    world.configure(reset, Some(&used), MRENCLAVE).unwrap();
    world.configure(reset, Some(&used), MRENCLAVE).unwrap_err();
}

#[test]
fn without_the_head_that_belongs_to_it_a_database_is_refused() {
    let mut world = World::with_policies();
    world.scone_sim(&["adopt"]).fails(3, "already running");
    let head = world.data().join("cas.head");
    for (what, damage) in [
        ("is missing", (|head| fs::remove_file(head)) as fn(&PathBuf) -> std::io::Result<()>),
        ("is empty", |head| fs::write(head, "")),
        ("is damaged", |head| fs::write(head, "7")),
    ] {
        world.process.kill().unwrap();
        world.process.wait().unwrap();
        damage(&head).unwrap();
        for _ in 0..2 {
            let refusal = world.scone_sim(&["up"]);
            world.scone_sim(&["down"]).succeeds();
            refusal.fails(1, &format!("'{}' {what}", head.display()));
            let hint = format!("hint: scone-sim adopt --data '{}'", world.data().display());
            assert!(refusal.error().contains(&hint), "{}", refusal.error());
        }
        world.scone_sim(&["adopt"]).succeeds();
        world.crash_and_restart();
        world.scone(&["session", "read", "ns"]).succeeds();
    }
}

/// What cannot be noticed, as docs/simulator-protocol.md says it ("Older copies").
#[test]
fn who_restores_the_whole_data_directory_is_revealed_by_an_older_export_of_the_audit_log_alone() {
    let mut world = World::with_policies();
    let reset = "ns/otpqr-reset/otpqr";
    let used = code(&world.secret(), NOW);
    let files = ["cas.db", "cas.db-wal", "cas.head"];
    let stop = |world: &mut World| {
        world.process.kill().unwrap();
        world.process.wait().unwrap();
    };
    stop(&mut world);
    for file in files {
        fs::copy(world.data().join(file), world.home.path().join(file)).unwrap();
    }
    world.crash_and_restart();
    world.configure(reset, Some(&used), MRENCLAVE).unwrap();
    let kept = world.file("kept.json", &world.scone_sim(&["log", "--json"]).succeeds());
    world.scone(&["cas", "verify-audit-log", &kept]).succeeds();
    stop(&mut world);
    for file in files {
        fs::copy(world.home.path().join(file), world.data().join(file)).unwrap();
    }

    world.crash_and_restart();
    world.scone(&["cas", "verify-audit-log", &kept]).fails(18, "CAS was rolled back");
    // The code is good once more, as long as it is in the window.
    world.configure(reset, Some(&used), MRENCLAVE).unwrap();
    world.configure(reset, Some(&used), MRENCLAVE).unwrap_err();
    // Its log is whole, and does not know; that it has as many entries again does not hide it.
    let new = world.file("new.json", &world.scone_sim(&["log", "--json"]).succeeds());
    world.scone(&["cas", "verify-audit-log", &new]).succeeds();
    world.scone(&["cas", "verify-audit-log", &kept]).fails(18, "CAS was rolled back");
}
