# SPDX-License-Identifier: Apache-2.0
"""Further processes in a container: streams and an end of their own."""

import asyncio

import pytest

from hyperd.errors import InvalidError
from hyperd.model.container import ContainerState, ExecSpec, Exit, ExitReason
from hyperd.model.guest import (
    FIRST_PROCESS,
    ContainerId,
    ContainerPlan,
    ProcessExit,
    ProcessId,
    ProcessPlan,
    Stream,
)
from hyperd.sandbox import Fleet
from tests.fakes.guest_process import Script
from tests.fakes.world import World, eventually, started
from tests.unit.sandbox.lives import all_of, state


async def test_exec_has_its_own_streams_and_status(world: World, fleet: Fleet) -> None:
    world.script("cat", Script(echo=True))
    handle = await started(fleet)
    session = await handle.exec(ExecSpec(("cat",), stdin=True))
    await session.write(b"hello")
    await session.close_stdin()
    assert await all_of(session) == (b"hello", b"", Exit(0, ExitReason.EXITED))
    await session.aclose()
    await eventually(lambda: len(next(iter(world.agent(handle).containers.values())).processes) == 1)


async def test_an_exec_ends_with_its_process_whoever_still_has_its_pipes(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    session = await handle.exec(ExecSpec(("sh",)))
    processes = next(iter(world.agent(handle).containers.values())).processes
    process = next(process for key, process in processes.items() if key != FIRST_PROCESS)
    process.hold_pipes()  # a child in the background
    process.emit(b"started\n")
    process.finish(ProcessExit(0))
    assert await all_of(session) == (b"started\n", b"", Exit(0, ExitReason.EXITED))
    await eventually(lambda: len(processes) == 1)
    assert state(handle) is ContainerState.RUNNING


async def test_an_exec_lives_through_a_lost_connection(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    session = await handle.exec(ExecSpec(("tail",)))
    agent = world.agent(handle)
    processes = next(iter(agent.containers.values())).processes
    process = next(process for key, process in processes.items() if key != FIRST_PROCESS)
    process.emit(b"before ")
    agent.drop_connections()
    await eventually(lambda: agent.connections)
    process.emit(b"after")
    process.finish(ProcessExit(5))
    assert await all_of(session) == (b"before after", b"", Exit(5, ExitReason.EXITED))


async def test_an_exec_ends_with_its_container(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    session = await handle.exec(ExecSpec(("tail",)))
    await handle.stop()
    assert (await all_of(session))[2].code == 137
    other = await started(fleet)
    session = await other.exec(ExecSpec(("tail",)))
    world.hypervisor.lose(other.record.sandbox_id)
    assert (await all_of(session))[2].reason in (ExitReason.VM_LOST, ExitReason.AGENT_LOST)


async def test_an_exec_that_the_agent_refuses_is_told(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    world.agent(handle).fail_next("exec_process", InvalidError("unknown user"))
    with pytest.raises(InvalidError, match="unknown user"):
        await handle.exec(ExecSpec(("ls",), user="nobody"))
    with pytest.raises(InvalidError, match="no command"):
        await handle.exec(ExecSpec(()))


async def test_hanging_up_in_an_exec_leaves_it_watched(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    agent = world.agent(handle)
    gate = agent.hold("exec_process")
    async with asyncio.TaskGroup() as tasks:
        exec_ = tasks.create_task(handle.exec(ExecSpec(("ls",))))
        await agent.wait_called("exec_process")
        exec_.cancel()
    world.script("ls", Script([(Stream.STDOUT, b"x" * 2_000_000)], ProcessExit(0)))
    gate.set()
    await agent.wait_called("forget_process")


async def test_only_a_container_s_own_processes_are_taken_over(world: World) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        await handle.exec(ExecSpec(("tail",)))
        agent = world.agent(handle)
        other = ContainerId("f" * 64)
        agent.create(ContainerPlan(other, (), None, False, ProcessPlan(("x",), ())))
        agent.start(other)
        for number in range(30):
            agent.exec(other, ProcessId(f"{number}"), ProcessPlan(("x",), ()))
    async with world.daemon() as fleet:
        driver = fleet._drivers[handle.record.sandbox_id]
        await eventually(lambda: driver.tenure is not None and driver.tenure.execs.tasks)
        assert driver.tenure is not None
        assert len(driver.tenure.execs.tasks) == 1
