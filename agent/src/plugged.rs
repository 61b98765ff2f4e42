// SPDX-License-Identifier: Apache-2.0
//! Disks and shares as the host plugs them in: found by serial or tag, and waited for until they can be used.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result};

pub const DISK_DEADLINE: Duration = Duration::from_secs(10);
pub const POLL: Duration = Duration::from_millis(2);
pub const SHARES: &str = "/sys/fs/virtiofs";

pub fn check_serial(serial: &str) -> Result<()> {
    let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if serial.is_empty() || serial.len() > 36 || !serial.chars().all(sane) || serial.starts_with('.') {
        return Err(Error::invalid(format!("bad disk serial {serial:?}")));
    }
    Ok(())
}

/// The device node of a disk or its partition; it may be plugged in just now.
pub fn wait_device(serial: &str, partition: u32) -> Result<String> {
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
        Err(cause) => Err(cause).what("open the disk"),
    }
}

/// It may be plugged in just now: until its driver has it, mounting would say that nobody knows the tag.
pub fn wait_share(shares: &Path, tag: &str) -> Result<()> {
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

/// Its name in the kernel, such as vdc.
pub fn find_disk(serial: &str) -> Option<String> {
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
            let place = scratch.0.join(number.to_string());
            std::fs::create_dir(&place).unwrap();
            std::fs::write(place.join("tag"), tag).unwrap();
        }
        assert!(has_share(&scratch.0, "bind1"));
        assert!(!has_share(&scratch.0, "bind"));
    }
}
