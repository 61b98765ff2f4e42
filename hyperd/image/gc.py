# SPDX-License-Identifier: Apache-2.0
"""Deleting what no image needs, never what somebody is about to use.

    referenced --removed, in one transaction--> marked --sweep--> deleted --> forgotten
        ^                                         |  pinned: waits until the last pin goes
        +------------ saved again ----------------+

Whoever works with digests (a pull, a push, a commit, the making of a disk) pins them before looking what is there; a
sweep holds the same lock from reading the records to the last unlink. Marks are records: a kill anywhere leaves what
the next start sweeps. Pins and marks are of digests, whatever is called so; what an image needs is one of these: an
uncompressed layer's blob may go while the layer, which is called the same, stays.
"""

import asyncio
import contextlib
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TypeVar

from hyperd.errors import HyperError
from hyperd.host import files
from hyperd.host.database import Database
from hyperd.host.workers import Wanted, Workers
from hyperd.image import records
from hyperd.image.content import Content, digests_older_than, hex_of
from hyperd.image.layers import SUFFIX, Layers
from hyperd.image.records import Item, Kind
from hyperd.image.usage import allocated_bytes
from hyperd.model.image import Digest

R = TypeVar("R")


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

    @contextlib.asynccontextmanager
    async def held(
        self, look: Callable[[sqlite3.Connection], tuple[R, AbstractSet[Digest]]]
    ) -> AsyncIterator[R]:
        """What ``look`` finds in the records; the digests that it tells beside it are pinned.

        It is asked again under the pins, for it may be otherwise by then, and once more when the pins are too few.
        """
        _, digests = await self._database.transaction(look)
        while True:
            async with self.pinned(digests):
                found, now = await self._database.transaction(look)
                if now <= digests:
                    yield found
                    return
            digests = now

    async def sweep(self, candidates: Iterable[Digest] = ()) -> int:
        """Delete what is marked, and those of the candidates that nobody needs. Returns the bytes that this freed."""
        chosen = [Item(kind, digest) for digest in candidates for kind in Kind]
        return await self._sweep(lambda: chosen)

    async def sweep_older_than(self, age_s: float) -> int:
        """Delete whatever has been unreferenced on disk for that long: rests of pulls that nobody continued."""

        def find() -> list[Item]:
            found = {
                Kind.BLOB: self._content.list_older_than(age_s),
                Kind.LAYER: digests_older_than(self._layers.root, SUFFIX, age_s),
                Kind.DISK: digests_older_than(self._disks, "", age_s),
            }
            return [Item(kind, digest) for kind, digests in found.items() for digest in digests]

        return await self._sweep(find)

    async def _sweep(self, find: Callable[[], list[Item]]) -> int:
        freed = 0
        async with self._lock:
            while True:
                freed += await self._sweep_once(await self._workers.call(find))
                if self._put_off <= set(self._pins):
                    return freed  # else a pin went while this was going on

    async def _sweep_once(self, candidates: list[Item]) -> int:
        pinned = set(self._pins) | self._always

        def take(connection: sqlite3.Connection) -> records.Garbage:
            return records.take_garbage(connection, candidates, pinned)

        garbage = await self._database.transaction(take)
        self._put_off = garbage.put_off - self._always
        # To its end even for a caller that is cancelled: nobody may pin what is just being deleted.
        freed = await self._workers.call_while_wanted(self._delete, garbage.doomed)
        await self._database.transaction(
            lambda connection: records.forget_garbage(connection, garbage.doomed)
        )
        return freed

    def _delete(self, wanted: Wanted, doomed: Iterable[Item]) -> int:
        freed = 0
        with files.file_errors(self._disks):
            for item in doomed:
                wanted.require()
                path = self._path(item)
                freed += allocated_bytes(path)
                if item.kind is Kind.DISK:
                    files.remove_tree(path)
                else:
                    path.unlink(missing_ok=True)
        return freed

    def _path(self, item: Item) -> Path:
        if item.kind is Kind.DISK:
            return self._disks / hex_of(item.digest)
        return (self._content if item.kind is Kind.BLOB else self._layers).path(item.digest)
