# SPDX-License-Identifier: Apache-2.0
"""What the mounts of a container need beside its VM: disks plugged in, and shares that somebody serves.

find -> serve -> start -> plug_in        on the caller's exit stacks, which undo it in reverse
"""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from hyperd.errors import HyperError
from hyperd.model.container import ContainerRecord
from hyperd.model.share import Share
from hyperd.model.vm import Disk, SandboxId, SharePort, VmDefinition, VmStatus
from hyperd.model.volume import Volume, VolumeName
from hyperd.sandbox import mount_sources
from hyperd.sandbox.rooms import Rooms


async def find(
    rooms: Rooms,
    record: ContainerRecord,
    stack: contextlib.AsyncExitStack,
    end_vm: Callable[[SandboxId], Awaitable[None]],
) -> tuple[tuple[Disk, ...], tuple[Share, ...]]:
    """As disks, attached, and as what is to be shared. Raises as ``Volumes.attach`` and ``Shares.find``.

    Of the volumes that the container has those that the record mounts: for its files alone that may be one of them.
    """
    volumes: dict[VolumeName, Volume] = {}
    if uses := mount_sources.uses_of(record.spec.mounts):
        stack.push_async_callback(end_vm, record.sandbox_id)
        volumes = await rooms.volumes.attach(record.sandbox_id, only=uses)
    requests = mount_sources.share_requests(record, volumes)
    shares = await rooms.shares.find(requests) if requests else ()
    return mount_sources.disks_of(record, volumes), shares


async def serve(
    rooms: Rooms, sandbox_id: SandboxId, shares: Sequence[Share], own: contextlib.AsyncExitStack
) -> tuple[SharePort, ...]:
    """Anew for each VM: who serves a share does so for one QEMU, and ends with it."""
    if not shares:
        return ()
    own.push_async_callback(rooms.shares.end, sandbox_id)
    return await rooms.shares.serve(sandbox_id, shares)


async def start(rooms: Rooms, described: VmDefinition, ports: Sequence[SharePort]) -> VmStatus:
    """One that boots has its shares from the start; one that is restored has memory for them."""
    at_once = tuple(ports) if described.restore_from is None else ()
    try:
        return await rooms.hypervisor.start(replace(described, shares=at_once, shared_memory=bool(ports)))
    except HyperError:
        if at_once:
            await rooms.shares.require_served(described.sandbox_id)
        raise


async def plug_in(
    rooms: Rooms, sandbox_id: SandboxId, volumes: Sequence[Disk], ports: Sequence[SharePort]
) -> None:
    for disk in volumes:
        await rooms.hypervisor.attach_disk(sandbox_id, disk)
    for port in ports:
        try:
            await rooms.hypervisor.attach_share(sandbox_id, port)
        except HyperError:
            # What QEMU says when nobody is behind a socket helps nobody.
            await rooms.shares.require_served(sandbox_id)
            raise
