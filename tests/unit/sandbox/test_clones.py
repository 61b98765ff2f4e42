# SPDX-License-Identifier: Apache-2.0
"""Clones of a snapshot: all or none, each with an identity of its own before its processes run."""

import asyncio

import pytest

from hyperd.errors import (
    ExhaustedError,
    ExistsError,
    HyperError,
    ImageNotFoundError,
    InvalidError,
    NotFoundError,
    RestoreError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.model.container import ContainerState, ContainerView, ExecSpec, StartPath
from hyperd.model.guest import ForkIdentity, ProcessExit, Stream
from hyperd.model.network import NetworkSpec
from hyperd.sandbox import CloneOptions, Fleet, SandboxHandle
from hyperd.sandbox.records import Records
from hyperd.sandbox.tenure import Tenure
from tests.fakes.guest_agent import FakeAgent
from tests.fakes.guest_process import Script
from tests.fakes.hypervisor import restore_failed
from tests.fakes.world import World, eventually, started

BROKEN = UnavailableError("boom")


async def snapshot_of(fleet: Fleet, *args: str, name: str = "s", **fields: object) -> SandboxHandle:
    handle = await started(fleet, *args, **fields)
    await handle.snapshot(name)
    return handle


async def logged(handle: SandboxHandle) -> bytes:
    return b"".join([entry.data async for entry in handle.journal.read()])


def require_nothing_of_clones(world: World, fleet: Fleet, source: SandboxHandle) -> None:
    only = {source.record.sandbox_id}
    assert [view.record.sandbox_id for view in fleet.list_views((), everything=True)] == list(only)
    assert set(world.hypervisor.running) == only
    assert set(world.network.leases) == only
    assert set(world.network.taps) == only
    assert set(world.storage.disks) == only
    assert set(dict(world.ledger.admission.held)) == only


async def test_clones_go_on_where_the_source_was_each_as_its_own(world: World, fleet: Fleet) -> None:
    world.script("say", Script([(Stream.STDOUT, b"before ")]))
    source = await started(fleet, "say", name="web", hostname="fixed", labels={"a": "1"})
    await eventually(lambda: source.journal.end_offset == 7)
    snapshot = await source.snapshot("s")
    options = CloneOptions(3, "web", ("KEY=v",), {"b": "2"})
    views = await fleet.restore("s", options)
    assert [view.record.name for view in views] == ["web-0", "web-1", "web-2"]
    addresses = set()
    for index, view in enumerate(views):
        handle = fleet.get(view.record.sandbox_id)
        agent, record = world.agent(handle), handle.record
        assert view.state is ContainerState.RUNNING
        assert view.start is not None
        assert view.start.path is StartPath.SNAPSHOT
        assert not agent.frozen
        assert agent.identity is not None
        assert agent.identity.hostname == record.sandbox_id[:12]
        assert [str(item.container_id) for item in agent.identity.containers] == [source.record.sandbox_id]
        assert agent.identity.fork == ForkIdentity(index, 3, (f"HOSTNAME={agent.identity.hostname}", "KEY=v"))
        assert agent.calls.index("configure") < agent.calls.index("thaw")
        assert str(record.container_id) == source.record.sandbox_id
        assert record.spec.labels == {"a": "1", "b": "2"}
        assert world.storage.adopted[record.sandbox_id] == snapshot.path("disk")
        assert view.attachment is not None
        addresses.add(view.attachment.address)
        world.process(handle).emit(b"after")
        await _logged_up_to(handle, 12)
        assert await logged(handle) == b"after"
    assert len(addresses) == 3
    machine_ids = {agent.identity.machine_id for agent in world.hypervisor.agents.values() if agent.identity}
    assert len(machine_ids) == 4
    assert await logged(source) == b"before "


async def test_a_clone_is_a_container_like_any_other(world: World, fleet: Fleet) -> None:
    await snapshot_of(fleet)
    (view,) = await fleet.restore("s", CloneOptions())
    handle = fleet.get(view.record.sandbox_id)
    session = await handle.exec(ExecSpec(("sleep",)))
    await session.aclose()
    await handle.kill(15)
    assert (await handle.wait_ended()).code == 143
    await handle.start()  # from its image and its own disk, as every container
    report = handle.view().start
    assert report is not None
    assert report.path is StartPath.COLD
    await handle.remove(force=True)
    world.require_nothing_left_of(handle)


async def test_processes_of_execs_go_on_in_clones_and_block_nobody(world: World, fleet: Fleet) -> None:
    source = await started(fleet)
    session = await source.exec(ExecSpec(("sleep",)))
    await source.snapshot("s")
    await session.aclose()
    (view,) = await fleet.restore("s", CloneOptions())
    agent = world.agent(fleet.get(view.record.sandbox_id))
    processes = next(iter(agent.containers.values())).processes
    further = next(process for key, process in processes.items() if key)
    further.emit(b"x" * 1_000_000)
    further.finish(ProcessExit(0))
    await eventually(lambda: len(processes) == 1)  # carried to its end and forgotten


async def test_a_killed_daemon_finds_its_clones_again_with_all_their_output(world: World) -> None:
    async with world.daemon() as fleet:
        await snapshot_of(fleet)
        (view,) = await fleet.restore("s", CloneOptions())
        world.process(fleet.get(view.record.sandbox_id)).emit(b"one")
        handle = fleet.get(view.record.sandbox_id)
        await eventually(lambda: handle.journal.end_offset == 3)
    async with world.daemon() as fleet:
        handle = fleet.get(view.record.sandbox_id)
        world.process(handle).emit(b"two")
        world.process(handle).finish(ProcessExit(0))
        assert (await handle.wait_ended()).code == 0
        assert await logged(handle) == b"onetwo"


FAILURES = {
    "intact": (lambda world: world.snapshots.fail_next("require_intact", RestoreError("edited")), 1),
    "root disk": (lambda world: setattr(world.images, "fail_next_root_disk", BROKEN), 1),
    "disk": (lambda world: setattr(world.storage, "fail_next_adopt", BROKEN), 1),
    "network": (lambda world: setattr(world.network, "fail_next_attach", BROKEN), 1),
    "vm": (lambda world: setattr(world.hypervisor, "fail_next_restore", restore_failed()), 1),
    "hello": (lambda world: setattr(world.dialer, "fail_next_connect", BROKEN), 1),
}


@pytest.mark.parametrize("step", FAILURES)
async def test_when_one_fails_none_stays(world: World, fleet: Fleet, step: str) -> None:
    source = await snapshot_of(fleet)
    FAILURES[step][0](world)
    with pytest.raises(HyperError):
        await fleet.restore("s", CloneOptions(3))
    require_nothing_of_clones(world, fleet, source)
    assert len(await fleet.restore("s", CloneOptions(3))) == 3


@pytest.mark.parametrize("verb", ["list_containers", "configure"])
async def test_a_clone_whose_agent_refuses_takes_the_others_with_it(
    world: World, fleet: Fleet, verb: str
) -> None:
    source = await snapshot_of(fleet)
    saved = next(iter(world.hypervisor.saved_agents.values()))
    copy = saved.copy
    failing: list[FakeAgent] = []

    def copy_and_break() -> FakeAgent:
        made = copy()
        if not failing:
            failing.append(made)
            made.fail_next(verb, InvalidError("boom"))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(saved), "copy", lambda _: copy_and_break())
        patch.setattr("hyperd.sandbox.tenure.THAW_TRIES", 1)
        with pytest.raises(InvalidError, match="boom"):
            await fleet.restore("s", CloneOptions(3))
    assert failing
    require_nothing_of_clones(world, fleet, source)


async def test_too_many_are_refused_with_the_arithmetic_before_anything_is_made(
    world: World, fleet: Fleet
) -> None:
    source = await snapshot_of(fleet)
    before = len(world.hypervisor.definitions)
    with pytest.raises(ExhaustedError) as caught:
        await fleet.restore("s", CloneOptions(12))
    assert "12 x (256 MiB of memory + 136 MiB for its QEMU) = 4704 MiB are needed" in caught.value.brief
    assert "3840 of 4232 MiB are free" in caught.value.brief
    assert len(world.hypervisor.definitions) == before
    require_nothing_of_clones(world, fleet, source)


async def test_what_cannot_be_cloned_is_refused(world: World, fleet: Fleet) -> None:
    await snapshot_of(fleet, name="s")
    with pytest.raises(NotFoundError):
        await fleet.restore("unknown", CloneOptions())
    for options in (
        CloneOptions(0),
        CloneOptions(5000),
        CloneOptions(env=("=x",)),
        CloneOptions(name="-bad"),
        CloneOptions(network="none"),
    ):
        with pytest.raises(InvalidError):
            await fleet.restore("s", options)
    await fleet.restore("s", CloneOptions(2, "twin"))
    with pytest.raises(ExistsError, match="twin-0"):
        await fleet.restore("s", CloneOptions(2, "twin"))
    image = world.images.images.popitem()
    with pytest.raises(ImageNotFoundError):
        await fleet.restore("s", CloneOptions())
    world.images.images[image[0]] = image[1]


async def test_another_kernel_is_another_host(world: World) -> None:
    async with world.daemon() as fleet:
        await snapshot_of(fleet)
        kernel = world.runner.settings.guest.kernel
        kernel.write_text("a newer one")
        with pytest.raises(UnsupportedError, match="kernel_sha256"):
            await fleet.restore("s", CloneOptions())


async def test_an_image_of_a_snapshot_is_in_use_and_says_by_which(world: World, fleet: Fleet) -> None:
    source = await snapshot_of(fleet, name="kept")
    assert fleet.images_in_use() == {source.record.image_id: "a container"}
    await source.remove(force=True)
    assert fleet.images_in_use() == {source.record.image_id: "snapshot kept"}
    await fleet.snapshot_desk.remove("kept")
    assert fleet.images_in_use() == {}


async def test_hanging_up_does_not_leave_half_of_the_clones(world: World, fleet: Fleet) -> None:
    await snapshot_of(fleet)
    world.hypervisor.gate.clear()
    before = len(world.hypervisor.definitions)
    asking = asyncio.get_running_loop().create_task(fleet.restore("s", CloneOptions(3)))
    await eventually(lambda: len(world.hypervisor.definitions) == before + 3)
    asking.cancel()
    world.hypervisor.gate.set()
    await eventually(lambda: _running(fleet) == 4)


@pytest.mark.parametrize("phase", ["disk", "network", "vm", "configure", "thaw of the first"])
async def test_a_daemon_killed_while_clones_come_leaves_all_or_none(world: World, phase: str) -> None:
    async with world.daemon() as fleet:
        source = await snapshot_of(fleet)
        reference = source.record.sandbox_id
        asking = asyncio.get_running_loop().create_task(_expect_failure(fleet))
        match phase:
            case "disk":
                world.storage.gate.clear()
                await eventually(lambda: len(world.network.taps) == 4)
            case "network":
                world.network.gate.clear()
                await eventually(lambda: len(world.network.attaching) == 3)
            case "vm":
                world.hypervisor.gate.clear()
                await eventually(lambda: len(world.hypervisor.definitions) == 4)
            case "configure" | _:
                verb = "configure" if phase == "configure" else "thaw"
                saved = next(iter(world.hypervisor.saved_agents.values()))
                saved._gates[verb] = asyncio.Event()
                await eventually(lambda: _called(world, verb) == 3)
        held = dict(await _states(world))
    asking.cancel()
    for gate in (world.storage.gate, world.network.gate, world.hypervisor.gate):
        gate.set()
    for agent in world.hypervisor.agents.values():
        agent._gates.clear()
    async with world.daemon() as fleet:
        if phase == "thaw of the first":
            await eventually(lambda: _running(fleet) == 4)
            await eventually(
                lambda: not any(world.hypervisor.agents[item].frozen for item in world.hypervisor.running)
            )
        else:
            assert len(held) == 4
            source = fleet.get(reference)
            require_nothing_of_clones(world, fleet, source)


def _running(fleet: Fleet) -> int:
    views: list[ContainerView] = fleet.list_views((), everything=True)
    return sum(view.state is ContainerState.RUNNING for view in views)


def _called(world: World, verb: str) -> int:
    return sum(agent.calls.count(verb) > 0 for agent in world.hypervisor.agents.values() if agent.frozen)


async def _states(world: World) -> list[tuple[str, str]]:
    return [(item.record.sandbox_id, type(item.state).__name__) for item in await world.records.load()]


async def _expect_failure(fleet: Fleet) -> None:
    try:
        await fleet.restore("s", CloneOptions(3))
    except HyperError:
        return


async def _logged_up_to(handle: SandboxHandle, offset: int) -> None:
    await eventually(lambda: handle.journal.end_offset == offset)


async def test_a_clone_whose_fellows_are_not_there_yet_can_only_be_removed(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await snapshot_of(fleet)
    settling, settle, real = asyncio.Event(), asyncio.Event(), Records.settle

    async def settle_late(records, sandbox_ids):
        settling.set()
        await settle.wait()
        await real(records, sandbox_ids)

    monkeypatch.setattr(Records, "settle", settle_late)
    restoring = asyncio.get_running_loop().create_task(fleet.restore("s", CloneOptions(2, "clone")))
    await settling.wait()
    handle = fleet.get("clone-0")
    for work in (handle.pause, handle.unpause, handle.stop, handle.snapshot, handle.hibernate):
        with pytest.raises(WrongStateError, match="is being restored"):
            await work()
    with pytest.raises(WrongStateError, match="is being restored"):
        await handle.exec(ExecSpec(("true",)))
    assert world.agent(handle).frozen
    settle.set()
    assert len(await restoring) == 2
    assert not world.agent(handle).frozen
    await handle.stop()


async def test_a_clone_that_cannot_be_thawed_now_undoes_nothing_and_is_thawed_later(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperd.sandbox.operations.RETRY_DELAY_S", 0.001)
    monkeypatch.setattr("hyperd.sandbox.restoring.LET_GO_TIMEOUT_S", 0.01)
    await snapshot_of(fleet)
    answers, real = False, Tenure.thaw

    async def thaw(tenure: Tenure) -> None:
        await asyncio.sleep(0)
        if not answers:
            raise UnavailableError("boom")
        await real(tenure)

    monkeypatch.setattr(Tenure, "thaw", thaw)
    views = await fleet.restore("s", CloneOptions(2))
    assert [view.state for view in views] == [ContainerState.RUNNING] * 2
    assert all(view.trouble for view in views)
    answers = True
    handles = [fleet.get(view.record.sandbox_id) for view in views]
    await eventually(lambda: not any(world.agent(handle).frozen for handle in handles))
    await eventually(lambda: not any(handle.view().trouble for handle in handles))


async def test_clones_may_be_given_a_network_by_its_id_that_exists(world: World, fleet: Fleet) -> None:
    await snapshot_of(fleet)
    made = await world.network.create_network(NetworkSpec("back"))
    (view,) = await fleet.restore("s", CloneOptions(network=made.network_id))
    assert view.record.spec.network == "back"
    with pytest.raises(NotFoundError, match="no such network"):
        await fleet.restore("s", CloneOptions(network="gone"))
