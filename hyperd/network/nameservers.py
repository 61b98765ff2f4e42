# SPDX-License-Identifier: Apache-2.0
"""The name servers of all networks: one on the gateway of each that has names, or guests with policies."""

import functools
from collections.abc import Callable, Iterable, Sequence

from hyperd.network.bridge_network import BridgeNetwork
from hyperd.network.directory import Directory
from hyperd.network.forwarder import Forwarder
from hyperd.network.nameserver import NameServer
from hyperd.network.policy import Policies, Screen
from hyperd.network.settings import BridgeSettings


class NameServers:
    def __init__(self, policies: Policies, directory: Directory, forwarder: Forwarder) -> None:
        self._policies = policies
        self._directory = directory
        self._forwarder = forwarder
        self._servers: dict[str, NameServer] = {}  # by network

    async def serve(self, network: BridgeNetwork, *, needed: bool = False) -> None:
        """Idempotent. Raises UnavailableError when something else has the port.

        ``needed``: also where nobody has a name, and only those with a policy ask.
        """
        settings, name = network.settings, network.settings.name
        if not (settings.has_names or needed or name in self._servers):
            needed = any(map(self._policies.covers, await network.list_leased()))
            if not needed:
                return
        if name not in self._servers:
            zone = functools.partial(self._directory.zone, settings)
            screen = Screen(self._policies, settings.table)
            self._servers[name] = NameServer(settings.gateway, zone, self._forwarder, screen)
        await self._servers[name].open()

    def close(self, name: str) -> None:
        """Idempotent."""
        server = self._servers.pop(name, None)
        if server is not None:
            server.close()

    def close_all(self) -> None:
        for name in list(self._servers):
            self.close(name)


def without_ours(
    upstream: Callable[[], Sequence[str]], networks: Callable[[], Iterable[BridgeSettings]]
) -> Callable[[], Sequence[str]]:
    """A host that asks one of our own servers is not asked by that."""

    def servers() -> Sequence[str]:
        ours = {str(gateway) for each in networks() for gateway in (each.gateway, each.gateway6)}
        return [server for server in upstream() if server not in ours]

    return servers
