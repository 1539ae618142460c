//! Ctrl-C, Ctrl-\ and Ctrl-Z, and their like from elsewhere.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level::raise;

use crate::failure::Failure;
use crate::prompt;

/// Set once Ctrl-C was pressed or the run was told to terminate.
static STOP: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C, Ctrl-\, SIGTERM and SIGHUP end the run tidily, and Ctrl-Z suspends it tidily.
pub fn handle() -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGTSTP, SIGCONT])?;
    let answer = move || {
        for signal in signals.forever() {
            match signal {
                SIGTSTP => suspend(),
                SIGCONT => prompt::come_back(),
                _ => interrupt(),
            }
        }
    };
    thread::Builder::new().spawn(answer).map(drop)
}

/// Ends the run: at once if it waits at a question, else before its next step. Children get Ctrl-C from the terminal, too.
pub fn interrupt() {
    STOP.store(true, Ordering::SeqCst);
    prompt::exit_if_waiting();
}

/// What Ctrl-Z does. Started by a terminal and not by a shell, nobody could call the run back: then it does nothing, as ever.
fn suspend() {
    let is_a_job = rustix::process::getsid(None).is_ok_and(|session| session != rustix::process::getpgrp());
    if is_a_job {
        prompt::leave();
        // It returns when the run goes on, and the signal that made it go on is answered next.
        let _ = raise(SIGSTOP);
    }
}

/// Fails once the run was interrupted. Asked between steps, so that a step is finished, and what it leaves behind is recorded
/// or removed, before the script ends.
pub fn check() -> Result<(), Failure> {
    if is_interrupted() { Err(Failure::interrupted()) } else { Ok(()) }
}

/// Whether Ctrl-C was pressed or the run was told to terminate.
pub fn is_interrupted() -> bool {
    STOP.load(Ordering::SeqCst)
}
