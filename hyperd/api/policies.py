# SPDX-License-Identifier: Apache-2.0
"""EgressService: decode, delegate to the desk, encode."""

from hyper.v1 import policy_pb2 as wire
from hyper.v1 import policy_pb2_grpc
from hyperd.api.convert import encode_time
from hyperd.api.status import Context, errors_as_status
from hyperd.model.policy import Attempt
from hyperd.sandbox import PolicyDesk


class EgressServicer(policy_pb2_grpc.EgressServiceServicer):
    def __init__(self, desk: PolicyDesk) -> None:
        self._desk = desk

    async def SetEgress(self, request: wire.SetEgressRequest, context: Context) -> wire.SetEgressResponse:
        async with errors_as_status(context):
            await self._desk.set_egress(request.container, request.policy)
            return wire.SetEgressResponse()

    async def InspectEgress(
        self, request: wire.InspectEgressRequest, context: Context
    ) -> wire.InspectEgressResponse:
        async with errors_as_status(context):
            record, limits = self._desk.inspect(request.container)
            return wire.InspectEgressResponse(
                container_id=record.sandbox_id, name=record.name, policy=limits.egress
            )

    async def ReportEgress(
        self, request: wire.ReportEgressRequest, context: Context
    ) -> wire.ReportEgressResponse:
        async with errors_as_status(context):
            report = await self._desk.report(request.container)
            return wire.ReportEgressResponse(
                container_id=report.sandbox_id,
                name=report.name,
                attempts=[_encode(attempt) for attempt in report.attempts],
                is_cut=report.is_cut,
            )


def _encode(attempt: Attempt) -> wire.EgressAttempt:
    return wire.EgressAttempt(
        destination=attempt.destination,
        protocol=attempt.protocol,
        port=attempt.port,
        name=attempt.name,
        count=attempt.count,
        first_at=encode_time(attempt.first_at),
        last_at=encode_time(attempt.last_at),
    )
