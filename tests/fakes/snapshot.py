# SPDX-License-Identifier: Apache-2.0
"""Snapshots that are directories and an entry in a dict; satisfies hyperd.snapshot.base.SnapshotStore."""

import dataclasses
import secrets
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import ExhaustedError, HyperError, InvalidError, NotFoundError, RestoreError
from hyperd.model.snapshot import Compatibility, Manifest, SavedFile, Snapshot, SnapshotId, SnapshotKind
from hyperd.snapshot import Draft


@dataclass
class FakeDraft:
    snapshot_id: SnapshotId
    directory: Path

    async def create_file(self, name: str, *, size_bytes: int = 0, owner: tuple[int, int]) -> Path:
        path = self.directory / name
        with path.open("xb") as file:
            file.truncate(size_bytes)
        return path

    async def add_copy(self, name: str, source: Path) -> Path:
        return Path(shutil.copy(source, self.directory / name))


class FakeSnapshotStore:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.snapshots: dict[SnapshotId, Snapshot] = {}
        self.drafts: set[SnapshotId] = set()
        self.damaged: set[SnapshotId] = set()
        self.touched: list[SnapshotId] = []
        self.fail_next_begin: HyperError | None = None
        self.fail_next_publish: HyperError | None = None

    async def open(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        for path in self.root.iterdir():
            if path.name not in self.snapshots:
                shutil.rmtree(path)

    async def begin(self, *, need_bytes: int = 0) -> FakeDraft:
        self._raise_once("fail_next_begin")
        snapshot_id = SnapshotId(secrets.token_hex(32))
        directory = self.root / snapshot_id
        directory.mkdir(parents=True)
        self.drafts.add(snapshot_id)
        return FakeDraft(snapshot_id, directory)

    async def publish(
        self,
        draft: Draft,
        kind: SnapshotKind,
        compatibility: Compatibility,
        *,
        name: str = "",
        source: dict[str, str] | None = None,
    ) -> Snapshot:
        self._raise_once("fail_next_publish")
        files = tuple(
            SavedFile(path.name, path.stat().st_size, "00" * 32) for path in sorted(draft.directory.iterdir())
        )
        manifest = Manifest(
            draft.snapshot_id, name, kind, datetime.now(UTC), compatibility, files, source or {}
        )
        snapshot = Snapshot(manifest, draft.directory, 1 << 20, datetime.now(UTC))
        self.drafts.discard(draft.snapshot_id)
        self.snapshots[draft.snapshot_id] = snapshot
        return snapshot

    async def discard(self, draft: Draft) -> None:
        if draft.snapshot_id in self.drafts:
            self.drafts.discard(draft.snapshot_id)
            shutil.rmtree(draft.directory)

    def list(self, kind: SnapshotKind) -> list[Snapshot]:
        return [item for item in reversed(self.snapshots.values()) if item.manifest.kind is kind]

    def get(self, kind: SnapshotKind, reference: str) -> Snapshot:
        found = [item for item in self.list(kind) if item.manifest.snapshot_id.startswith(reference)]
        if len(found) > 1:
            raise InvalidError("several begin with it", subject=reference)
        if not found:
            raise NotFoundError("no such snapshot", subject=reference)
        return found[0]

    def find_compatible(self, kind: SnapshotKind, compatibility: Compatibility) -> Snapshot | None:
        return next((i for i in self.list(kind) if i.manifest.compatibility == compatibility), None)

    async def require_intact(self, snapshot: Snapshot) -> None:
        if snapshot.manifest.snapshot_id in self.damaged:
            raise RestoreError("does not match its digest", subject=str(snapshot.path("state")))

    async def touch(self, snapshot: Snapshot) -> None:
        snapshot_id = snapshot.manifest.snapshot_id
        self.touched.append(snapshot_id)
        if snapshot_id in self.snapshots:
            self.snapshots[snapshot_id] = dataclasses.replace(snapshot, last_used_at=datetime.now(UTC))

    async def remove(self, snapshot_id: SnapshotId) -> None:
        snapshot = self.snapshots.pop(snapshot_id, None)
        if snapshot is not None:
            shutil.rmtree(snapshot.directory)

    async def trim(
        self, kind: SnapshotKind, budget_bytes: int, keep: frozenset[SnapshotId] = frozenset()
    ) -> int:
        count = 0
        candidates = sorted(self.list(kind), key=lambda item: item.last_used_at)
        taken = sum(item.allocated_bytes for item in candidates)
        for item in candidates:
            if taken > budget_bytes and item.manifest.snapshot_id not in keep:
                await self.remove(item.manifest.snapshot_id)
                taken -= item.allocated_bytes
                count += 1
        return count

    async def export(self, snapshot: Snapshot) -> AsyncGenerator[bytes]:
        yield b""

    async def import_(self, stream: AsyncIterator[bytes], *, name: str = "") -> Snapshot:
        raise InvalidError("is not such a stream")

    def _raise_once(self, failure: str) -> None:
        error: HyperError | None = getattr(self, failure)
        if error is not None:
            setattr(self, failure, None)
            raise error


def no_room() -> ExhaustedError:
    return ExhaustedError("needs 136 MiB, 7 MiB are free", subject="/fake/snapshots")
