//! The container engine called `docker`: Docker's own or podman, run by root or rootless.

use std::ffi::OsString;

use serde_json::Value;

use crate::failure::{Concern, Exit, Failure};
use crate::platform::Tools;

#[derive(Debug, thiserror::Error)]
enum EngineError {
    #[error("docker does not answer: {reason}")]
    NoAnswer { reason: String },
    #[error("docker is rootless here: its containers are on a network of their own and cannot reach the simulated CAS")]
    Apart,
}

impl Concern for EngineError {
    fn exit(&self) -> Exit {
        Exit::Precondition
    }
}

impl Tools {
    /// Makes sure that the engine answers, and that its containers can do what this platform has them do.
    pub(crate) fn check_engine(&self) -> Result<(), Failure> {
        let info = self.engine_info()?;
        // Rootless podman's `--network=host` is the host's network, rootless docker's is not.
        if is_rootless_docker(info) && self.facts.docker.contains(&"--network=host") {
            return Err(Failure::from(EngineError::Apart).hint(self.facts.engine_missing));
        }
        Ok(())
    }

    /// Who runs a container's program, as `UID:GID`, so that what it writes belongs to whoever called the script. A rootless
    /// engine maps them to root.
    pub(crate) fn user_in_container(&self) -> Result<String, Failure> {
        let info = self.engine_info()?;
        if is_rootless_docker(info) || info["host"]["security"]["rootless"] == true {
            return Ok("0:0".to_owned());
        }
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Ok(format!("{user}:{group}"))
    }

    /// What podman alone needs: else it mounts files of its own over `/etc/passwd` and `/etc/group`, which are measured.
    pub(crate) fn of_podman(&self) -> Result<Option<String>, Failure> {
        let is_podman = self.engine_info()?["host"]["security"].is_object();
        Ok(is_podman.then(|| "--passwd=false".to_owned()))
    }

    /// What `docker info` says. Podman takes some time for it, so it is asked once.
    fn engine_info(&self) -> Result<&Value, Failure> {
        if let Some(info) = self.engine_info.get() {
            return Ok(info);
        }
        let finished = self.engine.run(&["info", "--format", "{{json .}}"].map(OsString::from), &[])?;
        let info = serde_json::from_str::<Value>(&finished.stdout).unwrap_or_default();
        // Some versions of docker's command line end with 0 even if there is no engine.
        let reason = info["ServerErrors"][0].as_str().map(str::to_owned);
        match reason.or_else(|| (!finished.success()).then(|| finished.reason())) {
            None => Ok(self.engine_info.get_or_init(|| info)),
            Some(reason) => Err(no_answer(reason)),
        }
    }
}

pub(crate) fn no_answer(reason: String) -> Failure {
    Failure::from(EngineError::NoAnswer { reason })
        .hint("docker version   # says whether the engine runs, and whether you may use it")
}

fn is_rootless_docker(info: &Value) -> bool {
    info["SecurityOptions"].as_array().is_some_and(|options| options.iter().any(|option| option == "name=rootless"))
}
