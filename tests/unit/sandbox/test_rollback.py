# SPDX-License-Identifier: Apache-2.0
"""A rollback, and what is asked of the sandbox while it is under way."""

import asyncio

import pytest

from hyperd.errors import UnavailableError
from hyperd.model.container import ContainerState
from hyperd.sandbox import SandboxHandle
from hyperd.sandbox.errands import Errands
from hyperd.sandbox.message import AskRollback, AskStop
from hyperd.sandbox.revival import Origin, Reviver
from tests.fakes.world import World, eventually, started


def state(handle: SandboxHandle) -> ContainerState:
    return handle.view().state


@pytest.mark.parametrize("steps", [0, 3, 10])
async def test_one_stopped_while_it_rolls_back_leaves_nothing_and_can_start(
    world: World, fleet, steps: int
) -> None:
    handle = await started(fleet)
    snapshot = await handle.snapshot("s")
    loop, driver = asyncio.get_running_loop(), handle._driver
    rolled, stopped = loop.create_future(), loop.create_future()
    driver.post(AskRollback(rolled, Origin(snapshot)))
    if steps:
        await eventually(lambda: state(handle) is ContainerState.STARTING)
        for _ in range(steps):
            await asyncio.sleep(0)
    driver.post(AskStop(stopped, 15, 1))
    await asyncio.gather(rolled, stopped, return_exceptions=True)
    assert state(handle) is ContainerState.FAILED
    world.require_nothing_left_of(handle)
    await handle.start()


async def test_a_take_over_under_way_does_not_thaw_what_was_rolled_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        reference = handle.record.sandbox_id
        await handle.snapshot("s")
    answers, adopt, configure = asyncio.Event(), Errands._adopt, Reviver._configure
    seen: list[tuple[bool, list[str]]] = []

    async def adopt_late(errands, vm, facts):
        await answers.wait()  # the agent does not answer for now
        return await adopt(errands, vm, facts)

    async def configure_late(reviver, guest, record, *args):
        answers.set()
        for _ in range(300):
            await asyncio.sleep(0)
        agent = world.hypervisor.agents[reference]
        seen.append((agent.frozen, list(agent.calls)))
        await configure(reviver, guest, record, *args)

    monkeypatch.setattr(Errands, "_adopt", adopt_late)
    monkeypatch.setattr(Reviver, "_configure", configure_late)
    async with world.daemon() as fleet:
        async with asyncio.timeout(5):
            await fleet.roll_back(reference, "s")
        ((frozen, calls),) = seen
        assert frozen
        assert "thaw" not in calls
        assert state(fleet.get(reference)) is ContainerState.RUNNING


async def test_a_take_over_that_finds_another_vm_leaves_it_frozen(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        vm = world.hypervisor.running[handle.record.sandbox_id]
        world.agent(handle).frozen = True
        world.hypervisor.running[handle.record.sandbox_id] = type(vm)(vm.sandbox_id, vm.pid + 1)
        with pytest.raises(UnavailableError, match="another"):
            await handle._driver._errands._adopt(vm, handle._driver.state.facts)
        assert world.agent(handle).frozen


async def test_one_is_woken_when_its_old_vm_is_gone(world: World, fleet) -> None:
    going, detach = asyncio.Event(), world.network.detach

    async def detach_late(sandbox_id):
        await going.wait()
        await detach(sandbox_id)

    world.network.detach = detach_late
    handle = await started(fleet)
    reference = handle.record.sandbox_id
    loop = asyncio.get_running_loop()
    hibernating = loop.create_task(handle.hibernate())
    await eventually(lambda: state(handle) is ContainerState.HIBERNATED)
    waking = loop.create_task(handle.wake())
    for _ in range(100):
        await asyncio.sleep(0)
    assert reference not in world.hypervisor.running
    going.set()
    await asyncio.gather(hibernating, waking)
    assert state(handle) is ContainerState.RUNNING
    assert reference in world.network.taps
    assert reference in dict(world.ledger.admission.held)
