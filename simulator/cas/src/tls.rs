//! TLS 1.3 on both of CAS's ports and in the CLI. No authority vouches for a certificate: a peer *is* its public key, and the
//! handshake proves that it holds the private one. Keys are compared by [`key_hash`].

use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use ring::digest::{SHA256, digest};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName as Dn, Error, ServerConfig,
    SignatureScheme, version,
};
use scone_protocol::{Secret, hex};

/// The label of a certificate's PEM.
pub const CERTIFICATE: &str = "CERTIFICATE";

/// A key or certificate that cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Making one failed.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The stored text is not a key and a certificate.
    #[error("the stored key or certificate is damaged")]
    Damaged,
    /// rustls refuses it.
    #[error("TLS: {0}")]
    Rustls(#[from] Error),
}

/// A private key and its self-signed certificate.
pub struct Identity {
    key_pem: String,
    /// The certificate, PEM.
    pub certificate_pem: String,
    certificate: CertificateDer<'static>,
    /// The key hash, 64 lower-case hex digits.
    pub key_hash: String,
}

impl Identity {
    /// Draws a key (ECDSA P-256) and signs a certificate with it.
    pub fn generate(common_name: &str) -> Result<Identity, TlsError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let certificate = params.self_signed(&key)?;
        Identity::from_pem(&(key.serialize_pem() + &certificate.pem()))
    }

    /// Both, as PEM in one text.
    pub fn to_pem(&self) -> String {
        format!("{}{}", self.key_pem, self.certificate_pem)
    }

    /// Reads [`Identity::to_pem`]'s text.
    pub fn from_pem(pem: &str) -> Result<Identity, TlsError> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| TlsError::Damaged)?;
        PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| TlsError::Damaged)?;
        let at = pem.find("-----BEGIN CERTIFICATE-----").ok_or(TlsError::Damaged)?;
        let key_hash = key_hash(&certificate).ok_or(TlsError::Damaged)?;
        // The certificate is written anew: session hashes cover its text, which must be the same on both sides.
        Ok(Identity {
            key_pem: pem[..at].to_owned(),
            certificate_pem: self::pem(CERTIFICATE, &certificate),
            certificate,
            key_hash,
        })
    }

    /// SHA-256 of the certificate (DER), lower-case hex.
    pub fn certificate_hash(&self) -> String {
        hex(digest(&SHA256, &self.certificate).as_ref())
    }

    /// Signs with the key: ECDSA P-256, SHA-256, ASN.1.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TlsError> {
        let (key, random) = (self.key()?, SystemRandom::new());
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_der(), &random)
            .ok()
            .and_then(|pair| pair.sign(&random, message).ok())
            .map(|signature| signature.as_ref().to_vec())
            .ok_or(TlsError::Damaged)
    }

    /// What runtimes make evidence with: derived from the private key, so it lies nowhere else than that does.
    pub fn evidence_key(&self) -> Result<Secret, TlsError> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.key()?.secret_der());
        Ok(Secret::new(hex(hmac::sign(&key, b"scone-sim evidence key 1").as_ref())))
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|_| TlsError::Damaged)
    }
}

/// Who is at the other end of the client API.
#[derive(Debug, Clone)]
pub struct Client {
    /// The key hash.
    pub key_hash: String,
    /// The certificate, PEM.
    pub certificate: String,
}

impl Client {
    /// From the certificate of a finished handshake.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Client> {
        Some(Client { key_hash: key_hash(certificate)?, certificate: pem(CERTIFICATE, certificate) })
    }
}

/// SHA-256 of the certificate's SubjectPublicKeyInfo (DER), lower-case hex. Our own: SCONE's encoding is undocumented.
pub fn key_hash(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(hex(digest(&SHA256, &parsed.subject_public_key_info()).as_ref()))
}

/// The key hash of this certificate (PEM), if its key made this signature (see [`Identity::sign`]).
pub fn signer(certificate: &str, message: &[u8], signature: &[u8]) -> Option<String> {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let info = ParsedCertificate::try_from(&certificate).ok()?.subject_public_key_info();
    // All that may stand before the point: the two identifiers of a P-256 key (RFC 5480).
    let point = info.strip_prefix(P256_INFO)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(message, signature).ok()?;
    key_hash(&certificate)
}

/// The start of the SubjectPublicKeyInfo of every uncompressed P-256 key.
const P256_INFO: &[u8] =
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";

/// PEM (RFC 7468) with this label.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    // base64 is ASCII: every split is at a character.
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|i| &text[i..text.len().min(i + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// The server's side of the client API: a client certificate is asked for, not demanded.
pub fn client_api(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(crypto()).with_protocol_versions(&[&version::TLS13])?;
    let verifier = Arc::new(AnyKey { pinned: None });
    Ok(builder
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate.clone()], identity.key()?)?)
}

/// The server's side of the enclave API: a runtime is judged by its evidence.
pub fn enclave_api(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(crypto()).with_protocol_versions(&[&version::TLS13])?;
    Ok(builder.with_no_client_auth().with_single_cert(vec![identity.certificate.clone()], identity.key()?)?)
}

/// The CLI's side: shows `identity`, and goes on only with a server of this key hash (`None`: with any, for attestation,
/// which looks at the key itself).
pub fn client(identity: &Identity, pinned: Option<&str>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(crypto()).with_protocol_versions(&[&version::TLS13])?;
    let verifier = Arc::new(AnyKey { pinned: pinned.map(str::to_owned) });
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    Ok(builder.with_client_auth_cert(vec![identity.certificate.clone()], identity.key()?)?)
}

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

/// Accepts any certificate whose key signed the handshake, or that one key only.
#[derive(Debug)]
struct AnyKey {
    pinned: Option<String>,
}

impl AnyKey {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let hash = key_hash(certificate).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        match &self.pinned {
            Some(pinned) if *pinned != hash => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
            _ => Ok(()),
        }
    }

    fn signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &provider::default_provider().signature_verification_algorithms,
        )
    }

    fn schemes() -> Vec<SignatureScheme> {
        provider::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Both sides are configured for TLS 1.3 alone, so this is not reached.
fn no_tls12() -> Error {
    Error::General("TLS 1.3 only".into())
}

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

impl ClientCertVerifier for AnyKey {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[Dn] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}
