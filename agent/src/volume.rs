// SPDX-License-Identifier: Apache-2.0
//! What a volume's file system holds: a directory that the container gets, filled at first use with what its image has
//! at that place. Filled whole or not at all: beside it first, then renamed.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result, describe};
use crate::path::Root;

const FILLING: &str = ".filling";
const MAX_XATTR_BYTES: usize = 65536;

/// The directory `name` of the file system mounted at `mount`: what the container is to see.
pub fn directory(mount: &Path, name: &str) -> Result<PathBuf> {
    let path = entry(mount, name)?;
    if !std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
        return Err(Error::invalid(format!("{name} of the volume is not a directory")));
    }
    Ok(path)
}

/// The same, which may be a file: of a file that is shared the guest has a directory with it alone.
pub fn entry(mount: &Path, name: &str) -> Result<PathBuf> {
    if name.is_empty() {
        return Ok(mount.to_owned());
    }
    if name.contains(['/', '\0']) || name == "." || name == ".." || name == FILLING {
        return Err(Error::invalid(format!("bad directory {name:?} of a volume")));
    }
    let path = mount.join(name);
    // Who could write to the raw disk may have made it a link to anywhere in the guest.
    match std::fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() || found.is_file() => Ok(path),
        Ok(_) => Err(Error::invalid(format!("{name} of the volume is neither a directory nor a file"))),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            Err(Error::invalid(format!("the volume has no directory {name}: it was not made by hyper")))
        }
        Err(cause) => Err(cause).what(format_args!("look at {name} of the volume")),
    }
}

/// Copies what the image has at `destination` into `target`, a directory of the mounted volume, when that is empty.
pub fn fill(target: &Path, root: &Root, destination: &str) -> Result<()> {
    if std::fs::read_dir(target).what("list the volume")?.next().is_some() {
        return Ok(());
    }
    let source = match root.open(destination, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(source) => source,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(cause) => return Err(cause).what(format_args!("open {destination} of the image")),
    };
    let mount = target.parent().ok_or_else(|| Error::internal("a volume's directory is below its mount"))?;
    let filling = mount.join(FILLING);
    remove(&filling).what("remove what an earlier start left half-filled")?;
    let filled = copy_tree(&source, &filling).and_then(|()| {
        rustix::fs::syncfs(File::open(&filling)?)?;
        std::fs::rename(&filling, target)?;
        rustix::fs::syncfs(File::open(mount)?)?;
        Ok(())
    });
    filled.map_err(|cause| {
        let _ = remove(&filling);
        let full = matches!(cause.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        let kind = if full { Kind::Exhausted } else { Kind::Internal };
        Error::new(kind, format!("copy what the image has at {destination} to the volume: {}", describe(&cause)))
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Nothing else writes to either side, so paths are looked up as text; none is followed that is a link.
fn copy_tree(source: &OwnedFd, target: &Path) -> io::Result<()> {
    enum Step {
        Copy(PathBuf),
        /// A directory's own times, when all in it is there.
        Finish(PathBuf, Metadata),
    }
    let base = PathBuf::from(format!("/proc/self/fd/{}/.", source.as_raw_fd()));
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut steps = vec![Step::Copy(PathBuf::new())];
    while let Some(step) = steps.pop() {
        match step {
            Step::Finish(relative, metadata) => set_times(&target.join(relative), &metadata)?,
            Step::Copy(relative) => {
                let (from, to) = (base.join(&relative), target.join(&relative));
                let metadata = std::fs::symlink_metadata(&from)?;
                if metadata.is_dir() {
                    DirBuilder::new().mode(0o700).create(&to)?;
                    copy_attributes(&from, &to, &metadata)?;
                    steps.push(Step::Finish(relative.clone(), metadata));
                    for entry in std::fs::read_dir(&from)? {
                        steps.push(Step::Copy(relative.join(entry?.file_name())));
                    }
                    continue;
                }
                if metadata.nlink() > 1 {
                    let key = (metadata.dev(), metadata.ino());
                    if let Some(first) = links.get(&key) {
                        std::fs::hard_link(first, &to)?;
                        continue;
                    }
                    links.insert(key, to.clone());
                }
                copy_leaf(&from, &to, &metadata)?;
                copy_attributes(&from, &to, &metadata)?;
                set_times(&to, &metadata)?;
            }
        }
    }
    Ok(())
}

fn copy_leaf(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        return std::os::unix::fs::symlink(std::fs::read_link(from)?, to);
    }
    if kind.is_file() {
        let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(from)?;
        let mut writer = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        io::copy(&mut reader, &mut writer)?;
        return Ok(());
    }
    let node = if kind.is_char_device() {
        FileType::CharacterDevice
    } else if kind.is_block_device() {
        FileType::BlockDevice
    } else if kind.is_fifo() {
        FileType::Fifo
    } else {
        FileType::Socket
    };
    Ok(rustix::fs::mknodat(CWD, to, node, Mode::from_raw_mode(0o600), metadata.rdev())?)
}

/// Owner before mode and capabilities: a change of owner takes set-user-id and capabilities away.
fn copy_attributes(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    std::os::unix::fs::lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    if !metadata.is_symlink() {
        std::fs::set_permissions(to, Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    let mut names = vec![0; MAX_XATTR_BYTES];
    let length = match rustix::fs::llistxattr(from, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(cause) => return Err(cause.into()),
    };
    let mut value = Vec::new();
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        value.resize(MAX_XATTR_BYTES, 0);
        let size = rustix::fs::lgetxattr(from, name, value.as_mut_slice())?;
        match rustix::fs::lsetxattr(to, name, &value[..size], XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(cause) => return Err(cause.into()),
        }
    }
    Ok(())
}

fn set_times(path: &Path, metadata: &Metadata) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: metadata.atime(), tv_nsec: metadata.atime_nsec() },
        last_modification: Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() },
    };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
