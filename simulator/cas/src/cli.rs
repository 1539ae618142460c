//! The `scone` command line, as far as `reference/scone.md` section 4 documents it and the simulator serves it.
//!
//! What a command is asked for stands alone on standard output. Errors are SCONE's: `Error: …`, then `Caused by: …` lines.
//! Exit codes: 0; 2 for "session not found" and nothing else (SCONE's `session read` has it so); those of `verify-audit-log`
//! (`audit::Flaw`); 1 for any other error, usage errors too, since scripts must be able to tell the two apart.

mod client;
mod config;
mod variables;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, Parser, Subcommand, ValueEnum};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use crate::SOFTWARE_ONLY;
use crate::audit::{self, Export, Flaw};
use crate::server::SessionReply;
use crate::session::{MAX_TEXT, Session, is_session_name};
use crate::tls::{self, Identity};
use client::{Peer, Reply};
use config::{Address, Config};

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

    fn not_simulated(what: &str) -> CliError {
        CliError { what: format!("not simulated: {what}"), causes: Vec::new(), exit_code: 1 }
    }

    /// The same, as the cause of `what`.
    fn during(mut self, what: &str) -> CliError {
        let inner = std::mem::replace(&mut self.what, what.to_owned());
        self.causes.insert(0, inner);
        self
    }
}

type Result<T> = std::result::Result<T, CliError>;

/// SCONE's command line, simulated: software only, protects nobody from root
#[derive(Parser)]
#[command(name = "scone-sim", bin_name = "scone", version)]
struct Cli {
    /// The file with this user's identity and the CASes attested
    #[arg(short, long, value_name = "FILE", env = "SCONE_CLI_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create, update, read and verify sessions (policies)
    #[command(subcommand)]
    Session(SessionCommand),
    /// Attest CASes and list them
    #[command(subcommand)]
    Cas(CasCommand),
    /// Show this user's identity
    #[command(subcommand, name = "self")]
    Own(OwnCommand),
    /// Look at certificates
    #[command(subcommand)]
    Cert(CertCommand),
    /// Print the version
    Version,
}

#[derive(Subcommand)]
enum CertCommand {
    /// Print a certificate's key hash, as access policies name it
    ShowKeyHash {
        /// The certificate (PEM)
        file: PathBuf,
    },
}

/// What SCONE's command line has (its reference page, and section 1.6) and this one has not.
const NOT_SIMULATED: &[&str] = &[
    "binary-fs",
    "cargo",
    "fspf",
    "g++",
    "gcc",
    "gccgo",
    "gdb",
    "gfortran",
    "help-markdown",
    "host",
    "las",
    "rustc",
    "service",
    "signer",
    "stack",
    "swarm",
    "session encrypt",
    "session sign",
    "cas attest-audit-log",
    "cas get-audit-log-checkpoints",
    "cas provision",
    "cas register-backup",
    "cas register-upgrade",
    "cas start-upgrade",
    "cas update-config",
    "cas verify-raw-rest-signature",
    "self show-session-signing-key",
];

/// As [`NOT_SIMULATED`], of options, by command.
const OPTIONS_NOT_SIMULATED: &[(&str, &[&str])] = &[
    (
        "cas attest",
        &[
            "-s",
            "--accept-revoked-pcs-certs",
            "--accept-unverifiable-pcs-certs",
            "--allow-cas-owner-secret-access",
            "--isvprodid",
            "--isvsvn",
            "--mrenclave",
            "--mrsigner",
            "--nonce",
            "--offline-report",
            "--only_for_testing_allow-unprovisioned-cas",
            "--verification-time",
        ],
    ),
    (
        "cas show-identification",
        &["-s", "-S", "--cas-software-certificate", "--cas-software-key-hash", "--session-encryption-key"],
    ),
    ("session", &["--accept-revoked-pcs-certs", "--accept-unverifiable-pcs-certs", "--cas-key", "--session-hash"]),
];

/// The subcommand or option that is not simulated, if that is why the arguments were not understood.
fn not_simulated(error: &clap::Error, args: &[OsString]) -> Option<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    if let Some(name) = context(ContextKind::InvalidSubcommand) {
        let at = args.iter().position(|arg| *arg == *name)?;
        let before = args.get(at.checked_sub(1)?)?.to_str()?;
        let full = format!("{before} {name}");
        return NOT_SIMULATED.iter().find(|known| **known == name || **known == full).map(|known| known.to_string());
    }
    let option = context(ContextKind::InvalidArg)?;
    if option == "-o" {
        return Some(option);
    }
    let is_command = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        args.windows(words.len()).any(|args| args.iter().zip(&words).all(|(arg, word)| arg == word))
    };
    let mut known =
        OPTIONS_NOT_SIMULATED.iter().filter(|(command, _)| is_command(command)).flat_map(|(_, known)| *known);
    known.find(|known| **known == option).map(|known| known.to_string())
}

#[derive(Subcommand)]
enum SessionCommand {
    /// Check a session file, and print the session
    Check {
        #[command(flatten)]
        source: Source,
    },
    /// Create a session; with the right predecessor, replace it. Prints the session hash
    Create {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        target: Target,
    },
    /// Replace a session; fills the predecessor in if the file has none. Prints the session hash
    Update {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        target: Target,
    },
    /// Compare a file with the active session. Prints the session hash if they are the same
    Verify {
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        target: Target,
    },
    /// Print the active session
    Read {
        /// The session's name
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Print the names of the sessions this user may read
    List {
        /// Only this session and those below its name
        path: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Print the session hash of a file, without asking CAS
    CalculateHash {
        #[command(flatten)]
        source: Source,
        /// As if this user had created the session
        #[arg(long, value_enum)]
        with_self_as_creator: Option<CreatorKind>,
        /// A certificate (PEM) to use instead of this user's
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum CreatorKind {
    /// By the TLS client certificate
    Tls,
    /// By the key that sessions are signed with: not simulated
    Signer,
}

#[derive(Args)]
struct Source {
    /// The session file (YAML)
    file: PathBuf,
    /// Give a variable of the file ($VAR) a value
    #[arg(short = 'e', value_name = "VAR=VALUE")]
    variables: Vec<String>,
    /// Take other variables from the environment
    #[arg(long)]
    use_env: bool,
    /// Another name for the session than the file's
    #[arg(short, long)]
    name: Option<String>,
    /// As in SCONE. What it warns of is an error here anyway
    #[arg(long)]
    fail_on_warning: bool,
}

#[derive(Args)]
struct Target {
    /// The CAS, as it was attested; otherwise the default one
    #[arg(short, long)]
    cas: Option<String>,
    /// Private key and certificate (PEM) to use instead of this user's
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// How often to try to connect
    #[arg(long, env = "SCONE_CLI_RETRIES", default_value_t = 3)]
    retries: u32,
    /// Talk to a CAS that was never attested
    #[arg(long = "only_for_testing-disable-attestation-verification")]
    unattested: bool,
}

#[derive(Subcommand)]
enum CasCommand {
    /// Look at a CAS's key, and remember it: from then on only that key is this CAS
    Attest {
        /// `host[:port]`
        address: String,
        /// The measurement of SCONE's CAS: not simulated
        mrenclave: Option<String>,
        /// The key hash it must have
        #[arg(short)]
        cas_key_hash: Option<String>,
        /// Take whatever key it shows
        #[arg(long = "only_for_testing-trust-any")]
        trust_any: bool,
        /// As in SCONE; a software CAS has nothing to tolerate
        #[arg(short = 'C', long)]
        accept_configuration_needed: bool,
        /// As in SCONE; without effect here
        #[arg(short = 'G', long)]
        accept_group_out_of_date: bool,
        /// As in SCONE; without effect here
        #[arg(short = 'S', long)]
        accept_sw_hardening_needed: bool,
        /// As in SCONE; without effect here
        #[arg(long = "only_for_testing-debug")]
        debug: bool,
        /// As in SCONE; without effect here
        #[arg(long = "only_for_testing-ignore-signer")]
        ignore_signer: bool,
        /// How often to try to connect
        #[arg(long, env = "SCONE_CLI_RETRIES", default_value_t = 3)]
        retries: u32,
    },
    /// List the CASes attested; the default one has a star
    List,
    /// Choose the default CAS
    SetDefault {
        /// The CAS
        cas: String,
    },
    /// Print what identifies a CAS: its certificate, unless told otherwise
    ShowIdentification {
        /// Its key hash
        #[arg(short = 'c', long, group = "what")]
        cas_key_hash: bool,
        /// Its certificate
        #[arg(short = 'C', long, group = "what")]
        cas_certificate: bool,
        /// The certificates above it, too: here there are none
        #[arg(short = 'T', long, group = "what")]
        certificate_chain: bool,
        /// The CAS; otherwise the default one
        cas: Option<String>,
    },
    /// Print the certificate a CAS shows now
    ShowCertificate {
        /// The CAS; otherwise the default one
        cas: Option<String>,
    },
    /// Check an audit log that `scone-sim log --json` wrote: whole, unchanged, and what its CAS has. The exit code says what is
    /// wrong: 20 not authentic, 19 of another CAS, 18 CAS was rolled back, 17 entries are missing in between, 16 CAS cannot be
    /// asked, 15 older or 14 recent entries are missing
    VerifyAuditLog(VerifyAuditLog),
    /// Print a CAS's version
    Version {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Args)]
struct VerifyAuditLog {
    /// The log
    file: PathBuf,
    /// The key hash that the CAS must have, instead of the one it had when it was attested
    #[arg(short, long, value_name = "HASH", requires = "cas")]
    cas_key_hash: Option<String>,
    /// The CAS; otherwise the default one
    #[arg(long)]
    cas: Option<String>,
    /// Private key and certificate (PEM) to use instead of this user's
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Of a part of a log: the hash of its last entry. Otherwise the last one that CAS has should be there
    #[arg(long, value_name = "HASH")]
    last: Option<String>,
    /// Of a part of a log: the hash of the entry before its first one. Otherwise CAS's first one should be there
    #[arg(long, value_name = "HASH")]
    predecessor: Option<String>,
    /// Print the log as a table
    #[arg(short, long)]
    print_log: bool,
}

#[derive(Subcommand)]
enum OwnCommand {
    /// Print key hash and certificate
    Show,
    /// Print the key hash, as access policies name it
    ShowKeyHash,
    /// Print the certificate
    ShowCertificate,
    /// Print the SHA-256 of the certificate. Deprecated by SCONE: access policies name the key hash
    ShowCertificateHash,
}

/// Runs the command line `args` (`args[0]` is the program).
pub fn main(args: Vec<OsString>) -> ExitCode {
    // SCONE reads the file: who means something else by it should hear of that here.
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
            // Printing fails only if nobody listens.
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
        Command::Session(command) => session(command, &path),
        Command::Cas(command) => cas(command, &path),
        Command::Cert(CertCommand::ShowKeyHash { file }) => {
            let hash = tls::key_hash(&certificate(&file)?);
            Ok(hash.ok_or_else(|| unreadable(&file, "its certificate is damaged"))? + "\n")
        }
        Command::Version => Ok(concat!("scone-sim ", env!("CARGO_PKG_VERSION"), "\n").to_owned()),
        Command::Own(command) => {
            let identity = Config::load(&path)?.identity()?;
            Ok(match command {
                OwnCommand::ShowKeyHash => identity.key_hash + "\n",
                OwnCommand::ShowCertificateHash => identity.certificate_hash() + "\n",
                OwnCommand::ShowCertificate => identity.certificate_pem,
                OwnCommand::Show => format!("key hash: {}\n{}", identity.key_hash, identity.certificate_pem),
            })
        }
    }
}

fn session(command: SessionCommand, config: &Path) -> Result<String> {
    match command {
        SessionCommand::Check { source } => yaml(&source.load()?),
        SessionCommand::CalculateHash { source, with_self_as_creator, identity } => {
            let mut session = source.load()?;
            if session.refers_to_creator() && session.creator.is_none() {
                session.creator = Some(match (with_self_as_creator, identity) {
                    (Some(CreatorKind::Tls), None) => Config::load(config)?.identity()?.certificate_pem,
                    (Some(CreatorKind::Tls), Some(file)) => tls::pem(tls::CERTIFICATE, &certificate(&file)?),
                    (Some(CreatorKind::Signer), _) => {
                        return Err(CliError::not_simulated("--with-self-as-creator signer"));
                    }
                    (None, _) => return Err(CliError {
                        what: "Cannot calculate session hash! The session, explicitly or through the default access policy, references its creator. The creator is only known once the session was created. You may use --with-self-as-creator to pretend you created the session, or remove all creator references.".into(),
                        causes: Vec::new(),
                        exit_code: 1,
                    }),
                });
            }
            Ok(session.hash() + "\n")
        }
        SessionCommand::Create { source, target } => {
            let what = "Creating session failed";
            let session = source.load()?;
            let peer = target.peer(config).map_err(|error| error.during(what))?;
            upload(&peer, session).map_err(|error| error.during(what))
        }
        SessionCommand::Update { source, target } => {
            let what = "Updating session failed";
            let mut session = source.load()?;
            let peer = target.peer(config).map_err(|error| error.during(what))?;
            if session.predecessor.is_none() {
                let active = read(&peer, &session.name).map_err(|error| error.during(what))?;
                session.predecessor = Some(active.hash);
            }
            upload(&peer, session).map_err(|error| error.during(what))
        }
        SessionCommand::Verify { source, target } => {
            let what = "Verifying session failed";
            let mut session = source.load()?;
            let peer = target.peer(config).map_err(|error| error.during(what))?;
            if session.refers_to_creator() && session.creator.is_none() {
                // Not the active session's: somebody else's session with the same text is not this one.
                session.creator = Some(peer.identity.certificate_pem.clone());
            }
            let active = read(&peer, &session.name).map_err(|error| error.during(what))?;
            // The hash is computed here from what was read: CAS's word for it is not needed.
            let actual =
                Session::parse(&active.session).map_err(|error| CliError::new(what, error.to_string()))?.hash();
            if actual != session.hash() {
                return Err(CliError::new(what, format!("The active session is another one, its hash is {actual}")));
            }
            Ok(actual + "\n")
        }
        SessionCommand::Read { name, target } => {
            let what = "Reading session failed";
            let peer = target.peer(config).map_err(|error| error.during(what))?;
            Ok(read(&peer, &name).map_err(|error| error.during(what))?.session)
        }
        SessionCommand::List { path, target } => {
            let what = "Listing sessions failed";
            let peer = target.peer(config).map_err(|error| error.during(what))?;
            let reply = peer
                .get("/v1/sessions")
                .and_then(|reply| accepted(&peer, reply))
                .map_err(|error| error.during(what))?;
            let names = reply["sessions"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let below = |name: &&str| match path.as_deref().map(|path| path.trim_end_matches('/')) {
                None | Some("") => true,
                Some(path) => name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            };
            Ok(names.filter(below).map(|name| format!("{name}\n")).collect())
        }
    }
}

impl Source {
    /// Reads, fills in and checks the session file.
    fn load(&self) -> Result<Session> {
        let failed = |cause: String| {
            CliError::new(format!("Parsing session from session template file '{}' failed", self.file.display()), cause)
        };
        let length = std::fs::metadata(&self.file).map_err(|error| failed(error.to_string()))?.len();
        if length > MAX_TEXT as u64 {
            return Err(failed(format!("the session is longer than {MAX_TEXT} bytes")));
        }
        let text = std::fs::read_to_string(&self.file).map_err(|error| failed(error.to_string()))?;
        let filled = variables::substitute(text.clone(), &self.variables, self.use_env).map_err(failed)?;
        let problem = |text: &str| Session::parse_as(text, self.name.as_deref()).map_err(|error| error.to_string());
        problem(&filled).map_err(|error| {
            // Filled in, a file has other lines: those of the file are said, if it has the same error, or none.
            let bare = |error: &str| error.rsplit_once(" at line ").map_or(error, |(bare, _)| bare).to_owned();
            let written = problem(&text).err().filter(|written| bare(written) == bare(&error));
            failed(written.unwrap_or_else(|| bare(&error)))
        })
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

fn yaml(session: &Session) -> Result<String> {
    session.to_yaml().map_err(|error| CliError::new("Cannot print the session", error.to_string()))
}

fn upload(peer: &Peer, mut session: Session) -> Result<String> {
    let reply = accepted(peer, peer.post("/session", yaml(&session)?)?)?;
    if session.refers_to_creator() {
        session.creator = Some(peer.identity.certificate_pem.clone());
    }
    let expected = session.hash();
    match reply["hash"].as_str() {
        Some(hash) if hash == expected => Ok(expected + "\n"),
        _ => Err(CliError::new("CAS answers the hash of another session", format!("Expected {expected}"))),
    }
}

fn read(peer: &Peer, name: &str) -> Result<SessionReply> {
    if !is_session_name(name) {
        return Err(CliError::new(
            format!("'{name}' is not a session's name"),
            "letters, digits and _-.~, components parted by /",
        ));
    }
    let reply = peer.get(&format!("/v1/sessions/{name}"))?;
    let not_found = reply.status == 404;
    let body = accepted(peer, reply).map_err(|error| CliError { exit_code: if not_found { 2 } else { 1 }, ..error })?;
    serde_json::from_value(body).map_err(|error| CliError::new("CAS's answer is not understood", error.to_string()))
}

/// The answer's body, or SCONE's error text.
fn accepted(peer: &Peer, reply: Reply) -> Result<Value> {
    let Reply { status, reason, body } = reply;
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let what = format!("CAS at '{}' returned HTTP error status code {status} {reason}", peer.address.url());
    let causes = body["msg"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    Err(CliError { what, causes, exit_code: 1 })
}

fn cas(command: CasCommand, path: &Path) -> Result<String> {
    match command {
        CasCommand::Attest { mrenclave: Some(_), .. } => Err(CliError::new(
            "not simulated: the measurement of a CAS",
            "This CAS is software and has none: give its key hash with -c",
        )),
        CasCommand::Attest { address, cas_key_hash, trust_any, retries, .. } => {
            eprintln!("{SOFTWARE_ONLY}");
            attest(path, &address, cas_key_hash.as_deref(), trust_any, retries)
                .map_err(|error| error.during("Error during attestation of CAS"))
        }
        CasCommand::List => {
            let config = Config::load(path)?;
            let line = |(name, url): (&str, String)| {
                let mark = if config.default_cas() == Some(name) { "*" } else { " " };
                format!("{mark} {name}: {url}\n")
            };
            Ok(config.list()?.into_iter().map(line).collect())
        }
        CasCommand::SetDefault { cas } => {
            Config::change(path, |config| config.set_default(&cas))?;
            Ok(String::new())
        }
        CasCommand::ShowIdentification { cas_key_hash: true, cas, .. } => {
            Ok(Config::load(path)?.cas(cas.as_deref())?.1 + "\n")
        }
        CasCommand::ShowIdentification { cas, .. } | CasCommand::ShowCertificate { cas } => {
            let config = Config::load(path)?;
            let (address, key) = config.cas(cas.as_deref())?;
            Peer { address, key: Some(key), identity: config.identity()?, retries: 1 }.certificate()
        }
        CasCommand::VerifyAuditLog(arguments) => {
            let what = format!("Verifying audit log '{}' failed", arguments.file.display());
            let last = verify_audit_log(arguments, path, &what)?;
            eprintln!("{last}");
            Ok(String::new())
        }
        CasCommand::Version { target } => {
            let peer = target.peer(path)?;
            let body = accepted(&peer, peer.get("/v1/version")?)?;
            match (body["name"].as_str(), body["version"].as_str()) {
                (Some(name), Some(version)) => Ok(format!("{name} {version}\n")),
                _ => Err(CliError::new("CAS's answer is not understood", "no version in it")),
            }
        }
    }
}

/// What is said of a log that is right.
fn verify_audit_log(arguments: VerifyAuditLog, path: &Path, what: &str) -> Result<String> {
    let VerifyAuditLog { file, cas_key_hash, cas, identity: own, last, predecessor, print_log } = arguments;
    let config = Config::load(path)?;
    let (address, key) = match (cas_key_hash, &cas) {
        (Some(key), Some(cas)) => (Address::parse(cas)?, key),
        _ => config.cas(cas.as_deref())?,
    };
    let wrong =
        |flaw: Flaw| CliError { what: what.to_owned(), causes: vec![flaw.to_string()], exit_code: flaw.exit_code() };
    let text = std::fs::read_to_string(&file).map_err(|error| CliError::new(what, error.to_string()))?;
    let export = Export::read(&text, &key).map_err(wrong)?;
    if print_log {
        print(&audit::table(&export.entries))?;
    }
    let (sequence, hash) = export.end();
    let peer = Peer { address, key: Some(key), identity: identity(&config, own.as_deref())?, retries: 1 };
    let said = peer.get(&format!("/v1/audit-log/{sequence}")).and_then(|reply| accepted(&peer, reply));
    let said = said.and_then(|body| {
        serde_json::from_value(body).map_err(|error| CliError::new("CAS's answer is not understood", error.to_string()))
    });
    let said = said.map_err(|error| [vec![error.what], error.causes].concat().join(": "));
    export.verify(said, predecessor.as_deref(), last.as_deref()).map_err(wrong)?;
    Ok(format!("{} entries, the last one's hash is {hash}", export.entries.len()))
}

fn attest(path: &Path, address: &str, expected: Option<&str>, trust_any: bool, retries: u32) -> Result<String> {
    let address = Address::parse(address)?;
    if expected.is_none() && !trust_any {
        return Err(CliError::new(
            "Nothing is known that the CAS could be compared with",
            "Give its key hash with -c, or --only_for_testing-trust-any",
        ));
    }
    let config = Config::load(path)?;
    let peer = Peer { address, key: None, identity: config.identity()?, retries };
    let key = peer.key_hash()?;
    if let Some(expected) = expected
        && expected != key
    {
        return Err(CliError::new("CAS key hash does not match expectation:", key));
    }
    if let Some(known) = config.known_key(&peer.address)
        && known != key
        && expected.is_none()
    {
        return Err(CliError::new(
            "The CAS has another key than when it was attested before",
            format!("It was {known}, it is {key}. If that is right, give the new one with -c"),
        ));
    }
    let Peer { address, .. } = peer;
    let text = format!("CAS {} at {} is trustworthy\n", address.name(), address.url());
    Config::change(path, |config| {
        config.remember(&address, key);
        Ok(())
    })?;
    Ok(text)
}
