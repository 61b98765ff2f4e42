// SPDX-License-Identifier: Apache-2.0
//! A birth by the nursery, of which nothing blocks: the configuration lies in the newborn's socket before it is asked for,
//! and the agent hears of it once, when it is ready. No thread is woken, and nobody waits for the nursery.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use prost::Message;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::birth::{Newborn, READY_DEADLINE, Report, Streams, late};
use crate::error::{Context, Error, Result};
use crate::init::{self, Config};
use crate::nursery::{Gifts, Nursery};
use crate::reaper::Reaper;
use crate::sys;

/// A socket takes it, whoever reads it or not.
const LARGEST: usize = 64 * 1024;
/// It has a line for a user.
const MAX_REPORT: usize = 64 * 1024;

/// In the pid namespace of `target` and in that cgroup. None when the nursery cannot: then there is another way.
pub async fn bear(
    reaper: &Reaper,
    nursery: &Nursery,
    config: &Config,
    target: BorrowedFd<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Option<Newborn>> {
    let message = init::frame(config);
    if message.len() > LARGEST {
        return Ok(None);
    }
    let spec = config.process.clone().unwrap_or_default();
    let streams = Streams::open(&spec)?;
    let (ours, theirs) = UnixStream::pair().what("socketpair")?;
    // The kernel tells who it is, by the number that it has here.
    rustix::net::sockopt::set_socket_passcred(&ours, true).what("ask for credentials")?;
    let sent = rustix::net::send(&ours, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    if sent.what("send the configuration")? != message.len() {
        return Ok(None);
    }
    let expected = reaper.expect();
    let gifts = Gifts { streams: streams.theirs(), report: theirs.as_fd(), target, cgroup };
    if let Err(error) = nursery.ask(&gifts) {
        crate::warn!("the nursery: {error}");
        nursery.give_up();
        return Ok(None);
    }
    drop(theirs);
    let (stdin, outputs) = streams.keep();
    let report = Arc::new(sys::watch(ours.into(), Interest::READABLE).what("watch the report")?);
    let mut heard = Heard::default();
    tokio::time::timeout(READY_DEADLINE, heard.all(&report)).await.map_err(|_| late())??;
    let Some(told) = heard.report() else {
        crate::warn!("the nursery could not bear a process");
        if heard.bytes.is_empty() {
            nursery.give_up();
        }
        return Ok(None);
    };
    told.check()?;
    let master = if spec.terminal { heard.fds.pop_front() } else { None };
    match (heard.pid, heard.fds.pop_front()) {
        (Some(pid), Some(pidfd)) => {
            let child = expected.claim(pid, pidfd);
            Ok(Some(Newborn { child, report: Report::Watched(report), stdin, outputs, master }))
        }
        _ => Err(Error::internal("container-init did not say who it is")),
    }
}

/// What has come on a report's socket.
#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    /// A terminal's master, its pidfd.
    fds: std::collections::VecDeque<OwnedFd>,
    pid: Option<u32>,
}

impl Heard {
    /// Until a report is whole, or the end.
    async fn all(&mut self, report: &AsyncFd<OwnedFd>) -> Result<()> {
        while !self.is_whole() {
            let mut ready = report.readable().await.what("wait for container-init")?;
            match self.receive(report.get_ref()) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(cause) => return Err(cause).what("hear of container-init"),
            }
            if self.bytes.len() > MAX_REPORT {
                return Err(Error::internal("container-init says too much"));
            }
        }
        Ok(())
    }

    fn receive(&mut self, socket: &OwnedFd) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut piece = [0; 512];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut piece)], &mut control, flags)?;
        let mut is_terminal = false;
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(fds) => {
                    self.fds.extend(fds);
                    is_terminal = piece[..got.bytes] == *init::TERMINAL;
                }
                RecvAncillaryMessage::ScmCredentials(who) => self.pid = Some(who.pid.as_raw_nonzero().get() as u32),
                _ => {}
            }
        }
        if !is_terminal {
            self.bytes.extend_from_slice(&piece[..got.bytes]);
        }
        Ok(got.bytes)
    }

    fn length(&self) -> Option<usize> {
        let head = self.bytes.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*head) as usize)
    }

    fn is_whole(&self) -> bool {
        self.length().is_some_and(|length| self.bytes.len() >= 4 + length)
    }

    /// None: it died, or was never born, which an empty one says.
    fn report(&self) -> Option<init::Report> {
        let length = self.length().filter(|&length| length > 0)?;
        init::Report::decode(self.bytes.get(4..4 + length)?).ok()
    }
}
