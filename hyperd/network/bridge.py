# SPDX-License-Identifier: Apache-2.0
"""The bridge: made or repaired, its address given, its subnet checked against the host's routes."""

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from hyperd.errors import UnavailableError
from hyperd.network.netlink import network_errors
from hyperd.network.pool import mac_of
from hyperd.network.settings import LEAST_MTU6, BridgeSettings
from hyperd.network.tap import PREFIX

_ETHERNET_MTU = 1500
_MAIN_TABLE = 254
_NODAD = 2  # IFA_F_NODAD
_LOCAL_TABLE, _NOT_FIRST = 255, 2000  # a metric: loopback's own route is asked before
_BRIDGED6 = Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables")


@dataclass(frozen=True, slots=True)
class HostRoute:
    destination: IPv4Network
    interface: str
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge that is up."""

    index: int
    mtu: int


def require_free(subnet: IPv4Network, routes: Iterable[HostRoute], bridge: str) -> None:
    """Raises UnavailableError when the host sends part of ``subnet`` elsewhere. The default route does not count.

    Nor does a wider route, a VPN's for 10.0.0.0/8, once the bridge is there: its own is the more specific one, and the
    sandboxes have been there longer.
    """
    routes = tuple(routes)
    ours = any(route.interface == bridge and route.destination == subnet for route in routes)
    for route in routes:
        if route.interface == bridge or route.destination.prefixlen == 0:
            continue
        if route.interface.startswith(PREFIX) and route.destination.prefixlen == 32:
            continue  # a sandbox with a policy; whoever has a bridge with this subnet is found by its own route
        if ours and route.destination.prefixlen < subnet.prefixlen:
            continue
        if route.destination.overlaps(subnet):
            raise UnavailableError(
                f"the host has a route to {route.destination} through {route.interface}, which overlaps",
                subject=str(subnet),
                hint="configure another subnet for the sandboxes",
            )


def choose_mtu(configured: int, routes: Iterable[HostRoute]) -> int:
    """As configured, else what the way out takes, else Ethernet's."""
    outward = [route.mtu for route in routes if route.destination.prefixlen == 0 and route.mtu]
    return configured or min([*outward, _ETHERNET_MTU])


async def ensure_bridge(settings: BridgeSettings) -> Bridge:
    """Make what is missing, change what is different. Raises UnavailableError, DeniedError."""
    async with AsyncIPRoute() as netlink:
        with network_errors(settings.bridge):
            routes = await list_routes(netlink)
            require_free(settings.subnet, routes, settings.bridge)
            mtu = choose_mtu(settings.mtu, routes)
            if settings.subnet6 is not None and mtu < LEAST_MTU6:
                raise UnavailableError(
                    f"IPv6 needs an MTU of {LEAST_MTU6}, and the host's way out has one of {mtu}",
                    subject=f"bridge {settings.bridge}",
                    hint=f"make the network with --mtu {LEAST_MTU6}, or without --ipv6",
                )
            index = await _ensure_link(netlink, settings)
            await netlink.link("set", index=index, address=mac_of(settings.gateway), mtu=mtu, state="up")
            await _ensure_address(netlink, index, settings)
            if settings.subnet6 is not None:
                _speak_ipv6(settings.bridge)
                await _ensure_address6(netlink, index, settings)
                if not settings.internal:
                    await _take_loopback6(netlink, index)
    return Bridge(index, mtu)


def is_loopback6_led() -> bool:
    """Whether what the host itself sends to ::1 can be led to a guest: where bridged packets go through ip6tables, the
    answer becomes one to ::1 while it is still on the bridge, and from there the kernel takes none.
    """
    try:
        return _BRIDGED6.read_text().strip() == "0"
    except FileNotFoundError:
        return True  # there is no such thing in this kernel
    except OSError:
        return False


async def read_routes() -> list[HostRoute]:
    """Raises UnavailableError, DeniedError."""
    with network_errors("the host's routes"):
        async with AsyncIPRoute() as netlink:
            return await list_routes(netlink)


async def read_routes6() -> list[IPv6Network]:
    """Of IPv6, but the default one and those of links and multicast. Raises UnavailableError, DeniedError."""
    found = []
    with network_errors("the host's routes"):
        async with AsyncIPRoute() as netlink:
            async for route in await netlink.route("dump", family=socket.AF_INET6, table=_MAIN_TABLE):
                destination = IPv6Network(f"{route.get_attr('RTA_DST') or '::'}/{route['dst_len']}")
                if destination.prefixlen and not destination.is_link_local and not destination.is_multicast:
                    found.append(destination)
    return found


def _speak_ipv6(bridge: str) -> None:
    """On this bridge, where it is the host who says what there is: no router's word counts."""
    directory = Path("/proc/sys/net/ipv6/conf", bridge)
    if not directory.is_dir():
        raise UnavailableError(
            "the host has no IPv6", subject=f"bridge {bridge}", hint="make the network without --ipv6"
        )
    for name, value in (("disable_ipv6", "0"), ("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0")):
        (directory / name).write_text(value)


async def _ensure_address6(netlink: AsyncIPRoute, index: int, settings: BridgeSettings) -> None:
    assert settings.subnet6 is not None  # noqa: S101 - asked before
    wanted = (settings.gateway6, settings.subnet6.prefixlen)
    present = set()
    async for address in await netlink.addr("dump", index=index, family=socket.AF_INET6):
        if address["index"] == index:
            present.add((IPv6Address(address.get_attr("IFA_ADDRESS")), address["prefixlen"]))
    if wanted not in present:
        await netlink.addr(
            "add",
            index=index,
            address=str(wanted[0]),
            prefixlen=wanted[1],
            family=socket.AF_INET6,
            flags=_NODAD,
        )


async def _take_loopback6(netlink: AsyncIPRoute, index: int) -> None:
    """Answers to the host's own ::1, which rules have led to a guest and lead back, are taken from this bridge, too.

    What comes from the wire for ::1 the kernel drops before any rule or route, so nobody else gains by it.
    """
    await netlink.route(
        "replace",
        family=socket.AF_INET6,
        dst="::1/128",
        oif=index,
        table=_LOCAL_TABLE,
        type="local",
        priority=_NOT_FIRST,
    )


async def list_routes(netlink: AsyncIPRoute) -> list[HostRoute]:
    links = {link["index"]: link async for link in await netlink.link("dump")}
    found = []
    async for route in await netlink.route("dump", family=socket.AF_INET, table=_MAIN_TABLE):
        link = links.get(route.get_attr("RTA_OIF"))
        destination = f"{route.get_attr('RTA_DST') or '0.0.0.0'}/{route['dst_len']}"
        found.append(
            HostRoute(
                IPv4Network(destination),
                link.get_attr("IFLA_IFNAME") if link is not None else "",
                link.get_attr("IFLA_MTU") if link is not None else 0,
            )
        )
    return found


async def _ensure_link(netlink: AsyncIPRoute, settings: BridgeSettings) -> int:
    try:
        await netlink.link("add", ifname=settings.bridge, kind="bridge", br_stp_state=0, br_forward_delay=0)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
    # All of it: a dump that is left halfway keeps the socket busy, and with hundreds of taps it has several parts.
    for link in [link async for link in await netlink.link("dump")]:
        if link.get_attr("IFLA_IFNAME") != settings.bridge:
            continue
        info = link.get_attr("IFLA_LINKINFO")
        if info is None or info.get_attr("IFLA_INFO_KIND") != "bridge":
            raise UnavailableError(
                "there is an interface of this name that is no bridge",
                subject=settings.bridge,
                hint="configure another name for hyper's bridge",
            )
        index: int = link["index"]
        return index
    raise UnavailableError("the bridge was removed while it was being made", subject=settings.bridge)


async def _ensure_address(netlink: AsyncIPRoute, index: int, settings: BridgeSettings) -> None:
    wanted = (settings.gateway, settings.subnet.prefixlen)
    present = set()
    async for address in await netlink.addr("dump", index=index, family=socket.AF_INET):
        if address["index"] == index:  # an older kernel does not filter
            present.add((IPv4Address(address.get_attr("IFA_LOCAL")), address["prefixlen"]))
    for other, prefix_length in present - {wanted}:
        await netlink.addr("del", index=index, address=str(other), prefixlen=prefix_length)
    if wanted not in present:
        await netlink.addr("add", index=index, address=str(wanted[0]), prefixlen=wanted[1])
