//! A CAS of its own for each test: the real process, real TLS, a clock that stands where it is put.

// Each test file uses its own part of it.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use scone_protocol::connection::{Address, Connection, Error};
use scone_protocol::{Configuration, Secret};
use tempfile::TempDir;
use totp_rs::{Algorithm, TOTP};

pub const MRENCLAVE: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
pub const ANOTHER: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
pub const NOW: u64 = 1_800_000_000;
pub const HEADLINE: &str =
    "CAS sent an attestation/configuration error: Failed to retrieve service attestation configuration";

/// What SCONE's documents tell to attest a public CAS with.
pub const TESTING: [&str; 3] =
    ["--only_for_testing-debug", "--only_for_testing-ignore-signer", "--only_for_testing-trust-any"];

/// A CAS of its own, with a clock that stands still. Ends with the test.
pub struct World {
    pub home: TempDir,
    pub process: Child,
    pub client: String,
    pub enclave: String,
    pub key: String,
}

impl World {
    /// A CAS that nobody has attested.
    pub fn unattested() -> World {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("clock"), NOW.to_string()).unwrap();
        let (process, [client, enclave, key]) = start(home.path(), &["--client-port", "0", "--enclave-port", "0"]);
        World { home, process, client, enclave, key }
    }

    /// A CAS that the default user attested.
    pub fn new() -> World {
        let world = World::unattested();
        world.scone(&["cas", "attest", &world.client, "-c", &world.key]).succeeds();
        world
    }

    /// With the policies of `templates/` in it.
    pub fn with_policies() -> World {
        let world = World::new();
        for template in ["namespace", "otpqr", "otpqr-reset"] {
            world.scone(&["session", "create", &world.render(template, "1", None)]).succeeds();
        }
        world
    }

    /// `kill -9` at whatever it is doing, and a new start on the same data.
    pub fn crash_and_restart(&mut self) {
        self.process.kill().unwrap();
        self.restart();
    }

    /// Told to stop, as an operator would.
    pub fn exit_and_restart(&mut self) {
        self.scone_sim(&["down"]).succeeds();
        self.restart();
    }

    fn restart(&mut self) {
        self.process.wait().unwrap();
        let (process, [client, enclave, key]) = start(self.home.path(), &[]);
        assert_eq!(
            (&client, &enclave, &key),
            (&self.client, &self.enclave, &self.key),
            "a restart changes no endpoint"
        );
        self.process = process;
    }

    pub fn set_clock(&self, now: u64) {
        let file = tempfile::NamedTempFile::new_in(self.home.path()).unwrap();
        fs::write(file.path(), now.to_string()).unwrap();
        file.persist(self.home.path().join("clock")).unwrap();
    }

    pub fn scone(&self, args: &[&str]) -> Outcome {
        self.scone_as("alice", args)
    }

    pub fn scone_as(&self, user: &str, args: &[&str]) -> Outcome {
        Outcome(self.command(user, args).output().unwrap())
    }

    pub fn command(&self, user: &str, args: &[&str]) -> Command {
        let mut command = program("scone");
        command.env("SCONE_CLI_CONFIG", self.home.path().join(user).join("config.json")).args(args);
        command
    }

    pub fn scone_sim(&self, args: &[&str]) -> Outcome {
        Outcome(program("scone-sim").args(args).arg("--data").arg(self.data()).output().unwrap())
    }

    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.home.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A file with a rendered template; `versions` is one digit a version of volume and secret.
    pub fn render(&self, template: &str, versions: &str, predecessor: Option<&str>) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../templates/{template}.yml"));
        let text = fs::read_to_string(path).unwrap();
        let each: Vec<String> = versions.chars().map(String::from).collect();
        let nothing: [&str; 0] = [];
        let values = serde_json::json!({
            "namespace": "ns",
            "language": "0.3.10",
            "predecessor": predecessor.unwrap_or("~"),
            "mrenclave": MRENCLAVE,
            "issuer": "Example",
            "login": "alice",
            "person": "alice",
            "volume_version": each.last(),
            "secret_version": each.last(),
            "volume_versions": each,
            "secret_versions": each,
            // The account has no programs.
            "programs": nothing,
            "permits": nothing,
            "approvals": nothing,
            "tolerate": nothing,
            "ignore_advisories": nothing,
        });
        let mut handlebars = handlebars::Handlebars::new();
        handlebars.set_strict_mode(true);
        let text = handlebars.render_template(&text, &values).unwrap();
        self.file(&format!("{template}-{versions}.yml"), &text)
    }

    pub fn evidence_key(&self) -> Secret {
        Secret::new(self.scone_sim(&["evidence-key"]).succeeds().trim_end().to_owned())
    }

    pub fn connect(&self) -> Connection {
        self.connect_with(self.evidence_key())
    }

    pub fn connect_with(&self, evidence_key: Secret) -> Connection {
        Connection::connect(&Address::parse(&self.enclave).unwrap(), Some(self.key.clone()), evidence_key).unwrap()
    }

    /// What a runtime gets.
    pub fn configure(&self, service: &str, code: Option<&str>, mrenclave: &str) -> Result<Configuration, Vec<String>> {
        self.connect().configure(service, code, mrenclave, None).map_err(Error::causes)
    }

    /// The secret that an authenticator would hold, taken where it is issued.
    pub fn secret(&self) -> String {
        let configuration = self.configure("ns/otpqr/otpqr", None, MRENCLAVE).unwrap();
        configuration.environment["OTP_SECRET"].expose().to_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

pub fn program(name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scone-sim"));
    command.arg0(name).stdin(Stdio::null());
    command
}

pub fn start(home: &Path, ports: &[&str]) -> (Child, [String; 3]) {
    let mut command = program("scone-sim");
    command.arg("cas").arg("--data").arg(home.join("data")).arg("--clock").arg(home.join("clock")).args(ports);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let endpoints = ["client: ", "enclave: ", "key: "]
        .map(|field| lines.next().unwrap().unwrap().strip_prefix(field).unwrap().to_owned());
    (process, endpoints)
}

pub struct Outcome(pub Output);

impl Outcome {
    #[track_caller]
    pub fn succeeds(&self) -> String {
        assert!(self.0.status.success(), "{}", self.error());
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    /// Fails with this code, says this, and prints nothing on standard output.
    #[track_caller]
    pub fn fails(&self, code: i32, saying: &str) {
        assert_eq!(self.0.status.code(), Some(code), "{}", self.error());
        assert!(self.error().contains(saying), "{}", self.error());
        assert!(self.0.stdout.is_empty());
    }

    pub fn error(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }
}

pub fn code(secret: &str, now: u64) -> String {
    let secret = scone_sim::session::decode_shared_secret(secret).unwrap();
    TOTP::new_unchecked(Algorithm::SHA1, 6, 0, 30, secret).generate(now)
}

#[track_caller]
pub fn refused<T>(result: Result<T, Vec<String>>, causes: &[&str]) {
    assert_eq!(result.err().expect("a refusal"), causes);
}
