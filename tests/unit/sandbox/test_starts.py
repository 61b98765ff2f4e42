# SPDX-License-Identifier: Apache-2.0
"""A start: what it waits for, what it leaves when it fails, and that nobody who waits is forgotten."""

import asyncio

import pytest

from hyperd.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    ExhaustedError,
    HyperError,
    InvalidError,
    TimeoutExpiredError,
    UnavailableError,
)
from hyperd.model.container import ContainerState, Exit, ExitReason
from hyperd.model.guest import ProcessExit, Stream
from hyperd.sandbox import Fleet
from hyperd.sandbox.machine import name_of
from tests.fakes.guest_process import Script
from tests.fakes.hypervisor import qemu_died
from tests.fakes.storage import no_space
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.lives import all_of, ended, error_of, state


async def test_a_container_runs_to_its_end_and_says_how(world: World, fleet: Fleet) -> None:
    world.script("echo", Script([(Stream.STDOUT, b"hi\n"), (Stream.STDERR, b"oh\n")], ProcessExit(3)))
    handle = await created(fleet, "echo")
    session = await handle.attach(start=True)
    assert await all_of(session) == (b"hi\n", b"oh\n", Exit(3, ExitReason.EXITED))
    await session.aclose()
    assert state(handle) is ContainerState.EXITED
    assert await ended(handle) == Exit(3, ExitReason.EXITED)
    world.require_nothing_left_of(handle)
    assert handle.record.sandbox_id in world.storage.disks  # for a start to come


async def test_an_exited_container_starts_again_and_its_log_goes_on(world: World, fleet: Fleet) -> None:
    world.script("echo", Script([(Stream.STDOUT, b"hi\n")], ProcessExit(0)))
    handle = await created(fleet, "echo")
    for _ in range(3):
        session = await handle.attach(start=True)
        assert (await all_of(session))[0] == b"hi\n"
        await session.aclose()
    assert b"".join([entry.data async for entry in handle.journal.read()]) == b"hi\n" * 3


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (ProcessExit(137, signal=9, oom_killed=True), Exit(137, ExitReason.OOM, signal=9)),
        (ProcessExit(0, oom_killed=True), Exit(0, ExitReason.EXITED)),  # a child of its was killed
        (
            ProcessExit(127, start_error="no such file"),
            Exit(127, ExitReason.START_FAILED, message="no such file"),
        ),
        (ProcessExit(126, start_error="denied"), Exit(126, ExitReason.START_FAILED, message="denied")),
    ],
)
async def test_how_a_process_ended_is_told(
    world: World, fleet: Fleet, status: ProcessExit, expected: Exit
) -> None:
    world.script("x", Script(exit=status))
    handle = await created(fleet, "x")
    session = await handle.attach(start=True)
    assert (await all_of(session))[2] == expected
    await session.aclose()
    assert await ended(handle) == expected
    assert state(handle) is ContainerState.EXITED


async def test_the_first_byte_waits_for_no_record_and_no_log(world: World, fleet: Fleet) -> None:
    world.script("echo", Script([(Stream.STDOUT, b"first")]))
    handle = await created(fleet, "echo")
    saving, examined = asyncio.Event(), asyncio.Event()
    save, start = world.records.save_state, world.hypervisor.start

    async def save_late(sandbox_id, state, generation, *, lasting=False, spec=None) -> None:
        if name_of(state) is ContainerState.RUNNING:
            await saving.wait()
        await save(sandbox_id, state, generation, lasting=lasting)

    async def start_late(definition):
        await examined.wait()  # the log is looked through while the VM comes up
        return await start(definition)

    examine = handle.journal.examine
    loop = asyncio.get_running_loop()

    def examine_and_tell():
        loop.call_soon_threadsafe(examined.set)
        return examine()

    world.records.save_state = save_late  # type: ignore[method-assign]
    world.hypervisor.start = start_late  # type: ignore[method-assign]
    handle.journal.examine = examine_and_tell  # type: ignore[method-assign]
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(handle.start())
        await eventually(lambda: handle.journal.end_offset == 5)
        assert not starting.done()
        saving.set()


async def test_a_log_that_cannot_be_read_leaves_nothing_of_the_start(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)

    def unreadable():
        raise UnavailableError("the container's log cannot be written")

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(handle.journal, "examine", unreadable)
        with pytest.raises(UnavailableError, match="log cannot be written"):
            await handle.start()
    world.require_nothing_left_of(handle)
    await handle.start()


@pytest.mark.parametrize(("code", "kind"), [(126, CommandNotExecutableError), (127, CommandNotFoundError)])
async def test_a_start_without_a_session_fails_when_there_is_nothing_to_execute(
    world: World, fleet: Fleet, code: int, kind: type[HyperError]
) -> None:
    world.script("x", Script(exit=ProcessExit(code, start_error="exec: no")))
    handle = await created(fleet, "x")
    with pytest.raises(kind, match="exec: no"):
        await handle.start()
    assert (await ended(handle)).code == code
    world.require_nothing_left_of(handle)


async def test_starting_a_running_container_changes_nothing(fleet: Fleet) -> None:
    handle = await started(fleet)
    generation = handle.view().generation
    await handle.start()
    assert handle.view().generation == generation


async def test_hanging_up_cancels_the_wait_but_not_the_boot(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    world.hypervisor.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        start = tasks.create_task(handle.start())
        await eventually(lambda: world.hypervisor.definitions)
        start.cancel()
    world.hypervisor.gate.set()
    await eventually(lambda: state(handle) is ContainerState.RUNNING)


def _fail_root_disk(world: World) -> None:
    world.images.fail_next_root_disk = UnavailableError("boom")


def _fail_writable(world: World) -> None:
    world.storage.fail_next_create = no_space()


def _fail_network(world: World) -> None:
    world.network.fail_next_attach = ExhaustedError("boom")


def _fail_vm(world: World) -> None:
    world.hypervisor.fail_next_start = qemu_died()


def _fail_hello(world: World) -> None:
    world.dialer.fail_next_connect = TimeoutExpiredError("boom")


@pytest.mark.parametrize("fail", [_fail_root_disk, _fail_writable, _fail_network, _fail_vm, _fail_hello])
async def test_a_start_that_fails_anywhere_leaves_nothing_and_may_be_tried_again(
    world: World, fleet: Fleet, fail
) -> None:
    handle = await created(fleet)
    fail(world)
    with pytest.raises(HyperError):
        await handle.start()
    assert state(handle) is ContainerState.FAILED
    exit_ = await ended(handle)
    assert (exit_.code, exit_.reason) == (125, ExitReason.START_FAILED)
    world.require_nothing_left_of(handle)
    await handle.start()
    assert state(handle) is ContainerState.RUNNING


@pytest.mark.parametrize("verb", ["configure", "create_container", "start_container"])
async def test_a_guest_that_fails_a_step_is_destroyed_before_its_tap_goes(
    world: World, fleet: Fleet, verb: str
) -> None:
    handle = await created(fleet)
    order: list[str] = []
    destroy, detach = world.hypervisor.destroy, world.network.detach

    async def spy_destroy(sandbox_id) -> None:
        order.append("vm")
        await destroy(sandbox_id)

    async def spy_detach(sandbox_id) -> None:
        order.append("tap")
        await detach(sandbox_id)

    world.hypervisor.destroy = spy_destroy  # type: ignore[method-assign]
    world.network.detach = spy_detach  # type: ignore[method-assign]
    world.hypervisor.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        start = tasks.create_task(error_of(handle.start()))
        await eventually(lambda: world.hypervisor.definitions)
        world.dialer.gate.clear()
        world.hypervisor.gate.set()
        await eventually(lambda: handle.record.sandbox_id in world.hypervisor.agents)
        world.agent(handle).fail_next(verb, InvalidError("unknown user nobody"))
        world.dialer.gate.set()
        assert isinstance(await start, InvalidError)
    assert order == ["vm", "tap"]
    assert state(handle) is ContainerState.FAILED
    world.require_nothing_left_of(handle)


async def test_no_memory_left_is_said_and_the_container_stays_as_it_was(world: World, fleet: Fleet) -> None:
    await started(fleet, memory_bytes=4000 << 20)
    handle = await created(fleet)
    with pytest.raises(ExhaustedError):
        await handle.start()
    assert state(handle) is ContainerState.CREATED
