//! Changes that timestamps cannot tell: those move with the timer tick, before Linux 6.13 at least.
//!
//! A file of its own, since it starts a process, which for a moment has the locks of all volumes that are open in this one.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use scone_protocol::{Secret, VolumeGrant, hex};
use scone_run::volume::Volume;

/// Of the same length, written out.
const ROUNDS: Range<u32> = 100..300;

/// Seals so often, each time after a change, and expects that it is seen.
fn seal_each(change: impl Fn(&Path, u32)) {
    let [sealed, plain] = [(); 2].map(|()| tempfile::tempdir_in("/dev/shm").unwrap());
    let grant = VolumeGrant {
        session: "s".into(),
        name: "v".into(),
        path: "/v".into(),
        key: Secret::new(hex(&[7; 32])),
        ..VolumeGrant::default()
    };
    let mut volume = Volume::open(sealed.path(), plain.path(), &grant).unwrap();
    for round in ROUNDS {
        change(plain.path(), round);
        let mut is_seen = false;
        let mut set_tag = |_: Option<&str>, _: &str| {
            is_seen = true;
            Ok(())
        };
        volume.seal(&mut set_tag).unwrap();
        assert!(is_seen, "round {round}");
    }
}

#[test]
fn a_change_within_one_tick_and_of_the_same_size_is_not_missed() {
    seal_each(|plain, round| fs::write(plain.join("f"), round.to_string()).unwrap());
}

#[test]
fn a_file_that_comes_within_one_tick_is_not_missed() {
    seal_each(|plain, round| fs::write(plain.join(round.to_string()), "").unwrap());
}

/// Not even fine-grained timestamps tell each of these: a directory gets that of the file.
#[test]
fn a_name_that_goes_within_one_tick_while_another_comes_is_not_missed() {
    seal_each(|plain, round| {
        let file = |name: &str, round: u32| plain.join(format!("{name}{round}"));
        if round == ROUNDS.start {
            ROUNDS.for_each(|round| ["old", "other"].iter().for_each(|name| fs::write(file(name, round), "").unwrap()));
        }
        fs::remove_file(file("old", round)).unwrap();
        fs::hard_link(file("other", round), file("new", round)).unwrap();
    });
}

// Where timestamps are fine-grained (Linux 6.13), they tell most of it. Those of a ramfs never are. Alone in a PID namespace, as
// in use: where not all mappings can be seen, every file is read anyway.
#[test]
fn nor_is_any_of_it_missed_where_no_timestamp_tells() {
    let on_ramfs = r#"mount -t ramfs ramfs /dev/shm && exec "$0" within_one_tick"#;
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--map-root-user", "--pid", "--fork", "--mount-proc", "sh", "-c", on_ramfs])
        .arg(std::env::current_exe().unwrap());
    let output = unshare.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("3 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
