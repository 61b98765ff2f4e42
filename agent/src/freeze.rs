// SPDX-License-Identifier: Apache-2.0
//! The guest stands still: every process of every container, then the writable file systems. What is saved then is
//! consistent. Undone in reverse; what fails half-way is undone before it is told.
//!
//! Most of what is dirty is written while everything still runs, so that only the rest counts as a pause. Only the disks'
//! file systems are written: one of the guest's own, a network's say, may never answer, and all else is saved with the RAM.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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

/// What it is done with: the kernel, or a record of it in tests.
trait Brakes {
    /// Stop the processes.
    fn halt(&self, cgroups: &Path) -> Result<()>;
    /// Write one file system.
    fn write(&self, system: BorrowedFd<'_>) -> std::io::Result<()>;
    /// Write it, and let nobody write from then on.
    fn freeze(&self, system: BorrowedFd<'_>) -> std::io::Result<()>;
}

struct Kernel;

impl Brakes for Kernel {
    fn halt(&self, cgroups: &Path) -> Result<()> {
        cgroup::freeze(cgroups, STILL_DEADLINE)
    }

    fn write(&self, system: BorrowedFd<'_>) -> std::io::Result<()> {
        Ok(rustix::fs::syncfs(system)?)
    }

    fn freeze(&self, system: BorrowedFd<'_>) -> std::io::Result<()> {
        sys::freeze_filesystem(system)
    }
}

impl Frozen {
    /// Blocking. `cgroups` is the cgroup2 mount, `systems` are the mount points of writable file systems.
    pub fn freeze(cgroups: Option<&Path>, systems: &[PathBuf]) -> Result<Self> {
        let mut frozen = Self { cgroups: cgroups.map(Path::to_owned), systems: Vec::new() };
        match frozen.stand_still(&Kernel, systems) {
            Ok(()) => Ok(frozen),
            Err(error) => {
                if let Err(thawing) = frozen.thaw() {
                    crate::warn!("{thawing}");
                }
                Err(error)
            }
        }
    }

    fn stand_still(&mut self, brakes: &impl Brakes, paths: &[PathBuf]) -> Result<()> {
        let mut systems = Vec::with_capacity(paths.len());
        for path in paths {
            let system = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .what(format_args!("open {}", disk(path)))?;
            brakes.write(system.as_fd()).what(format_args!("write {}", disk(path)))?;
            systems.push((path, system));
        }
        if let Some(cgroups) = &self.cgroups {
            brakes.halt(cgroups)?;
        }
        for (path, system) in systems {
            match brakes.freeze(system.as_fd()) {
                Ok(()) => self.systems.push(system),
                // Such as vfat: nobody writes to it now.
                Err(cause) if cause.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    brakes.write(system.as_fd()).what(format_args!("write {}", disk(path)))?;
                }
                Err(cause) => return Err(cause).what(format_args!("freeze {}", disk(path))),
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

/// By its serial: where the agent has it mounted is nobody's business.
fn disk(mount: &Path) -> String {
    let serial = mount.file_stem().unwrap_or_default();
    format!("the file system of disk {}", serial.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[derive(Default)]
    struct Recorded {
        steps: RefCell<Vec<&'static str>>,
        cannot_freeze: bool,
    }

    impl Brakes for Recorded {
        fn halt(&self, _: &Path) -> Result<()> {
            self.steps.borrow_mut().push("halt");
            Ok(())
        }

        fn write(&self, _: BorrowedFd<'_>) -> std::io::Result<()> {
            self.steps.borrow_mut().push("write");
            Ok(())
        }

        fn freeze(&self, _: BorrowedFd<'_>) -> std::io::Result<()> {
            self.steps.borrow_mut().push("freeze");
            if self.cannot_freeze { Err(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP)) } else { Ok(()) }
        }
    }

    fn steps(brakes: Recorded) -> (usize, Vec<&'static str>) {
        let mut frozen = Frozen { cgroups: Some(PathBuf::from("/")), systems: Vec::new() };
        frozen.stand_still(&brakes, &[PathBuf::from("/"), PathBuf::from("/")]).unwrap();
        (frozen.systems.len(), brakes.steps.into_inner())
    }

    #[test]
    fn what_is_dirty_is_written_before_anything_stands_still() {
        assert_eq!(steps(Recorded::default()), (2, vec!["write", "write", "halt", "freeze", "freeze"]));
    }

    #[test]
    fn what_fails_is_told_by_its_disk_and_not_by_where_that_is_mounted() {
        let mut frozen = Frozen { cgroups: None, systems: Vec::new() };
        let absent = PathBuf::from("/run/hyper/disks/absent1.0");
        let error = frozen.stand_still(&Recorded::default(), &[absent]).unwrap_err();
        assert_eq!(error.message, "open the file system of disk absent1: no such file or directory");
    }

    #[test]
    fn a_file_system_that_cannot_be_frozen_is_written_once_more() {
        let brakes = Recorded { cannot_freeze: true, ..Recorded::default() };
        assert_eq!(steps(brakes), (0, vec!["write", "write", "halt", "freeze", "write", "freeze", "write"]));
    }
}
