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

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use bundle::code::{Presentation, Source};
use bundle::enrolment::Enrolment;
use bundle::outcome::{Failure, OTHER, USAGE, conclude, step};
use bundle::{code, enrolment, state};

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
    /// The account
    #[arg(long, default_value = "default", value_parser = state::account_name)]
    account: String,
    /// Read the code from FILE instead of asking; '-' is standard input
    #[arg(long, value_name = "FILE")]
    otp_file: Option<PathBuf>,
    #[command(flatten)]
    enrolment: enrolment::Options,
    /// The bundle's directory [default: OTPQR_ROOT, the script's parent, the current directory]
    #[arg(long)]
    root: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    conclude("add_auth", || add_auth(&args))
}

fn add_auth(args: &Args) -> Result<String, Failure> {
    let source = Source::new(args.otp_file.as_deref(), "'--otp-file FILE' ('-': standard input)")?;
    let confirmation = args.enrolment.check()?;
    if let (Source::File(code), Some(Source::File(first))) = (&source, &confirmation)
        && code == first
        && code == Path::new("-")
    {
        return Err(Failure::new(
            USAGE,
            "standard input holds one code: '--otp-file' and '--confirm-file' cannot both be '-'",
        ));
    }
    let (root, _, state) = state::existing(args.root.as_deref(), &args.account)?;
    let tools = state.platform.tools(&root, &args.account)?;
    tools.check_cas(&state.cas)?;
    tools.check_image(&state.image, &state.image_id, &state.mrenclave)?;
    let prepare = || args.enrolment.prepare(&root, &args.account, &state);
    let mut output = prepare()?;
    let started = Instant::now();
    let (mut takes, mut spent) = (Duration::ZERO, None);
    if !output.is_complete() {
        step("checking program and volume");
        let check = format!("{}/otpqr/check", state.namespace);
        let finished = output.start(&tools, &root, &state, &check)?;
        if !finished.success() {
            return Err(output.explain(&finished));
        }
        takes = started.elapsed();
        // Nothing is held and nothing lies about while a person is asked.
        drop(output);
        let presentation = Presentation {
            source: &source,
            prompt: format!("Code for {}, {}", state.issuer, state.label()),
            takes,
            spent: None,
            remains: "nothing was changed and no code was spent".to_owned(),
            tools: &tools,
            namespace: &state.namespace,
        };
        let service = format!("{}/otpqr-reset/otpqr", state.namespace);
        let mut issued = None;
        let (finished, at) = presentation.make(&mut |code| {
            let output = prepare()?;
            step("starting the confidential program");
            let finished = output.start(&tools, &root, &state, &code.config_id(&service))?;
            if !code::is_refused(&finished) {
                issued = Some(output);
            }
            Ok(finished)
        })?;
        spent = Some(at);
        output = match issued {
            Some(output) if output.is_complete() => output,
            Some(output) => return Err(output.explain(&finished)),
            None => return Err(Failure::new(OTHER, "the program was not started")),
        };
    }
    let enrolment = Enrolment {
        account: &args.account,
        state: &state,
        tools: &tools,
        options: &args.enrolment,
        source: confirmation.as_ref(),
        takes,
        spent,
    };
    enrolment.conclude(output)
}
