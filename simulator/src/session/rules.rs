//! The rules a session must keep, and the normal form (`reference/scone.md` sections 2 and 8).

use std::collections::HashSet;

use super::placeholder::{Format, Part, parts};
use super::{AccessPolicy, Kind, Mode, Secret, Session, SessionError, Variant};
use super::{decode_shared_secret, is_component, is_session_name};

const TOLERABLE: &[&str] = &[
    "debug-mode",
    "hyperthreading",
    "insecure-igpu",
    "software-hardening-needed",
    "aepic-leak",
    "insecure-configuration",
    "outdated-tcb",
];

/// The size of a secret that states none, in bytes.
const DEFAULT_SIZE: usize = 20;

/// The largest secret CAS draws, in bytes.
const MAX_SIZE: usize = 4096;

impl Session {
    pub(super) fn normalise(&mut self) -> Result<(), SessionError> {
        let minor = self.version.strip_prefix("0.3").map(|rest| rest.strip_prefix('.').unwrap_or(rest));
        let known = |minor: &str| (0..=10).any(|n| minor == n.to_string());
        match minor {
            Some("") if self.version == "0.3" => {}
            Some(minor) if self.version.starts_with("0.3.") && known(minor) => {}
            _ if self.version.is_empty() => {
                return Err(SessionError::NotSimulated("version: absent, which means 0.1".into()));
            }
            _ => return Err(SessionError::NotSimulated(format!("version: {}", self.version))),
        }
        if !is_session_name(&self.name) {
            return Err(rule("name", "not a session name (letters, digits and _-.~, at most 128 in a component)"));
        }
        if self.predecessor.as_deref().is_some_and(|hash| !is_digest(hash)) {
            return Err(rule("predecessor", "not a session hash (64 lower-case hex digits)"));
        }
        self.normalise_access()?;
        self.normalise_secrets()?;
        self.normalise_volumes()?;
        self.normalise_services()?;
        self.check_security()
    }

    fn normalise_access(&mut self) -> Result<(), SessionError> {
        let AccessPolicy { read, update, create_sessions } = &mut self.access_policy;
        if read.is_empty() {
            read.push("CREATOR".into());
        }
        if update.is_empty() {
            update.push("CREATOR".into());
        }
        if create_sessions.is_empty() {
            create_sessions.clone_from(update);
        }
        for (key, policy) in [("read", read), ("update", update), ("create_sessions", create_sessions)] {
            let path = format!("access_policy.{key}");
            for who in policy.iter() {
                match who.as_str() {
                    "CREATOR" => {}
                    "ANY" | "NONE" if policy.len() == 1 => {}
                    "ANY" | "NONE" => return Err(rule(&path, format!("{who} must stand alone"))),
                    hash if is_digest(hash) => {}
                    other if other.starts_with("-----BEGIN") => {
                        return Err(SessionError::NotSimulated(format!("{path}: a certificate (name its key hash)")));
                    }
                    other if other.contains("$$SCONE::") => {
                        return Err(SessionError::NotSimulated(format!("{path}: a placeholder")));
                    }
                    other => return Err(rule(&path, format!("'{other}' is not CREATOR, ANY, NONE or a key hash"))),
                }
            }
        }
        Ok(())
    }

    fn normalise_secrets(&mut self) -> Result<(), SessionError> {
        let own_name = self.name.clone();
        check_names("secrets", self.secrets.iter().map(|secret| &secret.name))?;
        for (i, secret) in self.secrets.iter_mut().enumerate() {
            let path = format!("secrets[{i}]");
            for (j, export) in secret.export.iter_mut().enumerate() {
                resolve(&own_name, &mut export.session, &format!("{path}.export[{j}].session"))?;
            }
            if let Some(import) = &mut secret.import {
                resolve(&own_name, &mut import.session, &format!("{path}.import.session"))?;
                if !is_component(&import.secret) {
                    return Err(rule(&format!("{path}.import.secret"), "not a secret's name"));
                }
                if secret.value.is_some() || !secret.export.is_empty() {
                    return Err(rule(&path, "an imported secret has neither value nor export"));
                }
                continue;
            }
            let Some(kind) = secret.kind else { return Err(rule(&format!("{path}.kind"), "missing")) };
            if let Some(value) = secret.explicit_value() {
                let value = value.ok_or_else(|| match kind {
                    Kind::Ascii => rule(&format!("{path}.value"), "not printable ASCII"),
                    Kind::Binary => rule(&format!("{path}.value"), "not hex"),
                })?;
                if secret.size.is_some_and(|size| size != value.len()) {
                    return Err(rule(&format!("{path}.size"), "not the value's"));
                }
            }
            let size = secret.size.get_or_insert(match &secret.value {
                None => DEFAULT_SIZE,
                Some(value) if kind == Kind::Binary => value.len() / 2,
                Some(value) => value.len(),
            });
            if !(1..=MAX_SIZE).contains(size) {
                return Err(rule(&format!("{path}.size"), format!("not between 1 and {MAX_SIZE}")));
            }
        }
        Ok(())
    }

    fn normalise_volumes(&mut self) -> Result<(), SessionError> {
        let own_name = self.name.clone();
        check_names("volumes", self.volumes.iter().map(|volume| &volume.name))?;
        for (i, volume) in self.volumes.iter_mut().enumerate() {
            let path = format!("volumes[{i}]");
            for (j, export) in volume.export.iter_mut().enumerate() {
                resolve(&own_name, &mut export.session, &format!("{path}.export[{j}].session"))?;
            }
            if let Some(import) = &mut volume.import {
                resolve(&own_name, &mut import.session, &format!("{path}.import.session"))?;
                if !is_component(&import.volume) {
                    return Err(rule(&format!("{path}.import.volume"), "not a volume's name"));
                }
                if !volume.export.is_empty() {
                    return Err(rule(&path, "an imported volume has no export"));
                }
            }
        }
        check_names("images", self.images.iter().map(|image| &image.name))?;
        for (i, image) in self.images.iter().enumerate() {
            let mut paths = HashSet::new();
            for (j, mount) in image.volumes.iter().enumerate() {
                let path = format!("images[{i}].volumes[{j}]");
                if self.volume(&mount.name).is_none() {
                    return Err(rule(&format!("{path}.name"), format!("no volume '{}' is declared", mount.name)));
                }
                if !is_plain_absolute(&mount.path) || mount.path == "/" {
                    return Err(rule(&format!("{path}.path"), "not an absolute path below / without . and .."));
                }
                if !paths.insert(&mount.path) {
                    return Err(rule(&format!("{path}.path"), "used twice in this image"));
                }
            }
        }
        Ok(())
    }

    fn normalise_services(&mut self) -> Result<(), SessionError> {
        check_names("services", self.services.iter().map(|service| &service.name))?;
        for service in &mut self.services {
            if !service.mrenclaves.is_empty() {
                service.attestation.push(Variant { mrenclave: std::mem::take(&mut service.mrenclaves) });
            }
            service.attestation.iter_mut().flat_map(|v| &mut v.mrenclave).for_each(|m| m.make_ascii_lowercase());
        }
        for (i, service) in self.services.iter().enumerate() {
            let path = format!("services[{i}]");
            if let Some(image) = &service.image_name
                && !self.images.iter().any(|declared| &declared.name == image)
            {
                return Err(rule(&format!("{path}.image_name"), format!("no image '{image}' is declared")));
            }
            if service.command.first().is_none_or(String::is_empty) {
                return Err(SessionError::NotSimulated(format!("{path}: a service without command")));
            }
            for word in &service.command {
                if word.contains("@@") {
                    return Err(SessionError::NotSimulated(format!("{path}.command: host arguments (@@)")));
                }
                self.check_text(&format!("{path}.command"), word)?;
            }
            for (name, value) in &service.environment {
                let path = format!("{path}.environment.{name}");
                if name.is_empty() || name.contains(['=', '\0']) {
                    return Err(rule(&path, "not a variable's name"));
                }
                if name.starts_with(r"\@\@") {
                    return Err(SessionError::NotSimulated(format!("{path}: host variables (@@)")));
                }
                self.check_text(&path, value)?;
            }
            if service.pwd.as_deref().is_some_and(|pwd| !is_plain_absolute(pwd)) {
                return Err(rule(&format!("{path}.pwd"), "not an absolute path without . and .."));
            }
            if !service.measurements().iter().all(|m| is_digest(m)) {
                return Err(rule(&format!("{path}.attestation"), "a mrenclave is not 64 hex digits"));
            }
            if service.attestation.iter().any(|variant| variant.mrenclave.is_empty()) {
                return Err(rule(&format!("{path}.attestation"), "a variant names no mrenclave"));
            }
            if service.attestation.is_empty() && self.security.attestation.mode != Mode::None {
                return Err(rule(
                    &path,
                    "at least one attestation variant is needed unless security.attestation.mode is none",
                ));
            }
            if let Some(secret) = &service.one_time_password_shared_secret {
                self.check_shared_secret(&format!("{path}.one_time_password_shared_secret"), secret)?;
            }
        }
        Ok(())
    }

    fn check_security(&self) -> Result<(), SessionError> {
        let attestation = &self.security.attestation;
        let path = "security.attestation";
        if let Some(unknown) = attestation.tolerate.iter().find(|name| !TOLERABLE.contains(&name.as_str())) {
            return Err(rule(&format!("{path}.tolerate"), format!("'{unknown}' is not known")));
        }
        let debug = attestation.tolerate.iter().any(|name| name == "debug-mode");
        if attestation.ignore_advisories.iter().any(|name| name == "*") && !debug {
            return Err(rule(&format!("{path}.ignore_advisories"), "\"*\" needs debug-mode to be tolerated"));
        }
        match &attestation.one_time_password_shared_secret {
            Some(secret) => self.check_shared_secret(&format!("{path}.one_time_password_shared_secret"), secret),
            None => Ok(()),
        }
    }

    /// Text of a command or of the environment: placeholders name declared secrets in formats they have.
    fn check_text(&self, path: &str, text: &str) -> Result<(), SessionError> {
        if text.contains('\0') {
            return Err(rule(path, "holds a NUL"));
        }
        for part in parts(text).map_err(|problem| rule(path, problem))? {
            let Part::Secret(name, format) = part else { continue };
            let secret = self.secret(name).ok_or_else(|| rule(path, format!("no secret '{name}' is declared")))?;
            // An import may leave the kind to the owner: then it is checked when it is used.
            if secret.kind.is_some_and(|kind| !format.suits(kind)) {
                return Err(match format {
                    Format::Plain => SessionError::NotSimulated(format!(
                        "{path}: '{name}' is binary and has no format (such as :hex)"
                    )),
                    _ => rule(path, format!("'{name}' is ascii and takes no format")),
                });
            }
        }
        Ok(())
    }

    /// A shared secret: base32 of at least 128 bits, or the name of a secret that gives one (section 3.1).
    fn check_shared_secret(&self, path: &str, text: &str) -> Result<(), SessionError> {
        self.check_text(path, text)?;
        let weak = || rule(path, "not base32 of at least 128 bits");
        let (name, format) = match parts(text).map_err(|problem| rule(path, problem))?[..] {
            [Part::Secret(name, format)] => (name, format),
            [Part::Text(text)] => return decode_shared_secret(text).map(drop).ok_or_else(weak),
            _ => return Err(rule(path, "neither base32 nor one placeholder")),
        };
        let Some(secret) = self.secret(name) else { return Ok(()) };
        match secret.kind {
            Some(Kind::Binary) if format != Format::Base32NoPad => {
                Err(rule(path, format!("the binary secret '{name}' needs :base32nopad")))
            }
            Some(Kind::Binary) if secret.size.is_some_and(|size| size < 16) => {
                Err(rule(path, format!("the secret '{name}' is shorter than 16 bytes")))
            }
            Some(Kind::Ascii) if secret.import.is_none() => match &secret.value {
                Some(value) => decode_shared_secret(value).map(drop).ok_or_else(weak),
                // Printable characters at random are not base32.
                None => Err(weak()),
            },
            _ => Ok(()),
        }
    }
}

impl Secret {
    /// The bytes of an explicit value; `Some(None)` if it is not what its kind says.
    pub fn explicit_value(&self) -> Option<Option<Vec<u8>>> {
        let value = self.value.as_ref()?;
        Some(match self.kind {
            Some(Kind::Binary) => data_encoding::HEXLOWER_PERMISSIVE.decode(value.as_bytes()).ok(),
            _ => value.bytes().all(|c| (0x20..0x7f).contains(&c)).then(|| value.clone().into_bytes()),
        })
    }
}

fn rule(path: &str, problem: impl Into<String>) -> SessionError {
    SessionError::Rule { path: path.to_owned(), problem: problem.into() }
}

fn check_names<'a>(list: &str, names: impl Iterator<Item = &'a String>) -> Result<(), SessionError> {
    let mut seen = HashSet::new();
    for (i, name) in names.enumerate() {
        let path = format!("{list}[{i}].name");
        if !is_component(name) {
            return Err(rule(&path, "not a name (letters, digits and _-.~, at most 128)"));
        }
        if !seen.insert(name) {
            return Err(rule(&path, format!("'{name}' is declared twice")));
        }
    }
    Ok(())
}

/// Makes a reference to a session absolute: `./nested` and `../sibling` start from this session's name (section 2.11).
fn resolve(own_name: &str, reference: &mut String, path: &str) -> Result<(), SessionError> {
    if reference.starts_with("./") || reference.starts_with("../") {
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
        *reference = at.join("/");
    }
    if is_session_name(reference) { Ok(()) } else { Err(rule(path, "not a session's name")) }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_plain_absolute(path: &str) -> bool {
    path.starts_with('/')
        && !path.contains('\0')
        && (path == "/" || path[1..].split('/').all(|part| !matches!(part, "" | "." | "..")))
}
