# SPDX-License-Identifier: Apache-2.0
"""Copies, removals and growth of volumes that take minutes: whom they hold up, and whom not."""

import asyncio
import threading

import pytest

from hyperd.errors import (
    WrongStateError,
)
from hyperd.host import files
from hyperd.model.volume import VolumeName, VolumeRequest
from tests.contract.storage.volumes import (
    BOX,
    DB,
    SMALL,
    detached,
    directories,
    used,
)


class Held:
    """Calls of a blocking function that stand until ``go_on`` is set."""

    def __init__(self, monkeypatch, target, name, of):
        self.go_on = threading.Event()
        self._begun = threading.Semaphore(0)
        function = getattr(target, name)

        def held(*args, **fields):
            if of(*args):
                self._begun.release()
                assert self.go_on.wait(60)
            return function(*args, **fields)

        monkeypatch.setattr(target, name, held)

    async def begun(self, times):
        for _ in range(times):
            assert await asyncio.to_thread(self._begun.acquire, timeout=20)


async def test_copies_of_minutes_hold_up_neither_a_snapshot_nor_what_is_asked_of_them(local, monkeypatch):
    """A guest may stand still for that snapshot."""
    made = await local.create(VolumeRequest(DB, SMALL))
    first = await local.snapshots.take(made, "first", detached)
    held = Held(monkeypatch, files, "copy_sparse", lambda source, *_: source == first.path)
    names = [VolumeName(f"copy-{number}") for number in range(3)]
    creating = [asyncio.create_task(local.create(VolumeRequest(name, snapshot="first"))) for name in names]
    await held.begun(2)
    try:
        async with asyncio.timeout(60):
            await local.snapshots.take(made, "second", detached)
            assert [item.name for item in await local.snapshots.list()] == ["second", "first"]
            await local.snapshots.remove("second")
            async with local.snapshots.stream(made, detached) as stream:
                await anext(stream)
    finally:
        held.go_on.set()
        await asyncio.gather(*creating)


async def test_a_guest_is_not_asked_to_stand_still_before_there_is_a_thread_for_its_copy(local):
    await local.create(VolumeRequest(DB, SMALL))
    entered = []

    async def copy():
        async with local.copying(DB):
            entered.append(asyncio.current_task())
            await go_on.wait()

    go_on = asyncio.Event()
    copies = [asyncio.create_task(copy()) for _ in range(3)]
    while len(entered) < 2:
        await asyncio.sleep(0)
    done, _ = await asyncio.wait(copies, timeout=0.2)
    assert (done, len(entered)) == (set(), 2)
    go_on.set()
    await asyncio.gather(*copies)


async def test_removals_of_minutes_hold_up_no_start(local, database, monkeypatch, tmp_path):
    await used(local, database, BOX, VolumeRequest(DB))
    held = Held(monkeypatch, files, "remove_tree", lambda path: path.name.endswith(".gone"))
    names = [VolumeName(f"large-{number}") for number in range(3)]
    for name in names:
        await local.create(VolumeRequest(name))
    removing = [asyncio.create_task(local.remove(name)) for name in names]
    await held.begun(2)
    try:
        async with asyncio.timeout(60):
            assert set(await local.attach(BOX)) == {DB}
            assert [view.volume.name for view in await local.list()] == [DB]
    finally:
        held.go_on.set()
        assert await asyncio.gather(*removing) == [True] * 3
    assert len(directories(tmp_path / "volumes")) == 1


async def test_one_that_grows_holds_up_its_copies_and_no_start(local, database, monkeypatch):
    await used(local, database, BOX, VolumeRequest(DB), VolumeRequest(VolumeName("other")))
    await local.create(VolumeRequest(VolumeName("third")))
    held = Held(monkeypatch, files, "sync", lambda path: path.name == "disk.img")
    growing = asyncio.create_task(local.grow(DB, 2 * SMALL))
    await held.begun(1)

    async def copy():
        async with local.copying(DB) as view:
            return view.volume.size_bytes

    copying, removing = asyncio.create_task(copy()), asyncio.create_task(local.remove(DB))
    try:
        async with asyncio.timeout(60):
            assert set(await local.attach(BOX)) == {DB, "other"}
            assert await local.remove(VolumeName("third"))
        done, _ = await asyncio.wait((copying, removing), timeout=0.2)
        assert not done
    finally:
        held.go_on.set()
    assert (await growing).size_bytes == await copying == 2 * SMALL
    with pytest.raises(WrongStateError, match="is in use"):
        await removing
