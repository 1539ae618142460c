//! A number of starts, each a file of its own.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::Error;

/// Nobody else may read them.
const PRIVATE: u32 = 0o600;

/// A number of starts.
#[derive(Debug, Clone)]
pub struct Budget {
    first: PathBuf,
    starts: u32,
}

impl Budget {
    /// One start: what a once-marker is.
    pub fn once(marker: PathBuf) -> Budget {
        Budget { first: marker, starts: 1 }
    }

    /// This many starts, of which the first is noted in this file.
    pub(crate) fn new(first: PathBuf, starts: u32) -> Budget {
        Budget { first, starts }
    }

    /// How many starts there are, taken or not.
    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// One start beside these, under a name of its own: a file in the same directory.
    pub fn beside(&self, name: &str) -> Budget {
        self.named(name, 1)
    }

    /// Starts beside these, under a name of their own.
    pub(crate) fn named(&self, name: &str, starts: u32) -> Budget {
        Budget { first: self.first.with_file_name(name), starts }
    }

    /// Forgets starts [`Budget::beside`] these whose names begin so, but for one, as far as that is possible.
    pub fn forget_beside(&self, prefix: &str, but: &str) {
        let directory = self.first.parent().unwrap_or(Path::new("/"));
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(prefix) && name != but) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Refuses if all are taken. Others may take the last one right after.
    ///
    /// # Errors
    /// [`Error::Spent`], and [`Error::Volume`] if that cannot be told.
    pub fn refuse_if_spent(&self) -> Result<(), Error> {
        match self.left()? {
            0 => Err(Error::Spent { starts: self.starts }),
            _ => Ok(()),
        }
    }

    /// How many are not taken. Others may take some right after.
    ///
    /// # Errors
    /// [`Error::Volume`].
    pub fn left(&self) -> Result<u32, Error> {
        for number in 1..=self.starts {
            let file = self.file(number);
            // Even a dangling link is a start that is taken.
            match fs::symlink_metadata(&file) {
                Ok(_) => {}
                // Each is taken after those before it.
                Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(self.starts - number + 1),
                Err(cause) => return Err(Error::Volume { what: "look at", file, cause }),
            }
        }
        Ok(0)
    }

    /// Takes a start, and returns which: from 1 on. Afterwards it is taken, whatever happens: to be called when all that can fail
    /// has been done, and before anything is.
    ///
    /// # Errors
    /// [`Error::Spent`], and [`Error::Volume`], after which the start may be lost.
    pub fn take(&self) -> Result<u32, Error> {
        for number in 1..=self.starts {
            let file = self.file(number);
            let taken = match create_private(&file) {
                Err(cause) if cause.kind() == ErrorKind::AlreadyExists => continue,
                created => created.and_then(|created| sync(&created, &file)),
            };
            return taken.map(|()| number).map_err(|cause| Error::Volume { what: "take", file, cause });
        }
        Err(Error::Spent { starts: self.starts })
    }

    /// Takes the first start, also if it is taken: it is made durable then.
    ///
    /// # Errors
    /// [`Error::Volume`].
    pub fn take_first_again(&self) -> Result<(), Error> {
        let file = self.file(1);
        let opened = match create_private(&file) {
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => OpenOptions::new().write(true).open(&file),
            created => created,
        };
        opened.and_then(|opened| sync(&opened, &file)).map_err(|cause| Error::Volume { what: "take", file, cause })
    }

    /// Checks that starts could be taken, whether or not there are any.
    ///
    /// # Errors
    /// [`Error::Volume`].
    pub fn check(&self) -> Result<(), Error> {
        let probe = with_suffix(&self.first, ".check");
        // Not create-exclusive: the probe of a check that was killed must not fail every check after it.
        let mut options = OpenOptions::new();
        let opened = options.write(true).create(true).truncate(true).mode(PRIVATE).open(&probe);
        let file = self.file(1);
        opened.and_then(|_| fs::remove_file(&probe)).map_err(|cause| Error::Volume { what: "take", file, cause })
    }

    /// The file of the start with this number. The first one's has no number: a once-marker has none.
    fn file(&self, number: u32) -> PathBuf {
        match number {
            1 => self.first.clone(),
            number => with_suffix(&self.first, &format!(".{number}")),
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(suffix);
    path.into()
}

pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path)
}

/// Makes a file and its name durable. In a volume, this is the moment at which the new state becomes the only fresh one.
pub(crate) fn sync(file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    match File::open(directory).and_then(|directory| directory.sync_all()) {
        Err(cause) if is_unsupported(&cause) => Ok(()),
        synced => synced,
    }
}

/// Some file systems cannot sync a directory, and need not: EINVAL, ENOSYS, ENOTSUP (Linux).
fn is_unsupported(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(22 | 38 | 95))
}
