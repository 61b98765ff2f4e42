// SPDX-License-Identifier: Apache-2.0
//! One process of a container as the agent holds it: born, ready, started, exited.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::birth::{Newborn, Report};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::init;
use crate::proto::{ExitStatus, ProcessStatus, Stream, TerminalSize};
use crate::stdio::{self, Input, Output};
use crate::{sys, terminal};

const MAX_REPORT: usize = 64 * 1024;

pub struct Process {
    pub id: String,
    pub pid: u32,
    pub pidfd: OwnedFd,
    pub output: Arc<Output>,
    pub input: Input,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    /// Of one that waits for its start.
    go: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    /// True once it executes the user's program, or never will.
    settled: watch::Sender<Option<bool>>,
    exit: watch::Sender<Option<ExitStatus>>,
}

impl Process {
    /// Takes the newborn into the runtime's care: streams, report, exit.
    pub fn adopt(id: String, newborn: Newborn, cgroup: Option<Arc<Cgroup>>) -> Result<Arc<Self>> {
        let Newborn { child, report, stdin, outputs, master } = newborn;
        // One that was born by the nursery goes on by itself.
        let (report, go) = match report {
            Report::Fresh(socket) => {
                let report = Arc::new(sys::watch(socket, Interest::READABLE).what("watch the report")?);
                (report.clone(), Some(report))
            }
            Report::Watched(report) => (report, None),
        };
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
            go: Mutex::new(go),
            settled: watch::Sender::new(None),
            exit: watch::Sender::new(None),
        });
        let kills_before = cgroup.as_ref().map_or(0, |group| group.oom_kills());
        let watched = process.clone();
        tokio::spawn(async move {
            let refusal = read_refusal(&report).await;
            drop(report);
            watched.settled.send_replace(Some(refusal.is_some()));
            let status = child.exited.await.unwrap_or(0);
            let oom_killed = cgroup.is_some_and(|group| group.oom_kills() > kills_before);
            watched.exit.send_replace(Some(exit_status(status, refusal, oom_killed)));
        });
        Ok(process)
    }

    /// Lets it execve, and waits until it did or could not: `Some` says why.
    pub async fn start(&self) -> Result<Option<ExitStatus>> {
        let go = self.go.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(go) = go {
            // A child that died meanwhile, or does not wait, is told by its exit.
            let _ = rustix::net::send(go.get_ref(), b"g", SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
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
async fn read_refusal(report: &AsyncFd<OwnedFd>) -> Option<init::Report> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 512]);
    loop {
        let mut ready = report.readable().await.ok()?;
        match rustix::net::recv(report.get_ref(), &mut piece, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => break,
            Ok((_, length)) if bytes.len() + length <= MAX_REPORT => bytes.extend_from_slice(&piece[..length]),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            // One that was killed with something unread.
            Ok(_) | Err(_) => break,
        }
    }
    <init::Report as prost::Message>::decode(bytes.get(4..)?).ok()
}

fn exit_status(status: i32, refusal: Option<init::Report>, oom_killed: bool) -> ExitStatus {
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
