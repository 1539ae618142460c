//! The session language (`reference/scone.md` section 2): a policy's text becomes a [`Session`], or an error that names the key.
//!
//! Strict: a key that SCONE documents and the simulator does not serve is refused as "not simulated", any other as unknown;
//! nothing is ever ignored. A parsed session is in normal form: defaults written out, short spellings spelled out, references
//! absolute. The normal form is what is hashed, stored and read back, so a file and what `read` gives for it are equal.

mod access;
mod delegated;
mod normalise;
mod not_simulated;
pub mod placeholder;
mod secret;
mod service;
mod shown;
mod syntax;
pub mod tree;
mod validate;
mod volume;

use std::fmt;

pub use scone_protocol::UpdatePolicy;
use scone_protocol::hex;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use yaml_serde::Value;

pub use access::{Creator, Rule};
pub use delegated::{Or, Unresolved, Weight, fragment};
pub use not_simulated::{DEFAULTS, NOT_SIMULATED, VALUES_NOT_SIMULATED};
pub use secret::{Algorithm, Endpoint, KeyType, Kind, Secret, SecretExport, SecretImport, decode_shared_secret};
pub use service::{Service, Signer, Variant, host_argument, host_variable};
pub use syntax::Number;
pub use validate::check_variants;
pub use volume::{Image, InjectionFile, Mount, Volume, VolumeExport, VolumeImport};

/// The longest policy text, in bytes.
pub const MAX_TEXT: usize = 256 * 1024;

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
    /// The language's version: `0.3` to `0.3.12`.
    #[serde(default)]
    pub version: String,
    /// `component[/component...]`: all but the last name the namespace.
    pub name: String,
    /// The hash of the version this one replaces.
    #[serde(default, deserialize_with = "syntax::predecessor")]
    pub predecessor: Option<String>,
    /// The hash that the session of the namespace must have when this one is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_hash: Option<String>,
    /// 16 bytes in hex, so that nobody can guess the policy from its hash, or from those of the versions after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
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
    #[serde(default, deserialize_with = "syntax::access_policy")]
    pub access_policy: AccessPolicy,
    /// What a service must show.
    #[serde(default)]
    pub security: Or<Security>,
    /// Who created it, if the access policy refers to the creator. Written by CAS, and by the command line before it signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creator: Option<Creator>,
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

/// Who may do what: whoever meets any rule of a list.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessPolicy {
    /// Read the session, without what CAS drew. Default: its creator.
    #[serde(default, deserialize_with = "access::unsigned")]
    pub read: Vec<Rule>,
    /// Replace the session. Default: its creator.
    #[serde(default, deserialize_with = "syntax::list")]
    pub update: Vec<Rule>,
    /// Create sessions below its name. Default: as `update`.
    #[serde(default, deserialize_with = "syntax::list")]
    pub create_sessions: Vec<Rule>,
    /// List the sessions below its name, as may who may create them. Empty: as `read`.
    #[serde(default, deserialize_with = "access::unsigned", skip_serializing_if = "Vec::is_empty")]
    pub list_sessions: Vec<Rule>,
}

/// What a service must show.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// How it is judged.
    #[serde(default)]
    pub attestation: Or<Attestation>,
    /// Whether an enclave must never have been used before. Here every start makes a new one: kept, without further effect.
    #[serde(default, skip_serializing_if = "is_default")]
    pub singleton_enclaves: bool,
    /// What the service's caller must know (section 2.10); placeholders stand for secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_access_token: Option<String>,
}

/// What a service must show.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attestation {
    /// Whether evidence is judged at all.
    #[serde(default)]
    pub mode: Or<Mode>,
    /// Weaknesses of the platform that are tolerated. The simulator has no platform: kept, without effect.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub tolerate: Vec<String>,
    /// Advisories that are ignored. Kept, without effect, as `tolerate` is.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub ignore_advisories: Vec<String>,
    /// The secret whose codes start the session's services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_password_shared_secret: Option<String>,
    /// Quoting enclaves that are trusted beside SCONE's. The simulator has none: kept, without effect.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub trusted_scone_qe_pubkeys: Vec<String>,
    /// Whether services must run on CAS's machine. They do: the simulated CAS listens on loopback only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub must_be_sgx_local: bool,
    /// As every field of this type, it may only say what holds without it: see [`DEFAULTS`].
    #[serde(default, skip_serializing)]
    url: IgnoredAny,
}

impl Security {
    /// Of a section that is put together: how a service is judged.
    pub fn attestation(&self) -> Option<&Attestation> {
        self.attestation.given()
    }

    /// The secret whose code starts this service: its own before the session's.
    pub fn code_secret<'a>(&'a self, service: &'a Service) -> Option<&'a str> {
        let own = service.one_time_password_shared_secret.as_deref();
        own.or_else(|| self.attestation()?.one_time_password_shared_secret.as_deref())
    }
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
        let mut tree = read_tree(text)?;
        not_simulated::refuse(&tree)?;
        // Another language has other keys.
        if let Value::Mapping(keys) = &tree {
            validate::check_version(&match keys.get("version") {
                Some(Value::String(version)) => version.clone(),
                Some(Value::Number(version)) => version.to_string(),
                _ => String::new(),
            })?;
        }
        let mut session: Session = if syntax::write_fragments_as_text(&mut tree) {
            yaml_serde::from_str(&yaml_serde::to_string(&tree)?).map_err(without_place)?
        } else {
            yaml_serde::from_str(text)?
        };
        if let Some(name) = name {
            session.name = name.to_owned();
        }
        session.validate_head()?;
        session.normalise()?;
        session.validate()?;
        Ok(session)
    }

    /// The policy's text in normal form, without what its absence would say, too.
    pub fn to_yaml(&self) -> Result<String, yaml_serde::Error> {
        let mut tree = yaml_serde::to_value(self)?;
        if let Value::Mapping(session) = &mut tree {
            shown::shorten(session);
        }
        yaml_serde::to_string(&tree)
    }

    /// The session hash: 64 lower-case hex digits (section 2.4). The construction is our own: SHA-256 over a domain label and the
    /// normal form as JSON, whose order is fixed.
    ///
    /// Assumption: it covers the predecessor, and so all versions before. SCONE says that a salt in any of them makes all later
    /// hashes unguessable, which implies it.
    pub fn hash(&self) -> String {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(b"scone-sim session 1\0");
        hash.update(serde_json::json!(self).to_string().as_bytes());
        hex(hash.finish().as_ref())
    }

    /// Whether the access policy speaks of the creator, so that the hash depends on who uploads. Assumption: a placeholder may.
    pub fn refers_to_creator(&self) -> bool {
        let mut rules = self.access_policy.lists().into_iter().flat_map(|(_, rules)| rules);
        rules.any(|rule| rule.names(|who| who == "CREATOR" || who.contains(placeholder::OPEN)))
    }

    /// Whether a creator is to be written into it before its hash is final.
    pub fn lacks_creator(&self) -> bool {
        self.creator.is_none() && self.refers_to_creator()
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
}

/// The tree of a policy's text. A tag is refused, but a documented key that is not served is named before that.
pub fn read_tree(text: &str) -> Result<Value, SessionError> {
    tree::read(text).or_else(|error| {
        tree::read_without_tags(text).map_or(Ok(()), |tree| not_simulated::refuse(&tree))?;
        Err(error.into())
    })
}

/// Of a text that was written anew, a place tells nobody anything.
fn without_place(error: yaml_serde::Error) -> yaml_serde::Error {
    let text = error.to_string();
    serde::de::Error::custom(text.rsplit_once(" at line ").map_or(&*text, |(problem, _)| problem))
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(crate) fn rule(path: &str, problem: impl Into<String>) -> SessionError {
    SessionError::Rule { path: path.to_owned(), problem: problem.into() }
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

/// Whether `name` can be the name of a service or secret, or one component of a session's.
pub fn is_component(name: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"_-.~".contains(&c);
    (1..=128).contains(&name.len()) && name.bytes().all(allowed) && name != "." && name != ".."
}

/// Whether `name` can be the name of an image or a volume: any text (sections 2.6 and 2.7), such as a container image's name.
/// Assumption: without control characters, and of at most 512 bytes.
pub fn is_free_name(name: &str) -> bool {
    (1..=512).contains(&name.len()) && !name.contains(char::is_control)
}
