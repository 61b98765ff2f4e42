# SPDX-License-Identifier: Apache-2.0
"""What a run left behind because its VM did not end, and the fleet's look that finds it."""

import asyncio

import pytest

from hyperd.errors import UnavailableError, WrongStateError
from hyperd.model.container import ContainerState
from hyperd.model.volume import Mount, MountType
from hyperd.sandbox import Fleet, SandboxHandle
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.lives import state

DATA = Mount(MountType.VOLUME, "/data", "db")


async def stopped_but_alive(
    world: World, fleet: Fleet, name: str, mounts: tuple[Mount, ...] = ()
) -> SandboxHandle:
    handle = await started(fleet, name=name, mounts=mounts)
    world.hypervisor.undying.add(handle.record.sandbox_id)
    world.agent(handle).fail_next("shutdown", UnavailableError("gone"))
    await handle.stop(timeout_s=0)
    return handle


async def test_a_start_waits_until_what_is_left_is_gone_and_the_volume_stays_its_own(
    world: World, fleet: Fleet
) -> None:
    first = await stopped_but_alive(world, fleet, "first", (DATA,))
    world.hypervisor.undying.clear()
    gate = world.hypervisor.hold("destroy")
    before = len(world.hypervisor.destroyed)
    for _ in range(2):
        await fleet.reconcile()
    await eventually(lambda: len(world.hypervisor.destroyed) > before)
    starting = asyncio.create_task(first.start())
    for _ in range(50):
        await asyncio.sleep(0)
    assert state(first) is ContainerState.EXITED  # its volumes are about to be detached
    gate.set()
    await starting
    assert world.volumes.attached_to("db") == {first.record.sandbox_id}
    second = await created(fleet, name="second", mounts=(DATA,))
    with pytest.raises(WrongStateError, match="first"):
        await second.start()


async def test_what_was_started_since_the_look_keeps_its_vm_and_its_volumes(
    world: World, fleet: Fleet
) -> None:
    handles = [
        await stopped_but_alive(world, fleet, "a", (DATA,)),
        await stopped_but_alive(world, fleet, "b"),
    ]
    world.hypervisor.undying.clear()
    await fleet.reconcile()
    for handle in handles:
        world.hypervisor.lose(handle.record.sandbox_id)
        await handle.start()
    fresh = [world.hypervisor.running[handle.record.sandbox_id] for handle in handles]
    for handle in handles:  # as the look of before they came up would have
        fleet._drivers[handle.record.sandbox_id].clear_away()
    await fleet.reconcile()
    for _ in range(50):
        await asyncio.sleep(0)
    assert [world.hypervisor.running[handle.record.sandbox_id] for handle in handles] == fresh
    assert [state(handle) for handle in handles] == [ContainerState.RUNNING] * 2
    assert world.volumes.attached_to("db") == {handles[0].record.sandbox_id}


async def test_one_that_does_not_end_does_not_hold_up_the_look_at_the_others(
    world: World, fleet: Fleet
) -> None:
    handles = [await stopped_but_alive(world, fleet, name) for name in "ab"]
    world.hypervisor.undying.clear()
    world.hypervisor.hold("destroy")
    before = len(world.hypervisor.destroyed)
    async with asyncio.timeout(5):
        for _ in range(3):
            await fleet.reconcile()
    await eventually(lambda: len(world.hypervisor.destroyed) == before + 2)
    asked = {handle.record.sandbox_id for handle in handles}
    assert set(world.hypervisor.destroyed[before:]) == asked


async def test_files_are_opened_when_what_is_left_is_gone(world: World, fleet: Fleet) -> None:
    handle = await stopped_but_alive(world, fleet, "first")
    world.hypervisor.undying.clear()
    gate = world.hypervisor.hold("destroy")
    before = len(world.hypervisor.destroyed)
    for _ in range(2):
        await fleet.reconcile()
    await eventually(lambda: len(world.hypervisor.destroyed) > before)
    defined = len(world.hypervisor.definitions)

    async def drop(_: object) -> None:
        pass

    opening = asyncio.create_task(handle.files.export(drop))
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(world.hypervisor.definitions) == defined
    gate.set()
    await opening
