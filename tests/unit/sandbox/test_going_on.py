# SPDX-License-Identifier: Apache-2.0
"""A sandbox that was saved goes on; one that does not is tried again, and keeps nobody from ending it."""

import asyncio

import pytest

from hyperd.errors import (
    ExhaustedError,
    HyperError,
    TimeoutExpiredError,
    UnavailableError,
)
from hyperd.model.container import ContainerState, ExitReason
from hyperd.sandbox import Fleet
from tests.fakes.world import World, eventually, started
from tests.unit.sandbox.saved import BROKEN, expect_failure, require_going_on, require_no_snapshot


async def test_a_thaw_that_fails_once_is_tried_again(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    world.agent(handle).fail_next("thaw", BROKEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hyperd.sandbox.tenure.THAW_PATIENCE_S", 0.01)
        await handle.snapshot()
    require_going_on(world, handle)


async def test_a_removal_by_force_does_not_wait_for_a_vm_that_does_not_go_on(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet)
    world.hypervisor.hold("resume")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(expect_failure(handle))
        await eventually(lambda: "resume" in world.hypervisor.calls)
        await handle.remove(force=True)
    require_no_snapshot(world)
    world.require_nothing_left_of(handle)


@pytest.mark.parametrize("what", ["resume", "thaw"])
async def test_a_stop_does_not_wait_long_for_a_vm_that_does_not_go_on(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("hyperd.sandbox.tenure.GO_ON_TIMEOUT_S", 0.05)
    handle = await started(fleet)
    agent, hypervisor = world.agent(handle), world.hypervisor
    calls = hypervisor.calls if what == "resume" else agent.calls
    gate = hypervisor.hold(what) if what == "resume" else agent.hold(what)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(expect_failure(handle))
        await eventually(lambda: what in calls)
        await handle.stop(timeout_s=60)
        gate.set()
    ended = await handle.wait_ended()
    assert (ended.code, ended.reason) == (137, ExitReason.STOPPED)
    assert "shutdown" not in agent.calls  # it cannot be asked to sync
    require_no_snapshot(world)
    assert handle.record.sandbox_id not in hypervisor.running


async def test_a_paused_one_that_cannot_go_on_is_stopped_all_the_same(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperd.sandbox.tenure.GO_ON_TIMEOUT_S", 0.05)
    handle = await started(fleet)
    await handle.pause()
    world.hypervisor.hold("resume")
    await asyncio.wait_for(handle.stop(timeout_s=60), 5)
    assert (await handle.wait_ended()).reason is ExitReason.STOPPED


async def test_an_agent_that_never_thaws_is_not_waited_for_for_ever(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperd.sandbox.tenure.THAW_TIMEOUT_S", 0.05)
    handle = await started(fleet)
    world.agent(handle).hold("thaw")
    with pytest.raises(TimeoutExpiredError, match="was not thawed"):
        await asyncio.wait_for(handle.snapshot(), 5)
    require_no_snapshot(world)


async def test_one_found_paused_that_cannot_be_saved_is_paused_again(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        reference = handle.record.sandbox_id
        await handle.pause()
    async with world.daemon() as fleet:
        handle = fleet.get(reference)
        world.snapshots.fail_next("begin", ExhaustedError("full"))
        with pytest.raises(ExhaustedError):
            await handle.snapshot()
        assert handle.view().state is ContainerState.PAUSED
        assert world.hypervisor.running[reference].paused


@pytest.mark.parametrize("hibernate", [False, True])
async def test_a_source_that_does_not_go_on_is_tried_again(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, hibernate: bool
) -> None:
    monkeypatch.setattr("hyperd.sandbox.operations.RETRY_DELAY_S", 0.001)
    handle = await started(fleet)
    vm, resume, broken = handle.record.sandbox_id, world.hypervisor.resume, True

    async def resume_later(sandbox_id):
        await asyncio.sleep(0)
        if broken:
            raise UnavailableError("does not answer")
        await resume(sandbox_id)

    monkeypatch.setattr(world.hypervisor, "resume", resume_later)
    world.snapshots.fail_next("publish" if hibernate else "add_copy", ExhaustedError("full"))
    with pytest.raises(HyperError):
        await (handle.hibernate() if hibernate else handle.snapshot())
    await eventually(lambda: handle.view().trouble)
    assert world.hypervisor.running[vm].paused
    broken = False
    await eventually(lambda: not world.hypervisor.running[vm].paused and not world.agent(handle).frozen)
    await eventually(lambda: not handle.view().trouble)


async def test_unpause_lets_one_go_on_that_should_run(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    world.agent(handle).frozen = True
    await world.hypervisor.pause(handle.record.sandbox_id)
    await handle.unpause()
    assert not world.hypervisor.running[handle.record.sandbox_id].paused
    assert not world.agent(handle).frozen
