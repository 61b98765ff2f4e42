# SPDX-License-Identifier: Apache-2.0
"""A rollback, and what is asked of the sandbox while it is under way."""

import asyncio

import pytest

from hyperd.errors import ExhaustedError, HyperError, UnavailableError, WrongStateError
from hyperd.model.container import ContainerState
from hyperd.model.snapshot import SnapshotKind
from hyperd.sandbox import CloneOptions, Fleet, SandboxHandle, machine
from hyperd.sandbox.errands import Errands
from hyperd.sandbox.message import AskRollback, AskStop
from hyperd.sandbox.revival import Origin, Reviver
from tests.fakes.world import World, eventually, started


def state(handle: SandboxHandle) -> ContainerState:
    return handle.view().state


async def let_others_run() -> None:
    for _ in range(200):
        await asyncio.sleep(0)


@pytest.mark.parametrize("steps", [0, 3, 10])
async def test_one_stopped_while_it_rolls_back_leaves_nothing_and_can_start(
    world: World, fleet: Fleet, steps: int
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
        before = handle._driver.state
        assert isinstance(before, machine.Running)
        with pytest.raises(UnavailableError, match="another"):
            await handle._driver._errands._adopt(vm, before.facts)
        assert world.agent(handle).frozen


async def test_one_is_woken_when_its_old_vm_is_gone(world: World, fleet: Fleet) -> None:
    going, detach = asyncio.Event(), world.network.detach

    async def detach_late(sandbox_id):
        await going.wait()
        await detach(sandbox_id)

    world.network.detach = detach_late  # type: ignore[method-assign]
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


@pytest.mark.parametrize("step", ["disk", "image", "intact"])
async def test_a_rollback_that_cannot_be_leaves_what_runs_as_it_is(
    world: World, fleet: Fleet, step: str
) -> None:
    handle = await started(fleet)
    snapshot = await handle.snapshot("s")
    vm = world.hypervisor.running[handle.record.sandbox_id]
    match step:
        case "disk":
            world.storage.fail_next_adopt = ExhaustedError("no space left")
        case "image":
            world.images.fail_next_root_disk = UnavailableError("boom")
        case _:
            world.snapshots.damaged.add(snapshot.manifest.snapshot_id)
    with pytest.raises(HyperError):
        await fleet.roll_back(handle.record.name, "s")
    assert state(handle) is ContainerState.RUNNING
    assert world.hypervisor.running[handle.record.sandbox_id] == vm
    assert not world.storage.staged
    assert handle.record.sandbox_id not in world.storage.adopted


async def test_a_snapshot_stays_while_it_is_rolled_back_to_or_restored(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    await handle.snapshot("s")
    world.storage.gate.clear()
    rolling = asyncio.get_running_loop().create_task(fleet.roll_back(handle.record.name, "s"))
    await let_others_run()
    with pytest.raises(WrongStateError, match="is being rolled back"):
        await fleet.roll_back(handle.record.name, "s")
    with pytest.raises(WrongStateError, match="is being restored"):
        await fleet.snapshots.remove("s")
    world.storage.gate.set()
    await rolling
    world.storage.gate.clear()
    restoring = asyncio.get_running_loop().create_task(fleet.restore("s", CloneOptions()))
    await let_others_run()
    with pytest.raises(WrongStateError, match="is being restored"):
        await fleet.snapshots.remove("s")
    world.storage.gate.set()
    await restoring
    await fleet.snapshots.remove("s")
    assert world.snapshots.list(SnapshotKind.SANDBOX) == []
