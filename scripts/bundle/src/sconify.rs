//! On SCONE, a program that was not built for it is converted: SCONE's `sconify_image` makes an image whose program starts in an
//! enclave. It sees what was measured with it - its libraries and the directories that were named -, its volumes, and what is
//! mounted at its mount points; nothing else of its host.
//!
//! Why apart: that tool demands docker's socket, which makes it root on this host. Nothing else is handed the socket.
//! Source: SCONE's documentation 7.0, pages `ee_sconify_image` and `binary_fs`. Nothing here was ever run with that tool, which is not public.
//! Limits: only a program that is linked dynamically and position-independent can be converted; any other one is refused by name.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::account::Account;
use crate::container::{self, Executable};
use crate::failure::{Concern, Exit, Failure};
use crate::image::UserImage;
use crate::platform::Tools;
use crate::state::{Program, Sconified};
use crate::step;

#[derive(Debug, thiserror::Error)]
enum SconifyError {
    #[error("on platform '{platform}' the whole image is measured, and nothing is converted: leave '{option}' out")]
    NotHere { platform: &'static str, option: &'static str },
    #[error(
        "'{program}' is a SCONE program already and is not converted: leave '--fs-dir', '--sconify-with' and '--signing-key' out"
    )]
    Already { program: String },
    #[error("'{path}' cannot be passed to SCONE's tool: a path must be of letters, digits and '/._+@-' alone")]
    NotPlain { path: String },
    #[error("'{program}' is not an ELF program: on platform 'scone' the command begins with its interpreter")]
    NoElf { program: String },
    #[error("'{program}' is static and was not built for SCONE: SCONE's tool converts no static program")]
    Static { program: String },
    #[error("'{program}' is not position-independent: SCONE may pass over the files that are measured with it")]
    NotPie { program: String },
    #[error(
        "'{program}' has to be converted for SCONE, and CAS gives nothing to what is not signed: give '--signing-key FILE'"
    )]
    NoKey { program: String },
    #[error("the signing key '{file}' cannot be used: {cause}")]
    KeyNotRead { file: String, cause: io::Error },
    #[error("'{program}' cannot be looked at: {cause}")]
    NotRead { program: String, cause: io::Error },
    #[error("image '{image}' was not converted by '{with}': {reason}")]
    NotConverted { image: String, with: String, reason: String },
}

impl Concern for SconifyError {
    fn exit(&self) -> Exit {
        use SconifyError::*;
        match self {
            NotHere { .. } | Already { .. } | NoKey { .. } => Exit::Usage,
            _ => Exit::Precondition,
        }
    }
}

/// The documented image. Its tag moves.
const TOOL: &str = "registry.scontain.com/sconecuratedimages/sconecli:sconify-image";
/// Settings of an enclave that are part of its measurement. Without them the tool would use defaults of its own, which are others
/// than the signer's. They are in the converted program; measuring and starting set none, so that both find the same.
const ENCLAVE: [&str; 3] = ["--heap=1G", "--stack=4M", "--dlopen=1"];
/// The engine writes these when it starts a container: they cannot be measured. The names of other hosts are the network's, and
/// as little to be trusted.
const OF_THE_HOST: [&str; 2] = ["--host-path=/etc/hosts", "--host-path=/etc/resolv.conf"];
/// The one place where the engine's socket is handed to anything.
const SOCKET: &str = "--mount=type=bind,src=/var/run/docker.sock,dst=/var/run/docker.sock";
/// Where the tool finds the key.
const KEY: &str = "/signing-key.pem";
/// How long a program may take to print its measurement. That of an enclave of many gigabytes takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a program is converted, if that is needed.
#[derive(Debug, clap::Args)]
pub struct Conversion {
    /// On scone: a directory that the program needs besides its libraries; is measured with it
    #[arg(long, value_name = "DIR", value_parser = directory)]
    pub fs_dir: Vec<String>,
    /// On scone: SCONE's image that converts the program. It gets docker's socket: name it by its digest
    #[arg(long, value_name = "IMAGE", value_parser = tool)]
    pub sconify_with: Option<String>,
    /// On scone: the key in FILE signs what is converted, for production: RSA, 3072 bits, exponent 3, in PEM
    #[arg(long, value_name = "FILE")]
    pub signing_key: Option<PathBuf>,
}

impl Conversion {
    /// Refuses what a platform has no use for.
    pub fn check(&self, tools: &Tools) -> Result<(), Failure> {
        let given = [
            (!self.fs_dir.is_empty(), "--fs-dir"),
            (self.sconify_with.is_some(), "--sconify-with"),
            (self.signing_key.is_some(), "--signing-key"),
        ];
        match given.into_iter().find(|(is_given, _)| *is_given && tools.simulator.is_some()) {
            Some((_, option)) => Err(SconifyError::NotHere { platform: tools.facts.name, option }.into()),
            None => Ok(()),
        }
    }
}

/// What reaches SCONE's tool, a shell script that writes a Dockerfile, must mean the same everywhere.
pub(crate) fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "/._+@-".contains(c))
}

fn directory(text: &str) -> Result<String, &'static str> {
    let is_below = text.starts_with('/') && Path::new(text).components().count() > 1;
    if is_below && is_plain(text) && !text.split('/').any(|part| part == "..") {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err("must be an absolute path below '/', without '..', of letters, digits and '/._+@-' alone")
    }
}

fn tool(text: &str) -> Result<String, String> {
    let name = container::image_name(text)?;
    if is_plain(&name.replace(':', "")) { Ok(name) } else { Err("not an image".to_owned()) }
}

/// The file of a key, wherever it was named from.
fn key_file(path: &Path) -> Result<PathBuf, Failure> {
    let found = path.canonicalize().and_then(|found| File::open(&found).map(|_| found));
    Ok(found.map_err(|cause| SconifyError::KeyNotRead { file: path.display().to_string(), cause })?)
}

/// What is asked for.
pub struct Request<'a> {
    /// What CAS calls the session of the program.
    pub session: &'a str,
    /// The program's path in its image.
    pub program: &'a str,
    /// Where something of the host's may be mounted.
    mount_points: &'a [String],
    how: Sconified,
    is_given: bool,
}

impl<'a> Request<'a> {
    /// From the options; what they do not say is as it was before.
    pub fn new(
        session: &'a str,
        program: &'a str,
        mount_points: &'a [String],
        options: &Conversion,
        before: Option<&Program>,
    ) -> Result<Request<'a>, Failure> {
        let before = before.and_then(|program| program.sconified.clone());
        let mut how = before.unwrap_or_else(|| Sconified {
            with: TOOL.to_owned(),
            directories: Vec::new(),
            signing_key: PathBuf::new(),
        });
        if let Some(with) = &options.sconify_with {
            how.with.clone_from(with);
        }
        if !options.fs_dir.is_empty() {
            how.directories.clone_from(&options.fs_dir);
        }
        if let Some(key) = &options.signing_key {
            how.signing_key = key_file(key)?;
        }
        let is_given = options.sconify_with.is_some() || !options.fs_dir.is_empty() || options.signing_key.is_some();
        Ok(Request { session, program, mount_points, how, is_given })
    }

    /// What can come of it, and what is recorded of that, to know it again. Where it was asked for by name, nothing but a
    /// conversion will do. (Which key signed it is no part of the measurement.)
    pub(crate) fn outcomes(&self) -> Vec<(Option<Sconified>, String)> {
        let Sconified { with, directories, .. } = &self.how;
        let mount_points = self.mount_points.iter().map(|path| format!("{path}:host"));
        // All that its measurement depends on, besides the image.
        let fixed = [self.program, with.as_str()].into_iter().chain(ENCLAVE).map(str::to_owned);
        let vector = fixed.chain(directories.iter().cloned());
        let converted = (Some(self.how.clone()), vector.chain(mount_points).collect::<Vec<_>>().join(" "));
        if self.is_given { vec![converted] } else { vec![converted, (None, self.program.to_owned())] }
    }
}

/// An image that was converted. Dropping this gives up its tags: by then something else holds it.
pub(crate) struct Converted<'a> {
    tools: &'a Tools,
    pub id: String,
    tags: Vec<String>,
}

impl Drop for Converted<'_> {
    fn drop(&mut self) {
        for tag in &self.tags {
            // What is not there need not be given up.
            let _ = self.tools.engine.run_through(&["image", "rm", tag].map(OsString::from));
        }
    }
}

/// Converts an image, unless its program is a SCONE program already: that one prints its measurement when it is asked for it.
/// It is asked first, since what a file looks like says less: SCONE's own images keep the loader's usual name.
pub(crate) fn converted<'a>(
    account: &'a Account,
    image: &UserImage,
    request: &Request,
    tag: &str,
) -> Result<Option<Converted<'a>>, Failure> {
    let (tools, program) = (&account.tools, || request.program.to_owned());
    let linked = image.with_file(account, request.program, |file| {
        Linked::of(file).map_err(|cause| SconifyError::NotRead { program: program(), cause }.into())
    })?;
    if linked == Linked::NotAtAll {
        return Err(SconifyError::NoElf { program: program() }.into());
    }
    step("looking whether it is a SCONE program");
    let executable = Executable { path: request.program, files: Some(&[]) };
    if tools.is_scone_program(&image.id, executable, PATIENCE)? {
        if request.is_given {
            return Err(SconifyError::Already { program: program() }.into());
        }
        step(format!(
            "'{}' is one: what was built into it is measured, and no other file of the image",
            request.program
        ));
        return Ok(None);
    }
    let paths = request.mount_points.iter().map(String::as_str).chain([request.program]);
    if let Some(path) = paths.into_iter().find(|path| !is_plain(path)) {
        return Err(SconifyError::NotPlain { path: path.to_owned() }.into());
    }
    match linked {
        Linked::Statically => {
            let build = "scone cargo build --release --target=x86_64-scone-linux-musl   # as in Dockerfile.otpqr";
            return Err(Failure::from(SconifyError::Static { program: program() }).hint(build));
        }
        Linked::ToOnePlace => return Err(SconifyError::NotPie { program: program() }.into()),
        Linked::ToAnyPlace | Linked::NotAtAll => {}
    }
    let Sconified { with, signing_key, .. } = &request.how;
    if signing_key.as_os_str().is_empty() {
        let make = "openssl genrsa -3 -out signing-key.pem 3072   # makes one; keep it secret";
        return Err(Failure::from(SconifyError::NoKey { program: program() }).hint(make));
    }
    // It may be gone since it was named.
    key_file(signing_key)?;
    step(format!("converting image '{}' with '{with}', which is handed docker's socket: takes minutes", image.name));
    let [native, sconified] = ["native", "sconified"].map(|what| format!("{tag}.{what}"));
    let bare = |id: &str| id.trim_start_matches("sha256:").to_owned();
    // An image that has no name but ours would go with it.
    let given_up = if bare(&image.id).starts_with(&bare(&image.name)) { None } else { Some(native.clone()) };
    let tags = given_up.into_iter().chain([sconified.clone()]).collect();
    let mut converted = Converted { tools, id: String::new(), tags };
    // The tool is known to take names.
    let named = tools.engine.run(&["tag", &image.id, &native].map(OsString::from), &[])?;
    let ended = if named.success() { tools.engine.run(&vector(request, &native, &sconified), &[])? } else { named };
    let failed = |reason| {
        let failure = SconifyError::NotConverted { image: image.name.clone(), with: with.clone(), reason };
        Failure::from(failure).hint(format!("docker pull {with}   # if it is not here: SCONE grants access"))
    };
    if !ended.success() {
        return Err(failed(ended.reason()));
    }
    let args = ["image", "inspect", "--format", "{{.Id}}", &sconified].map(OsString::from);
    let found = tools.engine.run(&args, &[])?;
    if !found.success() {
        return Err(failed(found.reason()));
    }
    converted.id = found.stdout.trim().to_owned();
    Ok(Some(converted))
}

/// The whole of SCONE's tool's argument vector, and docker's before it.
fn vector(request: &Request, native: &str, sconified: &str) -> Vec<OsString> {
    let Sconified { with, directories, signing_key } = &request.how;
    let fixed = ["run", "--rm", "--log-driver=none", "-e=SCONE_PRODUCTION=0", "-e=SCONE_NO_TIME_THREAD=1", SOCKET];
    let mut before = fixed.map(OsString::from).to_vec();
    before.push(container::mount(signing_key, KEY, true));
    let mut vector = vec![with.clone(), "sconify_image".to_owned()];
    vector.extend([format!("--from={native}"), format!("--to={sconified}")]);
    // The result is built on this. What the tool takes by itself is an Alpine, on which a glibc program does not start.
    vector.push(format!("--base={native}"));
    let Request { program, session, .. } = request;
    vector.extend([format!("--binary={program}"), format!("--command={program}")]);
    vector.push("--binary-fs".to_owned());
    vector.extend(directories.iter().map(|directory| format!("--fs-dir={directory}")));
    let mounted = request.mount_points.iter().map(|path| format!("--host-path={path}"));
    vector.extend(OF_THE_HOST.map(str::to_owned).into_iter().chain(mounted));
    vector.extend(ENCLAVE.map(str::to_owned));
    vector.push(format!("--scone-signer={KEY}"));
    // Helpers of the same version.
    vector.extend([format!("--cli={with}"), format!("--crosscompiler={with}")]);
    // The tool would write a policy of its own and upload it. Ours says who gets what.
    vector.extend([format!("--name={session}"), "--service-name=program".to_owned()]);
    vector.extend(["--disable-session-upload", "--no-color"].map(str::to_owned));
    before.extend(vector.into_iter().map(OsString::from));
    before
}

/// How a program is linked, according to its file's header (elf(5)).
#[derive(Debug, PartialEq, Eq)]
enum Linked {
    /// It is not an ELF program for 64 bits.
    NotAtAll,
    Statically,
    /// Dynamically, to be loaded where it says.
    ToOnePlace,
    /// Dynamically, position-independent.
    ToAnyPlace,
}

impl Linked {
    fn of(path: &Path) -> io::Result<Linked> {
        const INTERPRETER: u32 = 3;
        const MOVABLE: u16 = 3;
        let file = File::open(path)?;
        let mut header = [0; 64];
        match file.read_exact_at(&mut header, 0) {
            Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => return Ok(Linked::NotAtAll),
            read => read?,
        }
        // 64 bits, least significant byte first.
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return Ok(Linked::NotAtAll);
        }
        let short = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let table = u64::from_le_bytes([32, 33, 34, 35, 36, 37, 38, 39].map(|at| header[at]));
        let (size, count, kind) = (u64::from(short(54)), u64::from(short(56)), short(16));
        for number in 0..count {
            let mut segment = [0; 4];
            file.read_exact_at(&mut segment, table.saturating_add(number * size))?;
            if u32::from_le_bytes(segment) == INTERPRETER {
                return Ok(if kind == MOVABLE { Linked::ToAnyPlace } else { Linked::ToOnePlace });
            }
        }
        Ok(Linked::Statically)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_a_plain_path_that_no_shell_and_no_dockerfile_reads_otherwise() {
        for bad in ["", "/", "//", "app", "/a/../b", "/a b", "/a$(b)", "/a\"", "/a,b", "/a:b", "/a\nb"] {
            assert!(directory(bad).is_err(), "{bad:?}");
        }
        assert_eq!(directory("/usr/lib/python3.11/"), Ok("/usr/lib/python3.11".to_owned()));
    }

    #[test]
    fn the_tool_is_an_image_s_name() {
        for bad in ["", "-v", "@file", "a b", "a;b", "a$b"] {
            assert!(tool(bad).is_err(), "{bad:?}");
        }
        for good in [TOOL, "registry.scontain.com:5050/a/b:c-1", &format!("r.example/a@sha256:{}", "0".repeat(64))] {
            assert_eq!(tool(good), Ok(good.to_owned()));
        }
    }

    #[test]
    fn how_a_program_is_linked_is_in_its_header() {
        let directory = tempfile::tempdir().unwrap();
        let linked = |content: &[u8]| {
            let file = directory.path().join("program");
            std::fs::write(&file, content).unwrap();
            Linked::of(&file)
        };
        assert_eq!(linked(b"#!/bin/sh\n").unwrap(), Linked::NotAtAll);
        assert_eq!(linked(&[b"#!/bin/sh\n".as_slice(), &[b'\n'; 80]].concat()).unwrap(), Linked::NotAtAll);
        let elf = |kind: u8, segments: &[u8]| {
            let mut header = [0; 64];
            header[..6].copy_from_slice(b"\x7fELF\x02\x01");
            (header[16], header[32], header[54], header[56]) = (kind, 64, 56, segments.len() as u8);
            let mut file = header.to_vec();
            for &segment in segments {
                let mut entry = [0; 56];
                entry[0] = segment;
                file.extend(entry);
            }
            file
        };
        assert_eq!(linked(&elf(2, &[1, 1])).unwrap(), Linked::Statically);
        assert_eq!(linked(&elf(3, &[1, 2])).unwrap(), Linked::Statically);
        assert_eq!(linked(&elf(2, &[6, 3, 1])).unwrap(), Linked::ToOnePlace);
        assert_eq!(linked(&elf(3, &[6, 3, 1])).unwrap(), Linked::ToAnyPlace);
        let cut_off = elf(3, &[6, 1, 3]);
        assert!(linked(&cut_off[..130]).is_err());
        let own = Linked::of(&std::env::current_exe().unwrap()).unwrap();
        assert!([Linked::ToAnyPlace, Linked::Statically].contains(&own), "{own:?}");
    }
}
