# SPDX-License-Identifier: Apache-2.0
"""What a daemon's life stands on here: turns, and a database, threads, skopeo and mkfs.erofs that wait for theirs.

One waits before and after every step (a transaction, a call in a thread, a blob that arrives).
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from hyperd.host.workers import NotWantedError, Wanted
from hyperd.image.admission import Admissions
from hyperd.image.content import Content, digest_of, hex_of
from hyperd.image.disk import ALIGNMENT
from hyperd.image.layer_intake import Draft
from hyperd.image.layers import SUFFIX, LayerFile
from hyperd.image.manifest import Manifest
from hyperd.image.transport import Remote
from hyperd.model.image import Admission, Digest, Platform
from tests import images
from tests.images import file

A, B, C = [file("a", "1")], [file("b", "2")], [file("c", "3")]
BUILT = {
    "example.org/x:1": images.build([A, B]),
    "example.org/x:2": images.build([A, C]),
    "example.org/y:1": images.build([A, B], compression="zstd"),  # the same image in other blobs
    "example.org/y:2": images.build(
        [A, B], compression="none"
    ),  # and in blobs that are called like their layers
    "example.org/z:1": images.build([C], compression="none"),
    "example.org/z:2": images.build([]),  # on a layer that is always kept
}
NAMES = sorted(BUILT)
PLATFORM = Platform("linux", "amd64")
MAX_STEPS = 5000  # a life of five jobs takes some 200
_MAX_ROUNDS = 1000


class StuckError(AssertionError):
    """Somebody waits for what will never happen, or never stops."""


class Turns:
    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []
        self.dead = False

    async def pause(self) -> None:
        if self.dead:
            raise asyncio.CancelledError
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            await turn
        finally:
            if turn in self.waiting:
                self.waiting.remove(turn)
        if self.dead:
            raise asyncio.CancelledError

    def give(self, index: int) -> None:
        turn = self.waiting.pop(index)
        if not turn.done():
            turn.set_result(None)

    def kill(self) -> None:
        """All of it, without a last word."""
        self.dead = True
        for turn in self.waiting:
            turn.cancel()


class StepDatabase:
    def __init__(self, connection: sqlite3.Connection, turns: Turns) -> None:
        self._connection, self._turns = connection, turns

    async def transaction(self, work: Any, *, lasting: bool = False) -> Any:
        del lasting
        await self._turns.pause()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        await self._turns.pause()
        return result


class Interrupted(Wanted):
    """Killed between two unlinks."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps = steps

    def require(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise NotWantedError


class StepWorkers:
    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.unlinks: Callable[[], int] = lambda: MAX_STEPS  # until it is killed

    async def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        await self._turns.pause()
        result = function(*args, **kwargs)
        await self._turns.pause()
        return result

    async def call_while_wanted(self, function: Any, *args: Any) -> Any:
        """Waited for to its end, as the real one: cancelled before it, or after it."""
        await self._turns.pause()
        try:
            return function(Interrupted(self.unlinks()), *args)
        except NotWantedError:
            raise asyncio.CancelledError from None


class FakeRegistry:
    """What skopeo would bring: blobs, one after the other."""

    def __init__(self, content: Content, turns: Turns) -> None:
        self._content, self._turns = content, turns

    async def raw_manifest(self, remote: Remote) -> bytes:
        await self._turns.pause()
        return meant(remote).manifest

    async def raw_config(self, remote: Remote) -> bytes:
        await self._turns.pause()
        return meant(remote).config

    async def look_for(self, arrivals: Any) -> None:
        await self._turns.pause()
        for layer in arrivals.missing():
            if self._content.has(layer.digest):
                arrivals.whole[layer.digest].set()

    async def fetch(self, remote: Remote, arrivals: Any, layout: Path, progress: Any) -> None:
        del layout, progress
        for layer in arrivals.missing():
            await self._turns.pause()
            put(self._content.path(layer.digest), meant(remote).blobs[layer.digest])
            arrivals.whole[layer.digest].set()

    async def send(self, remote: Remote, digest: Digest, manifest: Manifest, tell: Any) -> int:
        del remote, tell
        for each in (manifest.config, *manifest.layers):
            await self._turns.pause()
            assert self._content.has(digest), "a manifest went while it was pushed"
            assert self._content.has(each.digest), "a blob went while it was pushed"
        return 1


class FakeLayers:
    def __init__(self, root: Path, turns: Turns) -> None:
        self.root, self._turns = root, turns

    def path(self, diff_id: Digest) -> Path:
        return self.root / f"{hex_of(diff_id)}{SUFFIX}"

    def has(self, diff_id: Digest) -> bool:
        return self.path(diff_id).is_file()

    def make(self, diff_id: Digest) -> LayerFile:
        put(self.path(diff_id), b"")
        os.truncate(self.path(diff_id), ALIGNMENT)
        return LayerFile(diff_id, 1, 1)

    async def convert(self, diff_id: Digest, blob: Path, progress: Any) -> LayerFile:
        del progress
        assert blob.is_file(), "a blob went before it was converted"
        await self._turns.pause()
        assert blob.is_file(), "a blob went while it was converted"
        return self.make(diff_id)

    async def verify(self, diff_id: Digest, blob: Path, progress: Any) -> None:
        del diff_id, progress
        await self._turns.pause()
        assert blob.is_file(), "a blob went while it was read"


class FakeIntake:
    """Where a commit's layer comes in."""

    def __init__(self, workers: StepWorkers, content: Content, layers: FakeLayers) -> None:
        self._workers, self._content, self._layers = workers, content, layers
        self._tar = b""

    @contextlib.asynccontextmanager
    async def taken(self, data: AsyncIterator[bytes]) -> AsyncIterator[Draft]:
        self._tar = b"".join([chunk async for chunk in data])
        digest = digest_of(self._tar)
        await self._workers.call(len, self._tar)
        yield Draft(digest, 1, digest, len(self._tar), Path(), Path())

    async def keep(self, draft: Draft) -> LayerFile:
        def publish(_: Wanted) -> LayerFile:
            if not self._content.has(draft.blob_digest):
                put(self._content.path(draft.blob_digest), self._tar)
            return self._layers.make(draft.diff_id)

        return cast("LayerFile", await self._workers.call_while_wanted(publish))


def meant(remote: Remote) -> images.BuiltImage:
    return BUILT[remote.source.path or str(remote.source)]


def put(path: Path, data: bytes) -> None:
    temporary = path.with_name(".tmp")
    temporary.write_bytes(data)
    temporary.rename(path)


class FakeAdmissions(Admissions):
    """Lets everything in, after a while."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    async def admit(self, remote: Remote, manifest: Digest, subject: str) -> Admission:
        await self._turns.pause()
        return Admission(subject, manifest, str(remote.source), (), datetime.fromtimestamp(0, UTC))


async def settle() -> None:
    """Until everyone waits for a turn: nothing else is ready to run."""
    loop: Any = asyncio.get_running_loop()
    await asyncio.sleep(0)
    for _ in range(_MAX_ROUNDS):
        if not loop._ready:
            return
        await asyncio.sleep(0)
    raise StuckError("somebody goes on and on without a step")
