# SPDX-License-Identifier: Apache-2.0
"""Carries one process's output from the guest to whoever wants it."""

import asyncio

from hyperd.errors import UnavailableError
from hyperd.guest.base import Guest
from hyperd.model.guest import ContainerId, ProcessId
from hyperd.sandbox.journal import Journal
from hyperd.sandbox.session import Subscription


class Pump:
    """Reads until the process's streams end. With a journal, output counts as taken once it is written there.

    A subscriber who does not read makes the process wait, as a full pipe would. ``ended`` is set when everything the
    process wrote has been handed on; a lost connection leaves it unset, and ``run`` may be called again.
    """

    def __init__(
        self, container_id: ContainerId, process_id: ProcessId, journal: Journal | None, offset: int = 0
    ) -> None:
        self._container_id = container_id
        self._process_id = process_id
        self._journal = journal
        self._offset = offset
        self._subscribers: set[Subscription] = set()
        self.ended = asyncio.Event()

    def subscribe(self) -> Subscription:
        """Everything from now on."""
        subscription = Subscription()
        self._subscribers.add(subscription)
        if self.ended.is_set():
            subscription.end()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscribers.discard(subscription)
        subscription.close()

    async def run(self, guest: Guest) -> None:
        """Raises UnavailableError when the connection is lost."""
        offset = self._journal.end_offset if self._journal else self._offset
        reader = guest.read_output(self._container_id, self._process_id, offset)
        async for chunk in reader:
            if self._journal:
                self._journal.append(chunk)
            reader.acknowledge(chunk.end_offset)
            self._offset = chunk.end_offset
            for subscriber in tuple(self._subscribers):
                await subscriber.put(chunk)
        self.finish()

    def finish(self) -> None:
        """No more output will come."""
        if not self.ended.is_set():
            self.ended.set()
            for subscriber in self._subscribers:
                subscriber.end()

    async def run_to_end(self, guest: Guest) -> None:
        """As ``run``, for a process whose output nobody can resume: a lost connection is its end."""
        try:
            await self.run(guest)
        except UnavailableError:
            self.finish()
