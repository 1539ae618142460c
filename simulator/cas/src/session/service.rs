//! Services in a policy: programs, and what they must show (`reference/scone.md` section 2.5).

use std::collections::BTreeMap;

use scone_protocol::signature::SignerIdentity;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::Or;
use super::syntax::{self, Number};

/// A program, and all that reaches it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// One name component.
    pub name: String,
    /// The image whose volumes it sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_name: Option<String>,
    /// The program's arguments, `argv[0]` first. Empty: the service cannot be started.
    #[serde(default, deserialize_with = "syntax::command")]
    pub command: Vec<String>,
    /// The program's environment.
    #[serde(default, deserialize_with = "syntax::environment")]
    pub environment: BTreeMap<String, String>,
    /// The program's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pwd: Option<String>,
    /// Alternatives: a program that meets one of them is trusted.
    #[serde(default, deserialize_with = "syntax::list")]
    pub attestation: Vec<Or<Variant>>,
    /// The deprecated spelling of `attestation`; empty in normal form.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing)]
    pub(super) mrenclaves: Vec<String>,
    #[serde(default, skip_serializing)]
    persistency: IgnoredAny,
    /// The secret whose codes start this service; takes precedence over the session's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_password_shared_secret: Option<String>,
}

/// One way to be trusted: all that it names must be met.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The measurements accepted, 64 lower-case hex digits each. Empty: any.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub mrenclave: Vec<String>,
    /// Who must have signed the enclave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Or<Signer>>,
}

/// Who must have signed an enclave, and as what: `scone signer sign` signs simulated programs.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signer {
    /// The signer, 64 lower-case hex digits.
    pub mrsigner: String,
    /// The product.
    pub isvprodid: Or<Number>,
    /// The one security version accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isvsvn: Option<Or<Number>>,
    /// The lowest security version accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isvsvn_min: Option<Or<Number>>,
    /// The highest security version accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isvsvn_max: Option<Or<Number>>,
}

impl Signer {
    /// The lowest and the highest security version accepted, unless a placeholder says.
    fn versions(&self) -> Option<(u16, u16)> {
        let bound = |bound: &Option<Or<Number>>, none| match self.isvsvn.as_ref().or(bound.as_ref()) {
            Some(bound) => bound.given().map(|number| number.0),
            None => Some(none),
        };
        bound(&self.isvsvn_min, 0).zip(bound(&self.isvsvn_max, u16::MAX))
    }

    /// Whether no security version is accepted.
    pub(super) fn accepts_no_version(&self) -> bool {
        self.versions().is_some_and(|(lowest, highest)| lowest > highest)
    }

    /// What a program signed so does not meet; `None`: it meets all. Our own words: SCONE's are not documented.
    pub fn missed_by(&self, signed: Option<&SignerIdentity>) -> Option<String> {
        let Some(SignerIdentity { mrsigner, isvprodid, isvsvn }) = signed else {
            return Some(format!("The enclave is not signed - Expected MRSIGNER {}", self.mrsigner));
        };
        let known = self.isvprodid.given().map(|product| product.0).zip(self.versions());
        let Some((product, (lowest, highest))) = known else {
            return Some("Which signer is expected is not known".to_owned());
        };
        if *mrsigner != self.mrsigner {
            Some(format!("Unexpected enclave signer (MRSIGNER, {mrsigner}) - Expected {}", self.mrsigner))
        } else if *isvprodid != product {
            Some(format!("Unexpected enclave product (ISVPRODID, {isvprodid}) - Expected {product}"))
        } else if !(lowest..=highest).contains(isvsvn) {
            let versions = if lowest == highest { lowest.to_string() } else { format!("{lowest} to {highest}") };
            Some(format!("Unexpected enclave security version (ISVSVN, {isvsvn}) - Expected {versions}"))
        } else {
            None
        }
    }
}

/// The position `N` of a command's word `@@N` (section 2.12): the caller's N-th argument takes its place.
pub fn host_argument(word: &str) -> Option<&str> {
    word.strip_prefix("@@").filter(|digits| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()))
}

/// The name of an environment entry `\@\@NAME` (section 2.12): the caller's variable takes its place.
pub fn host_variable(name: &str) -> Option<&str> {
    name.strip_prefix(r"\@\@")
}
