// SPDX-License-Identifier: Apache-2.0
//! A container's files as archives need them: its root as its processes see it, and what its overlay is made of. Whoever
//! works on them has a [`Pass`]; closing calls all of them back and waits until they have let go.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};

use crate::error::{Context, Error, Result};

const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

pub struct Files {
    /// Kept though it is attached elsewhere: it is the same mount, with all that is mounted on it.
    root: Mutex<Option<Arc<OwnedFd>>>,
    pub layers: Layers,
    closing: watch::Sender<bool>,
    users: Arc<RwLock<()>>,
}

/// Directories in the agent's own namespace, where nothing is mounted on them.
#[derive(Clone, Default)]
pub struct Layers {
    /// `None`: nothing can be changed.
    pub upper: Option<PathBuf>,
    /// Of the image, the topmost first.
    pub lower: Vec<PathBuf>,
}

/// Keeps the files there for as long as it exists.
pub struct Pass {
    pub root: Arc<OwnedFd>,
    /// True: let go.
    pub closing: watch::Receiver<bool>,
    _using: OwnedRwLockReadGuard<()>,
}

impl Files {
    pub fn new(root: OwnedFd, layers: Layers) -> Self {
        Self {
            root: Mutex::new(Some(Arc::new(root))),
            layers,
            closing: watch::Sender::new(false),
            users: Arc::default(),
        }
    }

    pub fn enter(&self) -> Result<Pass> {
        let gone = || Error::wrong_state("the container is being deleted");
        let using = self.users.clone().try_read_owned().map_err(|_| gone())?;
        let root = self.root.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(gone)?;
        let closing = self.closing.subscribe();
        if *closing.borrow() {
            return Err(gone());
        }
        Ok(Pass { root, closing, _using: using })
    }

    /// Lets go of the root, so that its disks can be unmounted.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        if tokio::time::timeout(CLOSE_DEADLINE, self.users.write()).await.is_err() {
            crate::warn!("an archive of a container does not end");
        }
        *self.root.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Layers {
    pub fn open_upper(&self) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path| rustix::fs::open(path, flags, Mode::empty()).what("open the upper directory");
        self.upper.as_ref().map(open).transpose()
    }
}
