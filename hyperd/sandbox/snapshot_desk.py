# SPDX-License-Identifier: Apache-2.0
"""Snapshots as users name them: those of containers and of volumes are one list, and a name or id means one of them."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from hyperd.errors import ExistsError, InvalidError
from hyperd.model.reference import resolve
from hyperd.model.snapshot import Manifest, Snapshot, SnapshotId
from hyperd.model.volume import VolumeSnapshot, VolumeSnapshotId
from hyperd.sandbox.snapshots import Snapshots
from hyperd.storage.base import VolumeSnapshots


class SnapshotDesk:
    def __init__(self, of_containers: Snapshots, of_volumes: VolumeSnapshots) -> None:
        self._of_containers = of_containers
        self._of_volumes = of_volumes
        self._naming: set[str] = set()  # names that are about to be taken

    async def list(self) -> tuple[list[Snapshot], list[VolumeSnapshot]]:
        """Each newest first."""
        return self._of_containers.list(), await self._of_volumes.list()

    async def get(self, reference: str) -> Snapshot | VolumeSnapshot:
        """By full id, name, or unique prefix of an id. Raises NotFoundError, InvalidError (ambiguous)."""
        key = await self._resolve(reference)
        return self._of_containers.find(SnapshotId(key)) or await self._of_volumes.get(key)

    async def get_of_container(self, reference: str) -> Snapshot:
        """Raises as ``get``; InvalidError when it is a volume's."""
        found = await self.get(reference)
        if isinstance(found, VolumeSnapshot):
            raise InvalidError(
                f"is of volume {found.volume}, not of a container",
                subject=f"snapshot {reference}",
                hint=f"`hyper volume create NAME --snapshot {reference}` makes a volume of it",
            )
        return found

    async def remove(self, reference: str) -> SnapshotId | VolumeSnapshotId:
        """What was made from it stays. Raises as ``get``; WrongStateError while something is being made from it."""
        key = await self._resolve(reference)
        if (found := self._of_containers.find(SnapshotId(key))) is not None:
            return await self._of_containers.remove(found)
        return await self._of_volumes.remove(key)

    async def export(self, reference: str) -> AsyncGenerator[bytes]:
        """Raises as ``get_of_container``. Close it (``aclose``)."""
        stream = self._of_containers.export(await self.get_of_container(reference))
        async with contextlib.aclosing(stream):
            async for piece in stream:
                yield piece

    async def import_(self, stream: AsyncIterator[bytes], *, name: str = "") -> Snapshot:
        """Raises as ``SnapshotStore.import_``; ExistsError for a name that one of either kind has."""
        of_volumes = {held: key for key, held in (await self._of_volumes.names()).items() if held}

        def require(manifest: Manifest) -> None:
            if not name and manifest.name in of_volumes:
                raise _in_use(manifest.name, of_volumes[manifest.name])

        async with self.naming(name):
            return await self._of_containers.import_(stream, name=name, require=require)

    @contextlib.asynccontextmanager
    async def naming(self, name: str) -> AsyncIterator[None]:
        """Within, nobody else makes a snapshot of that name, of whatever kind. Raises ExistsError, InvalidError."""
        if not name:
            yield
            return
        if name in self._naming:
            raise ExistsError(
                "a snapshot of this name is being made", subject=name, hint="give another --name"
            )
        self._naming.add(name)
        try:
            self._of_containers.require_free(name)
            await self._of_volumes.require_free(name)
            yield
        finally:
            self._naming.discard(name)

    async def _resolve(self, reference: str) -> str:
        of_volumes = await self._of_volumes.names()
        names = {str(key): name for key, name in of_volumes.items()}
        names |= {item.manifest.snapshot_id: item.manifest.name for item in self._of_containers.list()}
        return resolve(reference, names, "snapshot", "`hyper snapshot ls` lists all")


def _in_use(name: str, key: str) -> ExistsError:
    return ExistsError(
        f"the name is in use by snapshot {key[:12]}",
        subject=name,
        hint=f"`hyper snapshot rm {name}` frees it, or give another --name",
    )
