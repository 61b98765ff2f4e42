# SPDX-License-Identifier: Apache-2.0
"""kill -9 at every step, in a process of its own: it forks, which pytest's must not. Needs root."""

import sys
from pathlib import Path

from hyperd.host import process
from tests.mounts import small_filesystem

TOP = Path(__file__).parents[3]


async def test_a_kill_at_any_step_leaves_whole_snapshots_and_nothing_else(tmp_path):
    async with small_filesystem(tmp_path / "small", size_mib=16) as root:  # where syncing costs nothing
        argv = [sys.executable, "-m", "tests.contract.snapshot.killed", str(root / "store")]
        finished = await process.run_checked(argv, timeout_s=200, env={"PYTHONPATH": str(TOP)})
    assert int(finished.stdout) > 80
