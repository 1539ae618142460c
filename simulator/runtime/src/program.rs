//! Finds, checks and measures the program. What is measured is what runs: a sealed copy in memory, which nobody can change,
//! whatever becomes of the file meanwhile. The runtime's own file the kernel keeps from being written while it runs.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ring::digest::{Context, SHA256};
use rustix::fs::{
    CWD, FileType, MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags, fcntl_add_seals, fstat, memfd_create, openat,
    openat2,
};

use scone_protocol::hex;

/// The settings that change MRENCLAVE on SCONE (`reference/scone.md` section 5.1) and so change the measurement here.
/// Assumption: as texts; `64M` and `65536K` differ.
const MEASURED_SETTINGS: [&str; 3] = ["SCONE_HEAP", "SCONE_STACK", "SCONE_ALLOW_DLOPEN"];

/// A measured program.
pub struct Program {
    /// The very copy that was measured.
    copy: OwnedFd,
    /// The measurement, 64 lower-case hex digits: what a policy's `mrenclave` names.
    pub mrenclave: String,
}

/// Why a program cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened or read.
    #[error("cannot read '{}': {source}", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be copied to where nobody can change it.
    #[error("cannot keep '{}' in memory: {source}", path.display())]
    NotKept {
        /// Which program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something the simulator cannot vouch for.
    #[error("'{}' is {what}: not simulated", path.display())]
    NotSimulated {
        /// Which program.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
}

impl Program {
    /// Opens and measures the program at `path`, seen from `root` as a program would see it (`None`: this process's root).
    pub fn open(root: Option<&OwnedFd>, path: &Path) -> Result<Program, Error> {
        let unreadable = |path: &Path, source| Error::Unreadable { path: path.to_owned(), source };
        let not_simulated = |what| Error::NotSimulated { path: path.to_owned(), what };
        // Without NONBLOCK a FIFO in the program's place would be waited on.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match root {
            Some(root) => openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT),
            None => openat(CWD, path, flags, Mode::empty()),
        };
        let mut file = File::from(file.map_err(|error| unreadable(path, error.into()))?);
        let kind = fstat(&file).map_err(|error| unreadable(path, error.into()))?.st_mode;
        if FileType::from_raw_mode(kind) != FileType::RegularFile {
            return Err(not_simulated("no regular file"));
        }
        let mut program = Vec::new();
        file.read_to_end(&mut program).map_err(|error| unreadable(path, error))?;
        refuse_unmeasured_code(&program).map_err(not_simulated)?;
        let copy = sealed_copy(&program).map_err(|source| Error::NotKept { path: path.to_owned(), source })?;

        let own = Path::new("/proc/self/exe");
        let settings = MEASURED_SETTINGS.map(|name| (name, env::var_os(name)));

        let mut hash = Context::new(&SHA256);
        add(&mut hash, b"scone-sim measurement 1");
        add_file(&mut hash, own).map_err(|error| unreadable(own, error))?;
        add(&mut hash, &program);
        for (name, value) in settings {
            if let Some(value) = value {
                add(&mut hash, name.as_bytes());
                add(&mut hash, value.as_encoded_bytes());
            }
        }
        Ok(Program { copy, mrenclave: hex(hash.finish().as_ref()) })
    }
}

impl Program {
    /// The command that runs this program under the name `argv0`. It names the copy, so nothing can take its place.
    pub fn command(&self, argv0: &OsStr) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.copy.as_raw_fd()));
        command.arg0(argv0);
        command
    }
}

/// A file in memory that can never be written again, by anybody.
fn sealed_copy(program: &[u8]) -> io::Result<OwnedFd> {
    let mut copy = File::from(memfd_create("program", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    copy.write_all(program)?;
    fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(copy.into())
}

/// Adds a part with its length before it, so that parts cannot run together.
fn add(hash: &mut Context, part: &[u8]) {
    hash.update(&(part.len() as u64).to_be_bytes());
    hash.update(part);
}

/// As [`add`], for a file, piece by piece: the runtime's own binary is large, and reading it whole costs page faults.
fn add_file(hash: &mut Context, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    hash.update(&length.to_be_bytes());
    let (mut piece, mut left) = (vec![0; 64 * 1024], length);
    while left > 0 {
        match file.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                hash.update(&piece[..count]);
                left = left.saturating_sub(count as u64);
            }
        }
    }
    Ok(())
}

/// A dynamically linked program runs code that nobody measured; so would a script.
fn refuse_unmeasured_code(program: &[u8]) -> Result<(), &'static str> {
    const PT_INTERP: u64 = 3;
    // ELF-64 header: e_phoff at 32 (8 bytes), e_phentsize at 54, e_phnum at 56; a program header starts with p_type.
    let field = |at: usize, length: usize| -> Option<u64> {
        let bytes = program.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    };
    let not_elf = "no 64-bit x86 ELF program";
    if !program.starts_with(b"\x7fELF\x02\x01") || field(18, 2) != Some(62) {
        return Err(not_elf);
    }
    let (Some(table), Some(size), Some(count)) = (field(32, 8), field(54, 2), field(56, 2)) else {
        return Err(not_elf);
    };
    for index in 0..count {
        let at = index.checked_mul(size).and_then(|offset| table.checked_add(offset)).ok_or(not_elf)?;
        let kind = usize::try_from(at).ok().and_then(|at| field(at, 4)).ok_or(not_elf)?;
        if kind == PT_INTERP {
            return Err("dynamically linked, so its libraries would go unmeasured");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_copy_is_what_was_given_and_takes_no_byte_more() {
        let mut copy = File::from(sealed_copy(b"program").unwrap());
        assert!(copy.write_all(b"x").is_err() && copy.set_len(3).is_err());
        let mut again = File::open(format!("/proc/self/fd/{}", copy.as_raw_fd())).unwrap();
        let mut content = Vec::new();
        again.read_to_end(&mut content).unwrap();
        assert_eq!(content, b"program");
    }

    #[test]
    fn what_brings_unmeasured_code_is_refused() {
        assert_eq!(refuse_unmeasured_code(b"#!/bin/sh\n"), Err("no 64-bit x86 ELF program"));
        assert_eq!(refuse_unmeasured_code(b"\x7fELF\x02\x01"), Err("no 64-bit x86 ELF program"));

        let mut elf = vec![0; 64 + 2 * 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[18], elf[32], elf[54], elf[56]) = (62, 64, 56, 2);
        elf[64 + 56] = 3;
        let dynamic = "dynamically linked, so its libraries would go unmeasured";
        assert_eq!(refuse_unmeasured_code(&elf), Err(dynamic));
        assert_eq!(refuse_unmeasured_code(&elf[..100]), Err("no 64-bit x86 ELF program"));

        elf[64 + 56] = 1;
        assert_eq!(refuse_unmeasured_code(&elf), Ok(()));
    }
}
