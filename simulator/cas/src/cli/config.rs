//! The CLI's memory: who this user is, which key signs this user's sessions, and which CASes were attested with which key.
//! JSON, 0600, replaced as a whole; a file that this program did not write is refused.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PKCS_ED25519};
use serde::{Deserialize, Serialize};

use super::{CliError, Result};
use crate::daemon::{CLIENT_PORT, default_data};
use crate::tls::Identity;

const FORMAT: &str = "scone-sim cli 1";

/// The file's content.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    format: String,
    /// Private key and certificate, PEM.
    identity: String,
    /// Private key that sessions are signed with, PEM: made when it is first needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session_signing_key: Option<String>,
    default_cas: Option<String>,
    /// Key hashes by [`Address::name`].
    cas: BTreeMap<String, String>,
}

/// `<data directory>/cli/config.json`.
pub fn default_path() -> Result<PathBuf> {
    let data = default_data().map_err(|error| CliError::new("No place for the configuration", error.to_string()))?;
    Ok(data.join("cli/config.json"))
}

fn failed(path: &Path, error: impl std::fmt::Display) -> CliError {
    CliError::new(format!("Cannot use the configuration '{}'", path.display()), error.to_string())
}

impl Config {
    /// Reads the file; makes it, with a new identity, if it is not there.
    pub fn load(path: &Path) -> Result<Config> {
        match Self::read(path)? {
            Some(config) => Ok(config),
            None => Self::change(path, |_| Ok(())),
        }
    }

    /// Changes the file: alone, and as a whole or not at all.
    pub fn change(path: &Path, change: impl FnOnce(&mut Config) -> Result<()>) -> Result<Config> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| failed(path, error))?;
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock: io::Result<File> =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(lock_path);
        let lock = lock.map_err(|error| failed(path, error))?;
        lock.lock().map_err(|error| failed(path, error))?;

        let mut config = match Self::read(path)? {
            Some(config) => config,
            None => Config {
                format: FORMAT.into(),
                identity: Identity::generate("scone-sim user").map_err(|error| failed(path, error))?.to_pem(),
                session_signing_key: None,
                default_cas: None,
                cas: BTreeMap::new(),
            },
        };
        change(&mut config)?;
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            serde_json::to_writer_pretty(&mut file, &config)?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|error| failed(path, error))?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Option<Config>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(path, error)),
        };
        // The parser's message could repeat a part of the private key.
        let config: Option<Config> = serde_json::from_slice(&text).ok();
        match config {
            Some(config) if config.format == FORMAT => Ok(Some(config)),
            _ => Err(failed(path, "it was not written by this version of scone-sim, or is damaged")),
        }
    }

    /// Who this user is.
    pub fn identity(&self) -> Result<Identity> {
        Identity::from_pem(&self.identity)
            .map_err(|error| CliError::new("Cannot use this user's identity", error.to_string()))
    }

    /// What this user signs sessions with: an Ed25519 key.
    pub fn signing_key(path: &Path) -> Result<KeyPair> {
        let unusable =
            |error: rcgen::Error| CliError::new("Cannot use this user's session signing key", error.to_string());
        let mut key = Config::load(path)?.session_signing_key;
        if key.is_none() {
            let drawn = KeyPair::generate_for(&PKCS_ED25519).map_err(unusable)?.serialize_pem();
            let change = |config: &mut Config| {
                // Another process may have been faster.
                config.session_signing_key.get_or_insert(drawn);
                Ok(())
            };
            key = Config::change(path, change)?.session_signing_key;
        }
        KeyPair::from_pem(&key.unwrap_or_default()).map_err(unusable)
    }

    /// The default CAS's name.
    pub fn default_cas(&self) -> Option<&str> {
        self.default_cas.as_deref()
    }

    /// Names and URLs.
    pub fn list(&self) -> Result<Vec<(&str, String)>> {
        self.cas.keys().map(|name| Ok((name.as_str(), Address::parse(name)?.url()))).collect()
    }

    /// Address and key hash of an attested CAS; the default one if none is named.
    pub fn cas(&self, name: Option<&str>) -> Result<(Address, String)> {
        let Some(name) = name.or(self.default_cas()) else {
            return Err(CliError::new(
                "No CAS was attested yet",
                "Attest one first: scone cas attest ADDRESS -c CAS_KEY_HASH",
            ));
        };
        let address = Address::parse(name)?;
        match self.known_key(&address) {
            Some(key) => Ok((address, key.to_owned())),
            None => Err(CliError::new(
                format!("CAS '{}' was not attested yet", address.name()),
                format!("Attest it first: scone cas attest {} -c CAS_KEY_HASH", address.name()),
            )),
        }
    }

    /// The key hash it had when it was attested.
    pub fn known_key(&self, address: &Address) -> Option<&str> {
        self.cas.get(&address.name()).map(String::as_str)
    }

    /// Remembers an attested CAS; the first one is the default.
    pub fn remember(&mut self, address: &Address, key: String) {
        self.default_cas.get_or_insert_with(|| address.name());
        self.cas.insert(address.name(), key);
    }

    /// Makes an attested CAS the default.
    pub fn set_default(&mut self, name: &str) -> Result<()> {
        let (address, _) = self.cas(Some(name))?;
        self.default_cas = Some(address.name());
        Ok(())
    }
}

/// Where a CAS serves its client API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name or an IPv4 address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// `host`, `host:port` or `https://host:port/`.
    pub fn parse(text: &str) -> Result<Address> {
        let wrong = || CliError::new(format!("'{text}' is not a CAS's address"), "host[:port] is needed");
        let bare = text.strip_prefix("https://").unwrap_or(text);
        let bare = bare.strip_suffix('/').unwrap_or(bare);
        let (host, port) = match bare.split_once(':') {
            None => (bare, CLIENT_PORT),
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
        };
        let allowed = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
        if host.is_empty() || !host.bytes().all(allowed) {
            return Err(wrong());
        }
        Ok(Address { host: host.to_owned(), port })
    }

    /// What it is called: the host, with the port unless it is SCONE's.
    pub fn name(&self) -> String {
        if self.port == CLIENT_PORT { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// As SCONE prints it.
    pub fn url(&self) -> String {
        format!("https://{}:{}/", self.host, self.port)
    }
}
