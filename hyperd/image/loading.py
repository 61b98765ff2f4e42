# SPDX-License-Identifier: Apache-2.0
"""Images out of an archive that a caller sends.

    stream -> decompressed (unpack) -> members as files (archive_read) -> images (archive_index)
           -> for each a layout of our own in tmp/ -> a pull from it

skopeo and the rest of the pull see only layouts that were written here, whose every blob was seen to be its digest.
"""

import asyncio
import contextlib
import json
import os
import secrets
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from hyperd.errors import HyperError, ImageNotFoundError
from hyperd.host import files
from hyperd.host.workers import Wanted, Workers
from hyperd.image import platform as platforms
from hyperd.image import records
from hyperd.image.archive_index import ArchivedImage, find_images
from hyperd.image.archive_read import Archive, Splitter
from hyperd.image.base import LoadEvent, PullEvent
from hyperd.image.content import hex_of
from hyperd.image.flights import Flights, Hub
from hyperd.image.pull import Known, Parts, Pull
from hyperd.image.reference import Named, Source, Transport, require_free
from hyperd.image.stream import Limits
from hyperd.image.transport import Remote
from hyperd.image.unpack import Unpacker
from hyperd.image.waiting import in_time
from hyperd.model.image import Admission, Credentials, Digest, Image, LoadedImage, Platform, PullNotice

PARALLEL = 2
INTAKE_TIMEOUT_S = 6 * 3600.0  # for all of an archive, at whatever pace; see waiting.Pace too
Pulls = Flights[tuple[Remote, Credentials | None], PullEvent, Image]


class Loading:
    def __init__(self, parts: Parts, pulls: Pulls, limits: Limits, *, stall_timeout_s: float) -> None:
        self._parts = parts
        self._pulls = pulls
        self._limits = limits
        self._slots = asyncio.Semaphore(PARALLEL)
        self._threads = Workers("image-archive", PARALLEL)
        self.unpacker = Unpacker(parts.temporary, self._threads, limits, stall_timeout_s=stall_timeout_s)

    def close(self) -> None:
        self._threads.close()

    async def load(
        self, data: AsyncIterator[bytes], platform: Platform | None, *, ours: bool = False
    ) -> AsyncGenerator[LoadEvent, None]:
        """As ``ImageStore.load``."""
        wanted = platform or platforms.host_platform()
        directory = self._parts.temporary / f"load-{secrets.token_hex(8)}"
        candidates: set[Digest] = set()
        try:
            async with self._slots:
                archive = await in_time(self._split(data, directory / "members"), INTAKE_TIMEOUT_S, "image")
                images = await self._threads.call(find_images, archive, wanted)
                if not ours:
                    for name in (name for image in images for name in image.names):
                        require_free(name)
                for image in images:
                    candidates |= image.digests
                for number, image in enumerate(images):
                    layout = directory / str(number)
                    await self._threads.call_while_wanted(_write_layout, layout, image)
                    async with contextlib.aclosing(self._pull(layout, image, wanted)) as events:
                        async for event in events:
                            yield event
        finally:
            await self._threads.call(files.remove_tree, directory)
            with contextlib.suppress(HyperError):  # what goes then are the rests of broken pulls
                await self._parts.garbage.sweep(candidates)  # what a pull that failed has left

    async def _split(self, data: AsyncIterator[bytes], directory: Path) -> Archive:
        await self._threads.call(files.make_directory, directory, 0o700)
        splitter = Splitter(directory, self._limits)
        try:
            async with contextlib.aclosing(self.unpacker.plain(data)) as chunks:
                async for chunk in chunks:
                    await self._threads.call_while_wanted(splitter.feed, chunk)
            return await self._threads.call_while_wanted(splitter.finish)
        finally:
            splitter.close()

    async def _pull(
        self, layout: Path, image: ArchivedImage, platform: Platform
    ) -> AsyncGenerator[LoadEvent, None]:
        remote = Remote(Source(Transport.OCI, None, str(layout)), platform)

        async def work(hub: Hub[PullEvent]) -> Image:
            return await ArchivePull(self._parts, remote, hub, image).run()

        async with self._pulls.board((remote, None), work) as flight:
            async with contextlib.aclosing(flight.hub.listen()) as events:
                async for event in events:
                    if not isinstance(event, Image | PullNotice):
                        yield event
            loaded = await flight.landed()
        yield LoadedImage(loaded, tuple(str(name) for name in image.names))


class ArchivePull(Pull):
    """A pull whose names come from the archive; an image that is here whole only gets them."""

    def __init__(self, parts: Parts, remote: Remote, hub: Hub[PullEvent], image: ArchivedImage) -> None:
        super().__init__(parts, remote, hub)
        self._image = image
        self._subject = str(image.names[0]) if image.names else image.image_id

    async def run(self) -> Image:
        return await self._find_here() or await super().run()

    async def _names(self, top_digest: Digest) -> tuple[Named, ...]:
        del top_digest
        return self._image.names

    async def _find_known(
        self, manifest_digest: Digest, names: tuple[Named, ...], admission: Admission
    ) -> Known | None:
        del manifest_digest, names, admission
        return None  # if it were whole, its id would have found it

    async def _find_here(self) -> Image | None:
        parts, image_id = self._parts, self._image.image_id

        def find(connection: sqlite3.Connection) -> tuple[Image, set[Digest]] | None:
            try:
                return records.get_image(connection, image_id), records.blobs_of(connection, image_id)
            except ImageNotFoundError:
                return None

        def name(connection: sqlite3.Connection) -> Image | None:
            if find(connection) is None:  # removed in this very moment
                return None
            records.save_names(connection, image_id, self._image.names)
            return records.get_image(connection, image_id)

        async with parts.garbage.pinned(self._image.digests):
            found = await parts.database.transaction(find)
            if found is None:
                return None
            here, blobs = found
            self._require_platform(here.platform)
            whole = await parts.workers.call(
                lambda: parts.disks.has_all(here.diff_ids) and all(map(parts.content.has, blobs))
            )
            return await parts.database.transaction(name) if whole else None


def _write_layout(_: Wanted, layout: Path, image: ArchivedImage) -> None:
    blobs = layout / "blobs" / "sha256"
    with files.file_errors(layout):
        blobs.mkdir(parents=True)
        for digest, entry in image.blobs.items():
            os.link(entry.path, blobs / hex_of(digest))
        for data, digest in ((image.manifest, image.manifest_digest), (image.config, Digest(image.image_id))):
            if digest not in image.blobs:
                (blobs / hex_of(digest)).write_bytes(data)
        described = {
            "mediaType": image.media_type,
            "digest": image.manifest_digest,
            "size": len(image.manifest),
        }
        (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
