//! The rules for a session's secrets (`reference/scone.md` section 2.9).

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;

use super::{COMPONENTS, check_names, check_pin, check_reference};
use crate::session::placeholder::{SOFTWARE_IDENTITY, is_one_placeholder};
use crate::session::{Endpoint, KeyType, Kind, Secret, Session, SessionError, is_component, rule};
use crate::tls::key_hash;

/// The largest secret CAS draws, in bytes.
const MAX_SIZE: usize = 4096;

/// How many certificates there may be above a certificate.
const MAX_CHAIN: usize = 8;

impl Session {
    pub(super) fn check_secrets(&self) -> Result<(), SessionError> {
        check_names("secrets", self.secrets.iter().map(|secret| &secret.name), COMPONENTS)?;
        for (i, secret) in self.secrets.iter().enumerate() {
            let path = format!("secrets[{i}]");
            for (j, export) in secret.export.iter().enumerate() {
                let path = format!("{path}.export[{j}]");
                match (&export.session, &export.namespace) {
                    (Some(session), None) => {
                        check_reference(session, &format!("{path}.session"))?;
                        check_pin(export.session_hash.as_deref(), &path)?;
                    }
                    (None, Some(namespace)) if export.session_hash.is_none() => {
                        check_reference(namespace, &format!("{path}.namespace"))?;
                    }
                    _ => {
                        return Err(rule(&path, "needs either session (and session_hash, if you like) or namespace"));
                    }
                }
            }
            match &secret.import {
                Some(_) => secret.check_import(&path)?,
                None => secret.check_own(&path)?,
            }
        }
        for (i, secret) in self.secrets.iter().enumerate() {
            self.check_signers(&format!("secrets[{i}]"), secret)?;
        }
        Ok(())
    }

    /// Checks that private key, signer and issuer are declared, and that its chain of issuers ends.
    fn check_signers(&self, path: &str, secret: &Secret) -> Result<(), SessionError> {
        let of_kind = |name: &str, kind: Kind| {
            // An import may leave the kind to the owner: then it is checked when it is used.
            self.secret(name).is_some_and(|found| found.kind.is_none_or(|known| known == kind))
        };
        for (field, key) in [("private_key", &secret.private_key), ("signer", &secret.signer)] {
            if let Some(key) = key.as_ref().filter(|key| !of_kind(key, Kind::PrivateKey)) {
                return Err(rule(&format!("{path}.{field}"), format!("no private-key '{key}' is declared")));
            }
        }
        self.check_payload(path, secret)?;
        self.check_signing_key(path, secret)?;
        let mut above = secret.issuer.as_deref();
        let mut steps = 0;
        while let Some(issuer) = above {
            if !of_kind(issuer, Kind::X509Ca) {
                return Err(rule(&format!("{path}.issuer"), format!("no x509-ca '{issuer}' is declared")));
            }
            steps += 1;
            if steps > MAX_CHAIN {
                return Err(rule(&format!("{path}.issuer"), format!("more than {MAX_CHAIN} certificates in a chain")));
            }
            above = self.secret(issuer).and_then(|issuer| issuer.issuer.as_deref());
        }
        Ok(())
    }

    /// A JWT's claims are texts, and CAS makes some itself. A placeholder within a text stands for itself, as documented.
    fn check_payload(&self, path: &str, secret: &Secret) -> Result<(), SessionError> {
        for (name, value) in &secret.payload {
            let path = format!("{path}.payload.{name}");
            let Some(text) = value.as_str() else { return Err(rule(&path, "not a text")) };
            if ["iat", "nbf", "exp"].contains(&name.as_str()) {
                return Err(rule(&path, "made by CAS"));
            }
            if text != SOFTWARE_IDENTITY && is_one_placeholder(text) {
                self.check_text(&path, text)?;
            }
        }
        let signer = secret.signer.as_deref().and_then(|signer| self.secret(signer));
        if signer.and_then(|signer| signer.key_type).is_some_and(|key_type| key_type != KeyType::P384) {
            return Err(rule(&format!("{path}.signer"), "ES384 needs a key of type P-384"));
        }
        Ok(())
    }

    /// Any private key may be given; to make a certificate CAS must be able to sign with it.
    fn check_signing_key(&self, path: &str, secret: &Secret) -> Result<(), SessionError> {
        if secret.value.is_some() {
            return Ok(());
        }
        let issuer = secret.issuer.as_ref().and_then(|issuer| self.secret(issuer));
        let keys = [Some(secret), issuer].into_iter().flatten().filter_map(|signer| signer.private_key.as_deref());
        for key in keys {
            let given = self.secret(key).and_then(|key| key.value.as_deref());
            if given.is_some_and(|pem| rcgen::KeyPair::from_pem(pem).is_err()) {
                let problem = format!("{path}: making a certificate with a key of the type of '{key}'");
                return Err(SessionError::NotSimulated(problem));
            }
        }
        Ok(())
    }
}

impl Secret {
    /// Which of its keys are given, and for which kinds they are.
    fn given(&self) -> [(&'static str, bool, &'static [Kind]); 13] {
        const CERTIFICATES: &[Kind] = &[Kind::X509, Kind::X509Ca];
        [
            ("size", self.size.is_some(), &[Kind::Ascii, Kind::Binary]),
            ("key_type", self.key_type.is_some(), &[Kind::PrivateKey]),
            ("migrate", self.migrate, &[Kind::PrivateKey]),
            ("private_key", self.private_key.is_some(), &[Kind::X509, Kind::X509Ca, Kind::PublicKey]),
            ("issuer", self.issuer.is_some(), CERTIFICATES),
            ("common_name", self.common_name.is_some(), CERTIFICATES),
            ("endpoint", self.endpoint.is_some(), &[Kind::X509]),
            ("san", !self.san.is_empty(), &[Kind::X509]),
            ("valid_for", self.valid_for.is_some(), CERTIFICATES),
            ("signer", self.signer.is_some(), &[Kind::Jwt]),
            ("alg", self.alg.is_some(), &[Kind::Jwt]),
            ("validity", self.validity.is_some(), &[Kind::Jwt]),
            ("payload", !self.payload.is_empty(), &[Kind::Jwt]),
        ]
    }

    fn check_import(&self, path: &str) -> Result<(), SessionError> {
        if let Some(import) = &self.import {
            let path = format!("{path}.import");
            check_reference(&import.session, &format!("{path}.session"))?;
            check_pin(import.session_hash.as_deref(), &path)?;
            if !is_component(&import.secret) {
                return Err(rule(&format!("{path}.secret"), "not a secret's name"));
            }
        }
        if self.value.is_some() || !self.export.is_empty() || self.export_public {
            return Err(rule(path, "an imported secret has neither value nor export"));
        }
        let is_check = |key: &str| key == "size" && self.kind.is_none_or(Kind::is_bytes);
        match self.given().iter().find(|(key, given, _)| *given && !is_check(key)) {
            Some((key, ..)) => Err(rule(&format!("{path}.{key}"), "not for an imported secret")),
            None => Ok(()),
        }
    }

    fn check_own(&self, path: &str) -> Result<(), SessionError> {
        let Some(kind) = self.kind else { return Err(rule(&format!("{path}.kind"), "missing")) };
        if let Some((key, ..)) = self.given().iter().find(|(_, given, kinds)| *given && !kinds.contains(&kind)) {
            return Err(rule(&format!("{path}.{key}"), format!("not for a secret of kind {}", kind.text())));
        }
        let value = match self.explicit_value() {
            None => None,
            Some(Some(value)) => Some(value),
            Some(None) => {
                let wanted = match kind {
                    Kind::Ascii | Kind::ConfigFragment => "not printable ASCII",
                    Kind::Binary => "not hex",
                    Kind::PrivateKey => "not a PKCS#8 private key in PEM",
                    Kind::PublicKey => "not a public key in PEM (SubjectPublicKeyInfo)",
                    Kind::X509 | Kind::X509Ca => "not a certificate in PEM",
                    Kind::Jwt => "not for a secret of kind jwt",
                };
                return Err(rule(&format!("{path}.value"), wanted));
            }
        };
        match kind {
            Kind::Ascii | Kind::Binary => self.check_size(path, value.as_deref()),
            Kind::PrivateKey => self.check_private_key(path),
            Kind::PublicKey if value.is_some() == self.private_key.is_some() => {
                Err(rule(path, "a public key has either value or private_key"))
            }
            Kind::PublicKey => Ok(()),
            Kind::X509 | Kind::X509Ca => self.check_certificate(path, value.as_deref()),
            Kind::Jwt => self.check_jwt(path),
            Kind::ConfigFragment if value.is_none() => Err(rule(&format!("{path}.value"), "missing")),
            Kind::ConfigFragment => Ok(()),
        }
    }

    fn check_jwt(&self, path: &str) -> Result<(), SessionError> {
        let missing =
            [("signer", self.signer.is_none()), ("alg", self.alg.is_none()), ("validity", self.validity.is_none())];
        match missing.iter().find(|(_, missing)| *missing) {
            Some((key, _)) => Err(rule(&format!("{path}.{key}"), "missing")),
            None if self.lifetime().is_none() => {
                Err(rule(&format!("{path}.validity.for"), "not a duration such as 24h"))
            }
            None => Ok(()),
        }
    }

    fn check_size(&self, path: &str, value: Option<&[u8]>) -> Result<(), SessionError> {
        let size = self.size.unwrap_or_default();
        if value.is_some_and(|value| value.len() != size) {
            return Err(rule(&format!("{path}.size"), "not the value's"));
        }
        if size == 0 || size > MAX_SIZE && value.is_none() {
            return Err(rule(&format!("{path}.size"), format!("not between 1 and {MAX_SIZE}")));
        }
        Ok(())
    }

    fn check_private_key(&self, path: &str) -> Result<(), SessionError> {
        match &self.value {
            _ if self.export_public => {
                Err(SessionError::NotSimulated(format!("{path}.export_public: of a private key")))
            }
            Some(_) if self.key_type.is_some() || self.migrate => {
                Err(rule(path, "an explicit private key has neither key_type nor migrate"))
            }
            None if matches!(self.key_type, Some(KeyType::Rsa2048 | KeyType::Rsa3072)) => {
                Err(SessionError::NotSimulated(format!("{path}.key_type: drawing an RSA key")))
            }
            _ => Ok(()),
        }
    }

    fn check_certificate(&self, path: &str, value: Option<&[u8]>) -> Result<(), SessionError> {
        match value {
            Some(value) if key_hash(&CertificateDer::from(value)).is_none() => {
                return Err(rule(&format!("{path}.value"), "not a certificate in PEM"));
            }
            None if self.private_key.is_none() => return Err(rule(&format!("{path}.private_key"), "missing")),
            _ => {}
        }
        for (j, name) in self.san.iter().enumerate() {
            let known = match name.split_once(':') {
                Some(("dns", name)) => !name.is_empty() && name.is_ascii(),
                Some(("ip", address)) => address.parse::<IpAddr>().is_ok(),
                _ => false,
            };
            if !known {
                return Err(rule(&format!("{path}.san[{j}]"), "neither dns:NAME nor ip:ADDRESS"));
            }
        }
        if self.endpoint == Some(Endpoint::Client) && self.san.iter().any(|name| name.starts_with("dns:")) {
            return Err(rule(&format!("{path}.san"), "a client has no DNS name"));
        }
        if self.valid_for.is_some() && self.lifetime().is_none() {
            return Err(rule(&format!("{path}.valid_for"), "not a duration such as 90 days or 1 year"));
        }
        Ok(())
    }
}
