# SPDX-License-Identifier: Apache-2.0
"""Writable disks that are only names."""

import asyncio
from collections.abc import Collection
from pathlib import Path

from hyperd.errors import ExhaustedError, HyperError, NotFoundError
from hyperd.model.vm import SandboxId


class FakeStorage:
    """Keeps who owns a disk; can be told to fail or to stall."""

    def __init__(self, root: Path = Path("/fake/sandboxes")) -> None:
        self.root = root
        self.prepared = False
        self.disks: dict[SandboxId, Path] = {}
        self.adopted: dict[SandboxId, Path] = {}  # of which file a disk is a copy
        self.staged: dict[SandboxId, Path] = {}
        self.sizes: dict[SandboxId, int] = {}  # as asked for; 0 = the room's own
        self.lent: dict[SandboxId, SandboxId] = {}  # whose QEMU may open the disk, where it is another's
        self.fail_next_create: HyperError | None = None
        self.fail_next_adopt: HyperError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def prepare(self) -> None:
        self.prepared = True

    async def create_writable(self, sandbox_id: SandboxId, size_bytes: int = 0) -> Path:
        await self.gate.wait()
        error, self.fail_next_create = self.fail_next_create, None
        if error is not None:
            raise error
        self.sizes[sandbox_id] = size_bytes
        self.lent.pop(sandbox_id, None)
        return self._disk(sandbox_id)

    async def lend_writable(self, sandbox_id: SandboxId, to: SandboxId) -> Path:
        if sandbox_id not in self.disks:
            raise NotFoundError("the sandbox has no writable disk", subject=sandbox_id)
        self.lent[sandbox_id] = to
        return self.disks[sandbox_id]

    async def adopt_writable(self, sandbox_id: SandboxId, source: Path) -> Path:
        await self.gate.wait()
        error, self.fail_next_adopt = self.fail_next_adopt, None
        if error is not None:
            raise error
        self.adopted[sandbox_id] = source
        return self._disk(sandbox_id)

    async def stage_writable(self, sandbox_id: SandboxId, source: Path) -> Path:
        await self.gate.wait()
        error, self.fail_next_adopt = self.fail_next_adopt, None
        if error is not None:
            raise error
        self.staged[sandbox_id] = source
        return self.root / sandbox_id / "writable.img.staged"

    async def adopt_staged(self, sandbox_id: SandboxId) -> Path:
        if sandbox_id not in self.staged:
            raise NotFoundError("nothing is staged", subject=sandbox_id)
        self.adopted[sandbox_id] = self.staged.pop(sandbox_id)
        return self._disk(sandbox_id)

    async def discard_staged(self, sandbox_id: SandboxId) -> None:
        self.staged.pop(sandbox_id, None)

    async def discard_all_staged(self, but: Collection[SandboxId]) -> None:
        self.staged = {sandbox_id: path for sandbox_id, path in self.staged.items() if sandbox_id in but}

    async def writable_path(self, sandbox_id: SandboxId) -> Path:
        if sandbox_id not in self.disks:
            raise NotFoundError("the sandbox has no writable disk", subject=sandbox_id)
        return self.disks[sandbox_id]

    async def remove(self, sandbox_id: SandboxId) -> None:
        self.disks.pop(sandbox_id, None)
        self.adopted.pop(sandbox_id, None)

    def _disk(self, sandbox_id: SandboxId) -> Path:
        disk = self.disks.setdefault(sandbox_id, self.root / sandbox_id / "writable.img")
        if self.root != Path("/fake/sandboxes"):  # a place of the test's own: something can be copied
            disk.parent.mkdir(parents=True, exist_ok=True)
            disk.touch()
        return disk

    async def list_sandboxes(self) -> set[SandboxId]:
        return set(self.disks)


def no_space() -> ExhaustedError:
    return ExhaustedError("no space left for a writable disk", subject="/fake/sandboxes")
