# SPDX-License-Identifier: Apache-2.0
"""A busy host makes starts slow, not wrong: how many come up at a time, and how long one is waited for."""

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import AsyncIterator

from hyperd.errors import TimeoutExpiredError
from hyperd.guest.base import Guest, GuestDialer
from hyperd.host.starvation import waited_s
from hyperd.host.workers import Workers
from hyperd.sandbox.definition import SandboxPaths
from hyperd.sandbox.pulse import Pulse
from hyperd.sandbox.rooms import Phases

log = logging.getLogger(__name__)

STARTS_EACH_CPU = 2
HELD_S = 10.0  # some ten times what a start takes
WORTH_WAITING_S = 1.0  # of starvation since the last try
MOST_STARVED_S = 300.0


def parallel_starts(configured: int) -> int:
    """``configured`` 0: by the CPUs that hyperd may use."""
    return configured or STARTS_EACH_CPU * len(os.sched_getaffinity(0))


class Turns:
    """A VM that comes up keeps one CPU busy. More of them than CPUs do not come up sooner: they run into deadlines."""

    def __init__(self, at_a_time: int) -> None:
        self._free = asyncio.Semaphore(at_a_time)
        self._under_way = 0
        self._left_at = -math.inf
        self._pulse = Pulse()

    async def wait_quiet(self, for_s: float) -> bool:
        """Until nobody has come up, nor waited to, for so long. Whether that had to be waited for."""
        now, waited = asyncio.get_running_loop().time, False
        while True:
            if self._under_way:
                await self._pulse.wait()
            elif (left_s := self._left_at + for_s - now()) > 0:
                await asyncio.sleep(left_s)
            else:
                return waited
            waited = True

    @contextlib.asynccontextmanager
    async def take(self, phases: Phases) -> AsyncIterator[None]:
        """In the order of asking. Waiting is the phase ``queue``.

        The next one's turn comes after ``HELD_S`` in any case: a guest that hangs, or that plays back the journal of a
        disk that was made for it, waits without keeping a CPU busy.
        """
        waited, held = self._free.locked(), False

        def give_back() -> None:
            nonlocal held
            if held:
                self._free.release()
            held = False

        self._under_way += 1
        try:
            held = await self._free.acquire()
            over = asyncio.get_running_loop().call_later(HELD_S, give_back)
            try:
                if waited:
                    phases.mark("queue")
                yield
            finally:
                over.cancel()
                give_back()
        finally:
            self._under_way -= 1
            self._left_at = asyncio.get_running_loop().time()
            self._pulse.beat()


class PatientDialer:
    """Dials the agent of a VM that comes up. Time in which the host had no CPU for the VM does not count."""

    def __init__(self, dialer: GuestDialer, files: Workers) -> None:
        self._dialer = dialer
        self._files = files

    async def connect(self, paths: SandboxPaths, *, vm_pid: int, timeout_s: float, subject: str) -> Guest:
        """As ``GuestDialer.connect``."""
        starved_s, patience_s = 0.0, timeout_s
        while True:
            try:
                return await self._dialer.connect(
                    paths.control_socket, paths.stream_socket, timeout_s=patience_s, subject=subject
                )
            except TimeoutExpiredError as error:
                now_s = min(await self._files.call(waited_s, vm_pid), MOST_STARVED_S)
                patience_s, starved_s = now_s - starved_s, now_s
                if patience_s < WORTH_WAITING_S:
                    if not starved_s:
                        raise
                    raise TimeoutExpiredError(
                        f"no agent answered within {timeout_s:g} s",
                        subject=subject,
                        evidence=f"{starved_s:.0f} s more, in which the host had no CPU for the VM, are not counted",
                        hint=error.hint,
                    ) from error
                log.info(
                    "waiting on: no CPU for the VM",
                    extra={"subject": subject, "starved_s": round(starved_s, 1)},
                )
