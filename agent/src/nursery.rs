// SPDX-License-Identifier: Apache-2.0
//! A process that gives birth to exec'd ones: the agent's own binary, run once, with one thread and all that is the same
//! for each of them done already. It forks where the agent, which has threads, would have to be executed anew; an emulated
//! CPU needs as long for that as for the user's program.
//!
//!     agent --streams, report, container, cgroup--> nursery --forks--> newborn --report: its pidfd--> agent
//!
//! What it bears is a child of the agent's (CLONE_PARENT), in the container's pid namespace and cgroup from its first moment.
//! It reads no configuration: nothing of one exec'd process is in the memory of another.
//!
//! The usual one has the bounding set and the seccomp filter that nearly all processes get, and those are born with them:
//! to the kernel a filter is a program to be checked and compiled, a third of what an exec costs beyond the user's own
//! process. The filter lets nobody join namespaces but who knows a number that it was made with, and that is forgotten at
//! execve.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use crate::capability;
use crate::error::{Context, Error, Result};
use crate::init;
use crate::reaper::{Child, Reaper};
use crate::{seccomp, sys};

/// Of the usual one, and of that for all others.
pub const ARGUMENT: &str = "container-nursery";
pub const PLAIN_ARGUMENT: &str = "container-nursery-plain";
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Standard streams, report, the container's first process, its cgroup.
const MAX_FDS: usize = 6;
/// In place of a newborn's report.
const NOBODY: [u8; 4] = [0; 4];

pub struct Nursery {
    child: Child,
    socket: UnixStream,
    is_broken: AtomicBool,
}

#[derive(Default)]
pub struct Nurseries {
    pub usual: Place,
    pub plain: Place,
}

/// The nursery of a guest, while there is one that works.
#[derive(Default)]
pub struct Place {
    nursery: Mutex<Option<Arc<Nursery>>>,
    /// Held for as long as one is being opened, which may be seconds: nobody waits for it but who has to have one.
    opening: Mutex<()>,
}

impl Place {
    /// Never waits for one that is being opened.
    pub fn find(&self) -> Option<Arc<Nursery>> {
        let nursery = self.nursery.lock().unwrap_or_else(PoisonError::into_inner);
        nursery.clone().filter(|it| it.works())
    }

    /// Unless there is one. Blocking; waits for who is opening one.
    pub fn require(&self, open: impl FnOnce() -> Result<Nursery>) -> Result<()> {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        self.fill(open)
    }

    /// Unless there is one, or somebody is opening one. Blocking.
    pub fn offer(&self, open: impl FnOnce() -> Result<Nursery>) -> Result<()> {
        match self.opening.try_lock() {
            Ok(_opening) => self.fill(open),
            Err(_) => Ok(()),
        }
    }

    fn fill(&self, open: impl FnOnce() -> Result<Nursery>) -> Result<()> {
        if self.find().is_none() {
            let opened = Arc::new(open()?);
            *self.nursery.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
        }
        Ok(())
    }
}

/// What a newborn is given.
pub struct Gifts<'a> {
    pub streams: [BorrowedFd<'a>; 3],
    pub report: BorrowedFd<'a>,
    pub target: BorrowedFd<'a>,
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl Nursery {
    /// Returns when it is ready. Blocking.
    pub fn open(reaper: &Reaper, argument: &str) -> Result<Self> {
        let (child, ours) = reaper.spawn_self(argument, 0, None)?;
        ours.set_read_timeout(Some(OPEN_DEADLINE)).what("set a deadline")?;
        let nursery = Self { child, socket: ours, is_broken: AtomicBool::new(false) };
        (&nursery.socket).read_exact(&mut [0]).what("wait for the nursery")?;
        Ok(nursery)
    }

    pub fn works(&self) -> bool {
        !self.is_broken.load(Ordering::Acquire)
    }

    /// It did not do as it should: nobody asks it any more.
    pub fn give_up(&self) {
        self.is_broken.store(true, Ordering::Release);
    }

    /// Asks for a process, which reports itself. Never waits.
    pub fn ask(&self, gifts: &Gifts<'_>) -> Result<()> {
        let mut fds = gifts.streams.to_vec();
        fds.extend([gifts.report, gifts.target]);
        fds.extend(gifts.cgroup);
        send(&self.socket, &fds)
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        let _ = sys::pidfd_send_signal(self.child.pidfd.as_fd(), libc::SIGKILL);
    }
}

/// What is done already for whoever is born here.
pub struct Inheritance {
    pub capabilities: capability::Set,
    pass: u64,
}

impl Inheritance {
    /// All that is the same for processes with Docker's capabilities. The caller has it from here on, too.
    fn take() -> Result<Self> {
        let capabilities = capability::Set::docker_default();
        let pass = u64::from_ne_bytes(sys::random().what("get random bytes")?);
        sys::install_seccomp(&seccomp::program_with_pass(capabilities, pass)).what("install the seccomp filter")?;
        capabilities.bound()?;
        Ok(Self { capabilities, pass })
    }
}

pub fn setns(target: &OwnedFd, namespaces: i32, inheritance: Option<&Inheritance>) -> std::io::Result<()> {
    sys::setns_with(target.as_fd(), namespaces, inheritance.map_or(0, |it| it.pass))
}

/// The nursery itself. Returns the status to exit with: its own when the agent has gone, or that of what it bore.
pub fn main(is_plain: bool) -> i32 {
    init::seclude();
    let Ok(socket) = sys::inherited(init::SOCKET).map(UnixStream::from) else { return 125 };
    let Ok(inheritance) = (!is_plain).then(Inheritance::take).transpose() else { return 125 };
    if (&socket).write_all(b"r").is_err() {
        return 125;
    }
    loop {
        let Ok(fds) = receive(&socket) else { return 0 };
        match deliver(fds, inheritance.as_ref()) {
            Ok(None) => {}
            Ok(Some((report, target))) => {
                drop(socket);
                return init::be_born(report, &target, inheritance);
            }
            Err(_) => return 0,
        }
    }
}

/// Returns twice; in the child with what it needs further. Where nobody can be born, that is reported in its stead.
fn deliver(fds: Vec<OwnedFd>, inheritance: Option<&Inheritance>) -> Result<Option<(UnixStream, OwnedFd)>> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| Error::internal("a descriptor is missing"));
    let streams = [next()?, next()?, next()?];
    let (report, target) = (UnixStream::from(next()?), next()?);
    let cgroup = fds.next();
    // For children alone: it stays where it is itself.
    let born = setns(&target, libc::CLONE_NEWPID, inheritance)
        .and_then(|()| sys::fork_sibling(cgroup.as_ref().map(AsFd::as_fd), inheritance.map_or(0, |it| it.pass)));
    match born {
        Ok(false) => Ok(None),
        Ok(true) => {
            let taken = rustix::stdio::dup2_stdin(&streams[0])
                .and_then(|()| rustix::stdio::dup2_stdout(&streams[1]))
                .and_then(|()| rustix::stdio::dup2_stderr(&streams[2]));
            if taken.is_err() {
                std::process::exit(125);
            }
            Ok(Some((report, target)))
        }
        Err(_) => {
            let _ = (&report).write_all(&NOBODY);
            Ok(None)
        }
    }
}

fn send(socket: &UnixStream, fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(fds));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(b"b")], &mut control, flags).what("send descriptors")?;
    Ok(())
}

/// What came with the next message; an error at the end of the connection.
fn receive(socket: &UnixStream) -> Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0];
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut word)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })
    .what("receive descriptors")?;
    if got.bytes != 1 {
        return Err(Error::internal("the other end has gone"));
    }
    let mut fds = Vec::with_capacity(MAX_FDS);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(fds)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[test]
    fn nobody_waits_while_one_is_being_opened_but_who_has_to_have_it() {
        let place = Arc::new(Place::default());
        let (asking, opened) = (place.clone(), std::cell::Cell::new(false));
        let told = place.require(|| {
            opened.set(true);
            let (tell, heard) = mpsc::channel();
            std::thread::spawn(move || {
                let second = asking.offer(|| Err(Error::internal("opened twice at once")));
                tell.send((asking.find().is_none(), second)).unwrap();
            });
            assert_eq!(heard.recv_timeout(DEADLINE).unwrap(), (true, Ok(())));
            Err(Error::internal("this one cannot"))
        });
        assert!(told.is_err() && opened.get());
        assert!(place.offer(|| Err(Error::internal("tried again"))).is_err());
    }
}
