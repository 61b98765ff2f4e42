# SPDX-License-Identifier: Apache-2.0
"""Who may speak on which tap: one MAC and one IPv4 address each, as elements of two nftables sets.

Blocking.
"""

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from hyperd.network import elements
from hyperd.network.elements import BRIDGE_FAMILY, Element, padded
from hyperd.network.tap import PREFIX

TAPS, SPEAKERS = "taps", "speakers"  # the sets
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
        udp sport 67 udp dport 68 counter drop comment "no guest gives addresses away"
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
    elements.add(BRIDGE_FAMILY, table, [Element(SPEAKERS, _key(speaker)), Element(TAPS, _name(speaker.tap))])


def forget(table: str, taps: Sequence[str], speakers: Sequence[Speaker]) -> None:
    """After the taps are gone. Idempotent, also without the table. ``speakers``: those whose addresses are known."""
    known = [Element(TAPS, _name(tap)) for tap in taps] + [Element(SPEAKERS, _key(one)) for one in speakers]
    try:
        elements.remove(BRIDGE_FAMILY, table, known)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        for element in known:  # one that is missing, and nothing was removed
            _forget(table, element)


def _forget(table: str, element: Element) -> None:
    try:
        elements.remove(BRIDGE_FAMILY, table, [element])
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _name(tap: str) -> bytes:
    return tap.encode().ljust(_IFNAME_BYTES, b"\0")


def _key(speaker: Speaker) -> bytes:
    return padded(_name(speaker.tap), bytes.fromhex(speaker.mac.replace(":", "")), speaker.address.packed)
