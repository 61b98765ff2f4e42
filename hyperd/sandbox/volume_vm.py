# SPDX-License-Identifier: Apache-2.0
"""A VM that has one volume and nothing else, so that it can be filled without a container.

memory admitted, volume attached -> VM from a template or booted, no network -> identity -> volume mounted
                                 -> one call -> unmounted, synced, guest off -> VM gone, volume detached

It has a sandbox id that no record of a container knows: what a killed hyperd left of it the next one removes.
"""

import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from hyperd.errors import HyperError, InvalidError, UnavailableError
from hyperd.guest.base import Guest
from hyperd.model.container import ContainerRecord, ContainerSpec
from hyperd.model.guest import ContainerId, WriteOptions
from hyperd.model.image import ImageId
from hyperd.model.vm import Disk, DiskFormat, SandboxId
from hyperd.model.volume import Volume, VolumeName
from hyperd.sandbox.errands import Services
from hyperd.sandbox.files_vm import SIZING
from hyperd.sandbox.living_volumes import require_disk
from hyperd.sandbox.run import SYNC_TIMEOUT_S
from hyperd.sandbox.standstill import to_the_end
from hyperd.storage.base import DATA_DIRECTORY

log = logging.getLogger(__name__)

HOLDER = "volume-init"  # who has it meanwhile, as `volume inspect` shows it
SERIAL = "volume0"


class VolumeVms:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._left: set[SandboxId] = set()  # whose VM could not be ended: its volume stays attached

    async def fill(self, name: VolumeName, data: AsyncIterator[bytes], *, keep_owner: bool) -> None:
        """A tar into it; on its disk when this returns. What is in it already stays, or is replaced.

        Raises NotFoundError, WrongStateError (somebody has it), InvalidError (no tar), ExhaustedError (full, or no
        memory), and what bringing up a VM raises.
        """
        sandbox_id = SandboxId(secrets.token_hex(32))
        key = ContainerId(sandbox_id)
        async with self._up(sandbox_id, name) as (guest, volume):
            await guest.open_volume(key, SERIAL, volume.filesystem, DATA_DIRECTORY)
            log.info("volume opened", extra={"volume": name})
            try:
                await guest.write_tree(key, WriteOptions(b"/", keep_owner=keep_owner), data)
            except InvalidError as error:  # of the tar: there is no container that it could be about
                raise InvalidError(
                    error.brief,
                    subject=f"what volume {name} is to be filled with",
                    evidence=error.evidence,
                    hint="a directory, a tar, a URL of a tar or a git repository can be put into it",
                ) from error
            try:
                await guest.delete_container(key)
                await guest.shutdown(SYNC_TIMEOUT_S)
            except HyperError as error:
                raise UnavailableError(
                    "was written to, but perhaps not all of it is on its disk",
                    subject=f"volume {name}",
                    evidence=str(error),
                    hint="write it once more",
                ) from error

    @contextlib.asynccontextmanager
    async def _up(self, sandbox_id: SandboxId, name: VolumeName) -> AsyncIterator[tuple[Guest, Volume]]:
        services = self._services
        runner, volumes = services.runner, services.runner.rooms.volumes
        stack = contextlib.AsyncExitStack()
        try:
            services.ledger.admit(sandbox_id, SIZING)
            stack.callback(services.ledger.release, sandbox_id)
            stack.push_async_callback(self._end, sandbox_id)
            volume = await volumes.lend(sandbox_id, HOLDER, name)
            require_disk(volume, "to be filled")
            disk = Disk(SERIAL, volume.path, DiskFormat.RAW, readonly=False, export=volume.export)
            accelerator = await services.accelerator()
            owner = services.owner_of(sandbox_id)
            record = _record(sandbox_id, name)
            yield await runner.bring_up_bare(record, disk, owner, accelerator, stack), volume
        finally:
            await to_the_end(stack.aclose())

    async def end_left(self) -> None:
        """What could not be ended when it should have, once more."""
        for sandbox_id in list(self._left):
            try:
                await self._end(sandbox_id)
            except HyperError as error:
                log.error("not ended", extra={"id": sandbox_id[:12], "error": str(error)})  # noqa: TRY400

    async def _end(self, sandbox_id: SandboxId) -> None:
        """Its volume is for others when its QEMU has ended, and not before."""
        try:
            await self._services.runner.discard(sandbox_id)
            await self._services.runner.rooms.volumes.release(sandbox_id)
        except BaseException:
            self._left.add(sandbox_id)
            raise
        self._left.discard(sandbox_id)


def _record(sandbox_id: SandboxId, name: VolumeName) -> ContainerRecord:
    """Of no container: what a VM is told from."""
    spec = ContainerSpec(image="", network="none", hostname="volume")
    return ContainerRecord(
        sandbox_id, f"{HOLDER}-{name}"[:200], spec, ImageId(""), (), SIZING, datetime.now(UTC)
    )
