# SPDX-License-Identifier: Apache-2.0
"""An image store without a registry, a disk or a child process."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import HyperError, ImageNotFoundError, InvalidError, NotFoundError, WrongStateError
from hyperd.image.base import NONE_IN_USE, PullEvent
from hyperd.model.image import (
    Digest,
    Image,
    ImageConfig,
    ImageId,
    LayerPhase,
    LayerProgress,
    Platform,
    PullNotice,
    Removal,
    RootDisk,
)


def _sha256(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def full_name(reference: str) -> str:
    """`alpine` -> `docker.io/library/alpine:latest`; the real rules are hyperd/image/reference.py's."""
    head, _, rest = reference.partition("/")
    if not rest:
        reference = f"docker.io/library/{reference}"
    elif not ("." in head or ":" in head or head == "localhost"):
        reference = f"docker.io/{reference}"
    last = reference.rpartition("/")[2]
    return reference if ":" in last or "@" in last else f"{reference}:latest"


def image_named(reference: str, config: ImageConfig | None = None, *, layers: int = 2) -> Image:
    """An image that is made of nothing but its name."""
    name = full_name(reference)
    manifest = Digest(_sha256(f"manifest {name}"))
    return Image(
        image_id=ImageId(_sha256(f"config {name}")),
        tags=(name,),
        digests=(f"{name.rpartition(':')[0]}@{manifest}",),
        manifest_digest=manifest,
        diff_ids=tuple(Digest(_sha256(f"layer {number} of {name}")) for number in range(layers)),
        platform=Platform("linux", "amd64"),
        config=config or ImageConfig(cmd=("sh",), env=("PATH=/bin",)),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        size_bytes=layers << 20,
        stored_bytes=layers << 19,
    )


class FakeImageStore:
    """``add`` makes an image present, ``publish`` makes it one that a pull finds."""

    def __init__(self, root: Path = Path("/fake/images")) -> None:
        self.root = root
        self.images: dict[ImageId, Image] = {}
        self.remote: dict[str, Image] = {}
        self.pulls: list[str] = []
        self.fail_next_pull: HyperError | None = None
        self.fail_next_root_disk: HyperError | None = None
        self.gate = asyncio.Event()  # holds every pull after its first event
        self.gate.set()

    def add(self, reference: str, config: ImageConfig | None = None, *, layers: int = 2) -> Image:
        image = image_named(reference, config, layers=layers)
        self.images[image.image_id] = image
        return image

    def publish(self, reference: str, config: ImageConfig | None = None, *, layers: int = 2) -> Image:
        image = image_named(reference, config, layers=layers)
        self.remote[full_name(reference)] = image
        return image

    async def pull(
        self, reference: str, *, platform: Platform | None = None, tls_insecure: bool = False
    ) -> AsyncGenerator[PullEvent, None]:
        del platform, tls_insecure
        self.pulls.append(reference)
        error, self.fail_next_pull = self.fail_next_pull, None
        if error is not None:
            raise error
        name = full_name(reference)
        yield PullNotice(f"latest: Pulling from {name}")
        await self.gate.wait()
        image = self.remote.get(name)
        if image is None:
            raise NotFoundError("no such image in the registry", subject=name)
        for digest in image.diff_ids:
            yield LayerProgress(digest, LayerPhase.DOWNLOADING, 512, 1024)
            yield LayerProgress(digest, LayerPhase.DONE, 1024, 1024)
        self.images[image.image_id] = image
        yield image

    async def get(self, reference: str) -> Image:
        if not reference:
            raise InvalidError("an image reference cannot be empty")
        name = full_name(reference)
        for image in self.images.values():
            if name in image.tags or name in image.digests:
                return image
        prefix = reference.removeprefix("sha256:")
        found = [image for image in self.images.values() if image.image_id[7:].startswith(prefix)]
        if len(found) > 1:
            raise InvalidError(f"the id prefix fits {len(found)} images", subject=reference)
        if not found:
            raise ImageNotFoundError("no such image", subject=reference, hint=f"hyper pull {reference}")
        return found[0]

    async def list_images(self) -> list[Image]:
        return list(self.images.values())

    async def remove(
        self, reference: str, *, force: bool = False, in_use: Mapping[ImageId, str] = NONE_IN_USE
    ) -> Removal:
        image = await self.get(reference)
        if image.image_id in in_use and not force:
            raise WrongStateError("a container uses the image", subject=reference)
        name = full_name(reference)
        if name in image.tags and len(image.tags) > 1:
            rest = tuple(tag for tag in image.tags if tag != name)
            self.images[image.image_id] = replace(image, tags=rest)
            return Removal(untagged=(name,), deleted=())
        if image.image_id in in_use:
            self.images[image.image_id] = replace(image, tags=())
            return Removal(untagged=image.tags, deleted=())
        del self.images[image.image_id]
        return Removal(untagged=image.tags, deleted=(image.image_id,))

    async def root_disk(self, image_id: ImageId) -> RootDisk:
        error, self.fail_next_root_disk = self.fail_next_root_disk, None
        if error is not None:
            raise error
        image = self.images.get(image_id)
        if image is None:
            raise ImageNotFoundError("no such image", subject=image_id)
        return RootDisk(self.root / image_id.removeprefix("sha256:") / "disk.vmdk", len(image.diff_ids))
