// SPDX-License-Identifier: Apache-2.0
//! What a container changed: the upper directory of its overlay, told against the image below it.
//!
//! A directory is told when something in it is, or when it is itself another one than the image's. Empty places that the agent
//! made for mounts carry its mark, copied up from beneath the image or made here, and are not told; nor is a directory of which
//! they changed but the time.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FileType;

use crate::error::{Context, Result};
use crate::node::{Node, open_below};
use crate::path::MARK;
use crate::walk::{Step, Walk};

const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// One path, relative to the root; directories come before what is in them.
pub enum Change<'a> {
    /// Another path, before anything is told of it: who wants no more can say so.
    Looked,
    /// It is now as `node` is. `is_new`: the image has nothing there.
    Set { path: &'a [u8], node: &'a Node, is_new: bool },
    /// Comes right after `Set`: what the image has in this directory is gone.
    Emptied { path: &'a [u8] },
    /// The image has it. `told`: an `Emptied` directory above has told so.
    Gone { path: &'a [u8], told: bool },
}

/// A directory on the way down.
struct Level {
    /// Not told yet, because nothing was found that would have to be.
    waiting: Option<Waiting>,
    /// Of its path.
    length: usize,
    /// The image has a directory here.
    is_below: bool,
    /// What the image has in it is not seen.
    is_covered: bool,
    has_stubs: bool,
}

struct Waiting {
    node: Node,
    is_new: bool,
    is_emptied: bool,
    /// Another time than the image's, and that alone.
    is_touched: bool,
}

pub struct Changes<'a> {
    upper: BorrowedFd<'a>,
    image: Option<BorrowedFd<'a>>,
    /// Tell the single names that are gone with an emptied directory.
    in_full: bool,
}

type Visit<'v> = &'v mut dyn FnMut(Change<'_>) -> Result<()>;

impl<'a> Changes<'a> {
    pub fn new(upper: BorrowedFd<'a>, image: Option<BorrowedFd<'a>>, in_full: bool) -> Self {
        Self { upper, image, in_full }
    }

    /// Blocking.
    pub fn tell(&self, visit: Visit<'_>) -> Result<()> {
        let mut walk = Walk::new(self.upper)?;
        let root =
            Level { waiting: None, length: 0, is_below: self.image.is_some(), is_covered: false, has_stubs: false };
        let mut levels = vec![root];
        while let Some(step) = walk.step()? {
            visit(Change::Looked)?;
            match step {
                Step::Found(node) => {
                    self.found(&mut walk, &mut levels, node, visit).map_err(|error| error.at(walk.path()))?;
                }
                Step::Missing => {
                    let covered = levels.last().is_some_and(|level| level.is_covered && level.is_below);
                    if self.in_full && covered && self.in_image(walk.path())?.is_some() {
                        flush(&mut levels, walk.path(), visit)?;
                        visit(Change::Gone { path: walk.path(), told: true })?;
                    }
                }
                Step::Left => leave(&mut levels, walk.path(), visit)?,
            }
        }
        Ok(())
    }

    fn in_image(&self, path: &[u8]) -> Result<Option<Node>> {
        let Some(image) = self.image else { return Ok(None) };
        Node::find_below(image, path).what("look into the image")
    }

    fn found(&self, walk: &mut Walk<'_>, levels: &mut Vec<Level>, node: Node, visit: Visit<'_>) -> Result<()> {
        let Some(level) = levels.last_mut() else { return Ok(()) };
        if is_whiteout(&node) {
            // Of a place that lies beneath the image: nothing of the image's is gone.
            if !level.is_below || self.in_image(walk.path())?.is_none() {
                level.has_stubs = true;
                return Ok(());
            }
            let told = level.is_covered;
            flush(levels, walk.path(), visit)?;
            return visit(Change::Gone { path: walk.path(), told });
        }
        if node.kind() == FileType::Socket {
            return Ok(());
        }
        let old = if level.is_below { self.in_image(walk.path())? } else { None };
        if !node.is_directory() {
            if old.is_none() && is_stub(&node)? {
                level.has_stubs = true;
                return Ok(());
            }
            let is_new = old.is_none();
            flush(levels, walk.path(), visit)?;
            return visit(Change::Set { path: walk.path(), node: &node, is_new });
        }
        let is_opaque = node.xattr(OPAQUE).what("look for the opaque mark")?.is_some_and(|mark| mark == b"y");
        let is_below = old.as_ref().is_some_and(Node::is_directory);
        let is_emptied = is_opaque && is_below && !level.is_covered;
        let is_covered = level.is_covered || is_opaque;
        let (differs, is_touched) = match &old {
            Some(old) if is_below => (is_emptied || differs(&node, old)?, node.mtime() != old.mtime()),
            Some(_) => (true, false),
            None => (!is_stub(&node)?, false),
        };
        let covered = match self.image {
            Some(image) if self.in_full && is_covered && is_below => open_below(image, walk.path()).ok(),
            _ => None,
        };
        if !walk.enter(covered.as_ref().map(AsFd::as_fd))? {
            return Ok(());
        }
        let waiting = Some(Waiting { node, is_new: old.is_none(), is_emptied, is_touched });
        levels.push(Level { waiting, length: walk.path().len(), is_below, is_covered, has_stubs: false });
        if differs { flush(levels, walk.path(), visit) } else { Ok(()) }
    }
}

/// Tells the directories above that wait.
fn flush(levels: &mut [Level], path: &[u8], visit: Visit<'_>) -> Result<()> {
    for level in levels {
        let Some(waiting) = level.waiting.take() else { continue };
        let path = &path[..level.length];
        visit(Change::Set { path, node: &waiting.node, is_new: waiting.is_new })?;
        if waiting.is_emptied {
            visit(Change::Emptied { path })?;
        }
    }
    Ok(())
}

fn leave(levels: &mut Vec<Level>, path: &[u8], visit: Visit<'_>) -> Result<()> {
    if let Some(level) = levels.last()
        && let Some(waiting) = &level.waiting
    {
        if waiting.is_touched && !level.has_stubs {
            flush(levels, path, visit)?;
            levels.pop();
            return Ok(());
        }
        let is_stub = waiting.is_new;
        levels.pop();
        if let Some(above) = levels.last_mut() {
            above.has_stubs |= is_stub;
        }
        return Ok(());
    }
    levels.pop();
    Ok(())
}

fn is_whiteout(node: &Node) -> bool {
    node.kind() == FileType::CharacterDevice && node.stat.st_rdev == 0
}

/// An empty place that the agent made, and that nobody has touched.
fn is_stub(node: &Node) -> Result<bool> {
    let stat = &node.stat;
    let is_plain = match node.kind() {
        FileType::Directory => stat.st_mode & 0o7777 == 0o755,
        FileType::RegularFile => stat.st_mode & 0o7777 == 0o644 && stat.st_size == 0 && stat.st_nlink == 1,
        _ => false,
    };
    if !is_plain || stat.st_uid != 0 || stat.st_gid != 0 {
        return Ok(false);
    }
    let marked = node.xattr(MARK.as_bytes()).what("look for the agent's mark")?.is_some();
    Ok(marked && node.xattrs()?.is_empty())
}

fn differs(node: &Node, old: &Node) -> Result<bool> {
    let owner = |node: &Node| (node.stat.st_mode, node.stat.st_uid, node.stat.st_gid);
    Ok(owner(node) != owner(old) || node.xattrs()? != old.xattrs()?)
}

#[cfg(test)]
#[path = "changes_tests.rs"]
pub mod tests;
