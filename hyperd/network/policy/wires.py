# SPDX-License-Identifier: Apache-2.0
"""``Wires``: the rules of sandboxes with policies as they are in the kernel, changed in one transaction at a time."""

import asyncio
import errno
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address

from pyroute2 import AsyncIPRoute

from hyperd.host.workers import Workers
from hyperd.model.policy import EgressPolicy, Service
from hyperd.model.vm import SandboxId
from hyperd.network import elements
from hyperd.network.assembler import UnspokenError, assemble
from hyperd.network.elements import INET_FAMILY, Element
from hyperd.network.netlink import network_errors
from hyperd.network.policy import older
from hyperd.network.policy.group_rules import members_of, members_set, referred, render_members
from hyperd.network.policy.hooks import HOOKS, render_base, render_none, table_of
from hyperd.network.policy.learning import Learning, Told
from hyperd.network.policy.load import load_rules
from hyperd.network.policy.rules import (
    Judged,
    Learned,
    elements_of,
    render_gone,
    render_stale,
    render_wire,
)
from hyperd.network.policy.wire import Wire, unroute
from hyperd.network.settings import Address
from hyperd.network.standing import digest_rules

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """A network as policies see it. ``base``: its own table."""

    base: str
    internal: bool
    versions: tuple[int, ...] = (4,)  # families that it has


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
        self._members: dict[str, dict[str, set[Address]]] = {}  # by table and group: as they are put in
        self._having: dict[str, dict[str, set[Address]]] = {}  # as they should be
        self._moved: dict[str, set[str]] = {}  # by table: groups of which that may not be the same
        self._armed: dict[tuple[str, IPv4Address], Armed] = {}
        self._at: dict[tuple[str, Address], Armed] = {}  # by its address of either family
        self._spoken_of: dict[str, set[str]] = {}  # by table: groups that have a set of members there
        self._based: dict[str, bytes] = {}  # tables that have their hooks, and what those say
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by table
        self._names: dict[str, Learning] = {}  # by table

    def close(self) -> None:
        """What is in force stays."""
        self._assembling.close()

    def at(self, base: str, address: str) -> Armed | None:
        return self._at.get((base, ip_address(address)))

    def of(self, owner: SandboxId) -> list[Armed]:
        return [armed for armed in self._armed.values() if armed.owner == owner]

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
            with network_errors(base):
                older_sets = await self._kernel.call(older.find_sets, base)
                if older_sets:
                    found = await self._kernel.call(_taken_over, base, found, older_sets)
            for armed in found:
                self._know(armed)
            self._based.pop(base, None)
            await self._load(found[0].place, found, also=self._forgotten(base))
            await self._put_in(base, found)
            with network_errors(base):
                await self._kernel.call(older.remove_sets, base, older_sets)

    async def arm(self, base: str, make: Callable[[], list[Armed]]) -> list[Armed]:
        """All or none of those that are made when their turn has come, and there may be none to arm any more."""
        async with self._changing[base]:
            found = make()
            if found:
                for armed in found:
                    self._know(armed)
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
            self._forget(armed)
            self._learning(base).forget(wire)
            if not self.are_on(base):
                for known in (self._spoken_of, self._members, self._having, self._moved):
                    known.pop(base, None)
                self._based.pop(base, None)
                await load_rules(render_none(base), table_of(base))
                return
            await self._take_out(base, elements_of(wire))
            await self._regroup(base)
            await self._change(armed.place, wire, render_gone(base, armed.judged, armed.earlier))

    async def withdraw(self, base: str) -> None:
        """The network is gone. Idempotent."""
        self._based.pop(base, None)
        self._names.pop(base, None)
        await load_rules(render_none(base), table_of(base))
        self._changing.pop(base, None)  # nobody has a wire here who could wait for it

    async def are_as_made(self, base: str) -> bool:
        async with self._changing[base]:
            said = self._based.get(base)
            return said is None or await self._kernel.call(_digest_hooks, base) in (b"", said)

    async def forget_group(self, name: str) -> None:
        """Nobody has it, and no rule speaks of it."""
        for base in list(self._spoken_of):
            async with self._changing[base]:
                groups = self._spoken_of.get(base, set())
                if name in groups:
                    table, versions = f"inet {table_of(base)}", self._versions(base)
                    gone = render_members(table, [name], versions)
                    gone += "".join(f"delete set {table} {members_set(name, each)}\n" for each in versions)
                    await load_rules(gone, table_of(base))
                    groups.discard(name)
                    self._members.get(base, {}).pop(name, None)

    async def _load(self, place: Place, changed: list[Armed], also: str = "") -> None:
        table, spoken_of = f"inet {table_of(place.base)}", self._spoken_of.setdefault(place.base, set())
        for armed in changed:
            named = referred(armed.judged.groups, armed.judged.egress)
            self._moved.setdefault(place.base, set()).update(named - spoken_of)
            spoken_of |= named
        text = render_members(table, spoken_of, place.versions) + also
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
            self._based[base] = await self._kernel.call(_digest_hooks, base)
        try:
            await self._assembling.call(assemble, text)
        except (UnspokenError, OSError) as error:
            if not (isinstance(error, OSError) and error.errno == errno.ENOENT):
                _log.warning("left to nft", extra={"table": table_of(base), "error": str(error)})
            await load_rules(hooks + text, table_of(base))
            self._based[base] = await self._kernel.call(_digest_hooks, base)

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
        self._moved.setdefault(base, set()).update(groups)
        return "".join(
            f"flush set inet {table_of(base)} {members_set(name, version)}\n"
            for name in sorted(groups)
            for version in self._versions(base)
        )

    def _versions(self, base: str) -> tuple[int, ...]:
        return next(armed.place.versions for (known, _), armed in self._armed.items() if known == base)

    def _know(self, armed: Armed) -> None:
        self._forget(armed)
        self._armed[armed.key] = armed
        for address in armed.judged.wire.addresses:
            self._at[armed.place.base, address] = armed
        for members in self._move(armed):
            members.update(armed.judged.wire.addresses)

    def _forget(self, armed: Armed) -> None:
        known = self._armed.pop(armed.key, None)
        if known is None:
            return
        for address in known.judged.wire.addresses:
            self._at.pop((known.place.base, address), None)
        for members in self._move(known):
            members.difference_update(known.judged.wire.addresses)

    def _move(self, armed: Armed) -> Iterator[set[Address]]:
        """The members of each of its groups, which are others from now on."""
        base = armed.place.base
        for group in armed.judged.groups:
            self._moved.setdefault(base, set()).add(group.name)
            yield self._having.setdefault(base, {}).setdefault(group.name, set())

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
        """The members of each group that somebody's rules here speak of, and that has others now."""
        moved = self._moved.get(base, set()) & self._spoken_of.get(base, set())
        now = {name: set(self._having.get(base, {}).get(name, ())) for name in moved}
        before = self._members.setdefault(base, {})
        added = members_of({name: now[name] - before.get(name, set()) for name in moved})
        if added:
            with network_errors(base):
                await self._kernel.call(elements.add, INET_FAMILY, table_of(base), added)
        await self._take_out(base, members_of({name: before.get(name, set()) - now[name] for name in moved}))
        before.update(now)
        self._moved.pop(base, None)


def _taken_over(base: str, found: Iterable[Armed], older_sets: AbstractSet[str]) -> list[Armed]:
    """With what their names stood for under an earlier hyperd. Blocking. Raises OSError."""
    return [
        replace(armed, learned=older.read_learned(base, armed.judged, older_sets))
        if armed.learned is None
        else armed
        for armed in found
    ]


def _digest_hooks(base: str) -> bytes:
    """What the rules say that all sandboxes have in common; b"" when that cannot be seen. Blocking."""
    try:
        return b"".join(digest_rules(INET_FAMILY, table_of(base), hook) for hook in HOOKS)
    except OSError:
        return b""
