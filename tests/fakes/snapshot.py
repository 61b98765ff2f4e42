# SPDX-License-Identifier: Apache-2.0
"""Snapshots that are only names: no file is made. Can be told to fail, to stall, and which of them are damaged."""

import asyncio
import dataclasses
import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    HyperError,
    InvalidError,
    RestoreError,
    WrongStateError,
)
from hyperd.model.snapshot import (
    Compatibility,
    Manifest,
    SavedFile,
    Snapshot,
    SnapshotId,
    SnapshotKind,
)
from hyperd.snapshot import manifest as manifests
from hyperd.snapshot.base import Draft
from hyperd.snapshot.catalog import Catalog

ALLOCATED_BYTES = 4096  # of each file


class FakeDraft:
    def __init__(self, store: "FakeSnapshots", snapshot_id: SnapshotId) -> None:
        self.snapshot_id = snapshot_id
        self.directory = store.root / f".draft-{snapshot_id}"
        self.sizes: dict[str, int] = {}
        self.copies: dict[str, Path] = {}  # name -> source
        self.ended = ""
        self._store = store

    async def create_file(self, name: str, *, size_bytes: int = 0, owner: tuple[int, int]) -> Path:
        self._require_new(name)
        self.sizes[name] = size_bytes
        return self.directory / name

    async def add_copy(self, name: str, source: Path) -> Path:
        self._require_new(name)
        await self._store.pass_gate("fail_next_copy")
        self.sizes[name] = 0
        self.copies[name] = source
        return self.directory / name

    def require_open(self) -> None:
        if self.ended:
            raise WrongStateError(f"the draft was {self.ended} already", subject=self.snapshot_id)

    def _require_new(self, name: str) -> None:
        manifests.require_file_name(name)
        self.require_open()
        if name in self.sizes:
            raise ExistsError("the draft has such a file", subject=name)


class FakeSnapshots:
    """Each ``fail_next_*`` is raised once by that call; while ``gate`` is closed, all that takes time waits."""

    def __init__(self, root: Path = Path("/fake/snapshots")) -> None:
        self.root = root
        self.drafts: dict[
            SnapshotId, FakeDraft
        ] = {}  # neither published nor discarded: a leak, at a test's end
        self.damaged: set[SnapshotId] = set()  # ``require_intact`` refuses these
        self.checked: list[SnapshotId] = []  # by ``require_intact``
        self.removed: list[SnapshotId] = []
        self.free_bytes: int | None = None
        self.fail_next_begin: HyperError | None = None
        self.fail_next_copy: HyperError | None = None
        self.fail_next_publish: HyperError | None = None
        self.fail_next_remove: HyperError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._catalog = Catalog()

    async def open(self) -> None:
        self.drafts.clear()

    def close(self) -> None:
        """As the real one ends its threads."""

    async def begin(self, *, need_bytes: int = 0) -> FakeDraft:
        await self.pass_gate("fail_next_begin")
        if self.free_bytes is not None and need_bytes > self.free_bytes:
            raise no_space()
        draft = FakeDraft(self, SnapshotId(secrets.token_hex(32)))
        self.drafts[draft.snapshot_id] = draft
        return draft

    async def publish(
        self,
        draft: Draft,
        kind: SnapshotKind,
        compatibility: Compatibility,
        *,
        name: str = "",
        source: dict[str, str] | None = None,
        lasting: bool = True,
    ) -> Snapshot:
        manifests.require_name(name)
        own = _own(draft)
        own.require_open()
        self._catalog.require_free(kind, draft.snapshot_id, name)
        await self.pass_gate("fail_next_publish")
        saved = tuple(
            SavedFile(each, size, hashlib.sha256(f"{draft.snapshot_id}/{each}".encode()).hexdigest())
            for each, size in own.sizes.items()
        )
        now = datetime.now(UTC)
        manifest = Manifest(draft.snapshot_id, name, kind, now, compatibility, saved, dict(source or {}))
        return self._appear(own, manifest)

    async def discard(self, draft: Draft) -> None:
        own = _own(draft)
        own.ended = own.ended or "discarded"
        self.drafts.pop(draft.snapshot_id, None)

    def list(self, kind: SnapshotKind) -> "list[Snapshot]":
        return self._catalog.of_kind(kind)

    def get(self, kind: SnapshotKind, reference: str) -> Snapshot:
        return self._catalog.get(kind, reference)

    def find_compatible(self, kind: SnapshotKind, compatibility: Compatibility) -> Snapshot | None:
        return self._catalog.find_compatible(kind, compatibility)

    async def require_intact(self, snapshot: Snapshot) -> None:
        snapshot_id = snapshot.manifest.snapshot_id
        self.checked.append(snapshot_id)
        if self._catalog.find(snapshot_id) is None:
            raise RestoreError("is missing", subject=str(snapshot.directory))
        if snapshot_id in self.damaged:
            raise damaged(snapshot)

    async def touch(self, snapshot: Snapshot) -> None:
        self._catalog.mark_used(snapshot.manifest.snapshot_id, datetime.now(UTC))

    async def remove(self, snapshot_id: SnapshotId) -> None:
        await self.pass_gate("fail_next_remove")
        if self._catalog.find(snapshot_id) is not None:
            self.removed.append(snapshot_id)
        self._catalog.discard(snapshot_id)

    async def trim(
        self, kind: SnapshotKind, budget_bytes: int, keep: frozenset[SnapshotId] = frozenset()
    ) -> int:
        going = self._catalog.over_budget(kind, budget_bytes, keep)
        for snapshot in going:
            await self.remove(snapshot.manifest.snapshot_id)
        return len(going)

    async def export(self, snapshot: Snapshot) -> AsyncGenerator[bytes]:
        _require_movable(snapshot.manifest.kind)
        await self.require_intact(snapshot)
        yield manifests.encode(snapshot.manifest)

    async def import_(
        self,
        stream: AsyncIterator[bytes],
        *,
        name: str = "",
        require: Callable[[Manifest], object] = lambda _: None,
    ) -> Snapshot:
        """What ``export`` gave."""
        manifests.require_name(name)
        draft = await self.begin()
        try:
            manifest = manifests.decode(b"".join([piece async for piece in stream]))
            _require_movable(manifest.kind)
            require(manifest)
            return self._appear(draft, dataclasses.replace(manifest, name=name or manifest.name))
        finally:
            await self.discard(draft)

    async def pass_gate(self, failure: str) -> None:
        await self.gate.wait()
        error = getattr(self, failure)
        setattr(self, failure, None)
        if error is not None:
            raise error

    def _appear(self, draft: FakeDraft, manifest: Manifest) -> Snapshot:
        manifests.encode(manifest)  # the rules are the real ones
        directory = self.root / manifest.kind.value / manifest.snapshot_id
        allocated = ALLOCATED_BYTES * len(manifest.files)
        snapshot = Snapshot(manifest, directory, allocated, datetime.now(UTC))
        self._catalog.add(snapshot)
        draft.ended = "published"
        self.drafts.pop(draft.snapshot_id, None)
        return snapshot


def no_space() -> ExhaustedError:
    return ExhaustedError("no space for a snapshot", subject="/fake/snapshots")


def damaged(snapshot: Snapshot) -> RestoreError:
    return RestoreError("has another content", subject=str(snapshot.path("ram")))


def _own(draft: Draft) -> FakeDraft:
    assert isinstance(draft, FakeDraft)
    return draft


def _require_movable(kind: SnapshotKind) -> None:
    if kind is not SnapshotKind.SANDBOX:
        raise InvalidError("only snapshots of sandboxes are exported and imported", subject=kind.value)
