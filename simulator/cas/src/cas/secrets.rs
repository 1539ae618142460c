//! What a session's secrets are worth at the moment a service starts: explicit, drawn, imported, or a certificate that CAS
//! makes. Keys and certificates are drawn at their first use and kept until an update, or the certificate's end, asks for new
//! ones (`reference/scone.md` section 2.9).

use data_encoding::{BASE32, BASE32_NOPAD, BASE64, BASE64URL};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OptionalExtension, params};
use rustls::pki_types::CertificateDer;
use scone_protocol::hex;
use time::OffsetDateTime;

use super::{CasError, Refusal, Stop};
use crate::session::placeholder::{Format, Part, Placeholder, parts};
use crate::session::{Endpoint, KeyType, Kind, SecretImport, Session, SessionId, decode_shared_secret};
use crate::store::{self, StoreError};
use crate::tls;

type Result<T> = std::result::Result<T, Stop<Refusal>>;

/// What all texts of one configuration may come to, in bytes: placeholders are short, what they stand for is not.
pub(super) const MAX_CONFIGURATION: usize = 256 * 1024;

/// The secrets of all sessions, now.
pub(super) struct Secrets<'a> {
    pub tx: &'a Connection,
    /// Seconds since the epoch.
    pub now: u64,
}

/// A secret's value.
struct Value {
    kind: Kind,
    /// Of a key (PKCS#8) and of a certificate, the DER.
    bytes: Vec<u8>,
    /// Of a certificate, as far as it can be had.
    private_key: Option<Vec<u8>>,
    /// Of a certificate: those above it, the root last.
    chain: Vec<Vec<u8>>,
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
        Some(match format {
            Format::Plain => match kind {
                Kind::Ascii | Kind::Binary => bytes.clone(),
                Kind::PrivateKey => key(bytes),
                Kind::X509 | Kind::X509Ca => certificate(bytes),
            },
            Format::Bin | Format::Der | Format::CrtDer => bytes.clone(),
            Format::Hex => hex(bytes).into_bytes(),
            Format::Base64 => BASE64.encode(bytes).into_bytes(),
            Format::Base64Url => BASE64URL.encode(bytes).into_bytes(),
            Format::Base32 => BASE32.encode(bytes).into_bytes(),
            Format::Base32NoPad => BASE32_NOPAD.encode(bytes).into_bytes(),
            Format::Pem => key(bytes),
            Format::Crt => certificate(bytes),
            Format::CrtKey => key(private_key.as_ref()?),
            Format::CrtKeyDer => private_key.clone()?,
            Format::Chain => chain.iter().flat_map(|der| certificate(der)).collect(),
        })
    }
}

impl Secrets<'_> {
    /// Puts secrets in the place of placeholders, where only text will do.
    pub fn text(&self, session: &Session, text: &str) -> Result<String> {
        let filled = String::from_utf8(self.bytes(session, text)?).ok().filter(|text| !text.contains('\0'));
        filled.ok_or_else(|| Refusal::misconfigured("A secret is in binary form where only text will do".into()))
    }

    /// Puts secrets in the place of placeholders.
    pub fn bytes(&self, session: &Session, text: &str) -> Result<Vec<u8>> {
        let mut filled = Vec::new();
        for part in parts(text).map_err(StoreError::Damaged)? {
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

    /// A shared secret of one-time passwords.
    pub fn shared_secret(&self, session: &Session, text: &str) -> Result<Vec<u8>> {
        decode_shared_secret(&self.text(session, text)?).ok_or_else(|| {
            Refusal::misconfigured("The One-time Password's shared secret is not base32 of at least 128 bits".into())
        })
    }

    /// The value of a declared secret, here or where it is imported from; both sides must agree (section 8, point 7).
    fn value(&self, session: &Session, name: &str) -> Result<Value> {
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
            Kind::Ascii | Kind::Binary => {
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
            Kind::X509 | Kind::X509Ca => self.certificate(owner, name, explicit, reader),
        }
    }

    fn certificate(&self, owner: &Session, name: &str, explicit: Option<Vec<u8>>, reader: &Session) -> Result<Value> {
        let damaged = || StoreError::Damaged(format!("certificate '{name}' is not declared as it must be"));
        let secret = owner.secret(name).ok_or_else(damaged)?;
        let kind = secret.kind.ok_or_else(damaged)?;
        let key = secret.private_key.as_ref().map(|key| self.value(owner, key)).transpose()?;
        let key = key.filter(|key| key.kind == Kind::PrivateKey).map(|key| key.bytes);
        let issuer = secret.issuer.as_ref().map(|issuer| self.value(owner, issuer)).transpose()?;

        let bytes = match explicit {
            Some(bytes) => bytes,
            None => {
                let key = key.as_ref().ok_or_else(damaged)?;
                // It is made anew if it does not fit what it is made of any more, and before it ends.
                let made_of = fingerprint(key, issuer.as_ref());
                let kept = self.kept(&owner.name, name)?.filter(|(label, _)| {
                    let mut words = label.split(' ').skip(1);
                    let fits = words.next() == Some(&made_of);
                    fits && words.next().is_none_or(|renew| renew.parse().is_ok_and(|renew: u64| self.now < renew))
                });
                match kept {
                    Some((_, bytes)) => bytes,
                    None => {
                        let (bytes, renew) = self.make_certificate(secret, kind, key, issuer.as_ref())?;
                        let renew = renew.map_or(String::new(), |renew| format!(" {renew}"));
                        let label = format!("{} {made_of}{renew}", kind.text());
                        self.keep(&owner.name, name, &label, &bytes)?;
                        bytes
                    }
                }
            }
        };
        // Who imports a certificate has its private key only if that is exported, too.
        let may_have_key = owner.name == reader.name
            || secret.private_key.as_ref().is_some_and(|key| exports_secret(owner, key, reader));
        let chain = issuer.map_or(Vec::new(), |issuer| [vec![issuer.bytes], issuer.chain].concat());
        Ok(Value { kind, bytes, private_key: key.filter(|_| may_have_key), chain })
    }

    /// A new certificate, and when to make the next one, in seconds since the epoch.
    fn make_certificate(
        &self,
        secret: &crate::session::Secret,
        kind: Kind,
        key: &[u8],
        issuer: Option<&Value>,
    ) -> Result<(Vec<u8>, Option<u64>)> {
        let failed = |error: rcgen::Error| CasError::Certificate(error.to_string());
        let no_time = |_| CasError::Certificate("its time is out of range".into());
        let dns = secret.san.iter().find_map(|name| name.strip_prefix("dns:"));
        let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
        params.distinguished_name = DistinguishedName::new();
        let common_name = secret.common_name.as_deref().or(dns).unwrap_or(&secret.name);
        params.distinguished_name.push(DnType::CommonName, common_name);
        let from = OffsetDateTime::from_unix_timestamp(self.now.cast_signed()).map_err(no_time)?;
        params.not_before = from;
        let mut renew = None;
        if let Some(seconds) = secret.validity() {
            let end = self.now.saturating_add(seconds);
            params.not_after = OffsetDateTime::from_unix_timestamp(end.cast_signed()).map_err(no_time)?;
            // Assumption: after two thirds of its life. SCONE says "before they expire".
            renew = Some(self.now + seconds / 3 * 2);
        }
        for name in &secret.san {
            let invalid = || CasError::Certificate(format!("'{name}' is no name"));
            params.subject_alt_names.push(match name.split_once(':') {
                Some(("dns", name)) => SanType::DnsName(name.try_into().map_err(failed)?),
                Some(("ip", address)) => SanType::IpAddress(address.parse().map_err(|_| invalid())?),
                _ => return Err(invalid().into()),
            });
        }
        match kind {
            Kind::X509Ca => {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            }
            _ => {
                params.is_ca = IsCa::ExplicitNoCa;
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
                params.extended_key_usages = match secret.endpoint {
                    Some(Endpoint::Server) => vec![ExtendedKeyUsagePurpose::ServerAuth],
                    Some(Endpoint::Client) => vec![ExtendedKeyUsagePurpose::ClientAuth],
                    None => Vec::new(),
                };
            }
        }
        params.use_authority_key_identifier_extension = issuer.is_some();
        let key = KeyPair::try_from(key).map_err(failed)?;
        let made = match issuer {
            None => params.self_signed(&key).map_err(failed)?,
            Some(issuer) => {
                let name = secret.issuer.as_deref().unwrap_or_default();
                let issuers_key = issuer.private_key.as_deref().filter(|_| issuer.kind == Kind::X509Ca);
                let issuers_key = issuers_key.ok_or_else(|| {
                    Refusal::misconfigured(format!("Certificate '{name}' cannot sign: its private key is not there"))
                })?;
                let issuers_key = KeyPair::try_from(issuers_key).map_err(failed)?;
                let certificate = CertificateDer::from(issuer.bytes.as_slice());
                let issuer = Issuer::from_ca_cert_der(&certificate, issuers_key).map_err(failed)?;
                params.signed_by(&key, &issuer).map_err(failed)?
            }
        };
        Ok((made.der().to_vec(), renew))
    }

    fn kept(&self, session: &str, name: &str) -> std::result::Result<Option<(String, Vec<u8>)>, rusqlite::Error> {
        self.tx
            .prepare_cached("SELECT kind, value FROM secret WHERE session = ?1 AND name = ?2")?
            .query_row([session, name], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
    }

    fn keep(&self, session: &str, name: &str, label: &str, value: &[u8]) -> std::result::Result<(), rusqlite::Error> {
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

fn exports_secret(owner: &Session, name: &str, to: &Session) -> bool {
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

pub(super) fn too_large() -> Stop<Refusal> {
    Refusal::misconfigured(format!("The configuration is larger than {MAX_CONFIGURATION} bytes"))
}

fn draw_key(key_type: KeyType) -> std::result::Result<Vec<u8>, CasError> {
    let algorithm = match key_type {
        KeyType::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        KeyType::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        KeyType::Ed25519 => &rcgen::PKCS_ED25519,
        KeyType::Rsa2048 | KeyType::Rsa3072 => {
            return Err(StoreError::Damaged("an RSA key cannot be drawn".into()).into());
        }
    };
    let key = KeyPair::generate_for(algorithm).map_err(|error| CasError::Certificate(error.to_string()))?;
    Ok(key.serialize_der())
}

/// Of what a certificate is made of.
fn fingerprint(key: &[u8], issuer: Option<&Value>) -> String {
    let mut hash = Context::new(&SHA256);
    for part in [key, issuer.map_or(&[], |issuer| issuer.bytes.as_slice())] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex(hash.finish().as_ref())
}

/// Escaped for use inside a JSON string; `None` if it is no text.
fn escape_json(written: Vec<u8>) -> Option<Vec<u8>> {
    let quoted = serde_json::Value::from(String::from_utf8(written).ok()?).to_string();
    Some(quoted.as_bytes()[1..quoted.len() - 1].to_vec())
}
