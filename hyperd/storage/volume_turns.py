# SPDX-License-Identifier: Apache-2.0
"""What excludes what of a volume: while it is copied nobody gets it, it does not grow, and it is not removed.

What is long (a copy, a growth) is counted by name, and holds up nobody with another volume.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection

from hyperd.errors import WrongStateError
from hyperd.model.volume import VolumeName

PATIENCE_S = 60.0  # of who wants to start while a snapshot is under way


class VolumeTurns:
    def __init__(self) -> None:
        self._copying: Counter[VolumeName] = Counter()
        self._growing: Counter[VolumeName] = Counter()
        self._deciding = asyncio.Lock()
        self._moved = asyncio.Event()

    def attaching(self, names: Collection[VolumeName]) -> contextlib.AbstractAsyncContextManager[None]:
        """Within, which is to be short, no copy begins. Raises WrongStateError: one of these does not end."""
        return self._apart(names, self._copying)

    def removing(self, name: VolumeName) -> contextlib.AbstractAsyncContextManager[None]:
        """As ``attaching``, nor does it grow."""
        return self._apart([name], self._copying, self._growing)

    def copying(self, name: VolumeName) -> contextlib.AbstractAsyncContextManager[None]:
        """Several at once. Raises WrongStateError."""
        return self._busy(name, self._copying, self._growing)

    def growing(self, name: VolumeName) -> contextlib.AbstractAsyncContextManager[None]:
        """One at once. Raises WrongStateError."""
        return self._busy(name, self._growing, self._copying, self._growing)

    @contextlib.asynccontextmanager
    async def _busy(
        self, name: VolumeName, counts: Counter[VolumeName], *others: Counter[VolumeName]
    ) -> AsyncIterator[None]:
        async with self._apart([name], *others):
            counts[name] += 1
        try:
            yield
        finally:
            counts[name] -= 1
            self._moved.set()

    @contextlib.asynccontextmanager
    async def _apart(
        self, names: Collection[VolumeName], *others: Counter[VolumeName]
    ) -> AsyncIterator[None]:
        """Within, nobody becomes busy with any volume, and none of these is among the ``others``."""
        patience = asyncio.timeout(PATIENCE_S)
        try:
            async with patience:
                while True:
                    async with self._deciding:
                        if not any(counts[name] for counts in others for name in names):
                            patience.reschedule(None)
                            yield
                            return
                        self._moved.clear()
                    await self._moved.wait()
        except TimeoutError as error:
            if not patience.expired():
                raise
            held = next((name for name in names if any(counts[name] for counts in others)), "")
            raise WrongStateError(
                "is being copied, or grows", subject=f"volume {held}", hint="try again when that has ended"
            ) from error
