//! Container images: which can be signed, and what cosign calls a signature (sigstore/cosign, `specs/SIGNATURE_SPEC.md`).

use std::ffi::OsStr;

use serde_json::json;

use crate::digest::Digest;
use crate::key::PrivateKey;
use crate::{quoted, Exit, Failure};

/// Where cosign looks for the signature, in the layer's descriptor of the signature's manifest.
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// An image in a registry.
#[derive(Debug, PartialEq)]
pub struct Image<'a> {
    /// `[HOST[:PORT]/]PATH`, without tag and digest.
    repository: &'a str,
    /// The digest of its manifest: `sha256:HEX`.
    digest: &'a str,
}

impl Image<'_> {
    /// Parses `REPOSITORY@sha256:HEX`. Stricter than docker: one spelling for one image, hence no tag, which nothing would
    /// vouch for, and no upper case.
    pub fn parse(argument: &OsStr) -> Result<Image<'_>, Failure> {
        let refused = |why: &str| Failure(Exit::Refused, format!("{} {why}", quoted(argument)));
        let text = argument.to_str().ok_or_else(|| refused("is not UTF-8"))?;
        let Some((repository, digest)) = text.split_once('@') else {
            return Err(refused(
                "is not REPOSITORY@sha256:HEX: an image ID or a tag is not enough, and a local image has no manifest digest until \
                 it is pushed; push it, and take the digest that 'docker push' prints",
            ));
        };
        Digest::parse(digest).map_err(|why| refused(&format!("cannot be signed: what follows the '@' {why}")))?;
        check_repository(repository).map_err(|why| refused(&format!("names no repository: {why}")))?;
        Ok(Image { repository, digest })
    }

    /// What cosign looks for in a registry, as JSON on one line: `payload`, which is the signature's layer; `signature`, which
    /// is the value of `annotation`; and the `tag` of the signature's manifest.
    pub fn sign(&self, key: &PrivateKey) -> Result<String, Failure> {
        let payload = self.payload();
        let signature = key.sign(Digest::of(payload.as_bytes()))?;
        let tag = format!("{}.sig", self.digest.replacen(':', "-", 1));
        Ok(json!({ "annotation": ANNOTATION, "payload": payload, "signature": signature, "tag": tag }).to_string())
    }

    /// The bytes that are signed. Keys are written in alphabetical order, which is also cosign's.
    fn payload(&self) -> String {
        json!({
            "critical": {
                "identity": { "docker-reference": self.repository },
                "image": { "docker-manifest-digest": self.digest },
                "type": "cosign container image signature",
            },
            "optional": null,
        })
        .to_string()
    }
}

/// Whether this is `[HOST[:PORT]/]PATH` as in distribution/reference, in lower case. The error says what is wrong.
fn check_repository(repository: &str) -> Result<(), &'static str> {
    // distribution/reference: NameTotalLengthMax.
    if repository.len() > 255 {
        return Err("it is longer than 255 characters");
    }
    // As docker does: a first component that could be none of a path's, or 'localhost', is a host.
    let path = match repository.split_once('/') {
        Some((host, path)) if host == "localhost" || host.contains(['.', ':']) => {
            if !is_host(host) {
                return Err("the host is not a name or an address in lower case, with or without a port");
            }
            path
        }
        _ => repository,
    };
    if path.contains(':') {
        return Err("it has a tag, which would not be signed: leave the tag out");
    }
    if path.split('/').all(is_path_component) {
        Ok(())
    } else {
        Err("its components are not a-z and 0-9, with '.', '_', '__' or '-' between them")
    }
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let is_label = |label: &str| {
        let is_inner = |c| is_alphanumeric(c) || c == '-';
        label.starts_with(is_alphanumeric) && label.ends_with(is_alphanumeric) && label.chars().all(is_inner)
    };
    let is_port =
        |port: &str| !port.starts_with('0') && port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok();
    name.split('.').all(is_label) && port.map_or(true, is_port)
}

/// distribution/reference: alphanumeric runs, separated by one dot, one or two underscores, or any number of dashes.
fn is_path_component(text: &str) -> bool {
    let is_separator = |separator: &str| matches!(separator, "." | "_" | "__") || separator.bytes().all(|c| c == b'-');
    text.starts_with(is_alphanumeric)
        && text.ends_with(is_alphanumeric)
        && text.split(is_alphanumeric).all(is_separator)
}

fn is_alphanumeric(c: char) -> bool {
    matches!(c, 'a'..='z' | '0'..='9')
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_repository_is_spelled_in_one_way() {
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/B",
            "Example.com/a",
            "a b",
            "a\nb",
            "a\u{7f}",
            "a\0",
            "ä",
            "a/ä",
            "a\"b",
            "a\\b",
            "-a",
            "a-",
            "a.",
            ".a",
            "a..b",
            "a___b",
            "a._b",
            "a/../b",
            "a@b",
            "a:1",
            "localhost:5000/a:1",
            "http://h/a",
            ":5000/a",
            "h:/a",
            "h:0/a",
            "h:05/a",
            "h:65536/a",
            "h:+1/a",
            "h:1:2/a",
            "h.:1/a",
            "-h.x/a",
            "h-.x/a",
            "h_.x/a",
            "h..x/a",
            "[::1]/a",
            "user@h.x/a",
            "localhost/",
            "localhost:5000",
        ] {
            assert!(check_repository(bad).is_err(), "{bad:?}");
        }
        assert!(check_repository(&"a".repeat(256)).is_err());
        for good in [
            "a",
            "alpine",
            "library/alpine",
            "a/b.c_d__e---f/g",
            "localhost/a",
            "localhost:5000/a/b",
            "127.0.0.1:65535/a",
            "h.x/a",
            "registry-1.example.com:443/team/app",
            &"a".repeat(255),
        ] {
            assert_eq!(check_repository(good), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn the_payload_is_cosign_s_to_the_byte() {
        let argument = format!("localhost:5000/app@{DIGEST}");
        let expected = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"localhost:5000/app"}},"image":{{"docker-manifest-digest":"{DIGEST}"}},"type":"cosign container image signature"}},"optional":null}}"#
        );
        assert_eq!(Image::parse(OsStr::new(&argument)).unwrap().payload(), expected);
    }
}
