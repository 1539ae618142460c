//! Image signatures in a registry (Debian's docker-registry), verified by sigstore's own cosign client.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use sigstore::cosign::verification_constraint::{PublicKeyVerifier, VerificationConstraintVec};
use sigstore::cosign::{verify_constraints, ClientBuilder, CosignCapabilities};
use sigstore::registry::{Auth, ClientConfig, ClientProtocol, OciReference};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// What cosign calls the layer that holds a payload.
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// Whether the tool is there; with `CI=true` or `REQUIRE_DOCKER=1` it must be.
fn has(tool: &str, arguments: &[&str], remedy: &str) -> bool {
    let found = Command::new(tool).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let there = found.is_ok_and(|status| status.success());
    if !there {
        let required = [("CI", "true"), ("REQUIRE_DOCKER", "1")];
        let required = required.iter().any(|(name, value)| std::env::var_os(name).is_some_and(|set| set == *value));
        assert!(!required, "'{tool}' does not work here: {remedy}");
        eprintln!("SKIPPED: '{tool}' does not work here: {remedy}");
    }
    there
}

/// A registry on loopback, with its files in a directory of its own; it ends with the test.
struct Registry {
    process: Child,
    address: String,
    http: reqwest::blocking::Client,
}

impl Registry {
    fn start(directory: &Path) -> Registry {
        let config = json!({
            "version": 0.1,
            "log": { "level": "info" },
            "storage": { "filesystem": { "rootdirectory": directory.join("registry") } },
            "http": { "addr": "127.0.0.1:0" },
        });
        // JSON is YAML.
        let config_file = directory.join("config.yml");
        fs::write(&config_file, config.to_string()).unwrap();
        let log = directory.join("registry.log");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config_file)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .stderr(File::options().append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        // Made now, so that the process ends even if it does not get ready.
        let http = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
        let mut registry = Registry { process, address: String::new(), http };
        let deadline = Instant::now() + Duration::from_secs(30);
        registry.address = loop {
            let text = fs::read_to_string(&log).unwrap();
            if let Some((_, rest)) = text.split_once("listening on 127.0.0.1:") {
                let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break format!("127.0.0.1:{port}");
            }
            assert_eq!(registry.process.try_wait().unwrap(), None, "{text}");
            assert!(Instant::now() < deadline, "{text}");
            std::thread::sleep(Duration::from_millis(20));
        };
        registry
    }

    /// Uploads a blob to `repository`, and describes it.
    fn blob(&self, repository: &str, media_type: &str, content: &str) -> Value {
        let digest = sha256(content);
        let started = self.http.post(format!("http://{}/v2/{repository}/blobs/uploads/", self.address)).send().unwrap();
        assert_eq!(started.status(), 202);
        let location = started.headers()["location"].to_str().unwrap();
        // The location has a query already.
        let url = format!("{location}&digest={digest}");
        let put = self.http.put(url).body(content.to_owned()).send().unwrap();
        assert_eq!(put.status(), 201, "{}", put.text().unwrap());
        json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
    }

    /// Uploads a manifest of one layer under `tag`. Returns its digest.
    fn manifest(&self, repository: &str, tag: &str, layer: Value) -> String {
        let config = self.blob(repository, CONFIG, "{}");
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] }).to_string();
        let digest = sha256(&manifest);
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.address);
        let put = self.http.put(url).header("content-type", MANIFEST).body(manifest).send().unwrap();
        assert_eq!(put.status(), 201, "{}", put.text().unwrap());
        assert_eq!(put.headers()["docker-content-digest"], *digest);
        digest
    }

    /// Uploads an image, signed by nobody. Returns what can be signed: `REPOSITORY@sha256:HEX`.
    fn image(&self, repository: &str) -> String {
        let layer = self.blob(repository, LAYER, repository);
        format!("{}/{repository}@{}", self.address, self.manifest(repository, "latest", layer))
    }

    /// Puts signer's `material` where cosign looks for it.
    fn attach(&self, repository: &str, material: &Value) {
        let mut layer = self.blob(repository, SIMPLE_SIGNING, text(material, "payload"));
        layer["annotations"] = json!({ text(material, "annotation"): material["signature"] });
        self.manifest(repository, text(material, "tag"), layer);
    }

    /// Whether sigstore's cosign client accepts the image `repository:latest` with this public key.
    fn accepts(&self, repository: &str, public_key: &str) -> bool {
        let image: OciReference = format!("{}/{repository}:latest", self.address).parse().unwrap();
        let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
        let mut client = ClientBuilder::default().with_oci_client_config(config).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let layers = runtime.block_on(client.trusted_signature_layers(&Auth::Anonymous, &image)).unwrap();
        let constraints: VerificationConstraintVec =
            vec![Box::new(PublicKeyVerifier::try_from(public_key.as_bytes()).unwrap())];
        verify_constraints(&layers, constraints.iter()).is_ok()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn sha256(content: &str) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn text<'a>(material: &'a Value, field: &str) -> &'a str {
    material[field].as_str().unwrap()
}

fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Builds signer as it stands beside this crate.
fn build_signer() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("signer-target");
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    stdout(
        Command::new(env!("CARGO"))
            .args(["build", "--locked", "--quiet", "--manifest-path", manifest, "--target-dir"])
            .arg(&target),
    );
    target.join("debug/signer")
}

#[test]
fn cosign_s_client_accepts_a_signed_image_and_refuses_another_key_and_what_was_altered() {
    if !has("docker-registry", &["--version"], "apt-get install docker-registry")
        || !has("openssl", &["version"], "apt-get install openssl")
    {
        return;
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cosign");
    if directory.exists() {
        fs::remove_dir_all(&directory).unwrap();
    }
    fs::create_dir_all(&directory).unwrap();
    let binary = build_signer();
    let new_key =
        || stdout(Command::new("openssl").args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]));
    let signer = |key: &str, arguments: &[&str]| {
        stdout(Command::new(&binary).args(arguments).env_clear().env("SIGNER_KEY", key))
    };
    let (key, other_key) = (new_key(), new_key());
    let (public, other_public) = (signer(&key, &["public"]), signer(&other_key, &["public"]));

    let registry = Registry::start(&directory);
    let image = registry.image("team/app");
    assert!(!registry.accepts("team/app", &public), "nobody has signed it");

    // A payload altered where nothing but the signature protects it.
    let material: Value = serde_json::from_str(&signer(&key, &["image", &image])).unwrap();
    let mut altered = material.clone();
    let payload = text(&material, "payload").replace("team/app", "team/evil");
    assert_ne!(payload, text(&material, "payload"));
    altered["payload"] = payload.into();
    registry.attach("team/app", &altered);
    assert!(!registry.accepts("team/app", &public), "an altered payload");

    // Another key's signature.
    registry.attach("team/app", &serde_json::from_str(&signer(&other_key, &["image", &image])).unwrap());
    assert!(!registry.accepts("team/app", &public), "another key's signature");

    registry.attach("team/app", &material);
    assert!(!registry.accepts("team/app", &other_public), "another public key");
    assert!(registry.accepts("team/app", &public));

    // The signature of one image, moved to another: as it is, and with the other's digest in the payload.
    let other_image = registry.image("team/other");
    let other_material: Value = serde_json::from_str(&signer(&key, &["image", &other_image])).unwrap();
    let mut moved = material.clone();
    moved["tag"] = other_material["tag"].clone();
    registry.attach("team/other", &moved);
    assert!(!registry.accepts("team/other", &public), "a payload that names another image");
    moved["payload"] = other_material["payload"].clone();
    registry.attach("team/other", &moved);
    assert!(!registry.accepts("team/other", &public), "another image's signature");
    registry.attach("team/other", &other_material);
    assert!(registry.accepts("team/other", &public));
}
