# SPDX-License-Identifier: Apache-2.0
"""Two at once: whatever step of the one the other comes at, both get what they were promised."""

import asyncio
import functools

import pytest

from hyperd.image import records
from hyperd.model.image import Digest
from tests.unit.image.lives import one_life
from tests.unit.image.played import BUILT

GZIP, ZSTD = "example.org/x:1", "example.org/y:1"
DIGESTS = [Digest(each) for each in (*BUILT[GZIP].blobs, *BUILT[GZIP].diff_ids, BUILT[GZIP].manifest_digest)]


@pytest.mark.parametrize("steps", range(14))
async def test_what_was_pinned_goes_even_when_the_pin_goes_during_a_sweep(steps):
    async with one_life() as daemon:
        unpin = asyncio.Event()

        async def hold():
            async with daemon.garbage.pinned(DIGESTS):
                await unpin.wait()

        await daemon.alone(functools.partial(daemon.pull, GZIP))
        daemon.tasks.create_task(hold())
        await daemon.steps(0)
        daemon.tasks.create_task(daemon.remove(GZIP))
        await daemon.steps(steps)
        unpin.set()
        await daemon.alone()
        assert not daemon.there()
        assert not daemon.marks()


@pytest.mark.parametrize("steps", range(14))
async def test_nothing_goes_after_the_pin_is_there(steps):
    async with one_life() as daemon:

        async def hold():
            async with daemon.garbage.pinned(DIGESTS):
                there = daemon.there()
                for _ in range(20):
                    await daemon.turns.pause()
                    assert daemon.there() == there

        await daemon.alone(functools.partial(daemon.pull, GZIP))
        daemon.tasks.create_task(daemon.remove(GZIP))
        await daemon.steps(steps)
        daemon.tasks.create_task(hold())
        await daemon.alone()
        assert not daemon.there()


@pytest.mark.parametrize("steps", range(14))
async def test_a_pull_of_what_is_just_removed_brings_it_again(steps):
    async with one_life() as daemon:
        await daemon.alone(functools.partial(daemon.pull, GZIP))
        pulling = daemon.tasks.create_task(daemon.pull(GZIP))
        await daemon.steps(steps)
        await daemon.meanwhile(functools.partial(daemon.remove, GZIP))
        await daemon.alone()
        assert (await pulling).tags
        assert daemon.there() == daemon.owned()


@pytest.mark.parametrize("steps", range(30))
async def test_a_conversion_keeps_its_blob_when_the_pull_that_began_it_goes(steps):
    async with one_life() as daemon:
        first = daemon.tasks.create_task(daemon.pull(GZIP))
        await daemon.steps(steps)

        async def leave():
            first.cancel()
            await asyncio.wait({first})
            await daemon.garbage.sweep_older_than(-1)

        await daemon.meanwhile(functools.partial(daemon.pull, ZSTD))
        await daemon.meanwhile(leave)
        await daemon.alone()
        assert BUILT[ZSTD].image_id in records.list_ids(daemon.connection)
        daemon.owned()


@pytest.mark.parametrize("steps", range(20))
async def test_a_sweep_takes_nothing_from_a_commit(steps):
    async with one_life() as daemon:
        await daemon.alone(functools.partial(daemon.pull, GZIP))
        committing = daemon.tasks.create_task(daemon.commit(GZIP))
        await daemon.steps(steps)
        await daemon.meanwhile(functools.partial(daemon.garbage.sweep_older_than, -1))
        await daemon.alone()
        await committing
        daemon.owned()


@pytest.mark.parametrize("verb", ["commit", "import_root"])
@pytest.mark.parametrize("steps", range(20))
async def test_a_cancelled_commit_leaves_nothing(verb, steps):
    async with one_life() as daemon:
        await daemon.alone(functools.partial(daemon.pull, GZIP))
        making = daemon.tasks.create_task(getattr(daemon, verb)(GZIP))
        await daemon.steps(steps)
        making.cancel()
        await daemon.alone()
        assert making.done()
        assert daemon.there() == daemon.owned()
