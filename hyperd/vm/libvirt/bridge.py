# SPDX-License-Identifier: Apache-2.0
"""libvirt, made awaitable.

Two kinds of thread touch libvirt: bounded pools that make calls, and one thread that runs libvirt's own event loop.
Neither touches hyperd's state: results come back through futures, events through ``call_soon_threadsafe`` as plain
values. Each lane has threads of its own: a QEMU that does not answer holds the thread of whoever asks it until it
answers or is killed, and no number of such may keep a kill from being made, or another VM standing still.
"""

import asyncio
import contextlib
import enum
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import libvirt

from hyperd.errors import TimeoutExpiredError
from hyperd.host.workers import Workers
from hyperd.vm.libvirt.connection import close_connection, open_connection
from hyperd.vm.libvirt.errors import libvirt_errors
from hyperd.vm.libvirt.events import acquire_event_thread, release_event_thread

_log = logging.getLogger(__name__)

R = TypeVar("R")


class Lane(enum.Enum):
    """With the number of its threads."""

    CALL = "call", 8
    RESTORE = "restore", 8  # QEMU answers nothing while it reads a state: so many restore at once
    RESUME = "resume", 4  # so that a VM goes on
    LOOK = "look", 2  # at what is only counted
    URGENT = "urgent", 4  # so that one ends, or is seen


_CLOSE_TIMEOUT_S = 30.0
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.001, 0.05


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """Numbers as in libvirt's virDomainEventType."""

    name: str
    event: int
    detail: int


Listener = Callable[[LifecycleEvent], None]
Call = Callable[[libvirt.virConnect], R]


@contextlib.asynccontextmanager
async def answered_within(timeout_s: float, what: str, subject: str) -> AsyncIterator[None]:
    """Raises TimeoutExpiredError. The thread that asks is held for as long as libvirt takes."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise TimeoutExpiredError(f"libvirt has not {what} in {timeout_s:g} s", subject=subject) from error


class LibvirtBridge:
    """One connection. ``on_event`` is called on the event loop's thread."""

    def __init__(self, uri: str, on_event: Listener) -> None:
        self._uri = uri
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._lanes = {lane: Workers(f"libvirt-{lane.value[0]}", lane.value[1]) for lane in Lane}
        self._urgent = self._lanes[Lane.URGENT]
        self._connection: libvirt.virConnect | None = None
        self._callback = -1

    async def __aenter__(self) -> Self:
        """Raises UnavailableError when libvirt cannot be opened."""
        acquire_event_thread()
        try:
            with libvirt_errors(self._uri):
                self._connection = await self._urgent.call(open_connection, self._uri)
                self._callback = await self.call(self._subscribe, lane=Lane.URGENT)
        except BaseException:
            await self._shut()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._shut()

    async def call(self, function: Call[R], *, lane: Lane = Lane.CALL) -> R:
        """``function(connection)`` on a thread. libvirtError passes: the caller knows its subject.

        A cancelled caller stops waiting; the call itself runs to its end.
        """
        return await self._lanes[lane].call(function, self._opened())

    async def until(
        self,
        question: Call[bool],
        *,
        lane: Lane = Lane.CALL,
        call: Callable[[Call[bool]], Awaitable[bool]] | None = None,
    ) -> None:
        """Ask again and again until the answer is yes, for what has no event to wait for.

        The answer is late by at most a twentieth of the time it took, a millisecond at least and 50 at most; between
        two questions no thread is held. ``call`` makes the calls, if not this bridge.
        """
        begun = self._loop.time()
        while True:
            if await (self.call(question, lane=lane) if call is None else call(question)):
                return
            elapsed_s = self._loop.time() - begun
            await asyncio.sleep(min(max(_MIN_PAUSE_S, elapsed_s / 20), _MAX_PAUSE_S))

    def _opened(self) -> libvirt.virConnect:
        if self._connection is None:
            raise RuntimeError("the bridge is not open")
        return self._connection

    def _subscribe(self, connection: libvirt.virConnect) -> int:
        return connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None
        )

    def _on_lifecycle(
        self, _connection: object, domain: libvirt.virDomain, event: int, detail: int, _opaque: object
    ) -> None:
        """On the event thread: copy plain values out and hop to the loop."""
        plain = LifecycleEvent(domain.name(), event, detail)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to hear it
            self._loop.call_soon_threadsafe(self._on_event, plain)

    async def _shut(self) -> None:
        # The pools first: they wait for the calls under way, and those need the connection.
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                for lane, workers in self._lanes.items():
                    if lane is not Lane.URGENT:
                        await self._urgent.call(workers.close)
                connection, self._connection = self._connection, None
                if connection is not None:
                    await self._urgent.call(self._close, connection)
                await self._urgent.call(release_event_thread)
        except TimeoutError:
            # A call hangs in libvirt and cannot be ended. Closing the pools would hang with it.
            _log.error("libvirt does not answer: its threads are abandoned", extra={"uri": self._uri})
        else:
            self._urgent.close()

    def _close(self, connection: libvirt.virConnect) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            if self._callback >= 0:
                connection.domainEventDeregisterAny(self._callback)
        close_connection(connection)
