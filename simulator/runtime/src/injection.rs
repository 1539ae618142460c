//! The files that the policy puts into the program's memory, and those of the image in which it fills in secrets
//! (`reference/scone.md` section 2.6).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use scone_protocol::{Configuration, Secret, escape_json, unhex};

use crate::mount::refuse_disk;
use scone_run::failure::Failure;
use scone_run::root::{self, Image};

/// The largest file of an image that secrets are filled into, in bytes. Assumption: as all that CAS sends.
const MAX_TEMPLATE: u64 = 256 * 1024;

/// What every placeholder starts and ends with.
const OPEN: &[u8] = b"$$SCONE::";
const CLOSE: &[u8] = b"$$";

/// Path, content and mode of each file. `image`: where those without content are found.
pub fn files(configuration: &Configuration, image: Option<&Image>) -> Result<Vec<(PathBuf, Vec<u8>, u32)>, Failure> {
    let files = configuration.injection_files.iter().map(|file| {
        let failed = |cause| Failure::while_starting(format!("Injecting {} failed", file.path), vec![cause]);
        let content = match &file.content {
            Some(content) => unhex(content.expose()).ok_or_else(|| failed("CAS sent it in no usable form".into())),
            None => template(image, Path::new(&file.path))
                .and_then(|text| fill(&text, &configuration.secrets))
                .map_err(failed),
        };
        Ok((PathBuf::from(&file.path), content?, file.mode & 0o777))
    });
    files.collect()
}

/// In a container: the file's directory must be in memory, or the secrets in the file would reach the host's disk.
pub fn inject(path: &Path, content: &[u8], mode: u32) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write '{}': {error}", path.display());
    let directory = path.parent().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    refuse_disk(directory)?;
    root::write_new(path, content, mode).map_err(failed)
}

/// A file of the image. In a container it cannot be replaced: that takes a privilege which a runtime has not there.
fn template(image: Option<&Image>, path: &Path) -> Result<Vec<u8>, String> {
    let Some(image) = image else {
        return Err("not simulated in a container: a file of the image with placeholders (give its content)".into());
    };
    let unreadable = |error: io::Error| format!("cannot read '{}' of the image: {error}", path.display());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat2(&image.directory, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    let file = File::from(file.map_err(|error| unreadable(error.into()))?);
    let kind = fstat(&file).map_err(|error| unreadable(error.into()))?.st_mode;
    let mut text = Vec::new();
    if FileType::from_raw_mode(kind) == FileType::RegularFile {
        file.take(MAX_TEMPLATE + 1).read_to_end(&mut text).map_err(unreadable)?;
    } else {
        return Err(format!("'{}' of the image is no regular file", path.display()));
    }
    if text.len() as u64 > MAX_TEMPLATE {
        return Err(format!("'{}' of the image is larger than {MAX_TEMPLATE} bytes", path.display()));
    }
    Ok(text)
}

/// Puts secrets in the place of placeholders. The text around them need not be UTF-8.
fn fill(text: &[u8], secrets: &BTreeMap<String, Secret>) -> Result<Vec<u8>, String> {
    let find = |text: &[u8], what: &[u8]| text.windows(what.len()).position(|window| window == what);
    let mut filled = Vec::new();
    let mut rest = text;
    while let Some(start) = find(rest, OPEN) {
        filled.extend_from_slice(&rest[..start]);
        rest = &rest[start + OPEN.len()..];
        let end = find(rest, CLOSE).ok_or("a $$SCONE:: placeholder is not closed by $$")?;
        let body = String::from_utf8_lossy(&rest[..end]);
        let (name, is_json) = match body.strip_suffix("|escape(json)") {
            Some(name) => (name, true),
            None => (&*body, false),
        };
        let value = secrets.get(name).and_then(|value| unhex(value.expose()));
        let value = value.ok_or_else(|| format!("the session provides no secret for the placeholder '{name}'"))?;
        filled.extend(if is_json {
            escape_json(value).ok_or_else(|| format!("'{name}' is in binary form and cannot be escaped"))?
        } else {
            value
        });
        rest = &rest[end + CLOSE.len()..];
    }
    filled.extend_from_slice(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use scone_protocol::hex;

    use super::*;

    #[test]
    fn placeholders_in_a_file_are_filled_in_and_the_rest_stays() {
        let secrets = [("s", &b"a\"b"[..]), ("s:hex", b"6122"), ("b", b"\x00\xff")];
        let secrets = secrets.map(|(name, value)| (name.to_owned(), Secret::new(hex(value)))).into();
        let filled = |text: &[u8]| fill(text, &secrets);
        assert_eq!(filled(b"$$SCONE::s").unwrap_err(), "a $$SCONE:: placeholder is not closed by $$");
        let unknown = "the session provides no secret for the placeholder 't:hex'";
        assert_eq!(filled(b"$$SCONE::t:hex$$").unwrap_err(), unknown);
        assert_eq!(filled(b"$$SCONE::b|escape(json)$$").unwrap_err(), "'b' is in binary form and cannot be escaped");
        let text = b"\xfe $$ $HOME $$SCONE::s$$/$$SCONE::s:hex$$/$$SCONE::s|escape(json)$$/$$SCONE::b$$\n";
        assert_eq!(filled(text).unwrap(), b"\xfe $$ $HOME a\"b/6122/a\\\"b/\x00\xff\n");
    }
}
