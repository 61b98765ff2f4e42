# SPDX-License-Identifier: Apache-2.0
"""Volumes that are only names."""

import asyncio
import contextlib
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import ExistsError, HyperError, InvalidError, NotFoundError, UnsupportedError
from hyperd.model.reference import resolve
from hyperd.model.vm import SandboxId
from hyperd.model.volume import (
    EXT4,
    LOCAL,
    SHARED,
    BrokenVolume,
    Consistency,
    Volume,
    VolumeName,
    VolumeRequest,
    VolumeSnapshot,
    VolumeSnapshotId,
    VolumeUser,
    VolumeView,
)
from hyperd.storage.base import Recording
from hyperd.storage.remote_rules import DRIVERS, parse
from hyperd.storage.volume_records import Row, in_use
from hyperd.storage.volume_rules import (
    DEFAULT_VOLUME_BYTES,
    require_as_asked,
    require_filesystem,
    require_growth,
    require_name,
    require_possible,
)

STREAM = b"a volume of "


@dataclass
class _Kept:
    volume: Volume
    users: dict[SandboxId, VolumeUser] = field(default_factory=dict)


class FakeVolumeSnapshots:
    """``shares_blocks``: whether a copy can be of one moment whoever writes."""

    def __init__(self) -> None:
        self.kept: list[VolumeSnapshot] = []
        self.shares_blocks = False
        self.copied: Callable[[], Awaitable[None]] | None = None  # happens while a disk is copied

    async def take(
        self,
        volume: Volume,
        name: str,
        settle: Callable[[], Awaitable[Consistency]],
        *,
        only_shared: bool = False,
    ) -> VolumeSnapshot:
        await self.require_free(name)
        if only_shared and not self.shares_blocks:
            raise UnsupportedError("its file system cannot share blocks between files")
        if self.copied is not None:
            await self.copied()
        consistency = await settle()
        key = VolumeSnapshotId(secrets.token_hex(32))
        path = Path("/fake/snapshots") / key / "disk.img"
        made = VolumeSnapshot(
            key, name, volume.name, volume.size_bytes, volume.filesystem, consistency, datetime.now(UTC), path
        )
        self.kept.insert(0, made)
        return made

    @contextlib.asynccontextmanager
    async def stream(
        self,
        volume: Volume,
        settle: Callable[[], Awaitable[Consistency]],
        *,
        only_shared: bool = False,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        taken = await self.take(volume, "", settle, only_shared=only_shared)
        self.kept.remove(taken)

        async def pieces() -> AsyncIterator[bytes]:
            yield STREAM
            yield f"{taken.size_bytes} {taken.filesystem}".encode()

        yield pieces()

    async def list(self) -> list[VolumeSnapshot]:
        return list(self.kept)

    async def names(self) -> dict[VolumeSnapshotId, str]:
        return {item.snapshot_id: item.name for item in self.kept}

    async def get(self, reference: str) -> VolumeSnapshot:
        key = resolve(reference, await self.names(), "snapshot")
        return next(item for item in self.kept if item.snapshot_id == key)

    async def remove(self, reference: str) -> VolumeSnapshotId:
        found = await self.get(reference)
        self.kept.remove(found)
        return found.snapshot_id

    async def require_free(self, name: str) -> None:
        if name:
            require_name(name, "snapshot")
        if name and any(item.name == name for item in self.kept):
            raise ExistsError("the name is in use", subject=name)


class FakeVolumes:
    """Keeps who has what; can be told to fail."""

    def __init__(self) -> None:
        self.kept: dict[VolumeName, _Kept] = {}
        self.snapshots = FakeVolumeSnapshots()
        self.fail_next_make: HyperError | None = None
        self.fail_next_attach: HyperError | None = None
        self.broken: dict[SandboxId, asyncio.Future[BrokenVolume]] = {}
        self.may_settle = asyncio.Event()  # what `providing` waits for at its end, when all is on record
        self.may_settle.set()

    async def create(self, request: VolumeRequest) -> Volume:
        if request.name in self.kept and request.snapshot:
            raise ExistsError("there is one of that name")
        there = self.kept.get(request.name) or self._make(await self._sized(request))
        volume = there.volume
        other_size = request.size_bytes and request.size_bytes != volume.size_bytes
        other_kind = request.filesystem and request.filesystem != volume.filesystem
        if other_size or other_kind or (request.labels and request.labels != volume.labels):
            raise ExistsError("there is one of that name with another size or other labels")
        self.kept[request.name] = there
        return volume

    async def list(self) -> list[VolumeView]:
        return [await self.get(name) for name in sorted(self.kept)]

    async def get(self, name: VolumeName) -> VolumeView:
        kept = self._require(name)
        users = sorted(kept.users.values(), key=lambda user: user.name)
        return VolumeView(kept.volume, 0, tuple(users))

    async def grow(self, name: VolumeName, size_bytes: int) -> Volume:
        kept = self._require(name)
        size_bytes = require_growth(name, kept.volume.size_bytes, size_bytes)
        kept.volume = replace(kept.volume, size_bytes=size_bytes)
        return kept.volume

    async def import_(self, name: VolumeName, labels: dict[str, str], stream: AsyncIterator[bytes]) -> Volume:
        require_name(name, "volume")
        if name in self.kept:
            raise ExistsError("there is one of that name")
        data = b"".join([piece async for piece in stream])
        size, _, filesystem = data.removeprefix(STREAM).decode().partition(" ")
        if not data.startswith(STREAM) or not size.isdigit():
            raise InvalidError("this is not a volume's stream")
        self.kept[name] = self._make(VolumeRequest(name, int(size), filesystem, labels=labels))
        return self.kept[name].volume

    async def lend(self, sandbox_id: SandboxId, holder: str, name: VolumeName) -> Volume:
        kept = self._require(name)
        kept.users[sandbox_id] = VolumeUser(sandbox_id, holder, readonly=False, attached=False, lent=True)
        try:
            return (await self.attach(sandbox_id))[name]
        except HyperError:
            del kept.users[sandbox_id]
            raise

    @contextlib.asynccontextmanager
    async def copying(self, name: VolumeName) -> AsyncIterator[VolumeView]:
        yield await self.get(name)

    async def remove(self, name: VolumeName) -> bool:
        kept = self.kept.get(name)
        if kept is not None and kept.users:
            raise in_use(name, list(kept.users.values()))
        return self.kept.pop(name, None) is not None

    @contextlib.asynccontextmanager
    async def providing(
        self,
        sandbox_id: SandboxId,
        holder: str,
        requests: Sequence[VolumeRequest],
        uses: Mapping[VolumeName, bool],
    ) -> AsyncIterator[Recording]:
        for request in requests:
            if (there := self.kept.get(request.name)) is not None:
                require_as_asked(request, _row(there.volume))
        made = {request.name: self._make(request) for request in requests if request.name not in self.kept}

        def record(_: sqlite3.Connection) -> None:
            self.kept.update(made)
            for name, readonly in uses.items():
                self._require(name).users[sandbox_id] = VolumeUser(
                    sandbox_id, holder, readonly, attached=False
                )

        try:
            yield record
        except BaseException:
            await self.release(sandbox_id)
            for name in made:
                if name in self.kept and not self.kept[name].users:
                    del self.kept[name]
            raise
        await self.may_settle.wait()

    async def release(self, sandbox_id: SandboxId) -> None:
        for kept in self.kept.values():
            kept.users.pop(sandbox_id, None)

    async def attach(
        self, sandbox_id: SandboxId, only: Collection[VolumeName] | None = None
    ) -> dict[VolumeName, Volume]:
        error, self.fail_next_attach = self.fail_next_attach, None
        if error is not None:
            raise error
        own = [kept for name, kept in self.kept.items() if sandbox_id in kept.users]
        own = [kept for kept in own if only is None or kept.volume.name in only]
        for kept in [kept for kept in own if not kept.volume.is_shared]:
            mine = kept.users[sandbox_id]
            for user in kept.users.values():
                if user.attached and user is not mine and not (user.readonly and mine.readonly):
                    raise in_use(kept.volume.name, [user])
        for kept in own:
            kept.users[sandbox_id] = replace(kept.users[sandbox_id], attached=True)
        return {kept.volume.name: kept.volume for kept in own}

    async def wait_broken(self, sandbox_id: SandboxId) -> BrokenVolume:
        return await asyncio.shield(self._breaking(sandbox_id))

    def crash(self, sandbox_id: SandboxId, name: str, evidence: str = "") -> None:
        """Whoever speaks to its server is killed, or ends with a complaint."""
        self._breaking(sandbox_id).set_result(BrokenVolume(VolumeName(name), evidence))

    def _breaking(self, sandbox_id: SandboxId) -> "asyncio.Future[BrokenVolume]":
        future = asyncio.get_running_loop().create_future
        return self.broken.get(sandbox_id) or self.broken.setdefault(sandbox_id, future())

    async def detach(self, sandbox_id: SandboxId) -> None:
        self.broken.pop(sandbox_id, None)
        for kept in self.kept.values():
            if sandbox_id in kept.users:
                kept.users[sandbox_id] = replace(kept.users[sandbox_id], attached=False)

    async def keep_only(self, known: Collection[SandboxId], running: Collection[SandboxId]) -> None:
        for kept in self.kept.values():
            for sandbox_id in list(kept.users):
                if sandbox_id not in running:
                    kept.users[sandbox_id] = replace(kept.users[sandbox_id], attached=False)
                if sandbox_id not in known:
                    del kept.users[sandbox_id]

    async def attached(self) -> set[SandboxId]:
        return {found for name in self.kept for found in self.attached_to(name)}

    def attached_to(self, name: str) -> set[SandboxId]:
        return {user.sandbox_id for user in self.kept[VolumeName(name)].users.values() if user.attached}

    def _make(self, request: VolumeRequest) -> _Kept:
        require_possible(request)
        error, self.fail_next_make = self.fail_next_make, None
        if error is not None:
            raise error
        row = Row(
            request.name,
            "0" * 32,
            request.size_bytes or (DEFAULT_VOLUME_BYTES if request.filesystem != SHARED else 0),
            request.filesystem or EXT4,
            dict(request.labels),
            request.anonymous,
            datetime.now(UTC),
        )
        path = Path("/fake/volumes") / row.name / "disk.img"
        return _Kept(
            Volume(
                row.name,
                row.size_bytes,
                row.filesystem,
                row.labels,
                row.anonymous,
                row.created_at,
                path,
                request.driver or LOCAL,
                server=str(parse(request.driver, request.options, "")[0])
                if request.driver in DRIVERS
                else "",
            )
        )

    async def _sized(self, request: VolumeRequest) -> VolumeRequest:
        if not request.snapshot:
            return request
        source = await self.snapshots.get(request.snapshot)
        require_filesystem(request, source.filesystem)
        wanted_bytes = require_growth(
            request.name, source.size_bytes, request.size_bytes or source.size_bytes
        )
        return replace(request, size_bytes=wanted_bytes, filesystem=source.filesystem)

    def _require(self, name: VolumeName) -> _Kept:
        if name not in self.kept:
            raise NotFoundError("no such volume", subject=name)
        return self.kept[name]


def _row(volume: Volume) -> Row:
    return Row(
        volume.name,
        "0" * 32,
        volume.size_bytes,
        volume.filesystem,
        volume.labels,
        volume.anonymous,
        volume.created_at,
        volume.driver,
    )
