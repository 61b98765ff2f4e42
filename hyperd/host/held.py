# SPDX-License-Identifier: Apache-2.0
"""A process that outlives this one, held by a pidfd: to be killed and waited for, never to be mistaken for another."""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Sequence
from typing import Self

_SYS_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)


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

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def borrow(self, number: int) -> int:
        """Its descriptor of that number, as one of ours: position and all. Raises OSError (it is gone)."""
        fd: int = _libc.syscall(_SYS_PIDFD_GETFD, self._fd, number, 0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return fd

    def copy(self) -> int:
        """A descriptor of its own for each waiter: a loop knows one reader per descriptor. -1 once it is closed."""
        return os.dup(self._fd) if self._fd >= 0 else -1

    async def wait_gone(self) -> None:
        """Return when the process has ended and, if it is a child of this one, is reaped.

        One that was closed is nobody's any more: for whoever asks then it has ended.
        """
        await self.wait_first([self])

    @staticmethod
    async def wait_first(processes: "Sequence[HeldProcess]") -> "HeldProcess":
        """The first of them that has ended, as ``wait_gone``. Raises OSError."""
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[tuple[HeldProcess, int]] = loop.create_future()
        with contextlib.ExitStack() as stack:
            for each in processes:
                fd = each.copy()
                if fd < 0:
                    return each
                stack.callback(os.close, fd)
                loop.add_reader(fd, _resolve, gone, (each, fd))
                stack.callback(loop.remove_reader, fd)
            ended, fd = await gone
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - does not block
            return ended

    async def end(self, timeout_s: float) -> None:
        """Killed, waited for and let go of; after the deadline let go of all the same."""
        self.kill()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.wait_gone()
        finally:
            self.close()

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def close(self) -> None:
        """Idempotent. The process is not touched."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _resolve(future: "asyncio.Future[tuple[HeldProcess, int]]", value: "tuple[HeldProcess, int]") -> None:
    if not future.done():
        future.set_result(value)
