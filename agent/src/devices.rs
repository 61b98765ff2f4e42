// SPDX-License-Identifier: Apache-2.0
//! Which devices a container may use: Docker's list, as a BPF program at the container's cgroup, which is how
//! cgroup v2 filters devices. Without it CAP_MKNOD, which Docker's default has, opens the guest's disks.
//!
//! Any node may be made (that alone opens nothing); only those listed may be read or written.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use crate::error::{Context, Result};
use crate::sys;

/// Major and minor of character devices; `None` is every minor. No block device is listed.
const ALLOWED: &[(u32, Option<u32>)] = &[
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pts
];

// linux/bpf.h: what a program of this type is asked, as three words.
const ASKED: i16 = 0; // access << 16 | type
const MAJOR: i16 = 4;
const MINOR: i16 = 8;
const CHARACTER: i32 = 2;
const READ_OR_WRITE: i32 = 2 | 4;

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF: u8 = 0x15;
const JUMP_UNLESS: u8 = 0x55;
const EXIT: u8 = 0x95;

/// One instruction of eBPF as the kernel reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Source in the upper four bits, destination in the lower.
    registers: u8,
    offset: i16,
    immediate: i32,
}

fn with(code: u8, register: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: register, offset, immediate }
}

fn from(code: u8, register: u8, source: u8, offset: i16) -> Instruction {
    Instruction { code, registers: source << 4 | register, offset, immediate: 0 }
}

/// Ends with 1 to allow and 0 to refuse.
pub fn program() -> Vec<Instruction> {
    const ANSWER: u8 = 0;
    const CONTEXT: u8 = 1;
    const KIND: u8 = 2;
    const ACCESS: u8 = 3;
    const NUMBER: u8 = 4;
    let allow = [with(SET, ANSWER, 0, 1), with(EXIT, 0, 0, 0)];
    let mut program = vec![
        from(LOAD_WORD, KIND, CONTEXT, ASKED),
        from(MOVE, ACCESS, KIND, 0),
        with(AND, KIND, 0, 0xffff),
        with(SHIFT_RIGHT, ACCESS, 0, 16),
        with(AND, ACCESS, 0, READ_OR_WRITE),
        with(JUMP_UNLESS, ACCESS, 2, 0),
    ];
    program.extend(allow);
    program.extend([with(JUMP_IF, KIND, 2, CHARACTER), with(SET, ANSWER, 0, 0), with(EXIT, 0, 0, 0)]);
    for &(major, minor) in ALLOWED {
        let skip = if minor.is_some() { 4 } else { 2 };
        program.extend([from(LOAD_WORD, NUMBER, CONTEXT, MAJOR), with(JUMP_UNLESS, NUMBER, skip, major as i32)]);
        if let Some(minor) = minor {
            program.extend([from(LOAD_WORD, NUMBER, CONTEXT, MINOR), with(JUMP_UNLESS, NUMBER, 2, minor as i32)]);
        }
        program.extend(allow);
    }
    program.extend([with(SET, ANSWER, 0, 0), with(EXIT, 0, 0, 0)]);
    program
}

/// The program in the kernel: the same for every container, loaded for the first.
#[derive(Default)]
pub struct Filter {
    loaded: Mutex<Option<OwnedFd>>,
}

impl Filter {
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> Result<()> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let filter = match loaded.take() {
            Some(filter) => filter,
            None => sys::load_device_program(&program()).what("load the device filter")?,
        };
        let attached = sys::attach_device_program(cgroup, filter.as_fd());
        *loaded = Some(filter);
        attached.what("attach the device filter")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MKNOD: u32 = 1;
    const READ: u32 = 2;
    const WRITE: u32 = 4;
    const BLOCK: u32 = 1;
    const CHAR: u32 = 2;

    /// Just enough of eBPF to ask the program for its verdict; all that it does not know is a failed test.
    fn allows(access: u32, kind: u32, major: u32, minor: u32) -> bool {
        let program = program();
        let context = [access << 16 | kind, major, minor];
        let (mut registers, mut pc) = ([0_u64; 11], 0_usize);
        loop {
            let i = program[pc];
            pc += 1;
            let (target, source) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let jump = |taken: bool| if taken { usize::try_from(i.offset).unwrap() } else { 0 };
            match i.code {
                LOAD_WORD => {
                    assert_eq!(source, 1, "only the context is read");
                    registers[target] = context[usize::try_from(i.offset).unwrap() / 4].into();
                }
                MOVE => registers[target] = registers[source],
                SET => registers[target] = i.immediate as u64,
                AND => registers[target] &= i.immediate as u64,
                SHIFT_RIGHT => registers[target] >>= i.immediate,
                JUMP_IF => pc += jump(registers[target] == i.immediate as u64),
                JUMP_UNLESS => pc += jump(registers[target] != i.immediate as u64),
                EXIT => return registers[0] == 1,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn dockers_devices_may_be_used() {
        for (major, minors) in [(1, &[3, 5, 7, 8, 9][..]), (5, &[0, 1, 2]), (136, &[0, 7, 1_048_575])] {
            for &minor in minors {
                for access in [READ, WRITE, READ | WRITE, READ | WRITE | MKNOD] {
                    assert!(allows(access, CHAR, major, minor), "{access} c {major}:{minor}");
                }
            }
        }
    }

    #[test]
    fn nothing_else_may_be_read_or_written() {
        let others = [(CHAR, 1, 1), (CHAR, 1, 2), (CHAR, 1, 4), (CHAR, 1, 11), (CHAR, 4, 64), (CHAR, 5, 3)];
        let disks = [(BLOCK, 254, 0), (BLOCK, 8, 0), (BLOCK, 1, 3), (BLOCK, 5, 0), (BLOCK, 136, 0)];
        let ports = [(CHAR, 10, 200), (CHAR, 10, 229), (CHAR, 137, 0), (CHAR, 247, 1), (CHAR, u32::MAX, u32::MAX)];
        for (kind, major, minor) in others.into_iter().chain(disks).chain(ports) {
            for access in [READ, WRITE, READ | WRITE, READ | MKNOD, WRITE | MKNOD] {
                assert!(!allows(access, kind, major, minor), "{access} {kind} {major}:{minor}");
            }
        }
    }

    #[test]
    fn any_node_may_be_made() {
        for (kind, major, minor) in [(BLOCK, 254, 0), (CHAR, 10, 200), (CHAR, 1, 3), (BLOCK, 0, 0)] {
            assert!(allows(MKNOD, kind, major, minor));
        }
    }

    #[test]
    fn an_instruction_is_eight_bytes() {
        assert_eq!(size_of::<Instruction>(), 8);
        assert!(program().iter().all(|i| i.offset >= 0));
    }
}
