# SPDX-License-Identifier: Apache-2.0
"""SystemService: what this hyperd is and what it stands on."""

from collections.abc import Awaitable, Callable

from hyper.v1 import system_pb2 as wire
from hyper.v1 import system_pb2_grpc
from hyperd.api import convert
from hyperd.api.status import Context, errors_as_status
from hyperd.model.host import HostCheck
from hyperd.sandbox import Resetting


class SystemServicer(system_pb2_grpc.SystemServiceServicer):
    """The composition root knows the answers; this gives them."""

    def __init__(
        self,
        version: Callable[[], wire.GetVersionResponse],
        info: Callable[[], Awaitable[wire.GetInfoResponse]],
        checks: Callable[[], Awaitable[list[HostCheck]]],
        usage: Callable[[], Awaitable[wire.GetDiskUsageResponse]],
        resetting: Resetting,
    ) -> None:
        self._resetting = resetting
        self._version = version
        self._info = info
        self._checks = checks
        self._usage = usage

    async def GetVersion(self, request: wire.GetVersionRequest, context: Context) -> wire.GetVersionResponse:
        async with errors_as_status(context):
            return self._version()

    async def GetInfo(self, request: wire.GetInfoRequest, context: Context) -> wire.GetInfoResponse:
        async with errors_as_status(context):
            return await self._info()

    async def CheckHost(self, request: wire.CheckHostRequest, context: Context) -> wire.CheckHostResponse:
        async with errors_as_status(context):
            checks = await self._checks()
            return wire.CheckHostResponse(checks=[convert.encode_check(check) for check in checks])

    async def GetDiskUsage(
        self, request: wire.GetDiskUsageRequest, context: Context
    ) -> wire.GetDiskUsageResponse:
        async with errors_as_status(context):
            return await self._usage()

    async def ResetSystem(
        self, request: wire.ResetSystemRequest, context: Context
    ) -> wire.ResetSystemResponse:
        async with errors_as_status(context):
            gone = await self._resetting.reset(force=request.force)
            return wire.ResetSystemResponse(
                containers=gone.containers,
                networks=gone.networks,
                security_groups=gone.groups,
                floating=gone.floating,
            )
