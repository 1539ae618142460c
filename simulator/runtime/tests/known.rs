//! What a volume knows of files that it does not read again. It relies on that only where every process can be asked what it
//! has mapped: in use the runtime has a PID namespace of its own, and so have these tests. In the others, a neighbour's process
//! that does not say makes it read every file at every seal.

use std::fs;
use std::path::Path;
use std::process::Command;

use scone_protocol::{Secret, VolumeGrant, hex};
use scone_run::volume::Volume;
use tempfile::TempDir;

#[test]
fn what_is_known_of_files_is_true() {
    let mut inside = Command::new("unshare");
    inside.args(["--map-root-user", "--pid", "--fork", "--mount-proc"]).arg(std::env::current_exe().unwrap());
    let output = inside.args(["--ignored", "--test-threads=1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("ok. 1 passed"), "{said}");
}

fn memory() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap()
}

/// Opens the volume, which then is in the directory returned.
fn open(sealed: &Path, tag: &Option<String>) -> (Volume, TempDir) {
    let plain = memory();
    let grant = VolumeGrant {
        session: "s".into(),
        name: "v".into(),
        path: "/v".into(),
        key: Secret::new(hex(&[7; 32])),
        tag: tag.clone(),
        ..VolumeGrant::default()
    };
    (Volume::open(sealed, plain.path(), &grant).unwrap(), plain)
}

/// Writes and seals.
fn change(volume: &mut Volume, file: &Path, content: &str, tag: &mut Option<String>) {
    fs::write(file, content).unwrap();
    let set_tag = &mut |_: Option<&str>, new: &str| {
        *tag = Some(new.to_owned());
        Ok(())
    };
    volume.seal(set_tag).unwrap();
}

const FILES: [&str; 3] = ["a", "b", "c"];

#[test]
#[ignore = "run by the first test"]
fn what_files_have_in_common_is_kept_for_as_long_as_one_of_them_has_it_and_no_change_is_missed() {
    let (sealed, mut tag) = (memory(), None);
    let (mut volume, plain) = open(sealed.path(), &tag);
    for name in FILES {
        fs::write(plain.path().join(name), "same").unwrap();
    }
    // Restored after the others, which takes so long that their timestamps are old enough to be believed.
    fs::write(plain.path().join("large"), vec![0; 32 << 20]).unwrap();
    change(&mut volume, &plain.path().join("other"), "else", &mut tag);
    let blobs = || fs::read_dir(sealed.path()).unwrap().count() - 1;
    assert_eq!(blobs(), 3);
    drop(volume);

    // Whichever of them has come last. Nothing but its timestamps tells of the change.
    for name in FILES.iter().rev() {
        let (mut volume, plain) = open(sealed.path(), &tag);
        change(&mut volume, &plain.path().join(name), "else", &mut tag);
    }
    assert_eq!(blobs(), 2, "what nobody has any more has gone");
    let (_volume, plain) = open(sealed.path(), &tag);
    for name in FILES {
        assert_eq!(fs::read_to_string(plain.path().join(name)).unwrap(), "else");
    }
}
