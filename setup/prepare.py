# SPDX-License-Identifier: Apache-2.0
"""Step `prepare`: what hyperd would otherwise do in a user's first run: libvirt's probe of QEMU.

Templates are not made here: with a NIC they need a tap, and set-up leaves the host's network alone. hyperd makes the
one for the default size as soon as it serves.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from setup.debian import installed_versions
from setup.environment import VENV
from setup.step import ASSETS, ROOT, hash_of

if TYPE_CHECKING:
    from setup.step import Job

HYPERD = ROOT / "hyperd" / "__main__.py"
STATE = Path("/var/lib/hyper")


class Prepare:
    name = "prepare"

    def key(self) -> str:
        assets = [str((ASSETS / name).resolve()) for name in ("vmlinux", "initramfs.cpio", "mkfs.erofs")]
        versions = installed_versions(["qemu-system-x86", "libvirt-daemon-driver-qemu"])
        return hash_of(str(HYPERD.exists()), *assets, *sorted(versions.values()))

    def is_ready(self) -> bool:
        return STATE.is_dir() or not HYPERD.exists()

    def run(self, job: Job) -> None:
        if not HYPERD.exists():
            job.result = "nothing to do: this checkout has no hyperd yet"
            return
        job.hint = "`.venv/bin/python -m hyperd --prepare` shows the same by itself"
        job.run(VENV / "bin" / "python", "-m", "hyperd", "--prepare")
