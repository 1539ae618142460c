//! What is recorded is durable before it is used: the order of the system calls, as the kernel saw them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Bundle, Platform, User, run, strace_is_there};

/// Runs `command` under strace and returns its calls, one a line, with the paths of descriptors.
fn calls(command: &Command, trace: &Path) -> Vec<String> {
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-y", "-qq", "-e", "trace=fsync,fdatasync,write,rename,renameat,renameat2,openat", "-o"])
        .arg(trace);
    strace.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        strace.current_dir(directory);
    }
    run(strace).expect(0);
    fs::read_to_string(trace).expect("the trace").lines().map(str::to_owned).collect()
}

/// Asserts that calls happen in this order; each is recognised by all its words.
#[track_caller]
fn in_order(calls: &[String], expected: &[&[&str]]) {
    let mut from = 0;
    for words in expected {
        let found = calls[from..].iter().position(|call| words.iter().all(|word| call.contains(word)));
        let Some(found) = found else { panic!("no {words:?} after call {from} in\n{}", calls.join("\n")) };
        from += found + 1;
    }
}

#[test]
fn the_once_marker_and_its_name_are_durable_before_the_qr_code_is_written_and_that_before_otpqr_ends() {
    if !strace_is_there() {
        return;
    }
    let world = tempfile::tempdir().expect("a directory");
    for name in ["volume", "out"] {
        fs::create_dir(world.path().join(name)).expect("a directory");
    }
    let mut otpqr = Command::new(crate::support::repository().join("simulator/bin/rootfs/bin/otpqr"));
    otpqr
        .env("OTP_SECRET", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")
        .env("OTP_ACCOUNT_NAME", "SCONE OTP")
        .env("OTP_ACCOUNT_LOGIN", "alice")
        .env("OTP_OUTPUT_FILE", world.path().join("out/qrcode.svg"))
        .env("OTP_SINGLE_USE", world.path().join("volume/once"));
    let calls = calls(&otpqr, &world.path().join("trace"));
    in_order(
        &calls,
        &[
            &["openat", "/out/qrcode.svg", "O_EXCL"],
            &["openat", "/volume/once", "O_EXCL"],
            &["fsync", "/volume/once>"],
            &["fsync", "/volume>"],
            &["write", "/out/qrcode.svg>", "<svg"],
            &["fsync", "/out/qrcode.svg>"],
        ],
    );
}

#[test]
fn a_state_file_is_durable_before_it_has_its_name_and_its_name_before_anything_is_uploaded() {
    if !strace_is_there() {
        return;
    }
    let bundle = Bundle::new("bundle", Platform::SimNative, User::Caller, false);
    bundle.install(scripts!());
    let create = bundle.script_command("create", &["--platform", "sim-native"]);
    let calls = calls(&create, &bundle.root.join("trace"));
    in_order(
        &calls,
        &[
            &["write", "/state/.tmp", "# Written by the scripts"],
            &["fsync", "/state/.tmp"],
            &["rename", "/state/default.yml"],
            &["fsync", "/state>"],
            // The first policy: its file is not created before.
            &["openat", "otpqr-policy-", "O_EXCL"],
        ],
    );
}
