//! Sealed volumes: encrypted on disk, plain files in memory, and exactly one state that counts: the one whose tag CAS holds.
//!
//! On disk lie immutable files. A *blob* is one file's content, `ID.blob`; a *manifest* lists paths, modes and blobs,
//! `TAG.manifest`, its tag being the first 16 bytes of the SHA-256 of its (encrypted) bytes. Each of them is encrypted under a
//! key of its own, derived from the volume's key and a random ID, in chunks numbered by the nonce: no nonce serves twice.
//!
//! The order of a seal is what everything rests on: new blobs durable, manifest durable, tag taken by CAS, and only then is
//! deleted what the new manifest does not need. Killed anywhere, CAS's tag still names a complete state.
//!
//! Limits: owners, timestamps, extended attributes and hard links are not kept. A changed file is sealed whole.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{Context, SHA256, digest};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, Stat, chmodat, fchmod, fdatasync, flock, fstat, fsync,
    major, makedev, minor, mkdirat, openat, readlinkat, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize, de};

use crate::protocol::{VolumeGrant, hex, unhex};

/// Bytes of a file that are encrypted together.
const CHUNK: usize = 64 * 1024;
const AEAD_TAG: usize = 16;
const ID: usize = 16;

/// A file changed as recently as this may change again under the same timestamp: those move with the timer tick.
const TICK: Duration = Duration::from_millis(20);

/// How often a tree that changes while it is read is read again.
const ATTEMPTS: usize = 1000;

/// Moves CAS's tag from the first (`None`: no tag yet) to the second. On failure: SCONE's `Caused by:` lines.
pub type SetTag<'a> = dyn FnMut(Option<&str>, &str) -> Result<(), Vec<String>> + 'a;

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
    /// Own wording, as are all that follow.
    #[error("'{0}' is not part of this volume, which was never used: its directory must be empty")]
    Foreign(String),
    /// The program's side must be empty, too.
    #[error("'{0}' is in the volume's path before the volume is opened")]
    NotEmpty(String),
    /// Another runtime has it.
    #[error("the volume is in use by another program")]
    Busy,
    /// What SCONE would not store either.
    #[error("'{0}' is no file, directory or symbolic link, so it cannot be sealed")]
    Unsealable(String),
    /// What could be sealed but not opened again.
    #[error("'{0}' has too long a path to be sealed")]
    PathTooLong(String),
    /// Some other thread never stops creating and renaming.
    #[error("files are created and renamed faster than the volume can be sealed")]
    Restless,
    /// CAS did not take the tag.
    #[error("CAS did not take the volume's new tag")]
    TagRefused(Vec<String>),
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
        if let Error::TagRefused(inner) = self {
            causes.extend(inner);
        }
        causes
    }
}

fn failed(what: &'static str, file: impl Into<String>) -> impl FnOnce(Errno) -> Error {
    let file = file.into();
    move |errno| Error::Io { what, file, source: errno.into() }
}

/// Bytes that are text in a manifest, whatever they are: a path, a link's target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Bytes(Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        unhex(&text).map(Bytes).ok_or_else(|| de::Error::custom("not hex"))
    }
}

/// One thing in a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Entry {
    Directory { mode: u32 },
    Symlink { target: Bytes },
    File { mode: u32, content: Content },
}

/// A file's content, and where it is sealed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    size: u64,
    /// SHA-256 of the plain bytes.
    hash: String,
    /// The blob's ID.
    blob: String,
}

/// Paths relative to the volume's root. The order puts a directory before what is in it.
type Entries = BTreeMap<Bytes, Entry>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    entries: Entries,
}

/// What was last seen of a file, to tell by `stat` alone that it has not changed.
struct Seen {
    stat: Stat,
    /// It may have changed since without its timestamps telling.
    doubtful: bool,
    content: Content,
}

/// What a walk finds.
struct Found {
    stat: Stat,
    target: Option<Bytes>,
}

/// An open volume. Its lock on the sealed directory ends with it, or with the process.
pub struct Volume {
    /// The path by which the program knows the volume; for messages.
    path: String,
    sealed: OwnedFd,
    plain: OwnedFd,
    keys: Keys,
    tag: Option<String>,
    /// What the manifest of `tag` says.
    entries: Entries,
    seen: HashMap<Bytes, Seen>,
}

impl Volume {
    /// Opens the state that `grant` names, found encrypted in the directory `sealed`, into the empty directory `plain`.
    /// A volume without a tag is opened empty, and exists only once it was sealed.
    pub fn open(sealed: &Path, plain: &Path, grant: &VolumeGrant) -> Result<Volume, Error> {
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| {
            openat(CWD, path, directory, Mode::empty()).map_err(failed("open", path.display().to_string()))
        };
        let volume = Volume {
            path: grant.path.clone(),
            sealed: open(sealed)?,
            plain: open(plain)?,
            keys: Keys::new(grant)?,
            tag: grant.tag.clone(),
            entries: Entries::new(),
            seen: HashMap::new(),
        };
        match flock(&volume.sealed, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy),
            result => result.map_err(failed("lock", sealed.display().to_string()))?,
        }
        if let Some(name) = names(&volume.plain).map_err(failed("list", &grant.path))?.into_iter().next() {
            return Err(Error::NotEmpty(show(&name)));
        }
        match grant.tag.as_deref() {
            None => volume.refuse_foreign_files().map(|()| volume),
            Some(tag) => volume.restore(tag),
        }
    }

    /// Makes the present state of the plain files the one that counts. When this returns, they are safe. When nothing has
    /// changed, nothing is written and CAS is not asked.
    pub fn seal(&mut self, set_tag: &mut SetTag) -> Result<(), Error> {
        self.refuse_missing_files(&self.sealed_names()?)?;
        let entries = self.snapshot()?;
        if self.tag.is_some() && self.entries == entries {
            return Ok(());
        }
        let manifest = serde_json::to_vec(&Manifest { version: 1, entries: entries.clone() })
            .map_err(|error| Error::Io { what: "encode", file: "manifest".to_owned(), source: error.into() })?;
        let id = random_id()?;
        let mut file = Vec::new();
        self.keys.encrypt("manifest", &id, &mut manifest.as_slice(), &mut file).map_err(|source| Error::Io {
            what: "encrypt",
            file: "manifest".to_owned(),
            source,
        })?;
        let tag = tag_of(&file);
        self.write_durably(&format!("{tag}.manifest"), |to| to.write_all(&file))?;
        fsync(&self.sealed).map_err(failed("sync", self.sealed_name(".")))?;

        set_tag(self.tag.as_deref(), &tag).map_err(Error::TagRefused)?;
        self.tag = Some(tag);
        self.entries = entries;
        self.seen.retain(|path, _| self.entries.contains_key(path));
        self.delete_what_is_not_needed()
    }

    fn restore(mut self, tag: &str) -> Result<Volume, Error> {
        let names = self.sealed_names()?;
        let manifest = format!("{tag}.manifest");
        if !names.contains(&manifest) {
            let older = names.iter().any(|name| name.ends_with(".manifest"));
            return Err(if older { Error::NotFresh } else { Error::Removed(self.sealed_name(&manifest)) });
        }
        let mut file = Vec::new();
        self.open_sealed(&manifest)?.read_to_end(&mut file).map_err(|source| Error::Io {
            what: "read",
            file: self.sealed_name(&manifest),
            source,
        })?;
        let altered = |chunk| self.altered(self.sealed_name(&manifest), chunk);
        if tag_of(&file) != tag {
            return Err(altered(0));
        }
        let mut text = Vec::new();
        let length = file.len() as u64;
        match self.keys.decrypt("manifest", None, length, &mut file.as_slice(), &mut text) {
            Err(Decryption::Chunk(chunk)) => return Err(altered(chunk)),
            Err(Decryption::Io(source)) => return Err(Error::Io { what: "read", file: manifest, source }),
            Ok(()) => {}
        }
        // Whoever wrote it had the key.
        self.entries = match serde_json::from_slice(&text) {
            Ok(Manifest { version: 1, entries }) => entries,
            _ => return Err(Error::OtherVersion),
        };
        self.refuse_missing_files(&names)?;
        for (path, entry) in &self.entries {
            self.restore_entry(path, entry)?;
        }
        // Last, and the innermost first: a directory may be read-only.
        for (path, entry) in self.entries.iter().rev() {
            if let Entry::Directory { mode } = entry {
                chmodat(&self.plain, &path.0[..], Mode::from_raw_mode(*mode), AtFlags::empty())
                    .map_err(failed("restore", self.plain_name(path)))?;
            }
        }
        self.delete_what_is_not_needed()?;
        Ok(self)
    }

    fn restore_entry(&self, path: &Bytes, entry: &Entry) -> Result<(), Error> {
        let at = &path.0[..];
        let name = || self.plain_name(path);
        match entry {
            Entry::Directory { .. } => mkdirat(&self.plain, at, Mode::RWXU).map_err(failed("restore", name())),
            Entry::Symlink { target } => symlinkat(&target.0[..], &self.plain, at).map_err(failed("restore", name())),
            Entry::File { mode, content } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let plain = openat(&self.plain, at, flags, Mode::RUSR | Mode::WUSR);
                let mut plain = File::from(plain.map_err(failed("restore", name()))?);
                let mut blob = self.open_sealed(&format!("{}.blob", content.blob))?;
                let length = blob.metadata().map_err(|source| Error::Io { what: "read", file: name(), source })?.len();
                match self.keys.decrypt("blob", Some(&content.blob), length, &mut blob, &mut plain) {
                    Err(Decryption::Chunk(chunk)) => return Err(self.altered(name(), chunk)),
                    Err(Decryption::Io(source)) => return Err(Error::Io { what: "restore", file: name(), source }),
                    Ok(()) => {}
                }
                fchmod(&plain, Mode::from_raw_mode(*mode)).map_err(failed("restore", name()))
            }
        }
    }

    /// All entries as they are now; new content is sealed on the way. Files may come and go meanwhile, and a walk can miss one
    /// that moves from where it has yet to go to where it has been: two walks must have found the same.
    fn snapshot(&mut self) -> Result<Entries, Error> {
        let mut before = self.walk()?;
        for _ in 0..ATTEMPTS {
            let entries = self.seal_content(&before)?;
            let after = self.walk()?;
            let same = before.len() == after.len()
                && before.iter().zip(&after).all(|((path, one), (other_path, other))| {
                    path == other_path && one.stat.st_ino == other.stat.st_ino && one.target == other.target
                });
            match entries {
                Some(entries) if same => return Ok(entries),
                _ => before = after,
            }
        }
        Err(Error::Restless)
    }

    fn walk(&self) -> Result<BTreeMap<Bytes, Found>, Error> {
        let mut found = BTreeMap::new();
        let top =
            self.plain.try_clone().map_err(|source| Error::Io { what: "open", file: self.path.clone(), source })?;
        self.walk_into(top.as_fd(), &[], &mut found)?;
        Ok(found)
    }

    fn walk_into(&self, directory: BorrowedFd, prefix: &[u8], found: &mut BTreeMap<Bytes, Found>) -> Result<(), Error> {
        for name in names(directory).map_err(failed("list", self.plain_name(&Bytes(prefix.to_owned()))))? {
            let mut path = prefix.to_owned();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(&name);
            let path = Bytes(path);
            if path.0.len() >= libc::PATH_MAX as usize {
                return Err(Error::PathTooLong(self.plain_name(&path)));
            }
            let stat = match statat(directory, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat.map_err(failed("read", self.plain_name(&path)))?,
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            let mut target = None;
            if kind == FileType::Symlink {
                match readlinkat(directory, &name[..], Vec::new()) {
                    Err(Errno::NOENT | Errno::INVAL) => continue,
                    link => {
                        let link = link.map_err(failed("read", self.plain_name(&path)))?;
                        target = Some(Bytes(link.into_bytes()));
                    }
                }
            }
            if kind == FileType::Directory {
                match open_readable(directory, &name, &stat, OFlags::DIRECTORY) {
                    // Gone, or something else by now: the second walk tells.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                    inner => {
                        let inner = inner.map_err(failed("open", self.plain_name(&path)))?;
                        self.walk_into(inner.as_fd(), &path.0, found)?;
                    }
                }
            }
            found.insert(path, Found { stat, target });
        }
        Ok(())
    }

    /// `None`: a file went, or became another, since it was found.
    fn seal_content(&mut self, found: &BTreeMap<Bytes, Found>) -> Result<Option<Entries>, Error> {
        let device = fstat(&self.plain).map_err(failed("read", &self.path))?.st_dev;
        let mapped = shared_mappings(device);
        let mut entries = Entries::new();
        for (path, Found { stat, target }) in found {
            let mode = stat.st_mode & 0o7777;
            let entry = match (FileType::from_raw_mode(stat.st_mode), target) {
                (FileType::Directory, _) => Entry::Directory { mode },
                (FileType::Symlink, Some(target)) => Entry::Symlink { target: target.clone() },
                (FileType::RegularFile, _) => match self.content(path, stat, mapped.as_ref())? {
                    Some(content) => Entry::File { mode, content },
                    None => return Ok(None),
                },
                _ => return Err(Error::Unsealable(self.plain_name(path))),
            };
            entries.insert(path.clone(), entry);
        }
        Ok(Some(entries))
    }

    /// The content of one file, sealed. Cost follows what changed: an untouched file is not even opened.
    fn content(&mut self, path: &Bytes, found: &Stat, mapped: Option<&HashSet<u64>>) -> Result<Option<Content>, Error> {
        let is_mapped = mapped.is_none_or(|mapped| mapped.contains(&found.st_ino));
        if let Some(seen) = self.seen.get(path)
            && !seen.doubtful
            && !is_mapped
            && unchanged(&seen.stat, found)
        {
            return Ok(Some(seen.content.clone()));
        }
        let failed = |what, source| Error::Io { what, file: self.plain_name(path), source };
        let plain = match open_readable(self.plain.as_fd(), &path.0, found, OFlags::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            plain => plain.map_err(|errno| failed("open", errno.into()))?,
        };
        // Before the content is read: what is written meanwhile moves the timestamps past these.
        let now = SystemTime::now();
        let stat = fstat(&plain).map_err(|errno| failed("read", errno.into()))?;
        if stat.st_ino != found.st_ino {
            return Ok(None);
        }
        let mut plain = File::from(plain);
        let (size, hash) = hash(&mut plain).map_err(|source| failed("read", source))?;
        let known = self.seen.get(path).map(|seen| &seen.content).into_iter().chain(self.entries.values().filter_map(
            |entry| match entry {
                Entry::File { content, .. } => Some(content),
                _ => None,
            },
        ));
        let content = match known.into_iter().find(|content| content.hash == hash && content.size == size) {
            Some(content) => content.clone(),
            None => {
                io::Seek::rewind(&mut plain).map_err(|source| failed("read", source))?;
                self.write_blob(&mut plain)?
            }
        };
        let recent = changed_at(&stat).is_none_or(|changed| changed + TICK > now);
        let seen = Seen { stat, doubtful: recent || is_mapped, content: content.clone() };
        self.seen.insert(path.clone(), seen);
        Ok(Some(content))
    }

    fn write_blob(&self, plain: &mut File) -> Result<Content, Error> {
        let id = random_id()?;
        let blob = hex(&id);
        let mut plain = Hashing { inner: plain, hash: Context::new(&SHA256), size: 0 };
        self.write_durably(&format!("{blob}.blob"), |to| self.keys.encrypt("blob", &id, &mut plain, to))?;
        // Of the bytes that were sealed, should the file have changed since it was hashed.
        Ok(Content { size: plain.size, hash: hex(plain.hash.finish().as_ref()), blob })
    }

    /// A sealed file has its name only when its content is durable.
    fn write_durably(&self, name: &str, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
        let draft = format!("{name}.tmp");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let write = || -> io::Result<()> {
            let mut file = File::from(openat(&self.sealed, &draft, flags, Mode::RUSR | Mode::WUSR)?);
            write(&mut file)?;
            fdatasync(&file)?;
            Ok(renameat(&self.sealed, &draft, &self.sealed, name)?)
        };
        write().map_err(|source| Error::Io { what: "write", file: self.sealed_name(name), source })
    }

    fn refuse_missing_files(&self, names: &HashSet<String>) -> Result<(), Error> {
        let manifest = self.tag.iter().map(|tag| format!("{tag}.manifest"));
        match manifest.chain(self.blobs().map(|blob| format!("{blob}.blob"))).find(|name| !names.contains(name)) {
            Some(name) => Err(Error::Removed(self.sealed_name(&name))),
            None => Ok(()),
        }
    }

    /// Without a tag, only what an unfinished first sealing left may be there: its manifest, of our key, and its draft.
    fn refuse_foreign_files(&self) -> Result<(), Error> {
        for name in self.sealed_names()? {
            let ours = match parse_name(&name) {
                Some(Kind::Draft) => true,
                Some(Kind::Blob) | None => false,
                Some(Kind::Manifest) => {
                    let mut file = self.open_sealed(&name)?;
                    let failed = |source| Error::Io { what: "read", file: self.sealed_name(&name), source };
                    let length = file.metadata().map_err(failed)?.len();
                    match self.keys.decrypt("manifest", None, length, &mut file, &mut io::sink()) {
                        Ok(()) => true,
                        Err(Decryption::Chunk(_)) => false,
                        Err(Decryption::Io(source)) => return Err(failed(source)),
                    }
                }
            };
            if !ours {
                return Err(Error::Foreign(self.sealed_name(&name)));
            }
        }
        Ok(())
    }

    fn delete_what_is_not_needed(&self) -> Result<(), Error> {
        let blobs: HashSet<&str> = self.blobs().collect();
        for name in self.sealed_names()? {
            let needed = match (parse_name(&name), name.split_once('.')) {
                (Some(Kind::Manifest), Some((tag, _))) => self.tag.as_deref() == Some(tag),
                (Some(Kind::Blob), Some((blob, _))) => blobs.contains(blob),
                (Some(Kind::Draft), _) => false,
                // Not ours to delete.
                _ => true,
            };
            if !needed {
                unlinkat(&self.sealed, &name, AtFlags::empty()).map_err(failed("delete", self.sealed_name(&name)))?;
            }
        }
        Ok(())
    }

    fn blobs(&self) -> impl Iterator<Item = &str> {
        self.entries.values().filter_map(|entry| match entry {
            Entry::File { content, .. } => Some(content.blob.as_str()),
            _ => None,
        })
    }

    fn sealed_names(&self) -> Result<HashSet<String>, Error> {
        let names = names(&self.sealed).map_err(failed("list", self.sealed_name(".")))?;
        Ok(names.iter().map(|name| show(name)).collect())
    }

    fn open_sealed(&self, name: &str) -> Result<File, Error> {
        // Whatever was put there must not be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(&self.sealed, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => Err(Error::Removed(self.sealed_name(name))),
            file => file.map(File::from).map_err(failed("open", self.sealed_name(name))),
        }
    }

    fn altered(&self, file: String, chunk: u64) -> Error {
        let from = chunk.saturating_mul(CHUNK as u64);
        Error::Altered { file, chunk, from, to: from.saturating_add(CHUNK as u64 - 1) }
    }

    fn plain_name(&self, path: &Bytes) -> String {
        format!("{}/{}", self.path, show(&path.0))
    }

    fn sealed_name(&self, name: &str) -> String {
        format!("{name} (volume {})", self.path)
    }
}

/// The kinds of files in a sealed directory.
enum Kind {
    Manifest,
    Blob,
    Draft,
}

fn parse_name(name: &str) -> Option<Kind> {
    let (id, kind) = name.split_once('.')?;
    unhex(id).filter(|id| id.len() == ID)?;
    match kind {
        "manifest" => Some(Kind::Manifest),
        "blob" => Some(Kind::Blob),
        "manifest.tmp" | "blob.tmp" => Some(Kind::Draft),
        _ => None,
    }
}

fn show(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn names(directory: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
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

fn unchanged(seen: &Stat, now: &Stat) -> bool {
    let key = |s: &Stat| (s.st_ino, s.st_size, s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec);
    key(seen) == key(now)
}

fn changed_at(stat: &Stat) -> Option<SystemTime> {
    let seconds = u64::try_from(stat.st_ctime).ok()?;
    UNIX_EPOCH.checked_add(Duration::new(seconds, u32::try_from(stat.st_ctime_nsec).ok()?))
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

fn hash(file: &mut File) -> io::Result<(u64, String)> {
    let mut hashing = Hashing { inner: file, hash: Context::new(&SHA256), size: 0 };
    io::copy(&mut hashing, &mut io::sink())?;
    Ok((hashing.size, hex(hashing.hash.finish().as_ref())))
}

/// Hashes what is read through it.
struct Hashing<'a> {
    inner: &'a mut File,
    hash: Context,
    size: u64,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}

fn tag_of(manifest: &[u8]) -> String {
    hex(&digest(&SHA256, manifest).as_ref()[..16])
}

fn random_id() -> Result<[u8; ID], Error> {
    let mut id = [0; ID];
    let drawn = SystemRandom::new().fill(&mut id);
    drawn.map_err(|error| Error::Io { what: "draw", file: "random bytes".to_owned(), source: refused(error) })?;
    Ok(id)
}

/// The volume's key, and what is derived from it.
struct Keys {
    extracted: Prk,
    /// Goes into every derivation: a file of another volume opens here under no circumstances.
    volume: Vec<u8>,
}

enum Decryption {
    Chunk(u64),
    Io(io::Error),
}

impl Keys {
    fn new(grant: &VolumeGrant) -> Result<Keys, Error> {
        let key = unhex(grant.key.expose()).filter(|key| key.len() == 32).ok_or(Error::BadGrant("volume key"))?;
        if grant.tag.as_ref().is_some_and(|tag| unhex(tag).is_none_or(|tag| tag.len() != 16)) {
            return Err(Error::BadGrant("volume tag"));
        }
        let extracted = Salt::new(HKDF_SHA256, b"scone-sim volume 1").extract(&key);
        // Names hold no NUL, so the two cannot run together.
        Ok(Keys { extracted, volume: [grant.session.as_bytes(), b"\0", grant.name.as_bytes(), b"\0"].concat() })
    }

    /// The key of one sealed file. IDs are 128 random bits, so a key serves one file, and within it the nonce is the chunk's
    /// number: no nonce is used twice with the same key.
    fn of(&self, role: &str, id: &[u8]) -> Result<LessSafeKey, ring::error::Unspecified> {
        let key =
            self.extracted.expand(&[&self.volume, role.as_bytes(), b"\0", id], &AES_256_GCM).map(UnboundKey::from);
        key.map(LessSafeKey::new)
    }

    /// Writes the ID, then the chunks. The associated data marks the last one, so that none can be cut off or added.
    fn encrypt(&self, role: &str, id: &[u8; ID], from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
        let key = self.of(role, id).map_err(refused)?;
        to.write_all(id)?;
        let mut chunk = read_chunk(from)?;
        for number in 0u64.. {
            let next = if chunk.len() < CHUNK { Vec::new() } else { read_chunk(from)? };
            let last = next.is_empty();
            key.seal_in_place_append_tag(nonce(number), Aad::from([u8::from(last)]), &mut chunk).map_err(refused)?;
            to.write_all(&chunk)?;
            if last {
                break;
            }
            chunk = next;
        }
        Ok(())
    }

    /// Reads what [`Keys::encrypt`] wrote, all `length` bytes of it. `id`: the one it must have; `None`: any.
    fn decrypt(
        &self,
        role: &str,
        id: Option<&str>,
        length: u64,
        from: &mut impl Read,
        to: &mut impl Write,
    ) -> Result<(), Decryption> {
        let mut found = [0; ID];
        let mut left = length.checked_sub(ID as u64).ok_or(Decryption::Chunk(0))?;
        from.read_exact(&mut found).map_err(Decryption::Io)?;
        if id.is_some_and(|id| id != hex(&found)) {
            return Err(Decryption::Chunk(0));
        }
        let key = self.of(role, &found).map_err(|_| Decryption::Chunk(0))?;
        let mut buffer = vec![0; CHUNK + AEAD_TAG];
        for number in 0u64.. {
            let size = left.min(buffer.len() as u64);
            left -= size;
            let chunk = &mut buffer[..size as usize];
            from.read_exact(chunk).map_err(Decryption::Io)?;
            let last = left == 0;
            let plain = key
                .open_in_place(nonce(number), Aad::from([u8::from(last)]), chunk)
                .map_err(|_| Decryption::Chunk(number))?;
            to.write_all(plain).map_err(Decryption::Io)?;
            if last {
                break;
            }
        }
        Ok(())
    }
}

/// ring does not say why.
fn refused(_: ring::error::Unspecified) -> io::Error {
    io::Error::other("the cryptographic library refused")
}

fn nonce(chunk: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&chunk.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// A full chunk, or what is left; empty at the end.
fn read_chunk(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(CHUNK + AEAD_TAG);
    from.take(CHUNK as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}
