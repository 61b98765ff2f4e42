# SPDX-License-Identifier: Apache-2.0
"""An agent without a machine: what there is in a guest, whoever is connected."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hyperd.errors import (
    ExistsError,
    HyperError,
    InvalidError,
    NotFoundError,
    WrongStateError,
)
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
    ProcessExit,
    ProcessId,
    ProcessPlan,
    ProcessStatus,
)
from tests.fakes.archives import FakeFiles
from tests.fakes.guest_process import KILLED, FakeProcess, Pulse, Script

HELLO = AgentHello("0.1.0", "6.12.0-fake", 420)


class Connection(Protocol):
    connected: bool


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
    connections: set["Connection"] = field(default_factory=set)
    files: FakeFiles = field(default_factory=FakeFiles)  # on the disk, which outlives the VM
    volume_sizes: dict[str, int] = field(default_factory=dict)  # of those that grew, by their disks' serials
    # Serial, file system, directory, whether to read only.
    opened_volumes: list[tuple[str, str, str, bool]] = field(default_factory=list)
    still_volumes: set[str] = field(default_factory=set)
    # Whose caller hung up: they are made all the same, once "create_container" is not held any more.
    half_made: dict[ContainerId, ContainerPlan] = field(default_factory=dict)
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
        if plan.share_names_with is not None:
            self.container(plan.share_names_with)
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

    def _finish_making(self, container_id: ContainerId) -> None:
        if (plan := self.half_made.get(container_id)) is None:
            return
        gate = self._gates.get("create_container")
        if gate is not None and not gate.is_set():
            raise WrongStateError(f"container {container_id} is being made or deleted")
        del self.half_made[container_id]
        self.create(plan)

    def delete(self, container_id: ContainerId) -> None:
        self._finish_making(container_id)
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

    def release_disks(self, serials: Sequence[str]) -> None:
        for container in self.containers.values():
            plan = container.plan
            held = {layer.disk_serial for layer in plan.layers}
            held |= {plan.writable.disk_serial} if plan.writable is not None else set()
            if in_use := held & set(serials):
                raise WrongStateError(f"a container has disk {in_use.pop()}")

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
