# SPDX-License-Identifier: Apache-2.0
"""A VM that is up, as those who deal with its guest see it: which connection, whether it runs, whether it is over."""

import asyncio
import contextlib

from hyperd.errors import HyperError
from hyperd.guest.base import Guest
from hyperd.model.container import Exit
from hyperd.sandbox.pulse import Pulse
from hyperd.sandbox.run import Live


class Presence:
    def __init__(self, live: Live) -> None:
        self.live = live
        self.paused = False
        self.exit: Exit | None = None  # why the run ends, once it does
        self.vm_ended = False
        self.broken: HyperError | None = None  # what of its mounts is not served any more
        self.changed = Pulse()  # process ended, run ended, paused or not, connection renewed

    @property
    def is_ending(self) -> bool:
        return self.exit is not None or self.vm_ended

    async def other_guest(self, guest: Guest) -> Guest | None:
        """The connection after ``guest`` broke; None when the run is over instead."""
        while self.live.guest is guest and not self.is_ending:
            await self.changed.wait()
        return None if self.is_ending else self.live.guest

    async def while_paused(self) -> None:
        """Return when it runs, or is over."""
        while self.paused and not self.is_ending:
            await self.changed.wait()

    async def ended_within(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.is_ending:
                    await self.changed.wait()
