// SPDX-License-Identifier: Apache-2.0
//! A process that gives birth to exec'd ones: the agent's own binary, run once, with one thread and all that is the same
//! for each of them done already. It forks where the agent, which has threads, would have to be executed anew; an emulated
//! CPU needs as long for that as for the user's program.
//!
//!     agent --streams, report, container, cgroup--> nursery --pid, pidfd--> agent
//!
//! What it bears is a child of the agent's (CLONE_PARENT), in the container's pid namespace and cgroup from its first moment.
//! It reads no configuration: nothing of one exec'd process is in the memory of another.

use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use crate::capability;
use crate::error::{Context, Error, Result};
use crate::init;
use crate::reaper::{Child, Reaper};
use crate::{seccomp, sys};

pub const ARGUMENT: &str = "container-nursery";
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Standard streams, report, the container's first process, its cgroup.
const MAX_FDS: usize = 6;

pub struct Nursery {
    child: Child,
    /// One question at a time.
    socket: Mutex<UnixStream>,
    /// It did not answer as it should, and what it says next may be of what it was asked then.
    is_broken: AtomicBool,
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
    pub fn open(reaper: &Reaper) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().what("socketpair")?;
        let null =
            rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).what("open /dev/null")?;
        let number = null.as_raw_fd();
        let spawn = sys::Spawn {
            program: c"/proc/self/exe",
            argv: &[CString::from(c"hyper-agent"), CString::new(ARGUMENT).map_err(|_| Error::internal("argv"))?],
            fds: &[(number, 0), (number, 1), (number, 2), (theirs.as_raw_fd(), init::SOCKET)],
            namespaces: 0,
            cgroup: None,
        };
        let child = reaper.spawn(&spawn).what("start the nursery")?;
        drop(theirs);
        ours.set_read_timeout(Some(ANSWER_DEADLINE)).what("set a deadline")?;
        let nursery = Self { child, socket: Mutex::new(ours), is_broken: AtomicBool::new(false) };
        nursery.lock().read_exact(&mut [0]).what("wait for the nursery")?;
        Ok(nursery)
    }

    pub fn works(&self) -> bool {
        !self.is_broken.load(Ordering::Acquire)
    }

    /// Blocking, one at a time. Whoever it fails for has a process executed instead.
    pub fn bear(&self, reaper: &Reaper, gifts: &Gifts<'_>) -> Result<Child> {
        reaper.register(|| {
            let mut fds = gifts.streams.to_vec();
            fds.extend([gifts.report, gifts.target]);
            fds.extend(gifts.cgroup);
            let socket = self.lock();
            if !self.works() {
                return Err(Error::internal("the nursery has failed meanwhile"));
            }
            let answer = ask(&socket, &fds).inspect_err(|_| self.is_broken.store(true, Ordering::Release))?;
            answer.ok_or_else(|| Error::internal("the nursery could not bear a process"))
        })
    }

    fn lock(&self) -> MutexGuard<'_, UnixStream> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ask(socket: &UnixStream, fds: &[BorrowedFd<'_>]) -> Result<Option<(u32, OwnedFd)>> {
    send(socket, b"b", fds)?;
    let mut pid = [0; 4];
    let received = receive(socket, &mut pid)?.into_iter().next();
    Ok(received.map(|pidfd| (u32::from_le_bytes(pid), pidfd)))
}

impl Drop for Nursery {
    fn drop(&mut self) {
        let _ = sys::pidfd_send_signal(self.child.pidfd.as_fd(), libc::SIGKILL);
    }
}

/// The nursery itself. Returns the status to exit with: its own when the agent has gone, or that of what it bore.
pub fn main() -> i32 {
    init::seclude();
    let Ok(socket) = sys::inherited(init::SOCKET).map(UnixStream::from) else { return 125 };
    let usual = seccomp::program(capability::Set::docker_default());
    if (&socket).write_all(b"r").is_err() {
        return 125;
    }
    loop {
        let mut word = [0];
        let Ok(fds) = receive(&socket, &mut word) else { return 0 };
        if word != *b"b" {
            return 0;
        }
        match deliver(fds) {
            Ok(Birth::Child(report, target)) => {
                drop(socket);
                return init::be_born(report, &target, usual);
            }
            Ok(Birth::Parent(pid, pidfd)) => {
                if send(&socket, &pid.to_le_bytes(), &[pidfd.as_fd()]).is_err() {
                    return 0;
                }
            }
            Err(_) => {
                if (&socket).write_all(&[0; 4]).is_err() {
                    return 0;
                }
            }
        }
    }
}

enum Birth {
    Child(UnixStream, OwnedFd),
    Parent(u32, OwnedFd),
}

/// Returns twice.
fn deliver(fds: Vec<OwnedFd>) -> Result<Birth> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| Error::internal("a descriptor is missing"));
    let streams = [next()?, next()?, next()?];
    let (report, target) = (next()?, next()?);
    let cgroup = next().ok();
    // For children alone: it stays where it is itself.
    sys::setns(target.as_fd(), libc::CLONE_NEWPID).what("join the container's pid namespace")?;
    match sys::fork_sibling(cgroup.as_ref().map(AsFd::as_fd)).what("fork")? {
        Some((pid, pidfd)) => Ok(Birth::Parent(pid, pidfd)),
        None => {
            let taken = rustix::stdio::dup2_stdin(&streams[0])
                .and_then(|()| rustix::stdio::dup2_stdout(&streams[1]))
                .and_then(|()| rustix::stdio::dup2_stderr(&streams[2]));
            if taken.is_err() {
                std::process::exit(125);
            }
            Ok(Birth::Child(UnixStream::from(report), target))
        }
    }
}

fn send(socket: &UnixStream, word: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(fds));
    rustix::net::sendmsg(socket, &[IoSlice::new(word)], &mut control, SendFlags::NOSIGNAL).what("send descriptors")?;
    Ok(())
}

/// A message and what came with it; an error at the end of the connection.
fn receive(socket: &UnixStream, word: &mut [u8]) -> Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let wanted = word.len();
    // With a deadline it is not restarted after a signal, and each child that ends is one.
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(word)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })
    .what("receive descriptors")?;
    if got.bytes != wanted {
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
