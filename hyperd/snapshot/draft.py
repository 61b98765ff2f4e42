# SPDX-License-Identifier: Apache-2.0
"""A snapshot in the making: a hidden directory beside the published ones, one rename away from being one.

What a cancelled caller began still runs in its thread, a copy until it notices; the draft's lock makes a discard wait.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from hyperd.errors import ExistsError, UnavailableError, WrongStateError
from hyperd.host import files
from hyperd.host.workers import Wanted, Workers
from hyperd.model.snapshot import SnapshotId
from hyperd.snapshot import digest
from hyperd.snapshot.digest import Stamp
from hyperd.snapshot.manifest import MANIFEST_NAME, require_file_name

PREFIX = ".draft-"


class LocalDraft:
    def __init__(
        self,
        directory: Path,
        snapshot_id: SnapshotId,
        workers: Workers,
        copiers: Workers,
        *,
        keep_free_bytes: int,
    ) -> None:
        self.snapshot_id = snapshot_id
        self.directory = directory
        self.names: list[str] = []  # of its files, in the order of their making
        self._workers = workers
        self._copiers = copiers
        self._keep_free_bytes = keep_free_bytes
        self._lock = threading.Lock()
        self._ended = ""

    async def create_file(self, name: str, *, size_bytes: int = 0, owner: tuple[int, int]) -> Path:
        return await self._workers.call(self.create, name, size_bytes, owner)

    async def add_copy(self, name: str, source: Path) -> Path:
        return await self._copiers.call_while_wanted(self._copy, name, source)

    def require_open(self) -> None:
        if self._ended:
            raise WrongStateError(f"the draft was {self._ended} already", subject=self.snapshot_id)

    # What follows blocks.

    def create(self, name: str, size_bytes: int, owner: tuple[int, int] | None) -> Path:
        path = self._new(name)
        with self._lock, files.file_errors(path):
            self.require_open()
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
                if owner is not None:
                    os.fchown(descriptor, *owner)
                os.ftruncate(descriptor, size_bytes)
            except BaseException:
                path.unlink()
                raise
            finally:
                os.close(descriptor)
            self.names.append(name)
        return path

    def make_read_only(self, group: int | None, *, synced: bool) -> None:
        """Every file becomes ours, for ``group`` to read; ``synced``: it is on the disk then."""
        with contextlib.ExitStack() as stack, files.file_errors(self.directory):
            descriptors = []
            with self._lock:
                self.require_open()
                if sorted(os.listdir(self.directory)) != sorted(self.names):  # noqa: PTH208  # names, not paths
                    raise UnavailableError(
                        "a draft was changed by somebody else", subject=str(self.directory)
                    )
                for name in self.names:
                    descriptor = digest.open_regular(self.directory / name)
                    stack.callback(os.close, descriptor)
                    descriptors.append(descriptor)
                    os.fchown(descriptor, os.geteuid(), -1 if group is None else group)
                    os.fchmod(descriptor, 0o440)
            if synced:  # without the lock: a discard does not wait for the disk
                for descriptor in descriptors:
                    os.fsync(descriptor)

    def newest_change_ns(self) -> int:
        with files.file_errors(self.directory):
            return max((self.directory / name).lstat().st_ctime_ns for name in self.names)

    def measure(self, name: str) -> tuple[str, Stamp]:
        with files.file_errors(self.directory / name):
            return digest.measure(self.directory / name)

    def publish(self, target: Path, manifest: bytes, announce: Callable[[], None], *, synced: bool) -> None:
        """Write the manifest, rename, ``announce``; when one of them fails the draft is as it was."""
        path = self.directory / MANIFEST_NAME
        with self._lock, files.file_errors(target):
            self.require_open()
            try:
                path.touch(0o600)
                path.write_bytes(manifest)
                if synced:
                    for each in (path, self.directory):
                        files.sync(each)
                self._appear(target, announce, synced=synced)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            self._ended = "published"

    def discard(self) -> None:
        with self._lock, files.file_errors(self.directory):
            if self._ended != "published":
                self._ended = "discarded"
                files.remove_tree(self.directory)

    def _appear(self, target: Path, announce: Callable[[], None], *, synced: bool) -> None:
        try:
            self.directory.rename(target)
        except OSError as error:
            if target.exists():
                raise ExistsError("the snapshot exists already", subject=str(target)) from error
            raise
        try:
            if synced:
                files.sync(target.parent)
            announce()
        except BaseException:
            target.rename(self.directory)
            raise

    def _copy(self, wanted: Wanted, name: str, source: Path) -> Path:
        path = self._new(name)
        with self._lock, files.file_errors(path):
            self.require_open()
            if name in self.names:
                raise ExistsError("the draft has such a file", subject=str(path))
            files.copy_sparse(source, path, keep_free_bytes=self._keep_free_bytes, wanted=wanted)
            self.names.append(name)
        return path

    def _new(self, name: str) -> Path:
        require_file_name(name)
        return self.directory / name
