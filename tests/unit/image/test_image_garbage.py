# SPDX-License-Identifier: Apache-2.0
"""Whatever happens at once, and wherever it is killed: no image loses a byte, and no byte is left that nobody owns.

Chance is a seed, so every failure is repeated by its test's name; ``HYPER_GARBAGE_SEEDS=1000-3000`` tries others. Not
hypothesis: it traces every line to explain a failure, and to shrink one among chance's orders takes minutes.
The loop is each test's own, without asyncio's debug mode, which takes a stack at every step.
"""

import asyncio
import functools
import os
import random

import pytest

from tests.unit.image.lives import place
from tests.unit.image.played import NAMES

_VERBS = "pull pull pull load push tag remove remove prune evict commit import_root save root_disk".split()
_FIRST, _, _LAST = os.environ.get("HYPER_GARBAGE_SEEDS", "1-40").partition("-")


@pytest.mark.parametrize("seed", range(int(_FIRST), int(_LAST or _FIRST) + 1))
def test_no_image_loses_anything_and_nothing_is_left_unowned(seed):
    asyncio.run(live_and_die(random.Random(seed)), debug=False)


async def live_and_die(chance):
    verbs = chance.choice([_VERBS, _VERBS, ["pull"], ["pull", "remove"]])
    with place() as here:
        for _ in range(chance.randint(1, 3)):
            jobs = [(chance.choice(verbs), chance.choice(NAMES)) for _ in range(chance.randint(1, 5))]
            kill_at = chance.choice([None, chance.randrange(200)])
            cancels = chance.choice([0, 0, 0.03])
            unlinks = chance.choice([[], [99, 99, 0, 1, 2, 4]])
            async with here.opened() as daemon:
                await daemon.alone(functools.partial(daemon.pull, NAMES[0]))
                rests = daemon.marks() or daemon.there() - daemon.owned()
                if unlinks:
                    daemon.workers.unlinks = functools.partial(chance.choice, unlinks)
                await daemon.all_at_once(jobs, chance, cancels=cancels, kill_at=kill_at)
                if not (rests or cancels or unlinks or daemon.turns.dead):
                    assert not daemon.marks()
                    assert daemon.there() == daemon.owned()
        async with here.opened() as daemon:
            await daemon.alone(daemon.garbage.sweep)
            assert not daemon.marks()
            await daemon.alone(lambda: daemon.garbage.sweep_older_than(-1))
            assert daemon.there() == daemon.owned()
