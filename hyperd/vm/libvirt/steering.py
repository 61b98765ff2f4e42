# SPDX-License-Identifier: Apache-2.0
"""What is asked of a VM that runs: to stand still, to be saved, to have other devices. ``states`` puts it in order."""

from pathlib import Path

from hyperd.model.vm import Disk, Nic, SandboxId, SharePort
from hyperd.vm.libvirt.states import VmStates


class Steering:
    """That part of ``Hypervisor``."""

    _states: VmStates

    async def pause(self, sandbox_id: SandboxId) -> None:
        await self._states.pause(sandbox_id)

    async def resume(self, sandbox_id: SandboxId) -> None:
        """As ``Hypervisor.resume``. A save under way that nobody waits for any more is broken off."""
        await self._states.resume(sandbox_id)

    async def save(self, sandbox_id: SandboxId, state: Path) -> None:
        """As ``Hypervisor.save``. A cancelled caller stops waiting; ``resume`` or ``destroy`` ends the writing."""
        await self._states.save(sandbox_id, state)

    async def attach_disk(self, sandbox_id: SandboxId, disk: Disk) -> None:
        await self._states.attach_disk(sandbox_id, disk)

    async def detach_disk(self, sandbox_id: SandboxId, serial: str) -> bool:
        return await self._states.detach_disk(sandbox_id, serial)

    async def list_plugged(self, sandbox_id: SandboxId) -> list[str]:
        return await self._states.list_plugged(sandbox_id)

    async def attach_share(self, sandbox_id: SandboxId, share: SharePort) -> None:
        await self._states.attach_share(sandbox_id, share)

    async def resize_disk(self, sandbox_id: SandboxId, path: Path, size_bytes: int) -> None:
        await self._states.resize_disk(sandbox_id, path, size_bytes)

    async def attach_nic(self, sandbox_id: SandboxId, nic: Nic) -> None:
        await self._states.attach_nic(sandbox_id, nic)

    async def detach_nic(self, sandbox_id: SandboxId, tap: str) -> bool:
        return await self._states.detach_nic(sandbox_id, tap)

    async def replace_disk(self, sandbox_id: SandboxId, disk: Disk) -> None:
        await self._states.replace_disk(sandbox_id, disk)
