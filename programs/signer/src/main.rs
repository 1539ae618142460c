//! signer: signs files, digests and container images with a P-256 key that stays inside.
//!
//! It runs in an enclave. CAS draws the key and gives it to this program alone; what leaves the program is signatures and the
//! public key. Whoever starts it decides what is signed: the policy says who may, and this program does not ask.
//!
//! Nothing is written before everything has succeeded: after an error, standard output is empty. If the policy grants a number of
//! starts, one is taken when all is ready to be signed: a file that cannot be read costs none.

#![forbid(unsafe_code)]

mod digest;
mod image;
mod key;

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::process::ExitCode;

use digest::Subject;
use image::Image;
use key::PrivateKey;
use permit::Budget;

const HELP: &str = "\
Signs files, digests and container images with a key that stays inside

Usage: signer sign FILE
       signer sign sha256:HEX
       signer image REPOSITORY@sha256:HEX
       signer public

Commands:
  sign    Sign a file's bytes, or those that have the digest: prints base64 of the signature (ECDSA P-256, SHA-256, DER).
          An argument without a slash that holds a colon, or is 64 hex digits, is a digest; './' before it makes it a file
  image   Sign a container image in cosign's format: prints payload, signature, tag and annotation as JSON
  public  Print the public key (PEM)

Options:
  --help     Print help
  --version  Print version

Environment:
  SIGNER_KEY     private key: P-256, PKCS#8 in PEM
  PERMIT_STARTS  how often it signs in all, and
  PERMIT_FILE    where the first of these starts is noted, in a volume; unset, both of them: as often as it is started

Exit codes:
   0  done
   2  usage
  10  refused: the argument is no digest or no image that can be signed, or all starts are taken
  11  a variable is missing or bad
  12  the file cannot be read
   1  anything else
";

/// The exit codes other than 0; [`HELP`] says what they mean.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Exit {
    Other = 1,
    Usage = 2,
    Refused = 10,
    Environment = 11,
    File = 12,
}

/// Why nothing was signed: one line without a newline, which holds no secret.
#[derive(Debug, PartialEq)]
struct Failure(Exit, String);

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(exit, message)) => {
            // Not eprintln!, which panics when standard error is closed: the exit code must survive that.
            let _ = writeln!(std::io::stderr(), "signer: error: {message}");
            ExitCode::from(exit as u8)
        }
    }
}

fn run(arguments: Vec<OsString>) -> Result<(), Failure> {
    let text: Cow<'static, str> = match arguments.as_slice() {
        [command, subject] if command == "sign" => sign(subject)?.into(),
        [command, image] if command == "image" => sign_image(image)?.into(),
        [command] if command == "public" => PrivateKey::from_environment()?.public_pem()?.into(),
        [option] if option == "--help" => HELP.into(),
        [option] if option == "--version" => concat!("signer ", env!("CARGO_PKG_VERSION"), "\n").into(),
        _ => return Err(Failure(Exit::Usage, "unknown arguments; 'signer --help' says what there is".into())),
    };
    let mut stdout = std::io::stdout();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|cause| Failure(Exit::Other, format!("cannot write to standard output: {cause}")))
}

fn sign(subject: &OsStr) -> Result<String, Failure> {
    let subject = Subject::parse(subject)?;
    let key = PrivateKey::from_environment()?;
    let digest = subject.digest()?;
    take_start()?;
    Ok(key.sign(digest)? + "\n")
}

fn sign_image(argument: &OsStr) -> Result<String, Failure> {
    let image = Image::parse(argument)?;
    let key = PrivateKey::from_environment()?;
    take_start()?;
    Ok(image.sign(&key)? + "\n")
}

/// Takes one of the starts that the policy grants, if it grants a number of them.
fn take_start() -> Result<(), Failure> {
    let failed = |error: permit::Error| {
        let exit = match error {
            permit::Error::Environment { .. } => Exit::Environment,
            permit::Error::Spent { .. } => Exit::Refused,
            permit::Error::Volume { .. } => Exit::Other,
        };
        Failure(exit, error.to_string())
    };
    let Some(budget) = Budget::from_environment().map_err(failed)? else { return Ok(()) };
    let number = budget.take().map_err(failed)?;
    let _ = writeln!(std::io::stderr(), "signer: start {number} of {}", budget.starts());
    Ok(())
}

/// An argument as messages show it: between quotes and on one line, whatever it holds.
fn quoted(argument: &OsStr) -> String {
    format!("'{}'", argument.to_string_lossy().escape_debug())
}
