//! What CAS decides: who may upload and read which session, which program gets which configuration, which tag is fresh.
//! Each decision is one transaction with its entry in the audit log; refusals are answers, not errors.

mod secrets;

use std::path::Path;

use rusqlite::Connection;
use scone_protocol::{
    Configuration, End, InjectionFile, Secret, SetTag, UpdatePolicy, VolumeGrant, access_proof, hex, proves_access,
    unhex,
};

use crate::audit::{self, Event, Record};
use crate::clock::{Clock, ClockError};
use crate::codes;
use crate::session::{Kind, Mode, Mount, Service, Session, SessionError, host_argument, host_variable};
use crate::store::{self, Store, StoreError, Stored};
use crate::tls::{self, Identity};
use secrets::Secrets;

/// The database's name in the data directory.
pub const DATABASE: &str = "cas.db";

/// CAS itself cannot work; whom it serves is told no more than that.
#[derive(Debug, thiserror::Error)]
pub enum CasError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// CAS's own key could not be made or read.
    #[error(transparent)]
    Identity(#[from] tls::TlsError),
    /// A session could not be written as YAML.
    #[error("cannot write a session down: {0}")]
    Yaml(#[from] yaml_serde::Error),
    /// A key or certificate of a session.
    #[error("cannot make a session's key or certificate: {0}")]
    Certificate(String),
}

impl From<rusqlite::Error> for CasError {
    fn from(error: rusqlite::Error) -> CasError {
        StoreError::from(error).into()
    }
}

/// Why a decision ended early: a refusal, which is an answer, or a failure of CAS itself.
enum Stop<R> {
    Refused(R),
    Failed(CasError),
}

impl<R, E: Into<CasError>> From<E> for Stop<R> {
    fn from(error: E) -> Stop<R> {
        Stop::Failed(error.into())
    }
}

/// Separates the two, so that a refusal's traces (a consumed code, a line in the log) are kept and a failure's undone.
fn settle<T, R>(result: Result<T, Stop<R>>) -> Result<Result<T, R>, CasError> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Stop::Refused(refusal)) => Ok(Err(refusal)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Shorthand for a refusal.
fn refuse<T, R>(refusal: R) -> Result<T, Stop<R>> {
    Err(Stop::Refused(refusal))
}

/// CAS: its memory and its clock.
pub struct Cas {
    store: Store,
    clock: Clock,
}

/// Why the client API says no.
#[derive(Debug, thiserror::Error)]
pub enum ClientRefusal {
    /// Not a session. Nothing of the policy is repeated but the key that is wrong.
    #[error("Session is not valid: {0}")]
    Invalid(SessionError),
    /// No client certificate, where one is needed.
    #[error("A client certificate is required")]
    Anonymous,
    /// The access policy grants it to others.
    #[error("Permission denied: the access policy of session '{0}' does not grant it")]
    Denied(String),
    /// There is no such session, or no such version of it.
    #[error("Session '{0}' does not exist")]
    Unknown(String),
    /// The name's namespace is missing.
    #[error("Parent session '{0}' does not exist")]
    NoParent(String),
    /// SCONE's words (section 4.2).
    #[error("Session already exists, please specify predecessor hash")]
    Exists,
    /// Somebody else was faster, or the hash is of another session.
    #[error("The given predecessor is not the active session's hash")]
    WrongPredecessor,
    /// A predecessor was given for a new name.
    #[error("A predecessor was given, but session '{0}' does not exist")]
    NoPredecessor(String),
    /// The policy says who its creator is, and it is not who uploads it.
    #[error("The session names another creator")]
    WrongCreator,
}

/// What the client API says of a session.
pub struct SessionAnswer {
    /// The session hash.
    pub hash: String,
    /// The policy's text in normal form.
    pub text: String,
}

/// Why the enclave API says no.
struct Refusal {
    /// What the runtime prints after `Caused by:`, outermost first.
    causes: Vec<String>,
    /// The true reason, for the audit log.
    reason: String,
}

impl Refusal {
    fn new(headline: &str, details: impl IntoIterator<Item = String>, reason: impl Into<String>) -> Refusal {
        let headline = format!("CAS sent an attestation/configuration error: {headline}");
        Refusal { causes: std::iter::once(headline).chain(details).collect(), reason: reason.into() }
    }

    /// A refusal before any evidence was judged.
    fn no_configuration(detail: impl Into<String>, reason: impl Into<String>) -> Refusal {
        Refusal::new("Failed to retrieve service attestation configuration", [detail.into()], reason)
    }

    /// What is configured does not fit together: our own words, and nothing secret in them.
    fn misconfigured(problem: String) -> Stop<Refusal> {
        Stop::Refused(Refusal::no_configuration(problem.clone(), problem))
    }
}

/// Who asks for a configuration, and with what.
pub struct Claim<'a> {
    /// `session/service`.
    pub service: &'a str,
    /// What followed the `@`.
    pub code: Option<&'a str>,
    /// The measurement.
    pub mrenclave: &'a str,
    /// Whether the evidence was made for the connection it came on.
    pub bound: bool,
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

fn key_hash(client: Option<&tls::Client>) -> &str {
    client.map_or("", |client| &client.key_hash)
}

impl Cas {
    /// Opens CAS's memory in the data directory, making it if it is not there.
    pub fn open(data: &Path, clock: Clock) -> Result<Cas, CasError> {
        clock.now()?;
        Ok(Cas { store: Store::open(&data.join(DATABASE))?, clock })
    }

    /// CAS's own key and certificate, made at the first start.
    pub fn identity(&self) -> Result<Identity, CasError> {
        let pem = self
            .store
            .write(|tx| store::identity(tx, || Ok::<_, CasError>(Identity::generate("scone-sim CAS")?.to_pem())))?;
        Ok(Identity::from_pem(&pem)?)
    }

    /// Writes down that CAS starts or stops; with a random number, so that the log of a CAS that was put back to an older state
    /// is another one from then on, even if it does the same again at the same time.
    pub fn record(&self, event: Event) -> Result<(), CasError> {
        let now = self.clock.now()?;
        let outcome = format!("accepted: {}", hex(&store::draw(Kind::Binary, 8)?));
        self.store.write(|tx| {
            let record = Record { event, subject: "", who: "", measurement: "", outcome: &outcome };
            Ok(audit::append(tx, now, &record)?)
        })
    }

    /// Creates a session, or replaces it if the policy names its predecessor. Answers the hash, and whether the name is new.
    pub fn upload(
        &self,
        text: &str,
        client: Option<&tls::Client>,
    ) -> Result<Result<(String, bool), ClientRefusal>, CasError> {
        let now = self.clock.now()?;
        let parsed = Session::parse(text);
        self.store.write(|tx| {
            let subject = parsed.as_ref().map_or(String::new(), |session| session.name.clone());
            let replaces = parsed.as_ref().is_ok_and(|session| session.predecessor.is_some());
            let result = match parsed {
                Ok(session) => settle(upload(tx, session, client, now))?,
                Err(error) => Err(ClientRefusal::Invalid(error)),
            };
            let outcome = match &result {
                Ok((hash, _)) => format!("accepted: {hash}"),
                // What is wrong with a policy is told to who wrote it, not written down: it may repeat a value.
                Err(ClientRefusal::Invalid(_)) => "refused: the session is not valid".into(),
                Err(refusal) => format!("refused: {refusal}"),
            };
            let event = if replaces { Event::SessionUpdated } else { Event::SessionCreated };
            let record = Record { event, subject: &subject, who: key_hash(client), measurement: "", outcome: &outcome };
            audit::append(tx, now, &record)?;
            Ok(result)
        })
    }

    /// The active session of that name, or the version with that hash.
    pub fn read(
        &self,
        name: &str,
        hash: Option<&str>,
        client: Option<&tls::Client>,
    ) -> Result<Result<SessionAnswer, ClientRefusal>, CasError> {
        let now = self.clock.now()?;
        self.store.write(|tx| {
            let result = settle(read(tx, name, hash, client))?;
            let outcome =
                result.as_ref().map_or_else(|refusal| format!("refused: {}", refusal.class()), |_| "accepted".into());
            let event = Event::SessionRead;
            let record = Record { event, subject: name, who: key_hash(client), measurement: "", outcome: &outcome };
            audit::append(tx, now, &record)?;
            Ok(match result {
                Ok(Stored { hash, session, .. }) => Ok(SessionAnswer { hash, text: session.to_yaml()? }),
                Err(refusal) => Err(refusal),
            })
        })
    }

    /// The names of the sessions that the client may read.
    pub fn list(&self, client: Option<&tls::Client>) -> Result<Vec<String>, CasError> {
        let mut names = self.store.write::<_, CasError>(|tx| Ok(store::names(tx)?))?;
        let mut readable = Vec::new();
        // Some at a time: anybody may ask for this, and others wait for the store.
        while !names.is_empty() {
            let some: Vec<String> = names.drain(..names.len().min(100)).collect();
            self.store.write::<_, CasError>(|tx| {
                for name in some {
                    if settle(read(tx, &name, None, client))?.is_ok() {
                        readable.push(name);
                    }
                }
                Ok(())
            })?;
        }
        Ok(readable)
    }

    /// What an export of the audit log is compared with. SCONE tells its owner only; here nobody is one, and hashes tell nothing.
    pub fn checkpoint(&self, sequence: i64) -> Result<audit::Checkpoint, CasError> {
        self.store.write(|tx| Ok(audit::checkpoint(tx, sequence)?))
    }

    /// Gives a service its configuration, or the lines of SCONE's error frame.
    ///
    /// The order: what is configured must fit together; then the code is checked, and consumed if right (section 3.1: before
    /// attestation); then the evidence is judged. All of it is durable before anything is answered.
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

    /// Moves a volume's tag, or gives the lines of SCONE's error frame.
    pub fn set_tag(&self, request: &SetTag) -> Result<Result<(), Vec<String>>, CasError> {
        let now = self.clock.now()?;
        self.store.write(|tx| {
            let result = settle(set_tag(tx, request))?;
            let outcome = match &result {
                Ok(()) => format!("accepted: {}", request.new),
                Err(refusal) => format!("refused: {}", refusal.reason),
            };
            let subject = format!("{}/{}", request.session, request.volume);
            let event = Event::VolumeTagUpdated;
            audit::append(tx, now, &Record { event, subject: &subject, who: "", measurement: "", outcome: &outcome })?;
            Ok(result.map_err(|refusal| refusal.causes))
        })
    }
}

impl ClientRefusal {
    /// The reason without the peer's own words.
    fn class(&self) -> &'static str {
        match self {
            ClientRefusal::Invalid(_) => "the session is not valid",
            ClientRefusal::Anonymous => "no client certificate",
            ClientRefusal::Denied(_) => "permission denied",
            ClientRefusal::Unknown(_) => "no such session",
            ClientRefusal::NoParent(_) => "no such parent session",
            ClientRefusal::Exists => "it exists, and no predecessor was given",
            ClientRefusal::WrongPredecessor => "wrong predecessor",
            ClientRefusal::NoPredecessor(_) => "a predecessor was given for a new name",
            ClientRefusal::WrongCreator => "it names another creator",
        }
    }
}

/// Whether `who`, an entry list of the access policy, admits the client.
fn admits(who: &[String], creator: &str, client: Option<&tls::Client>) -> bool {
    who.iter().any(|entry| match (entry.as_str(), client) {
        ("ANY", _) => true,
        ("NONE", _) | (_, None) => false,
        ("CREATOR", Some(client)) => client.key_hash == creator,
        (hash, Some(client)) => client.key_hash == hash,
    })
}

fn upload(
    tx: &Connection,
    mut session: Session,
    client: Option<&tls::Client>,
    now: u64,
) -> Result<(String, bool), Stop<ClientRefusal>> {
    let Some(client) = client else { return refuse(ClientRefusal::Anonymous) };
    let predecessor = session.predecessor.take();
    let before = store::active(tx, &session.name)?;
    match (&before, predecessor) {
        (Some(active), predecessor) => {
            if !admits(&active.session.access_policy.update, &active.creator, Some(client)) {
                return refuse(ClientRefusal::Denied(session.name));
            }
            match predecessor {
                None => return refuse(ClientRefusal::Exists),
                Some(hash) if hash != active.hash => return refuse(ClientRefusal::WrongPredecessor),
                Some(_) => {}
            }
        }
        (None, Some(_)) => return refuse(ClientRefusal::NoPredecessor(session.name)),
        (None, None) => {
            if let Some(parent_name) = session.parent() {
                let Some(parent) = store::active(tx, parent_name)? else {
                    return refuse(ClientRefusal::NoParent(parent_name.to_owned()));
                };
                if !admits(&parent.session.access_policy.create_sessions, &parent.creator, Some(client)) {
                    return refuse(ClientRefusal::Denied(parent_name.to_owned()));
                }
            }
        }
    }
    let creator = session.refers_to_creator().then(|| client.certificate.clone());
    if session.creator.is_some() && session.creator != creator {
        return refuse(ClientRefusal::WrongCreator);
    }
    session.creator = creator;

    let hash = session.hash();
    let version = before.as_ref().map_or(1, |before| before.version + 1);
    let new = Stored { version, hash: hash.clone(), creator: client.key_hash.clone(), session };
    // The same content again makes no new version.
    if before.as_ref().is_none_or(|before| before.hash != hash || before.creator != new.creator) {
        store::activate(tx, &new)?;
    }
    // Who may update a session owns its codes: an upload ends the wait after wrong ones.
    for text in new.session.services.iter().filter_map(|service| new.session.code_secret(service)) {
        // A secret that cannot be had now (its owner is not there yet) has no wait to lift.
        if let Ok(secret) = settle(Secrets { tx, now }.shared_secret(&new.session, text))? {
            codes::lift_wait(tx, &secret)?;
        }
    }
    Ok((hash, before.is_none()))
}

fn read(
    tx: &Connection,
    name: &str,
    hash: Option<&str>,
    client: Option<&tls::Client>,
) -> Result<Stored, Stop<ClientRefusal>> {
    let unknown = || Stop::Refused(ClientRefusal::Unknown(name.to_owned()));
    let active = store::active(tx, name)?.ok_or_else(unknown)?;
    if !admits(&active.session.access_policy.read, &active.creator, client) {
        return refuse(ClientRefusal::Denied(name.to_owned()));
    }
    match hash {
        None => Ok(active),
        Some(hash) => store::with_hash(tx, name, hash)?.ok_or_else(unknown),
    }
}

fn configure(tx: &Connection, claim: &Claim<'_>, now: u64) -> Result<Configuration, Stop<Refusal>> {
    // Unknown session and unknown service sound alike (our own words): names are not confidential, but need not be fished for.
    let unknown = |reason| Stop::Refused(Refusal::no_configuration("Session or service does not exist", reason));
    let (session_name, service_name) = claim.service.rsplit_once('/').ok_or_else(|| unknown("no service named"))?;
    let session = store::active(tx, session_name)?.ok_or_else(|| unknown("unknown session"))?.session;
    let service = session.service(service_name).ok_or_else(|| unknown("unknown service"))?;

    let secrets = Secrets { tx, now };
    let mut configuration = prepare(&secrets, &session, service)?;
    configuration.access_proof = check_access(&session, &claim.access)?;
    if let Some(text) = session.code_secret(service) {
        let secret = secrets.shared_secret(&session, text)?;
        let verdict = codes::check(tx, &secret, claim.code, now)?;
        audit::append(tx, now, &claim.record(Event::CodeChecked, &verdict.record()))?;
        if let Some(detail) = verdict.refusal() {
            return refuse(Refusal::no_configuration(detail, "the code"));
        }
    }
    if session.security.attestation.mode == Mode::Hardware {
        judge_evidence(service, claim)?;
    }
    Ok(configuration)
}

fn judge_evidence(service: &Service, claim: &Claim<'_>) -> Result<(), Stop<Refusal>> {
    let untrusted = |details: Vec<String>, reason: String| {
        let chain = ["Failed to verify DCAP report".to_owned()].into_iter().chain(details);
        refuse(Refusal::new("DCAP quote verification failed", chain, reason))
    };
    // Our own words: SCONE has no such case.
    if !claim.bound || unhex(claim.mrenclave).is_none_or(|bytes| bytes.len() != 32) {
        return untrusted(
            vec!["The evidence was not made for this connection".into()],
            "evidence of another connection".into(),
        );
    }
    let wanted = service.measurements();
    if wanted.contains(claim.mrenclave) {
        return Ok(());
    }
    let mut missed: Vec<String> = wanted
        .iter()
        .map(|want| format!("Unexpected enclave measurement (MRENCLAVE, {}) - Expected {want}", claim.mrenclave))
        .collect();
    // Our own words: what SCONE says of another signer is not documented.
    missed.extend(service.signers().map(|signer| {
        format!(
            "The enclave is not signed: programs of the simulator never are - Expected MRSIGNER {}",
            signer.mrsigner
        )
    }));
    let reason = if wanted.is_empty() { "not signed, as only signers are trusted" } else { "unexpected mrenclave" };
    let mut chain = vec![
        "The program enclave is not trustworthy".to_owned(),
        "None of the required enclave properties are met by the enclave".to_owned(),
    ];
    let count = missed.len();
    chain.extend(missed.into_iter().enumerate().map(|(i, miss)| match count {
        1 => miss,
        _ => format!("Error {} of {count}: {miss}", i + 1),
    }));
    untrusted(chain, reason.into())
}

/// The service access token (section 2.10): first of all factors, so that who lacks it can neither try codes nor use them up.
/// Gives CAS's own proof, for the runtime to check. Our own words: SCONE's are not documented.
fn check_access(session: &Session, access: &Access<'_>) -> Result<Option<String>, Stop<Refusal>> {
    let Access { proof, exporter, nonce } = access;
    let Some(token) = &session.security.service_access_token else { return Ok(None) };
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
    let mut configuration = Configuration { pwd: service.pwd.clone(), ..Configuration::default() };
    let mut size = 0;
    for (at, word) in service.command.iter().enumerate() {
        let word = match host_argument(word).and_then(|position| position.parse().ok()) {
            Some(position) => {
                configuration.host_arguments.push((at, position));
                String::new()
            }
            None => secrets.text(session, word)?,
        };
        size += word.len();
        configuration.command.push(word);
    }
    for (name, value) in &service.environment {
        match host_variable(name) {
            Some(name) => configuration.host_environment.push(name.to_owned()),
            None => {
                let value = secrets.text(session, value)?;
                size += value.len();
                configuration.environment.insert(name.clone(), Secret::new(value));
            }
        }
    }
    if let Some(image) = session.image(service) {
        for mount in &image.volumes {
            configuration.volumes.push(grant(secrets.tx, session, mount)?);
        }
        for file in &image.injection_files {
            let content = secrets.bytes(session, &file.content)?;
            size += content.len();
            configuration.injection_files.push(InjectionFile {
                path: file.path.clone(),
                content: Secret::new(hex(&content)),
                mode: file.mode().ok_or_else(|| StoreError::Damaged("a permission is not valid".into()))?,
            });
        }
    }
    match size > secrets::MAX_CONFIGURATION {
        true => Err(secrets::too_large()),
        false => Ok(configuration),
    }
}

/// The key and tag of a mounted volume, here or where it is imported from; both sides must agree.
fn grant(tx: &Connection, session: &Session, mount: &Mount) -> Result<VolumeGrant, Stop<Refusal>> {
    let Mount { name, path, update_policy } = mount;
    let declared =
        session.volume(name).ok_or_else(|| StoreError::Damaged(format!("volume '{name}' is not declared")))?;
    let mut update_policy = *update_policy;
    let (owner, name) = match &declared.import {
        None => (session.name.clone(), name.clone()),
        Some(import) => {
            let (from, there) = (&import.session, &import.volume);
            let owner = secrets::owner(tx, from, import.session_hash.as_deref())?;
            let exported = owner.iter().flat_map(|owner| &owner.volumes).find_map(|volume| {
                let meant = volume.export.iter().find(|export| {
                    let called = export.volume_alias.as_ref().unwrap_or(&volume.name);
                    called == there && secrets::is_meant(&export.to, session)
                })?;
                Some((volume.name.clone(), meant.update_policy))
            });
            let (original, most) = exported.ok_or_else(|| {
                Refusal::misconfigured(format!(
                    "Session '{from}' does not export volume '{there}' to '{}'",
                    session.name
                ))
            })?;
            // Section 2.7: an ephemeral export makes the import ephemeral; more than was granted is an error.
            if most == UpdatePolicy::Ephemeral {
                update_policy = UpdatePolicy::Ephemeral;
            } else if update_policy > most {
                let problem =
                    format!("Session '{from}' does not allow volume '{there}' the update policy it is used with");
                return Err(Refusal::misconfigured(problem));
            }
            (from.clone(), original)
        }
    };
    let volume =
        store::volume(tx, &owner, &name)?.ok_or_else(|| StoreError::Damaged(format!("volume '{name}' has no key")))?;
    Ok(VolumeGrant {
        session: owner,
        name,
        path: path.clone(),
        key: Secret::new(hex(&volume.key)),
        tag: volume.tag,
        update_policy,
    })
}

fn set_tag(tx: &Connection, request: &SetTag) -> Result<(), Stop<Refusal>> {
    let no = |cause: &str, reason: &str| {
        Stop::Refused(Refusal { causes: vec![cause.to_owned()], reason: reason.to_owned() })
    };
    // An unknown volume and a wrong key sound alike (our own words).
    let volume = store::volume(tx, &request.session, &request.volume)?
        .filter(|volume| request.is_authorised_by(&volume.key))
        .ok_or_else(|| no("The volume's key was not proven", "unknown volume or wrong key"))?;
    if unhex(&request.new).is_none_or(|tag| tag.len() != 16) {
        return Err(no("The FSPF tag is not 32 lower-case hex digits", "malformed tag"));
    }
    // The answer to an earlier request may have been lost: asking again is no replay.
    if volume.tag.as_deref() == Some(&request.new) {
        return Ok(());
    }
    if !store::move_tag(tx, &request.session, &request.volume, request.old.as_deref(), &request.new)? {
        return Err(no("The FSPF tag is not fresh - suspected replay attack", "stale tag"));
    }
    Ok(())
}
