//! A bundle for one test: a root with templates, simulator and state, and a simulated CAS with its own data, ports and clock.
//! Tests and the demonstration work in such bundles; dropping one removes everything.

// The demonstration uses a part of it.
#![allow(dead_code, unused_macros)]

pub mod attacker;
pub mod image;
pub mod phone;
pub mod program;
pub mod protected;
pub mod watched;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use serde_yaml::Value;
use tempfile::TempDir;

/// Where the repository is.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The platforms of the simulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    Sim,
    SimNative,
}

impl Platform {
    pub fn name(self) -> &'static str {
        match self {
            Platform::Sim => "sim",
            Platform::SimNative => "sim-native",
        }
    }
}

/// Whether the tests that need a Docker Engine can run.
pub fn docker_is_there() -> bool {
    works("docker", &["version"], "apt-get install docker.io, start dockerd")
}

/// Whether system calls can be traced.
pub fn strace_is_there() -> bool {
    works("strace", &["-qq", "-o", "/dev/null", "true"], "apt-get install strace")
}

/// Whether rust-script is installed.
pub fn rust_script_is_there() -> bool {
    works("rust-script", &["--version"], "make rust-script")
}

/// Whether root runs the tests, and these programs are there.
pub fn root_has(programs: &[&str]) -> bool {
    if !is_root() {
        eprintln!("SKIPPED: needs root");
        return false;
    }
    let missing: Vec<_> = programs.iter().filter(|name| which::which(name).is_err()).collect();
    required_or_skipped(missing.is_empty(), &format!("{missing:?} is missing, which .ci/run installs"))
}

/// Whether a tool works here; `remedy` says what to do if not.
pub fn works(tool: &str, arguments: &[&str], remedy: &str) -> bool {
    let found = Command::new(tool).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    required_or_skipped(found.is_ok_and(|status| status.success()), &format!("'{tool}' does not work here: {remedy}"))
}

/// Tests that need what is missing are skipped, loudly; with `CI=true` or `REQUIRE_DOCKER=1` they fail.
fn required_or_skipped(there: bool, missing: &str) -> bool {
    if !there {
        let required = [("CI", "true"), ("REQUIRE_DOCKER", "1")];
        let required = required.iter().any(|(name, value)| std::env::var_os(name).is_some_and(|set| set == *value));
        assert!(!required, "{missing}");
        eprintln!("SKIPPED: {missing}");
    }
    there
}

/// The user as whom commands run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// The user who runs the tests.
    Caller,
    /// A user whose only privilege is the Docker Engine. Only root can become that user.
    Ordinary,
    /// The user of rootless engines, as `.ci/run` makes it. Only root can become that user.
    Rootless,
}

const ORDINARY: u32 = 64_999;
/// The name of [`User::Rootless`].
pub const ROOTLESS: &str = "otpqr-rootless";

impl User {
    /// Its number, which is its group's, too.
    fn id(self) -> u32 {
        match self {
            User::Caller => rustix::process::geteuid().as_raw(),
            User::Ordinary => ORDINARY,
            User::Rootless => {
                let id = Command::new("id").args(["-u", ROOTLESS]).output().expect("id");
                String::from_utf8_lossy(&id.stdout).trim().parse().expect("the user that .ci/run makes")
            }
        }
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// How a command ended, and all it printed.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Asserts the exit code; shows both streams if it is another. On failure standard output must be empty.
    #[track_caller]
    pub fn expect(self, code: i32) -> Outcome {
        let Outcome { code: found, stdout, stderr } = &self;
        assert_eq!(*found, Some(code), "\n-- standard output:\n{stdout}\n-- standard error:\n{stderr}");
        if code != 0 {
            assert_eq!(stdout, "", "nothing on standard output when something fails; standard error:\n{stderr}");
        }
        self
    }

    /// Asserts that standard error holds `text`.
    #[track_caller]
    pub fn saying(self, text: &str) -> Outcome {
        assert!(self.stderr.contains(text), "'{text}' is not in standard error:\n{}", self.stderr);
        self
    }

    /// Both streams.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// How a start by hand, without the scripts, differs from theirs.
pub struct ByHand<'a> {
    pub account: &'a str,
    pub environment: &'a [(&'a str, &'a str)],
    pub program: &'a str,
    /// Another image (natively: another root) than the account's.
    pub image: Option<&'a str>,
    /// Another address of CAS than the direct one.
    pub cas: Option<&'a str>,
    /// The directory below the root for the output.
    pub out: &'a str,
    /// A directory below the root for a volume other than the account's.
    pub volume: Option<&'a str>,
}

/// Where a start by hand leaves its output.
const BY_HAND: &str = "by-hand";

impl Default for ByHand<'_> {
    fn default() -> Self {
        ByHand {
            account: "default",
            environment: &[],
            program: "/bin/otpqr",
            image: None,
            cas: None,
            out: BY_HAND,
            volume: None,
        }
    }
}

pub struct Bundle {
    _home: TempDir,
    pub root: PathBuf,
    pub platform: Platform,
    user: User,
    /// The network namespace that the caller's commands are in, if it is another than the caller's.
    pub network: Option<PathBuf>,
    /// What its commands find in their environment, besides what all bundles have there.
    pub environment: Vec<(&'static str, OsString)>,
    /// The time of the simulated CAS; `None`: the host's.
    clock: Option<PathBuf>,
}

impl Bundle {
    /// Makes a root called `name` and starts a CAS for it, on ports that are free. With `clock`, its time stands still until
    /// [`Bundle::wait`].
    pub fn new(name: &str, platform: Platform, user: User, clock: bool) -> Bundle {
        let bin = repository().join("simulator/bin");
        assert!(bin.join("scone-sim").exists(), "the simulator is not built: make sim");
        let home = tempfile::Builder::new().prefix("otpqr-").tempdir().expect("a temporary directory");
        let root = home.path().join(name);
        let bundle = Bundle {
            clock: clock.then(|| root.join("clock")),
            root,
            platform,
            user,
            network: None,
            environment: Vec::new(),
            _home: home,
        };
        fs::create_dir(&bundle.root).expect("the root");
        copy(&repository().join("templates"), &bundle.root.join("templates"));
        for directory in ["simulator", "tmp"] {
            fs::create_dir(bundle.root.join(directory)).expect("a directory");
        }
        copy(&bin, &bundle.root.join("simulator/bin"));
        if let Some(clock) = &bundle.clock {
            fs::write(clock, "1800000015").expect("the clock");
        }
        if user != User::Caller {
            fs::set_permissions(bundle._home.path(), Permissions::from_mode(0o755)).expect("permissions");
            bundle.give_away(&bundle.root);
        }
        bundle.up_on_free_ports();
        bundle
    }

    /// A test's bundle: a hostile path, time standing still.
    pub fn of_test(platform: Platform, user: User) -> Bundle {
        Bundle::new("it's a \"bundle\", really", platform, user, true)
    }

    /// `program` with the bundle's environment, as the bundle's user, in the bundle's root.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match self.user {
            User::Caller => match &self.network {
                None => Command::new(program),
                Some(network) => {
                    let mut command = Command::new("nsenter");
                    command.arg([OsStr::new("--net="), network.as_ref()].join(OsStr::new(""))).arg(program);
                    command
                }
            },
            User::Ordinary => {
                let socket =
                    fs::metadata("/var/run/docker.sock").map(|socket| std::os::unix::fs::MetadataExt::gid(&socket));
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &ORDINARY.to_string(), "--regid", &ORDINARY.to_string(), "--no-new-privs"]);
                command.args(["--groups", &socket.unwrap_or(ORDINARY).to_string(), "--"]).arg(program);
                command
            }
            User::Rootless => {
                let mut command = Command::new("setpriv");
                let id = self.user.id().to_string();
                command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program);
                command
            }
        };
        command.current_dir(&self.root).env("OTPQR_ROOT", &self.root).env("XDG_DATA_HOME", self.root.join("data"));
        // As rust-script sets it.
        command.env("RUST_SCRIPT_BASE_PATH", self.root.join("scripts"));
        // What a killed script leaves behind goes with the bundle.
        command.env("TMPDIR", self.root.join("tmp"));
        command.env("LOGNAME", "alice").env_remove("SCONE_CONFIG_ID").stdin(Stdio::null());
        if self.user != User::Caller {
            command.env("HOME", &self.root).env_remove("XDG_CACHE_HOME").env_remove("XDG_CONFIG_HOME");
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn simulator<const N: usize>(&self, args: [&str; N]) -> Command {
        let mut command = self.command(self.root.join("simulator/bin/scone-sim"));
        command.args(args);
        command
    }

    /// Runs `scone-sim`.
    pub fn scone_sim<const N: usize>(&self, args: [&str; N]) -> Outcome {
        run(self.simulator(args))
    }

    /// Runs the `scone` command line.
    pub fn scone<const N: usize>(&self, args: [&str; N]) -> Outcome {
        let mut command = self.command(self.root.join("simulator/bin/scone"));
        command.args(args);
        run(command)
    }

    /// Makes a directory of the bundle's user, open to all, in the root.
    pub fn make_directory(&self, name: &str) {
        let path = self.root.join(name);
        fs::create_dir(&path).expect("a directory");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("permissions");
        self.give_away(&path);
    }

    /// Copies the compiled scripts to where the bundle's user can run them. (A test hands in `scripts!()`.)
    pub fn install(&self, scripts: &[(&str, &str)]) {
        fs::create_dir(self.root.join("scripts")).expect("the scripts' directory");
        for (name, path) in scripts {
            // Not written by us: a process that another test starts at the same time may inherit such a file, open, and it is "busy".
            copy(Path::new(path), &self.root.join("scripts").join(name));
        }
    }

    /// A compiled script, ready to run.
    pub fn script_command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = self.command(self.root.join("scripts").join(name));
        command.args(args);
        command
    }

    /// Runs a compiled script.
    pub fn script(&self, name: &str, args: &[&str]) -> Outcome {
        run(self.script_command(name, args))
    }

    /// Runs `gen_qr` as an operator without a terminal does.
    pub fn gen_qr(&self, args: &[&str]) -> Outcome {
        self.script("gen_qr", &[&["--no-confirm"], args].concat())
    }

    /// Runs `add_auth` with a code on standard input.
    pub fn add_auth(&self, code: &str, args: &[&str]) -> Outcome {
        let args = [&["--no-confirm", "--otp-file", "-"], args].concat();
        run_with_input(self.script_command("add_auth", &args), code)
    }

    /// Creates the account, has its QR code issued as `NAME.svg`, and scans it.
    pub fn enrol(&self, account: &str) -> phone::Account {
        self.script("create", &["--platform", self.platform.name(), "--account", account]).expect(0);
        let output = format!("{account}.svg");
        self.script("gen_qr", &["--account", account, "--no-confirm", "--output", &output]).expect(0);
        self.scan(&output)
    }

    /// Scans a QR code that lies in the root.
    pub fn scan(&self, name: &str) -> phone::Account {
        let svg = fs::read_to_string(self.root.join(name)).expect("the QR code");
        phone::scan(&svg).expect("a QR code that a phone can read")
    }

    /// The account's state file, parsed.
    pub fn state(&self, account: &str) -> Value {
        let path = self.state_file(account);
        serde_yaml::from_str(&fs::read_to_string(path).expect("the state file")).expect("the state is YAML")
    }

    pub fn state_file(&self, account: &str) -> PathBuf {
        self.root.join(format!("state/{account}.yml"))
    }

    /// As [`all_ended`].
    pub fn all_ended(&self, account: &str) {
        all_ended(&self.state_file(account));
    }

    /// One value of the account's state, as text.
    pub fn known(&self, account: &str, keys: &[&str]) -> String {
        let mut value = &self.state(account)[keys[0]];
        for key in &keys[1..] {
            value = &value[*key];
        }
        match value {
            Value::String(text) => text.clone(),
            other => serde_yaml::to_string(other).expect("YAML").trim().to_owned(),
        }
    }

    /// The host's side of the account's current volume.
    pub fn volume(&self, account: &str) -> PathBuf {
        let version = self.known(account, &["volume_version"]);
        self.root.join("state/volumes").join(account).join(format!("single_run_{version}"))
    }

    /// The time by the CAS's clock, in seconds since 1970.
    pub fn now(&self) -> u64 {
        match &self.clock {
            Some(clock) => fs::read_to_string(clock).expect("the clock").trim().parse().expect("a time"),
            None => SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs(),
        }
    }

    /// Lets time pass for the CAS.
    pub fn wait(&self, seconds: u64) {
        let clock = self.clock.as_ref().expect("a clock of one's own");
        let next = clock.with_extension("next");
        fs::write(&next, (self.now() + seconds).to_string()).expect("the clock");
        fs::rename(next, clock).expect("the clock");
    }

    /// The CAS's data is lost, and with it its key; the `scone` command line's identity is not.
    pub fn wipe_cas(&self) {
        self.scone_sim(["down"]).expect(0);
        for entry in fs::read_dir(self.root.join("data/scone-sim")).expect("the data") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                fs::remove_file(path).expect("deletion");
            }
        }
        self.up_on_free_ports();
    }

    fn up_on_free_ports(&self) {
        let mut up = self.simulator(["up", "--client-port", "0", "--enclave-port", "0"]);
        if let Some(clock) = &self.clock {
            up.arg("--clock").arg(clock);
        }
        run(up).expect(0);
    }

    /// Makes CAS wait for us the next time it looks at its clock.
    pub fn hold_cas(&self) -> HeldCas {
        let cas = self.about_to_hold_cas();
        fs::rename(cas.clock.with_extension("pipe"), &cas.clock).expect("the clock");
        cas
    }

    /// Makes CAS wait for us the first time it looks at its clock after a program was started.
    pub fn hold_cas_at_a_start(&self) -> HeldCas {
        self.wrap_tools(
            r#"#!/bin/sh
bin=${0%/*}
clock=$bin/../../clock
case "${SCONE_CONFIG_ID+native} $*" in
  native* | *' /environment '*) [ ! -p "$clock.pipe" ] || mv "$clock.pipe" "$clock" ;;
esac
exec "$bin/genuine/${0##*/}" "$@"
"#,
        );
        self.about_to_hold_cas()
    }

    /// Puts a script in the place of `scone`, `scone-run` and `docker`; the tools themselves are in `genuine`, beside it.
    pub fn wrap_tools(&self, script: &str) {
        let bin = self.root.join("simulator/bin");
        fs::create_dir(bin.join("genuine")).expect("a directory");
        fs::write(bin.join("wrapper"), script).expect("a script");
        fs::set_permissions(bin.join("wrapper"), Permissions::from_mode(0o755)).expect("permissions");
        let docker = which::which("docker").unwrap_or_default();
        let tools = [("scone", "../scone-sim".as_ref()), ("scone-run", "../rootfs/scone-run".as_ref())];
        // The bundle's own tools come before the host's.
        for (name, program) in tools.into_iter().chain([("docker", docker.as_path())]) {
            symlink(program, bin.join("genuine").join(name)).expect("a link");
            // A process that another test starts at the same time may inherit the file we wrote, open: it is then "busy".
            // A copy is not.
            copy(&bin.join("wrapper"), &bin.join("stand-in"));
            fs::rename(bin.join("stand-in"), bin.join(name)).expect("a stand-in");
        }
    }

    fn about_to_hold_cas(&self) -> HeldCas {
        let clock = self.clock.clone().expect("a clock of one's own");
        let (now, pipe) = (self.now(), clock.with_extension("pipe"));
        let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(made.success());
        let pipe = OpenOptions::new().read(true).custom_flags(OFlags::PATH.bits() as i32).open(pipe).expect("the pipe");
        HeldCas { clock, pipe, now, held: None }
    }

    /// Starts a service with docker (or the runtime) by hand, as somebody who bypasses the scripts would.
    pub fn by_hand(&self, config_id: &str, how: &ByHand) -> Command {
        let volume = how.volume.map_or_else(|| self.volume(how.account), |name| self.root.join(name));
        let out = self.root.join(how.out);
        for directory in [&volume, &out] {
            fs::create_dir_all(directory).expect("a directory to mount");
            if self.user != User::Caller {
                chown(directory, Some(self.user.id()), Some(self.user.id())).expect("ownership");
            }
        }
        let image = how.image.map_or_else(|| self.known(how.account, &["image_id"]), str::to_owned);
        let cas = how.cas.map_or_else(|| self.known(how.account, &["cas", "enclave_address"]), str::to_owned);
        let mut command = match self.platform {
            Platform::Sim => {
                let (uid, gid) = self.ids();
                let mut command = self.command("docker");
                command.args(["run", "--rm", "--log-driver=none", "--network=host", "--read-only", "--cap-drop=ALL"]);
                command.arg(format!("--user={uid}:{gid}"));
                command.arg(format!("--tmpfs=/root/single_run:mode=0700,uid={uid},gid={gid}"));
                command.arg(mount(&volume, "/.sealed/root/single_run")).arg(mount(&out, "/out"));
                for name in ["SCONE_CONFIG_ID", "SCONE_CAS_ADDR", "SCONE_SIM_EVIDENCE_KEY"]
                    .iter()
                    .chain(how.environment.iter().map(|(name, _)| name))
                {
                    command.args(["-e", name]);
                }
                command.arg(image);
                command
            }
            Platform::SimNative => {
                let mut command = self.command(self.root.join("simulator/bin/scone-run"));
                command.arg("--rootfs").arg(image);
                for (host, inside) in [(&volume, "/.sealed/root/single_run"), (&out, "/out")] {
                    command
                        .arg("--bind")
                        .arg([host.as_os_str(), ":".as_ref(), inside.as_ref()].into_iter().collect::<OsString>());
                }
                command
            }
        };
        command.arg(how.program).env("SCONE_CONFIG_ID", config_id).env("SCONE_CAS_ADDR", cas);
        command.env("SCONE_SIM_EVIDENCE_KEY", self.scone_sim(["evidence-key"]).expect(0).stdout.trim_end());
        command.envs(how.environment.iter().copied());
        command
    }

    /// Whether a start by hand issued a QR code. (A program that was ended leaves a reserved file of blanks.)
    pub fn issued_by_hand(&self) -> bool {
        self.issued_to(BY_HAND)
    }

    /// The same, of a start that had another directory for its output.
    pub fn issued_to(&self, out: &str) -> bool {
        fs::read_to_string(self.root.join(out).join("qrcode.svg")).is_ok_and(|svg| svg.contains("svg"))
    }

    fn ids(&self) -> (u32, u32) {
        match self.user {
            User::Caller => (self.user.id(), rustix::process::getegid().as_raw()),
            User::Ordinary | User::Rootless => (self.user.id(), self.user.id()),
        }
    }

    /// Makes the bundle's user own this, and all below it.
    pub fn give_away(&self, path: &Path) {
        if self.user != User::Caller {
            let owner = format!("{0}:{0}", self.user.id());
            let status = Command::new("chown").args(["-R", "-h", &owner]).arg(path).status().expect("chown");
            assert!(status.success());
        }
    }

    /// Every regular file below the root that the scripts wrote, with its content.
    pub fn written(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for part in ["state", BY_HAND] {
            collect(&self.root.join(part), &mut found);
        }
        found
    }
}

/// A CAS whose clock is a pipe: it opens when both ends are there, so each side waits for the other and for nothing else.
/// CAS goes on when this is dropped.
pub struct HeldCas {
    clock: PathBuf,
    /// Not opened yet, wherever it is moved.
    pipe: File,
    now: u64,
    held: Option<File>,
}

impl HeldCas {
    /// Waits until CAS looks at its clock.
    pub fn wait(&mut self) {
        self.held = Some(OpenOptions::new().write(true).open(self.pipe()).expect("the pipe"));
    }

    fn pipe(&self) -> String {
        format!("/proc/self/fd/{}", self.pipe.as_raw_fd())
    }
}

impl Drop for HeldCas {
    fn drop(&mut self) {
        let next = self.clock.with_extension("next");
        // Opened for reading, too, so that it does not wait for a CAS that never looked.
        let held = self.held.take();
        let both = || OpenOptions::new().read(true).write(true).open(self.pipe()).expect("the pipe");
        let mut pipe = held.unwrap_or_else(both);
        fs::write(&next, self.now.to_string()).expect("the clock");
        fs::rename(next, &self.clock).expect("the clock");
        pipe.write_all(self.now.to_string().as_bytes()).expect("the time");
    }
}

impl Bundle {
    /// Gives up what `protect` left in the engine.
    fn untag_programs(&self) {
        for entry in fs::read_dir(self.root.join("state")).into_iter().flatten().flatten() {
            let state =
                fs::read_to_string(entry.path()).ok().filter(|_| entry.path().extension() == Some("yml".as_ref()));
            let state: Option<Value> = state.and_then(|state| serde_yaml::from_str(&state).ok());
            let Some(Value::Mapping(programs)) = state.as_ref().and_then(|state| state.get("programs")) else {
                continue;
            };
            for name in programs.keys().filter_map(Value::as_str) {
                let namespace = state.as_ref().and_then(|state| state["namespace"].as_str()).unwrap_or_default();
                let tag = format!("otpqr-program:{}.{name}", namespace.replace(['/', '~'], "-"));
                // A program that was removed has none.
                let _ = Command::new("docker").args(["image", "rm", &tag]).output();
            }
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.platform == Platform::Sim {
            self.untag_programs();
        }
        let down = run(self.simulator(["down"]));
        if down.code != Some(0) && !std::thread::panicking() {
            panic!("the simulated CAS does not stop: {}", down.text());
        }
    }
}

/// Names and paths of the compiled scripts, which only a test knows, for [`Bundle::install`].
macro_rules! scripts {
    () => {
        &[
            ("create", env!("CARGO_BIN_EXE_create")),
            ("gen_qr", env!("CARGO_BIN_EXE_gen_qr")),
            ("add_auth", env!("CARGO_BIN_EXE_add_auth")),
            ("roll_forward", env!("CARGO_BIN_EXE_roll_forward")),
            ("doctor", env!("CARGO_BIN_EXE_doctor")),
            ("protect", env!("CARGO_BIN_EXE_protect")),
            ("start", env!("CARGO_BIN_EXE_start")),
            ("approve", env!("CARGO_BIN_EXE_approve")),
        ]
    };
}

/// A file system at a directory, mounted by root. Gone when dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    fn at(path: &Path, mount: &mut Command) -> Mounted {
        assert!(mount.arg(path).status().expect("a mount").success(), "{mount:?}");
        Mounted(path.to_owned())
    }

    /// Copies a directory to one in memory, with these options, that covers it.
    pub fn in_memory(path: &Path, options: &str) -> Mounted {
        let aside = path.with_extension("aside");
        copy(path, &aside);
        let mounted = Mounted::at(path, Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]));
        copy(&aside.join("."), path);
        mounted
    }

    /// One that ignores permissions: all may do everything.
    pub fn ignoring_permissions(path: &Path) -> Mounted {
        fs::create_dir_all(path).expect("a directory");
        Mounted::at(path, Command::new("bindfs").args(["--perms=0777", "--chmod-ignore"]).arg(path))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a CAS that a failing test leaves running may have files there.
        let status = Command::new("umount").arg("--lazy").arg(&self.0).status().expect("umount");
        assert!(status.success() || std::thread::panicking(), "umount {}", self.0.display());
    }
}

/// A disk of its own, small enough to be filled.
pub struct SmallDisk(Mounted);

impl SmallDisk {
    /// Moves a directory to such a disk.
    pub fn below(path: &Path) -> SmallDisk {
        SmallDisk(Mounted::in_memory(path, "size=2m,mode=0700"))
    }

    /// Fills it but for so many pages.
    pub fn fill(&self, pages_left: u64) {
        let mut file = File::create(self.filler()).expect("a file");
        let full = std::io::copy(&mut std::io::repeat(1), &mut file).expect_err("an end");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        let length = file.metadata().expect("its length").len();
        file.set_len(length - pages_left * 4096).expect("room");
    }

    /// Makes room again.
    pub fn empty(&self) {
        fs::remove_file(self.filler()).expect("deletion");
    }

    fn filler(&self) -> PathBuf {
        self.0.0.join("filler")
    }
}

/// Runs a command to its end.
pub fn run(mut command: Command) -> Outcome {
    let output = command.output().unwrap_or_else(|cause| panic!("{command:?}: {cause}"));
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8 output");
    Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Waits until no run works on the account any more, nor a program that was left running by one that was killed.
pub fn all_ended(state_file: &Path) {
    let lock = File::open(state_file.with_extension("lock")).expect("the lock");
    lock.lock().expect("the lock");
}

/// Runs a command with something on its standard input.
pub fn run_with_input(mut command: Command, input: &str) -> Outcome {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|cause| panic!("{command:?}: {cause}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    // A child that refuses before it reads closes the pipe, which is not a failure of the test.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("the child's end");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8 output");
    Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Copies a directory with all below it, permissions and symbolic links included.
pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(status.success(), "cp -a {} {}", from.display(), to.display());
}

fn collect(directory: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            found.insert(path.clone(), fs::read(&path).expect("a file"));
        }
    }
}

/// docker reads `--mount` as CSV.
fn mount(host: &Path, inside: &str) -> String {
    format!("--mount=type=bind,\"src={}\",dst={inside}", host.display().to_string().replace('"', "\"\""))
}
