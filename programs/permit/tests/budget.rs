//! A budget as programs use it: how many starts there are, whoever takes them at once, and whatever is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;

use permit::{Budget, Error};

/// An empty directory, in memory where there is one: a start is a file that is synced.
fn directory(test: &str) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
    let directory = parent.join(format!("permit-{test}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir(&directory).unwrap();
    directory
}

/// A budget as a policy grants it. The variables are the process's: one test sets them at a time.
fn budget(first: &Path, starts: u32) -> Budget {
    static VARIABLES: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _mine = VARIABLES.lock().unwrap();
    std::env::set_var(permit::FILE, first);
    std::env::set_var(permit::STARTS, starts.to_string());
    Budget::from_environment().unwrap().unwrap()
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
    if let Some(budget) = Budget::from_environment().unwrap() {
        println!("\ntook {}", budget.take().unwrap());
    }
}

/// Killed before each call of a start, one after the other, until one is survived.
#[test]
fn whoever_is_killed_at_any_call_loses_one_start_at_most_and_nobody_gets_one_twice() {
    if !Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("REQUIRE_DOCKER").is_none_or(|value| value != "1"), "missing: strace");
        eprintln!("SKIPPED: missing: strace");
        return;
    }
    let directory = directory("killed");
    let taken = || fs::read_dir(&directory).unwrap().count();
    let (mut told, mut killed, mut lost) = (Vec::new(), 0, 0);
    for call in ["openat", "fsync", "write"] {
        for when in 1.. {
            let before = taken();
            let inject = format!("inject={call}:signal=SIGKILL:when={when}");
            let strace = ["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
            let output = Command::new("strace")
                .args(strace)
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", "taker", "--ignored", "--nocapture", "--test-threads=1"])
                .env(permit::FILE, directory.join("start"))
                .env(permit::STARTS, "1000")
                .output()
                .unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            let numbers: Vec<u32> =
                said.lines().filter_map(|line| Some(line.strip_prefix("took ")?.parse().unwrap())).collect();
            let (now, survived) = (taken() - before, output.status.success());
            assert!(numbers.len() <= now && now <= 1, "{call} {when}: {now} taken, {numbers:?} told of");
            lost += now - numbers.len();
            told.extend(numbers);
            if survived {
                break;
            }
            killed += 1;
        }
    }
    let all = told.len();
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), all, "a start was taken twice");
    assert!(killed > 0 && lost > 0 && lost <= killed, "{killed} killed, {lost} lost");
    println!("granted 1000, taken {}, worked {all}, lost {lost} by {killed} kills", taken());
    fs::remove_dir_all(directory).unwrap();
}
