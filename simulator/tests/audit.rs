//! The audit log: what it tells, what it never tells, and who notices when it was tampered with.

mod world;

use std::fs;

use world::{ANOTHER, MRENCLAVE, NOW, World, code};

#[test]
fn the_audit_log_tells_what_happened_and_no_secret_and_can_be_checked() {
    let world = World::with_policies();
    let secret = world.secret();
    let now = code(&secret, NOW);
    world.configure("ns/otpqr-reset/otpqr", Some(&now), MRENCLAVE).unwrap();
    world.configure("ns/otpqr-reset/otpqr", Some(&now), MRENCLAVE).unwrap_err();
    world.configure("ns/otpqr/otpqr", None, ANOTHER).unwrap_err();
    world.configure("ns/otpqr/nothing", None, MRENCLAVE).unwrap_err();
    let log = world.scone_sim(&["log"]).succeeds();
    for told in [
        "CAS started",
        "session created\tns/otpqr\taccepted",
        "code checked\tns/otpqr-reset/otpqr\taccepted: time step",
        "refused: code already used",
        &format!("refused: unexpected mrenclave {ANOTHER}"),
        "ns/otpqr/nothing\trefused: unknown service",
    ] {
        assert!(log.contains(told), "{told}\n{log}");
    }
    assert!(!log.contains(&now) && !log.contains(&secret), "{log}");
    for file in ["cas.pid", "endpoints.json"] {
        assert!(!fs::read_to_string(world.data().join(file)).unwrap().contains(&secret));
    }

    let database = rusqlite::Connection::open(world.data().join("cas.db")).unwrap();
    database.execute("UPDATE audit SET outcome = 'accepted' WHERE sequence = 3", []).unwrap();
    let broken = world.scone_sim(&["log"]);
    assert_eq!(broken.0.status.code(), Some(1));
    assert!(broken.error().contains("the audit log is broken at entry 3"), "{}", broken.error());
}

