// SPDX-License-Identifier: Apache-2.0
//! The end of the guest: disks settled, then power off. On a host (tests) the process ends instead.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::system::RebootCommand;

use crate::disk;

/// Time for the answer to reach the host.
const ANSWER: Duration = Duration::from_millis(20);

#[derive(Clone)]
pub struct Power {
    pub state: PathBuf,
    pub in_guest: bool,
}

impl Power {
    /// Writes and unmounts, as far as the time allows. Blocking.
    pub fn settle_disks(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        rustix::fs::sync();
        while !disk::unmount_all(&self.state) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        rustix::fs::sync();
    }

    pub fn off_soon(&self) {
        let power = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(ANSWER).await;
            power.off();
        });
    }

    pub fn off(&self) {
        if !self.in_guest {
            std::process::exit(0);
        }
        if let Err(cause) = rustix::system::reboot(RebootCommand::PowerOff) {
            crate::warn!("power off: {cause}");
            // Without ACPI: a dead PID 1 is a kernel panic, which ends the VM too.
            std::process::exit(1);
        }
    }
}
