# SPDX-License-Identifier: Apache-2.0
"""Networks as users ask for them: what containers are on one, and whether it may go."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from hyperd.errors import HyperError, InvalidError, UnsupportedError, WrongStateError
from hyperd.model.container import ContainerRecord, ContainerSpec, ContainerView
from hyperd.model.network import DEFAULT_NETWORK, Endpoint, NetworkSpec, NetworkView
from hyperd.network.base import Network
from hyperd.sandbox import endpoints
from hyperd.sandbox.handle import SandboxHandle


def settled(network: Network, spec: ContainerSpec) -> ContainerSpec:
    """With its networks' names, however those were called: each start looks for them by name.

    Raises NotFoundError, InvalidError for one that is given twice and for ports that nobody could reach,
    UnsupportedError for an IPv6 address to reach one at where there is none.
    """
    if endpoints.carrier_of(spec) is not None:
        return spec
    found = [
        (endpoint, network.get_network(endpoint.network).spec) for endpoint in endpoints.endpoints_of(spec)
    ]
    if found and all(each.internal for _, each in found) and (spec.ports or spec.publish_all):
        raise InvalidError(
            "is internal: nothing outside reaches its ports",
            subject=f"network {found[0][1].name}",
            hint="leave -p and -P out, or use another network",
        )
    at_ipv6 = [port.host_ip for port in spec.ports if ":" in port.host_ip]
    if found and at_ipv6 and not any(each.ipv6 for _, each in found):
        raise UnsupportedError(
            "has no IPv6, so nothing on it is published at an IPv6 address",
            subject=f"network {found[0][1].name}",
            evidence=f"asked for at {at_ipv6[0]}",
            hint="make a network with `hyper network create --ipv6`, or publish at an IPv4 address",
        )
    settled = [replace(endpoint, network=each.name) for endpoint, each in found]
    endpoints.require_distinct(settled)
    for endpoint in settled:
        endpoints.require_valid_endpoint(endpoint)
    return endpoints.with_endpoints(spec, settled)


class NetworkDesk:
    """``containers``: all that there are, running or not; ``records``: those that are being created, too."""

    def __init__(
        self,
        network: Network,
        containers: Callable[[], Sequence[ContainerView]],
        records: Callable[[], Sequence[ContainerRecord]],
    ) -> None:
        self._network = network
        self._containers = containers
        self._records = records

    async def create(self, spec: NetworkSpec) -> NetworkView:
        return await self._network.create_network(spec)

    def list_networks(self) -> list[NetworkView]:
        return self._network.list_networks()

    def get(self, reference: str) -> NetworkView:
        return self._network.get_network(reference)

    def on(self, name: str) -> list[ContainerView]:
        """Stopped ones, too: they come back to it when they are started."""
        return self.members().get(name, [])

    def members(self) -> dict[str, list[ContainerView]]:
        """Of all networks that have any, by name."""
        found: dict[str, list[ContainerView]] = {}
        for view in self._containers():
            for endpoint in endpoints.endpoints_of(view.record.spec):
                found.setdefault(endpoint.network, []).append(view)
        return found

    async def connect(self, container: SandboxHandle, endpoint: Endpoint) -> list[str]:
        """What is to be told. Raises NotFoundError, WrongStateError, InvalidError, ExistsError, ExhaustedError."""
        endpoint = replace(endpoint, network=self.get(endpoint.network).spec.name)
        endpoints.require_valid_endpoint(endpoint)
        return await container.connect(endpoint)

    async def disconnect(self, container: SandboxHandle, reference: str, *, force: bool) -> list[str]:
        """What is to be told. Raises NotFoundError."""
        return await container.disconnect(self.get(reference).spec.name, force=force)

    async def remove(self, reference: str) -> str:
        """Its name. Raises WrongStateError with the names of those that are on it."""
        name = self.get(reference).spec.name
        users = self._users(name)
        if users and name != DEFAULT_NETWORK:
            raise WrongStateError(
                f"is in use by {', '.join(users)}",
                subject=f"network {name}",
                hint="remove them first",
            )
        await self._network.remove_network(name)
        return name

    async def prune(self) -> list[str]:
        """Those that nobody is on."""
        gone = []
        for view in self.list_networks():
            name = view.spec.name
            if view.created_at is not None and not self._users(name):
                try:
                    await self._network.remove_network(name)
                except HyperError:  # somebody came
                    continue
                gone.append(name)
        return gone

    def _users(self, name: str) -> list[str]:
        return sorted(
            record.name
            for record in self._records()
            if any(endpoint.network == name for endpoint in endpoints.endpoints_of(record.spec))
        )
