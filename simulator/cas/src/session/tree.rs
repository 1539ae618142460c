//! Reads YAML that may come from an attacker, into a tree with its aliases expanded. The tree's size is bounded before it is
//! built, and no key stands twice. Errors carry line and column.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};
use yaml_serde::{Mapping, Value};

use super::MAX_TEXT;

/// Lists and mappings within one another. A session needs seven, and 32 with as many `require-` rules within one another as it may
/// have.
pub const MAX_DEPTH: usize = 32;

/// Entries of a list or a mapping: what looks up one thing for each of many does so with the square of it. Aliases make long lists
/// cheap to write.
pub const MAX_ENTRIES: usize = 1024;

/// Brackets that may be open, wherever they stand: the parser's work grows with the square of it.
const MAX_OPEN: usize = 256;

/// The largest weight of a tree with its aliases expanded: the bytes of its texts, and [`NODE`] for each value. A file without
/// aliases, however dense, weighs less.
pub const MAX_WEIGHT: usize = MAX_TEXT * NODE;
/// What a value weighs beside its text.
pub const NODE: usize = 4;

/// The tree of a text.
pub fn read(text: &str) -> Result<Value, yaml_serde::Error> {
    read_tree(text, false)
}

/// The tree of a text, with its tags left out.
pub fn read_without_tags(text: &str) -> Result<Value, yaml_serde::Error> {
    read_tree(text, true)
}

fn read_tree(text: &str, skips_tags: bool) -> Result<Value, yaml_serde::Error> {
    refuse_open_brackets(text)?;
    let left = Cell::new(MAX_WEIGHT);
    Node { left: &left, depth: 0, skips_tags }.deserialize(yaml_serde::Deserializer::from_str(text))
}

/// Looks at the bare text, so also at brackets in quotes and comments: none of those has hundreds that it does not close.
fn refuse_open_brackets(text: &str) -> Result<(), yaml_serde::Error> {
    let mut open = 0usize;
    let (mut line, mut column) = (1, 0);
    for c in text.chars() {
        column += 1;
        match c {
            '\n' => (line, column) = (line + 1, 0),
            '[' | '{' => open += 1,
            ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > MAX_OPEN {
            let text = format!("more than {MAX_OPEN} brackets are open at line {line} column {column}");
            return Err(yaml_serde::Error::custom(text));
        }
    }
    Ok(())
}

fn refuse_more<E: Error>(entries: usize) -> Result<(), E> {
    if entries > MAX_ENTRIES {
        return Err(E::custom(format!("more than {MAX_ENTRIES} entries in a list or mapping")));
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Node<'a> {
    left: &'a Cell<usize>,
    depth: usize,
    skips_tags: bool,
}

impl Node<'_> {
    fn weigh<E: Error>(self, text: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(text + NODE);
        self.left.set(left.ok_or_else(|| E::custom("the file is too large once its aliases are expanded"))?);
        Ok(())
    }

    fn inner<E: Error>(self) -> Result<Self, E> {
        self.weigh(0)?;
        if self.depth < MAX_DEPTH {
            Ok(Node { depth: self.depth + 1, ..self })
        } else {
            Err(E::custom(format!("nested deeper than {MAX_DEPTH} levels")))
        }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, number, list or mapping without tags")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.weigh(0).map(|()| Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.weigh(0).map(|()| value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.weigh(0).map(|()| value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.weigh(0).map(|()| value.into())
    }

    // Digits alone, such as a hash without letters, are a number too large for any other type.
    fn visit_i128<E: Error>(self, value: i128) -> Result<Value, E> {
        self.visit_f64(value as f64)
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Value, E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.weigh(0).map(|()| value.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.weigh(text.len()).map(|()| text.into())
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Value, A::Error> {
        if !self.skips_tags {
            return Err(A::Error::custom("a tag, which no value of a session has"));
        }
        let (_, value) = tagged.variant::<String>()?;
        value.newtype_variant_seed(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
            refuse_more(list.len())?;
        }
        Ok(Value::Sequence(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut mapping = Mapping::new();
        while let Some(key) = entries.next_key_seed(Key { node: inner, seen: &mapping })? {
            let value = entries.next_value_seed(inner)?;
            mapping.insert(key, value);
            refuse_more(mapping.len())?;
        }
        Ok(Value::Mapping(mapping))
    }
}

/// A key: told apart as text, which is what it is read as.
struct Key<'a> {
    node: Node<'a>,
    seen: &'a Mapping,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text as key")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Value, E> {
        let key = self.node.visit_str(name)?;
        if self.seen.contains_key(&key) { Err(E::custom(format!("duplicate key '{name}'"))) } else { Ok(key) }
    }
}
