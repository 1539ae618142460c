//! A bundle in which every call of a tool is recorded, and in which a test can act before or after any of them.

use std::fs;
use std::path::PathBuf;

use super::{Bundle, Outcome, Platform, User, phone, run, run_with_input};

/// Wraps `scone`, `scone-run` and `docker`: records each call, and runs a deed before or after the call that the test names, or
/// at one of a run's moments. Between two moments something changes: the state, or by a call CAS, its pin or a volume. Wherever
/// in between a run is killed, it leaves the same.
const WATCHED: &str = r#"#!/bin/sh
bin=${0%/*} name=${0##*/}
last=; for last; do :; done
case "$1 $2" in
  'session create') what="upload $(sed -n 's/^name: "\(.*\)"$/\1/p' "$last")" ;;
  *) what="$name $*" ;;
esac
count() { lines=0; while read -r _; do lines=$((lines + 1)); done <"$1"; }
deed() {
  when=
  [ ! -f "$bin/when" ] || read -r when <"$bin/when"
  [ "$when" != "$1" ] || . "$bin/deed"
}
moment() { echo >>"$bin/moments" && count "$bin/moments" && deed "moment $lines"; }
count "$bin/calls"
number=$((lines + 1)) before=
[ ! -f "$bin/state" ] || read -r before <"$bin/state"
state=$(cksum "$bin/../../state/default.yml" 2>&1)
if [ "$before" != "$state" ]; then
  echo "$state" >"$bin/state" && moment
fi
deed "before $number"
printf '%s\n' "$what" >>"$bin/calls"
"$bin/genuine/$name" "$@"
code=$?
deed "after $number"
case "${SCONE_CONFIG_ID+native} $what" in
  native* | *' /environment '* | ' upload'* | ' scone cas attest'*) moment ;;
esac
exit $code
"#;

/// As `strace` has them.
pub const RENAME: &str = "rename,renameat,renameat2";

pub const KILL: &str = "kill -9 $PPID; exit 1";

/// A bundle in which every call of a tool is recorded.
pub struct Watched {
    pub bundle: Bundle,
    pub bin: PathBuf,
}

impl std::ops::Deref for Watched {
    type Target = Bundle;

    fn deref(&self) -> &Bundle {
        &self.bundle
    }
}

impl Watched {
    /// With the account `default`, enrolled. (A test hands in `scripts!()`.)
    pub fn enrolled(platform: Platform, scripts: &[(&str, &str)]) -> (Watched, phone::Account) {
        let bundle = Bundle::of_test(platform, User::Caller);
        bundle.install(scripts);
        let account = bundle.enrol("default");
        let bin = bundle.root.join("simulator/bin");
        bundle.wrap_tools(WATCHED);
        (Watched { bundle, bin }, account)
    }

    /// Runs a script; before or after the call of this number, or at this moment, `deed` is done.
    pub fn script_with(
        &self,
        side: &str,
        number: usize,
        deed: &str,
        script: &str,
        args: &[&str],
        input: &str,
    ) -> Outcome {
        for list in ["calls", "moments", "state"] {
            fs::write(self.bin.join(list), "").expect("a list");
        }
        fs::write(self.bin.join("deed"), deed).expect("a deed");
        fs::write(self.bin.join("when"), format!("{side} {number}")).expect("a time");
        let outcome = run_with_input(self.script_command(script, args), input);
        fs::remove_file(self.bin.join("when")).expect("deletion");
        self.all_ended("default");
        outcome
    }

    pub fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.bin.join("calls")).expect("the list");
        calls.lines().map(str::to_owned).collect()
    }

    /// Kills a script at each of its moments in turn, and each time does `then`, told how many uploads came to be. Each time the
    /// script runs on what `then` left.
    pub fn kill_everywhere(
        &self,
        script: &str,
        args: &[&str],
        input: impl Fn() -> String,
        mut then: impl FnMut(&str, usize),
    ) {
        for number in 1.. {
            let outcome = self.script_with("moment", number, KILL, script, args, &input());
            if outcome.code == Some(0) {
                // There is no such moment any more.
                assert!(number > 3, "{script} {args:?} has {} moments only", number - 1);
                return;
            }
            assert_eq!(outcome.code, None, "not killed at moment {number}: {outcome:?}");
            let uploads = self.calls().iter().filter(|call| call.starts_with("upload")).count();
            then(&format!("{script} {args:?} killed at moment {number}, {:?}", self.calls().last()), uploads);
        }
    }

    /// Kills a script at each of these calls of the kernel in turn, and each time does `then`, told whether it had ended before;
    /// on what `then` left it runs again. Returns how often it was killed.
    pub fn kill_at_each(
        &self,
        calls: &str,
        script: &str,
        args: &[&str],
        input: impl Fn() -> String,
        mut then: impl FnMut(bool),
    ) -> usize {
        for number in 1.. {
            let mut strace = self.command("strace");
            strace.args(["-qq", "-o", "/dev/null", "-e", &format!("inject={calls}:signal=SIGKILL:when={number}")]);
            strace.arg(self.root.join("scripts").join(script)).args(args);
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

    /// Whether CAS accepts a code of this entry, tried with a service that has no volume. That spends the code, so time passes.
    pub fn accepts(&self, account: &phone::Account) -> bool {
        self.wait(30);
        let code = account.code_at(self.now());
        let confirm = format!("{}/otpqr-reset/confirm@{code}", self.known("default", &["namespace"]));
        let outcome = run(self.by_hand(&confirm, &Default::default()));
        assert!(outcome.code == Some(0) || outcome.stderr.contains("One-time Password is invalid"), "{outcome:?}");
        outcome.code == Some(0)
    }

    /// Has the new secret's QR code issued and scans it.
    pub fn enrol_anew(&self) -> phone::Account {
        self.gen_qr(&["--output", "new.svg"]).expect(0);
        let account = self.scan("new.svg");
        fs::remove_file(self.root.join("new.svg")).expect("deletion");
        account
    }

    /// Asserts that the QR code of a new volume's first start, for which nobody asked, is left nowhere.
    #[track_caller]
    pub fn holds_no_picture(&self) {
        for path in self.written().into_keys() {
            assert!(!path.to_string_lossy().contains("svg"), "'{}' was left", path.display());
        }
    }

    /// Asserts that the account is as it was: its QR code not issued again, its codes good.
    #[track_caller]
    pub fn goes_on_with(&self, account: &phone::Account) {
        assert_eq!(self.known("default", &["pending"]), "null");
        self.gen_qr(&["--output", "stolen.svg"]).expect(5).saying("issued already");
        self.wait(30);
        self.add_auth(&account.code_at(self.now()), &["--output", "again.svg"]).expect(0);
        assert_eq!(self.scan("again.svg").secret, account.secret);
        fs::remove_file(self.root.join("again.svg")).expect("deletion");
    }
}

/// A deed that runs scripts. They call the wrapped tools, too, where the deed must not run again. What it prints goes to `beside`.
pub fn running(scripts: &str) -> String {
    let [begin, end] = [r#"mv "$bin/when" "$bin/then""#, r#"mv "$bin/then" "$bin/when""#];
    // The caller asked for a measurement in the environment, which the scripts started here must not inherit.
    let run = format!("cd \"$OTPQR_ROOT/scripts\"; unset SCONE_HASH; {scripts}");
    format!("{begin}; ({run}) </dev/null >\"$bin/beside\" 2>&1; {end}")
}
