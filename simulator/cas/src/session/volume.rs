//! Volumes in a policy, and the images that show them to a service (`reference/scone.md` sections 2.6 and 2.7).

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::{SessionId, UpdatePolicy, is_default, syntax};

/// What a service's file system looks like.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// What services call it.
    pub name: String,
    /// The volumes in it.
    #[serde(default, deserialize_with = "syntax::list")]
    pub volumes: Vec<Mount>,
    /// The files put into it.
    #[serde(default, deserialize_with = "syntax::injection_files", skip_serializing_if = "Vec::is_empty")]
    pub injection_files: Vec<InjectionFile>,
    /// The secrets that files of the image may hold. Absent: any; left empty: none.
    #[serde(default, deserialize_with = "syntax::some_list", skip_serializing_if = "Option::is_none")]
    pub provide_secrets: Option<Vec<String>>,
}

impl Image {
    /// Whether it has files with placeholders in them, whose content the policy does not tell.
    pub fn has_templates(&self) -> bool {
        self.injection_files.iter().any(|file| file.content.is_none())
    }
}

/// A volume in an image.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The volume.
    pub name: String,
    /// Where the program sees it: an absolute path.
    pub path: String,
    /// What becomes of the program's changes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub update_policy: UpdatePolicy,
}

/// A file that is in the program's memory only.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectionFile {
    /// Where the program sees it: an absolute path.
    pub path: String,
    /// What is in it; placeholders stand for secrets. Absent: what the image's file of that path has in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Its mode, `0o` and octal digits; `0o700` by default.
    #[serde(default)]
    pub permission: String,
}

impl InjectionFile {
    /// The permission as a number. In a valid session it always is one.
    pub fn mode(&self) -> Option<u32> {
        let digits = self.permission.strip_prefix("0o").filter(|digits| digits.bytes().all(|c| c.is_ascii_digit()))?;
        u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777)
    }
}

/// A volume this session owns, or imports.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name here.
    pub name: String,
    /// Who may import it.
    #[serde(default, deserialize_with = "syntax::list", skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<VolumeExport>,
    /// The volume it is, if another session owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<VolumeImport>,
    #[serde(default, skip_serializing)]
    files: IgnoredAny,
}

/// A session that may import a volume.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "syntax::VolumeExport", into = "syntax::VolumeExport")]
pub struct VolumeExport {
    /// Which session. It need not exist yet.
    pub to: SessionId,
    /// The most that the importer may do with it.
    pub update_policy: UpdatePolicy,
    /// What the importer calls it, if not by its name.
    pub volume_alias: Option<String>,
}

/// Another session's volume.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeImport {
    /// The session that owns it.
    pub session: String,
    /// The hash its active version must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_hash: Option<String>,
    /// Its name there, or its alias.
    pub volume: String,
}
