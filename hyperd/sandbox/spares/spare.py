# SPDX-License-Identifier: Apache-2.0
"""A spare: a VM that started from a template before anybody asked. How one is made, taken and undone.

    directories, disk, tap -> VM restored, a hole for the image's disk -> agent's hello -> rehearsal -> CPUs stopped
    the image's disk put in the hole's place -> CPUs run: the guest of a container that has yet to get its identity

It has a sandbox id of its own, which no record knows until a container is created with it: what a killed hyperd left of
it the next one removes.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hyperd.guest.base import Guest
from hyperd.host.workers import Workers
from hyperd.model.network import Attachment
from hyperd.model.snapshot import Snapshot, SnapshotId
from hyperd.model.vm import Disk, Nic, SandboxId, VmStatus
from hyperd.sandbox import definition
from hyperd.sandbox.definition import Shape, from_template
from hyperd.sandbox.patience import PatientDialer
from hyperd.sandbox.rooms import (
    CLONE_HELLO_TIMEOUT_S,
    ENTROPY_BYTES,
    Rooms,
    RunSettings,
    console_as_evidence,
    make_directories,
    remove_directories,
)
from hyperd.sandbox.spares.rehearsal import rehearse
from hyperd.sandbox.template_build import make_placeholder


@dataclass(frozen=True, slots=True)
class Spare:
    sandbox_id: SandboxId
    shape: Shape
    template_id: SnapshotId
    vm: VmStatus
    guest: Guest
    attachments: tuple[Attachment, ...]


def unfit(spare: Spare, shape: Shape, template: Snapshot) -> str:
    """Why it is not what a start from that template would make; "" when it is."""
    if spare.shape != shape:
        return f"the spare is of {spare.shape}"
    if spare.template_id != template.manifest.snapshot_id:
        return "the spare is of an earlier template"
    return ""


class SpareMaker:
    def __init__(
        self,
        rooms: Rooms,
        run: RunSettings,
        owner_of: Callable[[SandboxId], tuple[int, int]],
        files: Workers,
    ) -> None:
        self._rooms = rooms
        self._run = run
        self._owner_of = owner_of
        self._files = files
        self._dialer = PatientDialer(rooms.dialer, files)

    async def make(self, spare_id: SandboxId, shape: Shape, snapshot: Snapshot) -> Spare:
        """On any failure nothing stays that could be removed. Raises what the rooms raise."""
        rooms = self._rooms
        paths = self._run.paths(spare_id)
        subject = f"spare for {shape}"
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.remove, spare_id)
            await make_directories(paths, self._files)
            await self._files.call(make_placeholder, definition.placeholder(paths), self._owner_of(spare_id))
            writable = await rooms.storage.create_writable(spare_id)
            attachments = (await rooms.network.attach(spare_id),) if shape.has_nic else ()
            nic = Nic(attachments[0].tap, attachments[0].mac) if attachments else None
            described = definition.template_definition(
                spare_id, shape, nic, paths, self._run.guest, None, writable
            )
            async with console_as_evidence(subject, paths, self._files):
                vm = await rooms.hypervisor.start(from_template(described, snapshot))
                guest = await self._dialer.connect(
                    paths, vm_pid=vm.pid, timeout_s=CLONE_HELLO_TIMEOUT_S, subject=subject
                )
                stack.push_async_callback(guest.close)
                await rehearse(guest, spare_id, shape.sizing, attachments, os.urandom(ENTROPY_BYTES))
            await rooms.hypervisor.pause(spare_id)
            stack.pop_all()
        return Spare(spare_id, shape, snapshot.manifest.snapshot_id, vm, guest, attachments)

    def is_limited(self, spare: Spare) -> bool:
        """Its container was given limits on the network since it was created: its tap is not as those want it."""
        return self._rooms.network.policies.covers(spare.sandbox_id)

    async def wake(self, spare: Spare, image: Disk) -> VmStatus:
        """Its CPUs run, with the image's disk. Raises what the hypervisor raises: then it is of no use any more."""
        await self._rooms.hypervisor.replace_disk(spare.sandbox_id, image)
        await self._rooms.hypervisor.resume(spare.sandbox_id)
        await self._files.call(_forget, definition.placeholder(self._run.paths(spare.sandbox_id)))
        return spare.vm

    async def end(self, spare: Spare) -> None:
        """Of one that was taken: the VM alone, what else there is belongs to the container. Idempotent."""
        await spare.guest.close()
        await self._rooms.hypervisor.destroy(spare.sandbox_id)

    async def remove(self, spare_id: SandboxId, *, owned: bool = False) -> None:
        """All that it has. ``owned``: by a container, which keeps lease, limits and floating address. Idempotent."""
        await self._rooms.hypervisor.destroy(spare_id)
        await self._rooms.storage.remove(spare_id)
        await remove_directories(self._run.paths(spare_id), self._files)
        if owned:
            await self._rooms.network.detach(spare_id)
        else:
            await self._rooms.network.release(spare_id)


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)
