# SPDX-License-Identifier: Apache-2.0
"""``Wires``: the rules of sandboxes with policies as they are in the kernel, changed in one transaction at a time."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from pyroute2 import AsyncIPRoute

from hyperd.model.policy import EgressPolicy
from hyperd.model.vm import SandboxId
from hyperd.network.netlink import network_errors
from hyperd.network.policy import sets
from hyperd.network.policy.group_rules import members_set, referred, render_members
from hyperd.network.policy.load import load_rules
from hyperd.network.policy.rules import (
    Judged,
    Learned,
    render_base,
    render_gone,
    render_none,
    render_stale,
    render_wire,
    table_of,
)
from hyperd.network.policy.wire import unroute


@dataclass(frozen=True, slots=True)
class Place:
    """A network as policies see it. ``base``: its own table."""

    base: str
    internal: bool


@dataclass(frozen=True, slots=True)
class Armed:
    """``earlier``: policies of which something may be left; ``learned`` None: what the kernel knows stays."""

    owner: SandboxId
    place: Place
    judged: Judged
    earlier: tuple[EgressPolicy, ...] = ()
    learned: Learned | None = None

    @property
    def key(self) -> tuple[str, IPv4Address]:
        return self.place.base, self.judged.wire.address


class Wires:
    def __init__(self) -> None:
        self._armed: dict[tuple[str, IPv4Address], Armed] = {}
        self._spoken_of: dict[str, set[str]] = {}  # by table: groups that have a set of members there
        self._changing = asyncio.Lock()

    def at(self, base: str, address: str) -> Armed | None:
        return self._armed.get((base, IPv4Address(address)))

    def of(self, owner: SandboxId) -> list[Armed]:
        return [armed for armed in self._armed.values() if armed.owner == owner]

    def are_on(self, base: str) -> bool:
        return any(known == base for known, _ in self._armed)

    async def stand(self, found: list[Armed]) -> None:
        """Of one network, all at once. Idempotent."""
        async with self._changing:
            self._armed.update((armed.key, armed) for armed in found)
            await self._load(found[0].place, found)

    async def arm(self, armed: Armed) -> None:
        async with self._changing:
            self._armed[armed.key] = armed
            await self._load(armed.place, [armed])

    async def disarm(self, armed: Armed) -> None:
        """Idempotent."""
        base, wire = armed.place.base, armed.judged.wire
        async with self._changing:
            with network_errors(wire.name):
                async with AsyncIPRoute() as netlink:
                    await unroute(netlink, wire)
            self._armed.pop(armed.key, None)
            if not self.are_on(base):
                self._spoken_of.pop(base, None)
                await load_rules(render_none(base), base)
                return
            members = render_members(f"inet {table_of(base)}", self._members(base, [armed]))
            head = render_base(base, wire, internal=armed.place.internal)
            await load_rules(head + members + render_gone(base, armed.judged, armed.earlier), base)

    async def withdraw(self, base: str) -> None:
        """The network is gone. Idempotent."""
        with network_errors(base):
            is_there = sets.has_table(base)
        if is_there:
            await load_rules(render_none(base), base)

    async def forget_group(self, name: str) -> None:
        """Nobody has it, and no rule speaks of it."""
        async with self._changing:
            for base, groups in self._spoken_of.items():
                if name in groups:
                    table, members = f"inet {table_of(base)}", members_set(name)
                    await load_rules(
                        render_members(table, {name: ()}) + f"delete set {table} {members}\n", base
                    )
                    groups.discard(name)

    async def _load(self, place: Place, changed: list[Armed]) -> None:
        text = render_base(place.base, changed[0].judged.wire, internal=place.internal)
        text += render_members(f"inet {table_of(place.base)}", self._members(place.base, changed))
        for armed in changed:
            text += render_wire(place.base, armed.judged, armed.learned)
            text += render_stale(place.base, armed.judged, armed.earlier)
        await load_rules(text, place.base)

    def _members(self, base: str, changed: Iterable[Armed]) -> dict[str, list[IPv4Address]]:
        """Of each group that somebody's rules here speak of, or did."""
        here = [armed for (known, _), armed in self._armed.items() if known == base]
        spoken_of = self._spoken_of.setdefault(base, set())
        for armed in (*here, *changed):
            spoken_of |= referred(armed.judged.groups, armed.judged.egress)
        return {name: list(_having(name, here)) for name in spoken_of}


def _having(group: str, wires: Iterable[Armed]) -> Iterator[IPv4Address]:
    for armed in wires:
        if any(known.name == group for known in armed.judged.groups):
            yield armed.judged.wire.address
