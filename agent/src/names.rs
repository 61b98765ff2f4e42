// SPDX-License-Identifier: Apache-2.0
//! What containers read about the guest they are in: hosts, hostname, resolv.conf, machine-id, boot-id. Kept by the agent, one
//! directory a container, bind-mounted over the image's; rewritten in place, so that it shows.

use std::fmt::Write as _;
use std::path::Path;

use crate::error::{Context, Result};
use crate::proto::{Dns, HostEntry};
use crate::rootfs::{BOOT_ID, MACHINE_ID};

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

fn write(directory: &Path, name: &str, content: &str) -> Result<()> {
    std::fs::write(directory.join(name), content).what(format_args!("write {name}"))
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
