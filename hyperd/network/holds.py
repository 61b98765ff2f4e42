# SPDX-License-Identifier: Apache-2.0
"""Ports of the host, held for sandboxes by sockets that are bound and neither listen nor are read.

No packet comes to them: it is sent on to the guest before a socket is looked for. They keep the host's own programs
from taking the port and never hearing anything on it, and tell at once when one has it. Blocking, briefly.
"""

import contextlib
import errno
import re
import socket
from pathlib import Path

from hyperd.errors import DeniedError, ExhaustedError, HyperError, InvalidError, UnavailableError
from hyperd.model.network import Protocol
from hyperd.network.settings import Address

_KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
_LISTENING = {Protocol.TCP: "0A", Protocol.UDP: "07"}  # in /proc/net
_SOCKET = re.compile(r"socket:\[(\d+)\]")


def hold(protocol: Protocol, host_ip: Address, host_port: int) -> socket.socket:
    """``host_port`` 0: one that is free. Raises OSError, EADDRINUSE when something has it."""
    held = _open(protocol, host_ip)
    try:
        if protocol is Protocol.UDP:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # nobody reads
        held.bind((str(host_ip), host_port))
    except BaseException:
        held.close()
        raise
    return held


def hold_beside(host_ip: Address, host_port: int) -> socket.socket | None:
    """Of TCP, where nobody listens and connections of the host's own are still in the way of binding; else None.

    The socket may not be bound: they end by themselves, and have nothing to fear from the rules meanwhile. It reads
    all of the host's sockets: not for the event loop.
    """
    held = _open(Protocol.TCP, host_ip)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((str(host_ip), host_port))
    except OSError:
        if _users(Protocol.TCP, host_port):
            held.close()
            return None
    return held


def _open(protocol: Protocol, host_ip: Address) -> socket.socket:
    family = socket.AF_INET if host_ip.version == 4 else socket.AF_INET6
    held = socket.socket(family, _KINDS[protocol] | socket.SOCK_CLOEXEC)
    if family == socket.AF_INET6:  # IPv4's are held by another
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return held


def find_owner(protocol: Protocol, host_port: int) -> str:
    """The process of the host that has it, as in "nginx (pid 12)"; "" when that cannot be told."""
    inodes = _users(protocol, host_port)
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and inodes & _inodes_of(process):
            with contextlib.suppress(OSError):
                name = (process / "comm").read_text(errors="replace").strip()
                return f"{name} (pid {process.name})"
    return ""


def refusal(error: OSError, subject: str) -> HyperError:
    """Of every reason but that the port is taken."""
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidError("is not an address of this host", subject=subject)
    if error.errno == errno.EACCES:
        return DeniedError("may not be bound", subject=subject, evidence=str(error))
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
        return ExhaustedError(
            "each published port takes hyperd a file descriptor, and there is none left",
            subject=subject,
            hint="publish fewer ports, or raise LimitNOFILE of hyperd.service",
        )
    return UnavailableError("cannot be bound", subject=subject, evidence=str(error))


def _users(protocol: Protocol, host_port: int) -> set[str]:
    """The inodes of the sockets that answer there, at whatever address."""
    return {
        fields[9]
        for family in ("", "6")
        for fields in _sockets(f"{protocol}{family}")
        if fields[3] == _LISTENING[protocol] and int(fields[1].rpartition(":")[2], 16) == host_port
    }


def _sockets(table: str) -> list[list[str]]:
    try:
        lines = Path("/proc/net", table).read_text().splitlines()[1:]
    except OSError:
        return []
    return [fields for line in lines if len(fields := line.split()) > 9]


def _inodes_of(process: Path) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                match = _SOCKET.fullmatch(str(entry.readlink()))
                if match:
                    found.add(match[1])
    return found
