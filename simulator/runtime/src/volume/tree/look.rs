//! One look at the plain files: what has changed since the last one is sealed on the way.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::SystemTime;

use rustix::fs::{AtFlags, FileType, OFlags, SeekFrom, Stat, fstat, readlinkat, seek, statat};
use rustix::io::Errno;

use super::{Child, Known, What, is_recent, name, open_readable, within};
use crate::volume::manifest::{Bytes, Entries};
use crate::volume::store::Store;
use crate::volume::{Error, Name, each_name, failed, is_unchanged};

/// One look at all there is.
pub(super) struct Look<'a> {
    /// The path by which the program knows the volume; for messages.
    pub volume: &'a str,
    pub store: &'a mut Store,
    pub changes: &'a mut Entries,
    /// When the look began. What changed about then or later may have changed after it was looked at.
    pub began: SystemTime,
    /// `None`: cannot be told.
    pub mapped: Option<HashSet<u64>>,
}

impl Look<'_> {
    /// `false`: something was removed or replaced since it was found.
    pub fn look_into(
        &mut self,
        directory: BorrowedFd,
        path: &mut Vec<u8>,
        slot: &mut Option<Box<Known>>,
    ) -> Result<bool, Error> {
        let stat = fstat(directory).map_err(failed("read", self.name(path)))?;
        let listed = slot
            .as_ref()
            .is_some_and(|known| known.is_directory() && !known.doubtful && is_unchanged(&known.stat, &stat));
        if !listed {
            let before = match slot.as_deref_mut() {
                Some(Known { what: What::Directory(children), .. }) => mem::take(children),
                _ => Vec::new(),
            };
            let mut before = before.into_iter().peekable();
            // Those that are not at the same place as before.
            let mut moved = HashMap::new();
            let mut children = Vec::with_capacity(before.len());
            let listing = each_name(directory, |name, inode, kind| {
                let (name, known) = match before.next_if(|child| *child.name.name == *name) {
                    Some(child) => (child.name.name, child.known),
                    None => {
                        moved.extend(before.by_ref().map(|child| (child.name.name, child.known)));
                        moved.remove_entry(name).unwrap_or_else(|| (name.into(), None))
                    }
                };
                children.push(Child { name: Name { name, inode, kind }, known });
            });
            listing.map_err(failed("list", self.name(path)))?;
            let gone = before.map(|child| (child.name.name, child.known)).chain(moved);
            for (name, known) in gone {
                within(path, &name, |path| self.note_removed(path, known.as_deref()));
            }
            let doubtful = is_recent(&stat, self.began);
            self.note(path, slot, Known { stat, doubtful, what: What::Directory(children) });
        }
        let mut complete = true;
        if let Some(Known { what: What::Directory(children), .. }) = slot.as_deref_mut() {
            for child in children {
                complete &= within(path, &child.name.name, |path| {
                    self.look_at(directory, &child.name.name, path, &mut child.known)
                })?;
            }
        }
        Ok(complete)
    }

    fn look_at(
        &mut self,
        directory: BorrowedFd,
        name: &[u8],
        path: &mut Vec<u8>,
        slot: &mut Option<Box<Known>>,
    ) -> Result<bool, Error> {
        let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            stat => stat.map_err(|errno| failed("read", self.name(path))(errno))?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_mapped = self.mapped.as_ref().is_none_or(|mapped| mapped.contains(&stat.st_ino));
        if let Some(known) = slot
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
        match kind {
            FileType::Directory => self.look_at_directory(directory, name, &stat, path, slot),
            FileType::Symlink => self.look_at_symlink(directory, name, stat, path, slot),
            FileType::RegularFile => self.look_at_file(directory, name, &stat, is_mapped, path, slot),
            _ => Err(Error::Unsealable(self.name(path))),
        }
    }

    fn look_at_directory(
        &mut self,
        directory: BorrowedFd,
        name: &[u8],
        stat: &Stat,
        path: &mut Vec<u8>,
        slot: &mut Option<Box<Known>>,
    ) -> Result<bool, Error> {
        match open_readable(directory, name, stat, OFlags::DIRECTORY) {
            Err(errno) if went(errno) => Ok(false),
            inner => {
                let inner = inner.map_err(failed("open", self.name(path)))?;
                self.look_into(inner.as_fd(), path, slot)
            }
        }
    }

    fn look_at_symlink(
        &mut self,
        directory: BorrowedFd,
        name: &[u8],
        stat: Stat,
        path: &mut Vec<u8>,
        slot: &mut Option<Box<Known>>,
    ) -> Result<bool, Error> {
        match readlinkat(directory, name, Vec::new()) {
            Err(errno) if went(errno) => Ok(false),
            target => {
                let target = Bytes(target.map_err(failed("read", self.name(path)))?.into_bytes());
                let doubtful = is_recent(&stat, self.began);
                self.note(path, slot, Known { stat, doubtful, what: What::Symlink(target) });
                Ok(true)
            }
        }
    }

    fn look_at_file(
        &mut self,
        directory: BorrowedFd,
        name: &[u8],
        stat: &Stat,
        is_mapped: bool,
        path: &mut Vec<u8>,
        slot: &mut Option<Box<Known>>,
    ) -> Result<bool, Error> {
        let plain = match open_readable(directory, name, stat, OFlags::empty()) {
            Err(errno) if went(errno) => return Ok(false),
            plain => plain.map_err(failed("open", self.name(path)))?,
        };
        // Before the content is read: what is written meanwhile moves the timestamps past these.
        let stat = fstat(&plain).map_err(failed("read", self.name(path)))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(false);
        }
        // A write that has begun has moved them already, and holds a lock that a search for data waits for. Whether there
        // is any data does not matter.
        let _ = seek(&plain, SeekFrom::Data(0));
        seek(&plain, SeekFrom::Start(0)).map_err(failed("read", self.name(path)))?;
        let content = self.store.add_content(&self.name(path), &mut File::from(plain))?;
        let doubtful = is_recent(&stat, self.began) || is_mapped;
        self.note(path, slot, Known { stat, doubtful, what: What::File(content) });
        Ok(true)
    }

    fn note(&mut self, path: &mut Vec<u8>, slot: &mut Option<Box<Known>>, known: Known) {
        let entry = known.entry();
        if slot.as_ref().is_none_or(|before| before.entry() != entry) {
            // A directory that became something else takes with it what was in it.
            if !known.is_directory() {
                self.note_removed(path, slot.as_deref());
            }
            // The root's mode is not the volume's.
            if !path.is_empty() {
                self.changes.insert(Bytes(path.clone()), Some(entry));
            }
        }
        *slot = Some(Box::new(known));
    }

    fn note_removed(&mut self, path: &mut Vec<u8>, gone: Option<&Known>) {
        let Some(gone) = gone else { return };
        let mut removed = |path: &[u8]| drop(self.changes.insert(Bytes(path.to_owned()), None));
        removed(path);
        gone.each_inside(path, &mut |path, _| removed(path));
    }

    fn name(&self, path: &[u8]) -> String {
        name(self.volume, path)
    }
}

/// Whether an error says that a thing was removed or replaced since it was found.
fn went(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL)
}
