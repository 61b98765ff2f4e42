# SPDX-License-Identifier: Apache-2.0
"""Networks of the hyperd without machines."""
# ruff: noqa: N802 - the methods have the names of the contract

import grpc

from hyper.v1 import network_pb2, network_pb2_grpc, system_pb2
from tests.fakes.daemon_state import FakeDaemon, abort, ago


class FakeNetworks(network_pb2_grpc.NetworkServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def CreateNetwork(self, request, context):
        await self._daemon.check(request, context)
        number = len(self._daemon.networks)
        network = network_pb2.Network(id=f"{number:064x}", spec=request.spec, created_at=ago(60))
        self._daemon.networks[request.spec.name] = network
        return network_pb2.CreateNetworkResponse(network=network)

    async def ListNetworks(self, request, context):
        await self._daemon.check(request, context)
        return network_pb2.ListNetworksResponse(networks=self._daemon.networks.values())

    async def RemoveNetwork(self, request, context):
        await self._daemon.check(request, context)
        for name, network in self._daemon.networks.items():
            if request.network in (name, network.id):
                if network.members:
                    detail = system_pb2.ErrorDetail(brief="is in use", subject=f"network {name}")
                    await abort(context, grpc.StatusCode.FAILED_PRECONDITION, detail)
                del self._daemon.networks[name]
                return network_pb2.RemoveNetworkResponse(name=name)
        detail = system_pb2.ErrorDetail(brief="no such network", subject=f"network {request.network}")
        await abort(context, grpc.StatusCode.NOT_FOUND, detail)
        return None

    async def PruneNetworks(self, request, context):
        await self._daemon.check(request, context)
        networks = self._daemon.networks
        gone = [name for name, made in networks.items() if made.HasField("created_at") and not made.members]
        for name in gone:
            del networks[name]
        return network_pb2.PruneNetworksResponse(names=gone)
