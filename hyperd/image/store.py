# SPDX-License-Identifier: Apache-2.0
"""The image store: OCI images as disks for guests. docs/images.md draws the directory."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import HyperError
from hyperd.host import files
from hyperd.host.database import Database
from hyperd.host.workers import Workers
from hyperd.image import platform as platforms
from hyperd.image import records
from hyperd.image import reference as references
from hyperd.image import removal as removals
from hyperd.image.archive_write import Saving
from hyperd.image.base import NONE_IN_USE, LoadEvent, PullEvent
from hyperd.image.content import Content, IndexEntry
from hyperd.image.disks import EMPTY_LAYER, Disks
from hyperd.image.download import STALL_TIMEOUT_S, Downloads
from hyperd.image.flights import Flights, Hub
from hyperd.image.gc import Garbage
from hyperd.image.layer_intake import Intake
from hyperd.image.layers import LayerFile, Layers
from hyperd.image.loading import Loading
from hyperd.image.making import Making
from hyperd.image.pull import Parts, Pull
from hyperd.image.stream import Limits
from hyperd.image.transport import Remote, Skopeo
from hyperd.model.image import Digest, Image, ImageId, NewImage, Platform, Removal, RootDisk

NOBODY = (65534, 65534)
KEEP_RESTS_S = 7 * 86400.0
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """``mkfs_user``: (uid, gid) of mkfs.erofs; None is the daemon's own, for a daemon that is not root."""

    root: Path
    mkfs_erofs: str = "mkfs.erofs"  # 1.8 or later
    skopeo: str = "skopeo"
    authfile: Path | None = None
    mkfs_user: tuple[int, int] | None = NOBODY if os.geteuid() == 0 else None
    parallel_layers: int = 2
    max_layer_bytes: int = 64 << 30
    reserve_bytes: int = 256 << 20
    stall_timeout_s: float = STALL_TIMEOUT_S


class OciImageStore:
    """``tasks`` owns the pulls under way; ``open`` before use, ``close`` before the database closes."""

    def __init__(self, settings: ImageSettings, database: Database, tasks: asyncio.TaskGroup) -> None:
        root = settings.root
        self._root = root
        self._temporary = root / "tmp"
        self._database = database
        self._workers = Workers("image-files", 2)
        self._content = Content(root)
        self._skopeo = Skopeo(root, self._temporary, skopeo=settings.skopeo, authfile=settings.authfile)
        self._layers = Layers(
            root / "layers",
            self._temporary,
            mkfs=settings.mkfs_erofs,
            run_as=settings.mkfs_user,
            limits=Limits(settings.max_layer_bytes, settings.reserve_bytes),
            parallel=settings.parallel_layers,
        )
        self._disks = Disks(root / "disks", self._layers)
        self._garbage = Garbage(
            database, self._workers, self._content, self._layers, self._disks.root, frozenset({EMPTY_LAYER})
        )
        self._pulls: Flights[tuple[str, ...], PullEvent, Image] = Flights(tasks)
        self._conversions: Flights[Digest, int, LayerFile] = Flights(tasks)
        downloads = Downloads(
            self._skopeo,
            self._content,
            self._workers,
            reserve_bytes=settings.reserve_bytes,
            stall_timeout_s=settings.stall_timeout_s,
        )
        self._parts = Parts(
            database,
            self._workers,
            self._content,
            self._skopeo,
            downloads,
            self._layers,
            self._disks,
            self._garbage,
            self._conversions,
            self._temporary,
        )
        self._intake = Intake(
            self._layers, self._content, self._temporary, stall_timeout_s=settings.stall_timeout_s
        )
        self._making = Making(self._parts, self._intake)
        self._saving = Saving(self._parts)
        self._loading = Loading(
            self._parts, self._pulls, self._layers.limits, stall_timeout_s=settings.stall_timeout_s
        )
        self._indexing = asyncio.Lock()
        self._ready: dict[ImageId, RootDisk] = {}  # disks that were seen whole since the daemon started

    async def open(self) -> None:
        """Bring records and directories up to date; what a killed daemon left half-made goes."""
        await self._database.migrate(records.ROOM, records.MIGRATIONS)
        await self._workers.call(self._prepare)
        await self._garbage.sweep_older_than(KEEP_RESTS_S)
        await self._write_index()

    async def close(self) -> None:
        """Cancel what is under way and wait for its end."""
        await self._pulls.cancel()
        await self._conversions.cancel()
        self._workers.close()
        self._layers.close()
        self._intake.close()
        self._loading.close()

    async def pull(
        self, reference: str, *, platform: Platform | None = None, tls_insecure: bool = False
    ) -> AsyncGenerator[PullEvent, None]:
        """As ``ImageStore.pull``; a caller that may stop early closes the iterator (``contextlib.aclosing``)."""
        source = references.parse_source(reference)
        remote = Remote(source, platform or platforms.host_platform(), tls_insecure)

        async def work(hub: Hub[PullEvent]) -> Image:
            image = await Pull(self._parts, remote, hub).run()
            await self._write_index()
            return image

        key = (str(source), str(remote.platform), str(tls_insecure))
        async with self._pulls.board(key, work) as flight:
            async with contextlib.aclosing(flight.hub.listen()) as events:
                async for event in events:
                    yield event
            yield await flight.landed()

    async def get(self, reference: str) -> Image:
        return await self._database.transaction(
            lambda connection: records.get_image(connection, records.find_id(connection, reference))
        )

    async def list_images(self) -> list[Image]:
        images = await self._database.transaction(
            lambda connection: [records.get_image(connection, each) for each in records.list_ids(connection)]
        )
        return sorted(images, key=lambda image: image.created_at or _EPOCH, reverse=True)

    async def remove(
        self, reference: str, *, force: bool = False, in_use: Mapping[ImageId, str] = NONE_IN_USE
    ) -> Removal:
        removed = await self._database.transaction(
            lambda connection: removals.remove(connection, reference, force=force, in_use=in_use)
        )
        if removed.candidates:
            self._ready.pop(removed.image_id, None)
            await self._garbage.sweep(removed.candidates)
        await self._write_index()
        return removed.removal

    async def root_disk(self, image_id: ImageId) -> RootDisk:
        ready = self._ready.get(image_id)
        if ready is not None:
            return ready
        image = await self._database.transaction(lambda connection: records.get_image(connection, image_id))
        async with self._garbage.pinned([Digest(image_id), *image.diff_ids]):
            disk = await self._workers.call(self._disks.make, image_id, image.diff_ids)
        self._ready[image_id] = disk
        return disk

    def _prepare(self) -> None:
        with files.file_errors(self._root):
            files.make_directory(self._root, 0o711)
            shutil.rmtree(self._temporary, ignore_errors=True)
            files.make_directory(self._temporary, 0o700)
            files.make_directory(self._layers.root, 0o711)
            files.make_directory(self._disks.root, 0o711)
            self._content.open()
            self._skopeo.open()

    async def _write_index(self) -> None:
        """For other tools only: a failure costs them, not the image."""
        async with self._indexing:
            entries = await self._database.transaction(records.index_entries)
            with contextlib.suppress(HyperError):
                await self._workers.call(self._write_index_file, entries)

    def _write_index_file(self, entries: list[IndexEntry]) -> None:
        with files.file_errors(self._root):
            self._content.write_index(entries)

    async def commit(self, base: ImageId, layer: AsyncIterator[bytes], new: NewImage) -> Image:
        image = await self._making.commit(base, layer, new)
        await self._write_index()
        return image

    async def import_root(self, data: AsyncIterator[bytes], new: NewImage) -> Image:
        commented = replace(new, message=new.message or "Imported from -")
        image = await self._making.make_on_nothing(self._loading.unpacker.plain(data), commented)
        await self._write_index()
        return image

    def save(self, images: Sequence[str]) -> AsyncGenerator[bytes, None]:
        return self._saving.save(images)

    async def load(
        self, data: AsyncIterator[bytes], *, platform: Platform | None = None
    ) -> AsyncGenerator[LoadEvent, None]:
        try:
            async with contextlib.aclosing(self._loading.load(data, platform)) as events:
                async for event in events:
                    yield event
        finally:
            await self._write_index()
