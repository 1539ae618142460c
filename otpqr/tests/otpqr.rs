//! otpqr as its caller sees it: exit codes, whole standard error, files left behind. That the QR code can be read is tested
//! with a decoder in the bundle's own tests, whose dependencies need a newer compiler.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const SECRET: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";

/// A volume and an output directory, both empty, in a directory for one test.
struct World(PathBuf);

impl World {
    fn new(test: &str) -> World {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        for directory in ["volume", "out"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        World(root)
    }

    fn marker(&self) -> PathBuf {
        self.0.join("volume/once")
    }

    fn output(&self) -> PathBuf {
        self.0.join("out/qrcode.svg")
    }

    /// otpqr with the whole environment that a policy gives it.
    fn otpqr(&self) -> Command {
        self.with_environment(Command::new(env!("CARGO_BIN_EXE_otpqr")))
    }

    /// otpqr started by a line of shell, as `"$0"`.
    fn otpqr_by_shell(&self, line: &str) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", line, env!("CARGO_BIN_EXE_otpqr")]);
        self.with_environment(shell)
    }

    fn with_environment(&self, mut command: Command) -> Command {
        command
            .env_clear()
            .env("OTP_SECRET", SECRET)
            .env("OTP_ACCOUNT_NAME", "SCONE OTP")
            .env("OTP_ACCOUNT_LOGIN", "alice")
            .env("OTP_OUTPUT_FILE", self.output())
            .env("OTP_SINGLE_USE", self.marker());
        command
    }

    /// The names of all files, sorted.
    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        for directory in ["out", "volume"] {
            for entry in fs::read_dir(self.0.join(directory)).unwrap() {
                files.push(format!("{directory}/{}", entry.unwrap().file_name().into_string().unwrap()));
            }
        }
        files.sort();
        files
    }

    /// Runs `command`, which must fail with `message`: one line on standard error, nothing on standard output, no new file.
    /// In `message`, `WORLD` stands for this world's directory.
    fn refuses(&self, command: &mut Command, code: i32, message: &str) {
        let before = self.files();
        let output = run(command);
        let message = message.replace("WORLD", self.0.to_str().unwrap());
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("otpqr: error: {message}\n"));
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert_eq!(self.files(), before, "{message}");
    }

    /// Runs `command`, which must succeed in silence.
    fn succeeds(&self, command: &mut Command) {
        let output = run(command);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert_eq!(output.status.code(), Some(0));
    }

    fn svg(&self) -> String {
        fs::read_to_string(self.output()).unwrap()
    }
}

/// However it ends, standard output is empty and the secret is in no stream.
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert!(!String::from_utf8_lossy(&output.stderr).contains(SECRET));
    output
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_qr_code_is_issued_once() {
    let world = World::new("once");
    world.succeeds(&mut world.otpqr());
    assert_eq!(world.files(), ["out/qrcode.svg", "volume/once"]);

    // Even if the first output has been removed.
    let first = world.svg();
    fs::rename(world.output(), world.0.join("first.svg")).unwrap();
    let refusal = "once-marker 'WORLD/volume/once' exists: the QR code was issued before";
    world.refuses(&mut world.otpqr(), 10, refusal);
    assert_eq!(world.files(), ["volume/once"]);

    // A reset issues the same QR code, as often as asked, and leaves the marker in place.
    world.succeeds(world.otpqr().env("OTP_RESET", "TRUE"));
    assert_eq!(world.svg(), first);
    fs::remove_file(world.output()).unwrap();
    world.refuses(&mut world.otpqr(), 10, refusal);
}

#[test]
fn a_reset_takes_a_marker_that_is_not_there_yet() {
    let world = World::new("reset");
    world.succeeds(world.otpqr().env("OTP_RESET", "TRUE"));
    assert_eq!(world.files(), ["out/qrcode.svg", "volume/once"]);
    fs::remove_file(world.output()).unwrap();
    world.refuses(&mut world.otpqr(), 10, "once-marker 'WORLD/volume/once' exists: the QR code was issued before");
}

#[test]
fn a_dangling_link_is_a_marker_too() {
    let world = World::new("dangling");
    std::os::unix::fs::symlink("nowhere", world.marker()).unwrap();
    world.refuses(&mut world.otpqr(), 10, "once-marker 'WORLD/volume/once' exists: the QR code was issued before");
}

#[test]
fn of_many_at_once_one_issues_the_qr_code() {
    let world = World::new("race");
    let children: Vec<_> = (0..16)
        .map(|n| {
            let output = world.0.join(format!("out/{n}.svg"));
            world.otpqr().env("OTP_OUTPUT_FILE", output).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let mut codes: Vec<_> = children.into_iter().map(|mut child| child.wait().unwrap().code()).collect();
    codes.sort();
    assert_eq!(codes[..2], [Some(0), Some(10)]);
    assert_eq!(codes[1..], [Some(10); 15]);
    assert_eq!(world.files().len(), 2, "one output and the marker: {:?}", world.files());
}

#[test]
fn an_output_that_exists_is_never_overwritten_and_the_marker_not_taken() {
    let world = World::new("exists");
    fs::write(world.output(), "precious").unwrap();
    let exists = "output 'WORLD/out/qrcode.svg' exists";
    world.refuses(&mut world.otpqr(), 12, exists);
    world.refuses(world.otpqr().env("OTP_RESET", "TRUE"), 12, exists);
    world.refuses(world.otpqr().arg("--check"), 12, exists);
    assert_eq!(world.svg(), "precious");
    assert_eq!(world.files(), ["out/qrcode.svg"]);

    fs::remove_file(world.output()).unwrap();
    std::os::unix::fs::symlink(world.0.join("elsewhere"), world.output()).unwrap();
    world.refuses(&mut world.otpqr(), 12, exists);
    assert!(!world.0.join("elsewhere").exists());
}

#[test]
fn an_output_that_cannot_be_written_does_not_cost_the_marker() {
    let world = World::new("unwritable");
    // So is a full disk, since the reservation allocates the space. (Here no file may grow.)
    world.refuses(
        &mut world.otpqr_by_shell(r#"trap "" XFSZ; ulimit -f 0; exec "$0""#),
        12,
        "cannot write output 'WORLD/out/qrcode.svg': File too large (os error 27)",
    );
    world.refuses(
        world.otpqr().env("OTP_OUTPUT_FILE", world.0.join("missing/qrcode.svg")),
        12,
        "cannot create output 'WORLD/missing/qrcode.svg': No such file or directory (os error 2)",
    );
    assert_eq!(world.files(), [""; 0]);
}

#[test]
fn a_marker_that_cannot_be_taken_leaves_no_output() {
    let world = World::new("untakable");
    world.refuses(
        world.otpqr().env("OTP_SINGLE_USE", world.0.join("missing/once")),
        1,
        "cannot take once-marker 'WORLD/missing/once': No such file or directory (os error 2)",
    );
    fs::write(world.0.join("file"), "").unwrap();
    world.refuses(
        world.otpqr().env("OTP_SINGLE_USE", world.0.join("file/once")),
        1,
        "cannot look at once-marker 'WORLD/file/once': Not a directory (os error 20)",
    );
    assert_eq!(world.files(), [""; 0]);
}

#[test]
fn a_marker_that_cannot_be_made_durable_leaves_no_output() {
    let world = World::new("undurable");
    // A named pipe can be opened but not synced. The shell holds its other end open.
    assert!(Command::new("mkfifo").arg(world.marker()).status().unwrap().success());
    world.refuses(
        world.otpqr_by_shell(r#"exec 3<>"$OTP_SINGLE_USE"; exec "$0""#).env("OTP_RESET", "TRUE"),
        1,
        "cannot take once-marker 'WORLD/volume/once': Invalid argument (os error 22)",
    );
}

#[test]
fn before_the_marker_is_taken_the_output_holds_nothing_but_blanks() {
    let world = World::new("order");
    // A named pipe that nobody reads: taking the marker blocks for ever, so whatever we see happened before.
    assert!(Command::new("mkfifo").arg(world.marker()).status().unwrap().success());
    let mut child = world.otpqr().env("OTP_RESET", "TRUE").spawn().unwrap();
    while !fs::metadata(world.output()).is_ok_and(|metadata| metadata.len() > 0) {
        assert_eq!(child.try_wait().unwrap(), None, "otpqr ended");
        std::thread::yield_now();
    }
    let output = world.svg();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(output.trim_start_matches(' '), "");
}

#[test]
fn every_file_is_private_whatever_the_umask() {
    for umask in ["000", "077", "777"] {
        let world = World::new(&format!("umask-{umask}"));
        world.succeeds(&mut world.otpqr_by_shell(&format!(r#"umask {umask}; exec "$0""#)));
        assert_eq!(mode(&world.output()), 0o600, "umask {umask}");
        assert_eq!(mode(&world.marker()) & 0o177, 0, "umask {umask}");
    }
}

#[test]
fn a_missing_or_bad_variable_is_named_and_its_value_is_not_shown() {
    let world = World::new("environment");
    for name in ["OTP_SECRET", "OTP_ACCOUNT_NAME", "OTP_ACCOUNT_LOGIN", "OTP_OUTPUT_FILE", "OTP_SINGLE_USE"] {
        world.refuses(world.otpqr().env_remove(name), 11, &format!("{name} is not set"));
    }
    let not_base32 = "is not base32 (A-Z and 2-7, no padding)";
    let not_a_path = "is not the absolute path of a file";
    for (name, value, why) in [
        ("OTP_SECRET", "", "is shorter than 128 bits"),
        ("OTP_SECRET", "GEZDGNBVGY3TQOJQGEZDGNBV", "is shorter than 128 bits"),
        ("OTP_SECRET", "gezdgnbvgy3tqojqgezdgnbvgy3tqojq", not_base32),
        ("OTP_SECRET", "GEZDGNBVGY3TQOJQGEZDGNBVGY======", not_base32),
        ("OTP_SECRET", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJ\n", not_base32),
        ("OTP_ACCOUNT_NAME", "", "is empty"),
        ("OTP_ACCOUNT_NAME", "SCONE:OTP", "contains a colon"),
        ("OTP_ACCOUNT_NAME", "SCONE\nOTP", "contains a control character"),
        ("OTP_ACCOUNT_LOGIN", "", "is empty"),
        ("OTP_ACCOUNT_LOGIN", "a:b", "contains a colon"),
        ("OTP_ACCOUNT_LOGIN", "a\u{7f}b", "contains a control character"),
        ("OTP_OUTPUT_FILE", "qrcode.svg", not_a_path),
        ("OTP_OUTPUT_FILE", "/", not_a_path),
        ("OTP_SINGLE_USE", "", not_a_path),
        ("OTP_SINGLE_USE", "/volume/..", not_a_path),
        ("OTP_RESET", "", "is neither unset nor TRUE"),
        ("OTP_RESET", "true", "is neither unset nor TRUE"),
        ("OTP_RESET", "FALSE", "is neither unset nor TRUE"),
    ] {
        world.refuses(world.otpqr().env(name, value), 11, &format!("{name} {why}"));
    }
    let too_long = "OTP_ACCOUNT_NAME and OTP_ACCOUNT_LOGIN do not fit a QR code: data too long";
    world.refuses(world.otpqr().env("OTP_ACCOUNT_LOGIN", "l".repeat(3000)), 11, too_long);
    assert_eq!(world.files(), [""; 0]);

    // What CAS makes of 16, 20 and 32 bytes.
    for secret in [&SECRET[..26], SECRET, "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQGEZA"] {
        world.succeeds(world.otpqr().env("OTP_SECRET", secret).env("OTP_RESET", "TRUE"));
        fs::remove_file(world.output()).unwrap();
    }
}

#[test]
fn a_check_needs_no_secret_spends_nothing_and_leaves_nothing_behind() {
    let world = World::new("check");
    let check = || {
        let mut command = world.otpqr();
        command.arg("--check").env_remove("OTP_SECRET").env_remove("OTP_ACCOUNT_NAME").env_remove("OTP_ACCOUNT_LOGIN");
        command
    };
    world.refuses(check().env_remove("OTP_OUTPUT_FILE"), 11, "OTP_OUTPUT_FILE is not set");
    world.refuses(check().env_remove("OTP_SINGLE_USE"), 11, "OTP_SINGLE_USE is not set");
    world.refuses(
        check().env("OTP_SINGLE_USE", world.0.join("missing/once")),
        1,
        "cannot take once-marker 'WORLD/missing/once': No such file or directory (os error 2)",
    );
    world.refuses(
        check().env("OTP_OUTPUT_FILE", world.0.join("missing/qrcode.svg")),
        12,
        "cannot create output 'WORLD/missing/qrcode.svg': No such file or directory (os error 2)",
    );
    world.succeeds(&mut check());
    world.succeeds(&mut check());
    assert_eq!(world.files(), [""; 0]);

    // The check does not care whether the marker exists, nor that an earlier check was killed.
    fs::write(world.marker(), "").unwrap();
    fs::write(world.0.join("volume/once.check"), "").unwrap();
    world.succeeds(&mut check());
    assert_eq!(world.files(), ["volume/once"]);
}

#[test]
fn arguments_that_are_not_understood_spend_nothing() {
    let world = World::new("usage");
    for arguments in [&["issue"][..], &["--check", "--check"], &["--reset"], &[""]] {
        world.refuses(world.otpqr().args(arguments), 2, "unknown arguments; 'otpqr --help' says what there is");
    }
    assert_eq!(world.files(), [""; 0]);
}

#[test]
fn help_names_every_variable_and_exit_code_and_version_is_one_line() {
    let stdout = |argument| {
        let output = Command::new(env!("CARGO_BIN_EXE_otpqr")).arg(argument).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        String::from_utf8(output.stdout).unwrap()
    };
    let help = stdout("--help");
    for variable in
        ["OTP_SECRET", "OTP_ACCOUNT_NAME", "OTP_ACCOUNT_LOGIN", "OTP_OUTPUT_FILE", "OTP_SINGLE_USE", "OTP_RESET"]
    {
        assert!(help.contains(&format!("\n  {variable} ")), "{variable}");
    }
    for code in [0, 1, 2, 10, 11, 12] {
        assert!(help.contains(&format!("\n  {code:>2}  ")), "{code}");
    }
    assert_eq!(stdout("--version"), format!("otpqr {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_svg_is_complete_and_plain() {
    let world = World::new("svg");
    world.succeeds(&mut world.otpqr());
    let svg = world.svg();
    let lines: Vec<&str> = svg.lines().collect();
    let [head, background, path, "</svg>"] = lines[..] else { panic!("{svg}") };
    // 45 modules and a quiet zone of 4 on each side.
    assert_eq!(
        head,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="424" height="424" viewBox="0 0 53 53" shape-rendering="crispEdges">"#
    );
    assert_eq!(background, r##"<rect width="53" height="53" fill="#fff"/>"##);
    // The upper edge of the first finder pattern, and a light run after it.
    assert!(path.starts_with(r##"<path stroke="#000" d="M4 4.5h7m"##) && path.ends_with(r#""/>"#), "{path}");
    assert!(svg.len() <= 3600, "{} bytes", svg.len());
    assert!(svg.ends_with("</svg>\n"));
    assert!(!svg.contains(SECRET), "drawn, not written");
}

#[test]
fn a_confirmation_needs_nothing_and_does_nothing() {
    let world = World::new("confirm");
    let mut confirm = Command::new(env!("CARGO_BIN_EXE_otpqr"));
    confirm.arg("--confirm").env_clear();
    world.succeeds(&mut confirm);
    assert_eq!(world.files(), [""; 0]);
}
