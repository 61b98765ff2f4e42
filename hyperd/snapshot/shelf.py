# SPDX-License-Identifier: Apache-2.0
"""The directories of published snapshots. Everything here blocks."""

import contextlib
import logging
import os
import secrets
import stat
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import HyperError, InvalidError, UnsupportedError
from hyperd.host import files
from hyperd.model.snapshot import Manifest, Snapshot, SnapshotId, SnapshotKind
from hyperd.snapshot import digest
from hyperd.snapshot import manifest as manifests
from hyperd.snapshot.draft import PREFIX
from hyperd.snapshot.manifest import MANIFEST_NAME

log = logging.getLogger(__name__)

ASIDE = "aside"


class Shelf:
    def __init__(self, root: Path) -> None:
        self._root = root

    def directory(self, kind: SnapshotKind, snapshot_id: SnapshotId) -> Path:
        return self._root / kind.value / snapshot_id

    def open(self) -> list[Snapshot]:
        """What is whole; what was half-made is removed, what cannot be read is set aside.

        Raises when the root itself cannot be used.
        """
        found = []
        with files.file_errors(self._root):
            files.make_directory(self._root, 0o711)  # QEMU's user goes through, and cannot list
            for half_made in self._root.glob(f"{PREFIX}*"):
                self._drop(half_made)
            for kind in SnapshotKind:
                files.make_directory(self._root / kind.value, 0o711)
                names: set[str] = set()
                for directory in sorted((self._root / kind.value).iterdir()):
                    if (snapshot := self._find(kind, directory, names)) is not None:
                        names.add(snapshot.manifest.name)
                        found.append(snapshot)
        return found

    def mark_used(self, snapshot: Snapshot, when: datetime) -> None:
        """Not synced: after a power cut an older time is as good. One that is gone meanwhile is not missed."""
        with files.file_errors(snapshot.directory), contextlib.suppress(FileNotFoundError):
            os.utime(snapshot.directory, (when.timestamp(), when.timestamp()))

    def take_away(self, snapshot: Snapshot, *, synced: bool) -> Path:
        """It vanishes at once; return what is to be deleted. Idempotent."""
        gone = self._root / f"{PREFIX}{snapshot.manifest.snapshot_id}-{secrets.token_hex(4)}"
        with files.file_errors(snapshot.directory):
            try:
                snapshot.directory.rename(gone)
            except FileNotFoundError:
                return gone
            if synced:
                files.sync(snapshot.directory.parent)
        return gone

    def allocated_bytes(self, directory: Path, manifest: Manifest) -> int:
        """As the file system counts: blocks that several files share count in each. What is missing counts nothing."""
        total = 0
        for file in manifest.files:
            path = directory / file.name
            if path.exists():
                total += path.lstat().st_blocks * 512
        return total

    def _find(self, kind: SnapshotKind, directory: Path, names: set[str]) -> Snapshot | None:
        try:
            with files.file_errors(directory):
                snapshot = self._read(kind, directory)
            if snapshot.manifest.name and snapshot.manifest.name in names:
                raise InvalidError("another one has its name", subject=snapshot.manifest.name)
        except UnsupportedError as error:  # left to the newer hyperd that made it
            log.warning("snapshot not listed", extra={"path": str(directory), "reason": str(error)})
            return None
        except HyperError as error:
            self._set_aside(directory, error)
            return None
        return snapshot

    def _read(self, kind: SnapshotKind, directory: Path) -> Snapshot:
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise InvalidError("is not a directory")
        descriptor = digest.open_regular(directory / MANIFEST_NAME)
        try:
            manifest = manifests.decode(os.pread(descriptor, manifests.MAX_BYTES + 1, 0))
        finally:
            os.close(descriptor)
        if (manifest.kind, manifest.snapshot_id) != (kind, directory.name):
            raise InvalidError("the manifest is of another snapshot")
        allocated = self.allocated_bytes(directory, manifest)
        return Snapshot(manifest, directory, allocated, datetime.fromtimestamp(status.st_mtime, UTC))

    def _set_aside(self, directory: Path, reason: HyperError) -> None:
        target = self._root / ASIDE / f"{directory.parent.name}-{directory.name}-{secrets.token_hex(4)}"
        log.error(
            "snapshot set aside",
            extra={"path": str(directory), "target": str(target), "reason": str(reason)},
        )
        try:
            files.make_directory(target.parent, 0o700)
            directory.rename(target)
        except OSError as error:
            log.warning("snapshot left in its place", extra={"path": str(directory), "reason": str(error)})

    def _drop(self, half_made: Path) -> None:
        try:
            files.remove_tree(half_made)
        except OSError as error:
            log.warning("draft not removed", extra={"path": str(half_made), "reason": str(error)})
