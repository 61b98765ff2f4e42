# SPDX-License-Identifier: Apache-2.0
"""The life of one sandbox, with everything that can go wrong in it."""

import asyncio
import logging
from signal import SIGHUP, SIGKILL, SIGTERM

import pytest

from hyperd.errors import (
    CommandNotExecutableError,
    CommandNotFoundError,
    ExhaustedError,
    HyperError,
    InvalidError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    WrongStateError,
)
from hyperd.model.container import ContainerSpec, ContainerState, ExecSpec, Exit, ExitReason
from hyperd.model.guest import FIRST_PROCESS, OutputChunk, ProcessExit, Stream
from hyperd.model.image import ImageConfig
from hyperd.model.vm import VmGone, VmGoneCause
from hyperd.sandbox import Fleet, SandboxHandle
from hyperd.sandbox.machine import name_of
from tests.fakes.guest import Script
from tests.fakes.hypervisor import qemu_died
from tests.fakes.storage import no_space
from tests.fakes.world import World, created, eventually, started

TERM_IGNORED = Script(ignored_signals=frozenset({SIGTERM}))


def state(handle: SandboxHandle) -> ContainerState:
    return handle.view().state


async def ended(handle: SandboxHandle) -> Exit:
    async with asyncio.timeout(5):
        return await handle.wait_ended()


async def all_of(session) -> tuple[bytes, bytes, Exit]:
    out, err, exit_ = b"", b"", None
    async with asyncio.timeout(5):
        async for item in session:
            if isinstance(item, OutputChunk):
                out += item.data if item.stream is Stream.STDOUT else b""
                err += item.data if item.stream is Stream.STDERR else b""
            else:
                exit_ = item
    assert exit_ is not None
    return out, err, exit_


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
        start = tasks.create_task(_swallow(handle.start()))
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


async def _swallow(work) -> BaseException | None:
    try:
        await work
    except HyperError as error:
        return error
    return None


async def test_no_memory_left_is_said_and_the_container_stays_as_it_was(world: World, fleet: Fleet) -> None:
    await started(fleet, memory_bytes=4000 << 20)
    handle = await created(fleet)
    with pytest.raises(ExhaustedError):
        await handle.start()
    assert state(handle) is ContainerState.CREATED


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
        start = tasks.create_task(_swallow(handle.start()))
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
        tasks.create_task(_swallow(handle.start()))
        await eventually(lambda: handle.record.sandbox_id in world.hypervisor.agents)
        await world.agent(handle).wait_called("start_container")
        tasks.create_task(handle.stop())
    assert state(handle) in (ContainerState.EXITED, ContainerState.FAILED)
    world.require_nothing_left_of(handle)


@pytest.mark.parametrize("when", ["created", "starting", "running", "stopping", "exited", "failed"])
async def test_remove_by_force_works_in_every_state(world: World, fleet: Fleet, when: str) -> None:
    world.script("stubborn", TERM_IGNORED)
    handle = await created(fleet, "stubborn")
    sandbox_id = handle.record.sandbox_id
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        if when == "starting":
            world.hypervisor.gate.clear()
            tasks.create_task(_swallow(handle.start()))
            await eventually(lambda: world.hypervisor.definitions)
        elif when != "created":
            if when == "failed":
                world.hypervisor.fail_next_start = qemu_died()
            await _swallow(handle.start())
        if when == "stopping":
            tasks.create_task(handle.stop(timeout_s=600))
            await eventually(lambda: state(handle) is ContainerState.STOPPING)
        if when == "exited":
            await handle.stop(timeout_s=0)
        assert state(handle) == when
        if when in ("starting", "running", "stopping"):
            with pytest.raises(WrongStateError):
                await handle.remove(force=False)
        removals = [tasks.create_task(handle.remove(force=True)) for _ in range(2)]
        for removal in removals:
            await removal
        with pytest.raises(NotFoundError):
            fleet.get(sandbox_id)
    world.require_nothing_left_of(handle)
    assert sandbox_id not in world.storage.disks
    assert sandbox_id not in world.network.leases
    assert not handle.journal.directory.exists()
    assert await world.records.load() == []
    await handle.remove(force=False)  # idempotent, even for one who still holds it
    await handle.stop()
    with pytest.raises(NotFoundError):
        await handle.start()


async def test_a_removal_that_failed_can_be_tried_again(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    world.network.fail_next_release = UnavailableError("netlink is busy")
    with pytest.raises(UnavailableError):
        await handle.remove(force=False)
    assert state(handle) is ContainerState.REMOVING
    await handle.remove(force=False)
    assert fleet.list_views((), everything=True) == []


async def test_a_removal_frees_its_disk_before_anything_has_to_be_written_down(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet)
    world.network.fail_next_release = ExhaustedError("no space left for the database")
    with pytest.raises(ExhaustedError):
        await handle.remove(force=True)
    assert world.storage.disks == {}
    assert not (world.root / "sandboxes" / handle.record.sandbox_id).exists()
    await handle.remove(force=True)
    world.require_nothing_left_of(handle)


async def test_one_who_waits_for_a_container_that_never_ran_is_told_of_its_removal(fleet: Fleet) -> None:
    handle = await created(fleet)
    assert await ended(handle) == Exit(0, ExitReason.EXITED)
    await handle.remove(force=False)
    with pytest.raises(NotFoundError):
        await ended(handle)


async def test_one_who_waits_is_told_of_a_removal_that_failed(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    world.network.fail_next_release = UnavailableError("netlink is busy")
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        removal = tasks.create_task(_swallow(handle.remove(force=False)))
        await eventually(lambda: state(handle) is ContainerState.REMOVING)
        wait = tasks.create_task(_swallow(handle.wait_ended()))
        await asyncio.sleep(0)
    assert isinstance(removal.result(), UnavailableError)
    assert isinstance(wait.result(), UnavailableError)


async def test_a_start_that_fails_is_told_when_its_auto_remove_is_over(world: World, fleet: Fleet) -> None:
    handle = await created(fleet, name="once", auto_remove=True)
    world.hypervisor.fail_next_start = UnavailableError("no")
    with pytest.raises(UnavailableError):
        await handle.start()
    assert fleet.list_views((), everything=True) == []
    assert handle.record.sandbox_id not in world.storage.disks
    await created(fleet, name="once")


async def test_auto_remove_frees_the_name_before_the_end_is_told(world: World, fleet: Fleet) -> None:
    world.script("echo", Script([(Stream.STDOUT, b"hi\n")], ProcessExit(4)))
    handle = await created(fleet, "echo", name="once", auto_remove=True)
    session = await handle.attach(start=True)
    assert await all_of(session) == (b"hi\n", b"", Exit(4, ExitReason.EXITED))
    await session.aclose()
    await created(fleet, name="once")


async def test_auto_remove_after_a_failed_start_leaves_nothing(world: World, fleet: Fleet) -> None:
    handle = await created(fleet, auto_remove=True)
    world.hypervisor.fail_next_start = qemu_died()
    with pytest.raises(UnavailableError):
        await handle.start()
    await eventually(lambda: not fleet.list_views((), everything=True))
    assert not world.storage.disks


async def test_auto_remove_without_room_leaves_nothing(world: World, fleet: Fleet) -> None:
    await started(fleet, memory_bytes=4000 << 20)
    handle = await created(fleet, auto_remove=True)
    with pytest.raises(ExhaustedError):
        await handle.start()
    await eventually(lambda: len(fleet.list_views((), everything=True)) == 1)


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


async def test_a_guest_that_cannot_shut_down_is_destroyed_all_the_same(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    world.agent(handle).fail_next("shutdown", HyperError("the agent failed"))
    await handle.stop()
    world.require_nothing_left_of(handle)


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


async def test_a_slow_reader_makes_the_process_wait_and_loses_nothing(world: World, fleet: Fleet) -> None:
    total = 8 << 20
    world.script(
        "yes", Script(((Stream.STDOUT, b"y" * 65536) for _ in range(total // 65536)), ProcessExit(0))
    )
    handle = await created(fleet, "yes")
    session = await handle.attach(start=True)
    await eventually(lambda: handle.journal.end_offset > 1 << 20)
    held_at = world.process(handle).end_offset
    assert held_at < total  # the process waits
    out, _, _ = await all_of(session)
    assert len(out) == total
    await session.aclose()


async def test_a_second_reader_who_takes_nothing_is_dropped_and_told(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperd.sandbox.handle.STALL_TIMEOUT_S", 0.02)
    handle = await created(fleet)
    first = await handle.attach(start=True)
    stalled = await handle.attach(start=False)
    total = 4 << 20
    world.process(handle).emit(b"y" * total)
    world.process(handle).finish(ProcessExit(0))
    assert len((await all_of(first))[0]) == total
    with pytest.raises(UnavailableError, match="took no output"):
        await all_of(stalled)


async def test_what_is_left_when_the_process_ends_waits_for_a_slow_reader(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    session = await handle.attach(start=True)
    process = world.process(handle)
    process.emit(b"z" * (17 * 65536 + 200_000))
    process.finish(ProcessExit(0))
    await ended(handle)
    assert len((await all_of(session))[0]) == 17 * 65536 + 200_000


async def test_a_reader_who_vanishes_frees_the_process(world: World, fleet: Fleet) -> None:
    world.script("yes", Script(((Stream.STDOUT, b"y" * 65536) for _ in range(100)), ProcessExit(0)))
    handle = await created(fleet, "yes")
    session = await handle.attach(start=True)
    await eventually(lambda: handle.journal.end_offset > 1 << 20)
    await session.aclose()
    assert (await ended(handle)).code == 0


async def test_standard_input_cut_by_a_lost_connection_is_an_error(world: World, fleet: Fleet) -> None:
    world.script("cat", Script(echo=True))
    handle = await created(fleet, "cat", stdin=True)
    session = await handle.attach(start=True)
    await session.write(b"one")
    world.agent(handle).drop_connections()
    with pytest.raises(UnavailableError, match="part of the standard input"):
        await session.write(b"two")
    await session.aclose()
    again = await handle.attach(start=False)
    await again.write(b"three")
    await again.close_stdin()
    assert (await ended(handle)).code == 0
    await again.write(b"into the void")  # after the exit
    await again.close_stdin()
    await again.aclose()


async def test_bytes_for_a_process_without_standard_input_vanish(world: World, fleet: Fleet) -> None:
    handle = await created(fleet)
    session = await handle.attach(start=True)
    await session.write(b"x" * 100)
    await session.close_stdin()
    assert not world.process(handle).received
    await session.aclose()


async def test_who_attaches_while_it_starts_gets_the_first_byte(world: World, fleet: Fleet) -> None:
    world.script("echo", Script([(Stream.STDOUT, b"first")], ProcessExit(0)))
    handle = await created(fleet, "echo")
    world.dialer.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(handle.start())
        await eventually(lambda: world.hypervisor.running)
        attaching = tasks.create_task(handle.attach(start=True))
        await asyncio.sleep(0)
        world.dialer.gate.set()
    assert starting.done()
    assert (await all_of(attaching.result()))[0] == b"first"


async def test_a_full_disk_under_the_log_does_not_stop_the_process(
    world: World, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    handle = await created(fleet)
    session = await handle.attach(start=True)
    journal = handle.journal
    write = journal._write

    def no_room(frame: bytes) -> None:
        raise ExhaustedError("no space left")

    journal._write = no_room  # type: ignore[method-assign]
    world.process(handle).emit(b"lost to the log")
    await eventually(lambda: world.process(handle).start_offset == 15)
    journal._write = write  # type: ignore[method-assign]
    world.agent(handle).drop_connections()
    await eventually(lambda: world.agent(handle).connections)
    world.process(handle).emit(b", kept")
    world.process(handle).finish(ProcessExit(0))
    out, _, exit_ = await all_of(session)
    assert (out, exit_.code) == (b"lost to the log, kept", 0)
    assert [entry.data async for entry in journal.read()] == [b", kept"]


async def test_nobody_waits_for_ever_when_hyperd_ends(world: World) -> None:
    world.hypervisor.gate.clear()
    async with world.daemon() as fleet:
        handle = await created(fleet)
        start = asyncio.ensure_future(_swallow(handle.start()))
        await eventually(lambda: world.hypervisor.definitions)
        wait = asyncio.ensure_future(_swallow(handle.wait_ended()))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert isinstance(await start, UnavailableError)
        assert isinstance(await wait, UnavailableError)
        with pytest.raises(UnavailableError):
            await handle.stop()
