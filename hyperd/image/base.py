# SPDX-License-Identifier: Apache-2.0
"""The image store's door."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Protocol

from hyperd.model.image import (
    Credentials,
    Digest,
    FoundImage,
    Image,
    ImageId,
    LayerProgress,
    LoadedImage,
    NewImage,
    Platform,
    Pruning,
    PullNotice,
    PushedTag,
    PushProgress,
    RawManifest,
    Removal,
    RootDisk,
    StoreUsage,
)

PullEvent = LayerProgress | PullNotice | Image
PushEvent = PushProgress | PullNotice | PushedTag
LoadEvent = LayerProgress | PullNotice | LoadedImage

DEFAULT_LIMIT = 25  # of a search, as Docker's
NONE_IN_USE: Mapping[ImageId, str] = MappingProxyType({})


class ImageStore(Protocol):
    def pull(
        self,
        reference: str,
        *,
        platform: Platform | None = None,
        tls_insecure: bool = False,
        credentials: Credentials | None = None,
        all_tags: bool = False,
    ) -> AsyncGenerator[PullEvent, None]:
        """Make an image present; the last event is the Image (``all_tags``: one for each tag of the repository).

        One pull at a time does the work for all who ask.

        Raises InvalidError (malformed reference), NotFoundError (unknown tag), UnavailableError (unreachable registry),
        DeniedError, UnsupportedError (architecture, foreign layer), ExhaustedError (no space). A failed or
        abandoned pull leaves whole blobs and nothing else.
        """

    async def get(self, reference: str) -> Image:
        """By tag, digest, id or unique id prefix. Raises ImageNotFoundError, InvalidError (ambiguous, malformed)."""

    async def list_images(self) -> list[Image]:
        """Newest first."""

    async def remove(
        self, reference: str, *, force: bool = False, in_use: Mapping[ImageId, str] = NONE_IN_USE
    ) -> Removal:
        """Untag; delete what no tag and no container needs any more. Raises WrongStateError when in use."""

    async def root_disk(self, image_id: ImageId) -> RootDisk:
        """The disk that joins the image's layers, made when absent. Raises ImageNotFoundError."""

    def push(
        self,
        reference: str,
        *,
        all_tags: bool = False,
        tls_insecure: bool = False,
        credentials: Credentials | None = None,
    ) -> AsyncGenerator[PushEvent, None]:
        """Send an image to the registry in its name, byte for byte; a PushedTag for each tag.

        Raises ImageNotFoundError, and what ``pull`` raises of registries.
        """

    async def tag(self, image: str, reference: str) -> str:
        """Give an image one more name, and return it in full; taken from another image that had it.

        Raises ImageNotFoundError, InvalidError.
        """

    def save(self, images: Sequence[str], *, platform: Platform | None = None) -> AsyncGenerator[bytes, None]:
        """One tar: an OCI image layout with Docker's manifest.json. All of them are for ``platform``, if it is given.

        Raises ImageNotFoundError, NotFoundError (another platform), before the first byte.
        """

    def load(
        self, data: AsyncIterator[bytes], *, platform: Platform | None = None, ours: bool = False
    ) -> AsyncGenerator[LoadEvent, None]:
        """Images out of a tar as ``save``, `docker save` or `skopeo copy` write it; a LoadedImage for each.

        ``ours``: it may bring the builder's name. Raises InvalidError (no such archive, a name that is not free),
        ExhaustedError, and what ``pull`` raises. Nothing but whole images stays.
        """

    async def import_root(self, data: AsyncIterator[bytes], new: NewImage) -> Image:
        """A root file system's tar (plain, gzip, zstd) as an image of one layer. InvalidError, ExhaustedError."""

    async def commit(self, base: ImageId, layer: AsyncIterator[bytes], new: NewImage) -> Image:
        """``base`` with one more layer: a plain tar, read to its end. The same bytes make the same layer.

        Raises ImageNotFoundError, InvalidError (no tar, bad ``changes``), ExhaustedError. What ``layer`` raises goes
        through. A commit that fails leaves nothing.
        """

    async def take_built(
        self,
        config: bytes,
        read_layer: Callable[[Digest], AbstractAsyncContextManager[AsyncIterator[bytes]]],
        tags: Sequence[str],
    ) -> Image:
        """An image whose config is ready. Of its layers only those that are not here are read: plain tars, by diff_id.

        Raises InvalidError (config, tag, a layer that is another one), ExhaustedError, and what ``read_layer``'s
        streams raise. One that fails leaves nothing.
        """

    async def prune(
        self,
        *,
        everything: bool = False,
        filters: Sequence[tuple[str, str]] = (),
        in_use: Mapping[ImageId, str] = NONE_IN_USE,
    ) -> Pruning:
        """Delete images without a tag, or with ``everything`` all, that nobody uses. Raises InvalidError (filters)."""

    async def manifest(
        self, reference: str, *, tls_insecure: bool = False, credentials: Credentials | None = None
    ) -> RawManifest:
        """As the registry serves it. Raises what ``pull`` raises."""

    async def search(
        self,
        term: str,
        *,
        limit: int = DEFAULT_LIMIT,
        tls_insecure: bool = False,
        credentials: Credentials | None = None,
    ) -> list[FoundImage]:
        """What a registry has of that name: TERM on Docker Hub, HOST/TERM elsewhere.

        Raises InvalidError, UnsupportedError (it has no search), DeniedError, UnavailableError.
        """

    async def usage(self) -> StoreUsage:
        """What the store takes on disk."""
