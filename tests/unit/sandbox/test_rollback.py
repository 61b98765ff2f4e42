# SPDX-License-Identifier: Apache-2.0
"""A rollback, and what is asked of the sandbox while it is under way."""

import asyncio
import re
from datetime import UTC, datetime

import pytest

from hyperd.errors import ExhaustedError, HyperError, UnavailableError, WrongStateError
from hyperd.model.container import ContainerState
from hyperd.model.network import PortRequest, UnpublishRequest
from hyperd.model.snapshot import SnapshotId, SnapshotKind
from hyperd.sandbox import CloneOptions, Fleet, SandboxHandle, machine
from hyperd.sandbox.errands import Errands
from hyperd.sandbox.message import AskRollback, AskStop
from hyperd.sandbox.records import dumps, loads
from hyperd.sandbox.revival import Origin, Reviver
from tests.fakes.world import World, eventually, started
from tests.unit.sandbox.lives import state


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
        await fleet.snapshot_desk.remove("s")
    world.storage.gate.set()
    await rolling
    world.storage.gate.clear()
    restoring = asyncio.get_running_loop().create_task(fleet.restore("s", CloneOptions()))
    await let_others_run()
    with pytest.raises(WrongStateError, match="is being restored"):
        await fleet.snapshot_desk.remove("s")
    world.storage.gate.set()
    await restoring
    await fleet.snapshot_desk.remove("s")
    assert world.snapshots.list(SnapshotKind.SANDBOX) == []


ASKED = (PortRequest(80, host_port=8080), PortRequest(82, host_port=8082))


def published(handle: SandboxHandle) -> list[tuple[int, int]]:
    return [(port.container_port, port.host_port) for port in handle.view().ports]


async def with_other_ports(fleet: Fleet) -> SandboxHandle:
    """With a snapshot of before."""
    handle = await started(fleet, ports=ASKED)
    await handle.snapshot("s")
    await handle.unpublish([UnpublishRequest(80)])
    await handle.publish([PortRequest(83, host_port=8083)])
    return handle


@pytest.mark.parametrize("paused", [False, True])
async def test_what_is_published_stays_so_when_it_is_rolled_back(fleet: Fleet, *, paused: bool) -> None:
    handle = await with_other_ports(fleet)
    if paused:
        await handle.pause()
    await fleet.roll_back(handle.record.name, "s")
    assert published(handle) == [(82, 8082), (83, 8083)]


async def test_one_that_has_ended_is_rolled_back_with_the_ports_of_a_start(fleet: Fleet) -> None:
    handle = await with_other_ports(fleet)
    await handle.stop(timeout_s=0)
    await fleet.roll_back(handle.record.name, "s")
    assert published(handle) == [(80, 8080), (82, 8082)]


async def test_a_rollback_that_the_next_daemon_finishes_publishes_the_same(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await with_other_ports(fleet)
        reference = handle.record.sandbox_id
        world.hypervisor.gate.clear()
        rolling = asyncio.get_running_loop().create_task(fleet.roll_back(reference, "s"))
        await eventually(lambda: reference not in world.hypervisor.running)
    with pytest.raises(HyperError):
        await rolling
    world.hypervisor.gate.set()
    async with world.daemon() as fleet:
        handle = fleet.get(reference)
        await eventually(lambda: state(handle) is ContainerState.RUNNING)
        assert published(handle) == [(82, 8082), (83, 8083)]


async def test_what_was_staged_for_a_rollback_that_was_never_recorded_goes(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        reference = handle.record.sandbox_id
        snapshot = await handle.snapshot("s")
    await world.storage.stage_writable(reference, snapshot.path("disk"))  # and killed
    async with world.daemon() as fleet:
        assert state(fleet.get(reference)) is ContainerState.RUNNING
        assert not world.storage.staged


def test_a_rollback_that_an_older_hyperd_began_is_read() -> None:
    begun = machine.Starting(datetime.now(UTC), back_to=SnapshotId("s"), ports=ASKED)
    assert loads(machine.Starting, dumps(begun)) == begun
    older = re.sub(r',"ports":\[.*?\]', "", dumps(begun))
    assert older != dumps(begun)
    assert loads(machine.Starting, older) == machine.Starting(begun.since, back_to=SnapshotId("s"))


async def test_of_two_rollbacks_in_one_turn_one_is_refused_and_the_other_is_whole(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet)
    await handle.snapshot("s")
    outcomes = await asyncio.gather(
        *(fleet.roll_back(handle.record.name, "s") for _ in range(2)), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert [type(outcome) for outcome in refused] == [WrongStateError]
    assert state(handle) is ContainerState.RUNNING
    assert handle.record.sandbox_id in world.storage.adopted
    await fleet.roll_back(handle.record.name, "s")
