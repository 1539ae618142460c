//! Called `scone` it is the `scone` command line, called `scone-signer` its `scone signer`, by any other name `scone-sim`, which
//! runs the CAS behind it.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::too_many_lines))]

use std::ffi::OsStr;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use scone_sim::SOFTWARE_ONLY;
use scone_sim::daemon::{self, DaemonError, Options};

/// A software-only SCONE CAS for development, tests and rehearsals: protects nobody from root
///
/// Called by the name `scone` it is the scone command line, by the name `scone-signer` its part that signs programs.
#[derive(Parser)]
#[command(name = "scone-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve in the foreground
    Cas {
        #[command(flatten)]
        serve: Serve,
        /// Leave the terminal's session, as `up` needs it
        #[arg(long, hide = true)]
        detached: bool,
    },
    /// Start a CAS in the background, unless one runs; print where it serves, and its key hash
    Up(Serve),
    /// Stop the CAS in the background, if one runs
    Down(Data),
    /// Print where the CAS serves, and its key hash
    Status(Data),
    /// Go on with a database that was restored from an older copy, or whose `cas.head` is lost
    Adopt(Data),
    /// Print what runtimes make evidence with (SCONE_SIM_EVIDENCE_KEY): whoever has it passes for any program
    EvidenceKey(Data),
    /// Print the audit log and check its chain of hashes
    Log {
        #[command(flatten)]
        data: Data,
        /// As `scone cas verify-audit-log` reads it: one entry a line, whole hashes, sealed with CAS's signature
        #[arg(long)]
        json: bool,
        /// Only the last N entries
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        last: Option<u32>,
    },
}

#[derive(Args)]
struct Data {
    /// The data directory (default: $XDG_DATA_HOME/scone-sim, else ~/.local/share/scone-sim)
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    data: Data,
    /// Port of the client API, 0 for any free one (default: as last time, else 8081 if it is free)
    #[arg(long, value_name = "N")]
    client_port: Option<u16>,
    /// Port of the enclave API, 0 for any free one (default: as last time, else 18765 if it is free)
    #[arg(long, value_name = "N")]
    enclave_port: Option<u16>,
    /// Read the time from FILE (seconds since the epoch, text) at each use: for rehearsals and tests
    #[arg(long, value_name = "FILE")]
    clock: Option<PathBuf>,
}

impl Data {
    fn path(self) -> Result<PathBuf, DaemonError> {
        self.data.map_or_else(daemon::default_data, Ok)
    }
}

impl Serve {
    fn options(self) -> Result<Options, DaemonError> {
        let Serve { data, client_port, enclave_port, clock } = self;
        Ok(Options { data: data.path()?, client_port, enclave_port, clock })
    }
}

fn main() -> ExitCode {
    let mut args: Vec<_> = std::env::args_os().collect();
    let name = args.first().map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str);
    if name == Some("scone-signer") {
        args.insert(1, "signer".into());
        return scone_sim::cli::main(args);
    }
    if name == Some("scone") {
        return scone_sim::cli::main(args);
    }
    match run(Cli::parse_from(args).command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scone-sim: error: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), DaemonError> {
    match command {
        Command::Cas { serve, detached } => {
            eprintln!("{SOFTWARE_ONLY}");
            if detached {
                daemon::detach()?;
            }
            let options = serve.options()?;
            let runtime = tokio::runtime::Runtime::new()
                .map_err(|source| DaemonError::System { what: "cannot start", source })?;
            runtime.block_on(daemon::serve(&options, |endpoints| print(&endpoints.lines())))
        }
        Command::Up(serve) => {
            let endpoints = daemon::up(&serve.options()?)?;
            say(&endpoints.lines())
        }
        Command::Down(data) => {
            let ran = daemon::down(&data.path()?)?;
            say(if ran { "stopped\n" } else { "not running\n" })
        }
        Command::Status(data) => say(&daemon::status(&data.path()?)?.lines()),
        Command::Adopt(data) => daemon::adopt(&data.path()?),
        Command::EvidenceKey(data) => say(&format!("{}\n", daemon::evidence_key(&data.path()?)?.expose())),
        Command::Log { data, json, last } => {
            daemon::print_log(&data.path()?, json, last, &mut BufWriter::new(std::io::stdout().lock()))
        }
    }
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn say(text: &str) -> Result<(), DaemonError> {
    print(text).map_err(|source| DaemonError::System { what: "cannot print", source })
}
