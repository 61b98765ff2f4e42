# SPDX-License-Identifier: Apache-2.0
"""Bytes for guests: the writable disk of a sandbox, and volumes."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from hyperd.model.share import BrokenShare, Share, ShareRequest
from hyperd.model.vm import SandboxId, SharePort
from hyperd.model.volume import (
    BrokenVolume,
    Consistency,
    Volume,
    VolumeName,
    VolumeRequest,
    VolumeSnapshot,
    VolumeSnapshotId,
    VolumeView,
)

DATA_DIRECTORY = "data"  # of a volume's file system: what a container sees of it
Recording = Callable[[sqlite3.Connection], None]  # for a transaction of the caller's


class Storage(Protocol):
    async def prepare(self) -> None:
        """Make the preformatted ext4 once. Raises ExhaustedError, UnavailableError (no mkfs.ext4)."""

    async def create_writable(self, sandbox_id: SandboxId, size_bytes: int = 0) -> Path:
        """A sparse copy (reflink where the filesystem can) of the preformatted ext4. Existing: returned as it is.

        ``size_bytes``: of another size than the room's own. Raises ExhaustedError when the state directory is full,
        InvalidError; nothing stays behind.
        """

    async def lend_writable(self, sandbox_id: SandboxId, to: SandboxId) -> Path:
        """The sandbox's disk is for the QEMU of another to open, until ``create_writable`` gives it to its own.

        Raises NotFoundError.
        """

    async def adopt_writable(self, sandbox_id: SandboxId, source: Path) -> Path:
        """The sandbox's disk becomes a copy of ``source`` (reflink, else its data alone), whatever it was before.

        Replaced at once or not at all, and never after the call has ended, cancelled or not.
        Raises NotFoundError (no such source), ExhaustedError.
        """

    async def stage_writable(self, sandbox_id: SandboxId, source: Path) -> Path:
        """A copy of ``source`` beside the sandbox's disk, which stays as it is; one that was there before goes.

        Raises NotFoundError (no such source), ExhaustedError.
        """

    async def adopt_staged(self, sandbox_id: SandboxId) -> Path:
        """What was staged is the sandbox's disk now, at once, also when a VM has it open. Raises NotFoundError."""

    async def discard_staged(self, sandbox_id: SandboxId) -> None:
        """Idempotent."""

    async def discard_all_staged(self, but: Collection[SandboxId]) -> None:
        """What a killed hyperd left that it had staged, or half made, of others than those. Before any VM starts."""

    async def writable_path(self, sandbox_id: SandboxId) -> Path:
        """Raises NotFoundError."""

    async def remove(self, sandbox_id: SandboxId) -> None:
        """Idempotent."""

    async def list_sandboxes(self) -> set[SandboxId]:
        """Who owns a writable disk, for cleaning up after a kill."""


class Shares(Protocol):
    async def require_possible(self, requests: Sequence[ShareRequest]) -> None:
        """Of a container in the making: nothing is made for it yet. Raises as ``find``."""

    async def find(self, requests: Sequence[ShareRequest]) -> tuple[Share, ...]:
        """What is there; a missing directory is made where that is asked for.

        Raises InvalidError (nothing is there), UnsupportedError (neither file nor directory), DeniedError (not to be
        shared), UnavailableError (nobody can serve it).
        """

    async def serve(self, sandbox_id: SandboxId, shares: Sequence[Share]) -> tuple[SharePort, ...]:
        """From now on, for one QEMU to connect to; what the sandbox had before is ended.

        Returns before it is certain that they can be served: a QEMU that finds they are not fails. Outlives this
        process. Raises UnavailableError, ExhaustedError; nothing stays behind.
        """

    async def require_served(self, sandbox_id: SandboxId) -> None:
        """Raises UnavailableError, with its words, when one of them complained and ended: why its QEMU failed."""

    async def wait_broken(self, sandbox_id: SandboxId, known: Collection[str] = ()) -> BrokenShare:
        """Return when one of them, but of those tags, is not served any more, and which: it hangs its guest's users.

        Raises UnavailableError when it cannot be told who serves one.
        """

    async def end(self, sandbox_id: SandboxId) -> None:
        """Its VM is no more. Idempotent."""

    async def keep_only(self, running: Collection[SandboxId]) -> None:
        """What a killed hyperd left of VMs that are not ``running`` ends."""

    async def tidy(self) -> None:
        """For now and then: a guest may have whoever serves it complain without end."""


class VolumeSnapshots(Protocol):
    async def take(
        self,
        volume: Volume,
        name: str,
        settle: Callable[[], Awaitable[Consistency]],
        *,
        only_shared: bool = False,
    ) -> VolumeSnapshot:
        """Copy its disk, within ``Volumes.copying``. ``settle``, called when that is done, says what it is worth.

        What it raises passes, and nothing stays. ``only_shared``: of one moment whoever writes, or UnsupportedError.
        Raises ExistsError (its name), InvalidError, ExhaustedError.
        """

    def stream(
        self,
        volume: Volume,
        settle: Callable[[], Awaitable[Consistency]],
        *,
        only_shared: bool = False,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """As ``take``, but the copy is nobody's and goes with the block. Its stream: see volume_archive.py."""

    async def list(self) -> list[VolumeSnapshot]:
        """Newest first."""

    async def names(self) -> dict[VolumeSnapshotId, str]:
        """Of all; "" of one that has none."""

    async def get(self, reference: str) -> VolumeSnapshot:
        """By full id, name, or unique prefix of an id. Raises NotFoundError, InvalidError (ambiguous)."""

    async def remove(self, reference: str) -> VolumeSnapshotId:
        """Volumes that were made from it stay. Raises as ``get``."""

    async def require_free(self, name: str) -> None:
        """Raises ExistsError, InvalidError."""


class Volumes(Protocol):
    @property
    def snapshots(self) -> VolumeSnapshots: ...

    async def create(self, request: VolumeRequest) -> Volume:
        """One that is there and as asked for is returned.

        Raises ExistsError when it differs, InvalidError, UnsupportedError, ExhaustedError, UnavailableError (mkfs).
        """

    async def list(self) -> list[VolumeView]:
        """By name."""

    async def get(self, name: VolumeName) -> VolumeView:
        """Raises NotFoundError."""

    async def attached(self) -> set[SandboxId]:
        """Who has any attached."""

    async def remove(self, name: VolumeName) -> bool:
        """Whether there was one. Raises WrongStateError while a container has it, running or not."""

    async def grow(self, name: VolumeName, size_bytes: int) -> Volume:
        """Its disk, not its file system. As large already: nothing is done.

        Raises NotFoundError, InvalidError (smaller), ExhaustedError.
        """

    async def import_(self, name: VolumeName, labels: dict[str, str], stream: AsyncIterator[bytes]) -> Volume:
        """One of what ``VolumeSnapshots.stream`` gave.

        Raises ExistsError, InvalidError (no such stream), ExhaustedError.
        """

    async def lend(self, sandbox_id: SandboxId, holder: str, name: VolumeName) -> Volume:
        """To a VM that is no container's, for writing; until ``release``. Raises NotFoundError, and as ``attach``."""

    def copying(self, name: VolumeName) -> AbstractAsyncContextManager[VolumeView]:
        """Within, no VM gets it that has not got it, and it is not removed: they wait. Raises NotFoundError."""

    def providing(
        self,
        sandbox_id: SandboxId,
        holder: str,
        requests: Sequence[VolumeRequest],
        uses: Mapping[VolumeName, bool],
    ) -> AbstractAsyncContextManager[Recording]:
        """For a container in the making: within, the volumes of ``requests`` are there, and with what it yields the
        caller records (lasting) that the container has those of ``uses`` (volume -> read-only), or fails.

        When the block fails nothing stays of what it made. Raises as ``create``; the recording NotFoundError.
        """

    async def release(self, sandbox_id: SandboxId) -> None:
        """The container is no more: it has no volumes. Idempotent."""

    async def attach(
        self, sandbox_id: SandboxId, only: Collection[VolumeName] | None = None
    ) -> dict[VolumeName, Volume]:
        """All that the container has, or ``only`` those, for its VM: in its QEMU's hands from here on. Idempotent.

        Raises WrongStateError that names the container which has one already (a volume is written to by one VM at a
        time, or read by many), ExhaustedError.
        """

    async def wait_broken(self, sandbox_id: SandboxId) -> BrokenVolume:
        """Return when nobody speaks to the server of one that it has attached any more, and which.

        Raises UnavailableError when that cannot be told.
        """

    async def detach(self, sandbox_id: SandboxId) -> None:
        """Its VM is no more. Idempotent."""

    async def keep_only(self, known: Collection[SandboxId], running: Collection[SandboxId]) -> None:
        """What a killed hyperd left of containers that are not ``known``, and of VMs that are not ``running``, goes."""
