//! A roll-forward that is cut off: killed before and after every call of a tool, with CAS down, with the disk full, beside
//! another run. Whatever happened, a later run completes it, or undoes it as long as the old codes live, or says what to do.

mod support;

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use support::attacker::delete_files;
use support::{
    Bundle, Outcome, Platform, User, copy, docker_is_there, is_root, phone, run, run_with_input, strace_is_there,
};

/// Stands before `scone`, `scone-run` and `docker`: notes each call, and before or after the one that is told does what is told.
const WATCHED: &str = r#"#!/bin/sh
bin=${0%/*} name=${0##*/}
last=; for last; do :; done
case "$1 $2" in
  'session create') what="upload $(sed -n 's/^name: "\(.*\)"$/\1/p' "$last")" ;;
  *) what="$name $*" ;;
esac
number=$(($(wc -l <"$bin/calls") + 1))
deed() { [ "$(cat "$bin/when" 2>/dev/null)" != "$1 $number" ] || . "$bin/deed"; }
deed before
printf '%s\n' "$what" >>"$bin/calls"
"$bin/genuine/$name" "$@"
code=$?
deed after
exit $code
"#;

const RENAME: &str = "rename,renameat,renameat2";

/// The number of the call that is a roll-forward's first upload.
const FIRST_UPLOAD: usize = 9;

const KILL: &str = "kill -9 $PPID; exit 1";

/// A bundle in which every call of a tool is watched.
struct Watched {
    bundle: Bundle,
    bin: PathBuf,
}

impl std::ops::Deref for Watched {
    type Target = Bundle;

    fn deref(&self) -> &Bundle {
        &self.bundle
    }
}

impl Watched {
    /// With the account `default`, enrolled.
    fn enrolled() -> (Watched, phone::Account) {
        Watched::enrolled_on(Platform::SimNative)
    }

    fn enrolled_on(platform: Platform) -> (Watched, phone::Account) {
        let bundle = Bundle::of_test(platform, User::Caller);
        bundle.install(scripts!());
        let account = bundle.enrol("default");
        let bin = bundle.root.join("simulator/bin");
        fs::create_dir(bin.join("genuine")).expect("a directory");
        fs::write(bin.join("watched"), WATCHED).expect("a script");
        assert!(Command::new("chmod").arg("755").arg(bin.join("watched")).status().expect("chmod").success());
        let docker = which::which("docker").unwrap_or_default();
        let tools = [("scone", "../scone-sim".as_ref()), ("scone-run", "../rootfs/scone-run".as_ref())];
        // The bundle's own tools come before the host's.
        for (name, program) in tools.into_iter().chain([("docker", docker.as_path())]) {
            std::os::unix::fs::symlink(program, bin.join("genuine").join(name)).expect("a link");
            // A process that another test starts meanwhile may hold what we wrote open: such a file is "busy", a copy is not.
            copy(&bin.join("watched"), &bin.join("stand-in"));
            fs::rename(bin.join("stand-in"), bin.join(name)).expect("a stand-in");
        }
        (Watched { bundle, bin }, account)
    }

    /// Runs a script; before or after the call of this number, `deed` is done.
    fn script_with(&self, side: &str, number: usize, deed: &str, script: &str, args: &[&str], input: &str) -> Outcome {
        fs::write(self.bin.join("calls"), "").expect("a list");
        fs::write(self.bin.join("deed"), deed).expect("a deed");
        fs::write(self.bin.join("when"), format!("{side} {number}")).expect("a time");
        let outcome = run_with_input(self.script_command(script, args), input);
        fs::remove_file(self.bin.join("when")).expect("deletion");
        outcome
    }

    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.bin.join("calls")).expect("the list");
        calls.lines().map(str::to_owned).collect()
    }

    /// Kills a script before and after each of its calls in turn, and each time does `then`, told how many uploads came to be.
    /// Each time the script runs on what `then` left.
    fn kill_everywhere(
        &self,
        script: &str,
        args: &[&str],
        input: impl Fn() -> String,
        mut then: impl FnMut(&str, usize),
    ) {
        let mut number = 0;
        loop {
            number += 1;
            for side in ["before", "after"] {
                let outcome = self.script_with(side, number, KILL, script, args, &input());
                if outcome.code == Some(0) {
                    // It has no such call any more.
                    assert!(number > 3, "{script} {args:?} makes {} calls only", number - 1);
                    return;
                }
                assert_eq!(outcome.code, None, "not killed {side} call {number}: {outcome:?}");
                let uploads = self.calls().iter().filter(|call| call.starts_with("upload")).count();
                then(&format!("{script} {args:?} killed {side} call {number}, {:?}", self.calls().last()), uploads);
            }
        }
    }

    /// Kills `roll_forward` at each of these calls of the kernel in turn, and each time does `then`, told whether it had ended before;
    /// on what `then` left it runs again. Returns how often it was killed.
    fn kill_at_each(
        &self,
        calls: &str,
        args: &[&str],
        input: impl Fn() -> String,
        mut then: impl FnMut(bool),
    ) -> usize {
        for number in 1.. {
            let mut strace = self.command("strace");
            strace.args(["-qq", "-o", "/dev/null", "-e", &format!("inject={calls}:signal=SIGKILL:when={number}")]);
            strace.arg(self.root.join("scripts/roll_forward")).args(args);
            let outcome = run_with_input(strace, &input());
            let ended = outcome.code == Some(0);
            assert!(ended || outcome.code.is_none(), "{outcome:?}");
            then(ended);
            if ended {
                return number - 1;
            }
        }
        unreachable!("it ends some time")
    }

    /// Whether CAS accepts a code of this entry, tried where no volume matters. A code once tried is spent: time passes.
    fn accepts(&self, account: &phone::Account) -> bool {
        self.wait(30);
        let code = account.code_at(self.now());
        let confirm = format!("{}/otpqr-reset/confirm@{code}", self.known("default", &["namespace"]));
        let outcome = run(self.by_hand(&confirm, &Default::default()));
        assert!(outcome.code == Some(0) || outcome.stderr.contains("One-time Password is invalid"), "{outcome:?}");
        outcome.code == Some(0)
    }

    /// Has the new secret's QR code issued and scans it.
    fn enrol_anew(&self) -> phone::Account {
        self.gen_qr(&["--output", "new.svg"]).expect(0);
        let account = self.scan("new.svg");
        fs::remove_file(self.root.join("new.svg")).expect("deletion");
        account
    }

    /// Asserts that the QR code that comes with a new volume's first start, which nobody asked for, lies nowhere.
    #[track_caller]
    fn holds_no_picture(&self) {
        for path in self.written().into_keys() {
            assert!(!path.to_string_lossy().contains("svg"), "'{}' was left", path.display());
        }
    }

    /// Asserts that the account is as it was: its QR code not issued again, its codes good.
    #[track_caller]
    fn goes_on_with(&self, account: &phone::Account) {
        assert_eq!(self.known("default", &["pending"]), "null");
        self.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("issued already");
        self.wait(30);
        self.add_auth(&account.code_at(self.now()), &["--output", "again.svg"]).expect(0);
        assert_eq!(self.scan("again.svg").secret, account.secret);
        fs::remove_file(self.root.join("again.svg")).expect("deletion");
    }
}

#[test]
fn killed_anywhere_it_is_completed_by_the_next_run_and_the_old_codes_die_at_the_second_upload() {
    let (bundle, mut account) = Watched::enrolled();
    bundle.kill_everywhere("roll_forward", &["--yes"], String::new, |what, uploads| {
        assert_eq!(bundle.accepts(&account), uploads < 2, "{what}");
        bundle.script("roll_forward", &["--yes"]).expect(0);
        assert!(!bundle.accepts(&account), "{what}");
        let new = bundle.enrol_anew();
        assert_ne!(new.secret, account.secret, "{what}");
        account = new;
    });
    account = bundle.enrol_anew();
    bundle.goes_on_with(&account);
}

/// Between two calls of a tool the script records how far it got: killed there at each call of the kernel that matters.
#[test]
fn killed_while_it_records_how_far_it_got_it_is_completed_by_the_next_run() {
    if !strace_is_there() {
        return;
    }
    let (bundle, mut account) = Watched::enrolled();
    let mut killed = 0;
    for calls in ["fsync", RENAME, "unlink,unlinkat"] {
        killed += bundle.kill_at_each(calls, &["--yes"], String::new, |ended| {
            if !ended {
                bundle.script("roll_forward", &["--yes"]).expect(0);
            }
            assert!(!bundle.accepts(&account), "{calls}");
            account = bundle.enrol_anew();
        });
    }
    // Five times: the intention, three uploads, the end. Each is a file, a rename, a directory.
    assert!(killed >= 15, "{killed}");
    bundle.goes_on_with(&account);
}

/// The other kinds record in the same way; so what matters of each is what it wants to record, and when.
#[test]
fn killed_while_they_record_how_far_they_got_the_other_kinds_are_completed_by_the_next_run() {
    if !strace_is_there() {
        return;
    }
    let (bundle, account) = Watched::enrolled();
    let keep = ["--yes", "--keep-secret", "--otp-file", "-"];
    let code = || {
        bundle.wait(30);
        account.code_at(bundle.now())
    };
    let killed = bundle.kill_at_each(RENAME, &keep, code, |ended| {
        if !ended {
            bundle.gen_qr(&["--output", "stolen.svg"]).expect(5);
            run_with_input(bundle.script_command("roll_forward", &keep), &code()).expect(0);
        }
        bundle.goes_on_with(&account);
        bundle.holds_no_picture();
    });
    // The intention, three uploads, the end.
    assert!(killed >= 5, "{killed}");

    let begin = || bundle.script_with("after", FIRST_UPLOAD, KILL, "roll_forward", &["--yes"], "");
    begin();
    assert!(bundle.calls().last().is_some_and(|call| call.starts_with("upload")), "{:?}", bundle.calls());
    let killed = bundle.kill_at_each(RENAME, &["--undo"], String::new, |ended| {
        if !ended {
            bundle.script("roll_forward", &["--undo"]).expect(0);
        }
        assert_eq!(bundle.known("default", &["pending"]), "null");
        assert!(bundle.accepts(&account));
        begin();
    });
    // The first upload, the turn, the end.
    assert!(killed >= 3, "{killed}");
    bundle.script("roll_forward", &["--undo"]).expect(0);
    bundle.goes_on_with(&account);

    bundle.wipe_cas();
    let killed = bundle.kill_at_each(RENAME, &["--yes", "--cas-wiped"], String::new, |ended| {
        if !ended && bundle.script("roll_forward", &["--yes", "--cas-wiped"]).code != Some(0) {
            bundle.script("create", &[]).expect(0);
        }
        assert!(!bundle.accepts(&account));
        bundle.enrol_anew();
        bundle.wipe_cas();
    });
    // The intention, three uploads.
    assert!(killed >= 4, "{killed}");
}

#[test]
fn killed_anywhere_it_is_undone_as_long_as_the_old_codes_live_and_no_longer() {
    let (bundle, mut account) = Watched::enrolled();
    bundle.kill_everywhere("roll_forward", &["--yes"], String::new, |what, uploads| {
        if uploads < 2 {
            bundle.script("roll_forward", &["--undo"]).expect(0);
            bundle.goes_on_with(&account);
            // Once more changes nothing.
            let again = bundle.script("roll_forward", &["--undo"]).expect(0);
            assert!(again.stdout.starts_with("nothing to undo"), "{what}: {}", again.stdout);
        } else if bundle.known("default", &["pending"]) != "null" {
            bundle.script("roll_forward", &["--undo"]).expect(3).saying("the only way is forward");
            assert!(!bundle.accepts(&account), "{what}");
            bundle.script("roll_forward", &["--yes"]).expect(0);
            account = bundle.enrol_anew();
            bundle.goes_on_with(&account);
        }
    });
}

#[test]
fn an_undo_killed_anywhere_is_completed_by_the_next_run_whatever_it_is_asked_for() {
    let (bundle, account) = Watched::enrolled();
    // Each round: a roll-forward that is killed once CAS took its first upload.
    let begin = || {
        let mut number = 0;
        loop {
            number += 1;
            let killed = bundle.script_with("after", number, KILL, "roll_forward", &["--yes"], "");
            assert_eq!(killed.code, None, "{killed:?}");
            if bundle.calls().iter().any(|call| call.starts_with("upload")) {
                return;
            }
        }
    };
    begin();
    let mut round = 0;
    bundle.kill_everywhere("roll_forward", &["--undo"], String::new, |what, _| {
        round += 1;
        // Turned round, it stays so; before that, forward is forward: so by turns.
        let turned = bundle.known("default", &["pending", "undo"]) == "true";
        let args = if turned && round % 2 == 0 { "--yes" } else { "--undo" };
        let undone = bundle.script("roll_forward", &[args]).expect(0);
        assert!(undone.stdout.contains("its codes stay valid"), "{what}: {}", undone.stdout);
        assert!(bundle.accepts(&account), "{what}");
        begin();
    });
    bundle.goes_on_with(&account);
}

#[test]
fn with_cas_down_in_the_middle_it_stops_and_the_next_run_completes_it() {
    let (bundle, mut account) = Watched::enrolled();
    let clock = bundle.root.join("clock").display().to_string();
    for number in 1.. {
        let down = bundle.script_with("before", number, "\"$bin/scone-sim\" down >&2", "roll_forward", &["--yes"], "");
        if down.code == Some(0) {
            assert!(number > 6, "there were {} calls only", number - 1);
            return;
        }
        // Part-way is where the intention is recorded.
        let part_way = bundle.known("default", &["pending", "uploads_done"]) != "null";
        let down = down.expect(if part_way { 4 } else { 3 });
        assert!(down.stderr.contains("roll_forward: error: "), "{}", down.stderr);
        bundle.scone_sim(["up", "--clock", &clock]).expect(0);
        bundle.script("roll_forward", &["--yes"]).expect(0);
        assert!(!bundle.accepts(&account));
        account = bundle.enrol_anew();
    }
}

/// A disk of its own, small enough to be filled. Gone when dropped.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status().expect("umount");
        assert!(status.success() || std::thread::panicking(), "umount {}", self.0.display());
    }
}

#[test]
fn with_the_disk_full_in_the_middle_it_stops_and_the_next_run_completes_it() {
    if !is_root() {
        eprintln!("SKIPPED: only root can mount a small disk");
        return;
    }
    let (bundle, mut account) = Watched::enrolled();
    let (state, aside) = (bundle.root.join("state"), bundle.root.join("aside"));
    fs::rename(&state, &aside).expect("a move");
    fs::create_dir(&state).expect("a directory");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&state).status();
    assert!(mount.expect("mount").success());
    let disk = SmallDisk(state.clone());
    copy(&aside.join("."), &state);

    let fill = "cat /dev/zero >\"$bin/../../state/filler\" 2>/dev/null";
    let mut stopped = 0;
    for number in 1.. {
        let full = bundle.script_with("before", number, fill, "roll_forward", &["--yes"], "");
        fs::remove_file(state.join("filler"))
            .or_else(|cause| match cause.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(cause),
            })
            .expect("deletion");
        if full.code == Some(0) {
            break;
        }
        stopped += 1;
        // Before the intention could be recorded nothing was begun.
        let begun = bundle.known("default", &["pending", "uploads_done"]) != "null";
        full.expect(if begun { 4 } else { 1 }).saying("cannot be written: No space left on device");
        bundle.script("roll_forward", &["--yes"]).expect(0);
        assert!(!bundle.accepts(&account));
        account = bundle.enrol_anew();
    }
    assert!(stopped > 3, "{stopped}");
    drop(disk);
}

#[test]
fn keeping_the_secret_needs_a_code_and_issues_nothing() {
    let (bundle, account) = Watched::enrolled();
    // The volume is damaged: that is what it is for.
    delete_files(&bundle.volume("default"));
    let keep = |code: &str| {
        run_with_input(bundle.script_command("roll_forward", &["--yes", "--keep-secret", "--otp-file", "-"]), code)
    };
    bundle.script("roll_forward", &["--yes", "--keep-secret"]).expect(2).saying("--otp-file FILE");
    assert_eq!(bundle.known("default", &["pending"]), "null");
    let code = account.code_at(bundle.now());
    let wrong = if code == "000000" { "000001" } else { "000000" };
    keep(wrong).expect(5).saying("One-time Password is invalid");
    // Begun, it can neither be undone nor forgotten.
    let undo = bundle.script("roll_forward", &["--undo"]).expect(3).saying("the only way is forward");
    undo.saying("hint: ./scripts/roll_forward.rs --keep-secret\n");
    bundle.script("create", &[]).expect(3).saying("hint: ./scripts/roll_forward.rs --keep-secret\n");
    // Session 1 is still on the old volume: nobody gets a QR code without a code.
    bundle.gen_qr(&["--output", "stolen.svg"]).expect(5);
    keep(&code).expect(0);
    bundle.goes_on_with(&account);
    bundle.holds_no_picture();
}

#[test]
fn keeping_the_secret_killed_anywhere_is_completed_by_the_next_run() {
    let (bundle, account) = Watched::enrolled();
    let keep = ["--yes", "--keep-secret", "--otp-file", "-"];
    let code = || {
        bundle.wait(30);
        account.code_at(bundle.now())
    };
    bundle.kill_everywhere("roll_forward", &keep, code, |_, _| {
        if bundle.known("default", &["pending"]) != "null" {
            bundle.gen_qr(&["--output", "stolen.svg"]).expect(5);
        }
        run_with_input(bundle.script_command("roll_forward", &keep), &code()).expect(0);
        bundle.goes_on_with(&account);
        bundle.holds_no_picture();
    });
}

#[test]
fn keeping_the_secret_killed_anywhere_needs_no_code_if_the_secret_is_given_up() {
    let (bundle, account) = Watched::enrolled();
    let account = RefCell::new(account);
    let code = || {
        bundle.wait(30);
        account.borrow().code_at(bundle.now())
    };
    let mut given_up = 0;
    bundle.kill_everywhere("roll_forward", &["--yes", "--keep-secret", "--otp-file", "-"], code, |what, _| {
        if bundle.known("default", &["pending"]) != "null" {
            bundle.script("roll_forward", &["--yes"]).expect(0);
            assert!(!bundle.accepts(&account.borrow()), "{what}");
            // The marker that the volume begun may hold is in nobody's way.
            *account.borrow_mut() = bundle.enrol_anew();
            given_up += 1;
        }
        bundle.goes_on_with(&account.borrow());
        bundle.holds_no_picture();
    });
    assert!(given_up > 3, "{given_up}");
}

#[test]
fn giving_the_secret_up_after_all_killed_anywhere_is_completed_by_the_next_run() {
    let (bundle, mut account) = Watched::enrolled();
    // Each round: one that keeps the secret has switched session 2, and gets no code.
    let begin = || {
        let keep = ["--yes", "--keep-secret", "--otp-file", "-"];
        run_with_input(bundle.script_command("roll_forward", &keep), "").expect(2).saying("exactly six digits");
        assert_eq!(bundle.known("default", &["pending", "uploads_done"]), "2");
    };
    begin();
    bundle.kill_everywhere("roll_forward", &["--yes"], String::new, |what, _| {
        bundle.gen_qr(&["--output", "stolen.svg"]).expect(5);
        // Killed after its last upload it may be complete but for the word that it is.
        bundle.script("roll_forward", &["--undo"]).expect(3).saying("the only way is forward");
        bundle.script("roll_forward", &["--yes"]).expect(0);
        assert!(!bundle.accepts(&account), "{what}");
        account = bundle.enrol_anew();
        bundle.goes_on_with(&account);
        begin();
    });
}

#[test]
fn a_wiped_cas_is_filled_anew_only_when_told_and_only_when_it_is_wiped() {
    let (bundle, account) = Watched::enrolled();
    bundle.script("roll_forward", &["--yes", "--cas-wiped"]).expect(3).saying("CAS was not wiped");
    bundle.goes_on_with(&account);

    let key = bundle.known("default", &["cas", "key"]);
    bundle.wipe_cas();
    for (script, args) in [("gen_qr", &["--no-confirm"][..]), ("roll_forward", &["--yes"]), ("create", &[])] {
        bundle.script(script, args).expect(3).saying("is not the one");
    }
    bundle.script("roll_forward", &["--cas-wiped"]).expect(2).saying("--yes");
    bundle.script("roll_forward", &["--yes", "--cas-wiped"]).expect(0);
    assert_ne!(bundle.known("default", &["cas", "key"]), key);
    assert!(!bundle.accepts(&account));
    let new = bundle.enrol_anew();
    assert_eq!(new.login, "alice #2");
    bundle.goes_on_with(&new);
}

#[test]
fn filling_a_wiped_cas_anew_killed_anywhere_is_completed_by_itself_or_by_create() {
    let (bundle, _) = Watched::enrolled();
    bundle.wipe_cas();
    bundle.kill_everywhere("roll_forward", &["--yes", "--cas-wiped"], String::new, |what, uploads| {
        let again = bundle.script("roll_forward", &["--yes", "--cas-wiped"]);
        if again.code != Some(0) {
            assert!(uploads > 0, "{what}: {again:?}");
            again.expect(3).saying("CAS was not wiped").saying("hint: ./scripts/create.rs");
            bundle.script("create", &[]).expect(0);
        }
        bundle.enrol_anew();
        bundle.wipe_cas();
    });
}

#[test]
fn a_rebuilt_image_is_noticed_by_every_script_and_create_updates_the_policies() {
    let (bundle, account) = Watched::enrolled();
    // A roll-forward that was cut off has to be finished first, and can be: it starts no program.
    bundle.script_with("after", FIRST_UPLOAD - 1, KILL, "roll_forward", &["--yes"], "");
    assert_ne!(bundle.known("default", &["pending"]), "null");
    let measured = bundle.known("default", &["mrenclave"]);
    let rebuild = || {
        let mut program = fs::OpenOptions::new().append(true).open(bundle.bin.join("rootfs/bin/otpqr")).expect("otpqr");
        std::io::Write::write_all(&mut program, b"\0").expect("a byte more");
    };
    rebuild();
    bundle.gen_qr(&["--output", "new.svg"]).expect(3).saying("hint: ./scripts/create.rs");
    bundle.add_auth(&account.code_at(bundle.now()), &[]).expect(3).saying("hint: ./scripts/create.rs");
    bundle.script("create", &[]).expect(3).saying("hint: ./scripts/roll_forward.rs");
    let noticed = "it was rebuilt; afterwards: ./scripts/create.rs";
    let mut undo = bundle.script_command("roll_forward", &["--undo"]);
    undo.env("TMPDIR", "nowhere");
    run(undo).saying(noticed);
    bundle.script("roll_forward", &["--yes"]).expect(0).saying(noticed);
    bundle.script("roll_forward", &["--yes"]).expect(3).saying("hint: ./scripts/create.rs");
    bundle.script("roll_forward", &["--yes", "--cas-wiped"]).expect(3).saying(noticed);
    assert_eq!(bundle.known("default", &["pending"]), "null");

    bundle.script("create", &[]).expect(0).saying(&format!("the program changed: measurement '{measured}' becomes"));
    let account = bundle.enrol_anew();
    bundle.goes_on_with(&account);
    let rebuilt = bundle.known("default", &["mrenclave"]);
    assert_ne!(rebuilt, measured);
    // Secret and volume stay when it is rebuilt once more.
    rebuild();
    bundle.script("create", &[]).expect(0);
    assert_ne!(bundle.known("default", &["mrenclave"]), rebuilt);
    bundle.goes_on_with(&account);
}

#[test]
fn of_runs_at_once_on_one_account_none_corrupts_what_another_did() {
    let (bundle, mut account) = Watched::enrolled();
    for round in 0..4 {
        let scripts =
            [("create", &[][..]), ("roll_forward", &["--yes"]), ("roll_forward", &["--yes"]), ("create", &[])];
        let started = scripts.map(|(script, args)| {
            let mut command = bundle.script_command(script, args);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a start")
        });
        let ended = started.map(|child| child.wait_with_output().expect("an end"));
        for output in ended {
            let stderr = String::from_utf8(output.stderr).expect("UTF-8 output");
            let explained = ["was changed by another run", "was begun but not finished", "CAS did not accept session"];
            let understood = output.status.success() || explained.iter().any(|words| stderr.contains(words));
            assert!(understood, "round {round}: {:?}\n{stderr}", output.status.code());
        }
        // Whoever comes next finds something to go on with.
        if bundle.known("default", &["pending"]) != "null" {
            bundle.script("roll_forward", &["--yes"]).expect(0);
        }
        assert!(bundle.script("create", &[]).expect(0).stdout.starts_with("already created"));
        if bundle.accepts(&account) {
            bundle.goes_on_with(&account);
        } else {
            account = bundle.enrol_anew();
        }
    }
}

/// Whether a lock on this file is waited for, as the kernel tells: `1: -> FLOCK  ADVISORY  WRITE pid major:minor:inode 0 EOF`.
fn is_waited_for(lock: &fs::File) -> bool {
    let inode = format!(":{} ", lock.metadata().expect("the lock").ino());
    let locks = fs::read_to_string("/proc/locks").expect("the kernel's locks");
    locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&inode))
}

#[test]
fn while_another_run_writes_the_state_it_is_not_written_and_what_that_wrote_stays() {
    let (bundle, account) = Watched::enrolled();
    let state = bundle.state_file("default");
    let other = fs::File::open(state.with_extension("lock")).expect("the lock");
    other.lock().expect("the lock");
    let mut command = bundle.script_command("roll_forward", &["--yes"]);
    let mut script = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a start");
    while !is_waited_for(&other) {
        // Looks, and looks again; nothing depends on how often.
        assert!(script.try_wait().expect("a child").is_none(), "it did not wait for the other run");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let theirs = fs::read_to_string(&state).expect("the state") + "# another run's\n";
    fs::write(&state, &theirs).expect("the state");
    drop(other);
    let ended = script.wait_with_output().expect("an end");
    let stderr = String::from_utf8(ended.stderr).expect("UTF-8 output");
    assert_eq!(ended.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("was changed by another run"), "{stderr}");
    assert_eq!(fs::read_to_string(&state).expect("the state"), theirs);
    bundle.goes_on_with(&account);
}

/// A deed that runs scripts, which call the same stand-ins: it must not be done in the middle of itself. What it printed is in `beside`.
fn running(scripts: &str) -> String {
    let [begin, end] = [r#"mv "$bin/when" "$bin/then""#, r#"mv "$bin/then" "$bin/when""#];
    // Measuring is asked for in the environment: not of what is started here.
    let run = format!("cd \"$OTPQR_ROOT/scripts\"; unset SCONE_HASH; {scripts}");
    format!("{begin}; ({run}) </dev/null >\"$bin/beside\" 2>&1; {end}")
}

#[test]
fn a_roll_forward_that_stands_still_anywhere_holds_no_other_account_up() {
    let (bundle, account) = Watched::enrolled();
    bundle.enrol("other");
    let deed = running(
        "./roll_forward --yes --account other && ./gen_qr --account other --no-confirm --output ../theirs.svg && \
         rm ../theirs.svg && echo well",
    );
    for number in 1.. {
        fs::write(bundle.bin.join("beside"), "").expect("a file");
        bundle.script_with("after", number, &deed, "roll_forward", &["--yes"], "").expect(0);
        let beside = fs::read_to_string(bundle.bin.join("beside")).expect("what was done");
        if beside.is_empty() {
            assert!(number > 6, "there were {} calls only", number - 1);
            break;
        }
        assert!(beside.ends_with("\nwell\n"), "after call {number}: {beside}");
    }
    assert!(!bundle.accepts(&account));
    let account = bundle.enrol_anew();
    bundle.goes_on_with(&account);
}

#[test]
fn gen_qr_and_add_auth_in_the_middle_of_a_roll_forward_neither_stop_nor_spoil_it() {
    let (bundle, mut account) = Watched::enrolled();
    fs::remove_file(bundle.root.join("default.svg")).expect("deletion");
    for number in 1.. {
        bundle.wait(30);
        let code = account.code_at(bundle.now());
        let deed = running(&format!(
            "./gen_qr --no-confirm --output ../one.svg; echo \"ended: $?\"; \
             echo {code} | ./add_auth --no-confirm --otp-file - --output ../two.svg; echo \"ended: $?\""
        ));
        fs::write(bundle.bin.join("beside"), "").expect("a file");
        bundle.script_with("after", number, &deed, "roll_forward", &["--yes"], "").expect(0);
        let beside = fs::read_to_string(bundle.bin.join("beside")).expect("what was done");
        // What is issued meanwhile is issued against a code, as long as the old ones live, and is that code's secret.
        assert!(!bundle.root.join("one.svg").exists(), "after call {number}: {beside}");
        let uploads = bundle.calls().iter().take(number).filter(|call| call.starts_with("upload")).count();
        let issued = bundle.root.join("two.svg").exists();
        if !beside.is_empty() {
            let ended = |code: u8| beside.matches(&format!("ended: {code}\n")).count();
            let expected = if uploads < 2 { (true, 1, 1) } else { (false, 0, 2) };
            assert_eq!((issued, ended(0), ended(5)), expected, "after call {number}: {beside}");
        }
        if issued {
            assert_eq!(bundle.scan("two.svg").secret, account.secret, "after call {number}");
            fs::remove_file(bundle.root.join("two.svg")).expect("deletion");
        }
        assert!(!bundle.accepts(&account));
        // The clock stands still, and who else is logged in is not ours to decide.
        let report = bundle.script("doctor", &[]).text();
        let wrong =
            report.lines().find(|line| line.starts_with("wrong") && !line.contains("clock") && !line.contains("users"));
        assert_eq!(wrong, None, "after call {number}: {report}");
        account = bundle.enrol_anew();
        if beside.is_empty() {
            assert!(number > 6, "there were {} calls only", number - 1);
            break;
        }
    }
    bundle.goes_on_with(&account);
}

#[test]
fn with_docker_failing_in_the_middle_of_a_new_volume_it_stops_and_the_next_run_completes_it() {
    if !docker_is_there() {
        return;
    }
    let (bundle, account) = Watched::enrolled_on(Platform::Sim);
    let keep = ["--yes", "--keep-secret", "--otp-file", "-"];
    let code = || {
        bundle.wait(30);
        account.code_at(bundle.now())
    };
    bundle.script_with("before", 0, "", "roll_forward", &keep, &code()).expect(0);
    let calls = bundle.calls();
    let calls = calls.iter().enumerate().filter(|(_, call)| call.starts_with("docker ")).map(|(at, _)| at + 1);
    let calls: Vec<usize> = calls.collect();
    assert!(calls.len() >= 2, "{calls:?}");
    for number in calls {
        // Before: there is no answer from the engine. After: the program ran, and its end is not heard of.
        // (What fails before it is done counts as a call: only this one fails.)
        for (side, end) in [("before", "echo failed >>\"$bin/calls\"; exit 125"), ("after", "code=125")] {
            let failing = format!("echo 'docker: error during connect' >&2; touch \"$bin/failed\"; {end}");
            let ended = bundle.script_with(side, number, &failing, "roll_forward", &keep, &code());
            fs::remove_file(bundle.bin.join("failed")).expect("it failed");
            if ended.code != Some(0) {
                let begun = bundle.known("default", &["pending"]) != "null";
                ended.expect(if begun { 4 } else { 3 });
                bundle.gen_qr(&["--output", "stolen.svg"]).expect(5);
                run_with_input(bundle.script_command("roll_forward", &keep), &code()).expect(0);
            }
            bundle.goes_on_with(&account);
            bundle.holds_no_picture();
        }
    }
}
