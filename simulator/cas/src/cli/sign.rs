//! `scone session sign`: with this user's key, or with one that another program holds.

use std::io::{IsTerminal, Read, stdin, stdout};
use std::path::Path;

use data_encoding::BASE64;
use rcgen::{KeyPair, SigningKey};

use super::arguments::{SignCommand, Source};
use super::config::Config;
use super::session::json;
use super::{CliError, Result, unreadable};
use crate::session::Creator;
use crate::signing::{SessionSigner, Signed};

/// The most that is read of a signature from standard input, in bytes. The longest one that may be right has 104.
const MAX_SIGNATURE: u64 = 1024;

/// What is to be printed.
pub(super) fn run(source: &Source, how: Option<SignCommand>, config: &Path) -> Result<String> {
    let mut signed = source.load()?;
    match how.unwrap_or(SignCommand::SignWithCliIdentity) {
        SignCommand::SignWithCliIdentity => {
            let key = Config::signing_key(config)?;
            created_by(&mut signed, || own_signer(&key))?;
            let signature = key.sign(signed.message().as_bytes()).map_err(failed)?;
            add(&mut signed, own_signer(&key)?, &signature)
        }
        SignCommand::GenerateMessageToBeSigned { force: false, .. } if stdout().is_terminal() => {
            Err(failed("The message is not text, and standard output is a terminal: send it elsewhere, or use -f"))
        }
        SignCommand::GenerateMessageToBeSigned { signer, .. } => {
            let nobody = || failed("The session does not name its creator yet: give the public key of its signer");
            created_by(&mut signed, || read_signer(&signer.ok_or_else(nobody)?))?;
            Ok(signed.message())
        }
        SignCommand::AddSignature { signer, signature } => {
            let signer = read_signer(&signer)?;
            created_by(&mut signed, || Ok(signer.clone()))?;
            let signature = match signature {
                Some(text) => BASE64.decode(text.as_bytes()).map_err(|_| failed("The signature is not base64"))?,
                None => read_signature().map_err(failed)?,
            };
            add(&mut signed, signer, &signature)
        }
    }
}

fn failed(cause: impl ToString) -> CliError {
    CliError::new("Signing session failed", cause.to_string())
}

/// The session signer that this user is.
pub(super) fn own_signer(key: &KeyPair) -> Result<SessionSigner> {
    SessionSigner::from_pem(&key.public_key_pem())
        .ok_or_else(|| CliError::alone("This user's session signing key is not an Ed25519 key"))
}

/// What is signed cannot be completed later: who signs first is the creator, if the session needs one.
fn created_by(signed: &mut Signed, signer: impl FnOnce() -> Result<SessionSigner>) -> Result<()> {
    if signed.session.lacks_creator() {
        signed.session.creator = Some(Creator::Signer { signer: signer()? });
    }
    match &signed.session.creator {
        Some(Creator::Certificate(_)) => Err(failed(
            "The session names a client as its creator, and CAS takes that from no signer: leave `creator` out",
        )),
        _ => Ok(()),
    }
}

fn add(signed: &mut Signed, signer: SessionSigner, signature: &[u8]) -> Result<String> {
    signed.add(signer, signature).map_err(failed)?;
    json(signed)
}

fn read_signature() -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stdin().take(MAX_SIGNATURE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_signer(file: &Path) -> Result<SessionSigner> {
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error.to_string()))?;
    SessionSigner::try_from(text).map_err(|problem| unreadable(file, problem))
}
