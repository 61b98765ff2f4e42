# SPDX-License-Identifier: Apache-2.0
"""The wire of a sandbox with a policy: a tap that is not on the bridge but routed, so that whatever its guest sends,
to its neighbours too, goes through the host's IP rules, which know it by the tap. See docs/decisions/0015.

    guest -- tap hyt<id> -- routing -- bridge hyper0 (its neighbours, who find it by proxy ARP), the world

Of IPv6 there is none. The kernel's own check of the reverse path stands behind the rules against forged senders.
"""

import errno
import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from hyperd.network.pool import mac_of

_SETTINGS = Path("/proc/sys/net")
_PROXY = 0x08  # NTF_PROXY, linux/neighbour.h
_LINK_SCOPE = 253
_LEAST_BURST_BYTES = 16 << 10
_MISSING = (errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL)
_OF_TAP = {
    "ipv6/conf/{}/disable_ipv6": "1",
    "ipv4/conf/{}/rp_filter": "1",
    "ipv4/conf/{}/proxy_arp": "1",  # its guest takes its neighbours to be on the same wire
    "ipv4/neigh/{}/proxy_delay": "0",
    "ipv4/conf/{}/send_redirects": "0",
    "ipv4/conf/{}/accept_redirects": "0",
}


@dataclass(frozen=True, slots=True)
class Wire:
    """``name``: the tap's."""

    name: str
    address: IPv4Address
    network: str
    bridge: str
    subnet: IPv4Network
    gateway: IPv4Address
    rate_in: int = 0  # bytes a second to its guest; 0: no limit
    rate_out: int = 0


async def route(netlink: AsyncIPRoute, index: int, wire: Wire, *, mtu: int, ifalias: str) -> None:
    """Take the tap off the bridge, where it is on one, and lead its address to it. Idempotent.

    Its MAC is the bridge's: a guest that ran before it had a policy goes on. Raises NetlinkError, OSError.
    """
    bridge = await _require_link(netlink, wire.bridge)  # before anything is touched
    await netlink.link("set", index=index, master=0)
    for path, value in _OF_TAP.items():
        _set(path.format(wire.name), value)
    await netlink.link("set", index=index, mtu=mtu, ifalias=ifalias, address=mac_of(wire.gateway), state="up")
    await netlink.route("replace", dst=f"{wire.address}/32", oif=index, scope=_LINK_SCOPE)
    await _shape(netlink, index, wire.rate_in)
    _set(f"ipv4/neigh/{wire.bridge}/proxy_delay", "0")
    await netlink.neigh("replace", dst=str(wire.address), ifindex=bridge, flags=_PROXY)


async def unroute(netlink: AsyncIPRoute, wire: Wire) -> None:
    """What stays when the tap is gone: its neighbours are told nothing of it any more. Idempotent."""
    for bridge in await netlink.link_lookup(ifname=wire.bridge):
        try:
            await netlink.neigh("del", dst=str(wire.address), ifindex=bridge, flags=_PROXY)
        except NetlinkError as error:
            if error.code not in _MISSING:
                raise


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
