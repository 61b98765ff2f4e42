# SPDX-License-Identifier: Apache-2.0
"""``Wires``: the rules of sandboxes with policies as they are in the kernel, changed in one transaction at a time."""

import asyncio
import errno
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from pyroute2 import AsyncIPRoute

from hyperd.host.workers import Workers
from hyperd.model.policy import EgressPolicy, Service
from hyperd.model.vm import SandboxId
from hyperd.network import elements
from hyperd.network.assembler import UnspokenError, assemble
from hyperd.network.elements import INET_FAMILY, Element
from hyperd.network.netlink import network_errors
from hyperd.network.policy.group_rules import members_of, members_set, referred, render_members
from hyperd.network.policy.learning import Learning, Told
from hyperd.network.policy.load import load_rules
from hyperd.network.policy.rules import (
    Judged,
    Learned,
    elements_of,
    render_base,
    render_gone,
    render_none,
    render_stale,
    render_wire,
    table_of,
)
from hyperd.network.policy.wire import Wire, unroute

_log = logging.getLogger(__name__)


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
    def __init__(self, kernel: Workers) -> None:
        self._kernel = kernel
        self._assembling = Workers("policies-rules", 1)  # what takes a moment: not before what is learned
        self._members: dict[str, dict[str, set[IPv4Address]]] = {}  # by table: as they are put in
        self._armed: dict[tuple[str, IPv4Address], Armed] = {}
        self._spoken_of: dict[str, set[str]] = {}  # by table: groups that have a set of members there
        self._based: set[str] = set()  # whose tables have their hooks
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by table
        self._names: dict[str, Learning] = {}  # by table

    def close(self) -> None:
        """What is in force stays."""
        self._assembling.close()

    def at(self, base: str, address: str) -> Armed | None:
        return self._armed.get((base, IPv4Address(address)))

    def of(self, owner: SandboxId) -> list[Armed]:
        return [armed for armed in self._armed.values() if armed.owner == owner]

    def on(self, base: str) -> list[Wire]:
        return [armed.judged.wire for (known, _), armed in self._armed.items() if known == base]

    def rated(self) -> list[tuple[str, Wire]]:
        """With the networks' own tables."""
        wires = [(base, armed.judged.wire) for (base, _), armed in self._armed.items()]
        return [(base, wire) for base, wire in wires if wire.rate_in or wire.rate_out]

    def are_on(self, base: str) -> bool:
        return any(known == base for known, _ in self._armed)

    async def stand(self, found: list[Armed]) -> None:
        """Of one network, all at once. Idempotent."""
        base = found[0].place.base
        async with self._changing[base]:
            self._armed.update((armed.key, armed) for armed in found)
            self._based.discard(base)
            await self._load(found[0].place, found, also=self._forgotten(base))
            await self._put_in(base, found)

    async def arm(self, base: str, make: Callable[[], list[Armed]]) -> list[Armed]:
        """All or none of those that are made when their turn has come, and there may be none to arm any more."""
        async with self._changing[base]:
            found = make()
            if found:
                self._armed.update((armed.key, armed) for armed in found)
                await self._load(found[0].place, found)
                await self._put_in(base, found)
            return found

    def are_armed(self, place: Place, owner: SandboxId, wire: Wire) -> bool:
        known = self._armed.get((place.base, wire.address))
        return known is not None and known.owner == owner

    async def learn(self, owner: SandboxId, services: Callable[[], Iterable[Service]], told: Told) -> bool:
        """``services``: when its turn has come. It may ask on one and go out by another. Raises OSError."""
        bases = dict.fromkeys(armed.place.base for armed in self.of(owner))
        return all([await self._learning(base).learn(owner, services, told) for base in bases]) and bool(
            bases
        )

    async def disarm(self, armed: Armed) -> None:
        """Idempotent."""
        base, wire = armed.place.base, armed.judged.wire
        async with self._changing[base]:
            with network_errors(wire.name):
                async with AsyncIPRoute() as netlink:
                    await unroute(netlink, wire)
            self._armed.pop(armed.key, None)
            self._learning(base).forget(wire)
            if not self.are_on(base):
                self._spoken_of.pop(base, None)
                self._members.pop(base, None)
                self._based.discard(base)
                await load_rules(render_none(base), table_of(base))
                return
            await self._take_out(base, elements_of(wire))
            await self._regroup(base)
            await self._change(armed.place, wire, render_gone(base, armed.judged, armed.earlier))

    async def withdraw(self, base: str) -> None:
        """The network is gone. Idempotent."""
        self._based.discard(base)
        self._names.pop(base, None)
        await load_rules(render_none(base), table_of(base))
        self._changing.pop(base, None)  # nobody has a wire here who could wait for it

    async def forget_group(self, name: str) -> None:
        """Nobody has it, and no rule speaks of it."""
        for base in list(self._spoken_of):
            async with self._changing[base]:
                groups = self._spoken_of.get(base, set())
                if name in groups:
                    table = f"inet {table_of(base)}"
                    gone = render_members(table, [name]) + f"delete set {table} {members_set(name)}\n"
                    await load_rules(gone, table_of(base))
                    groups.discard(name)
                    self._members.get(base, {}).pop(name, None)

    async def _load(self, place: Place, changed: list[Armed], also: str = "") -> None:
        table, spoken_of = f"inet {table_of(place.base)}", self._spoken_of.setdefault(place.base, set())
        for armed in changed:
            spoken_of |= referred(armed.judged.groups, armed.judged.egress)
        text = render_members(table, spoken_of) + also
        for armed in changed:
            text += render_wire(place.base, armed.judged, forgets=armed.learned is not None)
            text += render_stale(place.base, armed.judged, armed.earlier)
            self._learning(place.base).begin(armed.judged.wire, is_empty=False)
        await self._change(place, changed[0].judged.wire, text)
        for armed in changed:
            self._learning(place.base).begin(armed.judged.wire, is_empty=armed.learned is not None)

    async def _change(self, place: Place, wire: Wire, text: str) -> None:
        """``text`` alone, where the table has its hooks: in messages of our own, since nft would read all else first.

        ``wire``: any of the network. Whatever keeps that from being done, nft does all, or says why not.
        """
        base = place.base
        hooks = render_base(base, wire, internal=place.internal)
        if base not in self._based:
            await load_rules(hooks, table_of(base))
            self._based.add(base)
        try:
            await self._assembling.call(assemble, text)
        except (UnspokenError, OSError) as error:
            if not (isinstance(error, OSError) and error.errno == errno.ENOENT):
                _log.warning("left to nft", extra={"table": table_of(base), "error": str(error)})
            await load_rules(hooks + text, table_of(base))

    def _learning(self, base: str) -> Learning:
        def wires_of(owner: SandboxId) -> list[Wire]:
            return [armed.judged.wire for armed in self.of(owner) if armed.place.base == base]

        if base not in self._names:
            self._names[base] = Learning(base, self._kernel, self._changing[base], wires_of)
        return self._names[base]

    def _forgotten(self, base: str) -> str:
        """Members that an earlier hyperd has put in: whoever is one is put in again."""
        here = [armed for (known, _), armed in self._armed.items() if known == base]
        groups = {name for armed in here for name in referred(armed.judged.groups, armed.judged.egress)}
        self._members[base] = {}
        return "".join(f"flush set inet {table_of(base)} {members_set(name)}\n" for name in sorted(groups))

    async def _put_in(self, base: str, changed: Iterable[Armed]) -> None:
        """What leads to the rules that are there by now, and what they look up."""
        await self._regroup(base)
        for armed in changed:
            wire = armed.judged.wire
            with network_errors(wire.name):
                await self._kernel.call(elements.add, INET_FAMILY, table_of(base), elements_of(wire))
                await self._learning(base).put_in(wire, armed.learned or {})

    async def _take_out(self, base: str, gone: Iterable[Element]) -> None:
        gone = list(gone)
        if gone and not await self._taken_out(base, gone):
            for element in gone:  # one that is missing, and nothing was removed
                await self._taken_out(base, [element])

    async def _taken_out(self, base: str, gone: list[Element]) -> bool:
        with network_errors(base):
            try:
                await self._kernel.call(elements.remove, INET_FAMILY, table_of(base), gone)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                return False
        return True

    async def _regroup(self, base: str) -> None:
        """The members of each group that somebody's rules here speak of, or did."""
        here = [armed for (known, _), armed in self._armed.items() if known == base]
        now = {name: set(_having(name, here)) for name in self._spoken_of.get(base, ())}
        before = self._members.get(base, {})
        added = members_of({name: now[name] - before.get(name, set()) for name in now})
        if added:
            with network_errors(base):
                await self._kernel.call(elements.add, INET_FAMILY, table_of(base), added)
        await self._take_out(base, members_of({name: before[name] - now.get(name, set()) for name in before}))
        self._members[base] = now


def _having(group: str, wires: Iterable[Armed]) -> Iterator[IPv4Address]:
    for armed in wires:
        if any(known.name == group for known in armed.judged.groups):
            yield armed.judged.wire.address
