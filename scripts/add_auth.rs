#!/usr/bin/env -S sh -uc 'o=--;[ -d "${0%/*}/bundle" ]||o=-b$(realpath "$OTPQR_ROOT")/scripts;exec rust-script "$o" "$0" "$@"'
//! Has the QR code issued again, for another authenticator - against a current code.
//!
//! Why: CAS demands a code of the very secret that the QR code shows, so nobody learns a secret who could not already
//! produce its codes.
//! Limits: the code asked for is spent even when a later step fails. Everything that can be checked is checked before.
//!
//! ```cargo
//! [package]
//! version = "0.1.0"
//! edition = "2024"
//!
//! [dependencies]
//! # Not found? The script was copied: say where the bundle is: export OTPQR_ROOT=/path/to/the/checkout
//! bundle = { path = "bundle" }
//! clap = { version = "=4.6.7", features = ["derive"] }
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bundle::account::{self, Account};
use bundle::code::{self, Presentation, Source};
use bundle::enrolment::{self, Enrolment};
use bundle::failure::Failure;
use bundle::issue::Output;
use bundle::step;
use clap::Parser;

/// Have the QR code issued again, for another authenticator - against a current code
#[derive(Debug, Parser)]
#[command(
    name = "add_auth",
    bin_name = "./scripts/add_auth.rs",
    version,
    after_help = "\
Exit codes:
  0 issued   2 usage   3 something is missing, nothing changed   4 stopped part-way
  5 refused: the code, or CAS did not trust program or volume   130 interrupted   1 anything else

Examples:
  ./scripts/add_auth.rs                                  asks for the code on the terminal
  ./scripts/add_auth.rs --terminal                       shows the QR code here, writes no file
  ./scripts/add_auth.rs --account signing --output second-phone.svg --keep
  ./scripts/add_auth.rs --no-confirm --otp-file - <code.txt
                                                         without a terminal: takes the code from standard input"
)]
struct Args {
    #[command(flatten)]
    account: account::Named,
    /// Read the code from FILE instead of asking; '-' is standard input
    #[arg(long, value_name = "FILE")]
    otp_file: Option<PathBuf>,
    #[command(flatten)]
    enrolment: enrolment::Options,
}

fn main() -> ExitCode {
    bundle::fresh!("add_auth.rs");
    bundle::run(add_auth)
}

fn add_auth(args: &Args) -> Result<String, Failure> {
    let source = Source::new(args.otp_file.as_deref(), "'--otp-file FILE' ('-': standard input)")?;
    let confirmation = args.enrolment.confirmation()?;
    code::check_sources(&source, confirmation.as_ref())?;
    let mut account = Account::open(&args.account)?;
    account.check()?;
    let mut output = args.enrolment.prepare(&account)?;
    let (mut start_took, mut spent) = (Duration::ZERO, None);
    // A run that was cut off may have left it.
    if !output.is_complete() {
        step("checking program and volume");
        let started = Instant::now();
        output.check()?;
        start_took = started.elapsed();
        // Nothing is held and nothing lies about while a person is asked.
        drop(output);
        let presentation = Presentation {
            account: &account,
            source: &source,
            prompt: format!("Code for '{}', '{}'", account.state.issuer, account.state.label()),
            start_takes: start_took,
            spent: None,
            remains: "nothing was changed and no code was spent".to_owned(),
        };
        let service = format!("{}/otpqr-reset/otpqr", account.state.namespace);
        let prepare = || args.enrolment.prepare(&account);
        let issued = Output::issue_with_code(presentation, &service, "starting the confidential program", prepare)?;
        (output, spent) = (issued.0, Some(issued.1));
    }
    let enrolment = Enrolment {
        account: &account,
        options: &args.enrolment,
        confirmation: confirmation.as_ref(),
        start_took,
        spent,
    };
    enrolment.conclude(output)
}
