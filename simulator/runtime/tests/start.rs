//! Whole starts against a CAS in the test: what reaches the program, what is refused, and that no sync returns before CAS has
//! the volume's tag. On the host, as the user who runs the tests and, if that is root, as an ordinary one too, and with all files
//! of the image measured; and in a container, if there is a Docker Engine, with the static runtime that `make sim` built.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;

use ring::digest::{SHA256, digest};
use rustix::process::{Pid, Resource, Rlimit, Signal, geteuid, getrlimit, kill_process, setrlimit};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use scone_protocol::*;
use tempfile::TempDir;

const NOBODY: u32 = 65534;
const VOLUME_KEY: [u8; 32] = [7; 32];
const SERVICE: &str = "ns/otpqr/otpqr";
const EVIDENCE_KEY: &str = "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e";

// ---- a CAS ------------------------------------------------------------------------------------------------------------

/// What the CAS does when asked to move a tag.
enum OnSetTag {
    Take,
    Refuse,
    /// Takes it, and dies before it can say so, or when it is asked for the tag; so often.
    TakeAndHangUp(u32),
    /// Calls this instead of answering.
    Instead(Box<dyn FnMut() + Send>),
}

type More = Box<dyn Fn(&mut Configuration) + Send>;

struct CasState {
    configuration: Option<(Vec<String>, BTreeMap<String, Secret>)>,
    code: Option<String>,
    mrenclave: String,
    tag: Option<String>,
    tags_set: usize,
    on_set_tag: OnSetTag,
    /// What else is in the configuration.
    more: Option<More>,
    /// Called when asked to move a tag, before anything else.
    witness: Option<Box<dyn FnMut() + Send>>,
}

struct TestCas {
    address: String,
    key: String,
    state: Arc<Mutex<CasState>>,
}

impl TestCas {
    fn start() -> TestCas {
        let pair = rcgen::generate_simple_self_signed(["cas".to_owned()]).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&pair.signing_key);
        let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![pair.cert.der().clone()], key)
            .unwrap();
        let tls = Arc::new(tls);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cas = TestCas {
            address: listener.local_addr().unwrap().to_string(),
            key: hex(digest(&SHA256, &spki).as_ref()),
            state: Arc::new(Mutex::new(CasState {
                configuration: None,
                code: None,
                mrenclave: String::new(),
                tag: None,
                tags_set: 0,
                on_set_tag: OnSetTag::Take,
                more: None,
                witness: None,
            })),
        };
        let state = cas.state.clone();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let (tls, state) = (tls.clone(), state.clone());
                // A runtime that goes away, or will not have this CAS, is no failure of the CAS.
                thread::spawn(move || serve(socket.unwrap(), tls, &state));
            }
        });
        cas
    }

    fn state(&self) -> MutexGuard<'_, CasState> {
        self.state.lock().unwrap()
    }
}

fn serve(socket: TcpStream, tls: Arc<ServerConfig>, state: &Mutex<CasState>) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut stream = StreamOwned::new(ServerConnection::new(tls).unwrap(), socket);
    let nonce = "5a".repeat(32);
    send(&mut stream, &Hello { nonce: nonce.clone() })?;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut body)?;
        let refused = |cause: &str| Response::Refused { causes: vec!["outer".into(), cause.into()] };
        let answer = match serde_json::from_slice(&body)? {
            Request::Configure { service, code, evidence, .. } => {
                let exporter = stream.conn.export_keying_material([0; 32], EXPORTER_LABEL, None).unwrap();
                assert!(evidence.is_made_with(&Secret::new(EVIDENCE_KEY.into()), &exporter, &nonce));
                let mut state = state.lock().unwrap();
                state.mrenclave = evidence.mrenclave;
                match (&state.configuration, code == state.code && service == SERVICE) {
                    (Some((command, environment)), true) => {
                        let mut configuration = Configuration {
                            command: command.clone(),
                            environment: environment.clone(),
                            volumes: vec![VolumeGrant {
                                session: "ns/otpqr".into(),
                                name: "single_run_1".into(),
                                path: "/root/single_run".into(),
                                key: Secret::new(hex(&VOLUME_KEY)),
                                tag: state.tag.clone(),
                                ..VolumeGrant::default()
                            }],
                            ..Configuration::default()
                        };
                        if let Some(more) = &state.more {
                            more(&mut configuration);
                        }
                        Response::Configuration(configuration)
                    }
                    _ => refused("Failed to retrieve service attestation configuration"),
                }
            }
            Request::ReadTag(request) => {
                let exporter = stream.conn.export_keying_material([0; 32], EXPORTER_LABEL, None).unwrap();
                assert!(request.is_authorised_by(&VOLUME_KEY, &exporter, &nonce));
                let mut state = state.lock().unwrap();
                if let OnSetTag::TakeAndHangUp(times @ 1..) = &mut state.on_set_tag {
                    *times -= 1;
                    return Ok(());
                }
                Response::Tag { tag: state.tag.clone() }
            }
            Request::SetTag(request) => {
                assert!(request.is_authorised_by(&VOLUME_KEY));
                let mut state = state.lock().unwrap();
                if let Some(witness) = &mut state.witness {
                    witness();
                }
                let fits = state.tag == request.old || state.tag.as_ref() == Some(&request.new);
                if !fits {
                    send(&mut stream, &refused("stale"))?;
                    continue;
                }
                if let OnSetTag::Instead(act) = &mut state.on_set_tag {
                    act();
                    return Ok(());
                }
                if matches!(state.on_set_tag, OnSetTag::Refuse) {
                    send(&mut stream, &refused("not this time"))?;
                    continue;
                }
                state.tag = Some(request.new);
                state.tags_set += 1;
                if let OnSetTag::TakeAndHangUp(times) = &mut state.on_set_tag
                    && *times > 0
                {
                    *times -= 1;
                    return Ok(());
                }
                Response::TagSet
            }
        };
        send(&mut stream, &answer)?;
    }
}

fn send(stream: &mut impl Write, frame: &impl serde::Serialize) -> std::io::Result<()> {
    let body = serde_json::to_vec(frame)?;
    stream.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes())?;
    stream.write_all(&body)?;
    stream.flush()
}

// ---- a host -----------------------------------------------------------------------------------------------------------

/// An image, a sealed volume, an output directory and a CAS, for one user, natively or in a container.
struct Host {
    directory: TempDir,
    cas: TestCas,
    user: Option<u32>,
    /// The image's ID; `None`: run natively.
    image: Option<Arc<Image>>,
    /// Natively: measure all files of the image (`--fs-dir /`), not the program alone.
    all_files: bool,
}

/// Runs a test natively.
fn on_the_host(test: impl Fn(Host)) {
    test(Host::new(None, None));
    if geteuid().is_root() {
        test(Host::new(Some(NOBODY), None));
    }
}

/// Runs a test natively, with the program measured and with all files of the image, and, where that can be, in a container.
fn everywhere(test: impl Fn(Host)) {
    on_the_host(&test);
    let ordinary = geteuid().is_root().then_some(NOBODY);
    test(Host { all_files: true, ..Host::new(ordinary, None) });
    if let Some(image) = image() {
        test(Host::new(ordinary, Some(image)));
    }
}

/// An image with nothing in it: runtime and program are mounted. It goes with the last test that uses it.
struct Image(String);

impl Drop for Image {
    fn drop(&mut self) {
        let removed = Command::new("docker").args(["image", "rm", &self.0]).output().unwrap();
        assert!(removed.status.success() || thread::panicking(), "{}", text(&removed.stderr));
    }
}

/// `None`, and a word about it, where there cannot be one.
fn image() -> Option<Arc<Image>> {
    static IMAGE: Mutex<Weak<Image>> = Mutex::new(Weak::new());
    let mut known = IMAGE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(image) = known.upgrade() {
        return Some(image);
    }
    let directory = TempDir::new().unwrap();
    fs::create_dir_all(directory.path().join("root")).unwrap();
    let recipe = "FROM scratch\nCOPY root /root\nENTRYPOINT [\"/scone-run\"]\n";
    fs::write(directory.path().join("Dockerfile"), recipe).unwrap();
    // By name, not by ID: another run of the tests may have the same.
    let name = format!("scone-run-test:{}", std::process::id());
    let built = Command::new("docker").args(["build", "-q", "-t", &name]).arg(directory.path()).output();
    let missing = match (static_runtime().exists(), built) {
        (true, Ok(built)) if built.status.success() => {
            let image = Arc::new(Image(name));
            *known = Arc::downgrade(&image);
            return Some(image);
        }
        (false, _) => "simulator/bin/scone-run: make sim",
        (true, _) => "a Docker Engine",
    };
    assert!(std::env::var_os("REQUIRE_DOCKER").is_none_or(|value| value != "1"), "missing: {missing}");
    eprintln!("SKIPPED in a container: missing: {missing}");
    None
}

/// Nothing is in a container that a dynamic one could be linked with.
fn static_runtime() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin/scone-run")
}

/// The static program, compiled once.
fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/program/probe.rs");
        let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
        let flags = ["--edition=2024", "-Ctarget-feature=+crt-static", "-Copt-level=1", "-Cstrip=symbols", "-o"];
        let status = Command::new(rustc).args(flags).arg(&to).arg(source).status().unwrap();
        assert!(status.success());
        to
    })
}

/// Copies a program in a process of its own: a child that another test forks meanwhile would inherit the copy open for writing,
/// and what is open for writing cannot be executed.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

impl Host {
    fn new(user: Option<u32>, image: Option<Arc<Image>>) -> Host {
        let directory = TempDir::new().unwrap();
        let host = Host { directory, cas: TestCas::start(), user, image, all_files: false };
        for name in ["", "image", "image/bin", "image/root", "volume", "out"] {
            let path = host.path(name);
            fs::create_dir_all(&path).unwrap();
            chown(&path, user, user).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        copy(probe(), &host.path("image/bin/probe"));
        let runtime = if host.image.is_some() { static_runtime() } else { env!("CARGO_BIN_EXE_scone-run").into() };
        copy(&runtime, &host.path("scone-run"));
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the session says is to be run.
    fn policy(&self, steps: &[&str]) {
        let command = ["probe"].iter().chain(steps).map(|part| part.to_string()).collect();
        let environment = BTreeMap::from([("GIVEN".to_owned(), Secret::new("by the policy".to_owned()))]);
        self.cas.state().configuration = Some((command, environment));
    }

    fn command(&self) -> Command {
        let mut command = match &self.image {
            Some(image) => self.in_container(image, &["--tmpfs", &self.tmpfs()]),
            None => self.on_host(),
        };
        command.args(["/bin/probe", "arguments"]);
        command.env("SCONE_CONFIG_ID", SERVICE).env("SCONE_CAS_ADDR", &self.cas.address);
        command
            .env("SCONE_SIM_CAS_KEY", &self.cas.key)
            .env("SCONE_SIM_EVIDENCE_KEY", EVIDENCE_KEY)
            .stdin(Stdio::null());
        command
    }

    fn on_host(&self) -> Command {
        let mut command = Command::new(self.path("scone-run"));
        let bind = |host: &str, to: &str| format!("{}:{to}", self.path(host).display());
        command.arg("--rootfs").arg(self.path("image"));
        command.args(["--bind", &bind("volume", "/.sealed/root/single_run"), "--bind", &bind("out", "/out")]);
        if self.all_files {
            command.args(["--fs-dir", "/", "--mount-point", "/out"]);
        }
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    fn in_container(&self, image: &Image, options: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "-i", "--log-driver", "none", "--network", "host"]);
        command.args(["--cap-drop", "ALL", "--read-only", "--name", &self.container(), "--user", &self.ids(":")]);
        let bind = |host: &str, to: &str| format!("type=bind,src={},dst={to}", self.path(host).display());
        command.args(["--mount", &bind("volume", "/.sealed/root/single_run"), "--mount", &bind("out", "/out")]);
        for (from, to) in [("scone-run", "/scone-run"), ("image/bin/probe", "/bin/probe")] {
            command.args(["--mount", &format!("{},readonly", bind(from, to))]);
        }
        for name in ["CONFIG_ID", "CAS_ADDR", "SIM_CAS_KEY", "SIM_EVIDENCE_KEY", "HASH", "HEAP"] {
            command.args(["-e", &format!("SCONE_{name}")]);
        }
        command.args(["-e", "OTP_RESET"]).args(options).arg(&image.0);
        command
    }

    fn container(&self) -> String {
        let name = self.directory.path().file_name().unwrap().to_str().unwrap();
        format!("scone-run-test-{}", name.trim_start_matches('.'))
    }

    fn ids(&self, between: &str) -> String {
        let user = self.user.unwrap_or(geteuid().as_raw());
        format!("{user}{between}{}", self.user.unwrap_or(rustix::process::getegid().as_raw()))
    }

    fn tmpfs(&self) -> String {
        format!("/root/single_run:mode=0700,uid={}", self.ids(",gid="))
    }

    /// Kills the runtime as nothing can catch it.
    fn kill(&self, child: &mut Child) {
        match &self.image {
            None => child.kill().unwrap(),
            Some(_) => {
                let killed = Command::new("docker").args(["kill", &self.container()]).output().unwrap();
                assert!(killed.status.success(), "{}", text(&killed.stderr));
            }
        }
        let status = child.wait().unwrap();
        assert!(status.signal() == Some(9) || status.code() == Some(137), "{status}");
    }

    fn run(&self, steps: &[&str]) -> Output {
        self.policy(steps);
        self.command().output().unwrap()
    }

    /// Runs, and expects it to go well.
    fn says(&self, steps: &[&str]) -> String {
        let output = self.run(steps);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The names in the sealed directory that end like this.
    fn sealed(&self, end: &str) -> Vec<PathBuf> {
        let paths = fs::read_dir(self.path("volume")).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.to_str().unwrap().ends_with(end)).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_fatal(output: &Output, words: &[&str]) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(134), "{error}");
    for word in
        ["[SCONE|FATAL] ", "\n  Caused by: ", "\nNote: Connecting to CAS at 127.0.0.1 (port "].iter().chain(words)
    {
        assert!(error.contains(word), "{word:?} is not in {error}");
    }
}

// ---- what reaches the program -----------------------------------------------------------------------------------------

#[test]
fn the_program_gets_the_policys_configuration_and_nothing_of_the_callers() {
    everywhere(|host| {
        // The runtime's own environment holds the code; the image is what was measured.
        let said = host.says(&["read=/proc/1/environ", "try-write=/created", "try-write=/bin/probe"]);
        let refused = format!("Err(Some({}))\n", libc::EROFS);
        assert_eq!(said, format!("no /proc/1/environ: PermissionDenied\n{refused}{refused}"));

        host.policy(&["environment", "arguments", "directory", "descriptors", "capabilities"]);
        let output = host.command().env("OTP_RESET", "TRUE").arg("mine").output().unwrap();
        let (said, complained) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{complained}");
        assert!(!said.contains("OTP_RESET") && !said.contains("SCONE_") && !said.contains("mine"), "{said}");
        let expected = "GIVEN=by the policy\nprobe\nenvironment\narguments\ndirectory\ndescriptors\ncapabilities\n/\n";
        assert!(said.starts_with(expected), "{said}");
        let foreign = |line: &&str| line.contains(host.directory.path().to_str().unwrap());
        assert_eq!(said.lines().find(foreign), None);
        for line in said.lines().filter(|line| line.starts_with("Cap")) {
            assert!(line.ends_with(":\t0000000000000000"), "{line}");
        }
        assert!(complained.contains("Application runs in SGX simulation mode"), "{complained}");
    });
}

/// Where it could: in a directory that it may write to, and that stays.
#[test]
fn a_program_that_aborts_leaves_no_core_dump_where_its_caller_allows_one() {
    let maximum = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: maximum, maximum }).unwrap();
    everywhere(|host| {
        host.cas.state().more = Some(Box::new(|configuration| configuration.pwd = Some("/out".into())));
        let output = host.run(&["read=/proc/self/limits", "abort"]);
        assert_eq!(output.status.code(), Some(128 + 6), "{}", text(&output.stderr));
        let limits = text(&output.stdout);
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
        assert_eq!(limit.split_whitespace().collect::<Vec<_>>(), ["1", "1", "bytes"]);
        assert_eq!(fs::read_dir(host.path("out")).unwrap().count(), 0);
    });
}

#[test]
fn exit_status_and_signals_pass_through() {
    everywhere(|host| {
        assert_eq!(host.run(&["exit=7"]).status.code(), Some(7));
        assert_eq!(host.run(&["die"]).status.code(), Some(128 + 15));

        host.policy(&["wait-for-signal"]);
        let mut child = host.command().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(42));
    });
}

#[test]
fn the_measurement_is_printed_alone_and_is_what_cas_is_told() {
    everywhere(|host| {
        let output = host.command().env("SCONE_HASH", "1").output().unwrap();
        let measured = text(&output.stdout);
        assert_eq!(unhex(measured.trim_end()).map(|hash| hash.len()), Some(32), "{measured}");
        assert_eq!(text(&output.stderr), "");
        assert!(host.cas.state().mrenclave.is_empty());

        let heap = host.command().env("SCONE_HASH", "1").env("SCONE_HEAP", "1G").output().unwrap();
        assert_ne!(text(&heap.stdout), measured);

        host.says(&[]);
        assert_eq!(host.cas.state().mrenclave, measured.trim_end());
        // The same binaries, natively.
        assert_eq!(text(&host.on_host().arg("/bin/probe").env("SCONE_HASH", "1").output().unwrap().stdout), measured);
    });
}

#[test]
fn without_a_config_id_cas_is_not_asked_and_the_callers_arguments_count() {
    everywhere(|host| {
        let output = host.command().env_remove("SCONE_CONFIG_ID").output().unwrap();
        assert_eq!(text(&output.stdout), "/bin/probe\narguments\n", "{}", text(&output.stderr));
        assert!(host.cas.state().mrenclave.is_empty());
    });
}

#[test]
fn the_callers_arguments_and_variables_reach_the_program_only_where_the_policy_says() {
    everywhere(|host| {
        host.policy(&["", "", "arguments", "environment"]);
        host.cas.state().more = Some(Box::new(|configuration| {
            configuration.host_arguments = vec![(1, 3), (2, 1)];
            configuration.host_environment = vec!["OTP_RESET".into(), "ABSENT".into()];
        }));
        // The caller gives one argument, three are needed.
        let output = host.command().output().unwrap();
        assert_fatal(&output, &["An argument is missing", "takes argument 3 of the caller's, who gave 1"]);
        assert_eq!(text(&output.stdout), "");

        let output = host.command().env("OTP_RESET", "the caller's").args(["unused", "directory"]).output().unwrap();
        let said = text(&output.stdout);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(said.starts_with("/\nprobe\ndirectory\narguments\narguments\nenvironment\n"), "{said}");
        assert!(said.ends_with("ABSENT=\nGIVEN=by the policy\nOTP_RESET=the caller's\n"), "{said}");
        assert!(!said.contains("unused"), "{said}");
    });
}

#[test]
fn injected_files_are_in_memory_with_their_mode() {
    everywhere(|host| {
        let (directory, nowhere) =
            if host.image.is_some() { ("/root", "/nowhere") } else { ("/etc/app", "/bin/probe") };
        let path = format!("{directory}/my.cnf");
        let inject = |path: String| {
            host.cas.state().more = Some(Box::new(move |configuration| {
                let content = Some(Secret::new(hex(b"password=hunter2")));
                configuration.injection_files = vec![InjectionFile { path: path.clone(), content, mode: 0o640 }];
                configuration.volumes.clear();
            }));
        };
        // In a volume it would be kept; nor may it lie below a file, nor in a container where there is a disk.
        host.cas.state().more = Some(Box::new(|configuration| {
            let content = Some(Secret::new(String::new()));
            let path = "/root/single_run/f".to_owned();
            configuration.injection_files = vec![InjectionFile { path, content, mode: 0o640 }];
        }));
        assert_fatal(&host.run(&["arguments"]), &["cannot be the path of a volume or an injected file"]);
        inject(format!("{nowhere}/below/it"));
        assert_eq!(host.run(&["arguments"]).status.code(), Some(134));

        host.policy(&[
            &format!("read={path}"),
            &format!("mode={path}"),
            &format!("write={path},x"),
            &format!("read={path}"),
        ]);
        inject(path);
        let mut command = match &host.image {
            Some(image) => {
                let memory = format!("/root:mode=0700,uid={}", host.ids(",gid="));
                let mut command = host.in_container(image, &["--tmpfs", &memory]);
                command.args(["/bin/probe"]).env("SCONE_CONFIG_ID", SERVICE).env("SCONE_CAS_ADDR", &host.cas.address);
                command.env("SCONE_SIM_CAS_KEY", &host.cas.key).env("SCONE_SIM_EVIDENCE_KEY", EVIDENCE_KEY);
                command
            }
            None => host.command(),
        };
        let output = command.output().unwrap();
        assert_eq!(text(&output.stdout), "password=hunter2\n640\nx\n", "{}", text(&output.stderr));
        let image = host.path("image");
        assert!(!image.join("etc/app").exists() && !image.join("root/my.cnf").exists(), "it is in memory only");
    });
}

#[test]
fn secrets_are_filled_into_a_file_of_the_image_in_memory() {
    everywhere(|host| {
        let path = "/etc/app.conf";
        let file = host.path("image").join("etc/app.conf");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        host.policy(&[&format!("read={path}"), &format!("mode={path}"), &format!("write={path},x")]);
        host.cas.state().more = Some(Box::new(|configuration| {
            let path = "/etc/app.conf".to_owned();
            configuration.injection_files = vec![InjectionFile { path, content: None, mode: 0o640 }];
            configuration.secrets = [("pass".to_owned(), Secret::new(hex(b"hunter2")))].into();
            configuration.volumes.clear();
        }));
        if host.image.is_some() {
            assert_fatal(&host.run(&[]), &["Injecting /etc/app.conf failed", "not simulated in a container"]);
            return;
        }
        let fails =
            |why: &str| assert_fatal(&host.command().output().unwrap(), &["Injecting /etc/app.conf failed", why]);
        fails("cannot read '/etc/app.conf' of the image: No such file");
        symlink(host.path("outside"), &file).unwrap();
        fs::write(host.path("outside"), "password=$$SCONE::pass$$").unwrap();
        fails("cannot read '/etc/app.conf' of the image: No such file");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        fails("'/etc/app.conf' of the image is no regular file");
        fs::remove_dir(&file).unwrap();
        fs::write(&file, vec![b' '; 256 * 1024 + 1]).unwrap();
        fails("is larger than 262144 bytes");
        fs::write(&file, "password=$$SCONE::other$$").unwrap();
        fails("the session provides no secret for the placeholder 'other'");
        let written = "password=$$SCONE::pass$$ cost=$$5";
        fs::write(&file, written).unwrap();
        let output = host.command().output().unwrap();
        assert_eq!(text(&output.stdout), "password=hunter2 cost=$$5\n640\n", "{}", text(&output.stderr));
        assert_eq!(fs::read_to_string(&file).unwrap(), written, "the image's file stays as it was");
    });
}

#[test]
fn a_cas_that_does_not_know_the_access_token_configures_nothing() {
    on_the_host(|host| {
        host.policy(&["arguments"]);
        let run = || host.command().env("SCONE_SERVICE_ACCESS_TOKEN", "token").output().unwrap();
        for proof in [None, Some(String::new()), Some("00".repeat(32))] {
            let proof = proof.clone();
            host.cas.state().more = Some(Box::new(move |configuration| configuration.access_proof = proof.clone()));
            let output = run();
            assert_fatal(&output, &["CAS does not know the service access token"]);
            assert_eq!(text(&output.stdout), "");
            assert!(!text(&output.stderr).contains("token\n  "), "the token is not shown");
        }
        // Without one, none is asked for.
        host.cas.state().more = None;
        assert!(host.command().output().unwrap().status.success());
    });
}

// ---- what is refused --------------------------------------------------------------------------------------------------

#[test]
fn a_refusal_is_shown_in_scones_frame_and_nothing_runs() {
    everywhere(|host| {
        host.policy(&["arguments"]);
        host.cas.state().code = Some("123456".into());
        let output = host.command().env("SCONE_CONFIG_ID", format!("{SERVICE}@654321")).output().unwrap();
        assert_fatal(
            &output,
            &[
                "[SCONE|FATAL] src/process/init.c:302:__scone_prepare_secure_config(): Could not initialize enclave \
                 state: Attestation failed\n  Caused by: outer\n  Caused by: Failed to retrieve service attestation \
                 configuration\nNote: ",
                "using service ID ns/otpqr/otpqr@654321\n",
            ],
        );
        assert_eq!(text(&output.stdout), "");

        let output = host.command().env("SCONE_CONFIG_ID", format!("{SERVICE}@123456")).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(!text(&output.stderr).contains("123456"));
    });
}

#[test]
fn another_cas_than_the_one_expected_is_told_nothing() {
    everywhere(|host| {
        host.policy(&["arguments"]);
        let output = host.command().env("SCONE_SIM_CAS_KEY", "00".repeat(32)).output().unwrap();
        let words = "  Caused by: Failed to establish an encrypted channel to CAS\n  Caused by: I/O error\n  \
                     Caused by: invalid certificate: UnknownIssuer\nNote: ";
        assert_fatal(&output, &[words]);
        assert_eq!(text(&output.stdout), "");
        assert!(host.cas.state().mrenclave.is_empty());
    });
}

#[test]
fn a_dynamically_linked_program_is_not_simulated() {
    on_the_host(|host| {
        copy("/bin/sh".as_ref(), &host.path("image/bin/probe"));
        assert_fatal(&host.run(&[]), &["dynamically linked", "not simulated"]);
        assert!(host.cas.state().mrenclave.is_empty());
    });
}

#[test]
fn a_program_altered_between_its_measurement_and_its_start_runs_as_it_was_measured() {
    everywhere(|host| {
        let program = host.path("image/bin/probe");
        let genuine = fs::read(&program).unwrap();
        let mut altered = genuine.clone();
        let (word, other) = (b"fsync returned ", b"ALTERED PROGRAM");
        for at in 0..altered.len() - word.len() {
            if altered[at..].starts_with(word) {
                altered[at..at + word.len()].copy_from_slice(other);
            }
        }
        assert_ne!(altered, genuine);
        let measured = text(&host.command().env("SCONE_HASH", "1").output().unwrap().stdout);
        // CAS answers when the program has been measured and has not been executed. The same file: its content changes in place.
        let target = program.clone();
        let rewritten = altered.clone();
        host.cas.state().more = Some(Box::new(move |_| {
            fs::OpenOptions::new().write(true).open(&target).unwrap().write_all(&rewritten).unwrap();
        }));
        let said = host.says(&["write=/out/x,y", "fsync=/out/x"]);
        assert_eq!(host.cas.state().mrenclave, measured.trim_end());
        assert!(fs::read(&program).unwrap() == altered, "it was altered in time");
        assert_eq!(said, "fsync returned Ok(())\n");

        // The next start measures what is there then.
        host.cas.state().more = None;
        assert_eq!(host.says(&["fsync=/out/x"]), "ALTERED PROGRAMOk(())\n");
        assert_ne!(host.cas.state().mrenclave, measured.trim_end());
    });
}

#[test]
fn what_is_no_regular_file_in_the_programs_place_is_refused_at_once() {
    on_the_host(|host| {
        let program = host.path("image/bin/probe");
        fs::remove_file(&program).unwrap();
        assert!(Command::new("mkfifo").arg(&program).status().unwrap().success());
        assert_fatal(&host.run(&[]), &["'/bin/probe' is no regular file"]);
        fs::remove_file(&program).unwrap();
        fs::create_dir(&program).unwrap();
        assert_fatal(&host.run(&[]), &["'/bin/probe' is no regular file"]);
        fs::remove_dir(&program).unwrap();
        std::os::unix::fs::symlink("/dev/null", &program).unwrap();
        // Seen from the image's own root, where there is none until the program runs.
        assert_fatal(&host.run(&[]), &["cannot read '/bin/probe'"]);
        assert!(host.cas.state().mrenclave.is_empty());
    });
}

#[test]
fn a_host_without_user_namespaces_is_told_so() {
    on_the_host(|host| {
        host.policy(&["arguments"]);
        // The limit is a namespace's own: in one of its own it disturbs nobody.
        let script = "echo 0 >/proc/sys/user/max_user_namespaces && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-Ur", "sh", "-c", script, "-"]).arg(host.path("scone-run"));
        command.arg("--rootfs").arg(host.path("image")).arg("/bin/probe").env("SCONE_CONFIG_ID", SERVICE);
        if let Some(user) = host.user {
            command.uid(user).gid(user);
        }
        let output = command.output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(134), "{error}");
        assert!(error.contains("cannot create a user namespace (they may be switched off on this host)"), "{error}");
        assert_eq!(text(&output.stdout), "");
    });
}

#[test]
fn a_runtime_that_is_not_alone_in_a_container_runs_nothing() {
    on_the_host(|host| {
        let mut command = Command::new(host.path("scone-run"));
        let output = command.arg(host.path("image/bin/probe")).arg("arguments").output().unwrap();
        assert_eq!(output.status.code(), Some(134));
        assert!(text(&output.stderr).contains("it must be the first process of a container"));
        assert_eq!(text(&output.stdout), "");
    });
}

#[test]
fn a_container_whose_volume_would_be_on_disk_is_refused() {
    let Some(image) = image() else { return };
    let host = Host::new(None, Some(image.clone()));
    host.policy(&["arguments"]);
    host.cas.state().tag = None;
    let plain = format!("type=bind,src={},dst=/root/single_run", host.path("out").display());
    let mut command = host.in_container(&image, &["--mount", &plain]);
    command.arg("/bin/probe").env("SCONE_CONFIG_ID", SERVICE).env("SCONE_CAS_ADDR", &host.cas.address);
    command.env("SCONE_SIM_EVIDENCE_KEY", EVIDENCE_KEY);
    let output = command.output().unwrap();
    assert_fatal(&output, &["'/root/single_run' is not in memory: mount a tmpfs there"]);
    assert_eq!(text(&output.stdout), "");
    assert_eq!(host.sealed("").len(), 0);
}

// ---- volumes and the barrier ------------------------------------------------------------------------------------------

const ONCE: &str = "/root/single_run/once";

#[test]
fn a_volume_keeps_its_files_from_start_to_start_and_shows_none_of_them() {
    everywhere(|host| {
        let said = host.says(&[&format!("read={ONCE}"), &format!("write={ONCE},secret-in-volume")]);
        assert!(said.starts_with("no "), "{said}");
        for path in host.sealed("") {
            assert!(!text(&fs::read(&path).unwrap()).contains("secret-in-volume"), "{}", path.display());
        }
        assert_eq!(host.says(&[&format!("read={ONCE}")]), "secret-in-volume\n");
        // The first start brings the volume into being, its end seals the file; the second start changes nothing.
        assert_eq!(host.cas.state().tags_set, 2);
    });
}

#[test]
fn an_ephemeral_volume_is_at_every_start_what_it_was() {
    everywhere(|host| {
        host.says(&[&format!("write={ONCE},first")]);
        let (sealed, tag) = (host.sealed(""), host.cas.state().tag.clone());
        host.cas.state().more =
            Some(Box::new(|configuration| configuration.volumes[0].update_policy = UpdatePolicy::Ephemeral));
        for _ in 0..2 {
            let steps = [
                &format!("read={ONCE}"),
                &format!("write={ONCE},second"),
                &format!("fsync={ONCE}"),
                &format!("read={ONCE}"),
            ];
            let said = host.says(&steps.map(String::as_str));
            assert_eq!(said, "first\nfsync returned Ok(())\nsecond\n");
            assert_eq!((host.sealed(""), host.cas.state().tag.clone()), (sealed.clone(), tag.clone()));
        }
    });
}

#[test]
fn without_rollback_protection_an_older_copy_is_opened() {
    on_the_host(|host| {
        let older = TempDir::new().unwrap();
        let copy_volume = |from: &Path, to: &Path| {
            let script = "rm -rf \"$2\"/*; cp -a \"$1\"/. \"$2\"";
            assert!(Command::new("sh").args(["-c", script, "-"]).arg(from).arg(to).status().unwrap().success());
        };
        host.says(&[&format!("write={ONCE},first")]);
        copy_volume(&host.path("volume"), older.path());
        host.says(&[&format!("write={ONCE},second")]);
        copy_volume(older.path(), &host.path("volume"));
        assert_fatal(&host.run(&[&format!("read={ONCE}")]), &["The FSPF tag is not fresh - suspected replay attack"]);

        let unprotected = |grant: &mut VolumeGrant| grant.update_policy = UpdatePolicy::NoRollbackProtection;
        host.cas.state().more = Some(Box::new(move |configuration| unprotected(&mut configuration.volumes[0])));
        assert_eq!(host.says(&[&format!("read={ONCE}"), &format!("write={ONCE},third")]), "first\n");
        // CAS was told: with protection it goes on from there.
        host.cas.state().more = None;
        assert_eq!(host.says(&[&format!("read={ONCE}")]), "third\n");
    });
}

#[test]
fn no_sync_returns_before_cas_has_the_tag() {
    everywhere(|host| {
        let fsync = format!("fsync={ONCE}");
        let directory = "fsync=/root/single_run";
        for sync in [&fsync, directory, "sync", &format!("child={fsync}"), &format!("thread={fsync}")] {
            // The program's own account of what it did, up to the moment at which CAS is asked.
            let (accounts, log) = (Arc::new(Mutex::new(Vec::new())), host.path("out/log"));
            let witnessed = accounts.clone();
            host.cas.state().witness = Some(Box::new(move || {
                witnessed.lock().unwrap().push(fs::read_to_string(&log).unwrap_or_default());
            }));
            let write = format!("write={ONCE},{}", sync.len());
            host.says(&["write=/out/log,before", &write, sync, "write=/out/log,after", "write=/out/log,"]);
            let accounts = accounts.lock().unwrap();
            assert_eq!(accounts.last().map(String::as_str), Some("before"), "{sync}");
            assert_eq!(fs::read_to_string(host.path("out/log")).unwrap(), "");
        }
    });
}

#[test]
fn threads_that_sync_and_rename_under_a_timers_signals_all_come_through() {
    everywhere(|host| {
        host.says(&["storm=/root/single_run,10"]);
        let read = |name: &str| format!("read=/root/single_run/{name}");
        assert_eq!(host.says(&[&read("0"), &read("1"), &read("2"), &read("a/moved")]), "0:9\n1:9\n2:9\nhere\n");
    });
}

#[test]
fn stores_through_a_mapping_are_sealed_at_the_next_sync_though_no_timestamp_moves() {
    everywhere(|host| {
        let said = host.says(&[&format!("write={ONCE},-"), &format!("map={ONCE},abcd")]);
        assert_eq!(said, "msync returned 0\n".repeat(3) + "fsync returned Ok(())\n");
        // The empty volume and four stores.
        assert_eq!(host.cas.state().tags_set, 5);
        assert_eq!(host.says(&[&format!("read={ONCE}")]), "d\n");
    });
}

#[test]
fn a_write_that_has_begun_when_another_thread_syncs_is_sealed_whole() {
    on_the_host(|host| {
        const SIZE: usize = 32 << 20;
        fs::write(host.path("out/source"), vec![b'y'; SIZE]).unwrap();
        let other = "/root/single_run/other";
        let fill = [&format!("fill={ONCE},{SIZE}"), &format!("write={other},-"), "sync"];
        host.says(&[fill[0], fill[1], fill[2], &format!("write-slowly={ONCE},/out/source,{other}")]);
        assert_eq!(host.says(&[&format!("all={ONCE}")]), "all y: true\n");
    });
}

#[test]
fn what_would_slip_past_the_barrier_is_denied() {
    everywhere(|host| {
        const RWF_DSYNC: i32 = 2;
        const RWF_SYNC: i32 = 4;
        let call = |number: i64, flags: i32| format!("syscall={number},{flags}");
        let said = host.says(&[
            &format!("open-synchronous={ONCE},{}", libc::O_SYNC),
            &format!("open-synchronous={ONCE},{}", libc::O_DSYNC),
            &call(libc::SYS_io_uring_setup, 0),
            &call(libc::SYS_io_setup, 0),
            &call(libc::SYS_openat2, 0),
            &call(libc::SYS_open_by_handle_at, 0),
            &call(libc::SYS_pwritev2, RWF_DSYNC),
            &call(libc::SYS_pwritev2, RWF_SYNC),
            &call(libc::SYS_pwritev2, 0),
        ]);
        let [absent, unsupported, harmless] =
            [libc::ENOSYS, libc::EOPNOTSUPP, libc::EBADF].map(|errno| format!("Some({errno})\n"));
        for foreign in ["foreign-call", "x32-call"] {
            let output = host.run(&[foreign, "write=/out/after,x"]);
            // SIGSYS; SIGSEGV where the kernel serves no 32-bit programs.
            assert!([128 + 31, 128 + 11].contains(&output.status.code().unwrap()), "{foreign}: {}", output.status);
            assert!(!host.path("out/after").exists());
        }
        let synchronous = format!("Err(Some({}))\n", libc::EOPNOTSUPP).repeat(2);
        assert_eq!(said, format!("{synchronous}{}{}{harmless}", absent.repeat(4), unsupported.repeat(2)));
    });
}

#[test]
fn a_tag_that_cas_refuses_kills_the_program_in_its_sync() {
    everywhere(|host| {
        host.says(&[]);
        host.cas.state().on_set_tag = OnSetTag::Refuse;
        let output = host.run(&[&format!("write={ONCE},x"), &format!("fsync={ONCE}"), "write=/out/after,x"]);
        assert_fatal(&output, &["Caused by: CAS did not take the volume's new tag", "Caused by: not this time"]);
        assert_eq!(text(&output.stdout), "");
        assert!(!host.path("out/after").exists());

        host.cas.state().on_set_tag = OnSetTag::Take;
        assert_eq!(host.says(&[&format!("read={ONCE}")]), format!("no {ONCE}: NotFound\n"));
    });
}

#[test]
fn a_cas_that_dies_having_taken_the_tag_is_asked_again_and_again() {
    everywhere(|host| {
        host.cas.state().on_set_tag = OnSetTag::TakeAndHangUp(1);
        host.says(&[]);
        host.cas.state().on_set_tag = OnSetTag::TakeAndHangUp(3);
        let said = host.says(&[&format!("write={ONCE},x"), &format!("fsync={ONCE}")]);
        assert_eq!(said, "fsync returned Ok(())\n");
        assert_eq!(host.says(&[&format!("read={ONCE}")]), "x\n");
        // So is one that dies as it is asked for the tag, on each new connection with a proof of its own.
        host.cas.state().more =
            Some(Box::new(|configuration| configuration.volumes[0].update_policy = UpdatePolicy::Ephemeral));
        host.cas.state().on_set_tag = OnSetTag::TakeAndHangUp(3);
        assert_eq!(host.says(&[&format!("read={ONCE}")]), "x\n");
        assert!(matches!(host.cas.state().on_set_tag, OnSetTag::TakeAndHangUp(0)));
    });
}

#[test]
fn a_volume_file_removed_while_the_program_runs_ends_it() {
    everywhere(|host| {
        host.says(&[&format!("write={ONCE},x")]);
        for end in [".blob", ".manifest"] {
            let kept = tempfile::tempdir().unwrap();
            host.policy(&["wait-for-signal", "sync"]);
            let mut child =
                host.command().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            let removed = host.sealed(end).pop().unwrap();
            let copy = kept.path().join("copy");
            fs::copy(&removed, &copy).unwrap();
            fs::remove_file(&removed).unwrap();
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            let output = child.wait_with_output().unwrap();
            assert_fatal(&output, &["Caused by: file system protection file was removed: "]);
            assert_fatal(&host.run(&[]), &["Caused by: file system protection file was removed: "]);
            fs::copy(&copy, &removed).unwrap();
            chown(&removed, host.user, host.user).unwrap();
        }
        assert_eq!(host.says(&[&format!("read={ONCE}")]), "x\n");
    });
}

#[test]
fn an_older_copy_of_the_volume_is_refused() {
    everywhere(|host| {
        host.says(&[]);
        let older = host.sealed("").pop().unwrap();
        let content = fs::read(&older).unwrap();
        host.says(&[&format!("write={ONCE},x")]);
        for path in host.sealed("") {
            fs::remove_file(path).unwrap();
        }
        fs::write(&older, content).unwrap();
        chown(&older, host.user, host.user).unwrap();
        let output = host.run(&["arguments"]);
        assert_fatal(&output, &["Caused by: The FSPF tag is not fresh - suspected replay attack\nNote: "]);
        assert_eq!(text(&output.stdout), "");
    });
}

#[test]
fn killing_the_runtime_kills_the_program_in_its_sync() {
    everywhere(|host| {
        host.says(&[]);
        let (asked, is_asked) = std::sync::mpsc::channel();
        let (killed, is_killed) = std::sync::mpsc::channel();
        host.cas.state().on_set_tag = OnSetTag::Instead(Box::new(move || {
            asked.send(()).unwrap();
            is_killed.recv().unwrap();
        }));
        host.policy(&[&format!("write={ONCE},x"), &format!("fsync={ONCE}"), "write=/out/after,x"]);
        let mut child = host.command().stdout(Stdio::piped()).spawn().unwrap();
        is_asked.recv().unwrap();
        host.kill(&mut child);
        // The end of the output is the end of the last process that could write it.
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        killed.send(()).unwrap();
        assert_eq!(said, "");
        assert!(!host.path("out/after").exists());
    });
}

#[test]
fn what_outlives_the_program_is_ended_before_the_volume_is_sealed() {
    everywhere(|host| {
        let output = host.run(&[&format!("orphan={ONCE}")]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(host.cas.state().tags_set, 2);
        let said = host.says(&[&format!("read={ONCE}")]);
        assert!(["here\n", "still here\n", "\n"].contains(&said.as_str()), "{said}");
    });
}

#[test]
fn a_sealed_directory_that_cannot_be_written_ends_the_start_and_names_the_file() {
    on_the_host(|host| {
        // The runtime may do in its own user namespace what its user may not: only another's directory is closed to it.
        let Some(user) = host.user else { return };
        let give_to = |user| chown(host.path("volume"), Some(user), Some(user)).unwrap();
        give_to(0);
        let output = host.run(&["arguments"]);
        assert_fatal(
            &output,
            &["Caused by: cannot write '", ".manifest (volume /root/single_run)': Permission denied"],
        );
        assert_eq!(text(&output.stdout), "");
        give_to(user);
        host.says(&[&format!("write={ONCE},x")]);
        give_to(0);
        let output = host.run(&[&format!("write={ONCE},y"), &format!("fsync={ONCE}"), "write=/out/after,x"]);
        assert_fatal(&output, &["Caused by: cannot write '", ".blob (volume /root/single_run)': Permission denied"]);
        assert!(!host.path("out/after").exists());
        // To read is enough, as long as nothing changes.
        assert_eq!(host.says(&[&format!("read={ONCE}")]), "x\n");
    });
}

#[test]
fn a_full_disk_kills_the_program_in_its_sync_and_names_the_file_and_leaves_room_for_the_next_start() {
    on_the_host(|host| {
        if !geteuid().is_root() {
            eprintln!("SKIPPED: only root can make a small disk");
            return;
        }
        let disk = host.path("volume");
        let options = format!("size=256k,uid={0},gid={0}", host.user.unwrap_or(0));
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&disk).status().unwrap();
        assert!(mounted.success());
        let _unmount = Unmount(disk);
        host.says(&[&format!("write={ONCE},x")]);
        let fill = host.run(&["fill=/root/single_run/large,400000", &format!("fsync={ONCE}"), "write=/out/after,x"]);
        assert_fatal(
            &fill,
            &["Caused by: cannot write '", ".blob (volume /root/single_run)': No space left on device"],
        );
        assert!(!host.path("out/after").exists());
        let said =
            host.says(&[&format!("read={ONCE}"), "fill=/root/single_run/large,100000", &format!("write={ONCE},y")]);
        assert_eq!(said, "x\n");
        assert_eq!(host.says(&[&format!("read={ONCE}")]), "y\n");
    });
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(&self.0).status().unwrap().success());
    }
}
