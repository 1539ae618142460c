//! `make scone-acceptance`, rehearsed: on stand-ins for `scone` and `docker` that pass on to the simulator and the real engine what the
//! scripts ask of SCONE. All that it knows of SCONE is in them; what it runs is what somebody with SGX runs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::support::image::Tag;
use crate::support::{Bundle, Outcome, Platform, User, copy, docker_is_there, repository, run, rust_script_is_there};

/// SCONE's command line, by its version; the simulator's answers.
const SCONE: &str = r#"#!/bin/sh
[ "$1" != --version ] || { echo 'scone 6.0.7'; exit; }
exec "$SIMULATOR/scone" "$@"
"#;

/// What is started as a SCONE program is started with the simulator's runtime: there is no device, CAS has two addresses, a volume is
/// sealed elsewhere than the program sees it, and something vouches for evidence.
const DOCKER: &str = r#"#!/bin/bash
docker=$SIMULATOR/../../docker
[ "$1" = run ] || exec "$docker" "$@"
shift
status=$("$SIMULATOR/scone-sim" status)
SCONE_CAS_ADDR=$(sed -n 's/^enclave: //p' <<<"$status")
SCONE_SIM_EVIDENCE_KEY=$("$SIMULATOR/scone-sim" evidence-key)
export SCONE_CAS_ADDR SCONE_SIM_EVIDENCE_KEY
args=(--read-only -e=SCONE_SIM_EVIDENCE_KEY "--mount=type=bind,src=$SIMULATOR/rootfs/scone-run,dst=/scone-run,readonly")
network=--network=host
while [ $# -gt 0 ]; do
  case "$1" in
    --network=none) network=$1 ;;
    --device=*) touch "$SIMULATOR/asked-for-a-device" ;;
    --mount=*,dst=/root/single_run | --mount=*,dst=/permit)
      path=${1##*,dst=}
      args+=("--tmpfs=$path:mode=1777" "${1%"$path"}/.sealed$path") ;;
    --entrypoint=*) entry=${1#*=} ;;
    -*) args+=("$1") ;;
    *) break ;;
  esac
  shift
done
image=$1
shift
case "$entry" in
  /entry) set -- "$1" /scone-run "${@:2}" ;;
  *) set -- "$entry" "$@"; entry=/scone-run ;;
esac
exec "$docker" run "$network" "${args[@]}" --entrypoint="$entry" "$image" "$@"
"#;

struct Rehearsal {
    bundle: Bundle,
    image: Tag,
}

impl Rehearsal {
    fn new() -> Rehearsal {
        let bundle = Bundle::new("bundle", Platform::Sim, User::Caller, true);
        fs::create_dir(bundle.root.join("bin")).expect("a directory");
        for (name, script) in [("scone", SCONE), ("docker", DOCKER)] {
            let written = bundle.root.join(name);
            fs::write(&written, script).expect("a stand-in");
            fs::set_permissions(&written, Permissions::from_mode(0o755)).expect("permissions");
            // A process that another test starts at the same time may inherit the file we wrote, open: it is then "busy".
            // A copy is not.
            copy(&written, &bundle.root.join("bin").join(name));
            fs::remove_file(written).expect("deletion");
        }
        let docker = which::which("docker").expect("docker");
        std::os::unix::fs::symlink(docker, bundle.root.join("docker")).expect("a link");
        let image = Tag::new("acceptance");
        run({
            let mut tag = bundle.command("docker");
            tag.args(["tag", "otpqr:sim", &image.0]);
            tag
        })
        .expect(0);
        Rehearsal { bundle, image }
    }

    /// With the report.
    fn make(&self, create: &str) -> (Outcome, String) {
        // The gate has a clock of its own, which is the host's: CAS's, which stands still, must not be ahead of that.
        fs::write(self.bundle.root.join("clock"), "0").expect("the clock");
        let status = self.bundle.scone_sim(["status"]).expect(0).stdout;
        let address = status.lines().find_map(|line| line.strip_prefix("client: ")).expect("CAS's address");
        let report = self.bundle.root.join("report.md");
        let mut make = self.bundle.command("make");
        let path = format!("{}:{}", self.bundle.root.join("bin").display(), std::env::var("PATH").expect("a path"));
        make.current_dir(repository()).args(["--silent", "--old-file=warm", "scone-acceptance"]);
        make.arg(format!("CAS={address}")).arg(format!("SCONE_IMAGE={}", self.image.0)).arg(format!("CREATE={create}"));
        make.arg(format!("REPORT={}", report.display()))
            .arg(format!("CLOCK={}", self.bundle.root.join("clock").display()));
        make.env("PATH", path)
            .env("SIMULATOR", self.bundle.root.join("simulator/bin"))
            .env_remove("RUST_SCRIPT_BASE_PATH");
        let outcome = run(make);
        let report = fs::read_to_string(report).unwrap_or_else(|cause| panic!("{cause}: {outcome:?}"));
        (outcome, report)
    }
}

#[test]
fn an_account_s_life_on_scone_is_rehearsed_and_its_report_says_that_it_is_a_rehearsal() {
    if !docker_is_there() || !rust_script_is_there() {
        return;
    }
    let rehearsal = Rehearsal::new();
    // Not any CAS: what is wrong ends it, and is in the report.
    let (refused, report) = rehearsal.make(&format!("--mrenclave {}", "0".repeat(64)));
    assert_ne!(refused.code, Some(0));
    assert!(report.contains("\n1 of 2 steps were as expected. Something was wrong"), "{report}");
    assert!(report.contains("| **wrong** | create.rs attests CAS"), "{report}");
    assert!(report.contains("Enclave hash does not match expectation"), "{report}");

    let (outcome, report) = rehearsal.make("--insecure-test-cas");
    let done = outcome.expect(0).stdout;
    assert!(report.starts_with("# REHEARSAL: the CAS is the simulator\n"), "{report}");
    let steps = report.matches("\n| ok |").count();
    assert!(
        report.contains(&format!("\n{steps} of {steps} steps were as expected. It went to its end.\n")),
        "{report}"
    );
    assert!(!report.contains("**wrong**") && steps > 35, "{report}");
    for (question, found) in [
        ("A code of the step before", "accepted"),
        ("A code of the step to come", "accepted"),
        ("`session read` of a session that does not exist", "exit code 2: Error: Reading session failed"),
        ("Does a session's hash cover its predecessor?", "yes"),
    ] {
        assert!(report.contains(&format!("\n| {question} | {found}")), "{question}:\n{report}");
    }
    // It tells nobody what would do harm: no secret, no code but wrong ones, not where CAS is.
    let words = |text: &str| text.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_owned).collect::<Vec<_>>();
    let is_code = |word: &str| word.len() == 6 && word.chars().all(|c| c.is_ascii_digit());
    let is_base32 = |c: char| c.is_ascii_uppercase() || ('2'..='7').contains(&c);
    let is_secret = |word: &str| word.len() == 52 && word.chars().all(is_base32);
    for text in [&report, &done] {
        let telling = words(text).into_iter().find(|word| is_code(word) || is_secret(word));
        assert!(telling.is_none() && !text.contains("127.0.0.1"), "{telling:?} in {text}");
    }
    // What the simulator has no use for was asked for all the same.
    assert!(rehearsal.bundle.root.join("simulator/bin/asked-for-a-device").exists());
}

#[test]
fn who_names_no_cas_is_told_how() {
    let mut make = std::process::Command::new("make");
    // Before anything is compiled.
    make.current_dir(repository()).args(["--silent", "scone-acceptance", "CAS="]);
    run(make).expect(2).saying("name the CAS: make scone-acceptance CAS=ADDRESS");
}
