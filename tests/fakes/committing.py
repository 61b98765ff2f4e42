# SPDX-License-Identifier: Apache-2.0
"""An image store in memory that takes commits."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from hyperd.model.image import Image, ImageId, NewImage
from tests.fakes.image import FakeImageStore, image_named


@dataclass(frozen=True, slots=True)
class Commit:
    base: ImageId
    layer: bytes
    new: NewImage


class CommittingImages(FakeImageStore):
    """``commits``: those that came to their end. ``commit_gate``: closed with clear(), they wait when all is read."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[Commit] = []
        self.committing = 0
        self.commit_gate = asyncio.Event()
        self.commit_gate.set()

    async def commit(self, base: ImageId, layer: AsyncIterator[bytes], new: NewImage) -> Image:
        self.committing += 1
        try:
            content = b"".join([piece async for piece in layer])
            await self.commit_gate.wait()
        finally:
            self.committing -= 1
        self.commits.append(Commit(base, content, new))
        config = new.overrides or self.images[base].config
        image = image_named(new.reference or f"commit{len(self.commits)}", config)
        self.images[image.image_id] = image = replace(image, author=new.author)
        return image
