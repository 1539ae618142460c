//! `$$SCONE::name[:format]$$`: where a policy's text names a secret (`reference/scone.md` section 2.9).

use data_encoding::{BASE32, BASE32_NOPAD, BASE64, BASE64URL};
use scone_run::protocol::hex;

use super::Kind;

const OPEN: &str = "$$SCONE::";
const CLOSE: &str = "$$";

/// How a secret's bytes become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// No format: an ascii secret as it is.
    Plain,
    /// Lower-case hex.
    Hex,
    /// RFC 4648 section 4, padded.
    Base64,
    /// RFC 4648 section 5, padded. Assumption: SCONE does not say whether it pads.
    Base64Url,
    /// RFC 4648 section 6, padded.
    Base32,
    /// RFC 4648 section 6 without padding: what authenticators take.
    Base32NoPad,
}

impl Format {
    /// Whether a secret of this kind can be written so: ascii as it is, binary encoded.
    pub fn suits(self, kind: Kind) -> bool {
        (self == Format::Plain) == (kind == Kind::Ascii)
    }

    /// The secret's text; `None` if the bytes have none in this format.
    pub fn encode(self, value: &[u8]) -> Option<String> {
        Some(match self {
            Format::Plain => String::from_utf8(value.to_vec()).ok()?,
            Format::Hex => hex(value),
            Format::Base64 => BASE64.encode(value),
            Format::Base64Url => BASE64URL.encode(value),
            Format::Base32 => BASE32.encode(value),
            Format::Base32NoPad => BASE32_NOPAD.encode(value),
        })
    }
}

/// A piece of a policy's text.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Text that stands for itself.
    Text(&'a str),
    /// The named secret, in this format.
    Secret(&'a str, Format),
}

/// Takes a text apart. The error is a sentence about what is wrong with it.
pub fn parts(text: &str) -> Result<Vec<Part<'_>>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(OPEN) {
        let Some((body, after)) = after.split_once(CLOSE) else {
            return Err("a $$SCONE:: placeholder is not closed by $$".into());
        };
        if !before.is_empty() {
            parts.push(Part::Text(before));
        }
        if body.contains('|') {
            return Err(format!("not simulated: escaping in the placeholder of '{body}'"));
        }
        let (name, format) = match body.split_once(':') {
            None => (body, Format::Plain),
            Some((name, format)) => (name, parse_format(format)?),
        };
        parts.push(Part::Secret(name, format));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest));
    }
    Ok(parts)
}

fn parse_format(format: &str) -> Result<Format, String> {
    Ok(match format {
        "hex" => Format::Hex,
        "base64" => Format::Base64,
        "base64url" => Format::Base64Url,
        "base32" => Format::Base32,
        "base32nopad" => Format::Base32NoPad,
        "bin" | "pem" | "der" | "crt" | "chain" | "privatekey" | "pkcs8" => {
            return Err(format!("not simulated: placeholder format '{format}'"));
        }
        _ => return Err(format!("unknown placeholder format '{format}'")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_that_is_open_unknown_or_not_simulated_is_refused() {
        assert!(parts("$$SCONE::a").is_err());
        assert!(parts("$$SCONE::a:rot13$$").unwrap_err().contains("unknown placeholder format"));
        assert!(parts("$$SCONE::a:bin$$").unwrap_err().contains("not simulated"));
        assert!(parts("$$SCONE::a|escape(json)$$").unwrap_err().contains("not simulated"));
    }

    #[test]
    fn text_around_placeholders_stands_for_itself() {
        assert_eq!(
            parts("a$$SCONE::s:hex$$ $$SCONE::t$$").unwrap(),
            [Part::Text("a"), Part::Secret("s", Format::Hex), Part::Text(" "), Part::Secret("t", Format::Plain)]
        );
        assert_eq!(parts("cost: $$5").unwrap(), [Part::Text("cost: $$5")]);
    }

    #[test]
    fn formats_are_rfc_4648s() {
        let foob = b"foob";
        assert_eq!(Format::Base32.encode(foob).unwrap(), "MZXW6YQ=");
        assert_eq!(Format::Base32NoPad.encode(foob).unwrap(), "MZXW6YQ");
        assert_eq!(Format::Base64.encode(foob).unwrap(), "Zm9vYg==");
        assert_eq!(Format::Base64Url.encode(&[0xfb, 0xff]).unwrap(), "-_8=");
        assert_eq!(Format::Hex.encode(foob).unwrap(), "666f6f62");
        assert!(!Format::Plain.suits(Kind::Binary));
        assert!(!Format::Hex.suits(Kind::Ascii));
    }
}
