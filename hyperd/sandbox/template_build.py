# SPDX-License-Identifier: Apache-2.0
"""How a template is made: a guest boots, makes its devices ready, and is saved with nobody connected to it.

draft, disks, tap -> VM -> agent's hello -> devices ready, connection closed -> saved -> VM ended -> published

The VM has a sandbox id that no record knows: what a killed hyperd left of it the next one removes.
"""

import contextlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hyperd.host.workers import Workers
from hyperd.model.snapshot import Compatibility, Snapshot, SnapshotKind
from hyperd.model.vm import Nic, SandboxId
from hyperd.sandbox import definition
from hyperd.sandbox.definition import RAM, STATE, SandboxPaths, Shape
from hyperd.sandbox.patience import PatientDialer
from hyperd.sandbox.rooms import (
    Rooms,
    RunSettings,
    console_as_evidence,
    make_directories,
    remove_directories,
)

# All one hole. The guest remembers the size: larger than any image's disk, and than PLACEHOLDER in agent/src/kept.rs.
PLACEHOLDER_BYTES = 1 << 40
# A guest that only booted has written to some 40 MiB of its memory, and to the kernel's table of all its pages.
BOOTED_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class TemplateSettings:
    owner_of: Callable[[SandboxId], tuple[int, int]]  # uid and gid of a sandbox's QEMU
    budget_bytes: int
    enabled: bool = True
    share_memory: bool = True


class TemplateBuilder:
    def __init__(self, rooms: Rooms, run: RunSettings, settings: TemplateSettings, files: Workers) -> None:
        self._rooms = rooms
        self._run = run
        self._settings = settings
        self._files = files
        self._dialer = PatientDialer(rooms.dialer, files)

    async def build(self, shape: Shape, compatibility: Compatibility) -> Snapshot:
        """On any failure nothing stays. Raises what the rooms raise; UnsupportedError for an agent that is too old."""
        rooms = self._rooms
        template_id = SandboxId(secrets.token_hex(32))
        subject = f"template for {shape}"
        paths = self._run.paths(template_id)
        memory_bytes = shape.sizing.memory_mib << 20
        async with contextlib.AsyncExitStack() as stack:
            draft = await rooms.snapshots.begin(
                need_bytes=min(BOOTED_BYTES + memory_bytes // 32, memory_bytes)
            )
            stack.push_async_callback(rooms.snapshots.discard, draft)
            stack.push_async_callback(remove_directories, paths, self._files)
            await make_directories(paths, self._files)
            owner = self._settings.owner_of(template_id)
            await self._files.call(make_placeholder, definition.placeholder(paths), owner)
            stack.push_async_callback(rooms.storage.remove, template_id)
            # As every container's is at first, and as this one stays: the guest mounts it and writes nothing.
            writable = await rooms.storage.create_writable(template_id)
            nic = await self._attach(template_id, stack) if shape.has_nic else None
            ram = None
            if self._settings.share_memory:
                ram = await draft.create_file(RAM, size_bytes=memory_bytes, owner=owner)
            state = await draft.create_file(STATE, owner=owner)
            described = definition.template_definition(
                template_id, shape, nic, paths, self._run.guest, ram, writable
            )
            stack.push_async_callback(rooms.hypervisor.destroy, template_id)
            async with console_as_evidence(subject, paths, self._files):
                vm = await rooms.hypervisor.start(described)
                await self._release_devices(paths, vm.pid, subject)
            await rooms.hypervisor.save(template_id, state)
            await rooms.hypervisor.destroy(
                template_id
            )  # before it is published: nobody writes to its RAM any more
            return await rooms.snapshots.publish(draft, SnapshotKind.TEMPLATE, compatibility)

    async def _attach(self, template_id: SandboxId, stack: contextlib.AsyncExitStack) -> Nic:
        stack.push_async_callback(self._rooms.network.release, template_id)
        attachment = await self._rooms.network.attach(template_id)
        return Nic(attachment.tap, attachment.mac)

    async def _release_devices(self, paths: SandboxPaths, vm_pid: int, subject: str) -> None:
        guest = await self._dialer.connect(
            paths, vm_pid=vm_pid, timeout_s=self._run.boot_timeout_s, subject=subject
        )
        try:
            await guest.release_devices()
        finally:
            await guest.close()


def make_placeholder(path: Path, owner: tuple[int, int]) -> None:
    """In the stead of an image's disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, PLACEHOLDER_BYTES)
        os.fchown(descriptor, *owner)
    finally:
        os.close(descriptor)
