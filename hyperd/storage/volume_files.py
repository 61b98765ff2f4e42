# SPDX-License-Identifier: Apache-2.0
"""The directories of volumes, and of their snapshots: a disk in each, under its name when it is whole. Blocks.

ID.new/disk.img   in the making      ID/disk.img   whole      ID.gone/...   on its way out
                                     ID/unrecorded   until its record is known to be there, and from when it goes

A volume that is shared has a directory in its stead, ID/data.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from hyperd.errors import HyperError
from hyperd.host import files
from hyperd.host.workers import Wanted
from hyperd.model.vm import SandboxId
from hyperd.model.volume import VolumeUser
from hyperd.storage import acl
from hyperd.storage.counting import allocated_below

log = logging.getLogger(__name__)

DISK_NAME = "disk.img"
SHARED_NAME = "data"
RESERVE_BYTES = 64 << 20
UNRECORDED_NAME = "unrecorded"
NEW, GONE = ".new", ".gone"
_ID = re.compile(r"[0-9a-f]{32,64}")
_LEFT = re.compile(rf"[0-9a-f]{{32,64}}({re.escape(NEW)}|{re.escape(GONE)})")

OwnerOf = Callable[[SandboxId], tuple[int, int]]


class DiskFiles:
    def __init__(self, root: Path) -> None:
        self.root = root

    def disk(self, disk_id: str) -> Path:
        return self.root / disk_id / DISK_NAME

    def new(self, disk_id: str) -> Path:
        """Its disk while it is in the making."""
        return self.root / (disk_id + NEW) / DISK_NAME

    def shared(self, disk_id: str) -> Path:
        return self.root / disk_id / SHARED_NAME

    def sweep(self, known: Collection[str]) -> None:
        """What a killed hyperd had half made or half removed goes. What cannot go keeps nobody from starting."""
        with files.file_errors(self.root):
            files.make_directory(self.root, 0o711)
            for directory in self.root.iterdir():
                try:
                    self._sweep(directory, known)
                except (OSError, HyperError) as error:
                    told = {"path": str(directory), "error": str(error)}
                    log.error("what was left of a disk stays", extra=told)  # noqa: TRY400

    def _sweep(self, directory: Path, known: Collection[str]) -> None:
        if _LEFT.fullmatch(directory.name):
            log.warning("removing what was left of a disk", extra={"path": str(directory)})
            files.remove_tree(directory)
        elif not _ID.fullmatch(directory.name):
            return
        elif directory.name in known:
            self.settle(directory.name)
        elif (directory / UNRECORDED_NAME).exists():
            log.warning("removing a disk whose record is not there", extra={"path": str(directory)})
            self.remove(directory.name)
        else:
            log.warning("a disk that no record knows is left alone", extra={"path": str(directory)})

    def make_empty(self, disk_id: str, size_bytes: int) -> None:
        disk = self._begin(disk_id, "a volume")
        with files.file_errors(disk):
            disk.touch(0o600)
            os.truncate(disk, size_bytes)

    def make_shared(self, disk_id: str) -> None:
        """Nobody else of the host passes to what guests put there: set-user-id programs, perhaps."""
        directory = self.new(disk_id).parent
        self._begin(disk_id, "a volume")
        with files.file_errors(directory):
            files.make_directory(directory / SHARED_NAME, 0o755)
            directory.chmod(0o700)

    def make_copy(
        self, wanted: Wanted, disk_id: str, source: Path, size_bytes: int = 0, *, only_shared: bool = False
    ) -> int:
        """Of ``source``, and so large at least; return how large it is.

        ``only_shared``: at one moment, by sharing its blocks, or not at all.
        Raises NotFoundError, ExhaustedError, UnsupportedError (blocks cannot be shared here).
        """
        disk = self._begin(disk_id, "a copy")
        with files.file_errors(source):
            if only_shared:
                files.clone(source, disk)
            else:
                files.copy_sparse(source, disk, keep_free_bytes=RESERVE_BYTES, wanted=wanted)
            disk.chmod(0o600)
            if size_bytes > disk.stat().st_size:
                os.truncate(disk, size_bytes)
            return disk.stat().st_size

    def _begin(self, disk_id: str, what: str) -> Path:
        disk = self.new(disk_id)
        with files.file_errors(disk):
            self.require_space(what)
            files.make_directory(disk.parent, 0o711)
        return disk

    def sync(self, disk_id: str) -> None:
        disk = self.new(disk_id)
        files.sync(disk if disk.exists() else disk.with_name(SHARED_NAME))

    def publish(self, disk_id: str) -> None:
        """Give it its name. A kill before ``settle`` leaves what the next sweep removes, unless its record is there."""
        directory = self.root / disk_id
        new = self.new(disk_id).parent
        with files.file_errors(directory):
            (new / UNRECORDED_NAME).touch(0o600)
            files.publish(new, directory)

    def settle(self, disk_id: str) -> None:
        """Its record is there, lastingly."""
        marker = self.root / disk_id / UNRECORDED_NAME
        with files.file_errors(marker):
            marker.unlink(missing_ok=True)

    def unsettle(self, disk_id: str) -> None:
        """Its record goes. A kill before ``take_away`` leaves what the next sweep removes."""
        marker = self.root / disk_id / UNRECORDED_NAME
        with contextlib.suppress(OSError):  # a server's has no files; a full disk keeps nobody from removing
            marker.touch(0o600)

    def take_away(self, disk_id: str) -> None:
        """It has its name no more; a kill before ``remove`` leaves what the next sweep removes."""
        directory = self.root / disk_id
        with files.file_errors(directory), contextlib.suppress(FileNotFoundError):
            directory.rename(directory.with_name(directory.name + GONE))

    def remove(self, disk_id: str) -> None:
        """At whatever point it was in. Takes minutes of a large one, or of one with many files."""
        directory = self.root / disk_id
        self.take_away(disk_id)
        with files.file_errors(directory):
            files.remove_tree(directory.with_name(directory.name + GONE))
            files.remove_tree(self.new(disk_id).parent)

    def grow(self, disk_id: str, size_bytes: int) -> None:
        """Never smaller: where a QEMU had it made larger already it stays so."""
        disk = self.disk(disk_id)
        with files.file_errors(disk):
            self.require_space("a larger volume")
            if disk.stat().st_size < size_bytes:
                os.truncate(disk, size_bytes)
                files.sync(disk)

    def allocated(self, disk_ids: Sequence[str]) -> tuple[int, ...]:
        sizes: tuple[int, ...] = ()
        for disk_id in disk_ids:
            try:
                sizes += (self.disk(disk_id).stat().st_blocks * 512,)
            except FileNotFoundError:
                sizes += (allocated_below(self.shared(disk_id)),)
        return sizes

    def require_space(self, what: str) -> None:
        with files.file_errors(self.root):
            files.require_free(self.root, 0, keep_bytes=RESERVE_BYTES, what=what)


def hand_over(disk: Path, attached: Sequence[VolumeUser], owner_of: OwnerOf) -> None:
    """To the QEMU that writes to it, or to those that read it, or to nobody."""
    owners = {user.sandbox_id: owner_of(user.sandbox_id) for user in attached}
    with files.file_errors(disk):
        if not attached:
            acl.close_to_all(disk)
        elif len(attached) == 1 and not attached[0].readonly:
            acl.open_to_writer(disk, owners[attached[0].sandbox_id])
        else:
            gid = next(iter(owners.values()))[1]
            acl.open_to_readers(disk, [uid for uid, _ in owners.values()], gid)
