//! `$$SCONE::name[:format][|escape(json)]$$`: where a policy's text names a secret (`reference/scone.md` section 2.9).

use super::{Kind, Session, SessionError, rule};

/// What every placeholder starts with.
pub const OPEN: &str = "$$SCONE::";
const CLOSE: &str = "$$";

/// In the payload of a JWT: the measurement of the program that is attested.
pub const SOFTWARE_IDENTITY: &str = "$$SCONE::self::software_identity$$";

/// How a secret is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// No format: ascii as it is, binary as bytes, keys and certificates as PEM.
    Plain,
    /// A binary secret's bytes.
    Bin,
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
    /// A private key, PKCS#8 in PEM.
    Pem,
    /// A private key, PKCS#8 in DER.
    Der,
    /// A public key, SubjectPublicKeyInfo in PEM.
    Spki,
    /// A public key, SubjectPublicKeyInfo in DER.
    SpkiDer,
    /// A certificate, PEM.
    Crt,
    /// A certificate, DER.
    CrtDer,
    /// A certificate's private key, PKCS#8 in PEM.
    CrtKey,
    /// A certificate's private key, PKCS#8 in DER.
    CrtKeyDer,
    /// The certificates above a certificate, PEM, the root last.
    Chain,
    /// The certificates above a certificate and then it, PEM, the root first: what `.chain` means.
    ChainFromRoot,
}

impl Format {
    /// What may follow a secret's name.
    pub const SPELLINGS: &[(&str, Format)] = &[
        ("", Format::Plain),
        (":bin", Format::Bin),
        (":hex", Format::Hex),
        (":base64", Format::Base64),
        (":base64url", Format::Base64Url),
        (":base32", Format::Base32),
        (":base32nopad", Format::Base32NoPad),
        (":pem", Format::Pem),
        (":pkcs8:pem", Format::Pem),
        (":der", Format::Der),
        (":pkcs8:der", Format::Der),
        (":spki:pem", Format::Spki),
        (":spki:der", Format::SpkiDer),
        (":crt", Format::Crt),
        (":crt:pem", Format::Crt),
        (":crt:der", Format::CrtDer),
        (":privatekey", Format::CrtKey),
        (":privatekey:pem", Format::CrtKey),
        (":privatekey:pkcs8:pem", Format::CrtKey),
        (":privatekey:der", Format::CrtKeyDer),
        (":privatekey:pkcs8:der", Format::CrtKeyDer),
        (":chain", Format::Chain),
    ];

    /// The same as it was spelled once.
    pub const DEPRECATED: &[(&str, Format)] =
        &[(".hex", Format::Hex), (".crt", Format::Crt), (".key", Format::CrtKey), (".chain", Format::ChainFromRoot)];

    /// What a suffix of a secret's name means.
    fn spelled(list: &[(&str, Format)], suffix: &str) -> Option<Format> {
        list.iter().find(|(spelled, _)| *spelled == suffix).map(|(_, format)| *format)
    }

    fn parse(path: &str, suffix: &str) -> Result<Format, SessionError> {
        Format::spelled(Format::SPELLINGS, suffix).ok_or_else(|| match &suffix[1..] {
            format @ "pkcs12-with-private-key" => {
                SessionError::NotSimulated(format!("{path}: the placeholder format '{format}'"))
            }
            format => rule(path, format!("unknown placeholder format '{format}'")),
        })
    }

    /// Whether a secret of this kind can be written so.
    pub fn suits(self, kind: Kind) -> bool {
        use Format::*;
        match self {
            Plain => true,
            Bin | Hex | Base64 | Base64Url | Base32 | Base32NoPad => kind == Kind::Binary,
            Pem | Der => kind == Kind::PrivateKey,
            Spki | SpkiDer => kind == Kind::PublicKey,
            Crt | CrtDer | CrtKey | CrtKeyDer | Chain | ChainFromRoot => {
                matches!(kind, Kind::X509 | Kind::X509Ca)
            }
        }
    }

    /// Whether this gives text, fit for arguments and environment. `kind` as far as it is known.
    pub fn is_text(self, kind: Option<Kind>) -> bool {
        match self {
            Format::Plain => kind != Some(Kind::Binary),
            Format::Bin | Format::Der | Format::SpkiDer | Format::CrtDer | Format::CrtKeyDer => false,
            _ => true,
        }
    }
}

/// A secret's place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placeholder<'a> {
    /// The secret.
    pub name: &'a str,
    /// How it is written.
    pub format: Format,
    /// Whether what is written is escaped for use inside a JSON string (RFC 8259 section 7).
    pub json: bool,
}

/// A piece of a policy's text.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Text that stands for itself.
    Text(&'a str),
    /// A secret.
    Secret(Placeholder<'a>),
}

impl Session {
    /// Takes the text at `path` of the policy apart. A name that ends in a deprecated format means the secret before the dot,
    /// unless a secret is declared by that very name.
    pub fn parts<'a>(&self, path: &str, text: &'a str) -> Result<Vec<Part<'a>>, SessionError> {
        let mut parts = parts(path, text)?;
        for part in &mut parts {
            if let Part::Secret(Placeholder { name, format: format @ Format::Plain, .. }) = part
                && self.secret(name).is_none()
                && let Some(dot) = name.rfind('.')
                && let Some(deprecated) = Format::spelled(Format::DEPRECATED, &name[dot..])
            {
                (*name, *format) = (&name[..dot], deprecated);
            }
        }
        Ok(parts)
    }
}

/// Whether the text is a placeholder and nothing else.
pub fn is_one_placeholder(text: &str) -> bool {
    let body = text.strip_prefix(OPEN).and_then(|rest| rest.strip_suffix(CLOSE));
    body.is_some_and(|body| !body.contains(CLOSE))
}

fn parts<'a>(path: &str, text: &'a str) -> Result<Vec<Part<'a>>, SessionError> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(OPEN) {
        let Some((body, after)) = after.split_once(CLOSE) else {
            return Err(rule(path, "a $$SCONE:: placeholder is not closed by $$"));
        };
        if !before.is_empty() {
            parts.push(Part::Text(before));
        }
        let (body, json) = match body.split_once('|') {
            None => (body, false),
            Some((body, "escape(json)")) => (body, true),
            Some((_, other)) => return Err(rule(path, format!("unknown encoding '{other}' in a placeholder"))),
        };
        let (name, suffix) = body.split_at(body.find(':').unwrap_or(body.len()));
        if name == "self" && suffix.starts_with("::") {
            return Err(SessionError::NotSimulated(format!("{path}: the placeholder {OPEN}{body}$$")));
        }
        let format = Format::parse(path, suffix)?;
        parts.push(Part::Secret(Placeholder { name, format, json }));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, format: Format, json: bool) -> Part<'_> {
        Part::Secret(Placeholder { name, format, json })
    }

    #[test]
    fn a_placeholder_that_is_open_unknown_or_not_simulated_is_refused() {
        for (text, why) in [
            ("$$SCONE::a", "a.b: a $$SCONE:: placeholder is not closed by $$"),
            ("$$SCONE::a:rot13$$", "a.b: unknown placeholder format 'rot13'"),
            ("$$SCONE::a|escape(html)$$", "a.b: unknown encoding 'escape(html)' in a placeholder"),
            (
                "$$SCONE::a:pkcs12-with-private-key$$",
                "not simulated: a.b: the placeholder format 'pkcs12-with-private-key'",
            ),
            (
                "$$SCONE::self::software_identity$$",
                "not simulated: a.b: the placeholder $$SCONE::self::software_identity$$",
            ),
        ] {
            assert_eq!(parts("a.b", text).unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn text_around_placeholders_stands_for_itself() {
        assert_eq!(
            parts("", "a$$SCONE::s:hex$$ $$SCONE::t|escape(json)$$").unwrap(),
            [Part::Text("a"), secret("s", Format::Hex, false), Part::Text(" "), secret("t", Format::Plain, true)]
        );
        assert_eq!(parts("", "cost: $$5").unwrap(), [Part::Text("cost: $$5")]);
    }

    #[test]
    fn formats_belong_to_kinds() {
        for (format, kind) in [(Format::Hex, Kind::Ascii), (Format::Crt, Kind::PrivateKey), (Format::Pem, Kind::X509)] {
            assert!(!format.suits(kind));
        }
        assert!(!Format::Plain.is_text(Some(Kind::Binary)));
        assert!(Format::Plain.is_text(Some(Kind::X509)) && Format::Hex.suits(Kind::Binary));
    }
}
