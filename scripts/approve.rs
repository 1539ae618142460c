#!/usr/bin/env -S sh -uc 'o=--;[ -d "${0%/*}/bundle" ]||o=-b$(realpath "$OTPQR_ROOT")/scripts;exec rust-script "$o" "$0" "$@"'
//! Grants starts of a protected program, against a code of an account that the program's owner named.
//!
//! Why: one person's code is not to be enough for what two must agree on; and one code may be enough for several starts.
//! How: against the code, a confidential program notes the grant where it alone can write. What is started looks it up, inside,
//! and takes one start of it: as many as were granted, until the time that was said, for the very arguments and files.
//! Limits: the time is this host's. A grant cannot be taken back by itself; 'protect.rs NAME --void-grants' voids all there are.
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

use bundle::account::{self, Account};
use bundle::caller::Given;
use bundle::code::Source;
use bundle::failure::Failure;
use bundle::permit::{self, Granted};
use bundle::state;
use clap::Parser;

/// Grant starts of somebody's program, against a code of this account's
#[derive(Debug, Parser)]
#[command(
    name = "approve",
    bin_name = "./scripts/approve.rs",
    version,
    after_help = "\
Of a program that counts for itself, ARGS and the content of the files that they name are granted, and nothing else. Mount what its
caller will mount. Through a gate the program is granted, whatever its arguments.

Exit codes:
  0 granted   2 usage   3 something is missing, nothing was granted   4 stopped part-way, run it again
  5 refused: the code, or by CAS   130 interrupted   1 anything else

Examples:
  ./scripts/approve.rs signer --account bob --starts 1 --for 10m --mount type=bind,src=.,dst=/in -- /in/release.tar
  ./scripts/approve.rs web --account bob --starts 3 --for 8h         three starts, for one code
  ./scripts/approve.rs web --list                                    who granted what, and what became of it
  ./scripts/approve.rs web --account bob --of staging --starts 1 --for 90s --otp-file code.txt"
)]
struct Args {
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    granted: Granted,
    #[command(flatten)]
    account: account::Named,
    /// The account that the program belongs to
    #[arg(long, value_name = "ACCOUNT", default_value = "default", value_parser = state::account_name)]
    of: String,
    /// Read the code from FILE instead of asking; '-' is standard input
    #[arg(long, value_name = "FILE")]
    otp_file: Option<PathBuf>,
    /// Print what was granted of the program's starts, by whom, and what is left of it; takes no code
    #[arg(long, conflicts_with_all = ["starts", "duration", "mount", "arguments", "otp_file", "account"])]
    list: bool,
}

fn main() -> ExitCode {
    bundle::fresh!("approve.rs");
    bundle::run(approve)
}

fn approve(args: &Args) -> Result<String, Failure> {
    let of = |root| account::Named { account: args.of.clone(), root, scone: args.account.scone.clone() };
    if args.list {
        return permit::listed(&mut Account::open(&of(args.account.root.clone()))?, &args.given.program);
    }
    let source = Source::new(args.otp_file.as_deref(), "'--otp-file FILE' ('-': standard input)")?;
    let mut account = Account::open_with_templates(&args.account)?;
    let mut owner = Account::open(&of(Some(account.root.clone())))?;
    let granted = permit::grant(&mut account, &mut owner, &args.given, &args.granted, &source)?;
    Ok(format!("granted: {granted}"))
}
