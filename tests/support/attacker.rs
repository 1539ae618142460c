//! What somebody with root on the host can do: everything except run the measured program with other bytes.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use super::{Bundle, Outcome, Platform, copy, run};

/// Empties a directory.
pub fn delete_files(directory: &Path) {
    for entry in fs::read_dir(directory).expect("the directory") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("deletion");
    }
}

/// Puts `copy_of_it` in the place of `directory`, which may be gone.
pub fn put_back(copy_of_it: &Path, directory: &Path) {
    if directory.exists() {
        fs::remove_dir_all(directory).expect("deletion");
    }
    copy(copy_of_it, directory);
}

/// An image whose `/bin/otpqr` was tampered with: one byte more. Gone when dropped.
pub struct OtherImage {
    pub name: String,
    directory: PathBuf,
    platform: Platform,
}

impl OtherImage {
    pub fn of(bundle: &Bundle) -> OtherImage {
        let directory = bundle.root.join("other-image");
        copy(&bundle.root.join("simulator/bin/rootfs"), &directory);
        let program = directory.join("bin/otpqr");
        let mut file = fs::OpenOptions::new().append(true).open(&program).expect("the program");
        file.write_all(b"\0").expect("a byte more");
        let name = match bundle.platform {
            Platform::SimNative => directory.display().to_string(),
            Platform::Sim => {
                // A unique name, since other tests may be doing the same.
                let name = format!("otpqr-other:{}", bundle.known("default", &["namespace"]));
                let dockerfile = format!("FROM {}\nCOPY bin/otpqr /bin/otpqr\n", "otpqr:sim");
                fs::write(directory.join("Dockerfile"), dockerfile).expect("a Dockerfile");
                let mut build = Command::new("docker");
                build.args(["build", "--quiet", "--tag", &name]).arg(&directory);
                run(build).expect(0);
                name
            }
        };
        OtherImage { name, directory, platform: bundle.platform }
    }
}

impl Drop for OtherImage {
    fn drop(&mut self) {
        if self.platform == Platform::Sim {
            let removed = Command::new("docker").args(["image", "rm", "--force", &self.name]).output();
            assert!(removed.is_ok(), "docker image rm");
        }
        fs::remove_dir_all(&self.directory).expect("deletion");
    }
}

/// Somebody else's `scone` command line, which has attested the bundle's CAS.
pub struct Stranger<'a> {
    bundle: &'a Bundle,
}

impl<'a> Stranger<'a> {
    pub fn to(bundle: &'a Bundle, account: &str) -> Stranger<'a> {
        let stranger = Stranger { bundle };
        let (address, key) = (bundle.known(account, &["cas", "address"]), bundle.known(account, &["cas", "key"]));
        stranger.scone(&["cas", "attest", &address, "-c", &key]).expect(0);
        stranger
    }

    pub fn scone(&self, args: &[&str]) -> Outcome {
        let mut command = self.bundle.command(self.bundle.root.join("simulator/bin/scone"));
        command.args(args).env("SCONE_CLI_CONFIG", self.bundle.root.join("stranger.json"));
        run(command)
    }
}

/// The connection between a program and CAS, in the attacker's hands. It is TLS, so it can only be recorded and held up, long
/// enough to do something meanwhile.
pub struct Line {
    /// The address to pass off as CAS's.
    pub address: String,
    forwarder: thread::JoinHandle<io::Result<Vec<u8>>>,
}

impl Line {
    /// Forwards one connection to `cas`. Before each of CAS's answers arrives it asks whether it is `time`; the first time it
    /// is, it does the `deed`.
    pub fn hold(cas: String, time: impl Fn() -> bool + Send + 'static, deed: impl FnOnce() + Send + 'static) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let forwarder = thread::spawn(move || {
            let (program, _) = listener.accept()?;
            let cas = TcpStream::connect(cas)?;
            let (mut from_program, mut to_cas) = (program.try_clone()?, cas.try_clone()?);
            let requests = thread::spawn(move || {
                let mut recorded = Vec::new();
                // Either side may be gone already.
                let _ = record(&mut from_program, &mut to_cas, &mut recorded);
                let _ = to_cas.shutdown(Shutdown::Write);
                recorded
            });
            let mut deed = Some(deed);
            let mut answers = answers(cas, program, || {
                if deed.is_some() && time() {
                    deed.take().expect("a deed not yet done")();
                }
            });
            if let Err(cause) = &answers
                && matches!(cause.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
            {
                answers = Ok(());
            }
            let recorded = requests.join().expect("the forwarder");
            answers.map(|()| recorded)
        });
        Line { address, forwarder }
    }

    /// Waits until the connection has ended. Returns what the program sent.
    pub fn end(self) -> Vec<u8> {
        self.forwarder.join().expect("the forwarder").expect("the line")
    }
}

/// Sends CAS the bytes that somebody else sent, and waits until CAS hangs up.
pub fn replay(cas: &str, recorded: &[u8]) {
    let mut line = TcpStream::connect(cas).expect("CAS");
    // CAS may hang up before it has read everything.
    let _ = line.write_all(recorded).and_then(|()| line.shutdown(Shutdown::Write));
    let _ = line.read_to_end(&mut Vec::new());
}

fn record(from: &mut TcpStream, to: &mut TcpStream, recorded: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            length => {
                recorded.extend_from_slice(&buffer[..length]);
                to.write_all(&buffer[..length])?;
            }
        }
    }
}

fn answers(mut cas: TcpStream, mut program: TcpStream, mut before_each: impl FnMut()) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match cas.read(&mut buffer)? {
            0 => return program.shutdown(Shutdown::Both),
            length => {
                before_each();
                program.write_all(&buffer[..length])?;
            }
        }
    }
}

/// Whether a directory holds any file.
pub fn holds_a_file(directory: &Path) -> bool {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.is_file() || (path.is_dir() && holds_a_file(&path)))
}
