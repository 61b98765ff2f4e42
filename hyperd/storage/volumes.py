# SPDX-License-Identifier: Apache-2.0
"""Volumes as sparse files, formatted once and never mounted on the host.

    ROOT/ID/disk.img     mode 0600; of the QEMU that writes to it, or readable by those that read
    ROOT/ID.new          one that is being made; whole, it gets its name in the transaction that records it
    ROOT/ID.gone         one that is being removed: its record went, then its name
    ROOT/.seed/data      what mkfs puts into a new one: the directory that containers see

What of the last two kinds hyperd finds when it starts, it removes. A whole one without a record it names in its log and
leaves: records that were lost, or are of a backup, cost no data.
"""

import asyncio
import contextlib
import logging
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import ExhaustedError, ExistsError, InvalidError, UnavailableError, UnsupportedError
from hyperd.host import files, process
from hyperd.host.database import Database
from hyperd.host.workers import Workers
from hyperd.model.vm import SandboxId
from hyperd.model.volume import LOCAL, Volume, VolumeName, VolumeRequest, VolumeUser, VolumeView
from hyperd.storage import acl
from hyperd.storage import volume_records as records
from hyperd.storage.base import DATA_DIRECTORY, Recording
from hyperd.storage.volume_records import Row

log = logging.getLogger(__name__)

DEFAULT_VOLUME_BYTES = 10 << 30
MINIMUM_VOLUME_BYTES = 16 << 20
MAXIMUM_VOLUME_BYTES = 16 << 40  # what ext4 does with blocks of 4 KiB and 32-bit numbers
RESERVE_BYTES = 64 << 20
MKFS_TIMEOUT_S = 120.0
DISK_NAME = "disk.img"
FILESYSTEMS = ("ext4",)
SEED = ".seed"

# With room to grow (resize_inode) and spare superblocks: unlike a writable disk it is not thrown away.
MKFS_OPTIONS = (
    *("-q", "-F", "-t", "ext4", "-b", "4096"),
    *("-m", "0"),  # nothing reserved for root: every process in the guest may be root
    # As in local.py: the file is new and reads as zeros, so neither mkfs nor the guest has to write them.
    *("-E", "assume_storage_prezeroed=1,lazy_journal_init=1,nodiscard,root_owner=0:0"),
)
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}")
NEW, GONE = ".new", ".gone"
_ID = re.compile(r"[0-9a-f]{32}")
_LEFT = re.compile(rf"[0-9a-f]{{32}}({re.escape(NEW)}|{re.escape(GONE)})")


class LocalVolumes:
    """``owner_of`` tells the (uid, gid) of a sandbox's QEMU; None leaves the files to the daemon's own user."""

    def __init__(
        self,
        root: Path,
        database: Database,
        *,
        size_bytes: int = DEFAULT_VOLUME_BYTES,
        owner_of: Callable[[SandboxId], tuple[int, int]] | None = None,
    ) -> None:
        self._root = root
        self._database = database
        self._size_bytes = size_bytes
        self._owner_of = owner_of
        self._workers = Workers("volumes", 2)

    async def open(self) -> None:
        """Raises UnavailableError. What a killed hyperd had half made or half removed goes."""
        await self._database.migrate(records.ROOM, records.MIGRATIONS)
        known = {row.volume_id for row in await self._database.transaction(records.load)}
        await self._workers.call(self._sweep, known)

    def close(self) -> None:
        self._workers.close()

    async def create(self, request: VolumeRequest) -> Volume:
        require_possible(request, self._size_bytes)
        there = await self._find(request.name)
        if there is None:
            made = await self._make(request)
            try:
                await self._database.transaction(
                    lambda connection: self._record(connection, made), lasting=True
                )
            finally:
                await asyncio.shield(self._remove_unrecorded([made]))
            there = await self._get(request.name)
        _require_same(request, there)
        return self._volume(there)

    async def list(self) -> list[VolumeView]:
        def work(connection: sqlite3.Connection) -> list[tuple[Row, tuple[VolumeUser, ...]]]:
            return [(row, tuple(records.users_of(connection, row.name))) for row in records.load(connection)]

        found = await self._database.transaction(work)
        sizes = await self._workers.call(self._allocated, [row for row, _ in found])
        return [
            VolumeView(self._volume(row), size, users)
            for (row, users), size in zip(found, sizes, strict=True)
        ]

    async def get(self, name: VolumeName) -> VolumeView:
        row = await self._get(name)
        users = await self._database.transaction(lambda connection: records.users_of(connection, name))
        (size,) = await self._workers.call(self._allocated, [row])
        return VolumeView(self._volume(row), size, tuple(users))

    async def remove(self, name: VolumeName) -> bool:
        row = await self._database.transaction(
            lambda connection: records.delete(connection, name), lasting=True
        )
        if row is None:
            return False
        await self._workers.call(self._remove_files, row)
        log.info("volume removed", extra={"volume": name})
        return True

    @contextlib.asynccontextmanager
    async def providing(
        self,
        sandbox_id: SandboxId,
        holder: str,
        requests: Sequence[VolumeRequest],
        uses: Mapping[VolumeName, bool],
    ) -> AsyncIterator[Recording]:
        for request in requests:
            require_possible(request, self._size_bytes)
        made: list[Row] = []

        def record(connection: sqlite3.Connection) -> None:
            for row in made:
                self._record(connection, row)
            records.use(connection, sandbox_id, holder, uses)

        try:
            for request in requests:
                if await self._find(request.name) is None:
                    made += [await self._make(request)]
            yield record
        except BaseException:
            # Shielded: a second cancellation must not leave half of it. What a kill leaves goes at the next start.
            await asyncio.shield(self._undo(sandbox_id, made))
            raise
        await asyncio.shield(self._remove_unrecorded(made))

    async def release(self, sandbox_id: SandboxId) -> None:
        await self.detach(sandbox_id)
        await self._database.transaction(lambda connection: records.release(connection, sandbox_id))

    async def attach(self, sandbox_id: SandboxId) -> dict[VolumeName, Volume]:
        def work(connection: sqlite3.Connection) -> list[Row]:
            rows = records.attach(connection, sandbox_id)
            self._hand_over(connection, rows)
            return rows

        await self._workers.call(self._require_space, "what is written to volumes")
        return {row.name: self._volume(row) for row in await self._database.transaction(work)}

    async def detach(self, sandbox_id: SandboxId) -> None:
        def work(connection: sqlite3.Connection) -> None:
            self._hand_over(connection, records.detach(connection, sandbox_id))

        await self._database.transaction(work)

    async def keep_only(self, known: Collection[SandboxId], running: Collection[SandboxId]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            self._hand_over(connection, records.keep_only(connection, known, running))

        await self._database.transaction(work)

    async def _find(self, name: VolumeName) -> Row | None:
        return await self._database.transaction(lambda connection: records.find(connection, name))

    async def _get(self, name: VolumeName) -> Row:
        return await self._database.transaction(lambda connection: records.require(connection, name))

    async def _make(self, request: VolumeRequest) -> Row:
        """Its file, whole and on the disk; neither its name nor its record. On failure nothing stays."""
        size_bytes = request.size_bytes or self._size_bytes
        row = Row(
            request.name,
            secrets.token_hex(16),
            size_bytes - size_bytes % 4096,
            request.filesystem or FILESYSTEMS[0],
            dict(request.labels),
            request.anonymous,
            datetime.now(UTC),
        )
        try:
            await self._workers.call(self._make_empty, row)
            await self._format(row)
            await self._workers.call(files.sync, self._new(row) / DISK_NAME)
        except BaseException:
            await asyncio.shield(self._workers.call(self._remove_files, row))
            raise
        log.info("volume made", extra={"volume": row.name, "mib": row.size_bytes >> 20})
        return row

    async def _format(self, row: Row) -> None:
        finished = await process.run(
            ["mkfs.ext4", *MKFS_OPTIONS, "-d", str(self._root / SEED), str(self._new(row) / DISK_NAME)],
            timeout_s=MKFS_TIMEOUT_S,
        )
        if finished.returncode != 0:
            kind = ExhaustedError if "No space left" in finished.stderr_tail else UnavailableError
            brief = f"cannot be formatted: mkfs.ext4 ended with status {finished.returncode}"
            raise kind(brief, subject=f"volume {row.name}", evidence=finished.stderr_tail)

    async def _undo(self, sandbox_id: SandboxId, made: Sequence[Row]) -> None:
        """A transaction whose caller has gone may have happened all the same."""

        def work(connection: sqlite3.Connection) -> None:
            records.release(connection, sandbox_id)
            for row in made:
                found = records.find(connection, row.name)
                if (
                    found is not None
                    and found.volume_id == row.volume_id
                    and not records.users_of(connection, row.name)
                ):
                    records.delete(connection, row.name)

        await self._database.transaction(work)
        await self._remove_unrecorded(made)

    async def _remove_unrecorded(self, made: Sequence[Row]) -> None:
        known = {row.volume_id for row in await self._database.transaction(records.load)}
        for row in made:
            if row.volume_id not in known:
                await self._workers.call(self._remove_files, row)

    def _sweep(self, known: Collection[str]) -> None:
        with files.file_errors(self._root):
            files.make_directory(self._root, 0o711)
            files.make_directory(self._root / SEED, 0o755)
            files.make_directory(self._root / SEED / DATA_DIRECTORY, 0o755)
            for directory in self._root.iterdir():
                if _LEFT.fullmatch(directory.name):
                    log.warning("removing what was left of a volume", extra={"path": str(directory)})
                    files.remove_tree(directory)
                elif _ID.fullmatch(directory.name) and directory.name not in known:
                    log.warning("a volume that no record knows is left alone", extra={"path": str(directory)})

    def _make_empty(self, row: Row) -> None:
        disk = self._new(row) / DISK_NAME
        with files.file_errors(disk):
            self._require_space("a volume")
            files.make_directory(disk.parent, 0o711)
            disk.touch(0o600)
            with disk.open("r+b") as file:
                file.truncate(row.size_bytes)

    def _require_space(self, what: str) -> None:
        with files.file_errors(self._root):
            files.require_free(self._root, 0, keep_bytes=RESERVE_BYTES, what=what)

    def _record(self, connection: sqlite3.Connection, row: Row) -> None:
        """The name last of all: what a kill leaves without a record is a ``.new``, but for an instant."""
        records.insert(connection, row)
        directory = self._disk(row).parent
        with files.file_errors(directory):
            files.publish(self._new(row), directory)

    def _remove_files(self, row: Row) -> None:
        """At whatever point it was in."""
        directory = self._disk(row).parent
        gone = directory.with_name(directory.name + GONE)
        with files.file_errors(directory):
            with contextlib.suppress(FileNotFoundError):
                directory.rename(gone)
            files.remove_tree(gone)
            files.remove_tree(self._new(row))

    def _allocated(self, rows: Sequence[Row]) -> tuple[int, ...]:
        sizes: tuple[int, ...] = ()
        for row in rows:
            try:
                sizes += (self._disk(row).stat().st_blocks * 512,)
            except FileNotFoundError:  # removed meanwhile
                sizes += (0,)
        return sizes

    def _hand_over(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """Within the transaction that says whose they are: one thread, so the last one to be asked is right."""
        if self._owner_of is None:
            return
        for row in rows:
            disk = self._disk(row)
            attached = [user for user in records.users_of(connection, row.name) if user.attached]
            owners = {user.sandbox_id: self._owner_of(user.sandbox_id) for user in attached}
            with files.file_errors(disk):
                if not attached:
                    acl.close_to_all(disk)
                elif len(attached) == 1 and not attached[0].readonly:
                    acl.open_to_writer(disk, owners[attached[0].sandbox_id])
                else:
                    gid = next(iter(owners.values()))[1]
                    acl.open_to_readers(disk, [uid for uid, _ in owners.values()], gid)

    def _volume(self, row: Row) -> Volume:
        return Volume(
            row.name,
            row.size_bytes,
            row.filesystem,
            row.labels,
            row.anonymous,
            row.created_at,
            self._disk(row),
        )

    def _new(self, row: Row) -> Path:
        return self._root / (row.volume_id + NEW)

    def _disk(self, row: Row) -> Path:
        return self._root / row.volume_id / DISK_NAME


def require_possible(request: VolumeRequest, default_bytes: int = DEFAULT_VOLUME_BYTES) -> None:
    """Raises InvalidError, UnsupportedError."""
    subject = f"volume {request.name!r}"
    if not _NAME.fullmatch(request.name):
        raise InvalidError(
            "is not a volume's name",
            subject=repr(request.name)[:200],
            hint="2 to 128 letters, digits, `_`, `.` and `-`, the first a letter or a digit",
        )
    if request.driver not in ("", LOCAL):
        raise UnsupportedError(
            f"there is no driver {request.driver!r}", subject=subject, hint=f"known: {LOCAL}"
        )
    if request.filesystem and request.filesystem not in FILESYSTEMS:
        raise UnsupportedError(
            f"there is no file system {request.filesystem!r}",
            subject=subject,
            hint=f"known: {', '.join(FILESYSTEMS)}",
        )
    if request.options:
        raise InvalidError(
            f"the driver {LOCAL} has no option {sorted(request.options)[0]!r}",
            subject=subject,
            hint="it has none",
        )
    size_bytes = request.size_bytes or default_bytes
    if not MINIMUM_VOLUME_BYTES <= size_bytes <= MAXIMUM_VOLUME_BYTES:
        raise InvalidError(
            f"{size_bytes} bytes are not between {MINIMUM_VOLUME_BYTES >> 20} MiB and"
            f" {MAXIMUM_VOLUME_BYTES >> 40} TiB",
            subject=subject,
        )


def _require_same(request: VolumeRequest, there: Row) -> None:
    """As Docker: creating what is there is no error, creating something else of that name is."""
    size_bytes = request.size_bytes - request.size_bytes % 4096
    if (size_bytes and size_bytes != there.size_bytes) or (request.labels and request.labels != there.labels):
        raise ExistsError(
            "there is one of that name with another size or other labels",
            subject=f"volume {there.name}",
            hint=f"`hyper volume inspect {there.name}` shows it",
        )
