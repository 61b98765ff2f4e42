# SPDX-License-Identifier: Apache-2.0
"""The QEMU process of a VM, held by a pidfd: it can be killed and waited for, and never mistaken for another.

libvirt's own destroy asks every 200 ms whether the process still exists. Killed through its pidfd it is gone in some
5 ms; libvirt sees the end of its monitor and tidies up behind us.
"""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Self

_MAX_COMMAND_LINE_BYTES = 65536


class QemuProcess:
    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self._fd = fd

    @classmethod
    def find(cls, pid_dir: Path, name: str) -> Self | None:
        """By libvirt's pid file; None when there is no such process, or it is not the one of that domain."""
        try:
            pid = int((pid_dir / f"{name}.pid").read_text())
            fd = os.pidfd_open(pid)
        except (OSError, ValueError, OverflowError):
            return None
        # Only now, with the pid held, is it certain whose command line this is.
        if not _is_guest(pid, name):
            os.close(fd)
            return None
        return cls(pid, fd)

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

    def close(self) -> None:
        """Idempotent. The process is not touched."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _is_guest(pid: int, name: str) -> bool:
    try:
        with Path(f"/proc/{pid}/cmdline").open("rb") as file:
            arguments = file.read(_MAX_COMMAND_LINE_BYTES).split(b"\0")
    except OSError:
        return False
    return any(argument.split(b",")[0] == b"guest=" + name.encode() for argument in arguments)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
