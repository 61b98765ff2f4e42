# SPDX-License-Identifier: Apache-2.0
"""What a sandbox has of the network."""

import enum
from dataclasses import dataclass

from hyperd.model.vm import SandboxId


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
        return f"{self.host_ip}:{self.host_port}->{self.container_port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class UnpublishRequest:
    """Wherever this port of a sandbox is published, or at one port of the host."""

    container_port: int
    protocol: Protocol = Protocol.TCP
    host_port: int = 0  # 0 = wherever
