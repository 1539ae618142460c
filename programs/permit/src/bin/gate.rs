//! gate: dispenses one code of a program's own secret for each start that its policy grants.
//!
//! It stands before a program that does not count its starts. It runs in an enclave, and CAS gives the secret whose codes start the
//! program to it alone. So there are no more starts of the program than the gate has codes dispensed: CAS takes each code once.
//!
//! A start is taken from the budget, durably, before the code is printed. What was not used is lost.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use permit::{Budget, Error};
use totp_rs::{Algorithm, Secret, TOTP};

const HELP: &str = "\
Dispenses one code of a program's own secret for each start that its policy grants

Usage: gate [--left]

Prints a one-time password (six digits), which starts the program once, and says on standard error which start it is.

Options:
  --left     Print how many starts are left, and take none; needs no secret
  --help     Print help
  --version  Print version

Environment:
  GATE_SECRET    the program's secret: base32 without padding, at least 128 bits
  PERMIT_STARTS  how many codes it dispenses in all
  PERMIT_FILE    where the first of them is noted, in a volume

Exit codes:
   0  done
   2  usage
  10  refused: all starts are taken, or one was in this time step (30 s), whose code works once
  11  a variable is missing or bad
   1  anything else; a start may have been taken
";

/// A time step, in seconds (RFC 6238 section 4.1).
const STEP: u64 = 30;

/// The exit codes other than 0; [`HELP`] says what they mean.
#[derive(Clone, Copy)]
enum Exit {
    Other = 1,
    Usage = 2,
    Refused = 10,
    Environment = 11,
}

/// Why there is no code: one line without a newline, which holds no secret.
struct Failure(Exit, String);

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let exit = match error {
            Error::Environment { .. } => Exit::Environment,
            Error::Spent { .. } => Exit::Refused,
            Error::Volume { .. } => Exit::Other,
        };
        Failure(exit, error.to_string())
    }
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match arguments.as_slice() {
        [] => dispense(),
        [option] if option == "--left" => left(),
        [option] if option == "--help" => Ok(HELP.to_owned()),
        [option] if option == "--version" => Ok(concat!("gate ", env!("CARGO_PKG_VERSION"), "\n").to_owned()),
        _ => Err(Failure(Exit::Usage, "unknown arguments; 'gate --help' says what there is".into())),
    };
    let written = |text: String| {
        let mut stdout = std::io::stdout();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        written.map_err(|cause| Failure(Exit::Other, format!("cannot write to standard output: {cause}")))
    };
    match done.and_then(written) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(exit, message)) => {
            // Not eprintln!, which panics when standard error is closed: the exit code must survive that.
            let _ = writeln!(std::io::stderr(), "gate: error: {message}");
            ExitCode::from(exit as u8)
        }
    }
}

fn dispense() -> Result<String, Failure> {
    let codes = codes()?;
    let budget = budget()?;
    let clock = |_| Failure(Exit::Other, "the clock is before 1970".into());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(clock)?.as_secs();
    budget.refuse_if_spent()?;
    let number = take(&budget, now)?;
    let _ = writeln!(std::io::stderr(), "gate: start {number} of {}", budget.starts());
    Ok(codes.generate(now) + "\n")
}

fn left() -> Result<String, Failure> {
    let budget = budget()?;
    Ok(format!("{} of {} starts are left\n", budget.left()?, budget.starts()))
}

fn budget() -> Result<Budget, Failure> {
    let unset = || Failure(Exit::Environment, format!("{} is not set", permit::STARTS));
    Budget::from_environment()?.ok_or_else(unset)
}

/// Takes a start, and the time step that its code belongs to: CAS would refuse the same code a second time.
fn take(budget: &Budget, now: u64) -> Result<u32, Failure> {
    let step = now / STEP;
    match budget.beside(&format!("step-{step}")).take() {
        Err(Error::Spent { .. }) => {
            let wait = STEP - now % STEP;
            return Err(Failure(
                Exit::Refused,
                format!("a start was granted in this time step: try again in {wait} s"),
            ));
        }
        taken => taken?,
    };
    let number = budget.take()?;
    // Time steps that have passed need not be remembered: CAS does. What cannot be removed now is removed by a later one.
    budget.forget_beside("step-", &format!("step-{step}"));
    Ok(number)
}

fn codes() -> Result<TOTP, Failure> {
    let bad = |problem: &str| Failure(Exit::Environment, format!("GATE_SECRET {problem}"));
    let text = std::env::var_os("GATE_SECRET").ok_or_else(|| bad("is not set"))?;
    let text = text.into_string().map_err(|_| bad("is not UTF-8"))?;
    let secret = Secret::Encoded(text).to_bytes().map_err(|_| bad("is not base32"))?;
    // TOTP::new checks the length, too: its error would show the secret's.
    if secret.len() < 16 {
        return Err(bad("is shorter than 128 bits"));
    }
    TOTP::new(Algorithm::SHA1, 6, 0, STEP, secret).map_err(|_| bad("makes no codes"))
}
