# SPDX-License-Identifier: Apache-2.0
"""Forks, hibernation and rollback: what goes on from what was saved of it, and what is left when that fails."""

import asyncio
import re
from dataclasses import replace

import pytest

from hyperd.errors import (
    ExhaustedError,
    HyperError,
    InvalidError,
    RestoreError,
    UnavailableError,
    WrongStateError,
)
from hyperd.model.container import ContainerState, ExecSpec, StartPath
from hyperd.model.guest import ProcessExit, Stream
from hyperd.model.network import PortRequest, UnpublishRequest
from hyperd.model.snapshot import SnapshotKind
from hyperd.sandbox import CloneOptions, Fleet, SandboxHandle
from hyperd.sandbox.machine import Hibernated
from hyperd.sandbox.records import dumps, loads
from tests.fakes.guest_process import Script
from tests.fakes.hypervisor import restore_failed
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.lives import error_of, state

BROKEN = UnavailableError("boom")


def hibernations(world: World) -> int:
    return len(world.snapshots.list(SnapshotKind.HIBERNATION))


async def asleep(fleet: Fleet, *args: str, **fields: object) -> SandboxHandle:
    handle = await started(fleet, *args, **fields)
    await handle.hibernate()
    return handle


async def logged(handle: SandboxHandle) -> bytes:
    return b"".join([entry.data async for entry in handle.journal.read()])


def require_asleep(world: World, handle: SandboxHandle) -> None:
    sandbox_id = handle.record.sandbox_id
    assert state(handle) is ContainerState.HIBERNATED
    assert hibernations(world) == 1
    assert not world.snapshots.drafts
    assert sandbox_id not in world.hypervisor.running
    assert sandbox_id not in world.network.taps
    assert sandbox_id in world.network.leases
    assert sandbox_id in world.storage.disks
    assert sandbox_id not in dict(world.ledger.admission.held)


def require_awake(world: World, handle: SandboxHandle) -> None:
    assert state(handle) is ContainerState.RUNNING
    assert not world.agent(handle).frozen
    assert not world.hypervisor.running[handle.record.sandbox_id].paused


async def test_a_fork_is_clones_and_nothing_else(world: World, fleet: Fleet) -> None:
    source = await started(fleet)
    views, pause_ms = await fleet.fork(source.record.name, CloneOptions(2, "child"))
    assert [view.record.name for view in views] == ["child-0", "child-1"]
    assert pause_ms >= 0
    assert world.snapshots.everything() == []
    require_awake(world, source)


@pytest.mark.parametrize("count", [12, 0])
async def test_a_fork_that_cannot_be_does_not_stop_the_source(world: World, fleet: Fleet, count: int) -> None:
    source = await started(fleet)
    with pytest.raises((ExhaustedError, InvalidError)):
        await fleet.fork(source.record.name, CloneOptions(count))
    assert "freeze" not in world.agent(source).calls
    stopped = await created(fleet)
    with pytest.raises(WrongStateError, match="is not running"):
        await fleet.fork(stopped.record.name, CloneOptions())


async def test_a_fork_whose_clones_fail_leaves_no_snapshot(world: World, fleet: Fleet) -> None:
    source = await started(fleet)
    world.hypervisor.fail_next_restore = restore_failed()
    with pytest.raises(RestoreError):
        await fleet.fork(source.record.name, CloneOptions(2))
    assert world.snapshots.everything() == []
    require_awake(world, source)
    assert set(world.hypervisor.running) == {source.record.sandbox_id}


async def test_a_killed_daemon_s_fork_leaves_no_snapshot(world: World) -> None:
    async with world.daemon() as fleet:
        source = await started(fleet)
        await source.snapshot(passing=True)
        assert fleet.snapshots.list() == []
    async with world.daemon():
        await eventually(lambda: world.snapshots.everything() == [])


async def test_a_hibernated_one_holds_nothing_but_its_disk_and_address_and_wakes_where_it_was(
    world: World, fleet: Fleet
) -> None:
    world.script("say", Script([(Stream.STDOUT, b"before ")]))
    handle = await started(fleet, "say")
    await eventually(lambda: handle.journal.end_offset == 7)
    before = handle.view()
    await handle.hibernate()
    await handle.hibernate()  # idempotent
    require_asleep(world, handle)
    view = handle.view()
    assert view.started_at == before.started_at
    assert view.attachment == before.attachment
    with pytest.raises(WrongStateError, match="is hibernated") as caught:
        await handle.exec(ExecSpec(("true",)))
    assert "hyper wake" in caught.value.hint
    await handle.wake()
    await handle.wake()  # idempotent
    require_awake(world, handle)
    after = handle.view()
    assert after.started_at == before.started_at
    assert after.attachment == before.attachment
    assert after.start is not None
    assert after.start.path is StartPath.SNAPSHOT
    assert handle.record.sandbox_id not in world.storage.adopted  # its own disk, as it was
    await eventually(lambda: hibernations(world) == 0)
    world.process(handle).emit(b"after")
    world.process(handle).finish(ProcessExit(4))
    assert (await handle.wait_ended()).code == 4
    assert await logged(handle) == b"before after"
    world.require_nothing_left_of(handle)


async def test_who_is_attached_sees_what_comes_after_waking(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    session = await handle.attach(start=False)
    await handle.hibernate()
    await handle.wake()
    world.process(handle).emit(b"hello")
    async with asyncio.timeout(5):
        async for item in session:
            assert getattr(item, "data", b"") == b"hello"
            break
    await session.aclose()


async def test_a_paused_one_can_be_hibernated(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    await handle.pause()
    await handle.hibernate()
    require_asleep(world, handle)
    await handle.wake()
    require_awake(world, handle)


@pytest.mark.parametrize("step", ["freeze", "save", "publish"])
async def test_one_that_cannot_be_hibernated_goes_on(world: World, fleet: Fleet, step: str) -> None:
    handle = await started(fleet)
    match step:
        case "freeze":
            world.agent(handle).fail_next("freeze", BROKEN)
        case "save":
            world.hypervisor.fail_next_save = ExhaustedError("full")
        case _:
            world.snapshots.fail_next("publish", BROKEN)
    with pytest.raises(HyperError):
        await handle.hibernate()
    require_awake(world, handle)
    assert world.snapshots.everything() == []
    assert not world.snapshots.drafts


@pytest.mark.parametrize("step", ["intact", "disk", "network", "vm", "hello", "memory"])
async def test_one_that_cannot_be_woken_sleeps_on(world: World, fleet: Fleet, step: str) -> None:
    handle = await asleep(fleet)
    other = None
    match step:
        case "intact":
            world.snapshots.fail_next("require_intact", RestoreError("edited"))
        case "disk":
            world.images.fail_next_root_disk = BROKEN
        case "network":
            world.network.fail_next_attach = BROKEN
        case "vm":
            world.hypervisor.fail_next_restore = restore_failed()
        case "hello":
            world.dialer.fail_next_connect = BROKEN
        case "memory":
            other = await started(fleet, memory_bytes=4000 << 20)
    with pytest.raises(HyperError):
        await handle.wake()
    require_asleep(world, handle)
    if other is not None:
        await other.remove(force=True)
    await handle.wake()
    require_awake(world, handle)


async def test_stopping_a_hibernated_one_is_refused_and_it_sleeps_on(world: World, fleet: Fleet) -> None:
    handle = await asleep(fleet)
    with pytest.raises(WrongStateError, match="wake"):
        await handle.stop()
    require_asleep(world, handle)


async def test_one_that_wakes_can_be_stopped_and_sleeps_on(world: World, fleet: Fleet) -> None:
    handle = await asleep(fleet)
    world.hypervisor.gate.clear()
    waking = asyncio.get_running_loop().create_task(error_of(handle.wake()))
    await eventually(lambda: len(world.hypervisor.definitions) == 2)
    await handle.stop()
    assert isinstance(await waking, WrongStateError)
    require_asleep(world, handle)


@pytest.mark.parametrize("force", [True, False])
async def test_removing_a_hibernated_one_removes_its_memory(world: World, fleet: Fleet, force: bool) -> None:
    handle = await asleep(fleet)
    await handle.remove(force=force)
    assert hibernations(world) == 0
    world.require_nothing_left_of(handle)


async def test_removing_one_that_wakes_removes_all_of_it(world: World, fleet: Fleet) -> None:
    handle = await asleep(fleet)
    world.hypervisor.gate.clear()
    waking = asyncio.get_running_loop().create_task(error_of(handle.wake()))
    await eventually(lambda: len(world.hypervisor.definitions) == 2)
    await handle.remove(force=True)
    assert isinstance(await waking, HyperError)
    assert hibernations(world) == 0
    world.require_nothing_left_of(handle)


async def test_a_new_daemon_leaves_it_asleep(world: World) -> None:
    async with world.daemon() as fleet:
        reference = (await asleep(fleet)).record.sandbox_id
    async with world.daemon() as fleet:
        handle = fleet.get(reference)
        require_asleep(world, handle)
        await handle.wake()
        require_awake(world, handle)


async def test_a_daemon_killed_before_it_slept_has_it_run_and_no_memory_stays(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        reference, agent = handle.record.sandbox_id, world.agent(handle)
        gate = world.snapshots.hold("publish")
        hibernating = asyncio.get_running_loop().create_task(error_of(handle.hibernate()))
        await eventually(lambda: "publish" in world.snapshots.calls)
    gate.set()
    await hibernating
    agent.frozen = True  # a killed daemon undoes nothing
    await world.hypervisor.pause(reference)
    async with world.daemon() as fleet:
        await eventually(lambda: not agent.frozen)
        require_awake(world, fleet.get(reference))
        assert hibernations(world) == 0


async def test_a_daemon_killed_while_it_woke_finds_it_asleep(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await asleep(fleet)
        reference = handle.record.sandbox_id
        saved = next(iter(world.hypervisor.saved_agents.values()))
        saved.hold("configure")
        waking = asyncio.get_running_loop().create_task(error_of(handle.wake()))
        await eventually(lambda: reference in world.hypervisor.running)
        await eventually(lambda: "configure" in world.agent(handle).calls)
    await waking
    saved._gates.clear()
    async with world.daemon() as fleet:
        handle = fleet.get(reference)
        await eventually(lambda: state(handle) is ContainerState.HIBERNATED)
        require_asleep(world, handle)
        await handle.wake()


async def test_a_rollback_goes_back_and_the_log_goes_on_without_a_gap(world: World, fleet: Fleet) -> None:
    world.script("say", Script([(Stream.STDOUT, b"one ")]))
    handle = await started(fleet, "say")
    await eventually(lambda: handle.journal.end_offset == 4)
    snapshot = await handle.snapshot("s")
    world.process(handle).emit(b"two ")
    await eventually(lambda: handle.journal.end_offset == 8)
    session = await handle.attach(start=False)
    address = handle.view().attachment
    await fleet.roll_back(handle.record.name, "s")
    require_awake(world, handle)
    assert handle.view().attachment == address
    assert world.storage.adopted[handle.record.sandbox_id] == snapshot.path("disk")
    world.process(handle).emit(b"three")
    world.process(handle).finish(ProcessExit(0))
    assert (await handle.wait_ended()).code == 0
    assert await logged(handle) == b"one two three"
    async with asyncio.timeout(5):
        seen = b"".join([getattr(item, "data", b"") async for item in session])
    assert seen == b"three"
    await session.aclose()
    await fleet.roll_back(handle.record.name, "s")  # one that has ended, too
    require_awake(world, handle)
    await handle.remove(force=True)


async def test_a_rollback_is_to_a_snapshot_of_its_own(fleet: Fleet) -> None:
    handle, other = await started(fleet), await started(fleet)
    await handle.snapshot("s")
    with pytest.raises(InvalidError, match="is of container"):
        await fleet.roll_back(other.record.name, "s")
    fresh = await created(fleet)
    with pytest.raises(InvalidError):
        await fleet.roll_back(fresh.record.name, "s")


async def test_a_rollback_that_fails_is_a_failed_start_and_can_be_tried_again(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet)
    await handle.snapshot("s")
    world.hypervisor.fail_next_restore = restore_failed()
    with pytest.raises(RestoreError):
        await fleet.roll_back(handle.record.name, "s")
    assert state(handle) is ContainerState.FAILED
    world.require_nothing_left_of(handle)
    assert handle.record.sandbox_id not in world.storage.adopted  # its disk is still the one that it had
    assert not world.storage.staged
    await fleet.roll_back(handle.record.name, "s")
    require_awake(world, handle)


async def test_a_damaged_snapshot_does_not_end_what_runs(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    await handle.snapshot("s")
    world.snapshots.fail_next("require_intact", RestoreError("edited"))
    with pytest.raises(RestoreError):
        await fleet.roll_back(handle.record.name, "s")
    require_awake(world, handle)


@pytest.mark.parametrize("phase", ["vm", "configure"])
async def test_a_daemon_killed_in_a_rollback_finishes_it(world: World, phase: str) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        reference = handle.record.sandbox_id
        await handle.snapshot("s")
        saved = next(iter(world.hypervisor.saved_agents.values()))
        if phase == "vm":
            world.hypervisor.gate.clear()
        else:
            saved.hold("configure")
        rolling = asyncio.get_running_loop().create_task(error_of(fleet.roll_back(reference, "s")))
        if phase == "vm":
            await eventually(lambda: reference not in world.hypervisor.running)
        else:
            await eventually(lambda: world.agent(handle).frozen)
            await eventually(lambda: "configure" in world.agent(handle).calls)
    await rolling
    world.hypervisor.gate.set()
    saved._gates.clear()
    async with world.daemon() as fleet:
        handle = fleet.get(reference)
        await eventually(lambda: state(handle) is ContainerState.RUNNING)
        await eventually(lambda: not world.agent(handle).frozen)
        require_awake(world, handle)
        assert reference in world.storage.adopted


async def test_a_port_that_was_taken_back_stays_so_and_one_that_came_later_comes_back(
    world: World, fleet: Fleet
) -> None:
    asked = (PortRequest(80, host_port=8080), PortRequest(81), PortRequest(82, host_port=8082))
    handle = await started(fleet, ports=asked)
    await handle.unpublish([UnpublishRequest(80)])
    await handle.publish([PortRequest(83, host_port=8083)])
    await handle.hibernate()
    assert not handle.view().ports
    await handle.wake()
    published = {(port.container_port, port.host_port) for port in handle.view().ports}
    assert published >= {(82, 8082), (83, 8083)}
    assert {container_port for container_port, _ in published} == {81, 82, 83}


async def test_what_an_older_hyperd_put_to_sleep_wakes_with_the_ports_it_was_created_with(
    world: World, fleet: Fleet
) -> None:
    handle = await asleep(fleet, ports=(PortRequest(80, host_port=8080),))
    (stored,) = await world.records.load()
    slept = stored.state
    assert isinstance(slept, Hibernated)
    written = dumps(slept)
    older = re.sub(r',"ports":\[.*?\]', "", written)
    assert older != written
    assert loads(Hibernated, older) == replace(slept, ports=None)
    handle._driver.state = replace(slept, ports=None)
    await handle.wake()
    assert [port.host_port for port in handle.view().ports] == [8080]
