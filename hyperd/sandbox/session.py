# SPDX-License-Identifier: Apache-2.0
"""One process's standard streams as a caller holds them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

from hyperd.errors import UnavailableError
from hyperd.model.container import Exit
from hyperd.model.guest import OutputChunk, TerminalSize
from hyperd.sandbox.pulse import Pulse

CHUNK_BYTES = 64 * 1024
QUEUED_CHUNKS = 16  # what a slow reader may be behind before the process has to wait
DRAINED_CHUNKS = 4096  # and once the process has ended: what the agent's ring and its pipes can hold
DRAINED_BYTES = 2 << 20
STALL_TIMEOUT_S = 10.0  # for one who looks on, before the process stops waiting for it


class Subscription:
    """A bounded queue from a pump to one reader. Closing it frees a pump that waits.

    With ``patience_s`` a reader who takes nothing for so long while the queue is full is dropped, and told.
    """

    def __init__(self, patience_s: float | None = None) -> None:
        self._patience_s = patience_s
        self._dropped = False
        self._chunks: deque[OutputChunk] = deque()
        self._bytes = 0
        self._draining = False
        self._ended = False
        self._closed = False
        self._changed = Pulse()

    async def put(self, chunk: OutputChunk) -> None:
        """Waits while the reader is far behind; returns at once when it has gone."""
        while self._is_full() and not self._closed:
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._changed.wait()
            except TimeoutError:
                self._dropped = True
                self.close()
        if self._closed:
            return
        self._bytes += len(chunk.data)
        last = self._chunks[-1] if self._chunks else None
        if last and last.stream is chunk.stream and len(last.data) + len(chunk.data) <= CHUNK_BYTES:
            self._chunks[-1] = OutputChunk(last.offset, last.stream, last.data + chunk.data)
        else:
            self._chunks.append(chunk)
        self._changed.beat()

    def drain(self) -> None:
        """The process has ended: what is left of its output is bounded and waits for the reader here."""
        self._draining = True
        self._changed.beat()

    def end(self) -> None:
        """Nothing more will be put."""
        self._ended = True
        self._changed.beat()

    def close(self) -> None:
        """The reader has gone."""
        self._closed = True
        self._chunks.clear()
        self._changed.beat()

    async def __aiter__(self) -> AsyncIterator[OutputChunk]:
        while not self._closed:
            if self._chunks:
                chunk = self._chunks.popleft()
                self._bytes -= len(chunk.data)
                self._changed.beat()
                yield chunk
            elif self._ended:
                return
            else:
                await self._changed.wait()
        if self._dropped:
            raise UnavailableError(
                f"was detached: it took no output for {self._patience_s:g} s while the process wrote",
                hint="attach again; `hyper logs` has what was missed",
            )

    def _is_full(self) -> bool:
        if self._draining:
            return len(self._chunks) >= DRAINED_CHUNKS or self._bytes >= DRAINED_BYTES
        return len(self._chunks) >= QUEUED_CHUNKS


class Session(Protocol):
    """Iterate for output; the last item is the Exit. Closing it never ends the process."""

    @property
    def exec_id(self) -> str:
        """ "" for a container's first process."""

    @property
    def tty(self) -> bool: ...

    def __aiter__(self) -> AsyncIterator[OutputChunk | Exit]: ...

    async def write(self, data: bytes) -> None:
        """Returns when the process can take more. Bytes for a process that has ended vanish.

        Raises UnavailableError when the connection to the guest broke under them while the process goes on.
        """

    async def close_stdin(self) -> None: ...

    async def resize(self, size: TerminalSize) -> None: ...

    async def signal(self, number: int) -> None: ...

    async def aclose(self) -> None: ...
