# SPDX-License-Identifier: Apache-2.0
"""NetworkService: decode, delegate to the fleet, encode."""

from hyper.v1 import network_pb2 as wire
from hyper.v1 import network_pb2_grpc
from hyperd.api import ports
from hyperd.api.status import Context, errors_as_status
from hyperd.sandbox import Fleet


class NetworkServicer(network_pb2_grpc.NetworkServiceServicer):
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def PublishPorts(
        self, request: wire.PublishPortsRequest, context: Context
    ) -> wire.PublishPortsResponse:
        async with errors_as_status(context):
            made = await self._fleet.get(request.container).publish(ports.decode_requests(request.ports))
            return wire.PublishPortsResponse(ports=ports.encode_published(made))

    async def UnpublishPorts(
        self, request: wire.UnpublishPortsRequest, context: Context
    ) -> wire.UnpublishPortsResponse:
        async with errors_as_status(context):
            chosen = ports.decode_unpublished(request.ports)
            gone = await self._fleet.get(request.container).unpublish(chosen)
            return wire.UnpublishPortsResponse(ports=ports.encode_published(gone))
