//! What SCONE documents and the simulator does not serve: found in the parsed file, before it is taken for a session.

use yaml_serde::Value;

use super::placeholder::OPEN;
use super::{SessionError, rule};

/// A documented key that the simulator does not serve, as a path without list positions: finding one is an error of its own.
pub const NOT_SIMULATED: &[&str] = &[
    "secret_config",
    "services.fspf_path",
    "services.fspf_key",
    "services.fspf_tag",
    "services.fspf_update_policy",
    "services.platforms",
    "services.persistency",
    "volumes.fspf_key",
    "volumes.fspf_tag",
    "volumes.files",
    "volumes.import.cas_url",
    "volumes.import.cas_key",
    "volumes.import.cas_software_key",
    "secrets.import_akv",
    "secrets.export.cas_url",
    "secrets.export.cas_key",
    "secrets.export.cas_software_key",
    "secrets.import.cas_url",
    "secrets.import.cas_key",
    "secrets.import.cas_software_key",
    "security.attestation.url",
    "security.attestation.certificates",
    "security.attestation.min_rsa_signing_key_size",
];

/// What such a key may say all the same, since it is what holds without the key.
pub const DEFAULTS: &[(&str, &str)] =
    &[("services.persistency", "None"), ("volumes.files", "encrypted"), ("security.attestation.url", "")];

/// A documented value that the simulator does not serve, with the path of its key. Finding one is an error of its own, too.
pub const VALUES_NOT_SIMULATED: &[(&str, &str)] = &[
    ("secrets.kind", "aad-token"),
    ("secrets.kind", "pgp-key"),
    ("security.attestation.mode", "maa"),
    ("security.attestation.tolerate", "maa-managed-tcb"),
];

/// Where SCONE takes a placeholder and the simulator does not.
const DYNAMIC: &[&str] = &[
    "security.singleton_enclaves",
    "security.attestation.must_be_sgx_local",
    "security.attestation.trusted_scone_qe_pubkeys",
];

/// Where a placeholder is resolved when a service starts, or the access policy is asked; `validate` checks that it can be.
/// Anywhere else it would be taken literally: a token, a name or a path that an attacker can read in this file.
const RESOLVED: &[&str] = &[
    "access_policy",
    "access_policy.read",
    "access_policy.update",
    "access_policy.create_sessions",
    "access_policy.list_sessions",
    "services.command",
    "services.environment",
    "services.one_time_password_shared_secret",
    "services.attestation",
    "services.attestation.mrenclave",
    "services.attestation.signer",
    "services.attestation.signer.mrsigner",
    "services.attestation.signer.isvprodid",
    "services.attestation.signer.isvsvn",
    "services.attestation.signer.isvsvn_min",
    "services.attestation.signer.isvsvn_max",
    "images.injection_files.content",
    "security",
    "security.attestation",
    "security.attestation.mode",
    "security.attestation.tolerate",
    "security.attestation.ignore_advisories",
    "security.attestation.one_time_password_shared_secret",
    "security.service_access_token",
];

/// What takes a session in SCONE's one-line form.
const SESSION_IDS: &[&str] =
    &["volumes.export", "volumes.export.to", "volumes.import", "secrets.export", "secrets.import"];

/// The kind of a secret that is a part of a session.
pub const FRAGMENT: &str = "config-fragment";

/// Refuses what SCONE documents and the simulator does not serve, and placeholders that nothing resolves.
pub fn refuse(tree: &Value) -> Result<(), SessionError> {
    walk(tree, "", "")
}

/// As [`refuse`], of the part at `path`.
pub fn refuse_part(part: &Value, path: &str) -> Result<(), SessionError> {
    let key = path.split('[').map(|step| step.split_once(']').map_or(step, |(_, rest)| rest)).collect::<String>();
    walk(part, path, &key)
}

/// `path` is for the reader, `key` the same without list positions.
fn walk(value: &Value, path: &str, key: &str) -> Result<(), SessionError> {
    let refuse = |path: String| Err(SessionError::NotSimulated(path));
    match value {
        Value::Mapping(mapping) => {
            for (name, value) in mapping {
                let Some(name) = name.as_str() else { continue };
                let join = |to: &str| if to.is_empty() { name.to_owned() } else { format!("{to}.{name}") };
                // Rules within a rule are as any others of their list.
                let within = key.starts_with("access_policy.") && name.starts_with("require-");
                let (path, inner) = (join(path), if within { key.to_owned() } else { join(key) });
                refuse_placeholder(name, &path, "")?;
                // What a fragment says is read where a placeholder stands for it.
                let is_fragment = inner == "secrets.value" && mapping.get("kind").is_some_and(|kind| kind == FRAGMENT);
                // Each value of these is looked at by `validate`.
                let is_text = matches!(key, "services.environment" | "secrets.payload");
                if is_text || is_fragment {
                    continue;
                }
                if NOT_SIMULATED.contains(&inner.as_str()) && !is_default(&inner, value) {
                    return refuse(path);
                }
                walk(value, &path, &inner)?;
            }
        }
        Value::Sequence(items) => {
            for (i, item) in items.iter().enumerate() {
                walk(item, &format!("{path}[{i}]"), key)?;
            }
        }
        Value::String(text) => {
            if VALUES_NOT_SIMULATED.contains(&(key, text.as_str())) {
                return refuse(format!("{path}: {text}"));
            }
            refuse_placeholder(text, path, key)?;
            if SESSION_IDS.contains(&key) {
                return refuse(format!("{path}: the one-line form"));
            }
        }
        _ => {}
    }
    Ok(())
}

fn is_default(key: &str, value: &Value) -> bool {
    let text = match value {
        Value::Null => "".into(),
        Value::Bool(value) => value.to_string(),
        Value::String(text) => text.clone(),
        _ => return false,
    };
    DEFAULTS.contains(&(key, &text))
}

/// Refuses a placeholder that nothing resolves. Keys are never resolved.
fn refuse_placeholder(text: &str, path: &str, key: &str) -> Result<(), SessionError> {
    if !text.contains(OPEN) || RESOLVED.contains(&key) {
        return Ok(());
    }
    if DYNAMIC.contains(&key) {
        return Err(SessionError::NotSimulated(format!("{path}: a placeholder")));
    }
    Err(rule(path, "a placeholder is not resolved here"))
}
