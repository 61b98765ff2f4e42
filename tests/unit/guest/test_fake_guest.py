# SPDX-License-Identifier: Apache-2.0
import asyncio
from pathlib import Path

import pytest

from hyperd.errors import UnavailableError
from hyperd.guest.base import Guest, GuestDialer
from hyperd.model.guest import (
    FIRST_PROCESS,
    ContainerId,
    ContainerPlan,
    ProcessExit,
    ProcessId,
    ProcessPlan,
    Stream,
)
from tests.fakes.guest import FakeDialer
from tests.fakes.guest_process import Script

BOX = ContainerId("c" * 64)


def plan(*args: str) -> ContainerPlan:
    return ContainerPlan(BOX, (), None, readonly_root=False, process=ProcessPlan(args, ()))


async def dialled(dialer: FakeDialer) -> Guest:
    as_protocol: GuestDialer = dialer
    return await as_protocol.connect(Path("control"), Path("stream"), timeout_s=1, subject="box")


async def test_a_scripted_process_writes_and_exits():
    dialer = FakeDialer()
    dialer.scripts["hello"] = Script([(Stream.STDOUT, b"hi\n"), (Stream.STDERR, b"oh\n")], ProcessExit(3))
    guest = await dialled(dialer)
    await guest.create_container(plan("hello"))
    await guest.start_container(BOX)
    chunks = [chunk async for chunk in guest.read_output(BOX, FIRST_PROCESS, 0)]
    assert [(c.offset, c.stream, c.data) for c in chunks] == [
        (0, Stream.STDOUT, b"hi\n"),
        (3, Stream.STDERR, b"oh\n"),
    ]
    assert await guest.wait_process(BOX, FIRST_PROCESS) == ProcessExit(3)


async def test_a_full_ring_blocks_the_process_until_it_is_acknowledged():
    dialer = FakeDialer()
    dialer.scripts["big"] = Script(((Stream.STDOUT, b"x" * 100_000) for _ in range(50)), ProcessExit(0))
    guest = await dialled(dialer)
    await guest.create_container(plan("big"))
    await guest.start_container(BOX)
    assert dialer.agent(Path("control")).process(BOX).exit is None
    total = 0
    reader = guest.read_output(BOX, FIRST_PROCESS, 0)
    async for chunk in reader:
        total += len(chunk.data)
        reader.acknowledge(chunk.end_offset)
    assert total == 5_000_000


async def test_a_lost_connection_ends_waits_but_not_processes():
    dialer = FakeDialer()
    guest = await dialled(dialer)
    await guest.create_container(plan("sleep"))
    await guest.start_container(BOX)
    agent = dialer.agent(Path("control"))
    async with asyncio.TaskGroup() as tasks:

        async def wait():
            with pytest.raises(UnavailableError):
                await guest.wait_process(BOX, FIRST_PROCESS)

        tasks.create_task(wait())
        await agent.wait_called("wait_process")
        agent.drop_connections()
    again = await dialled(dialer)
    assert await again.signal(BOX, FIRST_PROCESS, 15)
    assert (await again.wait_process(BOX, FIRST_PROCESS)).code == 143


async def test_cat_gives_back_its_input():
    dialer = FakeDialer()
    dialer.scripts["cat"] = Script(echo=True)
    guest = await dialled(dialer)
    await guest.create_container(plan("sh"))
    await guest.start_container(BOX)
    await guest.exec_process(BOX, ProcessId("p1"), ProcessPlan(("cat",), (), stdin=True))
    writer = guest.write_input(BOX, ProcessId("p1"))
    await writer.write(b"abc")
    await writer.close(eof=True)
    assert [c.data async for c in guest.read_output(BOX, ProcessId("p1"), 0)] == [b"abc"]
    assert await guest.wait_process(BOX, ProcessId("p1")) == ProcessExit(0)
