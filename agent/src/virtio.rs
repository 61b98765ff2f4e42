// SPDX-License-Identifier: Apache-2.0
//! Disks and NICs let go of and taken again. A template is saved without drivers on those that are not [kept](crate::kept), so that
//! each of its clones finds the ones that it was started with. Binding is synchronous: a disk is there when the write returns.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{Context, Result};

pub const DRIVERS: &str = "/sys/bus/virtio/drivers";
pub const DISKS: &str = "virtio_blk";
const NICS: &str = "virtio_net";

/// What was let go of and is to be bound again: the agent's memory, which a clone is born with.
pub struct Released {
    drivers: PathBuf,
    devices: Mutex<Vec<(&'static str, String)>>,
}

impl Released {
    pub fn new(drivers: &Path) -> Self {
        Self { drivers: drivers.to_owned(), devices: Mutex::default() }
    }

    /// Unbinds every disk, and every NIC if `with_nics`, but those that `keep` names. Doing it again changes nothing.
    pub fn release(&self, keep: impl Fn(&str) -> bool, with_nics: bool) -> Result<()> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        for driver in if with_nics { &[DISKS, NICS][..] } else { &[DISKS] } {
            for name in bound(&self.drivers, driver).into_iter().filter(|name| !keep(name)) {
                let directory = self.drivers.join(driver);
                std::fs::write(directory.join("unbind"), &name).what(format_args!("unbind {name}"))?;
                devices.push((driver, name));
            }
        }
        Ok(())
    }

    pub fn drivers(&self) -> &Path {
        &self.drivers
    }

    /// Binds what was let go of; what fails is tried again by the next call. True when there was something.
    pub fn bind(&self) -> Result<bool> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let any = !devices.is_empty();
        while let Some((driver, name)) = devices.first() {
            std::fs::write(self.drivers.join(driver).join("bind"), name)
                .what(format_args!("bind {name} to {driver}"))?;
            devices.remove(0);
        }
        Ok(any)
    }
}

/// A driver's devices, in order.
pub fn bound(drivers: &Path, driver: &str) -> Vec<String> {
    let mut bound: Vec<String> = std::fs::read_dir(drivers.join(driver))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("virtio"))
        .collect();
    bound.sort();
    bound
}

/// The disk that is there now, of whatever size.
pub fn rebind(drivers: &Path, device: &str) -> Result<()> {
    for verb in ["unbind", "bind"] {
        std::fs::write(drivers.join(DISKS).join(verb), device).what(format_args!("{verb} {device}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::tests::Scratch;

    #[test]
    fn what_was_released_is_bound_again_once_and_nothing_else() {
        let scratch = Scratch::new();
        for device in ["virtio_blk/virtio3", "virtio_blk/virtio0", "virtio_net/virtio2", "virtio_rng/virtio5"] {
            std::fs::create_dir_all(scratch.0.join(device)).unwrap();
        }
        let released = Released::new(&scratch.0);
        released.release(|_| false, true).unwrap();
        assert_eq!(std::fs::read_to_string(scratch.0.join("virtio_blk/unbind")).unwrap(), "virtio3");
        assert!(!scratch.0.join("virtio_rng/unbind").exists());
        let names: Vec<String> = released.devices.lock().unwrap().iter().map(|(_, name)| name.clone()).collect();
        assert_eq!(names, ["virtio0", "virtio3", "virtio2"]);

        assert!(released.bind().unwrap());
        assert_eq!(std::fs::read_to_string(scratch.0.join("virtio_net/bind")).unwrap(), "virtio2");
        std::fs::remove_file(scratch.0.join("virtio_net/bind")).unwrap();
        assert!(!released.bind().unwrap());
        assert!(!scratch.0.join("virtio_net/bind").exists());
    }

    #[test]
    fn what_is_kept_is_neither_released_nor_bound() {
        let scratch = Scratch::new();
        for device in ["virtio_blk/virtio0", "virtio_blk/virtio3", "virtio_net/virtio2"] {
            std::fs::create_dir_all(scratch.0.join(device)).unwrap();
        }
        let released = Released::new(&scratch.0);
        released.release(|name| name == "virtio3", false).unwrap();
        let names: Vec<String> = released.devices.lock().unwrap().iter().map(|(_, name)| name.clone()).collect();
        assert_eq!(names, ["virtio0"]);
        assert!(!scratch.0.join("virtio_net/unbind").exists());
    }

    #[test]
    fn a_device_that_cannot_be_bound_is_an_error_each_time() {
        let scratch = Scratch::new();
        std::fs::create_dir_all(scratch.0.join("virtio_net/virtio2")).unwrap();
        let released = Released::new(&scratch.0);
        released.release(|_| false, true).unwrap();
        std::fs::create_dir(scratch.0.join("virtio_net/bind")).unwrap();
        assert!(released.bind().is_err());
        assert!(released.bind().is_err());
    }
}
