// SPDX-License-Identifier: Apache-2.0
//! Disks by their virtio serial, the layers on them, and a container's root over the layers.
//! Each layer is mounted once per guest and shared; a lease says who still needs it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::{Context, Error, Kind, Result};
use crate::files::Layers;
use crate::kept::{self, Kept};
use crate::mount::{Attributes, Filesystem, Kernel};
use crate::proto::{CreateContainerRequest, Layer, WritableLayer};
use crate::rootfs::{MACHINE_ID, NAME_FILES, standard_directories};
use crate::virtio;

const DISK_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);
const SHARES: &str = "/sys/fs/virtiofs";
const MAX_LAYERS: usize = 256;

/// What is mounted, by "SERIAL.PARTITION".
pub struct Disks<K: Kernel> {
    kernel: K,
    state: PathBuf,
    /// Layers may be plain directories: only for tests on a host.
    directories: bool,
    mounted: Arc<Mutex<HashMap<String, Mounted>>>,
    /// Those that were bound when the template was saved.
    kept: Mutex<Vec<Kept>>,
    places: Mutex<Option<PathBuf>>,
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

/// A container's root, attached nowhere yet, and what it stands on.
pub struct RootMount {
    pub mount: OwnedFd,
    pub layers: Layers,
    pub leases: Vec<Lease>,
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

    /// Stacks the layers under the writable directory; `files` is the container's own directory of the agent.
    pub fn mount_root(&self, request: &CreateContainerRequest, files: &Path) -> Result<RootMount> {
        let root = request.root.clone().unwrap_or_default();
        if root.layers.len() > MAX_LAYERS {
            return Err(Error::invalid(format!("{} layers are more than {MAX_LAYERS}", root.layers.len())));
        }
        let mut leases = Vec::new();
        for layer in &root.layers {
            leases.push(self.lease_layer(layer)?);
        }
        // Overlayfs wants the topmost first.
        let mut lower: Vec<PathBuf> = leases.iter().rev().map(|lease| lease.path.clone()).collect();
        let mut layers = Layers { upper: None, lower: lower.clone() };
        let mut upper = None;
        match &root.writable {
            Some(writable) => {
                // Beneath all layers: a place that the image lacks is there without a write to the disk.
                lower.push(self.places()?);
                let lease = self.lease_writable(writable)?;
                upper = Some(prepare_upper(&lease.path, writable, &lower[0])?);
                layers.upper = upper.as_ref().map(|path| path.join("upper"));
                leases.push(lease);
            }
            // Nothing can be created in it later, so the places for mounts come as a layer of their own.
            None => lower.insert(0, make_skeleton(&files.join("skeleton"), request)?),
        }
        if upper.is_none() && lower.len() == 1 {
            lower.push(make_directory(self.state.join("empty"))?);
        }
        let mount = self.kernel.make(&overlay(&lower, upper.as_deref())?)?;
        Ok(RootMount { mount, layers, leases })
    }

    /// What is below a container's changes, as one tree. `None`: nothing is.
    pub fn mount_image(&self, lower: &[PathBuf]) -> Result<Option<OwnedFd>> {
        let mut lower = lower.to_vec();
        match lower.len() {
            0 => return Ok(None),
            // Overlayfs wants two.
            1 => lower.push(make_directory(self.state.join("empty"))?),
            _ => {}
        }
        self.kernel.make(&overlay(&lower, None)?).map(Some)
    }

    /// Of the standard mounts and files: a directory that every root may stand on.
    pub fn places(&self) -> Result<PathBuf> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.is_none() {
            *places = Some(make_skeleton(&self.state.join("places"), &CreateContainerRequest::default())?);
        }
        places.clone().ok_or_else(|| Error::internal("no places"))
    }

    fn lease_layer(&self, layer: &Layer) -> Result<Lease> {
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

    fn lease_writable(&self, writable: &WritableLayer) -> Result<Lease> {
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

fn overlay(lower: &[PathBuf], upper: Option<&Path>) -> Result<Filesystem> {
    let text = |path: &Path| path.to_str().map(str::to_owned).ok_or_else(|| Error::invalid("a path that is not UTF-8"));
    let mut parameters = Vec::new();
    for path in lower {
        // One call a layer: a single lowerdir= string ends at a page, some 60 layers.
        parameters.push(("lowerdir+".to_owned(), text(path)?));
    }
    let mut attributes = Attributes::MOUNT_ATTR_RELATIME;
    match upper {
        Some(upper) => {
            parameters.push(("upperdir".to_owned(), text(&upper.join("upper"))?));
            parameters.push(("workdir".to_owned(), text(&upper.join("work"))?));
            // `commit` reads the upper directory as files, so none may be metadata only, and none be of another name below.
            parameters.push(("metacopy".to_owned(), "off".to_owned()));
            parameters.push(("redirect_dir".to_owned(), "nofollow".to_owned()));
            parameters.push(("index".to_owned(), "off".to_owned()));
            parameters.push(("xino".to_owned(), "auto".to_owned()));
        }
        None => attributes |= Attributes::MOUNT_ATTR_RDONLY,
    }
    Ok(Filesystem { kind: "overlay".to_owned(), parameters, attributes })
}

fn prepare_upper(disk: &Path, writable: &WritableLayer, topmost: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let relative = Path::new(&writable.directory);
    let inside = relative
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
    if !inside || writable.directory.len() > 255 || writable.directory.contains('\0') {
        return Err(Error::invalid(format!("bad writable directory {:?}", writable.directory)));
    }
    let path = disk.join(relative);
    make_directory(path.join("work"))?;
    let upper = path.join("upper");
    if !upper.exists() {
        make_directory(upper.clone())?;
        // The merged root shows the upper directory's own mode and owner.
        let made = std::fs::metadata(&upper).what("look at the upper directory")?;
        if let Ok(below) = std::fs::metadata(topmost) {
            if (made.uid(), made.gid()) != (below.uid(), below.gid()) {
                std::os::unix::fs::chown(&upper, Some(below.uid()), Some(below.gid()))
                    .what("chown the upper directory")?;
            }
            if made.mode() & 0o7777 != below.mode() & 0o7777 {
                std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(below.mode() & 0o7777))
                    .what("chmod the upper directory")?;
            }
        }
    }
    Ok(path)
}

fn make_skeleton(path: &Path, request: &CreateContainerRequest) -> Result<PathBuf> {
    let skeleton = crate::path::Root::new(open_directory(&make_directory(path.to_owned())?)?);
    for directory in standard_directories() {
        skeleton.directory(directory)?;
    }
    for name in NAME_FILES.into_iter().chain([MACHINE_ID]) {
        skeleton.file(&format!("/etc/{name}"))?;
    }
    for mount in &request.mounts {
        let is_file = mount.r#type == "bind" && !Path::new(&mount.source).is_dir();
        if is_file {
            skeleton.file(&mount.destination)?
        } else {
            skeleton.directory(&mount.destination)?
        };
    }
    if let Some(process) = &request.process {
        skeleton.directory(&process.working_directory)?;
    }
    Ok(path.to_owned())
}

fn make_directory(path: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&path).what(format_args!("create {}", path.display()))?;
    Ok(path)
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .what(format_args!("open {}", path.display()))
}

fn check_serial(serial: &str) -> Result<()> {
    let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if serial.is_empty() || serial.len() > 36 || !serial.chars().all(sane) || serial.starts_with('.') {
        return Err(Error::invalid(format!("bad disk serial {serial:?}")));
    }
    Ok(())
}

/// The device node of a disk or its partition; it may be plugged in just now.
fn wait_device(serial: &str, partition: u32) -> Result<String> {
    let deadline = Instant::now() + DISK_DEADLINE;
    loop {
        if let Some(disk) = find_disk(serial) {
            let separator = if partition > 0 && disk.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
            let node =
                if partition == 0 { format!("/dev/{disk}") } else { format!("/dev/{disk}{separator}{partition}") };
            if is_live(Path::new(&node))? {
                return Ok(node);
            }
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                Kind::NotFound,
                format!(
                    "no disk with serial {serial:?} and partition {partition} within {} s",
                    DISK_DEADLINE.as_secs()
                ),
            ));
        }
        std::thread::sleep(POLL);
    }
}

/// The kernel shows a disk before it lets anybody open it: until then that is ENXIO, to a mount, too.
fn is_live(node: &Path) -> Result<bool> {
    match rustix::fs::open(node, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NXIO) => Ok(false),
        Err(cause) => Err(cause).what(format_args!("open {}", node.display())),
    }
}

/// It may be plugged in just now: until its driver has it, mounting would say that nobody knows the tag.
fn wait_share(shares: &Path, tag: &str) -> Result<()> {
    let deadline = Instant::now() + DISK_DEADLINE;
    while !has_share(shares, tag) {
        if Instant::now() >= deadline {
            let waited = DISK_DEADLINE.as_secs();
            return Err(Error::new(Kind::NotFound, format!("nothing is shared as {tag:?} within {waited} s")));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn has_share(shares: &Path, tag: &str) -> bool {
    let mut found = std::fs::read_dir(shares).into_iter().flatten().flatten();
    found.any(|entry| std::fs::read_to_string(entry.path().join("tag")).is_ok_and(|told| told.trim_end() == tag))
}

fn find_disk(serial: &str) -> Option<String> {
    let mut disks = std::fs::read_dir("/sys/block").ok()?.flatten();
    let found = disks.find(|entry| read_serial(&entry.path()).is_some_and(|found| found == serial))?;
    found.file_name().into_string().ok()
}

/// virtio-blk gives it as text; a SCSI disk as a vital-product-data page with a header of four bytes.
pub fn read_serial(disk: &Path) -> Option<String> {
    let name = disk.file_name()?.to_str()?;
    let bytes = if name.starts_with("vd") {
        std::fs::read(disk.join("serial")).ok()?
    } else if name.starts_with("sd") {
        std::fs::read(disk.join("device/vpd_pg80")).ok()?.get(4..)?.to_vec()
    } else {
        return None;
    };
    Some(String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ', '\n']).to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::tests::Scratch;

    #[test]
    fn a_disk_that_cannot_be_opened_yet_is_waited_for() {
        let scratch = Scratch::new();
        let node = scratch.0.join("vdc");
        assert!(!is_live(&node).unwrap());
        // A socket's name says ENXIO to open, as a disk does that is shown before it is there.
        let socket = std::os::unix::net::UnixListener::bind(&node).unwrap();
        assert!(!is_live(&node).unwrap());
        drop(socket);
        std::fs::remove_file(&node).unwrap();
        std::fs::write(&node, "").unwrap();
        assert!(is_live(&node).unwrap());
    }

    #[test]
    fn a_share_is_found_by_its_tag_alone() {
        let scratch = Scratch::new();
        assert!(!has_share(&scratch.0.join("none"), "bind0"));
        for (number, tag) in ["bind10\n", "bind1\n"].iter().enumerate() {
            let place = make_directory(scratch.0.join(number.to_string())).unwrap();
            std::fs::write(place.join("tag"), tag).unwrap();
        }
        assert!(has_share(&scratch.0, "bind1"));
        assert!(!has_share(&scratch.0, "bind"));
    }
}
