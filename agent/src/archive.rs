// SPDX-License-Identifier: Apache-2.0
//! ArchiveService: files of containers, between their file systems and the host. Each call has one blocking thread, and a
//! few pieces under way. It ends when the host hangs up, or the container goes. A host that is slow is waited for: it
//! has somebody behind it who reads or writes as he likes. Only where processes stand still meanwhile it may not do
//! nothing for a minute.

use std::io::{BufRead, Read};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tonic::{Request, Response, Status, Streaming};

use crate::blocking::blocking;
use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::files::{Files, Pass};
use crate::layer;
use crate::pax::{Outlet, PIECE};
use crate::proto::archive_service_server::ArchiveService;
use crate::proto::read_tree_response::Kind as TreeItem;
use crate::proto::write_tree_request::Kind as WriteItem;
use crate::proto::*;
use crate::service::Agent;
use crate::{tree_read, tree_write};

type Answer<T> = std::result::Result<T, Status>;

/// Each holds a thread that other calls need too.
static CALLS: Semaphore = Semaphore::const_new(8);
/// Pieces under way: one being sent, one ready.
const AHEAD: usize = 2;
const STALL: Duration = Duration::from_secs(60);

/// What a call gives back piece by piece.
pub struct Pieces<T>(mpsc::Receiver<Answer<T>>);

impl<T> futures_core::Stream for Pieces<T> {
    type Item = Answer<T>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Answer<T>>> {
        self.0.poll_recv(cx)
    }
}

/// The end of it that a blocking thread has.
struct Wire<T> {
    sender: mpsc::Sender<Answer<T>>,
    closing: watch::Receiver<bool>,
    /// How long the host may take nothing; `None`: as long as it is there.
    patience: Option<Duration>,
    runtime: Handle,
}

impl<T> Wire<T> {
    fn send(&mut self, item: T) -> Result<()> {
        let (sender, closing, patience) = (&self.sender, &mut self.closing, self.patience);
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => Err(deleted()),
                sent = sender.send(Ok(item)) => sent.map_err(|_| hung_up()),
                () = run_out(patience) => Err(stalled()),
            }
        })
    }

    fn wanted(&self) -> Result<()> {
        if *self.closing.borrow() {
            return Err(deleted());
        }
        if self.sender.is_closed() { Err(hung_up()) } else { Ok(()) }
    }
}

async fn run_out(patience: Option<Duration>) {
    match patience {
        Some(patience) => tokio::time::sleep(patience).await,
        None => std::future::pending().await,
    }
}

fn deleted() -> Error {
    Error::wrong_state("the container is being deleted")
}

fn hung_up() -> Error {
    Error::new(Kind::Aborted, "the caller hung up")
}

fn stalled() -> Error {
    let waited = STALL.as_secs();
    Error::new(Kind::TimedOut, format!("the caller did nothing for {waited} s while the container stood still"))
}

impl Outlet for Wire<ReadLayerResponse> {
    fn piece(&mut self, data: Vec<u8>) -> Result<()> {
        self.send(ReadLayerResponse { data })
    }
    fn wanted(&self) -> Result<()> {
        Wire::wanted(self)
    }
}

impl Outlet<Vec<Change>> for Wire<ListChangesResponse> {
    fn piece(&mut self, changes: Vec<Change>) -> Result<()> {
        self.send(ListChangesResponse { changes })
    }
    fn wanted(&self) -> Result<()> {
        Wire::wanted(self)
    }
}

impl Outlet for Wire<ReadTreeResponse> {
    fn piece(&mut self, data: Vec<u8>) -> Result<()> {
        self.send(ReadTreeResponse { kind: Some(TreeItem::Data(data)) })
    }
    fn wanted(&self) -> Result<()> {
        Wire::wanted(self)
    }
}

/// Takes one of the few places for archives.
fn take_turn() -> Result<SemaphorePermit<'static>> {
    CALLS.try_acquire().map_err(|_| Error::new(Kind::Exhausted, "too many archives at once"))
}

/// Runs `work` on a thread of its own; what it holds is let go before the end is told.
fn stream<T: Send + 'static>(
    pass: Pass,
    patience: Option<Duration>,
    work: impl FnOnce(&Pass, &mut Wire<T>) -> Result<()> + Send + 'static,
) -> Result<Pieces<T>> {
    let turn = take_turn()?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let mut wire = Wire { sender, closing: pass.closing.clone(), patience, runtime: Handle::current() };
    tokio::task::spawn_blocking(move || {
        let done = work(&pass, &mut wire);
        drop((pass, turn));
        if let Err(error) = done {
            // Behind what the host has yet to take, for which no thread has to wait.
            let Wire { sender, runtime, .. } = wire;
            runtime.spawn(async move { sender.send(Err(error.into())).await });
        }
    });
    Ok(Pieces(receiver))
}

impl Agent {
    fn pass(&self, id: &str) -> Result<(Arc<Files>, Option<Arc<Container>>, Pass)> {
        let (files, container) = self.files(id)?;
        let pass = files.enter()?;
        Ok((files, container, pass))
    }
}

#[tonic::async_trait]
impl ArchiveService for Agent {
    type ReadLayerStream = Pieces<ReadLayerResponse>;
    type ListChangesStream = Pieces<ListChangesResponse>;
    type ReadTreeStream = Pieces<ReadTreeResponse>;

    async fn read_layer(&self, request: Request<ReadLayerRequest>) -> Answer<Response<Self::ReadLayerStream>> {
        let request = request.into_inner();
        let (files, container, pass) = self.pass(&request.container_id)?;
        let held = match container {
            Some(container) if request.freeze => Some(container.hold().await?),
            _ => None,
        };
        let workshop = self.workshop();
        let patience = held.is_some().then_some(STALL);
        let pieces = stream(pass, patience, move |_, wire| {
            let _held = held;
            let (upper, image) = (files.layers.open_upper()?, workshop.disks.mount_image(&files.layers.lower)?);
            layer::write_layer(upper.as_ref().map(AsFd::as_fd), image.as_ref().map(AsFd::as_fd), wire)
        })?;
        Ok(Response::new(pieces))
    }

    async fn list_changes(&self, request: Request<ListChangesRequest>) -> Answer<Response<Self::ListChangesStream>> {
        let (files, _, pass) = self.pass(&request.into_inner().container_id)?;
        let workshop = self.workshop();
        let pieces = stream(pass, None, move |_, wire| {
            let (upper, image) = (files.layers.open_upper()?, workshop.disks.mount_image(&files.layers.lower)?);
            layer::list_changes(upper.as_ref().map(AsFd::as_fd), image.as_ref().map(AsFd::as_fd), wire)
        })?;
        Ok(Response::new(pieces))
    }

    async fn read_tree(&self, request: Request<ReadTreeRequest>) -> Answer<Response<Self::ReadTreeStream>> {
        let request = request.into_inner();
        let (_, container, pass) = self.pass(&request.container_id)?;
        let pieces = stream(pass, None, move |pass, wire: &mut Wire<ReadTreeResponse>| {
            let root = pass.root.as_fd();
            if request.whole_root {
                let stat = tree_read::Place::find(root, b"/", false)?.stat()?;
                wire.send(ReadTreeResponse { kind: Some(TreeItem::Stat(stat)) })?;
                let bare = container.and_then(|container| tree_read::bare_copy(root, container.handle()));
                return tree_read::write_root(bare.as_ref().map_or(root, AsFd::as_fd), wire);
            }
            let place = tree_read::Place::find(root, &request.path, request.follow_link)?;
            wire.send(ReadTreeResponse { kind: Some(TreeItem::Stat(place.stat()?)) })?;
            place.write(wire)
        })?;
        Ok(Response::new(pieces))
    }

    async fn write_tree(&self, request: Request<Streaming<WriteTreeRequest>>) -> Answer<Response<WriteTreeResponse>> {
        let mut requests = request.into_inner();
        let Some(WriteItem::Options(options)) = next(&mut requests).await? else {
            return Err(Error::invalid("the first message has no options").into());
        };
        self.check_moving()?;
        let (_, _, pass) = self.pass(&options.container_id)?;
        let turn = take_turn()?;
        let mut closing = pass.closing.clone();
        let (sender, receiver) = mpsc::channel(AHEAD);
        let writing = blocking(move || {
            // Whole: a part of it would leave the rest with the caller, who may go first.
            let (pass, _turn) = (pass, turn);
            let source = Source { receiver, piece: Vec::new(), read: 0, is_over: false };
            tree_write::write_tree(pass.root.as_fd(), &options, source)
        });
        let gone = async move {
            let _ = closing.wait_for(|closing| *closing).await;
        };
        tokio::pin!(writing);
        tokio::select! {
            biased;
            written = &mut writing => written?,
            // Its end drops the sender, which ends the thread.
            () = gone => return Err(deleted().into()),
            passed = pass_on(requests, sender) => {
                passed?;
                writing.await?;
            }
        }
        Ok(Response::new(WriteTreeResponse {}))
    }
}

async fn next(requests: &mut Streaming<WriteTreeRequest>) -> Answer<Option<WriteItem>> {
    let message = requests.message().await?;
    message.map(|message| message.kind.ok_or_else(|| Error::invalid("an empty message").into())).transpose()
}

/// `None` is the end; a channel that closes without one was cut.
async fn pass_on(mut requests: Streaming<WriteTreeRequest>, sender: mpsc::Sender<Option<Vec<u8>>>) -> Answer<()> {
    loop {
        let piece = match next(&mut requests).await? {
            Some(WriteItem::Data(data)) if data.len() > PIECE => {
                let told = format!("{} bytes in one piece are more than {PIECE}", data.len());
                return Err(Error::invalid(told).into());
            }
            Some(WriteItem::Data(data)) => Some(data),
            Some(WriteItem::Options(_)) => return Err(Error::invalid("options twice").into()),
            None => None,
        };
        let is_last = piece.is_none();
        // A thread that takes no more has said why.
        if sender.send(piece).await.is_err() || is_last {
            return Ok(());
        }
    }
}

/// The archive as the blocking thread reads it.
struct Source {
    receiver: mpsc::Receiver<Option<Vec<u8>>>,
    piece: Vec<u8>,
    read: usize,
    is_over: bool,
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        while self.read == self.piece.len() && !self.is_over {
            let cut = || std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
            self.read = 0;
            self.piece = match self.receiver.blocking_recv().ok_or_else(cut)? {
                Some(piece) => piece,
                None => {
                    self.is_over = true;
                    Vec::new()
                }
            };
        }
        Ok(&self.piece[self.read..])
    }

    fn consume(&mut self, amount: usize) {
        self.read += amount;
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let piece = self.fill_buf()?;
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece[..length]);
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
