// SPDX-License-Identifier: Apache-2.0
//! A tree of files in order: names as bytes, a directory before what is in it. Holds a descriptor or two and the names of
//! the directories that it is in, however deep the tree is and whatever moves in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Result};
use crate::node::{Names, Node, open_below};

/// Names of all directories on the way down.
const MAX_NAMES: usize = 32 * 1024 * 1024;
/// The kernel's own, for a look-up.
const MAX_PATH: usize = 4095;

pub enum Step {
    /// Something at [`Walk::path`].
    Found(Node),
    /// Gone since it was listed, or listed by another directory.
    Missing,
    /// All in the directory at [`Walk::path`] was told.
    Left,
}

struct Frame {
    names: Names,
    next: usize,
    /// Of the path of this directory.
    length: usize,
    directory: Option<OwnedFd>,
}

pub struct Walk<'a> {
    base: BorrowedFd<'a>,
    path: Vec<u8>,
    frames: Vec<Frame>,
    room: usize,
}

impl<'a> Walk<'a> {
    pub fn new(base: BorrowedFd<'a>) -> Result<Self> {
        let mut walk = Self { base, path: Vec::new(), frames: Vec::new(), room: MAX_NAMES };
        walk.enter(None)?;
        Ok(walk)
    }

    /// Relative to the base, without a slash at either end.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }

    /// Goes into the directory that was found last, and tells the names in `other` too. False when it is gone.
    pub fn enter(&mut self, other: Option<BorrowedFd<'_>>) -> Result<bool> {
        if self.path.len() > MAX_PATH {
            let name = String::from_utf8_lossy(&self.path[..80]).into_owned();
            return Err(Error::wrong_state(format!("{name}...: a path of more than {MAX_PATH} bytes")));
        }
        let directory = match open_below(self.base, &self.path) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !self.frames.is_empty() => return Ok(false),
            Err(cause) => return Err(cause).what(format_args!("open {}", String::from_utf8_lossy(&self.path))),
        };
        let mut names = Names::default();
        let told = || String::from_utf8_lossy(&self.path).into_owned();
        names.add(directory.as_fd(), self.room).map_err(|error| error.of(told()))?;
        if let Some(other) = other {
            names.add(other, self.room).map_err(|error| error.of(told()))?;
        }
        names.sort();
        self.room = self.room.saturating_sub(names.size());
        self.frames.push(Frame { names, next: 0, length: self.path.len(), directory: Some(directory) });
        // One for each level could be more than there are.
        if let Some(above) = self.frames.len().checked_sub(2) {
            self.frames[above].directory = None;
        }
        Ok(true)
    }

    /// The directory in which the last thing was found, or is about to be. `None` when it is gone.
    pub fn directory(&mut self) -> Result<Option<BorrowedFd<'_>>> {
        let Some(frame) = self.frames.last_mut() else { return Ok(None) };
        if frame.directory.is_none() {
            frame.directory = match open_below(self.base, &self.path[..frame.length]) {
                Ok(directory) => Some(directory),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
                Err(cause) => return Err(cause).what("open a directory again"),
            };
        }
        Ok(frame.directory.as_ref().map(AsFd::as_fd))
    }

    /// `None`: that was all.
    pub fn step(&mut self) -> Result<Option<Step>> {
        let Some(frame) = self.frames.last_mut() else { return Ok(None) };
        self.path.truncate(frame.length);
        let Some(name) = frame.names.get(frame.next) else {
            self.room += frame.names.size();
            self.frames.pop();
            return Ok(if self.frames.is_empty() { None } else { Some(Step::Left) });
        };
        frame.next += 1;
        let name = name.to_vec();
        let found = match self.directory()? {
            Some(directory) => Node::find(directory, &name),
            None => Ok(None),
        };
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(&name);
        match found {
            Ok(Some(node)) => Ok(Some(Step::Found(node))),
            Ok(None) => Ok(Some(Step::Missing)),
            Err(cause) => Err(Error::new(
                Kind::Internal,
                format!("look at {}: {}", String::from_utf8_lossy(&self.path), std::io::Error::from(cause)),
            )),
        }
    }
}
