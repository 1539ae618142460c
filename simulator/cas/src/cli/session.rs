//! `scone session`: session files, and the sessions of a CAS.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::arguments::{CreatorKind, SessionCommand, Source};
use super::client::{Peer, accepted};
use super::config::Config;
use super::{CliError, Result, certificate, sign, variables};
use crate::server::SessionReply;
use crate::session::{Creator, MAX_TEXT, Session, SessionError, is_session_name};
use crate::signing::{MAX_SIGNED, Signed};
use crate::tls;

/// What is to be printed.
pub(super) fn run(command: SessionCommand, config: &Path) -> Result<String> {
    match command {
        SessionCommand::Check { source } => yaml(&source.load()?.session),
        SessionCommand::CalculateHash { source, with_self_as_creator, identity } => {
            let mut session = source.load()?.session;
            if session.lacks_creator() {
                session.creator = Some(creator(with_self_as_creator, identity, config)?);
            }
            Ok(session.hash() + "\n")
        }
        SessionCommand::Create { source, target } => {
            let create = || upload(&target.peer(config)?, source.load()?);
            create().map_err(|error| error.during("Creating session failed"))
        }
        SessionCommand::Update { source, target } => {
            let update = || update(&target.peer(config)?, source.load()?);
            update().map_err(|error| error.during("Updating session failed"))
        }
        SessionCommand::Verify { source, target } => {
            let verify = || verify(&target.peer(config)?, source.load()?);
            verify().map_err(|error| error.during("Verifying session failed"))
        }
        SessionCommand::Read { name, target } => {
            let read = || read(&target.peer(config)?, &name);
            Ok(read().map_err(|error| error.during("Reading session failed"))?.session)
        }
        SessionCommand::Sign { source, how } => sign::run(&source, how, config),
        SessionCommand::List { path, target } => {
            let list = || list(&target.peer(config)?, path.as_deref());
            list().map_err(|error| error.during("Listing sessions failed"))
        }
    }
}

/// Whom to calculate a session hash with.
fn creator(kind: Option<CreatorKind>, identity: Option<PathBuf>, config: &Path) -> Result<Creator> {
    match (kind, identity) {
        (Some(CreatorKind::Tls), None) => Ok(Creator::Certificate(Config::load(config)?.identity()?.certificate_pem)),
        (Some(CreatorKind::Tls), Some(file)) => {
            Ok(Creator::Certificate(tls::pem(tls::CERTIFICATE, &certificate(&file)?)))
        }
        (Some(CreatorKind::Signer), _) => {
            Ok(Creator::Signer { signer: sign::own_signer(&Config::signing_key(config)?)? })
        }
        (None, _) => Err(CliError::alone(
            "Cannot calculate session hash! The session, explicitly or through the default access policy, references its creator. The creator is only known once the session was created. You may use --with-self-as-creator to pretend you created the session, or remove all creator references.",
        )),
    }
}

fn update(peer: &Peer, mut signed: Signed) -> Result<String> {
    if signed.session.predecessor.is_none() {
        if signed.is_signed() {
            return Err(CliError::new(
                "The session names no predecessor, and is signed",
                "Write the active session's hash into its file as 'predecessor', and sign it again",
            ));
        }
        signed.session.predecessor = Some(read(peer, &signed.session.name)?.hash);
    }
    upload(peer, signed)
}

fn verify(peer: &Peer, signed: Signed) -> Result<String> {
    let is_signed = signed.is_signed();
    let mut session = signed.session;
    if session.lacks_creator() {
        // Not the active session's: somebody else's session with the same text is not this one.
        session.creator = Some(Creator::Certificate(peer.identity.certificate_pem.clone()));
    }
    let active = read(peer, &session.name)?;
    let active = Session::parse(&active.session).map_err(|error| CliError::alone(error.to_string()))?;
    // Assumption: a file that names no predecessor is compared as `update` would upload it in the active one's place.
    if session.predecessor.is_none() && !is_signed {
        session.predecessor.clone_from(&active.predecessor);
    }
    // The hash is computed here from what was read: CAS's word for it is not needed.
    let actual = active.hash();
    if actual != session.hash() {
        return Err(CliError::alone(format!("The active session is another one, its hash is {actual}")));
    }
    Ok(actual + "\n")
}

fn list(peer: &Peer, path: Option<&str>) -> Result<String> {
    let reply = accepted(peer, peer.get("/v1/sessions")?)?;
    let names = reply["sessions"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let is_at_or_below = |name: &&str| match path.map(|path| path.trim_end_matches('/')) {
        None | Some("") => true,
        Some(path) => name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
    };
    Ok(names.filter(is_at_or_below).map(|name| format!("{name}\n")).collect())
}

impl Source {
    /// Reads, fills in and checks the session file.
    pub(super) fn load(&self) -> Result<Signed> {
        let failed = |cause: String| {
            CliError::new(format!("Parsing session from session template file '{}' failed", self.file.display()), cause)
        };
        let length = std::fs::metadata(&self.file).map_err(|error| failed(error.to_string()))?.len();
        if length > MAX_SIGNED as u64 {
            return Err(failed(SessionError::TooLong.to_string()));
        }
        let text = std::fs::read_to_string(&self.file).map_err(|error| failed(error.to_string()))?;
        if let Some(signed) = Signed::parse_signed(&text) {
            return match &self.name {
                Some(_) => Err(failed("it is signed, and cannot be given another name".into())),
                None => signed.map_err(|error| failed(error.to_string())),
            };
        }
        if text.len() > MAX_TEXT {
            return Err(failed(SessionError::TooLong.to_string()));
        }
        let filled = variables::substitute(text.clone(), &self.variables, self.use_env).map_err(failed)?;
        let problem = |text: &str| Session::parse_as(text, self.name.as_deref()).map_err(|error| error.to_string());
        problem(&filled).map(Signed::unsigned).map_err(|error| {
            // The filled-in text has other lines than the file. The error names the file's, if the file has the same error, and
            // otherwise none.
            let bare = |error: &str| error.rsplit_once(" at line ").map_or(error, |(bare, _)| bare).to_owned();
            let written = problem(&text).err().filter(|written| bare(written) == bare(&error));
            failed(written.unwrap_or_else(|| bare(&error)))
        })
    }
}

fn yaml(session: &Session) -> Result<String> {
    session.to_yaml().map_err(|error| CliError::new("Cannot print the session", error.to_string()))
}

pub(super) fn json(signed: &Signed) -> Result<String> {
    signed.to_json().map_err(|error| CliError::new("Cannot print the session", error.to_string()))
}

fn upload(peer: &Peer, signed: Signed) -> Result<String> {
    let is_signed = signed.is_signed();
    let text = if is_signed { json(&signed)? } else { yaml(&signed.session)? };
    let reply = accepted(peer, peer.post("/session", text)?)?;
    let mut session = signed.session;
    if session.refers_to_creator() && !is_signed {
        session.creator = Some(Creator::Certificate(peer.identity.certificate_pem.clone()));
    }
    let expected = session.hash();
    match reply["hash"].as_str() {
        Some(hash) if hash == expected => Ok(expected + "\n"),
        _ => Err(CliError::new("CAS answers the hash of another session", format!("Expected {expected}"))),
    }
}

fn read(peer: &Peer, name: &str) -> Result<SessionReply> {
    if !is_session_name(name) {
        return Err(CliError::new(
            format!("'{name}' is not a session's name"),
            "letters, digits and _-.~, components parted by /",
        ));
    }
    let reply = peer.get(&format!("/v1/sessions/{name}"))?;
    let not_found = reply.status == 404;
    let body = accepted(peer, reply).map_err(|error| CliError { exit_code: if not_found { 2 } else { 1 }, ..error })?;
    serde_json::from_value(body).map_err(|error| CliError::new("CAS's answer is not understood", error.to_string()))
}
