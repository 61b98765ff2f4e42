# SPDX-License-Identifier: Apache-2.0
"""A network of addresses without wires; satisfies hyperd.network.base.Network."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    HyperError,
    InvalidError,
    NotFoundError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.model.network import (
    DEFAULT_ENDPOINT,
    DEFAULT_NETWORK,
    Attachment,
    Endpoint,
    NetworkSpec,
    NetworkView,
    PortRequest,
    PublishedPort,
)
from hyperd.model.stats import WireUsage
from hyperd.model.vm import SandboxId
from tests.fakes.floating import FakeFloating
from tests.fakes.policies import FakePolicies


@dataclass(slots=True)
class FakeLease:
    address: str
    mac: str
    slot: int

    def tap(self, sandbox_id: SandboxId) -> str:
        return fake_tap(sandbox_id, self.slot)


class FakeNetwork:
    """``leases`` outlive ``taps``, as the real ones do."""

    def __init__(self, subnet: str = "10.99.0.0/24") -> None:
        self.subnet = IPv4Network(subnet)
        self.leases: dict[SandboxId, dict[str, FakeLease]] = {}  # by network
        self.taps: dict[SandboxId, set[str]] = {}  # parked ones, too
        self.prepared = 0
        self.trouble: HyperError | None = None
        self.fail_next_prepare: HyperError | None = None
        self.fail_next_attach: HyperError | None = None
        self.fail_next_release: HyperError | None = None
        self.fail_next_disconnect: HyperError | None = None
        self.detached: list[SandboxId] = []
        self.fail_next_lead: HyperError | None = None
        self.fail_next_usage: HyperError | None = None
        self.gate = asyncio.Event()  # attach waits for it
        self.gate.set()
        self.remove_gate = asyncio.Event()  # remove_network waits for it
        self.remove_gate.set()
        self.fail_next_remove: HyperError | None = None
        self.release_gate = asyncio.Event()  # closed with clear(): a release waits, its floating address gone
        self.release_gate.set()
        self.attaching: set[SandboxId] = set()
        self._last = 1
        self.networks = [NetworkView(NetworkSpec("bridge", subnet), "0" * 64, "hyper0", None)]
        self.ports: dict[PublishedPort, tuple[SandboxId, str, str]] = {}  # whose, for whom, on which network
        self.policies = FakePolicies()
        self.floating = FakeFloating()
        self.enforced: list[SandboxId] = []

    async def prepare(self) -> None:
        self.trouble, self.fail_next_prepare = self.fail_next_prepare, None
        if self.trouble is not None:
            raise self.trouble
        self.prepared += 1

    async def attach(
        self,
        sandbox_id: SandboxId,
        ports: Sequence[PortRequest] = (),
        holder: str = "",
        endpoint: Endpoint = DEFAULT_ENDPOINT,
        slot: int = 0,
    ) -> Attachment:
        view = self.get_network(endpoint.network)
        self.attaching.add(sandbox_id)
        try:
            await self.gate.wait()
        finally:
            self.attaching.discard(sandbox_id)
        error, self.fail_next_attach = self.fail_next_attach, None
        if error is not None:
            raise error
        lease = self._lease(sandbox_id, endpoint, slot)
        if ports and not self.published(sandbox_id):
            self._publish(sandbox_id, ports, holder, endpoint.network)
        self.leases.setdefault(sandbox_id, {})[endpoint.network] = lease
        self.taps.setdefault(sandbox_id, set()).add(lease.tap(sandbox_id))
        return Attachment(
            sandbox_id=sandbox_id,
            network=endpoint.network,
            tap=lease.tap(sandbox_id),
            mac=lease.mac,
            address=lease.address,
            prefix_length=self.subnet.prefixlen,
            gateway=str(self.subnet[1]),
            mtu=1500,
            dns_servers=("192.0.2.53",),
            dns_searches=(),
            dns_options=(),
            slot=slot,
            internal=view.spec.internal,
            gateway_priority=endpoint.gateway_priority,
            address6=_address6(view, lease.address, endpoint),
            prefix_length6=64 if view.spec.ipv6 else 0,
            gateway6="fd00::1" if view.spec.ipv6 else "",
            is_routed=self.policies.covers(sandbox_id),
        )

    def _lease(self, sandbox_id: SandboxId, endpoint: Endpoint, slot: int) -> FakeLease:
        others = [
            lease
            for owner, leases in self.leases.items()
            for network, lease in leases.items()
            if owner != sandbox_id and network == endpoint.network
        ]
        mine = self.leases.get(sandbox_id, {}).get(endpoint.network)
        address = endpoint.address or (mine.address if mine else "")
        if endpoint.address and endpoint.address in [lease.address for lease in others]:
            raise ExistsError("is in use", subject=f"address {address}")
        if endpoint.address and IPv4Address(address) not in list(self.subnet.hosts())[1:]:
            raise InvalidError("is none that a sandbox can have", subject=f"address {address}")
        address = address or self._next_address()
        mac = endpoint.mac_address or "0a:48:" + ":".join(f"{int(part):02x}" for part in address.split("."))
        if mac in [lease.mac for lease in others]:
            raise ExistsError("is in use", subject=f"MAC address {mac}")
        return FakeLease(address, mac, slot)

    async def detach(self, sandbox_id: SandboxId) -> None:
        self.detached.append(sandbox_id)
        self.taps.pop(sandbox_id, None)
        self._withdraw(sandbox_id)

    async def disconnect(self, sandbox_id: SandboxId, network: str) -> None:
        self.get_network(network)
        error, self.fail_next_disconnect = self.fail_next_disconnect, None
        if error is not None:
            raise error
        self.leases.get(sandbox_id, {}).pop(network, None)
        if not self.leases.get(sandbox_id):
            self.leases.pop(sandbox_id, None)
        self._withdraw(sandbox_id, network)

    async def list_parked(self, sandbox_id: SandboxId) -> dict[int, str]:
        leased = {lease.tap(sandbox_id) for lease in self.leases.get(sandbox_id, {}).values()}
        left = self.taps.get(sandbox_id, set()) - leased
        return {slot: tap for slot in range(16) if (tap := fake_tap(sandbox_id, slot)) in left}

    async def remove_parked(self, sandbox_id: SandboxId, tap: str) -> None:
        if tap in (await self.list_parked(sandbox_id)).values():
            self.taps[sandbox_id].discard(tap)
            if not self.taps[sandbox_id]:
                del self.taps[sandbox_id]

    async def keep_only(self, wanted: Mapping[SandboxId, Collection[str]]) -> set[SandboxId]:
        surplus = [
            (sandbox_id, network)
            for sandbox_id, leases in self.leases.items()
            for network in leases
            if sandbox_id in wanted and network not in wanted[sandbox_id]
        ]
        for sandbox_id, network in surplus:
            await self.disconnect(sandbox_id, network)
        return {sandbox_id for sandbox_id, _ in surplus}

    async def enforce(self, sandbox_id: SandboxId) -> None:
        self.enforced.append(sandbox_id)

    async def publish(
        self, sandbox_id: SandboxId, ports: Sequence[PortRequest], holder: str, network: str = DEFAULT_NETWORK
    ) -> tuple[PublishedPort, ...]:
        if sandbox_id not in self.taps:
            raise WrongStateError("is not on the network", subject=f"container {holder}")
        return self._publish(sandbox_id, ports, holder, network)

    async def lead_ports(
        self, sandbox_id: SandboxId, network: str, holder: str, otherwise: Sequence[PortRequest] = ()
    ) -> None:
        error, self.fail_next_lead = self.fail_next_lead, None
        if error is not None:
            self._withdraw(sandbox_id)
            raise error
        if not self.published(sandbox_id):
            self._publish(sandbox_id, otherwise, holder, network)
        for port, owner in list(self.ports.items()):
            if owner[0] == sandbox_id:
                self.ports[port] = (sandbox_id, holder, network)
        if self.get_network(network).spec.internal:
            self._withdraw(sandbox_id)

    def _withdraw(self, sandbox_id: SandboxId, network: str = "") -> None:
        gone = [
            port
            for port, (owner, _, there) in self.ports.items()
            if owner == sandbox_id and network in ("", there)
        ]
        for port in gone:
            del self.ports[port]

    async def unpublish(self, sandbox_id: SandboxId, ports: Collection[PublishedPort]) -> None:
        for port in ports:
            if port not in self.published(sandbox_id):
                raise NotFoundError("is not published", subject=f"port {port}")
        for port in ports:
            self.ports.pop(port, None)

    async def usage(self, sandbox_ids: Collection[SandboxId]) -> dict[SandboxId, WireUsage]:
        error, self.fail_next_usage = self.fail_next_usage, None
        if error is not None:
            raise error
        return {each: WireUsage() for each in sandbox_ids if each in self.taps}

    def published(self, sandbox_id: SandboxId) -> tuple[PublishedPort, ...]:
        mine = [port for port, (owner, *_) in self.ports.items() if owner == sandbox_id]
        return tuple(sorted(mine, key=lambda p: (p.container_port, p.protocol, p.host_ip, p.host_port)))

    def _publish(
        self, sandbox_id: SandboxId, requests: Sequence[PortRequest], holder: str, network: str
    ) -> tuple[PublishedPort, ...]:
        made: dict[PublishedPort, tuple[SandboxId, str, str]] = {}
        for request in requests:
            refusal: ExistsError | None = None
            first = request.host_port or 49152
            last = max(request.host_port, request.host_port_end) or 65535
            host_ips = self._places(request, network)
            for number in range(first, last + 1):
                ports = [
                    PublishedPort(request.container_port, request.protocol, host_ip, number)
                    for host_ip in host_ips
                ]
                taken = self.ports | made
                clashes = (
                    (who, port) for port in ports for o, (_, who, _) in taken.items() if _overlap(o, port)
                )
                owner, port = next(clashes, (None, ports[0]))
                if owner is None:
                    made |= dict.fromkeys(ports, (sandbox_id, holder, network))
                    break
                refusal = ExistsError(f"is in use by container {owner}", subject=f"port {port}")
            else:
                assert refusal is not None
                raise refusal
        self.ports |= made
        return tuple(made)

    def _places(self, request: PortRequest, network: str) -> tuple[str, ...]:
        has_ipv6 = self.get_network(network).spec.ipv6
        if not request.host_ip:
            return ("0.0.0.0", "::") if has_ipv6 else ("0.0.0.0",)
        if ":" in request.host_ip and not has_ipv6:
            raise UnsupportedError("has no IPv6 on its network", subject=f"host address {request.host_ip}")
        return (request.host_ip,)

    async def release(self, sandbox_id: SandboxId) -> None:
        error, self.fail_next_release = self.fail_next_release, None
        if error is not None:
            raise error
        await self.floating.detach(sandbox_id)
        await self.release_gate.wait()
        await self.detach(sandbox_id)
        self.leases.pop(sandbox_id, None)
        self.policies.limits.pop(sandbox_id, None)

    async def list_attached(self) -> set[SandboxId]:
        lent = {known.sandbox_id for known in self.floating.known.values() if known.sandbox_id}
        return set(self.taps) | set(self.leases) | set(self.policies.limits) | lent

    def list_networks(self) -> list[NetworkView]:
        return list(self.networks)

    def get_network(self, reference: str) -> NetworkView:
        for view in self.networks:
            if reference in (view.spec.name, view.network_id):
                return view
        raise NotFoundError("no such network", subject=f"network {reference}")

    async def clear(self) -> None:
        if self.leases:
            raise WrongStateError("is in use", subject="network bridge")
        del self.networks[1:]
        self.prepared = 0

    async def create_network(self, spec: NetworkSpec) -> NetworkView:
        if any(view.spec.name == spec.name for view in self.networks):
            raise ExistsError("there is one of this name", subject=f"network {spec.name}")
        number = len(self.networks)
        view = NetworkView(
            replace(spec, subnet=spec.subnet or f"10.214.{number}.0/24"),
            f"{number:064x}",
            f"hyb{number}",
            datetime.now(UTC),
        )
        self.networks.append(view)
        return view

    async def remove_network(self, name: str, require_unused: Callable[[], None] = lambda: None) -> None:
        view = self.get_network(name)
        await self.remove_gate.wait()
        error, self.fail_next_remove = self.fail_next_remove, None
        if error is not None:
            raise error
        if view.created_at is None or any(name in leases for leases in self.leases.values()):
            raise WrongStateError("is in use", subject=f"network {name}")
        require_unused()
        self.networks.remove(view)

    def close(self) -> None:
        """Nothing to end."""

    def _next_address(self) -> str:
        taken = {lease.address for leases in self.leases.values() for lease in leases.values()}
        size = self.subnet.num_addresses
        for step in range(1, size + 1):
            number = (self._last + step) % size
            address = str(self.subnet[number])
            if number not in (0, 1, size - 1) and address not in taken:
                self._last = number
                return address
        raise ExhaustedError("all addresses are leased", subject=str(self.subnet))


def _address6(view: NetworkView, address: str, endpoint: Endpoint) -> str:
    if not view.spec.ipv6:
        return ""
    return endpoint.address6 or f"fd00::{int(address.rpartition('.')[2]):x}"


def fake_tap(sandbox_id: SandboxId, slot: int) -> str:
    return f"hyt{sandbox_id}"[: 15 if not slot else 14] + ("" if not slot else chr(ord("f") + slot))


def _overlap(one: PublishedPort, other: PublishedPort) -> bool:
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    if (":" in one.host_ip) != (":" in other.host_ip):
        return False
    return one.host_ip == other.host_ip or {"0.0.0.0", "::"} & {one.host_ip, other.host_ip} != set()
