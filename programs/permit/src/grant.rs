//! Starts that somebody grants, with a code of their own: a few, for a while, and for certain arguments.
//!
//! Grants lie in a volume that only the service of those who grant them can write. What was taken of them is noted in a volume of
//! the program's own.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::budget::{create_private, sync, Budget};
use crate::{is_file, set, text, Error, APPROVERS, GRANTS, MOST, SERVICE, TERM};

/// Starts that somebody granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// From 1 on, in the order in which they were made; no number is there twice.
    pub number: u32,
    /// How many.
    pub starts: u32,
    /// When it is over, in seconds since 1970.
    pub until: u64,
    /// Who granted them.
    pub approver: String,
    /// Of what, as CAS calls it.
    pub service: String,
    /// Under which term: those of another are void.
    pub term: String,
    /// For which arguments: their digest. `None`: the service alone is granted.
    pub digest: Option<String>,
}

/// What is left of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// So many of its starts, at least one.
    Good(u32),
    /// Nothing: all are taken.
    Spent,
    /// Nothing: its time is over, or was once.
    Expired,
    /// Nothing: it is of another service or term, or by somebody whose grants do not count.
    Void,
}

/// A start of a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The grant.
    pub grant: Grant,
    /// Which of its starts.
    pub start: u32,
}

impl fmt::Display for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Grant { number, starts, approver, digest, .. } = &self.grant;
        write!(f, "start {} of {starts} of grant {number} by '{approver}'", self.start)?;
        digest.as_ref().map_or(Ok(()), |digest| write!(f, " for {digest}"))
    }
}

/// The volume with the grants.
#[derive(Debug, Clone)]
pub struct Grants(PathBuf);

impl Grants {
    /// Where the policy says ([`GRANTS`]).
    ///
    /// # Errors
    /// [`Error::Environment`] if it does not.
    pub fn from_environment() -> Result<Grants, Error> {
        let directory = set(GRANTS)?;
        if is_file(&directory) {
            return Ok(Grants(directory));
        }
        Err(Error::Environment { variable: GRANTS, problem: "is not the absolute path of a directory" })
    }

    /// Adds a grant, durably; its number is the next one. Only for the one service that writes the volume.
    ///
    /// # Errors
    /// [`Error::Volume`], after which it may be there or not.
    pub fn add(&self, grant: Grant) -> Result<Grant, Error> {
        let Grant { starts, until, approver, service, term, digest, .. } = &grant;
        let digest = digest.as_deref().unwrap_or("-");
        let text = format!("{starts} {until} {approver} {service} {term} {digest}\n");
        let mut number = self.numbers()?.last().copied().unwrap_or(0);
        loop {
            number += 1;
            let path = self.0.join(number.to_string());
            let mut file = match create_private(&path) {
                Err(cause) if cause.kind() == ErrorKind::AlreadyExists => continue,
                created => created.map_err(failed("grant", &path))?,
            };
            let written = file.write_all(text.as_bytes()).and_then(|()| sync(&file, &path));
            return written.map(|()| Grant { number, ..grant }).map_err(failed("grant", &path));
        }
    }

    fn all(&self) -> Result<Vec<Grant>, Error> {
        let read = |number: u32| {
            let path = self.0.join(number.to_string());
            let text = fs::read(&path).map_err(failed("look at", &path))?;
            // What is cut off was never granted.
            Ok(String::from_utf8(text).ok().and_then(|text| parse(number, &text)))
        };
        self.numbers()?.into_iter().filter_map(|number| read(number).transpose()).collect()
    }

    /// In order.
    fn numbers(&self) -> Result<Vec<u32>, Error> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(failed("look at", &self.0))? {
            let name = entry.map_err(failed("look at", &self.0))?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<u32>().ok().filter(|n| n.to_string() == name)));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

fn failed<'a>(what: &'static str, file: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |cause| Error::Volume { what, file: file.to_owned(), cause }
}

fn parse(number: u32, text: &str) -> Option<Grant> {
    let words: Vec<&str> = text.strip_suffix('\n')?.split(' ').collect();
    let &[starts, until, approver, service, term, digest] = words.as_slice() else { return None };
    let starts = starts.parse().ok().filter(|starts| (1..=MOST).contains(starts))?;
    let digest = (digest != "-").then(|| digest.to_owned());
    let [approver, service, term] = [approver, service, term].map(str::to_owned);
    Some(Grant { number, starts, until: until.parse().ok()?, approver, service, term, digest })
}

/// Whose grants a program needs, and where it notes what it took of them.
#[derive(Debug, Clone)]
pub(crate) struct Approval {
    grants: Grants,
    approvers: Vec<String>,
    service: String,
    term: String,
    noted: Budget,
}

impl Approval {
    pub fn from_environment(first: &Path) -> Result<Approval, Error> {
        let (grants, service, term) = (Grants::from_environment()?, text(SERVICE)?, text(TERM)?);
        let approvers: Vec<String> = text(APPROVERS)?.split_whitespace().map(str::to_owned).collect();
        if approvers.is_empty() {
            return Err(Error::Environment { variable: APPROVERS, problem: "names nobody" });
        }
        Ok(Approval { grants, approvers, service, term, noted: Budget::once(first.to_owned()) })
    }

    /// The starts of a grant.
    fn starts(&self, grant: &Grant) -> Budget {
        self.noted.named(&format!("grant-{}", grant.number), grant.starts)
    }

    /// That it was seen to be over, which it then stays whatever the clock says.
    fn seen_expired(&self, grant: &Grant) -> Budget {
        self.noted.beside(&format!("grant-{}.expired", grant.number))
    }

    fn standing(&self, grant: &Grant, now: u64) -> Result<Standing, Error> {
        let is_ours = grant.service == self.service && grant.term == self.term;
        if !is_ours || !self.approvers.contains(&grant.approver) {
            return Ok(Standing::Void);
        }
        if now >= grant.until || self.seen_expired(grant).left()? == 0 {
            return Ok(Standing::Expired);
        }
        Ok(match self.starts(grant).left()? {
            0 => Standing::Spent,
            left => Standing::Good(left),
        })
    }

    pub fn all(&self, now: u64) -> Result<Vec<(Grant, Standing)>, Error> {
        let grants = self.grants.all()?.into_iter();
        grants.map(|grant| self.standing(&grant, now).map(|standing| (grant, standing))).collect()
    }

    /// Those that are good for it, the one that is over first first; or how many there are of those that are not. That one is over is
    /// noted: it stays so.
    fn good(&self, asked: Option<&str>, now: u64) -> Result<Vec<Grant>, Error> {
        let (mut good, mut others, mut expired, mut spent) = (Vec::new(), 0, 0, 0);
        for (grant, standing) in self.all(now)? {
            match standing {
                Standing::Good(_) if grant.digest.as_deref() == asked => good.push(grant),
                Standing::Good(_) | Standing::Void => others += 1,
                Standing::Expired => {
                    match self.seen_expired(&grant).take() {
                        Ok(_) | Err(Error::Spent { .. }) => {}
                        Err(error) => return Err(error),
                    }
                    expired += 1;
                }
                Standing::Spent => spent += 1,
            }
        }
        if good.is_empty() {
            return Err(Error::NotGranted { others, expired, spent });
        }
        good.sort_by_key(|grant| grant.until);
        Ok(good)
    }

    pub fn check(&self, asked: Option<&str>, now: u64) -> Result<(), Error> {
        self.good(asked, now).map(drop)
    }

    pub fn take(&self, asked: Option<&str>, now: u64) -> Result<Granted, Error> {
        loop {
            // Others may take the last start of one of these.
            for grant in self.good(asked, now)? {
                match self.starts(&grant).take() {
                    Ok(start) => return Ok(Granted { grant, start }),
                    Err(Error::Spent { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_764_240_000;
    const A: &str = "sha256:aa";
    const B: &str = "sha256:bb";

    /// A volume with what was granted, and one of the program's.
    fn world(test: &str) -> (PathBuf, Grants, Approval) {
        let root = std::env::temp_dir().join(format!("permit-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let grants = Grants(root.join("grants"));
        fs::create_dir_all(&grants.0).unwrap();
        let approval = Approval {
            grants: grants.clone(),
            approvers: vec!["bob".to_owned(), "carol".to_owned()],
            service: "n/signer/alice/program".to_owned(),
            term: "1".to_owned(),
            noted: Budget::once(root.join("start")),
        };
        (root, grants, approval)
    }

    fn grant(approver: &str, starts: u32, until: u64, digest: Option<&str>) -> Grant {
        let service = "n/signer/alice/program".to_owned();
        let (approver, digest) = (approver.to_owned(), digest.map(str::to_owned));
        Grant { number: 0, starts, until, approver, service, term: "1".to_owned(), digest }
    }

    fn refusal(taken: Result<Granted, Error>) -> String {
        taken.unwrap_err().to_string()
    }

    #[test]
    fn a_grant_is_for_what_it_says_and_as_often_as_it_says() {
        let (root, grants, approval) = world("says");
        assert_eq!(refusal(approval.take(Some(A), NOW)), "nobody has granted it");
        // By somebody who is not asked; of another service; for other arguments, and for none.
        grants.add(grant("mallory", 9, NOW + 60, Some(A))).unwrap();
        grants.add(Grant { service: "n/signer/alice".into(), ..grant("bob", 9, NOW + 60, Some(A)) }).unwrap();
        grants.add(grant("bob", 9, NOW + 60, Some(B))).unwrap();
        grants.add(grant("bob", 9, NOW + 60, None)).unwrap();
        grants.add(Grant { term: "2".into(), ..grant("bob", 9, NOW + 60, Some(A)) }).unwrap();
        let others = "no grant is good for it: 5 for something else, 0 expired, 0 used up";
        assert_eq!(refusal(approval.take(Some(A), NOW)), others);
        assert!(approval.check(Some(A), NOW).is_err());

        // The one that is over first is taken first.
        assert_eq!(grants.add(grant("bob", 2, NOW + 60, Some(A))).unwrap().number, 6);
        assert_eq!(grants.add(grant("carol", 1, NOW + 30, Some(A))).unwrap().number, 7);
        let taken: Vec<String> = (0..3).map(|_| approval.take(Some(A), NOW).unwrap().to_string()).collect();
        assert_eq!(taken[0], "start 1 of 1 of grant 7 by 'carol' for sha256:aa");
        assert_eq!(taken[1], "start 1 of 2 of grant 6 by 'bob' for sha256:aa");
        assert_eq!(taken[2], "start 2 of 2 of grant 6 by 'bob' for sha256:aa");
        let spent = "no grant is good for it: 5 for something else, 0 expired, 2 used up";
        assert_eq!(refusal(approval.take(Some(A), NOW)), spent);
        assert_eq!(approval.take(None, NOW).unwrap().to_string(), "start 1 of 9 of grant 4 by 'bob'");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_grant_that_was_seen_to_be_over_stays_so_whatever_the_clock_says() {
        let (root, grants, approval) = world("expired");
        grants.add(grant("bob", 9, NOW + 60, None)).unwrap();
        approval.take(None, NOW + 59).unwrap();
        // Looking alone notes nothing.
        assert_eq!(approval.all(NOW + 60).unwrap()[0].1, Standing::Expired);
        assert_eq!(approval.all(NOW + 59).unwrap()[0].1, Standing::Good(8));
        let expired = "no grant is good for it: 0 for something else, 1 expired, 0 used up";
        assert_eq!(approval.check(None, NOW + 60).unwrap_err().to_string(), expired);
        assert_eq!(refusal(approval.take(None, NOW)), expired);
        assert_eq!(refusal(approval.take(None, NOW + 60)), expired);
        assert_eq!(refusal(approval.take(None, NOW)), expired);
        assert_eq!(refusal(approval.take(None, NOW)), expired);
        assert_eq!(approval.all(NOW).unwrap()[0].1, Standing::Expired);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_is_cut_off_or_odd_is_no_grant_and_its_number_is_not_used_again() {
        let (root, grants, approval) = world("cut-off");
        let whole = format!("9 {} bob n/signer/alice/program 1 -\n", NOW + 60);
        for length in 0..whole.len() {
            fs::write(grants.0.join("1"), &whole[..length]).unwrap();
            assert_eq!(refusal(approval.take(None, NOW)), "nobody has granted it", "{length}");
        }
        for odd in ["0", "-1", "1000001", "x"] {
            fs::write(grants.0.join("1"), whole.replacen('9', odd, 1)).unwrap();
            assert_eq!(refusal(approval.take(None, NOW)), "nobody has granted it", "{odd}");
        }
        for name in ["01", "+1", "-1", "1.new", "4294967296"] {
            fs::write(grants.0.join(name), &whole).unwrap();
        }
        assert_eq!(refusal(approval.take(None, NOW)), "nobody has granted it");
        assert_eq!(grants.add(grant("bob", 1, NOW + 60, None)).unwrap().number, 2);
        approval.take(None, NOW).unwrap();
        fs::remove_dir_all(root).unwrap();
    }
}
