// SPDX-License-Identifier: Apache-2.0
//! One HTTP/2 connection at a time over a pipe that never closes.
//!
//!     Skipping --opening--> Connected --any flag--> Skipping
//!
//! A virtio-serial port without a host reads 0 and polls HUP for as long as the host is away. tokio's
//! `AsyncFd` would take that for a closed file for ever and spin, so the port sits edge-triggered in an
//! epoll set of its own, and tokio watches the set: a set is only ever readable, and each edge (data,
//! room, host came or went) is one wake-up. Room is watched for only while something waits for it: the other side
//! makes some with each piece that it takes.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use rustix::event::epoll;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::link::{self, Decoder, Event};
use crate::sys;

/// Bytes kept in each direction: enough for one frame and its successor.
const BUFFER: usize = 64 * 1024;
const READ: usize = 32 * 1024;
const EDGES: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::RDHUP).union(epoll::EventFlags::ET);

/// What is done with each new connection; dropping the returned guard must end it.
pub trait Serve {
    type Guard;
    fn serve(&self, connection: Connection) -> Self::Guard;
}

/// How a pipe says that the other side has gone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// Reads 0 until the next host comes (virtio-serial).
    Waits,
    /// Reads 0 once and for all (a socket).
    Ends,
}

struct Shared {
    fd: OwnedFd,
    edges: AsyncFd<OwnedFd>,
    state: Mutex<State>,
    /// The connection took bytes from a full buffer: the port may be read again.
    drained: Notify,
}

#[derive(Default)]
struct State {
    /// Counts connections; a connection whose number has passed is over.
    epoch: u64,
    open: bool,
    inbound: VecDeque<u8>,
    outbound: Outbound,
    /// Room is watched for.
    is_waiting: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Escaped bytes on their way out; `sent` of them are gone.
#[derive(Default)]
struct Outbound {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbound {
    fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }
    fn clear(&mut self) {
        self.bytes.clear();
        self.sent = 0;
    }
    /// Under back pressure there is always something left: what has gone makes room all the same.
    fn took(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= BUFFER {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

impl State {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
    fn end(&mut self) {
        self.open = false;
        self.inbound.clear();
        self.wake();
    }
    fn begin(&mut self, nonce: &link::Nonce) {
        self.epoch += 1;
        self.open = true;
        self.inbound.clear();
        // What an earlier connection left unsent is dropped; a frame half sent is cut by the flag.
        self.outbound.clear();
        self.outbound.bytes.extend_from_slice(&link::opening(nonce));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until the pipe is full, and wakes who waited for room. Errors are left to the reading side to notice.
    fn flush(&self, state: &mut State) {
        self.write_out(state);
        if state.outbound.waiting() < BUFFER {
            if let Some(writer) = state.writer.take() {
                writer.wake();
            }
        }
    }

    fn write_out(&self, state: &mut State) {
        let outbound = &mut state.outbound;
        while outbound.waiting() > 0 {
            match rustix::io::write(&self.fd, &outbound.bytes[outbound.sent..]) {
                Ok(n) if n > 0 => outbound.took(n),
                Err(Errno::INTR) => {}
                _ => return self.watch_room(state, true),
            }
        }
        outbound.clear();
        self.watch_room(state, false);
    }

    /// Room that came before is told as an edge all the same.
    fn watch_room(&self, state: &mut State, is_waiting: bool) {
        if state.is_waiting == is_waiting {
            return;
        }
        let flags = if is_waiting { EDGES | epoll::EventFlags::OUT } else { EDGES };
        match epoll::modify(self.edges.get_ref(), &self.fd, epoll::EventData::new_u64(0), flags) {
            Ok(()) => state.is_waiting = is_waiting,
            Err(cause) => crate::warn!("watch a port: {}", Error::from(cause)),
        }
    }
}

/// Serves connection after connection until the pipe ends (`Hangup::Ends`) or fails.
pub async fn serve_pipe<S: Serve>(fd: OwnedFd, hangup: Hangup, service: &S) -> Result<()> {
    rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::NONBLOCK)?;
    let edges = watch_edges(&fd)?;
    let shared = Arc::new(Shared { fd, edges, state: Mutex::default(), drained: Notify::new() });
    let mut port = Port { shared, decoder: Decoder::default(), guard: None, service };
    let mut buffer = vec![0; READ];
    loop {
        let full = loop {
            if port.shared.lock().inbound.len() >= BUFFER {
                break true;
            }
            match rustix::io::read(&port.shared.fd, &mut buffer) {
                Ok(0) if hangup == Hangup::Ends => {
                    port.hang_up();
                    return Ok(());
                }
                // No host. Not the end of a connection: "closed" and "open" come on a queue of their own, so the
                // close of the last host may be seen after the opening of the next was read. Only a flag ends one.
                Ok(0) => break false,
                Ok(n) => port.take(&buffer[..n]),
                Err(Errno::AGAIN) => break false,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) if hangup == Hangup::Ends => return Ok(()),
                Err(cause) => return Err(cause.into()),
            }
        };
        if full {
            tokio::select! {
                () = port.shared.drained.notified() => {}
                edge = wait_edge(&port.shared.edges) => { edge?; port.room(); }
            }
        } else {
            wait_edge(&port.shared.edges).await?;
            port.room();
        }
    }
}

struct Port<'a, S: Serve> {
    shared: Arc<Shared>,
    decoder: Decoder,
    guard: Option<S::Guard>,
    service: &'a S,
}

impl<S: Serve> Port<'_, S> {
    fn take(&mut self, mut input: &[u8]) {
        let mut data = Vec::new();
        while !input.is_empty() {
            let (used, event) = self.decoder.decode(input, &mut data);
            input = &input[used..];
            self.deliver(&mut data);
            match event {
                None => {}
                Some(Event::Cut) => self.hang_up(),
                Some(Event::Opened(nonce)) => self.open(&nonce),
            }
        }
    }

    fn deliver(&self, data: &mut Vec<u8>) {
        let mut state = self.shared.lock();
        if state.open && !data.is_empty() {
            state.inbound.extend(data.iter());
            if let Some(reader) = state.reader.take() {
                reader.wake();
            }
        }
        data.clear();
    }

    fn hang_up(&mut self) {
        self.shared.lock().end();
        self.guard = None;
    }

    fn open(&mut self, nonce: &link::Nonce) {
        self.hang_up();
        let epoch = {
            let mut state = self.shared.lock();
            state.begin(nonce);
            self.shared.flush(&mut state);
            state.epoch
        };
        self.guard = Some(self.service.serve(Connection { shared: self.shared.clone(), epoch }));
    }

    /// An edge may mean that the pipe takes bytes again.
    fn room(&self) {
        let mut state = self.shared.lock();
        if state.outbound.waiting() > 0 {
            self.shared.flush(&mut state);
        }
    }
}

fn watch_edges(fd: &OwnedFd) -> Result<AsyncFd<OwnedFd>> {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&set, fd, epoll::EventData::new_u64(0), EDGES)?;
    sys::watch(set, Interest::READABLE)
}

async fn wait_edge(edges: &AsyncFd<OwnedFd>) -> Result<()> {
    loop {
        let mut guard = edges.readable().await?;
        let mut events: [epoll::Event; 1] =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let seen = epoll::wait(edges.get_ref(), &mut events[..], Some(&now))?;
        guard.clear_ready();
        if seen > 0 {
            return Ok(());
        }
    }
}

/// One HTTP/2 connection's view of the pipe: reads and writes plain bytes until it is cut.
pub struct Connection {
    shared: Arc<Shared>,
    epoch: u64,
}

impl Connection {
    fn live(&self) -> Option<MutexGuard<'_, State>> {
        let state = self.shared.lock();
        (state.open && state.epoch == self.epoch).then_some(state)
    }
}

impl hyper::rt::Read for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<Result<()>> {
        let Some(mut state) = self.live() else { return Poll::Ready(Ok(())) };
        if state.inbound.is_empty() {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let was_full = state.inbound.len() >= BUFFER;
        let (head, _) = state.inbound.as_slices();
        let taken = head.len().min(buf.remaining());
        buf.put_slice(&head[..taken]);
        state.inbound.drain(..taken);
        if was_full && state.inbound.len() < BUFFER {
            self.shared.drained.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let Some(mut state) = self.live() else {
            return Poll::Ready(Err(Error::from(ErrorKind::BrokenPipe)));
        };
        let state = &mut *state;
        if state.outbound.waiting() >= BUFFER {
            self.shared.flush(state);
        }
        if state.outbound.waiting() >= BUFFER {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = buf.len().min(BUFFER);
        link::escape(&buf[..taken], &mut state.outbound.bytes);
        Poll::Ready(Ok(taken))
    }

    /// Starts the bytes on their way. It does not wait for them: the port flushes on.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        if let Some(mut state) = self.live() {
            self.shared.flush(&mut state);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_flush(cx)
    }
}

/// Runs the tasks of one connection; dropping the scope ends them all.
#[derive(Clone)]
pub struct Scope(tokio::sync::watch::Receiver<()>);

pub struct ScopeGuard(#[allow(dead_code, reason = "its drop is the message")] tokio::sync::watch::Sender<()>);

impl Scope {
    pub fn new() -> (Self, ScopeGuard) {
        let (sender, receiver) = tokio::sync::watch::channel(());
        (Self(receiver), ScopeGuard(sender))
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Scope {
    fn execute(&self, future: F) {
        let mut over = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = over.changed() => {}
                () = future => {}
            }
        });
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
