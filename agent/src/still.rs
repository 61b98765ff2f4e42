// SPDX-License-Identifier: Apache-2.0
//! Volumes that nobody writes to for a moment, while the host copies their disks. The moment has an end of its own here: a
//! host that was killed in it leaves no guest standing.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::container::blocking;
use crate::error::{Context, Error, Result};
use crate::sys;

#[derive(Clone, Default)]
pub struct StillVolumes {
    held: Arc<Mutex<HashMap<String, Held>>>,
}

/// One that is being frozen has no file system yet.
struct Held {
    system: Option<OwnedFd>,
    watch: Option<tokio::task::JoinHandle<()>>,
}

impl StillVolumes {
    pub async fn freeze(&self, serial: String, mount: PathBuf, timeout: Duration) -> Result<()> {
        {
            let mut held = self.held();
            if held.contains_key(&serial) {
                return Err(Error::wrong_state(format!("volume {serial} stands still already")));
            }
            held.insert(serial.clone(), Held { system: None, watch: None });
        }
        let freezing = move || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let system = rustix::fs::open(&mount, flags, Mode::empty()).what("open the volume")?;
            // Most of what is dirty is written while everything still runs.
            rustix::fs::syncfs(&system).what("write the volume")?;
            sys::freeze_filesystem(system.as_fd()).what("freeze the volume")?;
            Ok(system)
        };
        match blocking(freezing).await {
            Ok(system) => {
                let (still, key) = (self.clone(), serial.clone());
                let mut held = self.held();
                let watch = tokio::spawn(async move {
                    tokio::time::sleep(timeout).await;
                    crate::warn!("volume {key} goes on by itself");
                    if let Err(error) = still.release(&key).await {
                        crate::warn!("{error}");
                    }
                });
                held.insert(serial, Held { system: Some(system), watch: Some(watch) });
                Ok(())
            }
            Err(error) => {
                self.held().remove(&serial);
                Err(error)
            }
        }
    }

    /// Whether it stood still until now. Idempotent.
    pub async fn thaw(&self, serial: &str) -> Result<bool> {
        if let Some(watch) = self.held().get_mut(serial).and_then(|held| held.watch.take()) {
            watch.abort();
        }
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
        let system = {
            let mut held = self.held();
            if held.get(serial).is_none_or(|held| held.system.is_none()) {
                return Ok(false);
            }
            held.remove(serial).and_then(|held| held.system)
        };
        let Some(system) = system else { return Ok(false) };
        blocking(move || match sys::thaw_filesystem(system.as_fd()) {
            // EINVAL: somebody in the guest has thawed it.
            Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            thawed => thawed.map(|()| true).what("thaw the volume"),
        })
        .await
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
