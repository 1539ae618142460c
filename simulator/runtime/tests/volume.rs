//! Sealed volumes against whoever has the disk: only the state whose tag CAS holds is opened, whatever was done to the files
//! and wherever a seal was cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};
use scone_protocol::{Secret, VolumeGrant, hex};
use scone_run::volume::{Error, Volume, open_ephemeral};
use tempfile::TempDir;

/// A disk, and the memory of a CAS.
struct Disk {
    directory: TempDir,
    name: &'static str,
    tag: Option<String>,
}

/// An open volume and the program's view of it.
struct Opened {
    volume: Volume,
    plain: TempDir,
}

/// Plain files are in memory in use, too; sealed ones are, since nothing here depends on what a sync does.
fn memory() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap()
}

impl Disk {
    fn new() -> Disk {
        Disk { directory: memory(), name: "v", tag: None }
    }

    /// A disk with a volume that was sealed with what `fill` puts there.
    fn with(fill: impl FnOnce(&Path)) -> Disk {
        let mut disk = Disk::new();
        let mut opened = disk.open().unwrap();
        disk.seal(&mut opened).unwrap();
        fill(opened.plain.path());
        disk.seal(&mut opened).unwrap();
        disk
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn grant(&self) -> VolumeGrant {
        VolumeGrant {
            session: "ns/s".into(),
            name: self.name.into(),
            path: "/v".into(),
            key: Secret::new(hex(&[7; 32])),
            tag: self.tag.clone(),
            ..VolumeGrant::default()
        }
    }

    fn open(&self) -> Result<Opened, Error> {
        let plain = memory();
        Volume::open(self.path(), plain.path(), &self.grant()).map(|volume| Opened { volume, plain })
    }

    /// Opens a copy that is never sealed. CAS answers with what this returns, one after the other.
    fn copy(&self, mut read_tag: impl FnMut() -> Option<String>) -> Result<TempDir, Error> {
        let plain = memory();
        open_ephemeral(self.path(), plain.path(), &self.grant(), &mut || Ok(read_tag())).map(|()| plain)
    }

    /// Holds the lock of a program that restores the state of that tag, until the file is closed.
    fn hold(&self, tag: &str) -> fs::File {
        let manifest = fs::File::open(self.path().join(format!("{tag}.manifest"))).unwrap();
        flock(&manifest, FlockOperation::NonBlockingLockShared).unwrap();
        manifest
    }

    fn refusal(&self) -> String {
        match self.open() {
            Ok(_) => panic!("the volume was opened"),
            Err(error) => error.to_string(),
        }
    }

    fn seal(&mut self, opened: &mut Opened) -> Result<(), Error> {
        let tag = &mut self.tag;
        opened.volume.seal(&mut |old, new| {
            assert_eq!(old, tag.as_deref());
            *tag = Some(new.to_owned());
            Ok(())
        })
    }

    fn names(&self) -> BTreeSet<String> {
        names(self.path())
    }

    fn find(&self, end: &str) -> PathBuf {
        let names = self.names();
        let mut found = names.iter().filter(|name| name.ends_with(end));
        let path = self.path().join(found.next().unwrap());
        assert_eq!(found.next(), None);
        path
    }
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn an_older_copy_is_refused_and_the_current_one_opens() {
    let mut disk = Disk::with(|plain| fs::write(plain.join("f"), "old").unwrap());
    let copies = memory();
    let copy = |from: &Path, to: &Path| {
        for name in names(from) {
            fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
    };
    copy(disk.path(), copies.path());
    let mut opened = disk.open().unwrap();
    fs::write(opened.plain.path().join("f"), "new").unwrap();
    disk.seal(&mut opened).unwrap();
    drop(opened);

    let current = memory();
    for name in disk.names() {
        fs::rename(disk.path().join(&name), current.path().join(&name)).unwrap();
    }
    copy(copies.path(), disk.path());
    assert_eq!(disk.refusal(), "The FSPF tag is not fresh - suspected replay attack");

    copy(current.path(), disk.path());
    let opened = disk.open().unwrap();
    assert_eq!(fs::read(opened.plain.path().join("f")).unwrap(), b"new");
}

#[test]
fn a_removed_file_is_named_and_an_emptied_directory_never_starts_anew() {
    let disk = Disk::with(|plain| fs::write(plain.join("f"), "x").unwrap());
    let (manifest, blob) = (disk.find(".manifest"), disk.find(".blob"));
    fs::remove_file(&blob).unwrap();
    let name = blob.file_name().unwrap().to_str().unwrap();
    assert_eq!(disk.refusal(), format!("file system protection file was removed: {name} (volume /v)"));
    fs::remove_file(&manifest).unwrap();
    let name = manifest.file_name().unwrap().to_str().unwrap();
    assert_eq!(disk.refusal(), format!("file system protection file was removed: {name} (volume /v)"));
    assert_eq!(disk.names(), BTreeSet::new());
}

#[test]
fn no_bit_of_any_file_that_the_current_state_needs_can_be_flipped() {
    let disk = Disk::with(|plain| {
        fs::write(plain.join("f"), "content").unwrap();
        fs::write(plain.join("empty"), "").unwrap();
        symlink("f", plain.join("link")).unwrap();
        fs::create_dir(plain.join("d")).unwrap();
    });
    let names = disk.names();
    assert_eq!(names.len(), 3);
    for name in names {
        let path = disk.path().join(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        for at in 0..good.len() {
            for bit in 0..8 {
                bad[at] = good[at] ^ (1 << bit);
                fs::write(&path, &bad).unwrap();
                let refusal = disk.refusal();
                assert!(refusal.starts_with("Verification of file chunk 0 "), "bit {bit} of byte {at}: {refusal}");
            }
            bad[at] = good[at];
        }
        fs::write(&path, &good).unwrap();
    }
    disk.open().unwrap();
}

/// A disk with a volume so large that what changes is listed in a manifest of its own, which rests on the one that lists all.
fn large_disk() -> (Disk, PathBuf, PathBuf) {
    let mut disk = Disk::with(|plain| {
        for file in 0..200 {
            fs::write(plain.join(file.to_string()), file.to_string()).unwrap();
        }
    });
    let whole = disk.find(".manifest");
    let mut opened = disk.open().unwrap();
    fs::write(opened.plain.path().join("7"), "changed").unwrap();
    fs::remove_file(opened.plain.path().join("8")).unwrap();
    disk.seal(&mut opened).unwrap();
    let differences = disk.path().join(format!("{}.manifest", disk.tag.as_ref().unwrap()));
    assert!(differences != whole && differences.metadata().unwrap().len() * 10 < whole.metadata().unwrap().len());
    (disk, whole, differences)
}

#[test]
fn a_manifest_of_differences_is_worth_nothing_without_the_one_it_rests_on() {
    let (mut disk, whole, differences) = large_disk();
    for path in [&whole, &differences] {
        let good = fs::read(path).unwrap();
        for at in (0..good.len()).step_by(97).chain([good.len() - 1]) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(path, bad).unwrap();
            assert!(disk.refusal().starts_with("Verification of file chunk 0 "), "byte {at}");
        }
        fs::write(path, good).unwrap();
    }
    let away = whole.with_extension("away");
    fs::rename(&whole, &away).unwrap();
    assert!(disk.refusal().starts_with("file system protection file was removed: "));
    fs::rename(&away, &whole).unwrap();
    fs::rename(&differences, &away).unwrap();
    assert_eq!(disk.refusal(), "The FSPF tag is not fresh - suspected replay attack");
    fs::rename(&away, &differences).unwrap();

    let mut opened = disk.open().unwrap();
    let plain = opened.plain.path().to_owned();
    assert_eq!(fs::read(plain.join("7")).unwrap(), b"changed");
    assert!(!plain.join("8").exists());
    assert_eq!(fs::read_dir(&plain).unwrap().count(), 199);
    fs::rename(&whole, &away).unwrap();
    assert!(matches!(disk.seal(&mut opened).unwrap_err(), Error::Removed(_)));
    fs::rename(&away, &whole).unwrap();
    // So much has changed that everything is listed anew; what was there before goes.
    for file in 100..200 {
        fs::write(plain.join(file.to_string()), "changed").unwrap();
    }
    disk.seal(&mut opened).unwrap();
    assert!(!whole.exists() && !differences.exists());
    disk.find(".manifest");
    disk.open().err().unwrap();
    drop(opened);
    assert_eq!(fs::read(disk.open().unwrap().plain.path().join("150")).unwrap(), b"changed");
}

#[test]
fn no_byte_can_be_altered_cut_off_or_added() {
    const CHUNK: usize = 64 * 1024;
    let disk = Disk::with(|plain| fs::write(plain.join("f"), vec![b'x'; CHUNK + 1]).unwrap());
    let blob = disk.find(".blob");
    let good = fs::read(&blob).unwrap();
    let second = 16 + CHUNK + 16;
    assert_eq!(good.len(), second + 1 + 16);
    let failed = |chunk: usize| {
        let (from, to) = (chunk * CHUNK, (chunk + 1) * CHUNK - 1);
        format!("Verification of file chunk {chunk} (bytes {from} to {to}) of file /v/f failed.")
    };
    // The key's ID, a first chunk and its tag, the last chunk and its tag.
    for (at, chunk) in [(0, 0), (16, 0), (second - 1, 0), (second, 1), (good.len() - 1, 1)] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&blob, bad).unwrap();
        assert_eq!(disk.refusal(), failed(chunk), "byte {at}");
    }
    for (length, chunk) in [(0, 0), (15, 0), (16, 0), (17, 0), (second, 0), (second + 16, 1)] {
        fs::write(&blob, &good[..length]).unwrap();
        assert_eq!(disk.refusal(), failed(chunk), "cut to {length}");
    }
    fs::write(&blob, [&good[..], b"x"].concat()).unwrap();
    assert_eq!(disk.refusal(), failed(1));
    fs::write(&blob, [&good[..second], &good[16..]].concat()).unwrap();
    assert_eq!(disk.refusal(), failed(1));
    fs::write(&blob, &good).unwrap();

    let manifest = disk.find(".manifest");
    let good = fs::read(&manifest).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x80;
        fs::write(&manifest, bad).unwrap();
        assert!(disk.refusal().starts_with("Verification of file chunk 0 "), "byte {at}");
    }
    fs::remove_file(&manifest).unwrap();
    mknodat(CWD, &manifest, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    assert!(disk.refusal().starts_with("Verification of file chunk 0 "));
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, &good).unwrap();
    disk.open().unwrap();
}

#[test]
fn a_blob_cannot_stand_in_for_another_of_the_same_volume() {
    let disk = Disk::with(|plain| {
        fs::write(plain.join("a"), "a").unwrap();
        fs::write(plain.join("b"), "b").unwrap();
    });
    let blobs: Vec<_> = disk.names().into_iter().filter(|name| name.ends_with(".blob")).collect();
    fs::copy(disk.path().join(&blobs[0]), disk.path().join(&blobs[1])).unwrap();
    assert!(disk.refusal().starts_with("Verification of file chunk 0 "));
}

#[test]
fn one_volume_does_not_open_as_another_of_the_same_key() {
    let mut disk = Disk::with(|plain| fs::write(plain.join("f"), "x").unwrap());
    disk.name = "w";
    assert!(disk.refusal().starts_with("Verification of file chunk 0 "));
    // Not even as what a first start left.
    fs::remove_file(disk.find(".blob")).unwrap();
    disk.tag = None;
    assert!(disk.refusal().contains("is not part of this volume"));
}

#[test]
fn a_seal_cut_off_before_cas_took_the_tag_never_happened() {
    let mut disk = Disk::with(|plain| fs::write(plain.join("f"), "old").unwrap());
    let before = disk.names();
    let mut opened = disk.open().unwrap();
    fs::write(opened.plain.path().join("f"), "new").unwrap();
    let path = disk.path().to_owned();
    let sealed = opened.volume.seal(&mut |old, new| {
        // Both states are complete at this moment, so either answer would do.
        assert!(path.join(format!("{}.manifest", old.unwrap())).exists());
        assert!(path.join(format!("{new}.manifest")).exists());
        Err(vec!["no".into()])
    });
    assert!(matches!(sealed, Err(Error::TagRefused(_))));
    drop(opened);
    fs::write(disk.path().join(format!("{}.blob.tmp", "ab".repeat(16))), "a draft").unwrap();
    assert!(before.is_subset(&disk.names()) && before != disk.names());

    let mut opened = disk.open().unwrap();
    assert_eq!(fs::read(opened.plain.path().join("f")).unwrap(), b"old");
    fs::write(opened.plain.path().join("f"), "newer").unwrap();
    disk.seal(&mut opened).unwrap();
    assert_eq!(disk.names().len(), 2);
}

#[test]
fn what_a_seal_left_that_had_no_manifest_yet_goes_at_the_next_opening() {
    let disk = Disk::with(|plain| fs::write(plain.join("f"), "old").unwrap());
    let before = disk.names();
    let id = "ab".repeat(16);
    for left in [format!("{id}.blob"), format!("{id}.blob.tmp"), format!("{id}.manifest.tmp")] {
        fs::write(disk.path().join(left), "it may have filled the disk").unwrap();
    }
    disk.open().unwrap();
    assert_eq!(disk.names(), before);
}

#[test]
fn a_tag_that_reaches_cas_after_the_next_runtime_has_opened_the_volume_leaves_it_usable() {
    let mut disk = Disk::with(|plain| fs::write(plain.join("f"), "old").unwrap());
    let mut killed = disk.open().unwrap();
    fs::write(killed.plain.path().join("f"), "new").unwrap();
    let mut on_its_way = None;
    let sealed = killed.volume.seal(&mut |_, new| {
        on_its_way = Some(new.to_owned());
        Err(vec!["killed".into()])
    });
    assert!(sealed.is_err());
    drop(killed);
    let mut opened = disk.open().unwrap();
    assert_eq!(fs::read(opened.plain.path().join("f")).unwrap(), b"old");
    disk.tag = on_its_way;
    fs::write(opened.plain.path().join("f"), "too late").unwrap();
    assert!(opened.volume.seal(&mut |_, _| Err(vec!["stale".into()])).is_err());
    drop(opened);

    let mut opened = disk.open().unwrap();
    assert_eq!(fs::read(opened.plain.path().join("f")).unwrap(), b"new");
    fs::write(opened.plain.path().join("f"), "newest").unwrap();
    disk.seal(&mut opened).unwrap();
    assert_eq!(disk.names().len(), 2);
}

#[test]
fn a_seal_whose_tag_cas_took_counts_though_nobody_heard_of_it() {
    let mut disk = Disk::with(|plain| fs::write(plain.join("f"), "old").unwrap());
    let mut opened = disk.open().unwrap();
    fs::write(opened.plain.path().join("f"), "new").unwrap();
    let mut taken = None;
    let sealed = opened.volume.seal(&mut |_, new| {
        taken = Some(new.to_owned());
        Err(vec!["connection lost".into()])
    });
    assert!(sealed.is_err());
    drop(opened);
    disk.tag = taken;
    let mut opened = disk.open().unwrap();
    assert_eq!(fs::read(opened.plain.path().join("f")).unwrap(), b"new");
    fs::write(opened.plain.path().join("f"), "newer").unwrap();
    disk.seal(&mut opened).unwrap();
    // One manifest, one blob: what the old states needed has gone.
    assert_eq!(disk.names().len(), 2);
}

#[test]
fn a_first_start_that_was_cut_off_is_made_again_but_only_in_its_own_directory() {
    let mut disk = Disk::new();
    let mut opened = disk.open().unwrap();
    assert!(opened.volume.seal(&mut |_, _| Err(vec![])).is_err());
    drop(opened);
    assert_eq!(disk.names().len(), 1);

    for foreign in ["once".to_owned(), format!("{}.blob", "ab".repeat(16)), format!("{}.manifest", "ab".repeat(16))] {
        fs::write(disk.path().join(&foreign), "x").unwrap();
        let refusal = format!(
            "'{foreign} (volume /v)' is not part of this volume, which was never used: its directory must be empty"
        );
        assert_eq!(disk.refusal(), refusal);
        fs::remove_file(disk.path().join(&foreign)).unwrap();
    }
    let mut opened = disk.open().unwrap();
    disk.seal(&mut opened).unwrap();
    assert_eq!(disk.names().len(), 1);
}

#[test]
fn a_second_opener_is_refused_for_as_long_as_the_first_has_the_volume() {
    let disk = Disk::with(|_| ());
    let first = disk.open().unwrap();
    assert_eq!(disk.refusal(), "the volume is in use by another program");
    drop(first);
    disk.open().unwrap();
}

// Copies that are never sealed, opened beside the one program that seals

#[test]
fn a_copy_is_made_of_what_cas_means_and_refused_as_the_volume_would_be() {
    let mut disk = Disk::with(|plain| fs::write(plain.join("f"), "old").unwrap());
    let old = disk.tag.clone();
    let mut opened = disk.open().unwrap();
    fs::write(opened.plain.path().join("f"), "new").unwrap();
    disk.seal(&mut opened).unwrap();
    let refusal = |tag: &Option<String>| disk.copy(|| tag.clone()).unwrap_err().to_string();
    assert_eq!(refusal(&old), "The FSPF tag is not fresh - suspected replay attack");
    assert_eq!(refusal(&Some("../f".into())), "CAS granted an unusable volume tag");
    assert!(refusal(&None).contains("is not part of this volume, which was never used"));
    let (blob, away) = (disk.find(".blob"), disk.path().with_extension("away"));
    fs::rename(&blob, &away).unwrap();
    assert!(refusal(&disk.tag).starts_with("file system protection file was removed: "));
    fs::rename(&away, &blob).unwrap();
    let untold = &mut || Err(vec!["no".to_owned()]);
    let causes = open_ephemeral(disk.path(), memory().path(), &disk.grant(), untold).unwrap_err().causes();
    assert_eq!(causes, ["CAS did not tell the volume's tag", "no"]);

    // Told what it was, and then what it is, since it has been sealed meanwhile.
    let mut told = [old, disk.tag.clone()].into_iter();
    let copy = disk.copy(|| told.next().unwrap()).unwrap();
    assert_eq!(fs::read(copy.path().join("f")).unwrap(), b"new");
    assert_eq!(disk.refusal(), "the volume is in use by another program");
}

#[test]
fn an_older_copy_is_refused_though_the_volume_is_sealed_elsewhere_all_the_time() {
    let disk = Disk::with(|plain| fs::write(plain.join("f"), "old").unwrap());
    let mut asked = 0u128;
    let refused = disk.copy(|| {
        asked += 1;
        Some(format!("{asked:032x}"))
    });
    assert!(matches!(refused, Err(Error::NotFresh)));
    assert!(asked > 10, "asked {asked} times only");
}

#[test]
fn who_opens_a_copy_writes_and_deletes_nothing() {
    let mut disk = Disk::with(|plain| fs::write(plain.join("f"), "x").unwrap());
    // What an interrupted seal leaves, after its manifest and before.
    let mut killed = disk.open().unwrap();
    fs::write(killed.plain.path().join("f"), "killed").unwrap();
    killed.volume.seal(&mut |_, _| Err(vec!["killed".into()])).unwrap_err();
    let id = "ab".repeat(16);
    for left in [format!("{id}.blob"), format!("{id}.blob.tmp"), format!("{id}.manifest.tmp")] {
        fs::write(disk.path().join(left), "left").unwrap();
    }
    let never_used = Disk::new();
    for disk in [&disk, &never_used] {
        let found = || (disk.names(), disk.path().metadata().unwrap().mtime_nsec());
        let before = found();
        let copy = disk.copy(|| disk.tag.clone()).unwrap();
        fs::write(copy.path().join("g"), "mine").unwrap();
        assert_eq!(found(), before);
    }
    assert_eq!(disk.names().len(), 7);
    drop(killed);
    let mut opened = disk.open().unwrap();
    assert_eq!(names(opened.plain.path()), BTreeSet::from(["f".to_owned()]));
    fs::write(opened.plain.path().join("f"), "y").unwrap();
    disk.seal(&mut opened).unwrap();
    assert_eq!(disk.names().len(), 2);
}

/// What a seal replaces, with its manifest alone or resting on another one, or as left by a runtime that was killed once CAS had
/// taken its tag: nothing of it goes for as long as somebody restores it, and meanwhile the new state opens.
#[test]
fn a_seal_waits_for_who_restores_what_it_deletes() {
    let small = Disk::with(|plain| ["f", "g"].iter().for_each(|name| fs::write(plain.join(name), *name).unwrap()));
    let (large, ..) = large_disk();
    let mut interrupted =
        Disk::with(|plain| ["f", "g"].iter().for_each(|name| fs::write(plain.join(name), *name).unwrap()));
    let (held, mut taken) = (interrupted.tag.clone().unwrap(), None);
    let mut killed = interrupted.open().unwrap();
    fs::write(killed.plain.path().join("f"), "changed").unwrap();
    let sealed = killed.volume.seal(&mut |_, new| {
        taken = Some(new.to_owned());
        Err(vec!["killed".into()])
    });
    assert!(matches!(sealed, Err(Error::TagRefused(_))));
    drop(killed);
    interrupted.tag = taken;

    for (mut disk, held) in [(small, None), (large, None), (interrupted, Some(held))] {
        let held = held.or(disk.tag.clone()).unwrap();
        let lock = disk.hold(&held);
        let mut opened = disk.open().unwrap();
        let before = disk.names();
        for file in names(opened.plain.path()) {
            fs::write(opened.plain.path().join(&file), format!("new {file}")).unwrap();
        }
        let watcher = {
            let (path, grant) = (disk.path().to_owned(), disk.grant());
            let manifests = |names: &BTreeSet<String>| -> BTreeSet<String> {
                names.iter().filter_map(|name| name.strip_suffix(".manifest").map(str::to_owned)).collect()
            };
            let (known, held) = (manifests(&before), held.clone());
            thread::spawn(move || {
                let new = loop {
                    let new: BTreeSet<_> = manifests(&names(&path)).difference(&known).cloned().collect();
                    if let Some(new) = new.into_iter().next() {
                        break new;
                    }
                    thread::sleep(Duration::from_millis(1));
                };
                // Several times what the rest of the seal takes.
                thread::sleep(Duration::from_millis(300));
                // Other manifests may go: they have been read.
                let needed = |name: &&String| name.ends_with(".blob") || name.starts_with(&held);
                let now = names(&path);
                assert!(before.iter().filter(needed).all(|name| now.contains(name)), "deleted while it was restored");
                let copy = memory();
                open_ephemeral(&path, copy.path(), &grant, &mut || Ok(Some(new.clone()))).unwrap();
                drop(lock);
                Instant::now()
            })
        };
        disk.seal(&mut opened).unwrap();
        let ended = Instant::now();
        assert!(watcher.join().unwrap() <= ended, "it did not wait");
        assert!(!disk.path().join(format!("{held}.manifest")).exists());
        assert_eq!(disk.names().len(), 1 + names(opened.plain.path()).len());
    }
}

#[test]
fn a_seal_that_waits_in_vain_says_so_and_what_it_sealed_is_the_volumes_state() {
    let mut disk = Disk::with(|plain| fs::write(plain.join("f"), "old").unwrap());
    let lock = disk.hold(disk.tag.as_ref().unwrap());
    let mut opened = disk.open().unwrap();
    fs::write(opened.plain.path().join("f"), "new").unwrap();
    let (began, error) = (Instant::now(), disk.seal(&mut opened).unwrap_err());
    let says = "the changes are sealed, but another program has been opening the state before them for 10 seconds: end it first";
    assert_eq!(error.to_string(), says);
    assert!((10..20).contains(&began.elapsed().as_secs()));
    drop(opened);

    // Who comes next need not wait before it seals.
    let mut opened = disk.open().unwrap();
    assert_eq!(fs::read(opened.plain.path().join("f")).unwrap(), b"new");
    drop(lock);
    fs::write(opened.plain.path().join("f"), "newer").unwrap();
    disk.seal(&mut opened).unwrap();
    assert_eq!(disk.names().len(), 2);
}

#[test]
fn files_that_were_there_before_the_volume_are_refused() {
    let disk = Disk::with(|_| ());
    let plain = memory();
    fs::write(plain.path().join("planted"), "x").unwrap();
    let error = Volume::open(disk.path(), plain.path(), &disk.grant()).err().unwrap();
    assert_eq!(error.to_string(), "'planted' is in the volume's path before the volume is opened");
    let read_tag = &mut || Ok(disk.tag.clone());
    let error = open_ephemeral(disk.path(), plain.path(), &disk.grant(), read_tag).unwrap_err();
    assert_eq!(error.to_string(), "'planted' is in the volume's path before the volume is opened");
}

#[test]
fn a_sealed_file_that_goes_while_the_volume_is_open_stops_the_next_seal() {
    let mut disk = Disk::with(|plain| fs::write(plain.join("f"), "x").unwrap());
    for end in [".blob", ".manifest"] {
        let mut opened = disk.open().unwrap();
        let (path, away) = (disk.find(end), disk.directory.path().with_extension("away"));
        fs::rename(&path, &away).unwrap();
        let error = disk.seal(&mut opened).unwrap_err();
        assert!(matches!(error, Error::Removed(_)), "{error}");
        fs::rename(&away, &path).unwrap();
        disk.seal(&mut opened).unwrap();
    }
}

#[test]
fn all_that_a_volume_can_hold_comes_back_as_it_was() {
    let strange: Vec<u8> = (1..=255).filter(|&byte| byte != b'/').collect();
    let large: Vec<u8> = (0..2 * 64 * 1024u32).map(|n| n as u8).collect();
    let disk = Disk::with(|plain| {
        for chunk in strange.chunks(100) {
            fs::write(plain.join(OsStr::from_bytes(chunk)), chunk).unwrap();
        }
        fs::create_dir_all(plain.join("a/b/empty")).unwrap();
        fs::write(plain.join("a/b/none"), "").unwrap();
        fs::write(plain.join("a/large"), &large).unwrap();
        // Not to be taken for the file that holds only the end of it, which is sealed first.
        fs::File::create(plain.join("a/hole")).unwrap().write_all_at(b"end", 1 << 20).unwrap();
        fs::write(plain.join("a/end"), "end").unwrap();
        fs::write(plain.join("forbidden"), "even to its owner").unwrap();
        symlink("/nowhere/\u{fc}", plain.join("a/link")).unwrap();
        fs::set_permissions(plain.join("a/b/none"), Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(plain.join("forbidden"), Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(plain.join("a/b"), Permissions::from_mode(0o500)).unwrap();
    });
    let mut opened = disk.open().unwrap();
    let plain = opened.plain.path();
    for chunk in strange.chunks(100) {
        assert_eq!(fs::read(plain.join(OsStr::from_bytes(chunk))).unwrap(), chunk);
    }
    let mode = |path: &str| plain.join(path).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("forbidden"), mode("a/b/none"), mode("a/b")), (0, 0o4751, 0o500));
    assert_eq!(fs::read(plain.join("a/large")).unwrap(), large);
    let hole = fs::read(plain.join("a/hole")).unwrap();
    assert_eq!((hole.len(), &hole[1 << 20..]), ((1 << 20) + 3, &b"end"[..]));
    assert_eq!(fs::read(plain.join("a/b/none")).unwrap(), b"");
    assert_eq!(fs::read_dir(plain.join("a/b/empty")).unwrap().count(), 0);
    assert_eq!(fs::read_link(plain.join("a/link")).unwrap(), Path::new("/nowhere/\u{fc}"));
    opened.volume.seal(&mut |_, _| panic!("what came back differs from what was sealed")).unwrap();
    // The test's own clean-up needs it.
    fs::set_permissions(plain.join("a/b"), Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn an_unchanged_volume_is_neither_written_nor_told_to_cas() {
    let mut disk = Disk::with(|plain| fs::write(plain.join("f"), "x").unwrap());
    let mut opened = disk.open().unwrap();
    let before = (disk.names(), disk.path().metadata().unwrap().mtime_nsec());
    for _ in 0..3 {
        opened.volume.seal(&mut |_, _| panic!("nothing has changed")).unwrap();
        // Not even if a file was touched.
        fs::File::open(opened.plain.path().join("f")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    }
    assert_eq!((disk.names(), disk.path().metadata().unwrap().mtime_nsec()), before);
    fs::write(opened.plain.path().join("f"), "y").unwrap();
    disk.seal(&mut opened).unwrap();
    assert_ne!(disk.names(), before.0);
}

#[test]
fn only_what_changed_is_sealed_again() {
    let mut disk = Disk::with(|plain| {
        fs::write(plain.join("a"), "a").unwrap();
        fs::write(plain.join("b"), "b").unwrap();
    });
    let blobs =
        |disk: &Disk| -> BTreeSet<_> { disk.names().into_iter().filter(|name| name.ends_with(".blob")).collect() };
    let before = blobs(&disk);
    let mut opened = disk.open().unwrap();
    fs::rename(opened.plain.path().join("a"), opened.plain.path().join("c")).unwrap();
    disk.seal(&mut opened).unwrap();
    assert_eq!(blobs(&disk), before);
    fs::write(opened.plain.path().join("c"), "changed").unwrap();
    disk.seal(&mut opened).unwrap();
    let after = blobs(&disk);
    assert_eq!((after.len(), after.intersection(&before).count()), (2, 1));
}

#[test]
fn what_cannot_be_sealed_is_named() {
    let mut disk = Disk::with(|_| ());
    let mut opened = disk.open().unwrap();
    let _socket = UnixListener::bind(opened.plain.path().join("socket")).unwrap();
    let error = disk.seal(&mut opened).unwrap_err();
    assert_eq!(error.to_string(), "'/v/socket' is no file, directory or symbolic link, so it cannot be sealed");
}

/// Numbers that look random and are the same in each run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// All that is below a directory: path, mode, and content or target.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut tree = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_dir() {
                directories.push(path.clone());
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            tree.insert(path.strip_prefix(root).unwrap().to_owned(), (metadata.mode(), content));
        }
    }
    tree
}

/// Does one thing to a random path of the tree.
fn disturb(root: &Path, numbers: &mut Numbers) {
    let known: Vec<PathBuf> = tree(root).into_keys().collect();
    let directories: Vec<&Path> = known
        .iter()
        .map(PathBuf::as_path)
        .filter(|path| root.join(path).symlink_metadata().unwrap().is_dir())
        .collect();
    let parent = match numbers.below(directories.len() + 1) {
        0 => root.to_owned(),
        index => root.join(directories[index - 1]),
    };
    let name: Vec<u8> = (0..=numbers.below(3))
        .map(|_| numbers.below(256) as u8)
        .filter(|byte| ![0, b'/', b'.'].contains(byte))
        .collect();
    let new = parent.join(OsStr::from_bytes(if name.is_empty() { b"n" } else { &name }));
    let old = (!known.is_empty()).then(|| root.join(&known[numbers.below(known.len().max(1))]));
    // Much of it cannot be done - a file in the way, a directory into itself - and then is not.
    let _ = match (numbers.below(8), old) {
        (0, _) => fs::create_dir(new),
        (1, _) => symlink("target", new),
        (2, Some(old)) => fs::rename(old, new),
        (3, Some(old)) => fs::remove_file(old),
        (4, Some(old)) if old.is_dir() => fs::remove_dir_all(old),
        (5, Some(old)) if !old.is_symlink() => {
            fs::set_permissions(old, Permissions::from_mode(0o700 | numbers.below(0o100) as u32))
        }
        (6, Some(old)) => fs::hard_link(old, new),
        (_, Some(old)) if old.is_file() => fs::write(old, vec![b'c'; numbers.below(100)]),
        _ => fs::write(new, vec![b'n'; numbers.below(100)]),
    };
}

#[test]
fn whatever_is_done_to_a_tree_every_sealed_state_comes_back() {
    for (seed, files) in [(1, 0), (2, 0), (3, 0), (4, 100), (5, 100)] {
        let mut numbers = Numbers(seed);
        let mut disk = Disk::with(|plain| {
            for file in 0..files {
                fs::write(plain.join(format!("file {file}")), file.to_string()).unwrap();
            }
        });
        let mut opened = disk.open().unwrap();
        for step in 0..100 {
            for _ in 0..=numbers.below(3) {
                disturb(opened.plain.path(), &mut numbers);
            }
            disk.seal(&mut opened).unwrap();
            let sealed = tree(opened.plain.path());
            if numbers.below(4) == 0 {
                disturb(opened.plain.path(), &mut numbers);
                drop(opened);
                opened = disk.open().unwrap();
                assert_eq!(tree(opened.plain.path()), sealed, "seed {seed}, step {step}");
                opened.volume.seal(&mut |_, _| panic!("what came back differs from what was sealed")).unwrap();
            }
        }
    }
}

// On a kernel without fine-grained timestamps (before Linux 6.13) this can fail: see the limits in docs/simulator-runtime.md.
#[test]
fn a_file_that_moves_from_where_a_seal_has_yet_to_look_to_where_it_has_looked_is_in_each_state() {
    let mut disk = Disk::with(|plain| {
        for directory in ["a", "b"] {
            fs::create_dir(plain.join(directory)).unwrap();
        }
        fs::write(plain.join("a/moved"), "here").unwrap();
    });
    let mut opened = disk.open().unwrap();
    let places = ["a/moved", "b/moved"].map(|place| opened.plain.path().join(place));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::rename(&places[0], &places[1]).unwrap();
                fs::rename(&places[1], &places[0]).unwrap();
                std::thread::yield_now();
            }
        });
        let mut is_lost = || -> Result<bool, Error> {
            disk.seal(&mut opened)?;
            let copy = Disk { directory: memory(), name: disk.name, tag: disk.tag.clone() };
            for name in disk.names() {
                fs::copy(disk.path().join(&name), copy.path().join(name)).unwrap();
            }
            let copied = copy.open()?;
            Ok(!["a/moved", "b/moved"].iter().any(|place| copied.plain.path().join(place).exists()))
        };
        let lost = (0..200).map(|_| is_lost()).find(|lost| !matches!(lost, Ok(false)));
        done.store(true, Ordering::Relaxed);
        assert!(lost.is_none(), "{lost:?}");
    });
}
