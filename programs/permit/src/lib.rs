//! permit: a number of starts, kept in a volume that cannot be rolled back.
//!
//! A confidential program takes a start from its [`Budget`] before it does its work. The start is durable before [`Budget::take`]
//! returns: a program that is killed has lost that start, and no kill and no older copy of the volume ever gives one back. So
//! there are never more starts than the policy says, and at most one is lost at a time.
//!
//! Each start that is taken is a file in the volume. Of two that take at once each gets a file of its own, since a file is
//! created only once; nothing is ever counted, read or rewritten.

#![forbid(unsafe_code)]

use std::error;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The variable with the absolute path of the first start's file. Set by the policy.
pub const FILE: &str = "PERMIT_FILE";

/// The variable with the number of starts, from 1 to 1,000,000. Set by the policy.
pub const STARTS: &str = "PERMIT_STARTS";

const MOST: u32 = 1_000_000;

/// Nobody else may read them.
const PRIVATE: u32 = 0o600;

/// A number of starts.
#[derive(Debug, Clone)]
pub struct Budget {
    first: PathBuf,
    starts: u32,
}

/// Why there is no start.
#[derive(Debug)]
pub enum Error {
    /// A variable of the policy's is missing or bad.
    Environment {
        /// Which.
        variable: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// All are taken.
    Spent {
        /// How many there were.
        starts: u32,
    },
    /// A start cannot be looked at or taken. If it was being taken, it may be lost.
    Volume {
        /// `look at` or `take`.
        what: &'static str,
        /// Its file.
        file: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Environment { variable, problem } => write!(f, "{variable} {problem}"),
            Error::Spent { starts: 1 } => write!(f, "the one start is taken"),
            Error::Spent { starts } => write!(f, "all {starts} starts are taken"),
            Error::Volume { what, file, cause } => write!(f, "cannot {what} start '{}': {cause}", file.display()),
        }
    }
}

impl error::Error for Error {}

impl Budget {
    /// One start: what a once-marker is.
    pub fn once(marker: PathBuf) -> Budget {
        Budget { first: marker, starts: 1 }
    }

    /// What the policy grants, by [`FILE`] and [`STARTS`]; `None`: it sets no limit.
    ///
    /// # Errors
    /// [`Error::Environment`] if one of them is missing or bad: a limit that is not understood is not passed over.
    pub fn from_environment() -> Result<Option<Budget>, Error> {
        let bad = |variable, problem| Err(Error::Environment { variable, problem });
        let (first, starts) = match (std::env::var_os(FILE), std::env::var_os(STARTS)) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return bad(FILE, "is not set"),
            (Some(_), None) => return bad(STARTS, "is not set"),
            (Some(first), Some(starts)) => (PathBuf::from(first), starts),
        };
        if !first.is_absolute() || first.file_name().is_none() {
            return bad(FILE, "is not the absolute path of a file");
        }
        match starts.to_str().and_then(|starts| starts.parse().ok()) {
            Some(starts @ 1..=MOST) => Ok(Some(Budget { first, starts })),
            _ => bad(STARTS, "is not a number from 1 to 1000000"),
        }
    }

    /// How many starts there are, taken or not.
    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// One start beside these, under a name of its own: a file in the same directory.
    pub fn beside(&self, name: &str) -> Budget {
        Budget::once(self.first.with_file_name(name))
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

fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path)
}

/// Makes a file and its name durable. In a volume, this is the moment at which the new state becomes the only fresh one.
fn sync(file: &File, path: &Path) -> io::Result<()> {
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
