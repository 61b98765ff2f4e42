// SPDX-License-Identifier: Apache-2.0
//! What containers are made with, and their making: a cgroup, the mounted sources, the root, a first process. Whoever can
//! be made ahead, for a template, waits here too: the spare container-init and the nursery.
//!
//! All of it blocks (mounts, births) and is called on a blocking thread; what fails leaves nothing behind.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::birth::{self, Birth, Newborn};
use crate::boot;
use crate::cgroup::Cgroup;
use crate::container::Container;
use crate::devices::Filter;
use crate::disk::{Disks, Lease};
use crate::error::{Context, Result};
use crate::files::Files;
use crate::guest::Identity;
use crate::init::{self, Config};
use crate::mount::Linux;
use crate::nursery::{self, Nurseries, Nursery};
use crate::proto::{CreateContainerRequest, Resources};
use crate::reaper::Reaper;
use crate::spare::Spare;

/// No container's id begins with a dot.
const SPARE_CGROUP: &str = ".spare";
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What every container of this guest is made with.
pub struct Workshop {
    pub reaper: Reaper,
    pub disks: Disks<Linux>,
    pub state: PathBuf,
    /// The cgroup2 mount; absent only on a host that has none.
    pub cgroups: Option<PathBuf>,
    pub devices: Filter,
    pub spare: Mutex<Option<Spare>>,
    pub nurseries: Nurseries,
}

/// Made and born, not yet in the runtime's care.
pub struct Made {
    pub newborn: Newborn,
    pub cgroup: Option<Arc<Cgroup>>,
    pub files: PathBuf,
    pub archived: Files,
    pub leases: Vec<Lease>,
}

/// What a container shares with another one: namespaces, and the files by which it finds names.
#[derive(Default)]
pub struct Shared {
    pub pid: Option<Arc<Container>>,
    pub ipc: Option<Arc<Container>>,
    pub names: Option<Arc<Container>>,
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
        self.nurseries.usual.require(|| Nursery::open(&self.reaper, nursery::ARGUMENT))
    }

    /// One that bears such processes, if it is there.
    pub fn find_nursery(&self, is_usual: bool) -> Option<Arc<Nursery>> {
        if is_usual { self.nurseries.usual.find() } else { self.nurseries.plain.find() }
    }

    /// Blocking.
    pub fn offer_nursery(&self, is_usual: bool) -> Result<()> {
        if is_usual {
            self.nurseries.usual.offer(|| Nursery::open(&self.reaper, nursery::ARGUMENT))
        } else {
            self.nurseries.plain.offer(|| Nursery::open(&self.reaper, nursery::PLAIN_ARGUMENT))
        }
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
        identity.write_files(&files, &request.hostname, shared.names.as_ref().map(|other| other.files()))?;
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
                Some(other) => join.push((other.handle(), flag)),
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
        let newborn = birth::bear(&self.reaper, &config, &birth, spare.take())?;
        let archived = Files::new(root.mount, root.layers);
        Ok(Made { newborn, cgroup, files, archived, leases })
    }
}

pub fn remove_files(files: &Path) {
    if let Err(cause) = std::fs::remove_dir_all(files) {
        crate::warn!("remove {}: {cause}", files.display());
    }
}
