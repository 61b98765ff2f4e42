// SPDX-License-Identifier: Apache-2.0
//! Reads a tar that a stranger wrote: ustar, old, GNU (long names, numbers in base 256) and pax. Whatever does not fit is
//! refused, and no header makes it take more memory than a bound. Sparse files are refused too.

use std::io::{BufRead, ErrorKind};

use crate::error::{Error, Kind, Result};
use crate::node::Xattr;

const BLOCK: usize = 512;
/// Of all extended headers of one entry; Go's bound for one, and that of most.
const MAX_RECORDS: u64 = 1024 * 1024;
const MAX_NAME: usize = 4095;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// As it stands there: it may be absolute, go up, end in a slash.
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    /// As [`crate::pax::Entry`] has it, and nothing else.
    pub kind: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    pub xattrs: Vec<Xattr>,
}

pub struct Untar<R> {
    source: R,
    /// Of the data of the entry that was returned last.
    left: u64,
    padding: u64,
    is_over: bool,
}

/// What extended headers say about the next entry.
#[derive(Default)]
struct Records {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<Xattr>,
}

impl<R: BufRead> Untar<R> {
    pub fn new(source: R) -> Self {
        Self { source, left: 0, padding: 0, is_over: false }
    }

    /// The next entry; `None` at the end, and then all that the source has is read.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        if self.is_over {
            return Ok(None);
        }
        let mut records = Records::default();
        let mut is_first = true;
        let mut room = MAX_RECORDS;
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            if !self.read_block(&mut block)? || block.iter().all(|&byte| byte == 0) {
                if !is_first {
                    return Err(broken("it ends after an extended header"));
                }
                self.is_over = true;
                return self.drain().map(|()| None);
            }
            check_sum(&block)?;
            let (kind, size) = (block[156], number(&block[124..136])?);
            let size = u64::try_from(size).map_err(|_| broken("a negative size"))?;
            match kind {
                b'x' => records.read(&self.extended(size, &mut room)?)?,
                // What it says of all that follow is said in practice of no file: a commit's name, a comment.
                b'g' => drop(self.extended(size, &mut room)?),
                b'L' => records.path = Some(text(&self.extended(size, &mut room)?).to_vec()),
                b'K' => records.link = Some(text(&self.extended(size, &mut room)?).to_vec()),
                // A volume's name.
                b'V' => self.expect(size),
                _ => {
                    let entry = decode(&block, size, records)?;
                    self.expect(entry.size);
                    return Ok(Some(entry));
                }
            }
            is_first = false;
        }
    }

    /// The data of the entry that was returned last, in pieces.
    pub fn copy(&mut self, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while self.left > 0 {
            let piece = self.source.fill_buf().map_err(failed)?;
            if piece.is_empty() {
                return Err(broken("it ends in the middle of a file"));
            }
            let length = piece.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            out(&piece[..length])?;
            self.source.consume(length);
            self.left -= length as u64;
        }
        Ok(())
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip(&mut self) -> Result<()> {
        self.copy(&mut |_| Ok(()))?;
        self.left = std::mem::take(&mut self.padding);
        self.copy(&mut |_| Ok(()))
    }

    /// False at the end of the source.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        if self.source.fill_buf().map_err(failed)?.is_empty() {
            return Ok(false);
        }
        self.source.read_exact(block).map_err(failed)?;
        Ok(true)
    }

    fn extended(&mut self, size: u64, room: &mut u64) -> Result<Vec<u8>> {
        let too_large = || broken(format_args!("extended headers of more than {MAX_RECORDS} bytes"));
        *room = room.checked_sub(size).ok_or_else(too_large)?;
        self.expect(size);
        let mut content = Vec::with_capacity(size as usize);
        self.copy(&mut |piece| {
            content.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(content)
    }

    fn drain(&mut self) -> Result<()> {
        loop {
            let length = self.source.fill_buf().map_err(failed)?.len();
            if length == 0 {
                return Ok(());
            }
            self.source.consume(length);
        }
    }
}

fn broken(why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("not a good tar: {why}"))
}

fn failed(cause: std::io::Error) -> Error {
    match cause.kind() {
        ErrorKind::UnexpectedEof => broken("it ends in the middle of a header"),
        ErrorKind::ConnectionAborted => Error::new(Kind::Aborted, "the caller hung up"),
        _ => Error::internal(format!("read the archive: {cause}")),
    }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Octal digits, or a number in base 256. An empty field is 0.
fn number(field: &[u8]) -> Result<i64> {
    let wrong = || broken(format_args!("{:?} is no number", String::from_utf8_lossy(field)));
    if field[0] & 0x80 != 0 {
        let is_negative = field[0] & 0x40 != 0;
        let first = if is_negative { i64::from(field[0]) - 256 } else { i64::from(field[0] & 0x7f) };
        return field[1..].iter().try_fold(first, |total, &byte| {
            total.checked_mul(256).and_then(|total| total.checked_add(byte.into())).ok_or_else(wrong)
        });
    }
    let digits = std::str::from_utf8(text(field)).map_err(|_| wrong())?.trim();
    if digits.is_empty() {
        return Ok(0);
    }
    if digits.starts_with(['+', '-']) {
        return Err(wrong());
    }
    i64::from_str_radix(digits, 8).map_err(|_| wrong())
}

fn check_sum(block: &[u8; BLOCK]) -> Result<()> {
    let summed = |value: fn(u8) -> i64| -> i64 {
        block.iter().enumerate().map(|(at, &byte)| value(if (148..156).contains(&at) { b' ' } else { byte })).sum()
    };
    let told = number(&block[148..156])?;
    // Some old ones took the bytes for signed.
    if told != summed(i64::from) && told != summed(|byte| i64::from(byte as i8)) {
        return Err(broken("a header's checksum is wrong"));
    }
    Ok(())
}

fn decode(block: &[u8; BLOCK], size: u64, records: Records) -> Result<Entry> {
    let id = |field: &[u8]| u32::try_from(number(field)?).map_err(|_| broken("a user or group id is too large"));
    let mut path = text(&block[0..100]).to_vec();
    if &block[257..263] == b"ustar\0" && block[345] != 0 {
        path = [text(&block[345..500]), b"/", &path].concat();
    }
    let path = records.path.unwrap_or(path);
    let link = records.link.unwrap_or_else(|| text(&block[157..257]).to_vec());
    let kind = match block[156] {
        0 | b'0' if path.ends_with(b"/") => b'5',
        0 | b'0' | b'7' => b'0',
        kind @ b'1'..=b'6' => kind,
        b'S' => return Err(broken("a sparse file; write it without holes")),
        other => return Err(broken(format_args!("an entry of unknown type {:?}", char::from(other)))),
    };
    if path.is_empty() || path.len() > MAX_NAME || link.len() > MAX_NAME || path.contains(&0) || link.contains(&0) {
        return Err(broken(format_args!("a name of {} bytes, or with a NUL in it", path.len())));
    }
    let device = match kind {
        b'3' | b'4' => (id(&block[329..337])?, id(&block[337..345])?),
        _ => (0, 0),
    };
    // Only files have data, whatever the field says: as Go and GNU tar take it.
    let size = if kind == b'0' { records.size.unwrap_or(size) } else { 0 };
    Ok(Entry {
        path,
        link,
        kind,
        mode: number(&block[100..108])? as u32 & 0o7777,
        uid: records.uid.map_or_else(|| id(&block[108..116]), Ok)?,
        gid: records.gid.map_or_else(|| id(&block[116..124]), Ok)?,
        size,
        mtime: records.mtime.map_or_else(|| Ok::<_, Error>((number(&block[136..148])?, 0)), Ok)?,
        device,
        xattrs: records.xattrs,
    })
}

impl Records {
    fn read(&mut self, mut content: &[u8]) -> Result<()> {
        while content.iter().any(|&byte| byte != 0) {
            let wrong = || broken("a bad record in an extended header");
            let space = content.iter().take(20).position(|&byte| byte == b' ').ok_or_else(wrong)?;
            let length: usize =
                std::str::from_utf8(&content[..space]).ok().and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
            if length <= space + 1 || length > content.len() || content[length - 1] != b'\n' {
                return Err(wrong());
            }
            let record = &content[space + 1..length - 1];
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(wrong)?;
            self.set(&record[..equals], &record[equals + 1..])?;
            content = &content[length..];
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let digits = || std::str::from_utf8(value).unwrap_or_default();
        let wrong = || broken(format_args!("{:?} for {}", digits(), String::from_utf8_lossy(key)));
        // An empty value takes back what was said before.
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| value.to_vec()),
            b"linkpath" => self.link = given.then(|| value.to_vec()),
            b"size" => self.size = given.then(|| digits().parse().map_err(|_| wrong())).transpose()?,
            b"uid" => self.uid = given.then(|| digits().parse().map_err(|_| wrong())).transpose()?,
            b"gid" => self.gid = given.then(|| digits().parse().map_err(|_| wrong())).transpose()?,
            b"mtime" => self.mtime = given.then(|| parse_time(digits()).ok_or_else(wrong)).transpose()?,
            _ if key.starts_with(b"GNU.sparse.") => return Err(broken("a sparse file; write it without holes")),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// `-12.5` is half a second before twelve seconds before 1970.
fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(part) {
        return None;
    }
    let nanoseconds: i128 = format!("{part:0<9}")[..9].parse().ok()?;
    let total = sign * (i128::from(whole.parse::<i64>().ok()?) * 1_000_000_000 + nanoseconds);
    Some((i64::try_from(total.div_euclid(1_000_000_000)).ok()?, total.rem_euclid(1_000_000_000) as u32))
}

#[cfg(test)]
#[path = "untar_tests.rs"]
mod tests;
