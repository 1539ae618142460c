//! The contract with SCONE and docker, as a table (contract.yml). Its answers are those of the stand-ins, and each is played to the
//! script that it meets; the simulator, brought into the same situation, says the same, and the script ends the same.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use regex::Regex;
use serde::Deserialize;

use super::programs::{CODE, DISPENSED};
use super::*;
use crate::support::{Bundle, ByHand, Platform, User};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    frame: String,
    after_frame: String,
    rows: Vec<Row>,
    spellings: Vec<Spelled>,
}

/// One answer, and what becomes of it.
#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Row {
    id: String,
    source: String,
    tag: Tag,
    /// The call that is answered.
    asked: String,
    #[serde(default)]
    exits: i32,
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    stderr: String,
    /// In the frame of SCONE's runtime, in the place of `stderr`.
    #[serde(default)]
    causes: Vec<String>,
    /// After these words the call is answered as usual.
    #[serde(default)]
    goes_on: bool,
    script: String,
    #[serde(default)]
    code: i32,
    #[serde(default)]
    says: String,
    /// What the script advises, on SCONE: all of it.
    #[serde(default)]
    hints: Vec<String>,
    simulator: Option<String>,
}

#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Tag {
    Documented,
    /// In published code, or here.
    Seen,
    Inferred,
}

impl Contract {
    pub fn read() -> Contract {
        let mut contract: Contract = serde_yaml::from_str(include_str!("contract.yml")).expect("contract.yml");
        for row in &mut contract.rows {
            if !row.causes.is_empty() {
                let causes = row.causes.iter().map(|cause| {
                    let text = cause.trim_start_matches(' ');
                    let label = if text.starts_with("Error ") { "" } else { "Caused by: " };
                    format!("  {}{label}{text}\n", &cause[..cause.len() - text.len()])
                });
                row.stderr = contract.frame.replace("<CAUSES>\n", &causes.collect::<String>());
            }
            for text in [&mut row.stdout, &mut row.stderr] {
                if !text.is_empty() && !text.ends_with('\n') {
                    text.push('\n');
                }
            }
        }
        contract
    }

    /// Writes each answer down for the stand-ins, which give it as `answer ID`.
    pub fn write(&self, directory: &Path) {
        fs::create_dir(directory).unwrap();
        for row in &self.rows {
            fs::write(directory.join(format!("{}.out", row.id)), &row.stdout).unwrap();
            fs::write(directory.join(format!("{}.err", row.id)), &row.stderr).unwrap();
            fs::write(directory.join(format!("{}.exits", row.id)), row.exits.to_string()).unwrap();
        }
    }
}

impl Row {
    fn tool(&self) -> &str {
        if self.asked.starts_with("scone ") { "scone" } else { "docker" }
    }

    /// For the stand-ins: the call is answered so.
    fn answering(&self) -> String {
        let answer = if self.goes_on {
            format!("cat \"$here/rows/{}.err\" >&2", self.id)
        } else if self.exits < 0 {
            format!("kill {} $$", self.exits)
        } else {
            format!("answer {}; exit", self.id)
        };
        // What CAS took is held before it is said.
        if self.asked == "scone session create" && self.exits == 0 {
            return format!("before_answer() {{ {answer}; }}");
        }
        let is_asked = match self.asked.split_once(' ') {
            None => "case \" $* \" in *' -e=SCONE_HASH '*) ;; *) false ;; esac".to_owned(),
            Some(("start", service)) => {
                format!("case \"$1 $SCONE_CONFIG_ID@\" in 'run '*'/{service}@'*) ;; *) false ;; esac")
            }
            Some(("docker", what)) => {
                format!("case \" $* \" in ' {}'*) ;; *) false ;; esac", what.replace(' ', " '*' "))
            }
            Some((_, what)) => format!("[ \"$1 $2\" = '{what} ' ] || [ \"$1 $2\" = '{what}' ]"),
        };
        format!("if {is_asked}; then {answer}; fi")
    }

    /// The same answer to a start with a code, which SCONE itself prints: it ends the same.
    fn with_code(&self) -> Option<Row> {
        let is_refused = self.asked == "start otpqr/otpqr" && self.code != 0;
        let (asked, script) = ("start otpqr-reset/otpqr", "add_auth --no-confirm --otp-file -");
        // To try once more is to run the same script.
        let hints = self.hints.iter().map(|hint| hint.replace("gen_qr.rs", "add_auth.rs")).collect();
        is_refused.then(|| Row { asked: asked.to_owned(), script: script.to_owned(), hints, ..self.clone() })
    }

    /// The script's arguments, with its name.
    fn words(&self) -> (&str, Vec<&str>) {
        let mut words = self.script.split(' ');
        (words.next().expect("a script"), words.collect())
    }

    /// What the stand-ins' host has.
    fn host(&self) -> &'static str {
        let options = [("--cas", "nothing"), ("--image", "an image")];
        options.iter().find(|(option, _)| self.script.contains(option)).map_or("an account", |(_, has)| *has)
    }

    /// What is wrong with how the script ended and what it said.
    fn complaint(&self, outcome: &Outcome, by: &str) -> Option<String> {
        let found = varying(&outcome.text(), "");
        let script = self.words().0;
        let error = format!("{script}: error: ");
        let said = found.lines().find_map(|line| line.strip_prefix(&error)).unwrap_or_default();
        let is_said = if said.is_empty() { found.contains(&self.says) } else { said == self.says };
        // SCONE prints the code, and what becomes of the enclave.
        let is_quiet = ![CODE, "Aborted"].iter().any(|word| outcome.text().contains(word));
        let hints: Vec<&str> = found.lines().filter_map(|line| line.strip_prefix("hint: ")).collect();
        let is_hinted = by == "simulator" || self.hints == hints;
        let is_right = is_said && is_quiet && is_hinted && outcome.code == Some(self.code);
        (!is_right).then(|| format!("{} ({by}) ends with {:?}, saying: {said}\n{found}", self.id, outcome.code))
    }
}

/// Gives names to what these patterns find.
fn named(text: String, patterns: &[(&str, &str)]) -> String {
    patterns.iter().fold(text, |text, (pattern, name)| {
        Regex::new(pattern).expect("a pattern").replace_all(&text, *name).into_owned()
    })
}

/// What varies, named. `root`: of a bundle.
fn varying(text: &str, root: &str) -> String {
    let patterns = [
        (r"https://(cas\.example\.com|127\.0\.0\.1):[0-9]+/", "<URL>"),
        (r"(cas\.example\.com|127\.0\.0\.1):?[0-9]* \(port [0-9]+\)", "<ENCLAVE>"),
        (r"cas\.example\.com|127\.0\.0\.1:[0-9]+", "<CAS>"),
        // What the simulator's audit log adds.
        (r" \(last spent at [^)]*\)", ""),
        (r"service ID [^\n]+", "service ID <ID>"),
        (r"\b[0-9a-f]{64}", "<HASH>"),
        (r"'?/tmp/otpqr-\w+/it'\\''s a .bundle., really/scripts/(\w+\.rs)'?", "$1"),
        (r"/tmp/otpqr-\w+/it'\\''s a .bundle., really", "<ROOT>"),
        (r"otpqr-[a-z0-9]{16,}", "<NAMESPACE>"),
        (r"template file '[^']+'", "template file '<FILE>'"),
        (r"Version of attested CAS: .*", "Version of attested CAS: <VERSION>"),
        (r"\b2nTWZuJb\w+", "<HASH>"),
        (r"\b[0-9a-f]{32}\.manifest", "<BLOB>"),
        (r"volume /root/single_run", "volume <VOLUME>"),
    ];
    named(if root.is_empty() { text.to_owned() } else { text.replace(root, "<ROOT>") }, &patterns)
}

/// Looks at all rows, a few at a time, and reports all that is wrong.
fn each(rows: &[&Row], complaint: impl Fn(&Row) -> Option<String> + Sync) {
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    wrong.lock().unwrap().extend(complaint(row));
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_documented_answer_ends_a_script_as_the_contract_says() {
    let contract = Contract::read();
    // A host that is as it was serves the next one, too.
    let hosts = Mutex::new(Vec::new());
    let played = |row: &Row, stderr: &str| {
        let (script, args) = row.words();
        let is_again = |(with, _): &(&str, Host)| *with == row.host();
        let known = {
            let mut hosts = hosts.lock().unwrap();
            hosts.iter().position(is_again).map(|at| hosts.swap_remove(at).1)
        };
        let host = known.unwrap_or_else(|| match row.host() {
            "nothing" => Host::new(),
            "an image" => Host::with_image(),
            _ => Host::with_account(),
        });
        fs::write(host.home.path().join(format!("rows/{}.err", row.id)), stderr).unwrap();
        let engine = fs::read_to_string(host.home.path().join("instead-of-docker")).unwrap_or_default();
        let before = if row.tool() == "docker" { engine.as_str() } else { "" };
        host.instead_of(row.tool(), &format!("{}\n{before}", row.answering()));
        let state = fs::read(host.state_file()).ok();
        let outcome = run_with_input(host.command(script, &args), CODE);
        let complaint = row.complaint(&outcome, "stand-ins");
        if row.code != 0 && complaint.is_none() {
            host.has_clean_desk();
            if row.asked == "measure" {
                host.is_untouched();
            }
            if fs::read(host.state_file()).ok() == state {
                host.instead_of("scone", "");
                host.instead_of("docker", &engine);
                hosts.lock().unwrap().push((row.host(), host));
            }
        }
        complaint
    };
    each(&contract.rows.iter().collect::<Vec<_>>(), |row| {
        let after = || played(row, &format!("{}{}", row.stderr, contract.after_frame));
        let with_code = || row.with_code().and_then(|row| played(&row, &row.stderr));
        played(row, &row.stderr).or_else(|| if row.causes.is_empty() { None } else { after() }).or_else(with_code)
    });
    let count = |tag| contract.rows.iter().filter(|row| row.tag == tag).count();
    let both = contract.rows.iter().filter(|row| row.simulator.is_some()).count();
    let (documented, seen, inferred) = (count(Tag::Documented), count(Tag::Seen), count(Tag::Inferred));
    let counts = format!(
        "{} answers, {documented} of them documented, {seen} seen in published code or here, and {inferred} inferred; {both} are the simulator's, too",
        contract.rows.len()
    );
    println!("contract: {counts}");
    let page = fs::read_to_string(repository().join("docs/on-scone.md")).unwrap().replace('\n', " ");
    assert!(page.contains(&counts), "docs/on-scone.md does not say: {counts}");
    // Each says where it is from, and each tag is borne out by it.
    for row in &contract.rows {
        let letters: String =
            row.source.split('[').filter_map(|part| part.split_once(']')).map(|(letters, _)| letters).collect();
        let tag = match () {
            () if letters.contains(['D', 'H']) => Tag::Documented,
            () if letters.contains('C') => Tag::Seen,
            () => Tag::Inferred,
        };
        assert_eq!(row.tag, tag, "{}: {}", row.id, row.source);
    }
}

/// In the place of the simulator's tools: the call that a row is about is made in its situation, and what is said is kept.
const WRAPPER: &str = r#"#!/bin/sh
bin=${0%/*} tool=${0##*/}
scone=$bin/genuine/scone
for last; do :; done
call="$tool $1 $2"
[ "$tool $1" != "scone --version" ] || call="$tool $1"
[ -z "${SCONE_HASH+set}" ] || call=measure
case "$tool ${SCONE_CONFIG_ID-}" in
  'scone-run '*/*/*) service=${SCONE_CONFIG_ID#*/}; call="start ${service%@*}" ;;
esac
[ "$call" = "$(cat "$bin/asked")" ] || exec "$bin/genuine/$tool" "$@"
namespace=${SCONE_CONFIG_ID%%/*} tmp=$bin/../../tmp older=$bin/../../older volume=$bin/../../state/volumes/default/single_run_1
another_version() {
  sed 's/CREATOR/ANY/' "$last" >"$tmp/another.yml"
  "$scone" session "$1" "$tmp/another.yml" >/dev/null
}
somebody_else() {
  said() { "$bin/scone-sim" status | sed -n "s/^$1: //p"; }
  "$scone" --config "$tmp/somebody.json" cas attest "$(said client)" -c "$(said key)" >/dev/null 2>&1
  export SCONE_CLI_CONFIG=$tmp/somebody.json
}
. "$bin/deed"
"$bin/genuine/$tool" "$@" >"$bin/said.out" 2>"$bin/said.err"
code=$?
echo $code >"$bin/said.exits"
cat "$bin/said.out"
cat "$bin/said.err" >&2
exit $code
"#;

#[test]
fn the_simulator_says_what_the_contract_says_and_the_scripts_end_the_same() {
    let contract = Contract::read();
    let rows: Vec<&Row> = contract.rows.iter().filter(|row| row.simulator.is_some()).collect();
    each(&rows, |row| {
        let bundle = Bundle::of_test(Platform::SimNative, User::Caller);
        bundle.install(scripts!());
        let bin = bundle.root.join("simulator/bin");
        let (script, mut args) = row.words();
        let mut code = CODE.to_owned();
        if let Some(at) = args.iter().position(|arg| *arg == "--cas") {
            args.splice(at..at + 2, ["--platform", "sim-native"]);
        } else {
            bundle.script("create", &["--platform", "sim-native"]).expect(0);
        }
        if script == "add_auth" {
            // A volume that was changed since a copy was made.
            let config_id = format!("{}/otpqr/check", bundle.known("default", &["namespace"]));
            run(bundle.by_hand(&config_id, &ByHand::default())).expect(0);
            copy(&bundle.volume("default"), &bundle.root.join("older"));
            bundle.gen_qr(&["--output", "first.svg"]).expect(0);
            code = bundle.scan("first.svg").code_at(bundle.now());
            let wrong = if code == "000000" { "000001" } else { "000000" };
            fs::write(bin.join("wrong"), wrong).unwrap();
        }
        bundle.wrap_tools(WRAPPER);
        fs::write(bin.join("asked"), &row.asked).unwrap();
        fs::write(bin.join("deed"), format!("{}\n", row.simulator.as_deref().unwrap_or_default())).unwrap();
        let args = [&args[..], if script == "gen_qr" { &["--output", "new.svg"][..] } else { &[] }].concat();
        let outcome = run_with_input(bundle.script_command(script, &args), &code);

        let root = bundle.root.display().to_string();
        let said = |what: &str| fs::read_to_string(bin.join(format!("said.{what}"))).unwrap_or_default();
        let own = "software only";
        let without_own = |text: String| {
            let lines = text.lines().filter(|line| !line.contains(own)).map(|line| format!("{line}\n"));
            varying(&lines.collect::<String>(), &root)
        };
        let found = (said("exits").trim().to_owned(), without_own(said("out")), without_own(said("err")));
        // The simulator's keys are hashes in hexadecimal.
        let expected = (row.exits.to_string(), row.stdout.replace("<KEY>", "<HASH>"), row.stderr.clone());
        let differs =
            || format!("{}: the simulator says\n{found:?}, the contract\n{expected:?}\n{}", row.id, outcome.stderr);
        if found == expected { row.complaint(&outcome, "simulator") } else { Some(differs()) }
    });
}

/// All that `scone` and `docker` are asked for in an account's life, script by script (vectors.txt).
#[test]
fn every_argument_vector_is_pinned() {
    let host = Host::with_image();
    fs::remove_dir_all(host.root().join("state")).unwrap();
    for session in host.names(&host.home.path().join("cas")) {
        fs::remove_file(host.home.path().join("cas").join(session)).unwrap();
    }
    host.with_gate();
    let mut found = "# Written by tests/scone_platform/contract.rs. SCONE_CONFIG_ID is what a program's entry is told through the FIFO.\n".to_owned();
    for line in [
        "create --cas cas.example.com -CS --mrenclave MEASUREMENT",
        "create --tolerate hyperthreading",
        "gen_qr --no-confirm",
        "add_auth --no-confirm --otp-file - --output second.svg",
        "roll_forward --yes",
        "doctor",
        "protect web --image web:1 --command 'python3 /app/web.py @@1' --signing-key ../key.pem --fs-dir /app --mount-point /in",
        "start web --otp-file - --mount type=bind,src=/tmp,dst=/in -- argument",
        "create --account bob --cas cas.example.com -CS --mrenclave MEASUREMENT",
        "protect web --starts 2 --needs-approval bob",
        "approve web --account bob --starts 1 --for 10m --otp-file -",
        "start web --otp-file - -- argument",
        "protect web --remove --yes",
        "create --tolerate debug-mode --network scone --programs-cas cas",
        "gen_qr --no-confirm --output third.svg",
    ] {
        let words = shell_words::split(&line.replace("MEASUREMENT", MEASUREMENT)).expect("words");
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let script = words[0];
        host.forget();
        let command = host.command(script, &words[1..]);
        let outcome = run_with_input(command, CODE);
        assert!(outcome.code == Some(0) || script == "doctor", "{line}: {outcome:?}");
        found += &format!("\n## {}\n", line.replace("MEASUREMENT", "<HASH>"));
        let calls = host.calls();
        // What is started while something else still runs has no order.
        let together = calls.chunk_by(|one, next| one.what() == "docker run" && next.what() == "docker run");
        for calls in together {
            let mut vectors: Vec<String> = calls.iter().map(|call| in_general(&host, call)).collect();
            vectors.sort();
            vectors.dedup();
            found += &vectors.concat();
        }
    }
    let path = repository().join("tests/scone_platform/vectors.txt");
    if fs::read_to_string(&path).unwrap_or_default() != found {
        let as_found = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vectors.txt");
        fs::write(&as_found, found).unwrap();
        panic!("vectors.txt is not what scone and docker are asked for: compare with {}", as_found.display());
    }
}

/// A vector as it is on any host.
fn in_general(host: &Host, call: &Call) -> String {
    let told = call.config_id.iter().map(|id| format!("    SCONE_CONFIG_ID={id}\n"));
    let vector = format!("{} {}\n{}", call.program, call.args.join(" "), told.collect::<String>());
    let root = host.root().display().to_string();
    let user = format!("{}:{}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let known = [
        // As docker's CSV has it.
        (root.replace('"', "\"\""), "<ROOT>"),
        (root, "<ROOT>"),
        (host.home.path().display().to_string(), "<HOME>"),
        (user, "<UID>:<GID>"),
        (CODE.to_owned(), "<CODE>"),
        (DISPENSED.to_owned(), "<CODE>"),
    ];
    let vector = known.iter().fold(vector, |vector, (found, name)| vector.replace(found, name));
    let patterns = [
        (r"(otpqr-policy-|\.starting-)\w+", "$1<RANDOM>"),
        (r"(otpqr-web|otpqr-measuring)-[0-9a-f]+-[0-9a-f]+", "$1-<RANDOM>"),
        (r"\botpqr-[0-9a-f]{20}\b", "<NAMESPACE>"),
        (r"\b[0-9a-f]{64}\b", "<HASH>"),
    ];
    named(vector, &patterns)
}

/// Of a command of SCONE's command line: the spellings that its documentation has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spelled {
    command: String,
    source: String,
    options: Vec<String>,
    /// What scone-sim answers with "not simulated".
    #[serde(default)]
    not_simulated: Vec<String>,
}

#[test]
fn the_documented_spellings_of_options_are_those_of_the_scripts_and_of_the_simulator() {
    let contract = Contract::read();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("FILE"), "").unwrap();
    let asked = |command: &str, option: &str| {
        let mut scone = Command::new(repository().join("simulator/bin/scone"));
        // What an option stands before is said last.
        let (command, subject) =
            command.split_once(" <").map_or((command, None), |(command, subject)| (command, Some(subject)));
        let subject = subject.and_then(|subject| subject.strip_suffix('>'));
        scone.args(command.split(' ')).args(option.split_whitespace()).args(subject);
        run(command_in(scone, directory.path())).stderr
    };
    let mut tried = BTreeSet::new();
    for Spelled { command, source, options, not_simulated } in &contract.spellings {
        assert!(source.contains("[D]") || source.contains("[C]"), "{command}: {source}");
        for option in options {
            let said = asked(command, option);
            assert!(!said.contains("error: ") && !said.contains("not simulated"), "{command} {option}: {said}");
        }
        for option in not_simulated {
            let said = asked(command, option);
            assert!(said.contains("not simulated"), "{command} {option}: {said}");
        }
        tried.extend(options.iter().chain(not_simulated));
    }
    let count = tried.len();
    println!("contract: {count} documented spellings of options tried");
    let page = fs::read_to_string(repository().join("docs/on-scone.md")).unwrap().replace('\n', " ");
    assert!(
        page.contains(&format!("{count} documented spellings of options")),
        "docs/on-scone.md does not say: {count}"
    );

    // What the scripts give is among them.
    let vectors = include_str!("vectors.txt");
    let mut given = 0;
    for line in vectors.lines().filter(|line| line.starts_with("scone ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let spelled: Vec<&str> = contract
            .spellings
            .iter()
            .filter(|spelled| words[1..].join(" ").starts_with(spelled.command.split(" <").next().unwrap_or_default()))
            .flat_map(|spelled| &spelled.options)
            .flat_map(|option| option.split(' '))
            .collect();
        for option in words.iter().filter(|word| word.starts_with('-') && **word != "--version") {
            let name = option.split('=').next().unwrap_or_default();
            assert!(spelled.iter().any(|known| known.split('=').next() == Some(name)), "{option} in {line}");
            given += 1;
        }
    }
    assert!(given > 20, "{given}");
}

fn command_in(mut command: Command, directory: &Path) -> Command {
    command.current_dir(directory).env("HOME", directory).env_remove("SCONE_CLI_CONFIG");
    command.stdin(std::process::Stdio::null());
    command
}
