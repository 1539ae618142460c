//! SCONE's tutorials (its print-arg-env pages, `args-env-tutorial`, `envcas`), step by step with policies of our own: what each
//! step should come to by SCONE's documents, from a real command line, a real CAS and a real runtime.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use world::{NOW, Outcome, TESTING, World, code};

/// Somebody at a shell, with its variables.
struct Shell {
    world: World,
    variables: BTreeMap<&'static str, String>,
}

impl Shell {
    /// With a CAS that was attested, and the tutorials' programs in an image of their own.
    fn new() -> Shell {
        let world = World::new();
        for directory in ["image/bin", "image/work", "volume"] {
            fs::create_dir_all(world.home.path().join(directory)).unwrap();
        }
        Shell { world, variables: BTreeMap::new() }
    }

    fn export(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.insert(name, value.into());
    }

    fn scone(&self, args: &[&str]) -> Outcome {
        Outcome(self.world.command("alice", args).envs(&self.variables).output().unwrap())
    }

    /// `export NAME=$(scone session create --use-env FILE)`
    fn create(&mut self, name: &'static str, policy: &str) {
        let file = self.world.file("policy.yaml", policy);
        let hash = self.scone(&["session", "create", "--use-env", &file]).succeeds();
        self.export(name, hash.trim_end());
    }

    fn program(&self, name: &str) -> PathBuf {
        let to = self.world.home.path().join("image/bin").join(name);
        if !to.exists() {
            fs::copy(compiled(name), &to).unwrap();
        }
        to
    }

    fn runtime(&self, program: &str, args: &[&str]) -> Command {
        self.program(program);
        let home = self.world.home.path();
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin/scone-run"));
        command.arg("--rootfs").arg(home.join("image"));
        command.arg("--bind").arg(format!("{}:/.sealed/volume", home.join("volume").display()));
        command.arg(format!("/bin/{program}")).args(args).env_clear().stdin(Stdio::null());
        command
    }

    /// `SCONE_HASH=1 PROGRAM`
    fn measure(&self, program: &str) -> String {
        let output = self.runtime(program, &[]).env("SCONE_HASH", "1").output().unwrap();
        let hash = String::from_utf8(output.stdout).unwrap();
        assert_eq!(hash.len(), 65, "{hash}");
        hash.trim_end().to_owned()
    }

    /// `SCONE_CONFIG_ID=ID PROGRAM ARGS…`, with the shell's variables around it.
    fn run(&self, id: &str, program: &str, args: &[&str]) -> Run {
        let mut command = self.runtime(program, args);
        command.envs(&self.variables).env("SCONE_CONFIG_ID", id);
        command.env("SCONE_CAS_ADDR", &self.world.enclave).env("SCONE_SIM_CAS_KEY", &self.world.key);
        command.env("SCONE_SIM_EVIDENCE_KEY", self.world.evidence_key().expose());
        Run(command.output().unwrap())
    }
}

/// What a start came to.
struct Run(Output);

impl Run {
    #[track_caller]
    fn prints(&self, status: i32) -> String {
        assert_eq!(self.0.status.code(), Some(status), "{}", String::from_utf8_lossy(&self.0.stderr));
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    fn says(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.0.stderr).contains(text)
    }

    /// SCONE's error frame; the last line of it says that.
    #[track_caller]
    fn is_refused(&self, last: &str) {
        let said = String::from_utf8_lossy(&self.0.stderr).into_owned();
        assert_eq!((self.0.status.code(), self.0.stdout.len()), (Some(134), 0), "{said}");
        let frame = "[SCONE|FATAL] src/process/init.c:302:__scone_prepare_secure_config(): Could not initialize enclave state: ";
        assert!(said.contains(frame) && said.contains(&format!("Caused by: {last}\nNote: ")), "{said}");
    }
}

/// Compiled once, by whichever test comes first.
fn compiled(name: &str) -> PathBuf {
    static COMPILED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut compiled = COMPILED.lock().unwrap();
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if !compiled.insert(name.to_owned()) {
        return to;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tutorial/programs.rs");
    let flags = ["--edition=2024", "-Ctarget-feature=+crt-static", "-Copt-level=1", "-Cstrip=symbols"];
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let mut compile = Command::new(rustc);
    compile.args(flags).arg("--cfg").arg(format!("program=\"{name}\"")).arg("-o").arg(&to).arg(source);
    assert!(compile.status().unwrap().success());
    to
}

const PRINT_ARG_ENV: &str = "# The variables come from the command line or from the environment
name: $SESSION
version: 0.3.10

security:
  attestation:
    mode: none

services:
  - name: scone-print-arg-env
    command: ./scone-print-arg-env arg1 arg2 arg3
    environment:
      SCONE_MODE: auto
      env1: running
      env2: in
    pwd: /
";

/// The pages "Secure Arguments and Environment Variables", parts 1 and 2; `e2a` to `e2d` of the repository.
#[test]
fn arguments_and_variables_come_from_the_policy_and_its_hash_is_found_in_three_ways() {
    let world = World::unattested();
    let address = world.client.clone();
    fs::create_dir_all(world.home.path().join("image/bin")).unwrap();
    fs::create_dir_all(world.home.path().join("volume")).unwrap();
    let mut shell = Shell { world, variables: BTreeMap::new() };

    // Not under the control of CAS, the host decides.
    let alone = shell.runtime("print-arg-env", &["Hello"]).env("ENV1", "!").output().unwrap();
    assert_eq!(Run(alone).prints(42), "argv: /bin/print-arg-env Hello\nenviron:\nENV1=!\n");

    // A CAS in debug mode is not attested until all of it is tolerated.
    shell.scone(&["cas", "attest", &address]).fails(1, "Error: Error during attestation of CAS\n");
    let tolerating = ["--accept-configuration-needed", "--accept-sw-hardening-needed", "--accept-group-out-of-date"];
    let attest = [&["cas", "attest", &address], &TESTING[..], &tolerating].concat();
    assert!(shell.scone(&attest).succeeds().contains("Version of attested CAS: "));
    assert_eq!(shell.scone(&["cas", "list"]).succeeds(), format!("* {address}: https://{address}/\n"));

    let file = shell.world.file("session.yaml", PRINT_ARG_ENV);
    let missing = format!(
        "Caused by: Parsing session from session template file '{file}' failed\nCaused by: name: Value for variable $SESSION is missing at line 2 column 7\n"
    );
    shell.scone(&["session", "create", &file]).fails(1, &missing);
    shell.scone(&["session", "create", "--name", "given", &file]).fails(1, &missing);
    shell.export("SESSION", "secure-arguments-example-1-2");
    let predecessor = shell.scone(&["session", "create", "--use-env", &file]).succeeds();
    let again = shell.scone(&["session", "create", "--use-env", &file]);
    again.fails(
        1,
        &format!(
            "Error: Creating session failed\nCaused by: CAS at 'https://{address}/' returned HTTP error status code 400 Bad Request\nCaused by: Session already exists, please specify predecessor hash\n"
        ),
    );
    // -e beats the environment, and --name comes last.
    let named = ["session", "check", "--use-env", "-e", "SESSION=other", &file];
    assert!(shell.scone(&named).succeeds().contains("name: other\n"));
    assert!(shell.scone(&[&named[..], &["--name", "given"]].concat()).succeeds().contains("name: given\n"));

    let read = shell.scone(&["session", "read", "secure-arguments-example-1-2"]).succeeds();
    let certificate = shell.scone(&["self", "show-certificate"]).succeeds();
    let indented: String = certificate.lines().map(|line| format!("  {line}\n")).collect();
    assert_eq!(
        read,
        format!(
            "version: 0.3.10
name: secure-arguments-example-1-2
predecessor: null
services:
- name: scone-print-arg-env
  environment:
    SCONE_MODE: auto
    env1: running
    env2: in
  command: ./scone-print-arg-env arg1 arg2 arg3
  pwd: /
  persistency: None
access_policy:
  read:
  - CREATOR
  update:
  - CREATOR
security:
  attestation:
    mode: none
creator: |
{indented}"
        )
    );

    let id = "secure-arguments-example-1-2/scone-print-arg-env";
    let expected = "argv: ./scone-print-arg-env arg1 arg2 arg3\nenviron:\nSCONE_MODE=auto\nenv1=running\nenv2=in\n";
    assert_eq!(shell.run(id, "print-arg-env", &[]).prints(42), expected);
    shell.export("env1", "we");
    assert_eq!(shell.run(id, "print-arg-env", &["variables"]).prints(42), expected);

    // Part 2: the hash of the policy that CAS has, of the file that was uploaded, and of both compared.
    let hash = |args: &[&str]| shell.scone(&[&["session"], args].concat());
    let read_file = shell.world.file("session_read.yaml", &read);
    assert_eq!(hash(&["calculate-hash", &read_file]).succeeds(), predecessor);
    hash(&["calculate-hash", "--use-env", &file]).fails(
        1,
        "Cannot calculate session hash! The session, explicitly or through the default access policy, references its creator.",
    );
    assert_eq!(hash(&["calculate-hash", "--use-env", &file, "--with-self-as-creator", "tls"]).succeeds(), predecessor);
    assert_eq!(hash(&["verify", "--use-env", &file]).succeeds(), predecessor);
    assert_eq!(hash(&["verify", &read_file]).succeeds(), predecessor);

    // Part 1 again: changed, it names the version before.
    let second = shell.world.file("session2.yaml", &PRINT_ARG_ENV.replace("arg1 arg2 arg3", "our second try"));
    shell.scone(&["session", "update", "--use-env", &second]).succeeds();
    assert!(shell.run(id, "print-arg-env", &[]).prints(42).starts_with("argv: ./scone-print-arg-env our second try\n"));
    let read = shell.scone(&["session", "read", "secure-arguments-example-1-2"]).succeeds();
    assert!(read.contains(&format!("\npredecessor: {predecessor}")), "{read}");
}

/// `e2c`: three versions, each naming the one before.
#[test]
fn each_version_of_a_policy_names_the_one_before() {
    let mut shell = Shell::new();
    shell.export("HISTORY_SESSION", "history-example");
    shell.create("HSESSION1", "name: $HISTORY_SESSION\nversion: 0.3.10\npredecessor: null\n");
    shell.create("HSESSION2", "name: $HISTORY_SESSION\nversion: 0.3.10\npredecessor: $HSESSION1\n");
    shell.create("HSESSION3", "name: $HISTORY_SESSION\nversion: 0.3.10\npredecessor: $HSESSION2\n");
    let stale = shell.world.file("stale.yaml", "name: $HISTORY_SESSION\nversion: 0.3.10\npredecessor: $HSESSION1\n");
    shell.scone(&["session", "create", "--use-env", &stale]).fails(1, "predecessor");
    let read = shell.scone(&["session", "read", "history-example"]).succeeds();
    assert!(read.contains(&format!("predecessor: {}\n", shell.variables["HSESSION2"])), "{read}");
}

/// `e3a` to `e3d`: a token that the caller must have, first in the policy, then of another session.
#[test]
fn a_service_starts_for_who_has_the_access_token() {
    let mut shell = Shell::new();
    shell.export("SESSION", "tokens");
    let with_token = |secret: &str| {
        let policy =
            PRINT_ARG_ENV.replace("security:\n", "security:\n  service_access_token: $$SCONE::access_token$$\n");
        format!("{policy}predecessor: $PREDECESSOR\nsecrets:\n  - {{name: access_token, {secret}}}\n")
    };
    shell.export("PREDECESSOR", "~");
    shell.create("PREDECESSOR", &with_token("kind: ascii, value: j765WyMWTKksiqWbBuuc"));
    let id = "tokens/scone-print-arg-env";
    shell.run(id, "print-arg-env", &[]).is_refused("A service access token is required to access this session");
    shell.export("SCONE_SERVICE_ACCESS_TOKEN", "another");
    shell.run(id, "print-arg-env", &[]).is_refused("The given service access token is invalid");
    shell.export("SCONE_SERVICE_ACCESS_TOKEN", "j765WyMWTKksiqWbBuuc");
    shell.run(id, "print-arg-env", &[]).prints(42);

    shell.export("ACCESS_TOKEN_SESSION", "access_token_session");
    let issuing = "name: $ACCESS_TOKEN_SESSION
version: 0.3.10
predecessor: $ACCESS_TOKEN_SESSION_PREDECESSOR
security: {attestation: {mode: none}}
services:
  - name: print_access_token
    command: print_access_token
    environment: {SCONE_MODE: auto, ACCESS_TOKEN: $$SCONE::access_token$$}
    pwd: /work
secrets: [{name: access_token, kind: ascii, size: 32, export: {session: $SESSION}}]
";
    shell.export("ACCESS_TOKEN_SESSION_PREDECESSOR", "~");
    shell.create("ACCESS_TOKEN_SESSION_PREDECESSOR", issuing);
    // The host's variable does not count, and a token is not taken where none is demanded.
    shell.export("ACCESS_TOKEN", "22");
    let issued = "access_token_session/print_access_token";
    shell
        .run(issued, "print-access-token", &[])
        .is_refused("A service access token was given, and this session has none");
    shell.variables.remove("SCONE_SERVICE_ACCESS_TOKEN");
    let token = shell.run(issued, "print-access-token", &[]).prints(0);
    assert_eq!(token.len(), 32);

    shell.create("PREDECESSOR", &with_token("import: {session: $ACCESS_TOKEN_SESSION, secret: access_token}"));
    shell.run(id, "print-arg-env", &[]).is_refused("A service access token is required to access this session");
    shell.export("SCONE_SERVICE_ACCESS_TOKEN", token);
    shell.run(id, "print-arg-env", &[]).prints(42);
}

const WRONG_CODE: &str = "The given One-time Password is invalid. Please try again.";
const USED_CODE: &str =
    "A One-time Password was already used within this time-step. Please try again in the next time-step";

impl Shell {
    /// `e4a` to `e4d`, `e5a`: a namespace with a secret of one-time passwords, an access token and an access policy in it. Gives
    /// what the authenticator is given.
    fn with_namespace() -> (Shell, String) {
        let mut shell = Shell::new();
        shell.export("NAMESPACE", "otp-example-1-2");
        for first in ["NAMESPACE_PREDECESSOR", "OTP", "TOKEN", "NESTED", "NESTED_TOKEN", "ACCESS", "HOST", "ATTESTED"] {
            shell.export(first, "~");
        }
        let own = "access_policy: {read: [CREATOR], update: [CREATOR], create_sessions: [CREATOR]}";
        shell.create("NAMESPACE_PREDECESSOR", &format!("name: $NAMESPACE\nversion: 0.3.10\npredecessor: ~\n{own}\n"));
        shell.create(
            "OTP",
            &format!(
                "name: $NAMESPACE/otp_policy
version: 0.3.10
predecessor: $OTP
security: {{attestation: {{mode: none}}}}
{own}
services: [{{name: print-otp-secret, command: scone-print-arg-env $$SCONE::otp_shared_secret:base32nopad$$}}]
secrets: [{{name: otp_shared_secret, kind: binary, size: 16, export: [{{namespace: $NAMESPACE}}]}}]
"
            ),
        );
        let printed = shell.run("otp-example-1-2/otp_policy/print-otp-secret", "print-arg-env", &[]).prints(42);
        let secret = printed.lines().next().and_then(|line| line.strip_prefix("argv: scone-print-arg-env "));
        let secret = secret.unwrap().to_owned();
        assert_eq!(secret.len(), 26);
        shell.create(
            "TOKEN",
            "name: $NAMESPACE/access_token_policy
version: 0.3.10
predecessor: $TOKEN
security:
  attestation:
    one_time_password_shared_secret: $$SCONE::otp_shared_secret:base32nopad$$
    mode: none
services:
  - name: print_access_token
    command: print_access_token
    environment: {SCONE_MODE: auto, ACCESS_TOKEN: $$SCONE::access_token$$}
    pwd: /work
secrets:
  - {name: access_token, kind: ascii, size: 32, export: {namespace: $NAMESPACE}}
  - name: otp_shared_secret
    kind: binary
    size: 16
    import: {session: $NAMESPACE/otp_policy, secret: otp_shared_secret}
",
        );
        shell.create(
            "ACCESS",
            "name: $NAMESPACE/access_policy
version: 0.3.10
predecessor: $ACCESS
access_policy: $$SCONE::access_policy$$
secrets:
  - name: access_policy
    kind: config-fragment
    export: {namespace: $NAMESPACE}
    value: {read: [CREATOR], update: [CREATOR], create_sessions: [CREATOR]}
",
        );
        (shell, secret)
    }

    /// A code that was not used yet: the clock moves on.
    fn next_code(&self, secret: &str, step: u64) -> String {
        let now = NOW + 30 * step;
        self.world.set_clock(now);
        code(secret, now)
    }
}

/// `attestation_policy`, `host_arguments_policy`: all that is asked for comes from other sessions of the namespace.
fn printing(name: &str, predecessor: &str, security: &str, attestation: &str) -> String {
    format!(
        "name: $NAMESPACE/{name}
version: 0.3.10
predecessor: ${predecessor}
access_policy: $$SCONE::access_policy$$
security:
  service_access_token: $$SCONE::access_token$$
  attestation:
    one_time_password_shared_secret: $$SCONE::otp_shared_secret:base32nopad$$
{security}
services:
  - name: scone-print-arg-env
    command: ./scone-print-arg-env start @@1 @@2 @@3 end
{attestation}
    environment:
      SCONE_MODE: auto
      CONF_ACCESS_TOKEN: $$SCONE::access_token$$
      \\@\\@HOSTNAME: # no value needed
      \\@\\@SCONE_SERVICE_ACCESS_TOKEN: ignored # values are ignored
      \\@\\@HOME:
    pwd: /
secrets:
  - {{name: access_token, import: {{session: ../access_token_policy, secret: access_token}}}}
  - {{name: otp_shared_secret, import: {{session: ../otp_policy, secret: otp_shared_secret}}}}
  - {{name: access_policy, import: {{session: ../access_policy, secret: access_policy}}}}
"
    )
}

/// `e4a` to `e5b`: codes, a namespace in a namespace, and the caller's arguments.
#[test]
fn a_code_gets_the_token_and_the_token_starts_what_takes_the_callers_arguments() {
    let (mut shell, secret) = Shell::with_namespace();
    let issued = "otp-example-1-2/access_token_policy/print_access_token";
    shell.run(issued, "print-access-token", &[]).is_refused("An One-time Password is required to access this session");
    let right = code(&secret, NOW);
    let wrong = format!("{:06}", (right.parse::<u32>().unwrap() + 1) % 1_000_000);
    let with = |code: &str| format!("{issued}@{code}");
    shell.run(&with("12345"), "print-access-token", &[]).is_refused(WRONG_CODE);
    shell.run(&with(&wrong), "print-access-token", &[]).is_refused(WRONG_CODE);
    let token = shell.run(&with(&right), "print-access-token", &[]).prints(0);
    shell.run(&with(&right), "print-access-token", &[]).is_refused(USED_CODE);

    let own = "access_policy: {read: [CREATOR], update: [CREATOR], create_sessions: [CREATOR]}";
    shell.create("NESTED", &format!("name: $NAMESPACE/nested\nversion: 0.3.10\npredecessor: $NESTED\n{own}\n"));
    shell.create(
        "NESTED_TOKEN",
        "name: $NAMESPACE/nested/access_token_policy
version: 0.3.10
predecessor: $NESTED_TOKEN
security:
  service_access_token: $$SCONE::access_token$$
  attestation:
    one_time_password_shared_secret: $$SCONE::otp_shared_secret:base32nopad$$
    mode: none
services:
  - name: print_access_token
    command: print_access_token
    environment: {ACCESS_TOKEN: $$SCONE::access_token$$}
    pwd: /work
secrets:
  - {name: access_token, import: {session: ../../access_token_policy, secret: access_token}}
  - name: otp_shared_secret
    kind: binary
    size: 16
    import: {session: ../../otp_policy, secret: otp_shared_secret}
",
    );
    let nested =
        format!("otp-example-1-2/nested/access_token_policy/print_access_token@{}", shell.next_code(&secret, 1));
    shell
        .run(&nested, "print-access-token", &[])
        .is_refused("A service access token is required to access this session");
    shell.export("SCONE_SERVICE_ACCESS_TOKEN", &token);
    assert_eq!(shell.run(&nested, "print-access-token", &[]).prints(0), token);

    shell.create("HOST", &printing("host_arguments_policy", "HOST", "    mode: none", ""));
    shell.export("HOME", "/root");
    let id = |code: String| format!("otp-example-1-2/host_arguments_policy/scone-print-arg-env@{code}");
    let short = shell.run(&id(shell.next_code(&secret, 2)), "print-arg-env", &["first"]);
    short.is_refused("the session's command takes argument 2 of the caller's, who gave 1");
    let printed = shell.run(&id(shell.next_code(&secret, 3)), "print-arg-env", &["first", "last", "1234567"]);
    assert_eq!(
        printed.prints(42),
        format!(
            "argv: ./scone-print-arg-env start first last 1234567 end\nenviron:\nCONF_ACCESS_TOKEN={token}\nHOME=/root\nHOSTNAME=\nSCONE_MODE=auto\nSCONE_SERVICE_ACCESS_TOKEN={token}\n"
        )
    );
}

/// `e6` to `e7c`: without attestation any program gets the secrets; with it the one that was measured, or the one that was signed.
#[test]
fn attestation_keeps_the_secrets_from_another_program_and_a_signature_is_part_of_it() {
    let (mut shell, secret) = Shell::with_namespace();
    let issued = format!("otp-example-1-2/access_token_policy/print_access_token@{}", code(&secret, NOW));
    let token = shell.run(&issued, "print-access-token", &[]).prints(0);
    shell.export("SCONE_SERVICE_ACCESS_TOKEN", &token);
    let arguments = ["first", "last", "1234567"];
    shell.create("HOST", &printing("host_arguments_policy", "HOST", "    mode: none", ""));
    let id = |policy: &str, code: String| format!("otp-example-1-2/{policy}/scone-print-arg-env@{code}");
    let open = |code| id("host_arguments_policy", code);
    let stolen = shell.run(&open(shell.next_code(&secret, 1)), "malicious-print-arg-env", &arguments).prints(0);
    assert!(stolen.contains(&format!("stolen: {token}\n")), "{stolen}");

    shell.export("MRENCLAVE", shell.measure("print-arg-env"));
    let tolerant = "    mode: hardware\n    tolerate: [outdated-tcb, hyperthreading]\n    ignore_advisories: '*'";
    let measured = "    attestation:\n      - mrenclave:\n        - $MRENCLAVE";
    shell.create("ATTESTED", &printing("attestation_policy", "ATTESTED", tolerant, measured));
    let attested = |code| id("attestation_policy", code);
    let malicious = shell.measure("malicious-print-arg-env");
    let refused = shell.run(&attested(shell.next_code(&secret, 2)), "malicious-print-arg-env", &arguments);
    let frame = |not_all: &str, got: &str, wanted: &str| {
        format!(
            "Attestation failed
  Caused by: CAS sent an attestation/configuration error: DCAP quote verification failed
  Caused by: Failed to verify DCAP report
  Caused by: The program enclave is not trustworthy
    Caused by: None of the required enclave properties are met by the enclave
{not_all}    Caused by: None of the required enclave properties are met by the enclave
    Caused by: Unexpected enclave measurement (MRENCLAVE, {got}) - Expected {wanted}
Note: "
        )
    };
    let expected = shell.variables["MRENCLAVE"].clone();
    refused.is_refused(&format!("Unexpected enclave measurement (MRENCLAVE, {malicious}) - Expected {expected}"));
    assert!(refused.says(&frame("", &malicious, &expected)));
    shell.run(&attested(shell.next_code(&secret, 3)), "print-arg-env", &arguments).prints(42);

    // Signed, the program has another measurement, and the policy asks for the signer, too.
    let identity = shell.world.home.path().join("identity.pem");
    let drawn = Command::new("openssl").args(["genrsa", "-3", "-out"]).arg(&identity).arg("3072").output();
    if !drawn.is_ok_and(|drawn| drawn.status.success()) {
        assert!(std::env::var_os("REQUIRE_DOCKER").is_none_or(|value| value != "1"), "missing: openssl");
        eprintln!("SKIPPED the signed program: openssl is missing");
        return;
    }
    let program = shell.program("print-arg-env").display().to_string();
    let sign = |version: &str| {
        let key = format!("--key={}", identity.display());
        let (product, version) = ("--isvprodid=22", format!("--isvsvn={version}"));
        shell.scone(&["signer", "sign", &key, product, &version, "--production", "--stack=4M", "--heap=100M", &program])
    };
    sign("2").succeeds();
    let info = shell.scone(&["signer", "info", "--yaml", &program]).succeeds();
    let mrsigner = info.lines().find_map(|line| line.strip_prefix("mrsigner: ")).unwrap().to_owned();
    for (name, value) in [("MRSIGNER", mrsigner.as_str()), ("ISVPRODID", "22"), ("ISVSVN", "2")] {
        shell.export(name, value);
    }
    let signed = format!("{measured}\n        signer: {{mrsigner: $MRSIGNER, isvprodid: $ISVPRODID, isvsvn: $ISVSVN}}");
    let policy = printing("attestation_policy", "ATTESTED", tolerant, &signed);
    shell.create("ATTESTED", &policy);
    let now = shell.measure("print-arg-env");
    let refused = shell.run(&attested(shell.next_code(&secret, 4)), "print-arg-env", &arguments);
    let not_all = "    Caused by: Not all of the required enclave properties are met by the enclave\n";
    assert!(refused.says(&frame(not_all, &now, &expected)));
    shell.export("MRENCLAVE", now);
    shell.create("ATTESTED", &policy);
    shell.run(&attested(shell.next_code(&secret, 5)), "print-arg-env", &arguments).prints(42);
}

/// `e20`: an encrypted volume, an older copy of it, and a new one under a new name.
#[test]
fn an_older_copy_of_a_volume_is_neither_read_nor_overwritten_and_another_name_starts_anew() {
    let mut shell = Shell::new();
    let policy = |volume: &str| {
        format!(
            "name: fprint
version: 0.3.10
predecessor: $FPRINT_POLICY_PREDECESSOR
security:
  singleton_enclaves: true
  attestation:
    tolerate: [debug-mode, outdated-tcb, insecure-configuration, hyperthreading, insecure-igpu, software-hardening-needed, aepic-leak]
    ignore_advisories: '*'
    mode: hardware
volumes: [{{name: {volume}}}]
images: [{{name: my_image, volumes: [{{name: {volume}, path: /volume}}]}}]
services:
  - name: fprint-arg-env
    image_name: my_image
    command: ./fprint-arg-env start @@1 end
    attestation: [{{mrenclave: [$FPRINT_MRENCLAVE]}}]
  - name: print-file
    image_name: my_image
    command: print-file
    attestation: [{{mrenclave: [$PRINT_FILE_MRENCLAVE]}}]
"
        )
    };
    shell.export("FPRINT_MRENCLAVE", shell.measure("fprint-arg-env"));
    shell.export("PRINT_FILE_MRENCLAVE", shell.measure("print-file"));
    shell.export("FPRINT_POLICY_PREDECESSOR", "~");
    shell.create("FPRINT_POLICY_PREDECESSOR", &policy("my_encrypted_volume"));
    let write = |shell: &Shell, argument: &str| shell.run("fprint/fprint-arg-env", "fprint-arg-env", &[argument]);
    let read = |shell: &Shell| shell.run("fprint/print-file", "print-file", &[]);
    write(&shell, "first").prints(0);
    assert_eq!(read(&shell).prints(0), "arguments: ./fprint-arg-env start first end\n");
    let volume = shell.world.home.path().join("volume");
    let copy = |name: &str| {
        let to = shell.world.home.path().join(name);
        fs::create_dir(&to).unwrap();
        for file in fs::read_dir(&volume).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
        to
    };
    let first = copy("vol-step1");
    write(&shell, "second").prints(0);
    assert_eq!(read(&shell).prints(0), "arguments: ./fprint-arg-env start second end\n");
    fs::rename(&volume, shell.world.home.path().join("vol-step2")).unwrap();
    fs::rename(first, &volume).unwrap();
    read(&shell).is_refused("The FSPF tag is not fresh - suspected replay attack");
    write(&shell, "third").is_refused("The FSPF tag is not fresh - suspected replay attack");

    fs::rename(&volume, shell.world.home.path().join("vol-step1")).unwrap();
    fs::create_dir(&volume).unwrap();
    shell.create("FPRINT_POLICY_PREDECESSOR", &policy("my_encrypted_volume_2"));
    write(&shell, "anew").prints(0);
    assert_eq!(read(&shell).prints(0), "arguments: ./fprint-arg-env start anew end\n");
}

/// The page `envcas`: configuration files with secrets in them; one service for everybody, one for who has a code.
#[test]
fn injected_configuration_is_for_who_has_a_code_if_the_service_asks_for_one() {
    let mut shell = Shell::new();
    shell.export("SESSION", "envcas-example-1-2");
    shell.export("MRENCLAVE", shell.measure("print-file"));
    let policy = "name: $SESSION
version: '0.3.10'
security:
  attestation:
    tolerate: [debug-mode, hyperthreading, outdated-tcb]
    ignore_advisories: '*'
images:
  - name: envcas_image
    injection_files:
      - path: /etc/envcas/out1
        content: |
          Secret=\"$$SCONE::example_secret$$\"
      - path: /etc/envcas/out2
        content: Secret=$$SCONE::example2_secret$$
services:
  - name: envcas
    image_name: envcas_image
    mrenclaves: [$MRENCLAVE]
    command: envcas /etc/envcas/out1
    environment: {SCONE_MODE: hw, SCONE_LOG: ERROR}
    pwd: /
  - name: with_otp
    image_name: envcas_image
    attestation: {mrenclave: $MRENCLAVE}
    one_time_password_shared_secret: $$SCONE::otp_secret$$
    command: envcas /etc/envcas/out1
    pwd: /
secrets:
  - {name: example_secret, kind: ascii, size: 32}
  - {name: example2_secret, kind: binary, size: 64}
  - {name: otp_secret, kind: ascii, value: JJBFGV2ZGNCFARKIKBFTGUCYKBNFKVQK}
";
    let file = shell.world.file("session.yaml", policy);
    let create = ["session", "create", "-e", "SESSION=envcas-example-1-2", "-e"];
    let mrenclave = format!("MRENCLAVE={}", shell.variables["MRENCLAVE"]);
    shell.scone(&[&create[..], &[&mrenclave, &file]].concat()).succeeds();
    let printed = shell.run("envcas-example-1-2/envcas", "print-file", &[]).prints(0);
    let secret = printed.strip_prefix("Secret=\"").and_then(|rest| rest.strip_suffix("\"\n")).unwrap();
    assert!(secret.len() == 32 && secret.bytes().all(|c| (0x20..0x7f).contains(&c)), "{printed}");

    let with_otp = |code: &str| shell.run(&format!("envcas-example-1-2/with_otp@{code}"), "print-file", &[]);
    let none = shell.run("envcas-example-1-2/with_otp", "print-file", &[]);
    none.is_refused("An One-time Password is required to access this session");
    let right = code("JJBFGV2ZGNCFARKIKBFTGUCYKBNFKVQK", NOW);
    assert_eq!(with_otp(&right).prints(0), printed, "the secret is the session's");
    with_otp(&right).is_refused(USED_CODE);
}
