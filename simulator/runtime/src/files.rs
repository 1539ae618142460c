//! Measures a program of many files: the program, and every regular file and symbolic link below the directories that the caller
//! selects. With them its libraries are measured, so it may be dynamically linked, or an interpreter.
//!
//! What counts is each path, and the content and permission bits of a file or the target of a link, in the order of the paths'
//! bytes. Directories, owners and times do not count: a container engine makes mount points, and unpacking an image sets times.
//! What an engine puts into a container is not the image's and is passed over. Something else may be mounted where the caller
//! says so, which counts, and nowhere else: an interpreter might find code there.
//!
//! Natively what is measured is what runs: each file is read once, and what is read goes into the measurement and into the copy
//! that becomes the program's root. In a container the files are measured in place.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, fstat, mkdirat, openat2, readlinkat, statx,
    symlinkat,
};
use rustix::io::Errno;

use crate::measurement::{Measurement, OWN};
use crate::program;
use crate::root::entries;

/// What a container engine puts into a container, and the sealed sides of the volumes.
const NEVER: [&str; 10] = [
    "/.dockerenv",
    "/.sealed",
    "/dev",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/mtab",
    "/etc/resolv.conf",
    "/proc",
    "/run/.containerenv",
    "/sys",
];

/// As many as the kernel follows.
const MOST_LINKS: usize = 40;

/// What is to be measured.
pub struct Selection {
    /// Paths of the image, none below another.
    directories: Vec<PathBuf>,
    /// Where something may be mounted. Whatever the image has there is not measured.
    mount_points: Vec<PathBuf>,
}

/// Why the files cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One cannot be opened or read.
    #[error("cannot read '{}': {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One cannot be copied to where nobody can change it.
    #[error("cannot keep '{}' in memory: {source}", path.display())]
    NotKept {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One that the simulator cannot vouch for.
    #[error("'{}' {what}", path.display())]
    Refused {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: &'static str,
    },
}

/// Checks a `--fs-dir`, and drops what a path can do without (`//`, `/./`, a last `/`).
pub fn directory(path: PathBuf) -> Result<PathBuf, &'static str> {
    let plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    plain.then(|| path.components().collect()).ok_or("expected an absolute path of the image without '..'")
}

impl Selection {
    /// Selects the directories and the mount points, each as [`directory`] returns it. One below another makes no difference.
    pub fn new(directories: Vec<PathBuf>, mount_points: Vec<PathBuf>) -> Selection {
        let outermost = |mut paths: Vec<PathBuf>| {
            paths.sort();
            paths.dedup_by(|inner, outer| inner.starts_with(outer));
            paths
        };
        Selection { directories: outermost(directories), mount_points: outermost(mount_points) }
    }

    /// Whether something may be mounted there.
    pub fn is_mount_point(&self, path: &Path) -> bool {
        self.mount_points.iter().any(|point| point == path)
    }
}

/// Measures the selected files of the image at `root` and the program at `path` in it, and fills the directory `copy`, if there
/// is one, with what was measured. The measurement, 64 lower-case hex digits.
pub fn measure(root: &OwnedFd, path: &Path, selection: &Selection, copy: Option<&OwnedFd>) -> Result<String, Error> {
    let own = |source| Error::Unreadable { path: OWN.into(), source };
    let mut measurement = Measurement::start("scone-sim measurement 2").map_err(own)?;
    measurement.add(path.as_os_str().as_bytes());
    for paths in [&selection.directories, &selection.mount_points] {
        measurement.add(&(paths.len() as u64).to_be_bytes());
        for path in paths {
            measurement.add(path.as_os_str().as_bytes());
        }
    }
    // In front of paths, which start with '/', names of settings cannot be taken for one.
    measurement.add_settings();

    let mut found = Found::new(root, selection)?;
    for directory in &selection.directories {
        let directory = found.resolve(directory)?;
        found.take_all_below(directory)?;
    }
    found.take_program(path)?;
    for (path, entry) in &found.entries {
        add(&mut measurement, root, path, entry, copy)?;
    }
    Ok(measurement.finish())
}

/// Something of the image, by its kind.
enum Entry {
    /// Is kept, and does not count.
    Directory,
    Link(Vec<u8>),
    /// Is yet to be read.
    File,
    /// A directory that this user, and so the program, cannot read.
    Closed,
    /// Has been read: the program, with its permission bits.
    Program(Vec<u8>, u32),
}

/// What is to be measured, by absolute path, in the order in which it is.
struct Found<'a> {
    root: &'a OwnedFd,
    selection: &'a Selection,
    /// The mount that the image is on. (Device numbers would not tell: overlay file systems give their files various ones.)
    mount: u64,
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl Found<'_> {
    fn new<'a>(root: &'a OwnedFd, selection: &'a Selection) -> Result<Found<'a>, Error> {
        let mount = look(root, "").map_err(unreadable(b"/"))?.stx_mnt_id;
        Ok(Found { root, selection, mount, entries: BTreeMap::new() })
    }

    /// Whether what is there is not the image's.
    fn is_passed_over(&self, path: &[u8]) -> bool {
        NEVER.iter().any(|never| never.as_bytes() == path) || self.selection.is_mount_point(&show(path))
    }

    /// Follows `path` through the image as the kernel would, and takes in the links on the way. Returns where it leads.
    fn resolve(&mut self, path: &Path) -> Result<Vec<u8>, Error> {
        let (mut at, mut links) = (Vec::new(), 0);
        let mut ahead: Vec<Vec<u8>> = parts(path.as_os_str().as_bytes()).collect();
        while let Some(part) = ahead.pop() {
            if part == b".." {
                at.truncate(at.iter().rposition(|&byte| byte == b'/').unwrap_or(0));
            }
            if [&b""[..], b".", b".."].contains(&part.as_slice()) {
                continue;
            }
            let next = [&at, &b"/"[..], &part].concat();
            if self.is_passed_over(&next) {
                return Err(refused(&next, "is never measured: it is not the image's"));
            }
            let entry = open(self.root, &next, OFlags::PATH, ResolveFlags::empty()).map_err(unreadable(&next))?;
            let seen = look(&entry, "").map_err(unreadable(&next))?;
            if seen.stx_mnt_id != self.mount {
                return Err(refused(&next, "is mounted: it is not the image's"));
            }
            match kind(&seen) {
                FileType::Symlink => {
                    let target = readlinkat(&entry, "", Vec::new()).map_err(unreadable(&next))?.into_bytes();
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(unreadable(path.as_os_str().as_bytes())(Errno::LOOP));
                    }
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    ahead.extend(parts(&target));
                    self.entries.insert(next, Entry::Link(target));
                }
                FileType::Directory => {
                    self.entries.insert(next.clone(), Entry::Directory);
                    at = next;
                }
                _ => at = next,
            }
        }
        Ok(at)
    }

    fn take_all_below(&mut self, directory: Vec<u8>) -> Result<(), Error> {
        let mut ahead = vec![directory];
        while let Some(directory) = ahead.pop() {
            let opened = open(self.root, &directory, OFlags::RDONLY | OFlags::DIRECTORY, ResolveFlags::NO_XDEV);
            let opened = match opened {
                Err(Errno::ACCESS) => {
                    self.entries.insert(directory, Entry::Closed);
                    continue;
                }
                opened => opened.map_err(unreadable(&directory))?,
            };
            for name in entries(&opened).map_err(unreadable(&directory))? {
                let path = [&directory, &b"/"[..], &name].concat();
                if NEVER.iter().any(|never| never.as_bytes() == path) {
                    continue;
                }
                let seen = look(&opened, &name[..]).map_err(unreadable(&path))?;
                if self.selection.is_mount_point(&show(&path)) {
                    // What is there would be hidden, and not be measured.
                    if seen.stx_mnt_id == self.mount && holds_a_file(&opened, &name)? {
                        return Err(refused(
                            &path,
                            "has files in the image, which something mounted there would hide: remove them from the image, or mount elsewhere",
                        ));
                    }
                    continue;
                }
                if seen.stx_mnt_id != self.mount {
                    return Err(refused(&path, "is mounted, and is no --mount-point"));
                }
                let entry = match kind(&seen) {
                    FileType::RegularFile => Entry::File,
                    FileType::Symlink => {
                        let target = readlinkat(&opened, &name[..], Vec::new()).map_err(unreadable(&path))?;
                        Entry::Link(target.into_bytes())
                    }
                    FileType::Directory => {
                        ahead.push(path.clone());
                        Entry::Directory
                    }
                    _ => return Err(refused(&path, "is a socket, a FIFO or a device: not simulated")),
                };
                self.entries.insert(path, entry);
            }
        }
        Ok(())
    }

    /// Reads the program and finds the interpreter that it needs among what is measured.
    fn take_program(&mut self, named: &Path) -> Result<(), Error> {
        if !named.is_absolute() {
            return Err(refused(named.as_os_str().as_bytes(), "is no absolute path: with --fs-dir, name one"));
        }
        let path = self.resolve(named)?;
        let (file, length, mode) = open_file(self.root, &path)?;
        let mut content = Vec::new();
        file.take(length).read_to_end(&mut content).map_err(unreadable(&path))?;
        if content.starts_with(b"#!") {
            return Err(refused(&path, "is a script: name its interpreter as the program"));
        }
        let interpreter = program::interpreter(&content)
            .map_err(|_| refused(&path, "is no 64-bit x86 ELF program: not simulated"))?
            .map(|interpreter| PathBuf::from(OsStr::from_bytes(interpreter)));
        if let Some(interpreter) = interpreter {
            let leads_to = self.resolve(&interpreter)?;
            if !interpreter.is_absolute() || !matches!(self.entries.get(&leads_to), Some(Entry::File)) {
                let what = "is not measured: add its directory with --fs-dir";
                return Err(refused(interpreter.as_os_str().as_bytes(), what));
            }
        }
        self.entries.insert(path, Entry::Program(content, mode));
        Ok(())
    }
}

/// Measures an entry, and copies what was measured.
fn add(
    measurement: &mut Measurement,
    root: &OwnedFd,
    path: &[u8],
    entry: &Entry,
    copy: Option<&OwnedFd>,
) -> Result<(), Error> {
    let not_kept = |source: io::Error| Error::NotKept { path: show(path), source };
    let name = relative(path);
    match entry {
        Entry::Directory => match copy.map_or(Ok(()), |copy| mkdirat(copy, name, Mode::from_raw_mode(0o755))) {
            Ok(()) => Ok(()),
            Err(error) => Err(not_kept(error.into())),
        },
        Entry::Link(target) => {
            measurement.add(path);
            measurement.add(b"link");
            measurement.add(target);
            copy.map_or(Ok(()), |copy| symlinkat(&target[..], copy, name)).map_err(|error| not_kept(error.into()))
        }
        Entry::File => match open_file(root, path) {
            Err(Error::Unreadable { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                add_closed(measurement, path);
                Ok(())
            }
            opened => add_file(measurement, path, opened?, copy),
        },
        Entry::Closed => {
            add_closed(measurement, path);
            Ok(())
        }
        Entry::Program(content, mode) => add_file(measurement, path, (&content[..], content.len() as u64, *mode), copy),
    }
}

/// Who cannot read it measures that: nor can the program, which is run by the same user.
fn add_closed(measurement: &mut Measurement, path: &[u8]) {
    measurement.add(path);
    measurement.add(b"closed");
}

/// Whether the image has anything but directories there, or below. (What an engine mounted is not the image's.)
fn holds_a_file(directory: &OwnedFd, name: &[u8]) -> Result<bool, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match openat2(directory, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
        Err(Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => return Ok(true),
        Err(Errno::XDEV) => return Ok(false),
        opened => opened.map_err(unreadable(name))?,
    };
    for inner in entries(&opened).map_err(unreadable(name))? {
        if holds_a_file(&opened, &inner)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn add_file(
    measurement: &mut Measurement,
    path: &[u8],
    (content, length, mode): (impl Read, u64, u32),
    copy: Option<&OwnedFd>,
) -> Result<(), Error> {
    let not_kept = |source: io::Error| Error::NotKept { path: show(path), source };
    measurement.add(path);
    measurement.add(b"file");
    measurement.add(&mode.to_be_bytes());
    let Some(copy) = copy else {
        return measurement.add_file(content, length, |_| Ok(())).map_err(unreadable(path));
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let kept = openat2(copy, relative(path), flags, Mode::from_raw_mode(0o600), ResolveFlags::NO_SYMLINKS);
    let mut kept = File::from(kept.map_err(|error| not_kept(error.into()))?);
    let mut failure = None;
    let added = measurement.add_file(content, length, |piece| {
        kept.write_all(piece).inspect_err(|error| failure = Some(error.raw_os_error()))
    });
    match (added, failure) {
        (_, Some(errno)) => {
            return Err(not_kept(errno.map_or(io::ErrorKind::WriteZero.into(), io::Error::from_raw_os_error)));
        }
        (added, None) => added.map_err(unreadable(path))?,
    }
    kept.set_permissions(Permissions::from_mode(mode)).map_err(not_kept)
}

/// A regular file, its length and its permission bits.
fn open_file(root: &OwnedFd, path: &[u8]) -> Result<(File, u64, u32), Error> {
    // Without NONBLOCK a FIFO that has come into the file's place would be waited on.
    let file = open(root, path, OFlags::RDONLY | OFlags::NONBLOCK, ResolveFlags::NO_XDEV).map_err(unreadable(path))?;
    let status = fstat(&file).map_err(unreadable(path))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(refused(path, "is no regular file"));
    }
    let length = u64::try_from(status.st_size).map_err(|_| unreadable(path)(Errno::OVERFLOW))?;
    Ok((file.into(), length, status.st_mode & 0o777))
}

/// Opens what is at the absolute `path` below `root`; a link is not followed, wherever in the path it is.
fn open(root: &OwnedFd, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(root, relative(path), flags, Mode::empty(), resolve | ResolveFlags::NO_SYMLINKS)
}

fn look(directory: impl AsFd, name: impl rustix::path::Arg) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let seen = statx(directory, name, flags, StatxFlags::TYPE | StatxFlags::MNT_ID)?;
    // Linux 5.8 and newer say which mount it is; the runtime needs 5.11 anyway.
    if StatxFlags::from_bits_retain(seen.stx_mask).contains(StatxFlags::MNT_ID) { Ok(seen) } else { Err(Errno::NOSYS) }
}

fn kind(seen: &Statx) -> FileType {
    FileType::from_raw_mode(seen.stx_mode.into())
}

/// The parts of a path, the last one first.
fn parts(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec)
}

/// An absolute path, relative to the root. The root itself is "" everywhere but here.
fn relative(path: &[u8]) -> &[u8] {
    match path.strip_prefix(b"/") {
        Some(rest) if !rest.is_empty() => rest,
        _ => b".",
    }
}

fn show(path: &[u8]) -> PathBuf {
    if path.is_empty() { "/".into() } else { OsStr::from_bytes(path).into() }
}

fn unreadable<E: Into<io::Error>>(path: &[u8]) -> impl FnOnce(E) -> Error {
    let path = show(path);
    move |error| Error::Unreadable { path, source: error.into() }
}

fn refused(path: &[u8], what: &'static str) -> Error {
    Error::Refused { path: show(path), what }
}
