//! Whether a program's evidence can be believed, and meets what its service asks for.

use super::release::{Claim, Refusal};
use super::{Stop, refuse};
use crate::session::{Or, Variant};

const NONE: &str = "None of the required enclave properties are met by the enclave";
const NOT_ALL: &str = "Not all of the required enclave properties are met by the enclave";

fn untrusted(details: Vec<String>, reason: &str) -> Result<(), Stop<Refusal>> {
    let chain = ["Failed to verify DCAP report".to_owned()].into_iter().chain(details);
    refuse(Refusal::new("DCAP quote verification failed", chain, reason))
}

/// Asked before all else, whatever the session demands: who cannot vouch for evidence learns nothing, and spends nothing. Our
/// own words: SCONE has no such case.
pub(super) fn refuse_unvouched(claim: &Claim<'_>) -> Result<(), Stop<Refusal>> {
    if claim.vouched {
        return Ok(());
    }
    untrusted(
        vec!["The evidence was not made on this connection with this CAS's evidence key".into()],
        "evidence of another connection, or not made with the evidence key",
    )
}

/// Refuses a program that meets no variant of its service's attestation, and says of each variant what is missing.
pub(super) fn judge_evidence(variants: &[Variant], claim: &Claim<'_>) -> Result<(), Stop<Refusal>> {
    let Some(because) = variants.iter().map(|variant| missed(variant, claim)).collect() else {
        return Ok(());
    };
    let mut lines = vec!["The program enclave is not trustworthy".to_owned()];
    Miss { what: NONE.into(), because }.write(&mut lines, "", "  ");
    let measured = |variant: &Variant| variant.mrenclave.is_empty() || is_measured(variant, claim);
    let reason = if variants.iter().any(measured) { "not signed as required" } else { "unexpected mrenclave" };
    untrusted(lines, reason)
}

fn is_measured(variant: &Variant, claim: &Claim<'_>) -> bool {
    variant.mrenclave.iter().any(|mrenclave| mrenclave == claim.mrenclave)
}

/// A demand that is not met, and which of the demands in it are not.
struct Miss {
    what: String,
    because: Vec<Miss>,
}

impl Miss {
    fn of(what: String) -> Miss {
        Miss { what, because: Vec::new() }
    }

    /// As SCONE shows it (`reference/scone.md` section 5.4): a single cause as deep as what it causes, several numbered.
    /// Assumption: what is behind a numbered one is nested by two more spaces.
    fn write(self, lines: &mut Vec<String>, number: &str, nesting: &str) {
        lines.push(format!("{nesting}{number}{}", self.what));
        let deeper = if number.is_empty() { nesting.to_owned() } else { format!("{nesting}  ") };
        let count = self.because.len();
        for (miss, i) in self.because.into_iter().zip(1..) {
            let number = if count == 1 { String::new() } else { format!("Error {i} of {count}: ") };
            miss.write(lines, &number, &deeper);
        }
    }
}

/// What of the variant is not met; `None`: it is.
fn missed(variant: &Variant, claim: &Claim<'_>) -> Option<Miss> {
    let unexpected = |want: &String| {
        Miss::of(format!("Unexpected enclave measurement (MRENCLAVE, {}) - Expected {want}", claim.mrenclave))
    };
    let measurement = (!variant.mrenclave.is_empty() && !is_measured(variant, claim))
        .then(|| Miss { what: NONE.into(), because: variant.mrenclave.iter().map(unexpected).collect() });
    let signer =
        variant.signer.as_ref().and_then(Or::given).and_then(|signer| signer.missed_by(claim.signer)).map(Miss::of);
    let of_both = !variant.mrenclave.is_empty() && variant.signer.is_some();
    match (measurement, signer) {
        (None, None) => None,
        (measurement, signer) if of_both => {
            Some(Miss { what: NOT_ALL.into(), because: measurement.into_iter().chain(signer).collect() })
        }
        (measurement, signer) => measurement.or(signer),
    }
}
