# SPDX-License-Identifier: Apache-2.0
"""The fake image store with images that come and go: what the API's tests of pushes, loads and prunes need."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hyperd.image.base import NONE_IN_USE, LoadEvent, PullEvent, PushEvent
from hyperd.model.image import (
    Credentials,
    Digest,
    Image,
    ImageId,
    ImageUsage,
    LayerPhase,
    LayerProgress,
    LoadedImage,
    NewImage,
    Platform,
    Pruning,
    PullNotice,
    PushedTag,
    PushPhase,
    PushProgress,
    RawManifest,
    StoreUsage,
)
from tests.fakes.image import FakeImageStore, full_name


class MovingImages(FakeImageStore):
    """``asked`` has the arguments of each call; what was read of an upload is in ``received``."""

    def __init__(self, root: Path = Path("/fake/images")) -> None:
        super().__init__(root)
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.received = 0
        self.left = 0  # streams that were closed, at their end or before
        self.saved_bytes = 0
        self.tells_without_end = False  # what a load does

    async def pull(self, reference: str, **options: object) -> AsyncGenerator[PullEvent, None]:
        self.asked.append(("pull", options))
        async for event in super().pull(reference):
            yield event

    async def push(self, reference: str, **options: object) -> AsyncGenerator[PushEvent, None]:
        self.asked.append(("push", options))
        image = await self.get(reference)
        try:
            yield PullNotice("pushing")
            for digest in image.diff_ids:
                yield PushProgress(digest, PushPhase.UPLOADING, 1, 2)
                await self.gate.wait()
                yield PushProgress(digest, PushPhase.MOUNTED)
            yield PushedTag(full_name(reference), image.manifest_digest, 528)
        finally:
            self.left += 1

    async def tag(self, image: str, reference: str) -> str:
        found, name = await self.get(image), full_name(reference)
        self.images[found.image_id] = replace(found, tags=(*found.tags, name))
        return name

    async def save(
        self, images: Sequence[str], *, platform: Platform | None = None
    ) -> AsyncGenerator[bytes, None]:
        self.asked.append(("save", {"platform": platform}))
        for name in images:
            await self.get(name)
        try:
            yield b"x" * (5 << 19)
            while not self.gate.is_set():
                self.saved_bytes += 1 << 20
                yield b"y" * (1 << 20)
        finally:
            self.left += 1

    async def load(
        self, data: AsyncIterator[bytes], *, platform: Platform | None = None, ours: bool = False
    ) -> AsyncGenerator[LoadEvent, None]:
        del ours
        self.asked.append(("load", {"platform": platform}))
        try:
            await self._read(data)
            image = self.add("loaded:1")
            while self.tells_without_end:
                yield PullNotice("x" * 65536)
            yield LayerProgress(image.diff_ids[0], LayerPhase.DONE)
            yield LoadedImage(image, image.tags)
        finally:
            self.left += 1

    async def import_root(self, data: AsyncIterator[bytes], new: NewImage) -> Image:
        self.asked.append(("import", {"new": new}))
        await self._read(data)
        return self.add(new.reference or "imported")

    async def _read(self, data: AsyncIterator[bytes]) -> None:
        async for piece in data:
            self.received += len(piece)
            await self.gate.wait()

    async def prune(
        self,
        *,
        everything: bool = False,
        filters: Sequence[tuple[str, str]] = (),
        in_use: Mapping[ImageId, str] = NONE_IN_USE,
    ) -> Pruning:
        self.asked.append(("prune", {"everything": everything, "filters": list(filters)}))
        gone = [image for image in self.images.values() if everything and image.image_id not in in_use]
        for image in gone:
            del self.images[image.image_id]
        tags = tuple(tag for image in gone for tag in image.tags)
        return Pruning(tags, tuple(image.image_id for image in gone), 4096 * len(gone))

    async def manifest(
        self, reference: str, *, tls_insecure: bool = False, credentials: Credentials | None = None
    ) -> RawManifest:
        self.asked.append(("manifest", {"tls_insecure": tls_insecure, "credentials": credentials}))
        return RawManifest(b"{}", "application/json", Digest("sha256:aa"))

    async def usage(self) -> StoreUsage:
        images = tuple(ImageUsage(image.image_id, image.tags, 10, 20) for image in self.images.values())
        return StoreUsage(images, 30, 5)
