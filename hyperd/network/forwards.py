# SPDX-License-Identifier: Apache-2.0
"""Which port of the host leads to which port of a guest: elements of two nftables maps, so that a packet's way is two
look-ups however many ports are published. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from hyperd.model.network import PortRequest, Protocol, PublishedPort
from hyperd.network.elements import Element, padded
from hyperd.network.settings import Address
from hyperd.network.tap import PREFIX

AT_ADDRESS, AT_ANY = "published", "published_any"  # the maps: at one address of the host, at all of them
AT_ADDRESS6, AT_ANY6 = "published6", "published6_any"
_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17}


@dataclass(frozen=True, slots=True)
class Forward:
    protocol: Protocol
    host_ip: Address
    host_port: int
    address: Address  # the guest's, of the same family
    container_port: int
    is_anywhere: bool = field(default=False, compare=False)  # no address of the host's was asked for

    @property
    def published(self) -> PublishedPort:
        return PublishedPort(self.container_port, self.protocol, str(self.host_ip), self.host_port)

    def overlaps(self, protocol: Protocol, host_ip: Address, host_port: int) -> bool:
        """Whether a socket bound to the one would be in the way of the other."""
        if (self.protocol, self.host_port) != (protocol, host_port):
            return False
        if self.host_ip.version != host_ip.version:
            return False
        return self.host_ip == host_ip or self.host_ip.is_unspecified or host_ip.is_unspecified


@dataclass(frozen=True, slots=True)
class Inside:
    """A guest's addresses; ``address6`` None: it has no IPv6."""

    address: IPv4Address
    address6: IPv6Address | None = None

    def forward(self, request: PortRequest, host_ip: Address, host_port: int) -> Forward:
        address = self.address if host_ip.version == 4 else self.address6
        assert address is not None, "asked for by port_places alone"  # noqa: S101
        return Forward(
            *(request.protocol, host_ip, host_port, address, request.container_port),
            is_anywhere=not request.host_ip,
        )


def element(forward: Forward) -> Element:
    key = padded(bytes([_NUMBERS[forward.protocol]]), forward.host_port.to_bytes(2, "big"))
    data = padded(forward.address.packed, forward.container_port.to_bytes(2, "big"))
    at_any, at_address = (AT_ANY, AT_ADDRESS) if forward.host_ip.version == 4 else (AT_ANY6, AT_ADDRESS6)
    if forward.host_ip.is_unspecified:
        return Element(at_any, key, data)
    return Element(at_address, forward.host_ip.packed + key, data)


def render(bridge: str, subnet: str, gateway: str, forwards: Iterable[Forward]) -> str:
    """The maps, and the chains that look packets up in them; for the table of the family inet.

    A guest answers its neighbour directly (but one with a policy, whose tap is routed), and loopback's addresses mean
    nothing to it: both come to it from the gateway. Whoever else comes keeps his address.
    """
    look_up = f"""\
        dnat ip to ip daddr . meta l4proto . th dport map @{AT_ADDRESS}
        fib daddr type local dnat ip to meta l4proto . th dport map @{AT_ANY}"""
    return f"""\
{_maps(forwards, 4, AT_ADDRESS, AT_ANY)}\
    chain arriving {{
        type nat hook prerouting priority dstnat; policy accept;
{look_up}
    }}
    chain leaving {{
        type nat hook output priority -100; policy accept;
{look_up}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{PREFIX}*" ip daddr {subnet} ip saddr 127.0.0.0/8 snat ip to {gateway}
        oifname "{PREFIX}*" ip daddr {subnet} accept
        ip saddr {subnet} oifname != "{bridge}" masquerade
        ip saddr {{ {subnet}, 127.0.0.0/8 }} oifname "{bridge}" ct status dnat masquerade
    }}
"""


def render6(bridge: str, subnet: str, gateway: str, forwards: Iterable[Forward], *, loopback: bool) -> str:
    """As ``render``, of a network's IPv6. ``loopback``: what is sent to ::1 is led to guests, too."""
    look_up = f"""\
        dnat ip6 to ip6 daddr . meta l4proto . th dport map @{AT_ADDRESS6}
        ip6 daddr fe80::/10 return comment "no router passes them on"
        fib daddr type local dnat ip6 to meta l4proto . th dport map @{AT_ANY6}"""
    refused = "" if loopback else "        ip6 daddr ::1 return\n"
    return f"""\
{_maps(forwards, 6, AT_ADDRESS6, AT_ANY6)}\
    chain arriving6 {{
        type nat hook prerouting priority dstnat; policy accept;
{look_up}
    }}
    chain leaving6 {{
        type nat hook output priority -100; policy accept;
{refused}{look_up}
    }}
    chain postrouting6 {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{PREFIX}*" ip6 daddr {subnet} ip6 saddr ::1 snat ip6 to {gateway}
        oifname "{PREFIX}*" ip6 daddr {subnet} accept
        ip6 saddr {subnet} oifname != "{bridge}" masquerade
        ip6 saddr {{ {subnet}, ::1 }} oifname "{bridge}" ct status dnat snat ip6 to {gateway}
    }}
"""


def _maps(forwards: Iterable[Forward], version: int, at_address: str, at_any: str) -> str:
    known = sorted(
        (forward for forward in forwards if forward.host_ip.version == version),
        key=lambda forward: (forward.host_port, forward.protocol, forward.host_ip.packed),
    )
    anywhere = [f"{_key(one)} : {_value(one)}" for one in known if one.host_ip.is_unspecified]
    somewhere = [
        f"{one.host_ip} . {_key(one)} : {_value(one)}" for one in known if not one.host_ip.is_unspecified
    ]
    return f"""\
    map {at_address} {{
        type ipv{version}_addr . inet_proto . inet_service : ipv{version}_addr . inet_service
{_elements(somewhere)}    }}
    map {at_any} {{
        type inet_proto . inet_service : ipv{version}_addr . inet_service
{_elements(anywhere)}    }}
"""


def _elements(lines: list[str]) -> str:
    joined = ", ".join(lines)
    return f"        elements = {{ {joined} }}\n" if lines else ""


def _key(forward: Forward) -> str:
    return f"{forward.protocol} . {forward.host_port}"


def _value(forward: Forward) -> str:
    return f"{forward.address} . {forward.container_port}"
