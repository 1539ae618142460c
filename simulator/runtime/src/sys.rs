//! The system calls that neither std nor rustix offers safely. The one module with unsafe code; it decides nothing.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of_val, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use libc::{c_int, c_long, c_ulong};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// No descriptor of the caller's but the first three reaches the program.
pub fn close_other_descriptors_on_exec() -> io::Result<()> {
    // SAFETY: touches no memory; a close-on-exec mark takes no descriptor away from its owner.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// Moves this process into its own user and mount namespace, and its children into a PID namespace.
pub fn unshare_namespaces() -> io::Result<()> {
    let namespaces = UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWPID;
    // SAFETY: unsafe only with FILES, which would part this process's threads' descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces) }?)
}

/// Lets nothing be executed from the mount that `at` is the root of, nor from the mounts below it; set-user-ID bits and devices
/// count for nothing there. Linux 5.12 and newer.
pub fn forbid_execution(at: BorrowedFd) -> io::Result<()> {
    // SAFETY: plain data, and what is not set is to be zero.
    let mut attributes: libc::mount_attr = unsafe { zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let (flags, size) = (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, size_of_val(&attributes));
    let attributes = &raw const attributes;
    // SAFETY: reads `size` bytes of `attributes` and a string that is static.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, at.as_raw_fd(), c"".as_ptr(), flags, attributes, size) })?;
    Ok(())
}

/// Forks: the child's PID for the parent, `None` for the child. To be called while there is one thread.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: with one thread, no lock is held by a thread that the child lacks.
    Ok(Pid::from_raw(check(c_long::from(unsafe { libc::fork() }))? as c_int))
}

/// Sends SIGKILL to every process of this PID namespace but the caller, its init.
pub fn kill_all_others() -> Result<(), Errno> {
    // SAFETY: touches no memory.
    match check(c_long::from(unsafe { libc::kill(-1, libc::SIGKILL) })) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
        _ => Ok(()),
    }
}

/// Blocks `signals` in this and all later threads, and returns the descriptor from which they are read instead. A caller that
/// ignores SIGCHLD passes that on; children would vanish unseen.
pub fn block_signals(signals: &[c_int]) -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data that sigemptyset sets up; the calls write nowhere else. No handler is installed.
    let fd = unsafe {
        if libc::signal(libc::SIGCHLD, libc::SIG_DFL) == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
        let mut set = zeroed();
        libc::sigemptyset(&mut set);
        for &signal in signals {
            libc::sigaddset(&mut set, signal);
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) {
            0 => libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK),
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
    };
    own(c_long::from(fd))
}

/// Lets `command` start with no signal blocked.
pub fn start_with_signals_unblocked(command: &mut Command) {
    let unblock = || {
        // SAFETY: as in `block_signals`; both calls are async-signal-safe.
        let errno = unsafe {
            let mut none = zeroed();
            libc::sigemptyset(&mut none);
            libc::pthread_sigmask(libc::SIG_SETMASK, &none, ptr::null_mut())
        };
        if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
    };
    // SAFETY: between fork and exec, the closure makes async-signal-safe calls only and allocates nothing.
    unsafe { command.pre_exec(unblock) };
}

/// Puts `filter` on the calling thread and the children it will have. Returns where held calls are announced. The thread must
/// have `no_new_privs`.
pub fn install_filter(filter: &mut [libc::sock_filter]) -> io::Result<OwnedFd> {
    let length = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
    // SAFETY: `program` and the filter that it points to outlive the call, which only reads them.
    let install = |flags: c_ulong| unsafe {
        check(libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program))
    };
    let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // Without WAIT_KILLABLE_RECV (Linux before 5.19) a signal handler interrupts a held call, which is then announced again:
    // with a timer faster than a seal, for ever.
    match install(listener | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => own(install(listener)?),
        installed => own(installed?),
    }
}

/// Takes the next held call; `None` if its process has gone.
pub fn receive_held_call(listener: BorrowedFd) -> io::Result<Option<u64>> {
    // SAFETY: plain data, and all zero, as the kernel demands.
    let mut call: libc::seccomp_notif = unsafe { zeroed() };
    // SAFETY: the request writes one `seccomp_notif`.
    let received = check(c_long::from(unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call)
    }));
    match received {
        Ok(_) => Ok(Some(call.id)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets a held call continue.
pub fn continue_held_call(listener: BorrowedFd, id: u64) -> io::Result<()> {
    let mut answer =
        libc::seccomp_notif_resp { id, val: 0, error: 0, flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 };
    // SAFETY: the request reads one `seccomp_notif_resp`.
    let sent = check(c_long::from(unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer)
    }));
    match sent {
        // The process has gone, or a signal took it out of the call.
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// A signal as [`block_signals`]'s descriptor tells it.
pub struct Signal {
    /// Its number.
    pub number: c_int,
    /// Whether a process sent it, rather than the terminal (which sends it to the program as well).
    pub sent: bool,
}

/// Reads the next signal; `None` if none is pending.
pub fn read_signal(signals: BorrowedFd) -> io::Result<Option<Signal>> {
    // SAFETY: plain data.
    let mut info: libc::signalfd_siginfo = unsafe { zeroed() };
    let size = size_of_val(&info);
    // SAFETY: `info` has room for `size` bytes, and any bytes are a valid `signalfd_siginfo`.
    let count = check(unsafe { libc::read(signals.as_raw_fd(), (&raw mut info).cast(), size) } as c_long);
    match count {
        Ok(_) => Ok(Some(Signal { number: info.ssi_signo as c_int, sent: info.ssi_code != libc::SI_KERNEL })),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn own(fd: c_long) -> io::Result<OwnedFd> {
    let fd = check(fd)? as c_int;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
