# SPDX-License-Identifier: Apache-2.0
"""An image store without a registry, a disk or a child process."""

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import HyperError, ImageNotFoundError, InvalidError, NotFoundError, WrongStateError
from hyperd.image.base import DEFAULT_LIMIT, NONE_IN_USE, LoadEvent, PullEvent, PushEvent
from hyperd.image.reference import parse_named, require_free
from hyperd.model.image import (
    Credentials,
    Digest,
    FoundImage,
    Image,
    ImageConfig,
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
    Removal,
    RootDisk,
    StoreUsage,
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


def _begins(diff_ids: tuple[Digest, ...], lower: tuple[Digest, ...]) -> bool:
    return diff_ids[: len(lower)] == lower


def _names_in(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        described = json.load(index)["manifests"]
    return [each["annotations"]["io.containerd.image.name"] for each in described]


@dataclass(frozen=True, slots=True)
class Commit:
    base: ImageId
    layer: bytes
    new: NewImage


class FakeImageStore:
    """``add`` makes an image present, ``publish`` makes it one that a pull finds.

    ``commits``: those that came to their end. ``commit_gate``: closed with clear(), they wait when all is read.
    """

    def __init__(self, root: Path = Path("/fake/images")) -> None:
        self.root = root
        self.images: dict[ImageId, Image] = {}
        self.remote: dict[str, Image] = {}
        self.pulls: list[str] = []
        self.credentials: list[Credentials | None] = []  # of pulls and pushes
        self.pushes: list[str] = []
        self.fail_next_push: HyperError | None = None
        self.fail_next_pull: HyperError | None = None
        self.fail_next_root_disk: HyperError | None = None
        self.gate = asyncio.Event()  # holds every pull after its first event
        self.gate.set()
        self.built_layers: dict[Digest, bytes] = {}  # that ``take_built`` has read
        self.commits: list[Commit] = []
        self.committing = 0
        self.commit_gate = asyncio.Event()
        self.commit_gate.set()

    def add(self, reference: str, config: ImageConfig | None = None, *, layers: int = 2) -> Image:
        image = image_named(reference, config, layers=layers)
        self.images[image.image_id] = image
        return image

    def publish(self, reference: str, config: ImageConfig | None = None, *, layers: int = 2) -> Image:
        image = image_named(reference, config, layers=layers)
        self.remote[full_name(reference)] = image
        return image

    async def take_built(
        self,
        config: bytes,
        read_layer: Callable[[Digest], AbstractAsyncContextManager[AsyncIterator[bytes]]],
        tags: Sequence[str],
    ) -> Image:
        diff_ids = tuple(Digest(each) for each in json.loads(config)["rootfs"]["diff_ids"])
        have = max(
            (image.diff_ids for image in self.images.values() if _begins(diff_ids, image.diff_ids)),
            key=len,
            default=(),
        )
        for diff_id in dict.fromkeys(diff_ids[len(have) :]):
            async with read_layer(diff_id) as pieces:
                self.built_layers[diff_id] = b"".join([piece async for piece in pieces])
        image_id = ImageId("sha256:" + hashlib.sha256(config).hexdigest())
        self.images.setdefault(
            image_id, replace(image_named("built"), image_id=image_id, diff_ids=diff_ids, tags=())
        )
        for tag in tags:
            await self.tag(image_id, tag)
        return self.images[image_id]

    async def pull(
        self,
        reference: str,
        *,
        platform: Platform | None = None,
        tls_insecure: bool = False,
        credentials: Credentials | None = None,
        all_tags: bool = False,
    ) -> AsyncGenerator[PullEvent, None]:
        del platform, tls_insecure
        self.credentials.append(credentials)
        if all_tags:
            repository = full_name(reference).rpartition(":")[0]
            tags = [name for name in self.remote if name.rpartition(":")[0] == repository]
            for name in tags:
                async for event in self.pull(name):
                    yield event
            if not tags:
                raise NotFoundError("the repository has no tags", subject=repository)
            return
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

    async def push(
        self,
        reference: str,
        *,
        all_tags: bool = False,
        tls_insecure: bool = False,
        credentials: Credentials | None = None,
    ) -> AsyncGenerator[PushEvent, None]:
        del tls_insecure
        error, self.fail_next_push = self.fail_next_push, None
        if error is not None:
            raise error
        wanted = full_name(reference)
        repository = wanted.rpartition(":")[0]
        found = [
            (tag, image)
            for image in self.images.values()
            for tag in image.tags
            if tag == wanted or (all_tags and tag.rpartition(":")[0] == repository)
        ]
        if not found:
            raise ImageNotFoundError("no image has this name", subject=reference)
        self.credentials.append(credentials)
        yield PullNotice(f"The push refers to repository [{repository}]")
        for tag, image in found:
            await self.gate.wait()
            for digest in image.diff_ids:
                yield PushProgress(digest, PushPhase.UPLOADING, 512, 1024)
                yield PushProgress(digest, PushPhase.DONE, 1024, 1024)
            self.pushes.append(tag)
            self.remote[tag] = image
            yield PushedTag(tag, image.manifest_digest, 500)

    async def tag(self, image: str, reference: str) -> str:
        named = await self.get(image)
        if "@" in reference or not reference:
            raise InvalidError("a digest cannot be given as a name", subject=reference)
        require_free(parse_named(reference))
        name = full_name(reference)
        for other in list(self.images.values()):
            self.images[other.image_id] = replace(other, tags=tuple(tag for tag in other.tags if tag != name))
        tags = self.images[named.image_id].tags
        self.images[named.image_id] = replace(named, tags=(*tags, name))
        return name

    async def manifest(
        self, reference: str, *, tls_insecure: bool = False, credentials: Credentials | None = None
    ) -> RawManifest:
        del tls_insecure
        self.credentials.append(credentials)
        image = self.remote.get(full_name(reference))
        if image is None:
            raise NotFoundError("the registry has no such image", subject=reference)
        return RawManifest(b"{}", "application/vnd.oci.image.manifest.v1+json", image.manifest_digest)

    async def prune(
        self,
        *,
        everything: bool = False,
        filters: Sequence[tuple[str, str]] = (),
        in_use: Mapping[ImageId, str] = NONE_IN_USE,
    ) -> Pruning:
        for key, _ in filters:
            if key not in ("until", "label", "label!"):
                raise InvalidError("no such filter", subject=key)
        doomed = [
            image
            for image in self.images.values()
            if image.image_id not in in_use and (everything or not image.tags)
        ]
        for image in doomed:
            del self.images[image.image_id]
        return Pruning(
            tuple(tag for image in doomed for tag in image.tags),
            tuple(image.image_id for image in doomed),
            sum(image.stored_bytes for image in doomed),
        )

    async def usage(self) -> StoreUsage:
        images = tuple(
            ImageUsage(each.image_id, each.tags, 0, each.stored_bytes) for each in self.images.values()
        )
        return StoreUsage(images, sum(image.unique_bytes for image in images), 0)

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

    async def import_root(self, data: AsyncIterator[bytes], new: NewImage) -> Image:
        content = b"".join([piece async for piece in data])
        return self.add(new.reference or f"imported{len(content)}", layers=1)

    async def save(
        self, images: Sequence[str], *, platform: Platform | None = None
    ) -> AsyncGenerator[bytes, None]:
        found = [await self.get(name) for name in images]
        if platform is not None and any(image.platform != platform for image in found):
            raise NotFoundError("image was found but does not provide the specified platform")
        yield "\n".join(tag for image in found for tag in image.tags).encode()

    async def load(
        self, data: AsyncIterator[bytes], *, platform: Platform | None = None, ours: bool = False
    ) -> AsyncGenerator[LoadEvent, None]:
        """What ``save`` wrote, or the names in a tar's index."""
        del platform
        content = b"".join([piece async for piece in data])
        names = _names_in(content) if content.startswith(b"index.json\0") else content.decode().splitlines()
        for name in names:
            if not ours:
                require_free(parse_named(name))
        for name in names:
            image = self.remote.get(name) or image_named(name)  # as it was published, if it was
            self.images[image.image_id] = image
            yield LoadedImage(image, image.tags)

    async def search(
        self,
        term: str,
        *,
        limit: int = DEFAULT_LIMIT,
        tls_insecure: bool = False,
        credentials: Credentials | None = None,
    ) -> list[FoundImage]:
        """What was published."""
        del tls_insecure, credentials
        if not term:
            raise InvalidError("this is not a term to search for", subject=repr(term))
        wanted = term.partition("/")[2] if "." in term.partition("/")[0] else term
        names = {name.rpartition(":")[0] for name in self.remote}
        return [FoundImage(name) for name in sorted(names) if wanted in name][:limit]

    async def root_disk(self, image_id: ImageId) -> RootDisk:
        error, self.fail_next_root_disk = self.fail_next_root_disk, None
        if error is not None:
            raise error
        image = self.images.get(image_id)
        if image is None:
            raise ImageNotFoundError("no such image", subject=image_id)
        return RootDisk(self.root / image_id.removeprefix("sha256:") / "disk.vmdk", len(image.diff_ids))
