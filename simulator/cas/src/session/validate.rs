//! The rules that a session in normal form must keep (`reference/scone.md` sections 2 and 8).

mod secrets;

use std::collections::HashSet;
use std::path::Path;

use scone_protocol::unhex;

use super::access::MAX_NESTING;
use super::placeholder::{Format, OPEN, Part, Placeholder};
use super::tree::MAX_ENTRIES;
use super::{
    AccessPolicy, Image, Kind, Mode, Or, Rule, Security, Service, Session, SessionError, Variant, Weight, rule,
};
use super::{decode_shared_secret, host_argument, host_variable, is_component, is_free_name, is_session_name};

const TOLERABLE: &[&str] = &[
    "debug-mode",
    "hyperthreading",
    "insecure-igpu",
    "software-hardening-needed",
    "aepic-leak",
    "insecure-configuration",
    "outdated-tcb",
    "local-attestation-trust-cas-tcb",
];

/// What a name is, for a check and for the reader.
type Names = (fn(&str) -> bool, &'static str);
const COMPONENTS: Names = (is_component, "letters, digits and _-.~, at most 128");
const FREE_NAMES: Names = (is_free_name, "at most 512 bytes, no control characters");

impl Session {
    /// Checks language, name and predecessor. These come first, since references depend on the name.
    pub(super) fn validate_head(&self) -> Result<(), SessionError> {
        check_version(&self.version)?;
        if self.name == "/" {
            return Err(SessionError::NotSimulated("name: the root namespace".into()));
        }
        if !is_session_name(&self.name) {
            return Err(rule("name", "not a session name (letters, digits and _-.~, at most 128 in a component)"));
        }
        if self.predecessor.as_deref().is_some_and(|hash| !is_digest(hash)) {
            return Err(rule("predecessor", "not a session hash (64 lower-case hex digits)"));
        }
        match &self.namespace_hash {
            Some(hash) if !is_digest(hash) => {
                return Err(rule("namespace_hash", "not a session hash (64 lower-case hex digits)"));
            }
            Some(_) if self.predecessor.is_some() => {
                return Err(rule("namespace_hash", "predecessor and namespace_hash exclude one another"));
            }
            Some(_) if self.parent().is_none() => {
                return Err(SessionError::NotSimulated("namespace_hash: of the root namespace".into()));
            }
            _ => {}
        }
        let is_salt = |salt: &String| unhex(&salt.to_ascii_lowercase()).is_some_and(|salt| salt.len() == 16);
        match &self.salt {
            Some(salt) if !is_salt(salt) => Err(rule("salt", "not 16 bytes in hex")),
            _ => Ok(()),
        }
    }

    /// Checks everything else.
    pub(super) fn validate(&self) -> Result<(), SessionError> {
        self.check_access()?;
        self.check_secrets()?;
        self.check_volumes()?;
        self.check_images()?;
        let weight = Weight::of_a_file();
        let security = self.put_together_now("security", &self.security, &weight)?;
        let security = security.as_ref().and_then(Or::given);
        // Otherwise another session knows: it is checked when a service starts.
        security.map_or(Ok(()), |security| self.check_security(security))?;
        check_names("services", self.services.iter().map(|service| &service.name), COMPONENTS)?;
        for (i, service) in self.services.iter().enumerate() {
            self.check_service(&format!("services[{i}]"), service)?;
            self.check_attestation(&format!("services[{i}]"), service, security, &weight)?;
        }
        Ok(())
    }

    /// Checks what a service must show, if this file says it.
    fn check_attestation(
        &self,
        path: &str,
        service: &Service,
        security: Option<&Security>,
        weight: &Weight,
    ) -> Result<(), SessionError> {
        let inner = format!("{path}.attestation");
        let Some(variants) = self.put_together_now(&inner, &service.attestation, weight)? else { return Ok(()) };
        let is_judged = security.is_some_and(Security::judges_evidence);
        let variants = check_variants(&inner, variants)?;
        if variants.is_empty() && is_judged {
            return Err(rule(
                path,
                "at least one attestation variant is needed unless security.attestation.mode is none",
            ));
        }
        Ok(())
    }

    fn check_access(&self) -> Result<(), SessionError> {
        let mut checked = HashSet::new();
        self.access_policy.check(&mut |path, placeholder| {
            // A long list may name the same large fragment over and over.
            if checked.insert(placeholder.to_owned()) { self.check_access_secret(path, placeholder) } else { Ok(()) }
        })
    }

    /// A secret in whose value the access policy names somebody.
    fn check_access_secret(&self, path: &str, entry: &str) -> Result<(), SessionError> {
        self.check_placeholders(path, entry)?;
        let [Part::Secret(Placeholder { name, format: Format::Plain, json: false })] = self.parts(path, entry)?[..]
        else {
            return Err(rule(path, "not one placeholder without format"));
        };
        let Some(secret) = self.secret(name) else { return Ok(()) };
        match (secret.kind, secret.value.as_deref()) {
            (Some(kind @ (Kind::Binary | Kind::PrivateKey | Kind::PublicKey | Kind::Jwt)), _) => {
                Err(rule(path, format!("'{name}' is {}, not ascii or a certificate", kind.text())))
            }
            // What an import says may change: then it is ignored.
            (Some(Kind::ConfigFragment), Some(fragment)) => AccessPolicy::of_fragment(fragment)
                .map(drop)
                .map_err(|why| rule(path, format!("the config-fragment '{name}' is no access policy: {why}"))),
            _ => Ok(()),
        }
    }

    fn check_volumes(&self) -> Result<(), SessionError> {
        check_names("volumes", self.volumes.iter().map(|volume| &volume.name), FREE_NAMES)?;
        for (i, volume) in self.volumes.iter().enumerate() {
            let path = format!("volumes[{i}]");
            for (j, export) in volume.export.iter().enumerate() {
                let path = format!("{path}.export[{j}]");
                check_reference(&export.to.session, &format!("{path}.session"))?;
                check_pin(export.to.session_hash.as_deref(), &path)?;
                if export.volume_alias.as_deref().is_some_and(|alias| !is_free_name(alias)) {
                    return Err(rule(&format!("{path}.volume_alias"), "not a volume's name"));
                }
            }
            if let Some(import) = &volume.import {
                let path = format!("{path}.import");
                check_reference(&import.session, &format!("{path}.session"))?;
                check_pin(import.session_hash.as_deref(), &path)?;
                if !is_free_name(&import.volume) {
                    return Err(rule(&format!("{path}.volume"), "not a volume's name"));
                }
            }
            if volume.import.is_some() && !volume.export.is_empty() {
                return Err(rule(&path, "an imported volume has no export"));
            }
        }
        Ok(())
    }

    fn check_images(&self) -> Result<(), SessionError> {
        for (i, image) in self.images.iter().enumerate() {
            self.check_injection_files(&format!("images[{i}]"), image)?;
        }
        check_names("images", self.images.iter().map(|image| &image.name), FREE_NAMES)?;
        for (i, image) in self.images.iter().enumerate() {
            let mut paths = HashSet::new();
            for (j, mount) in image.volumes.iter().enumerate() {
                let path = format!("images[{i}].volumes[{j}]");
                if self.volume(&mount.name).is_none() {
                    return Err(rule(&format!("{path}.name"), format!("no volume '{}' is declared", mount.name)));
                }
                check_image_path(&mount.path, &path)?;
                if !paths.insert(&mount.path) {
                    return Err(rule(&format!("{path}.path"), "used twice in this image"));
                }
            }
        }
        Ok(())
    }

    fn check_injection_files(&self, path: &str, image: &Image) -> Result<(), SessionError> {
        for (j, file) in image.injection_files.iter().enumerate() {
            let path = format!("{path}.injection_files[{j}]");
            check_image_path(&file.path, &path)?;
            if image.volumes.iter().any(|mount| Path::new(&file.path).starts_with(&mount.path)) {
                return Err(SessionError::NotSimulated(format!("{path}.path: a file in a volume")));
            }
            if file.mode().is_none() {
                return Err(rule(&format!("{path}.permission"), "not 0o and octal digits, 0o777 at most"));
            }
            if let Some(content) = &file.content {
                self.check_placeholders(&format!("{path}.content"), content)?;
            }
        }
        // A file cannot be another file's directory. Sorted, a path stands right before those below it.
        let files = image.injection_files.iter().enumerate();
        let mut paths: Vec<_> = files.map(|(j, file)| (Path::new(&file.path), j)).collect();
        paths.sort_unstable();
        if let Some([_, (_, j)]) = paths.windows(2).find(|pair| pair[1].0.starts_with(pair[0].0)) {
            return Err(rule(&format!("{path}.injection_files[{j}].path"), "used twice in this image"));
        }
        let provided = image.provide_secrets.iter().flatten();
        match provided.into_iter().find(|name| self.secret(name).is_none()) {
            Some(name) => Err(rule(&format!("{path}.provide_secrets"), format!("no secret '{name}' is declared"))),
            None => Ok(()),
        }
    }

    fn check_service(&self, path: &str, service: &Service) -> Result<(), SessionError> {
        if let Some(image) = &service.image_name
            && !self.images.iter().any(|declared| &declared.name == image)
        {
            return Err(rule(&format!("{path}.image_name"), format!("no image '{image}' is declared")));
        }
        self.check_command(path, &service.command)?;
        self.check_environment(path, service)?;
        if service.pwd.as_deref().is_some_and(|pwd| !is_plain_absolute(pwd)) {
            return Err(rule(&format!("{path}.pwd"), "not an absolute path without . and .."));
        }
        match &service.one_time_password_shared_secret {
            Some(secret) => self.check_shared_secret(&format!("{path}.one_time_password_shared_secret"), secret),
            None => Ok(()),
        }
    }

    fn check_command(&self, path: &str, command: &[String]) -> Result<(), SessionError> {
        let path = format!("{path}.command");
        if command.first().is_some_and(String::is_empty) {
            return Err(rule(&path, "the program's name is empty"));
        }
        if command.len() > MAX_ENTRIES {
            return Err(rule(&path, format!("more than {MAX_ENTRIES} words")));
        }
        let mut positions = HashSet::new();
        for word in command {
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
        if command.first().is_some_and(|word| host_argument(word).is_some()) {
            return Err(rule(&path, "the program's name cannot be the caller's"));
        }
        Ok(())
    }

    fn check_environment(&self, path: &str, service: &Service) -> Result<(), SessionError> {
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
        Ok(())
    }

    /// Checks a section that is put together.
    pub fn check_security(&self, security: &Security) -> Result<(), SessionError> {
        let path = "security.attestation";
        let attestation = security.attestation().ok_or_else(|| rule(path, "not known"))?;
        if !attestation.trusted_scone_qe_pubkeys.iter().all(|key| is_digest(&key.to_ascii_lowercase())) {
            return Err(rule(&format!("{path}.trusted_scone_qe_pubkeys"), "a key is not 64 hex digits"));
        }
        if let Some(unknown) = attestation.tolerate.iter().find(|name| !TOLERABLE.contains(&name.as_str())) {
            return Err(rule(&format!("{path}.tolerate"), format!("'{unknown}' is not known")));
        }
        if let Some(token) = &security.service_access_token {
            if token.is_empty() {
                return Err(rule("security.service_access_token", "empty"));
            }
            self.check_text("security.service_access_token", token)?;
            // A placeholder in another spelling would be a token that every reader of the policy knows.
            if self.parts("security.service_access_token", token)?.iter().any(is_nearly_placeholder) {
                return Err(rule("security.service_access_token", "'$$' stands in no placeholder"));
            }
        }
        match &attestation.one_time_password_shared_secret {
            Some(secret) => self.check_shared_secret(&format!("{path}.one_time_password_shared_secret"), secret),
            None => Ok(()),
        }
    }

    /// Text of a command, of the environment or of a token: no NUL, and only placeholders that give text.
    pub(super) fn check_text(&self, path: &str, text: &str) -> Result<(), SessionError> {
        if text.contains('\0') {
            return Err(rule(path, "holds a NUL"));
        }
        self.check_placeholders(path, text)?;
        for part in self.parts(path, text)? {
            if let Part::Secret(Placeholder { name, format, .. }) = part
                && !format.is_text(self.secret(name).and_then(|secret| secret.kind))
            {
                return Err(rule(path, format!("'{name}' is in binary form here: give it a format such as :hex")));
            }
        }
        Ok(())
    }

    /// Placeholders name declared secrets in formats they have.
    pub(super) fn check_placeholders(&self, path: &str, text: &str) -> Result<(), SessionError> {
        for part in self.parts(path, text)? {
            let Part::Secret(Placeholder { name, format, json }) = part else { continue };
            let Some(secret) = self.secret(name) else {
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
        let (name, format) = match self.parts(path, text)?[..] {
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
                // Random printable characters are not base32.
                None => Err(weak()),
            },
            Some(kind) if !kind.is_bytes() => Err(weak()),
            _ => Ok(()),
        }
    }
}

/// Checks an entry of an access policy that is a placeholder, at this path.
type CheckPlaceholder<'a> = dyn FnMut(&str, &str) -> Result<(), SessionError> + 'a;

impl AccessPolicy {
    pub(super) fn check(&self, check_placeholder: &mut CheckPlaceholder<'_>) -> Result<(), SessionError> {
        for (key, rules) in self.lists() {
            let path = format!("access_policy.{key}");
            if rules.iter().any(|rule| rule.nesting() > MAX_NESTING) {
                return Err(rule(&path, format!("more than {MAX_NESTING} require- rules within one another")));
            }
            rules.iter().try_for_each(|entry| entry.check(&path, rules.len() == 1, check_placeholder))?;
        }
        Ok(())
    }
}

impl Rule {
    fn check(&self, path: &str, alone: bool, check_placeholder: &mut CheckPlaceholder<'_>) -> Result<(), SessionError> {
        let who = match self {
            Rule::Signer(_) => return Ok(()),
            Rule::All(rules) | Rule::AtLeast(_, rules) => {
                self.miscounts().map_or(Ok(()), |problem| Err(rule(path, problem)))?;
                return rules.iter().try_for_each(|rule| rule.check(path, false, check_placeholder));
            }
            Rule::Who(who) => who,
        };
        match who.as_str() {
            "CREATOR" => Ok(()),
            "ANY" | "NONE" if alone => Ok(()),
            "ANY" | "NONE" => Err(rule(path, format!("{who} must stand alone"))),
            hash if is_digest(hash) || is_scone_key_hash(hash) => Ok(()),
            placeholder if placeholder.contains(OPEN) => check_placeholder(path, placeholder),
            other => Err(rule(path, format!("'{other}' is not CREATOR, ANY, NONE or a key hash"))),
        }
    }
}

impl Security {
    /// Of a section that is put together: whether evidence is judged.
    pub fn judges_evidence(&self) -> bool {
        self.attestation().is_none_or(|attestation| attestation.mode != Or::Given(Mode::None))
    }
}

impl Variant {
    fn check(&self, path: &str) -> Result<(), SessionError> {
        if !self.mrenclave.iter().all(|m| is_digest(m)) {
            return Err(rule(path, "a mrenclave is not 64 hex digits"));
        }
        match &self.signer {
            None if self.mrenclave.is_empty() => Err(rule(path, "a variant names neither mrenclave nor signer")),
            Some(Or::Placeholder(_)) => Err(rule(path, "not a signer")),
            Some(Or::Given(signer)) if !is_digest(&signer.mrsigner) => {
                Err(rule(path, "a mrsigner is not 64 hex digits"))
            }
            Some(Or::Given(signer)) if signer.accepts_no_version() => {
                Err(rule(path, "isvsvn_min is above isvsvn_max: no program can meet it"))
            }
            Some(Or::Given(signer))
                if signer.isvsvn.is_some() && (signer.isvsvn_min.is_some() || signer.isvsvn_max.is_some()) =>
            {
                Err(rule(path, "isvsvn and isvsvn_min or isvsvn_max exclude one another"))
            }
            _ => Ok(()),
        }
    }
}

/// Checks variants that are put together, and brings them into normal form.
pub fn check_variants(path: &str, variants: Vec<Or<Variant>>) -> Result<Vec<Variant>, SessionError> {
    let check = |variant| {
        let Or::Given(mut variant) = variant else { return Err(rule(path, "not a variant")) };
        Variant::normalise(&mut variant);
        variant.check(path)?;
        Ok(variant)
    };
    variants.into_iter().map(check).collect()
}

/// Whether this version of the language is served.
pub(super) fn check_version(version: &str) -> Result<(), SessionError> {
    let minor = version.strip_prefix("0.3").map(|rest| rest.strip_prefix('.').unwrap_or(rest));
    let known = |minor: &str| (0..=12).any(|n| minor == n.to_string());
    match minor {
        Some("") if version == "0.3" => Ok(()),
        Some(minor) if version.starts_with("0.3.") && known(minor) => Ok(()),
        _ if version.is_empty() => Err(SessionError::NotSimulated("version: absent, which means 0.1".into())),
        _ => Err(SessionError::NotSimulated(format!("version: {version}"))),
    }
}

fn check_names<'a>(
    list: &str,
    names: impl Iterator<Item = &'a String>,
    (is_name, rules): Names,
) -> Result<(), SessionError> {
    let mut seen = HashSet::new();
    for (i, name) in names.enumerate() {
        let path = format!("{list}[{i}].name");
        if !is_name(name) {
            return Err(rule(&path, format!("not a name ({rules})")));
        }
        if !seen.insert(name) {
            return Err(rule(&path, format!("'{name}' is declared twice")));
        }
    }
    Ok(())
}

fn is_nearly_placeholder(part: &Part<'_>) -> bool {
    matches!(part, Part::Text(text) if text.contains("$$"))
}

/// A pinned session hash.
fn check_pin(hash: Option<&str>, path: &str) -> Result<(), SessionError> {
    if hash.is_none_or(is_digest) {
        return Ok(());
    }
    Err(rule(&format!("{path}.session_hash"), "not a session hash (64 lower-case hex digits)"))
}

/// A reference to a session or namespace, made absolute.
fn check_reference(name: &str, path: &str) -> Result<(), SessionError> {
    match name {
        "/" => Err(SessionError::NotSimulated(format!("{path}: the root namespace"))),
        name if is_session_name(name) => Ok(()),
        _ => Err(rule(path, "not a session's name")),
    }
}

/// Where a volume or file may be in an image.
fn check_image_path(image_path: &str, path: &str) -> Result<(), SessionError> {
    if is_plain_absolute(image_path) && image_path != "/" {
        Ok(())
    } else {
        Err(rule(&format!("{path}.path"), "not an absolute path below / without . and .."))
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether this looks like what `scone self show-key-hash` prints on SCONE: about 50 digits in base58. It admits nobody here, where
/// key hashes are hex; a digit that is missing from one of those stays an error.
fn is_scone_key_hash(text: &str) -> bool {
    (40..60).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_alphanumeric() && !b"0OIl".contains(&c))
}

fn is_plain_absolute(path: &str) -> bool {
    path.starts_with('/')
        && !path.contains('\0')
        && (path == "/" || path[1..].split('/').all(|part| !matches!(part, "" | "." | "..")))
}
