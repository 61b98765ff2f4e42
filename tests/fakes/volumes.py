# SPDX-License-Identifier: Apache-2.0
"""Volumes that are only names."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import ExistsError, HyperError, NotFoundError
from hyperd.model.vm import SandboxId
from hyperd.model.volume import Volume, VolumeName, VolumeRequest, VolumeUser, VolumeView
from hyperd.storage.base import Recording
from hyperd.storage.volume_records import Row, in_use
from hyperd.storage.volumes import DEFAULT_VOLUME_BYTES, require_possible


@dataclass
class _Kept:
    volume: Volume
    users: dict[SandboxId, VolumeUser] = field(default_factory=dict)


class FakeVolumes:
    """Keeps who has what; can be told to fail."""

    def __init__(self) -> None:
        self.kept: dict[VolumeName, _Kept] = {}
        self.fail_next_make: HyperError | None = None
        self.fail_next_attach: HyperError | None = None

    async def create(self, request: VolumeRequest) -> Volume:
        there = self.kept.get(request.name) or self._make(request)
        volume = there.volume
        other_size = request.size_bytes and request.size_bytes != volume.size_bytes
        if other_size or (request.labels and request.labels != volume.labels):
            raise ExistsError("there is one of that name with another size or other labels")
        self.kept[request.name] = there
        return volume

    async def list(self) -> list[VolumeView]:
        return [await self.get(name) for name in sorted(self.kept)]

    async def get(self, name: VolumeName) -> VolumeView:
        kept = self._require(name)
        users = sorted(kept.users.values(), key=lambda user: user.name)
        return VolumeView(kept.volume, 0, tuple(users))

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

    async def release(self, sandbox_id: SandboxId) -> None:
        for kept in self.kept.values():
            kept.users.pop(sandbox_id, None)

    async def attach(self, sandbox_id: SandboxId) -> dict[VolumeName, Volume]:
        error, self.fail_next_attach = self.fail_next_attach, None
        if error is not None:
            raise error
        own = [kept for kept in self.kept.values() if sandbox_id in kept.users]
        for kept in own:
            mine = kept.users[sandbox_id]
            for user in kept.users.values():
                if user.attached and user is not mine and not (user.readonly and mine.readonly):
                    raise in_use(kept.volume.name, [user])
        for kept in own:
            kept.users[sandbox_id] = replace(kept.users[sandbox_id], attached=True)
        return {kept.volume.name: kept.volume for kept in own}

    async def detach(self, sandbox_id: SandboxId) -> None:
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
            request.size_bytes or DEFAULT_VOLUME_BYTES,
            request.filesystem or "ext4",
            dict(request.labels),
            request.anonymous,
            datetime.now(UTC),
        )
        path = Path("/fake/volumes") / row.name / "disk.img"
        return _Kept(
            Volume(row.name, row.size_bytes, row.filesystem, row.labels, row.anonymous, row.created_at, path)
        )

    def _require(self, name: VolumeName) -> _Kept:
        if name not in self.kept:
            raise NotFoundError("no such volume", subject=name)
        return self.kept[name]
