//! The normal form of a session (`reference/scone.md` sections 2 and 8): defaults written out, short spellings spelled out,
//! references absolute. `validate` refuses what is wrong in any other way.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use super::placeholder::OPEN;
use super::{AccessPolicy, KeyType, Kind, Or, Secret, Session, SessionError, Variant, fragment, rule};
use crate::tls::key_hash;

/// The size of a secret that states none, in bytes.
pub(super) const DEFAULT_SIZE: usize = 20;

impl Session {
    /// Brings a session into normal form. Fails only where a reference or a certificate cannot be read.
    pub(super) fn normalise(&mut self) -> Result<(), SessionError> {
        self.access_policy.normalise()?;
        self.normalise_secrets()?;
        self.normalise_volumes()?;
        for file in self.images.iter_mut().flat_map(|image| &mut image.injection_files) {
            if file.permission.is_empty() {
                file.permission = "0o700".into();
            }
        }
        let mounts = self.images.iter_mut().flat_map(|image| &mut image.volumes).map(|mount| &mut mount.path);
        for directory in self.services.iter_mut().filter_map(|service| service.pwd.as_mut()).chain(mounts) {
            if directory.len() > 1 && directory.ends_with('/') {
                directory.pop();
            }
        }
        self.normalise_attestation();
        Ok(())
    }

    fn normalise_secrets(&mut self) -> Result<(), SessionError> {
        for (i, secret) in self.secrets.iter_mut().enumerate() {
            let path = format!("secrets[{i}]");
            for (j, export) in secret.export.iter_mut().enumerate() {
                let path = format!("{path}.export[{j}]");
                resolve(&self.name, export.session.as_mut(), &format!("{path}.session"))?;
                resolve(&self.name, export.namespace.as_mut(), &format!("{path}.namespace"))?;
            }
            if let Some(import) = &mut secret.import {
                resolve(&self.name, &mut import.session, &format!("{path}.import.session"))?;
            }
            secret.san.extend(secret.dns.drain(..).map(|name| format!("dns:{name}")));
            secret.write_defaults_out();
        }
        Ok(())
    }

    fn normalise_volumes(&mut self) -> Result<(), SessionError> {
        for (i, volume) in self.volumes.iter_mut().enumerate() {
            let path = format!("volumes[{i}]");
            for (j, export) in volume.export.iter_mut().enumerate() {
                resolve(&self.name, &mut export.to.session, &format!("{path}.export[{j}].session"))?;
            }
            if let Some(import) = &mut volume.import {
                resolve(&self.name, &mut import.session, &format!("{path}.import.session"))?;
            }
        }
        Ok(())
    }

    fn normalise_attestation(&mut self) {
        for service in &mut self.services {
            if !service.mrenclaves.is_empty() {
                let mrenclave = std::mem::take(&mut service.mrenclaves);
                service.attestation.push(Or::Given(Variant { mrenclave, signer: None }));
            }
            service.attestation.iter_mut().filter_map(Or::given_mut).for_each(Variant::normalise);
        }
    }
}

impl AccessPolicy {
    /// With the same entries in each of its lists.
    pub(super) fn same(who: Vec<String>) -> AccessPolicy {
        AccessPolicy { read: who.clone(), update: who.clone(), create_sessions: who }
    }

    /// What a configuration fragment says: a whole policy, or the entries of any of its lists. `None`: nothing that is simulated.
    pub fn of_fragment(text: &str) -> Option<AccessPolicy> {
        // A placeholder in it is not simulated.
        if text.contains(OPEN) {
            return None;
        }
        let mut policy = match fragment(text) {
            policy @ Value::Object(_) => serde_json::from_value(policy).ok()?,
            Value::String(who) => AccessPolicy::same(vec![who]),
            list => AccessPolicy::same(serde_json::from_value(list).ok()?),
        };
        policy.normalise().ok()?;
        Some(policy)
    }

    fn normalise(&mut self) -> Result<(), SessionError> {
        let AccessPolicy { read, update, create_sessions } = self;
        if read.is_empty() {
            read.push("CREATOR".into());
        }
        if update.is_empty() {
            update.push("CREATOR".into());
        }
        if create_sessions.is_empty() {
            create_sessions.clone_from(update);
        }
        // A certificate stands for its key hash.
        for (key, who) in [("read", read), ("update", update), ("create_sessions", create_sessions)] {
            for entry in who.iter_mut().filter(|who| who.trim_start().starts_with("-----BEGIN CERTIFICATE-----")) {
                let certificate = CertificateDer::from_pem_slice(entry.as_bytes()).ok();
                let hash = certificate.and_then(|certificate| key_hash(&certificate));
                let damaged = || rule(&format!("access_policy.{key}"), "a certificate is damaged");
                *entry = hash.ok_or_else(damaged)?;
            }
        }
        Ok(())
    }
}

impl Variant {
    /// Measurements are lower-case hex, but placeholders stay.
    pub fn normalise(&mut self) {
        let signer = self.signer.iter_mut().filter_map(Or::given_mut).map(|signer| &mut signer.mrsigner);
        let measured = self.mrenclave.iter_mut().chain(signer).filter(|measured| !measured.contains(OPEN));
        measured.for_each(|measured| measured.make_ascii_lowercase());
    }
}

impl Secret {
    /// The size and key type that a secret of this session's own has unless it states others.
    fn write_defaults_out(&mut self) {
        if self.import.is_some() {
            return;
        }
        match self.kind {
            Some(Kind::Ascii | Kind::Binary) if self.size.is_none() => {
                self.size = Some(self.explicit_value().flatten().map_or(DEFAULT_SIZE, |value| value.len()));
            }
            Some(Kind::PrivateKey) if self.value.is_none() => {
                self.key_type.get_or_insert(KeyType::P256);
            }
            _ => {}
        }
    }
}

/// Makes a reference to a session absolute: `./nested`, `..` and `../sibling` start from this session's name (section 2.11).
fn resolve<'a>(own_name: &str, reference: impl Into<Option<&'a mut String>>, path: &str) -> Result<(), SessionError> {
    let Some(reference) = reference.into() else { return Ok(()) };
    if !matches!(reference.split('/').next(), Some("." | "..")) {
        return Ok(());
    }
    let mut at: Vec<&str> = own_name.split('/').collect();
    for step in reference.split('/') {
        match step {
            "." => {}
            ".." => {
                at.pop().ok_or_else(|| rule(path, "leads above the root"))?;
            }
            name => at.push(name),
        }
    }
    *reference = if at.is_empty() { "/".to_owned() } else { at.join("/") };
    Ok(())
}
