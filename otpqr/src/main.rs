//! otpqr: renders the shared secret of one-time passwords as a QR code (SVG), once.
//!
//! It runs in an enclave, where it gets the secret, out of its caller's sight. A once-marker, a file in a volume that cannot be
//! rolled back, keeps it from showing the secret a second time.
//!
//! Whatever can fail comes before the marker is taken: all input is validated, the QR code rendered and the output reserved
//! first. The marker is durable before the first byte of the QR code is written. Standard output stays empty.

#![forbid(unsafe_code)]

mod environment;
mod once;
mod qr;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use environment::Environment;
use once::{Marker, Reservation};

const HELP: &str = "\
Renders the shared secret of one-time passwords as a QR code (SVG), once

Usage: otpqr [--check | --confirm]

Options:
      --check    Only check that a QR code could be issued: spends nothing, leaves nothing behind, needs no secret
      --confirm  Do nothing: that it was started at all shows that a code was accepted
      --help     Print help
      --version  Print version

Environment:
  OTP_SECRET         shared secret: base32 without padding, at least 128 bits
  OTP_ACCOUNT_NAME   issuer, as the authenticator shows it
  OTP_ACCOUNT_LOGIN  login, as the authenticator shows it
  OTP_OUTPUT_FILE    the file to create; an existing one is never overwritten
  OTP_SINGLE_USE     the once-marker: while this file exists, nothing is issued
  OTP_RESET          TRUE: issue even if the once-marker exists (it is taken all the same)
--check reads OTP_OUTPUT_FILE and OTP_SINGLE_USE only, --confirm nothing.

Exit codes:
   0  done
   2  usage
  10  refused: the once-marker exists
  11  a variable is missing or bad
  12  the output exists or cannot be written; the once-marker was not taken
   1  anything else; the once-marker may have been taken
";

/// The exit codes other than 0; [`HELP`] says what they mean.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Exit {
    Other = 1,
    Usage = 2,
    Refused = 10,
    Environment = 11,
    Output = 12,
}

/// Why nothing was issued: one line without a newline, which holds no secret.
#[derive(Debug)]
struct Failure(Exit, String);

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(exit, message)) => {
            // Not eprintln!, which panics when standard error is closed: the exit code must survive that.
            let _ = writeln!(std::io::stderr(), "otpqr: error: {message}");
            ExitCode::from(exit as u8)
        }
    }
}

fn run(arguments: Vec<OsString>) -> Result<(), Failure> {
    match arguments.as_slice() {
        [] => issue(),
        [option] if option == "--check" => check(),
        [option] if option == "--confirm" => Ok(()),
        [option] if option == "--help" => print(HELP),
        [option] if option == "--version" => print(concat!("otpqr ", env!("CARGO_PKG_VERSION"), "\n")),
        _ => Err(Failure(Exit::Usage, "unknown arguments; 'otpqr --help' says what there is".into())),
    }
}

fn issue() -> Result<(), Failure> {
    let environment = Environment::read()?;
    let svg = qr::svg(&environment.account)?;
    let marker = Marker::new(environment.marker, environment.reset);
    // Taking the marker below is what decides. Looking first means that an ordinary refusal never creates an output file.
    marker.refuse_if_taken()?;
    let output = Reservation::create(environment.output, svg.expose().len())?;
    match marker.take() {
        Ok(()) => output.fill(&svg),
        Err(failure) => Err(output.withdraw_after(failure)),
    }
}

fn check() -> Result<(), Failure> {
    let output = environment::output()?;
    Marker::new(environment::marker()?, false).check_volume()?;
    Reservation::create(output, 0)?.withdraw()
}

fn print(text: &str) -> Result<(), Failure> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|cause| Failure(Exit::Other, format!("cannot write to standard output: {cause}")))
}
