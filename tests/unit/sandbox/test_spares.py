# SPDX-License-Identifier: Apache-2.0
"""Spares: who has one starts at once, who has none is none the worse, and nothing of one stays."""

import asyncio

import pytest

from hyperd.errors import ExistsError, HyperError, UnavailableError
from hyperd.model.container import ContainerSpec, ContainerState, StartPath, StartReport
from hyperd.model.guest import ProcessExit
from hyperd.model.volume import Mount, MountType
from hyperd.sandbox import Fleet
from hyperd.sandbox.spares import demand, spares
from hyperd.sandbox.spares.rehearsal import PROGRAM
from tests.fakes.guest_process import Script
from tests.fakes.hypervisor import qemu_died
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.spared import LARGE, SHAPE, report, require_nothing_of, spare_of
from tests.unit.sandbox.spared import keeping_one as keeping_one  # noqa: PLC0414 - a fixture
from tests.unit.sandbox.spared import ready as ready  # noqa: PLC0414 - a fixture

REHEARSAL = [
    "configure",
    "create_container",
    "start_container",
    "read_output",
    "wait_process",
    "end_rehearsal",
]


async def test_a_spare_has_gone_through_a_start_and_stands_still(world: World, ready: Fleet) -> None:
    spare = await spare_of(world)
    agent = world.hypervisor.agents[spare.sandbox_id]
    assert agent.calls == REHEARSAL
    assert not agent.containers
    assert world.hypervisor.running[spare.sandbox_id].paused
    assert spare.sandbox_id not in dict(world.ledger.admission.held)


async def test_a_container_takes_the_spare_and_its_id(world: World, ready: Fleet) -> None:
    spare = await spare_of(world)
    handle = await started(ready, ports=())
    assert handle.record.sandbox_id == spare.sandbox_id
    assert report(handle) == StartReport(StartPath.SPARE, "", report(handle).phases_ms)
    assert list(report(handle).phases_ms) == ["prepare", "vm", "configure", "create", "start"]
    assert not world.hypervisor.running[spare.sandbox_id].paused
    image, writable = world.hypervisor.disks(spare.sandbox_id)
    assert image.suffix == ".vmdk"
    assert writable.exists()
    assert [one.sandbox_id for one in world.hypervisor.definitions].count(spare.sandbox_id) == 1
    assert (await spare_of(world)).sandbox_id != spare.sandbox_id  # the next is ready
    await handle.remove(force=True)
    require_nothing_of(world, spare.sandbox_id)


async def test_what_makes_it_another_is_given_at_the_start(world: World, ready: Fleet) -> None:
    spare = await spare_of(world)
    agent = world.hypervisor.agents[spare.sandbox_id]
    rehearsed = agent.identity
    handle = await started(ready, hostname="mine")
    given = agent.identity
    assert rehearsed is not None
    assert given is not None
    assert given.hostname == "mine"
    assert given.entropy != rehearsed.entropy
    assert len(given.entropy) == 64
    assert given.boot_id != rehearsed.boot_id
    assert given.machine_id == rehearsed.machine_id  # made of the id, which is the container's own
    assert [link.mac for link in given.links] == [at.mac for at in handle.view().attachments]
    assert len(given.links) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"network": "none"},
        {"memory_bytes": 512 << 20},
        {"address": "10.99.0.9"},
        {"writable_size_bytes": 1 << 30},
        {"egress": "none"},
        {"mounts": (Mount(MountType.BIND, "/x", "/srv"),)},
    ],
)
async def test_who_needs_something_else_does_not_get_it(
    world: World, ready: Fleet, fields: dict[str, object]
) -> None:
    spare = await spare_of(world)
    handle = await created(ready, **fields)
    assert handle.record.sandbox_id != spare.sandbox_id
    await handle.start()
    assert report(handle).path is not StartPath.SPARE


async def test_the_shape_that_was_asked_for_twice_is_kept(world: World, ready: Fleet) -> None:
    first = await spare_of(world)
    await world.templates.build(LARGE)
    for _ in range(2):
        await created(ready, memory_bytes=512 << 20)
    await eventually(lambda: [one.shape for one in world.spares.ready] == [LARGE])
    await eventually(lambda: first.sandbox_id not in world.hypervisor.running)
    require_nothing_of(world, first.sandbox_id)


async def test_shapes_that_alternate_leave_the_spare_alone(world: World, ready: Fleet) -> None:
    await world.templates.build(LARGE)
    for _ in range(3):
        spare = await spare_of(world)
        await created(ready, memory_bytes=512 << 20)
        await world.spares.look()
        assert world.spares.ready == [spare]
        handle = await created(ready)
        assert handle.record.sandbox_id == spare.sandbox_id


async def test_a_shape_that_nobody_has_asked_for_in_long_gives_way_at_once(
    world: World, ready: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.templates.build(LARGE)
    monkeypatch.setattr(demand, "OUT_OF_USE_S", 0.0)
    await created(ready, memory_bytes=512 << 20)
    await eventually(lambda: [one.shape for one in world.spares.ready] == [LARGE])


@pytest.mark.parametrize("broken", ["replace", "resume", "configure", "gone"])
async def test_a_spare_that_fails_costs_time_and_is_told(world: World, ready: Fleet, broken: str) -> None:
    spare = await spare_of(world)
    error = UnavailableError("bad luck")
    handle = await created(ready)
    if broken == "configure":
        world.hypervisor.agents[spare.sandbox_id].fail_next("configure", error)
    elif broken == "gone":
        world.hypervisor.running.pop(spare.sandbox_id)  # and the event is late
    else:
        setattr(world.hypervisor, f"fail_next_{broken}", error)
    await handle.start()
    told = report(handle)
    assert told.path is StartPath.TEMPLATE
    assert told.note.startswith("the spare failed: ")
    assert list(told.phases_ms) == ["prepare", "spare", "vm", "hello", "configure", "create", "start"]
    await handle.remove(force=True)
    require_nothing_of(world, spare.sandbox_id)


async def test_what_spare_and_template_failed_of_is_told_together(world: World, ready: Fleet) -> None:
    await spare_of(world)
    handle = await created(ready)
    await spare_of(world)  # the next, which restores nothing any more
    world.hypervisor.fail_next_resume = UnavailableError("bad luck")
    world.hypervisor.fail_next_restore = qemu_died()
    await handle.start()
    told = report(handle)
    assert told.path is StartPath.COLD
    assert told.note.startswith("the spare failed: bad luck; the start from a template failed: ")


async def test_a_spare_that_is_lost_is_replaced(world: World, ready: Fleet) -> None:
    spare = await spare_of(world)
    world.hypervisor.lose(spare.sandbox_id)
    await eventually(lambda: spare not in world.spares.ready)
    assert (await spare_of(world)).sandbox_id != spare.sandbox_id
    await eventually(lambda: spare.sandbox_id not in world.network.leases)
    require_nothing_of(world, spare.sandbox_id)


async def test_a_spare_gives_way_to_whoever_needs_its_memory(world: World) -> None:
    world.memory_mib = 2 * (256 + 136)
    async with world.daemon() as fleet:
        await world.templates.build(SHAPE)
        world.spares.begin(SHAPE)
        spare = await spare_of(world)
        handles = [await created(fleet, network="none") for _ in range(2)]  # not from it
        for handle in handles:
            await handle.start()
        assert world.spares.ready == []
        await eventually(lambda: spare.sandbox_id not in world.network.leases)
        require_nothing_of(world, spare.sandbox_id)
        assert all(handle.view().state is ContainerState.RUNNING for handle in handles)


async def test_none_is_made_where_there_is_no_room(world: World) -> None:
    world.memory_mib = 256 + 136
    async with world.daemon() as fleet:
        await world.templates.build(SHAPE)
        await started(fleet, network="none")
        before = len(world.hypervisor.definitions)
        world.spares.begin(SHAPE)
        await world.spares.look()
        assert len(world.hypervisor.definitions) == before


async def test_one_that_was_promised_is_not_counted_twice(world: World) -> None:
    world.memory_mib = 256 + 136
    async with world.daemon() as fleet:
        await world.templates.build(SHAPE)
        world.spares.begin(SHAPE)
        await spare_of(world)
        handle = await started(fleet)
        assert report(handle).path is StartPath.SPARE


async def test_a_container_that_is_not_started_gives_the_memory_back(
    world: World, ready: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spares, "PROMISE_S", 0.0)
    spare = await spare_of(world)
    handle = await created(ready)
    assert handle.record.sandbox_id == spare.sandbox_id
    await eventually(lambda: spare.sandbox_id not in world.network.taps)
    assert spare.sandbox_id not in world.hypervisor.running
    assert spare.sandbox_id not in world.storage.disks
    await handle.start()
    assert report(handle).path is StartPath.TEMPLATE


async def test_a_start_waits_until_an_expired_spare_is_gone(world: World, ready: Fleet) -> None:
    spare = await spare_of(world)
    handle = await created(ready)
    gate = world.hypervisor.hold("destroy")
    world.spares.vm_gone(spare.sandbox_id)  # as if it had expired
    starting = asyncio.ensure_future(handle.start())
    await eventually(lambda: spare.sandbox_id in world.hypervisor.destroyed)
    gate.set()
    await starting
    assert report(handle).path is StartPath.TEMPLATE
    assert handle.view().state is ContainerState.RUNNING


async def test_a_container_that_is_removed_before_its_start_leaves_nothing(
    world: World, ready: Fleet
) -> None:
    spare = await spare_of(world)
    handle = await created(ready)
    await handle.remove(force=False)
    require_nothing_of(world, spare.sandbox_id)


async def test_a_creation_that_fails_leaves_nothing(
    world: World, ready: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = await spare_of(world)

    async def refuse(*_: object, **__: object) -> None:
        raise ExistsError("taken")

    monkeypatch.setattr(world.records, "insert", refuse)
    with pytest.raises(ExistsError):
        await ready.create(ContainerSpec("alpine", args=("sleep",)))
    await eventually(lambda: spare.sandbox_id not in world.network.leases)
    require_nothing_of(world, spare.sandbox_id)


async def test_a_spare_goes_with_its_template(world: World, ready: Fleet) -> None:
    spare = await spare_of(world)
    await world.templates.remove(spare.template_id)
    await eventually(lambda: spare.sandbox_id not in world.network.leases)
    require_nothing_of(world, spare.sandbox_id)
    assert world.spares.ready == []
    await world.templates.build(SHAPE)
    assert (await spare_of(world)).template_id != spare.template_id


async def test_a_spare_of_an_earlier_template_is_not_used(world: World, ready: Fleet) -> None:
    spare = await spare_of(world)
    handle = await created(ready)
    await world.templates.remove(spare.template_id)
    newer = await world.templates.build(SHAPE)
    await handle.start()
    assert report(handle).path is StartPath.TEMPLATE
    assert report(handle).note == "the spare is of an earlier template"
    assert world.hypervisor.definitions[-1].restore_from == newer.path("state")


@pytest.mark.parametrize("verb", REHEARSAL)
async def test_a_rehearsal_that_fails_leaves_nothing_and_is_tried_again_later(
    world: World, verb: str
) -> None:
    async with world.daemon():
        await world.templates.build(SHAPE)
        world.hypervisor.failing_verbs[verb] = UnavailableError("bad luck")
        world.spares.begin(SHAPE)
        await world.spares.look()
        assert world.spares.ready == []
        assert not world.hypervisor.running
        assert not world.network.leases
        assert not list((world.root / "sandboxes").iterdir()) + list((world.root / "run").iterdir())
        assert sum(one.restore_from is not None for one in world.hypervisor.definitions) == 1  # not at once


@pytest.mark.parametrize("failing", ["fail_next_start", "fail_next_pause"])
async def test_a_vm_that_cannot_be_had_leaves_nothing(world: World, failing: str) -> None:
    async with world.daemon():
        await world.templates.build(SHAPE)
        setattr(world.hypervisor, failing, qemu_died())
        world.spares.begin(SHAPE)
        await world.spares.look()
        assert not world.hypervisor.running
        assert not world.network.leases
        assert not list((world.root / "sandboxes").iterdir()) + list((world.root / "run").iterdir())


async def test_a_trial_that_does_not_run_makes_no_spare(world: World) -> None:
    world.script(PROGRAM[0], Script(exit=ProcessExit(127, start_error="not found")))
    async with world.daemon():
        await world.templates.build(SHAPE)
        world.spares.begin(SHAPE)
        await world.spares.look()
        assert world.spares.ready == []
        assert not world.hypervisor.running


async def test_hyperd_takes_its_spares_with_it(world: World) -> None:
    async with world.daemon() as fleet:
        await world.templates.build(SHAPE)
        world.spares.begin(SHAPE)
        await spare_of(world)
        waiting = await created(fleet)
        spare = await spare_of(world)
    assert not world.hypervisor.running
    require_nothing_of(world, spare.sandbox_id)
    assert waiting.record.sandbox_id not in world.network.taps


async def test_what_a_killed_hyperd_left_of_them_the_next_one_removes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was ready, and one that a container was created with and not started from."""
    async with world.daemon() as fleet:
        await world.templates.build(SHAPE)
        world.spares.begin(SHAPE)
        await spare_of(world)
        promised = await created(fleet)
        spare = await spare_of(world)

        async def killed() -> None:
            assert world.spares._keeping is not None
            world.spares._keeping.cancel()

        monkeypatch.setattr(world.spares, "close", killed)
    assert {spare.sandbox_id, promised.record.sandbox_id} <= set(world.hypervisor.running)
    world.spares_wanted = 0
    async with world.daemon() as fleet:
        await eventually(lambda: not world.hypervisor.running)
        require_nothing_of(world, spare.sandbox_id)
        handle = fleet.get(promised.record.sandbox_id)
        assert handle.view().state is ContainerState.CREATED
        await handle.start()
        assert report(handle).path is StartPath.TEMPLATE
        await handle.remove(force=True)
        require_nothing_of(world, promised.record.sandbox_id)


async def test_a_start_that_fails_behind_its_identity_is_the_container_s_own_failure(
    world: World, ready: Fleet
) -> None:
    spare = await spare_of(world)
    handle = await created(ready)
    world.hypervisor.agents[spare.sandbox_id].fail_next("create_container", UnavailableError("no such user"))
    with pytest.raises(HyperError, match="no such user"):
        await handle.start()
    world.require_nothing_left_of(handle)
