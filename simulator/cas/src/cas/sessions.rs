//! What CAS decides on the client API: who may upload, read and list which session.

use std::collections::{BTreeSet, HashMap};

use rusqlite::Connection;

use super::access::{Party, admits};
use super::secrets::Secrets;
use super::{Cas, CasError, Stop, refuse, settle};
use crate::audit::{self, Event, Record};
use crate::codes;
use crate::session::{AccessPolicy, Creator, SessionError};
use crate::signing::Signed;
use crate::store::{self, Stored};
use crate::tls;

/// Why the client API says no.
#[derive(Debug, thiserror::Error)]
pub enum ClientRefusal {
    /// Not a session. Nothing of the policy is repeated but the key that is wrong.
    #[error("Session is not valid: {0}")]
    Invalid(SessionError),
    /// Neither a client certificate nor a signature, where one is needed.
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
    /// Somebody else updated the session first, or the hash is another session's.
    #[error("The given predecessor is not the active session's hash")]
    WrongPredecessor,
    /// A predecessor was given for a new name.
    #[error("A predecessor was given, but session '{0}' does not exist")]
    NoPredecessor(String),
    /// The session that the name's namespace is, is not the one that the policy names.
    #[error("The given namespace hash is not that of the parent session")]
    WrongNamespace,
    /// The policy names a creator, and it is neither the client that uploads it nor one of those who signed it.
    #[error("The session names another creator")]
    WrongCreator,
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
            ClientRefusal::WrongNamespace => "wrong namespace hash",
            ClientRefusal::WrongCreator => "it names another creator",
        }
    }
}

/// What the client API says of a session.
pub struct SessionAnswer {
    /// The session hash.
    pub hash: String,
    /// The policy's text in normal form.
    pub text: String,
}

impl Cas {
    /// Creates a session, or replaces it if the policy names its predecessor. One that is signed is judged by its signatures
    /// alone, any other by the client's certificate. Answers the hash, and whether the name is new.
    pub fn upload(
        &self,
        text: &str,
        client: Option<&tls::Client>,
    ) -> Result<Result<(String, bool), ClientRefusal>, CasError> {
        let now = self.clock.now()?;
        let parsed = Signed::parse(text);
        let mut erased = false;
        let answer = self.store.write(|tx| {
            let subject = parsed.as_ref().map_or(String::new(), |signed| signed.session.name.clone());
            let replaces = parsed.as_ref().is_ok_and(|signed| signed.session.predecessor.is_some());
            let signatures = parsed.as_ref().map_or(&[][..], |signed| &signed.signatures);
            let who = Party::of(signatures, client).key_hashes();
            let result = match parsed {
                Ok(signed) => settle(upload(tx, signed, client, now, &mut erased))?,
                Err(error) => Err(ClientRefusal::Invalid(error)),
            };
            let outcome = match &result {
                Ok((hash, _)) => format!("accepted: {hash}"),
                // The policy's author is told what is wrong with it; the log is not, since that may repeat a value.
                Err(ClientRefusal::Invalid(_)) => "refused: the session is not valid".into(),
                Err(refusal) => format!("refused: {refusal}"),
            };
            let event = if replaces { Event::SessionUpdated } else { Event::SessionCreated };
            let record = Record { event, subject: &subject, who: &who, measurement: "", outcome: &outcome };
            audit::append(tx, now, &record)?;
            Ok(result)
        });
        if erased {
            self.store.erase_deleted();
        }
        answer
    }

    /// The active session of that name, or the version with that hash.
    pub fn read(
        &self,
        name: &str,
        hash: Option<&str>,
        client: Option<&tls::Client>,
    ) -> Result<Result<SessionAnswer, ClientRefusal>, CasError> {
        let now = self.clock.now()?;
        let party = Party::of(&[], client);
        self.store.write(|tx| {
            let result = settle(read(tx, name, hash, party, now))?;
            let outcome =
                result.as_ref().map_or_else(|refusal| format!("refused: {}", refusal.class()), |_| "accepted".into());
            let event = Event::SessionRead;
            let who = &party.key_hashes();
            let record = Record { event, subject: name, who, measurement: "", outcome: &outcome };
            audit::append(tx, now, &record)?;
            Ok(match result {
                Ok(Stored { hash, session, .. }) => Ok(SessionAnswer { hash, text: session.to_yaml()? }),
                Err(refusal) => Err(refusal),
            })
        })
    }

    /// The names of the sessions that the client may read, or may list as those in a session's namespace. Assumption: these are the
    /// ones directly below its name.
    pub fn list(&self, client: Option<&tls::Client>) -> Result<Vec<String>, CasError> {
        let now = self.clock.now()?;
        let names = self.store.write::<_, CasError>(|tx| Ok(store::names(tx)?))?;
        let (mut listed, party) = (Vec::new(), Party::of(&[], client));
        // What is said of a session's namespace holds for all that is directly in it.
        let mut parents = HashMap::new();
        // One at a time: anybody may ask for this, while others wait for the store.
        for name in names {
            let may_read = |tx: &Connection| Ok(settle(read(tx, &name, None, party, now))?.is_ok());
            let mut is_listed = self.store.write::<_, CasError>(may_read)?;
            if let Some((parent, _)) = name.rsplit_once('/').filter(|_| !is_listed) {
                is_listed = match parents.get(parent) {
                    Some(known) => *known,
                    None => {
                        let may = self.store.write::<_, CasError>(|tx| may_list(tx, parent, party, now))?;
                        parents.insert(parent.to_owned(), may);
                        may
                    }
                };
            }
            if is_listed {
                listed.push(name);
            }
        }
        Ok(listed)
    }
}

/// `erased`: set if a drawn secret was dropped.
fn upload(
    tx: &Connection,
    Signed { mut session, signatures }: Signed,
    client: Option<&tls::Client>,
    now: u64,
    erased: &mut bool,
) -> Result<(String, bool), Stop<ClientRefusal>> {
    let party = Party::of(&signatures, client);
    if let Party::Nobody = party {
        return refuse(ClientRefusal::Anonymous);
    }
    let secrets = Secrets::new(tx, now);
    let before = store::active(tx, &session.name)?;
    match (&before, &session.predecessor) {
        (Some(active), predecessor) => {
            if !admits(&secrets, active, |policy| &policy.update, party)? {
                return refuse(ClientRefusal::Denied(session.name));
            }
            match predecessor {
                None => return refuse(ClientRefusal::Exists),
                Some(hash) if *hash != active.hash => return refuse(ClientRefusal::WrongPredecessor),
                Some(_) => {}
            }
        }
        (None, Some(_)) => return refuse(ClientRefusal::NoPredecessor(session.name)),
        (None, None) => {
            if let Some(parent_name) = session.parent() {
                let Some(parent) = store::active(tx, parent_name)? else {
                    return refuse(ClientRefusal::NoParent(parent_name.to_owned()));
                };
                if !admits(&secrets, &parent, |policy| &policy.create_sessions, party)? {
                    return refuse(ClientRefusal::Denied(parent_name.to_owned()));
                }
                if session.namespace_hash.as_ref().is_some_and(|hash| *hash != parent.hash) {
                    return refuse(ClientRefusal::WrongNamespace);
                }
            }
        }
    }
    let creator = match party {
        Party::Client(client) => session.refers_to_creator().then(|| Creator::Certificate(client.certificate.clone())),
        // What is signed stays as it is, and is true or refused.
        _ => session
            .creator
            .clone()
            .filter(|creator| matches!(creator, Creator::Signer { signer } if party.has_signed(signer))),
    };
    if session.creator.is_some() && session.creator != creator {
        return refuse(ClientRefusal::WrongCreator);
    }
    session.creator = creator;

    let hash = session.hash();
    let version = before.as_ref().map_or(1, |before| before.version + 1);
    let new = Stored { version, hash: hash.clone(), creator: party.key_hashes(), session };
    *erased = store::activate(tx, &new)?;
    // Whoever may update a session owns its codes, so an upload ends the wait after wrong ones.
    // What is not available now (its owner does not exist yet) has no wait to lift.
    let secrets = Secrets::new(tx, now);
    let security = settle(secrets.security(&new.session))?.unwrap_or_default();
    let texts: BTreeSet<&str> =
        new.session.services.iter().filter_map(|service| security.code_secret(service)).collect();
    for text in texts {
        if let Ok(secret) = settle(secrets.shared_secret(&new.session, text))? {
            codes::lift_wait(tx, &secret)?;
        }
    }
    Ok((hash, before.is_none()))
}

fn read(
    tx: &Connection,
    name: &str,
    hash: Option<&str>,
    party: Party<'_>,
    now: u64,
) -> Result<Stored, Stop<ClientRefusal>> {
    let unknown = || Stop::Refused(ClientRefusal::Unknown(name.to_owned()));
    let active = store::active(tx, name)?.ok_or_else(unknown)?;
    if !admits(&Secrets::new(tx, now), &active, |policy| &policy.read, party)? {
        return refuse(ClientRefusal::Denied(name.to_owned()));
    }
    match hash {
        None => Ok(active),
        Some(hash) => store::with_hash(tx, name, hash)?.ok_or_else(unknown),
    }
}

/// Whether the session of that name lets its namespace be listed.
fn may_list(tx: &Connection, parent: &str, party: Party<'_>, now: u64) -> Result<bool, CasError> {
    let (Some(parent), secrets) = (store::active(tx, parent)?, Secrets::new(tx, now)) else { return Ok(false) };
    Ok(admits(&secrets, &parent, AccessPolicy::listers, party)?
        || admits(&secrets, &parent, |policy| &policy.create_sessions, party)?)
}
