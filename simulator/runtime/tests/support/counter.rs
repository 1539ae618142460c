//! A CAS, an image and a sealed volume; the program counts in it, and another session's program looks at the number.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::{self, Cas};

pub struct Host {
    pub directory: TempDir,
    pub cas: Cas,
}

/// Whether these tests can run.
pub fn tools_are_there() -> bool {
    let strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    let missing = match (strace, support::bin().join("scone-sim").exists()) {
        (Ok(_), true) => return true,
        (Ok(_), false) => "simulator/bin/scone-sim: make sim",
        (Err(_), _) => "strace: apt-get install strace",
    };
    assert!(std::env::var_os("REQUIRE_DOCKER").is_none_or(|value| value != "1"), "missing: {missing}");
    eprintln!("SKIPPED: missing: {missing}");
    false
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Host {
    pub fn new() -> Host {
        let directory = tempfile::tempdir().unwrap();
        for name in ["image/bin", "volume", "out", "cas"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        support::compile_probe(&directory.path().join("image/bin/probe"));
        let host = Host { cas: Cas::serve(&directory.path().join("cas")), directory };
        let measured = host.runtime(&[]).env("SCONE_HASH", "1").output().unwrap();
        let attestation = format!("[{{ mrenclave: [\"{}\"] }}]", text(&measured.stdout).trim());
        let service = |name: &str, command: &str| {
            format!(
                "  - {{ name: {name}, image_name: image, command: \"/bin/probe {command}\", pwd: /, attestation: {attestation} }}\n"
            )
        };
        host.cas.create_session(&format!(
            r#"
name: crash
version: "0.3.10"
access_policy: {{ read: [CREATOR], update: [CREATOR] }}
services:
{}{}{}
images:
  - name: image
    volumes: [{{ name: data, path: /data }}]
volumes:
  - name: data
    export: [{{ to: {{ session: readers }}, update_policy: ephemeral }}]
security:
  attestation: {{ mode: hardware }}
"#,
            service("count", "count=/data,/out/acknowledged,2"),
            service("count-on", "count=/data,/out/acknowledged,1000000"),
            service("counted", "counted=/data"),
        ));
        host.cas.create_session(&format!(
            r#"
name: readers
version: "0.3.10"
services:
{}
images:
  - name: image
    volumes: [{{ name: numbers, path: /data }}]
volumes:
  - name: numbers
    import: {{ session: crash, volume: data }}
security:
  attestation: {{ mode: hardware }}
"#,
            service("counted", "write=/data/mine,mine remove=/data/mine counted=/data sync"),
        ));
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `scone-run`, run by `before`.
    pub fn runtime(&self, before: &[&str]) -> Command {
        self.runtime_with("volume", before)
    }

    /// The same, with another directory in place of the volume's.
    pub fn runtime_with(&self, volume: &str, before: &[&str]) -> Command {
        let own = [env!("CARGO_BIN_EXE_scone-run")];
        let words: Vec<&str> = before.iter().chain(&own).copied().collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("--rootfs").arg(self.path("image"));
        for (from, to) in [(volume, "/.sealed/data"), ("out", "/out")] {
            command.arg("--bind").arg(format!("{}:{to}", self.path(from).display()));
        }
        command.arg("/bin/probe").env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("SCONE_CAS_ADDR", &self.cas.enclave).env("SCONE_SIM_CAS_KEY", &self.cas.key);
        command.env("SCONE_SIM_EVIDENCE_KEY", &self.cas.evidence_key);
        command.stdin(Stdio::null());
        command
    }
}
