//! CAS: attested once and pinned by its key; on the simulator also started, and asked for its audit log.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::container::is_sha256;
use crate::failure::{Concern, Exit, Failure};
use crate::hint::{self, quoted};
use crate::platform::Tools;
use crate::step;
use crate::tool::Finished;

#[derive(Debug, thiserror::Error)]
enum CasError {
    #[error(
        "'--cas', '--programs-cas', '--network' and how CAS is attested are for SCONE: the simulator's is found by itself"
    )]
    OfSimulator,
    #[error("on platform 'scone' the CAS must be named: '--cas ADDRESS'")]
    NotNamed,
    #[error("the simulated CAS cannot be started: {reason}")]
    NotStarted { reason: String },
    #[error("the simulated CAS is not running: {reason}")]
    NotRunning { reason: String },
    #[error("the simulated CAS's evidence key cannot be read: {reason}")]
    NoEvidenceKey { reason: String },
    #[error("'scone-sim' did not print '{field}'")]
    FieldMissing { field: &'static str },
    #[error("CAS at '{address}' cannot be attested: {reason}")]
    NotAttested { address: String, reason: String },
    #[error("'scone' does not know the CAS at '{address}': {reason}")]
    NotPinned { address: String, reason: String },
    #[error("the CAS at '{address}' is not the one this account was created on")]
    Another { address: String },
}

impl Concern for CasError {
    fn exit(&self) -> Exit {
        match self {
            CasError::OfSimulator | CasError::NotNamed => Exit::Usage,
            CasError::FieldMissing { .. } => Exit::Other,
            _ => Exit::Precondition,
        }
    }
}

/// Where SCONE's CAS is.
#[derive(Debug, Default, clap::Args)]
pub struct Place {
    /// The SCONE CAS, HOST or HOST:PORT. The simulator's is found by itself
    #[arg(long, value_parser = address)]
    pub cas: Option<String>,
    /// Where programs find it (SCONE_CAS_ADDR), if that is elsewhere [default: the host of --cas, by the port for programs]
    #[arg(long, value_name = "CAS", value_parser = address)]
    pub programs_cas: Option<String>,
    /// The network of docker's in which programs find the SCONE CAS, and LAS as 'las' [default: SCONE_LAS_ADDR, docker's own]
    #[arg(long, value_parser = network)]
    pub network: Option<String>,
}

impl Place {
    /// A CAS, with what was said of where programs find it.
    fn applied(&self, cas: Cas) -> Cas {
        let enclave_address = self.programs_cas.clone().unwrap_or(cas.enclave_address);
        Cas { enclave_address, network: self.network.clone().or(cas.network), ..cas }
    }
}

/// How SCONE's CAS is attested, in the words of `scone cas attest` (reference/scone.md 4.3).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Attestation {
    /// CAS's measurement; several may be given, and one of them must be met
    #[arg(long, value_name = "HEX", value_parser = measurement, help_heading = ATTESTATION)]
    pub mrenclave: Vec<String>,
    /// The hash of the key that signed CAS, in the place of SCONE's own; with --isvprodid and --isvsvn
    #[arg(long, value_name = "HEX", value_parser = measurement, requires_all = ["isvprodid", "isvsvn"], help_heading = ATTESTATION)]
    pub mrsigner: Option<String>,
    /// With --mrsigner: which product of that signer's CAS is
    #[arg(long, value_name = "N", requires = "mrsigner", help_heading = ATTESTATION)]
    pub isvprodid: Option<u16>,
    /// With --mrsigner: the lowest security version that is taken
    #[arg(long, value_name = "N", requires = "mrsigner", help_heading = ATTESTATION)]
    pub isvsvn: Option<u16>,
    /// Take a CAS whose host's configuration has known weaknesses
    #[arg(long, short = 'C', help_heading = ATTESTATION)]
    pub accept_configuration_needed: bool,
    /// Take a CAS whose host's firmware or microcode is out of date
    #[arg(long, short = 'G', help_heading = ATTESTATION)]
    pub accept_group_out_of_date: bool,
    /// Take a CAS whose host needs software to be hardened
    #[arg(long, short = 'S', help_heading = ATTESTATION)]
    pub accept_sw_hardening_needed: bool,
    /// Take a CAS whose owner may have chosen its database's key, and so can read every secret in it
    #[arg(long, help_heading = ATTESTATION)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_cas_owner_secret_access: bool,
    /// A CAS for tests, as SCONE's public ones are: in debug mode, so that whoever runs it can read everything in it. Without
    /// --mrenclave and --mrsigner any CAS is taken
    #[arg(long, help_heading = ATTESTATION)]
    pub insecure_test_cas: bool,
}

const ATTESTATION: &str = "How SCONE's CAS is attested (recorded at the first run; given anew, all are replaced)";

fn measurement(text: &str) -> Result<String, &'static str> {
    if is_sha256(text) { Ok(text.to_owned()) } else { Err("must be 64 hex digits in lower case") }
}

impl Attestation {
    /// What `scone cas attest` is told.
    fn arguments(&self) -> Vec<String> {
        let by_signer = self.mrsigner.is_some();
        let test = [
            (true, "--only_for_testing-debug"),
            // Who signed a test CAS is nobody's to say, unless it is said here.
            (!by_signer, "--only_for_testing-ignore-signer"),
            (!by_signer && self.mrenclave.is_empty(), "--only_for_testing-trust-any"),
        ];
        let test = test.into_iter().filter(|(is_due, _)| self.insecure_test_cas && *is_due);
        self.common().into_iter().chain(test.map(|(_, flag)| flag.to_owned())).collect()
    }

    /// What weakens it, and how: said in each run.
    pub fn weaknesses(&self) -> Vec<&'static str> {
        let all = [
            (
                self.insecure_test_cas,
                "CAS is one for tests ('--insecure-test-cas'): whoever runs it can read every secret in it",
            ),
            (
                self.allow_cas_owner_secret_access,
                "CAS's owner may read every secret in it ('--allow-cas-owner-secret-access')",
            ),
            (
                self.accept_group_out_of_date && !self.insecure_test_cas,
                "CAS's host may be out of date ('--accept-group-out-of-date'): SCONE calls that dangerous",
            ),
        ];
        all.into_iter().filter(|(is_so, _)| *is_so).map(|(_, what)| what).collect()
    }

    /// What create.rs is told to record just this.
    pub fn options(&self) -> String {
        let test = self.insecure_test_cas.then(|| "--insecure-test-cas".to_owned());
        self.common().into_iter().chain(test).map(|option| format!(" {option}")).collect()
    }

    /// What both call the same.
    fn common(&self) -> Vec<String> {
        let flags = [
            (self.accept_configuration_needed, "--accept-configuration-needed"),
            (self.accept_group_out_of_date, "--accept-group-out-of-date"),
            (self.accept_sw_hardening_needed, "--accept-sw-hardening-needed"),
            (self.allow_cas_owner_secret_access, "--allow-cas-owner-secret-access"),
        ];
        let flags = flags.into_iter().filter(|(is_given, _)| *is_given).map(|(_, flag)| flag.to_owned());
        let mrenclave = self.mrenclave.iter().map(|hex| format!("--mrenclave={hex}"));
        let mrsigner = self.mrsigner.iter().map(|hex| format!("--mrsigner={hex}"));
        let isvprodid = self.isvprodid.iter().map(|number| format!("--isvprodid={number}"));
        let isvsvn = self.isvsvn.iter().map(|number| format!("--isvsvn={number}"));
        flags.chain(mrenclave).chain(mrsigner).chain(isvprodid).chain(isvsvn).collect()
    }
}

/// The CAS an account lives on. On SCONE both addresses are the host's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cas {
    /// Where the `scone` command line finds it.
    pub address: String,
    /// Where programs find it (`SCONE_CAS_ADDR`).
    pub enclave_address: String,
    /// The hash of its key, pinned when it was attested.
    pub key: String,
    /// The engine's network in which programs find it, and LAS; absent: the engine's default.
    pub network: Option<String>,
}

impl Cas {
    /// Makes sure that the CAS found is this one, which an account knows: by its key, for the simulated one may be back on other
    /// ports.
    pub fn check_same(&self, found: &Cas, account: &str) -> Result<(), Failure> {
        if found.key == self.key {
            return Ok(());
        }
        let hint = hint::script("roll_forward", account, " --cas-wiped   # if it was set up anew");
        Err(Failure::from(CasError::Another { address: found.address.clone() }).hint(hint))
    }
}

impl Tools {
    /// The simulated CAS, which has to run already; `None` on SCONE.
    pub fn running_simulated_cas(&self) -> Result<Option<Cas>, Failure> {
        let Some(simulator) = &self.simulator else { return Ok(None) };
        let finished = simulator.run(&["status".into()], &[])?;
        if !finished.success() {
            let failure = Failure::from(CasError::NotRunning { reason: finished.reason() });
            let up = || format!("{} up", quoted(simulator.path.display()));
            return Err(failure.hint(setting(&finished).unwrap_or_else(up)));
        }
        parse(&finished.stdout).map(Some)
    }

    /// The simulated CAS, started if need be; `None` on SCONE, whose CAS is not ours to start.
    pub fn start_simulated_cas(&self) -> Result<Option<Cas>, Failure> {
        let Some(simulator) = &self.simulator else { return Ok(None) };
        let finished = simulator.run(&["up".into()], &[])?;
        if !finished.success() {
            let program = quoted(simulator.path.display());
            let relayed = finished.stderr.lines().filter_map(|line| line.strip_prefix("hint: scone-sim"));
            let failure = Failure::from(CasError::NotStarted { reason: finished.reason() });
            return Err(failure.hints(relayed.map(|rest| format!("{program}{rest}")).chain(setting(&finished))));
        }
        parse(&finished.stdout).map(Some)
    }

    /// What the simulated CAS knows this user's runtimes by, as nobody else can read it; `None` on SCONE, where the hardware
    /// vouches for evidence.
    pub fn evidence_key(&self) -> Result<Option<String>, Failure> {
        let Some(simulator) = &self.simulator else { return Ok(None) };
        let printed = simulator.run(&["evidence-key".into()], &[])?;
        if !printed.success() {
            return Err(CasError::NoEvidenceKey { reason: printed.reason() }.into());
        }
        Ok(Some(printed.stdout.trim_end().to_owned()))
    }

    /// Makes the `scone` command line trust the CAS at `address`: SCONE's by its attestation; the simulated one by its key,
    /// which its own tool has shown on this host. `known`: the one that it must be; another is not trusted, then.
    pub fn attest(
        &self,
        address: &str,
        simulated: Option<Cas>,
        known: Option<&Cas>,
        how: &Attestation,
    ) -> Result<Cas, Failure> {
        let mut args = vec!["cas".into(), "attest".into(), address.into()];
        args.extend(how.arguments().into_iter().map(OsString::from));
        if let Some(cas) = known.or(simulated.as_ref()) {
            args.extend(["-c".into(), OsString::from(&cas.key)]);
        }
        let attested = self.scone(&args, None)?;
        if !attested.success() {
            return Err(CasError::NotAttested { address: address.to_owned(), reason: attested.reason() }.into());
        }
        let key = self.pinned_key(address)?;
        let address = address.to_owned();
        // Command line and programs speak to different ports.
        let host = address.split(':').next().unwrap_or_default().to_owned();
        let enclave_address = known.map_or(host, |cas| cas.enclave_address.clone());
        let network = known.and_then(|cas| cas.network.clone());
        Ok(simulated.unwrap_or(Cas { address, enclave_address, key, network }))
    }

    /// Makes the `scone` command line trust an account's CAS before anything is uploaded to it, and pins its key: SCONE's at
    /// `address`, or the simulated one, started if need be. One that the account knows is compared first: a refusal leaves the
    /// command line trusting whom it trusted.
    /// It is attested as `asked`, or else as it was; one that is pinned is not attested anew.
    pub fn attest_named(
        &self,
        place: &Place,
        asked: &Attestation,
        known: Option<(&Cas, &Attestation)>,
        account: &str,
    ) -> Result<(Cas, Attestation), Failure> {
        let (known, before) = known.unzip();
        let is_asked = *asked != Attestation::default();
        let how = before.filter(|_| !is_asked).unwrap_or(asked);
        let is_pinned = |known: &&Cas| {
            let is_same = self.simulator.is_none() && Some(how) == before;
            is_same && self.pinned_key(&known.address).is_ok_and(|key| key == known.key)
        };
        how.weaknesses().into_iter().for_each(step);
        if let Some(known) = known.filter(is_pinned) {
            return Ok((place.applied(known.clone()), how.clone()));
        }
        match before.filter(|before| *before != how) {
            None => step("attesting CAS"),
            Some(before) => step(format!("attesting CAS anew:{}, in the place of:{}", how.options(), before.options())),
        }
        if self.simulator.is_some() && (is_asked || place.network.is_some() || place.programs_cas.is_some()) {
            return Err(CasError::OfSimulator.into());
        }
        let simulated = self.start_simulated_cas()?;
        let address = match (&simulated, place.cas.as_deref(), known) {
            (Some(_), Some(_), None) => return Err(CasError::OfSimulator.into()),
            (Some(cas), _, _) => cas.address.clone(),
            (None, Some(address), _) => address.to_owned(),
            (None, None, Some(cas)) => cas.address.clone(),
            (None, None, None) => return Err(CasError::NotNamed.into()),
        };
        let check = |found: &Cas| known.map_or(Ok(()), |known| known.check_same(found, account));
        simulated.as_ref().map_or(Ok(()), check)?;
        let cas = self.attest(&address, simulated, known, how)?;
        check(&cas)?;
        Ok((place.applied(cas), how.clone()))
    }

    /// The hash of the key of the CAS at `address`, as the `scone` command line pinned it when it attested it.
    pub fn pinned_key(&self, address: &str) -> Result<String, Failure> {
        let args = ["cas", "show-identification", "-c", address].map(OsString::from);
        let shown = self.scone(&args, None)?;
        let key = shown.stdout.trim().to_owned();
        if !shown.success() || key.is_empty() {
            return Err(CasError::NotPinned { address: address.to_owned(), reason: shown.reason() }.into());
        }
        Ok(key)
    }

    /// When and by which service a code of this namespace was last spent, in seconds since 1970, where CAS tells and that was
    /// not long ago.
    pub fn last_code_spent(&self, namespace: &str) -> Result<Option<(u64, String)>, Failure> {
        let approving = format!(".{}/approve", namespace.rsplit('/').next().unwrap_or_default());
        let spent = |entry: &serde_json::Value| {
            let service = entry["subject"].as_str()?;
            let own = service.strip_prefix(namespace).is_some_and(|rest| rest.starts_with('/'));
            // What the account grants starts of is somebody else's.
            let ours = own || service.contains(&approving);
            let accepted = entry["event"] == "code checked" && entry["outcome"].as_str()?.starts_with("accepted");
            (ours && accepted).then_some((entry["time"].as_u64()?, service.to_owned()))
        };
        Ok(self.audit_log("1000")?.iter().flatten().find_map(spent))
    }

    /// CAS's time when it last did something, in seconds since 1970, where CAS tells.
    pub fn last_cas_time(&self) -> Result<Option<u64>, Failure> {
        Ok(self.audit_log("1")?.iter().flatten().find_map(|entry| entry["time"].as_u64()))
    }

    /// The last entries of the simulated CAS's audit log, the newest first; `None` on SCONE, whose log is not ours to read.
    fn audit_log(&self, count: &str) -> Result<Option<Vec<serde_json::Value>>, Failure> {
        let Some(simulator) = &self.simulator else { return Ok(None) };
        let log = simulator.run(&["log", "--json", "--last", count].map(OsString::from), &[])?;
        Ok(Some(log.stdout.lines().rev().filter_map(|line| serde_json::from_str(line).ok()).collect()))
    }
}

/// What the simulator says must be set before it can work at all.
fn setting(finished: &Finished) -> Option<String> {
    let export = finished.stderr.lines().find_map(|line| line.strip_prefix("hint: export "))?;
    Some(format!("export {export}"))
}

/// Reads what `scone-sim up` and `status` print.
fn parse(status: &str) -> Result<Cas, Failure> {
    let field = |field: &'static str| {
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
        value.map(str::to_owned).ok_or(CasError::FieldMissing { field })
    };
    Ok(Cas { address: field("client")?, enclave_address: field("enclave")?, key: field("key")?, network: None })
}

/// Checks a `--network` before it becomes one.
pub fn network(text: &str) -> Result<String, &'static str> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let is_valid = text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(valid);
    // What is another container's is no network to find anything in.
    if is_valid && text != "none" { Ok(text.to_owned()) } else { Err("must be the name of a network of docker's") }
}

/// Checks a `--cas` before it becomes an argument.
pub fn address(text: &str) -> Result<String, String> {
    // `scone` reads an argument that begins with '@' from a file.
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    let is_valid = text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(valid);
    if is_valid { Ok(text.to_owned()) } else { Err("must be HOST or HOST:PORT".to_owned()) }
}
