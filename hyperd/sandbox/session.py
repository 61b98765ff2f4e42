# SPDX-License-Identifier: Apache-2.0
"""One process's standard streams as a caller holds them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

from hyperd.model.container import Exit
from hyperd.model.guest import OutputChunk, TerminalSize

QUEUED_CHUNKS = 16  # of at most 64 KiB: what a slow reader may be behind before the process has to wait


class Subscription:
    """A bounded queue from a pump to one reader. Closing it frees a pump that waits."""

    def __init__(self) -> None:
        self._chunks: deque[OutputChunk] = deque()
        self._ended = False
        self._closed = False
        self._changed = asyncio.Event()

    async def put(self, chunk: OutputChunk) -> None:
        """Waits while the reader is far behind; returns at once when it has gone."""
        while len(self._chunks) >= QUEUED_CHUNKS and not self._closed:
            await self._wait()
        if not self._closed:
            self._chunks.append(chunk)
            self._wake()

    def end(self) -> None:
        """Nothing more will be put."""
        self._ended = True
        self._wake()

    def close(self) -> None:
        """The reader has gone."""
        self._closed = True
        self._chunks.clear()
        self._wake()

    async def __aiter__(self) -> AsyncIterator[OutputChunk]:
        while not self._closed:
            if self._chunks:
                chunk = self._chunks.popleft()
                self._wake()
                yield chunk
            elif self._ended:
                return
            else:
                await self._wait()

    async def _wait(self) -> None:
        await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Session(Protocol):
    """Iterate for output; the last item is the Exit. Closing it never ends the process."""

    @property
    def exec_id(self) -> str:
        """ "" for a container's first process."""

    @property
    def tty(self) -> bool: ...

    def __aiter__(self) -> AsyncIterator[OutputChunk | Exit]: ...

    async def write(self, data: bytes) -> None:
        """Returns when the process can take more. Bytes for a process that has ended vanish."""

    async def close_stdin(self) -> None: ...

    async def resize(self, size: TerminalSize) -> None: ...

    async def signal(self, number: int) -> None: ...

    async def aclose(self) -> None: ...
