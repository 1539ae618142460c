//! Images of this host's own programs, as a user would have them: unpacked in a directory, and imported into the engine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{run, run_with_input};

/// Adds programs of this host, with the libraries that they need. Where a program is a link, the link is added, too.
pub fn add(image: &Path, programs: &[&str]) {
    for program in programs {
        let real = fs::canonicalize(program).expect("a program of this host");
        let mut libraries = Command::new("ldd");
        libraries.arg(&real);
        let found = run(libraries).stdout;
        let libraries = found.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.map(Path::new).chain([real.as_path()]) {
            add_file(image, file);
        }
        let named = image.join(program.trim_start_matches('/'));
        if !named.exists() {
            fs::create_dir_all(named.parent().expect("a directory")).expect("a directory");
            symlink(&real, named).expect("a link");
        }
    }
}

/// Adds a file of this host at the same path.
pub fn add_file(image: &Path, file: &Path) {
    let to = image.join(file.strip_prefix("/").expect("an absolute path"));
    fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
    fs::copy(file, to).expect("a file of this host");
}

/// In an image, everybody can read what is in it.
pub fn readable(image: &Path) {
    let mut readable = Command::new("chmod");
    readable.args(["-R", "a+rX"]).arg(image);
    run(readable).expect(0);
}

/// An image in the engine, gone when this is dropped.
pub struct Tag(pub String);

impl Tag {
    /// Imports a directory. `changes`: as a Dockerfile has them.
    pub fn import(directory: &Path, name: &str, changes: &[&str]) -> Tag {
        let tag = Tag(unique(name));
        tag.replace(directory, changes);
        tag
    }

    /// Imports another directory under the same name.
    pub fn replace(&self, directory: &Path, changes: &[&str]) {
        let packed = directory.with_extension("tar");
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(directory).arg("-cf").arg(&packed).arg(".");
        run(pack).expect(0);
        let mut import = Command::new("docker");
        import.arg("import").args(changes.iter().flat_map(|change| ["--change", change])).arg(&packed).arg(&self.0);
        run(import).expect(0);
        fs::remove_file(packed).expect("deletion");
    }
}

impl Tag {
    /// Another one on top of this, as a Dockerfile has it.
    pub fn with(&self, lines: &[&str]) -> Tag {
        let tag = unique("with");
        let mut build = Command::new("docker");
        build.args(["build", "--quiet", "--tag", &tag, "-"]);
        run_with_input(build, &format!("FROM {}\n{}\n", self.0, lines.join("\n"))).expect(0);
        Tag(tag)
    }
}

/// A tag that no other test has.
fn unique(name: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("otpqr-test-{name}:{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

impl Drop for Tag {
    fn drop(&mut self) {
        let removed = Command::new("docker").args(["image", "rm", "--force", &self.0]).output();
        assert!(removed.is_ok(), "docker image rm");
    }
}

/// The path of an image that was unpacked at `directory`, or its name in the engine.
pub fn shell(at: &Path, script: &str) -> PathBuf {
    add(at, &["/bin/sh", "/bin/cat", "/bin/stty", "/bin/sleep"]);
    fs::create_dir(at.join("app")).expect("a directory");
    fs::write(at.join("app/service.sh"), script).expect("a script");
    readable(at);
    at.to_owned()
}
