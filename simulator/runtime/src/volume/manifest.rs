//! What a manifest says: every path of a volume, or what differs from an earlier manifest that says so.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de};

use scone_protocol::{hex, unhex};

/// Counts up when what follows changes.
const VERSION: u32 = 2;

/// Bytes that are text in a manifest, whatever they are: a path, a link's target.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub Vec<u8>);

impl Borrow<[u8]> for Bytes {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        unhex(&text).map(Bytes).ok_or_else(|| de::Error::custom("not hex"))
    }
}

/// One thing in a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    /// A directory.
    Directory {
        /// Permissions.
        mode: u32,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points to.
        target: Bytes,
    },
    /// A regular file.
    File {
        /// Permissions.
        mode: u32,
        /// What is in it.
        content: Content,
    },
}

/// A file's content, and where it is sealed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// In bytes.
    pub size: u64,
    /// SHA-256 of the plain bytes.
    pub hash: String,
    /// The blob's ID.
    pub blob: String,
}

/// By path, relative to the volume's root; `None`: no longer there. The order puts a directory before what is in it.
pub type Entries = BTreeMap<Bytes, Option<Entry>>;

/// A sealed volume's table of contents.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    /// The tag of the manifest from which `entries` differ; `None`: from an empty volume.
    pub base: Option<String>,
    /// What is there, or differs.
    pub entries: Entries,
}

impl Manifest {
    /// A manifest of the present version.
    pub fn new(base: Option<String>, entries: Entries) -> Manifest {
        Manifest { version: VERSION, base, entries }
    }

    /// As text.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    /// Reads what [`Manifest::encode`] wrote; `None` if it is anything else, or could lead out of the volume.
    pub fn decode(text: &[u8]) -> Option<Manifest> {
        let manifest: Manifest = serde_json::from_slice(text).ok()?;
        let sound = manifest.version == VERSION
            && manifest.base.as_deref().is_none_or(is_id)
            && manifest.entries.iter().all(|(path, entry)| {
                is_plain(&path.0) && (entry.is_some() || manifest.base.is_some()) && entry.iter().all(is_sound)
            });
        sound.then_some(manifest)
    }
}

/// Whether a text is an ID or a tag: 16 bytes in lower-case hex.
pub fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_plain(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/').all(|name| !matches!(name, b"" | b"." | b"..") && !name.contains(&0))
}

fn is_sound(entry: &Entry) -> bool {
    match entry {
        Entry::Directory { mode } => *mode <= 0o7777,
        Entry::Symlink { target } => !target.0.is_empty() && !target.0.contains(&0),
        Entry::File { mode, content } => *mode <= 0o7777 && is_id(&content.blob),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(path: &str, entry: &str) -> Option<Manifest> {
        let path = hex(path.as_bytes());
        Manifest::decode(format!(r#"{{"version":2,"base":null,"entries":{{"{path}":{entry}}}}}"#).as_bytes())
    }

    #[test]
    fn nothing_leads_out_of_the_volume() {
        let directory = r#"{"directory":{"mode":448}}"#;
        for path in ["", "/", "/etc", "..", "../etc", "a/../../etc", "a/.", "a//b", "a/", "a\0b"] {
            assert_eq!(with(path, directory), None, "{path:?}");
        }
        let blob = r#"{"file":{"mode":384,"content":{"size":0,"hash":"","blob":"../../etc/passwd"}}}"#;
        assert_eq!(with("a", blob), None);
        assert!(with("a/..b", directory).is_some());
    }

    #[test]
    fn what_no_volume_holds_is_refused() {
        assert_eq!(with("a", "null"), None);
        assert_eq!(with("a", r#"{"directory":{"mode":65535}}"#), None);
        assert_eq!(with("a", r#"{"symlink":{"target":""}}"#), None);
        assert_eq!(with("a", r#"{"socket":{}}"#), None);
        assert_eq!(Manifest::decode(br#"{"version":1,"base":null,"entries":{}}"#), None);
        assert_eq!(Manifest::decode(br#"{"version":2,"base":"..","entries":{}}"#), None);
        let empty = Manifest::new(None, Entries::new());
        assert_eq!(Manifest::decode(&empty.encode().unwrap()), Some(empty));
    }
}
