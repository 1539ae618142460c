#!/usr/bin/env -S sh -uc 'o=--;[ -d "${0%/*}/bundle" ]||o=-b$(realpath "$OTPQR_ROOT")/scripts;exec rust-script "$o" "$0" "$@"'
//! Has the account's QR code issued - once, ever.
//!
//! Why: whoever scans it can produce the codes; so the confidential program that renders it takes a once-marker, in a volume
//! that cannot be rolled back, before it writes anything.
//! Limits: the host that shows the QR code is trusted while it does. The secret passes through no stream of this script.
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

use std::process::ExitCode;
use std::time::Instant;

use bundle::account::{self, Account};
use bundle::enrolment::{self, Enrolment};
use bundle::failure::Failure;
use bundle::step;
use clap::Parser;

/// Have the account's QR code issued - once, ever
#[derive(Debug, Parser)]
#[command(
    name = "gen_qr",
    bin_name = "./scripts/gen_qr.rs",
    version,
    after_help = "\
Exit codes:
  0 issued   2 usage   3 something is missing, nothing changed   4 stopped part-way
  5 refused: issued before, or CAS did not trust program or volume   130 interrupted   1 anything else

Examples:
  ./scripts/gen_qr.rs                                    writes qrcode.svg, asks for a first code, destroys the file
  ./scripts/gen_qr.rs --terminal                         shows the QR code here, writes no file
  ./scripts/gen_qr.rs --account signing --output signing.svg --keep
  ./scripts/gen_qr.rs --no-confirm                       without a terminal: writes qrcode.svg and ends
  shred -n 3 -z -u qrcode.svg                            what to do with it once it was scanned"
)]
struct Args {
    #[command(flatten)]
    account: account::Named,
    #[command(flatten)]
    enrolment: enrolment::Options,
}

fn main() -> ExitCode {
    bundle::fresh!("gen_qr.rs");
    bundle::run(gen_qr)
}

fn gen_qr(args: &Args) -> Result<String, Failure> {
    let confirmation = args.enrolment.confirmation()?;
    let mut account = Account::open(&args.account)?;
    account.check()?;
    let output = args.enrolment.prepare(&account)?;
    let started = Instant::now();
    // A run that was cut off may have left it.
    if !output.is_complete() {
        step("starting the confidential program");
        output.issue(&format!("{}/otpqr/otpqr", account.state.namespace))?;
    }
    let enrolment = Enrolment {
        account: &account,
        options: &args.enrolment,
        confirmation: confirmation.as_ref(),
        start_took: started.elapsed(),
        spent: None,
    };
    enrolment.conclude(output)
}
