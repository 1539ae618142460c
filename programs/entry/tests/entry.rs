//! The entry starts a program with what came through the FIFO, whole, or it starts nothing.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Starts the entry with a program that prints its configuration and its arguments; hands this over.
fn entry(handed_over: &str, program: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut command = Command::new(env!("CARGO_BIN_EXE_entry"));
    command.arg(&fifo).args(program).env("SCONE_CONFIG_ID", "the/caller@000000");
    let entry = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Opened when both ends are there.
    OpenOptions::new().write(true).open(fifo).unwrap().write_all(handed_over.as_bytes()).unwrap();
    entry.wait_with_output().unwrap()
}

const PRINT: [&str; 4] = ["/bin/sh", "-c", "printf '%s|' \"$SCONE_CONFIG_ID\" \"$KEY\" \"$@\"", "name"];

#[track_caller]
fn refuses(output: &Output, error: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.starts_with(&format!("entry: error: {error}")) && output.stdout.is_empty(), "{output:?}");
    assert!(!stderr.contains("123456"), "{stderr}");
}

#[test]
fn what_was_not_handed_over_whole_starts_nothing() {
    for part in
        ["", "SCONE_CONFIG_ID=n/s/service", "SCONE_CONFIG_ID=n/s/service@123456\n", "KEY=1\nSCONE_CONFIG_ID=n/s/s"]
    {
        refuses(&entry(part, &PRINT), "whoever was to hand over what to run has gone");
    }
}

#[test]
fn a_program_that_cannot_be_started_is_named() {
    refuses(
        &entry("SCONE_CONFIG_ID=n/s/service@123456\n\n", &["/no/such/program"]),
        "cannot start '/no/such/program': No such file",
    );
    let output = Command::new(env!("CARGO_BIN_EXE_entry")).arg("/no/such/fifo").output().unwrap();
    refuses(&output, "usage: entry FIFO PROGRAM");
    let output = Command::new(env!("CARGO_BIN_EXE_entry")).args(["/no/such/fifo", "/bin/true"]).output().unwrap();
    refuses(&output, "cannot read '/no/such/fifo'");
}

#[test]
fn the_program_gets_what_came_through_the_fifo_and_its_arguments() {
    let output = entry("SCONE_CONFIG_ID=n/s/service@123456\nKEY=a=b\n\n", &[&PRINT[..], &["a b", ""]].concat());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "n/s/service@123456|a=b|a b||", "{output:?}");
    assert!(output.status.success() && output.stderr.is_empty());
}
