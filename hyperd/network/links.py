# SPDX-License-Identifier: Apache-2.0
"""Taps put on a bridge and taken away, by netlink messages of our own. Blocking, for the room's own thread.

The kernel waits some 20 ms for its readers with each interface that is removed, and once only for a group of them: so
those that go together are given a group that nobody else has. See rtnetlink(7) and linux/if_link.h.
"""

import errno
import os
import secrets
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

_ANSWER_S = 10.0
_ANSWER_BYTES = 65536
_REQUEST, _ACK = 1, 4
_ERROR = 2
_DELLINK, _SETLINK = 17, 19  # not RTM_NEWLINK: for a name that is not there it would change the whole group
_UP = 1
_IFNAME, _MTU, _MASTER, _ALIAS, _GROUP = 3, 4, 10, 20, 27
_MISSING = (errno.ENODEV, errno.ENOENT)
_LINKS = Path("/sys/class/net")
MOST = 64  # of one call: what they are answered fits into a socket


def plug(index: int, *, bridge: int, mtu: int, alias: str) -> None:
    """On the bridge, and up. Raises OSError."""
    body = _header(index, _UP, _UP) + _number(_MTU, mtu) + _text(_ALIAS, alias) + _number(_MASTER, bridge)
    (code,) = _ask([(_SETLINK, body)])
    if code:
        raise OSError(code, os.strerror(code))


def index_of(name: str) -> int:
    """0: there is none of this name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def is_on(bridge: str, name: str) -> bool:
    return (_LINKS / bridge / "brif" / name).exists()


def alias_of(name: str) -> str:
    """ "" where there is none, or nothing of this name."""
    try:
        return (_LINKS / name / "ifalias").read_text().strip()
    except OSError:
        return ""


def remove(names: Sequence[str]) -> None:
    """Whichever of them are there, at most ``MOST``. Raises OSError."""
    if len(names) == 1:
        _require(_ask([(_DELLINK, _header() + _text(_IFNAME, names[0]))]))
        return
    group = secrets.randbits(30) | 1 << 30  # nobody counts so far
    there = [
        name
        for name, code in zip(names, _ask([(_SETLINK, _grouped(name, group)) for name in names]), strict=True)
        if not _require([code])
    ]
    if there:
        _require(_ask([(_DELLINK, _header() + _number(_GROUP, group))]))


def _grouped(name: str, group: int) -> bytes:
    return _header() + _text(_IFNAME, name) + _number(_GROUP, group)


def _require(codes: Sequence[int]) -> int:
    """The first of them; 0 is well, and so is what is not there."""
    for code in codes:
        if code and code not in _MISSING:
            raise OSError(code, os.strerror(code))
    return codes[0]


def _ask(messages: Sequence[tuple[int, bytes]]) -> list[int]:
    """What the kernel answers to each: 0, or an errno."""
    packed = [
        struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK, number, 0) + body
        for number, (kind, body) in enumerate(messages)
    ]
    answers: dict[int, int] = {}
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.send(b"".join(packed))
        while len(answers) < len(messages):
            _take(kernel.recv(_ANSWER_BYTES), answers)
    return [answers[number] for number in range(len(messages))]


def _take(told: bytes, answers: dict[int, int]) -> None:
    while told:
        length, kind, _, number, _, code = struct.unpack_from("=IHHIIi", told)
        if kind == _ERROR:
            answers[number] = -code
        told = told[(length + 3) & ~3 :]


def _header(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


def _number(kind: int, value: int) -> bytes:
    return struct.pack("=HHI", 8, kind, value)


def _text(kind: int, text: str) -> bytes:
    value = text.encode() + b"\0"
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
