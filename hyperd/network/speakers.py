# SPDX-License-Identifier: Apache-2.0
"""Who may speak on which tap: one MAC and its addresses each, as elements of nftables sets.

Blocking.
"""

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from hyperd.network import elements
from hyperd.network.elements import BRIDGE_FAMILY, Element, padded

TAPS, SPEAKERS, SPEAKERS6, TARGETS6 = "taps", "speakers", "speakers6", "targets6"  # the sets
_IFNAME_BYTES = 16


@dataclass(frozen=True, slots=True)
class Speaker:
    tap: str
    mac: str
    address: IPv4Address
    addresses6: tuple[IPv6Address, ...] = ()  # its own and that of its link; none without IPv6


def render(speakers: Iterable[Speaker], *, has_ipv6: bool = False) -> str:
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
{_render_sets6(known) if has_ipv6 else ""}\
    chain guest {{
        udp sport 67 udp dport 68 counter drop comment "no guest gives addresses away"
        iifname . ether saddr . ip saddr @{SPEAKERS} accept
        iifname . ether saddr . arp saddr ip @{SPEAKERS} iifname . arp saddr ether . arp saddr ip @{SPEAKERS} accept
{_GUEST6 if has_ipv6 else ""}\
        counter drop comment "a guest speaks as nobody else"
    }}
    chain prerouting {{
        type filter hook prerouting priority filter; policy accept;
        iifname @{TAPS} jump guest
    }}
"""


def allow(table: str, speaker: Speaker) -> None:
    """From now on this tap's guest is held to its own addresses. Idempotent. Raises OSError, as without the table."""
    elements.add(BRIDGE_FAMILY, table, [*_elements(speaker), Element(TAPS, _name(speaker.tap))])


def forget(table: str, taps: Sequence[str], speakers: Sequence[Speaker]) -> None:
    """After the taps are gone. Idempotent, also without the table. ``speakers``: those whose addresses are known."""
    known = [Element(TAPS, _name(tap)) for tap in taps] + [
        element for one in speakers for element in _elements(one)
    ]
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


def _elements(speaker: Speaker) -> list[Element]:
    start = (_name(speaker.tap), bytes.fromhex(speaker.mac.replace(":", "")))
    return [
        Element(SPEAKERS, padded(*start, speaker.address.packed)),
        *(
            Element(where, padded(*start, address.packed))
            for where in (SPEAKERS6, TARGETS6)
            for address in speaker.addresses6
        ),
    ]


# Of an advertisement, which alone tells of a neighbour: nft 1.0 has no word for it, and takes it for no address.
TARGET = "@th,64,128"
_TARGET = f"iifname . ether saddr . {TARGET}"
_GUEST6 = f"""\
        icmpv6 type {{ nd-router-advert, nd-redirect, mld-listener-query }} counter drop
        udp sport 547 udp dport 546 counter drop comment "as above"
        icmpv6 type nd-neighbor-advert {_TARGET} != @{TARGETS6} counter drop
        iifname . ether saddr . ip6 saddr @{SPEAKERS6} accept
"""


def _render_sets6(speakers: Iterable[Speaker]) -> str:
    known = [(speaker, address) for speaker in speakers for address in speaker.addresses6]
    sources = ", ".join(f'"{speaker.tap}" . {speaker.mac} . {address}' for speaker, address in known)
    targets = ", ".join(
        f'"{speaker.tap}" . {speaker.mac} . {int(address):#034x}' for speaker, address in known
    )
    return f"""\
    set {SPEAKERS6} {{
        type ifname . ether_addr . ipv6_addr
        {f"elements = {{ {sources} }}" if known else ""}
    }}
    set {TARGETS6} {{
        typeof {_TARGET}
        {f"elements = {{ {targets} }}" if known else ""}
    }}
"""
