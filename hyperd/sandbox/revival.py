# SPDX-License-Identifier: Apache-2.0
"""From a snapshot to a sandbox whose processes are where they were, and stand still until they are thawed.

snapshot intact and compatible -> disks | network, at once -> VM, restored -> agent's hello -> identity

It fails closed: one that has not got an identity of its own is ended, and its processes never ran.
"""

import asyncio
import contextlib
import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from hyperd.errors import RestoreError
from hyperd.guest.base import Guest
from hyperd.host.groups import first_error
from hyperd.host.workers import Workers
from hyperd.model.container import ContainerRecord, Sizing, StartPath, StartReport
from hyperd.model.guest import (
    FIRST_PROCESS,
    ContainerIdentity,
    ContainerStatus,
    ForkIdentity,
    ProcessStatus,
)
from hyperd.model.network import Attachment, PortRequest
from hyperd.model.snapshot import Compatibility, Snapshot
from hyperd.model.vm import Accelerator, SandboxId, VmDefinition
from hyperd.sandbox import definition, identity
from hyperd.sandbox.compatibility import HostFacts, compatibility_of, require_compatible
from hyperd.sandbox.definition import STATE, GuestSettings, Shape
from hyperd.sandbox.rooms import (
    CLONE_HELLO_TIMEOUT_S,
    ENTROPY_BYTES,
    Phases,
    console_as_evidence,
    make_directories,
)
from hyperd.sandbox.run import Live, Runner, execs_of
from hyperd.sandbox.source import DISK
from hyperd.sandbox.standstill import to_the_end

_REPORTING = "free-page-reporting"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a sandbox goes on from."""

    snapshot: Snapshot
    fork: ForkIdentity | None = None
    own_disk: bool = False  # the sandbox's disk is as it was then; else it becomes a copy of the snapshot's
    back: bool = False  # of a sandbox that has a disk: that stays until all is where it was
    staged: Path | None = None  # the copy of the snapshot's disk that it goes ``back`` to, once there is one
    output_offset: int = 0  # up to here its log has the output already
    ports: tuple[PortRequest, ...] | None = None  # to be published; None: what the sandbox was created with


def require_restorable(
    snapshot: Snapshot,
    sizing: Sizing,
    *,
    has_nic: bool,
    accelerator: Accelerator,
    guest: GuestSettings,
    host: HostFacts,
) -> None:
    """Before anything is made. Raises UnsupportedError that says what differs."""
    shape = Shape(sizing, has_nic, accelerator)
    described = definition.template_shape_definition(shape, guest, share_memory=False)
    require_compatible(snapshot, compatibility_of(_like_saved(described, snapshot), host))


class Reviver:
    def __init__(self, runner: Runner, files: Workers) -> None:
        self._runner = runner
        self._rooms = runner.rooms
        self._settings = runner.settings
        self._files = files

    async def revive(
        self,
        record: ContainerRecord,
        origin: Origin,
        accelerator: Accelerator,
        host: HostFacts,
        phases: Phases,
    ) -> Live:
        """On any failure nothing stays but the writable disk and the lease. What runs is frozen."""
        try:
            return await self._revive(record, origin, accelerator, host, phases)
        except BaseException:
            if origin.back:
                await to_the_end(self._rooms.storage.discard_staged(record.sandbox_id))
            raise

    async def _revive(
        self,
        record: ContainerRecord,
        origin: Origin,
        accelerator: Accelerator,
        host: HostFacts,
        phases: Phases,
    ) -> Live:
        snapshot, rooms = origin.snapshot, self._rooms
        await rooms.snapshots.require_intact(snapshot)
        paths = self._settings.paths(record.sandbox_id)
        async with contextlib.AsyncExitStack() as stack:
            async with first_error(), asyncio.TaskGroup() as tasks:
                root_task = tasks.create_task(rooms.images.root_disk(record.image_id))
                disk_task = tasks.create_task(self._disk(record.sandbox_id, origin))
                tasks.create_task(make_directories(paths, self._files))
                attachments = await self._attach(record, origin, stack)
            described = _like_saved(
                definition.vm_definition(
                    record,
                    root_task.result(),
                    disk_task.result(),
                    attachments,
                    paths,
                    self._settings.guest,
                    accelerator,
                ),
                snapshot,
            )
            made_of = compatibility_of(described, host)
            require_compatible(snapshot, made_of)
            phases.mark("prepare")
            stack.push_async_callback(rooms.hypervisor.destroy, record.sandbox_id)
            async with self._runner.turns.take(phases):
                vm = await rooms.hypervisor.start(replace(described, restore_from=snapshot.path(STATE)))
                phases.mark("vm")
                subject = f"container {record.name}"
                async with console_as_evidence(subject, paths, self._files):
                    guest = await self._runner.dialer.connect(
                        paths, vm_pid=vm.pid, timeout_s=CLONE_HELLO_TIMEOUT_S, subject=subject
                    )
                    stack.push_async_callback(guest.close)
                    phases.mark("hello")
                    containers = await guest.list_containers()
                    first = _first_process(record, containers)
                    await self._configure(guest, record, attachments, origin.fork)
                    phases.mark("configure")
            if origin.back:  # the VM has it open, and it gets its name
                await rooms.storage.adopt_staged(record.sandbox_id)
            return Live(
                guest,
                vm.pid,
                first.pid,
                accelerator,
                attachments,
                stack.pop_all(),
                StartReport(StartPath.SNAPSHOT, "", phases.in_ms()),
                described,
                made_of,
                max(first.output_start_offset, min(origin.output_offset, first.output_end_offset)),
                execs_of(containers, identity.container_id_of(record)),
            )

    async def _disk(self, sandbox_id: SandboxId, origin: Origin) -> Path:
        storage, source = self._rooms.storage, origin.snapshot.path(DISK)
        if origin.own_disk:
            return await storage.writable_path(sandbox_id)
        if origin.back:
            return origin.staged or await storage.stage_writable(sandbox_id, source)
        return await storage.adopt_writable(sandbox_id, source)

    async def _configure(
        self,
        guest: Guest,
        record: ContainerRecord,
        attachments: tuple[Attachment, ...],
        fork: ForkIdentity | None,
    ) -> None:
        given = identity.identity_of(record, attachments, os.urandom(ENTROPY_BYTES), uuid.uuid4())
        own = ContainerIdentity(identity.container_id_of(record), identity.hostname_of(record))
        await guest.configure(replace(given, containers=(own,), fork=fork))

    async def _attach(
        self, record: ContainerRecord, origin: Origin, stack: contextlib.AsyncExitStack
    ) -> tuple[Attachment, ...]:
        stack.push_async_callback(self._rooms.network.detach, record.sandbox_id)
        return await self._runner.attach(record, origin.ports)


def _like_saved(described: VmDefinition, snapshot: Snapshot) -> VmDefinition:
    """With the one device whose features depend on how the saved VM was started."""
    return replace(described, free_page_reporting=_reports_free_pages(snapshot.manifest.compatibility))


def _reports_free_pages(saved: Compatibility) -> bool:
    return _REPORTING in saved.layout.split(",")


def _first_process(record: ContainerRecord, containers: list[ContainerStatus]) -> ProcessStatus:
    wanted = identity.container_id_of(record)
    for container in containers:
        for process in container.processes:
            if container.container_id == wanted and process.process_id == FIRST_PROCESS:
                return process
    raise RestoreError("the container that it is of is not in it", subject=f"container {record.name}")
