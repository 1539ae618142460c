//! Signed programs: what `scone signer sign` appends to an ELF program. The kernel passes over it; the runtime verifies it.
//!
//! A signed file is the program, the claims (JSON), the signature, the length of the claims (64 bits, big-endian) and a mark.
//! Key and algorithm are SGX's: RSA of 3072 bits with exponent 3, PKCS#1 v1.5, SHA-256. What is signed is the simulator's own,
//! since nobody can sign a measurement without the runtime that takes it: a label, the program's hash and the claims.

use ring::digest::{SHA256, digest};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use serde::{Deserialize, Serialize};

use crate::{hex, unhex};

/// The length of the modulus, and so of a signature, in bytes.
pub const MODULUS_LENGTH: usize = 384;

/// The public exponent.
pub const EXPONENT: u8 = 3;

const MARK: &[u8] = b"\0scone-sim signed";

/// Who signed a program, and as what: what a policy's `signer` names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignerIdentity {
    /// As SGX defines it: SHA-256 of the modulus, little-endian; 64 lower-case hex digits.
    pub mrsigner: String,
    /// The product.
    pub isvprodid: u16,
    /// The product's security version.
    pub isvsvn: u16,
}

/// What a signature says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// What the program is started with.
    pub settings: Settings,
    /// The product.
    pub isvprodid: u16,
    /// The product's security version.
    pub isvsvn: u16,
    /// The signer's modulus, big-endian, lower-case hex.
    pub modulus: String,
}

/// What a program is started with (`reference/scone.md` section 5.1). Part of its measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The heap's size, in bytes.
    pub heap: u64,
    /// A stack's size, in bytes.
    pub stack: u64,
    /// Whether libraries may be loaded at run time: 0 no, 1 protected ones, 2 any.
    pub dlopen: u8,
    /// Whether it runs in production mode rather than in debug mode.
    pub production: bool,
}

impl Settings {
    /// The variables that stand for them.
    pub fn variables(&self) -> [(&'static str, u64); 4] {
        [
            ("SCONE_HEAP", self.heap),
            ("SCONE_STACK", self.stack),
            ("SCONE_ALLOW_DLOPEN", self.dlopen.into()),
            ("SCONE_PRODUCTION", self.production.into()),
        ]
    }
}

/// A number as settings have it, perhaps with a unit: `K`, `M` or `G`, powers of 1024. `None`: it is not one.
pub fn size(text: &str) -> Option<u64> {
    let units = [("K", 10), ("M", 20), ("G", 30)];
    let with_unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (digits, shift) = with_unit.unwrap_or((text, 0));
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A file whose signature was verified.
pub struct Signed<'a> {
    /// What was signed.
    pub program: &'a [u8],
    /// What it is started with.
    pub settings: Settings,
    /// Who signed it, and as what.
    pub signer: SignerIdentity,
}

/// The file is not what was signed.
#[derive(Debug, PartialEq)]
pub struct Altered;

/// The signed program in `file`; `None` if it carries no signature.
///
/// # Errors
/// It carries one that is damaged or of something else.
pub fn read(file: &[u8]) -> Result<Option<Signed<'_>>, Altered> {
    file.strip_suffix(MARK).map(|signed| verified(signed).ok_or(Altered)).transpose()
}

fn verified(signed: &[u8]) -> Option<Signed<'_>> {
    let (rest, length) = signed.split_last_chunk()?;
    let (rest, signature) = rest.split_last_chunk::<MODULUS_LENGTH>()?;
    let end = rest.len().checked_sub(u64::from_be_bytes(*length).try_into().ok()?)?;
    let (program, text) = rest.split_at(end);
    let Claims { settings, isvprodid, isvsvn, modulus } = serde_json::from_slice(text).ok()?;
    let modulus = unhex(&modulus).filter(|modulus| modulus.len() == MODULUS_LENGTH)?;
    let key = RsaPublicKeyComponents { n: &modulus[..], e: &[EXPONENT] };
    key.verify(&RSA_PKCS1_2048_8192_SHA256, &message(program, text), signature).ok()?;
    let little_endian: Vec<u8> = modulus.iter().rev().copied().collect();
    let mrsigner = hex(digest(&SHA256, &little_endian).as_ref());
    Some(Signed { program, settings, signer: SignerIdentity { mrsigner, isvprodid, isvsvn } })
}

/// `program` with the signature that `sign` makes.
///
/// # Errors
/// Those of `sign`.
pub fn write<E>(program: &[u8], claims: &Claims, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>) -> Result<Vec<u8>, E> {
    let text = serde_json::json!(claims).to_string().into_bytes();
    let signature = sign(&message(program, &text))?;
    Ok([program, &text, &signature, &(text.len() as u64).to_be_bytes(), MARK].concat())
}

fn message(program: &[u8], claims: &[u8]) -> Vec<u8> {
    [b"scone-sim signature 1\0", digest(&SHA256, program).as_ref(), claims].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_with_or_without_a_unit() {
        for bad in ["", "M", "1.5M", "64MB", "-1", "64m", "17179869184G"] {
            assert_eq!(size(bad), None, "{bad}");
        }
        assert_eq!([size("0"), size("2M"), size("65536K"), size("1G")], [0, 2 << 20, 64 << 20, 1 << 30].map(Some));
    }

    #[test]
    fn what_ends_in_the_mark_alone_is_no_signed_program() {
        assert_eq!(read(&[&[0; 1000], MARK].concat()).err(), Some(Altered));
        assert_eq!(read(MARK).err(), Some(Altered));
        let beyond = [&[0; 500][..], &u64::MAX.to_be_bytes(), MARK].concat();
        assert_eq!(read(&beyond).err(), Some(Altered));
        assert!(read(b"\x7fELF").unwrap().is_none());
    }
}
