// SPDX-License-Identifier: Apache-2.0
//! Disks and what is mounted of them: partitions, stillness, growth.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// A partition that the disk's table need not have; in bytes.
pub fn add_partition(disk: BorrowedFd<'_>, number: i32, start: u64, length: u64) -> Result<()> {
    change_partition(disk, 1, number, start, length)
}

/// Mounted or not.
pub fn resize_partition(disk: BorrowedFd<'_>, number: i32, start: u64, length: u64) -> Result<()> {
    change_partition(disk, 3, number, start, length)
}

// linux/blkpg.h
#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: i32,
    names: [u8; 128],
}

#[repr(C)]
struct PartitionChange {
    operation: i32,
    flags: i32,
    length: i32,
    data: *mut Partition,
}

fn change_partition(disk: BorrowedFd<'_>, operation: i32, number: i32, start: u64, length: u64) -> Result<()> {
    const BLKPG: u64 = 0x1269;
    let signed = |bytes: u64| i64::try_from(bytes).map_err(|_| Error::from(std::io::ErrorKind::InvalidInput));
    let mut partition = Partition { start: signed(start)?, length: signed(length)?, number, names: [0; 128] };
    let change =
        PartitionChange { operation, flags: 0, length: size_of::<Partition>() as i32, data: &raw mut partition };
    // SAFETY: the ioctl reads both structures, which outlive it and are laid out as linux/blkpg.h has them.
    check(unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, std::ptr::from_ref(&change)) }.into())?;
    Ok(())
}

/// Waits until all that is written is on the disk, and lets nobody write from then on.
pub fn freeze_filesystem(directory: BorrowedFd<'_>) -> Result<()> {
    const FIFREEZE: u64 = 0xc004_5877;
    // SAFETY: no pointer is passed.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), FIFREEZE, 0) }.into())?;
    Ok(())
}

pub fn thaw_filesystem(directory: BorrowedFd<'_>) -> Result<()> {
    const FITHAW: u64 = 0xc004_5878;
    // SAFETY: no pointer is passed.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), FITHAW, 0) }.into())?;
    Ok(())
}

/// Lets a mounted ext4 have so many blocks. It grows while it is used; fewer than it has are refused.
pub fn grow_ext4(directory: BorrowedFd<'_>, blocks: u64) -> Result<()> {
    // EXT4_IOC_RESIZE_FS, fs/ext4/ext4.h
    const RESIZE_FS: u64 = 0x4008_6610;
    // SAFETY: the kernel reads one u64 at the pointer, before the call returns.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), RESIZE_FS, &raw const blocks) }.into())?;
    Ok(())
}

/// What an XFS says of itself.
pub struct XfsGeometry {
    pub blocks: u64,
    pub block_bytes: u32,
    inode_percent: u32,
}

/// Of the XFS that the directory is in.
pub fn xfs_geometry(directory: BorrowedFd<'_>) -> Result<XfsGeometry> {
    // XFS_IOC_FSGEOMETRY_V1 and its struct, fs/xfs/libxfs/xfs_fs.h
    const FSGEOMETRY: u64 = 0x8070_5864;
    const BLOCK_BYTES: usize = 0;
    const INODE_PERCENT: usize = 7;
    const BLOCKS: usize = 8;
    let mut words = [0_u32; 28];
    // SAFETY: the kernel writes 112 bytes at the pointer, as the number says, before the call returns.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), FSGEOMETRY, words.as_mut_ptr()) }.into())?;
    Ok(XfsGeometry {
        blocks: u64::from(words[BLOCKS]) | u64::from(words[BLOCKS + 1]) << 32,
        block_bytes: words[BLOCK_BYTES],
        inode_percent: words[INODE_PERCENT],
    })
}

/// Lets a mounted XFS have so many blocks. It grows while it is used.
pub fn grow_xfs(directory: BorrowedFd<'_>, found: &XfsGeometry, blocks: u64) -> Result<()> {
    // XFS_IOC_FSGROWFSDATA, of the same header
    const GROWFSDATA: u64 = 0x4010_586e;
    #[repr(C)]
    struct Growth {
        blocks: u64,
        inode_percent: u32,
        _padding: u32,
    }
    let wanted = Growth { blocks, inode_percent: found.inode_percent, _padding: 0 };
    // SAFETY: the kernel reads 16 bytes at the pointer, before the call returns.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), GROWFSDATA, &raw const wanted) }.into())?;
    Ok(())
}
