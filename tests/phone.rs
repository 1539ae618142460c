//! A phone reads what otpqr draws: scanned, its SVG is exactly the account it was given, with the codes of RFC 6238.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::phone::{self, Account};
use bundle::drawing::{fits, largest_size};

/// The secret of RFC 6238 appendix B, in base32.
const SECRET: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";

/// Builds otpqr in its own workspace, with its own lock file.
fn otpqr() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("otpqr");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("otpqr/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .unwrap();
    assert!(built.success());
    target.join("debug/otpqr")
}

/// What otpqr draws for this account.
fn svg(otpqr: &Path, issuer: &str, login: &str) -> String {
    drawn(otpqr, issuer, login).unwrap()
}

/// The same, or its exit code.
fn drawn(otpqr: &Path, issuer: &str, login: &str) -> Result<String, Option<i32>> {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("qrcode.svg");
    let status = Command::new(otpqr)
        .env_clear()
        .env("OTP_SECRET", SECRET)
        .env("OTP_ACCOUNT_NAME", issuer)
        .env("OTP_ACCOUNT_LOGIN", login)
        .env("OTP_OUTPUT_FILE", &output)
        .env("OTP_SINGLE_USE", directory.path().join("once"))
        .status()
        .unwrap();
    if status.success() { Ok(std::fs::read_to_string(output).unwrap()) } else { Err(status.code()) }
}

fn assert_shows_the_codes_of_rfc_6238(account: &Account) {
    for (time, code) in [(59, "287082"), (1111111109, "081804"), (1234567890, "005924"), (20000000000, "353130")] {
        assert_eq!(account.code_at(time), code, "at {time}");
    }
}

#[test]
fn a_phone_scans_the_very_account_that_otpqr_was_given() {
    let otpqr = otpqr();
    let long = "Überraschend lange Anmeldung 利用者 用户 пользователь 🔑 ".repeat(4);
    for (issuer, login) in [
        ("SCONE OTP", "alice"),
        (r#"O'Neil & "Co" #1"#, "alice+test@example.org"),
        ("100% <b>sure</b>/?=\\", "a%3Ab"),
        ("SCONE OTP", &long),
    ] {
        let account = phone::scan(&svg(&otpqr, issuer, login)).unwrap();
        assert_eq!((account.issuer.as_str(), account.login.as_str()), (issuer, login));
        assert_eq!(account.secret, SECRET);
        assert_shows_the_codes_of_rfc_6238(&account);
    }
}

/// As a thumbnail of two pixels a module, and where the modules' edges fall between pixels. (At 100 pixels rqrr finds no code.)
#[test]
fn the_scripts_take_what_fits_a_qr_code_and_know_how_large_it_may_get() {
    let otpqr = otpqr();
    for issuer in ["SCONE OTP", "x"] {
        let longest = (1..3000).take_while(|&letters| fits(issuer, &"x".repeat(letters))).last().unwrap();
        for letters in [1, 30, longest / 3, longest / 2, longest] {
            let login = "x".repeat(letters);
            let size = largest_size(issuer, &login);
            assert!(
                svg(&otpqr, issuer, &login).contains(&format!("viewBox=\"0 0 {size} {size}\"")),
                "{letters} letters"
            );
        }
        // The encoder saves a few bytes where digits follow each other.
        assert_eq!(drawn(&otpqr, issuer, &"x".repeat(longest + 16)).err(), Some(Some(11)));
    }
}

#[test]
fn a_phone_scans_it_at_other_sizes_than_its_own() {
    let svg = svg(&otpqr(), "SCONE OTP", "alice");
    assert!(svg.contains("viewBox=\"0 0 53 53\""), "not the 45 modules of a common account: {svg}");
    for width in [106, 200, 500] {
        let account = phone::scan_at(&svg, width).unwrap_or_else(|error| panic!("{width} pixels: {error}"));
        assert_eq!((account.login.as_str(), account.secret.as_str()), ("alice", SECRET), "{width} pixels");
    }
}

#[test]
fn a_picture_that_a_phone_could_not_read_is_no_account() {
    let svg = svg(&otpqr(), "SCONE OTP", "alice");
    let lines: Vec<&str> = svg.lines().collect();
    let [head, white, code, foot] = lines[..] else { panic!("{} lines", lines.len()) };
    // Three light modules on each side instead of four.
    let size: usize =
        head.split("viewBox=\"0 0 ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    let cut = head.replace(&format!("\"0 0 {size} {size}\""), &format!("\"1 1 {0} {0}\"", size - 2));
    assert_ne!(cut, head);
    for (picture, error) in [
        (format!("{cut}{white}{code}{foot}"), "less than four light modules on a side"),
        ("".to_owned(), "not an SVG: "),
        (format!("{head}{white}{code}"), "not an SVG: "),
        (format!("{head}{white}{foot}"), "0 QR codes in the picture"),
        (format!("{head}{code}{foot}"), "0 QR codes in the picture"),
    ] {
        let answer = phone::scan(&picture).unwrap_err();
        assert!(answer.starts_with(error), "{answer}");
    }
    assert!(phone::scan(&format!("{head}{white}{code}{foot}")).is_ok());
}

#[test]
fn a_key_uri_that_authenticators_could_read_differently_is_refused() {
    let good = format!("otpauth://totp/A%20B:c?secret={SECRET}&issuer=A%20B&algorithm=SHA1&digits=6&period=30");
    for (part, instead, error) in [
        ("totp", "hotp", "not a Key URI of time-based codes"),
        ("?", "", "no parameters"),
        ("A%20B:", "", "no issuer in the label"),
        ("issuer=A%20B", "issuer=A+B", "label and parameter name different issuers"),
        ("&issuer=A%20B", "", "no parameter 'issuer'"),
        ("&algorithm=SHA1", "", "no parameter 'algorithm'"),
        ("SHA1", "MD5", "unknown algorithm"),
        ("&digits=6", "", "no parameter 'digits'"),
        ("digits=6", "digits=six", "digits are not a number"),
        ("digits=6", "digits=5", "no authenticator takes such an entry"),
        ("period=30", "period=30&period=60", "a second or unknown parameter 'period'"),
        ("period=30", "period=30&image", "a parameter without a value"),
        ("secret=", "key=", "no parameter 'secret'"),
        ("secret=", "secret=1", "the secret is not base32"),
        ("c?", "%FF?", "not UTF-8"),
    ] {
        assert!(good.contains(part), "{part}");
        assert_eq!(phone::parse_key_uri(&good.replacen(part, instead, 1)).unwrap_err(), error);
    }
    let account = phone::parse_key_uri(&good).unwrap();
    assert_eq!(format!("{account:?}"), r#"Account { issuer: "A B", login: "c", .. }"#);
    assert_shows_the_codes_of_rfc_6238(&account);
}
