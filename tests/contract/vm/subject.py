# SPDX-License-Identifier: Apache-2.0
"""A hypervisor under test, the fake or the real one, and what is needed to bring it into trouble."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hyperd.errors import ExhaustedError, UnavailableError
from hyperd.model.vm import Disk, SandboxId, VmDefinition, VmStatus
from hyperd.vm import Hypervisor
from tests.contract.vm.lab import Lab, counted, eventually
from tests.fakes.hypervisor import FakeHypervisor, qemu_died

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2


@dataclass
class Subject:
    hypervisor: Hypervisor
    lab: Lab

    def broken(self) -> VmDefinition:
        """A VM whose process dies at once."""
        if isinstance(self.hypervisor, FakeHypervisor):
            self.hypervisor.fail_next_start = qemu_died()
        return self.lab.define(kernel=self.lab.path / "absent")

    async def start_and_end(self, sandbox_id: SandboxId, guest: str) -> None:
        await self.hypervisor.start(self.lab.define(guest, sandbox_id))
        if isinstance(self.hypervisor, FakeHypervisor):
            end = self.hypervisor.crash if guest == "panic" else self.hypervisor.shut_down
            end(sandbox_id)

    def absent(self, disk: Disk) -> Disk:
        """As that disk, with a file that cannot be opened."""
        if isinstance(self.hypervisor, FakeHypervisor):
            self.hypervisor.fail_next_replace = UnavailableError("QEMU refuses", evidence="No such file")
        return replace(disk, path=self.lab.path / "absent")

    def has_open(self, status: VmStatus, path: Path) -> bool:
        """Whether the VM has that file, be it not the only one."""
        if isinstance(self.hypervisor, FakeHypervisor):
            return path in self.hypervisor.disks(status.sandbox_id)
        return any(fd.readlink() == path for fd in Path(f"/proc/{status.pid}/fd").iterdir())

    async def wait_counting(self, definition: VmDefinition) -> None:
        """Until the guest has filled its memory and written its first line."""
        if not isinstance(self.hypervisor, FakeHypervisor):
            await eventually(lambda: bool(counted(definition)))

    @contextlib.contextmanager
    def full_disk(self, size_bytes: int) -> Iterator[Path]:
        """A directory in which no more than ``size_bytes`` can be written."""
        path = self.lab.path / "small"
        path.mkdir()
        if isinstance(self.hypervisor, FakeHypervisor):
            self.hypervisor.fail_next_save = ExhaustedError(
                "cannot be saved", evidence="No space left on device"
            )
            yield path
            return
        if _libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, f"size={size_bytes},mode=755".encode()):
            raise OSError(ctypes.get_errno(), "mount")
        try:
            yield path
        finally:
            _libc.umount2(os.fsencode(path), _MNT_DETACH)
