//! SCONE's command line: a program of the host's or, where there is none, of the image in which SCONE ships it.

use std::env;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::container::mount;
use crate::failure::{Concern, Exit, Failure};
use crate::hint;
use crate::platform::Tools;
use crate::tool::{Finished, Tool, without_colours};

#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("there is no program '{path}', which {said_by} names as SCONE's command line")]
    Missing { path: String, said_by: &'static str },
    #[error("'{directory}', for the identity of SCONE's command line, cannot be made: {cause}")]
    NotMade { directory: String, cause: io::Error },
    #[error("'{directory}' is no directory of its own for the identity of SCONE's command line: set SCONE_CLI_CONFIG")]
    NotApart { directory: String },
    #[error("the home directory is not known: set HOME or SCONE_CLI_CONFIG")]
    NoHome,
}

impl Concern for CliError {
    fn exit(&self) -> Exit {
        match self {
            CliError::Missing { .. } => Exit::Usage,
            _ => Exit::Precondition,
        }
    }
}

/// The image that SCONE ships it in, unless `SCONE_CLI_IMAGE` names another (reference/scone.md 4.5).
const IMAGE: &str = "registry.scontain.com/sconecuratedimages/sconecli";

/// What SCONE's own scripts set in it: it has no need of SGX, and counts no time in a thread of its own.
const ENVIRONMENT: [&str; 3] = ["-e=SCONE_MODE=auto", "-e=SCONE_PRODUCTION=0", "-e=SCONE_NO_TIME_THREAD=1"];

/// Where its identity is there.
const IDENTITY: &str = "/identity";

/// Where it is.
#[derive(Debug)]
pub(crate) enum Cli {
    Program(Tool),
    /// What the engine calls the image.
    Image(String),
}

impl Cli {
    /// The image that it would be in.
    pub fn image() -> String {
        env::var("SCONE_CLI_IMAGE").ok().filter(|image| !image.is_empty()).unwrap_or_else(|| IMAGE.to_owned())
    }

    /// The one that is named, by `--scone` or by `SCONE`; else on `PATH`; else in the image, if docker has that: nothing is
    /// fetched unasked.
    pub fn find(named: Option<&Path>, engine: Option<Tool>) -> Result<Option<Cli>, Failure> {
        named.into_iter().for_each(hint::set_scone);
        let set = env::var_os("SCONE").filter(|path| !path.is_empty()).map(PathBuf::from);
        let named = named.map(|path| (path, "'--scone'")).or(set.as_deref().map(|path| (path, "the variable SCONE")));
        if let Some((path, said_by)) = named {
            let found = which::which(path).ok();
            let missing = || CliError::Missing { path: path.display().to_string(), said_by };
            return Ok(Some(Cli::Program(Tool { name: "scone", path: found.ok_or_else(missing)? })));
        }
        if let Some(tool) = Tool::find("scone", None) {
            return Ok(Some(Cli::Program(tool)));
        }
        let Some(engine) = engine else { return Ok(None) };
        let args = ["image", "inspect", "--format", "{{.Id}}"].map(OsString::from);
        let found = engine.run(&[&args[..], &[Cli::image().into()]].concat(), &[])?;
        let id = found.stdout.trim();
        Ok((found.success() && !id.is_empty()).then(|| Cli::Image(id.to_owned())))
    }
}

impl Tools {
    /// Runs SCONE's command line. `file`: what its arguments name on this host.
    pub fn scone(&self, args: &[OsString], file: Option<&Path>) -> Result<Finished, Failure> {
        let finished = match &self.cli {
            Cli::Program(tool) => tool.run(args, &[])?,
            Cli::Image(image) => self.engine.run(&self.in_image(image, args, file)?, &[])?,
        };
        Ok(Finished { stdout: without_colours(&finished.stdout), ..finished })
    }

    fn in_image(&self, image: &str, args: &[OsString], file: Option<&Path>) -> Result<Vec<OsString>, Failure> {
        let config = config()?;
        let (directory, name) = (config.parent().unwrap_or(Path::new("/")), config.file_name().unwrap_or_default());
        // All that is in it would be seen.
        let home = env::var_os("HOME").map(PathBuf::from);
        if directory == Path::new("/") || home.as_deref().is_some_and(|home| home.starts_with(directory)) {
            return Err(CliError::NotApart { directory: directory.display().to_string() }.into());
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|cause| CliError::NotMade { directory: directory.display().to_string(), cause })?;
        let fixed = ["run", "--rm", "--log-driver=none", "--cap-drop=ALL", "--security-opt=no-new-privileges"];
        let mut all: Vec<OsString> = fixed.into_iter().chain(ENVIRONMENT).map(OsString::from).collect();
        let mut inside = OsString::from(format!("-e=SCONE_CLI_CONFIG={IDENTITY}/"));
        inside.push(name);
        all.extend([inside, "--userns=host".into(), format!("--user={}", self.user_in_container()?).into()]);
        all.extend(self.network.iter().map(|network| OsString::from(format!("--network={network}"))));
        all.push(mount(directory, IDENTITY, false));
        all.extend(file.map(|file| mount(file, &file.to_string_lossy(), true)));
        all.extend(["--entrypoint=scone".into(), image.into()]);
        all.extend(args.iter().cloned());
        Ok(all)
    }
}

/// Whether it says that there is no such session. Only the newest has an exit code of its own for that (reference/scone.md 4.2);
/// from the others the status of CAS's answer is taken, as they print that of others.
pub(crate) fn is_not_found(finished: &Finished) -> bool {
    // 2 is also what the argument parser ends with.
    let is_misused = ["error: ", "USAGE:", "Usage:"].iter().any(|words| finished.stderr.contains(words));
    (finished.code == Some(2) && !is_misused) || finished.stderr.contains("HTTP error status code 404")
}

/// Where its identity is on this host.
fn config() -> Result<PathBuf, CliError> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").map(|home| home.join(".cas/config.json"));
    // As the command line itself would find it.
    let config = set("SCONE_CLI_CONFIG").or_else(home).ok_or(CliError::NoHome)?;
    std::path::absolute(&config).map_err(|cause| CliError::NotMade { directory: config.display().to_string(), cause })
}
