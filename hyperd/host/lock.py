# SPDX-License-Identifier: Apache-2.0
"""One directory, one process: a lock that ends with its holder, however that ends."""

import fcntl
import os
from pathlib import Path

from hyperd.errors import UnavailableError, WrongStateError


class FileLock:
    """Held until ``release`` or the end of the process, however it ends."""

    def __init__(
        self, path: Path, *, subject: str = "", remedy: str = "a state directory of its own"
    ) -> None:
        """``subject``: what is locked, by default the file's directory. ``remedy``: what a second process needs."""
        self._path = path
        self._subject = subject or str(path.parent)
        self._remedy = remedy
        self._fd = -1

    def acquire(self) -> None:
        """Idempotent. Raises WrongStateError that names the holder's pid."""
        if self._fd >= 0:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UnavailableError(f"cannot be locked: {error.strerror}", subject=str(self._path)) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise WrongStateError(
                f"in use by another process, pid {holder}",
                subject=self._subject,
                hint=f"stop that hyperd first, or give this one {self._remedy}",
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Idempotent. The file stays: removing it would let two processes lock two files of one name."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.ftruncate(fd, 0)
            os.close(fd)
