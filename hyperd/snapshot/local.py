# SPDX-License-Identifier: Apache-2.0
"""Snapshots as directories on the host's file system: docs/snapshots.md, "On disk".

    ROOT/KIND/ID/{manifest.json,state,ram,disk}   whole; appears and vanishes by one rename
    ROOT/.draft-ID/                               being made or going; removed at ``open``
    ROOT/aside/                                   what could not be read, for a person to look at

One hyperd owns ROOT. The time of a snapshot's directory is that of its last use.
"""

import asyncio
import dataclasses
import logging
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import HyperError, InvalidError
from hyperd.host import files
from hyperd.host.workers import Wanted, Workers
from hyperd.model.snapshot import (
    Compatibility,
    Manifest,
    SavedFile,
    Snapshot,
    SnapshotId,
    SnapshotKind,
)
from hyperd.snapshot import manifest as manifests
from hyperd.snapshot import seals
from hyperd.snapshot.archive import CHUNK_BYTES, ArchiveReader, ArchiveWriter
from hyperd.snapshot.base import Draft
from hyperd.snapshot.catalog import Catalog
from hyperd.snapshot.digest import Stamp
from hyperd.snapshot.draft import PREFIX, LocalDraft
from hyperd.snapshot.shelf import Shelf

log = logging.getLogger(__name__)

RESERVE_BYTES = 64 << 20
# A template is made again from nothing: after a power cut its digests or its manifest tell what it lacks, and the next
# start boots instead. Waiting for its RAM to reach the disk would only make it late.
SYNCED = frozenset({SnapshotKind.SANDBOX, SnapshotKind.HIBERNATION})
Measured = tuple[tuple[SavedFile, ...], dict[str, Stamp]]


class LocalSnapshots:
    """``qemu_gid`` may read what is published; None leaves it to hyperd's own group."""

    def __init__(
        self, root: Path, *, qemu_gid: int | None = None, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        self._root = root
        self._qemu_gid = qemu_gid
        self._reserve_bytes = reserve_bytes
        self._shelf = Shelf(root)
        self._catalog = Catalog()
        self._publishing = threading.Lock()
        self._workers = Workers("snapshot", 4)
        self._copiers = Workers("snapshot-copy", 4)  # apart: guests stand still meanwhile
        self._hashers = Workers("snapshot-hash", 2)  # and sync, which takes as long
        self._seals = seals.Seals(self._hashers)

    async def open(self) -> None:
        for snapshot in await self._workers.call(self._shelf.open):
            self._catalog.add(snapshot)

    def close(self) -> None:
        for workers in (self._workers, self._copiers, self._hashers):
            workers.close()

    async def begin(self, *, need_bytes: int = 0) -> LocalDraft:
        snapshot_id = SnapshotId(secrets.token_hex(32))
        directory = self._root / f"{PREFIX}{snapshot_id}"
        try:
            return await self._workers.call_while_wanted(self._begin, snapshot_id, directory, need_bytes)
        except asyncio.CancelledError:  # nobody else knows of it
            await self._workers.call(files.remove_tree, directory)
            raise

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
        own = self._own(draft)
        own.require_open()
        self._catalog.require_free(kind, own.snapshot_id, name)
        synced = lasting and kind in SYNCED
        saved, stamps = await self._measure(own, synced=synced)
        made = Manifest(
            own.snapshot_id, name, kind, datetime.now(UTC), compatibility, saved, dict(source or {})
        )
        return await self._appear(own, made, stamps, synced=synced)

    async def discard(self, draft: Draft) -> None:
        await self._workers.call(self._own(draft).discard)

    def list(self, kind: SnapshotKind) -> "list[Snapshot]":
        return self._catalog.of_kind(kind)

    def get(self, kind: SnapshotKind, reference: str) -> Snapshot:
        return self._catalog.get(kind, reference)

    def find_compatible(self, kind: SnapshotKind, compatibility: Compatibility) -> Snapshot | None:
        return self._catalog.find_compatible(kind, compatibility)

    async def require_intact(self, snapshot: Snapshot) -> None:
        await self._seals.require(snapshot)

    async def touch(self, snapshot: Snapshot) -> None:
        now = datetime.now(UTC)
        self._catalog.mark_used(snapshot.manifest.snapshot_id, now)
        await self._workers.call(self._shelf.mark_used, snapshot, now)

    async def remove(self, snapshot_id: SnapshotId) -> None:
        if (snapshot := self._catalog.find(snapshot_id)) is None:
            return
        await self._workers.call(self._remove, snapshot)
        self._seals.forget(snapshot_id)

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
        writer = ArchiveWriter(snapshot)
        try:
            await self._workers.call(writer.open)
            while (chunk := await self._workers.call(writer.read)) is not None:
                if chunk:
                    yield chunk
        finally:
            await self._workers.call(writer.close)

    async def import_(
        self,
        stream: AsyncIterator[bytes],
        *,
        name: str = "",
        require: Callable[[Manifest], object] = lambda _: None,
    ) -> Snapshot:
        manifests.require_name(name)
        draft = await self.begin()

        def accept(manifest: Manifest) -> None:
            _require_movable(manifest.kind)
            self._catalog.require_free(manifest.kind, manifest.snapshot_id, name or manifest.name)
            require(manifest)

        reader = ArchiveReader(draft, accept, keep_free_bytes=self._reserve_bytes)
        try:
            try:
                await self._feed(reader, stream)
                manifest = reader.finish()
            finally:
                await self._workers.call(reader.close)
            saved, stamps = await self._measure(draft, synced=True)
            _require_equal(manifest.files, saved)
            made = dataclasses.replace(manifest, name=name or manifest.name)
            return await self._appear(draft, made, stamps, synced=True)
        except BaseException:
            await self.discard(draft)
            raise

    async def _feed(self, reader: ArchiveReader, stream: AsyncIterator[bytes]) -> None:
        waiting = bytearray()  # small pieces cost a thread's attention each
        async for piece in stream:
            for start in range(0, len(piece), CHUNK_BYTES):
                waiting += piece[start : start + CHUNK_BYTES]
                if len(waiting) >= CHUNK_BYTES:
                    await self._workers.call(reader.feed, bytes(waiting))
                    waiting.clear()
        await self._workers.call(reader.feed, bytes(waiting))

    async def _measure(self, draft: LocalDraft, *, synced: bool) -> Measured:
        """Make the files read-only, then hash them; stamps only of those whose every later change will be seen."""
        if not draft.names:
            raise InvalidError("a snapshot without files", subject=draft.snapshot_id)
        await self._hashers.call(draft.make_read_only, self._qemu_gid, synced=synced)
        await seals.settle(await self._workers.call(draft.newest_change_ns))
        began_ns = seals.file_clock_ns()
        saved, stamps = [], {}
        for name in draft.names:
            found, stamp = await self._hashers.call(draft.measure, name)
            saved.append(SavedFile(name, stamp.size_bytes, found))
            if seals.is_settled(stamp, began_ns):
                stamps[name] = stamp
        return tuple(saved), stamps

    async def _appear(
        self, draft: LocalDraft, manifest: Manifest, stamps: dict[str, Stamp], *, synced: bool
    ) -> Snapshot:
        snapshot = await self._workers.call(self._publish, draft, manifest, synced=synced)
        self._seals.seal(
            manifest.snapshot_id, {str(snapshot.path(name)): stamp for name, stamp in stamps.items()}
        )
        return snapshot

    def _publish(self, draft: LocalDraft, manifest: Manifest, *, synced: bool) -> Snapshot:
        text = manifests.encode(manifest)
        with files.file_errors(draft.directory):
            allocated = self._shelf.allocated_bytes(draft.directory, manifest)
        target = self._shelf.directory(manifest.kind, manifest.snapshot_id)
        snapshot = Snapshot(manifest, target, allocated, datetime.now(UTC))
        with self._publishing:
            self._catalog.require_free(manifest.kind, manifest.snapshot_id, manifest.name)
            draft.publish(target, text, lambda: self._catalog.add(snapshot), synced=synced)
        log.info("snapshot published", extra={"kind": manifest.kind.value, "snapshot": manifest.snapshot_id})
        return snapshot

    def _remove(self, snapshot: Snapshot) -> None:
        manifest = snapshot.manifest
        with self._publishing:
            gone = self._shelf.take_away(snapshot, synced=manifest.kind in SYNCED)
            self._catalog.discard(manifest.snapshot_id)
        log.info("snapshot removed", extra={"kind": manifest.kind.value, "snapshot": manifest.snapshot_id})
        with files.file_errors(gone):
            files.remove_tree(gone)

    def _begin(self, wanted: Wanted, snapshot_id: SnapshotId, directory: Path, need_bytes: int) -> LocalDraft:
        with files.file_errors(directory):
            files.require_free(self._root, need_bytes, keep_bytes=self._reserve_bytes, what="a snapshot")
            wanted.require()
            files.make_directory(directory, 0o711)
        return LocalDraft(
            directory, snapshot_id, self._workers, self._copiers, keep_free_bytes=self._reserve_bytes
        )

    def _own(self, draft: Draft) -> LocalDraft:
        if not isinstance(draft, LocalDraft) or draft.directory.parent != self._root:
            raise HyperError("a draft of another store", subject=draft.snapshot_id)
        return draft


def _require_movable(kind: SnapshotKind) -> None:
    """From a template every container starts; a hibernated sandbox is one sandbox's own."""
    if kind is not SnapshotKind.SANDBOX:
        raise InvalidError("only snapshots of sandboxes are exported and imported", subject=kind.value)


def _require_equal(stated: tuple[SavedFile, ...], found: tuple[SavedFile, ...]) -> None:
    for one, other in zip(stated, found, strict=True):
        if one != other:
            raise InvalidError(
                "what arrived is not what the manifest says",
                subject=one.name,
                evidence=f"SHA-256 {other.sha256}, the manifest says {one.sha256}",
            )
