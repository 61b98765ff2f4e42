// SPDX-License-Identifier: Apache-2.0
//! Writes a tar (POSIX.1-2001 pax): the same entries give the same bytes. A ustar header alone where it can say all; where it
//! cannot, an extended header before it. Goes out in pieces of at most 256 KiB.

use std::collections::HashMap;
use std::io::Read;

use rustix::fs::FileType;

use crate::error::{Context, Error, Kind, Result};
use crate::node::{Node, Xattr};

pub const PIECE: usize = 256 * 1024;
const BLOCK: usize = 512;
const NAME_MAX: usize = 100;
/// What seven and eleven octal digits can say.
const ID_MAX: u32 = 0o7_777_777;
const SIZE_MAX: u64 = 0o77_777_777_777;
/// Of all paths of files that have other names, too.
const MAX_LINKS: usize = 32 * 1024 * 1024;

/// Where the pieces go.
pub trait Outlet<T = Vec<u8>> {
    fn piece(&mut self, data: T) -> Result<()>;
    /// Fails when nobody wants any more.
    fn wanted(&self) -> Result<()>;
}

/// A header's worth, in the words of tar.
#[derive(Debug, Clone, Default)]
pub struct Entry<'a> {
    /// A directory's ends in a slash.
    pub path: &'a [u8],
    pub link: &'a [u8],
    /// '0' file, '1' hard link, '2' symbolic link, '3' '4' devices, '5' directory, '6' fifo
    pub kind: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    pub xattrs: &'a [Xattr],
}

impl<'a> Entry<'a> {
    pub fn of(node: &Node, path: &'a [u8], kind: u8) -> Self {
        let stat = &node.stat;
        let mode = stat.st_mode & 0o7777;
        Self { path, kind, mode, uid: stat.st_uid, gid: stat.st_gid, mtime: node.mtime(), ..Self::default() }
    }

    pub fn render(&self) -> Vec<u8> {
        let records = self.records();
        let mut blocks = Vec::with_capacity(3 * BLOCK + records.len());
        if !records.is_empty() {
            let mut name = b"PaxHeaders/".to_vec();
            name.extend_from_slice(self.path.strip_suffix(b"/").unwrap_or(self.path));
            let extended =
                Entry { path: &name, kind: b'x', mode: 0o644, size: records.len() as u64, ..Entry::default() };
            blocks.extend_from_slice(&extended.block());
            blocks.extend_from_slice(&records);
            blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
        }
        blocks.extend_from_slice(&self.block());
        blocks
    }

    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let (long_path, long_link) = (self.path.len() > NAME_MAX, self.link.len() > NAME_MAX);
        let is_text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
        if (long_path && !is_text(self.path)) || (long_link && !is_text(self.link)) {
            record(&mut records, b"hdrcharset", b"BINARY");
        }
        if long_path {
            record(&mut records, b"path", self.path);
        }
        if long_link {
            record(&mut records, b"linkpath", self.link);
        }
        if self.size > SIZE_MAX {
            record(&mut records, b"size", self.size.to_string().as_bytes());
        }
        for (key, id) in [(b"uid", self.uid), (b"gid", self.gid)] {
            if id > ID_MAX {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        if self.mtime.1 != 0 || self.mtime.0 < 0 || self.mtime.0 as u64 > SIZE_MAX {
            record(&mut records, b"mtime", render_time(self.mtime).as_bytes());
        }
        for (name, value) in self.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        records
    }

    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        // What is too long or too large stands in the extended header.
        put(&mut block[0..100], self.path);
        octal(&mut block[100..108], self.mode.into());
        octal(&mut block[108..116], if self.uid > ID_MAX { 0 } else { self.uid.into() });
        octal(&mut block[116..124], if self.gid > ID_MAX { 0 } else { self.gid.into() });
        octal(&mut block[124..136], if self.size > SIZE_MAX { 0 } else { self.size });
        let seconds = u64::try_from(self.mtime.0).unwrap_or(0);
        octal(&mut block[136..148], if seconds > SIZE_MAX { 0 } else { seconds });
        block[156] = self.kind;
        put(&mut block[157..257], self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], self.device.0.into());
        octal(&mut block[337..345], self.device.1.into());
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
        octal(&mut block[148..155], sum);
        block
    }
}

fn put(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// All digits of the field but its last byte, which stays NUL.
fn octal(field: &mut [u8], number: u64) {
    let width = field.len() - 1;
    put(field, format!("{number:0width$o}").as_bytes());
    field[width] = 0;
}

/// `LENGTH KEY=VALUE\n`, the length being that of all of it.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// All nine digits or none: mkfs.erofs 1.8 takes whatever stands behind the point for nanoseconds.
fn render_time((seconds, nanoseconds): (i64, u32)) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let (sign, amount) = (if total < 0 { "-" } else { "" }, total.unsigned_abs());
    match amount % 1_000_000_000 {
        0 => format!("{sign}{}", amount / 1_000_000_000),
        fraction => format!("{sign}{}.{fraction:09}", amount / 1_000_000_000),
    }
}

pub struct Tar<'a, O: Outlet> {
    outlet: &'a mut O,
    buffer: Vec<u8>,
    /// Device and inode of files with several names, and the first of these.
    links: HashMap<(u64, u64), Vec<u8>>,
    links_size: usize,
}

impl<'a, O: Outlet> Tar<'a, O> {
    pub fn new(outlet: &'a mut O) -> Self {
        Self { outlet, buffer: Vec::with_capacity(PIECE), links: HashMap::new(), links_size: 0 }
    }

    pub fn wanted(&self) -> Result<()> {
        self.outlet.wanted()
    }

    pub fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let now = bytes.len().min(PIECE - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..now]);
            bytes = &bytes[now..];
            self.pass_full()?;
        }
        Ok(())
    }

    fn pass_full(&mut self) -> Result<()> {
        if self.buffer.len() == PIECE {
            self.outlet.piece(std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE)))?;
        }
        Ok(())
    }

    /// A node at `path`, which has no slash at its end. Sockets are left out.
    pub fn add(&mut self, node: &Node, path: &[u8]) -> Result<()> {
        self.add_inner(node, path).map_err(|error| error.of(format_args!("/{}", String::from_utf8_lossy(path))))
    }

    fn add_inner(&mut self, node: &Node, path: &[u8]) -> Result<()> {
        self.outlet.wanted()?;
        let xattrs = node.xattrs()?;
        let stat = &node.stat;
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        match node.kind() {
            FileType::RegularFile => self.add_file(node, path, &xattrs),
            FileType::Directory => {
                let path = [path, b"/"].concat();
                self.put(&Entry { xattrs: &xattrs, ..Entry::of(node, &path, b'5') }.render())
            }
            FileType::Symlink => {
                let link = node.link_target().what("read a link")?;
                self.put(&Entry { link: &link, ..Entry::of(node, path, b'2') }.render())
            }
            FileType::CharacterDevice => {
                self.put(&Entry { device, xattrs: &xattrs, ..Entry::of(node, path, b'3') }.render())
            }
            FileType::BlockDevice => {
                self.put(&Entry { device, xattrs: &xattrs, ..Entry::of(node, path, b'4') }.render())
            }
            FileType::Fifo => self.put(&Entry { xattrs: &xattrs, ..Entry::of(node, path, b'6') }.render()),
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    fn add_file(&mut self, node: &Node, path: &[u8], xattrs: &[Xattr]) -> Result<()> {
        let stat = &node.stat;
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                let header = Entry { link: first, ..Entry::of(node, path, b'1') }.render();
                return self.put(&header);
            }
            self.links_size += path.len() + 64;
            if self.links_size > MAX_LINKS {
                return Err(Error::new(Kind::Exhausted, "more hard links than the agent keeps in memory"));
            }
            self.links.insert(key, path.to_vec());
        }
        let mut file = node.open().what("open")?;
        let size = stat.st_size as u64;
        self.put(&Entry { size, xattrs, ..Entry::of(node, path, b'0') }.render())?;
        self.copy(&mut file, size)
    }

    /// Exactly `size` bytes, and what is missing to a whole block.
    fn copy(&mut self, file: &mut impl Read, size: u64) -> Result<()> {
        let mut left = size;
        while left > 0 {
            let start = self.buffer.len();
            let room = usize::try_from(left).unwrap_or(PIECE).min(PIECE - start);
            self.buffer.resize(start + room, 0);
            let read = match file.read(&mut self.buffer[start..]) {
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => 0,
                Ok(0) => return Err(Error::new(Kind::Aborted, format!("shrank by {left} bytes while it was read"))),
                read => read.what("read")?,
            };
            self.buffer.truncate(start + read);
            left -= read as u64;
            self.pass_full()?;
        }
        let padding = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
        self.put(&[0; BLOCK][..padding])
    }

    /// The end of the archive.
    pub fn finish(mut self) -> Result<()> {
        self.put(&[0; 2 * BLOCK])?;
        if self.buffer.is_empty() { Ok(()) } else { self.outlet.piece(self.buffer) }
    }
}

#[cfg(test)]
#[path = "pax_tests.rs"]
pub mod tests;
