//! signer as its caller sees it: exit codes, whole standard error, nothing on standard output unless it succeeds. The second
//! implementation of everything that is signed is openssl's.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};

/// A directory for one test, with a key and files.
struct World {
    root: PathBuf,
    key: String,
}

impl World {
    fn new(test: &str) -> World {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        fs::create_dir_all(&root).unwrap();
        World { root, key: generate("EC", "ec_paramgen_curve:P-256") }
    }

    /// signer with the whole environment that a policy gives it.
    fn signer(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signer"));
        command.args(arguments).current_dir(&self.root).env_clear().env("SIGNER_KEY", &self.key);
        command
    }

    /// Runs `command`, which must fail with `message`: one line on standard error, nothing on standard output.
    fn refuses(&self, command: &mut Command, code: i32, message: &str) {
        let output = self.run(command);
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("signer: error: {message}\n"));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{message}");
        assert_eq!(output.status.code(), Some(code), "{message}");
    }

    /// What `command`, which must succeed, writes to standard output.
    fn prints(&self, command: &mut Command) -> String {
        let output = self.run(command);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    }

    /// However it ends, no line of the key is in any stream.
    fn run(&self, command: &mut Command) -> Output {
        let output = command.output().unwrap();
        for stream in [&output.stdout, &output.stderr] {
            let stream = String::from_utf8_lossy(stream);
            for line in self.key.lines().filter(|line| !line.contains("PUBLIC")) {
                assert!(!stream.contains(line), "a line of the key is in {stream:?}");
            }
        }
        output
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.root.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Whether openssl accepts `signature`, as signer printed it, of that file.
    fn openssl_accepts(&self, public: &str, signature: &str, file: &str) -> bool {
        let public = self.write("verify.pub", public);
        let encoded = self.write("verify.base64", signature);
        let der = self.root.join("verify.der");
        openssl(&["base64", "-d", "-A", "-in", path(&encoded), "-out", path(&der)]);
        let verify =
            ["dgst", "-sha256", "-verify", path(&public), "-signature", path(&der), path(&self.root.join(file))]
                .map(str::to_owned);
        let output = Command::new("openssl").args(verify).output().unwrap();
        match String::from_utf8_lossy(&output.stdout).trim() {
            "Verified OK" if output.status.success() => true,
            "Verification failure" if !output.status.success() => false,
            other => panic!("{other} {}", String::from_utf8_lossy(&output.stderr)),
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A private key as CAS gives it: PKCS#8 in PEM.
fn generate(algorithm: &str, option: &str) -> String {
    openssl(&["genpkey", "-algorithm", algorithm, "-pkeyopt", option])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn arguments_that_are_not_understood_sign_nothing() {
    let world = World::new("usage");
    let usage = "unknown arguments; 'signer --help' says what there is";
    for arguments in
        [&[][..], &["sign"], &["sign", "a", "b"], &["image"], &["public", "a"], &["key"], &[""], &["--key"]]
    {
        world.refuses(&mut world.signer(arguments), 2, usage);
    }
}

#[test]
fn a_missing_or_bad_key_is_refused_and_not_shown() {
    let world = World::new("key");
    world.write("file", "hello");
    let digest = format!("sha256:{}", hex(&Sha256::digest("hello")));
    let image = format!("a@{digest}");
    let sec1 = openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout"]);
    let encrypted = {
        let key = world.write("plain.pem", &world.key);
        openssl(&["pkcs8", "-topk8", "-in", path(&key), "-passout", "pass:x"])
    };
    let not_p256 = "SIGNER_KEY is not a P-256 private key (PKCS#8 in PEM)";
    for arguments in [&["sign", "file"], &["sign", &digest], &["image", &image], &["public"][..]] {
        world.refuses(world.signer(arguments).env_remove("SIGNER_KEY"), 11, "SIGNER_KEY is not set");
        world.refuses(
            world.signer(arguments).env("SIGNER_KEY", OsStr::from_bytes(b"\xff")),
            11,
            "SIGNER_KEY is not UTF-8",
        );
        for bad in [
            "",
            "$$SCONE::signing_key:pkcs8:pem$$",
            &sec1,
            &encrypted,
            &generate("EC", "ec_paramgen_curve:P-384"),
            &generate("RSA", "rsa_keygen_bits:2048"),
            &openssl(&["genpkey", "-algorithm", "ED25519"]),
            &world.key.replace("PRIVATE", "PUBLIC"),
            &world.key[..world.key.len() / 2],
            &format!("{}{}", world.key, world.key),
        ] {
            let output = world.run(world.signer(arguments).env("SIGNER_KEY", bad));
            assert_eq!(String::from_utf8_lossy(&output.stderr), format!("signer: error: {not_p256}\n"), "{bad}");
            assert_eq!((output.status.code(), &*output.stdout), (Some(11), &b""[..]), "{bad}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let world = World::new("unreadable");
    fs::create_dir(world.root.join("directory")).unwrap();
    assert!(Command::new("mkfifo").arg(world.root.join("pipe")).status().unwrap().success());
    std::os::unix::fs::symlink("nowhere", world.root.join("dangling")).unwrap();
    for (file, cause) in [
        ("missing", "No such file or directory (os error 2)"),
        ("dangling", "No such file or directory (os error 2)"),
        ("missing/file", "No such file or directory (os error 2)"),
        ("directory", "it is not a regular file"),
        ("pipe", "it is not a regular file"),
        ("/dev/zero", "it is not a regular file"),
    ] {
        world.refuses(&mut world.signer(&["sign", file]), 12, &format!("cannot read '{file}': {cause}"));
    }
    // One line, whatever the argument.
    let missing = r"cannot read 'a\nb\u{1b}[2J': No such file or directory (os error 2)";
    world.refuses(&mut world.signer(&["sign", "a\nb\u{1b}[2J"]), 12, missing);
}

#[test]
fn a_malformed_digest_is_refused_even_if_a_file_has_its_name() {
    let world = World::new("digest");
    let hex = hex(&Sha256::digest("hello"));
    for (argument, why) in [
        (format!("sha256:{}", &hex[1..]), "does not have 64 hex digits"),
        (format!("sha256:{}", hex.to_uppercase()), "has hex digits in upper case"),
        (format!("sha512:{hex}"), "does not begin with 'sha256:', the only algorithm there is"),
        (format!("SHA256:{hex}"), "does not begin with 'sha256:', the only algorithm there is"),
        (hex.clone(), "looks like a digest without 'sha256:'"),
    ] {
        world.write(&argument, "the adversary's");
        let message = format!("'{argument}' {why}; if it is a file, write './' before it");
        world.refuses(&mut world.signer(&["sign", &argument]), 10, &message);
        world.prints(&mut world.signer(&["sign", &format!("./{argument}")]));
    }
    world.refuses(&mut world.signer(&["sign", ""]), 10, "the argument is empty");
}

#[test]
fn a_local_image_and_a_bad_reference_are_refused() {
    let world = World::new("image");
    let digest = format!("sha256:{}", hex(&Sha256::digest("hello")));
    let local = "is not REPOSITORY@sha256:HEX: an image ID or a tag is not enough, and a local image has no manifest digest until it \
                 is pushed; push it, and take the digest that 'docker push' prints";
    for argument in [&digest, &digest[7..], &digest[7..19], "alpine", "localhost:5000/app:1", ""] {
        world.refuses(&mut world.signer(&["image", argument]), 10, &format!("'{argument}' {local}"));
    }
    for (argument, why) in [
        (
            format!("app@{}", &digest[7..]),
            "cannot be signed: what follows the '@' does not begin with 'sha256:', the only algorithm there is",
        ),
        (format!("app@{}", &digest[..70]), "cannot be signed: what follows the '@' does not have 64 hex digits"),
        (format!("app@{digest}@{digest}"), "cannot be signed: what follows the '@' does not have 64 hex digits"),
        (format!("app:1@{digest}"), "names no repository: it has a tag, which would not be signed: leave the tag out"),
        (
            format!("App@{digest}"),
            "names no repository: its components are not a-z and 0-9, with '.', '_', '__' or '-' between them",
        ),
        (
            format!("a\",\"b@{digest}"),
            "names no repository: its components are not a-z and 0-9, with '.', '_', '__' or '-' between them",
        ),
        (
            format!("Host.example/app@{digest}"),
            "names no repository: the host is not a name or an address in lower case, with or without a port",
        ),
    ] {
        let shown = argument.escape_debug();
        world.refuses(&mut world.signer(&["image", &argument]), 10, &format!("'{shown}' {why}"));
    }
    let control = format!(
        r"'a\nb@{digest}' names no repository: its components are not a-z and 0-9, with '.', '_', '__' or '-' between them"
    );
    world.refuses(&mut world.signer(&["image", &format!("a\nb@{digest}")]), 10, &control);
}

#[test]
fn openssl_accepts_the_signature_of_a_file_and_of_its_digest_and_refuses_what_was_altered() {
    let world = World::new("openssl");
    let public = world.prints(&mut world.signer(&["public"]));
    let key = world.write("key.pem", &world.key);
    assert_eq!(public, openssl(&["pkey", "-in", path(&key), "-pubout"]));
    let other = openssl(&[
        "pkey",
        "-in",
        path(&world.write("other.pem", generate("EC", "ec_paramgen_curve:P-256"))),
        "-pubout",
    ]);

    for (name, content) in [("file", "hello"), ("empty", ""), ("name with spaces", "\0\n")] {
        world.write(name, content);
        world.write("altered", format!("{content}."));
        let signature = world.prints(&mut world.signer(&["sign", name]));
        assert!(signature.ends_with('\n') && signature.lines().count() == 1, "{signature:?}");
        assert!(!world.openssl_accepts(&public, &signature, "altered"), "{name}");
        assert!(!world.openssl_accepts(&other, &signature, name), "{name}");
        assert!(world.openssl_accepts(&public, &signature, name), "{name}");

        // The nonce comes from key and digest (RFC 6979): the digest alone gets the same signature.
        let digest = format!("sha256:{}", hex(&Sha256::digest(content)));
        assert_eq!(world.prints(&mut world.signer(&["sign", &digest])), signature);
    }
}

#[test]
fn an_image_s_payload_is_cosign_s_and_openssl_accepts_its_signature() {
    let world = World::new("payload");
    let public = world.prints(&mut world.signer(&["public"]));
    let hex = hex(&Sha256::digest("hello"));
    let line = world.prints(&mut world.signer(&["image", &format!("localhost:5000/team/app@sha256:{hex}")]));
    assert!(line.ends_with("}\n") && line.lines().count() == 1, "{line:?}");
    let document: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(document.as_object().unwrap().len(), 4);
    assert_eq!(document["annotation"], "dev.cosignproject.cosign/signature");
    assert_eq!(document["tag"], format!("sha256-{hex}.sig"));
    let payload = document["payload"].as_str().unwrap();
    let expected = r#"{"critical":{"identity":{"docker-reference":"localhost:5000/team/app"},"image":{"docker-manifest-digest":"sha256:HEX"},"type":"cosign container image signature"},"optional":null}"#;
    assert_eq!(payload, expected.replace("HEX", &hex));

    let signature = document["signature"].as_str().unwrap();
    world.write("payload", payload);
    world.write("altered", payload.replace("team", "evil"));
    assert!(!world.openssl_accepts(&public, signature, "altered"));
    assert!(world.openssl_accepts(&public, signature, "payload"));
}

#[test]
fn a_file_of_any_size_is_read_piece_by_piece() {
    let world = World::new("big");
    // 100 MB without a block on the disk; signer may have 64 MB of memory.
    File::create(world.root.join("big")).unwrap().set_len(100_000_000).unwrap();
    let public = world.prints(&mut world.signer(&["public"]));
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", r#"ulimit -v 65536; exec "$0" sign big"#, env!("CARGO_BIN_EXE_signer")]);
    shell.current_dir(&world.root).env_clear().env("SIGNER_KEY", &world.key);
    let signature = world.prints(&mut shell);
    assert!(world.openssl_accepts(&public, &signature, "big"));
}

#[test]
fn a_limit_counts_signatures_and_nothing_else() {
    let world = World::new("limit");
    world.write("file", "x");
    fs::create_dir(world.root.join("volume")).unwrap();
    let starts = |number: &str, arguments: &[&str]| {
        let mut command = world.signer(arguments);
        command.env("PERMIT_STARTS", number).env("PERMIT_FILE", world.root.join("volume/start"));
        command
    };
    // A limit that is not understood is no reason to sign.
    let file = ["sign", "./file"];
    for (number, problem) in
        [("", "from 1"), ("0", "from 1"), ("-1", "from 1"), ("1000001", "from 1"), ("2x", "from 1")]
    {
        let message = format!("PERMIT_STARTS is not a number {problem} to 1000000");
        world.refuses(&mut starts(number, &file), 11, &message);
    }
    world.refuses(starts("2", &file).env_remove("PERMIT_FILE"), 11, "PERMIT_FILE is not set");
    world.refuses(starts("2", &file).env_remove("PERMIT_STARTS"), 11, "PERMIT_STARTS is not set");
    for relative in ["start", "", "/"] {
        let message = "PERMIT_FILE is not the absolute path of a file";
        world.refuses(starts("2", &file).env("PERMIT_FILE", relative), 11, message);
    }
    // What signs nothing takes nothing.
    assert_eq!(world.run(&mut starts("2", &["sign", "./missing"])).status.code(), Some(12));
    assert_eq!(world.run(&mut starts("2", &["sign", "sha256:x"])).status.code(), Some(10));
    assert_eq!(world.run(starts("2", &file).env("SIGNER_KEY", "x")).status.code(), Some(11));
    world.prints(&mut starts("2", &["public"]));
    assert_eq!(fs::read_dir(world.root.join("volume")).unwrap().count(), 0);

    for (subject, said) in [("./file", "signer: start 1 of 2\n"), ("./file", "signer: start 2 of 2\n")] {
        let output = world.run(&mut starts("2", &["sign", subject]));
        assert_eq!((String::from_utf8_lossy(&output.stderr).as_ref(), output.status.code()), (said, Some(0)));
    }
    world.refuses(&mut starts("2", &file), 10, "all 2 starts are taken");
    let image = format!("example.com/app@sha256:{}", "0".repeat(64));
    world.refuses(&mut starts("2", &["image", &image]), 10, "all 2 starts are taken");
    // More of them are those that were granted, and more.
    let output = world.run(&mut starts("3", &["image", &image]));
    assert_eq!(
        (String::from_utf8_lossy(&output.stderr).as_ref(), output.status.code()),
        ("signer: start 3 of 3\n", Some(0))
    );
    world.refuses(&mut starts("1", &file), 10, "the one start is taken");
    let missing = world.root.join("missing/start");
    let message = format!("cannot take start '{}': No such file or directory (os error 2)", missing.display());
    world.refuses(starts("2", &file).env("PERMIT_FILE", &missing), 1, &message);
}

#[test]
fn what_somebody_granted_is_what_is_signed_and_nothing_else() {
    let world = World::new("granted");
    world.write("file", "what is released");
    let [volume, grants] = ["volume", "grants"].map(|name| world.root.join(name));
    fs::create_dir(&volume).unwrap();
    fs::create_dir(&grants).unwrap();
    let granted = |arguments: &[&str]| {
        let mut command = world.signer(arguments);
        command.env("PERMIT_FILE", volume.join("start")).env("PERMIT_GRANTS", &grants);
        command.env("PERMIT_APPROVERS", "bob").env("PERMIT_SERVICE", "n/signer/alice/program").env("PERMIT_TERM", "1");
        command
    };
    let grant = |number: u32, asked: &permit::Asked| {
        let text = format!("1 {} bob n/signer/alice/program 1 {}\n", u64::MAX, asked.digest());
        fs::write(grants.join(number.to_string()), text).unwrap();
    };
    let file = ["sign", "./file"];
    world.refuses(&mut granted(&file), 10, "nobody has granted it");
    world.refuses(granted(&file).env_remove("PERMIT_FILE"), 11, "PERMIT_FILE is not set");

    // The same name with another content, the same content by its digest, another command.
    let content: [u8; 32] = Sha256::digest("what is released").into();
    let hex: String = content.iter().map(|byte| format!("{byte:02x}")).collect();
    let (sign, name) = (permit::Asked::new().argument("sign".as_ref()), "./file".as_ref());
    grant(1, &sign.clone().file(name, content));
    world.write("file", "what is released!");
    let other = "no grant is good for it: 1 for something else, 0 expired, 0 used up";
    world.refuses(&mut granted(&file), 10, other);
    world.write("file", "what is released");
    world.refuses(&mut granted(&["sign", &format!("sha256:{hex}")]), 10, other);
    world.refuses(&mut granted(&["image", &format!("a@sha256:{hex}")]), 10, other);
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 0);

    let signed = world.run(&mut granted(&file));
    let said = String::from_utf8(signed.stderr).unwrap();
    assert!(said.starts_with("signer: start 1 of 1 of grant 1 by 'bob' for sha256:"), "{said}");
    let spent = "no grant is good for it: 0 for something else, 0 expired, 1 used up";
    world.refuses(&mut granted(&file), 10, spent);
    // By its digest it takes a grant of its own; so does an image.
    grant(2, &sign.argument(format!("sha256:{hex}").as_ref()));
    world.run(&mut granted(&["sign", &format!("sha256:{hex}")]));
    let image = format!("example.com/app@sha256:{hex}");
    grant(3, &permit::Asked::new().argument("image".as_ref()).argument(image.as_ref()));
    assert_eq!(world.run(&mut granted(&["image", &image])).status.code(), Some(0));
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 3);
}

#[test]
fn a_full_standard_output_is_an_error() {
    let world = World::new("full");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output =
        world.signer(&["public"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let message = "signer: error: cannot write to standard output: No space left on device (os error 28)\n";
    assert_eq!((output.status.code(), &*String::from_utf8_lossy(&output.stderr)), (Some(1), message));
}

#[test]
fn the_static_binary_needs_nothing_but_the_key() {
    let world = World::new("static");
    // A target directory of its own: the flags differ from those of the tests.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("static-target");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--quiet", "--target", "x86_64-unknown-linux-gnu", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .status()
        .unwrap();
    assert!(built.success());
    let binary = target.join("x86_64-unknown-linux-gnu/release/signer");
    let bytes = fs::read(&binary).unwrap();
    assert!(!bytes.windows(13).any(|window| window == b"/lib64/ld-lin"), "it names no dynamic linker");

    // In an empty root file system, if we may have one; otherwise it is started as it is.
    let input = world.write("file", "hello");
    let expected = world.prints(&mut world.signer(&["sign", path(&input)]));
    assert_eq!(
        world.prints(Command::new(&binary).args(["sign", path(&input)]).env_clear().env("SIGNER_KEY", &world.key)),
        expected
    );
    fs::copy(&binary, world.root.join("signer")).unwrap();
    let mut chroot = Command::new("chroot");
    chroot.arg(&world.root).args(["/signer", "sign", "/file"]).env("SIGNER_KEY", &world.key);
    match chroot.output() {
        Ok(output) if output.status.success() => assert_eq!(String::from_utf8_lossy(&output.stdout), expected),
        other => eprintln!("SKIPPED: an empty root file system needs root: {other:?}"),
    }
}

#[test]
fn help_names_the_variable_and_every_exit_code_and_version_is_one_line() {
    let world = World::new("help");
    let help = world.prints(world.signer(&["--help"]).env_remove("SIGNER_KEY"));
    assert!(help.contains("\n  SIGNER_KEY "));
    for code in [0, 1, 2, 10, 11, 12] {
        assert!(help.contains(&format!("\n  {code:>2}  ")), "{code}");
    }
    let version = world.prints(world.signer(&["--version"]).env_remove("SIGNER_KEY"));
    assert_eq!(version, format!("signer {}\n", env!("CARGO_PKG_VERSION")));
}
