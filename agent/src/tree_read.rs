// SPDX-License-Identifier: Apache-2.0
//! A path of a container, with all below it, as a tar: as its own processes see it, so volumes and tmpfs are in it. Not the
//! kernel's own file systems, nor `/dev` and `/run/hyper`: of those only the places, unless one was asked for itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::fork;
use crate::node::{Node, open_at};
use crate::pax::{Outlet, Tar};
use crate::proto::PathStat;
use crate::walk::{Step, Walk};

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// proc, sysfs, cgroup2, cgroup, devpts, mqueue, debugfs, tracefs, securityfs, bpf
const KERNELS: [i64; 10] = [
    0x9fa0,
    0x6265_6572,
    0x6367_7270,
    0x0027_e0eb,
    0x1cd1,
    0x1980_0202,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
];

/// Something in a container that was asked for.
pub struct Place {
    node: Node,
    /// Of its entry in the archive; empty for the root.
    name: Vec<u8>,
    own: Vec<(u64, u64)>,
}

/// `/a/./b/../c/` is `a/c`: as Docker, before any link is looked at.
pub fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// What the kernel says about a path that somebody asked for.
pub fn refused(path: &[u8], cause: Errno) -> Error {
    let told = format!("/{}", String::from_utf8_lossy(path));
    let error = match cause {
        Errno::NOENT | Errno::NOTDIR => return Error::not_found(format!("no such path: {told}")),
        Errno::LOOP => Error::invalid("too many links, or one of the kernel's own"),
        Errno::NAMETOOLONG | Errno::INVAL => Error::invalid("no path"),
        cause => Error::internal(std::io::Error::from(cause).to_string()),
    };
    error.of(told)
}

impl Place {
    /// Never outside `root`, whatever links there are. `follow`: of the last part, too.
    pub fn find(root: BorrowedFd<'_>, path: &[u8], follow: bool) -> Result<Self> {
        if path.contains(&0) {
            return Err(Error::invalid("a path with a NUL in it"));
        }
        let wanted = clean(path);
        let must_be_directory = path.ends_with(b"/") || path.ends_with(b"/.");
        let mut flags = OFlags::PATH;
        if !follow && !must_be_directory {
            flags |= OFlags::NOFOLLOW;
        }
        if must_be_directory {
            flags |= OFlags::DIRECTORY;
        }
        let handle = open_at(root, &wanted, flags, IN_ROOT).map_err(|cause| refused(&wanted, cause))?;
        let node = Node::new(handle).what("look at a path")?;
        let identity = |path: &[u8]| {
            let handle = open_at(root, path, OFlags::PATH | OFlags::NOFOLLOW, IN_ROOT).ok()?;
            let node = Node::new(handle).ok()?;
            node.is_mount().then_some((node.stat.st_dev, node.stat.st_ino))
        };
        let own = [&b"dev"[..], &fork::DIRECTORY.as_bytes()[1..]].into_iter().filter_map(identity).collect();
        let name = wanted.rsplit(|&byte| byte == b'/').next().unwrap_or_default().to_vec();
        Ok(Self { node, name, own })
    }

    pub fn stat(&self) -> Result<PathStat> {
        let stat = &self.node.stat;
        let (seconds, nanoseconds) = self.node.mtime();
        let is_link = self.node.kind().is_symlink();
        Ok(PathStat {
            name: if self.name.is_empty() { b"/".to_vec() } else { self.name.clone() },
            size_bytes: stat.st_size as u64,
            mode: stat.st_mode,
            modified_unix_ns: seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds.into()),
            link_target: if is_link { self.node.link_target().what("read a link")? } else { Vec::new() },
        })
    }

    /// Blocking.
    pub fn write<O: Outlet>(&self, outlet: &mut O) -> Result<()> {
        if self.node.kind() == rustix::fs::FileType::Socket {
            return Err(Error::wrong_state("a socket cannot be archived").at(&self.name));
        }
        let mut tar = Tar::new(outlet);
        let top = if self.name.is_empty() { b"." } else { &self.name[..] };
        tar.add(&self.node, top)?;
        if self.node.is_directory() {
            add_all(&mut tar, self.node.handle.as_fd(), &[top, b"/"].concat(), |node| self.crosses(node))?;
        }
        tar.finish()
    }

    /// Whether a mount below belongs to the tree.
    fn crosses(&self, node: &Node) -> bool {
        let is_kernels = rustix::fs::fstatfs(&node.handle).is_ok_and(|system| KERNELS.contains(&system.f_type));
        !is_kernels && !self.own.contains(&(node.stat.st_dev, node.stat.st_ino))
    }
}

/// All of a root file system without its mounts. `root` is best one on which nothing is mounted: what a mount hides is not
/// seen otherwise. Blocking.
pub fn write_root<O: Outlet>(root: BorrowedFd<'_>, outlet: &mut O) -> Result<()> {
    let mut tar = Tar::new(outlet);
    add_all(&mut tar, root, b"", |_| false)?;
    tar.finish()
}

fn add_all<O: Outlet>(
    tar: &mut Tar<'_, O>,
    base: BorrowedFd<'_>,
    prefix: &[u8],
    crosses: impl Fn(&Node) -> bool,
) -> Result<()> {
    let mut walk = Walk::new(base)?;
    while let Some(step) = walk.step()? {
        let Step::Found(node) = step else { continue };
        let is_cut = node.is_directory() && node.is_mount() && !crosses(&node);
        tar.add(&node, &[prefix, walk.path()].concat())?;
        if node.is_directory() && !is_cut {
            walk.enter(None)?;
        }
    }
    Ok(())
}

/// A copy of the mount at `root` on which nothing is mounted. In the namespace of `process`, whose mount it is, by a thread of
/// its own. `None` when the process has gone: then nothing is mounted there any more. Blocking.
pub fn bare_copy(root: BorrowedFd<'_>, process: BorrowedFd<'_>) -> Option<OwnedFd> {
    use crate::mount::{Kernel, Linux};
    let copy = || {
        // Threads share their root directory, and one that does cannot change its namespace.
        crate::sys::unshare(libc::CLONE_FS).what("unshare the root directory")?;
        crate::sys::setns(process, libc::CLONE_NEWNS).what("enter the container's namespace")?;
        Linux.copy(root, false)
    };
    let copied = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, copy).what("start a thread")?;
        thread.join().unwrap_or_else(|_| Err(Error::internal("its thread panicked")))
    });
    copied.inspect_err(|error| crate::debug!("copy the root mount: {error}")).ok()
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
