# SPDX-License-Identifier: Apache-2.0
"""Blobs that are here become layers, each once however many pulls wait for it.

    blob, diff_id --no file of that layer yet--> unpacked, hashed, piped into mkfs.erofs --> file, on record
                  --a file, of another blob----> unpacked, hashed -----------------------------> on record

No blob is believed to be the layer that an image's config says before it was unpacked: else an image would be
recorded that runs one thing and pushes another.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator
from weakref import WeakValueDictionary

from hyperd.errors import InvalidError, UnavailableError
from hyperd.host.database import Database
from hyperd.host.workers import Workers
from hyperd.image import records
from hyperd.image.content import Content
from hyperd.image.flights import Flights, Hub
from hyperd.image.gc import Garbage
from hyperd.image.layers import Layers
from hyperd.model.image import Digest


class Conversions:
    """``tasks`` owns those under way; ``readers`` are threads for what reads whole blobs."""

    def __init__(
        self,
        database: Database,
        readers: Workers,
        content: Content,
        layers: Layers,
        garbage: Garbage,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._database = database
        self._readers = readers
        self._content = content
        self._layers = layers
        self._garbage = garbage
        # By blob, too: one that is not what somebody says of it must not fail the pull of another one that is.
        self._flights: Flights[tuple[Digest, Digest], int, None] = Flights(tasks)
        self._turns: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()

    async def cancel(self) -> None:
        """All of it; returns when nothing is left."""
        await self._flights.cancel()

    async def has(self, diff_id: Digest, blob: Digest) -> bool:
        """Whether the layer is here, and the blob known to be it."""

        def find(connection: sqlite3.Connection) -> bool:
            return records.find_layer(connection, diff_id) is not None and (
                blob == diff_id or records.is_blob_of(connection, blob, diff_id)
            )

        return await self._database.transaction(find) and await self._has_file(diff_id)

    async def make(self, diff_id: Digest, blob: Digest) -> AsyncGenerator[int, None]:
        """The layer out of a blob that is whole; how much of it was read so far. To be closed (contextlib.aclosing).

        Raises what ``Layers.convert`` raises, UnavailableError when the blob was damaged here: it is removed.
        """

        async def work(hub: Hub[int]) -> None:
            # Its own pin: the pull that began this may go and leave it to another.
            async with self._garbage.pinned([blob, diff_id]), self._turn(diff_id):
                if not await self.has(diff_id, blob):
                    await self._make(diff_id, blob, hub)

        async with self._flights.board((diff_id, blob), work) as flight:
            async with contextlib.aclosing(flight.hub.listen()) as steps:
                async for done in steps:
                    yield done
            await flight.landed()

    def _turn(self, diff_id: Digest) -> asyncio.Lock:
        """Of two blobs of one layer the second is only held against it."""
        return self._turns.setdefault(diff_id, asyncio.Lock())

    async def _make(self, diff_id: Digest, blob: Digest, hub: Hub[int]) -> None:
        found = await self._database.transaction(lambda each: records.find_layer(each, diff_id))
        layer = found if await self._has_file(diff_id) else None
        path = self._content.path(blob)
        try:
            if layer is None:
                layer = await self._layers.convert(diff_id, path, lambda done: hub.publish("done", done))
            else:
                await self._layers.verify(diff_id, path, lambda done: hub.publish("done", done))
        except InvalidError as error:
            if await self._readers.call(self._content.is_intact, blob):
                raise
            await self._readers.call(self._content.remove, blob)
            raise UnavailableError(
                "a stored layer was damaged and is removed",
                subject=blob,
                hint="pull the image again to fetch the layer anew",
            ) from error
        made = layer
        await self._database.transaction(lambda connection: records.save_layer(connection, made, blob))

    async def _has_file(self, diff_id: Digest) -> bool:
        return await self._readers.call(self._layers.has, diff_id)
