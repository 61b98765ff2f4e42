// SPDX-License-Identifier: Apache-2.0
//! Programs that the kernel runs for a cgroup.

use std::io::Result;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;
use crate::devices::Instruction;

/// What bpf(2) reads to load a program, as far as the kernel needs it; the rest of its union is zero.
#[repr(C)]
struct ProgramToLoad {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
}

#[repr(C)]
struct ProgramToAttach {
    target: u32,
    program: u32,
    place: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> Result<libc::c_long> {
    // SAFETY: the kernel reads at most the size passed, and takes what is beyond for zero; what the structure
    // points to is kept alive by the callers.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) })
}

/// The kernel verifies the program: a wrong one is refused, not run.
pub fn load_device_program(program: &[Instruction]) -> Result<OwnedFd> {
    const PROG_LOAD: libc::c_long = 5;
    const CGROUP_DEVICE: u32 = 15;
    let loaded = bpf(
        PROG_LOAD,
        &ProgramToLoad {
            kind: CGROUP_DEVICE,
            length: program.len() as u32,
            instructions: program.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
        },
    )?;
    // SAFETY: the kernel made a fresh descriptor (close-on-exec, as all of bpf's) that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(loaded as RawFd) })
}

/// A cgroup below may add programs; each of them must allow.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    const PROG_ATTACH: libc::c_long = 8;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    bpf(
        PROG_ATTACH,
        &ProgramToAttach {
            target: cgroup.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            place: CGROUP_DEVICE,
            flags: ALLOW_MULTI,
        },
    )?;
    Ok(())
}
