//! Searches every interleaving of a few clients, a few moments and a few crashes. [`judge`] is the real one; locks, transactions
//! and the disk are modelled, and each can be taken out, to see that the search would notice.

use std::collections::HashSet;

use super::*;

const SECRET: &[u8] = b"12345678901234567890";
const FIRST: u64 = 100;

/// What keeps acceptance single, each of which can be taken out.
#[derive(Clone, Copy)]
struct Guards {
    /// A transaction looks and writes alone (`BEGIN IMMEDIATE`, and the store's lock).
    alone: bool,
    /// A write happens only if memory is what the transaction saw (compare-and-set).
    compare: bool,
    /// The answer waits for the commit.
    commit_first: bool,
    /// What is remembered is on the disk, not only in the process.
    durable: bool,
}

const ALL: Guards = Guards { alone: true, compare: true, commit_first: true, durable: true };

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    /// Brings the code of this step.
    Asks(u64),
    /// Has seen memory at a moment, and not yet written.
    Saw(u64, Memory, u64),
    /// Is to be served, once its write is committed.
    Waits(u64),
    Served(u64),
    Refused,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    clients: [Client; 3],
    /// What is committed, and what the open transaction would make of it.
    committed: Memory,
    current: Memory,
    now: u64,
    crashes: u32,
    /// Served before a crash: how often, for each of the two steps.
    served: [u8; 2],
}

impl State {
    fn released(&self, step: u64) -> usize {
        let now = self.clients.iter().filter(|client| **client == Client::Served(step)).count();
        now + usize::from(self.served[(step - FIRST) as usize])
    }

    /// Released at most once, and only what is remembered for good.
    fn is_right(&self) -> bool {
        [FIRST, FIRST + 1].into_iter().all(|step| {
            let remembered = self.committed.highest_step.is_some_and(|highest| highest >= step);
            self.released(step) <= 1 && (self.released(step) == 0 || remembered)
        })
    }

    fn write(&mut self, client: usize, step: u64, seen: Memory, at: u64, guards: Guards) {
        let (verdict, after) = judge(seen, SECRET, code(step), at);
        let stale = guards.compare && self.current.highest_step != seen.highest_step;
        self.clients[client] = match verdict {
            Verdict::Accepted { step } if !stale => {
                self.current = after;
                if guards.commit_first { Client::Waits(step) } else { Client::Served(step) }
            }
            _ => Client::Refused,
        };
    }

    fn next(&self, guards: Guards) -> Vec<State> {
        let mut next = Vec::new();
        let mut add = |change: &dyn Fn(&mut State)| {
            let mut state = self.clone();
            change(&mut state);
            next.push(state);
        };
        for (i, client) in self.clients.into_iter().enumerate() {
            match client {
                Client::Asks(step) if guards.alone => {
                    add(&|state| state.write(i, step, state.current, state.now, guards));
                }
                Client::Asks(step) => add(&|state| state.clients[i] = Client::Saw(step, state.current, state.now)),
                Client::Saw(step, seen, at) => add(&|state| state.write(i, step, seen, at, guards)),
                Client::Waits(_) | Client::Served(_) | Client::Refused => {}
            }
        }
        // The commit serves all who wait for it.
        add(&|state| {
            state.committed = state.current;
            for client in &mut state.clients {
                if let Client::Waits(step) = *client {
                    *client = Client::Served(step);
                }
            }
        });
        // The clock is set, forward or back, across the edges of both steps.
        for now in [FIRST - 1, FIRST, FIRST + 1, FIRST + 2] {
            add(&|state| state.now = now * STEP);
        }
        // The process dies and comes back; who was not served asks again.
        if self.crashes < 2 {
            add(&|state| {
                state.crashes += 1;
                if !guards.durable {
                    state.committed = Memory::default();
                }
                state.current = state.committed;
                for (client, asked) in state.clients.iter_mut().zip(BROUGHT) {
                    if let Client::Served(step) = *client {
                        state.served[(step - FIRST) as usize] += 1;
                    }
                    *client = Client::Asks(asked);
                }
            });
        }
        next
    }
}

/// Two bring the same code, one that of the next step.
const BROUGHT: [u64; 3] = [FIRST, FIRST, FIRST + 1];

fn code(step: u64) -> u32 {
    let totp = TOTP::new_unchecked(Algorithm::SHA1, 6, 0, STEP, SECRET.to_vec());
    parse(&totp.generate(step * STEP)).unwrap()
}

/// Whether every state that can be reached is right; and how many there are.
fn holds(guards: Guards) -> (bool, usize) {
    let start = State {
        clients: BROUGHT.map(Client::Asks),
        committed: Memory::default(),
        current: Memory::default(),
        now: FIRST * STEP,
        crashes: 0,
        served: [0; 2],
    };
    let mut seen = HashSet::from([start.clone()]);
    let mut open = vec![start];
    while let Some(state) = open.pop() {
        if !state.is_right() {
            return (false, seen.len());
        }
        open.extend(state.next(guards).into_iter().filter(|next| seen.insert(next.clone())));
    }
    (true, seen.len())
}

#[test]
fn in_every_interleaving_with_crashes_a_step_is_released_once_and_only_when_it_is_remembered() {
    let (right, states) = holds(ALL);
    assert!(right);
    assert!(states > 500, "{states} states are too few to have tried anything");
    // Either of the two against a race is enough.
    assert!(holds(Guards { alone: false, ..ALL }).0);
    assert!(holds(Guards { compare: false, ..ALL }).0);
}

#[test]
fn without_what_keeps_it_single_the_search_finds_a_code_released_twice() {
    assert!(!holds(Guards { alone: false, compare: false, ..ALL }).0);
    assert!(!holds(Guards { commit_first: false, ..ALL }).0);
    assert!(!holds(Guards { durable: false, ..ALL }).0);
}
