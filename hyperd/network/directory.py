# SPDX-License-Identifier: Apache-2.0
"""What the name servers answer from: one zone a network, and for who is on several all of them together."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address

from hyperd.model.network import Named
from hyperd.model.vm import SandboxId
from hyperd.network.settings import BridgeSettings
from hyperd.network.zone import Zone, zone_of

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
        zone = self._zones.get(network) or zone_of(network, settings.subnet, settings.gateway, ())
        who = self._who.get((network, asker))
        on = self._on[who] if who else [network]
        others = tuple(self._zones[name] for name in on if name != network and name in self._zones)
        linked = self._links_of(who, {network, *(other.name for other in others)}) if who else {}
        return replace(zone, others=others, links=linked, is_outward=not self._outward.isdisjoint(on))

    def _links_of(self, who: SandboxId, networks: set[str]) -> dict[str, tuple[IPv4Address, ...]]:
        found: dict[str, tuple[IPv4Address, ...]] = {}
        for alias, target in self._links.get(who, ()):
            known = [
                IPv4Address(entry.address) for entry in self._at.get(target, ()) if entry.network in networks
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
        self._zones = {
            each.name: zone_of(each.name, each.subnet, each.gateway, named)
            for each in settings
            if each.has_names
        }
        self._outward = {each.name for each in settings if not each.internal}
        self._who = {(entry.network, entry.address): entry.sandbox_id for entry in named}
        self._links = {entry.sandbox_id: entry.links for entry in named}
        self._on, self._at = defaultdict(list), defaultdict(list)
        for entry in named:
            self._on[entry.sandbox_id].append(entry.network)
            self._at[entry.sandbox_id].append(entry)
