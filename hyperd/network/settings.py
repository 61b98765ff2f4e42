# SPDX-License-Identifier: Apache-2.0
"""What is fixed about a bridge network before it exists."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import TypeAlias

from hyperd.errors import InvalidError

# Not Docker's 172.17-31/16 and 192.168/16, podman's 10.88/16, libvirt's 192.168.122/24, nor what the usual Kubernetes
# networks take (10.42, 10.43, 10.96, 10.244).
DEFAULT_SUBNET = IPv4Network("10.213.0.0/16")
ANY, ANY6 = IPv4Address("0.0.0.0"), IPv6Address("::")
Address: TypeAlias = IPv4Address | IPv6Address
# This host, its loopback, its neighbours (and a cloud's metadata), multicast, and what is not assigned.
_NOBODYS = tuple(
    map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"))
)
_NOBODYS6 = tuple(
    map(IPv6Network, ("::/8", "64:ff9b::/32", "fd00:ec2::/32", "fe80::/10", "fec0::/10", "ff00::/8"))
)
LEAST_MTU6 = 1280  # RFC 8200, 5: below, the kernel takes IPv6 off an interface
MOST_MTU = 65521  # of a tap; see MAX_MTU in linux/drivers/net/tun.c
_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """``mtu`` 0: that of the host's default route. ``tap_owner_uid``: who may open the taps, i.e. QEMU's user."""

    tap_owner_uid: int
    name: str = "bridge"
    bridge: str = "hyper0"
    subnet: IPv4Network = DEFAULT_SUBNET
    mtu: int = 0
    publish_address: IPv4Address = ANY  # where ports are published that name no address
    gateway_address: IPv4Address | None = None  # None: the first of the subnet
    ip_range: IPv4Network | None = None  # addresses are given out of this part of it alone
    internal: bool = False  # no way out, and none in
    has_names: bool = False  # a name server answers on the gateway's address
    subnet6: IPv6Network | None = None
    gateway_address6: IPv6Address | None = None  # None: the first of the subnet
    lock_dir: Path = Path("/run/hyper-net")  # of all hyperds of this host, whatever their configuration

    def __post_init__(self) -> None:
        if not _INTERFACE.fullmatch(self.bridge):
            raise InvalidError("not the name of a network interface", subject=self.bridge)
        if self.subnet.prefixlen > 29:
            raise InvalidError(
                "a subnet needs room for at least a few sandboxes: /29 or wider", subject=str(self.subnet)
            )
        for special in _NOBODYS:
            if self.subnet.overlaps(special):
                raise InvalidError(
                    f"is part of {special} or holds it, which means something else to every host",
                    subject=f"subnet {self.subnet}",
                    hint="take one of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16",
                )
        least = LEAST_MTU6 if self.subnet6 is not None else 576
        if self.mtu and not least <= self.mtu <= MOST_MTU:
            kind = "an MTU with IPv6" if self.subnet6 is not None else "an MTU"
            raise InvalidError(
                f"{kind} is from {least} to {MOST_MTU}, not {self.mtu}", subject=f"network {self.name}"
            )
        if self.gateway_address is not None and not _is_host(self.gateway_address, self.subnet):
            raise InvalidError("is no address of the subnet", subject=f"gateway {self.gateway_address}")
        if self.ip_range is not None and not self.ip_range.subnet_of(self.subnet):
            raise InvalidError("is no part of the subnet", subject=f"range {self.ip_range}")
        if self.subnet6 is not None:
            _require_subnet6(self.subnet, self.subnet6)
            if self.gateway6 not in self.subnet6 or self.gateway6 == self.subnet6.network_address:
                raise InvalidError("is no address of the subnet", subject=f"gateway {self.gateway6}")
        elif self.gateway_address6 is not None:
            raise InvalidError("is of no IPv6 subnet", subject=f"gateway {self.gateway_address6}")

    @property
    def table(self) -> str:
        """Of nftables, in the families inet and bridge: another bridge's hyperd has one of its own."""
        return f"hyper_{self.bridge}"

    @property
    def gateway(self) -> IPv4Address:
        return self.gateway_address or self.subnet[1]

    @property
    def gateway6(self) -> IPv6Address | None:
        return self.gateway_address6 or (self.subnet6[1] if self.subnet6 else None)


def _require_subnet6(subnet: IPv4Network, subnet6: IPv6Network) -> None:
    if subnet6.num_addresses <= subnet.num_addresses:
        raise InvalidError(
            f"has no room for the {subnet.num_addresses} addresses of {subnet}", subject=f"subnet {subnet6}"
        )
    for special in _NOBODYS6:
        if subnet6.overlaps(special):
            raise InvalidError(
                f"is part of {special} or holds it, which means something else to every host",
                subject=f"subnet {subnet6}",
                hint="leave it out for a unique local one (fd00::/8)",
            )


def _is_host(address: IPv4Address, subnet: IPv4Network) -> bool:
    return address in subnet and address not in (subnet.network_address, subnet.broadcast_address)
