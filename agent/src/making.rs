// SPDX-License-Identifier: Apache-2.0
//! How containers, and roots that are opened for their files, come and go: the id is taken first, and given back last.

use std::sync::Arc;

use crate::blocking::blocking;
use crate::bounds::{check_create, check_id};
use crate::container::Container;
use crate::error::{Kind, Result};
use crate::files::Files;
use crate::opened::Opened;
use crate::proto::*;
use crate::service::{Agent, Slot};
use crate::workshop::Shared;

impl Agent {
    pub async fn create(self, request: CreateContainerRequest) -> Result<CreateContainerResponse> {
        let _moving = self.moving()?;
        check_create(&request)?;
        let id = request.container_id.clone();
        let isolation = request.isolation.clone().unwrap_or_default();
        let partner = |id: &str| if id.is_empty() { Ok(None) } else { self.container(id).map(Some) };
        let shared = Shared {
            pid: partner(&isolation.share_pid_with)?,
            ipc: partner(&isolation.share_ipc_with)?,
            names: partner(&isolation.share_names_with)?,
        };
        self.reserve(&id)?;
        let (workshop, identity) = (self.inner.workshop.clone(), self.inner.identity.clone());
        let made = blocking(move || workshop.make(request, &identity, &shared)).await;
        match made.and_then(|made| Container::adopt(id.clone(), isolation.privileged, made)) {
            Ok(container) => {
                let pid = container.process("")?.pid;
                self.containers().insert(id, Slot::Ready(container));
                Ok(CreateContainerResponse { pid })
            }
            Err(error) => {
                self.containers().remove(&id);
                Err(error)
            }
        }
    }

    pub async fn open_root(self, request: OpenRootRequest) -> Result<OpenRootResponse> {
        let _moving = self.moving()?;
        check_id("container", &request.container_id)?;
        let id = request.container_id;
        self.reserve(&id)?;
        let (workshop, name, root) = (self.inner.workshop.clone(), id.clone(), request.root.unwrap_or_default());
        let opened = blocking(move || workshop.open(name, root)).await;
        let mut containers = self.containers();
        match opened {
            Ok(opened) => {
                containers.insert(id, Slot::Opened(Arc::new(opened)));
                Ok(OpenRootResponse {})
            }
            Err(error) => {
                containers.remove(&id);
                Err(error)
            }
        }
    }

    pub async fn open_volume(self, request: OpenVolumeRequest) -> Result<OpenVolumeResponse> {
        let _moving = self.moving()?;
        check_id("container", &request.container_id)?;
        let id = request.container_id.clone();
        self.reserve(&id)?;
        let workshop = self.inner.workshop.clone();
        let opened = blocking(move || workshop.open_volume(&request)).await;
        let mut containers = self.containers();
        match opened {
            Ok(opened) => {
                containers.insert(id, Slot::Opened(Arc::new(opened)));
                Ok(OpenVolumeResponse {})
            }
            Err(error) => {
                containers.remove(&id);
                Err(error)
            }
        }
    }

    pub async fn close_root(self, opened: Arc<Opened>) -> Result<DeleteContainerResponse> {
        let _moving = self.moving()?;
        self.containers().insert(opened.id.clone(), Slot::Busy);
        let closed = opened.close().await;
        self.containers().remove(&opened.id);
        closed.map(|()| DeleteContainerResponse {})
    }

    pub async fn delete(self, id: String) -> Result<DeleteContainerResponse> {
        if let Some(opened) = self.opened(&id) {
            return self.close_root(opened).await;
        }
        let container = match self.container(&id) {
            Ok(container) => container,
            Err(error) if error.kind == Kind::NotFound => return Ok(DeleteContainerResponse {}),
            Err(error) => return Err(error),
        };
        let _moving = self.moving()?;
        self.containers().insert(id.clone(), Slot::Busy);
        let destroyed = container.destroy().await;
        match &destroyed {
            // Still alive: it must stay visible.
            Err(error) if error.kind == Kind::TimedOut => self.containers().insert(id, Slot::Ready(container)),
            _ => self.containers().remove(&id),
        };
        destroyed.map(|()| DeleteContainerResponse {})
    }

    pub async fn close_files(&self) {
        let slots: Vec<Arc<Files>> = {
            let containers = self.containers();
            let files = |slot: &Slot| match slot {
                Slot::Busy => None,
                Slot::Ready(container) => Some(container.archived.clone()),
                Slot::Opened(opened) => Some(opened.archived.clone()),
            };
            containers.values().filter_map(files).collect()
        };
        for files in slots {
            files.close().await;
        }
    }
}
