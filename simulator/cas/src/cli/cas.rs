//! `scone cas`: which CASes are trusted, and what they say of themselves.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use super::arguments::{Attest, CasCommand, VerifyAuditLog};
use super::client::{Peer, accepted};
use super::config::{Address, Config};
use super::{CliError, Result, identity, print};
use crate::SOFTWARE_ONLY;
use crate::audit::{Entry, Export, Flaw, Table};

/// What is to be printed.
pub(super) fn run(command: CasCommand, path: &Path) -> Result<String> {
    match command {
        CasCommand::Attest(arguments) => {
            eprintln!("{SOFTWARE_ONLY}");
            attest(arguments, path).map_err(|error| error.during("Error during attestation of CAS"))
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
        CasCommand::Version { target } => Ok(version(&target.peer(path)?)? + "\n"),
    }
}

/// A CAS's name and version.
fn version(peer: &Peer) -> Result<String> {
    let body = accepted(peer, peer.get("/v1/version")?)?;
    match (body["name"].as_str(), body["version"].as_str()) {
        (Some(name), Some(version)) => Ok(format!("{name} {version}")),
        _ => Err(CliError::new("CAS's answer is not understood", "no version in it")),
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
    let open = || File::open(&file).map(BufReader::new).map_err(|error| CliError::new(what, error.to_string()));
    let mut table = Table::default();
    let export = Export::read(open()?, &key, |entry| table.fit(entry)).map_err(wrong)?;
    if print_log {
        let mut printed = print(&table.header());
        let row =
            |entry: &Entry| printed = std::mem::replace(&mut printed, Ok(())).and_then(|()| print(&table.row(entry)));
        Export::read(open()?, &key, row).map_err(wrong)?;
        printed?;
    }
    let (sequence, hash) = &export.end;
    let peer = Peer { address, key: Some(key), identity: identity(&config, own.as_deref())?, retries: 1 };
    let said = peer.get(&format!("/v1/audit-log/{sequence}")).and_then(|reply| accepted(&peer, reply));
    let said = said.and_then(|body| {
        serde_json::from_value(body).map_err(|error| CliError::new("CAS's answer is not understood", error.to_string()))
    });
    let said = said.map_err(|error| [vec![error.what], error.causes].concat().join(": "));
    export.verify(said, predecessor.as_deref(), last.as_deref()).map_err(wrong)?;
    Ok(format!("{} entries, the last one's hash is {hash}", export.count()))
}

/// As SCONE says it: the hash stands in a line of its own.
fn mismatch(what: &str, found: &str) -> CliError {
    CliError::alone(format!("{what} does not match expectation:\n{found}"))
}

/// What SCONE takes together alone.
fn contradiction(asked: &Attest) -> Option<&'static str> {
    let Attest { ignore_signer, mrsigner, mrenclave, deprecated_mrenclave, trust_any, debug, .. } = asked;
    if *ignore_signer && mrenclave.is_empty() && deprecated_mrenclave.is_none() && !trust_any {
        return Some("With --only_for_testing-ignore-signer, --mrenclave or --only_for_testing-trust-any is needed");
    }
    let is_known = *ignore_signer || mrsigner.is_some();
    let needed = "With --only_for_testing-debug, --only_for_testing-ignore-signer or --mrsigner is needed";
    (*debug && !is_known).then_some(needed)
}

/// Checks what a software CAS can show. It is one of those that SCONE has flags for: in debug mode, and not signed.
fn attest(arguments: Attest, path: &Path) -> Result<String> {
    if let Some(what) = contradiction(&arguments) {
        return Err(CliError::alone(what));
    }
    let Attest { address, deprecated_mrenclave, cas_key_hash, mut mrenclave, mrsigner, .. } = arguments;
    mrenclave.extend(deprecated_mrenclave);
    let config = Config::load(path)?;
    let peer = Peer {
        address: Address::parse(&address)?,
        key: None,
        identity: config.identity()?,
        retries: arguments.retries,
    };
    let key = peer.key_hash()?;
    if cas_key_hash.as_ref().is_some_and(|expected| *expected != key) {
        return Err(mismatch("CAS key hash", &key));
    }
    if let Some(known) = config.known_key(&peer.address)
        && known != key
        && cas_key_hash.is_none()
    {
        return Err(CliError::new(
            "The CAS has another key than when it was attested before",
            format!("It was {known}, it is {key}. If that is right, give the new one with -c"),
        ));
    }
    let peer = Peer { key: Some(key.clone()), ..peer };
    let numbers = [("ISVPRODID", arguments.isvprodid), ("ISVSVN", arguments.isvsvn)];
    let numbers = numbers.into_iter().filter_map(|(name, number)| Some(format!("{name} {}", number?)));
    let expected: Vec<_> = mrsigner.map(|mrsigner| format!("MRSIGNER {mrsigner}")).into_iter().chain(numbers).collect();
    if !expected.is_empty() {
        let problem = format!("Expected {}", expected.join(", "));
        return Err(CliError::new("The CAS is software, which nobody signs", problem));
    }
    if !mrenclave.is_empty() {
        let shown = accepted(&peer, peer.get("/v1/attest")?)?["mrenclave"].as_str().unwrap_or_default().to_owned();
        if !mrenclave.iter().any(|expected| expected.eq_ignore_ascii_case(&shown)) {
            return Err(mismatch("Enclave hash", &shown));
        }
    }
    if cas_key_hash.is_none() && !arguments.debug {
        return Err(CliError::new(
            "The CAS is software: as one in debug mode it cannot protect secrets, and nobody has signed it",
            "Give its key hash with -c; or, for tests, --only_for_testing-debug and --only_for_testing-ignore-signer, with --mrenclave or --only_for_testing-trust-any",
        ));
    }
    let version = version(&peer)?;
    let Peer { address, .. } = peer;
    let trustworthy = format!("CAS {} at {} is trustworthy\n", address.name(), address.url());
    let text = format!("{trustworthy}Version of attested CAS: {version}\n");
    Config::change(path, |config| {
        config.remember(&address, key);
        Ok(())
    })?;
    Ok(text)
}
