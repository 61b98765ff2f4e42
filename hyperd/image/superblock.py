# SPDX-License-Identifier: Apache-2.0
"""The UUID of a finished EROFS file: a layer that is made while its tar streams in has no diff_id before the end.

With the UUID set afterwards the file is, byte for byte, the one that mkfs.erofs makes when it is told the UUID before.
The layout is linux/fs/erofs/erofs_fs.h's.
"""

import functools
import os
import struct
import uuid

from hyperd.errors import HyperError

_OFFSET = 1024
_MAGIC = 0xE0F5E1E2
_CHECKSUM_AT, _BLOCK_BITS_AT, _UUID_AT = 4, 12, 48
_COMPAT_CHECKSUM = 1
_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected


def stamp(descriptor: int, value: uuid.UUID | str) -> None:
    """Blocks."""
    head = os.pread(descriptor, _OFFSET + 128, 0)[_OFFSET:]
    if len(head) < 128 or struct.unpack_from("<I", head)[0] != _MAGIC:
        raise HyperError("mkfs.erofs made a file without a superblock")
    length = max((1 << head[_BLOCK_BITS_AT]) - _OFFSET, 128)
    block = bytearray(os.pread(descriptor, length, _OFFSET))
    block[_UUID_AT : _UUID_AT + 16] = uuid.UUID(str(value)).bytes
    if struct.unpack_from("<I", block, 8)[0] & _COMPAT_CHECKSUM:
        struct.pack_into("<I", block, _CHECKSUM_AT, 0)
        struct.pack_into("<I", block, _CHECKSUM_AT, _crc32c(block))
    os.pwrite(descriptor, block, _OFFSET)


def _crc32c(data: bytes | bytearray) -> int:
    """Of a few KiB; without the last inversion, as the kernel has it."""
    table, value = _table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value


@functools.cache
def _table() -> tuple[int, ...]:
    entries = []
    for value in range(256):
        entry = value
        for _ in range(8):
            entry = (entry >> 1) ^ (_POLYNOMIAL if entry & 1 else 0)
        entries.append(entry)
    return tuple(entries)
