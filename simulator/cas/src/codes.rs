//! Codes: which are right, and that each is accepted once (RFC 6238; `reference/scone.md` section 3).
//!
//! Memory is the highest accepted time step per secret *value*, as HMAC takes it: two sessions that share a secret share its
//! memory, and replacing a session forgets nothing. It only ever rises, so neither a restart nor a clock set back makes an old code good.
//! Assumptions, where SCONE is silent: the window is one step to either side; a right code is consumed by its check, whatever
//! attestation says afterwards; after five wrong codes the next try waits 30 seconds, then twice as long each time, up to 15
//! minutes. A code that is refused unread (no code, not six digits, while waiting) does not count as a try.

mod memory;

use rusqlite::{Connection, params};
use totp_rs::{Algorithm, TOTP};

/// Seconds in a time step.
pub const STEP: u64 = 30;

/// Wrong codes until tries have to wait.
const FREE_TRIES: u32 = 5;

const FIRST_WAIT: u64 = 30;
const LONGEST_WAIT: u64 = 15 * 60;

/// What became of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Right and new; from now on consumed.
    Accepted {
        /// Its time step.
        step: u64,
    },
    /// None was given.
    Missing,
    /// Not exactly six ASCII digits.
    Malformed,
    /// Six digits, but not the right ones.
    Wrong,
    /// Right, but its time step, or a later one, was accepted before.
    AlreadyUsed,
    /// Not looked at: too many wrong ones before.
    MustWait {
        /// Until then.
        seconds: u64,
    },
}

impl Verdict {
    /// What the peer is told. All but the message about waiting are SCONE's words (section 3.4).
    pub fn refusal(self) -> Option<String> {
        Some(match self {
            Verdict::Accepted { .. } => return None,
            Verdict::Missing => "An One-time Password is required to access this session".into(),
            Verdict::Malformed | Verdict::Wrong => "The given One-time Password is invalid. Please try again.".into(),
            Verdict::AlreadyUsed => {
                "A One-time Password was already used within this time-step. Please try again in the next time-step"
                    .into()
            }
            Verdict::MustWait { seconds } => {
                format!("Too many wrong One-time Passwords were given. Please try again in {seconds} seconds.")
            }
        })
    }

    /// What the audit log is told.
    pub fn record(self) -> String {
        match self {
            Verdict::Accepted { step } => format!("accepted: time step {step}"),
            Verdict::Missing => "refused: no code".into(),
            Verdict::Malformed => "refused: not six digits".into(),
            Verdict::Wrong => "refused: wrong code".into(),
            Verdict::AlreadyUsed => "refused: code already used".into(),
            Verdict::MustWait { seconds } => format!("refused: {seconds} seconds to wait after wrong codes"),
        }
    }
}

/// What is remembered of a secret.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Memory {
    /// The highest accepted time step.
    highest_step: Option<u64>,
    /// Wrong codes since the last right one.
    failures: u32,
    /// When the last wrong one came, in seconds since the epoch.
    failed_at: u64,
}

impl Memory {
    /// Seconds until the next try is looked at.
    fn wait(&self, now: u64) -> u64 {
        let Some(doublings) = self.failures.checked_sub(FREE_TRIES) else { return 0 };
        let wait =
            FIRST_WAIT.checked_shl(doublings).filter(|_| doublings < 10).map_or(LONGEST_WAIT, |w| w.min(LONGEST_WAIT));
        (self.failed_at + wait).saturating_sub(now)
    }
}

/// Judges a code, and what to remember afterwards.
fn judge(mut memory: Memory, secret: &[u8], code: u32, now: u64) -> (Verdict, Memory) {
    // When the clock is set back, the wait starts again: it gets neither longer than it ever is nor shorter.
    memory.failed_at = memory.failed_at.min(now);
    let verdict = match matching_step(secret, code, now) {
        _ if memory.wait(now) > 0 => Verdict::MustWait { seconds: memory.wait(now) },
        None => Verdict::Wrong,
        Some(step) if memory.highest_step.is_some_and(|highest| step <= highest) => Verdict::AlreadyUsed,
        Some(step) => Verdict::Accepted { step },
    };
    match verdict {
        Verdict::Accepted { step } => memory = Memory { highest_step: Some(step), ..Memory::default() },
        Verdict::Wrong => {
            memory.failures = memory.failures.saturating_add(1);
            memory.failed_at = now;
        }
        _ => {}
    }
    (verdict, memory)
}

/// Exactly six ASCII digits.
fn parse(code: &str) -> Option<u32> {
    (code.len() == 6 && code.bytes().all(|c| c.is_ascii_digit())).then(|| code.parse().ok())?
}

/// The latest time step in the window whose code this is. The latest, so that digits that happen to be right twice in one
/// window are still accepted once. Numbers are compared, so time tells nothing about the digits.
fn matching_step(secret: &[u8], code: u32, now: u64) -> Option<u64> {
    let current = now / STEP;
    // Without the library's check of the secret's length: it was checked when the session was read.
    let totp = TOTP::new_unchecked(Algorithm::SHA1, 6, 0, STEP, secret.to_vec());
    let right = |step: &u64| parse(&totp.generate(step * STEP)) == Some(code);
    (current.saturating_sub(1)..=current + 1).rev().filter(right).fold(None, |found, step| found.or(Some(step)))
}

/// Checks a code and remembers the outcome, in the caller's transaction: durable once that is committed, and to be answered
/// only then.
pub fn check(tx: &Connection, secret: &[u8], code: Option<&str>, now: u64) -> rusqlite::Result<Verdict> {
    let Some(code) = code else { return Ok(Verdict::Missing) };
    // Checked before anything is looked up: what is not spelled like a code is compared with nothing.
    let Some(code) = parse(code) else { return Ok(Verdict::Malformed) };
    let before = memory::load(tx, secret)?;
    let (verdict, after) = judge(before, secret, code, now);
    if after == before {
        return Ok(verdict);
    }
    // Compare-and-set: of two checks that saw the same memory, one writes.
    let written = tx
        .prepare_cached(
            "INSERT INTO code (secret, highest_step, failures, failed_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (secret) DO UPDATE SET highest_step = ?2, failures = ?3, failed_at = ?4 WHERE highest_step IS ?5",
        )?
        .execute(params![memory::name(secret), after.highest_step, after.failures, after.failed_at, before.highest_step])?;
    Ok(if written == 1 { verdict } else { Verdict::AlreadyUsed })
}

/// Forgets the wrong codes given for a secret, not the accepted ones.
pub fn lift_wait(tx: &Connection, secret: &[u8]) -> rusqlite::Result<()> {
    memory::load(tx, secret)?;
    tx.execute("UPDATE code SET failures = 0 WHERE secret = ?1", [memory::name(secret)]).map(drop)
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};
    use std::sync::Barrier;

    use super::*;
    use crate::store::{Store, StoreError};

    /// The secret of RFC 4226 appendix D and of RFC 6238 appendix B's SHA-1 rows.
    const RFC: &[u8] = b"12345678901234567890";

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("cas.db")).unwrap();
        (directory, store)
    }

    fn try_code(store: &Store, code: &str, now: u64) -> Verdict {
        store.write(|tx| Ok::<_, StoreError>(check(tx, RFC, Some(code), now)?)).unwrap()
    }

    fn code_of(step: u64) -> String {
        TOTP::new_unchecked(Algorithm::SHA1, 6, 0, STEP, RFC.to_vec()).generate(step * STEP)
    }

    fn wrong_at(now: u64) -> &'static str {
        let step = now / STEP;
        let right: Vec<String> = (step - 1..=step + 1).map(code_of).collect();
        ["000000", "000001", "000002", "000003"].into_iter().find(|code| !right.contains(&(*code).to_owned())).unwrap()
    }

    #[test]
    fn rfc_6238_appendix_b_is_met() {
        // The last six digits of the SHA-1 rows.
        for (time, code) in [
            (59, "287082"),
            (1111111109, "081804"),
            (1111111111, "050471"),
            (1234567890, "005924"),
            (2000000000, "279037"),
            (20000000000, "353130"),
        ] {
            let (_directory, store) = store();
            assert_eq!(try_code(&store, wrong_at(time), time), Verdict::Wrong);
            assert_eq!(try_code(&store, code, time), Verdict::Accepted { step: time / STEP }, "{time}");
        }
    }

    #[test]
    fn rfc_4226_appendix_d_is_met() {
        let codes =
            ["755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"];
        let (_directory, store) = store();
        for (counter, code) in (0..).zip(codes) {
            assert_eq!(try_code(&store, code, counter * STEP), Verdict::Accepted { step: counter });
            assert_eq!(try_code(&store, code, counter * STEP), Verdict::AlreadyUsed);
        }
    }

    /// Another implementation's codes, for secrets of every length that is used and times of any kind.
    #[test]
    fn codes_of_oathtool_are_accepted_at_their_time() {
        let oathtool = |secret: &[u8], time: u64| {
            // The secret on standard input: even a test's is no argument.
            let mut child = Command::new("oathtool")
                .args(["--totp", "--now", &format!("@{time}"), "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            writeln!(child.stdin.take().unwrap(), "{}", scone_protocol::hex(secret))?;
            let output = child.wait_with_output()?;
            Ok::<_, std::io::Error>(String::from_utf8(output.stdout).unwrap().trim().to_owned())
        };
        if oathtool(RFC, 59).is_err() {
            assert!(std::env::var_os("REQUIRE_DOCKER").is_none(), "oathtool is needed: apt-get install oathtool");
            eprintln!("SKIPPED: oathtool was not found");
            return;
        }
        for round in 0..40u64 {
            let digest = ring::digest::digest(&ring::digest::SHA256, &round.to_be_bytes());
            let secret = &digest.as_ref()[..[16, 20, 32][(round % 3) as usize]];
            let time = u64::from_be_bytes(digest.as_ref()[..8].try_into().unwrap()) % 4_000_000_000;
            let code = oathtool(secret, time).unwrap();
            let (_directory, store) = store();
            let judged = |at| store.write(|tx| Ok::<_, StoreError>(check(tx, secret, Some(&code), at)?)).unwrap();
            assert_eq!(judged(time + 90), Verdict::Wrong, "round {round}: much too late");
            assert_eq!(judged(time), Verdict::Accepted { step: time / STEP }, "round {round}");
        }
    }

    #[test]
    fn only_six_ascii_digits_are_a_code_and_anything_else_is_no_try() {
        let (_directory, store) = store();
        for spelling in [
            "",
            "28708",
            "2870822",
            " 287082",
            "287082 ",
            "287082\n",
            "+87082",
            "-87082",
            "28708a",
            "２８７０８２",
            "287 82",
            "0x1234",
        ] {
            for _ in 0..FREE_TRIES {
                assert_eq!(try_code(&store, spelling, 59), Verdict::Malformed, "{spelling:?}");
            }
        }
        assert_eq!(try_code(&store, "287082", 59), Verdict::Accepted { step: 1 });
    }

    #[test]
    fn the_window_is_one_step_to_either_side() {
        let now = 100 * STEP + 7;
        for (step, accepted) in [(98, false), (102, false), (99, true), (100, true), (101, true)] {
            let (_directory, store) = store();
            let verdict = try_code(&store, &code_of(step), now);
            assert_eq!(verdict, if accepted { Verdict::Accepted { step } } else { Verdict::Wrong }, "{step}");
        }
    }

    #[test]
    fn an_accepted_step_closes_those_before_it() {
        let (_directory, store) = store();
        let now = 100 * STEP;
        assert_eq!(try_code(&store, &code_of(101), now), Verdict::Accepted { step: 101 });
        for step in [99, 100, 101] {
            assert_eq!(try_code(&store, &code_of(step), now), Verdict::AlreadyUsed);
        }
    }

    #[test]
    fn a_clock_set_back_makes_no_old_code_good() {
        let (_directory, store) = store();
        assert_eq!(try_code(&store, &code_of(100), 100 * STEP), Verdict::Accepted { step: 100 });
        for step in [50, 99, 100] {
            assert_eq!(try_code(&store, &code_of(step), step * STEP), Verdict::AlreadyUsed);
        }
        assert_eq!(try_code(&store, &code_of(101), 101 * STEP), Verdict::Accepted { step: 101 });
    }

    #[test]
    fn of_many_who_bring_one_code_at_once_one_is_accepted() {
        let (directory, _store) = store();
        // Each with a connection of its own: it is the database that decides, not a lock in this process.
        let stores: Vec<Store> = (0..64).map(|_| Store::open(&directory.path().join("cas.db")).unwrap()).collect();
        let start = Barrier::new(stores.len());
        let verdicts: Vec<Verdict> = std::thread::scope(|scope| {
            let race = |store| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    try_code(store, &code_of(100), 100 * STEP)
                })
            };
            let racers: Vec<_> = stores.iter().map(race).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        assert_eq!(verdicts.iter().filter(|v| **v == Verdict::Accepted { step: 100 }).count(), 1);
        assert_eq!(verdicts.iter().filter(|v| **v == Verdict::AlreadyUsed).count(), 63);
    }

    #[test]
    fn a_step_that_another_takes_between_look_and_write_is_not_accepted() {
        let (_directory, store) = store();
        assert_eq!(try_code(&store, &code_of(99), 99 * STEP), Verdict::Accepted { step: 99 });
        // Whatever let the other in: the store would not.
        let another = "CREATE TRIGGER another BEFORE INSERT ON code BEGIN UPDATE code SET highest_step = 100; END";
        store.write(|tx| Ok::<_, StoreError>(tx.execute_batch(another)?)).unwrap();
        assert_eq!(try_code(&store, &code_of(100), 100 * STEP), Verdict::AlreadyUsed);
    }

    #[test]
    fn memory_outlives_the_store() {
        let (directory, store) = store();
        assert_eq!(try_code(&store, &code_of(100), 100 * STEP), Verdict::Accepted { step: 100 });
        drop(store);
        let store = Store::open(&directory.path().join("cas.db")).unwrap();
        assert_eq!(try_code(&store, &code_of(100), 100 * STEP), Verdict::AlreadyUsed);
    }

    #[test]
    fn what_a_failed_transaction_saw_is_not_remembered() {
        let (_directory, store) = store();
        let failed: Result<(), StoreError> = store.write(|tx| {
            check(tx, RFC, Some(&code_of(100)), 100 * STEP)?;
            Err(StoreError::NoRandomness)
        });
        assert!(failed.is_err());
        assert_eq!(try_code(&store, &code_of(100), 100 * STEP), Verdict::Accepted { step: 100 });
    }

    #[test]
    fn after_five_wrong_codes_tries_wait_twice_as_long_each_time_up_to_a_quarter_of_an_hour() {
        let (_directory, store) = store();
        let mut now = 1000 * STEP;
        for _ in 0..4 {
            assert_eq!(try_code(&store, wrong_at(now), now), Verdict::Wrong);
        }
        for wait in [30, 60, 120, 240, 480, 900, 900] {
            assert_eq!(try_code(&store, wrong_at(now), now), Verdict::Wrong);
            // While waiting even the right code is not looked at, and not consumed.
            let right = code_of(now / STEP);
            assert_eq!(try_code(&store, &right, now), Verdict::MustWait { seconds: wait });
            now += wait - 1;
            assert_eq!(try_code(&store, wrong_at(now), now), Verdict::MustWait { seconds: 1 });
            now += 1;
        }
        assert!(matches!(try_code(&store, &code_of(now / STEP), now), Verdict::Accepted { .. }));
        // A right code ends it.
        assert_eq!(try_code(&store, wrong_at(now), now), Verdict::Wrong);
        assert_eq!(try_code(&store, wrong_at(now), now), Verdict::Wrong);
    }

    #[test]
    fn a_day_has_room_for_104_guesses_and_each_further_one_for_96() {
        // As docs/simulator-protocol.md says ("Guessing").
        const DAY: u64 = 24 * 3600;
        let (mut memory, mut now) = (Memory::default(), 1_800_000_000);
        let guesses = [now + DAY, now + 2 * DAY].map(|midnight| {
            let mut guesses = 0;
            while now < midnight {
                let (verdict, after) = judge(memory, RFC, parse(wrong_at(now)).unwrap(), now);
                assert_eq!(verdict, Verdict::Wrong);
                (memory, guesses) = (after, guesses + 1);
                now += memory.wait(now);
            }
            guesses
        });
        assert_eq!(guesses, [104, 96]);
    }

    #[test]
    fn the_wait_is_of_the_same_length_when_the_clock_is_set_back() {
        let (_directory, store) = store();
        let now = 1000 * STEP;
        for _ in 0..FREE_TRIES {
            assert_eq!(try_code(&store, wrong_at(now), now), Verdict::Wrong);
        }
        assert_eq!(try_code(&store, "123456", 10 * STEP), Verdict::MustWait { seconds: 30 });
        assert_eq!(try_code(&store, wrong_at(11 * STEP), 11 * STEP), Verdict::Wrong);
    }

    #[test]
    fn a_lifted_wait_forgets_wrong_codes_but_no_accepted_one() {
        let (_directory, store) = store();
        let now = 1000 * STEP;
        assert_eq!(try_code(&store, &code_of(1000), now), Verdict::Accepted { step: 1000 });
        for _ in 0..FREE_TRIES {
            assert_eq!(try_code(&store, wrong_at(now), now), Verdict::Wrong);
        }
        assert_eq!(try_code(&store, &code_of(1001), now), Verdict::MustWait { seconds: 30 });
        store.write(|tx| Ok::<_, StoreError>(lift_wait(tx, RFC)?)).unwrap();
        assert_eq!(try_code(&store, &code_of(1000), now), Verdict::AlreadyUsed);
        assert_eq!(try_code(&store, &code_of(1001), now), Verdict::Accepted { step: 1001 });
    }

    #[test]
    fn scones_three_messages_are_word_for_word() {
        let said = |verdict: Verdict| verdict.refusal().unwrap();
        assert_eq!(said(Verdict::Missing), "An One-time Password is required to access this session");
        for verdict in [Verdict::Wrong, Verdict::Malformed] {
            assert_eq!(said(verdict), "The given One-time Password is invalid. Please try again.");
        }
        assert_eq!(
            said(Verdict::AlreadyUsed),
            "A One-time Password was already used within this time-step. Please try again in the next time-step"
        );
        assert_eq!(Verdict::Accepted { step: 1 }.refusal(), None);
    }
}
