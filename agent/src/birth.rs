// SPDX-License-Identifier: Apache-2.0
//! How a process comes to be: container-init, executed anew or waiting already, is told what it is to become and says that
//! it is ready. All of it blocks; see `nursing` for the way that does not.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use tokio::io::unix::AsyncFd;

use crate::error::{Context, Error, Kind, Result};
use crate::init::{self, Config};
use crate::proto::{ProcessSpec, Stream};
use crate::reaper::{Child, Reaper};
use crate::spare::Spare;
use crate::{sys, terminal};

/// From birth to ready: mounts, no user code. Slow machines under emulation included.
pub const READY_DEADLINE: Duration = Duration::from_secs(30);
/// Where a process is born.
pub struct Birth<'a> {
    /// CLONE_NEW*
    pub namespaces: u64,
    /// Namespaces to be born into, besides: a process's handle and CLONE_NEWPID or CLONE_NEWIPC.
    pub join: Vec<(BorrowedFd<'a>, i32)>,
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Handed to container-init under this number.
    pub handle: (BorrowedFd<'a>, i32),
}

/// Born and waiting (or already running, where the configuration says so); not yet watched.
pub struct Newborn {
    pub child: Child,
    pub report: Report,
    pub stdin: Option<OwnedFd>,
    pub outputs: Vec<(Stream, OwnedFd)>,
    pub master: Option<OwnedFd>,
}

/// The socket on which it said that it is ready, and says why it is not executed; its end says that it is.
pub enum Report {
    Fresh(OwnedFd),
    Watched(Arc<AsyncFd<OwnedFd>>),
}

/// Of a process: pipes, or /dev/null, or nothing yet where it gets a terminal.
pub struct Streams {
    pub stdin: Option<OwnedFd>,
    pub outputs: Vec<(Stream, OwnedFd)>,
    theirs: [OwnedFd; 3],
}

impl Streams {
    pub fn open(spec: &ProcessSpec) -> Result<Self> {
        let null =
            || rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).what("open /dev/null");
        let (mut stdin, mut outputs) = (None, Vec::new());
        if spec.terminal {
            return Ok(Self { stdin, outputs, theirs: [null()?, null()?, null()?] });
        }
        let input = if spec.stdin {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).what("pipe")?;
            stdin = Some(write);
            read
        } else {
            null()?
        };
        let mut output = |stream| {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).what("pipe")?;
            outputs.push((stream, read));
            Ok(write)
        };
        let theirs = [input, output(Stream::Stdout)?, output(Stream::Stderr)?];
        Ok(Self { stdin, outputs, theirs })
    }

    /// The process's ends.
    pub fn theirs(&self) -> [BorrowedFd<'_>; 3] {
        let [input, output, error] = &self.theirs;
        [input.as_fd(), output.as_fd(), error.as_fd()]
    }

    /// Ours alone.
    pub fn keep(self) -> (Option<OwnedFd>, Vec<(Stream, OwnedFd)>) {
        (self.stdin, self.outputs)
    }
}

/// Blocking; everything it opened is gone again when it fails, the child included. `spare`: who is born already.
pub fn bear(reaper: &Reaper, config: &Config, birth: &Birth<'_>, spare: Option<Spare>) -> Result<Newborn> {
    let spec = config.process.clone().unwrap_or_default();
    let streams = Streams::open(&spec)?;
    let dressed = spare.and_then(|spare| spare.dress(streams.theirs(), birth.handle.0));
    let (child, ours) = dressed.map_or_else(|| spawn_new(reaper, birth, streams.theirs()), Ok)?;
    let (stdin, outputs) = streams.keep();

    let ready = init::write_message(&ours, config)
        .map_err(|cause| Error::internal(format!("send the configuration: {cause}")))
        .and_then(|()| wait_ready(&ours, spec.terminal));
    match ready {
        Ok(master) => Ok(Newborn { child, report: Report::Fresh(ours.into()), stdin, outputs, master }),
        Err(error) => {
            let _ = sys::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL);
            Err(error)
        }
    }
}

fn spawn_new(reaper: &Reaper, birth: &Birth<'_>, streams: [BorrowedFd<'_>; 3]) -> Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair().what("socketpair")?;
    let fds: [(RawFd, RawFd); 5] = [
        (streams[0].as_raw_fd(), 0),
        (streams[1].as_raw_fd(), 1),
        (streams[2].as_raw_fd(), 2),
        (theirs.as_raw_fd(), init::SOCKET),
        (birth.handle.0.as_raw_fd(), birth.handle.1),
    ];
    let argv = [CString::from(c"hyper-agent"), CString::new(init::ARGUMENT).map_err(|_| Error::internal("argv"))?];
    let spawn = sys::Spawn {
        program: c"/proc/self/exe",
        argv: &argv,
        fds: &fds,
        namespaces: birth.namespaces,
        cgroup: birth.cgroup,
    };
    let child = spawn_in(reaper, &spawn, &birth.join)?;
    Ok((child, ours))
}

/// A thread of its own enters the namespaces, so that only what it gives birth to is there.
fn spawn_in(reaper: &Reaper, spawn: &sys::Spawn<'_>, join: &[(BorrowedFd<'_>, i32)]) -> Result<Child> {
    if join.is_empty() {
        return reaper.spawn(spawn).what("start container-init");
    }
    std::thread::scope(|scope| {
        let born = scope.spawn(|| {
            for &(target, namespaces) in join {
                sys::setns(target, namespaces).what("join the container's namespaces")?;
            }
            reaper.spawn(spawn).what("start container-init")
        });
        born.join().unwrap_or_else(|_| Err(Error::internal("the thread that starts processes panicked")))
    })
}

fn wait_ready(socket: &UnixStream, wants_terminal: bool) -> Result<Option<OwnedFd>> {
    socket.set_read_timeout(Some(READY_DEADLINE)).what("set a deadline")?;
    let late = |cause: std::io::Error| match cause.kind() {
        std::io::ErrorKind::WouldBlock => late(),
        std::io::ErrorKind::UnexpectedEof => Error::internal("container-init died before it was ready"),
        _ => Error::internal(format!("container-init: {cause}")),
    };
    let (mut master, mut begun) = (None, None);
    if wants_terminal {
        match terminal::receive(socket).map_err(late)? {
            Ok(fd) => master = Some(fd),
            Err(byte) => begun = Some(byte),
        }
    }
    init::read_message::<init::Report>(socket, begun).map_err(late)?.check()?;
    Ok(master)
}

pub fn late() -> Error {
    Error::new(Kind::TimedOut, format!("container-init was not ready within {} s", READY_DEADLINE.as_secs()))
}
