//! The rules a session must keep, and the normal form (`reference/scone.md` sections 2 and 8).

use std::collections::HashSet;

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::placeholder::{Format, Part, Placeholder, parts};
use super::{AccessPolicy, Endpoint, KeyType, Kind, Mode, Secret, Session, SessionError, Variant};
use super::{decode_shared_secret, host_argument, host_variable, is_component, is_session_name};
use crate::tls::key_hash;

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

/// The certificates above a certificate.
const MAX_CHAIN: usize = 8;

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
        if self.name == "/" {
            return Err(SessionError::NotSimulated("name: the root namespace".into()));
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
            let alone = policy.len() == 1;
            for who in policy.iter_mut() {
                match who.as_str() {
                    "CREATOR" => {}
                    "ANY" | "NONE" if alone => {}
                    "ANY" | "NONE" => return Err(rule(&path, format!("{who} must stand alone"))),
                    hash if is_digest(hash) => {}
                    pem if pem.trim_start().starts_with("-----BEGIN CERTIFICATE-----") => {
                        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok();
                        let hash = certificate.and_then(|certificate| key_hash(&certificate));
                        *who = hash.ok_or_else(|| rule(&path, "a certificate is damaged"))?;
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
                let path = format!("{path}.export[{j}]");
                match (&mut export.session, &mut export.namespace) {
                    (Some(session), None) => {
                        resolve(&own_name, session, &format!("{path}.session"))?;
                        check_pin(export.session_hash.as_deref(), &path)?;
                    }
                    (None, Some(namespace)) if export.session_hash.is_none() => {
                        resolve(&own_name, namespace, &format!("{path}.namespace"))?;
                    }
                    _ => {
                        return Err(rule(&path, "needs either session (and session_hash, if you like) or namespace"));
                    }
                }
            }
            secret.san.extend(secret.dns.drain(..).map(|name| format!("dns:{name}")));
            if let Some(import) = &mut secret.import {
                let path = format!("{path}.import");
                resolve(&own_name, &mut import.session, &format!("{path}.session"))?;
                check_pin(import.session_hash.as_deref(), &path)?;
                if !is_component(&import.secret) {
                    return Err(rule(&format!("{path}.secret"), "not a secret's name"));
                }
            }
            match &secret.import {
                Some(_) => secret.check_import(&path)?,
                None => secret.normalise_own(&path)?,
            }
        }
        for (i, secret) in self.secrets.iter().enumerate() {
            self.check_signers(&format!("secrets[{i}]"), secret)?;
        }
        Ok(())
    }

    /// A certificate's private key and issuer are declared, and no certificate is signed with itself in the end.
    fn check_signers(&self, path: &str, secret: &Secret) -> Result<(), SessionError> {
        let of_kind = |name: &str, kind: Kind| {
            // An import may leave the kind to the owner: then it is checked when it is used.
            self.secret(name).is_some_and(|found| found.kind.is_none_or(|known| known == kind))
        };
        if let Some(key) = &secret.private_key
            && !of_kind(key, Kind::PrivateKey)
        {
            return Err(rule(&format!("{path}.private_key"), format!("no private-key '{key}' is declared")));
        }
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

    fn normalise_volumes(&mut self) -> Result<(), SessionError> {
        let own_name = self.name.clone();
        check_names("volumes", self.volumes.iter().map(|volume| &volume.name))?;
        for (i, volume) in self.volumes.iter_mut().enumerate() {
            let path = format!("volumes[{i}]");
            for (j, export) in volume.export.iter_mut().enumerate() {
                let path = format!("{path}.export[{j}]");
                resolve(&own_name, &mut export.to.session, &format!("{path}.session"))?;
                check_pin(export.to.session_hash.as_deref(), &path)?;
                if export.volume_alias.as_deref().is_some_and(|alias| !is_component(alias)) {
                    return Err(rule(&format!("{path}.volume_alias"), "not a volume's name"));
                }
            }
            if let Some(import) = &mut volume.import {
                let path = format!("{path}.import");
                resolve(&own_name, &mut import.session, &format!("{path}.session"))?;
                check_pin(import.session_hash.as_deref(), &path)?;
                if !is_component(&import.volume) {
                    return Err(rule(&format!("{path}.volume"), "not a volume's name"));
                }
            }
            if volume.import.is_some() && !volume.export.is_empty() {
                return Err(rule(&path, "an imported volume has no export"));
            }
        }
        self.normalise_injection_files()?;
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

    fn normalise_injection_files(&mut self) -> Result<(), SessionError> {
        for file in self.images.iter_mut().flat_map(|image| &mut image.injection_files) {
            if file.permission.is_empty() {
                file.permission = "0o700".into();
            }
        }
        for (i, image) in self.images.iter().enumerate() {
            for (j, file) in image.injection_files.iter().enumerate() {
                let path = format!("images[{i}].injection_files[{j}]");
                if !is_plain_absolute(&file.path) || file.path == "/" {
                    return Err(rule(&format!("{path}.path"), "not an absolute path below / without . and .."));
                }
                // Neither can a file be a directory to another, nor be kept with a volume.
                let within = |outer: &str| std::path::Path::new(&file.path).starts_with(outer);
                let others = image.injection_files.iter().enumerate().filter(|(k, _)| *k != j);
                if others.map(|(_, other)| &other.path).any(|other| within(other)) {
                    return Err(rule(&format!("{path}.path"), "used twice in this image"));
                }
                if image.volumes.iter().any(|mount| within(&mount.path)) {
                    return Err(SessionError::NotSimulated(format!("{path}.path: a file in a volume")));
                }
                if file.mode().is_none() {
                    return Err(rule(&format!("{path}.permission"), "not 0o and octal digits, 0o777 at most"));
                }
                self.check_placeholders(&format!("{path}.content"), &file.content)?;
            }
        }
        Ok(())
    }

    fn normalise_services(&mut self) -> Result<(), SessionError> {
        check_names("services", self.services.iter().map(|service| &service.name))?;
        for service in &mut self.services {
            if !service.mrenclaves.is_empty() {
                service.attestation.push(Variant { mrenclave: std::mem::take(&mut service.mrenclaves), signer: None });
            }
            for variant in &mut service.attestation {
                let signer = variant.signer.iter_mut().map(|signer| &mut signer.mrsigner);
                variant.mrenclave.iter_mut().chain(signer).for_each(|measured| measured.make_ascii_lowercase());
            }
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
            let mut positions = HashSet::new();
            for word in &service.command {
                let path = format!("{path}.command");
                match host_argument(word) {
                    Some(position) if position.starts_with('0') => {
                        return Err(rule(&path, format!("'{word}': the caller's arguments are counted from 1")));
                    }
                    Some(position) if position.parse::<u16>().is_err() => {
                        return Err(rule(&path, format!("'{word}': there are not that many arguments")));
                    }
                    Some(position) if !positions.insert(position) => {
                        return Err(rule(&path, format!("'{word}' stands twice")));
                    }
                    Some(_) => {}
                    None if word.contains("@@") => {
                        return Err(SessionError::NotSimulated(format!("{path}: @@ inside a word")));
                    }
                    None => self.check_text(&path, word)?,
                }
            }
            if service.command.first().is_some_and(|word| host_argument(word).is_some()) {
                return Err(rule(&format!("{path}.command"), "the program's name cannot be the caller's"));
            }
            for (name, value) in &service.environment {
                let path = format!("{path}.environment.{name}");
                let host = host_variable(name);
                let plain = host.unwrap_or(name);
                if plain.is_empty() || plain.contains(['=', '\0']) {
                    return Err(rule(&path, "not a variable's name"));
                }
                if host.is_some_and(|name| service.environment.contains_key(name)) {
                    return Err(rule(&path, "both the caller's and the policy's"));
                }
                self.check_text(&path, value)?;
            }
            if service.pwd.as_deref().is_some_and(|pwd| !is_plain_absolute(pwd)) {
                return Err(rule(&format!("{path}.pwd"), "not an absolute path without . and .."));
            }
            for variant in &service.attestation {
                let wrong = |problem| Err(rule(&format!("{path}.attestation"), problem));
                if !variant.mrenclave.iter().all(|m| is_digest(m)) {
                    return wrong("a mrenclave is not 64 hex digits");
                }
                match &variant.signer {
                    None if variant.mrenclave.is_empty() => {
                        return wrong("a variant names neither mrenclave nor signer");
                    }
                    Some(signer) if !is_digest(&signer.mrsigner) => return wrong("a mrsigner is not 64 hex digits"),
                    Some(signer) if signer.isvsvn.and(signer.isvsvn_min.or(signer.isvsvn_max)).is_some() => {
                        return wrong("isvsvn and isvsvn_min or isvsvn_max exclude one another");
                    }
                    _ => {}
                }
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
        if self.security.service_access_token.as_deref().is_some_and(str::is_empty) {
            return Err(rule("security.service_access_token", "empty"));
        }
        match &attestation.one_time_password_shared_secret {
            Some(secret) => self.check_shared_secret(&format!("{path}.one_time_password_shared_secret"), secret),
            None => Ok(()),
        }
    }

    /// Text of a command or of the environment: no NUL, and only placeholders that give text.
    fn check_text(&self, path: &str, text: &str) -> Result<(), SessionError> {
        if text.contains('\0') {
            return Err(rule(path, "holds a NUL"));
        }
        self.check_placeholders(path, text)?;
        for part in parts(text).map_err(|problem| rule(path, problem))? {
            if let Part::Secret(Placeholder { name, format, .. }) = part
                && !format.is_text(self.secret(name).and_then(|secret| secret.kind))
            {
                return Err(rule(path, format!("'{name}' is in binary form here: give it a format such as :hex")));
            }
        }
        Ok(())
    }

    /// Placeholders name declared secrets in formats they have.
    fn check_placeholders(&self, path: &str, text: &str) -> Result<(), SessionError> {
        for part in parts(text).map_err(|problem| rule(path, problem))? {
            let Part::Secret(Placeholder { name, format, json }) = part else { continue };
            let Some(secret) = self.secret(name) else {
                let old = [".hex", ".crt", ".key", ".chain"].iter().find_map(|suffix| name.strip_suffix(suffix));
                if old.is_some_and(|name| self.secret(name).is_some()) {
                    return Err(SessionError::NotSimulated(format!("{path}: the old format of '{name}'")));
                }
                return Err(rule(path, format!("no secret '{name}' is declared")));
            };
            // An import may leave the kind to the owner: then it is checked when it is used.
            if let Some(kind) = secret.kind.filter(|kind| !format.suits(*kind)) {
                return Err(rule(path, format!("'{name}' is {} and does not have that format", kind.text())));
            }
            if json && !format.is_text(secret.kind) {
                return Err(rule(path, format!("'{name}' is in binary form and cannot be escaped")));
            }
            let key_is_there = secret.import.is_some() || secret.private_key.is_some();
            if matches!(format, Format::CrtKey | Format::CrtKeyDer) && !key_is_there {
                return Err(rule(path, format!("'{name}' has no private key")));
            }
        }
        Ok(())
    }

    /// A shared secret: base32 of at least 128 bits, or the name of a secret that gives one (section 3.1).
    fn check_shared_secret(&self, path: &str, text: &str) -> Result<(), SessionError> {
        self.check_text(path, text)?;
        let weak = || rule(path, "not base32 of at least 128 bits");
        let (name, format) = match parts(text).map_err(|problem| rule(path, problem))?[..] {
            [Part::Secret(Placeholder { name, format, json: false })] => (name, format),
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
            Some(Kind::PrivateKey | Kind::X509 | Kind::X509Ca) => Err(weak()),
            _ => Ok(()),
        }
    }
}

impl Secret {
    /// Which of its keys are given, and for which kinds they are.
    fn given(&self) -> [(&'static str, bool, &'static [Kind]); 9] {
        const CERTIFICATES: &[Kind] = &[Kind::X509, Kind::X509Ca];
        [
            ("size", self.size.is_some(), &[Kind::Ascii, Kind::Binary]),
            ("key_type", self.key_type.is_some(), &[Kind::PrivateKey]),
            ("migrate", self.migrate, &[Kind::PrivateKey]),
            ("private_key", self.private_key.is_some(), CERTIFICATES),
            ("issuer", self.issuer.is_some(), CERTIFICATES),
            ("common_name", self.common_name.is_some(), CERTIFICATES),
            ("endpoint", self.endpoint.is_some(), &[Kind::X509]),
            ("san", !self.san.is_empty(), &[Kind::X509]),
            ("valid_for", self.valid_for.is_some(), CERTIFICATES),
        ]
    }

    fn check_import(&self, path: &str) -> Result<(), SessionError> {
        if self.value.is_some() || !self.export.is_empty() {
            return Err(rule(path, "an imported secret has neither value nor export"));
        }
        let is_check = |key: &str| key == "size" && self.kind.is_none_or(Kind::is_bytes);
        match self.given().iter().find(|(key, given, _)| *given && !is_check(key)) {
            Some((key, ..)) => Err(rule(&format!("{path}.{key}"), "not for an imported secret")),
            None => Ok(()),
        }
    }

    fn normalise_own(&mut self, path: &str) -> Result<(), SessionError> {
        let Some(kind) = self.kind else { return Err(rule(&format!("{path}.kind"), "missing")) };
        if let Some((key, ..)) = self.given().iter().find(|(_, given, kinds)| *given && !kinds.contains(&kind)) {
            return Err(rule(&format!("{path}.{key}"), format!("not for a secret of kind {}", kind.text())));
        }
        let value = match self.explicit_value() {
            None => None,
            Some(Some(value)) => Some(value),
            Some(None) => {
                let wanted = match kind {
                    Kind::Ascii => "not printable ASCII",
                    Kind::Binary => "not hex",
                    Kind::PrivateKey => "not a PKCS#8 private key in PEM",
                    Kind::X509 | Kind::X509Ca => "not a certificate in PEM",
                };
                return Err(rule(&format!("{path}.value"), wanted));
            }
        };
        match kind {
            Kind::Ascii | Kind::Binary => {
                let size = *self.size.get_or_insert(value.as_ref().map_or(DEFAULT_SIZE, Vec::len));
                if value.is_some_and(|value| value.len() != size) {
                    return Err(rule(&format!("{path}.size"), "not the value's"));
                }
                if !(1..=MAX_SIZE).contains(&size) {
                    return Err(rule(&format!("{path}.size"), format!("not between 1 and {MAX_SIZE}")));
                }
            }
            Kind::PrivateKey => match &self.value {
                Some(_) if self.key_type.is_some() || self.migrate => {
                    return Err(rule(path, "an explicit private key has neither key_type nor migrate"));
                }
                Some(value) if rcgen::KeyPair::from_pem(value).is_err() => {
                    return Err(rule(&format!("{path}.value"), "not a private key of a known type"));
                }
                Some(_) => {}
                None if matches!(self.key_type, Some(KeyType::Rsa2048 | KeyType::Rsa3072)) => {
                    return Err(SessionError::NotSimulated(format!("{path}.key_type: drawing an RSA key")));
                }
                None => {
                    self.key_type.get_or_insert(KeyType::P256);
                }
            },
            Kind::X509 | Kind::X509Ca => {
                let damaged = |value: &Vec<u8>| key_hash(&CertificateDer::from(value.as_slice())).is_none();
                match &value {
                    Some(value) if damaged(value) => {
                        return Err(rule(&format!("{path}.value"), "not a certificate in PEM"));
                    }
                    None if self.private_key.is_none() => {
                        return Err(rule(&format!("{path}.private_key"), "missing"));
                    }
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
                if self.valid_for.as_deref().is_some_and(|text| duration(text).is_none()) {
                    return Err(rule(&format!("{path}.valid_for"), "not a duration such as 90 days or 1 year"));
                }
            }
        }
        Ok(())
    }

    /// How long a certificate is valid, in seconds; `None`: virtually for ever.
    pub fn validity(&self) -> Option<u64> {
        duration(self.valid_for.as_deref()?)
    }
}

/// The seconds of `90 days`, `59d`, `1 year 6 months`. Assumption, since SCONE shows examples only: a month and a year are
/// the twelfth of, and 365.25 days.
fn duration(text: &str) -> Option<u64> {
    let mut seconds: u64 = 0;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let number = &rest[..rest.find(|c: char| !c.is_ascii_digit())?];
        rest = rest[number.len()..].trim_start();
        let unit = &rest[..rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len())];
        rest = rest[unit.len()..].trim_start();
        let each = match unit {
            "s" | "sec" | "second" | "seconds" => 1,
            "m" | "min" | "minute" | "minutes" => 60,
            "h" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            "month" | "months" => 2_629_800,
            "y" | "year" | "years" => 31_557_600,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(each)?)?;
    }
    // Beyond that no certificate could say when it ends.
    (1..=2000 * 31_557_600).contains(&seconds).then_some(seconds)
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

/// A pinned session hash.
fn check_pin(hash: Option<&str>, path: &str) -> Result<(), SessionError> {
    match hash.is_none_or(is_digest) {
        true => Ok(()),
        false => Err(rule(&format!("{path}.session_hash"), "not a session hash (64 lower-case hex digits)")),
    }
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
