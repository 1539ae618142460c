//! What the caller of a program gives it: arguments, directories of this host, ports.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::container::Mount;
use crate::failure::{Concern, Exit, Failure};
use crate::state::{self, Program};

#[derive(Debug, thiserror::Error)]
enum CallerError {
    #[error(
        "nothing of this host's may be mounted at '{path}': it is no '--mount-point' that program '{program}' was protected with"
    )]
    NoMountPoint { program: String, path: String },
    #[error("'{directory}' is no directory that can be mounted")]
    NoDirectory { directory: String },
    #[error("on platform '{platform}' a mount cannot be read-only: leave 'readonly' out")]
    NoReadonly { platform: &'static str },
    #[error("on platform '{platform}' the program is on this host's network: '{publish}' cannot move its port")]
    NotMoved { platform: &'static str, publish: String },
}

impl Concern for CallerError {
    fn exit(&self) -> Exit {
        use CallerError::*;
        match self {
            NoDirectory { .. } => Exit::Precondition,
            NoMountPoint { .. } | NoReadonly { .. } | NotMoved { .. } => Exit::Usage,
        }
    }
}

/// Which program, and what its caller gives it.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub given: Given,
    /// Reach a port of the program's from outside, as docker has it: 'PORT', 'PORT:PORT' or 'IP:PORT:PORT'
    #[arg(long, value_name = "PORTS", value_parser = parse_publish)]
    pub publish: Vec<Publish>,
}

/// Which program, and what it works on.
#[derive(Debug, clap::Args)]
pub struct Given {
    /// The program, as protect.rs named it
    #[arg(value_parser = state::program_name)]
    pub program: String,
    /// What the policy leaves to the caller, in the places it says
    #[arg(last = true, value_name = "ARG")]
    pub arguments: Vec<OsString>,
    /// Have the program see a directory of this host at one of its mount points, as docker has it: 'type=bind,src=DIR,dst=PATH', and
    /// 'readonly' if it is to be that
    #[arg(long, value_name = "MOUNT", value_parser = parse_mount)]
    pub mount: Vec<Mount>,
}

/// A port of a container's that the host has.
#[derive(Debug, Clone)]
pub struct Publish {
    text: String,
    is_same: bool,
}

/// A `--mount` as docker has it, of a directory.
fn parse_mount(text: &str) -> Result<Mount, String> {
    let (mut host, mut inside, mut is_readonly, mut is_bind) = (None, None, false, false);
    for field in fields(text) {
        match field.split_once('=').unwrap_or((&field, "")) {
            ("type", "bind") => is_bind = true,
            ("src" | "source", path) => host = Some(PathBuf::from(path)),
            ("dst" | "destination" | "target", path) => inside = Some(path.to_owned()),
            ("readonly" | "ro", "" | "true" | "1") => is_readonly = true,
            _ => return Err(format!("'{field}' is not taken")),
        }
    }
    match (host, inside) {
        (Some(host), Some(inside)) if is_bind && inside.starts_with('/') => {
            // As protect.rs has it: without what a path can do without.
            let inside = Path::new(&inside).components().collect::<PathBuf>().to_string_lossy().into_owned();
            Ok(Mount { host, inside, is_readonly })
        }
        _ => Err("must be type=bind,src=DIR,dst=PATH, PATH being absolute".to_owned()),
    }
}

/// The `--mount` that [`parse_mount`] makes this of.
pub(crate) fn option(mount: &Mount) -> String {
    let field = |text: String| {
        let is_plain = !text.contains([',', '"']);
        if is_plain { text } else { format!("\"{}\"", text.replace('"', "\"\"")) }
    };
    let [host, inside] = [format!("src={}", mount.host.display()), format!("dst={}", mount.inside)].map(field);
    let readonly = if mount.is_readonly { ",readonly" } else { "" };
    format!("type=bind,{host},{inside}{readonly}")
}

/// The fields of CSV, which docker reads a `--mount` as: one with a comma in it is in quotes.
fn fields(text: &str) -> Vec<String> {
    let (mut fields, mut is_quoted) = (vec![String::new()], false);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match (c, fields.last_mut()) {
            ('"', Some(field)) if is_quoted && characters.next_if_eq(&'"').is_some() => field.push('"'),
            ('"', _) => is_quoted = !is_quoted,
            (',', _) if !is_quoted => fields.push(String::new()),
            (c, Some(field)) => field.push(c),
            (_, None) => {}
        }
    }
    fields
}

fn parse_publish(text: &str) -> Result<Publish, String> {
    let plain = text.strip_suffix("/tcp").or(text.strip_suffix("/udp")).unwrap_or(text);
    let ports: Vec<&str> = plain.rsplitn(3, ':').collect();
    let is_port = |text: &&str| text.parse::<u16>().is_ok_and(|port| port != 0);
    if !ports.iter().take(2).all(is_port) || text.starts_with('-') {
        return Err("must be [[IP:]PORT:]PORT".to_owned());
    }
    Ok(Publish { text: text.to_owned(), is_same: ports.len() < 3 && ports.first() == ports.last() })
}

/// What the program is to see of this host.
pub(crate) fn check_mounts(account: &Account, program: &Program, given: &Given) -> Result<Vec<Mount>, Failure> {
    let mut mounts = Vec::new();
    for mount in &given.mount {
        if !program.mount_points.contains(&mount.inside) {
            let (program, path) = (given.program.clone(), mount.inside.clone());
            return Err(CallerError::NoMountPoint { program, path }.into());
        }
        let unusable = || CallerError::NoDirectory { directory: mount.host.display().to_string() };
        let host = mount.host.canonicalize().ok().filter(|path| path.is_dir()).ok_or_else(unusable)?;
        if mount.is_readonly && !account.tools.runs_containers() {
            return Err(CallerError::NoReadonly { platform: account.tools.facts.name }.into());
        }
        mounts.push(Mount { host, ..mount.clone() });
    }
    Ok(mounts)
}

/// What it is to be reached by.
pub(crate) fn check_ports(account: &Account, ports: &[Publish]) -> Result<Vec<OsString>, Failure> {
    let mut publish = Vec::new();
    for port in ports {
        if account.tools.simulator.is_none() {
            publish.push(format!("--publish={}", port.text).into());
        } else if !port.is_same {
            let (platform, publish) = (account.tools.facts.name, port.text.clone());
            return Err(CallerError::NotMoved { platform, publish }.into());
        }
    }
    Ok(publish)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_a_directory_and_a_path_as_docker_has_them() {
        for bad in [
            "",
            "src=/a,dst=/b",
            "type=tmpfs,dst=/b",
            "type=bind,src=/a",
            "type=bind,src=/a,dst=b",
            "type=bind,src=/a,dst=/b,x",
        ] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
        let mount = |is_readonly| Mount { host: "/a".into(), inside: "/b".to_owned(), is_readonly };
        assert_eq!(parse_mount("type=bind,source=/a,target=/b,readonly"), Ok(mount(true)));
        assert_eq!(parse_mount("type=bind,src=/a,dst=/b"), Ok(mount(false)));
        let odd = Mount { host: "/it's \"a\", b".into(), ..mount(false) };
        for mount in [&odd, &mount(true)] {
            assert_eq!(parse_mount(&option(mount)).as_ref(), Ok(mount));
        }
        assert_eq!(parse_mount(r#"type=bind,"src=/it's ""a"", b",dst=/b"#), Ok(odd));
    }

    #[test]
    fn a_published_port_is_a_port_and_where_it_is_to_be_reached() {
        for bad in ["", "http", "0", "1:70000", "a:1", "--privileged", "1:2:"] {
            assert!(parse_publish(bad).is_err(), "{bad}");
        }
        let is_same = |text| parse_publish(text).map(|publish| publish.is_same);
        assert_eq!(is_same("8080"), Ok(true));
        assert_eq!(is_same("8080:8080/tcp"), Ok(true));
        assert_eq!(is_same("80:8080"), Ok(false));
        assert_eq!(is_same("127.0.0.1:8080:8080"), Ok(false));
    }
}
