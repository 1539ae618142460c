//! The session language (`reference/scone.md` section 2): a policy's text becomes a [`Session`], or an error that names the key.
//!
//! Strict: a key that SCONE documents and the simulator does not serve is refused as "not simulated", any other as unknown;
//! nothing is ever ignored. A parsed session is in normal form: defaults written out, short spellings spelled out, references
//! absolute. The normal form is what is hashed, stored and read back, so a file and what `read` gives for it are equal.

pub mod placeholder;
mod rules;
mod syntax;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use scone_run::protocol::hex;
use serde::{Deserialize, Serialize};

/// The longest policy text, in bytes.
pub const MAX_TEXT: usize = 256 * 1024;

/// A documented key that the simulator does not serve, as a path without list positions: finding one is an error of its own.
pub const NOT_SIMULATED: &[&str] = &[
    "salt",
    "namespace_hash",
    "secret_config",
    "access_policy.list_sessions",
    "services.fspf_path",
    "services.fspf_key",
    "services.fspf_tag",
    "services.fspf_update_policy",
    "services.platforms",
    "services.persistency",
    "services.attestation.signer",
    "images.injection_files",
    "images.provide_secrets",
    "images.volumes.update_policy",
    "volumes.fspf_key",
    "volumes.fspf_tag",
    "volumes.files",
    "volumes.export.session_hash",
    "volumes.export.to",
    "volumes.export.update_policy",
    "volumes.export.volume_alias",
    "volumes.import.session_hash",
    "volumes.import.cas_url",
    "volumes.import.cas_key",
    "volumes.import.cas_software_key",
    "secrets.key_type",
    "secrets.migrate",
    "secrets.private_key",
    "secrets.issuer",
    "secrets.common_name",
    "secrets.endpoint",
    "secrets.dns",
    "secrets.san",
    "secrets.valid_for",
    "secrets.export_public",
    "secrets.import_akv",
    "secrets.export.session_hash",
    "secrets.export.namespace",
    "secrets.export.cas_url",
    "secrets.export.cas_key",
    "secrets.import.session_hash",
    "secrets.import.cas_url",
    "secrets.import.cas_key",
    "secrets.import.cas_software_key",
    "security.singleton_enclaves",
    "security.service_access_token",
    "security.attestation.trusted_scone_qe_pubkeys",
    "security.attestation.must_be_sgx_local",
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

/// One way to be trusted.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The measurements accepted, 64 lower-case hex digits each.
    #[serde(deserialize_with = "syntax::list")]
    pub mrenclave: Vec<String>,
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
}

/// A volume in an image.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The volume.
    pub name: String,
    /// Where the program sees it: an absolute path.
    pub path: String,
}

/// A volume this session owns, or imports.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name here.
    pub name: String,
    /// Who may import it.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<Export>,
    /// Whose it is, if not this session's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<VolumeImport>,
}

/// A session that may import.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// Its name. It need not exist yet.
    pub session: String,
}

/// Another session's volume.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeImport {
    /// The session that owns it.
    pub session: String,
    /// Its name there.
    pub volume: String,
}

/// What a secret's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Printable text.
    Ascii,
    /// Any bytes.
    Binary,
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
    /// In bytes; 20 unless told. For an import: a check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// An explicit value: text for ascii, hex for binary. Absent: CAS draws one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Who may import it.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<Export>,
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
    /// Its name there.
    pub secret: String,
}

/// Who may do what: `CREATOR`, `ANY`, `NONE` or the key hash of a client certificate.
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
    /// The only part that is simulated.
    #[serde(default)]
    pub attestation: Attestation,
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
        // As a tree first: this finds duplicate keys, which maps would swallow, and keys that are not simulated.
        let tree: yaml_serde::Value = yaml_serde::from_str(text)?;
        syntax::refuse_what_is_not_simulated(&tree)?;
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

    /// What the service sees mounted.
    pub fn mounts(&self, service: &Service) -> &[Mount] {
        let image = self.images.iter().find(|image| Some(&image.name) == service.image_name.as_ref());
        image.map_or(&[], |image| &image.volumes)
    }

    /// The secret whose code starts this service: its own before the session's.
    pub fn code_secret<'a>(&'a self, service: &'a Service) -> Option<&'a str> {
        let own = service.one_time_password_shared_secret.as_deref();
        own.or(self.security.attestation.one_time_password_shared_secret.as_deref())
    }
}

impl Service {
    /// The measurements that are trusted.
    pub fn measurements(&self) -> BTreeSet<&str> {
        self.attestation.iter().flat_map(|variant| &variant.mrenclave).map(String::as_str).collect()
    }
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
