# SPDX-License-Identifier: Apache-2.0
"""A layer made here: a tar that streams in once and leaves as a blob and as a disk.

    tar --+--> gzip, SHA-256 -------------------> tmp/intake-X.gz        one thread
          +--> SHA-256, framing --> mkfs.erofs --> tmp/intake-X.erofs     another
          and what both have written goes to the disk meanwhile           a third, now and then

It comes from a guest or a caller, both strangers: bounded, never unpacked; whoever hands it on watches its pace. The
same tar makes the same blob, however it was cut into chunks: it is compressed in pieces of one size.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from hyperd.errors import ExhaustedError
from hyperd.host import files, process
from hyperd.host.workers import Wanted, Workers
from hyperd.image.content import Content
from hyperd.image.disk import filesystem_uuid
from hyperd.image.examine import fault_in
from hyperd.image.layer_sink import Sink
from hyperd.image.layers import CONVERT_TIMEOUT_S, ENVIRONMENT, LayerFile, Layers, end_of, judged, one_error
from hyperd.image.stream import Streamed
from hyperd.image.superblock import stamp
from hyperd.image.waiting import in_time
from hyperd.model.image import Digest

PIECE_BYTES = 1 << 20
AHEAD = 2  # pieces that wait for each lane
SYNC_EVERY_BYTES = 64 << 20
THREADS = 8
# A place is held while the sender is waited for: few would let slow ones keep out all others.
MAX_AT_ONCE = 64
INTAKE_TIMEOUT_S = 6 * 3600.0  # the end of patience with a sender that drips
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
                streamed = await in_time(self._feed(data, sink, target, ending), INTAKE_TIMEOUT_S)
                returncode, said = await in_time(ending, CONVERT_TIMEOUT_S)
            fault = "" if returncode == 0 else await self._threads.call(fault_in, blob)
            judged(streamed.diff_id, streamed, returncode, said, fault)
            # To its end: a descriptor that is closed meanwhile may be somebody else's file by then.
            await self._threads.call_to_the_end(stamp, target, filesystem_uuid(streamed.diff_id))
            return Draft(streamed.diff_id, streamed.size_bytes, *sink.blob, blob, disk)

    async def _feed(
        self, data: AsyncIterator[bytes], sink: Sink, target: int, ending: "asyncio.Task[tuple[int, str]]"
    ) -> Streamed:
        """To the end of the data, or of a mkfs.erofs that has given up."""
        lanes = {work: asyncio.Queue[bytes](AHEAD) for work in (sink.tell, sink.pack)}
        has_failed, unsynced = False, 0
        async with one_error(), asyncio.TaskGroup() as tasks:
            for work, lane in lanes.items():
                tasks.create_task(self._work(lane, work))
            syncing: asyncio.Task[None] | None = None
            async with contextlib.aclosing(_pieces(data)) as pieces:
                async for piece in pieces:
                    for lane in lanes.values():
                        await lane.put(piece)
                    unsynced += len(piece)
                    if unsynced >= SYNC_EVERY_BYTES and (syncing is None or syncing.done()):
                        unsynced, syncing = 0, tasks.create_task(self._sync(sink, target))
                    has_failed = ending.done() and ending.result()[0] != 0
                    if has_failed:
                        break
            for lane in lanes.values():
                await lane.put(b"")
        return await self._threads.call_while_wanted(sink.give_up if has_failed else sink.finish)

    async def _work(self, lane: asyncio.Queue[bytes], work: Callable[[Wanted, bytes], None]) -> None:
        while piece := await lane.get():
            await self._threads.call_while_wanted(work, piece)

    async def _sync(self, sink: Sink, target: int) -> None:
        await self._threads.call_to_the_end(sink.sync)
        await self._threads.call_to_the_end(_sync_disk, target)

    def _publish(self, _: Wanted, draft: Draft) -> LayerFile:
        blob = self._content.path(draft.blob_digest)
        with files.file_errors(blob):
            if not self._content.has(draft.blob_digest):
                draft.blob.chmod(0o644)
                files.publish(draft.blob, blob)
        streamed = Streamed(draft.diff_id, draft.size_bytes)
        return self._layers.publish(draft.diff_id, streamed, draft.disk)


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


def _sync_disk(descriptor: int) -> None:
    with files.file_errors("the layer's disk"):
        os.fdatasync(descriptor)


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
