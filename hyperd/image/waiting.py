# SPDX-License-Identifier: Apache-2.0
"""Data from somebody who may stop sending, or send as good as nothing."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import TypeVar

from hyperd.errors import TimeoutExpiredError

R = TypeVar("R")

PATIENCE_S = 600.0
LEAST_BYTES_PER_S = 16 << 10


class Pace:
    """The patience with a sender or reader: waiting uses it up, what is moved gives it back, as far as it was."""

    def __init__(self, patience_s: float = PATIENCE_S, *, subject: str = "data", does: str = "comes") -> None:
        self.patience_s = self.left_s = patience_s
        self._subject = subject
        self._does = does

    def count(self, waited_s: float, size_bytes: int) -> None:
        """Raises TimeoutExpiredError."""
        self.left_s = min(self.patience_s, self.left_s - waited_s + size_bytes / LEAST_BYTES_PER_S)
        if self.left_s <= 0:
            raise TimeoutExpiredError(
                f"it {self._does} more slowly than {LEAST_BYTES_PER_S >> 10} KiB a second, "
                f"for {self.patience_s:g} s and more",
                subject=self._subject,
            )


async def paced(data: AsyncIterator[bytes], stall_timeout_s: float) -> AsyncGenerator[bytes, None]:
    """As ``waiting``, and TimeoutExpiredError too for one that drips, however regularly.

    Only the time that is spent waiting for it counts, not what we take to store what has come.
    """
    pace, clock = Pace(), asyncio.get_running_loop().time
    async with contextlib.aclosing(waiting(data, stall_timeout_s)) as chunks:
        since = clock()
        async for chunk in chunks:
            pace.count(clock() - since, len(chunk))
            yield chunk
            since = clock()


async def waiting(data: AsyncIterator[bytes], stall_timeout_s: float) -> AsyncGenerator[bytes, None]:
    """The chunks, each within the time, else TimeoutExpiredError; ``data`` is closed at the end."""
    try:
        while True:
            try:
                async with asyncio.timeout(stall_timeout_s):
                    chunk = await anext(data, None)
            except TimeoutError as error:
                raise TimeoutExpiredError(
                    f"nothing has come for {stall_timeout_s:g} s", subject="data"
                ) from error
            if chunk is None:
                return
            yield chunk
    finally:
        if isinstance(data, AsyncGenerator):
            await data.aclose()


async def in_time(work: Awaitable[R], timeout_s: float, what: str = "layer", subject: str = "") -> R:
    """Raises TimeoutExpiredError."""
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError as error:
        raise TimeoutExpiredError(f"no {what} after {timeout_s:g} s", subject=subject) from error
