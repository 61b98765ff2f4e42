# SPDX-License-Identifier: Apache-2.0
"""SnapshotService: decode, delegate to the fleet, encode."""

import contextlib
from collections.abc import AsyncIterator

from hyper.v1 import snapshot_pb2 as wire
from hyper.v1 import snapshot_pb2_grpc
from hyperd.api import convert
from hyperd.api.status import Context, errors_as_status
from hyperd.errors import InvalidError
from hyperd.model.snapshot import Snapshot
from hyperd.model.volume import VolumeName, VolumeSnapshot
from hyperd.sandbox import Fleet

MAX_DATA_BYTES = 1 << 20  # of one message


class SnapshotServicer(snapshot_pb2_grpc.SnapshotServiceServicer):
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._snapshots = fleet.snapshot_desk

    async def CreateSnapshot(
        self, request: wire.CreateSnapshotRequest, context: Context
    ) -> wire.CreateSnapshotResponse:
        async with errors_as_status(context):
            if bool(request.volume) == bool(request.container):
                raise InvalidError("a snapshot is of a container or of a volume")
            made: Snapshot | VolumeSnapshot
            async with self._snapshots.naming(request.name):
                if request.volume:
                    name = VolumeName(request.volume)
                    made = await self._fleet.living_volumes.snapshot(name, request.name)
                else:
                    made = await self._fleet.get(request.container).snapshot(request.name)
            return wire.CreateSnapshotResponse(snapshot=encode(made))

    async def ListSnapshots(
        self, request: wire.ListSnapshotsRequest, context: Context
    ) -> wire.ListSnapshotsResponse:
        async with errors_as_status(context):
            of_containers, of_volumes = await self._snapshots.list()
            found = [*map(encode, of_containers), *map(encode, of_volumes)]
            found.sort(key=lambda item: (item.created_at.seconds, item.created_at.nanos), reverse=True)
            return wire.ListSnapshotsResponse(snapshots=found)

    async def InspectSnapshot(
        self, request: wire.InspectSnapshotRequest, context: Context
    ) -> wire.InspectSnapshotResponse:
        async with errors_as_status(context):
            found = await self._snapshots.get(request.snapshot)
            return wire.InspectSnapshotResponse(snapshot=encode(found))

    async def RemoveSnapshot(
        self, request: wire.RemoveSnapshotRequest, context: Context
    ) -> wire.RemoveSnapshotResponse:
        async with errors_as_status(context):
            key = await self._snapshots.remove(request.snapshot)
            return wire.RemoveSnapshotResponse(snapshot_id=key)

    async def ExportSnapshot(self, request: wire.ExportSnapshotRequest, context: Context) -> None:  # type: ignore[override]
        async with (
            errors_as_status(context),
            # A caller who hangs up leaves the stream at once.
            contextlib.aclosing(self._snapshots.export(request.snapshot)) as stream,
        ):
            async for piece in stream:
                for at in range(0, len(piece), MAX_DATA_BYTES):
                    data = piece[at : at + MAX_DATA_BYTES]
                    await context.write(wire.ExportSnapshotResponse(data=data))

    async def ImportSnapshot(
        self, requests: AsyncIterator[wire.ImportSnapshotRequest], context: Context
    ) -> wire.ImportSnapshotResponse:
        async with errors_as_status(context):
            first = await anext(aiter(requests), None)
            if first is None:
                raise InvalidError("no snapshot was sent")
            snapshot = await self._snapshots.import_(_data(first, requests), name=first.name)
            return wire.ImportSnapshotResponse(snapshot=convert.encode_snapshot(snapshot))

    async def RestoreSnapshot(
        self, request: wire.RestoreSnapshotRequest, context: Context
    ) -> wire.RestoreSnapshotResponse:
        async with errors_as_status(context):
            options = convert.decode_clone_options(request.options)
            views = await self._fleet.restore(request.snapshot, options)
            return wire.RestoreSnapshotResponse(clones=convert.encode_clones(views))


def encode(snapshot: Snapshot | VolumeSnapshot) -> wire.Snapshot:
    if isinstance(snapshot, Snapshot):
        return convert.encode_snapshot(snapshot)
    return wire.Snapshot(
        id=snapshot.snapshot_id,
        name=snapshot.name,
        created_at=convert.encode_time(snapshot.created_at),
        size_bytes=snapshot.size_bytes,
        allocated_bytes=snapshot.allocated_bytes,
        volume=snapshot.volume,
        filesystem=snapshot.filesystem,
        consistency=snapshot.consistency,
    )


async def _data(
    first: wire.ImportSnapshotRequest, rest: AsyncIterator[wire.ImportSnapshotRequest]
) -> AsyncIterator[bytes]:
    request: wire.ImportSnapshotRequest | None = first
    while request is not None:
        if len(request.data) > MAX_DATA_BYTES:
            raise InvalidError(f"a message holds more than {MAX_DATA_BYTES} bytes")
        if request.data:
            yield request.data
        request = await anext(aiter(rest), None)
