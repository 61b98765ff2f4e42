// SPDX-License-Identifier: Apache-2.0
//! One process of a container as the agent holds it: born, ready, started, exited.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::sync::watch;

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::init::{self, Config, Report};
use crate::nursery::{Gifts, Nursery};
use crate::proto::{ExitStatus, ProcessStatus, Stream, TerminalSize};
use crate::reaper::{Child, Reaper};
use crate::spare::Spare;
use crate::stdio::{self, Input, Output};
use crate::{sys, terminal};

/// From birth to ready: mounts, no user code. Slow machines under emulation included.
const READY_DEADLINE: Duration = Duration::from_secs(30);
const MAX_REPORT: u64 = 64 * 1024;

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
    child: Child,
    socket: UnixStream,
    stdin: Option<OwnedFd>,
    outputs: Vec<(Stream, OwnedFd)>,
    master: Option<OwnedFd>,
}

/// Who need not be executed anew.
pub enum Ahead<'a> {
    Nobody,
    /// Born already.
    Spare(Spare),
    /// Bears further processes of containers that run.
    Nursery(&'a Nursery),
}

/// Blocking; everything it opened is gone again when it fails, the child included.
pub fn bear(reaper: &Reaper, config: &Config, birth: &Birth<'_>, ahead: Ahead<'_>) -> Result<Newborn> {
    let spec = config.process.clone().unwrap_or_default();
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).what("open /dev/null")?;
    let mut ends = [null.as_raw_fd(); 3];
    let (mut stdin, mut outputs, mut child_ends) = (None, Vec::new(), Vec::new());
    if !spec.terminal {
        if spec.stdin {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).what("pipe")?;
            ends[0] = read.as_raw_fd();
            child_ends.push(read);
            stdin = Some(write);
        }
        for (number, stream) in [(1, Stream::Stdout), (2, Stream::Stderr)] {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).what("pipe")?;
            ends[number] = write.as_raw_fd();
            child_ends.push(write);
            outputs.push((stream, read));
        }
    }
    let end = |number: usize| child_ends.iter().find(|end| end.as_raw_fd() == ends[number]).unwrap_or(&null).as_fd();
    let streams = [end(0), end(1), end(2)];
    let quick = match ahead {
        Ahead::Nobody => None,
        Ahead::Spare(spare) => spare.dress(streams, birth.handle.0),
        Ahead::Nursery(nursery) => nurse(reaper, nursery, birth, streams),
    };
    let (child, ours) = quick.map_or_else(|| spawn_new(reaper, birth, ends), Ok)?;
    drop(child_ends);

    let ready = init::write_message(&ours, config)
        .map_err(|cause| Error::internal(format!("send the configuration: {cause}")))
        .and_then(|()| wait_ready(&ours, spec.terminal));
    match ready {
        Ok(master) => Ok(Newborn { child, socket: ours, stdin, outputs, master }),
        Err(error) => {
            let _ = sys::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL);
            Err(error)
        }
    }
}

/// None when it cannot: then there is another way.
fn nurse(
    reaper: &Reaper,
    nursery: &Nursery,
    birth: &Birth<'_>,
    streams: [BorrowedFd<'_>; 3],
) -> Option<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair().ok()?;
    let gifts = Gifts { streams, report: theirs.as_fd(), target: birth.handle.0, cgroup: birth.cgroup };
    match nursery.bear(reaper, &gifts) {
        Ok(child) => Some((child, ours)),
        Err(error) => {
            crate::warn!("{error}");
            None
        }
    }
}

fn spawn_new(reaper: &Reaper, birth: &Birth<'_>, ends: [RawFd; 3]) -> Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair().what("socketpair")?;
    let fds: [(RawFd, RawFd); 5] = [
        (ends[0], 0),
        (ends[1], 1),
        (ends[2], 2),
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
        std::io::ErrorKind::WouldBlock => {
            Error::new(Kind::TimedOut, format!("container-init was not ready within {} s", READY_DEADLINE.as_secs()))
        }
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
    let report: Report = init::read_message(socket, begun).map_err(late)?;
    match (report.ready, report.invalid) {
        (true, _) => Ok(master),
        (false, true) => Err(Error::invalid(report.message)),
        (false, false) => Err(Error::internal(report.message)),
    }
}

pub struct Process {
    pub id: String,
    pub pid: u32,
    pub pidfd: OwnedFd,
    pub output: Arc<Output>,
    pub input: Input,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    go: tokio::sync::Mutex<Option<tokio::net::unix::OwnedWriteHalf>>,
    /// True once it executes the user's program, or never will.
    settled: watch::Sender<Option<bool>>,
    exit: watch::Sender<Option<ExitStatus>>,
}

impl Process {
    /// Takes the newborn into the runtime's care: streams, report, exit.
    pub fn adopt(id: String, newborn: Newborn, cgroup: Option<Arc<Cgroup>>) -> Result<Arc<Self>> {
        let Newborn { child, socket, stdin, outputs, master } = newborn;
        socket.set_nonblocking(true).what("report socket")?;
        let (report, go) = tokio::net::UnixStream::from_std(socket).what("report socket")?.into_split();
        let master = master
            .map(|fd| stdio::watched(fd, Interest::READABLE | Interest::WRITABLE))
            .transpose()
            .what("watch the terminal")?;
        let sink = match (&master, stdin) {
            (Some(master), _) => Some(master.clone()),
            (None, Some(pipe)) => Some(stdio::watched(pipe, Interest::WRITABLE).what("watch standard input")?),
            (None, None) => None,
        };
        let mut sources = Vec::new();
        for (stream, pipe) in outputs {
            sources.push((stream, stdio::watched(pipe, Interest::READABLE).what("watch an output")?));
        }
        sources.extend(master.clone().map(|master| (Stream::Stdout, master)));
        let output = Output::new(sources.len() as u32);
        for (stream, source) in sources {
            tokio::spawn(output.clone().pump(stream, source));
        }
        let process = Arc::new(Self {
            id,
            pid: child.pid,
            pidfd: child.pidfd,
            output,
            input: Input::new(sink, master.is_some()),
            terminal: master,
            go: tokio::sync::Mutex::new(Some(go)),
            settled: watch::Sender::new(None),
            exit: watch::Sender::new(None),
        });
        let kills_before = cgroup.as_ref().map_or(0, |group| group.oom_kills());
        let watched = process.clone();
        tokio::spawn(async move {
            let refusal = read_refusal(report).await;
            watched.settled.send_replace(Some(refusal.is_some()));
            let status = child.exited.await.unwrap_or(0);
            let oom_killed = cgroup.is_some_and(|group| group.oom_kills() > kills_before);
            watched.exit.send_replace(Some(exit_status(status, refusal, oom_killed)));
        });
        Ok(process)
    }

    /// Lets it execve, and waits until it did or could not: `Some` says why.
    pub async fn start(&self) -> Result<Option<ExitStatus>> {
        if let Some(go) = self.go.lock().await.take() {
            // A child that died meanwhile is told by its exit.
            let _ = go.try_write(b"g");
        }
        let mut settled = self.settled.subscribe();
        let refused = settled.wait_for(Option::is_some).await.is_ok_and(|settled| *settled == Some(true));
        if refused { self.wait().await.map(Some) } else { Ok(None) }
    }

    pub fn signal(&self, signal: i32) -> Result<bool> {
        if self.exit.borrow().is_some() {
            return Ok(false);
        }
        match sys::pidfd_send_signal(self.pidfd.as_fd(), signal) {
            Ok(()) => Ok(true),
            Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(cause) if cause.raw_os_error() == Some(libc::EINVAL) => {
                Err(Error::invalid(format!("no signal {signal}")))
            }
            Err(cause) => Err(cause).what(format_args!("send signal {signal}")),
        }
    }

    pub fn resize(&self, size: &TerminalSize) -> Result<()> {
        let Some(terminal) = &self.terminal else {
            return Err(Error::wrong_state("the process has no terminal"));
        };
        rustix::termios::tcsetwinsize(terminal.get_ref(), terminal::window(size)).what("size the terminal")
    }

    pub fn exit(&self) -> Option<ExitStatus> {
        self.exit.borrow().clone()
    }

    pub async fn wait(&self) -> Result<ExitStatus> {
        let mut exit = self.exit.subscribe();
        let status = exit.wait_for(Option::is_some).await.map_err(|_| Error::internal("nobody watches the process"))?;
        status.clone().ok_or_else(|| Error::internal("no status"))
    }

    pub fn status(&self) -> ProcessStatus {
        let exit = self.exit();
        ProcessStatus {
            process_id: self.id.clone(),
            pid: self.pid,
            running: exit.is_none(),
            exit,
            output_end_offset: self.output.end_offset(),
            output_start_offset: self.output.start_offset(),
        }
    }
}

/// What container-init said on its way out; nothing when the program was executed.
async fn read_refusal(report: tokio::net::unix::OwnedReadHalf) -> Option<Report> {
    let mut bytes = Vec::new();
    report.take(MAX_REPORT).read_to_end(&mut bytes).await.ok()?;
    <Report as prost::Message>::decode(bytes.get(4..)?).ok()
}

fn exit_status(status: i32, refusal: Option<Report>, oom_killed: bool) -> ExitStatus {
    let (mut code, signal) = sys::decode_status(status);
    let mut start_error = String::new();
    if let Some(refusal) = refusal {
        code = refusal.code;
        start_error = refusal.message;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ExitStatus {
        code,
        signal,
        oom_killed,
        exited_unix_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        start_error,
    }
}
