// SPDX-License-Identifier: Apache-2.0
//! What the agent knows: the containers by id, whether the guest stands still. What is asked of it comes by `rpc`,
//! `streams` and `archive`; containers come and go in `making`, and `upkeep` is about all of the guest.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{RwLock, RwLockReadGuard};

use crate::bounds::check_id;
use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::files::Files;
use crate::freeze::Frozen;
use crate::guest::Identity;
use crate::opened::Opened;
use crate::power::Power;
use crate::process::Process;
use crate::proto::*;
use crate::still::StillVolumes;
use crate::workshop::Workshop;

const MAX_CONTAINERS: usize = 256;

#[derive(Clone)]
pub struct Agent {
    pub inner: Arc<Inner>,
}

pub struct Inner {
    pub workshop: Arc<Workshop>,
    pub identity: Arc<Identity>,
    pub power: Power,
    containers: Mutex<HashMap<String, Slot>>,
    /// Read by whatever makes or ends processes, for as long as it takes; `Some` while the guest stands still.
    pub frozen: RwLock<Option<Still>>,
    pub still: StillVolumes,
}

pub type Still = Arc<Mutex<Frozen>>;

/// An id is taken from the moment its container is asked for until it is gone.
pub enum Slot {
    Busy,
    Ready(Arc<Container>),
    Opened(Arc<Opened>),
}

impl Agent {
    pub fn new(workshop: Workshop, identity: Identity, power: Power) -> Self {
        let inner = Inner {
            workshop: Arc::new(workshop),
            identity: Arc::new(identity),
            power,
            containers: Mutex::default(),
            frozen: RwLock::default(),
            still: StillVolumes::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub fn containers(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.inner.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        match self.containers().get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            Some(Slot::Busy) => Err(Error::wrong_state(format!("container {id} is being made or deleted"))),
            Some(Slot::Opened(_)) => Err(Error::wrong_state(format!("of container {id} only the files are there"))),
            None => Err(Error::not_found(format!("no container {id}"))),
        }
    }

    pub fn opened(&self, id: &str) -> Option<Arc<Opened>> {
        match self.containers().get(id) {
            Some(Slot::Opened(opened)) => Some(opened.clone()),
            _ => None,
        }
    }

    /// What archives are made of, and who runs there.
    pub fn files(&self, id: &str) -> Result<(Arc<Files>, Option<Arc<Container>>)> {
        if let Some(opened) = self.opened(id) {
            return Ok((opened.archived.clone(), None));
        }
        let container = self.container(id)?;
        Ok((container.archived.clone(), Some(container)))
    }

    /// Fails while the guest stands still: what writes then would hang.
    pub fn check_moving(&self) -> Result<()> {
        self.moving().map(drop)
    }

    pub fn workshop(&self) -> Arc<Workshop> {
        self.inner.workshop.clone()
    }

    /// Takes the id.
    pub fn reserve(&self, id: &str) -> Result<()> {
        let mut containers = self.containers();
        if containers.contains_key(id) {
            return Err(Error::new(Kind::Exists, format!("container {id} exists")));
        }
        if containers.len() >= MAX_CONTAINERS {
            return Err(Error::new(Kind::Exhausted, format!("the guest has {MAX_CONTAINERS} containers")));
        }
        containers.insert(id.to_owned(), Slot::Busy);
        Ok(())
    }

    /// Runs to its end when the caller hangs up; what nobody has claimed then is ended.
    pub async fn exec(&self, request: ExecProcessRequest) -> Result<Unclaimed> {
        check_id("process", &request.process_id)?;
        let spec = request.process.ok_or_else(|| Error::invalid("no process given"))?;
        let (agent, container) = (self.clone(), self.container(&request.container_id)?);
        to_the_end(async move {
            let _moving = agent.moving()?;
            let process = container.exec(&agent.inner.workshop, &request.process_id, spec).await?;
            Ok(Unclaimed { container, process: Some(process) })
        })
        .await
    }

    /// Of a process that has exited; of one that nobody knows, too.
    pub fn forget(&self, container: &str, process: &str) -> Result<()> {
        match self.container(container) {
            Err(error) if error.kind == Kind::NotFound => Ok(()),
            container => container?.forget(process),
        }
    }

    pub fn process(&self, container: &str, process: &str) -> Result<Arc<Process>> {
        self.container(container)?.process(process)
    }

    /// Nothing is made or ended while the guest stands still.
    pub fn moving(&self) -> Result<RwLockReadGuard<'_, Option<Still>>> {
        match self.inner.frozen.try_read() {
            Ok(frozen) if frozen.is_none() => Ok(frozen),
            _ => Err(Error::wrong_state("the guest is frozen")),
        }
    }

    pub fn ready(&self) -> Vec<Arc<Container>> {
        let containers = self.containers();
        containers
            .values()
            .filter_map(|slot| if let Slot::Ready(container) = slot { Some(container.clone()) } else { None })
            .collect()
    }
}

/// Executed, and its caller was not told yet. One whose caller has gone is known to nobody: dropped, it is killed, and
/// forgotten when it has ended.
pub struct Unclaimed {
    container: Arc<Container>,
    process: Option<Arc<Process>>,
}

impl Unclaimed {
    pub fn claim(mut self) -> Result<Arc<Process>> {
        self.process.take().ok_or_else(|| Error::internal("a process is claimed once"))
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else { return };
        let container = self.container.clone();
        crate::warn!("process {} of container {} ends: who asked for it has gone", process.id, container.id);
        tokio::spawn(async move {
            let ended = process.signal(libc::SIGKILL).map(drop);
            let ended = ended.and(process.wait().await).and_then(|_| container.forget(&process.id));
            if let Err(error) = ended {
                crate::warn!("{error}");
            }
        });
    }
}

/// Runs on when the caller hangs up.
pub async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Error::internal("a call's task panicked")))
}
