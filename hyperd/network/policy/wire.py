# SPDX-License-Identifier: Apache-2.0
"""The wire of a sandbox with a policy: a tap that is not on the bridge but routed, so that whatever its guest sends,
to its neighbours too, goes through the host's IP rules, which know it by the tap. See docs/decisions/0015.

    guest -- tap hyt<id> -- routing -- bridge hyper0 (its neighbours, who find it by proxy ARP), the world

In IPv6 the host answers its neighbours for it in the same way, and it for its gateway alone: its guest is told to send
all to that (``Attachment.is_routed``). The kernel's own check of the reverse path stands behind the rules against
forged senders in IPv4; in IPv6 the rules stand alone.
"""

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from hyperd.network.bridge import take_loopback6
from hyperd.network.pool import mac_of

_SETTINGS = Path("/proc/sys/net")
_PROXY = 0x08  # NTF_PROXY, linux/neighbour.h
_LINK_SCOPE = 253
_LEAST_BURST_BYTES = 16 << 10
_MISSING = (errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL)
_OF_TAP6 = {
    "ipv6/conf/{}/accept_ra": "0",
    "ipv6/conf/{}/autoconf": "0",
    "ipv6/conf/{}/accept_dad": "0",
    "ipv6/conf/{}/accept_redirects": "0",
    "ipv6/conf/{}/forwarding": "1",
    "ipv6/conf/{}/proxy_ndp": "1",
    "ipv6/neigh/{}/proxy_delay": "0",
    "ipv6/conf/{}/disable_ipv6": "0",  # last: it begins to speak with this
}
_OF_BRIDGE6 = {
    "ipv6/conf/{}/forwarding": "1",
    "ipv6/conf/{}/proxy_ndp": "1",
    "ipv6/neigh/{}/proxy_delay": "0",
}
_OF_TAP = {
    "ipv4/conf/{}/rp_filter": "1",
    "ipv4/conf/{}/proxy_arp": "1",  # its guest takes its neighbours to be on the same wire
    "ipv4/neigh/{}/proxy_delay": "0",
    "ipv4/conf/{}/send_redirects": "0",
    "ipv4/conf/{}/accept_redirects": "0",
}


@dataclass(frozen=True, slots=True)
class Ipv6:
    """A wire's. ``of_link``: the address that its guest makes of its MAC."""

    address: IPv6Address
    of_link: IPv6Address
    subnet: IPv6Network
    gateway: IPv6Address


@dataclass(frozen=True, slots=True)
class Wire:
    """``name``: the tap's. ``ipv6`` None: its network has none."""

    name: str
    address: IPv4Address
    network: str
    bridge: str
    subnet: IPv4Network
    gateway: IPv4Address
    rate_in: int = 0  # bytes a second to its guest; 0: no limit
    rate_out: int = 0
    ipv6: Ipv6 | None = None

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        return (self.address, *([self.ipv6.address] if self.ipv6 else []))

    @property
    def subnets(self) -> tuple[IPv4Network | IPv6Network, ...]:
        return (self.subnet, *([self.ipv6.subnet] if self.ipv6 else []))


async def route(netlink: AsyncIPRoute, index: int, wire: Wire, *, mtu: int, ifalias: str) -> None:
    """Take the tap off the bridge, where it is on one, and lead its address to it. Idempotent.

    Its MAC is the bridge's: a guest that ran before it had a policy goes on. Raises NetlinkError, OSError.
    """
    bridge = await _require_link(netlink, wire.bridge)  # before anything is touched
    await netlink.link("set", index=index, master=0)
    for path, value in _of_tap(wire):
        _set(path.format(wire.name), value)
    await netlink.link("set", index=index, mtu=mtu, ifalias=ifalias, address=mac_of(wire.gateway), state="up")
    await netlink.route("replace", dst=f"{wire.address}/32", oif=index, scope=_LINK_SCOPE)
    await _shape(netlink, index, wire.rate_in)
    _set(f"ipv4/neigh/{wire.bridge}/proxy_delay", "0")
    await netlink.neigh("replace", dst=str(wire.address), ifindex=bridge, flags=_PROXY)
    if wire.ipv6 is not None:
        await _route6(netlink, index, bridge, wire, wire.ipv6)


async def _route6(netlink: AsyncIPRoute, index: int, bridge: int, wire: Wire, own: Ipv6) -> None:
    for path, value in _OF_BRIDGE6.items():
        _set(path.format(wire.bridge), value)
    await netlink.route(
        "replace", family=socket.AF_INET6, dst=f"{own.address}/128", oif=index, prefsrc=str(own.gateway)
    )
    for address, interface in ((own.address, bridge), (own.gateway, index)):
        await netlink.neigh(
            "replace", family=socket.AF_INET6, dst=str(address), ifindex=interface, flags=_PROXY
        )
    await take_loopback6(netlink, index)


async def unroute(netlink: AsyncIPRoute, wire: Wire) -> None:
    """What stays when the tap is gone: its neighbours are told nothing of it any more. Idempotent."""
    for bridge in await netlink.link_lookup(ifname=wire.bridge):
        for address in wire.addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            try:
                await netlink.neigh("del", family=family, dst=str(address), ifindex=bridge, flags=_PROXY)
            except NetlinkError as error:
                if error.code not in _MISSING:
                    raise


def _of_tap(wire: Wire) -> Iterator[tuple[str, str]]:
    yield from _OF_TAP.items()
    if wire.ipv6 is None:
        yield "ipv6/conf/{}/disable_ipv6", "1"
    else:
        yield from _OF_TAP6.items()


async def _require_link(netlink: AsyncIPRoute, name: str) -> int:
    """Its index. Raises NetlinkError, as the kernel would."""
    for index in await netlink.link_lookup(ifname=name):
        return int(index)
    raise NetlinkError(errno.ENODEV, f"{name}: {os.strerror(errno.ENODEV)}")


async def _shape(netlink: AsyncIPRoute, index: int, rate: int) -> None:
    """What is sent to the guest waits its turn; what the guest sends is dropped beyond its rate, by a rule."""
    if rate:
        burst_bytes = max(_LEAST_BURST_BYTES, rate // 50)
        await netlink.tc(
            "replace", "tbf", index, handle="1:", rate=str(rate * 8), burst=burst_bytes, latency="400ms"
        )


def _set(path: str, value: str) -> None:
    setting = _SETTINGS / path
    try:
        if setting.read_text().strip() != value:
            setting.write_text(value)
    except FileNotFoundError:
        if not path.startswith("ipv6/"):  # a host without IPv6 has nothing to turn off
            raise
