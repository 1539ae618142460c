//! `scone signer`: which keys sign, what a signature says, and how a program gets it. That the runtime and CAS believe it is in the
//! runtime's tests.

mod world;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use world::{Outcome, program};

/// A directory with a program `p` and what openssl makes.
struct Desk(TempDir);

impl Desk {
    /// `None`, and a word about it, where there is no openssl.
    fn new() -> Option<Desk> {
        if Command::new("openssl").arg("version").output().is_err() {
            assert!(std::env::var_os("REQUIRE_DOCKER").is_none_or(|value| value != "1"), "missing: openssl");
            eprintln!("SKIPPED: missing: openssl");
            return None;
        }
        let desk = Desk(TempDir::new().unwrap());
        fs::write(desk.path("p"), "\x7fELF and more").unwrap();
        Some(desk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &[&str]) {
        let made = Command::new("openssl").args(arguments).current_dir(self.0.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program("scone-signer");
        command.args(arguments).current_dir(self.0.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        Outcome(self.command(arguments).output().unwrap())
    }

    fn program(&self) -> Vec<u8> {
        fs::read(self.path("p")).unwrap()
    }
}

#[test]
fn only_a_key_that_sgx_takes_signs() {
    let Some(desk) = Desk::new() else { return };
    desk.openssl(&["genrsa", "-out", "f4", "3072"]);
    desk.openssl(&["genrsa", "-3", "-out", "small", "2048"]);
    desk.openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "ec"]);
    let unsigned = desk.program();
    for key in ["f4", "small", "ec", "p"] {
        let error = format!("Error: Cannot use '{key}'\nCaused by: it is not what 'openssl genrsa -3 3072' makes\n");
        desk.run(&["sign", "--key", key, "p"]).fails(1, &error);
    }
    desk.run(&["sign", "--key", "nothing", "p"]).fails(1, "Error: Cannot use 'nothing'\nCaused by: No such file");
    assert_eq!(desk.program(), unsigned);

    desk.openssl(&["genrsa", "-3", "-out", "pkcs8", "3072"]);
    desk.openssl(&["rsa", "-in", "pkcs8", "-traditional", "-out", "pkcs1"]);
    let says = ["pkcs8", "pkcs1"].map(|key| {
        assert_eq!(desk.run(&["sign", "--key", key, "p"]).succeeds(), "");
        desk.run(&["info", "p"]).succeeds()
    });
    assert_eq!(says[0], says[1], "one key in two spellings");
}

#[test]
fn a_signature_says_what_options_and_variables_say() {
    let Some(desk) = Desk::new() else { return };
    desk.openssl(&["genrsa", "-3", "-out", "key", "3072"]);
    desk.run(&["info", "p"]).fails(1, "Error: Cannot use 'p'\nCaused by: it is not signed\n");
    let mrsigner = |yaml: String| yaml.strip_prefix("mrsigner: ").unwrap()[..64].to_owned();
    let info = |id, svn, debug, heap, stack, dlopen| {
        let mrsigner = mrsigner(desk.run(&["info", "--yaml", "p"]).succeeds());
        format!(
            "SIGSTRUCT:\n\tAttributes:\n\t\tDebug: {debug}\n\tISV Product ID: {id}\n\tISV SVN: {svn}\n\nMRSIGNER: {mrsigner}\n\n\
             Enclave Parameters:\n\tHeap size: {heap}\n\tDefault stack size: {stack}\n\tFlags:\n\t\tDLOPEN: {dlopen}\n"
        )
    };
    desk.run(&["sign", "-k", "key", "p"]).succeeds();
    assert_eq!(desk.run(&["info", "p"]).succeeds(), info(0, 0, "yes", 67_108_864, 2_097_152, "not allowed"));

    // As SCONE's tutorial calls it.
    let tutorial =
        ["sign", "--key=key", "--isvprodid=22", "--isvsvn=2", "--production", "--stack=4M", "--heap=100M", "p"];
    desk.run(&tutorial).succeeds();
    assert_eq!(desk.run(&["info", "p"]).succeeds(), info(22, 2, "no", 104_857_600, 4_194_304, "not allowed"));
    let yaml = desk.run(&["info", "--yaml", "p"]).succeeds();
    let expected = "isv_product_id: 22\nisv_svn: 2\nattributes:\n  debug: 0\n";
    assert_eq!(yaml.split_once('\n').unwrap().1, expected);

    let variables = [
        ("SCONE_KEY", "key"),
        ("SCONE_ISVPRODID", "7"),
        ("SCONE_ISVSVN", "8"),
        ("SCONE_PRODUCTION", "1"),
        ("SCONE_HEAP", "1G"),
        ("SCONE_STACK", "8M"),
        ("SCONE_ALLOW_DLOPEN", "2"),
    ];
    desk.run(&["sign", "p"]).fails(1, "Error: not simulated: SCONE's built-in debug key");
    for (name, bad) in
        [("SCONE_HEAP", "x"), ("SCONE_ISVSVN", "65536"), ("SCONE_ALLOW_DLOPEN", "3"), ("SCONE_PRODUCTION", "yes")]
    {
        let refused = desk.command(&["sign", "--env", "p"]).envs(variables).env(name, bad).output().unwrap();
        Outcome(refused).fails(1, &format!("Error: The value of {name} is not valid\n"));
    }
    let refused = desk.command(&["sign", "--env", "p"]).envs(variables).env("SCONE_TCS", "8").output().unwrap();
    Outcome(refused).fails(1, "Error: not simulated: SCONE_TCS\n");
    let signed = desk.command(&["sign", "--env", "--heap", "64K", "p"]).envs(variables).output().unwrap();
    Outcome(signed).succeeds();
    let said = desk.run(&["info", "p"]).succeeds();
    assert_eq!(
        said,
        info(7, 8, "no", 65536, 8_388_608, "allowed, without protection"),
        "an option overwrites a variable"
    );
}

#[test]
fn a_signed_program_takes_the_place_of_the_program_and_a_signature_that_of_another() {
    let Some(desk) = Desk::new() else { return };
    desk.openssl(&["genrsa", "-3", "-out", "key", "3072"]);
    fs::write(desk.path("script"), "#!/bin/sh\n").unwrap();
    let script = desk.run(&["sign", "--key", "key", "script"]);
    script.fails(1, "Error: Cannot use 'script'\nCaused by: it is not an ELF program\n");

    let unsigned = desk.program();
    fs::set_permissions(desk.path("p"), fs::Permissions::from_mode(0o751)).unwrap();
    symlink("p", desk.path("link")).unwrap();
    desk.run(&["sign", "--key", "key", "--isvsvn", "1", "link"]).succeeds();
    let first = desk.program();
    assert!(fs::symlink_metadata(desk.path("link")).unwrap().is_symlink());
    assert_eq!(fs::metadata(desk.path("p")).unwrap().mode() & 0o777, 0o751);
    assert_eq!(first[..unsigned.len()], unsigned);
    desk.run(&["sign", "--key", "key", "--isvsvn", "2", "p"]).succeeds();
    assert_eq!(desk.program().len(), first.len());
    desk.run(&["sign", "--key", "key", "--isvsvn", "1", "p"]).succeeds();
    assert_eq!(desk.program(), first);
    assert_eq!(fs::read_dir(desk.0.path()).unwrap().count(), 4, "nothing else is left there");

    let mut changed = first;
    changed[5] ^= 1;
    fs::write(desk.path("p"), changed).unwrap();
    for arguments in [&["info", "p"][..], &["sign", "--key", "key", "p"]] {
        desk.run(arguments).fails(1, "Error: Cannot use 'p'\nCaused by: it was changed since it was signed\n");
    }
}
