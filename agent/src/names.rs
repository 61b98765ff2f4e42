// SPDX-License-Identifier: Apache-2.0
//! What containers read about the guest they are in: hosts, hostname, resolv.conf, machine-id, boot-id. Kept by the agent, one
//! directory a container, bind-mounted over the image's; rewritten in place, so that it shows.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;

use crate::error::{Context, Result};
use crate::guest::check_hostname;
use crate::proto::{Dns, HostEntry, Link};
use crate::rootfs::{BOOT_ID, MACHINE_ID, NAME_FILES};

const MAX_BYTES: u64 = 256 * 1024;

#[derive(Default, Clone)]
pub struct Names {
    pub hostname: String,
    pub addresses: Vec<String>,
    pub dns: Dns,
    pub hosts: Vec<HostEntry>,
    /// Empty: containers find what their image and the kernel have.
    pub machine_id: String,
    pub boot_id: String,
}

impl Names {
    pub fn learn_wiring(&mut self, links: &[Link], dns: Option<&Dns>, hosts: &[HostEntry]) {
        let addresses = links.iter().flat_map(|link| &link.addresses);
        self.addresses = addresses.map(|cidr| cidr.split('/').next().unwrap_or(cidr).to_owned()).collect();
        self.dns = dns.cloned().unwrap_or_default();
        self.hosts = hosts.to_vec();
    }

    /// Of a container that has its files, and may have changed them: by the lines that differ from `before`.
    pub fn revise(&self, before: &Self, directory: &Path) -> Result<()> {
        let hostname = read(directory, "hostname")?;
        let hostname = hostname.lines().next().filter(|name| !name.is_empty() && check_hostname(name).is_ok());
        let hostname = hostname.unwrap_or(&self.hostname);
        let hosts = (render_hosts(before, hostname), render_hosts(self, hostname));
        let resolv = (render_resolv(&before.dns), render_resolv(&self.dns));
        for (name, (was, is)) in [("hosts", hosts), ("resolv.conf", resolv)] {
            if was != is {
                write(directory, name, &revised(&read(directory, name)?, &was, &is))?;
            }
        }
        Ok(())
    }

    /// Of a container with that host name.
    pub fn write(&self, directory: &Path, hostname: &str) -> Result<()> {
        write(directory, "hosts", &render_hosts(self, hostname))?;
        write(directory, "hostname", &format!("{hostname}\n"))?;
        write(directory, "resolv.conf", &render_resolv(&self.dns))
    }

    /// `again`: only those that the container was made with.
    pub fn write_ids(&self, directory: &Path, again: bool) -> Result<()> {
        for (name, id) in [(MACHINE_ID, &self.machine_id), (BOOT_ID, &self.boot_id)] {
            if !id.is_empty() && (!again || directory.join(name).exists()) {
                write(directory, name, &format!("{id}\n"))?;
            }
        }
        Ok(())
    }
}

/// The same files under a second name: whoever changes one, in place, changes both.
pub fn share(from: &Path, directory: &Path) -> Result<()> {
    for name in NAME_FILES {
        std::fs::hard_link(from.join(name), directory.join(name)).what(format_args!("share {name}"))?;
    }
    Ok(())
}

fn write(directory: &Path, name: &str, content: &str) -> Result<()> {
    std::fs::write(directory.join(name), content).what(format_args!("write {name}"))
}

/// What a container made too long for us is cut: it is the container's own.
fn read(directory: &Path, name: &str) -> Result<String> {
    let file = std::fs::File::open(directory.join(name)).what(format_args!("open {name}"))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).what(format_args!("read {name}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `text` without the lines that only `was` has, and with those that it lacks of `is`, in their order before all that follows
/// the first of them.
fn revised(text: &str, was: &str, is: &str) -> String {
    let is_ours = |line: &str| was.lines().any(|old| old == line);
    let stays = |line: &str| !is_ours(line) || is.lines().any(|new| new == line);
    let mut kept: Vec<&str> = text.lines().filter(|line| stays(line)).collect();
    let mut place = 0;
    for line in is.lines() {
        match kept.iter().position(|old| *old == line) {
            Some(found) => place = place.max(found + 1),
            None => {
                kept.insert(place, line);
                place += 1;
            }
        }
    }
    kept.iter().flat_map(|line| [*line, "\n"]).collect()
}

fn render_hosts(known: &Names, hostname: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::tests::Scratch;

    #[test]
    fn a_container_finds_itself_and_its_neighbours() {
        let known = Names {
            addresses: vec!["10.0.0.2".into()],
            hosts: vec![HostEntry { address: "10.0.0.3".into(), names: vec!["db".into(), "db.local".into()] }],
            ..Names::default()
        };
        let hosts = render_hosts(&known, "web");
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(hosts.ends_with("10.0.0.3\tdb db.local\n10.0.0.2\tweb\n"));
        assert!(render_hosts(&Names::default(), "web").ends_with("127.0.1.1\tweb\n"));
        assert!(render_hosts(&known, "web.example.com").ends_with("10.0.0.2\tweb.example.com web\n"));
    }

    #[test]
    fn resolv_conf_has_what_was_given_and_nothing_else() {
        let dns = Dns { servers: vec!["10.0.0.1".into()], searches: vec!["a".into(), "b".into()], options: vec![] };
        assert_eq!(render_resolv(&dns), "nameserver 10.0.0.1\nsearch a b\n");
        assert_eq!(render_resolv(&Dns::default()), "");
    }

    #[test]
    fn a_container_on_other_networks_keeps_what_it_wrote_itself() {
        let names = |addresses: &[&str], server: &str| Names {
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            dns: Dns { servers: vec![server.into()], ..Default::default() },
            ..Names::default()
        };
        let (before, after) = (names(&["10.0.0.2"], "10.0.0.1"), names(&["10.0.0.2", "10.1.0.2"], "10.1.0.1"));
        let scratch = Scratch::new();
        before.write(&scratch.0, "web").unwrap();
        let hosts = scratch.0.join("hosts");
        std::fs::write(&hosts, render_hosts(&before, "web") + "192.0.2.1\tmine\n").unwrap();
        after.revise(&before, &scratch.0).unwrap();
        assert!(std::fs::read_to_string(&hosts).unwrap().ends_with("10.0.0.2\tweb\n10.1.0.2\tweb\n192.0.2.1\tmine\n"));
        assert_eq!(std::fs::read_to_string(scratch.0.join("resolv.conf")).unwrap(), "nameserver 10.1.0.1\n");
        before.revise(&after, &scratch.0).unwrap();
        assert_eq!(std::fs::read_to_string(&hosts).unwrap(), render_hosts(&before, "web") + "192.0.2.1\tmine\n");
    }

    #[test]
    fn a_host_name_that_a_container_broke_is_the_guests_again() {
        let scratch = Scratch::new();
        let before = Names { hostname: "guest".into(), ..Names::default() };
        before.write(&scratch.0, "web").unwrap();
        std::fs::write(scratch.0.join("hostname"), "a b\n").unwrap();
        let after = Names { addresses: vec!["10.0.0.2".into()], ..before.clone() };
        after.revise(&before, &scratch.0).unwrap();
        assert!(std::fs::read_to_string(scratch.0.join("hosts")).unwrap().contains("10.0.0.2\tguest\n"));
    }

    #[test]
    fn a_container_that_shares_another_ones_names_sees_each_change_of_them() {
        let (first, second) = (Scratch::new(), Scratch::new());
        let before = Names { addresses: vec!["10.0.0.2".into()], ..Names::default() };
        before.write(&first.0, "web").unwrap();
        share(&first.0, &second.0).unwrap();
        let after = Names { addresses: vec!["10.0.0.2".into(), "10.1.0.2".into()], ..before.clone() };
        // All containers are revised, one after the other: the second time nothing is left to do.
        for scratch in [&first, &second] {
            after.revise(&before, &scratch.0).unwrap();
        }
        for scratch in [&first, &second] {
            assert_eq!(std::fs::read_to_string(scratch.0.join("hosts")).unwrap(), render_hosts(&after, "web"));
        }
        std::fs::remove_dir_all(&first.0).unwrap();
        assert_eq!(std::fs::read_to_string(second.0.join("hostname")).unwrap(), "web\n");
    }

    #[test]
    fn ids_are_written_when_given_and_rewritten_in_place() {
        use std::os::unix::fs::MetadataExt;
        let scratch = Scratch::new();
        let mut names = Names { machine_id: "a".repeat(32), ..Names::default() };
        names.write_ids(&scratch.0, false).unwrap();
        assert!(!scratch.0.join(BOOT_ID).exists());
        let inode = std::fs::metadata(scratch.0.join(MACHINE_ID)).unwrap().ino();
        names = Names { machine_id: "b".repeat(32), boot_id: "x".into(), ..Names::default() };
        names.write_ids(&scratch.0, true).unwrap();
        assert_eq!(std::fs::read_to_string(scratch.0.join(MACHINE_ID)).unwrap(), "b".repeat(32) + "\n");
        assert_eq!(std::fs::metadata(scratch.0.join(MACHINE_ID)).unwrap().ino(), inode);
        assert!(!scratch.0.join(BOOT_ID).exists());
    }
}
