# SPDX-License-Identifier: Apache-2.0
"""A process that outlives this one, held by a pidfd: to be killed and waited for, never to be mistaken for another."""

import asyncio
import contextlib
import os
import signal
from typing import Self


class HeldProcess:
    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self._fd = fd

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """None when there is none. Whose it is, is certain only when that is looked at afterwards."""
        try:
            return cls(pid, os.pidfd_open(pid))
        except (OSError, ValueError, OverflowError):
            return None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    async def wait_gone(self) -> None:
        """Return when the process has ended and, if it is a child of this one, is reaped."""
        loop = asyncio.get_running_loop()
        gone = loop.create_future()
        # A descriptor of its own for each waiter: a loop knows one reader per descriptor.
        fd = os.dup(self._fd)
        try:
            loop.add_reader(fd, _resolve, gone)
            try:
                await gone
            finally:
                loop.remove_reader(fd)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - does not block
        finally:
            os.close(fd)

    async def end(self, timeout_s: float) -> None:
        """Killed, waited for and let go of; after the deadline let go of all the same."""
        self.kill()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.wait_gone()
        finally:
            self.close()

    def close(self) -> None:
        """Idempotent. The process is not touched."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
