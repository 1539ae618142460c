//! Whether a program's evidence can be believed, and meets what its service asks for.

use std::collections::BTreeSet;

use super::release::{Claim, Refusal};
use super::{Stop, refuse};
use crate::session::{Or, Variant};

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

pub(super) fn judge_evidence(variants: &[Or<Variant>], claim: &Claim<'_>) -> Result<(), Stop<Refusal>> {
    let variants = || variants.iter().filter_map(Or::given);
    let wanted: BTreeSet<&str> = variants()
        .filter(|variant| variant.signer.is_none())
        .flat_map(|variant| &variant.mrenclave)
        .map(String::as_str)
        .collect();
    if wanted.contains(claim.mrenclave) {
        return Ok(());
    }
    let mut missed: Vec<String> = wanted
        .iter()
        .map(|want| format!("Unexpected enclave measurement (MRENCLAVE, {}) - Expected {want}", claim.mrenclave))
        .collect();
    // Our own words: what SCONE says of another signer is not documented.
    missed.extend(variants().filter_map(|variant| variant.signer.as_ref()?.given()).map(|signer| {
        format!(
            "The enclave is not signed: programs of the simulator never are - Expected MRSIGNER {}",
            signer.mrsigner
        )
    }));
    let reason = if wanted.is_empty() { "not signed, as only signers are trusted" } else { "unexpected mrenclave" };
    let mut chain = vec![
        "The program enclave is not trustworthy".to_owned(),
        "None of the required enclave properties are met by the enclave".to_owned(),
    ];
    let count = missed.len();
    chain.extend(missed.into_iter().enumerate().map(|(i, miss)| match count {
        1 => miss,
        _ => format!("Error {} of {count}: {miss}", i + 1),
    }));
    untrusted(chain, reason)
}
