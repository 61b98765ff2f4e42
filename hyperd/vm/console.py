# SPDX-License-Identifier: Apache-2.0
"""A guest's serial console on disk. The guest wrote what is in it: bounded and cleaned before anybody reads it."""

import asyncio
import contextlib
import ctypes
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from hyperd.model.vm import SandboxId

_log = logging.getLogger(__name__)

CONSOLE_LIMIT_BYTES = 1024 * 1024
CONSOLE_KEEP_BYTES = 64 * 1024
TRIM_INTERVAL_S = 10.0

_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_BLOCK_BYTES = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def read_tail(path: Path, max_bytes: int) -> bytes:
    """The last bytes of a file; empty when there is none. Whole lines only, where something was cut."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            data = file.read(max_bytes)
    except OSError:  # evidence is a help: its absence must not hide the error it belongs to
        return b""
    if size > max_bytes and b"\n" in data:
        data = data.split(b"\n", 1)[1]
    return data


def console_tail(path: Path, max_bytes: int = 2048) -> str:
    """The end of a console as evidence for an error: at most ``max_bytes`` of it, control characters replaced."""
    text = read_tail(path, max_bytes).decode("utf-8", errors="replace").replace("\r\n", "\n").strip("\n\0")
    return "".join(char if char in "\n\t" or char.isprintable() else "�" for char in text)


def trim_console(path: Path, *, limit_bytes: int = CONSOLE_LIMIT_BYTES) -> bool:
    """Give the disk space of an overlong console back, all but its end; True when something was freed.

    A hole is punched where the beginning was: QEMU goes on appending and no byte of the end is lost in between.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if status.st_blocks * 512 <= limit_bytes:
            return False
        length = (status.st_size - CONSOLE_KEEP_BYTES) // _BLOCK_BYTES * _BLOCK_BYTES
        if length <= 0:
            return False
        return bool(_libc.fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, 0, length) == 0)
    finally:
        os.close(fd)


class Consoles:
    """The consoles of running VMs, looked at now and then: a guest can write to its own without end."""

    def __init__(self, interval_s: float = TRIM_INTERVAL_S) -> None:
        self._paths: dict[SandboxId, Path] = {}
        self._interval_s = interval_s
        self._timer: asyncio.TimerHandle | None = None

    def add(self, sandbox_id: SandboxId, path: Path) -> None:
        self._paths[sandbox_id] = path

    def remove(self, sandbox_id: SandboxId) -> None:
        """Idempotent. The file stays."""
        self._paths.pop(sandbox_id, None)

    @contextlib.contextmanager
    def kept_short(self) -> Iterator[None]:
        self._trim()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _trim(self) -> None:
        for sandbox_id, path in self._paths.items():
            if trim_console(path):
                _log.info("console trimmed", extra={"sandbox": sandbox_id})
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._trim)
