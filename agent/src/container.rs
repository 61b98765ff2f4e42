// SPDX-License-Identifier: Apache-2.0
//! One container: its first process, the exec'd ones, its cgroup, the disks it stands on.
//!
//!     created --start--> running --exit--> exited
//!
//! Everything here that blocks (mounts, births) is called on a blocking thread.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, RwLockReadGuard};

use crate::boot;
use crate::cgroup::Cgroup;
use crate::devices::Filter;
use crate::disk::{Disks, Lease};
use crate::error::{Context, Error, Kind, Result};
use crate::files::{Files, Layers};
use crate::growth;
use crate::guest::Identity;
use crate::init::{self, Config};
use crate::mount::{self, Kernel, Linux};
use crate::nursery::{self, Nursery};
use crate::path::Root;
use crate::process::{self, Ahead, Birth, Newborn, Process};
use crate::proto::{
    ContainerState, ContainerStatus, CreateContainerRequest, ExitStatus, Mount, OpenVolumeRequest, ProcessSpec,
    Resources, RootFilesystem,
};
use crate::reaper::Reaper;
use crate::spare::Spare;
use crate::sys;
use crate::volume;

/// No container's id begins with a dot.
const SPARE_CGROUP: &str = ".spare";
const MAX_PROCESSES: usize = 1024;
const KILL_DEADLINE: Duration = Duration::from_secs(10);
const STILL_DEADLINE: Duration = Duration::from_secs(10);
/// Longer than a process takes to be born.
const HOLD_DEADLINE: Duration = Duration::from_secs(40);

/// What every container of this guest is made with.
pub struct Workshop {
    pub reaper: Reaper,
    pub disks: Disks<Linux>,
    pub state: PathBuf,
    /// The cgroup2 mount; absent only on a host that has none.
    pub cgroups: Option<PathBuf>,
    pub devices: Filter,
    pub spare: Mutex<Option<Spare>>,
    pub nursery: nursery::Place,
}

pub struct Container {
    pub id: String,
    first: Arc<Process>,
    execs: Mutex<HashMap<String, Option<Arc<Process>>>>,
    started: AtomicBool,
    privileged: bool,
    cgroup: Option<Arc<Cgroup>>,
    files: PathBuf,
    /// What archives are made of.
    pub archived: Arc<Files>,
    /// Read by what is being born in it, written by whoever holds it still.
    births: Arc<RwLock<()>>,
    _leases: Vec<Lease>,
}

/// A root that was mounted, and nothing runs in it.
pub struct Opened {
    pub id: String,
    pub archived: Arc<Files>,
    files: PathBuf,
    _leases: Vec<Lease>,
}

/// The processes of a container stand still for as long as it exists.
pub struct Held {
    cgroup: Arc<Cgroup>,
    _births: OwnedRwLockWriteGuard<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = self.cgroup.thaw() {
            crate::warn!("{error}");
        }
    }
}

/// Made and born, not yet in the runtime's care.
pub struct Made {
    newborn: Newborn,
    cgroup: Option<Arc<Cgroup>>,
    files: PathBuf,
    archived: Files,
    leases: Vec<Lease>,
}

/// Namespaces that a container shares with another one.
#[derive(Default)]
pub struct Shared {
    pub pid: Option<Arc<Container>>,
    pub ipc: Option<Arc<Container>>,
}

impl Workshop {
    /// What the first container would have to wait for. Blocking. Called before a template is saved.
    pub fn prepare(&self) -> Result<()> {
        self.disks.places()?;
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.is_none() {
            let cgroup = self.cgroups.as_ref().map(|mount| self.make_spare_cgroup(mount)).transpose()?;
            *spare = Some(Spare::bear(&self.reaper, cgroup)?);
        }
        self.nursery.require(|| Nursery::open(&self.reaper))
    }

    /// Of a container that is not privileged, without limits yet.
    fn make_spare_cgroup(&self, mount: &Path) -> Result<Cgroup> {
        let cgroup = Cgroup::create(&Linux, mount, SPARE_CGROUP, &Resources::default())?;
        let ready = self.devices.attach(cgroup.fd());
        if ready.is_err() {
            let _ = cgroup.remove(Instant::now());
        }
        ready.map(|()| cgroup)
    }

    /// Only the first container may have it: what the agent mounts afterwards is not in its namespace.
    fn take_spare(&self, request: &CreateContainerRequest) -> Option<Spare> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        if Spare::serves(request) {
            return Some(spare);
        }
        spare.end();
        None
    }

    /// The container's own, or the one that its spare is in.
    fn make_cgroup(&self, mount: &Path, id: &str, resources: &Resources, spare: Option<&mut Spare>) -> Result<Cgroup> {
        let Some(ahead) = spare.and_then(Spare::take_cgroup) else {
            return Cgroup::create(&Linux, mount, id, resources);
        };
        if let Err(error) = ahead.limit(&Linux, resources) {
            ahead.kill();
            let _ = ahead.remove(Instant::now() + KILL_DEADLINE);
            return Err(error);
        }
        Ok(ahead)
    }

    /// Blocking. Leaves nothing behind when it fails.
    pub fn make(&self, mut request: CreateContainerRequest, identity: &Identity, shared: &Shared) -> Result<Made> {
        let id = request.container_id.clone();
        let files = self.state.join("containers").join(&id);
        std::fs::create_dir_all(&files).what("create the container's directory")?;
        let resources = request.resources.unwrap_or_default();
        let mut spare = self.take_spare(&request);
        let cgroup = match &self.cgroups {
            Some(mount) => {
                let cgroup = self.make_cgroup(mount, &id, &resources, spare.as_mut());
                Some(Arc::new(cgroup.inspect_err(|_| remove_files(&files))?))
            }
            None => None,
        };
        let made = self.bear_first(&mut request, identity, shared, cgroup.clone(), files.clone(), &mut spare);
        if made.is_err() {
            if let Some(spare) = spare {
                spare.end();
            }
            remove_files(&files);
            if let Some(cgroup) = &cgroup {
                cgroup.kill();
                let _ = cgroup.remove(Instant::now() + KILL_DEADLINE);
            }
        }
        made
    }

    fn bear_first(
        &self,
        request: &mut CreateContainerRequest,
        identity: &Identity,
        shared: &Shared,
        cgroup: Option<Arc<Cgroup>>,
        files: PathBuf,
        spare: &mut Option<Spare>,
    ) -> Result<Made> {
        if request.hostname.is_empty() {
            request.hostname = identity.hostname();
        }
        identity.write_files(&files, &request.hostname)?;
        let mut leases = self.mount_sources(request)?;
        let root = self.disks.mount_root(request, &files)?;
        self.fill_volumes(request, &root.layers)?;
        leases.extend(root.leases);

        let isolation = request.isolation.clone().unwrap_or_default();
        // The spare's has it.
        if let (Some(cgroup), None, false) = (&cgroup, &spare, isolation.privileged) {
            self.devices.attach(cgroup.fd())?;
        }
        let mut namespaces = (libc::CLONE_NEWNS | libc::CLONE_NEWUTS) as u64;
        let mut join = Vec::new();
        for (other, flag) in [(&shared.pid, libc::CLONE_NEWPID), (&shared.ipc, libc::CLONE_NEWIPC)] {
            match other {
                Some(other) => join.push((other.first.pidfd.as_fd(), flag)),
                None => namespaces |= flag as u64,
            }
        }
        let config = Config {
            process: request.process.clone(),
            files: files.to_string_lossy().into_owned(),
            stage: self.state.join("stage").to_string_lossy().into_owned(),
            share: self.state.join(boot::SHARE).to_string_lossy().into_owned(),
            privileged: isolation.privileged,
            // Only a PID 1 inherits orphans.
            init: isolation.init && shared.pid.is_none(),
            start: false,
            create: Some(std::mem::take(request)),
        };
        let birth = Birth {
            namespaces,
            join,
            cgroup: cgroup.as_ref().map(|c| c.fd()),
            handle: (root.mount.as_fd(), init::ROOT),
        };
        let ahead = spare.take().map_or(Ahead::Nobody, Ahead::Spare);
        let newborn = process::bear(&self.reaper, &config, &birth, ahead)?;
        let archived = Files::new(root.mount, root.layers);
        Ok(Made { newborn, cgroup, files, archived, leases })
    }

    /// Blocking. Leaves nothing behind when it fails.
    pub fn open(&self, id: String, root: RootFilesystem) -> Result<Opened> {
        let files = self.state.join("containers").join(&id);
        std::fs::create_dir_all(&files).what("create the container's directory")?;
        let is_readonly = root.readonly;
        let request =
            CreateContainerRequest { container_id: id.clone(), root: Some(root), ..CreateContainerRequest::default() };
        let opened = self.disks.mount_root(&request, &files).and_then(|root| {
            if is_readonly {
                Linux.set_attributes(root.mount.as_fd(), false, mount::Attributes::MOUNT_ATTR_RDONLY)?;
            }
            Ok(root)
        });
        match opened {
            Ok(root) => {
                let archived = Arc::new(Files::new(root.mount, root.layers));
                Ok(Opened { id, archived, files, _leases: root.leases })
            }
            Err(error) => {
                remove_files(&files);
                Err(error)
            }
        }
    }

    /// Blocking. A volume in a root's stead. Leaves nothing behind when it fails.
    pub fn open_volume(&self, request: &OpenVolumeRequest) -> Result<Opened> {
        let attributes =
            if request.readonly { mount::Attributes::MOUNT_ATTR_RDONLY } else { mount::Attributes::empty() };
        let lease = self.disks.lease(&request.disk_serial, 0, &request.filesystem, attributes)?;
        if !request.readonly {
            growth::fill_disk(&lease.path);
        }
        let place = volume::directory(&lease.path, &request.subdirectory)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::open(&place, flags, Mode::empty()).what("open the volume's directory")?;
        let root = Linux.copy(place.as_fd(), false)?;
        let id = request.container_id.clone();
        let files = self.state.join("containers").join(&id);
        std::fs::create_dir_all(&files).what("create the container's directory")?;
        Ok(Opened { id, archived: Arc::new(Files::new(root, Layers::default())), files, _leases: vec![lease] })
    }

    /// Disks and shares among the mounts become binds of where the agent mounted them.
    fn mount_sources(&self, request: &mut CreateContainerRequest) -> Result<Vec<Lease>> {
        let mut leases = Vec::new();
        // A disk that is mounted in several places is mounted for writing when one of them writes.
        let written: Vec<String> =
            request.mounts.iter().filter(|mount| !is_readonly(mount)).map(|mount| mount.source.clone()).collect();
        for mount in &mut request.mounts {
            let is_share = mount.r#type == "virtiofs";
            let lease = if let Some(filesystem) = mount.r#type.strip_prefix("block:") {
                let attributes = if written.contains(&mount.source) {
                    mount::Attributes::empty()
                } else {
                    mount::Attributes::MOUNT_ATTR_RDONLY
                };
                let lease = self
                    .disks
                    .lease(&mount.source, 0, filesystem, attributes)
                    .map_err(|error| error.of(format_args!("volume at {}", mount.destination)))?;
                if attributes.is_empty() {
                    growth::fill_disk(&lease.path);
                }
                lease
            } else if is_share {
                self.disks
                    .lease_share(&mount.source)
                    .map_err(|error| error.of(format_args!("share at {}", mount.destination)))?
            } else {
                continue;
            };
            "bind".clone_into(&mut mount.r#type);
            let found = if is_share { volume::entry } else { volume::directory };
            let source = found(&lease.path, &mount.subdirectory)
                .map_err(|error| error.of(format_args!("volume at {}", mount.destination)))?;
            mount.source = source.to_string_lossy().into_owned();
            leases.push(lease);
        }
        Ok(leases)
    }

    /// With what is the image's own: neither with places for mounts nor with what the container changed.
    fn fill_volumes(&self, request: &CreateContainerRequest, layers: &Layers) -> Result<()> {
        let filled: Vec<&Mount> =
            request.mounts.iter().filter(|mount| mount.copy_image && !is_readonly(mount)).collect();
        if filled.is_empty() {
            return Ok(());
        }
        let Some(image) = self.disks.mount_image(&layers.lower)? else { return Ok(()) };
        let image = Root::new(image);
        filled.iter().try_for_each(|mount| volume::fill(Path::new(&mount.source), &image, &mount.destination))
    }
}

fn is_readonly(mount: &Mount) -> bool {
    mount::parse_options(&mount.options)
        .is_ok_and(|(attributes, _)| attributes.contains(mount::Attributes::MOUNT_ATTR_RDONLY))
}

impl Container {
    pub fn adopt(id: String, privileged: bool, made: Made) -> Result<Arc<Self>> {
        let first = Process::adopt(String::new(), made.newborn, made.cgroup.clone())?;
        Ok(Arc::new(Self {
            id,
            first,
            execs: Mutex::default(),
            started: AtomicBool::new(false),
            privileged,
            cgroup: made.cgroup,
            files: made.files,
            archived: Arc::new(made.archived),
            births: Arc::default(),
            _leases: made.leases,
        }))
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Process>>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> ContainerState {
        if self.first.exit().is_some() {
            ContainerState::Exited
        } else if self.started.load(Ordering::Acquire) {
            ContainerState::Running
        } else {
            ContainerState::Created
        }
    }

    /// `Some` when the program could not be executed.
    pub async fn start(&self) -> Result<Option<ExitStatus>> {
        let _birth = self.moving()?;
        if self.started.swap(true, Ordering::AcqRel) || self.first.exit().is_some() {
            return Err(Error::wrong_state(format!("container {} was started before", self.id)));
        }
        self.first.start().await
    }

    /// Nothing is started in it while it is held still.
    fn moving(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let held = |_| Error::wrong_state(format!("container {} stands still while its files are read", self.id));
        self.births.try_read().map_err(held)
    }

    /// Stops its processes until what is returned goes away.
    pub async fn hold(self: &Arc<Self>) -> Result<Held> {
        let Some(cgroup) = self.cgroup.clone() else {
            return Err(Error::new(Kind::Unsupported, "without cgroups no container can be frozen"));
        };
        let waited = tokio::time::timeout(HOLD_DEADLINE, self.births.clone().write_owned()).await;
        let births =
            waited.map_err(|_| Error::wrong_state(format!("container {} is held still by another call", self.id)))?;
        blocking(move || {
            // Made first: what fails half-way is undone too.
            let held = Held { cgroup, _births: births };
            held.cgroup.freeze(STILL_DEADLINE)?;
            Ok(held)
        })
        .await
    }

    /// Of the first process.
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.first.pidfd.as_fd()
    }

    /// "" is the first process.
    pub fn process(&self, id: &str) -> Result<Arc<Process>> {
        if id.is_empty() {
            return Ok(self.first.clone());
        }
        let found = self.execs().get(id).cloned().flatten();
        found.ok_or_else(|| Error::not_found(format!("no process {id} in container {}", self.id)))
    }

    pub async fn exec(self: &Arc<Self>, workshop: &Arc<Workshop>, id: &str, spec: ProcessSpec) -> Result<Arc<Process>> {
        if self.state() != ContainerState::Running {
            return Err(Error::wrong_state(format!("container {} is not running", self.id)));
        }
        let _birth = self.moving()?;
        {
            let mut execs = self.execs();
            if execs.contains_key(id) {
                return Err(Error::new(Kind::Exists, format!("process {id} exists in container {}", self.id)));
            }
            if execs.len() >= MAX_PROCESSES {
                return Err(Error::new(
                    Kind::Exhausted,
                    format!("container {} has {MAX_PROCESSES} processes", self.id),
                ));
            }
            execs.insert(id.to_owned(), None);
        }
        let (container, workplace) = (self.clone(), workshop.clone());
        let born = blocking(move || container.bear_exec(&workplace, spec)).await;
        let adopted = born.and_then(|newborn| Process::adopt(id.to_owned(), newborn, self.cgroup.clone()));
        match adopted {
            Ok(process) => {
                self.execs().insert(id.to_owned(), Some(process.clone()));
                process.start().await?;
                if workshop.nursery.find().is_none() {
                    open_nursery_soon(workshop.clone());
                }
                Ok(process)
            }
            Err(error) => {
                self.execs().remove(id);
                Err(error)
            }
        }
    }

    fn bear_exec(&self, workshop: &Workshop, spec: ProcessSpec) -> Result<Newborn> {
        let config = Config { process: Some(spec), privileged: self.privileged, start: true, ..Config::default() };
        let target = self.first.pidfd.as_fd();
        let birth = |cgroup| Birth {
            namespaces: 0,
            join: vec![(target, libc::CLONE_NEWPID)],
            cgroup,
            handle: (target, init::TARGET),
        };
        let nursery = workshop.nursery.find();
        let ahead = nursery.as_deref().map_or(Ahead::Nobody, Ahead::Nursery);
        process::bear(&workshop.reaper, &config, &birth(self.cgroup.as_ref().map(|group| group.fd())), ahead)
    }

    pub fn forget(&self, id: &str) -> Result<()> {
        let mut execs = self.execs();
        match execs.get(id) {
            Some(Some(process)) if process.exit().is_none() => {
                Err(Error::wrong_state(format!("process {id} is running")))
            }
            Some(None) => Err(Error::wrong_state(format!("process {id} is being started"))),
            _ => {
                if let Some(Some(process)) = execs.remove(id) {
                    process.output.forget();
                }
                Ok(())
            }
        }
    }

    pub fn kill_all(&self) {
        match &self.cgroup {
            Some(cgroup) => cgroup.kill(),
            None => self.processes().iter().for_each(|process| drop(process.signal(libc::SIGKILL))),
        }
        // Namespaces end with their PID 1, wherever its cgroup was moved to.
        let _ = self.first.signal(libc::SIGKILL);
    }

    /// Kills, waits, takes down. What cannot be removed is told, and forgotten all the same.
    pub async fn destroy(&self) -> Result<()> {
        self.kill_all();
        self.archived.close().await;
        for process in self.processes() {
            let waited = tokio::time::timeout(KILL_DEADLINE, process.wait()).await;
            waited.map_err(|_| {
                Error::new(Kind::TimedOut, format!("process {} of container {} does not die", process.pid, self.id))
            })??;
        }
        let (cgroup, files) = (self.cgroup.clone(), self.files.clone());
        blocking(move || {
            remove_files(&files);
            cgroup.map_or(Ok(()), |cgroup| cgroup.remove(Instant::now() + KILL_DEADLINE))
        })
        .await
    }

    /// Removes what it wrote to its disk. Called when it is destroyed. Blocking.
    pub fn forget_changes(&self) -> Result<()> {
        let directory = self.archived.layers.upper.as_ref().and_then(|upper| upper.parent());
        directory.map_or(Ok(()), |directory| std::fs::remove_dir_all(directory).what("remove what a container wrote"))
    }

    fn processes(&self) -> Vec<Arc<Process>> {
        let mut list = vec![self.first.clone()];
        list.extend(self.execs().values().flatten().cloned());
        list
    }

    pub fn status(&self) -> ContainerStatus {
        let processes = self.processes().iter().map(|process| process.status()).collect();
        ContainerStatus { container_id: self.id.clone(), state: self.state().into(), processes }
    }

    /// The agent's directory of this container's files.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// Of its UTS namespace, which a thread of its own enters. Blocking.
    pub fn set_hostname(&self, hostname: &str) -> Result<()> {
        let set = || {
            sys::setns(self.first.pidfd.as_fd(), libc::CLONE_NEWUTS)?;
            rustix::system::sethostname(hostname.as_bytes())?;
            Ok(())
        };
        // Not scope.spawn, which panics where there is no thread to be had, and with it the guest.
        let done: std::io::Result<()> = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, set)?;
            thread.join().unwrap_or_else(|_| Err(std::io::Error::other("its thread panicked")))
        });
        match done {
            // It has exited, and its namespace with it.
            Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done.what(format_args!("set the host name of container {}", self.id)),
        }
    }

    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_deref()
    }
}

impl Opened {
    /// Unmounts, when the last lease goes.
    pub async fn close(&self) -> Result<()> {
        self.archived.close().await;
        let files = self.files.clone();
        blocking(move || {
            remove_files(&files);
            Ok(())
        })
        .await
    }

    /// It has no process, and none will come.
    pub fn status(&self) -> ContainerStatus {
        let state = ContainerState::Exited.into();
        ContainerStatus { container_id: self.id.clone(), state, processes: Vec::new() }
    }
}

fn remove_files(files: &std::path::Path) {
    if let Err(cause) = std::fs::remove_dir_all(files) {
        crate::warn!("remove {}: {cause}", files.display());
    }
}

/// For the next that is exec'd: nobody waits for it.
fn open_nursery_soon(workshop: Arc<Workshop>) {
    tokio::task::spawn_blocking(move || {
        if let Err(error) = workshop.nursery.offer(|| Nursery::open(&workshop.reaper)) {
            crate::warn!("{error}");
        }
    });
}

/// Mounting and giving birth block; the runtime's one thread must not.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Error::internal("a blocking task panicked")))
}
