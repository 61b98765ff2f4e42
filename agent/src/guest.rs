// SPDX-License-Identifier: Apache-2.0
//! The guest's identity: clock, entropy, host name, links, name resolution. Given at start and again after a
//! restore, so that no two clones share any of it before user code runs.

use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, Timespec};

use crate::error::{Context, Error, Result};
use crate::mount::Linux;
use crate::net;
use crate::path::Root;
use crate::proto::{ConfigureGuestRequest, Dns, HostEntry};
use crate::{rootfs, sys};

const MAX_ENTROPY: usize = 512;
const MAX_HOSTNAME: usize = 64;

/// What containers learn about the guest they are in.
#[derive(Default)]
pub struct Identity {
    known: Mutex<Known>,
}

#[derive(Default, Clone)]
struct Known {
    hostname: String,
    addresses: Vec<String>,
    dns: Dns,
    hosts: Vec<HostEntry>,
}

impl Identity {
    /// Blocking: links may take seconds to appear.
    pub fn configure(&self, request: &ConfigureGuestRequest) -> Result<()> {
        check(request)?;
        if request.wall_clock_unix_ns != 0 {
            let nanos = request.wall_clock_unix_ns;
            let time = Timespec { tv_sec: nanos.div_euclid(1_000_000_000), tv_nsec: nanos.rem_euclid(1_000_000_000) };
            rustix::time::clock_settime(ClockId::Realtime, time).what("step the clock")?;
        }
        if !request.entropy.is_empty() {
            let random = rustix::fs::open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .what("open /dev/urandom")?;
            sys::add_entropy(random.as_fd(), &request.entropy).what("add entropy")?;
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
        net::configure(&request.links)?;

        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !request.hostname.is_empty() {
            known.hostname.clone_from(&request.hostname);
        }
        let addresses = request.links.iter().flat_map(|link| &link.addresses);
        known.addresses = addresses.map(|cidr| cidr.split('/').next().unwrap_or(cidr).to_owned()).collect();
        known.dns = request.dns.clone().unwrap_or_default();
        known.hosts.clone_from(&request.hosts);
        Ok(())
    }

    pub fn hostname(&self) -> String {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).hostname.clone();
        if known.is_empty() { rustix::system::uname().nodename().to_string_lossy().into_owned() } else { known }
    }

    /// hosts, hostname and resolv.conf of one container.
    pub fn write_files(&self, directory: &Path, hostname: &str) -> Result<()> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let files = [
            ("hosts", render_hosts(&known, hostname)),
            ("hostname", format!("{hostname}\n")),
            ("resolv.conf", render_resolv(&known.dns)),
        ];
        for (name, content) in files {
            std::fs::write(directory.join(name), content).what(format_args!("write {name}"))?;
        }
        Ok(())
    }
}

fn render_hosts(known: &Known, hostname: &str) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for entry in &known.hosts {
        let _ = writeln!(text, "{}\t{}", entry.address, entry.names.join(" "));
    }
    let own = if known.addresses.is_empty() { &["127.0.1.1".to_owned()][..] } else { &known.addresses[..] };
    // As Docker: the short name beside a full one.
    let alias = hostname.split_once('.').map_or_else(String::new, |(short, _)| format!(" {short}"));
    for address in own {
        let _ = writeln!(text, "{address}\t{hostname}{alias}");
    }
    text
}

fn render_resolv(dns: &Dns) -> String {
    let mut text = String::new();
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    for (word, list) in [("search", &dns.searches), ("options", &dns.options)] {
        if !list.is_empty() {
            let _ = writeln!(text, "{word} {}", list.join(" "));
        }
    }
    text
}

fn check(request: &ConfigureGuestRequest) -> Result<()> {
    if request.entropy.len() > MAX_ENTROPY {
        return Err(Error::invalid(format!("{} bytes of entropy are more than {MAX_ENTROPY}", request.entropy.len())));
    }
    if request.hostname.len() > MAX_HOSTNAME || request.hostname.contains(['/', '\0', '\n', ' ']) {
        return Err(Error::invalid(format!("bad host name {:?}", request.hostname)));
    }
    let dns = request.dns.clone().unwrap_or_default();
    let words = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    let names = request.hosts.iter().flat_map(|entry| entry.names.iter().chain([&entry.address]));
    if let Some(bad) = words.chain(names).find(|word| word.len() > 255 || word.contains(char::is_whitespace)) {
        return Err(Error::invalid(format!("bad name {bad:?}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_finds_itself_and_its_neighbours() {
        let known = Known {
            addresses: vec!["10.0.0.2".into()],
            hosts: vec![HostEntry { address: "10.0.0.3".into(), names: vec!["db".into(), "db.local".into()] }],
            ..Known::default()
        };
        let hosts = render_hosts(&known, "web");
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(hosts.ends_with("10.0.0.3\tdb db.local\n10.0.0.2\tweb\n"));
        assert!(render_hosts(&Known::default(), "web").ends_with("127.0.1.1\tweb\n"));
        assert!(render_hosts(&known, "web.example.com").ends_with("10.0.0.2\tweb.example.com web\n"));
    }

    #[test]
    fn resolv_conf_has_what_was_given_and_nothing_else() {
        let dns = Dns { servers: vec!["10.0.0.1".into()], searches: vec!["a".into(), "b".into()], options: vec![] };
        assert_eq!(render_resolv(&dns), "nameserver 10.0.0.1\nsearch a b\n");
        assert_eq!(render_resolv(&Dns::default()), "");
    }

    #[test]
    fn what_would_break_a_file_is_refused() {
        let bad = [
            ConfigureGuestRequest { hostname: "a\nb".into(), ..Default::default() },
            ConfigureGuestRequest { hostname: "x".repeat(65), ..Default::default() },
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
            assert!(check(&request).is_err());
        }
    }
}
