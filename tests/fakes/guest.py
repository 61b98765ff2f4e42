# SPDX-License-Identifier: Apache-2.0
"""A guest without a virtual machine: containers whose processes follow a script.

``FakeAgent`` is what is inside the VM and outlives connections; ``FakeGuest`` is one connection to it;
``FakeDialer`` makes those, one agent per control socket. No tasks: a process moves when someone starts, reads,
acknowledges, feeds or signals it. ``tests/fakes/agent.py`` serves the same world over sockets.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from hyperd.errors import (
    HyperError,
    TimeoutExpiredError,
    UnavailableError,
    WrongStateError,
)
from hyperd.guest.runs import SeparateRun
from hyperd.model.guest import (
    ContainerId,
    ContainerPlan,
    ContainerStatus,
    GuestIdentity,
    GuestStats,
    GuestWiring,
    OutputChunk,
    ProcessExit,
    ProcessId,
    ProcessPlan,
    TerminalSize,
)
from tests.fakes.archives import FakeArchives
from tests.fakes.guest_agent import FakeAgent
from tests.fakes.guest_process import Script


class FakeGuest(FakeArchives):
    """One connection to a FakeAgent; satisfies hyperd.guest.base.Guest."""

    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent
        self.hello = agent.hello
        self.connected = True
        agent.connections.add(self)

    async def configure(self, identity: GuestIdentity) -> None:
        await self._enter("configure")
        self.agent.configure(identity)

    async def rewire(self, wiring: GuestWiring) -> None:
        await self._enter("rewire")
        self.agent.wiring = wiring

    async def set_clock(self) -> None:
        await self._enter("set_clock")

    async def release_devices(self) -> None:
        await self._enter("release_devices")
        self.agent.release_devices()

    async def freeze(self) -> None:
        await self._enter("freeze")
        self.agent.frozen = True

    async def thaw(self) -> None:
        await self._enter("thaw")
        self.agent.frozen = False

    async def create_container(self, plan: ContainerPlan) -> int:
        try:
            await self._enter("create_container")
        except asyncio.CancelledError:
            self.agent.half_made[plan.container_id] = plan
            raise
        return self.agent.create(plan)

    async def start_container(self, container_id: ContainerId) -> ProcessExit | None:
        await self._enter("start_container")
        self.agent.start(container_id)
        return self.agent.refusal(container_id)

    async def open_root(self, plan: ContainerPlan) -> None:
        await self._enter("open_root")
        self.agent.open_root(plan)

    async def delete_container(self, container_id: ContainerId) -> None:
        await self._enter("delete_container")
        self.agent.delete(container_id)

    async def list_containers(self) -> list[ContainerStatus]:
        await self._enter("list_containers")
        return self.agent.status()

    async def end_rehearsal(self, container_id: ContainerId) -> None:
        await self._enter("end_rehearsal")
        self.agent.end_rehearsal(container_id)

    async def release_disks(self, serials: Sequence[str]) -> None:
        await self._enter("release_disks")
        self.agent.release_disks(serials)

    async def exec_process(self, container_id: ContainerId, process_id: ProcessId, plan: ProcessPlan) -> int:
        await self._enter("exec_process")
        return self.agent.exec(container_id, process_id, plan)

    def run_process(self, container_id: ContainerId, process_id: ProcessId) -> SeparateRun:
        return SeparateRun(self, container_id, process_id)

    async def signal(
        self, container_id: ContainerId, process_id: ProcessId, signal: int, *, everyone: bool = False
    ) -> bool:
        await self._enter("signal")
        return self.agent.signal(container_id, process_id, signal, everyone=everyone)

    async def resize(self, container_id: ContainerId, process_id: ProcessId, size: TerminalSize) -> None:
        await self._enter("resize")
        self.agent.process(container_id, process_id).sizes.append(size)

    async def wait_process(self, container_id: ContainerId, process_id: ProcessId) -> ProcessExit:
        await self._enter("wait_process")
        process = self.agent.process(container_id, process_id)
        while process.exit is None:
            await self.agent.pulse.wait()
            self.require_connected()
        return process.exit

    async def forget_process(self, container_id: ContainerId, process_id: ProcessId) -> None:
        await self._enter("forget_process")
        self.agent.forget(container_id, process_id)

    def read_output(
        self, container_id: ContainerId, process_id: ProcessId, from_offset: int
    ) -> "FakeOutputReader":
        return FakeOutputReader(self, container_id, process_id, from_offset)

    def write_input(self, container_id: ContainerId, process_id: ProcessId) -> "FakeInputWriter":
        return FakeInputWriter(self, container_id, process_id)

    async def stats(self, container_id: ContainerId | None = None) -> GuestStats:
        await self._enter("stats")
        return self.agent.stats(container_id)

    async def grow_volume(self, serial: str, size_bytes: int) -> None:
        await self._enter("grow_volume")
        self.agent.require_volume(serial)
        self.agent.volume_sizes[serial] = size_bytes

    async def freeze_volume(self, serial: str, timeout_s: float) -> None:
        await self._enter("freeze_volume")
        self.agent.freeze_volume(serial)

    async def thaw_volume(self, serial: str) -> bool:
        await self._enter("thaw_volume")
        return self.agent.thaw_volume(serial)

    async def open_volume(
        self,
        container_id: ContainerId,
        serial: str,
        filesystem: str,
        directory: str,
        *,
        readonly: bool = False,
    ) -> None:
        await self._enter("open_volume")
        self.agent.open_volume(container_id)
        self.agent.opened_volumes.append((serial, filesystem, directory, readonly))

    async def shutdown(self, timeout_s: float) -> None:
        await self._enter("shutdown")
        self.agent.power_off()
        self.agent.drop_connections()

    async def close(self) -> None:
        self.connected = False
        self.agent.connections.discard(self)
        self.agent.pulse.beat()

    async def _enter(self, verb: str) -> None:
        self.require_connected()
        await self.agent.enter(verb)
        self.require_connected()

    def require_connected(self) -> None:
        if not self.connected:
            raise UnavailableError("the connection to the agent is lost")


class FakeOutputReader:
    def __init__(
        self, guest: FakeGuest, container_id: ContainerId, process_id: ProcessId, from_offset: int
    ) -> None:
        self._guest = guest
        self._target = (container_id, process_id)
        self._offset = from_offset

    async def __aiter__(self) -> AsyncIterator[OutputChunk]:
        guest, agent = self._guest, self._guest.agent
        guest.require_connected()
        await agent.enter("read_output")
        process = agent.process(*self._target)
        process.require_kept(self._offset)
        process.acknowledge(self._offset)
        process.reader = self
        agent.pulse.beat()
        while True:
            guest.require_connected()
            if process.reader is not self:
                raise UnavailableError("another reader took over")
            chunk = process.read_from(self._offset)
            if chunk is not None:
                self._offset = chunk.end_offset
                yield chunk
            elif process.output_ended:
                return
            else:
                await agent.pulse.wait()

    def acknowledge(self, offset: int) -> None:
        if self._guest.connected:
            self._guest.agent.process(*self._target).acknowledge(offset)


class FakeInputWriter:
    def __init__(self, guest: FakeGuest, container_id: ContainerId, process_id: ProcessId) -> None:
        self._guest = guest
        self._target = (container_id, process_id)

    async def write(self, data: bytes) -> None:
        self._guest.require_connected()
        process = self._guest.agent.process(*self._target)
        if not process.feed(data):
            raise WrongStateError("the process takes no more input")
        while not process.takes_input:
            await self._guest.agent.pulse.wait()
            self._guest.require_connected()

    async def close(self, *, eof: bool) -> None:
        if eof and self._guest.connected:
            self._guest.agent.process(*self._target).end_input()


class FakeDialer:
    """Finds the agent behind a control socket, making one where none is; satisfies GuestDialer."""

    def __init__(self) -> None:
        self.agents: dict[Path, FakeAgent] = {}
        self.scripts: dict[str, Script] = {}  # shared by the agents it makes
        self.fail_next_connect: HyperError | None = None
        self.fail_connects: list[HyperError] = []  # one a dial
        self.gate = asyncio.Event()
        self.gate.set()

    def agent(self, control_socket: Path) -> FakeAgent:
        return self.agents.setdefault(control_socket, FakeAgent(scripts=self.scripts))

    async def connect(
        self, control_socket: Path, stream_socket: Path, *, timeout_s: float, subject: str
    ) -> FakeGuest:
        await self.gate.wait()
        if self.fail_next_connect is not None:
            error, self.fail_next_connect = self.fail_next_connect, None
            raise error
        if self.fail_connects:
            raise self.fail_connects.pop()
        agent = self.agent(control_socket)
        if agent.paused:
            raise TimeoutExpiredError("no agent answered", subject=subject)
        if agent.powered_off:
            raise UnavailableError("the agent's socket is closed", subject=subject)
        agent.drop_connections()  # a port carries one connection at a time
        return FakeGuest(agent)
