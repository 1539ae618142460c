//! The values of a session's secrets at the moment a service starts: explicit, drawn, imported, or a certificate that CAS
//! makes. Keys and certificates are drawn at their first use and kept until an update, or the certificate's end, asks for new
//! ones (`reference/scone.md` section 2.9).

use std::cell::Cell;

use data_encoding::{BASE32, BASE32_NOPAD, BASE64, BASE64URL};
use rusqlite::{Connection, OptionalExtension, params};
use scone_protocol::{escape_json, hex};

use super::Stop;
use super::certificates::draw_key;
use super::release::Refusal;
use crate::session::placeholder::{Format, Part, Placeholder};
use crate::session::{
    Image, Kind, Or, SecretImport, Security, Service, Session, SessionId, Unresolved, Variant, check_variants,
    decode_shared_secret, fragment,
};
use crate::store::{self, StoreError};
use crate::tls;

pub(super) type Result<T> = std::result::Result<T, Stop<Refusal>>;

/// The largest size of all texts of one configuration, in bytes. Placeholders are short; what they stand for need not be.
pub(super) const MAX_CONFIGURATION: usize = 256 * 1024;

/// How many secrets a secret may be made of, one of the other: a certificate, those above it, their keys and imports.
const MAX_DEPTH: usize = 32;

/// The secrets of all sessions, now.
pub(super) struct Secrets<'a> {
    pub tx: &'a Connection,
    /// Seconds since the epoch.
    pub now: u64,
    /// The measurement of the program that is being attested, if one is.
    pub program: Option<&'a str>,
    /// How many values are being made of one another.
    depth: Cell<usize>,
}

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
    pub fn new(tx: &'a Connection, now: u64, program: Option<&'a str>) -> Secrets<'a> {
        Secrets { tx, now, program, depth: Cell::new(0) }
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
    pub fn forms(&self, session: &Session, image: &Image) -> Result<Vec<(String, Vec<u8>)>> {
        let may_hold = |name: &String| image.provide_secrets.as_ref().is_none_or(|names| names.contains(name));
        let mut forms = Vec::new();
        for name in session.secrets.iter().map(|secret| &secret.name).filter(|name| may_hold(name)) {
            let value = match self.value(session, name) {
                Ok(value) => value,
                Err(Stop::Refused(_)) => continue,
                Err(failed) => return Err(failed),
            };
            let spelled = Format::SPELLINGS.iter().chain(Format::DEPRECATED);
            forms.extend(
                spelled.filter_map(|(suffix, format)| Some((format!("{name}{suffix}"), value.written(*format)?))),
            );
        }
        Ok(forms)
    }

    /// What services of the session must show, as it holds now: secrets may stand for any part of it.
    pub fn security(&self, session: &Session) -> Result<Security> {
        let path = "security";
        let security = session.put_together(path, &session.security, |placeholder| self.part(session, placeholder));
        checked(path, security, |security| match security {
            Or::Given(security) => session.check_security(&security).is_ok().then_some(security),
            Or::Placeholder(_) => None,
        })
    }

    /// The variants of a service's attestation, as they are now.
    pub fn variants(&self, session: &Session, service: &Service) -> Result<Vec<Variant>> {
        let path = "services.attestation";
        let variants = session.put_together(path, &service.attestation, |placeholder| self.part(session, placeholder));
        checked(path, variants, |variants| check_variants(path, variants).ok())
    }

    /// What a placeholder stands for in a part of the policy.
    fn part(&self, session: &Session, placeholder: &Placeholder<'_>) -> Result<serde_json::Value> {
        let value = self.value(session, placeholder.name)?;
        let text = value.written(placeholder.format).and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or_else(|| not_valid(placeholder.name))?;
        Ok(if value.kind == Kind::ConfigFragment { fragment(&text) } else { text.into() })
    }

    /// A shared secret of one-time passwords.
    pub fn shared_secret(&self, session: &Session, text: &str) -> Result<Vec<u8>> {
        decode_shared_secret(&self.text(session, text)?).ok_or_else(|| {
            Refusal::misconfigured("The One-time Password's shared secret is not base32 of at least 128 bits".into())
        })
    }

    /// The value of a declared secret, here or where it is imported from; both sides must agree (section 8, point 7).
    pub fn value(&self, session: &Session, name: &str) -> Result<Value> {
        // Imports can lead in a circle, which no session sees.
        let depth = self.depth.get();
        if depth > MAX_DEPTH {
            return Err(Refusal::misconfigured(format!("Secret '{name}' is made of too many others, or of itself")));
        }
        self.depth.set(depth + 1);
        let value = self.value_here_or_there(session, name);
        self.depth.set(depth);
        value
    }

    fn value_here_or_there(&self, session: &Session, name: &str) -> Result<Value> {
        let declared =
            session.secret(name).ok_or_else(|| StoreError::Damaged(format!("secret '{name}' is not declared")))?;
        let Some(import) = &declared.import else { return self.own_value(session, name, session) };
        let SecretImport { session: from, session_hash, secret: there } = import;
        let owner = owner(self.tx, from, session_hash.as_deref())?;
        let offered = owner.as_ref().filter(|owner| exports_secret(owner, there, session));
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
        self.own_value(owner, there, session)
    }

    /// The value of a secret that `owner` does not import, for `reader`.
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

/// The active session of that name; a refusal if it is not the version that an import pins.
pub(super) fn owner(tx: &Connection, name: &str, hash: Option<&str>) -> Result<Option<Session>> {
    let owner = store::active(tx, name)?;
    if owner.as_ref().is_some_and(|owner| hash.is_some_and(|hash| owner.hash != hash)) {
        return Err(Refusal::misconfigured(format!("Session '{name}' is not the version that its import names")));
    }
    Ok(owner.map(|owner| owner.session))
}

/// Whether a reference means this session, and this version of it.
pub(super) fn is_meant(id: &SessionId, session: &Session) -> bool {
    id.session == session.name && id.session_hash.as_ref().is_none_or(|hash| *hash == session.hash())
}

pub(super) fn exports_secret(owner: &Session, name: &str, to: &Session) -> bool {
    owner.secret(name).is_some_and(|secret| {
        secret.export.iter().any(|export| match (&export.session, &export.namespace) {
            (Some(name), None) => {
                let id = SessionId { session: name.clone(), session_hash: export.session_hash.clone() };
                is_meant(&id, to)
            }
            (None, Some(namespace)) => {
                to.name.strip_prefix(namespace.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            _ => false,
        })
    })
}

/// A part of the policy that was put together, if it keeps the rules. What is wrong with it is not said: it may be a secret.
fn checked<T, U>(
    path: &str,
    part: std::result::Result<T, Unresolved<Stop<Refusal>>>,
    check: impl FnOnce(T) -> Option<U>,
) -> Result<U> {
    match part {
        Ok(part) => check(part).ok_or_else(|| not_valid(path)),
        Err(Unresolved::Wrong(_)) => Err(not_valid(path)),
        Err(Unresolved::Unknown(stop)) => Err(stop),
    }
}

fn not_valid(path: &str) -> Stop<Refusal> {
    Refusal::misconfigured(format!("What placeholders stand for in the session's '{path}' is not valid there"))
}

pub(super) fn too_large() -> Stop<Refusal> {
    Refusal::misconfigured(format!("The configuration is larger than {MAX_CONFIGURATION} bytes"))
}
