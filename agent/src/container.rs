// SPDX-License-Identifier: Apache-2.0
//! One container: its first process, the exec'd ones, its cgroup, the disks it stands on.
//!
//!     created --start--> running --exit--> exited

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedRwLockWriteGuard, RwLock, RwLockReadGuard};

use crate::birth::{self, Birth, Newborn};
use crate::blocking::blocking;
use crate::cgroup::Cgroup;
use crate::disk::Lease;
use crate::error::{Context, Error, Kind, Result};
use crate::files::Files;
use crate::init::{self, Config};
use crate::nursing;
use crate::process::Process;
use crate::proto::{ContainerState, ContainerStatus, ExitStatus, ProcessSpec};
use crate::sys;
use crate::workshop::{Made, Workshop, remove_files};

const MAX_PROCESSES: usize = 1024;
const KILL_DEADLINE: Duration = Duration::from_secs(10);
const STILL_DEADLINE: Duration = Duration::from_secs(10);
/// Longer than a process takes to be born.
const HOLD_DEADLINE: Duration = Duration::from_secs(40);

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
        let born = self.bear_exec(workshop, spec).await;
        let adopted = born.and_then(|newborn| Process::adopt(id.to_owned(), newborn, self.cgroup.clone()));
        match adopted {
            Ok(process) => {
                self.execs().insert(id.to_owned(), Some(process.clone()));
                process.start().await?;
                Ok(process)
            }
            Err(error) => {
                self.execs().remove(id);
                Err(error)
            }
        }
    }

    async fn bear_exec(self: &Arc<Self>, workshop: &Arc<Workshop>, spec: ProcessSpec) -> Result<Newborn> {
        let is_usual = init::is_usual(&spec, self.privileged);
        let config = Config { process: Some(spec), privileged: self.privileged, start: true, ..Config::default() };
        if let Some(nursery) = workshop.find_nursery(is_usual) {
            let cgroup = self.cgroup.as_ref().map(|group| group.fd());
            let born = nursing::bear(&workshop.reaper, &nursery, &config, self.handle(), cgroup).await?;
            if let Some(newborn) = born {
                return Ok(newborn);
            }
        }
        open_nursery_soon(workshop.clone(), is_usual);
        let (container, workshop) = (self.clone(), workshop.clone());
        blocking(move || {
            let target = container.handle();
            let birth = Birth {
                namespaces: 0,
                join: vec![(target, libc::CLONE_NEWPID)],
                cgroup: container.cgroup.as_ref().map(|group| group.fd()),
                handle: (target, init::TARGET),
            };
            birth::bear(&workshop.reaper, &config, &birth, None)
        })
        .await
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

/// For the next that is exec'd: nobody waits for it.
fn open_nursery_soon(workshop: Arc<Workshop>, is_usual: bool) {
    tokio::task::spawn_blocking(move || {
        if let Err(error) = workshop.offer_nursery(is_usual) {
            crate::warn!("{error}");
        }
    });
}
