# SPDX-License-Identifier: Apache-2.0
"""Bytes from a caller as plain bytes: gzip, zstd, xz and bzip2 undone, told by the first bytes. All bounded.

Plain streams go through. Compressed ones are written aside first: that way what they unpack to is asked for piece by
piece, and a bomb ends at a limit instead of in memory.
"""

import bz2
import contextlib
import io
import lzma
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from hyperd.errors import ExhaustedError, InvalidError
from hyperd.host import files
from hyperd.host.workers import Workers
from hyperd.image.stream import BROKEN, MAX_ZSTD_WINDOW_BYTES, Limits, open_layer
from hyperd.image.waiting import paced

CHUNK_BYTES = 1 << 20
MAGIC_BYTES = 6
_CHECK_EVERY_BYTES = 32 << 20
_GZIP, _ZSTD, _XZ, _BZIP2 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh"
_BROKEN: tuple[type[Exception], ...] = (*BROKEN, lzma.LZMAError, OSError, ValueError)


class Unpacker:
    def __init__(self, temporary: Path, workers: Workers, limits: Limits, *, stall_timeout_s: float) -> None:
        self._temporary = temporary
        self._workers = workers
        self._limits = limits
        self._stall_timeout_s = stall_timeout_s

    async def plain(self, data: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Raises InvalidError (broken compression), ExhaustedError, TimeoutExpiredError, and what ``data`` raises."""
        async with contextlib.aclosing(paced(data, self._stall_timeout_s)) as chunks:
            head = b""
            async for chunk in chunks:
                head += chunk
                if len(head) >= MAGIC_BYTES:
                    break
            if not is_compressed(head):
                if head:
                    yield head
                async for chunk in chunks:
                    yield chunk
                return
            path = self._temporary / f"packed-{secrets.token_hex(8)}"
            try:
                await self._write_aside(path, head, chunks)
                async for chunk in self._read(path):
                    yield chunk
            finally:
                await self._workers.call_to_the_end(path.unlink, missing_ok=True)

    async def _write_aside(self, path: Path, head: bytes, chunks: AsyncIterator[bytes]) -> None:
        with files.file_errors(path), path.open("xb", buffering=0) as file:
            # To the end, here and below: the file is closed when this is cancelled.
            size = checked = await self._workers.call_to_the_end(_write, file, head)
            async for chunk in chunks:
                size += await self._workers.call_to_the_end(_write, file, chunk)
                if size - checked >= _CHECK_EVERY_BYTES:
                    checked = size
                    self._require_room(size)

    async def _read(self, path: Path) -> AsyncGenerator[bytes, None]:
        with files.file_errors(path), path.open("rb") as packed, opened(packed) as reader:
            size = 0
            while chunk := await self._workers.call_to_the_end(read_some, reader):
                size += len(chunk)
                if size > self._limits.max_bytes:
                    raise self._too_large()
                yield chunk

    def _require_room(self, size: int) -> None:
        if size > self._limits.max_bytes:
            raise self._too_large()
        files.require_free(self._temporary, 0, keep_bytes=self._limits.reserve_bytes, what="the archive")

    def _too_large(self) -> ExhaustedError:
        return ExhaustedError(f"the archive is larger than {self._limits.max_bytes >> 20} MiB")


def is_compressed(head: bytes) -> bool:
    return head.startswith((_GZIP, _ZSTD, _XZ, _BZIP2))


@contextlib.contextmanager
def opened(packed: BinaryIO) -> Iterator[BinaryIO]:
    magic = packed.read(MAGIC_BYTES)
    packed.seek(0)
    if magic.startswith(_XZ):
        yield cast(
            "BinaryIO", _Stepwise(packed, lambda: lzma.LZMADecompressor(memlimit=MAX_ZSTD_WINDOW_BYTES))
        )
    elif magic.startswith(_BZIP2):
        yield cast("BinaryIO", _Stepwise(packed, bz2.BZ2Decompressor))
    else:
        with open_layer(packed, "archive") as reader:
            yield reader


def read_some(reader: BinaryIO) -> bytes:
    try:
        return reader.read(CHUNK_BYTES)
    except _BROKEN as error:
        raise InvalidError("the archive cannot be decompressed", evidence=str(error)[:300]) from error


class _Stepwise:
    """``read`` for a decompressor of the standard library; streams may stand one after the other."""

    def __init__(self, packed: BinaryIO, make: Callable[[], Any]) -> None:
        self._packed = packed
        self._make = make
        self._decompressor = make()

    def read(self, size: int) -> bytes:
        while True:
            decompressor = self._decompressor
            if decompressor.eof:
                rest = decompressor.unused_data or self._packed.read(io.DEFAULT_BUFFER_SIZE)
                if not rest.strip(b"\0"):
                    return b""
                self._decompressor = decompressor = self._make()
                found: bytes = decompressor.decompress(rest, size)
            else:
                more = self._packed.read(CHUNK_BYTES) if decompressor.needs_input else b""
                if decompressor.needs_input and not more:
                    raise EOFError("unexpected end")
                found = decompressor.decompress(more, size)
            if found:
                return found


def _write(file: io.FileIO, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    return len(data)
