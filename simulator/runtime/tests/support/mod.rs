//! The simulator's own CAS, as a process, for tests and benchmarks of the runtime.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where `make sim` puts the static binaries.
pub fn bin() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin")
}

/// A CAS that serves until it is dropped.
pub struct Cas {
    pub process: Child,
    /// Where its enclave API is.
    pub enclave: String,
    /// Its key hash.
    pub key: String,
    /// What runtimes make evidence with.
    pub evidence_key: String,
    data: PathBuf,
}

impl Cas {
    /// Serves the data directory; again on the same ports, if it has been served before.
    pub fn serve(data: &Path) -> Cas {
        let mut command = Command::new(bin().join("scone-sim"));
        command.args(["cas", "--data"]).arg(data);
        if !data.join("endpoints.json").exists() {
            command.args(["--client-port", "0", "--enclave-port", "0"]);
        }
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map(|line| line.unwrap());
        let mut field = |name: &str| {
            let found = lines.find_map(|line| line.strip_prefix(name).map(str::to_owned));
            found.unwrap_or_else(|| panic!("CAS did not say its {name}"))
        };
        let (enclave, key) = (field("enclave: "), field("key: "));
        let printed =
            Command::new(bin().join("scone-sim")).args(["evidence-key", "--data"]).arg(data).output().unwrap();
        let evidence_key = String::from_utf8(printed.stdout).unwrap().trim_end().to_owned();
        Cas { process, enclave, key, evidence_key, data: data.to_owned() }
    }

    /// Starts again what was killed.
    pub fn serve_again(&mut self) {
        self.process.wait().unwrap();
        *self = Cas::serve(&self.data);
    }

    /// Uploads a session with the `scone` command line, whose configuration is beside the data.
    pub fn create_session(&self, text: &str) {
        let endpoints = fs::read_to_string(self.data.join("endpoints.json")).unwrap();
        let endpoints: serde_json::Value = serde_json::from_str(&endpoints).unwrap();
        let (address, session) = (format!("127.0.0.1:{}", endpoints["client_port"]), self.data.join("session.yml"));
        fs::write(&session, text).unwrap();
        let session = session.to_str().unwrap();
        for arguments in [&["cas", "attest", &address, "-c", &self.key][..], &["session", "create", session]] {
            let scone = Command::new(bin().join("scone")).args(arguments).env("HOME", &self.data).output().unwrap();
            assert!(scone.status.success(), "{}", String::from_utf8_lossy(&scone.stderr));
        }
    }
}

impl Drop for Cas {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}

/// Compiles the static program of the tests.
pub fn compile_probe(to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/program/probe.rs");
    let flags = ["--edition=2024", "-Ctarget-feature=+crt-static", "-Copt-level=1", "-Cstrip=symbols", "-o"];
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    assert!(Command::new(rustc).args(flags).arg(to).arg(source).status().unwrap().success());
}
