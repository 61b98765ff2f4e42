// SPDX-License-Identifier: Apache-2.0
//! Docker's default seccomp profile (moby/profiles, seccomp/default.json) for x86-64: what is listed is allowed,
//! some of it only with a capability or certain arguments; the rest fails with EPERM. What the profile
//! does not know yet, and clone3 (whose flags a filter cannot see), fails with ENOSYS so that libc falls back.
//!
//! Only the 64-bit call table is open: the guest's kernel has no 32-bit one.
//!
//! The program is a binary search. The kernel runs it once for every call there is when it is installed, and then
//! for every call that looks at arguments: a list of comparisons would cost 12 ms more at each start under emulation.

#![allow(non_upper_case_globals, reason = "libc's naming")]

#[allow(clippy::wildcard_imports, reason = "three hundred constants")]
use libc::*;

use crate::capability;

// Calls that libc's table does not have yet.
const SYS_io_pgetevents: i64 = 333;
const SYS_uretprobe: i64 = 335;
const SYS_cachestat: i64 = 451;
const SYS_map_shadow_stack: i64 = 453;
const SYS_futex_wake: i64 = 454;
const SYS_futex_wait: i64 = 455;
const SYS_futex_requeue: i64 = 456;
const SYS_statmount: i64 = 457;
const SYS_listmount: i64 = 458;
const SYS_lsm_get_self_attr: i64 = 459;
const SYS_lsm_set_self_attr: i64 = 460;
const SYS_lsm_list_modules: i64 = 461;
const SYS_setxattrat: i64 = 463;
const SYS_getxattrat: i64 = 464;
const SYS_listxattrat: i64 = 465;
const SYS_removexattrat: i64 = 466;

/// The newest call that the profile has an opinion on.
const NEWEST: u32 = SYS_removexattrat as u32;

#[rustfmt::skip]
const ALLOWED: &[i64] = &[
    SYS_accept, SYS_accept4, SYS_access, SYS_adjtimex, SYS_alarm, SYS_bind, SYS_brk, SYS_cachestat, SYS_capget,
    SYS_capset, SYS_chdir, SYS_chmod, SYS_chown, SYS_clock_adjtime, SYS_clock_getres, SYS_clock_gettime,
    SYS_clock_nanosleep, SYS_close, SYS_close_range, SYS_connect, SYS_copy_file_range, SYS_creat, SYS_dup, SYS_dup2,
    SYS_dup3, SYS_epoll_create, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_ctl_old, SYS_epoll_pwait,
    SYS_epoll_pwait2, SYS_epoll_wait, SYS_epoll_wait_old, SYS_eventfd, SYS_eventfd2, SYS_execve, SYS_execveat,
    SYS_exit, SYS_exit_group, SYS_faccessat, SYS_faccessat2, SYS_fadvise64, SYS_fallocate, SYS_fanotify_mark,
    SYS_fchdir, SYS_fchmod, SYS_fchmodat, SYS_fchmodat2, SYS_fchown, SYS_fchownat, SYS_fcntl, SYS_fdatasync,
    SYS_fgetxattr, SYS_flistxattr, SYS_flock, SYS_fork, SYS_fremovexattr, SYS_fsetxattr, SYS_fstat, SYS_fstatfs,
    SYS_fsync, SYS_ftruncate, SYS_futex, SYS_futex_requeue, SYS_futex_wait, SYS_futex_waitv, SYS_futex_wake,
    SYS_futimesat, SYS_getcpu, SYS_getcwd, SYS_getdents, SYS_getdents64, SYS_getegid, SYS_geteuid, SYS_getgid,
    SYS_getgroups, SYS_getitimer, SYS_getpeername, SYS_getpgid, SYS_getpgrp, SYS_getpid, SYS_getppid, SYS_getpriority,
    SYS_getrandom, SYS_getresgid, SYS_getresuid, SYS_getrlimit, SYS_get_robust_list, SYS_getrusage, SYS_getsid,
    SYS_getsockname, SYS_getsockopt, SYS_get_thread_area, SYS_gettid, SYS_gettimeofday, SYS_getuid, SYS_getxattr,
    SYS_getxattrat, SYS_inotify_add_watch, SYS_inotify_init, SYS_inotify_init1, SYS_inotify_rm_watch, SYS_io_cancel,
    SYS_ioctl, SYS_io_destroy, SYS_io_getevents, SYS_io_pgetevents, SYS_ioprio_get, SYS_ioprio_set, SYS_io_setup,
    SYS_io_submit, SYS_kill, SYS_landlock_add_rule, SYS_landlock_create_ruleset, SYS_landlock_restrict_self,
    SYS_lchown, SYS_lgetxattr, SYS_link, SYS_linkat, SYS_listen, SYS_listmount, SYS_listxattr, SYS_listxattrat,
    SYS_llistxattr, SYS_lremovexattr, SYS_lseek, SYS_lsetxattr, SYS_lstat, SYS_madvise, SYS_map_shadow_stack,
    SYS_membarrier, SYS_memfd_create, SYS_memfd_secret, SYS_mincore, SYS_mkdir, SYS_mkdirat, SYS_mknod, SYS_mknodat,
    SYS_mlock, SYS_mlock2, SYS_mlockall, SYS_mmap, SYS_mprotect, SYS_mq_getsetattr, SYS_mq_notify, SYS_mq_open,
    SYS_mq_timedreceive, SYS_mq_timedsend, SYS_mq_unlink, SYS_mremap, SYS_mseal, SYS_msgctl, SYS_msgget, SYS_msgrcv,
    SYS_msgsnd, SYS_msync, SYS_munlock, SYS_munlockall, SYS_munmap, SYS_name_to_handle_at, SYS_nanosleep,
    SYS_newfstatat, SYS_open, SYS_openat, SYS_openat2, SYS_pause, SYS_pidfd_open, SYS_pidfd_send_signal, SYS_pipe,
    SYS_pipe2, SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect, SYS_poll, SYS_ppoll, SYS_prctl, SYS_pread64,
    SYS_preadv, SYS_preadv2, SYS_prlimit64, SYS_process_mrelease, SYS_pselect6, SYS_pwrite64, SYS_pwritev,
    SYS_pwritev2, SYS_read, SYS_readahead, SYS_readlink, SYS_readlinkat, SYS_readv, SYS_recvfrom, SYS_recvmmsg,
    SYS_recvmsg, SYS_remap_file_pages, SYS_removexattr, SYS_removexattrat, SYS_rename, SYS_renameat, SYS_renameat2,
    SYS_restart_syscall, SYS_rmdir, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigpending, SYS_rt_sigprocmask,
    SYS_rt_sigqueueinfo, SYS_rt_sigreturn, SYS_rt_sigsuspend, SYS_rt_sigtimedwait, SYS_rt_tgsigqueueinfo,
    SYS_sched_getaffinity, SYS_sched_getattr, SYS_sched_getparam, SYS_sched_get_priority_max,
    SYS_sched_get_priority_min, SYS_sched_getscheduler, SYS_sched_rr_get_interval, SYS_sched_setaffinity,
    SYS_sched_setattr, SYS_sched_setparam, SYS_sched_setscheduler, SYS_sched_yield, SYS_seccomp, SYS_select,
    SYS_semctl, SYS_semget, SYS_semop, SYS_semtimedop, SYS_sendfile, SYS_sendmmsg, SYS_sendmsg, SYS_sendto,
    SYS_setfsgid, SYS_setfsuid, SYS_setgid, SYS_setgroups, SYS_setitimer, SYS_setpgid, SYS_setpriority, SYS_setregid,
    SYS_setresgid, SYS_setresuid, SYS_setreuid, SYS_setrlimit, SYS_set_robust_list, SYS_setsid, SYS_setsockopt,
    SYS_set_thread_area, SYS_set_tid_address, SYS_setuid, SYS_setxattr, SYS_setxattrat, SYS_shmat, SYS_shmctl,
    SYS_shmdt, SYS_shmget, SYS_shutdown, SYS_sigaltstack, SYS_signalfd, SYS_signalfd4, SYS_socketpair, SYS_splice,
    SYS_stat, SYS_statfs, SYS_statmount, SYS_statx, SYS_symlink, SYS_symlinkat, SYS_sync, SYS_sync_file_range,
    SYS_syncfs, SYS_sysinfo, SYS_tee, SYS_tgkill, SYS_time, SYS_timer_create, SYS_timer_delete, SYS_timerfd_create,
    SYS_timerfd_gettime, SYS_timerfd_settime, SYS_timer_getoverrun, SYS_timer_gettime, SYS_timer_settime, SYS_times,
    SYS_tkill, SYS_truncate, SYS_umask, SYS_uname, SYS_unlink, SYS_unlinkat, SYS_uretprobe, SYS_utime, SYS_utimensat,
    SYS_utimes, SYS_vfork, SYS_vmsplice, SYS_wait4, SYS_waitid, SYS_write, SYS_writev, SYS_process_vm_readv,
    SYS_process_vm_writev, SYS_ptrace, SYS_arch_prctl, SYS_modify_ldt,
];

/// Allowed with the capability alone.
#[rustfmt::skip]
const WITH_CAPABILITY: &[(&str, &[i64])] = &[
    ("DAC_READ_SEARCH", &[SYS_open_by_handle_at]),
    ("SYS_ADMIN", &[
        SYS_bpf, SYS_clone, SYS_fanotify_init, SYS_fsconfig, SYS_fsmount, SYS_fsopen, SYS_fspick, SYS_lookup_dcookie,
        SYS_lsm_get_self_attr, SYS_lsm_list_modules, SYS_lsm_set_self_attr, SYS_mount, SYS_mount_setattr, SYS_move_mount,
        SYS_open_tree, SYS_perf_event_open, SYS_quotactl, SYS_quotactl_fd, SYS_setdomainname, SYS_sethostname, SYS_setns,
        SYS_syslog, SYS_umount2, SYS_unshare, SYS_clone3,
    ]),
    ("SYS_BOOT", &[SYS_reboot]),
    ("SYS_CHROOT", &[SYS_chroot]),
    ("SYS_MODULE", &[SYS_delete_module, SYS_init_module, SYS_finit_module]),
    ("SYS_PACCT", &[SYS_acct]),
    ("SYS_PTRACE", &[SYS_kcmp, SYS_pidfd_getfd, SYS_process_madvise]),
    ("SYS_RAWIO", &[SYS_iopl, SYS_ioperm]),
    ("SYS_TIME", &[SYS_settimeofday, SYS_clock_settime]),
    ("SYS_TTY_CONFIG", &[SYS_vhangup]),
    ("SYS_NICE", &[SYS_get_mempolicy, SYS_mbind, SYS_set_mempolicy, SYS_set_mempolicy_home_node]),
    ("SYSLOG", &[SYS_syslog]),
    ("BPF", &[SYS_bpf]),
    ("PERFMON", &[SYS_perf_event_open]),
];

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: u32 = 0x7e02_0000;

/// Families below AF_SNA's end, and these above; not AF_ALG (38) and not AF_VSOCK (40), which leads out of the VM.
const SOCKET_FAMILIES_BELOW: u32 = 12;
const SOCKET_FAMILIES: &[u32] =
    &[13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45];

/// PER_LINUX, PER_LINUX32, each with UNAME26, and the query.
const PERSONALITIES: &[u32] = &[0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

// struct seccomp_data
const CALL: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const LAST_ARGUMENT: u32 = 56;
const X86_64: u32 = 0xc000_003e;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Deny,
    Unknown,
    /// As its first argument says.
    Clone,
    Socket,
    Personality,
    /// Allowed with this in the last argument, which the call does not have; else as without.
    Pass(u64, u32),
}

/// The filter for a process with these capabilities.
pub fn program(capabilities: capability::Set) -> Vec<sock_filter> {
    assemble(&verdicts(capabilities))
}

/// The same, installed once for all who are forked: whoever knows the number may join namespaces and be born in a cgroup.
/// It opens the filter alone. The capabilities that those calls ask for are none of a container's.
pub fn program_with_pass(capabilities: capability::Set, pass: u64) -> Vec<sock_filter> {
    let mut verdicts = verdicts(capabilities);
    for (call, refusal) in [(SYS_setns, EPERM), (SYS_clone3, ENOSYS)] {
        let verdict = &mut verdicts[call as usize].1;
        if *verdict != Verdict::Allow {
            *verdict = Verdict::Pass(pass, SECCOMP_RET_ERRNO | refusal as u32);
        }
    }
    assemble(&verdicts)
}

fn assemble(verdicts: &[(u32, Verdict)]) -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCHITECTURE),
        jump(BPF_JEQ, X86_64, 1, 0),
        statement(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        load(CALL),
    ];
    program.extend(search(&ranges(verdicts)));
    program
}

/// By number, up to the newest call; the last one is for all that are newer.
fn verdicts(capabilities: capability::Set) -> Vec<(u32, Verdict)> {
    let mut calls = vec![Verdict::Deny; NEWEST as usize + 1];
    let conditional =
        [(SYS_clone, Verdict::Clone), (SYS_socket, Verdict::Socket), (SYS_personality, Verdict::Personality)];
    let allowed = ALLOWED.iter().map(|&call| (call, Verdict::Allow));
    let granted = WITH_CAPABILITY.iter().filter(|(capability, _)| capabilities.has(capability));
    let granted = granted.flat_map(|(_, calls)| calls.iter().map(|&call| (call, Verdict::Allow)));
    let unseen = [(SYS_clone3, Verdict::Unknown)];
    for (call, verdict) in allowed.chain(conditional).chain(unseen).chain(granted) {
        calls[call as usize] = verdict;
    }
    calls.push(Verdict::Unknown);
    (0..).zip(calls).collect()
}

/// Only the values at which the verdict changes.
fn ranges(verdicts: &[(u32, Verdict)]) -> Vec<(u32, Verdict)> {
    let mut ranges = verdicts.to_vec();
    ranges.dedup_by_key(|&mut (_, verdict)| verdict);
    ranges
}

/// Allows these values and denies all others. Sorted.
fn only(values: &[u32]) -> Vec<(u32, Verdict)> {
    let mut verdicts = vec![(0, Verdict::Deny)];
    for &value in values {
        verdicts.retain(|&(from, _)| from != value);
        verdicts.push((value, Verdict::Allow));
        verdicts.extend(value.checked_add(1).map(|next| (next, Verdict::Deny)));
    }
    ranges(&verdicts)
}

/// Finds the range in which the loaded value is; each begins where it says and ends before the next.
fn search(ranges: &[(u32, Verdict)]) -> Vec<sock_filter> {
    if let [(_, verdict)] = ranges {
        return pronounce(*verdict);
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let (below, above) = (search(lower), search(upper));
    let mut program = match u8::try_from(below.len()) {
        Ok(length) => vec![jump(BPF_JGE, upper[0].0, length, 0)],
        Err(_) => vec![jump(BPF_JGE, upper[0].0, 0, 1), statement(BPF_JMP | BPF_JA, below.len() as u32)],
    };
    program.extend(below);
    program.extend(above);
    program
}

fn pronounce(verdict: Verdict) -> Vec<sock_filter> {
    let end = |value| vec![statement(BPF_RET | BPF_K, value)];
    match verdict {
        Verdict::Allow => end(SECCOMP_RET_ALLOW),
        Verdict::Deny => end(SECCOMP_RET_ERRNO | EPERM as u32),
        Verdict::Unknown => end(SECCOMP_RET_ERRNO | ENOSYS as u32),
        Verdict::Clone => {
            let mut program = vec![load(FIRST_ARGUMENT), statement(BPF_ALU | BPF_AND | BPF_K, NAMESPACE_FLAGS)];
            program.extend(search(&only(&[0])));
            program
        }
        Verdict::Socket => {
            let families: Vec<u32> = (0..SOCKET_FAMILIES_BELOW).chain(SOCKET_FAMILIES.iter().copied()).collect();
            look_at_argument(&families)
        }
        Verdict::Personality => look_at_argument(PERSONALITIES),
        Verdict::Pass(pass, refusal) => vec![
            load(LAST_ARGUMENT),
            jump(BPF_JEQ, pass as u32, 0, 3),
            load(LAST_ARGUMENT + 4),
            jump(BPF_JEQ, (pass >> 32) as u32, 0, 1),
            statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
            statement(BPF_RET | BPF_K, refusal),
        ],
    }
}

fn look_at_argument(allowed: &[u32]) -> Vec<sock_filter> {
    let mut program = vec![load(FIRST_ARGUMENT)];
    program.extend(search(&only(allowed)));
    program
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(condition: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | condition | BPF_K) as u16, jt, jf, k }
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
