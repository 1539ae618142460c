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
//! thiserror = "=2.0.21"
//! ```

use std::path::Path;
use std::process::ExitCode;

use bundle::account::{self, Account};
use bundle::cas::{Attestation, Place};
use bundle::container::{self, OTPQR};
use bundle::failure::{Concern, Exit, Failure};
use bundle::platform::Platform;
use bundle::policy;
use bundle::session;
use bundle::state::{self, Lock, State, StateFile};
use bundle::{hint, root, step};
use clap::Parser;

/// Create an account: measure the program, write the policies, upload them to CAS
#[derive(Debug, Parser)]
#[command(
    name = "create",
    bin_name = "./scripts/create.rs",
    version,
    after_help = "\
Exit codes:
  0 created, or already so   2 usage   3 something is missing, nothing changed   4 stopped part-way, run it again
  5 refused by CAS   130 interrupted   1 anything else

Examples:
  ./scripts/create.rs --cas cas.example.com -CS --mrenclave HEX
                                                         an account on SCONE, on a CAS with this measurement
  ./scripts/create.rs --cas scone-cas.cf -GCS --insecure-test-cas --tolerate debug-mode
                                                         a test with SCONE's public CAS: protects nobody from who runs it
  ./scripts/create.rs --platform sim                     a rehearsal on the simulator: protects nobody from root
  ./scripts/create.rs --platform sim-native              the same without a Docker Engine
  ./scripts/create.rs --platform sim --account signing --issuer 'Example GmbH' --login alice
                                                         one account per role or task"
)]
struct Args {
    /// Where the program runs and which CAS is used. Recorded at the first run
    #[arg(long, value_enum)]
    platform: Option<Platform>,
    #[command(flatten)]
    place: Place,
    /// Who asks for the code, as the authenticator shows it [default: SCONE OTP]
    #[arg(long, value_parser = policy::label_part)]
    issuer: Option<String>,
    /// Whose code it is, as the authenticator shows it [default: the login name]
    #[arg(long, value_parser = policy::label_part)]
    login: Option<String>,
    /// The image: a tag; on sim-native a directory [default: the platform's own]
    #[arg(long, value_parser = container::image_name)]
    image: Option<String>,
    #[command(flatten)]
    account: account::Named,
    /// The session below which the account's lie: it is there, and lets you create sessions. A new account's alone
    #[arg(long, value_name = "SESSION", value_parser = session::parent)]
    parent: Option<String>,
    #[command(flatten)]
    attestation: Attestation,
    #[command(flatten)]
    tolerance: policy::Tolerance,
}

#[derive(Debug, thiserror::Error)]
enum CreateError {
    #[error("account '{account}' has {what} '{known}', not '{given}'; '--account' names another account")]
    Differs { account: String, what: &'static str, known: String, given: String },
    #[error("a roll-forward of account '{account}' was begun but not finished")]
    RollForwardBegun { account: String },
}

impl Concern for CreateError {
    fn exit(&self) -> Exit {
        Exit::Precondition
    }
}

fn main() -> ExitCode {
    bundle::fresh!("create.rs");
    bundle::run(create)
}

fn create(args: &Args) -> Result<String, Failure> {
    let name = &args.account.account;
    let root = root::find(args.account.root.as_deref(), Path::new("templates"), None)?;
    let (file, known) = state::read(&root, name)?;
    if let Some(state) = &known {
        check_unchanged(args, state, &file)?;
    }
    let platform = known.as_ref().map(|state| state.platform).or(args.platform).unwrap_or(Platform::Scone);
    let mut tools = platform.tools(&root, name, args.account.scone.as_deref())?;
    tools.is_for_debugging = args.tolerance.is_for_debugging(known.as_ref());
    tools.network = args.place.network.clone().or(known.as_ref().and_then(|state| state.cas.network.clone()));
    // Refused before anything is started.
    let (issuer, login) = match &known {
        Some(state) => (state.issuer.clone(), state.login.clone()),
        None => account::identity(args.issuer.as_deref(), args.login.as_deref())?,
    };

    let known_image = known.as_ref().map(|state| state.image.clone());
    let image = args.image.clone().or(known_image).unwrap_or_else(|| platform.default_image().to_owned());
    let image_id = tools.image_id(&image)?;
    step(format!("measuring image '{image}'"));
    let mrenclave = tools.measure(&image_id, OTPQR)?;
    let known_cas = known.as_ref().map(|state| (&state.cas, &state.attestation));
    let (cas, attestation) = tools.attest_named(&args.place, &args.attestation, known_cas, name)?;

    let lock = file.lock()?.passed_on()?;
    let mut state = match known {
        Some(state) => state,
        None => {
            let namespace = account::new_namespace(&root, name, args.parent.as_deref())?;
            State::new(platform, cas.clone(), issuer, login, namespace)
        }
    };
    if let Some(parent) = args.parent.as_deref().filter(|parent| *parent != session::parent_of(&state.namespace)) {
        state.namespace = account::new_namespace(&root, name, Some(parent))?;
    }
    (state.cas, state.attestation) = (cas, attestation);
    args.tolerance.apply(&mut state);
    account::warn_of_debugging(&tools);
    if !state.mrenclave.is_empty() && state.mrenclave != mrenclave {
        step(format!("the program changed: measurement '{}' becomes '{mrenclave}'", state.mrenclave));
    }
    (state.image, state.image_id, state.mrenclave) = (image, image_id, mrenclave);
    let mut account = Account::new(root, name.clone(), state, file, tools);
    // Before the first upload: a run that is cut off must not leave sessions behind whose names nobody knows.
    account.record(&lock)?;
    let done = upload_what_differs(&mut account, &lock)?;
    Ok(report(&account, done))
}

/// An account keeps what it was created with: another issuer, say, would be another entry in the authenticator.
fn check_unchanged(args: &Args, state: &State, file: &StateFile) -> Result<(), Failure> {
    let account = args.account.account.clone();
    let pairs = [
        ("platform", args.platform.map(|platform| platform.to_string()), state.platform.to_string()),
        ("CAS", args.place.cas.clone(), state.cas.address.clone()),
        ("issuer", args.issuer.clone(), state.issuer.clone()),
        ("login", args.login.clone(), state.login.clone()),
        ("parent", args.parent.clone(), session::parent_of(&state.namespace).to_owned()),
    ];
    for (what, given, known) in pairs {
        // Nothing lies below a namespace that CAS never took.
        let is_settled = what != "parent" || state.namespace_hash.is_some();
        if let Some(given) = given.filter(|given| *given != known && is_settled) {
            return Err(CreateError::Differs { account, what, known, given }.into());
        }
    }
    let Some(command) = state.finishing(&account) else { return Ok(()) };
    // Unless it is under way.
    file.lock()?;
    Err(Failure::from(CreateError::RollForwardBegun { account }).hint(command))
}

/// Uploads what CAS does not hold yet. Says what was done.
fn upload_what_differs(account: &mut Account, lock: &Lock) -> Result<&'static str, Failure> {
    let is_new = account.state.reset_hash.is_none();
    let has_changed = policy::upload_all(account, lock)?;
    Ok(match (has_changed, is_new) {
        (true, true) => "created",
        (true, false) => "updated",
        (false, _) => "already created",
    })
}

fn report(account: &Account, done: &str) -> String {
    let next = hint::pasteable(&account.script("gen_qr", ""));
    let State { issuer, login, platform, cas, namespace, mrenclave, attestation, .. } = &account.state;
    let test = if attestation.insecure_test_cas { " (for tests: whoever runs it can read everything)" } else { "" };
    let attested = attestation.options();
    let attested = if attested.is_empty() { attested } else { format!("\n  attested  {attested}") };
    let tolerated = policy::tolerated(&account.state).map_or(String::new(), |what| format!("\n  tolerated  {what}"));
    format!(
        "{done}: account '{}' of '{login}' at '{issuer}'\n  platform   {platform}\n  CAS        {}{test}{attested}\n  namespace  {namespace}\n  mrenclave  {mrenclave}{tolerated}\nnext: {next}",
        account.name, cas.address,
    )
}
