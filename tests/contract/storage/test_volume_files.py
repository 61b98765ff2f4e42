# SPDX-License-Identifier: Apache-2.0
"""Volumes on the disk: what of them is there, whose it is, and what is left when something is cut short."""

import asyncio
import contextlib
import os
import subprocess

import pytest

from hyperd.errors import (
    ExhaustedError,
    UnavailableError,
)
from hyperd.host import files, process
from hyperd.host.database import Database
from hyperd.model.volume import SHARED, VolumeName, VolumeRequest
from hyperd.storage import acl
from tests.contract.storage.volumes import (
    BOX,
    DB,
    OTHER,
    SMALL,
    THIRD,
    KilledError,
    directories,
    opened,
    used,
)
from tests.mounts import allocated_bytes, dig, small_filesystem


async def test_one_that_has_its_name_and_no_record_yet_goes_with_the_next_start(local, database, tmp_path):
    """A kill between the two, of which the file system keeps one and the database nothing."""
    await local.create(VolumeRequest(DB))
    kept = directories(tmp_path / "volumes")
    killed: list[str] = []

    def record_and_die(connection):
        recording(connection)
        killed.extend(directories(tmp_path / "volumes"))
        raise KilledError

    async with contextlib.AsyncExitStack() as stack:
        recording = await stack.enter_async_context(
            local.providing(
                BOX, "box", [VolumeRequest(VolumeName("new"), 32 << 20)], {VolumeName("new"): False}
            )
        )
        with pytest.raises(KilledError):
            await database.transaction(record_and_die, lasting=True)
        cut_off = stack.pop_all()  # whoever would undo it is dead
    assert len(killed) == 2
    assert directories(tmp_path / "volumes") == killed
    after = await opened(database, tmp_path / "volumes")
    assert directories(tmp_path / "volumes") == kept
    after.close()
    await cut_off.aclose()


async def test_one_that_was_recorded_and_not_said_so_yet_stays(local, database, tmp_path):
    made = await local.create(VolumeRequest(DB))
    assert [path.name for path in made.path.parent.iterdir()] == ["disk.img"]
    (made.path.parent / "unrecorded").touch()
    after = await opened(database, tmp_path / "volumes")
    assert [path.name for path in made.path.parent.iterdir()] == ["disk.img"]
    after.close()


async def test_a_shared_one_is_an_empty_directory_that_root_alone_passes_to(local):
    made = await local.create(VolumeRequest(DB, filesystem=SHARED))
    assert (made.path.name, list(made.path.iterdir())) == ("data", [])
    assert (made.path.stat().st_mode & 0o7777, made.path.parent.stat().st_mode & 0o7777) == (0o755, 0o700)
    (made.path / "below").mkdir()
    (made.path / "below/file").write_bytes(bytes(1 << 20))
    (made.path / "out").symlink_to("/")
    assert (1 << 20) <= (await local.get(DB)).allocated_bytes < (2 << 20)
    assert await local.remove(DB)
    assert not made.path.parent.exists()


async def test_the_file_is_sparse_sound_and_holds_the_directory_alone(local):
    volume = await local.create(VolumeRequest(DB))
    assert volume.path.stat().st_size == SMALL
    assert volume.path.stat().st_mode & 0o777 == 0o600
    assert allocated_bytes(volume.path) < 3 << 20
    subprocess.run(["e2fsck", "-f", "-n", volume.path], check=True, capture_output=True)
    listing = subprocess.run(
        ["debugfs", "-R", "ls -p /", volume.path], check=True, capture_output=True
    ).stdout
    assert b"/040755/0/0/data//" in listing


async def test_it_belongs_to_the_qemu_that_writes_or_to_those_that_read(local, database):
    await used(local, database, BOX, VolumeRequest(DB))
    await used(local, database, OTHER, VolumeRequest(DB), readonly=True)
    await used(local, database, THIRD, VolumeRequest(DB), readonly=True)
    path = (await local.attach(BOX))[DB].path
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (70001, 0o600)
    await local.detach(BOX)
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (os.geteuid(), 0o600)
    await local.attach(OTHER)
    await local.attach(THIRD)
    assert os.getxattr(path, "system.posix_acl_access") == acl.render([70002, 70003])
    assert path.stat().st_uid == os.geteuid()
    await local.detach(OTHER)
    assert os.getxattr(path, "system.posix_acl_access") == acl.render([70003])
    await local.detach(THIRD)
    assert "system.posix_acl_access" not in os.listxattr(path)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_readers_that_come_and_go_shut_out_no_other(local, database, monkeypatch):
    """Not for a moment: a QEMU may open it in that one."""
    for box in (OTHER, THIRD):
        await used(local, database, box, VolumeRequest(DB), readonly=True)
    path = (await local.attach(OTHER))[DB].path
    seen = []
    changing = os.setxattr

    def change(*args, **fields):
        seen.append(os.getxattr(path, "system.posix_acl_access"))
        changing(*args, **fields)

    monkeypatch.setattr("hyperd.storage.acl.os.setxattr", change)
    await local.attach(THIRD)
    await local.detach(OTHER)
    assert seen == [acl.render([70002]), acl.render([70002, 70003])]
    assert os.getxattr(path, "system.posix_acl_access") == acl.render([70003])


async def test_more_readers_than_a_list_holds_are_refused_and_the_others_read_on(tmp_path):
    path = tmp_path / "disk.img"
    path.touch(0o600)
    acl.open_to_readers(path, [70001], 0)
    with pytest.raises(ExhaustedError, match="be read by 9000 at once"):
        acl.open_to_readers(path, range(70001, 79001), 0)
    assert os.getxattr(path, "system.posix_acl_access") == acl.render([70001])


async def test_a_reader_reads_and_nobody_else_does(local, database):
    await used(local, database, OTHER, VolumeRequest(DB), readonly=True)
    path = (await local.attach(OTHER))[DB].path
    root = path.parent.parent
    while root != root.parent:  # pytest's directories are root's alone
        root.chmod(root.stat().st_mode | 0o011)
        root = root.parent

    def may(uid, flags):
        return (
            subprocess.run(
                [
                    "setpriv",
                    f"--reuid={uid}",
                    "--regid=70000",
                    "--clear-groups",
                    "sh",
                    "-c",
                    f": {flags} {path}",
                ],
                check=False,
                capture_output=True,
            ).returncode
            == 0
        )

    assert may(70002, "<")
    assert not may(70002, ">>")
    assert not may(70001, "<")


async def test_what_is_half_made_or_half_removed_goes_at_the_start_and_no_other(local, database, tmp_path):
    await local.create(VolumeRequest(DB))
    root = tmp_path / "volumes"
    (kept,) = directories(root)
    unknown = "0" * 32
    for name in (unknown, f"{unknown}.new", f"{unknown}.gone", "somebody-elses"):
        (root / name).mkdir()
        (root / name / "disk.img").write_bytes(b"data")
    again = await opened(database, root)
    again.close()
    assert directories(root) == sorted([kept, unknown, "somebody-elses"])
    assert (await local.get(DB)).volume.path.is_file()


async def test_whatever_a_guest_made_in_a_shared_volume_it_is_listed_and_removed(local):
    made = await local.create(VolumeRequest(DB, filesystem=SHARED))
    dig(made.path / "deep", 2500)
    assert [view.volume.name for view in await local.list()] == [DB]
    assert (await local.get(DB)).volume.name == DB
    assert await local.remove(DB)
    assert not made.path.parent.exists()


@pytest.mark.parametrize("left", ["gone", "unrecorded", "recorded"])
async def test_what_cannot_be_swept_away_keeps_nobody_from_starting(
    local, database, tmp_path, monkeypatch, left
):
    root = tmp_path / "volumes"
    kept = [(await local.create(VolumeRequest(DB))).path.parent.name]
    other = root / {"gone": f"{'f' * 32}.gone", "unrecorded": "f" * 32, "recorded": kept[0]}[left]
    other.mkdir(exist_ok=True)
    (other / "unrecorded").touch()

    def failing(path, **_):
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as broken:
        broken.setattr(files, "remove_tree", failing)
        broken.setattr("pathlib.Path.unlink", failing)
        (await opened(database, root)).close()
        assert (await local.get(DB)).volume.path.is_file()
    (await opened(database, root)).close()
    assert directories(root) == kept
    assert [path.name for path in (root / kept[0]).iterdir()] == ["disk.img"]


async def test_records_that_are_lost_cost_no_volume(local, tmp_path):
    path = (await local.create(VolumeRequest(DB))).path
    fresh = Database(tmp_path / "fresh.sqlite")
    await fresh.open()
    (await opened(fresh, tmp_path / "volumes")).close()
    await fresh.close()
    assert path.is_file()


async def test_it_has_its_name_when_it_is_whole_and_none_any_more_when_it_goes(local, monkeypatch, tmp_path):
    seen = []
    run, remove_tree = process.run, files.remove_tree

    async def running(argv, **fields):
        seen.append(directories(tmp_path / "volumes"))
        return await run(argv, **fields)

    def removing(path):
        seen.append(directories(tmp_path / "volumes"))
        remove_tree(path)

    monkeypatch.setattr("hyperd.storage.formatting.process.run", running)
    volume_id = (await local.create(VolumeRequest(DB))).path.parent.name
    monkeypatch.setattr("hyperd.storage.volume_files.files.remove_tree", removing)
    await local.remove(DB)
    assert seen[:2] == [[f"{volume_id}.new"], [f"{volume_id}.gone"]]
    assert directories(tmp_path / "volumes") == []


async def test_a_format_that_fails_leaves_nothing(local, monkeypatch, tmp_path):
    async def failing(argv, **_):
        return process.Finished(tuple(argv), 1, b"", b"mke2fs: bad luck")

    monkeypatch.setattr("hyperd.storage.formatting.process.run", failing)
    with pytest.raises(UnavailableError, match="cannot be formatted"):
        await local.create(VolumeRequest(DB))
    assert directories(tmp_path / "volumes") == []
    assert await local.list() == []


async def test_a_caller_who_goes_leaves_nothing(local, monkeypatch, tmp_path):
    entered = asyncio.Event()

    async def hanging(*_, **__):
        entered.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("hyperd.storage.formatting.process.run", hanging)
    task = asyncio.create_task(local.create(VolumeRequest(DB)))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert directories(tmp_path / "volumes") == []


async def test_two_who_make_the_same_volume_have_the_same(local, database, tmp_path):
    await asyncio.gather(*(used(local, database, box, VolumeRequest(DB)) for box in (BOX, OTHER)))
    assert len((await local.get(DB)).users) == 2
    assert len(directories(tmp_path / "volumes")) == 1


async def test_without_space_nothing_is_made(database, tmp_path):
    async with small_filesystem(tmp_path / "small", size_mib=32) as directory:
        volumes = await opened(database, directory / "volumes")
        with pytest.raises(ExhaustedError, match="no space for a volume"):
            await volumes.create(VolumeRequest(DB))
        assert directories(directory / "volumes") == []
        volumes.close()
