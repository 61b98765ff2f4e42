# SPDX-License-Identifier: Apache-2.0
"""Carries one process's output from the guest to whoever wants it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import cast

from hyperd.errors import ExhaustedError, InvalidError, UnavailableError
from hyperd.guest.base import Guest, OutputReader
from hyperd.model.guest import ContainerId, OutputChunk, ProcessId
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.session import Subscription

log = logging.getLogger(__name__)


class Pump:
    """Reads until the process's streams end. With a journal, output counts as taken once it is written there.

    A subscriber who does not read makes the process wait, as a full pipe would, but for as long as its patience.
    ``ended`` is set when everything the process wrote has been handed on; a lost connection leaves it unset, and
    ``run`` may be called again. A journal that cannot be written (a full disk) leaves a gap in the log and a line in
    hyperd's, and does not stop the process.
    """

    def __init__(
        self, container_id: ContainerId, process_id: ProcessId, journal: Journal | None, offset: int = 0
    ) -> None:
        self._container_id = container_id
        self._process_id = process_id
        self._journal = journal
        self._offset = offset
        self._journal_failed = False
        self._draining = False
        self._subscribers: set[Subscription] = set()
        self.ended = asyncio.Event()

    def subscribe(self, patience_s: float | None = None) -> Subscription:
        """Everything from now on; see Subscription."""
        subscription = Subscription(patience_s)
        self._subscribers.add(subscription)
        if self._draining:
            subscription.drain()
        if self.ended.is_set():
            subscription.end()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscribers.discard(subscription)
        subscription.close()

    async def run(self, guest: Guest, output: Callable[[int], OutputReader] | None = None) -> None:
        """``output``: from an offset on, where it is not the guest that is asked for it.

        Raises UnavailableError when the connection is lost.
        """
        if self.ended.is_set():
            return
        read = output or (lambda offset: guest.read_output(self._container_id, self._process_id, offset))
        if self._journal is not None:
            self._offset = max(self._offset, self._journal.end_offset)
        try:
            await self._carry(read)
        except InvalidError:
            # Older output is not kept any more: it was acknowledged and could not be written to the log.
            self._offset = await self._kept_offset(guest)
            log.warning("output lost", extra={"container": self._container_id, "offset": self._offset})
            await self._carry(read)
        self.finish()

    def rebase(self, offset: int) -> None:
        """The process is another one, or as it was once: its output goes on from there."""
        self._offset = offset

    async def wait_quiet(self, carrying: "asyncio.Task[None]", *, idle_s: float, total_s: float) -> None:
        """Until all is carried, or nothing came for ``idle_s``, and no longer than ``total_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(total_s):
                while not carrying.done():
                    before = self._offset
                    await asyncio.wait((carrying,), timeout=idle_s)
                    if self._offset == before:
                        return

    def drain(self) -> None:
        """The process has ended: slow readers do not hold up what is left."""
        self._draining = True
        for subscriber in self._subscribers:
            subscriber.drain()

    def finish(self) -> None:
        """No more output will come."""
        if not self.ended.is_set():
            self.ended.set()
            for subscriber in self._subscribers:
                subscriber.end()

    async def _carry(self, read: Callable[[int], OutputReader]) -> None:
        reader = read(self._offset)
        chunks = cast("AsyncGenerator[OutputChunk, None]", aiter(reader))
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                self._keep(chunk)
                reader.acknowledge(chunk.end_offset)
                self._offset = chunk.end_offset
                for subscriber in tuple(self._subscribers):
                    await subscriber.put(chunk)

    def _keep(self, chunk: OutputChunk) -> None:
        if self._journal is None:
            return
        try:
            self._journal.append(chunk)
        except (ExhaustedError, UnavailableError) as error:
            if not self._journal_failed:
                log.error("log not written", extra={"container": self._container_id, "error": str(error)})  # noqa: TRY400
            self._journal_failed = True
        else:
            self._journal_failed = False

    async def _kept_offset(self, guest: Guest) -> int:
        """The nearest to where it is that the agent can go on from."""
        for container in await guest.list_containers():
            for process in container.processes:
                if container.container_id == self._container_id and process.process_id == self._process_id:
                    return max(process.output_start_offset, min(self._offset, process.output_end_offset))
        return self._offset
