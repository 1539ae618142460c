//! The barrier: no call that promises durability returns before the volumes are sealed.
//!
//! It is a seccomp filter that the program inherits. The calls that say "now it is safe" are held and announced to the
//! runtime, which seals and lets them continue. Calls that promise the same but cannot be held are refused, in ways that
//! programs already know from kernels and file systems that lack them. Everything else is allowed: this is not a sandbox.

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO,
    SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_USER_NOTIF, c_long, sock_filter,
};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the barrier's filter is written for x86-64 system calls");

/// The filter's only architecture (`linux/audit.h`).
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Set in the numbers of x32 calls, which share the architecture.
const X32_SYSCALL_BIT: u32 = 0x4000_0000;

/// Where the fields lie in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The lower half of an argument: flags are `int`s.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// Held until the volumes are sealed.
const HELD: [c_long; 5] = [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync, libc::SYS_syncfs, libc::SYS_msync];

/// Refused with ENOSYS, as on kernels without them: ways to sync that the filter cannot see into (rings and kernel-side queues
/// hold fsyncs of their own; openat2's flags lie in memory).
const ABSENT: [c_long; 4] =
    [libc::SYS_io_uring_setup, libc::SYS_io_setup, libc::SYS_openat2, libc::SYS_open_by_handle_at];

/// Refused with EOPNOTSUPP if the argument of that index has one of these bits: each write would be a sync.
const SYNCHRONOUS: [(c_long, u32, u32); 3] = [
    (libc::SYS_open, 1, libc::O_SYNC as u32),
    (libc::SYS_openat, 2, libc::O_SYNC as u32),
    (libc::SYS_pwritev2, 5, (libc::RWF_SYNC | libc::RWF_DSYNC) as u32),
];

/// The filter, in the kernel's terms.
pub fn filter() -> Vec<sock_filter> {
    let load = |offset| sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k: offset };
    let jump = |test: u32, k, jt, jf| sock_filter { code: (BPF_JMP | test | BPF_K) as u16, jt, jf, k };
    let end = |k| sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k };
    let errno = |errno: i32| end(SECCOMP_RET_ERRNO | errno as u32);

    let mut filter = vec![
        load(ARCHITECTURE),
        jump(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0),
        end(SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
        jump(BPF_JSET, X32_SYSCALL_BIT, 0, 1),
        end(SECCOMP_RET_KILL_PROCESS),
    ];
    for call in HELD {
        filter.extend([jump(BPF_JEQ, call as u32, 0, 1), end(SECCOMP_RET_USER_NOTIF)]);
    }
    for call in ABSENT {
        filter.extend([jump(BPF_JEQ, call as u32, 0, 1), errno(libc::ENOSYS)]);
    }
    for (call, index, bits) in SYNCHRONOUS {
        filter.extend([
            jump(BPF_JEQ, call as u32, 0, 4),
            load(argument(index)),
            jump(BPF_JSET, bits, 0, 1),
            errno(libc::EOPNOTSUPP),
            end(SECCOMP_RET_ALLOW),
        ]);
    }
    filter.push(end(SECCOMP_RET_ALLOW));
    filter
}
