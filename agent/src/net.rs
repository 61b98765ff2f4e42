// SPDX-License-Identifier: Apache-2.0
//! Links, addresses and routes over rtnetlink, by hand: five messages do not justify a crate of several hundred KiB.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Kind, Result};
use crate::proto::{Link, Route};
use crate::rtnetlink::{Message, ask, list_addresses, open_socket};
use crate::sys;

const LINK_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(2);
const MAX_LINKS: usize = 64;
type Mac = [u8; 6];

const LINKS: &str = "/sys/class/net";
const LOOPBACK_INDEX: u32 = 1;

/// The guest's links as they were asked for the last time; a clone is born with its parent's.
#[derive(Default)]
pub struct Links {
    applied: Mutex<Vec<Link>>,
}

impl Links {
    /// Nothing was ever asked for.
    pub fn are_untouched(&self) -> bool {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Brings up lo and every link asked for. Blocking; doing it again changes nothing.
    /// `are_new`: nothing was ever configured on them.
    pub fn configure(&self, links: &[Link], are_new: bool) -> Result<()> {
        if links.len() > MAX_LINKS {
            return Err(Error::invalid(format!("{} links are more than {MAX_LINKS}", links.len())));
        }
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        if links.is_empty() && applied.is_empty() && LO_IS_UP.load(Ordering::Relaxed) {
            return Ok(());
        }
        let socket = open_socket()?;
        bring_up(&socket)?;
        // Whatever of the earlier ones is no longer asked for goes before anything comes.
        for earlier in applied.iter().filter(|earlier| !links.contains(earlier)) {
            if let Some((index, _)) = sys::find_link(socket.as_fd(), &earlier.name) {
                flush(&socket, index, &earlier.name)
                    .map_err(|error| error.of(format_args!("flush {}", earlier.name)))?;
            }
        }
        applied.retain(|earlier| links.contains(earlier));
        let asked = parse_macs(links)?;
        for link in links {
            configure_link(&socket, link, &asked, are_new)?;
        }
        *applied = links.to_vec();
        Ok(())
    }

    /// While containers run. Blocking; doing it again changes nothing.
    pub fn rewire(&self, links: &[Link]) -> Result<()> {
        if links.len() > MAX_LINKS {
            return Err(Error::invalid(format!("{} links are more than {MAX_LINKS}", links.len())));
        }
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let before = applied.clone();
        let socket = open_socket()?;
        for gone in before.iter().filter(|earlier| !links.iter().any(|link| is_place(link, earlier))) {
            if let Some((index, _)) = sys::find_link(socket.as_fd(), &gone.name) {
                flush(&socket, index, &gone.name).map_err(|error| error.of(format_args!("flush {}", gone.name)))?;
                ask(&socket, Message::link(index, 0, libc::IFF_UP)).what(format_args!("take {} down", gone.name))?;
            }
            applied.retain(|earlier| earlier != gone);
        }
        let asked = parse_macs(links)?;
        for link in links {
            // Before it is: what fails halfway is taken back by the next call.
            applied.retain(|earlier| !is_place(link, earlier));
            applied.push(link.clone());
            configure_link(&socket, link, &asked, false)?;
        }
        for link in links {
            before
                .iter()
                .filter(|earlier| is_place(link, earlier))
                .try_for_each(|it| remove_routes(&socket, it, link))?;
        }
        Ok(())
    }
}

/// The same NIC with the same addresses: its connections go on.
fn is_place(one: &Link, other: &Link) -> bool {
    (&one.mac, &one.name, &one.addresses) == (&other.mac, &other.name, &other.addresses)
}

/// Those of `before` that `after` has not. One that another link has taken over is gone already.
fn remove_routes(socket: &OwnedFd, before: &Link, after: &Link) -> Result<()> {
    let gone: Vec<_> = before.routes.iter().filter(|route| !after.routes.contains(route)).collect();
    let Some((index, _)) = sys::find_link(socket.as_fd(), &after.name).filter(|_| !gone.is_empty()) else {
        return Ok(());
    };
    for route in gone {
        match ask(socket, route_message(libc::RTM_DELROUTE, index, route)?) {
            Err(rustix::io::Errno::SRCH) => {}
            done => done.what(format_args!("remove route {}", route.destination))?,
        }
    }
    Ok(())
}

static LO_IS_UP: AtomicBool = AtomicBool::new(false);

pub fn bring_up_lo() -> Result<()> {
    bring_up(&open_socket()?)
}

fn bring_up(socket: &OwnedFd) -> Result<()> {
    if !LO_IS_UP.load(Ordering::Relaxed) {
        ask(socket, Message::link(LOOPBACK_INDEX, libc::IFF_UP, libc::IFF_UP)).what("bring up lo")?;
        LO_IS_UP.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Removes addresses and routes, with the link up: virtio-net takes another MAC then, and a driver whose device was cloned in
/// the middle of something is better not closed. IPv4's routes go with the last address, IPv6's with IPv6.
fn flush(socket: &OwnedFd, index: u32, name: &str) -> Result<()> {
    let switch = Path::new("/proc/sys/net/ipv6/conf").join(name).join("disable_ipv6");
    if switch.exists() {
        std::fs::write(&switch, "1").what("disable IPv6")?;
        std::fs::write(&switch, "0").what("enable IPv6")?;
    }
    for (ip, prefix) in list_addresses(socket, index).what("list addresses")? {
        // The link's own, which it has from its MAC.
        if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            continue;
        }
        match ask(socket, address_message(libc::RTM_DELADDR, index, ip, prefix)) {
            // A secondary address goes with its primary one.
            Err(rustix::io::Errno::ADDRNOTAVAIL) => {}
            done => done.what(format_args!("remove address {ip}"))?,
        }
    }
    Ok(())
}

/// `asked`: of all links that there are to be.
fn configure_link(socket: &OwnedFd, link: &Link, asked: &[Mac], is_new: bool) -> Result<()> {
    if link.name.len() > 15 || link.name.contains(['/', '\0', ' ']) {
        return Err(Error::invalid(format!("bad link name {:?}", link.name)));
    }
    let mac = parse_mac(&link.mac)?;
    let Found { index, name, is_foreign } = wait_link(socket, mac, &link.name, asked)?;
    if is_foreign {
        // First: what the link makes of its MAC for IPv6 it makes anew when it is flushed.
        ask(socket, Message::link(index, 0, 0).with(libc::IFLA_ADDRESS, &mac))
            .what(format_args!("set the MAC address of {name}"))?;
        // A clone's: it still has its parent's addresses, of whatever origin.
        if !is_new {
            flush(socket, index, &name).map_err(|error| error.of(format_args!("flush {name}")))?;
        }
    }
    if !link.name.is_empty() && link.name != name {
        // A link that is up may not be renamed.
        ask(socket, Message::link(index, 0, libc::IFF_UP)).what(format_args!("take {name} down"))?;
        let what = format!("rename {name} to {}", link.name);
        match rename(socket, index, &link.name) {
            Err(rustix::io::Errno::EXIST) => {
                move_aside(socket, &link.name)?;
                rename(socket, index, &link.name).what(what)?;
            }
            renamed => renamed.what(what)?,
        }
    }
    if link.mtu > 0 {
        ask(socket, Message::link(index, 0, 0).with(libc::IFLA_MTU, &link.mtu.to_ne_bytes()))
            .what(format_args!("set mtu {}", link.mtu))?;
    }
    let mut up = Message::link(index, libc::IFF_UP, libc::IFF_UP);
    if !link.addresses.iter().any(|address| address.contains(':')) {
        // A network without IPv6 has no use for an address of the link's own making.
        up = up.with(libc::IFLA_AF_SPEC, &no_own_address());
    }
    ask(socket, up).what(format_args!("bring up {}", link.name))?;
    for address in &link.addresses {
        let (ip, prefix) = parse_cidr(address)?;
        tolerate_existing(ask(socket, address_message(libc::RTM_NEWADDR, index, ip, prefix)))
            .what(format_args!("add address {address}"))?;
    }
    for route in &link.routes {
        tolerate_existing(ask(socket, route_message(libc::RTM_NEWROUTE, index, route)?))
            .what(format_args!("add route {} via {:?}", route.destination, route.gateway))?;
    }
    Ok(())
}

/// AF_INET6's attributes, nested: IFLA_INET6_ADDR_GEN_MODE = none.
fn no_own_address() -> Vec<u8> {
    const ADDR_GEN_MODE: u16 = 8;
    const NONE: u8 = 1;
    let mut bytes = Vec::with_capacity(12);
    for number in [12, libc::AF_INET6 as u16, 5, ADDR_GEN_MODE] {
        bytes.extend_from_slice(&number.to_ne_bytes());
    }
    bytes.extend_from_slice(&[NONE, 0, 0, 0]);
    bytes
}

fn rename(socket: &OwnedFd, index: u32, name: &str) -> rustix::io::Result<()> {
    let mut wanted = name.as_bytes().to_vec();
    wanted.push(0);
    ask(socket, Message::link(index, 0, 0).with(libc::IFLA_IFNAME, &wanted))
}

/// The kernel named another link so; it will get its own name, or keep a number.
fn move_aside(socket: &OwnedFd, name: &str) -> Result<()> {
    let (index, _) = sys::find_link(socket.as_fd(), name).ok_or_else(|| Error::internal(format!("find {name}")))?;
    ask(socket, Message::link(index, 0, libc::IFF_UP)).what(format_args!("take {name} down"))?;
    rename(socket, index, &format!("link{index}")).what(format_args!("rename {name}"))
}

fn tolerate_existing(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    if result == Err(rustix::io::Errno::EXIST) { Ok(()) } else { result }
}

fn address_message(kind: u16, index: u32, ip: IpAddr, prefix: u8) -> Message {
    // No duplicate detection: the host gave the address, and it must work at once.
    let mut header =
        vec![family(ip), prefix, libc::IFA_F_NODAD as u8 * u8::from(ip.is_ipv6()), libc::RT_SCOPE_UNIVERSE];
    header.extend_from_slice(&index.to_ne_bytes());
    let bytes = octets(ip);
    let mut message = Message::new(kind, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &header)
        .with(libc::IFA_LOCAL, &bytes)
        .with(libc::IFA_ADDRESS, &bytes);
    if let IpAddr::V4(v4) = ip {
        if prefix < 31 {
            let broadcast = u32::from(v4) | (u32::MAX >> prefix);
            message = message.with(libc::IFA_BROADCAST, &broadcast.to_be_bytes());
        }
    }
    message
}

fn route_message(kind: u16, index: u32, route: &Route) -> Result<Message> {
    let (destination, prefix) = parse_cidr(&route.destination)?;
    let scope = if route.gateway.is_empty() { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
    let mut header =
        vec![family(destination), prefix, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, scope, libc::RTN_UNICAST];
    header.extend_from_slice(&[0; 4]);
    let mut message =
        Message::new(kind, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &header).with(libc::RTA_OIF, &index.to_ne_bytes());
    if prefix > 0 {
        message = message.with(libc::RTA_DST, &octets(destination));
    }
    if !route.gateway.is_empty() {
        let gateway: IpAddr =
            route.gateway.parse().map_err(|_| Error::invalid(format!("bad gateway {:?}", route.gateway)))?;
        if gateway.is_ipv4() != destination.is_ipv4() {
            return Err(Error::invalid(format!("gateway {gateway} is not of {destination}'s family")));
        }
        message = message.with(libc::RTA_GATEWAY, &octets(gateway));
    }
    Ok(message)
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn parse_cidr(text: &str) -> Result<(IpAddr, u8)> {
    let parsed = text.split_once('/').and_then(|(ip, prefix)| {
        let (ip, prefix): (IpAddr, u8) = (ip.parse().ok()?, prefix.parse().ok()?);
        (prefix <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, prefix))
    });
    parsed.ok_or_else(|| Error::invalid(format!("bad address {text:?}, wanted ADDRESS/PREFIX")))
}

fn is_foreign(address: Mac, asked: &[Mac]) -> bool {
    !asked.contains(&address)
}

fn parse_macs(links: &[Link]) -> Result<Vec<Mac>> {
    links.iter().map(|link| parse_mac(&link.mac)).collect()
}

fn parse_mac(text: &str) -> Result<Mac> {
    let octet = |part: &str| {
        let sane = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        sane.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    };
    let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
    let mac = octets.and_then(|octets| Mac::try_from(octets).ok());
    mac.ok_or_else(|| Error::invalid(format!("bad MAC address {text:?}")))
}

struct Found {
    index: u32,
    name: String,
    /// It has the name that is wanted, but another MAC.
    is_foreign: bool,
}

/// A link may be plugged in just now. sysfs shows it in the moment it can be configured.
fn wait_link(socket: &OwnedFd, mac: Mac, wanted: &str, asked: &[Mac]) -> Result<Found> {
    let deadline = Instant::now() + LINK_DEADLINE;
    loop {
        if let Some(found) = find_link(socket, mac, wanted, asked)? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            let [a, b, c, d, e, f] = mac;
            return Err(Error::new(
                Kind::NotFound,
                format!(
                    "no link with MAC {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} within {} s",
                    LINK_DEADLINE.as_secs()
                ),
            ));
        }
        std::thread::sleep(POLL);
    }
}

/// By MAC; else the link that is called so: in a clone it has its parent's MAC still. One that another link is to be is
/// none: of several that are plugged in at once the kernel calls each as it comes.
fn find_link(socket: &OwnedFd, mac: Mac, wanted: &str, asked: &[Mac]) -> Result<Option<Found>> {
    let named = sys::find_link(socket.as_fd(), wanted);
    if let Some((index, _)) = named.filter(|&(_, address)| address == mac) {
        return Ok(Some(Found { index, name: wanted.to_owned(), is_foreign: false }));
    }
    for entry in std::fs::read_dir(LINKS).what("list links")?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if let Some((index, _)) = sys::find_link(socket.as_fd(), &name).filter(|&(_, address)| address == mac) {
            return Ok(Some(Found { index, name, is_foreign: false }));
        }
    }
    let foreign = named.filter(|&(_, address)| is_foreign(address, asked));
    Ok(foreign.map(|(index, _)| Found { index, name: wanted.to_owned(), is_foreign: true }))
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
