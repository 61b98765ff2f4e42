# SPDX-License-Identifier: Apache-2.0
"""Images of the hyperd without machines: pulls that take as long as they are told to."""
# ruff: noqa: N802 - the methods have the names of the contract

import asyncio

import grpc

from hyper.v1 import image_pb2, image_pb2_grpc, system_pb2
from tests.fakes.daemon_state import Context, FakeDaemon, abort, digest


class FakeImages(image_pb2_grpc.ImageServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def PullImage(self, request, context):
        await self._daemon.check(request, context)
        name = request.reference.partition(":")[0]
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
