# SPDX-License-Identifier: Apache-2.0
"""Snapshots of containers and of volumes under the names and ids that users give, over fakes of all rooms."""

import asyncio
from dataclasses import replace

import pytest

from hyperd.errors import ExistsError, InvalidError, NotFoundError
from hyperd.model.snapshot import SnapshotId, SnapshotKind
from hyperd.model.volume import VolumeName, VolumeRequest, VolumeSnapshotId
from hyperd.sandbox import CloneOptions, Fleet
from tests.fakes.world import World, started

DB = VolumeName("db")
IN_HEX = "db41"  # also the beginning of an id


def key_of(beginning: str) -> str:
    return beginning.ljust(64, "0")


async def of_container(world: World, fleet: Fleet, beginning: str, name: str = "") -> SnapshotId:
    """A container's, whose id begins so."""
    handle = await started(fleet)
    taken = await handle.snapshot(name)
    await world.snapshots.remove(taken.manifest.snapshot_id)
    key = SnapshotId(key_of(beginning))
    world.snapshots._catalog.add(replace(taken, manifest=replace(taken.manifest, snapshot_id=key)))
    return key


async def of_volume(world: World, fleet: Fleet, name: str, beginning: str = "") -> VolumeSnapshotId:
    await fleet.volumes.create(VolumeRequest(DB))
    taken = await fleet.living_volumes.snapshot(DB, name)
    if not beginning:
        return taken.snapshot_id
    key = VolumeSnapshotId(key_of(beginning))
    world.volumes.snapshots.kept[0] = replace(taken, snapshot_id=key)
    return key


async def kept(world: World) -> set[str]:
    of_containers = {item.manifest.snapshot_id for item in world.snapshots.list(SnapshotKind.SANDBOX)}
    return {*of_containers, *(await world.volumes.snapshots.names())}


async def test_a_name_means_what_has_it_and_not_an_id_that_begins_so(world: World, fleet: Fleet) -> None:
    of_a_container = await of_container(world, fleet, IN_HEX)
    of_a_volume = await of_volume(world, fleet, IN_HEX)
    assert await fleet.snapshot_desk.get(IN_HEX) == world.volumes.snapshots.kept[0]
    assert await fleet.snapshot_desk.remove(IN_HEX) == of_a_volume
    assert await kept(world) == {of_a_container}
    assert await fleet.snapshot_desk.remove(IN_HEX) == of_a_container


async def test_the_other_way_round(world: World, fleet: Fleet) -> None:
    of_a_container = await of_container(world, fleet, "aa", name=IN_HEX)
    of_a_volume = await of_volume(world, fleet, "", IN_HEX)
    assert await fleet.snapshot_desk.remove(IN_HEX) == of_a_container
    assert await kept(world) == {of_a_volume}


async def test_the_beginning_of_two_ids_of_either_kind_is_neither(world: World, fleet: Fleet) -> None:
    await of_container(world, fleet, IN_HEX + "1")
    of_a_volume = await of_volume(world, fleet, "", IN_HEX + "2")
    for call in (fleet.snapshot_desk.get, fleet.snapshot_desk.remove):
        with pytest.raises(InvalidError, match="an id that begins so"):
            await call(IN_HEX)
    assert len(await kept(world)) == 2
    assert await fleet.snapshot_desk.remove(IN_HEX + "2") == of_a_volume
    with pytest.raises(NotFoundError):
        await fleet.snapshot_desk.get("")


async def test_a_name_that_two_have_all_the_same_is_neither(world: World, fleet: Fleet) -> None:
    """An older hyperd let them."""
    of_a_container = await of_container(world, fleet, "aa", name="both")
    await of_volume(world, fleet, "both")
    with pytest.raises(InvalidError, match="more than one snapshot has this name"):
        await fleet.snapshot_desk.remove("both")
    assert await fleet.snapshot_desk.remove(of_a_container) == of_a_container


async def test_nothing_of_a_container_is_made_from_a_volumes(world: World, fleet: Fleet) -> None:
    """Nor from one whose id happens to begin as its name."""
    await of_container(world, fleet, IN_HEX)
    await of_volume(world, fleet, IN_HEX)
    with pytest.raises(InvalidError, match="is of volume db"):
        await fleet.restore(IN_HEX, CloneOptions())
    with pytest.raises(InvalidError, match="is of volume db"):
        await fleet.roll_back(fleet.views()[0].record.name, IN_HEX)
    with pytest.raises(InvalidError, match="is of volume db"):
        await anext(fleet.snapshot_desk.export(IN_HEX))


@pytest.mark.parametrize("given", ["taken", ""])
async def test_one_that_comes_in_takes_no_name_that_a_volumes_has(
    world: World, fleet: Fleet, given: str
) -> None:
    handle = await started(fleet)
    taken = await handle.snapshot("taken")
    stream = [piece async for piece in fleet.snapshot_desk.export("taken")]
    await fleet.snapshot_desk.remove("taken")
    await of_volume(world, fleet, "taken")

    async def pieces():
        for piece in stream:
            yield piece

    with pytest.raises(ExistsError, match="in use"):
        await fleet.snapshot_desk.import_(pieces(), name=given)
    came = await fleet.snapshot_desk.import_(pieces(), name="other")
    assert came.manifest.snapshot_id == taken.manifest.snapshot_id


async def test_two_that_are_made_at_once_have_two_names(fleet: Fleet) -> None:
    async with fleet.snapshot_desk.naming("one"):
        with pytest.raises(ExistsError, match="is being made"):
            async with fleet.snapshot_desk.naming("one"):
                pass
        async with fleet.snapshot_desk.naming("other"), fleet.snapshot_desk.naming(""):
            await asyncio.sleep(0)
    async with fleet.snapshot_desk.naming("one"):
        pass
