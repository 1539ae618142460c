//! The life of an account from end to end, on both platforms of the simulator, as root and as an ordinary user, in a root
//! whose path has spaces and quotes. Time stands still unless a test lets it pass.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::attacker::OtherImage;
use crate::support::{Bundle, Outcome, Platform, User, docker_is_there, is_root, repository, run};

/// The flow itself. Every refusal is asserted before the success it guards, and what must not be seen is looked for everywhere.
fn the_whole_flow(platform: Platform, user: User) {
    let bundle = Bundle::of_test(platform, user);
    bundle.install(scripts!());
    let mut seen: Vec<Outcome> = Vec::new();
    let mut note = |outcome: Outcome| seen.push(outcome);

    // Nothing is there yet.
    let name = platform.name();
    note(bundle.gen_qr(&[]).expect(3).saying("hint: ./scripts/create.rs"));
    note(bundle.script("create", &["--platform", name, "--issuer", "O'Neil: Co"]).expect(2));
    assert!(!bundle.root.join("state").exists(), "nothing was created");
    // In a checkout the directory exists already, readable by all.
    bundle.make_directory("state");

    // Created once; a second run has nothing to do.
    let create = ["--platform", name, "--issuer", "O'Neil & \"Co\" #1"];
    note(bundle.script("create", &create).expect(0));
    let hashes = ["namespace_hash", "otpqr_hash", "reset_hash"].map(|key| bundle.known("default", &[key]));
    let again = bundle.script("create", &create).expect(0);
    assert!(again.stdout.starts_with("already created"), "{}", again.stdout);
    note(again);
    assert_eq!(hashes, ["namespace_hash", "otpqr_hash", "reset_hash"].map(|key| bundle.known("default", &[key])));

    // Issued once, ever.
    fs::write(bundle.root.join("taken.svg"), "mine").expect("a file");
    note(bundle.gen_qr(&["--output", "taken.svg"]).expect(3).saying("exists already"));
    assert_eq!(fs::read_to_string(bundle.root.join("taken.svg")).expect("a file"), "mine");
    note(bundle.gen_qr(&[]).expect(0));
    let mode = fs::metadata(bundle.root.join("qrcode.svg")).expect("the QR code").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let first = bundle.scan("qrcode.svg");
    assert_eq!((first.issuer.as_str(), first.login.as_str()), ("O'Neil & \"Co\" #1", "alice"));
    note(bundle.gen_qr(&["--output", "second.svg"]).expect(5).saying("issued already"));
    assert!(!bundle.root.join("second.svg").exists());

    // Issued again only for a code, and each code works once.
    let code = first.code_at(bundle.now());
    let wrong = if code == "000000" { "000001" } else { "000000" };
    note(bundle.script("add_auth", &["--output", "second.svg"]).expect(2).saying("--otp-file FILE"));
    note(bundle.add_auth("12345", &["--output", "second.svg"]).expect(2).saying("exactly six digits"));
    note(bundle.add_auth(wrong, &["--output", "second.svg"]).expect(5).saying("One-time Password is invalid"));
    assert!(!bundle.root.join("second.svg").exists());
    note(bundle.add_auth(&code, &["--output", "second.svg"]).expect(0));
    assert_eq!(bundle.scan("second.svg").secret, first.secret);
    note(bundle.add_auth(&code, &["--output", "third.svg"]).expect(5).saying("already used").saying("UTC by 'otpqr-"));
    assert!(!bundle.root.join("third.svg").exists());

    // The authenticator is lost: a new secret, and the old codes are no longer valid.
    note(bundle.script("roll_forward", &[]).expect(2).saying("--yes"));
    let rolled = bundle.script("roll_forward", &["--yes"]).expect(0);
    assert!(
        rolled.stdout.contains("delete from the authenticators: 'O'Neil & \"Co\" #1', 'alice'"),
        "{}",
        rolled.stdout
    );
    note(rolled);
    let old = first.code_at(bundle.now() + 30);
    note(bundle.add_auth(&old, &["--output", "third.svg"]).expect(5).saying("One-time Password is invalid"));
    note(bundle.gen_qr(&["--output", "new.svg"]).expect(0));
    let new = bundle.scan("new.svg");
    assert_eq!(new.login, "alice #2");
    assert_ne!(new.secret, first.secret);
    note(bundle.gen_qr(&["--output", "third.svg"]).expect(5));
    note(bundle.add_auth(&new.code_at(bundle.now()), &["--output", "third.svg"]).expect(0));

    // Secrets and codes are in no file.
    let newest = new.code_at(bundle.now());
    let codes = [&code, &old, &newest].map(String::as_str);
    let hidden = [first.secret.as_str(), new.secret.as_str()].into_iter().chain(codes);
    for text in hidden {
        for outcome in &seen {
            assert!(!outcome.text().contains(text), "a secret or a code was printed:\n{}", outcome.text());
        }
        for (path, content) in bundle.written() {
            let found = content.windows(text.len()).any(|window| window == text.as_bytes());
            assert!(!found, "'{}' holds a secret or a code", path.display());
        }
    }
    let mode = fs::metadata(bundle.root.join("state")).expect("a directory").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    for (path, _) in bundle.written() {
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o077, 0, "'{}' is open to others", path.display());
    }
    let left = fs::read_dir(bundle.root.join("state/issuing")).expect("the directory").count();
    assert_eq!(left, 0, "working directories are left behind");
}

#[test]
fn an_account_lives_natively() {
    the_whole_flow(Platform::SimNative, User::Caller);
}

#[test]
fn an_account_lives_natively_for_an_ordinary_user() {
    if is_root() {
        the_whole_flow(Platform::SimNative, User::Ordinary);
    }
}

#[test]
fn an_account_lives_in_containers() {
    if docker_is_there() {
        the_whole_flow(Platform::Sim, User::Caller);
    }
}

#[test]
fn an_account_lives_in_containers_for_an_ordinary_user() {
    if docker_is_there() && is_root() {
        the_whole_flow(Platform::Sim, User::Ordinary);
    }
}

#[test]
fn the_measurement_is_the_same_in_a_container_and_on_the_host() {
    if !docker_is_there() {
        return;
    }
    let [container, host] = [Platform::Sim, Platform::SimNative].map(|platform| {
        let bundle = Bundle::of_test(platform, User::Caller);
        bundle.install(scripts!());
        bundle.script("create", &["--platform", platform.name()]).expect(0);
        bundle.known("default", &["mrenclave"])
    });
    assert_eq!(container, host);
}

#[test]
fn the_image_is_under_nine_and_a_half_megabytes() {
    if !docker_is_there() {
        return;
    }
    let mut inspect = Command::new("docker");
    inspect.args(["image", "inspect", "--format", "{{.Size}}", "otpqr:sim"]);
    let size: u64 = run(inspect).expect(0).stdout.trim().parse().expect("a size");
    // The runtime, and three static programs that need 1.2 MB each before they do anything: otpqr, the gate, the entry.
    assert!(size < 9_500_000, "{size} bytes");
}

/// SCONE reads a code from the environment alone, and only the one process that needs it has it there: it got it through a FIFO.
#[test]
fn a_code_on_its_way_is_in_one_environment_variable_and_nowhere_else() {
    if !docker_is_there() {
        return;
    }
    let bundle = Bundle::of_test(Platform::Sim, User::Caller);
    bundle.install(scripts!());
    let account = bundle.enrol("default");
    let code = account.code_at(bundle.now());

    // A pipe opens when both ends are there, so each side waits for the other and for nothing else.
    let pipe = bundle.root.join("code");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let mut command =
        bundle.script_command("add_auth", &["--no-confirm", "--output", "second.svg", "--otp-file", "code"]);
    let script = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("add_auth");
    let mut code_writer = OpenOptions::new().write(true).open(pipe).expect("the script asks for the code");
    let mut cas = bundle.hold_cas();
    code_writer.write_all(code.as_bytes()).expect("the code");
    drop(code_writer);
    cas.wait();

    let mut containers = Command::new("docker");
    // Also one that the engine does not know to be running yet.
    containers.args(["ps", "--all", "--quiet", "--no-trunc", "--filter"]);
    containers.arg(format!("label=otpqr.output={}-1-1", bundle.known("default", &["namespace"])));
    let ours = run(containers).expect(0).stdout;
    let inspected: Vec<String> = ours
        .lines()
        .map(|id| {
            let mut inspect = Command::new("docker");
            inspect.args(["inspect", id]);
            run(inspect).expect(0).stdout
        })
        .collect();
    let [container] = inspected.as_slice() else { panic!("{} containers of this account", inspected.len()) };
    assert!(!container.contains(&code) && !container.contains("SCONE_CONFIG_ID"), "{container}");
    let evidence_key = bundle.scone_sim(["evidence-key"]).expect(0).stdout;
    assert!(!container.contains(evidence_key.trim_end()), "{container}");
    assert!(container.contains("\"LogPath\": \"\""), "docker keeps a log");
    assert!(!container.contains(&account.secret));
    if is_root() {
        let mut files = Command::new("grep");
        files.args(["--recursive", "--files-with-matches", "--fixed-strings", &code]);
        files.args(ours.lines().map(|id| Path::new("/var/lib/docker/containers").join(id)));
        run(files).expect(1);
    }
    let mut environments = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc") {
        let process = entry.expect("an entry").path();
        let read = |name: &str| {
            let mut content = Vec::new();
            // A process may have ended meanwhile.
            let read = fs::File::open(process.join(name)).and_then(|mut file| file.read_to_end(&mut content));
            read.map(|_| String::from_utf8_lossy(&content).into_owned()).unwrap_or_default()
        };
        let (arguments, environment) = (read("cmdline"), read("environ"));
        assert!(!arguments.contains(&code), "{arguments}");
        assert!(!arguments.contains(&account.secret));
        let with_code = environment.split('\0').find(|variable| variable.contains(&format!("@{code}")));
        environments.extend(with_code.map(|variable| (read("comm"), variable.to_owned())));
    }
    if is_root() {
        let [(process, variable)] = environments.as_slice() else { panic!("{environments:?}") };
        assert!(process == "scone-run\n" && variable.starts_with("SCONE_CONFIG_ID="), "{process}{variable}");
    }

    drop(cas);
    let output = script.wait_with_output().expect("add_auth");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(bundle.scan("second.svg").secret, account.secret);
}

/// As where another user's simulator has taken the ports meanwhile, and the hint of `scone-sim up` was followed.
#[test]
fn a_simulated_cas_that_is_back_on_other_ports_is_the_same_cas() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    let account = bundle.enrol("default");
    let before = bundle.known("default", &["cas", "address"]);
    bundle.scone_sim(["down"]).expect(0);
    let _taken = TcpListener::bind(&before).expect("the port");
    let clock = bundle.root.join("clock").display().to_string();
    let refused = bundle.scone_sim(["up", "--clock", &clock]).expect(3);
    refused.saying("cannot listen").saying("--client-port 0 --enclave-port 0");
    bundle.scone_sim(["up", "--clock", &clock, "--client-port", "0", "--enclave-port", "0"]).expect(0);

    bundle.gen_qr(&["--output", "second.svg"]).expect(5).saying("issued already");
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
    assert_eq!(bundle.scan("second.svg").secret, account.secret);
    bundle.script("create", &[]).expect(0);
    assert_ne!(bundle.known("default", &["cas", "address"]), before);
    bundle.script("roll_forward", &["--yes"]).expect(0);
}

#[test]
fn a_scone_that_is_not_the_platforms_is_refused() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle.enrol("default");
    let scone = bundle.root.join("simulator/bin/scone");
    fs::remove_file(&scone).expect("deletion");
    fs::write(&scone, "#!/bin/sh\necho scone 5.8.0\n").expect("a script");
    fs::set_permissions(&scone, fs::Permissions::from_mode(0o755)).expect("permissions");
    for (script, args) in [
        ("create", &["--platform", "sim-native"][..]),
        ("gen_qr", &["--no-confirm", "--output", "again.svg"]),
        ("add_auth", &["--no-confirm", "--output", "again.svg", "--otp-file", "-"]),
        ("roll_forward", &["--yes"]),
    ] {
        bundle.script(script, args).expect(3).saying("scone 5.8.0");
    }
}

#[test]
fn a_cas_that_is_down_is_said_to_be_down_and_create_starts_it() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle.enrol("default");
    bundle.scone_sim(["down"]).expect(0);
    bundle.gen_qr(&["--output", "again.svg"]).expect(3).saying("simulator/bin/scone-sim' up");
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    bundle.gen_qr(&["--output", "again.svg"]).expect(5).saying("issued already");
}

#[test]
fn an_image_older_than_the_scripts_is_built_anew() {
    if !docker_is_there() {
        return;
    }
    let bundle = Bundle::of_test(Platform::Sim, User::Caller);
    bundle.install(scripts!());
    let tag = Tag(format!("otpqr-older:{}", std::process::id()));
    let mut import = Command::new("sh");
    let changes = "--change 'ENTRYPOINT [\"/scone-run\"]'";
    import.args(["-c", &format!("tar -c --exclude ./entry . | docker import {changes} - {}", tag.0)]);
    import.current_dir(repository().join("simulator/bin/rootfs"));
    run(import).expect(0);
    bundle.script("create", &["--platform", "sim", "--image", &tag.0]).expect(0);
    let refused = bundle.gen_qr(&[]).expect(3).saying("/entry: no such file or directory");
    refused.saying("make image");
    assert!(!issuing(&bundle).exists());
}

/// Where the program leaves the QR code of the account's first secret.
fn issuing(bundle: &Bundle) -> PathBuf {
    bundle.root.join("state/issuing").join(format!("{}-1-1", bundle.known("default", &["namespace"])))
}

fn make_private(directory: &Path) {
    fs::create_dir_all(directory).expect("the working directory");
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).expect("permissions");
}

#[test]
fn a_qr_code_that_a_killed_run_could_not_deliver_is_delivered_by_the_next_wherever_that_wants_it() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    bundle.gen_qr(&[]).expect(0);
    let first = bundle.scan("qrcode.svg");
    // As if the run had been killed before it delivered the QR code.
    make_private(&issuing(&bundle));
    fs::rename(bundle.root.join("qrcode.svg"), issuing(&bundle).join("qrcode.svg")).expect("a killed run's QR code");
    // Another account does not get it.
    bundle.script("create", &["--platform", "sim-native", "--account", "other"]).expect(0);
    bundle.gen_qr(&["--account", "other", "--output", "other.svg"]).expect(0);
    assert_ne!(bundle.scan("other.svg").secret, first.secret);
    bundle.gen_qr(&["--output", "elsewhere.svg"]).expect(0);
    assert_eq!(bundle.scan("elsewhere.svg").secret, first.secret);
    assert!(!issuing(&bundle).exists());
    // A truncated picture is useless, and the marker has been taken.
    make_private(&issuing(&bundle));
    fs::write(issuing(&bundle).join("qrcode.svg"), "<svg").expect("a killed run's file");
    bundle.gen_qr(&[]).expect(5).saying("issued already");
    assert!(!issuing(&bundle).exists());
}

#[test]
fn a_qr_code_goes_to_another_file_system_as_well() {
    let elsewhere = Path::new("/dev/shm");
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    if elsewhere.metadata().map(|found| found.dev()).ok() == bundle.root.metadata().map(|found| found.dev()).ok() {
        eprintln!("SKIPPED: there is no second file system");
        return;
    }
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let directory = tempfile::tempdir_in(elsewhere).expect("a directory there");
    let output = directory.path().join("alice.svg");
    bundle.gen_qr(&["--output", output.to_str().expect("a name")]).expect(0);
    assert_eq!(fs::metadata(&output).expect("the QR code").permissions().mode() & 0o777, 0o600);
    crate::support::phone::scan(&fs::read_to_string(&output).expect("the QR code"))
        .expect("a QR code that a phone can read");
    assert!(!issuing(&bundle).exists());
}

#[test]
fn a_working_directory_that_is_not_ours_alone_is_refused() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let directory = issuing(&bundle);
    fs::create_dir_all(directory.parent().expect("a parent")).expect("a directory");
    std::os::unix::fs::symlink(&bundle.root, &directory).expect("a link");
    bundle.gen_qr(&[]).expect(3).saying("it must be a directory that only you can open");
    fs::remove_file(&directory).expect("deletion");
    fs::create_dir(&directory).expect("a directory");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o750)).expect("permissions");
    bundle.gen_qr(&[]).expect(3).saying("it must be a directory that only you can open");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).expect("permissions");
    bundle.gen_qr(&[]).expect(0);
}

/// Another CAS answers where the account's did: a run that refuses it leaves the command line trusting the one it trusted.
#[test]
fn another_cas_at_the_same_address_is_not_trusted_by_a_run_that_refuses_it() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    let [address, enclave_address, key] =
        ["address", "enclave_address", "key"].map(|key| bundle.known("default", &["cas", key]));
    let [port, enclave_port] =
        [&address, &enclave_address].map(|address| address.split(':').next_back().expect("a port"));
    bundle.scone_sim(["down"]).expect(0);
    let data = bundle.root.join("data/scone-sim");
    for entry in fs::read_dir(&data).expect("the data").map(|entry| entry.expect("an entry").path()) {
        if entry.is_file() {
            fs::remove_file(entry).expect("deletion");
        }
    }
    let clock = bundle.root.join("clock").display().to_string();
    bundle.scone_sim(["up", "--client-port", port, "--enclave-port", enclave_port, "--clock", &clock]).expect(0);
    bundle.script("create", &[]).expect(3).saying("is not the one this account was created on");
    assert_eq!(bundle.scone(["cas", "show-identification", "-c", &address]).expect(0).stdout.trim(), key);
    let session = bundle.known("default", &["namespace"]);
    bundle.scone(["session", "read", &session]).expect(1).saying("the CAS has another key than when it was attested");
}

#[test]
fn an_account_can_be_started_over_when_its_state_is_lost() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    let lost = bundle.enrol("default");
    fs::remove_file(bundle.state_file("default")).expect("the loss");
    bundle.script("create", &["--platform", "sim-native"]).expect(0).saying("are moved aside");
    bundle.gen_qr(&["--output", "new.svg"]).expect(0);
    assert_ne!(bundle.scan("new.svg").secret, lost.secret);
}

/// The current directory is the last place where a script looks for its bundle, and never if it belongs to somebody else.
#[test]
fn a_bundle_that_somebody_else_laid_out_where_we_stand_is_not_used() {
    if !is_root() {
        return;
    }
    let bundle = Bundle::of_test(Platform::SimNative, User::Ordinary);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    for script in ["create", "gen_qr", "roll_forward"] {
        let mut command = Command::new(bundle.root.join("scripts").join(script));
        command.current_dir(&bundle.root).env_remove("OTPQR_ROOT").env("XDG_DATA_HOME", bundle.root.join("root-data"));
        match script {
            "gen_qr" => command.arg("--no-confirm"),
            "roll_forward" => command.arg("--yes"),
            _ => command.args(["--platform", "sim-native"]),
        };
        run(command).expect(3).saying("is not yours alone");
    }
    assert!(!bundle.root.join("root-data").exists());
    // Nor is a state used that is a link to ours.
    let root = tempfile::tempdir().expect("a directory");
    fs::create_dir(root.path().join("state")).expect("a directory");
    std::os::unix::fs::symlink(bundle.state_file("default"), root.path().join("state/default.yml")).expect("a link");
    let mut command = Command::new(bundle.root.join("scripts/gen_qr"));
    command.args(["--no-confirm", "--root"]).arg(root.path()).env_remove("OTPQR_ROOT");
    run(command).expect(3).saying("state file '");
}

#[test]
fn a_script_whose_output_cannot_be_written_says_so_and_does_not_panic() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    let full = || OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let mut command = bundle.script_command("create", &["--platform", "sim-native"]);
    command.stdout(full()).stderr(Stdio::piped());
    let output = command.spawn().and_then(|child| child.wait_with_output()).expect("create");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be reported on standard output"));
    let mut command = bundle.script_command("create", &["--platform", "sim-native"]);
    command.stdout(Stdio::null()).stderr(full());
    assert_eq!(command.status().expect("create").code(), Some(0));
}

/// Whoever finds a code used wants to know when and where: the last use counts, and only that person's.
#[test]
fn of_a_used_code_its_last_use_is_told() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    let (account, other) = (bundle.enrol("default"), bundle.enrol("other"));
    let service = |name: &str| format!("{}/otpqr-reset/{name}", bundle.known("default", &["namespace"]));
    let told = |code: &str, at: u64, service: &str| {
        let (hours, minutes, seconds) = (at / 3600 % 24, at / 60 % 60, at % 60);
        let told = format!("(last spent at {hours:02}:{minutes:02}:{seconds:02} UTC by '{service}')");
        bundle.add_auth(code, &["--output", "third.svg"]).expect(5).saying(&told);
    };
    let code = account.code_at(bundle.now());
    let confirm = format!("{}@{code}", service("confirm"));
    run(bundle.by_hand(&confirm, &Default::default())).expect(0);
    told(&code, bundle.now(), &service("confirm"));

    bundle.wait(3727);
    let (code, spent) = (account.code_at(bundle.now()), bundle.now());
    bundle.add_auth(&code, &["--output", "second.svg"]).expect(0);
    bundle.wait(5);
    let theirs = other.code_at(bundle.now());
    bundle.add_auth(&theirs, &["--account", "other", "--output", "theirs.svg"]).expect(0);
    told(&code, spent, &service("otpqr"));
}

/// An image name for one test. Removed when dropped.
struct Tag(String);

impl Tag {
    fn give_to(&self, image: &str) {
        let mut tag = Command::new("docker");
        tag.args(["tag", image, &self.0]);
        run(tag).expect(0);
    }
}

impl Drop for Tag {
    fn drop(&mut self) {
        let removed = Command::new("docker").args(["image", "rm", "--force", &self.0]).output();
        assert!(removed.is_ok(), "docker image rm");
    }
}

#[test]
fn an_image_that_was_built_anew_under_its_name_is_noticed_by_every_script() {
    if !docker_is_there() {
        return;
    }
    let bundle = Bundle::of_test(Platform::Sim, User::Caller);
    bundle.install(scripts!());
    let tag = Tag(format!("otpqr-rebuilt:{}", std::process::id()));
    tag.give_to("otpqr:sim");
    bundle.script("create", &["--platform", "sim", "--image", &tag.0]).expect(0);
    let account = bundle.enrol("default");
    let (id, measured) = (bundle.known("default", &["image_id"]), bundle.known("default", &["mrenclave"]));

    let other = OtherImage::of(&bundle);
    tag.give_to(&other.name);
    let code = account.code_at(bundle.now());
    for refused in [
        bundle.gen_qr(&["--output", "new.svg"]),
        bundle.add_auth(&code, &["--output", "new.svg"]),
        bundle.script("roll_forward", &["--yes"]),
    ] {
        refused.expect(3).saying("was rebuilt").saying("hint: ./scripts/create.rs");
    }
    assert_eq!(id, bundle.known("default", &["image_id"]));
    bundle.script("create", &[]).expect(0).saying(&format!("the program changed: measurement '{measured}' becomes"));
    assert_ne!(id, bundle.known("default", &["image_id"]));
    // What was refused has spent no code.
    bundle.add_auth(&code, &["--output", "new.svg"]).expect(0);
}

#[test]
fn a_name_that_begins_with_a_dash_is_no_option_and_no_stream() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    // Of a bundle that is not there yet.
    let asked = bundle.gen_qr(&["--root=-x"]).expect(3);
    let hint = asked.stderr.lines().find_map(|line| line.strip_prefix("hint: ")).expect("a hint");
    assert!(hint.ends_with(" --root './-x'"), "{hint}");
    bundle.script("create", &["--platform", "sim-native", "--login=-alice"]).expect(0);
    bundle.gen_qr(&["--output", "-"]).expect(2).saying("a QR code must end up in no stream");

    for (number, (given, printed)) in
        [("-x.svg", "'./-x.svg'"), ("./-", "'./-'"), ("--", "'./--'")].into_iter().enumerate()
    {
        if number > 0 {
            bundle.script("roll_forward", &["--yes"]).expect(0);
        }
        let issued = bundle.gen_qr(&[&format!("--output={given}")]).expect(0);
        bundle.scan(given);
        let shred = issued.stdout.split("destroy it: ").nth(1).expect("a command").trim_end();
        assert_eq!(shred, format!("shred -n 3 -z -u {printed}"));
        let mut pasted = bundle.command("sh");
        pasted.args(["-c", shred]);
        // Nor did it take standard output for the file.
        assert_eq!(run(pasted).expect(0).text(), "");
        assert!(!bundle.root.join(given).exists());
    }
}

#[test]
fn a_label_that_no_qr_code_can_hold_is_refused_and_the_longest_has_room_for_its_number() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    let create =
        |letters: usize| bundle.script("create", &["--platform", "sim-native", "--login", &"x".repeat(letters)]);
    // It would fit until a roll-forward adds its number.
    let fits = |letters: usize| bundle::drawing::fits("SCONE OTP", &"x".repeat(letters));
    let bare = (1..3000).take_while(|&letters| fits(letters)).last().expect("a length");
    for letters in [20_000, bare + 1, bare, bare - 12] {
        create(letters).expect(2).saying("issuer and login are too long for a QR code");
    }
    assert!(!bundle.state_file("default").exists());
    create(bare - 13).expect(0);
    bundle.script("roll_forward", &["--yes"]).expect(0);
    bundle.gen_qr(&[]).expect(0);
    assert!(bundle.scan("qrcode.svg").login.ends_with("x #2"));
}

#[test]
fn where_no_shell_has_set_them_name_and_home_are_those_of_the_account_database() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    let of_the_database = |question: &str| {
        let mut shell = bundle.command("sh");
        shell.args(["-c", question]);
        run(shell).expect(0).stdout.trim_end().to_owned()
    };
    let unset = |mut command: Command| {
        command.env_remove("LOGNAME").env_remove("USER").env_remove("HOME");
        command
    };
    let mut create = unset(bundle.script_command("create", &["--platform", "sim-native"]));
    // Empty is as good as unset.
    create.env("USER", "");
    run(create).expect(0);
    assert_eq!(bundle.known("default", &["login"]), of_the_database("id -un"));

    let mut status = unset(bundle.command(bundle.root.join("simulator/bin/scone-sim")));
    status.arg("status").env_remove("XDG_DATA_HOME").env("HOME", "");
    let told = run(status);
    let home = of_the_database("eval echo ~$(id -un)");
    // Whatever runs there.
    assert!(
        told.text().contains(&format!("'{home}/.local/share/scone-sim'")) || told.code == Some(0),
        "{}",
        told.text()
    );
}

#[test]
fn a_user_without_an_account_is_told_how_to_do_without_a_home() {
    if !is_root() {
        eprintln!("SKIPPED: only root can become another user");
        return;
    }
    let bundle = Bundle::new("bundle", Platform::SimNative, User::Ordinary, false);
    bundle.install(scripts!());
    let in_a_shell = |prelude: &str| {
        let mut shell = bundle.command("sh");
        let create = "../scripts/create --platform sim-native --login alice";
        // Where the CAS of the bundle has its data.
        shell.args(["-c", &format!("cd data; {prelude}; {create}")]).env_remove("HOME").env_remove("XDG_DATA_HOME");
        run(shell)
    };
    let refused =
        in_a_shell(":").expect(3).saying("neither XDG_DATA_HOME nor HOME is set, and this user has no account");
    let hint = refused.stderr.lines().find_map(|line| line.strip_prefix("hint: ")).expect("a hint");
    in_a_shell(hint).expect(0);
}

#[test]
fn a_code_in_a_file_may_be_spaced_and_marked_and_nothing_else_is_one() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    let account = bundle.enrol("default");
    let code = account.code_at(bundle.now());
    let (first, last) = code.split_at(3);
    let add_auth = |content: &[u8]| {
        fs::write(bundle.root.join("code"), content).expect("the code");
        bundle.script("add_auth", &["--no-confirm", "--otp-file", "code", "--output", "second.svg"])
    };
    let utf16: Vec<u8> = code.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let long = format!("{code}{}7", " ".repeat(2_000));
    for not_one in [b"".as_slice(), b"\xef\xbb\xbf", format!("{code}{code}").as_bytes(), long.as_bytes(), &utf16] {
        add_auth(not_one).expect(2).saying("a code is exactly six digits");
    }
    // None of them was presented: this one still is.
    add_auth(format!("\u{feff}{first}\u{a0}{last} \r\n").as_bytes()).expect(0);
}
