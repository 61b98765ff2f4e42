# SPDX-License-Identifier: Apache-2.0
"""A disk of a guest that stands still and that grows, asked of the agent itself: no hyperd is there to see to it."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hyperd.errors import NotFoundError, WrongStateError
from hyperd.guest import Guest
from tests.bareguest import Bench, Machine, container, execute, run

DISK = "writable"
WRITE = "echo written > /file && echo done"
# Longer than an emulated guest on a busy host takes to answer three calls.
A_WHILE_S = 8.0


@pytest.fixture
def source(tmp_path: Path):
    with Bench(tmp_path) as bench:
        yield bench.boot()


@pytest_asyncio.fixture
async def guest(source: Machine) -> AsyncIterator[Guest]:
    guest = await source.dial()
    await guest.configure(source.identity())
    await run(guest, container("while :; do sleep 1000; done"))
    yield guest
    await guest.close()


async def test_nobody_writes_until_it_is_let_go_on(guest: Guest):
    await guest.freeze_volume(DISK, 60)
    with pytest.raises(WrongStateError, match="stands still already"):
        await guest.freeze_volume(DISK, 60)
    writing = asyncio.create_task(execute(guest, WRITE))
    done, _ = await asyncio.wait((writing,), timeout=0.5)
    assert not done
    assert await guest.thaw_volume(DISK)
    assert await writing == "done\n"
    assert not await guest.thaw_volume(DISK)


async def test_it_goes_on_by_itself_when_its_time_is_over_and_says_so(guest: Guest):
    await guest.freeze_volume(DISK, A_WHILE_S)
    assert await execute(guest, WRITE) == "done\n"  # as if whoever froze it had been killed
    assert not await guest.thaw_volume(DISK)
    await guest.freeze_volume(DISK, 60)
    assert await guest.thaw_volume(DISK)


async def test_a_guest_that_stands_still_ends_all_the_same(source: Machine, guest: Guest):
    await guest.freeze_volume(DISK, 60)
    await guest.shutdown(5)
    await asyncio.to_thread(source.process.wait, 30)


async def test_a_file_system_takes_all_of_a_disk_that_grows(source: Machine, guest: Guest):
    fill = "dd if=/dev/zero of=/large bs=1M count=150 conv=fsync 2>/dev/null && echo done || echo full"
    assert await execute(guest, fill) == "full\n"
    size_bytes = 256 << 20
    os.truncate(source.writable, size_bytes)
    source.qmp("block_resize", **{"node-name": DISK, "size": size_bytes})
    await guest.grow_volume(DISK, size_bytes)
    await guest.grow_volume(DISK, size_bytes)
    assert await execute(guest, fill) == "done\n"
    with pytest.raises(NotFoundError):
        await guest.grow_volume("volume7", size_bytes)
