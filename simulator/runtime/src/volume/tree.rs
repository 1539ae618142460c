//! The program's side of a volume: plain files, and what was last seen of them, so that a look costs what has changed.
//!
//! A file is read only if its inode, size or times moved, or if these might not tell: it had changed within a tick of the
//! clock, or some process has it mapped. A directory is listed only if its times moved, or might not tell.

mod look;
mod mappings;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, chmodat, fchmod, fstat, mkdirat, openat, statat, symlinkat,
};
use rustix::io::Errno;

use super::manifest::{Bytes, Content, Entries, Entry};
use super::store::Store;
use super::{Error, Name, each_name, failed, names, show};
use look::Look;
use mappings::shared_mappings;

/// What changed as recently as this may change again under the same timestamp: those move with the timer tick.
///
/// A directory's may even where they are fine-grained (Linux 6.13): tmpfs gives it that of the file that is linked or
/// unlinked there, and this may be the one it had.
const TICK: Duration = Duration::from_millis(20);

/// How often a tree that changes while it is read is read again.
const ATTEMPTS: usize = 1000;

/// The plain files.
pub struct Tree {
    /// The path by which the program knows them; for messages.
    path: String,
    directory: OwnedFd,
    /// `None`: not looked into yet.
    root: Option<Box<Known>>,
}

/// What was last seen of a thing.
struct Known {
    stat: Stat,
    /// It may have changed since without its timestamps telling.
    doubtful: bool,
    what: What,
}

enum What {
    Directory(Vec<Child>),
    Symlink(Bytes),
    File(Rc<Content>),
}

/// What is in a directory; `None`: it is listed, and was not seen yet.
struct Child {
    name: Name,
    known: Option<Box<Known>>,
}

impl Known {
    fn entry(&self) -> Entry {
        let mode = self.stat.st_mode & 0o7777;
        match &self.what {
            What::Directory(_) => Entry::Directory { mode },
            What::Symlink(target) => Entry::Symlink { target: target.clone() },
            What::File(content) => Entry::File { mode, content: Content::clone(content) },
        }
    }

    fn is_directory(&self) -> bool {
        matches!(self.what, What::Directory(_))
    }

    /// Calls `visit` for all that was seen in this directory, with the path of each.
    fn each_inside<'a>(&'a self, path: &mut Vec<u8>, visit: &mut impl FnMut(&[u8], &'a Known)) {
        let What::Directory(children) = &self.what else { return };
        for child in children {
            let Some(known) = &child.known else { continue };
            within(path, &child.name.name, |path| {
                visit(path, known);
                known.each_inside(path, visit);
            });
        }
    }
}

impl Tree {
    /// The empty directory `root`, which the program knows as `path`.
    pub fn open(root: &Path, path: &str) -> Result<Tree, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, root, flags, Mode::empty()).map_err(failed("open", path))?;
        if let Some(child) = names(&directory).map_err(failed("list", path))?.first() {
            return Err(Error::NotEmpty(show(&child.name)));
        }
        Ok(Tree { path: path.to_owned(), directory, root: None })
    }

    /// Puts there what a volume holds.
    pub fn restore(&mut self, entries: &BTreeMap<Bytes, Entry>, store: &mut Store) -> Result<(), Error> {
        // One for each blob, since the store tells by it whether the blob is still needed.
        let mut contents = HashMap::new();
        let mut made = Vec::new();
        for (path, entry) in entries {
            made.push((path, self.create(path, entry, store, &mut contents)?));
        }
        // Last, and the innermost first: a directory may be read-only.
        for (path, entry) in entries.iter().rev() {
            if let Entry::Directory { mode } = entry {
                chmodat(&self.directory, &path.0[..], Mode::from_raw_mode(*mode), AtFlags::empty())
                    .map_err(failed("restore", name(&self.path, &path.0)))?;
            }
        }
        // What is known is what a look would have found.
        let now = SystemTime::now();
        let mut children: HashMap<&[u8], Vec<Child>> = HashMap::new();
        for (path, mut what) in made.into_iter().rev() {
            let stat = statat(&self.directory, &path.0[..], AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed("read", name(&self.path, &path.0)))?;
            let (parent, name) = match path.0.iter().rposition(|&byte| byte == b'/') {
                Some(slash) => (&path.0[..slash], &path.0[slash + 1..]),
                None => (&[][..], &path.0[..]),
            };
            let name = Name { name: name.into(), inode: stat.st_ino, kind: FileType::from_raw_mode(stat.st_mode) };
            if let What::Directory(inside) = &mut what {
                *inside = children.remove(&path.0[..]).unwrap_or_default();
            }
            let known = Some(Box::new(Known { stat, doubtful: is_recent(&stat, now), what }));
            children.entry(parent).or_default().push(Child { name, known });
        }
        let stat = fstat(&self.directory).map_err(failed("read", &self.path))?;
        let what = What::Directory(children.remove(&[][..]).unwrap_or_default());
        self.root = Some(Box::new(Known { stat, doubtful: is_recent(&stat, now), what }));
        Ok(())
    }

    fn create<'a>(
        &self,
        path: &Bytes,
        entry: &'a Entry,
        store: &mut Store,
        contents: &mut HashMap<&'a str, Rc<Content>>,
    ) -> Result<What, Error> {
        let (at, name) = (&path.0[..], name(&self.path, &path.0));
        match entry {
            Entry::Directory { .. } => {
                mkdirat(&self.directory, at, Mode::RWXU).map_err(failed("restore", name))?;
                Ok(What::Directory(Vec::new()))
            }
            Entry::Symlink { target } => {
                symlinkat(&target.0[..], &self.directory, at).map_err(failed("restore", name))?;
                Ok(What::Symlink(target.clone()))
            }
            Entry::File { mode, content } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let plain = openat(&self.directory, at, flags, Mode::RUSR | Mode::WUSR);
                let mut plain = File::from(plain.map_err(failed("restore", &name))?);
                let content = contents.entry(&content.blob).or_insert_with(|| Rc::new(content.clone()));
                store.restore(&name, content, &mut plain)?;
                fchmod(&plain, Mode::from_raw_mode(*mode)).map_err(failed("restore", name))?;
                Ok(What::File(content.clone()))
            }
        }
    }

    /// Finds what has changed, seals new content on the way and adds to `changes`.
    ///
    /// Files may come and go meanwhile, and a look can miss a file that moves from a directory it has yet to read to one it has
    /// read already. So the look counts only if no directory has changed by its end.
    pub fn look(&mut self, store: &mut Store, changes: &mut Entries) -> Result<(), Error> {
        let device = fstat(&self.directory).map_err(failed("read", &self.path))?.st_dev;
        for _ in 0..ATTEMPTS {
            let (began, mapped) = (SystemTime::now(), shared_mappings(device));
            let mut look = Look { volume: &self.path, store, changes, began, mapped };
            let complete = look.look_into(self.directory.as_fd(), &mut Vec::new(), &mut self.root)?;
            if complete
                && let Some(root) = &self.root
                && self.is_as_seen(self.directory.as_fd(), &mut Vec::new(), root)?
            {
                return Ok(());
            }
        }
        Err(Error::Restless)
    }

    /// How many things there are.
    pub fn len(&self) -> usize {
        let mut count = 0;
        self.each(|_, _| count += 1);
        count
    }

    /// Everything as it was last seen.
    pub fn entries(&self) -> Entries {
        let mut entries = Entries::new();
        self.each(|path, known| {
            entries.insert(Bytes(path.to_owned()), Some(known.entry()));
        });
        entries
    }

    /// The blobs in which what was last seen is sealed.
    pub fn blobs(&self) -> HashSet<&str> {
        let mut blobs = HashSet::new();
        self.each(|_, known| {
            if let What::File(content) = &known.what {
                blobs.insert(content.blob.as_str());
            }
        });
        blobs
    }

    fn each<'a>(&'a self, mut visit: impl FnMut(&[u8], &'a Known)) {
        if let Some(root) = &self.root {
            root.each_inside(&mut Vec::new(), &mut visit);
        }
    }

    /// Whether this directory and all in it are as they were when they were looked into.
    fn is_as_seen(&self, directory: BorrowedFd, path: &mut Vec<u8>, known: &Known) -> Result<bool, Error> {
        let What::Directory(children) = &known.what else { return Ok(false) };
        let now = fstat(directory).map_err(failed("read", name(&self.path, path)))?;
        // Not the ctime, which moves when a directory is made readable for a look.
        let modified = |stat: &Stat| (stat.st_ino, stat.st_mtime, stat.st_mtime_nsec);
        if modified(&known.stat) != modified(&now)
            || known.doubtful && !lists(directory, children).map_err(failed("list", name(&self.path, path)))?
        {
            return Ok(false);
        }
        for child in children {
            let Some(known) = child.known.as_deref().filter(|known| known.is_directory()) else { continue };
            let as_seen = within(path, &child.name.name, |path| {
                match open_readable(directory, &child.name.name, &known.stat, OFlags::DIRECTORY) {
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
                    opened => {
                        let opened = opened.map_err(failed("open", name(&self.path, path)))?;
                        self.is_as_seen(opened.as_fd(), path, known)
                    }
                }
            })?;
            if !as_seen {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// As the program knows it; for messages.
fn name(volume: &str, path: &[u8]) -> String {
    format!("{volume}/{}", show(path))
}

/// Calls `act` with the path of what has that name in the directory of this path.
fn within<T>(path: &mut Vec<u8>, name: &[u8], act: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let length = path.len();
    if length > 0 {
        path.push(b'/');
    }
    path.extend(name);
    let result = act(path);
    path.truncate(length);
    result
}

/// Whether these are what is in the directory.
fn lists(directory: BorrowedFd, children: &[Child]) -> Result<bool, Errno> {
    let mut children = children.iter();
    let mut are_equal = true;
    each_name(directory, |name, inode, kind| {
        let is_equal =
            |child: &Child| &*child.name.name == name && child.name.inode == inode && child.name.kind == kind;
        are_equal &= children.next().is_some_and(is_equal);
    })?;
    Ok(are_equal && children.next().is_none())
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
