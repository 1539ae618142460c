//! Codes: which are right, and that each is accepted once (RFC 6238; `reference/scone.md` section 3).
//!
//! Memory is the highest accepted time step per secret *value*: two sessions that share a secret share its memory, and
//! replacing a session forgets nothing. It only ever rises, so neither a restart nor a clock set back makes an old code good.
//! Assumptions, where SCONE is silent: the window is one step to either side; a right code is consumed by its check, whatever
//! attestation says afterwards; after five wrong codes the next try waits 30 seconds, then twice as long each time, up to 15
//! minutes. A code that is refused unread (no code, not six digits, while waiting) counts as no try.

use ring::digest::{SHA256, digest};
use rusqlite::{OptionalExtension, Transaction, params};
use scone_run::protocol::hex;
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
    /// What the peer is told. The first three are SCONE's words (section 3.4); that of the wait is our own.
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
fn judge(mut memory: Memory, secret: &[u8], code: Option<&str>, now: u64) -> (Verdict, Memory) {
    // A clock set back must not make the wait longer than it ever is, nor shorter: it starts again.
    memory.failed_at = memory.failed_at.min(now);
    let verdict = match code {
        None => Verdict::Missing,
        Some(code) => match parse(code) {
            None => Verdict::Malformed,
            Some(_) if memory.wait(now) > 0 => Verdict::MustWait { seconds: memory.wait(now) },
            Some(code) => match matching_step(secret, code, now) {
                None => Verdict::Wrong,
                Some(step) if memory.highest_step.is_some_and(|highest| step <= highest) => Verdict::AlreadyUsed,
                Some(step) => Verdict::Accepted { step },
            },
        },
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
    // Without its check of the secret's length: sessions are checked where they are read, and RFC vectors are what they are.
    let totp = TOTP::new_unchecked(Algorithm::SHA1, 6, 0, STEP, secret.to_vec());
    let right = |step: &u64| parse(&totp.generate(step * STEP)) == Some(code);
    (current.saturating_sub(1)..=current + 1).rev().filter(right).fold(None, |found, step| found.or(Some(step)))
}

/// Checks a code and remembers the outcome, in the caller's transaction: durable once that is committed, and to be answered
/// only then.
pub fn check(tx: &Transaction<'_>, secret: &[u8], code: Option<&str>, now: u64) -> rusqlite::Result<Verdict> {
    let key = memory_key(secret);
    let before = load(tx, &key)?;
    let (verdict, after) = judge(before, secret, code, now);
    if after == before {
        return Ok(verdict);
    }
    // Compare-and-set: of two that saw the same memory, one writes.
    let written = tx
        .prepare_cached(
            "INSERT INTO code (secret, highest_step, failures, failed_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (secret) DO UPDATE SET highest_step = ?2, failures = ?3, failed_at = ?4 WHERE highest_step IS ?5",
        )?
        .execute(params![key, after.highest_step, after.failures, after.failed_at, before.highest_step])?;
    Ok(if written == 1 { verdict } else { Verdict::AlreadyUsed })
}

/// Forgets the wrong codes given for a secret, not the accepted ones.
pub fn lift_wait(tx: &Transaction<'_>, secret: &[u8]) -> rusqlite::Result<()> {
    tx.execute("UPDATE code SET failures = 0 WHERE secret = ?1", [memory_key(secret)]).map(drop)
}

/// The secret itself is not kept once more.
fn memory_key(secret: &[u8]) -> String {
    hex(digest(&SHA256, &[b"scone-sim code memory 1\0", secret].concat()).as_ref())
}

fn load(tx: &Transaction<'_>, key: &str) -> rusqlite::Result<Memory> {
    tx.prepare_cached("SELECT highest_step, failures, failed_at FROM code WHERE secret = ?1")?
        .query_row([key], |row| Ok(Memory { highest_step: row.get(0)?, failures: row.get(1)?, failed_at: row.get(2)? }))
        .optional()
        .map(Option::unwrap_or_default)
}
