//! `make scone-acceptance`: an account's life on a SCONE CAS, step by step, and a report that can be sent to who maintains this. It runs
//! the scripts as their users do, and looks for what SCONE's documentation leaves open. Nothing here knows the simulator; where what it
//! runs on is no SGX, the report's first line says REHEARSAL.

#[path = "../support/phone.rs"]
#[allow(dead_code)]
mod phone;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bundle::container::devices;
use bundle::interrupt;
use bundle::platform::Platform;
use bundle::tool::Finished;
use clap::Parser;
use phone::Account;
use serde_yaml::Value;
use tempfile::TempDir;

/// Goes through an account's life on a SCONE CAS, and writes a report
#[derive(Parser)]
struct Args {
    /// The CAS
    #[arg(long)]
    cas: String,
    /// The image for SCONE (make scone)
    #[arg(long, default_value = "otpqr:scone")]
    image: String,
    /// Where the report goes
    #[arg(long, default_value = "acceptance-report.md")]
    report: PathBuf,
    /// For a rehearsal: the file with the simulated CAS's time, which is moved on instead of waited for
    #[arg(long)]
    clock: Option<PathBuf>,
    /// What create.rs is told besides: how CAS is attested, the network, what is tolerated
    #[arg(last = true)]
    create: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(cause) = interrupt::handle() {
        eprintln!("acceptance: error: cannot handle Ctrl-C: {cause}");
        return ExitCode::FAILURE;
    }
    let root = match tempfile::Builder::new().prefix("otpqr-acceptance-").tempdir() {
        Ok(root) => root,
        Err(cause) => {
            eprintln!("acceptance: error: no directory for the run: {cause}");
            return ExitCode::FAILURE;
        }
    };
    let mut run = Run { args, root, steps: Vec::new(), found: Vec::new(), secrets: Vec::new() };
    let whole = run.life().is_some();
    match run.write(whole) {
        Ok(()) if whole && run.steps.iter().all(|step| step.is_right) => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(cause) => {
            eprintln!("acceptance: error: the report cannot be written to '{}': {cause}", run.args.report.display());
            ExitCode::FAILURE
        }
    }
}

/// How something ended, and what it said.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn of(output: std::io::Result<Output>) -> Ended {
        match output {
            Ok(output) => Ended {
                code: output.status.code(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            },
            Err(cause) => Ended { code: None, stdout: String::new(), stderr: cause.to_string() },
        }
    }

    fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// The lines that say why, or all there is.
    fn words(&self) -> String {
        let text = self.text();
        let tells =
            |line: &&str| ["error: ", "Error: ", "Caused by: ", "[SCONE|FATAL]"].iter().any(|mark| line.contains(mark));
        let lines: Vec<&str> = text.lines().filter(tells).map(str::trim).collect();
        // What succeeded begins with what was done.
        let first = || text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned();
        if lines.is_empty() { first() } else { lines.join("; ") }
    }
}

/// One step, and what became of it.
struct Step {
    what: String,
    expected: String,
    found: String,
    is_right: bool,
}

struct Run {
    args: Args,
    /// The bundle of this run: its state and volumes go with it.
    root: TempDir,
    steps: Vec<Step>,
    /// What documentation leaves open: the question, and what was found.
    found: Vec<(String, String)>,
    /// What must not be in the report.
    secrets: Vec<String>,
}

/// Seconds between codes (RFC 6238).
const TIME_STEP: u64 = 30;

impl Run {
    /// `None`: something was wrong, or it could not go on.
    fn life(&mut self) -> Option<()> {
        let templates = repository().join("templates");
        let copied = Ended::of(Command::new("cp").arg("-a").args([&templates, self.root.path()]).output());
        self.expect("the policies' templates are at hand", copied, 0, "")?;
        self.create()?;
        let first = self.issue()?;
        // What is wrong in one does not keep the others from telling. First: a gate goes by this host's clock, whatever CAS's is.
        let chapters: [fn(&mut Run, &Account) -> Option<()>; 6] = [
            Run::program,
            Run::attack_the_volume,
            Run::attack_the_program,
            Run::codes,
            Run::roll_forward,
            Run::what_is_left_open,
        ];
        let mut done = Some(());
        for chapter in chapters.into_iter().take_while(|_| !interrupt::is_interrupted()) {
            done = chapter(self, &first).and(done);
        }
        done.filter(|()| !interrupt::is_interrupted())
    }

    fn create(&mut self) -> Option<()> {
        let mut create = vec!["--platform", "scone", "--cas", &self.args.cas, "--image", &self.args.image];
        create.extend(self.args.create.iter().map(String::as_str));
        let created = self.script("create", &create, "");
        self.expect("create.rs attests CAS, measures the program, and uploads the policies", created, 0, "created: ")?;
        let again = self.script("create", &[], "");
        self.expect("create.rs again: nothing is uploaded", again, 0, "already created: ")
    }

    fn issue(&mut self) -> Option<Account> {
        let checked = self.by_hand("otpqr/check", "/bin/otpqr", true);
        self.expect("the service 'check' initialises the volume, without a code", checked, 0, "")?;
        self.copy_volume("before-the-marker")?;
        let issued = self.script("gen_qr", &["--no-confirm", "--output", "first.svg"], "");
        self.expect("gen_qr.rs issues the QR code", issued, 0, "")?;
        let account = self.scan("first.svg")?;
        let again = self.script("gen_qr", &["--no-confirm", "--output", "again.svg"], "");
        self.expect("gen_qr.rs again is refused", again, 5, "issued already")?;
        Some(account)
    }

    fn attack_the_volume(&mut self, _: &Account) -> Option<()> {
        self.copy_volume("genuine")?;
        let deleted = self.attack_by("its files deleted", "rm -rf \"$1\"/* && : \"$2\"", "genuine");
        let back = "rm -rf \"$1\" && cp -a \"$2\" \"$1\"";
        let older = self.attack_by("a copy from before the once-marker put back", back, "before-the-marker");
        let restored = self.deed("the volume is put back", back, "genuine");
        restored.and(deleted).and(older)
    }

    fn attack_by(&mut self, what: &str, deed: &str, copy: &str) -> Option<()> {
        self.deed(&format!("the volume: {what}"), deed, copy)?;
        let refused = self.script("gen_qr", &["--no-confirm", "--output", "stolen.svg"], "");
        self.found.push((format!("The runtime's words, the volume with {what}"), refused.words()));
        let is_absent = self.expect_absent("stolen.svg");
        self.expect("gen_qr.rs is refused", refused, 5, "the volume was refused").and(is_absent)
    }

    /// What a shell does with the volume, `$1`, and a copy of it, `$2`.
    fn deed(&mut self, what: &str, deed: &str, copy: &str) -> Option<()> {
        let (volume, copy) = (self.volume(), self.root.path().join(copy));
        let done = Ended::of(Command::new("sh").args(["-c", deed, "sh"]).args([&volume, &copy]).output());
        self.expect(what, done, 0, "")
    }

    fn attack_the_program(&mut self, _: &Account) -> Option<()> {
        let another = self.by_hand("otpqr/otpqr", "/bin/gate", true);
        self.refused(
            "another program of the image, by hand, under otpqr's policy",
            another,
            "Unexpected enclave measurement",
        )?;
        let without = self.by_hand("otpqr-reset/otpqr", "/bin/otpqr", true);
        self.refused("session 2 by hand, without a code", without, "One-time Password is required")?;
        let unknown = self.by_hand("otpqr/no-such-service", "/bin/otpqr", false);
        self.found.push(("The words for a service that does not exist".to_owned(), unknown.words()));
        self.refused("a service that does not exist", unknown, "")
    }

    fn codes(&mut self, first: &Account) -> Option<()> {
        let wrong = self.wrong(first);
        let refused = self.add_auth(&wrong, "second.svg");
        self.expect("add_auth.rs with a wrong code", refused, 5, "One-time Password is invalid")?;
        let code = self.next_code(first);
        let issued = self.add_auth(&code, "second.svg");
        self.expect("add_auth.rs with a code", issued, 0, "")?;
        let second = self.scan("second.svg")?;
        self.note("both authenticators have the same secret", second.secret == first.secret)?;
        let again = self.add_auth(&code, "third.svg");
        self.found.push(("The words for a code that was used already".to_owned(), again.words()));
        self.expect("add_auth.rs with the same code", again, 5, "already used")?;
        self.expect_absent("third.svg")?;
        for (which, steps) in [("of the step before", -1), ("of the step to come", 1)] {
            let now = self.wait_for_a_fresh_step();
            // Never that of the step that was spent last.
            let now = if steps < 0 { self.wait(now, 2 * TIME_STEP) } else { now };
            let code = first.code_at(now.saturating_add_signed(steps * TIME_STEP as i64));
            let tried = self.add_auth(&code, &format!("window{steps}.svg"));
            let accepted =
                if tried.code == Some(0) { "accepted".to_owned() } else { format!("refused: {}", tried.words()) };
            self.found.push((format!("A code {which}"), accepted));
        }
        // Whichever was accepted, the next code is another one.
        self.wait(self.now(), 2 * TIME_STEP);
        Some(())
    }

    /// The gate stands in for a user's program: it is a SCONE program, and ends with 11 where its policy gives it nothing.
    fn program(&mut self, first: &Account) -> Option<()> {
        let image = format!("otpqr-acceptance:{}", std::process::id());
        let dockerfile =
            format!("FROM {} AS ours\nFROM scratch\nCOPY --from=ours /bin/gate /bin/program\n", self.args.image);
        let built = self.tool("docker", &["build", "--quiet", "--tag", &image, "-"], &dockerfile);
        self.expect("a user's image is built", built, 0, "")?;
        let done = self.protected(first, &image);
        // Also if it went wrong in between.
        let given_up = self.script("protect", &["web", "--remove", "--yes"], "");
        let removed = self.tool("docker", &["image", "rm", "--force", &image], "");
        self.expect("the user's image is removed", removed, 0, "").and(done)?;
        self.expect("protect.rs --remove", given_up, 0, "")
    }

    fn protected(&mut self, first: &Account, image: &str) -> Option<()> {
        let protected =
            self.script("protect", &["web", "--image", image, "--command", "/bin/program", "--starts", "1"], "");
        self.expect(
            "protect.rs puts a program behind codes, and counts its starts: one",
            protected,
            0,
            "protected: 'web'",
        )?;
        let wrong = self.wrong(first);
        let refused = self.start(&wrong);
        self.expect("start.rs with a wrong code", refused, 5, "One-time Password is invalid")?;
        let code = self.next_code(first);
        let started = self.start(&code);
        self.expect("start.rs with a code: the program's own words and exit code", started, 11, "is not set")?;
        let code = self.next_code(first);
        let spent = self.start(&code);
        self.expect("start.rs once more", spent, 5, "the one start is taken")
    }

    fn roll_forward(&mut self, first: &Account) -> Option<()> {
        let rolled = self.script("roll_forward", &["--yes"], "");
        self.expect("roll_forward.rs makes a new secret", rolled, 0, "rolled forward")?;
        let code = self.next_code(first);
        let refused = self.add_auth(&code, "old.svg");
        self.expect("add_auth.rs with a code of the old secret", refused, 5, "One-time Password is invalid")?;
        let issued = self.script("gen_qr", &["--no-confirm", "--output", "new.svg"], "");
        self.expect("gen_qr.rs issues the new secret's QR code", issued, 0, "")?;
        let new = self.scan("new.svg")?;
        self.note("it is another secret", new.secret != first.secret)?;
        let report = self.script("doctor", &[], "");
        let wrong = ["wrong policies  CAS", "wrong volume", "?     policies", "?     volume", "?     CAS"];
        let lines = report.stdout.lines().filter(|line| wrong.iter().any(|found| line.starts_with(found)));
        let lines: Vec<&str> = lines.collect();
        let found = lines.join("; ");
        self.step(
            "doctor.rs finds CAS, policies and volume as they should be".to_owned(),
            "nothing".to_owned(),
            found.clone(),
            found.is_empty(),
        )
    }

    /// On a session of its own, below the account's namespace.
    fn what_is_left_open(&mut self, _: &Account) -> Option<()> {
        let name = format!("{}/acceptance", self.namespace());
        let file = self.root.path().join("probe.yml").display().to_string();
        let cas = format!("--cas={}", self.args.cas);
        let upload = |run: &mut Run, predecessor: &str| {
            let text = format!("version: \"0.3.10\"\nname: {name}\npredecessor: {predecessor}\n");
            match fs::write(&file, text) {
                Ok(()) => run.scone(&["session", "create", &cas, &file]),
                Err(cause) => Ended { code: None, stdout: String::new(), stderr: cause.to_string() },
            }
        };
        let absent = self.scone(&["session", "read", &cas, &name]);
        self.answer("`session read` of a session that does not exist", &absent);
        let one = upload(self, "~");
        let hash = one.stdout.trim().to_owned();
        self.expect("a session of one's own is created", one, 0, "")?;
        let taken = upload(self, "~");
        self.answer("`session create` of a session that exists", &taken);
        self.refused("a session that exists is not created again", taken, "")?;
        let other = upload(self, &"0".repeat(64));
        self.answer("`session create` with another predecessor", &other);
        self.refused("another predecessor is refused", other, "")?;
        let two = upload(self, &hash);
        let covers = if two.stdout.trim() == hash { "no" } else { "yes" };
        self.found.push(("Does a session's hash cover its predecessor?".to_owned(), covers.to_owned()));
        self.expect("the same text replaces it", two, 0, "")
    }

    fn answer(&mut self, question: &str, ended: &Ended) {
        let code = ended.code.map_or("a signal".to_owned(), |code| format!("exit code {code}"));
        self.found.push((question.to_owned(), format!("{code}: {}", ended.words())));
    }
}

impl Run {
    fn step(&mut self, what: String, expected: String, found: String, is_right: bool) -> Option<()> {
        println!("{} {what}", if is_right { "ok   " } else { "WRONG" });
        if !is_right {
            println!("      expected: {expected}\n      found:    {found}");
        }
        self.steps.push(Step { what, expected, found, is_right });
        if interrupt::is_interrupted() {
            println!("interrupted: the report says how far it went");
            return None;
        }
        is_right.then_some(())
    }

    fn expect(&mut self, what: &str, ended: Ended, code: i32, saying: &str) -> Option<()> {
        let is_right = ended.code == Some(code) && ended.text().contains(saying);
        let expected =
            if saying.is_empty() { format!("exit code {code}") } else { format!("exit code {code}, '{saying}'") };
        let found =
            format!("exit code {}: {}", ended.code.map_or("none".to_owned(), |code| code.to_string()), ended.words());
        self.step(what.to_owned(), expected, found, is_right)
    }

    /// By SCONE itself, whose exit codes are not documented.
    fn refused(&mut self, what: &str, ended: Ended, saying: &str) -> Option<()> {
        let is_right = ended.code != Some(0) && ended.text().contains(saying);
        let found =
            format!("exit code {}: {}", ended.code.map_or("none".to_owned(), |code| code.to_string()), ended.words());
        self.step(what.to_owned(), format!("refused, '{saying}'"), found, is_right)
    }

    fn note(&mut self, what: &str, is_right: bool) -> Option<()> {
        self.step(what.to_owned(), "so".to_owned(), if is_right { "so" } else { "not so" }.to_owned(), is_right)
    }

    fn expect_absent(&mut self, name: &str) -> Option<()> {
        let is_absent = !self.root.path().join(name).exists();
        self.note("no QR code was left", is_absent)
    }

    /// As its user runs it: from the repository, by rust-script, for this run's own bundle.
    fn script(&self, name: &str, args: &[&str], input: &str) -> Ended {
        let mut command = Command::new(repository().join(format!("scripts/{name}.rs")));
        command.args(args);
        self.ended(command, input)
    }

    fn tool(&self, name: &str, args: &[&str], input: &str) -> Ended {
        let mut command = Command::new(name);
        command.args(args);
        self.ended(command, input)
    }

    /// SCONE's command line, wherever the scripts find it.
    fn scone(&self, args: &[&str]) -> Ended {
        let tools = Platform::Scone.tools(self.root.path(), "default", None);
        let words: Vec<OsString> = args.iter().map(OsString::from).collect();
        let file = args.last().map(Path::new).filter(|path| path.is_absolute());
        match tools.and_then(|mut tools| {
            tools.network = self.state()["cas"]["network"].as_str().map(str::to_owned);
            tools.scone(&words, file)
        }) {
            Ok(Finished { code, stdout, stderr }) => Ended { code, stdout, stderr },
            Err(failure) => Ended { code: None, stdout: String::new(), stderr: failure.into_finding().0 },
        }
    }

    fn ended(&self, mut command: Command, input: &str) -> Ended {
        command.current_dir(self.root.path()).env("OTPQR_ROOT", self.root.path()).env_remove("SCONE_CONFIG_ID");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let ended = command.spawn().and_then(|mut child| {
            if let Some(mut stdin) = child.stdin.take() {
                // Who refuses before it reads closes the pipe.
                let _ = stdin.write_all(input.as_bytes());
            }
            child.wait_with_output()
        });
        Ended::of(ended)
    }

    fn add_auth(&self, code: &str, output: &str) -> Ended {
        self.script("add_auth", &["--no-confirm", "--otp-file", "-", "--output", output], code)
    }

    fn start(&self, code: &str) -> Ended {
        self.script("start", &["web", "--otp-file", "-"], code)
    }

    /// A service without the scripts, as somebody does who bypasses them.
    fn by_hand(&self, service: &str, program: &str, with_volume: bool) -> Ended {
        let state = self.state();
        let known = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--log-driver=none", "--cap-drop=ALL", "--userns=host"]);
        let user = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        command.arg(format!("--user={}:{}", user.0, user.1));
        command.args(devices(Path::new("/dev")));
        command.args(["-e=SCONE_MODE=hw", "-e=SCONE_LAS_ADDR", "-e=SCONE_CAS_ADDR", "-e=SCONE_CONFIG_ID"]);
        if let Some(network) = state["cas"]["network"].as_str() {
            command.arg(format!("--network={network}"));
        }
        // As the scripts measured it.
        let tolerated = state["tolerate"].as_sequence();
        if tolerated.is_some_and(|tolerated| tolerated.iter().any(|what| what == "debug-mode")) {
            command.arg("-e=SCONE_PRODUCTION=0");
        }
        if with_volume {
            for (host, inside) in [(self.volume(), "/root/single_run"), (self.root.path().join("out"), "/out")] {
                // Where that fails, docker says so.
                let _ = fs::create_dir_all(&host);
                command.arg(format!("--mount=type=bind,\"src={}\",dst={inside}", host.display()));
            }
        }
        command.args([&format!("--entrypoint={program}"), &known(&state["image_id"])]);
        command.env("SCONE_CAS_ADDR", known(&state["cas"]["enclave_address"]));
        command
            .current_dir(self.root.path())
            .env("SCONE_CONFIG_ID", format!("{}/{service}", known(&state["namespace"])));
        Ended::of(command.stdin(Stdio::null()).output())
    }

    fn state(&self) -> Value {
        let text = fs::read_to_string(self.root.path().join("state/default.yml")).unwrap_or_default();
        serde_yaml::from_str(&text).unwrap_or_default()
    }

    fn namespace(&self) -> String {
        self.state()["namespace"].as_str().unwrap_or_default().to_owned()
    }

    fn volume(&self) -> PathBuf {
        self.root.path().join("state/volumes/default/single_run_1")
    }

    fn copy_volume(&mut self, to: &str) -> Option<()> {
        let to = self.root.path().join(to);
        let copied = Ended::of(Command::new("cp").arg("-a").args([&self.volume(), &to]).output());
        self.expect("the volume is copied", copied, 0, "")
    }

    /// Reads the QR code with a real decoder. Its content is in no report.
    fn scan(&mut self, name: &str) -> Option<Account> {
        let svg = fs::read_to_string(self.root.path().join(name)).unwrap_or_default();
        let scanned = phone::scan(&svg);
        let found = scanned.as_ref().err().cloned().unwrap_or_default();
        self.step("a phone can read the QR code".to_owned(), "an entry".to_owned(), found, scanned.is_ok())?;
        let account = scanned.ok()?;
        self.secrets.push(account.secret.clone());
        Some(account)
    }

    /// The host's time, or in a rehearsal CAS's, which may be ahead of that.
    fn now(&self) -> u64 {
        let host = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let told = self.args.clock.as_ref().and_then(|clock| fs::read_to_string(clock).ok()?.trim().parse().ok());
        told.unwrap_or(host).max(host)
    }

    /// Waits; returns the time then.
    fn wait(&self, now: u64, seconds: u64) -> u64 {
        match &self.args.clock {
            Some(clock) => {
                let next = clock.with_extension("next");
                if let Err(cause) =
                    fs::write(&next, (now + seconds).to_string()).and_then(|()| fs::rename(&next, clock))
                {
                    eprintln!("acceptance: the clock cannot be set: {cause}");
                }
            }
            None => sleep(Duration::from_secs(seconds)),
        }
        self.now()
    }

    /// Early in a time step whose code nobody can have used.
    fn wait_for_a_fresh_step(&self) -> u64 {
        let now = self.now();
        self.wait(now, TIME_STEP - now % TIME_STEP + 1)
    }

    fn next_code(&mut self, account: &Account) -> String {
        account.code_at(self.wait_for_a_fresh_step())
    }

    fn wrong(&self, account: &Account) -> String {
        let now = self.now();
        let near: Vec<String> =
            (0..6).map(|step| account.code_at((now + step * TIME_STEP).saturating_sub(60))).collect();
        (0..10)
            .map(|digit| format!("{digit}{digit}{digit}{digit}{digit}{digit}"))
            .find(|code| !near.contains(code))
            .unwrap_or_default()
    }
}

impl Run {
    fn write(&mut self, whole: bool) -> std::io::Result<()> {
        let version = self.scone(&["--version"]).stdout.trim().to_owned();
        let cas = self.scone(&["cas", "version", &format!("--cas={}", self.args.cas)]).stdout.trim().to_owned();
        let devices = devices(Path::new("/dev"))
            .into_iter()
            .filter_map(|option| option.strip_prefix("--device=").map(str::to_owned));
        let devices: Vec<String> = devices.filter(|device| Path::new(device).exists()).collect();
        let rehearsal = match () {
            () if cas.starts_with("scone-sim") || version.starts_with("scone-sim") => Some("the CAS is the simulator"),
            () if devices.is_empty() => Some("there is no SGX device on this host"),
            () => None,
        };
        let title = rehearsal.map_or("Acceptance on SCONE".to_owned(), |why| format!("REHEARSAL: {why}"));
        let right = self.steps.iter().filter(|step| step.is_right).count();
        let ended = if whole { "It went to its end" } else { "Something was wrong, or it was interrupted" };
        let mut text = format!("# {title}\n\n{right} of {} steps were as expected. {ended}.\n\n", self.steps.len());
        let tool = |run: &Run, name: &str, args: &[&str]| run.tool(name, args, "").stdout.trim().to_owned();
        let git = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"];
        for (what, found) in [
            ("scone", version),
            ("CAS", cas),
            ("docker", tool(self, "docker", &["version", "--format", "{{.Server.Version}}"])),
            ("kernel", tool(self, "uname", &["-sr"])),
            ("SGX devices", devices.join(", ")),
            ("otpqr", tool(self, "git", &git)),
            ("create.rs", self.args.create.join(" ")),
        ] {
            text += &format!("- {what}: {}\n", if found.is_empty() { "-" } else { &found });
        }
        text += "\n## Steps\n\n| | step | expected | found |\n|---|---|---|---|\n";
        for Step { what, expected, found, is_right } in &self.steps {
            let mark = if *is_right { "ok" } else { "**wrong**" };
            text += &format!("| {mark} | {} | {} | {} |\n", cell(what), cell(expected), cell(found));
        }
        text += "\n## What SCONE's documentation leaves open\n\n| question | found |\n|---|---|\n";
        for (question, found) in &self.found {
            text += &format!("| {} | {} |\n", cell(question), cell(found));
        }
        text += NOT_LOOKED_AT;
        // Nothing prints them; a report is sent around.
        for secret in &self.secrets {
            text = text.replace(secret, "(a secret)");
        }
        let host = self.args.cas.split(':').next().unwrap_or_default();
        let text = text
            .replace(&self.args.cas, "CAS")
            .replace(host, "CAS")
            .replace(&self.root.path().display().to_string(), "ROOT");
        fs::write(&self.args.report, text)?;
        println!(
            "{right} of {} steps were as expected; the report is '{}'",
            self.steps.len(),
            self.args.report.display()
        );
        Ok(())
    }
}

/// In one line of a table.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

const NOT_LOOKED_AT: &str = "
## Not looked at

Two enclaves that open one volume at once (grants); a crash between a file's sync and CAS's new tag; CAS restarted or restored in between;
whether wrong codes are slowed down; `sconify_image`; whether a code is spent when what follows it is refused.
";

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
