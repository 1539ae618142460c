//! A sealed volume's table of contents, from whoever has the volume's key: nothing in it leads out of the volume, and what is
//! found on a disk, from whoever has not, opens no volume.
#![no_main]

use std::fs;
use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use scone_protocol::{Secret, VolumeGrant, hex};
use scone_run::volume::Volume;
use scone_run::volume::manifest::Manifest;

fuzz_target!(|bytes: &[u8]| {
    if let Some(manifest) = Manifest::decode(bytes) {
        for path in manifest.entries.keys() {
            use std::os::unix::ffi::OsStrExt;
            let path = Path::new(std::ffi::OsStr::from_bytes(&path.0));
            assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
        }
        let written = manifest.encode().expect("what was read can be written");
        assert_eq!(Manifest::decode(&written).as_ref(), Some(&manifest));
    }

    let (sealed, plain) = (tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    // Named by its own hash, so that only the encryption can tell.
    let tag = scone_run::volume::tag_of(bytes);
    fs::write(sealed.path().join(format!("{tag}.manifest")), bytes).unwrap();
    let grant = VolumeGrant {
        session: "s".into(),
        name: "v".into(),
        path: "/v".into(),
        key: Secret::new(hex(&[7; 32])),
        tag: Some(tag),
        ..VolumeGrant::default()
    };
    assert!(Volume::open(sealed.path(), plain.path(), &grant).is_err());
});
