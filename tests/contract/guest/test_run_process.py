# SPDX-License-Identifier: Apache-2.0
"""An exec'd process as one call: the same as by four, whatever breaks."""

import asyncio

import pytest

from hyperd.errors import ExistsError, NotFoundError, UnavailableError
from hyperd.guest import Guest, ProcessRun
from hyperd.model.guest import FIRST_PROCESS, ProcessExit, ProcessId, ProcessPlan, Stream
from tests.contract.guest.conftest import (
    ABSENT,
    BOX,
    ENV,
    FLOOD,
    FLOOD_BYTES,
    SLEEP,
    TRUE,
    TWO_STREAMS,
    collect,
)

EXEC = ProcessId("exec-1")


async def begin(guest: Guest, args: tuple[str, ...]) -> ProcessRun:
    run = guest.run_process(BOX, EXEC)
    assert await run.start(ProcessPlan(args, ENV)) > 0
    return run


async def all_of(run: ProcessRun) -> tuple[dict[Stream, bytearray], ProcessExit]:
    found = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(run.carry())
        waiting = tasks.create_task(run.wait())
        output = run.output(0)
        async for chunk in output:
            found[chunk.stream] += chunk.data
            output.acknowledge(chunk.end_offset)
    return found, waiting.result()


async def exit_of(run: ProcessRun) -> ProcessExit:
    """And not the output."""
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        carrying = tasks.create_task(run.carry())
        ended = await run.wait()
        carrying.cancel()
    return ended


async def processes(guest: Guest) -> list[ProcessId]:
    (container,) = await guest.list_containers()
    return [process.process_id for process in container.processes]


async def test_output_and_exit_come_and_then_it_is_forgotten(site):
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        run = await begin(guest, TWO_STREAMS.args)
        assert await processes(guest) == [FIRST_PROCESS, EXEC]
        output, exit_ = await all_of(run)
        assert output == {Stream.STDOUT: b"hi\n", Stream.STDERR: b"oh\n"}
        assert exit_ == ProcessExit(3)
        await run.end()
        assert await processes(guest) == [FIRST_PROCESS]


async def test_what_cannot_be_executed_exits_with_a_reason(site):
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        run = await begin(guest, ABSENT.args)
        _, ended = await all_of(run)
        assert ended.code == 127
        assert ended.start_error
        await run.end()
        assert await processes(guest) == [FIRST_PROCESS]


async def test_what_is_refused_is_told_as_by_a_call_of_its_own(site):
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        run = await begin(guest, SLEEP.args)
        with pytest.raises(ExistsError):
            await begin(guest, TRUE.args)
        run.close()
        stranger = guest.run_process(BOX, ProcessId("stranger"))
        with pytest.raises(NotFoundError):
            await stranger.wait()


async def test_a_flood_comes_whole_and_no_more_of_it_than_was_asked_for(site):
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        run = await begin(guest, FLOOD.args)
        output, exit_ = await all_of(run)
        assert len(output[Stream.STDOUT]) == FLOOD_BYTES
        assert exit_ == ProcessExit(0)
        await run.end()


async def test_the_exit_comes_although_nobody_takes_the_output(site):
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        run = await begin(guest, TWO_STREAMS.args)
        assert await exit_of(run) == ProcessExit(3)
        await run.end()
        assert await processes(guest) == [FIRST_PROCESS]


async def test_when_the_call_is_given_up_the_process_goes_on_and_is_waited_for_by_others(site):
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        run = await begin(guest, SLEEP.args)
        carrying = asyncio.create_task(run.carry())
        await asyncio.sleep(0)
        carrying.cancel()
        await asyncio.wait((carrying,))
        run.close()
        assert await guest.signal(BOX, EXEC, 9)
        assert await run.wait() == ProcessExit(137, signal=9)
        await run.end()
        assert await processes(guest) == [FIRST_PROCESS]


async def test_another_connection_goes_on_where_the_broken_one_was(site):
    async with site.guest() as guest:
        await site.run(guest, SLEEP)
        run = await begin(guest, TWO_STREAMS.args)
        assert await exit_of(run) == ProcessExit(3)
    with pytest.raises(UnavailableError):
        await run.end()
    async with site.guest() as guest:
        assert (await collect(guest, EXEC))[Stream.STDOUT] == b"hi\n"
        again = guest.run_process(BOX, EXEC)
        assert await again.wait() == ProcessExit(3)
        await again.end()
        assert await processes(guest) == [FIRST_PROCESS]
