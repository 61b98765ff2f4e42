# SPDX-License-Identifier: Apache-2.0
"""One run of a sandbox's VM: everything acquired on the way up is on one exit stack, and goes in reverse.

image disk | writable disk | network   at once
VM -> agent's hello -> identity -> container, just before its execve
"""

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from hyperd.errors import HyperError, TimeoutExpiredError, UnavailableError
from hyperd.guest.base import Guest, GuestDialer
from hyperd.host.files import file_errors
from hyperd.host.workers import Workers
from hyperd.image.base import ImageStore
from hyperd.model.container import ContainerRecord, StartReport
from hyperd.model.guest import FIRST_PROCESS, ContainerStatus, ProcessId
from hyperd.model.image import Image
from hyperd.model.network import Attachment
from hyperd.model.vm import Accelerator, SandboxId
from hyperd.network.base import Network
from hyperd.sandbox import assembly
from hyperd.sandbox.assembly import GuestSettings, SandboxPaths
from hyperd.sandbox.journal import Journal, Kept
from hyperd.snapshot.base import SnapshotStore
from hyperd.storage.base import Storage
from hyperd.vm import Hypervisor, console_tail

log = logging.getLogger(__name__)

ENTROPY_BYTES = 64
SYNC_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Rooms:
    """The rooms that a sandbox is made from."""

    hypervisor: Hypervisor
    dialer: GuestDialer
    images: ImageStore
    storage: Storage
    network: Network
    snapshots: SnapshotStore


@dataclass(frozen=True, slots=True)
class RunSettings:
    guest: GuestSettings
    state_dir: Path  # of all sandboxes
    run_dir: Path
    boot_timeout_s: float
    reconnect_timeout_s: float

    def paths(self, sandbox_id: SandboxId) -> SandboxPaths:
        # A UNIX socket's path has room for 107 bytes: 12 digits of the id are plenty.
        return SandboxPaths(self.run_dir / sandbox_id[:12], self.state_dir / sandbox_id)


@dataclass(slots=True)
class Live:
    """A VM with a connected agent. ``stack`` undoes all of it."""

    guest: Guest
    vm_pid: int
    guest_pid: int
    accelerator: Accelerator
    attachment: Attachment | None
    stack: contextlib.AsyncExitStack
    start: StartReport | None = None
    execs: dict[ProcessId, int] = field(
        default_factory=dict
    )  # taken over: further processes, end of their output


class Runner:
    """Brings VMs up and takes them down; holds no state of its own."""

    def __init__(self, rooms: Rooms, settings: RunSettings, files: Workers) -> None:
        self.rooms = rooms
        self.settings = settings
        self._files = files

    async def bring_up(self, record: ContainerRecord, image: Image, accelerator: Accelerator) -> Live:
        """From nothing to a container that waits before its execve. On any failure nothing stays but the writable disk.

        Raises what the rooms raise; an agent that never answers is TimeoutExpiredError, a VM that ends before it is
        UnavailableError, both with the console's tail.
        """
        paths = self.settings.paths(record.sandbox_id)
        async with contextlib.AsyncExitStack() as stack:
            with file_errors(paths.state_dir):
                await self._files.call(_make_directories, paths)
            async with one_error(), asyncio.TaskGroup() as tasks:
                root_task = tasks.create_task(self.rooms.images.root_disk(image.image_id))
                writable_task = tasks.create_task(self.rooms.storage.create_writable(record.sandbox_id))
                attachment = await self._attach(record, stack)
            root = root_task.result()
            definition = assembly.vm_definition(
                record, root, writable_task.result(), attachment, paths, self.settings.guest, accelerator
            )
            stack.push_async_callback(self.rooms.hypervisor.destroy, record.sandbox_id)
            vm = await self.rooms.hypervisor.start(definition)
            async with self._console_as_evidence(record, paths):
                guest = await self._connect(record, paths, stack, self.settings.boot_timeout_s)
                await guest.configure(assembly.identity(record, attachment, os.urandom(ENTROPY_BYTES)))
                guest_pid = await guest.create_container(assembly.container_plan(record, image.config, root))
            return Live(guest, vm.pid, guest_pid, accelerator, attachment, stack.pop_all())

    async def adopt(
        self, record: ContainerRecord, vm_pid: int, accelerator: Accelerator, attachment: Attachment | None
    ) -> Live:
        """Take over a VM that an earlier hyperd started. On failure the VM is left as it is."""
        paths = self.settings.paths(record.sandbox_id)
        async with contextlib.AsyncExitStack() as stack:
            if attachment is not None:
                stack.push_async_callback(self.rooms.network.detach, record.sandbox_id)
            stack.push_async_callback(self.rooms.hypervisor.destroy, record.sandbox_id)
            try:
                guest = await self._dial(record, paths, self.settings.reconnect_timeout_s)
                try:
                    execs = _execs(await guest.list_containers())
                except BaseException:
                    await guest.close()
                    raise
            except BaseException:
                stack.pop_all()
                raise
            stack.push_async_callback(guest.close)
            return Live(guest, vm_pid, 0, accelerator, attachment, stack.pop_all(), execs=execs)

    async def reconnect(self, record: ContainerRecord, live: Live) -> None:
        """Dial again after the connection broke; the old one is hung up. Raises as ``GuestDialer.connect``."""
        await live.guest.close()
        live.guest = await self._dial(
            record, self.settings.paths(record.sandbox_id), self.settings.reconnect_timeout_s
        )

    async def tear_down(self, live: Live, *, keep_disk: bool) -> None:
        """Sync the guest's disk where it will be needed again, then undo everything."""
        if keep_disk:
            # A guest that cannot sync is destroyed all the same: its ext4 has a journal.
            try:
                await live.guest.shutdown(SYNC_TIMEOUT_S)
            except HyperError as error:
                log.warning("guest not shut down", extra={"error": str(error)})
        await live.guest.close()  # perhaps a later one than the stack knows
        await live.stack.aclose()

    async def clean_up(self, sandbox_id: SandboxId) -> None:
        """End what a run left behind and nobody has a hold of; disk and lease stay. Idempotent."""
        try:
            await self.rooms.hypervisor.destroy(sandbox_id)
        finally:
            await self.rooms.network.detach(sandbox_id)

    async def discard(self, sandbox_id: SandboxId) -> None:
        """Remove everything that a sandbox owns on this host. Idempotent."""
        await self.rooms.hypervisor.destroy(sandbox_id)
        await self.rooms.network.release(sandbox_id)
        await self.rooms.storage.remove(sandbox_id)
        with file_errors(sandbox_id):
            await self._files.call(_remove_directories, self.settings.paths(sandbox_id))

    async def examine_journal(self, journal: Journal) -> Kept:
        return await self._files.call(journal.examine)

    async def console_tail(self, sandbox_id: SandboxId) -> str:
        return await self._files.call(console_tail, self.settings.paths(sandbox_id).console_log)

    async def _attach(self, record: ContainerRecord, stack: contextlib.AsyncExitStack) -> Attachment | None:
        if record.spec.network == "none":
            return None
        stack.push_async_callback(self.rooms.network.detach, record.sandbox_id)
        return await self.rooms.network.attach(record.sandbox_id)

    async def _connect(
        self, record: ContainerRecord, paths: SandboxPaths, stack: contextlib.AsyncExitStack, timeout_s: float
    ) -> Guest:
        guest = await self._dial(record, paths, timeout_s)
        stack.push_async_callback(guest.close)
        return guest

    async def _dial(self, record: ContainerRecord, paths: SandboxPaths, timeout_s: float) -> Guest:
        return await self.rooms.dialer.connect(
            paths.control_socket, paths.stream_socket, timeout_s=timeout_s, subject=f"container {record.name}"
        )

    @contextlib.asynccontextmanager
    async def _console_as_evidence(self, record: ContainerRecord, paths: SandboxPaths) -> AsyncIterator[None]:
        try:
            yield
        except (UnavailableError, TimeoutExpiredError) as error:
            tail = await self._files.call(console_tail, paths.console_log)
            raise type(error)(
                f"the guest did not come up: {error.brief}",
                subject=f"container {record.name}",
                evidence="\n".join(part for part in (error.evidence, tail) if part),
                hint=error.hint or "`hyper doctor` checks kernel, agent and accelerator",
            ) from error


@contextlib.asynccontextmanager
async def one_error() -> AsyncIterator[None]:
    """A group of tasks that fails with one error is that error to the caller."""
    try:
        yield
    except BaseExceptionGroup as group:
        first = next((error for error in group.exceptions if isinstance(error, HyperError)), None)
        if first is None:
            raise
        raise first from group


def _execs(containers: list[ContainerStatus]) -> dict[ProcessId, int]:
    return {
        process.process_id: process.output_end_offset
        for container in containers
        for process in container.processes
        if process.process_id != FIRST_PROCESS
    }


def now_ms() -> float:
    return time.monotonic() * 1000


def _make_directories(paths: SandboxPaths) -> None:
    paths.state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    paths.run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    for stale in (paths.control_socket, paths.stream_socket, paths.console_log):
        stale.unlink(missing_ok=True)


def _remove_directories(paths: SandboxPaths) -> None:
    for directory in (paths.run_dir, paths.state_dir):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)
