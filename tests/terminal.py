# SPDX-License-Identifier: Apache-2.0
"""A person at a terminal: a pty with `hyper` on it, typed at and read."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator


class Terminal:
    def __init__(self, argv: list[str], columns: int = 80, rows: int = 24) -> None:
        self._leader, follower = pty.openpty()
        self.seen = b""
        self.resize(columns, rows)
        self.modes_before = termios.tcgetattr(follower)
        self._follower = follower
        # setsid(1) makes the pty the controlling terminal, so that Ctrl-C and resizing are signals as at a real one.
        self.child = subprocess.Popen(
            ["setsid", "--ctty", *argv], stdin=follower, stdout=follower, stderr=follower
        )

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self._leader, data)

    def wait_for(self, pattern: bytes, timeout_s: float = 60) -> "re.Match[bytes]":
        """Read until the pattern shows; what was read before it is consumed."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self._leader], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"not seen within {timeout_s:g} s: {pattern!r} in {self.seen!r}"
            try:
                self.seen += os.read(self._leader, 4096)
            except OSError as error:
                raise AssertionError(f"the terminal ended before {pattern!r}: {self.seen!r}") from error
        self.seen = self.seen[found.end() :]
        return found

    def wait_ended(self, timeout_s: float = 60) -> int:
        """Exit status; keeps reading so that the program is not held up."""
        deadline = time.monotonic() + timeout_s
        while (status := self.child.poll()) is None:
            assert time.monotonic() < deadline, f"still running; seen: {self.seen!r}"
            if select.select([self._leader], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self._leader, 4096)
        return status

    def modes_are_restored(self) -> bool:
        return termios.tcgetattr(self._follower) == self.modes_before

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(10)
        os.close(self._leader)
        os.close(self._follower)


@contextlib.contextmanager
def terminal(argv: list[str], columns: int = 80, rows: int = 24) -> Iterator[Terminal]:
    it = Terminal(argv, columns, rows)
    try:
        yield it
    finally:
        it.close()
