# SPDX-License-Identifier: Apache-2.0
"""Volumes that are copied: snapshots, exports, imports, and what grows meanwhile."""

import asyncio
import os
import threading
from dataclasses import replace

import pytest

from hyperd.errors import (
    ExistsError,
    InvalidError,
    NotFoundError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.host import files
from hyperd.host.workers import NotWantedError
from hyperd.model.volume import VolumeName, VolumeRequest
from hyperd.storage import volume_archive as archive
from tests.contract.storage.volumes import (
    BOX,
    DB,
    SMALL,
    WHILE_EXPORTED,
    KilledError,
    detached,
    directories,
    each_of,
    opened,
    used,
)
from tests.mounts import allocated_bytes, small_filesystem


async def test_a_snapshot_from_its_making_to_its_end(volumes):
    made = await volumes.create(VolumeRequest(DB, SMALL))
    first = await volumes.snapshots.take(made, "first", detached)
    second = await volumes.snapshots.take(made, "", detached)
    assert [item.snapshot_id for item in await volumes.snapshots.list()] == [
        second.snapshot_id,
        first.snapshot_id,
    ]
    assert (first.volume, first.size_bytes, first.filesystem) == (DB, SMALL, "ext4")
    assert await volumes.snapshots.get(first.snapshot_id[:20]) == await volumes.snapshots.get("first")
    with pytest.raises(ExistsError):
        await volumes.snapshots.take(made, "first", detached)
    with pytest.raises(InvalidError):
        await volumes.snapshots.take(made, "../x", detached)
    assert await volumes.remove(DB)
    again = await volumes.create(VolumeRequest(DB, 2 * SMALL, snapshot="first"))
    assert again.size_bytes == 2 * SMALL
    with pytest.raises(ExistsError):
        await volumes.create(VolumeRequest(DB, snapshot="first"))
    with pytest.raises(InvalidError):
        await volumes.create(VolumeRequest(VolumeName("less"), SMALL // 2, snapshot="first"))
    with pytest.raises(NotFoundError):
        await volumes.create(VolumeRequest(VolumeName("none"), snapshot="none"))
    assert await volumes.snapshots.remove("first") == first.snapshot_id
    for reference in ("first", "", "0" * 12):
        with pytest.raises(NotFoundError):
            await volumes.snapshots.remove(reference)


async def test_a_copy_that_turns_out_to_be_worth_nothing_does_not_stay(volumes):
    made = await volumes.create(VolumeRequest(DB, SMALL))

    async def worthless():
        raise WrongStateError("went on meanwhile")

    with pytest.raises(WrongStateError):
        await volumes.snapshots.take(made, "first", worthless)
    assert await volumes.snapshots.list() == []
    await volumes.snapshots.require_free("first")


async def test_a_volume_goes_out_in_a_stream_and_comes_in_again(volumes):
    made = await volumes.create(VolumeRequest(DB, SMALL))
    async with volumes.snapshots.stream(made, detached) as stream:
        data = [piece async for piece in stream]
    assert await volumes.snapshots.list() == []

    async def again(pieces):
        for piece in pieces:
            yield piece

    with pytest.raises(ExistsError):
        await volumes.import_(DB, {}, again(data))
    other = VolumeName("other")
    back = await volumes.import_(other, {"team": "web"}, again(data))
    assert (back.size_bytes, back.filesystem, back.labels) == (SMALL, "ext4", {"team": "web"})
    for wrong in ([], [b"nonsense" * 1000]):
        with pytest.raises(InvalidError):
            await volumes.import_(VolumeName("wrong"), {}, again(wrong))
    assert [view.volume.name for view in await volumes.list()] == [DB, other]


async def test_an_export_is_the_same_disk_and_leaves_nothing(local, tmp_path):
    made = await local.create(VolumeRequest(DB, SMALL))
    async with local.snapshots.stream(made, detached) as stream:
        assert directories(tmp_path / "volumes" / ".snapshots") == []  # nor would a kill leave anything now
        pieces = [piece async for piece in stream]
    back = await local.import_(VolumeName("back"), {}, each_of(pieces))
    assert back.path.read_bytes() == made.path.read_bytes()
    assert allocated_bytes(back.path) < 3 << 20
    async with local.snapshots.stream(made, detached) as stream:
        await anext(stream)  # whoever hangs up in the middle
    for cut in (pieces[:-1], [*pieces, b"x"]):
        with pytest.raises(InvalidError):
            await local.import_(VolumeName("cut"), {}, each_of(cut))
    assert len(directories(tmp_path / "volumes")) == 2


async def test_a_snapshot_is_the_same_bytes_and_sparse(local, tmp_path):
    made = await local.create(VolumeRequest(DB, SMALL))
    taken = await local.snapshots.take(made, "first", detached)
    assert taken.path.read_bytes() == made.path.read_bytes()
    assert taken.allocated_bytes < 3 << 20
    assert taken.path.stat().st_mode & 0o777 == 0o600
    copy = await local.create(VolumeRequest(VolumeName("copy"), 2 * SMALL, snapshot="first"))
    assert copy.path.stat().st_size == 2 * SMALL
    assert copy.path.read_bytes()[:SMALL] == made.path.read_bytes()
    await local.snapshots.remove("first")
    assert directories(tmp_path / "volumes" / ".snapshots") == []


async def test_of_a_snapshot_that_was_cut_short_nothing_stays(local, database, tmp_path):
    made = await local.create(VolumeRequest(DB, SMALL))
    kept = await local.snapshots.take(made, "first", detached)
    root = tmp_path / "volumes" / ".snapshots"
    for name in ("0" * 64 + ".new", "0" * 64 + ".gone"):
        (root / name).mkdir()
        (root / name / "disk.img").write_bytes(b"data")
    entered = asyncio.Event()

    async def hangs():
        entered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(local.snapshots.take(made, "second", hangs))
    await entered.wait()
    assert len(directories(root)) == 4
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (await opened(database, tmp_path / "volumes")).close()
    assert directories(root) == [kept.snapshot_id]


@pytest.mark.parametrize("at", ["before", "after"])
async def test_a_snapshot_whose_recording_is_cut_short_is_whole_or_not_there(
    local, database, tmp_path, monkeypatch, at
):
    """A kill before the record is committed, or before it is known to be."""
    made = await local.create(VolumeRequest(DB, SMALL))
    root = tmp_path / "volumes" / ".snapshots"
    transaction = database.transaction

    async def killed_then(work, *, lasting=False):
        if not lasting:
            return await transaction(work)

        def recording(connection):
            work(connection)
            if at == "before":
                raise KilledError

        await transaction(recording, lasting=True)
        raise KilledError

    async def dead(_):
        """Whoever would undo it."""

    with monkeypatch.context() as killed:
        killed.setattr(local.snapshots, "_settle", dead)
        killed.setattr(database, "transaction", killed_then)
        with pytest.raises(KilledError):
            await local.snapshots.take(made, "first", detached)
    assert len(directories(root)) == 1
    (await opened(database, tmp_path / "volumes")).close()
    left = [item.snapshot_id for item in await local.snapshots.list()]
    assert len(left) == (at == "after")
    assert directories(root) == left
    assert all([path.name for path in (root / key).iterdir()] == ["disk.img"] for key in left)


async def test_who_wants_a_volume_that_is_being_copied_waits(local, database, monkeypatch):
    await used(local, database, BOX, VolumeRequest(DB))
    async with local.copying(DB) as view:
        assert not view.users[0].attached
        attaching = asyncio.create_task(local.attach(BOX))
        removing = asyncio.create_task(local.remove(DB))
        done, _ = await asyncio.wait((attaching, removing), timeout=0.2)
        assert not done
        assert not (await local.get(DB)).users[0].attached
    assert set(await attaching) == {DB}
    with pytest.raises(WrongStateError):
        await removing
    await local.detach(BOX)
    monkeypatch.setattr("hyperd.storage.volume_turns.PATIENCE_S", 0.05)
    async with local.copying(DB):
        with pytest.raises(WrongStateError, match="is being copied"):
            await local.attach(BOX)


async def test_patience_with_a_copy_ends_whatever_else_is_copied(local, database, monkeypatch):
    await used(local, database, BOX, VolumeRequest(DB))
    await local.create(VolumeRequest(VolumeName("other")))
    monkeypatch.setattr("hyperd.storage.volume_turns.PATIENCE_S", 0.5)

    async def copy_others():
        while True:
            async with local.copying(VolumeName("other")):
                pass
            await asyncio.to_thread(lambda: None)

    copying = asyncio.create_task(copy_others())
    async with asyncio.timeout(10), local.copying(DB):
        with pytest.raises(WrongStateError, match="is being copied"):
            await local.attach(BOX)
    copying.cancel()


async def test_what_grows_is_not_being_copied(local):
    await local.create(VolumeRequest(DB, SMALL))
    async with local.copying(DB) as view:
        growing = asyncio.create_task(local.grow(DB, 2 * SMALL))
        done, _ = await asyncio.wait((growing,), timeout=0.2)
        assert not done
        assert view.volume.path.stat().st_size == SMALL
    assert (await growing).size_bytes == 2 * SMALL


async def test_what_was_killed_while_it_grew_is_copied_and_exported_whole(local):
    """The file is as large as it was to be, and its record is not."""
    made = await local.create(VolumeRequest(DB, SMALL))
    os.truncate(made.path, 2 * SMALL)
    with made.path.open("r+b") as file:
        file.seek(2 * SMALL - 8192)
        file.write(b"the last")
    expected = made.path.read_bytes()
    taken = await local.snapshots.take(made, "first", detached)
    assert (taken.size_bytes, taken.path.read_bytes() == expected) == (2 * SMALL, True)
    async with local.snapshots.stream(made, detached) as stream:
        back = await local.import_(VolumeName("back"), {}, stream)
    assert (back.size_bytes, back.path.read_bytes() == expected) == (2 * SMALL, True)


async def test_a_copy_that_nobody_wants_any_more_has_ended_when_its_caller_is_told(local, monkeypatch):
    made = await local.create(VolumeRequest(DB))
    begun, copied = threading.Event(), list[str]()

    def copying(source, target, *, wanted, **_):
        begun.set()
        while not copied:
            try:
                wanted.require()
            except NotWantedError:
                copied.append("not wanted")
                raise

    monkeypatch.setattr(files, "copy_sparse", copying)
    task = asyncio.create_task(local.snapshots.take(made, "first", detached))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert copied == ["not wanted"]


async def test_an_export_that_is_cancelled_while_it_opens_its_copy_keeps_nothing_open(local, monkeypatch):
    made = await local.create(VolumeRequest(DB))
    opened, loop = os.open, asyncio.get_running_loop()
    descriptors = []

    def opening(path, *args, **fields):
        found = opened(path, *args, **fields)
        if str(path).endswith(".new/disk.img") and "snapshots" in str(path) and args == (WHILE_EXPORTED,):
            descriptors.append(found)
            asyncio.run_coroutine_threadsafe(cancel(), loop).result(10)
        return found

    async def cancel():
        task.cancel()

    async def export():
        async with local.snapshots.stream(made, detached):
            pass

    monkeypatch.setattr("hyperd.storage.volume_snapshots.os.open", opening)
    task = asyncio.create_task(export())
    with pytest.raises(asyncio.CancelledError):
        await task
    (descriptor,) = descriptors
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_where_blocks_cannot_be_shared_a_copy_of_one_moment_is_refused(local, tmp_path):
    made = await local.create(VolumeRequest(DB, SMALL))
    async with small_filesystem(tmp_path / "small", size_mib=64) as directory:
        source = directory / "disk.img"
        source.write_bytes(b"data")
        with pytest.raises(UnsupportedError, match="cannot share blocks"):
            await local.snapshots.take(replace(made, path=source), "first", detached, only_shared=True)
    assert await local.snapshots.list() == []


async def test_an_export_of_zeros_that_a_guest_wrote_can_be_given_up_on_the_way(local):
    made = await local.create(VolumeRequest(DB, 4 * SMALL))
    descriptor = os.open(made.path, os.O_RDWR)
    try:
        for offset in range(SMALL, 4 * SMALL, 1 << 20):
            os.pwrite(descriptor, bytes(1 << 20), offset)
        pieces = list(archive.packed(descriptor, archive.Manifest(4 * SMALL, "ext4")))
    finally:
        os.close(descriptor)
    assert pieces.count(b"") == 3  # each of 64 MiB
    async with local.snapshots.stream(made, detached) as stream:
        assert all([piece async for piece in stream])
    async with local.snapshots.stream(made, detached) as stream:
        back = await local.import_(VolumeName("back"), {}, stream)
    assert back.path.read_bytes() == made.path.read_bytes()
    assert allocated_bytes(back.path) < 3 << 20
