#!/usr/bin/env -S sh -uc 'o=--;[ -d "${0%/*}/bundle" ]||o=-b$(realpath "$OTPQR_ROOT")/scripts;exec rust-script "$o" "$0" "$@"'
//! Creates an account: measures the program, writes the policies, uploads them to CAS.
//!
//! Why: from then on CAS, and not the operating system, decides who gets at the account's secret. CAS draws the secret;
//! this script and this host never see it.
//! Limits: the host this runs on is trusted, and whoever holds the `scone` command line's identity owns the account.
//! Run again it compares, uploads only what differs, and says so.
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

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use bundle::outcome::{Failure, OTHER, PRECONDITION, USAGE, conclude, here, step};
use bundle::platform::{Cas, Platform, Tools};
use bundle::policy::{Session, Versions, upload};
use bundle::state::{State, StateFile};
use bundle::{policy, root, state};

/// Create an account: measure the program, write the policies, upload them to CAS
#[derive(Debug, Parser)]
#[command(
    name = "create",
    bin_name = "./scripts/create.rs",
    version,
    after_help = "\
Exit codes:
  0 created, or already so   2 usage   3 something is missing, nothing changed   5 refused by CAS   130 interrupted   1 anything else

Examples:
  ./scripts/create.rs --cas cas.example.com              an account on SCONE
  ./scripts/create.rs --platform sim                     a rehearsal on the simulator: protects nobody from root
  ./scripts/create.rs --platform sim-native              the same without a Docker Engine
  ./scripts/create.rs --platform sim --account signing --issuer 'Example GmbH' --login alice
                                                         one account per role or task"
)]
struct Args {
    /// Where the program runs and which CAS is used. Recorded at the first run
    #[arg(long, value_enum)]
    platform: Option<Platform>,
    /// The SCONE CAS, HOST or HOST:PORT. The simulator's is found by itself
    #[arg(long, value_parser = cas_address)]
    cas: Option<String>,
    /// The account's name: its state is state/ACCOUNT.yml
    #[arg(long, default_value = "default", value_parser = state::account_name)]
    account: String,
    /// Who asks for the code, as the authenticator shows it [default: SCONE OTP]
    #[arg(long, value_parser = policy::label_part)]
    issuer: Option<String>,
    /// Whose code it is, as the authenticator shows it [default: the login name]
    #[arg(long, value_parser = policy::label_part)]
    login: Option<String>,
    /// The image: a tag; on sim-native a directory [default: the platform's own]
    #[arg(long, value_parser = image_name)]
    image: Option<String>,
    /// The bundle's directory [default: OTPQR_ROOT, the script's parent, the current directory]
    #[arg(long)]
    root: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    conclude("create", || create(&args))
}

fn create(args: &Args) -> Result<String, Failure> {
    let root = root::find(args.root.as_deref(), Path::new("templates"), None)?;
    let (mut file, known) = state::read(&root, &args.account)?;
    if let Some(state) = &known {
        check_unchanged(args, state)?;
    }
    let platform = known.as_ref().map(|state| state.platform).or(args.platform).unwrap_or(Platform::Scone);
    let tools = platform.tools(&root, &args.account)?;

    let who = match known {
        None => Some(identity(args)?),
        Some(_) => None,
    };
    let known_image = || known.as_ref().map(|state| state.image.clone());
    let image = args.image.clone().or_else(known_image).unwrap_or_else(|| platform.default_image().to_owned());
    let image_id = tools.image_id(&image)?;
    step(format!("measuring image '{image}'"));
    let mrenclave = tools.measure(&image_id)?;
    step("attesting CAS");
    let cas = attest(args, &tools, known.as_ref())?;

    let mut state = match (known, who) {
        (Some(state), _) => state,
        (None, Some((issuer, login))) => first_state(&root, &args.account, platform, cas, issuer, login)?,
        (None, None) => return Err(Failure::new(OTHER, "whose account it is to be is not known")),
    };
    if !state.mrenclave.is_empty() && state.mrenclave != mrenclave {
        step(format!("the program changed: measurement '{}' becomes '{mrenclave}'", state.mrenclave));
    }
    (state.image, state.image_id, state.mrenclave) = (image, image_id, mrenclave);
    // Before the first upload: a run that is cut off must not leave sessions behind whose names nobody knows.
    file.write(&state)?;
    let done = upload_all(&tools, &root, &mut file, &mut state)?;
    Ok(report(args, &state, done))
}

/// An account keeps what it was created with: another issuer, say, would be another entry in the authenticator.
fn check_unchanged(args: &Args, state: &State) -> Result<(), Failure> {
    let differs = |option: &str, given: Option<String>, known: &str| match given {
        Some(given) if given != known => {
            let message = format!("account '{}' has {option} '{known}', not '{given}'", args.account);
            Err(Failure::new(PRECONDITION, format!("{message}; '--account' names another account")))
        }
        _ => Ok(()),
    };
    differs("platform", args.platform.map(|platform| platform.to_string()), &state.platform.to_string())?;
    differs("CAS", args.cas.clone(), &state.cas.address)?;
    differs("issuer", args.issuer.clone(), &state.issuer)?;
    differs("login", args.login.clone(), &state.login)?;
    match state.pending {
        Some(_) => {
            let message = format!("a roll-forward of account '{}' was begun and not finished", args.account);
            let command = state.finishing(&args.account);
            Err(command.into_iter().fold(Failure::new(PRECONDITION, message), Failure::hint))
        }
        None => Ok(()),
    }
}

/// Makes the `scone` command line trust the CAS, before anything is uploaded to it, and pins its key.
fn attest(args: &Args, tools: &Tools, known: Option<&State>) -> Result<Cas, Failure> {
    let known = known.map(|state| &state.cas);
    let simulated = tools.simulated_cas(true)?;
    let address = match (&simulated, &args.cas, known) {
        (Some(_), Some(_), None) => {
            return Err(Failure::new(USAGE, "'--cas' is for SCONE: the simulator's CAS is found by itself"));
        }
        (Some(cas), _, _) => cas.address.clone(),
        (None, Some(address), _) => address.clone(),
        (None, None, Some(cas)) => cas.address.clone(),
        (None, None, None) => {
            return Err(Failure::new(USAGE, "on platform 'scone' the CAS must be named: '--cas ADDRESS'"));
        }
    };
    let cas = tools.attest(&address, simulated)?;
    match known {
        Some(known) if *known != cas => {
            let message = format!("the CAS at '{address}' is not the one account '{}' was created on", args.account);
            let hint = format!(
                "./scripts/roll_forward.rs{} --cas-wiped   # if it was set up anew",
                state::option(&args.account)
            );
            Err(Failure::new(PRECONDITION, message).hint(hint))
        }
        _ => Ok(cas),
    }
}

/// Issuer and login of a new account.
fn identity(args: &Args) -> Result<(String, String), Failure> {
    let issuer = args.issuer.clone().unwrap_or_else(|| "SCONE OTP".to_owned());
    let login = args.login.clone().or_else(|| std::env::var("LOGNAME").or_else(|_| std::env::var("USER")).ok());
    let login = login.ok_or_else(|| Failure::new(USAGE, "whose code it is to be is not known: '--login NAME'"))?;
    let login =
        policy::label_part(&login).map_err(Failure::because(USAGE, "the login name cannot be used: '--login'"))?;
    Ok((issuer, login))
}

fn first_state(
    root: &Path,
    account: &str,
    platform: Platform,
    cas: Cas,
    issuer: String,
    login: String,
) -> Result<State, Failure> {
    let mut random = [0; 10];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random));
    read.map_err(Failure::because(OTHER, "no random name for the namespace"))?;
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let namespace = format!("otpqr-{random}");
    // Volumes of an account whose state was lost are not this one's: its volumes must begin empty.
    let volumes = root.join("state/volumes").join(account);
    if volumes.exists() {
        let aside = volumes.with_file_name(format!("{account}.before-{namespace}"));
        step(format!("volumes of an earlier account '{account}' are moved aside, to '{}'", aside.display()));
        let moved = std::fs::rename(&volumes, &aside);
        moved.map_err(Failure::because(PRECONDITION, format!("'{}' cannot be moved", volumes.display())))?;
    }
    Ok(State::new(platform, cas, issuer, login, namespace))
}

/// Uploads what CAS does not hold yet; each hash is recorded as soon as CAS has answered. Says what was done.
fn upload_all(tools: &Tools, root: &Path, file: &mut StateFile, state: &mut State) -> Result<&'static str, Failure> {
    let is_new = state.reset_hash.is_none();
    let versions = Versions::only(state.volume_version, state.secret_version);
    let mut any = false;
    for session in [Session::Namespace, Session::Otpqr, Session::Reset] {
        step(format!("policy '{}'", session.name(state)));
        let (hash, changed) = upload(tools, root, session, state, &versions)?;
        any |= changed;
        if session.hash(state).replace(hash.clone()) != Some(hash) {
            file.write(state)?;
        }
    }
    Ok(match (any, is_new) {
        (true, true) => "created",
        (true, false) => "updated",
        (false, _) => "already created",
    })
}

fn report(args: &Args, state: &State, done: &str) -> String {
    let next = here(&format!("./scripts/gen_qr.rs{}", state::option(&args.account)));
    format!(
        "{done}: account '{}' of '{}' at '{}'\n  platform   {}\n  CAS        {}\n  namespace  {}\n  mrenclave  {}\nnext: {next}",
        args.account, state.login, state.issuer, state.platform, state.cas.address, state.namespace, state.mrenclave,
    )
}

fn cas_address(text: &str) -> Result<String, String> {
    // `scone` reads an argument that begins with '@' from a file.
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    match text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(valid) {
        true => Ok(text.to_owned()),
        false => Err("HOST or HOST:PORT".to_owned()),
    }
}

fn image_name(text: &str) -> Result<String, String> {
    match text.is_empty() || text.starts_with(['-', '@']) || text.chars().any(char::is_control) {
        true => Err("not an image".to_owned()),
        false => Ok(text.to_owned()),
    }
}
