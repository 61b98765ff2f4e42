# SPDX-License-Identifier: Apache-2.0
"""Neighbours of a sandbox are told that its addresses are the bridge's now: they would send to its own MAC for as long
as they remember that. A gratuitous ARP reply (RFC 826), an unsolicited neighbour advertisement (RFC 4861, 7.2.6).

Blocking, but only as a packet that is sent is.
"""

import socket
import struct
from ipaddress import IPv6Address

from hyperd.network.policy.wire import Wire
from hyperd.network.pool import mac_of

_ARP, _IPV6 = 0x0806, 0x86DD
_ICMPV6, _ADVERTISEMENT, _OVERRIDE, _LINK_ADDRESS = 58, 136, 1 << 29, 2
_ALL_NODES = IPv6Address("ff02::1")


def announce(wire: Wire) -> None:
    """Raises OSError."""
    mac = bytes.fromhex(mac_of(wire.gateway).replace(":", ""))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as speaker:
        speaker.bind((wire.bridge, 0))
        speaker.send(_arp(mac, wire.address.packed))
        if wire.ipv6 is not None:
            speaker.send(_advertisement(mac, wire.ipv6.address))


def _arp(mac: bytes, address: bytes) -> bytes:
    everybody = b"\xff" * 6
    told = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + mac + address + everybody + address
    return everybody + mac + struct.pack("!H", _ARP) + told


def _advertisement(mac: bytes, address: IPv6Address) -> bytes:
    told = struct.pack("!I", _OVERRIDE) + address.packed + bytes([_LINK_ADDRESS, 1]) + mac
    ends = address.packed + _ALL_NODES.packed
    start = bytes([_ADVERTISEMENT, 0])
    checked = ends + struct.pack("!II", 4 + len(told), _ICMPV6) + start + bytes(2) + told
    body = start + struct.pack("!H", _checksum(checked)) + told
    header = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, 255) + ends
    return b"\x33\x33\x00\x00\x00\x01" + mac + struct.pack("!H", _IPV6) + header + body


def _checksum(words: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
