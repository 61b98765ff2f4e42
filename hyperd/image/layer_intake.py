# SPDX-License-Identifier: Apache-2.0
"""A layer made here: a tar that streams in once and leaves as a blob and as a disk.

    tar --> framing, SHA-256 --+--> gzip --> SHA-256 --> tmp/intake-X.gz
                               +--> mkfs.erofs --------> tmp/intake-X.erofs

It comes from a guest or a caller, both strangers: bounded, never unpacked; whoever hands it on watches its pace. The
same tar makes the same blob, however it was cut into chunks: it is compressed in pieces of one size.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import select
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isal import isal_zlib

from hyperd.errors import ExhaustedError, InvalidError
from hyperd.host import files, process
from hyperd.host.workers import Wanted, Workers
from hyperd.image.content import Content
from hyperd.image.disk import filesystem_uuid
from hyperd.image.examine import fault_in
from hyperd.image.framing import Framing
from hyperd.image.layers import (
    CONVERT_TIMEOUT_S,
    ENVIRONMENT,
    PIPE_BYTES,
    LayerFile,
    Layers,
    end_of,
    judged,
    one_error,
)
from hyperd.image.stream import END_OF_ARCHIVE, Limits, Streamed
from hyperd.image.superblock import stamp
from hyperd.image.waiting import in_time
from hyperd.model.image import Digest

PIECE_BYTES = 1 << 20
GZIP_LEVEL = 1  # ISA-L's own scale, 0 to 3
THREADS = 4
MAX_AT_ONCE = (
    64  # a place is held while the sender is waited for: few would let slow ones keep out all others
)
INTAKE_TIMEOUT_S = 6 * 3600.0  # the end of patience with a sender that drips
_GZIP_WBITS = 31  # deflate with a gzip frame that has neither a name nor a time
_CHECK_EVERY_BYTES = 32 << 20
_POLL_MS = 200
_UNKNOWN = Digest("sha256:" + "0" * 64)


@dataclass(frozen=True, slots=True)
class Draft:
    """A whole layer under temporary names."""

    diff_id: Digest
    size_bytes: int  # of the tar
    blob_digest: Digest
    blob_bytes: int
    blob: Path
    disk: Path


class Intake:
    def __init__(self, layers: Layers, content: Content, temporary: Path) -> None:
        self._layers = layers
        self._content = content
        self._temporary = temporary
        self._under_way = 0
        self._threads = Workers("image-intake", THREADS)

    def close(self) -> None:
        self._threads.close()

    @contextlib.asynccontextmanager
    async def taken(self, data: AsyncIterator[bytes]) -> AsyncIterator[Draft]:
        """Read ``data``, which is ``paced``, to its end; at the end of the block what was not kept is gone.

        Raises InvalidError (no tar), ExhaustedError (no space, too many at once), TimeoutExpiredError,
        UnavailableError (no mkfs.erofs), and what ``data`` raises.
        """
        if self._under_way >= MAX_AT_ONCE:
            raise ExhaustedError(
                f"{MAX_AT_ONCE} layers are coming in already", hint="try again when some have"
            )
        stem = f"intake-{secrets.token_hex(8)}"
        blob, disk = self._temporary / f"{stem}.gz", self._temporary / f"{stem}.erofs"
        self._under_way += 1
        try:
            yield await self._take(data, blob, disk)
        finally:
            self._under_way -= 1
            await self._threads.call_to_the_end(_remove, blob, disk)

    async def keep(self, draft: Draft) -> LayerFile:
        """Give both files their names; whoever calls has pinned them."""
        return await self._threads.call_while_wanted(self._publish, draft)

    async def _take(self, data: AsyncIterator[bytes], blob: Path, disk: Path) -> Draft:
        async with contextlib.AsyncExitStack() as stack:
            with files.file_errors(disk):
                target = os.open(disk, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, target)
                if self._layers.run_as is not None:
                    os.fchown(target, *self._layers.run_as)
                reading, writing = os.pipe()
            try:
                sink = Sink(blob, writing, self._layers.limits)
                stack.callback(sink.close)
                argv = self._layers.filter_argv(_UNKNOWN, target)
                child = await stack.enter_async_context(
                    process.spawn(argv, stdin=reading, pass_fds=(target,), env=ENVIRONMENT)
                )
            finally:
                os.close(reading)
            async with one_error(), asyncio.TaskGroup() as tasks:
                ending = tasks.create_task(end_of(child))
                streamed = await in_time(self._feed(data, sink, ending), INTAKE_TIMEOUT_S)
                returncode, said = await in_time(ending, CONVERT_TIMEOUT_S)
            fault = "" if returncode == 0 else await self._threads.call(fault_in, blob)
            judged(streamed.diff_id, streamed, returncode, said, fault)
            # To its end: a descriptor that is closed meanwhile may be somebody else's file by then.
            await self._threads.call_to_the_end(stamp, target, filesystem_uuid(streamed.diff_id))
            return Draft(streamed.diff_id, streamed.size_bytes, *sink.blob, blob, disk)

    async def _feed(
        self, data: AsyncIterator[bytes], sink: "Sink", ending: "asyncio.Task[tuple[int, str]]"
    ) -> Streamed:
        """To the end of the data, or of a mkfs.erofs that has given up."""
        async with contextlib.aclosing(_pieces(data)) as pieces:
            async for piece in pieces:
                await self._threads.call_while_wanted(sink.feed, piece)
                if ending.done() and ending.result()[0] != 0:
                    return await self._threads.call_while_wanted(sink.give_up)
        return await self._threads.call_while_wanted(sink.finish)

    def _publish(self, _: Wanted, draft: Draft) -> LayerFile:
        blob = self._content.path(draft.blob_digest)
        with files.file_errors(blob):
            if not self._content.has(draft.blob_digest):
                draft.blob.chmod(0o644)
                files.publish(draft.blob, blob)
        streamed = Streamed(draft.diff_id, draft.size_bytes)
        return self._layers.publish(draft.diff_id, streamed, draft.disk)


class Sink:
    """Where the pieces go; it owns the pipe. Blocks, but for ``close``."""

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

    def feed(self, wanted: Wanted, piece: bytes) -> None:
        """Raises InvalidError as soon as it is no tar, ExhaustedError."""
        self._hashed.update(piece)
        self._framing.feed(memoryview(piece))
        self._size += len(piece)
        if self._framing.complaint:
            raise _no_tar(self._framing.complaint)
        if self._size - self._checked >= _CHECK_EVERY_BYTES:
            self._checked = self._size
            self._require_room()
        self._write(self._compressor.compress(piece))
        self._hand_on(wanted, piece)

    def finish(self, wanted: Wanted) -> Streamed:
        self._require_room()
        complaint = self._framing.finish() if self._size else "there are no bytes at all"
        if complaint:
            raise _no_tar(complaint)
        if self._framing.lacks_end:
            self._hand_on(wanted, END_OF_ARCHIVE)
        return self.give_up(wanted)

    def give_up(self, _: Wanted) -> Streamed:
        """In the middle, too: what was fed is in the blob, for whoever wants to know why."""
        self._write(self._compressor.flush())
        self.close()
        return Streamed(Digest(f"sha256:{self._hashed.hexdigest()}"), self._size)

    def close(self) -> None:
        """Idempotent; no ``feed`` may be under way."""
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


async def _pieces(data: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """All of one size but the last; ``data`` is closed with it."""
    kept = bytearray()
    try:
        async for chunk in data:
            kept += chunk
            while len(kept) >= PIECE_BYTES:
                yield bytes(kept[:PIECE_BYTES])
                del kept[:PIECE_BYTES]
    finally:
        if isinstance(data, AsyncGenerator):
            await data.aclose()
    if kept:
        yield bytes(kept)


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _no_tar(complaint: str) -> InvalidError:
    return InvalidError("the layer is not a tar archive", evidence=complaint)
