# SPDX-License-Identifier: Apache-2.0
"""The service over fakes of all its rooms, joined as the real ones are: no VM, no agent; no agent, no VM."""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from hyperd.errors import HyperError
from hyperd.host.database import Database
from hyperd.host.workers import Workers
from hyperd.model.container import ContainerSpec, Sizing
from hyperd.model.guest import FIRST_PROCESS
from hyperd.model.image import Platform
from hyperd.model.snapshot import Compatibility, Snapshot, SnapshotId, SnapshotKind
from hyperd.model.vm import Accelerator, SandboxId, VmDefinition, VmGoneCause, VmStatus
from hyperd.sandbox import (
    Admission,
    Facts,
    Fleet,
    FleetSettings,
    GuestSettings,
    Ledger,
    Records,
    Reviver,
    Rooms,
    Runner,
    RunSettings,
    SandboxHandle,
    Services,
    Shape,
    SpareMaker,
    Spares,
    SpareSettings,
    TemplateBuilder,
    Templates,
    TemplateSettings,
    Turns,
    VolumeDesk,
)
from hyperd.sandbox.endpoints import carrier_of
from hyperd.sandbox.identity import container_id_of
from hyperd.snapshot import Draft
from tests.fakes.archives import FakeFiles
from tests.fakes.guest import FakeDialer
from tests.fakes.guest_agent import FakeAgent
from tests.fakes.guest_process import FakeProcess, Script
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.image import FakeImageStore
from tests.fakes.network import FakeNetwork
from tests.fakes.shares import FakeShares
from tests.fakes.snapshot import FakeDraft, FakeSnapshots
from tests.fakes.storage import FakeStorage
from tests.fakes.volumes import FakeVolumes

PATIENCE_S = 5.0


async def eventually(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Let the others run until the condition holds.

    The deadline is of time that this process had a CPU, for it does not wait: a busy host makes a test slow, not wrong.
    """
    deadline = time.process_time() + timeout_s
    while not condition():
        assert time.process_time() < deadline, "it did not come true in time"
        await asyncio.sleep(0)


class JoinedHypervisor(FakeHypervisor):
    """Every VM has a fresh agent behind its socket; they end together."""

    def __init__(self, dialer: FakeDialer) -> None:
        super().__init__()
        self._dialer = dialer
        self.agents: dict[SandboxId, FakeAgent] = {}
        self.saved_agents: dict[Path, FakeAgent] = {}
        self.files: dict[SandboxId, FakeFiles] = {}
        self.held_verbs: set[str] = set()  # of agents that are made from now on
        self.failing_verbs: dict[str, HyperError] = {}

    async def start(self, definition: VmDefinition) -> VmStatus:
        status = await super().start(definition)
        sandbox_id = definition.sandbox_id
        saved = self.saved_agents.get(definition.restore_from) if definition.restore_from else None
        agent = saved.copy() if saved is not None else FakeAgent(scripts=self._dialer.scripts)
        agent.files = self.files.setdefault(sandbox_id, FakeFiles())
        for verb in self.held_verbs:
            agent.hold(verb)
        for verb, error in self.failing_verbs.items():
            agent.fail_next(verb, error)
        agent.on_power_off = lambda: self.shut_down(sandbox_id)
        self._dialer.agents[definition.channels[0].path] = self.agents[sandbox_id] = agent
        return status

    async def save(self, sandbox_id: SandboxId, state: Path) -> None:
        await super().save(sandbox_id, state)
        self.saved_agents[state] = self.agents[sandbox_id].copy()

    def published(self, draft: Path, snapshot: Path) -> None:
        for state in [path for path in self.saved_agents if path.parent == draft]:
            self.saved_agents[snapshot / state.name] = self.saved_agents.pop(state)

    def _set_paused(self, sandbox_id: SandboxId, *, paused: bool, failure: str = "") -> None:
        super()._set_paused(sandbox_id, paused=paused, failure=failure)
        self.agents[sandbox_id].set_paused(paused=paused)

    def _end(self, sandbox_id: SandboxId, cause: VmGoneCause, detail: str = "") -> None:
        if sandbox_id in self.running and sandbox_id in self.agents:
            self.agents[sandbox_id].crash()
        super()._end(sandbox_id, cause, detail)


class JoinedDraft(FakeDraft):
    """With files, for the hypervisor to write into."""

    def __init__(self, store: "JoinedSnapshots", snapshot_id: SnapshotId) -> None:
        super().__init__(store, snapshot_id)
        self._joined = store

    async def create_file(self, name: str, *, size_bytes: int = 0, owner: tuple[int, int]) -> Path:
        await self._joined.enter("create_file")
        path = await super().create_file(name, size_bytes=size_bytes, owner=owner)
        with path.open("xb") as file:
            file.truncate(size_bytes)
        return path

    async def add_copy(self, name: str, source: Path) -> Path:
        await self._joined.enter("add_copy")
        path = await super().add_copy(name, source)
        path.write_bytes(source.read_bytes() if source.exists() else b"")
        return path


class JoinedSnapshots(FakeSnapshots):
    """Its files are where it says."""

    def __init__(self, root: Path, on_publish: Callable[[Path, Path], None]) -> None:
        super().__init__(root)
        self.touched: list[SnapshotId] = []
        self.needed: list[int] = []  # by each begin
        self.calls: list[str] = []  # of what takes time
        self._on_publish = on_publish
        self._failures: dict[str, HyperError] = {}
        self._gates: dict[str, asyncio.Event] = {}

    def fail_next(self, verb: str, error: HyperError) -> None:
        """The next call of ``verb`` (of a draft's, too) raises ``error``."""
        self._failures[verb] = error

    def hold(self, verb: str) -> asyncio.Event:
        """Calls of ``verb`` wait until the returned gate is set; `calls` shows that one has come."""
        return self._gates.setdefault(verb, asyncio.Event())

    async def enter(self, verb: str) -> None:
        self.calls.append(verb)
        if (gate := self._gates.get(verb)) is not None:
            await gate.wait()
        if (error := self._failures.pop(verb, None)) is not None:
            raise error

    def everything(self) -> list[Snapshot]:
        return [snapshot for kind in SnapshotKind for snapshot in self.list(kind)]

    async def open(self) -> None:
        await super().open()
        self._gates.clear()
        for draft in self.root.glob(".draft-*"):
            shutil.rmtree(draft)

    async def begin(self, *, need_bytes: int = 0) -> JoinedDraft:
        await self.enter("begin")
        self.needed.append(need_bytes)
        made = await super().begin(need_bytes=need_bytes)
        draft = self.drafts[made.snapshot_id] = JoinedDraft(self, made.snapshot_id)
        draft.directory.mkdir(parents=True)
        return draft

    async def publish(
        self,
        draft: Draft,
        kind: SnapshotKind,
        compatibility: Compatibility,
        *,
        name: str = "",
        source: dict[str, str] | None = None,
        lasting: bool = True,
    ) -> Snapshot:
        await self.enter("publish")
        snapshot = await super().publish(
            draft, kind, compatibility, name=name, source=source, lasting=lasting
        )
        snapshot.directory.parent.mkdir(exist_ok=True)
        draft.directory.rename(snapshot.directory)
        self._on_publish(draft.directory, snapshot.directory)
        if (gate := self._gates.get("published")) is not None:  # it is, and its caller has not heard yet
            await gate.wait()
        return snapshot

    async def discard(self, draft: Draft) -> None:
        await super().discard(draft)
        shutil.rmtree(draft.directory, ignore_errors=True)

    async def require_intact(self, snapshot: Snapshot) -> None:
        await self.enter("require_intact")
        await super().require_intact(snapshot)

    async def touch(self, snapshot: Snapshot) -> None:
        await super().touch(snapshot)
        self.touched.append(snapshot.manifest.snapshot_id)

    async def remove(self, snapshot_id: SnapshotId) -> None:
        await self.enter("remove")
        await super().remove(snapshot_id)
        for directory in self.root.glob(f"*/{snapshot_id}"):
            shutil.rmtree(directory)


@dataclass
class World:
    """What outlives a daemon, and one daemon at a time (``daemon``)."""

    root: Path
    dialer: FakeDialer = field(default_factory=FakeDialer)
    images: FakeImageStore = field(default_factory=FakeImageStore)
    storage: FakeStorage = field(default_factory=FakeStorage)
    network: FakeNetwork = field(default_factory=FakeNetwork)
    volumes: FakeVolumes = field(default_factory=FakeVolumes)
    shares: FakeShares = field(default_factory=FakeShares)
    found: Accelerator = Accelerator.TCG  # by the probe
    memory_mib: int = 4096 + 136  # one of 4000 MiB leaves no room
    log_max_bytes: int = 1 << 24
    templates_enabled: bool = False  # most tests are about what is the same without
    share_memory: bool = True
    spares_wanted: int = 0  # most tests are about what is the same without
    template_budget_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        self.hypervisor = JoinedHypervisor(self.dialer)
        self.snapshots = JoinedSnapshots(self.root / "snapshots", self.hypervisor.published)
        self.storage.root = self.root / "disks"
        self.images.add("alpine")
        self.platform = Platform("linux", "amd64")  # of the fake images
        self.scripts = self.dialer.scripts
        self.accelerator_gate = asyncio.Event()
        self.accelerator_gate.set()

    async def accelerator(self) -> Accelerator:
        await self.accelerator_gate.wait()
        return self.found

    @contextlib.asynccontextmanager
    async def daemon(self) -> AsyncIterator[Fleet]:
        """A fleet that runs; at the end it is cancelled, and what runs is left running."""
        files = Workers("files", 2)
        database = Database(self.root / "records.sqlite")
        await database.open()
        records = Records(database)
        await records.open()
        guest = GuestSettings(self.root / "kernel", self.root / "initramfs", "quiet")
        for asset in (guest.kernel, guest.initramfs):
            asset.write_text("asset")
        settings = RunSettings(guest, self.root / "sandboxes", self.root / "run", 5.0, 1.0)
        await self.snapshots.open()
        rooms = Rooms(
            self.hypervisor,
            self.dialer,
            self.images,
            self.storage,
            self.network,
            self.snapshots,
            self.volumes,
            self.shares,
        )
        self.ledger = Ledger(Admission(self.memory_mib, 20, 4))
        self.records = records
        owner = (os.getuid(), os.getgid())
        template_settings = TemplateSettings(
            lambda _: owner, self.template_budget_bytes, self.templates_enabled, self.share_memory
        )
        facts = Facts(guest.kernel, guest.initramfs, emulator=guest.kernel, ask=_ask_qemu, files=files)
        builder = TemplateBuilder(rooms, settings, template_settings, files)
        background = asyncio.TaskGroup()
        self.templates = Templates(
            builder, self.snapshots, facts, self.ledger, guest, template_settings, background
        )
        turns = Turns(8)
        maker = SpareMaker(rooms, settings, lambda _: owner, files)
        spare_settings = SpareSettings(self.spares_wanted, quiet_s=0)
        self.spares = Spares(maker, self.templates, self.ledger, turns, spare_settings, background)
        self.runner = Runner(rooms, settings, self.templates, self.spares, turns, files)
        fleet = Fleet(
            Services(
                self.runner,
                records,
                self.ledger,
                self.accelerator,
                Reviver(self.runner, files),
                facts,
                lambda _: owner,
                VolumeDesk(self.volumes),
            ),
            FleetSettings(Sizing(1, 256), self.platform, self.root / "sandboxes", self.log_max_bytes),
        )
        ready = asyncio.Event()
        try:
            async with background, asyncio.TaskGroup() as tasks:
                running = tasks.create_task(fleet.run(ready))
                opened = tasks.create_task(ready.wait())
                await asyncio.wait({running, opened}, return_when=asyncio.FIRST_COMPLETED)
                try:
                    if not running.done():
                        yield fleet
                finally:
                    opened.cancel()
                    running.cancel()
                    await self.spares.close()
                    await self.templates.close()
        finally:
            await database.close()
            files.close()

    @contextlib.asynccontextmanager
    async def stored(self) -> AsyncIterator[Records]:
        """The records while no daemon has them."""
        database = Database(self.root / "records.sqlite")
        await database.open()
        try:
            yield Records(database)
        finally:
            await database.close()

    async def build_templates(self, vcpus: int, memory_mib: int) -> list[Snapshot]:
        sizing = Sizing(vcpus or 1, memory_mib or 256)
        shapes = [Shape(sizing, has_nic, Accelerator.TCG) for has_nic in (True, False)]
        return [await self.templates.build(shape) for shape in shapes]

    def agent(self, handle: SandboxHandle) -> FakeAgent:
        """Of the VM that it runs in: its own, or that of the container whose network it has."""
        record = handle.record
        return self.hypervisor.agents[carrier_of(record.spec) or record.sandbox_id]

    def process(self, handle: SandboxHandle) -> FakeProcess:
        containers = self.agent(handle).containers
        return containers[container_id_of(handle.record)].processes[FIRST_PROCESS]

    def script(self, name: str, script: Script) -> None:
        self.scripts[name] = script

    def require_nothing_left_of(self, handle: SandboxHandle) -> None:
        sandbox_id = handle.record.sandbox_id
        assert sandbox_id not in self.hypervisor.running
        assert sandbox_id not in self.network.taps
        assert sandbox_id not in dict(self.ledger.admission.held)


async def created(fleet: Fleet, *args: str, **fields: object) -> SandboxHandle:
    spec = ContainerSpec("alpine", args=args or ("sleep",), **fields)  # type: ignore[arg-type]
    view, _ = await fleet.create(spec)
    return fleet.get(view.record.sandbox_id)


async def started(fleet: Fleet, *args: str, **fields: object) -> SandboxHandle:
    handle = await created(fleet, *args, **fields)
    await handle.start()
    return handle


async def _ask_qemu() -> tuple[str, str]:
    return "10.0", "q35"
