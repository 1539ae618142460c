//! Container engines other than Docker's run by root: podman by the name of `docker`, of root and rootless; Docker that is
//! rootless or remaps users. A test's engine is its own: what it stores and what it leaves running ends with the test.

use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{self, Child, Stdio};
use std::thread;

use crate::support::{Bundle, Platform, ROOTLESS, User, copy, image, phone, repository, root_has, run, run_with_input};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// For hosts without systemd, and for users who may not raise their limits.
const CONTAINERS_CONF: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
"#;

fn engines_are_there() -> bool {
    root_has(&["podman", "runc", "rootlesskit", "slirp4netns", "newuidmap", "ip"])
}

/// A bundle whose `docker` is another engine.
struct Engine {
    bundle: Bundle,
    /// Where the engine has its files, below a short name: it makes sockets there.
    home: TempDir,
    daemon: Option<Child>,
    _network: Option<File>,
}

impl Engine {
    fn new(user: User) -> Engine {
        let mut bundle = Bundle::of_test(Platform::Sim, user);
        bundle.install(scripts!());
        for file in ["Dockerfile.otpqr", ".dockerignore"] {
            copy(&repository().join(file), &bundle.root.join(file));
        }
        let home = tempfile::Builder::new().prefix("otpqr-").tempdir().expect("a directory");
        for name in ["bin", "run"] {
            fs::create_dir(home.path().join(name)).expect("a directory");
        }
        fs::set_permissions(home.path().join("run"), Permissions::from_mode(0o700)).expect("permissions");
        let path = [home.path().join("bin").into(), std::env::var_os("PATH").expect("PATH")].join(":".as_ref());
        bundle.environment = vec![("PATH", path), ("XDG_RUNTIME_DIR", home.path().join("run").into())];
        bundle.give_away(home.path());
        Engine { bundle, home, daemon: None, _network: None }
    }

    /// podman, called by a script named `docker`, which does something first.
    fn podman(user: User, first: &str) -> Engine {
        let mut engine = Engine::new(user);
        let home = engine.home.path();
        fs::write(home.join("containers.conf"), CONTAINERS_CONF).expect("podman's settings");
        engine.bundle.environment.push(("CONTAINERS_CONF", home.join("containers.conf").into()));
        let podman =
            format!("podman --root {0}/root --runroot {0}/runroot --storage-driver vfs \"$@\"", home.display());
        fs::write(home.join("docker"), format!("#!/bin/sh\n{first} {podman}\n")).expect("a script");
        fs::set_permissions(home.join("docker"), Permissions::from_mode(0o755)).expect("permissions");
        // A process that another test starts at the same time may inherit the file we wrote, open: it is then "busy". A copy is
        // not.
        copy(&home.join("docker"), &home.join("bin/docker"));
        engine
    }

    /// Docker's, in namespaces of an ordinary user.
    fn rootless_docker() -> Engine {
        // As in Docker's own script for this, which Debian does not package.
        Engine::dockerd(
            User::Rootless,
            "exec rootlesskit --state-dir=$HOME_OF_ENGINE/rootlesskit --net=slirp4netns --mtu=65520 \
             --disable-host-loopback --port-driver=builtin --copy-up=/etc --copy-up=/run \
             sh -c 'rm -f /run/docker /run/containerd /run/xtables.lock; exec \"$@\"' sh",
            "--rootless",
        )
    }

    /// Docker's, of root, that maps users to others. In a network of its own, which everything in the bundle shares.
    fn remapping_docker() -> Engine {
        let apart =
            "exec unshare --net --mount sh -c 'ip link set lo up && mount -t tmpfs none /run && exec \"$@\"' sh";
        let mut engine = Engine::dockerd(User::Caller, apart, &format!("--userns-remap={ROOTLESS}"));
        let bundle = &mut engine.bundle;
        bundle.scone_sim(["down"]).expect(0);
        let daemon = engine.daemon.as_ref().expect("a daemon");
        // By a descriptor: the CAS is ended after the daemon.
        let network = File::open(format!("/proc/{}/ns/net", daemon.id())).expect("its network");
        bundle.network = Some(format!("/proc/{}/fd/{}", process::id(), network.as_raw_fd()).into());
        engine._network = Some(network);
        let clock = bundle.root.join("clock");
        bundle.scone_sim(["up", "--clock", clock.to_str().expect("UTF-8")]).expect(0);
        engine
    }

    /// Docker's daemon, started by a shell behind a program that puts it into other namespaces.
    fn dockerd(user: User, behind: &str, option: &str) -> Engine {
        let mut engine = Engine::new(user);
        let home = engine.home.path().to_owned();
        fs::write(home.join("daemon.json"), "{}").expect("its settings");
        let socket = format!("unix://{}/run/docker.sock", home.display());
        engine.bundle.environment.push(("DOCKER_HOST", socket.into()));
        engine.bundle.environment.push(("HOME_OF_ENGINE", home.clone().into()));
        let dockerd = "dockerd --config-file=$HOME_OF_ENGINE/daemon.json --iptables=false --ip6tables=false \
            --storage-driver=vfs --data-root=$HOME_OF_ENGINE/data --exec-root=$HOME_OF_ENGINE/run/exec \
            --pidfile=$HOME_OF_ENGINE/run/docker.pid --host=$DOCKER_HOST";
        let mut start = engine.bundle.command("sh");
        start.args(["-c", &format!("{behind} {dockerd} {option}")]);
        // An ordinary user's PATH may lack root's programs.
        let path = [engine.bundle.environment[0].1.clone(), "/usr/sbin:/sbin".into()].join(":".as_ref());
        let mut daemon = start.env("PATH", path).stderr(Stdio::piped()).spawn().expect("a daemon");
        let mut log = BufReader::new(daemon.stderr.take().expect("its log"));
        engine.daemon = Some(daemon);
        let mut read = String::new();
        while !read.contains("API listen on") {
            assert_ne!(log.read_line(&mut read).expect("its log"), 0, "Docker's daemon does not start:\n{read}");
        }
        thread::spawn(move || io::copy(&mut log, &mut io::sink()));
        engine
    }

    /// Builds the image as `make image` does.
    fn build(&self) {
        let mut build = self.bundle.command("docker");
        build.args(["build", "--quiet", "--target", "sim", "--file", "Dockerfile.otpqr", "--tag", "otpqr:sim", "."]);
        run(build).expect(0);
    }

    /// doctor's finding that begins with this.
    fn finding(&self, begin: &str) -> String {
        let report = self.bundle.script("doctor", &[]).stdout;
        let found = report.lines().find(|line| line.starts_with(begin));
        found.unwrap_or_else(|| panic!("no '{begin}' in\n{report}")).to_owned()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            kill_process(Pid::from_child(daemon), Signal::TERM).expect("the daemon is told to end");
            daemon.wait().expect("its end");
        }
        // Rootless podman leaves a process that holds its namespaces.
        let pause = fs::read_to_string(self.home.path().join("run/libpod/tmp/pause.pid"));
        if let Some(pid) = pause.ok().and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?)) {
            kill_process(pid, Signal::KILL).expect("podman's process to end");
        }
    }
}

/// An account's life.
fn an_account_lives(engine: &Engine, no_image: &str) {
    let bundle = &engine.bundle;
    bundle
        .script("create", &["--platform", "sim"])
        .expect(3)
        .saying("create: error: docker has no image 'otpqr:sim': ")
        .saying(no_image)
        .saying("hint: make image");
    assert!(!bundle.state_file("default").exists());

    engine.build();
    let first = bundle.enrol("default");
    bundle.gen_qr(&["--output", "again.svg"]).expect(5).saying("the QR code was issued already");
    let code = first.code_at(bundle.now());
    let wrong = if code == "000000" { "000001" } else { "000000" };
    bundle.add_auth(wrong, &["--output", "second.svg"]).expect(5).saying("that code is wrong");
    bundle.add_auth(&code, &["--output", "second.svg"]).expect(0);
    assert_eq!(bundle.scan("second.svg").secret, first.secret);
    let owner = |path: &Path| fs::metadata(path).expect("a file").uid();
    assert_eq!(owner(&bundle.root.join("second.svg")), owner(&bundle.root), "whose the QR code is");

    bundle.script("roll_forward", &["--yes"]).expect(0);
    bundle.gen_qr(&["--output", "new.svg"]).expect(0);
    assert_ne!(bundle.scan("new.svg").secret, first.secret);
    assert!(engine.finding("ok    volume").ends_with("it is the one CAS knows, in its latest state"));
    a_program_starts(engine, &bundle.scan("new.svg"));
}

/// A program of the user's is protected and started, with a volume.
fn a_program_starts(engine: &Engine, alice: &phone::Account) {
    let bundle = &engine.bundle;
    let directory = bundle.root.join("image");
    fs::create_dir(&directory).expect("a directory");
    image::shell(&directory, "n=$(cat /data/n 2>/dev/null); echo \"$n$1\" | tee /data/n; exit 7");
    image::add(&directory, &["/usr/bin/tee"]);
    image::readable(&directory);
    bundle.give_away(&directory);
    let mut import = bundle.command("sh");
    let script = "tar -C image -c . | docker import --change 'CMD [\"sh\", \"/app/service.sh\"]' --change 'ENV PATH=/bin:/usr/bin' - localhost/shell:1";
    run({
        import.args(["-c", script]);
        import
    })
    .expect(0);
    let image = ["--image", "localhost/shell:1", "--args", "1", "--volume", "/data"];
    bundle.script("protect", &[&["shell"], &image[..]].concat()).expect(0);
    let again = bundle.script("protect", &[&["shell"], &image[..]].concat()).expect(0);
    assert!(again.stdout.starts_with("already protected"), "{again:?}");
    let start = |code: &str| {
        let options = ["shell", "--otp-file", "-", "--", "x"];
        run_with_input(bundle.script_command("start", &options), code)
    };
    start("000000").expect(5);
    for expected in ["x\n", "xx\n"] {
        bundle.wait(30);
        let started = start(&alice.code_at(bundle.now()));
        assert_eq!((started.code, started.stdout.as_str()), (Some(7), expected), "{started:?}");
    }
}

#[test]
fn an_account_lives_in_podman() {
    if engines_are_there() {
        an_account_lives(&Engine::podman(User::Caller, "exec"), "image not known");
    }
}

#[test]
fn an_account_lives_in_rootless_podman() {
    if engines_are_there() {
        an_account_lives(&Engine::podman(User::Rootless, "exec"), "image not known");
    }
}

#[test]
fn an_account_lives_in_docker_that_remaps_users() {
    if engines_are_there() {
        an_account_lives(&Engine::remapping_docker(), "No such image");
    }
}

/// Like that of a snap, or Docker Desktop.
#[test]
fn an_engine_need_not_see_the_temporary_directory() {
    if !engines_are_there() {
        return;
    }
    let blind = "exec unshare --mount sh -c 'mount -t tmpfs none \"$TMPDIR\" && exec \"$@\"' sh";
    let engine = Engine::podman(User::Caller, blind);
    engine.build();
    let alice = engine.bundle.enrol("default");
    assert!(engine.finding("ok    volume").ends_with("it is the one CAS knows, in its latest state"));
    a_program_starts(&engine, &alice);
}

#[test]
fn rootless_docker_is_refused_before_anything_is_changed_and_what_is_named_instead_works() {
    if !engines_are_there() {
        return;
    }
    let engine = Engine::rootless_docker();
    let refused = engine.bundle.script("create", &["--platform", "sim"]).expect(3);
    let expected = "\
create: platform 'sim' is software only: a rehearsal that protects nobody from root
create: error: docker is rootless here: its containers are on a network of their own and cannot reach the simulated CAS
hint: ./scripts/create.rs --platform sim-native --account native   # without docker
";
    assert_eq!(refused.stderr.replace(&engine.bundle.root.join("").display().to_string(), ""), expected);
    assert_eq!(engine.bundle.written().len(), 0, "what the refused script wrote");

    let native = ["--account", "native"];
    engine.bundle.script("create", &[&["--platform", "sim-native"], &native[..]].concat()).expect(0);
    engine.bundle.gen_qr(&native).expect(0);
}
