# SPDX-License-Identifier: Apache-2.0
"""``AgentGuest``: the agent's calls, each with its deadline. ``AgentDialer`` makes them."""

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from hyper.agent.v1 import agent_pb2 as pb
from hyper.agent.v1.agent_pb2_grpc import AgentServiceStub, StreamServiceStub
from hyperd.errors import UnsupportedError
from hyperd.guest import convert
from hyperd.guest.archives import Archives
from hyperd.guest.clock import is_right, set_and_prove
from hyperd.guest.failures import agent_errors
from hyperd.guest.runs import AgentRun, SeparateRun
from hyperd.guest.streams import AgentInputWriter, AgentOutputReader
from hyperd.guest.transport import Port
from hyperd.model.guest import (
    AgentHello,
    ContainerId,
    ContainerPlan,
    ContainerStatus,
    GuestIdentity,
    GuestStats,
    GuestWiring,
    ProcessExit,
    ProcessId,
    ProcessPlan,
    TerminalSize,
)

if TYPE_CHECKING:
    import grpc.aio

    from hyper.agent.v1.agent_pb2_grpc import AgentServiceAsyncStub, StreamServiceAsyncStub

PROTOCOL_VERSION = 1

# Long enough for an emulated guest on a busy machine; a guest that takes longer is broken.
SHORT_S = 15.0  # looks something up or sends a signal
CONFIGURE_S = 30.0  # waits up to 5 s for each link
CREATE_S = 60.0  # mounts file systems, one of which may replay its journal
FILL_S = 1800.0  # and fills volumes: gigabytes, read and written by an emulated guest on a busy disk
FREEZE_S = 60.0  # writes all that is not on the disks yet
DELETE_S = 60.0  # kills, syncs and unmounts
_SHUTDOWN_GRACE_S = 10.0

Request = TypeVar("Request")
Response = TypeVar("Response")


class AgentGuest(Archives):
    """One connection of two ports. When either breaks it is dead for good: everything raises UnavailableError."""

    def __init__(
        self,
        control: Port,
        stream: Port,
        hello: AgentHello,
        *,
        subject: str,
        resources: contextlib.AsyncExitStack,
    ) -> None:
        super().__init__((control, stream), subject)
        self.hello = hello
        self._control = control
        self._stream = stream
        self._subject = subject
        self._resources = resources
        self._agent: AgentServiceAsyncStub = AgentServiceStub(control.channel)
        self._streams: StreamServiceAsyncStub = StreamServiceStub(stream.channel)

    async def configure(self, identity: GuestIdentity) -> None:
        asked_ns = time.time_ns()
        request = convert.encode_identity(identity)
        response = await self._call(self._agent.ConfigureGuest, request, CONFIGURE_S)
        if not is_right(response.wall_clock_unix_ns, asked_ns, time.time_ns()):
            await self.set_clock()

    async def rewire(self, wiring: GuestWiring) -> None:
        await self._call(self._agent.RewireGuest, convert.encode_wiring(wiring), CONFIGURE_S)

    async def set_clock(self) -> None:
        await set_and_prove(self._step_clock, subject=self._subject)

    async def release_devices(self) -> None:
        await self._call(self._agent.ReleaseDevices, pb.ReleaseDevicesRequest(), SHORT_S)

    async def freeze(self) -> None:
        await self._call(self._agent.FreezeGuest, pb.FreezeGuestRequest(), FREEZE_S)

    async def thaw(self) -> None:
        await self._call(self._agent.ThawGuest, pb.ThawGuestRequest(), SHORT_S)

    async def create_container(self, plan: ContainerPlan) -> int:
        request = convert.encode_container(plan)
        timeout_s = FILL_S if plan.may_copy else CREATE_S
        response = await self._call(self._agent.CreateContainer, request, timeout_s)
        return self._decoded_pid(response.pid)

    async def start_container(self, container_id: ContainerId) -> ProcessExit | None:
        request = pb.StartContainerRequest(container_id=container_id)
        response = await self._call(self._agent.StartContainer, request, SHORT_S)
        if not response.HasField("refused"):
            return None
        with agent_errors(self._subject):
            return convert.decode_exit(response.refused)

    async def delete_container(self, container_id: ContainerId) -> None:
        request = pb.DeleteContainerRequest(container_id=container_id)
        await self._call(self._agent.DeleteContainer, request, DELETE_S)

    async def list_containers(self) -> list[ContainerStatus]:
        response = await self._call(self._agent.ListContainers, pb.ListContainersRequest(), SHORT_S)
        with agent_errors(self._subject):
            return convert.decode_containers(response)

    async def end_rehearsal(self, container_id: ContainerId) -> None:
        request = pb.EndRehearsalRequest(container_id=container_id)
        await self._call(self._agent.EndRehearsal, request, DELETE_S)

    async def release_disks(self, serials: Sequence[str]) -> None:
        request = pb.ReleaseDisksRequest(disk_serials=serials)
        await self._call(self._agent.ReleaseDisks, request, DELETE_S)

    async def exec_process(self, container_id: ContainerId, process_id: ProcessId, plan: ProcessPlan) -> int:
        request = pb.ExecProcessRequest(
            container_id=container_id, process_id=process_id, process=convert.encode_process(plan)
        )
        response = await self._call(self._agent.ExecProcess, request, CREATE_S)
        return self._decoded_pid(response.pid)

    def run_process(self, container_id: ContainerId, process_id: ProcessId) -> AgentRun:
        request = pb.ExecProcessRequest(container_id=container_id, process_id=process_id)
        separate = SeparateRun(self, container_id, process_id)
        return AgentRun(self._streams, self._stream, request, self._subject, CREATE_S, separate)

    async def signal(
        self, container_id: ContainerId, process_id: ProcessId, signal: int, *, everyone: bool = False
    ) -> bool:
        request = pb.SignalProcessRequest(
            container_id=container_id, process_id=process_id, signal=signal, all=everyone
        )
        return (await self._call(self._agent.SignalProcess, request, SHORT_S)).delivered

    async def resize(self, container_id: ContainerId, process_id: ProcessId, size: TerminalSize) -> None:
        request = pb.ResizeTerminalRequest(
            container_id=container_id, process_id=process_id, size=convert.encode_size(size)
        )
        await self._call(self._agent.ResizeTerminal, request, SHORT_S)

    async def wait_process(self, container_id: ContainerId, process_id: ProcessId) -> ProcessExit:
        request = pb.WaitProcessRequest(container_id=container_id, process_id=process_id)
        response = await self._call(self._agent.WaitProcess, request, None)
        with agent_errors(self._subject):
            return convert.decode_exit(response.exit)

    async def forget_process(self, container_id: ContainerId, process_id: ProcessId) -> None:
        request = pb.ForgetProcessRequest(container_id=container_id, process_id=process_id)
        await self._call(self._agent.ForgetProcess, request, SHORT_S)

    def read_output(
        self, container_id: ContainerId, process_id: ProcessId, from_offset: int
    ) -> AgentOutputReader:
        request = pb.ReadOutputRequest(
            container_id=container_id, process_id=process_id, from_offset=from_offset
        )
        return AgentOutputReader(self._streams, self._stream, request, self._subject)

    def write_input(self, container_id: ContainerId, process_id: ProcessId) -> AgentInputWriter:
        request = pb.WriteInputRequest(container_id=container_id, process_id=process_id)
        return AgentInputWriter(self._streams, self._stream, request, self._subject)

    async def stats(self, container_id: ContainerId | None = None) -> GuestStats:
        request = pb.GetStatsRequest(container_id=container_id or "")
        return convert.decode_stats(await self._call(self._agent.GetStats, request, SHORT_S))

    async def open_root(self, plan: ContainerPlan) -> None:
        request = pb.OpenRootRequest(container_id=plan.container_id, root=convert.encode_root(plan))
        await self._call(self._agent.OpenRoot, request, CREATE_S)

    async def grow_volume(self, serial: str, size_bytes: int) -> None:
        request = pb.GrowVolumeRequest(disk_serial=serial, size_bytes=size_bytes)
        await self._call(self._agent.GrowVolume, request, CREATE_S)

    async def freeze_volume(self, serial: str, timeout_s: float) -> None:
        request = pb.FreezeVolumeRequest(disk_serial=serial, timeout_ms=int(timeout_s * 1000))
        await self._call(self._agent.FreezeVolume, request, FREEZE_S)

    async def thaw_volume(self, serial: str) -> bool:
        request = pb.ThawVolumeRequest(disk_serial=serial)
        return (await self._call(self._agent.ThawVolume, request, SHORT_S)).stood_still

    async def open_volume(
        self,
        container_id: ContainerId,
        serial: str,
        filesystem: str,
        directory: str,
        *,
        readonly: bool = False,
    ) -> None:
        request = pb.OpenVolumeRequest(
            container_id=container_id,
            disk_serial=serial,
            filesystem=filesystem,
            subdirectory=directory,
            readonly=readonly,
        )
        await self._call(self._agent.OpenVolume, request, CREATE_S)

    async def shutdown(self, timeout_s: float) -> None:
        request = pb.ShutdownRequest(timeout_ms=int(timeout_s * 1000))
        await self._call(self._agent.Shutdown, request, timeout_s + _SHUTDOWN_GRACE_S)

    async def close(self) -> None:
        await self._resources.aclose()

    async def _call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        timeout_s: float | None,
    ) -> Response:
        for port in (self._control, self._stream):
            port.require_alive(self._subject)
        with agent_errors(self._subject):
            return await method(request, timeout=timeout_s)

    async def _step_clock(self, wall_clock_unix_ns: int) -> int:
        request = pb.SetClockRequest(wall_clock_unix_ns=wall_clock_unix_ns)
        return (await self._call(self._agent.SetClock, request, SHORT_S)).wall_clock_unix_ns

    def _decoded_pid(self, pid: int) -> int:
        with agent_errors(self._subject):
            return convert.decode_pid(pid)


async def exchange_hellos(ports: Sequence[Port], *, timeout_s: float, subject: str) -> AgentHello:
    """The first call on each connection, side by side. Raises UnsupportedError for another protocol version."""
    request = pb.HelloRequest(protocol_version=PROTOCOL_VERSION)
    stubs: list[AgentServiceAsyncStub] = [AgentServiceStub(port.channel) for port in ports]
    calls = [stub.Hello(request, timeout=timeout_s) for stub in stubs]
    hellos = []
    for call in calls:
        with agent_errors(subject):
            response = await call
        require_same_version(response.protocol_version, subject)
        hellos.append(convert.decode_hello(response))
    return hellos[0]


def require_same_version(agent_version: int, subject: str) -> None:
    if agent_version == PROTOCOL_VERSION:
        return
    older, hint = (
        ("the agent is older than hyperd", "remove the sandbox and create it again")
        if agent_version < PROTOCOL_VERSION
        else ("hyperd is older than the agent", "run the hyperd that started this sandbox, or a newer one")
    )
    raise UnsupportedError(
        f"hyperd speaks protocol version {PROTOCOL_VERSION}, the agent {agent_version}: {older}",
        subject=subject,
        hint=hint,
    )
