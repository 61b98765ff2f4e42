# SPDX-License-Identifier: Apache-2.0
"""Snapshots in memory, their files below a directory; satisfies hyperd.snapshot.base.SnapshotStore."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import ExhaustedError, ExistsError, HyperError, InvalidError, NotFoundError
from hyperd.model.snapshot import Compatibility, Manifest, SavedFile, Snapshot, SnapshotId, SnapshotKind
from hyperd.snapshot.base import Draft


@dataclass
class FakeDraft:
    store: "FakeSnapshotStore"
    snapshot_id: SnapshotId
    directory: Path
    files: dict[str, Path] = field(default_factory=dict)

    async def create_file(self, name: str, *, size_bytes: int = 0, owner: tuple[int, int]) -> Path:
        await self.store.enter("create_file")
        return self._add(name)

    async def add_copy(self, name: str, source: Path) -> Path:
        await self.store.enter("add_copy")
        return self._add(name)

    def _add(self, name: str) -> Path:
        path = self.files[name] = self.directory / name
        return path


class FakeSnapshotStore:
    """Can be told to fail (``fail_next``) and to stall (``hold``) in each call by its name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.snapshots: dict[SnapshotId, Snapshot] = {}
        self.drafts: dict[SnapshotId, FakeDraft] = {}
        self.needed: list[int] = []  # by each begin
        self.calls: list[str] = []
        self.free_bytes = 1 << 40
        self._failures: dict[str, HyperError] = {}
        self._gates: dict[str, asyncio.Event] = {}

    def fail_next(self, verb: str, error: HyperError) -> None:
        self._failures[verb] = error

    def hold(self, verb: str) -> asyncio.Event:
        return self._gates.setdefault(verb, asyncio.Event())

    async def enter(self, verb: str) -> None:
        self.calls.append(verb)
        if (gate := self._gates.get(verb)) is not None:
            await gate.wait()
        if (error := self._failures.pop(verb, None)) is not None:
            raise error

    async def open(self) -> None:
        self.drafts.clear()
        self._gates.clear()

    async def begin(self, *, need_bytes: int = 0) -> FakeDraft:
        await self.enter("begin")
        self.needed.append(need_bytes)
        if need_bytes > self.free_bytes:
            raise ExhaustedError(f"{need_bytes} bytes are needed, {self.free_bytes} are free")
        snapshot_id = SnapshotId(secrets.token_hex(32))
        draft = self.drafts[snapshot_id] = FakeDraft(self, snapshot_id, self.root / snapshot_id)
        return draft

    async def publish(
        self,
        draft: Draft,
        kind: SnapshotKind,
        compatibility: Compatibility,
        *,
        name: str = "",
        source: dict[str, str] | None = None,
    ) -> Snapshot:
        await self.enter("publish")
        if name and any(snapshot.manifest.name == name for snapshot in self.list(kind)):
            raise ExistsError("the name is in use", subject=name)
        now = datetime.now(UTC)
        files = tuple(SavedFile(file, 1, "0" * 64) for file in self.drafts[draft.snapshot_id].files)
        manifest = Manifest(draft.snapshot_id, name, kind, now, compatibility, files, source or {})
        snapshot = Snapshot(manifest, draft.directory, 1, now)
        self.snapshots[draft.snapshot_id] = snapshot
        del self.drafts[draft.snapshot_id]
        return snapshot

    async def discard(self, draft: Draft) -> None:
        self.drafts.pop(draft.snapshot_id, None)

    def list(self, kind: SnapshotKind) -> list[Snapshot]:
        found = [snapshot for snapshot in self.snapshots.values() if snapshot.manifest.kind is kind]
        return sorted(found, key=lambda snapshot: snapshot.manifest.created_at, reverse=True)

    def get(self, kind: SnapshotKind, reference: str) -> Snapshot:
        found = [
            snapshot
            for snapshot in self.list(kind)
            if reference
            and (snapshot.manifest.name == reference or snapshot.manifest.snapshot_id.startswith(reference))
        ]
        if len(found) > 1:
            raise InvalidError("several snapshots begin with it", subject=reference)
        if not found:
            raise NotFoundError("no such snapshot", subject=reference)
        return found[0]

    def find_compatible(self, kind: SnapshotKind, compatibility: Compatibility) -> Snapshot | None:
        found = (item for item in self.list(kind) if item.manifest.compatibility == compatibility)
        return next(found, None)

    async def require_intact(self, snapshot: Snapshot) -> None:
        await self.enter("require_intact")

    async def touch(self, snapshot: Snapshot) -> None:
        await self.enter("touch")

    async def remove(self, snapshot_id: SnapshotId) -> None:
        await self.enter("remove")
        self.snapshots.pop(snapshot_id, None)

    async def trim(
        self, kind: SnapshotKind, budget_bytes: int, keep: frozenset[SnapshotId] = frozenset()
    ) -> int:
        return 0

    async def export(self, snapshot: Snapshot) -> AsyncGenerator[bytes]:
        yield snapshot.manifest.snapshot_id.encode()

    async def import_(self, stream: AsyncIterator[bytes], *, name: str = "") -> Snapshot:
        text = b"".join([data async for data in stream]).decode()
        snapshot = self.snapshots.get(SnapshotId(text))
        if snapshot is None:
            raise InvalidError("not a snapshot")
        return snapshot
