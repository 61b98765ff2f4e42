# SPDX-License-Identifier: Apache-2.0
"""What the tests of volumes have in common."""

import os

from hyperd.model.vm import SandboxId
from hyperd.model.volume import Consistency, VolumeName
from hyperd.storage import LocalVolumes

BOX = SandboxId("a" * 64)
OTHER = SandboxId("b" * 64)
THIRD = SandboxId("c" * 64)
DB = VolumeName("db")
OWNERS = {BOX: (70001, 70000), OTHER: (70002, 70000), THIRD: (70003, 70000)}
SMALL = 64 << 20


class KilledError(Exception):
    """Stands for the end of hyperd."""


WHILE_EXPORTED = os.O_RDONLY | os.O_CLOEXEC


async def opened(database, root):
    volumes = LocalVolumes(root, database, size_bytes=SMALL, owner_of=OWNERS.__getitem__)
    await volumes.open()
    return volumes


async def used(volumes, database, sandbox_id, *requests, readonly=False):
    """As the fleet does it."""
    uses = {request.name: readonly for request in requests}
    async with volumes.providing(sandbox_id, f"box-{sandbox_id[0]}", requests, uses) as recording:
        await database.transaction(recording, lasting=True)


def directories(root):
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


async def detached():
    return Consistency.DETACHED


async def each_of(pieces):
    for piece in pieces:
        yield piece
