//! What the runtime and CAS say to each other on the enclave API (port 18765).
//!
//! One TLS 1.3 connection; no client certificate: the runtime is judged by its evidence. Each message is one frame: its
//! length as a 32-bit big-endian number, then that many bytes of JSON, at most [`MAX_FRAME`]. CAS speaks first, with
//! [`Hello`]; then the runtime sends a [`Request`] and reads a [`Response`], as often as it needs.
//! The protocol is the simulator's own: SCONE's is not published.
//!
//! Here are the messages; [`connection`] is the runtime's end of the conversation. CAS's end is in `scone-sim`.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::too_many_lines))]

pub mod connection;
pub mod signature;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use signature::SignerIdentity;

/// The largest frame either side accepts, in bytes.
pub const MAX_FRAME: usize = 1 << 20;

/// The label of the TLS exporter (RFC 8446 section 7.5) that binds evidence to its connection. Length: 32 bytes, no context.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-scone-sim-evidence";

/// CAS's first frame on every connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// 32 fresh random bytes, lower-case hex. Evidence that does not cover them is refused.
    pub nonce: String,
}

/// What the runtime asks.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// "Here is my evidence: give me the configuration of this service."
    Configure {
        /// `session/service`, without the code.
        service: String,
        /// What followed the `@` in `SCONE_CONFIG_ID`, as it came.
        code: Option<String>,
        /// [`access_proof`] of the runtime's end, if it was given a service access token.
        #[serde(default)]
        access_proof: Option<String>,
        /// What the runtime says it is.
        evidence: Evidence,
    },
    /// "I sealed this volume: from now on only this tag is fresh." Authorised by knowing the volume's key.
    SetTag(SetTag),
    /// "What is this volume's tag now?" Authorised by knowing the volume's key.
    ReadTag(ReadTag),
}

/// The measurement, bound to this connection and to CAS's nonce. In SGX a quote would be here; this is the word of a runtime
/// that was given the evidence key: `scone-sim evidence-key` tells it to whoever can read CAS's data directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// The measurement, 64 lower-case hex digits.
    pub mrenclave: String,
    /// Whose signature the runtime verified, if the program is signed.
    #[serde(default)]
    pub signer: Option<SignerIdentity>,
    /// HMAC-SHA-256 under the evidence key over this connection, the nonce, the measurement and the signer, lower-case hex.
    pub binding: String,
}

impl Evidence {
    /// Makes evidence on the connection with this exporter value and this nonce (as it stood in [`Hello`]).
    pub fn new(
        mrenclave: &str,
        signer: Option<&SignerIdentity>,
        exporter: &[u8; 32],
        nonce: &str,
        key: &Secret,
    ) -> Evidence {
        let mut evidence =
            Evidence { mrenclave: mrenclave.to_owned(), signer: signer.cloned(), binding: String::new() };
        let text = evidence.text(exporter, nonce);
        evidence.binding = hex(ring::hmac::sign(&mac_key(key.expose().as_bytes()), &text).as_ref());
        evidence
    }

    /// Whether this evidence was made on the connection with this exporter value and this nonce, by somebody who knew `key`.
    /// Compares in constant time.
    pub fn is_made_with(&self, key: &Secret, exporter: &[u8; 32], nonce: &str) -> bool {
        let text = self.text(exporter, nonce);
        let key = mac_key(key.expose().as_bytes());
        unhex(&self.binding).is_some_and(|mac| ring::hmac::verify(&key, &text, &mac).is_ok())
    }

    /// The number in the label is the protocol's: ends that do not agree on it refuse one another.
    fn text(&self, exporter: &[u8; 32], nonce: &str) -> Vec<u8> {
        // A measurement and a signer are digits, so the parts cannot run together.
        let signer = self.signer.as_ref().map_or("-".to_owned(), |SignerIdentity { mrsigner, isvprodid, isvsvn }| {
            format!("{mrsigner} {isvprodid} {isvsvn}")
        });
        let program = format!("{nonce}\0{}\0{signer}", self.mrenclave);
        [b"scone-sim evidence 3\0", &exporter[..], program.as_bytes()].concat()
    }
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The one that has a service to run.
    Runtime,
    /// The one that has its configuration.
    Cas,
}

fn access_text(end: End, exporter: &[u8; 32], nonce: &str) -> Vec<u8> {
    let end = if end == End::Runtime { "runtime" } else { "cas" };
    [format!("scone-sim access {end} 1\0").as_bytes(), exporter, nonce.as_bytes()].concat()
}

/// Proves that this end of the connection with this exporter value and this nonce knows the service access token, without
/// telling it: HMAC-SHA-256, lower-case hex.
pub fn access_proof(end: End, token: &str, exporter: &[u8; 32], nonce: &str) -> String {
    hex(ring::hmac::sign(&mac_key(token.as_bytes()), &access_text(end, exporter, nonce)).as_ref())
}

/// Whether `proof` is [`access_proof`]'s. Compares in constant time.
pub fn proves_access(proof: &str, end: End, token: &str, exporter: &[u8; 32], nonce: &str) -> bool {
    let text = access_text(end, exporter, nonce);
    unhex(proof).is_some_and(|proof| ring::hmac::verify(&mac_key(token.as_bytes()), &text, &proof).is_ok())
}

/// A request to move a volume from one tag to the next.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetTag {
    /// The session that owns the volume (not one that imports it).
    pub session: String,
    /// The volume's name in that session.
    pub volume: String,
    /// The tag CAS must hold now; `None`: no tag yet.
    pub old: Option<String>,
    /// The tag CAS is to hold.
    pub new: String,
    /// HMAC-SHA-256 under the volume's key over all of the above, lower-case hex.
    pub mac: String,
}

impl SetTag {
    /// Makes the request, authorised by `key`, the volume's 32-byte key.
    pub fn new(session: &str, volume: &str, old: Option<&str>, new: &str, key: &[u8]) -> SetTag {
        let mut request = SetTag {
            session: session.to_owned(),
            volume: volume.to_owned(),
            old: old.map(str::to_owned),
            new: new.to_owned(),
            mac: String::new(),
        };
        request.mac = hex(ring::hmac::sign(&mac_key(key), &request.signed_bytes()).as_ref());
        request
    }

    /// Whether whoever made this request knew `key`. Compares in constant time.
    pub fn is_authorised_by(&self, key: &[u8]) -> bool {
        unhex(&self.mac).is_some_and(|mac| ring::hmac::verify(&mac_key(key), &self.signed_bytes(), &mac).is_ok())
    }

    fn signed_bytes(&self) -> Vec<u8> {
        // Names and tags hold no NUL (SCONE names: RFC 3986 unreserved characters and `/`), so the parts cannot run together.
        let old = self.old.as_deref().unwrap_or("-");
        ["scone-sim set-tag 1", &self.session, &self.volume, old, &self.new].join("\0").into_bytes()
    }
}

/// A request for the tag that a volume has now. Good on one connection only: recorded, it tells nobody what comes later.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadTag {
    /// The session that owns the volume (not one that imports it).
    pub session: String,
    /// The volume's name in that session.
    pub volume: String,
    /// HMAC-SHA-256 under the volume's key over this connection, the nonce and all of the above, lower-case hex.
    pub mac: String,
}

impl ReadTag {
    /// Makes the request on the connection with this exporter value and this nonce, authorised by `key`, the volume's 32-byte key.
    pub fn new(session: &str, volume: &str, exporter: &[u8; 32], nonce: &str, key: &[u8]) -> ReadTag {
        let mut request = ReadTag { session: session.to_owned(), volume: volume.to_owned(), mac: String::new() };
        request.mac = hex(ring::hmac::sign(&mac_key(key), &request.signed_bytes(exporter, nonce)).as_ref());
        request
    }

    /// Whether this request was made on the connection with this exporter value and this nonce, by somebody who knew `key`.
    /// Compares in constant time.
    pub fn is_authorised_by(&self, key: &[u8], exporter: &[u8; 32], nonce: &str) -> bool {
        let bytes = self.signed_bytes(exporter, nonce);
        unhex(&self.mac).is_some_and(|mac| ring::hmac::verify(&mac_key(key), &bytes, &mac).is_ok())
    }

    fn signed_bytes(&self, exporter: &[u8; 32], nonce: &str) -> Vec<u8> {
        // As in `SetTag`, no part holds a NUL.
        let names = [nonce, &self.session, &self.volume].join("\0");
        [b"scone-sim read-tag 1\0", &exporter[..], names.as_bytes()].concat()
    }
}

fn mac_key(key: &[u8]) -> ring::hmac::Key {
    ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key)
}

/// What CAS answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case", deny_unknown_fields)]
pub enum Response {
    /// The service is trusted: this is its configuration.
    Configuration(Configuration),
    /// The new tag is durable.
    TagSet,
    /// The volume's tag.
    Tag {
        /// As in [`VolumeGrant::tag`].
        tag: Option<String>,
    },
    /// No. `causes` are the lines of SCONE's error frame, outermost first.
    Refused {
        /// At least one line, without `Caused by:`. Spaces before it nest it; one of several causes is `Error 1 of 2: …`.
        causes: Vec<String>,
    },
}

/// All that reaches the program. Nothing comes from the caller except what is named here.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// The program's arguments, `argv[0]` first.
    pub command: Vec<String>,
    /// Places in `command` (from 0) that the caller's arguments take, and which of them (from 1).
    #[serde(default)]
    pub host_arguments: Vec<(usize, usize)>,
    /// The program's whole environment, apart from `host_environment`.
    pub environment: BTreeMap<String, Secret>,
    /// Variables taken from the caller's environment; empty where the caller has no such variable.
    #[serde(default)]
    pub host_environment: Vec<String>,
    /// The program's working directory; `None`: `/`.
    pub pwd: Option<String>,
    /// The volumes to open, in the policy's order.
    pub volumes: Vec<VolumeGrant>,
    /// The files to put into the program's memory.
    #[serde(default)]
    pub injection_files: Vec<InjectionFile>,
    /// What placeholders in files of the image stand for: what is between `$$SCONE::` and `$$`, and the value in lower-case hex.
    #[serde(default)]
    pub secrets: BTreeMap<String, Secret>,
    /// [`access_proof`] of CAS's end, if the session has a service access token.
    #[serde(default)]
    pub access_proof: Option<String>,
}

/// A file for the program.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectionFile {
    /// Where the program sees it: an absolute path.
    pub path: String,
    /// Lower-case hex, since it need not be text. `None`: the image has the file, with placeholders in it.
    #[serde(default)]
    pub content: Option<Secret>,
    /// Its permissions.
    pub mode: u32,
}

/// A volume this service may open.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeGrant {
    /// The session that owns the volume.
    pub session: String,
    /// The volume's name in that session.
    pub name: String,
    /// Where the program sees it: an absolute path.
    pub path: String,
    /// 32 bytes, lower-case hex.
    pub key: Secret,
    /// The tag of the current state, 32 lower-case hex digits (16 bytes, as SCONE's); `None`: never initialised.
    pub tag: Option<String>,
    /// What becomes of the program's changes.
    #[serde(default)]
    pub update_policy: UpdatePolicy,
}

/// What becomes of the changes that a program makes to a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdatePolicy {
    /// They end with the program.
    Ephemeral,
    /// They are the volume's state from then on, and only that state can be opened.
    #[default]
    RollbackProtected,
    /// They are sealed, and any state that was ever sealed can be opened.
    NoRollbackProtection,
}

/// A text that must not be shown: no `Display`, and a `Debug` that says nothing.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Keeps the text.
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The one way to the text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Escaped for use inside a JSON string (RFC 8259 section 7), which a placeholder asks for by `|escape(json)`; `None`: it is no
/// text.
pub fn escape_json(value: Vec<u8>) -> Option<Vec<u8>> {
    let quoted = serde_json::Value::from(String::from_utf8(value).ok()?).to_string();
    Some(quoted.as_bytes()[1..quoted.len() - 1].to_vec())
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a lower-case hex text; `None` if it is anything else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_of_one_connection_one_nonce_one_measurement_one_signer_and_one_key() {
        let (key, other) = (Secret::new("key".into()), Secret::new("other".into()));
        let signer = |isvsvn| Some(SignerIdentity { mrsigner: "cc".into(), isvprodid: 1, isvsvn });
        let evidence = Evidence::new("aa", signer(2).as_ref(), &[1; 32], "nonce", &key);
        assert!(!evidence.is_made_with(&key, &[2; 32], "nonce"));
        assert!(!evidence.is_made_with(&key, &[1; 32], "other"));
        assert!(!evidence.is_made_with(&other, &[1; 32], "nonce"));
        assert!(!Evidence { mrenclave: "bb".into(), ..evidence.clone() }.is_made_with(&key, &[1; 32], "nonce"));
        for signer in [None, signer(3)] {
            assert!(!Evidence { signer, ..evidence.clone() }.is_made_with(&key, &[1; 32], "nonce"));
        }
        assert!(!Evidence { binding: String::new(), ..evidence.clone() }.is_made_with(&key, &[1; 32], "nonce"));
        assert!(evidence.is_made_with(&key, &[1; 32], "nonce"));
    }

    #[test]
    fn a_proof_of_access_is_of_one_end_one_connection_and_one_token() {
        let proof = access_proof(End::Runtime, "token", &[1; 32], "nonce");
        assert!(!proves_access(&proof, End::Cas, "token", &[1; 32], "nonce"), "sent back, it proves nothing");
        assert!(!proves_access(&proof, End::Runtime, "other", &[1; 32], "nonce"));
        assert!(!proves_access(&proof, End::Runtime, "token", &[2; 32], "nonce"));
        assert!(!proves_access(&proof, End::Runtime, "token", &[1; 32], "other"));
        assert!(proves_access(&proof, End::Runtime, "token", &[1; 32], "nonce"));
    }

    #[test]
    fn a_tag_moves_only_for_who_knows_the_key() {
        let request = SetTag::new("ns/a", "v", None, "11", &[7; 32]);
        assert!(!request.is_authorised_by(&[8; 32]));
        assert!(!SetTag { new: "22".into(), ..request.clone() }.is_authorised_by(&[7; 32]));
        assert!(!SetTag { mac: "zz".into(), ..request.clone() }.is_authorised_by(&[7; 32]));
        assert!(request.is_authorised_by(&[7; 32]));
    }

    #[test]
    fn a_tag_is_read_on_one_connection_by_who_knows_the_key() {
        let request = ReadTag::new("ns/a", "v", &[1; 32], "nonce", &[7; 32]);
        assert!(!request.is_authorised_by(&[8; 32], &[1; 32], "nonce"));
        assert!(!request.is_authorised_by(&[7; 32], &[2; 32], "nonce"));
        assert!(!request.is_authorised_by(&[7; 32], &[1; 32], "other"));
        assert!(!ReadTag { volume: "w".into(), ..request.clone() }.is_authorised_by(&[7; 32], &[1; 32], "nonce"));
        assert!(!ReadTag { mac: "zz".into(), ..request.clone() }.is_authorised_by(&[7; 32], &[1; 32], "nonce"));
        assert!(request.is_authorised_by(&[7; 32], &[1; 32], "nonce"));
    }

    #[test]
    fn hex_reads_what_it_writes_and_nothing_else() {
        assert_eq!(unhex("0g"), None);
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("0A"), None);
        assert_eq!(unhex(&hex(&[0, 15, 255])), Some(vec![0, 15, 255]));
    }

    #[test]
    fn a_secret_is_not_shown_by_debug() {
        assert_eq!(format!("{:?}", Secret::new("JBSWY3DP".into())), "Secret(..)");
    }
}
