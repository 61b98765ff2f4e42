# SPDX-License-Identifier: Apache-2.0
"""A network of addresses without wires; satisfies hyperd.network.base.Network."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    HyperError,
    InvalidError,
    NotFoundError,
    WrongStateError,
)
from hyperd.model.network import Attachment, NetworkSpec, NetworkView, PortRequest, PublishedPort
from hyperd.model.vm import SandboxId
from tests.fakes.policies import FakePolicies


class FakeNetwork:
    """``leases`` outlive ``taps``, as the real ones do."""

    def __init__(self, subnet: str = "10.99.0.0/24") -> None:
        self.subnet = IPv4Network(subnet)
        self.leases: dict[SandboxId, str] = {}
        self.taps: set[SandboxId] = set()
        self.prepared = 0
        self.trouble: HyperError | None = None
        self.fail_next_prepare: HyperError | None = None
        self.fail_next_attach: HyperError | None = None
        self.fail_next_release: HyperError | None = None
        self.gate = asyncio.Event()  # attach waits for it
        self.gate.set()
        self.attaching: set[SandboxId] = set()
        self._last = 1
        self.network_of: dict[SandboxId, str] = {}
        self.networks = [NetworkView(NetworkSpec("bridge", subnet), "0" * 64, "hyper0", None)]
        self.ports: dict[PublishedPort, tuple[SandboxId, str]] = {}
        self.policies = FakePolicies()
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
        network: str = "bridge",
        address: str = "",
    ) -> Attachment:
        self.get_network(network)
        self.attaching.add(sandbox_id)
        try:
            await self.gate.wait()
        finally:
            self.attaching.discard(sandbox_id)
        error, self.fail_next_attach = self.fail_next_attach, None
        if error is not None:
            raise error
        if address and address in self.leases.values() and self.leases.get(sandbox_id) != address:
            raise ExistsError("is in use", subject=f"address {address}")
        if address and IPv4Address(address) not in list(self.subnet.hosts())[1:]:
            raise InvalidError("is none that a sandbox can have", subject=f"address {address}")
        address = address or self.leases.get(sandbox_id) or self._next_address()
        if ports and not self.published(sandbox_id):
            self._publish(sandbox_id, ports, holder)
        self.leases[sandbox_id] = address
        self.network_of[sandbox_id] = network
        self.taps.add(sandbox_id)
        return Attachment(
            sandbox_id=sandbox_id,
            network=network,
            tap=f"hyt{sandbox_id}"[:15],
            mac="0a:48:" + ":".join(f"{int(part):02x}" for part in address.split(".")),
            address=address,
            prefix_length=self.subnet.prefixlen,
            gateway=str(self.subnet[1]),
            mtu=1500,
            dns_servers=("192.0.2.53",),
            dns_searches=(),
            dns_options=(),
        )

    async def detach(self, sandbox_id: SandboxId) -> None:
        self.taps.discard(sandbox_id)
        self.ports = {port: owner for port, owner in self.ports.items() if owner[0] != sandbox_id}

    async def enforce(self, sandbox_id: SandboxId) -> None:
        self.enforced.append(sandbox_id)

    async def publish(
        self, sandbox_id: SandboxId, ports: Sequence[PortRequest], holder: str
    ) -> tuple[PublishedPort, ...]:
        if sandbox_id not in self.taps:
            raise WrongStateError("is not on the network", subject=f"container {holder}")
        return self._publish(sandbox_id, ports, holder)

    async def unpublish(self, sandbox_id: SandboxId, ports: Collection[PublishedPort]) -> None:
        for port in ports:
            if port not in self.published(sandbox_id):
                raise NotFoundError("is not published", subject=f"port {port}")
        for port in ports:
            self.ports.pop(port, None)

    def published(self, sandbox_id: SandboxId) -> tuple[PublishedPort, ...]:
        mine = [port for port, (owner, _) in self.ports.items() if owner == sandbox_id]
        return tuple(sorted(mine, key=lambda p: (p.container_port, p.protocol, p.host_ip, p.host_port)))

    def _publish(
        self, sandbox_id: SandboxId, requests: Sequence[PortRequest], holder: str
    ) -> tuple[PublishedPort, ...]:
        made: dict[PublishedPort, tuple[SandboxId, str]] = {}
        for request in requests:
            refusal: ExistsError | None = None
            first = request.host_port or 49152
            last = max(request.host_port, request.host_port_end) or 65535
            for number in range(first, last + 1):
                host_ip = request.host_ip or "0.0.0.0"
                port = PublishedPort(request.container_port, request.protocol, host_ip, number)
                owner = next(
                    (who for other, (_, who) in (self.ports | made).items() if _overlap(other, port)), None
                )
                if owner is None:
                    made[port] = (sandbox_id, holder)
                    break
                refusal = ExistsError(f"is in use by container {owner}", subject=f"port {port}")
            else:
                assert refusal is not None
                raise refusal
        self.ports |= made
        return tuple(made)

    async def release(self, sandbox_id: SandboxId) -> None:
        error, self.fail_next_release = self.fail_next_release, None
        if error is not None:
            raise error
        await self.detach(sandbox_id)
        self.leases.pop(sandbox_id, None)
        self.network_of.pop(sandbox_id, None)
        self.policies.limits.pop(sandbox_id, None)

    async def list_attached(self) -> set[SandboxId]:
        return self.taps | set(self.leases) | set(self.policies.limits)

    def list_networks(self) -> list[NetworkView]:
        return list(self.networks)

    def get_network(self, reference: str) -> NetworkView:
        for view in self.networks:
            if reference in (view.spec.name, view.network_id):
                return view
        raise NotFoundError("no such network", subject=f"network {reference}")

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

    async def remove_network(self, name: str) -> None:
        view = self.get_network(name)
        if view.created_at is None or name in self.network_of.values():
            raise WrongStateError("is in use", subject=f"network {name}")
        self.networks.remove(view)

    def close(self) -> None:
        """Nothing to end."""

    def _next_address(self) -> str:
        taken = set(self.leases.values())
        size = self.subnet.num_addresses
        for step in range(1, size):
            number = (self._last + step) % size
            address = str(self.subnet[number])
            if number not in (0, 1, size - 1) and address not in taken:
                self._last = number
                return address
        raise ExhaustedError("all addresses are leased", subject=str(self.subnet))


def _overlap(one: PublishedPort, other: PublishedPort) -> bool:
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    return one.host_ip == other.host_ip or "0.0.0.0" in (one.host_ip, other.host_ip)
