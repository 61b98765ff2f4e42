# SPDX-License-Identifier: Apache-2.0
"""Containers that stand still: what can be done with them, and what cannot."""

import asyncio

import pytest

from hyperd.errors import HyperError, TimeoutExpiredError, UnavailableError, WrongStateError
from hyperd.model.container import ContainerState, ExecSpec, Exit, ExitReason
from hyperd.model.guest import FIRST_PROCESS, ContainerId, ProcessExit, ProcessId, ProcessPlan, Stream
from hyperd.sandbox import Fleet, SandboxHandle
from tests.fakes.guest_agent import FakeAgent
from tests.fakes.guest_process import FakeProcess, Script
from tests.fakes.world import World, eventually, started
from tests.unit.sandbox.lives import state


def vm_is_paused(world: World, handle: SandboxHandle) -> bool:
    return world.hypervisor.running[handle.record.sandbox_id].paused


async def paused(fleet: Fleet, *args: str, **fields: object) -> SandboxHandle:
    handle = await started(fleet, *args, **fields)
    await handle.pause()
    return handle


async def test_a_paused_container_stands_still_and_goes_on_with_the_right_time(
    world: World, fleet: Fleet
) -> None:
    handle = await paused(fleet)
    assert state(handle) is ContainerState.PAUSED
    assert vm_is_paused(world, handle)
    assert handle.view().vm_pid
    assert handle.view().started_at is not None
    assert "set_clock" not in world.agent(handle).calls
    await handle.unpause()
    assert state(handle) is ContainerState.RUNNING
    assert not vm_is_paused(world, handle)
    assert world.agent(handle).calls[-2:] == ["set_clock", "thaw"]


async def test_what_needs_a_guest_that_runs_is_refused_and_says_what_to_do(fleet: Fleet) -> None:
    handle = await paused(fleet, name="web")
    for ask in (
        lambda: handle.exec(ExecSpec(("true",))),
        lambda: handle.attach(start=False),
        lambda: handle.attach(start=True),
        lambda: handle.kill(15),
        handle.start,
    ):
        with pytest.raises(WrongStateError, match="is paused") as caught:
            await ask()
        assert caught.value.hint == "`hyper unpause web` lets it go on"
    await handle.pause()  # idempotent
    with pytest.raises(WrongStateError, match="is paused"):
        await handle.remove(force=False)
    assert fleet.list_views((), everything=False)[0].state is ContainerState.PAUSED


async def test_only_what_is_paused_can_be_unpaused_and_only_what_runs_paused(fleet: Fleet) -> None:
    handle = await started(fleet)
    await handle.unpause()  # idempotent
    await handle.stop(timeout_s=0)
    with pytest.raises(WrongStateError, match=r"is not paused \(exited\)"):
        await handle.unpause()
    with pytest.raises(WrongStateError, match="is not running"):
        await handle.pause()


async def test_stopping_a_paused_one_lets_it_go_on_to_its_end(world: World, fleet: Fleet) -> None:
    handle = await paused(fleet)
    process = world.process(handle)
    await handle.stop(timeout_s=5)
    assert process.signals == [15]
    assert (await handle.wait_ended()).code == 143
    assert "shutdown" in world.agent(handle).calls  # its disk was synced
    world.require_nothing_left_of(handle)


async def test_removing_a_paused_one_by_force_needs_nothing_of_its_guest(world: World, fleet: Fleet) -> None:
    handle = await paused(fleet)
    await handle.remove(force=True)
    world.require_nothing_left_of(handle)
    assert world.hypervisor.calls == ["pause"]


async def test_a_vm_that_goes_while_paused_is_lost(world: World, fleet: Fleet) -> None:
    handle = await paused(fleet)
    world.hypervisor.lose(handle.record.sandbox_id)
    assert (await handle.wait_ended()).reason is ExitReason.VM_LOST
    assert state(handle) is ContainerState.FAILED


async def test_a_pause_that_fails_leaves_it_running(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    world.hypervisor.fail_next_pause = UnavailableError("no")
    with pytest.raises(UnavailableError):
        await handle.pause()
    assert state(handle) is ContainerState.RUNNING
    await handle.pause()
    world.hypervisor.fail_next_resume = UnavailableError("no")
    with pytest.raises(UnavailableError):
        await handle.unpause()
    assert state(handle) is ContainerState.PAUSED
    await handle.unpause()


async def test_a_connection_that_breaks_while_paused_is_no_trouble(world: World, fleet: Fleet) -> None:
    handle = await paused(fleet)
    world.agent(handle).drop_connections()
    for _ in range(200):
        await asyncio.sleep(0)
    assert handle.view().trouble == ""
    await handle.unpause()
    await world.agent(handle).wait_called("set_clock")
    session = await handle.exec(ExecSpec(("true",)))
    await session.aclose()


async def test_an_exec_that_starts_after_its_caller_was_told_of_a_timeout_is_killed_and_forgotten(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await started(fleet)
    agent = world.agent(handle)
    [container] = agent.containers.values()
    late: list[FakeProcess] = []
    execute = FakeAgent.exec

    def answer_late(
        agent: FakeAgent, container_id: ContainerId, process_id: ProcessId, plan: ProcessPlan
    ) -> int:
        execute(agent, container_id, process_id, plan)
        late.append(container.processes[process_id])
        raise TimeoutExpiredError("no answer")

    monkeypatch.setattr(FakeAgent, "exec", answer_late)
    with pytest.raises(TimeoutExpiredError):
        await handle.exec(ExecSpec(("sleep",)))
    await eventually(lambda: list(container.processes) == [FIRST_PROCESS])
    assert [process.signals for process in late] == [[9]]


async def test_an_exec_that_never_came_is_looked_for_once(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    agent = world.agent(handle)
    agent.fail_next("exec_process", TimeoutExpiredError("no answer"))
    with pytest.raises(TimeoutExpiredError):
        await handle.exec(ExecSpec(("sleep",)))
    await agent.wait_called("signal")
    await handle.pause()
    await handle.unpause()
    assert agent.calls.count("signal") == 1


async def test_two_who_pause_at_once_are_served_one_after_the_other(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    gate = world.hypervisor.hold("pause")
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(handle.pause())
        second = tasks.create_task(handle.unpause())
        await eventually(lambda: world.hypervisor.calls == ["pause"])
        gate.set()
    assert first.done()
    assert second.done()
    assert state(handle) is ContainerState.RUNNING


async def test_a_stop_breaks_off_a_pause_that_hangs(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    world.hypervisor.hold("pause")
    async with asyncio.TaskGroup() as tasks:
        pausing = tasks.create_task(_refused(handle))
        await eventually(lambda: world.hypervisor.calls == ["pause"])
        await handle.stop(timeout_s=5)
    assert "ended meanwhile" in pausing.result()
    assert (await handle.wait_ended()).code == 143


@pytest.mark.parametrize("operation", ["pause", "hibernate"])
async def test_a_stop_that_comes_when_it_stands_still_already_lets_it_go_on(
    world: World, fleet: Fleet, operation: str
) -> None:
    handle = await started(fleet)
    driver, agent = handle._driver, world.agent(handle)
    settle, reached, gate = driver._settle, asyncio.Event(), asyncio.Event()

    async def settle_late(event: object, spec: object = None) -> None:
        reached.set()
        await gate.wait()
        await settle(event, spec)  # type: ignore[arg-type]

    driver._settle = settle_late  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as tasks:
        operating = tasks.create_task(_error_of(getattr(handle, operation)()))
        await reached.wait()
        assert vm_is_paused(world, handle)
        await handle.stop(timeout_s=5)
    assert "ended meanwhile" in str(operating.result())
    assert (await handle.wait_ended()).code == 143
    assert agent.powered_off
    assert world.snapshots.everything() == []
    world.require_nothing_left_of(handle)


@pytest.mark.parametrize("operation", ["pause", "hibernate"])
async def test_a_daemon_that_ends_in_an_operation_ends_and_leaves_it_running(
    world: World, operation: str
) -> None:
    async with asyncio.timeout(10), world.daemon() as fleet:
        handle = await started(fleet)
        reference = handle.record.sandbox_id
        driver, reached = handle._driver, asyncio.Event()

        async def settle_never(event: object, spec: object = None) -> None:
            reached.set()
            await asyncio.Event().wait()

        driver._settle = settle_never  # type: ignore[method-assign]
        operating = asyncio.get_running_loop().create_task(_error_of(getattr(handle, operation)()))
        await reached.wait()
    assert await operating is not None
    assert not world.hypervisor.running[reference].paused
    assert not world.agent(handle).frozen
    assert world.snapshots.everything() == []


async def _error_of(work) -> HyperError | None:
    try:
        await work
    except HyperError as error:
        return error
    return None


async def _refused(handle: SandboxHandle) -> str:
    with pytest.raises(WrongStateError) as caught:
        await handle.pause()
    return str(caught.value)


@pytest.mark.parametrize("vm_paused", [True, False])
async def test_a_new_daemon_keeps_it_paused_until_it_is_asked(world: World, vm_paused: bool) -> None:
    async with world.daemon() as fleet:
        handle = await paused(fleet)
        reference = handle.record.sandbox_id
    if not vm_paused:  # killed in an unpause
        await world.hypervisor.resume(reference)
    async with world.daemon() as fleet:
        handle = fleet.get(reference)
        await eventually(lambda: world.hypervisor.running[reference].paused)
        assert state(handle) is ContainerState.PAUSED
        assert handle.view().trouble == ""
        assert reference in dict(world.ledger.admission.held)
        await handle.unpause()
        session = await handle.exec(ExecSpec(("true",)))
        await session.aclose()
        assert "set_clock" in world.agent(handle).calls


@pytest.mark.parametrize("how", ["stop", "remove"])
async def test_a_new_daemon_can_end_what_it_found_paused(world: World, how: str) -> None:
    async with world.daemon() as fleet:
        reference = (await paused(fleet)).record.sandbox_id
    async with world.daemon() as fleet:
        handle = fleet.get(reference)
        if how == "stop":
            await handle.stop(timeout_s=5)
            assert await handle.wait_ended() == Exit(143, ExitReason.STOPPED, signal=15)
        else:
            await handle.remove(force=True)
        world.require_nothing_left_of(handle)


async def test_a_vm_that_went_while_no_daemon_ran_is_lost(world: World) -> None:
    async with world.daemon() as fleet:
        reference = (await paused(fleet)).record.sandbox_id
    world.hypervisor.lose(reference)
    async with world.daemon() as fleet:
        await eventually(lambda: state(fleet.get(reference)) is ContainerState.FAILED)


async def test_one_killed_between_the_pause_and_its_record_goes_on(world: World) -> None:
    world.script("say", Script([(Stream.STDOUT, b"hi")]))
    async with world.daemon() as fleet:
        handle = await started(fleet, "say")
        reference = handle.record.sandbox_id
    await world.hypervisor.pause(reference)
    world.agent(handle).frozen = True
    async with world.daemon() as fleet:
        handle = fleet.get(reference)
        await eventually(lambda: not world.hypervisor.running[reference].paused)
        await eventually(lambda: not world.agent(handle).frozen)
        world.process(handle).finish(ProcessExit(0))
        assert (await handle.wait_ended()).code == 0
