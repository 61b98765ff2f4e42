# SPDX-License-Identifier: Apache-2.0
"""When a file counts as unchangeable without being seen. That a change is seen is tests/contract/snapshot's."""

import time

from hyperd.snapshot import seals
from hyperd.snapshot.digest import GRANULE_NS, Stamp


def test_a_change_in_the_tick_before_the_reading_seals_nothing():
    changed_ns = 1_700_000_000_000_000_000
    stamp = Stamp(1, 2, 3, changed_ns, changed_ns)
    assert not seals.is_settled(stamp, changed_ns)
    assert not seals.is_settled(stamp, changed_ns + GRANULE_NS - 1)
    assert seals.is_settled(stamp, changed_ns + GRANULE_NS)


async def test_settling_waits_until_a_change_will_be_seen():
    changed_ns = time.time_ns()
    await seals.settle(changed_ns)
    assert time.time_ns() >= changed_ns + GRANULE_NS


async def test_settling_does_not_wait_for_a_clock_that_was_set_back():
    began = time.monotonic()
    await seals.settle(time.time_ns() + 3600 * 10**9)
    assert time.monotonic() - began < 60
