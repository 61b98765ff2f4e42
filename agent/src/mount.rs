// SPDX-License-Identifier: Apache-2.0
//! Mounts by descriptor (fsopen, fsmount, move_mount): no path is looked up twice, and no target is a string
//! that a hostile image could have pointed elsewhere. [`Kernel`] is the seam at which tests record.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use crate::error::{Context, Error, Kind, Result, describe};
use crate::sys;

pub use rustix::mount::MountAttrFlags as Attributes;

/// A filesystem to be made: type, parameters ("" = a flag without value), attributes of its mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    pub kind: String,
    pub parameters: Vec<(String, String)>,
    pub attributes: Attributes,
}

impl Filesystem {
    pub fn new(kind: &str, parameters: &[(&str, &str)], attributes: Attributes) -> Self {
        let parameters = parameters.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        Self { kind: kind.to_owned(), parameters, attributes }
    }
}

/// A device node: c or b, major, minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    pub block: bool,
    pub major: u32,
    pub minor: u32,
}

pub trait Kernel {
    /// A new filesystem, mounted nowhere yet.
    fn make(&self, filesystem: &Filesystem) -> Result<OwnedFd>;
    /// A copy of the mount at `source`, attached nowhere yet.
    fn copy(&self, source: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd>;
    fn attach(&self, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()>;
    fn set_attributes(&self, mount: BorrowedFd<'_>, recursive: bool, set: Attributes) -> Result<()>;
    fn make_device(&self, directory: BorrowedFd<'_>, name: &str, device: Device, mode: u32) -> Result<()>;
    /// Writes a file of the kernel's (sysctl, cgroup) below a directory.
    fn write(&self, directory: BorrowedFd<'_>, name: &str, value: &str) -> Result<()>;
}

pub struct Linux;

impl Kernel for Linux {
    fn make(&self, filesystem: &Filesystem) -> Result<OwnedFd> {
        let kind = &filesystem.kind;
        let context = rustix::mount::fsopen(kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|cause| unknown_filesystem(kind, cause))?;
        let explain = |what: &str, cause: rustix::io::Errno| {
            let cause = describe(&std::io::Error::from(cause));
            Error::internal(format!("{kind}: {what}: {cause}{}", complaint(&context)))
        };
        let refuse = |option: &str, cause: rustix::io::Errno| {
            let error = explain(&format!("option {option}"), cause);
            let wrong =
                matches!(cause, rustix::io::Errno::INVAL | rustix::io::Errno::RANGE | rustix::io::Errno::TOOBIG);
            if wrong { Error::invalid(error.message) } else { error }
        };
        if !filesystem.parameters.iter().any(|(key, _)| key == "source") {
            // What /proc/mounts shows in front of " on ".
            let _ = rustix::mount::fsconfig_set_string(&context, "source", kind.as_str());
        }
        for (key, value) in &filesystem.parameters {
            let set = if value.is_empty() {
                rustix::mount::fsconfig_set_flag(&context, key.as_str())
            } else {
                rustix::mount::fsconfig_set_string(&context, key.as_str(), value.as_str())
            };
            let option = if value.is_empty() || is_place(key) { key.clone() } else { format!("{key}={value}") };
            set.map_err(|cause| refuse(&option, cause))?;
        }
        rustix::mount::fsconfig_create(&context).map_err(|cause| {
            let error = explain("create", cause);
            if is_foreign(filesystem, cause) {
                Error::wrong_state(format!("the disk holds no {kind} that can be mounted: {error}"))
            } else {
                error
            }
        })?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, filesystem.attributes)
            .map_err(|cause| explain("mount", cause))
    }

    fn copy(&self, source: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        rustix::mount::open_tree(source, "", flags).what("copy a mount")
    }

    fn attach(&self, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(mount, "", target, "", flags).asked("attach a mount")
    }

    fn set_attributes(&self, mount: BorrowedFd<'_>, recursive: bool, set: Attributes) -> Result<()> {
        sys::mount_setattr(mount, recursive, set.bits().into(), 0).what("change a mount's attributes")
    }

    fn make_device(&self, directory: BorrowedFd<'_>, name: &str, device: Device, mode: u32) -> Result<()> {
        let kind = if device.block { FileType::BlockDevice } else { FileType::CharacterDevice };
        let number = rustix::fs::makedev(device.major, device.minor);
        rustix::fs::mknodat(directory, name, kind, Mode::from_raw_mode(mode), number)
            .what(format_args!("make device {name}"))?;
        // The umask does not decide about device nodes.
        rustix::fs::chmodat(directory, name, Mode::from_raw_mode(mode), rustix::fs::AtFlags::empty())
            .what(format_args!("chmod device {name}"))
    }

    fn write(&self, directory: BorrowedFd<'_>, name: &str, value: &str) -> Result<()> {
        use rustix::fs::{OFlags, ResolveFlags};
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file =
            rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve).what(format_args!("open {name}"))?;
        rustix::io::write(&file, value.as_bytes()).what(format_args!("write {value:?} to {name}"))?;
        Ok(())
    }
}

/// Whether its value is a path of the agent's own, which tells a user nothing.
fn is_place(key: &str) -> bool {
    matches!(key, "source" | "lowerdir+" | "upperdir" | "workdir")
}

/// Options were refused before: what a disk holds is not this filesystem.
fn is_foreign(filesystem: &Filesystem, cause: rustix::io::Errno) -> bool {
    let on_disk = filesystem.parameters.iter().any(|(key, value)| key == "source" && value.starts_with("/dev/"));
    on_disk && cause == rustix::io::Errno::INVAL
}

fn unknown_filesystem(kind: &str, cause: rustix::io::Errno) -> Error {
    if cause == rustix::io::Errno::NODEV {
        return Error::new(Kind::Unsupported, format!("the guest kernel has no filesystem {kind:?}"));
    }
    Error::internal(format!("open filesystem {kind:?}: {}", std::io::Error::from(cause)))
}

/// What the kernel wrote into the context's log about a failure.
fn complaint(context: &OwnedFd) -> String {
    let mut text = [0; 512];
    match rustix::io::read(context, &mut text) {
        Ok(n) if n > 2 => format!(" ({})", String::from_utf8_lossy(&text[2..n]).trim_end()),
        _ => String::new(),
    }
}

/// Splits mount(8)-like options into attributes of the mount and parameters of the filesystem.
pub fn parse_options(options: &[String]) -> Result<(Attributes, Vec<(String, String)>)> {
    let (mut attributes, mut parameters) = (Attributes::empty(), Vec::new());
    for option in options {
        let (bit, on) = match option.as_str() {
            "" | "defaults" | "bind" | "rbind" | "private" | "rprivate" => continue,
            "ro" => (MountAttrFlags::MOUNT_ATTR_RDONLY, true),
            "rw" => (MountAttrFlags::MOUNT_ATTR_RDONLY, false),
            "nosuid" => (MountAttrFlags::MOUNT_ATTR_NOSUID, true),
            "suid" => (MountAttrFlags::MOUNT_ATTR_NOSUID, false),
            "nodev" => (MountAttrFlags::MOUNT_ATTR_NODEV, true),
            "dev" => (MountAttrFlags::MOUNT_ATTR_NODEV, false),
            "noexec" => (MountAttrFlags::MOUNT_ATTR_NOEXEC, true),
            "exec" => (MountAttrFlags::MOUNT_ATTR_NOEXEC, false),
            "noatime" => (MountAttrFlags::MOUNT_ATTR_NOATIME, true),
            "strictatime" => (MountAttrFlags::MOUNT_ATTR_STRICTATIME, true),
            "nodiratime" => (MountAttrFlags::MOUNT_ATTR_NODIRATIME, true),
            "relatime" => continue,
            other => {
                let (key, value) = other.split_once('=').unwrap_or((other, ""));
                if key.is_empty() || other.len() > 4096 || other.contains('\0') {
                    return Err(Error::invalid(format!("bad mount option {other:?}")));
                }
                parameters.push((key.to_owned(), value.to_owned()));
                continue;
            }
        };
        attributes.set(bit, on);
    }
    Ok((attributes, parameters))
}

#[cfg(test)]
pub mod recording {
    //! A kernel that does nothing and remembers everything, for tests as any user.
    use std::cell::RefCell;
    use std::os::fd::AsRawFd;

    use super::*;

    #[derive(Default)]
    pub struct Recorder {
        pub log: RefCell<Vec<String>>,
        names: RefCell<std::collections::HashMap<i32, String>>,
        pub base: String,
        pub fail_on: Option<&'static str>,
    }

    impl Recorder {
        /// Places are told relative to this directory.
        pub fn below(base: &std::path::Path) -> Self {
            Self { base: base.to_string_lossy().into_owned(), ..Self::default() }
        }
        fn note(&self, line: String) -> Result<()> {
            if self.fail_on.is_some_and(|word| line.contains(word)) {
                return Err(Error::internal(format!("told to fail: {line}")));
            }
            self.log.borrow_mut().push(line);
            Ok(())
        }
        fn place(&self, fd: BorrowedFd<'_>) -> String {
            let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
            path.to_string_lossy().replacen(&self.base, "", 1)
        }
        fn handle(&self, name: String) -> OwnedFd {
            let fd: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
            self.names.borrow_mut().insert(fd.as_raw_fd(), name);
            fd
        }
        fn name(&self, fd: BorrowedFd<'_>) -> String {
            self.names.borrow().get(&fd.as_raw_fd()).cloned().unwrap_or_else(|| self.place(fd))
        }
    }

    fn flags(attributes: Attributes) -> String {
        let names: Vec<String> = attributes
            .iter_names()
            .map(|(n, _)| n.replace("MOUNT_ATTR_", "").to_lowercase())
            .filter(|n| n != "_atime")
            .collect();
        names.join(",")
    }

    impl Kernel for Recorder {
        fn make(&self, fs: &Filesystem) -> Result<OwnedFd> {
            let options: Vec<String> = fs.parameters.iter().map(|(k, v)| format!("{k}={v}")).collect();
            Ok(self.handle(format!("{} [{}] {}", fs.kind, options.join(","), flags(fs.attributes))))
        }
        fn copy(&self, source: BorrowedFd<'_>, _: bool) -> Result<OwnedFd> {
            Ok(self.handle(format!("bind {}", self.place(source))))
        }
        fn attach(&self, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
            self.note(format!("{} <- {}", self.place(target), self.name(mount)))
        }
        fn set_attributes(&self, mount: BorrowedFd<'_>, _: bool, set: Attributes) -> Result<()> {
            self.note(format!("{} set {}", self.name(mount), flags(set)))
        }
        fn make_device(&self, directory: BorrowedFd<'_>, name: &str, d: Device, mode: u32) -> Result<()> {
            let kind = if d.block { 'b' } else { 'c' };
            self.note(format!("{}/{name} {kind} {}:{} {mode:o}", self.place(directory), d.major, d.minor))
        }
        fn write(&self, directory: BorrowedFd<'_>, name: &str, value: &str) -> Result<()> {
            self.note(format!("{}/{name} = {value}", self.place(directory)))
        }
    }

    /// The kernel says it before anything is mounted.
    #[test]
    fn an_option_that_is_refused_is_told_without_the_agents_own_paths() {
        let told = |kind: &str, key: &str, value: &str| {
            let asked = Filesystem::new(kind, &[(key, value)], Attributes::empty());
            Linux.make(&asked).unwrap_err().message
        };
        let overlay = told("overlay", "lowerdir+", "/run/hyper/disks/absent.1");
        assert!(overlay.contains("lowerdir+") && !overlay.contains("/run/hyper"), "{overlay}");
        let tmpfs = told("tmpfs", "size", "much");
        assert!(tmpfs.contains("size=much"), "{tmpfs}");
    }

    #[test]
    fn only_a_disk_can_hold_something_else() {
        use rustix::io::Errno;
        let on_disk = Filesystem::new("ext4", &[("source", "/dev/vdc")], Attributes::empty());
        assert!(is_foreign(&on_disk, Errno::INVAL));
        assert!(!is_foreign(&on_disk, Errno::IO));
        let shared = Filesystem::new("virtiofs", &[("source", "bind1")], Attributes::empty());
        assert!(!is_foreign(&shared, Errno::INVAL));
        assert!(!is_foreign(&Filesystem::new("tmpfs", &[], Attributes::empty()), Errno::INVAL));
    }

    #[test]
    fn options_are_split_between_mount_and_filesystem() {
        let options = ["ro", "nosuid", "size=1m", "rw", "nr_inodes=5", "relatime", "huge"].map(String::from);
        let (attributes, parameters) = parse_options(&options).unwrap();
        assert_eq!(attributes, Attributes::MOUNT_ATTR_NOSUID);
        assert_eq!(
            parameters,
            [("size", "1m"), ("nr_inodes", "5"), ("huge", "")].map(|(a, b)| (a.to_owned(), b.to_owned()))
        );
        assert!(parse_options(&["=x".to_owned()]).is_err());
    }
}
