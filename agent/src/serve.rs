// SPDX-License-Identifier: Apache-2.0
//! Puts it together: the runtime, the reaper, the services, and one pipe or socket per port.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use tower_service::Service as _;

use crate::boot;
use crate::cgroup;
use crate::devices::Filter;
use crate::disk::Disks;
use crate::error::{Context, Error, Result};
use crate::fork;
use crate::guest::Identity;
use crate::mount::Linux;
use crate::nursery;
use crate::power::Power;
use crate::proto::agent_service_server::AgentServiceServer;
use crate::proto::archive_service_server::ArchiveServiceServer;
use crate::proto::stream_service_server::StreamServiceServer;
use crate::reaper::Reaper;
use crate::service::Agent;
use crate::sys;
use crate::transport::{Connection, Hangup, Scope, ScopeGuard, Serve, serve_pipe};
use crate::virtio;
use crate::workshop::Workshop;

const BLOCKING_THREADS: usize = 16;
const THREAD_STACK: usize = 256 * 1024;
/// A wait per process is a stream of its own.
const MAX_CALLS: u32 = 4096;
const WINDOW: u32 = 256 * 1024;
const SEND_BUFFER: usize = 128 * 1024;
const MAX_HEADERS: u32 = 16 * 1024;

/// All services on one connection; each port may be used for either.
#[derive(Clone)]
struct Services {
    agent: AgentServiceServer<Agent>,
    streams: StreamServiceServer<Agent>,
    archives: ArchiveServiceServer<Agent>,
}

impl Services {
    fn new(agent: Agent) -> Arc<Self> {
        Arc::new(Self {
            agent: AgentServiceServer::new(agent.clone()),
            streams: StreamServiceServer::new(agent.clone()),
            archives: ArchiveServiceServer::new(agent),
        })
    }
}

impl Serve for Arc<Services> {
    type Guard = ScopeGuard;

    fn serve(&self, connection: Connection) -> ScopeGuard {
        let (scope, guard) = Scope::new();
        let services = self.clone();
        let answer = hyper::service::service_fn(move |request: http::Request<Incoming>| {
            let mut services = Services::clone(&services);
            async move {
                if request.uri().path().starts_with("/hyper.agent.v1.StreamService/") {
                    services.streams.call(request).await
                } else if request.uri().path().starts_with("/hyper.agent.v1.ArchiveService/") {
                    services.archives.call(request).await
                } else {
                    services.agent.call(request).await
                }
            }
        });
        let connection = http2::Builder::new(scope.clone())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(2 * WINDOW)
            .max_concurrent_streams(MAX_CALLS)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADERS)
            .serve_connection(connection, answer);
        hyper::rt::Executor::execute(&scope, async move {
            if let Err(cause) = connection.await {
                crate::debug!("connection: {cause}");
            }
        });
        guard
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(THREAD_STACK)
        // A thread that is there need not be made: the one that serves a template serves its clones.
        .thread_keep_alive(Duration::from_secs(24 * 3600))
        .build()
        .what("start the runtime")
}

fn agent(reaper: Reaper, state: &Path, cgroups: Option<PathBuf>, in_guest: bool) -> Agent {
    let disks = Disks::new(Linux, state, !in_guest);
    let workshop = Workshop {
        reaper,
        disks,
        state: state.to_owned(),
        cgroups,
        devices: Filter::default(),
        spare: Mutex::default(),
        nurseries: nursery::Nurseries::default(),
    };
    // On a host the disks are its own: there is nothing to release.
    let drivers = if in_guest { PathBuf::from(virtio::DRIVERS) } else { state.join("drivers") };
    let identity = Identity::new(&drivers, &state.join(boot::SHARE));
    Agent::new(workshop, identity, Power { state: state.to_owned(), in_guest })
}

pub fn in_guest() -> Result<()> {
    boot::prepare()?;
    let children = sys::child_signals().what("hear of children")?;
    runtime()?.block_on(async {
        let reaper = Reaper::default();
        let services = Services::new(agent(reaper.clone(), Path::new(boot::STATE), Some(cgroup::MOUNT.into()), true));
        let control = boot::open_port(boot::CONTROL)?;
        let stream = boot::open_port(boot::STREAM)?;
        crate::debug!("ports open");
        tokio::select! {
            ended = serve_pipe(control, Hangup::Waits, &services) => ended.what("control port")?,
            ended = serve_pipe(stream, Hangup::Waits, &services) => ended.what("stream port")?,
            ended = reaper.run(children) => ended.what("reaper")?,
        }
        Err(Error::internal("a port ended"))
    })
}

pub fn on_host(control: &Path, stream: &Path) -> Result<()> {
    // Orphans of containers come to us, as they would to PID 1.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)).what("become a subreaper")?;
    let state = control.with_extension("state");
    for directory in ["stage", "disks", "containers", "empty", boot::SHARE] {
        std::fs::create_dir_all(state.join(directory)).what("create the state directory")?;
    }
    // A guest binds it, but on a host no mount may be left.
    std::fs::copy("/proc/self/exe", state.join(boot::SHARE).join(fork::PROGRAM)).what("copy forkpoint")?;
    let cgroups = Path::new(cgroup::MOUNT).join("cgroup.controllers").exists()
        && cgroup::prepare(&Linux, Path::new(cgroup::MOUNT)).is_ok();
    let children = sys::child_signals().what("hear of children")?;
    runtime()?.block_on(async {
        let reaper = Reaper::default();
        let services = Services::new(agent(reaper.clone(), &state, cgroups.then(|| cgroup::MOUNT.into()), false));
        let (control, stream) = (listen(control)?, listen(stream)?);
        tokio::select! {
            ended = serve_socket(control, &services) => ended,
            ended = serve_socket(stream, &services) => ended,
            ended = reaper.run(children) => ended.what("reaper"),
        }
    })
}

fn listen(path: &Path) -> Result<tokio::net::UnixListener> {
    let _ = std::fs::remove_file(path);
    tokio::net::UnixListener::bind(path).what(format_args!("listen on {}", path.display()))
}

/// As QEMU's chardev: one peer at a time, the next when it has gone.
async fn serve_socket(listener: tokio::net::UnixListener, services: &Arc<Services>) -> Result<()> {
    loop {
        let (socket, _) = listener.accept().await.what("accept")?;
        let socket = OwnedFd::from(socket.into_std().what("socket")?);
        if let Err(cause) = serve_pipe(socket, Hangup::Ends, services).await {
            crate::debug!("socket: {cause}");
        }
    }
}
