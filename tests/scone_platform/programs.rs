//! Programs on `--platform scone`: what protect asks of docker and of SCONE's `sconify_image`, and what start does with the result.
//! The vectors are those of SCONE's documentation (docs/on-scone.md); nothing here was ever run against SCONE.

use super::*;
use crate::support::image::{self, Tag};
use crate::support::{Bundle, Platform, User, docker_is_there};

/// The user's image, what SCONE's tool makes of it, and what is made ready of either.
const NATIVE: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const SCONIFIED: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
const READY: &str = "sha256:3333333333333333333333333333333333333333333333333333333333333333";
/// Of a program, in an image that was made ready.
const MEASURED: &str = "5ea5aaaf3d0d4a5ae0d4ef8a3c2a1c5f2b6d7e8f90a1b2c3d4e5f60718293a4b";
const TOOL: &str = "registry.scontain.com/sconecuratedimages/sconecli:sconify-image";
pub(super) const CODE: &str = "493817";
/// By the gate.
pub(super) const DISPENSED: &str = "271828";

/// An engine that also has the user's image `web:1`: its files are below `image`, ours are below `ours`, and `config` is what
/// docker says of it. A file `is-scone`: its program is a SCONE program already.
const ENGINE: &str = r#"
case " $* " in
  ' image inspect '*'{{json .Config}}'*) cat "$here/config"; exit ;;
  ' image inspect '*)
    case "$last" in
      *.sconified) [ -f "$here/was-sconified" ] || { echo "Error: No such image: $last" >&2; exit 1; }; echo @SCONIFIED@ ;;
      otpqr-program:* | @READY@) echo @READY@ ;;
      web:* | @NATIVE@) echo @NATIVE@ ;;
      *) echo @IMAGE_ID@ ;;
    esac
    exit ;;
  ' create '*)
    name=${2#--name=} image=${*: -2:1}
    mkdir -p "$here/containers" && echo "${image#sha256:}" >"$here/containers/$name"; exit ;;
  ' cp '*)
    if [ -f "$here/containers/${2%%:*}" ]; then
      root=$here/image
      [ "$(cat "$here/containers/${2%%:*}")" != "${IMAGE_ID#sha256:}" ] || root=$here/ours
      file=$root${2#*:}
      [ -e "$file" ] || [ -L "$file" ] || { echo "Error: Could not find the file ${2#*:}" >&2; exit 1; }
      [ "$3" = - ] || cp -P "$file" "$3"
    fi
    exit ;;
  ' ps --all '* | ' commit '* | ' tag '* | ' rm '* | ' image rm '*) exit ;;
  ' run '*' sconify_image '*) touch "$here/was-sconified"; echo "random-namespace/web"; exit ;;
  ' run '*' -e=SCONE_HASH '*@READY@*) echo @MEASURED@; exit ;;
  ' run '*' -e=SCONE_HASH '*@NATIVE@*) if [ -f "$here/is-scone" ]; then echo @MEASURED@; else echo 'web: listening'; fi; exit ;;
  ' run '*' @READY@ '*) echo 'it ran'; exit ;;
esac
"#;

/// As an image of SCONE's has it, whose variables are for a session of somebody else's.
const CONFIG: &str = r#"{"Entrypoint":["python3"],"Cmd":["/app/web.py"],"WorkingDir":"/app",
  "Env":["PATH=/usr/bin","MODE=careful","SCONE_CONFIG_ID=baked/in","SCONE_CAS_ADDR=baked.example.com","SCONE_HEAP=7G"]}"#;

/// An ELF file: `kind` 2 is loaded where it says, 3 anywhere; segment 3 names an interpreter.
fn elf(kind: u8, segments: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (file[16], file[32], file[54], file[56]) = (kind, 64, 56, segments.len() as u8);
    for &segment in segments {
        file.extend([vec![segment], vec![0; 55]].concat());
    }
    file
}

impl Host {
    /// A host with an account and the image `web:1`, in which `/usr/bin/python3` leads to a program that can be converted.
    pub(super) fn with_image() -> Host {
        let host = Host::with_account();
        let home = host.home.path();
        for directory in ["image/usr/bin", "image/app", "ours"] {
            fs::create_dir_all(home.join(directory)).unwrap();
        }
        fs::write(home.join("ours/entry"), "the entry").unwrap();
        fs::write(home.join("image/usr/bin/python3.11"), elf(3, &[6, 3, 1])).unwrap();
        symlink("python3.11", home.join("image/usr/bin/python3")).unwrap();
        fs::write(home.join("key.pem"), "a key").unwrap();
        fs::write(home.join("config"), CONFIG).unwrap();
        host.with_engine("");
        host
    }

    /// The engine answers like this first.
    fn with_engine(&self, shell: &str) {
        let ids = [("@NATIVE@", NATIVE), ("@SCONIFIED@", SCONIFIED), ("@READY@", READY), ("@MEASURED@", MEASURED)];
        let engine = ids.into_iter().fold(ENGINE.to_owned(), |engine, (name, id)| engine.replace(name, id));
        let engine = engine.replace("@IMAGE_ID@", IMAGE_ID);
        self.instead_of("docker", &format!("IMAGE_ID={IMAGE_ID}\n{shell}\n{engine}"));
    }

    /// The gate says what is left of one of bob's grants, notes one, and dispenses a code.
    pub(super) fn with_gate(&self) {
        self.with_engine(&format!(
            r#"case "$SCONE_CONFIG_ID" in
  */left_web) echo "granted: 1 of 1 start until 2026-11-27T12:00:00Z by 'bob' (grant 1) of '${{SCONE_CONFIG_ID%/otpqr/left_web}}/web/default/program'"; exit ;;
  */gate@{CODE}) echo 'gate: start 1 of 2, start 1 of 1 of grant 1 by '"'bob'" >&2; echo {DISPENSED}; exit ;;
  */approve@{CODE}) echo "1 start until 2026-11-27T12:00:00Z by 'bob' (grant 1) of 'a/service'"; exit ;;
esac"#
        ));
    }

    fn has_program(&self, path: &str, content: &[u8]) {
        fs::write(self.home.path().join("image").join(&path[1..]), content).unwrap();
    }

    fn is_scone_program(&self) {
        fs::write(self.home.path().join("is-scone"), "").unwrap();
    }

    /// With the key that signs what is converted.
    fn protect(&self, args: &[&str]) -> Outcome {
        self.protect_unsigned(&[&["--signing-key", "../key.pem"], args].concat())
    }

    fn protect_unsigned(&self, args: &[&str]) -> Outcome {
        self.script("protect", &[&["web", "--image", "web:1"], args].concat())
    }

    /// With a code, from a file.
    fn start(&self, args: &[&str]) -> Outcome {
        let file = self.desk().join("code.txt");
        fs::write(&file, format!("{CODE}\n")).unwrap();
        let outcome = self.script("start", &[&["web", "--otp-file", "code.txt"], args].concat());
        fs::remove_file(file).unwrap();
        outcome
    }

    fn tag(&self) -> String {
        format!("otpqr-program:{}.web", self.known("namespace"))
    }

    fn program(&self) -> Value {
        self.state()["programs"]["web"].clone()
    }

    /// What docker was called with, but for what is asked of it in any script. Random names are left out.
    fn engine(&self) -> Vec<Vec<String>> {
        let calls = self.calls().into_iter().filter(|call| call.program == "docker" && call.what() != "docker info");
        let containers = fs::read_dir(self.home.path().join("containers")).into_iter().flatten().map(Result::unwrap);
        let names: Vec<(String, String)> = containers
            .map(|file| {
                let image = fs::read_to_string(file.path()).unwrap();
                (file.file_name().into_string().unwrap(), format!("container-of-{}", image.trim()))
            })
            .collect();
        let named = |arg: String| names.iter().fold(arg, |arg, (name, image)| arg.replace(name, image));
        calls.map(|call| call.args.into_iter().map(named).collect()).collect()
    }

    /// The conversions that SCONE's tool was told to make.
    fn conversions(&self) -> Vec<Vec<String>> {
        self.engine().into_iter().filter(|args| args.iter().any(|arg| arg == "sconify_image")).collect()
    }
}

/// A vector as the words it is made of.
fn vector(words: &str) -> Vec<String> {
    words.split_whitespace().map(str::to_owned).collect()
}

/// As whom programs run.
fn user() -> String {
    format!("{}:{}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// What docker is told of any start on SCONE.
fn of_any_start(user: &str) -> [&str; 11] {
    [
        "run",
        "--rm",
        "--log-driver=none",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "-e=SCONE_CAS_ADDR",
        "--userns=host",
        user,
        "--device=/dev/sgx_enclave",
        "-e=SCONE_MODE=hw",
        "-e=SCONE_LAS_ADDR",
    ]
}

#[track_caller]
fn is_refused(host: &Host, args: &[&str], code: i32, saying: &str) {
    let before = fs::read(host.state_file()).unwrap();
    host.forget();
    host.protect(args).expect(code).saying(saying);
    assert_eq!(uploads(host.calls()).len(), 0);
    assert!(!host.engine().iter().any(|args| args[0] == "commit"), "{:?}", host.engine());
    assert_eq!(fs::read(host.state_file()).unwrap(), before);
    host.has_clean_desk();
}

// --- protect

#[test]
fn on_the_simulator_there_is_nothing_to_convert() {
    let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
    bundle.install(scripts!());
    bundle.script("create", &["--platform", "sim-native"]).expect(0);
    for (option, value) in [("--fs-dir", "/app"), ("--sconify-with", "scone.example.com/tool"), ("--signing-key", "k")]
    {
        let args = ["web", "--image", "simulator/bin/rootfs", "--command", "/bin/otpqr", option, value];
        let refused = bundle.script("protect", &args).expect(2);
        let refused = refused.saying("on platform 'sim-native' the whole image is measured, and nothing is converted");
        refused.saying(&format!("leave '{option}' out"));
    }
}

#[test]
fn what_scone_cannot_convert_is_refused_by_name_before_anything_is_changed() {
    let host = Host::with_image();
    for (content, saying) in [
        (
            b"#!/bin/sh\nexec python3\n".to_vec(),
            "'/app/web' is not an ELF program: on platform 'scone' the command begins with",
        ),
        (elf(2, &[1, 1]), "'/app/web' is static and was not built for SCONE"),
        (
            elf(3, &[1, 2]),
            "hint: scone cargo build --release --target=x86_64-scone-linux-musl   # as in Dockerfile.otpqr",
        ),
        (elf(2, &[6, 3, 1]), "'/app/web' is not position-independent: SCONE may pass over the files"),
        (elf(3, &[3])[..66].to_vec(), "'/app/web' cannot be looked at: "),
    ] {
        host.has_program("/app/web", &content);
        is_refused(&host, &["--command", "/app/web"], 3, saying);
    }
    host.has_program("/app/a;b", &elf(3, &[3]));
    is_refused(&host, &["--command", "'/app/a;b'"], 3, "'/app/a;b' cannot be passed to SCONE's tool");
    is_refused(&host, &["--mount-point", "/in;out"], 3, "'/in;out' cannot be passed to SCONE's tool");
    symlink("loop", host.home.path().join("image/app/loop")).unwrap();
    is_refused(&host, &["--command", "/app/loop"], 3, "there is no program '/app/loop' in image 'web:1'");
    // Outside the enclave it would start, and do what it does.
    host.has_program("/app/open", &elf(3, &[3]));
    let another = "'--open' starts '/app/open', but the program that is measured is '/usr/bin/python3.11'";
    is_refused(&host, &["--open", "/app/open"], 2, another);
    for bad in ["--fs-dir=app", "--fs-dir=/", "--fs-dir=/a;b", "--sconify-with=-v", "--sconify-with=a b"] {
        is_refused(&host, &[bad], 2, "");
    }
    assert_eq!(host.conversions(), [[""; 0]; 0]);
}

/// CAS gives nothing to an enclave that is signed for debugging, and would say so when the code is spent.
#[test]
fn nothing_is_converted_without_a_key_that_signs_it() {
    let host = Host::with_image();
    let unsigned = host.protect_unsigned(&[]).expect(2);
    unsigned
        .saying("'/usr/bin/python3.11' has to be converted for SCONE, and CAS gives nothing to what is not signed")
        .saying("hint: openssl genrsa -3 -out signing-key.pem 3072   # makes one; keep it secret");
    host.protect_unsigned(&["--signing-key", "gone.pem"])
        .expect(3)
        .saying("the signing key 'gone.pem' cannot be used: ");
    host.protect(&[]).expect(0);
    fs::remove_file(host.home.path().join("key.pem")).unwrap();
    host.forget();
    host.script("protect", &["web", "--fs-dir", "/app"]).expect(3).saying("key.pem' cannot be used: No such file");
    assert_eq!(host.conversions(), [[""; 0]; 0]);
    // What was converted with it goes on.
    host.script("protect", &["web"]).expect(0);
}

#[test]
fn a_program_is_asked_for_its_measurement_with_nothing_at_hand_and_a_script_not_even_that() {
    let host = Host::with_image();
    host.protect(&[]).expect(0);
    let asked = host.engine().into_iter().find(|args| args.contains(&"-e=SCONE_HASH".to_owned())).unwrap();
    let name = asked.iter().find(|arg| arg.starts_with("--name=otpqr-measuring-")).unwrap();
    let expected = vector(&format!(
        "run --rm --log-driver=none --network=none -e=SCONE_HASH {name} --cap-drop=ALL --userns=host \
         --security-opt=no-new-privileges --user={} --entrypoint=/usr/bin/python3.11 {NATIVE}",
        user()
    ));
    assert_eq!(asked, expected);

    host.forget();
    host.has_program("/app/web", b"#!/bin/sh\n");
    host.protect(&["--command", "/app/web"]).expect(3);
    assert!(!host.engine().iter().any(|args| args[0] == "run"), "{:?}", host.engine());
}

#[test]
fn an_image_that_cannot_get_the_entry_is_refused_and_not_converted_before() {
    let host = Host::with_image();
    host.has_program("/entry", b"the user's");
    is_refused(&host, &[], 3, "image 'web:1' has '/entry' already, which has to be ours");
    assert_eq!(host.conversions(), [[""; 0]; 0]);
    fs::remove_file(host.home.path().join("image/entry")).unwrap();
    // Docker's disk is full, say.
    host.with_engine(
        "[ \"$1\" != cp ] || case \"$3\" in otpqr-copy-*) echo 'Error: no space left' >&2; exit 1 ;; esac",
    );
    is_refused(&host, &[], 3, "image 'web:1' cannot be made ready: Error: no space left");
}

#[test]
fn a_conversion_that_fails_leaves_nothing_and_says_why() {
    let host = Host::with_image();
    let unknown = "Unable to find image 'registry.scontain.com/x' locally\ndocker: Error response from daemon: pull access denied";
    for (shell, reason) in [
        (format!("printf '%s\\n' \"{unknown}\" >&2; exit 125"), "Error response from daemon: pull access denied"),
        ("echo 'Error: binary is not supported' >&2; exit 1".to_owned(), "Error: binary is not supported"),
        ("exit 0".to_owned(), "No such image: "),
    ] {
        host.with_engine(&format!("case \" $* \" in *' sconify_image '*) {shell} ;; esac"));
        is_refused(&host, &[], 3, &format!("image 'web:1' was not converted by '{TOOL}': "));
        let refused = host.protect(&[]).expect(3);
        refused.saying(reason).saying(&format!("hint: docker pull {TOOL}   # if it is not here: SCONE grants access"));
        let given_up: Vec<_> = host.engine().into_iter().filter(|args| args[..2] == ["image", "rm"]).collect();
        let tag = host.tag();
        assert!(given_up.contains(&vector(&format!("image rm {tag}.native"))), "{given_up:?}");
        assert!(given_up.contains(&vector(&format!("image rm {tag}.sconified"))), "{given_up:?}");
    }
}

#[test]
fn a_program_is_converted_and_measured_by_these_argument_vectors() {
    let host = Host::with_image();
    let args = [
        "--fs-dir",
        "/app",
        "--fs-dir",
        "/usr/lib/python3.11",
        "--env",
        "PORT=8443",
        "--volume",
        "/data",
        "--mount-point",
        "/in",
    ];
    let protected = host.protect(&args).expect(0);
    assert!(protected.stdout.starts_with("protected: 'web'\n"), "{protected:?}");
    protected.saying(&format!("converting image 'web:1' with '{TOOL}', which is handed docker's socket"));

    let (tag, native) = (host.tag(), NATIVE.trim_start_matches("sha256:"));
    let (ours, sconified) = (IMAGE_ID.trim_start_matches("sha256:"), SCONIFIED.trim_start_matches("sha256:"));
    let key = host.home.path().join("key.pem").canonicalize().unwrap().display().to_string();
    let engine = host.engine();
    let is_look = |args: &&Vec<String>| ["ps", "create", "cp", "rm"].contains(&args[0].as_str());
    let steps: Vec<_> =
        engine.iter().filter(|args| !is_look(args) && !args.contains(&"-e=SCONE_HASH".to_owned())).collect();
    let expected = [
        vector("image inspect --format {{.Id}} web:1"),
        ["image", "inspect", "--format", "{{json .Config}}", NATIVE].map(str::to_owned).to_vec(),
        vector(&format!("tag {NATIVE} {tag}.native")),
        vector(&format!(
            "run --rm --log-driver=none -e=SCONE_PRODUCTION=0 -e=SCONE_NO_TIME_THREAD=1 \
             --mount=type=bind,src=/var/run/docker.sock,dst=/var/run/docker.sock \
             --mount=type=bind,\"src={key}\",dst=/signing-key.pem,readonly {TOOL} \
             sconify_image --from={tag}.native --to={tag}.sconified --base={tag}.native --binary=/usr/bin/python3.11 \
             --command=/usr/bin/python3.11 --binary-fs --fs-dir=/app --fs-dir=/usr/lib/python3.11 --host-path=/etc/hosts \
             --host-path=/etc/resolv.conf --host-path=/in --heap=1G --stack=4M --dlopen=1 \
             --scone-signer=/signing-key.pem --cli={TOOL} --crosscompiler={TOOL} --name=web \
             --service-name=program --disable-session-upload --no-color"
        )),
        vector(&format!("image inspect --format {{{{.Id}}}} {tag}.sconified")),
        vector(&format!("commit container-of-{sconified} {tag}")),
        vector(&format!("image inspect --format {{{{.Id}}}} {tag}")),
        vector(&format!("image rm {tag}.native")),
        vector(&format!("image rm {tag}.sconified")),
    ];
    assert_eq!(steps, expected.iter().collect::<Vec<_>>());
    // The entry, from our image into the converted one; the containers never run, and are removed.
    let copies: Vec<_> = engine.iter().filter(|args| args[0] == "cp").collect();
    assert!(copies.iter().any(|args| args[1] == format!("container-of-{ours}:/entry")), "{copies:?}");
    assert!(copies.iter().any(|args| args[2] == format!("container-of-{sconified}:/entry")), "{copies:?}");
    assert!(!copies.iter().any(|args| args[2].contains(native)), "{copies:?}");
    let create = |id: &str| {
        let bare = id.trim_start_matches("sha256:");
        vector(&format!("create --name=container-of-{bare} --network=none --log-driver=none {id} /entry"))
    };
    let count = |what: &str| engine.iter().filter(|args| args[0] == what).count();
    assert!(engine.contains(&create(IMAGE_ID)) && engine.contains(&create(SCONIFIED)), "{engine:?}");
    assert_eq!(count("create"), count("rm"));
    // The measurement is that of what is started. No setting is given, so that it is the same at the start.
    let measured: Vec<_> = engine.iter().filter(|args| args.contains(&"-e=SCONE_HASH".to_owned())).collect();
    let user = user();
    let fixed = format!(
        "run --rm --log-driver=none --network=none -e=SCONE_HASH --cap-drop=ALL --userns=host \
         --security-opt=no-new-privileges --user={user} --entrypoint=/usr/bin/python3.11"
    );
    assert_eq!(**measured.last().unwrap(), vector(&format!("{fixed} {READY}")));
    let how = format!("/usr/bin/python3.11 {TOOL} --heap=1G --stack=4M --dlopen=1 /app /usr/lib/python3.11 /in:host");
    let made_of: Vec<_> = host.program()["made_of"].as_sequence().unwrap().iter().map(text).collect();
    assert_eq!(made_of, [NATIVE, IMAGE_ID, &how]);
    // Nothing but SCONE's tool gets the socket.
    assert_eq!(engine.iter().flatten().filter(|arg| arg.contains("docker.sock")).count(), 1);

    let program = host.program();
    assert_eq!((text(&program["image_id"]), text(&program["mrenclave"])), (READY.to_owned(), MEASURED.to_owned()));
    let uploads = uploads(host.calls());
    let person = uploads[uploads.len() - 2].policy();
    assert_eq!(text(&person["services"][0]["attestation"][0]["mrenclave"][0]), MEASURED);
    let command: Vec<_> = person["services"][0]["command"].as_sequence().unwrap().iter().map(text).collect();
    assert_eq!(command, ["/usr/bin/python3.11", "/app/web.py"]);
    let environment = person["services"][0]["environment"].as_mapping().unwrap();
    let variables: Vec<_> = environment.iter().map(|(name, value)| format!("{}={}", text(name), text(value))).collect();
    assert_eq!(variables, ["MODE=careful", "PATH=/usr/bin", "PORT=8443"], "SCONE's own are not the program's");
    assert_eq!(text(&person["security"]["attestation"]["mode"]), "hardware");
}

/// SCONE's tool as far as it is documented: by docker's socket it builds the image `--to` on the image `--base`, with a program that
/// measures itself in the place of `--binary`. In this one's lies what it was asked for, too.
const SCONIFY_IMAGE: &str = r#"#!/bin/sh -e
[ -S /var/run/docker.sock ]
read -r key </signing-key.pem
[ "$key" = 'a key' ] || { echo 'Error: that is no key' >&2; exit 1; }
if (: >>/signing-key.pem) 2>/dev/null; then echo 'Error: the key can be overwritten' >&2; exit 1; fi
for each; do
  case "$each" in
    --to=*) to=${each#*=} ;;
    --base=*) base=${each#*=} ;;
    --binary=*) binary=${each#*=} ;;
  esac
done
mkdir /context
cd /context
echo "$*" >asked-for
printf '#!/bin/sh\necho @MEASURED@\n' >program
chmod 0755 program
printf 'FROM %s\nENV SCONE_CONFIG_ID=baked/in\nCOPY asked-for /\nCOPY program %s\n' "$base" "$binary" >Dockerfile
docker build --tag "$to" .
"#;

/// The only test here with a real engine; what is SCONE's is a stand-in there, too.
#[test]
fn a_real_engine_converts_measures_and_makes_ready_as_the_vectors_ask() {
    if !docker_is_there() {
        return;
    }
    let host = Host::new();
    fs::remove_file(host.home.path().join("bin/docker")).unwrap();
    let measures = |measurement: &str| format!("#!/bin/sh\necho {measurement}\n");
    let ours = image::of_scripts(&[("bin/otpqr", &measures(MEASUREMENT))]);
    copy(&repository().join("simulator/bin/rootfs/entry"), &ours.path().join("entry"));
    let ours = Tag::import(ours.path(), "ours", &[]);
    let native = image::of_scripts(&[]);
    image::add(native.path(), &["/bin/cat"]);
    let native = Tag::import(native.path(), "native", &["CMD [\"/bin/cat\"]"]);
    let tool = image::of_scripts(&[("usr/bin/sconify_image", &SCONIFY_IMAGE.replace("@MEASURED@", MEASURED))]);
    image::add(tool.path(), &[which::which("docker").unwrap().to_str().unwrap()]);
    let docker_s = format!("ENV PATH={}:/usr/bin:/bin", which::which("docker").unwrap().parent().unwrap().display());
    let tool = Tag::import(tool.path(), "sconify", &[&docker_s]);

    host.script("create", &["--cas", "cas.example.com", "--image", &ours.0]).expect(0);
    assert_eq!(host.known("mrenclave"), MEASUREMENT);
    let tag = host.tag();
    let docker = |args: &[&str]| {
        let mut docker = Command::new("docker");
        docker.args(args);
        run(docker)
    };
    let gives_up_its_tags = || {
        for tag in [format!("{tag}.native"), format!("{tag}.sconified")] {
            docker(&["image", "inspect", "--format", "{{.Id}}", &tag]).saying("No such image");
        }
    };
    let key = host.home.path().join("key.pem");
    let protect = || {
        let convert = ["--signing-key", "../key.pem", "--fs-dir", "/app", "--sconify-with", &tool.0];
        host.script("protect", &[&["web", "--image", &native.0], &convert[..]].concat())
    };
    fs::write(&key, "something else\n").unwrap();
    protect().expect(3).saying(&format!("was not converted by '{}': Error: that is no key", tool.0));
    gives_up_its_tags();
    fs::write(&key, "a key\n").unwrap();
    protect().expect(0);
    gives_up_its_tags();
    assert_eq!(fs::read_to_string(&key).unwrap(), "a key\n");
    assert_eq!(text(&host.program()["mrenclave"]), MEASURED);

    let ready = text(&host.program()["image_id"]);
    let container = docker(&["create", &ready]).expect(0).stdout;
    let asked_for = host.home.path().join("asked-for");
    docker(&["cp", &format!("{}:/asked-for", container.trim()), asked_for.to_str().unwrap()]).expect(0);
    docker(&["cp", &format!("{}:/entry", container.trim()), host.home.path().to_str().unwrap()]).expect(0);
    docker(&["rm", container.trim()]).expect(0);
    let expected = format!(
        "--from={tag}.native --to={tag}.sconified --base={tag}.native --binary=/usr/bin/cat --command=/usr/bin/cat \
         --binary-fs --fs-dir=/app --host-path=/etc/hosts --host-path=/etc/resolv.conf --heap=1G --stack=4M --dlopen=1 \
         --scone-signer=/signing-key.pem --cli={tool} --crosscompiler={tool} --name=web --service-name=program \
         --disable-session-upload --no-color\n",
        tool = tool.0
    );
    assert_eq!(fs::read_to_string(asked_for).unwrap(), expected);
    host.script("protect", &["web", "--remove", "--yes"]).expect(0);
}

#[test]
fn what_was_converted_is_not_converted_again_unless_something_else_is_asked_for() {
    let host = Host::with_image();
    host.protect(&["--fs-dir", "/app"]).expect(0);
    let before = fs::read(host.state_file()).unwrap();
    for again in [&["web"][..], &["web", "--image", "web:1", "--fs-dir", "/app", "--signing-key", "../key.pem"]] {
        host.forget();
        let outcome = host.script("protect", again).expect(0);
        assert!(outcome.stdout.starts_with("already protected: 'web'\n"), "{outcome:?}");
        assert_eq!((host.conversions().len(), uploads(host.calls()).len()), (0, 0));
        assert!(host.engine().contains(&vector(&format!("tag {READY} {}", host.tag()))));
        assert_eq!(fs::read(host.state_file()).unwrap(), before);
    }
    host.forget();
    let digest = format!("scone.example.com/tool@sha256:{}", "0".repeat(64));
    host.script("protect", &["web", "--sconify-with", &digest]).expect(0);
    let conversions = host.conversions();
    let [conversion] = &conversions[..] else { panic!("{conversions:?}") };
    for arg in [&digest, "--fs-dir=/app", &format!("--cli={digest}"), &format!("--crosscompiler={digest}")] {
        assert!(conversion.iter().any(|found| found == arg), "{arg} in {conversion:?}");
    }
    let sconified = &host.program()["sconified"];
    assert_eq!((text(&sconified["with"]), text(&sconified["directories"][0])), (digest, "/app".to_owned()));
    // An image that is named is described anew.
    host.forget();
    host.protect(&[]).expect(0);
    assert_eq!(host.program()["sconified"]["directories"].as_sequence().unwrap().len(), 0);
}

#[test]
fn an_image_that_has_no_name_of_its_own_is_not_lost_with_ours() {
    let host = Host::with_image();
    host.script("protect", &["web", "--image", NATIVE, "--signing-key", "../key.pem"]).expect(0);
    let given_up: Vec<_> = host.engine().into_iter().filter(|args| args[..2] == ["image", "rm"]).collect();
    assert_eq!(given_up, [vector(&format!("image rm {}.sconified", host.tag()))]);
}

#[test]
fn a_scone_program_is_taken_as_it_is_and_the_tool_gets_nothing() {
    let host = Host::with_image();
    host.is_scone_program();
    for option in [["--fs-dir", "/app"], ["--sconify-with", "scone.example.com/tool"], ["--signing-key", "../key.pem"]]
    {
        let refused = host.protect_unsigned(&option).expect(2);
        refused.saying("'/usr/bin/python3.11' is a SCONE program already and is not converted: leave '--fs-dir', ");
        assert_eq!((uploads(host.calls()).len(), &host.program()), (0, &Value::Null));
    }
    // Also one that nothing else could be done with.
    host.has_program("/app/web", &elf(2, &[1]));
    for args in [&["--command", "/app/web"][..], &[]] {
        host.forget();
        let protected = host.protect_unsigned(args).expect(0);
        protected.saying("is one: what was built into it is measured, and no other file of the image");
        assert_eq!(host.conversions().len(), 0);
        assert!(!host.engine().iter().flatten().any(|arg| arg.contains("docker.sock")));
        let native = NATIVE.trim_start_matches("sha256:");
        assert!(
            host.engine().iter().any(|args| args[0] == "commit" && args.contains(&format!("container-of-{native}")))
        );
        assert_eq!(host.program()["sconified"], Value::Null);
    }
    host.forget();
    assert!(host.script("protect", &["web"]).expect(0).stdout.starts_with("already protected"));
    // That one is made ready already is known by its labels.
    assert!(!host.engine().iter().any(|args| args[0] == "commit" || args.iter().any(|arg| arg.contains("measuring"))));
}

#[test]
fn what_is_no_measurement_of_what_was_converted_is_not_taken_for_one() {
    let host = Host::with_image();
    host.with_engine(&format!("case \" $* \" in *' -e=SCONE_HASH '*{READY}*) echo hello; exit ;; esac"));
    host.forget();
    host.protect(&[]).expect(3).saying("its '/usr/bin/python3.11' is not a SCONE program");
    assert_eq!(uploads(host.calls()).len(), 0);
    assert_eq!(host.state()["programs"]["web"], Value::Null);
}

// --- start

#[test]
fn a_start_that_cannot_succeed_is_refused_before_the_code_is_read() {
    let host = Host::with_image();
    host.protect(&["--args", "1"]).expect(0);
    let desk = host.desk().display().to_string();
    let mount = format!("type=bind,src={desk},dst=/in");
    host.forget();
    host.start(&[]).expect(2).saying("takes 1 of its caller's arguments, and 0 were given");
    host.start(&["--", "1", "2"]).expect(2).saying("takes 1 of its caller's arguments, and 2 were given");
    // The program, whose file system is the measured one, would not see it.
    let refused = host.start(&["--mount", &mount, "--", "1"]).expect(2);
    refused.saying("nothing of this host's may be mounted at '/in'");
    host.with_engine("[ \"$1 $2\" != 'image inspect' ] || { echo 'Error: No such image' >&2; exit 1; }");
    host.start(&["--", "1"])
        .expect(3)
        .saying("what was measured of image 'web:1', for program 'web', is not there any more");
    assert!(!host.engine().iter().any(|args| args[0] == "run"), "{:?}", host.engine());
}

#[test]
fn a_program_starts_by_this_argument_vector_and_its_code_comes_through_the_fifo_alone() {
    let host = Host::with_image();
    host.protect(&["--args", "1", "--volume", "/data", "--mount-point", "/in"]).expect(0);
    host.forget();
    let started = host.start(&["--publish", "8443:8443", "--mount", "type=bind,src=.,dst=/in,readonly", "--", "a b"]);
    let started = started.expect(0);
    assert_eq!(started.stdout, "it ran\n");

    let calls = host.calls();
    let start = calls.iter().find(|call| call.what() == "docker run").unwrap();
    let root = host.root().canonicalize().unwrap().display().to_string().replace('"', "\"\"");
    let namespace = host.known("namespace");
    let name = start.args.iter().find(|arg| arg.starts_with("--name=otpqr-web-")).unwrap();
    let fifo = start.args.iter().find(|arg| arg.ends_with("/environment\",dst=/environment")).unwrap();
    assert!(fifo.starts_with(&format!("--mount=type=bind,\"src={root}/state/.starting-")), "{fifo}");
    let user = start.args.iter().find(|arg| arg.starts_with("--user=")).unwrap();
    let volume = format!("--mount=type=bind,\"src={root}/state/volumes/default/programs/web/volume_0_1\",dst=/data");
    let desk = host.desk().canonicalize().unwrap().display().to_string();
    let mount = format!("--mount=type=bind,\"src={desk}\",dst=/in,readonly");
    let label = format!("--label=otpqr.program={namespace}/web/default");
    let given = [
        &volume,
        &mount,
        &label,
        "--interactive",
        name,
        "--publish=8443:8443",
        fifo,
        "--entrypoint=/entry",
        READY,
        "/environment",
        "/usr/bin/python3.11",
        "a b",
    ];
    let expected: Vec<&str> = of_any_start(user).into_iter().chain(given).collect();
    assert_eq!(start.args, expected);
    assert_eq!(start.config_id, Some(format!("{namespace}/web/default/program@{CODE}")));
    for call in &calls {
        assert!(!call.args.iter().any(|arg| arg.contains(CODE)), "{:?}", call.args);
        assert!(!call.environment.values().any(|value| value.contains(CODE)));
    }
    assert!(!fs::read_to_string(host.state_file()).unwrap().contains(CODE));
    host.has_clean_desk();
}

/// Accounts of two CASes cannot agree on anything: the volume with the grants is one CAS's.
#[test]
fn who_approves_is_with_the_same_cas() {
    let host = Host::with_image();
    // Each has a key of its own.
    host.instead_of("scone", r#"case "$1 $2" in 'cas show-identification') [ "$4" = cas.example.com ] || { echo another-key; exit; } ;; esac"#);
    host.script("create", &["--cas", "other.example.com", "--account", "bob"]).expect(0);
    let bob = host.protect(&["--needs-approval", "bob"]).expect(3);
    bob.saying("account 'bob' is not with this account's CAS: it cannot approve anything here");
    host.script("create", &["--cas", "cas.example.com", "--account", "carol"]).expect(0);
    host.protect(&["--needs-approval", "carol"]).expect(0);
    // As if one of them had been moved since.
    let state = fs::read_to_string(host.root().join("state/carol.yml")).unwrap();
    let key = text(&host.state()["cas"]["key"]);
    let moved = state.replace("cas.example.com", "other.example.com").replace(&key, "another-key");
    fs::write(host.root().join("state/carol.yml"), moved).unwrap();
    fs::write(host.desk().join("code.txt"), CODE).unwrap();
    let approve = ["web", "--account", "carol", "--starts", "1", "--for", "10m", "--otp-file", "code.txt"];
    host.script("approve", &approve).expect(3).saying("accounts 'carol' and 'default' are not with the same CAS");
    fs::remove_file(host.desk().join("code.txt")).unwrap();
}

/// What everybody may start is in the session that also has the secret from the file, which is in CAS alone.
#[test]
fn a_program_with_a_file_s_secret_is_protected_again_for_what_is_tolerated_since() {
    let host = Host::with_image();
    fs::write(host.desk().join("key.txt"), "a key").unwrap();
    let protect = ["--open", "python3 /app/web.py public", "--secret", "KEY=key.txt"];
    host.protect(&protect).expect(0);
    let tolerate = host.script("create", &["--tolerate", "hyperthreading"]).expect(4);
    tolerate.saying("secret 'KEY' of program 'web' came from a file and is in CAS alone: give it again");
    assert_ne!(host.start(&[]).code, Some(0));
    host.forget();
    host.script("protect", &["web", "--secret", "KEY=key.txt"]).expect(0);
    let uploads = uploads(host.calls());
    let tolerated = |call: &Call| call.policy()["security"]["attestation"]["tolerate"][0] == "hyperthreading";
    assert!(
        uploads.iter().any(|call| text(&call.policy()["name"]).ends_with("/web") && tolerated(call)),
        "{uploads:?}"
    );
    host.script("create", &[]).expect(0);
    fs::remove_file(host.desk().join("key.txt")).unwrap();
}

/// What is left is looked at, a grant is made, and a start goes through the gate: each is a container of the account's image.
#[test]
fn a_gate_is_asked_granted_and_gone_through_by_these_argument_vectors() {
    let host = Host::with_image();
    host.with_gate();
    let dispensed = DISPENSED;
    host.script("create", &["--cas", "cas.example.com", "--account", "bob"]).expect(0);
    host.protect(&["--starts", "2", "--needs-approval", "bob"]).expect(0);
    host.forget();
    let file = host.desk().join("bobs-code.txt");
    fs::write(&file, CODE).unwrap();
    let approve = ["web", "--account", "bob", "--starts", "1", "--for", "10m", "--otp-file", "bobs-code.txt"];
    assert!(host.script("approve", &approve).expect(0).stdout.starts_with("granted: 1 start until "));
    fs::remove_file(file).unwrap();
    let started = host.start(&[]).expect(0).saying("gate: start 1 of 2, start 1 of 1 of grant 1 by 'bob'");
    assert_eq!(started.stdout, "it ran\n");

    let root = host.root().canonicalize().unwrap().display().to_string().replace('"', "\"\"");
    let namespace = host.known("namespace");
    let side = |name: &str, inside: &str| {
        format!("--mount=type=bind,\"src={root}/state/volumes/default/programs/web/{name}\",dst={inside}")
    };
    let (starts, grants) = (side("starts_1", "/permit"), side("grants_1", "/grants"));
    let calls = host.calls();
    let runs: Vec<&Call> = calls.iter().filter(|call| call.what() == "docker run").collect();
    let of = |service: &str| {
        let service = format!("{namespace}/{service}");
        runs.iter()
            .find(|call| call.config_id.as_ref() == Some(&service))
            .unwrap_or_else(|| panic!("{service}: {runs:?}"))
    };
    let user = format!("--user={}", user());
    let vector = |call: &Call, sides: &[&String], last: &[&str]| {
        let fifo = call.args.iter().find(|arg| arg.ends_with("/environment\",dst=/environment")).unwrap();
        let before = of_any_start(&user);
        let sides = sides.iter().map(|side| side.as_str());
        let after = [fifo.as_str(), "--entrypoint=/entry", IMAGE_ID, "/environment", "/bin/gate"];
        let expected: Vec<&str> = before.into_iter().chain(sides).chain(after).chain(last.iter().copied()).collect();
        assert_eq!(call.args, expected);
    };
    let bob = fs::read_to_string(host.root().join("state/bob.yml")).unwrap();
    let bob: Value = serde_yaml::from_str(&bob).unwrap();
    vector(of(&format!("web/approve.bob.{}/approve@{CODE}", text(&bob["namespace"]))), &[&grants], &["1", "600", "-"]);
    vector(of("otpqr/left_web"), &[&starts, &grants], &[]);
    vector(of(&format!("web/default/gate@{CODE}")), &[&starts, &grants], &[]);
    // The gate's code, not the person's, starts the program, which sees neither volume.
    let program = of(&format!("web/default/program@{dispensed}"));
    assert!(!program.args.contains(&starts) && !program.args.contains(&grants), "{:?}", program.args);
    assert_eq!(runs.len(), 4);
    for call in &calls {
        assert!(!call.args.iter().any(|arg| arg.contains(CODE) || arg.contains(dispensed)), "{:?}", call.args);
    }
    assert!(!started.stderr.contains(dispensed));
    host.has_clean_desk();
}

/// The tool bakes the addresses and the session of its own policy into the image. Docker prefers what it is told: `-e NAME` is
/// the caller's value, and where the caller has none the variable is taken away (moby, `ReplaceOrAppendEnvVars`). The session
/// comes through the FIFO, and the entry puts it in the place of what is there (programs/entry/tests/entry.rs).
#[test]
fn what_an_image_says_of_cas_and_session_does_not_win_over_ours() {
    let host = Host::with_image();
    host.protect(&[]).expect(0);
    host.forget();
    host.start(&[]).expect(0);
    let calls = host.calls();
    let start = calls.iter().find(|call| call.what() == "docker run").unwrap();
    assert!(["-e=SCONE_CAS_ADDR", "-e=SCONE_LAS_ADDR", "-e=SCONE_MODE=hw"].iter().all(|arg| start.has(arg)));
    assert_eq!(start.environment["SCONE_CAS_ADDR"], "cas.example.com");
    assert!(!start.environment.contains_key("SCONE_LAS_ADDR"));
    assert!(start.config_id.as_ref().unwrap().starts_with(&host.known("namespace")));
    assert!(!calls.iter().any(|call| call.args.iter().any(|arg| arg.contains("baked"))));
}

#[test]
fn a_refused_start_of_a_program_says_why_without_the_code() {
    let host = Host::with_image();
    host.protect(&[]).expect(0);
    let head = "CAS sent an attestation/configuration error: Failed to retrieve service attestation configuration";
    let words = frame(&[head, "The given One-time Password is invalid. Please try again."]);
    fs::write(host.home.path().join("words"), words).unwrap();
    host.with_engine(
        "case \"$1 $SCONE_CONFIG_ID\" in 'run '*@*) sed \"s#@ID@#$SCONE_CONFIG_ID#\" \"$here/words\" >&2; exit 134 ;; esac",
    );
    let refused = host.start(&[]).expect(5).saying("that code is wrong");
    assert!(!refused.text().contains(CODE), "{}", refused.stderr);
    host.has_clean_desk();
}

#[test]
fn a_service_goes_on_is_found_and_is_stopped_by_these_argument_vectors() {
    let host = Host::with_image();
    host.protect(&[]).expect(0);
    let running = host.home.path().join("is-running");
    let service = "for each; do case \"$each\" in --name=otpqr-web-*) name=${each#--name=} ;; esac; done
         case \" $* \" in ' ps --filter=label=otpqr.program='*) [ ! -f \"$here/is-running\" ] || cat \"$here/is-running\"; exit ;;
         ' stop '*) rm \"$here/is-running\"; exit ;;
         ' run '*'/environment '*) echo \"$name\" >\"$here/is-running\"; echo \"service ID $SCONE_CONFIG_ID\" >&2
           for n in {1..200}; do [ -f \"$here/is-running\" ] || exit 0; sleep 0.1; done ;; esac";
    host.with_engine(service);
    host.forget();
    let started = host.start(&["--detach", "--log", "web.log", "--json", "--publish", "8443:8443"]).expect(0);
    let told: Value = serde_yaml::from_str(&started.stdout).unwrap();
    let container = text(&told["container"]);
    assert!(container.starts_with("otpqr-web-"), "{started:?}");
    let label = format!("otpqr.program={}/web/default", host.known("namespace"));
    let calls = host.calls();
    let start = calls.iter().find(|call| call.what() == "docker run").unwrap();
    for arg in [format!("--label={label}"), format!("--name={container}"), "--publish=8443:8443".to_owned()] {
        assert!(start.has(&arg), "{arg} in {:?}", start.args);
    }
    assert!(!start.has("--interactive") && !start.args.iter().any(|arg| arg.starts_with("--restart")));
    let log = host.desk().join("web.log");
    assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(&log).unwrap().contains("/web/default/program@******\n"));

    // It is found, so no code is spent on a second one.
    host.forget();
    let again = host.start(&["--detach", "--log", "web.log"]).expect(0);
    assert!(again.stdout.starts_with(&format!("already running: 'web', container {container}\n")), "{again:?}");
    let looked = vector(&format!("ps --filter=label={label} --format={{{{.Names}}}}"));
    assert_eq!(host.engine(), [&looked[..]]);

    host.forget();
    assert!(host.script("start", &["web", "--stop"]).expect(0).stdout.starts_with("stopped: 'web'"));
    assert_eq!(host.engine(), [&looked[..], &vector(&format!("stop --time=10 {container}"))[..]]);
    assert!(!running.exists());
    host.forget();
    assert!(host.script("start", &["web", "--stop"]).expect(0).stdout.contains("does not run as a service"));
    assert_eq!(host.engine(), [&looked[..]]);
}

#[test]
fn a_program_that_is_given_up_is_untagged() {
    let host = Host::with_image();
    host.protect(&[]).expect(0);
    host.forget();
    host.script("protect", &["web", "--remove", "--yes"]).expect(0);
    let label = format!("otpqr.program={}/web/default", host.known("namespace"));
    let looked = vector(&format!("ps --filter=label={label} --format={{{{.Names}}}}"));
    assert_eq!(host.engine(), [looked, vector(&format!("image rm {}", host.tag()))]);
    host.start(&[]).expect(3).saying("has no program 'web'");
}
