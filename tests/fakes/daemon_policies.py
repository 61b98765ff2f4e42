# SPDX-License-Identifier: Apache-2.0
"""Policies of the hyperd without machines."""
# ruff: noqa: N802 - the methods have the names of the contract

from hyper.v1 import policy_pb2, policy_pb2_grpc
from tests.fakes.daemon_state import FakeDaemon, ago


class FakeEgress(policy_pb2_grpc.EgressServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def SetEgress(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.SetEgressResponse()

    async def InspectEgress(self, request, context):
        await self._daemon.check(request, context)
        return policy_pb2.InspectEgressResponse(container_id="1" * 64, name=request.container, policy="none")

    async def ReportEgress(self, request, context):
        await self._daemon.check(request, context)
        attempt = policy_pb2.EgressAttempt(
            destination="198.51.100.2",
            protocol="tcp",
            port=22,
            name="bad.example",
            count=3,
            first_at=ago(60),
            last_at=ago(30),
        )
        name = policy_pb2.EgressAttempt(destination="evil\x1b[31m.example", protocol="dns", count=1)
        return policy_pb2.ReportEgressResponse(
            container_id="1" * 64, name=request.container, attempts=[attempt, name], is_cut=True
        )
