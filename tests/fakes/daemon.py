# SPDX-License-Identifier: Apache-2.0
"""A hyperd without machines: the v1 services over a real socket, processes that are coroutines.

`python -m tests.fakes.daemon SOCKET` runs one to look at.
"""
# ruff: noqa: N802 - the methods have the names of the contract

import asyncio
import contextlib
import itertools
import sys
import threading
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from hyper.v1 import (
    build_pb2_grpc,
    container_pb2_grpc,
    image_pb2_grpc,
    policy_pb2_grpc,
    snapshot_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
    volume_pb2_grpc,
)
from hyper.v1 import container_pb2 as pb
from tests.fakes.daemon_build import FakeBuilds
from tests.fakes.daemon_files import FilesOfContainers
from tests.fakes.daemon_images import FakeImages
from tests.fakes.daemon_policies import FakeEgress, FakeFloatingService, FakeSecurityGroups
from tests.fakes.daemon_snapshots import FakeSnapshots, FakeTemplates
from tests.fakes.daemon_state import UP, FakeDaemon, abort, ago
from tests.fakes.daemon_stats import used
from tests.fakes.daemon_system import FakeSystem
from tests.fakes.daemon_volumes import FakeVolumes
from tests.fakes.programs import FakeProcess, exited

DEADLINE_S = 30


class FakeContainers(FilesOfContainers, container_pb2_grpc.ContainerServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon
        self._asked = itertools.count(1)

    async def CreateContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.create(request.spec, context)
        return pb.CreateContainerResponse(container_id=container.id, name=container.name)

    async def StartContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        self._daemon.start_process(container)
        return pb.StartContainerResponse(container=container)

    async def GetStats(self, request, context):
        await self._daemon.check(request, context)
        names = request.containers or [each.id for each in self._daemon.containers.values()]
        found = [await self._daemon.require_container(name, context) for name in names]
        return pb.GetStatsResponse(
            stats=[
                used(each, next(self._asked))
                for each in found
                if request.all or request.containers or each.state in UP
            ]
        )

    async def StopContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        if container.state == pb.CONTAINER_STATE_RUNNING:
            self._daemon.processes[container.id].signals.put_nowait(15)
            self._daemon.end_process(container, pb.ExitStatus(code=143, reason=pb.EXIT_REASON_STOPPED))
        return pb.StopContainerResponse(container=container)

    async def KillContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        if container.state != pb.CONTAINER_STATE_RUNNING:
            await abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                system_pb2.ErrorDetail(brief="is not running", subject=request.container),
            )
        number = int(request.signal) if request.signal.isdigit() else 9
        self._daemon.processes[container.id].signals.put_nowait(number)
        return pb.KillContainerResponse()

    async def SignalExec(self, request, context):
        await self._daemon.check(request, context)
        await self._daemon.require_container(request.container, context)
        self._daemon.execs[request.exec_id].signals.put_nowait(int(request.signal))
        return pb.SignalExecResponse()

    async def PauseContainer(self, request, context):
        await self._move(request, context, {pb.CONTAINER_STATE_RUNNING: pb.CONTAINER_STATE_PAUSED})
        return pb.PauseContainerResponse()

    async def UnpauseContainer(self, request, context):
        await self._move(request, context, {pb.CONTAINER_STATE_PAUSED: pb.CONTAINER_STATE_RUNNING})
        return pb.UnpauseContainerResponse()

    async def HibernateContainer(self, request, context):
        down = dict.fromkeys(UP, pb.CONTAINER_STATE_HIBERNATED)
        container = await self._move(request, context, down)
        container.vm_pid = 0
        container.finished_at.CopyFrom(ago(0))
        return pb.HibernateContainerResponse()

    async def WakeContainer(self, request, context):
        await self._move(request, context, {pb.CONTAINER_STATE_HIBERNATED: pb.CONTAINER_STATE_RUNNING})
        return pb.WakeContainerResponse()

    async def _move(self, request, context, moves) -> pb.Container:
        """From one state to another. Idempotent."""
        await self._daemon.check(request, context)
        container = await self._daemon.require_state(request.container, context, *moves, *moves.values())
        container.state = moves.get(container.state, container.state)
        return container

    async def ForkContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_state(request.container, context, *UP)
        clones = self._daemon.add_clones(container, request.options)
        return pb.ForkContainerResponse(clones=reversed(clones), pause_ms=41)

    async def RollbackContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        snapshot = await self._daemon.require_snapshot(request.snapshot, context)
        if snapshot.source_container_id != container.id:
            detail = system_pb2.ErrorDetail(brief="is of another container", subject=request.snapshot)
            await abort(context, grpc.StatusCode.FAILED_PRECONDITION, detail)
        container.state = pb.CONTAINER_STATE_RUNNING
        return pb.RollbackContainerResponse()

    async def RemoveContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        if container.state == pb.CONTAINER_STATE_RUNNING and not request.force:
            await abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                system_pb2.ErrorDetail(
                    brief="is running", subject=request.container, hint="stop it first, or `hyper rm -f`"
                ),
            )
        del self._daemon.containers[container.id]
        return pb.RemoveContainerResponse(container_id=container.id)

    async def ListContainers(self, request, context):
        await self._daemon.check(request, context)
        wanted = {filter_.value for filter_ in request.filters if filter_.key == "status"}
        states = {pb.ContainerState.Value(f"CONTAINER_STATE_{status.upper()}") for status in wanted} or UP
        chosen = [
            container
            for container in reversed(self._daemon.containers.values())
            if (request.all and not wanted) or container.state in states
        ]
        for container in chosen:
            yield pb.ListContainersResponse(containers=[container])

    async def InspectContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        return pb.InspectContainerResponse(container=container)

    async def WaitContainer(self, request, context):
        await self._daemon.check(request, context)
        container = await self._daemon.require_container(request.container, context)
        process = self._daemon.processes.get(container.id)
        if container.state == pb.CONTAINER_STATE_RUNNING and process is not None:
            await process.ended.wait()
        return pb.WaitContainerResponse(exit=container.exit)

    async def ReadLogs(self, request, context):
        await self._daemon.check(request, context)
        await self._daemon.require_container(request.container, context)
        for entry in self._daemon.log:
            yield entry

    async def RunContainer(self, requests, context):
        run = (await anext(aiter(requests))).run
        await self._daemon.check(run, context)
        container = await self._daemon.create(run.spec, context)
        process = self._daemon.start_process(container)
        yield pb.SessionResponse(
            started=pb.SessionStarted(container_id=container.id, name=container.name, tty=run.spec.tty)
        )
        if not run.detach:
            async for response in self._session(process, requests, container):
                yield response

    async def AttachContainer(self, requests, context):
        attach = (await anext(aiter(requests))).attach
        await self._daemon.check(attach, context)
        container = await self._daemon.require_container(attach.container, context)
        process = self._daemon.processes.get(container.id)
        if attach.start or process is None:
            process = self._daemon.start_process(container)
        process.size = (attach.terminal_size.columns, attach.terminal_size.rows)
        yield pb.SessionResponse(
            started=pb.SessionStarted(container_id=container.id, name=container.name, tty=container.spec.tty)
        )
        async for response in self._session(process, requests, container):
            yield response

    async def ExecContainer(self, requests, context):
        options = (await anext(aiter(requests))).exec
        await self._daemon.check(options, context)
        container = await self._daemon.require_container(options.container, context)
        process = FakeProcess(list(options.args), tty=options.tty)
        process.size = (options.terminal_size.columns, options.terminal_size.rows)
        self._daemon.execs["e1"] = process
        yield pb.SessionResponse(
            started=pb.SessionStarted(container_id=container.id, exec_id="e1", tty=options.tty)
        )
        if not options.detach:
            async for response in self._session(process, requests, None):
                yield response

    async def _session(
        self,
        process: FakeProcess,
        requests: AsyncIterator[pb.SessionRequest],
        container: pb.Container | None,
    ) -> AsyncIterator[pb.SessionResponse]:
        if process.args[:1] == ["drop"]:
            return
        assert self._daemon.tasks is not None
        if not process.running:
            process.running = True
            self._daemon.tasks.create_task(process.run())
        taking = self._daemon.tasks.create_task(self._take(process, requests))
        try:
            while (response := await process.output.get()) is not None:
                yield response
            if container is not None:
                self._daemon.end_process(container, process.exit or exited())
            yield pb.SessionResponse(exit=process.exit)
        except (asyncio.CancelledError, GeneratorExit):
            self._daemon.hangups += 1
            raise
        finally:
            taking.cancel()

    async def _take(self, process: FakeProcess, requests: AsyncIterator[pb.SessionRequest]) -> None:
        async for request in requests:
            await self._daemon.stdin_gate.wait()
            match request.WhichOneof("kind"):
                case "stdin":
                    await process.stdin.put(request.stdin)
                case "close_stdin":
                    await process.stdin.put(b"")
                case "resize":
                    process.size = (request.resize.columns, request.resize.rows)
                    process.resized.set()
                case "signal":
                    process.signals.put_nowait(request.signal)


@contextlib.asynccontextmanager
async def serving(daemon: FakeDaemon, path: str) -> AsyncIterator[None]:
    server = grpc.aio.server()
    container_pb2_grpc.add_ContainerServiceServicer_to_server(FakeContainers(daemon), server)
    image_pb2_grpc.add_ImageServiceServicer_to_server(FakeImages(daemon), server)
    system_pb2_grpc.add_SystemServiceServicer_to_server(FakeSystem(daemon), server)
    snapshot_pb2_grpc.add_SnapshotServiceServicer_to_server(FakeSnapshots(daemon), server)
    snapshot_pb2_grpc.add_TemplateServiceServicer_to_server(FakeTemplates(daemon), server)
    volume_pb2_grpc.add_VolumeServiceServicer_to_server(FakeVolumes(daemon), server)
    build_pb2_grpc.add_BuildServiceServicer_to_server(FakeBuilds(daemon), server)
    policy_pb2_grpc.add_EgressServiceServicer_to_server(FakeEgress(daemon), server)
    policy_pb2_grpc.add_SecurityGroupServiceServicer_to_server(FakeSecurityGroups(daemon), server)
    policy_pb2_grpc.add_FloatingServiceServicer_to_server(FakeFloatingService(daemon), server)
    server.add_insecure_port(f"unix://{path}")
    await server.start()
    try:
        async with asyncio.TaskGroup() as daemon.tasks:
            yield
            raise _Ended  # noqa: TRY301 - the group catches it
    except* _Ended:
        pass
    finally:
        await server.stop(0)


class _Ended(Exception):  # noqa: N818 - takes the processes with it
    pass


@contextlib.contextmanager
def serving_in_thread(daemon: FakeDaemon, path: str):
    """For tests whose main thread belongs to the command line: it wants signals and a loop of its own."""
    ready = threading.Event()

    async def work() -> None:
        daemon.loop = asyncio.get_running_loop()
        async with serving(daemon, path):
            ready.set()
            await daemon.disconnected.wait()

    thread = threading.Thread(target=lambda: asyncio.run(work()), name="fake-daemon")
    thread.start()
    assert ready.wait(DEADLINE_S)
    try:
        yield daemon
    finally:
        with contextlib.suppress(RuntimeError):  # disconnected before, and ended
            daemon.disconnect()
        thread.join(DEADLINE_S)


async def main(path: str) -> None:
    daemon = FakeDaemon(pull_pace_s=0.05)
    daemon.add_image("debian:12", size_bytes=120_000_000, age_s=86400 * 20)
    async with serving(daemon, path):
        print(f"serving on {path}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
