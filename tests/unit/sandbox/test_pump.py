# SPDX-License-Identifier: Apache-2.0
"""From the guest to the log and to whoever listens, each at its own pace and with a bound."""

import asyncio
from pathlib import Path

import pytest

from hyperd.errors import UnavailableError
from hyperd.model.guest import (
    FIRST_PROCESS,
    ContainerId,
    ContainerPlan,
    OutputChunk,
    ProcessExit,
    ProcessPlan,
    Stream,
)
from hyperd.sandbox import Journal
from hyperd.sandbox.pump import Pump
from hyperd.sandbox.session import CHUNK_BYTES, DRAINED_CHUNKS, QUEUED_CHUNKS, Subscription
from tests.fakes.guest import FakeGuest
from tests.fakes.guest_agent import FakeAgent
from tests.fakes.guest_process import FakeProcess
from tests.fakes.world import eventually

ID = ContainerId("c")


def chunk(number: int, size: int = CHUNK_BYTES, stream: Stream = Stream.STDOUT) -> OutputChunk:
    return OutputChunk(number * size, stream, bytes([number % 256]) * size)


def guest_with_process() -> tuple[FakeGuest, FakeProcess]:
    agent = FakeAgent()
    agent.create(ContainerPlan(ID, (), None, False, ProcessPlan(("x",), ())))
    agent.start(ID)
    return FakeGuest(agent), agent.process(ID)


def journal_in(directory: Path) -> Journal:
    journal = Journal(directory, max_bytes=1 << 24)
    journal.open(journal.examine(), fresh=True)
    return journal


async def put_until_full(subscription: Subscription) -> int:
    number = 0
    while True:
        try:
            async with asyncio.timeout(0.01):
                await subscription.put(chunk(number))
        except TimeoutError:
            return number
        number += 1


async def test_a_slow_reader_holds_so_much_and_more_once_the_process_has_ended() -> None:
    subscription = Subscription()
    assert await put_until_full(subscription) == QUEUED_CHUNKS
    subscription.drain()
    assert 0 < await put_until_full(subscription) <= DRAINED_CHUNKS
    subscription.end()
    assert len([item async for item in subscription]) > QUEUED_CHUNKS


async def test_small_pieces_that_wait_are_one() -> None:
    subscription = Subscription()
    for number in range(5000):
        await subscription.put(chunk(number, 1))
    await subscription.put(chunk(5000, 1, Stream.STDERR))
    subscription.end()
    pieces = [item async for item in subscription]
    assert [(piece.stream, len(piece.data)) for piece in pieces] == [
        (Stream.STDOUT, 5000),
        (Stream.STDERR, 1),
    ]


async def test_a_reader_who_goes_frees_who_waits_for_it() -> None:
    subscription = Subscription()
    await put_until_full(subscription)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(subscription.put(chunk(99)))
        await asyncio.sleep(0)
        subscription.close()
    assert [item async for item in subscription] == []


async def test_output_is_acknowledged_when_it_is_in_the_log(tmp_path: Path) -> None:
    guest, process = guest_with_process()
    journal = journal_in(tmp_path)
    pump = Pump(ID, FIRST_PROCESS, journal)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(pump.run(guest))
        process.emit(b"hello")
        await eventually(lambda: process.start_offset == 5)
        assert journal.end_offset == 5
        process.finish(ProcessExit(0))
    assert pump.ended.is_set()
    late = pump.subscribe()
    assert [item async for item in late] == []
    journal.close()


async def test_a_lost_connection_leaves_the_pump_able_to_go_on(tmp_path: Path) -> None:
    guest, process = guest_with_process()
    pump = Pump(ID, FIRST_PROCESS, None)
    reader = pump.subscribe()
    process.emit(b"one ")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(_lost(pump, guest))
        await eventually(lambda: process.start_offset == 4)
        guest.agent.drop_connections()
        await running
    assert not pump.ended.is_set()
    process.emit(b"two")
    process.finish(ProcessExit(0))
    await pump.run(FakeGuest(guest.agent))
    assert b"".join([item.data async for item in reader]) == b"one two"


async def _lost(pump: Pump, guest: FakeGuest) -> None:
    with pytest.raises(UnavailableError):
        await pump.run(guest)


async def test_output_that_is_not_kept_any_more_is_skipped(tmp_path: Path) -> None:
    guest, process = guest_with_process()
    process.emit(b"forgotten")
    process.acknowledge(9)
    journal = journal_in(tmp_path)
    pump = Pump(ID, FIRST_PROCESS, journal)
    process.finish(ProcessExit(0))
    async with asyncio.timeout(5):
        await pump.run(guest)
    assert pump.ended.is_set()
    journal.close()


async def test_what_the_agent_keeps_behind_a_gap_is_carried(tmp_path: Path) -> None:
    guest, process = guest_with_process()
    process.emit(b"lost on a full disk, ")
    process.acknowledge(process.end_offset)
    process.emit(b"kept")
    process.finish(ProcessExit(0))
    journal = journal_in(tmp_path)
    pump = Pump(ID, FIRST_PROCESS, journal)
    reader = pump.subscribe()
    async with asyncio.timeout(5):
        await pump.run(guest)
        assert b"".join([item.data async for item in reader]) == b"kept"
    assert journal.end_offset == process.end_offset
    journal.close()
