//! The `scone` command line, as far as `reference/scone.md` section 4 documents it and the simulator serves it.
//!
//! What a command is asked for stands alone on standard output. Errors are SCONE's: `Error: …`, then `Caused by: …` lines.
//! Exit codes: 0; 2 for "session not found" and nothing else (SCONE's `session read` has it so); those of `verify-audit-log`
//! (`audit::Flaw`); 1 for any other error, usage errors too, since scripts must be able to tell the two apart.

mod arguments;
mod cas;
mod client;
mod config;
mod not_simulated;
mod session;
mod sign;
mod signer;
mod variables;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::SOFTWARE_ONLY;
use crate::tls::{self, Identity};
use arguments::{CertCommand, Cli, Command, OwnCommand, Target};
use client::Peer;
use config::{Address, Config};
use not_simulated::not_simulated;

/// An error as SCONE prints it.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct CliError {
    what: String,
    causes: Vec<String>,
    exit_code: u8,
}

impl CliError {
    fn new(what: impl Into<String>, cause: impl Into<String>) -> CliError {
        CliError { what: what.into(), causes: vec![cause.into()], exit_code: 1 }
    }

    /// Without a cause.
    fn alone(what: impl Into<String>) -> CliError {
        CliError { what: what.into(), causes: Vec::new(), exit_code: 1 }
    }

    fn not_simulated(what: &str) -> CliError {
        CliError::alone(format!("not simulated: {what}"))
    }

    /// The same, as the cause of `what`.
    fn during(mut self, what: &str) -> CliError {
        let inner = std::mem::replace(&mut self.what, what.to_owned());
        self.causes.insert(0, inner);
        self
    }
}

type Result<T> = std::result::Result<T, CliError>;

/// Runs the command line `args` (`args[0]` is the program).
pub fn main(args: Vec<OsString>) -> ExitCode {
    // SCONE reads arguments from that file. Not simulated, so it is refused rather than taken for something else.
    if let Some(file) = args.iter().skip(1).find(|arg| arg.as_encoded_bytes().starts_with(b"@")) {
        eprintln!("Error: not simulated: argument file {}", file.display());
        return ExitCode::from(1);
    }
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            if let Some(name) = not_simulated(&error, &args) {
                eprintln!("Error: not simulated: {name}");
                return ExitCode::from(1);
            }
            if error.kind() == clap::error::ErrorKind::DisplayVersion {
                eprintln!("{SOFTWARE_ONLY}");
            }
            // Printing fails only if nobody reads.
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    let result = run(cli).and_then(|output| print(&output));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {}", error.what);
            for cause in &error.causes {
                eprintln!("Caused by: {cause}");
            }
            ExitCode::from(error.exit_code)
        }
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(|error| CliError::new("Cannot print", error.to_string()))
}

/// What is to be printed.
fn run(cli: Cli) -> Result<String> {
    let path = match cli.config {
        Some(path) => path,
        None => config::default_path()?,
    };
    match cli.command {
        Command::Session(command) => session::run(command, &path),
        Command::Cas(command) => cas::run(command, &path),
        Command::Cert(CertCommand::ShowKeyHash { file }) => {
            let hash = tls::key_hash(&certificate(&file)?);
            Ok(hash.ok_or_else(|| unreadable(&file, "its certificate is damaged"))? + "\n")
        }
        Command::Signer(command) => signer::run(command),
        Command::Version => Ok(concat!("scone-sim ", env!("CARGO_PKG_VERSION"), "\n").to_owned()),
        Command::Own(command) => {
            let signer = || sign::own_signer(&Config::signing_key(&path)?).map(String::from);
            let identity = Config::load(&path)?.identity()?;
            Ok(match command {
                OwnCommand::ShowKeyHash => identity.key_hash + "\n",
                OwnCommand::ShowCertificateHash => identity.certificate_hash() + "\n",
                OwnCommand::ShowCertificate => identity.certificate_pem,
                OwnCommand::ShowSessionSigningKey => signer()?,
                OwnCommand::Show => {
                    format!("key hash: {}\n{}{}", identity.key_hash, identity.certificate_pem, signer()?)
                }
            })
        }
    }
}

impl Target {
    /// The CAS to talk to: attested, and held to the key it had then.
    fn peer(&self, path: &Path) -> Result<Peer> {
        let config = Config::load(path)?;
        let (address, key) = if self.unattested {
            (Address::parse(self.cas.as_deref().or(config.default_cas()).unwrap_or("cas"))?, None)
        } else {
            let (address, key) = config.cas(self.cas.as_deref())?;
            (address, Some(key))
        };
        Ok(Peer { address, key, identity: identity(&config, self.identity.as_deref())?, retries: self.retries })
    }
}

fn identity(config: &Config, file: Option<&Path>) -> Result<Identity> {
    let Some(file) = file else { return config.identity() };
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error.to_string()))?;
    Identity::from_pem(&text).map_err(|error| unreadable(file, &error.to_string()))
}

fn certificate(file: &Path) -> Result<CertificateDer<'static>> {
    let text = std::fs::read(file).map_err(|error| unreadable(file, &error.to_string()))?;
    CertificateDer::from_pem_slice(&text).map_err(|_| unreadable(file, "it is not a certificate in PEM"))
}

fn unreadable(file: &Path, cause: &str) -> CliError {
    CliError::new(format!("Cannot use '{}'", file.display()), cause)
}
