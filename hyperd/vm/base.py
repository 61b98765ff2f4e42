# SPDX-License-Identifier: Apache-2.0
"""The one protocol behind which every hypervisor stands."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from hyperd.model.stats import VmUsage
from hyperd.model.vm import Disk, Nic, SandboxId, SharePort, VmDefinition, VmGone, VmStatus


class Hypervisor(Protocol):
    async def start(self, definition: VmDefinition) -> VmStatus:
        """Create and run a transient VM; return once its CPUs run.

        With ``restore_from`` it goes on where that was saved.
        Raises ExistsError when one of that id exists, InvalidError for a definition that the hypervisor refuses,
        UnavailableError when its process dies at once (evidence: the end of its log) or the saved state cannot be
        restored (RestoreError). Nothing stays behind.
        """

    async def pause(self, sandbox_id: SandboxId) -> None:
        """Stop its CPUs. Idempotent. Raises NotFoundError, UnavailableError.

        What a cancelled caller began has no effect after the next call for this VM but ``destroy``.
        """

    async def resume(self, sandbox_id: SandboxId) -> None:
        """Let its CPUs run. Idempotent, bounded in time. Raises NotFoundError, UnavailableError."""

    async def save(self, sandbox_id: SandboxId, state: Path) -> None:
        """Write what is needed to go on elsewhere to ``state``, which exists and belongs to QEMU's user.

        Pauses the VM first and leaves it paused, also on failure: resume or destroy it.

        The RAM goes in too (QEMU's mapped-ram), unless it is a shared MemoryFile: that holds it already.
        Raises NotFoundError, ExhaustedError (no space: the VM is as it was), UnavailableError. On failure ``state``
        may be half-written: the caller's to remove.
        """

    async def attach_disk(self, sandbox_id: SandboxId, disk: Disk) -> None:
        """Plug it into a VM that runs. Return when the guest has been told of it.

        Raises InvalidError, NotFoundError, UnavailableError (no room for another: HOT_PLUG_DEVICES).
        """

    async def detach_disk(self, sandbox_id: SandboxId, serial: str) -> bool:
        """Whether the VM has no disk of that serial any more, and QEMU its file no longer open. As ``detach_nic``."""

    async def list_plugged(self, sandbox_id: SandboxId) -> list[str]:
        """What was plugged in since it started: serials of disks, tags of shares, taps of NICs.

        Raises NotFoundError, UnavailableError.
        """

    async def attach_share(self, sandbox_id: SandboxId, share: SharePort) -> None:
        """As ``attach_disk``, for a VM with ``shared_memory``. UnavailableError, too, when nobody serves it."""

    async def resize_disk(self, sandbox_id: SandboxId, path: Path, size_bytes: int) -> None:
        """The disk behind which ``path`` is has so many bytes, and the guest is told. Only larger.

        Raises NotFoundError (no such VM or disk), UnavailableError.
        """

    async def attach_nic(self, sandbox_id: SandboxId, nic: Nic) -> None:
        """As ``attach_disk``. One that is on that tap already stays as it is, whatever its MAC."""

    async def detach_nic(self, sandbox_id: SandboxId, tap: str) -> bool:
        """Whether the VM has no NIC on that tap any more.

        One that it was started with stays. Another the guest has to let go of: it is waited for, some seconds.
        Raises NotFoundError, UnavailableError.
        """

    async def replace_disk(self, sandbox_id: SandboxId, disk: Disk) -> None:
        """Put another file behind the disk of the same serial, read-only as that was. The guest is not told.

        For a VM that is paused, and whose guest has nothing in memory of what was there: it goes on believing in the
        size that it saw. Raises InvalidError, NotFoundError (no such VM, no such disk), UnavailableError (QEMU cannot
        open it: the disk is as it was).
        """

    async def destroy(self, sandbox_id: SandboxId) -> None:
        """End the VM at once. Idempotent; returns when its process is gone."""

    async def list_running(self) -> list[VmStatus]:
        """Every VM of ours that exists, those of an earlier daemon included."""

    async def find_running(self, sandbox_id: SandboxId) -> VmStatus | None:
        """The one of ``list_running``, for one question to the hypervisor instead of one for each VM."""

    async def usage(self, sandbox_id: SandboxId) -> VmUsage:
        """What it uses of the host. Raises NotFoundError."""

    def events(self) -> AsyncIterator[VmGone]:
        """One consumer. VMs that went away since the hypervisor was opened."""
