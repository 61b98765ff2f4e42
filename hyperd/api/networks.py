# SPDX-License-Identifier: Apache-2.0
"""NetworkService: decode, delegate to the fleet, encode."""

from collections.abc import Sequence

from hyper.v1 import network_pb2 as wire
from hyper.v1 import network_pb2_grpc
from hyperd.api import ports
from hyperd.api.convert import decode_endpoint, encode_attachment, encode_time
from hyperd.api.status import Context, errors_as_status
from hyperd.model.container import ContainerView
from hyperd.model.network import NetworkSpec, NetworkView
from hyperd.sandbox import Fleet, NetworkDesk


class NetworkServicer(network_pb2_grpc.NetworkServiceServicer):
    def __init__(self, fleet: Fleet, desk: NetworkDesk) -> None:
        self._fleet = fleet
        self._desk = desk

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

    async def CreateNetwork(
        self, request: wire.CreateNetworkRequest, context: Context
    ) -> wire.CreateNetworkResponse:
        async with errors_as_status(context):
            view = await self._desk.create(_decode(request.spec))
            return wire.CreateNetworkResponse(network=self._encode(view))

    async def ListNetworks(
        self, _request: wire.ListNetworksRequest, context: Context
    ) -> wire.ListNetworksResponse:
        async with errors_as_status(context):
            members = self._desk.members()
            shown = [_encode(view, members.get(view.spec.name, ())) for view in self._desk.list_networks()]
            return wire.ListNetworksResponse(networks=shown)

    async def InspectNetwork(
        self, request: wire.InspectNetworkRequest, context: Context
    ) -> wire.InspectNetworkResponse:
        async with errors_as_status(context):
            return wire.InspectNetworkResponse(network=self._encode(self._desk.get(request.network)))

    async def RemoveNetwork(
        self, request: wire.RemoveNetworkRequest, context: Context
    ) -> wire.RemoveNetworkResponse:
        async with errors_as_status(context):
            return wire.RemoveNetworkResponse(name=await self._desk.remove(request.network))

    async def PruneNetworks(
        self, _request: wire.PruneNetworksRequest, context: Context
    ) -> wire.PruneNetworksResponse:
        async with errors_as_status(context):
            return wire.PruneNetworksResponse(names=await self._desk.prune())

    async def ConnectNetwork(
        self, request: wire.ConnectNetworkRequest, context: Context
    ) -> wire.ConnectNetworkResponse:
        async with errors_as_status(context):
            container = self._fleet.get(request.container)
            told = await self._desk.connect(container, decode_endpoint(request.endpoint))
            return wire.ConnectNetworkResponse(warnings=told)

    async def DisconnectNetwork(
        self, request: wire.DisconnectNetworkRequest, context: Context
    ) -> wire.DisconnectNetworkResponse:
        async with errors_as_status(context):
            container = self._fleet.get(request.container)
            told = await self._desk.disconnect(container, request.network, force=request.force)
            return wire.DisconnectNetworkResponse(warnings=told)

    def _encode(self, view: NetworkView) -> wire.Network:
        return _encode(view, self._desk.on(view.spec.name))


def _encode(view: NetworkView, on_it: Sequence[ContainerView]) -> wire.Network:
    spec = view.spec
    members = [
        wire.NetworkMember(
            container_id=member.record.sandbox_id,
            name=member.record.name,
            attachment=encode_attachment(attachment) if attachment else None,
        )
        for member in on_it
        for attachment in [member.attachment_of(spec.name)]
    ]
    return wire.Network(
        id=view.network_id,
        spec=wire.NetworkSpec(
            name=spec.name,
            subnet=spec.subnet,
            gateway=spec.gateway,
            ip_range=spec.ip_range,
            internal=spec.internal,
            mtu=spec.mtu,
            labels=spec.labels,
            ipv6=spec.ipv6,
            subnet6=spec.subnet6,
            gateway6=spec.gateway6,
        ),
        bridge=view.bridge,
        created_at=encode_time(view.created_at),
        members=members,
    )


def _decode(spec: wire.NetworkSpec) -> NetworkSpec:
    return NetworkSpec(
        name=spec.name,
        subnet=spec.subnet,
        gateway=spec.gateway,
        ip_range=spec.ip_range,
        internal=spec.internal,
        mtu=spec.mtu,
        labels=dict(spec.labels),
        ipv6=spec.ipv6,
        subnet6=spec.subnet6,
        gateway6=spec.gateway6,
    )
