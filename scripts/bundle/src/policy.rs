//! The policies: rendered from `templates/`, uploaded with the `scone` command line.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::child::Finished;
use super::outcome::{Failure, OTHER, PART_WAY, PRECONDITION, REFUSED};
use super::platform::{Tools, is_sha256};
use super::state::{State, label};

/// The three sessions of an account, in the order in which they are first uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    Namespace,
    Otpqr,
    Reset,
}

impl Session {
    fn template(self) -> &'static str {
        match self {
            Session::Namespace => "namespace.yml",
            Session::Otpqr => "otpqr.yml",
            Session::Reset => "otpqr-reset.yml",
        }
    }

    pub fn name(self, state: &State) -> String {
        match self {
            Session::Namespace => state.namespace.clone(),
            Session::Otpqr => format!("{}/otpqr", state.namespace),
            Session::Reset => format!("{}/otpqr-reset", state.namespace),
        }
    }

    fn known_hash(self, state: &State) -> &Option<String> {
        match self {
            Session::Namespace => &state.namespace_hash,
            Session::Otpqr => &state.otpqr_hash,
            Session::Reset => &state.reset_hash,
        }
    }

    pub fn hash(self, state: &mut State) -> &mut Option<String> {
        match self {
            Session::Namespace => &mut state.namespace_hash,
            Session::Otpqr => &mut state.otpqr_hash,
            Session::Reset => &mut state.reset_hash,
        }
    }
}

/// What the services of a session use, and what the session declares: the two differ while a roll-forward is under way.
pub struct Versions {
    pub volume: u32,
    pub secret: u32,
    pub declared_volumes: Vec<u32>,
    pub declared_secrets: Vec<u32>,
}

impl Versions {
    pub fn only(volume: u32, secret: u32) -> Versions {
        Versions { volume, secret, declared_volumes: vec![volume], declared_secrets: vec![secret] }
    }
}

/// Checks an issuer or a login. A colon separates the two in a Key URI; a `$` would be taken for a variable by `scone`.
pub fn label_part(text: &str) -> Result<String, String> {
    match text.trim() == text && !text.is_empty() && !text.contains([':', '$']) && !text.chars().any(char::is_control) {
        true => Ok(text.to_owned()),
        false => {
            Err("must not be empty, hold ':' or '$' or a control character, nor begin or end with a space".to_owned())
        }
    }
}

/// Renders a session's policy. Strict: a value the template names and we do not give is an error.
pub fn render(root: &Path, session: Session, state: &State, versions: &Versions) -> Result<String, Failure> {
    let path = root.join("templates").join(session.template());
    let failed = format!("template '{}' cannot be rendered", path.display());
    let template = fs::read_to_string(&path).map_err(Failure::because(PRECONDITION, failed.as_str()))?;
    let mut handlebars = handlebars::Handlebars::new();
    handlebars.set_strict_mode(true);
    // Every value stands between double quotes; JSON's escapes are valid there in YAML too.
    handlebars.register_escape_fn(|value| {
        let quoted = Value::from(value).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    });
    let values = json!({
        "namespace": state.namespace,
        "language": state.language,
        "predecessor": session.known_hash(state).as_deref().unwrap_or("~"),
        "mrenclave": state.mrenclave,
        "issuer": state.issuer,
        "login": label(&state.login, versions.secret),
        "volume_version": versions.volume,
        "secret_version": versions.secret,
        "volume_versions": versions.declared_volumes,
        "secret_versions": versions.declared_secrets,
    });
    handlebars.render_template(&template, &values).map_err(Failure::because(PRECONDITION, failed))
}

/// A policy rendered for one session: what CAS is to hold.
struct Policy<'a> {
    tools: &'a Tools,
    cas: &'a str,
    session: String,
    /// 0600, and removed when this goes.
    file: NamedTempFile,
}

impl<'a> Policy<'a> {
    fn of(
        tools: &'a Tools,
        root: &Path,
        session: Session,
        state: &'a State,
        versions: &Versions,
    ) -> Result<Policy<'a>, Failure> {
        let text = render(root, session, state, versions)?;
        let failed = "the policy cannot be written to a temporary file";
        let mut file = tempfile::Builder::new()
            .prefix("otpqr-policy-")
            .suffix(".yml")
            .tempfile()
            .map_err(Failure::because(OTHER, failed))?;
        file.write_all(text.as_bytes()).map_err(Failure::because(OTHER, failed))?;
        Ok(Policy { tools, cas: &state.cas.address, session: session.name(state), file })
    }

    /// `scone session SUBCOMMAND` on the policy: the hash it prints, or what it says.
    fn scone(&self, subcommand: &str) -> Result<Result<String, Finished>, Failure> {
        let file = self.file.path().into();
        let finished = self.run(subcommand, file)?;
        let hash = finished.stdout.trim();
        match (finished.success(), is_sha256(hash)) {
            (true, true) => Ok(Ok(hash.to_owned())),
            (true, false) => {
                let message = format!("'scone session {subcommand}' did not print the hash of '{}'", self.session);
                Err(Failure::new(OTHER, message))
            }
            (false, _) => Ok(Err(finished)),
        }
    }

    fn run(&self, subcommand: &str, what: OsString) -> Result<Finished, Failure> {
        let args = ["session".into(), subcommand.into(), format!("--cas={}", self.cas).into(), what];
        self.tools.scone.run(&args, &[])
    }

    /// Whether CAS has such a session at all; `None`: it does not say.
    fn exists(&self) -> Result<Option<bool>, Failure> {
        Ok(match self.run("read", OsString::from(&self.session))?.code {
            Some(0) => Some(true),
            Some(2) => Some(false),
            _ => None,
        })
    }
}

/// What CAS holds, compared with what the state says it should hold.
#[derive(Debug, PartialEq, Eq)]
pub enum Held {
    Same,
    Different,
    Nothing,
    /// CAS did not answer.
    Unknown(String),
}

/// Compares without changing anything.
pub fn compare(
    tools: &Tools,
    root: &Path,
    session: Session,
    state: &State,
    versions: &Versions,
) -> Result<Held, Failure> {
    let policy = Policy::of(tools, root, session, state, versions)?;
    let refusal = match policy.scone("verify")? {
        Ok(_) => return Ok(Held::Same),
        Err(refusal) => refusal,
    };
    Ok(match policy.exists()? {
        Some(true) => Held::Different,
        Some(false) => Held::Nothing,
        None => Held::Unknown(refusal.reason()),
    })
}

/// Makes CAS hold this policy; returns the session's hash and whether anything had to change. The upload names the
/// predecessor that the state holds, so that CAS refuses to overwrite what another run uploaded. An earlier run that was
/// cut off after the upload but before it could record the hash is recognised: rendering is deterministic, so CAS then
/// holds exactly what we would upload.
pub fn upload(
    tools: &Tools,
    root: &Path,
    session: Session,
    state: &State,
    versions: &Versions,
) -> Result<(String, bool), Failure> {
    let known = session.known_hash(state).is_some();
    let part_way = state.pending.as_ref().is_some_and(|pending| pending.uploads_done > 0);
    let policy = Policy::of(tools, root, session, state, versions)?;
    if known && let Ok(hash) = policy.scone("verify")? {
        return Ok((hash, false));
    }
    let refusal = match policy.scone("create")? {
        Ok(hash) => return Ok((hash, true)),
        Err(refusal) => refusal,
    };
    if let Ok(hash) = policy.scone("verify")? {
        return Ok((hash, false));
    }
    let (name, reason) = (&policy.session, refusal.reason());
    let refused = |code| {
        let refused = Failure::new(code, format!("CAS did not take session '{name}': {reason}"));
        // Somebody else replaced it, or the state is an older copy: what CAS holds now is not for us to overwrite.
        match reason.contains("predecessor") {
            true => tools.begin_anew(state).into_iter().fold(refused, Failure::hint),
            false => refused,
        }
    };
    Err(match policy.exists()? {
        Some(false) if known => {
            let message = format!("CAS at '{}' no longer holds session '{name}': it was wiped or restored", policy.cas);
            Failure::new(PRECONDITION, message).hint(format!(
                "./scripts/roll_forward.rs{} --cas-wiped   # new secret, new volume, new sessions",
                policy.tools.option()
            ))
        }
        _ if part_way => refused(PART_WAY),
        Some(_) => refused(REFUSED),
        None => Failure::new(PRECONDITION, format!("CAS cannot be asked about session '{name}': {reason}")),
    })
}
