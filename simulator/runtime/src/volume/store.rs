//! The sealed side of a volume: a directory of immutable encrypted files, added and deleted but never changed.
//!
//! Each file starts with a random ID, which with the volume's key gives the file's own key; then follow its chunks, numbered by
//! the nonce. So no nonce is used twice with the same key.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{Context, SHA256, digest};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, Stat, fdatasync, flock, fstat, fsync, openat, renameat, unlinkat,
};
use rustix::io::Errno;

use super::manifest::{Content, Manifest, is_id};
use super::{Error, failed, io_failed, is_unchanged, names, show};
use scone_protocol::{VolumeGrant, hex, unhex};

/// Bytes of a file that are encrypted together.
const CHUNK: usize = 64 * 1024;
const AEAD_TAG: usize = 16;
const ID: usize = 16;

/// How long a seal waits for programs that restore what it is about to delete.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks whether they are done.
const LOOK: Duration = Duration::from_millis(1);

/// The directory of a volume's sealed files. Its lock, if it has been taken, ends with it, or with the process.
pub struct Store {
    /// The path by which the program knows the volume; for messages.
    path: String,
    directory: OwnedFd,
    keys: Keys,
    /// What is sealed already, by its hash. An entry is of no more use once no one else holds it.
    contents: HashMap<String, Rc<Content>>,
    /// The directory as it was when nothing was missing.
    seen: Option<Stat>,
}

impl Store {
    /// Opens the directory.
    pub fn open(directory: &Path, grant: &VolumeGrant) -> Result<Store, Error> {
        let (path, keys) = (grant.path.clone(), Keys::new(grant)?);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let show = directory.display().to_string();
        let directory = openat(CWD, directory, flags, Mode::empty()).map_err(failed("open", show))?;
        Ok(Store { path, directory, keys, contents: HashMap::new(), seen: None })
    }

    /// Locks the directory: from now on nobody else can, and so nobody else adds or deletes files.
    pub fn lock(self) -> Result<Store, Error> {
        match flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(Error::Busy),
            locked => {
                locked.map_err(failed("lock", self.name(".")))?;
                Ok(self)
            }
        }
    }

    /// Without a tag, only what an unfinished first sealing left may be there: its manifest, of our key, and its draft.
    pub fn refuse_foreign_files(&self) -> Result<(), Error> {
        for name in self.names()? {
            let ours = match parse_name(&name) {
                Some((_, Kind::Draft)) => true,
                Some((_, Kind::Blob)) | None => false,
                Some((_, Kind::Manifest)) => {
                    let mut file = self.open_file(&name)?;
                    let length = file.metadata().map_err(io_failed("read", self.name(&name)))?.len();
                    match self.keys.decrypt("manifest", None, length, &mut file, &mut io::sink()) {
                        Ok(()) => true,
                        Err(Decryption::Chunk(_)) => false,
                        Err(Decryption::Io(source)) => return Err(io_failed("read", self.name(&name))(source)),
                    }
                }
            };
            if !ours {
                return Err(Error::Foreign(self.name(&name)));
            }
        }
        Ok(())
    }

    /// The manifest of that tag; and its file, which is locked: until it is closed, no seal deletes it, or a blob of its state.
    pub fn manifest(&self, tag: &str) -> Result<(Manifest, File), Error> {
        if !is_id(tag) {
            return Err(Error::BadGrant("volume tag"));
        }
        let name = manifest_name(tag);
        let mut file = self.open_file(&name)?;
        // A seal that deletes it has the lock, or had it.
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => return Err(Error::Removed(self.name(&name))),
            locked => locked.map_err(failed("lock", self.name(&name)))?,
        }
        if fstat(&file).map_err(failed("read", self.name(&name)))?.st_nlink == 0 {
            return Err(Error::Removed(self.name(&name)));
        }
        let mut sealed = Vec::new();
        file.read_to_end(&mut sealed).map_err(io_failed("read", self.name(&name)))?;
        if tag_of(&sealed) != tag {
            return Err(altered(self.name(&name), 0));
        }
        let (mut text, length) = (Vec::new(), sealed.len() as u64);
        match self.keys.decrypt("manifest", None, length, &mut sealed.as_slice(), &mut text) {
            Err(Decryption::Chunk(chunk)) => return Err(altered(self.name(&name), chunk)),
            Err(Decryption::Io(source)) => return Err(io_failed("read", self.name(&name))(source)),
            Ok(()) => {}
        }
        // Whoever wrote it had the key.
        let manifest = Manifest::decode(&text).ok_or(Error::OtherVersion)?;
        Ok((manifest, file))
    }

    /// Whether there are manifests of other tags than these.
    pub fn has_other_manifests(&self, tags: &HashSet<&str>) -> Result<bool, Error> {
        let is_other = |name: &String| matches!(parse_name(name), Some((tag, Kind::Manifest)) if !tags.contains(tag));
        Ok(self.names()?.iter().any(is_other))
    }

    /// Makes the manifest, and all that was sealed before it, durable. Its tag.
    pub fn add_manifest(&self, manifest: &Manifest) -> Result<String, Error> {
        let text = manifest.encode().map_err(|error| io_failed("encode", "manifest")(error.into()))?;
        let mut sealed = Vec::new();
        self.keys
            .encrypt("manifest", &random_id()?, &mut text.as_slice(), &mut sealed)
            .map_err(io_failed("encrypt", "manifest"))?;
        let tag = tag_of(&sealed);
        self.add(&manifest_name(&tag), |to| to.write_all(&sealed))?;
        fsync(&self.directory).map_err(failed("sync", self.name(".")))?;
        Ok(tag)
    }

    /// Seals a file's content, unless the same is sealed already.
    pub fn add_content(&mut self, name: &str, plain: &mut File) -> Result<Rc<Content>, Error> {
        let mut hashing = Hashing::new(plain);
        io::copy(&mut hashing, &mut io::sink()).map_err(io_failed("read", name))?;
        let (size, hash) = hashing.finish();
        if let Some(content) = self.contents.get(&hash).filter(|content| content.size == size) {
            return Ok(content.clone());
        }
        plain.rewind().map_err(io_failed("read", name))?;
        let id = random_id()?;
        let blob = hex(&id);
        let mut hashing = Hashing::new(plain);
        self.add(&blob_name(&blob), |to| self.keys.encrypt("blob", &id, &mut hashing, to))?;
        // Size and hash of the bytes that were sealed: the file may have changed since it was hashed.
        let (size, hash) = hashing.finish();
        let content = Rc::new(Content { size, hash: hash.clone(), blob });
        self.contents.insert(hash, content.clone());
        Ok(content)
    }

    /// Writes a file's content to `plain`, which the program knows as `name`.
    pub fn restore(&mut self, name: &str, content: &Rc<Content>, plain: &mut File) -> Result<(), Error> {
        let mut blob = self.open_file(&blob_name(&content.blob))?;
        let length = blob.metadata().map_err(io_failed("read", name))?.len();
        match self.keys.decrypt("blob", Some(&content.blob), length, &mut blob, plain) {
            Err(Decryption::Chunk(chunk)) => return Err(altered(name.to_owned(), chunk)),
            Err(Decryption::Io(source)) => return Err(io_failed("restore", name)(source)),
            Ok(()) => {}
        }
        self.contents.insert(content.hash.clone(), content.clone());
        Ok(())
    }

    /// Whether these manifests, and all contents that were sealed or restored, are still there. Looked up only if the directory
    /// was changed by somebody else.
    pub fn refuse_missing_files<'a>(&mut self, manifests: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let now = self.stat()?;
        if self.seen.is_some_and(|seen| is_unchanged(&seen, &now)) {
            return Ok(());
        }
        let names = self.names()?;
        let contents = self.contents.values().map(|content| blob_name(&content.blob));
        if let Some(name) = manifests.map(manifest_name).chain(contents).find(|name| !names.contains(name)) {
            return Err(Error::Removed(self.name(&name)));
        }
        self.seen = Some(now);
        Ok(())
    }

    /// Forgets the contents that no one holds any more. The names of their blobs.
    pub fn forget(&mut self) -> Vec<String> {
        let stale = self.contents.extract_if(|_, content| Rc::strong_count(content) == 1);
        stale.map(|(_, content)| blob_name(&content.blob)).collect()
    }

    /// Deletes the manifests of these tags, and blobs.
    pub fn delete<'a>(&mut self, manifests: impl Iterator<Item = &'a str>, blobs: &[String]) -> Result<(), Error> {
        self.delete_files(&manifests.map(manifest_name).collect::<Vec<_>>(), blobs)?;
        self.seen = Some(self.stat()?);
        Ok(())
    }

    fn stat(&self) -> Result<Stat, Error> {
        fstat(&self.directory).map_err(failed("read", self.name(".")))
    }

    /// Deletes all that is ours but these manifests and blobs.
    pub fn delete_leftovers(&self, manifests: &HashSet<&str>, blobs: &HashSet<&str>) -> Result<(), Error> {
        let (mut other_manifests, mut other_files) = (Vec::new(), Vec::new());
        for name in self.names()? {
            match parse_name(&name) {
                Some((tag, Kind::Manifest)) if !manifests.contains(tag) => other_manifests.push(name),
                Some((blob, Kind::Blob)) if !blobs.contains(blob) => other_files.push(name),
                Some((_, Kind::Draft)) => other_files.push(name),
                // Needed, or not ours to delete.
                _ => {}
            }
        }
        self.delete_files(&other_manifests, &other_files)
    }

    /// Deletes manifests, each once nobody restores what it describes, and then what only they needed.
    fn delete_files(&self, manifests: &[String], others: &[String]) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        manifests.iter().try_for_each(|name| self.delete_manifest(name, deadline))?;
        others.iter().try_for_each(|name| self.delete_file(name))
    }

    /// Waits until the manifest is not locked. Who has opened it already and locks it later sees that it is gone.
    fn delete_manifest(&self, name: &str, deadline: Instant) -> Result<(), Error> {
        let file = self.open_file(name)?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => sleep(LOOK),
                Err(Errno::WOULDBLOCK) => return Err(Error::StillRead),
                locked => {
                    locked.map_err(failed("lock", self.name(name)))?;
                    return self.delete_file(name);
                }
            }
        }
    }

    /// A sealed file has its name only when its content is durable.
    fn add(&self, name: &str, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
        let draft = format!("{name}.tmp");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let write = || -> io::Result<()> {
            let mut file = File::from(openat(&self.directory, &draft, flags, Mode::RUSR | Mode::WUSR)?);
            write(&mut file)?;
            fdatasync(&file)?;
            Ok(renameat(&self.directory, &draft, &self.directory, name)?)
        };
        write().map_err(io_failed("write", self.name(name)))
    }

    fn delete_file(&self, name: &str) -> Result<(), Error> {
        unlinkat(&self.directory, name, AtFlags::empty()).map_err(failed("delete", self.name(name)))
    }

    fn open_file(&self, name: &str) -> Result<File, Error> {
        // NONBLOCK: if somebody put a pipe there, opening it must not wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(&self.directory, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => Err(Error::Removed(self.name(name))),
            file => file.map(File::from).map_err(failed("open", self.name(name))),
        }
    }

    fn names(&self) -> Result<HashSet<String>, Error> {
        let names = names(&self.directory).map_err(failed("list", self.name(".")))?;
        Ok(names.iter().map(|name| show(&name.name)).collect())
    }

    fn name(&self, name: &str) -> String {
        format!("{name} (volume {})", self.path)
    }
}

fn manifest_name(tag: &str) -> String {
    format!("{tag}.manifest")
}

fn blob_name(id: &str) -> String {
    format!("{id}.blob")
}

/// The kinds of files in a sealed directory.
enum Kind {
    Manifest,
    Blob,
    Draft,
}

fn parse_name(name: &str) -> Option<(&str, Kind)> {
    let (id, kind) = name.split_once('.').filter(|(id, _)| is_id(id))?;
    match kind {
        "manifest" => Some((id, Kind::Manifest)),
        "blob" => Some((id, Kind::Blob)),
        "manifest.tmp" | "blob.tmp" => Some((id, Kind::Draft)),
        _ => None,
    }
}

fn altered(file: String, chunk: u64) -> Error {
    let from = chunk.saturating_mul(CHUNK as u64);
    Error::Altered { file, chunk, from, to: from.saturating_add(CHUNK as u64 - 1) }
}

/// Hashes what is read through it.
struct Hashing<'a> {
    inner: &'a mut File,
    hash: Context,
    size: u64,
}

impl Hashing<'_> {
    fn new(inner: &mut File) -> Hashing<'_> {
        Hashing { inner, hash: Context::new(&SHA256), size: 0 }
    }

    fn finish(self) -> (u64, String) {
        (self.size, hex(self.hash.finish().as_ref()))
    }
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}

/// The tag by which CAS knows the state that a sealed manifest describes.
pub fn tag_of(manifest: &[u8]) -> String {
    hex(&digest(&SHA256, manifest).as_ref()[..16])
}

fn random_id() -> Result<[u8; ID], Error> {
    let mut id = [0; ID];
    let drawn = SystemRandom::new().fill(&mut id);
    drawn.map_err(|error| io_failed("draw", "random bytes")(refused(error)))?;
    Ok(id)
}

/// The volume's key, and what is derived from it.
struct Keys {
    extracted: Prk,
    /// Goes into every derivation, so that a file of another volume never opens here.
    volume: Vec<u8>,
}

enum Decryption {
    Chunk(u64),
    Io(io::Error),
}

impl Keys {
    fn new(grant: &VolumeGrant) -> Result<Keys, Error> {
        let key = unhex(grant.key.expose()).filter(|key| key.len() == 32).ok_or(Error::BadGrant("volume key"))?;
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
