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
    TimeoutExpiredError,
    UnavailableError,
    WrongStateError,
)
from hyperd.model.container import ContainerState, ExecSpec, ExitReason
from hyperd.model.guest import ProcessExit, Stream
from hyperd.model.snapshot import SnapshotKind
from hyperd.sandbox import Fleet, SandboxHandle
from hyperd.sandbox.source import parse_source
from hyperd.snapshot import manifest as manifests
from tests.fakes.guest_process import Script
from tests.fakes.world import World, eventually, started
from tests.unit.sandbox.lives import state

BROKEN = UnavailableError("boom")
FULL = ExhaustedError("no space left")


def require_going_on(world: World, handle: SandboxHandle) -> None:
    sandbox_id = handle.record.sandbox_id
    assert state(handle) is ContainerState.RUNNING
    assert not world.hypervisor.running[sandbox_id].paused
    assert not world.agent(handle).frozen


def require_no_snapshot(world: World) -> None:
    assert not world.snapshots.everything()
    assert not world.snapshots.drafts


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


async def test_a_thaw_that_fails_once_is_tried_again(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    world.agent(handle).fail_next("thaw", BROKEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hyperd.sandbox.tenure.THAW_PATIENCE_S", 0.01)
        await handle.snapshot()
    require_going_on(world, handle)


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
            tasks.create_task(_expect_failure(handle))
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


async def test_a_removal_by_force_does_not_wait_for_a_vm_that_does_not_go_on(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet)
    world.hypervisor.hold("resume")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(_expect_failure(handle))
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
        tasks.create_task(_expect_failure(handle))
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


async def test_a_vm_that_goes_meanwhile_is_lost_and_no_snapshot_stays(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    gate = world.snapshots.hold("add_copy")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_expect_failure(handle))
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


async def _expect_failure(handle: SandboxHandle) -> None:
    try:
        await handle.snapshot()
    except HyperError:
        return


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
