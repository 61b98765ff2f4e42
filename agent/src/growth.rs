// SPDX-License-Identifier: Apache-2.0
//! A volume's file system takes all of a disk that has become larger: while it is used, or when it is next mounted. Of
//! ext4 and XFS; it never becomes smaller. There is no resize2fs in a guest, and none is needed: the kernel does it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Error, Kind, Result, describe};
use crate::sys;

/// For the driver to hear of the disk's new size.
const SIZE_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
const SECTOR_BYTES: u64 = 512;
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const XFS_MAGIC: u32 = 0x5846_5342; // linux/magic.h

/// Blocking. `mount` is where the file system is mounted, `size_bytes` what its disk is to have.
pub fn grow(mount: &Path, size_bytes: u64) -> Result<()> {
    let disk = disk_of(mount).what("find the volume's disk")?;
    let deadline = Instant::now() + SIZE_DEADLINE;
    while size_of(&disk).what("read the disk's size")? < size_bytes {
        if Instant::now() >= deadline {
            return Err(Error::new(
                Kind::TimedOut,
                format!("the disk does not have {size_bytes} bytes after {} s", SIZE_DEADLINE.as_secs()),
            ));
        }
        std::thread::sleep(POLL);
    }
    fill(mount, &disk)
}

/// Blocking. After a mount for writing. What cannot grow is mounted all the same, as large as it was.
pub fn fill_disk(mount: &Path) {
    let filled = disk_of(mount).what("find the volume's disk").and_then(|disk| fill(mount, &disk));
    if let Err(error) = filled {
        crate::warn!("{}: {error}", mount.display());
    }
}

fn fill(mount: &Path, disk: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(mount, flags, Mode::empty()).what("open the volume")?;
    match u32::try_from(rustix::fs::fstatfs(&directory).what("ask what the volume holds")?.f_type) {
        Ok(XFS_MAGIC) => fill_xfs(&directory, disk),
        _ => fill_ext4(&directory, disk),
    }
}

/// Its superblock on the disk is older than what the kernel knows: that is asked.
fn fill_xfs(directory: &OwnedFd, disk: &Path) -> Result<()> {
    let found = sys::xfs_geometry(directory.as_fd()).what("ask how large the file system is")?;
    let blocks = size_of(disk).what("read the disk's size")?.checked_div(found.block_bytes.into()).unwrap_or(0);
    if blocks <= found.blocks {
        return Ok(());
    }
    sys::grow_xfs(directory.as_fd(), &found, blocks).map_err(|cause| refused(found.blocks, blocks, &cause))
}

fn refused(blocks: u64, wanted: u64, cause: &io::Error) -> Error {
    let why = match cause.raw_os_error() {
        Some(libc::EPERM) => "it has errors, and is to be checked first".to_owned(),
        _ => describe(cause),
    };
    Error::internal(format!("the file system does not grow from {blocks} to {wanted} blocks: {why}"))
}

fn fill_ext4(directory: &OwnedFd, disk: &Path) -> Result<()> {
    let name = disk.file_name().ok_or_else(|| Error::internal("a disk has a name"))?;
    let mut superblock = [0; SUPERBLOCK_BYTES];
    File::open(Path::new("/dev").join(name))
        .and_then(|mut node| {
            node.seek(SeekFrom::Start(SUPERBLOCK_AT))?;
            node.read_exact(&mut superblock)
        })
        .what("read the superblock")?;
    let Some(found) = Extent::read(&superblock) else { return Ok(()) };
    let blocks = size_of(disk).what("read the disk's size")? / found.block_bytes;
    if blocks <= found.blocks {
        return Ok(());
    }
    sys::grow_ext4(directory.as_fd(), blocks).map_err(|cause| refused(found.blocks, blocks, &cause))
}

/// /sys/devices/.../block/vdc
fn disk_of(mount: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(mount)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))
}

fn size_of(disk: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string(disk.join("size"))?;
    let sectors: u64 = text.trim().parse().map_err(io::Error::other)?;
    Ok(sectors * SECTOR_BYTES)
}

/// What an ext4 says of itself. The host's guest wrote it: a lie makes the kernel refuse.
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    blocks: u64,
    block_bytes: u64,
}

impl Extent {
    /// `None`: not an ext4. Documentation/filesystems/ext4/super.rst
    fn read(superblock: &[u8; SUPERBLOCK_BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| superblock[at + n]));
        if superblock[0x38..0x3a] != [0x53, 0xef] {
            return None;
        }
        let is_64bit = word(0x60) & 0x80 != 0;
        let high = if is_64bit { u64::from(word(0x150)) } else { 0 };
        let block_bytes = 1024_u64.checked_shl(word(0x18)).filter(|bytes| (1024..=65536).contains(bytes))?;
        Some(Self { blocks: high << 32 | u64::from(word(0x4)), block_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(fields: &[(usize, u32)]) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        for (at, value) in fields {
            bytes[*at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_superblock_says_how_large_its_file_system_is() {
        let small = superblock(&[(0x4, 4096), (0x18, 2)]);
        assert_eq!(Extent::read(&small), Some(Extent { blocks: 4096, block_bytes: 4096 }));
        let large = superblock(&[(0x4, 5), (0x18, 0), (0x60, 0x80), (0x150, 1)]);
        assert_eq!(Extent::read(&large), Some(Extent { blocks: (1 << 32) + 5, block_bytes: 1024 }));
    }

    #[test]
    fn what_is_no_ext4_or_lies_about_its_blocks_does_not_grow() {
        assert_eq!(Extent::read(&[0; SUPERBLOCK_BYTES]), None);
        for shift in [7, 31, 64, u32::MAX] {
            assert_eq!(Extent::read(&superblock(&[(0x18, shift)])), None, "{shift}");
        }
    }
}
