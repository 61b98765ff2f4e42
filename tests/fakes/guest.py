# SPDX-License-Identifier: Apache-2.0
"""A guest without a virtual machine: containers whose processes follow a script.

``FakeAgent`` is what is inside the VM and outlives connections; ``FakeGuest`` is one connection to it;
``FakeDialer`` makes those, one agent per control socket. No tasks: a process moves when someone starts, reads,
acknowledges, feeds or signals it. ``tests/fakes/agent.py`` serves the same world over sockets.
"""

import asyncio
import signal as signals
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hyperd.errors import (
    ExistsError,
    HyperError,
    InvalidError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    WrongStateError,
)
from hyperd.guest.runs import SeparateRun
from hyperd.model.guest import (
    FIRST_PROCESS,
    AgentHello,
    ContainerId,
    ContainerPlan,
    ContainerStatus,
    GuestContainerState,
    GuestIdentity,
    GuestStats,
    GuestWiring,
    OutputChunk,
    ProcessExit,
    ProcessId,
    ProcessPlan,
    ProcessStatus,
    Stream,
    TerminalSize,
)
from tests.fakes.archives import FakeArchives, FakeFiles

RING_BYTES = 256 * 1024
CHUNK_BYTES = 64 * 1024
HELLO = AgentHello("0.1.0", "6.12.0-fake", 420)
KILLED = ProcessExit(137, signal=9)


@dataclass(frozen=True, slots=True)
class Script:
    """What a process does: writes ``output``, then exits with ``exit`` (None: goes on until it is signalled).

    ``output`` is iterated once per process and only as fast as the ring takes it. With ``echo`` it is ``cat``:
    input comes back on stdout and end of input is exit 0.
    """

    output: Iterable[tuple[Stream, bytes]] = ()
    exit: ProcessExit | None = None
    echo: bool = False
    ignored_signals: frozenset[int] = frozenset()


class Pulse:
    """Wakes everyone who waits at this moment."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()


@dataclass(slots=True)
class _Segment:
    offset: int
    stream: Stream
    data: bytearray

    @property
    def end_offset(self) -> int:
        return self.offset + len(self.data)


class FakeProcess:
    """A process with the agent's ring: numbered output, kept until acknowledged, blocking when full."""

    def __init__(self, plan: ProcessPlan, script: Script, pid: int, pulse: Pulse) -> None:
        self.plan = plan
        self.pid = pid
        self.exit: ProcessExit | None = None
        self.received = bytearray()
        self.input_ended = False
        self.signals: list[int] = []
        self.sizes: list[TerminalSize] = []
        self.start_offset = 0
        self.end_offset = 0
        self.reader: object = None  # a later reader ends an earlier one
        self._script = script
        self._pulse = pulse
        self._unwritten: Iterator[tuple[Stream, bytes]] = iter(script.output)
        self._blocked: deque[tuple[Stream, bytes]] = deque()
        self._ring: deque[_Segment] = deque()
        self._started = False
        self._pipes_held = False

    def copy(self, pulse: "Pulse") -> "FakeProcess":
        other = FakeProcess(self.plan, self._script, self.pid, pulse)
        other.exit, other.received, other.input_ended = self.exit, bytearray(self.received), self.input_ended
        other.start_offset, other.end_offset = self.start_offset, self.end_offset
        other._unwritten, other._blocked = iter(()), deque(self._blocked)
        other._ring = deque(_Segment(item.offset, item.stream, bytearray(item.data)) for item in self._ring)
        other._started, other._pipes_held = self._started, self._pipes_held
        return other

    @property
    def output_ended(self) -> bool:
        return self.exit is not None and not self._blocked and not self._pipes_held

    def start(self) -> None:
        self._started = True
        self._move()

    def emit(self, data: bytes, stream: Stream = Stream.STDOUT) -> None:
        """Write now, beyond the script; what does not fit into the ring waits."""
        self._blocked.extend((stream, data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES))
        self._move()

    def hold_pipes(self) -> None:
        """A child has them, too, and outlives the process."""
        self._pipes_held = True

    def finish(self, exit_: ProcessExit) -> None:
        if self.exit is None:
            self.exit = exit_
            self._unwritten = iter(())
        self._pulse.beat()

    def require_kept(self, offset: int) -> None:
        if not self.start_offset <= offset <= self.end_offset:
            raise InvalidError(f"offset {offset} is outside what is kept")

    def acknowledge(self, offset: int) -> None:
        self.start_offset = max(self.start_offset, min(offset, self.end_offset))
        while self._ring and self._ring[0].end_offset <= self.start_offset:
            self._ring.popleft()
        self._move()

    def feed(self, data: bytes) -> bool:
        """Return whether the process still takes input."""
        if self.exit is not None or self.input_ended:
            return False
        self.received += data
        if self._script.echo:
            self.emit(data)
        return True

    @property
    def takes_input(self) -> bool:
        return not self._blocked or self.exit is not None

    def end_input(self) -> None:
        self.input_ended = True
        self._move()

    def signal(self, number: int) -> bool:
        if self.exit is not None:
            return False
        self.signals.append(number)
        if number == signals.SIGKILL or (number and number not in self._script.ignored_signals):
            self._blocked.clear()
            self.finish(ProcessExit(128 + number, signal=number))
        return True

    def read_from(self, offset: int) -> OutputChunk | None:
        """The next chunk from ``offset`` on, or None when there is none yet."""
        for segment in self._ring:
            if segment.end_offset > offset:
                skip = max(0, offset - segment.offset)
                data = bytes(segment.data[skip : skip + CHUNK_BYTES])
                return OutputChunk(segment.offset + skip, segment.stream, data)
        return None

    def _move(self) -> None:
        while self._started and self._write_next():
            pass
        if self._started and self.exit is None and not self._blocked:
            if self._script.exit is not None and not self._script.echo:
                self.finish(self._script.exit)
            elif self._script.echo and self.input_ended:
                self.finish(ProcessExit(0))
        self._pulse.beat()

    def _write_next(self) -> bool:
        if not self._blocked:
            following = next(self._unwritten, None)
            if following is None:
                return False
            stream, data = following
            self._blocked.extend(
                (stream, data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)
            )
            return True
        stream, data = self._blocked[0]
        room = RING_BYTES - (self.end_offset - self.start_offset)
        if room <= 0:
            return False
        last = self._ring[-1] if self._ring else None
        if last is None or last.stream is not stream or len(last.data) + len(data) > CHUNK_BYTES:
            last = _Segment(self.end_offset, stream, bytearray())
            self._ring.append(last)
        last.data += data[:room]
        self.end_offset += len(data[:room])
        self._blocked.popleft()
        if len(data) > room:
            self._blocked.appendleft((stream, data[room:]))
        return True


@dataclass(slots=True)
class FakeContainer:
    plan: ContainerPlan
    processes: dict[ProcessId, FakeProcess]
    started: bool = False

    @property
    def state(self) -> GuestContainerState:
        if not self.started:
            return GuestContainerState.CREATED
        running = self.processes[FIRST_PROCESS].exit is None
        return GuestContainerState.RUNNING if running else GuestContainerState.EXITED


@dataclass(slots=True)
class FakeAgent:
    """The inside of a guest. ``scripts`` are found by the whole command, then by args[0]; none: until signalled."""

    scripts: dict[str, Script] = field(default_factory=dict)
    hello: AgentHello = HELLO
    identity: GuestIdentity | None = None
    wiring: GuestWiring = field(default_factory=GuestWiring)
    frozen: bool = False
    has_devices: bool = True
    containers: dict[ContainerId, FakeContainer] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    powered_off: bool = False
    on_power_off: Callable[[], None] = lambda: None
    on_call: Callable[[str], None] = lambda _: None  # may raise
    paused: bool = False  # its VM is: nothing answers
    pulse: Pulse = field(default_factory=Pulse)
    connections: set["FakeGuest"] = field(default_factory=set)
    files: FakeFiles = field(default_factory=FakeFiles)  # on the disk, which outlives the VM
    volume_sizes: dict[str, int] = field(default_factory=dict)  # of those that grew, by their disks' serials
    # Serial, file system, directory, whether to read only.
    opened_volumes: list[tuple[str, str, str, bool]] = field(default_factory=list)
    still_volumes: set[str] = field(default_factory=set)
    _failures: dict[str, HyperError] = field(default_factory=dict)
    _gates: dict[str, asyncio.Event] = field(default_factory=dict)
    _next_pid: int = 300

    def fail_next(self, verb: str, error: HyperError) -> None:
        """The next call of ``verb`` (a method's name) raises ``error``."""
        self._failures[verb] = error

    def hold(self, verb: str) -> asyncio.Event:
        """Calls of ``verb`` wait until the returned gate is set; `calls` shows that one has come."""
        return self._gates.setdefault(verb, asyncio.Event())

    async def enter(self, verb: str) -> None:
        while self.paused:
            await self.pulse.wait()
        self.calls.append(verb)
        self.on_call(verb)
        self.pulse.beat()
        if (gate := self._gates.get(verb)) is not None:
            await gate.wait()
        if (error := self._failures.pop(verb, None)) is not None:
            raise error

    async def wait_called(self, verb: str, *, times: int = 1, timeout_s: float = 5) -> None:
        async with asyncio.timeout(timeout_s):
            while self.calls.count(verb) < times:
                await self.pulse.wait()

    def drop_connections(self) -> None:
        """The wire breaks; processes go on and a new connection finds them."""
        for guest in list(self.connections):
            guest.connected = False
        self.connections.clear()
        self.pulse.beat()

    def set_paused(self, *, paused: bool) -> None:
        self.paused = paused
        self.pulse.beat()

    def copy(self) -> "FakeAgent":
        """As it stands, in another VM: nothing is shared, nobody is connected."""
        other = FakeAgent(self.scripts, self.hello, self.identity, self.wiring, frozen=self.frozen)
        for container_id, container in self.containers.items():
            processes = {key: process.copy(other.pulse) for key, process in container.processes.items()}
            other.containers[container_id] = FakeContainer(container.plan, processes, container.started)
        other._gates = dict(self._gates)
        return other

    def crash(self) -> None:
        """The VM is gone with all in it."""
        self.powered_off = True
        self.paused = False
        self.files.power_cut()
        self.drop_connections()

    def container(self, container_id: ContainerId) -> FakeContainer:
        try:
            return self.containers[container_id]
        except KeyError:
            raise NotFoundError("no such container in the guest", subject=container_id) from None

    def process(self, container_id: ContainerId, process_id: ProcessId = FIRST_PROCESS) -> FakeProcess:
        try:
            return self.container(container_id).processes[process_id]
        except KeyError:
            raise NotFoundError("no such process in the guest", subject=process_id) from None

    def configure(self, identity: GuestIdentity) -> None:
        for container in identity.containers:
            self.container(container.container_id)
        self.identity = identity
        self.wiring = GuestWiring(
            identity.links, identity.dns_servers, identity.dns_searches, identity.dns_options, identity.hosts
        )
        self.has_devices = True

    def release_devices(self) -> None:
        if self.containers or self.frozen:
            raise WrongStateError("there are containers, or the guest is frozen")
        self.has_devices = False

    def require_moving(self) -> None:
        if self.frozen:
            raise WrongStateError("the guest is frozen")

    def create(self, plan: ContainerPlan) -> int:
        self.require_moving()
        if plan.container_id in self.containers:
            raise ExistsError("the guest has such a container", subject=plan.container_id)
        process = self._new_process(plan.process)
        self.containers[plan.container_id] = FakeContainer(plan, {FIRST_PROCESS: process})
        return process.pid

    def open_root(self, plan: ContainerPlan) -> None:
        self.require_moving()
        if plan.container_id in self.containers:
            raise ExistsError("the guest has such a container", subject=plan.container_id)
        self.containers[plan.container_id] = FakeContainer(plan, {})

    def require_volume(self, serial: str) -> None:
        mounted = [mount for container in self.containers.values() for mount in container.plan.mounts]
        if not any(mount.source == serial and "ro" not in mount.options for mount in mounted):
            raise NotFoundError(f"no disk {serial!r} is mounted for writing")

    def freeze_volume(self, serial: str) -> None:
        self.require_volume(serial)
        if serial in self.still_volumes:
            raise WrongStateError(f"volume {serial} stands still already")
        self.still_volumes.add(serial)

    def thaw_volume(self, serial: str) -> bool:
        stood_still = serial in self.still_volumes
        self.still_volumes.discard(serial)
        return stood_still

    def open_volume(self, container_id: ContainerId) -> None:
        self.open_root(
            ContainerPlan(container_id, (), None, readonly_root=False, process=ProcessPlan((), ()))
        )

    def start(self, container_id: ContainerId) -> None:
        container = self.container(container_id)
        self.require_moving()
        if container.started:
            raise WrongStateError("the container was started already", subject=container_id)
        container.started = True
        container.processes[FIRST_PROCESS].start()

    def refusal(self, container_id: ContainerId) -> ProcessExit | None:
        exit_ = self.container(container_id).processes[FIRST_PROCESS].exit
        return exit_ if exit_ is not None and exit_.start_error else None

    def delete(self, container_id: ContainerId) -> None:
        if container_id in self.containers:
            self.require_moving()
        container = self.containers.pop(container_id, None)
        for process in container.processes.values() if container else ():
            process.finish(KILLED)

    def end_rehearsal(self, container_id: ContainerId) -> None:
        self.container(container_id)
        if len(self.containers) > 1:
            raise WrongStateError(f"there are {len(self.containers)} containers")
        self.delete(container_id)

    def exec(self, container_id: ContainerId, process_id: ProcessId, plan: ProcessPlan) -> int:
        container = self.container(container_id)
        self.require_moving()
        if container.state is not GuestContainerState.RUNNING:
            raise WrongStateError("the container does not run", subject=container_id)
        if process_id in container.processes:
            raise ExistsError("the guest has such a process", subject=process_id)
        process = container.processes[process_id] = self._new_process(plan)
        process.start()
        return process.pid

    def signal(
        self, container_id: ContainerId, process_id: ProcessId, number: int, *, everyone: bool
    ) -> bool:
        container = self.container(container_id)
        if everyone:
            delivered_to = [process.signal(number) for process in container.processes.values()]
            return any(delivered_to)
        delivered = self.process(container_id, process_id).signal(number)
        if container.processes[FIRST_PROCESS].exit is not None:  # its pid namespace goes with it
            for process in container.processes.values():
                process.finish(KILLED)
        return delivered

    def forget(self, container_id: ContainerId, process_id: ProcessId) -> None:
        container = self.containers.get(container_id)
        process = container.processes.get(process_id) if container else None
        if container is None or process is None:
            return
        if process.exit is None or process_id == FIRST_PROCESS:
            raise WrongStateError("only an exited exec'd process can be forgotten", subject=process_id)
        del container.processes[process_id]

    def status(self) -> list[ContainerStatus]:
        return [
            ContainerStatus(
                container_id,
                container.state,
                tuple(
                    ProcessStatus(
                        pid,
                        process.pid,
                        process.exit is None,
                        process.exit,
                        process.end_offset,
                        process.start_offset,
                    )
                    for pid, process in container.processes.items()
                ),
            )
            for container_id, container in self.containers.items()
        ]

    def stats(self, container_id: ContainerId | None) -> GuestStats:
        chosen = list(self.containers.values()) if container_id is None else [self.container(container_id)]
        running = sum(
            process.exit is None for container in chosen for process in container.processes.values()
        )
        return GuestStats(1_000_000, 8 << 20, 0, running, 0, 0, 4 << 20)

    def power_off(self) -> None:
        self.frozen = False
        self.files.sync()
        for container_id in list(self.containers):
            self.delete(container_id)
        self.powered_off = True
        self.on_power_off()

    def _new_process(self, plan: ProcessPlan) -> FakeProcess:
        if not plan.args:
            raise InvalidError("a process without arguments")
        self._next_pid += 1
        script = self.scripts.get(" ".join(plan.args)) or self.scripts.get(plan.args[0]) or Script()
        return FakeProcess(plan, script, self._next_pid, self.pulse)


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
        await self._enter("create_container")
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
