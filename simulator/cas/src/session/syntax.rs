//! The spellings YAML policies may use: one thing or a list of them, commands as text, four ways to say "no predecessor".

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use yaml_serde::Value;

use super::not_simulated::FRAGMENT;
use super::placeholder::OPEN;
use super::{AccessPolicy, InjectionFile, Rule, SessionId, UpdatePolicy, host_variable};

/// A list, one thing, or nothing.
pub fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct OneOrMany<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("one or a list of them")
        }

        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
            Ok(vec![T::deserialize(text.into_deserializer())?])
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
            Ok(vec![T::deserialize(MapAccessDeserializer::new(map))?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Vec<T>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(seq))
        }
    }

    deserializer.deserialize_any(OneOrMany(PhantomData))
}

/// Writes the values of configuration fragments, which may have any shape, as JSON. Whether there was one to write.
pub fn write_fragments_as_text(tree: &mut Value) -> bool {
    let secrets = match tree.get_mut("secrets") {
        Some(Value::Sequence(secrets)) => secrets.as_mut_slice(),
        Some(secret) => std::slice::from_mut(secret),
        None => &mut [],
    };
    let mut found = false;
    for secret in secrets.iter_mut().filter(|secret| secret.get("kind").is_some_and(|kind| kind == FRAGMENT)) {
        if let Some(value) = secret.get_mut("value").filter(|value| !value.is_string() && !value.is_null())
            && let Ok(json) = serde_json::to_string(value)
        {
            *value = json.into();
            found = true;
        }
    }
    found
}

/// As [`list`], of a key whose absence says something else than an empty list.
pub fn some_list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<T>>, D::Error> {
    list(deserializer).map(Some)
}

/// An access policy, or a placeholder in its place, which then stands in all of its lists.
pub fn access_policy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AccessPolicy, D::Error> {
    struct PolicyOrPlaceholder;

    impl<'de> Visitor<'de> for PolicyOrPlaceholder {
        type Value = AccessPolicy;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an access policy or a placeholder")
        }

        fn visit_unit<E>(self) -> Result<AccessPolicy, E> {
            Ok(AccessPolicy::default())
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<AccessPolicy, E> {
            if text.contains(OPEN) {
                Ok(AccessPolicy::same(vec![Rule::Who(text.to_owned())]))
            } else {
                Err(E::invalid_type(Unexpected::Str(text), &self))
            }
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AccessPolicy, A::Error> {
            AccessPolicy::deserialize(MapAccessDeserializer::new(map))
        }
    }

    deserializer.deserialize_any(PolicyOrPlaceholder)
}

/// Files: what each has in it, or its path alone.
pub fn injection_files<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<InjectionFile>, D::Error> {
    struct FileOrPath(InjectionFile);
    struct Visit;

    impl<'de> Visitor<'de> for Visit {
        type Value = FileOrPath;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a file or a path")
        }

        fn visit_str<E>(self, path: &str) -> Result<FileOrPath, E> {
            Ok(FileOrPath(InjectionFile { path: path.to_owned(), content: None, permission: String::new() }))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FileOrPath, A::Error> {
            InjectionFile::deserialize(MapAccessDeserializer::new(map)).map(FileOrPath)
        }
    }

    impl<'de> Deserialize<'de> for FileOrPath {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FileOrPath, D::Error> {
            deserializer.deserialize_any(Visit)
        }
    }

    Ok(list::<FileOrPath, D>(deserializer)?.into_iter().map(|FileOrPath(file)| file).collect())
}

/// A predecessor: absent, `~`, `null` and empty are the same (section 2.4).
pub fn predecessor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty() && text != "~" && text != "null"))
}

/// A command: a list, or a text that is split at white space, single and double quotes respected (section 2.5).
pub fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Command;

    impl<'de> Visitor<'de> for Command {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a command, as text or as a list")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Vec<String>, E> {
            split(text).ok_or_else(|| E::custom("a quote in the command is not closed"))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Vec<String>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(seq))
        }
    }

    deserializer.deserialize_any(Command)
}

/// `None`: a quote is not closed.
pub(super) fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            None => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// An environment: text as it is written. Only a variable that is the caller's needs no value (section 2.12).
pub fn environment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let variables = BTreeMap::<String, Option<String>>::deserialize(deserializer)?.into_iter();
    let value = |(name, value): (String, Option<String>)| match value {
        Some(value) => Ok((name, value)),
        None if host_variable(&name).is_some() => Ok((name, String::new())),
        None => Err(D::Error::custom(format!("environment.{name}: the variable has no value"))),
    };
    variables.map(value).collect()
}

/// A number, or its digits as text, which is what a variable that is filled in leaves.
#[derive(Clone, Copy, PartialEq, Serialize)]
pub struct Number(pub u16);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
        struct NumberOrDigits;

        impl Visitor<'_> for NumberOrDigits {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0 to 65535")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Number, E> {
                let invalid = |_| E::invalid_value(Unexpected::Unsigned(number), &self);
                u16::try_from(number).map(Number).map_err(invalid)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Number, E> {
                let digits = Some(text).filter(|text| text.bytes().all(|c| c.is_ascii_digit()));
                let number = digits.and_then(|digits| digits.parse().ok()).map(Number);
                number.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(NumberOrDigits)
    }
}

/// A volume's export as files have it: a session, or `to:` a session and more.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeExport {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session_hash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<SessionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    update_policy: Option<UpdatePolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    volume_alias: Option<String>,
}

impl TryFrom<VolumeExport> for super::VolumeExport {
    type Error = &'static str;

    fn try_from(export: VolumeExport) -> Result<Self, &'static str> {
        let VolumeExport { session, session_hash, to, update_policy, volume_alias } = export;
        let to = match (session, to) {
            (Some(session), None) if update_policy.is_none() && volume_alias.is_none() => {
                SessionId { session, session_hash }
            }
            (None, Some(to)) if session_hash.is_none() => to,
            _ => return Err("an export needs either session, or to (with update_policy or volume_alias beside it)"),
        };
        Ok(super::VolumeExport { to, update_policy: update_policy.unwrap_or_default(), volume_alias })
    }
}

impl From<super::VolumeExport> for VolumeExport {
    fn from(export: super::VolumeExport) -> VolumeExport {
        let super::VolumeExport { to, update_policy, volume_alias } = export;
        if update_policy == UpdatePolicy::default() && volume_alias.is_none() {
            let SessionId { session, session_hash } = to;
            return VolumeExport {
                session: Some(session),
                session_hash,
                to: None,
                update_policy: None,
                volume_alias: None,
            };
        }
        VolumeExport {
            session: None,
            session_hash: None,
            to: Some(to),
            update_policy: Some(update_policy),
            volume_alias,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn commands_are_split_at_white_space_with_quotes_respected() {
        assert_eq!(split("a 'b"), None);
        assert_eq!(split(r#" a  'b c' "d 'e'"f '' "#).unwrap(), ["a", "b c", "d 'e'f", ""]);
        assert!(split("  ").unwrap().is_empty());
    }
}
