// SPDX-License-Identifier: Apache-2.0
//! What lies at a name, held so that nobody can put something else there between two looks, and the names in a
//! directory in order. Nothing here follows a link, and nothing opens what is no regular file or directory.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result};

pub type Xattr = (Vec<u8>, Vec<u8>);

/// What an archive takes along; the rest is the kernel's own or means nothing elsewhere.
pub fn is_kept(name: &[u8]) -> bool {
    let fixed: [&[u8]; 3] = [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
    fixed.contains(&name) || (name.starts_with(b"user.") && name.len() > 5)
}

/// The kernel's own bound for a list and for a value.
const XATTR_MAX: usize = 64 * 1024;
/// Of all of one file: what readers of archives take at most, and some.
const XATTRS_MAX: usize = 512 * 1024;
/// Against renames under a look-up that must stay inside.
const TRIES: u32 = 64;

/// openat2, once more when something was renamed meanwhile.
pub fn open_at(
    directory: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    for _ in 1..TRIES {
        match rustix::fs::openat2(directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
    rustix::fs::openat2(directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// A directory below another one, reached without any link.
pub fn open_below(directory: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    open_at(directory, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, resolve)
}

pub struct Node {
    pub handle: OwnedFd,
    pub stat: Stat,
}

impl Node {
    pub fn new(handle: OwnedFd) -> rustix::io::Result<Self> {
        let stat = rustix::fs::fstat(&handle)?;
        Ok(Self { handle, stat })
    }

    /// `name` is one part of a path. `None` when nothing is there.
    pub fn find(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(handle) => Self::new(handle).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Some parts further down, and through no link.
    pub fn find_below(directory: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<Option<Self>> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // With both, a link as the last part is found and not followed.
        match open_at(directory, path, OFlags::PATH | OFlags::NOFOLLOW, resolve) {
            Ok(handle) => Self::new(handle).map(Some),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    pub fn is_directory(&self) -> bool {
        self.kind().is_dir()
    }

    /// Seconds, and nanoseconds from there on.
    pub fn mtime(&self) -> (i64, u32) {
        (self.stat.st_mtime, self.stat.st_mtime_nsec as u32)
    }

    /// Leads to this very file, whatever is at its name now.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.handle.as_raw_fd())
    }

    /// Of a regular file.
    pub fn open(&self) -> rustix::io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::open(self.path(), flags, Mode::empty())?))
    }

    pub fn link_target(&self) -> rustix::io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.handle, "", Vec::new())?.into_bytes())
    }

    /// Whether something is mounted here.
    pub fn is_mount(&self) -> bool {
        const MOUNT_ROOT: u64 = 0x2000;
        let mask = rustix::fs::StatxFlags::TYPE;
        rustix::fs::statx(&self.handle, "", AtFlags::EMPTY_PATH, mask)
            .is_ok_and(|stat| stat.stx_attributes.bits() & MOUNT_ROOT != 0)
    }

    pub fn xattr(&self, name: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
        let mut value = [0; 256];
        match rustix::fs::getxattr(self.path(), name, &mut value) {
            Ok(length) => Ok(Some(value[..length].to_vec())),
            Err(Errno::RANGE) => {
                let mut value = vec![0; XATTR_MAX];
                let length = rustix::fs::getxattr(self.path(), name, &mut value)?;
                value.truncate(length);
                Ok(Some(value))
            }
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Those that are kept, by name. Symbolic links have none.
    pub fn xattrs(&self) -> Result<Vec<Xattr>> {
        if self.kind().is_symlink() {
            return Ok(Vec::new());
        }
        let mut list = vec![0; 1024];
        let length = match rustix::fs::listxattr(self.path(), &mut list) {
            Err(Errno::RANGE) => {
                list.resize(XATTR_MAX, 0);
                rustix::fs::listxattr(self.path(), &mut list)
            }
            listed => listed,
        };
        let length = match length {
            Err(Errno::NOTSUP) => 0,
            length => length.what("list extended attributes")?,
        };
        let mut found = Vec::new();
        let mut total = 0;
        for name in list[..length].split(|&byte| byte == 0).filter(|name| is_kept(name)) {
            // A PAX record ends its key there.
            if name.contains(&b'=') {
                continue;
            }
            if let Some(value) = self.xattr(name).what("read an extended attribute")? {
                total += name.len() + value.len();
                found.push((name.to_vec(), value));
            }
        }
        if total > XATTRS_MAX {
            return Err(Error::new(Kind::Exhausted, format!("{total} bytes of extended attributes")));
        }
        found.sort();
        Ok(found)
    }
}

/// The names in a directory, sorted, in one piece of memory.
#[derive(Default)]
pub struct Names {
    text: Vec<u8>,
    spans: Vec<(u32, u32)>,
}

impl Names {
    /// Fails rather than take more than `room` bytes. Call [`Self::sort`] at the end.
    pub fn add(&mut self, directory: BorrowedFd<'_>, room: usize) -> Result<()> {
        for entry in Dir::read_from(directory).what("list a directory")? {
            let entry = entry.what("list a directory")?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let start = self.text.len() as u32;
            self.text.extend_from_slice(name);
            self.spans.push((start, self.text.len() as u32));
            if self.size() > room {
                return Err(Error::new(Kind::Exhausted, "more names in a directory than the agent keeps in memory"));
            }
        }
        Ok(())
    }

    /// Each name once.
    pub fn sort(&mut self) {
        let text = &self.text;
        let name = |&(start, end): &(u32, u32)| &text[start as usize..end as usize];
        self.spans.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        self.spans.dedup_by(|a, b| name(a) == name(b));
    }

    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let &(start, end) = self.spans.get(index)?;
        Some(&self.text[start as usize..end as usize])
    }

    /// In memory.
    pub fn size(&self) -> usize {
        self.text.len() + self.spans.len() * size_of::<(u32, u32)>()
    }
}
