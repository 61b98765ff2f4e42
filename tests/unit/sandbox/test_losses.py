# SPDX-License-Identifier: Apache-2.0
"""What is lost on the way: a VM, an agent's connection, hyperd's own good sense."""

import asyncio
import logging
from signal import SIGTERM

import pytest

from hyperd.errors import (
    HyperError,
    TimeoutExpiredError,
    UnavailableError,
)
from hyperd.model.container import ContainerState, ExecSpec, Exit, ExitReason
from hyperd.model.guest import ProcessExit
from hyperd.model.vm import VmGone, VmGoneCause
from hyperd.sandbox import Fleet
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.lives import all_of, ended, error_of, state


async def test_qemu_killed_from_outside_is_told_as_such(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    world.hypervisor.lose(handle.record.sandbox_id)
    exit_ = await ended(handle)
    assert (exit_.code, exit_.reason) == (125, ExitReason.VM_LOST)
    assert state(handle) is ContainerState.FAILED
    world.require_nothing_left_of(handle)


async def test_a_guest_panic_shows_the_end_of_the_console(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    world.hypervisor.definitions[-1].console_log.write_text("boot\nKernel panic - not syncing: ouch\n")
    world.hypervisor.crash(handle.record.sandbox_id)
    exit_ = await ended(handle)
    assert exit_.reason is ExitReason.GUEST_PANIC
    assert "not syncing: ouch" in exit_.message


async def test_a_late_event_of_an_earlier_run_changes_nothing(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    await handle.stop()
    await handle.start()
    sandbox_id = handle.record.sandbox_id
    driver = fleet._drivers[sandbox_id]
    for cause in VmGoneCause:
        driver.vm_gone(VmGone(sandbox_id, cause))
    await handle.exec(ExecSpec(("true",)))
    assert state(handle) is ContainerState.RUNNING


async def test_a_lost_connection_is_dialled_again_and_nothing_is_lost_or_doubled(
    world: World, fleet: Fleet
) -> None:
    handle = await created(fleet)
    session = await handle.attach(start=True)
    process = world.process(handle)
    for part in (b"one ", b"two ", b"three"):
        process.emit(part)
        world.agent(handle).drop_connections()
        await eventually(lambda: world.agent(handle).connections)
    process.finish(ProcessExit(0))
    out, _, exit_ = await all_of(session)
    assert (out, exit_) == (b"one two three", Exit(0, ExitReason.EXITED))
    assert b"".join([entry.data async for entry in handle.journal.read()]) == b"one two three"
    await session.aclose()


async def test_an_agent_that_hangs_up_again_and_again_is_dialled_until_the_container_is_stopped(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet)
    connect = world.dialer.connect
    dials = 0

    async def connect_and_lose(*args, **kwargs):
        nonlocal dials
        dials += 1
        guest = await connect(*args, **kwargs)
        world.agent(handle).drop_connections()
        return guest

    world.dialer.connect = connect_and_lose  # type: ignore[method-assign]
    world.agent(handle).drop_connections()
    await eventually(lambda: dials > 4)
    assert state(handle) is ContainerState.RUNNING
    await handle.stop(timeout_s=0)
    world.require_nothing_left_of(handle)


async def test_an_agent_that_does_not_come_back_for_long_keeps_its_vm(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    session = await handle.attach(start=True)
    world.dialer.fail_connects = [TimeoutExpiredError("no answer")] * 3
    world.agent(handle).drop_connections()
    await eventually(lambda: handle.view().trouble)
    assert state(handle) is ContainerState.RUNNING
    await eventually(lambda: not handle.view().trouble)
    world.process(handle).emit(b"here again")
    world.process(handle).finish(ProcessExit(0))
    assert await all_of(session) == (b"here again", b"", Exit(0, ExitReason.EXITED))


async def test_a_stop_while_the_agent_is_dialled_again_still_reaches_the_process(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet)
    process = world.process(handle)
    world.dialer.gate.clear()
    world.agent(handle).drop_connections()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(handle.stop())
        await eventually(lambda: state(handle) is ContainerState.STOPPING)
        world.dialer.gate.set()
    assert process.signals == [SIGTERM]
    assert handle.view().exit == Exit(143, ExitReason.STOPPED, signal=SIGTERM)


async def test_a_bug_ends_its_sandbox_as_failed_and_no_other(
    world: World, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    bystander = await started(fleet)
    handle = await started(fleet)
    world.agent(handle).fail_next("wait_process", ZeroDivisionError("a bug"))  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR):
        world.agent(handle).drop_connections()
        exit_ = await ended(handle)
    bug_id = next(vars(record)["bug_id"] for record in caplog.records if record.message == "bug")
    assert bug_id in exit_.message
    assert state(handle) is ContainerState.FAILED
    world.require_nothing_left_of(handle)
    assert state(bystander) is ContainerState.RUNNING
    await handle.start()  # and it goes on
    await handle.remove(force=True)


async def test_a_bug_does_not_keep_a_container_that_was_to_be_removed(world: World, fleet: Fleet) -> None:
    handle = await started(fleet, name="once", auto_remove=True)
    world.agent(handle).fail_next("wait_process", ZeroDivisionError("a bug"))  # type: ignore[arg-type]
    world.agent(handle).drop_connections()
    await eventually(lambda: not fleet.list_views((), everything=True))
    assert not world.storage.disks


async def test_a_bug_in_a_start_is_told_to_who_waits(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    world.hypervisor.fail_next_start = ZeroDivisionError("a bug")  # type: ignore[assignment]
    with pytest.raises(HyperError, match="bug_id="):
        await handle.start()
    assert state(handle) is ContainerState.FAILED
    world.require_nothing_left_of(handle)
    await handle.start()


async def test_nobody_waits_for_ever_when_hyperd_ends(world: World) -> None:
    world.hypervisor.gate.clear()
    async with world.daemon() as fleet:
        handle = await created(fleet)
        start = asyncio.ensure_future(error_of(handle.start()))
        await eventually(lambda: world.hypervisor.definitions)
        wait = asyncio.ensure_future(error_of(handle.wait_ended()))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert isinstance(await start, UnavailableError)
        assert isinstance(await wait, UnavailableError)
        with pytest.raises(UnavailableError):
            await handle.stop()
