# SPDX-License-Identifier: Apache-2.0
"""Many sandboxes: names, references, lists."""

import asyncio
from dataclasses import replace

import pytest

from hyperd.errors import (
    ExistsError,
    ImageNotFoundError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from hyperd.model.container import ContainerSpec, ContainerState, ExitReason
from hyperd.model.vm import VmStatus
from hyperd.sandbox import Fleet, SandboxHandle, is_running
from tests.fakes.world import World, created, eventually, started


async def test_a_container_is_found_by_id_name_and_unique_prefix(fleet: Fleet) -> None:
    handle = await created(fleet, name="web")
    for reference in (handle.record.sandbox_id, "web", "/web", handle.record.sandbox_id[:12]):
        assert fleet.get(reference).record is handle.record
    for unknown in ("", "we", "zz", "0" * 64):
        with pytest.raises(NotFoundError):
            fleet.get(unknown)


async def test_an_ambiguous_prefix_is_refused(fleet: Fleet) -> None:
    for _ in range(17):  # of 17 ids two begin alike
        await created(fleet)
    ids = [view.record.sandbox_id for view in fleet.list_views((), everything=True)]
    twice = next(digit for digit in "0123456789abcdef" if sum(key[0] == digit for key in ids) > 1)
    with pytest.raises(InvalidError, match="begin with it"):
        fleet.get(twice)


async def test_a_name_like_the_prefix_of_an_id_means_the_name(fleet: Fleet) -> None:
    other = await created(fleet)
    named = await created(fleet, name=other.record.sandbox_id[:8])
    assert fleet.get(other.record.sandbox_id[:8]).record is named.record


async def test_a_taken_name_is_refused_and_says_whose_it_is(fleet: Fleet) -> None:
    handle = await created(fleet, name="web")
    with pytest.raises(ExistsError, match=handle.record.sandbox_id[:12]):
        await created(fleet, name="web")
    with pytest.raises(InvalidError, match="is not a name"):
        await created(fleet, name="-web")


async def test_two_creations_of_one_name_at_once_make_one(fleet: Fleet) -> None:
    results = await asyncio.gather(*(created(fleet, name="web") for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(result, SandboxHandle) for result in results) == 1
    assert sum(isinstance(result, ExistsError) for result in results) == 4


async def test_hanging_up_in_a_creation_leaves_no_record(world: World, fleet: Fleet) -> None:
    async with asyncio.TaskGroup() as tasks:
        creation = tasks.create_task(created(fleet, name="web"))
        await eventually(lambda: fleet._creating)
        creation.cancel()
    assert await world.records.load() == []
    await created(fleet, name="web")


async def test_what_cannot_be_created_is_refused(fleet: Fleet) -> None:
    with pytest.raises(ImageNotFoundError):
        await fleet.create(ContainerSpec("unknown"))
    with pytest.raises(InvalidError, match="too little to boot"):
        await created(fleet, memory_bytes=16 << 20)
    with pytest.raises(InvalidError, match="more than the host"):
        await created(fleet, memory_bytes=1 << 50)
    with pytest.raises(InvalidError, match="CPUs"):
        await created(fleet, cpus=99.0)
    with pytest.raises(UnsupportedError, match="this host runs"):
        await created(fleet, platform="linux/s390x")
    assert fleet.list_views((), everything=True) == []


async def test_an_image_for_another_architecture_is_refused(world: World, fleet: Fleet) -> None:
    image = world.images.add("foreign")
    world.images.images[image.image_id] = replace(
        image, platform=replace(image.platform, architecture="s390x")
    )
    with pytest.raises(UnsupportedError, match="s390x"):
        await fleet.create(ContainerSpec("foreign"))


async def test_a_bad_stop_signal_of_an_image_is_a_warning(world: World, fleet: Fleet) -> None:
    image = world.images.add("odd")
    world.images.images[image.image_id] = replace(image, config=replace(image.config, stop_signal="NOPE"))
    _, warnings = await fleet.create(ContainerSpec("odd", network="none", dns_servers=("1.1.1.1",)))
    assert len(warnings) == 2


async def test_images_of_containers_are_in_use(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    assert fleet.images_in_use() == {handle.record.image_id: "a container"}
    await handle.remove(force=False)
    assert fleet.images_in_use() == {}


async def test_an_image_whose_removal_met_a_creation_has_no_container(world: World, fleet: Fleet) -> None:
    """In whatever order: the removal is refused, or the creation is."""
    image = await world.images.get("alpine")
    insert = world.records.insert

    async def insert_late(*added, **options) -> None:
        assert fleet.images_in_use() == {image.image_id: "a container"}  # a removal that asks now is refused
        del world.images.images[image.image_id]  # one that asked before is not
        await insert(*added, **options)

    world.records.insert = insert_late  # type: ignore[method-assign]
    with pytest.raises(ImageNotFoundError):
        await created(fleet, name="web")
    assert fleet.images_in_use() == {}
    assert await world.records.load() == []


async def test_reconciling_finds_a_vm_that_went_without_a_word(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    del world.hypervisor.running[handle.record.sandbox_id]
    await fleet.reconcile()
    assert handle.view().state is ContainerState.RUNNING  # one look is none
    await fleet.reconcile()
    async with asyncio.timeout(5):
        assert (await handle.wait_ended()).reason is ExitReason.VM_LOST


async def test_reconciling_ends_a_vm_that_should_not_be(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    sandbox_id = handle.record.sandbox_id
    world.hypervisor.running[sandbox_id] = VmStatus(sandbox_id, 1)
    await fleet.reconcile()
    world.hypervisor.fail_next_destroy = UnavailableError("busy")  # no reason for hyperd to end
    await fleet.reconcile()
    await eventually(lambda: world.hypervisor.fail_next_destroy is None)
    assert sandbox_id in world.hypervisor.running
    await fleet.reconcile()
    await eventually(lambda: sandbox_id not in world.hypervisor.running)


async def test_lists_are_newest_first_and_by_default_of_what_runs(fleet: Fleet) -> None:
    first = await started(fleet)
    second = await created(fleet)
    views = fleet.list_views((), everything=True)
    assert [view.record.name for view in views] == [second.record.name, first.record.name]
    assert [is_running(view) for view in views] == [False, True]
    assert [view.record.name for view in fleet.list_views((), everything=False)] == [first.record.name]
