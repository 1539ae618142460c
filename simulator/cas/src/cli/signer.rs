//! `scone signer`: signs programs for the simulated runtime, and says what they are signed as.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use scone_protocol::hex;
use scone_protocol::signature::{self, Claims, EXPONENT, MODULUS_LENGTH, Settings, Signed, size};
use tempfile::NamedTempFile;

use super::arguments::{Sign, SignerCommand};
use super::{CliError, Result, unreadable};

/// Variables of the options that are not simulated.
const VARIABLES_NOT_SIMULATED: &[&str] = &[
    "SCONE_EXTENSIONS_PATH",
    "SCONE_FORK",
    "SCONE_MIN_HEAP",
    "SCONE_MISCSELECT",
    "SCONE_MPROTECT",
    "SCONE_SYSLIBS",
    "SCONE_TCS",
    "SCONE_XFRM",
];

pub(super) fn run(command: SignerCommand) -> Result<String> {
    match command {
        SignerCommand::Sign(options) => sign(&options).map(|()| String::new()),
        SignerCommand::Info { file, yaml } => {
            let content = read(&file)?;
            let signed = verified(&file, &content)?.ok_or_else(|| unreadable(&file, "it is not signed"))?;
            Ok(if yaml { info_yaml(&signed) } else { info(&signed) })
        }
    }
}

fn sign(options: &Sign) -> Result<()> {
    let unserved = VARIABLES_NOT_SIMULATED.iter().find(|name| options.variable(name).is_some());
    if let Some(name) = unserved {
        return Err(CliError::not_simulated(name));
    }
    let file = options.or_variable(options.key.clone(), "SCONE_KEY", |text| Some(text.into()))?;
    let key = file.ok_or_else(|| CliError::not_simulated("SCONE's built-in debug key: give a key with --key"))?;
    let key = read_key(&key)?;
    let claims = Claims {
        settings: options.settings()?,
        isvprodid: options.or_variable(options.isvprodid, "SCONE_ISVPRODID", |text| text.parse().ok())?.unwrap_or(0),
        isvsvn: options.or_variable(options.isvsvn, "SCONE_ISVSVN", |text| text.parse().ok())?.unwrap_or(0),
        modulus: hex(key.public_key().modulus().big_endian_without_leading_zero()),
    };
    let content = read(&options.file)?;
    if !content.starts_with(b"\x7fELF") {
        return Err(unreadable(&options.file, "it is not an ELF program"));
    }
    let program = verified(&options.file, &content)?.map_or(&content[..], |signed| signed.program);
    let signed = signature::write(program, &claims, |message| {
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).map(|()| signature)
    });
    let signed = signed.map_err(|_| CliError::alone("The key cannot sign"))?;
    replace(&options.file, &signed).map_err(|error| unreadable(&options.file, &error.to_string()))
}

impl Sign {
    fn settings(&self) -> Result<Settings> {
        let digit = |text: &str, highest| text.parse().ok().filter(|digit| *digit <= highest);
        let production = Some(1).filter(|_| self.production);
        Ok(Settings {
            heap: self.or_variable(self.heap, "SCONE_HEAP", size)?.unwrap_or(64 << 20),
            stack: self.or_variable(self.stack, "SCONE_STACK", size)?.unwrap_or(2 << 20),
            dlopen: self.or_variable(self.dlopen, "SCONE_ALLOW_DLOPEN", |text| digit(text, 2))?.unwrap_or(0),
            production: self.or_variable(production, "SCONE_PRODUCTION", |text| digit(text, 1))? == Some(1),
        })
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var_os(name).filter(|_| self.env).map(|value| value.to_string_lossy().into_owned())
    }

    /// What the option says, or else with `--env` the variable.
    fn or_variable<T>(
        &self,
        option: Option<T>,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.variable(name) {
            Some(value) if option.is_none() => {
                parse(&value).map(Some).ok_or_else(|| CliError::alone(format!("The value of {name} is not valid")))
            }
            _ => Ok(option),
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).map_err(|error| unreadable(file, &error.to_string()))
}

fn verified<'a>(file: &Path, content: &'a [u8]) -> Result<Option<Signed<'a>>> {
    signature::read(content).map_err(|_| unreadable(file, "it was changed since it was signed"))
}

fn read_key(file: &Path) -> Result<KeyPair> {
    let key = match PrivateKeyDer::from_pem_slice(&read(file)?) {
        Ok(PrivateKeyDer::Pkcs1(key)) => KeyPair::from_der(key.secret_pkcs1_der()).ok(),
        Ok(PrivateKeyDer::Pkcs8(key)) => KeyPair::from_pkcs8(key.secret_pkcs8_der()).ok(),
        _ => None,
    };
    let suits = |key: &KeyPair| {
        let exponent = key.public_key().exponent();
        exponent.big_endian_without_leading_zero() == [EXPONENT] && key.public_modulus_len() == MODULUS_LENGTH
    };
    key.filter(suits).ok_or_else(|| unreadable(file, "it is not what 'openssl genrsa -3 3072' makes"))
}

/// Puts the signed program in the place of `file`, whole or not at all.
fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    // What a link leads to, not the link.
    let file = fs::canonicalize(file)?;
    let mut new = NamedTempFile::new_in(file.parent().unwrap_or(Path::new("/")))?;
    new.write_all(content)?;
    new.as_file().set_permissions(fs::metadata(&file)?.permissions())?;
    new.as_file().sync_all()?;
    new.persist(&file)?;
    Ok(())
}

/// The fields of SCONE's that exist here. Neither has MRENCLAVE: that takes the runtime (`SCONE_HASH=1`).
fn info_yaml(signed: &Signed<'_>) -> String {
    let (signer, debug) = (&signed.signer, u8::from(!signed.settings.production));
    format!(
        "mrsigner: {}\nisv_product_id: {}\nisv_svn: {}\nattributes:\n  debug: {debug}\n",
        signer.mrsigner, signer.isvprodid, signer.isvsvn
    )
}

fn info(Signed { settings, signer, .. }: &Signed<'_>) -> String {
    let debug = if settings.production { "no" } else { "yes" };
    let dlopen = ["not allowed", "allowed", "allowed, without protection"].get(usize::from(settings.dlopen));
    format!(
        "SIGSTRUCT:\n\tAttributes:\n\t\tDebug: {debug}\n\tISV Product ID: {}\n\tISV SVN: {}\n\nMRSIGNER: {}\n\n\
         Enclave Parameters:\n\tHeap size: {}\n\tDefault stack size: {}\n\tFlags:\n\t\tDLOPEN: {}\n",
        signer.isvprodid,
        signer.isvsvn,
        signer.mrsigner,
        settings.heap,
        settings.stack,
        dlopen.unwrap_or(&"unknown"),
    )
}
