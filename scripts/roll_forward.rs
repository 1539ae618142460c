#!/usr/bin/env -S sh -uc 'o=--;[ -d "${0%/*}/bundle" ]||o=-b$(realpath "$OTPQR_ROOT")/scripts;exec rust-script "$o" "$0" "$@"'
//! Authenticator lost or volume damaged: a new secret, a new volume, and the old codes are dead.
//!
//! Why: nobody can produce a code any more, so the right to do this rests on the `scone` command line's identity alone.
//! How: three uploads. First session 1 declares old and new side by side; then session 2 switches to the new, which is the
//! moment the old codes die; last, session 1 switches and drops the old. What is intended is recorded first: cut off
//! anywhere, the same command goes on where it stopped.
//! Limits: whoever holds that identity can do it too.
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
use bundle::code::Source;
use bundle::failure::Failure;
use bundle::rotation::{self, Rotation};
use clap::Parser;

/// Authenticator lost or volume damaged: a new secret, a new volume, and the old codes are dead
#[derive(Debug, Parser)]
#[command(
    name = "roll_forward",
    bin_name = "./scripts/roll_forward.rs",
    version,
    after_help = "\
Exit codes:
  0 rolled forward   2 usage   3 something is missing, nothing changed   4 stopped part-way: run it again
  5 refused by CAS   130 interrupted   1 anything else

Examples:
  ./scripts/roll_forward.rs                              asks before the old codes die
  ./scripts/roll_forward.rs --yes --account signing      does not ask
  ./scripts/roll_forward.rs --keep-secret                volume damaged, authenticator at hand: asks for a code
  ./scripts/roll_forward.rs --undo                       it was cut off, and before the old codes died
  ./scripts/roll_forward.rs --cas-wiped                  CAS lost its sessions
  ./scripts/gen_qr.rs                                    afterwards: the new secret's QR code"
)]
struct Args {
    #[command(flatten)]
    account: account::Named,
    /// New volume only: secret and authenticators stay. Asks for a code
    #[arg(long, conflicts_with_all = ["undo", "cas_wiped"])]
    keep_secret: bool,
    /// With --keep-secret: read the code from FILE instead of asking; '-' is standard input
    #[arg(long, value_name = "FILE", requires = "keep_secret")]
    otp_file: Option<PathBuf>,
    /// Undo a roll-forward that was cut off before the old codes died
    #[arg(long, conflicts_with = "cas_wiped")]
    undo: bool,
    /// CAS lost its sessions: upload everything anew, to whatever CAS is there now
    #[arg(long)]
    cas_wiped: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

fn main() -> ExitCode {
    bundle::fresh!("roll_forward.rs");
    bundle::run(roll_forward)
}

fn roll_forward(args: &Args) -> Result<String, Failure> {
    if !args.undo {
        rotation::check_somebody_confirms(args.yes)?;
    }
    let code = if args.keep_secret {
        Some(Source::new(args.otp_file.as_deref(), "'--otp-file FILE' ('-': standard input)")?)
    } else {
        None
    };
    let mut rotation = Rotation { account: Account::open_with_templates(&args.account)?, yes: args.yes };
    if args.cas_wiped {
        rotation.start_anew()
    } else if args.undo {
        rotation.undo()
    } else {
        rotation.forward(code.as_ref())
    }
}
