# SPDX-License-Identifier: Apache-2.0
"""Removals, asked for and automatic: nothing is left, and who waits is told."""

import asyncio

import pytest

from hyperd.errors import (
    ExhaustedError,
    NotFoundError,
    UnavailableError,
    WrongStateError,
)
from hyperd.model.container import ContainerState, Exit, ExitReason
from hyperd.model.guest import ProcessExit, Stream
from hyperd.sandbox import Fleet
from tests.fakes.guest_process import Script
from tests.fakes.hypervisor import qemu_died
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.lives import TERM_IGNORED, all_of, ended, error_of, state


@pytest.mark.parametrize("when", ["created", "starting", "running", "stopping", "exited", "failed"])
async def test_remove_by_force_works_in_every_state(world: World, fleet: Fleet, when: str) -> None:
    world.script("stubborn", TERM_IGNORED)
    handle = await created(fleet, "stubborn")
    sandbox_id = handle.record.sandbox_id
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        if when == "starting":
            world.hypervisor.gate.clear()
            tasks.create_task(error_of(handle.start()))
            await eventually(lambda: world.hypervisor.definitions)
        elif when != "created":
            if when == "failed":
                world.hypervisor.fail_next_start = qemu_died()
            await error_of(handle.start())
        if when == "stopping":
            tasks.create_task(handle.stop(timeout_s=600))
            await eventually(lambda: state(handle) is ContainerState.STOPPING)
        if when == "exited":
            await handle.stop(timeout_s=0)
        assert state(handle) == when
        if when in ("starting", "running", "stopping"):
            with pytest.raises(WrongStateError):
                await handle.remove(force=False)
        removals = [tasks.create_task(handle.remove(force=True)) for _ in range(2)]
        for removal in removals:
            await removal
        with pytest.raises(NotFoundError):
            fleet.get(sandbox_id)
    world.require_nothing_left_of(handle)
    assert sandbox_id not in world.storage.disks
    assert sandbox_id not in world.network.leases
    assert not handle.journal.directory.exists()
    assert await world.records.load() == []
    await handle.remove(force=False)  # idempotent, even for one who still holds it
    await handle.stop()
    with pytest.raises(NotFoundError):
        await handle.start()


async def test_a_removal_that_failed_can_be_tried_again(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    world.network.fail_next_release = UnavailableError("netlink is busy")
    with pytest.raises(UnavailableError):
        await handle.remove(force=False)
    assert state(handle) is ContainerState.REMOVING
    await handle.remove(force=False)
    assert fleet.list_views((), everything=True) == []


async def test_a_removal_frees_its_disk_before_anything_has_to_be_written_down(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet)
    world.network.fail_next_release = ExhaustedError("no space left for the database")
    with pytest.raises(ExhaustedError):
        await handle.remove(force=True)
    assert world.storage.disks == {}
    assert not (world.root / "sandboxes" / handle.record.sandbox_id).exists()
    await handle.remove(force=True)
    world.require_nothing_left_of(handle)


async def test_one_who_waits_for_a_container_that_never_ran_is_told_of_its_removal(fleet: Fleet) -> None:
    handle = await created(fleet)
    assert await ended(handle) == Exit(0, ExitReason.EXITED)
    await handle.remove(force=False)
    with pytest.raises(NotFoundError):
        await ended(handle)


async def test_one_who_waits_is_told_of_a_removal_that_failed(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    world.network.fail_next_release = UnavailableError("netlink is busy")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        removal = tasks.create_task(error_of(handle.remove(force=False)))
        await eventually(lambda: state(handle) is ContainerState.REMOVING)
        wait = tasks.create_task(error_of(handle.wait_ended()))
        await asyncio.sleep(0)
    assert isinstance(removal.result(), UnavailableError)
    assert isinstance(wait.result(), UnavailableError)


async def test_a_start_that_fails_is_told_when_its_auto_remove_is_over(world: World, fleet: Fleet) -> None:
    handle = await created(fleet, name="once", auto_remove=True)
    world.hypervisor.fail_next_start = UnavailableError("no")
    with pytest.raises(UnavailableError):
        await handle.start()
    assert fleet.list_views((), everything=True) == []
    assert handle.record.sandbox_id not in world.storage.disks
    await created(fleet, name="once")


async def test_auto_remove_frees_the_name_before_the_end_is_told(world: World, fleet: Fleet) -> None:
    world.script("echo", Script([(Stream.STDOUT, b"hi\n")], ProcessExit(4)))
    handle = await created(fleet, "echo", name="once", auto_remove=True)
    session = await handle.attach(start=True)
    assert await all_of(session) == (b"hi\n", b"", Exit(4, ExitReason.EXITED))
    await session.aclose()
    await created(fleet, name="once")


async def test_auto_remove_after_a_failed_start_leaves_nothing(world: World, fleet: Fleet) -> None:
    handle = await created(fleet, auto_remove=True)
    world.hypervisor.fail_next_start = qemu_died()
    with pytest.raises(UnavailableError):
        await handle.start()
    await eventually(lambda: not fleet.list_views((), everything=True))
    assert not world.storage.disks


async def test_auto_remove_without_room_leaves_nothing(world: World, fleet: Fleet) -> None:
    await started(fleet, memory_bytes=4000 << 20)
    handle = await created(fleet, auto_remove=True)
    with pytest.raises(ExhaustedError):
        await handle.start()
    await eventually(lambda: len(fleet.list_views((), everything=True)) == 1)


async def test_who_is_cut_off_already_is_not_once_more(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    await handle.stop(timeout_s=0)
    assert world.network.detached == [handle.record.sandbox_id]
