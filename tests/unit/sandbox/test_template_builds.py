# SPDX-License-Identifier: Apache-2.0
"""Templates in the making: what a build takes, what it leaves, and who waits for it."""

import asyncio

import pytest

from hyperd.config import Config, TemplateConfig
from hyperd.doctor import template_check
from hyperd.errors import (
    ExhaustedError,
    HyperError,
    NotFoundError,
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
)
from hyperd.model.container import Sizing, StartPath
from hyperd.model.host import CheckLevel
from hyperd.model.vm import Accelerator, VmDefinition
from hyperd.sandbox import Fleet, Shape, template
from tests.fakes.hypervisor import qemu_died
from tests.fakes.snapshot import no_space
from tests.fakes.world import World, eventually, started
from tests.unit.sandbox.templated import (
    SHAPE,
    is_of_template,
    report,
    require_nothing_left,
    templates,
)


@pytest.fixture(autouse=True)
def _templates(world: World) -> None:
    world.templates_enabled = True


FAILURES = {
    "draft": lambda world: setattr(world.snapshots, "fail_next_begin", no_space()),
    "tap": lambda world: setattr(world.network, "fail_next_attach", ExhaustedError("no address is left")),
    "vm": lambda world: setattr(world.hypervisor, "fail_next_start", qemu_died()),
    "hello": lambda world: setattr(world.dialer, "fail_next_connect", TimeoutExpiredError("no hello")),
    "save": lambda world: setattr(world.hypervisor, "fail_next_save", ExhaustedError("no space left")),
    "destroy": lambda world: setattr(world.hypervisor, "fail_next_destroy", UnavailableError("libvirt is busy")),
    "publish": lambda world: setattr(world.snapshots, "fail_next_publish", no_space()),
}  # fmt: skip


@pytest.mark.parametrize("step", FAILURES)
async def test_a_build_that_fails_at_any_step_leaves_nothing(world: World, fleet: Fleet, step: str) -> None:
    FAILURES[step](world)
    with pytest.raises(HyperError):
        await world.templates.build(SHAPE)
    require_nothing_left(world)
    assert await world.templates.build(SHAPE) in templates(
        world
    )  # who asks for it does not wait for a back-off


async def test_an_agent_that_is_too_old_for_templates_boots(world: World, fleet: Fleet) -> None:
    start = world.hypervisor.start

    async def start_an_old_agent(definition: VmDefinition):
        status = await start(definition)
        agent = world.hypervisor.agents[definition.sandbox_id]
        agent.fail_next("release_devices", UnsupportedError("the agent does not know ReleaseDevices"))
        return status

    world.hypervisor.start = start_an_old_agent  # type: ignore[method-assign]
    with pytest.raises(UnsupportedError):
        await world.templates.build(SHAPE)
    require_nothing_left(world)
    handle = await started(fleet)
    assert report(handle).path is StartPath.COLD
    assert "does not know ReleaseDevices; tried again in 30 s" in report(handle).note


async def test_a_failed_build_is_not_tried_again_by_each_start(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wait_s in (30, 60):
        world.snapshots.fail_next_begin = no_space()
        with pytest.raises(ExhaustedError):
            await world.templates.build(SHAPE)
        note = report(await started(fleet)).note
        assert note.endswith(f"no space for a snapshot; tried again in {wait_s} s")
        assert "no template yet for 1 vCPU, 256 MiB: " in note
    assert not templates(world)
    assert isinstance(world.templates.trouble, ExhaustedError)
    monkeypatch.setattr(template, "RETRY_S", 0.0)
    world.snapshots.fail_next_begin = no_space()
    with pytest.raises(ExhaustedError):
        await world.templates.build(SHAPE)
    assert "being built" in report(await started(fleet)).note  # its time has come
    await eventually(lambda: templates(world))
    assert world.templates.trouble is None


async def test_the_wait_has_a_limit(world: World, fleet: Fleet) -> None:
    for _ in range(10):
        world.snapshots.fail_next_begin = no_space()
        with pytest.raises(ExhaustedError):
            await world.templates.build(SHAPE)
    assert "tried again in 3600 s" in (await world.templates.offer(SHAPE)).note


async def test_none_is_built_where_memory_is_short(world: World) -> None:
    world.memory_mib = 256 + 136
    async with world.daemon() as fleet:
        handle = await started(fleet)
        assert "0 of 392 MiB are free" in report(handle).note
        assert not any(is_of_template(item) for item in world.hypervisor.definitions)
        with pytest.raises(ExhaustedError):
            await world.templates.build(SHAPE)


async def test_a_build_takes_no_memory_from_a_start(world: World) -> None:
    world.memory_mib = 2 * (256 + 136)
    world.hypervisor.save_gate.clear()
    async with world.daemon() as fleet:
        await started(fleet)  # its template is being built now
        await started(fleet)
        world.hypervisor.save_gate.set()


async def test_starts_of_ever_new_sizes_do_not_pile_up_builds(world: World, fleet: Fleet) -> None:
    world.hypervisor.save_gate.clear()
    for memory_mib in range(100, 100 + template.MAX_FLIGHTS):
        offer = await world.templates.offer(Shape(Sizing(1, memory_mib), True, Accelerator.TCG))
        assert offer.note.endswith("being built")
    assert (await world.templates.offer(SHAPE)).note.endswith(": 8 others are being built")
    world.hypervisor.save_gate.set()
    await eventually(lambda: len(templates(world)) == template.MAX_FLIGHTS)
    assert (await world.templates.offer(SHAPE)).note.endswith("MiB: being built")


async def test_the_least_recently_used_goes_but_none_that_a_start_uses(world: World) -> None:
    world.template_budget_bytes = 16384  # two of the fake's
    async with world.daemon() as fleet:
        first = await world.templates.build(SHAPE)
        second = await world.templates.build(Shape(Sizing(2, 256), True, Accelerator.TCG))
        await started(fleet)
        await eventually(lambda: world.snapshots.touched)
        third = await world.templates.build(Shape(Sizing(3, 256), True, Accelerator.TCG))
        assert ids(world) == {first.manifest.snapshot_id, third.manifest.snapshot_id}
        with world.templates.in_use(first), world.templates.in_use(third):
            fourth = await world.templates.build(Shape(Sizing(4, 256), True, Accelerator.TCG))
            kept = {snapshot.manifest.snapshot_id for snapshot in (first, third, fourth)}
            assert ids(world) == kept
        assert second.manifest.snapshot_id not in kept


def ids(world: World) -> set[str]:
    return {snapshot.manifest.snapshot_id for snapshot in templates(world)}


async def test_the_end_of_hyperd_breaks_a_build_off(world: World) -> None:
    world.hypervisor.save_gate.clear()
    async with world.daemon():
        note = (await world.templates.offer(SHAPE)).note
        assert "being built" in note
        await eventually(lambda: world.hypervisor.saved)
    require_nothing_left(world)


async def test_a_build_that_was_killed_in_the_middle_is_cleared_away(world: World) -> None:
    undoes = ((world.hypervisor, "destroy"), (world.network, "release"), (world.snapshots, "discard"))
    for room, undo in undoes:
        setattr(room, undo, _nothing)  # as if it had been killed: nothing is undone
    world.hypervisor.save_gate.clear()
    async with world.daemon():
        await world.templates.offer(SHAPE)
        await eventually(lambda: world.hypervisor.saved)
    for room, undo in undoes:
        delattr(room, undo)
    assert world.hypervisor.running
    assert world.network.leases
    assert world.snapshots.drafts
    async with world.daemon():
        require_nothing_left(world)


async def _nothing(*_: object) -> None: ...


async def test_directories_that_nothing_else_tells_of_are_cleared_away_too(world: World) -> None:
    left = world.root / "sandboxes" / ("ab" * 32)
    left.mkdir(parents=True)
    (world.root / "sandboxes" / "other").mkdir()
    async with world.daemon():
        assert not left.exists()
        assert (world.root / "sandboxes" / "other").exists()


async def test_a_bug_in_a_build_is_not_the_end_of_anything(world: World, fleet: Fleet) -> None:
    async def bug(**_: object) -> None:
        raise ZeroDivisionError

    begin, world.snapshots.begin = world.snapshots.begin, bug  # type: ignore[method-assign, assignment]
    with pytest.raises(HyperError, match="bug_id="):
        await world.templates.build(SHAPE)
    world.snapshots.begin = begin  # type: ignore[method-assign]
    assert report(await started(fleet)).path is StartPath.COLD


async def test_who_hangs_up_leaves_the_build_to_the_others(world: World, fleet: Fleet) -> None:
    world.hypervisor.save_gate.clear()
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(world.templates.build(SHAPE)) for _ in range(2)]
        await eventually(lambda: world.hypervisor.saved)
        asked[0].cancel()
        world.hypervisor.save_gate.set()
    assert asked[1].result() in templates(world)


async def test_the_doctor_says_what_there_is_and_what_is_wrong_with_it(world: World, fleet: Fleet) -> None:
    assert template_check(Config(), world.templates).level is CheckLevel.OK
    world.snapshots.fail_next_begin = no_space()
    with pytest.raises(ExhaustedError):
        await world.templates.build(SHAPE)
    warned = template_check(Config(), world.templates)
    assert (warned.level, warned.finding) == (
        CheckLevel.WARNING,
        "/fake/snapshots: no space for a snapshot",
    )
    await world.templates.build(SHAPE)
    assert template_check(Config(), world.templates).finding == "1, 0 MiB on disk, memory shared"
    off = Config(template=TemplateConfig(enabled=False))
    assert "turned off" in template_check(off, world.templates).finding


async def test_a_removed_template_is_gone_and_an_unknown_one_an_error(world: World, fleet: Fleet) -> None:
    snapshot = await world.templates.build(SHAPE)
    await world.templates.remove(snapshot.manifest.snapshot_id[:12])
    assert world.templates.list() == []
    with pytest.raises(NotFoundError):
        await world.templates.remove(snapshot.manifest.snapshot_id)
