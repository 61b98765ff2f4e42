// SPDX-License-Identifier: Apache-2.0
//! Reaps every child, ours and those that a dead container left behind, and tells whoever waits.
//!
//! A child may be reaped before its birth has told its number. So while anybody is being born the statuses of those whom
//! nobody waits for are kept, and no birth, which may take seconds, keeps the reaper waiting.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;
use tokio::sync::oneshot;

use crate::error::{Context, Error, Result};
use crate::{init, sys};

/// Of one signal: a signal that is pending comes but once, however many have ended.
const SIGNAL_BYTES: usize = size_of::<libc::signalfd_siginfo>();

#[derive(Clone, Default)]
pub struct Reaper {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u32, oneshot::Sender<i32>>,
    /// Under way.
    births: u32,
    /// By number, of which there are no more than the kernel has; empty while nobody is being born.
    unclaimed: HashMap<u32, i32>,
}

pub struct Child {
    pub pid: u32,
    pub pidfd: OwnedFd,
    /// Resolves to the wait(2) status.
    pub exited: oneshot::Receiver<i32>,
}

impl Reaper {
    pub fn spawn(&self, spec: &sys::Spawn<'_>) -> std::io::Result<Child> {
        self.register(|| sys::spawn(spec))
    }

    /// This program once more, as what `argument` says, and our end of the socket that is all it has of us. Its standard
    /// streams are nowhere.
    pub fn spawn_self(
        &self,
        argument: &str,
        namespaces: u64,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair().what("socketpair")?;
        let null =
            rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).what("open /dev/null")?;
        let number = null.as_raw_fd();
        let child = self.spawn(&sys::Spawn {
            program: c"/proc/self/exe",
            argv: &[CString::from(c"hyper-agent"), CString::new(argument).map_err(|_| Error::internal("argv"))?],
            fds: &[(number, 0), (number, 1), (number, 2), (theirs.as_raw_fd(), init::SOCKET)],
            namespaces,
            cgroup,
        });
        Ok((child.what("start the agent's program again")?, ours))
    }

    /// Of a child that `birth` makes, in whatever way.
    pub fn register<E>(
        &self,
        birth: impl FnOnce() -> std::result::Result<(u32, OwnedFd), E>,
    ) -> std::result::Result<Child, E> {
        let expected = self.expect();
        birth().map(|(pid, pidfd)| expected.claim(pid, pidfd))
    }

    /// Somebody is being born from here on.
    pub fn expect(&self) -> Expected {
        self.lock().births += 1;
        Expected { reaper: self.clone() }
    }

    /// `signals`: of [`sys::child_signals`].
    pub async fn run(self, signals: OwnedFd) -> std::io::Result<()> {
        let signals = sys::watch(signals, Interest::READABLE)?;
        let mut ignored = [0; SIGNAL_BYTES];
        loop {
            self.reap_all(sys::reap);
            let mut ready = signals.readable().await?;
            match rustix::io::read(signals.get_ref(), &mut ignored) {
                Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => ready.clear_ready(),
                Err(cause) => return Err(cause.into()),
            }
        }
    }

    fn reap_all(&self, mut reap: impl FnMut() -> Option<(u32, i32)>) {
        let mut state = self.lock();
        while let Some((pid, status)) = reap() {
            if let Some(sender) = state.waiting.remove(&pid) {
                let _ = sender.send(status);
            } else if state.births > 0 {
                state.unclaimed.insert(pid, status);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A birth under way; dropped, it came to nothing.
pub struct Expected {
    reaper: Reaper,
}

impl Expected {
    pub fn claim(self, pid: u32, pidfd: OwnedFd) -> Child {
        let (sender, exited) = oneshot::channel();
        let mut state = self.reaper.lock();
        match state.unclaimed.remove(&pid) {
            Some(status) if is_reaped(&pidfd) => drop(sender.send(status)),
            // Another one's, who had the number before.
            _ => drop(state.waiting.insert(pid, sender)),
        }
        Child { pid, pidfd, exited }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut state = self.reaper.lock();
        state.births -= 1;
        if state.births == 0 && !state.unclaimed.is_empty() {
            state.unclaimed = HashMap::new();
        }
    }
}

fn is_reaped(pidfd: &OwnedFd) -> bool {
    sys::pidfd_send_signal(pidfd.as_fd(), 0).is_err_and(|cause| cause.raw_os_error() == Some(libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    fn handle(child: &std::process::Child) -> (u32, OwnedFd) {
        let pid = rustix::process::Pid::from_child(child);
        (child.id(), rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap())
    }

    fn reaped(reaper: &Reaper, pid: u32, status: i32) {
        let mut found = vec![(pid, status)];
        reaper.reap_all(|| found.pop());
    }

    #[test]
    fn who_is_reaped_before_its_birth_is_told_is_not_missed() {
        let reaper = Reaper::default();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let mut born = reaper
            .register(|| {
                let handle = handle(&child);
                child.wait().unwrap();
                reaped(&reaper, child.id(), 7);
                Ok::<_, Infallible>(handle)
            })
            .unwrap();
        assert_eq!(born.exited.try_recv(), Ok(7));
        assert!(reaper.lock().unclaimed.is_empty());
    }

    #[test]
    fn a_status_of_who_had_the_number_before_is_not_ours() {
        let reaper = Reaper::default();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let mut born = reaper
            .register(|| {
                reaped(&reaper, child.id(), 7);
                Ok::<_, Infallible>(handle(&child))
            })
            .unwrap();
        assert_eq!(born.exited.try_recv(), Err(TryRecvError::Empty));
        child.kill().unwrap();
        child.wait().unwrap();
        reaped(&reaper, child.id(), 9);
        assert_eq!(born.exited.try_recv(), Ok(9));
    }

    #[test]
    fn the_dead_whom_nobody_waits_for_are_not_kept() {
        let reaper = Reaper::default();
        reaped(&reaper, 5, 0);
        assert!(reaper.lock().unclaimed.is_empty());
        let failed = reaper.register(|| {
            reaped(&reaper, 6, 0);
            Err(())
        });
        assert!(failed.is_err() && reaper.lock().unclaimed.is_empty());
    }
}
