# SPDX-License-Identifier: Apache-2.0
"""ImageService: decode, delegate to the store, encode."""

import contextlib
from collections.abc import Sequence

from hyper.v1 import image_pb2 as wire
from hyper.v1 import image_pb2_grpc
from hyperd.api import convert
from hyperd.api.status import Context, errors_as_status
from hyperd.image.base import ImageStore, PullEvent
from hyperd.model.image import Image, LayerProgress
from hyperd.sandbox import Fleet


class ImageServicer(image_pb2_grpc.ImageServiceServicer):
    def __init__(self, images: ImageStore, fleet: Fleet) -> None:
        self._images = images
        self._fleet = fleet

    async def PullImage(self, request: wire.PullImageRequest, context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            platform = convert.decode_platform(request.platform)
            events = self._images.pull(
                request.reference, platform=platform, tls_insecure=request.tls_insecure
            )
            async with contextlib.aclosing(events):  # a caller who hangs up leaves the pull at once
                async for event in events:
                    await context.write(_encode(event))

    async def ListImages(self, request: wire.ListImagesRequest, context: Context) -> wire.ListImagesResponse:
        async with errors_as_status(context):
            images = await self._images.list_images()
            if request.references:
                images = [image for image in images if _named(image, request.references)]
            return wire.ListImagesResponse(images=[convert.encode_image(image) for image in images])

    async def InspectImage(
        self, request: wire.InspectImageRequest, context: Context
    ) -> wire.InspectImageResponse:
        async with errors_as_status(context):
            image = await self._images.get(request.image)
            return wire.InspectImageResponse(image=convert.encode_image(image))

    async def RemoveImage(
        self, request: wire.RemoveImageRequest, context: Context
    ) -> wire.RemoveImageResponse:
        async with errors_as_status(context):
            removal = await self._images.remove(
                request.image, force=request.force, in_use=self._fleet.images_in_use()
            )
            return wire.RemoveImageResponse(untagged=removal.untagged, deleted=removal.deleted)


def _encode(event: PullEvent) -> wire.PullImageResponse:
    if isinstance(event, Image):
        return wire.PullImageResponse(image=convert.encode_image(event))
    if isinstance(event, LayerProgress):
        return wire.PullImageResponse(layer=convert.encode_progress(event))
    return wire.PullImageResponse(notice=event.text)


def _named(image: Image, references: Sequence[str]) -> bool:
    """Whether a tag is one of NAME or NAME:TAG, Docker's short names included (docker images REPOSITORY)."""
    for tag in image.tags:
        short = tag.removeprefix("docker.io/").removeprefix("library/")
        names = {tag, short, tag.rpartition(":")[0], short.rpartition(":")[0]}
        if names & set(references):
            return True
    return False
