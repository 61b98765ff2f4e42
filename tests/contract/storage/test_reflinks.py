# SPDX-License-Identifier: Apache-2.0
"""Copies of disks on a real XFS whose files share blocks, and on one whose files do not."""

import os

import pytest
import pytest_asyncio

from hyperd.errors import ExhaustedError, UnsupportedError
from hyperd.host.database import Database
from hyperd.model.vm import SandboxId
from hyperd.model.volume import VolumeName, VolumeRequest
from hyperd.storage import LocalStorage
from tests.contract.storage.volumes import DB, SMALL, detached, opened
from tests.mounts import used_bytes, xfs_filesystem

FILESYSTEM_MIB = 512
DATA = 24 << 20
LITTLE = 3 << 20  # of the file system's own: extents, inodes, its log
SOURCE, COPY = SandboxId("1" * 64), SandboxId("2" * 64)


@pytest.fixture(params=[True, False], ids=["reflink", "no reflink"])
def shares(request):
    """Whether files may share blocks."""
    return request.param


@pytest.fixture
def place(tmp_path, shares):
    with xfs_filesystem(tmp_path / "xfs", size_mib=FILESYSTEM_MIB, reflink=shares) as mounted:
        yield mounted


@pytest_asyncio.fixture
async def volumes(place, tmp_path):
    database = Database(tmp_path / "records.sqlite")
    await database.open()
    subject = await opened(database, place / "volumes")
    yield subject
    subject.close()
    await database.close()


def write(path, offset, size):
    data = os.urandom(size)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
        os.fsync(file.fileno())
    return data


def require_cost(before, place, size):
    """That of ``size`` bytes of data, and a little for the file system."""
    assert size <= used_bytes(place) - before <= size + LITTLE


async def test_a_snapshot_costs_what_changes_afterwards_where_blocks_are_shared(volumes, place, shares):
    made = await volumes.create(VolumeRequest(DB, SMALL))
    write(made.path, 8 << 20, DATA)
    empty = used_bytes(place)
    first = await volumes.snapshots.take(made, "first", detached)
    require_cost(empty, place, 0 if shares else DATA)
    held, before = first.path.read_bytes(), used_bytes(place)
    write(made.path, 8 << 20, 1 << 20)
    second = await volumes.snapshots.take(made, "second", detached)
    require_cost(before, place, 1 << 20 if shares else DATA)
    assert first.path.read_bytes() == held
    assert second.path.read_bytes() == made.path.read_bytes() != held
    await volumes.remove(DB)
    await volumes.snapshots.remove("second")
    assert (await volumes.snapshots.get("first")).path.read_bytes() == held


async def test_a_volume_that_begins_as_a_snapshot_is_its_own(volumes, place, shares):
    made = await volumes.create(VolumeRequest(DB, SMALL))
    write(made.path, 8 << 20, DATA)
    first = await volumes.snapshots.take(made, "first", detached)
    held, before = first.path.read_bytes(), used_bytes(place)
    copy = await volumes.create(VolumeRequest(VolumeName("copy"), snapshot="first"))
    require_cost(before, place, 0 if shares else DATA)
    write(copy.path, 8 << 20, 1 << 20)
    assert first.path.read_bytes() == made.path.read_bytes() == held
    async with volumes.snapshots.stream(copy, detached) as stream:
        back = await volumes.import_(VolumeName("back"), {}, stream)
    assert back.path.read_bytes() == copy.path.read_bytes()


async def test_one_moment_whoever_writes_is_to_be_had_where_blocks_are_shared(volumes, shares):
    made = await volumes.create(VolumeRequest(DB, SMALL))
    if shares:
        taken = await volumes.snapshots.take(made, "first", detached, only_shared=True)
        assert taken.path.read_bytes() == made.path.read_bytes()
        return
    with pytest.raises(UnsupportedError, match="cannot share blocks"):
        await volumes.snapshots.take(made, "first", detached, only_shared=True)
    assert await volumes.snapshots.list() == []


async def test_a_file_system_with_no_room_for_a_copy_has_room_for_one_that_shares(volumes, place, shares):
    made = await volumes.create(VolumeRequest(DB, SMALL))
    write(made.path, 8 << 20, DATA)
    used_bytes(place)  # what is reserved ahead is given back
    free_mib = (os.statvfs(place).f_bavail * os.statvfs(place).f_frsize) >> 20
    with (place / "ballast").open(
        "xb"
    ) as file:  # leaves the 64 MiB that are kept free, and half of what a copy takes
        os.posix_fallocate(file.fileno(), 0, (free_mib - 64 - (DATA >> 21)) << 20)
    if shares:
        await volumes.snapshots.take(made, "first", detached)
        return
    with pytest.raises(ExhaustedError):
        await volumes.snapshots.take(made, "first", detached)
    assert await volumes.snapshots.list() == []
    assert list((place / "volumes/.snapshots").iterdir()) == []


async def test_writable_disks_of_new_containers_forks_and_rollbacks(place, shares):
    storage = LocalStorage(place / "storage", size_bytes=256 << 20)
    try:
        disk = await storage.create_writable(SOURCE)
        write(disk, 64 << 20, DATA)
        before = used_bytes(place)
        fork = await storage.adopt_writable(COPY, disk)
        require_cost(before, place, 0 if shares else DATA)
        held = disk.read_bytes()
        write(fork, 64 << 20, 1 << 20)
        assert disk.read_bytes() == held != fork.read_bytes()
        await storage.stage_writable(COPY, disk)
        assert (await storage.adopt_staged(COPY)).read_bytes() == held
    finally:
        storage.close()
