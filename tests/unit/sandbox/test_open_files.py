# SPDX-License-Identifier: Apache-2.0
"""A container's files, in each of its states, and what comes in the middle of a call."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

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
from hyperd.model.container import ContainerSpec, ContainerState
from hyperd.model.guest import Change, ChangeKind, PathStat, ProcessExit, WriteOptions
from hyperd.model.image import ImageConfig, NewImage
from hyperd.model.volume import Mount, MountType, VolumeName, VolumeRequest
from hyperd.sandbox import Fleet, SandboxHandle
from hyperd.sandbox.driver import SandboxDriver
from hyperd.sandbox.files_vm import SIZING
from hyperd.sandbox.message import OpenFiles
from tests.fakes.archives import PIECE_BYTES, FakeFiles, let_pieces_go
from tests.fakes.guest import FakeAgent
from tests.fakes.world import World, created, eventually, started

BIG = b"x" * (3 * PIECE_BYTES)


def state(handle: SandboxHandle) -> ContainerState:
    return handle.view().state


async def stopped(fleet: Fleet, *args: str, **fields: object) -> SandboxHandle:
    handle = await started(fleet, *args, **fields)
    await handle.stop(timeout_s=0)
    return handle


def disk_of(world: World, handle: SandboxHandle) -> FakeFiles:
    return world.hypervisor.files.setdefault(handle.record.sandbox_id, FakeFiles())


def has_vm(world: World, handle: SandboxHandle) -> bool:
    return handle.record.sandbox_id in world.hypervisor.running


async def export(handle: SandboxHandle) -> bytes:
    got: list[bytes] = []

    async def take(piece: bytes) -> None:
        got.append(piece)

    await handle.files.export(take)
    return b"".join(got)


async def changes(handle: SandboxHandle) -> list[Change]:
    got: list[Change] = []

    async def take(change: Change) -> None:
        got.append(change)

    await handle.files.list_changes(take)
    return got


async def read(handle: SandboxHandle, path: bytes) -> list[PathStat | bytes]:
    got: list[PathStat | bytes] = []

    async def take(item: PathStat | bytes) -> None:
        got.append(item)

    await handle.files.read(path, take)
    return got


async def write(handle: SandboxHandle, content: bytes = b"tar", path: bytes = b"/srv") -> None:
    await handle.files.write(WriteOptions(path), pieces(content))


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


async def commit(handle: SandboxHandle, *, pause: bool = True, **fields: object) -> str:
    async def tell(_: int) -> None:
        pass

    image = await handle.files.commit(NewImage(**fields), pause=pause, tell=tell)  # type: ignore[arg-type]
    return image.image_id


CALLS: dict[str, Callable[[SandboxHandle], Awaitable[object]]] = {
    "commit": commit,
    "diff": changes,
    "export": export,
    "read": lambda handle: read(handle, b"/etc/a"),
    "write": write,
}
every_call = pytest.mark.parametrize("call", list(CALLS))


class Holding:
    """A call that is under way: its guest moves one piece and no more."""

    def __init__(self, world: World, handle: SandboxHandle, call: str) -> None:
        self.world, self.handle = world, handle
        disk = disk_of(world, handle)
        disk.synced |= {b"/etc/a": BIG, b"/etc/b": b"2"}
        disk.pieces = 1 if call != "write" else 0
        self.task = asyncio.get_running_loop().create_task(self._run(CALLS[call](handle)))

    async def _run(self, work: Awaitable[object]) -> object:
        try:
            return await work
        except HyperError as error:
            return error

    async def begun(self) -> FakeAgent:
        sandbox_id = self.handle.record.sandbox_id
        verbs = {"read_layer", "list_changes", "read_tree", "read_root", "write_tree"}

        def is_held() -> bool:
            agent = self.world.hypervisor.agents.get(sandbox_id)
            return agent is not None and bool(verbs & set(agent.calls)) and agent.files.pieces == 0

        await eventually(is_held)
        return self.world.hypervisor.agents[sandbox_id]

    def go_on(self) -> None:
        let_pieces_go(self.world.hypervisor.agents[self.handle.record.sandbox_id])

    async def error(self) -> HyperError:
        async with asyncio.timeout(5):
            outcome = await self.task
        assert isinstance(outcome, HyperError)
        return outcome


async def holding(world: World, handle: SandboxHandle, call: str) -> Holding:
    held = Holding(world, handle, call)
    await held.begun()
    return held


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
    starting = asyncio.get_running_loop().create_task(_outcome(handle.start()))
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
    second = asyncio.get_running_loop().create_task(_outcome(export(handle)))  # waits for its turn
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
    caller.append(asyncio.get_running_loop().create_task(_outcome(export(handle))))
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
        exporting = asyncio.get_running_loop().create_task(_outcome(export(handle)))
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


async def test_a_commit_has_the_containers_configuration(world: World, fleet: Fleet) -> None:
    base = world.images.add(
        "web",
        ImageConfig(
            env=("PATH=/bin", "A=1"),
            entrypoint=("/entry",),
            cmd=("serve",),
            labels={"a": "1", "b": "1"},
            exposed_ports=("80/tcp",),
            healthcheck_json="{}",
        ),
    )
    spec = ContainerSpec(
        "web",
        args=("say", "hi"),
        env=("A=2", "B=3"),
        user="1000",
        labels={"b": "2"},
        working_directory="/srv",
        tty=True,
        hostname="box",
    )
    view, _ = await fleet.create(spec)
    handle = fleet.get(view.record.sandbox_id)
    await commit(handle, author="me", message="m", changes=("CMD x",), reference="new:1")
    [made] = world.images.commits
    assert made.base == base.image_id
    assert made.new.overrides == ImageConfig(
        env=("PATH=/bin", "A=2", "B=3"),
        entrypoint=("/entry",),
        cmd=("say", "hi"),
        working_directory="/srv",
        user="1000",
        labels={"a": "1", "b": "2"},
        exposed_ports=("80/tcp",),
        healthcheck_json="{}",
    )
    assert made.new.created_by == "say hi"
    assert (made.new.author, made.new.message, made.new.changes) == ("me", "m", ("CMD x",))


async def test_a_commit_tells_how_far_it_is(world: World, fleet: Fleet) -> None:
    handle = await started(fleet)
    disk_of(world, handle).write(b"/a", b"x" * (5 << 19))
    told: list[int] = []

    async def tell(done: int) -> None:
        told.append(done)

    await handle.files.commit(NewImage(), pause=False, tell=tell)
    assert told == sorted(told)
    assert len(told) == 3
    assert told[-1] == (5 << 19) + 3


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


async def _outcome(work: Awaitable[object]) -> object:
    try:
        return await work
    except HyperError as error:
        return error


def in_volume(*, readonly: bool = False) -> Mount:
    return Mount(MountType.VOLUME, "/data", "db", readonly)


async def test_of_one_that_runs_a_path_in_a_volume_is_seen_as_its_processes_see_it(
    world: World, fleet: Fleet
) -> None:
    handle = await started(fleet, mounts=(in_volume(), Mount(MountType.BIND, "/x", "/srv")))
    for path in (b"/data/file", b"/x/file"):
        disk_of(world, handle).write(path, b"1")
        assert await read(handle, path) != []
    await write(handle, path=b"/data")
    assert await read(handle, b"/data/written") != []
    assert "open_volume" not in world.agent(handle).calls


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
async def test_of_one_that_does_not_run_a_volume_is_opened_in_a_vm_and_nothing_else(
    world: World, fleet: Fleet, filesystem: str
) -> None:
    await fleet.volumes.create(VolumeRequest(VolumeName("db"), filesystem=filesystem))
    handle = await created(fleet, mounts=(Mount(MountType.VOLUME, "/other", "other"), in_volume()))
    disk_of(world, handle).synced[b"/file"] = b"1"
    world.hypervisor.definitions.clear()
    assert await read(handle, b"/data/file") != []
    agent = world.agent(handle)
    assert agent.opened_volumes == [("volume0", filesystem, "data", False)]
    assert agent.calls[-3:] == ["delete_container", "delete_container", "shutdown"]
    [definition] = world.hypervisor.definitions
    assert [disk.path.parent.name for disk in definition.disks if disk.serial.startswith("volume")] == ["db"]
    world.require_nothing_left_of(handle)
    assert world.volumes.attached_to("db") == set()
    await write(handle, path=b"/data/")
    assert b"/written" in disk_of(world, handle).synced


async def test_of_one_that_does_not_run_what_is_no_disk_is_refused_with_where_it_is(
    world: World, fleet: Fleet
) -> None:
    await fleet.volumes.create(VolumeRequest(VolumeName("pool"), filesystem="virtiofs"))
    handle = await created(
        fleet,
        mounts=(
            Mount(MountType.BIND, "/x", "/srv"),
            Mount(MountType.VOLUME, "/pool", "pool"),
            in_volume(readonly=True),
        ),
    )
    for path, where in ((b"/x/file", "/srv"), (b"/pool/file", "volume inspect")):
        with pytest.raises(UnsupportedError) as raised:
            await read(handle, path)
        assert where in raised.value.hint
    with pytest.raises(WrongStateError, match="is mounted read-only at /data"):
        await write(handle, path=b"/data")
    assert world.hypervisor.definitions == []
    disk_of(world, handle).synced[b"/file"] = b"1"
    assert await read(handle, b"/data/file") != []
    assert world.agent(handle).opened_volumes == [("volume0", "ext4", "data", True)]


async def test_a_volume_that_another_container_writes_to_is_not_opened_and_that_is_said(
    world: World, fleet: Fleet
) -> None:
    writer = await started(fleet, name="writer", mounts=(in_volume(),))
    handle = await created(fleet, mounts=(in_volume(),))
    with pytest.raises(WrongStateError, match="container writer"):
        await read(handle, b"/data/file")
    world.require_nothing_left_of(handle)
    assert world.volumes.attached_to("db") == {writer.record.sandbox_id}
