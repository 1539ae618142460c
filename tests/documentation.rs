//! The documentation is true: each ```console block of every page is run, command by command, and compared with what the page
//! shows; what the pages link to exists, and so do the tests and make targets they name. Random names, hashes, ports and times
//! are compared by their shape.
//!
//! A runbook is rehearsed in its own bundle. What must have happened before a step (an account, a catastrophe) is in an HTML
//! comment, as lines that begin with `$`: a rehearsal runs them, a reader does not see them. Where a script asks a person, the
//! rehearsal answers by options, which follow the opening "```console" and are not seen by a reader either. `phone` is the
//! operator's authenticator: a named pipe, from which each reader gets one code. A program's page finds the program's image, unpacked,
//! in a directory of its name, and a free port in the place of [`PORT`].

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use crate::support::{Bundle, Platform, User, copy, image, phone, repository, run, works};

/// Where the bundle is, according to the pages.
const ROOT: &str = "/srv/otpqr";

/// Where a service listens, according to the pages.
const PORT: &str = "8080";

/// How a block of commands begins.
const CONSOLE: &str = "```console";

/// A command of a page, and what it prints according to the page: nothing, if the reader does not see the command.
struct Shown {
    line: usize,
    command: String,
    /// The options that answer what a person would be asked.
    answers: String,
    output: Option<String>,
}

fn shown(page: &str) -> Vec<Shown> {
    let mut found: Vec<Shown> = Vec::new();
    let (mut console, mut comment, mut answers) = (false, false, "");
    for (number, line) in page.lines().enumerate() {
        match line {
            _ if line.starts_with(CONSOLE) => (console, answers) = (true, &line[CONSOLE.len()..]),
            "```" => (console, answers) = (false, ""),
            _ if line.starts_with("<!--") => comment = !line.ends_with("-->"),
            "-->" => comment = false,
            _ if console || comment => match (line.strip_prefix("$ "), found.last_mut()) {
                (Some(command), _) => {
                    let output = console.then(String::new);
                    let (command, answers) = (command.to_owned(), answers.to_owned());
                    found.push(Shown { line: number + 1, command, answers, output });
                }
                (None, Some(Shown { output: Some(output), .. })) if console => output.push_str(&format!("{line}\n")),
                _ if console => panic!("line {}: output before the first command", number + 1),
                _ => {}
            },
            _ => {}
        }
    }
    found
}

/// Hashes and random names become `HEX`, also where only their beginning is shown; ports `PORT`, counts and time steps
/// `NUMBER`, times `TIME`. How thoroughly a QR code is destroyed depends on the file system and is left out.
fn shape(text: &str) -> String {
    let mut shaped = String::new();
    let mut run = String::new();
    for c in text.chars().chain(['\n']) {
        if c.is_ascii_hexdigit() && !c.is_ascii_uppercase() {
            run.push(c);
            continue;
        }
        let number = !run.is_empty() && run.bytes().all(|digit| digit.is_ascii_digit());
        shaped.push_str(match run.len() {
            12 | 20.. => "HEX",
            _ if number && shaped.ends_with("127.0.0.1:") => "PORT",
            _ => &run,
        });
        run.clear();
        shaped.push(c);
    }
    let lines = shaped.trim().lines().map(|line| line.split_once(": destroyed").map_or(line, |(what, _)| what));
    lines.map(|line| line.split(' ').map(without_number).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join("\n")
}

fn without_number(word: &str) -> &str {
    let zeroes: String = word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    match zeroes.as_str() {
        "0000-00-00T00:00:00Z" => "TIME",
        number if number.len() >= 2 && number.bytes().all(|c| c == b'0') => "NUMBER",
        _ => word,
    }
}

/// Runs a page in `checkout`. If it is not true, the page that would be is left in a file, to mend it by.
fn rehearse(name: &str, bundle: &Bundle, checkout: &Path) {
    let page = fs::read_to_string(repository().join(name)).unwrap_or_else(|cause| panic!("{name}: {cause}"));
    let (mut holds, mut rest) = (String::new(), page.as_str());
    let mut wrong = Vec::new();
    let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let port = &free.port().to_string();
    for Shown { line, command, answers, output } in shown(&page) {
        // The recipe of the tests has built already; here it is enough that the target exists.
        let makes = command.strip_prefix("make ");
        let mut bash = bundle.command("bash");
        match makes {
            Some(target) => {
                bash.current_dir(repository()).args(["-c", &format!("make --dry-run --silent {target} >/dev/null")])
            }
            None => {
                bash.current_dir(checkout).env_remove("OTPQR_ROOT").env_remove("RUST_SCRIPT_BASE_PATH");
                // What follows a `--` is the program's.
                let at = command.find(" -- ").unwrap_or(command.len());
                let (before, after) = command.split_at(at);
                bash.args(["-c", &format!("{{ {before}{answers}{after}\n}} 2>&1").replace(PORT, port)])
            }
        };
        let answered = run(bash);
        let Some(output) = output.filter(|_| makes.is_none()) else {
            assert_eq!(answered.code, Some(0), "{name}, line {line}: $ {command}\n{}", answered.text());
            continue;
        };
        let answer = answered.stdout.replace(checkout.to_str().expect("a path in UTF-8"), ROOT);
        let answer = answer.replace(port, PORT);
        let (before, after) = rest.split_once(&format!("$ {command}\n{output}")).expect("commands come in order");
        let right = shape(&answer) == shape(&output);
        holds.push_str(&format!("{before}$ {command}\n{}", if right { &output } else { &answer }));
        rest = after;
        if !right {
            wrong.push(format!("line {line}: $ {command}\n{answer}"));
        }
    }
    holds.push_str(rest);
    let actual = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name.replace('/', "-"));
    if !wrong.is_empty() {
        fs::write(&actual, holds).expect("the page as it would hold");
        panic!("{name} shows something else; as it would hold it is '{}'\n\n{}", actual.display(), wrong.join("\n"));
    }
}

/// An authenticator. Scans the QR code in the bundle, if there is one, and gives each reader of its pipe the next code that was not
/// given before. Like a person it waits as long as CAS would not accept that code.
struct Phone {
    pipe: PathBuf,
    gone: Arc<AtomicBool>,
    person: Option<JoinHandle<()>>,
}

impl Phone {
    /// `picture` finds the QR code that it scans.
    fn lying_in(root: &Path, name: &str, picture: fn(&Path) -> Option<String>) -> Phone {
        let pipe = root.join(name);
        make_pipe(&pipe);
        let gone = Arc::new(AtomicBool::new(false));
        let person = thread::spawn({
            let (root, pipe, gone) = (root.to_owned(), pipe.clone(), Arc::clone(&gone));
            move || answer_readers(picture, &root, &pipe, &gone)
        });
        Phone { pipe, gone, person: Some(person) }
    }
}

impl Drop for Phone {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        // One last reader, so that the thread does not wait for ever.
        let last = rustix::fs::open(&self.pipe, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
        let ended = self.person.take().map(JoinHandle::join);
        drop(last);
        assert!(matches!(ended, Some(Ok(()))) || thread::panicking(), "the phone");
    }
}

fn answer_readers(picture: fn(&Path) -> Option<String>, root: &Path, pipe: &Path, gone: &AtomicBool) {
    let mut entry: Option<(phone::Account, u64)> = None;
    loop {
        let mut reader = OpenOptions::new().write(true).open(pipe).expect("the pipe");
        if gone.load(Ordering::SeqCst) {
            return;
        }
        // A new pipe for the next reader, whenever this one has finished reading.
        let next = pipe.with_extension("next");
        make_pipe(&next);
        fs::rename(next, pipe).expect("the pipe");
        if let Some(found) = picture(root).map(|svg| phone::scan(&svg).expect("a QR code that a phone can read")) {
            entry = match entry.take() {
                Some((known, given)) if known.secret == found.secret => Some((known, given)),
                _ => Some((found, 0)),
            };
        }
        let (account, given) = entry.as_mut().expect("a QR code was scanned");
        *given = current_step().max(*given + 1);
        // CAS accepts the next step's code already: a person need not wait for it.
        while *given > current_step() + 1 {
            sleep(Duration::from_millis(100));
        }
        // A reader that went away without reading does not concern the phone.
        let _ = writeln!(reader, "{}", account.code_at(*given * 30));
    }
}

fn make_pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a named pipe");
}

/// The newest QR code in the bundle.
fn picture(root: &Path) -> Option<String> {
    let entries = fs::read_dir(root).expect("the bundle").map(|entry| entry.expect("an entry").path());
    let pictures = entries.filter(|path| path.extension().is_some_and(|extension| extension == "svg"));
    let latest = pictures.max_by_key(|path| fs::metadata(path).and_then(|picture| picture.modified()).ok())?;
    fs::read_to_string(latest).ok()
}

fn current_step() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs() / 30
}

/// Rehearses a page in its own bundle, with the compiled scripts: the same sources, without a compilation for each bundle.
fn rehearse_page(name: &str) {
    rehearse_page_with(name, |_| ());
}

/// The same, with `fill` putting into the bundle what the reader has.
fn rehearse_page_with(name: &str, fill: impl FnOnce(&Path)) {
    let bundle = Bundle::new("bundle", Platform::SimNative, User::Caller, false);
    let scripts: &[(&str, &str)] = scripts!();
    let named: Vec<_> = scripts.iter().map(|(name, path)| (format!("{name}.rs"), *path)).collect();
    bundle.install(&named.iter().map(|(name, path)| (name.as_str(), *path)).collect::<Vec<_>>());
    fill(&bundle.root);
    let _phone = Phone::lying_in(&bundle.root, "phone", picture);
    let _bobs = Phone::lying_in(&bundle.root, "bobs-phone", |root| fs::read_to_string(root.join("bob.svg")).ok());
    let _service = Service(&bundle);
    rehearse(name, &bundle, &bundle.root);
}

/// A test for each runbook, and the list of them.
macro_rules! runbooks {
    ($($test:ident: $page:literal,)*) => {
        const RUNBOOKS: &[&str] = &[$($page),*];
        $(#[test]
        fn $test() {
            rehearse_page(concat!("docs/runbooks/", $page, ".md"));
        })*
    };
}

runbooks! {
    first_set_up_goes_as_its_runbook_says: "first-set-up",
    a_second_authenticator_is_added_as_its_runbook_says: "second-authenticator",
    a_lost_phone_is_dealt_with_as_its_runbook_says: "phone-lost",
    a_stolen_phone_is_dealt_with_as_its_runbook_says: "phone-stolen",
    a_refused_code_is_dealt_with_as_its_runbook_says: "code-refused",
    a_damaged_volume_is_dealt_with_as_its_runbook_says: "volume-damaged",
    a_rebuilt_image_is_dealt_with_as_its_runbook_says: "image-rebuilt",
    a_service_that_ended_is_started_again_as_its_runbook_says: "service-ended",
    two_people_start_a_program_as_their_runbook_says: "two-people-for-one-start",
    several_starts_take_one_code_as_their_runbook_says: "several-starts-for-one-code",
    a_wiped_cas_is_dealt_with_as_its_runbook_says: "cas-wiped",
    a_state_that_is_behind_is_dealt_with_as_its_runbook_says: "state-behind-cas",
    moving_to_another_host_goes_as_its_runbook_says: "moving-to-another-host",
    handing_over_goes_as_its_runbook_says: "handing-over-to-another-person",
    a_code_used_by_a_stranger_is_dealt_with_as_its_runbook_says: "incident-a-code-was-used-that-was-not-mine",
}

/// The pages with console blocks that are no runbooks. README.md's are run by rust-script, as its reader does.
const OTHER_PAGES: &[&str] =
    &["CONTRIBUTING.md", "README.md", "docs/simulator.md", PROGRAMS[0], PROGRAMS[1], PROGRAMS[2]];

/// The pages of the programs whose start needs a code.
const PROGRAMS: &[&str] = &["programs/calculator/README.md", "programs/signer/README.md", "programs/web/README.md"];

/// What a page starts and does not come to stop, because it is not true.
struct Service<'a>(&'a Bundle);

impl Drop for Service<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.script("start.rs", &["web", "--stop"]);
        }
    }
}

/// Rehearses a program's page.
fn rehearse_program(name: &str, fill: impl FnOnce(&Path)) {
    rehearse_page_with(&format!("programs/{name}/README.md"), |root| {
        let image = root.join(name);
        fs::create_dir(&image).expect("a directory");
        fill(&image);
    });
}

#[test]
fn every_console_block_of_the_calculators_page_prints_what_it_shows() {
    if image::python_is_there() {
        rehearse_program("calculator", |image| drop(image::calculator(image)));
    }
}

#[test]
fn every_console_block_of_the_signers_page_prints_what_it_shows() {
    if works("openssl", &["version"], "apt-get install openssl") {
        rehearse_program("signer", image::signer);
    }
}

#[test]
fn every_console_block_of_the_web_services_page_prints_what_it_shows() {
    if image::python_is_there() && works("curl", &["--version"], "apt-get install curl") {
        rehearse_program("web", image::web);
    }
}

#[test]
fn every_console_block_of_the_simulators_page_prints_what_it_shows() {
    rehearse_page("docs/simulator.md");
}

#[test]
fn every_console_block_of_the_contributors_page_can_be_run() {
    rehearse_page("CONTRIBUTING.md");
}

#[test]
fn every_page_with_a_console_block_is_run() {
    let with_blocks = pages().into_iter().filter(|(_, page)| page.contains(CONSOLE)).map(|(name, _)| name);
    // That all runbooks are rehearsed has its own test.
    let mut others: Vec<_> = with_blocks.filter(|name| !name.starts_with("docs/runbooks/")).collect();
    others.sort_unstable();
    assert_eq!(others, OTHER_PAGES);
}

#[test]
fn every_console_block_of_the_readme_prints_what_it_shows() {
    let bundle = Bundle::new("bundle", Platform::SimNative, User::Caller, false);
    // rust-script caches by path: always the same path saves the next run the compilation.
    let checkout = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme");
    let _ = fs::remove_dir_all(&checkout);
    fs::create_dir_all(&checkout).expect("a checkout");
    for part in ["scripts", "templates", "simulator"] {
        copy(&if part == "simulator" { bundle.root.join(part) } else { repository().join(part) }, &checkout.join(part));
    }
    rehearse("README.md", &bundle, &checkout);
}

#[test]
fn every_make_target_a_page_names_is_there() {
    let mut help = Command::new("make");
    help.current_dir(repository()).arg("help");
    let targets = run(help).expect(0).stdout;
    for (name, page) in pages() {
        let named = page.split('`').filter_map(|word| word.strip_prefix("make "));
        for target in named.filter(|word| !word.contains([' ', '\n'])) {
            assert!(targets.contains(&format!("  make {target} ")), "'{name}' names `make {target}`:\n{targets}");
        }
    }
}

/// All pages: paths relative to the repository, and contents.
fn pages() -> Vec<(String, String)> {
    let markdown = |directory: &str| {
        let entries = fs::read_dir(repository().join(directory)).expect("a directory of pages");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name in UTF-8"));
        names.filter(|name| name.ends_with(".md")).map(|name| format!("{directory}/{name}")).collect::<Vec<_>>()
    };
    let directories = ["docs", "docs/reference", "docs/runbooks", "state"].map(markdown).concat();
    let names = ["CONTRIBUTING.md", "README.md", "SECURITY.md"].iter().chain(PROGRAMS).map(|name| (*name).to_owned());
    let names = names.chain(["programs/permit/README.md".to_owned()]).chain(directories);
    names.map(|name| (name.clone(), fs::read_to_string(repository().join(name)).expect("a page"))).collect()
}

#[test]
fn every_runbook_is_rehearsed_and_in_the_index_and_says_what_an_operator_must_know() {
    let index = fs::read_to_string(repository().join("docs/runbooks/README.md")).expect("the index");
    let mut found: Vec<String> = Vec::new();
    for (name, page) in pages() {
        let Some(runbook) = name.strip_prefix("docs/runbooks/").and_then(|name| name.strip_suffix(".md")) else {
            continue;
        };
        if runbook == "README" {
            continue;
        }
        assert!(index.contains(&format!("({runbook}.md)")), "'{name}' is not in the index");
        for part in ["**When.** ", "**Who.** ", "## Prerequisites", "## Verification", "## Undo"] {
            assert!(page.contains(part), "'{name}' has no '{part}'");
        }
        let commands = shown(&page).into_iter().filter(|shown| shown.output.is_some()).count();
        assert_eq!(commands, page.matches(CONSOLE).count(), "'{name}': one command a block");
        found.push(runbook.to_owned());
    }
    let mut rehearsed = RUNBOOKS.to_vec();
    rehearsed.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, rehearsed);
}

#[test]
fn every_link_of_every_page_leads_somewhere() {
    for (name, page) in pages() {
        let directory = repository().join(&name).parent().expect("a directory").to_owned();
        let targets = page.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in targets.filter(|target| !target.starts_with("http")) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { repository().join(&name) } else { directory.join(file) };
            assert!(file.exists(), "'{name}' links to '{target}'");
            if !heading.is_empty() {
                let text = fs::read_to_string(&file).expect("a page");
                let mut headings = text.lines().filter(|line| line.starts_with('#')).map(anchor);
                assert!(headings.any(|anchor| anchor == heading), "'{name}' links to '{target}': no such heading");
            }
        }
    }
}

/// How a heading is linked to: lower case, without punctuation, a hyphen for each space.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// A page names a test as `file.rs::function`.
#[test]
fn every_test_a_page_names_is_there() {
    let mut checked = 0;
    for (name, page) in pages() {
        for reference in page.split('`').filter(|word| word.contains(".rs::")) {
            let (file, function) = reference.split_once("::").expect("file.rs::function");
            let source = fs::read_to_string(repository().join(file));
            let source = source.unwrap_or_else(|cause| panic!("'{name}' names '{reference}': {cause}"));
            let lines: Vec<&str> = source.lines().map(str::trim).collect();
            let there =
                lines.windows(2).any(|pair| pair[0] == "#[test]" && pair[1].starts_with(&format!("fn {function}(")))
                    || (file == "tests/documentation.rs" && source.contains(&format!("\n    {function}: \"")));
            assert!(there, "'{name}' names '{reference}', which is no test");
            checked += 1;
        }
    }
    assert!(checked > 0, "no page names a test");
}

#[test]
fn each_failing_of_the_reference_solution_has_its_row_and_its_test() {
    let page = fs::read_to_string(repository().join("docs/reference-solution.md")).expect("the comparison");
    for number in 1..=20 {
        let row = page.lines().find(|line| line.starts_with(&format!("| {number} |")));
        assert!(row.is_some_and(|row| row.contains(".rs::")), "failing {number}");
    }
}
