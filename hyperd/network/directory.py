# SPDX-License-Identifier: Apache-2.0
"""What the name servers answer from: one zone a network, and for who is on several all of them together."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from hyperd.model.network import Named
from hyperd.model.vm import SandboxId
from hyperd.network.settings import BridgeSettings
from hyperd.network.zone import Address, Zone, addresses_of, zone_of

_LOOK_S = 0.2


class Directory:
    """Made anew when it is older than ``_LOOK_S``: a flood of questions is not one of looks."""

    def __init__(
        self, networks: Callable[[], Iterable[BridgeSettings]], named: Callable[[], Iterable[Named]]
    ) -> None:
        self._networks = networks
        self._named = named
        self._zones: dict[str, Zone] = {}
        self._outward: set[str] = set()
        self._who: dict[tuple[str, str], SandboxId] = {}  # by network and address
        self._on: defaultdict[SandboxId, list[str]] = defaultdict(list)
        self._at: defaultdict[SandboxId, list[Named]] = defaultdict(list)
        self._links: dict[SandboxId, tuple[tuple[str, SandboxId], ...]] = {}
        self._since: float | None = None

    def zone(self, settings: BridgeSettings, asker: str) -> Zone:
        """Of a network that has names, for who asks from that address of it."""
        self._look()
        network = settings.name
        zone = self._zones.get(network) or _zone_of(settings, ())
        who = self._who.get((network, asker))
        on = self._on[who] if who else [network]
        others = tuple(self._zones[name] for name in on if name != network and name in self._zones)
        linked = self._links_of(who, {network, *(other.name for other in others)}) if who else {}
        return replace(zone, others=others, links=linked, is_outward=not self._outward.isdisjoint(on))

    def _links_of(self, who: SandboxId, networks: set[str]) -> dict[str, tuple[Address, ...]]:
        found: dict[str, tuple[Address, ...]] = {}
        for alias, target in self._links.get(who, ()):
            known = [
                address
                for entry in self._at.get(target, ())
                if entry.network in networks
                for address in addresses_of(entry)
            ]
            if known:
                found[alias.lower()] = tuple(known)
        return found

    def _look(self) -> None:
        now = time.monotonic()
        if self._since is not None and now - self._since <= _LOOK_S:
            return
        self._since = now
        settings, named = list(self._networks()), list(self._named())
        self._zones = {each.name: _zone_of(each, named) for each in settings if each.has_names}
        self._outward = {each.name for each in settings if not each.internal}
        self._who = {
            (entry.network, address): entry.sandbox_id
            for entry in named
            for address in (entry.address, entry.address6)
        }
        self._links = {entry.sandbox_id: entry.links for entry in named}
        self._on, self._at = defaultdict(list), defaultdict(list)
        for entry in named:
            self._on[entry.sandbox_id].append(entry.network)
            self._at[entry.sandbox_id].append(entry)


def _zone_of(settings: BridgeSettings, named: Iterable[Named]) -> Zone:
    return zone_of(
        settings.name, settings.subnet, settings.gateway, named, settings.subnet6, settings.gateway6
    )
