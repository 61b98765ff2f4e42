# SPDX-License-Identifier: Apache-2.0
"""Runs ``holder.py`` and kills it: what hyperd's death at an awkward moment leaves behind."""

import asyncio
import sys
from pathlib import Path

from hyperd.host import process
from tests.contract.vm.lab import Lab

HOLDER = Path(__file__).with_name("holder.py")


def holder(lab: Lab, verb: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, *(str(word) for word in (HOLDER, lab.path, lab.settings.root, verb, *arguments))]


async def end_all(lab: Lab) -> str:
    """VMs that the next process finds, and those that are left when it has destroyed them."""
    return await _ask(lab, "end")


async def resume_all(lab: Lab) -> str:
    """Paused VMs that the next process finds, and those that still are when it has resumed them."""
    return await _ask(lab, "resume")


async def hold_and_kill(lab: Lab, *arguments: str, verb: str = "hold") -> None:
    """Start VMs in a process of its own and kill that with SIGKILL."""
    lab.was_cut_off = True
    async with process.spawn(holder(lab, verb, *arguments)) as child:
        await require_running(child)


async def require_running(child: asyncio.subprocess.Process) -> None:
    assert child.stdout is not None
    async with asyncio.timeout(60):
        line = await child.stdout.readline()
    assert line == b"running\n", (await child.stderr.read()).decode() if child.stderr else ""


async def _ask(lab: Lab, verb: str) -> str:
    finished = await process.run_checked(holder(lab, verb), timeout_s=60)
    return finished.stdout.decode().strip()
