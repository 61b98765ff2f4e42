# SPDX-License-Identifier: Apache-2.0
"""What libvirt keeps of QEMU's answers, and whether it believed it."""

import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path

from hyperd.host.reaper import Reaper
from hyperd.vm.libvirt import LibvirtHypervisor, LibvirtSettings
from tests.contract.vm.lab import Lab

TIMEOUT_S = 180.0


async def ask(root: Path) -> bool:
    async with Reaper(), LibvirtHypervisor(LibvirtSettings(root=root)) as hypervisor:
        return (await hypervisor.prepare()).asked_anew


def were_old(root: Path) -> bool:
    """To a process of its own: one opens one root in its life."""
    argv = [sys.executable, "-m", "tests.contract.vm.test_libvirt_capabilities", str(root)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=True)
    return done.stdout == b"True\n"


async def test_answers_that_libvirt_took_for_old_are_told_of(own_lab: Lab) -> None:
    root = own_lab.settings.root
    kept = list((root / "cache/qemu/capabilities").glob("*.xml"))
    assert kept
    for path in kept:
        path.write_text(re.sub(r"<selfctime>\d+", "<selfctime>1", path.read_text()))
    assert were_old(root)
    shutil.rmtree(root / "cache")
    assert not were_old(root), "where nothing is kept nothing is old"


if __name__ == "__main__":
    print(asyncio.run(ask(Path(sys.argv[1]))))
