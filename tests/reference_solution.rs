//! What the reference solution of SCONE's tutorial gets wrong and these scripts get right: those parts of
//! docs/reference-solution.md that no other test shows.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::{Bundle, Platform, User, copy, repository, run, run_with_input};

fn bundle() -> Bundle {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name in UTF-8")).collect()
}

/// All of our files with this ending below a directory: names and contents.
fn sources(directory: &str, ending: &str) -> Vec<(String, String)> {
    let names = names(&repository().join(directory));
    let files = names.into_iter().filter(|name| name.ends_with(ending)).map(|name| format!("{directory}/{name}"));
    files
        .map(|name| {
            let text = fs::read_to_string(repository().join(&name)).expect("a source");
            (name, text)
        })
        .collect()
}

/// Failings 2, 5 and 14: that CAS does not show a session does not mean that there is none; the script says what went wrong,
/// with an exit code, and without the name of a file that no longer exists.
#[test]
fn a_session_that_cas_does_not_show_is_not_taken_for_missing() {
    let bundle = bundle();
    bundle.enrol("default");
    let before = fs::read(bundle.state_file("default")).expect("the state");
    let temporary = bundle.root.join("temporary");
    fs::create_dir(&temporary).expect("a directory");
    // Another identity may not even read the sessions.
    for (script, args) in [("create", &[][..]), ("roll_forward", &["--cas-wiped", "--yes"])] {
        let mut command = bundle.script_command(script, args);
        command.env("SCONE_CLI_CONFIG", bundle.root.join("another.json")).env("TMPDIR", &temporary);
        let refused = run(command).expect(3).saying("CAS cannot be asked");
        assert!(!refused.stderr.contains("otpqr-policy-"), "{}", refused.stderr);
        assert_eq!(fs::read(bundle.state_file("default")).expect("the state"), before, "{script}");
        assert!(names(&temporary).is_empty(), "{script} left a policy behind");
    }
}

/// Failing 9: image and CAS are the account's, not the script's.
#[test]
fn every_script_starts_the_image_that_the_account_was_created_with() {
    let bundle = bundle();
    let other = bundle.root.join("another image");
    copy(&bundle.root.join("simulator/bin/rootfs"), &other);
    // The default identity is not used.
    fs::write(bundle.root.join("simulator/bin/rootfs/bin/otpqr"), "no program").expect("a file");
    bundle.script("create", &["--platform", "sim-native"]).expect(3);
    assert!(!bundle.state_file("default").exists());

    bundle.script("create", &["--platform", "sim-native", "--image", "another image"]).expect(0);
    bundle.gen_qr(&[]).expect(0);
    let account = bundle.scan("qrcode.svg");
    bundle.add_auth(&account.code_at(bundle.now()), &["--output", "second.svg"]).expect(0);
    bundle.script("roll_forward", &["--yes"]).expect(0);
    bundle.gen_qr(&["--output", "new.svg"]).expect(0);
}

/// Failing 10: a hash is 64 digits, and no line break after them.
#[test]
fn hashes_are_kept_as_what_they_are() {
    let bundle = bundle();
    bundle.enrol("default");
    let state = bundle.state("default");
    for key in ["namespace_hash", "otpqr_hash", "reset_hash", "mrenclave"] {
        let hash = state[key].as_str().expect("a hash");
        assert!(hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()), "{key}: {hash:?}");
    }
}

/// Failing 11: the new volume contains nothing of the old one.
#[test]
fn a_new_volume_inherits_nothing_of_the_old() {
    let bundle = bundle();
    bundle.enrol("default");
    let old = bundle.volume("default");
    let of_the_old = names(&old);
    assert!(!of_the_old.is_empty());
    bundle.script("roll_forward", &["--yes"]).expect(0);
    let new = bundle.volume("default");
    assert_ne!(new, old);
    assert!(names(&new).is_empty());
    bundle.gen_qr(&["--output", "new.svg"]).expect(0);
    assert!(!names(&new).is_empty() && names(&new).is_disjoint(&of_the_old));
}

/// Failing 13: comments make no difference to a policy.
#[test]
fn no_template_puts_a_value_where_a_key_belongs() {
    let templates = sources("templates", ".yml");
    assert_eq!(templates.len(), 6);
    for (name, template) in templates {
        // Lines that begin with a brace only repeat others.
        for line in template.lines().filter(|line| !line.starts_with("{{")) {
            let key = line.split(": ").next().unwrap_or_default();
            // A variable's name is quoted as values are.
            let is_quoted = key.trim_start().starts_with('"') && key.ends_with('"');
            assert!(line.trim_start().starts_with("- ") || is_quoted || !key.contains("{{"), "'{name}': {line}");
            assert!(!line.trim_start().starts_with('#') || !line.contains("{{"), "'{name}': {line}");
        }
    }
}

/// Failing 15: a user's text is never run as a command.
#[test]
fn what_a_user_types_is_never_run() {
    let bundle = bundle();
    let (issuer, login) = ("`touch run`; touch run #", "'; touch run; '\" && touch run");
    for refused in ["$(touch run)", "${HOME}"] {
        bundle.script("create", &["--platform", "sim-native", "--login", refused]).expect(2);
    }
    bundle.script("create", &["--platform", "sim-native", "--issuer", issuer, "--login", login]).expect(0);
    bundle.gen_qr(&["--output", "; touch run;.svg"]).expect(0);
    let account = bundle.scan("; touch run;.svg");
    assert_eq!((account.issuer.as_str(), account.login.as_str()), (issuer, login));
    let add_auth = |code: &str| {
        let args = ["--no-confirm", "--otp-file", "-", "--output", "second.svg"];
        run_with_input(bundle.script_command("add_auth", &args), code)
    };
    add_auth("123456; touch run").expect(2).saying("exactly six digits");
    add_auth(&account.code_at(bundle.now())).expect(0);
    assert!(!bundle.root.join("run").exists());
}

/// Failing 18: nobody is handed the engine's socket, which is as good as root. The one exception is SCONE's own tool that converts
/// programs: it demands the socket, and there is one line that hands it over.
#[test]
fn nothing_but_scone_s_own_tool_is_given_the_engine_s_socket() {
    const SCONIFY: &str = "scripts/bundle/src/sconify.rs";
    let mut files = [sources("scripts", ".rs"), sources("scripts/bundle/src", ".rs")].concat();
    assert!(files.len() >= 4 && files.iter().any(|(name, _)| name == SCONIFY));
    for name in ["Dockerfile.otpqr", "Makefile"] {
        files.push((name.to_owned(), fs::read_to_string(repository().join(name)).expect("a file")));
    }
    for (name, text) in files {
        let hands_over = text.lines().filter(|line| line.contains("docker.sock")).count();
        assert_eq!(hands_over, usize::from(name == SCONIFY), "'{name}'");
        // Its name, and its use in one argument vector.
        assert_eq!(text.matches("SOCKET").count(), if name == SCONIFY { 2 } else { 0 }, "'{name}'");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        assert!(!code.contains("--privileged"), "'{name}'");
    }
}

/// Failing 19: CAS itself draws the secret, so nobody has to hand it over.
#[test]
fn neither_otpqr_nor_the_scripts_open_a_connection() {
    let files = [sources("otpqr/src", ".rs"), sources("scripts", ".rs")].concat();
    assert!(files.len() >= 8);
    for (name, text) in files {
        assert!(!text.contains("std::net") && !text.contains("TcpStream"), "'{name}'");
    }
    let bundle = bundle();
    bundle.enrol("default");
    let svg = fs::read_to_string(bundle.root.join("default.svg")).expect("the QR code");
    let links = svg.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    assert!(!links.contains("://") && !links.contains("href"), "{links}");
}

/// Failing 20: nobody who may read the policy, not even its owner, reads the secret in it.
#[test]
fn the_secret_cannot_be_read_back_not_even_by_its_owner() {
    let bundle = bundle();
    let account = bundle.enrol("default");
    for session in ["otpqr", "otpqr-reset"] {
        let name = format!("{}/{session}", bundle.known("default", &["namespace"]));
        let read = bundle.scone(["session", "read", &name]).expect(0).stdout;
        assert!(read.contains("otp_secret_1"), "{read}");
        assert!(!read.contains(&account.secret), "{read}");
        assert!(!read.contains("value:"), "{read}");
    }
}
