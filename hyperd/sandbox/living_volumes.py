# SPDX-License-Identifier: Apache-2.0
"""What is done to a volume that a guest may be writing to: it grows, and it is copied.

nobody writes to it       its disk alone
a container that runs     its disk, then the guest is asked: to take the room, or to stand still meanwhile
one that is paused        copied as it stands; it does not grow
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from hyperd.errors import (
    HyperError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.guest.base import Guest
from hyperd.model.vm import SandboxId
from hyperd.model.volume import (
    Consistency,
    Volume,
    VolumeName,
    VolumeSnapshot,
    VolumeView,
)
from hyperd.sandbox import machine, mount_sources
from hyperd.sandbox.driver import SandboxDriver
from hyperd.sandbox.rooms import Rooms
from hyperd.sandbox.standstill import to_the_end
from hyperd.sandbox.tenure import Tenure

log = logging.getLogger(__name__)

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Settle = Callable[[], Awaitable[Consistency]]

STILL_S = 30.0  # a guest's writers wait no longer, whoever is killed meanwhile


class Take(Protocol[R_co]):
    """Makes something of a volume's disk, as ``VolumeSnapshots.take`` does."""

    def __call__(self, volume: Volume, settle: Settle, *, only_shared: bool = False) -> Awaitable[R_co]: ...


@dataclass(frozen=True, slots=True)
class _Writer:
    """A container whose VM has the volume for writing."""

    driver: SandboxDriver
    serial: str  # of its disk


class LivingVolumes:
    def __init__(self, rooms: Rooms, find: Callable[[SandboxId], SandboxDriver | None]) -> None:
        self._rooms = rooms
        self._find = find
        self._still: set[VolumeName] = set()  # whose writers wait, or are about to

    async def resize(self, name: VolumeName, size_bytes: int) -> VolumeView:
        """Only larger. What is cut short is done by the same call again, the file system's part by the next mount, too.

        Raises NotFoundError, InvalidError (smaller), WrongStateError (paused), ExhaustedError.
        """
        view = await self._rooms.volumes.get(name)
        require_disk(view.volume, "to grow")
        writer = self._writer_of(view)
        if writer is not None and isinstance(writer.driver.state, machine.Paused):
            raise WrongStateError(
                f"is in the hands of {writer.driver.subject}, which is paused",
                subject=f"volume {name}",
                hint=f"`hyper unpause {writer.driver.record.name}` first",
            )
        volume = await self._rooms.volumes.grow(name, size_bytes)
        # Again: whoever came in between found the file of either size.
        writer = self._writer_of(await self._rooms.volumes.get(name))
        if writer is not None:
            await self._grow_in(writer, volume)
        return await self._rooms.volumes.get(name)

    async def _grow_in(self, writer: _Writer, volume: Volume) -> None:
        await writer.driver.wait_moving()
        tenure = await writer.driver.find_tenure()
        if tenure is None:
            return
        sandbox_id = writer.driver.record.sandbox_id
        try:
            await self._rooms.hypervisor.resize_disk(sandbox_id, volume.path, volume.size_bytes)
            await tenure.live.guest.grow_volume(writer.serial, volume.size_bytes)
        except HyperError as error:
            if tenure.is_ending:
                return
            raise type(error)(
                f"its disk has {volume.size_bytes >> 20} MiB now, its file system not yet: {error.brief}",
                subject=f"volume {volume.name}",
                evidence=error.evidence,
                hint=f"the same command again, or `hyper restart {writer.driver.record.name}`",
            ) from error

    async def snapshot(self, name: VolumeName, title: str) -> VolumeSnapshot:
        """Raises NotFoundError, ExistsError (``title``), ExhaustedError, WrongStateError, UnavailableError."""

        async def take(volume: Volume, settle: Settle, *, only_shared: bool = False) -> VolumeSnapshot:
            snapshots = self._rooms.volumes.snapshots
            return await snapshots.take(volume, title, settle, only_shared=only_shared)

        return await self._copied(name, take)

    @contextlib.asynccontextmanager
    async def exported(self, name: VolumeName) -> AsyncIterator[AsyncIterator[bytes]]:
        """The stream of a copy that goes with the block. Raises as ``snapshot``."""
        async with contextlib.AsyncExitStack() as stack:

            async def take(
                volume: Volume, settle: Settle, *, only_shared: bool = False
            ) -> AsyncIterator[bytes]:
                streaming = self._rooms.volumes.snapshots.stream(volume, settle, only_shared=only_shared)
                return await stack.enter_async_context(streaming)

            yield await self._copied(name, take)

    async def _copied(self, name: VolumeName, take: Take[R]) -> R:
        async with self._rooms.volumes.copying(name) as view:
            require_disk(view.volume, "to take a snapshot of")
            if view.volume.server:
                raise UnsupportedError(
                    f"is a disk of {view.volume.server}'s",
                    subject=f"volume {name}",
                    hint="copies of it are its server's to make",
                )
            writer = self._writer_of(view)
            if writer is None:
                return await take(view.volume, _detached)
            if isinstance(writer.driver.state, machine.Paused):
                return await self._copied_paused(writer.driver, view.volume, take)
            return await self._copied_running(writer, view.volume, take)

    async def _copied_paused(self, driver: SandboxDriver, volume: Volume, take: Take[R]) -> R:
        generation = driver.generation

        async def settle() -> Consistency:
            if driver.generation != generation:
                raise WrongStateError(
                    f"{driver.subject} went on meanwhile", subject=f"volume {volume.name}", hint="once more"
                )
            return Consistency.CRASH

        return await take(volume, settle)

    async def _copied_running(self, writer: _Writer, volume: Volume, take: Take[R]) -> R:
        await writer.driver.wait_moving()
        tenure = await writer.driver.find_tenure()
        if tenure is None:
            subject, holder = f"volume {volume.name}", writer.driver.subject
            if writer.driver.files.are_there:
                brief = f"files of {holder} are being read or written"
                raise WrongStateError(brief, subject=subject, hint="try again when that has ended")
            raise WrongStateError(f"{holder} has ended meanwhile", subject=subject, hint="once more")
        try:
            async with self._standing_still(tenure.live.guest, writer.serial, volume) as settle:
                return await take(volume, settle)
        except _NotStillError as error:
            return await self._copied_at_once(tenure, volume, take, error.cause)

    @contextlib.asynccontextmanager
    async def _standing_still(self, guest: Guest, serial: str, volume: Volume) -> AsyncIterator[Settle]:
        """Within, its writers wait. Raises _NotStillError, WrongStateError (they wait for another copy already)."""
        if volume.name in self._still:
            raise WrongStateError("is being copied", subject=f"volume {volume.name}", hint="try again soon")
        self._still.add(volume.name)
        is_ours = True
        try:
            try:
                await guest.freeze_volume(serial, STILL_S)
            except WrongStateError:  # it stands still for somebody else, who will let it go on
                is_ours = False
                raise
            except HyperError as error:
                raise _NotStillError(error) from error
            deadline = asyncio.timeout(STILL_S)  # a copy that takes longer is worth nothing

            async def settle() -> Consistency:
                deadline.reschedule(None)
                if not await guest.thaw_volume(serial):
                    raise _too_slow(volume)
                return Consistency.FROZEN

            try:
                async with deadline:
                    yield settle
            except TimeoutError as error:
                raise _too_slow(volume) from error
        finally:
            try:  # also for who hung up while it was asked to stand still: the guest does so all the same
                if is_ours:
                    await to_the_end(_let_go(guest, serial))
            finally:
                self._still.discard(volume.name)

    async def _copied_at_once(self, tenure: Tenure, volume: Volume, take: Take[R], cause: HyperError) -> R:
        """A guest that does not stand still: one moment of its disk, where the host can take that."""
        try:
            return await take(volume, _crashed, only_shared=True)
        except UnsupportedError as error:
            if tenure.is_ending:
                raise WrongStateError(
                    "its container has ended meanwhile", subject=f"volume {volume.name}", hint="once more"
                ) from cause
            raise UnavailableError(
                "its guest does not stand still for a copy",
                subject=f"volume {volume.name}",
                evidence=f"{cause}\n{error}",
                hint="`hyper pause` its container first: that gives a copy as after a power cut",
            ) from cause

    def _writer_of(self, view: VolumeView) -> _Writer | None:
        """Raises WrongStateError when it is nobody's that can be asked."""
        user = next((user for user in view.users if user.attached and not user.readonly), None)
        if user is None:
            return None
        name = view.volume.name
        driver = self._find(user.sandbox_id)
        if driver is None:
            brief = "is being filled" if user.lent else f"is in use by {user.name}"
            hint = "try again when that has ended"
            raise WrongStateError(brief, subject=f"volume {name}", hint=hint)
        return _Writer(driver, mount_sources.serials_of(driver.record.spec.mounts)[name])


class _NotStillError(Exception):
    """A guest does not stand still: ``cause`` says why."""

    def __init__(self, cause: HyperError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def require_disk(volume: Volume, what: str) -> None:
    """Raises UnsupportedError for one that is shared."""
    if volume.is_shared:
        hint = f"it is a directory of the host's, {volume.path}: fill, copy or bound that"
        raise UnsupportedError(
            f"is shared, and has no disk {what}", subject=f"volume {volume.name}", hint=hint
        )


async def _detached() -> Consistency:
    return Consistency.DETACHED


async def _crashed() -> Consistency:
    return Consistency.CRASH


async def _let_go(guest: Guest, serial: str) -> None:
    try:
        await guest.thaw_volume(serial)
    except HyperError as error:
        log.warning("volume goes on by itself", extra={"serial": serial, "error": str(error)})


def _too_slow(volume: Volume) -> UnavailableError:
    return UnavailableError(
        f"was not copied within the {STILL_S:g} s that a guest's writers wait",
        subject=f"volume {volume.name}",
        hint="stop or pause the container first, or keep hyperd's state on XFS or btrfs",
    )
