//! `--platform scone`, pinned by fakes: programs named `scone` and `docker` that record how they were called and answer as
//! SCONE's documentation and docker say. They show what the scripts ask of SCONE, in which order, and how they take every
//! documented answer. Nothing here was ever run against a live CAS.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Outcome, all_ended, copy, is_root, repository, run, run_with_input};
use serde_yaml::Value;
use tempfile::TempDir;

mod contract;
mod programs;

use contract::Contract;

const MEASUREMENT: &str = "d08b7351eeb8d5c0653d32794218f183ac9c6fa3923b67052752f78a3559de61";
const IMAGE_ID: &str = "sha256:4e5aaaf3d0d4a5ae0d4ef8a3c2a1c5f2b6d7e8f90a1b2c3d4e5f60718293a4b5";
const SCRIPTS: [&str; 4] = ["create", "gen_qr", "add_auth", "roll_forward"];

/// Each call is a directory `calls/NNN` with its argument vector and environment as the kernel has them, the policy it was
/// given or the FIFO brought, and the account's state at that moment. A test replaces answers by `instead-of-PROGRAM`, which is sourced first.
const RECORD: &str = r#"#!/bin/bash
shopt -s nullglob
here=${0%/bin/*} program=${0##*/}
calls=("$here"/calls/*)
number=${#calls[@]}
# Another one may run at the same time.
until call=$here/calls/$(printf %03d "$number") && mkdir "$call" 2>/dev/null || [ ! -d "$here/calls" ]; do number=$((number + 1)); done
echo "$program" >"$call/program"
printf '%s\0' "$@" >"$call/args"
mapfile -d '' -t environment <"/proc/$$/environ"
printf '%s\0' "${environment[@]}" >"$call/environment"
cp "$OTPQR_ROOT/state/default.yml" "$call/state" 2>/dev/null
last=${!#}
creates=0
for each in "${calls[@]}" "$call"; do
  { read -rd '' _; read -rd '' what; } <"$each/args"
  [ "$what" != create ] || creates=$((creates + 1))
done
# As the entry of a container does.
for each; do
  case "$each" in
    '--mount=type=bind,"src='*'",dst=/environment')
      fifo=${each#'--mount=type=bind,"src='}
      fifo=${fifo%'",dst=/environment'}
      read -r SCONE_CONFIG_ID <"${fifo//'""'/'"'}"
      SCONE_CONFIG_ID=${SCONE_CONFIG_ID#SCONE_CONFIG_ID=}
      echo "$SCONE_CONFIG_ID" >"$call/config-id" ;;
  esac
done
"#;

/// What a session's file says. Whether a hash covers the predecessor is not documented.
const SESSION: &str = r#"
if [ "$1" = session ] && [ "$2" != read ]; then
  cp -p "$last" "$call/policy"
  name=$(sed -n 's/^name: "\(.*\)"$/\1/p' "$last")
  predecessor=$(sed -n 's/^predecessor: //p' "$last")
  if [ -f "$here/hashes-of-content" ]; then covered='^predecessor:'; else covered='^$'; fi
  hash=$(grep -v "$covered" "$last" | sha256sum | cut -c 1-64)
else
  name=$last
fi
"#;

/// Answers as the contract has them, or as a test does.
const ANSWER: &str = r#"
answer() {
  local namespace=${SCONE_CONFIG_ID:-$name}
  namespace=${namespace%%/*}
  local varying="s#<URL>#https://cas.example.com:8081/#g; s#<CAS>#cas.example.com#g; s#<ENCLAVE>#cas.example.com (port 18765)#g;
    s#<NAMESPACE>#$namespace#g; s#<HASH>#${hash:-@MEASUREMENT@}#g; s#<KEY>#2nTWZuJbeXgLPEE6TqR1RWaZkkBJKzVUy7t4bxHZAfSRYVhVTf#g; s#<FILE>#$last#g; s#<ID>#$SCONE_CONFIG_ID#g;
    s#<VERSION>#6.0.7 (2026-07-02 10:28:04)#g; s#<VOLUME>#/root/single_run#g"
  sed "$varying" "$here/rows/$1.err" >&2
  sed "$varying" "$here/rows/$1.out"
  return "$(cat "$here/rows/$1.exits")"
}
before_answer() { :; }
[ -f "$here/instead-of-$program" ] && . "$here/instead-of-$program"
"#;

/// A CAS that keeps hash and predecessor of each session, and the contract's answers of the command line.
const SCONE: &str = r#"
held=$here/cas/${name//\//+}
active=
[ ! -f "$held" ] || read -r active <"$held"
case "$1 $2" in
  '--version ') echo 'scone 6.0.7' ;;
  'cas attest') answer attested ;;
  'cas show-identification') answer identified ;;
  'session create')
    if [ -f "$held" ]; then
      [ "$predecessor" != '~' ] || { answer exists; exit; }
      [ "$predecessor" = "$active" ] || { answer another-predecessor; exit; }
    else
      [ "$predecessor" = '~' ] || { answer no-session-to-follow; exit; }
    fi
    printf '%s\n' "$hash" "$predecessor" >"$held"
    before_answer
    answer created ;;
  'session verify')
    [ "$hash" = "$active" ] || { answer another-version; exit; }
    answer verified ;;
  'session read')
    [ -f "$held" ] || { answer gone; exit; }
    printf 'version: "0.3.10"\nname: %s\npredecessor: %s\n' "$name" "$(sed -n '2s/~/null/; 2p' "$held")" ;;
  *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"#;

/// An engine with one image, whose program measures itself, checks, or writes a QR code.
const DOCKER: &str = r#"
case " $* " in
  ' info '*) echo '{"SecurityOptions":["name=seccomp,profile=default"]}' ;;
  ' image inspect '*) echo @IMAGE_ID@ ;;
  ' ps '*) ;;
  ' run '*' -e=SCONE_HASH '*) answer measured ;;
  ' run '*)
    for arg; do
      case "$arg" in
        '--mount=type=bind,"src='*'",dst=/out')
          out=${arg#'--mount=type=bind,"src='}
          out=${out%'",dst=/out'}
          out=${out//'""'/'"'} ;;
      esac
    done
    case "$SCONE_CONFIG_ID" in
      */check) ;;
      *) umask 077 && printf '<svg xmlns="http://www.w3.org/2000/svg"></svg>\n' >"$out/qrcode.svg" ;;
    esac ;;
  *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"#;

/// A host with SCONE's tools: a root with nothing but the templates, a working directory, and the fakes first on `PATH`.
struct Host {
    home: TempDir,
}

/// What a fake recorded.
#[derive(Debug)]
struct Call {
    program: String,
    args: Vec<String>,
    environment: BTreeMap<String, String>,
    policy: Option<(Value, u32)>,
    /// What came through the FIFO.
    config_id: Option<String>,
    /// The account's state when it was called.
    state: Option<Value>,
}

impl Host {
    fn new() -> Host {
        let host = Host { home: tempfile::Builder::new().prefix("otpqr-").tempdir().unwrap() };
        for directory in ["bin", "calls", "cas", "desk", "tmp"] {
            fs::create_dir(host.home.path().join(directory)).unwrap();
        }
        fs::create_dir(host.root()).unwrap();
        copy(&repository().join("templates"), &host.root().join("templates"));
        Contract::read().write(&host.home.path().join("rows"));
        for (program, answers) in [("scone", SCONE), ("docker", DOCKER)] {
            let written = host.home.path().join(program);
            let fake = format!("{RECORD}{SESSION}{ANSWER}{answers}")
                .replace("@IMAGE_ID@", IMAGE_ID)
                .replace("@MEASUREMENT@", MEASUREMENT);
            fs::write(&written, fake).unwrap();
            fs::set_permissions(&written, Permissions::from_mode(0o755)).unwrap();
            // A process that another test starts at the same time may inherit the file we wrote, open: it is then "busy".
            // A copy is not.
            copy(&written, &host.home.path().join("bin").join(program));
        }
        host
    }

    /// A host with an account, and nothing recorded.
    fn with_account() -> Host {
        Host::new().having_account()
    }

    fn having_account(self) -> Host {
        self.create().expect(0);
        self.forget();
        self
    }

    /// One for each kind of CAS: whose hashes cover the predecessor, and whose hashes are of the content alone.
    fn of_each_cas() -> [Host; 2] {
        let hosts = [Host::new(), Host::new()];
        fs::write(hosts[1].home.path().join("hashes-of-content"), "").unwrap();
        hosts
    }

    /// What somebody who has the identity key does: uploads this in the place of the active version.
    fn upload_by_hand(&self, session: &str, policy: &str) {
        let active = fs::read_to_string(self.held(session)).unwrap();
        let predecessor = format!("\npredecessor: {}\n", active.lines().next().unwrap());
        let file = self.home.path().join("by-hand.yml");
        fs::write(&file, policy.replace("\npredecessor: ~\n", &predecessor)).unwrap();
        let mut upload = Command::new(self.home.path().join("bin/scone"));
        upload.args(["session", "create"]).arg(file).env("OTPQR_ROOT", self.root());
        run(upload).expect(0);
    }

    /// Where the fake keeps what it holds of a session.
    fn held(&self, session: &str) -> PathBuf {
        self.home.path().join("cas").join(format!("{}{session}", self.known("namespace")).replace('/', "+"))
    }

    fn root(&self) -> PathBuf {
        self.home.path().join("it's a \"bundle\", really")
    }

    /// Where the user works.
    fn desk(&self) -> PathBuf {
        self.home.path().join("desk")
    }

    fn command(&self, script: &str, args: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_create")).with_file_name(script));
        let home = self.home.path();
        let path = [home.join("bin").as_os_str(), &std::env::var_os("PATH").unwrap()].join(OsStr::new(":"));
        command.args(args).current_dir(self.desk()).stdin(std::process::Stdio::null());
        command.env("PATH", path).env("HOME", home).env("TMPDIR", home.join("tmp"));
        command
            .env("OTPQR_ROOT", self.root())
            .env("LOGNAME", "alice")
            .env("RUST_SCRIPT_BASE_PATH", self.root().join("scripts"));
        // Variables that a careless caller has set must reach neither tool.
        command.env("SCONE_CONFIG_ID", "somebody/else@000000");
        command
    }

    fn script(&self, script: &str, args: &[&str]) -> Outcome {
        run(self.command(script, args))
    }

    fn create(&self) -> Outcome {
        self.script("create", &["--cas", "cas.example.com"])
    }

    fn add_auth(&self, code: &str) -> Outcome {
        run_with_input(self.command("add_auth", &["--no-confirm", "--otp-file", "-"]), code)
    }

    /// Makes a fake run this first; an `exit` in it is the fake's answer.
    fn instead_of(&self, program: &str, shell: &str) {
        fs::write(self.home.path().join(format!("instead-of-{program}")), shell).unwrap();
    }

    /// Makes the program end like this when it is started as a service whose id matches the shell pattern.
    fn program_ends(&self, service: &str, stderr: &str, code: i32) {
        fs::write(self.home.path().join("words"), stderr).unwrap();
        self.instead_of(
            "docker",
            &format!(
                "case \"$1 $SCONE_CONFIG_ID\" in 'run '{service})\n\
                 sed \"s#@ID@#$SCONE_CONFIG_ID#\" \"$here/words\" >&2; exit {code} ;; esac"
            ),
        );
    }

    /// Undoes [`Host::instead_of`].
    fn as_documented(&self, program: &str) {
        fs::remove_file(self.home.path().join(format!("instead-of-{program}"))).unwrap();
    }

    fn calls(&self) -> Vec<Call> {
        let entries = fs::read_dir(self.home.path().join("calls")).unwrap();
        let mut calls: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        calls.sort();
        calls.iter().map(|path| Call::read(path)).collect()
    }

    fn forget(&self) {
        let calls = self.home.path().join("calls");
        fs::remove_dir_all(&calls).unwrap();
        fs::create_dir(calls).unwrap();
    }

    fn state_file(&self) -> PathBuf {
        self.root().join("state/default.yml")
    }

    fn state(&self) -> Value {
        serde_yaml::from_slice(&fs::read(self.state_file()).unwrap()).unwrap()
    }

    fn known(&self, key: &str) -> String {
        text(&self.state()[key])
    }

    fn qr_code(&self) -> PathBuf {
        self.desk().join("qrcode.svg")
    }

    /// The names in a directory.
    fn names(&self, directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    }

    /// Asserts that no account was begun.
    #[track_caller]
    fn is_untouched(&self) {
        assert_eq!(self.names(&self.root()), ["templates"]);
        assert_eq!(self.names(&self.home.path().join("cas")), [""; 0]);
        self.has_clean_desk();
    }

    /// Asserts that no output, no directory for it and no rendered policy is left behind.
    #[track_caller]
    fn has_clean_desk(&self) {
        assert_eq!(self.names(&self.desk()), [""; 0]);
        assert_eq!(self.names(&self.home.path().join("tmp")), [""; 0]);
    }
}

impl Call {
    fn read(path: &Path) -> Call {
        let file = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        let parse = |name: &str| {
            let text = fs::read_to_string(path.join(name)).ok()?;
            Some(serde_yaml::from_str(&text).unwrap_or_else(|cause| panic!("{name}: {cause}\n{text}")))
        };
        let variable = |entry: &str| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mode = |path: PathBuf| path.metadata().unwrap().permissions().mode() & 0o777;
        Call {
            program: file("program").trim().to_owned(),
            args: file("args").split_terminator('\0').map(str::to_owned).collect(),
            environment: file("environment").split_terminator('\0').filter_map(variable).collect(),
            policy: parse("policy").map(|policy| (policy, mode(path.join("policy")))),
            config_id: fs::read_to_string(path.join("config-id")).ok().map(|id| id.trim_end().to_owned()),
            state: parse("state"),
        }
    }

    /// `scone session create`, `docker run`.
    fn what(&self) -> String {
        let words = if self.program == "docker" { 1 } else { 2 };
        let words = self.args.iter().take(words);
        words.fold(self.program.clone(), |what, word| format!("{what} {word}"))
    }

    fn has(&self, arg: &str) -> bool {
        self.args.iter().any(|found| found == arg)
    }

    #[track_caller]
    fn policy(&self) -> &Value {
        &self.policy.as_ref().expect("a call with a policy").0
    }
}

/// What was called, in order.
fn order(calls: &[Call]) -> Vec<String> {
    calls.iter().map(Call::what).collect()
}

/// The calls that change what CAS holds.
fn uploads(calls: Vec<Call>) -> Vec<Call> {
    calls.into_iter().filter(|call| call.what() == "scone session create").collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "~".to_owned(),
        other => serde_yaml::to_string(other).unwrap().trim().to_owned(),
    }
}

/// The names in a list of a policy.
fn names(list: &Value) -> Vec<String> {
    list.as_sequence().unwrap().iter().map(|item| text(&item["name"])).collect()
}

/// The frame in which SCONE's runtime says why it did not start, with the lines some versions add. `@ID@` is the
/// `SCONE_CONFIG_ID` it was started with.
fn frame(lines: &[&str]) -> String {
    let frame = "[SCONE|FATAL] src/process/init.c:302:__scone_prepare_secure_config(): Could not initialize enclave state: Attestation failed\n";
    let causes: String = lines.iter().map(|line| format!("  Caused by: {line}\n")).collect();
    format!("{frame}{causes}{NOTE}{ABORTED}")
}

const NOTE: &str = "Note: Connecting to CAS at cas.example.com (port 18765) using service ID @ID@\n";
const ABORTED: &str = "[SCONE|ERROR] tools/starter/signal.c:70:die_by_signal(): Enclave terminated due to signal: Aborted\nAborted (core dumped)\n";

// --- Which platform, which CAS

#[test]
fn without_scone_on_the_path_nothing_is_created_and_the_simulator_is_only_named() {
    let host = Host::new();
    let only_docker = host.home.path().join("only-docker");
    fs::create_dir(&only_docker).unwrap();
    fs::write(only_docker.join("docker"), "#!/bin/sh\necho \"no such image: $*\" >&2\nexit 1\n").unwrap();
    fs::set_permissions(only_docker.join("docker"), Permissions::from_mode(0o755)).unwrap();
    for args in [&["--cas", "cas.example.com"][..], &["--platform", "scone", "--cas", "cas.example.com"]] {
        let mut create = host.command("create", args);
        create.env("PATH", &only_docker);
        let refused = run(create).expect(3).saying("'scone'").saying("create.rs' --platform sim ");
        refused.saying(
            "hint: docker pull registry.scontain.com/sconecuratedimages/sconecli   # or name the program: --scone PATH",
        );
    }
    host.is_untouched();
    assert_eq!(order(&host.calls()), [""; 0]);
}

/// The command line that is named, then the one on the path, then the one in an image that docker has. Nothing is fetched unasked.
#[test]
fn scone_s_command_line_is_the_named_one_or_on_the_path_or_in_its_image() {
    let host = Host::new();
    let elsewhere = host.home.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::rename(host.home.path().join("bin/scone"), elsewhere.join("scone")).unwrap();
    let scone = elsewhere.join("scone").display().to_string();
    // The fake looks for its answers beside the directory that it is in.
    let fake = format!("#!/bin/sh\nexec bash -c '. \"{scone}\"' {}/bin/scone \"$@\"\n", host.home.path().display());
    let named = elsewhere.join("named");
    fs::write(&named, fake).unwrap();
    fs::set_permissions(&named, Permissions::from_mode(0o755)).unwrap();
    let create = |args: &[&str], variable: &str| {
        let mut create = host.command("create", &[&["--cas", "cas.example.com"], args].concat());
        create.env("SCONE", variable);
        run(create)
    };
    for (args, variable, by) in [
        (&["--scone", "no-such"][..], "", "'--scone'"),
        (&[], "no-such", "the variable SCONE"),
        (&["--scone", "/"], "", "'--scone'"),
    ] {
        let named = if args == ["--scone", "/"] { "/" } else { "no-such" };
        let message = format!("there is no program '{named}', which {by} names as SCONE's command line");
        create(args, variable).expect(2).saying(&message);
    }
    host.is_untouched();
    let named = named.to_str().unwrap();
    create(&["--scone", named], "no-such").expect(0);
    // What is pasted names it, too.
    let next = create(&["--scone", named], "").expect(0).stdout;
    assert!(next.contains(&format!("gen_qr.rs' --scone '{named}'")), "{next}");
    create(&[], named).expect(0);

    // In an image: its identity and the policy are all that it sees of the host, and no terminal spoils what it prints.
    let host = Host::new();
    fs::remove_file(host.home.path().join("bin/scone")).unwrap();
    let image = "sha256:5555555555555555555555555555555555555555555555555555555555555555";
    host.instead_of(
        "docker",
        &format!(
            r#"case " $* " in
  ' image inspect '*' registry.scontain.com/sconecuratedimages/sconecli ') echo {image}; exit ;;
  ' run '*' --entrypoint=scone {image} '*) while [ "$1" != {image} ]; do shift; done; shift; last=${{!#}}; {SESSION}{SCONE} exit ;;
esac"#
        ),
    );
    host.create().expect(0);
    let calls = host.calls();
    let cli: Vec<&Call> = calls.iter().filter(|call| call.has("--entrypoint=scone")).collect();
    let user = format!("{}:{}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let identity = host.home.path().join(".cas");
    let before = [
        "run".to_owned(),
        "--rm".to_owned(),
        "--log-driver=none".to_owned(),
        "--cap-drop=ALL".to_owned(),
        "--security-opt=no-new-privileges".to_owned(),
        "-e=SCONE_MODE=auto".to_owned(),
        "-e=SCONE_PRODUCTION=0".to_owned(),
        "-e=SCONE_NO_TIME_THREAD=1".to_owned(),
        "-e=SCONE_CLI_CONFIG=/identity/config.json".to_owned(),
        "--userns=host".to_owned(),
        format!("--user={user}"),
        format!("--mount=type=bind,\"src={}\",dst=/identity", identity.display()),
    ];
    for call in &cli {
        assert_eq!(call.args[..before.len()], before);
        let rest = &call.args[before.len()..];
        let of_file = rest.iter().filter(|arg| arg.starts_with("--mount=")).collect::<Vec<_>>();
        match rest.last().filter(|last| last.ends_with(".yml")) {
            Some(file) => assert_eq!(of_file, [&format!("--mount=type=bind,\"src={file}\",dst={file},readonly")]),
            None => assert!(of_file.is_empty(), "{rest:?}"),
        }
        assert!(!rest.iter().any(|arg| arg.contains("docker.sock") || ["-i", "-t", "-it"].contains(&arg.as_str())));
    }
    assert_eq!(cli.len(), 6, "version, attestation, key, three policies");
    let mut create = host.command("create", &[]);
    create.env("SCONE_CLI_CONFIG", host.home.path().join("config.json"));
    run(create).expect(3).saying("is no directory of its own for the identity of SCONE's command line");
    assert_eq!(fs::metadata(&identity).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_scone_that_nobody_supports_any_more_is_named_and_colours_of_old_ones_are_taken_away() {
    let host = Host::new();
    assert!(!host.create().expect(0).stderr.contains("out of support"));
    host.instead_of("scone", "[ \"$1\" != --version ] || { echo 'scone 5.9.0'; exit; }");
    host.create().expect(0).saying("'scone 5.9.0' is out of support since 2025-10-31");
    // Before 6.0.3.
    let host = Host::new();
    host.instead_of("scone", r#"before_answer() { printf '\033[32m%s\033[0m\n' "$hash"; exit; }"#);
    host.create().expect(0);
    assert_eq!(host.known("reset_hash").len(), 64);
}

#[test]
fn without_docker_on_the_path_nothing_is_created() {
    let host = Host::new();
    let bin = host.home.path().join("only-scone");
    fs::create_dir(&bin).unwrap();
    for tool in ["bash", "grep", "wc", "mkdir", "cat", "cp", "sed", "sha256sum", "cut"] {
        symlink(which::which(tool).unwrap(), bin.join(tool)).unwrap();
    }
    copy(&host.home.path().join("bin/scone"), &bin.join("scone"));
    let mut create = host.command("create", &["--cas", "cas.example.com"]);
    create.env("PATH", &bin);
    run(create).expect(3).saying("'docker'").saying("hint: apt-get install docker.io");
    host.is_untouched();
}

#[test]
fn a_scone_that_is_the_simulator_gets_no_policy_meant_for_scone_nor_the_other_way_round() {
    let host = Host::with_account();
    host.instead_of("scone", "[ \"$1\" != --version ] || { echo 'scone-sim 0.1.0'; exit; }");
    for (script, args) in [("gen_qr", &["--no-confirm"][..]), ("roll_forward", &["--yes"]), ("create", &[])] {
        host.script(script, args).expect(3).saying("'scone-sim 0.1.0'").saying("'scone'");
    }
    host.add_auth("493817").expect(3).saying("'scone-sim 0.1.0'");
    assert!(order(&host.calls()).iter().all(|call| call == "scone --version"));

    let host = Host::new();
    host.script("create", &["--platform", "sim"]).expect(3).saying("'scone 6.0.7'").saying("'sim'");
    host.is_untouched();
}

#[test]
fn the_cas_must_be_named() {
    let host = Host::new();
    host.script("create", &[]).expect(2).saying("--cas");
    host.is_untouched();
    assert!(!host.calls().iter().any(|call| call.args[0] == "session"));
}

#[test]
fn what_a_tool_would_take_for_an_option_or_a_file_of_arguments_is_a_usage_error() {
    let host = Host::new();
    for name in ["-debug", "--help", "@arguments", ""] {
        host.script("create", &["--cas", "cas.example.com", &format!("--image={name}")]).expect(2);
        host.script("create", &[&format!("--cas={name}")]).expect(2);
    }
    for cas in ["cas.example.com --only_for_testing-trust-any", "a@b", "a/b", "a\nb"] {
        host.script("create", &[&format!("--cas={cas}")]).expect(2);
    }
    for account in ["../default", "a/b", "@a", ""] {
        for script in SCRIPTS {
            host.script(script, &[&format!("--account={account}")]).expect(2);
        }
    }
    // What a person would not see, or see elsewhere than it is, and what no policy can hold.
    let deceiving = ["\u{202e}ecila", "a\u{200b}", "a\u{2066}b", "\u{feff}a", "a\u{2028}b", "a\u{e0041}", "a\u{ad}b"];
    let impossible = ["a\u{ffff}", "a\u{fffe}b", "a\u{1fffe}", "a\u{fdd0}"];
    for label in ["a:b", "$HOME", "", " alice", "a\nb"].into_iter().chain(deceiving).chain(impossible) {
        host.script("create", &["--cas=cas.example.com", &format!("--issuer={label}")]).expect(2);
        host.script("create", &["--cas=cas.example.com", &format!("--login={label}")]).expect(2);
    }
    host.is_untouched();
    assert_eq!(order(&host.calls()), [""; 0]);
}

#[test]
fn a_cas_that_cannot_be_attested_gets_nothing() {
    let host = Host::new();
    host.instead_of(
        "scone",
        "[ \"$2\" != attest ] || { printf '%s\\n' 'Error: Error during attestation of CAS' \
         'Caused by: Enclave hash does not match expectation: 3061b9feb7fa67f3815336a085f629a13f04b0a1667c93b14ff35581dc8271e4' >&2; exit 1; }",
    );
    host.create().expect(3).saying("'cas.example.com'").saying("Enclave hash does not match expectation");
    host.is_untouched();
    assert!(!host.calls().iter().any(|call| call.args[0] == "session"));

    host.instead_of("scone", "[ \"$2\" != show-identification ] || exit 0");
    host.create().expect(3).saying("'cas.example.com'");
    host.is_untouched();
    assert!(!host.calls().iter().any(|call| call.args[0] == "session"));
}

#[test]
fn a_cas_with_another_key_than_the_pinned_one_gets_nothing() {
    let host = Host::with_account();
    let before = fs::read(host.state_file()).unwrap();
    host.instead_of("scone", "[ \"$2\" != show-identification ] || { echo another; exit; }");
    host.create().expect(3).saying("not the one this account was created on");
    assert!(!host.calls().iter().any(|call| call.args[0] == "session"));
    assert_eq!(fs::read(host.state_file()).unwrap(), before);
}

// --- create

#[test]
fn an_account_is_created_by_three_uploads_each_recorded_before_the_next() {
    let host = Host::new();
    let created = host.create().expect(0);
    assert!(created.stdout.starts_with("created: account 'default' of 'alice' at 'SCONE OTP'"), "{}", created.stdout);
    let calls = host.calls();
    let create = "scone session create";
    assert_eq!(
        order(&calls).into_iter().filter(|call| call != "scone session verify").collect::<Vec<_>>(),
        [
            "scone --version",
            "docker info",
            "docker image",
            "docker run",
            "scone cas attest",
            "scone cas show-identification",
            create,
            create,
            create
        ]
    );
    let attest = calls.iter().find(|call| call.has("attest")).unwrap();
    assert_eq!(attest.args, ["cas", "attest", "cas.example.com"]);

    let measure = calls.iter().find(|call| call.what() == "docker run").unwrap();
    assert_eq!(measure.environment["SCONE_HASH"], "1");
    assert!(measure.has("--log-driver=none") && measure.has("--network=none") && measure.has("--rm"));
    assert_eq!(measure.args[measure.args.len() - 2..], ["--entrypoint=/bin/otpqr", IMAGE_ID]);
    // The caller's variables reach nobody.
    assert!(calls.iter().all(|call| !call.environment.contains_key("SCONE_CONFIG_ID")));

    let uploads = uploads(calls);
    let namespace = host.known("namespace");
    let sessions = [namespace.clone(), format!("{namespace}/otpqr"), format!("{namespace}/otpqr-reset")];
    let hashes = ["namespace_hash", "otpqr_hash", "reset_hash"];
    for (number, call) in uploads.iter().enumerate() {
        let (policy, mode) = call.policy.as_ref().unwrap();
        assert_eq!(text(&policy["name"]), sessions[number]);
        assert_eq!(policy["predecessor"], Value::Null);
        assert_eq!(*mode, 0o600);
        assert_eq!(call.args[2], "--cas=cas.example.com");
        assert!(!Path::new(&call.args[3]).exists(), "the rendered policy is removed");
        let state = call.state.as_ref().expect("the state is there before the first upload");
        assert_eq!(text(&state["namespace"]), namespace);
        for (earlier, key) in hashes.iter().enumerate() {
            assert_eq!(state[*key] != Value::Null, earlier < number, "{key} before upload {number}");
        }
    }
    for (session, key) in sessions.iter().zip(hashes) {
        let held = fs::read_to_string(host.home.path().join("cas").join(session.replace('/', "+"))).unwrap();
        assert_eq!(held, format!("{}\n~\n", host.known(key)));
    }
    assert_eq!((host.known("mrenclave").as_str(), host.known("image_id").as_str()), (MEASUREMENT, IMAGE_ID));
    assert_eq!(host.state_file().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    host.has_clean_desk();
}

#[test]
fn the_policies_demand_the_measured_program_and_a_code_where_one_is_due() {
    let host = Host::new();
    host.script("create", &["--cas=cas.example.com", "--issuer=O'Neil & \"Co\" #1", "--login=alice\\n"]).expect(0);
    let uploads = uploads(host.calls());
    let [namespace, otpqr, reset] = [0, 1, 2].map(|number| uploads[number].policy());
    assert_eq!(namespace["services"], Value::Null);
    for policy in [otpqr, reset] {
        assert_eq!(text(&policy["version"]), "0.3.10");
        assert_eq!(text(&policy["security"]["attestation"]["mode"]), "hardware");
        for service in policy["services"].as_sequence().unwrap() {
            assert_eq!(text(&service["attestation"][0]["mrenclave"][0]), MEASUREMENT);
        }
        let environment = &policy["services"][0]["environment"];
        assert_eq!(text(&environment["OTP_ACCOUNT_NAME"]), "O'Neil & \"Co\" #1");
        assert_eq!(text(&environment["OTP_ACCOUNT_LOGIN"]), "alice\\n");
        assert_eq!(text(&environment["OTP_SECRET"]), "$$SCONE::otp_secret_1:base32nopad$$");
    }
    assert_eq!(names(&otpqr["services"]), ["otpqr", "check"]);
    assert_eq!(otpqr["services"][0]["environment"]["OTP_RESET"], Value::Null);
    assert_eq!(otpqr["services"][1]["environment"]["OTP_SECRET"], Value::Null);
    assert_eq!(otpqr["security"]["attestation"]["one_time_password_shared_secret"], Value::Null);

    assert_eq!(names(&reset["services"]), ["otpqr", "confirm"]);
    assert_eq!(reset["services"][1]["environment"], Value::Null, "a confirmation is given nothing");
    assert_eq!(reset["services"][1]["image_name"], Value::Null, "nor a volume");
    assert_eq!(text(&reset["services"][0]["environment"]["OTP_RESET"]), "TRUE");
    let demanded = &reset["security"]["attestation"]["one_time_password_shared_secret"];
    assert_eq!(text(demanded), "$$SCONE::otp_secret_1:base32nopad$$");
}

#[test]
fn a_second_run_verifies_and_uploads_nothing() {
    for host in Host::of_each_cas().map(Host::having_account) {
        let before = fs::read(host.state_file()).unwrap();
        let again = host.script("create", &[]).expect(0);
        assert!(again.stdout.starts_with("already created: "), "{}", again.stdout);
        let calls = host.calls();
        for asked in ["scone session read", "scone session verify"] {
            assert_eq!(calls.iter().filter(|call| call.what() == asked).count(), 3);
        }
        // It is pinned.
        assert!(!calls.iter().any(|call| call.has("attest")));
        assert_eq!(uploads(calls).len(), 0);
        assert_eq!(fs::read(host.state_file()).unwrap(), before);
    }
}

/// The options of `scone cas attest` that a script was run with, but for the address.
fn attested(host: &Host) -> Option<Vec<String>> {
    let calls = host.calls();
    let attest = calls.iter().find(|call| call.has("attest"))?;
    assert_eq!(attest.args[..3], ["cas", "attest", "cas.example.com"]);
    Some(attest.args[3..].to_vec())
}

#[test]
fn cas_is_attested_as_it_was_asked_for_and_anew_only_if_that_changes_or_it_is_not_pinned() {
    let (one, other) = (MEASUREMENT, "0".repeat(64));
    for (bad, why) in [
        (&["--mrenclave", "abc"][..], "64 hex digits"),
        (&["--mrsigner", &one.to_uppercase()], "64 hex digits"),
        (&["--isvsvn", "2"], "--mrsigner"),
        (&["--mrsigner", one, "--isvsvn", "2"], "--isvprodid"),
        (&["--mrsigner", one, "--isvprodid", "65536", "--isvsvn", "0"], "65536"),
        (&["--only_for_testing-debug"], "unexpected argument"),
    ] {
        let host = Host::new();
        host.script("create", &[&["--cas", "cas.example.com"], bad].concat()).expect(2).saying(why);
        assert_eq!(order(&host.calls()), [""; 0]);
    }

    let (mrenclave, mrsigner) = (format!("--mrenclave={one}"), format!("--mrsigner={one}"));
    let [accept_c, accept_g, accept_s] =
        ["configuration-needed", "group-out-of-date", "sw-hardening-needed"].map(|what| format!("--accept-{what}"));
    let [debug, ignore, any] = ["debug", "ignore-signer", "trust-any"].map(|what| format!("--only_for_testing-{what}"));
    for (asked, told) in [
        (&[][..], &[][..]),
        // In production.
        (&["-CS", "--mrenclave", one], &[&accept_c, &accept_s, &mrenclave]),
        (
            &["-CS", "--mrsigner", one, "--isvprodid", "41316", "--isvsvn", "5"],
            &[&accept_c, &accept_s, &mrsigner, &"--isvprodid=41316".to_owned(), &"--isvsvn=5".to_owned()],
        ),
        // SCONE's public ones.
        (&["-GCS", "--insecure-test-cas"], &[&accept_c, &accept_g, &accept_s, &debug, &ignore, &any]),
        (
            &["-GCS", "--insecure-test-cas", "--mrenclave", one],
            &[&accept_c, &accept_g, &accept_s, &mrenclave, &debug, &ignore],
        ),
        (
            &["--insecure-test-cas", "--mrsigner", one, "--isvprodid", "0", "--isvsvn", "1"],
            &[&mrsigner, &"--isvprodid=0".to_owned(), &"--isvsvn=1".to_owned(), &debug],
        ),
    ] {
        let host = Host::new();
        let created = host.script("create", &[&["--cas", "cas.example.com"], asked].concat()).expect(0);
        assert_eq!(attested(&host).unwrap().iter().collect::<Vec<_>>(), told, "{asked:?}");
        let is_test = asked.contains(&"--insecure-test-cas");
        let loud = "whoever runs it can read every";
        assert_eq!((created.stderr.contains(loud), created.stdout.contains("whoever runs it")), (is_test, is_test));

        // It is pinned: neither the same nor nothing attests it anew.
        for again in [&[][..], asked] {
            host.forget();
            host.script("create", again).expect(0);
            assert_eq!(attested(&host), None, "{again:?}");
        }
        let started = host.script("gen_qr", &["--no-confirm"]).expect(0);
        assert_eq!(started.stderr.contains(loud), is_test, "{}", started.stderr);
        assert_eq!(host.script("doctor", &[]).stdout.contains("wrong CAS "), is_test);

        // The command line lost its pin: attested as it was, and by the key that the account knows.
        host.forget();
        let lost = host.home.path().join("lost");
        fs::write(&lost, "").unwrap();
        host.instead_of(
            "scone",
            &format!(
                "[ \"$2\" != attest ] || rm '{0}'; [ \"$2\" != show-identification ] || [ ! -f '{0}' ] || exit 1",
                lost.display()
            ),
        );
        host.script("create", &[]).expect(0);
        let by_key =
            told.iter().map(|word| (*word).clone()).chain(["-c".to_owned(), text(&host.state()["cas"]["key"])]);
        assert_eq!(attested(&host).unwrap(), by_key.collect::<Vec<_>>());
        host.instead_of("scone", "");

        // Otherwise: anew, and recorded.
        host.forget();
        host.script("create", &["--mrenclave", &other]).expect(0);
        assert_eq!(attested(&host).unwrap()[0], format!("--mrenclave={other}"));
        let attestation = &host.state()["attestation"];
        assert_eq!(
            (text(&attestation["mrenclave"][0]), attestation["insecure_test_cas"].as_bool()),
            (other.clone(), Some(false))
        );
    }
}

#[test]
fn what_weakens_is_said_in_each_run_and_by_doctor() {
    for (options, words) in [
        (&["--insecure-test-cas"][..], "whoever runs it can read every secret in it"),
        (&["-G"], "SCONE calls that dangerous"),
        (&["--allow-cas-owner-secret-access"], "CAS's owner may read every secret in it"),
        (&["--tolerate", "debug-mode"], "everything in such an enclave can be read"),
    ] {
        let host = Host::new();
        host.script("create", &[&["--cas", "cas.example.com"], options].concat()).expect(0).saying(words);
        host.script("create", &[]).expect(0).saying(words);
        host.script("gen_qr", &["--no-confirm"]).expect(0).saying(words);
        let report = host.script("doctor", &[]).stdout;
        assert!(
            report
                .lines()
                .any(|line| line.starts_with("wrong ") && (line.contains("can read") || line.contains(words))),
            "{report}"
        );
    }
    // What does not weaken is not said.
    let host = Host::new();
    let production = ["--cas", "cas.example.com", "-CS", "--mrenclave", MEASUREMENT];
    let created = host.script("create", &production).expect(0);
    assert!(!created.stderr.contains("read") && !created.stderr.contains("dangerous"), "{created:?}");
    assert!(
        created
            .stdout
            .contains("\n  attested   --accept-configuration-needed --accept-sw-hardening-needed --mrenclave=")
    );
    let anew = host.script("create", &["--mrenclave", &"0".repeat(64)]).expect(0);
    anew.saying("attesting CAS anew: --mrenclave=000").saying("in the place of: --accept-configuration-needed");
}

#[test]
fn programs_find_cas_and_las_in_the_network_that_was_named() {
    let started = |host: &Host| -> Vec<Option<String>> {
        let runs = host.calls().into_iter().filter(|call| call.what() == "docker run");
        runs.map(|call| call.args.iter().find(|arg| arg.starts_with("--network")).cloned()).collect()
    };
    let host = Host::new();
    for bad in ["", "none", "-a", "a b", "container:x"] {
        host.script("create", &["--cas", "cas.example.com", &format!("--network={bad}")]).expect(2);
    }
    host.script("create", &["--cas", "cas.example.com", "--network", "scone"]).expect(0);
    host.script("create", &[]).expect(0);
    // What is measured sees no network.
    assert_eq!(started(&host), [Some("--network=none".to_owned()), Some("--network=none".to_owned())]);
    host.forget();
    host.script("gen_qr", &["--no-confirm"]).expect(0);
    assert_eq!(started(&host), [Some("--network=scone".to_owned())]);
    host.script("create", &["--network", "other"]).expect(0);
    assert_eq!(text(&host.state()["cas"]["network"]), "other");
    let host = Host::with_account();
    host.script("gen_qr", &["--no-confirm"]).expect(0);
    assert_eq!(started(&host), [None]);
}

/// The command line speaks to port 8081 of CAS, programs to 18765, and they may see it under different names.
#[test]
fn programs_are_told_the_host_alone_or_what_was_said_of_them() {
    let told = |host: &Host| {
        host.script("gen_qr", &["--no-confirm"]).expect(0);
        let calls = host.calls();
        fs::remove_file(host.qr_code()).unwrap();
        host.forget();
        calls.iter().rfind(|call| call.what() == "docker run").unwrap().environment["SCONE_CAS_ADDR"].clone()
    };
    let host = Host::new();
    host.script("create", &["--cas", "cas.example.com:8081"]).expect(0);
    assert_eq!(told(&host), "cas.example.com");
    let uploads = uploads(host.calls());
    assert!(uploads.iter().all(|call| call.has("--cas=cas.example.com:8081")));
    host.script("create", &["--programs-cas", "cas.hello-scone", "--network", "scone"]).expect(0);
    assert_eq!(told(&host), "cas.hello-scone");
    // That stays, also on a CAS that was wiped.
    for session in host.names(&host.home.path().join("cas")) {
        fs::remove_file(host.home.path().join("cas").join(session)).unwrap();
    }
    host.script("roll_forward", &["--cas-wiped", "--yes"]).expect(0);
    assert_eq!(told(&host), "cas.hello-scone");
    assert_eq!(text(&host.state()["cas"]["network"]), "scone");
}

#[test]
fn what_is_tolerated_is_in_every_policy_with_services_recorded_and_loud() {
    let host = Host::new();
    for (bad, why) in [
        (["--tolerate", "everything"], "must be one of debug-mode, hyperthreading"),
        (["--ignore-advisory", "*"], "INTEL-SA- and five digits"),
        (["--ignore-advisory", "INTEL-SA-161"], "INTEL-SA- and five digits"),
    ] {
        host.script("create", &[&["--cas", "cas.example.com"], &bad[..]].concat()).expect(2).saying(why);
    }
    let tolerate =
        ["--tolerate", "outdated-tcb", "--tolerate", "hyperthreading", "--ignore-advisory", "INTEL-SA-00161"];
    let created = host.script("create", &[&["--cas", "cas.example.com"], &tolerate[..]].concat()).expect(0);
    assert!(created.stdout.contains("\n  tolerated  hyperthreading, outdated-tcb, INTEL-SA-00161\n"), "{created:?}");
    let of = |uploads: Vec<Call>| -> Vec<String> {
        let attestation = |call: &Call| call.policy()["security"]["attestation"].clone();
        uploads
            .iter()
            .map(|call| {
                let attestation = attestation(call);
                format!("{:?} {:?}", attestation["tolerate"], attestation["ignore_advisories"])
            })
            .collect()
    };
    let uploaded = of(uploads(host.calls()));
    assert_eq!(uploaded.len(), 3);
    assert_eq!(uploaded[0], "Null Null", "the namespace has no services");
    for policy in &uploaded[1..] {
        assert!(
            policy.contains("hyperthreading") && policy.contains("outdated-tcb") && policy.contains("INTEL-SA-00161")
        );
    }
    let report = host.script("doctor", &[]).stdout;
    assert!(report.contains("ok    policies  they tolerate: hyperthreading, outdated-tcb, INTEL-SA-00161"), "{report}");

    // Nothing given: it stays. Given anew: replaced. 'none': taken back.
    host.forget();
    host.script("create", &[]).expect(0);
    assert_eq!(uploads(host.calls()).len(), 0);
    host.script("create", &["--tolerate", "debug-mode"]).expect(0);
    let report = host.script("doctor", &[]).stdout;
    assert!(report.contains("wrong policies  they tolerate: debug-mode, INTEL-SA-00161"), "{report}");
    host.forget();
    let none = host.script("create", &["--tolerate", "none", "--ignore-advisory", "none"]).expect(0);
    assert!(!none.stdout.contains("tolerated"), "{none:?}");
    assert_eq!(of(uploads(host.calls())), ["Null Null", "Null Null"]);
}

/// SCONE 6 starts and measures programs for production, unless it is told otherwise: the two must be told the same.
#[test]
fn a_program_that_is_not_signed_for_production_is_measured_and_started_alike_and_that_is_said() {
    let debug = "-e=SCONE_PRODUCTION=0";
    let told = |host: &Host| -> Vec<bool> {
        host.calls().iter().filter(|call| call.what() == "docker run").map(|call| call.has(debug)).collect()
    };
    let host = Host::new();
    host.script("create", &["--cas", "cas.example.com", "--tolerate", "debug-mode"]).expect(0);
    host.script("gen_qr", &["--no-confirm"]).expect(0);
    host.script("create", &[]).expect(0);
    assert_eq!(told(&host), [true, true, true]);
    host.forget();
    host.script("create", &["--tolerate", "none"]).expect(0);
    host.script("gen_qr", &["--no-confirm", "--output", "again.svg"]).expect(0);
    assert_eq!(told(&host), [false, false]);

    let host = Host::new();
    let warning = "[SCONE|WARN] src/enclave/dispatch.c:197:print_version(): Application runs in SGX debug mode.";
    host.instead_of("docker", &format!("case \" $* \" in *' -e=SCONE_HASH '*) echo '{warning}' >&2 ;; esac"));
    host.create().expect(0).saying("'/bin/otpqr' says that it runs in debug mode: CAS refuses it, unless it is signed");
    let tolerated = host.script("create", &["--tolerate", "debug-mode"]).expect(0);
    assert!(!tolerated.stderr.contains("unless it is signed"), "{tolerated:?}");
}

#[test]
fn a_namespace_may_lie_below_a_session_of_the_users() {
    for bad in ["", "/", "a//b", "a/", "-a", "a b", "a/$b"] {
        Host::new().script("create", &["--cas", "cas.example.com", &format!("--parent={bad}")]).expect(2);
    }
    let host = Host::new();
    host.script("create", &["--cas", "cas.example.com", "--parent", "example/otp"]).expect(0);
    let namespace = host.known("namespace");
    assert!(namespace.starts_with("example/otp/otpqr-"), "{namespace}");
    let names: Vec<String> = uploads(host.calls()).iter().map(|call| text(&call.policy()["name"])).collect();
    assert_eq!(names, [namespace.clone(), format!("{namespace}/otpqr"), format!("{namespace}/otpqr-reset")]);
    host.script("create", &["--parent", "example"]).expect(3).saying("has parent 'example/otp', not 'example'");
    host.script("create", &["--parent", "example/otp"]).expect(0);
    host.script("gen_qr", &["--no-confirm"]).expect(0);

    // As long as CAS took none of it, another one may be named.
    let host = Host::new();
    host.instead_of("scone", "[ \"$2\" != create ] || { answer no-parent; exit; }");
    host.script("create", &["--cas", "cas.example.com", "--parent", "exmaple"]).expect(5);
    host.as_documented("scone");
    host.script("create", &["--parent", "example"]).expect(0);
    assert!(host.known("namespace").starts_with("example/otpqr-"));
}

#[test]
fn an_account_keeps_what_it_was_created_with() {
    let host = Host::with_account();
    for other in ["--cas=other.example.com", "--issuer=Other", "--login=bob", "--platform=sim"] {
        host.script("create", &[other]).expect(3).saying("account 'default' has ");
    }
    assert_eq!(order(&host.calls()), [""; 0]);
}

#[test]
fn another_program_is_uploaded_as_the_successor_of_what_the_state_knows() {
    for host in Host::of_each_cas().map(Host::having_account) {
        let known = [host.known("otpqr_hash"), host.known("reset_hash")];
        let other = "0".repeat(64);
        host.instead_of("docker", &format!("case \" $* \" in *' -e=SCONE_HASH '*) echo {other}; exit ;; esac"));
        host.script("create", &[]).expect(0).saying(&other);
        let uploads = uploads(host.calls());
        let predecessors: Vec<_> = uploads.iter().map(|call| text(&call.policy()["predecessor"])).collect();
        assert_eq!(predecessors, known);
        assert_eq!(host.known("mrenclave"), other);
    }
}

#[test]
fn an_upload_that_was_cut_off_before_it_was_recorded_is_adopted() {
    for number in 1..=3 {
        for host in Host::of_each_cas() {
            host.instead_of("scone", &format!("before_answer() {{ [ $creates != {number} ] || kill -9 $PPID; }}"));
            assert_eq!(host.create().code, None, "killed");
            all_ended(&host.state_file());
            host.as_documented("scone");
            host.forget();

            host.script("create", &[]).expect(0);
            assert!(uploads(host.calls()).iter().any(|call| call.policy()["predecessor"] == Value::Null));
            for key in ["namespace_hash", "otpqr_hash", "reset_hash"] {
                assert_eq!(host.known(key).len(), 64, "{key}");
            }
            assert_eq!(host.names(&host.home.path().join("cas")).len(), 3);
        }
    }
}

#[test]
fn a_session_that_exists_and_is_not_ours_is_refused_in_cas_s_words() {
    let host = Host::new();
    host.instead_of("scone", "[ \"$2\" != create ] || echo somebody-else-s >\"$here/cas/$(sed -n 's/^name: \"\\(.*\\)\"$/\\1/p' \"$last\")\"");
    host.create().expect(5).saying("Session already exists, please specify predecessor hash");
    assert_eq!(uploads(host.calls()).len(), 1);
    assert_eq!(host.state()["namespace_hash"], Value::Null);
    host.has_clean_desk();
}

#[test]
fn what_another_run_uploaded_is_not_overwritten() {
    let host = Host::with_account();
    let held = host.home.path().join("cas").join(format!("{}+otpqr", host.known("namespace")));
    fs::write(&held, format!("{}\n", "f".repeat(64))).unwrap();
    let before = fs::read(host.state_file()).unwrap();
    host.script("create", &[]).expect(5).saying("The given predecessor is not the active session's hash");
    assert_eq!(fs::read_to_string(&held).unwrap(), format!("{}\n", "f".repeat(64)));
    assert_eq!(fs::read(host.state_file()).unwrap(), before);
}

/// Content and hash may be what they were: the predecessor that CAS shows is not.
#[test]
fn a_policy_that_somebody_replaced_and_put_back_is_another_version_to_every_script() {
    for (host, covers) in Host::of_each_cas().into_iter().zip([true, false]) {
        host.create().expect(0);
        for session in ["", "/otpqr", "/otpqr-reset"] {
            let name = format!("name: \"{}{session}\"", host.known("namespace"));
            let mut policies = host
                .names(&host.home.path().join("calls"))
                .into_iter()
                .filter_map(|call| fs::read_to_string(host.home.path().join("calls").join(call).join("policy")).ok());
            let policy = policies.rfind(|policy| policy.contains(&name)).unwrap();
            let held = fs::read(host.held(session)).unwrap();
            let state = fs::read_to_string(host.state_file()).unwrap();
            host.upload_by_hand(session, &policy.replace("CREATOR", "ANY"));
            host.upload_by_hand(session, &policy);

            let version = format!("{}{session}' is somebody else's version", host.known("namespace"));
            host.script("gen_qr", &["--no-confirm"]).expect(5).saying(&version);
            host.add_auth("493817").expect(5).saying(&version);
            host.script("roll_forward", &["--yes"]).expect(5).saying(&version);
            host.script("create", &[]).expect(5).saying(&version);
            let report = host.script("doctor", &[]);
            assert!(report.stdout.contains(&format!("{session}' is somebody else's version")), "{report:?}");
            assert_eq!(fs::read_to_string(host.state_file()).unwrap(), state);
            host.has_clean_desk();
            if covers {
                // The hash alone tells it, too.
                fs::write(host.state_file(), in_format_1(&state)).unwrap();
                host.script("create", &[]).expect(5).saying(&version);
                fs::write(host.state_file(), &state).unwrap();
            }
            fs::write(host.held(session), held).unwrap();
        }
        host.script("gen_qr", &["--no-confirm"]).expect(0);
    }
}

/// `session update` with the same text, as to lift a wait. Where hashes cover the predecessor, nothing else was active between.
#[test]
fn one_more_version_of_the_same_policy_is_recorded_if_nothing_else_can_have_been_active_between() {
    for (host, is_proven) in Host::of_each_cas().into_iter().zip([true, false]) {
        host.create().expect(0);
        let calls = host.home.path().join("calls");
        let policy = fs::read_to_string(calls.join(host.names(&calls).pop().unwrap()).join("policy")).unwrap();
        let first = host.known("reset_hash");
        host.upload_by_hand("/otpqr-reset", &policy);
        host.script("gen_qr", &["--no-confirm"])
            .expect(3)
            .saying("was uploaded after CAS last confirmed it")
            .saying("create.rs");
        if !is_proven {
            host.script("create", &[]).expect(5).saying("is somebody else's version");
            continue;
        }
        assert!(host.script("create", &[]).expect(0).stdout.starts_with("already created"));
        assert_eq!(host.known("reset_predecessor"), first);
        host.script("gen_qr", &["--no-confirm"]).expect(0);
        host.script("roll_forward", &["--yes"]).expect(0);
    }
}

fn in_format_1(state: &str) -> String {
    let later = ["programs:", "approvals:", "tolerate:", "ignore_advisories:", "attestation:"];
    let mut is_later = false;
    let is_old = |line: &&str| {
        // What is indented belongs to what is above.
        if !line.starts_with(' ') {
            is_later = later.iter().any(|key| line.starts_with(key)) || line.contains("_predecessor: ");
        }
        !is_later
    };
    let lines = state.lines().filter(is_old);
    lines.map(|line| format!("{}\n", line.replace("format: 5", "format: 1"))).collect()
}

#[test]
fn a_state_of_format_1_works_and_create_records_what_it_does_not_say() {
    for host in Host::of_each_cas() {
        host.create().expect(0);
        // With a history.
        host.script("roll_forward", &["--yes"]).expect(0);
        let now = fs::read_to_string(host.state_file()).unwrap();
        let old = in_format_1(&now);
        fs::write(host.state_file(), &old).unwrap();
        host.script("gen_qr", &["--no-confirm"]).expect(0);
        let report = host.script("doctor", &[]).stdout;
        assert!(report.contains("but the state, of an older version, does not say since when -> "), "{report}");
        assert!(host.script("create", &[]).expect(0).stdout.starts_with("already created"));
        assert_eq!(fs::read_to_string(host.state_file()).unwrap(), now);

        fs::write(host.state_file(), &old).unwrap();
        host.script("roll_forward", &["--yes"]).expect(0);
        host.script("create", &[]).expect(0);
        assert_ne!(host.known("otpqr_predecessor"), "~");
    }
}

#[test]
fn a_wiped_cas_is_not_filled_again_by_itself() {
    let host = Host::with_account();
    for session in host.names(&host.home.path().join("cas")) {
        fs::remove_file(host.home.path().join("cas").join(session)).unwrap();
    }
    host.script("create", &[]).expect(3).saying("no longer holds session");
    assert_eq!(host.names(&host.home.path().join("cas")), [""; 0]);
}

// --- gen_qr

#[test]
fn the_qr_code_is_issued_by_the_program_in_its_enclave_and_delivered_to_its_user_alone() {
    let host = Host::with_account();
    let issued = host.script("gen_qr", &["--no-confirm"]).expect(0);
    assert!(issued.stdout.starts_with("issued, not confirmed: 'SCONE OTP', 'alice'"), "{}", issued.stdout);
    assert!(fs::read_to_string(host.qr_code()).unwrap().ends_with("</svg>\n"));
    assert_eq!(host.qr_code().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(host.names(&host.desk()), ["qrcode.svg"]);

    let calls = host.calls();
    let read = "scone session read";
    let (version, pinned) = ("scone --version", "scone cas show-identification");
    let expected = [version, pinned, "docker info", "docker image", read, read, read, "docker ps", "docker run"];
    assert_eq!(order(&calls), expected);
    let start = &calls[8];
    for arg in [
        "--rm",
        "--userns=host",
        "--log-driver=none",
        "--cap-drop=ALL",
        "--device=/dev/sgx_enclave",
        "-e=SCONE_MODE=hw",
    ] {
        assert!(start.has(arg), "{arg} in {:?}", start.args);
    }
    assert!(start.has("--entrypoint=/entry"), "{:?}", start.args);
    assert_eq!(start.args[start.args.len() - 3..], [IMAGE_ID, "/environment", "/bin/otpqr"]);
    let csv = |path: &Path| path.display().to_string().replace('"', "\"\"");
    let volume = host.root().canonicalize().unwrap().join("state/volumes/default/single_run_1");
    let mounts: Vec<_> = start.args.iter().filter(|arg| arg.starts_with("--mount=")).collect();
    assert_eq!(*mounts[0], format!("--mount=type=bind,\"src={}\",dst=/root/single_run", csv(&volume)));
    let issuing = host.root().canonicalize().unwrap().join("state/issuing");
    assert!(mounts[1].starts_with(&format!("--mount=type=bind,\"src={}/", csv(&issuing))), "{mounts:?}");
    assert!(start.has("--security-opt=no-new-privileges"), "{:?}", start.args);
    assert!(mounts[1].ends_with("\",dst=/out"), "{mounts:?}");
    assert!(mounts[2].ends_with("/environment\",dst=/environment") && mounts.len() == 3, "{mounts:?}");
    // This fake initialises no volume, and an empty directory is removed.
    let volumes = volume.parent().unwrap();
    assert_eq!(volumes.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert!(!volume.exists());

    let config_id = format!("{}/otpqr/otpqr", host.known("namespace"));
    assert!(start.has("-e=SCONE_CAS_ADDR"));
    assert_eq!(start.config_id.as_ref(), Some(&config_id));
    assert_eq!(start.environment["SCONE_CAS_ADDR"], "cas.example.com");
    assert!(!calls.iter().any(|call| call.args.iter().any(|arg| arg.contains(&config_id))));
    assert!(calls.iter().all(|call| !call.environment.contains_key("SCONE_CONFIG_ID")));
}

/// As Docker and podman say that they are rootless.
#[test]
fn a_rootless_engine_runs_the_program_as_its_root_who_is_the_caller() {
    let infos =
        [r#"{"SecurityOptions":["name=seccomp","name=rootless"]}"#, r#"{"host":{"security":{"rootless":true}}}"#];
    let host = Host::with_account();
    for info in infos {
        host.instead_of("docker", &format!("[ \"$1\" != info ] || {{ echo '{info}'; exit; }}"));
        host.script("gen_qr", &["--no-confirm"]).expect(0);
        let start = host.calls().into_iter().rfind(|call| call.what() == "docker run").unwrap();
        assert!(start.has("--user=0:0"), "{:?}", start.args);
        fs::remove_file(host.qr_code()).unwrap();
    }
}

#[test]
fn an_output_that_exists_is_refused_before_anything_is_started_and_stays_as_it_is() {
    let host = Host::with_account();
    fs::write(host.qr_code(), "mine").unwrap();
    host.script("gen_qr", &["--no-confirm"]).expect(3).saying("'qrcode.svg' exists already");
    host.add_auth("493817").expect(3).saying("'qrcode.svg' exists already");
    assert!(!order(&host.calls()).contains(&"docker run".to_owned()));
    assert_eq!(fs::read_to_string(host.qr_code()).unwrap(), "mine");
    assert_eq!(host.names(&host.desk()), ["qrcode.svg"]);

    // Also a dangling link, or one that appears while the program runs: the QR code is not lost then.
    fs::remove_file(host.qr_code()).unwrap();
    symlink("nowhere", host.qr_code()).unwrap();
    host.script("gen_qr", &["--no-confirm"]).expect(3).saying("exists already");
    fs::remove_file(host.qr_code()).unwrap();
    host.instead_of("docker", &format!("[ \"$1\" != run ] || echo mine >'{}'", host.qr_code().display()));
    host.script("gen_qr", &["--no-confirm"]).expect(4).saying("cannot be delivered to 'qrcode.svg'");
    assert_eq!(fs::read_to_string(host.qr_code()).unwrap(), "mine\n");
    fs::remove_file(host.qr_code()).unwrap();
    host.as_documented("docker");
    host.forget();
    host.script("gen_qr", &["--no-confirm"]).expect(0);
    assert!(!order(&host.calls()).contains(&"docker run".to_owned()), "it was issued once");
    assert!(fs::read_to_string(host.qr_code()).unwrap().ends_with("</svg>\n"));
}

/// CAS names the advisories that concern a host; who accepts them is told how. Debug mode is for tests alone.
#[test]
fn what_would_let_a_weak_host_pass_is_said_and_what_passes_already_stays() {
    let dcap = "CAS sent an attestation/configuration error: DCAP quote verification failed";
    let tcb = "The enclave's TCB is not trustworthy\n    Security risks:\n    - See advisory INTEL-SA-00615\n    - See advisory INTEL-SA-00161";
    let debug = "Debug mode is enabled. Enclave protection is turned off, all secrets can be extracted with a debugger";
    let refused = |host: &Host, detail: &str| {
        host.program_ends("*/otpqr/otpqr", &frame(&[dcap, "Failed to verify DCAP report", detail]), 134);
        host.script("gen_qr", &["--no-confirm"]).expect(5)
    };
    let host = Host::new();
    let weak = ["--cas", "cas.example.com", "--tolerate", "outdated-tcb", "--ignore-advisory", "INTEL-SA-00001"];
    host.script("create", &weak).expect(0);
    let create = "/scripts/create.rs' --tolerate outdated-tcb --ignore-advisory INTEL-SA-00001";
    refused(&host, tcb).saying(&format!(
        "{create} --ignore-advisory INTEL-SA-00161 --ignore-advisory INTEL-SA-00615   # if Intel says the same: these words can be forged"
    ));
    refused(&host, debug).saying("make scone SIGNING_KEY=../key.pem)   # signs ours for production");
    // Doctor says it, too.
    host.program_ends("*/check", &frame(&[dcap, "Failed to verify DCAP report", tcb]), 134);
    let report = host.script("doctor", &[]).stdout;
    assert!(report.contains("not trustworthy") && report.contains("--ignore-advisory INTEL-SA-00161"), "{report}");
    // What stands elsewhere names nothing.
    let elsewhere = format!("{}Note: see INTEL-SA-00334\n", frame(&["An One-time Password is required"]));
    host.program_ends("*/otpqr/otpqr", &elsewhere, 134);
    assert!(!host.script("gen_qr", &["--no-confirm"]).expect(5).stderr.contains("--ignore-advisory"));

    let host = Host::new();
    host.script("create", &["--cas", "cas.example.com", "--insecure-test-cas"]).expect(0);
    refused(&host, debug)
        .saying("/scripts/create.rs' --tolerate debug-mode   # for tests: such an enclave can be read");
}

#[test]
fn a_code_that_scone_prints_is_masked_also_where_it_is_all_there_is_to_say() {
    let host = Host::with_account();
    host.program_ends("*@493817", NOTE, 1);
    let outcome = host.add_auth("493817").expect(4);
    assert!(!outcome.text().contains("493817"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("/otpqr-reset/otpqr@******"), "{}", outcome.stderr);
}

#[test]
fn the_program_s_own_words_decide_where_scone_says_nothing() {
    let host = Host::with_account();
    let docker = [
        "docker: Error response from daemon: error gathering device information while adding custom device \"/dev/sgx_enclave\": no such file or directory.\n",
        // docker's command line prints more, but nothing more useful.
        "docker: Error response from daemon: error gathering device information while adding custom device \"/dev/sgx_enclave\": no such file or directory\n\nRun 'docker run --help' for more information\n",
    ];
    for words in docker {
        host.program_ends("*", words, 125);
        let refused = host.script("gen_qr", &["--no-confirm"]).expect(3);
        refused.saying("\"/dev/sgx_enclave\": no such file or directory").saying("hint: ls -l /dev/sgx_enclave ");
        host.add_auth("493817").expect(3).saying("\"/dev/sgx_enclave\": no such file or directory");
        host.has_clean_desk();
    }
    let endings = [
        (10, "otpqr: once-marker '/root/single_run/once' is there already\n", 5, "issued already"),
        (11, "otpqr: OTP_SECRET is not set\n", 1, "OTP_SECRET is not set"),
        (12, "otpqr: output '/out/qrcode.svg' exists\n", 3, "output '/out/qrcode.svg' exists"),
        (0, "", 4, "ended without a QR code"),
        (137, "", 4, "ended without a QR code"),
    ];
    for (program, words, code, saying) in endings {
        host.program_ends("*/otpqr/otpqr", words, program);
        host.script("gen_qr", &["--no-confirm"]).expect(code).saying(saying);
        host.has_clean_desk();
    }
}

#[test]
fn half_a_qr_code_is_not_delivered() {
    let host = Host::with_account();
    host.instead_of(
        "docker",
        "[ \"$1\" = info ] && { echo '{}'; exit 0; }; [ \"$1\" = image ] && { echo 'IMAGE'; exit 0; }; [ \"$1\" = ps ] && exit; for arg; do case \"$arg\" in *,dst=/out) out=${arg#*src=}; out=${out%'\",dst=/out'}; out=$(printf %s \"$out\" | sed 's/\"\"/\"/g'); printf '<svg' >\"$out/qrcode.svg\" ;; esac; done; exit 137".replace("IMAGE", IMAGE_ID).as_str(),
    );
    host.script("gen_qr", &["--no-confirm"]).expect(4).saying("incomplete QR code").saying("scripts/gen_qr.rs");
    assert!(!host.qr_code().exists());
    host.program_ends("*/otpqr", "otpqr: once-marker is there already\n", 10);
    host.script("gen_qr", &["--no-confirm"]).expect(5).saying("issued already");
    host.has_clean_desk();
}

/// docker's client was killed, or lost its engine: the container goes on, and so its output is not ours to remove.
#[test]
fn a_container_that_still_runs_is_left_its_output_and_what_it_writes_is_delivered() {
    let host = Host::with_account();
    let reserved = host.root().join(format!("state/issuing/{}-1-1/qrcode.svg", host.known("namespace")));
    let shown = reserved.display().to_string().replace('\'', r"'\''");
    host.instead_of(
        "docker",
        &format!(
            "case $1 in run) echo '   ' >'{shown}'; touch \"$here/runs\"; kill -9 $$ ;;
             ps) [ ! -f \"$here/runs\" ] || echo 4e5aaaf3d0d4; exit ;; esac"
        ),
    );
    for _ in 0..2 {
        let refused = host.script("gen_qr", &["--no-confirm"]).expect(4);
        refused
            .saying("a container that was left running may still write to")
            .saying("hint: docker ps --filter label=otpqr.output=otpqr-");
        assert!(reserved.exists());
    }
    let starts: Vec<_> = host.calls().into_iter().filter(|call| call.what() == "docker run").collect();
    assert_eq!(starts.len(), 1);
    // Nor if the engine does not tell.
    host.instead_of("docker", "[ \"$1\" != ps ] || exit 1");
    host.script("gen_qr", &["--no-confirm"]).expect(3).saying("docker does not answer");
    assert!(reserved.exists());

    fs::write(&reserved, "<svg></svg>\n").unwrap();
    host.as_documented("docker");
    host.forget();
    host.script("gen_qr", &["--no-confirm"]).expect(0);
    assert_eq!(fs::read_to_string(host.qr_code()).unwrap(), "<svg></svg>\n");
    let label = format!("label=otpqr.output={}-1-1", host.known("namespace"));
    let calls = host.calls();
    assert!(calls.iter().find(|call| call.what() == "docker ps").unwrap().has(&format!("--filter={label}")));
    assert!(starts[0].has(&format!("--{label}")));
    assert!(!order(&calls).contains(&"docker run".to_owned()), "it was issued once");
}

// --- add_auth

#[test]
fn a_code_goes_to_the_one_start_that_needs_it_through_a_fifo_and_nowhere_else() {
    const CODE: &str = "493817";
    let host = Host::with_account();
    let file = host.desk().join("code.txt");
    fs::write(&file, format!("{CODE}\n")).unwrap();
    let issued = host.script("add_auth", &["--no-confirm", "--otp-file", "code.txt"]).expect(0);
    fs::remove_file(file).unwrap();
    assert!(!issued.text().contains(CODE));
    assert_eq!(host.names(&host.desk()), ["qrcode.svg"]);

    let calls = host.calls();
    let read = "scone session read";
    let (version, pinned) = ("scone --version", "scone cas show-identification");
    let before = [version, pinned, "docker info", "docker image", read, read, read, "docker ps"];
    let [asked @ .., check, ps, start] = &calls[..] else { panic!("two starts") };
    assert_eq!(order(asked), before);
    let namespace = host.known("namespace");
    assert_eq!(check.config_id, Some(format!("{namespace}/otpqr/check")));
    assert_eq!(start.config_id, Some(format!("{namespace}/otpqr-reset/otpqr@{CODE}")));
    let args =
        |call: &Call| call.args.iter().filter(|arg| !arg.ends_with("dst=/environment")).cloned().collect::<Vec<_>>();
    assert_eq!((check.what(), ps.what(), args(check)), ("docker run".to_owned(), "docker ps".to_owned(), args(start)));
    for call in &calls {
        assert!(!call.args.iter().any(|arg| arg.contains(CODE)), "{:?}", call.args);
    }
    assert!(calls.iter().all(|call| call.environment.values().all(|value| !value.contains(CODE))));
    assert!(!fs::read_to_string(host.state_file()).unwrap().contains(CODE));
    assert_eq!(host.names(&host.home.path().join("tmp")), [""; 0]);
}

#[test]
fn a_code_is_asked_for_only_when_program_and_volume_are_right() {
    let host = Host::with_account();
    host.program_ends("*/check", &frame(&["The FSPF tag is not fresh - suspected replay attack"]), 134);
    // The code is not even read: the file is not there.
    host.add_auth("493817").expect(5).saying("the volume was refused");
    host.as_documented("docker");
    host.script("add_auth", &["--no-confirm", "--otp-file", "no-such-file"]).expect(2).saying("'no-such-file'");
    for wrong in ["", "12345", "1234567", "12345a", "٤٩٣٨١٧", "493817 493817"] {
        let refused = host.add_auth(wrong).expect(2).saying("a code is exactly six digits");
        assert!(wrong.is_empty() || !refused.text().contains(wrong), "{}", refused.stderr);
    }
    host.script("add_auth", &[]).expect(2).saying("--otp-file");
    host.has_clean_desk();
    let started = host.calls().into_iter().filter_map(|call| call.config_id);
    assert!(started.into_iter().all(|config_id| config_id.ends_with("/otpqr/check")));
}

// --- roll_forward

/// What a policy's services use of volume, secret and login, and the predecessor it names.
fn uses(policy: &Value) -> [String; 4] {
    let environment = &policy["services"][0]["environment"];
    [
        text(&policy["images"][0]["volumes"][0]["name"]),
        text(&environment["OTP_SECRET"]),
        text(&environment["OTP_ACCOUNT_LOGIN"]),
        text(&policy["predecessor"]),
    ]
}

/// Asserts that the account is wholly on its second secret.
#[track_caller]
fn is_rolled_forward(host: &Host) {
    let versions = ["volume_version", "secret_version", "pending"].map(|key| host.known(key));
    assert_eq!(versions, ["2", "2", "~"]);
    host.forget();
    host.script("create", &[]).expect(0);
    assert_eq!(uploads(host.calls()).len(), 0, "CAS holds what the state says");
    host.script("gen_qr", &["--no-confirm"]).expect(0);
    let start = host.calls().into_iter().rfind(|call| call.what() == "docker run").unwrap();
    assert!(start.args.iter().any(|arg| arg.ends_with("/single_run_2\",dst=/root/single_run")), "{:?}", start.args);
}

#[test]
fn rolling_forward_declares_the_new_switches_and_then_drops_the_old() {
    let host = Host::with_account();
    host.script("roll_forward", &[]).expect(2).saying("--yes");
    assert_eq!(order(&host.calls()), [""; 0]);

    let (namespace, hash, reset_hash) = (host.known("namespace"), host.known("otpqr_hash"), host.known("reset_hash"));
    let done = host.script("roll_forward", &["--yes"]).expect(0);
    assert!(done.stdout.contains("delete from the authenticators: 'SCONE OTP', 'alice'\n"), "{}", done.stdout);
    assert!(done.stdout.contains("'alice #2'"), "{}", done.stdout);

    let uploads = uploads(host.calls());
    assert_eq!(uploads.len(), 3);
    let [declare, switch, drop] = [0, 1, 2].map(|number| uploads[number].policy());
    let secret = |version: u32| format!("$$SCONE::otp_secret_{version}:base32nopad$$");

    assert_eq!(text(&declare["name"]), format!("{namespace}/otpqr"));
    assert_eq!(names(&declare["volumes"]), ["single_run_1", "single_run_2"]);
    assert_eq!(names(&declare["secrets"]), ["otp_secret_1", "otp_secret_2"]);
    for list in ["volumes", "secrets"] {
        for item in declare[list].as_sequence().unwrap() {
            assert_eq!(text(&item["export"][0]["session"]), format!("{namespace}/otpqr-reset"));
        }
    }
    assert_eq!(uses(declare), ["single_run_1".into(), secret(1), "alice".into(), hash]);

    assert_eq!(text(&switch["name"]), format!("{namespace}/otpqr-reset"));
    assert_eq!(names(&switch["volumes"]), ["single_run_2"]);
    assert_eq!(names(&switch["secrets"]), ["otp_secret_2"]);
    assert_eq!(uses(switch), ["single_run_2".into(), secret(2), "alice #2".into(), reset_hash]);
    assert_eq!(text(&switch["security"]["attestation"]["one_time_password_shared_secret"]), secret(2));

    assert_eq!(text(&drop["name"]), format!("{namespace}/otpqr"));
    assert_eq!(names(&drop["volumes"]), ["single_run_2"]);
    assert_eq!(names(&drop["secrets"]), ["otp_secret_2"]);
    let declared_hash = text(&uploads[1].state.as_ref().unwrap()["otpqr_hash"]);
    assert_eq!(uses(drop), ["single_run_2".into(), secret(2), "alice #2".into(), declared_hash]);

    // The intention is recorded before CAS is changed, and each upload before the next.
    for (number, call) in uploads.iter().enumerate() {
        let pending = &call.state.as_ref().unwrap()["pending"];
        assert_eq!(["volume_version", "secret_version"].map(|key| text(&pending[key])), ["2", "2"]);
        assert_eq!(text(&pending["uploads_done"]), number.to_string());
    }
    is_rolled_forward(&host);
}

#[test]
fn a_roll_forward_that_cas_interrupts_stops_part_way_and_is_completed_by_the_next_run() {
    for number in 1..=3 {
        for host in Host::of_each_cas().map(Host::having_account) {
            host.instead_of(
            "scone",
            &format!("[ \"$2\" != create ] || [ $creates != {number} ] || {{ printf 'Error: Creating session failed\\nCaused by: no space left\\n' >&2; exit 1; }}"),
        );
            if number == 1 {
                // Nothing was begun.
                host.script("roll_forward", &["--yes"]).expect(5).saying("no space left");
                assert_eq!(host.state()["pending"], Value::Null);
                host.as_documented("scone");
                host.script("roll_forward", &["--yes"]).expect(0);
            } else {
                host.script("roll_forward", &["--yes"]).expect(4).saying("no space left");
                // Nothing else can go on from there.
                host.script("create", &[]).expect(3).saying("scripts/roll_forward.rs");
                host.as_documented("scone");
                host.script("roll_forward", &["--yes"]).expect(0).saying("continuing the roll-forward that was begun");
            }
            is_rolled_forward(&host);
        }
    }
}

#[test]
fn a_roll_forward_killed_before_or_after_any_upload_is_completed_by_the_next_run() {
    for number in 1..=3 {
        for killed in [
            format!("[ \"$2\" != create ] || [ $creates != {number} ] || {{ kill -9 $PPID; exit 1; }}"),
            format!("before_answer() {{ [ $creates != {number} ] || kill -9 $PPID; }}"),
        ] {
            for host in Host::of_each_cas().map(Host::having_account) {
                host.instead_of("scone", &killed);
                assert_eq!(host.script("roll_forward", &["--yes"]).code, None, "killed");
                all_ended(&host.state_file());
                assert_ne!(host.state()["pending"], Value::Null);
                host.as_documented("scone");
                host.script("roll_forward", &["--yes"]).expect(0);
                // What a killed run leaves behind holds no secret and is readable by nobody else.
                for policy in host.names(&host.home.path().join("tmp")) {
                    let policy = host.home.path().join("tmp").join(policy);
                    assert_eq!(policy.metadata().unwrap().permissions().mode() & 0o777, 0o600);
                }
                is_rolled_forward(&host);
            }
        }
    }
}

#[test]
fn a_roll_forward_does_not_overwrite_what_another_run_uploaded() {
    let host = Host::with_account();
    let held = host.home.path().join("cas").join(format!("{}+otpqr", host.known("namespace")));
    fs::write(&held, format!("{}\n", "f".repeat(64))).unwrap();
    host.script("roll_forward", &["--yes"]).expect(5).saying("The given predecessor is not the active session's hash");
    assert_eq!(host.state()["pending"], Value::Null, "nothing was begun");
    assert_eq!(fs::read_to_string(&held).unwrap(), format!("{}\n", "f".repeat(64)));
    assert_eq!(uploads(host.calls()).len(), 1);
}

// --- State

#[test]
fn damaged_state_is_an_error_that_names_the_file_and_never_a_fresh_start() {
    let host = Host::with_account();
    let file = host.state_file();
    let good = fs::read_to_string(&file).unwrap();
    let refused = |cause: &str| {
        for (script, args) in [("create", &[][..]), ("gen_qr", &["--no-confirm"]), ("roll_forward", &["--yes"])] {
            host.script(script, args).expect(3).saying("state/default.yml'").saying(cause);
        }
        host.add_auth("493817").expect(3).saying("state/default.yml'").saying(cause);
        assert_eq!(order(&host.calls()), [""; 0]);
        host.has_clean_desk();
    };
    let damages = [
        (good[..good.len() / 2].to_owned(), "damaged"),
        (good[..good.len() - 8].to_owned(), "damaged"),
        (String::new(), "damaged"),
        ("\0\0\0\0".to_owned(), "damaged"),
        ("hello".to_owned(), "not ours"),
        (good.replace("format: 5", "format: 6"), "has format 6"),
        (good.replace("platform: scone", "platform: sgx"), "damaged"),
        (format!("{good}unheard_of: 1\n"), "damaged"),
        (
            good.replace("volume_version: 1", "volume_version: 4294967295"),
            "'volume_version' and 'secret_version' must be from 1 to 1000000",
        ),
        (good.replace("namespace: ", "namespace: --"), "'namespace' is not a session name"),
        (
            good.replace("image_id: ", "image_id: --privileged "),
            "'image', 'image_id' and 'cas.address' must not begin with '-' or '@' nor hold control characters",
        ),
        (
            good.replace(
                "pending: null",
                "pending: {volume_version: 7, secret_version: 9, uploads_done: 99, undo: false}",
            ),
            "'pending' does not follow from the versions",
        ),
    ];
    for (damaged, cause) in damages {
        assert_ne!(damaged, good);
        fs::write(&file, &damaged).unwrap();
        refused(cause);
        assert_eq!(fs::read_to_string(&file).unwrap(), damaged);
    }

    fs::write(&file, &good).unwrap();
    if is_root() {
        chown(&file, Some(64_999), None).unwrap();
        refused("belongs to another user (uid 64999)");
        assert_eq!(fs::read_to_string(&file).unwrap(), good);
    } else {
        eprintln!("SKIPPED: only root can give a file to another user");
    }

    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused("must be a regular file that only you can write");
    assert!(file.is_dir());
}
