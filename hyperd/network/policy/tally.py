# SPDX-License-Identifier: Apache-2.0
"""Names that a sandbox was refused, until they are written down; and what it calls the addresses that it was told.

Both are bounded: what a guest asks for is its own choice.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hyperd.model.policy import Attempt
from hyperd.network.policy.sets import Blocked
from hyperd.network.settings import Address

MAX_NAMES, MAX_TOLD = 512, 4096


class Tally:
    """Of one sandbox."""

    def __init__(self) -> None:
        self._refused: OrderedDict[str, Attempt] = OrderedDict()
        self._names: OrderedDict[Address, str] = OrderedDict()
        self._told: OrderedDict[tuple[str, Address], float] = OrderedDict()

    def refuse(self, name: str, why: str = "") -> None:
        """``name`` was not looked up; or was, and ``why``, an address, was not told."""
        now = datetime.now(UTC)
        key = why or name
        before = self._refused.pop(key, None)
        self._refused[key] = (
            replace(before, count=before.count + 1, last_at=now)
            if before
            else Attempt(key, "dns", 0, name if why else "", 1, now, now)
        )
        while len(self._refused) > MAX_NAMES:
            self._refused.popitem(last=False)

    def tell(self, name: str, address: Address, until: float) -> None:
        """``until``: of a monotonic clock, as in ``told``."""
        self._names.pop(address, None)
        self._names[address] = name
        self._told.pop((name, address), None)
        self._told[name, address] = until
        while len(self._names) > MAX_TOLD:
            self._names.popitem(last=False)
        while len(self._told) > MAX_TOLD:
            self._told.popitem(last=False)

    def told(self, now: float) -> list[tuple[str, Address, int]]:
        """Name, address and seconds left, of what still holds."""
        return [
            (name, address, int(until - now))
            for (name, address), until in self._told.items()
            if until - now >= 1
        ]

    def take_refused(self) -> list[Attempt]:
        taken = list(self._refused.values())
        self._refused.clear()
        return taken

    def give_back(self, attempts: Iterable[Attempt]) -> None:
        """That could not be written down."""
        for attempt in attempts:
            later = self._refused.get(attempt.destination)
            self._refused[attempt.destination] = (
                replace(later, count=later.count + attempt.count, first_at=attempt.first_at)
                if later
                else attempt
            )

    def attempts(self, blocked: Iterable[Blocked]) -> list[Attempt]:
        """As the kernel counts them now."""
        now = datetime.now(UTC)
        return [
            Attempt(
                str(each.address),
                each.protocol,
                each.port,
                self._names.get(each.address, ""),
                each.count,
                now - timedelta(seconds=each.ago_s),
                now - timedelta(seconds=each.ago_s),
            )
            for each in blocked
        ]


def summed(attempts: Iterable[Attempt]) -> list[Attempt]:
    """One for each destination, on whichever network it was tried."""
    found: dict[tuple[str, str, int], Attempt] = {}
    for each in attempts:
        key = (each.destination, each.protocol, each.port)
        other = found.get(key)
        found[key] = (
            replace(
                each,
                count=each.count + other.count,
                first_at=min(each.first_at, other.first_at),
                last_at=max(each.last_at, other.last_at),
            )
            if other
            else each
        )
    return list(found.values())
