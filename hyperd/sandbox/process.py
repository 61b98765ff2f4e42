# SPDX-License-Identifier: Apache-2.0
"""Sessions: how a caller holds the first process of a container, or an exec'd one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from hyperd.errors import NotFoundError, TimeoutExpiredError, UnavailableError, WrongStateError
from hyperd.guest.base import Guest, InputWriter
from hyperd.model.container import ContainerRecord, Exit
from hyperd.model.guest import OutputChunk, ProcessId, TerminalSize
from hyperd.sandbox.assembly import container_id_of
from hyperd.sandbox.pump import Pump

# What a caller may meet who speaks to a process that is just ending: not an error of the caller's.
_ENDING = (UnavailableError, NotFoundError, WrongStateError, TimeoutExpiredError)


class ProcessSession:
    """A ``session.Session`` of a process of a running container."""

    def __init__(
        self,
        record: ContainerRecord,
        process_id: ProcessId,
        pump: Pump,
        guest: Callable[[], Guest | None],
        ended: "asyncio.Future[Exit]",
        *,
        tty: bool,
    ) -> None:
        self.exec_id = process_id
        self.tty = tty
        self._container = container_id_of(record.sandbox_id)
        self._process = process_id
        self._pump = pump
        self._subscription = pump.subscribe()
        self._guest = guest
        self._ended = ended
        self._input: InputWriter | None = None
        self._input_over = False

    async def __aiter__(self) -> AsyncIterator[OutputChunk | Exit]:
        async for chunk in self._subscription:
            yield chunk
        yield await asyncio.shield(self._ended)

    async def write(self, data: bytes) -> None:
        guest = self._guest()
        if self._input_over or guest is None:
            return
        if self._input is None:
            self._input = guest.write_input(self._container, self._process)
        try:
            await self._input.write(data)
        except _ENDING:
            self._input_over = True

    async def close_stdin(self) -> None:
        guest = self._guest()
        if self._input_over or guest is None:
            return
        self._input_over = True
        writer = self._input or guest.write_input(self._container, self._process)
        self._input = None
        with contextlib.suppress(*_ENDING):
            await writer.close(eof=True)

    async def resize(self, size: TerminalSize) -> None:
        guest = self._guest()
        if guest is not None and self.tty:
            with contextlib.suppress(*_ENDING):
                await guest.resize(self._container, self._process, size)

    async def signal(self, number: int) -> None:
        guest = self._guest()
        if guest is not None:
            with contextlib.suppress(*_ENDING):
                await guest.signal(self._container, self._process, number)

    async def aclose(self) -> None:
        """Leave; the process goes on, its standard input stays open."""
        self._pump.unsubscribe(self._subscription)
        writer, self._input = self._input, None
        if writer is not None:
            with contextlib.suppress(*_ENDING, asyncio.CancelledError):
                await writer.close(eof=False)
