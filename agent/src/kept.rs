// SPDX-License-Identifier: Apache-2.0
//! Disks that stay bound while a template is saved, so that its clones need not meet them anew.
//!
//!     read-only, larger than any image    one partition from the first MiB on; the table is read when a second is wanted
//!     writable, with an ext4              mounted, but nothing written: its clones make it writable
//!
//! A clone's disk may be another than the memory knows. So nothing is taken from memory before the superblock, read past every
//! cache, is the template's to the last byte: whoever once mounted a file system for writing has changed that. Any other
//! disk is bound anew, and memory of the old one goes.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::{Context, Error, Result};
use crate::mount::{Attributes, Filesystem, Kernel};
use crate::{plugged, sys, virtio};

/// A read-only disk as large is none, but stands for an image of any size (hyperd/sandbox/template_build.py).
const PLACEHOLDER: u64 = 1 << 36;
/// Where an image's first layer begins (hyperd/image/disk.py).
const FIRST_LAYER: u64 = 1 << 20;
const SECTOR: u64 = 512;
const MAX_ENTRIES: u32 = 256;
const ENTRY: u32 = 128;
const EXT4: &str = "ext4";
const BLOCK: usize = 4096;

/// What direct reads want; the superblock of ext4 is its bytes from 1024 on.
#[repr(C, align(4096))]
#[derive(Clone, PartialEq, Eq)]
struct Block([u8; BLOCK]);

enum What {
    Placeholder,
    Mounted { path: PathBuf, superblock: Box<Block> },
}

pub struct Kept {
    pub serial: String,
    /// Its virtio device.
    device: String,
    drivers: PathBuf,
    /// vda
    name: String,
    what: What,
}

impl Kept {
    /// The disk behind a virtio device if it is one to be kept; `place` is where it may be mounted.
    pub fn find<K: Kernel>(
        kernel: &K,
        drivers: &Path,
        device: &str,
        place: impl FnOnce(&str) -> PathBuf,
    ) -> Result<Option<Self>> {
        let Some(sysfs) = find_disk(drivers, device) else { return Ok(None) };
        let Some(name) = sysfs.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { return Ok(None) };
        let Some(serial) = plugged::read_serial(&sysfs).filter(|serial| !serial.is_empty()) else { return Ok(None) };
        let read = |file: &str| std::fs::read_to_string(sysfs.join(file)).unwrap_or_default();
        let size = read("size").trim().parse::<u64>().unwrap_or(0).saturating_mul(SECTOR);
        let what = if read("ro").trim() == "1" {
            if size < PLACEHOLDER {
                return Ok(None);
            }
            let disk = open(&name, OFlags::empty())?;
            sys::add_partition(disk.as_fd(), 1, FIRST_LAYER, size - FIRST_LAYER).what("add a partition")?;
            What::Placeholder
        } else {
            let superblock = read_superblock(&name)?;
            if !is_clean_ext4(&superblock) {
                return Ok(None);
            }
            let path = place(&serial);
            mount_untouched(kernel, &name, &path)?;
            What::Mounted { path, superblock }
        };
        Ok(Some(Self { serial, device: device.to_owned(), drivers: drivers.to_owned(), name, what }))
    }

    /// Whose driver is not to be unbound.
    pub fn device(&self) -> &str {
        &self.device
    }

    pub fn is_mounted(&self) -> bool {
        matches!(self.what, What::Mounted { .. })
    }

    /// The device node of a partition of an image's disk.
    pub fn partition(&self, number: u32) -> Result<String> {
        let node = format!("/dev/{}{number}", self.name);
        // The first one is there, of whatever length: an EROFS knows its own.
        if number > 1 && !Path::new(&node).exists() {
            self.divide()?;
        }
        Ok(node)
    }

    /// As the table says: the first partition gets its length, the others are added.
    fn divide(&self) -> Result<()> {
        let disk = std::fs::File::from(open(&self.name, OFlags::empty())?);
        let mut header = [0; SECTOR as usize];
        disk.read_exact_at(&mut header, SECTOR).what("read the partition table")?;
        let (at, count) = parse_header(&header)?;
        let mut entries = vec![0; (count * ENTRY) as usize];
        disk.read_exact_at(&mut entries, at).what("read the partitions")?;
        for (number, (start, length)) in parse_entries(&entries).into_iter().enumerate() {
            let number = number as i32 + 1;
            if number == 1 {
                sys::resize_partition(disk.as_fd(), number, start, length).what("resize the first partition")?;
            } else {
                sys::add_partition(disk.as_fd(), number, start, length).what(format_args!("add partition {number}"))?;
            }
        }
        Ok(())
    }

    /// Makes the file system that is mounted writable, and tells where it is; `None`: the disk is another, or of another state,
    /// and was bound anew.
    pub fn adopt(self, filesystem: &str) -> Result<Option<PathBuf>> {
        let What::Mounted { path, superblock } = self.what else {
            return Err(Error::internal(format!("disk {} is not mounted", self.serial)));
        };
        if filesystem == EXT4 && read_superblock(&self.name).is_ok_and(|found| found == superblock) {
            rustix::mount::mount_remount(&path, MountFlags::NOATIME, "").what("make the disk writable")?;
            return Ok(Some(path));
        }
        // Nothing was written, so nothing is; the last close empties the caches. Lazily it must not be: it would live on.
        rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW).what("let go of another disk's file system")?;
        virtio::rebind(&self.drivers, &self.device)?;
        Ok(None)
    }
}

/// The directory in sysfs of the disk behind a virtio device, which has the disk's name.
fn find_disk(drivers: &Path, device: &str) -> Option<PathBuf> {
    let block = drivers.join(virtio::DISKS).join(device).join("block");
    std::fs::read_dir(block).into_iter().flatten().flatten().next().map(|entry| entry.path())
}

/// The disk, or a partition of it: a file system has it for its own, so nobody else can.
pub fn is_mounted(drivers: &Path, device: &str) -> Result<bool> {
    let Some(sysfs) = find_disk(drivers, device) else { return Ok(false) };
    let Some(name) = sysfs.file_name().and_then(|name| name.to_str()) else { return Ok(false) };
    is_in_use(name)
}

/// As `is_mounted`, by the disk's name.
pub fn is_in_use(name: &str) -> Result<bool> {
    match rustix::fs::open(format!("/dev/{name}"), OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(false),
        Err(rustix::io::Errno::BUSY) => Ok(true),
        Err(cause) => Err(cause).what(format_args!("open disk {name}")),
    }
}

fn open(name: &str, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(format!("/dev/{name}"), OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty())
        .what(format_args!("open disk {name}"))
}

/// Of the disk itself, not of what is remembered of it.
fn read_superblock(name: &str) -> Result<Box<Block>> {
    let disk = open(name, OFlags::DIRECT)?;
    let mut block = Box::new(Block([0; BLOCK]));
    let length = rustix::io::pread(&disk, &mut block.0[..], 0).what("read the superblock")?;
    if length == BLOCK { Ok(block) } else { Err(Error::internal(format!("disk {name} is too short"))) }
}

/// With a journal that has nothing to be replayed: such a one is mounted without a write.
fn is_clean_ext4(block: &Block) -> bool {
    const MAGIC: usize = 1024 + 0x38;
    const STATE: usize = 1024 + 0x3a;
    const INCOMPATIBLE: usize = 1024 + 0x60;
    const NEEDS_RECOVERY: u8 = 4;
    block.0[MAGIC..MAGIC + 2] == [0x53, 0xef] && block.0[STATE] == 1 && block.0[INCOMPATIBLE] & NEEDS_RECOVERY == 0
}

fn mount_untouched<K: Kernel>(kernel: &K, name: &str, path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).what("create a mount point")?;
    let source = format!("/dev/{name}");
    let parameters = [("source", source.as_str()), ("ro", "")];
    let made = kernel.make(&Filesystem::new(EXT4, &parameters, Attributes::MOUNT_ATTR_NOATIME))?;
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).what("open a mount point")?;
    kernel.attach(made.as_fd(), place.as_fd())
}

/// Where the entries begin, and how many there are (UEFI 2.10, 5.3.2).
fn parse_header(header: &[u8; SECTOR as usize]) -> Result<(u64, u32)> {
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (at, count, size) = (u64::from(word(72)) | u64::from(word(76)) << 32, word(80), word(84));
    if &header[..8] != b"EFI PART" || count > MAX_ENTRIES || size != ENTRY || at > FIRST_LAYER / SECTOR {
        return Err(Error::invalid("the image's disk has no partition table"));
    }
    Ok((at * SECTOR, count))
}

/// Start and length in bytes, up to the first entry that is not used. What cannot be the kernel refuses.
fn parse_entries(entries: &[u8]) -> Vec<(u64, u64)> {
    let word =
        |entry: &[u8], at: usize| entry[at..at + 8].iter().rev().fold(0_u64, |word, &byte| word << 8 | u64::from(byte));
    let used = entries.chunks_exact(ENTRY as usize).take_while(|entry| entry[..16] != [0; 16]);
    used.map(|entry| {
        let (first, last) = (word(entry, 32), word(entry, 40));
        (first.saturating_mul(SECTOR), last.saturating_add(1).saturating_sub(first).saturating_mul(SECTOR))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> [u8; 512] {
        let mut header = [0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[72] = 2;
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        header
    }

    #[test]
    fn a_partition_table_is_read_within_bounds() {
        assert_eq!(parse_header(&header()).unwrap(), (1024, 128));
        for (at, byte) in [(0, b'X'), (73, 0xff), (79, 1), (82, 1), (84, 127)] {
            let mut bad = header();
            bad[at] = byte;
            assert!(parse_header(&bad).is_err(), "{at}");
        }
        let mut entries = vec![0; 3 * 128];
        for (number, (first, last)) in [(2048_u64, 4095_u64), (4096, u64::MAX)].into_iter().enumerate() {
            let entry = &mut entries[number * 128..];
            entry[0] = 1;
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
        }
        assert_eq!(parse_entries(&entries)[0], (1 << 20, 1 << 20));
        assert_eq!(parse_entries(&entries).len(), 2);
    }

    #[test]
    fn only_an_ext4_that_was_unmounted_is_mounted_ahead() {
        let mut block = Block([0; BLOCK]);
        block.0[1024 + 0x38..1024 + 0x3b].copy_from_slice(&[0x53, 0xef, 1]);
        assert!(is_clean_ext4(&block));
        let mut replay = block.clone();
        replay.0[1024 + 0x60] = 4;
        assert!(!is_clean_ext4(&replay));
        assert!(!is_clean_ext4(&Block([0; BLOCK])));
    }
}
