# SPDX-License-Identifier: Apache-2.0
"""Snapshots and templates of the hyperd without machines."""
# ruff: noqa: N802 - the methods have the names of the contract

import grpc

from hyper.v1 import container_pb2 as pb
from hyper.v1 import snapshot_pb2, snapshot_pb2_grpc, system_pb2
from tests.fakes.daemon_state import UP, Context, FakeDaemon, abort


class FakeSnapshots(snapshot_pb2_grpc.SnapshotServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def CreateSnapshot(self, request, context):
        await self._daemon.check(request, context)
        if request.volume:
            return snapshot_pb2.CreateSnapshotResponse(
                snapshot=self._daemon.add_volume_snapshot(request.volume, request.name)
            )
        container = await self._daemon.require_state(request.container, context, *UP)
        await self._require_free(request.name, context)
        return snapshot_pb2.CreateSnapshotResponse(
            snapshot=self._daemon.add_snapshot(container, request.name)
        )

    async def ListSnapshots(self, request, context):
        await self._daemon.check(request, context)
        return snapshot_pb2.ListSnapshotsResponse(snapshots=reversed(self._daemon.snapshots.values()))

    async def InspectSnapshot(self, request, context):
        await self._daemon.check(request, context)
        snapshot = await self._daemon.require_snapshot(request.snapshot, context)
        return snapshot_pb2.InspectSnapshotResponse(snapshot=snapshot)

    async def RemoveSnapshot(self, request, context):
        await self._daemon.check(request, context)
        snapshot = await self._daemon.require_snapshot(request.snapshot, context)
        del self._daemon.snapshots[snapshot.id]
        return snapshot_pb2.RemoveSnapshotResponse(snapshot_id=snapshot.id)

    async def ExportSnapshot(self, request, context):
        await self._daemon.check(request, context)
        snapshot = await self._daemon.require_snapshot(request.snapshot, context)
        content = self._daemon.contents[snapshot.id]
        for offset in range(0, len(content), 1 << 20):
            yield snapshot_pb2.ExportSnapshotResponse(data=content[offset : offset + (1 << 20)])
            if self._daemon.failures.pop("ExportSnapshotHalfway", None):
                detail = system_pb2.ErrorDetail(brief="the disk failed", subject=request.snapshot)
                await abort(context, grpc.StatusCode.UNAVAILABLE, detail)

    async def ImportSnapshot(self, requests, context):
        first = await anext(aiter(requests))
        await self._daemon.check(first, context)
        await self._require_free(first.name, context)
        content = first.data + b"".join([request.data async for request in requests])
        source = next((s for s, data in self._daemon.contents.items() if data == content), None)
        if source is None:
            detail = system_pb2.ErrorDetail(brief="is not a snapshot", subject="import")
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, detail)
        snapshot = self._daemon.add_snapshot(pb.Container(image="alpine"), first.name)
        return snapshot_pb2.ImportSnapshotResponse(snapshot=snapshot)

    async def RestoreSnapshot(self, request, context):
        await self._daemon.check(request, context)
        snapshot = await self._daemon.require_snapshot(request.snapshot, context)
        source = pb.Container(spec=pb.ContainerSpec(image=snapshot.image, args=["sleep"]))
        clones = self._daemon.add_clones(source, request.options)
        return snapshot_pb2.RestoreSnapshotResponse(clones=clones)

    async def _require_free(self, name: str, context: Context) -> None:
        if name and self._daemon.find_snapshot(name, self._daemon.snapshots) is not None:
            detail = system_pb2.ErrorDetail(brief="the name is taken", subject=name)
            await abort(context, grpc.StatusCode.ALREADY_EXISTS, detail)


class FakeTemplates(snapshot_pb2_grpc.TemplateServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def ListTemplates(self, request, context):
        await self._daemon.check(request, context)
        return snapshot_pb2.ListTemplatesResponse(templates=self._daemon.templates.values())

    async def BuildTemplate(self, request, context):
        await self._daemon.check(request, context)
        layouts = ("disk:image:ro,disk:writable:rw,nic", "disk:image:ro,disk:writable:rw")
        size = (request.vcpus or 1, request.memory_mib or 256)
        templates = [self._daemon.add_template(*size, layout) for layout in layouts]
        return snapshot_pb2.BuildTemplateResponse(templates=templates, duration_ms=1500)

    async def RemoveTemplate(self, request, context):
        await self._daemon.check(request, context)
        template = await self._daemon.require_snapshot(
            request.template, context, what="template", among=self._daemon.templates
        )
        del self._daemon.templates[template.id]
        return snapshot_pb2.RemoveTemplateResponse(template_id=template.id)
