# SPDX-License-Identifier: Apache-2.0
import asyncio
from collections.abc import Sequence

import pytest

from hyperd.host.batch import Batch


class Work:
    """Keeps what it was given; each call waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Semaphore(0)
        self.began = asyncio.Event()
        self.poison = ""

    async def __call__(self, items: Sequence[str]) -> None:
        self.batches.append(list(items))
        self.began.set()
        await self.gate.acquire()
        if self.poison in items:
            raise ValueError(self.poison)


@pytest.fixture
async def work():
    return Work()


async def test_who_comes_while_a_batch_is_under_way_is_in_the_next_one(work):
    batch = Batch(work, most=2)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(batch.do("a"))
        await work.began.wait()
        for item in "bcd":
            tasks.create_task(batch.do(item))
        for _ in range(3):
            work.gate.release()
    assert work.batches == [["a"], ["b", "c"], ["d"]]


async def busy(batch, work):
    """With something under way: what is asked for now waits for the next batch."""
    task = asyncio.create_task(batch.do("x"))
    await work.began.wait()
    return task


async def test_a_failure_is_told_to_those_alone_who_meet_it_themselves(work):
    batch = Batch(work, most=8)
    work.poison = "bad"
    earlier = await busy(batch, work)
    asked = [asyncio.create_task(batch.do(item)) for item in ("first", "bad", "last")]
    await asyncio.sleep(0)
    for _ in range(4):
        work.gate.release()
    await asyncio.wait((earlier, *asked))
    assert [str(task.exception()) for task in asked] == ["bad", "bad", "None"]
    assert work.batches == [["x"], ["first", "bad", "last"], ["bad", "last"], ["last"]]


async def test_when_the_one_who_works_for_all_goes_away_the_others_work_for_themselves(work):
    batch = Batch(work, most=8)
    earlier = await busy(batch, work)
    first, other = asyncio.create_task(batch.do("a")), asyncio.create_task(batch.do("b"))
    work.began.clear()
    work.gate.release()
    await earlier
    await work.began.wait()
    first.cancel()
    work.gate.release()
    await other
    assert work.batches == [["x"], ["a", "b"], ["b"]]
    assert first.cancelled()


async def test_who_goes_away_while_it_waits_is_in_no_batch(work):
    batch = Batch(work, most=8)
    first = asyncio.create_task(batch.do("a"))
    await work.began.wait()
    gone = asyncio.create_task(batch.do("b"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait((gone,))
    work.gate.release()
    await first
    work.gate.release()
    await batch.do("c")
    assert work.batches == [["a"], ["c"]]
