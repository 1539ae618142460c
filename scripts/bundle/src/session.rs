//! The sessions of an account, by which CAS knows its policies.

use crate::account::Account;
use crate::state::{Program, State, Version};

/// The sessions of an account: three, and two for each program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Session {
    Namespace,
    Otpqr,
    Reset,
    /// Of the program with this name: it owns the program's secrets and volumes.
    Program(String),
    /// Below it: the account may start the program.
    Person(String),
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
        Session::OF_ACCOUNT.into_iter().chain(programs).collect()
    }

    pub fn of_program(name: &str) -> [Session; 2] {
        [Session::Program(name.to_owned()), Session::Person(name.to_owned())]
    }

    /// Those that ask for a code of the account's secret, besides session 2.
    pub fn dependent(state: &State) -> Vec<Session> {
        let there = state.programs.iter().filter(|(_, program)| !program.removed);
        there.map(|(name, _)| Session::Person(name.clone())).collect()
    }

    pub(crate) fn template(&self) -> &'static str {
        match self {
            Session::Namespace => "namespace.yml",
            Session::Otpqr => "otpqr.yml",
            Session::Reset => "otpqr-reset.yml",
            Session::Program(_) => "program.yml",
            Session::Person(_) => "program-person.yml",
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
        }
    }

    /// The version that CAS last confirmed: its hash, and what it replaced as far as that is known.
    pub fn known<'a>(&self, state: &'a State) -> (Option<&'a str>, Option<&'a str>) {
        let of = |program: &str, version: fn(&Program) -> &Option<Version>| {
            let version = state.programs.get(program).and_then(|program| version(program).as_ref());
            version.map(|version| (version.hash.as_str(), version.predecessor.as_str())).unzip()
        };
        let (hash, predecessor) = match self {
            Session::Namespace => (&state.namespace_hash, &state.namespace_predecessor),
            Session::Otpqr => (&state.otpqr_hash, &state.otpqr_predecessor),
            Session::Reset => (&state.reset_hash, &state.reset_predecessor),
            Session::Program(program) => return of(program, |program| &program.own),
            Session::Person(program) => return of(program, |program| &program.person),
        };
        (hash.as_deref(), predecessor.as_deref())
    }

    pub(crate) fn confirm(&self, state: &mut State, version: Option<Version>) {
        if let Some(program) = self.program().and_then(|program| state.programs.get_mut(program)) {
            let known = if matches!(self, Session::Program(_)) { &mut program.own } else { &mut program.person };
            *known = version;
            return;
        }
        let (hash, predecessor) = version.map(|version| (version.hash, version.predecessor)).unzip();
        match self {
            Session::Namespace => (state.namespace_hash, state.namespace_predecessor) = (hash, predecessor),
            Session::Otpqr => (state.otpqr_hash, state.otpqr_predecessor) = (hash, predecessor),
            Session::Reset => (state.reset_hash, state.reset_predecessor) = (hash, predecessor),
            Session::Program(_) | Session::Person(_) => {}
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

/// The predecessor of a session's first version.
pub(crate) const NONE: &str = "~";
