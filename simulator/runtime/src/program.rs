//! Finds, checks and measures a program of one file. What is measured is what runs: a sealed copy in memory, which nobody can
//! change, whatever becomes of the file meanwhile. (A program of many files: `files.rs`.)

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    CWD, FileType, MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags, fcntl_add_seals, fstat, memfd_create, openat,
    openat2,
};

use scone_protocol::signature::{self, Settings, SignerIdentity};

use crate::files::{self, Selection};
use crate::measurement::{Measurement, OWN};

/// A measured program.
pub struct Program {
    executed: Executed,
    /// The measurement, 64 lower-case hex digits: what a policy's `mrenclave` names.
    pub mrenclave: String,
    /// Who signed it, and as what, if it is signed.
    pub signer: Option<SignerIdentity>,
}

/// How the program is named to the kernel.
enum Executed {
    /// The very copy that was measured.
    Copy(OwnedFd),
    /// Its path in the root, where its interpreter and its libraries are found by their paths, too.
    Path(PathBuf),
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
    /// It is not what its signer signed.
    #[error("'{}' was changed since it was signed: put the signed file back", path.display())]
    Altered {
        /// Which program.
        path: PathBuf,
    },
    /// SCONE would have to sign it anew, and its signer's key is not there.
    #[error(
        "'{}' is signed for {setting}={signed}: sign it for another value, or do not set the variable",
        path.display()
    )]
    OtherSetting {
        /// Which program.
        path: PathBuf,
        /// Which variable of the caller's differs.
        setting: &'static str,
        /// What it should be.
        signed: u64,
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
        // The runtime's own binary is hashed while the program is read.
        let own = |source| unreadable(Path::new(OWN), source);
        let mut measurement = Measurement::start("scone-sim measurement 1").map_err(own)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(|error| unreadable(path, error))?;
        let signed = signature::read(&content).map_err(|_| Error::Altered { path: path.to_owned() })?;
        let program = signed.as_ref().map_or(&content[..], |signed| signed.program);
        refuse_unmeasured_code(program).map_err(not_simulated)?;
        let copy = sealed_copy(program).map_err(|source| Error::NotKept { path: path.to_owned(), source })?;
        measurement.add(program);
        match &signed {
            None => measurement.add_settings(),
            Some(signed) => {
                let other = |(setting, signed)| Error::OtherSetting { path: path.to_owned(), setting, signed };
                refuse_other_settings(&signed.settings).map_err(other)?;
                measurement.add_signed_settings(&signed.settings);
            }
        }
        let signer = signed.map(|signed| signed.signer);
        Ok(Program { executed: Executed::Copy(copy), mrenclave: measurement.finish(), signer })
    }

    /// Measures the program at `path` with the selected files of the image at `root`, and puts a copy of them into `copy`, if
    /// there is one to be made. A signature counts for nothing: it does not cover the other files.
    pub fn with_files(
        root: &OwnedFd,
        path: &Path,
        selection: &Selection,
        copy: Option<&OwnedFd>,
    ) -> Result<Program, files::Error> {
        let mrenclave = files::measure(root, path, selection, copy)?;
        Ok(Program { executed: Executed::Path(path.to_owned()), mrenclave, signer: None })
    }
}

impl Program {
    /// The command that runs this program under the name `argv0`. A copy is named itself, so nothing can take its place.
    pub fn command(&self, argv0: &OsStr) -> Command {
        let mut command = match &self.executed {
            Executed::Copy(copy) => Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd())),
            Executed::Path(path) => Command::new(path),
        };
        command.arg0(argv0);
        command
    }
}

/// The caller's environment may set no other value than the one signed: SCONE's page on its signer says that the start then fails.
/// The error is the variable, and its signed value.
fn refuse_other_settings(settings: &Settings) -> Result<(), (&'static str, u64)> {
    let differs = |(name, signed): &(&str, u64)| {
        env::var_os(name).is_some_and(|value| value.to_str().and_then(signature::size) != Some(*signed))
    };
    settings.variables().into_iter().find(differs).map_or(Ok(()), Err)
}

/// A file in memory that can never be written again, by anybody.
fn sealed_copy(program: &[u8]) -> io::Result<OwnedFd> {
    let mut copy = File::from(memfd_create("program", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    copy.write_all(program)?;
    fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(copy.into())
}

/// A dynamically linked program runs code that nobody measured; so would a script.
fn refuse_unmeasured_code(program: &[u8]) -> Result<(), &'static str> {
    match interpreter(program)? {
        None => Ok(()),
        Some(_) => Err("dynamically linked, so its libraries would go unmeasured"),
    }
}

/// The ELF interpreter (`PT_INTERP`) that a dynamically linked program names.
pub(crate) fn interpreter(program: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    const PT_INTERP: u64 = 3;
    let not_elf = "no 64-bit x86 ELF program";
    let bytes = |at: u64, length: u64| -> Option<&[u8]> {
        program.get(usize::try_from(at).ok()?..usize::try_from(at.checked_add(length)?).ok()?)
    };
    let field = |at: u64, length: u64| -> Option<u64> {
        Some(bytes(at, length)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    };
    if !program.starts_with(b"\x7fELF\x02\x01") || field(18, 2) != Some(62) {
        return Err(not_elf);
    }
    // ELF-64 header: e_phoff at 32 (8 bytes), e_phentsize at 54, e_phnum at 56. A program header: p_type at 0, p_offset at 8,
    // p_filesz at 32.
    let (Some(table), Some(size), Some(count)) = (field(32, 8), field(54, 2), field(56, 2)) else {
        return Err(not_elf);
    };
    for index in 0..count {
        let at = index.checked_mul(size).and_then(|offset| table.checked_add(offset)).ok_or(not_elf)?;
        if field(at, 4).ok_or(not_elf)? == PT_INTERP {
            let within = |offset| at.checked_add(offset).and_then(|at| field(at, 8));
            let name = within(8).zip(within(32)).and_then(|(at, length)| bytes(at, length)).ok_or(not_elf)?;
            return Ok(Some(name.strip_suffix(b"\0").unwrap_or(name)));
        }
    }
    Ok(None)
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
        (elf[64 + 56 + 8], elf[64 + 56 + 32]) = (1, 4);
        elf[64 + 56] = 3;
        let dynamic = "dynamically linked, so its libraries would go unmeasured";
        assert_eq!(refuse_unmeasured_code(&elf), Err(dynamic));
        assert_eq!(interpreter(&elf), Ok(Some(&b"ELF\x02"[..])));
        elf[64 + 56 + 32] = 255;
        assert_eq!(interpreter(&elf), Err("no 64-bit x86 ELF program"));
        assert_eq!(refuse_unmeasured_code(&elf[..100]), Err("no 64-bit x86 ELF program"));

        elf[64 + 56] = 1;
        assert_eq!(refuse_unmeasured_code(&elf), Ok(()));
    }
}
