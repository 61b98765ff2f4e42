# SPDX-License-Identifier: Apache-2.0
"""A directory with guests to start and a look at what is left of them."""

import asyncio
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hyperd.model.vm import Accelerator, Channel, MemoryFile, SandboxId, VmDefinition
from hyperd.vm.libvirt import LibvirtSettings
from tests.contract.vm import tiny_guest

GUESTS = {
    "halt": tiny_guest.say(b"hello\n") + tiny_guest.HALT,
    "power-off": tiny_guest.POWER_OFF,
    "reboot": tiny_guest.REBOOT,
    "count": tiny_guest.count(),
    "fill": tiny_guest.count(fill_mib=24),
    "panic": tiny_guest.say(b"oops\n") + tiny_guest.panic(),
}


def new_id() -> SandboxId:
    return SandboxId(secrets.token_hex(32))


class Lab:
    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.settings = LibvirtSettings(root=root, translation_cache_mib=32)
        self.was_cut_off = False  # a process that had libvirt open here was killed
        for name, code in GUESTS.items():
            (path / name).write_bytes(tiny_guest.render_kernel(code))

    @property
    def console(self) -> Path:
        return self.path / "console.log"

    def define(
        self, guest: str = "halt", sandbox_id: SandboxId | None = None, **changes: Any
    ) -> VmDefinition:
        fields: dict[str, Any] = {
            "sandbox_id": sandbox_id or new_id(),
            "vcpus": 1,
            "memory_mib": 64,
            "accelerator": Accelerator.TCG,
            "kernel": self.path / guest,
            "initramfs": self.path / guest,  # any file: these guests do not look at it
            "cmdline": "quiet",
            "console_log": self.console,
            "channels": (Channel("hyper.control", self.path / "control"),),
        }
        return VmDefinition(**{**fields, **changes})

    def define_source(
        self, sandbox_id: SandboxId | None = None, *, shared: bool, guest: str = "count", **changes: Any
    ) -> VmDefinition:
        """A VM to be saved, counting on a console of its own; ``shared``: its RAM is a file."""
        memory = (
            MemoryFile(self.qemu_file(f"ram-{secrets.token_hex(4)}", 64), shared=True) if shared else None
        )
        return self.define_counting(guest, sandbox_id, **{"memory_file": memory, **changes})

    def define_clone(self, source: VmDefinition, state: Path, **changes: Any) -> VmDefinition:
        """Maps what its source has in a file, or reads it from ``state``."""
        memory = source.memory_file and MemoryFile(source.memory_file.path, shared=False)
        return self.define_counting(memory_file=memory, restore_from=state, **changes)

    def define_counting(
        self, guest: str = "count", sandbox_id: SandboxId | None = None, **changes: Any
    ) -> VmDefinition:
        fields: dict[str, Any] = {
            "console_log": self.path / f"console-{secrets.token_hex(4)}",
            "channels": (),
            "free_page_reporting": False,
        }
        return self.define(guest, sandbox_id, **{**fields, **changes})

    def qemu_file(self, name: str, size_mib: int = 0, uid: int | None = None) -> Path:
        """For QEMU alone to write, as whoever makes such files does."""
        path = self.path / name
        path.touch(mode=0o600)
        os.truncate(path, size_mib * 1024 * 1024)
        if os.getuid() == 0:
            os.chown(path, pwd.getpwnam("libvirt-qemu").pw_uid if uid is None else uid, -1)
        return path

    def qemu_pids(self) -> list[int]:
        """Every QEMU with a guest of this laboratory, however it came to be."""
        return self._pids_of(b"guest=")

    def probe_pids(self) -> list[int]:
        """Those that libvirt only asks what they can."""
        return self._pids_of(b"/qmp.pid")

    def _pids_of(self, word: bytes) -> list[int]:
        pids = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command_line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                is_qemu = b"qemu-system" in command_line.split(b"\0")[0]
                if is_qemu and os.fsencode(self.path) in command_line and word in command_line:
                    pids.append(int(entry.name))
        return pids

    def require_nothing_left(self) -> None:
        pids, probes = self.qemu_pids(), self.probe_pids()
        for pid in (*pids, *probes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not pids, "QEMU processes were left behind"
        # One that a killed process had begun is ended by the next (test_libvirt_probes.py), if there is a next one.
        assert not probes or self.was_cut_off, "QEMU processes that libvirt asked were left behind"
        assert not list(self.settings.log_dir.glob("hyper-*")), "logs were left behind"
        kept = {path.name: path.read_text() for path in self.settings.pid_dir.glob("hyper-*")}
        assert not kept, f"libvirt keeps state of a VM: {kept}"


def counted(definition: VmDefinition) -> list[int]:
    """What a counting guest has written to its console so far, whole lines only.

    One that was saved within a line writes that line's tail first.
    """
    try:
        lines = definition.console_log.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [int(line, 16) for line in lines if len(line) == tiny_guest.COUNTED_DIGITS]


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """Not tmp_path: QEMU's user must be able to pass, and a socket's path has 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="hv", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


async def eventually(condition: Callable[[], bool], *, timeout_s: float = 15) -> None:
    """For what has no event of its own to wait for."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
