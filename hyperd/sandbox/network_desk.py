# SPDX-License-Identifier: Apache-2.0
"""Networks as users ask for them: what containers are on one, and whether it may go."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from hyperd.errors import HyperError, InvalidError, WrongStateError
from hyperd.model.container import ContainerSpec, ContainerView
from hyperd.model.network import DEFAULT_NETWORK, NetworkSpec, NetworkView
from hyperd.network.base import Network


def settled(network: Network, spec: ContainerSpec) -> ContainerSpec:
    """With its network's name, however that was called: each start looks for it by its name.

    Raises NotFoundError, InvalidError for ports that nobody could reach.
    """
    if spec.network in ("", "none"):
        return spec
    found = network.get_network(spec.network).spec
    if found.internal and (spec.ports or spec.publish_all):
        raise InvalidError(
            "is internal: nothing outside reaches its ports",
            subject=f"network {found.name}",
            hint="leave -p and -P out, or use another network",
        )
    return replace(spec, network=found.name)


class NetworkDesk:
    """``containers``: all that there are, running or not."""

    def __init__(self, network: Network, containers: Callable[[], Sequence[ContainerView]]) -> None:
        self._network = network
        self._containers = containers

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
            found.setdefault(view.record.spec.network or DEFAULT_NETWORK, []).append(view)
        return found

    async def remove(self, reference: str) -> str:
        """Its name. Raises WrongStateError with the names of those that are on it."""
        name = self.get(reference).spec.name
        users = sorted(view.record.name for view in self.on(name))
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
            if view.created_at is not None and not self.on(name):
                try:
                    await self._network.remove_network(name)
                except HyperError:  # somebody came
                    continue
                gone.append(name)
        return gone
