// SPDX-License-Identifier: Apache-2.0
//! Volumes that nobody writes to for a moment, while the host copies their disks. The moment has an end of its own here: a
//! host that was killed in it leaves no guest standing.
//!
//!     freezing --stands still--> still --thawed, or its time is over--> (forgotten)
//!
//! Whoever gives a freeze up while it is under way ends that moment before it begins. What cannot be thawed is kept, and
//! tried again.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::blocking::blocking;
use crate::error::{Context, Error, Result};
use crate::sys;

/// Between two tries to thaw what could not be.
const AGAIN: Duration = Duration::from_secs(1);

/// What it is done with: the kernel, or a record of it in tests. Both block.
pub trait Brake: Clone + Send + Sync + 'static {
    /// The file system mounted there, whole on its disk; nobody writes to it from then on.
    fn freeze(&self, mount: &Path) -> Result<OwnedFd>;
    fn thaw(&self, system: BorrowedFd<'_>) -> std::io::Result<()>;
}

#[derive(Clone)]
pub struct Kernel;

impl Brake for Kernel {
    fn freeze(&self, mount: &Path) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let system = rustix::fs::open(mount, flags, Mode::empty()).what("open the volume")?;
        // Most of what is dirty is written while everything still runs.
        rustix::fs::syncfs(&system).what("write the volume")?;
        sys::freeze_filesystem(system.as_fd()).what("freeze the volume")?;
        Ok(system)
    }

    fn thaw(&self, system: BorrowedFd<'_>) -> std::io::Result<()> {
        sys::thaw_filesystem(system)
    }
}

#[derive(Clone)]
pub struct StillVolumes<B = Kernel> {
    brake: B,
    held: Arc<Mutex<HashMap<String, Held>>>,
}

enum Held {
    Freezing {
        given_up: bool,
    },
    Still {
        system: Arc<OwnedFd>,
        /// Thaws it when its time is over, and until it is thawed.
        watch: tokio::task::JoinHandle<()>,
    },
}

impl StillVolumes {
    pub fn new() -> Self {
        Self::by(Kernel)
    }
}

impl<B: Brake> StillVolumes<B> {
    fn by(brake: B) -> Self {
        Self { brake, held: Arc::default() }
    }

    pub async fn freeze(&self, serial: String, mount: PathBuf, timeout: Duration) -> Result<()> {
        {
            let mut held = self.held();
            if held.contains_key(&serial) {
                return Err(Error::wrong_state(format!("volume {serial} stands still already")));
            }
            held.insert(serial.clone(), Held::Freezing { given_up: false });
        }
        let brake = self.brake.clone();
        let frozen = blocking(move || brake.freeze(&mount)).await;
        let mut held = self.held();
        let given_up = matches!(held.remove(&serial), Some(Held::Freezing { given_up: true }));
        let system = Arc::new(frozen?);
        let left = if given_up { Duration::ZERO } else { timeout };
        let watch = tokio::spawn(self.clone().watch(serial.clone(), left));
        held.insert(serial.clone(), Held::Still { system, watch });
        if given_up {
            return Err(Error::wrong_state(format!("volume {serial} was thawed before it stood still")));
        }
        Ok(())
    }

    async fn watch(self, serial: String, mut left: Duration) {
        loop {
            tokio::time::sleep(left).await;
            crate::warn!("volume {serial} goes on by itself");
            match self.release(&serial).await {
                Ok(_) => return,
                Err(error) => crate::warn!("{error}"),
            }
            left = AGAIN;
        }
    }

    /// Whether it stood still until now. Idempotent; what fails is tried again by the next call, or by itself.
    pub async fn thaw(&self, serial: &str) -> Result<bool> {
        self.release(serial).await
    }

    pub async fn thaw_all(&self) {
        let serials: Vec<String> = self.held().keys().cloned().collect();
        for serial in serials {
            if let Err(error) = self.thaw(&serial).await {
                crate::warn!("{error}");
            }
        }
    }

    async fn release(&self, serial: &str) -> Result<bool> {
        let system = match self.held().get_mut(serial) {
            None => return Ok(false),
            Some(Held::Freezing { given_up }) => {
                *given_up = true;
                return Ok(false);
            }
            Some(Held::Still { system, .. }) => system.clone(),
        };
        let (brake, thawing) = (self.brake.clone(), system.clone());
        let stood = blocking(move || match brake.thaw(thawing.as_fd()) {
            // EINVAL: somebody in the guest has thawed it.
            Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            thawed => thawed.map(|()| true).what("thaw the volume"),
        })
        .await?;
        let mut held = self.held();
        // Not one that was frozen anew meanwhile.
        if matches!(held.get(serial), Some(Held::Still { system: other, .. }) if Arc::ptr_eq(other, &system)) {
            if let Some(Held::Still { watch, .. }) = held.remove(serial) {
                // Which may be who asks: it has nothing left to wait for.
                watch.abort();
            }
        }
        Ok(stood)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "still_tests.rs"]
mod tests;
