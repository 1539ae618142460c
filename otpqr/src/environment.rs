//! The environment variables by which the policy configures otpqr. All are validated before anything is touched, so that a
//! value that an authenticator would not accept does not cost the once-marker. Errors name the variable, never its value.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::{Exit, Failure};

/// A text that must not be shown: no `Display`, and a `Debug` without content.
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The only way to the text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What an authenticator is told.
#[derive(Debug)]
pub struct Account {
    /// The issuer, who accepts the codes.
    pub issuer: String,
    /// The login to which the codes belong.
    pub login: String,
    /// The shared secret: upper-case base32 without padding.
    pub secret: Secret,
}

/// All that issuing a QR code needs.
#[derive(Debug)]
pub struct Environment {
    /// The content of the QR code.
    pub account: Account,
    /// The file to create.
    pub output: PathBuf,
    /// The once-marker.
    pub marker: PathBuf,
    /// Whether an existing once-marker is accepted.
    pub reset: bool,
}

impl Environment {
    /// Reads and validates every variable.
    pub fn read() -> Result<Environment, Failure> {
        Ok(Environment {
            account: Account {
                issuer: label("OTP_ACCOUNT_NAME")?,
                login: label("OTP_ACCOUNT_LOGIN")?,
                secret: shared_secret("OTP_SECRET")?,
            },
            output: output()?,
            marker: marker()?,
            reset: flag("OTP_RESET")?,
        })
    }
}

/// The file to create.
pub fn output() -> Result<PathBuf, Failure> {
    file_path("OTP_OUTPUT_FILE")
}

/// The once-marker.
pub fn marker() -> Result<PathBuf, Failure> {
    file_path("OTP_SINGLE_USE")
}

fn variable(name: &str) -> Result<OsString, Failure> {
    std::env::var_os(name).ok_or_else(|| bad(name, "is not set"))
}

fn text(name: &str) -> Result<String, Failure> {
    variable(name)?.into_string().map_err(|_| bad(name, "is not UTF-8"))
}

fn bad(name: &str, why: &str) -> Failure {
    Failure(Exit::Environment, format!("{name} {why}"))
}

/// A part of the Key URI's label, `Issuer:login`: the colon is what separates them.
fn label(name: &str) -> Result<String, Failure> {
    let label = text(name)?;
    if label.is_empty() {
        return Err(bad(name, "is empty"));
    }
    if label.contains(':') {
        return Err(bad(name, "contains a colon"));
    }
    if label.contains(char::is_control) {
        return Err(bad(name, "contains a control character"));
    }
    Ok(label)
}

fn shared_secret(name: &str) -> Result<Secret, Failure> {
    let secret = Secret::new(text(name)?);
    let bits = base32_bits(secret.expose()).ok_or_else(|| bad(name, "is not base32 (A-Z and 2-7, no padding)"))?;
    // RFC 4226 section 4, R6, and SCONE: at least 128 bits.
    if bits < 128 {
        return Err(bad(name, "is shorter than 128 bits"));
    }
    Ok(secret)
}

/// The number of bits in a text in base32 without padding (RFC 4648 section 6); `None` if it is not one. As strict as the
/// strictest reader: no lower case, no length that does not come from whole bytes, no bit set after the last byte.
fn base32_bits(text: &str) -> Option<usize> {
    let mut last = 0;
    for digit in text.bytes() {
        last = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'2'..=b'7' => digit - b'2' + 26,
            _ => return None,
        };
    }
    let spare = text.len() * 5 % 8;
    let is_whole = spare < 5 && last & ((1 << spare) - 1) == 0;
    is_whole.then_some(text.len() * 5 - spare)
}

fn file_path(name: &str) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(variable(name)?);
    if path.is_absolute() && path.file_name().is_some() {
        Ok(path)
    } else {
        Err(bad(name, "is not the absolute path of a file"))
    }
}

fn flag(name: &str) -> Result<bool, Failure> {
    match std::env::var_os(name) {
        None => Ok(false),
        Some(value) if value == "TRUE" => Ok(true),
        Some(_) => Err(bad(name, "is neither unset nor TRUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_is_upper_case_unpadded_and_canonical() {
        assert_eq!(base32_bits("mzxw6ytb"), None, "lower case");
        assert_eq!(base32_bits("MZXW6==="), None, "padding");
        assert_eq!(base32_bits("MZXW 6YTB"), None, "a space");
        assert_eq!(base32_bits("MZXW6YT1"), None, "not in the alphabet");
        assert_eq!(base32_bits("M"), None, "five bits are no byte");
        assert_eq!(base32_bits("MZX"), None, "the third digit adds no byte");
        assert_eq!(base32_bits("MZ"), None, "a bit is set after the last byte");
        // RFC 4648 section 10.
        for (text, bytes) in [("", 0), ("MY", 1), ("MZXQ", 2), ("MZXW6", 3), ("MZXW6YQ", 4), ("MZXW6YTB", 5)] {
            assert_eq!(base32_bits(text), Some(8 * bytes), "{text}");
        }
    }

    #[test]
    fn a_secret_is_not_shown_by_debug() {
        assert_eq!(format!("{:?}", Secret::new("JBSWY3DP".into())), "Secret(..)");
    }
}
