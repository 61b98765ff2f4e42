// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::expect_used)]
//! What the agent may weigh in every guest: 8 MB on disk, 8 MB of memory when idle.
//! Needs the release binary (make builds it first); without one there is nothing to weigh.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const BUDGET: u64 = 8_000_000;

fn release_binary() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let binary = target.join("x86_64-unknown-linux-gnu/release/hyper-agent");
    binary.exists().then_some(binary)
}

#[test]
fn the_binary_is_small_and_needs_no_library() {
    let Some(binary) = release_binary() else { return eprintln!("no release binary: build it first") };
    let content = std::fs::read(&binary).unwrap();
    assert!(content.len() as u64 <= BUDGET, "{} bytes", content.len());
    assert!(!asks_for_a_loader(&content), "dynamically linked");
}

/// Whether the ELF file has a PT_INTERP segment.
fn asks_for_a_loader(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let word =
        |at: usize, size: usize| elf[at..at + size].iter().rev().fold(0_usize, |n, &byte| n << 8 | usize::from(byte));
    let (table, size, count) = (word(32, 8), word(54, 2), word(56, 2));
    (0..count).any(|n| word(table + n * size, 4) == PT_INTERP as usize)
}

#[test]
fn an_idle_agent_uses_little_memory() {
    let Some(binary) = release_binary() else { return eprintln!("no release binary: build it first") };
    let directory = std::env::temp_dir().join(format!("hyper-agent-budget-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let sockets = [directory.join("control"), directory.join("stream")];
    let mut agent = Command::new(binary).arg("--serve-unix").args(&sockets).stdin(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !sockets[1].exists() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.id())).unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    let _ = std::fs::remove_dir_all(&directory);
    assert!(sockets.len() == 2 && Instant::now() < deadline, "the agent did not come up");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib * 1024 <= BUDGET, "{line}");
}
