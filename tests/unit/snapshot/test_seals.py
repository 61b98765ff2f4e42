# SPDX-License-Identifier: Apache-2.0
"""When a file counts as unchangeable without being seen. That a change is seen is tests/contract/snapshot's."""

import time

from hyperd.snapshot import seals
from hyperd.snapshot.digest import Stamp


def test_a_change_in_the_tick_in_which_the_reading_begins_seals_nothing():
    changed_ns = 1_700_000_000_000_000_000
    stamp = Stamp(1, 2, 3, changed_ns, changed_ns)
    assert not seals.is_settled(stamp, changed_ns - 1)
    assert not seals.is_settled(stamp, changed_ns)
    assert seals.is_settled(stamp, changed_ns + 1)


def test_a_new_file_is_not_yet_settled_by_the_files_own_clock(tmp_path):
    before_ns = seals.file_clock_ns()
    (tmp_path / "file").touch()
    assert not seals.is_settled(Stamp(1, 2, 3, 4, (tmp_path / "file").stat().st_ctime_ns), before_ns)


async def test_settling_waits_until_a_change_will_be_seen(tmp_path):
    (tmp_path / "file").touch()
    changed_ns = (tmp_path / "file").stat().st_ctime_ns
    await seals.settle(changed_ns)
    assert seals.is_settled(Stamp(1, 2, 3, changed_ns, changed_ns), seals.file_clock_ns())


async def test_settling_does_not_wait_for_a_clock_that_was_set_back():
    began = time.monotonic()
    await seals.settle(time.time_ns() + 3600 * 10**9)
    assert time.monotonic() - began < 60
