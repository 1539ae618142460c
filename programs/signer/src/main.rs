//! signer: signs files, digests and container images with a P-256 key that stays inside.
//!
//! It runs in an enclave. CAS draws the key and gives it to this program alone; what leaves the program is signatures and the
//! public key. Whoever starts it decides what is signed: the policy says who may, and this program does not ask.
//!
//! Nothing is written before everything has succeeded: after an error, standard output is empty. If the policy grants a number of
//! starts, or asks for somebody's approval of what is signed, one is taken when all is ready to be signed: a file that cannot be
//! read costs none, and what is approved is the content that is signed.

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
use permit::{Asked, Permit};

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
  PERMIT_FILE    where the first start is noted, in a volume; unset, as all that follow: it signs as often as it is started
  PERMIT_STARTS  how often it signs in all
  PERMIT_GRANTS, PERMIT_APPROVERS, PERMIT_SERVICE, PERMIT_TERM
                 where others grant what is signed, whose grants count, of which service, and under which term

Exit codes:
   0  done
   2  usage
  10  refused: the argument is no digest or no image that can be signed, or no start is left or granted
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

fn sign(argument: &OsStr) -> Result<String, Failure> {
    let subject = Subject::parse(argument)?;
    let key = PrivateKey::from_environment()?;
    let digest = subject.digest()?;
    let asked = Asked::new().argument("sign".as_ref());
    // What is granted is what is signed, whatever the file holds by now.
    take_start(&match &subject {
        Subject::File(path) => asked.file(path.as_os_str(), digest.bytes()),
        Subject::Digest(_) => asked.argument(argument),
    })?;
    Ok(key.sign(digest)? + "\n")
}

fn sign_image(argument: &OsStr) -> Result<String, Failure> {
    let image = Image::parse(argument)?;
    let key = PrivateKey::from_environment()?;
    take_start(&Asked::new().argument("image".as_ref()).argument(argument))?;
    Ok(image.sign(&key)? + "\n")
}

/// Takes a start for what is asked, if the policy says how many there are or who grants them.
fn take_start(asked: &Asked) -> Result<(), Failure> {
    let failed = |error: permit::Error| {
        let exit = match error {
            permit::Error::Environment { .. } => Exit::Environment,
            permit::Error::Spent { .. } | permit::Error::NotGranted { .. } => Exit::Refused,
            permit::Error::Volume { .. } | permit::Error::Clock => Exit::Other,
        };
        Failure(exit, error.to_string())
    };
    let Some(permit) = Permit::from_environment().map_err(failed)? else { return Ok(()) };
    let start = permit.take(Some(&asked.digest())).map_err(failed)?;
    let _ = writeln!(std::io::stderr(), "signer: {start}");
    Ok(())
}

/// An argument as messages show it: between quotes and on one line, whatever it holds.
fn quoted(argument: &OsStr) -> String {
    format!("'{}'", argument.to_string_lossy().escape_debug())
}
