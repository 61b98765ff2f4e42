# SPDX-License-Identifier: Apache-2.0
"""The files of a container that runs: in its own VM, and what refuses, ends or outlives a call."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from hyperd.errors import (
    HyperError,
    InvalidError,
    UnavailableError,
    WrongStateError,
)
from hyperd.model.container import ContainerState
from hyperd.model.guest import Change, ChangeKind, PathStat, ProcessExit
from hyperd.sandbox import Fleet, SandboxHandle
from tests.fakes.archives import PIECE_BYTES
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.lives import state
from tests.unit.sandbox.opening import (
    BIG,
    CALLS,
    changes,
    commit,
    disk_of,
    every_call,
    export,
    has_vm,
    holding,
    outcome,
    read,
    stopped,
    write,
)


async def test_the_files_of_one_that_runs_are_read_and_written_in_its_own_vm(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet)
    disk_of(world, handle).write(b"/etc/a", BIG)
    vms = len(world.hypervisor.definitions)
    assert await export(handle) == b"/etc/a\n" + BIG
    assert await changes(handle) == [Change(ChangeKind.ADDED, b"/etc/a")]
    assert await read(handle, b"etc/a") == [
        PathStat(b"a", len(BIG), 0o100644, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        *[b"x" * PIECE_BYTES] * 3,
    ]
    await write(handle)
    assert await read(handle, b"/srv/written") != []
    await commit(handle)
    assert world.images.commits[0].layer == b"/etc/a\n" + BIG + b"/srv/written\ntar"
    assert len(world.hypervisor.definitions) == vms
    assert state(handle) is ContainerState.RUNNING


@every_call
async def test_while_it_stands_still_it_is_refused_and_told_what_to_do(
    world: World, fleet: Fleet, call: str
) -> None:
    handle = await started(fleet, name="web")
    await handle.pause()
    with pytest.raises(WrongStateError, match="is paused") as caught:
        await CALLS[call](handle)
    assert caught.value.hint == "`hyper unpause web` lets it go on"
    await handle.hibernate()
    with pytest.raises(WrongStateError, match="is hibernated") as caught:
        await CALLS[call](handle)
    assert caught.value.hint == "`hyper wake web` lets it go on"
    assert not has_vm(world, handle)


async def test_one_that_starts_is_waited_for_and_one_that_stops_is_refused(
    world: World, fleet: Fleet
) -> None:
    handle = await created(fleet)
    world.hypervisor.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(handle.start())
        await eventually(lambda: state(handle) is ContainerState.STARTING)
        exporting = tasks.create_task(export(handle))
        await asyncio.sleep(0)
        world.hypervisor.gate.set()
    assert exporting.result() == b""
    assert len(world.hypervisor.definitions) == 1
    gate = world.agent(handle).hold("shutdown")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(handle.stop(timeout_s=1))
        await eventually(lambda: state(handle) is ContainerState.STOPPING)
        with pytest.raises(WrongStateError, match="is stopping"):
            await export(handle)
        gate.set()


async def test_a_start_that_fails_meanwhile_leaves_files_that_can_be_read(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    world.hypervisor.gate.clear()
    world.hypervisor.fail_next_start = UnavailableError("no luck")
    starting = asyncio.get_running_loop().create_task(outcome(handle.start()))
    await eventually(lambda: state(handle) is ContainerState.STARTING)
    exporting = asyncio.get_running_loop().create_task(export(handle))
    await asyncio.sleep(0)
    world.hypervisor.gate.set()
    assert await exporting == b""
    assert isinstance(await starting, UnavailableError)
    assert state(handle) is ContainerState.FAILED


async def _finish(world: World, handle: SandboxHandle) -> None:
    world.process(handle).finish(ProcessExit(0))
    await handle.wait_ended()


async def _lose(world: World, handle: SandboxHandle) -> None:
    world.hypervisor.lose(handle.record.sandbox_id)
    await handle.wait_ended()


MEANWHILE: dict[str, tuple[Callable[[World, SandboxHandle], Awaitable[object]], str]] = {
    "stop": (lambda _, handle: handle.stop(timeout_s=5), "was stopped"),
    "end": (_finish, "has ended"),
    "remove": (lambda _, handle: handle.remove(force=True), "has ended"),
    "pause": (lambda _, handle: handle.pause(), "was paused"),
    "hibernate": (lambda _, handle: handle.hibernate(), "was put to sleep"),
    "lose": (_lose, "has ended"),
}


@pytest.mark.parametrize("meanwhile", list(MEANWHILE))
@every_call
async def test_what_ends_or_stops_one_that_runs_ends_the_call_with_its_reason(
    world: World, fleet: Fleet, call: str, meanwhile: str
) -> None:
    handle = await started(fleet)
    held = await holding(world, handle, call)
    act, reason = MEANWHILE[meanwhile]
    async with asyncio.timeout(5):
        await act(world, handle)
    error = await held.error()
    if meanwhile == "lose":  # the connection may be heard of before the VM
        assert isinstance(error, UnavailableError | WrongStateError)
    else:
        assert isinstance(error, WrongStateError)
        assert error.brief == f"{reason} while its files were open"
    assert disk_of(world, handle).frozen_for == 0
    assert world.images.committing == 0
    assert world.images.commits == []


@every_call
async def test_a_rollback_ends_the_call(world: World, call: str) -> None:
    async with world.daemon() as fleet:
        handle = await started(fleet)
        snapshot = await handle.snapshot("before")
        held = await holding(world, handle, call)
        await fleet.roll_back(handle.record.sandbox_id, snapshot.manifest.snapshot_id)
        assert (await held.error()).brief == "was rolled back while its files were open"
        assert state(handle) is ContainerState.RUNNING
        disk_of(world, handle).pieces = None
        await CALLS[call](handle)


@every_call
async def test_a_snapshot_is_refused_while_a_call_is_under_way_and_the_call_goes_on(
    world: World, fleet: Fleet, call: str
) -> None:
    handle = await started(fleet)
    held = await holding(world, handle, call)
    with pytest.raises(WrongStateError, match="are being read or written"):
        await handle.snapshot("now")
    assert world.snapshots.everything() == []
    held.go_on()
    assert not isinstance(await held.task, HyperError)
    await handle.snapshot("now")


async def test_a_call_waits_for_a_snapshot_that_is_under_way(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    gate = world.agent(handle).hold("freeze")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(handle.snapshot("now"))
        await world.agent(handle).wait_called("freeze")
        exporting = tasks.create_task(export(handle))
        for _ in range(20):
            await asyncio.sleep(0)
        assert "read_root" not in world.agent(handle).calls
        gate.set()
    assert exporting.result() == b""


async def test_several_at_once_are_served_of_one_that_runs(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    disk_of(world, handle).write(b"/etc/a", b"1")
    outcomes = await asyncio.gather(export(handle), changes(handle), export(handle), write(handle))
    assert outcomes[0] == b"/etc/a\n1"


@every_call
@pytest.mark.parametrize("runs", [True, False])
async def test_who_hangs_up_leaves_nothing_and_nothing_frozen(
    world: World, fleet: Fleet, call: str, runs: bool
) -> None:
    handle = await (started(fleet) if runs else stopped(fleet))
    held = await holding(world, handle, call)
    assert disk_of(world, handle).frozen_for == (call == "commit")
    held.task.cancel()
    await asyncio.wait((held.task,))
    assert held.task.cancelled()
    assert disk_of(world, handle).frozen_for == 0
    assert world.images.committing == 0
    if not runs:
        world.require_nothing_left_of(handle)
    disk_of(world, handle).pieces = None
    await handle.start()
    assert await export(handle)


@pytest.mark.parametrize("path", [b"", b"a\0b", b"/" * 5000])
async def test_what_is_no_path_is_refused_before_anything_is_opened(
    world: World, fleet: Fleet, path: bytes
) -> None:
    handle = await created(fleet)
    with pytest.raises(InvalidError):
        await read(handle, path)
    with pytest.raises(InvalidError):
        await write(handle, path=path)
    assert world.hypervisor.definitions == []


async def test_a_root_that_is_read_only_is_not_opened_for_writing(world: World, fleet: Fleet) -> None:
    handle = await created(fleet, readonly_root=True)
    with pytest.raises(WrongStateError, match="is read-only"):
        await write(handle)
    assert world.hypervisor.definitions == []
    assert await export(handle) == b""
