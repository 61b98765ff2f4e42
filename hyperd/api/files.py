# SPDX-License-Identifier: Apache-2.0
"""The calls of ContainerService that are about files: decode, delegate to the handle, encode.

The streams write to their context, see containers.py: a client who hangs up ends its call at once, and a slow one is
waited for before the guest is asked for more.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

from hyper.v1 import container_pb2 as wire
from hyper.v1 import container_pb2_grpc
from hyperd.api.status import Context, errors_as_status
from hyperd.api.uploads import received
from hyperd.errors import InvalidError
from hyperd.model.guest import Change, ChangeKind, PathStat, WriteOptions
from hyperd.model.image import NewImage
from hyperd.sandbox import Fleet

_BATCH_BYTES = 64 * 1024  # of changes: their paths
_BATCH_CHANGES = 1024
_KINDS = {kind: wire.ChangeKind.Value(f"CHANGE_KIND_{kind.name}") for kind in ChangeKind}


class FileServicer(container_pb2_grpc.ContainerServiceServicer):
    _fleet: Fleet

    async def CommitContainer(self, request: wire.CommitContainerRequest, context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            image = await self._fleet.get(request.container).files.commit(
                NewImage(
                    reference=request.reference,
                    author=request.author,
                    message=request.message,
                    changes=tuple(request.changes),
                ),
                pause=not request.no_pause,
                tell=lambda done: context.write(wire.CommitContainerResponse(done_bytes=done)),
            )
            await context.write(wire.CommitContainerResponse(image_id=image.image_id))

    async def ListChanges(self, request: wire.ListChangesRequest, context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            batch = _Batch(lambda changes: context.write(wire.ListChangesResponse(changes=changes)))
            await self._fleet.get(request.container).files.list_changes(batch.add)
            await batch.flush()

    async def ExportContainer(self, request: wire.ExportContainerRequest, context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            await self._fleet.get(request.container).files.export(
                lambda data: context.write(wire.ExportContainerResponse(data=data))
            )

    async def ReadPath(self, request: wire.ReadPathRequest, context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            await self._fleet.get(request.container).files.read(
                request.path,
                lambda item: context.write(_encode_item(item)),
                follow_link=request.follow_link,
            )

    async def WritePath(
        self, requests: AsyncIterator[wire.WritePathRequest], context: Context
    ) -> wire.WritePathResponse:
        async with errors_as_status(context):
            first = await anext(aiter(requests), wire.WritePathRequest())
            if first.WhichOneof("kind") != "options":
                raise InvalidError("the first request of the call must be 'options'")
            options = first.options
            await self._fleet.get(options.container).files.write(
                WriteOptions(
                    path=options.path,
                    keep_owner=options.keep_owner,
                    no_overwrite_dir_non_dir=options.no_overwrite_dir_non_dir,
                ),
                received(requests, _data_of, is_end=lambda request: request.end),
            )
            return wire.WritePathResponse()


class _Batch:
    """Changes, many to a message."""

    def __init__(self, write: Callable[[list[wire.Change]], Awaitable[None]]) -> None:
        self._write = write
        self._changes: list[wire.Change] = []
        self._bytes = 0

    async def add(self, change: Change) -> None:
        self._changes.append(wire.Change(kind=_KINDS[change.kind], path=change.path))
        self._bytes += len(change.path)
        if self._bytes >= _BATCH_BYTES or len(self._changes) >= _BATCH_CHANGES:
            await self.flush()

    async def flush(self) -> None:
        if self._changes:
            changes, self._changes, self._bytes = self._changes, [], 0
            await self._write(changes)


def _encode_item(item: PathStat | bytes) -> wire.ReadPathResponse:
    if isinstance(item, bytes):
        return wire.ReadPathResponse(data=item)
    stat = wire.PathStat(
        name=item.name, size_bytes=item.size_bytes, mode=item.mode, link_target=item.link_target
    )
    stat.modified_at.FromDatetime(item.modified_at)
    return wire.ReadPathResponse(stat=stat)


def _data_of(request: wire.WritePathRequest) -> bytes:
    if request.WhichOneof("kind") not in ("data", "end"):
        raise InvalidError("only 'data' and 'end' can come after the first request")
    return request.data
