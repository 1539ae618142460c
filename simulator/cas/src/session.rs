//! The session language (`reference/scone.md` section 2): a policy's text becomes a [`Session`], or an error that names the key.
//!
//! Strict: a key that SCONE documents and the simulator does not serve is refused as "not simulated", any other as unknown;
//! nothing is ever ignored. A parsed session is in normal form: defaults written out, short spellings spelled out, references
//! absolute. The normal form is what is hashed, stored and read back, so a file and what `read` gives for it are equal.

pub mod placeholder;
mod rules;
mod syntax;
pub mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
pub use scone_protocol::UpdatePolicy;
use scone_protocol::hex;
use serde::{Deserialize, Serialize};

/// The longest policy text, in bytes.
pub const MAX_TEXT: usize = 256 * 1024;

/// A documented key that the simulator does not serve, as a path without list positions: finding one is an error of its own.
pub const NOT_SIMULATED: &[&str] = &[
    "salt",
    "namespace_hash",
    "secret_config",
    "access_policy.list_sessions",
    "access_policy.read.signer",
    "access_policy.update.signer",
    "access_policy.update.require-all",
    "access_policy.create_sessions.signer",
    "access_policy.create_sessions.require-all",
    "services.fspf_path",
    "services.fspf_key",
    "services.fspf_tag",
    "services.fspf_update_policy",
    "services.platforms",
    "services.persistency",
    "images.provide_secrets",
    "volumes.fspf_key",
    "volumes.fspf_tag",
    "volumes.files",
    "volumes.import.cas_url",
    "volumes.import.cas_key",
    "volumes.import.cas_software_key",
    "secrets.export_public",
    "secrets.import_akv",
    "secrets.export.cas_url",
    "secrets.export.cas_key",
    "secrets.export.cas_software_key",
    "secrets.import.cas_url",
    "secrets.import.cas_key",
    "secrets.import.cas_software_key",
    "security.attestation.trusted_scone_qe_pubkeys",
    "security.attestation.must_be_sgx_local",
];

/// A documented value that the simulator does not serve, with the path of its key: as above.
pub const VALUES_NOT_SIMULATED: &[(&str, &str)] = &[
    ("secrets.kind", "public-key"),
    ("secrets.kind", "aad-token"),
    ("secrets.kind", "config-fragment"),
    ("secrets.kind", "pgp-key"),
    ("secrets.kind", "jwt"),
    ("security.attestation.mode", "maa"),
    ("security.attestation.tolerate", "maa-managed-tcb"),
    ("security.attestation.tolerate", "local-attestation-trust-cas-tcb"),
];

/// Why a text is not a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Longer than [`MAX_TEXT`].
    #[error("the session is longer than {MAX_TEXT} bytes")]
    TooLong,
    /// Not YAML, an unknown key, or a value of the wrong shape; says key, line and column.
    #[error("{0}")]
    Syntax(#[from] yaml_serde::Error),
    /// Documented for SCONE, but not served here.
    #[error("not simulated: {0}")]
    NotSimulated(String),
    /// Against a rule of the language.
    #[error("{path}: {problem}")]
    Rule {
        /// The key.
        path: String,
        /// A sentence.
        problem: String,
    },
}

/// A policy, in normal form. Fields stand in the order in which SCONE reads a session back (section 4.2).
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// The language's version: `0.3` to `0.3.10`.
    #[serde(default)]
    pub version: String,
    /// `component[/component...]`: all but the last name the namespace.
    pub name: String,
    /// The hash of the session this one replaces; not part of the hash.
    #[serde(default, deserialize_with = "syntax::predecessor")]
    pub predecessor: Option<String>,
    /// The programs this session configures.
    #[serde(default, deserialize_with = "syntax::list")]
    pub services: Vec<Service>,
    /// What a service's file system looks like.
    #[serde(default, deserialize_with = "syntax::list")]
    pub images: Vec<Image>,
    /// The volumes this session owns or imports.
    #[serde(default, deserialize_with = "syntax::list")]
    pub volumes: Vec<Volume>,
    /// The secrets this session owns or imports.
    #[serde(default, deserialize_with = "syntax::list")]
    pub secrets: Vec<Secret>,
    /// Who may do what with the session.
    #[serde(default)]
    pub access_policy: AccessPolicy,
    /// What a service must show.
    #[serde(default)]
    pub security: Security,
    /// The PEM certificate of who uploaded it, if the access policy refers to the creator. CAS writes it, nobody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creator: Option<String>,
}

/// A program, and all that reaches it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// One name component.
    pub name: String,
    /// The image whose volumes it sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_name: Option<String>,
    /// The program's arguments, `argv[0]` first.
    #[serde(default, deserialize_with = "syntax::command")]
    pub command: Vec<String>,
    /// The program's environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// The program's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pwd: Option<String>,
    /// Alternatives: a program that meets one of them is trusted.
    #[serde(default, deserialize_with = "syntax::list")]
    pub attestation: Vec<Variant>,
    /// The deprecated spelling of `attestation`; empty in normal form.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing)]
    mrenclaves: Vec<String>,
    /// The secret whose codes start this service; beats the session's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_password_shared_secret: Option<String>,
}

/// One way to be trusted: all that it names must be met.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The measurements accepted, 64 lower-case hex digits each. None: any.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub mrenclave: Vec<String>,
    /// Who must have signed the enclave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
}

/// Who must have signed an enclave, as what. No simulated program is signed: checked and kept, and never met.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signer {
    /// The signer, 64 lower-case hex digits.
    pub mrsigner: String,
    /// The product.
    pub isvprodid: u16,
    /// Its security version: this one,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isvsvn: Option<u16>,
    /// or this and later ones,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isvsvn_min: Option<u16>,
    /// or this and earlier ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isvsvn_max: Option<u16>,
}

/// What a service's file system looks like.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// What services call it.
    pub name: String,
    /// The volumes in it.
    #[serde(default, deserialize_with = "syntax::list")]
    pub volumes: Vec<Mount>,
    /// The files put into it.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub injection_files: Vec<InjectionFile>,
}

/// A volume in an image.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The volume.
    pub name: String,
    /// Where the program sees it: an absolute path.
    pub path: String,
    /// What becomes of the program's changes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub update_policy: UpdatePolicy,
}

/// A file that is in the program's memory only.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectionFile {
    /// Where the program sees it: an absolute path.
    pub path: String,
    /// What is in it; placeholders stand for secrets.
    pub content: String,
    /// Its mode, `0o` and octal digits; `0o700` unless told.
    #[serde(default)]
    pub permission: String,
}

/// A volume this session owns, or imports.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name here.
    pub name: String,
    /// Who may import it.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<VolumeExport>,
    /// Whose it is, if not this session's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<VolumeImport>,
}

/// A session that may import a volume.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "syntax::VolumeExport", into = "syntax::VolumeExport")]
pub struct VolumeExport {
    /// Which session. It need not exist yet.
    pub to: SessionId,
    /// The most that the importer may do with it.
    pub update_policy: UpdatePolicy,
    /// What the importer calls it, if not by its name.
    pub volume_alias: Option<String>,
}

/// A session, or one version of it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionId {
    /// Its name.
    pub session: String,
    /// The hash its active version must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_hash: Option<String>,
}

/// Who may import a secret: a session, or all in a namespace and the namespace's own.
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

/// Another session's volume.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeImport {
    /// The session that owns it.
    pub session: String,
    /// The hash its active version must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_hash: Option<String>,
    /// Its name there, or its alias.
    pub volume: String,
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
    /// A certificate that signs no other.
    X509,
    /// A certificate that signs others.
    X509Ca,
}

impl Kind {
    /// Whether CAS draws it byte by byte.
    pub fn is_bytes(self) -> bool {
        matches!(self, Kind::Ascii | Kind::Binary)
    }

    /// As policies write it.
    pub fn text(self) -> &'static str {
        match self {
            Kind::Ascii => "ascii",
            Kind::Binary => "binary",
            Kind::PrivateKey => "private-key",
            Kind::X509 => "x509",
            Kind::X509Ca => "x509-ca",
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
    /// Known, not drawn: see the rules.
    #[serde(rename = "RSA-2048")]
    Rsa2048,
    /// Known, not drawn: see the rules.
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

/// A secret this session owns (with a value of its own, or drawn by CAS), or imports.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// What placeholders call it.
    pub name: String,
    /// Mandatory but for an import, where it is a check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Of ascii and binary, in bytes; 20 unless told. For an import: a check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// An explicit value: text for ascii, hex for binary, PEM for keys and certificates. Absent: CAS draws one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Of a private key that CAS draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_type: Option<KeyType>,
    /// Of a private key that CAS draws: whether it survives an update.
    #[serde(default, skip_serializing_if = "is_default")]
    pub migrate: bool,
    /// Of a certificate: the secret that is its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key: Option<String>,
    /// Of a certificate: the secret that is the certificate it is signed with. Absent: self-signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Of a certificate. Absent: the first DNS name, else the secret's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common_name: Option<String>,
    /// Of a certificate: its extended key usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// The old spelling of `san: dns:…`; empty in normal form.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing)]
    dns: Vec<String>,
    /// Of a certificate: `dns:NAME` and `ip:ADDRESS`.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub san: Vec<String>,
    /// Of a certificate: how long it is valid. Absent: virtually for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_for: Option<String>,
    /// Who may import it.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<SecretExport>,
    /// Whose it is, if not this session's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<SecretImport>,
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

/// Who may do what: `CREATOR`, `ANY`, `NONE` or the key hash of a client certificate (in a file also the certificate, PEM).
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessPolicy {
    /// Read the session, without what CAS drew. Default: its creator.
    #[serde(default, deserialize_with = "syntax::list")]
    pub read: Vec<String>,
    /// Replace the session. Default: its creator.
    #[serde(default, deserialize_with = "syntax::list")]
    pub update: Vec<String>,
    /// Create sessions below its name. Default: as `update`.
    #[serde(default, deserialize_with = "syntax::list")]
    pub create_sessions: Vec<String>,
}

/// What a service must show.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// How it is judged.
    #[serde(default)]
    pub attestation: Attestation,
    /// Whether an enclave must be one that was never used before. Here each start is one: kept, without further effect.
    #[serde(default, skip_serializing_if = "is_default")]
    pub singleton_enclaves: bool,
    /// What the service's caller must know (section 2.10).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_access_token: Option<String>,
}

/// What a service must show.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attestation {
    /// Whether evidence is judged at all.
    #[serde(default)]
    pub mode: Mode,
    /// Weaknesses of the platform that are put up with. The simulator has no platform: kept, without effect.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub tolerate: Vec<String>,
    /// Advisories that are put up with: as `tolerate`.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub ignore_advisories: Vec<String>,
    /// The secret whose codes start the session's services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_password_shared_secret: Option<String>,
}

/// Whether evidence is judged at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Yes. In the simulator the measurement is the runtime's word all the same.
    #[default]
    Hardware,
    /// No: whoever reaches CAS may start the service (a code is still asked for).
    None,
}

impl Session {
    /// Reads a policy's text and brings it into normal form.
    pub fn parse(text: &str) -> Result<Session, SessionError> {
        Self::parse_as(text, None)
    }

    /// As [`Session::parse`], under another name if one is given.
    pub fn parse_as(text: &str, name: Option<&str>) -> Result<Session, SessionError> {
        if text.len() > MAX_TEXT {
            return Err(SessionError::TooLong);
        }
        // As a tree first: this bounds what aliases expand to, and finds duplicate keys and what is not simulated.
        syntax::refuse_what_is_not_simulated(&tree::read(text)?)?;
        let mut session: Session = yaml_serde::from_str(text)?;
        if let Some(name) = name {
            session.name = name.to_owned();
        }
        session.normalise()?;
        Ok(session)
    }

    /// The policy's text in normal form.
    pub fn to_yaml(&self) -> Result<String, yaml_serde::Error> {
        yaml_serde::to_string(self)
    }

    /// The session hash: 64 lower-case hex digits over all but the predecessor (section 2.4). The construction is our own:
    /// SHA-256 over a domain label and the normal form as JSON, whose order is fixed.
    pub fn hash(&self) -> String {
        let content = Session { predecessor: None, ..self.clone() };
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(b"scone-sim session 1\0");
        hash.update(serde_json::json!(content).to_string().as_bytes());
        hex(hash.finish().as_ref())
    }

    /// Whether the access policy speaks of the creator, so that the hash depends on who uploads.
    pub fn refers_to_creator(&self) -> bool {
        let AccessPolicy { read, update, create_sessions } = &self.access_policy;
        [read, update, create_sessions].into_iter().flatten().any(|who| who == "CREATOR")
    }

    /// The name without its last component: the session that must grant the creation of this one.
    pub fn parent(&self) -> Option<&str> {
        self.name.rsplit_once('/').map(|(parent, _)| parent)
    }

    /// The service of that name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// The volume of that name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    /// The secret of that name.
    pub fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.iter().find(|secret| secret.name == name)
    }

    /// What the service's file system looks like.
    pub fn image(&self, service: &Service) -> Option<&Image> {
        self.images.iter().find(|image| Some(&image.name) == service.image_name.as_ref())
    }

    /// The secret whose code starts this service: its own before the session's.
    pub fn code_secret<'a>(&'a self, service: &'a Service) -> Option<&'a str> {
        let own = service.one_time_password_shared_secret.as_deref();
        own.or(self.security.attestation.one_time_password_shared_secret.as_deref())
    }
}

impl Service {
    /// The measurements that are trusted without a signature.
    pub fn measurements(&self) -> BTreeSet<&str> {
        let unsigned = self.attestation.iter().filter(|variant| variant.signer.is_none());
        unsigned.flat_map(|variant| &variant.mrenclave).map(String::as_str).collect()
    }

    /// The signers that are asked for.
    pub fn signers(&self) -> impl Iterator<Item = &Signer> {
        self.attestation.iter().filter_map(|variant| variant.signer.as_ref())
    }
}

impl InjectionFile {
    /// The permission as a number. A session in normal form has no other permission than one.
    pub fn mode(&self) -> Option<u32> {
        let digits = self.permission.strip_prefix("0o").filter(|digits| digits.bytes().all(|c| c.is_ascii_digit()))?;
        u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777)
    }
}

impl Secret {
    /// The bytes of an explicit value (of keys and certificates, the DER); `Some(None)` if it is not what its kind says.
    pub fn explicit_value(&self) -> Option<Option<Vec<u8>>> {
        let value = self.value.as_ref()?;
        Some(match self.kind {
            Some(Kind::Binary) => data_encoding::HEXLOWER_PERMISSIVE.decode(value.as_bytes()).ok(),
            Some(Kind::PrivateKey) => {
                let key = PrivatePkcs8KeyDer::from_pem_slice(value.as_bytes()).ok();
                key.map(|key| key.secret_pkcs8_der().to_vec())
            }
            Some(Kind::X509 | Kind::X509Ca) => {
                CertificateDer::from_pem_slice(value.as_bytes()).ok().map(|certificate| certificate.to_vec())
            }
            _ => value.bytes().all(|c| (0x20..0x7f).contains(&c)).then(|| value.clone().into_bytes()),
        })
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

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The position `N` of a command's word `@@N` (section 2.12): the caller's N-th argument takes its place.
pub fn host_argument(word: &str) -> Option<&str> {
    word.strip_prefix("@@").filter(|digits| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()))
}

/// The name of an environment entry `\@\@NAME` (section 2.12): the caller's variable takes its place.
pub fn host_variable(name: &str) -> Option<&str> {
    name.strip_prefix(r"\@\@")
}

/// Shows the name only: values may be secrets.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.name)
    }
}

/// Whether `name` can be a session's name: RFC 3986 unreserved characters, 1 to 128 in a component, 512 in all (section 2.3).
pub fn is_session_name(name: &str) -> bool {
    name.len() <= 512 && name.split('/').all(is_component)
}

/// Whether `name` can be the name of a service, image, volume or secret, or one component of a session's.
pub fn is_component(name: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"_-.~".contains(&c);
    (1..=128).contains(&name.len()) && name.bytes().all(allowed) && name != "." && name != ".."
}

/// The bytes of a shared secret: RFC 4648 base32, upper case, padded or not, at least 128 bits (section 3.1).
/// Assumption: lower case is refused; SCONE does not say.
pub fn decode_shared_secret(text: &str) -> Option<Vec<u8>> {
    let bytes = data_encoding::BASE32_NOPAD.decode(text.trim_end_matches('=').as_bytes()).ok()?;
    (bytes.len() >= 16).then_some(bytes)
}
