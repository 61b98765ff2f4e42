// SPDX-License-Identifier: Apache-2.0
//! The guest stands still: every process of every container, then the writable file systems. What is saved then is
//! consistent. Undone in reverse; what fails half-way is undone before it is told.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::cgroup;
use crate::error::{Context, Result};
use crate::sys;

/// For processes to come out of system calls that cannot be interrupted.
const STILL_DEADLINE: Duration = Duration::from_secs(10);

/// Exists as long as something stands still.
pub struct Frozen {
    cgroups: Option<PathBuf>,
    systems: Vec<OwnedFd>,
}

impl Frozen {
    /// Blocking. `cgroups` is the cgroup2 mount, `systems` are the mount points of writable file systems.
    pub fn freeze(cgroups: Option<&Path>, systems: &[PathBuf]) -> Result<Self> {
        let mut frozen = Self { cgroups: cgroups.map(Path::to_owned), systems: Vec::new() };
        match frozen.stand_still(systems) {
            Ok(()) => Ok(frozen),
            Err(error) => {
                if let Err(thawing) = frozen.thaw() {
                    crate::warn!("{thawing}");
                }
                Err(error)
            }
        }
    }

    fn stand_still(&mut self, systems: &[PathBuf]) -> Result<()> {
        if let Some(cgroups) = &self.cgroups {
            cgroup::freeze(cgroups, STILL_DEADLINE)?;
        }
        // All of it: what cannot be frozen is at least written.
        rustix::fs::sync();
        for path in systems {
            let system = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .what(format_args!("open {}", path.display()))?;
            match sys::freeze_filesystem(system.as_fd()) {
                Ok(()) => self.systems.push(system),
                // Such as vfat: nobody writes to it now, and it is synced.
                Err(cause) if cause.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(cause) => return Err(cause).what(format_args!("freeze {}", path.display())),
            }
        }
        Ok(())
    }

    /// Blocking. What could not be thawed is tried again by the next call.
    pub fn thaw(&mut self) -> Result<()> {
        while let Some(system) = self.systems.last() {
            match sys::thaw_filesystem(system.as_fd()) {
                // EINVAL: it is not frozen.
                Err(cause) if cause.raw_os_error() != Some(libc::EINVAL) => {
                    return Err(cause).what("thaw a file system");
                }
                _ => self.systems.pop(),
            };
        }
        self.cgroups.as_deref().map_or(Ok(()), cgroup::thaw)
    }
}
