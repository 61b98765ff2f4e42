// SPDX-License-Identifier: Apache-2.0
//! The first milliseconds of a guest: from the kernel's initramfs to the two ports.
//! Every step is a system call or two; nothing is waited for that is not there yet, except the ports.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};

use crate::cgroup;
use crate::error::{Context, Error, Result};
use crate::fork;
use crate::log;
use crate::mount::Linux;
use crate::net;

pub const STATE: &str = "/run/hyper";
/// Below the state directory: what every container finds as its own /run/hyper.
pub const SHARE: &str = "share";
pub const CONTROL: &str = "hyper.control";
pub const STREAM: &str = "hyper.stream";
/// In the initramfs.
const OWN_BINARY: &str = "/init";
const PORTS: &str = "/sys/class/virtio-ports";
const PORT_DEADLINE: Duration = Duration::from_secs(30);

/// Makes the initramfs a system.
pub fn prepare() -> Result<()> {
    leave_rootfs()?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, target, flags, data) in [
        ("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755"),
        ("proc", "/proc", plain, ""),
        ("sysfs", "/sys", plain, ""),
        ("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, "mode=0755"),
        ("cgroup2", "/sys/fs/cgroup", plain, ""),
        ("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=0620,gid=5"),
    ] {
        let _ = std::fs::create_dir_all(target);
        let data = std::ffi::CString::new(data).map_err(|_| Error::internal("mount data"))?;
        mount(kind, target, kind, flags, Some(data.as_c_str())).what(format_args!("mount {target}"))?;
        if target == "/dev" {
            speak_to_the_log();
        }
    }
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    log::DEBUG.store(cmdline.split_whitespace().any(|word| word == "hyper.log=debug"), Ordering::Relaxed);

    // The kernel must rather kill a container than the one who could tell of it.
    std::fs::write("/proc/self/oom_score_adj", "-1000").what("protect the agent from the OOM killer")?;
    cgroup::prepare(&Linux, Path::new(cgroup::MOUNT))?;
    for directory in ["stage", "disks", "containers", "empty", SHARE] {
        std::fs::create_dir_all(Path::new(STATE).join(directory)).what("create the agent's directories")?;
    }
    share_forkpoint()?;
    net::bring_up_lo()?;
    // From here on nobody, whatever handle they get hold of, writes to the agent's own file.
    rustix::mount::mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, "").what("make / read-only")
}

/// The agent's own binary, under a name by which it is another program.
fn share_forkpoint() -> Result<()> {
    let place = Path::new(STATE).join(SHARE).join(fork::PROGRAM);
    std::fs::write(&place, "").what("create forkpoint")?;
    mount_bind(OWN_BINARY, &place).what("bind forkpoint")?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount_remount(&place, flags, "").what("make forkpoint read-only")
}

/// pivot_root refuses to leave the kernel's rootfs, so that no container could get a root of its own.
/// A bind of it on top of itself is an ordinary mount, and costs four calls.
fn leave_rootfs() -> Result<()> {
    let _ = std::fs::create_dir("/run");
    mount_bind("/", "/run").what("bind /")?;
    rustix::process::chdir("/run").what("chdir")?;
    mount_move("/run", "/").what("move the root")?;
    rustix::process::chroot(".").what("chroot")?;
    rustix::process::chdir("/").what("chdir /")
}

/// Panics and warnings go to the kernel's log, whatever console there is.
fn speak_to_the_log() {
    let open = |path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    if let (Ok(kmsg), Ok(null)) = (open("/dev/kmsg", OFlags::WRONLY), open("/dev/null", OFlags::RDWR)) {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&kmsg);
        let _ = rustix::stdio::dup2_stderr(&kmsg);
    }
}

/// The port of that name; its driver may come up after us.
pub fn open_port(wanted: &str) -> Result<OwnedFd> {
    let deadline = Instant::now() + PORT_DEADLINE;
    let mut pause = Duration::from_millis(1);
    loop {
        for entry in std::fs::read_dir(PORTS).into_iter().flatten().flatten() {
            let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim_end() == wanted {
                let node = Path::new("/dev").join(entry.file_name());
                if let Ok(port) =
                    rustix::fs::open(&node, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
                {
                    return Ok(port);
                }
            }
        }
        if Instant::now() >= deadline {
            return Err(Error::not_found(format!(
                "no virtio-serial port {wanted} within {} s",
                PORT_DEADLINE.as_secs()
            )));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}
