// SPDX-License-Identifier: Apache-2.0
//! A container-init born before it is needed: in its namespaces and its cgroup, with the mounts that all containers have, waiting
//! for its first message. A template is saved with one, so that the first container of each clone skips all that, which an
//! emulated CPU would meet for the first time.
//!
//! Its mount namespace is as old as it is: it serves containers that need no mount the agent made since.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use tokio::sync::oneshot::error::TryRecvError;

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::init;
use crate::proto::CreateContainerRequest;
use crate::reaper::{Child, Reaper};
use crate::sys;

const READY_DEADLINE: Duration = Duration::from_secs(10);
/// Standard streams and the container's root.
const FDS: usize = 4;
const NAMESPACES: i32 = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;

pub struct Spare {
    child: Child,
    socket: UnixStream,
    /// Which it was born in, and cannot leave: it is the root of its cgroup namespace.
    cgroup: Option<Cgroup>,
}

impl Spare {
    /// In that cgroup, which is the container's to be.
    pub fn bear(reaper: &Reaper, cgroup: Option<Cgroup>) -> Result<Self> {
        let group = cgroup.as_ref().map(Cgroup::fd);
        let (child, ours) = match reaper.spawn_self(init::SPARE_ARGUMENT, NAMESPACES as u64, group) {
            Ok(born) => born,
            Err(error) => {
                cgroup.iter().for_each(remove);
                return Err(error);
            }
        };
        let spare = Self { child, socket: ours, cgroup };
        // Saved half-way, it would have its beginning before it in every clone.
        match spare.wait_ready() {
            Ok(()) => Ok(spare),
            Err(error) => {
                spare.end();
                Err(error)
            }
        }
    }

    /// The caller's from now on.
    pub fn take_cgroup(&mut self) -> Option<Cgroup> {
        self.cgroup.take()
    }

    fn wait_ready(&self) -> Result<()> {
        self.socket.set_read_timeout(Some(READY_DEADLINE)).what("set a deadline")?;
        (&self.socket).read_exact(&mut [0]).what("wait for a spare container-init")
    }

    /// Whether that container finds in it all that it is to be made of.
    pub fn serves(request: &CreateContainerRequest) -> bool {
        let isolation = request.isolation.as_ref();
        request.mounts.iter().all(|mount| mount.r#type == "tmpfs")
            && isolation.is_none_or(|it| !it.privileged && it.share_pid_with.is_empty() && it.share_ipc_with.is_empty())
    }

    /// Hands over the streams and the root; it reads its configuration next. None when it cannot be had any more: it may have
    /// been killed while it waited.
    pub fn dress(self, streams: [BorrowedFd<'_>; 3], root: BorrowedFd<'_>) -> Option<(Child, UnixStream)> {
        let Self { mut child, socket, .. } = self;
        if child.exited.try_recv() != Err(TryRecvError::Empty) {
            // Its pid may be another's by now.
            crate::warn!("the spare container-init is gone");
            return None;
        }
        if let Err(error) = send(&socket, [streams[0], streams[1], streams[2], root]) {
            crate::warn!("the spare container-init cannot be used: {error}");
            kill(&child);
            return None;
        }
        Some((child, socket))
    }

    pub fn end(self) {
        kill(&self.child);
        self.cgroup.iter().for_each(remove);
    }
}

fn remove(cgroup: &Cgroup) {
    cgroup.kill();
    if let Err(error) = cgroup.remove(Instant::now() + READY_DEADLINE) {
        crate::warn!("the spare's cgroup: {error}");
    }
}

fn kill(child: &Child) {
    let _ = sys::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL);
}

fn send(socket: &UnixStream, fds: [BorrowedFd<'_>; FDS]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(socket, &[IoSlice::new(b"s")], &mut control, SendFlags::NOSIGNAL)
        .what("hand over the streams")?;
    Ok(())
}

/// The other end: takes the streams for its own, and returns the root.
pub fn receive(mut socket: &UnixStream) -> Result<OwnedFd> {
    socket.write_all(b"r").what("say that it is ready")?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .what("wait for the streams")?;
    let mut fds = Vec::with_capacity(FDS);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let [stdin, stdout, stderr, root] =
        <[OwnedFd; FDS]>::try_from(fds).map_err(|_| Error::internal("not the descriptors of a container"))?;
    rustix::stdio::dup2_stdin(&stdin).what("standard input")?;
    rustix::stdio::dup2_stdout(&stdout).what("standard output")?;
    rustix::stdio::dup2_stderr(&stderr).what("standard error")?;
    Ok(root)
}
