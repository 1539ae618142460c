//! Parts of a policy that say what a service must show, given as placeholders: another session may decide (`reference/scone.md`
//! section 10, "variables in security, attestation").

use std::cell::Cell;
use std::fmt;
use std::iter::empty;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, MapDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::placeholder::{OPEN, Part, Placeholder};
use super::tree::{MAX_DEPTH, MAX_ENTRIES, MAX_WEIGHT, NODE};
use super::{Kind, Secret, Session, SessionError, not_simulated, rule};

/// Placeholders that stand for parts that hold placeholders, one in the other.
const MAX_STEPS: usize = 8;

/// What placeholders may still put into parts of a policy: the bytes of texts, and [`NODE`] for each value. What stands for what
/// stands for something grows with every step.
pub struct Weight(Cell<usize>);

/// How many parts of the largest weight one file may have.
pub(super) const PARTS: usize = 8;

impl Weight {
    /// As much as a policy's own text may hold.
    pub fn of_a_policy() -> Weight {
        Weight(Cell::new(MAX_WEIGHT))
    }

    /// For all parts of one file, of which each is weighed by itself, too.
    pub(super) fn of_a_file() -> Weight {
        Weight(Cell::new(PARTS * MAX_WEIGHT))
    }

    /// What one part may still put in.
    fn of_one_part(&self) -> Weight {
        Weight(Cell::new(self.0.get().min(MAX_WEIGHT)))
    }

    fn take(&self, path: &str, text: usize) -> Result<(), SessionError> {
        let left = self.0.get().checked_sub(text + NODE);
        self.0.set(left.ok_or_else(|| rule(path, "too large once its placeholders are resolved"))?);
        Ok(())
    }
}

/// Tells what a placeholder stands for: text, or of the kind config-fragment JSON.
type ValueOf<'a, E> = dyn FnMut(&Placeholder<'_>) -> Result<(Kind, String), E> + 'a;

/// What stays a placeholder: these are resolved as text.
const TEXTS: &[&str] = &["one_time_password_shared_secret", "service_access_token"];

/// A part of a policy, or a placeholder in its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Or<T> {
    /// The part.
    Given(T),
    /// A text with a placeholder in it.
    Placeholder(String),
}

impl<T> Or<T> {
    /// The part, if it is not left to a placeholder.
    pub fn given(&self) -> Option<&T> {
        match self {
            Or::Given(part) => Some(part),
            Or::Placeholder(_) => None,
        }
    }

    pub(super) fn given_mut(&mut self) -> Option<&mut T> {
        match self {
            Or::Given(part) => Some(part),
            Or::Placeholder(_) => None,
        }
    }
}

impl<T: Default> Default for Or<T> {
    fn default() -> Or<T> {
        Or::Given(T::default())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Or<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Or<T>, D::Error> {
        struct PartOrText<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for PartOrText<T> {
            type Value = Or<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a part of the policy or a placeholder")
            }

            // A section that is named and left empty.
            fn visit_unit<E: Error>(self) -> Result<Or<T>, E> {
                T::deserialize(MapDeserializer::new(empty::<((), ())>())).map(Or::Given)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Or<T>, E> {
                if text.contains(OPEN) {
                    return Ok(Or::Placeholder(text.to_owned()));
                }
                T::deserialize(text.into_deserializer()).map(Or::Given)
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Or<T>, E> {
                T::deserialize(number.into_deserializer()).map(Or::Given)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Or<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Or::Given)
            }
        }

        deserializer.deserialize_any(PartOrText(PhantomData))
    }
}

/// Why a part cannot be put together: the policy is wrong, or a value cannot be had.
pub enum Unresolved<E> {
    /// The policy, or what a secret says, breaks a rule. The reason may repeat a secret's value.
    Wrong(SessionError),
    /// What `value_of` said.
    Unknown(E),
}

impl<E> From<SessionError> for Unresolved<E> {
    fn from(error: SessionError) -> Unresolved<E> {
        Unresolved::Wrong(error)
    }
}

impl Session {
    /// `part`, which stands at `path` of this session, with what secrets say in the place of placeholders; `value_of` tells it.
    /// A list in a list is spliced into it. Placeholders in what is put in name secrets of this session (assumption: as `CREATOR`
    /// in an imported access policy means this session's).
    pub fn put_together<T: Serialize + DeserializeOwned, E>(
        &self,
        path: &str,
        part: &T,
        weight: &Weight,
        mut value_of: impl FnMut(&Placeholder<'_>) -> Result<(Kind, String), E>,
    ) -> Result<T, Unresolved<E>> {
        let wrong = |error: &dyn fmt::Display| rule(path, format!("with the values of its placeholders: {error}"));
        let tree = serde_json::to_value(part).map_err(|error| wrong(&error))?;
        let tree = self.fill(path, tree, weight, &mut value_of, (MAX_STEPS, MAX_DEPTH))?;
        let as_yaml = yaml_serde::to_value(&tree).map_err(|error| wrong(&error))?;
        not_simulated::refuse_part(&as_yaml, path)?;
        Ok(serde_json::from_value(tree).map_err(|error| wrong(&error))?)
    }

    fn fill<E>(
        &self,
        path: &str,
        value: Value,
        weight: &Weight,
        value_of: &mut ValueOf<'_, E>,
        (steps, depth): (usize, usize),
    ) -> Result<Value, Unresolved<E>> {
        weight.take(path, value.as_str().map_or(0, str::len))?;
        Ok(match value {
            Value::String(text) if text.contains(OPEN) => {
                let placeholder = self.only_placeholder(path, &text)?;
                if steps == 0 {
                    return Err(rule(path, "its placeholders stand for one another").into());
                }
                let (kind, text) = value_of(&placeholder).map_err(Unresolved::Unknown)?;
                weight.take(path, text.len())?;
                let value = if kind == Kind::ConfigFragment { fragment(&text) } else { text.into() };
                self.fill(path, value, weight, value_of, (steps - 1, depth))?
            }
            // What is put in may be nested, too.
            Value::Array(_) | Value::Object(_) if depth == 0 => {
                return Err(rule(path, format!("nested deeper than {MAX_DEPTH} levels")).into());
            }
            Value::Array(items) => {
                let mut list = Vec::new();
                for item in items {
                    let is_placeholder = item.is_string();
                    match self.fill(path, item, weight, value_of, (steps, depth - 1))? {
                        Value::Array(inner) if is_placeholder => list.extend(inner),
                        item => list.push(item),
                    }
                }
                if list.len() > MAX_ENTRIES {
                    return Err(rule(path, format!("more than {MAX_ENTRIES} entries in a list")).into());
                }
                Value::Array(list)
            }
            Value::Object(entries) => {
                let fill = |(key, value): (String, Value)| {
                    weight.take(path, key.len())?;
                    let is_text = TEXTS.contains(&key.as_str());
                    let inner = (steps, depth - 1);
                    let value = if is_text { value } else { self.fill(path, value, weight, value_of, inner)? };
                    Ok((key, value))
                };
                Value::Object(entries.into_iter().map(fill).collect::<Result<_, Unresolved<E>>>()?)
            }
            other => other,
        })
    }

    fn only_placeholder<'a>(&self, path: &str, text: &'a str) -> Result<Placeholder<'a>, SessionError> {
        self.check_placeholders(path, text)?;
        match self.parts(path, text)?[..] {
            [Part::Secret(placeholder @ Placeholder { name, format, json: false })]
                if format.is_text(self.secret(name).and_then(|secret| secret.kind))
                    && self.secret(name).is_some_and(Secret::may_stand_in_policy) =>
            {
                Ok(placeholder)
            }
            _ => Err(rule(path, "neither a value nor one placeholder that stands for text that somebody wrote")),
        }
    }

    /// As far as the file tells what its placeholders stand for. `None`: it does not.
    pub(super) fn put_together_now<T: Serialize + DeserializeOwned>(
        &self,
        path: &str,
        part: &T,
        weight: &Weight,
    ) -> Result<Option<T>, SessionError> {
        let known = |placeholder: &Placeholder<'_>| {
            let secret = self.secret(placeholder.name).filter(|secret| secret.import.is_none());
            secret.and_then(Secret::value_in_policy).ok_or(())
        };
        let of_part = weight.of_one_part();
        let most = of_part.0.get();
        let part = self.put_together(path, part, &of_part, known);
        weight.0.set(weight.0.get() - (most - of_part.0.get()));
        match part {
            Ok(part) => Ok(Some(part)),
            Err(Unresolved::Wrong(error)) => Err(error),
            Err(Unresolved::Unknown(())) => Ok(None),
        }
    }
}

impl Secret {
    /// Whether a part of the policy may be left to it: not to what CAS draws or makes, which no program can meet, and which
    /// CAS's answers would tell.
    fn may_stand_in_policy(&self) -> bool {
        self.import.is_some() || self.value.is_some() && self.kind.is_some_and(Kind::may_stand_in_policy)
    }

    /// What a placeholder for an explicit secret stands for in a part of the policy.
    fn value_in_policy(&self) -> Option<(Kind, String)> {
        let kind = self.kind.filter(|kind| [Kind::ConfigFragment, Kind::Ascii].contains(kind));
        kind.zip(self.value.clone())
    }
}

/// What a configuration fragment says: JSON, or text.
pub fn fragment(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}
