# SPDX-License-Identifier: Apache-2.0
"""Deleting what no image needs, never what somebody is about to use.

    referenced --removed, in one transaction--> marked --sweep--> deleted --> forgotten
        ^                                         |  pinned: waits until the last pin goes
        +------------ saved again ----------------+

Whoever works with digests (a pull, a push, a commit, the making of a disk) pins them before looking what is there; a
sweep holds the same lock from reading the records to the last unlink. Marks are records: a kill anywhere leaves what
the next start sweeps. Blobs, layers and disks are all named by digests, so one set says what must stay.
"""

import asyncio
import contextlib
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from hyperd.errors import HyperError
from hyperd.host import files
from hyperd.host.database import Database
from hyperd.host.workers import Wanted, Workers
from hyperd.image import records
from hyperd.image.content import Content, digests_older_than, hex_of
from hyperd.image.layers import SUFFIX, Layers
from hyperd.image.usage import allocated_bytes
from hyperd.model.image import Digest


class Garbage:
    """``always`` is kept whatever the records say."""

    def __init__(
        self,
        database: Database,
        workers: Workers,
        content: Content,
        layers: Layers,
        disks: Path,
        always: frozenset[Digest],
    ) -> None:
        self._database = database
        self._workers = workers
        self._content = content
        self._layers = layers
        self._disks = disks
        self._always = always
        self._lock = asyncio.Lock()
        self._pins: Counter[Digest] = Counter()
        self._put_off: frozenset[Digest] = frozenset()  # marked, but pinned when it was seen

    @contextlib.asynccontextmanager
    async def pinned(self, digests: Iterable[Digest]) -> AsyncIterator[None]:
        """None of these is deleted meanwhile; what was to be goes afterwards."""
        mine = set(digests)
        async with self._lock:
            self._pins.update(mine)
        try:
            yield
        finally:
            self._pins.subtract(mine)
            self._pins += Counter()  # drop zeros
            if self._put_off & mine - set(self._pins):
                with contextlib.suppress(HyperError):  # it stays marked, and is not this caller's concern
                    await self.sweep()

    async def sweep(self, candidates: Iterable[Digest] = ()) -> int:
        """Delete what is marked, and those of the candidates that nobody needs. Returns the bytes that this freed."""
        chosen = list(candidates)
        return await self._sweep(lambda: chosen)

    async def sweep_older_than(self, age_s: float) -> int:
        """Delete whatever has been unreferenced on disk for that long: rests of pulls that nobody continued."""

        def find() -> list[Digest]:
            return [
                *self._content.list_older_than(age_s),
                *digests_older_than(self._layers.root, SUFFIX, age_s),
                *digests_older_than(self._disks, "", age_s),
            ]

        return await self._sweep(find)

    async def _sweep(self, find: Callable[[], list[Digest]]) -> int:
        freed = 0
        async with self._lock:
            while True:
                freed += await self._sweep_once(await self._workers.call(find))
                if self._put_off <= set(self._pins):
                    return freed  # else a pin went while this was going on

    async def _sweep_once(self, candidates: list[Digest]) -> int:
        pinned = set(self._pins) | self._always

        def take(connection: sqlite3.Connection) -> records.Garbage:
            return records.take_garbage(connection, candidates, pinned)

        garbage = await self._database.transaction(take)
        self._put_off = garbage.put_off - self._always
        # To its end even for a caller that is cancelled: nobody may pin what is just being deleted.
        freed = await self._workers.call_while_wanted(self._delete, sorted(garbage.doomed))
        await self._database.transaction(
            lambda connection: records.forget_garbage(connection, garbage.doomed)
        )
        return freed

    def _delete(self, wanted: Wanted, doomed: Iterable[Digest]) -> int:
        freed = 0
        with files.file_errors(self._disks):
            for digest in doomed:
                wanted.require()
                disk = self._disks / hex_of(digest)
                layer, blob = self._layers.path(digest), self._content.path(digest)
                freed += sum(allocated_bytes(path) for path in (disk, layer, blob))
                files.remove_tree(disk)
                layer.unlink(missing_ok=True)
                self._content.remove(digest)
        return freed
