//! Signed sessions: whose key signs, what is signed, and the file that holds session and signatures (`reference/scone.md`
//! section 2.8). SCONE publishes neither that file's format nor the message to be signed; both are our own.
//!
//! A signature covers the session hash, and with it the name and the version that is replaced: it is good for nothing else, but at every CAS:
//! where nothing of that name is yet, anybody may bring the first version that was ever signed.

use data_encoding::BASE64;
use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P384_SHA384_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use scone_protocol::hex;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::session::{MAX_TEXT, Session, SessionError, rule};
use crate::tls;

/// The longest signed session, in bytes: a policy's text as JSON has it, and its signatures.
pub const MAX_SIGNED: usize = 2 * MAX_TEXT;

/// The most signatures of one session. Assumption.
const MAX_SIGNATURES: usize = 16;

/// The label of a public key's PEM.
const PUBLIC_KEY: &str = "PUBLIC KEY";

/// The start of the SubjectPublicKeyInfo of every key that may sign, the length of what follows, and how it signs: Ed25519 (RFC
/// 8410), and P-384 as an uncompressed point (RFC 5480) with SHA-384.
const KEYS: [(&[u8], usize, &dyn VerificationAlgorithm); 2] = [
    (b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", 32, &ED25519),
    (
        b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00",
        97,
        &ECDSA_P384_SHA384_ASN1,
    ),
];

/// The public key of a session signer, Ed25519 or P-384: a SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7), in files as PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionSigner(Vec<u8>);

impl SessionSigner {
    /// Its PEM, and nothing else. White space does not matter.
    pub fn from_pem(text: &str) -> Option<SessionSigner> {
        let marked = |what: &str| format!("-----{what} {PUBLIC_KEY}-----");
        let body = text.trim().strip_prefix(&marked("BEGIN"))?.strip_suffix(&marked("END"))?;
        let body: String = body.split_ascii_whitespace().collect();
        let signer = SessionSigner(BASE64.decode(body.as_bytes()).ok()?);
        signer.key().is_some().then_some(signer)
    }

    /// SHA-256 of the key as a certificate would hold it, lower-case hex: see [`tls::key_hash`].
    pub fn key_hash(&self) -> String {
        hex(digest(&SHA256, &self.0).as_ref())
    }

    fn key(&self) -> Option<UnparsedPublicKey<&[u8]>> {
        KEYS.iter().find_map(|(info, length, algorithm)| {
            let key = self.0.strip_prefix(*info).filter(|key| key.len() == *length)?;
            Some(UnparsedPublicKey::new(*algorithm, key))
        })
    }
}

impl TryFrom<String> for SessionSigner {
    type Error = &'static str;

    fn try_from(pem: String) -> Result<SessionSigner, &'static str> {
        SessionSigner::from_pem(&pem).ok_or("signer: not an Ed25519 or P-384 public key (SPKI in PEM)")
    }
}

impl From<SessionSigner> for String {
    fn from(signer: SessionSigner) -> String {
        tls::pem(PUBLIC_KEY, &signer.0)
    }
}

/// A signer's signature over a session.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Whose.
    pub signer: SessionSigner,
    /// In base64: of Ed25519 its 64 bytes, of P-384 the ASN.1.
    signature: String,
}

/// A session and the signatures over it, each of them right. Without any, the session is judged by who uploads it.
pub struct Signed {
    /// The session.
    pub session: Session,
    /// By each signer one.
    pub signatures: Vec<Signature>,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    session: String,
    signatures: Vec<Signature>,
}

impl Signed {
    /// A session's text, signed (JSON) or not (YAML).
    pub fn parse(text: &str) -> Result<Signed, SessionError> {
        Signed::parse_signed(text).unwrap_or_else(|| Ok(Signed::unsigned(Session::parse(text)?)))
    }

    /// A session that nobody signed yet.
    pub fn unsigned(session: Session) -> Signed {
        Signed { session, signatures: Vec::new() }
    }

    /// A signed session, checked with its signatures; `None`: the text is none.
    pub fn parse_signed(text: &str) -> Option<Result<Signed, SessionError>> {
        #[derive(Deserialize)]
        struct Keys {
            session: Option<IgnoredAny>,
            signatures: Option<IgnoredAny>,
        }
        // A session may be JSON, too, but has neither key.
        let keys: Keys = serde_json::from_str(text).ok()?;
        keys.session.or(keys.signatures).map(|_| Signed::check(text))
    }

    fn check(text: &str) -> Result<Signed, SessionError> {
        let file: File = serde_json::from_str(text).map_err(|error| rule("signed session", error.to_string()))?;
        let mut signed = Signed::unsigned(Session::parse(&file.session)?);
        if signed.session.lacks_creator() {
            let problem = "missing: the access policy refers to it, and what is signed cannot be completed";
            return Err(rule("creator", problem));
        }
        for Signature { signer, signature } in file.signatures {
            let signature = BASE64.decode(signature.as_bytes()).unwrap_or_default();
            signed.add(signer, &signature)?;
        }
        if signed.signatures.is_empty() { Err(rule("signatures", "none")) } else { Ok(signed) }
    }

    /// Adds a signature, if it is the signer's over this session.
    pub fn add(&mut self, signer: SessionSigner, signature: &[u8]) -> Result<(), SessionError> {
        let count = self.signatures.len();
        let wrong = |problem: &str| Err(rule(&format!("signatures[{count}]"), problem));
        if count == MAX_SIGNATURES {
            return wrong(&format!("more than {MAX_SIGNATURES}"));
        }
        if self.signatures.iter().any(|other| other.signer == signer) {
            return wrong("this signer signed already");
        }
        if signer.key().is_none_or(|key| key.verify(self.message().as_bytes(), signature).is_err()) {
            return wrong("not the signer's signature over this session");
        }
        self.signatures.push(Signature { signer, signature: BASE64.encode(signature) });
        Ok(())
    }

    /// What is signed: a label, and the session hash. Assumption, as is how: Ed25519 signs the message itself (RFC 8032), P-384
    /// its SHA-384.
    pub fn message(&self) -> String {
        format!("scone-sim session signature 1\0{}", self.session.hash())
    }

    /// Whether anybody signed.
    pub fn is_signed(&self) -> bool {
        !self.signatures.is_empty()
    }

    /// The file's text.
    pub fn to_json(&self) -> Result<String, yaml_serde::Error> {
        let file = File { session: self.session.to_yaml()?, signatures: self.signatures.clone() };
        Ok(format!("{:#}\n", serde_json::json!(file)))
    }
}
