# SPDX-License-Identifier: Apache-2.0
"""Connections that the kernel remembers, forgotten where their rule has changed: one that is known keeps its way, and
somebody who sends UDP without a pause would keep it for ever. See linux/netfilter/nfnetlink_conntrack.h. Blocking.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

from hyperd.model.network import Protocol
from hyperd.network.elements import NETLINK_NETFILTER, attributes
from hyperd.network.forwards import Forward
from hyperd.network.settings import ANY, ANY6, Address

_ANSWER_S = 5.0
_ANSWER_BYTES = 1 << 18
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_ERROR, _DONE = 2, 3
_ORIGINAL, _REPLY, _STATUS = 1, 2, 3
_DESTINATION_CHANGED = 1 << 5  # IPS_DST_NAT
_PROTOCOLS = {6: Protocol.TCP, 17: Protocol.UDP}


@dataclass(frozen=True, slots=True)
class Flow:
    protocol: Protocol | None  # None: neither of them
    begun_by: Address
    destination: tuple[Address, int]  # that it was sent to
    answered_by: tuple[Address, int]
    answered_to: Address
    is_forwarded: bool
    name: bytes  # the kernel's, to forget it by


def forget(begun: Iterable[Forward], ended: Iterable[Forward]) -> None:
    """Those that were there before one of ``begun`` held, and those that one of ``ended`` has led to its guest.

    Raises OSError. It reads all connections of the host, once.
    """
    led_astray = {(forward.protocol, forward.host_port, forward.host_ip) for forward in begun}
    forwarded = {
        (forward.protocol, forward.host_port, (forward.address, forward.container_port)) for forward in ended
    }

    def is_it(flow: Flow) -> bool:
        if flow.protocol is None:
            return False
        host_ip, host_port = flow.destination
        if flow.is_forwarded:
            return (flow.protocol, host_port, flow.answered_by) in forwarded
        return any(
            (flow.protocol, host_port, address) in led_astray
            for address in (ANY if host_ip.version == 4 else ANY6, host_ip)
        )

    _forget_those(is_it)


def forget_of(addresses: Collection[Address]) -> None:
    """All with one of them at one end, of whatever protocol: whether they may is asked anew. Raises OSError."""
    _forget_those(lambda flow: flow.begun_by in addresses or flow.answered_by[0] in addresses)


def forget_strays(floating: Iterable[IPv4Address], inside: Mapping[IPv4Address, IPv4Address]) -> None:
    """All by one of ``floating`` but with whoever is ``inside`` of it now. Raises OSError."""
    known = frozenset(floating)
    led = frozenset(inside.items())

    def is_it(flow: Flow) -> bool:
        sent_to = flow.destination[0]
        if sent_to in known:
            return (sent_to, flow.answered_by[0]) not in led
        return flow.answered_to in known and (flow.answered_to, flow.begun_by) not in led

    _forget_those(is_it)


def _forget_those(is_it: Callable[[Flow], bool]) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.send(_message(_GET, _REQUEST | _DUMP, b"", socket.AF_UNSPEC))
        wanted = [flow for flow in _dumped(kernel) if is_it(flow)]
        for flow in wanted:
            family = socket.AF_INET if flow.begun_by.version == 4 else socket.AF_INET6
            kernel.send(_message(_DELETE, _REQUEST | _ACK, flow.name, family))
            (code,) = struct.unpack_from("=i", kernel.recv(_ANSWER_BYTES), 16)
            if code and -code != errno.ENOENT:  # it has ended meanwhile
                raise OSError(-code, os.strerror(-code))


def _dumped(kernel: socket.socket) -> Iterator[Flow]:
    while True:
        answer = kernel.recv(_ANSWER_BYTES)
        while len(answer) >= 16:
            size, kind = struct.unpack_from("=IH", answer)
            if kind == _DONE:
                return
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", answer, 16)
                raise OSError(-code, os.strerror(-code))
            yield _parse(answer[20:size])
            answer = answer[size + (-size % 4) :]


def _parse(body: bytes) -> Flow:
    parts = dict(attributes(body))
    number, begun_by, destination = _tuple(parts[_ORIGINAL])
    _, answered_by, answered_to = _tuple(parts[_REPLY])
    (status,) = struct.unpack("!I", parts[_STATUS])
    name = struct.pack("=HH", 4 + len(parts[_ORIGINAL]), _ORIGINAL | 0x8000) + parts[_ORIGINAL]
    changed = bool(status & _DESTINATION_CHANGED)
    protocol = _PROTOCOLS.get(number)
    return Flow(protocol, begun_by[0], destination, answered_by, answered_to[0], changed, name)


def _tuple(body: bytes) -> tuple[int, tuple[Address, int], tuple[Address, int]]:
    """Protocol, source, destination."""
    parts = dict(attributes(body))
    addresses, ports = dict(attributes(parts[1])), dict(attributes(parts[2]))
    source, destination = (int.from_bytes(ports.get(kind, b""), "big") for kind in (2, 3))
    begun_by, sent_to = (
        addresses.get(kind) or addresses[kind + 2] for kind in (1, 2)
    )  # IPv6's have two more
    return ports[1][0], (ip_address(begun_by), source), (ip_address(sent_to), destination)


def _message(kind: int, flags: int, body: bytes, family: int) -> bytes:
    header = struct.pack("=IHHII", 20 + len(body), kind, flags, 1, 0)
    return header + struct.pack("!BBH", family, 0, 0) + body
