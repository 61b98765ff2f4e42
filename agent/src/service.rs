// SPDX-License-Identifier: Apache-2.0
//! AgentService: decodes, checks bounds, delegates. A call that changes something runs to its end even when its
//! connection is cut: the host that comes back asks what there is.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{RwLock, RwLockReadGuard};
use tonic::{Request, Response, Status};

use crate::bounds::{check_create, check_id};
use crate::container::{Container, Opened, Shared, Workshop, blocking};
use crate::error::{Error, Kind, Result};
use crate::files::Files;
use crate::freeze::Frozen;
use crate::growth;
use crate::guest::{self, Identity};
use crate::power::Power;
use crate::process::Process;
use crate::proto::agent_service_server::AgentService;
use crate::proto::*;
use crate::stats;
use crate::still::StillVolumes;

pub const PROTOCOL_VERSION: u32 = 1;
const MAX_CONTAINERS: usize = 256;

type Answer<T> = std::result::Result<Response<T>, Status>;

#[derive(Clone)]
pub struct Agent {
    inner: Arc<Inner>,
}

struct Inner {
    workshop: Arc<Workshop>,
    identity: Arc<Identity>,
    power: Power,
    containers: Mutex<HashMap<String, Slot>>,
    /// Read by whatever makes or ends processes, for as long as it takes; `Some` while the guest stands still.
    frozen: RwLock<Option<Still>>,
    still: StillVolumes,
}

type Still = Arc<Mutex<Frozen>>;

/// An id is taken from the moment its container is asked for until it is gone.
enum Slot {
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

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.inner.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        match self.containers().get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            Some(Slot::Busy) => Err(Error::wrong_state(format!("container {id} is being made or deleted"))),
            Some(Slot::Opened(_)) => Err(Error::wrong_state(format!("of container {id} only the files are there"))),
            None => Err(Error::not_found(format!("no container {id}"))),
        }
    }

    fn opened(&self, id: &str) -> Option<Arc<Opened>> {
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
    fn reserve(&self, id: &str) -> Result<()> {
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
    fn moving(&self) -> Result<RwLockReadGuard<'_, Option<Still>>> {
        match self.inner.frozen.try_read() {
            Ok(frozen) if frozen.is_none() => Ok(frozen),
            _ => Err(Error::wrong_state("the guest is frozen")),
        }
    }

    async fn freeze(self) -> Result<FreezeGuestResponse> {
        let mut frozen = self.inner.frozen.write().await;
        if frozen.is_none() {
            if self.inner.workshop.cgroups.is_none() && !self.containers().is_empty() {
                return Err(Error::new(Kind::Unsupported, "without cgroups no container can be frozen"));
            }
            let workshop = self.inner.workshop.clone();
            let freezing = move || Frozen::freeze(workshop.cgroups.as_deref(), &workshop.disks.writable());
            *frozen = Some(Arc::new(Mutex::new(blocking(freezing).await?)));
        }
        Ok(FreezeGuestResponse {})
    }

    async fn thaw(self) -> Result<ThawGuestResponse> {
        let mut frozen = self.inner.frozen.write().await;
        // Forgotten only when it moves again.
        if let Some(still) = frozen.clone() {
            blocking(move || still.lock().unwrap_or_else(PoisonError::into_inner).thaw()).await?;
            *frozen = None;
        }
        Ok(ThawGuestResponse {})
    }

    async fn release_devices(self) -> Result<ReleaseDevicesResponse> {
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

    async fn end_rehearsal(self, id: String) -> Result<EndRehearsalResponse> {
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

    async fn create(self, request: CreateContainerRequest) -> Result<CreateContainerResponse> {
        let _moving = self.moving()?;
        check_create(&request)?;
        let id = request.container_id.clone();
        let isolation = request.isolation.clone().unwrap_or_default();
        let partner = |id: &str| if id.is_empty() { Ok(None) } else { self.container(id).map(Some) };
        let shared = Shared { pid: partner(&isolation.share_pid_with)?, ipc: partner(&isolation.share_ipc_with)? };
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

    async fn open_root(self, request: OpenRootRequest) -> Result<OpenRootResponse> {
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

    async fn open_volume(self, request: OpenVolumeRequest) -> Result<OpenVolumeResponse> {
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

    async fn grow_volume(self, request: GrowVolumeRequest) -> Result<GrowVolumeResponse> {
        let _moving = self.moving()?;
        let path = self.inner.workshop.disks.find_writable(&request.disk_serial)?;
        blocking(move || growth::grow(&path, request.size_bytes)).await.map(|()| GrowVolumeResponse {})
    }

    async fn freeze_volume(self, request: FreezeVolumeRequest) -> Result<FreezeVolumeResponse> {
        let _moving = self.moving()?;
        let path = self.inner.workshop.disks.find_writable(&request.disk_serial)?;
        let timeout = Duration::from_millis(request.timeout_ms.clamp(100, 60_000).into());
        self.inner.still.freeze(request.disk_serial, path, timeout).await.map(|()| FreezeVolumeResponse {})
    }

    async fn close_root(self, opened: Arc<Opened>) -> Result<DeleteContainerResponse> {
        let _moving = self.moving()?;
        self.containers().insert(opened.id.clone(), Slot::Busy);
        let closed = opened.close().await;
        self.containers().remove(&opened.id);
        closed.map(|()| DeleteContainerResponse {})
    }

    async fn delete(self, id: String) -> Result<DeleteContainerResponse> {
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

    async fn shut_down(self, timeout: Duration) -> Result<ShutdownResponse> {
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

    async fn close_files(&self) {
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

    fn ready(&self) -> Vec<Arc<Container>> {
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
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Answer<T> {
    Ok(Response::new(to_the_end(work).await?))
}

async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Error::internal("a call's task panicked")))
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
