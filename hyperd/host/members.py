# SPDX-License-Identifier: Apache-2.0
"""Members of a tar stream in one form and no other: USTAR with mode 0440, no owner, no time.

Who reads one holds its header against ``header`` of the name and size that it tells: nothing else is read.
"""

import re
import tarfile

RECORD_BYTES = 512
END = bytes(2 * RECORD_BYTES)
_SIZE = re.compile(rb"[0-7]{11}\0")


def member(name: str, data: bytes) -> bytes:
    return b"".join((header(name, len(data)), data, bytes(-len(data) % RECORD_BYTES)))


def header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o440
    return info.tobuf(tarfile.USTAR_FORMAT)


def told_by(header: bytes) -> tuple[str, int]:
    """Name and size; 0: it tells no size."""
    size = header[124:136]
    name = header[:100].rstrip(b"\0").decode("ascii", "replace")
    return name, int(size[:-1], 8) if _SIZE.fullmatch(size) else 0
