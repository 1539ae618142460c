//! What `sign` signs: a file's bytes, or those that have a digest.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::{quoted, Exit, Failure};

const ALGORITHM: &str = "sha256:";

/// A SHA-256 digest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// A digest as the OCI image specification writes it: `sha256:` and 64 hex digits in lower case. If it is something else, the
    /// error says how it differs.
    pub fn parse(text: &str) -> Result<Digest, &'static str> {
        let digits =
            text.strip_prefix(ALGORITHM).ok_or("does not begin with 'sha256:', the only algorithm there is")?;
        if digits.len() != 64 {
            return Err("does not have 64 hex digits");
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Ok(Digest(digest))
    }

    /// Its bytes.
    pub fn bytes(self) -> [u8; 32] {
        self.0
    }
}

fn hex_digit(digit: u8) -> Result<u8, &'static str> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Err("has hex digits in upper case"),
        _ => Err("has characters that are no hex digits"),
    }
}

/// What is to be signed.
#[derive(Debug, PartialEq)]
pub enum Subject<'a> {
    /// The bytes of this file.
    File(&'a Path),
    /// The bytes that have this digest.
    Digest(Digest),
}

impl Subject<'_> {
    /// Tells digests from files by the argument alone: what files there are is the host's to say, and it could give a file the name
    /// of a mistyped digest.
    pub fn parse(argument: &OsStr) -> Result<Subject<'_>, Failure> {
        let refused = |why: &str| {
            let argument = quoted(argument);
            Failure(Exit::Refused, format!("{argument} {why}; if it is a file, write './' before it"))
        };
        if argument.is_empty() {
            return Err(Failure(Exit::Refused, "the argument is empty".into()));
        }
        match argument.to_str() {
            Some(text) if text.contains('/') => Ok(Subject::File(Path::new(argument))),
            Some(text) if text.contains(':') => Digest::parse(text).map(Subject::Digest).map_err(refused),
            Some(text) if text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
                Err(refused("looks like a digest without 'sha256:'"))
            }
            _ => Ok(Subject::File(Path::new(argument))),
        }
    }

    /// The digest to be signed. A file is read piece by piece, and may have any size.
    pub fn digest(&self) -> Result<Digest, Failure> {
        match self {
            Subject::Digest(digest) => Ok(*digest),
            Subject::File(path) => digest_of_file(path)
                .map_err(|cause| Failure(Exit::File, format!("cannot read {}: {cause}", quoted(path.as_os_str())))),
        }
    }
}

fn digest_of_file(path: &Path) -> io::Result<Digest> {
    // Looked at before it is opened, since opening a pipe could wait for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(Digest(hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn refusal(argument: &str) -> String {
        match Subject::parse(OsStr::new(argument)) {
            Err(Failure(Exit::Refused, message)) => message,
            other => panic!("{argument}: {other:?}"),
        }
    }

    #[test]
    fn what_looks_like_a_digest_is_one_or_is_refused() {
        let only = "does not begin with 'sha256:'";
        let length = "does not have 64 hex digits";
        for (argument, why) in [
            (format!("sha256:{}", &HEX[1..]), length),
            (format!("sha256:{HEX}0"), length),
            (format!("sha256:{HEX}\n"), length),
            ("sha256:".into(), length),
            (format!("sha256:{}", HEX.to_uppercase()), "has hex digits in upper case"),
            (format!("sha256:{}g", &HEX[1..]), "has characters that are no hex digits"),
            (format!("sha256: {}", &HEX[1..]), "has characters that are no hex digits"),
            (format!("SHA256:{HEX}"), only),
            (format!("sha512:{HEX}{HEX}"), only),
            (format!(" sha256:{HEX}"), only),
            (format!(":{HEX}"), only),
            (format!("image@sha256:{HEX}"), only),
            (HEX.into(), "looks like a digest without 'sha256:'"),
            (HEX.to_uppercase(), "looks like a digest without 'sha256:'"),
        ] {
            assert!(refusal(&argument).contains(why), "{argument}: {}", refusal(&argument));
        }
        assert_eq!(refusal(""), "the argument is empty");

        let empty = format!("sha256:{HEX}");
        assert_eq!(Subject::parse(OsStr::new(&empty)), Ok(Subject::Digest(Digest::of(b""))));
        for file in ["a", "./sha256:a", "/in/a:b", &HEX[1..], &format!("./{HEX}")] {
            assert_eq!(Subject::parse(OsStr::new(file)), Ok(Subject::File(Path::new(file))));
        }
    }
}
