# SPDX-License-Identifier: Apache-2.0
"""The digest of a sparse file: the same for a hole and for zeros, however a filesystem keeps or reports them.

SHA-256 over MAGIC, then for each aligned block of 64 KiB that is not all zeros its offset and its bytes (the last one
ends with the file), then the file's size; numbers are 8 bytes, big-endian. Reads data alone. Everything here blocks.
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from hyperd.errors import UnavailableError
from hyperd.host import files

MAGIC = b"hyper sparse file 1\n"
BLOCK_BYTES = 64 << 10


class Stamp(NamedTuple):
    """What changes when a file does."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


def stamp_of(status: os.stat_result) -> Stamp:
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def open_regular(path: Path) -> int:
    """A descriptor to read from. Raises OSError, UnavailableError when it is no regular file (a link, a FIFO)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnavailableError("is not a regular file", subject=str(path))
    return descriptor


def digest_of(descriptor: int, size: int) -> str:
    digest = hashlib.sha256(MAGIC)
    for offset, block in files.data_blocks(descriptor, size, BLOCK_BYTES):
        if block:
            digest.update(offset.to_bytes(8, "big"))
            digest.update(block)
    digest.update(size.to_bytes(8, "big"))
    return digest.hexdigest()


def measure(path: Path) -> tuple[str, Stamp]:
    """Digest and stamp. Raises OSError, UnavailableError when the file changes meanwhile."""
    descriptor = open_regular(path)
    try:
        before = stamp_of(os.fstat(descriptor))
        digest = digest_of(descriptor, before.size_bytes)
        if stamp_of(os.fstat(descriptor)) != before:
            raise UnavailableError("changed while it was read", subject=str(path))
        return digest, before
    finally:
        os.close(descriptor)
