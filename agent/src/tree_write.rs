// SPDX-License-Identifier: Apache-2.0
//! Unpacks a tar below a directory of a container. Both may be hostile: every directory on the way is looked up by the kernel
//! within the container's root, what is made is made in it under one name, and nothing that exists is opened for writing.

use std::collections::VecDeque;
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, StatVfsMountFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result};
use crate::node::{Node, is_kept, open_at};
use crate::proto::WriteTreeOptions;
use crate::tree_read::{clean, refused};
use crate::untar::{Entry, Untar};
use crate::walk::{Step, Walk};

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);
/// Directories whose times are set when all in them is written. Of more than these, the first get theirs early.
const MAX_WAITING: usize = 16 * 1024;

/// Blocking. What was written before it fails stays, but no half of a file.
pub fn write_tree(root: BorrowedFd<'_>, options: &WriteTreeOptions, source: impl BufRead) -> Result<()> {
    let base = clean(&options.path);
    let target = open_at(root, &base, OFlags::PATH, IN_ROOT).map_err(|cause| refused(&base, cause))?;
    let node = Node::new(target).what("look at the destination")?;
    if !node.is_directory() {
        return Err(Error::invalid("not a directory").at(&base));
    }
    let system = rustix::fs::fstatvfs(&node.handle).what("look at the destination's file system")?;
    if system.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Error::wrong_state("read-only").at(&base));
    }
    let mut writer = Writer { root, base, options, parent: None, waiting: VecDeque::new() };
    let mut archive = Untar::new(source);
    while let Some(entry) = archive.next()? {
        writer.write(&entry, &mut archive).map_err(|error| error.at(&clean(&entry.path)))?;
    }
    writer.finish()
}

struct Writer<'a> {
    root: BorrowedFd<'a>,
    /// Within the root, as it was asked for.
    base: Vec<u8>,
    options: &'a WriteTreeOptions,
    /// The directory that was written into last, and its path.
    parent: Option<(Vec<u8>, OwnedFd)>,
    waiting: VecDeque<(OwnedPlace, (i64, u32))>,
}

/// Path of the parent, below the base, and name.
type OwnedPlace = (Vec<u8>, Vec<u8>);

/// The parts of a name in an archive. What leads out of the destination is refused, as by Docker.
fn inside(path: &[u8]) -> Result<Vec<u8>> {
    let mut depth = 0_usize;
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => depth = depth.checked_sub(1).ok_or_else(|| Error::invalid("it leads out of the destination"))?,
            _ => depth += 1,
        }
    }
    Ok(clean(path))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn unwritten<T>(what: &str, done: rustix::io::Result<T>) -> Result<T> {
    done.map_err(|cause| refusal(what, cause))
}

/// What the kernel says about something to be written.
fn refusal(what: &str, cause: Errno) -> Error {
    let kind = match cause {
        Errno::NOSPC | Errno::DQUOT | Errno::MLINK => Kind::Exhausted,
        Errno::ROFS | Errno::BUSY | Errno::PERM | Errno::ACCESS | Errno::TXTBSY => Kind::WrongState,
        Errno::NOENT
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::EXIST
        | Errno::NOTEMPTY
        | Errno::LOOP
        | Errno::NAMETOOLONG
        | Errno::INVAL
        | Errno::XDEV
        | Errno::FBIG
        | Errno::NOTSUP => Kind::Invalid,
        _ => Kind::Internal,
    };
    Error::new(kind, format!("{what}: {}", crate::error::describe(&std::io::Error::from(cause))))
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

impl Writer<'_> {
    fn write(&mut self, entry: &Entry, archive: &mut Untar<impl BufRead>) -> Result<()> {
        let path = inside(&entry.path)?;
        if path.is_empty() {
            // The destination itself is not the archive's.
            return Ok(());
        }
        let (parent_path, name) = split(&path);
        let parent = self.enter(parent_path)?;
        let exists = self.make_room(parent.as_fd(), name, entry.kind == b'5')?;
        match entry.kind {
            b'5' => {
                if !exists {
                    unwritten("make a directory", rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)))?;
                }
                let flags = DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = unwritten("open it", rustix::fs::openat(&parent, name, flags, Mode::empty()))?;
                self.dress(&made, entry)?;
                self.waiting.push_back(((parent_path.to_vec(), name.to_vec()), entry.mtime));
                if self.waiting.len() > MAX_WAITING
                    && let Some(first) = self.waiting.pop_front()
                {
                    self.set_time(&first)?;
                }
            }
            b'0' => {
                let written = self.write_file(parent.as_fd(), name, entry, archive);
                if written.is_err() {
                    let _ = rustix::fs::unlinkat(&parent, name, AtFlags::empty());
                }
                written?;
            }
            b'1' => self.write_link(parent.as_fd(), name, &entry.link)?,
            _ => self.write_special(parent.as_fd(), name, entry)?,
        }
        self.parent = Some((parent_path.to_vec(), parent));
        Ok(())
    }

    /// The directory of that path below the destination, made when absent.
    fn enter(&mut self, path: &[u8]) -> Result<OwnedFd> {
        if let Some((known, parent)) = self.parent.take()
            && known == path
        {
            return Ok(parent);
        }
        if let Ok(found) = self.open(path) {
            return Ok(found);
        }
        let mut done = Vec::new();
        let mut parent = unwritten("open the destination", self.open(b""))?;
        for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
            if !done.is_empty() {
                done.push(b'/');
            }
            done.extend_from_slice(part);
            parent = match self.open(&done) {
                Err(Errno::NOENT) => {
                    let mode = Mode::from_raw_mode(0o755);
                    unwritten("make a directory for it", rustix::fs::mkdirat(&parent, part, mode))?;
                    unwritten("open a directory for it", self.open(&done))?
                }
                opened => unwritten("open a directory for it", opened)?,
            };
        }
        Ok(parent)
    }

    fn open(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        open_at(self.root, &[&self.base, &b"/"[..], path].concat(), DIRECTORY, IN_ROOT)
    }

    /// Takes away what is there, but a directory for a directory: then true.
    fn make_room(&mut self, parent: BorrowedFd<'_>, name: &[u8], for_directory: bool) -> Result<bool> {
        let Some(old) = unwritten("look at what is there", Node::find(parent, name))? else { return Ok(false) };
        if old.is_directory() && for_directory {
            return Ok(true);
        }
        check_not_mounted(&old)?;
        if self.options.no_overwrite_dir_non_dir && old.is_directory() {
            return Err(Error::invalid("a directory cannot be overwritten with something else"));
        }
        if self.options.no_overwrite_dir_non_dir && for_directory {
            return Err(Error::invalid("what is no directory cannot be overwritten with one"));
        }
        if old.is_directory() {
            remove_all(parent, name)?;
        } else {
            unwritten("replace what is there", rustix::fs::unlinkat(parent, name, AtFlags::empty()))?;
        }
        Ok(false)
    }

    fn write_file(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        archive: &mut Untar<impl BufRead>,
    ) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = unwritten("create", rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600)))?;
        let mut file = std::fs::File::from(made);
        archive.copy(&mut |piece| {
            let written = file.write_all(piece);
            written.map_err(|cause| refusal("write", Errno::from_io_error(&cause).unwrap_or(Errno::IO)))
        })?;
        let made = OwnedFd::from(file);
        self.dress(&made, entry)?;
        unwritten("set its time", rustix::fs::futimens(&made, &times(entry.mtime)))
    }

    /// Owner, mode, attributes, in an order in which none undoes another.
    fn dress(&self, made: &OwnedFd, entry: &Entry) -> Result<()> {
        let (user, group) = self.owner(entry)?;
        unwritten("chown", rustix::fs::fchown(made, Some(user), Some(group)))?;
        unwritten("chmod", rustix::fs::fchmod(made, Mode::from_raw_mode(entry.mode)))?;
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_kept(name)) {
            match rustix::fs::fsetxattr(made, name, value, rustix::fs::XattrFlags::empty()) {
                // Not every file system has them.
                Err(Errno::NOTSUP | Errno::PERM) => {}
                set => unwritten("set an extended attribute", set)?,
            }
        }
        Ok(())
    }

    fn owner(&self, entry: &Entry) -> Result<(Uid, Gid)> {
        let (user, group) = if self.options.keep_owner { (entry.uid, entry.gid) } else { (0, 0) };
        // For chown it means: as it is.
        if user == u32::MAX || group == u32::MAX {
            return Err(Error::invalid("nobody can have that user or group id"));
        }
        Ok((Uid::from_raw(user), Gid::from_raw(group)))
    }

    fn write_link(&self, parent: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> Result<()> {
        let target = inside(target)?;
        let (path, old) = split(&target);
        if old.is_empty() {
            return Err(Error::invalid("a hard link to a directory"));
        }
        let what = "the file of a hard link";
        let directory = unwritten(what, self.open(path))?;
        unwritten(what, rustix::fs::linkat(&directory, old, parent, name, AtFlags::empty()))
    }

    /// Links, devices, fifos.
    fn write_special(&self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<()> {
        let number = rustix::fs::makedev(entry.device.0, entry.device.1);
        let kind = match entry.kind {
            b'2' => FileType::Symlink,
            b'3' => FileType::CharacterDevice,
            b'4' => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        if kind == FileType::Symlink {
            unwritten("make a link", rustix::fs::symlinkat(&entry.link[..], parent, name))?;
        } else {
            unwritten("make a node", rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), number))?;
        }
        let (user, group) = self.owner(entry)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        unwritten("chown", rustix::fs::chownat(parent, name, Some(user), Some(group), flags))?;
        if kind != FileType::Symlink
            && let Some(made) = unwritten("look at it", Node::find(parent, name))?
            && made.kind() == kind
        {
            unwritten("chmod", rustix::fs::chmod(made.path(), Mode::from_raw_mode(entry.mode)))?;
        }
        unwritten("set its time", rustix::fs::utimensat(parent, name, &times(entry.mtime), flags))
    }

    fn set_time(&self, ((parent, name), mtime): &(OwnedPlace, (i64, u32))) -> Result<()> {
        let Ok(parent) = self.open(parent) else { return Ok(()) };
        match rustix::fs::utimensat(&parent, name, &times(*mtime), AtFlags::SYMLINK_NOFOLLOW) {
            // It was replaced later.
            Err(Errno::NOENT) => Ok(()),
            set => unwritten("set a directory's time", set),
        }
    }

    fn finish(mut self) -> Result<()> {
        while let Some(last) = self.waiting.pop_back() {
            self.set_time(&last)?;
        }
        Ok(())
    }
}

/// The kernel keeps names in use as mount points, but those of the caller's own namespace only.
fn check_not_mounted(node: &Node) -> Result<()> {
    if node.is_mount() {
        return Err(Error::wrong_state("something is mounted on what would be replaced"));
    }
    Ok(())
}

/// A directory and all in it; nothing of what links in it lead to.
fn remove_all(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let flags = DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = unwritten("open the directory to be replaced", rustix::fs::openat(parent, name, flags, Mode::empty()))?;
    let mut walk = Walk::new(top.as_fd())?;
    while let Some(step) = walk.step()? {
        let flags = match step {
            Step::Missing => continue,
            Step::Found(node) if node.is_directory() => {
                check_not_mounted(&node)?;
                walk.enter(None)?;
                continue;
            }
            Step::Found(node) => {
                check_not_mounted(&node)?;
                AtFlags::empty()
            }
            Step::Left => AtFlags::REMOVEDIR,
        };
        let name = walk.name().to_vec();
        if let Some(directory) = walk.directory()? {
            match rustix::fs::unlinkat(directory, &name, flags) {
                Err(Errno::NOENT) => {}
                removed => unwritten("replace a directory", removed)?,
            }
        }
    }
    unwritten("replace a directory", rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR))
}
