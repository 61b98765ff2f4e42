# SPDX-License-Identifier: Apache-2.0
"""Which port of the host leads to which port of a guest: elements of two nftables maps, so that a packet's way is two
look-ups however many ports are published. Pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from hyperd.model.network import PortRequest, Protocol, PublishedPort
from hyperd.network.elements import Element, padded
from hyperd.network.settings import ANY
from hyperd.network.tap import PREFIX

AT_ADDRESS, AT_ANY = "published", "published_any"  # the maps: at one address of the host, at all of them
_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17}


@dataclass(frozen=True, slots=True)
class Forward:
    protocol: Protocol
    host_ip: IPv4Address
    host_port: int
    address: IPv4Address  # the guest's
    container_port: int

    @property
    def published(self) -> PublishedPort:
        return PublishedPort(self.container_port, self.protocol, str(self.host_ip), self.host_port)

    def overlaps(self, protocol: Protocol, host_ip: IPv4Address, host_port: int) -> bool:
        """Whether a socket bound to the one would be in the way of the other."""
        if (self.protocol, self.host_port) != (protocol, host_port):
            return False
        return self.host_ip == host_ip or ANY in (self.host_ip, host_ip)


def are_as_asked(
    forwards: Iterable[Forward], requests: Sequence[PortRequest], address: IPv4Address, default: IPv4Address
) -> bool:
    """Whether ``forwards``, all of a sandbox's, are what publishing ``requests`` for ``address`` might have made."""
    left = list(forwards)
    if len(left) != len(requests):
        return False
    # Those that leave no choice first: they must not find theirs given to one that would take any.
    for request in sorted(requests, key=lambda request: (not request.host_port, request.host_port_end)):
        host_ip = request.host_ip or str(default)
        first, last = request.host_port or 1, max(request.host_port, request.host_port_end) or 65535
        for forward in left:
            port = forward.published
            if (port.protocol, port.container_port, port.host_ip, forward.address) == (
                request.protocol,
                request.container_port,
                host_ip,
                address,
            ) and first <= port.host_port <= last:
                left.remove(forward)
                break
        else:
            return False
    return True


def element(forward: Forward) -> Element:
    key = padded(bytes([_NUMBERS[forward.protocol]]), forward.host_port.to_bytes(2, "big"))
    data = padded(forward.address.packed, forward.container_port.to_bytes(2, "big"))
    if forward.host_ip == ANY:
        return Element(AT_ANY, key, data)
    return Element(AT_ADDRESS, forward.host_ip.packed + key, data)


def render(bridge: str, subnet: str, gateway: str, forwards: Iterable[Forward]) -> str:
    """The maps, and the chains that look packets up in them; for the table of the family inet.

    A guest answers its neighbour directly (but one with a policy, whose tap is routed), and loopback's addresses mean
    nothing to it: both come to it from the gateway. Whoever else comes keeps his address.
    """
    known = sorted(forwards, key=lambda forward: (forward.host_port, forward.protocol, forward.host_ip))
    at_any = [f"{_key(forward)} : {_value(forward)}" for forward in known if forward.host_ip == ANY]
    at_one = [
        f"{forward.host_ip} . {_key(forward)} : {_value(forward)}"
        for forward in known
        if forward.host_ip != ANY
    ]
    look_up = f"""\
        dnat ip to ip daddr . meta l4proto . th dport map @{AT_ADDRESS}
        fib daddr type local dnat ip to meta l4proto . th dport map @{AT_ANY}"""
    return f"""\
    map {AT_ADDRESS} {{
        type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
{_elements(at_one)}    }}
    map {AT_ANY} {{
        type inet_proto . inet_service : ipv4_addr . inet_service
{_elements(at_any)}    }}
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


def _elements(lines: list[str]) -> str:
    joined = ", ".join(lines)
    return f"        elements = {{ {joined} }}\n" if lines else ""


def _key(forward: Forward) -> str:
    return f"{forward.protocol} . {forward.host_port}"


def _value(forward: Forward) -> str:
    return f"{forward.address} . {forward.container_port}"
