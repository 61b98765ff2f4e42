# SPDX-License-Identifier: Apache-2.0
"""FloatingService: decode, delegate to the desk, encode."""

from hyper.v1 import policy_pb2 as wire
from hyper.v1 import policy_pb2_grpc
from hyperd.api.status import Context, errors_as_status
from hyperd.model.network import FloatingAddress
from hyperd.sandbox import FloatingDesk


class FloatingServicer(policy_pb2_grpc.FloatingServiceServicer):
    def __init__(self, desk: FloatingDesk) -> None:
        self._desk = desk

    async def AllocateFloating(
        self, request: wire.AllocateFloatingRequest, context: Context
    ) -> wire.AllocateFloatingResponse:
        async with errors_as_status(context):
            made = await self._desk.allocate(request.count or 1, request.wanted)
            return wire.AllocateFloatingResponse(addresses=[_encode(*lent) for lent in made])

    async def ListFloating(
        self, _request: wire.ListFloatingRequest, context: Context
    ) -> wire.ListFloatingResponse:
        async with errors_as_status(context):
            return wire.ListFloatingResponse(
                addresses=[_encode(*lent) for lent in await self._desk.list_all()]
            )

    async def AttachFloating(
        self, request: wire.AttachFloatingRequest, context: Context
    ) -> wire.AttachFloatingResponse:
        async with errors_as_status(context):
            lent = await self._desk.attach(request.floating, request.container, force=request.force)
            return wire.AttachFloatingResponse(address=_encode(*lent))

    async def DetachFloating(
        self, request: wire.DetachFloatingRequest, context: Context
    ) -> wire.DetachFloatingResponse:
        async with errors_as_status(context):
            return wire.DetachFloatingResponse(address=_encode(*await self._desk.detach(request.container)))

    async def NameFloating(
        self, request: wire.NameFloatingRequest, context: Context
    ) -> wire.NameFloatingResponse:
        async with errors_as_status(context):
            return wire.NameFloatingResponse(
                address=_encode(*await self._desk.name(request.floating, request.name))
            )

    async def ReleaseFloating(
        self, request: wire.ReleaseFloatingRequest, context: Context
    ) -> wire.ReleaseFloatingResponse:
        async with errors_as_status(context):
            await self._desk.release(request.floating)
            return wire.ReleaseFloatingResponse()


def _encode(address: FloatingAddress, container_name: str) -> wire.FloatingAddress:
    return wire.FloatingAddress(
        address=address.address,
        name=address.name,
        container_id=address.sandbox_id or "",
        container_name=container_name,
    )
