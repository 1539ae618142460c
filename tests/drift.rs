//! What the compiler does not check of the scripts: a dependency is written the same everywhere, and none is unused. The same
//! for the lock files, the templates and the tracked files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

struct Script {
    /// `create` for `scripts/create.rs`.
    name: String,
    path: PathBuf,
    text: String,
}

/// A manifest, and the code it belongs to.
struct Manifest {
    file: String,
    text: String,
    code: String,
}

/// The scripts' line for the library, which rust-script looks for beside the script, or in `OTPQR_ROOT`.
const LIBRARY: &str = r#"bundle = { path = "bundle" }"#;

/// rust-script looks for the library beside the script or, for a copied script, in `OTPQR_ROOT`; unset, the shell says so.
const SHEBANG: &str = r##"#!/usr/bin/env -S sh -uc 'o=--;[ -d "${0%/*}/bundle" ]||o=-b$(realpath "$OTPQR_ROOT")/scripts;exec rust-script "$o" "$0" "$@"'"##;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = repository().join(path);
    fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()))
}

fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(repository().join(directory)).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    found.sort();
    assert!(!found.is_empty(), "no '.{extension}' in {directory}");
    found
}

fn scripts() -> Vec<Script> {
    let script = |path: PathBuf| Script {
        name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
        text: read(&path),
        path,
    };
    files("scripts", "rs").into_iter().map(script).collect()
}

impl Script {
    /// The embedded manifest, as rust-script reads it.
    fn manifest(&self) -> Manifest {
        let lines = self.text.lines().skip_while(|line| *line != "//! ```cargo").skip(1);
        let lines: Vec<_> = lines.take_while(|line| *line != "//! ```").collect();
        let text = |line: &str| line.trim_start_matches("//!").trim().to_owned() + "\n";
        Manifest {
            file: format!("scripts/{}.rs", self.name),
            text: lines.into_iter().map(text).collect(),
            code: self.text.clone(),
        }
    }
}

/// The lines of a section of a manifest, without comments.
fn section<'a>(manifest: &'a str, name: &str) -> Vec<&'a str> {
    let header = format!("[{name}]");
    let lines = manifest.lines().skip_while(|line| *line != header).skip(1).take_while(|line| !line.starts_with('['));
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// The crate that a dependency's line is about, as the code names it.
fn crate_name(line: &str) -> String {
    line.split(" = ").next().unwrap().replace('-', "_")
}

#[test]
fn manifests_hold_the_harness_s_lines_to_the_letter_all_pinned_and_used() {
    let root = read("Cargo.toml");
    let harness = section(&root, "dependencies");
    // So that a script reports the same version, whoever built it.
    let workspace = section(&root, "workspace.package");
    let library = Manifest {
        file: "scripts/bundle/Cargo.toml".to_owned(),
        text: read("scripts/bundle/Cargo.toml"),
        code: files("scripts/bundle/src", "rs").iter().map(read).collect(),
    };
    let mut used = BTreeSet::new();
    for Manifest { file, text, code } in scripts().iter().map(Script::manifest).chain([library]) {
        for key in ["version", "edition"] {
            let line = section(&text, "package").into_iter().find(|line| line.starts_with(&format!("{key} = ")));
            let line = line.unwrap_or_else(|| panic!("{file}: no {key}"));
            assert!(workspace.contains(&line), "{file}: not a line of Cargo.toml's [workspace.package]: {line}");
        }
        let mut lines = section(&text, "dependencies");
        assert!(lines.is_sorted(), "{file}: dependencies in alphabetical order");
        lines.retain(|line| *line != LIBRARY);
        for line in lines {
            assert!(harness.contains(&line), "{file}: not a line of Cargo.toml's [dependencies]: {line}");
            assert!(line.contains("\"="), "{file}: not pinned: {line}");
            let name = crate_name(line);
            assert!(code.contains(&format!("{name}::")), "{file}: says it depends on '{name}', and does not use it");
            used.insert(line.to_owned());
        }
    }
    for line in harness.into_iter().filter(|line| crate_name(line) != "bundle") {
        assert!(used.contains(line), "Cargo.toml: neither a script nor the library depends on this: {line}");
    }
}

#[test]
fn the_first_line_fits_into_what_linux_before_5_1_reads() {
    assert!(SHEBANG.len() <= 126, "{}", SHEBANG.len());
}

#[test]
fn every_script_is_built_linted_and_warmed() {
    let (manifest, makefile) = (read("Cargo.toml"), read("Makefile"));
    let warmed = makefile.lines().find_map(|line| line.trim().strip_prefix("@for script in ")?.strip_suffix("; do \\"));
    let warmed: Vec<_> = warmed.expect("the loop of make warm").split(' ').collect();
    for Script { name, .. } in scripts() {
        let entry = format!("[[bin]]\nname = \"{name}\"\npath = \"scripts/{name}.rs\"\n");
        assert!(manifest.contains(&entry), "Cargo.toml lacks:\n{entry}");
        assert!(warmed.contains(&name.as_str()), "'make warm' leaves out '{name}'");
    }
}

#[test]
fn a_script_needs_no_file_but_the_library_and_silences_no_lint() {
    for Script { name, text, .. } in scripts() {
        assert_eq!(text.matches(LIBRARY).count(), 1, "scripts/{name}.rs: the library");
        let text = text.replace(LIBRARY, "");
        let forbidden =
            ["#[path", "include!", "include_str!", "include_bytes!", "path = \"", "git = \"", "unsafe", "allow("];
        for forbidden in forbidden {
            assert!(!text.contains(forbidden), "scripts/{name}.rs: '{forbidden}'");
        }
    }
    for path in files("scripts/bundle/src", "rs") {
        assert!(!read(&path).contains("allow("), "{}: silences a lint", path.display());
    }
}

#[test]
fn scripts_can_be_started_by_their_name_and_their_help_ends_in_examples() {
    for Script { name, path, text } in scripts() {
        assert!(text.starts_with(&format!("{SHEBANG}\n//! ")), "scripts/{name}.rs: first lines");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o111, 0o111, "scripts/{name}.rs: executable");

        let program = Path::new(env!("CARGO_BIN_EXE_create")).with_file_name(&name);
        let output = Command::new(program).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{name} --help");
        assert!(help.contains(&format!("Usage: ./scripts/{name}.rs ")), "{help}");
        assert!(help.contains("\nExit codes:\n  0 ") || help.contains("\nExit codes: the program's."), "{help}");
        let last = help.trim_end().rsplit("\n\n").next().unwrap();
        assert!(last.starts_with(&format!("Examples:\n  ./scripts/{name}.rs")), "{help}");
    }
}

#[test]
fn no_lock_holds_a_crate_that_has_only_scone_s_name() {
    for lock in ["Cargo.lock", "otpqr/Cargo.lock"] {
        for package in read(lock).split("[[package]]").skip(1) {
            for name in ["scone", "scone-cli", "scone_cli"] {
                assert!(
                    !package.contains(&format!("name = \"{name}\"\n")),
                    "{lock}: '{name}' is an unrelated project's"
                );
            }
        }
    }
}

#[test]
fn the_licences_that_the_manifests_name_are_there() {
    for manifest in ["Cargo.toml", "otpqr/Cargo.toml", "scripts/bundle/Cargo.toml"] {
        assert!(read(manifest).contains("\nlicense = \"MIT OR Apache-2.0\"\n"), "{manifest}: another licence");
    }
    assert!(read("LICENSE-MIT").starts_with("MIT License\n"));
    assert!(read("LICENSE-APACHE").contains("Apache License\n                           Version 2.0, January 2004\n"));
}

/// With core.autocrlf a checkout would otherwise end a script's first line in CR, which is then part of the interpreter's name.
#[test]
fn scripts_keep_lf_in_every_checkout() {
    let git = |at: &Path, args: &[&str]| Command::new("git").arg("-C").arg(at).args(args).output().unwrap();
    if !repository().join(".git").exists() {
        eprintln!("SKIPPED: not a git checkout");
        return;
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let source = repository().to_str().unwrap();
    let cloned = git(elsewhere.path(), &["clone", "--quiet", "--config=core.autocrlf=true", "--", source, "clone"]);
    assert!(cloned.status.success(), "{}", String::from_utf8_lossy(&cloned.stderr));
    let listed = git(&elsewhere.path().join("clone"), &["ls-files", "--eol"]).stdout;
    let listed = String::from_utf8(listed).unwrap();
    let text: Vec<&str> = listed.lines().filter(|line| !line.contains("/seeds/")).collect();
    assert!(text.iter().any(|line| line.ends_with("\tscripts/gen_qr.rs")), "{listed}");
    let altered: Vec<_> = text.iter().filter(|line| line.contains("w/crlf") || line.contains("w/mixed")).collect();
    assert!(altered.is_empty(), "{altered:#?}");
}

/// SCONE below 6.0 is out of support (docs/reference/scone.md 10).
#[test]
fn the_cross_compiler_is_pinned_to_a_version_that_is_supported() {
    let dockerfile = read("Dockerfile.otpqr");
    let pinned = dockerfile.lines().find_map(|line| line.strip_prefix("ARG SCONE_CROSSCOMPILER=")).unwrap();
    let (_, version) = pinned.rsplit_once(':').unwrap();
    let numbers: Vec<u32> = version.split('.').map(|number| number.parse().unwrap()).collect();
    assert!(numbers.len() == 3 && numbers[0] >= 6, "{pinned}");
}

/// What their code uses is clippy's to deny (`make check`).
#[test]
fn no_lock_of_a_confidential_program_needs_a_rustc_newer_than_the_one_of_scone_s_cross_compiler() {
    for (program, directory) in [("otpqr", "otpqr"), ("permit", "programs/permit"), ("signer", "programs/signer")] {
        let metadata = Command::new(env!("CARGO"))
            .args(["metadata", "--locked", "--all-features", "--format-version=1", "--manifest-path"])
            .arg(repository().join(directory).join("Cargo.toml"))
            .output()
            .unwrap();
        assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
        let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
        let packages = metadata["packages"].as_array().unwrap();
        let lock = read(format!("{directory}/Cargo.lock"));
        assert!(lock.contains("\nversion = 3\n"), "{program}: cargo 1.75 reads no newer lock");
        assert_eq!(packages.len(), lock.matches("[[package]]").count(), "{program}: all that the lock names");
        assert!(packages.iter().any(|package| package["name"] == program && package["rust_version"] == "1.75"));
        for package in packages {
            assert_ne!(package["edition"], "2024", "{program}: {} needs rustc 1.85", package["name"]);
            if let Some(needed) = package["rust_version"].as_str() {
                let minor: u32 = needed.split('.').nth(1).unwrap().parse().unwrap();
                assert!(needed.starts_with("1.") && minor <= 75, "{program}: {} needs rustc {needed}", package["name"]);
            }
        }
    }
}

/// The scripts' library is installed without the programs, so it is not linked with what counts by these.
#[test]
fn programs_count_by_the_variables_that_the_scripts_and_templates_set() {
    let (counts, sets, template) =
        (read("programs/permit/src/lib.rs"), read("scripts/bundle/src/state.rs"), read("templates/program-person.yml"));
    for name in ["FILE", "STARTS", "GRANTS", "APPROVERS", "SERVICE", "TERM"] {
        let variable = format!("PERMIT_{name}");
        assert!(counts.contains(&format!("pub const {name}: &str = \"{variable}\";")), "{variable}");
        assert!(sets.contains(&format!("pub const {variable}: &str = \"{variable}\";")), "{variable}");
        assert!(template.contains(&format!("\n      {variable}: ")), "{variable}");
    }
    let (gate, approve) = (read("programs/permit/src/bin/gate.rs"), read("templates/program-approve.yml"));
    assert!(
        gate.contains("const APPROVER: &str = \"PERMIT_APPROVER\";") && approve.contains("\n      PERMIT_APPROVER: ")
    );
}

#[test]
fn no_template_switches_attestation_off() {
    for path in files("templates", "yml") {
        let code: String =
            read(&path).lines().map(|line| line.split('#').next().unwrap().replace(' ', "") + "\n").collect();
        assert!(!code.contains("mode:none"), "{}", path.display());
        let (services, measured) = (code.matches("command:").count(), code.matches("-mrenclave:[\"{{").count());
        assert_eq!(services, measured, "{}: every service names the measurement it demands", path.display());
    }
}

#[test]
fn tracked_files_name_no_directory_of_one_machine() {
    let listed = Command::new("git").arg("-C").arg(repository()).args(["ls-files", "-z"]).output();
    let Some(listed) = listed.ok().filter(|listed| listed.status.success()) else {
        eprintln!("SKIPPED: not a git checkout");
        return;
    };
    let places = [concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/Us", "ers/"), concat!("/root/", ".cargo")];
    for file in String::from_utf8(listed.stdout).unwrap().split_terminator('\0') {
        // That page quotes paths inside SCONE's containers.
        if file == "docs/reference/scone.md" {
            continue;
        }
        // A listed file may have been deleted, and need not be text.
        let Ok(text) = fs::read_to_string(repository().join(file)) else { continue };
        for place in places {
            assert!(!text.contains(place), "{file} names '{place}'");
        }
    }
}
