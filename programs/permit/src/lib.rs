//! permit: how often a program may do its work, and who says so.
//!
//! A confidential program takes a start from its [`Permit`] before it does its work. The start is durable before [`Permit::take`]
//! returns: a program that is killed has lost that start, and no kill and no older copy of the volume ever gives one back. So
//! there are never more starts than were granted, and at most one is lost at a time.
//!
//! Starts are granted by the policy, as a number in all ([`Budget`]), by others, a few at a time, each with their own code
//! ([`Grant`]), or by both: then a start takes one of each.

#![forbid(unsafe_code)]

mod budget;
#[cfg(feature = "digest")]
mod digest;
mod grant;

use std::env;
use std::error;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub use budget::Budget;
#[cfg(feature = "digest")]
pub use digest::Asked;
use grant::Approval;
pub use grant::{Grant, Granted, Grants, Standing};

/// The variable with the absolute path of the first start's file, in a volume of the program's own. Set by the policy.
pub const FILE: &str = "PERMIT_FILE";

/// The variable with the number of starts, from 1 to 1,000,000. Set by the policy.
pub const STARTS: &str = "PERMIT_STARTS";

/// The variable with the absolute path of the volume that holds what others granted. Set by the policy.
pub const GRANTS: &str = "PERMIT_GRANTS";

/// The variable with the names of those whose grants count, with spaces in between. Set by the policy.
pub const APPROVERS: &str = "PERMIT_APPROVERS";

/// The variable with the service whose starts these are, as CAS calls it. Set by the policy.
pub const SERVICE: &str = "PERMIT_SERVICE";

/// The variable with a word that grants must be made under: when it changes, all that were made before are void. Set by the policy.
pub const TERM: &str = "PERMIT_TERM";

/// No policy and nobody grants more starts.
pub const MOST: u32 = 1_000_000;

/// What a program may do.
#[derive(Debug, Clone)]
pub struct Permit {
    budget: Option<Budget>,
    approval: Option<Approval>,
    /// Beside which everything is noted.
    first: Budget,
}

/// A start that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Which, and of how many, if the policy grants a number.
    pub number: Option<(u32, u32)>,
    /// Which of a grant's, if it takes one.
    pub granted: Option<Granted>,
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number.map(|(number, starts)| format!("start {number} of {starts}"));
        let granted = self.granted.as_ref().map(Granted::to_string);
        f.write_str(&number.into_iter().chain(granted).collect::<Vec<_>>().join(", "))
    }
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
    /// No grant is good for it.
    NotGranted {
        /// How many are for other arguments, or by somebody whose grants do not count.
        others: u32,
        /// How many have expired.
        expired: u32,
        /// How many are used up.
        spent: u32,
    },
    /// A start cannot be looked at or taken. If it was being taken, it may be lost.
    Volume {
        /// `look at`, `take` or `grant`.
        what: &'static str,
        /// Its file.
        file: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The host's clock cannot be right.
    Clock,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Environment { variable, problem } => write!(f, "{variable} {problem}"),
            Error::Spent { starts: 1 } => write!(f, "the one start is taken"),
            Error::Spent { starts } => write!(f, "all {starts} starts are taken"),
            Error::NotGranted { others: 0, expired: 0, spent: 0 } => write!(f, "nobody has granted it"),
            Error::NotGranted { others, expired, spent } => {
                write!(f, "no grant is good for it: {others} for something else, {expired} expired, {spent} used up")
            }
            Error::Volume { what, file, cause } => write!(f, "cannot {what} start '{}': {cause}", file.display()),
            Error::Clock => write!(f, "the clock is before 1970"),
        }
    }
}

impl error::Error for Error {}

impl Permit {
    /// What the policy says, by [`FILE`] with [`STARTS`], with [`GRANTS`], [`APPROVERS`], [`SERVICE`] and [`TERM`], or with all;
    /// `None`: it sets no limit.
    ///
    /// # Errors
    /// [`Error::Environment`] if one of them is missing or bad: a limit that is not understood is not passed over.
    pub fn from_environment() -> Result<Option<Permit>, Error> {
        let bad = |variable, problem| Err(Error::Environment { variable, problem });
        let is_set = |variables: &[&str]| variables.iter().any(|variable| env::var_os(variable).is_some());
        if !is_set(&[FILE, STARTS, GRANTS, APPROVERS, SERVICE, TERM]) {
            return Ok(None);
        }
        let first = set(FILE)?;
        if !is_file(&first) {
            return bad(FILE, "is not the absolute path of a file");
        }
        let needs_approval = is_set(&[GRANTS, APPROVERS, SERVICE, TERM]);
        let approval = needs_approval.then(|| Approval::from_environment(&first)).transpose()?;
        // Something must limit it.
        let starts = if approval.is_none() { Some(set(STARTS)?) } else { env::var_os(STARTS).map(PathBuf::from) };
        let starts = match starts.map(|starts| starts.to_str().and_then(|starts| starts.parse().ok())) {
            None => None,
            Some(Some(starts @ 1..=MOST)) => Some(starts),
            Some(_) => return bad(STARTS, "is not a number from 1 to 1000000"),
        };
        let budget = starts.map(|starts| Budget::new(first.clone(), starts));
        Ok(Some(Permit { budget, approval, first: Budget::once(first) }))
    }

    /// The starts that the policy grants in all, if it grants a number.
    pub fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }

    /// One start beside these, under a name of its own: a file in the same directory.
    pub fn beside(&self, name: &str) -> Budget {
        self.first.beside(name)
    }

    /// Forgets starts [`Permit::beside`] these whose names begin so, but for one, as far as that is possible.
    pub fn forget_beside(&self, prefix: &str, but: &str) {
        self.first.forget_beside(prefix, but);
    }

    /// Refuses what [`Permit::take`] would refuse, if nobody else takes anything before, and takes nothing. That a grant is over is
    /// noted.
    ///
    /// # Errors
    /// As [`Permit::take`].
    pub fn check(&self, asked: Option<&str>) -> Result<(), Error> {
        self.check_at(asked, now()?)
    }

    fn check_at(&self, asked: Option<&str>, now: u64) -> Result<(), Error> {
        if let Some(budget) = &self.budget {
            budget.refuse_if_spent()?;
        }
        self.approval.as_ref().map_or(Ok(()), |approval| approval.check(asked, now))
    }

    /// Takes a start, for what is asked: the digest of the program's arguments, or nothing if it does not look at them. Afterwards
    /// it is taken, whatever happens: to be called when all that can fail has been done, and before anything is.
    ///
    /// # Errors
    /// [`Error::Spent`], [`Error::NotGranted`], and [`Error::Volume`], after which a start may be lost.
    pub fn take(&self, asked: Option<&str>) -> Result<Start, Error> {
        self.take_at(asked, now()?)
    }

    fn take_at(&self, asked: Option<&str>, now: u64) -> Result<Start, Error> {
        if let Some(budget) = &self.budget {
            // Or a grant would be taken for nothing.
            budget.refuse_if_spent()?;
        }
        let granted = self.approval.as_ref().map(|approval| approval.take(asked, now)).transpose()?;
        let number = self.budget.as_ref().map(|budget| Ok((budget.take()?, budget.starts()))).transpose()?;
        Ok(Start { number, granted })
    }

    /// All grants there are, in the order in which they were made, and what is left of them.
    ///
    /// # Errors
    /// [`Error::Volume`] if that cannot be told.
    pub fn grants(&self) -> Result<Vec<(Grant, Standing)>, Error> {
        let now = now()?;
        self.approval.as_ref().map_or(Ok(Vec::new()), |approval| approval.all(now))
    }
}

/// Seconds since 1970, as the host says.
fn now() -> Result<u64, Error> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| Error::Clock)?.as_secs())
}

fn set(variable: &'static str) -> Result<PathBuf, Error> {
    let missing = || Error::Environment { variable, problem: "is not set" };
    env::var_os(variable).map(PathBuf::from).ok_or_else(missing)
}

fn is_file(path: &Path) -> bool {
    path.is_absolute() && path.file_name().is_some()
}

/// A variable's text.
fn text(variable: &'static str) -> Result<String, Error> {
    let bad = |_: OsString| Error::Environment { variable, problem: "is not UTF-8" };
    set(variable)?.into_os_string().into_string().map_err(bad)
}
