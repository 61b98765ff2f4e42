# SPDX-License-Identifier: Apache-2.0
"""The snapshots of containers, and what the service keeps for itself among them."""

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection

from hyperd.errors import ExistsError, HyperError, InvalidError, RestoreError, WrongStateError
from hyperd.model.image import ImageId
from hyperd.model.snapshot import Manifest, Snapshot, SnapshotId, SnapshotKind
from hyperd.model.vm import SandboxId
from hyperd.sandbox import names
from hyperd.sandbox.in_use import InUse
from hyperd.sandbox.source import parse_source, title_of
from hyperd.snapshot.base import SnapshotStore

log = logging.getLogger(__name__)

_PASSING = "yes"


class Snapshots:
    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._in_use = InUse()

    def list(self) -> list[Snapshot]:
        """Newest first, without those of forks under way."""
        found = self._store.list(SnapshotKind.SANDBOX)
        return [item for item in found if item.manifest.source.get("passing") != _PASSING]

    def find(self, snapshot_id: SnapshotId) -> Snapshot | None:
        return next((item for item in self.list() if item.manifest.snapshot_id == snapshot_id), None)

    async def remove(self, snapshot: Snapshot) -> SnapshotId:
        """Clones that run go on. Raises WrongStateError while something is being made from it."""
        snapshot_id = snapshot.manifest.snapshot_id
        if snapshot_id in self._in_use:
            hint = "try again when that has ended"
            raise WrongStateError("is being restored", subject=title_of(snapshot), hint=hint)
        await self._store.remove(snapshot_id)
        return snapshot_id

    def in_use(self, snapshot: Snapshot) -> contextlib.AbstractContextManager[None]:
        """Its files are needed: it is not removed meanwhile."""
        return self._in_use.of(snapshot)

    def export(self, snapshot: Snapshot) -> AsyncGenerator[bytes]:
        return self._store.export(snapshot)

    async def import_(
        self,
        stream: AsyncIterator[bytes],
        *,
        name: str = "",
        require: Callable[[Manifest], None] = lambda _: None,
    ) -> Snapshot:
        """``require``: raises for a manifest that is not to come in. Raises as ``SnapshotStore.import_``."""

        def accept(manifest: Manifest) -> None:
            _require_importable(manifest)
            require(manifest)

        return await self._store.import_(stream, name=name, require=accept)

    def require_free(self, name: str) -> None:
        """Before a sandbox is stopped for it. Raises ExistsError, InvalidError."""
        names.require_valid(name)
        for snapshot in self._store.list(SnapshotKind.SANDBOX):
            if snapshot.manifest.name == name:
                raise ExistsError(
                    f"the name is in use by snapshot {snapshot.manifest.snapshot_id[:12]}",
                    subject=name,
                    hint=f"`hyper snapshot rm {name}` frees it, or give another --name",
                )

    def images(self) -> dict[ImageId, str]:
        """Which cannot go while there are snapshots whose clones need them, and what to tell who wants them gone."""
        kinds = (SnapshotKind.SANDBOX, SnapshotKind.HIBERNATION)
        return {
            ImageId(snapshot.manifest.source["image_id"]): title_of(snapshot)
            for kind in kinds
            for snapshot in reversed(self._store.list(kind))
            if "image_id" in snapshot.manifest.source
        }

    def memory_of(self, sandbox_id: SandboxId) -> Snapshot | None:
        """The newest that it could wake from."""
        found = self._store.list(SnapshotKind.HIBERNATION)
        return next((item for item in found if _sandbox_of(item) == sandbox_id), None)

    async def tidy(self, asleep: Collection[SnapshotId], unread: Collection[SandboxId]) -> None:
        """When hyperd starts: those of forks that were cut short, and memory that no sandbox sleeps in, go.

        ``unread``: whose records cannot be read. Whether these sleep another hyperd may know, so their memory stays.
        """
        passing = [
            item
            for item in self._store.list(SnapshotKind.SANDBOX)
            if item.manifest.source.get("passing") == _PASSING
        ]
        forgotten = [
            item
            for item in self._store.list(SnapshotKind.HIBERNATION)
            if item.manifest.snapshot_id not in asleep and _sandbox_of(item) not in unread
        ]
        for snapshot in (*passing, *forgotten):
            await self.forget(snapshot.manifest.snapshot_id)

    async def forget(self, snapshot_id: SnapshotId) -> None:
        """Of the service's own; what cannot be removed now is removed by ``tidy``."""
        try:
            await self._store.remove(snapshot_id)
        except HyperError as error:
            log.error("snapshot not removed", extra={"snapshot": snapshot_id[:12], "error": str(error)})  # noqa: TRY400


def _require_importable(manifest: Manifest) -> None:
    """Raises InvalidError for what no sandbox can be made from, and for a fork's: the next start would remove it."""
    try:
        source = parse_source(manifest)
    except RestoreError as error:
        raise InvalidError(error.brief, subject=error.subject, evidence=error.evidence) from error
    if source.passing:
        raise InvalidError("is of a fork that was under way", subject=f"snapshot {manifest.snapshot_id[:12]}")


def _sandbox_of(snapshot: Snapshot) -> str:
    return snapshot.manifest.source.get("container_id", "")
