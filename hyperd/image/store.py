# SPDX-License-Identifier: Apache-2.0
"""The image store: OCI images as disks for guests. docs/images.md draws the directory."""

import asyncio
import contextlib
import logging
import shutil
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from hyperd.errors import HyperError
from hyperd.host import files
from hyperd.host.database import Database
from hyperd.host.workers import Workers
from hyperd.image import pruning, records
from hyperd.image import reference as references
from hyperd.image import removal as removals
from hyperd.image import usage as usages
from hyperd.image.admission import Admissions
from hyperd.image.archive_write import Saving
from hyperd.image.base import NONE_IN_USE, LoadEvent
from hyperd.image.budget import Budget
from hyperd.image.building import Building, ReadLayer
from hyperd.image.content import Content, IndexEntry
from hyperd.image.conversions import Conversions
from hyperd.image.disks import EMPTY_LAYER, Disks
from hyperd.image.download import Downloads
from hyperd.image.exchange import Exchange
from hyperd.image.gc import Garbage
from hyperd.image.layer_intake import Intake
from hyperd.image.layers import SUFFIX, Layers
from hyperd.image.loading import Loading
from hyperd.image.logins import Logins
from hyperd.image.making import Making
from hyperd.image.pull import Parts
from hyperd.image.records import Kind
from hyperd.image.settings import ImageSettings
from hyperd.image.stream import Limits
from hyperd.image.transport import Skopeo
from hyperd.image.upload import Uploads
from hyperd.model.image import (
    Digest,
    Image,
    ImageId,
    LoadedImage,
    NewImage,
    Platform,
    Pruning,
    Removal,
    RootDisk,
    StoreUsage,
)

log = logging.getLogger(__name__)

KEEP_RESTS_S = 7 * 86400.0
_EPOCH = datetime.fromtimestamp(0, UTC)


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
        self._readers = Workers(
            "image-readers", 2
        )  # what takes long: whole blobs are read, large files deleted
        self._garbage = Garbage(
            database, self._readers, self._content, self._layers, self._disks.root, frozenset({EMPTY_LAYER})
        )
        self._conversions = Conversions(
            database, self._readers, self._content, self._layers, self._garbage, tasks
        )
        self._budget = Budget(
            settings.budget,
            database,
            self.usage,
            lambda: self._workers.call(files.free_bytes, root),
            self._sweep_after,
        )
        downloads = Downloads(
            self._skopeo,
            self._content,
            self._workers,
            reserve_bytes=settings.reserve_bytes,
            stall_timeout_s=settings.stall_timeout_s,
            make_room=self._budget.make_room,
        )
        self._parts = Parts(
            database,
            self._workers,
            self._content,
            self._skopeo,
            Admissions(self._skopeo, self._workers, self._temporary),
            downloads,
            self._layers,
            self._disks,
            self._garbage,
            self._conversions,
            self._temporary,
        )
        self._exchange = Exchange(
            self._parts,
            Logins(self._temporary, self._workers, settings.authfile),
            Uploads(self._skopeo, self._content, self._workers, self._temporary, settings.stall_timeout_s),
            tasks,
            self._came_in,
        )
        # What the store says of registries is theirs.
        self.pull, self.push = self._exchange.pull, self._exchange.push
        self.manifest, self.search = self._exchange.manifest, self._exchange.search
        self._intake = Intake(self._layers, self._content, self._temporary)
        self._making = Making(self._parts, self._intake, stall_timeout_s=settings.stall_timeout_s)
        self._building = Building(self._parts, self._intake, stall_timeout_s=settings.stall_timeout_s)
        self._saving = Saving(self._parts)
        self._loading = Loading(
            self._parts, self._exchange.pulls, self._layers.limits, stall_timeout_s=settings.stall_timeout_s
        )
        self._measured = {
            Kind.BLOB: (self._content.shared_blob_dir / "sha256", ""),
            Kind.LAYER: (self._layers.root, SUFFIX),
            Kind.DISK: (self._disks.root, ""),
        }
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
        await self._exchange.close()
        await self._conversions.cancel()
        with contextlib.suppress(HyperError):  # it costs the order in which images go
            await self._budget.write_down()
        self._workers.close()
        self._readers.close()
        self._layers.close()
        self._intake.close()
        self._loading.close()

    async def _came_in(self, image: Image) -> None:
        """What is due after that; a budget that cannot be kept costs nobody the image."""
        self._budget.touch(image.image_id)
        try:
            await self._budget.keep()
        except HyperError as error:
            log.warning("the image budget cannot be kept", extra={"error": str(error)})
        await self._write_index()

    def used_by(self, in_use: Callable[[], Mapping[ImageId, str]]) -> None:
        """Who uses images; until it is said, nobody."""
        self._budget.in_use = in_use

    async def get(self, reference: str) -> Image:
        def find(connection: sqlite3.Connection) -> Image:
            image = records.get_image(connection, records.find_id(connection, reference))
            self._budget.touch(image.image_id)
            return image

        return await self._database.transaction(find)

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
        if removed.deleted:
            await self._sweep_after(removed)
        await self._write_index()
        return removed.removal

    async def prune(
        self,
        *,
        everything: bool = False,
        filters: Sequence[tuple[str, str]] = (),
        in_use: Mapping[ImageId, str] = NONE_IN_USE,
    ) -> Pruning:
        choice = pruning.parse_choice(filters, everything=everything, now=datetime.now(UTC))
        removed = await self._database.transaction(
            lambda connection: pruning.prune(connection, choice, in_use)
        )
        freed = await self._sweep_after(removed)
        if not choice.is_filtered:
            freed += await self._garbage.sweep_older_than(pruning.RESTS_AGE_S)
        await self._write_index()
        return Pruning(removed.removal.untagged, removed.removal.deleted, freed)

    async def _sweep_after(self, removed: removals.Removed) -> int:
        for image_id in removed.deleted:
            self._ready.pop(image_id, None)
        return await self._garbage.sweep()

    async def usage(self) -> StoreUsage:
        owned = await self._database.transaction(usages.owners)
        found = await self._readers.call(usages.measure, self._content.shared_blob_dir, self._measured, owned)
        return replace(found, budget=self._budget.usage)

    async def tag(self, image: str, reference: str) -> str:
        target = references.parse_target(reference)
        name = await self._database.transaction(lambda connection: removals.tag(connection, image, target))
        await self._write_index()
        return name

    async def root_disk(self, image_id: ImageId) -> RootDisk:
        self._budget.touch(image_id)
        ready = self._ready.get(image_id)
        if ready is not None:
            return ready

        def find(connection: sqlite3.Connection) -> Image:
            return records.get_image(connection, image_id)

        image = await self._database.transaction(find)
        async with self._garbage.pinned([Digest(image_id), *image.diff_ids]):
            await self._database.transaction(find)  # what is not pinned may have gone
            disk = await self._workers.call_while_wanted(lambda _: self._disks.make(image_id, image.diff_ids))
            # A removal meanwhile has looked whether the disk is ready, and will delete it when the pin goes. One
            # from here on forgets it: the records' answers come in their order.
            await self._database.transaction(find)
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
        await self._came_in(image)
        return image

    async def take_built(self, config: bytes, read_layer: ReadLayer, tags: Sequence[str]) -> Image:
        image = await self._building.take(config, read_layer, tags)
        await self._came_in(image)
        return image

    async def import_root(self, data: AsyncIterator[bytes], new: NewImage) -> Image:
        commented = replace(new, message=new.message or "Imported from -")
        image = await self._making.make_on_nothing(self._loading.unpacker.plain(data), commented)
        await self._came_in(image)
        return image

    def save(self, images: Sequence[str], *, platform: Platform | None = None) -> AsyncGenerator[bytes, None]:
        return self._saving.save(images, platform)

    async def load(
        self, data: AsyncIterator[bytes], *, platform: Platform | None = None, ours: bool = False
    ) -> AsyncGenerator[LoadEvent, None]:
        try:
            async with contextlib.aclosing(self._loading.load(data, platform, ours=ours)) as events:
                async for event in events:
                    if isinstance(event, LoadedImage):
                        await self._came_in(event.image)
                    yield event
        finally:
            await self._write_index()
