# SPDX-License-Identifier: Apache-2.0
"""Which files were compared with their manifests in this process, and how they looked then.

A file whose stamp is the same has the same content: what writes to a file moves its times. The kernel takes them from a
clock that ticks every few milliseconds: a file is sealed only when that clock had moved on from the last change before
the reading began. What goes through a mapping that was writable already is not seen (its first write moves the times).
A template's QEMU is ended before its draft is published. A sandbox's lives on and has its ``state`` open: one that its
guest has taken over could change that unseen later, and so harm those who go on from this snapshot, which is its own.
"""

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from hyperd.errors import HyperError, NotFoundError, RestoreError
from hyperd.host import files
from hyperd.host.workers import Workers
from hyperd.model.snapshot import SavedFile, Snapshot, SnapshotId
from hyperd.snapshot import digest
from hyperd.snapshot.digest import Stamp
from hyperd.snapshot.manifest import MANIFEST_NAME, encode

_CLOCK_REALTIME_COARSE = 5  # clock_gettime(2); Python has no name for it
TICKS_NS = 2 * round(time.clock_getres(_CLOCK_REALTIME_COARSE) * 1e9)
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
        if self._is_unchanged(snapshot):
            return
        snapshot_id = snapshot.manifest.snapshot_id
        async with self._locks.setdefault(snapshot_id, asyncio.Lock()):  # those who come at once read it once
            try:
                for saved in self._changed(snapshot):
                    await self._verify(snapshot, saved)
            finally:
                if not self._changed(snapshot):
                    self._locks.pop(snapshot_id, None)

    def _is_unchanged(self, snapshot: Snapshot) -> bool:
        """On the way of every start: one lstat for each file, and nothing else."""
        sealed = self._sealed.get(snapshot.manifest.snapshot_id, {})
        if len(sealed) <= len(snapshot.manifest.files):
            return False
        try:
            return all(digest.stamp_of(os.lstat(path)) == stamp for path, stamp in sealed.items())
        except OSError:
            return False

    def _changed(self, snapshot: Snapshot) -> list[SavedFile]:
        """The files to read; the manifest, a kilobyte or two, is read here. Raises RestoreError when that suffices."""
        sealed = self._sealed.setdefault(snapshot.manifest.snapshot_id, {})
        prefix = f"{snapshot.directory}/"
        path = prefix + MANIFEST_NAME
        if sealed.get(path) != _stamp(path):
            began_ns = file_clock_ns()
            stamp = _compare_manifest(snapshot)
            if is_settled(stamp, began_ns):
                sealed[path] = stamp
        changed = []
        for saved in snapshot.manifest.files:
            path = prefix + saved.name
            stamp = _stamp(path)
            if stamp.size_bytes != saved.size_bytes:
                evidence = f"{stamp.size_bytes} bytes, the manifest says {saved.size_bytes}"
                raise RestoreError("is of another size", subject=path, evidence=evidence, hint=HINT)
            if sealed.get(path) != stamp:
                changed.append(saved)
        return changed

    async def _verify(self, snapshot: Snapshot, saved: SavedFile) -> None:
        path = snapshot.path(saved.name)
        await settle(_stamp(str(path)).ctime_ns)
        began_ns = file_clock_ns()
        stamp = await self._hashers.call(_compare, path, saved)
        if is_settled(stamp, began_ns):
            self._sealed.setdefault(snapshot.manifest.snapshot_id, {})[str(path)] = stamp


def file_clock_ns() -> int:
    """The clock of which files get their times; where a kernel gives finer ones they are never behind it."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def is_settled(stamp: Stamp, began_ns: int) -> bool:
    """A change after ``began_ns``, by the files' clock, will be seen."""
    return stamp.ctime_ns < began_ns


async def settle(changed_ns: int) -> None:
    """Until a change will be seen: two ticks at most, also when the clock was set back."""
    wait_ns = changed_ns + TICKS_NS - time.time_ns()
    if 0 < wait_ns <= TICKS_NS:
        await asyncio.sleep(wait_ns / 1e9)


def _stamp(path: str) -> Stamp:
    with _restore_errors(path):
        status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise RestoreError("is not a regular file", subject=path, hint=HINT)
    return digest.stamp_of(status)


def _compare(path: Path, saved: SavedFile) -> Stamp:
    with _restore_errors(path):
        found, stamp = digest.measure(path)
    if stamp.size_bytes != saved.size_bytes or found != saved.sha256:
        evidence = f"SHA-256 {found}, the manifest says {saved.sha256}"
        raise RestoreError("has another content", subject=str(path), evidence=evidence, hint=HINT)
    return stamp


def _compare_manifest(snapshot: Snapshot) -> Stamp:
    path = snapshot.path(MANIFEST_NAME)
    expected = encode(snapshot.manifest)
    with _restore_errors(path):
        descriptor = digest.open_regular(path)
        try:
            stamp = digest.stamp_of(os.fstat(descriptor))
            found = os.pread(descriptor, len(expected) + 1, 0)
        finally:
            os.close(descriptor)
    if found != expected:
        raise RestoreError("is not the manifest that was read", subject=str(path), hint=HINT)
    return stamp


@contextlib.contextmanager
def _restore_errors(path: object) -> Iterator[None]:
    """What is missing, has changed while it was read, or cannot be read at all."""
    try:
        with files.file_errors(path):
            yield
    except HyperError as error:
        brief = "is missing" if isinstance(error, NotFoundError) else error.brief
        raise RestoreError(brief, subject=str(path), evidence=error.evidence, hint=HINT) from error
