# SPDX-License-Identifier: Apache-2.0
"""Copies of volumes' disks, each of one moment.

    root/ID.new/disk.img   in the making      root/ID/disk.img   a snapshot; its record names the ID
                                              root/ID/unrecorded   until that is committed, and from when it goes

Where the file system can share blocks a snapshot costs what changes afterwards; elsewhere its data is copied.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import ExistsError
from hyperd.host.database import Database
from hyperd.host.workers import Wanted, Workers
from hyperd.model.reference import resolve
from hyperd.model.volume import Consistency, Volume, VolumeSnapshot, VolumeSnapshotId
from hyperd.storage import volume_archive as archive
from hyperd.storage import volume_records as records
from hyperd.storage import volume_rules as rules
from hyperd.storage.volume_files import DiskFiles

log = logging.getLogger(__name__)


COPIES_AT_ONCE = 2


class LocalVolumeSnapshots:
    def __init__(self, root: Path, database: Database, workers: Workers, removals: Workers) -> None:
        """``workers``: for what is short; ``removals``: for what frees the blocks of large files."""
        self._files = DiskFiles(root)
        self._database = database
        self._workers = workers
        self._removals = removals
        self._copies = Workers("volume-stills", COPIES_AT_ONCE)  # apart: guests stand still meanwhile
        self._places = asyncio.Semaphore(COPIES_AT_ONCE)
        self._reading = Workers("volume-export", 1)

    def close(self) -> None:
        self._copies.close()
        self._reading.close()

    def place(self) -> AbstractAsyncContextManager[None]:
        """Within, a thread is free for a copy: whoever has a guest stand still for it has that first."""
        return self._places

    async def open(self) -> None:
        """After the volumes' own. What a killed hyperd had half made or half removed goes."""
        known = {str(found.snapshot_id) for found in await self._database.transaction(records.load_snapshots)}
        await self._workers.call(self._files.sweep, known)

    async def take(
        self,
        volume: Volume,
        name: str,
        settle: Callable[[], Awaitable[Consistency]],
        *,
        only_shared: bool = False,
    ) -> VolumeSnapshot:
        snapshot = VolumeSnapshot(
            VolumeSnapshotId(secrets.token_hex(32)),
            name,
            volume.name,
            volume.size_bytes,
            volume.filesystem,
            Consistency.DETACHED,
            datetime.now(UTC),
            Path(),
        )
        key = snapshot.snapshot_id
        try:
            await self.require_free(name)
            # Of the file: a killed hyperd may have made that larger, and not its record.
            size_bytes = await self._copy(key, volume, only_shared=only_shared)
            snapshot = replace(snapshot, size_bytes=size_bytes, consistency=await settle())
            await self._copies.call(self._files.sync, key)
            await self._database.transaction(
                lambda connection: self._record(connection, snapshot), lasting=True
            )
        finally:
            await asyncio.shield(self._settle(key))
        log.info("volume snapshot made", extra={"volume": volume.name, "id": key[:12]})
        return await self.get(key)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        volume: Volume,
        settle: Callable[[], Awaitable[Consistency]],
        *,
        only_shared: bool = False,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        key = secrets.token_hex(32)  # nobody's: a kill leaves what the next start sweeps away
        opened: list[int] = []
        try:
            try:
                size_bytes = await self._copy(key, volume, only_shared=only_shared)
                await settle()
                await self._workers.call_while_wanted(_open, self._files.new(key), opened)
            finally:
                await asyncio.shield(self._remove(key))
            manifest = archive.Manifest(size_bytes, volume.filesystem)
            yield self._pieces(archive.packed(opened[0], manifest))
        finally:
            for descriptor in opened:
                await asyncio.shield(self._reading.call(os.close, descriptor))

    async def _pieces(self, packed: Iterator[bytes]) -> AsyncIterator[bytes]:
        """One thread reads, so that none is in it when it is closed."""
        while (piece := await self._reading.call(next, packed, None)) is not None:
            if piece:
                yield piece

    async def _copy(self, key: str, volume: Volume, *, only_shared: bool) -> int:
        """How large it is. Ended when this returns, also for a caller who goes."""
        return await self._copies.call_while_wanted(
            self._files.make_copy, key, volume.path, only_shared=only_shared
        )

    async def list(self) -> list[VolumeSnapshot]:
        return [*await self._measured(await self._database.transaction(records.load_snapshots))]

    async def names(self) -> dict[VolumeSnapshotId, str]:
        found = await self._database.transaction(records.load_snapshots)
        return {item.snapshot_id: item.name for item in found}

    async def get(self, reference: str) -> VolumeSnapshot:
        found = await self._database.transaction(records.load_snapshots)
        names = {item.snapshot_id: item.name for item in found}
        key = resolve(reference, names, "snapshot", "`hyper snapshot ls` lists all")
        (chosen,) = await self._measured([item for item in found if item.snapshot_id == key])
        return chosen

    async def _measured(self, found: Sequence[VolumeSnapshot]) -> tuple[VolumeSnapshot, ...]:
        sizes = await self._workers.call(self._files.allocated, [item.snapshot_id for item in found])
        return tuple(
            replace(item, path=self._files.disk(item.snapshot_id), allocated_bytes=size)
            for item, size in zip(found, sizes, strict=True)
        )

    async def remove(self, reference: str) -> VolumeSnapshotId:
        key = resolve(reference, await self.names(), "snapshot", "`hyper snapshot ls` lists all")

        def work(connection: sqlite3.Connection) -> None:
            records.delete_snapshot(connection, key)
            self._files.unsettle(key)

        try:
            await self._database.transaction(work, lasting=True)
        finally:
            await asyncio.shield(self._settle(key))
        return key

    async def require_free(self, name: str) -> None:
        if not name:
            return
        rules.require_name(name, "snapshot")
        for item in await self._database.transaction(records.load_snapshots):
            if item.name == name:
                raise ExistsError(
                    f"the name is in use by snapshot {item.snapshot_id[:12]}",
                    subject=name,
                    hint=f"`hyper snapshot rm {name}` frees it, or give another --name",
                )

    async def _settle(self, key: VolumeSnapshotId) -> None:
        """What has a record stays, what has none goes."""

        def work(connection: sqlite3.Connection) -> bool:
            is_known = any(item.snapshot_id == key for item in records.load_snapshots(connection))
            if is_known:
                self._files.settle(key)
            return is_known

        if not await self._database.transaction(work):
            await self._remove(key)

    async def _remove(self, key: str) -> None:
        await self._workers.call(self._files.take_away, key)
        await self._removals.call(self._files.remove, key)

    def _record(self, connection: sqlite3.Connection, snapshot: VolumeSnapshot) -> None:
        """The name last of all: what a kill leaves without a record is a ``.new``, or says that it is unrecorded."""
        records.insert_snapshot(connection, snapshot)
        self._files.publish(snapshot.snapshot_id)


def _open(wanted: Wanted, disk: Path, opened: list[int]) -> None:
    """Known to who closes it even when nobody waits for it any more."""
    wanted.require()
    opened.append(os.open(disk, os.O_RDONLY | os.O_CLOEXEC))
