//! The program's side of a volume: plain files, and what was last seen of them, so that a look costs what has changed.
//!
//! A file is read only if its inode, size or times moved, or if these might not tell: it had changed within a tick of the
//! clock, or some process has it mapped. A directory is listed only if its times moved, or might not tell.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, chmodat, fchmod, fstat, major, makedev, minor, mkdirat, openat,
    readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

use super::manifest::{Bytes, Content, Entries, Entry};
use super::store::Store;
use super::{Error, Name, failed, io_failed, is_unchanged, names, show};

/// What changed as recently as this may change again under the same timestamp: those move with the timer tick.
const TICK: Duration = Duration::from_millis(20);

/// How often a tree that changes while it is read is read again.
const ATTEMPTS: usize = 1000;

/// The plain files.
pub struct Tree {
    /// The path by which the program knows them; for messages.
    path: String,
    root: OwnedFd,
    /// By path; the root's is empty.
    known: HashMap<Bytes, Known>,
}

/// What was last seen at a path.
struct Known {
    stat: Stat,
    /// It may have changed since without its timestamps telling.
    doubtful: bool,
    what: What,
}

enum What {
    Directory(Rc<Vec<Name>>),
    Symlink(Bytes),
    File(Content),
}

impl Known {
    fn entry(&self) -> Entry {
        let mode = self.stat.st_mode & 0o7777;
        match &self.what {
            What::Directory(_) => Entry::Directory { mode },
            What::Symlink(target) => Entry::Symlink { target: target.clone() },
            What::File(content) => Entry::File { mode, content: content.clone() },
        }
    }
}

/// What a look needs on its way.
struct Look<'a> {
    store: &'a mut Store,
    changes: &'a mut Entries,
    /// `None`: cannot be told.
    mapped: Option<HashSet<u64>>,
}

impl Look<'_> {
    fn change(&mut self, path: &[u8], entry: Option<Entry>) {
        self.changes.insert(Bytes(path.to_owned()), entry);
    }
}

impl Tree {
    /// The empty directory `root`, which the program knows as `path`.
    pub fn open(root: &Path, path: &str) -> Result<Tree, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, root, flags, Mode::empty()).map_err(failed("open", path))?;
        if let Some(child) = names(&root).map_err(failed("list", path))?.first() {
            return Err(Error::NotEmpty(show(&child.name)));
        }
        let stat = fstat(&root).map_err(failed("read", path))?;
        let known = Known { stat, doubtful: true, what: What::Directory(Rc::default()) };
        Ok(Tree { path: path.to_owned(), root, known: HashMap::from([(Bytes::default(), known)]) })
    }

    /// Puts there what a volume holds.
    pub fn restore(&mut self, entries: &BTreeMap<Bytes, Entry>, store: &mut Store) -> Result<(), Error> {
        for (path, entry) in entries {
            self.create(path, entry, store)?;
        }
        // Last, and the innermost first: a directory may be read-only.
        for (path, entry) in entries.iter().rev() {
            if let Entry::Directory { mode } = entry {
                chmodat(&self.root, &path.0[..], Mode::from_raw_mode(*mode), AtFlags::empty())
                    .map_err(failed("restore", self.name(&path.0)))?;
            }
        }
        // What is known is what a look would have found.
        let mut children: HashMap<&[u8], Vec<Name>> = HashMap::new();
        for (path, entry) in entries.iter().rev() {
            let now = SystemTime::now();
            let stat = statat(&self.root, &path.0[..], AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed("read", self.name(&path.0)))?;
            let (parent, name) = match path.0.iter().rposition(|&byte| byte == b'/') {
                Some(slash) => (&path.0[..slash], &path.0[slash + 1..]),
                None => (&[][..], &path.0[..]),
            };
            let name = Name { name: name.into(), inode: stat.st_ino, kind: FileType::from_raw_mode(stat.st_mode) };
            children.entry(parent).or_default().push(name);
            let what = match entry {
                Entry::Directory { .. } => What::Directory(children.remove(&path.0[..]).unwrap_or_default().into()),
                Entry::Symlink { target } => What::Symlink(target.clone()),
                Entry::File { content, .. } => What::File(content.clone()),
            };
            self.known.insert(path.clone(), Known { stat, doubtful: is_recent(&stat, now), what });
        }
        if let Some(root) = self.known.get_mut(&[][..]) {
            root.what = What::Directory(children.remove(&[][..]).unwrap_or_default().into());
        }
        Ok(())
    }

    fn create(&self, path: &Bytes, entry: &Entry, store: &mut Store) -> Result<(), Error> {
        let (at, name) = (&path.0[..], self.name(&path.0));
        match entry {
            Entry::Directory { .. } => mkdirat(&self.root, at, Mode::RWXU).map_err(failed("restore", name)),
            Entry::Symlink { target } => symlinkat(&target.0[..], &self.root, at).map_err(failed("restore", name)),
            Entry::File { mode, content } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let plain = openat(&self.root, at, flags, Mode::RUSR | Mode::WUSR);
                let mut plain = File::from(plain.map_err(failed("restore", &name))?);
                store.restore(&name, content, &mut plain)?;
                fchmod(&plain, Mode::from_raw_mode(*mode)).map_err(failed("restore", name))
            }
        }
    }

    /// Looks what has changed, seals new content on the way and adds to `changes`.
    ///
    /// Files may come and go meanwhile, and a look can miss one that moves from where it has yet to go to where it has been:
    /// after it, no directory may have changed.
    pub fn look(&mut self, store: &mut Store, changes: &mut Entries) -> Result<(), Error> {
        let device = fstat(&self.root).map_err(failed("read", &self.path))?.st_dev;
        let root = self.root.try_clone().map_err(io_failed("open", &self.path))?;
        let mut look = Look { store, changes, mapped: None };
        for _ in 0..ATTEMPTS {
            look.mapped = shared_mappings(device);
            let complete = self.look_into(root.as_fd(), &mut Vec::new(), &mut look)?;
            if complete && self.is_as_seen(root.as_fd(), &mut Vec::new())? {
                return Ok(());
            }
        }
        Err(Error::Restless)
    }

    /// How many things there are.
    pub fn len(&self) -> usize {
        self.known.len() - 1
    }

    /// Everything as it was last seen.
    pub fn entries(&self) -> Entries {
        let known = self.known.iter().filter(|(path, _)| !path.0.is_empty());
        known.map(|(path, known)| (path.clone(), Some(known.entry()))).collect()
    }

    /// The blobs in which what was last seen is sealed.
    pub fn blobs(&self) -> HashSet<&str> {
        let blobs = self.known.values().filter_map(|known| match &known.what {
            What::File(content) => Some(content.blob.as_str()),
            _ => None,
        });
        blobs.collect()
    }

    /// `false`: something went, or became another, since it was found.
    fn look_into(&mut self, directory: BorrowedFd, path: &mut Vec<u8>, look: &mut Look) -> Result<bool, Error> {
        let now = SystemTime::now();
        let stat = fstat(directory).map_err(failed("read", self.name(path)))?;
        let known = self.known.get(&path[..]).filter(|known| matches!(known.what, What::Directory(_)));
        let before = match known {
            Some(Known { what: What::Directory(children), .. }) => children.clone(),
            _ => Rc::default(),
        };
        let children = match known {
            Some(known) if !known.doubtful && is_unchanged(&known.stat, &stat) => before,
            _ => {
                let children = names(directory).map_err(failed("list", self.name(path)))?;
                let still_there: HashSet<&[u8]> = children.iter().map(|child| &child.name[..]).collect();
                for gone in before.iter().filter(|child| !still_there.contains(&child.name[..])) {
                    self.forget(&join(path, &gone.name), look);
                }
                Rc::new(children)
            }
        };
        let mut complete = true;
        for child in children.iter() {
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend(&child.name);
            complete &= self.look_at(directory, &child.name, path, look)?;
            path.truncate(length);
        }
        let known = Known { stat, doubtful: is_recent(&stat, now), what: What::Directory(children) };
        self.know(path, known, look);
        Ok(complete)
    }

    fn look_at(
        &mut self,
        directory: BorrowedFd,
        name: &[u8],
        path: &mut Vec<u8>,
        look: &mut Look,
    ) -> Result<bool, Error> {
        let now = SystemTime::now();
        let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            stat => stat.map_err(failed("read", self.name(path)))?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_mapped = look.mapped.as_ref().is_none_or(|mapped| mapped.contains(&stat.st_ino));
        if let Some(known) = self.known.get(&path[..])
            && kind != FileType::Directory
            && !known.doubtful
            && !(is_mapped && kind == FileType::RegularFile)
            && is_unchanged(&known.stat, &stat)
        {
            return Ok(true);
        }
        if path.len() >= libc::PATH_MAX as usize {
            return Err(Error::PathTooLong(self.name(path)));
        }
        let went = |errno| matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL);
        match kind {
            FileType::Directory => match open_readable(directory, name, &stat, OFlags::DIRECTORY) {
                Err(errno) if went(errno) => Ok(false),
                inner => {
                    let inner = inner.map_err(failed("open", self.name(path)))?;
                    self.look_into(inner.as_fd(), path, look)
                }
            },
            FileType::Symlink => match readlinkat(directory, name, Vec::new()) {
                Err(errno) if went(errno) => Ok(false),
                target => {
                    let target = Bytes(target.map_err(failed("read", self.name(path)))?.into_bytes());
                    let known = Known { stat, doubtful: is_recent(&stat, now), what: What::Symlink(target) };
                    self.know(path, known, look);
                    Ok(true)
                }
            },
            FileType::RegularFile => match open_readable(directory, name, &stat, OFlags::empty()) {
                Err(errno) if went(errno) => Ok(false),
                plain => {
                    let plain = plain.map_err(failed("open", self.name(path)))?;
                    // Before the content is read: what is written meanwhile moves the timestamps past these.
                    let now = SystemTime::now();
                    let stat = fstat(&plain).map_err(failed("read", self.name(path)))?;
                    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                        return Ok(false);
                    }
                    let content = look.store.add_content(&self.name(path), &mut File::from(plain))?;
                    let doubtful = is_recent(&stat, now) || is_mapped;
                    self.know(path, Known { stat, doubtful, what: What::File(content) }, look);
                    Ok(true)
                }
            },
            _ => Err(Error::Unsealable(self.name(path))),
        }
    }

    /// Whether all directories are as they were when they were looked into.
    fn is_as_seen(&self, directory: BorrowedFd, path: &mut Vec<u8>) -> Result<bool, Error> {
        let Some(Known { stat, doubtful, what: What::Directory(children) }) = self.known.get(&path[..]) else {
            return Ok(false);
        };
        let now = fstat(directory).map_err(failed("read", self.name(path)))?;
        if (*doubtful || !is_unchanged(stat, &now))
            && names(directory).map_err(failed("list", self.name(path)))? != **children
        {
            return Ok(false);
        }
        for child in children.iter().filter(|child| matches!(child.kind, FileType::Directory | FileType::Unknown)) {
            let inner = join(path, &child.name);
            let Some(known) = self.known.get(&inner[..]) else { return Ok(false) };
            if matches!(known.what, What::Directory(_)) {
                match open_readable(directory, &child.name, &known.stat, OFlags::DIRECTORY) {
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
                    opened => {
                        let opened = opened.map_err(failed("open", self.name(&inner)))?;
                        let length = path.len();
                        path.clone_from(&inner);
                        let as_seen = self.is_as_seen(opened.as_fd(), path)?;
                        path.truncate(length);
                        if !as_seen {
                            return Ok(false);
                        }
                    }
                }
            }
        }
        Ok(true)
    }

    fn know(&mut self, path: &[u8], known: Known, look: &mut Look) {
        let entry = known.entry();
        match self.known.get(path) {
            Some(before) if before.entry() == entry => {}
            before => {
                // A directory that became something else takes with it what was in it.
                if before.is_some_and(|before| matches!(before.what, What::Directory(_)))
                    && !matches!(known.what, What::Directory(_))
                {
                    self.forget(path, look);
                }
                // The root's mode is not the volume's.
                if !path.is_empty() {
                    look.change(path, Some(entry));
                }
            }
        }
        self.known.insert(Bytes(path.to_owned()), known);
    }

    fn forget(&mut self, path: &[u8], look: &mut Look) {
        let Some(known) = self.known.remove(path) else { return };
        look.change(path, None);
        if let What::Directory(children) = known.what {
            for child in children.iter() {
                self.forget(&join(path, &child.name), look);
            }
        }
    }

    fn name(&self, path: &[u8]) -> String {
        format!("{}/{}", self.path, show(path))
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        [] => name.to_owned(),
        _ => [path, b"/", name].concat(),
    }
}

/// Opens what its owner may have forbidden itself to read, and leaves the mode as it was.
fn open_readable(directory: BorrowedFd, name: &[u8], stat: &Stat, kind: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | kind;
    match openat(directory, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            chmodat(directory, name, mode | Mode::RUSR | Mode::XUSR, AtFlags::empty())?;
            let opened = openat(directory, name, flags, Mode::empty());
            chmodat(directory, name, mode, AtFlags::empty())?;
            opened
        }
        opened => opened,
    }
}

fn is_recent(stat: &Stat, now: SystemTime) -> bool {
    let changed = || {
        let since = Duration::new(u64::try_from(stat.st_ctime).ok()?, u32::try_from(stat.st_ctime_nsec).ok()?);
        UNIX_EPOCH.checked_add(since)?.checked_add(TICK)
    };
    changed().is_none_or(|quiet| quiet > now)
}

/// The files of `device` that some process has mapped shared, by inode: a store through a mapping moves no timestamp but the
/// first time. Read-only mappings count, since they may have been writable. `None`: cannot be told.
fn shared_mappings(device: u64) -> Option<HashSet<u64>> {
    let mut mapped = HashSet::new();
    for process in fs::read_dir("/proc").ok()? {
        let process = process.ok()?;
        if !process.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // By bytes: a mapped file may have any name.
        let maps = match fs::read(process.path().join("maps")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
                continue;
            }
            maps => maps.ok()?,
        };
        for line in maps.split(|&byte| byte == b'\n') {
            // address, permissions, offset, device, inode, name
            let fields: Vec<&str> =
                line.split(|&byte| byte == b' ').take(5).map_while(|field| std::str::from_utf8(field).ok()).collect();
            let [_, permissions, _, on, inode] = fields[..] else { continue };
            if permissions.ends_with('s')
                && let Some((one, two)) = on.split_once(':')
                && let (Ok(one), Ok(two)) = (u32::from_str_radix(one, 16), u32::from_str_radix(two, 16))
                && makedev(one, two) == makedev(major(device), minor(device))
            {
                mapped.insert(inode.parse().ok()?);
            }
        }
    }
    Some(mapped)
}
