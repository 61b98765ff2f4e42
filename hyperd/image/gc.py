# SPDX-License-Identifier: Apache-2.0
"""Deleting what no image needs, never what a pull is about to use.

A pull pins its digests before it looks what is there; a sweep holds the same lock from reading the records to the
last unlink. Blobs, layers and disks are all named by digests, so one set says what must stay.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from hyperd.host import files
from hyperd.host.database import Database
from hyperd.host.workers import Workers
from hyperd.image import records
from hyperd.image.content import Content, digests_older_than, hex_of
from hyperd.image.layers import SUFFIX, Layers
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

    @contextlib.asynccontextmanager
    async def pinned(self, digests: Iterable[Digest]) -> AsyncIterator[None]:
        mine = set(digests)
        async with self._lock:
            self._pins.update(mine)
        try:
            yield
        finally:
            self._pins.subtract(mine)
            self._pins += Counter()  # drop zeros

    async def sweep(self, candidates: Iterable[Digest]) -> None:
        """Delete those of the candidates that neither an image nor a pull needs."""
        await self._sweep(lambda: list(candidates))

    async def sweep_older_than(self, age_s: float) -> None:
        """Delete whatever has been unreferenced on disk for that long: rests of pulls that nobody continued."""

        def find() -> list[Digest]:
            return [
                *self._content.list_older_than(age_s),
                *digests_older_than(self._layers.root, SUFFIX, age_s),
                *digests_older_than(self._disks, "", age_s),
            ]

        await self._sweep(find)

    async def _sweep(self, find: Callable[[], list[Digest]]) -> None:
        async with self._lock:
            referenced = await self._database.transaction(records.referenced_digests)
            kept = referenced | set(self._pins) | self._always
            found = await self._workers.call(find)
            doomed = [digest for digest in found if digest not in kept]
            await self._database.transaction(lambda connection: records.forget_layers(connection, doomed))
            await self._workers.call(self._delete, doomed)

    def _delete(self, doomed: Iterable[Digest]) -> None:
        with files.file_errors(self._disks):
            for digest in doomed:
                files.remove_tree(self._disks / hex_of(digest))
                self._layers.path(digest).unlink(missing_ok=True)
                self._content.remove(digest)
