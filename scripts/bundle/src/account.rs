//! An account: where its bundle lies, its name, what the state remembers of it, and the tools of its platform.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::cas::Cas;
use crate::failure::{Concern, Exit, Failure};
use crate::hint::{self, quoted};
use crate::platform::Tools;
use crate::policy;
use crate::root;
use crate::session;
use crate::state::{self, Lock, State, StateFile};
use crate::{drawing, step, tool};

#[derive(Debug, thiserror::Error)]
enum AccountError {
    #[error("the state of account '{name}' vanished")]
    Vanished { name: String },
    #[error("image '{image}' is not the one in the policies: it was rebuilt")]
    AnotherImage { image: String },
    #[error("session '{session}' was uploaded after CAS last confirmed it")]
    Unconfirmed { session: String },
    #[error("cannot draw a random name for the namespace: {0}")]
    NoRandomName(io::Error),
    #[error("'{volumes}' cannot be moved: {cause}")]
    NotMoved { volumes: String, cause: io::Error },
    #[error("the login name is not known: give '--login NAME'")]
    NoLogin,
    #[error("issuer and login are too long for a QR code")]
    TooLong,
    #[error("the login name cannot be used, give '--login NAME': {why}")]
    LoginUnusable { why: &'static str },
}

impl Concern for AccountError {
    fn exit(&self) -> Exit {
        match self {
            AccountError::NoRandomName(_) => Exit::Other,
            AccountError::NoLogin | AccountError::TooLong | AccountError::LoginUnusable { .. } => Exit::Usage,
            _ => Exit::Precondition,
        }
    }
}

/// Which account of which bundle.
#[derive(Debug, clap::Args)]
pub struct Named {
    /// The account: its state is state/ACCOUNT.yml
    #[arg(long, default_value = "default", value_parser = state::account_name)]
    pub account: String,
    /// The bundle's directory [default: OTPQR_ROOT, the script's parent, the current directory]
    #[arg(long)]
    pub root: Option<PathBuf>,
    /// SCONE's command line [default: SCONE, 'scone' on the PATH, the image SCONE_CLI_IMAGE]
    #[arg(long, value_name = "PATH")]
    pub scone: Option<PathBuf>,
}

pub struct Account {
    pub root: PathBuf,
    pub name: String,
    pub state: State,
    file: StateFile,
    pub tools: Tools,
    /// What this run was given of the programs' secrets, by program and secret. In memory alone.
    pub given: BTreeMap<(String, String), Vec<u8>>,
}

impl Account {
    /// From its parts; `file` is where its state is, or will be.
    pub fn new(root: PathBuf, name: String, state: State, file: StateFile, tools: Tools) -> Account {
        Account { root, name, state, file, tools, given: BTreeMap::new() }
    }

    /// One that must be there already.
    pub fn open(options: &Named) -> Result<Account, Failure> {
        Account::read(options)?.with_tools()
    }

    /// The same, in a root that also holds the templates.
    pub fn open_with_templates(options: &Named) -> Result<Account, Failure> {
        let found = Account::read(options)?;
        found.check_templates()?;
        found.with_tools()
    }

    /// What is known of one that must be there, before its platform's tools are looked for.
    pub fn read(options: &Named) -> Result<Found, Failure> {
        let create = || hint::script("create", &options.account, "");
        let root = root::find(options.root.as_deref(), &state::file_of(&options.account), Some(create()))?;
        let (file, state) = state::read(&root, &options.account)?;
        let vanished = AccountError::Vanished { name: options.account.clone() };
        let state = state.ok_or_else(|| Failure::from(vanished).hint(create()))?;
        Ok(Found { root, name: options.account.clone(), state, file, scone: options.scone.clone() })
    }

    /// A command that runs a script for this account.
    pub fn script(&self, name: &str, rest: &str) -> String {
        hint::script(name, &self.name, rest)
    }

    /// The command that goes on with what this run did.
    pub fn again(&self) -> String {
        let finishing = self.state.finishing(&self.name).filter(|_| crate::script() == "roll_forward");
        finishing.unwrap_or_else(|| self.script(crate::script(), ""))
    }

    /// Makes sure that nothing stands in the way of a start: CAS is the one that was pinned, the image the one in the policies,
    /// and nobody but us has uploaded these.
    pub fn check(&mut self) -> Result<(), Failure> {
        self.check_cas()?;
        self.check_image()?;
        self.check_policies()
    }

    /// Makes sure that nobody but us has uploaded the policies.
    pub fn check_policies(&self) -> Result<(), Failure> {
        match policy::unconfirmed(self)? {
            // A roll-forward may be under way, or was cut off.
            Some(session) if self.state.pending.is_none() => {
                let failure = Failure::from(AccountError::Unconfirmed { session: session.name(self) });
                Err(failure.hint(session.uploading(self, "   # if that was your run: ends it")))
            }
            _ => Ok(()),
        }
    }

    /// Makes sure that the account's CAS is there, and still the one that was pinned. The simulated one is taken where it is now.
    pub fn check_cas(&mut self) -> Result<(), Failure> {
        self.state.attestation.weaknesses().into_iter().for_each(step);
        warn_of_debugging(&self.tools);
        let known = &self.state.cas;
        if let Some(running) = self.tools.running_simulated_cas()? {
            known.check_same(&running, &self.name)?;
            if running != *known {
                let address = running.address.clone();
                self.state.cas = self.tools.attest(&address, Some(running), Some(known), &self.state.attestation)?;
            }
        }
        let cas = &self.state.cas;
        let key = self.tools.pinned_key(&cas.address);
        let key = key.map_err(|failure| failure.hint(self.script("create", "   # attests it")))?;
        cas.check_same(&Cas { key, ..cas.clone() }, &self.name)
    }

    /// Makes sure that the image is still the one whose measurement is in the policies.
    pub fn check_image(&self) -> Result<(), Failure> {
        let State { image, image_id, mrenclave, .. } = &self.state;
        if self.tools.is_same_image(image, image_id, mrenclave)? {
            return Ok(());
        }
        Err(Failure::from(AccountError::AnotherImage { image: image.clone() })
            .hint(self.script("create", "   # updates the policies")))
    }

    /// Makes sure that nobody else works on the account while the lock is held, and that what was read of it still holds.
    pub fn lock(&self) -> Result<Lock, Failure> {
        self.file.lock()
    }

    /// Makes sure that what was read of it still holds.
    pub fn check_unchanged(&self) -> Result<(), Failure> {
        self.file.check_unchanged()
    }

    /// Writes the state down: a fact is recorded before it is used.
    pub fn record(&mut self, lock: &Lock) -> Result<(), Failure> {
        self.file.write(&self.state, lock)
    }

    /// The host's side of the account's volume of this version.
    pub fn volume_directory(&self, version: u32) -> Result<(PathBuf, bool), Failure> {
        state::volume_directory(&self.root, &self.name, version)
    }

    /// The commands that give the account up, whose state and CAS do not go together any more, and begin it anew.
    pub fn begin_anew(&self) -> [String; 2] {
        let file = self.root.join(state::file_of(&self.name));
        let (kept, aside) = (quoted(file.display()), quoted(file.with_extension("behind").display()));
        let State { platform, cas, issuer, login, tolerate, ignore_advisories, .. } = &self.state;
        let cas = if self.tools.simulator.is_some() { String::new() } else { format!(" --cas {}", cas.address) };
        let network = self.state.cas.network.as_ref().map(|network| format!(" --network {network}"));
        let host = self.state.cas.address.split(':').next();
        let elsewhere = Some(self.state.cas.enclave_address.as_str()) != host && self.tools.simulator.is_none();
        let cas = if elsewhere { format!("{cas} --programs-cas {}", self.state.cas.enclave_address) } else { cas };
        let cas = cas
            + &network.unwrap_or_default()
            + &self.state.attestation.options()
            + &policy::options(tolerate, ignore_advisories);
        let cas = match session::parent_of(&self.state.namespace) {
            "" => cas,
            parent => format!("{cas} --parent {parent}"),
        };
        let (issuer, login) = (quoted(issuer), quoted(login));
        let create = format!(" --platform {platform}{cas} --issuer={issuer} --login={login}   # then: a new secret");
        [
            format!("mv {kept} {aside}   # if there is no newer copy of it: gives the account up"),
            self.script("create", &create),
        ]
    }
}

/// Says what it means that programs need not be signed for production.
pub fn warn_of_debugging(tools: &Tools) {
    if tools.is_for_debugging {
        step("the policies tolerate debug mode: everything in such an enclave can be read");
    }
}

/// An account's state as it was found.
pub struct Found {
    pub root: PathBuf,
    pub name: String,
    pub state: State,
    file: StateFile,
    scone: Option<PathBuf>,
}

impl Found {
    /// As [`Account::lock`].
    pub fn lock(&self) -> Result<Lock, Failure> {
        self.file.lock()
    }

    /// The policies are rendered from these; a root that is named for its state alone may lack them.
    pub fn check_templates(&self) -> Result<(), Failure> {
        root::find(Some(&self.root), Path::new("templates"), None).map(drop)
    }

    pub fn with_tools(self) -> Result<Account, Failure> {
        let mut tools = self.state.platform.tools(&self.root, &self.name, self.scone.as_deref())?;
        tools.is_for_debugging = self.state.tolerate.contains(policy::DEBUG_MODE);
        tools.network.clone_from(&self.state.cas.network);
        Ok(Account::new(self.root, self.name, self.state, self.file, tools))
    }
}

/// Issuer and login of a new account.
pub fn identity(issuer: Option<&str>, login: Option<&str>) -> Result<(String, String), Failure> {
    let issuer = issuer.unwrap_or("SCONE OTP").to_owned();
    let login = match login {
        Some(login) => login.to_owned(),
        None => policy::label_part(&tool::login_name().ok_or(AccountError::NoLogin)?)
            .map_err(|why| AccountError::LoginUnusable { why })?,
    };
    // A roll-forward adds a number.
    if !drawing::fits(&issuer, &state::label(&login, state::LAST_VERSION)) {
        return Err(AccountError::TooLong.into());
    }
    Ok((issuer, login))
}

/// A name that nobody else has. Volumes of an account whose state was lost are not this one's: its volumes must begin empty.
/// `parent`: below this session.
pub fn new_namespace(root: &Path, account: &str, parent: Option<&str>) -> Result<String, Failure> {
    let mut random = [0; 10];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random));
    read.map_err(AccountError::NoRandomName)?;
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let own = format!("otpqr-{random}");
    let volumes = root.join("state/volumes").join(account);
    if volumes.exists() {
        let aside = volumes.with_file_name(format!("{account}.before-{own}"));
        step(format!("volumes of an earlier account '{account}' are moved aside, to '{}'", aside.display()));
        let moved = fs::rename(&volumes, &aside);
        moved.map_err(|cause| AccountError::NotMoved { volumes: volumes.display().to_string(), cause })?;
    }
    Ok(parent.map_or_else(|| own.clone(), |parent| format!("{parent}/{own}")))
}
