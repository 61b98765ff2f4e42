# SPDX-License-Identifier: Apache-2.0
"""``BridgeNetworks``: the default network and those that users make, each a bridge with leases and rules of its own.

Bridges and rules are made from the records: a network whose record is there and whose bridge is not is made again when
it is next needed.
"""

import asyncio
import contextlib
import dataclasses
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    HyperError,
    NotFoundError,
    WrongStateError,
)
from hyperd.host.database import Database
from hyperd.model.network import (
    DEFAULT_ENDPOINT,
    DEFAULT_NETWORK,
    Attachment,
    Endpoint,
    Named,
    NetworkSpec,
    NetworkView,
    PortRequest,
    PublishedPort,
    requests_of,
)
from hyperd.model.stats import WireUsage
from hyperd.model.vm import SandboxId
from hyperd.network.bridge import read_routes, read_routes6
from hyperd.network.bridge_network import LOOK_EVERY_S, BridgeNetwork
from hyperd.network.definitions import Definitions
from hyperd.network.directory import Directory
from hyperd.network.floating import Floating
from hyperd.network.forwarder import Forwarder
from hyperd.network.leases import in_short
from hyperd.network.meter import Meter
from hyperd.network.nameservers import NameServers, without_ours
from hyperd.network.planning import (
    choose_subnet,
    choose_subnet6,
    filled,
    find_view,
    no_such,
    require_name,
    settings_of,
    spec_of,
    view_of,
)
from hyperd.network.plugs import remove_left_taps, remove_links
from hyperd.network.policy import Policies
from hyperd.network.publishing import AtPort
from hyperd.network.resolver import read_host_servers
from hyperd.network.settings import BridgeSettings
from hyperd.network.tap import existing_taps
from hyperd.network.watch import TableWatch, watching

_log = logging.getLogger(__name__)
_MAX_NETWORKS = 200


class BridgeNetworks:
    def __init__(
        self,
        settings: BridgeSettings,
        database: Database,
        upstream: Callable[[], Sequence[str]] = read_host_servers,
        pools: Sequence[IPv4Network] = (),
    ) -> None:
        """``upstream``: the servers that are asked what no container is called. ``pools``: of floating addresses."""
        self._settings = settings
        self._database = database
        self._definitions = Definitions(database)
        self._at_port: AtPort = {}
        self._policies = Policies(database)
        self._named: Callable[[], Iterable[Named]] = tuple
        self._container: Callable[[SandboxId], str] = lambda _: ""
        self._default = self._network(settings)
        self._networks: dict[str, BridgeNetwork] = {settings.name: self._default}
        self._views: dict[str, NetworkView] = {}
        self._floating = Floating(database, pools, settings.table, settings.bridge, self._address_of)
        self._meter = Meter(self._policies)
        self._changing = asyncio.Lock()
        self._loading = asyncio.Lock()
        self._is_loaded = False
        directory = Directory(self._all_settings, self._all_named)
        self._servers = NameServers(
            self._policies, directory, Forwarder(without_ours(upstream, self._all_settings))
        )

    @property
    def trouble(self) -> HyperError | None:
        return self._default.trouble

    @property
    def floating(self) -> Floating:
        return self._floating

    @property
    def policies(self) -> Policies:
        return self._policies

    async def prepare(self) -> None:
        """The default one's errors are raised; of the others it is told, and each start that needs one tries again."""
        trouble: HyperError | None = None
        try:
            await self._default.prepare()
            await self._servers.serve(self._default)
        except HyperError as error:
            trouble = error
        await self._load()
        for name, network in list(self._networks.items()):
            if network is not self._default:
                try:
                    await network.prepare()
                    await self._servers.serve(network)
                except HyperError as error:
                    _log.error("a network is not ready", extra={"network": name, "error": str(error)})
        try:
            await self._floating.stand()
        except HyperError as error:
            _log.error("floating addresses are not ready", extra={"error": str(error)})
        if trouble is not None:
            raise trouble

    def names_from(
        self, named: Callable[[], Iterable[Named]], container: Callable[[SandboxId], str] = lambda _: ""
    ) -> None:
        """Who is called what, asked at most every 0.2 s; ``container``: the name of one, "" of what is none."""
        self._named = named
        self._container = container

    async def keep(self, every_s: float = LOOK_EVERY_S) -> None:
        """Until cancelled: rules that somebody took away are made again, at once."""
        async with asyncio.TaskGroup() as tasks, contextlib.AsyncExitStack() as stack:
            tasks.create_task(self._policies.keep())
            watch: TableWatch | None = None
            try:
                watch = await stack.enter_async_context(watching())
            except OSError as error:
                fields = {"error": str(error), "every_s": every_s}
                _log.warning("rules that are taken away are found by looking alone", extra=fields)
            await self._keep(watch, every_s)

    async def _keep(self, watch: TableWatch | None, every_s: float) -> None:
        while True:
            await (watch.wait(every_s) if watch is not None else asyncio.sleep(every_s))
            with contextlib.suppress(HyperError):  # told where it failed; the next look tries again
                await self._floating.look()
            for network in list(self._networks.values()):
                await network.look()
                with contextlib.suppress(HyperError):  # the port may be free by now
                    await self._servers.serve(network)

    async def attach(
        self,
        sandbox_id: SandboxId,
        ports: Sequence[PortRequest] = (),
        holder: str = "",
        endpoint: Endpoint = DEFAULT_ENDPOINT,
        slot: int = 0,
    ) -> Attachment:
        found = self._require(endpoint.network)
        if self._policies.covers(sandbox_id):
            await self._serve_policed(found)
        made = await found.attach(sandbox_id, ports, holder, endpoint, slot)
        await self._floating.follow(sandbox_id)
        return made

    async def enforce(self, sandbox_id: SandboxId) -> None:
        for network in await self._of(sandbox_id):
            if self._policies.covers(sandbox_id):
                await self._serve_policed(network)
            await network.enforce(sandbox_id)

    async def detach(self, sandbox_id: SandboxId) -> None:
        for network in await self._of(sandbox_id):
            await network.detach(sandbox_id)
        await remove_left_taps(sandbox_id)

    async def disconnect(self, sandbox_id: SandboxId, network: str) -> None:
        try:
            await self._require(network).disconnect(sandbox_id)
        finally:  # its address may be somebody else's next
            await self._floating.follow(sandbox_id)

    async def list_parked(self, sandbox_id: SandboxId) -> dict[int, str]:
        leased = {await network.tap_of(sandbox_id) for network in await self._of(sandbox_id)}
        return {slot: tap for slot, tap in existing_taps(sandbox_id).items() if tap not in leased}

    async def remove_parked(self, sandbox_id: SandboxId, tap: str) -> None:
        if tap in (await self.list_parked(sandbox_id)).values():
            await remove_links([tap])

    async def release(self, sandbox_id: SandboxId) -> None:
        await self._floating.detach(sandbox_id)  # before somebody else may have the address that it leads to
        for network in await self._of(sandbox_id):
            await network.release(sandbox_id)
        await remove_left_taps(sandbox_id)
        await self._policies.forget(sandbox_id)

    async def keep_only(self, wanted: Mapping[SandboxId, Collection[str]]) -> set[SandboxId]:
        gone = set()
        for name, network in list(self._networks.items()):
            for sandbox_id in await network.list_leased():
                if sandbox_id in wanted and name not in wanted[sandbox_id]:
                    _log.warning("leaving a network", extra={"id": sandbox_id[:12], "network": name})
                    await self.disconnect(sandbox_id, name)
                    gone.add(sandbox_id)
        return gone

    async def publish(
        self, sandbox_id: SandboxId, ports: Sequence[PortRequest], holder: str, network: str = DEFAULT_NETWORK
    ) -> tuple[PublishedPort, ...]:
        return await self._require(network).publish(sandbox_id, ports, holder)

    async def unpublish(self, sandbox_id: SandboxId, ports: Collection[PublishedPort]) -> None:
        for network in await self._of(sandbox_id):  # one has all
            if network.published(sandbox_id):
                await network.unpublish(sandbox_id, ports)
                return
        raise NotFoundError("publishes nothing", subject=f"container {sandbox_id[:12]}")

    async def lead_ports(
        self, sandbox_id: SandboxId, network: str, holder: str, otherwise: Sequence[PortRequest] = ()
    ) -> None:
        there = self._require(network)
        requests = list(otherwise) if not self.published(sandbox_id) else []
        has_ipv6 = there.has_ipv6(sandbox_id)
        for other in await self._of(sandbox_id):
            moved = other.published(sandbox_id)
            if moved and other is not there:
                await other.unpublish(sandbox_id, moved)
                requests += [one for one in requests_of(moved) if has_ipv6 or ":" not in one.host_ip]
        if requests and not there.settings.internal:
            await there.publish(sandbox_id, requests, holder)

    async def usage(self, sandbox_ids: Collection[SandboxId]) -> dict[SandboxId, WireUsage]:
        return await self._meter.read(sandbox_ids)

    def published(self, sandbox_id: SandboxId) -> tuple[PublishedPort, ...]:
        return tuple(port for network in self._networks.values() for port in network.published(sandbox_id))

    async def list_attached(self) -> set[SandboxId]:
        owners = await self._default.list_attached()  # taps of every network are known by their alias
        for network in list(self._networks.values()):
            owners |= await network.list_leased()
        return owners | self._policies.owners | await self._floating.owners()

    def list_networks(self) -> list[NetworkView]:
        return [view_of(self._settings), *self._views.values()]

    def get_network(self, reference: str) -> NetworkView:
        return find_view(self.list_networks(), reference)

    async def create_network(self, spec: NetworkSpec) -> NetworkView:
        require_name(spec.name)
        async with self._changing:
            await self._load()
            if spec.name in self._views:
                raise ExistsError("there is one of this name", subject=f"network {spec.name}")
            if len(self._views) >= _MAX_NETWORKS:
                raise ExhaustedError(f"there are {_MAX_NETWORKS} networks", hint="`hyper network prune`")
            subnet = choose_subnet(spec, self._all_settings(), await read_routes())
            subnet6 = choose_subnet6(spec, self._all_settings(), await read_routes6())
            settings = filled(spec, subnet, subnet6, self._settings)
            view = NetworkView(spec_of(spec, settings), secrets.token_hex(32), "", datetime.now(UTC))
            view = dataclasses.replace(view, bridge=f"hyb{view.network_id[:12]}")
            network = self._network(settings_of(view, self._settings))
            try:
                await self._definitions.insert(view)
                await network.prepare()
                await self._servers.serve(network)
            except BaseException:
                await asyncio.shield(self._abandon(spec.name, network))
                raise
            self._networks[spec.name], self._views[spec.name] = network, view
        _log.info("network made", extra={"network": spec.name, "subnet": view.spec.subnet})
        return view

    async def remove_network(self, name: str) -> None:
        async with self._changing:
            if name == self._settings.name:
                raise WrongStateError("is the default one", subject=f"network {name}")
            network = self._networks.get(name)
            if network is None:
                raise no_such(name)
            owners = await network.list_leased()
            if owners:
                shown = ", ".join(sorted(map(self._called, owners)))
                raise WrongStateError(f"is in use by {shown}", subject=f"network {name}")
            del self._networks[name]
            view = self._views.pop(name)
            try:
                await self._discard(name, network)
            except BaseException:
                self._networks[name], self._views[name] = network, view
                raise

    async def clear(self) -> None:
        for name in list(self._views):
            await self.remove_network(name)
        async with self._changing:
            await self._default.clear()
            self._servers.close(self._settings.name)
            await self._floating.stand()

    def close(self) -> None:
        self._servers.close_all()
        for network in self._networks.values():
            network.close()
        self._meter.close()
        self._policies.close()
        self._floating.close()

    async def _serve_policed(self, network: BridgeNetwork) -> None:
        """They ask here, whatever their network."""
        await network.ready()
        await self._servers.serve(network, needed=True)

    def _all_named(self) -> Iterable[Named]:
        """Of whoever says so now: servers are there before that is known."""
        return self._named()

    def _all_settings(self) -> list[BridgeSettings]:
        return [network.settings for network in self._networks.values()]

    async def _discard(self, name: str, network: BridgeNetwork) -> None:
        """The record last: killed halfway, the network is there again, whole."""
        await network.remove()
        self._servers.close(name)
        await self._definitions.delete(name)
        network.close()

    async def _abandon(self, name: str, network: BridgeNetwork) -> None:
        """One that could not be made: nobody is told of it, so its record goes whatever keeps the rest."""
        self._servers.close(name)
        try:
            await self._definitions.delete(name)
            await network.remove()
        except HyperError as error:
            _log.error("something is left of a network", extra={"network": name, "error": str(error)})
        finally:
            network.close()

    async def _load(self) -> None:
        async with self._loading:  # else there might be two of one bridge
            if self._is_loaded:
                return
            for view in await self._definitions.list_all():
                self._views[view.spec.name] = view
                self._networks[view.spec.name] = self._network(settings_of(view, self._settings))
            self._is_loaded = True

    async def _address_of(self, sandbox_id: SandboxId) -> IPv4Address | None:
        """On the network that it leaves by, as ``way_out`` has it; None where it leaves by none."""
        found = []
        for network in await self._of(sandbox_id):
            lease = await network.find_lease(sandbox_id)
            if lease is not None and not network.settings.internal:
                found.append((-lease.gateway_priority, network.settings.name, lease.address))
        return min(found)[2] if found else None

    def _require(self, name: str) -> BridgeNetwork:
        network = self._networks.get(name or DEFAULT_NETWORK)
        if network is None:
            raise no_such(name)
        return network

    async def _of(self, sandbox_id: SandboxId) -> list[BridgeNetwork]:
        """Whose lease it has; the default one when it has none, which finds what is left of it all the same."""
        leased = await self._default.networks_of(sandbox_id)
        found = [network for name, network in self._networks.items() if name in leased]
        return found or [self._default]

    def _network(self, settings: BridgeSettings) -> BridgeNetwork:
        return BridgeNetwork(settings, self._database, self._at_port, self._policies, self._called)

    def _called(self, sandbox_id: SandboxId) -> str:
        name = self._container(sandbox_id)
        return f"container {name}" if name else in_short(sandbox_id)
