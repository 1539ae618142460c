//! The private key: where it comes from, and the two things that may be known of it.

use base64ct::{Base64, Encoding};
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{DecodePrivateKey, EncodePublicKey, LineEnding};
use zeroize::Zeroizing;

use crate::digest::Digest;
use crate::{Exit, Failure};

const VARIABLE: &str = "SIGNER_KEY";

/// A P-256 private key: no `Debug`, no `Display`, no way to its bytes; overwritten in memory when dropped.
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// Reads the key from `SIGNER_KEY`: PKCS#8 (RFC 5958) in PEM (RFC 7468). The copy made here is overwritten; the one in the
    /// environment itself lasts as long as the process.
    pub fn from_environment() -> Result<PrivateKey, Failure> {
        let bad = |why: &str| Failure(Exit::Environment, format!("{VARIABLE} {why}"));
        let value = std::env::var_os(VARIABLE).ok_or_else(|| bad("is not set"))?;
        let bytes = Zeroizing::new(value.into_encoded_bytes());
        let pem = std::str::from_utf8(&bytes).map_err(|_| bad("is not UTF-8"))?;
        // The cause is not shown, so that no message depends on the key.
        let key = SigningKey::from_pkcs8_pem(pem).map_err(|_| bad("is not a P-256 private key (PKCS#8 in PEM)"))?;
        Ok(PrivateKey(key))
    }

    /// The signature of what has the digest: ECDSA (FIPS 186-5) in DER (RFC 3279 section 2.2.3), in base64. The nonce comes from
    /// key and digest (RFC 6979), not from a random generator; the same digest always gets the same signature.
    pub fn sign(&self, digest: Digest) -> Result<String, Failure> {
        let signature: Signature = self
            .0
            .sign_prehash(&digest.bytes())
            .map_err(|cause| Failure(Exit::Other, format!("cannot sign: {cause}")))?;
        Ok(Base64::encode_string(signature.to_der().as_bytes()))
    }

    /// The public key: SubjectPublicKeyInfo (RFC 5480) in PEM, with a newline at the end.
    pub fn public_pem(&self) -> Result<String, Failure> {
        self.0
            .verifying_key()
            .to_public_key_pem(LineEnding::LF)
            .map_err(|cause| Failure(Exit::Other, format!("cannot encode the public key: {cause}")))
    }
}
