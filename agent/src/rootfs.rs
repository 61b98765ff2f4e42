// SPDX-License-Identifier: Apache-2.0
//! What a container finds around it: the standard mounts and devices, its name files, the mounts asked for,
//! masked and read-only paths. Built beneath the container's root, in its own mount namespace, before the pivot.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Error, Kind, Result};
use crate::fork;
use crate::mount::{self, Attributes, Device, Filesystem, Kernel};
use crate::path::Root;
use crate::proto::{CreateContainerRequest, Mount};

const DEFAULT_SHM_BYTES: u64 = 64 * 1024 * 1024;
/// Made by the agent for each container, bind-mounted over the image's.
pub const NAME_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];
/// Made too when the host gave the guest ids; read-only.
pub const MACHINE_ID: &str = "machine-id";
pub const BOOT_ID: &str = "boot-id";
const BOOT_ID_PLACE: &str = "/proc/sys/kernel/random/boot_id";

const DEV: &str = "/dev";
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Where mounts of the standard set go; also what a root that cannot be written must already have.
pub fn standard_directories() -> impl Iterator<Item = &'static str> {
    ["/proc", "/dev", "/sys", "/etc", fork::DIRECTORY].into_iter()
}

fn standard_mounts(privileged: bool, shm_bytes: u64) -> Vec<(&'static str, Filesystem)> {
    let plain = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV | Attributes::MOUNT_ATTR_NOEXEC;
    let kernels = if privileged { plain } else { plain | Attributes::MOUNT_ATTR_RDONLY };
    let shm = (if shm_bytes == 0 { DEFAULT_SHM_BYTES } else { shm_bytes }).to_string();
    vec![
        ("/proc", Filesystem::new("proc", &[], plain)),
        (
            DEV,
            Filesystem::new(
                "tmpfs",
                &[("mode", "755"), ("size", "65536k")],
                Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_STRICTATIME,
            ),
        ),
        (
            "/dev/pts",
            Filesystem::new(
                "devpts",
                &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")],
                Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NOEXEC,
            ),
        ),
        ("/sys", Filesystem::new("sysfs", &[], kernels)),
        ("/sys/fs/cgroup", Filesystem::new("cgroup2", &[], kernels)),
        ("/dev/mqueue", Filesystem::new("mqueue", &[], plain)),
        ("/dev/shm", Filesystem::new("tmpfs", &[("mode", "1777"), ("size", &shm)], plain)),
    ]
}

/// Standard mounts made before their container is known, attached nowhere yet. What is asked for otherwise is made otherwise.
#[derive(Default)]
pub struct Ahead(RefCell<Vec<(Filesystem, OwnedFd)>>);

impl Ahead {
    /// As most containers have them; /dev has in it what belongs there. Called in the container's namespaces.
    pub fn make<K: Kernel>(kernel: &K) -> Result<Self> {
        let mut made = Vec::new();
        for (target, filesystem) in standard_mounts(false, 0) {
            let mount = kernel.make(&filesystem)?;
            if target == DEV {
                fill(kernel, mount.as_fd())?;
                for place in ["pts", "mqueue", "shm"] {
                    rustix::fs::mkdirat(&mount, place, Mode::from_raw_mode(0o755)).what("create a mount point")?;
                }
            }
            made.push((filesystem, mount));
        }
        Ok(Self(RefCell::new(made)))
    }

    fn take(&self, wanted: &Filesystem) -> Option<OwnedFd> {
        let mut made = self.0.borrow_mut();
        let at = made.iter().position(|(filesystem, _)| filesystem == wanted)?;
        Some(made.swap_remove(at).1)
    }
}

/// The devices and links of a container's /dev.
fn fill<K: Kernel>(kernel: &K, dev: BorrowedFd<'_>) -> Result<()> {
    for (name, major, minor) in DEVICES {
        kernel.make_device(dev, name, Device { block: false, major, minor }, 0o666)?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, dev, name).what(format_args!("link /dev/{name}"))?;
    }
    Ok(())
}

pub struct Builder<'a, K: Kernel> {
    pub kernel: &'a K,
    pub root: &'a Root,
    pub request: &'a CreateContainerRequest,
    /// Where the agent keeps this container's name files.
    pub files: &'a Path,
    /// What it finds as /run/hyper.
    pub share: &'a Path,
    pub ahead: &'a Ahead,
}

impl<K: Kernel> Builder<'_, K> {
    pub fn build(&self) -> Result<()> {
        let isolation = self.request.isolation.clone().unwrap_or_default();
        let mut is_filled = false;
        for (target, filesystem) in standard_mounts(isolation.privileged, self.request.shm_size_bytes) {
            let was_made = self.mount_standard(target, &filesystem)?;
            is_filled |= was_made && target == DEV;
        }
        self.fill_dev(isolation.privileged, is_filled)?;
        for name in NAME_FILES {
            let place = format!("/etc/{name}");
            self.bind(&self.files.join(name), &place, Attributes::empty())
                .map_err(|it| it.at(&place.as_bytes()[1..]))?;
        }
        self.bind_ids()?;
        let mut mounts: Vec<&Mount> = self.request.mounts.iter().collect();
        mounts.sort_by_key(|mount| depth(&mount.destination));
        // Into what is mounted on /run, and beneath what somebody wants to have there.
        let deeper = mounts.partition_point(|mount| depth(&mount.destination) <= depth(fork::DIRECTORY));
        for (n, mount) in mounts.iter().enumerate() {
            if n == deeper {
                self.bind_share()?;
            }
            self.mount_asked(mount).map_err(|error| error.of(format_args!("mount {}", mount.destination)))?;
        }
        if deeper == mounts.len() {
            self.bind_share()?;
        }
        for (name, value) in &isolation.sysctls {
            write_sysctl(self.kernel, self.root, name, value)?;
        }
        if !isolation.privileged {
            for path in &isolation.readonly_paths {
                self.make_readonly(path)?;
            }
            for path in &isolation.masked_paths {
                self.mask(path)?;
            }
        }
        if let Some(cwd) =
            self.request.process.as_ref().map(|p| p.working_directory.as_str()).filter(|cwd| !cwd.is_empty())
        {
            self.root.directory(cwd).map_err(|error| error.of(format_args!("working directory {cwd}")))?;
        }
        if self.request.root.as_ref().is_some_and(|root| root.readonly) {
            self.kernel.set_attributes(self.root.fd(), false, Attributes::MOUNT_ATTR_RDONLY)?;
        }
        Ok(())
    }

    /// Nothing of the image or of the host may fail for want of a place for these.
    fn bind_ids(&self) -> Result<()> {
        let fixed = Attributes::MOUNT_ATTR_RDONLY;
        for (name, place) in [(MACHINE_ID, "/etc/machine-id"), (BOOT_ID, BOOT_ID_PLACE)] {
            let file = self.files.join(name);
            if !file.exists() {
                continue;
            }
            match self.bind(&file, place, fixed) {
                Err(error) if error.kind == Kind::Invalid => crate::debug!("{place}: {error}"),
                bound => bound?,
            }
        }
        Ok(())
    }

    fn bind_share(&self) -> Result<()> {
        let taken =
            |mount: &Mount| Path::new(&mount.destination).components().eq(Path::new(fork::DIRECTORY).components());
        if !self.share.exists() || self.request.mounts.iter().any(taken) {
            return Ok(());
        }
        let fixed = Attributes::MOUNT_ATTR_RDONLY | Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV;
        match self.bind(self.share, fork::DIRECTORY, fixed) {
            // Such as a read-only volume on /run.
            Err(error) if error.kind == Kind::Invalid => crate::debug!("{}: {error}", fork::DIRECTORY),
            bound => bound?,
        }
        Ok(())
    }

    /// True when it was made ahead.
    fn mount_standard(&self, target: &str, filesystem: &Filesystem) -> Result<bool> {
        let place = self.root.directory(target)?;
        // As runc does: a /proc that the image made a symlink would put the real one where nothing is masked.
        if rustix::fs::openat2(
            self.root.fd(),
            &target[1..],
            OFlags::PATH | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
            rustix::fs::ResolveFlags::NO_SYMLINKS | rustix::fs::ResolveFlags::BENEATH,
        )
        .is_err()
        {
            return Err(Error::invalid(format!("{target} of the image is a symbolic link")));
        }
        let ahead = self.ahead.take(filesystem);
        let was_made = ahead.is_some();
        let mount = ahead.map_or_else(|| self.kernel.make(filesystem), Ok)?;
        self.kernel.attach(mount.as_fd(), place.as_fd())?;
        Ok(was_made)
    }

    fn fill_dev(&self, privileged: bool, is_filled: bool) -> Result<()> {
        if is_filled && !privileged {
            return Ok(());
        }
        let dev = self.root.directory("/dev")?;
        // A descriptor of its own kind: O_PATH may not be written through.
        let dev = self.root.open("/dev", OFlags::RDONLY | OFlags::DIRECTORY).what("open /dev").unwrap_or(dev);
        if !is_filled {
            fill(self.kernel, dev.as_fd())?;
        }
        if privileged { self.copy_devices(dev.as_fd()) } else { Ok(()) }
    }

    /// All of the guest's own devices, one level deep (which is where a microVM has them).
    fn copy_devices(&self, dev: BorrowedFd<'_>) -> Result<()> {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        for entry in std::fs::read_dir("/dev").what("list /dev")?.flatten() {
            let (Ok(data), Ok(name)) = (entry.metadata(), entry.file_name().into_string()) else { continue };
            let known =
                DEVICES.iter().any(|&(device, ..)| device == name) || LINKS.iter().any(|&(link, _)| link == name);
            let kind = data.file_type();
            if known || name == "console" || !(kind.is_block_device() || kind.is_char_device()) {
                continue;
            }
            let device = Device {
                block: kind.is_block_device(),
                major: rustix::fs::major(data.rdev()),
                minor: rustix::fs::minor(data.rdev()),
            };
            self.kernel.make_device(dev, &name, device, data.mode() & 0o777)?;
        }
        Ok(())
    }

    fn mount_asked(&self, mount: &Mount) -> Result<()> {
        if !mount.destination.starts_with('/') {
            return Err(Error::invalid(format!("mount destination {:?} is not absolute", mount.destination)));
        }
        let (attributes, parameters) = mount::parse_options(&mount.options)?;
        match mount.r#type.as_str() {
            "tmpfs" => {
                let place = self.root.directory(&mount.destination)?;
                let made = self.kernel.make(&Filesystem { kind: "tmpfs".to_owned(), parameters, attributes })?;
                self.kernel.attach(made.as_fd(), place.as_fd())
            }
            // Disks and shares were mounted by the agent and arrive here as binds.
            "bind" => self.bind(Path::new(&mount.source), &mount.destination, attributes),
            other => Err(Error::invalid(format!("unknown mount type {other:?}"))),
        }
    }

    fn bind(&self, source: &Path, destination: &str, attributes: Attributes) -> Result<()> {
        let origin = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty())
            .what("open what is to be mounted")?;
        let place = if source.is_dir() { self.root.directory(destination)? } else { self.root.file(destination)? };
        let copy = self.kernel.copy(origin.as_fd(), true)?;
        if !attributes.is_empty() {
            self.kernel.set_attributes(copy.as_fd(), true, attributes)?;
        }
        self.kernel.attach(copy.as_fd(), place.as_fd())
    }

    fn make_readonly(&self, path: &str) -> Result<()> {
        let Some(place) = self.root.find(path)? else { return Ok(()) };
        let copy = self.kernel.copy(place.as_fd(), true)?;
        self.kernel.set_attributes(copy.as_fd(), true, Attributes::MOUNT_ATTR_RDONLY)?;
        self.kernel.attach(copy.as_fd(), place.as_fd())
    }

    fn mask(&self, path: &str) -> Result<()> {
        let Some(place) = self.root.find(path)? else { return Ok(()) };
        let is_directory =
            rustix::fs::fstat(&place).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir());
        let cover: OwnedFd = if is_directory {
            self.kernel.make(&Filesystem::new("tmpfs", &[("size", "4k")], Attributes::MOUNT_ATTR_RDONLY))?
        } else {
            let null = self.root.find("/dev/null")?.ok_or_else(|| Error::internal("no /dev/null to mask with"))?;
            self.kernel.copy(null.as_fd(), false)?
        };
        self.kernel.attach(cover.as_fd(), place.as_fd())
    }
}

fn depth(path: &str) -> usize {
    path.split('/').filter(|part| !part.is_empty()).count()
}

/// `net.ipv4.ip_forward` or `net/ipv4/ip_forward`, below the root's /proc/sys.
pub fn write_sysctl<K: Kernel>(kernel: &K, root: &Root, name: &str, value: &str) -> Result<()> {
    let path = sysctl_path(name)?;
    let directory = root.open("/proc/sys", OFlags::RDONLY | OFlags::DIRECTORY).what("open /proc/sys")?;
    kernel.write(directory.as_fd(), &path, value).map_err(|cause| Error::invalid(format!("sysctl {name}: {cause}")))
}

pub fn sysctl_path(name: &str) -> Result<String> {
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let sane = |part: &str| !part.is_empty() && part != "." && part != "..";
    if name.len() > 256 || !path.split('/').all(sane) || path.contains('\0') {
        return Err(Error::invalid(format!("bad sysctl name {name:?}")));
    }
    Ok(path)
}

#[cfg(test)]
#[path = "rootfs_tests.rs"]
mod tests;
