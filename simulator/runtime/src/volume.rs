//! Sealed volumes: encrypted on disk, plain files in memory, and exactly one state that counts: the one whose tag CAS holds.
//!
//! On disk lie immutable files. A *blob* is one file's content, `ID.blob`; a *manifest* lists paths, modes and blobs, or what
//! differs from an earlier manifest, `TAG.manifest`, its tag being the first 16 bytes of the SHA-256 of its (encrypted) bytes.
//!
//! Everything rests on the order of a seal: new blobs are durable, then the manifest is durable, then CAS has taken the tag, and
//! only then is anything deleted that the new state does not need. Wherever a seal is cut off, CAS's tag names a complete state.
//!
//! One program at a time can seal a volume: it holds a lock on the directory. Any number may restore its state meanwhile, and
//! write nothing: each holds a lock on the manifest that it restores, and a seal waits for the locks on the manifests that it
//! deletes. Those who come while it waits ask CAS and find the new state, so it never waits for newcomers.
//!
//! Limits: owners, timestamps, extended attributes and hard links are not kept. A changed file is sealed whole.

pub mod manifest;
mod store;
mod tree;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType, RawDir, SeekFrom, Stat, seek};
use rustix::io::Errno;

use scone_protocol::VolumeGrant;
pub use store::tag_of;

use manifest::{Bytes, Entries, Entry, Manifest};
use store::{PATIENCE, Store};
use tree::Tree;

/// A manifest may rest on an earlier one if it lists fewer differences than this share of all entries, and the volume has more
/// than [`SMALL`] entries.
const SHARE: usize = 8;
/// A volume with at most this many entries is always listed in full.
const SMALL: usize = 64;

/// Moves CAS's tag from the first (`None`: no tag yet) to the second. On failure: SCONE's `Caused by:` lines.
pub type SetTag<'a> = dyn FnMut(Option<&str>, &str) -> Result<(), Vec<String>> + 'a;

/// CAS's tag, asked for now (`None`: no tag yet). On failure: SCONE's `Caused by:` lines.
pub type ReadTag<'a> = dyn FnMut() -> Result<Option<String>, Vec<String>> + 'a;

/// How often an ephemeral opening looks for the present state, where another program seals the volume all the time.
const LOOKS: usize = 100;

/// What is wrong with a volume, or with reaching it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SCONE's words for an older copy.
    #[error("The FSPF tag is not fresh - suspected replay attack")]
    NotFresh,
    /// Own wording: SCONE's is not documented.
    #[error("file system protection file was removed: {0}")]
    Removed(String),
    /// SCONE's words for an altered file.
    #[error("Verification of file chunk {chunk} (bytes {from} to {to}) of file {file} failed.")]
    Altered {
        /// As the program would see it, or the manifest.
        file: String,
        /// Counted from 0.
        chunk: u64,
        /// First byte.
        from: u64,
        /// Last byte.
        to: u64,
    },
    /// Own wording, as is that of all variants below.
    #[error("'{0}' is not part of this volume, which was never used: its directory must be empty")]
    Foreign(String),
    /// The program's side must be empty, too.
    #[error("'{0}' is in the volume's path before the volume is opened")]
    NotEmpty(String),
    /// Another runtime has it.
    #[error("the volume is in use by another program")]
    Busy,
    /// A runtime that restores what a seal replaced has been stopped, or is very slow.
    #[error(
        "the changes are sealed, but another program has been opening the state before them for {} seconds: end it first",
        PATIENCE.as_secs()
    )]
    StillRead,
    /// What SCONE would not store either.
    #[error("'{0}' is no file, directory or symbolic link, so it cannot be sealed")]
    Unsealable(String),
    /// What could be sealed but not opened again.
    #[error("'{0}' has too long a path to be sealed")]
    PathTooLong(String),
    /// Another thread creates and renames files all the time.
    #[error("files are created and renamed faster than the volume can be sealed")]
    Restless,
    /// CAS did not take the tag.
    #[error("CAS did not take the volume's new tag")]
    TagRefused(Vec<String>),
    /// CAS did not tell the tag.
    #[error("CAS did not tell the volume's tag")]
    TagNotTold(Vec<String>),
    /// A bug or a wrong grant.
    #[error("CAS granted an unusable {0}")]
    BadGrant(&'static str),
    /// The manifest is genuine and yet unreadable.
    #[error("the volume was sealed by another version of the runtime")]
    OtherVersion,
    /// The system said no.
    #[error("cannot {what} '{file}': {source}")]
    Io {
        /// A verb.
        what: &'static str,
        /// Which file.
        file: String,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// The `Caused by:` lines, outermost first.
    pub fn causes(self) -> Vec<String> {
        let mut causes = vec![self.to_string()];
        if let Error::TagRefused(inner) | Error::TagNotTold(inner) = self {
            causes.extend(inner);
        }
        causes
    }
}

fn io_failed(what: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let file = file.into();
    move |source| Error::Io { what, file, source }
}

fn failed(what: &'static str, file: impl Into<String>) -> impl FnOnce(Errno) -> Error {
    let failed = io_failed(what, file);
    move |errno| failed(errno.into())
}

/// An open volume.
pub struct Volume {
    tree: Tree,
    store: Store,
    tag: Option<String>,
    /// The tag of the manifest that lists everything. The manifest of `tag` is that one, or lists the differences from it.
    base: Option<String>,
    /// What differs between the manifests of `base` and `tag`.
    differences: Entries,
    /// What has changed since `tag` was taken.
    changes: Entries,
    /// Whether there may be a manifest that an interrupted seal left behind, and what that manifest needs.
    leftovers: bool,
}

impl Volume {
    /// Opens the state that `grant` names, found encrypted in the directory `sealed`, into the empty directory `plain`.
    /// A volume without a tag is opened empty, and exists only once it has been sealed.
    pub fn open(sealed: &Path, plain: &Path, grant: &VolumeGrant) -> Result<Volume, Error> {
        let mut volume = Volume {
            store: Store::open(sealed, grant)?.lock()?,
            tree: Tree::open(plain, &grant.path)?,
            tag: grant.tag.clone(),
            base: None,
            differences: Entries::new(),
            changes: Entries::new(),
            leftovers: true,
        };
        match grant.tag.as_deref() {
            None => volume.store.refuse_foreign_files()?,
            Some(tag) => volume.restore(tag)?,
        }
        Ok(volume)
    }

    fn restore(&mut self, tag: &str) -> Result<(), Error> {
        let State { base, differences, entries, .. } = State::find(&self.store, tag)?;
        self.tree.restore(&entries, &mut self.store)?;
        (self.base, self.differences) = (Some(base), differences);
        // No manifest is deleted here, so nobody restores what this deletes.
        self.leftovers = self.store.has_other_manifests(&self.tags())?;
        if !self.leftovers {
            self.store.delete_leftovers(&self.tags(), &self.tree.blobs())?;
        }
        Ok(())
    }

    /// The tags whose manifests are needed.
    fn tags(&self) -> HashSet<&str> {
        self.tag.iter().chain(&self.base).map(String::as_str).collect()
    }

    /// Makes the present state of the plain files the one that counts. When this returns, they are safe. When nothing has
    /// changed, nothing is written and CAS is not asked.
    pub fn seal(&mut self, set_tag: &mut SetTag) -> Result<(), Error> {
        let tags = self.tag.iter().chain(&self.base).map(String::as_str);
        self.store.refuse_missing_files(tags)?;
        self.tree.look(&mut self.store, &mut self.changes)?;
        if self.tag.is_some() && self.changes.is_empty() {
            return Ok(());
        }
        let (base, entries) = match &self.base {
            Some(base)
                if self.tree.len() > SMALL
                    && (self.differences.len() + self.changes.len()) * SHARE < self.tree.len() =>
            {
                self.differences.extend(self.changes.clone());
                (Some(base.clone()), self.differences.clone())
            }
            _ => (None, self.tree.entries()),
        };
        let manifest = Manifest::new(base, entries);
        let tag = self.store.add_manifest(&manifest)?;

        set_tag(self.tag.as_deref(), &tag).map_err(Error::TagRefused)?;

        let base = manifest.base.unwrap_or_else(|| tag.clone());
        if base == tag {
            self.differences.clear();
        }
        self.changes.clear();
        let before: HashSet<String> = [self.tag.replace(tag), self.base.replace(base)].into_iter().flatten().collect();
        let blobs = self.store.forget();
        if !self.leftovers {
            let stale = before.iter().filter(|&tag| self.tag.as_ref() != Some(tag) && self.base.as_ref() != Some(tag));
            return self.store.delete(stale.map(String::as_str), &blobs);
        }
        // A killed runtime's last request may still have been on its way to CAS. What it names had to be there until now, when
        // CAS has moved on and will refuse it. All at one go: another program may still restore what that runtime replaced.
        self.store.delete_leftovers(&self.tags(), &self.tree.blobs())?;
        self.leftovers = false;
        Ok(())
    }
}

/// Restores the volume's present state into the empty directory `plain`, as a copy that belongs to whoever opens it: it is never
/// sealed. Nothing is written or deleted in `sealed`. A volume without a tag is opened empty.
///
/// Assumption: SCONE does not document whether a volume can be opened while another program has it.
pub fn open_ephemeral(sealed: &Path, plain: &Path, grant: &VolumeGrant, read_tag: &mut ReadTag) -> Result<(), Error> {
    let mut store = Store::open(sealed, grant)?;
    let mut tree = Tree::open(plain, &grant.path)?;
    let mut ask = || read_tag().map_err(Error::TagNotTold);
    let (mut tag, mut looks) = (ask()?, 0);
    loop {
        let found = match &tag {
            None => store.refuse_foreign_files().map(|()| None),
            Some(tag) => State::find(&store, tag).map(Some),
        };
        let refusal = match found {
            Ok(None) => return Ok(()),
            Ok(Some(state)) => return tree.restore(&state.entries, &mut store),
            Err(refusal) => refusal,
        };
        // If the tag has moved, a seal may have deleted that state since CAS was asked. The number of looks is limited, or an older
        // copy would not be refused for as long as the volume itself is sealed elsewhere.
        looks += 1;
        let now = ask()?;
        if now == tag || looks == LOOKS {
            return Err(refusal);
        }
        tag = now;
    }
}

/// What the manifests say of the state of one tag.
struct State {
    base: String,
    differences: Entries,
    entries: BTreeMap<Bytes, Entry>,
    /// Keeps all that the state needs from being deleted by a seal.
    _held: File,
}

impl State {
    fn find(store: &Store, tag: &str) -> Result<State, Error> {
        let (manifest, held) = match store.manifest(tag) {
            Err(Error::Removed(_)) if store.has_other_manifests(&HashSet::new())? => return Err(Error::NotFresh),
            manifest => manifest?,
        };
        let (base, mut entries, differences) = match manifest.base {
            None => (tag.to_owned(), manifest.entries, Entries::new()),
            Some(base) => {
                let (whole, _) = store.manifest(&base)?;
                if whole.base.is_some() {
                    return Err(Error::OtherVersion);
                }
                (base, whole.entries, manifest.entries)
            }
        };
        entries.extend(differences.clone());
        let entries = entries.into_iter().filter_map(|(path, entry)| Some((path, entry?))).collect();
        Ok(State { base, differences, entries, _held: held })
    }
}

/// Whether nothing has changed at a path, as far as that can be told without looking into it.
fn is_unchanged(seen: &Stat, now: &Stat) -> bool {
    let key = |s: &Stat| (s.st_ino, s.st_size, s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec);
    key(seen) == key(now)
}

fn show(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// What a directory says of one thing in it.
#[derive(Debug, Clone, PartialEq)]
struct Name {
    name: Box<[u8]>,
    inode: u64,
    kind: FileType,
}

fn names(directory: impl AsFd) -> Result<Vec<Name>, Errno> {
    let mut names = Vec::new();
    each_name(directory, |name, inode, kind| names.push(Name { name: name.into(), inode, kind }))?;
    Ok(names)
}

/// Calls `act` with name, inode and kind of each thing in the directory.
fn each_name(directory: impl AsFd, mut act: impl FnMut(&[u8], u64, FileType)) -> Result<(), Errno> {
    // Large enough for any name, and for a large directory in few calls.
    let mut buffer = Vec::with_capacity(1 << 15);
    seek(&directory, SeekFrom::Start(0))?;
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Err(Errno::INTR) => continue,
            // The directory itself was removed meanwhile.
            Err(Errno::NOENT) => break,
            entry => entry?,
        };
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            act(name, entry.ino(), entry.file_type());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_removed_while_it_is_open_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let opened = std::fs::File::open(directory.path()).unwrap();
        directory.close().unwrap();
        assert_eq!(names(&opened), Ok(Vec::new()));
    }
}
