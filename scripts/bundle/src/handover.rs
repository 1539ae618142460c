//! Passes a container what it is to run, code included, through a FIFO that its entry (programs/entry) reads, so that no argument
//! list, engine configuration or disk holds it. An engine with a kernel of its own (in a virtual machine) cannot do that.

use std::fs::{self, File};
use std::io::ErrorKind::{BrokenPipe, NotFound, WouldBlock};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::failure::{Concern, Exit, Failure};
use crate::tool::Running;

#[derive(Debug, thiserror::Error)]
enum HandoverError {
    #[error("nothing can be made in '{directory}' for a container: {cause}")]
    NotMade { directory: String, cause: io::Error },
    #[error("cannot hand over to the container what it is to run: {0}")]
    NotGiven(io::Error),
}

impl Concern for HandoverError {
    fn exit(&self) -> Exit {
        Exit::Precondition
    }
}

const PREFIX: &str = ".starting-";

/// A directory below `state/`, gone when this is dropped: an engine, or its client, may see no temporary one.
pub(crate) struct Aside {
    directory: TempDir,
    /// Tells it from one that a killed run left.
    _lock: File,
}

impl Aside {
    pub fn make(root: &Path) -> Result<Aside, Failure> {
        let state = root.join("state");
        let make = || -> io::Result<Aside> {
            remove_left(&state)?;
            // `tempfile` makes it 0700.
            let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&state)?;
            let lock = File::open(directory.path())?;
            lock.try_lock()?;
            // It may have been removed in between.
            fs::metadata(directory.path())?;
            Ok(Aside { directory, _lock: lock })
        };
        loop {
            match make() {
                // Another run took it for one that was left, before it was locked.
                Err(cause) if matches!(cause.kind(), NotFound | WouldBlock) && state.exists() => {}
                made => return Ok(made.map_err(|cause| not_made(&state, cause))?),
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

fn not_made(directory: &Path, cause: io::Error) -> HandoverError {
    HandoverError::NotMade { directory: directory.display().to_string(), cause }
}

/// A FIFO of one start, gone when this is dropped.
pub(crate) struct Handover(Aside);

impl Handover {
    pub fn prepare(root: &Path) -> Result<Handover, Failure> {
        let handover = Handover(Aside::make(root)?);
        let made = mknodat(CWD, handover.fifo(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
        made.map_err(|cause| not_made(handover.0.path(), cause.into()))?;
        Ok(handover)
    }

    pub fn fifo(&self) -> PathBuf {
        self.0.path().join("environment")
    }

    /// Waits until the entry is there to read, also after an interruption: an engine's client that is ended while it starts a
    /// container leaves that behind. `None`: the container ended before.
    pub fn reach(&self, container: &Running) -> Result<Option<File>, Failure> {
        loop {
            match rustix::fs::open(self.fifo(), OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
                Ok(fifo) => return Ok(Some(fifo.into())),
                // Nobody reads yet.
                Err(Errno::NXIO) if !container.has_ended() => {
                    sleep(Duration::from_millis(5));
                }
                Err(Errno::NXIO) => return Ok(None),
                Err(cause) => return Err(HandoverError::NotGiven(cause.into()).into()),
            }
        }
    }
}

/// Hands these variables over to the entry; nobody else sees them.
pub(crate) fn give(fifo: Option<File>, environment: &[(&str, &str)]) -> Result<(), Failure> {
    let Some(mut fifo) = fifo else { return Ok(()) };
    let lines: String = environment.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    // Less than a FIFO holds.
    match fifo.write_all(format!("{lines}\n").as_bytes()) {
        // How the container ended is looked at next.
        Err(cause) if cause.kind() != BrokenPipe => Err(HandoverError::NotGiven(cause).into()),
        _ => Ok(()),
    }
}

/// Removes what killed runs left: there is nothing in it.
fn remove_left(state: &Path) -> io::Result<()> {
    for entry in fs::read_dir(state)? {
        let path = entry?.path();
        let is_ours = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        // Locked until it is gone: its owner, if it has one yet, then makes another.
        if is_ours
            && let Ok(lock) = File::open(&path)
            && lock.try_lock().is_ok()
        {
            // Another run may remove the same one.
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

#[test]
fn of_starts_at_once_each_has_its_fifo_and_what_was_left_is_removed() {
    let root = tempfile::tempdir().unwrap();
    let left = root.path().join("state/.starting-left");
    fs::create_dir_all(&left).unwrap();
    let start = || {
        (0..50).for_each(|_| assert!(Handover::prepare(root.path()).unwrap().fifo().exists()));
    };
    std::thread::scope(|threads| (0..4).for_each(|_| drop(threads.spawn(start))));
    assert_eq!(fs::read_dir(root.path().join("state")).unwrap().count(), 0);
}
