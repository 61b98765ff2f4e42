# SPDX-License-Identifier: Apache-2.0
"""``Behind``: who has, in which table, rules of a group that says something else by now, or what those let begin; until
that is made good."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from hyperd.model.vm import SandboxId
from hyperd.network.policy.wires import Armed


class Behind:
    def __init__(self) -> None:
        self._known: set[tuple[str, SandboxId]] = set()

    def of(self, base: str) -> Collection[SandboxId]:
        return [owner for known, owner in self._known if known == base]

    def add(self, fallen: Iterable[Armed]) -> None:
        self._known.update((armed.place.base, armed.owner) for armed in fallen)

    def forget(self, base: str, owner: SandboxId) -> None:
        """Idempotent."""
        self._known.discard((base, owner))

    @contextmanager
    def unless_done(self, changed: Iterable[Armed]) -> Iterator[None]:
        """They are behind when this fails, or is broken off."""
        try:
            yield
        except BaseException:
            self.add(changed)
            raise

    @contextmanager
    def caught_up(self, base: str, owners: Iterable[SandboxId]) -> Iterator[Collection[SandboxId]]:
        """Those of them that are behind, and not once this is done; whoever falls behind meanwhile is."""
        found = {(base, owner) for owner in owners} & self._known
        self._known -= found
        try:
            yield {owner for _, owner in found}
        except BaseException:
            self._known |= found
            raise
