# SPDX-License-Identifier: Apache-2.0
"""Volumes of the hyperd without machines."""
# ruff: noqa: N802 - the methods have the names of the contract

import grpc

from hyper.v1 import system_pb2, volume_pb2, volume_pb2_grpc
from tests.fakes.daemon_state import FakeDaemon, abort, ago, whole

STREAM = b"a volume: "


class FakeVolumes(volume_pb2_grpc.VolumeServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def CreateVolume(self, request, context):
        await self._daemon.check(request, context)
        volume = volume_pb2.Volume(
            name=request.name or "f" * 64,
            driver=request.driver or "local",
            size_bytes=request.size_bytes or 10 << 30,
            allocated_bytes=1_400_000,
            filesystem=request.filesystem or "ext4",
            labels=request.labels,
            anonymous=not request.name,
            created_at=ago(3600),
            path=f"/volumes/{request.name}/disk.img",
        )
        self._daemon.volumes[volume.name] = volume
        return volume_pb2.CreateVolumeResponse(volume=volume)

    async def ResizeVolume(self, request, context):
        await self._daemon.check(request, context)
        volume = await self._require(request.volume, context)
        volume.size_bytes = request.size_bytes
        return volume_pb2.ResizeVolumeResponse(volume=volume)

    async def ExportVolume(self, request, context):
        await self._daemon.check(request, context)
        volume = await self._require(request.volume, context)
        yield volume_pb2.ExportVolumeResponse(data=STREAM + volume.name.encode())

    async def ImportVolume(self, requests, context):
        first = await anext(aiter(requests))
        await self._daemon.check(first, context)
        content = b"".join([request.data async for request in requests])
        if not content.startswith(STREAM):
            detail = system_pb2.ErrorDetail(brief="this is not a volume's stream")
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, detail)
        made = await self.CreateVolume(volume_pb2.CreateVolumeRequest(name=first.volume), context)
        return volume_pb2.ImportVolumeResponse(volume=made.volume)

    async def FillVolume(self, requests, context):
        first = await anext(aiter(requests))
        await self._daemon.check(first, context)
        await self._require(first.volume, context)
        self._daemon.filled[first.volume] = await whole(requests)
        return volume_pb2.FillVolumeResponse()

    async def ListVolumes(self, request, context):
        await self._daemon.check(request, context)
        return volume_pb2.ListVolumesResponse(volumes=self._daemon.volumes.values())

    async def InspectVolume(self, request, context):
        await self._daemon.check(request, context)
        return volume_pb2.InspectVolumeResponse(volume=await self._require(request.volume, context))

    async def RemoveVolume(self, request, context):
        await self._daemon.check(request, context)
        del self._daemon.volumes[(await self._require(request.volume, context)).name]
        return volume_pb2.RemoveVolumeResponse()

    async def PruneVolumes(self, request, context):
        await self._daemon.check(request, context)
        gone = [name for name, volume in self._daemon.volumes.items() if request.all or volume.anonymous]
        for name in gone:
            del self._daemon.volumes[name]
        return volume_pb2.PruneVolumesResponse(removed=gone, reclaimed_bytes=1_400_000 * len(gone))

    async def _require(self, name, context):
        if name not in self._daemon.volumes:
            detail = system_pb2.ErrorDetail(brief="no such volume", subject=name)
            await abort(context, grpc.StatusCode.NOT_FOUND, detail)
        return self._daemon.volumes[name]
