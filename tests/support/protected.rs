//! A program behind an account's codes, as its user has it: protected with `protect`, started with `start`.

use std::fs;
use std::path::{Path, PathBuf};

use super::image::Tag;
use super::program::service_by_hand;
use super::{Bundle, Outcome, Platform, User, phone, run, run_with_input};

/// Where something may be mounted counts, and here something is in any program's case: scratch in memory, and the FIFO of the entry.
const ALWAYS_MOUNTED: [&str; 4] = ["/run", "/tmp", "/var/tmp", "/environment"];

/// The program, the bundle it is protected in, and the authenticator of whoever may start it.
pub struct Protected {
    pub bundle: Bundle,
    pub alice: phone::Account,
    /// The image, unpacked.
    pub directory: PathBuf,
    name: &'static str,
    /// The image as `protect` is told.
    image: String,
    _tag: Option<Tag>,
}

impl Protected {
    /// Makes a bundle with an account. `fill` puts the image's files into a directory. (`scripts`: a test hands in `scripts!()`.)
    pub fn new(
        name: &'static str,
        platform: Platform,
        scripts: &[(&str, &str)],
        fill: impl FnOnce(&Path),
    ) -> Protected {
        let bundle = Bundle::of_test(platform, User::Caller);
        bundle.install(scripts);
        let directory = bundle.root.join("image");
        fs::create_dir(&directory).expect("a directory");
        fill(&directory);
        let tag = (platform == Platform::Sim).then(|| Tag::import(&directory, name, &[]));
        let image = tag.as_ref().map_or_else(|| directory.display().to_string(), |tag| tag.0.clone());
        let alice = bundle.enrol("default");
        Protected { bundle, alice, directory, name, image, _tag: tag }
    }

    /// Protects its image.
    pub fn protect(&self, options: &[&str]) -> Outcome {
        self.bundle.script("protect", &[&[self.name, "--image", &self.image], options].concat())
    }

    /// Starts it without a code.
    pub fn start_without_code(&self, options: &[&str]) -> Outcome {
        self.bundle.script("start", &[&[self.name], options].concat())
    }

    /// Starts it with this code.
    pub fn start_with(&self, code: &str, options: &[&str]) -> Outcome {
        let options = [&[self.name, "--otp-file", "-"], options].concat();
        run_with_input(self.bundle.script_command("start", &options), code)
    }

    /// Starts a service of it below the account's namespace (`NAME/PERSON/program[@code]`, `NAME/open`) without our scripts.
    pub fn start_by_hand(&self, service: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let state = self.bundle.state("default");
        let known = &state["programs"][self.name];
        let [namespace, image, path] = [&state["namespace"], &known["image_id"], &known["command"][0]]
            .map(|value| value.as_str().expect("a text"));
        let mounted =
            ["volumes", "mount_points"].map(|key| known[key].as_sequence().expect("a list")).into_iter().flatten();
        let mounted = mounted.map(|path| path.as_str().expect("a path")).chain(ALWAYS_MOUNTED);
        let options: Vec<String> = mounted.map(|path| format!("--mount-point={path}")).collect();
        let words: Vec<&str> =
            options.iter().map(String::as_str).chain([path]).chain(arguments.iter().copied()).collect();
        run(service_by_hand(&self.bundle, image, &format!("{namespace}/{service}"), &words, environment))
    }

    /// Starts it with a code that is good; so is that of the next start.
    pub fn start(&self, options: &[&str]) -> Outcome {
        let outcome = self.start_with(&self.alice.code_at(self.bundle.now()), options);
        self.bundle.wait(30);
        outcome
    }

    /// Asserts that a start with `code` is refused, and prints that as a row of a table.
    #[track_caller]
    pub fn refuses(&self, what: &str, code: &str, words: &str, options: &[&str]) {
        self.start_with(code, options).expect(5).saying(words);
        self.row(what, &format!("refused: {words}"));
    }

    /// Asserts that nothing but a code of alice's, of now, starts it; and prints that as a table.
    #[track_caller]
    pub fn refuses_all_but_a_code(&self, options: &[&str]) {
        let (now, invalid) = (self.bundle.now(), "One-time Password is invalid");
        let good = [now - 30, now, now + 30].map(|at| self.alice.code_at(at));
        let wrong = (0..).map(|code| format!("{code:06}")).find(|code| !good.contains(code)).expect("a wrong code");
        let bob = self.bundle.enrol("other");
        self.start_without_code(options).expect(2).saying("--otp-file");
        let required = "An One-time Password is required";
        self.start_by_hand(&format!("{}/default/program", self.name), &[], &[]).expect(134).saying(required);
        self.row("no code", &format!("refused: {required}"));
        self.refuses("wrong", &wrong, invalid, options);
        self.refuses("late", &self.alice.code_at(now - 60), invalid, options);
        self.refuses("another account", &bob.code_at(now), invalid, options);
    }

    /// Asserts that it starts with a code and with nothing else, and prints that as a table. Returns how that start ended.
    #[track_caller]
    pub fn starts_with_a_code_alone(&self, options: &[&str]) -> Outcome {
        self.refuses_all_but_a_code(options);
        let code = self.alice.code_at(self.bundle.now());
        let started = self.start_with(&code, options).expect(0);
        self.row("right", "started");
        self.refuses("used", &code, "One-time Password was already used", options);
        self.bundle.wait(30);
        started
    }

    fn row(&self, what: &str, outcome: &str) {
        println!("| {:<20} | {what:<15} | {outcome} |", self.name);
    }
}
