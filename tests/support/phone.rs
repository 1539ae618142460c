//! Reads a QR code as a phone would: renders the SVG, finds and decodes the code in the picture, parses the Key URI and computes
//! codes. It shares no code with what it tests, and is strict: anything missing, duplicate or contradictory is an error.

use std::fmt;

use percent_encoding::percent_decode_str;
use resvg::{tiny_skia, usvg};
use totp_rs::{Algorithm, Secret, TOTP};

/// An authenticator's entry.
pub struct Account {
    /// The issuer, who accepts the codes.
    pub issuer: String,
    /// The login to which the codes belong.
    pub login: String,
    /// The shared secret, in base32, as it stood in the Key URI.
    pub secret: String,
    totp: TOTP,
}

impl Account {
    /// The code that the authenticator shows at this time, in seconds since 1970.
    pub fn code_at(&self, unix_seconds: u64) -> String {
        self.totp.generate(unix_seconds)
    }
}

/// Without the secret.
impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("issuer", &self.issuer).field("login", &self.login).finish_non_exhaustive()
    }
}

/// Scans the one QR code in a picture and makes an entry of it. No error holds the secret.
pub fn scan(svg: &str) -> Result<Account, String> {
    parse_key_uri(&decode(&rasterise(svg, None)?)?)
}

/// Scans a picture that a viewer shows `width` pixels wide, whatever the SVG says.
pub fn scan_at(svg: &str, width: u32) -> Result<Account, String> {
    parse_key_uri(&decode(&rasterise(svg, Some(width))?)?)
}

/// Which of the `size` x `size` squares of a picture are dark: in rows, by the middle of each.
pub fn modules(svg: &str, size: u32) -> Result<Vec<Vec<bool>>, String> {
    const PIXELS: u32 = 8;
    let picture = rasterise(svg, Some(PIXELS * size))?;
    let dark = |x, y| {
        let pixel = picture.pixel(PIXELS * x + PIXELS / 2, PIXELS * y + PIXELS / 2).ok_or("it is not square")?;
        Ok(pixel.red() < 128)
    };
    (0..size).map(|y| (0..size).map(|x| dark(x, y)).collect()).collect()
}

/// Draws `svg` on black, as a viewer in dark mode does: the picture must bring its own white. As wide as it says, or as `width`.
fn rasterise(svg: &str, width: Option<u32>) -> Result<tiny_skia::Pixmap, String> {
    let tree = usvg::Tree::from_str(svg, &usvg::Options::default()).map_err(|cause| format!("not an SVG: {cause}"))?;
    let size = tree.size().to_int_size();
    let size = width.map_or(Some(size), |width| size.scale_to_width(width)).ok_or("the SVG has no area")?;
    let mut picture = tiny_skia::Pixmap::new(size.width(), size.height()).ok_or("the SVG has no area")?;
    picture.fill(tiny_skia::Color::BLACK);
    let scale = tiny_skia::Transform::from_scale(
        size.width() as f32 / tree.size().width(),
        size.height() as f32 / tree.size().height(),
    );
    resvg::render(&tree, scale, &mut picture.as_mut());
    Ok(picture)
}

fn decode(picture: &tiny_skia::Pixmap) -> Result<String, String> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let grey = |x: usize, y: usize| {
        let pixel = picture.pixels()[y * width + x];
        ((u16::from(pixel.red()) + u16::from(pixel.green()) + u16::from(pixel.blue())) / 3) as u8
    };
    let mut image = rqrr::PreparedImage::prepare_from_greyscale(width, height, grey);
    match image.detect_grids().as_slice() {
        [code] => {
            let (found, text) = code.decode().map_err(|cause| format!("the QR code cannot be read: {cause}"))?;
            quiet_zone(found.version.to_size(), width, height, |x, y| grey(x, y) < 128)?;
            Ok(text)
        }
        codes => Err(format!("{} QR codes in the picture", codes.len())),
    }
}

/// Some phones need the quiet zone of four light modules on every side (ISO/IEC 18004). This one does not, so it is measured.
fn quiet_zone(modules: usize, width: usize, height: usize, dark: impl Fn(usize, usize) -> bool) -> Result<(), String> {
    let columns: Vec<usize> = (0..width).filter(|&x| (0..height).any(|y| dark(x, y))).collect();
    let rows: Vec<usize> = (0..height).filter(|&y| (0..width).any(|x| dark(x, y))).collect();
    for (lines, length) in [(columns, width), (rows, height)] {
        let (Some(first), Some(last)) = (lines.first(), lines.last()) else { return Err("nothing is dark".into()) };
        let module = (last + 1 - first) / modules;
        if *first < 4 * module || length - (last + 1) < 4 * module {
            return Err("less than four light modules on a side".into());
        }
    }
    Ok(())
}

/// Reads `otpauth://totp/Issuer:login?…` with all of its parameters.
pub fn parse_key_uri(uri: &str) -> Result<Account, String> {
    let rest = uri.strip_prefix("otpauth://totp/").ok_or("not a Key URI of time-based codes")?;
    let (label, query) = rest.split_once('?').ok_or("no parameters")?;
    let (issuer, login) = label.split_once(':').ok_or("no issuer in the label")?;
    let mut parameters: Vec<(&str, String)> = Vec::new();
    for parameter in query.split('&') {
        let (name, value) = parameter.split_once('=').ok_or("a parameter without a value")?;
        parameters.push((name, percent_decode(value)?));
    }
    // Each parameter exactly once: takes it out of the list, which is empty in the end.
    let mut take = |name: &str| {
        let at = parameters.iter().position(|(known, _)| *known == name).ok_or(format!("no parameter '{name}'"))?;
        Ok::<String, String>(parameters.swap_remove(at).1)
    };
    let secret = take("secret")?;
    let algorithm = match take("algorithm")?.as_str() {
        "SHA1" => Algorithm::SHA1,
        "SHA256" => Algorithm::SHA256,
        "SHA512" => Algorithm::SHA512,
        _ => return Err("unknown algorithm".into()),
    };
    let digits = take("digits")?.parse().map_err(|_| "digits are not a number")?;
    let period = take("period")?.parse().map_err(|_| "the period is not a number")?;
    let issuer = percent_decode(issuer)?;
    if take("issuer")? != issuer {
        return Err("label and parameter name different issuers".into());
    }
    if let Some((name, _)) = parameters.first() {
        return Err(format!("a second or unknown parameter '{name}'"));
    }
    let bytes = Secret::Encoded(secret.clone()).to_bytes().map_err(|_| "the secret is not base32")?;
    let totp = TOTP::new(algorithm, digits, 0, period, bytes).map_err(|_| "no authenticator takes such an entry")?;
    Ok(Account { issuer, login: percent_decode(login)?, secret, totp })
}

fn percent_decode(text: &str) -> Result<String, String> {
    match percent_decode_str(text).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err("not UTF-8".into()),
    }
}
