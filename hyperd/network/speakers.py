# SPDX-License-Identifier: Apache-2.0
"""Who may speak on which tap: one MAC and one IPv4 address each, as elements of two nftables sets.

Put in and taken out by netlink messages of our own, since a start has no time for a child process: see
linux/netfilter/nf_tables.h. Blocking.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from hyperd.network.tap import PREFIX

TAPS, SPEAKERS = "taps", "speakers"  # the sets
BRIDGE_FAMILY = 7  # NFPROTO_BRIDGE
_NETLINK_NETFILTER = 12
_ANSWER_S = 5.0
_ANSWER_BYTES = 8192
_REQUEST, _ACK, _CREATE = 1, 4, 0x400
_BATCH_BEGIN, _BATCH_END = 16, 17
_NF_TABLES = 10
_NEWSETELEM, _DELSETELEM = _NF_TABLES << 8 | 12, _NF_TABLES << 8 | 14
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_NESTED = 0x8000
_IFNAME_BYTES = 16


@dataclass(frozen=True, slots=True)
class Speaker:
    tap: str
    mac: str
    address: IPv4Address


def render(speakers: Iterable[Speaker]) -> str:
    """The sets, and the chain that holds a tap's guest to what they say; for the table of the family bridge."""
    known = sorted(speakers, key=lambda speaker: speaker.tap)
    taps = ", ".join(f'"{speaker.tap}"' for speaker in known)
    whole = ", ".join(f'"{speaker.tap}" . {speaker.mac} . {speaker.address}' for speaker in known)
    return f"""\
    set {TAPS} {{
        type ifname
        {f"elements = {{ {taps} }}" if known else ""}
    }}
    set {SPEAKERS} {{
        type ifname . ether_addr . ipv4_addr
        {f"elements = {{ {whole} }}" if known else ""}
    }}
    chain guest {{
        iifname . ether saddr . ip saddr @{SPEAKERS} accept
        iifname . ether saddr . arp saddr ip @{SPEAKERS} iifname . arp saddr ether . arp saddr ip @{SPEAKERS} accept
        counter drop comment "a guest speaks as nobody else"
    }}
    chain prerouting {{
        type filter hook prerouting priority filter; policy accept;
        iifname "{PREFIX}*" ether type != {{ ip, arp }} counter drop comment "guests have IPv4 only"
        iifname @{TAPS} jump guest
    }}
"""


def allow(table: str, speaker: Speaker) -> None:
    """From now on this tap's guest is held to its own addresses. Idempotent. Raises OSError, as without the table."""
    _change(
        table, _NEWSETELEM, _REQUEST | _ACK | _CREATE, [(SPEAKERS, _key(speaker)), (TAPS, _name(speaker.tap))]
    )


def forget(table: str, tap: str, speaker: Speaker | None) -> None:
    """After the tap is gone. Idempotent, also without the table. ``speaker``: None when its addresses are not known."""
    for name, key in [(TAPS, _name(tap)), *([(SPEAKERS, _key(speaker))] if speaker else [])]:
        try:
            _change(table, _DELSETELEM, _REQUEST | _ACK, [(name, key)])
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise


def _name(tap: str) -> bytes:
    return tap.encode().ljust(_IFNAME_BYTES, b"\0")


def _key(speaker: Speaker) -> bytes:
    """As the kernel concatenates: each part padded to four bytes."""
    mac = bytes.fromhex(speaker.mac.replace(":", ""))
    return _name(speaker.tap) + mac.ljust(8, b"\0") + speaker.address.packed


def _change(table: str, kind: int, flags: int, elements: list[tuple[str, bytes]]) -> None:
    """One transaction: all of it or nothing."""
    messages = [_message(_BATCH_BEGIN, _REQUEST, 0, 0, b"", _NF_TABLES)]
    for number, (name, key) in enumerate(elements, 1):
        element = _attribute(1 | _NESTED, _attribute(1 | _NESTED, _attribute(1, key)))
        body = _text(_TABLE, table) + _text(_SET, name) + _attribute(_ELEMENTS | _NESTED, element)
        messages.append(_message(kind, flags, number, BRIDGE_FAMILY, body, 0))
    messages.append(_message(_BATCH_END, _REQUEST, len(elements) + 1, 0, b"", _NF_TABLES))
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    ) as kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.send(b"".join(messages))
        for _ in elements:  # each is acknowledged, or the first thing that is wrong is told
            (code,) = struct.unpack_from("=i", kernel.recv(_ANSWER_BYTES), 16)
            if code:
                raise OSError(-code, os.strerror(-code))


def _message(kind: int, flags: int, number: int, family: int, body: bytes, resource: int) -> bytes:
    header = struct.pack("=IHHII", 20 + len(body), kind, flags, number, 0)
    return header + struct.pack("!BBH", family, 0, resource) + body


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
