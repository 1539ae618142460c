//! A session as `read` and `check` print it (`reference/scone.md` section 4.2): commands as text, and no default but those that
//! SCONE writes out. Read again, it is the same session.

use yaml_serde::{Mapping, Value};

use super::normalise::DEFAULT_SIZE;
use super::syntax::split;

/// Shortens a session's normal form.
pub fn shorten(session: &mut Mapping) {
    for service in items(session, "services") {
        if let Some(command) = service.get_mut("command")
            && let Some(text) = as_text(command)
        {
            *command = text.into();
        }
        for empty in ["environment", "attestation"] {
            remove_if(service, empty, is_empty);
        }
        for last in ["command", "pwd"] {
            if let Some(value) = service.shift_remove(last) {
                service.insert(last.into(), value);
            }
        }
        service.insert("persistency".into(), "None".into());
    }
    for image in items(session, "images") {
        remove_if(image, "volumes", is_empty);
        for file in items(image, "injection_files") {
            remove_if(file, "permission", |permission| permission == "0o700");
        }
    }
    // Of an import, each is a check.
    for secret in items(session, "secrets").filter(|secret| !secret.contains_key("import")) {
        // An explicit value has the size that it has.
        let is_explicit = secret.contains_key("value");
        remove_if(secret, "size", |size| is_explicit || size.as_u64() == Some(DEFAULT_SIZE as u64));
        remove_if(secret, "key_type", |key_type| key_type == "P-256");
    }
    if let Some(Value::Mapping(policy)) = session.get_mut("access_policy") {
        let update = policy.get("update").cloned();
        remove_if(policy, "create_sessions", |create| Some(create) == update.as_ref());
    }
    if let Some(Value::Mapping(security)) = session.get_mut("security") {
        if let Some(Value::Mapping(attestation)) = security.get_mut("attestation") {
            remove_if(attestation, "mode", |mode| mode == "hardware");
        }
        remove_if(security, "attestation", is_empty);
    }
    for empty in ["images", "volumes", "secrets", "security"] {
        remove_if(session, empty, is_empty);
    }
}

/// The mappings in a list.
fn items<'a>(mapping: &'a mut Mapping, list: &str) -> impl Iterator<Item = &'a mut Mapping> {
    let items = mapping.get_mut(list).and_then(Value::as_sequence_mut);
    items.into_iter().flatten().filter_map(Value::as_mapping_mut)
}

fn remove_if(mapping: &mut Mapping, key: &str, is_unsaid: impl FnOnce(&Value) -> bool) {
    if mapping.get(key).is_some_and(is_unsaid) {
        mapping.shift_remove(key);
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Sequence(list) => list.is_empty(),
        Value::Mapping(entries) => entries.is_empty(),
        _ => false,
    }
}

/// The text that is split into these words again.
fn as_text(command: &Value) -> Option<String> {
    let words: Vec<&str> = command.as_sequence()?.iter().filter_map(Value::as_str).collect();
    let quoted = |word: &&str| match word {
        word if word.contains('\'') => format!("\"{word}\""),
        word if word.is_empty() || word.contains(|c: char| c == '"' || c.is_whitespace()) => format!("'{word}'"),
        word => (*word).to_owned(),
    };
    let text = words.iter().map(quoted).collect::<Vec<_>>().join(" ");
    (split(&text)? == words).then_some(text)
}
