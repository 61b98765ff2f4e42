// SPDX-License-Identifier: Apache-2.0
//! Messages of rtnetlink by hand, and what the kernel answers.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::{Context, Result};

/// A request and its attributes, laid out as the kernel reads them.
pub struct Message(Vec<u8>);

impl Message {
    pub fn new(kind: u16, flags: i32, header: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&((flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(header);
        Self(bytes)
    }

    pub fn link(index: u32, flags: i32, change: i32) -> Self {
        let mut header = vec![0; 4];
        header.extend_from_slice(&index.to_ne_bytes());
        header.extend_from_slice(&flags.to_ne_bytes());
        header.extend_from_slice(&change.to_ne_bytes());
        Self::new(libc::RTM_NEWLINK, 0, &header)
    }

    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Sends and waits for the kernel's verdict.
pub fn ask(socket: &OwnedFd, message: Message) -> rustix::io::Result<()> {
    rustix::net::send(socket, &message.finish(), SendFlags::empty())?;
    let mut reply = [0_u8; 4096];
    let (length, _) = rustix::net::recv(socket, &mut reply[..], RecvFlags::empty())?;
    let kind = u16::from_ne_bytes([reply[4], reply[5]]);
    if length < 20 || kind != libc::NLMSG_ERROR as u16 {
        return Err(rustix::io::Errno::PROTO);
    }
    match i32::from_ne_bytes([reply[16], reply[17], reply[18], reply[19]]) {
        0 => Ok(()),
        code => Err(rustix::io::Errno::from_raw_os_error(-code)),
    }
}

pub fn open_socket() -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).what("open rtnetlink")
}

/// IPv4 and IPv6 addresses of one link.
pub fn list_addresses(socket: &OwnedFd, index: u32) -> rustix::io::Result<Vec<(IpAddr, u8)>> {
    let mut message = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; 8]).finish();
    // A dump ends with a message of its own, not with an acknowledgement.
    message[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    rustix::net::send(socket, &message, SendFlags::empty())?;
    let mut found = Vec::new();
    let mut reply = vec![0_u8; 32 * 1024];
    loop {
        let (length, _) = rustix::net::recv(socket, &mut reply[..], RecvFlags::empty())?;
        if parse_addresses(&reply[..length], index, &mut found)? {
            return Ok(found);
        }
    }
}

/// True at the end of the dump.
pub fn parse_addresses(mut bytes: &[u8], index: u32, found: &mut Vec<(IpAddr, u8)>) -> rustix::io::Result<bool> {
    while bytes.len() >= 16 {
        let length = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        let body = bytes.get(16..length).ok_or(rustix::io::Errno::PROTO)?;
        if kind == libc::NLMSG_DONE as u16 {
            return Ok(true);
        }
        if kind == libc::NLMSG_ERROR as u16 {
            return Err(rustix::io::Errno::PROTO);
        }
        if kind == libc::RTM_NEWADDR && body.len() >= 8 && body[4..8] == index.to_ne_bytes() {
            found.extend(parse_address(&body[8..]).map(|ip| (ip, body[1])));
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// IFA_LOCAL, or IFA_ADDRESS, which alone is IPv6's.
fn parse_address(mut attributes: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
        let value = attributes.get(4..length)?;
        let address = match value.len() {
            4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
            _ => None,
        };
        if kind == libc::IFA_LOCAL {
            return address;
        }
        if kind == libc::IFA_ADDRESS {
            found = address;
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_but_their_length_is_not() {
        let bytes = Message::link(2, 0, 0).with(libc::IFLA_IFNAME, b"eth0\0").finish();
        assert_eq!(bytes.len(), 16 + 16 + 12);
        assert_eq!(bytes[32..36], [9, 0, 3, 0]);
    }
}
