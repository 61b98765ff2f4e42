# SPDX-License-Identifier: Apache-2.0
"""Which snapshots something is being made from at this moment."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from hyperd.model.snapshot import Snapshot, SnapshotId


class InUse:
    def __init__(self) -> None:
        self._count: Counter[SnapshotId] = Counter()

    def __contains__(self, snapshot_id: SnapshotId) -> bool:
        return snapshot_id in self._count

    def __len__(self) -> int:
        return len(self._count)

    def __iter__(self) -> Iterator[SnapshotId]:
        return iter(self._count)

    @contextlib.contextmanager
    def of(self, snapshot: Snapshot) -> Iterator[None]:
        """It is within; several may be at a time."""
        snapshot_id = snapshot.manifest.snapshot_id
        self._count[snapshot_id] += 1
        try:
            yield
        finally:
            self._count[snapshot_id] -= 1
            if not self._count[snapshot_id]:
                del self._count[snapshot_id]
