# SPDX-License-Identifier: Apache-2.0
"""ContainerService: decode, delegate to the fleet, encode."""

from collections.abc import AsyncIterator

from hyper.v1 import container_pb2 as wire
from hyperd.api import convert, logs, stats
from hyperd.api.files import FileServicer
from hyperd.api.session import serve_session
from hyperd.api.status import Context, errors_as_status
from hyperd.sandbox import Fleet, parse_signal


class ContainerServicer(FileServicer):
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def CreateContainer(
        self, request: wire.CreateContainerRequest, context: Context
    ) -> wire.CreateContainerResponse:
        async with errors_as_status(context):
            view, warnings = await self._fleet.create(convert.decode_spec(request.spec))
            return wire.CreateContainerResponse(
                container_id=view.record.sandbox_id, name=view.record.name, warnings=warnings
            )

    async def StartContainer(
        self, request: wire.StartContainerRequest, context: Context
    ) -> wire.StartContainerResponse:
        async with errors_as_status(context):
            driver = self._fleet.get(request.container)
            await driver.start()
            return wire.StartContainerResponse(container=convert.encode_container(driver.view()))

    async def StopContainer(
        self, request: wire.StopContainerRequest, context: Context
    ) -> wire.StopContainerResponse:
        async with errors_as_status(context):
            driver = self._fleet.get(request.container)
            await driver.stop(
                timeout_s=request.timeout_s if request.HasField("timeout_s") else None,
                signal=parse_signal(request.signal) if request.signal else None,
            )
            return wire.StopContainerResponse(container=convert.encode_container(driver.view()))

    async def KillContainer(
        self, request: wire.KillContainerRequest, context: Context
    ) -> wire.KillContainerResponse:
        async with errors_as_status(context):
            await self._fleet.get(request.container).kill(parse_signal(request.signal or "KILL"))
            return wire.KillContainerResponse()

    async def SignalExec(self, request: wire.SignalExecRequest, context: Context) -> wire.SignalExecResponse:
        async with errors_as_status(context):
            signal = parse_signal(request.signal or "KILL")
            await self._fleet.get(request.container).signal_exec(request.exec_id, signal)
            return wire.SignalExecResponse()

    async def PauseContainer(
        self, request: wire.PauseContainerRequest, context: Context
    ) -> wire.PauseContainerResponse:
        async with errors_as_status(context):
            await self._fleet.get(request.container).pause()
            return wire.PauseContainerResponse()

    async def UnpauseContainer(
        self, request: wire.UnpauseContainerRequest, context: Context
    ) -> wire.UnpauseContainerResponse:
        async with errors_as_status(context):
            await self._fleet.get(request.container).unpause()
            return wire.UnpauseContainerResponse()

    async def HibernateContainer(
        self, request: wire.HibernateContainerRequest, context: Context
    ) -> wire.HibernateContainerResponse:
        async with errors_as_status(context):
            await self._fleet.get(request.container).hibernate()
            return wire.HibernateContainerResponse()

    async def WakeContainer(
        self, request: wire.WakeContainerRequest, context: Context
    ) -> wire.WakeContainerResponse:
        async with errors_as_status(context):
            await self._fleet.get(request.container).wake()
            return wire.WakeContainerResponse()

    async def ForkContainer(
        self, request: wire.ForkContainerRequest, context: Context
    ) -> wire.ForkContainerResponse:
        async with errors_as_status(context):
            options = convert.decode_clone_options(request.options)
            views, pause_ms = await self._fleet.fork(request.container, options)
            return wire.ForkContainerResponse(clones=convert.encode_clones(views), pause_ms=pause_ms)

    async def RollbackContainer(
        self, request: wire.RollbackContainerRequest, context: Context
    ) -> wire.RollbackContainerResponse:
        async with errors_as_status(context):
            await self._fleet.roll_back(request.container, request.snapshot)
            return wire.RollbackContainerResponse()

    async def RemoveContainer(
        self, request: wire.RemoveContainerRequest, context: Context
    ) -> wire.RemoveContainerResponse:
        async with errors_as_status(context):
            driver = self._fleet.get(request.container)
            await driver.remove(force=request.force, volumes=request.volumes)
            return wire.RemoveContainerResponse(container_id=driver.record.sandbox_id)

    async def InspectContainer(
        self, request: wire.InspectContainerRequest, context: Context
    ) -> wire.InspectContainerResponse:
        async with errors_as_status(context):
            view = self._fleet.get(request.container).view()
            return wire.InspectContainerResponse(container=convert.encode_container(view))

    async def GetStats(self, request: wire.GetStatsRequest, context: Context) -> wire.GetStatsResponse:
        async with errors_as_status(context):
            found = await self._fleet.stats(request.containers, everything=request.all)
            return wire.GetStatsResponse(stats=[stats.encode(each) for each in found])

    async def WaitContainer(
        self, request: wire.WaitContainerRequest, context: Context
    ) -> wire.WaitContainerResponse:
        async with errors_as_status(context):
            exit_ = await self._fleet.get(request.container).wait_ended()
            return wire.WaitContainerResponse(exit=convert.encode_exit(exit_))

    # The streams write to their context instead of being generators: a call that ends in the middle then unwinds here
    # and now, in its own task, and not whenever the collector finds a generator that nobody iterates any more.
    # grpc.aio serves both; its stubs know only generators.

    async def ListContainers(self, request: wire.ListContainersRequest, context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            filters = [(item.key, item.value) for item in request.filters]
            views = self._fleet.list_views(filters, everything=request.all)
            for message in convert.encode_listing(views):
                await context.write(message)

    async def ReadLogs(self, request: wire.ReadLogsRequest, context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            wanted = logs.decode(request)
            handle = self._fleet.get(request.container)
            await logs.read(handle, wanted, lambda entry: context.write(convert.encode_log_entry(entry)))

    async def RunContainer(self, requests: AsyncIterator[wire.SessionRequest], context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            await serve_session(self._fleet, requests, context.write, "run")

    async def AttachContainer(self, requests: AsyncIterator[wire.SessionRequest], context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            await serve_session(self._fleet, requests, context.write, "attach")

    async def ExecContainer(self, requests: AsyncIterator[wire.SessionRequest], context: Context) -> None:  # type: ignore[override]
        async with errors_as_status(context):
            await serve_session(self._fleet, requests, context.write, "exec")
