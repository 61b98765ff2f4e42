# SPDX-License-Identifier: Apache-2.0
"""The user's terminal: its size, and raw mode that always ends."""

import contextlib
import os
import termios
import tty
from typing import Any, Self


def find_size(*fds: int) -> tuple[int, int] | None:
    """Columns and rows of the first of ``fds`` that is a terminal which knows them."""
    for fd in fds:
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(fd)
            if size.columns > 0 and size.lines > 0:
                return size.columns, size.lines
    return None


def is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


class RawMode:
    """Every key goes to the process as it is typed. Entered late, left on every way out of the ``with`` block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    @property
    def active(self) -> bool:
        return self._saved is not None

    def enter(self) -> None:
        if self._saved is None:
            self._saved = termios.tcgetattr(self._fd)
            # Not the default TCSAFLUSH: it would throw away what was typed while the machine booted.
            tty.setraw(self._fd, termios.TCSANOW)

    def leave(self) -> None:
        if self._saved is not None:
            with contextlib.suppress(termios.error):  # the terminal itself is gone
                termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)
            self._saved = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
