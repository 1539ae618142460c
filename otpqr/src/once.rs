//! The two files: the output, reserved before anything is spent, and the once-marker, durable before the output is filled.
//!
//! A program that is killed in between leaves the marker and an output of blanks: the secret was not shown and never will be.
//! The other order could show the secret without a trace.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use permit::Budget;

use crate::environment::Secret;
use crate::{Exit, Failure};

/// Nobody else may read the secret.
const PRIVATE: u32 = 0o600;

/// A new output file whose space on the disk is allocated.
pub struct Reservation {
    path: PathBuf,
    file: File,
}

impl Reservation {
    /// Creates the output with room for `length` bytes, so that a full disk or a quota is noticed now. An existing file is
    /// never overwritten.
    pub fn create(path: PathBuf, length: usize) -> Result<Reservation, Failure> {
        let file = create_private(&path).map_err(|cause| match cause.kind() {
            ErrorKind::AlreadyExists => Failure(Exit::Output, format!("output '{}' exists", path.display())),
            _ => Failure(Exit::Output, format!("cannot create output '{}': {cause}", path.display())),
        })?;
        let mut output = Reservation { path, file };
        match output.blank_out(length) {
            Ok(()) => Ok(output),
            Err(cause) => {
                let failure =
                    Failure(Exit::Output, format!("cannot write output '{}': {cause}", output.path.display()));
                Err(output.withdraw_after(failure))
            }
        }
    }

    fn blank_out(&mut self, length: usize) -> io::Result<()> {
        // The mode at creation is subject to the umask, which may have taken away more than others' rights.
        self.file.set_permissions(Permissions::from_mode(PRIVATE))?;
        io::copy(&mut io::repeat(b' ').take(length as u64), &mut self.file)?;
        self.file.rewind()
    }

    /// Writes the QR code. To be called after the marker was taken.
    pub fn fill(mut self, svg: &Secret) -> Result<(), Failure> {
        match self.file.write_all(svg.expose().as_bytes()).and_then(|()| self.file.sync_all()) {
            Ok(()) => Ok(()),
            Err(cause) => {
                let path = self.path.display();
                let failure = format!("the once-marker is taken, but output '{path}' cannot be written: {cause}");
                Err(self.withdraw_after(Failure(Exit::Other, failure)))
            }
        }
    }

    /// Removes the output.
    pub fn withdraw(self) -> Result<(), Failure> {
        fs::remove_file(&self.path)
            .map_err(|cause| Failure(Exit::Other, format!("cannot remove output '{}': {cause}", self.path.display())))
    }

    /// Removes the output because of `failure`, and returns what there is to report.
    pub fn withdraw_after(self, Failure(exit, message): Failure) -> Failure {
        match self.withdraw() {
            Ok(()) => Failure(exit, message),
            Err(Failure(exit, second)) => Failure(exit, format!("{message}; and {second}")),
        }
    }
}

/// The once-marker: a file whose existence says that the QR code was issued. It is a budget of one start.
pub struct Marker {
    path: PathBuf,
    budget: Budget,
    reset: bool,
}

impl Marker {
    /// With `reset`, an existing marker is accepted.
    pub fn new(path: PathBuf, reset: bool) -> Marker {
        Marker { budget: Budget::once(path.clone()), path, reset }
    }

    /// Refuses if the marker exists, even as a dangling link.
    pub fn refuse_if_taken(&self) -> Result<(), Failure> {
        match self.budget.refuse_if_spent() {
            Err(permit::Error::Spent { .. }) if self.reset => Ok(()),
            looked => looked.map_err(|error| self.failure(error)),
        }
    }

    /// Takes the marker: afterwards it exists and survives a crash. Of two at once, one is refused. With `reset`, too, a missing
    /// marker is created, so that nothing issues the same QR code later without a reset.
    pub fn take(&self) -> Result<(), Failure> {
        // If this fails, nothing was shown, yet the marker stays: better never shown than shown twice.
        let taken = if self.reset { self.budget.take_first_again() } else { self.budget.take().map(drop) };
        taken.map_err(|error| self.failure(error))
    }

    /// Checks that the marker could be created, whether or not it is there.
    pub fn check_volume(&self) -> Result<(), Failure> {
        self.budget.check().map_err(|error| self.failure(error))
    }

    fn failure(&self, error: permit::Error) -> Failure {
        let marker = self.path.display();
        match error {
            permit::Error::Spent { .. } => {
                Failure(Exit::Refused, format!("once-marker '{marker}' exists: the QR code was issued before"))
            }
            permit::Error::Volume { what, cause, .. } => {
                Failure(Exit::Other, format!("cannot {what} once-marker '{marker}': {cause}"))
            }
            other => Failure(Exit::Other, other.to_string()),
        }
    }
}

fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path)
}
