# SPDX-License-Identifier: Apache-2.0
"""The taps of one network: plugged into its bridge, pulled out, or parked; and who may say what on each.

A tap that is parked leads nowhere, whatever its guest sends: it waits for a VM that has not let go of its NIC.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from hyperd.errors import HyperError
from hyperd.host.batch import Batch
from hyperd.host.workers import Workers
from hyperd.model.vm import SandboxId
from hyperd.network import links
from hyperd.network.bridge import Bridge
from hyperd.network.leases import Lease
from hyperd.network.nat import let_loopback_in
from hyperd.network.netlink import network_errors
from hyperd.network.policy import Place, Policies, Wire, route
from hyperd.network.pool import address6_of, link_local_of
from hyperd.network.settings import BridgeSettings
from hyperd.network.speakers import Speaker, allow, forget
from hyperd.network.tap import create_tap, existing_taps, remove_unused_tap

MISSING = (errno.ENODEV, errno.ENOENT)


@dataclass(frozen=True, slots=True)
class _Gone:
    tap: str
    speaker: Speaker | None


class Plugs:
    """``lock``: nobody else changes the rules meanwhile."""

    def __init__(
        self,
        settings: BridgeSettings,
        taps: Workers,
        lock: asyncio.Lock,
        policies: Policies,
        is_published: Callable[[IPv4Address], bool],
    ) -> None:
        self._settings = settings
        self._taps = taps
        self._lock = lock
        self._policies = policies
        self._is_published = is_published
        self._place = Place(settings.table, settings.internal)
        self.is_guarded = True  # each tap has rules of its own
        self._gone: Batch[_Gone] = Batch(self._remove, links.MOST)
        self._with_rules: set[str] | None = None  # None: an earlier hyperd's may be there

    def ruled(self, taps: Iterable[str]) -> None:
        """All rules were made anew, for these. Called under the lock."""
        self._with_rules = set(taps)

    async def plug(self, lease: Lease, bridge: Bridge, owner: str) -> None:
        """Made, or found made. ``owner``: of the records."""
        is_limited = bool(self._policies.revision(lease.sandbox_id))
        if is_limited:
            await self._policies.arm(self._place, lease.sandbox_id, self._wire(lease))
        with network_errors(lease.tap):
            if self.is_guarded:  # before there is anything that it could be too late for
                async with self._lock:
                    if self._with_rules is not None:
                        self._with_rules.add(lease.tap)
                    await self._taps.call(allow, self._settings.table, speaker_of(lease, self._settings))
            index = await self._taps.call(create_tap, lease.tap, self._settings.tap_owner_uid)
            if is_limited:
                await self._route(index, lease, bridge, owner)
                return
            alias = alias_of(owner, lease.sandbox_id)
            await self._taps.call(links.plug, index, bridge=bridge.index, mtu=bridge.mtu, alias=alias)

    async def enforce(self, lease: Lease, bridge: Bridge, owner: str) -> None:
        """Its policy as it is now, where it has a tap: also for what it has begun. Idempotent."""
        wire = self._wire(lease)
        try:
            index = socket.if_nametoindex(lease.tap)
        except OSError:
            return  # it will be with its tap
        if await self._policies.arm_again(self._place, lease.sandbox_id, wire):
            await self._route(index, lease, bridge, owner)
            await self._policies.cut(wire)

    async def stand_by_policies(self, leases: Iterable[Lease], bridge: Bridge, owner: str) -> None:
        """Of all that run. Where their rules cannot be made, they are off the network."""
        there = {name for _, name in socket.if_nameindex()}
        limited = [
            lease for lease in leases if lease.tap in there and self._policies.covers(lease.sandbox_id)
        ]
        wires = [(lease.sandbox_id, self._wire(lease)) for lease in limited]
        try:
            await self._policies.stand(self._place, wires)
        except HyperError:
            for lease in limited:
                await self._take_down(lease.tap)
            raise
        for lease in limited:
            try:
                await self._route(links.index_of(lease.tap), lease, bridge, owner)
            except HyperError:
                if links.index_of(lease.tap):  # else it has ended meanwhile
                    raise

    async def plug_again(self, leases: Iterable[Lease], bridge: Bridge, owner: str) -> None:
        """Of those that run: whoever removed the bridge has unplugged them."""
        for lease in leases:
            alias, is_limited = alias_of(owner, lease.sandbox_id), self._policies.covers(lease.sandbox_id)
            if is_limited or links.alias_of(lease.tap) != alias:  # there is none, or it is somebody else's
                continue
            if links.is_on(self._settings.bridge, lease.tap):
                continue
            with network_errors(lease.tap):
                try:
                    index = socket.if_nametoindex(lease.tap)
                    await self._taps.call(links.plug, index, bridge=bridge.index, mtu=bridge.mtu, alias=alias)
                except OSError as error:
                    if error.errno not in MISSING:  # it has ended meanwhile
                        raise

    async def _take_down(self, tap: str) -> None:
        """Idempotent, also where there is no tap."""
        with network_errors(tap):
            async with AsyncIPRoute() as netlink:
                try:
                    await netlink.link("set", ifname=tap, state="down")
                except NetlinkError as error:
                    if error.code not in MISSING:
                        raise

    async def pull(self, tap: str, lease: Lease | None) -> None:
        """Idempotent, and free of cost where there is nothing. ``lease``: None when its addresses are not known."""
        if _is_there(tap) or self._has_rules(tap):
            with network_errors(tap):
                await self._gone.do(_Gone(tap, speaker_of(lease, self._settings) if lease else None))
        if lease is not None:
            await self._policies.disarm(self._place, lease.sandbox_id, self._wire(lease))

    async def park(self, lease: Lease) -> None:
        """Idempotent, also where there is no tap. Down before it leaves the bridge: the host would route for it."""
        with network_errors(lease.tap):
            async with AsyncIPRoute() as netlink:
                try:
                    for change in ({"state": "down"}, {"master": 0}):
                        await netlink.link("set", ifname=lease.tap, **change)
                except NetlinkError as error:
                    if error.code not in MISSING:
                        raise
        await self._forget(lease.tap, lease)

    async def undo(self, lease: Lease) -> bool:
        """Take back ``plug``, but of a tap that a VM holds. Whether there is none now."""
        with network_errors(lease.tap):
            if not await self._taps.call(remove_unused_tap, lease.tap):
                return False
        await self._forget(lease.tap, lease)
        return True

    async def _forget(self, tap: str, lease: Lease | None) -> None:
        """The rules, when the tap leads nowhere."""
        if lease is not None:
            await self._policies.disarm(self._place, lease.sandbox_id, self._wire(lease))
        if self.is_guarded:
            with network_errors(tap):
                await self._forget_rules([_Gone(tap, speaker_of(lease, self._settings) if lease else None)])

    def _has_rules(self, tap: str) -> bool:
        return self.is_guarded and (self._with_rules is None or tap in self._with_rules)

    async def _remove(self, gone: Sequence[_Gone]) -> None:
        await self._taps.call(links.remove, [one.tap for one in gone])
        if ruled := [one for one in gone if self._has_rules(one.tap)]:
            await self._forget_rules(ruled)

    async def _forget_rules(self, gone: Sequence[_Gone]) -> None:
        taps, speakers = [one.tap for one in gone], [one.speaker for one in gone if one.speaker is not None]
        async with self._lock:
            await self._taps.call(forget, self._settings.table, taps, speakers)
            if self._with_rules is not None:
                self._with_rules.difference_update(taps)

    async def _route(self, index: int, lease: Lease, bridge: Bridge, owner: str) -> None:
        with network_errors(lease.tap):
            async with AsyncIPRoute() as netlink:
                limited = self._policies.limited(lease.sandbox_id, self._wire(lease))
                alias = alias_of(owner, lease.sandbox_id)
                await route(netlink, index, limited, mtu=bridge.mtu, ifalias=alias)
        let_loopback_in(lease.tap, wanted=self._is_published(lease.address))

    def _wire(self, lease: Lease) -> Wire:
        settings = self._settings
        return Wire(
            lease.tap, lease.address, settings.name, settings.bridge, settings.subnet, settings.gateway
        )


def _is_there(tap: str) -> bool:
    try:
        socket.if_nametoindex(tap)
    except OSError as error:
        return error.errno not in MISSING
    return True


async def remove_links(names: Iterable[str]) -> None:
    """Idempotent."""
    async with AsyncIPRoute() as netlink:
        for name in names:
            with network_errors(name):
                try:
                    await netlink.link("del", ifname=name)
                except NetlinkError as error:
                    if error.code not in MISSING:
                        raise


async def remove_left_taps(sandbox_id: SandboxId) -> None:
    """Those that no lease tells of: parked, or left by a hyperd that was killed. Idempotent."""
    left = existing_taps(sandbox_id)
    if left:
        await remove_links(left.values())


def speaker_of(lease: Lease, settings: BridgeSettings) -> Speaker:
    address6 = address6_in(lease, settings)
    addresses6 = (address6, link_local_of(lease.mac)) if address6 else ()
    return Speaker(lease.tap, lease.mac, lease.address, addresses6)


def address6_in(lease: Lease, settings: BridgeSettings) -> IPv6Address | None:
    """None: the network has no IPv6."""
    if settings.subnet6 is None:
        return None
    return lease.own_address6 or address6_of(lease.address, settings.subnet, settings.subnet6)


def alias_of(owner: str, sandbox_id: str) -> str:
    """A tap's: whose it is, and the whole id, of which its name has only a part."""
    return f"hyper {owner} sandbox {sandbox_id}"
