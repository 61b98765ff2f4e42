// SPDX-License-Identifier: Apache-2.0
//! One cgroup (v2) per container: limits, counters, and the one way to kill everything in it.
//!
//!     /sys/fs/cgroup          the agent, and the controllers handed down
//!     /sys/fs/cgroup/hyper/ID a container; .spare: the first one of a template's clone

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Error, Kind, Result};
use crate::mount::Kernel;
use crate::proto::{GetStatsResponse, Resources};

pub const MOUNT: &str = "/sys/fs/cgroup";
const CONTROLLERS: &str = "+cpu +memory +pids +io";
const DEFAULT_PERIOD_US: u64 = 100_000;

#[derive(Debug)]
pub struct Cgroup {
    directory: OwnedFd,
    path: PathBuf,
    /// Read for each process at its birth and its end; none without the controller.
    memory_events: Option<File>,
}

/// Hands the controllers down to the containers' parent. Each on its own: a kernel may lack one.
pub fn prepare<K: Kernel>(kernel: &K, mount: &Path) -> Result<()> {
    let parent = mount.join("hyper");
    std::fs::create_dir_all(&parent).what("create the containers' cgroup")?;
    for directory in [mount, parent.as_path()] {
        let handle = open(directory)?;
        if kernel.write(handle.as_fd(), "cgroup.subtree_control", CONTROLLERS).is_err() {
            for controller in CONTROLLERS.split(' ') {
                if let Err(cause) = kernel.write(handle.as_fd(), "cgroup.subtree_control", controller) {
                    crate::warn!("{cause}");
                }
            }
        }
    }
    Ok(())
}

/// Stops every process of every container. Blocking; when it fails some may stand still: see [`thaw`].
/// At the parent, so that no container with a writable cgroup file system can undo it.
pub fn freeze(mount: &Path, deadline: Duration) -> Result<()> {
    halt(&mount.join("hyper"), deadline)
}

fn halt(group: &Path, deadline: Duration) -> Result<()> {
    let give_up = Instant::now() + deadline;
    std::fs::write(group.join("cgroup.freeze"), "1").what("freeze the containers' cgroup")?;
    let events = std::fs::File::open(group.join("cgroup.events")).what("open cgroup.events")?;
    loop {
        let mut text = [0; 256];
        let length = events.read_at(&mut text, 0).what("read cgroup.events")?;
        if find_field(&String::from_utf8_lossy(&text[..length]), "frozen") == 1 {
            return Ok(());
        }
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(
                Kind::TimedOut,
                format!("the containers' processes did not stand still within {} s", deadline.as_secs()),
            ));
        }
        // The kernel says when the file has changed since it was read.
        let left = rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut changed = [rustix::event::PollFd::new(&events, rustix::event::PollFlags::PRI)];
        match rustix::event::poll(&mut changed, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(cause) => return Err(cause).what("wait for the containers to stand still"),
        }
    }
}

pub fn thaw(mount: &Path) -> Result<()> {
    std::fs::write(mount.join("hyper/cgroup.freeze"), "0").what("thaw the containers' cgroup")
}

impl Cgroup {
    pub fn create<K: Kernel>(kernel: &K, mount: &Path, id: &str, resources: &Resources) -> Result<Self> {
        let path = mount.join("hyper").join(id);
        std::fs::create_dir(&path).what("create the container's cgroup")?;
        let memory_events = File::open(path.join("memory.events")).ok();
        let group = Self { directory: open(&path)?, path, memory_events };
        group.limit(kernel, resources).inspect_err(|_| drop(std::fs::remove_dir(&group.path)))?;
        Ok(group)
    }

    pub fn limit<K: Kernel>(&self, kernel: &K, resources: &Resources) -> Result<()> {
        for (file, value) in limits(resources) {
            if let Err(cause) = kernel.write(self.fd(), file, &value) {
                // A kernel without swap has no swap limit, and needs none.
                if file != "memory.swap.max" {
                    return Err(cause);
                }
            }
        }
        Ok(())
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub fn kill(&self) {
        if let Err(cause) = std::fs::write(self.path.join("cgroup.kill"), "1") {
            crate::warn!("cgroup.kill: {cause}");
        }
    }

    /// Stops its processes, whatever else has stopped them. Blocking; when it fails some may stand still: see [`Self::thaw`].
    pub fn freeze(&self, deadline: Duration) -> Result<()> {
        halt(&self.path, deadline)
    }

    /// Undoes [`Self::freeze`], and nothing that is frozen above.
    pub fn thaw(&self) -> Result<()> {
        std::fs::write(self.path.join("cgroup.freeze"), "0").what("thaw the container's cgroup")
    }

    /// Processes of this container that the kernel killed for memory, so far.
    pub fn oom_kills(&self) -> u64 {
        let mut text = [0; 256];
        let length = self.memory_events.as_ref().and_then(|events| events.read_at(&mut text, 0).ok()).unwrap_or(0);
        std::str::from_utf8(&text[..length]).map_or(0, |text| find_field(text, "oom_kill"))
    }

    /// Removes the cgroup, waiting for the last killed process to leave it.
    pub fn remove(&self, deadline: Instant) -> Result<()> {
        loop {
            remove_children(&self.path);
            match std::fs::remove_dir(&self.path) {
                Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(cause) if Instant::now() >= deadline => return Err(cause).what("remove the container's cgroup"),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
                Ok(()) => return Ok(()),
            }
        }
    }

    pub fn stats(&self) -> GetStatsResponse {
        let number = |file| self.read(file).trim().parse().unwrap_or(0);
        let (io_read_bytes, io_write_bytes) = parse_io(&self.read("io.stat"));
        GetStatsResponse {
            cpu_usage_ns: self.field("cpu.stat", "usage_usec") * 1000,
            memory_usage_bytes: number("memory.current"),
            memory_limit_bytes: number("memory.max"),
            pids: number("pids.current"),
            io_read_bytes,
            io_write_bytes,
            agent_rss_bytes: 0,
        }
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.path.join(file)).unwrap_or_default()
    }

    fn field(&self, file: &str, key: &str) -> u64 {
        find_field(&self.read(file), key)
    }
}

/// `KEY NUMBER` lines, as the kernel writes them; 0 when absent.
pub fn find_field(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

fn parse_io(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let values = text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
        values.fold(0_u64, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

/// Cgroups that a container with a writable cgroup filesystem made for itself, deepest first.
fn remove_children(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_children(&entry.path());
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .what("open the container's cgroup")
}

fn limits(resources: &Resources) -> Vec<(&'static str, String)> {
    let mut limits = vec![("memory.oom.group", "0".to_owned())];
    if resources.memory_bytes > 0 {
        limits.push(("memory.max", resources.memory_bytes.to_string()));
        limits.push(("memory.swap.max", "0".to_owned()));
    }
    if resources.cpu_quota_us > 0 {
        let period = if resources.cpu_period_us == 0 { DEFAULT_PERIOD_US } else { resources.cpu_period_us };
        limits.push(("cpu.max", format!("{} {period}", resources.cpu_quota_us)));
    }
    if resources.cpu_shares > 0 {
        limits.push(("cpu.weight", weight(resources.cpu_shares).to_string()));
    }
    if resources.pids_limit > 0 {
        limits.push(("pids.max", resources.pids_limit.to_string()));
    }
    limits
}

/// Docker's shares (2-262144, default 1024) on cgroup v2's scale (1-10000, default 100), as runc maps them.
fn weight(shares: u64) -> u64 {
    let l = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::recording::Recorder;
    use crate::path::tests::Scratch;

    fn asked() -> Resources {
        Resources { memory_bytes: 64 << 20, cpu_quota_us: 50_000, cpu_period_us: 0, cpu_shares: 1024, pids_limit: 10 }
    }

    fn hierarchy() -> (Scratch, Recorder) {
        let scratch = Scratch::new();
        let kernel = Recorder::below(&scratch.0);
        prepare(&kernel, &scratch.0).unwrap();
        (scratch, kernel)
    }

    #[test]
    fn limits_are_written_in_the_containers_own_group() {
        let (scratch, kernel) = hierarchy();
        Cgroup::create(&kernel, &scratch.0, "web", &asked()).unwrap();
        let log = kernel.log.borrow();
        assert_eq!(log[0], "/cgroup.subtree_control = +cpu +memory +pids +io");
        assert_eq!(log[1], "/hyper/cgroup.subtree_control = +cpu +memory +pids +io");
        assert_eq!(
            log[2..],
            [
                "/hyper/web/memory.oom.group = 0",
                "/hyper/web/memory.max = 67108864",
                "/hyper/web/memory.swap.max = 0",
                "/hyper/web/cpu.max = 50000 100000",
                "/hyper/web/cpu.weight = 100",
                "/hyper/web/pids.max = 10"
            ]
        );
    }

    #[test]
    fn no_limits_means_none_are_written() {
        assert_eq!(limits(&Resources::default()), [("memory.oom.group", "0".to_owned())]);
    }

    #[test]
    fn a_failed_limit_leaves_no_group_but_missing_swap_is_fine() {
        let (scratch, mut kernel) = hierarchy();
        kernel.fail_on = Some("pids.max");
        assert!(Cgroup::create(&kernel, &scratch.0, "web", &asked()).is_err());
        assert!(!scratch.0.join("hyper/web").exists());
        kernel.fail_on = Some("swap");
        Cgroup::create(&kernel, &scratch.0, "web", &asked()).unwrap();
    }

    #[test]
    fn shares_map_to_the_ends_and_the_default() {
        assert_eq!([2, 1024, 262_144, 0].map(weight), [1, 100, 10_000, 1]);
    }

    #[test]
    fn counters_are_read_and_absent_ones_are_zero() {
        assert_eq!(find_field("low 0\noom 3\noom_kill 2\n", "oom_kill"), 2);
        assert_eq!(find_field("oom_kill x\n", "oom_kill"), 0);
        assert_eq!(parse_io("254:0 rbytes=10 wbytes=5 rios=1\n254:1 rbytes=7 wbytes=0\n"), (17, 5));
    }
}
