//! The volumes of a service, open while its program runs.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fstatfs, openat};
use scone_protocol::connection::{self, Connection};
use scone_protocol::{SetTag, UpdatePolicy, VolumeGrant, unhex};
use scone_run::failure::Failure;
use scone_run::volume::{self, Volume};

/// A volume that is sealed, and what CAS knows of it.
pub struct Mount<'a> {
    grant: &'a VolumeGrant,
    volume: Volume,
    /// The tag CAS holds. Without rollback protection it need not be the tag of what was opened.
    held: Option<String>,
}

impl Mount<'_> {
    /// Opens the volume of that grant. The first start brings it into being, before the program can do anything with it. `None`:
    /// the policy has the program's changes end with it, so it got a copy, and there is nothing to seal.
    pub fn open<'a>(
        grant: &'a VolumeGrant,
        in_container: bool,
        cas: &mut Connection,
    ) -> Result<Option<Mount<'a>>, Failure> {
        let opening = |causes| Failure::while_starting(format!("Opening volume {} failed", grant.name), causes);
        if in_container {
            refuse_disk(grant.path.as_ref()).map_err(|cause| opening(vec![cause]))?;
        }
        let sealed = format!("/.sealed{}", grant.path);
        if grant.update_policy == UpdatePolicy::Ephemeral {
            let mut read_tag = || cas.read_tag(grant).map_err(connection::Error::causes);
            let opened = volume::open_ephemeral(sealed.as_ref(), grant.path.as_ref(), grant, &mut read_tag);
            return opened.map(|()| None).map_err(|error| opening(error.causes()));
        }
        let to_open = openable(grant, sealed.as_ref()).map_err(|cause| opening(vec![cause]))?;
        let volume = Volume::open(sealed.as_ref(), grant.path.as_ref(), &to_open);
        let volume = volume.map_err(|error| opening(error.causes()))?;
        let mut mount = Mount { grant, volume, held: grant.tag.clone() };
        if mount.held.is_none() {
            mount.seal(cas).map_err(opening)?;
        }
        Ok(Some(mount))
    }

    /// Makes the program's changes last. On failure: the `Caused by:` lines.
    fn seal(&mut self, cas: &mut Connection) -> Result<(), Vec<String>> {
        let Mount { grant, volume, held } = self;
        volume.seal(&mut |_, new| set_tag(cas, grant, held, new)).map_err(|error| error.causes())
    }
}

/// Seals each of the volumes.
pub fn seal_all(mounts: &mut [Mount<'_>], cas: &mut Connection) -> Result<(), Failure> {
    mounts.iter_mut().try_for_each(|mount| {
        let failed = |causes| Failure::while_running(format!("Sealing volume {} failed", mount.grant.name), causes);
        mount.seal(cas).map_err(failed)
    })
}

/// The grant by which the volume is opened. Without rollback protection that is the state found on disk, the latest one if a
/// seal was interrupted.
fn openable(grant: &VolumeGrant, sealed: &Path) -> Result<VolumeGrant, String> {
    let mut tag = grant.tag.clone();
    if grant.update_policy == UpdatePolicy::NoRollbackProtection {
        let cannot = |error: io::Error| format!("cannot read '{}': {error}", sealed.display());
        let mut latest = None;
        for entry in std::fs::read_dir(sealed).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            let name = entry.file_name();
            let Some(found) = name.to_str().and_then(|name| name.strip_suffix(".manifest")) else { continue };
            let found = (entry.metadata().and_then(|data| data.modified()).map_err(cannot)?, found.to_owned());
            latest = latest.max(Some(found));
        }
        tag = latest.map(|(_, tag)| tag);
    }
    Ok(VolumeGrant { tag, ..grant.clone() })
}

/// Moves CAS's tag from `held`, what CAS has, to `new`.
fn set_tag(cas: &mut Connection, grant: &VolumeGrant, held: &mut Option<String>, new: &str) -> Result<(), Vec<String>> {
    // Volume::open has refused a key that is not hex.
    let key = unhex(grant.key.expose()).unwrap_or_default();
    let request = SetTag::new(&grant.session, &grant.name, held.as_deref(), new, &key);
    cas.set_tag(request).map_err(connection::Error::causes)?;
    *held = Some(new.to_owned());
    Ok(())
}

/// In a container plain files must be in memory, or they would reach the host's disk.
pub fn refuse_disk(path: &Path) -> Result<(), String> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let directory = openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let path = path.display();
    let kind = directory.and_then(fstatfs).map_err(|errno| format!("cannot open '{path}': {errno}"))?.f_type;
    if kind == TMPFS_MAGIC {
        Ok(())
    } else {
        Err(format!("'{path}' is not in memory: mount a tmpfs there (docker run --tmpfs {path}:mode=0700)"))
    }
}
