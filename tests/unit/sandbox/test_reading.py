# SPDX-License-Identifier: Apache-2.0
"""Who reads and writes a process's streams: slow, one of several, gone, or with a log that is full."""

import asyncio

import pytest

from hyperd.errors import (
    ExhaustedError,
    UnavailableError,
)
from hyperd.model.guest import ProcessExit, Stream
from hyperd.sandbox import Fleet
from tests.fakes.guest_process import Script
from tests.fakes.world import World, created, eventually
from tests.unit.sandbox.lives import all_of, ended


async def test_a_slow_reader_makes_the_process_wait_and_loses_nothing(world: World, fleet: Fleet) -> None:
    total = 8 << 20
    world.script(
        "yes", Script(((Stream.STDOUT, b"y" * 65536) for _ in range(total // 65536)), ProcessExit(0))
    )
    handle = await created(fleet, "yes")
    session = await handle.attach(start=True)
    await eventually(lambda: handle.journal.end_offset > 1 << 20)
    held_at = world.process(handle).end_offset
    assert held_at < total  # the process waits
    out, _, _ = await all_of(session)
    assert len(out) == total
    await session.aclose()


async def test_a_second_reader_who_takes_nothing_is_dropped_and_told(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperd.sandbox.handle.STALL_TIMEOUT_S", 0.02)
    total = 4 << 20
    # It ends when all but what the agent keeps has been read: by then whoever takes nothing has been dropped.
    world.script("yes", Script([(Stream.STDOUT, b"y" * total)], ProcessExit(0)))
    handle = await created(fleet, "yes")
    first = await handle.attach(start=True)
    stalled = await handle.attach(start=False)
    assert len((await all_of(first))[0]) == total
    with pytest.raises(UnavailableError, match="took no output"):
        await all_of(stalled)


async def test_what_is_left_when_the_process_ends_waits_for_a_slow_reader(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    session = await handle.attach(start=True)
    process = world.process(handle)
    process.emit(b"z" * (17 * 65536 + 200_000))
    process.finish(ProcessExit(0))
    await ended(handle)
    assert len((await all_of(session))[0]) == 17 * 65536 + 200_000


async def test_a_reader_who_vanishes_frees_the_process(world: World, fleet: Fleet) -> None:
    world.script("yes", Script(((Stream.STDOUT, b"y" * 65536) for _ in range(100)), ProcessExit(0)))
    handle = await created(fleet, "yes")
    session = await handle.attach(start=True)
    await eventually(lambda: handle.journal.end_offset > 1 << 20)
    await session.aclose()
    assert (await ended(handle)).code == 0


async def test_standard_input_cut_by_a_lost_connection_is_an_error(world: World, fleet: Fleet) -> None:
    world.script("cat", Script(echo=True))
    handle = await created(fleet, "cat", stdin=True)
    session = await handle.attach(start=True)
    await session.write(b"one")
    world.agent(handle).drop_connections()
    with pytest.raises(UnavailableError, match="part of the standard input"):
        await session.write(b"two")
    await session.aclose()
    again = await handle.attach(start=False)
    await again.write(b"three")
    await again.close_stdin()
    assert (await ended(handle)).code == 0
    await again.write(b"into the void")  # after the exit
    await again.close_stdin()
    await again.aclose()


async def test_bytes_for_a_process_without_standard_input_vanish(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    session = await handle.attach(start=True)
    await session.write(b"x" * 100)
    await session.close_stdin()
    assert not world.process(handle).received
    await session.aclose()


async def test_who_attaches_while_it_starts_gets_the_first_byte(world: World, fleet: Fleet) -> None:
    world.script("echo", Script([(Stream.STDOUT, b"first")], ProcessExit(0)))
    handle = await created(fleet, "echo")
    world.dialer.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(handle.start())
        await eventually(lambda: world.hypervisor.running)
        attaching = tasks.create_task(handle.attach(start=True))
        await asyncio.sleep(0)
        world.dialer.gate.set()
    assert starting.done()
    assert (await all_of(attaching.result()))[0] == b"first"


async def test_a_full_disk_under_the_log_does_not_stop_the_process(
    world: World, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    handle = await created(fleet)
    session = await handle.attach(start=True)
    journal = handle.journal
    write = journal._write

    def no_room(frame: bytes, end_offset: int) -> None:
        raise ExhaustedError("no space left")

    journal._write = no_room  # type: ignore[method-assign]
    world.process(handle).emit(b"lost to the log")
    await eventually(lambda: world.process(handle).start_offset == 15)
    journal._write = write  # type: ignore[method-assign]
    world.agent(handle).drop_connections()
    await eventually(lambda: world.agent(handle).connections)
    world.process(handle).emit(b", kept")
    world.process(handle).finish(ProcessExit(0))
    out, _, exit_ = await all_of(session)
    assert (out, exit_.code) == (b"lost to the log, kept", 0)
    assert [entry.data async for entry in journal.read()] == [b", kept"]
