// SPDX-License-Identifier: Apache-2.0
//! A terminal of the container's own devpts, so that its name means the same inside. The master travels to the agent.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::error::{Context, Error, Result};
use crate::proto::TerminalSize;
use crate::user::User;

const DEVPTS_MAGIC: u64 = 0x1cd1;

pub fn window(size: &TerminalSize) -> Winsize {
    let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Winsize { ws_row: cells(size.rows), ws_col: cells(size.columns), ws_xpixel: 0, ws_ypixel: 0 }
}

/// (master, slave), the slave owned by the user and of the size asked for.
pub fn open(size: Option<&TerminalSize>, user: &User) -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).what("open /dev/pts/ptmx")?;
    // A container may have put something else there before an exec.
    let is_ours = rustix::fs::fstatfs(&master).is_ok_and(|fs| fs.f_type as u64 == DEVPTS_MAGIC);
    if !is_ours {
        return Err(Error::internal("/dev/pts of the container is not a devpts"));
    }
    rustix::pty::unlockpt(&master).what("unlock the terminal")?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .what("open the terminal")?;
    if let Some(size) = size.filter(|size| size.rows > 0 && size.columns > 0) {
        rustix::termios::tcsetwinsize(&slave, window(size)).what("size the terminal")?;
    }
    let owner = rustix::process::Uid::from_raw(user.uid);
    rustix::fs::fchown(&slave, Some(owner), None).what("give the terminal to the user")?;
    Ok((master, slave))
}

/// Makes it the controlling terminal and all three standard streams.
pub fn take(slave: &OwnedFd) -> rustix::io::Result<()> {
    rustix::process::ioctl_tiocsctty(slave)?;
    rustix::stdio::dup2_stdin(slave)?;
    rustix::stdio::dup2_stdout(slave)?;
    rustix::stdio::dup2_stderr(slave)
}

/// A few bytes, and the descriptor that travels with them.
pub fn send(socket: &UnixStream, bytes: &[u8], master: &OwnedFd) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes one byte and the master that travels with it. Without a master the byte is the first of a report.
pub fn receive(socket: &UnixStream) -> std::io::Result<std::result::Result<OwnedFd, u8>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    // With a deadline it is not restarted after a signal, and each child that ends is one.
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if got.bytes == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let master = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(master.ok_or(byte[0]))
}
