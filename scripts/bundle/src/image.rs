//! A user's image: what it says of its program, what of that a policy can carry, and the image that the program is started from -
//! the user's, with the entry and the runtime added.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::account::Account;
use crate::failure::{Concern, Exit, Failure};
use crate::handover::Aside;
use crate::interrupt;
use crate::platform::Tools;
use crate::sconify::{self, Request};
use crate::state::{Program, Sconified, State};
use crate::tool::{Finished, Streams};

#[derive(Debug, thiserror::Error)]
enum UserImageError {
    #[error("docker did not describe image '{image}': {reason}")]
    NotDescribed { image: String, reason: String },
    #[error("image '{image}' has {what}, which no policy can carry over: make one without")]
    NotCarriedOver { image: String, what: String },
    #[error(
        "image '{image}' has the volume '{path}', which would be an unprotected directory of docker's: '--volume {path}' makes a sealed one"
    )]
    Volume { image: String, path: String },
    #[error("image '{image}' has '{path}' already, which has to be ours")]
    Taken { image: String, path: &'static str },
    #[error("image '{image}' names no program: give '--command'")]
    NoProgram { image: String },
    #[error("there is no program '{program}' in image '{image}'")]
    Absent { image: String, program: String },
    #[error("image '{image}' cannot be made ready: {reason}")]
    NotMade { image: String, reason: String },
}

impl Concern for UserImageError {
    fn exit(&self) -> Exit {
        Exit::Precondition
    }
}

/// Where programs are looked for, if the image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is added to an image.
const ADDED: [&str; 2] = ["/entry", "/scone-run"];
/// How many links lead to a file at most, as Linux has it (path_resolution(7)).
const LINKS: usize = 40;

/// What docker says of an image. What is not named here makes no difference to a program.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    volumes: Option<std::collections::BTreeMap<String, serde_json::Value>>,
    healthcheck: Option<Healthcheck>,
    on_build: Option<Vec<String>>,
    stop_signal: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Healthcheck {
    test: Option<Vec<String>>,
}

/// What a program is started from.
pub struct Made {
    pub image_id: String,
    pub made_of: Vec<String>,
    /// How it was converted, if it was.
    pub sconified: Option<Sconified>,
}

/// A user's image, as far as it concerns a policy.
pub struct UserImage {
    /// As the user names it, and as the engine identifies it.
    pub(crate) name: String,
    pub(crate) id: String,
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub pwd: String,
}

impl UserImage {
    /// Looks at an image, and refuses by name what cannot be carried over. `volumes`: what the program is to have.
    pub fn look(tools: &Tools, name: &str, volumes: &[String]) -> Result<UserImage, Failure> {
        let id = tools.id_of(name)?;
        let image = || name.to_owned();
        if !tools.runs_containers() {
            let (command, environment) = (Vec::new(), Vec::new());
            return Ok(UserImage { name: image(), id, command, environment, pwd: "/".into() });
        }
        let inspected = tools.docker(["image", "inspect", "--format", "{{json .Config}}", &id])?;
        let config: Config = match serde_json::from_str(&inspected.stdout) {
            Ok(config) if inspected.success() => config,
            _ => return Err(UserImageError::NotDescribed { image: image(), reason: inspected.reason() }.into()),
        };
        let has_check = config.healthcheck.and_then(|check| check.test).is_some_and(|test| test != ["NONE"]);
        let stops_by = config.stop_signal.filter(|signal| !["", "SIGTERM", "TERM", "15"].contains(&signal.as_str()));
        let user = config.user.filter(|user| !["", "0", "root", "0:0", "root:root"].contains(&user.as_str()));
        let carried_by_none = [
            has_check.then(|| "a HEALTHCHECK".to_owned()),
            config.on_build.filter(|steps| !steps.is_empty()).map(|_| "ONBUILD steps".to_owned()),
            stops_by.map(|signal| format!("the STOPSIGNAL {signal}")),
            // A program runs as whoever starts it. (Without capabilities: an image that says root says nothing.)
            user.map(|user| format!("the USER {user}")),
        ];
        if let Some(what) = carried_by_none.into_iter().flatten().next() {
            return Err(UserImageError::NotCarriedOver { image: image(), what }.into());
        }
        if let Some(path) = config.volumes.unwrap_or_default().into_keys().find(|path| !volumes.contains(path)) {
            return Err(UserImageError::Volume { image: image(), path }.into());
        }
        let command = [config.entrypoint, config.cmd].into_iter().flatten().flatten().collect();
        let variables = config.env.unwrap_or_default().into_iter();
        let variables =
            variables.filter_map(|line| line.split_once('=').map(|(name, value)| (name.into(), value.into())));
        // SCONE's own are about an enclave, not for the program in it.
        let environment = variables.filter(|(name, _): &(String, String)| !name.starts_with("SCONE_"));
        let pwd = config.working_dir.filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
        Ok(UserImage { name: image(), id, command, environment: environment.collect(), pwd })
    }

    /// Where its programs are looked for.
    fn path(&self) -> &str {
        self.environment.iter().find(|(name, _)| name == "PATH").map_or(PATH, |(_, path)| path)
    }

    /// The absolute path of the program that a command's first word names, as an engine would find it. On SCONE that of the file
    /// itself, not of a link to it: that is what is converted.
    pub fn find(&self, account: &Account, program: Option<&String>) -> Result<String, Failure> {
        let image = || self.name.clone();
        let program = program.ok_or_else(|| UserImageError::NoProgram { image: image() })?;
        let candidates: Vec<String> = if program.contains('/') {
            vec![join(&self.pwd, program)]
        } else {
            self.path().split(':').filter(|place| place.starts_with('/')).map(|place| join(place, program)).collect()
        };
        let found = if account.tools.runs_containers() {
            let copy = Copy::of(account, &self.id, &self.name)?;
            let mut found = None;
            for candidate in candidates {
                if found.is_none() && copy.holds(&candidate)? {
                    found = if account.tools.simulator.is_some() { Some(candidate) } else { copy.follow(candidate)? };
                }
            }
            found
        } else {
            let there = |path: &String| fs::metadata(format!("{}{path}", self.id)).is_ok_and(|file| file.is_file());
            let is_link = |path: &String| Path::new(&format!("{}{path}", self.id)).is_symlink();
            candidates.into_iter().find(|path| there(path) || is_link(path))
        };
        found.ok_or_else(|| UserImageError::Absent { image: image(), program: program.clone() }.into())
    }

    /// The first of these paths from which the image's programs are looked for.
    pub fn on_path(&self, paths: &[String]) -> Option<String> {
        paths.iter().find(|mounted| self.path().split(':').any(|place| Path::new(place).starts_with(mounted))).cloned()
    }

    /// What the program is started from, as the engine identifies it: in containers the user's image with the entry, and where it is
    /// the simulator's with the runtime, added; on SCONE, if need be, converted first. `known`: what was made before, and of what;
    /// `tag` keeps it from being pruned.
    pub fn made_ready(
        &self,
        account: &Account,
        tag: &str,
        request: &Request,
        known: Option<&Program>,
    ) -> Result<Made, Failure> {
        let tools = &account.tools;
        let made_of = |how: &str| [&self.id, &account.state.image_id, how].map(str::to_owned).to_vec();
        if !tools.runs_containers() {
            return Ok(Made { image_id: self.id.clone(), made_of: made_of(""), sconified: None });
        }
        let outcomes = if tools.simulator.is_none() { request.outcomes() } else { vec![(None, String::new())] };
        // Not searched for by what others can write into an image, too.
        if let Some(known) = known
            && let Some((sconified, how)) = outcomes.iter().find(|(_, how)| known.made_of == made_of(how))
            && tools.has_image(&known.image_id)?
        {
            self.succeed(tools.docker(["tag", &known.image_id, tag])?)?;
            let (image_id, sconified) = (known.image_id.clone(), sconified.clone());
            return Ok(Made { image_id, made_of: made_of(how), sconified });
        }
        self.check_room(account)?;
        let converted = if tools.simulator.is_none() { sconify::converted(account, self, request, tag)? } else { None };
        let outcome = outcomes.into_iter().find(|(sconified, _)| sconified.is_some() == converted.is_some());
        let (sconified, how) = outcome.unwrap_or_default();
        self.add(account, converted.as_ref().map_or(&self.id, |converted| &converted.id), tag)?;
        Ok(Made { image_id: tools.id_of(tag)?, made_of: made_of(&how), sconified })
    }

    /// Makes sure that nothing is in the place of what is added.
    fn check_room(&self, account: &Account) -> Result<(), Failure> {
        let copy = Copy::of(account, &self.id, &self.name)?;
        for path in account.tools.added() {
            if copy.holds(path)? {
                return Err(UserImageError::Taken { image: self.name.clone(), path }.into());
            }
        }
        Ok(())
    }

    /// Makes the image `tag` of another one, with the entry, and what else a platform needs.
    fn add(&self, account: &Account, base: &str, tag: &str) -> Result<(), Failure> {
        let (tools, State { image_id: ours, .. }) = (&account.tools, &account.state);
        let from = Copy::of(account, ours, &account.state.image)?;
        let to = Copy::of(account, base, &self.name)?;
        let between = Aside::make(&tools.root)?;
        for path in tools.added() {
            let file = between.path().join(&path[1..]);
            self.succeed(from.copy(from.inside(path), &file)?)?;
            self.succeed(to.copy(&file, to.inside(path))?)?;
        }
        self.succeed(tools.docker(["commit", &to.name, tag])?)
    }

    /// Looks at a copy of a file of the image.
    pub(crate) fn with_file<T>(
        &self,
        account: &Account,
        path: &str,
        look: impl FnOnce(&Path) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let copy = Copy::of(account, &self.id, &self.name)?;
        let file = copy.aside.path().join("file");
        self.succeed(copy.copy(copy.inside(path), &file)?)?;
        look(&file)
    }

    fn succeed(&self, finished: Finished) -> Result<(), Failure> {
        if finished.success() {
            return Ok(());
        }
        Err(UserImageError::NotMade { image: self.name.clone(), reason: finished.reason() }.into())
    }
}

/// `name` in `directory`, without the dots that a command may have.
fn join(directory: &str, name: &str) -> String {
    let path: PathBuf = Path::new("/").join(directory).join(name).components().collect();
    path.to_string_lossy().replace("/./", "/")
}

/// Where a link in a directory leads.
fn target(link: &str, leads: &Path) -> String {
    let mut path = PathBuf::from(link);
    path.pop();
    for part in leads.components() {
        if part == Component::ParentDir {
            path.pop();
        } else {
            path.push(part);
        }
    }
    path.to_string_lossy().into_owned()
}

impl Tools {
    /// What is added to a user's image on this platform.
    fn added(&self) -> impl Iterator<Item = &'static str> {
        let has_runtime = self.simulator.is_some();
        ADDED.into_iter().filter(move |path| *path == "/entry" || has_runtime)
    }

    fn docker<const N: usize>(&self, args: [&str; N]) -> Result<Finished, Failure> {
        self.engine.run(&args.map(OsString::from), &[])
    }

    /// Whether a name means another image by now. If it means none, nothing was rebuilt.
    pub(crate) fn is_another(&self, image: &str, made_of: &[String]) -> bool {
        self.runs_containers() && self.id_of(image).is_ok_and(|id| made_of.first() != Some(&id))
    }

    /// Keeps an image from being pruned.
    pub(crate) fn tag(&self, image_id: &str, tag: &str) -> Result<(), Failure> {
        if self.runs_containers() {
            // What is not there any more, nobody starts.
            self.docker(["tag", image_id, tag])?;
        }
        Ok(())
    }

    /// Gives up an image that was made ready.
    pub fn untag(&self, tag: &str) -> Result<(), Failure> {
        if self.runs_containers() {
            // It may be in use, or gone: then nothing is lost.
            self.docker(["image", "rm", tag])?;
        }
        Ok(())
    }
}

/// A container that is never started: what of an image can be looked at, and added to.
struct Copy<'a> {
    tools: &'a Tools,
    image: String,
    /// Its own, and the container's: what a killed run left is found by it.
    aside: Aside,
    name: String,
}

impl Copy<'_> {
    fn of<'a>(account: &'a Account, image_id: &str, image: &str) -> Result<Copy<'a>, Failure> {
        let tools = &account.tools;
        let prefix = format!("otpqr-copy-{}", account.state.namespace.replace(['/', '~'], "-"));
        remove_left(tools, &prefix)?;
        let aside = Aside::make(&tools.root)?;
        let directory = aside.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let copy = Copy { tools, image: image.to_owned(), aside, name: format!("{prefix}{directory}") };
        // Some images have no command, and docker demands one. Interrupted, its client would leave the container behind.
        let name = format!("--name={}", copy.name);
        let create = ["create", &name, "--network=none", "--log-driver=none", image_id, "/entry"];
        let made = tools.engine.run_through(&create.map(OsString::from))?;
        interrupt::check()?;
        if made.success() { Ok(copy) } else { Err(copy.not_made(made.reason())) }
    }

    fn not_made(&self, reason: String) -> Failure {
        UserImageError::NotMade { image: self.image.clone(), reason }.into()
    }

    fn inside(&self, path: &str) -> OsString {
        format!("{}:{path}", self.name).into()
    }

    fn copy(&self, from: impl Into<OsString>, to: impl Into<OsString>) -> Result<Finished, Failure> {
        self.tools.engine.run(&["cp".into(), from.into(), to.into()], &[])
    }

    /// Whether the image has something there, be it a link. (Packed, to be thrown away: docker's client would follow links on
    /// this host.)
    fn holds(&self, path: &str) -> Result<bool, Failure> {
        let said = self.aside.path().join("said");
        let streams = || -> io::Result<Streams> {
            let null = || OpenOptions::new().read(true).write(true).open("/dev/null");
            Ok(Streams { stdin: null()?, stdout: null()?, stderr: File::create(&said)?, is_apart: false })
        };
        let streams = streams().map_err(|cause| self.not_made(cause.to_string()))?;
        let args = ["cp".into(), self.inside(path), "-".into()];
        let finished = self.tools.engine.start_with(&args, &[], streams)?.finish()?;
        if finished.success() {
            return Ok(true);
        }
        let said = fs::read_to_string(&said).map_err(|cause| self.not_made(cause.to_string()))?;
        // Docker's words, and podman's.
        let is_absent = ["Could not find the file", "no such file", "could not be found", "not found"];
        if is_absent.iter().any(|words| said.to_lowercase().contains(&words.to_lowercase())) {
            return Ok(false);
        }
        Err(self.not_made(Finished { stderr: said, ..finished }.reason()))
    }

    /// The file that a path leads to, through links: docker copies a link as such.
    fn follow(&self, mut path: String) -> Result<Option<String>, Failure> {
        for number in 0..LINKS {
            let copy = self.aside.path().join(number.to_string());
            if !self.copy(self.inside(&path), &copy)?.success() {
                return Ok(None);
            }
            match fs::read_link(&copy) {
                Ok(leads) => path = target(&path, &leads),
                Err(_) => return Ok(Some(path)),
            }
        }
        Ok(None)
    }
}

/// Removes the containers of runs that were killed: those whose directory is gone.
fn remove_left(tools: &Tools, prefix: &str) -> Result<(), Failure> {
    let (filter, format) = (format!("--filter=name={prefix}"), "--format={{.Names}}");
    let found = tools.docker(["ps", "--all", &filter, format])?;
    for name in found.stdout.lines() {
        let directory = name.strip_prefix(prefix).map(|directory| tools.root.join("state").join(directory));
        if directory.is_some_and(|directory| !directory.exists()) {
            tools.docker(["rm", "--force", "--volumes", name])?;
        }
    }
    Ok(())
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        let remove = ["rm", "--force", "--volumes", &self.name].map(OsString::from);
        // What cannot be removed now, the next run removes.
        let _ = self.tools.engine.run_through(&remove);
    }
}

#[test]
fn a_link_leads_from_the_directory_it_is_in() {
    let leads = |link, to| target(link, Path::new(to));
    assert_eq!(leads("/usr/bin/python3", "python3.11"), "/usr/bin/python3.11");
    assert_eq!(leads("/usr/bin/python3", "/opt/./python"), "/opt/python");
    assert_eq!(leads("/bin/sh", "../usr/bin/dash"), "/usr/bin/dash");
    assert_eq!(leads("/bin/sh", "../../../busybox"), "/busybox");
}
