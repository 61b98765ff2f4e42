# SPDX-License-Identifier: Apache-2.0
"""Images of the hyperd without machines: pulls that take as long as they are told to."""
# ruff: noqa: N802 - the methods have the names of the contract

import asyncio

import grpc

from hyper.v1 import image_pb2, image_pb2_grpc, system_pb2
from tests.fakes.daemon_state import Context, FakeDaemon, abort, digest, whole


class FakeImages(image_pb2_grpc.ImageServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def PullImage(self, request, context):
        await self._daemon.check(request, context)
        name = request.reference.partition(":")[0]
        if request.all_tags:
            for tag in ("1", "2"):
                yield image_pb2.PullImageResponse(notice=f"{tag}: Pulling from library/{name}")
                yield image_pb2.PullImageResponse(image=self._daemon.add_image(f"{name}:{tag}"))
            return
        if name not in self._daemon.pullable:
            detail = system_pb2.ErrorDetail(
                brief="not in the registry",
                subject=request.reference,
                evidence="manifest unknown",
                hint="check the spelling",
            )
            await abort(context, grpc.StatusCode.NOT_FOUND, detail)
        phases = (image_pb2.LAYER_PHASE_DOWNLOADING, image_pb2.LAYER_PHASE_CONVERTING)
        layers = [digest(f"{name} {number}") for number in range(3)]
        tag = request.reference.partition(":")[2] or "latest"
        yield image_pb2.PullImageResponse(notice=f"{tag}: Pulling from library/{name}")
        for layer in layers:
            yield _progress(layer, image_pb2.LAYER_PHASE_WAITING, 0)
        for layer in layers:
            for phase in phases:
                for done in range(0, 101, 10):
                    await asyncio.sleep(self._daemon.pull_pace_s)
                    yield _progress(layer, phase, done * 100_000)
            yield _progress(layer, image_pb2.LAYER_PHASE_DONE, 10_000_000)
        image = self._daemon.add_image(request.reference)
        yield image_pb2.PullImageResponse(notice=f"Digest: {image.manifest_digest}")
        yield image_pb2.PullImageResponse(notice=f"Status: Downloaded newer image for {name}:{tag}")
        yield image_pb2.PullImageResponse(image=image)

    async def ListImages(self, request, context):
        await self._daemon.check(request, context)
        return image_pb2.ListImagesResponse(images=list(reversed(self._daemon.images.values())))

    async def InspectImage(self, request, context):
        await self._daemon.check(request, context)
        return image_pb2.InspectImageResponse(image=await self._require(request.image, context))

    async def RemoveImage(self, request, context):
        await self._daemon.check(request, context)
        image = await self._require(request.image, context)
        self._daemon.images = {k: v for k, v in self._daemon.images.items() if v.id != image.id}
        return image_pb2.RemoveImageResponse(untagged=image.tags, deleted=[image.id])

    async def TagImage(self, request, context):
        await self._daemon.check(request, context)
        image = await self._require(request.image, context)
        image.tags.append(request.reference)
        return image_pb2.TagImageResponse(tag=request.reference)

    async def PushImage(self, request, context):
        await self._daemon.check(request, context)
        name, _, tag = request.reference.partition(":")
        image = await self._require(request.reference, context)
        layers = [digest(f"{name} {number}") for number in range(2)]
        yield image_pb2.PushImageResponse(notice=f"The push refers to repository [docker.io/library/{name}]")
        for phase, done in (
            (image_pb2.PUSH_PHASE_WAITING, 0),
            (image_pb2.PUSH_PHASE_UPLOADING, 5_000_000),
            (image_pb2.PUSH_PHASE_DONE, 10_000_000),
        ):
            await asyncio.sleep(self._daemon.pull_pace_s * 10)
            yield _push_progress(layers[0], phase, done)
        yield _push_progress(layers[1], image_pb2.PUSH_PHASE_EXISTS, 0)
        yield image_pb2.PushImageResponse(
            pushed=image_pb2.PushedTag(
                reference=f"docker.io/library/{name}:{tag or 'latest'}",
                manifest_digest=image.manifest_digest,
                manifest_bytes=528,
            )
        )

    async def SearchImages(self, request, context):
        await self._daemon.check(request, context)
        found = [
            image_pb2.FoundImage(
                name="busybox", description="Busybox\nbase image. " * 5, stars=3000, is_official=True
            ),
            image_pb2.FoundImage(name="user/busybox", stars=2, is_automated=True),
        ]
        return image_pb2.SearchImagesResponse(images=found[: request.limit])

    async def SaveImages(self, request, context):
        await self._daemon.check(request, context)
        for name in request.images:
            await self._require(name, context)
        for at in range(0, len(self._daemon.archive), 1 << 20):
            yield image_pb2.SaveImagesResponse(data=self._daemon.archive[at : at + (1 << 20)])

    async def LoadImages(self, requests, context):
        first = await anext(aiter(requests))
        await self._daemon.check(first, context)
        data = first.data + b"".join([request.data async for request in requests])
        if data != self._daemon.archive:
            detail = system_pb2.ErrorDetail(brief="is not an archive of images", subject="load")
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, detail)
        image = self._daemon.add_image("loaded:1")
        layer = image_pb2.LayerProgress(digest=digest("layer 1"), phase=image_pb2.LAYER_PHASE_DONE)
        yield image_pb2.LoadImagesResponse(layer=layer)
        yield image_pb2.LoadImagesResponse(image=image_pb2.LoadedImage(image=image, tags=image.tags))
        nameless = image_pb2.Image(id=digest("nameless"))
        yield image_pb2.LoadImagesResponse(image=image_pb2.LoadedImage(image=nameless))

    async def ImportImage(self, requests, context):
        first = await anext(aiter(requests))
        await self._daemon.check(first, context)
        data = await whole(requests)
        return image_pb2.ImportImageResponse(image=image_pb2.Image(id=digest(data.decode())))

    async def PruneImages(self, request, context):
        await self._daemon.check(request, context)
        gone = [image for image in self._daemon.images.values() if request.all or not image.tags]
        self._daemon.images = {k: v for k, v in self._daemon.images.items() if v not in gone}
        return image_pb2.PruneImagesResponse(
            untagged=[tag for image in gone for tag in image.tags],
            deleted=[image.id for image in gone],
            reclaimed_bytes=sum(image.size_bytes for image in gone),
        )

    async def InspectManifest(self, request, context):
        await self._daemon.check(request, context)
        found = self._daemon.manifests.get(request.reference)
        if found is None:
            detail = system_pb2.ErrorDetail(brief="no such manifest", subject=request.reference)
            await abort(context, grpc.StatusCode.NOT_FOUND, detail)
        assert found is not None
        content, media_type = found
        return image_pb2.InspectManifestResponse(
            manifest=content, media_type=media_type, digest=digest(content.decode())
        )

    async def _require(self, name: str, context: Context) -> image_pb2.Image:
        image = self._daemon.find_image(name)
        if image is None:
            detail = system_pb2.ErrorDetail(brief="no such image", subject=name, reason="image-not-found")
            await abort(context, grpc.StatusCode.NOT_FOUND, detail)
        assert image is not None
        return image


def _progress(layer: str, phase: "image_pb2.LayerPhase.ValueType", done: int) -> image_pb2.PullImageResponse:
    return image_pb2.PullImageResponse(
        layer=image_pb2.LayerProgress(digest=layer, phase=phase, done_bytes=done, total_bytes=10_000_000)
    )


def _push_progress(
    layer: str, phase: "image_pb2.PushPhase.ValueType", done: int
) -> image_pb2.PushImageResponse:
    return image_pb2.PushImageResponse(
        blob=image_pb2.PushProgress(digest=layer, phase=phase, done_bytes=done, total_bytes=10_000_000)
    )
