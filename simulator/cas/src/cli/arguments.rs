//! The command line's subcommands and options.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use scone_protocol::signature::size;

/// SCONE's command line, simulated: software only, protects nobody from root
#[derive(Parser)]
#[command(name = "scone-sim", bin_name = "scone", version)]
pub(super) struct Cli {
    /// The file with this user's identity and the CASes attested
    #[arg(short, long, value_name = "FILE", env = "SCONE_CLI_CONFIG")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(super) enum Command {
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
    /// Sign programs, and look at their signatures
    #[command(subcommand)]
    Signer(SignerCommand),
    /// Print the version
    Version,
}

#[derive(Subcommand)]
pub(super) enum CertCommand {
    /// Print a certificate's key hash, as access policies name it
    ShowKeyHash {
        /// The certificate (PEM)
        file: PathBuf,
    },
}

#[derive(Subcommand)]
pub(super) enum SignerCommand {
    /// Sign a program: from then on it says who signed it, as what, and what it is started with
    Sign(Sign),
    /// Print what a program is signed as
    Info {
        /// The program
        file: PathBuf,
        /// As YAML
        #[arg(long)]
        yaml: bool,
    },
}

#[derive(Args)]
pub(super) struct Sign {
    /// The program. It is replaced
    pub file: PathBuf,
    /// The signer's private key (PEM): RSA, 3072 bits, exponent 3 [SCONE_KEY]
    #[arg(short, long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The product (default: 0) [SCONE_ISVPRODID]
    #[arg(long, value_name = "N")]
    pub isvprodid: Option<u16>,
    /// The product's security version (default: 0) [SCONE_ISVSVN]
    #[arg(long, value_name = "N")]
    pub isvsvn: Option<u16>,
    /// Sign it to run in production mode [SCONE_PRODUCTION]
    #[arg(short, long)]
    pub production: bool,
    /// The heap's size, with K, M or G (default: 64M) [SCONE_HEAP]
    #[arg(short = 'H', long, value_name = "SIZE", value_parser = parse_size)]
    pub heap: Option<u64>,
    /// A stack's size (default: 2M) [SCONE_STACK]
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = parse_size)]
    pub stack: Option<u64>,
    /// Libraries loaded at run time: 0 none, 1 protected ones, 2 any (default: 0) [SCONE_ALLOW_DLOPEN]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(..=2))]
    pub dlopen: Option<u8>,
    /// Take what no option says from the SCONE_* variables
    #[arg(short, long)]
    pub env: bool,
}

fn parse_size(text: &str) -> Result<u64, String> {
    size(text).ok_or_else(|| "not a number of bytes, with K, M or G".to_owned())
}

#[derive(Subcommand)]
pub(super) enum SessionCommand {
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
    /// Sign a session file, with this user's key unless told otherwise. Prints the signed session (JSON)
    Sign {
        #[command(flatten)]
        source: Source,
        #[command(subcommand)]
        how: Option<SignCommand>,
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

#[derive(Subcommand)]
pub(super) enum SignCommand {
    /// Sign with this user's key
    SignWithCliIdentity,
    /// Print what another program is to sign. Ed25519 signs it as it is, P-384 its SHA-384
    GenerateMessageToBeSigned {
        /// The signer's public key (SPKI, PEM), who becomes the session's creator if it needs one and has none
        signer: Option<PathBuf>,
        /// Also to a terminal
        #[arg(short, long)]
        force: bool,
    },
    /// Add a signature that another program made. Prints the signed session (JSON)
    AddSignature {
        /// The signer's public key (SPKI, PEM): Ed25519 or P-384
        signer: PathBuf,
        /// In base64; otherwise it is read from standard input as it is
        signature: Option<String>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum CreatorKind {
    /// By the TLS client certificate
    Tls,
    /// By the key that this user signs sessions with
    Signer,
}

#[derive(Args)]
pub(super) struct Source {
    /// The session file: YAML, or a signed session (JSON)
    pub file: PathBuf,
    /// Give a variable of the file ($VAR) a value. What is signed has none
    #[arg(short = 'e', value_name = "VAR=VALUE")]
    pub variables: Vec<String>,
    /// Take other variables from the environment
    #[arg(long)]
    pub use_env: bool,
    /// Another name for the session than the file's
    #[arg(short, long)]
    pub name: Option<String>,
    /// As in SCONE. What it warns of is an error here anyway
    #[arg(long)]
    pub fail_on_warning: bool,
}

#[derive(Args)]
pub(super) struct Target {
    /// The CAS, as it was attested; otherwise the default one
    #[arg(short, long)]
    pub cas: Option<String>,
    /// Private key and certificate (PEM) to use instead of this user's
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// How often to try to connect
    #[arg(long, env = "SCONE_CLI_RETRIES", default_value_t = 3)]
    pub retries: u32,
    /// Talk to a CAS that was never attested
    #[arg(long = "only_for_testing-disable-attestation-verification")]
    pub unattested: bool,
}

#[derive(Subcommand)]
pub(super) enum CasCommand {
    /// Look at a CAS's key, and remember it: from then on only that key is this CAS
    Attest(Attest),
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
pub(super) struct Attest {
    /// `host[:port]`
    pub address: String,
    /// Deprecated by SCONE: the same as --mrenclave
    #[arg(value_name = "MRENCLAVE")]
    pub deprecated_mrenclave: Option<String>,
    /// The key hash it must have
    #[arg(short)]
    pub cas_key_hash: Option<String>,
    /// The measurement it must have; may be given more than once. Of a software CAS it is what it says of itself
    #[arg(long)]
    pub mrenclave: Vec<String>,
    /// Who must have signed it: nobody signs a software CAS
    #[arg(long, requires_all = ["isvprodid", "isvsvn"])]
    pub mrsigner: Option<String>,
    /// The product it must be
    #[arg(long)]
    pub isvprodid: Option<u16>,
    /// The lowest security version it may have
    #[arg(long)]
    pub isvsvn: Option<u16>,
    /// As in SCONE; a software CAS has nothing to tolerate
    #[arg(short = 'C', long)]
    pub accept_configuration_needed: bool,
    /// As in SCONE; without effect here
    #[arg(short = 'G', long)]
    pub accept_group_out_of_date: bool,
    /// As in SCONE; without effect here
    #[arg(short = 'S', long)]
    pub accept_sw_hardening_needed: bool,
    /// Take a CAS in debug mode, which cannot protect secrets: a software CAS is one. With --mrsigner, or without a signer
    #[arg(long = "only_for_testing-debug")]
    pub debug: bool,
    /// Take a CAS that SCONE's makers did not sign: a software CAS is one
    #[arg(long = "only_for_testing-ignore-signer", conflicts_with = "mrsigner")]
    pub ignore_signer: bool,
    /// Take whatever measurement and key it shows
    #[arg(long = "only_for_testing-trust-any")]
    pub trust_any: bool,
    /// How often to try to connect
    #[arg(long, env = "SCONE_CLI_RETRIES", default_value_t = 3)]
    pub retries: u32,
}

#[derive(Args)]
pub(super) struct VerifyAuditLog {
    /// The log
    pub file: PathBuf,
    /// The key hash that the CAS must have, instead of the one it had when it was attested
    #[arg(short, long, value_name = "HASH", requires = "cas")]
    pub cas_key_hash: Option<String>,
    /// The CAS; otherwise the default one
    #[arg(long)]
    pub cas: Option<String>,
    /// Private key and certificate (PEM) to use instead of this user's
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Of a part of a log: the hash of its last entry. Otherwise the last one that CAS has should be there
    #[arg(long, value_name = "HASH")]
    pub last: Option<String>,
    /// Of a part of a log: the hash of the entry before its first one. Otherwise CAS's first one should be there
    #[arg(long, value_name = "HASH")]
    pub predecessor: Option<String>,
    /// Print the log as a table
    #[arg(short, long)]
    pub print_log: bool,
}

#[derive(Subcommand)]
pub(super) enum OwnCommand {
    /// Print key hash, certificate and the public key of session signatures
    Show,
    /// Print the key hash, as access policies name it
    ShowKeyHash,
    /// Print the certificate
    ShowCertificate,
    /// Print the SHA-256 of the certificate. Deprecated by SCONE: access policies name the key hash
    ShowCertificateHash,
    /// Print the public key (PEM) of the signatures that this user makes, as access policies name it
    ShowSessionSigningKey,
}
