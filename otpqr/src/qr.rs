//! From an account to a QR code that authenticators read: the Key URI, and its drawing as SVG.

use qrcode::{Color, EcLevel, QrCode};

use crate::environment::{Account, Secret};
use crate::{Exit, Failure};

/// The quiet zone around the code, in modules (ISO/IEC 18004).
const QUIET_ZONE: usize = 4;

/// Draws the account's Key URI. The result ends in `</svg>` and a newline, so that a truncated file can be recognised.
pub fn svg(account: &Account) -> Result<Secret, Failure> {
    // Level M: at equal size it scans better than H, whose modules are smaller.
    let code = QrCode::with_error_correction_level(key_uri(account).expose(), EcLevel::M).map_err(|cause| {
        Failure(Exit::Environment, format!("OTP_ACCOUNT_NAME and OTP_ACCOUNT_LOGIN do not fit a QR code: {cause}"))
    })?;
    let size = code.width() + 2 * QUIET_ZONE;
    Ok(Secret::new(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{px}" height="{px}" viewBox="0 0 {size} {size}" shape-rendering="crispEdges">
<rect width="{size}" height="{size}" fill="#fff"/>
<path stroke="#000" d="{path}"/>
</svg>
"##,
        px = 8 * size,
        path = path(&code),
    )))
}

/// A stroke along the middle of each row, interrupted at the light runs and one module wide, which is SVG's default. That takes
/// half the space of a rectangle for each dark run.
fn path(code: &QrCode) -> String {
    let mut path = String::new();
    for (y, row) in code.to_colors().chunks(code.width()).enumerate() {
        let (mut x, mut pen) = (0, None);
        while x < row.len() {
            let run = row[x..].iter().take_while(|&&module| module == row[x]).count();
            if row[x] == Color::Dark {
                match pen {
                    None => path.push_str(&format!("M{} {}.5", x + QUIET_ZONE, y + QUIET_ZONE)),
                    Some(pen) => path.push_str(&format!("m{} 0", x - pen)),
                }
                path.push_str(&format!("h{run}"));
                pen = Some(x + run);
            }
            x += run;
        }
    }
    path
}

/// The URI that authenticators read. The issuer is in it twice, for older and newer ones. Algorithm, digits and period are the
/// defaults but stated, so that no reader has to guess: SHA-1, six digits and 30 seconds are what SCONE CAS checks.
fn key_uri(account: &Account) -> Secret {
    let issuer = percent_encode(&account.issuer);
    let login = percent_encode(&account.login);
    let secret = account.secret.expose();
    Secret::new(format!(
        "otpauth://totp/{issuer}:{login}?secret={secret}&issuer={issuer}&algorithm=SHA1&digits=6&period=30"
    ))
}

/// RFC 3986 section 2: everything but the unreserved characters, as UTF-8. A space becomes `%20`, for authenticators show the
/// `+` of HTML forms as a plus.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(issuer: &str, login: &str) -> Account {
        Account {
            issuer: issuer.into(),
            login: login.into(),
            secret: Secret::new("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ".into()),
        }
    }

    #[test]
    fn the_key_uri_says_everything_and_escapes_all_that_is_not_unreserved() {
        assert_eq!(
            key_uri(&account(r#"O'Neil & "Co" #1"#, "ünï@host+a/b?c=d%~-._")).expose(),
            "otpauth://totp/O%27Neil%20%26%20%22Co%22%20%231:%C3%BCn%C3%AF%40host%2Ba%2Fb%3Fc%3Dd%25~-._\
             ?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=O%27Neil%20%26%20%22Co%22%20%231\
             &algorithm=SHA1&digits=6&period=30"
        );
    }

    #[test]
    fn labels_that_fit_no_qr_code_are_refused() {
        let Failure(exit, message) = svg(&account("SCONE OTP", &"l".repeat(3000))).unwrap_err();
        assert_eq!(exit, Exit::Environment);
        assert_eq!(message, "OTP_ACCOUNT_NAME and OTP_ACCOUNT_LOGIN do not fit a QR code: data too long");
    }

    #[test]
    fn the_path_covers_exactly_the_dark_modules() {
        let code = QrCode::with_error_correction_level("otpauth://totp/a:b", EcLevel::M).unwrap();
        let mut drawn = vec![false; code.width() * code.width()];
        let path = path(&code);
        for row in path.strip_prefix('M').unwrap().split('M') {
            let (start, rest) = row.split_once(' ').unwrap();
            let (y, strokes) = rest.split_once(".5h").unwrap();
            let (mut x, y): (usize, usize) = (start.parse().unwrap(), y.parse().unwrap());
            // Dark and light alternate.
            for (n, run) in strokes.replace(" 0h", "m").split('m').enumerate() {
                let end = x + run.parse::<usize>().unwrap();
                drawn[(y - QUIET_ZONE) * code.width()..][x - QUIET_ZONE..end - QUIET_ZONE].fill(n % 2 == 0);
                x = end;
            }
        }
        let dark: Vec<bool> = code.to_colors().into_iter().map(|color| color == Color::Dark).collect();
        assert_eq!(drawn, dark);
    }
}
