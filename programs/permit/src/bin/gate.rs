//! gate: dispenses one code of a program's own secret for each start that is granted, and notes what is granted.
//!
//! It stands before a program that does not count its starts. It runs in an enclave, and CAS gives the secret whose codes start the
//! program to it alone. So there are no more starts of the program than the gate has codes dispensed: CAS takes each code once.
//!
//! A start is taken, durably, before the code is printed. What was not used is lost.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use permit::{Error, Grant, Grants, Permit, Standing, Start};
use totp_rs::{Algorithm, Secret, TOTP};

const HELP: &str = "\
Dispenses one code of a program's own secret for each start that is granted

Usage: gate
       gate --left
       gate --grant STARTS SECONDS DIGEST|-

Prints a one-time password (six digits), which starts the program once, and says on standard error which start it is.

Options:
  --left     Print how many starts are left, and what was granted; takes none and needs no secret
  --grant    Grant so many starts from now on for so long, for arguments with this digest ('sha256:HEX'; '-': of the service)
  --help     Print help
  --version  Print version

Environment:
  GATE_SECRET       the program's secret: base32 without padding, at least 128 bits
  PERMIT_FILE       where the first start is noted, in a volume
  PERMIT_STARTS     how many starts there are in all
  PERMIT_GRANTS     a volume with what others granted: a start takes one of theirs, too
  PERMIT_APPROVERS  whose grants count
  PERMIT_SERVICE    of which service
  PERMIT_TERM       under which term: grants of another are void
  PERMIT_APPROVER   whose the grants are that this one makes

Exit codes:
   0  done
   2  usage
  10  refused: all starts are taken, none is granted, or one was taken in this time step (30 s), whose code works once
  11  a variable is missing or bad
   1  anything else; a start may have been taken
";

/// Whose grants are made. Set by the policy.
const APPROVER: &str = "PERMIT_APPROVER";

/// The longest time for which starts are granted, in seconds: 31 days.
const LONGEST: u64 = 31 * 24 * 60 * 60;

/// The last second of the year 9999, in seconds since 1970.
const LAST: u64 = 253_402_300_799;

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
            Error::Spent { .. } | Error::NotGranted { .. } => Exit::Refused,
            Error::Volume { .. } | Error::Clock => Exit::Other,
        };
        Failure(exit, error.to_string())
    }
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match arguments.as_slice() {
        [] => dispense(),
        [option] if option == "--left" => left(),
        [option, starts, seconds, digest] if option == "--grant" => grant(starts, seconds, digest),
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
    let permit = permit()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| Failure::from(Error::Clock))?.as_secs();
    permit.check(None)?;
    let start = take(&permit, now)?;
    let _ = writeln!(std::io::stderr(), "gate: {start}");
    Ok(codes.generate(now) + "\n")
}

fn left() -> Result<String, Failure> {
    let (permit, mut text) = (permit()?, String::new());
    if let Some(budget) = permit.budget() {
        let _ = writeln!(text, "{} of {} starts are left", budget.left()?, budget.starts());
    }
    for (grant, standing) in permit.grants()? {
        let (what, left) = match standing {
            Standing::Good(left) => ("granted", left),
            Standing::Spent => ("used up", 0),
            Standing::Expired => ("expired", 0),
            Standing::Void => ("void", 0),
        };
        let _ = writeln!(text, "{what}: {left} of {}", told(&grant));
    }
    Ok(text)
}

fn grant(starts: &OsStr, seconds: &OsStr, digest: &OsStr) -> Result<String, Failure> {
    let usage = |problem: &str| Failure(Exit::Usage, problem.to_owned());
    let number =
        |text: &OsStr, most: u64| text.to_str()?.parse::<u64>().ok().filter(|number| (1..=most).contains(number));
    let starts = number(starts, permit::MOST.into()).and_then(|starts| u32::try_from(starts).ok());
    let starts = starts.ok_or_else(|| usage("STARTS is not a number from 1 to 1000000"))?;
    let seconds = number(seconds, LONGEST).ok_or_else(|| usage("SECONDS is not a number from 1 to 2678400"))?;
    let digest = match digest.to_str() {
        Some("-") => None,
        Some(digest) if is_digest(digest) => Some(digest.to_owned()),
        _ => return Err(usage("DIGEST is neither 'sha256:' and 64 hex digits nor '-'")),
    };
    let grants = Grants::from_environment()?;
    let (approver, service, term) = (word(APPROVER)?, word(permit::SERVICE)?, word(permit::TERM)?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| Failure::from(Error::Clock))?.as_secs();
    let granted = grants.add(Grant { number: 0, starts, until: now + seconds, approver, service, term, digest })?;
    Ok(told(&granted) + "\n")
}

/// A grant on one line.
fn told(grant: &Grant) -> String {
    let Grant { number, starts, until, approver, service, digest, .. } = grant;
    // No date is later.
    let until = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs((*until).min(LAST)));
    let digest = digest.as_ref().map_or(String::new(), |digest| format!(" for {digest}"));
    let starts = if *starts == 1 { "1 start".to_owned() } else { format!("{starts} starts") };
    format!("{starts} until {until} by '{approver}' (grant {number}) of '{service}'{digest}")
}

fn is_digest(text: &str) -> bool {
    let is_hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(is_hex))
}

/// A variable's text, which has no white space in it: it is noted as one word.
fn word(variable: &str) -> Result<String, Failure> {
    let bad = |problem: &str| Failure(Exit::Environment, format!("{variable} {problem}"));
    let text = std::env::var_os(variable).ok_or_else(|| bad("is not set"))?;
    let text = text.into_string().ok().filter(|text| !text.is_empty() && !text.contains(char::is_whitespace));
    text.ok_or_else(|| bad("is no name"))
}

fn permit() -> Result<Permit, Failure> {
    let unset = || Failure(Exit::Environment, format!("{} is not set", permit::STARTS));
    Permit::from_environment()?.ok_or_else(unset)
}

/// Takes a start, and the time step that its code belongs to: CAS would refuse the same code a second time.
fn take(permit: &Permit, now: u64) -> Result<Start, Failure> {
    let step = now / STEP;
    match permit.beside(&format!("step-{step}")).take() {
        Err(Error::Spent { .. }) => {
            let wait = STEP - now % STEP;
            return Err(Failure(
                Exit::Refused,
                format!("a start was granted in this time step: try again in {wait} s"),
            ));
        }
        taken => taken?,
    };
    let start = permit.take(None)?;
    // Time steps that have passed need not be remembered: CAS does. What cannot be removed now is removed by a later one.
    permit.forget_beside("step-", &format!("step-{step}"));
    Ok(start)
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
