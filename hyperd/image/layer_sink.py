# SPDX-License-Identifier: Apache-2.0
"""Where the pieces of a layer that streams in go. Two lanes that share nothing, so that each may have a thread:

    tell: SHA-256, framing, and on into mkfs.erofs's pipe          pack: gzip, SHA-256, the blob's file

Each lane gets every piece, in order. Everything blocks, but for ``close``.
"""

import contextlib
import fcntl
import hashlib
import os
import select
from pathlib import Path
from typing import Any

from isal import isal_zlib

from hyperd.errors import ExhaustedError, InvalidError
from hyperd.host import files
from hyperd.host.workers import Wanted
from hyperd.image.framing import Framing
from hyperd.image.layers import PIPE_BYTES
from hyperd.image.stream import END_OF_ARCHIVE, Limits, Streamed
from hyperd.model.image import Digest

GZIP_LEVEL = 1  # ISA-L's own scale, 0 to 3
_GZIP_WBITS = 31  # deflate with a gzip frame that has neither a name nor a time
_CHECK_EVERY_BYTES = 32 << 20
_POLL_MS = 200


class Sink:
    """It owns the pipe. No lane may be at work when ``finish``, ``give_up`` or ``close`` is called."""

    def __init__(self, blob: Path, pipe: int, limits: Limits) -> None:
        self._pipe = pipe
        self._open = self._listening = True
        self._limits = limits
        self._framing = Framing()
        self._hashed, self._hashed_blob = hashlib.sha256(), hashlib.sha256()
        self._size = self._checked = self._blob_size = 0
        self._compressor: Any = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_WBITS)
        self._subject = blob
        os.set_blocking(pipe, False)
        with contextlib.suppress(OSError):  # beyond the user's share of pipe memory: slower, not wrong
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            with files.file_errors(blob):
                self._file = blob.open("xb", buffering=0)
            self._poll = select.poll()
            self._poll.register(pipe, select.POLLOUT)
        except BaseException:
            os.close(pipe)
            raise

    @property
    def blob(self) -> tuple[Digest, int]:
        return Digest(f"sha256:{self._hashed_blob.hexdigest()}"), self._blob_size

    def tell(self, wanted: Wanted, piece: bytes) -> None:
        """Raises InvalidError as soon as it is no tar, ExhaustedError."""
        self._hashed.update(piece)
        self._framing.feed(memoryview(piece))
        self._size += len(piece)
        if self._framing.complaint:
            raise _no_tar(self._framing.complaint)
        if self._size - self._checked >= _CHECK_EVERY_BYTES:
            self._checked = self._size
            self._require_room()
        self._hand_on(wanted, piece)

    def pack(self, _: Wanted, piece: bytes) -> None:
        """Raises ExhaustedError."""
        self._write(self._compressor.compress(piece))

    def sync(self) -> None:
        """What was packed so far is on the disk, so that little is left to wait for at the end."""
        with files.file_errors(self._subject):
            os.fdatasync(self._file.fileno())

    def finish(self, wanted: Wanted) -> Streamed:
        self._require_room()
        complaint = self._framing.finish() if self._size else "there are no bytes at all"
        if complaint:
            raise _no_tar(complaint)
        if self._framing.lacks_end:
            self._hand_on(wanted, END_OF_ARCHIVE)
        return self.give_up(wanted)

    def give_up(self, _: Wanted) -> Streamed:
        """In the middle, too: what was packed is in the blob, for whoever wants to know why."""
        self._write(self._compressor.flush())
        self.close()
        return Streamed(Digest(f"sha256:{self._hashed.hexdigest()}"), self._size)

    def close(self) -> None:
        """Idempotent."""
        if self._open:
            self._open = False
            self._file.close()
            os.close(self._pipe)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        with files.file_errors(self._subject):
            while view:
                written = self._file.write(view)
                self._hashed_blob.update(view[:written])
                self._blob_size += written
                view = view[written:]

    def _hand_on(self, wanted: Wanted, piece: bytes) -> None:
        """mkfs.erofs goes away at the end-of-archive mark; what follows is hashed nonetheless."""
        view = memoryview(piece)
        while self._listening and view:
            try:
                view = view[os.write(self._pipe, view) :]
            except BlockingIOError:
                wanted.require()
                self._poll.poll(_POLL_MS)
            except BrokenPipeError:
                self._listening = False

    def _require_room(self) -> None:
        if self._size > self._limits.max_bytes:
            raise ExhaustedError(f"the layer is larger than {self._limits.max_bytes >> 20} MiB")
        directory = self._subject.parent
        files.require_free(directory, 0, keep_bytes=self._limits.reserve_bytes, what="the layer")


def _no_tar(complaint: str) -> InvalidError:
    return InvalidError("the layer is not a tar archive", evidence=complaint)
