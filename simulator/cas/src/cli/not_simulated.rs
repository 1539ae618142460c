//! Subcommands and options that SCONE's command line has and this one has not.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};

/// What SCONE's command line has (its reference page, and section 1.6) and this one has not.
const NOT_SIMULATED: &[&str] = &[
    "binary-fs",
    "cargo",
    "fspf",
    "g++",
    "gcc",
    "gccgo",
    "gdb",
    "gfortran",
    "help-markdown",
    "host",
    "las",
    "rustc",
    "service",
    "stack",
    "swarm",
    "session encrypt",
    "cas attest-audit-log",
    "cas get-audit-log-checkpoints",
    "cas provision",
    "cas register-backup",
    "cas register-upgrade",
    "cas start-upgrade",
    "cas update-config",
    "cas verify-raw-rest-signature",
];

/// As [`NOT_SIMULATED`], of options, by command.
const OPTIONS_NOT_SIMULATED: &[(&str, &[&str])] = &[
    (
        "cas attest",
        &[
            "-s",
            "--accept-revoked-pcs-certs",
            "--accept-unverifiable-pcs-certs",
            "--allow-cas-owner-secret-access",
            "--nonce",
            "--offline-report",
            "--only_for_testing_allow-unprovisioned-cas",
            "--verification-time",
        ],
    ),
    (
        "cas show-identification",
        &["-s", "-S", "--cas-software-certificate", "--cas-software-key-hash", "--session-encryption-key"],
    ),
    (
        "signer sign",
        &[
            "-f",
            "-m",
            "-M",
            "-t",
            "-v",
            "-x",
            "--extensions",
            "--fork",
            "--minheap",
            "--miscselect",
            "--mprotect",
            "--sconify",
            "--syslibs",
            "--tcs",
            "--verbose",
            "--xfrm",
        ],
    ),
    ("session", &["--accept-revoked-pcs-certs", "--accept-unverifiable-pcs-certs", "--cas-key", "--session-hash"]),
];

/// The subcommand or option that is not simulated, if that is why the arguments were not understood.
pub(super) fn not_simulated(error: &clap::Error, args: &[OsString]) -> Option<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    if let Some(name) = context(ContextKind::InvalidSubcommand) {
        let at = args.iter().position(|arg| *arg == *name)?;
        let before = args.get(at.checked_sub(1)?)?.to_str()?;
        let full = format!("{before} {name}");
        return NOT_SIMULATED.iter().find(|known| **known == name || **known == full).map(|known| known.to_string());
    }
    let option = context(ContextKind::InvalidArg)?;
    if option == "-o" {
        return Some(option);
    }
    let is_command = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        args.windows(words.len()).any(|args| args.iter().zip(&words).all(|(arg, word)| arg == word))
    };
    let mut known =
        OPTIONS_NOT_SIMULATED.iter().filter(|(command, _)| is_command(command)).flat_map(|(_, known)| *known);
    known.find(|known| **known == option).map(|known| known.to_string())
}
