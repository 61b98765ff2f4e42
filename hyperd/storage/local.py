# SPDX-License-Identifier: Apache-2.0
"""Writable disks as sparse files on the host's filesystem.

    ROOT/templates/ext4-KEY.img            made once; KEY names the size and how it was made
    ROOT/sandboxes/ID/writable.img         a sparse copy, mode 0600, owned by the user of the sandbox's QEMU
    ROOT/sandboxes/ID/writable.img.staged  the one that it rolls back to, until it has that name

mkfs.ext4 runs once per size and never on the way to a start: a start copies the few blocks that an empty ext4 has.
"""

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from hyperd.errors import ExhaustedError, InvalidError, NotFoundError, UnavailableError
from hyperd.host import files, process
from hyperd.host.workers import Wanted, Workers
from hyperd.model.vm import SandboxId

log = logging.getLogger(__name__)

DEFAULT_SIZE_BYTES = 10 << 30
MINIMUM_SIZE_BYTES = 64 << 20
MAXIMUM_SIZE_BYTES = 16 << 40  # what ext4 does with blocks of 4 KiB and 32-bit numbers
RESERVE_BYTES = 64 << 20
MKFS_TIMEOUT_S = 120.0
DISK_NAME = "writable.img"
STAGED_NAME = f"{DISK_NAME}.staged"

# Each option serves a small template, a quiet first mount, or room for the user:
MKFS_OPTIONS = (
    *("-q", "-F", "-t", "ext4", "-b", "4096"),
    *("-m", "0"),  # nothing reserved for root: every process in the guest may be root
    *("-J", "size=16"),  # enough for metadata-heavy work; a hole until it is written
    *(
        "-O",
        "^resize_inode,sparse_super2",
    ),  # no spare superblocks (num_backup_sb=0) on a disk that is thrown away
    "-E",
    # assume_storage_prezeroed: the file is new, so its inode tables are holes that read as zeros. Without it
    # mkfs writes them here, or (lazy_itable_init) every guest writes 160 MiB of zeros after its first mount.
    "assume_storage_prezeroed=1,lazy_journal_init=1,nodiscard,packed_meta_blocks=1,num_backup_sb=0,root_owner=0:0",
)
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,127}")


class LocalStorage:
    """``owner_of`` tells the (uid, gid) of a sandbox's QEMU; None leaves the files to the daemon's own user."""

    def __init__(
        self,
        root: Path,
        *,
        size_bytes: int = DEFAULT_SIZE_BYTES,
        owner_of: Callable[[SandboxId], tuple[int, int]] | None = None,
    ) -> None:
        require_size(size_bytes)
        self._templates = root / "templates"
        self._sandboxes = root / "sandboxes"
        self._size_bytes = size_bytes - size_bytes % 4096
        self._owner_of = owner_of
        key = hashlib.sha256(repr((self._size_bytes, MKFS_OPTIONS)).encode()).hexdigest()[:16]
        self._template = self._templates / f"ext4-{key}.img"
        self._workers = Workers("storage", 2)
        self._preparing = asyncio.Lock()
        self._prepared = False

    async def prepare(self) -> None:
        async with self._preparing:
            if self._prepared:
                return
            if await self._workers.call(self._find_template):
                self._prepared = True
                return
            temporary = files.temporary_beside(self._template)
            try:
                await self._workers.call(self._make_empty, temporary, self._size_bytes)
                await _format(temporary)
                await self._workers.call(self._publish, temporary)
            finally:
                await self._workers.call(temporary.unlink, missing_ok=True)
            self._prepared = True

    async def create_writable(self, sandbox_id: SandboxId, size_bytes: int = 0) -> Path:
        size_bytes -= size_bytes % 4096
        if size_bytes and size_bytes != self._size_bytes:
            return await self._create_sized(sandbox_id, size_bytes)
        await self.prepare()
        return await self._workers.call_while_wanted(self._create, sandbox_id)

    async def lend_writable(self, sandbox_id: SandboxId, to: SandboxId) -> Path:
        return await self._workers.call_while_wanted(self._lend, sandbox_id, to)

    async def adopt_writable(self, sandbox_id: SandboxId, source: Path) -> Path:
        return await self._workers.call_while_wanted(self._adopt, sandbox_id, source)

    async def stage_writable(self, sandbox_id: SandboxId, source: Path) -> Path:
        return await self._workers.call_while_wanted(self._stage, sandbox_id, source)

    async def adopt_staged(self, sandbox_id: SandboxId) -> Path:
        return await self._workers.call_while_wanted(self._adopt_staged, sandbox_id)

    async def discard_staged(self, sandbox_id: SandboxId) -> None:
        await self._workers.call(self._discard_staged, sandbox_id)

    async def discard_all_staged(self, but: Collection[SandboxId]) -> None:
        await self._workers.call(self._discard_all_staged, frozenset(but))

    async def writable_path(self, sandbox_id: SandboxId) -> Path:
        return await self._workers.call(self._existing, sandbox_id)

    async def remove(self, sandbox_id: SandboxId) -> None:
        await self._workers.call(self._remove, sandbox_id)

    async def list_sandboxes(self) -> set[SandboxId]:
        return await self._workers.call(self._list)

    def close(self) -> None:
        self._workers.close()

    async def _create_sized(self, sandbox_id: SandboxId, size_bytes: int) -> Path:
        """Not a copy: few ask for a size of their own, and each would leave a template."""
        require_size(size_bytes)
        disk = self._disk(sandbox_id)
        if await self._workers.call(disk.is_file):
            return await self._workers.call_while_wanted(self._create, sandbox_id)
        await self._workers.call(files.make_directory, disk.parent, 0o711)
        temporary = files.temporary_beside(disk)
        try:
            await self._workers.call(self._make_empty, temporary, size_bytes)
            await _format(temporary)
            return await self._workers.call_while_wanted(self._take, temporary, sandbox_id)
        except BaseException:
            await asyncio.shield(self._workers.call(self._give_up, temporary))
            raise

    def _take(self, wanted: Wanted, temporary: Path, sandbox_id: SandboxId) -> Path:
        disk = self._disk(sandbox_id)
        with files.file_errors(disk):
            if self._owner_of is not None:
                os.chown(temporary, *self._owner_of(sandbox_id), follow_symlinks=False)
            wanted.require()
            return temporary.rename(disk)

    def _give_up(self, temporary: Path) -> None:
        with files.file_errors(temporary):
            temporary.unlink(missing_ok=True)
            if temporary.parent.is_dir() and not any(temporary.parent.iterdir()):
                temporary.parent.rmdir()

    def _find_template(self) -> bool:
        with files.file_errors(self._templates):
            files.make_directory(self._templates, 0o700)
            files.make_directory(self._sandboxes, 0o711)
            for path in self._templates.iterdir():
                if path != self._template:  # of another size, or half-made by a killed daemon
                    path.unlink()
            return self._template.is_file() and self._template.stat().st_size == self._size_bytes

    def _make_empty(self, path: Path, size_bytes: int) -> None:
        with files.file_errors(path):
            self._require_space(path.parent)
            path.touch(0o600)
            with path.open("r+b") as file:
                file.truncate(size_bytes)

    def _publish(self, temporary: Path) -> None:
        with files.file_errors(self._template):
            files.publish(temporary, self._template)

    def _create(self, wanted: Wanted, sandbox_id: SandboxId) -> Path:
        disk = self._disk(sandbox_id)
        owner = self._owner_of(sandbox_id) if self._owner_of is not None else None
        with files.file_errors(disk):
            if disk.is_file():
                if owner is not None:  # the configuration may have changed since it was made
                    os.chown(disk, *owner, follow_symlinks=False)
                return disk
            existed = disk.parent.is_dir()
            try:
                self._require_space(self._sandboxes)
                files.make_directory(disk.parent, 0o711)
                files.copy_sparse(self._template, disk, mode=0o600, owner=owner, wanted=wanted)
            except BaseException:
                if not existed:
                    files.remove_tree(disk.parent)
                raise
            return disk

    def _lend(self, wanted: Wanted, sandbox_id: SandboxId, to: SandboxId) -> Path:
        disk = self._existing(sandbox_id)
        with files.file_errors(disk):
            wanted.require()
            if self._owner_of is not None:
                os.chown(disk, *self._owner_of(to), follow_symlinks=False)
        return disk

    def _adopt(self, wanted: Wanted, sandbox_id: SandboxId, source: Path) -> Path:
        disk = self._disk(sandbox_id)
        owner = self._owner_of(sandbox_id) if self._owner_of is not None else None
        with files.file_errors(disk):
            files.make_directory(self._sandboxes, 0o711)
            existed = disk.parent.is_dir()
            try:
                files.make_directory(disk.parent, 0o711)
                self._remove_half_made(disk)
                files.copy_sparse(
                    source, disk, mode=0o600, owner=owner, keep_free_bytes=RESERVE_BYTES, wanted=wanted
                )
            except BaseException:
                if not existed:
                    files.remove_tree(disk.parent)
                raise
            return disk

    def _stage(self, wanted: Wanted, sandbox_id: SandboxId, source: Path) -> Path:
        staged = self._staged(sandbox_id)
        owner = self._owner_of(sandbox_id) if self._owner_of is not None else None
        with files.file_errors(staged):
            files.make_directory(staged.parent, 0o711)
            self._remove_half_made(staged)
            # What it replaces the guest had synced, and nobody stands still for this.
            files.copy_sparse(
                source,
                staged,
                mode=0o600,
                owner=owner,
                keep_free_bytes=RESERVE_BYTES,
                wanted=wanted,
                synced=True,
            )
            return staged

    def _adopt_staged(self, wanted: Wanted, sandbox_id: SandboxId) -> Path:
        disk = self._disk(sandbox_id)
        wanted.require()
        with files.file_errors(disk):
            self._staged(sandbox_id).rename(disk)
            files.sync(disk.parent)
            return disk

    def _discard_staged(self, sandbox_id: SandboxId) -> None:
        staged = self._staged(sandbox_id)
        with files.file_errors(staged):
            staged.unlink(missing_ok=True)

    def _discard_all_staged(self, but: Collection[SandboxId]) -> None:
        with files.file_errors(self._sandboxes):
            for directory in self._sandboxes.iterdir() if self._sandboxes.is_dir() else ():
                for left in self._own_files(directory):
                    if left.name != DISK_NAME and directory.name not in but:
                        log.warning("removing what was left of a disk", extra={"path": str(left)})
                        left.unlink(missing_ok=True)

    def _existing(self, sandbox_id: SandboxId) -> Path:
        disk = self._disk(sandbox_id)
        with files.file_errors(disk):
            if not disk.is_file():
                raise NotFoundError("the sandbox has no writable disk", subject=str(disk))
            return disk

    def _remove(self, sandbox_id: SandboxId) -> None:
        """Only what this room put there; the directory goes with the last file of whichever room."""
        disk = self._disk(sandbox_id)
        with files.file_errors(disk):
            if not disk.parent.is_dir():
                return
            for own in self._own_files(disk.parent):
                own.unlink(missing_ok=True)
            if not any(disk.parent.iterdir()):
                disk.parent.rmdir()

    def _remove_half_made(self, disk: Path) -> None:
        for half_made in self._own_files(disk.parent):
            if half_made.name.endswith(files.TEMPORARY_SUFFIX):
                half_made.unlink(missing_ok=True)

    def _own_files(self, directory: Path) -> list[Path]:
        """The disk, what is staged, and what a killed hyperd had half made of either."""
        return list(directory.glob(f"*{DISK_NAME}*"))

    def _list(self) -> set[SandboxId]:
        with files.file_errors(self._sandboxes):
            if not self._sandboxes.is_dir():
                return set()
            return {SandboxId(path.name) for path in self._sandboxes.iterdir() if self._own_files(path)}

    def _disk(self, sandbox_id: SandboxId) -> Path:
        if not _ID.fullmatch(sandbox_id):
            raise InvalidError("not a sandbox id", subject=repr(sandbox_id)[:200])
        return self._sandboxes / sandbox_id / DISK_NAME

    def _staged(self, sandbox_id: SandboxId) -> Path:
        return self._disk(sandbox_id).with_name(STAGED_NAME)

    def _require_space(self, directory: Path) -> None:
        files.require_free(directory, 0, keep_bytes=RESERVE_BYTES, what="a writable disk")


def require_size(size_bytes: int) -> None:
    """Of a writable disk. Raises InvalidError."""
    if not MINIMUM_SIZE_BYTES <= size_bytes <= MAXIMUM_SIZE_BYTES:
        raise InvalidError(
            f"a writable disk has between {MINIMUM_SIZE_BYTES >> 20} MiB and {MAXIMUM_SIZE_BYTES >> 40} TiB",
            subject=f"{size_bytes} bytes",
        )


async def _format(path: Path) -> None:
    finished = await process.run(["mkfs.ext4", *MKFS_OPTIONS, str(path)], timeout_s=MKFS_TIMEOUT_S)
    if finished.returncode != 0:
        kind = ExhaustedError if "No space left" in finished.stderr_tail else UnavailableError
        raise kind(f"exit status {finished.returncode}", subject="mkfs.ext4", evidence=finished.stderr_tail)
