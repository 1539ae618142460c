//! A program in an image of its own, started by hand: by somebody who has the bundle's CAS, and no script.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Bundle, Outcome, Platform, User, phone, run};

/// An authenticator's entry of somebody who may start something else.
const ANOTHER: &str =
    "otpauth://totp/Other:bob?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Other&algorithm=SHA1&digits=6&period=30";

/// The runtime by hand. `image` is a directory, or in a container the engine's name of it; it is measured as a whole. `words` are more
/// options of the runtime's, the program's path and its arguments.
pub fn by_hand(bundle: &Bundle, image: &str, words: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = match bundle.platform {
        Platform::SimNative => {
            let mut command = bundle.command(bundle.root.join("simulator/bin/scone-run"));
            command.args(["--rootfs", image]);
            command
        }
        Platform::Sim => {
            let mut command = bundle.command("docker");
            command.args(["run", "--rm", "--log-driver=none", "--network=host", "--read-only", "--cap-drop=ALL"]);
            command.args(environment.iter().flat_map(|(name, _)| ["-e", *name]));
            command.args(["--entrypoint=/scone-run", image]);
            command
        }
    };
    command.args(["--fs-dir", "/"]).args(words).envs(environment.iter().copied());
    command
}

/// The same for `session/service[@code]` of the bundle's CAS.
pub fn service_by_hand(
    bundle: &Bundle,
    image: &str,
    config_id: &str,
    words: &[&str],
    environment: &[(&str, &str)],
) -> Command {
    let (cas, key) = (status(bundle, "enclave"), status(bundle, "key"));
    let evidence_key = bundle.scone_sim(["evidence-key"]).expect(0).stdout;
    let needed = [
        ("SCONE_CONFIG_ID", config_id),
        ("SCONE_CAS_ADDR", &cas),
        ("SCONE_SIM_CAS_KEY", &key),
        ("SCONE_SIM_EVIDENCE_KEY", evidence_key.trim_end()),
    ];
    by_hand(bundle, image, words, &[&needed, environment].concat())
}

/// What `scone-sim status` prints.
fn status(bundle: &Bundle, field: &str) -> String {
    let status = bundle.scone_sim(["status"]).expect(0).stdout;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
    line.expect("a field of the status").to_owned()
}

/// The program, its image, and the bundle whose CAS knows it.
pub struct Program {
    pub bundle: Bundle,
    /// The image, unpacked.
    pub image: PathBuf,
    path: String,
    /// The container engine's name of the image; `None`: it is run natively.
    tag: Option<String>,
}

impl Program {
    /// `fill` puts the image's files into a directory, and returns the program's path in it.
    pub fn new(name: &str, platform: Platform, fill: impl FnOnce(&Path) -> PathBuf) -> Program {
        let bundle = Bundle::of_test(platform, User::Caller);
        let image = bundle.root.join("image");
        fs::create_dir(&image).expect("a directory");
        let path = fill(&image).display().to_string();
        let tag = (platform == Platform::Sim).then(|| {
            fs::copy(bundle.root.join("simulator/bin/rootfs/scone-run"), image.join("scone-run")).expect("the runtime");
            let tag = format!("otpqr-{name}:{}", std::process::id());
            let mut import = Command::new("sh");
            import.args(["-c", &format!("tar -c . | docker import - {tag}")]).current_dir(&image);
            run(import).expect(0);
            tag
        });
        let (client, key) = (status(&bundle, "client"), status(&bundle, "key"));
        bundle.scone(["cas", "attest", &client, "-c", &key]).expect(0);
        Program { bundle, image, path, tag }
    }

    fn image(&self) -> &str {
        self.tag.as_deref().unwrap_or_else(|| self.image.to_str().expect("a path in UTF-8"))
    }

    pub fn measurement(&self) -> String {
        let measure = by_hand(&self.bundle, self.image(), &[&self.path], &[("SCONE_HASH", "1")]);
        run(measure).expect(0).stdout.trim().to_owned()
    }

    /// Uploads a policy.
    pub fn upload(&self, policy: &str) {
        let file = self.bundle.root.join("session.yml");
        fs::write(&file, policy).expect("a policy");
        self.bundle.scone(["session", "create", file.to_str().expect("UTF-8")]).expect(0);
    }

    /// Starts `session/service[@code]`. `arguments` are the caller's, and so is more of the `environment`, to no avail.
    pub fn start(&self, config_id: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let words = [&[self.path.as_str()], arguments].concat();
        run(service_by_hand(&self.bundle, self.image(), config_id, &words, environment))
    }

    /// Asserts that the service starts with `code` and with nothing else, and prints that as a table. Returns what it printed when
    /// it was started. The entry is the authenticator's of whoever may start it.
    #[track_caller]
    pub fn starts_with_a_code_alone(&self, service: &str, arguments: &[&str], entry: &phone::Account) -> String {
        let now = self.bundle.now();
        let right = entry.code_at(now);
        let wrong = if right == "000000" { "000001" } else { "000000" };
        let another = phone::parse_key_uri(ANOTHER).expect("an entry").code_at(now);
        let (invalid, used) = ("One-time Password is invalid", "One-time Password was already used");
        let start = |code: &str| {
            let at = if code.is_empty() { "" } else { "@" };
            self.start(&format!("{service}{at}{code}"), arguments, &[])
        };
        let refuses = |what: &str, code: &str, words: &str| {
            let refused = start(code).expect(134).saying(words);
            assert!(refused.stdout.is_empty(), "{refused:?}");
            println!("| {service:<20} | {what:<15} | refused: {words} |");
        };
        refuses("no code", "", "An One-time Password is required");
        refuses("wrong", wrong, invalid);
        refuses("late", &entry.code_at(now - 60), invalid);
        refuses("another account", &another, invalid);
        let started = start(&right).expect(0);
        println!("| {service:<20} | {:<15} | started |", "right");
        refuses("used", &right, used);
        self.bundle.wait(30);
        started.stdout
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(tag) = &self.tag {
            let removed = Command::new("docker").args(["image", "rm", "--force", tag]).output();
            assert!(removed.is_ok(), "docker image rm");
        }
    }
}
