# SPDX-License-Identifier: Apache-2.0
"""How a volume comes to be: formatted, as a copy of a snapshot, from a stream, or as a server's disk.

What is made has its file, whole and synced, and neither its name nor its record yet. On failure nothing stays.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from hyperd.host.workers import Workers
from hyperd.model.volume import EXT4, SHARED, VolumeName, VolumeRequest
from hyperd.storage import remote, remote_rules
from hyperd.storage import volume_rules as rules
from hyperd.storage.doors import Doors
from hyperd.storage.formatting import format_disk
from hyperd.storage.volume_archive import Unpacker
from hyperd.storage.volume_files import DiskFiles
from hyperd.storage.volume_records import Row
from hyperd.storage.volume_snapshots import LocalVolumeSnapshots

log = logging.getLogger(__name__)


class VolumeMaker:
    def __init__(
        self,
        files: DiskFiles,
        size_bytes: int,
        snapshots: LocalVolumeSnapshots,
        doors: Doors,
        *,
        workers: Workers,
        copies: Workers,
    ) -> None:
        """``copies``: for what takes minutes."""
        self._files = files
        self._size_bytes = size_bytes
        self._snapshots = snapshots
        self._doors = doors
        self._workers = workers
        self._copies = copies

    async def _make_remote(self, request: VolumeRequest) -> Row:
        """Nothing of it is here but its record."""
        subject = f"volume {request.name}"
        server, is_to_format = remote_rules.parse(request.driver, request.options, subject)
        filesystem = request.filesystem or EXT4
        async with self._doors.passing(server) as export:
            row = Row(
                request.name,
                secrets.token_hex(16),
                await remote.size_of(export, str(server), filesystem=filesystem),
                filesystem,
                dict(request.labels),
                request.anonymous,
                datetime.now(UTC),
                request.driver,
                dict(request.options),
            )
            if not is_to_format:
                await remote.require_filesystem(export, filesystem, str(server))
            else:
                try:
                    await self._workers.call(self._files.make_empty, row.volume_id, row.size_bytes)
                    disk = self._files.new(row.volume_id)
                    await self._format(disk, row.filesystem, subject)
                    await remote.send(disk, export, row.size_bytes, str(server))
                finally:
                    await asyncio.shield(self._workers.call(self._files.remove, row.volume_id))
        log.info("volume known", extra={"volume": row.name, "server": str(server)})
        return row

    async def _format(self, disk: Path, filesystem: str, subject: str) -> None:
        await format_disk(disk, filesystem, self._files.root, self._workers, subject=subject)

    async def make(self, request: VolumeRequest) -> Row:
        """Its file, whole and on the disk; neither its name nor its record. On failure nothing stays."""
        if request.driver in remote_rules.DRIVERS:
            return await self._make_remote(request)
        source = await self._snapshots.get(request.snapshot) if request.snapshot else None
        size_bytes = request.size_bytes or (source.size_bytes if source else self._size_bytes)
        if source is not None:
            rules.require_filesystem(request, source.filesystem)
            size_bytes = rules.require_growth(request.name, source.size_bytes, size_bytes)
        row = Row(
            request.name,
            secrets.token_hex(16),
            rules.whole_blocks(size_bytes) if request.filesystem != SHARED else 0,
            source.filesystem if source else request.filesystem or EXT4,
            dict(request.labels),
            request.anonymous,
            datetime.now(UTC),
        )
        try:
            if row.filesystem == SHARED:
                await self._workers.call(self._files.make_shared, row.volume_id)
            elif source is None:
                await self._workers.call(self._files.make_empty, row.volume_id, row.size_bytes)
                disk = self._files.new(row.volume_id)
                await self._format(disk, row.filesystem, f"volume {row.name}")
            else:
                await self._copies.call_while_wanted(
                    self._files.make_copy, row.volume_id, source.path, row.size_bytes
                )
            await self._workers.call(self._files.sync, row.volume_id)
        except BaseException:
            await asyncio.shield(self._workers.call(self._files.remove, row.volume_id))
            raise
        log.info("volume made", extra={"volume": row.name, "mib": row.size_bytes >> 20})
        return row

    async def unpack(self, name: VolumeName, labels: dict[str, str], stream: AsyncIterator[bytes]) -> Row:
        """Raises InvalidError, ExhaustedError."""
        volume_id = secrets.token_hex(16)
        try:
            await self._workers.call(self._files.make_empty, volume_id, 0)
            unpacker = Unpacker(self._files.new(volume_id))
            async for data in stream:
                await self._copies.call(unpacker.feed, data)
            manifest = unpacker.finish()
            await self._copies.call(self._files.sync, volume_id)
        except BaseException:
            await asyncio.shield(self._workers.call(self._files.remove, volume_id))
            raise
        return Row(
            name,
            volume_id,
            manifest.size_bytes,
            manifest.filesystem,
            labels,
            anonymous=False,
            created_at=datetime.now(UTC),
        )
