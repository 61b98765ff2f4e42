// SPDX-License-Identifier: Apache-2.0
//! Disks by their virtio serial, and the layers on them. Each is mounted once per guest and shared; a lease says who still
//! needs it.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::{Context, Error, Kind, Result};
use crate::kept::{self, Kept};
use crate::mount::{Attributes, Filesystem, Kernel};
use crate::plugged::{DISK_DEADLINE, POLL, SHARES, check_serial, find_disk, wait_device, wait_share};
use crate::proto::{Layer, WritableLayer};
use crate::virtio;

/// What is mounted, by "SERIAL.PARTITION".
pub struct Disks<K: Kernel> {
    pub kernel: K,
    pub state: PathBuf,
    /// Layers may be plain directories: only for tests on a host.
    directories: bool,
    mounted: Arc<Mutex<HashMap<String, Mounted>>>,
    /// Those that were bound when the template was saved.
    kept: Mutex<Vec<Kept>>,
    pub places: Mutex<Option<PathBuf>>,
}

struct Mounted {
    path: PathBuf,
    /// A disk that may be written to.
    writable: bool,
    users: u32,
}

/// Keeps one disk mounted.
pub struct Lease {
    key: String,
    pub path: PathBuf,
    mounted: Arc<Mutex<HashMap<String, Mounted>>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = mounted.get_mut(&self.key) else { return };
        entry.users -= 1;
        if entry.users == 0 {
            // A dead namespace lets go of its mounts a moment after its last process: detach now, it follows.
            if let Err(cause) = rustix::mount::unmount(&entry.path, UnmountFlags::DETACH) {
                crate::warn!("unmount {}: {cause}", entry.path.display());
            }
            mounted.remove(&self.key);
        }
    }
}

impl<K: Kernel> Disks<K> {
    pub fn new(kernel: K, state: &Path, directories: bool) -> Self {
        Self {
            kernel,
            state: state.to_owned(),
            directories,
            mounted: Arc::default(),
            kept: Mutex::default(),
            places: Mutex::default(),
        }
    }

    /// Makes disks ready for clones as far as they can be told now, and names their devices. Called before a template is saved,
    /// with nothing mounted. What cannot be kept is said, and is to be let go of.
    pub fn keep(&self, drivers: &Path) -> Vec<String> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for device in virtio::bound(drivers, virtio::DISKS) {
            if kept.iter().any(|disk| disk.device() == device) {
                continue;
            }
            let place = |serial: &str| self.state.join("disks").join(format!("{serial}.0"));
            match Kept::find(&self.kernel, drivers, &device, place) {
                Ok(found) => kept.extend(found),
                Err(error) => crate::warn!("{device} is not kept: {error}"),
            }
        }
        kept.iter().map(|disk| disk.device().to_owned()).collect()
    }

    /// Until no disk but the kept ones is mounted: a namespace lets go of its mounts a moment after its last process. The page cache
    /// of each is empty then.
    pub fn wait_free(&self, drivers: &Path) -> Result<()> {
        let deadline = Instant::now() + DISK_DEADLINE;
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for device in virtio::bound(drivers, virtio::DISKS) {
            if kept.iter().any(|disk| disk.device() == device && disk.is_mounted()) {
                continue;
            }
            while kept::is_mounted(drivers, &device)? {
                if Instant::now() >= deadline {
                    return Err(Error::new(Kind::TimedOut, format!("somebody still has {device} mounted")));
                }
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// Until nobody has a file system of these disks mounted: a namespace lets go of its mounts a moment after its last process.
    pub fn wait_unmounted(&self, serials: &[String]) -> Result<()> {
        let deadline = Instant::now() + DISK_DEADLINE;
        for serial in serials {
            check_serial(serial)?;
            if self.is_leased(serial) {
                return Err(Error::wrong_state(format!("a container has disk {serial}")));
            }
            while find_disk(serial).is_some_and(|name| kept::is_in_use(&name).unwrap_or(true)) {
                if Instant::now() >= deadline {
                    return Err(Error::new(Kind::TimedOut, format!("somebody still has disk {serial} mounted")));
                }
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }

    fn is_leased(&self, serial: &str) -> bool {
        let mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        mounted.keys().any(|key| key.rsplit_once('.').is_some_and(|(disk, _)| disk == serial))
    }

    /// The file system of a disk that is mounted since the template, if it is that disk's still.
    fn adopt(&self, serial: &str, filesystem: &str) -> Result<Option<PathBuf>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.iter().position(|disk| disk.serial == serial && disk.is_mounted()) {
            Some(at) => kept.swap_remove(at).adopt(filesystem),
            None => Ok(None),
        }
    }

    fn device(&self, serial: &str, partition: u32) -> Result<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.iter().find(|disk| disk.serial == serial && partition > 0 && !disk.is_mounted()) {
            Some(disk) => disk.partition(partition),
            None => wait_device(serial, partition),
        }
    }

    pub fn lease_layer(&self, layer: &Layer) -> Result<Lease> {
        if layer.filesystem == "dir" && self.directories {
            return Ok(Lease {
                key: String::new(),
                path: PathBuf::from(&layer.disk_serial),
                mounted: self.mounted.clone(),
            });
        }
        self.lease(
            &layer.disk_serial,
            layer.partition,
            &layer.filesystem,
            Attributes::MOUNT_ATTR_RDONLY | Attributes::MOUNT_ATTR_NODEV,
        )
    }

    pub fn lease_writable(&self, writable: &WritableLayer) -> Result<Lease> {
        if writable.filesystem == "dir" && self.directories {
            return Ok(Lease {
                key: String::new(),
                path: PathBuf::from(&writable.disk_serial),
                mounted: self.mounted.clone(),
            });
        }
        self.lease(&writable.disk_serial, 0, &writable.filesystem, Attributes::MOUNT_ATTR_NOATIME)
    }

    /// Mounts a disk, or shares the mount that exists.
    pub fn lease(&self, serial: &str, partition: u32, filesystem: &str, attributes: Attributes) -> Result<Lease> {
        check_serial(serial)?;
        let key = format!("{serial}.{partition}");
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = mounted.get_mut(&key) {
            entry.users += 1;
            return Ok(Lease { key, path: entry.path.clone(), mounted: self.mounted.clone() });
        }
        let writable = !attributes.contains(Attributes::MOUNT_ATTR_RDONLY);
        if writable && partition == 0 {
            if let Some(path) = self.adopt(serial, filesystem)? {
                mounted.insert(key.clone(), Mounted { path: path.clone(), writable, users: 1 });
                return Ok(Lease { key, path, mounted: self.mounted.clone() });
            }
        }
        let device = self.device(serial, partition)?;
        let path = make_directory(self.state.join("disks").join(&key))?;
        let mut parameters = vec![("source", device.as_str())];
        if !writable {
            parameters.push(("ro", ""));
        }
        if filesystem == "xfs" {
            // A copy of a volume has its UUID, and both may be here at once.
            parameters.push(("nouuid", ""));
        }
        let made = self.kernel.make(&Filesystem::new(filesystem, &parameters, attributes))?;
        let place =
            rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).what("open a mount point")?;
        self.kernel.attach(made.as_fd(), place.as_fd())?;
        mounted.insert(key.clone(), Mounted { path: path.clone(), writable, users: 1 });
        Ok(Lease { key, path, mounted: self.mounted.clone() })
    }

    /// Where the disks that may be written to are mounted.
    pub fn writable(&self) -> Vec<PathBuf> {
        let mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        mounted.values().filter(|entry| entry.writable).map(|entry| entry.path.clone()).collect()
    }

    /// Where a whole disk is mounted for writing.
    pub fn find_writable(&self, serial: &str) -> Result<PathBuf> {
        let mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        match mounted.get(&format!("{serial}.0")) {
            Some(entry) if entry.writable => Ok(entry.path.clone()),
            _ => Err(Error::not_found(format!("no disk {serial:?} is mounted for writing"))),
        }
    }

    /// A directory that the host shares by virtio-fs.
    pub fn lease_share(&self, tag: &str) -> Result<Lease> {
        check_serial(tag)?;
        let key = format!("share.{tag}");
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = mounted.get_mut(&key) {
            entry.users += 1;
            return Ok(Lease { key, path: entry.path.clone(), mounted: self.mounted.clone() });
        }
        wait_share(Path::new(SHARES), tag)?;
        let path = make_directory(self.state.join("disks").join(&key))?;
        // The host's device nodes mean other devices here.
        let made = self.kernel.make(&Filesystem::new("virtiofs", &[("source", tag)], Attributes::MOUNT_ATTR_NODEV))?;
        let place =
            rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).what("open a mount point")?;
        self.kernel.attach(made.as_fd(), place.as_fd())?;
        mounted.insert(key.clone(), Mounted { path: path.clone(), writable: false, users: 1 });
        Ok(Lease { key, path, mounted: self.mounted.clone() })
    }
}

pub fn make_directory(path: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&path).what("create a directory of the agent's")?;
    Ok(path)
}

/// Unmounts every disk; false while a dying namespace still uses one.
pub fn unmount_all(state: &Path) -> bool {
    let mut all = true;
    for entry in std::fs::read_dir(state.join("disks")).into_iter().flatten().flatten() {
        match rustix::mount::unmount(entry.path(), UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(_) => all = false,
        }
    }
    all
}
