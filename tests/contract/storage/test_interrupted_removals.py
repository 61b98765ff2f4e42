# SPDX-License-Identifier: Apache-2.0
"""Removals that are cut short: what has lost its record loses its disk, what has kept it keeps that."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from hyperd.errors import UnavailableError
from hyperd.host import files, process
from hyperd.model.volume import VolumeRequest
from hyperd.storage.volume_files import DiskFiles
from tests.contract.storage.volumes import DB, KilledError, detached, directories, opened
from tests.mounts import small_filesystem


@dataclass
class Removal:
    """Of a disk that is there."""

    root: Path
    disk_id: str
    run: Callable[[], Awaitable[object]]


@pytest_asyncio.fixture(params=["volume", "snapshot"])
async def removal(local, tmp_path, request):
    made = await local.create(VolumeRequest(DB))
    if request.param == "volume":
        return Removal(tmp_path / "volumes", made.path.parent.name, lambda: local.remove(DB))
    taken = await local.snapshots.take(made, "first", detached)
    return Removal(
        tmp_path / "volumes/.snapshots", taken.snapshot_id, lambda: local.snapshots.remove("first")
    )


async def test_one_whose_caller_hangs_up_while_it_is_recorded_is_a_whole_one(removal, database, monkeypatch):
    loop, removed = asyncio.get_running_loop(), asyncio.Event()
    transaction, remove_tree = database.transaction, files.remove_tree

    async def cancel():
        task.cancel()

    def hanging_up(work, *, lasting=False):
        def work_and_hang_up(connection):
            result = work(connection)
            if lasting:
                asyncio.run_coroutine_threadsafe(cancel(), loop).result(10)
            return result

        return transaction(work_and_hang_up, lasting=lasting)

    def removing(path):
        remove_tree(path)
        loop.call_soon_threadsafe(removed.set)

    monkeypatch.setattr(database, "transaction", hanging_up)
    monkeypatch.setattr("hyperd.storage.volume_files.files.remove_tree", removing)
    task = asyncio.ensure_future(removal.run())
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(10):
        await removed.wait()
    assert directories(removal.root) == []


async def test_a_kill_between_the_record_and_the_name_leaves_what_the_next_start_removes(
    removal, database, tmp_path, monkeypatch
):
    def dying(*_):
        raise KilledError

    with monkeypatch.context() as killed:
        killed.setattr(DiskFiles, "take_away", dying)
        with pytest.raises(KilledError):
            await removal.run()
    assert directories(removal.root) == [removal.disk_id]
    (await opened(database, tmp_path / "volumes")).close()
    assert directories(removal.root) == []


async def test_one_that_cannot_be_recorded_leaves_all_as_it_was(removal, database, monkeypatch):
    transaction = database.transaction

    def failing(work, *, lasting=False):
        def work_and_fail(connection):
            result = work(connection)
            if lasting:
                raise UnavailableError("the records cannot be used")
            return result

        return transaction(work_and_fail, lasting=lasting)

    with monkeypatch.context() as broken:
        broken.setattr(database, "transaction", failing)
        with pytest.raises(UnavailableError):
            await removal.run()
    assert [path.name for path in (removal.root / removal.disk_id).iterdir()] == ["disk.img"]
    await removal.run()
    assert directories(removal.root) == []


def fill(directory: Path) -> None:
    for number in range(64):
        (directory / f"{number}").touch()


async def test_a_full_disk_keeps_nobody_from_removing(database, tmp_path):
    """Where not even an empty file can be made."""
    async with small_filesystem(tmp_path / "small", size_mib=128) as directory:
        volumes = await opened(database, directory / "volumes")
        made = await volumes.create(VolumeRequest(DB))
        await process.run_checked(["mount", "-o", "remount,nr_inodes=64", str(directory)], timeout_s=10)
        with pytest.raises(OSError, match="No space left"):
            fill(made.path.parent)
        assert await volumes.remove(DB)
        assert directories(directory / "volumes") == []
        volumes.close()
