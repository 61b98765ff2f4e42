# SPDX-License-Identifier: Apache-2.0
"""Containers in the VM of another, over fakes of all rooms."""

import asyncio

import pytest

from hyperd.errors import (
    ExhaustedError,
    HyperError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
)
from hyperd.model.container import ContainerState, ExecSpec, ExitReason, StartPath
from hyperd.model.guest import ProcessExit
from hyperd.model.network import Endpoint, PortRequest, Protocol
from hyperd.model.vm import HOT_PLUG_DEVICES
from hyperd.model.volume import Mount, MountType
from hyperd.sandbox import CloneOptions, Fleet, PolicyDesk, riders
from hyperd.sandbox.identity import container_id_of
from hyperd.sandbox.plans import rider_serials
from tests.fakes.hypervisor import qemu_died
from tests.fakes.world import World, created, eventually, started
from tests.unit.sandbox.lives import TERM_IGNORED, all_of, ended, state
from tests.unit.sandbox.ridden import plugged, require_alone, rider_of


async def test_a_rider_runs_in_its_carriers_vm_with_disks_of_its_own(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web", hostname="www")
    side = await rider_of(web, fleet, name="side")
    assert len(world.hypervisor.running) == 1
    assert plugged(world, web) == list(rider_serials(side.record.sandbox_id))
    assert world.storage.lent == {side.record.sandbox_id: web.record.sandbox_id}
    plan = world.agent(web).containers[container_id_of(side.record)].plan
    assert (plan.hostname, plan.share_names_with) == ("www", container_id_of(web.record))
    view = side.view()
    assert (view.state, view.vm_pid) == (ContainerState.RUNNING, web.view().vm_pid)
    assert view.start is not None
    assert view.start.path is StartPath.JOINED
    assert side.record.spec.network == f"container:{web.record.sandbox_id}"
    assert side.record.sandbox_id not in dict(world.ledger.admission.held)
    assert side.record.sandbox_id not in world.network.taps


async def test_a_riders_end_leaves_its_carrier_as_it_was(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    side = await rider_of(web, fleet)
    world.process(side).finish(ProcessExit(3))
    exit_ = await ended(side)
    assert (exit_.code, exit_.reason, state(side)) == (3, ExitReason.EXITED, ContainerState.EXITED)
    require_alone(world, web)
    assert state(web) is ContainerState.RUNNING
    await (await web.exec(ExecSpec(("sleep",)))).aclose()
    await web.pause()  # its VM is its own again


async def test_output_execs_stop_and_another_start_are_as_of_any_container(
    world: World, fleet: Fleet
) -> None:
    web = await started(fleet, name="web")
    side = await created(fleet, network="container:web")
    session = await side.attach(start=True)
    world.process(side).emit(b"hello")
    execed = await side.exec(ExecSpec(("id",)))
    (process_id,) = world.agent(web).containers[container_id_of(side.record)].processes.keys() - {""}
    world.agent(web).process(container_id_of(side.record), process_id).finish(ProcessExit(4))
    assert (await all_of(execed))[2].code == 4
    await side.stop(timeout_s=0)
    out, _, exit_ = await all_of(session)
    assert (out, exit_.reason) == (b"hello", ExitReason.STOPPED)
    require_alone(world, web)
    await side.start()
    assert state(side) is ContainerState.RUNNING
    await side.remove(force=True)
    require_alone(world, web)
    assert side.record.sandbox_id not in world.storage.disks


@pytest.mark.parametrize("way", ["exit", "stop", "rm"])
async def test_riders_end_before_their_carriers_vm_and_are_told_why(
    world: World, fleet: Fleet, way: str
) -> None:
    web = await started(fleet, name="web")
    world.script("stubborn", TERM_IGNORED)
    sides = [await rider_of(web, fleet), await started(fleet, "stubborn", network="container:web")]
    ends = [asyncio.create_task(ended(side)) for side in sides]
    agent, gone = world.agent(web), []
    agent.on_call = lambda verb: gone.append(verb) if verb in ("release_disks", "shutdown") else None
    match way:
        case "exit":
            world.process(web).finish(ProcessExit(0))
            assert (await ended(web)).code == 0
        case "stop":
            await web.stop(timeout_s=0)
        case "rm":
            await web.remove(force=True)
    for end in ends:
        exit_ = await end
        assert (exit_.code, exit_.signal, exit_.reason) == (137, 9, ExitReason.CARRIER_ENDED)
        assert "container web" in exit_.message
    assert [state(side) for side in sides] == [ContainerState.EXITED] * 2
    assert gone[:2] == ["release_disks", "release_disks"]
    assert world.hypervisor.running == {}
    with pytest.raises(NotFoundError if way == "rm" else WrongStateError) as refused:
        await sides[0].start()
    assert ("No such container" if way == "rm" else "non running container: web") in str(refused.value)


async def test_a_vm_that_is_lost_takes_its_riders_along_and_says_so(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    side = await rider_of(web, fleet)
    world.hypervisor.lose(web.record.sandbox_id)
    exit_ = await ended(side)
    assert (exit_.code, exit_.reason) == (125, ExitReason.VM_LOST)
    assert "signal 9" in exit_.message
    await eventually(lambda: state(web) is ContainerState.FAILED)
    assert state(side) is ContainerState.FAILED


async def test_a_rider_needs_a_carrier_that_runs(world: World, fleet: Fleet) -> None:
    with pytest.raises(NotFoundError):
        await created(fleet, network="container:nobody")
    web = await created(fleet, name="web")
    side = await created(fleet, network=f"container:{web.record.sandbox_id[:8]}")
    with pytest.raises(WrongStateError, match="cannot join network of a non running container: web"):
        await side.start()
    assert state(side) is ContainerState.FAILED
    await web.start()
    await side.start()
    await side.remove(force=True)


@pytest.mark.parametrize("failure", ["attach", "create_container", "start_container", "create_writable"])
async def test_a_start_that_fails_half_way_leaves_nothing_in_the_vm(
    world: World, fleet: Fleet, failure: str
) -> None:
    web = await started(fleet, name="web")
    side = await created(fleet, network="container:web")
    error: HyperError = UnavailableError("bad luck")
    match failure:
        case "attach":
            world.hypervisor.fail_next_attach = error
        case "create_writable":
            world.storage.fail_next_create = error
        case _:
            world.agent(web).fail_next(failure, error)
    with pytest.raises(UnavailableError, match="bad luck"):
        await side.start()
    require_alone(world, web)
    await web.pause()
    await web.unpause()
    await side.start()
    assert state(side) is ContainerState.RUNNING


async def test_a_stop_while_it_comes_up_leaves_nothing_in_the_vm(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    side = await created(fleet, network="container:web")
    gate = world.agent(web).hold("create_container")
    start = asyncio.create_task(side.start())
    await world.agent(web).wait_called("create_container", times=2)
    stop = asyncio.create_task(side.stop(timeout_s=0))
    await world.agent(web).wait_called("delete_container", times=2)
    assert len(plugged(world, web)) == 2  # the agent goes on making it
    gate.set()
    await stop
    with pytest.raises(WrongStateError, match="stopped while it started"):
        await start
    require_alone(world, web)


async def test_a_carrier_that_ends_while_a_rider_comes_up_is_the_riders_reason(
    world: World, fleet: Fleet
) -> None:
    web = await started(fleet, name="web")
    side = await created(fleet, network="container:web")
    gate = world.agent(web).hold("create_container")
    start = asyncio.create_task(side.start())
    await world.agent(web).wait_called("create_container", times=2)
    remove = asyncio.create_task(web.remove(force=True))
    await world.agent(web).wait_called("delete_container", times=2)
    gate.set()
    await remove
    with pytest.raises(WrongStateError, match="container web, in whose VM it ran, has ended"):
        await start
    assert state(side) is ContainerState.FAILED


async def test_a_full_vm_refuses_with_the_count(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    for _ in range(HOT_PLUG_DEVICES // 2):
        await rider_of(web, fleet)
    last = await created(fleet, network="container:web")
    with pytest.raises(ExhaustedError, match=f"{HOT_PLUG_DEVICES} are taken, and it needs 2"):
        await last.start()


async def test_nothing_is_done_to_the_vm_as_a_whole_while_somebody_rides(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    side = await rider_of(web, fleet, name="side")
    fork = CloneOptions()
    for work in (web.pause(), web.snapshot("s"), web.hibernate(), fleet.fork("web", fork)):
        with pytest.raises(WrongStateError, match=r"has others in its VM \(side\)"):
            await work
    for work in (side.pause(), side.snapshot("s"), side.hibernate(), fleet.fork("side", fork)):
        with pytest.raises(UnsupportedError, match="runs in the VM of container"):
            await work
    for work in (side.connect(Endpoint("back")), side.disconnect("back")):  # type: ignore[assignment]
        with pytest.raises(WrongStateError, match="cannot be connected to any other network"):
            await work
    with pytest.raises(WrongStateError, match="has no network of its own"):
        await side.publish((PortRequest(80, Protocol.TCP),))
    assert [state(web), state(side)] == [ContainerState.RUNNING] * 2
    await side.stop(timeout_s=0)
    with pytest.raises(WrongStateError, match="cannot be connected to any other network"):
        await side.connect(Endpoint("back"))
    await web.snapshot("s")


async def test_who_asks_for_a_seat_while_the_vm_is_saved_gets_it_afterwards(
    world: World, fleet: Fleet
) -> None:
    web = await started(fleet, name="web")
    side = await created(fleet, network="container:web")
    world.hypervisor.save_gate.clear()
    saving = asyncio.create_task(web.snapshot("s"))
    await eventually(lambda: world.hypervisor.saved)
    start = asyncio.create_task(side.start())
    await eventually(lambda: state(side) is ContainerState.STARTING)
    assert plugged(world, web) == []
    world.hypervisor.save_gate.set()
    await saving
    await start
    assert state(side) is ContainerState.RUNNING


async def test_a_paused_carrier_takes_nobody(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    await web.pause()
    side = await created(fleet, network="container:web")
    with pytest.raises(WrongStateError, match="non running container"):
        await side.start()


async def test_a_connection_that_breaks_is_the_carriers_to_dial_and_nothing_is_lost(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(riders, "RETRY_S", 0.02)
    web = await started(fleet, name="web")
    side = await created(fleet, network="container:web")
    session = await side.attach(start=True)
    process = world.process(side)
    for part in (b"one ", b"two ", b"three"):
        process.emit(part)
        world.agent(web).drop_connections()
    await eventually(lambda: len(world.agent(web).connections) == 1)
    process.finish(ProcessExit(5))
    out, _, exit_ = await all_of(session)
    assert (out, exit_.code) == (b"one two three", 5)
    require_alone(world, web)
    assert state(web) is ContainerState.RUNNING


async def test_a_guest_that_does_not_let_go_is_told_and_refuses_the_next_start(
    world: World, fleet: Fleet
) -> None:
    web = await started(fleet, name="web")
    side = await rider_of(web, fleet, name="side")
    world.hypervisor.clinging.add(web.record.sandbox_id)
    await side.stop(timeout_s=0)
    exit_ = side.view().exit
    assert exit_ is not None
    assert (exit_.reason, state(side)) == (ExitReason.AGENT_LOST, ContainerState.FAILED)
    assert "does not let go of it" in exit_.message
    with pytest.raises(UnavailableError, match="not out of the VM of container web"):
        await side.start()
    with pytest.raises(WrongStateError, match="has a disk of another container's"):
        await web.snapshot("s")
    world.hypervisor.clinging.clear()
    await side.start()
    assert state(side) is ContainerState.RUNNING
    assert len(plugged(world, web)) == 2


async def test_reconciling_misses_no_vm_of_a_rider(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    side = await rider_of(web, fleet)
    for _ in range(3):
        await fleet.reconcile()
    assert [state(web), state(side)] == [ContainerState.RUNNING] * 2


async def test_what_it_uses_is_counted_in_its_guest(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    side = await rider_of(web, fleet, memory_bytes=64 << 20)
    (stats,) = await fleet.stats([side.record.name], everything=False)
    assert stats.vm is not None
    assert (stats.vm.memory_bytes, stats.memory_limit_bytes) == (None, 64 << 20)
    assert (stats.memory_bytes, stats.pids) == (8 << 20, 1)


async def test_what_needs_a_vm_of_its_own_is_refused_at_creation(world: World, fleet: Fleet) -> None:
    await started(fleet, name="web")
    with pytest.raises(UnsupportedError, match="has no volumes"):
        await created(fleet, network="container:web", mounts=(Mount(MountType.VOLUME, "/d", "db"),))
    with pytest.raises(InvalidError, match="1024 MiB are more than the 256 MiB"):
        await created(fleet, network="container:web", memory_bytes=1 << 30)
    with pytest.raises(InvalidError, match="2 CPUs are more than the 1"):
        await created(fleet, network="container:web", cpus=2.0)


async def test_files_of_a_rider_at_rest_are_opened_in_a_vm_of_its_own(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    side = await rider_of(web, fleet)
    await side.stop(timeout_s=0)
    await side.files.list_changes(_ignore)
    assert world.hypervisor.definitions[-1].sandbox_id == side.record.sandbox_id
    assert world.storage.lent == {}
    assert list(world.hypervisor.running) == [web.record.sandbox_id]


async def test_limits_of_the_network_are_its_carriers_to_change_and_to_show(
    world: World, fleet: Fleet
) -> None:
    web = await started(fleet, name="web", egress="none")
    await rider_of(web, fleet, name="side")
    desk = PolicyDesk(
        world.network,
        lambda name: fleet.get(name).record,
        fleet.records,
        lambda name: fleet.get(name).reroute(),
    )
    for asked in (
        desk.set_egress("side", "allow-all"),
        desk.change_groups("side", ["g"], []),
        desk.report("side"),
    ):
        with pytest.raises(InvalidError, match="has the network of container"):
            await asked
    with pytest.raises(InvalidError, match="has the network of container"):
        desk.inspect("side")
    assert desk.inspect("web")[1].egress == "none"


async def test_a_bug_in_a_rider_leaves_its_carrier_alone(world: World, fleet: Fleet) -> None:
    web = await started(fleet, name="web")
    side = await rider_of(web, fleet)
    driver = fleet._drivers[side.record.sandbox_id]
    driver._spawn(_bug())
    assert (await ended(side)).reason is ExitReason.AGENT_LOST
    await eventually(lambda: plugged(world, web) == [])
    require_alone(world, web)
    assert state(web) is ContainerState.RUNNING
    await web.pause()


async def test_a_carrier_that_cannot_start_has_no_riders(world: World, fleet: Fleet) -> None:
    web = await created(fleet, name="web")
    world.hypervisor.fail_next_start = qemu_died()
    with pytest.raises(UnavailableError):
        await web.start()
    side = await created(fleet, network="container:web")
    with pytest.raises(WrongStateError, match="non running"):
        await side.start()


async def _ignore(_: object) -> None:
    return


async def _bug() -> None:
    raise AssertionError("a bug")
