# SPDX-License-Identifier: Apache-2.0
"""Paths that lie in volumes: of a container that runs, and of one that does not."""

import asyncio

import pytest

from hyperd.errors import UnsupportedError, WrongStateError
from hyperd.model.volume import Mount, MountType, VolumeName, VolumeRequest
from hyperd.sandbox import Fleet
from tests.fakes.world import World, created, started
from tests.unit.sandbox.opening import disk_of, read, write


def in_volume(*, readonly: bool = False) -> Mount:
    return Mount(MountType.VOLUME, "/data", "db", readonly)


async def test_of_one_that_runs_a_path_in_a_volume_is_seen_as_its_processes_see_it(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet, mounts=(in_volume(), Mount(MountType.BIND, "/x", "/srv")))
    for path in (b"/data/file", b"/x/file"):
        disk_of(world, handle).write(path, b"1")
        assert await read(handle, path) != []
    await write(handle, path=b"/data")
    assert await read(handle, b"/data/written") != []
    assert "open_volume" not in world.agent(handle).calls


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
async def test_of_one_that_does_not_run_a_volume_is_opened_in_a_vm_and_nothing_else(
    world: World, fleet: Fleet, filesystem: str
) -> None:
    await fleet.volumes.create(VolumeRequest(VolumeName("db"), filesystem=filesystem))
    handle = await created(fleet, mounts=(Mount(MountType.VOLUME, "/other", "other"), in_volume()))
    disk_of(world, handle).synced[b"/file"] = b"1"
    world.hypervisor.definitions.clear()
    assert await read(handle, b"/data/file") != []
    agent = world.agent(handle)
    assert agent.opened_volumes == [("volume0", filesystem, "data", False)]
    assert agent.calls[-3:] == ["delete_container", "delete_container", "shutdown"]
    [definition] = world.hypervisor.definitions
    assert [disk.path.parent.name for disk in definition.disks if disk.serial.startswith("volume")] == ["db"]
    world.require_nothing_left_of(handle)
    assert world.volumes.attached_to("db") == set()
    await write(handle, path=b"/data/")
    assert b"/written" in disk_of(world, handle).synced


async def test_of_one_that_does_not_run_what_is_no_disk_is_refused_with_where_it_is(
    world: World, fleet: Fleet
) -> None:
    await fleet.volumes.create(VolumeRequest(VolumeName("pool"), filesystem="virtiofs"))
    handle = await created(
        fleet,
        mounts=(
            Mount(MountType.BIND, "/x", "/srv"),
            Mount(MountType.VOLUME, "/pool", "pool"),
            in_volume(readonly=True),
        ),
    )
    for path, where in ((b"/x/file", "/srv"), (b"/pool/file", "volume inspect")):
        with pytest.raises(UnsupportedError) as raised:
            await read(handle, path)
        assert where in raised.value.hint
    with pytest.raises(WrongStateError, match="is mounted read-only at /data"):
        await write(handle, path=b"/data")
    assert world.hypervisor.definitions == []
    disk_of(world, handle).synced[b"/file"] = b"1"
    assert await read(handle, b"/data/file") != []
    assert world.agent(handle).opened_volumes == [("volume0", "ext4", "data", True)]


async def test_what_happens_to_its_other_volumes_is_no_matter(world: World, fleet: Fleet) -> None:
    other = Mount(MountType.VOLUME, "/other", "other")
    writer = await started(fleet, name="writer", mounts=(other,))
    handle = await created(fleet, mounts=(other, in_volume()))
    await write(handle, path=b"/data")
    assert b"/written" in disk_of(world, handle).synced
    assert world.volumes.attached_to("other") == {writer.record.sandbox_id}


async def test_while_its_files_are_open_a_snapshot_of_the_volume_says_so(world: World, fleet: Fleet) -> None:
    handle = await created(fleet, mounts=(in_volume(),))
    disk_of(world, handle).synced[b"/file"] = b"1"
    reads = asyncio.Event()

    async def take(_: object) -> None:
        reads.set()
        await asyncio.Event().wait()

    reading = asyncio.create_task(handle.files.read(b"/data/file", take))
    await reads.wait()
    with pytest.raises(WrongStateError, match=r"files of container .* are being read or written"):
        await fleet.living_volumes.snapshot(VolumeName("db"), "")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await fleet.living_volumes.snapshot(VolumeName("db"), "")


async def test_a_volume_that_another_container_writes_to_is_not_opened_and_that_is_said(
    world: World, fleet: Fleet
) -> None:
    writer = await started(fleet, name="writer", mounts=(in_volume(),))
    handle = await created(fleet, mounts=(in_volume(),))
    with pytest.raises(WrongStateError, match="container writer"):
        await read(handle, b"/data/file")
    world.require_nothing_left_of(handle)
    assert world.volumes.attached_to("db") == {writer.record.sandbox_id}
