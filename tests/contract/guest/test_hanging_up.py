# SPDX-License-Identifier: Apache-2.0
"""A caller who goes while the real agent is giving birth to his process: nobody will ever hear of it, so it ends."""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from hyperd.errors import WrongStateError
from hyperd.guest import Guest
from hyperd.model.guest import ProcessId, ProcessPlan
from tests.contract.guest.conftest import BOX, ENV, SLEEP, TRUE, Site, host_programs, real_agent

EXEC = ProcessId("exec-1")
SETTLED = ProcessId("settled")
DEADLINE_S = 30


@pytest.fixture
async def agent(tmp_path_factory) -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory() as short:
        async with real_agent(Path(short), host_programs(tmp_path_factory)) as site:
            yield site


def find_nurseries(site: Site) -> list[int]:
    tasks = Path(f"/proc/{site.pid}/task").iterdir()
    children = [pid for task in tasks for pid in read_of(task / "children").split()]
    return [
        int(pid) for pid in children if b"container-nursery" in read_of(Path(f"/proc/{pid.decode()}/cmdline"))
    ]


def read_of(path: Path) -> bytes:
    """Of a process or thread that may have ended meanwhile."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGSTOP)
        yield
        signal.pidfd_send_signal(handle, signal.SIGCONT)
    finally:
        os.close(handle)


async def processes(guest: Guest) -> list[ProcessId]:
    (container,) = await guest.list_containers()
    return [process.process_id for process in container.processes]


async def is_being_born(guest: Guest) -> bool:
    try:
        await guest.forget_process(BOX, EXEC)
    except WrongStateError:
        return True
    return False


async def test_a_process_whose_caller_hung_up_before_it_was_born_is_ended_and_forgotten(agent):
    async with agent.guest() as guest:
        await agent.run(guest, SLEEP)
        # The first one is executed anew; a nursery is there for the next.
        await guest.exec_process(BOX, SETTLED, ProcessPlan(TRUE.args, ENV))

        async def has_nursery() -> bool:
            return bool(find_nurseries(agent))

        await eventually(has_nursery)
        (nursery,) = find_nurseries(agent)
        run = guest.run_process(BOX, EXEC)
        with standing_still(nursery):
            starting = asyncio.create_task(run.start(ProcessPlan(SLEEP.args, ENV)))
            await eventually(lambda: is_being_born(guest))
            starting.cancel()
            await asyncio.wait((starting,))

        async def is_over() -> bool:
            return not await is_being_born(guest) and EXEC not in await processes(guest)

        await eventually(is_over)
        assert find_nurseries(agent) == [
            nursery
        ]  # that a child of the agent's stopped and went on is no failure
