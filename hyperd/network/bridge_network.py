# SPDX-License-Identifier: Apache-2.0
"""``BridgeNetwork``: a lease, a tap on the bridge, and NAT to the world outside.

``prepare`` does all that is slow or needs a child process; ``attach`` is on the way of every start and does not: one
transaction, four ioctls, four netlink messages; with a policy some more, and nft for the first of a network. A second
hyperd in the same network namespace needs another bridge and subnet; neither touches what is the other's.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

from pyroute2 import AsyncIPRoute

from hyperd.errors import HyperError, InvalidError, NotFoundError, UnavailableError, WrongStateError
from hyperd.host.database import Database
from hyperd.host.lock import FileLock
from hyperd.host.workers import Workers
from hyperd.model.network import DEFAULT_ENDPOINT, Attachment, Endpoint, PortRequest, PublishedPort
from hyperd.model.vm import SandboxId
from hyperd.network import links
from hyperd.network.attachments import attachment_of, wish_of
from hyperd.network.bridge import Bridge, ensure_bridge
from hyperd.network.forwards import Inside
from hyperd.network.leases import Lease, Leases, in_short
from hyperd.network.nat import (
    apply_rules,
    enable_forwarding,
    enable_forwarding6,
    let_loopback_in,
    remove_rules,
    rules_standing,
)
from hyperd.network.netlink import network_errors
from hyperd.network.plugs import Plugs, address6_in, alias_of, remove_links, speaker_of
from hyperd.network.policy import Policies
from hyperd.network.publishing import AtPort, Publishing
from hyperd.network.resolver import read_resolver
from hyperd.network.settings import BridgeSettings
from hyperd.network.tap import PREFIX, tap_name

_log = logging.getLogger(__name__)
LOOK_EVERY_S = 60.0


class BridgeNetwork:
    def __init__(
        self,
        settings: BridgeSettings,
        database: Database,
        at_port: AtPort | None = None,
        policies: Policies | None = None,
        called: Callable[[SandboxId], str] = in_short,
    ) -> None:
        self._settings = settings
        self._policies = policies or Policies(database)
        self._owned = () if policies else (self._policies,)
        self._leases = Leases(database, settings, called)
        self._taps = Workers("taps", 1)  # one: an undo is behind what it undoes
        self._preparing = asyncio.Lock()
        self._changing_rules = asyncio.Lock()  # a tap's own are put in before all are replaced, or after
        self._plugs = Plugs(settings, self._taps, self._changing_rules, self._policies, self._is_published)
        self._publishing = Publishing(
            database,
            settings.name,
            settings.table,
            settings.publish_address,
            self._taps,
            self._changing_rules,
            at_port,
            self._switch_loopback,
        )
        self._standing: tuple[int, ...] = (0,)  # rules in each of its tables
        self._bridge: Bridge | None = None  # only with its rules in force
        self.trouble: HyperError | None = None
        self._owner = ""
        self._is_removed = False
        self._loading = asyncio.Lock()
        self._lock = FileLock(
            settings.lock_dir / f"{_namespace()}-{settings.bridge}.lock",
            subject=f"bridge {settings.bridge}",
            remedy="a bridge and a subnet of its own: [network] bridge, subnet",
        )

    async def prepare(self) -> None:
        """Make or repair everything. Idempotent. Raises WrongStateError when another process has this bridge."""
        async with self._preparing:
            await self._prepare()

    async def ready(self) -> None:
        """As ``prepare``, unless it is."""
        await self._require_prepared()

    async def keep(self, every_s: float = LOOK_EVERY_S) -> None:
        """Until cancelled: what could not be prepared, or lost its rules (`nft flush ruleset`), is prepared again."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    async def look(self) -> None:
        """Once."""
        try:
            if self.trouble is None and await self._is_prepared():
                return
            if self.trouble is None and self._bridge is None and not await self.list_leased():
                return
            if self._bridge is not None:
                _log.warning("the bridge or the rules of sandboxes are gone: making them again")
            await self._require_prepared()
        except HyperError as error:
            _log.error("not repaired", extra={"error": str(error)})

    async def attach(
        self,
        sandbox_id: SandboxId,
        ports: Sequence[PortRequest] = (),
        holder: str = "",
        endpoint: Endpoint = DEFAULT_ENDPOINT,
        slot: int = 0,
    ) -> Attachment:
        await self._require_prepared()
        lease = await self._leases.lease(sandbox_id, wish_of(endpoint, slot))
        try:
            try:
                revision = self._policies.revision(sandbox_id)
                bridge = await self._connect(lease, ports, holder)
            except (
                UnavailableError
            ) as error:  # somebody may have removed the bridge: once more, with a new one
                _log.warning(
                    "attaching again after a repair", extra={"sandbox_id": sandbox_id, "cause": str(error)}
                )
                await self.prepare()
                revision = self._policies.revision(sandbox_id)
                bridge = await self._connect(lease, ports, holder)
            if self._policies.revision(sandbox_id) != revision:
                await self.enforce(sandbox_id)  # somebody changed it meanwhile, and found no tap
        except BaseException:
            await asyncio.shield(self._undo_alone(lease))
            raise
        return self._attachment(lease, bridge, endpoint.gateway_priority)

    async def detach(self, sandbox_id: SandboxId) -> None:
        lease = await self._leases.find(sandbox_id)
        await self._plugs.pull(lease.tap if lease else tap_name(sandbox_id), lease)
        await self._publishing.withdraw(sandbox_id)

    async def disconnect(self, sandbox_id: SandboxId) -> None:
        """Its tap is parked, all else of it here is gone. Idempotent."""
        async with self._preparing:  # which would plug it in again, as long as there is a lease
            lease = await self._leases.find(sandbox_id)
            if lease is not None:
                await self._plugs.park(lease)
            await self._publishing.withdraw(sandbox_id)
            await self._leases.release(sandbox_id)

    async def enforce(self, sandbox_id: SandboxId) -> None:
        """Its policy as it is now, where it runs: also for what it has begun. Idempotent."""
        lease = await self._leases.find(sandbox_id)
        if lease is None or not self._policies.covers(sandbox_id):
            return
        await self._require_prepared()
        if self._bridge is None:
            raise UnavailableError("the network is not prepared", subject=sandbox_id)
        await self._plugs.enforce(lease, self._bridge, self._owner)
        stale = [port for port in self._publishing.of(sandbox_id) if ":" in port.host_ip]
        if stale:  # from now on it has no IPv6
            await self._publishing.withdraw(sandbox_id, stale, hang_up=True)

    async def publish(
        self, sandbox_id: SandboxId, ports: Sequence[PortRequest], holder: str
    ) -> tuple[PublishedPort, ...]:
        self._require_outward(ports)
        lease = await self._leases.find(sandbox_id)
        if lease is None:
            raise WrongStateError("has no network", subject=f"container {holder}")
        tap = lease.tap

        def require_plugged() -> None:
            try:
                socket.if_nametoindex(tap)
            except OSError as error:
                raise WrongStateError("is not on the network", subject=f"container {holder}") from error

        await self._require_prepared()
        return await self._publishing.publish(sandbox_id, holder, self._inside(lease), ports, require_plugged)

    async def unpublish(self, sandbox_id: SandboxId, ports: Collection[PublishedPort]) -> None:
        await self._publishing.withdraw(sandbox_id, ports, hang_up=True)

    def has_ipv6(self, sandbox_id: SandboxId) -> bool:
        """Policies know of none: there is none where they hold."""
        return self._settings.subnet6 is not None and not self._policies.covers(sandbox_id)

    def published(self, sandbox_id: SandboxId) -> tuple[PublishedPort, ...]:
        return self._publishing.of(sandbox_id)

    async def release(self, sandbox_id: SandboxId) -> None:
        await self.detach(sandbox_id)
        await self._leases.release(sandbox_id)

    async def tap_of(self, sandbox_id: SandboxId) -> str:
        """That it would have, or has; "" without a lease."""
        lease = await self._leases.find(sandbox_id)
        return lease.tap if lease else ""

    async def list_attached(self) -> set[SandboxId]:
        await self._prepare_records()
        owners = await self._leases.list_owners() | self._publishing.owners
        alias_start = alias_of(self._owner, "")
        with network_errors(self._settings.bridge):
            async with AsyncIPRoute() as netlink:
                async for link in await netlink.link("dump"):
                    name, alias = link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_IFALIAS") or ""
                    if name.startswith(PREFIX) and alias.startswith(alias_start):
                        owners.add(SandboxId(alias.removeprefix(alias_start)))
        return owners

    @property
    def settings(self) -> BridgeSettings:
        return self._settings

    async def networks_of(self, sandbox_id: SandboxId) -> set[str]:
        """The names of all networks that it has a lease of, in one look."""
        return await self._leases.networks_of(sandbox_id)

    async def find_lease(self, sandbox_id: SandboxId) -> Lease | None:
        return await self._leases.find(sandbox_id)

    async def list_leased(self) -> set[SandboxId]:
        await self._prepare_records()
        return await self._leases.list_owners() | self._publishing.owners

    async def remove(self) -> None:
        """Bridge, rules and what is remembered of its addresses. Idempotent.

        Raises WrongStateError when somebody has an address; nobody gets one any more, unless this fails.
        """
        async with self._preparing:
            self._is_removed = True
            try:
                await self._leases.forget_all()
                self._bridge = None
                await remove_links([self._settings.bridge])
                await remove_rules(self._settings)
                await self._policies.withdraw(self._settings.table)
            except BaseException:
                self._is_removed = False
                raise

    async def clear(self) -> None:
        """As ``remove``, until it is needed again."""
        await self.remove()
        self._is_removed = False

    def close(self) -> None:
        """End the room's thread and give the bridge free; what sandboxes use stays."""
        self._taps.close()
        self._publishing.close()
        for owned in self._owned:
            owned.close()
        self._lock.release()

    async def _require_prepared(self) -> None:
        """Look first, so that many who find the rules gone make them once."""
        if not await self._is_prepared():
            async with self._preparing:
                if not await self._is_prepared():
                    await self._prepare()

    async def _is_prepared(self) -> bool:
        return (
            self._bridge is not None
            and links.index_of(self._settings.bridge) == self._bridge.index
            and rules_standing(self._settings, bridged=self._plugs.is_guarded) == self._standing
            and await self._policies.stands(self._settings.table)
        )

    async def _prepare(self) -> None:
        if self._is_removed:  # meanwhile
            raise NotFoundError("no such network", subject=f"network {self._settings.name}")
        await self._prepare_records()
        try:
            self._lock.acquire()
            bridge = await ensure_bridge(self._settings)
            resolver = read_resolver()
            await self._plugs.stand_by_policies(await self._leases.list_all(), bridge, self._owner)
            await self._apply_rules(resolver.servers)
            await self._plugs.plug_again(await self._leases.list_all(), bridge, self._owner)
            changed = enable_forwarding()
            if self._settings.subnet6 is not None and not self._settings.internal and enable_forwarding6():
                _log.info("net.ipv6.conf.all.forwarding was 0 and is now 1")
        except HyperError as error:
            self._bridge, self.trouble = None, error
            raise
        self._bridge, self.trouble = bridge, None  # only now: who finds a bridge has all the rest too
        settings = self._settings
        fields = {"bridge": settings.bridge, "subnet": str(settings.subnet), "mtu": bridge.mtu}
        _log.info("network is ready", extra=fields)
        if changed:
            _log.info("net.ipv4.ip_forward was 0 and is now 1")
        if not resolver.servers:
            _log.warning("the host has no name server that a guest could reach; guests cannot resolve names")

    async def _apply_rules(self, dns_servers: tuple[str, ...]) -> None:
        """With those of every lease: their taps may be in use."""
        async with self._changing_rules:
            known = [speaker_of(lease, self._settings) for lease in await self._leases.list_all()]
            was_guarded, self._plugs.is_guarded = (
                self._plugs.is_guarded,
                await apply_rules(self._settings, dns_servers, known, self._publishing.forwards),
            )
            # Made again also when one of them is taken out; () is never what is seen.
            self._standing = rules_standing(self._settings, bridged=self._plugs.is_guarded) or (0,)
            self._plugs.ruled(speaker.tap for speaker in known)
            self._switch_loopback()
        if was_guarded and not self._plugs.is_guarded:
            _log.warning(
                "this kernel has no nftables for bridges: a guest can speak in another's name to its neighbours"
            )

    def _switch_loopback(self) -> None:
        """Of the bridge, and of the taps that are not on it."""
        published = {forward.address for forward in self._publishing.forwards if forward.address.version == 4}
        let_loopback_in(self._settings.bridge, wanted=bool(published))
        for wire in self._policies.wires_on(self._settings.table):
            let_loopback_in(wire.name, wanted=wire.address in published)

    def _is_published(self, address: IPv4Address) -> bool:
        return any(forward.address == address for forward in self._publishing.forwards)

    async def _prepare_records(self) -> None:
        async with self._loading:
            if not self._owner:
                await self._leases.prepare()
                owner = await self._leases.owner()
                await self._publishing.load()
                await self._policies.load()
                self._owner = owner

    def _require_outward(self, ports: Sequence[PortRequest]) -> None:
        if ports and self._settings.internal:
            raise InvalidError(
                "is internal: nothing outside reaches its ports",
                subject=f"network {self._settings.name}",
                hint="leave -p and -P out, or use another network",
            )

    def _inside(self, lease: Lease) -> Inside:
        has_ipv6 = self.has_ipv6(lease.sandbox_id)
        return Inside(lease.address, address6_in(lease, self._settings) if has_ipv6 else None)

    async def _connect(self, lease: Lease, ports: Sequence[PortRequest], holder: str) -> Bridge:
        """Published and plugged, unless that is done."""
        self._require_outward(ports)
        if ports:
            await self._publishing.publish_again(lease.sandbox_id, holder, self._inside(lease), ports)
        bridge = self._bridge
        if bridge is None:
            raise UnavailableError("the network is not prepared", subject=lease.sandbox_id)
        await self._plugs.plug(lease, bridge, self._owner)
        return bridge

    async def _undo_alone(self, lease: Lease) -> None:
        async with self._preparing:  # which would plug it in again, as long as there is a lease
            await self._undo(lease)

    async def _undo(self, lease: Lease) -> None:
        try:
            is_gone = await self._plugs.undo(lease)
            if (
                not is_gone and lease.is_new
            ):  # a NIC that its VM had not let go of when it left another network
                await self._plugs.park(lease)
            if is_gone or lease.is_new:
                await self._publishing.withdraw(lease.sandbox_id)
        finally:
            if lease.is_new:
                await self._leases.release(lease.sandbox_id)

    def _attachment(self, lease: Lease, bridge: Bridge, gateway_priority: int) -> Attachment:
        settings = self._settings
        asks_here = settings.has_names or self._policies.covers(lease.sandbox_id)
        attachment = attachment_of(lease, settings, bridge.mtu, gateway_priority, asks_here=asks_here)
        return attachment if self.has_ipv6(lease.sandbox_id) else replace(attachment, address6="")


def _namespace() -> int:
    """A number for the network namespace that this process is in: bridges of one name may exist in several."""
    return Path("/proc/self/ns/net").stat().st_ino
