// SPDX-License-Identifier: Apache-2.0
//! The only unsafe code: system calls that rustix does not wrap, or cannot wrap safely.
//! Every function here is safe to call and says why its unsafe block is sound.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

mod bpf;
mod filesystem;

pub use bpf::{attach_device_program, load_device_program};
pub use filesystem::{
    add_partition, freeze_filesystem, grow_ext4, grow_xfs, resize_partition, thaw_filesystem, xfs_geometry,
};

fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// Keeps glibc to one heap: the agent is small and an arena per thread is not.
pub fn use_one_heap() {
    // SAFETY: mallopt only changes malloc's own parameters; called before any thread exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

const MAX_FDS: usize = 16;

pub struct Spawn<'a> {
    pub program: &'a CStr,
    pub argv: &'a [CString],
    /// `(ours, theirs)`: what the child finds open, and under which number; at most [`MAX_FDS`], below that number.
    pub fds: &'a [(RawFd, RawFd)],
    /// CLONE_NEW*
    pub namespaces: u64,
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// clone3 + execve: the child is born in its namespaces and its cgroup, and single-threaded.
pub fn spawn(spec: &Spawn<'_>) -> Result<(u32, OwnedFd)> {
    let mut pointers: Vec<*const libc::c_char> = spec.argv.iter().map(|a| a.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment: [*const libc::c_char; 1] = [std::ptr::null()];
    let mut pidfd: RawFd = -1;
    // libc's own constant does not fit its type.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: clone_args is plain data for which all-zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = spec.namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = spec.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has its own copy of memory, like fork. Until execve it makes only
    // system calls on memory prepared above: no allocation, no lock, no destructor.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>());
        if pid == 0 {
            // Free numbers first, so that no target is overwritten before it was read.
            let mut aside = [-1; MAX_FDS];
            for (slot, &(ours, _)) in aside.iter_mut().zip(spec.fds) {
                *slot = libc::fcntl(ours, libc::F_DUPFD_CLOEXEC, MAX_FDS as RawFd);
            }
            for (&slot, &(_, theirs)) in aside.iter().zip(spec.fds) {
                if libc::dup2(slot, theirs) < 0 {
                    libc::_exit(125);
                }
            }
            libc::execve(spec.program.as_ptr(), pointers.as_ptr(), environment.as_ptr());
            libc::_exit(125);
        }
        check(pid)?
    };
    // SAFETY: the kernel stored a fresh descriptor that nobody else owns.
    Ok((pid as u32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Only for the single-threaded nursery: a child of its parent's, in that cgroup. True in the child. `pass`: what the
/// caller's own filter asks for.
pub fn fork_sibling(cgroup: Option<BorrowedFd<'_>>, pass: u64) -> Result<bool> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: clone_args is plain data for which all-zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // A sibling's signal at its exit is its parent's: none may be given here.
    args.flags = libc::CLONE_PARENT as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has its own copy of memory, like fork; the caller has one thread, so that the
    // copy of every lock is free. What glibc remembers of its thread's id is the parent's, and is used by nothing here.
    let size = size_of::<libc::clone_args>();
    Ok(check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size, 0, 0, 0, pass) })? == 0)
}

/// Only for the single-threaded container-init. `None` in the child.
pub fn fork() -> Result<Option<u32>> {
    // SAFETY: the caller has one thread, so that the child's copy of every lock is free.
    match check(unsafe { libc::fork() }.into())? {
        0 => Ok(None),
        pid => Ok(Some(pid as u32)),
    }
}

pub fn execve(program: &CStr, argv: &[CString], env: &[CString]) -> Error {
    let pointers = |list: &[CString]| list.iter().map(|a| a.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in null and point to strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    Error::last_os_error()
}

/// Takes a descriptor that was passed by number at exec. Each number may be taken once.
pub fn inherited(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: the number is checked to be open, and the protocol of `spawn` gives it to us alone.
    unsafe {
        check(libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC).into())?;
        Ok(OwnedFd::from_raw_fd(number))
    }
}

pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the kernel writes at most N bytes.
    let got = check(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) } as libc::c_long)?;
    if got == N as libc::c_long { Ok(bytes) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

/// Readable when a child has ended. From here on the signal itself comes to nobody: called before there are threads.
pub fn child_signals() -> Result<OwnedFd> {
    // SAFETY: the set lives across both calls; the kernel makes a fresh descriptor that nobody else owns.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Reaps one child of any kind; `None` when there is none to reap now. The status is wait(2)'s.
pub fn reap() -> Option<(u32, i32)> {
    let mut status = 0;
    // SAFETY: writes one int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid as u32, status))
}

/// (code, signal) as the contract has them: 128+n when killed by a signal.
pub fn decode_status(status: i32) -> (i32, i32) {
    if libc::WIFSIGNALED(status) {
        (128 + libc::WTERMSIG(status), libc::WTERMSIG(status))
    } else {
        (libc::WEXITSTATUS(status), 0)
    }
}

pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0) })?;
    Ok(())
}

pub fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::kill(pid, signal) }.into())?;
    Ok(())
}

/// A signal mask and dispositions as a fresh process expects them; Rust's runtime ignores SIGPIPE.
pub fn reset_signals() {
    // SAFETY: installs only default dispositions and an empty mask.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Blocks every signal, so that [`wait_signal`] sees them in order.
pub fn block_signals() {
    // SAFETY: only the calling (sole) thread's mask changes.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
}

pub fn wait_signal() -> i32 {
    // SAFETY: waits on a full set that lives across the call; no info is asked for.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigwaitinfo(&all, std::ptr::null_mut())
    }
}

pub fn mount_setattr(at: BorrowedFd<'_>, recursive: bool, set: u64, clear: u64) -> Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the structure and its size are passed together and live across the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &attributes,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

pub fn unshare(namespaces: i32) -> Result<()> {
    // SAFETY: CLONE_NEW* only; CLONE_FILES, which could pull descriptors from under a thread, is never passed.
    check(unsafe { libc::unshare(namespaces & !libc::CLONE_FILES) }.into())?;
    Ok(())
}

pub fn setns(target: BorrowedFd<'_>, namespaces: i32) -> Result<()> {
    setns_with(target, namespaces, 0)
}

/// `pass`: what the caller's own filter asks for.
pub fn setns_with(target: BorrowedFd<'_>, namespaces: i32, pass: u64) -> Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::syscall(libc::SYS_setns, target.as_raw_fd(), namespaces, 0, 0, 0, pass) })?;
    Ok(())
}

pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure lives across the call; the kernel checks the number.
    check(unsafe { libc::prlimit64(0, resource, &limit, std::ptr::null_mut()) }.into())?;
    Ok(())
}

/// Installs a seccomp filter on the calling thread. Without no_new_privs this needs CAP_SYS_ADMIN.
pub fn install_seccomp(program: &[libc::sock_filter]) -> Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions behind `filter`, both of which live across the call.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) })?;
    Ok(())
}

/// Drops every capability outside `keep` from the bounding set.
pub fn keep_bounding(keep: u64) -> Result<()> {
    for capability in 0..64_u64 {
        if keep & (1 << capability) == 0 {
            // SAFETY: no pointer is passed.
            match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into()) {
                // The end of what this kernel knows.
                Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => break,
                Err(cause) => return Err(cause),
                Ok(_) => {}
            }
        }
    }
    Ok(())
}

/// Credits the bytes to the kernel's random pool in full and reseeds from it.
pub fn add_entropy(random: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    const RNDADDENTROPY: u64 = 0x4008_5203;
    const RNDRESEEDCRNG: u64 = 0x5207;
    let mut pool = Vec::with_capacity(8 + bytes.len());
    pool.extend_from_slice(&(bytes.len() as i32 * 8).to_ne_bytes());
    pool.extend_from_slice(&(bytes.len() as i32).to_ne_bytes());
    pool.extend_from_slice(bytes);
    // SAFETY: struct rand_pool_info is two ints and the bytes, laid out above; the ioctl only reads it.
    unsafe {
        check(libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()).into())?;
        check(libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG).into())?;
    }
    Ok(())
}

/// Index and Ethernet address of the link of that name. Any socket will do.
pub fn find_link(socket: BorrowedFd<'_>, name: &str) -> Option<(u32, [u8; 6])> {
    // SAFETY: ifreq is plain data for which all-zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return None;
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    // SAFETY: both calls read the name and fill the union with what is taken from it right after.
    unsafe {
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request).into()).ok()?;
        let index = request.ifr_ifru.ifru_ifindex as u32;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request).into()).ok()?;
        let data = request.ifr_ifru.ifru_hwaddr.sa_data;
        Some((index, [data[0], data[1], data[2], data[3], data[4], data[5]].map(|byte| byte as u8)))
    }
}

/// Puts a descriptor under the runtime's watch.
pub fn watch(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one and the same open descriptor until the AsyncFd, which owns it, is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
