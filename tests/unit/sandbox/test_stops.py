# SPDX-License-Identifier: Apache-2.0
"""Stops and signals: gently first, in time in any case, also of a start that is under way."""

import asyncio
from signal import SIGHUP, SIGKILL, SIGTERM

import pytest

from hyperd.errors import (
    HyperError,
    TimeoutExpiredError,
    UnavailableError,
    WrongStateError,
)
from hyperd.model.container import ContainerSpec, ContainerState, ExecSpec, Exit, ExitReason
from hyperd.model.guest import ProcessExit, ProcessId
from hyperd.model.image import ImageConfig
from hyperd.sandbox import Fleet
from hyperd.sandbox.identity import container_id_of
from hyperd.sandbox.instance import MAX_ASKED
from tests.fakes.guest_process import Script
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.lives import TERM_IGNORED, all_of, ended, error_of, state


async def test_stop_sends_the_stop_signal_of_the_image_and_waits(world: World, fleet: Fleet) -> None:
    world.images.add("nginx", ImageConfig(cmd=("nginx",), stop_signal="SIGQUIT"))
    view, _ = await fleet.create(ContainerSpec("nginx"))
    handle = fleet.get(view.record.name)
    await handle.start()
    process = world.process(handle)
    await handle.stop()
    assert process.signals == [3]
    assert handle.view().exit == Exit(131, ExitReason.STOPPED, signal=3)
    await handle.stop()  # idempotent


async def test_a_process_that_ignores_the_signal_is_killed_in_time(world: World, fleet: Fleet) -> None:
    world.script("stubborn", TERM_IGNORED)
    handle = await started(fleet, "stubborn")
    process = world.process(handle)
    await handle.stop(timeout_s=0.01)
    assert process.signals == [SIGTERM, SIGKILL]
    assert handle.view().exit == Exit(137, ExitReason.STOPPED, signal=9)


async def test_an_agent_that_does_not_take_signals_loses_its_vm(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    world.agent(handle).fail_next("signal", TimeoutExpiredError("no answer"))
    await handle.stop()
    assert handle.view().exit == Exit(137, ExitReason.STOPPED, signal=9)
    world.require_nothing_left_of(handle)


async def test_a_second_stop_is_heard_while_the_first_is_patient(world: World, fleet: Fleet) -> None:
    world.script("stubborn", TERM_IGNORED)
    handle = await started(fleet, "stubborn")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(handle.stop(timeout_s=600))
        await eventually(lambda: state(handle) is ContainerState.STOPPING)
        tasks.create_task(handle.stop(timeout_s=0))


async def test_kill_during_a_stop_ends_the_stop(world: World, fleet: Fleet) -> None:
    world.script("stubborn", TERM_IGNORED)
    handle = await started(fleet, "stubborn")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(handle.stop(timeout_s=600))
        await eventually(lambda: state(handle) is ContainerState.STOPPING)
        await handle.kill(SIGKILL)
    assert handle.view().exit == Exit(137, ExitReason.STOPPED, signal=9)


async def test_a_signal_by_kill_counts_as_stopped_and_one_from_inside_does_not(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet)
    await handle.kill(SIGHUP)
    assert await ended(handle) == Exit(129, ExitReason.STOPPED, signal=1)
    other = await started(fleet)
    world.process(other).finish(ProcessExit(139, signal=11))
    assert await ended(other) == Exit(139, ExitReason.EXITED, signal=11)


async def test_a_signal_to_what_does_not_run_is_refused(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    with pytest.raises(WrongStateError, match="not running"):
        await handle.kill(SIGTERM)
    with pytest.raises(WrongStateError, match="not running"):
        await handle.exec(ExecSpec(("ls",)))
    with pytest.raises(WrongStateError, match="not running"):
        await handle.attach(start=False)


@pytest.mark.parametrize("step", ["accelerator", "vm", "hello", "attach", "first step"])
async def test_a_stop_during_the_start_undoes_it(world: World, fleet: Fleet, step: str) -> None:
    handle = await created(fleet)
    gate = {
        "accelerator": world.accelerator_gate,
        "vm": world.hypervisor.gate,
        "hello": world.dialer.gate,
        "attach": world.network.gate,
        "first step": asyncio.Event(),
    }[step]
    gate.clear()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        start = tasks.create_task(error_of(handle.start()))
        await eventually(lambda: state(handle) is ContainerState.STARTING)
        if step == "vm":
            await eventually(lambda: world.hypervisor.definitions)
        if step == "hello":
            await eventually(lambda: world.hypervisor.running)
        stops = [tasks.create_task(handle.stop()) for _ in range(3)]
        assert isinstance(await start, WrongStateError)
        for stop in stops:
            await stop
    gate.set()
    assert state(handle) is ContainerState.FAILED
    world.require_nothing_left_of(handle)
    await handle.start()


async def test_a_stop_that_meets_a_start_just_ended_is_answered(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(error_of(handle.start()))
        await eventually(lambda: handle.record.sandbox_id in world.hypervisor.agents)
        await world.agent(handle).wait_called("start_container")
        tasks.create_task(handle.stop())
    assert state(handle) in (ContainerState.EXITED, ContainerState.FAILED)
    world.require_nothing_left_of(handle)


async def test_a_guest_that_cannot_shut_down_is_destroyed_all_the_same(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    world.agent(handle).fail_next("shutdown", HyperError("the agent failed"))
    await handle.stop()
    world.require_nothing_left_of(handle)


async def test_one_that_was_killed_by_us_is_no_oom_whatever_its_children_died_of(
    world: World, fleet: Fleet
) -> None:
    world.script("stubborn", Script(ignored_signals=frozenset({SIGTERM}), child_oom=True))
    for end in ("stop", "kill"):
        handle = await started(fleet, "stubborn")
        await (handle.stop(timeout_s=0) if end == "stop" else handle.kill(SIGKILL))
        assert await ended(handle) == Exit(137, ExitReason.STOPPED, signal=9)


async def test_an_exec_that_was_killed_by_its_caller_is_no_oom(world: World, fleet: Fleet) -> None:
    world.script("worker", Script(child_oom=True))
    handle = await started(fleet)
    session = await handle.exec(ExecSpec(("worker",)))
    await session.signal(SIGKILL)
    assert (await all_of(session))[2] == Exit(137, ExitReason.STOPPED, signal=9)
    by_itself = await handle.exec(ExecSpec(("worker",)))
    process = world.agent(handle).process(container_id_of(handle.record), ProcessId(by_itself.exec_id))
    process.finish(ProcessExit(137, signal=SIGKILL, oom_killed=True))
    assert (await all_of(by_itself))[2].reason is ExitReason.OOM


async def test_so_many_may_ask_and_hang_up_and_no_more(world: World, fleet: Fleet) -> None:
    world.script("stubborn", TERM_IGNORED)
    handle = await started(fleet, "stubborn")
    asking = [asyncio.create_task(handle.stop(timeout_s=60)) for _ in range(MAX_ASKED)]
    for _ in range(5):
        await asyncio.sleep(0)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    with pytest.raises(UnavailableError, match="256 calls wait"):
        await handle.stop(timeout_s=0)
    await handle.kill(SIGKILL)
    await ended(handle)
    await handle.stop(timeout_s=0)
