//! Whether a program's evidence meets what its service asks for.

use scone_protocol::unhex;

use super::release::{Claim, Refusal};
use super::{Stop, refuse};
use crate::session::Service;

pub(super) fn judge_evidence(service: &Service, claim: &Claim<'_>) -> Result<(), Stop<Refusal>> {
    let untrusted = |details: Vec<String>, reason: String| {
        let chain = ["Failed to verify DCAP report".to_owned()].into_iter().chain(details);
        refuse(Refusal::new("DCAP quote verification failed", chain, reason))
    };
    // Our own words: SCONE has no such case.
    if !claim.bound || unhex(claim.mrenclave).is_none_or(|bytes| bytes.len() != 32) {
        return untrusted(
            vec!["The evidence was not made for this connection".into()],
            "evidence of another connection".into(),
        );
    }
    let wanted = service.measurements();
    if wanted.contains(claim.mrenclave) {
        return Ok(());
    }
    let mut missed: Vec<String> = wanted
        .iter()
        .map(|want| format!("Unexpected enclave measurement (MRENCLAVE, {}) - Expected {want}", claim.mrenclave))
        .collect();
    // Our own words: what SCONE says of another signer is not documented.
    missed.extend(service.signers().map(|signer| {
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
    untrusted(chain, reason.into())
}
