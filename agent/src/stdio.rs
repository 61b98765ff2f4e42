// SPDX-License-Identifier: Apache-2.0
//! What a process writes, kept until the host has it: a ring of 256 KiB, numbered from byte 0,
//! both streams in the order they were read. A full ring is not read into, so the process blocks.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::proto::{ReadOutputResponse, Stream};

pub const RING: usize = 256 * 1024;
pub const CHUNK: usize = 64 * 1024;
/// What is read at once of an output that is thrown away.
const SCRAP: usize = 4096;
/// The ring of a process that has not written more: most never do.
const SMALL: usize = 4096;
/// Turns between the two streams that the ring remembers; more count as full.
const SEGMENTS: usize = 4096;

pub struct Output {
    ring: Mutex<Ring>,
    /// Changes when there is something new to read: data or the end.
    news: watch::Sender<()>,
    /// Changes when the host acknowledged something.
    space: watch::Sender<()>,
    /// Counts readers; the latest one is the reader.
    readers: watch::Sender<u64>,
}

#[derive(Default)]
struct Ring {
    bytes: Vec<u8>,
    /// Offsets in the whole output: acknowledged up to, read up to.
    start: u64,
    end: u64,
    /// (offset of its first byte, stream); the last one is still growing.
    segments: VecDeque<(u64, Stream)>,
    writers: u32,
    /// Nobody will ever read this: what comes is thrown away.
    forgotten: bool,
}

pub struct Chunk {
    pub offset: u64,
    pub stream: Stream,
    pub data: Bytes,
    pub eof: bool,
}

impl From<Chunk> for ReadOutputResponse {
    fn from(chunk: Chunk) -> Self {
        Self { offset: chunk.offset, stream: chunk.stream.into(), data: chunk.data, eof: chunk.eof }
    }
}

impl Ring {
    fn is_full(&self) -> bool {
        self.end - self.start >= RING as u64 || self.segments.len() >= SEGMENTS
    }

    /// Fills free space by one call of `read`.
    fn fill<E>(
        &mut self,
        stream: Stream,
        read: impl FnOnce(&mut [u8]) -> std::result::Result<usize, E>,
    ) -> std::result::Result<usize, E> {
        if self.forgotten {
            return read(&mut [0; SCRAP]);
        }
        if self.end == self.bytes.len() as u64 && self.bytes.len() < RING {
            self.bytes.resize(if self.end == 0 { SMALL } else { RING }, 0);
        }
        if self.bytes.len() == SMALL {
            // Never gone round: it grows first.
            let at = self.end as usize;
            return read(&mut self.bytes[at..]).map(|n| self.grown(stream, n));
        }
        let free = RING - (self.end - self.start) as usize;
        let at = (self.end % RING as u64) as usize;
        let room = free.min(RING - at).min(CHUNK);
        read(&mut self.bytes[at..at + room]).map(|n| self.grown(stream, n))
    }

    fn grown(&mut self, stream: Stream, n: usize) -> usize {
        if n > 0 && self.segments.back().is_none_or(|&(_, last)| last != stream) {
            self.segments.push_back((self.end, stream));
        }
        self.end += n as u64;
        n
    }

    fn chunk_at(&self, offset: u64) -> Option<Chunk> {
        if self.forgotten {
            return None;
        }
        if offset >= self.end {
            return (self.writers == 0).then_some(Chunk {
                offset,
                stream: Stream::Unspecified,
                data: Bytes::new(),
                eof: true,
            });
        }
        let next = self.segments.partition_point(|&(first, _)| first <= offset);
        let (_, stream) = *self.segments.get(next.checked_sub(1)?)?;
        let limit = self.segments.get(next).map_or(self.end, |&(first, _)| first);
        let at = (offset % RING as u64) as usize;
        let length = ((limit - offset) as usize).min(CHUNK).min(RING - at);
        let data = Bytes::copy_from_slice(&self.bytes[at..at + length]);
        Some(Chunk { offset, stream, data, eof: false })
    }

    fn acknowledge(&mut self, offset: u64) -> bool {
        if offset <= self.start || offset > self.end {
            return false;
        }
        self.start = offset;
        while self.segments.get(1).is_some_and(|&(first, _)| first <= offset) {
            self.segments.pop_front();
        }
        true
    }
}

impl Output {
    pub fn new(writers: u32) -> Arc<Self> {
        Arc::new(Self {
            ring: Mutex::new(Ring { writers, ..Ring::default() }),
            news: watch::Sender::new(()),
            space: watch::Sender::new(()),
            readers: watch::Sender::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn end_offset(&self) -> u64 {
        self.lock().end
    }

    /// All before it was acknowledged.
    pub fn start_offset(&self) -> u64 {
        self.lock().start
    }

    /// Throws away what is kept and all that is still to come, so that a process that outlives its parent never blocks.
    pub fn forget(&self) {
        {
            let mut ring = self.lock();
            ring.forgotten = true;
            ring.start = ring.end;
            ring.segments = VecDeque::new();
            ring.bytes = Vec::new();
        }
        self.readers.send_modify(|n| *n += 1);
        self.space.send_replace(());
    }

    /// Reads one stream of the process until its last writer has gone.
    pub async fn pump(self: Arc<Self>, stream: Stream, source: Arc<AsyncFd<OwnedFd>>) {
        let mut space = self.space.subscribe();
        loop {
            space.mark_unchanged();
            if self.lock().is_full() {
                if space.changed().await.is_err() {
                    break;
                }
                continue;
            }
            let Ok(mut ready) = source.readable().await else { break };
            let read = self.lock().fill(stream, |free| rustix::io::read(source.as_fd(), free));
            match read {
                Ok(0) => break,
                Ok(_) => {
                    self.news.send_replace(());
                    // A flood must not keep the one thread from the control port.
                    tokio::task::yield_now().await;
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                // EIO: the terminal's last process has gone.
                Err(_) => break,
            }
        }
        self.lock().writers -= 1;
        self.news.send_replace(());
    }

    /// Begins reading at `from`: everything before it counts as acknowledged, since the host stored it.
    pub fn attach(self: &Arc<Self>, from: u64) -> Result<OutputReader> {
        let mut ring = self.lock();
        if from < ring.start || from > ring.end {
            return Err(Error::invalid(format!(
                "offset {from} is outside what is kept, {} to {}",
                ring.start, ring.end
            )));
        }
        if ring.acknowledge(from) {
            self.space.send_replace(());
        }
        drop(ring);
        let mut number = 0;
        self.readers.send_modify(|n| {
            *n += 1;
            number = *n;
        });
        Ok(OutputReader {
            output: self.clone(),
            offset: from,
            number,
            news: self.news.subscribe(),
            readers: self.readers.subscribe(),
        })
    }
}

pub struct OutputReader {
    output: Arc<Output>,
    offset: u64,
    number: u64,
    news: watch::Receiver<()>,
    readers: watch::Receiver<u64>,
}

impl OutputReader {
    pub fn acknowledge(&self, offset: u64) -> Result<()> {
        if offset > self.offset {
            return Err(Error::invalid(format!("offset {offset} was acknowledged before it was sent")));
        }
        if self.output.lock().acknowledge(offset) {
            self.output.space.send_replace(());
        }
        Ok(())
    }

    /// The next piece; `None` when a later reader has taken over. Cancel-safe.
    pub async fn next(&mut self) -> Option<Chunk> {
        loop {
            self.news.mark_unchanged();
            if *self.readers.borrow_and_update() != self.number {
                return None;
            }
            if let Some(chunk) = self.output.lock().chunk_at(self.offset) {
                self.offset += chunk.data.len() as u64;
                return Some(chunk);
            }
            tokio::select! {
                changed = self.news.changed() => changed.ok()?,
                changed = self.readers.changed() => changed.ok()?,
            }
        }
    }
}

/// Standard input of a process: a pipe, or the terminal.
pub struct Input {
    sink: tokio::sync::Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    terminal: bool,
}

impl Input {
    pub fn new(sink: Option<Arc<AsyncFd<OwnedFd>>>, terminal: bool) -> Self {
        Self { sink: tokio::sync::Mutex::new(sink), terminal }
    }

    /// Writes all, waiting for room; fewer bytes when the process has closed its end.
    pub async fn write(&self, mut data: &[u8]) -> usize {
        let sink = self.sink.lock().await;
        let Some(sink) = sink.as_ref() else { return 0 };
        let wanted = data.len();
        while !data.is_empty() {
            let written = sink.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, data)?)).await;
            match written {
                Ok(n) => data = &data[n..],
                Err(_) => break,
            }
        }
        wanted - data.len()
    }

    /// End of file. A terminal has none: its user types ^D.
    pub async fn close(&self) {
        if !self.terminal {
            *self.sink.lock().await = None;
        }
    }
}

pub fn watched(fd: OwnedFd, interest: Interest) -> std::io::Result<Arc<AsyncFd<OwnedFd>>> {
    rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::NONBLOCK)?;
    Ok(Arc::new(crate::sys::watch(fd, interest)?))
}

#[cfg(test)]
#[path = "stdio_tests.rs"]
mod tests;
