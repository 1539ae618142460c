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

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use bundle::enrolment::Enrolment;
use bundle::outcome::{Failure, conclude, step};
use bundle::{enrolment, state};

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
    /// The account
    #[arg(long, default_value = "default", value_parser = state::account_name)]
    account: String,
    #[command(flatten)]
    enrolment: enrolment::Options,
    /// The bundle's directory [default: OTPQR_ROOT, the script's parent, the current directory]
    #[arg(long)]
    root: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    conclude("gen_qr", || gen_qr(&args))
}

fn gen_qr(args: &Args) -> Result<String, Failure> {
    let confirmation = args.enrolment.check()?;
    let (root, _, state) = state::existing(args.root.as_deref(), &args.account)?;
    let tools = state.platform.tools(&root, &args.account)?;
    tools.check_cas(&state.cas)?;
    tools.check_image(&state.image, &state.image_id, &state.mrenclave)?;
    let output = args.enrolment.prepare(&root, &args.account, &state)?;
    let started = Instant::now();
    if !output.is_complete() {
        step("starting the confidential program");
        let config_id = format!("{}/otpqr/otpqr", state.namespace);
        let finished = output.start(&tools, &root, &state, &config_id)?;
        if !output.is_complete() {
            return Err(output.explain(&finished));
        }
    }
    let enrolment = Enrolment {
        account: &args.account,
        state: &state,
        tools: &tools,
        options: &args.enrolment,
        source: confirmation.as_ref(),
        takes: started.elapsed(),
        spent: None,
    };
    enrolment.conclude(output)
}
