#!/usr/bin/env -S sh -uc 'o=--;[ -d "${0%/*}/bundle" ]||o=-b$(realpath "$OTPQR_ROOT")/scripts;exec rust-script "$o" "$0" "$@"'
//! Starts a protected program, against a code.
//!
//! Why: CAS gives the program its secrets only after it has attested it and accepted a code of the account's, which it accepts once.
//! How: everything is checked, and a container is up, before the code is asked for. From then on streams, signals, terminal size
//! and exit code are the caller's.
//! Limits: a service that was started ends with a crash of it or of the host; it takes another code to start it again.
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
//! serde_json = "=1.0.154"
//! thiserror = "=2.0.21"
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use bundle::Report;
use bundle::account::{self, Account};
use bundle::caller;
use bundle::code::Source;
use bundle::failure::{Concern, Exit, Failure};
use bundle::program::Launch;
use bundle::service::{self, Service};
use bundle::state::Program;
use clap::Parser;
use serde_json::json;

/// Start a protected program, against a code
#[derive(Debug, Parser)]
#[command(
    name = "start",
    bin_name = "./scripts/start.rs",
    version,
    after_help = "\
Exit codes: the program's. If it was not started:
  2 usage   3 something is missing, nothing was started   5 refused: the code, or CAS did not trust program or volume
  130 interrupted   1 anything else

Examples:
  ./scripts/start.rs calculator -- 42                    asks for the code on the terminal
  ./scripts/start.rs signer --mount type=bind,src=.,dst=/in -- /in/release.tar >release.tar.sig
  ./scripts/start.rs signer --open                       what was protected with --open needs no code
  ./scripts/start.rs web --detach --log web.log --publish 8443:8443
                                                         a service; goes on when the terminal is closed
  ./scripts/start.rs web --stop
  ./scripts/start.rs calculator --otp-file code.txt -- 42   without a terminal"
)]
struct Args {
    #[command(flatten)]
    program: caller::Options,
    #[command(flatten)]
    account: account::Named,
    /// Read the code from FILE instead of asking; '-' is standard input, of which the program then has nothing
    #[arg(long, value_name = "FILE")]
    otp_file: Option<PathBuf>,
    /// Start what everybody may start, without a code
    #[arg(long, conflicts_with = "otp_file")]
    open: bool,
    /// Start it as a service: it goes on alone
    #[arg(long, requires = "log")]
    detach: bool,
    /// With --detach: append what it prints to FILE, which only you can read
    #[arg(long, value_name = "FILE", requires = "detach")]
    log: Option<PathBuf>,
    /// End the service
    #[arg(long, conflicts_with_all = ["detach", "open", "otp_file", "arguments", "mount", "publish"])]
    stop: bool,
    /// With --detach: print what was started as JSON
    #[arg(long, requires = "detach")]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("what was granted starts it, without a code: leave out '--otp-file'")]
    WithoutCode,
}

impl Concern for StartError {
    fn exit(&self) -> Exit {
        Exit::Usage
    }
}

fn main() -> ExitCode {
    bundle::fresh!("start.rs");
    bundle::run(start)
}

fn start(args: &Args) -> Result<Report, Failure> {
    if args.stop {
        return stop(args).map(Report::from);
    }
    let found = Account::read(&args.account)?;
    let is_without_code = found.state.programs.get(&args.program.given.program).is_some_and(Program::is_without_code);
    let source = match &args.otp_file {
        Some(_) if is_without_code => return Err(StartError::WithoutCode.into()),
        _ if args.open || is_without_code => None,
        file => Some(Source::new(file.as_deref(), "'--otp-file FILE' ('-': standard input)")?),
    };
    let mut account = found.with_tools()?;
    match &args.log {
        None => {
            let exit = Launch::prepare(&mut account, &args.program, args.open)?.run(source.as_ref())?;
            Ok(Report { text: String::new(), exit })
        }
        Some(log) => {
            let name = &args.program.given.program;
            let stop = account.script("start", &format!(" {name} --stop"));
            if let Some(running) = service::running(&account, name)? {
                return Ok(told(args, "already running", &running, None, &stop).into());
            }
            let launch = Launch::prepare(&mut account, &args.program, args.open)?;
            let service = launch.detach(source.as_ref(), log)?;
            Ok(told(args, "started", &service, launch.granted(), &stop).into())
        }
    }
}

/// `start`: which start it is, as its gate says.
fn told(args: &Args, what: &str, service: &Service, start: Option<String>, stop: &str) -> String {
    let name = &args.program.given.program;
    let (kind, id) = match service {
        Service::Container(container) => ("container", json!(container)),
        Service::Process(process) => ("pid", json!(process)),
    };
    if args.json {
        return json!({ "program": name, kind: id, "start": start }).to_string();
    }
    let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
    format!("{what}: '{name}', {kind} {id}\nstop it: {}", bundle::hint::pasteable(stop))
}

fn stop(args: &Args) -> Result<String, Failure> {
    let (account, name) = (Account::open(&args.account)?, &args.program.given.program);
    Ok(if service::stop(&account, name)? {
        let program = account.state.programs.get(name);
        let takes = if program.is_some_and(Program::is_without_code) { "grant" } else { "code" };
        format!("stopped: '{name}'; it takes a {takes} to start it again")
    } else {
        format!("'{name}' does not run as a service")
    })
}
