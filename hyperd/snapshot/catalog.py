# SPDX-License-Identifier: Apache-2.0
"""Which whole snapshots there are: names, references, last use. In memory, no I/O; safe to use from several threads."""

import dataclasses
import threading
from collections.abc import Iterable
from datetime import datetime

from hyperd.errors import ExistsError
from hyperd.model.reference import resolve
from hyperd.model.snapshot import Compatibility, Snapshot, SnapshotId, SnapshotKind


class Catalog:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshots: dict[SnapshotId, Snapshot] = {}

    def add(self, snapshot: Snapshot) -> None:
        """Raises ExistsError."""
        with self._lock:
            manifest = snapshot.manifest
            self._require_free(manifest.kind, manifest.snapshot_id, manifest.name)
            self._snapshots[manifest.snapshot_id] = snapshot

    def discard(self, snapshot_id: SnapshotId) -> None:
        with self._lock:
            self._snapshots.pop(snapshot_id, None)

    def require_free(self, kind: SnapshotKind, snapshot_id: SnapshotId, name: str) -> None:
        """Raises ExistsError when the id, or the name among its kind, is taken."""
        with self._lock:
            self._require_free(kind, snapshot_id, name)

    def find(self, snapshot_id: SnapshotId) -> Snapshot | None:
        return self._snapshots.get(snapshot_id)

    def mark_used(self, snapshot_id: SnapshotId, when: datetime) -> None:
        with self._lock:
            if (snapshot := self._snapshots.get(snapshot_id)) is not None:
                self._snapshots[snapshot_id] = dataclasses.replace(snapshot, last_used_at=when)

    def of_kind(self, kind: SnapshotKind) -> list[Snapshot]:
        """Newest first."""
        with self._lock:
            found = [snapshot for snapshot in self._snapshots.values() if snapshot.manifest.kind is kind]
        return sorted(found, key=_newness, reverse=True)

    def get(self, kind: SnapshotKind, reference: str) -> Snapshot:
        """Raises NotFoundError, InvalidError (ambiguous)."""
        found = {snapshot.manifest.snapshot_id: snapshot for snapshot in self.of_kind(kind)}
        names = {snapshot_id: snapshot.manifest.name for snapshot_id, snapshot in found.items()}
        return found[resolve(reference, names, _noun(kind))]

    def find_compatible(self, kind: SnapshotKind, compatibility: Compatibility) -> Snapshot | None:
        """The newest."""
        return next((one for one in self.of_kind(kind) if one.manifest.compatibility == compatibility), None)

    def over_budget(
        self, kind: SnapshotKind, budget_bytes: int, keep: Iterable[SnapshotId]
    ) -> list[Snapshot]:
        """The least recently used whose going makes the rest fit; ``keep`` counts and stays."""
        kept = frozenset(keep)
        found = self.of_kind(kind)
        excess = sum(snapshot.allocated_bytes for snapshot in found) - budget_bytes
        going = []
        for snapshot in sorted(found, key=lambda one: (one.last_used_at, _newness(one))):
            if excess <= 0:
                break
            if snapshot.manifest.snapshot_id not in kept:
                going.append(snapshot)
                excess -= snapshot.allocated_bytes
        return going

    def _require_free(self, kind: SnapshotKind, snapshot_id: SnapshotId, name: str) -> None:
        if snapshot_id in self._snapshots:
            raise ExistsError("the snapshot exists already", subject=snapshot_id)
        for snapshot in self._snapshots.values():
            if name and (snapshot.manifest.kind, snapshot.manifest.name) == (kind, name):
                raise ExistsError(
                    f"a {_noun(kind)} of this name exists already",
                    subject=name,
                    evidence=f"it is {snapshot.manifest.snapshot_id[:12]}",
                    hint="give another name, or remove that one",
                )


def _newness(snapshot: Snapshot) -> tuple[datetime, str]:
    return snapshot.manifest.created_at, snapshot.manifest.snapshot_id


def _noun(kind: SnapshotKind) -> str:
    return {SnapshotKind.SANDBOX: "snapshot", SnapshotKind.HIBERNATION: "hibernated sandbox"}.get(
        kind, kind.value
    )
