//! The images of otpqr (Dockerfile.otpqr, `make scone`), built by real builders with stand-ins for what only SCONE's registry has: a
//! cross compiler that writes down what it was asked for, or compiles for this host, and a signer that writes down with what.
//! SCONE's own were never seen here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::image::{self, Tag};
use crate::support::{Outcome, docker_is_there, repository, root_has, run, works};

/// As SCONE's: `scone cargo build`, and the signer of a program.
const SCONE: &str = r#"#!/bin/sh -e
[ -f Cargo.toml ] && [ -f Cargo.lock ] && [ -d src ]
mkdir -p target/x86_64-scone-linux-musl/release
case "$PWD" in /otpqr) program=otpqr ;; /programs/permit) program=gate ;; esac
echo "$program: $*" >target/x86_64-scone-linux-musl/release/$program
"#;
const SIGNER: &str = r#"#!/bin/sh -e
last=; for last; do :; done
[ "$1" != info ] || { echo "info of $last: isv_svn: 3"; exit; }
[ -w "$last" ]
read -r key </run/signing-key.pem
[ "${key#key-}" != "$key" ]
echo "signed: $*" >>"$last"
"#;
/// The same with a real cargo, for a target that it has.
const COMPILER: &str = r#"#!/bin/sh -e
for each; do
  shift
  [ "$each" != --target=x86_64-scone-linux-musl ] || each=--target=$HOST
  set -- "$@" "$each"
done
"$@"
mv "target/$HOST" target/x86_64-scone-linux-musl
"#;
/// What is asked of it, and where it leaves what it makes.
const BUILD: &str = "cargo build --release --locked --target=x86_64-scone-linux-musl";
const RELEASE: &str = "target/x86_64-scone-linux-musl/release";

fn stand_in(name: &str, programs: &[(&str, &str)]) -> Tag {
    Tag::import(image::of_scripts(programs).path(), name, &["ENV PATH=/usr/bin:/bin"])
}

/// One with this host's Rust, and the dependencies that the lock files name. Nothing else can be had in it.
fn compiler() -> Tag {
    let root = image::of_scripts(&[("usr/bin/scone", COMPILER), ("usr/bin/scone-signer", SIGNER)]);
    let bin = image::rust(root.path());
    let vendored = root.path().join("vendor");
    let mut vendor = Command::new("cargo");
    vendor.current_dir(repository()).args(["vendor", "--locked", "--manifest-path=otpqr/Cargo.toml"]);
    vendor.arg("--sync=programs/permit/Cargo.toml").arg(&vendored);
    let settings = run(vendor).expect(0).stdout;
    let settings = settings.replace(vendored.to_str().expect("UTF-8"), "/vendor");
    fs::create_dir(root.path().join("cargo")).expect("a directory");
    fs::write(root.path().join("cargo/config.toml"), settings).expect("cargo's settings");
    let mut host = Command::new("rustc");
    host.args(["--print", "host-tuple"]);
    let host = format!("ENV HOST={} RUSTFLAGS=-Ctarget-feature=+crt-static", run(host).expect(0).stdout.trim());
    let path = format!("ENV PATH=\"{}:/usr/bin:/bin\"", bin.display());
    Tag::import(root.path(), "scone/compiler", &[&host, &path, "ENV CARGO_HOME=/cargo CARGO_NET_OFFLINE=true"])
}

fn docker(arguments: &[&str]) -> Outcome {
    let mut docker = Command::new("docker");
    docker.args(arguments);
    run(docker)
}

/// What the stand-ins are called in arguments to `make`, or to a build.
fn instead_of_scone_s(compiler: &Tag, base: &Tag) -> [String; 3] {
    let (registry, name) = compiler.0.split_once('/').expect("a registry");
    [format!("SCONE_REGISTRY={registry}"), format!("SCONE_CROSSCOMPILER={name}"), format!("SCONE_BASE={}", base.0)]
}

/// A client of docker's, and a builder of it.
#[derive(Clone, Copy)]
struct Docker {
    /// Where the client is looked for first.
    client: &'static str,
    buildkit: &'static str,
}

const LEGACY: Docker = Docker { client: "/usr/local/bin", buildkit: "0" };

impl Docker {
    fn all() -> Vec<Docker> {
        let mut all = vec![LEGACY];
        // Debian's client has BuildKit built in.
        if works("/usr/bin/docker", &["version"], "apt-get install docker.io") {
            all.push(Docker { client: "/usr/bin", buildkit: "1" });
        }
        all
    }

    /// In the repository.
    fn command(self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(repository()).env("DOCKER_BUILDKIT", self.buildkit);
        command.env("PATH", format!("{}:{}", self.client, std::env::var("PATH").expect("a path")));
        command
    }

    /// `make scone` with the stand-ins.
    fn make(self, image: &Tag, key: &Path, compiler: &Tag, base: &Tag) -> Outcome {
        let mut make = self.command("make");
        // What is in simulator/bin is built before the tests, and other tests use it.
        make.args(["--silent", "--old-file=sim", "scone", "ISVPRODID=7", "ISVSVN=3"]);
        make.args([format!("SIGNING_KEY={}", key.display()), format!("SCONE_IMAGE={}", image.0)]);
        make.args(instead_of_scone_s(compiler, base));
        run(make)
    }
}

/// Of an image that `make scone` builds: its name, and those of what it is made of.
fn scone() -> [Tag; 3] {
    let image = Tag::new("scone");
    let [build, signed] = ["build", "signed"].map(|what| Tag(format!("{}-{what}", image.0)));
    [image, build, signed]
}

/// What is in an image.
fn unpacked(image: &Tag) -> TempDir {
    let container = docker(&["create", "--network=none", &image.0, "/entry"]).expect(0).stdout;
    let directory = tempfile::tempdir().expect("a directory");
    let to = directory.path().to_str().expect("UTF-8");
    docker(&["cp", &format!("{}:/.", container.trim()), to]).expect(0);
    docker(&["rm", container.trim()]).expect(0);
    directory
}

/// What the programs in an image were asked for, where the compiler writes that down.
fn asked_for(image: &Tag) -> String {
    let files = unpacked(image);
    ["bin/otpqr", "bin/gate"].map(|file| fs::read_to_string(files.path().join(file)).expect("a file")).concat()
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("a file").permissions().mode() & 0o7777
}

#[test]
fn the_image_for_scone_is_built_signed_and_no_layer_has_the_key() {
    if !docker_is_there() {
        return;
    }
    let compiler = stand_in("scone/compiler", &[("usr/bin/scone", SCONE), ("usr/bin/scone-signer", SIGNER)]);
    let base = stand_in("scone-base", &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let key = directory.path().join("my key.pem");
    for builder in Docker::all() {
        let [image, build, signed] = &scone();
        let _ = fs::remove_file(&key);
        let make = || builder.make(image, &key, &compiler, &base);
        make().expect(2).saying("make scone SIGNING_KEY=FILE");
        fs::write(&key, "another key\n").expect("a key");
        assert_ne!(make().code, Some(0), "what is not signed is no image");
        fs::write(&key, "key-that-no-layer-has\n").expect("a key");
        let said = make().expect(0).stdout;
        // As what it was signed, for who reads along.
        assert!(said.contains(&format!("info of /otpqr/{RELEASE}/otpqr: isv_svn: 3\n")), "{said}");
        let sign = "signed: sign --key=/run/signing-key.pem --production --isvprodid=7 --isvsvn=3";
        let expected = format!(
            "otpqr: {BUILD}\n{sign} /otpqr/{RELEASE}/otpqr\n\
             gate: {BUILD} --features gate\n{sign} /programs/permit/{RELEASE}/gate\n"
        );
        assert_eq!(asked_for(image), expected);
        // Neither the image nor what it was made of has the key.
        let layers = directory.path().join("layers");
        docker(&["save", "--output", layers.to_str().expect("UTF-8"), &image.0, &build.0, &signed.0]).expect(0);
        let layers = fs::read(&layers).expect("the layers");
        let has = |text: &[u8]| layers.windows(text.len()).any(|bytes| bytes == text);
        assert!(has(b"signed: sign --key=") && !has(b"that-no-layer-has"));
    }
}

#[test]
fn the_programs_are_compiled_from_what_the_dockerfile_copies_and_the_locks_name() {
    if !docker_is_there() {
        return;
    }
    let (compiler, base) = (compiler(), stand_in("scone-base", &[]));
    let key = tempfile::NamedTempFile::new().expect("a file");
    fs::write(key.path(), "key-\n").expect("a key");
    let [image, _build, _signed] = &scone();
    LEGACY.make(image, key.path(), &compiler, &base).expect(0);
    for (program, says) in [("otpqr", "OTP_ACCOUNT_NAME is not set"), ("gate", "GATE_SECRET is not set")] {
        let entrypoint = format!("--entrypoint=/bin/{program}");
        let ended = docker(&["run", "--rm", "--network=none", &entrypoint, &image.0]).expect(11);
        assert_eq!(ended.stderr, format!("{program}: error: {says}\n"));
    }
}

/// What builds an image, and leaves it in the engine.
enum Builder {
    Docker(Docker),
    /// With a store of its own, at this directory.
    Buildah(TempDir),
}

impl Builder {
    /// Those that are here. buildah has these images.
    fn all(images: &[&Tag]) -> Vec<Builder> {
        let mut all: Vec<_> = Docker::all().into_iter().map(Builder::Docker).collect();
        if root_has(&["buildah"]) {
            let buildah = Builder::Buildah(tempfile::tempdir().expect("a directory"));
            for tag in images {
                buildah.run("pull", &[&format!("docker-daemon:{}", tag.0)]);
            }
            all.push(buildah);
        }
        all
    }

    fn run(&self, what: &str, arguments: &[&str]) {
        let mut command = match self {
            Builder::Docker(docker) => docker.command("docker"),
            Builder::Buildah(store) => {
                let (mut buildah, store) = (Command::new("buildah"), store.path().display());
                buildah.args([format!("--root={store}/root"), format!("--runroot={store}/run")]);
                buildah.arg("--storage-driver=vfs").current_dir(repository());
                buildah
            }
        };
        command.arg(what).args(arguments);
        run(command).expect(0);
    }

    fn build(&self, target: &str, arguments: &[String; 3]) -> Tag {
        let tag = Tag::new(target);
        let mut build = vec!["--target", target, "--file", "Dockerfile.otpqr", "--tag", &tag.0];
        build.extend(arguments.iter().flat_map(|argument| ["--build-arg", argument]));
        match self {
            Builder::Docker(_) => self.run("build", &[&build[..], &["."]].concat()),
            Builder::Buildah(_) => {
                self.run("build", &[&["--isolation=chroot", "--pull-never"], &build[..], &["."]].concat());
                self.run("push", &[&tag.0, &format!("docker-daemon:{}", tag.0)]);
            }
        }
        tag
    }
}

#[test]
fn both_images_are_built_by_docker_s_builders_and_by_buildah() {
    if !docker_is_there() {
        return;
    }
    let compiler = stand_in("scone/compiler", &[("usr/bin/scone", SCONE)]);
    let base = stand_in("scone-base", &[]);
    let stand_ins = instead_of_scone_s(&compiler, &base);
    let rootfs = repository().join("simulator/bin/rootfs");
    let same = |files: &TempDir, file: &str| {
        let [built, ours] = [files.path(), &rootfs].map(|root| root.join(file));
        assert_eq!(mode(&built), mode(&ours), "{file}");
        assert!(ours.is_dir() || fs::read(built).expect("a file") == fs::read(ours).expect("a file"), "{file}");
    };
    for builder in Builder::all(&[&compiler, &base]) {
        // What the legacy builder takes the programs from stays: under a tag it goes with the others.
        let [sim, _build, scone] = ["sim", "scone-build", "scone"].map(|target| builder.build(target, &stand_ins));
        let files = unpacked(&sim);
        for file in ["scone-run", "entry", "bin/otpqr", "bin/gate", "out", "root", ".sealed"] {
            same(&files, file);
        }
        docker(&["run", "--rm", "--network=none", &sim.0])
            .expect(11)
            .saying("otpqr: error: OTP_ACCOUNT_NAME is not set");
        assert_eq!(asked_for(&scone), format!("otpqr: {BUILD}\ngate: {BUILD} --features gate\n"));
        let files = unpacked(&scone);
        same(&files, "entry");
        assert_eq!(mode(&files.path().join("root")), 0o755, "any user starts it");
    }
}
