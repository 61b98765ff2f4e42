# SPDX-License-Identifier: Apache-2.0
"""Addresses that names stand for, put into the sets of wires, all that wait for it in one transaction.

The kernel waits for its readers, some 10 ms, with each transaction that takes an element out, and one begins its time
again by being taken out. So nothing is said twice that the kernel still knows for long enough: what a guest asks for is
its own choice, and whoever starts or changes a policy waits for the same lock.
"""

import asyncio
import errno
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from hyperd.host.batch import Batch
from hyperd.host.workers import Wanted, Workers
from hyperd.model.policy import Service
from hyperd.model.vm import SandboxId
from hyperd.network import elements
from hyperd.network.elements import INET_FAMILY, Element
from hyperd.network.policy.rules import MAX_LEARNED, Learned, learned_set, table_of
from hyperd.network.policy.wire import Wire

SLACK_S = 30.0  # what is known for so much less than it should be is not put in again
REFUSED_S = 5.0
_SURELY_S = 2.0  # of what has run out: the kernel's clock is its own
_TOGETHER = 16  # questions of one transaction
Told = Collection[tuple[IPv4Address, int]]


class Shelf:
    """What one wire's sets have, by set and key: until when. ``is_whole``: there is nothing else in them."""

    def __init__(self, *, is_whole: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._until: dict[str, dict[bytes, float]] = {}
        self._is_whole = is_whole
        self._clock = clock
        self._refused: OSError | None = None
        self._refused_until = 0.0

    def due(self, wanted: Iterable[Element]) -> tuple[list[Element], list[Element]]:
        """Those to be put in, and those that may be there and begin their time again; the rest is well as it is.

        Raises OSError, ENFILE when there is no room for them.
        """
        now = self._clock()
        new: dict[tuple[str, bytes], Element] = {}
        again: dict[tuple[str, bytes], Element] = {}
        for element in wanted:
            until = self._until.get(element.where, {}).get(element.key)
            if until is not None and until - now >= element.timeout_ms / 1000 - SLACK_S:
                continue
            is_gone = self._is_whole if until is None else until + _SURELY_S < now
            found, key = new if is_gone else again, (element.where, element.key)
            if key not in found or found[key].timeout_ms < element.timeout_ms:
                found[key] = element
        if (new or again) and self._refused is not None and now < self._refused_until:
            raise OSError(self._refused.errno, self._refused.strerror)
        for where in {where for where, _ in new}:
            self._require_room(where, sum(each.where == where for each in new.values()))
        return list(new.values()), list(again.values())

    def put(self, elements: Iterable[Element]) -> None:
        """They are there."""
        now = self._clock()
        for element in elements:
            self._until.setdefault(element.where, {})[element.key] = now + element.timeout_ms / 1000

    def doubt(self) -> None:
        """There may be more than is known of."""
        self._is_whole = False

    def refuse(self, error: OSError) -> None:
        """The kernel would not: it is not asked again for a moment, for that costs as much."""
        self._refused, self._refused_until = error, self._clock() + REFUSED_S

    def _require_room(self, where: str, count: int) -> None:
        known, now = self._until.get(where, {}), self._clock()
        if len(known) + count > MAX_LEARNED:
            for key in [key for key, until in known.items() if until + _SURELY_S < now]:
                del known[key]
            if len(known) + count > MAX_LEARNED:
                raise OSError(errno.ENFILE, f"more than {MAX_LEARNED} addresses")


@dataclass(slots=True)
class _Answer:
    """``services``: of the name that was asked for, when its turn has come."""

    owner: SandboxId
    services: Callable[[], Iterable[Service]]
    told: Told
    is_let_through: bool = False
    refused: OSError | None = None


class Learning:
    """Of one network's table. ``wires_of``: those that a sandbox has here; ``lock``: nobody changes rules meanwhile."""

    def __init__(
        self,
        base: str,
        kernel: Workers,
        lock: asyncio.Lock,
        wires_of: Callable[[SandboxId], Iterable[Wire]],
    ) -> None:
        self._base = base
        self._kernel = kernel
        self._lock = lock
        self._wires_of = wires_of
        self._shelves: dict[str, Shelf] = {}  # by tap
        self._batch: Batch[_Answer] = Batch(self._learn, _TOGETHER)

    async def learn(self, owner: SandboxId, services: Callable[[], Iterable[Service]], told: Told) -> bool:
        """For so many seconds each. Whether there was a wire and a service for it. Raises OSError."""
        answer = _Answer(owner, services, told)
        await self._batch.do(answer)
        if answer.refused is not None:
            raise answer.refused
        return answer.is_let_through

    def begin(self, wire: Wire, *, is_empty: bool) -> None:
        """Its rules are made: what is in its sets is not known, or ``is_empty``. Under the lock."""
        self._shelves[wire.name] = Shelf(is_whole=is_empty)

    def forget(self, wire: Wire) -> None:
        """Its sets are gone. Under the lock."""
        self._shelves.pop(wire.name, None)

    async def put_in(self, wire: Wire, learned: Learned) -> None:
        """What its names stood for before. Under the lock. Raises OSError."""
        await self._put_in(
            {
                wire.name: [
                    each
                    for service, known in learned.items()
                    for each in _elements(wire, service, known.items())
                ]
            }
        )

    async def _learn(self, answers: Sequence[_Answer]) -> None:
        """All of them together; where the kernel refuses that, each by itself, so that none fails for another."""
        async with self._lock:
            try:
                await self._put_in(self._wanted(answers))
            except OSError:
                for answer in answers:
                    wanted = self._wanted([answer])
                    try:
                        await self._put_in(wanted)
                    except OSError as error:
                        answer.refused = error
                        for tap in wanted:
                            self._shelf(tap).refuse(error)

    def _wanted(self, answers: Iterable[_Answer]) -> dict[str, list[Element]]:
        """By tap."""
        wanted: dict[str, list[Element]] = {}
        for answer in answers:
            services, wires = list(answer.services()), list(self._wires_of(answer.owner))
            answer.is_let_through = bool(services and wires)
            for wire in wires:
                for service in services:
                    wanted.setdefault(wire.name, []).extend(_elements(wire, service, answer.told))
        return wanted

    async def _put_in(self, wanted: Mapping[str, Sequence[Element]]) -> None:
        due = [(self._shelf(tap), *self._shelf(tap).due(found)) for tap, found in wanted.items()]
        new = [element for _, some, _ in due for element in some]
        again = [element for _, _, some in due for element in some]
        try:
            if new or again:  # and never behind the back of whoever has the lock next
                await self._kernel.call_while_wanted(self._tell, new, again)
        except BaseException:
            for shelf, _, _ in due:
                shelf.doubt()
            raise
        for shelf, some, more in due:
            shelf.put([*some, *more])

    def _tell(self, _: Wanted, new: Sequence[Element], again: Sequence[Element]) -> None:
        """Blocking."""
        elements.renew(INET_FAMILY, table_of(self._base), new, again)

    def _shelf(self, tap: str) -> Shelf:
        return self._shelves.setdefault(tap, Shelf(is_whole=False))


def _elements(wire: Wire, service: Service, told: Iterable[tuple[IPv4Address, int]]) -> Iterator[Element]:
    where = learned_set(wire.name, service)
    for address, lasts_s in told:
        yield Element(where, address.packed, timeout_ms=lasts_s * 1000)
