// SPDX-License-Identifier: Apache-2.0
//! Short lines to the kernel's log, so that the console's tail tells what happened.
//! A serial port costs an exit per byte: nothing is said unless it failed or was asked for.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

pub static DEBUG: AtomicBool = AtomicBool::new(false);

pub fn debug_wanted() -> bool {
    DEBUG.load(Ordering::Relaxed)
}

/// Standard error is /dev/kmsg in a guest; a record is one write.
pub fn write(level: u8, message: &str) {
    let record = if std::process::id() == 1 {
        format!("<{level}>hyper-agent: {message}\n")
    } else {
        format!("hyper-agent: {message}\n")
    };
    let _ = std::io::stderr().write_all(record.as_bytes());
}

#[macro_export]
macro_rules! warn {
    ($($arg:tt)*) => { $crate::log::write(4, &format!($($arg)*)) };
}

#[macro_export]
macro_rules! debug {
    ($($arg:tt)*) => { if $crate::log::debug_wanted() { $crate::log::write(6, &format!($($arg)*)) } };
}
