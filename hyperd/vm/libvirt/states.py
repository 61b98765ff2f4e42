# SPDX-License-Identifier: Apache-2.0
"""Pause, resume and save of one bridge's VMs: ``saving``'s calls, put in order and given deadlines.

The waiting is done on the loop. A thread is held for single questions to QEMU, never for the time that a disk takes.
"""

import asyncio
from pathlib import Path

import libvirt

from hyperd.errors import UnavailableError
from hyperd.model.vm import SandboxId
from hyperd.vm.libvirt import saving
from hyperd.vm.libvirt.bridge import LibvirtBridge
from hyperd.vm.libvirt.errors import errors_of_existing
from hyperd.vm.libvirt.settings import LibvirtSettings
from hyperd.vm.libvirt.xml import domain_name


class VmStates:
    def __init__(self, bridge: LibvirtBridge, settings: LibvirtSettings) -> None:
        self._bridge = bridge
        self._settings = settings

    async def pause(self, sandbox_id: SandboxId) -> None:
        with errors_of_existing(domain_name(sandbox_id)):
            await self._bridge.call(lambda connection: saving.pause(connection, sandbox_id))

    async def resume(self, sandbox_id: SandboxId) -> None:
        """A save under way that nobody waits for any more is broken off."""
        with errors_of_existing(domain_name(sandbox_id)):
            await self._bridge.until(lambda connection: saving.resume(connection, sandbox_id))

    async def save(self, sandbox_id: SandboxId, state: Path) -> None:
        """A cancelled caller stops waiting; ``resume`` or ``destroy`` ends the writing."""
        name = domain_name(sandbox_id)
        with errors_of_existing(name):
            limit = self._settings.save_bytes_per_s
            await self._bridge.call(
                lambda connection: saving.begin_save(connection, sandbox_id, state, bytes_per_s=limit)
            )
            try:
                async with asyncio.timeout(self._settings.save_timeout_s):
                    await self._wait_saved(sandbox_id)
            except TimeoutError as error:
                await self._cancel_save(sandbox_id)
                brief = f"was not saved in {self._settings.save_timeout_s:g} s"
                raise UnavailableError(brief, subject=name, hint="is the disk too slow?") from error

    async def _wait_saved(self, sandbox_id: SandboxId) -> None:
        """Raises UnavailableError when QEMU writes nothing any more."""
        now = asyncio.get_running_loop().time
        seen, seen_at = -1, now()

        def saved(connection: libvirt.virConnect) -> bool:
            nonlocal seen, seen_at
            progress = saving.progress_of_save(connection, sandbox_id)
            if progress.written_bytes != seen:
                seen, seen_at = progress.written_bytes, now()
            elif now() - seen_at > self._settings.save_stall_s:
                saving.cancel_save(connection, sandbox_id)
                brief = f"nothing was written for {self._settings.save_stall_s:g} s"
                raise UnavailableError(brief, subject=domain_name(sandbox_id))
            return progress.done

        await self._bridge.until(saved)

    async def _cancel_save(self, sandbox_id: SandboxId) -> None:
        await self._bridge.call(lambda connection: saving.cancel_save(connection, sandbox_id))
