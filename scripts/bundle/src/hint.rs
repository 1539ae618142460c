//! Commands for the user to paste: each works where the user stands, and is about the same bundle and account.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The bundle, once it was found, and whether it was named by `--root`.
static BUNDLE: OnceLock<(PathBuf, bool)> = OnceLock::new();

/// Called once the bundle is found: hints are about this one from then on.
pub fn set_bundle(root: &Path, named: bool) {
    BUNDLE.get_or_init(|| (root.to_owned(), named));
}

/// SCONE's command line, if it was named by `--scone`.
static SCONE: OnceLock<PathBuf> = OnceLock::new();

/// Called if it was named: what is pasted names it, too.
pub fn set_scone(path: &Path) {
    SCONE.get_or_init(|| path.to_owned());
}

/// A command that runs a script for an account.
pub fn script(name: &str, account_name: &str, rest: &str) -> String {
    let scone = SCONE.get().map_or(String::new(), |path| format!(" --scone {}", quoted(path.display())));
    format!("./scripts/{name}.rs{}{scone}{rest}", account(account_name))
}

/// The option that makes a command be about an account. The default account need not be named.
pub fn account(name: &str) -> String {
    if name == "default" { String::new() } else { format!(" --account {name}") }
}

/// A command of the bundle as it can be pasted here: `./scripts/x.rs` lies where this script does, wherever that is, and is
/// about the same bundle; `make` and `docker build` run in the bundle.
pub fn pasteable(command: &str) -> String {
    let (root, named) = BUNDLE.get().map_or((None, false), |(root, named)| (Some(root), *named));
    if ["make ", "docker build "].iter().any(|tool| command.starts_with(tool)) {
        return match root {
            Some(root) if env::current_dir().ok().as_ref() != Some(root) => {
                // What stands behind '#' would take the bracket along.
                let (command, why) = command.split_at(command.find("   # ").unwrap_or(command.len()));
                format!("(cd {} && {command}){why}", path(root))
            }
            _ => command.to_owned(),
        };
    }
    let Some((name, rest)) = command.strip_prefix("./scripts/").and_then(|command| command.split_once(".rs")) else {
        return command.to_owned();
    };
    let script = plain(&beside_this_one(name));
    match root {
        Some(root) if named => format!("{script} --root {}{rest}", path(root)),
        _ => format!("{script}{rest}"),
    }
}

/// Where another script lies: rust-script names the directory; a compiled one is found beside itself, as it was called.
fn beside_this_one(name: &str) -> PathBuf {
    let own = PathBuf::from(env::args_os().next().unwrap_or_default());
    let script = match env::var_os("RUST_SCRIPT_BASE_PATH") {
        Some(directory) => Path::new(&directory).join(name).with_extension("rs"),
        None => own.with_file_name(name).with_extension(own.extension().unwrap_or_default()),
    };
    match env::current_dir().ok().and_then(|current| script.strip_prefix(current).ok().map(Path::to_owned)) {
        Some(below) => Path::new(".").join(below),
        None => script,
    }
}

/// The path of a script as a word of a shell, without quotes where it needs none.
fn plain(script: &Path) -> String {
    let needs_no_quotes = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    match script.to_str() {
        Some(text) if text.chars().all(needs_no_quotes) && !text.starts_with('-') => text.to_owned(),
        _ => path(script),
    }
}

/// A path as one word of a shell, which no program takes for an option, nor for a stream (`-`).
pub fn path(path: &Path) -> String {
    let dash = if path.as_os_str().as_encoded_bytes().starts_with(b"-") { "./" } else { "" };
    quoted(format!("{dash}{}", path.display()))
}

/// A text as one word of a shell.
pub fn quoted(text: impl fmt::Display) -> String {
    format!("'{}'", text.to_string().replace('\'', r"'\''"))
}

/// The command that destroys a QR code.
pub fn shred(file: &Path) -> String {
    format!("shred -n 3 -z -u {}", path(file))
}

#[test]
fn the_default_account_need_not_be_named() {
    assert_eq!(script("gen_qr", "default", ""), "./scripts/gen_qr.rs");
    assert_eq!(script("gen_qr", "signing", " --terminal"), "./scripts/gen_qr.rs --account signing --terminal");
}

#[test]
fn a_quote_does_not_end_the_word() {
    assert_eq!(quoted("it's"), r"'it'\''s'");
    assert_eq!(plain(Path::new("./scripts/gen_qr.rs")), "./scripts/gen_qr.rs");
    assert_eq!(plain(Path::new("./my scripts/gen_qr.rs")), "'./my scripts/gen_qr.rs'");
}

#[test]
fn a_dash_does_not_make_a_path_an_option_or_a_stream() {
    assert_eq!(path(Path::new("-")), "'./-'");
    assert_eq!(path(Path::new("-x.svg")), "'./-x.svg'");
    assert_eq!(path(Path::new("./-x.svg")), "'./-x.svg'");
    assert_eq!(plain(Path::new("-x/gen_qr.rs")), "'./-x/gen_qr.rs'");
}
