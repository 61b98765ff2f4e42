# SPDX-License-Identifier: Apache-2.0
"""Calls on threads, and callers that are cancelled."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from hyperd.host.workers import Wanted, Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    subject = Workers("test", 1)
    yield subject
    subject.close()


async def test_a_cancelled_caller_hears_of_it_when_the_call_has_ended_and_the_call_that_it_is_unwanted(
    workers: Workers,
) -> None:
    loop = asyncio.get_running_loop()
    began, go_on = asyncio.Event(), threading.Event()
    ends: list[str] = []

    def work(wanted: Wanted) -> None:
        loop.call_soon_threadsafe(began.set)
        assert go_on.wait(10)
        try:
            wanted.require()
        finally:
            ends.append("ended")
        ends.append("went on")

    caller = loop.create_task(workers.call_while_wanted(work))
    await began.wait()
    for _ in range(2):  # once more changes nothing
        caller.cancel()
        await asyncio.wait((caller,), timeout=0.01)
        assert not caller.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ends == ["ended"]


async def test_a_call_to_the_end_is_made_though_its_caller_is_cancelled_before_a_thread_has_come_to_it(
    workers: Workers,
) -> None:
    loop = asyncio.get_running_loop()
    began, go_on = asyncio.Event(), threading.Event()
    made: list[str] = []

    def first() -> None:
        loop.call_soon_threadsafe(began.set)
        assert go_on.wait(10)

    blocking = loop.create_task(workers.call(first))
    await began.wait()
    caller = loop.create_task(workers.call_to_the_end(made.append, "made"))
    for _ in range(2):  # once more changes nothing
        await asyncio.wait((caller,), timeout=0.01)
        caller.cancel()
    await asyncio.wait((caller,), timeout=0.01)
    assert not caller.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert made == ["made"]
    await blocking


async def test_a_call_to_the_end_raises_what_the_call_raises(workers: Workers) -> None:
    with pytest.raises(ZeroDivisionError):
        await workers.call_to_the_end(lambda: 1 // 0)


async def test_a_call_that_no_thread_has_come_to_is_never_made(workers: Workers) -> None:
    loop = asyncio.get_running_loop()
    began, go_on = asyncio.Event(), threading.Event()
    made: list[str] = []

    def first() -> None:
        loop.call_soon_threadsafe(began.set)
        assert go_on.wait(10)

    blocking = loop.create_task(workers.call(first))
    await began.wait()
    caller = loop.create_task(workers.call_while_wanted(lambda _: made.append("made")))
    await asyncio.wait((caller,), timeout=0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(caller, 5)
    go_on.set()
    await blocking
    assert made == []


async def test_it_hands_on_what_was_returned_or_raised(workers: Workers) -> None:
    def divide(_: Wanted, one: int, *, by: int) -> float:
        return one / by

    assert await workers.call_while_wanted(divide, 6, by=3) == 2
    with pytest.raises(ZeroDivisionError):
        await workers.call_while_wanted(divide, 6, by=0)
