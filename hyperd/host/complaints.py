# SPDX-License-Identifier: Apache-2.0
"""What a detached child says, kept in memory of a fixed size: whatever makes it talk, it fills no disk.

A memfd that is sealed against growth. Once it is full, what the child writes is refused (EPERM) and lost. Whoever has
the file has its position, too: ``renew`` lets the child begin again.
"""

import fcntl
import os
from typing import Self

KEPT_BYTES = 64 << 10
TAIL_BYTES = 2048


class Complaints:
    """Of one child; close it when that is gone."""

    def __init__(self, fd: int) -> None:
        """``fd`` is owned from here on: that of ``new``, or one that was borrowed from the child."""
        self.fd = fd

    @classmethod
    def new(cls, name: str) -> Self:
        """Raises OSError."""
        made = cls(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        try:
            os.ftruncate(made.fd, KEPT_BYTES)
            fcntl.fcntl(
                made.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            )
        except BaseException:
            made.close()
            raise
        return made

    def tail(self) -> str:
        """The end of it; "" when nothing was said, or it is closed."""
        return self._last().decode(errors="replace").strip("\0").strip()

    def renew(self) -> None:
        """For now and then: of what is more than half full all but the end is forgotten, so there is room for more."""
        if self.fd >= 0 and self._end() > KEPT_BYTES // 2:
            os.lseek(self.fd, os.pwrite(self.fd, self._last(), 0), os.SEEK_SET)

    def close(self) -> None:
        """Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _last(self) -> bytes:
        end = self._end()
        start = max(end - TAIL_BYTES, 0)
        return os.pread(self.fd, end - start, start) if end else b""

    def _end(self) -> int:
        """Where the child writes next."""
        return min(os.lseek(self.fd, 0, os.SEEK_CUR), KEPT_BYTES) if self.fd >= 0 else 0
