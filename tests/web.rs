//! The web service (programs/web) as its README protects it: it is started with a code, goes on when its caller's terminal is closed,
//! and needs another code to be started again. Its count goes on from start to start.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rexpect::process::{Signal, WaitStatus};
use rexpect::session::{PtySession, spawn_command};

use crate::support::attacker::{delete_files, put_back};
use crate::support::image::python_is_there;
use crate::support::protected::Protected;
use crate::support::{Platform, copy, docker_is_there, image};

/// So that a hang is seen as one; not an assertion about speed.
const PATIENCE: Duration = Duration::from_secs(60);

const KEY: &str = "correct-horse-battery-staple";
const DETACH: &[&str] = &["--detach", "--log", "web.log"];

/// The web service, protected. It is ended when this is dropped.
struct Web {
    protected: Protected,
    port: u16,
}

impl Web {
    fn new(platform: Platform) -> Web {
        let protected = Protected::new("web", platform, scripts!(), image::web);
        // Free until now, at least.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
        fs::write(protected.bundle.root.join("api-key.txt"), format!("{KEY}\n")).expect("a file");
        let port = format!("PORT={}", free.port());
        let command = ["--command", "python3 /app/service.py", "--env", &port];
        let options = [&command[..], &["--secret", "API_KEY=api-key.txt", "--volume", "/data"]].concat();
        protected.protect(&options).expect(0);
        // The service has it from CAS.
        fs::remove_file(protected.bundle.root.join("api-key.txt")).expect("deletion");
        Web { protected, port: free.port() }
    }

    /// Starts it at a terminal of its own, which is closed when the service has been started.
    fn start_and_close_the_terminal(&self) {
        let bundle = &self.protected.bundle;
        let script = bundle.root.join("scripts/start").display().to_string().replace('\'', r"'\''");
        fs::write(bundle.root.join("code.txt"), self.protected.alice.code_at(bundle.now())).expect("a file");
        let mut shell = bundle.command("sh");
        shell.args([
            "-c",
            &format!("'{script}' web --otp-file code.txt {}; echo \"code $?.\"; read _", DETACH.join(" ")),
        ]);
        shell.stdin(Stdio::inherit()).env("TERM", "xterm");
        let mut terminal: PtySession =
            spawn_command(shell, Some(PATIENCE.as_millis() as u64)).expect("a pseudo-terminal");
        let said = terminal.exp_string("code 0.").expect("the service's start");
        assert!(said.contains("started: 'web'"), "{said}");
        // The shell ends, as the leader of the terminal's session, and all that is in the foreground with it.
        let ended = terminal.process_mut().kill(Signal::SIGHUP).expect("the shell's end");
        assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGHUP, _)), "{ended:?}");
        drop(terminal);
        bundle.wait(30);
    }

    /// Asks for a page. Returns the whole answer.
    fn ask(&self, key: Option<&str>) -> std::io::Result<String> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port))?;
        connection.set_read_timeout(Some(PATIENCE))?;
        let key = key.map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
        write!(connection, "GET / HTTP/1.0\r\n{key}\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The same, once it listens.
    #[track_caller]
    fn answer(&self, key: Option<&str>) -> String {
        let started = Instant::now();
        loop {
            match self.ask(key) {
                Ok(answer) => return answer,
                Err(cause) => assert!(started.elapsed() < PATIENCE, "it does not answer: {cause}\n{}", self.log()),
            }
            sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn is_silent(&self) {
        let answer = self.ask(Some(KEY));
        assert!(answer.is_err(), "{answer:?}");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.protected.bundle.root.join("web.log")).unwrap_or_default()
    }

    fn stop(&self) -> String {
        self.protected.bundle.script("start", &["web", "--stop"]).expect(0).stdout
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        // Also if a test failed half-way.
        let _ = self.protected.bundle.script("start", &["web", "--stop"]);
    }
}

fn it_needs_its_code_once_and_outlives_its_callers_terminal(platform: Platform) {
    let web = Web::new(platform);
    let protected = &web.protected;
    protected.refuses_all_but_a_code(DETACH);
    web.is_silent();
    assert_eq!(web.stop(), "'web' does not run as a service\n");

    web.start_and_close_the_terminal();
    for refused in [None, Some(""), Some("correct-horse"), Some("correct-horse-battery-staplf")] {
        let answer = web.answer(refused);
        assert!(answer.starts_with("HTTP/1.0 401 ") && !answer.contains("visit"), "{answer}");
    }
    for n in 1..=2 {
        let answer = web.answer(Some(KEY));
        assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with(&format!("visit {n}\n")), "{answer}");
    }
    // One runs: another start starts none, and spends no code.
    let code = protected.alice.code_at(protected.bundle.now());
    let again = protected.start_with(&code, DETACH).expect(0).stdout;
    assert!(again.starts_with("already running: 'web'"), "{again}");

    // It ends when it is told to; what was counted stays.
    let stopped = web.stop();
    assert!(stopped.starts_with("stopped: 'web'"), "{stopped}");
    web.is_silent();
    assert!(web.log().ends_with("ended\n"), "{}", web.log());
    assert!(protected.start_without_code(DETACH).expect(2).stderr.contains("--otp-file"));
    let used = protected.alice.code_at(protected.bundle.now() - 30);
    protected.refuses("used", &used, "One-time Password was already used", DETACH);
    web.is_silent();
    let started = protected.start_with(&code, DETACH).expect(0).stdout;
    assert!(started.starts_with("started: 'web'"), "{started}");
    let answer = web.answer(Some(KEY));
    assert!(answer.ends_with("visit 3\n"), "{answer}");
    web.stop();

    // The log is its caller's alone. Neither a code is in it nor the key, nor is the key anywhere on this host.
    let log = web.log();
    assert_eq!(log.matches("listening\n").count(), 2, "{log}");
    assert!(log.contains("/program@******") && !log.contains(&code) && !log.contains(KEY), "{log}");
    let mode = fs::metadata(protected.bundle.root.join("web.log")).expect("the log").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (path, content) in protected.bundle.written() {
        assert!(!String::from_utf8_lossy(&content).contains(KEY), "{}", path.display());
    }
}

/// What the attacker does to the service lies between one start and the next.
fn what_was_done_to_its_volume_or_its_files_is_noticed(platform: Platform) {
    let web = Web::new(platform);
    let protected = &web.protected;
    let counts = |n: usize| {
        protected.start(DETACH).expect(0);
        let answer = web.answer(Some(KEY));
        assert!(answer.ends_with(&format!("visit {n}\n")), "{answer}");
        web.stop();
    };
    let refused = |exit: i32, words: &str| {
        protected.start(DETACH).expect(exit).saying(words);
        web.is_silent();
    };
    let volume = protected.bundle.root.join("state/volumes/default/programs/web/volume_0_1");
    let copied = |name: &str| {
        let copied = protected.bundle.root.join(name);
        copy(&volume, &copied);
        copied
    };

    counts(1);
    let older = copied("older");
    counts(2);
    let newest = copied("newest");
    put_back(&older, &volume);
    refused(5, "a volume was refused");
    delete_files(&volume);
    refused(5, "a volume was refused");
    fs::remove_dir(&volume).expect("deletion");
    refused(5, "a volume was refused");
    put_back(&newest, &volume);

    // In a container the image is known by an ID, which another image cannot have.
    if platform == Platform::SimNative {
        let service = protected.directory.join("app/service.py");
        let text = fs::read_to_string(&service).expect("the service");
        fs::write(&service, text.replace("hmac.compare_digest", "all_may_pass or ")).expect("a change");
        refused(3, "is not there any more");
        let code = protected.alice.code_at(protected.bundle.now());
        let by_hand = protected.start_by_hand(&format!("web/default/program@{code}"), &["/app/service.py"], &[]);
        by_hand.expect(134).saying("Unexpected enclave measurement");
        protected.bundle.wait(30);
        fs::write(&service, &text).expect("the service");
    }
    counts(3);
}

#[test]
fn natively_what_was_done_to_its_volume_or_its_files_is_noticed() {
    if python_is_there() {
        what_was_done_to_its_volume_or_its_files_is_noticed(Platform::SimNative);
    }
}

#[test]
fn in_a_container_what_was_done_to_its_volume_is_noticed() {
    if python_is_there() && docker_is_there() {
        what_was_done_to_its_volume_or_its_files_is_noticed(Platform::Sim);
    }
}

#[test]
fn natively_it_needs_its_code_once_and_outlives_its_callers_terminal() {
    if python_is_there() {
        it_needs_its_code_once_and_outlives_its_callers_terminal(Platform::SimNative);
    }
}

#[test]
fn in_a_container_it_needs_its_code_once_and_outlives_its_callers_terminal() {
    if python_is_there() && docker_is_there() {
        it_needs_its_code_once_and_outlives_its_callers_terminal(Platform::Sim);
    }
}
