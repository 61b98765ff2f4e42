# SPDX-License-Identifier: Apache-2.0
"""One run of a sandbox's VM: everything acquired on the way up is on one exit stack, and goes in reverse.

image | image's disk | writable disk | network | template   at once
VM whose guest has its identity (start.py: from a spare, the template, or booted) -> container, just before its execve
"""

import asyncio
import contextlib
import logging
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from hyperd.errors import HyperError
from hyperd.guest.base import Guest
from hyperd.host.files import file_errors
from hyperd.host.groups import first_error
from hyperd.host.workers import Workers
from hyperd.model.container import ContainerRecord, StartReport
from hyperd.model.guest import FIRST_PROCESS, ContainerId, ContainerStatus, ProcessId
from hyperd.model.network import Attachment, PortRequest
from hyperd.model.snapshot import Compatibility
from hyperd.model.vm import Accelerator, Disk, SandboxId, VmDefinition
from hyperd.sandbox import definition, identity, plans, plugging, wiring
from hyperd.sandbox.definition import SandboxPaths
from hyperd.sandbox.endpoints import endpoints_of
from hyperd.sandbox.journal import Journal, Kept
from hyperd.sandbox.mount_sources import EMULATED_NOTE
from hyperd.sandbox.patience import PatientDialer, Turns
from hyperd.sandbox.rooms import (
    Phases,
    Rooms,
    RunSettings,
    console_as_evidence,
    make_directories,
    now_ms,
    remove_directories,
)
from hyperd.sandbox.spares import Spares, attach_before_spares
from hyperd.sandbox.start import Start, Starter
from hyperd.sandbox.template import Templates
from hyperd.sandbox.template_build import make_placeholder
from hyperd.vm import console_tail

__all__ = ["Live", "Rooms", "RunSettings", "Runner", "now_ms"]

log = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{64}")
SYNC_TIMEOUT_S = 5.0
TAKEN_OVER_AT_A_TIME = 64  # each has so long to say hello, and so many say it in less


class SharedVm(Protocol):
    """A VM that is another's, as is the connection to its agent."""

    async def next_guest(self, broken: Guest) -> Guest:
        """After ``broken`` broke. Raises UnavailableError when there will be none."""

    def leave(self) -> None:
        """Its place in that VM is free again."""


@dataclass(slots=True)
class Live:
    """A VM with a connected agent, or a place in another's. ``stack`` undoes all of it."""

    guest: Guest
    vm_pid: int
    guest_pid: int
    accelerator: Accelerator
    attachments: tuple[Attachment, ...]
    stack: contextlib.AsyncExitStack
    start: StartReport | None = None
    definition: VmDefinition | None = None  # unless taken over
    made_of: Compatibility | None = None  # what another VM must be made of to go on where this one is saved
    output_offset: int = 0  # of the first process: where its log begins
    execs: dict[ProcessId, int] = field(
        default_factory=dict
    )  # taken over: further processes, end of their output
    shared: SharedVm | None = None

    async def hang_up(self) -> None:
        """The VM runs on."""
        if self.shared is None:
            await self.guest.close()

    async def let_go(self) -> None:
        """As ``hang_up``, of one that comes too late to be anybody's."""
        await self.hang_up()
        if self.shared is not None:
            self.shared.leave()


class Runner:
    """Brings VMs up and takes them down; holds no state of its own."""

    def __init__(
        self,
        rooms: Rooms,
        settings: RunSettings,
        templates: Templates,
        spares: Spares,
        turns: Turns,
        files: Workers,
    ) -> None:
        self.rooms = rooms
        self.settings = settings
        self.templates = templates
        self._files = files
        self.spares = spares
        self.turns = turns
        self.dialer = PatientDialer(rooms.dialer, files)
        self._dialling = asyncio.Semaphore(TAKEN_OVER_AT_A_TIME)
        self._starter = Starter(rooms, settings, templates, spares, files)

    async def bring_up(
        self,
        record: ContainerRecord,
        accelerator: Accelerator,
        phases: Phases,
        *,
        only_files: bool = False,
    ) -> Live:
        """From nothing to a container that waits before its execve. On any failure nothing stays but the writable disk.

        ``only_files``: there is no container then, only its root file system.
        Raises what the rooms raise; an agent that never answers is TimeoutExpiredError, a VM that ends before it is
        UnavailableError, both with the console's tail.
        """
        paths = self.settings.paths(record.sandbox_id)
        async with contextlib.AsyncExitStack() as stack:
            spare = await self.spares.claim(record)
            if spare is not None:
                stack.push_async_callback(self.spares.end, spare)
            async with first_error(), asyncio.TaskGroup() as tasks:
                image_task = tasks.create_task(self.rooms.images.get(record.image_id))
                root_task = tasks.create_task(self.rooms.images.root_disk(record.image_id))
                writable_task = tasks.create_task(
                    self.rooms.storage.create_writable(record.sandbox_id, record.spec.writable_size_bytes)
                )
                mounts_task = tasks.create_task(plugging.find(self.rooms, record, stack, self.end_vm))
                offer_task = tasks.create_task(self.templates.offer(definition.shape_of(record, accelerator)))
                if spare is None:  # else they are in use
                    tasks.create_task(make_directories(paths, self._files))
                attachments = await self._attach(record, stack)
            root = root_task.result()
            start = Start(
                record,
                attachments,
                paths,
                phases,
                definition.vm_definition(
                    record, root, writable_task.result(), attachments, paths, self.settings.guest, accelerator
                ),
            )
            disks, shares = mounts_task.result()
            start = replace(start, volumes=disks, shares=shares, spare=spare)
            phases.mark("prepare")
            async with contextlib.AsyncExitStack() as turn:
                await turn.enter_async_context(self.turns.take(phases))
                up = await self._starter.bring_up(start, offer_task.result(), stack)
                emulated = accelerator is Accelerator.TCG
                plan = plans.container_plan(
                    record, image_task.result().config, root, shares, disks, emulated=emulated
                )
                if plan.may_copy:  # for minutes, and others are to start meanwhile
                    await turn.aclose()
                async with console_as_evidence(start.subject, paths, self._files):
                    guest_pid = 0
                    if only_files:
                        await up.guest.open_root(plan)
                    else:
                        guest_pid = await up.guest.create_container(plan)
                phases.mark("create")
            note = "; ".join(filter(None, (up.note, EMULATED_NOTE if emulated and shares else "")))
            report = StartReport(up.path, note, phases.in_ms())
            return Live(
                up.guest,
                up.vm.pid,
                guest_pid,
                accelerator,
                attachments,
                stack.pop_all(),
                report,
                up.described,
            )

    async def bring_up_bare(
        self,
        record: ContainerRecord,
        volume: Disk,
        owner: tuple[int, int],
        accelerator: Accelerator,
        stack: contextlib.AsyncExitStack,
    ) -> Guest:
        """A VM with one volume and no image. What ``discard`` removes may stay when it fails."""
        paths = self.settings.paths(record.sandbox_id)
        with file_errors(paths.state_dir):
            await make_directories(paths, self._files)
            await self._files.call(make_placeholder, definition.placeholder(paths), owner)
        writable = await self.rooms.storage.create_writable(record.sandbox_id)
        described = definition.bare_definition(record, writable, paths, self.settings.guest, accelerator)
        start = Start(record, (), paths, Phases(), described, (volume,))
        offer = await self.templates.offer(definition.shape_of(record, accelerator))
        async with self.turns.take(start.phases):
            return (await self._starter.bring_up(start, offer, stack)).guest

    async def adopt(
        self,
        record: ContainerRecord,
        vm_pid: int,
        accelerator: Accelerator,
        attachments: tuple[Attachment, ...],
    ) -> Live:
        """Take over a VM that an earlier hyperd started. On failure the VM is left as it is."""
        paths = self.settings.paths(record.sandbox_id)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.rooms.network.detach, record.sandbox_id)
            if record.spec.mounts:
                stack.push_async_callback(self.end_vm, record.sandbox_id)
                stack.push_async_callback(self.rooms.shares.end, record.sandbox_id)
            stack.push_async_callback(self.rooms.hypervisor.destroy, record.sandbox_id)
            try:
                async with self._dialling:
                    guest = await self._dial(record, paths, self.settings.reconnect_timeout_s)
                try:
                    execs = execs_of(await guest.list_containers(), identity.container_id_of(record))
                except BaseException:
                    await guest.close()
                    raise
            except BaseException:
                stack.pop_all()
                raise
            stack.push_async_callback(guest.close)
            return Live(guest, vm_pid, 0, accelerator, attachments, stack.pop_all(), execs=execs)

    async def reconnect(self, record: ContainerRecord, live: Live) -> None:
        """Dial again after the connection broke; the old one is hung up. Raises as ``GuestDialer.connect``.

        One that is another's is that one's to dial.
        """
        if live.shared is not None:
            live.guest = await live.shared.next_guest(live.guest)
            return
        await live.guest.close()
        live.guest = await self._dial(
            record, self.settings.paths(record.sandbox_id), self.settings.reconnect_timeout_s
        )

    async def tear_down(self, live: Live, *, keep_disk: bool) -> None:
        """Sync the guest's disk where it will be needed again, then undo everything."""
        if keep_disk and live.shared is None:
            # A guest that cannot sync is destroyed all the same: its ext4 has a journal.
            try:
                await live.guest.shutdown(SYNC_TIMEOUT_S)
            except HyperError as error:
                log.warning("guest not shut down", extra={"error": str(error)})
        await live.hang_up()  # perhaps a later one than the stack knows
        await live.stack.aclose()

    async def attach(
        self, record: ContainerRecord, published: tuple[PortRequest, ...] | None = None
    ) -> tuple[Attachment, ...]:
        """As ``wiring.attach``. Where only a spare has the address, that gives way."""
        network = self.rooms.network
        return await attach_before_spares(
            self.spares,
            endpoints_of(record.spec),
            lambda: wiring.attach(network, record, published),
            lambda: network.detach(record.sandbox_id),
        )

    async def clean_up(self, sandbox_id: SandboxId) -> None:
        """End what a run left behind and nobody has a hold of; disk and lease stay. Idempotent."""
        try:
            await self.end_vm(sandbox_id)
        finally:
            await self.rooms.network.detach(sandbox_id)

    async def end_vm(self, sandbox_id: SandboxId) -> None:
        """Its volumes are for others when its QEMU has ended, and not before. Idempotent.

        Where this raises they stay attached; the fleet's next look tries again. The network is cut off in any case:
        tap, address and ports are the sandbox's own.
        """
        await self.rooms.hypervisor.destroy(sandbox_id)
        await self.rooms.shares.end(sandbox_id)
        await self.rooms.volumes.detach(sandbox_id)

    async def discard(self, sandbox_id: SandboxId) -> None:
        """Remove everything that a sandbox owns on this host. Idempotent."""
        await self.spares.give_up(sandbox_id)
        await self.rooms.hypervisor.destroy(sandbox_id)
        await self.rooms.shares.end(sandbox_id)
        # Its files first: where the host's disk is full there is room then to write down that the rest is free.
        await self.rooms.storage.remove(sandbox_id)
        await remove_directories(self.settings.paths(sandbox_id), self._files)
        await self.rooms.network.release(sandbox_id)

    async def list_directories(self) -> set[SandboxId]:
        """Who owns a directory, for cleaning up after a kill."""
        with file_errors(self.settings.state_dir):
            return await self._files.call(_list_directories, self.settings.state_dir)

    async def allocated_bytes(self, path: Path) -> int:
        with file_errors(path):
            return (await self._files.call(path.stat)).st_blocks * 512

    async def disk_changed_at(self, sandbox_id: SandboxId) -> datetime:
        """When the last byte was written to its writable disk. Raises NotFoundError."""
        path = await self.rooms.storage.writable_path(sandbox_id)
        with file_errors(path):
            return datetime.fromtimestamp((await self._files.call(path.stat)).st_mtime, UTC)

    async def examine_journal(self, journal: Journal) -> Kept:
        return await self._files.call(journal.examine)

    async def console_tail(self, sandbox_id: SandboxId) -> str:
        return await self._files.call(console_tail, self.settings.paths(sandbox_id).console_log)

    async def _attach(
        self, record: ContainerRecord, stack: contextlib.AsyncExitStack
    ) -> tuple[Attachment, ...]:
        stack.push_async_callback(self.rooms.network.detach, record.sandbox_id)
        return await self.attach(record)

    async def _dial(self, record: ContainerRecord, paths: SandboxPaths, timeout_s: float) -> Guest:
        return await self.rooms.dialer.connect(
            paths.control_socket, paths.stream_socket, timeout_s=timeout_s, subject=f"container {record.name}"
        )


def execs_of(containers: list[ContainerStatus], container_id: ContainerId) -> dict[ProcessId, int]:
    """Those of this one, each with the end of its output. Whatever else the guest says that it has is nobody's."""
    return {
        process.process_id: process.output_end_offset
        for container in containers
        if container.container_id == container_id
        for process in container.processes
        if process.process_id != FIRST_PROCESS
    }


def _list_directories(state_dir: Path) -> set[SandboxId]:
    if not state_dir.is_dir():
        return set()
    return {SandboxId(path.name) for path in state_dir.iterdir() if _ID.fullmatch(path.name)}
