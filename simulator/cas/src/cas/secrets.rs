//! The values of a session's secrets at the moment a service starts: explicit, drawn, imported, or a certificate that CAS
//! makes. Keys and certificates are drawn at their first use and kept until an update, or the certificate's end, asks for new
//! ones (`reference/scone.md` section 2.9).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use data_encoding::{BASE32, BASE32_NOPAD, BASE64, BASE64URL};
use rusqlite::{Connection, OptionalExtension, params};
use scone_protocol::{escape_json, hex};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::certificates::draw_key;
use super::release::Refusal;
use super::{Stop, settle};
use crate::session::placeholder::{Format, Part, Placeholder};
use crate::session::{
    Image, Kind, Or, SecretImport, Security, Service, Session, SessionId, Unresolved, Variant, Weight, check_variants,
    decode_shared_secret,
};
use crate::store::{self, StoreError, Stored};
use crate::tls;

pub(super) type Result<T> = std::result::Result<T, Stop<Refusal>>;

/// The largest size of all texts of one configuration, in bytes. Placeholders are short; what they stand for need not be.
const MAX_CONFIGURATION: usize = 256 * 1024;

/// How many secrets a secret may be made of, one of the other: a certificate, those above it, their keys and imports.
const MAX_DEPTH: usize = 32;

/// How many secrets CAS makes or looks up for one answer, and how large they may be together with the sessions that own them, in
/// bytes: what is made of others is larger than they are, and takes longer.
const MAX_MADE: usize = 512;
const MAX_SIZE: usize = 16 * MAX_CONFIGURATION;

/// How many signatures CAS makes for one answer: each takes far longer than all else.
const MAX_SIGNED: usize = 64;

/// The secrets of all sessions, now. Each is made once.
pub(super) struct Secrets<'a> {
    pub tx: &'a Connection,
    /// Seconds since the epoch.
    pub now: u64,
    /// The measurement of the program that is being attested, if one is.
    pub program: Option<&'a str>,
    /// How many values are being made of one another.
    depth: Cell<usize>,
    /// Sessions that others import from, by name.
    owners: RefCell<HashMap<String, Option<Rc<Stored>>>>,
    /// What was found out: by the session that asks, and the name there.
    known: RefCell<HashMap<[String; 2], Known>>,
    /// What was made: by owner, secret and reader. Many names may mean the same one.
    made: RefCell<HashMap<[String; 3], Rc<Value>>>,
    /// How many were made, or not: what fails takes its time, too.
    tried: Cell<usize>,
    signed: Cell<usize>,
    /// The bytes of all that was made, and of the owners.
    size: Cell<usize>,
    /// The hashes of sessions that ask.
    hashes: RefCell<HashMap<String, String>>,
}

type Known = std::result::Result<Rc<Value>, Refusal>;

/// A secret's value.
pub(super) struct Value {
    pub kind: Kind,
    /// Of a key (PKCS#8) and of a certificate, the DER.
    pub bytes: Vec<u8>,
    /// Of a certificate, as far as it can be had.
    pub private_key: Option<Vec<u8>>,
    /// Of a certificate: those above it, the root last.
    pub chain: Vec<Vec<u8>>,
}

impl Value {
    fn plain(kind: Kind, bytes: Vec<u8>) -> Value {
        Value { kind, bytes, private_key: None, chain: Vec::new() }
    }

    fn size(&self) -> usize {
        let Value { bytes, private_key, chain, .. } = self;
        bytes.len() + private_key.as_ref().map_or(0, Vec::len) + chain.iter().map(Vec::len).sum::<usize>()
    }

    /// `None`: it has no such form.
    fn written(&self, format: Format) -> Option<Vec<u8>> {
        let Value { kind, bytes, private_key, chain } = self;
        if !format.suits(*kind) {
            return None;
        }
        let certificate = |der: &[u8]| tls::pem(tls::CERTIFICATE, der).into_bytes();
        let key = |der: &[u8]| tls::pem("PRIVATE KEY", der).into_bytes();
        let public_key = |der: &[u8]| tls::pem("PUBLIC KEY", der).into_bytes();
        Some(match format {
            Format::Plain => match kind {
                Kind::Ascii | Kind::Binary | Kind::ConfigFragment | Kind::Jwt => bytes.clone(),
                Kind::PrivateKey => key(bytes),
                Kind::PublicKey => public_key(bytes),
                Kind::X509 | Kind::X509Ca => certificate(bytes),
            },
            Format::Bin | Format::Der | Format::SpkiDer | Format::CrtDer => bytes.clone(),
            Format::Hex => hex(bytes).into_bytes(),
            Format::Base64 => BASE64.encode(bytes).into_bytes(),
            Format::Base64Url => BASE64URL.encode(bytes).into_bytes(),
            Format::Base32 => BASE32.encode(bytes).into_bytes(),
            Format::Base32NoPad => BASE32_NOPAD.encode(bytes).into_bytes(),
            Format::Pem => key(bytes),
            Format::Spki => public_key(bytes),
            Format::Crt => certificate(bytes),
            Format::CrtKey => key(private_key.as_ref()?),
            Format::CrtKeyDer => private_key.clone()?,
            Format::Chain => chain.iter().flat_map(|der| certificate(der)).collect(),
            Format::ChainFromRoot => chain.iter().rev().chain([bytes]).flat_map(|der| certificate(der)).collect(),
        })
    }
}

impl<'a> Secrets<'a> {
    pub fn new(tx: &'a Connection, now: u64) -> Secrets<'a> {
        Secrets {
            tx,
            now,
            program: None,
            depth: Cell::new(0),
            owners: RefCell::default(),
            known: RefCell::default(),
            made: RefCell::default(),
            tried: Cell::new(0),
            signed: Cell::new(0),
            size: Cell::new(0),
            hashes: RefCell::default(),
        }
    }

    /// Puts secrets in the place of placeholders, where only text will do.
    pub fn text(&self, session: &Session, text: &str) -> Result<String> {
        let filled = String::from_utf8(self.bytes(session, text)?).ok().filter(|text| !text.contains('\0'));
        filled.ok_or_else(|| Refusal::misconfigured("A secret is in binary form where only text will do".into()))
    }

    /// Puts secrets in the place of placeholders.
    pub fn bytes(&self, session: &Session, text: &str) -> Result<Vec<u8>> {
        let mut filled = Vec::new();
        for part in session.parts(&session.name, text).map_err(|flaw| StoreError::Damaged(flaw.to_string()))? {
            match part {
                Part::Text(text) => filled.extend_from_slice(text.as_bytes()),
                Part::Secret(Placeholder { name, format, json }) => {
                    let written = self.value(session, name)?.written(format);
                    let written = if json { written.and_then(escape_json) } else { written };
                    filled.extend(written.ok_or_else(|| {
                        Refusal::misconfigured(format!("Secret '{name}' does not have the format it is asked for"))
                    })?);
                }
            }
            if filled.len() > MAX_CONFIGURATION {
                return Err(too_large());
            }
        }
        Ok(filled)
    }

    /// All forms of the secrets that files of an image may hold: what is between `$$SCONE::` and `$$`, and the value. One that
    /// cannot be had now is left out.
    pub fn forms(&self, session: &Session, image: &Image, room: &mut Room) -> Result<Vec<(String, Vec<u8>)>> {
        let may_hold = |name: &String| image.provide_secrets.as_ref().is_none_or(|names| names.contains(name));
        let mut forms = Vec::new();
        for name in session.secrets.iter().map(|secret| &secret.name).filter(|name| may_hold(name)) {
            let value = match self.value(session, name) {
                Ok(value) => value,
                Err(Stop::Refused(_)) if !self.is_exhausted() => continue,
                Err(stop) => return Err(stop),
            };
            for (suffix, format) in Format::SPELLINGS.iter().chain(Format::DEPRECATED) {
                let spelled = format!("{name}{suffix}");
                // A secret declared by the whole name comes first.
                let is_another = !suffix.is_empty() && session.secret(&spelled).is_some();
                if let Some(written) = value.written(*format).filter(|_| !is_another) {
                    room.take(spelled.len() + written.len())?;
                    forms.push((spelled, written));
                }
            }
        }
        Ok(forms)
    }

    /// What services of the session must show, as it holds now: secrets may stand for any part of it.
    pub fn security(&self, session: &Session) -> Result<Security> {
        self.put_together(session, "security", &session.security, |security| match security {
            Or::Given(security) => session.check_security(&security).is_ok().then_some(security),
            Or::Placeholder(_) => None,
        })
    }

    /// The variants of a service's attestation, as they are now.
    pub fn variants(&self, session: &Session, service: &Service) -> Result<Vec<Variant>> {
        let path = "services.attestation";
        self.put_together(session, path, &service.attestation, |variants| check_variants(path, variants).ok())
    }

    /// A part of the policy as it is now, if it keeps the rules. What is wrong with it is not said: it may be a secret.
    fn put_together<T: Serialize + DeserializeOwned, U>(
        &self,
        session: &Session,
        path: &str,
        part: &T,
        check: impl FnOnce(T) -> Option<U>,
    ) -> Result<U> {
        let value_of = |placeholder: &Placeholder<'_>| self.part(session, placeholder);
        match session.put_together(path, part, &Weight::of_a_policy(), value_of) {
            Ok(part) => check(part).ok_or_else(|| not_valid(path)),
            Err(Unresolved::Wrong(_)) => Err(not_valid(path)),
            Err(Unresolved::Unknown(stop)) => Err(stop),
        }
    }

    /// What a placeholder stands for in a part of the policy.
    fn part(&self, session: &Session, placeholder: &Placeholder<'_>) -> Result<(Kind, String)> {
        let value = self.value(session, placeholder.name)?;
        let may_stand = value.kind.may_stand_in_policy();
        let text = may_stand.then(|| value.written(placeholder.format)).flatten();
        let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
        Ok((value.kind, text.ok_or_else(|| not_valid(placeholder.name))?))
    }

    /// A shared secret of one-time passwords.
    pub fn shared_secret(&self, session: &Session, text: &str) -> Result<Vec<u8>> {
        decode_shared_secret(&self.text(session, text)?).ok_or_else(|| {
            Refusal::misconfigured("The One-time Password's shared secret is not base32 of at least 128 bits".into())
        })
    }

    /// The value of a declared secret, here or where it is imported from; both sides must agree (section 8, point 7).
    pub fn value(&self, session: &Session, name: &str) -> Result<Rc<Value>> {
        let key = [&session.name, name].map(|name: &str| name.to_owned());
        if let Some(known) = self.known.borrow().get(&key) {
            return known.clone().map_err(Stop::Refused);
        }
        // Imports can lead in a circle, which no session sees.
        let depth = self.depth.get();
        if depth > MAX_DEPTH {
            return Err(Refusal::misconfigured(format!("Secret '{name}' is made of too many others, or of itself")));
        }
        self.depth.set(depth + 1);
        let value = settle(self.value_here_or_there(session, name));
        self.depth.set(depth);
        let value = value?;
        self.known.borrow_mut().insert(key, value.clone());
        value.map_err(Stop::Refused)
    }

    fn value_here_or_there(&self, session: &Session, name: &str) -> Result<Rc<Value>> {
        let declared =
            session.secret(name).ok_or_else(|| StoreError::Damaged(format!("secret '{name}' is not declared")))?;
        let Some(import) = &declared.import else { return self.made_once(session, name, session) };
        let SecretImport { session: from, session_hash, secret: there } = import;
        let owner = self.owner(from, session_hash.as_deref())?;
        let owner = owner.as_ref().map(|owner| &owner.session);
        let offered = owner.filter(|owner| self.exports_secret(owner, there, session));
        let offered = offered.and_then(|owner| Some((owner, owner.secret(there)?)));
        let (owner, original) = offered.ok_or_else(|| {
            Refusal::misconfigured(format!("Session '{from}' does not export secret '{there}' to '{}'", session.name))
        })?;
        let agrees = declared.kind.is_none_or(|kind| original.kind == Some(kind))
            && declared.size.is_none_or(|size| original.size == Some(size));
        if !agrees {
            let problem = format!("Secret '{there}' of session '{from}' has another kind or size than its import");
            return Err(Refusal::misconfigured(problem));
        }
        self.made_once(owner, there, session)
    }

    /// The active session of that name; a refusal if it is not the version that an import pins.
    pub fn owner(&self, name: &str, hash: Option<&str>) -> Result<Option<Rc<Stored>>> {
        let known = self.owners.borrow().get(name).cloned();
        let owner = match known {
            Some(owner) => owner,
            None => {
                // What is refused once is refused from then on: the size stays.
                self.spend(0, 0)?;
                self.spend(0, store::length(self.tx, name)?)?;
                let owner = store::active(self.tx, name)?.map(Rc::new);
                self.owners.borrow_mut().insert(name.to_owned(), owner.clone());
                owner
            }
        };
        if owner.as_ref().is_some_and(|owner| hash.is_some_and(|hash| owner.hash != hash)) {
            return Err(Refusal::misconfigured(format!("Session '{name}' is not the version that its import names")));
        }
        Ok(owner)
    }

    /// Whether a reference means this session, and this version of it.
    pub fn is_meant(&self, id: &SessionId, session: &Session) -> bool {
        self.is_named(&id.session, id.session_hash.as_deref(), session)
    }

    fn is_named(&self, name: &str, hash: Option<&str>, session: &Session) -> bool {
        let has_hash = |hash: &str| {
            if let Some(known) = self.hashes.borrow().get(name) {
                return known == hash;
            }
            let found = session.hash();
            let is_meant = found == hash;
            self.hashes.borrow_mut().insert(name.to_owned(), found);
            is_meant
        };
        name == session.name && hash.is_none_or(has_hash)
    }

    pub fn exports_secret(&self, owner: &Session, name: &str, to: &Session) -> bool {
        owner.secret(name).is_some_and(|secret| {
            secret.export.iter().any(|export| match (&export.session, &export.namespace) {
                (Some(name), None) => self.is_named(name, export.session_hash.as_deref(), to),
                (None, Some(namespace)) => {
                    let below = to.name.strip_prefix(namespace.as_str());
                    below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                }
                _ => false,
            })
        })
    }

    fn needs_too_much(&self) -> bool {
        self.tried.get() > MAX_MADE || self.size.get() > MAX_SIZE
    }

    fn signs_too_much(&self) -> bool {
        self.signed.get() > MAX_SIGNED
    }

    /// Whether something was refused since it would have been too much: what was refused is counted, too.
    fn is_exhausted(&self) -> bool {
        self.needs_too_much() || self.signs_too_much()
    }

    /// Before anything is made: whatever becomes of it.
    fn spend(&self, secrets: usize, size: usize) -> Result<()> {
        self.tried.set(self.tried.get() + secrets);
        self.size.set(self.size.get() + size);
        if !self.needs_too_much() {
            return Ok(());
        }
        Err(Refusal::misconfigured(format!(
            "More than {MAX_MADE} secrets are needed, or more than {MAX_SIZE} bytes of them and their sessions"
        )))
    }

    /// Before a signature is made.
    pub fn spend_signature(&self) -> Result<()> {
        self.signed.set(self.signed.get() + 1);
        if !self.signs_too_much() {
            return Ok(());
        }
        Err(Refusal::misconfigured(format!("More than {MAX_SIGNED} certificates and tokens have to be signed")))
    }

    /// The value of a secret that `owner` does not import, for `reader`.
    fn made_once(&self, owner: &Session, name: &str, reader: &Session) -> Result<Rc<Value>> {
        let key = [&owner.name, name, &reader.name].map(|name: &str| name.to_owned());
        if let Some(made) = self.made.borrow().get(&key) {
            return Ok(made.clone());
        }
        self.spend(1, 0)?;
        let value = Rc::new(self.own_value(owner, name, reader)?);
        self.spend(0, value.size())?;
        self.made.borrow_mut().insert(key, value.clone());
        Ok(value)
    }

    fn own_value(&self, owner: &Session, name: &str, reader: &Session) -> Result<Value> {
        let damaged = || StoreError::Damaged(format!("secret '{name}' has no kind or no valid value"));
        let secret = owner.secret(name).ok_or_else(damaged)?;
        let kind = secret.kind.ok_or_else(damaged)?;
        let explicit = match secret.explicit_value() {
            Some(value) => Some(value.ok_or_else(damaged)?),
            None => None,
        };
        match kind {
            Kind::Ascii | Kind::Binary | Kind::ConfigFragment => {
                let bytes = match explicit {
                    Some(bytes) => bytes,
                    None => store::drawn_secret(self.tx, &owner.name, name)?,
                };
                Ok(Value::plain(kind, bytes))
            }
            Kind::PrivateKey => {
                let bytes = match (explicit, self.kept(&owner.name, name)?) {
                    (Some(bytes), _) => bytes,
                    (None, Some((label, bytes))) if label == secret.label() => bytes,
                    (None, _) => {
                        let key = draw_key(secret.key_type.ok_or_else(damaged)?)?;
                        self.keep(&owner.name, name, &secret.label(), &key)?;
                        key
                    }
                };
                Ok(Value::plain(kind, bytes))
            }
            Kind::PublicKey => Ok(Value::plain(kind, self.public_key(owner, secret, explicit)?)),
            Kind::X509 | Kind::X509Ca => self.certificate(owner, name, explicit, reader),
            Kind::Jwt => Ok(Value::plain(kind, self.jwt(owner, secret)?)),
        }
    }

    pub fn kept(&self, session: &str, name: &str) -> std::result::Result<Option<(String, Vec<u8>)>, rusqlite::Error> {
        self.tx
            .prepare_cached("SELECT kind, value FROM secret WHERE session = ?1 AND name = ?2")?
            .query_row([session, name], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
    }

    pub fn keep(
        &self,
        session: &str,
        name: &str,
        label: &str,
        value: &[u8],
    ) -> std::result::Result<(), rusqlite::Error> {
        self.tx
            .prepare_cached("INSERT OR REPLACE INTO secret (session, name, kind, value) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![session, name, label, value])
            .map(drop)
    }
}

/// What a configuration may still hold, in bytes.
pub(super) struct Room(usize);

impl Room {
    pub fn of_a_configuration() -> Room {
        Room(MAX_CONFIGURATION)
    }

    pub fn take(&mut self, size: usize) -> Result<()> {
        self.0 = self.0.checked_sub(size).ok_or_else(too_large)?;
        Ok(())
    }
}

fn not_valid(path: &str) -> Stop<Refusal> {
    Refusal::misconfigured(format!("What placeholders stand for in the session's '{path}' is not valid there"))
}

pub(super) fn too_large() -> Stop<Refusal> {
    Refusal::misconfigured(format!("The configuration is larger than {MAX_CONFIGURATION} bytes"))
}
