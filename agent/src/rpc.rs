// SPDX-License-Identifier: Apache-2.0
//! AgentService: decodes, checks bounds, delegates. A call that changes something runs to its end even when its connection
//! is cut: the host that comes back asks what there is.

use std::future::Future;
use std::time::Duration;

use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::error::{Error, Result};
use crate::guest;
use crate::proto::agent_service_server::AgentService;
use crate::proto::*;
use crate::service::{Agent, Slot, to_the_end};
use crate::stats;

pub const PROTOCOL_VERSION: u32 = 1;

type Answer<T> = std::result::Result<Response<T>, Status>;

/// Runs on when the caller hangs up.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Answer<T> {
    Ok(Response::new(to_the_end(work).await?))
}

#[tonic::async_trait]
impl AgentService for Agent {
    async fn hello(&self, request: Request<HelloRequest>) -> Answer<HelloResponse> {
        let asked = request.into_inner().protocol_version;
        if asked != PROTOCOL_VERSION {
            crate::warn!("the host speaks protocol {asked}, this agent {PROTOCOL_VERSION}");
        }
        let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Ok(Response::new(HelloResponse {
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            uptime_ms: uptime.tv_sec as u64 * 1000 + uptime.tv_nsec as u64 / 1_000_000,
        }))
    }

    async fn configure_guest(&self, request: Request<ConfigureGuestRequest>) -> Answer<ConfigureGuestResponse> {
        let (identity, request, containers) = (self.inner.identity.clone(), request.into_inner(), self.ready());
        detached(blocking(move || {
            identity.configure(&request, &containers)?;
            Ok(ConfigureGuestResponse { wall_clock_unix_ns: guest::wall_clock_unix_ns() })
        }))
        .await
    }

    async fn rewire_guest(&self, request: Request<RewireGuestRequest>) -> Answer<RewireGuestResponse> {
        let (identity, request, containers) = (self.inner.identity.clone(), request.into_inner(), self.ready());
        detached(blocking(move || {
            identity.rewire(&request, &containers)?;
            Ok(RewireGuestResponse {})
        }))
        .await
    }

    async fn set_clock(&self, request: Request<SetClockRequest>) -> Answer<SetClockResponse> {
        let unix_ns = request.into_inner().wall_clock_unix_ns;
        if unix_ns <= 0 {
            return Err(Error::invalid(format!("{unix_ns} is no time")).into());
        }
        guest::step_clock(unix_ns)?;
        Ok(Response::new(SetClockResponse { wall_clock_unix_ns: guest::wall_clock_unix_ns() }))
    }

    async fn release_devices(&self, _: Request<ReleaseDevicesRequest>) -> Answer<ReleaseDevicesResponse> {
        detached(Agent::release_devices(self.clone())).await
    }

    async fn freeze_guest(&self, _: Request<FreezeGuestRequest>) -> Answer<FreezeGuestResponse> {
        detached(self.clone().freeze()).await
    }

    async fn thaw_guest(&self, _: Request<ThawGuestRequest>) -> Answer<ThawGuestResponse> {
        detached(self.clone().thaw()).await
    }

    async fn open_root(&self, request: Request<OpenRootRequest>) -> Answer<OpenRootResponse> {
        detached(Agent::open_root(self.clone(), request.into_inner())).await
    }

    async fn open_volume(&self, request: Request<OpenVolumeRequest>) -> Answer<OpenVolumeResponse> {
        detached(Agent::open_volume(self.clone(), request.into_inner())).await
    }

    async fn grow_volume(&self, request: Request<GrowVolumeRequest>) -> Answer<GrowVolumeResponse> {
        detached(Agent::grow_volume(self.clone(), request.into_inner())).await
    }

    async fn freeze_volume(&self, request: Request<FreezeVolumeRequest>) -> Answer<FreezeVolumeResponse> {
        detached(Agent::freeze_volume(self.clone(), request.into_inner())).await
    }

    async fn thaw_volume(&self, request: Request<ThawVolumeRequest>) -> Answer<ThawVolumeResponse> {
        let (agent, serial) = (self.clone(), request.into_inner().disk_serial);
        detached(async move {
            let stood_still = agent.inner.still.thaw(&serial).await?;
            Ok(ThawVolumeResponse { stood_still })
        })
        .await
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        detached(self.clone().create(request.into_inner())).await
    }

    async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        let (agent, container) = (self.clone(), self.container(&request.into_inner().container_id)?);
        detached(async move {
            let _moving = agent.moving()?;
            container.start().await.map(|refused| StartContainerResponse { refused })
        })
        .await
    }

    async fn delete_container(&self, request: Request<DeleteContainerRequest>) -> Answer<DeleteContainerResponse> {
        detached(self.clone().delete(request.into_inner().container_id)).await
    }

    async fn end_rehearsal(&self, request: Request<EndRehearsalRequest>) -> Answer<EndRehearsalResponse> {
        detached(Agent::end_rehearsal(self.clone(), request.into_inner().container_id)).await
    }

    async fn release_disks(&self, request: Request<ReleaseDisksRequest>) -> Answer<ReleaseDisksResponse> {
        detached(Agent::release_disks(self.clone(), request.into_inner())).await
    }

    async fn list_containers(&self, _: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        let status = |slot: &Slot| match slot {
            Slot::Busy => None,
            Slot::Ready(container) => Some(container.status()),
            Slot::Opened(opened) => Some(opened.status()),
        };
        let containers = self.containers().values().filter_map(status).collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn exec_process(&self, request: Request<ExecProcessRequest>) -> Answer<ExecProcessResponse> {
        let process = self.exec(request.into_inner()).await?.claim()?;
        Ok(Response::new(ExecProcessResponse { pid: process.pid }))
    }

    async fn signal_process(&self, request: Request<SignalProcessRequest>) -> Answer<SignalProcessResponse> {
        let request = request.into_inner();
        if !(1..=64).contains(&request.signal) {
            return Err(Error::invalid(format!("no signal {}", request.signal)).into());
        }
        let container = self.container(&request.container_id)?;
        if request.all {
            if request.signal != libc::SIGKILL {
                return Err(Error::invalid("only SIGKILL goes to all processes").into());
            }
            let delivered = container.process("")?.exit().is_none();
            container.kill_all();
            return Ok(Response::new(SignalProcessResponse { delivered }));
        }
        let delivered = container.process(&request.process_id)?.signal(request.signal)?;
        Ok(Response::new(SignalProcessResponse { delivered }))
    }

    async fn resize_terminal(&self, request: Request<ResizeTerminalRequest>) -> Answer<ResizeTerminalResponse> {
        let request = request.into_inner();
        let size = request.size.ok_or_else(|| Error::invalid("no size given"))?;
        self.process(&request.container_id, &request.process_id)?.resize(&size)?;
        Ok(Response::new(ResizeTerminalResponse {}))
    }

    async fn wait_process(&self, request: Request<WaitProcessRequest>) -> Answer<WaitProcessResponse> {
        let request = request.into_inner();
        let exit = self.process(&request.container_id, &request.process_id)?.wait().await?;
        Ok(Response::new(WaitProcessResponse { exit: Some(exit) }))
    }

    async fn forget_process(&self, request: Request<ForgetProcessRequest>) -> Answer<ForgetProcessResponse> {
        let request = request.into_inner();
        self.forget(&request.container_id, &request.process_id)?;
        Ok(Response::new(ForgetProcessResponse {}))
    }

    async fn get_stats(&self, request: Request<GetStatsRequest>) -> Answer<GetStatsResponse> {
        let id = request.into_inner().container_id;
        let mut stats = if id.is_empty() {
            stats::guest()
        } else {
            self.container(&id)?.cgroup().map(|group| group.stats()).unwrap_or_default()
        };
        stats.agent_rss_bytes = stats::own_rss();
        Ok(Response::new(stats))
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Answer<ShutdownResponse> {
        let timeout = Duration::from_millis(request.into_inner().timeout_ms.clamp(100, 60_000).into());
        detached(self.clone().shut_down(timeout)).await
    }
}
