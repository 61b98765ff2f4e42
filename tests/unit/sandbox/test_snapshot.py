# SPDX-License-Identifier: Apache-2.0
"""Snapshots of sandboxes that run: whole or not there, and the sandbox goes on whatever happens."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    HyperError,
    InvalidError,
    WrongStateError,
)
from hyperd.model.container import ContainerState, ExecSpec
from hyperd.model.guest import ProcessExit, Stream
from hyperd.model.snapshot import SnapshotKind
from hyperd.sandbox import Fleet, SandboxHandle
from hyperd.sandbox.source import parse_source
from hyperd.snapshot import manifest as manifests
from tests.fakes.guest_process import Script
from tests.fakes.world import World, eventually, started
from tests.unit.sandbox.lives import state
from tests.unit.sandbox.saved import BROKEN, expect_failure, require_going_on, require_no_snapshot

FULL = ExhaustedError("no space left")


async def test_a_snapshot_is_made_while_all_stands_still_and_published_when_it_runs_again(
    world: World, fleet: Fleet
) -> None:
    world.script("say", Script([(Stream.STDOUT, b"hello")]))
    handle = await started(fleet, "say", name="web", env=("A=1",))
    await eventually(lambda: handle.journal.end_offset == 5)
    seen: list[tuple[str, bool, bool]] = []
    agent, sandbox_id = world.agent(handle), handle.record.sandbox_id
    enter = world.snapshots.enter

    async def look(verb: str) -> None:
        seen.append((verb, agent.frozen, world.hypervisor.running[sandbox_id].paused))
        await enter(verb)

    world.snapshots.enter = look  # type: ignore[method-assign]
    session = await handle.exec(ExecSpec(("sleep",)))
    snapshot = await handle.snapshot("first")
    await session.aclose()
    assert seen == [
        ("begin", False, False),
        ("create_file", False, False),
        ("add_copy", True, True),
        ("publish", False, False),
    ]
    assert agent.calls[-2:] == ["set_clock", "thaw"]
    require_going_on(world, handle)
    assert {file.name for file in snapshot.manifest.files} == {"state", "disk"}
    assert [saved for saved, _ in world.hypervisor.saved] == [sandbox_id]
    source = parse_source(snapshot.manifest)
    assert (source.spec, source.image_id, source.command) == (
        handle.record.spec,
        handle.record.image_id,
        handle.record.command,
    )
    assert (source.sandbox_id, source.name) == (sandbox_id, "web")
    assert str(source.container_id) == sandbox_id
    assert (source.execs, source.output_offset) == (1, 5)
    assert source.pause_ms >= source.stopped_ms
    assert world.snapshots.get(SnapshotKind.SANDBOX, "first") == snapshot


async def test_room_for_all_memory_and_the_disk_is_asked_for_first_whatever_the_guest_says(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet)  # the fake guest says that it uses 8 MiB
    world.snapshots.fail_next("begin", FULL)
    with pytest.raises(ExhaustedError):
        await handle.snapshot()
    assert "freeze" not in world.agent(handle).calls
    await handle.snapshot()
    assert world.snapshots.needed == [handle.record.sizing.memory_mib + 8 << 20]


FAILURES = {
    "create_file": lambda world, handle: world.snapshots.fail_next("create_file", FULL),
    "freeze": lambda world, handle: world.agent(handle).fail_next("freeze", BROKEN),
    "list_containers": lambda world, handle: world.agent(handle).fail_next("list_containers", BROKEN),
    "save": lambda world, handle: setattr(world.hypervisor, "fail_next_save", FULL),
    "add_copy": lambda world, handle: world.snapshots.fail_next("add_copy", FULL),
    "publish": lambda world, handle: world.snapshots.fail_next("publish", ExistsError("the name is in use")),
}


@pytest.mark.parametrize("step", FAILURES)
async def test_whatever_fails_the_sandbox_goes_on_and_nothing_stays(
    world: World, fleet: Fleet, step: str
) -> None:
    handle = await started(fleet)
    FAILURES[step](world, handle)
    with pytest.raises(HyperError) as caught:
        await handle.snapshot("s")
    assert caught.value.brief in ("boom", "no space left", "the name is in use")
    require_going_on(world, handle)
    require_no_snapshot(world)
    await handle.snapshot("s")


async def test_a_connection_that_breaks_meanwhile_does_not_thaw_what_is_being_saved(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet)
    gate = world.snapshots.hold("add_copy")
    async with asyncio.TaskGroup() as tasks:
        making = tasks.create_task(handle.snapshot())
        await eventually(lambda: "add_copy" in world.snapshots.calls)
        world.agent(handle).drop_connections()
        for _ in range(200):
            await asyncio.sleep(0)
        assert world.agent(handle).frozen
        gate.set()
    assert making.result().manifest.kind is SnapshotKind.SANDBOX
    require_going_on(world, handle)


@pytest.mark.parametrize("how", ["stop", "remove", "hang up"])
@pytest.mark.parametrize("phase", ["freeze", "save", "add_copy", "publish"])
async def test_it_is_broken_off_in_every_phase(world: World, fleet: Fleet, how: str, phase: str) -> None:
    handle = await started(fleet)
    _hold(world, handle, phase)
    agent = world.agent(handle)
    making = asyncio.get_running_loop().create_task(handle.snapshot())
    await eventually(lambda: _reached(world, handle, phase))
    match how:
        case "stop":
            await handle.stop(timeout_s=5)
            assert agent.powered_off
            assert (await handle.wait_ended()).code == 143
        case "remove":
            await handle.remove(force=True)
        case "hang up":  # its wait ends, the snapshot goes on
            making.cancel()
            _release(world, handle, phase)
            await eventually(world.snapshots.everything)
            require_going_on(world, handle)
    assert isinstance((await asyncio.gather(making, return_exceptions=True))[0], BaseException)
    if how != "hang up":
        require_no_snapshot(world)
        world.require_nothing_left_of(handle)


@pytest.mark.parametrize("phase", ["freeze", "save", "add_copy", "publish"])
async def test_a_daemon_killed_in_any_phase_leaves_a_sandbox_that_goes_on(world: World, phase: str) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        reference = handle.record.sandbox_id
        agent = world.agent(handle)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(expect_failure(handle))
            _hold(world, handle, phase)
            await eventually(lambda: _reached(world, handle, phase))
            # What a killed daemon leaves: it undoes nothing.
            frozen, paused = agent.frozen, world.hypervisor.running[reference].paused
            _release(world, handle, phase)
    agent.frozen = frozen
    world.hypervisor._set_paused(reference, paused=paused)
    for snapshot in world.snapshots.everything():
        await world.snapshots.remove(snapshot.manifest.snapshot_id)
    async with world.daemon() as fleet:
        handle = fleet.get(reference)
        await eventually(lambda: "thaw" in agent.calls and not world.hypervisor.running[reference].paused)
        require_going_on(world, handle)
        require_no_snapshot(world)
        world.process(handle).finish(ProcessExit(7))
        assert (await handle.wait_ended()).code == 7


async def test_an_exec_meanwhile_waits_until_it_goes_on(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    gate = world.snapshots.hold("add_copy")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(handle.snapshot())
        await eventually(lambda: "add_copy" in world.snapshots.calls)
        execution = tasks.create_task(handle.exec(ExecSpec(("sleep",))))
        for _ in range(100):
            await asyncio.sleep(0)
        assert "exec_process" not in world.agent(handle).calls
        gate.set()
    await execution.result().aclose()


@pytest.mark.parametrize("verb", ["snapshot", "hibernate"])
async def test_what_is_published_behind_a_caller_who_is_told_of_failure_does_not_stay(
    world: World, fleet: Fleet, verb: str
) -> None:
    handle = await started(fleet)
    world.snapshots.hold("published")
    failing = asyncio.create_task(handle.snapshot("s") if verb == "snapshot" else handle.hibernate())
    await eventually(world.snapshots.everything)
    await handle.stop(timeout_s=5)
    assert isinstance((await asyncio.gather(failing, return_exceptions=True))[0], HyperError)
    require_no_snapshot(world)


async def test_a_vm_that_goes_meanwhile_is_lost_and_no_snapshot_stays(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    gate = world.snapshots.hold("add_copy")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(expect_failure(handle))
        await eventually(lambda: "add_copy" in world.snapshots.calls)
        world.hypervisor.lose(handle.record.sandbox_id)
        await eventually(lambda: state(handle) is ContainerState.FAILED)
        gate.set()
    require_no_snapshot(world)


async def test_a_paused_one_stays_paused(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    await handle.pause()
    snapshot = await handle.snapshot("p")
    assert state(handle) is ContainerState.PAUSED
    assert world.hypervisor.running[handle.record.sandbox_id].paused
    assert world.hypervisor.saved_agents[snapshot.path("state")].frozen
    await handle.unpause()
    require_going_on(world, handle)


async def test_one_that_a_new_daemon_found_paused_can_be_saved_too(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        reference = handle.record.sandbox_id
        await handle.pause()
    async with world.daemon() as fleet:
        handle = fleet.get(reference)
        await handle.snapshot("p")
        assert state(handle) is ContainerState.PAUSED
        assert world.hypervisor.running[reference].paused
        await handle.unpause()
        require_going_on(world, handle)


async def test_what_does_not_run_cannot_be_saved(fleet: Fleet) -> None:
    handle = await started(fleet)
    await handle.stop(timeout_s=0)
    with pytest.raises(WrongStateError, match=r"is not running \(exited\)"):
        await handle.snapshot()


def _hold(world: World, handle: SandboxHandle, phase: str) -> None:
    if phase == "freeze":
        world.agent(handle).hold("freeze")
    elif phase == "save":
        world.hypervisor.save_gate.clear()
    else:
        world.snapshots.hold(phase)


def _release(world: World, handle: SandboxHandle, phase: str) -> None:
    if phase == "freeze":
        world.agent(handle).hold("freeze").set()
    elif phase == "save":
        world.hypervisor.save_gate.set()
    else:
        world.snapshots.hold(phase).set()


def _reached(world: World, handle: SandboxHandle, phase: str) -> bool:
    calls = (*world.agent(handle).calls, *world.hypervisor.calls, *world.snapshots.calls)
    return phase in calls


@pytest.mark.parametrize(
    "change",
    [
        {"pause_ms": "x"},
        {"stopped_ms": str(1 << 32)},
        {"output_offset": "-1"},
        {"execs": "٣"},
        {"vcpus": "1_0"},
        {"passing": "yes"},
        {"passing": "perhaps"},
        {"container_id": "none"},
    ],
)
async def test_what_no_sandbox_can_be_made_from_is_not_imported(
    world: World, fleet: Fleet, change: dict[str, str]
) -> None:
    handle = await started(fleet)
    snapshot = await handle.snapshot("s")
    await fleet.snapshot_desk.remove("s")

    async def stream(source: dict[str, str]) -> AsyncIterator[bytes]:
        yield manifests.encode(replace(snapshot.manifest, source=source))

    with pytest.raises(InvalidError):
        await fleet.snapshot_desk.import_(stream({**snapshot.manifest.source, **change}))
    assert fleet.snapshots.list() == []
    assert not world.snapshots.drafts
    await fleet.snapshot_desk.import_(stream(dict(snapshot.manifest.source)))
    assert len(fleet.snapshots.list()) == 1
