# SPDX-License-Identifier: Apache-2.0
"""Where saved virtual machines are kept. A snapshot is whole or it is not there."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from hyperd.model.snapshot import Compatibility, Manifest, Snapshot, SnapshotId, SnapshotKind


class Draft(Protocol):
    """A snapshot in the making: a directory that nobody else sees, on the same file system."""

    snapshot_id: SnapshotId
    directory: Path

    async def create_file(self, name: str, *, size_bytes: int = 0, owner: tuple[int, int]) -> Path:
        """An empty (or sparse, of that size) file for QEMU's user to write into, mode 0600."""

    async def add_copy(self, name: str, source: Path) -> Path:
        """A copy of ``source``: shared blocks where the file system can, else its data alone. Raises ExhaustedError.

        Waits for nobody else's files: a guest may stand still for it. Cancelled, it ends soon.
        """


class SnapshotStore(Protocol):
    async def open(self) -> None:
        """Read what is there; remove what was half-made when hyperd ended.

        One that cannot be read is set aside, and logged.
        """

    async def begin(self, *, need_bytes: int = 0) -> Draft:
        """Raises ExhaustedError, with the arithmetic, when ``need_bytes`` do not fit."""

    async def publish(
        self,
        draft: Draft,
        kind: SnapshotKind,
        compatibility: Compatibility,
        *,
        name: str = "",
        source: dict[str, str] | None = None,
        lasting: bool = True,
    ) -> Snapshot:
        """Hash every file, make them read-only (root:QEMU's group, 0440), and let it appear at once, whole.

        Nobody may write into a file any more. Who has one open still can (the source's QEMU its own ``state``, when it
        lives on): writes are seen by their times as any other, but through a mapping that was dirty.

        Not ``lasting``: only for what is under way, so it need not survive a power cut (a template never does) and
        nobody waits for the disk. Raises WrongStateError when the draft has ended, ExistsError when the name is taken in its kind; the draft is the
        caller's to discard then.
        """

    async def discard(self, draft: Draft) -> None:
        """Idempotent; a published draft is left alone."""

    def list(self, kind: SnapshotKind) -> list[Snapshot]:
        """Newest first."""

    def get(self, kind: SnapshotKind, reference: str) -> Snapshot:
        """By full id, name, or unique prefix of an id. Raises NotFoundError, InvalidError (ambiguous)."""

    def find_compatible(self, kind: SnapshotKind, compatibility: Compatibility) -> Snapshot | None: ...

    async def require_intact(self, snapshot: Snapshot) -> None:
        """Compare the files with the manifest: digests at first use and after any change, else size, inode and times.

        Raises RestoreError that names the file.
        """

    async def touch(self, snapshot: Snapshot) -> None:
        """It was used now (for ``trim``)."""

    async def remove(self, snapshot_id: SnapshotId) -> None:
        """Idempotent. VMs that map its RAM go on."""

    async def trim(
        self, kind: SnapshotKind, budget_bytes: int, keep: frozenset[SnapshotId] = frozenset()
    ) -> int:
        """Remove the least recently used until the rest fits; return how many went."""

    def export(self, snapshot: Snapshot) -> AsyncGenerator[bytes]:
        """A tar stream in pieces of at most 1 MiB: manifest first, then the files' data without zeros.

        Of snapshots of sandboxes only (InvalidError). Raises RestoreError when it is not intact. Close it (``aclose``).
        """

    async def import_(
        self,
        stream: AsyncIterator[bytes],
        *,
        name: str = "",
        require: Callable[[Manifest], object] = lambda _: None,
    ) -> Snapshot:
        """The inverse. ``require`` refuses, by raising, a manifest whose source is none, before a file of it is read.

        The stream is hostile: bounded, names checked, digests verified before it appears.

        Raises InvalidError (not such a stream, digest mismatch), ExistsError, ExhaustedError.
        """
