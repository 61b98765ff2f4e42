# SPDX-License-Identifier: Apache-2.0
"""ImageService: decode, delegate to the store, encode."""

import contextlib
from collections.abc import AsyncIterator, Sequence

from hyper.v1 import image_pb2 as wire
from hyper.v1 import image_pb2_grpc
from hyperd.api import image_convert as convert
from hyperd.api.status import Context, errors_as_status
from hyperd.api.uploads import first_request, pieces, received, tell
from hyperd.errors import InvalidError
from hyperd.image.base import DEFAULT_LIMIT, ImageStore
from hyperd.model.image import Image
from hyperd.sandbox import Fleet

MAX_SAVED = 1000  # names in one request


class ImageServicer(image_pb2_grpc.ImageServiceServicer):
    """The streams write to their context instead of being generators, as in ``ContainerServicer``.

    They close what they read from: a caller who hangs up leaves a pull, push, save or load at once.
    """

    def __init__(self, images: ImageStore, fleet: Fleet) -> None:
        self._images = images
        self._fleet = fleet

    async def PullImage(self, request: wire.PullImageRequest, context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            events = self._images.pull(
                request.reference,
                platform=convert.decode_platform(request.platform),
                tls_insecure=request.tls_insecure,
                credentials=convert.decode_credentials(request),
                all_tags=request.all_tags,
            )
            async with contextlib.aclosing(events):
                async for event in events:
                    await context.write(convert.encode_pull(event))

    async def PushImage(self, request: wire.PushImageRequest, context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            events = self._images.push(
                request.reference,
                all_tags=request.all_tags,
                tls_insecure=request.tls_insecure,
                credentials=convert.decode_credentials(request),
            )
            async with contextlib.aclosing(events):
                async for event in events:
                    await context.write(convert.encode_push(event))

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

    async def TagImage(self, request: wire.TagImageRequest, context: Context) -> wire.TagImageResponse:
        async with errors_as_status(context):
            return wire.TagImageResponse(tag=await self._images.tag(request.image, request.reference))

    async def SaveImages(self, request: wire.SaveImagesRequest, context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            if not 1 <= len(request.images) <= MAX_SAVED:
                raise InvalidError(f"{len(request.images)} images were named: 1 to {MAX_SAVED} can be saved")
            platform = convert.decode_platform(request.platform)
            saving = self._images.save(tuple(request.images), platform=platform)
            async with contextlib.aclosing(saving) as stream:
                async for data in stream:
                    for piece in pieces(data):
                        await context.write(wire.SaveImagesResponse(data=piece))

    async def LoadImages(  # type: ignore[override]
        self, requests: AsyncIterator[wire.LoadImagesRequest], context: Context
    ) -> None:
        async with errors_as_status(context):
            first = await first_request(requests, "archive")
            platform = convert.decode_platform(first.platform)
            data = received(requests, lambda request: request.data, first.data)
            async with contextlib.aclosing(self._images.load(data, platform=platform)) as events:
                async for event in events:
                    await tell(context, convert.encode_load(event), "archive")

    async def ImportImage(
        self, requests: AsyncIterator[wire.ImportImageRequest], context: Context
    ) -> wire.ImportImageResponse:
        async with errors_as_status(context):
            first = await first_request(requests, "archive")
            if first.WhichOneof("kind") != "options":
                raise InvalidError("the first message of an import has no options")
            new = convert.decode_import(first.options)
            image = await self._images.import_root(
                received(requests, _import_data, is_end=lambda last: last.end), new
            )
            return wire.ImportImageResponse(image=convert.encode_image(image))

    async def PruneImages(
        self, request: wire.PruneImagesRequest, context: Context
    ) -> wire.PruneImagesResponse:
        async with errors_as_status(context):
            pruning = await self._images.prune(
                everything=request.all,
                filters=[(item.key, item.value) for item in request.filters],
                in_use=self._fleet.images_in_use(),
            )
            return wire.PruneImagesResponse(
                untagged=pruning.untagged, deleted=pruning.deleted, reclaimed_bytes=pruning.reclaimed_bytes
            )

    async def InspectManifest(
        self, request: wire.InspectManifestRequest, context: Context
    ) -> wire.InspectManifestResponse:
        async with errors_as_status(context):
            found = await self._images.manifest(
                request.reference,
                tls_insecure=request.tls_insecure,
                credentials=convert.decode_credentials(request),
            )
            return wire.InspectManifestResponse(
                manifest=found.content, media_type=found.media_type, digest=found.digest
            )

    async def SearchImages(
        self, request: wire.SearchImagesRequest, context: Context
    ) -> wire.SearchImagesResponse:
        async with errors_as_status(context):
            found = await self._images.search(
                request.term,
                limit=request.limit or DEFAULT_LIMIT,
                tls_insecure=request.tls_insecure,
                credentials=convert.decode_credentials(request),
            )
            return wire.SearchImagesResponse(
                images=[
                    wire.FoundImage(
                        name=image.name,
                        description=image.description,
                        stars=image.stars,
                        is_official=image.is_official,
                        is_automated=image.is_automated,
                    )
                    for image in found
                ]
            )


def _import_data(request: wire.ImportImageRequest) -> bytes:
    if request.WhichOneof("kind") == "options":
        raise InvalidError("an import has its options in the first message alone")
    return request.data


def _named(image: Image, references: Sequence[str]) -> bool:
    """Whether a tag is one of NAME or NAME:TAG, Docker's short names included (docker images REPOSITORY)."""
    for tag in image.tags:
        short = tag.removeprefix("docker.io/").removeprefix("library/")
        names = {tag, short, tag.rpartition(":")[0], short.rpartition(":")[0]}
        if names & set(references):
            return True
    return False
