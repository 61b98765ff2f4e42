# SPDX-License-Identifier: Apache-2.0
"""The subreaper: reaps every orphan at once, and nothing that somebody else waits for."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hyperd.host import process
from hyperd.host.reaper import Reaper, Zombie, is_orphan, parse_zombie

# Forks twice as a daemon does, prints the grandchild's pid and ends; the grandchild, renamed, waits for a signal.
DAEMONIZE = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open("/proc/self/comm", "w") as comm:
            comm.write("qemu-system-x86")
        print(os.getpid(), flush=True)
        os.close(1); os.close(2)
        time.sleep(60)
    os._exit(0)
"""


def spawn_leader() -> int:
    return os.posix_spawn(sys.executable, [sys.executable, "-c", LEADER], os.environ, setsid=True)


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.005)


def test_a_stat_line_is_read_whatever_the_name_is() -> None:
    line = "77 (a) b (c) Z 5 77 40 0 -1 4228108 0"
    assert parse_zombie(line, 5) == Zombie(77, "a) b (c", 40)
    assert parse_zombie(line, 6) is None
    assert parse_zombie(line.replace("Z", "S"), 5) is None
    assert parse_zombie("", 5) is None


@given(st.text(max_size=200))
def test_no_stat_line_is_a_surprise(line: str) -> None:
    parse_zombie(line, 1)


def test_only_foreign_sessions_make_an_orphan() -> None:
    assert is_orphan(Zombie(pid=50, comm="qemu-system-x86", session=49), own_session=10)
    assert not is_orphan(
        Zombie(pid=50, comm="qemu-system-x86", session=10), own_session=10
    )  # forked by libvirt here
    assert not is_orphan(Zombie(pid=50, comm="skopeo", session=50), own_session=10)  # of host.process


async def test_an_orphan_is_reaped_as_soon_as_it_is_dead() -> None:
    async with Reaper(tick_s=600):
        finished = await process.run_checked([sys.executable, "-c", DAEMONIZE], timeout_s=20)
        pid = int(finished.stdout)
        assert f"PPid:\t{os.getpid()}\n" in Path(f"/proc/{pid}/status").read_text()
        os.kill(pid, signal.SIGKILL)
        await gone(pid)


async def test_children_that_asyncio_waits_for_are_left_to_it() -> None:
    async with Reaper(tick_s=0.01), asyncio.TaskGroup() as tasks:
        runs = [
            tasks.create_task(process.run(["sh", "-c", f"exit {code}"], timeout_s=20)) for code in range(20)
        ]
    assert [run.result().returncode for run in runs] == list(range(20))


async def test_a_zombie_of_qemu_that_nobody_waits_for_is_reaped_by_the_ticks() -> None:
    """QEMU's middle process leads its session: only time tells it from a child of our own."""
    pid = spawn_leader()
    async with Reaper(tick_s=0.05):
        await gone(pid)
    assert pid not in children()


LEADER = """
with open("/proc/self/comm", "w") as comm:
    comm.write("qemu-system-x86")
"""
