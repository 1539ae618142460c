//! What CAS decides on the enclave API: which program gets which configuration.

use rusqlite::Connection;
use scone_protocol::signature::SignerIdentity;
use scone_protocol::{Configuration, End, InjectionFile, MAX_FRAME, Secret, access_proof, hex, proves_access};

use super::evidence::{judge_evidence, refuse_unvouched};
use super::secrets::{Room, Secrets, too_large};
use super::volumes::grant;
use super::{Cas, CasError, Stop, refuse, settle};
use crate::audit::{self, Event, Record};
use crate::codes;
use crate::session::{Security, Service, Session, host_argument, host_variable};
use crate::store::{self, StoreError};

/// Room in a frame for what is around a configuration, in bytes.
const ENVELOPE: usize = 1024;

/// Who asks for a configuration, and with what.
pub struct Claim<'a> {
    /// `session/service`.
    pub service: &'a str,
    /// What followed the `@`.
    pub code: Option<&'a str>,
    /// The measurement.
    pub mrenclave: &'a str,
    /// Who signed the program, and as what, if it is signed.
    pub signer: Option<&'a SignerIdentity>,
    /// Whether the evidence was made for the connection it came on, with CAS's evidence key.
    pub vouched: bool,
    /// What shows on this connection that a service access token is known.
    pub access: Access<'a>,
}

/// A connection's part in proving that a service access token is known, by either end.
#[derive(Clone, Copy, Default)]
pub struct Access<'a> {
    /// The runtime's proof.
    pub proof: Option<&'a str>,
    /// The connection's exporter value.
    pub exporter: [u8; 32],
    /// CAS's nonce.
    pub nonce: &'a str,
}

impl<'a> Claim<'a> {
    fn record(&self, event: Event, outcome: &'a str) -> Record<'a> {
        Record { event, subject: self.service, who: "", measurement: self.mrenclave, outcome }
    }
}

/// Why the enclave API says no.
#[derive(Clone)]
pub(super) struct Refusal {
    /// What the runtime prints after `Caused by:`, outermost first.
    pub causes: Vec<String>,
    /// The true reason, for the audit log.
    pub reason: String,
}

impl Refusal {
    pub fn new(headline: &str, details: impl IntoIterator<Item = String>, reason: impl Into<String>) -> Refusal {
        let headline = format!("CAS sent an attestation/configuration error: {headline}");
        Refusal { causes: std::iter::once(headline).chain(details).collect(), reason: reason.into() }
    }

    /// A refusal before any evidence was judged.
    pub fn no_configuration(detail: impl Into<String>, reason: impl Into<String>) -> Refusal {
        Refusal::new("Failed to retrieve service attestation configuration", [detail.into()], reason)
    }

    /// What is configured does not fit together. The words are our own and hold nothing secret.
    pub fn misconfigured(problem: String) -> Stop<Refusal> {
        Stop::Refused(Refusal::no_configuration(problem.clone(), problem))
    }
}

impl Cas {
    /// Gives a service its configuration, or the lines of SCONE's error frame.
    ///
    /// First, the evidence must be vouched for; what is configured must fit together; then the code is checked, and consumed if
    /// right (section 3.1: before attestation); then the evidence is judged. All of it is durable before CAS answers.
    pub fn configure(&self, claim: &Claim<'_>) -> Result<Result<Configuration, Vec<String>>, CasError> {
        let now = self.clock.now()?;
        self.store.write(|tx| {
            let result = settle(configure(tx, claim, now))?;
            let outcome = match &result {
                Ok(_) => "accepted".to_owned(),
                Err(refusal) => format!("refused: {}", refusal.reason),
            };
            audit::append(tx, now, &claim.record(Event::ServiceAttested, &outcome))?;
            Ok(result.map_err(|refusal| refusal.causes))
        })
    }
}

fn configure(tx: &Connection, claim: &Claim<'_>, now: u64) -> Result<Configuration, Stop<Refusal>> {
    refuse_unvouched(claim)?;
    // An unknown session and an unknown service get the same answer (our own words): names are not secret, but CAS does not
    // help to find them out.
    let unknown = |reason| Stop::Refused(Refusal::no_configuration("Session or service does not exist", reason));
    let (session_name, service_name) = claim.service.rsplit_once('/').ok_or_else(|| unknown("no service named"))?;
    let session = store::active(tx, session_name)?.ok_or_else(|| unknown("unknown session"))?.session;
    let service = session.service(service_name).ok_or_else(|| unknown("unknown service"))?;

    let mut secrets = Secrets::new(tx, now);
    let security = secrets.security(&session)?;
    secrets.program = security.judges_evidence().then_some(claim.mrenclave);
    let variants = secrets.variants(&session, service)?;
    if security.judges_evidence() && variants.is_empty() {
        return Err(Refusal::misconfigured("The service's attestation accepts no program".into()));
    }
    let mut configuration = prepare(&secrets, &session, service)?;
    configuration.access_proof = check_access(&secrets, &session, &security, &claim.access)?;
    check_length(&configuration)?;
    if let Some(text) = security.code_secret(service) {
        let secret = secrets.shared_secret(&session, text)?;
        let verdict = codes::check(tx, &secret, claim.code, now)?;
        audit::append(tx, now, &claim.record(Event::CodeChecked, &verdict.record()))?;
        if let Some(detail) = verdict.refusal() {
            return refuse(Refusal::no_configuration(detail, "the code"));
        }
    }
    if security.judges_evidence() {
        judge_evidence(&variants, claim)?;
    }
    Ok(configuration)
}

/// Refuses what Linux takes for no program's argument or variable (`MAX_ARG_STRLEN`, which counts the NUL at its end).
fn check_one(what: &str, length: usize) -> Result<(), Stop<Refusal>> {
    if length < 128 * 1024 {
        return Ok(());
    }
    Err(Refusal::misconfigured(format!("{what} is longer than Linux allows, 131071 bytes")))
}

/// Refuses what could not be sent, before a code is spent on it: written down, some texts are longer.
fn check_length(configuration: &Configuration) -> Result<(), Stop<Refusal>> {
    let written = serde_json::to_vec(configuration).map_err(|error| StoreError::Damaged(error.to_string()))?;
    if written.len() > MAX_FRAME - ENVELOPE { Err(too_large()) } else { Ok(()) }
}

/// Checks the service access token (section 2.10) before all else, so that a caller without it can neither try codes nor use
/// them up. Gives CAS's own proof, for the runtime to check. The messages are our own: SCONE's are not documented.
fn check_access(
    secrets: &Secrets<'_>,
    session: &Session,
    security: &Security,
    access: &Access<'_>,
) -> Result<Option<String>, Stop<Refusal>> {
    let Access { proof, exporter, nonce } = access;
    let Some(token) = &security.service_access_token else {
        // The runtime would refuse what came without CAS's proof, and the code would be spent for nothing.
        return match proof {
            None => Ok(None),
            Some(_) => refuse(Refusal::no_configuration(
                "A service access token was given, and this session has none",
                "a service access token where none is demanded",
            )),
        };
    };
    let token = &secrets.text(session, token)?;
    // An imported secret may be empty: everybody knows that.
    if token.is_empty() {
        return Err(Refusal::misconfigured("The service access token is empty".into()));
    }
    let Some(proof) = proof else {
        return refuse(Refusal::no_configuration(
            "A service access token is required to access this session",
            "no service access token",
        ));
    };
    if !proves_access(proof, End::Runtime, token, exporter, nonce) {
        return refuse(Refusal::no_configuration(
            "The given service access token is invalid",
            "wrong service access token",
        ));
    }
    Ok(Some(access_proof(End::Cas, token, exporter, nonce)))
}

/// Puts together what the service would get.
fn prepare(secrets: &Secrets<'_>, session: &Session, service: &Service) -> Result<Configuration, Stop<Refusal>> {
    // Assumption: SCONE documents no command of its own for such a service. The caller's would not be the policy's.
    if service.command.is_empty() {
        return Err(Refusal::misconfigured(format!("Service '{}' has no command", service.name)));
    }
    let mut configuration = Configuration { pwd: service.pwd.clone(), ..Configuration::default() };
    // A short text may be written long.
    let mut room = Room::of_a_configuration();
    for (at, word) in service.command.iter().enumerate() {
        let word = match host_argument(word).and_then(|position| position.parse().ok()) {
            Some(position) => {
                configuration.host_arguments.push((at, position));
                String::new()
            }
            None => secrets.text(session, word)?,
        };
        room.take(word.len())?;
        // The policy may not leave it empty either.
        if at == 0 && word.is_empty() {
            return Err(Refusal::misconfigured("The program's name is empty".into()));
        }
        check_one("A word of the command", word.len())?;
        configuration.command.push(word);
    }
    for (name, value) in &service.environment {
        room.take(name.len())?;
        match host_variable(name) {
            Some(name) => configuration.host_environment.push(name.to_owned()),
            None => {
                let value = secrets.text(session, value)?;
                room.take(value.len())?;
                check_one("A variable", name.len() + 1 + value.len())?;
                configuration.environment.insert(name.clone(), Secret::new(value));
            }
        }
    }
    if let Some(image) = session.image(service) {
        for mount in &image.volumes {
            configuration.volumes.push(grant(secrets, session, mount)?);
        }
        for file in &image.injection_files {
            let content = file.content.as_ref().map(|content| secrets.bytes(session, content)).transpose()?;
            room.take(file.path.len() + content.as_ref().map_or(0, Vec::len))?;
            configuration.injection_files.push(InjectionFile {
                path: file.path.clone(),
                content: content.map(|content| Secret::new(hex(&content))),
                mode: file.mode().ok_or_else(|| StoreError::Damaged("a permission is not valid".into()))?,
            });
        }
    }
    if let Some(image) = session.image(service).filter(|image| image.has_templates()) {
        for (name, value) in secrets.forms(session, image, &mut room)? {
            configuration.secrets.insert(name, Secret::new(hex(&value)));
        }
    }
    Ok(configuration)
}
