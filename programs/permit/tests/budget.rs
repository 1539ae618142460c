//! A budget as programs use it: how many starts there are, whoever takes them at once, and whatever is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;

use permit::{Budget, Error, Grant, Grants, Permit};

/// An empty directory, in memory where there is one: a start is a file that is synced.
fn directory(test: &str) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
    let directory = parent.join(format!("permit-{test}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir(&directory).unwrap();
    directory
}

/// With variables as a policy sets them. They are the process's: one test sets them at a time.
fn with<T>(variables: &[(&str, &Path)], look: impl FnOnce() -> T) -> T {
    static VARIABLES: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _mine = VARIABLES.lock().unwrap();
    for variable in [permit::FILE, permit::STARTS, permit::GRANTS, permit::APPROVERS, permit::SERVICE, permit::TERM] {
        std::env::remove_var(variable);
    }
    variables.iter().for_each(|(variable, value)| std::env::set_var(variable, value));
    look()
}

/// A budget as a policy grants it.
fn budget(first: &Path, starts: u32) -> Budget {
    let starts = starts.to_string();
    with(&[(permit::FILE, first), (permit::STARTS, Path::new(&starts))], || {
        Permit::from_environment().unwrap().unwrap().budget().unwrap().clone()
    })
}

/// Rounds of 64 takers at once on a budget of 32.
fn takers(test: &str, rounds: usize) {
    let directory = directory(test);
    let mut taken_in_all = 0;
    for round in 0..rounds {
        let first = directory.join("start");
        let (budget, together) = (budget(&first, 32), Barrier::new(64));
        let taken: Vec<Option<u32>> = thread::scope(|scope| {
            let take = || {
                together.wait();
                match budget.take() {
                    Ok(number) => Some(number),
                    Err(Error::Spent { starts: 32 }) => None,
                    Err(error) => panic!("{error}"),
                }
            };
            let takers: Vec<_> = (0..64).map(|_| scope.spawn(take)).collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        let mut numbers: Vec<u32> = taken.into_iter().flatten().collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=32).collect::<Vec<_>>(), "round {round}");
        taken_in_all += numbers.len();
        for file in fs::read_dir(&directory).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
    }
    fs::remove_dir(directory).unwrap();
    println!(
        "{rounds} rounds of 64 takers on a budget of 32: {taken_in_all} starts taken, {} a round",
        taken_in_all / rounds
    );
}

#[test]
fn of_64_takers_at_once_32_get_a_start_of_32() {
    takers("takers", 200);
}

#[test]
#[ignore = "long: make soak"]
fn of_64_takers_at_once_32_get_a_start_of_32_ten_thousand_times() {
    takers("soak", 10_000);
}

#[test]
fn a_start_that_is_taken_is_never_there_again() {
    let directory = directory("taken");
    let first = directory.join("once");
    let one = Budget::once(first.clone());
    one.refuse_if_spent().unwrap();
    one.check().unwrap();
    assert_eq!(one.take().unwrap(), 1);
    for refused in [one.refuse_if_spent().unwrap_err(), one.take().unwrap_err()] {
        assert_eq!(refused.to_string(), "the one start is taken");
    }
    // What was one start is the first of several; a link that leads nowhere is one, too.
    let three = budget(&first, 3);
    std::os::unix::fs::symlink("nowhere", directory.join("once.2")).unwrap();
    assert_eq!(three.take().unwrap(), 3);
    assert_eq!(three.take().unwrap_err().to_string(), "all 3 starts are taken");
    one.take_first_again().unwrap();
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_cannot_be_told_is_no_start() {
    let directory = directory("broken");
    let missing = budget(&directory.join("missing/start"), 2);
    let message = |error: Error| error.to_string();
    assert!(message(missing.take().unwrap_err()).starts_with("cannot take start '"));
    assert!(message(missing.check().unwrap_err()).starts_with("cannot take start '"));
    fs::write(directory.join("file"), "").unwrap();
    let within_a_file = budget(&directory.join("file/start"), 2);
    assert!(message(within_a_file.refuse_if_spent().unwrap_err()).starts_with("cannot look at start '"));
    // A file that cannot be made durable: the start is lost, and the work not done.
    assert!(Command::new("mkfifo").arg(directory.join("start")).status().unwrap().success());
    let again = Budget::once(directory.join("start"));
    assert!(matches!(again.take(), Err(Error::Spent { .. })));
    fs::remove_dir_all(directory).unwrap();
}

/// Takes a start and says which: what the other test kills.
#[test]
#[ignore = "run by another test"]
fn taker() {
    if let Some(permit) = Permit::from_environment().unwrap() {
        println!("\ntook {}", permit.take(None).unwrap());
    }
}

/// Grants ten starts: likewise.
#[test]
#[ignore = "run by another test"]
fn approver() {
    if let Ok(grants) = Grants::from_environment() {
        let [approver, service, term] = ["bob", "service", "1"].map(str::to_owned);
        let granted = grants
            .add(Grant { number: 0, starts: 10, until: u64::MAX, approver, service, term, digest: None })
            .unwrap();
        println!("\ngranted {}", granted.number);
    }
}

/// Kills a test of this file before each call that it makes, one after the other, until one is survived. After each, `survived` is
/// told whether it did, and what it printed. Returns how many were killed; `None` if there is no strace.
fn kill(test: &str, variables: &[(&str, &Path)], survived: &mut dyn FnMut(bool, &str)) -> Option<usize> {
    if !Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("REQUIRE_DOCKER").map_or(true, |value| value != "1"), "missing: strace");
        eprintln!("SKIPPED: missing: strace");
        return None;
    }
    let mut killed = 0;
    for call in ["openat", "fsync", "write"] {
        for when in 1.. {
            let inject = format!("inject={call}:signal=SIGKILL:when={when}");
            let strace = ["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
            let output = Command::new("strace")
                .args(strace)
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
                .envs(variables.iter().copied())
                .output()
                .unwrap();
            survived(output.status.success(), &String::from_utf8(output.stdout).unwrap());
            if output.status.success() {
                break;
            }
            killed += 1;
        }
    }
    Some(killed)
}

/// What follows this word at a line's beginning.
fn said(text: &str, word: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix(word)).map(str::to_owned).collect()
}

#[test]
fn whoever_is_killed_at_any_call_loses_one_start_at_most_and_nobody_gets_one_twice() {
    let directory = directory("killed");
    let taken = || fs::read_dir(&directory).unwrap().count();
    let (mut told, mut lost, mut before) = (Vec::new(), 0, 0);
    let first = directory.join("start");
    let variables = [(permit::FILE, first.as_path()), (permit::STARTS, Path::new("1000"))];
    let Some(killed) = kill("taker", &variables, &mut |_, text| {
        let (now, starts) = (taken() - before, said(text, "took "));
        assert!(starts.len() <= now && now <= 1, "{now} taken, {starts:?} told of");
        lost += now - starts.len();
        told.extend(starts);
        before = taken();
    }) else {
        return;
    };
    check_told(&mut told);
    assert!(killed > 0 && lost > 0 && lost <= killed, "{killed} killed, {lost} lost");
    println!("granted 1000, taken {}, worked {}, lost {lost} by {killed} kills", taken(), told.len());
    fs::remove_dir_all(directory).unwrap();
}

fn check_told(told: &mut Vec<String>) {
    let all = told.len();
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), all, "a start was taken twice");
}

/// The same with starts that others granted, ten at a time, and a thousand in all.
#[test]
fn of_starts_that_were_granted_one_at_most_is_lost_too_and_a_grant_is_whole_or_none() {
    let directory = directory("granted");
    let (grants, noted) = (directory.join("grants"), directory.join("noted"));
    fs::create_dir(&grants).unwrap();
    fs::create_dir(&noted).unwrap();

    let mut told = 0;
    let whole = |number: &str| fs::read_to_string(grants.join(number)).unwrap().ends_with(" -\n");
    let variables = [(permit::GRANTS, grants.as_path())];
    let Some(killed_approving) = kill("approver", &variables, &mut |_, text| {
        // Who was told of one has it.
        said(text, "granted ").iter().for_each(|number| assert!(whole(number)));
        told += said(text, "granted ").len();
    }) else {
        return;
    };
    let numbers = fs::read_dir(&grants).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let granted = numbers.filter(|number| whole(number)).count();
    assert!(told >= 3 && granted >= told && granted <= told + killed_approving, "{granted} granted, {told} told of");

    let first = noted.join("start");
    let variables = [
        (permit::FILE, first.as_path()),
        (permit::STARTS, Path::new("1000")),
        (permit::GRANTS, &grants),
        (permit::APPROVERS, Path::new("bob")),
        (permit::SERVICE, Path::new("service")),
        (permit::TERM, Path::new("1")),
    ];
    // One of the grant's, and then one of all.
    let count = |of_grants| {
        let names = fs::read_dir(&noted).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("grant-") == of_grants).count()
    };
    let (mut told, mut lost, mut before) = (Vec::new(), 0, 0);
    let killed = kill("taker", &variables, &mut |_, text| {
        let (now, starts) = (count(true) - before, said(text, "took "));
        assert!(starts.len() <= count(false) && now <= 1 && starts.len() <= now, "{now} taken, {starts:?} told of");
        assert!(count(false) <= count(true));
        lost += now - starts.len();
        told.extend(starts);
        before = count(true);
    });
    let killed = killed.unwrap();
    check_told(&mut told);
    let taken = count(true);
    assert!(taken <= 10 * granted, "{taken} taken of {} granted", 10 * granted);
    assert!(killed > 0 && lost > 0 && lost <= killed, "{killed} killed, {lost} lost");
    println!(
        "{granted} grants of 10 starts by {killed_approving} kills; taken {taken}, worked {}, lost {lost} by {killed} kills",
        told.len()
    );
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn of_64_takers_at_once_16_get_one_of_two_grants_of_8() {
    let directory = directory("granted-takers");
    let grants = directory.join("grants");
    fs::create_dir(&grants).unwrap();
    for number in 1..=2 {
        fs::write(grants.join(number.to_string()), format!("8 {} bob service 1 -\n", u64::MAX)).unwrap();
    }
    let first = directory.join("start");
    let permit = with(
        &[
            (permit::FILE, &first),
            (permit::GRANTS, &grants),
            (permit::APPROVERS, Path::new("bob")),
            (permit::SERVICE, Path::new("service")),
            (permit::TERM, Path::new("1")),
        ],
        || Permit::from_environment().unwrap().unwrap(),
    );
    let together = Barrier::new(64);
    let take = || {
        together.wait();
        match permit.take(None) {
            Ok(start) => Some(start.to_string()),
            Err(Error::NotGranted { others: 0, expired: 0, spent: 2 }) => None,
            Err(error) => panic!("{error}"),
        }
    };
    let taken: Vec<Option<String>> = thread::scope(|scope| {
        let takers: Vec<_> = (0..64).map(|_| scope.spawn(take)).collect();
        takers.into_iter().map(|taker| taker.join().unwrap()).collect()
    });
    let mut told: Vec<String> = taken.into_iter().flatten().collect();
    assert_eq!(told.len(), 16);
    check_told(&mut told);
    fs::remove_dir_all(directory).unwrap();
}
