# SPDX-License-Identifier: Apache-2.0
"""Starts from templates: nobody waits for one, nobody fails for one, and a bad one goes."""

import asyncio
import logging
from pathlib import Path

import pytest

from hyperd.errors import (
    ClockError,
    HyperError,
    InvalidError,
    RestoreError,
    TimeoutExpiredError,
    UnavailableError,
    WrongStateError,
)
from hyperd.log import TextFormatter
from hyperd.model.container import ContainerState, Sizing, StartPath, StartReport
from hyperd.model.vm import Accelerator, VmDefinition
from hyperd.sandbox import Fleet, SandboxHandle, Shape
from tests.behind import BUILD_BEGAN, BUILD_ENDED
from tests.fakes.guest_agent import FakeAgent
from tests.fakes.hypervisor import qemu_died, restore_failed
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.templated import (
    SHAPE,
    is_of_template,
    on_clone,
    report,
    templates,
)


@pytest.fixture(autouse=True)
def _templates(world: World) -> None:
    world.templates_enabled = True


async def test_the_first_start_boots_and_the_next_is_restored(world: World, fleet: Fleet) -> None:
    first = await started(fleet)
    assert report(first).path is StartPath.COLD
    assert report(first).note == "no template yet for 1 vCPU, 256 MiB: being built"
    await world.templates.build(SHAPE)
    second = await started(fleet)
    assert report(second) == StartReport(StartPath.TEMPLATE, "", report(second).phases_ms)
    assert list(report(second).phases_ms) == ["prepare", "vm", "hello", "configure", "create", "start"]
    clone, snapshot = world.hypervisor.definitions[-1], templates(world)[0]
    assert clone.restore_from == snapshot.path("state")
    assert clone.memory_file is not None
    assert (clone.memory_file.path, clone.memory_file.shared) == (snapshot.path("ram"), False)
    assert not clone.free_page_reporting
    await eventually(lambda: world.snapshots.touched == [snapshot.manifest.snapshot_id])


async def test_the_log_says_when_a_build_begins_and_when_nothing_of_it_is_left(
    world: World, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """The leak check of the other suites (tests/harness.py) goes by it."""
    caplog.set_level(logging.INFO, "hyperd.sandbox.template")
    formatter = TextFormatter()

    def told() -> list[str]:
        return [formatter.format(record) for record in caplog.records]

    world.hypervisor.save_gate.clear()
    building = asyncio.ensure_future(world.templates.build(SHAPE))
    await eventually(lambda: bool(world.hypervisor.running))
    assert [BUILD_BEGAN.decode() in line for line in told()] == [True]
    world.hypervisor.save_gate.set()
    await building
    assert BUILD_ENDED[0].decode() in told()[-1]
    world.hypervisor.fail_next_start = qemu_died()
    with pytest.raises(HyperError):
        await world.templates.build(Shape(Sizing(1, 128), has_nic=False, accelerator=Accelerator.TCG))
    assert BUILD_ENDED[1].decode() in told()[-1]


async def test_what_a_build_needed_is_gone_when_it_is_done(world: World, fleet: Fleet) -> None:
    snapshot = await world.templates.build(SHAPE)
    assert not world.hypervisor.running
    assert not world.network.taps
    assert not world.network.leases
    assert not list((world.root / "sandboxes").iterdir()) + list((world.root / "run").iterdir())
    assert [file.name for file in snapshot.manifest.files] == ["ram", "state"]
    (built,) = world.hypervisor.definitions
    agent = world.hypervisor.agents[built.sandbox_id]
    assert agent.calls[-1] == "release_devices"
    assert agent.identity is None
    assert not agent.connections  # a connection would be in every clone


async def test_without_sharing_a_template_holds_its_memory_itself(world: World) -> None:
    world.share_memory = False
    async with world.daemon() as fleet:
        snapshot = await world.templates.build(SHAPE)
        assert [file.name for file in snapshot.manifest.files] == ["state"]
        assert report(await started(fleet)).path is StartPath.TEMPLATE
        clone = world.hypervisor.definitions[-1]
        assert clone.memory_file is None
        assert clone.free_page_reporting


async def test_many_who_are_first_share_one_build_and_do_not_wait_for_it(world: World, fleet: Fleet) -> None:
    world.hypervisor.save_gate.clear()
    handles = [await created(fleet) for _ in range(5)]
    async with asyncio.TaskGroup() as tasks:
        for handle in handles:
            tasks.create_task(handle.start())
    assert all(report(handle).path is StartPath.COLD for handle in handles)
    assert sum(is_of_template(definition) for definition in world.hypervisor.definitions) == 1
    world.hypervisor.save_gate.set()
    await world.templates.build(SHAPE)
    assert len(templates(world)) == 1


async def test_sizes_and_wires_have_templates_of_their_own(world: World, fleet: Fleet) -> None:
    await world.templates.build(SHAPE)
    bigger = await started(fleet, cpus=2.0, memory_bytes=512 << 20)
    assert report(bigger).note == "no template yet for 2 vCPUs, 512 MiB: being built"
    lonely = await started(fleet, network="none")
    assert report(lonely).note == "no template yet for 1 vCPU, 256 MiB, no network: being built"
    await eventually(lambda: len(templates(world)) == 3)
    assert report(await started(fleet, network="none")).path is StartPath.TEMPLATE


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda world: setattr(world.hypervisor, "fail_next_restore", restore_failed()), "cannot be restored"),
        (lambda world: setattr(world.hypervisor, "fail_next_start", qemu_died()), "QEMU ended"),
        (
            lambda world: setattr(world.dialer, "fail_next_connect", TimeoutExpiredError("no hello in 20 s")),
            "no hello in 20 s",
        ),
        (
            lambda world: on_clone(world, lambda agent: agent.fail_next("configure", UnavailableError("clock is off"))),
            "clock is off",
        ),
        (lambda world: on_clone(world, FakeAgent.crash), "the agent's socket is closed"),
        (lambda world: world.snapshots.damaged.add(templates(world)[0].manifest.snapshot_id), "has another content"),
        (lambda world: templates(world)[0].path("ram").unlink(), "cannot be restored"),
    ],
    ids=["restore", "vm", "hello", "configure", "crash", "damaged", "unlinked"],
)  # fmt: skip
async def test_a_start_whose_template_fails_boots_instead_and_says_so(
    world: World, fleet: Fleet, spoil, said: str
) -> None:
    await world.templates.build(SHAPE)
    spoil(world)
    handle = await started(fleet)
    assert handle.view().state is ContainerState.RUNNING
    assert report(handle).path is StartPath.COLD
    assert said in report(handle).note
    last = next(item for item in reversed(world.hypervisor.definitions) if not is_of_template(item))
    assert (last.sandbox_id, last.restore_from) == (handle.record.sandbox_id, None)
    assert len(world.storage.disks) == len(world.network.taps) == 1  # the same disk and the same wire
    identity = world.agent(handle).identity
    assert identity is not None
    assert identity.hostname == handle.record.sandbox_id[:12]
    await handle.stop()
    world.require_nothing_left_of(handle)


async def test_a_guest_that_booted_goes_on_with_a_clock_that_nobody_could_prove(
    world: World, fleet: Fleet
) -> None:
    """On a busy host. A clone might have the template's time, and is ended; one that booted has its hardware's."""
    await world.templates.build(SHAPE)
    start = world.hypervisor.start

    async def start_slowly(definition: VmDefinition):
        status = await start(definition)
        world.hypervisor.agents[definition.sandbox_id].fail_next(
            "configure", ClockError("the clock is not proven")
        )
        return status

    world.hypervisor.start = start_slowly  # type: ignore[method-assign]
    for _ in range(3):
        handle = await started(fleet)
        assert handle.view().state is ContainerState.RUNNING
        assert report(handle).path is StartPath.COLD
        assert report(handle).note.count("the clock is not proven") == 2  # of the clone, and of the guest
    assert templates(world)  # which is not to blame


async def test_a_start_in_vain_is_a_phase_of_its_own(world: World, fleet: Fleet) -> None:
    await world.templates.build(SHAPE)
    world.hypervisor.fail_next_restore = restore_failed()
    phases = report(await started(fleet)).phases_ms
    assert list(phases) == ["prepare", "template", "vm", "hello", "configure", "create", "start"]


async def test_a_template_that_cannot_be_restored_goes_and_is_made_anew(world: World, fleet: Fleet) -> None:
    bad = await world.templates.build(SHAPE)
    world.hypervisor.fail_next_restore = restore_failed()
    await started(fleet)
    assert bad not in templates(world)
    await eventually(lambda: templates(world))
    assert report(await started(fleet)).path is StartPath.TEMPLATE


async def test_one_that_is_bad_again_and_again_is_not_made_anew_each_time(world: World, fleet: Fleet) -> None:
    await world.templates.build(SHAPE)
    for _ in range(2):
        await eventually(lambda: templates(world))
        world.hypervisor.fail_next_restore = restore_failed()
        assert "is removed" in report(await started(fleet)).note
    assert "tried again in" in report(await started(fleet)).note
    assert not templates(world)
    assert isinstance(world.templates.trouble, RestoreError)


async def test_another_failure_is_forgiven_once(world: World, fleet: Fleet) -> None:
    snapshot = await world.templates.build(SHAPE)
    for strike in (1, 2):
        world.dialer.fail_next_connect = TimeoutExpiredError("no hello")
        note = report(await started(fleet)).note
        assert ("is removed" in note) == (strike == 2)
        assert (snapshot in templates(world)) == (strike == 1)


async def test_strikes_count_in_a_row(world: World, fleet: Fleet) -> None:
    snapshot = await world.templates.build(SHAPE)
    for _ in range(3):
        world.dialer.fail_next_connect = TimeoutExpiredError("no hello")
        assert report(await started(fleet)).path is StartPath.COLD
        assert report(await started(fleet)).path is StartPath.TEMPLATE
    await eventually(lambda: world.snapshots.touched)
    assert [item.manifest.snapshot_id for item in templates(world)] == [snapshot.manifest.snapshot_id]


async def test_what_fails_behind_the_identity_is_the_start_s_own_failure(world: World, fleet: Fleet) -> None:
    snapshot = await world.templates.build(SHAPE)
    on_clone(world, lambda agent: agent.fail_next("create_container", InvalidError("no such user")))
    handle = await created(fleet)
    with pytest.raises(InvalidError, match="no such user"):
        await handle.start()
    world.require_nothing_left_of(handle)
    assert [item.manifest for item in templates(world)] == [snapshot.manifest]


async def test_templates_can_be_turned_off(world: World) -> None:
    world.templates_enabled = False
    async with world.daemon() as fleet:
        handle = await started(fleet)
        assert report(handle).note == "templates are turned off ([template] enabled)"
        with pytest.raises(WrongStateError):
            await world.templates.build(SHAPE)


async def test_a_missing_kernel_is_told_by_the_boot_and_not_by_the_template(
    world: World, fleet: Fleet
) -> None:
    (world.root / "kernel").unlink()
    assert "no template for 1 vCPU, 256 MiB" in report(await started(fleet)).note


async def test_a_start_that_is_cancelled_while_it_restores_leaves_nothing(
    world: World, fleet: Fleet, tmp_path: Path
) -> None:
    await world.templates.build(SHAPE)
    world.dialer.gate.clear()
    handle = await created(fleet)
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(_failing_start(handle))
        await eventually(lambda: world.hypervisor.running)
        await handle.remove(force=True)
        assert isinstance(await starting, WrongStateError)
    world.require_nothing_left_of(handle)
    assert len(templates(world)) == 1
    assert not world.templates._in_use


async def _failing_start(handle: SandboxHandle) -> HyperError:
    with pytest.raises(HyperError) as caught:
        await handle.start()
    return caught.value
