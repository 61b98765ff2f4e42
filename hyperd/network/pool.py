# SPDX-License-Identifier: Apache-2.0
"""Which addresses are taken, and which comes next. Pure.

Addresses go round: one that was given back is the last to be given again, so that neither an ARP cache nor a
half-open connection of its former owner meets the new one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self

from hyperd.errors import ExhaustedError, InvalidError

_MAC_START = b"\x0aH"


@dataclass(frozen=True, slots=True)
class Pool:
    """All of ``subnet`` but its network address, its broadcast address and the gateway's."""

    subnet: IPv4Network
    gateway: IPv4Address
    taken: frozenset[IPv4Address] = frozenset()
    last: IPv4Address | None = None
    part: IPv4Network | None = None  # of the subnet, from which alone they are given

    @classmethod
    def of(
        cls,
        subnet: IPv4Network,
        gateway: IPv4Address,
        taken: Iterable[IPv4Address],
        last: IPv4Address | None,
        part: IPv4Network | None = None,
    ) -> Self:
        """Addresses of another subnet, from before the configuration changed, are left out."""
        return cls(
            subnet,
            gateway,
            frozenset(address for address in taken if address in subnet),
            last if last is not None and last in (part or subnet) else None,
            part,
        )

    def give(self) -> tuple[IPv4Address, Self]:
        """The next free address, and the pool without it. Raises ExhaustedError."""
        within = self.part or self.subnet
        first, ends = (
            int(within.network_address),
            (self.subnet.network_address, self.subnet.broadcast_address),
        )
        start = int(within.broadcast_address) if self.last is None else int(self.last)
        for step in range(1, within.num_addresses + 1):
            address = IPv4Address(first + (start - first + step) % within.num_addresses)
            if address in ends or address == self.gateway or address in self.taken:
                continue
            return address, replace(self, taken=self.taken | {address}, last=address)
        raise ExhaustedError(
            f"all {len(self.taken)} addresses are leased",
            subject=str(within),
            hint="remove sandboxes that are no longer used, or configure a wider subnet",
        )

    def require(self, address: IPv4Address) -> None:
        """That a sandbox can have it, taken or not. Raises InvalidError."""
        ends = (self.subnet.network_address, self.subnet.broadcast_address)
        if address not in self.subnet or address in (*ends, self.gateway):
            raise InvalidError(
                f"is none that a sandbox can have in {self.subnet}, whose gateway is {self.gateway}",
                subject=f"address {address}",
            )


def mac_of(address: IPv4Address) -> str:
    """A locally administered unicast MAC, as unique as the address it is made from."""
    return ":".join(f"{byte:02x}" for byte in (*_MAC_START, *address.packed))


def address6_of(address: IPv4Address, subnet: IPv4Network, subnet6: IPv6Network) -> IPv6Address:
    """At the same place in the IPv6 subnet, which is larger: given once, as the IPv4 address is."""
    return subnet6[int(address) - int(subnet.network_address)]


def address4_of(address: IPv6Address, subnet: IPv4Network, subnet6: IPv6Network) -> IPv4Address | None:
    """The inverse of ``address6_of``; None for one that follows from no address of the subnet."""
    place = int(address) - int(subnet6.network_address)
    return subnet[place] if 0 <= place < subnet.num_addresses else None


def link_local_of(mac: str) -> IPv6Address:
    """That an interface makes of its MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + identifier)


def address_of(mac: str) -> IPv4Address | None:
    """The inverse of ``mac_of``."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return IPv4Address(octets[2:]) if octets[:2] == _MAC_START else None
