# SPDX-License-Identifier: Apache-2.0
"""Containers in the VM of another that do not get out of it at once: nothing of theirs is lost, forgotten or denied."""

import asyncio
import contextlib
from datetime import UTC, datetime

import pytest

from hyperd.errors import HyperError, NotFoundError, UnavailableError, WrongStateError
from hyperd.model.container import ContainerState, ExitReason
from hyperd.model.guest import ProcessExit
from hyperd.model.vm import SandboxId
from hyperd.sandbox import Fleet, SandboxHandle, instance, machine, riders, riding
from hyperd.sandbox.execs import STOPPED_BY_FORCE
from hyperd.sandbox.identity import container_id_of
from hyperd.sandbox.message import IsUp, OfRun
from hyperd.sandbox.riders import Rider
from hyperd.sandbox.run import Live
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.lives import ended, state
from tests.unit.sandbox.ridden import plugged, require_alone, rider_of

NOT_OUT = "is not out of the VM of container web"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of guests that do not let go, of agents that do not answer."""
    monkeypatch.setattr(riders, "RETRY_S", 0.02)
    monkeypatch.setattr(riding, "LEAVE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(instance, "LIVE_TIMEOUT_S", 0.1)


def is_in_the_vm(world: World, side: SandboxHandle) -> bool:
    return container_id_of(side.record) in world.agent(side).containers


def refuse(world: World, carrier: SandboxHandle, verb: str, error: HyperError) -> None:
    """Whenever ``verb`` is called."""

    def raise_it(called: str) -> None:
        if called == verb:
            raise error

    world.agent(carrier).on_call = raise_it


def accept(world: World, carrier: SandboxHandle) -> None:
    world.agent(carrier).on_call = lambda _: None


def require_not_out(side: SandboxHandle, reason: ExitReason = ExitReason.AGENT_LOST) -> None:
    exit_ = side.view().exit
    assert exit_ is not None
    assert (state(side), exit_.reason) == (ContainerState.FAILED, reason)
    assert NOT_OUT in exit_.message


async def is_found_again(fleet: Fleet, side: SandboxHandle) -> None:
    await eventually(lambda: fleet._drivers[side.record.sandbox_id].tenure is not None)


async def left_by_a_killed_hyperd(world: World) -> tuple[SandboxHandle, SandboxHandle]:
    """A carrier and its rider, web and side, running; nobody dials until ``world.dialer.gate`` is set."""
    async with world.daemon() as fleet:
        web = await started(fleet, name="web")
        side = await rider_of(web, fleet, name="side")
    world.dialer.gate.clear()
    return web, side


def with_its_carrier_alone(world: World, web: SandboxHandle) -> None:
    """The next hyperd finds the carrier, and not the rider: until ``accept``."""
    agent = world.agent(web)
    found = agent.calls.count("list_containers") + 1

    def raise_it(called: str) -> None:
        if called == "list_containers" and agent.calls.count(called) > found:
            raise UnavailableError("starved")

    agent.on_call = raise_it
    world.dialer.gate.set()


async def test_what_is_not_out_of_the_vm_is_not_removed(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    side = await rider_of(web, fleet, name="side")
    world.hypervisor.clinging.add(web.record.sandbox_id)
    await side.stop(timeout_s=0)
    with pytest.raises(UnavailableError, match=NOT_OUT):
        await side.remove(force=False)
    assert side.record.sandbox_id in world.storage.disks
    world.hypervisor.clinging.clear()
    await side.remove(force=False)
    require_alone(world, web)
    assert side.record.sandbox_id not in world.storage.disks


@pytest.mark.usefixtures("impatient")
async def test_one_whose_agent_does_not_answer_is_not_removed(world: World) -> None:
    web, side = await left_by_a_killed_hyperd(world)
    async with world.daemon() as fleet:
        with pytest.raises(UnavailableError, match=NOT_OUT):
            await fleet.get("side").remove(force=True)
        assert is_in_the_vm(world, side)
        world.dialer.gate.set()
        await is_found_again(fleet, web)
        await fleet.get("side").remove(force=False)
        require_alone(world, web)


async def test_a_removal_that_was_cut_short_takes_out_what_is_still_in_the_vm(world: World) -> None:
    async with world.daemon() as fleet:
        web = await started(fleet, name="web")
        side = await rider_of(web, fleet, name="side")
    async with world.stored() as records:
        await records.save_state(side.record.sandbox_id, machine.Removing(volumes=False), 99)
    async with world.daemon() as fleet:
        await eventually(lambda: side.record.sandbox_id not in fleet._drivers)
        require_alone(world, web)


@pytest.mark.usefixtures("impatient")
async def test_one_whose_carriers_vm_has_gone_needs_nobody_for_its_removal(world: World) -> None:
    web, _ = await left_by_a_killed_hyperd(world)
    world.hypervisor.lose(web.record.sandbox_id)
    async with world.daemon() as fleet:
        await fleet.get("side").remove(force=True)
        with pytest.raises(NotFoundError):
            fleet.get("side")


async def test_what_the_guest_has_mounted_is_not_unplugged(
    world: World, fleet: Fleet, impatient: None
) -> None:
    web = await started(fleet, name="web")
    side = await rider_of(web, fleet, name="side")
    refuse(world, web, "delete_container", UnavailableError("syncs"))
    await side.stop(timeout_s=0)
    require_not_out(side)
    assert len(plugged(world, web)) == 2
    accept(world, web)
    await side.start()
    assert (state(side), len(plugged(world, web))) == (ContainerState.RUNNING, 2)


async def test_a_connection_that_breaks_in_a_removal_costs_a_second_try(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(riders, "RETRY_S", 0.02)
    web = await started(fleet, name="web")
    side = await rider_of(web, fleet, name="side")
    world.agent(web).fail_next("delete_container", UnavailableError("the connection to the agent is lost"))
    await side.remove(force=True)
    require_alone(world, web)


async def test_a_container_without_disks_in_the_vm_does_not_keep_it_from_starting(
    world: World, fleet: Fleet
) -> None:
    web = await started(fleet, name="web")
    side = await rider_of(web, fleet, name="side")
    left = world.agent(web).containers[container_id_of(side.record)]
    await side.stop(timeout_s=0)
    world.agent(web).containers[container_id_of(side.record)] = left
    await side.start()
    assert state(side) is ContainerState.RUNNING


@pytest.mark.usefixtures("impatient")
async def test_a_rider_waits_for_a_carrier_that_is_paused_before_it_is_found(world: World) -> None:
    web, side = await left_by_a_killed_hyperd(world)
    with_its_carrier_alone(world, web)
    async with world.daemon() as fleet:
        await is_found_again(fleet, web)
        await fleet.get("web").pause()
        driver = fleet._drivers[side.record.sandbox_id]
        await eventually(lambda: "non running" in str(driver._trouble))
        assert state(fleet.get("side")) is ContainerState.RUNNING
        accept(world, web)
        await fleet.get("web").unpause()
        await is_found_again(fleet, side)
        world.process(side).finish(ProcessExit(6))
        assert (await ended(fleet.get("side"))).code == 6
        require_alone(world, web)


@pytest.mark.usefixtures("impatient")
async def test_an_end_in_a_vm_that_is_paused_is_not_told(world: World) -> None:
    web, side = await left_by_a_killed_hyperd(world)
    with_its_carrier_alone(world, web)
    async with world.daemon() as fleet:
        await is_found_again(fleet, web)
        await fleet.get("web").pause()
        await fleet.get("side").stop(timeout_s=0)
        require_not_out(fleet.get("side"))
        assert is_in_the_vm(world, side)
        accept(world, web)
        await fleet.get("web").unpause()
        await fleet.get("side").start()


@pytest.mark.usefixtures("impatient")
async def test_an_end_that_cannot_be_brought_about_is_not_told(world: World) -> None:
    web, side = await left_by_a_killed_hyperd(world)
    async with world.daemon() as fleet:
        await fleet.get("side").stop(timeout_s=0)
        require_not_out(fleet.get("side"))
        assert is_in_the_vm(world, side)
        world.dialer.gate.set()
        await is_found_again(fleet, web)
        await fleet.get("side").start()


@pytest.mark.usefixtures("impatient")
async def test_a_start_that_was_cut_short_and_cannot_be_undone_says_so(world: World) -> None:
    _, side = await left_by_a_killed_hyperd(world)
    async with world.stored() as records:
        await records.save_state(side.record.sandbox_id, machine.Starting(datetime.now(UTC)), 99)
    async with world.daemon() as fleet:
        await eventually(lambda: state(fleet.get("side")) is ContainerState.FAILED)
        require_not_out(fleet.get("side"), ExitReason.START_FAILED)
        assert is_in_the_vm(world, side)
        world.dialer.gate.set()


async def test_a_rider_that_is_not_found_yet_ends_with_its_carrier(world: World) -> None:
    _, side = await left_by_a_killed_hyperd(world)
    async with world.daemon() as fleet:
        await fleet.get("web").remove(force=True)
        exit_ = await ended(fleet.get("side"))
        assert exit_.reason in (ExitReason.CARRIER_ENDED, ExitReason.VM_LOST)
        assert world.hypervisor.running == {}
        await fleet.get("side").remove(force=False)
        assert side.record.sandbox_id not in world.storage.disks


async def test_a_rider_that_is_not_found_yet_has_gone_when_its_carriers_vm_has(world: World) -> None:
    web, side = await left_by_a_killed_hyperd(world)
    async with world.daemon() as fleet:
        stop = asyncio.create_task(fleet.get("web").stop(timeout_s=60))
        await eventually(lambda: state(fleet.get("web")) is ContainerState.STOPPING)
        remove = asyncio.create_task(fleet.get("side").remove(force=True))
        await eventually(lambda: state(fleet.get("side")) is ContainerState.STOPPING)
        assert not remove.done()
        world.hypervisor.lose(web.record.sandbox_id)
        await remove
        assert side.record.sandbox_id not in world.storage.disks
        await stop


@pytest.mark.parametrize("late", ["deletes for long", "does not let go"])
async def test_a_vm_is_synced_before_it_is_taken_from_under_a_rider(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, impatient: None, late: str
) -> None:
    web = await started(fleet, name="web")
    await rider_of(web, fleet, name="side")
    agent = world.agent(web)
    if late == "deletes for long":
        monkeypatch.setattr(riders, "SEND_OFF_TIMEOUT_S", 0.05)
        agent.hold("delete_container")
    else:
        refuse(world, web, "delete_container", UnavailableError("syncs"))
    await web.remove(force=True)
    assert "shutdown" in agent.calls


async def test_a_vm_that_is_nobodys_any_more_is_taken_at_once(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    await rider_of(web, fleet, name="side")
    agent = world.agent(web)
    await web.remove(force=True)
    assert "shutdown" not in agent.calls


async def test_a_carrier_that_ends_in_the_moment_in_which_a_rider_comes_up_takes_it_along(
    world: World, fleet: Fleet
) -> None:
    web = await started(fleet, name="web")
    side = await created(fleet, network="container:web")
    gate = world.agent(web).hold("start_container")
    start = asyncio.create_task(side.start())
    await world.agent(web).wait_called("start_container", times=2)
    gate.set()  # it is up in the next turn of the loop, and this is heard just before that
    fleet._drivers[web.record.sandbox_id].riders.tell_end(STOPPED_BY_FORCE)
    await start
    assert (await ended(side)).reason is ExitReason.CARRIER_ENDED
    require_alone(world, web)


async def test_a_seat_that_was_not_given_back_is_none_in_the_next_run(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(riders, "SEND_OFF_TIMEOUT_S", 0.02)
    web = await started(fleet, name="web")
    seat = await fleet._drivers[web.record.sandbox_id].take_seat(_deaf())
    await web.stop(timeout_s=0)
    await web.start()
    await web.pause()
    seat.leave()


async def test_a_seat_goes_with_a_bug_of_its_carriers(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    driver = fleet._drivers[web.record.sandbox_id]
    await driver.take_seat(_deaf())
    driver._spawn(_bug())
    await ended(web)
    await web.start()
    await web.pause()


async def test_who_comes_up_too_late_gives_its_seat_back(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    side = await created(fleet, name="side", network="container:web")
    seat = await fleet._drivers[web.record.sandbox_id].take_seat(_deaf())
    with pytest.raises(WrongStateError, match=r"has others in its VM \(deaf\)"):
        await web.pause()
    live = Live(seat.guest, 1, 0, await world.accelerator(), (), contextlib.AsyncExitStack(), shared=seat)
    fleet._drivers[side.record.sandbox_id].post(OfRun(-1, IsUp(live)))
    await eventually(lambda: not fleet._drivers[web.record.sandbox_id].riders.names)
    await web.pause()


def _deaf() -> Rider:
    """Does not leave when it is told to."""
    return Rider(SandboxId("d" * 64), "deaf", lambda _: None)


async def _bug() -> None:
    raise AssertionError("a bug")
