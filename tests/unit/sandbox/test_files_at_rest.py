# SPDX-License-Identifier: Apache-2.0
"""The files of a container that does not run: in a VM made for that, which leaves nothing and is in nobody's way."""

import asyncio

import pytest

from hyperd.errors import (
    ExhaustedError,
    HyperError,
    InvalidError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.model.container import ContainerState
from hyperd.sandbox import Fleet
from hyperd.sandbox.driver import SandboxDriver
from hyperd.sandbox.files_vm import SIZING
from hyperd.sandbox.message import OpenFiles
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.lives import state
from tests.unit.sandbox.opening import (
    CALLS,
    changes,
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


@pytest.mark.parametrize("how", ["created", "exited", "failed"])
@every_call
async def test_those_of_one_that_does_not_run_in_a_vm_in_which_none_of_its_programs_do(
    world: World, fleet: Fleet, how: str, call: str
) -> None:
    handle = await created(fleet, memory_bytes=1 << 30, cpus=2.0)
    if how == "exited":
        await handle.start()
        await handle.stop(timeout_s=0)
    elif how == "failed":
        world.hypervisor.fail_next_start = UnavailableError("no luck")
        with pytest.raises(UnavailableError):
            await handle.start()
    before = handle.view()
    disk_of(world, handle).synced[b"/etc/a"] = b"1"
    world.hypervisor.definitions.clear()
    await CALLS[call](handle)
    [definition] = world.hypervisor.definitions
    assert (definition.vcpus, definition.memory_mib) == (SIZING.vcpus, SIZING.memory_mib)
    assert definition.nics == ()
    agent = world.agent(handle)
    assert "open_root" in agent.calls
    assert not {"create_container", "start_container"} & set(agent.calls)
    assert agent.calls[-2:] == ["delete_container", "shutdown"]
    assert agent.identity is not None
    assert handle.view() == before
    world.require_nothing_left_of(handle)


async def test_what_is_written_to_one_that_does_not_run_is_on_its_disk_and_is_there_when_it_starts(
    world: World, fleet: Fleet
) -> None:
    handle = await stopped(fleet)
    await write(handle)
    assert disk_of(world, handle).synced[b"/srv/written"] == b"tar"
    await handle.start()
    assert await read(handle, b"/srv/written")


async def test_a_disk_that_could_not_be_synced_is_an_error_of_who_wrote_and_of_nobody_who_read(
    world: World, fleet: Fleet
) -> None:
    handle = await stopped(fleet)
    for call, wrong in (("write", True), ("export", False)):
        held = await holding(world, handle, call)
        world.agent(handle).fail_next("shutdown", TimeoutExpiredError("no answer"))
        held.go_on()
        outcome = await held.task
        assert isinstance(outcome, UnavailableError) is wrong
        assert not wrong or "perhaps not all of it is on its disk" in str(outcome)
        world.require_nothing_left_of(handle)


async def test_it_starts_from_the_template_of_its_own_size(world: World) -> None:
    world.templates_enabled = True
    async with world.daemon() as fleet:
        await world.build_templates(SIZING.vcpus, SIZING.memory_mib)
        handle = await created(fleet, memory_bytes=1 << 30)
        world.hypervisor.definitions.clear()
        await export(handle)
        world.hypervisor.fail_next_restore = UnavailableError("no luck")
        await export(handle)  # it boots instead
        ways = [definition.restore_from is not None for definition in world.hypervisor.definitions]
        assert ways == [True, True, False]


async def test_several_of_one_that_does_not_run_are_served_one_after_the_other(
    world: World, fleet: Fleet
) -> None:
    handle = await stopped(fleet)
    held = await holding(world, handle, "export")
    second = asyncio.get_running_loop().create_task(changes(handle))
    starts = len(world.hypervisor.definitions)
    for _ in range(50):
        await asyncio.sleep(0)
    assert not second.done()
    assert len(world.hypervisor.definitions) == starts
    held.go_on()
    await held.task
    assert len(await second) == 2
    world.require_nothing_left_of(handle)


@pytest.mark.parametrize("at", ["vm", "dial", "configure", "open_root"])
async def test_who_hangs_up_while_the_vm_comes_up_leaves_nothing(world: World, fleet: Fleet, at: str) -> None:
    handle = await stopped(fleet)
    starts = len(world.hypervisor.definitions)
    if at == "vm":
        world.hypervisor.gate.clear()
    elif at == "dial":
        world.dialer.gate.clear()
    else:
        world.hypervisor.held_verbs.add(at)
    exporting = asyncio.get_running_loop().create_task(export(handle))
    await eventually(lambda: len(world.hypervisor.definitions) > starts)
    if at in ("configure", "open_root"):
        await eventually(lambda: has_vm(world, handle))
        await world.agent(handle).wait_called(at)
    exporting.cancel()
    await asyncio.wait((exporting,))
    assert exporting.cancelled()
    world.require_nothing_left_of(handle)
    world.hypervisor.gate.set()
    world.dialer.gate.set()
    assert state(handle) is ContainerState.EXITED


@pytest.mark.parametrize(
    ("broken", "kind"),
    [("vm", UnavailableError), ("open_root", InvalidError), ("memory", ExhaustedError)],
)
async def test_a_vm_that_does_not_come_up_is_an_error_and_leaves_nothing(
    world: World, fleet: Fleet, broken: str, kind: type[HyperError]
) -> None:
    handle = await stopped(fleet)
    if broken == "vm":
        world.hypervisor.fail_next_start = UnavailableError("QEMU ended")
    elif broken == "open_root":
        world.hypervisor.failing_verbs["open_root"] = InvalidError("no file system")
    else:
        await started(fleet, memory_bytes=3900 << 20)
    with pytest.raises(kind):
        await export(handle)
    world.require_nothing_left_of(handle)
    assert state(handle) is ContainerState.EXITED


async def test_its_memory_is_held_while_the_vm_is_there(world: World, fleet: Fleet) -> None:
    handle = await stopped(fleet)
    held = await holding(world, handle, "export")
    assert dict(world.ledger.admission.held)[handle.record.sandbox_id] == SIZING
    held.go_on()
    await held.task
    assert world.ledger.admission.held == ()


@every_call
async def test_a_guest_that_ends_in_the_middle_ends_the_call(world: World, fleet: Fleet, call: str) -> None:
    handle = await stopped(fleet)
    held = await holding(world, handle, call)
    world.hypervisor.crash(handle.record.sandbox_id)
    assert isinstance(await held.error(), UnavailableError)
    world.require_nothing_left_of(handle)
    assert state(handle) is ContainerState.EXITED
    assert world.images.commits == []


async def test_a_start_is_refused_while_they_are_open_and_waits_for_the_vm_to_go(
    world: World, fleet: Fleet
) -> None:
    handle = await stopped(fleet)
    held = await holding(world, handle, "export")
    for refused in (handle.start(), handle.remove(force=False)):
        with pytest.raises(WrongStateError, match="are being read or written"):
            await refused
    gate = world.agent(handle).hold("shutdown")
    held.go_on()
    await world.agent(handle).wait_called("shutdown")
    starting = asyncio.get_running_loop().create_task(handle.start())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not starting.done()
    gate.set()
    await starting
    await held.task
    assert state(handle) is ContainerState.RUNNING


@every_call
async def test_a_removal_by_force_ends_it(world: World, fleet: Fleet, call: str) -> None:
    handle = await stopped(fleet)
    held = await holding(world, handle, call)
    second = asyncio.get_running_loop().create_task(outcome(export(handle)))  # waits for its turn
    await asyncio.sleep(0)
    await handle.remove(force=True)
    assert (await held.error()).brief == "was removed while its files were open"
    assert isinstance(await second, WrongStateError)
    world.require_nothing_left_of(handle)
    assert handle.record.sandbox_id not in world.storage.disks
    with pytest.raises(NotFoundError):
        fleet.get(handle.record.sandbox_id)


async def test_whoever_hangs_up_in_the_moment_in_which_the_vm_is_begun_ends_it(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await stopped(fleet)
    vms = len(world.hypervisor.definitions)
    caller: list[asyncio.Task[object]] = []
    on_open_files = SandboxDriver._on_open_files

    def hanging_up(driver: SandboxDriver, message: OpenFiles) -> None:
        on_open_files(driver, message)
        caller[0].cancel()

    monkeypatch.setattr(SandboxDriver, "_on_open_files", hanging_up)
    caller.append(asyncio.get_running_loop().create_task(outcome(export(handle))))
    await asyncio.wait(caller)
    assert caller[0].cancelled()
    monkeypatch.undo()
    assert len(world.hypervisor.definitions) == vms
    await export(handle)
    world.require_nothing_left_of(handle)


async def test_a_rollback_of_one_that_does_not_run_is_refused(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    snapshot = await handle.snapshot("before")
    await handle.stop(timeout_s=0)
    held = await holding(world, handle, "export")
    with pytest.raises(WrongStateError, match="are being read or written"):
        await fleet.roll_back(handle.record.sandbox_id, snapshot.manifest.snapshot_id)
    assert world.storage.staged == {}
    held.go_on()
    await held.task
    await fleet.roll_back(handle.record.sandbox_id, snapshot.manifest.snapshot_id)


async def test_the_fleets_look_leaves_the_vm_alone(world: World, fleet: Fleet) -> None:
    handle = await stopped(fleet)
    held = await holding(world, handle, "export")
    for _ in range(3):
        await fleet.reconcile()
    assert has_vm(world, handle)
    held.go_on()
    assert not isinstance(await held.task, HyperError)


@pytest.mark.parametrize("phase", ["open_root", "read_root", "delete_container", "shutdown"])
async def test_what_a_killed_daemon_left_the_next_one_ends(world: World, phase: str) -> None:
    async with world.daemon() as fleet:
        handle = await stopped(fleet)
        before = handle.view()
        world.hypervisor.held_verbs.add(phase)
        exporting = asyncio.get_running_loop().create_task(outcome(export(handle)))
        await eventually(lambda: has_vm(world, handle))
        agent = world.agent(handle)
        await agent.wait_called(phase)
        left = world.hypervisor.running[handle.record.sandbox_id]
    await asyncio.wait((exporting,))
    world.hypervisor.running[handle.record.sandbox_id] = left  # a kill ends no VM
    world.hypervisor.held_verbs.clear()
    async with world.daemon() as fleet:
        handle = fleet.get(handle.record.sandbox_id)
        assert handle.view() == before
        assert await export(handle) == b""  # waits until that VM is gone
        assert handle.view() == before
        world.require_nothing_left_of(handle)
        world.hypervisor.running[handle.record.sandbox_id] = left
    async with world.daemon() as fleet:
        handle = fleet.get(handle.record.sandbox_id)
        await handle.start()
        assert has_vm(world, handle)
        for _ in range(50):
            await asyncio.sleep(0)
        assert state(handle) is ContainerState.RUNNING
        assert has_vm(world, handle)


async def test_a_daemon_that_ends_ends_the_vm(world: World) -> None:
    async with asyncio.timeout(10), world.daemon() as fleet:
        handle = await stopped(fleet)
        held = await holding(world, handle, "write")
    assert not has_vm(world, handle)
    assert isinstance(await held.error(), HyperError)


async def test_what_lies_in_a_tmpfs_is_gone_and_nothing_is_written_beneath_it(
    world: World, fleet: Fleet
) -> None:
    handle = await created(fleet, tmpfs={"/srv": ""})
    disk_of(world, handle).synced[b"/etc/a"] = b"1"
    for call in (write(handle), read(handle, b"/srv/written")):
        with pytest.raises(UnsupportedError, match="in the tmpfs at /srv"):
            await call
    assert not has_vm(world, handle)
    await handle.start()
    await write(handle)
