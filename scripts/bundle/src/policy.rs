//! The policies: rendered from `templates/`, uploaded with the `scone` command line, compared with what CAS holds.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::account::Account;
use crate::container::is_sha256;
use crate::failure::{Concern, Exit, Failure};
use crate::state::{State, label};
use crate::tool::Finished;

#[derive(Debug, thiserror::Error)]
enum PolicyError {
    #[error("template '{template}' cannot be read: {cause}")]
    NotRead { template: String, cause: io::Error },
    #[error("template '{template}' cannot be rendered: {cause}")]
    NotRendered { template: String, cause: handlebars::RenderError },
    #[error("the policy cannot be written to a temporary file: {0}")]
    NoFile(io::Error),
    #[error("'scone session {subcommand}' did not print the hash of '{session}'")]
    NoHash { subcommand: &'static str, session: String },
    #[error("CAS did not accept session '{session}': {reason}")]
    NotTaken { session: String, reason: String, exit: Exit },
    #[error("CAS at '{cas}' no longer holds session '{session}': it was wiped or restored")]
    Lost { cas: String, session: String },
    #[error("CAS cannot be asked about session '{session}': {reason}")]
    NoAnswer { session: String, reason: String },
}

impl Concern for PolicyError {
    fn exit(&self) -> Exit {
        match self {
            PolicyError::NotTaken { exit, .. } => *exit,
            PolicyError::NoHash { .. } => Exit::Other,
            _ => Exit::Precondition,
        }
    }
}

/// The three sessions of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    Namespace,
    Otpqr,
    Reset,
}

impl Session {
    /// In the order in which they are first uploaded.
    pub const ALL: [Session; 3] = [Session::Namespace, Session::Otpqr, Session::Reset];

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
#[derive(Debug, Clone, PartialEq, Eq)]
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

    /// What the account is about as long as nothing is under way.
    pub fn current(state: &State) -> Versions {
        Versions::only(state.volume_version, state.secret_version)
    }
}

/// Checks an issuer or a login. A colon separates the two in a Key URI; a `$` would be taken for a variable by `scone`.
pub fn label_part(text: &str) -> Result<String, &'static str> {
    let is_trimmed = text.trim() == text && !text.is_empty();
    if !is_trimmed || text.contains([':', '$']) || text.chars().any(char::is_control) {
        return Err("must not be empty, hold ':' or '$' or a control character, nor begin or end with a space");
    }
    if text.chars().any(deceives) {
        return Err("must not hold invisible characters, nor such as change the direction of text");
    }
    Ok(text.to_owned())
}

/// Whether a character makes people see something else than what is there, on a terminal or in an authenticator: breaks, marks
/// of direction, tags, and what is blank without being a space. Also what Unicode sets aside to be no character at all, which
/// policies cannot hold. (The joiners U+200C and U+200D are part of how names are written.)
pub fn deceives(c: char) -> bool {
    let is_no_character = matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    is_no_character
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Renders a session's policy. Strict: a value the template names and we do not give is an error.
pub fn render(account: &Account, session: Session, versions: &Versions) -> Result<String, Failure> {
    let state = &account.state;
    let path = account.root.join("templates").join(session.template());
    let shown = || path.display().to_string();
    let template = fs::read_to_string(&path).map_err(|cause| PolicyError::NotRead { template: shown(), cause })?;
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
    let rendered = handlebars.render_template(&template, &values);
    Ok(rendered.map_err(|cause| PolicyError::NotRendered { template: shown(), cause })?)
}

/// A policy rendered for one session: what CAS is to hold.
struct Policy<'a> {
    account: &'a Account,
    session: String,
    /// 0600, and removed when this goes.
    file: NamedTempFile,
}

impl<'a> Policy<'a> {
    fn of(account: &'a Account, session: Session, versions: &Versions) -> Result<Policy<'a>, Failure> {
        let text = render(account, session, versions)?;
        let file = write(&text).map_err(PolicyError::NoFile)?;
        Ok(Policy { account, session: session.name(&account.state), file })
    }

    /// `scone session SUBCOMMAND` on the policy: the hash it prints, or what it says.
    fn scone(&self, subcommand: &'static str) -> Result<Result<String, Finished>, Failure> {
        let finished = self.run(subcommand, self.file.path().into())?;
        if !finished.success() {
            return Ok(Err(finished));
        }
        let hash = finished.stdout.trim();
        if !is_sha256(hash) {
            return Err(PolicyError::NoHash { subcommand, session: self.session.clone() }.into());
        }
        Ok(Ok(hash.to_owned()))
    }

    fn run(&self, subcommand: &str, what: OsString) -> Result<Finished, Failure> {
        let cas = format!("--cas={}", self.account.state.cas.address);
        self.account.tools.scone.run(&["session".into(), subcommand.into(), cas.into(), what], &[])
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

fn write(text: &str) -> io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix("otpqr-policy-").suffix(".yml").tempfile()?;
    file.write_all(text.as_bytes())?;
    Ok(file)
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
pub fn compare(account: &Account, session: Session, versions: &Versions) -> Result<Held, Failure> {
    let policy = Policy::of(account, session, versions)?;
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

/// Makes CAS hold this policy; returns the session's hash and whether anything had to change. The upload names the predecessor
/// that the state holds, so that CAS refuses to overwrite what another run uploaded. An earlier run that was cut off after the
/// upload but before it could record the hash is recognised: rendering is deterministic, so CAS then holds exactly what we would
/// upload.
pub fn upload(account: &Account, session: Session, versions: &Versions) -> Result<(String, bool), Failure> {
    let policy = Policy::of(account, session, versions)?;
    if session.known_hash(&account.state).is_some()
        && let Ok(hash) = policy.scone("verify")?
    {
        return Ok((hash, false));
    }
    let refusal = match policy.scone("create")? {
        Ok(hash) => return Ok((hash, true)),
        Err(refusal) => refusal,
    };
    if let Ok(hash) = policy.scone("verify")? {
        return Ok((hash, false));
    }
    Err(explain(&policy, session, refusal)?)
}

/// Why an upload was refused.
fn explain(policy: &Policy, session: Session, refusal: Finished) -> Result<Failure, Failure> {
    let reason = refusal.reason();
    let (account, session_name) = (policy.account, policy.session.clone());
    let state = &account.state;
    let is_known = session.known_hash(state).is_some();
    let is_part_way = state.pending.as_ref().is_some_and(|pending| pending.uploads_done > 0);
    let exit = match policy.exists()? {
        Some(false) if is_known => {
            let lost = PolicyError::Lost { cas: state.cas.address.clone(), session: session_name };
            return Ok(Failure::from(lost)
                .hint(account.script("roll_forward", " --cas-wiped   # new secret, new volume, new sessions")));
        }
        // CAS itself failed, which is no refusal.
        _ if refusal.stderr.contains("HTTP error status code 5") => {
            let failed = PolicyError::NoAnswer { session: session_name, reason };
            return Ok(Failure::from(failed).hints(account.remedy(&refusal.stderr)));
        }
        _ if is_part_way => Exit::PartWay,
        Some(_) => Exit::Refused,
        None => return Ok(PolicyError::NoAnswer { session: session_name, reason }.into()),
    };
    // Somebody else replaced it, or the state is an older copy: what CAS holds now is not for us to overwrite.
    let is_replaced = reason.contains("predecessor");
    let failure = Failure::from(PolicyError::NotTaken { session: session_name, reason, exit });
    Ok(if is_replaced { failure.hints(account.begin_anew()) } else { failure })
}
