//! A roll-forward that is interrupted: killed wherever it makes a difference, with CAS down, with the disk full, beside
//! another run. Whatever happened, a later run completes it, undoes it while the old codes are valid, or says what to do.

use std::cell::RefCell;
use std::fs;

use crate::support::attacker::delete_files;
use crate::support::watched::{KILL, RENAME, Watched, running};
use crate::support::{Platform, SmallDisk, docker_is_there, is_root, phone, run, run_with_input, strace_is_there};

/// The number of the call that is a roll-forward's first upload.
const FIRST_UPLOAD: usize = 9;

fn enrolled() -> (Watched, phone::Account) {
    Watched::enrolled(Platform::SimNative, scripts!())
}

/// A roll-forward that is killed once CAS took its first upload.
fn begin_roll_forward(bundle: &Watched) {
    bundle.script_with("after", FIRST_UPLOAD, KILL, "roll_forward", &["--yes"], "");
    assert!(bundle.calls().last().is_some_and(|call| call.starts_with("upload")), "{:?}", bundle.calls());
}

#[test]
fn killed_anywhere_it_is_completed_by_the_next_run_and_the_old_codes_die_at_the_second_upload() {
    let (bundle, mut account) = enrolled();
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
    let (bundle, mut account) = enrolled();
    let mut killed = 0;
    for calls in ["fsync", RENAME, "unlink,unlinkat"] {
        killed += bundle.kill_at_each(calls, "roll_forward", &["--yes"], String::new, |ended| {
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

/// The other kinds record in the same way, so only what they record, and when, matters here.
#[test]
fn killed_while_they_record_how_far_they_got_the_other_kinds_are_completed_by_the_next_run() {
    if !strace_is_there() {
        return;
    }
    let (bundle, account) = enrolled();
    let keep = ["--yes", "--keep-secret", "--otp-file", "-"];
    let code = || {
        bundle.wait(30);
        account.code_at(bundle.now())
    };
    let killed = bundle.kill_at_each(RENAME, "roll_forward", &keep, code, |ended| {
        if !ended {
            bundle.gen_qr(&["--output", "stolen.svg"]).expect(5);
            run_with_input(bundle.script_command("roll_forward", &keep), &code()).expect(0);
        }
        bundle.goes_on_with(&account);
        bundle.holds_no_picture();
    });
    // The intention, three uploads, the end.
    assert!(killed >= 5, "{killed}");

    let begin = || begin_roll_forward(&bundle);
    begin();
    let killed = bundle.kill_at_each(RENAME, "roll_forward", &["--undo"], String::new, |ended| {
        if !ended {
            bundle.script("roll_forward", &["--undo"]).expect(0);
        }
        assert_eq!(bundle.known("default", &["pending"]), "null");
        assert!(bundle.accepts(&account));
        begin();
    });
    // The first upload, the change of direction, the end.
    assert!(killed >= 3, "{killed}");
    bundle.script("roll_forward", &["--undo"]).expect(0);
    bundle.goes_on_with(&account);

    bundle.wipe_cas();
    let killed = bundle.kill_at_each(RENAME, "roll_forward", &["--yes", "--cas-wiped"], String::new, |ended| {
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
    let (bundle, mut account) = enrolled();
    bundle.kill_everywhere("roll_forward", &["--yes"], String::new, |what, uploads| {
        if uploads < 2 {
            bundle.script("roll_forward", &["--undo"]).expect(0);
            bundle.goes_on_with(&account);
            // Once more changes nothing.
            let again = bundle.script("roll_forward", &["--undo"]).expect(0);
            assert!(again.stdout.starts_with("nothing to undo"), "{what}: {}", again.stdout);
        } else if bundle.known("default", &["pending"]) != "null" {
            bundle.script("roll_forward", &["--undo"]).expect(3).saying("the roll-forward can only be completed");
            assert!(!bundle.accepts(&account), "{what}");
            bundle.script("roll_forward", &["--yes"]).expect(0);
            account = bundle.enrol_anew();
            bundle.goes_on_with(&account);
        }
    });
}

#[test]
fn an_undo_killed_anywhere_is_completed_by_the_next_run_whatever_it_is_asked_for() {
    let (bundle, account) = enrolled();
    // Each round: a roll-forward that is killed once CAS took its first upload.
    let begin = || begin_roll_forward(&bundle);
    begin();
    let mut round = 0;
    bundle.kill_everywhere("roll_forward", &["--undo"], String::new, |what, _| {
        round += 1;
        // An undo that has begun goes on as an undo, and a roll-forward as a roll-forward, so the rounds alternate.
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
    let (bundle, mut account) = enrolled();
    let clock = bundle.root.join("clock").display().to_string();
    for number in 1.. {
        let down = bundle.script_with("before", number, "\"$bin/scone-sim\" down >&2", "roll_forward", &["--yes"], "");
        if down.code == Some(0) {
            assert!(number > 6, "there were {} calls only", number - 1);
            return;
        }
        // Unfinished means that the intention is recorded.
        let part_way = bundle.known("default", &["pending", "uploads_done"]) != "null";
        let down = down.expect(if part_way { 4 } else { 3 });
        assert!(down.stderr.contains("roll_forward: error: "), "{}", down.stderr);
        bundle.scone_sim(["up", "--clock", &clock]).expect(0);
        bundle.script("roll_forward", &["--yes"]).expect(0);
        assert!(!bundle.accepts(&account));
        account = bundle.enrol_anew();
    }
}

#[test]
fn with_the_disk_full_in_the_middle_it_stops_and_the_next_run_completes_it() {
    if !is_root() {
        eprintln!("SKIPPED: only root can mount a small disk");
        return;
    }
    let (bundle, mut account) = enrolled();
    let state = bundle.root.join("state");
    let disk = SmallDisk::below(&state);

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
        full.expect(if begun { 4 } else { 3 }).saying("cannot be written: No space left on device");
        bundle.script("roll_forward", &["--yes"]).expect(0);
        assert!(!bundle.accepts(&account));
        account = bundle.enrol_anew();
    }
    assert!(stopped > 3, "{stopped}");
    drop(disk);
}

#[test]
fn keeping_the_secret_needs_a_code_and_issues_nothing() {
    let (bundle, account) = enrolled();
    // The volume is damaged, which is what a roll-forward is for.
    delete_files(&bundle.volume("default"));
    let keep = |code: &str| {
        run_with_input(bundle.script_command("roll_forward", &["--yes", "--keep-secret", "--otp-file", "-"]), code)
    };
    bundle.script("roll_forward", &["--yes", "--keep-secret"]).expect(2).saying("--otp-file FILE");
    assert_eq!(bundle.known("default", &["pending"]), "null");
    let code = account.code_at(bundle.now());
    let wrong = if code == "000000" { "000001" } else { "000000" };
    keep(wrong).expect(5).saying("One-time Password is invalid");
    // Once begun, it can neither be undone nor dropped.
    let undo = bundle.script("roll_forward", &["--undo"]).expect(3).saying("the roll-forward can only be completed");
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
    let (bundle, account) = enrolled();
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
    let (bundle, account) = enrolled();
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
            // The new volume may hold a marker; it does not get in the way.
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
    let (bundle, mut account) = enrolled();
    // Each round: one that keeps the secret has switched session 2, and gets no code.
    let begin = || {
        let keep = ["--yes", "--keep-secret", "--otp-file", "-"];
        run_with_input(bundle.script_command("roll_forward", &keep), "").expect(2).saying("exactly six digits");
        assert_eq!(bundle.known("default", &["pending", "uploads_done"]), "2");
    };
    begin();
    bundle.kill_everywhere("roll_forward", &["--yes"], String::new, |what, _| {
        bundle.gen_qr(&["--output", "stolen.svg"]).expect(5);
        // Killed after its last upload, it may be complete except for the record of that.
        bundle.script("roll_forward", &["--undo"]).expect(3).saying("the roll-forward can only be completed");
        bundle.script("roll_forward", &["--yes"]).expect(0);
        assert!(!bundle.accepts(&account), "{what}");
        account = bundle.enrol_anew();
        bundle.goes_on_with(&account);
        begin();
    });
}

/// Issued by a run that was killed before it could deliver it.
#[test]
fn a_qr_code_that_waits_is_destroyed_with_the_secret_or_the_volume_that_is_given_up() {
    let (bundle, account) = enrolled();
    let roll_forward = |args: &[&str], input: &str| {
        run_with_input(bundle.script_command("roll_forward", args), input).expect(0).saying("is not needed: destroyed");
        bundle.holds_no_picture();
        assert_eq!(fs::read_dir(bundle.root.join("state/issuing")).expect("a directory").count(), 0);
    };
    let next_code = |account: &phone::Account| {
        bundle.wait(30);
        account.code_at(bundle.now())
    };
    let cut_off = |script: &str, args: &[&str], input: &str| {
        for number in 1.. {
            let killed = bundle.script_with("moment", number, KILL, script, args, input);
            assert_eq!(killed.code, None, "{killed:?}");
            if bundle.written().into_keys().any(|path| path.ends_with("qrcode.svg")) {
                return;
            }
        }
    };
    let add_auth = ["--no-confirm", "--otp-file", "-", "--output", "lost.svg"];
    cut_off("add_auth", &add_auth, &next_code(&account));
    roll_forward(&["--yes", "--keep-secret", "--otp-file", "-"], &next_code(&account));
    bundle.goes_on_with(&account);
    cut_off("add_auth", &add_auth, &next_code(&account));
    roll_forward(&["--yes"], "");
    cut_off("gen_qr", &["--no-confirm", "--output", "lost.svg"], "");
    roll_forward(&["--yes"], "");
    let account = bundle.enrol_anew();
    cut_off("add_auth", &add_auth, &next_code(&account));
    bundle.wipe_cas();
    roll_forward(&["--yes", "--cas-wiped"], "");
    bundle.enrol_anew();
}

#[test]
fn a_wiped_cas_is_filled_anew_only_when_told_and_only_when_it_is_wiped() {
    let (bundle, account) = enrolled();
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
    let (bundle, _) = enrolled();
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
    let (bundle, account) = enrolled();
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
fn a_roll_forward_that_stands_still_anywhere_holds_no_other_account_up() {
    let (bundle, account) = enrolled();
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
fn with_docker_failing_in_the_middle_of_a_new_volume_it_stops_and_the_next_run_completes_it() {
    if !docker_is_there() {
        return;
    }
    let (bundle, account) = Watched::enrolled(Platform::Sim, scripts!());
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
        // Before: the engine does not answer. After: the program ran, but the script does not learn how it ended.
        // (A call that fails is counted, too, so only this one fails.)
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
