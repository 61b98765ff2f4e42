# SPDX-License-Identifier: Apache-2.0
"""The RAM of a QEMU that others map, too: a memfd. It has no name, is not limited by any file system and goes with its
QEMU, however that ends. A template's RAM is copied into it before the state is read. Blocks, some 20 ms.
"""

import contextlib
import fcntl
import os
from pathlib import Path

from hyperd.host.files import copy_into

_NAME = "/memfd:memory-backend-memfd"


def fill_ram(pid: int, size_bytes: int, source: Path) -> None:
    """Of a QEMU that has not begun to read its state. Raises OSError, FileNotFoundError when it has no such RAM."""
    target = _find_ram(pid, size_bytes)
    try:
        with source.open("rb") as reader:
            copy_into(reader.fileno(), target)
    finally:
        os.close(target)


def _find_ram(pid: int, size_bytes: int) -> int:
    """Ours is made without seals (``seal=off``), libvirt's own, which nothing is in, with them."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if not os.readlink(link).startswith(_NAME):  # noqa: PTH115 - its text, which is no path
                continue
            fd = os.open(link, os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(fd).st_size == size_bytes and fcntl.fcntl(fd, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SEAL:
                return fd
            os.close(fd)
    raise FileNotFoundError(f"QEMU {pid} has no shared RAM of {size_bytes} bytes")
