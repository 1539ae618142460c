//! Two people for one start: what one asks for with a code, another has granted with a code of theirs (scripts/approve.rs). And each
//! way around that. How grants are counted, the tests of programs/permit say; starts through a gate are in gate.rs.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use crate::support::program::service_by_hand;
use crate::support::protected::Protected;
use crate::support::{Outcome, Platform, copy, docker_is_there, image, phone, run, run_with_input, strace_is_there};

const PROTECTED: &[&str] =
    &["--secret", "SIGNER_KEY=p256", "--command", "/bin/signer sign @@1", "--mount-point", "/in"];

/// The program sees the directory `files` of the caller's.
const SIGN: &[&str] = &["--mount", "type=bind,src=files,dst=/in", "--", "/in/release.tar"];

const NOTHING: &str = "no start of 'signer' is granted for sha256:";

/// Alice starts the signer, and bob says what it may sign.
struct Two {
    signer: Protected,
    bob: phone::Account,
}

impl Two {
    fn new(platform: Platform) -> Two {
        let signer = Protected::new("signer", platform, scripts!(), image::signer);
        let files = signer.bundle.root.join("files");
        fs::create_dir(&files).expect("a directory");
        fs::write(files.join("release.tar"), "what is released").expect("a file");
        let bob = signer.bundle.enrol("bob");
        Two { signer, bob }
    }

    fn protect(&self, options: &[&str]) -> Outcome {
        self.signer.bundle.script("protect", &[&["signer"], options].concat())
    }

    fn approve_with(&self, code: &str, options: &[&str]) -> Outcome {
        let options = [&["signer", "--otp-file", "-"], options].concat();
        run_with_input(self.signer.bundle.script_command("approve", &options), code)
    }

    /// Bob grants this many starts, for ten minutes.
    fn approve(&self, starts: &str) -> Outcome {
        let options = [&["--account", "bob", "--starts", starts, "--for", "10m"], SIGN].concat();
        let outcome = self.approve_with(&self.bob.code_at(self.signer.bundle.now()), &options);
        self.signer.bundle.wait(30);
        outcome
    }

    /// The session in which somebody grants starts, below alice's namespace.
    fn approving(&self, account: &str) -> String {
        format!("signer/approve.{account}.{}", self.signer.bundle.known(account, &["namespace"]))
    }

    fn alices_code(&self) -> String {
        self.signer.alice.code_at(self.signer.bundle.now())
    }

    fn write(&self, content: &str) {
        fs::write(self.signer.bundle.root.join("files/release.tar"), content).expect("a file");
    }

    /// Starts it with a code, and changes what it is to sign just before it has that.
    fn start_changed_meanwhile(&self, code: &str, content: &str) -> Outcome {
        let fifo = self.signer.bundle.root.join("code");
        let mut mkfifo = self.signer.bundle.command("mkfifo");
        mkfifo.arg(&fifo);
        run(mkfifo).expect(0);
        let options = [&["signer", "--otp-file", "code"], SIGN].concat();
        let start = self.signer.bundle.script_command("start", &options);
        std::thread::scope(|scope| {
            let started = scope.spawn(|| run(start));
            // Waits until it is opened to be read.
            let mut asked = fs::File::options().write(true).open(&fifo).expect("somebody who reads");
            self.write(content);
            asked.write_all(code.as_bytes()).expect("a code");
            drop(asked);
            let outcome = started.join().expect("an outcome");
            self.signer.bundle.wait(30);
            outcome
        })
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.signer.bundle.root.join("state/volumes/default/programs/signer").join(name)
    }

    fn listed(&self) -> String {
        self.signer.bundle.script("approve", &["signer", "--list"]).expect(0).stdout
    }

    /// Starts the program with this code without our scripts, which look at what is granted before.
    fn start_by_hand(&self, code: &str) -> Outcome {
        let bundle = &self.signer.bundle;
        let service = format!("{}/signer/default/program@{code}", bundle.known("default", &["namespace"]));
        let image = bundle.known("default", &["programs", "signer", "image_id"]);
        let sides = [("permit", "volume_0_1"), ("grants", "grants_1")];
        sides.iter().for_each(|(_, volume)| fs::create_dir_all(self.volume(volume)).expect("a directory"));
        let sides = sides.map(|(inside, volume)| format!("{}:/.sealed/{inside}", self.volume(volume).display()));
        let files = format!("{}:/in", bundle.root.join("files").display());
        let mut words: Vec<&str> = ["--bind", &sides[0], "--bind", &sides[1], "--bind", &files].into();
        let mounted = ["/permit", "/in", "/grants", "/run", "/tmp", "/var/tmp", "/environment"];
        let mounted = mounted.map(|path| format!("--mount-point={path}"));
        words.extend(mounted.iter().map(String::as_str));
        words.extend(["/bin/signer", "/in/release.tar"]);
        run(service_by_hand(bundle, &image, &service, &words, &[]))
    }

    /// Puts a volume back as it was, asserts that a start is refused, and undoes that.
    #[track_caller]
    fn refuses_as_it_was(&self, volume: &str, kept: &str, words: &str) {
        let (volume, now) = (self.volume(volume), self.signer.bundle.root.join("now"));
        fs::rename(&volume, &now).expect("a move");
        copy(&self.signer.bundle.root.join(kept), &volume);
        self.signer.start(SIGN).expect(5).saying(words);
        if self.signer.bundle.platform == Platform::SimNative {
            let code = self.alices_code();
            self.start_by_hand(&code).expect(134).saying(words);
            self.signer.bundle.wait(30);
        }
        fs::remove_dir_all(&volume).expect("removal");
        fs::rename(&now, &volume).expect("a move");
    }
}

fn a_start_takes_one_persons_code_and_anothers_grant(platform: Platform) {
    let two = Two::new(platform);
    let (signer, bundle) = (&two.signer, &two.signer.bundle);
    signer.protect(PROTECTED).expect(0);
    two.protect(&["--counts-itself"]).expect(2).saying("give '--starts N' or '--needs-approval ACCOUNT'");
    two.protect(&["--without-code"]).expect(2).saying("--needs-approval");
    two.protect(&["--needs-approval", "default"]).expect(2).saying("nobody approves their own start");
    let unknown = two.protect(&["--needs-approval", "carol"]).expect(3).saying("there is no account 'carol'");
    unknown.saying("hint: ./scripts/create.rs --account carol");
    let not_needed = two.approve("1").expect(3).saying("it was not protected with '--needs-approval'");
    not_needed.saying("hint: ./scripts/protect.rs signer --needs-approval ACCOUNT");
    let report = two.protect(&["--needs-approval", "bob", "--counts-itself"]).expect(0).stdout;
    assert!(report.contains("\n  approval   a grant of 'bob'\n"), "{report}");

    // Without a grant no code is asked for: it stays good.
    let code = two.alices_code();
    let refused = signer.start_with(&code, SIGN).expect(5).saying(NOTHING);
    refused.saying("hint: ./scripts/approve.rs --account bob signer --starts 1 --for 10m --mount ");
    assert!(bundle.script("doctor", &[]).stdout.contains("'signer': as many as are granted, and none was taken"));

    // Whoever may not grant anything.
    let grant = ["--starts", "1", "--for", "10m"];
    two.approve_with(&code, &[&grant, SIGN].concat()).expect(3).saying("account 'default' is not asked");
    let of_bob = [&["--account", "bob"], &grant[..], SIGN].concat();
    let invalid = "One-time Password is invalid";
    two.approve_with(&code, &of_bob).expect(5).saying(invalid);
    bundle.script("approve", &[&["signer"], &of_bob[..]].concat()).expect(2).saying("--otp-file");
    let (approve, program) = (two.approving("bob"), "signer/default/program");
    signer
        .start_by_hand(&format!("{approve}/approve"), &["9", "9", "-"], &[])
        .expect(134)
        .saying("An One-time Password is required");
    for bad in
        [["--starts", "0", "--for", "10m"], ["--starts", "1", "--for", "32days"], ["--starts", "1", "--for", "1"]]
    {
        two.approve_with("123456", &[&["--account", "bob"], &bad[..], SIGN].concat()).expect(2);
    }
    two.approve_with("123456", &[&["--account", "bob"], &grant[..]].concat())
        .expect(2)
        .saying("takes 1 of its caller's");
    let elsewhere = ["--mount", "type=bind,src=files,dst=/out", "--", "/in/release.tar"];
    two.approve_with("123456", &[&["--account", "bob"], &grant[..], &elsewhere].concat()).expect(2).saying("'/out'");
    // The name alone of a file that is mistyped, or not mounted, is nothing to grant, nor to ask for.
    let mistyped = ["--mount", "type=bind,src=files,dst=/in", "--", "/in/relaese.tar"];
    for file in [&mistyped[..], &["--", "/in/release.tar"]] {
        let refused = two.approve_with("123456", &[&["--account", "bob"], &grant[..], file].concat()).expect(3);
        refused.saying("is no file in what is mounted there");
        signer.start_with(&code, file).expect(3).saying("is no file in what is mounted there");
    }

    // What was granted, for what is signed; so alice sees what bob saw.
    let granted = two.approve("1").expect(0);
    let digest = granted.stdout.trim_end().rsplit(' ').next().expect("a digest").to_owned();
    assert!(granted.stdout.starts_with("granted: 1 start until "), "{granted:?}");
    let granted = granted.saying(&format!("1 start of 'signer' of account 'default', within 10m for {digest}"));
    granted.saying("'/in/release.tar': sha256:");
    copy(&two.volume("grants_1"), &bundle.root.join("kept-grants"));
    two.write("what is released!");
    signer.start_with(&code, SIGN).expect(5).saying(NOTHING);
    // Changed after it was looked at: the program sees what it signs.
    two.write("what is released");
    if platform == Platform::SimNative {
        two.write("what is released!");
        two.start_by_hand(&two.alices_code())
            .expect(10)
            .saying("signer: error: no grant is good for it: 1 for something");
        two.write("what is released");
        bundle.wait(30);
    }
    let code = two.alices_code();
    let changed = two.start_changed_meanwhile(&code, "what is released!").expect(10);
    changed.saying("signer: error: no grant is good for it: 1 for something else, 0 expired, 0 used up");
    two.write("what is released");
    // Neither is bob's code alone enough.
    let bobs = two.bob.code_at(bundle.now());
    signer.start_by_hand(&format!("{program}@{bobs}"), &["/in/release.tar"], &[]).expect(134).saying(invalid);

    let signed = signer.start(SIGN).expect(0).saying(&format!("it asks for a start for {digest}"));
    signed.saying(&format!("signer: start 1 of 1 of grant 1 by 'bob' for {digest}"));
    signer.start(SIGN).expect(5).saying(NOTHING);
    let listed = two.listed();
    assert!(listed.starts_with("used up: 0 of 1 start until ") && listed.ends_with(&format!("{digest}\n")), "{listed}");
    copy(&two.volume("volume_0_1"), &bundle.root.join("kept-starts"));

    two.approve("2").expect(0);
    assert!(bundle.script("doctor", &[]).stdout.contains("'signer': granted: 2 of 2 starts until "));
    signer.start(SIGN).expect(0).saying("signer: start 1 of 2 of grant 2 by 'bob'");
    // What was taken, and what was granted, as they were before.
    two.refuses_as_it_was("volume_0_1", "kept-starts", "suspected replay attack");
    two.refuses_as_it_was("grants_1", "kept-grants", "suspected replay attack");
    // A number in all, which is exhausted: no code is asked for.
    let spent = two.protect(&["--starts", "2"]).expect(0);
    assert!(spent.stdout.contains("\n  starts     2 in all\n  approval   a grant of 'bob'\n"), "{spent:?}");
    signer.start(SIGN).expect(0).saying("signer: start 1 of 2, start 2 of 2 of grant 2 by 'bob'");
    two.approve("9").expect(0);
    signer.start(SIGN).expect(0).saying("signer: start 2 of 2, start 1 of 9 of grant 3 by 'bob'");
    let code = two.alices_code();
    signer.start_with(&code, SIGN).expect(5).saying("of the 2 starts of 'signer' none is left");
    two.protect(&["--starts", "99"]).expect(0);
    // What was granted until now is void.
    two.protect(&["--void-grants"]).expect(0);
    signer.start_with(&code, SIGN).expect(5).saying(NOTHING);

    // A new secret of bob's: the old codes grant nothing more.
    let old = two.bob;
    let rolled = bundle.script("roll_forward", &["--account", "bob", "--yes"]).expect(0);
    let stays = "what it granted of 'signer' stays granted, unless: ./scripts/protect.rs signer --void-grants\n";
    assert!(rolled.stdout.ends_with(stays), "{rolled:?}");
    rolled.saying("/signer/approve.bob.otpqr-");
    bundle.gen_qr(&["--account", "bob", "--output", "bob-2.svg"]).expect(0);
    let two = Two { bob: bundle.scan("bob-2.svg"), ..two };
    let bundle = &two.signer.bundle;
    two.approve_with(&old.code_at(bundle.now()), &of_bob).expect(5).saying(invalid);
    assert!(two.approve("1").expect(0).stdout.contains(" by 'bob' (grant 4) of '"));
    // Another account under the same name is not bob's: it is asked for nothing, until it is named.
    let file = bundle.state_file("bob");
    let kept = file.with_extension("kept");
    fs::rename(&file, &kept).expect("a move");
    fs::remove_file(bundle.root.join("bob.svg")).expect("removal");
    let other = bundle.enrol("bob");
    two.approve_with(&other.code_at(bundle.now()), &of_bob).expect(3).saying("account 'bob' is not asked for starts");
    two.protect(&["--needs-approval", "bob"]).expect(0);
    assert!(two.approve_with(&other.code_at(bundle.now()), &of_bob).expect(0).stdout.contains("(grant 5)"));
    bundle.wait(30);
    fs::rename(&kept, &file).expect("a move");
    two.approve("1").expect(3).saying("account 'bob' is not asked for starts");
    // Of one who is asked no more, what was granted is void.
    bundle.enrol("carol");
    assert!(two.protect(&["--needs-approval", "carol"]).expect(0).stdout.contains("a grant of 'carol'\n"));
    two.signer.start(SIGN).expect(5).saying(NOTHING);
    let listed = two.listed();
    assert!(listed.lines().skip(1).all(|line| line.starts_with("void: 0 of ")), "{listed}");
    two.approve("1").expect(3).saying("account 'bob' is not asked for starts of 'signer'");
    // Named again, they are asked again: what they granted before stays void.
    two.protect(&["--needs-approval", "bob", "--needs-approval", "carol"]).expect(0);
    two.signer.start(SIGN).expect(5).saying(NOTHING);
    two.approve("1").expect(0);
    two.signer.start(SIGN).expect(0);
}

/// Who has the identity that uploaded everything: what is granted is exported to those who are asked, and to nobody else.
fn nobody_else_writes_what_was_granted(platform: Platform) {
    let two = Two::new(platform);
    let (signer, bundle) = (&two.signer, &two.signer.bundle);
    signer.protect(&[PROTECTED, &["--needs-approval", "bob", "--counts-itself"]].concat()).expect(0);
    two.approve("1").expect(0);
    let [namespace, image] = ["namespace", "image_id"].map(|key| bundle.known("default", &[key]));
    let session = format!("{namespace}/signer");
    bundle.enrol("carol");
    for name in ["thief".to_owned(), format!("{namespace}/{}", two.approving("carol"))] {
        let policy = format!(
            "name: {name}\nversion: 0.3.10\nsecurity: {{attestation: {{mode: none}}}}\nservices: [{{name: s, command: /bin/gate --help, \
             image_name: i}}]\nimages: [{{name: i, volumes: [{{name: v, path: /grants}}]}}]\nvolumes: [{{name: v, import: {{session: \
             {session}, volume: grants_1}}}}]\n"
        );
        let file = bundle.root.join("thief.yml");
        fs::write(&file, policy).expect("a policy");
        bundle.scone(["session", "create", file.to_str().expect("UTF-8")]).expect(0);
        let written = run(service_by_hand(bundle, &image, &format!("{name}/s"), &["/bin/gate"], &[]));
        written.expect(134).saying(&format!("Session '{session}' does not export volume 'grants_1' to '{name}'"));
    }
    // Those who look at it are exported it so that they change nothing, whatever their own policies say.
    let read = bundle.scone(["session", "read", &session]).expect(0).stdout;
    let read: serde_yaml::Value = serde_yaml::from_str(&read).expect("YAML");
    let grants = read["volumes"].as_sequence().expect("volumes").iter().find(|volume| volume["name"] == "grants_1");
    let exports = grants.expect("the volume")["export"].as_sequence().expect("exports").clone();
    let mut told: Vec<String> = exports.iter().map(|export| serde_yaml::to_string(export).expect("YAML")).collect();
    told.sort();
    let of = |name: &str| format!("session: {namespace}/{name}\n");
    let looks = |name: &str| format!("to:\n  session: {namespace}/{name}\nupdate_policy: ephemeral\n");
    assert_eq!(told, [of(&two.approving("bob")), looks("otpqr"), looks("signer/default")]);
}

/// Whoever sees the approver's code on the host can use it first. The approver notices.
#[test]
fn an_approvers_code_that_was_seen_grants_something_else_and_theirs_is_refused() {
    let two = Two::new(Platform::SimNative);
    let (signer, bundle) = (&two.signer, &two.signer.bundle);
    signer.protect(&[PROTECTED, &["--needs-approval", "bob", "--counts-itself"]].concat()).expect(0);
    let seen = two.bob.code_at(bundle.now());
    let approve = |starts: &str| {
        two.approve_with(&seen, &[&["--account", "bob", "--starts", starts, "--for", "10m"], SIGN].concat())
    };
    two.write("what root wants to be released");
    approve("9").expect(0);
    two.write("what is released");
    let used = approve("1").expect(5).saying("that code was used already, by you or somebody else");
    used.saying(&format!(" UTC by '{}/{}/approve')", bundle.known("default", &["namespace"]), two.approving("bob")));
    assert!(two.listed().starts_with("granted: 9 of 9 starts until "), "{}", two.listed());
}

/// The second of its two uploads fails, or the first: whoever runs it again goes on.
#[test]
fn an_approval_that_was_cut_off_goes_on_with_the_next_one() {
    let two = Two::new(Platform::SimNative);
    let (signer, bundle) = (&two.signer, &two.signer.bundle);
    signer.protect(&[PROTECTED, &["--needs-approval", "bob", "--counts-itself"]].concat()).expect(0);
    bundle.wrap_tools(
        r#"#!/bin/sh
bin=${0%/*} name=${0##*/}
last=; for last; do :; done
if [ "$1 $2" = 'session create' ] && [ -f "$bin/refuse" ] && grep -q "$(cat "$bin/refuse")" "$last"; then
  echo 'Caused by: the network is gone' >&2; exit 1
fi
exec "$bin/genuine/$name" "$@"
"#,
    );
    let refuse = bundle.root.join("simulator/bin/refuse");
    // Neither is there yet: nothing was granted.
    fs::write(&refuse, "^name: .*/approve.bob").expect("a file");
    assert_ne!(two.approve("1").code, Some(0));
    fs::write(&refuse, "^name: .*/otpqr\"").expect("a file");
    assert_ne!(two.approve("1").code, Some(0));
    let doctor = bundle.script("doctor", &["--account", "bob"]).stdout;
    assert!(doctor.contains("CAS holds another '"), "{doctor}");
    fs::remove_file(&refuse).expect("removal");
    two.approve("1").expect(0);
    signer.start(SIGN).expect(0).saying("signer: start 1 of 1 of grant 1 by 'bob'");
}

/// The thief of the identity replaces the session by one that asks for no code. A new secret of bob's does not make that be forgotten.
#[test]
fn an_approvers_session_that_was_replaced_is_somebody_elses_also_after_a_roll_forward() {
    let two = Two::new(Platform::SimNative);
    let (signer, bundle) = (&two.signer, &two.signer.bundle);
    signer.protect(&[PROTECTED, &["--needs-approval", "bob", "--counts-itself"]].concat()).expect(0);
    two.approve("1").expect(0);
    let namespace = bundle.known("default", &["namespace"]);
    let ours = bundle.known("bob", &["approvals", &format!("{namespace}/signer"), "version", "hash"]);
    let policy = format!(
        "name: {namespace}/{}\nversion: 0.3.10\npredecessor: {ours}\nsecurity: {{attestation: {{mode: none}}}}\n",
        two.approving("bob")
    );
    let file = bundle.root.join("thief.yml");
    fs::write(&file, policy).expect("a policy");
    bundle.scone(["session", "create", file.to_str().expect("UTF-8")]).expect(0);
    let seen = || {
        let doctor = bundle.script("doctor", &["--account", "bob"]).stdout;
        let approve = two.approving("bob");
        assert!(doctor.lines().any(|line| line.starts_with("wrong policies ") && line.contains(&approve)), "{doctor}");
    };
    seen();
    assert_ne!(two.approve("1").code, Some(0));
    let rolled = bundle.script("roll_forward", &["--account", "bob", "--yes"]).expect(0);
    rolled.saying("cannot be granted: CAS did not accept session");
    seen();
    assert_ne!(two.approve("1").code, Some(0));
}

/// Kills the runtime, or the program that it runs, before a call of a start that is handed a code of this service.
const KILLING: &str = r#"#!/bin/sh
bin=${0%/*} name=${0##*/}
case "$SCONE_CONFIG_ID" in
  */program@* | */approve@*)
    [ ! -f "$bin/inject" ] || exec strace -f -qq -o /dev/null -e "inject=$(cat "$bin/inject")" "$bin/genuine/$name" "$@" ;;
esac
exec "$bin/genuine/$name" "$@"
"#;

/// A start and an approval are killed at each call, one after the other, until one is survived; with the real CAS, and volumes that are sealed.
#[test]
fn killed_at_any_call_nothing_is_granted_or_taken_twice_and_one_start_at_most_is_lost() {
    if !strace_is_there() {
        return;
    }
    let two = Two::new(Platform::SimNative);
    let (signer, bundle) = (&two.signer, &two.signer.bundle);
    signer.protect(&[PROTECTED, &["--needs-approval", "bob", "--counts-itself"]].concat()).expect(0);
    bundle.wrap_tools(KILLING);
    let inject = bundle.root.join("simulator/bin/inject");
    // What a seal does, and what the program does; what is sent goes by writev.
    let calls = ["write", "fsync", "fdatasync", "renameat", "writev"];
    let killed_at = |done: &mut dyn FnMut() -> bool| {
        let mut killed = 0;
        for call in calls {
            for when in 1.. {
                fs::write(&inject, format!("{call}:signal=SIGKILL:when={when}")).expect("a file");
                if done() {
                    break;
                }
                killed += 1;
            }
        }
        fs::remove_file(&inject).expect("removal");
        killed
    };
    // So many grants there are, and so many of their starts are left.
    let left = || {
        let listed = two.listed();
        let left =
            listed.lines().map(|line| line.split(' ').find_map(|word| word.parse::<usize>().ok()).expect("a number"));
        (listed.lines().count(), left.sum::<usize>())
    };

    let mut told = 0;
    let killed = killed_at(&mut || {
        let approval = two.approve("3");
        let is_granted = approval.code == Some(0);
        // Who may have granted it is told so.
        assert!(
            is_granted
                || approval.code != Some(4)
                || approval.stderr.contains("whether the grant was noted is not known")
        );
        told += usize::from(is_granted);
        is_granted
    });
    let (grants, starts) = left();
    assert!(told <= grants && grants <= told + killed, "{grants} grants, {told} told of, {killed} killed");
    assert_eq!(starts, 3 * grants, "half a grant");
    println!("{killed} approvals killed, {told} survived: {grants} grants of 3 starts");

    two.approve("99").expect(0);
    let granted = starts + 99;
    let (mut signatures, mut lost, mut before) = (0, 0, granted);
    let killed = killed_at(&mut || {
        let start = signer.start(SIGN);
        let now = left().1;
        // It was taken before anything was signed; and who was killed took one at most.
        let signed = usize::from(!start.stdout.is_empty());
        assert!(now + 1 >= before && now + signed <= before, "{before} before, {now} now: {start:?}");
        signatures += signed;
        lost += before - now - signed;
        before = now;
        start.code == Some(0)
    });
    let taken = granted - left().1;
    assert_eq!(taken, signatures + lost);
    assert!(signatures >= calls.len() && lost > 0 && lost <= killed, "{lost} lost by {killed} kills");
    println!("granted {granted}, taken {taken}, signed {signatures}, lost {lost} by {killed} kills");
    // What was killed is in nobody's way.
    signer.start(SIGN).expect(0);
    two.approve("1").expect(0);
}

#[test]
fn natively_a_start_takes_one_persons_code_and_anothers_grant() {
    a_start_takes_one_persons_code_and_anothers_grant(Platform::SimNative);
}

#[test]
fn in_a_container_a_start_takes_one_persons_code_and_anothers_grant() {
    if docker_is_there() {
        a_start_takes_one_persons_code_and_anothers_grant(Platform::Sim);
    }
}

#[test]
fn natively_nobody_else_writes_what_was_granted() {
    nobody_else_writes_what_was_granted(Platform::SimNative);
}

#[test]
fn in_a_container_nobody_else_writes_what_was_granted() {
    if docker_is_there() {
        nobody_else_writes_what_was_granted(Platform::Sim);
    }
}
