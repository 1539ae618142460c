//! The normal form of a session (`reference/scone.md` sections 2 and 8): defaults written out, short spellings spelled out,
//! references absolute. `validate` refuses what is wrong in any other way.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use super::access::is_rule_key;
use super::placeholder::OPEN;
use super::{AccessPolicy, KeyType, Kind, Or, Rule, Secret, Session, SessionError, Variant, fragment, rule};
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
    pub(super) fn same(rules: Vec<Rule>) -> AccessPolicy {
        AccessPolicy { read: rules.clone(), update: rules.clone(), create_sessions: rules, list_sessions: Vec::new() }
    }

    /// Its lists, by their keys.
    pub(super) fn lists(&self) -> [(&'static str, &[Rule]); 4] {
        let AccessPolicy { read, update, create_sessions, list_sessions } = self;
        [("read", read), ("update", update), ("create_sessions", create_sessions), ("list_sessions", list_sessions)]
    }

    /// Who may list the sessions below its session, beside those who may create them.
    pub fn listers(&self) -> &[Rule] {
        if self.list_sessions.is_empty() { &self.read } else { &self.list_sessions }
    }

    /// What a configuration fragment says: a whole policy, or the entries of any of its lists. The error says why it is neither.
    pub fn of_fragment(text: &str) -> Result<AccessPolicy, String> {
        let not_understood = |error: serde_json::Error| error.to_string();
        let mut policy = match fragment(text) {
            Value::Object(keys) if keys.keys().any(|key| is_rule_key(key)) => {
                AccessPolicy::same(vec![serde_json::from_value(keys.into()).map_err(not_understood)?])
            }
            policy @ Value::Object(_) => serde_json::from_value(policy).map_err(not_understood)?,
            Value::String(who) => AccessPolicy::same(vec![Rule::Who(who)]),
            list => AccessPolicy::same(serde_json::from_value(list).map_err(not_understood)?),
        };
        let not_simulated = |path: &str, _: &str| Err(rule(path, "a placeholder in it is not simulated"));
        let checked = policy.normalise().and_then(|()| policy.check(&mut { not_simulated }));
        checked.map(|()| policy).map_err(|error| error.to_string())
    }

    fn normalise(&mut self) -> Result<(), SessionError> {
        let AccessPolicy { read, update, create_sessions, list_sessions } = self;
        for rules in [&mut *read, update] {
            if rules.is_empty() {
                rules.push(Rule::Who("CREATOR".into()));
            }
        }
        if create_sessions.is_empty() {
            create_sessions.clone_from(update);
        }
        for (key, rules) in
            [("read", read), ("update", update), ("create_sessions", create_sessions), ("list_sessions", list_sessions)]
        {
            rules.iter_mut().try_for_each(|rule| rule.normalise(&format!("access_policy.{key}")))?;
        }
        Ok(())
    }
}

impl Rule {
    /// A certificate stands for its key hash.
    fn normalise(&mut self, path: &str) -> Result<(), SessionError> {
        match self {
            Rule::Who(who) if who.trim_start().starts_with("-----BEGIN CERTIFICATE-----") => {
                let certificate = CertificateDer::from_pem_slice(who.as_bytes()).ok();
                let hash = certificate.and_then(|certificate| key_hash(&certificate));
                *who = hash.ok_or_else(|| rule(path, "a certificate is damaged"))?;
                Ok(())
            }
            Rule::All(rules) | Rule::AtLeast(_, rules) => rules.iter_mut().try_for_each(|rule| rule.normalise(path)),
            Rule::Who(_) | Rule::Signer(_) => Ok(()),
        }
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
