# SPDX-License-Identifier: Apache-2.0
"""Finding QEMU by a pid file that may lie, killing it, waiting for its end."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from hyperd.host import process
from hyperd.vm.libvirt.process import QemuProcess

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


async def test_a_process_is_found_killed_and_waited_for_by_several(tmp_path: Path) -> None:
    async with process.spawn([*SLEEPER, "-name", "guest=hyper-0,debug-threads=on"]) as child:
        (tmp_path / "hyper-0.pid").write_text(f"{child.pid}\n")
        async with asyncio.timeout(10):  # its command line is there when it has become that program
            while (found := QemuProcess.find(tmp_path, "hyper-0")) is None:
                await asyncio.sleep(0.005)
        assert found.pid == child.pid
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(found.wait_gone())
            await asyncio.sleep(0)
            found.kill()
        found.kill()
        found.close()
        found.close()


async def test_a_pid_that_was_given_to_another_program_is_not_mistaken(tmp_path: Path) -> None:
    async with process.spawn([*SLEEPER, "guest=hyper-01"]) as child:
        (tmp_path / "hyper-0.pid").write_text(str(child.pid))
        assert QemuProcess.find(tmp_path, "hyper-0") is None
        assert child.returncode is None


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "99999999999"])
def test_a_bad_pid_file_finds_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "hyper-0.pid").write_text(text)
    assert QemuProcess.find(tmp_path, "hyper-0") is None
    assert QemuProcess.find(tmp_path, "absent") is None


async def test_a_cancelled_wait_leaves_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "hyper-0.pid").write_text(str(os.getpid()))
    found = QemuProcess(os.getpid(), os.pidfd_open(os.getpid()))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await found.wait_gone()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    found.close()
