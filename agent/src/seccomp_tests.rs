// SPDX-License-Identifier: Apache-2.0
use super::*;

/// Just enough of classic BPF to ask a program for its verdict.
fn verdict(program: &[sock_filter], call: i64, arg0: u64) -> u32 {
    verdict_with(program, call, arg0, 0)
}

fn verdict_with(program: &[sock_filter], call: i64, arg0: u64, last: u64) -> u32 {
    let mut data = [0_u8; 64];
    data[56..64].copy_from_slice(&last.to_le_bytes());
    data[0..4].copy_from_slice(&(call as u32).to_le_bytes());
    data[4..8].copy_from_slice(&0xc000_003e_u32.to_le_bytes());
    data[16..24].copy_from_slice(&arg0.to_le_bytes());
    let (mut pc, mut accumulator) = (0, 0_u32);
    loop {
        let i = &program[pc];
        pc += 1;
        match u32::from(i.code) {
            c if c == BPF_LD | BPF_W | BPF_ABS => {
                let k = i.k as usize;
                accumulator = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
            }
            c if c == BPF_ALU | BPF_AND | BPF_K => accumulator &= i.k,
            c if c == BPF_JMP | BPF_JA => pc += i.k as usize,
            c if c & 7 == BPF_JMP => {
                let taken = match c & 0xf0 {
                    BPF_JEQ => accumulator == i.k,
                    BPF_JGT => accumulator > i.k,
                    BPF_JGE => accumulator >= i.k,
                    other => panic!("jump {other:#x}"),
                };
                pc += usize::from(if taken { i.jt } else { i.jf });
            }
            c if c == BPF_RET | BPF_K => return i.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

const ALLOW: u32 = SECCOMP_RET_ALLOW;
const DENY: u32 = SECCOMP_RET_ERRNO | EPERM as u32;
const UNKNOWN: u32 = SECCOMP_RET_ERRNO | ENOSYS as u32;

fn default() -> Vec<sock_filter> {
    program(capability::Set::docker_default())
}

#[test]
fn everyday_calls_pass_and_dangerous_ones_do_not() {
    let p = default();
    for call in [
        SYS_read,
        SYS_execve,
        SYS_openat,
        SYS_exit_group,
        SYS_setuid,
        SYS_capset,
        SYS_seccomp,
        SYS_prctl,
        SYS_chroot,
        SYS_mseal,
    ] {
        assert_eq!(verdict(&p, call, 0), ALLOW, "{call}");
    }
    for call in [
        SYS_mount,
        SYS_unshare,
        SYS_setns,
        SYS_bpf,
        SYS_reboot,
        SYS_init_module,
        SYS_keyctl,
        SYS_add_key,
        SYS_userfaultfd,
        SYS_io_uring_setup,
        SYS_kexec_load,
        SYS_swapon,
        SYS_pivot_root,
        SYS_settimeofday,
        SYS_open_by_handle_at,
    ] {
        assert_eq!(verdict(&p, call, 0), DENY, "{call}");
    }
}

#[test]
fn clone_makes_threads_but_no_namespaces() {
    let p = default();
    assert_eq!(verdict(&p, SYS_clone, (CLONE_VM | CLONE_THREAD | SIGCHLD) as u64), ALLOW);
    for flag in [CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWCGROUP] {
        assert_eq!(verdict(&p, SYS_clone, (flag | SIGCHLD) as u64), DENY, "{flag:#x}");
    }
    assert_eq!(verdict(&p, SYS_clone3, 0), UNKNOWN);
}

#[test]
fn what_the_profile_does_not_know_is_not_implemented() {
    assert_eq!(verdict(&default(), 467, 0), UNKNOWN);
    assert_eq!(verdict(&default(), 0x4000_0001, 0), UNKNOWN);
    assert_eq!(verdict(&default(), SYS_removexattrat, 0), ALLOW);
}

#[test]
fn sockets_and_personalities_are_looked_at() {
    let p = default();
    for family in [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET] {
        assert_eq!(verdict(&p, SYS_socket, family as u64), ALLOW);
    }
    for family in [AF_VSOCK, AF_ALG] {
        assert_eq!(verdict(&p, SYS_socket, family as u64), DENY);
    }
    assert_eq!(verdict(&p, SYS_personality, 0xffff_ffff), ALLOW);
    assert_eq!(verdict(&p, SYS_personality, 0x0040_0000), DENY);
}

#[test]
fn capabilities_open_their_calls() {
    let all = program(capability::Set::ALL);
    for call in [SYS_mount, SYS_unshare, SYS_clone3, SYS_bpf, SYS_reboot, SYS_open_by_handle_at] {
        assert_eq!(verdict(&all, call, 0), ALLOW, "{call}");
    }
    assert_eq!(verdict(&all, SYS_clone, CLONE_NEWNS as u64), ALLOW);
    let none = program(capability::Set::parse::<&str>(&[]).unwrap());
    assert_eq!(verdict(&none, SYS_chroot, 0), DENY);
}

#[test]
fn every_call_gets_the_verdict_of_the_lists() {
    for capabilities in [capability::Set::docker_default(), capability::Set::ALL] {
        let p = program(capabilities);
        for call in 0..=i64::from(NEWEST) + 9 {
            let granted = WITH_CAPABILITY.iter().any(|(name, calls)| capabilities.has(name) && calls.contains(&call));
            let expected = match call {
                _ if ALLOWED.contains(&call) || granted => ALLOW,
                SYS_clone3 => UNKNOWN,
                SYS_clone | SYS_socket | SYS_personality => ALLOW,
                _ if call > i64::from(NEWEST) => UNKNOWN,
                _ => DENY,
            };
            assert_eq!(verdict(&p, call, 0), expected, "{call}");
        }
        for family in 0..64 {
            let listed = family < SOCKET_FAMILIES_BELOW || SOCKET_FAMILIES.contains(&family);
            assert_eq!(verdict(&p, SYS_socket, family.into()) == ALLOW, listed, "family {family}");
        }
        for personality in [0, 1, 7, 8, 9, 0x1_ffff, 0x2_0000, 0x2_0001, 0x2_0008, 0xffff_fffe, 0xffff_ffff] {
            let listed = PERSONALITIES.contains(&personality);
            assert_eq!(verdict(&p, SYS_personality, personality.into()) == ALLOW, listed, "{personality:#x}");
        }
    }
}

#[test]
fn another_architecture_is_killed() {
    let p = default();
    assert_eq!((p[1].k, p[1].jt, p[1].jf), (X86_64, 1, 0));
    assert_eq!(p[2].k, SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn a_program_fits_the_kernels_limit() {
    assert!(program(capability::Set::ALL).len() < 1024);
}

#[test]
fn the_pass_opens_what_a_nursery_needs_and_to_nobody_without_it() {
    const PASS: u64 = 0x1234_5678_9abc_def0;
    let (usual, opened) = (default(), program_with_pass(capability::Set::docker_default(), PASS));
    for call in 0..=i64::from(NEWEST) + 9 {
        let needed = call == SYS_setns || call == SYS_clone3;
        for wrong in [0, PASS ^ 1, PASS ^ (1 << 32), PASS >> 32, PASS & 0xffff_ffff, !PASS] {
            assert_eq!(verdict_with(&opened, call, 0, wrong), verdict(&usual, call, 0), "{call} {wrong:#x}");
        }
        if needed {
            assert_eq!(verdict_with(&opened, call, 0, PASS), ALLOW, "{call}");
        } else {
            assert_eq!(verdict_with(&opened, call, 0, PASS), verdict(&usual, call, 0), "{call}");
        }
    }
}
