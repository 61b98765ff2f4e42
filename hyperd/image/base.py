# SPDX-License-Identifier: Apache-2.0
"""The image store's door."""

from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from typing import Protocol

from hyperd.model.image import Image, ImageId, LayerProgress, Platform, PullNotice, Removal, RootDisk

PullEvent = LayerProgress | PullNotice | Image

NONE_IN_USE: Mapping[ImageId, str] = MappingProxyType({})


class ImageStore(Protocol):
    def pull(
        self, reference: str, *, platform: Platform | None = None, tls_insecure: bool = False
    ) -> AsyncGenerator[PullEvent, None]:
        """Make an image present; the last event is the Image. One pull at a time does the work for all who ask.

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
