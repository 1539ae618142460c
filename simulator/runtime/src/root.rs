//! On a host, without a container engine: a root of the program's own, in the runtime's own namespaces.
//!
//! The new root is laid out in memory: the entries of an unpacked image, or of a copy of what was measured of it, read-only;
//! the directories that the caller binds; a minimal `/dev`; `/proc`; and for each volume an empty file system in memory. Needs no privilege, only user namespaces.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, StatVfsMountFlags, fstat, openat, readlinkat, statvfs};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, getegid, geteuid, pivot_root};

use crate::sys;

const MEMORY: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

const DEVICES: [&str; 5] = ["full", "null", "random", "urandom", "zero"];

/// Why the root could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct Error {
    what: String,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
    let what = what.into();
    move |error| Error { what, source: error.into() }
}

/// What the caller put together: an unpacked image and the directories to be seen in it.
pub struct Image {
    path: PathBuf,
    /// The unpacked image, by descriptor: its path gets covered.
    pub directory: OwnedFd,
    binds: Vec<(OwnedFd, PathBuf)>,
    /// Where the program may write and nothing is kept, unless a volume is there.
    scratch: Vec<PathBuf>,
    /// All that may be executed is in `directory`.
    is_copy: bool,
}

impl Image {
    /// Opens the unpacked image at `path`, and each `(directory of the host, path in the image)`. What is opened in another
    /// mount namespace than [`Image::enter`] is called in cannot be mounted.
    pub fn open(path: &Path, binds: &[(PathBuf, PathBuf)]) -> Result<Image, Error> {
        let open = |path: &Path, flags| {
            openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())
                .map_err(failed(format!("open '{}'", path.display())))
        };
        let binds = binds.iter().map(|(from, to)| Ok((open(from, OFlags::PATH)?, to.clone())));
        let binds = binds.collect::<Result<_, Error>>()?;
        let directory = open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Image { path: path.to_owned(), directory, binds, scratch: Vec::new(), is_copy: false })
    }

    /// Where nothing is bound of these, an empty file system in memory will be.
    pub fn with_scratch(self, mount_points: &[PathBuf]) -> Image {
        let is_bound = |path: &&PathBuf| self.binds.iter().any(|(_, to)| to == *path);
        let scratch = mount_points.iter().filter(|path| !is_bound(path)).cloned().collect();
        Image { scratch, ..self }
    }

    /// Puts an empty directory in memory into the place of the unpacked image, to be filled with a copy of what is measured, and
    /// returns the unpacked image's. From what the caller binds, nothing can be executed then.
    pub fn replace(&mut self) -> Result<OwnedFd, Error> {
        let at = self.mount_memory()?;
        let copy = openat(CWD, &at, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        self.is_copy = true;
        Ok(mem::replace(&mut self.directory, copy.map_err(failed("open the copy of the image"))?))
    }

    /// Mounts an empty file system in memory over the unpacked image, whose path is at hand, and says where that is.
    fn mount_memory(&self) -> Result<PathBuf, Error> {
        let at = fs::canonicalize(&self.path).map_err(failed(format!("find '{}'", self.path.display())))?;
        // Nothing that is mounted from here on shows outside.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(failed("change mounts (user namespaces may be restricted on this host)"))?;
        // In large pages, where the kernel has them, files are copied in two thirds of the time.
        let mount = |options| mount("tmpfs", &at, "tmpfs", MEMORY, Some(options));
        mount(c"mode=0755,huge=within_size").or_else(|_| mount(c"mode=0755")).map_err(failed("mount a new root"))?;
        Ok(at)
    }

    /// Makes this image the root of the calling process, with an empty file system in memory at each of `volumes`, and
    /// `files` (path, content, mode) in it, in memory and writable.
    pub fn enter(self, volumes: &[&Path], files: &[(PathBuf, Vec<u8>, u32)]) -> Result<(), Error> {
        let new = self.mount_memory()?;
        let fixed = [Path::new("/dev"), Path::new("/proc")];
        let mut points = Vec::new();
        let scratch: Vec<&Path> = self.scratch.iter().map(PathBuf::as_path).collect();
        let scratch: Vec<&Path> = scratch.into_iter().filter(|path| !volumes.contains(path)).collect();
        for path in fixed.iter().chain(volumes).chain(&scratch) {
            points.push(Point { path: relative(path)?, directory: true });
        }
        for (from, to) in &self.binds {
            let kind = fstat(from).map_err(failed(format!("read what is bound to '{}'", to.display())))?;
            let directory = FileType::from_raw_mode(kind.st_mode) == FileType::Directory;
            points.push(Point { path: relative(to)?, directory });
        }
        for (path, ..) in files {
            points.push(Point { path: relative(path)?, directory: false });
        }
        lay_out(Some(&self.directory), &new, points)?;

        for (from, to) in &self.binds {
            let to = new.join(relative(to)?);
            bind(from, &to)?;
            if self.is_copy {
                forbid_execution(&to)?;
            }
        }
        for (path, options) in
            volumes.iter().map(|path| (path, c"mode=0700")).chain(scratch.iter().map(|path| (path, c"mode=1777")))
        {
            let at = new.join(relative(path)?);
            mount("tmpfs", &at, "tmpfs", MEMORY | MountFlags::NOEXEC, Some(options))
                .map_err(failed(format!("mount '{}'", path.display())))?;
        }
        for (path, content, mode) in files {
            let at = new.join(relative(path)?);
            let show = || format!("inject '{}'", path.display());
            fs::remove_file(&at).map_err(failed(show()))?;
            write_new(&at, content, *mode).map_err(failed(show()))?;
            // A mount of its own stays writable when the root becomes read-only.
            let file = openat(CWD, &at, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
            bind(&file.map_err(failed(show()))?, &at)?;
        }
        for device in DEVICES {
            let at = new.join("dev").join(device);
            File::create(&at).map_err(failed(format!("create '/dev/{device}'")))?;
            let from = openat(CWD, Path::new("/dev").join(device), OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            bind(&from.map_err(failed(format!("open '/dev/{device}'")))?, &at)?;
        }
        let hidden = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", new.join("proc"), "proc", hidden, None).map_err(failed("mount '/proc'"))?;
        make_read_only(&new)?;

        // The old root ends up under the new one, and is taken away there.
        chdir(&new).map_err(failed("enter the new root"))?;
        pivot_root(".", ".").map_err(failed("make it the root"))?;
        unmount(".", UnmountFlags::DETACH).map_err(failed("leave the old root"))?;
        chdir("/").map_err(failed("enter '/'"))
    }
}

/// Makes a file that nothing else can be reached through, whatever the umask.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.set_permissions(Permissions::from_mode(mode))
}

/// Moves the process into namespaces of its own. User and group keep their numbers.
pub fn unshare() -> Result<(), Error> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    sys::unshare_namespaces().map_err(failed("create a user namespace (they may be switched off on this host)"))?;
    let write = |file: &str, text: String| {
        fs::write(file, text)
            .map_err(failed(format!("write '{file}' (user namespaces may be restricted on this host)")))
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// A place below which something is to be mounted.
struct Point {
    path: PathBuf,
    directory: bool,
}

/// Fills the directory `to` with what is in `from`, bound read-only, and makes sure that the points exist.
fn lay_out(from: Option<&OwnedFd>, to: &Path, points: Vec<Point>) -> Result<(), Error> {
    let split = |point: &Point| {
        let mut parts = point.path.components();
        let first = parts.next().map(|part| part.as_os_str().to_owned());
        first.map(|first| (first, Point { path: parts.as_path().to_owned(), directory: point.directory }))
    };
    let mut through: Vec<(OsString, Vec<Point>)> = Vec::new();
    for (first, rest) in points.iter().filter_map(split) {
        match through.iter_mut().find(|(name, _)| *name == first) {
            Some((_, rests)) => rests.push(rest),
            None => through.push((first, vec![rest])),
        }
    }
    if let Some(from) = from {
        for name in entries(from).map_err(failed(format!("list what goes to '{}'", to.display())))? {
            let name = OsStr::from_bytes(&name);
            if !through.iter().any(|(other, _)| other == name) {
                copy_entry(from, name, &to.join(name))?;
            }
        }
    }
    for (name, points) in through {
        let to = to.join(&name);
        let ends_here = points.iter().any(|point| point.path.as_os_str().is_empty());
        if points.iter().any(|point| point.path.as_os_str().is_empty() && !point.directory) {
            File::create(&to).map_err(failed(format!("create '{}'", to.display())))?;
            continue;
        }
        // As permissive as in an image: what counts are the permissions of what is mounted.
        DirBuilder::new().mode(0o755).create(&to).map_err(failed(format!("create '{}'", to.display())))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What is mounted over need not be filled.
        let inner = match from.filter(|_| !ends_here).map(|from| openat(from, &name, flags, Mode::empty())) {
            None | Some(Err(Errno::NOENT)) => None,
            Some(inner) => Some(inner.map_err(failed(format!("open what goes to '{}'", to.display())))?),
        };
        lay_out(inner.as_ref(), &to, points)?;
    }
    Ok(())
}

fn copy_entry(from: &OwnedFd, name: &OsStr, to: &Path) -> Result<(), Error> {
    let show = || format!("bring in '{}'", to.display());
    let entry =
        openat(from, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map_err(failed(show()))?;
    let kind = FileType::from_raw_mode(fstat(&entry).map_err(failed(show()))?.st_mode);
    match kind {
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new()).map_err(failed(show()))?;
            return symlink(OsStr::from_bytes(target.as_bytes()), to).map_err(failed(show()));
        }
        FileType::Directory => fs::create_dir(to).map_err(failed(show()))?,
        _ => File::create(to).map(drop).map_err(failed(show()))?,
    }
    bind(&entry, to)?;
    make_read_only(to)
}

fn bind(from: impl AsFd, to: &Path) -> Result<(), Error> {
    let from = format!("/proc/self/fd/{}", from.as_fd().as_raw_fd());
    mount_bind_recursive(from, to).map_err(failed(format!("mount '{}'", to.display())))
}

fn forbid_execution(at: &Path) -> Result<(), Error> {
    let show = || format!("forbid execution from '{}'", at.display());
    let mounted = openat(CWD, at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed(show()))?;
    sys::forbid_execution(mounted.as_fd()).map_err(failed(show()))
}

fn make_read_only(at: &Path) -> Result<(), Error> {
    let show = || format!("make '{}' read-only", at.display());
    let mut flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    // In a user namespace, restrictions of the host's mount cannot be lifted.
    if statvfs(at).map_err(failed(show()))?.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        flags |= MountFlags::NOEXEC;
    }
    mount_remount(at, flags, "").map_err(failed(show()))
}

/// The names in a directory.
pub(crate) fn entries(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let names = Dir::read_from(directory)?.map(|entry| Ok(entry?.file_name().to_bytes().to_owned()));
    Ok(names.collect::<Result<Vec<_>, Errno>>()?.into_iter().filter(|name| name != b"." && name != b"..").collect())
}

/// An absolute path of the image, relative to its root.
fn relative(path: &Path) -> Result<PathBuf, Error> {
    let mut components = path.components();
    let absolute = components.next() == Some(Component::RootDir);
    let rest = components.as_path();
    if !absolute || rest.as_os_str().is_empty() || !rest.components().all(|part| matches!(part, Component::Normal(_))) {
        let reason = io::Error::new(io::ErrorKind::InvalidInput, "not an absolute path below '/' without '..'");
        return Err(failed(format!("mount '{}'", path.display()))(reason));
    }
    Ok(rest.to_owned())
}
