# SPDX-License-Identifier: Apache-2.0
"""What callers do with a container's files. Bytes go on as they come; a caller who is slow slows the guest.

Running                  in its own VM, beside its processes
Created, Exited, Failed  in a VM of their own, see files_vm.py
Starting                 waits until it runs, or does not
any other                refused
"""

import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import replace

from hyperd.errors import HyperError, InvalidError, UnavailableError, WrongStateError
from hyperd.guest.base import Guest
from hyperd.model.guest import Change, ContainerId, PathStat, WriteOptions
from hyperd.model.image import Image, NewImage
from hyperd.model.volume import Mount, MountType, VolumeName
from hyperd.sandbox import machine, mount_sources, mounts, preconditions
from hyperd.sandbox.driver import SandboxDriver
from hyperd.sandbox.effective import config_of
from hyperd.sandbox.identity import container_id_of
from hyperd.sandbox.tenure import Tenure
from hyperd.storage.base import DATA_DIRECTORY

MAX_PATH_BYTES = 4096
TELL_EVERY_BYTES = 1 << 20


class ContainerFiles:
    """All raise WrongStateError in a state in which files cannot be open, and when one comes in the middle."""

    def __init__(self, driver: SandboxDriver) -> None:
        self._driver = driver
        self._record = driver.record
        self._container_id = container_id_of(driver.record)

    async def commit(self, new: NewImage, *, pause: bool, tell: Callable[[int], Awaitable[None]]) -> Image:
        """Its image with one more layer: what it changed. ``tell`` hears how many bytes of that there are so far.

        ``pause``: its processes stand still until the layer is read. The image has the container's configuration, not
        its image's. Raises what ``ImageStore.commit`` raises.
        """
        images = self._driver.services.runner.rooms.images
        base = await images.get(self._record.image_id)
        config = config_of(self._record, base.config)
        new = replace(new, overrides=config, created_by=" ".join(config.cmd))
        async with (
            self._opened() as guest,
            contextlib.aclosing(guest.read_layer(self._container_id, freeze=pause)) as pieces,
            contextlib.aclosing(_counted(pieces, tell)) as layer,
        ):
            return await images.commit(self._record.image_id, layer, new)

    async def list_changes(self, respond: Callable[[Change], Awaitable[None]]) -> None:
        async with (
            self._opened() as guest,
            contextlib.aclosing(guest.list_changes(self._container_id)) as changes,
        ):
            async for change in changes:
                await respond(change)

    async def export(self, respond: Callable[[bytes], Awaitable[None]]) -> None:
        """Its whole root file system as a tar."""
        async with (
            self._opened() as guest,
            contextlib.aclosing(guest.read_root(self._container_id)) as pieces,
        ):
            async for piece in pieces:
                await respond(piece)

    async def read(
        self,
        path: bytes,
        respond: Callable[[PathStat | bytes], Awaitable[None]],
        *,
        follow_link: bool = False,
    ) -> None:
        """First the PathStat, then a tar. Raises NotFoundError, InvalidError.

        UnsupportedError: in a mount that is not there while the container does not run.
        """
        async with (
            self._opened_at(absolute(path)) as (guest, key, inner),
            contextlib.aclosing(guest.read_tree(key, inner, follow_link=follow_link)) as items,
        ):
            async for item in items:
                await respond(item)

    async def write(self, options: WriteOptions, data: AsyncIterator[bytes]) -> None:
        """A tar into a directory. Of one that does not run it is on the disk when this returns.

        Raises NotFoundError, InvalidError (no tar, no directory), ExhaustedError (full).
        """
        async with self._opened_at(absolute(options.path), writes=True) as (guest, key, path):
            await guest.write_tree(key, replace(options, path=path), data)

    @contextlib.asynccontextmanager
    async def _opened_at(
        self, path: bytes, *, writes: bool = False
    ) -> AsyncIterator[tuple[Guest, ContainerId, bytes]]:
        """As what and where the guest has the path. One that runs sees its mounts itself."""
        found = mounts.find_at(self._record, path)
        runs = await self._find_tenure() is not None
        if not runs:
            mounts.require_lasting(self._record, path, found)
        if found is None or runs:
            async with self._opened(writes=writes) as guest:
                yield guest, self._container_id, path
            return
        mount, inner = found
        filesystem = await self._require_disk(mount, path)
        if writes and mount.readonly:
            raise WrongStateError(f"is mounted read-only at {mount.destination}", subject=mount.source)
        async with self._opened(writes=writes, disks=(replace(mount, no_copy=True),)) as guest:
            key = ContainerId(secrets.token_hex(32))
            (serial,) = mount_sources.serials_of((mount,)).values()
            await guest.open_volume(key, serial, filesystem, DATA_DIRECTORY, readonly=mount.readonly)
            try:
                yield guest, key, inner
            except HyperError:
                await guest.delete_container(key)
                raise
            await guest.delete_container(key)  # unmounted: it needs no journal played

    async def _require_disk(self, mount: Mount, path: bytes) -> str:
        """What is on it. Raises UnsupportedError where it is no disk, NotFoundError."""
        filesystem = ""
        if mount.type is MountType.VOLUME:
            volumes = self._driver.services.runner.rooms.volumes
            volume = (await volumes.get(VolumeName(mount.source))).volume
            filesystem = "" if volume.is_shared else volume.filesystem
        mounts.require_disk(self._record, mount, path, is_disk=bool(filesystem))
        return filesystem

    @contextlib.asynccontextmanager
    async def _opened(self, *, writes: bool = False, disks: tuple[Mount, ...] = ()) -> AsyncIterator[Guest]:
        """``disks``: mounts that are there, too, of one that does not run; then it is about them alone."""
        tenure = await self._find_tenure()
        if tenure is not None and disks:
            raise WrongStateError("was started meanwhile", subject=self._driver.subject, hint="try again")
        calls = self._driver.files
        # From the state's being known to here nothing was awaited: nothing has begun that excludes this.
        async with calls.call() as call:
            if tenure is None:
                if writes and self._record.spec.readonly_root and not disks:
                    raise WrongStateError("its root file system is read-only", subject=self._driver.subject)
                async with calls.turn, self._driver.files_vm(disks).up(lasting=writes) as guest:
                    try:
                        yield guest
                    finally:
                        call.is_ending = True
                return
            try:
                yield tenure.live.guest
            except UnavailableError as error:
                if not tenure.is_ending:
                    raise
                raise WrongStateError("has ended meanwhile", subject=self._driver.subject) from error

    async def _find_tenure(self) -> Tenure | None:
        """None when it does not run."""
        driver = self._driver
        driver.require_whole()
        while True:
            await driver.wait_moving()
            match driver.state:
                case machine.Created() | machine.Exited() | machine.Failed():
                    driver.require_readable()
                    return None
                case machine.Running() if driver.tenure is not None:
                    if driver.tenure.is_ending:
                        raise WrongStateError("has ended meanwhile", subject=driver.subject)
                    return driver.tenure
                case machine.Running() | machine.Starting():
                    await driver.find_tenure()
                case state:
                    preconditions.require_openable(state, self._record.name)


def absolute(path: bytes) -> bytes:
    """Raises InvalidError."""
    if not path or b"\0" in path or len(path) > MAX_PATH_BYTES:
        raise InvalidError(
            f"a path has 1 to {MAX_PATH_BYTES} bytes, none of them zero", subject=repr(path[:100])
        )
    return path if path.startswith(b"/") else b"/" + path


async def _counted(
    pieces: AsyncIterator[bytes], tell: Callable[[int], Awaitable[None]]
) -> AsyncGenerator[bytes, None]:
    done = told = 0
    async for piece in pieces:
        yield piece
        done += len(piece)
        if done - told >= TELL_EVERY_BYTES:
            await tell(done)
            told = done
    await tell(done)
