# SPDX-License-Identifier: Apache-2.0
"""What a sandbox may begin, and what it tried all the same."""

import enum
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

from hyperd.errors import InvalidError
from hyperd.model.vm import SandboxId

# Bytes a second that both tc and nft can count, with the bursts that they are given.
LEAST_RATE = 1 << 10
GREATEST_RATE = 2 << 30


AnyNetwork: TypeAlias = IPv4Network | IPv6Network


class EgressMode(enum.StrEnum):
    NONE = "none"
    ALLOW_ALL = "allow-all"  # what a sandbox without a policy may
    LISTED = "listed"


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Service:
    """``protocol`` "": of any; with ``ports`` TCP and UDP. ``ports``: apart from each other, in order; () = all.

    `icmp` is that of either family, with ``ports``, which are its types then, of IPv4; `icmpv6` is of IPv6.
    """

    protocol: str = ""  # tcp, udp, icmp, icmpv6
    ports: tuple[PortRange, ...] = ()

    def __str__(self) -> str:
        return f"{self.protocol or 'any'}:{','.join(map(str, self.ports))}"


@dataclass(frozen=True, slots=True)
class EgressRule:
    """To any of these, for that service."""

    domains: tuple[str, ...] = ()  # lower case: a name, `*.NAME` for all beneath it, `*` for any
    networks: tuple[AnyNetwork, ...] = ()
    groups: tuple[str, ...] = ()  # the sandboxes of security groups
    service: Service = Service()


class Direction(enum.StrEnum):
    INGRESS = "ingress"
    EGRESS = "egress"


@dataclass(frozen=True, slots=True)
class GroupRule:
    """To or from a range, or the sandboxes of a group; with neither, anybody."""

    direction: Direction
    service: Service = Service()
    network: AnyNetwork | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class SecurityGroup:
    name: str
    description: str = ""
    rules: tuple[GroupRule, ...] = ()


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    mode: EgressMode
    rules: tuple[EgressRule, ...] = ()  # of LISTED


@dataclass(frozen=True, slots=True)
class Limits:
    """What keeps a sandbox from the network, as asked for; empty: nothing does."""

    egress: str = ""  # none, allow-all, or a document (docs/egress.md)
    groups: tuple[str, ...] = ()  # security groups
    rate_in: int = 0  # bytes a second to it; 0: as many as there are
    rate_out: int = 0  # from it

    def __bool__(self) -> bool:
        return bool(self.egress or self.groups or self.rate_in or self.rate_out)


def require_rate(rate: int, what: str) -> int:
    """Raises InvalidError."""
    if rate and not LEAST_RATE <= rate <= GREATEST_RATE:
        raise InvalidError(
            f"a rate of {rate} bytes a second cannot be kept",
            subject=what,
            hint=f"take one from {LEAST_RATE >> 10}k to {GREATEST_RATE >> 30}g; 0: no limit",
        )
    return rate


@dataclass(frozen=True, slots=True)
class Attempt:
    """Something that a sandbox began, and was refused."""

    destination: str  # an address; a name, where it was refused to be looked up
    protocol: str  # tcp, udp, icmp, dns, or a number
    port: int  # 0: of a protocol without ports
    name: str  # what the sandbox had looked up for this address; "" when it had not
    count: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class EgressReport:
    """``attempts``: those that came most recently first. ``is_cut``: there were more than are kept."""

    sandbox_id: SandboxId
    name: str
    attempts: tuple[Attempt, ...]
    is_cut: bool
