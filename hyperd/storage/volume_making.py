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
from hyperd.model.volume import NBD, SHARED, VolumeName, VolumeRequest
from hyperd.storage import remote
from hyperd.storage import volume_rules as rules
from hyperd.storage.formatting import format_ext4
from hyperd.storage.volume_archive import Unpacker
from hyperd.storage.volume_files import DiskFiles
from hyperd.storage.volume_records import Row
from hyperd.storage.volume_snapshots import LocalVolumeSnapshots

log = logging.getLogger(__name__)


class VolumeMaker:
    def __init__(
        self,
        files: DiskFiles,
        seed: Path,
        size_bytes: int,
        snapshots: LocalVolumeSnapshots,
        *,
        workers: Workers,
        copies: Workers,
    ) -> None:
        """``seed``: what is in a new one. ``copies``: for what takes minutes."""
        self._files = files
        self._seed = seed
        self._size_bytes = size_bytes
        self._snapshots = snapshots
        self._workers = workers
        self._copies = copies

    async def _make_remote(self, request: VolumeRequest) -> Row:
        """Nothing of it is here but its record."""
        subject = f"volume {request.name}"
        export, is_to_format = rules.parse_export(request.options, subject)
        row = Row(
            request.name,
            secrets.token_hex(16),
            await remote.size_of(export),
            request.filesystem or rules.FILESYSTEMS[0],
            dict(request.labels),
            request.anonymous,
            datetime.now(UTC),
            NBD,
            dict(request.options),
        )
        if not is_to_format:
            await remote.require_ext4(export)
        else:
            try:
                await self._workers.call(self._files.make_empty, row.volume_id, row.size_bytes)
                disk = self._files.new(row.volume_id)
                await format_ext4(disk, self._seed, subject=subject)
                await remote.send(disk, export)
            finally:
                await asyncio.shield(self._workers.call(self._files.remove, row.volume_id))
        log.info("volume known", extra={"volume": row.name, "server": str(export)})
        return row

    async def make(self, request: VolumeRequest) -> Row:
        """Its file, whole and on the disk; neither its name nor its record. On failure nothing stays."""
        if request.driver == NBD:
            return await self._make_remote(request)
        source = await self._snapshots.get(request.snapshot) if request.snapshot else None
        size_bytes = request.size_bytes or (source.size_bytes if source else self._size_bytes)
        if source is not None:
            size_bytes = rules.require_growth(request.name, source.size_bytes, size_bytes)
        row = Row(
            request.name,
            secrets.token_hex(16),
            rules.whole_blocks(size_bytes) if request.filesystem != SHARED else 0,
            source.filesystem if source else request.filesystem or rules.FILESYSTEMS[0],
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
                await format_ext4(disk, self._seed, subject=f"volume {row.name}")
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
