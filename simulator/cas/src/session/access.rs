//! Who may do what: the rules of an access policy, and the session's creator (`reference/scone.md` section 2.8).

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde::{Serialize, Serializer};

use super::syntax::list;
use crate::signing::SessionSigner;

/// `require-` rules within one another. Assumption: SCONE names no limit. In normal form each is a list and a mapping, and more of
/// them would be nested deeper than a session may be.
pub(super) const MAX_NESTING: usize = 14;

/// One entry of an access policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// `CREATOR`, `ANY`, `NONE`, the key hash of a client certificate (in a file also the certificate, PEM), or a placeholder
    /// for a secret whose value is `CREATOR`, a key hash, a certificate, or a fragment of such a policy.
    Who(String),
    /// The session is signed with this key.
    Signer(SessionSigner),
    /// `require-all`: every one of these rules is met.
    All(Vec<Rule>),
    /// `require-at-least-N`: that many of these rules are met, one at least.
    AtLeast(usize, Vec<Rule>),
}

impl Rule {
    /// Whether this is said of an entry of this rule, or of a rule within it.
    pub(super) fn names(&self, is_meant: fn(&str) -> bool) -> bool {
        match self {
            Rule::Who(who) => is_meant(who),
            Rule::Signer(_) => false,
            Rule::All(rules) | Rule::AtLeast(_, rules) => rules.iter().any(|rule| rule.names(is_meant)),
        }
    }

    /// Why nobody, or one for several, can meet what it counts.
    pub(super) fn miscounts(&self) -> Option<String> {
        let (key, count, rules) = match self {
            Rule::Who(_) | Rule::Signer(_) => return None,
            Rule::All(rules) => ("require-all".to_owned(), 1, rules),
            Rule::AtLeast(count, rules) => (format!("require-at-least-{count}"), *count, rules),
        };
        if rules.len() < count {
            return Some(format!("{key} has {} rules, and can never be met", rules.len()));
        }
        let mut seen = HashSet::new();
        let is_twice = rules.iter().any(|rule| !seen.insert(serde_json::json!(rule).to_string()));
        is_twice.then(|| format!("{key} has the same rule twice: who meets it would count for two"))
    }

    /// How many `require-` rules are within one another.
    pub(super) fn nesting(&self) -> usize {
        match self {
            Rule::Who(_) | Rule::Signer(_) => 0,
            Rule::All(rules) | Rule::AtLeast(_, rules) => 1 + rules.iter().map(Rule::nesting).max().unwrap_or(0),
        }
    }
}

/// Entries of those who ask without a session that they could have signed.
pub(super) fn unsigned<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Rule>, D::Error> {
    let rules = list(deserializer)?;
    if rules.iter().all(|rule| matches!(rule, Rule::Who(_))) {
        return Ok(rules);
    }
    Err(D::Error::custom(
        "read and list_sessions take neither signers nor require- rules: a request to read is not signed",
    ))
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Rule::Who(who) => serializer.serialize_str(who),
            Rule::Signer(key) => serializer.collect_map([("signer", key)]),
            Rule::All(rules) => serializer.collect_map([("require-all", rules)]),
            Rule::AtLeast(count, rules) => serializer.collect_map([(format!("require-at-least-{count}"), rules)]),
        }
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rule, D::Error> {
        deserializer.deserialize_any(Keys(RULES))
    }
}

/// The keys that a rule may have, one of them.
const RULES: &[&str] = &["signer", "require-all", "require-at-least-N"];

/// Whether a mapping with this key is a rule.
pub(super) fn is_rule_key(key: &str) -> bool {
    key == "signer" || key.starts_with("require-")
}

/// Reads a text, or a mapping with one of these keys: those of a rule, or of a creator.
struct Keys(&'static [&'static str]);

impl<'de> Visitor<'de> for Keys {
    type Value = Rule;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text, or a mapping with the key {}", self.0.join(" or "))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Rule, E> {
        Ok(Rule::Who(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Rule, A::Error> {
        let mut rule = None;
        while let Some(key) = map.next_key::<String>()? {
            let is_rule = self.0 == RULES;
            let next = match (key.as_str(), key.strip_prefix("require-at-least-").and_then(positive)) {
                ("signer", _) => Rule::Signer(map.next_value()?),
                ("require-all", _) if is_rule => Rule::All(map.next_value::<Rules>()?.0),
                (_, Some(count)) if is_rule => Rule::AtLeast(count, map.next_value::<Rules>()?.0),
                _ => return Err(A::Error::unknown_field(&key, self.0)),
            };
            if rule.replace(next).is_some() {
                return Err(A::Error::custom(format!(
                    "`{key}` stands beside another key: each is an entry of its own"
                )));
            }
        }
        rule.ok_or_else(|| A::Error::invalid_length(0, &self))
    }
}

/// One rule or a list of them.
#[derive(serde::Deserialize)]
struct Rules(#[serde(deserialize_with = "list")] Vec<Rule>);

/// A number from 1 on, without signs and leading zeros.
fn positive(digits: &str) -> Option<usize> {
    digits.parse().ok().filter(|number: &usize| *number > 0 && number.to_string() == digits)
}

/// Who created a session.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Creator {
    /// The client that uploaded it: its certificate, PEM.
    Certificate(String),
    /// The key that it was signed with first.
    Signer {
        /// That key.
        signer: SessionSigner,
    },
}

impl<'de> Deserialize<'de> for Creator {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Creator, D::Error> {
        match deserializer.deserialize_any(Keys(&["signer"]))? {
            Rule::Who(certificate) => Ok(Creator::Certificate(certificate)),
            Rule::Signer(signer) => Ok(Creator::Signer { signer }),
            Rule::All(_) | Rule::AtLeast(..) => Err(D::Error::custom("the creator is a certificate or a signer")),
        }
    }
}
