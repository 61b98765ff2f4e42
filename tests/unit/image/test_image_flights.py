# SPDX-License-Identifier: Apache-2.0
"""Work shared by several callers; its subject is who may end it."""

import asyncio
import contextlib

import pytest

from hyperd.errors import UnavailableError
from hyperd.image.flights import Flights, Hub


class Work:
    """Starts, tells, waits for its gate, ends; counts what was done."""

    def __init__(self) -> None:
        self.started = self.cancelled = self.cleaned = 0
        self.gate = asyncio.Event()
        self.under_way = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, hub: Hub[str]) -> str:
        self.started += 1
        hub.publish("step", "begun")
        self.under_way.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.sleep(0)
            raise
        finally:
            self.cleaned += 1
        if self.error is not None:
            raise self.error
        hub.publish("step", "ended")
        return "result"


async def ride(flights, work, heard=None):
    async with flights.board("key", work) as flight:
        async with contextlib.aclosing(flight.hub.listen()) as events:
            async for event in events:
                if heard is not None:
                    heard.append(event)
        return await flight.landed()


async def test_two_callers_share_one_piece_of_work():
    work = Work()
    early: list[str] = []
    late: list[str] = []
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        flights: Flights[str, str, str] = Flights(tasks)
        first = tasks.create_task(ride(flights, work, early))
        await work.under_way.wait()
        second = tasks.create_task(ride(flights, work, late))
        await asyncio.sleep(0)
        work.gate.set()
    assert (first.result(), second.result(), work.started) == ("result", "result", 1)
    assert early[-1] == late[-1] == "ended"
    assert early[0] == "begun"


async def test_one_who_goes_leaves_the_work_to_the_other():
    work = Work()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        flights: Flights[str, str, str] = Flights(tasks)
        first, second = (tasks.create_task(ride(flights, work)) for _ in range(2))
        await work.under_way.wait()
        first.cancel()
        await asyncio.wait({first})
        work.gate.set()
    assert first.cancelled()
    assert second.result() == "result"
    assert work.cancelled == 0


async def test_with_the_last_one_the_work_ends_before_he_is_let_go():
    work = Work()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        flights: Flights[str, str, str] = Flights(tasks)
        riders = [tasks.create_task(ride(flights, work)) for _ in range(2)]
        await work.under_way.wait()
        for rider in riders:
            rider.cancel()
        await asyncio.wait(riders)
        assert (work.cancelled, work.cleaned) == (1, 1)
        work.gate.set()
        assert await ride(flights, work) == "result"
    assert work.started == 2


async def test_an_error_reaches_everyone_and_the_next_call_tries_again():
    work = Work()
    work.error = UnavailableError("no")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        flights: Flights[str, str, str] = Flights(tasks)

        async def expect_error():
            with pytest.raises(UnavailableError):
                await ride(flights, work)

        async with asyncio.TaskGroup() as riders:
            riders.create_task(expect_error())
            riders.create_task(expect_error())
            await work.under_way.wait()
            work.gate.set()
        work.error = None
        assert await ride(flights, work) == "result"


async def test_closing_tells_everyone():
    work = Work()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        flights: Flights[str, str, str] = Flights(tasks)

        async def expect_stop():
            with pytest.raises(UnavailableError, match="stopping"):
                await ride(flights, work)

        async with asyncio.TaskGroup() as riders:
            riders.create_task(expect_stop())
            await work.under_way.wait()
            await flights.cancel()


async def test_a_slow_listener_gets_the_last_of_each_kind():
    hub: Hub[int] = Hub()
    events = hub.listen()
    hub.publish("a", 0)
    assert await anext(events) == 0
    for number in range(1000):
        hub.publish("a", number)
        hub.publish("b", -number)
    hub.close()
    assert [event async for event in events] == [999, -999]
