// SPDX-License-Identifier: Apache-2.0
//! The guest's identity: entropy, clock, host name, devices, links, name resolution, ids. Given at start and again to a
//! clone, so that no two share any of it before user code runs.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, Timespec};

use crate::container::Container;
use crate::error::{Context, Error, Result};
use crate::fork::Releases;
use crate::mount::Linux;
use crate::names::Names;
use crate::net::Links;
use crate::path::Root;
use crate::proto::{ConfigureGuestRequest, Dns, HostEntry, RewireGuestRequest};
use crate::virtio::Released;
use crate::{names, rootfs, sys};

const MAX_ENTROPY: usize = 512;
const MAX_HOSTNAME: usize = 64;
const MAX_CONTAINERS: usize = 256;
const MAX_VARIABLES: usize = 1024;
const MAX_VARIABLE_BYTES: usize = 128 * 1024;

/// What makes this guest another one than its clones.
pub struct Identity {
    pub devices: Released,
    links: Links,
    names: Mutex<Names>,
    releases: Releases,
}

impl Identity {
    /// `share` is the directory that containers see as /run/hyper.
    pub fn new(drivers: &Path, share: &Path) -> Self {
        Self {
            devices: Released::new(drivers),
            links: Links::default(),
            names: Mutex::default(),
            releases: Releases::new(share.to_owned()),
        }
    }

    /// A NIC that never had an address is as good as new: it keeps its driver, and gets its clone's MAC.
    pub fn release_devices(&self, keep: impl Fn(&str) -> bool) -> Result<()> {
        self.devices.release(keep, !self.links.are_untouched())
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `containers` are all that exist. Blocking: links may take seconds to appear.
    pub fn configure(&self, request: &ConfigureGuestRequest, containers: &[Arc<Container>]) -> Result<()> {
        check(request)?;
        let mut renamed = Vec::new();
        for asked in &request.containers {
            let found = containers.iter().find(|container| container.id == asked.container_id);
            renamed.push((
                found.ok_or_else(|| Error::not_found(format!("no container {}", asked.container_id)))?,
                &asked.hostname,
            ));
        }
        // First of all: what follows may ask for random numbers.
        if !request.entropy.is_empty() {
            let random = rustix::fs::open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .what("open /dev/urandom")?;
            sys::add_entropy(random.as_fd(), &request.entropy).what("add entropy")?;
        }
        if request.wall_clock_unix_ns != 0 {
            step_clock(request.wall_clock_unix_ns)?;
        }
        if !request.hostname.is_empty() {
            rustix::system::sethostname(request.hostname.as_bytes()).what("set the host name")?;
        }
        if !request.sysctls.is_empty() {
            let root = Root::new(rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).what("open /")?);
            for (name, value) in &request.sysctls {
                rootfs::write_sysctl(&Linux, &root, name, value)?;
            }
        }
        let bound = self.devices.bind()?;
        self.links.configure(&request.links, bound || containers.is_empty() && self.links.are_untouched())?;
        let names = self.learn(request);
        for container in containers {
            names.write_ids(container.files(), true)?;
        }
        for (container, hostname) in renamed {
            let hostname = if hostname.is_empty() { &self.hostname() } else { hostname };
            names.write(container.files(), hostname)?;
            container.set_hostname(hostname)?;
        }
        request.fork.as_ref().map_or(Ok(()), |fork| self.releases.publish(fork))
    }

    /// `containers` are all that exist. Blocking: links may take seconds to appear.
    pub fn rewire(&self, request: &RewireGuestRequest, containers: &[Arc<Container>]) -> Result<()> {
        check_names(request.dns.as_ref(), &request.hosts)?;
        self.links.rewire(&request.links)?;
        let (before, after) = {
            let mut names = self.names();
            let before = names.clone();
            names.learn_wiring(&request.links, request.dns.as_ref(), &request.hosts);
            (before, names.clone())
        };
        containers.iter().try_for_each(|container| after.revise(&before, container.files()))
    }

    fn learn(&self, request: &ConfigureGuestRequest) -> Names {
        let mut names = self.names();
        if !request.hostname.is_empty() {
            names.hostname.clone_from(&request.hostname);
        }
        if !request.machine_id.is_empty() {
            names.machine_id.clone_from(&request.machine_id);
        }
        if !request.boot_id.is_empty() {
            names.boot_id.clone_from(&request.boot_id);
        }
        names.learn_wiring(&request.links, request.dns.as_ref(), &request.hosts);
        names.clone()
    }

    pub fn hostname(&self) -> String {
        let known = self.names().hostname.clone();
        if known.is_empty() { rustix::system::uname().nodename().to_string_lossy().into_owned() } else { known }
    }

    /// The files of a container that is being made; `shared`: those of another one are its own, too.
    pub fn write_files(&self, directory: &Path, hostname: &str, shared: Option<&Path>) -> Result<()> {
        let names = self.names().clone();
        match shared {
            Some(other) => names::share(other, directory)?,
            None => names.write(directory, hostname)?,
        }
        names.write_ids(directory, false)
    }
}

pub fn step_clock(unix_ns: i64) -> Result<()> {
    let time = Timespec { tv_sec: unix_ns.div_euclid(1_000_000_000), tv_nsec: unix_ns.rem_euclid(1_000_000_000) };
    rustix::time::clock_settime(ClockId::Realtime, time).what("step the clock")
}

pub fn wall_clock_unix_ns() -> i64 {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

pub fn check_hostname(name: &str) -> Result<()> {
    if name.len() > MAX_HOSTNAME || name.contains(['/', '\0', '\n', ' ']) {
        return Err(Error::invalid(format!("bad host name {name:?}")));
    }
    Ok(())
}

fn check(request: &ConfigureGuestRequest) -> Result<()> {
    if request.entropy.len() > MAX_ENTROPY {
        return Err(Error::invalid(format!("{} bytes of entropy are more than {MAX_ENTROPY}", request.entropy.len())));
    }
    check_hostname(&request.hostname)?;
    if request.containers.len() > MAX_CONTAINERS {
        return Err(Error::invalid("too many containers"));
    }
    request.containers.iter().try_for_each(|container| check_hostname(&container.hostname))?;
    check_ids(request)?;
    check_names(request.dns.as_ref(), &request.hosts)
}

fn check_names(dns: Option<&Dns>, hosts: &[HostEntry]) -> Result<()> {
    let words = dns.into_iter().flat_map(|dns| dns.servers.iter().chain(&dns.searches).chain(&dns.options));
    let names = hosts.iter().flat_map(|entry| entry.names.iter().chain([&entry.address]));
    if let Some(bad) = words.chain(names).find(|word| word.len() > 255 || word.contains(char::is_whitespace)) {
        return Err(Error::invalid(format!("bad name {bad:?}")));
    }
    Ok(())
}

fn check_ids(request: &ConfigureGuestRequest) -> Result<()> {
    let (machine, boot) = (request.machine_id.as_str(), request.boot_id.as_str());
    let hexadecimal = |text: &str| text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
    let is_machine_id = machine.len() == 32 && hexadecimal(machine);
    if !machine.is_empty() && !is_machine_id {
        return Err(Error::invalid(format!("bad machine id {machine:?}")));
    }
    let is_uuid = boot.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && boot.split('-').all(hexadecimal);
    if !boot.is_empty() && !is_uuid {
        return Err(Error::invalid(format!("bad boot id {boot:?}")));
    }
    let variables = request.fork.as_ref().map_or(&[][..], |fork| &fork.env);
    let bytes: usize = variables.iter().map(String::len).sum();
    if variables.len() > MAX_VARIABLES || bytes > MAX_VARIABLE_BYTES {
        return Err(Error::invalid("too many variables for forkpoints"));
    }
    // Values may be secrets: they are not told.
    let sane = |variable: &String| variable.find('=').is_some_and(|cut| cut > 0) && !variable.contains('\0');
    if !variables.iter().all(sane) {
        return Err(Error::invalid("a variable for forkpoints that is not KEY=VALUE"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ContainerIdentity, ForkIdentity};

    #[test]
    fn what_would_break_a_file_is_refused() {
        let bad = [
            ConfigureGuestRequest { hostname: "a\nb".into(), ..Default::default() },
            ConfigureGuestRequest { hostname: "x".repeat(65), ..Default::default() },
            ConfigureGuestRequest { machine_id: "A".repeat(32), ..Default::default() },
            ConfigureGuestRequest { machine_id: "a".repeat(31), ..Default::default() },
            ConfigureGuestRequest { boot_id: "a".repeat(36), ..Default::default() },
            ConfigureGuestRequest {
                fork: Some(ForkIdentity { env: vec!["=x".into()], ..Default::default() }),
                ..Default::default()
            },
            ConfigureGuestRequest {
                containers: vec![ContainerIdentity { container_id: "a".into(), hostname: "a b".into() }],
                ..Default::default()
            },
            ConfigureGuestRequest { entropy: vec![0; 513], ..Default::default() },
            ConfigureGuestRequest {
                dns: Some(Dns { servers: vec!["1.1.1.1\nnameserver 2".into()], ..Default::default() }),
                ..Default::default()
            },
            ConfigureGuestRequest {
                hosts: vec![HostEntry { address: "1".into(), names: vec!["a b".into()] }],
                ..Default::default()
            },
        ];
        for request in bad {
            assert!(check(&request).is_err(), "{request:?}");
        }
        let good = ConfigureGuestRequest {
            machine_id: "0123456789abcdef".repeat(2),
            boot_id: "01234567-89ab-cdef-0123-456789abcdef".into(),
            ..Default::default()
        };
        assert!(check(&good).is_ok());
    }
}
