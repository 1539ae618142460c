//! Secrets in a policy: what they are, and what their values must look like (`reference/scone.md` section 2.9).

use std::collections::BTreeMap;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};

use super::{is_default, syntax};

/// A secret this session owns (with a value of its own, or drawn by CAS), or imports.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// What placeholders call it.
    pub name: String,
    /// Mandatory, except for an import: there it is optional, and checked against the owner's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// For ascii and binary: in bytes, 20 by default. For an import: optional, and checked against the owner's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// An explicit value: text for ascii, hex for binary, PEM for keys and certificates. Absent: CAS draws one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// For a private key that CAS draws: its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_type: Option<KeyType>,
    /// For a private key that CAS draws: whether it survives an update.
    #[serde(default, skip_serializing_if = "is_default")]
    pub migrate: bool,
    /// For a certificate or a public key: the secret that is its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key: Option<String>,
    /// For a certificate: the secret that is its issuer's certificate. Absent: self-signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// For a certificate: its common name. Absent: the first DNS name, else the secret's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common_name: Option<String>,
    /// For a certificate: its extended key usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// The old spelling of `san: dns:…`; empty in normal form.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing)]
    pub(super) dns: Vec<String>,
    /// For a certificate: its names, `dns:NAME` and `ip:ADDRESS`.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub san: Vec<String>,
    /// For a certificate: how long it is valid. Absent: virtually for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_for: Option<String>,
    /// For a JWT: the secret whose private key signs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// For a JWT: how it is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alg: Option<Algorithm>,
    /// For a JWT: how long it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validity: Option<Validity>,
    /// For a JWT: its claims, texts all, without those that CAS makes. A text that is one placeholder stands for its value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub payload: BTreeMap<String, serde_json::Value>,
    /// Who may import it.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<SecretExport>,
    /// The secret it is, if another session owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<SecretImport>,
    /// Whether everybody may read it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub export_public: bool,
}

/// How a JWT is signed (RFC 7518 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// ECDSA on NIST P-384 with SHA-384.
    ES384,
}

/// How long a JWT is valid.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validity {
    /// From the moment at which it is made.
    #[serde(rename = "for")]
    pub duration: String,
}

/// Who may import a secret: a session, or every session in a namespace, including the namespace's own.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretExport {
    /// A session's name. It need not exist yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The hash its active version must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_hash: Option<String>,
    /// A namespace's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// Another session's secret.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretImport {
    /// The session that owns it.
    pub session: String,
    /// The hash its active version must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_hash: Option<String>,
    /// Its name there.
    pub secret: String,
}

/// What a secret is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Printable text.
    Ascii,
    /// Any bytes.
    Binary,
    /// A private key.
    PrivateKey,
    /// A public key.
    PublicKey,
    /// A certificate that signs no other.
    X509,
    /// A certificate that signs others.
    X509Ca,
    /// A part of a session. Its value is text, or JSON.
    ConfigFragment,
    /// A JSON Web Token (RFC 7519), made anew for each start.
    Jwt,
}

impl Kind {
    /// Whether CAS draws it byte by byte.
    pub fn is_bytes(self) -> bool {
        matches!(self, Kind::Ascii | Kind::Binary)
    }

    /// Whether a placeholder for it may stand for a part of a policy: keys, certificates and tokens are none.
    pub fn may_stand_in_policy(self) -> bool {
        self.is_bytes() || self == Kind::ConfigFragment
    }

    /// As policies write it.
    pub fn text(self) -> &'static str {
        match self {
            Kind::Ascii => "ascii",
            Kind::Binary => "binary",
            Kind::PrivateKey => "private-key",
            Kind::PublicKey => "public-key",
            Kind::X509 => "x509",
            Kind::X509Ca => "x509-ca",
            Kind::ConfigFragment => "config-fragment",
            Kind::Jwt => "jwt",
        }
    }
}

/// What a private key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyType {
    /// ECDSA on NIST P-256.
    #[serde(rename = "P-256")]
    P256,
    /// ECDSA on NIST P-384.
    #[serde(rename = "P-384")]
    P384,
    /// EdDSA on Curve25519.
    Ed25519,
    /// Known, but CAS draws no such key.
    #[serde(rename = "RSA-2048")]
    Rsa2048,
    /// Known, but CAS draws no such key.
    #[serde(rename = "RSA-3072")]
    Rsa3072,
}

/// Which end of a TLS connection a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// The end that is called.
    Server,
    /// The end that calls.
    Client,
}

impl Secret {
    /// The bytes of an explicit value (of keys and certificates, the DER); `Some(None)` if it is not what its kind says.
    pub fn explicit_value(&self) -> Option<Option<Vec<u8>>> {
        let value = self.value.as_ref()?;
        Some(match self.kind {
            Some(Kind::Binary) => data_encoding::HEXLOWER_PERMISSIVE.decode(value.as_bytes()).ok(),
            Some(Kind::PrivateKey) => {
                let key = PrivatePkcs8KeyDer::from_pem_slice(value.as_bytes()).ok();
                key.map(|key| key.secret_pkcs8_der().to_vec()).filter(|der| is_pkcs8(der))
            }
            Some(Kind::PublicKey) => {
                let key = SubjectPublicKeyInfoDer::from_pem_slice(value.as_bytes()).ok();
                key.map(|key| key.to_vec()).filter(|der| rcgen::SubjectPublicKeyInfo::from_der(der).is_ok())
            }
            Some(Kind::Jwt) => None,
            Some(Kind::X509 | Kind::X509Ca) => {
                CertificateDer::from_pem_slice(value.as_bytes()).ok().map(|certificate| certificate.to_vec())
            }
            Some(Kind::ConfigFragment) => Some(value.clone().into_bytes()),
            _ => value.bytes().all(|c| (0x20..0x7f).contains(&c)).then(|| value.clone().into_bytes()),
        })
    }

    /// How long a certificate or a JWT is valid, in seconds; `None`: virtually for ever.
    pub fn lifetime(&self) -> Option<u64> {
        duration(self.valid_for.as_deref().or(self.validity.as_ref().map(|validity| validity.duration.as_str()))?)
    }

    /// What CAS keeps beside a value it drew, to tell whether an update may keep the value (section 2.9): kind, and for a
    /// private key its type and whether it migrates.
    pub fn label(&self) -> String {
        let kind = self.kind.map_or("", Kind::text);
        match (self.kind, self.key_type) {
            (Some(Kind::PrivateKey), Some(key_type)) => {
                format!("{kind} {key_type:?}{}", if self.migrate { " migrate" } else { "" })
            }
            _ => kind.to_owned(),
        }
    }

    /// Whether a value with that label and of that size, drawn for the session before, stays this secret's.
    pub fn keeps(&self, label: &str, size: usize) -> bool {
        let same = self.import.is_none() && self.value.is_none() && self.label() == label;
        match self.kind {
            Some(Kind::Ascii | Kind::Binary) => same && self.size == Some(size),
            Some(Kind::PrivateKey) => same && self.migrate,
            _ => false,
        }
    }
}

/// Whether this begins as a private key of any type does (PKCS#8, RFC 5958): a sequence over all of it, whose version is 0 or 1.
fn is_pkcs8(der: &[u8]) -> bool {
    let (length, content) = match der {
        [0x30, 0x82, high, low, content @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), content),
        [0x30, 0x81, length, content @ ..] | [0x30, length @ ..=0x7f, content @ ..] => (usize::from(*length), content),
        _ => return false,
    };
    content.len() == length && matches!(content, [0x02, 0x01, 0 | 1, 0x30, ..])
}

/// The bytes of a shared secret: RFC 4648 base32, upper case, padded or not, at least 128 bits (section 3.1).
/// Assumption: lower case is refused; SCONE does not say.
pub fn decode_shared_secret(text: &str) -> Option<Vec<u8>> {
    let bytes = data_encoding::BASE32_NOPAD.decode(text.trim_end_matches('=').as_bytes()).ok()?;
    (bytes.len() >= 16).then_some(bytes)
}

/// The seconds of `90 days`, `59d`, `1 year 6 months`. Assumption, since SCONE shows examples only: a year is 365.25 days, and a
/// month a twelfth of that.
fn duration(text: &str) -> Option<u64> {
    let mut seconds: u64 = 0;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let number = &rest[..rest.find(|c: char| !c.is_ascii_digit())?];
        rest = rest[number.len()..].trim_start();
        let unit = &rest[..rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len())];
        rest = rest[unit.len()..].trim_start();
        let each = match unit {
            "s" | "sec" | "second" | "seconds" => 1,
            "m" | "min" | "minute" | "minutes" => 60,
            "h" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            "month" | "months" => 2_629_800,
            "y" | "year" | "years" => 31_557_600,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(each)?)?;
    }
    // A certificate could not state a later end.
    (1..=2000 * 31_557_600).contains(&seconds).then_some(seconds)
}
