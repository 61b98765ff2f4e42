# SPDX-License-Identifier: Apache-2.0
"""The QEMU process of a VM.

libvirt's own destroy asks every 200 ms whether the process still exists. Killed through its pidfd it is gone in some
5 ms; libvirt sees the end of its monitor and tidies up behind us.
"""

from pathlib import Path
from typing import Self

from hyperd.host.held import HeldProcess

_MAX_COMMAND_LINE_BYTES = 65536


class QemuProcess(HeldProcess):
    @classmethod
    def find(cls, pid_dir: Path, name: str) -> Self | None:
        """By libvirt's pid file; None when there is no such process, or it is not the one of that domain."""
        try:
            pid = int((pid_dir / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return None
        found = cls.of(pid)
        # Only now, with the pid held, is it certain whose command line this is.
        if found is not None and not _is_guest(pid, name):
            found.close()
            return None
        return found


def _is_guest(pid: int, name: str) -> bool:
    try:
        with Path(f"/proc/{pid}/cmdline").open("rb") as file:
            arguments = file.read(_MAX_COMMAND_LINE_BYTES).split(b"\0")
    except OSError:
        return False
    return any(argument.split(b",")[0] == b"guest=" + name.encode() for argument in arguments)
