# SPDX-License-Identifier: Apache-2.0
"""Volumes as sparse raw files with an ext4 each, and who has them.

    root/ID.new/disk.img   in the making: formatted before anybody knows it
    root/ID/disk.img       a volume; its record names the ID
    root/ID/unrecorded     beside it until that record is committed, and from when it goes
    root/ID.gone/...       on its way out: its record is gone already

The host formats a file that no guest has seen yet, and never mounts, checks or reads it afterwards.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hyperd.errors import ExistsError, UnsupportedError
from hyperd.host.database import Database
from hyperd.host.workers import Workers
from hyperd.model.vm import SandboxId
from hyperd.model.volume import (
    LOCAL,
    SHARED,
    BrokenVolume,
    Volume,
    VolumeName,
    VolumeRequest,
    VolumeUser,
    VolumeView,
)
from hyperd.storage import remote
from hyperd.storage import volume_records as records
from hyperd.storage import volume_rules as rules
from hyperd.storage.base import Recording
from hyperd.storage.doors import Doors
from hyperd.storage.formatting import make_seed
from hyperd.storage.reservations import Reservations
from hyperd.storage.volume_files import DiskFiles, hand_over
from hyperd.storage.volume_making import VolumeMaker
from hyperd.storage.volume_records import Row
from hyperd.storage.volume_snapshots import LocalVolumeSnapshots
from hyperd.storage.volume_turns import VolumeTurns

log = logging.getLogger(__name__)

SNAPSHOTS = ".snapshots"


class LocalVolumes:
    """``owner_of`` tells the (uid, gid) of a sandbox's QEMU; None leaves the files to the daemon's own user."""

    def __init__(
        self,
        root: Path,
        database: Database,
        *,
        size_bytes: int = rules.DEFAULT_VOLUME_BYTES,
        owner_of: Callable[[SandboxId], tuple[int, int]] | None = None,
        doors: Doors | None = None,
    ) -> None:
        """``doors``: to disks of servers; None makes them beside the volumes."""
        self._database = database
        self._size_bytes = size_bytes
        self._owner_of = owner_of
        self._workers = Workers("volumes", 2)
        self._copies = Workers("volume-copies", 2)  # minutes each: nobody waits behind them who only starts
        self._removals = Workers("volume-removals", 2)  # so do these take
        self._files = DiskFiles(root)
        self._turns = VolumeTurns()
        self._reservations = Reservations(database)
        self._doors = doors or Doors(root / ".doors", owner_of=owner_of)
        self.snapshots = LocalVolumeSnapshots(root / SNAPSHOTS, database, self._workers, self._removals)
        self._maker = VolumeMaker(
            self._files,
            size_bytes,
            self.snapshots,
            self._doors,
            workers=self._workers,
            copies=self._copies,
        )

    async def open(self) -> None:
        """Raises UnavailableError. What a killed hyperd had half made or half removed goes."""
        await self._database.migrate(records.ROOM, records.MIGRATIONS)
        known = {row.volume_id for row in await self._database.transaction(records.load)}
        await self._workers.call(self._files.sweep, known)
        await self._workers.call(make_seed, self._files.root)
        await self.snapshots.open()

    def close(self) -> None:
        self._workers.close()
        self._copies.close()
        self._removals.close()
        self._doors.close()
        self.snapshots.close()

    async def create(self, request: VolumeRequest) -> Volume:
        rules.require_possible(request, self._size_bytes)
        there = await self._find(request.name)
        if there is None:
            async with self._reservations.holding([request]):
                made = await self._maker.make(request)
                try:
                    await self._database.transaction(
                        lambda connection: self._record(connection, made), lasting=True
                    )
                finally:
                    await asyncio.shield(self._settle([made.volume_id]))
            there = await self._get(request.name)
            if there.volume_id == made.volume_id:
                return self._volume(there)
        rules.require_same(request, there)
        return self._volume(there)

    async def list(self) -> list[VolumeView]:
        def work(connection: sqlite3.Connection) -> list[tuple[Row, tuple[VolumeUser, ...]]]:
            return [(row, tuple(records.users_of(connection, row.name))) for row in records.load(connection)]

        found = await self._database.transaction(work)
        sizes = await self._workers.call(self._files.allocated, [row.volume_id for row, _ in found])
        return [
            VolumeView(self._volume(row), size, users)
            for (row, users), size in zip(found, sizes, strict=True)
        ]

    async def get(self, name: VolumeName) -> VolumeView:
        row = await self._get(name)
        users = await self._database.transaction(lambda connection: records.users_of(connection, name))
        (size,) = await self._workers.call(self._files.allocated, [row.volume_id])
        return VolumeView(self._volume(row), size, tuple(users))

    async def attached(self) -> set[SandboxId]:
        return await self._database.transaction(records.attached)

    async def remove(self, name: VolumeName) -> bool:
        gone: list[str] = []

        def work(connection: sqlite3.Connection) -> None:
            row = records.delete(connection, name)
            if row is not None:
                self._files.unsettle(row.volume_id)
                gone.append(row.volume_id)

        try:
            async with self._turns.removing(name):
                await self._database.transaction(work, lasting=True)
        finally:
            # A transaction whose caller has gone may happen all the same: this one's thread comes to it first.
            await asyncio.shield(self._settle(gone))
        if gone:
            log.info("volume removed", extra={"volume": name})
        return bool(gone)

    async def grow(self, name: VolumeName, size_bytes: int) -> Volume:
        async with self._turns.growing(name):
            return await self._grow(name, size_bytes)

    async def _grow(self, name: VolumeName, size_bytes: int) -> Volume:
        row = await self._get(name)
        if row.driver != LOCAL:
            hint = "let it grow there, and make it anew"
            raise UnsupportedError("is as large as its server says", subject=f"volume {name}", hint=hint)
        size_bytes = rules.require_growth(name, row.size_bytes, size_bytes)
        # The file first: a kill leaves one that is larger than its record says, and the next call finds it so.
        await self._workers.call(self._files.grow, row.volume_id, size_bytes)

        def work(connection: sqlite3.Connection) -> Row:
            records.grow(connection, row, size_bytes)
            return records.require(connection, name)

        grown = self._volume(await self._database.transaction(work, lasting=True))
        log.info("volume grown", extra={"volume": name, "mib": grown.size_bytes >> 20})
        return grown

    async def import_(self, name: VolumeName, labels: dict[str, str], stream: AsyncIterator[bytes]) -> Volume:
        rules.require_name(name, "volume")
        if await self._find(name) is not None:
            raise _taken(name)
        row = await self._maker.unpack(name, labels, stream)
        try:
            await self._database.transaction(lambda connection: self._record(connection, row), lasting=True)
        finally:
            await asyncio.shield(self._settle([row.volume_id]))
        there = await self._get(name)
        if there.volume_id != row.volume_id:  # somebody else was faster
            raise _taken(name)
        log.info("volume imported", extra={"volume": name, "mib": there.size_bytes >> 20})
        return self._volume(there)

    async def lend(self, sandbox_id: SandboxId, holder: str, name: VolumeName) -> Volume:
        def work(connection: sqlite3.Connection) -> list[Row]:
            records.use(connection, sandbox_id, holder, {name: False}, lent=True)
            rows = records.attach(connection, sandbox_id)
            self._hand_over(connection, rows)
            return rows

        await self._workers.call(self._files.require_space, "what is written to volumes")
        async with self._turns.attaching([name]):
            (row,) = await self._database.transaction(work)
        try:
            return await self._opened(sandbox_id, row, readonly=False)
        except BaseException:
            await asyncio.shield(self.release(sandbox_id))
            raise

    @contextlib.asynccontextmanager
    async def copying(self, name: VolumeName) -> AsyncIterator[VolumeView]:
        async with self.snapshots.place(), self._turns.copying(name):
            yield await self.get(name)

    @contextlib.asynccontextmanager
    async def providing(
        self,
        sandbox_id: SandboxId,
        holder: str,
        requests: Sequence[VolumeRequest],
        uses: Mapping[VolumeName, bool],
    ) -> AsyncIterator[Recording]:
        missing: list[VolumeRequest] = []
        for request in requests:
            if (there := await self._find(request.name)) is not None:
                rules.require_as_asked(request, there)
            else:
                rules.require_possible(request, self._size_bytes)
                missing.append(request)
        made: list[Row] = []

        def record(connection: sqlite3.Connection) -> None:
            for row in made:
                self._record(connection, row)
            records.use(connection, sandbox_id, holder, uses)

        try:
            async with self._reservations.holding(missing):
                for request in missing:
                    made += [await self._maker.make(request)]
                yield record
        except BaseException:
            # Shielded: a second cancellation must not leave half of it. What a kill leaves goes at the next start.
            await asyncio.shield(self._undo(sandbox_id, made))
            raise
        await asyncio.shield(self._settle([row.volume_id for row in made]))

    async def release(self, sandbox_id: SandboxId) -> None:
        await self.detach(sandbox_id)
        await self._database.transaction(lambda connection: records.release(connection, sandbox_id))

    async def attach(
        self, sandbox_id: SandboxId, only: Collection[VolumeName] | None = None
    ) -> dict[VolumeName, Volume]:
        def work(connection: sqlite3.Connection) -> list[Row]:
            rows = records.attach(connection, sandbox_id, only)
            self._hand_over(connection, rows)
            return rows

        uses = await self._database.transaction(lambda connection: records.uses_of(connection, sandbox_id))
        uses = [(row, readonly) for row, readonly in uses if only is None or row.name in only]
        if not uses:
            return {}
        await self._workers.call(self._files.require_space, "what is written to volumes")
        async with self._turns.attaching([row.name for row, _ in uses]):
            rows = await self._database.transaction(work)
        readonly = {row.name: is_readonly for row, is_readonly in uses}
        # Now that nobody else has them. Who is not let in is detached as one whose VM failed.
        return {row.name: await self._opened(sandbox_id, row, readonly=readonly[row.name]) for row in rows}

    async def _opened(self, sandbox_id: SandboxId, row: Row, *, readonly: bool) -> Volume:
        """With what its VM connects to; as large as its server says by now."""
        if row.driver == LOCAL:
            return self._volume(row)
        server = records.server_of(row)
        opened = await self._doors.open(sandbox_id, row.volume_id, server, readonly=readonly)
        remote.require_whole(opened.size_bytes, row.size_bytes, str(server))
        if opened.size_bytes > row.size_bytes:
            await self._database.transaction(
                lambda connection: records.grow(connection, row, opened.size_bytes), lasting=True
            )
        return replace(self._volume(row), size_bytes=opened.size_bytes, export=opened.export)

    async def wait_broken(self, sandbox_id: SandboxId) -> BrokenVolume:
        key, evidence = await self._doors.wait_ended(sandbox_id)
        uses = await self._database.transaction(lambda connection: records.uses_of(connection, sandbox_id))
        name = next((row.name for row, _ in uses if row.volume_id.startswith(key)), VolumeName(key))
        return BrokenVolume(name, evidence)

    async def detach(self, sandbox_id: SandboxId) -> None:
        def work(connection: sqlite3.Connection) -> None:
            self._hand_over(connection, records.detach(connection, sandbox_id))

        await self._doors.end(sandbox_id)  # first: what it has not sent yet must not be sent beside another's
        await self._database.transaction(work)

    async def keep_only(self, known: Collection[SandboxId], running: Collection[SandboxId]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            self._hand_over(connection, records.keep_only(connection, known, running))

        await self._doors.keep_only(running)
        await self._database.transaction(work)

    async def _find(self, name: VolumeName) -> Row | None:
        return await self._database.transaction(lambda connection: records.find(connection, name))

    async def _get(self, name: VolumeName) -> Row:
        return await self._database.transaction(lambda connection: records.require(connection, name))

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
        await self._settle([row.volume_id for row in made])

    async def _settle(self, made: Sequence[str]) -> None:
        """What has a record stays, what has none goes."""

        def work(connection: sqlite3.Connection) -> list[str]:
            known = {row.volume_id for row in records.load(connection)}
            for volume_id in known.intersection(made):
                self._files.settle(volume_id)
            return [volume_id for volume_id in made if volume_id not in known]

        for volume_id in await self._database.transaction(work):
            await self._remove(volume_id)

    async def _remove(self, volume_id: str) -> None:
        await self._workers.call(self._files.take_away, volume_id)
        await self._removals.call(self._files.remove, volume_id)

    def _record(self, connection: sqlite3.Connection, row: Row) -> None:
        """The name last of all: what a kill leaves without a record is a ``.new``, or says that it is unrecorded."""
        records.insert(connection, row)
        if row.driver == LOCAL:
            self._files.publish(row.volume_id)

    def _hand_over(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """Within the transaction that says whose they are: one thread, so the last one to be asked is right."""
        if self._owner_of is None:
            return
        for row in rows:
            if row.driver != LOCAL or row.filesystem == SHARED:  # a server's; root's own, whoever sees it
                continue
            attached = [user for user in records.users_of(connection, row.name) if user.attached]
            hand_over(self._files.disk(row.volume_id), attached, self._owner_of)

    def _volume(self, row: Row) -> Volume:
        return Volume(
            row.name,
            row.size_bytes,
            row.filesystem,
            row.labels,
            row.anonymous,
            row.created_at,
            (self._files.shared if row.filesystem == SHARED else self._files.disk)(row.volume_id),
            row.driver,
            server=str(records.server_of(row)) if row.driver != LOCAL else "",
        )


def _taken(name: VolumeName) -> ExistsError:
    hint = f"another name, or `hyper volume rm {name}`"
    return ExistsError("there is one of that name", subject=f"volume {name}", hint=hint)
