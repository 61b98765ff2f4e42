// SPDX-License-Identifier: Apache-2.0
//! Reaps every child, ours and those that a dead container left behind, and tells whoever waits.
//! A child is registered under the same lock under which it is born, so that it cannot be reaped unseen.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::sys;

#[derive(Clone, Default)]
pub struct Reaper {
    waiting: Arc<Mutex<HashMap<u32, oneshot::Sender<i32>>>>,
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

    /// Of a child that `birth` makes, in whatever way.
    pub fn register<E>(
        &self,
        birth: impl FnOnce() -> std::result::Result<(u32, OwnedFd), E>,
    ) -> std::result::Result<Child, E> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (pid, pidfd) = birth()?;
        let (sender, exited) = oneshot::channel();
        waiting.insert(pid, sender);
        Ok(Child { pid, pidfd, exited })
    }

    pub async fn run(self) -> std::io::Result<()> {
        let mut signals = signal(SignalKind::child())?;
        loop {
            self.reap_all();
            if signals.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    fn reap_all(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((pid, status)) = sys::reap() {
            if let Some(sender) = waiting.remove(&pid) {
                let _ = sender.send(status);
            }
        }
    }
}
