# SPDX-License-Identifier: Apache-2.0
"""What a sandbox has of the network."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from ipaddress import IPv6Address

from hyperd.model.vm import SandboxId

DEFAULT_NETWORK = "bridge"
NO_NETWORK = "none"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A container's place on a network, as asked for."""

    network: str = DEFAULT_NETWORK
    address: str = ""  # IPv4, of its subnet; "" = one is leased
    aliases: tuple[str, ...] = ()
    mac_address: str = ""  # "" = made from the address
    gateway_priority: int = 0  # the highest has the default route
    address6: str = ""  # IPv6; "" = follows from the IPv4 address, where the network has IPv6


DEFAULT_ENDPOINT = Endpoint()


def parse_address6(text: str) -> IPv6Address:
    """Raises ValueError, as of one with a scope (RFC 4007, 11): that means something on one host alone, and is equal to
    none without.
    """
    if "%" in text:
        raise ValueError(f"{text!r} has a scope")
    return IPv6Address(text)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A sandbox's lease and the tap that leads to it."""

    sandbox_id: SandboxId
    network: str
    tap: str
    mac: str
    address: str  # without prefix
    prefix_length: int
    gateway: str
    mtu: int
    dns_servers: tuple[str, ...]
    dns_searches: tuple[str, ...]
    dns_options: tuple[str, ...]
    slot: int = 0  # among the sandbox's NICs: ethSLOT in the guest
    internal: bool = False
    gateway_priority: int = 0
    address6: str = ""  # "" where the network has no IPv6
    prefix_length6: int = 0
    gateway6: str = ""


def way_out(attachments: Iterable[Attachment]) -> Attachment | None:
    """The one with the default route and the published ports, by Docker's rule: none that is internal where there is
    another, then the highest priority, then the first by name (moby libnetwork, ``Endpoint.Less``).
    """
    return min(attachments, key=lambda at: (at.internal, -at.gateway_priority, at.network), default=None)


class Protocol(enum.StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class PortRequest:
    """A port of a sandbox that is to be reached at the host."""

    container_port: int
    protocol: Protocol = Protocol.TCP
    host_ip: str = ""  # "" = the daemon's default
    host_port: int = 0  # 0 = one that is free
    host_port_end: int = 0  # the last of a range of which one that is free is taken; 0 = host_port alone


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """One that is reached there now."""

    container_port: int
    protocol: Protocol
    host_ip: str
    host_port: int

    def __str__(self) -> str:
        return f"{shown(self.host_ip)}:{self.host_port}->{self.container_port}/{self.protocol}"


def shown(host_ip: str) -> str:
    """Before a colon and a port."""
    return f"[{host_ip}]" if ":" in host_ip else host_ip


def requests_of(published: Iterable[PublishedPort]) -> list[PortRequest]:
    """What would publish these again; one at all of the host's addresses of both families is one request."""
    left = dict.fromkeys(published)
    twins = {replace(port, host_ip="0.0.0.0") for port in left if port.host_ip == "::"} & left.keys()
    for port in twins:
        del left[replace(port, host_ip="::")]
    return [
        PortRequest(port.container_port, port.protocol, "" if port in twins else port.host_ip, port.host_port)
        for port in left
    ]


@dataclass(frozen=True, slots=True)
class UnpublishRequest:
    """Wherever this port of a sandbox is published, or at one port of the host."""

    container_port: int
    protocol: Protocol = Protocol.TCP
    host_port: int = 0  # 0 = wherever


@dataclass(frozen=True, slots=True)
class FloatingAddress:
    """One of the host's that is allocated."""

    address: str
    name: str = ""
    sandbox_id: SandboxId | None = None


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A network as asked for; "" and 0 are chosen by the daemon."""

    name: str
    subnet: str = ""
    gateway: str = ""  # the first address of the subnet
    ip_range: str = ""  # addresses are given out of this part of the subnet alone
    internal: bool = False  # no way out
    mtu: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    ipv6: bool = False
    subnet6: str = ""  # "" = a unique local one is chosen (RFC 4193)
    gateway6: str = ""  # the first address of it


@dataclass(frozen=True, slots=True)
class NetworkView:
    """One that there is; what was left to the daemon is filled in."""

    spec: NetworkSpec
    network_id: str
    bridge: str
    created_at: datetime | None  # None: the default one, made by the configuration


@dataclass(frozen=True, slots=True)
class Named:
    """A sandbox as others on its network may call it."""

    network: str
    address: str
    names: tuple[str, ...]  # its own first
    sandbox_id: SandboxId  # the same on each network that it is on
    links: tuple[tuple[str, SandboxId], ...] = ()  # what it alone calls others
    address6: str = ""
