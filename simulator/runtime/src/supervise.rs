//! Runs the program: behind the barrier, with its signals forwarded, and leaving no process behind.
//!
//! The runtime is the init of a PID namespace: its end, however violent, is the end of every process in it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::thread;

use libc::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, c_int};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, set_parent_process_death_signal, wait};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::{barrier, sys};

const SIGNALS: [c_int; 8] = [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGCONT];

/// What ended a run before the program did.
#[derive(Debug)]
pub enum Error<E> {
    /// The system.
    System(&'static str, io::Error),
    /// What was to happen at a sync point.
    Sync(E),
}

/// Signals, blocked from the start, so that none is lost between here and the program.
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks them. To be called while there is one thread.
    pub fn block() -> io::Result<Signals> {
        sys::block_signals(&SIGNALS).map(Signals)
    }

    /// The exit status to end with, if a signal has asked to stop before there was a program to pass it on to.
    pub fn stop_requested(&self) -> io::Result<Option<u8>> {
        while let Some(signal) = sys::read_signal(self.0.as_fd())? {
            if [SIGHUP, SIGINT, SIGQUIT, SIGTERM].contains(&signal.number) {
                return Ok(u8::try_from(128 + signal.number).ok());
            }
        }
        Ok(None)
    }

    /// Passes signals on to `child` and returns once one of them says that a child has ended.
    fn forward(&self, child: Pid) -> io::Result<bool> {
        let mut child_ended = false;
        while let Some(signal) = sys::read_signal(self.0.as_fd())? {
            if signal.number == SIGCHLD {
                child_ended = true;
            } else if signal.sent
                && let Some(signal) = Signal::from_named_raw(signal.number)
            {
                match kill_process(child, signal) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(child_ended)
    }
}

/// Forks. The child, for whom this returns `None`, is the init of the PID namespace made for it; this process stands by, and
/// returns its exit status. They end together.
pub fn become_init(signals: &Signals) -> io::Result<Option<u8>> {
    let (childs_end, parents_end) = io::pipe()?;
    if let Some(child) = sys::fork()? {
        return stand_by(child, signals).map(Some);
    }
    drop(parents_end);
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // If the parent died before that, its end of the pipe has gone with it.
    let mut end = [PollFd::new(&childs_end, PollFlags::IN)];
    poll(&mut end, Some(&Timespec::default()))?;
    if end[0].revents().contains(PollFlags::HUP) { Err(io::Error::other("the parent has gone")) } else { Ok(None) }
}

/// Stands by `child` outside its namespace until it ends. Its exit status.
fn stand_by(child: Pid, signals: &Signals) -> io::Result<u8> {
    loop {
        poll(&mut [PollFd::new(&signals.0, PollFlags::IN)], None).or_else(ignore_interruption)?;
        if signals.forward(child)?
            && let Some(status) = reap(child)?
        {
            return Ok(status);
        }
    }
}

/// Runs `command`, calling `on_sync` whenever one of its processes syncs, and returns its exit status once none is left. If
/// `on_sync` fails, no process sees its sync return.
pub fn run<E>(command: Command, signals: &Signals, on_sync: &mut dyn FnMut() -> Result<(), E>) -> Result<u8, Error<E>> {
    let (child, listener) = start(command).map_err(|error| Error::System("start the program", error))?;
    let ended = watch(child, &listener, signals, on_sync);
    // Before `listener` is closed, which would let held calls return.
    let emptied = end_all().map_err(|error| Error::System("end the program's processes", error));
    let early = emptied?;
    match ended? {
        Some(status) => Ok(status),
        None => early
            .into_iter()
            .find_map(|(pid, status)| (pid == child).then_some(status))
            .ok_or_else(|| Error::System("wait for the program", io::Error::from(io::ErrorKind::NotFound))),
    }
}

fn watch<E>(
    child: Pid,
    listener: &OwnedFd,
    signals: &Signals,
    on_sync: &mut dyn FnMut() -> Result<(), E>,
) -> Result<Option<u8>, Error<E>> {
    loop {
        let mut ready = [PollFd::new(&signals.0, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        poll(&mut ready, None).or_else(ignore_interruption).map_err(|error| Error::System("wait", error.into()))?;
        let held = ready[1].revents();
        if signals.forward(child).map_err(|error| Error::System("forward a signal", error))?
            && let Some(status) = reap(child).map_err(|error| Error::System("wait for the program", error))?
        {
            return Ok(Some(status));
        }
        if held.contains(PollFlags::IN) {
            let barrier = |error| Error::System("hold a sync", error);
            if let Some(call) = sys::receive_held_call(listener.as_fd()).map_err(barrier)? {
                on_sync().map_err(Error::Sync)?;
                sys::continue_held_call(listener.as_fd(), call).map_err(barrier)?;
            }
        } else if held.contains(PollFlags::HUP) {
            // No process is left that could sync.
            return Ok(None);
        }
    }
}

/// Starts `command` from a thread that lives for this alone: filter and lost privileges are that thread's and its child's.
fn start(mut command: Command) -> io::Result<(Pid, OwnedFd)> {
    sys::start_with_signals_unblocked(&mut command);
    let start = move || {
        drop_capabilities()?;
        set_no_new_privs(true)?;
        let listener = sys::install_filter(&mut barrier::filter())
            .map_err(|error| io::Error::other(format!("this system has no seccomp that could hold a sync: {error}")))?;
        // The program inherits it: with the runtime's death the last copy would be closed, and a held sync would return to a
        // program that has not been killed yet.
        fcntl_setfd(&listener, FdFlags::empty())?;
        let child = command.spawn()?.id();
        fcntl_setfd(&listener, FdFlags::CLOEXEC)?;
        let child = i32::try_from(child).ok().and_then(Pid::from_raw);
        Ok((child.ok_or_else(|| io::Error::other("no PID"))?, listener))
    };
    thread::spawn(start).join().map_err(|_| io::Error::other("a thread panicked"))?
}

/// In its own user namespace the runtime has every capability; the program needs none, and could undo mounts with them.
fn drop_capabilities() -> Result<(), Errno> {
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // Not permitted where the process has no capabilities; not known to an older kernel.
            Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

/// Ends and reaps every process of the namespace.
fn end_all() -> io::Result<Vec<(Pid, u8)>> {
    let mut ended = Vec::new();
    loop {
        sys::kill_all_others()?;
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => ended.extend(exit_status(status).map(|status| (pid, status))),
            Ok(None) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return Ok(ended),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Reaps what has ended; the exit status of `child` if it was among them.
fn reap(child: Pid) -> io::Result<Option<u8>> {
    let mut found = None;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == child => found = exit_status(status),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(Errno::CHILD) => return Ok(found),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// As a shell has it: 128 and the signal's number for a process that a signal ended.
fn exit_status(status: WaitStatus) -> Option<u8> {
    let status = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal))?;
    u8::try_from(status).ok()
}

fn ignore_interruption(errno: Errno) -> Result<usize, Errno> {
    if errno == Errno::INTR { Ok(0) } else { Err(errno) }
}
