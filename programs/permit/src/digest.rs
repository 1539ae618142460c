//! What a start is asked for, as a digest.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use sha2::{Digest, Sha256};

/// The arguments that a program was given, after its own name, and the content of the files that they name.
///
/// The digest is SHA-256 of one line for each argument: its SHA-256; if it names a file, a space and the SHA-256 of the content; a
/// newline. All are in hex.
#[derive(Debug, Clone, Default)]
pub struct Asked(Sha256);

impl Asked {
    /// Of a program without arguments.
    pub fn new() -> Asked {
        Asked::default()
    }

    /// With one more argument.
    #[must_use]
    pub fn argument(mut self, argument: &OsStr) -> Asked {
        self.0.update(format!("{:x}\n", Sha256::digest(argument.as_bytes())));
        self
    }

    /// With one more argument, which names a file whose content has this SHA-256. To be told of what is worked on, not of what a
    /// second look at the file finds: the host may have changed it in between.
    #[must_use]
    pub fn file(mut self, argument: &OsStr, sha256: [u8; 32]) -> Asked {
        let content: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        self.0.update(format!("{:x} {content}\n", Sha256::digest(argument.as_bytes())));
        self
    }

    /// `sha256:` and 64 hex digits.
    pub fn digest(&self) -> String {
        format!("sha256:{:x}", self.0.clone().finalize())
    }
}

/// As anybody computes it with coreutils (the README shows how).
#[test]
fn the_digest_is_what_sha256sum_says() {
    use std::process::Command;
    let script = r#"
sha256() { sha256sum | cut -c1-64; }
{ printf sign | sha256
  echo "$(printf /in/a.tar | sha256) $(printf 'what is released' | sha256)"
} | sha256"#;
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    let content: [u8; 32] = Sha256::digest("what is released").into();
    let asked = Asked::new().argument("sign".as_ref()).file("/in/a.tar".as_ref(), content);
    assert_eq!(asked.digest(), format!("sha256:{}", String::from_utf8(output.stdout).unwrap().trim_end()));

    // Neither does an argument run into the next, nor is a content taken for an argument.
    let two = |one: &str, other: &str| Asked::new().argument(one.as_ref()).argument(other.as_ref()).digest();
    assert_ne!(two("ab", "c"), two("a", "bc"));
    assert_ne!(two("a", ""), Asked::new().argument("a".as_ref()).digest());
    assert_ne!(Asked::new().digest(), Asked::new().argument("".as_ref()).digest());
    assert_ne!(two("sign", "/in/a.tar"), asked.digest());
}
