# SPDX-License-Identifier: Apache-2.0
"""What the kernel has in the sets of a wire, read; and whether a table is there, has its rules, and which sets.

Messages of our own, as in ``elements``; see linux/netfilter/nf_tables.h. Blocking.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from hyperd.network import elements
from hyperd.network.elements import INET_FAMILY, NETLINK_NETFILTER
from hyperd.network.policy.hooks import DROPPED, table_of
from hyperd.network.policy.rules import KEPT_S, blocked_set, other_set
from hyperd.network.policy.wire import Wire
from hyperd.network.settings import Address

_ANSWER_S = 5.0
_ANSWER_BYTES = 1 << 16
_GETTABLE, _GETSET, _GETSETELEM, _REQUEST, _DUMP = 10 << 8 | 1, 10 << 8 | 10, 10 << 8 | 13, 1, 0x300
_NEWRULE, _GETRULE = 10 << 8 | 6, 10 << 8 | 7
_RULE_TABLE, _RULE_CHAIN = 1, 2
_ERROR, _DONE = 2, 3
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_KEY, _VALUE, _EXPIRATION, _EXPRESSION, _EXPRESSIONS = 1, 1, 5, 7, 11
_PACKETS = 2
_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}


@dataclass(frozen=True, slots=True)
class Blocked:
    """``ago_s``: since the last packet."""

    address: Address
    protocol: str
    port: int
    count: int
    ago_s: float


def read_blocked(base: str, wire: Wire) -> list[Blocked]:
    """Empty where the sets are not there. Raises OSError."""
    found = []
    for size, version in [(len(address.packed), address.version) for address in wire.addresses]:
        for name, has_port in (
            (blocked_set(wire.name, version), True),
            (other_set(wire.name, version), False),
        ):
            for key, count, expires_s in _dumped(table_of(base), name):
                port = int.from_bytes(key[size + 4 : size + 6], "big") if has_port else 0
                protocol = _NAMES.get(key[size], str(key[size]))
                ago_s = max(0.0, KEPT_S - expires_s)
                found.append(Blocked(ip_address(key[:size]), protocol, port, count, ago_s))
    return found


def read_dropped(base: str) -> dict[str, int]:
    """By tap: packets beyond its rate. Raises OSError."""
    return {
        key.rstrip(b"\0").decode(errors="replace"): count
        for key, count, _ in _dumped(table_of(base), DROPPED)
    }


def read_learned(base: str, name: str) -> dict[Address, int]:
    """For how many seconds yet, of more than one; empty where there is no such set. Raises OSError."""
    found = _dumped(table_of(base), name)
    return {ip_address(key): int(expires_s) for key, _, expires_s in found if expires_s >= 1}


def names_of(table: str) -> list[str]:
    """Of all its sets and maps; empty without the table. Raises OSError."""
    told = _answers(_GETSET, elements.text_attribute(_TABLE, table))
    return [dict(elements.attributes(each))[_SET].rstrip(b"\0").decode() for each in told]


def has_table(table: str) -> bool:
    """Whether nobody took it away: the kernel answers while it is asked. Raises OSError."""
    body = struct.pack("!BBH", INET_FAMILY, 0, 0) + elements.text_attribute(_TABLE, table)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.send(struct.pack("=IHHII", 16 + len(body), _GETTABLE, _REQUEST, 1, 0) + body)
        (kind,) = struct.unpack_from("=H", kernel.recv(_ANSWER_BYTES), 4)
    return bool(kind != _ERROR)


def has_rules(table: str, chain: str) -> bool:
    """Whether there are any: `nft flush table` leaves chains that let everything through. Raises OSError."""
    body = (
        struct.pack("!BBH", INET_FAMILY, 0, 0)
        + elements.text_attribute(_RULE_TABLE, table)
        + elements.text_attribute(_RULE_CHAIN, chain)
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.send(struct.pack("=IHHII", 16 + len(body), _GETRULE, _REQUEST | _DUMP, 1, 0) + body)
        (kind,) = struct.unpack_from("=H", kernel.recv(_ANSWER_BYTES), 4)
    return bool(kind == _NEWRULE)


def _dumped(table: str, name: str) -> Iterator[tuple[bytes, int, float]]:
    """Key, packets, seconds left of each element."""
    named = elements.text_attribute(_TABLE, table) + elements.text_attribute(_SET, name)
    for told in _answers(_GETSETELEM, named):
        for _, element in elements.attributes(dict(elements.attributes(told)).get(_ELEMENTS, b"")):
            yield _parse(dict(elements.attributes(element)))


def _answers(kind: int, asked: bytes) -> Iterator[bytes]:
    """Attributes of each message of a dump; none of what is not there."""
    body = struct.pack("!BBH", INET_FAMILY, 0, 0) + asked
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.send(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _DUMP, 1, 0) + body)
        while True:
            answer = kernel.recv(_ANSWER_BYTES)
            while len(answer) >= 16:
                size, answered = struct.unpack_from("=IH", answer)
                if answered in (_DONE, _ERROR):
                    (code,) = struct.unpack_from("=i", answer, 16)
                    if code not in (0, -errno.ENOENT):
                        raise OSError(-code, os.strerror(-code))
                    return
                yield answer[20:size]
                answer = answer[size + (-size % 4) :]


def _parse(parts: dict[int, bytes]) -> tuple[bytes, int, float]:
    key = dict(elements.attributes(parts[_KEY]))[_VALUE]
    (expires_ms,) = struct.unpack("!Q", parts.get(_EXPIRATION, b"\0" * 8))
    counter = parts.get(_EXPRESSION)
    if counter is None:  # kernels that know of several have them in a list
        counter = next((value for _, value in elements.attributes(parts.get(_EXPRESSIONS, b""))), b"")
    data = dict(elements.attributes(dict(elements.attributes(counter)).get(2, b"")))
    (packets,) = struct.unpack("!Q", data.get(_PACKETS, b"\0" * 8))
    return key, packets, expires_ms / 1000
