// SPDX-License-Identifier: Apache-2.0
//! Disks and NICs let go of and taken again. A template is saved without drivers on them, so that each of its clones
//! finds the ones that it was started with. Binding is synchronous: a disk is there when the write returns.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{Context, Result};

pub const DRIVERS: &str = "/sys/bus/virtio/drivers";
const RELEASED: [&str; 2] = ["virtio_blk", "virtio_net"];

/// What was let go of and is to be bound again: the agent's memory, which a clone is born with.
pub struct Released {
    drivers: PathBuf,
    devices: Mutex<Vec<(&'static str, String)>>,
}

impl Released {
    pub fn new(drivers: &Path) -> Self {
        Self { drivers: drivers.to_owned(), devices: Mutex::default() }
    }

    /// Unbinds every disk and NIC. Doing it again changes nothing.
    pub fn release(&self) -> Result<()> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        for driver in RELEASED {
            let directory = self.drivers.join(driver);
            let mut bound: Vec<String> = std::fs::read_dir(&directory)
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| name.starts_with("virtio"))
                .collect();
            bound.sort();
            for name in bound {
                std::fs::write(directory.join("unbind"), &name).what(format_args!("unbind {name}"))?;
                devices.push((driver, name));
            }
        }
        Ok(())
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
        released.release().unwrap();
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
    fn a_device_that_cannot_be_bound_is_an_error_each_time() {
        let scratch = Scratch::new();
        std::fs::create_dir_all(scratch.0.join("virtio_net/virtio2")).unwrap();
        let released = Released::new(&scratch.0);
        released.release().unwrap();
        std::fs::create_dir(scratch.0.join("virtio_net/bind")).unwrap();
        assert!(released.bind().is_err());
        assert!(released.bind().is_err());
    }
}
