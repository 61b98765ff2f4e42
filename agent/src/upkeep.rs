// SPDX-License-Identifier: Apache-2.0
//! What is done to the guest as a whole: it stands still and goes on, is made ready for clones, ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::blocking::blocking;
use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::freeze::Frozen;
use crate::growth;
use crate::proto::*;
use crate::service::{Agent, Still};

impl Agent {
    pub async fn freeze(self) -> Result<FreezeGuestResponse> {
        let mut frozen = self.inner.frozen.write().await;
        if let Some(still) = frozen.clone() {
            let is_whole = still.lock().unwrap_or_else(PoisonError::into_inner).is_whole;
            if !is_whole {
                thaw(still).await?;
                *frozen = None;
            }
        }
        if frozen.is_none() {
            if self.inner.workshop.cgroups.is_none() && !self.containers().is_empty() {
                return Err(Error::new(Kind::Unsupported, "without cgroups no container can be frozen"));
            }
            let workshop = self.inner.workshop.clone();
            let freezing = move || Ok(Frozen::freeze(workshop.cgroups.as_deref(), &workshop.disks.writable()));
            let (still, told) = blocking(freezing).await?;
            // Of what failed half-way, too, and could not be undone: the next thaw does, or the next freeze.
            *frozen = still.map(|still| Arc::new(Mutex::new(still)));
            told?;
        }
        Ok(FreezeGuestResponse {})
    }

    pub async fn thaw(self) -> Result<ThawGuestResponse> {
        let mut frozen = self.inner.frozen.write().await;
        // Forgotten only when it moves again.
        if let Some(still) = frozen.clone() {
            thaw(still).await?;
            *frozen = None;
        }
        Ok(ThawGuestResponse {})
    }

    pub async fn release_devices(self) -> Result<ReleaseDevicesResponse> {
        // Nothing is made meanwhile.
        let frozen = self.inner.frozen.write().await;
        if frozen.is_some() || !self.containers().is_empty() {
            return Err(Error::wrong_state("there are containers, or the guest is frozen"));
        }
        let (identity, workshop) = (self.inner.identity.clone(), self.inner.workshop.clone());
        blocking(move || {
            // Whatever is saved now is what clones are made of. The spare first: what is mounted after its birth it does not hold.
            workshop.prepare()?;
            let kept = workshop.disks.keep(identity.devices.drivers());
            identity.release_devices(|device| kept.iter().any(|one| one == device))
        })
        .await?;
        Ok(ReleaseDevicesResponse {})
    }

    fn check_alone(&self, expected: usize) -> Result<()> {
        let count = self.containers().len();
        if count == expected { Ok(()) } else { Err(Error::wrong_state(format!("there are {count} containers"))) }
    }

    pub async fn end_rehearsal(self, id: String) -> Result<EndRehearsalResponse> {
        let container = self.container(&id)?;
        self.check_alone(1)?;
        self.clone().delete(id).await?;
        // Nothing is made meanwhile.
        let frozen = self.inner.frozen.write().await;
        self.check_alone(0)?;
        if frozen.is_some() {
            return Err(Error::wrong_state("the guest is frozen"));
        }
        let (identity, workshop) = (self.inner.identity.clone(), self.inner.workshop.clone());
        blocking(move || {
            container.forget_changes()?;
            drop(container); // it had the disks mounted
            let drivers = identity.devices.drivers();
            workshop.disks.wait_free(drivers)?;
            workshop.prepare()?;
            workshop.disks.keep(drivers);
            Ok(EndRehearsalResponse {})
        })
        .await
    }

    pub async fn release_disks(self, request: ReleaseDisksRequest) -> Result<ReleaseDisksResponse> {
        let _moving = self.moving()?;
        let workshop = self.inner.workshop.clone();
        blocking(move || workshop.disks.wait_unmounted(&request.disk_serials)).await.map(|()| ReleaseDisksResponse {})
    }

    pub async fn grow_volume(self, request: GrowVolumeRequest) -> Result<GrowVolumeResponse> {
        let _moving = self.moving()?;
        let path = self.inner.workshop.disks.find_writable(&request.disk_serial)?;
        blocking(move || growth::grow(&path, request.size_bytes)).await.map(|()| GrowVolumeResponse {})
    }

    pub async fn freeze_volume(self, request: FreezeVolumeRequest) -> Result<FreezeVolumeResponse> {
        let _moving = self.moving()?;
        let path = self.inner.workshop.disks.find_writable(&request.disk_serial)?;
        let timeout = Duration::from_millis(request.timeout_ms.clamp(100, 60_000).into());
        self.inner.still.freeze(request.disk_serial, path, timeout).await.map(|()| FreezeVolumeResponse {})
    }

    pub async fn shut_down(self, timeout: Duration) -> Result<ShutdownResponse> {
        if let Err(error) = self.clone().thaw().await {
            crate::warn!("{error}");
        }
        self.inner.still.thaw_all().await;
        let containers: Vec<Arc<Container>> = self.ready();
        containers.iter().for_each(|container| container.kill_all());
        let all_dead = async {
            for container in &containers {
                if let Ok(first) = container.process("") {
                    let _ = first.wait().await;
                }
            }
        };
        let _ = tokio::time::timeout(timeout, all_dead).await;
        // A disk is clean only when nobody has its file system any more.
        let _ = tokio::time::timeout(timeout, self.close_files()).await;
        let power = self.inner.power.clone();
        blocking(move || {
            power.settle_disks(timeout);
            Ok(())
        })
        .await?;
        self.inner.power.off_soon();
        Ok(ShutdownResponse {})
    }
}

async fn thaw(still: Still) -> Result<()> {
    blocking(move || still.lock().unwrap_or_else(PoisonError::into_inner).thaw()).await
}
