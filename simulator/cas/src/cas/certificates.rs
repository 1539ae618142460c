//! Keys and certificates that CAS makes for a session (`reference/scone.md` section 2.9).

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use rcgen::PublicKeyData;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use ring::digest::{Context, SHA256};
use rustls::pki_types::CertificateDer;
use scone_protocol::hex;
use time::OffsetDateTime;

use super::release::Refusal;
use super::secrets::{Result, Secrets, Value};
use super::{CasError, Stop};
use crate::session::{Endpoint, KeyType, Kind, Secret, Session};
use crate::store::StoreError;

impl Secrets<'_> {
    /// A certificate that `owner` does not import, for `reader`.
    pub fn certificate(
        &self,
        owner: &Session,
        name: &str,
        explicit: Option<Vec<u8>>,
        reader: &Session,
    ) -> Result<Value> {
        let damaged = || StoreError::Damaged(format!("certificate '{name}' is not declared as it must be"));
        let secret = owner.secret(name).ok_or_else(damaged)?;
        let kind = secret.kind.ok_or_else(damaged)?;
        let key = secret.private_key.as_ref().map(|key| self.value(owner, key)).transpose()?;
        let key = key.filter(|key| key.kind == Kind::PrivateKey).map(|key| key.bytes.clone());
        let issuer = secret.issuer.as_ref().map(|issuer| self.value(owner, issuer)).transpose()?;

        let bytes = match explicit {
            Some(bytes) => bytes,
            None => {
                // What is imported may be of any kind.
                let no_key = || Refusal::misconfigured(format!("What certificate '{name}' has for a key is none"));
                self.current_certificate(owner, secret, kind, key.as_ref().ok_or_else(no_key)?, issuer.as_deref())?
            }
        };
        // Who imports a certificate gets its private key only if that is exported, too.
        let may_have_key = owner.name == reader.name
            || secret.private_key.as_ref().is_some_and(|key| self.exports_secret(owner, key, reader));
        let chain = issuer.map_or(Vec::new(), |issuer| [slice::from_ref(&issuer.bytes), &issuer.chain[..]].concat());
        Ok(Value { kind, bytes, private_key: key.filter(|_| may_have_key), chain })
    }

    /// A public key: the explicit one, or that of its private key.
    pub fn public_key(&self, owner: &Session, secret: &Secret, explicit: Option<Vec<u8>>) -> Result<Vec<u8>> {
        let (name, key) = (&secret.name, secret.private_key.as_deref());
        match (explicit, key) {
            (Some(bytes), _) => Ok(bytes),
            (None, Some(key)) => {
                let key = self.value(owner, key)?;
                Ok(signing_key(name, &key.bytes)?.subject_public_key_info())
            }
            (None, None) => {
                Err(StoreError::Damaged(format!("public key '{name}' is not declared as it must be")).into())
            }
        }
    }

    /// The certificate made before, or a new one if that does not fit its key and issuer any more, or is about to expire.
    fn current_certificate(
        &self,
        owner: &Session,
        secret: &Secret,
        kind: Kind,
        key: &[u8],
        issuer: Option<&Value>,
    ) -> Result<Vec<u8>> {
        let made_of = fingerprint(key, issuer);
        let kept = self.kept(&owner.name, &secret.name)?.filter(|(label, _)| {
            let mut words = label.split(' ').skip(1);
            let fits = words.next() == Some(&made_of);
            fits && words.next().is_none_or(|renew| renew.parse().is_ok_and(|renew: u64| self.now < renew))
        });
        if let Some((_, bytes)) = kept {
            return Ok(bytes);
        }
        self.spend_signature()?;
        let mut parameters = parameters(secret, kind)?;
        let renew = self.set_validity(&mut parameters, secret.lifetime())?;
        let bytes = sign(parameters, secret, key, issuer)?;
        let renew = renew.map_or(String::new(), |renew| format!(" {renew}"));
        self.keep(&owner.name, &secret.name, &format!("{} {made_of}{renew}", kind.text()), &bytes)?;
        Ok(bytes)
    }

    /// Makes a certificate valid from now on, for this many seconds. Gives the time at which to make the next one, in seconds
    /// since the epoch.
    fn set_validity(&self, parameters: &mut CertificateParams, seconds: Option<u64>) -> Result<Option<u64>> {
        let no_time = |_| failed("its time is out of range");
        parameters.not_before = OffsetDateTime::from_unix_timestamp(self.now.cast_signed()).map_err(no_time)?;
        let Some(seconds) = seconds else { return Ok(None) };
        let end = self.now.saturating_add(seconds);
        parameters.not_after = OffsetDateTime::from_unix_timestamp(end.cast_signed()).map_err(no_time)?;
        // Assumption: after two thirds of its life. SCONE says "before they expire".
        Ok(Some(self.now + seconds / 3 * 2))
    }
}

/// What a certificate is made of comes from a policy, or from an import: no failure of CAS's own.
fn failed(error: impl Display) -> Stop<Refusal> {
    Refusal::misconfigured(format!("A certificate cannot be made: {error}"))
}

/// Names and usages of a certificate.
fn parameters(secret: &Secret, kind: Kind) -> Result<CertificateParams> {
    let dns = secret.san.iter().find_map(|name| name.strip_prefix("dns:"));
    let mut parameters = CertificateParams::new(Vec::new()).map_err(failed)?;
    parameters.distinguished_name = DistinguishedName::new();
    let common_name = secret.common_name.as_deref().or(dns).unwrap_or(&secret.name);
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    for name in &secret.san {
        let invalid = || failed(format!("'{name}' is no name"));
        parameters.subject_alt_names.push(match name.split_once(':') {
            Some(("dns", name)) => SanType::DnsName(name.try_into().map_err(failed)?),
            Some(("ip", address)) => SanType::IpAddress(address.parse().map_err(|_| invalid())?),
            _ => return Err(invalid()),
        });
    }
    if kind == Kind::X509Ca {
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    } else {
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = match secret.endpoint {
            Some(Endpoint::Server) => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Some(Endpoint::Client) => vec![ExtendedKeyUsagePurpose::ClientAuth],
            None => Vec::new(),
        };
    }
    Ok(parameters)
}

/// Signs a certificate with its issuer's key, or with its own.
fn sign(mut parameters: CertificateParams, secret: &Secret, key: &[u8], issuer: Option<&Value>) -> Result<Vec<u8>> {
    parameters.use_authority_key_identifier_extension = issuer.is_some();
    let key = signing_key(&secret.name, key)?;
    let Some(issuer) = issuer else {
        return Ok(parameters.self_signed(&key).map_err(failed)?.der().to_vec());
    };
    let name = secret.issuer.as_deref().unwrap_or_default();
    let issuers_key = issuer.private_key.as_deref().filter(|_| issuer.kind == Kind::X509Ca);
    let issuers_key = issuers_key.ok_or_else(|| {
        Refusal::misconfigured(format!("Certificate '{name}' cannot sign: its private key is not there"))
    })?;
    let issuers_key = signing_key(&secret.name, issuers_key)?;
    let certificate = CertificateDer::from(issuer.bytes.as_slice());
    let issuer = Issuer::from_ca_cert_der(&certificate, issuers_key).map_err(failed)?;
    // What writes ASN.1 for rcgen panics at some names that an issuer may have in its certificate.
    let signed = catch_unwind(AssertUnwindSafe(|| parameters.signed_by(&key, &issuer)));
    let signed = signed.map_err(|_| failed("its issuer's name is not understood"))?;
    Ok(signed.map_err(failed)?.der().to_vec())
}

/// A key that was given may be of any type.
fn signing_key(name: &str, key: &[u8]) -> Result<KeyPair> {
    KeyPair::try_from(key).map_err(|_| {
        Refusal::misconfigured(format!("Secret '{name}' needs a private key of a type that is not simulated"))
    })
}

pub(super) fn draw_key(key_type: KeyType) -> std::result::Result<Vec<u8>, CasError> {
    let algorithm = match key_type {
        KeyType::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        KeyType::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        KeyType::Ed25519 => &rcgen::PKCS_ED25519,
        KeyType::Rsa2048 | KeyType::Rsa3072 => {
            return Err(StoreError::Damaged("an RSA key cannot be drawn".into()).into());
        }
    };
    let key = KeyPair::generate_for(algorithm).map_err(|error| CasError::Certificate(error.to_string()))?;
    Ok(key.serialize_der())
}

/// A hash of what a certificate is made from: its key and its issuer.
fn fingerprint(key: &[u8], issuer: Option<&Value>) -> String {
    let mut hash = Context::new(&SHA256);
    for part in [key, issuer.map_or(&[], |issuer| issuer.bytes.as_slice())] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex(hash.finish().as_ref())
}
