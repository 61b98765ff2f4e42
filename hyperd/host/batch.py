# SPDX-License-Identifier: Apache-2.0
"""What many ask for at once is done in one go: whoever comes while a batch is under way is in the next one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class _Entry(Generic[T]):
    def __init__(self, item: T) -> None:
        self.item = item
        self.is_done = False


class Batch(Generic[T]):
    """Around ``work``, which is all or nothing for its caller, idempotent, and takes at most ``most`` items.

    There is no task behind it: one of those who wait does the work of all. When it fails or is cancelled the others try
    by themselves, so nobody is told another's error but where it was met again.
    """

    def __init__(self, work: Callable[[Sequence[T]], Awaitable[None]], most: int) -> None:
        self._work = work
        self._most = most
        self._waiting: list[_Entry[T]] = []
        self._turn = asyncio.Lock()

    async def do(self, item: T) -> None:
        """Return when it is done. Raises what the work raises."""
        entry = _Entry(item)
        self._waiting.append(entry)
        try:
            async with self._turn:
                if entry.is_done:
                    return
                batch = [entry, *(other for other in self._waiting if other is not entry)][: self._most]
                await self._work([one.item for one in batch])
                for one in batch:
                    one.is_done = True
        finally:
            self._waiting = [other for other in self._waiting if other is not entry and not other.is_done]
