# SPDX-License-Identifier: Apache-2.0
"""How long a process was ready to run and the host had no CPU for it."""

import contextlib
from pathlib import Path

NS = 1e-9


def waited_s(pid: int, proc: Path = Path("/proc")) -> float:
    """Of that one of its threads which waited longest; 0 when it has gone, or the kernel does not count it.

    /proc/PID/task/TID/schedstat: time on a CPU, time waiting for one (both ns), times it ran. Blocks for microseconds.
    """
    longest = 0
    with contextlib.suppress(OSError):
        for task in (proc / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that has just ended
                longest = max(longest, int((task / "schedstat").read_text().split()[1]))
    return longest * NS
