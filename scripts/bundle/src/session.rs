//! The sessions of an account, by which CAS knows its policies.

use crate::account::Account;
use crate::state::{Program, State, Version};

/// The sessions of an account: three, two for each program, and one for each program of somebody else's of which it grants starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Session {
    Namespace,
    Otpqr,
    Reset,
    /// Of the program with this name: it owns the program's secrets and volumes.
    Program(String),
    /// Below it: the account may start the program.
    Person(String),
    /// Below the session of this name, which owns a program: the account grants starts of it.
    Approval(String),
}

impl Session {
    /// Those that every account has, in the order in which they are first uploaded.
    pub const OF_ACCOUNT: [Session; 3] = [Session::Namespace, Session::Otpqr, Session::Reset];

    /// In the order in which they are first uploaded.
    pub fn all(state: &State) -> Vec<Session> {
        // Of one that was removed, a CAS that was wiped since holds nothing.
        let is_there = |program: &Program| !program.removed || program.own.is_some() || program.person.is_some();
        let programs = state.programs.iter().filter(|(_, program)| is_there(program));
        let programs = programs.flat_map(|(name, _)| Session::of_program(name));
        let approvals = state.approvals.keys().cloned().map(Session::Approval);
        Session::OF_ACCOUNT.into_iter().chain(programs).chain(approvals).collect()
    }

    pub fn of_program(name: &str) -> [Session; 2] {
        [Session::Program(name.to_owned()), Session::Person(name.to_owned())]
    }

    /// Those that ask for a code of the account's secret, besides session 2.
    pub fn dependent(state: &State) -> Vec<Session> {
        let there = state.programs.iter().filter(|(_, program)| !program.removed && !program.is_without_code());
        let approvals = state.approvals.keys().cloned().map(Session::Approval);
        there.map(|(name, _)| Session::Person(name.clone())).chain(approvals).collect()
    }

    pub(crate) fn template(&self) -> &'static str {
        match self {
            Session::Namespace => "namespace.yml",
            Session::Otpqr => "otpqr.yml",
            Session::Reset => "otpqr-reset.yml",
            Session::Program(_) => "program.yml",
            Session::Person(_) => "program-person.yml",
            Session::Approval(_) => "program-approve.yml",
        }
    }

    /// The program it is about.
    pub fn program(&self) -> Option<&str> {
        match self {
            Session::Program(name) | Session::Person(name) => Some(name),
            _ => None,
        }
    }

    pub fn name(&self, account: &Account) -> String {
        let namespace = &account.state.namespace;
        match self {
            Session::Namespace => namespace.clone(),
            Session::Otpqr => format!("{namespace}/otpqr"),
            Session::Reset => format!("{namespace}/otpqr-reset"),
            Session::Program(program) => format!("{namespace}/{program}"),
            Session::Person(program) => format!("{namespace}/{program}/{}", account.name),
            Session::Approval(owner) => approval_name(owner, &account.name, namespace),
        }
    }

    /// The version that CAS last confirmed: its hash, and what it replaced as far as that is known.
    pub fn known<'a>(&self, state: &'a State) -> (Option<&'a str>, Option<&'a str>) {
        let shown = |version: Option<&'a Version>| {
            version.map(|version| (version.hash.as_str(), version.predecessor.as_str())).unzip()
        };
        let (hash, predecessor) = match self {
            Session::Namespace => (&state.namespace_hash, &state.namespace_predecessor),
            Session::Otpqr => (&state.otpqr_hash, &state.otpqr_predecessor),
            Session::Reset => (&state.reset_hash, &state.reset_predecessor),
            Session::Program(name) => return shown(state.programs.get(name).and_then(|program| program.own.as_ref())),
            Session::Person(name) => {
                return shown(state.programs.get(name).and_then(|program| program.person.as_ref()));
            }
            Session::Approval(owner) => {
                return shown(state.approvals.get(owner).and_then(|approval| approval.version.as_ref()));
            }
        };
        (hash.as_deref(), predecessor.as_deref())
    }

    pub(crate) fn confirm(&self, state: &mut State, version: Option<Version>) {
        let of_account = |version: Option<Version>| version.map(|version| (version.hash, version.predecessor)).unzip();
        match self {
            Session::Namespace => (state.namespace_hash, state.namespace_predecessor) = of_account(version),
            Session::Otpqr => (state.otpqr_hash, state.otpqr_predecessor) = of_account(version),
            Session::Reset => (state.reset_hash, state.reset_predecessor) = of_account(version),
            Session::Program(name) => {
                if let Some(program) = state.programs.get_mut(name) {
                    program.own = version;
                }
            }
            Session::Person(name) => {
                if let Some(program) = state.programs.get_mut(name) {
                    program.person = version;
                }
            }
            Session::Approval(owner) => {
                if let Some(approval) = state.approvals.get_mut(owner) {
                    approval.version = version;
                }
            }
        }
    }

    /// CAS has lost it.
    pub fn forget(&self, state: &mut State) {
        self.confirm(state, None);
    }

    /// The command that uploads it.
    pub fn uploading(&self, account: &Account, rest: &str) -> String {
        match self.program() {
            Some(program) => {
                let is_removed = account.state.programs.get(program).is_some_and(|program| program.removed);
                let remove = if is_removed { " --remove" } else { "" };
                account.script("protect", &format!(" {program}{remove}{rest}"))
            }
            None => account.script("create", rest),
        }
    }
}

/// The session in which an account, of this namespace, grants starts of a program; `owner`: the session that owns that.
pub(crate) fn approval_name(owner: &str, account: &str, namespace: &str) -> String {
    let own = namespace.rsplit('/').next().unwrap_or_default();
    // No account has a point in its name.
    format!("{owner}/approve.{account}.{own}")
}

/// Checks a `--parent`: the name of a session, as policies have it.
pub fn parent(text: &str) -> Result<String, &'static str> {
    let is_part = |part: &str| {
        (1..=128).contains(&part.len()) && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-.~".contains(c))
    };
    // An argument that begins so would be an option, and so would a template's value.
    if text.len() <= 256 && text.split('/').all(is_part) && !text.starts_with('-') {
        Ok(text.to_owned())
    } else {
        Err("must be a session's name: letters, digits, '_', '-', '.' and '~', with '/' in between")
    }
}

/// The session below which a namespace lies; empty: none.
pub fn parent_of(namespace: &str) -> &str {
    namespace.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The predecessor of a session's first version.
pub(crate) const NONE: &str = "~";
