//! Programs of more than one file (`--fs-dir`): what is refused, what changes the measurement, and what the program then sees.
//! The program is this host's dash with its libraries, so that real interpreters and real libraries are found, or not; CAS is
//! the simulator's own, which compares measurements.

#[allow(dead_code)]
mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use ring::digest::{Context, SHA256};
use scone_protocol::hex;
use support::Cas;
use tempfile::TempDir;

const DASH: &str = "/usr/bin/dash";

/// An unpacked image with a dynamically linked shell as `/bin/sh`; what else is in it lies below `/app`.
struct Image(TempDir);

impl Image {
    /// `None`, and a word about it, where there is no such shell.
    fn new() -> Option<Image> {
        let linked = Command::new("ldd").arg(DASH).output().ok().filter(|output| output.status.success());
        let Some(linked) = linked else {
            assert!(std::env::var_os("REQUIRE_DOCKER").is_none_or(|value| value != "1"), "missing: {DASH}, ldd");
            eprintln!("SKIPPED: missing: {DASH} or ldd");
            return None;
        };
        let image = Image(TempDir::new().unwrap());
        for name in ["bin", "app/empty", "usr"] {
            fs::create_dir_all(image.path(name)).unwrap();
        }
        copy(DASH, &image.path("bin/sh"));
        for word in text(&linked.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
            let to = image.path(&word[1..]);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            copy(word, &to);
        }
        fs::write(image.path("app/data"), "data\n").unwrap();
        fs::write(image.path("app/other"), "other\n").unwrap();
        symlink("data", image.path("app/link")).unwrap();
        // It leads out of the image, to what this host has.
        symlink("../../../../../../../../etc/passwd", image.path("app/out")).unwrap();
        fs::write(image.path("app").join(OsStr::from_bytes(b"\xff\xfe")), "no UTF-8\n").unwrap();
        Some(image)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn libc(&self) -> PathBuf {
        let found = Command::new("find").arg(self.0.path()).args(["-name", "libc.so.6"]).output().unwrap();
        text(&found.stdout).trim_end().into()
    }

    /// What the shell needs of [`LIBRARIES`].
    fn needed(&self) -> Vec<&'static str> {
        LIBRARIES.into_iter().filter(|name| self.path(&name[1..]).exists()).collect()
    }

    fn command(&self, directories: &[&str], program: &str) -> Command {
        self.command_of(env!("CARGO_BIN_EXE_scone-run").as_ref(), directories, program)
    }

    fn command_of(&self, runtime: &Path, directories: &[&str], program: &str) -> Command {
        let mut command = Command::new(runtime);
        command.arg("--rootfs").arg(self.0.path()).stdin(Stdio::null());
        for directory in directories {
            command.args(["--fs-dir", directory]);
        }
        command.arg(program);
        command
    }

    fn hash(&self, directories: &[&str]) -> String {
        let output = self.command(directories, "/bin/sh").env("SCONE_HASH", "1").output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim_end().to_owned()
    }

    #[track_caller]
    fn refuses(&self, directories: &[&str], program: &str, words: &str) {
        for hash in ["1", "0"] {
            let output = self.command(directories, program).env("SCONE_HASH", hash).output().unwrap();
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(134), "{error}");
            assert!(error.contains("[SCONE|FATAL] ") && error.contains(words), "{words:?} is not in {error}");
            assert_eq!(text(&output.stdout), "");
        }
    }

    /// Runs a script, unprotected, with these directories measured.
    fn runs(&self, directories: &[&str], options: &[String], script: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scone-run"));
        command.arg("--rootfs").arg(self.0.path()).args(options).stdin(Stdio::null());
        for directory in directories {
            command.args(["--fs-dir", directory]);
        }
        command.args(["/bin/sh", "-c", script]).output().unwrap()
    }
}

const ALL: [&str; 1] = ["/"];
/// All that the shell needs, wherever this host has it.
const LIBRARIES: [&str; 3] = ["/lib", "/lib64", "/usr"];

/// In a process of its own: a child that another test forks meanwhile would inherit the copy open for writing.
fn copy(from: impl AsRef<OsStr>, to: &Path) {
    assert!(Command::new("cp").arg("-L").arg(from).arg(to).status().unwrap().success());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

// ---- what is refused --------------------------------------------------------------------------------------------------

#[test]
fn a_program_whose_interpreter_is_not_measured_is_refused_and_so_is_a_script() {
    let Some(image) = Image::new() else { return };
    image.refuses(&["/bin"], "/bin/sh", "' is not measured: add its directory with --fs-dir");
    image.refuses(&[], "/bin/sh", "dynamically linked, so its libraries would go unmeasured: not simulated");
    fs::write(image.path("app/script"), "#!/bin/sh\n").unwrap();
    set_mode(&image.path("app/script"), 0o755);
    image.refuses(&ALL, "/app/script", "'/app/script' is a script: name its interpreter as the program");
    image.refuses(&[], "/app/script", "no 64-bit x86 ELF program: not simulated");
    image.refuses(&ALL, "/app/data", "'/app/data' is no 64-bit x86 ELF program: not simulated");
    image.refuses(&ALL, "/app/empty", "'/app/empty' is no regular file");
    image.refuses(&ALL, "bin/sh", "'bin/sh' is no absolute path");
    image.refuses(&ALL, "/app/absent", "cannot read '/app/absent'");
    // The link leads out of the image for the host, and to nothing for the program.
    image.refuses(&ALL, "/app/out", "cannot read '/etc': No such file");
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    let Some(image) = Image::new() else { return };
    for directory in ["/proc", "/sys/x", "/dev", "/.sealed"] {
        image.refuses(&[directory], "/bin/sh", "is never measured: it is not the image's");
    }
    image.refuses(&["/absent"], "/bin/sh", "cannot read '/absent'");
    image.refuses(&["/app/data"], "/bin/sh", "cannot read '/app/data': Not a directory");
    symlink("loop", image.path("app/loop")).unwrap();
    image.refuses(&["/app/loop/x"], "/bin/sh", "cannot read '/app/loop/x': Too many levels of symbolic links");
    for relative in ["app", "/app/..", ""] {
        let output = image.command(&[relative], "/bin/sh").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    }
}

#[test]
fn a_socket_a_fifo_or_a_device_is_refused_where_it_would_be_measured() {
    let Some(image) = Image::new() else { return };
    let make = |kind: &str, at: &Path| match kind {
        "socket" => UnixListener::bind(at).is_ok(),
        _ => Command::new("mknod").arg(at).args(kind.split(' ')).stderr(Stdio::null()).status().unwrap().success(),
    };
    let (measured, dev) = (image.path("app/made"), image.path("dev"));
    fs::create_dir(&dev).unwrap();
    for kind in ["socket", "p", "c 1 3", "b 7 0"] {
        if !make(kind, &measured) {
            assert!(kind.contains(' '), "{kind} cannot be made");
            eprintln!("SKIPPED: a device cannot be made here: {kind}");
            continue;
        }
        image.refuses(&ALL, "/bin/sh", "'/app/made' is a socket, a FIFO or a device: not simulated");
        // Not below a measured directory it is nobody's business, and below /dev an engine's.
        image.hash(&image.needed());
        fs::remove_file(&measured).unwrap();
        assert!(make(kind, &dev.join(kind)));
        image.hash(&ALL);
    }
}

// ---- the measurement --------------------------------------------------------------------------------------------------

/// The page's own words (docs/simulator-runtime.md, What is measured), by other means: a part is hashed with its length before it.
#[test]
fn the_measurement_is_what_the_page_says() {
    let Some(image) = Image::new() else { return };
    // Longer than what is read at a time, and no multiple of it.
    fs::write(image.path("app/long"), [b'x'; 1_000_003]).unwrap();
    let mut measured = BTreeMap::new();
    let mut ahead = vec![image.0.path().to_owned()];
    while let Some(directory) = ahead.pop() {
        for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            let name = [b"/", path.strip_prefix(image.0.path()).unwrap().as_os_str().as_bytes()].concat();
            let status = path.symlink_metadata().unwrap();
            if status.is_dir() {
                ahead.push(path);
            } else if status.is_symlink() {
                measured.insert(name, vec![b"link".to_vec(), fs::read_link(path).unwrap().into_os_string().into_vec()]);
            } else {
                let mode = (status.mode() & 0o777).to_be_bytes();
                measured.insert(name, vec![b"file".to_vec(), mode.to_vec(), fs::read(path).unwrap()]);
            }
        }
    }
    let runtime = fs::read(env!("CARGO_BIN_EXE_scone-run")).unwrap();
    let start = [
        b"scone-sim measurement 2".to_vec(),
        runtime,
        b"/bin/sh".to_vec(),
        1_u64.to_be_bytes().to_vec(),
        b"/".to_vec(),
        2_u64.to_be_bytes().to_vec(),
        b"/app/empty".to_vec(),
        b"/out".to_vec(),
    ];
    let settings = [b"SCONE_HEAP".to_vec(), b"64M".to_vec()];
    let files = measured.into_iter().flat_map(|(name, parts)| [vec![name], parts].concat());
    let mut expected = Context::new(&SHA256);
    for part in start.into_iter().chain(settings).chain(files) {
        expected.update(&(part.len() as u64).to_be_bytes());
        expected.update(&part);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_scone-run"));
    command.arg("--rootfs").arg(image.0.path()).args(["--fs-dir", "/", "--mount-point", "/out"]);
    command.args(["--mount-point", "/app/empty", "/bin/sh"]);
    command.env("SCONE_HASH", "1").env("SCONE_HEAP", "64M").env_remove("SCONE_STACK").env_remove("SCONE_ALLOW_DLOPEN");
    let output = command.output().unwrap();
    assert_eq!(text(&output.stdout).trim_end(), hex(expected.finish().as_ref()), "{}", text(&output.stderr));
}

#[test]
fn each_change_of_a_measured_file_is_another_measurement_and_undone_the_old_one() {
    let Some(image) = Image::new() else { return };
    let before = image.hash(&ALL);
    let path = |name: &str| image.path(name);
    let relink = |target: &str| {
        fs::remove_file(path("app/link")).unwrap();
        symlink(target, path("app/link")).unwrap();
    };
    let rename = |from: &str, to: &str| fs::rename(path(from), path(to)).unwrap();
    let write = |content: &str| fs::write(path("app/data"), content).unwrap();
    type Change<'a> = (&'a str, &'a dyn Fn(), &'a dyn Fn());
    let changes: [Change; 8] = [
        ("content", &|| write("DATA\n"), &|| write("data\n")),
        ("mode", &|| set_mode(&path("app/data"), 0o755), &|| set_mode(&path("app/data"), 0o644)),
        ("renamed", &|| rename("app/data", "app/data2"), &|| rename("app/data2", "app/data")),
        ("moved", &|| rename("app/data", "data"), &|| rename("data", "app/data")),
        ("added", &|| fs::write(path("app/new"), "").unwrap(), &|| fs::remove_file(path("app/new")).unwrap()),
        ("removed", &|| fs::remove_file(path("app/data")).unwrap(), &|| write("data\n")),
        ("link target", &|| relink("other"), &|| relink("data")),
        (
            "file for a link",
            &|| {
                fs::remove_file(path("app/link")).unwrap();
                fs::write(path("app/link"), "data").unwrap();
            },
            &|| relink("data"),
        ),
    ];
    for (what, change, undo) in changes {
        change();
        assert_ne!(image.hash(&ALL), before, "{what}");
        undo();
        set_mode(&path("app/data"), 0o644);
        assert_eq!(image.hash(&ALL), before, "{what}, undone");
    }
    let exchange = |a: &str, b: &str| fs::write(path("app/other"), b).and(fs::write(path("app/data"), a)).unwrap();
    exchange("dat", "a\nother\n");
    assert_ne!(image.hash(&ALL), before, "parts do not run together");
}

#[test]
fn directories_times_hard_links_and_what_an_engine_brings_do_not_count() {
    let Some(image) = Image::new() else { return };
    let before = image.hash(&ALL);
    for name in ["proc/1", "sys/kernel", "dev/pts", ".sealed/root", "etc", "run", "app/mountpoint"] {
        fs::create_dir_all(image.path(name)).unwrap();
    }
    for name in ["proc/1/x", "dev/null", ".sealed/x", ".dockerenv", "etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        fs::write(image.path(name), "an engine's").unwrap();
    }
    fs::write(image.path("run/.containerenv"), "podman's").unwrap();
    symlink("/proc/mounts", image.path("etc/mtab")).unwrap();
    set_mode(&image.path("app/empty"), 0o700);
    assert!(Command::new("touch").args(["-d", "2001-02-03"]).arg(image.path("app/data")).status().unwrap().success());
    assert_eq!(image.hash(&ALL), before);

    // Elsewhere the same names are the image's.
    fs::create_dir(image.path("app/etc")).unwrap();
    fs::write(image.path("app/etc/hosts"), "the image's").unwrap();
    assert_ne!(image.hash(&ALL), before);
    fs::remove_file(image.path("app/etc/hosts")).unwrap();

    // Two names of one file are two files, as they would be in another copy of the image.
    fs::write(image.path("app/again"), "data\n").unwrap();
    let two = image.hash(&ALL);
    fs::remove_file(image.path("app/again")).unwrap();
    fs::hard_link(image.path("app/data"), image.path("app/again")).unwrap();
    assert_eq!(image.hash(&ALL), two);
}

#[test]
fn overlapping_directories_count_once_and_which_are_named_counts() {
    let Some(image) = Image::new() else { return };
    let all = image.hash(&ALL);
    assert_eq!(image.hash(&["/", "/app", "/app/empty"]), all);
    assert_eq!(image.hash(&["/app/./", "//"]), all);
    let needed = image.needed();
    let with = |more: &[&'static str]| image.hash(&[&needed[..], more].concat());
    let without = with(&[]);
    assert_ne!(without, all);
    assert_ne!(with(&["/bin"]), without);
    assert_ne!(with(&["/app"]), with(&["/app/empty"]));

    // The program counts though no directory has it, what is in none does not.
    fs::write(image.path("app/data"), "unmeasured").unwrap();
    assert_eq!(with(&[]), without);
    set_mode(&image.path("bin/sh"), 0o700);
    assert_ne!(with(&[]), without);

    // One name of the same program is not another.
    let named = |program: &str| image.command(&ALL, program).env("SCONE_HASH", "1").output().unwrap().stdout;
    fs::hard_link(image.path("bin/sh"), image.path("bin/dash")).unwrap();
    assert_ne!(named("/bin/dash"), named("/bin/sh"));
}

// ---- what runs --------------------------------------------------------------------------------------------------------

#[test]
fn the_program_sees_what_was_measured_and_nothing_else_and_can_change_nothing() {
    let Some(image) = Image::new() else { return };
    fs::write(image.path("unmeasured"), "x").unwrap();
    fs::create_dir(image.path("secret")).unwrap();
    set_mode(&image.path("app/other"), 0o640);
    let script = "echo /* /app/*; read a </app/link; echo $a; echo x >/app/new; echo x >/bin/sh; echo x >/new; \
                  test -x /app/other || echo not executable; read a </app/out; exit 7";
    let needed = image.needed();
    let output = image.runs(&[&needed[..], &["/app"]].concat(), &[], script);
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(7), "{complained}");
    let directories = fs::read_dir(image.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut expected: Vec<String> = directories.map(|name| format!("/{}", name.to_str().unwrap())).collect();
    expected.retain(|name| name != "/unmeasured" && name != "/secret");
    expected.extend(["/dev", "/proc"].map(str::to_owned));
    expected.sort();
    let files = "/app/data /app/empty /app/link /app/other /app/out";
    assert!(said.starts_with(&format!("{} {files} ", expected.join(" "))), "{said}");
    assert!(said.ends_with("\ndata\nnot executable\n"), "{said}");
    assert_eq!(complained.matches("Read-only file system").count(), 3, "{complained}");
    assert!(complained.contains("cannot open /app/out"), "{complained}");
    assert!(!image.path("app/new").exists());
}

#[test]
fn on_a_kernel_without_large_pages_the_program_runs_all_the_same() {
    let Some(image) = Image::new() else { return };
    // The first mount makes the runtime's mounts its own, the second is the first that asks for large pages.
    let refused = ["-f", "-qq", "-o", "trace", "-e", "trace=mount", "-e", "inject=mount:error=EINVAL:when=2"];
    let directory = TempDir::new().unwrap();
    let mut command = Command::new("strace");
    command.args(refused).arg(env!("CARGO_BIN_EXE_scone-run")).arg("--rootfs").arg(image.0.path());
    command.args(["--fs-dir", "/", "/bin/sh", "-c", "read a </app/data; echo $a"]).current_dir(directory.path());
    let output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            assert!(std::env::var_os("REQUIRE_DOCKER").is_none_or(|value| value != "1"), "missing: strace");
            return eprintln!("SKIPPED: missing: strace: apt-get install strace");
        }
        output => output.unwrap(),
    };
    let trace = fs::read_to_string(directory.path().join("trace")).unwrap();
    let injected = trace.lines().find(|line| line.ends_with("(INJECTED)")).unwrap();
    assert!(injected.contains("huge=within_size"), "{trace}");
    assert_eq!(text(&output.stdout), "data\n", "{}", text(&output.stderr));
}

#[test]
fn from_what_the_caller_binds_nothing_is_executed() {
    let Some(image) = Image::new() else { return };
    let host = TempDir::new().unwrap();
    copy(DASH, &host.path().join("sh"));
    fs::write(host.path().join("script"), "echo read\n").unwrap();
    let bind = ["--bind".to_owned(), format!("{}:/app/bound", host.path().display())];
    let script = "/app/bound/sh -c 'echo executed'; . /app/bound/script; echo x >/app/bound/written";
    // An interpreter might find code there, so whoever measures says where something may be bound.
    for named in ["/app", "/app/bound/more", "/bound"] {
        let output = image.runs(&ALL, &[&bind[..], &["--mount-point".to_owned(), named.to_owned()]].concat(), script);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(134), ""), "{named}");
        let error = text(&output.stderr);
        assert!(error.contains("Caused by: '/app/bound' is bound, and is no --mount-point"), "{error}");
    }
    let bind = [&bind[..], &["--mount-point".to_owned(), "/app/bound".to_owned()]].concat();
    let output = image.runs(&ALL, &bind, script);
    assert_eq!(text(&output.stdout), "read\n");
    assert!(text(&output.stderr).contains("Permission denied"), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(host.path().join("written")).unwrap(), "x\n");
}

#[test]
fn a_mount_point_where_nothing_is_bound_is_an_empty_directory_in_memory() {
    let Some(image) = Image::new() else { return };
    let script = "echo x >/app/scratch/x; read a </app/scratch/x; echo $a; echo y >/app/y";
    let point = ["--mount-point".to_owned(), "/app/scratch".to_owned()];
    fs::create_dir_all(image.path("app/scratch/inner")).unwrap();
    // What the image has there would be hidden, and go unmeasured.
    fs::write(image.path("app/scratch/inner/x"), "the image's\n").unwrap();
    let output = image.runs(&ALL, &point, script);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(134), ""));
    let error = text(&output.stderr);
    assert!(
        error.contains("'/app/scratch' has files in the image, which something mounted there would hide"),
        "{error}"
    );
    fs::remove_file(image.path("app/scratch/inner/x")).unwrap();
    let output = image.runs(&ALL, &point, script);
    assert_eq!(text(&output.stdout), "x\n", "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("/app/y: Read-only file system"), "{}", text(&output.stderr));
    assert!(!image.path("app/scratch/x").exists());
}

#[test]
fn what_its_user_cannot_read_is_measured_as_that_and_is_not_there() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    let Some(image) = Image::new() else { return };
    let readable = image.hash(&ALL);
    fs::write(image.path("app/private"), "root's\n").unwrap();
    fs::create_dir(image.path("app/closed")).unwrap();
    fs::write(image.path("app/closed/x"), "root's\n").unwrap();
    let as_user = |hash: &str, script: &[&str]| {
        set_mode(image.0.path(), 0o755);
        let mut command = image.command(&ALL, "/bin/sh");
        command.uid(65_534).gid(65_534).args(script).env("SCONE_HASH", hash);
        command.output().unwrap()
    };
    let hash = || text(&as_user("1", &[]).stdout);
    let before = hash();
    set_mode(&image.path("app/private"), 0o600);
    set_mode(&image.path("app/closed"), 0o700);
    let closed = hash();
    assert!(before.len() == 65 && closed.len() == 65 && before != closed, "{before}{closed}");
    assert_ne!(readable.len(), 0);
    let output =
        as_user("0", &["-c", "read a </app/data; echo $a; read b </app/private; read c </app/closed/x; echo $b$c"]);
    assert_eq!(text(&output.stdout), "data\n\n", "{}", text(&output.stderr));
}

/// A session whose service runs the image's script in the image's shell, if the measurement is this.
fn create_session(cas: &Cas, name: &str, mrenclave: &str, injected: &str) {
    cas.create_session(&format!(
        "name: {name}\nversion: \"0.3.10\"\nservices:\n  - name: shell\n    image_name: image\n    \
         command: [sh, script]\n    pwd: /app\n    environment: {{GIVEN: by the policy}}\n    \
         attestation: [{{mrenclave: [{mrenclave}]}}]\nimages:\n  - name: image\n    \
         volumes: [{{name: v, path: /app/volume}}]\n{injected}\
         volumes: [{{name: v}}]\nsecurity: {{attestation: {{mode: hardware}}}}\n"
    ));
}

fn protected(mut command: Command, cas: &Cas, address: &str, session: &str) -> Output {
    command.env("SCONE_CAS_ADDR", address).env("SCONE_SIM_CAS_KEY", &cas.key);
    command.env("SCONE_SIM_EVIDENCE_KEY", &cas.evidence_key).env("SCONE_CONFIG_ID", format!("{session}/shell"));
    command.env("MINE", "the caller's").output().unwrap()
}

const SCRIPT: &str = "echo $0 $GIVEN $MINE $PWD; read b <volume/kept; echo $b; echo kept >volume/kept; \
                      read c <data; echo $c; exit 7";

#[test]
fn cas_configures_what_it_was_told_of_and_a_changed_library_is_something_else() {
    let Some(image) = Image::new() else { return };
    let directory = TempDir::new().unwrap();
    let cas = Cas::serve(&directory.path().join("cas"));
    let sealed = directory.path().join("sealed");
    fs::create_dir(&sealed).unwrap();
    fs::write(image.path("app/script"), format!("read a <injected; echo $a; {SCRIPT}")).unwrap();
    let mrenclave = image.hash(&ALL);
    let injected = "    injection_files: [{path: /app/injected, content: secret}]\n";
    create_session(&cas, "s", &mrenclave, injected);
    let start = |address: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scone-run"));
        command.arg("--rootfs").arg(image.0.path()).args(["--fs-dir", "/"]).stdin(Stdio::null());
        command.arg("--bind").arg(format!("{}:/.sealed/app/volume", sealed.display())).arg("/bin/sh");
        protected(command, &cas, address, "s")
    };
    let (libc, kept) = (image.libc(), directory.path().join("libc"));
    copy(&libc, &kept);
    let mut altered = fs::read(&libc).unwrap();
    *altered.last_mut().unwrap() ^= 1;
    fs::write(&libc, altered).unwrap();
    let output = start(&cas.enclave);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(134), "{error}");
    assert!(error.contains("Attestation failed\n  Caused by: "), "{error}");
    assert_eq!((text(&output.stdout).as_str(), fs::read_dir(&sealed).unwrap().count()), ("", 0));

    copy(&kept, &libc);
    let output = start(&cas.enclave);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "secret\nscript by the policy /app\n\ndata\n");
    let output = start(&cas.enclave);
    assert_eq!(text(&output.stdout), "secret\nscript by the policy /app\nkept\ndata\n", "{}", text(&output.stderr));

    // The runtime connects when it has measured, and is connected when the file has changed: the program sees what was measured.
    let data = image.path("app/data");
    let address = when_connected(&cas.enclave, move || fs::write(&data, "ALTERED\n").unwrap());
    let output = start(&address);
    assert_eq!(text(&output.stdout), "secret\nscript by the policy /app\nkept\ndata\n", "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(image.path("app/data")).unwrap(), "ALTERED\n");
    assert_eq!(start(&cas.enclave).status.code(), Some(134), "the next start measures what is there then");
}

/// Passes one connection on to `to`, having called `act`. Where to connect.
fn when_connected(to: &str, act: impl FnOnce() + Send + 'static) -> String {
    let (listener, to) = (TcpListener::bind("127.0.0.1:0").unwrap(), to.to_owned());
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let (mut here, _) = listener.accept().unwrap();
        act();
        let mut there = TcpStream::connect(to).unwrap();
        let (mut from, mut back) = (there.try_clone().unwrap(), here.try_clone().unwrap());
        // However a connection ends, the runtime tells what it made of it.
        thread::spawn(move || io::copy(&mut from, &mut back));
        let _ = io::copy(&mut here, &mut there);
    });
    address
}

// ---- in a container ---------------------------------------------------------------------------------------------------

/// An image that docker made of the same directory; it goes with the test.
struct Imported(String);

impl Drop for Imported {
    fn drop(&mut self) {
        let removed = Command::new("docker").args(["image", "rm", &self.0]).output().unwrap();
        assert!(removed.status.success() || thread::panicking(), "{}", text(&removed.stderr));
    }
}

/// `None`, and a word about it, where there is no engine.
fn import(image: &Image) -> Option<Imported> {
    let name = format!("scone-run-files-test:{}", std::process::id());
    let script =
        "tar -C \"$1\" --owner=0 --group=0 -c . | docker import --change 'ENTRYPOINT [\"/scone-run\"]' - \"$2\"";
    let imported = Command::new("sh").args(["-c", script, "-"]).arg(image.0.path()).arg(&name).output().unwrap();
    if imported.status.success() {
        return Some(Imported(name));
    }
    assert!(std::env::var_os("REQUIRE_DOCKER").is_none_or(|value| value != "1"), "missing: a Docker Engine");
    eprintln!("SKIPPED in a container: missing: a Docker Engine");
    None
}

#[test]
fn in_a_container_the_same_image_measures_the_same_and_runs_protected() {
    let Some(image) = Image::new() else { return };
    // The static one: it is in the image, and measures itself.
    copy(support::bin().join("scone-run"), &image.path("scone-run"));
    set_mode(image.0.path(), 0o755);
    fs::write(image.path("app/script"), SCRIPT).unwrap();
    let Some(imported) = import(&image) else { return };
    let directory = TempDir::new().unwrap();
    let cas = Cas::serve(&directory.path().join("cas"));
    let sealed = directory.path().join("sealed");
    fs::create_dir(&sealed).unwrap();
    let run = |more: &[&str]| {
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--log-driver=none", "--network=host", "--cap-drop=ALL", "--read-only"]);
        for name in ["CONFIG_ID", "CAS_ADDR", "SIM_CAS_KEY", "SIM_EVIDENCE_KEY", "HASH"] {
            command.args(["-e", &format!("SCONE_{name}")]);
        }
        command.args(["--tmpfs=/app/volume:mode=1777", "--mount"]);
        command.arg(format!("type=bind,src={},dst=/.sealed/app/volume", sealed.display()));
        command.args(more).arg(&imported.0).args(["--fs-dir", "/", "--mount-point", "/app/volume", "/bin/sh"]);
        command
    };
    let hash = |mut command: Command| {
        let output = command.env("SCONE_HASH", "1").output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim_end().to_owned()
    };
    let mut natively = Command::new(image.path("scone-run"));
    natively.arg("--rootfs").arg(image.0.path()).args(["--fs-dir", "/", "--mount-point", "/app/volume", "/bin/sh"]);
    let natively = hash(natively);
    assert_eq!(hash(run(&[])), natively);
    // Nothing is mounted over a file, or where there was none, that was not named.
    for place in ["/app/data", "/app/more"] {
        let mut mounted = run(&[&format!("--mount=type=bind,src={DASH},dst={place}")]);
        let output = mounted.env("SCONE_HASH", "1").output().unwrap();
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(134), ""), "{place}");
        let error = text(&output.stderr);
        assert!(error.contains(&format!("'{place}' is mounted, and is no --mount-point")), "{error}");
    }
    let output = run(&[&format!("--mount=type=bind,src={DASH},dst=/bin/sh")]).env("SCONE_HASH", "1").output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(134), ""));
    assert!(text(&output.stderr).contains("'/bin/sh' is mounted, and is no --mount-point"), "{}", text(&output.stderr));

    create_session(&cas, "other", &"0".repeat(64), "");
    create_session(&cas, "s", &natively, "");
    let output = protected(run(&[]), &cas, &cas.enclave, "other");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(134), ""), "{}", text(&output.stderr));
    for kept in ["", "kept"] {
        let output = protected(run(&[]), &cas, &cas.enclave, "s");
        assert_eq!(
            text(&output.stdout),
            format!("script by the policy /app\n{kept}\ndata\n"),
            "{}",
            text(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(7));
    }
}
