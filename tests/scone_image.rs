//! The image for SCONE (Dockerfile.otpqr, `make scone`), built by a real engine with stand-ins for what only SCONE's registry has: a cross
//! compiler that writes down what it was asked for, and a signer that writes down with what. SCONE's own were never seen here.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::image::{self, Tag};
use crate::support::{Outcome, docker_is_there, repository, run, works};

/// As SCONE's: `scone cargo build`, and the signer of a program.
const SCONE: &str = r#"#!/bin/sh -e
[ -f Cargo.toml ] && [ -f Cargo.lock ] && [ -d src ]
mkdir -p target/x86_64-scone-linux-musl/release
case "$PWD" in /otpqr) program=otpqr ;; /programs/permit) program=gate ;; esac
echo "$program: $*" >target/x86_64-scone-linux-musl/release/$program
"#;
const SIGNER: &str = r#"#!/bin/sh -e
last=; for last; do :; done
[ -w "$last" ]
read -r key </run/signing-key.pem
[ "${key#key-}" != "$key" ]
echo "signed: $*" >>"$last"
"#;

fn program(path: &Path, script: &str) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    fs::write(path, script).expect("a program");
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("permissions");
}

/// An image with a shell, in the place of SCONE's, or of the base.
fn stand_in(name: &str, programs: &[(&str, &str)]) -> Tag {
    let root = tempfile::tempdir().expect("a directory");
    image::add(root.path(), &["/bin/sh", "/bin/mkdir", "/bin/chmod"]);
    fs::create_dir(root.path().join("root")).expect("a directory");
    for (path, script) in programs {
        program(&root.path().join(path), script);
    }
    Tag::import(root.path(), name, &["ENV PATH=/usr/bin:/bin"])
}

fn docker(arguments: &[&str]) -> Outcome {
    let mut docker = Command::new("docker");
    docker.args(arguments);
    run(docker)
}

/// `make scone` with the stand-ins, and this client of docker's first on the path.
fn make(key: &Path, compiler: &Tag, base: &Tag, client: &str, buildkit: &str) -> Outcome {
    let path = format!("{client}:{}", std::env::var("PATH").expect("a path"));
    let (repository_of, tag) = compiler.0.split_once('/').expect("a repository");
    let mut make = Command::new("make");
    // What is in simulator/bin is built before the tests, and other tests use it.
    make.current_dir(repository()).args(["--silent", "--old-file=sim", "scone", "ISVPRODID=7", "ISVSVN=3"]);
    make.args([format!("SIGNING_KEY={}", key.display()), format!("SCONE_REGISTRY={repository_of}")]);
    make.args([format!("SCONE_CROSSCOMPILER={tag}"), format!("SCONE_BASE={}", base.0)]);
    make.env("PATH", path).env("DOCKER_BUILDKIT", buildkit);
    run(make)
}

/// What is in the image that was built.
fn built() -> String {
    let container = docker(&["create", "otpqr:scone"]).expect(0).stdout;
    let directory = tempfile::tempdir().expect("a directory");
    let mut files = String::new();
    for file in ["bin/otpqr", "bin/gate"] {
        let to = directory.path().join("file");
        docker(&["cp", &format!("{}:/{file}", container.trim()), to.to_str().expect("UTF-8")]).expect(0);
        files += &fs::read_to_string(&to).expect("a file");
    }
    docker(&["rm", container.trim()]).expect(0);
    files
}

#[test]
fn the_image_for_scone_is_built_signed_and_no_layer_has_the_key() {
    if !docker_is_there() {
        return;
    }
    let compiler = stand_in("scone/compiler", &[("usr/bin/scone", SCONE), ("usr/bin/scone-signer", SIGNER)]);
    let base = stand_in("scone-base", &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let key = directory.path().join("key.pem");
    let mut clients = vec![("/usr/local/bin", "0")];
    // Debian's client has BuildKit built in.
    if works("/usr/bin/docker", &["version"], "apt-get install docker.io") {
        clients.push(("/usr/bin", "1"));
    }
    for (client, buildkit) in clients {
        let _ = fs::remove_file(&key);
        make(&key, &compiler, &base, client, buildkit).expect(2).saying("make scone SIGNING_KEY=FILE");
        fs::write(&key, "another key\n").expect("a key");
        assert_ne!(make(&key, &compiler, &base, client, buildkit).code, Some(0), "what is not signed is no image");
        fs::write(&key, "key-that-no-layer-has\n").expect("a key");
        make(&key, &compiler, &base, client, buildkit).expect(0);
        let cargo = "cargo build --release --locked --target=x86_64-scone-linux-musl";
        let signed = |program: &str| {
            format!("signed: sign --key=/run/signing-key.pem --production --isvprodid=7 --isvsvn=3 {program}\n")
        };
        let release = "target/x86_64-scone-linux-musl/release";
        let [otpqr, gate] = [format!("/otpqr/{release}/otpqr"), format!("/programs/permit/{release}/gate")];
        let expected = format!("otpqr: {cargo}\n{}gate: {cargo} --features gate\n{}", signed(&otpqr), signed(&gate));
        assert_eq!(built(), expected);
        // Neither the image nor what it was made of has the key.
        let layers = directory.path().join("layers");
        let [image, build, signed] = ["otpqr:scone", "otpqr:scone-build", "otpqr:scone-signed"];
        docker(&["save", "--output", layers.to_str().expect("UTF-8"), image, build, signed]).expect(0);
        let layers = fs::read(&layers).expect("the layers");
        let has = |text: &[u8]| layers.windows(text.len()).any(|bytes| bytes == text);
        assert!(has(b"signed: sign --key=") && !has(b"that-no-layer-has"));
        docker(&["image", "rm", "--force", "otpqr:scone", "otpqr:scone-build", "otpqr:scone-signed"]).expect(0);
    }
}
