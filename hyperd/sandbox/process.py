# SPDX-License-Identifier: Apache-2.0
"""Sessions: how a caller holds the first process of a container, or an exec'd one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from hyperd.errors import InvalidError, NotFoundError, TimeoutExpiredError, UnavailableError, WrongStateError
from hyperd.guest.base import Guest, InputWriter
from hyperd.model.container import ContainerRecord, Exit
from hyperd.model.guest import OutputChunk, ProcessId, TerminalSize
from hyperd.sandbox.identity import container_id_of
from hyperd.sandbox.pump import Pump
from hyperd.sandbox.tenure import Tenure

# What a caller may meet who speaks to a process that is just ending: not an error of the caller's.
_ENDING = (UnavailableError, NotFoundError, WrongStateError, TimeoutExpiredError, InvalidError)
LEAVE_TIMEOUT_S = 2.0  # for the guest to take what was written before the caller left


class ProcessSession:
    """A ``session.Session`` of a process of a running container."""

    def __init__(
        self,
        record: ContainerRecord,
        process_id: ProcessId,
        pump: Pump,
        tenure: Callable[[], Awaitable[Tenure | None]],
        ended: "asyncio.Future[Exit]",
        *,
        tty: bool,
        stdin: bool,
        patience_s: float | None = None,
    ) -> None:
        """``tenure``: waits for the run to be up; None when it is over. ``patience_s``: see Subscription."""
        self.container_id: str = record.sandbox_id
        self.name = record.name
        self.exec_id: str = process_id
        self.tty = tty
        self._container = container_id_of(record)
        self._process = process_id
        self._pump = pump
        self._subscription = pump.subscribe(patience_s)
        self._tenure = tenure
        self._ended = ended
        self._input: InputWriter | None = None
        self._input_guest: Guest | None = None
        self._input_over = not stdin

    async def __aiter__(self) -> AsyncIterator[OutputChunk | Exit]:
        async for chunk in self._subscription:
            yield chunk
        yield await asyncio.shield(self._ended)

    async def write(self, data: bytes) -> None:
        writer = await self._open_input()
        if writer is None:
            return
        try:
            await writer.write(data)
        except UnavailableError as error:
            self._input_over = True
            tenure, broken = await self._tenure(), self._input_guest
            if tenure is None or broken is None or await tenure.other_guest(broken) is None:
                return  # the process is gone, and its standard input with it
            raise UnavailableError(
                "the connection to the guest broke, part of the standard input may be lost",
                subject=f"container {self.name}",
                hint="attach again",
            ) from error
        except _ENDING:
            self._input_over = True

    async def close_stdin(self) -> None:
        writer = await self._open_input()
        self._input_over = True
        self._input = None
        if writer is not None:
            with contextlib.suppress(*_ENDING):
                await writer.close(eof=True)

    async def resize(self, size: TerminalSize) -> None:
        guest = await self._guest() if self.tty else None
        if guest is not None:
            with contextlib.suppress(*_ENDING):
                await guest.resize(self._container, self._process, size)

    async def signal(self, number: int) -> None:
        tenure = await self._run()
        if tenure is not None:
            tenure.note_signal(self._process, number)
            with contextlib.suppress(*_ENDING):
                await tenure.live.guest.signal(self._container, self._process, number)

    async def aclose(self) -> None:
        """Leave; the process goes on, its standard input stays open."""
        self._pump.unsubscribe(self._subscription)
        writer, self._input = self._input, None
        self._input_over = True
        if writer is not None:
            with contextlib.suppress(*_ENDING, TimeoutError):
                async with asyncio.timeout(LEAVE_TIMEOUT_S):
                    await writer.close(eof=False)

    async def _open_input(self) -> InputWriter | None:
        if self._input_over:
            return None
        if self._input is None:
            guest = await self._guest()
            if guest is None:
                self._input_over = True
                return None
            self._input_guest = guest
            self._input = guest.write_input(self._container, self._process)
        return self._input

    async def _guest(self) -> Guest | None:
        tenure = await self._run()
        return None if tenure is None else tenure.live.guest

    async def _run(self) -> Tenure | None:
        if self._ended.done():
            return None
        tenure = await self._tenure()
        return None if self._ended.done() else tenure
