# SPDX-License-Identifier: Apache-2.0
"""Work that several callers wait for and that is done once.

A caller that goes away leaves the work to the others; with the last one it is cancelled, and that caller waits until
nothing of it is left. Everyone hears the events, a late comer those so far; events of one kind replace each other,
so a slow listener misses steps, never the end, and no buffer grows.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from hyperd.errors import UnavailableError

K = TypeVar("K", bound=Hashable)
E = TypeVar("E")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Listener(Generic[E]):
    pending: dict[Hashable, E]
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Hub(Generic[E]):
    """Where the work tells what it does. ``kind`` says which event replaces which."""

    def __init__(self) -> None:
        self._latest: dict[Hashable, E] = {}
        self._listeners: set[_Listener[E]] = set()
        self._closed = False

    def publish(self, kind: Hashable, event: E) -> None:
        self._latest[kind] = event
        for listener in self._listeners:
            listener.pending[kind] = event
            listener.wake.set()

    def close(self) -> None:
        self._closed = True
        for listener in self._listeners:
            listener.wake.set()

    async def listen(self) -> AsyncGenerator[E, None]:
        """Until the work has ended."""
        listener = _Listener(dict(self._latest))
        listener.wake.set()
        self._listeners.add(listener)
        try:
            while True:
                await listener.wake.wait()
                listener.wake.clear()
                events, listener.pending = listener.pending, {}
                for event in events.values():
                    yield event
                if self._closed and not listener.pending:
                    return
        finally:
            self._listeners.discard(listener)


@dataclass(slots=True, eq=False)
class Flight(Generic[E, R]):
    hub: Hub[E]
    task: "asyncio.Task[R | BaseException]"
    passengers: int = 0

    async def landed(self) -> R:
        """What the work returned or raised."""
        await asyncio.wait({self.task})
        if self.task.cancelled():
            raise UnavailableError("hyperd is stopping")
        outcome = self.task.result()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Flights(Generic[K, E, R]):
    """At most one piece of work for each key. ``tasks`` owns them all."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._flights: dict[K, Flight[E, R]] = {}

    @contextlib.asynccontextmanager
    async def board(
        self, key: K, work: Callable[[Hub[E]], Coroutine[Any, Any, R]]
    ) -> AsyncIterator[Flight[E, R]]:
        flight = self._flights.get(key)
        if flight is None or flight.task.done():
            hub: Hub[E] = Hub()
            flight = Flight(hub, self._tasks.create_task(self._fly(work, hub)))
            self._flights[key] = flight
        flight.passengers += 1
        try:
            yield flight
        finally:
            flight.passengers -= 1
            if flight.passengers == 0:
                if self._flights.get(key) is flight:
                    del self._flights[key]
                if not flight.task.done():
                    flight.task.cancel()
                    await _ended(flight.task)

    async def cancel(self) -> None:
        """All of it; returns when nothing is left."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.task.cancel()
        for flight in flights:
            await _ended(flight.task)

    async def _fly(self, work: Callable[[Hub[E]], Coroutine[Any, Any, R]], hub: Hub[E]) -> R | BaseException:
        try:
            return await work(hub)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # each passenger raises it; the group must not
            return error
        finally:
            hub.close()


async def _ended(task: "asyncio.Task[Any]") -> None:
    """Wait to the end even when cancelled again meanwhile, and be cancelled then."""
    again: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            again = error
    if again is not None:
        raise again
