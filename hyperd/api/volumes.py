# SPDX-License-Identifier: Apache-2.0
"""VolumeService: decode, delegate to the desk, encode."""

from collections.abc import AsyncIterator

from hyper.v1 import volume_pb2 as wire
from hyper.v1 import volume_pb2_grpc
from hyperd.api import uploads
from hyperd.api.convert import encode_time
from hyperd.api.status import Context, errors_as_status
from hyperd.model.volume import VolumeName, VolumeRequest, VolumeView
from hyperd.sandbox import Fleet


class VolumeServicer(volume_pb2_grpc.VolumeServiceServicer):
    def __init__(self, fleet: Fleet) -> None:
        self._desk = fleet.volumes
        self._living = fleet.living_volumes
        self._vms = fleet.volume_vms

    async def CreateVolume(
        self, request: wire.CreateVolumeRequest, context: Context
    ) -> wire.CreateVolumeResponse:
        async with errors_as_status(context):
            asked = VolumeRequest(
                VolumeName(request.name),
                request.size_bytes,
                request.filesystem,
                request.driver,
                dict(request.labels),
                dict(request.options),
                snapshot=request.snapshot,
            )
            return wire.CreateVolumeResponse(volume=encode_volume(await self._desk.create(asked)))

    async def ResizeVolume(
        self, request: wire.ResizeVolumeRequest, context: Context
    ) -> wire.ResizeVolumeResponse:
        async with errors_as_status(context):
            view = await self._living.resize(VolumeName(request.volume), request.size_bytes)
            return wire.ResizeVolumeResponse(volume=encode_volume(view))

    async def ExportVolume(self, request: wire.ExportVolumeRequest, context: Context) -> None:  # type: ignore[override]
        async with (
            errors_as_status(context),
            self._living.exported(VolumeName(request.volume)) as stream,
        ):
            async for piece in stream:
                for data in uploads.pieces(piece):
                    await context.write(wire.ExportVolumeResponse(data=data))

    async def ImportVolume(
        self, requests: AsyncIterator[wire.ImportVolumeRequest], context: Context
    ) -> wire.ImportVolumeResponse:
        async with errors_as_status(context):
            first = await uploads.first_request(requests, "volume")
            stream = uploads.received(requests, lambda request: request.data, first.data)
            view = await self._desk.import_(first.volume, dict(first.labels), stream)
            return wire.ImportVolumeResponse(volume=encode_volume(view))

    async def FillVolume(
        self, requests: AsyncIterator[wire.FillVolumeRequest], context: Context
    ) -> wire.FillVolumeResponse:
        async with errors_as_status(context):
            first = await uploads.first_request(requests, "volume")
            stream = uploads.received(
                requests, lambda request: request.data, first.data, lambda request: request.end
            )
            await self._vms.fill(VolumeName(first.volume), stream, keep_owner=first.keep_owner)
            return wire.FillVolumeResponse()

    async def ListVolumes(
        self, request: wire.ListVolumesRequest, context: Context
    ) -> wire.ListVolumesResponse:
        async with errors_as_status(context):
            found = await self._desk.list([(item.key, item.value) for item in request.filters])
            return wire.ListVolumesResponse(volumes=[encode_volume(view) for view in found])

    async def InspectVolume(
        self, request: wire.InspectVolumeRequest, context: Context
    ) -> wire.InspectVolumeResponse:
        async with errors_as_status(context):
            return wire.InspectVolumeResponse(volume=encode_volume(await self._desk.get(request.volume)))

    async def RemoveVolume(
        self, request: wire.RemoveVolumeRequest, context: Context
    ) -> wire.RemoveVolumeResponse:
        async with errors_as_status(context):
            await self._desk.remove(request.volume)
            return wire.RemoveVolumeResponse()

    async def PruneVolumes(
        self, request: wire.PruneVolumesRequest, context: Context
    ) -> wire.PruneVolumesResponse:
        async with errors_as_status(context):
            wanted = [(item.key, item.value) for item in request.filters]
            pruned = await self._desk.prune(named=request.all, wanted=wanted)
            return wire.PruneVolumesResponse(removed=pruned.removed, reclaimed_bytes=pruned.reclaimed_bytes)


def encode_volume(view: VolumeView) -> wire.Volume:
    volume = view.volume
    return wire.Volume(
        name=volume.name,
        driver=volume.driver,
        size_bytes=volume.size_bytes,
        allocated_bytes=view.allocated_bytes,
        filesystem=volume.filesystem,
        labels=volume.labels,
        anonymous=volume.anonymous,
        created_at=encode_time(volume.created_at),
        path=volume.server or str(volume.path),
        users=[
            wire.VolumeUser(
                container_id=user.sandbox_id,
                container_name=user.name,
                readonly=user.readonly,
                attached=user.attached,
            )
            for user in view.users
        ],
    )
