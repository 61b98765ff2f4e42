// SPDX-License-Identifier: Apache-2.0
//! The guest stands still: every process of every container, then the writable file systems. What is saved then is
//! consistent. Undone in reverse; what fails half-way is undone before it is told, and what cannot be undone is kept, to be
//! tried again.
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
    /// Else it is left of what failed, and may be undone only.
    pub is_whole: bool,
}

/// What it is done with: the kernel, or a record of it in tests.
trait Brakes {
    /// Stop the processes.
    fn halt(&self, cgroups: &Path) -> Result<()>;
    /// Write one file system.
    fn write(&self, system: BorrowedFd<'_>) -> std::io::Result<()>;
    /// Write it, and let nobody write from then on.
    fn freeze(&self, system: BorrowedFd<'_>) -> std::io::Result<()>;
    fn thaw(&self, system: BorrowedFd<'_>) -> std::io::Result<()>;
    /// Let the processes go on.
    fn let_go(&self, cgroups: &Path) -> Result<()>;
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

    fn thaw(&self, system: BorrowedFd<'_>) -> std::io::Result<()> {
        sys::thaw_filesystem(system)
    }

    fn let_go(&self, cgroups: &Path) -> Result<()> {
        cgroup::thaw(cgroups)
    }
}

impl Frozen {
    /// Blocking. `cgroups` is the cgroup2 mount, `systems` are the mount points of writable file systems. What stands still
    /// afterwards, if anything, and why that is not all of it.
    pub fn freeze(cgroups: Option<&Path>, systems: &[PathBuf]) -> (Option<Self>, Result<()>) {
        Self::freeze_by(&Kernel, cgroups, systems)
    }

    fn freeze_by(brakes: &impl Brakes, cgroups: Option<&Path>, systems: &[PathBuf]) -> (Option<Self>, Result<()>) {
        let mut frozen = Self { cgroups: cgroups.map(Path::to_owned), systems: Vec::new(), is_whole: false };
        let Err(error) = frozen.stand_still(brakes, systems) else { return (Some(frozen), Ok(())) };
        match frozen.thaw_by(brakes) {
            Ok(()) => (None, Err(error)),
            Err(thawing) => {
                crate::warn!("{thawing}");
                (Some(frozen), Err(error))
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
        self.is_whole = true;
        Ok(())
    }

    /// Blocking. What could not be thawed is tried again by the next call.
    pub fn thaw(&mut self) -> Result<()> {
        self.thaw_by(&Kernel)
    }

    fn thaw_by(&mut self, brakes: &impl Brakes) -> Result<()> {
        while let Some(system) = self.systems.last() {
            match brakes.thaw(system.as_fd()) {
                // EINVAL: it is not frozen.
                Err(cause) if cause.raw_os_error() != Some(libc::EINVAL) => {
                    return Err(cause).what("thaw a file system");
                }
                _ => self.systems.pop(),
            };
        }
        self.cgroups.as_deref().map_or(Ok(()), |cgroups| brakes.let_go(cgroups))
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
        /// The number of the freeze, from 0, that is refused.
        fails_at: Option<usize>,
        cannot_thaw: bool,
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
            let frozen = self.steps.borrow().iter().filter(|&&step| step == "freeze").count();
            self.steps.borrow_mut().push("freeze");
            let refusal = if self.fails_at == Some(frozen) { libc::EIO } else { libc::EOPNOTSUPP };
            let is_refused = self.cannot_freeze || self.fails_at == Some(frozen);
            if is_refused { Err(std::io::Error::from_raw_os_error(refusal)) } else { Ok(()) }
        }

        fn thaw(&self, _: BorrowedFd<'_>) -> std::io::Result<()> {
            self.steps.borrow_mut().push("thaw");
            if self.cannot_thaw { Err(std::io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
        }

        fn let_go(&self, _: &Path) -> Result<()> {
            self.steps.borrow_mut().push("let go");
            Ok(())
        }
    }

    fn steps(brakes: Recorded) -> (usize, Vec<&'static str>) {
        let mut frozen = Frozen { cgroups: Some(PathBuf::from("/")), systems: Vec::new(), is_whole: false };
        frozen.stand_still(&brakes, &[PathBuf::from("/"), PathBuf::from("/")]).unwrap();
        (frozen.systems.len(), brakes.steps.into_inner())
    }

    #[test]
    fn what_is_dirty_is_written_before_anything_stands_still() {
        assert_eq!(steps(Recorded::default()), (2, vec!["write", "write", "halt", "freeze", "freeze"]));
    }

    #[test]
    fn what_fails_half_way_is_undone_and_what_cannot_be_is_kept() {
        let places = [PathBuf::from("/"), PathBuf::from("/")];
        let mut brakes = Recorded { fails_at: Some(1), ..Recorded::default() };
        let (left, told) = Frozen::freeze_by(&brakes, Some(Path::new("/")), &places);
        assert!(left.is_none() && told.is_err());
        assert_eq!(brakes.steps.take()[2..], ["halt", "freeze", "freeze", "thaw", "let go"]);

        brakes.cannot_thaw = true;
        let (left, told) = Frozen::freeze_by(&brakes, Some(Path::new("/")), &places);
        assert!(told.is_err());
        let mut left = left.unwrap();
        assert!(!left.is_whole);
        brakes.cannot_thaw = false;
        brakes.steps.take();
        left.thaw_by(&brakes).unwrap();
        assert_eq!(brakes.steps.take(), ["thaw", "let go"]);
    }

    #[test]
    fn what_fails_is_told_by_its_disk_and_not_by_where_that_is_mounted() {
        let mut frozen = Frozen { cgroups: None, systems: Vec::new(), is_whole: false };
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
