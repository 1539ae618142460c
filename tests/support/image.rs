//! Images of this host's own programs, as a user would have them: unpacked in a directory, and imported into the engine.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::{copy, repository, run, run_with_input, works};

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

/// Adds this host's Python with the modules that `script` imports, as `python3` where images have it. Returns where Python itself is.
pub fn python(image: &Path, script: &str) -> PathBuf {
    let ask = |script: &str| {
        let mut python = Command::new("python3");
        // Without what a site adds.
        python.args(["-I", "-S", "-c", script]);
        run(python).expect(0).stdout
    };
    let python = PathBuf::from(ask("import os, sys; print(os.path.realpath(sys.executable))").trim());
    add(image, &[&python.display().to_string()]);
    let listed = "import sys
[print(module.__file__) for module in list(sys.modules.values()) if getattr(module, '__file__', 0)]";
    for file in ask(&format!("{script}\n{listed}")).lines() {
        if file.ends_with(".so") { add(image, &[file]) } else { add_file(image, Path::new(file)) }
    }
    let named = image.join("usr/bin/python3");
    if !named.exists() {
        fs::create_dir_all(image.join("usr/bin")).expect("a directory");
        symlink(&python, named).expect("a link");
    }
    python
}

/// Whether this host has a Python for images.
pub fn python_is_there() -> bool {
    works("python3", &["-c", "import argparse, http.server"], "apt-get install python3")
}

/// The calculator (programs/calculator). Returns where Python is.
pub fn calculator(at: &Path) -> PathBuf {
    // Some is imported only when the arguments are looked at, or found wanting.
    let imports = "
import argparse
parser = argparse.ArgumentParser()
parser.add_argument('-x', type=int)
for x in '1', 'one':
    try:
        parser.parse_args(['-x', x])
    except SystemExit:
        pass";
    let python = python(at, imports);
    add_app(at, "calculator/my_service.py");
    python
}

/// The web service (programs/web).
pub fn web(at: &Path) {
    python(at, "import hmac, http.server, os, signal, socketserver, threading");
    add_app(at, "web/service.py");
}

fn add_app(image: &Path, program: &str) {
    let program = repository().join("programs").join(program);
    fs::create_dir(image.join("app")).expect("a directory");
    fs::copy(&program, image.join("app").join(program.file_name().expect("a name"))).expect("the program");
    readable(image);
}

/// The signer (programs/signer), and a directory for what it is to sign.
pub fn signer(at: &Path) {
    let built = repository().join("programs/bin/signer");
    assert!(built.exists(), "the signer is not built: make programs");
    fs::create_dir_all(at.join("bin")).expect("a directory");
    fs::copy(built, at.join("bin/signer")).expect("the signer");
    fs::create_dir(at.join("in")).expect("a directory");
    readable(at);
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

/// An image with a shell and these scripts, whose `/root` is root's alone, as the usual ones have it.
pub fn of_scripts(scripts: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().expect("a directory");
    let at = root.path();
    add(at, &["/bin/sh", "/bin/mkdir", "/bin/mv", "/bin/chmod"]);
    fs::create_dir(at.join("root")).expect("a directory");
    fs::set_permissions(at.join("root"), Permissions::from_mode(0o700)).expect("permissions");
    for (path, script) in scripts {
        let path = at.join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(&path, script).expect("a script");
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("permissions");
    }
    root
}

/// Adds this host's Rust, and what it takes of this host's C compiler to link programs, static ones, too. Returns where `cargo` is.
pub fn rust(image: &Path) -> PathBuf {
    let ask = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments);
        run(command).expect(0).stdout.trim().to_owned()
    };
    let sysroot = PathBuf::from(ask("rustc", &["--print", "sysroot"]));
    let bin = sysroot.join("bin");
    let cc = which::which("cc").expect("a C compiler").display().to_string();
    let rustc = ["rustc", "cargo"].map(|name| bin.join(name).display().to_string());
    add(image, &[&rustc[0], &rustc[1], &cc]);
    for program in ["collect2", "lto-wrapper", "ld"] {
        let found = ask(&cc, &[&format!("-print-prog-name={program}")]);
        add(image, &[&which::which(found).expect("the linker").display().to_string()]);
    }
    let of_the_compiler = "crtbeginS.o crtendS.o libgcc.a libgcc_eh.a libgcc_s.so libgcc_s.so.1 liblto_plugin.so";
    let of_c = "Scrt1.o rcrt1.o crti.o crtn.o libc.a libc.so libdl.a libm.a libm.so libpthread.a librt.a libutil.a";
    for name in of_the_compiler.split(' ').chain(of_c.split(' ')) {
        let found = ask(&cc, &[&format!("-print-file-name={name}")]);
        add(image, &[&found]);
        // Some are scripts for the linker, which name others.
        let script = fs::read_to_string(found).unwrap_or_default();
        for file in script.split_whitespace().filter(|word| Path::new(word).is_file()) {
            add(image, &[file]);
        }
    }
    let libraries = PathBuf::from(ask("rustc", &["--print", "target-libdir"]));
    let of_the_target = libraries.parent().expect("a directory");
    let at = image.join(of_the_target.strip_prefix("/").expect("an absolute path"));
    fs::create_dir_all(at.parent().expect("a directory")).expect("a directory");
    copy(of_the_target, &at);
    bin
}

/// An image in the engine, gone when this is dropped.
pub struct Tag(pub String);

impl Tag {
    /// The name of an image that is still to be made.
    pub fn new(name: &str) -> Tag {
        Tag(unique(name))
    }

    /// Imports a directory. `changes`: as a Dockerfile has them.
    pub fn import(directory: &Path, name: &str, changes: &[&str]) -> Tag {
        let tag = Tag::new(name);
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
