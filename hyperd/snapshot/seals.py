# SPDX-License-Identifier: Apache-2.0
"""Which files were compared with their manifests in this process, and how they looked then.

A file whose stamp is the same has the same content: what writes to a file moves its times. They move in ticks, so a
file is sealed only when its last change lies more than a tick before the reading began. What goes through a mapping
that was writable already is not seen (its first write moves the times): nobody may have one when a draft
is published.
"""

import asyncio
import os
import stat
import time
from pathlib import Path

from hyperd.errors import HyperError, RestoreError
from hyperd.host import files
from hyperd.host.workers import Workers
from hyperd.model.snapshot import SavedFile, Snapshot, SnapshotId
from hyperd.snapshot import digest
from hyperd.snapshot.digest import GRANULE_NS, Stamp
from hyperd.snapshot.manifest import MANIFEST_NAME, encode

HINT = "it was damaged or changed: remove it and make a new one"


class Seals:
    def __init__(self, hashers: Workers) -> None:
        self._hashers = hashers
        self._sealed: dict[SnapshotId, dict[str, Stamp]] = {}  # by path
        self._locks: dict[SnapshotId, asyncio.Lock] = {}

    def seal(self, snapshot_id: SnapshotId, stamps: dict[str, Stamp]) -> None:
        self._sealed[snapshot_id] = stamps

    def forget(self, snapshot_id: SnapshotId) -> None:
        self._sealed.pop(snapshot_id, None)
        self._locks.pop(snapshot_id, None)

    async def require(self, snapshot: Snapshot) -> None:
        """A few microseconds when nothing changed; else the changed files are read. Raises RestoreError."""
        snapshot_id = snapshot.manifest.snapshot_id
        if not self._changed(snapshot):
            return
        async with self._locks.setdefault(snapshot_id, asyncio.Lock()):  # those who come at once read it once
            try:
                for saved in self._changed(snapshot):
                    await self._verify(snapshot, saved)
            finally:
                if not self._changed(snapshot):
                    self._locks.pop(snapshot_id, None)

    def _changed(self, snapshot: Snapshot) -> list[SavedFile | None]:
        """The files to read; None is the manifest. Raises RestoreError for what is plain to see."""
        sealed = self._sealed.get(snapshot.manifest.snapshot_id, {})
        prefix = f"{snapshot.directory}/"
        changed: list[SavedFile | None] = []
        for saved in (None, *snapshot.manifest.files):
            path = prefix + (saved.name if saved else MANIFEST_NAME)
            try:
                status = os.lstat(path)
            except FileNotFoundError as error:
                raise RestoreError("is missing", subject=path, hint=HINT) from error
            except OSError as error:
                raise RestoreError(f"cannot be read: {error.strerror}", subject=path, hint=HINT) from error
            if not stat.S_ISREG(status.st_mode):
                raise RestoreError("is not a regular file", subject=path, hint=HINT)
            if saved and status.st_size != saved.size_bytes:
                evidence = f"{status.st_size} bytes, the manifest says {saved.size_bytes}"
                raise RestoreError("is of another size", subject=path, evidence=evidence, hint=HINT)
            if sealed.get(path) != digest.stamp_of(status):
                changed.append(saved)
        return changed

    async def _verify(self, snapshot: Snapshot, saved: SavedFile | None) -> None:
        path = snapshot.path(saved.name if saved else MANIFEST_NAME)
        try:
            with files.file_errors(path):
                await settle(path.lstat().st_ctime_ns)
            began_ns = time.time_ns()
            if saved is None:
                stamp = await self._hashers.call(_compare_manifest, snapshot)
            else:
                stamp = await self._hashers.call(_compare, path, saved)
        except HyperError as error:  # what has gone or changed while it was read, too
            raise RestoreError(
                error.brief, subject=error.subject, evidence=error.evidence, hint=HINT
            ) from error
        if is_settled(stamp, began_ns):
            self._sealed.setdefault(snapshot.manifest.snapshot_id, {})[str(path)] = stamp


def is_settled(stamp: Stamp, began_ns: int) -> bool:
    """A change after ``began_ns`` will be seen."""
    return stamp.ctime_ns + GRANULE_NS <= began_ns


async def settle(changed_ns: int) -> None:
    """Until a change will be seen: a moment at most, also when the clock was set back."""
    wait_ns = changed_ns + GRANULE_NS - time.time_ns()
    if 0 < wait_ns <= GRANULE_NS:
        await asyncio.sleep(wait_ns / 1e9)


def _compare(path: Path, saved: SavedFile) -> Stamp:
    with files.file_errors(path):
        found, stamp = digest.measure(path)
    if stamp.size_bytes != saved.size_bytes or found != saved.sha256:
        evidence = f"SHA-256 {found}, the manifest says {saved.sha256}"
        raise RestoreError("has another content", subject=str(path), evidence=evidence, hint=HINT)
    return stamp


def _compare_manifest(snapshot: Snapshot) -> Stamp:
    path = snapshot.path(MANIFEST_NAME)
    with files.file_errors(path):
        descriptor = digest.open_regular(path)
        try:
            expected = encode(snapshot.manifest)
            stamp = digest.stamp_of(os.fstat(descriptor))
            if os.pread(descriptor, len(expected) + 1, 0) != expected:
                raise RestoreError("is not the manifest that was read", subject=str(path), hint=HINT)
            return stamp
        finally:
            os.close(descriptor)
