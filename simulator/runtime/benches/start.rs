//! What the runtime adds to the start of a program that does nothing, stage by stage: each line does all that the line above
//! does, and one thing more. Against the CAS that `make sim` built, on loopback.

#[allow(dead_code)]
#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const ROUNDS: usize = 101;

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in ["image/files", "image/bin", "empty", "volume", "out", "cas"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    support::compile_probe(&path("image/bin/probe"));
    let cas = support::Cas::serve(&path("cas"));
    // The one in the image: as small as it is in use, and static.
    let runtime = support::bin().join("scone-run");
    let bare = || Command::new(path("image/bin/probe"));
    let start = |config_id: Option<&str>, volume: &Path| {
        let mut command = Command::new(&runtime);
        command.arg("--rootfs").arg(path("image")).arg("--bind").arg(format!("{}:/.sealed/data", volume.display()));
        command.arg("/bin/probe");
        command.env("SCONE_CAS_ADDR", &cas.enclave).env("SCONE_SIM_CAS_KEY", &cas.key);
        command.env("SCONE_SIM_EVIDENCE_KEY", &cas.evidence_key);
        command.envs(config_id.map(|id| ("SCONE_CONFIG_ID", id)));
        command
    };
    let hash = || {
        let mut command = start(None, &path("empty"));
        command.env("SCONE_HASH", "1");
        command
    };
    let mrenclave = hash().output().unwrap().stdout;
    let mrenclave = String::from_utf8(mrenclave).unwrap();
    let service = |name: &str, image: &str, arguments: &str| {
        let mrenclave = mrenclave.trim();
        format!(
            "  - {{name: {name}, image_name: {image}, command: \"/bin/probe{arguments}\", pwd: /, \
             attestation: [{{mrenclave: [{mrenclave}]}}]}}\n"
        )
    };
    cas.create_session(&format!(
        "name: s\nversion: \"0.3.10\"\nservices:\n{}{}{}images:\n  - {{name: plain}}\n  \
         - {{name: with-volume, volumes: [{{name: v, path: /data}}]}}\nvolumes: [{{name: v}}]\n\
         security: {{attestation: {{mode: hardware}}}}\n",
        service("nothing", "plain", ""),
        service("volume", "with-volume", ""),
        service("write", "with-volume", " count=/data,/data/acknowledged,1"),
    ));
    println!("{:<58} {:>8} {:>8} {:>8}", "ms", "p50", "p90", "added");
    let mut before = None;
    let mut report = |what: &str, make: &dyn Fn() -> Command| {
        let mut times: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let mut command = make();
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                let start = Instant::now();
                assert!(command.status().unwrap().success(), "{what}");
                start.elapsed().as_secs_f64() * 1000.0
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let median = times[ROUNDS / 2];
        println!("{what:<58} {median:>8.2} {:>8.2} {:>8.2}", times[ROUNDS * 9 / 10], median - before.unwrap_or(median));
        before = Some(median);
    };
    report("the program alone", &bare);
    report("the runtime, measured (SCONE_HASH=1), no program", &hash);
    report("namespaces and root made, program run unprotected", &|| start(None, &path("empty")));
    report("attested by CAS, configured", &|| start(Some("s/nothing"), &path("empty")));
    report("a volume opened, nothing changed", &|| start(Some("s/volume"), &path("volume")));
    report("files changed: one sync, and one seal at the end", &|| start(Some("s/write"), &path("volume")));
    fill(&path("image/files"));
    let many = |hash: &str| {
        let mut command = Command::new(&runtime);
        command.arg("--rootfs").arg(path("image")).args(["--fs-dir", "/", "/bin/probe"]).env("SCONE_HASH", hash);
        command
    };
    // Against the same start of one file: unprotected, too.
    report("one file again: root made, program run unprotected", &|| start(None, &path("empty")));
    report("60 MB in 1,400 files measured and copied, too", &|| many("0"));
    report("60 MB in 1,400 files, measured only (SCONE_HASH=1)", &|| many("1"));
}

/// 60 MB in 1,400 files, 20 in a directory.
fn fill(directory: &Path) {
    for index in 0..1400_usize {
        let within = directory.join((index / 20).to_string());
        fs::create_dir_all(&within).unwrap();
        let content: Vec<u8> = (0..60_000_000 / 1400).map(|at| (at * 31 + index) as u8).collect();
        fs::write(within.join(index.to_string()), content).unwrap();
    }
}
