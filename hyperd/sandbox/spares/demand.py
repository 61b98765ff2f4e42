# SPDX-License-Identifier: Apache-2.0
"""Which shape a spare is to have, and when one that could not be made is tried again. By the loop's clock.

The default one, then that of two containers in a row that could have had a spare: of two that alternate each would
always find the other's.
"""

import asyncio
from collections.abc import Callable

from hyperd.sandbox.definition import Shape

OUT_OF_USE_S = 60.0  # a shape that nobody has asked for in so long gives way to the first other
RETRY_S = 30.0  # after a first failure; doubled with each further one, up to
MAX_RETRY_S = 3600.0


class Demand:
    """``on_change``: it may be another now."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.wanted: Shape | None = None
        self.is_resting = False
        self._on_change = on_change
        self._asked: Shape | None = None  # last
        self._asked_at = 0.0  # for the wanted one
        self._failures = 0
        self._retry_at = 0.0

    @property
    def is_due(self) -> bool:
        return not self.is_resting and _now() >= self._retry_at

    def begin(self, first: Shape) -> None:
        self.wanted = self._asked = first
        self._asked_at = _now()

    def note_asked(self, shape: Shape) -> None:
        if shape in (self.wanted, self._asked) or _now() - self._asked_at >= OUT_OF_USE_S:
            self.wanted, self._asked_at = shape, _now()
        self._asked = shape
        self.is_resting = False
        self._on_change()

    def rest(self) -> None:
        """Until somebody asks again."""
        self.is_resting = True

    def note_made(self) -> None:
        self._failures = 0

    def note_failed(self) -> None:
        self._failures += 1
        self._retry_at = _now() + min(RETRY_S * 2 ** (self._failures - 1), MAX_RETRY_S)


def _now() -> float:
    return asyncio.get_running_loop().time()
