# SPDX-License-Identifier: Apache-2.0
"""A layer's blob on its way into a pipe: decompressed, hashed, bounded, and seen to be a tar.

Blocks; runs on a worker thread.
"""

import gzip
import hashlib
import io
import os
import threading
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard
from isal import igzip, isal_zlib

from hyperd.errors import ExhaustedError, InvalidError, UnsupportedError
from hyperd.host import files
from hyperd.image.framing import BLOCK, Framing
from hyperd.model.image import Digest

CHUNK_BYTES = 1 << 20
MAX_ZSTD_WINDOW_BYTES = 128 << 20
END_OF_ARCHIVE = bytes(2 * BLOCK)
_ZSTD_SLICE_BYTES = 1 << 10  # a block of four bytes may become 128 KiB
_CHECK_EVERY_BYTES = 32 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x04\x22\x4d\x18": "lz4"}
BROKEN: tuple[type[Exception], ...] = (
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
    cast("type[Exception]", isal_zlib.error),
    zstandard.ZstdError,
)


@dataclass(frozen=True, slots=True)
class Limits:
    max_bytes: int  # of the uncompressed layer
    reserve_bytes: int  # that must stay free on the filesystem it goes to


@dataclass(frozen=True, slots=True)
class Streamed:
    diff_id: Digest
    size_bytes: int
    complaint: str = ""  # why it is no tar


class LayerStream:
    """One blob's way into one pipe, which it owns. ``stop`` may be called from any thread, at any time, twice."""

    def __init__(
        self, blob: Path, target: Path, pipe: int, limits: Limits, progress: Callable[[int], None]
    ) -> None:
        self._blob = blob
        self._target = target
        self._pipe = pipe
        self._limits = limits
        self._progress = progress
        self._lock = threading.Lock()
        self._started = False
        self._stopped = False

    def stop(self) -> None:
        with self._lock:
            if not self._started and not self._stopped:
                os.close(self._pipe)
            self._stopped = True

    def run(self) -> Streamed | None:
        """Close the pipe at the end, whatever happens; None when stopped before.

        A reader that goes away early (mkfs.erofs does after the end-of-archive mark) ends the writing, not the
        hashing. Raises InvalidError, UnsupportedError, ExhaustedError.
        """
        with self._lock:
            if self._stopped:
                return None
            self._started = True
        with ExitStack() as stack:
            stack.callback(os.close, self._pipe)
            with files.file_errors(self._blob):
                compressed = stack.enter_context(self._blob.open("rb"))
            reader = stack.enter_context(open_layer(compressed, self._blob.name))
            return self._pump(compressed, reader)

    def _pump(self, compressed: BinaryIO, reader: BinaryIO) -> Streamed | None:
        hashed, size, checked, listening = hashlib.sha256(), 0, 0, True
        framing = Framing()
        buffer = memoryview(bytearray(CHUNK_BYTES))
        while count := self._read(reader, buffer):
            if self._stopped:
                return None
            chunk = buffer[:count]
            hashed.update(chunk)
            framing.feed(chunk)
            size += count
            if size - checked >= _CHECK_EVERY_BYTES:
                checked = size
                self._progress(compressed.tell())
                self._require_room(size)
            listening = listening and write_all(self._pipe, chunk)
        self._require_room(size)
        complaint = framing.finish()
        if not complaint and framing.lacks_end and listening:
            write_all(self._pipe, memoryview(END_OF_ARCHIVE))  # mkfs.erofs insists on it, as tar(5) does
        return Streamed(Digest(f"sha256:{hashed.hexdigest()}"), size, complaint)

    def _read(self, reader: BinaryIO, buffer: memoryview) -> int:
        try:
            return cast("io.BufferedIOBase", reader).readinto(buffer)
        except BROKEN as error:
            raise InvalidError(
                "the layer cannot be decompressed", subject=self._blob.name, evidence=str(error)[:300]
            ) from error

    def _require_room(self, size: int) -> None:
        if size > self._limits.max_bytes:
            raise ExhaustedError(
                f"the layer unpacks to more than {self._limits.max_bytes >> 20} MiB", subject=self._blob.name
            )
        free = files.free_bytes(self._target)
        if free < self._limits.reserve_bytes:
            raise ExhaustedError(
                "no space left for the layer",
                subject=str(self._target),
                evidence=f"{free >> 20} MiB are free, {self._limits.reserve_bytes >> 20} MiB are kept in reserve",
                hint="remove images, volumes or sandboxes that are not needed",
            )


def open_layer(compressed: BinaryIO, subject: str) -> BinaryIO:
    """By the first bytes, not by the media type, which lies. Raises UnsupportedError."""
    magic = compressed.read(6)
    compressed.seek(0)
    if magic.startswith(_GZIP):
        gunzip: Callable[..., Any] = igzip.IGzipFile
        return cast("BinaryIO", gunzip(fileobj=compressed, mode="rb"))
    if magic.startswith(_ZSTD):
        return cast("BinaryIO", _Zstd(compressed))
    for prefix, name in _OTHERS.items():
        if magic.startswith(prefix):
            raise UnsupportedError(f"the layer is compressed with {name}", subject=subject)
    return cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", compressed)))


class _Zstd(io.RawIOBase):
    """Frames one after the other. zstandard's own reader takes one that is cut off for one that has ended."""

    def __init__(self, compressed: BinaryIO) -> None:
        self._compressed = compressed
        self._frame: Any = None
        self._rest = b""  # compressed, after a frame
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """As much as there is room for, but at the end."""
        target, filled = memoryview(buffer), 0
        while filled < len(target) and (self._plain or self._read_on()):
            count = min(len(self._plain), len(target) - filled)
            target[filled : filled + count] = self._plain[:count]
            self._plain = self._plain[count:]
            filled += count
        return filled

    def _read_on(self) -> bool:
        while not self._plain:
            data, self._rest = self._rest or self._compressed.read(_ZSTD_SLICE_BYTES), b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame is not complete")
                return False
            if self._frame is None:
                decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
                self._frame = decompressor.decompressobj()
            self._plain = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        return True


def write_all(pipe: int, chunk: memoryview) -> bool:
    """False when nobody reads any more."""
    while chunk:
        try:
            written = os.write(pipe, chunk)
        except BrokenPipeError:
            return False
        chunk = chunk[written:]
    return True
