# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N802 - the names are those of the contract
"""A FakeAgent behind sockets: gRPC servicers over the link's other side (agent_link.py), over the same world.

    async with serving(FakeAgent(...), directory) as peer:
        guest = await AgentDialer().connect(peer.control.path, peer.stream.path, timeout_s=5, subject="box")

Like QEMU a port serves one host at a time, and like a serial port it keeps what was under way for whoever comes next.
"""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from hyper.agent.v1 import agent_pb2 as pb
from hyper.agent.v1 import agent_pb2_grpc as rpc
from hyperd.errors import HyperError
from hyperd.model.guest import (
    ContainerId,
    GuestContainerState,
    ProcessId,
    Stream,
    TerminalSize,
)
from tests.fakes.agent_link import FakePort
from tests.fakes.agent_messages import (
    decode_container,
    decode_identity,
    decode_process,
    decode_wiring,
    encode_exit,
)
from tests.fakes.archives import ArchiveServicer
from tests.fakes.guest_agent import FakeAgent

STATES = {
    GuestContainerState.CREATED: pb.CONTAINER_STATE_CREATED,
    GuestContainerState.RUNNING: pb.CONTAINER_STATE_RUNNING,
    GuestContainerState.EXITED: pb.CONTAINER_STATE_EXITED,
}
STREAMS = {Stream.STDOUT: pb.STREAM_STDOUT, Stream.STDERR: pb.STREAM_STDERR}


@dataclass(slots=True)
class AgentPeer:
    """The two ports and what stands behind them."""

    agent: FakeAgent
    control: FakePort
    stream: FakePort
    servicer: "AgentServicer"
    archives: ArchiveServicer


@contextlib.asynccontextmanager
async def serving(agent: FakeAgent, directory: Path) -> AsyncIterator[AgentPeer]:
    inner = Path(tempfile.mkdtemp())
    backend = inner / "grpc"
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", 1000)])
    servicer = AgentServicer(agent)
    rpc.add_AgentServiceServicer_to_server(servicer, server)
    rpc.add_StreamServiceServicer_to_server(StreamServicer(agent), server)
    archives = ArchiveServicer(agent)
    rpc.add_ArchiveServiceServicer_to_server(archives, server)
    server.add_insecure_port(f"unix:{backend}")
    await server.start()
    peer = AgentPeer(
        agent,
        FakePort(directory / "control", backend),
        FakePort(directory / "stream", backend),
        servicer,
        archives,
    )
    running = [asyncio.create_task(port.run()) for port in (peer.control, peer.stream)]
    try:
        yield peer
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        await server.stop(None)
        for port in (peer.control, peer.stream):
            port.path.unlink(missing_ok=True)
        shutil.rmtree(inner)


@contextlib.asynccontextmanager
async def answering(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    try:
        yield
    except HyperError as error:
        await context.abort(grpc.StatusCode[error.code], str(error))


class AgentServicer(rpc.AgentServiceServicer):
    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent
        self.protocol_version = 1
        self.wrong_clocks_ns: list[int] = []  # by how much the next answers are off
        self._off_ns = 0
        self.create_patience_s = 0.0  # of the last CreateContainer's caller

    async def Hello(self, request, context):
        async with answering(context):
            await self.agent.enter("hello")
        hello = self.agent.hello
        return pb.HelloResponse(
            protocol_version=self.protocol_version,
            agent_version=hello.agent_version,
            kernel_release=hello.kernel_release,
            uptime_ms=hello.uptime_ms,
        )

    async def ConfigureGuest(self, request, context):
        async with answering(context):
            await self.agent.enter("configure")
            self.agent.configure(decode_identity(request))
        return pb.ConfigureGuestResponse(wall_clock_unix_ns=self._wall_clock())

    async def RewireGuest(self, request, context):
        async with answering(context):
            await self.agent.enter("rewire")
            self.agent.wiring = decode_wiring(request)
        return pb.RewireGuestResponse()

    async def SetClock(self, request, context):
        async with answering(context):
            await self.agent.enter("set_clock")
        self._off_ns = request.wall_clock_unix_ns - time.time_ns()
        return pb.SetClockResponse(wall_clock_unix_ns=self._wall_clock())

    def _wall_clock(self) -> int:
        """As it was set last, like a guest's."""
        off_ns = self.wrong_clocks_ns.pop(0) if self.wrong_clocks_ns else 0
        return time.time_ns() + self._off_ns + off_ns

    async def ReleaseDevices(self, request, context):
        async with answering(context):
            await self.agent.enter("release_devices")
            self.agent.release_devices()
        return pb.ReleaseDevicesResponse()

    async def EndRehearsal(self, request, context):
        async with answering(context):
            await self.agent.enter("end_rehearsal")
            self.agent.end_rehearsal(ContainerId(request.container_id))
        return pb.EndRehearsalResponse()

    async def ReleaseDisks(self, request, context):
        async with answering(context):
            await self.agent.enter("release_disks")
            self.agent.release_disks(request.disk_serials)
        return pb.ReleaseDisksResponse()

    async def FreezeGuest(self, request, context):
        async with answering(context):
            await self.agent.enter("freeze")
        self.agent.frozen = True
        return pb.FreezeGuestResponse()

    async def ThawGuest(self, request, context):
        async with answering(context):
            await self.agent.enter("thaw")
        self.agent.frozen = False
        return pb.ThawGuestResponse()

    async def CreateContainer(self, request, context):
        async with answering(context):
            self.create_patience_s = context.time_remaining()
            await self.agent.enter("create_container")
            return pb.CreateContainerResponse(pid=self.agent.create(decode_container(request)))

    async def GrowVolume(self, request, context):
        async with answering(context):
            await self.agent.enter("grow_volume")
            self.agent.require_volume(request.disk_serial)
            self.agent.volume_sizes[request.disk_serial] = request.size_bytes
        return pb.GrowVolumeResponse()

    async def FreezeVolume(self, request, context):
        async with answering(context):
            await self.agent.enter("freeze_volume")
            self.agent.freeze_volume(request.disk_serial)
        return pb.FreezeVolumeResponse()

    async def ThawVolume(self, request, context):
        async with answering(context):
            await self.agent.enter("thaw_volume")
        return pb.ThawVolumeResponse(stood_still=self.agent.thaw_volume(request.disk_serial))

    async def OpenVolume(self, request, context):
        async with answering(context):
            await self.agent.enter("open_volume")
            self.agent.open_volume(ContainerId(request.container_id))
        return pb.OpenVolumeResponse()

    async def OpenRoot(self, request, context):
        async with answering(context):
            await self.agent.enter("open_root")
            wanted = pb.CreateContainerRequest(container_id=request.container_id, root=request.root)
            self.agent.open_root(decode_container(wanted))
        return pb.OpenRootResponse()

    async def StartContainer(self, request, context):
        async with answering(context):
            await self.agent.enter("start_container")
            container_id = ContainerId(request.container_id)
            self.agent.start(container_id)
            refusal = self.agent.refusal(container_id)
        return pb.StartContainerResponse(refused=encode_exit(refusal) if refusal else None)

    async def DeleteContainer(self, request, context):
        async with answering(context):
            await self.agent.enter("delete_container")
            self.agent.delete(ContainerId(request.container_id))
        return pb.DeleteContainerResponse()

    async def ListContainers(self, request, context):
        async with answering(context):
            await self.agent.enter("list_containers")
        return pb.ListContainersResponse(
            containers=[
                pb.ContainerStatus(
                    container_id=container.container_id,
                    state=STATES[container.state],
                    processes=[
                        pb.ProcessStatus(
                            process_id=process.process_id,
                            pid=process.pid,
                            running=process.running,
                            exit=encode_exit(process.exit) if process.exit else None,
                            output_end_offset=process.output_end_offset,
                            output_start_offset=process.output_start_offset,
                        )
                        for process in container.processes
                    ],
                )
                for container in self.agent.status()
            ]
        )

    async def ExecProcess(self, request, context):
        async with answering(context):
            await self.agent.enter("exec_process")
            plan = decode_process(request.process)
            pid = self.agent.exec(ContainerId(request.container_id), ProcessId(request.process_id), plan)
            return pb.ExecProcessResponse(pid=pid)

    async def SignalProcess(self, request, context):
        async with answering(context):
            await self.agent.enter("signal")
            delivered = self.agent.signal(
                ContainerId(request.container_id),
                ProcessId(request.process_id),
                request.signal,
                everyone=request.all,
            )
            return pb.SignalProcessResponse(delivered=delivered)

    async def ResizeTerminal(self, request, context):
        async with answering(context):
            await self.agent.enter("resize")
            process = self.agent.process(ContainerId(request.container_id), ProcessId(request.process_id))
            process.sizes.append(TerminalSize(request.size.columns, request.size.rows))
        return pb.ResizeTerminalResponse()

    async def WaitProcess(self, request, context):
        async with answering(context):
            await self.agent.enter("wait_process")
            process = self.agent.process(ContainerId(request.container_id), ProcessId(request.process_id))
            while process.exit is None:
                await self.agent.pulse.wait()
            return pb.WaitProcessResponse(exit=encode_exit(process.exit))

    async def ForgetProcess(self, request, context):
        async with answering(context):
            await self.agent.enter("forget_process")
            self.agent.forget(ContainerId(request.container_id), ProcessId(request.process_id))
        return pb.ForgetProcessResponse()

    async def GetStats(self, request, context):
        async with answering(context):
            await self.agent.enter("stats")
            stats = self.agent.stats(ContainerId(request.container_id) if request.container_id else None)
        return pb.GetStatsResponse(
            cpu_usage_ns=stats.cpu_usage_ns,
            memory_usage_bytes=stats.memory_usage_bytes,
            memory_limit_bytes=stats.memory_limit_bytes,
            pids=stats.pids,
            io_read_bytes=stats.io_read_bytes,
            io_write_bytes=stats.io_write_bytes,
            agent_rss_bytes=stats.agent_rss_bytes,
        )

    async def Shutdown(self, request, context):
        async with answering(context):
            await self.agent.enter("shutdown")
        self.agent.power_off()
        return pb.ShutdownResponse()


class StreamServicer(rpc.StreamServiceServicer):
    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent

    async def ReadOutput(self, requests, context):
        async with answering(context):
            await self.agent.enter("read_output")
            first = await anext(requests)
            process = self.agent.process(ContainerId(first.container_id), ProcessId(first.process_id))
            process.require_kept(first.from_offset)
        process.acknowledge(first.from_offset)
        process.reader = context
        self.agent.pulse.beat()
        acknowledging = asyncio.create_task(self._acknowledge(requests, process))
        try:
            offset = first.from_offset
            while process.reader is context:
                chunk = process.read_from(offset)
                if chunk is not None:
                    yield pb.ReadOutputResponse(
                        offset=chunk.offset, stream=STREAMS[chunk.stream], data=chunk.data
                    )
                    offset = chunk.end_offset
                elif process.output_ended:
                    yield pb.ReadOutputResponse(offset=offset, eof=True)
                    return
                else:
                    await self.agent.pulse.wait()
            await context.abort(grpc.StatusCode.CANCELLED, "another reader took over")
        finally:
            acknowledging.cancel()
            await asyncio.wait([acknowledging])

    async def _acknowledge(self, requests, process):
        async for request in requests:
            process.acknowledge(request.acknowledged_offset)

    async def RunProcess(self, requests, context):
        async with answering(context):
            await self.agent.enter("exec_process")
            first = (await anext(requests)).exec
            container_id, process_id = ContainerId(first.container_id), ProcessId(first.process_id)
            pid = self.agent.exec(container_id, process_id, decode_process(first.process))
        process = self.agent.process(container_id, process_id)
        yield pb.RunProcessResponse(started=pb.ExecProcessResponse(pid=pid))
        process.reader = context
        listening = asyncio.create_task(self._acknowledge(requests, process))
        listening.add_done_callback(lambda _: self.agent.pulse.beat())
        offset, exited, ended = 0, False, False
        try:
            while not (exited and listening.done()):
                chunk = process.read_from(offset) if process.reader is context else None
                if chunk is not None:
                    data = pb.ReadOutputResponse(
                        offset=chunk.offset, stream=STREAMS[chunk.stream], data=chunk.data
                    )
                    yield pb.RunProcessResponse(output=data)
                    offset = chunk.end_offset
                elif process.output_ended and not ended:
                    ended = True
                    yield pb.RunProcessResponse(output=pb.ReadOutputResponse(offset=offset, eof=True))
                elif process.exit is not None and not exited:
                    exited = True
                    yield pb.RunProcessResponse(exit=encode_exit(process.exit))
                else:
                    await self.agent.pulse.wait()
            self.agent.forget(container_id, process_id)
        finally:
            listening.cancel()
            await asyncio.wait([listening])

    async def WriteInput(self, requests, context):
        accepted = 0
        async with answering(context):
            await self.agent.enter("write_input")
            first = await anext(requests)
            process = self.agent.process(ContainerId(first.container_id), ProcessId(first.process_id))
            async for request in requests:
                if not process.feed(request.data):
                    break
                accepted += len(request.data)
                while not process.takes_input:
                    await self.agent.pulse.wait()
                if request.eof:
                    process.end_input()
        return pb.WriteInputResponse(accepted_bytes=accepted)
